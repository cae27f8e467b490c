"""
Where the paths are
===================

The density of paths solves the Fokker-Planck equation, forward in time; it is the transpose of the equation for u.
"""

# %%
# A particle in four wells
# ------------------------
# Noise lets particles escape from the wells of a potential W; the deepest fills. F = -∇W is a function, here compiled
# by numba: it takes coordinates and time, and gives the components. It does not depend on time, which ``interval``
# says.

import numpy as np

from pdekit import ConvectionDiffusion, compiled, density, sample_paths, solve
from pdekit.fastmath import cos2pi, sin2pi

DEPTH, TILT = 0.05, 0.02
TAU = 2 * np.pi


@compiled(2, interval=np.inf)
def downhill(x, y, t):
    return (
        TAU * (2 * DEPTH * sin2pi(2 * x) + TILT * cos2pi(x)),
        TAU * (2 * DEPTH * sin2pi(2 * y) + TILT * cos2pi(y)),
    )


problem = ConvectionDiffusion(downhill, lambda x: np.sin(TAU * x).sum(-1), sigma=0.25, horizon=4.0)


def start(x):
    return np.exp(12 * (np.cos(TAU * (x - 0.5)) - 1).sum(-1))


times = [0, 0.25, 1, 4]
rho = density(problem, start, num_points=64, times=times, rtol=1e-6)
print("mass:", rho.rho.mean(("x", "y")).values.round(12) / float(rho.rho[0].mean()))

# %%
# The pairing ∫ρ(t) u(t) does not depend on t, as one equation is the transpose of the other: the expectation of f can
# be taken at the end, or of u at the start.

u = solve(problem, num_points=64, times=times, rtol=1e-6, method="spectral_krylov")
pairing = (rho.rho * u.u).mean(("x", "y")).values
print("∫ρu at these times:", pairing)

# %%
# Sampled paths fall where the density says. They are those that ``feynman_kac`` walks.

rng = np.random.default_rng(0)
candidates = rng.random((60_000, 2))
chosen = candidates[rng.random(len(candidates)) < start(candidates)][:1500]
paths = sample_paths(problem, chosen, num_paths=1, num_steps=256, times=times, rng=1)
places = np.remainder(paths.position.values[:, :, 0], 1.0)

# %%
# All particles start on the hill in the middle. Soon they are in the four wells; it takes longer until the deepest, at
# the lower left, holds most of them.

import matplotlib.pyplot as plt

figure, panels = plt.subplots(1, 4, figsize=(7.2, 2.2), sharey=True)
total = float(rho.rho[0].mean())
for panel, time, found in zip(panels, times, places, strict=True):
    field = rho.rho.sel(time=time) / total
    levels = np.linspace(0, float(field.max()), 12)[1:]
    panel.contourf(field.x, field.y, field.T, levels=levels, cmap="Purples")
    panel.plot(*found[:300].T, ".", ms=2.2, mew=0, color="tab:orange")
    panel.set(title=f"t = {time:g}", aspect="equal", xlim=(0, 0.984), ylim=(0, 0.984), xticks=[0, 0.5], yticks=[0, 0.5])
plt.show()

# %%
# Counted in 16 by 16 cells, the paths are as far from the density as chance takes them: χ² a cell is near one.

cells = rho.rho.values.reshape(len(times), 16, 4, 16, 4).mean((2, 4)) / total / 256 * len(chosen)
for time, expected, found in zip(times[1:], cells[1:], places[1:], strict=True):
    counts = np.histogram2d(*found.T, bins=16, range=[[0, 1], [0, 1]])[0]
    enough = expected > 3
    print(f"t = {time}: χ² = {((counts - expected) ** 2 / expected)[enough].mean():.2f} a cell")
