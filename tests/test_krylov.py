"""The Krylov propagator: exact in time up to its tolerance, against closed forms and dense exponentials."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

import pdekit.equation.krylov
from pdekit import ConvectionDiffusion, GridVelocity, RedrawnVelocity, choose_method, compiled, solve
from pdekit.equation.krylov import longest_substep
from pdekit.equation.march import March
from pdekit.equation.spectral_method import KrylovMethod
from pdekit.field import node_points

TAU = 2 * np.pi


def bump(x):
    return np.exp(np.sin(TAU * x).sum(-1))


def swirl(points: int = 8) -> np.ndarray:
    a, b = np.moveaxis(TAU * node_points(points, 2), -1, 0)
    return np.stack([np.sin(a) * np.cos(b) + 0.3, -0.5 * np.cos(a) * np.sin(b) + 0.2 * np.sin(b)])


def method_of(problem: ConvectionDiffusion, num_points: int, rtol: float = 1e-10, **options) -> KrylovMethod:
    return KrylovMethod(problem, grid=(num_points,) * problem.dim, rtol=rtol, duration=problem.horizon, **options)


def at_the_end(method: KrylovMethod, field: np.ndarray) -> np.ndarray:
    state, s = method.start(field), 0.0
    while s < 1.0 - 1e-12:
        state, taken = method.step(state, s, 1.0 - s)
        s += taken
    return state


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.4])
def test_it_is_the_dense_exponential(sigma):
    x = np.arange(32) / 32
    problem = ConvectionDiffusion((0.5 + 0.4 * np.sin(TAU * x))[None], bump, sigma, dim=1)
    method = method_of(problem, 48, 1e-11)
    size = method.operator.shape[0]
    columns = []
    for part in (1.0, 1.0j):  # A is linear over the reals
        for mode in range(size):
            unit, out = np.zeros(size, dtype=complex), np.zeros(size, dtype=complex)
            unit[mode] = part
            method._apply(unit, out)
            columns.append(np.concatenate([out.real, out.imag]))
    start = method.start(bump(node_points(48, 1)))[0]
    exact = expm(np.array(columns).T) @ np.concatenate([start.real, start.imag])
    end = at_the_end(method, bump(node_points(48, 1)))[0]
    assert np.abs(np.concatenate([end.real, end.imag]) - exact).max() < 1e-11 * np.e


@pytest.mark.parametrize("rtol", [1e-3, 1e-7, 1e-12])
@pytest.mark.parametrize(("dim", "num_points"), [(1, 63), (2, 33), (3, 20)])
def test_a_moving_wave_meets_its_closed_form(dim, num_points, rtol):
    drift, k, sigma = np.array([0.3, -0.2, 0.15][:dim]), np.array([2, 1, 1][:dim]), 0.1
    nodes = np.broadcast_to(drift.reshape(-1, *[1] * dim), (dim, *[8] * dim))
    problem = ConvectionDiffusion(nodes, lambda x: np.cos(TAU * (x @ k)), sigma)
    times = np.linspace(0.0, 1.0, 5)
    solution = solve(problem, num_points=num_points, rtol=rtol, method="spectral_krylov", times=times)
    x = node_points(num_points, dim)
    for t, u in zip(times, solution.u.values, strict=True):
        damped = np.exp(-0.5 * sigma**2 * TAU**2 * (k @ k) * (1.0 - t))
        exact = damped * np.cos(TAU * ((x + drift * (1.0 - t)) @ k))
        assert np.abs(u - exact).max() <= rtol + 1e-13
    np.testing.assert_allclose(solution.time, times, rtol=0, atol=1e-15)


ROUGH = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12))
PROBLEMS = {
    "P1": ConvectionDiffusion(swirl(), bump, 0.1),
    "P1, little noise": ConvectionDiffusion(swirl(), bump, 0.02),
    "P1, no noise": ConvectionDiffusion(swirl(), bump, 0.0),
    "P1, much noise": ConvectionDiffusion(swirl(), bump, 0.3),
    "rough": ConvectionDiffusion(ROUGH, bump, 0.2),
    "one dimension": ConvectionDiffusion(np.random.default_rng(1).uniform(-1, 1, (1, 8)), bump, 0.1),
    "three dimensions": ConvectionDiffusion(np.random.default_rng(2).uniform(-1, 1, (3, 4, 4, 4)), bump, 0.2),
}


@pytest.mark.filterwarnings("ignore::pdekit.ResolutionWarning")  # the error in time is looked at alone
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_error_in_time_is_within_the_tolerance_and_its_estimate(name):
    problem, n = PROBLEMS[name], {1: 64, 2: 48, 3: 18}[PROBLEMS[name].dim]
    exact = solve(problem, num_points=n, rtol=1e-14, method="spectral_krylov").u[0].values
    steps = solve(problem, num_points=n, dt=1 / 1600, method="spectral_rk4").u[0].values
    largest = np.abs(problem.terminal_nodes(n)).max()
    assert np.abs(exact - steps).max() < 3e-9 * largest  # two ways through time
    for rtol in (1e-3, 1e-6, 1e-9, 1e-12):
        solution = solve(problem, num_points=n, rtol=rtol, method="spectral_krylov")
        error = np.abs(solution.u[0].values - exact).max()
        assert error <= solution.attrs["error_estimate_time"] + 1e-14 * largest
        assert solution.attrs["error_estimate_time"] <= rtol * largest
        assert error >= 1e-3 * rtol * largest - 1e-14


def test_frames_come_from_the_same_bases_at_no_further_cost():
    two, many = (
        solve(PROBLEMS["P1"], num_points=64, rtol=1e-8, method="spectral_krylov", times=np.linspace(0, 1, n))
        for n in (2, 33)
    )
    assert many.attrs["applications"] == two.attrs["applications"]
    np.testing.assert_allclose(many.u[0], two.u[0], rtol=0, atol=1e-12)
    halfway = ConvectionDiffusion(swirl(), bump, 0.1, horizon=0.5)
    np.testing.assert_allclose(
        many.u[16], solve(halfway, num_points=64, rtol=1e-10, method="spectral_krylov").u[0], rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(
    ("problem", "most"),
    [
        (ConvectionDiffusion(swirl(), lambda x: np.full(x.shape[:-1], 0.7), 0.1), 1),
        (ConvectionDiffusion(swirl(), lambda x: np.zeros(x.shape[:-1]), 0.1), 0),
        (ConvectionDiffusion(np.zeros((2, 8, 8)), bump, 0.0), 1),
        (ConvectionDiffusion(np.zeros((2, 8, 8)), lambda x: np.cos(TAU * x[..., 0]), 0.1), 2),
        (ConvectionDiffusion(np.full((2, 8, 8), 0.3), lambda x: np.cos(TAU * x[..., 0]), 0.1), 4),
    ],
    ids=["constant", "zero", "nothing moves", "an eigenfunction", "a plane of two"],
)
def test_a_space_that_is_invariant_ends_the_basis(problem, most):
    solution = solve(problem, num_points=32, rtol=1e-12, method="spectral_krylov")
    assert solution.attrs["applications"] <= most
    reference = solve(problem, num_points=32, dt=2e-3, method="spectral_rk4").u[0].values
    np.testing.assert_allclose(solution.u[0].values, reference, rtol=0, atol=1e-9)


def test_a_velocity_that_jumps_is_followed_piece_by_piece():
    redrawn = RedrawnVelocity(8, 0.125, seed=3)
    problem = ConvectionDiffusion(redrawn, bump, 0.3)
    solution = solve(problem, num_points=48, rtol=1e-9, times=[0.0, 0.3, 1.0], method="spectral_krylov")
    field = problem.terminal_nodes(48)
    for t in (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0):
        piece = ConvectionDiffusion(redrawn.standing(t), field, 0.3, horizon=0.125)
        field = solve(piece, num_points=48, dt=0.125 / 100, method="spectral_rk4").u[0].values
    np.testing.assert_allclose(solution.u[0].values, field, rtol=0, atol=2e-8)


class Cut(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("method", ["auto", "spectral_krylov"])
@pytest.mark.parametrize("flow", ["steady", "redrawn"])
def test_a_restart_has_the_bits_of_a_solve_that_was_not_cut(tmp_path, monkeypatch, method, steps, flow):
    options = {"num_points": 64, "rtol": 1e-9, "times": [0.0, 0.35, 0.7, 1.0], "method": method}
    problem = PROBLEMS["P1"]
    if flow == "redrawn":
        problem = ConvectionDiffusion(RedrawnVelocity(8, 0.25, seed=3), bump, 0.3)
    expected = solve(problem, **options)
    save, count = March._save, iter(range(100))

    def cut(self, *args):
        save(self, *args)
        if next(count) == steps - 1:
            raise Cut

    files = {"checkpoint": tmp_path / "c.npz", "checkpoint_seconds": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(March, "_save", cut)
        with pytest.raises(Cut):
            solve(problem, **options, **files)
    resumed = solve(problem, **options, **files)
    np.testing.assert_array_equal(resumed.u, expected.u)
    for name in ("num_steps", "applications", "error_estimate_time"):
        assert resumed.attrs[name] == expected.attrs[name]


def test_little_memory_takes_more_applications_and_delivers_the_same(monkeypatch):
    usual = solve(PROBLEMS["P1"], num_points=48, rtol=1e-9, method="spectral_krylov")
    monkeypatch.setattr(pdekit.equation.krylov, "_MOST_BYTES", 0)
    little = solve(PROBLEMS["P1"], num_points=48, rtol=1e-9, method="spectral_krylov")
    assert little.attrs["applications"] > usual.attrs["applications"]
    np.testing.assert_allclose(little.u[0], usual.u[0], rtol=0, atol=1e-8)


def test_the_longest_substep_is_the_one_that_the_budget_allows():
    rng, m = np.random.default_rng(0), 12
    h = np.triu(rng.normal(size=(m + 1, m)), -1)
    extended = np.zeros((m + 1, m + 1))
    extended[:, :m] = h
    for rate in (1e-1, 1e-4, 1e-8):
        y = np.zeros(m + 1)
        tau, error = longest_substep(h, m, 2.0, 1.0, 0.0, rate, y)
        exact = expm(tau * extended)[:, 0]
        np.testing.assert_allclose(y, exact, rtol=0, atol=1e-13 * np.abs(exact).max())
        assert abs(exact[m]) <= error * (1 + 1e-9) <= rate * tau * (1 + 1e-9)
        assert tau == 2.0 or abs(expm(1.1 * tau * extended)[m, 0]) > rate * tau
    assert longest_substep(h, m, 2.0, np.inf, 0.0, 1e-3, np.zeros(m + 1)) == (0.0, 0.0)


def test_auto_takes_it_where_the_flow_stands_and_it_is_cheaper():
    assert choose_method(PROBLEMS["P1"], 64)[0] == "spectral_krylov"
    assert solve(PROBLEMS["P1"], num_points=64, dt=1e-3).attrs["method"] == "spectral_krylov"
    assert solve(PROBLEMS["P1, much noise"], num_points=128, dt=0.01).attrs["method"] == "spectral_rk4"
    moving = ConvectionDiffusion(lambda x, t: 0.1 * np.sin(TAU * (x + t)), bump, 0.1, dim=2)
    assert choose_method(moving, 64)[0] == "spectral_rk4"


def test_bad_input_is_met_with_one_line():
    @compiled(dim=1)
    def moving(x, t):
        return (0.1,)

    with pytest.raises(ValueError, match="'spectral_krylov': expected a velocity that stands still in time"):
        solve(ConvectionDiffusion(moving, bump, 0.1), method="spectral_krylov")
    with pytest.raises(ValueError, match="rtol: expected one of the methods that it drives, spectral_krylov"):
        solve(PROBLEMS["P1"], method="spectral_rk4", rtol=1e-3)
    nodes = swirl()
    nodes[0, 0, 0] = 1e200
    with pytest.raises(FloatingPointError), np.errstate(all="ignore"):
        solve(ConvectionDiffusion(GridVelocity(nodes), bump, 0.1), num_points=32, rtol=1e-6, method="spectral_krylov")
