"""What the further terms of the equation cost: several fields, a diffusion that varies, a potential, a source."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from pdekit import ConvectionDiffusion, solve
from pdekit.field import node_points

TAU = 2.0 * np.pi


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    took = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
    return min(took)


def swirl(x: np.ndarray, t: float) -> np.ndarray:
    a, b = TAU * x[..., 0], TAU * x[..., 1]
    return np.stack([np.sin(a) * np.cos(b) + 0.3 * np.cos(t), -0.5 * np.cos(a) * np.sin(b)], -1)


FIELDS = np.random.default_rng(0).standard_normal((7, 7, 10))
STEADY = swirl(node_points(8, 2), 0.0).transpose(2, 0, 1)


@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize(
    ("name", "velocity", "how"),
    [
        ("steady F, RK4", STEADY, {"method": "spectral_rk4", "dt": 0.01}),
        ("F(x, t), RK4", swirl, {"method": "spectral_rk4", "dt": 0.01}),
        ("F(x, t), semi-Lagrangian", swirl, {"method": "semi_lagrangian", "dt": 0.01}),
        ("steady F, Krylov", STEADY, {"method": "spectral_krylov"}),
        ("steady F, rtol = 1e-6", STEADY, {"rtol": 1e-6}),
    ],
)
def test_ten_fields_in_one_pass(n, name, velocity, how):
    problem = ConvectionDiffusion(velocity, FIELDS, 0.2, dim=2)
    together = seconds(lambda: solve(problem, num_points=n, progress=False, **how), 3)
    alone = seconds(lambda: [solve(problem.only(k), num_points=n, progress=False, **how) for k in range(10)], 3)
    print(f"\n{name}, {n}²: ten fields {together:.3f} s, one by one {alone:.3f} s: {alone / together:.2f}x")


@pytest.mark.parametrize("n", [64, 128, 256])
def test_terms_of_the_equation(n):
    waves = np.sin(TAU * np.arange(8) / 8)[:, None] * np.ones(8)
    further = {
        "plain": {},
        "potential": {"potential": 0.5 + 0.3 * waves},
        "source": {"source": waves},
        "vector of noise": {"sigma": [0.2, 0.3]},
        "noise that varies": {"sigma": lambda x, t: 0.2 + 0.05 * np.sin(TAU * x[..., 0])},
    }
    print(f"\n{n}², 100 steps of RK4")
    for name, options in further.items():
        problem = ConvectionDiffusion(STEADY, FIELDS[..., 0], **({"sigma": 0.2} | options))
        took = seconds(lambda p=problem: solve(p, num_points=n, dt=0.01, method="spectral_rk4", progress=False), 3)
        print(f"  {name:18s} {took:8.3f} s")
