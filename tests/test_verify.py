"""verify() accepts what is right and rejects what is wrong: sigma, the velocity's sign, a shifted grid."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pdekit import ConvectionDiffusion, RedrawnVelocity, compiled, solve
from pdekit.fastmath import cos, sin
from pdekit.verify import verify

TAU = 2.0 * np.pi
POINTS = np.random.default_rng(8).uniform(size=(48, 2))
TIMES = np.linspace(0.0, 1.0, 33)


@compiled(2)
def flow(x, y, t):
    a, b = TAU * x, TAU * y
    return sin(a) * cos(b) + 0.3, -0.5 * cos(a) * sin(b) + 0.2 * sin(b)


@compiled(2)
def reversed_flow(x, y, t):
    a, b = TAU * x, TAU * y
    return -(sin(a) * cos(b) + 0.3), 0.5 * cos(a) * sin(b) - 0.2 * sin(b)


def terminal(x):
    return np.exp(np.sin(TAU * x[..., 0])) * np.cos(TAU * x[..., 1])


RIGHT = ConvectionDiffusion(flow, terminal, 0.1)


def solved(problem: ConvectionDiffusion) -> xr.Dataset:
    return solve(problem, num_points=96, dt=2e-3, times=TIMES)


@pytest.fixture(scope="module")
def right() -> xr.Dataset:
    return solved(RIGHT)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_right_solution_passes(right, seed):
    outcome = verify(RIGHT, right, POINTS, num_paths=4096, rng=seed)
    assert outcome.passed, outcome
    assert np.mean(np.abs(outcome.z) < 3) >= 0.95
    assert "agrees with its paths at 48 points" in repr(outcome)


def test_wrong_solutions_are_rejected(right):
    wrong = {
        "sigma 5% too large": solved(ConvectionDiffusion(flow, terminal, 0.105)),
        "sigma 5% too small": solved(ConvectionDiffusion(flow, terminal, 0.095)),
        "velocity of the wrong sign": solved(ConvectionDiffusion(reversed_flow, terminal, 0.1)),
        "shifted by one cell": right.roll(x=1, roll_coords=False),
    }
    outcomes = {name: verify(RIGHT, solution, POINTS, num_paths=4096) for name, solution in wrong.items()}
    assert not any(outcome.passed for outcome in outcomes.values()), outcomes
    assert all("does NOT agree" in repr(outcome) for outcome in outcomes.values())


def test_an_admitted_error_covers_a_deviation_of_its_size(right):
    off = right.copy()
    off["u"] = right.u + 0.02
    assert not verify(RIGHT, off, POINTS, num_paths=2048).passed
    assert verify(RIGHT, off, POINTS, num_paths=2048, solution_error=0.02).passed


def test_bad_input_is_met_with_one_line(right):
    with pytest.raises(ValueError, match="expected sigma > 0"):
        verify(ConvectionDiffusion(flow, terminal, 0.0), right, POINTS)
    with pytest.raises(ValueError, match="with a frame at t = 0"):
        verify(RIGHT, right.isel(time=slice(3, None)), POINTS)
    with pytest.raises(ValueError, match="as solve\\(\\) returns it"):
        verify(RIGHT, xr.Dataset({"v": ("x", np.zeros(3))}), POINTS)


def test_a_constant_is_right_to_the_last_digit():
    constant = ConvectionDiffusion(flow, lambda x: np.ones(x.shape[:-1]), 0.1)
    outcome = verify(constant, solve(constant, num_points=16, dt=0.02), POINTS[:4], num_paths=512, num_steps=8)
    assert outcome.passed, outcome


@pytest.mark.parametrize("num_points", [24, 48])
def test_an_unresolved_solution_admits_its_own_error(num_points):
    outcome = verify(RIGHT, solve(RIGHT, num_points=num_points, dt=2e-3, times=TIMES), POINTS, num_paths=4096)
    assert outcome.passed, outcome


def test_a_redrawn_velocity_can_be_verified():
    redrawn = RedrawnVelocity(num_points=8, interval=0.1, seed=1)
    problem = ConvectionDiffusion(redrawn, terminal, 0.25)
    solution = solve(problem, num_points=48, dt=0.01, times=TIMES[::4])
    assert verify(problem, solution, POINTS, num_paths=2048, num_steps=160).passed
