"""
A wind from the cloud that it moved
===================================

Differentiate the solution of an equation by its velocity, and find the velocity that explains what was seen.
"""

# %%
# A cloud is photographed before and after a steady wind has blown through it for a unit of time. Which wind was it?
# ``solve_and_pull`` gives u(·, 0) at the nodes and a function that takes the gradient of any number J(u) back to F, f,
# V, g and σ, at the price of about three solves.

import numpy as np
from scipy.optimize import minimize

from pdekit import ConvectionDiffusion
from pdekit.equation.adjoint import solve_and_pull
from pdekit.field import node_points

N, M = 48, 8  # nodes of the cloud, and of the wind
TAU = 2 * np.pi


def cloud(x):
    humps = [(0.3, 0.35, 1.0), (0.7, 0.6, 0.8), (0.45, 0.8, 0.6)]
    return sum(h * np.exp(3 * (np.cos(TAU * (x - np.array([a, b]))) - 1).sum(-1)) for a, b, h in humps)


a, b = np.moveaxis(TAU * node_points(M, 2), -1, 0)
true_wind = 0.25 * np.stack([np.sin(b) + 0.6 * np.cos(a) * np.sin(b), 0.8 * np.cos(a) - 0.6 * np.sin(a) * np.cos(b)])
options = {"num_points": N, "method": "spectral_rk4", "dt": 0.02, "padded": False}
rng = np.random.default_rng(0)
after = solve_and_pull(ConvectionDiffusion(-true_wind, cloud, 0.08), **options)[0]
seen = after + 0.01 * rng.standard_normal(after.shape)

# %%
# The equation runs back in time, so that what carries the cloud is -F. What is minimised is the misfit and a little of
# the wind's roughness, as a wind is not seen where the cloud is even.

k = TAU * np.fft.fftfreq(M, 1 / M)
roughness = k[:, None] ** 2 + k[None, :] ** 2


def misfit(nodes):
    wind = nodes.reshape(2, M, M)
    u, pull = solve_and_pull(ConvectionDiffusion(-wind, cloud, 0.08), **options)
    gradient = -pull(2 * (u - seen) / u.size).velocity
    smooth = np.fft.ifftn(roughness * np.fft.fftn(wind, axes=(1, 2)), axes=(1, 2)).real
    value = ((u - seen) ** 2).mean() + 1e-5 * (wind * smooth).mean()
    return value, (gradient + 2e-5 * smooth / wind.size).ravel()


# %%
# The gradient is that of the discrete scheme: central differences meet it to their own rounding.

start = np.zeros(true_wind.size)
direction = rng.standard_normal(start.size)
value, gradient = misfit(start)
difference = (misfit(start + 1e-5 * direction)[0] - misfit(start - 1e-5 * direction)[0]) / 2e-5
print(f"by the transposed solver {gradient @ direction:.9f}, by differences {difference:.9f}")

# %%
# Some forty steps of L-BFGS do the rest.

history = [value]
found = minimize(
    misfit,
    start,
    jac=True,
    method="L-BFGS-B",
    callback=lambda at: history.append(misfit(at)[0]),
    options={"maxiter": 40},
)
wind = found.x.reshape(2, M, M)
print(f"misfit {history[0]:.2e} -> {history[-1]:.2e}, of noise alone {0.01**2:.2e}")

# %%
# The wind is found where the cloud shows it; its noise and the even sky limit the rest.

import matplotlib.pyplot as plt

figure, panels = plt.subplots(1, 3, figsize=(7.2, 2.7), width_ratios=[1, 1, 0.9])
nodes, coarse = np.arange(N) / N, np.arange(M) / M
before = cloud(node_points(N, 2))
for panel, field, title in zip(panels, (before, seen), ("before", "after, with noise"), strict=False):
    panel.pcolormesh(nodes, nodes, field.T, cmap="Blues", vmin=0, vmax=1, shading="gouraud")
    panel.set(title=title, aspect="equal", xticks=[0, 0.5], yticks=[0, 0.5])
panels[0].quiver(coarse, coarse, *np.swapaxes(true_wind, 1, 2), color="k", scale=3.5, width=0.008)
panels[1].quiver(coarse, coarse, *np.swapaxes(true_wind, 1, 2), color="0.6", scale=3.5, width=0.008)
panels[1].quiver(coarse, coarse, *np.swapaxes(wind, 1, 2), color="tab:red", scale=3.5, width=0.006)
panels[0].set_xlabel("true wind, black")
panels[1].set_xlabel("found, red, over the true one, grey")
panels[2].semilogy(history, color="tab:red")
panels[2].axhline(0.01**2, color="0.5", ls="--", lw=1)
panels[2].annotate("noise", (0, 0.01**2), xytext=(2, 3), textcoords="offset points", color="0.4")
panels[2].set(title="mean squared misfit", xlabel="iteration")
plt.show()
