"""
A noisy network and its equation
================================

Train a residual network with noise in the plane, solve the equation that it discretises, and watch the ensemble's mean
come to the solution.
"""

# %%
# The network
# -----------
# Its 12 blocks are Euler-Maruyama steps of one velocity F(x, t), x + Δt F + σ√Δt N(0, I), and its output is the softmax
# of the last features. It learns to tell two moons apart.

import numpy as np
import torch

from bridge import Box, FlowNetwork, SmoothVelocity, compare, network_problem, solution_at
from bridge.planar import fit, planar_data

box = Box(inner=4.0, outer=5.2)
network = FlowNetwork(SmoothVelocity(2, box=box, speed=1.5, seed=3), num_blocks=12, sigma=0.4, seed=3)
moons, labels = planar_data("moons", 300, 0)
losses = fit(network, moons, labels, num_steps=200, seed=0)
print(f"loss {losses[0]:.2f} -> {np.mean(losses[-20:]):.2f}")

# %%
# The equation
# ------------
# ``network_problem`` hands the flow to pdekit, on a box that paths hardly leave. Its solution is the probability of a
# class, for infinitely many blocks and draws.

from pdekit import solve

equation = network_problem(network)
solution = solve(equation, num_points=128, dt=0.02)
print("method:", solution.method, "| warnings:", solution.warnings)

# %%
# The ensemble
# ------------
# One draw of the noise is a ragged classifier; the mean over draws is smooth.

side = np.linspace(-2, 2, 60)
mesh = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
generator = torch.Generator().manual_seed(0)


def mean_answer(num_draws):
    total = torch.zeros(len(mesh))
    with torch.no_grad(), network.using_generator(generator):
        for _ in range(num_draws):
            total += network(torch.from_numpy(mesh).float()).softmax(-1)[:, 1]
    return (total / num_draws).reshape(60, 60).numpy()


u = solution.u.sel(time=0).interp(dict(zip(("x", "y"), (box.to_unit(side),) * 2, strict=True))).values
fields = {"one draw": mean_answer(1), "mean of 10": mean_answer(10), "mean of 300": mean_answer(300), "solution u": u}
for name, field in fields.items():
    print(f"{name}: {np.sqrt(np.mean((field - u) ** 2)):.4f} from u (rms)")

# %%
# They agree within the stated error: sampling, the time step of 12 blocks, and the grid.

places = moons[:80]
values = solution_at(equation, box.to_unit(places), num_points=128, dt=0.02)
comparison = compare(network, places, values, num_draws=500, generator=generator)
print(f"within the error at {comparison.coverage():.0%} of {len(places)} points; p = {comparison.p_value:.2f}")

# %%
# The line is the boundary between the classes, where u is one half.

import matplotlib.pyplot as plt

figure, panels = plt.subplots(1, 4, figsize=(7.2, 2.1), sharey=True)
for panel, (name, field) in zip(panels, fields.items(), strict=True):
    image = panel.pcolormesh(side, side, field.T, cmap="RdBu_r", vmin=0, vmax=1, shading="gouraud", rasterized=True)
    if name != "one draw":
        panel.contour(side, side, field.T, levels=[0.5], colors="k", linewidths=0.8)
    panel.plot(*moons[:120].T, ".", ms=1.5, color="0.15")
    panel.set(title=name, aspect="equal", xlim=(-2, 2), ylim=(-2, 2), xticks=[-2, 0, 2], yticks=[-2, 0, 2])
figure.colorbar(image, ax=panels, label="probability", ticks=[0, 0.5, 1], shrink=0.75, pad=0.01)
plt.show()
