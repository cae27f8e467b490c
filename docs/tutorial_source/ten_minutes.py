r"""
Ten minutes
===========

Solve an equation, sample its paths, set one against the other; train a noisy network, audit it, and look at a network
as an equation of its own. All of it runs in about a minute on a laptop; kernels are compiled at their first call.
Where others compute on the same cores, set ``OMP_NUM_THREADS=1`` before Python starts.
"""

# %%
# Solve
# -----
# The equation is
#
# .. math:: \frac{\partial u}{\partial t} + F\cdot\nabla u + \tfrac12\sigma^2\Delta u = 0, \qquad u(x, 1) = f(x),
#
# on the unit box with periodic edges. A velocity F is given by its values at the nodes i/N, or as a function
# ``(x, t) -> F``; f is a function of points ``(..., d)``, or node values as well.

import numpy as np

from pdekit import ConvectionDiffusion, solve

rng = np.random.default_rng(0)
velocity = rng.uniform(-1, 1, (2, 16, 16))
problem = ConvectionDiffusion(velocity, lambda x: np.cos(2 * np.pi * x[..., 0]), sigma=0.2)
solution = solve(problem, num_points=96, rtol=1e-6)
print(dict(solution.sizes), "method:", solution.method, "error at most", f"{solution.error_estimate:.1e}")

# %%
# With a tolerance ``solve`` takes as many Fourier modes and as long steps as it needs, and states a bound of its error,
# as this equation stands still. The result is an ``xarray.Dataset``; its attributes say how it was made.

import matplotlib.pyplot as plt

figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.9), sharey=True)
for panel, time, title in zip(panels, (1, 0), ("u(x, 1) = f(x)", "u(x, 0)"), strict=True):
    field = solution.u.sel(time=time)
    image = panel.contourf(field.x, field.y, field.T, levels=np.linspace(-1, 1, 21))
    panel.set(title=title, xlabel="x", aspect="equal")
panels[0].set_ylabel("y")
figure.colorbar(image, ax=panels, ticks=[-1, 0, 1], shrink=0.85)
plt.show()

# %%
# Sample
# ------
# The same number is an expectation over paths,
#
# .. math:: u(x, 0) = \mathbb{E}\left[f(X_1) \mid X_0 = x\right], \qquad dX = F\,dt + \sigma\,dB,
#
# and ``feynman_kac`` walks them. A mean never comes without its error.

from pdekit import feynman_kac

estimate = feynman_kac(problem, [[0.25, 0.5], [0.7, 0.1]], num_paths=40_000, bias=True, rng=1)
low, high = estimate.confidence_interval()
for point, a, b in zip(estimate.points, low, high, strict=True):
    u = float(solution.u.sel(time=0).interp(x=point[0], y=point[1]))
    print(f"u{tuple(point.tolist())} = {u:.4f}, by paths between {a:.4f} and {b:.4f}")

# %%
# Verify
# ------
# ``verify`` sets one against the other at many points, with every error in the balance: they agree, they disagree, or
# it says what would decide.

from pdekit import verify

points = rng.random((24, 2))
for factor in (1.0, 1.05):
    check = verify(problem, factor * solution, points, num_paths=10_000, rng=2)
    print(f"{factor} u: {check.verdict}; {check.reason}")

# %%
# Train
# -----
# A residual network with noise after each residual mapping steps along such paths, and averaging several draws or
# members estimates the expectation. Here are two members of depth 8, trained for five epochs against a three-step
# attack on 8×8 digits.

from netkit import PRESETS, en_resnet, load, train

digits = load("digits")
model = en_resnet(8, num_members=2, in_channels=1, width=4, noise_std="sample", seed=0)
result = train(model, digits, PRESETS["digits"], epochs=5, num_steps=3, validate_every=5)
print(f"validation: {result.history[-1].val_natural:.0%}, under attack {result.history[-1].val_robust:.0%}")

# %%
# ``inject_noise(network)`` puts the same noise into a network of your own, and ``dataset("photos")`` takes your images.
#
# Audit
# -----
# A random model can look robust because its gradients are noisy. ``audit`` runs the attacks that fit a model, with more
# and more draws for each gradient, and names the number to trust.

from netkit import audit

x, y = digits.images(digits.test.x[:40]), digits.test.y[:40]
report = audit(model, x, y, eps=0.2, budget="quick", num_draws=4)
print(report)

# %%
# Bridge
# ------
# In the plane a network's equation can be solved, too. Its blocks are Euler-Maruyama steps of a velocity; ``compare``
# runs the noisy network many times and asks whether its mean is the solution within the stated error.

import torch

from bridge import Box, FlowNetwork, SmoothVelocity, compare, network_problem, solution_at
from bridge.planar import fit, planar_data

box = Box(inner=4.0, outer=5.2)
network = FlowNetwork(SmoothVelocity(2, box=box, speed=1.5, seed=3), num_blocks=12, sigma=0.3, seed=3)
moons, labels = planar_data("moons", 200, 0)
losses = fit(network, moons, labels, num_steps=150, seed=0)
print(f"loss {losses[0]:.2f} -> {np.mean(losses[-20:]):.2f}")

equation = network_problem(network)
places = moons[:60]
u = solution_at(equation, box.to_unit(places), num_points=144, dt=0.02)
comparison = compare(network, places, u, num_draws=400, generator=torch.Generator().manual_seed(0))
print(f"within the stated error at {comparison.coverage():.0%} of the points; agree: {comparison.agrees}")

# %%
# Go on
# -----
# The gallery has a measured current, an inverse problem and a certificate; the how-to pages choose a method, read your
# files and go to a cluster; *From equation to code* leads from each formula of the paper to its function and test.
