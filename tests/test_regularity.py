"""Moduli of continuity and gradient bounds: closed forms, optimality, and solutions that attain or break them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from pdekit import ConvectionDiffusion, solve
from pdekit.field import node_points
from pdekit.numerics.diagnostics import max_gradient, steepening_rate
from pdekit.numerics.spectral import resample
from pdekit.regularity import (
    bernstein_bound,
    best_mu,
    coupling_bound,
    coupling_constant,
    coupling_modulus,
    modulus_of_continuity,
    printed_bound,
)

TAU = 2.0 * np.pi
LENGTH = 48.0  # of the box that stands for the line, in units of the ramp


def random_arguments(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """γ, σ, |u0|, |∇u0| over several orders of magnitude; a tenth of the γ are zero."""
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0, 6, count) * (rng.uniform(size=count) > 0.1)
    return gamma, *np.exp(rng.uniform(np.log(0.05), np.log(5), (3, count)))


def ramp(x: np.ndarray) -> np.ndarray:
    """Slope 1 from -1 to 1 at the middle of the box, cut off with slope 1 near its ends; x (..., 1) in [0, 1)."""
    y = (x[..., 0] % 1.0 - 0.5) * LENGTH
    return np.clip(y, -1, 1) - np.clip(y - 20, 0, 1) + np.clip(-y - 20, 0, 1)


def gradient_at_one(velocity: np.ndarray, sigma: float, num_points: int = 2048, dt: float = 2e-3) -> float:
    """max |∇u(·, 1)| of the ramp in a velocity given on the box of LENGTH."""
    problem = ConvectionDiffusion.from_initial_value(velocity / LENGTH, ramp, sigma / LENGTH)
    u = solve(problem, num_points=num_points, dt=dt, method="spectral_rk4").u[0].values
    return max_gradient(resample(u, 2 * num_points)) / LENGTH


@pytest.mark.parametrize("delta", [0.0, 0.013, 0.25, 0.5, 1.2])
def test_the_modulus_of_a_mode_is_known(delta):
    k = np.array([1, 2])
    x = node_points(64, 2)
    line = np.cos(TAU * (node_points(400, 1) @ np.array([1])) + 0.3)
    assert modulus_of_continuity(line, [delta]) == pytest.approx(2 * abs(np.sin(np.pi * delta)), abs=1e-4)
    shifts = delta * np.array([[1.0, 0.0], [0.6, 0.8]])
    found = modulus_of_continuity(resample(np.cos(TAU * (x @ k)), 192), shifts)
    np.testing.assert_allclose(found, 2 * np.abs(np.sin(np.pi * (shifts @ k))), atol=2e-3)


def test_the_modulus_by_interpolation_is_the_one_of_whole_cells():
    u = np.random.default_rng(0).standard_normal((17, 17))
    cells = np.array([[3, -2], [0, 5], [17, 1]])
    expected = [np.abs(np.roll(u, (-i, -j), (0, 1)) - u).max() for i, j in cells]
    np.testing.assert_allclose(modulus_of_continuity(u, cells / 17), expected, rtol=1e-12)


def test_gamma_of_shear_and_of_compression():
    x = node_points(64, 2) * TAU
    shear = 0.3 * np.stack([np.sin(x[..., 1]), np.zeros((64, 64))])
    assert steepening_rate(shear) == pytest.approx(0.3 * TAU / 2)
    compression = 0.3 * np.stack([np.sin(x[..., 0]), np.zeros((64, 64))])
    assert steepening_rate(compression) == pytest.approx(0.3 * TAU)
    y = TAU * np.arange(1024) / 1024
    one_sided = np.sin(y) + 0.5 * np.sin(2 * y)  # slope from -9/8 to 2, in units of 2π
    assert steepening_rate(one_sided[None]) == pytest.approx(9 / 8 * TAU, rel=1e-4)
    assert steepening_rate(-one_sided[None]) == pytest.approx(2 * TAU)


def test_the_best_mu_beats_every_other():
    arguments = random_arguments(300)
    sharpest = bernstein_bound(*arguments)
    for mu in np.concatenate([[0.0], np.geomspace(1e-4, 1e5, 2000)]):
        assert (sharpest <= bernstein_bound(*arguments, mu=mu) * (1 + 1e-12)).all()
    gamma, sigma, u_max, grad_max = arguments
    ends = np.minimum(np.exp(gamma) * grad_max, np.sqrt(2 * gamma * u_max**2 / sigma**2 + grad_max**2))
    np.testing.assert_allclose(sharpest, ends, rtol=1e-12)
    assert set(np.unique(best_mu(*arguments) * sigma**2 / np.where(gamma > 0, 2 * gamma, 1)).round(9)) == {0.0, 1.0}


def test_each_argument_sharpens_the_one_before():
    arguments = random_arguments(2000, seed=1)
    assert (coupling_bound(*arguments) <= bernstein_bound(*arguments) * (1 + 1e-12)).all()
    assert (bernstein_bound(*arguments) <= bernstein_bound(*arguments, mu=1.0) * (1 + 1e-12)).all()


def test_the_printed_bound_holds_where_its_proof_does():
    gamma, sigma, u_max, grad_max = random_arguments(2000, seed=2)
    proven = (gamma >= sigma**2) & (u_max <= 2 * grad_max)  # μ = 2 and λ = γ - σ² >= 0
    assert proven.sum() > 200
    bound = printed_bound(gamma, sigma, u_max, grad_max)
    assert (bernstein_bound(gamma, sigma, u_max, grad_max, mu=2.0) <= bound * (1 + 1e-12))[proven].all()


def test_the_coupling_bound_in_its_limits():
    gamma, sigma, u_max, grad_max = random_arguments(50, seed=3)
    np.testing.assert_allclose(coupling_bound(gamma, 0.0, u_max, grad_max), np.exp(gamma) * grad_max)
    noisy = coupling_bound(gamma, 1e9, u_max, grad_max)
    np.testing.assert_allclose(noisy, coupling_constant(gamma, u_max) / 1e9)
    np.testing.assert_allclose(coupling_bound(1e-12, sigma, u_max, 1.0), coupling_bound(0.0, sigma, u_max, 1.0))
    assert (np.diff(coupling_bound(1.0, np.linspace(0, 3, 50), 1.0, 1.0)) <= 0).all()  # noise only helps
    assert coupling_bound(1.0, 0.5, 0.0, 0.0) == 0.0


@pytest.mark.parametrize("sigma", [0.3, 1.2, 3.0])
def test_the_ramp_attains_the_coupling_bound_and_breaks_the_printed_one(sigma):
    measured = gradient_at_one(np.zeros((1, 64)), sigma)
    assert measured == pytest.approx(erf(1 / (np.sqrt(2) * sigma)), rel=1e-3)
    assert measured == pytest.approx(coupling_bound(0.0, sigma, 1.0, 1.0), rel=1e-3)
    assert (measured > printed_bound(0.0, sigma, 1.0, 1.0)) == (sigma > 1.1)
    assert measured <= bernstein_bound(0.0, sigma, 1.0, 1.0, mu=1.0)


@pytest.mark.parametrize(("gamma", "sigma"), [(1.0, 0.5), (1.0, 1.5), (2.0, 0.5)])
def test_a_ramp_in_a_compressing_flow_attains_the_coupling_bound(gamma, sigma):
    y = (np.arange(768) / 768 - 0.5) * LENGTH
    velocity = -gamma * y * np.exp(-((y / 14) ** 16))  # -γy as far as paths from the middle come
    measured = gradient_at_one(velocity[None], sigma)
    assert measured == pytest.approx(coupling_bound(gamma, sigma, 1.0, 1.0), rel=2e-3)


def step(num_points: int) -> np.ndarray:
    """sign(sin 2πx), as the truncation of its Fourier series."""
    k = np.arange(num_points // 2)
    modes = np.where(k % 2 == 1, 2.0 / (1j * np.pi * np.maximum(k, 1)), 0.0)
    return np.fft.irfft(np.append(modes, 0.0), n=num_points, norm="forward")


@pytest.mark.parametrize("sigma", [0.02, 0.05])
def test_a_step_in_a_constant_flow_has_the_modulus_of_the_heat_equation(sigma):
    problem = ConvectionDiffusion(np.full((1, 8), 0.3), step(512), sigma)
    u = solve(problem, num_points=512, dt=0.01, method="spectral_rk4").u[0].values
    lengths = sigma * np.geomspace(0.02, 3, 9)
    found = modulus_of_continuity(resample(u, 4096), lengths[:, None])
    np.testing.assert_allclose(found, coupling_modulus(lengths, 0.0, sigma), rtol=1e-3)
    np.testing.assert_allclose(found[0] * sigma / lengths[0], coupling_constant(0.0), rtol=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_no_random_flow_breaks_the_true_bounds(seed):
    rng = np.random.default_rng(seed)
    dim, n = 1 + seed % 2, 96
    x = TAU * node_points(n, dim)
    velocity = np.zeros((dim, *[n] * dim))
    for component in velocity:
        for _ in range(5):
            k = rng.integers(-2, 3, dim)
            component += 0.12 * rng.standard_normal() * np.cos(x @ k + rng.uniform(0, TAU))
    sigma = float(rng.uniform(0.05, 0.15))
    k = rng.integers(1, 3, dim)
    u0 = np.cos(x @ k + 1.0)
    solution = solve(ConvectionDiffusion.from_initial_value(velocity, u0, sigma), num_points=n, dt=1e-2)
    u = solution.u[0].values
    arguments = steepening_rate(velocity), sigma, 1.0, TAU * float(np.linalg.norm(k))
    assert max_gradient(u) <= coupling_bound(*arguments) <= bernstein_bound(*arguments)
    lengths = np.geomspace(1e-3, 0.3, 7)
    shifts = lengths[:, None] * np.eye(dim)[0]
    assert (modulus_of_continuity(u, shifts) <= coupling_modulus(lengths, arguments[0], sigma)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: modulus_of_continuity(np.zeros((8, 8)), [0.1, 0.2, 0.3]), r"shifts: expected shape \(..., 2\)"),
        (lambda: modulus_of_continuity(np.zeros(8), 0.1), r"shifts: expected shape \(..., 1\).*got \(\)"),
        (lambda: printed_bound(1.0, -0.1, 1.0, 1.0), "sigma: expected numbers >= 0, got -0.1"),
        (lambda: coupling_bound(1.0, 0.1, -1.0, 1.0), "norms and lengths: expected numbers >= 0, got -1"),
        (lambda: bernstein_bound(1.0, 0.1, 1.0, 1.0, mu=-2.0), "mu: expected a number >= 0, got -2"),
    ],
)
def test_bad_input_is_met_with_one_clear_line(build, message):
    with pytest.raises(ValueError, match=message):
        build()
