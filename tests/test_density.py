"""The density of the paths: closed forms, its mass, and its pairing with the solution of the backward equation."""

from __future__ import annotations

import numpy as np
import pytest

from pdekit import ConvectionDiffusion, RedrawnVelocity, density, solve
from pdekit.field import node_points

TAU = 2.0 * np.pi


def bump(x: np.ndarray) -> np.ndarray:
    return np.exp(2.0 * np.cos(TAU * (x - 0.3)).sum(-1))


def flow(dim: int) -> np.ndarray:
    rng = np.random.default_rng(dim)
    return 0.2 * rng.standard_normal((dim, *[3] * dim))


def noise(x: np.ndarray, t: float) -> np.ndarray:
    return 0.4 * (1.0 + 0.3 * np.sin(TAU * x[..., 0]))


@pytest.mark.parametrize("method", ["spectral_krylov", "spectral_rk4", "spectral_ab4"])
def test_a_gaussian_spreads_and_drifts_on_a_box_with_units(method):
    """With F = c and a matrix σ: mean c t, covariance that of the start plus σσᵀ t."""
    sigma = np.array([[0.3, 0.1], [0.0, 0.2]])
    c = np.array([1.0, -0.5])
    start, spread = np.array([3.0, 3.0]), np.diag([0.2, 0.3])

    def gaussian(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        box = np.array([10.0, 8.0])
        away = (x - mean + 0.5 * box) % box - 0.5 * box
        quadratic = np.einsum("...i,ij,...j->...", away, np.linalg.inv(covariance), away)
        return np.exp(-0.5 * quadratic) / (TAU * np.sqrt(np.linalg.det(covariance)))

    problem = ConvectionDiffusion(
        np.broadcast_to(c[:, None, None], (2, 2, 2)), np.ones((2, 2)), sigma, box=(10.0, 8.0), potential=0.2
    )
    found = density(problem, lambda x: gaussian(x, start, spread), num_points=(96, 80), dt=0.02, method=method)
    assert found.rho.dims == ("time", "x", "y")
    x = np.stack(np.meshgrid(found.x, found.y, indexing="ij"), -1)
    exact = np.exp(-0.2) * gaussian(x, start + c, spread + sigma @ sigma.T)
    allowed = 2e-5 if method == "spectral_ab4" else 2e-6
    np.testing.assert_allclose(found.rho.sel(time=1.0), exact, atol=allowed * exact.max())
    mean = (found.rho.sel(time=1.0) * found.x).sum() / found.rho.sel(time=1.0).sum()
    assert float(mean) == pytest.approx(4.0, abs=1e-6)


@pytest.mark.parametrize("method", ["spectral_krylov", "spectral_rk4", "spectral_ab4"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_its_mass_is_conserved_to_rounding(dim, method):
    n = {1: 64, 2: 48, 3: 24}[dim]
    problem = ConvectionDiffusion(flow(dim), np.ones((4,) * dim), noise)
    if method == "spectral_krylov":
        problem = ConvectionDiffusion(flow(dim), np.ones((4,) * dim), 0.3)
    found = density(problem, bump, num_points=n, dt=0.01, method=method, times=np.linspace(0, 1, 5))
    mass = found.rho.mean(dim=found.rho.dims[1:]).values
    np.testing.assert_allclose(mass, mass[0], rtol=1e-12)
    assert found.rho.std() > 0.1


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("method", ["spectral_krylov", "spectral_rk4"])
def test_it_pairs_with_the_solution(method, padded):
    """∫ρ(t)u(t) is constant: exactly so for Krylov, and to the order of RK4's steps."""
    rng = np.random.default_rng(1)
    n = 33 if padded else 48
    nodes = rng.standard_normal((12, 12)) if padded else rng.standard_normal((5, 5))
    problem = ConvectionDiffusion(flow(2), nodes, 0.35, potential=rng.uniform(0, 1, (3, 3)), box=(2.0, 1.0))
    times = [0.0, 0.5, 1.0]
    how = {"num_points": n, "method": method, "times": times, "dt": 0.02}
    u, rho = solve(problem, **how), density(problem, lambda x: bump(x / [2.0, 1.0]), **how)
    paired = (u.u * rho.rho).mean(dim=("x", "y")).values
    np.testing.assert_allclose(paired, paired[0], rtol=1e-6 if method == "spectral_rk4" else 1e-7)


def test_runge_kutta_steps_pair_exactly_and_multistep_ones_to_their_order():
    """The classical scheme reversed in time is its own transpose, also where F changes."""
    problem = ConvectionDiffusion(
        lambda x, t: 0.5 * np.sin(TAU * x) * np.cos(3 * t), lambda x: np.cos(TAU * x[..., 0]), 0.2, dim=1
    )
    changes = {}
    for method in ("spectral_rk4", "spectral_ab4"):
        for steps in (40, 80):
            how = {"num_points": 64, "method": method, "dt": 1 / steps}
            paired = (solve(problem, **how).u * density(problem, bump, **how).rho).mean(dim="x").values
            changes[method, steps] = abs(paired[1] - paired[0])
    assert max(changes["spectral_rk4", n] for n in (40, 80)) < 1e-13
    assert np.log2(changes["spectral_ab4", 40] / changes["spectral_ab4", 80]) == pytest.approx(4, abs=0.5)


def test_a_redrawn_velocity_jumps_forward_as_well():
    problem = ConvectionDiffusion(RedrawnVelocity(6, 0.25, seed=1, dim=1), lambda x: np.sin(TAU * x[..., 0]), 0.25)
    how = {"num_points": 96, "dt": 1 / 400, "times": [0.0, 0.6, 1.0]}
    krylov = density(problem, bump, num_points=96, times=[0.0, 0.6, 1.0])
    steps = density(problem, bump, method="spectral_rk4", **how)
    np.testing.assert_allclose(krylov.rho.values, steps.rho.values, atol=1e-6 * float(steps.rho.max()))
    paired = (krylov.rho * solve(problem, method="spectral_krylov", num_points=96, times=[0.0, 0.6, 1.0]).u).mean("x")
    np.testing.assert_allclose(paired, paired[0], rtol=1e-7)


def test_several_densities_at_once():
    rng = np.random.default_rng(2)
    start = rng.uniform(0, 1, (6, 6, 3))
    problem = ConvectionDiffusion(flow(2), np.ones((4, 4)), 0.4)
    together = density(problem, start, num_points=32)
    for k in range(3):
        alone = density(problem, start[..., k], num_points=32)
        np.testing.assert_allclose(together.rho.values[..., k], alone.rho.values, atol=1e-7)


def test_a_grid_too_coarse_for_it_is_said():
    """A flow that gathers all paths in one place, faster than diffusion spreads them."""
    x = node_points(16, 1)[..., 0]
    problem = ConvectionDiffusion(-2.0 * np.sin(TAU * x)[None], np.ones(4), 0.02)
    with pytest.warns(match="not resolved"):
        density(problem, lambda x: np.ones(x.shape[:-1]), num_points=32, method="spectral_rk4", dt=0.005)


def test_a_start_that_the_nodes_miss_is_said():
    problem = ConvectionDiffusion(np.zeros((2, 4, 4)), np.ones((4, 4)), 0.3)

    def square(x: np.ndarray) -> np.ndarray:
        return (np.abs(x - 0.507) < 0.005).all(axis=-1).astype(float)

    with pytest.warns(match="initial: its mean is 0 over the nodes and .* over finer ones"):
        density(problem, square, num_points=64)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "semi_lagrangian"}, "method: expected one of auto, spectral_krylov"),
        ({"rtol": 1e-3, "method": "spectral_rk4"}, "rtol: expected method 'spectral_krylov'"),
        ({"num_points": 4}, "num_points: expected a whole number of at least 8"),
        ({"times": [2.0]}, r"times: expected values in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_met_with_one_line(how, message):
    with pytest.raises(ValueError, match=message):
        density(ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1), np.ones(4), **how)
