"""Orders of time steppers and of schemes for paths, derivatives by the adjoint, and densities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pdekit import ConvectionDiffusion, Sampling, density, feynman_kac, solve, solve_and_pull
from studies.certificate.equations import TAU, Array, hill, linear, mode, square_after
from studies.lab.promises import Measured, exact, order


def smooth(x: Array, t: float) -> Array:
    a, b = TAU * x[..., 0], TAU * x[..., 1]
    return np.stack([0.4 * np.sin(a) * np.cos(b + t) + 0.3, 0.3 * np.cos(a - 2 * t) * np.sin(b)], axis=-1)


def uneven(x: Array, t: float) -> Array:
    return np.asarray(0.25 + 0.05 * np.sin(TAU * x[..., 0]))


def order_in_time(n: int, seed: int, method: str, steps: tuple[int, ...], sigma: Any = 0.2) -> Measured:
    del seed
    problem = ConvectionDiffusion(smooth, hill, sigma, dim=2)
    nodes, kept = (256, 64) if method == "semi_lagrangian" else (48, 48)
    fine = solve(problem, num_points=kept, dt=1e-3, method="spectral_rk4").u[0].values
    stride = nodes // kept
    chosen = steps[: max(2, n)]
    errors = [
        np.abs(solve(problem, num_points=nodes, dt=1 / s, method=method).u[0].values[::stride, ::stride] - fine).max()
        for s in chosen
    ]
    return order(chosen, errors)


def weak_order(n: int, seed: int, scheme: str, steps: tuple[int, ...], *, constant: bool) -> Measured:
    """On a linear equation whose second moment is known, by n antithetic pairs a step size."""
    problem, exact_value = linear(constant=constant), square_after(8.0, constant=constant)
    errors, errors_of_errors = [], []
    for number, count in enumerate(steps):
        found = feynman_kac(
            problem, [[8.0]], num_paths=2 * n, num_steps=count, scheme=scheme,
            sampling=Sampling(antithetic=True), rng=np.random.default_rng([seed, number]),
        )  # fmt: skip
        errors.append(found.mean[0] - exact_value)
        errors_of_errors.append(found.standard_error[0])
    return replace(order(steps, errors, errors_of_errors), n=2 * n)


def adjoint_error(n: int, seed: int, method: str) -> Measured:
    """Largest relative difference of n directional derivatives from differences of fourth order."""
    rng = np.random.default_rng(seed)
    return exact(max(_adjoint_difference(rng, method) for _ in range(n)), n, "largest of all")


def _adjoint_difference(rng: np.random.Generator, method: str) -> float:
    (nodes, direction), terminal = 0.3 * rng.standard_normal((2, 2, 5, 5)), rng.standard_normal((5, 5))

    def at(step: float) -> tuple[Array, Any]:
        problem = ConvectionDiffusion(nodes + step * direction, terminal, 0.3)
        return solve_and_pull(problem, num_points=24, method=method, rtol=1e-12, dt=1 / 30)

    u, back = at(0.0)
    cotangent = rng.standard_normal(u.shape)
    own = float((back(cotangent).velocity * direction).sum())
    h = 1e-3
    near, far = (float((cotangent * (at(step)[0] - at(-step)[0])).sum()) for step in (h, 2 * h))
    return abs(own - (8 * near - far) / (12 * h)) / abs(own)


def pairing(n: int, seed: int, steps: tuple[int, ...] = (40, 80, 160)) -> Measured:
    """How fast ∫ρu stops changing under AB4."""
    del n, seed
    problem = ConvectionDiffusion(lambda x, t: 0.5 * np.sin(TAU * x) * np.cos(3 * t), mode, 0.2, dim=1)
    changes = []
    for count in steps:
        how: Any = {"num_points": 64, "method": "spectral_ab4", "dt": 1 / count}
        paired = (solve(problem, **how).u * density(problem, hill, **how).rho).mean(dim="x").values
        changes.append(abs(paired[1] - paired[0]))
    return order(steps, changes)


def mass_change(n: int, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(n):
        problem = ConvectionDiffusion(0.3 * rng.standard_normal((2, 6, 6)), np.ones((4, 4)), 0.3)
        found = density(problem, lambda x: np.exp(np.sin(TAU * x).sum(-1)), num_points=32, dt=0.02)
        mass = found.rho.mean(dim=("x", "y")).values
        worst = max(worst, float(np.ptp(mass) / abs(mass[0])))
    return exact(worst, n, "largest of all")
