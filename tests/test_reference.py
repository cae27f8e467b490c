"""Reference values with stated digits, made without the code that they are held against.

    python tests/test_reference.py

makes reference.json again: by dense matrices, quadrature, closed forms and gradients by hand, in NumPy and SciPy alone,
each at two resolutions. The digits are those in which the two agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.sparse.linalg import expm_multiply

from netkit import attacks
from pdekit import ConvectionDiffusion, FunctionVelocity, characteristics, feynman_kac, solve

Array = NDArray[np.float64]

STORED = Path(__file__).with_name("reference.json")
TAU = 2 * np.pi

# Problems


def flow(x: Array) -> tuple[Array, Array]:
    a, b = TAU * x[..., 0], TAU * x[..., 1]
    return np.sin(a) * np.cos(b) + 0.3, -0.5 * np.cos(a) * np.sin(b) + 0.2 * np.sin(b)


def hill(x: Array) -> Array:
    return np.exp(np.sin(TAU * x[..., 0])) * np.cos(TAU * x[..., 1])


SIGMA = 0.2
POINTS = np.array([[1, 3], [2, 6], [4, 1], [5, 5]]) / 8  # nodes of every grid below


def drift(x: Array) -> Array:
    return 0.4 * np.sin(TAU * x) + 0.2


def bump(x: Array) -> Array:
    return np.exp(np.cos(TAU * x))


STARTS = np.array([0.1, 0.35, 0.8])
STEPS, NOISE = 4, 0.3

WEIGHTS = 1.5 * np.sin(1.0 + np.arange(48.0) ** 1.5).reshape(6, 8)
READOUT = 1.5 * np.cos(2.0 + np.arange(18.0) ** 1.5).reshape(3, 6)
IMAGES = 0.5 + 0.45 * np.sin(3.0 + np.arange(40.0) ** 1.5).reshape(5, 8)
LABELS = np.array([0, 1, 2, 1, 0])
EPS, STEP_SIZE, ATTACK_STEPS = 0.1, 0.025, 8


# How the values are made


def dense_solution(n: int) -> Array:
    """exp(L) f at POINTS, with L u = F·∇u + ½σ²Δu on n² nodes as one matrix of Fourier derivatives."""
    eye = np.eye(n)
    k = 1j * TAU * np.fft.fftfreq(n, 1 / n)
    k[n // 2] = 0  # the derivative of the highest mode vanishes at the nodes
    first = np.fft.ifft(k[:, None] * np.fft.fft(eye, axis=0), axis=0).real
    second = np.fft.ifft((k**2)[:, None] * np.fft.fft(eye, axis=0), axis=0).real
    x = np.stack(np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij"), axis=-1)
    along, across = (field.reshape(-1, 1) for field in flow(x))
    operator = along * np.kron(first, eye) + across * np.kron(eye, first)
    operator += 0.5 * SIGMA**2 * (np.kron(second, eye) + np.kron(eye, second))
    u = expm_multiply(operator, hill(x).ravel(), traceA=np.trace(operator)).reshape(n, n)
    i, j = np.rint(n * POINTS).astype(int).T
    return np.asarray(u[i, j])


def followed(rtol: float) -> Array:
    """f at the ends of dX = F(X) dt from POINTS, by an integrator of order 8."""
    ends = [
        solve_ivp(lambda _, x: np.array(flow(x)), (0, 1), point, method="DOP853", rtol=rtol, atol=rtol).y[:, -1]
        for point in POINTS
    ]
    return hill(np.array(ends))


def mean_of_scheme(scheme: str, n: int) -> Array:
    """E f(X_4) of the scheme itself: one expectation a step, by Gauss and Hermite, of a trigonometric interpolant."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    weights = weights / weights.sum()
    h, grid = 1 / STEPS, np.arange(n) / n
    k = TAU * np.fft.fftfreq(n, 1 / n)

    def step(x: Array, values: Array) -> Array:
        modes = np.fft.fft(values) / n
        noise = NOISE * math.sqrt(h) * nodes
        end = x[:, None] + h * drift(x)[:, None] + noise
        if scheme == "heun":
            end = x[:, None] + 0.5 * h * (drift(x)[:, None] + drift(end)) + noise
        return (np.exp(1j * end[..., None] * k) @ modes).real @ weights

    values = bump(grid)
    for _ in range(STEPS - 1):
        values = step(grid, values)
    return step(STARTS, values)


def cameron_martin(_: int) -> Array:
    """E exp(-½∫B²) of a Brownian path from x: exp(-½ x² tanh 1) / √cosh 1 (Cameron and Martin 1945)."""
    return np.exp(-0.5 * STARTS**2 * np.tanh(1.0)) / np.sqrt(np.cosh(1.0))


def logits_by_hand(x: Array) -> tuple[Array, Array]:
    hidden = np.tanh(x @ WEIGHTS.T)
    return hidden @ READOUT.T, hidden


def loss_by_hand(x: Array) -> Array:
    logits, _ = logits_by_hand(x)
    return np.asarray(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), LABELS])


def attacked(num_steps: int, step_size: float) -> Array:
    """Losses after sign steps in the ball of EPS and in [0, 1], with ∇ loss = W₁ᵀ((1 - h²) W₂ᵀ(p - e_y))."""
    x = IMAGES
    for _ in range(num_steps):
        logits, hidden = logits_by_hand(x)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = ((p - np.eye(3)[LABELS]) @ READOUT * (1 - hidden**2)) @ WEIGHTS
        x = np.clip(np.clip(x + step_size * np.sign(gradient), IMAGES - EPS, IMAGES + EPS), 0, 1)
    return loss_by_hand(x)


MADE: dict[str, tuple[str, Callable[[Any], Array], Any, Any]] = {
    "solution": ("u(x, 0) by exp(L) as one dense matrix, on 48² and 64² nodes", dense_solution, 48, 64),
    "transport": ("u(x, 0) without noise, by DOP853 at rtol 1e-12 and 1e-13", followed, 1e-12, 1e-13),
    "euler": (
        "E f(X_4) of 4 Euler steps, by 96 and 128 nodes of quadrature",
        lambda n: mean_of_scheme("euler", n),
        96,
        128,
    ),
    "heun": (
        "E f(X_4) of 4 Heun steps, by 96 and 128 nodes of quadrature",
        lambda n: mean_of_scheme("heun", n),
        96,
        128,
    ),
    "killed": ("E exp(-½∫B²), closed form of Cameron and Martin", cameron_martin, 0, 0),
    "clean": ("cross-entropies before an attack, by hand", lambda _: attacked(0, 0.0), 0, 0),
    "fgsm": ("cross-entropies after FGSM, gradients by hand", lambda _: attacked(1, EPS), 0, 0),
    "ifgsm": ("cross-entropies after IFGSM, gradients by hand", lambda _: attacked(ATTACK_STEPS, STEP_SIZE), 0, 0),
}


def make() -> dict[str, Any]:
    made = {}
    for name, (how, of, coarse, fine) in MADE.items():
        values, others = of(fine), of(coarse)
        apart = max(float(np.abs(values - others).max()), 1e-14)
        digits = min(12, math.floor(-math.log10(2 * apart)))
        made[name] = {"how": how, "digits": digits, "values": [f"{value:.{digits}f}" for value in values]}
    return made


# What holds them


def known(name: str) -> tuple[Array, float]:
    """The stored values, and half a unit of their last digit."""
    entry = json.loads(STORED.read_text())[name]
    return np.array([float(value) for value in entry["values"]]), 0.5 * 10.0 ** -entry["digits"]


@pytest.mark.parametrize("name", [name for name in MADE if name != "solution"])
def test_stored_values_are_those_that_are_made(name):
    values, unit = known(name)
    assert unit <= 1e-9
    np.testing.assert_allclose(MADE[name][1](MADE[name][3]), values, rtol=0, atol=2 * unit)


def test_a_dense_matrix_of_fewer_nodes_gives_the_stored_solution_to_its_own_error():
    values, _ = known("solution")
    np.testing.assert_allclose(dense_solution(32), values, rtol=0, atol=1e-5)


def two_dimensional(sigma: float) -> ConvectionDiffusion:
    velocity = FunctionVelocity(lambda x, t: np.stack(flow(x), axis=-1), 2, interval=np.inf)
    return ConvectionDiffusion(velocity, hill, sigma)


@pytest.mark.parametrize(
    ("method", "options", "tolerance"),
    [
        ("spectral_rk4", {"num_points": 64, "dt": 1 / 512}, 1e-9),
        ("spectral_ab4", {"num_points": 64, "dt": 1 / 1024}, 1e-9),
        ("spectral_krylov", {"num_points": 64, "rtol": 1e-11}, 1e-10),
        ("semi_lagrangian", {"num_points": 96, "dt": 1 / 64}, 1e-4),
    ],
)
def test_solvers_give_the_stored_solution(method, options, tolerance):
    values, unit = known("solution")
    u = solve(two_dimensional(SIGMA), method=method, **options).u[0].values
    i, j = np.rint(len(u) * POINTS).astype(int).T
    np.testing.assert_allclose(u[i, j], values, rtol=0, atol=tolerance + unit)


def test_characteristics_give_the_stored_transport():
    problem = two_dimensional(0.0)
    values, unit = known("transport")
    found = problem.evaluate_terminal(characteristics(problem, POINTS, num_steps=400))
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-9 + unit)


@pytest.mark.filterwarnings("ignore::pdekit.BiasWarning")  # the mean of the scheme is what is meant
@pytest.mark.parametrize("scheme", ["euler", "heun"])
def test_paths_meet_the_stored_mean_of_their_scheme(scheme):
    problem = ConvectionDiffusion(lambda x, t: drift(x), lambda x: bump(x[..., 0]), NOISE, dim=1)
    values, _ = known(scheme)
    estimate = feynman_kac(problem, STARTS[:, None], num_paths=100_000, num_steps=STEPS, scheme=scheme, rng=0)
    assert np.abs((estimate.mean - values) / estimate.standard_error).max() < 4
    other, _ = known("heun" if scheme == "euler" else "euler")
    assert np.abs((estimate.mean - other) / estimate.standard_error).max() > 10


def test_weighted_paths_meet_the_formula_of_cameron_and_martin():
    problem = ConvectionDiffusion(
        lambda x, t: np.zeros_like(x),
        lambda x: np.ones(x.shape[:-1]),
        1.0,
        dim=1,
        potential=lambda x, t: 0.5 * x[..., 0] ** 2,
        domain="space",
    )
    values, _ = known("killed")
    estimate = feynman_kac(problem, STARTS[:, None], num_paths=50_000, num_steps=32, bias=True, rng=0)
    assert np.abs((estimate.mean - values) / estimate.total_error()).max() < 4
    assert estimate.total_error().max() < 0.005


@pytest.mark.parametrize("name", ["clean", "fgsm", "ifgsm"])
def test_attacks_reach_the_stored_losses(name):
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(8, 6, bias=False), torch.nn.Tanh(), torch.nn.Linear(6, 3, bias=False)
    ).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(WEIGHTS))
        model[3].weight.copy_(torch.from_numpy(READOUT))
    x, y = torch.from_numpy(IMAGES).reshape(5, 1, 2, 4), torch.from_numpy(LABELS)
    attack = {
        "clean": lambda: x,
        "fgsm": lambda: attacks.fgsm(model, x, y, eps=EPS),
        "ifgsm": lambda: attacks.ifgsm(model, x, y, eps=EPS, step_size=STEP_SIZE, num_steps=ATTACK_STEPS),
    }[name]
    values, unit = known(name)
    losses = attacks.cross_entropy(model(attack()), y).detach().numpy()
    np.testing.assert_allclose(losses, values, rtol=0, atol=1e-11 + unit)


if __name__ == "__main__":
    STORED.write_text(json.dumps(make(), indent=1, ensure_ascii=False) + "\n")
