"""The problem as it is given: numbers that are none, values that are not real, functions that have no period."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy.stats import norm

import pdekit
from pdekit import (
    ConvectionDiffusion,
    FunctionVelocity,
    RedrawnVelocity,
    ResolutionWarning,
    characteristics,
    compiled,
    fastmath,
    feynman_kac,
    solve,
)

TAU = 2.0 * np.pi
NODES = np.zeros((2, 8, 8))


def wave(x: np.ndarray) -> np.ndarray:
    return np.cos(TAU * x[..., 0])


def still(x: np.ndarray, t: float) -> np.ndarray:
    return 0.0 * x


def one_dimensional(velocity, terminal=wave, sigma: float = 0.1) -> ConvectionDiffusion:
    return ConvectionDiffusion(velocity, terminal, sigma, dim=1)


SMALL = {"num_points": 16, "dt": 0.1}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvectionDiffusion(still, wave, 0.1, dim=2.5), "dim: expected a whole number .* got 2.5"),
        (lambda: ConvectionDiffusion(still, wave, 0.1, dim=-1), "dim: expected a whole number .* got -1"),
        (lambda: ConvectionDiffusion(still, wave, 0.1, dim=True), "dim: expected a whole number .* got True"),
        (lambda: ConvectionDiffusion(still, wave, 0.1, dim="2"), "dim: expected a whole number .* got '2'"),
        (lambda: ConvectionDiffusion(NODES, wave, 0.1j), "sigma: expected a finite number >= 0, got 0.1j"),
        (lambda: ConvectionDiffusion(NODES, wave, True), "sigma: expected a finite number >= 0, got True"),
        (lambda: ConvectionDiffusion(NODES, wave, "0.1"), "sigma: expected a finite number >= 0, got '0.1'"),
        (lambda: ConvectionDiffusion(NODES, wave, 0.1, horizon="1"), "horizon: expected a positive time, got '1'"),
        (lambda: ConvectionDiffusion(NODES, wave, 0.1, horizon=np.nan), "horizon: expected a positive time, got nan"),
        (lambda: ConvectionDiffusion(NODES, wave, 0.1, horizon=1 + 0j), "horizon: expected a positive time"),
        (lambda: RedrawnVelocity(8.5, 0.1, 0), "num_points: expected a whole number of at least 2, got 8.5"),
        (lambda: RedrawnVelocity(8, np.nan, 0), "interval: expected a positive duration, got nan"),
        (lambda: RedrawnVelocity(8, 0.1, 1.5), "seed: expected a whole number of at least 0, got 1.5"),
        (lambda: compiled(True), "dim: expected a whole number of at least 1, got True"),
        (lambda: solve(one_dimensional(still), num_points=True), "num_points: expected a whole number .* got True"),
        (lambda: solve(one_dimensional(still), num_points=np.nan), "num_points: expected a whole number .* got nan"),
        (lambda: solve(one_dimensional(still), num_points="16"), "num_points: expected a whole number .* got '16'"),
        (lambda: solve(one_dimensional(still), dt=np.nan), "dt: expected a positive step, got nan"),
        (lambda: solve(one_dimensional(still), dt="1"), "dt: expected a positive step, got '1'"),
        (lambda: solve(one_dimensional(still), rtol=np.nan), "rtol: expected a positive number, got nan"),
        (lambda: solve(one_dimensional(still), times=[np.nan]), r"times: expected values in \[0, 1\], got"),
        (lambda: solve(one_dimensional(still), times=0.5), r"times: expected values in \[0, 1\], got 0.5"),
        (lambda: solve(one_dimensional(still), times=[]), r"times: expected values in \[0, 1\], got"),
        (lambda: solve(one_dimensional(still), times=[0.5j]), "times: expected real numbers, got dtype complex128"),
        (lambda: solve(one_dimensional(still), times=["a"]), "times: expected real numbers, got dtype"),
        (lambda: characteristics(one_dimensional(still), [[0.1]], num_steps=1.5), "num_steps: expected a whole number"),
        (
            lambda: characteristics(one_dimensional(still), [[0.1]], num_steps=4, t0=np.nan),
            "t0: expected a finite time",
        ),
        (lambda: characteristics(one_dimensional(still), [[0.1]], num_steps=4, t0="0"), "t0: expected a finite .* '0'"),
        (
            lambda: characteristics(one_dimensional(still), [[0.1]], num_steps=4, t1=np.inf),
            "t1: expected a finite time",
        ),
        (lambda: FunctionVelocity(still, 2.5), "dim: expected a whole number of at least 1, got 2.5"),
        (lambda: FunctionVelocity(still, 2, interval=True), "interval: expected 0, or math.inf .* got True"),
        (lambda: compiled(4), "dim: expected 1, 2 or 3, got 4"),
        (lambda: compiled(2, interval=0.5), "interval: expected 0, or math.inf .* got 0.5"),
    ],
)
def test_numbers_that_are_none_are_met_with_one_clear_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def drifting(x: np.ndarray, t: float) -> np.ndarray:
    return np.sin(TAU * x) * (1.0 + t)


@compiled(1, interval=math.inf)
def pulled(x, t):
    return (fastmath.sin2pi(x) * fastmath.exp(-t),)


@pytest.mark.parametrize("velocity", [FunctionVelocity(drifting, 1, math.inf), pulled], ids=["plain", "compiled"])
@pytest.mark.parametrize("horizon", [1e-2, 10.0])
def test_a_velocity_that_is_called_steady_and_is_not_is_refused(velocity, horizon):
    with pytest.raises(
        ValueError, match=r"interval: expected a function that does not depend on t.*leave interval out"
    ):
        ConvectionDiffusion(velocity, wave, 0.1, horizon=horizon)


def test_a_steady_velocity_is_asked_at_a_few_points_only():
    asked = []

    def steady(x, t):
        asked.append(x.size)
        return np.sin(TAU * x) + 0.0 * t

    ConvectionDiffusion(FunctionVelocity(steady, 1, math.inf), wave, 0.1)
    assert 0 < sum(asked) <= 100


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvectionDiffusion(NODES + 1j, wave, 0.1),
        lambda: ConvectionDiffusion(NODES, np.ones((8, 8)) + 1j, 0.1),
        lambda: ConvectionDiffusion.from_initial_value(NODES + 1j, wave, 0.1),
        lambda: solve(one_dimensional(lambda x, t: x + 1j), **SMALL),
        lambda: solve(one_dimensional(still, lambda x: np.exp(1j * x[..., 0])), **SMALL),
        lambda: feynman_kac(one_dimensional(lambda x, t: 1j * x), [[0.5]], num_paths=8, num_steps=2),
        lambda: feynman_kac(one_dimensional(still, lambda x: 1j * x[..., 0]), [[0.5]], num_paths=8, num_steps=2),
        lambda: characteristics(one_dimensional(still), [[0.5 + 0.5j]], num_steps=2),
    ],
)
def test_complex_values_are_refused_and_not_cut(build):
    with pytest.raises(ValueError, match="expected real numbers, got dtype complex128"):
        build()


def test_an_indicator_is_a_terminal_condition():
    half = 15.5 / 64  # half-way between nodes, which then weigh the interval rightly
    box = one_dimensional(still, lambda x: np.abs(x[..., 0] % 1.0 - 0.5) < half, sigma=0.3)
    exact = sum(norm.cdf((k + half) / 0.3) - norm.cdf((k - half) / 0.3) for k in range(-3, 4))
    assert float(solve(box, num_points=64, dt=0.5).u[0, 32]) == pytest.approx(exact, abs=1e-3)


def test_a_callable_may_change_its_points_and_reuse_its_result():
    buffer = {}

    def velocity(x, t):
        x *= TAU
        out = buffer.setdefault(x.shape, np.empty_like(x))
        np.sin(x + t, out=out)
        return out

    def terminal(x):
        x[...] = np.cos(TAU * x)
        return x[..., 0]

    rude = one_dimensional(velocity, terminal, 0.2)
    polite = one_dimensional(lambda x, t: np.sin(TAU * x + t), wave, 0.2)
    for method in ("spectral_rk4", "semi_lagrangian"):
        settings = {"num_points": 64, "dt": 0.02, "method": method}
        np.testing.assert_array_equal(solve(rude, **settings).u, solve(polite, **settings).u)
    paths = [feynman_kac(p, [[0.3], [0.6]], num_paths=512, num_steps=8, rng=1).mean for p in (rude, polite)]
    np.testing.assert_array_equal(*paths)
    ends = [characteristics(p, [[0.3], [0.6]], num_steps=8) for p in (rude, polite)]
    np.testing.assert_array_equal(*ends)


def sampled(x):
    """np.interp knows of no period: beyond its last node it is constant."""
    nodes = np.arange(64) / 64
    return np.interp(x, nodes, np.sin(TAU * nodes))


@pytest.mark.parametrize(
    ("velocity", "terminal", "message"),
    [
        (lambda x, t: -x, lambda x: x[..., 0] ** 2, "velocity: expected F"),
        (lambda x, t: 0.5 - x, wave, "velocity: expected F"),
        (
            lambda x, t: np.sin(np.pi * x),
            wave,
            "velocity: expected F",
        ),  # no jump in the box, yet another function there
        (lambda x, t: sampled(x), wave, "velocity: expected F"),
        (lambda x, t: np.sin(TAU * x) + t * x, wave, "velocity: expected F"),
        (still, lambda x: x[..., 0] ** 2, "terminal: expected f"),
        (still, lambda x: (x[..., 0] - 0.5) ** 2, "terminal: expected f"),
        (still, lambda x: 100.0 + x[..., 0], "terminal: expected f"),
    ],
)
def test_a_function_without_a_period_is_refused_with_the_cure(velocity, terminal, message):
    problem = one_dimensional(velocity, terminal)
    with pytest.raises(ValueError, match=message + r".* at its edge; wrap the coordinates, x - np.floor\(x\)"):
        solve(problem, **SMALL)
    feynman_kac(problem, [[0.25]], num_paths=8, num_steps=2)  # the whole space is a problem of its own


def test_a_compiled_velocity_without_a_period_is_refused():
    @compiled(dim=1)
    def towards_zero(x, t):
        return (-x,)

    with pytest.raises(ValueError, match="velocity: expected F"):
        solve(ConvectionDiffusion(towards_zero, wave, 0.1), **SMALL)


def test_a_function_meant_for_the_box_alone_is_solved_with_a_warning():
    """A bump that has died out at the edges: its periodic continuation is smooth, but paths see one bump only."""

    def bump(x):
        return np.exp(-(((x[..., 0] - 0.5) / 0.08) ** 2))

    def wrapped(x):
        return bump(x - np.floor(x))

    with pytest.warns(ResolutionWarning, match="terminal: expected .*paths which leave it see another f; wrap"):
        alone = solve(one_dimensional(still, bump), num_points=64, dt=0.1).u.values
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResolutionWarning)
        np.testing.assert_array_equal(solve(one_dimensional(still, wrapped), num_points=64, dt=0.1).u, alone)


def test_small_differences_across_the_edge_are_warned_about_and_rounding_is_not():
    def nearly(size):
        return one_dimensional(lambda x, t: np.sin(TAU * x) + size * x, sigma=0.3)

    assert nearly(1e-7).check_periodic() == []
    assert "another F" in nearly(1e-3).check_periodic()[0]
    with pytest.raises(ValueError, match="at its edge"):
        nearly(0.2).check_periodic()
    single = one_dimensional(lambda x, t: np.sin(np.float32(TAU) * x.astype(np.float32)))
    assert single.check_periodic() == []
    with pytest.warns(ResolutionWarning, match="another F"):
        solution = solve(nearly(1e-3), num_points=32, dt=0.05)
    assert "another F" in solution.attrs["warnings"]


def test_a_function_that_cannot_be_evaluated_outside_the_box_is_said():
    def only_inside(x):
        if x.min() < 0 or x.max() > 1:
            raise ValueError("one of the requested points is out of bounds")
        return wave(x)

    with pytest.warns(ResolutionWarning, match="terminal: cannot be evaluated outside the box.*out of bounds"):
        solve(one_dimensional(still, only_inside), **SMALL)


def test_the_attributes_say_what_ran():
    """Half of the horizon at dt = 0.01 was recorded as fifty steps of 0.02."""
    problem = one_dimensional(lambda x, t: np.full_like(x, 0.3))
    for method in ("spectral_rk4", "spectral_ab4", "semi_lagrangian"):
        attrs = solve(problem, num_points=32, dt=0.01, times=[0.5], method=method).attrs
        assert attrs["dt"] == pytest.approx(0.01, rel=1e-12)
        assert attrs["num_steps"] == 50
        assert attrs["courant"] == pytest.approx(0.3 * 0.01 * 32, rel=1e-12)
    assert "fft" not in solve(problem, num_points=32, dt=0.1, method="semi_lagrangian").attrs
    carried = solve(one_dimensional(problem.velocity, sigma=0.0), dt=0.1, times=[0.5], method="characteristics")
    assert (carried.attrs["dt"], carried.attrs["num_steps"]) == (0.1, 5)
    nothing = solve(problem, num_points=16, dt=0.1, times=[1.0])
    assert (nothing.attrs["dt"], nothing.attrs["num_steps"]) == (0.1, 0)
    np.testing.assert_array_equal(nothing.u[0], wave(np.arange(16)[:, None] / 16))
    adaptive = solve(problem, num_points=16, dt=0.1, times=[0.5], rtol=1e-6).attrs
    assert adaptive["dt"] * adaptive["num_steps"] == pytest.approx(0.5)


def test_masked_values_are_not_taken_for_what_lies_under_them():
    """Readers of files give land as a mask over any number."""
    nodes = np.random.default_rng(0).uniform(size=(2, 8, 8))
    masked, free = np.ma.masked_greater(nodes, 0.9), np.ma.array(nodes)
    assert (ConvectionDiffusion(free, free[0], 0.1).velocity.values == nodes).all()
    for name, make in {
        "velocity": lambda: ConvectionDiffusion(masked, nodes[0], 0.1),
        "terminal": lambda: ConvectionDiffusion(nodes, masked[0], 0.1),
        "potential": lambda: ConvectionDiffusion(nodes, nodes[0], 0.1, potential=masked[0]),
        "field, frame 0": lambda: pdekit.GridSeries([0.0, 1.0], [masked, nodes]),
        "points": lambda: pdekit.feynman_kac(
            ConvectionDiffusion(nodes, nodes[0], 0.1), np.ma.masked_greater(nodes[:, :, 0].T, 0.5), num_paths=4
        ),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: expected a value everywhere, got [0-9]+ masked of"):
            make()
