"""Resolution by a tolerance: as many modes as the solution needs, handed out on any grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pdekit import ConvectionDiffusion, FunctionVelocity, GridVelocity, RedrawnVelocity, compiled, solve, verify
from pdekit.equation.tolerance import MOST_NODES
from pdekit.fastmath import cos2pi, sin2pi
from pdekit.field import node_points

TAU = 2 * np.pi


def bump(x):
    return np.exp(np.sin(TAU * x).sum(-1))


def ripples(x):
    return np.cos(TAU * 3 * x[..., 0]) * np.sin(TAU * 2 * x[..., -1])


def swirl(points: int = 8) -> np.ndarray:
    a, b = np.moveaxis(TAU * node_points(points, 2), -1, 0)
    return np.stack([np.sin(a) * np.cos(b) + 0.3, -0.5 * np.cos(a) * np.sin(b) + 0.2 * np.sin(b)])


def rough(dim: int, points: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (dim, *[points] * dim))


PROBLEMS = {
    "P1": ConvectionDiffusion(swirl(), bump, 0.1),
    "P1, little noise": ConvectionDiffusion(swirl(), bump, 0.03),
    "P1, much noise": ConvectionDiffusion(swirl(), bump, 0.3),
    "gentle, no noise": ConvectionDiffusion(0.2 * swirl(), ripples, 0.0),
    "rough": ConvectionDiffusion(rough(2, 12), bump, 0.2),
    "rough, to and fro": ConvectionDiffusion(rough(2, 16, 1), ripples, 0.3),
    "one dimension": ConvectionDiffusion(rough(1, 8), bump, 0.1),
    "one dimension, more": ConvectionDiffusion(rough(1, 32), bump, 0.2),
    "three dimensions": ConvectionDiffusion(rough(3, 4), bump, 0.3),
    "redrawn": ConvectionDiffusion(RedrawnVelocity(8, 0.25, seed=2), bump, 0.2),
}


SLOW = pytest.param("three dimensions", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [SLOW if name == "three dimensions" else name for name in PROBLEMS])
def test_the_delivered_error_is_within_the_tolerance_and_its_estimate(name):
    problem = PROBLEMS[name]
    exact = solve(problem, rtol=1e-12)
    n = len(exact.x)
    largest = np.abs(problem.terminal_nodes(n)).max()
    for rtol in (1e-3, 1e-5, 1e-7, 1e-9):
        solution = solve(problem, num_points=n, rtol=rtol)
        error = np.abs(solution.u[0].values - exact.u[0].values).max()
        assert error <= solution.attrs["error_estimate"] + 1e-12 * largest
        assert solution.attrs["error_estimate"] <= rtol * largest
        assert error > 1e-4 * rtol * largest or name == "gentle, no noise"
        assert solution.attrs["warnings"] == "none"


def test_it_agrees_with_a_fine_grid_and_small_steps():
    fine = solve(PROBLEMS["P1"], num_points=144, dt=1 / 1000, method="spectral_rk4").u[0].values
    solution = solve(PROBLEMS["P1"], num_points=48, rtol=1e-9)
    np.testing.assert_allclose(solution.u[0].values, fine[::3, ::3], rtol=0, atol=1e-8)


def test_a_larger_picture_costs_no_further_application():
    small, large = (solve(PROBLEMS["P1"], num_points=n, rtol=1e-6) for n in (24, 384))
    assert small.attrs["applications"] == large.attrs["applications"]
    np.testing.assert_allclose(small.u[0], large.u[0, ::16, ::16], rtol=0, atol=1e-12)


def test_the_grid_found_holds_the_solution():
    found = solve(PROBLEMS["P1"], rtol=1e-6, times=[0.0, 0.5, 1.0])
    n = len(found.x)
    assert found.u.shape == (3, n, n)
    assert 2 * found.attrs["cutoff"] < n < 200
    asked = solve(PROBLEMS["P1"], num_points=n, rtol=1e-6, times=[0.0, 0.5, 1.0])
    np.testing.assert_allclose(found.u, asked.u, rtol=0, atol=1e-12)


def test_more_noise_needs_fewer_modes_and_a_smaller_error_needs_more():
    cutoffs = [solve(PROBLEMS[name], rtol=1e-6).attrs["cutoff"] for name in ("P1, little noise", "P1")]
    assert cutoffs[0] > cutoffs[1]
    cutoffs = [solve(PROBLEMS["P1"], rtol=rtol).attrs["cutoff"] for rtol in (1e-3, 1e-6, 1e-9)]
    assert cutoffs[0] < cutoffs[1] < cutoffs[2]


@pytest.mark.parametrize("continuation", ["bicubic", "trigonometric"])
def test_the_continuation_between_nodes_is_the_one_asked_for(continuation):
    problem = ConvectionDiffusion(GridVelocity(rough(1, 8), continuation), bump, 0.2)
    fine = solve(problem, num_points=512, dt=1e-3, method="spectral_rk4").u[0].values
    solution = solve(problem, num_points=64, rtol=1e-5)
    assert np.abs(solution.u[0].values - fine[::8]).max() < 1e-5 * np.e


def test_what_no_grid_holds_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(MOST_NODES, 1, 512)
    with pytest.raises(ValueError, match="rtol: expected a terminal f whose modes fall below the tolerance"):
        solve(ConvectionDiffusion(rough(1, 8), lambda x: np.sign(x[..., 0] - 0.5) * (x[..., 0] > 0.2), 0.1), rtol=1e-6)
    with pytest.raises(ValueError, match="rtol: the solution needs modes beyond"):
        solve(ConvectionDiffusion(2.0 * rough(1, 32), bump, 0.0), rtol=1e-6)
    with pytest.raises(ValueError, match="frames_to: expected num_points with it"):
        solve(PROBLEMS["P1"], rtol=1e-3, frames_to="never.nc")


def test_a_function_that_is_said_to_stand_still_is_solved_as_its_nodes_are():
    def flow(x, t):
        a, b = TAU * x[..., 0], TAU * x[..., 1]
        return np.stack([np.sin(a) * np.cos(b) + 0.3, -0.5 * np.cos(a) * np.sin(b) + 0.2 * np.sin(b)], axis=-1)

    @compiled(dim=2, interval=math.inf)
    def fast(x, y, t):
        return sin2pi(x) * cos2pi(y) + 0.3, -0.5 * cos2pi(x) * sin2pi(y) + 0.2 * sin2pi(y)

    nodes = solve(PROBLEMS["P1"], num_points=48, rtol=1e-7)
    for velocity in (FunctionVelocity(flow, 2, interval=math.inf), fast):
        solution = solve(ConvectionDiffusion(velocity, bump, 0.1), num_points=48, rtol=1e-7)
        assert solution.attrs["method"] == "spectral_krylov"
        np.testing.assert_allclose(solution.u, nodes.u, rtol=0, atol=2e-6)


def test_functions_of_time_keep_the_adaptive_step():
    moving = ConvectionDiffusion(lambda x, t: 0.1 * np.sin(TAU * (x + t)), bump, 0.1, dim=2)
    assert solve(moving, num_points=48, rtol=1e-4).attrs["method"] == "spectral_adaptive"


@pytest.mark.parametrize("k", [8, 15, 16, 17, 32, 33, 64])
def test_no_mode_of_f_hides_between_the_nodes(k):
    """Whatever grid f is first looked at on, some mode is nought there, or looks like a slower one."""
    problem = ConvectionDiffusion(np.full((1, 8), 0.3), lambda x: np.cos(TAU * k * x[..., 0]), 0.01)
    solution = solve(problem, num_points=200, rtol=1e-5)
    x = np.arange(200) / 200
    exact = np.exp(-0.5 * 0.01**2 * (TAU * k) ** 2) * np.cos(TAU * k * (x + 0.3))
    assert np.abs(solution.u[0].values - exact).max() <= 1e-5


@pytest.mark.parametrize("points", [16, 17, 64])
def test_all_modes_of_given_nodes_count(points):
    """Among them the unpaired one of an even grid, of f and of F."""
    nodes = np.arange(points) / points
    alternating = np.cos(np.pi * np.arange(points)) if points % 2 == 0 else np.cos(TAU * (points // 2) * nodes)
    for velocity, terminal in (
        (np.full((1, 8), 0.3), 1.0 + alternating),
        (0.5 * alternating[None], np.cos(TAU * 2 * nodes)),
    ):
        problem = ConvectionDiffusion(velocity, terminal, 0.1)
        fine = solve(problem, num_points=1024, rtol=1e-11, method="spectral_krylov").u[0].values
        solution = solve(problem, num_points=1024, rtol=1e-6)
        assert np.abs(solution.u[0].values - fine).max() <= 1e-6 * np.abs(terminal).max()


@pytest.mark.parametrize(("speed", "sigma"), [(20.0, 1.0), (3.0, 0.5)])
def test_a_cascade_that_rises_and_falls_within_a_substep_is_seen(speed, sigma):
    problem = ConvectionDiffusion(
        speed * np.sin(TAU * np.arange(8) / 8)[None], lambda x: np.cos(TAU * x[..., 0]), sigma
    )
    times = [0.0, 0.9, 0.99]
    fine = solve(problem, num_points=1024, rtol=1e-11, method="spectral_krylov", times=times).u.values
    solution = solve(problem, num_points=1024, rtol=1e-6, times=times)
    assert np.abs(solution.u.values - fine).max() <= 1e-6


def test_verify_sees_a_solution_by_a_tolerance_as_sharply_on_any_picture():
    problem = PROBLEMS["P1"]
    points = np.random.default_rng(0).random((20, 2))
    for n in (48, 96):
        solution = solve(problem, num_points=n, rtol=1e-5, times=np.linspace(0, 1, 17))
        found = verify(problem, solution, points, num_paths=4096, num_steps=64, rng=0)
        assert found.verdict == "agrees", found
        assert found.solution_error.max() < 1e-3
        wrong = solution.assign(u=1.03 * solution.u)
        assert verify(problem, wrong, points, num_paths=4096, num_steps=64, rng=0).verdict == "disagrees"


def test_bad_numbers_are_met_with_one_line():
    with pytest.raises(ValueError, match="rtol: expected at least 1e-13 in double precision"):
        solve(PROBLEMS["P1"], rtol=1e-15)
    with pytest.raises(ValueError, match=r"interval: expected 0, or math\.inf"):
        FunctionVelocity(lambda x, t: x, 1, interval=0.125)
    with pytest.raises(ValueError, match=r"velocity: expected one that substeps of .* follow"):
        solve(ConvectionDiffusion(1e100 * swirl(), bump, 0.1), rtol=1e-4)
