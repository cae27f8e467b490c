"""The sampler against closed forms, its own invariances, and the orders it declares."""

import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numba
import numpy as np
import pytest
import xarray as xr

from pdekit import Control, Sampling, Tolerance, solve
from pdekit.characteristics import characteristics
from pdekit.fastmath import sin2pi
from pdekit.field import compiled
from pdekit.paths import sampler
from pdekit.paths.estimate import BiasWarning, Estimate, Moments, bias_from_doublings, block_moments
from pdekit.problem import ConvectionDiffusion
from pdekit.velocity import GridVelocity, RedrawnVelocity

TAU = 2 * np.pi
feynman_kac = partial(sampler.feynman_kac, rng=0)


@compiled(2)
def swirl(x, y, t):
    return 0.3 + 0.5 * sin2pi(y), -0.2 + 0.5 * sin2pi(x + 0.25 * t)


@compiled(1)
def ornstein_uhlenbeck_1d(x, t):
    return (-x,)


def wave(x):
    return np.cos(TAU * (x[..., 0] + 2 * x[..., 1]))


def drift_problem(drift=(0.3, -0.2), sigma=0.1, horizon=1.0):
    """Constant F and one Fourier mode: u(x, t) = exp(-½σ²|k|²(T-t)) cos(k·(x + F (T-t)))."""
    nodes = np.broadcast_to(np.reshape(drift, (2, 1, 1)), (2, 8, 8))
    return ConvectionDiffusion(GridVelocity(nodes, "bilinear"), wave, sigma, horizon=horizon)


def drift_solution(points, drift=(0.3, -0.2), sigma=0.1, duration=1.0):
    decay = np.exp(-0.5 * sigma**2 * TAU**2 * 5 * duration)
    return decay * wave(points + duration * np.asarray(drift))


POINTS = np.random.default_rng(0).uniform(size=(6, 2))


def zscores(estimate, exact):
    return (estimate.mean - exact) / estimate.standard_error


@pytest.mark.parametrize("scheme", ["euler", "heun"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_constant_drift_meets_its_closed_form(scheme, dtype):
    estimate = feynman_kac(
        drift_problem(), POINTS, num_paths=20_000, num_steps=4, scheme=scheme, sampling=Sampling(dtype=dtype)
    )
    assert np.abs(zscores(estimate, drift_solution(POINTS))).max() < 4
    low, high = estimate.confidence_interval(0.9999)
    assert ((low < drift_solution(POINTS)) & (drift_solution(POINTS) < high)).all()


def test_the_starting_time_shortens_the_paths():
    estimate = feynman_kac(drift_problem(horizon=0.7), POINTS, num_paths=20_000, num_steps=4, t0=0.4)
    assert np.abs(zscores(estimate, drift_solution(POINTS, duration=0.3))).max() < 4


@pytest.mark.parametrize("dim", [1, 3, 100])
def test_ornstein_uhlenbeck_meets_its_closed_form(dim):
    """dX = -X dt + σ dB in R^d, f = |x|²: E = |x|² e^{-2} + d σ² (1 - e^{-2}) / 2."""
    sigma, start = 0.5, np.stack([np.full(dim, 1.5), np.linspace(-2.0, 2.0, dim)])
    problem = ConvectionDiffusion(lambda x, t: -x, lambda x: (x**2).sum(-1), sigma, dim=dim)
    estimate = feynman_kac(problem, start, num_paths=4_000, num_steps=32, bias=True)
    exact = (start**2).sum(-1) * np.exp(-2.0) + dim * sigma**2 * (1 - np.exp(-2.0)) / 2
    assert np.abs((estimate.mean - exact) / estimate.total_error()).max() < 4


def test_a_compiled_velocity_gives_the_paths_of_the_plain_callable():
    fast = ConvectionDiffusion(ornstein_uhlenbeck_1d, lambda x: x[..., 0] ** 2, 0.5)
    slow = ConvectionDiffusion(lambda x, t: -x, lambda x: x[..., 0] ** 2, 0.5, dim=1)
    for scheme in ("euler", "heun"):
        a, b = (feynman_kac(p, [[1.5]], num_paths=500, num_steps=8, scheme=scheme) for p in (fast, slow))
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-13)
        np.testing.assert_allclose(a.standard_error, b.standard_error, rtol=1e-12)


def test_node_values_give_the_paths_of_their_continuation():
    grid = GridVelocity(np.random.default_rng(1).uniform(-1, 1, (2, 8, 8)), "bicubic")
    table = ConvectionDiffusion(grid, wave, 0.1)
    slow = ConvectionDiffusion(lambda x, t: grid(x), wave, 0.1, dim=2)
    a, b = (feynman_kac(p, POINTS, num_paths=300, num_steps=8) for p in (table, slow))
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-12)


EXACT_MEAN_SQUARE = 1.5**2 * np.exp(-2.0) + 0.25 * (1 - np.exp(-2.0)) / 2


def mean_square_of(scheme, num_steps):
    """E[X²] of the scheme itself for dX = -X dt + ½ dB from 1.5: a linear recursion, free of sampling error."""
    dt = 1.0 / num_steps
    decay, noise = (1 - dt, 1.0) if scheme == "euler" else (1 - dt + dt**2 / 2, 1 - dt / 2)
    mean_square = 1.5**2
    for _ in range(num_steps):
        mean_square = decay**2 * mean_square + noise**2 * 0.25 * dt
    return mean_square


@pytest.mark.filterwarnings("ignore::pdekit.paths.estimate.BiasWarning")
@pytest.mark.parametrize(
    ("scheme", "extrapolate", "order"), [("euler", False, 1), ("euler", True, 2), ("heun", False, 2)]
)
def test_weak_order_is_the_declared_one(scheme, extrapolate, order):
    """The paths meet the mean of their scheme at each step size, and that mean converges at the declared order."""
    problem = ConvectionDiffusion(ornstein_uhlenbeck_1d, lambda x: x[..., 0] ** 2, 0.5)
    steps = [32, 64, 128, 256]
    errors = []
    for n in steps:
        expected = mean_square_of(scheme, n)
        if extrapolate:  # Talay and Tubaro 1990
            expected += expected - mean_square_of(scheme, n // 2)
        estimate = feynman_kac(
            problem, [[1.5]], num_paths=30_000, num_steps=n, scheme=scheme, sampling=Sampling(extrapolate=extrapolate)
        )
        assert abs(zscores(estimate, expected)[0]) < 4
        errors.append(abs(expected - EXACT_MEAN_SQUARE))
    slope = np.polyfit(np.log(1.0 / np.array(steps)), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2


@pytest.mark.filterwarnings("ignore::pdekit.paths.estimate.BiasWarning")
@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("heun", 2)])
def test_bias_estimate_converges_at_the_weak_order_and_explains_the_error(scheme, order):
    problem = ConvectionDiffusion(swirl, wave, 0.1)
    fine = feynman_kac(problem, POINTS, num_paths=40_000, num_steps=512, rng=5)
    coarse = [
        feynman_kac(problem, POINTS, num_paths=160_000, num_steps=n, scheme=scheme, bias=True, rng=6) for n in (16, 32)
    ]
    norms = [np.linalg.norm(e.bias_estimate) for e in coarse]
    assert abs(np.log2(norms[0] / norms[1]) - order) < 0.5
    error = np.hypot(coarse[1].total_error(), fine.standard_error)
    assert np.abs((coarse[1].mean - fine.mean) / error).max() < 4


@pytest.mark.filterwarnings("ignore::pdekit.paths.estimate.BiasWarning")
def test_two_point_increments_keep_the_weak_order_of_euler():
    problem = ConvectionDiffusion(swirl, wave, 0.1)
    options = {"num_paths": 50_000, "num_steps": 64, "scheme": "euler"}
    a = feynman_kac(problem, POINTS, **options)
    b = feynman_kac(problem, POINTS, sampling=Sampling(increments="two_point"), **options)
    assert np.abs((a.mean - b.mean) / np.hypot(a.standard_error, b.standard_error)).max() < 4
    assert not np.array_equal(a.mean, b.mean)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": Sampling(antithetic=True)},
        {"sampling": Sampling(dtype="float32")},
        {"sampling": Sampling(extrapolate=True), "bias": True},
        {"sampling": Sampling(qmc=True)},
    ],
    ids=["plain", "antithetic", "float32", "extrapolated", "sobol"],
)
def test_result_does_not_depend_on_threads_or_batches(options, monkeypatch):
    problem = ConvectionDiffusion(swirl, wave, 0.1)

    def run(points=POINTS, first_point=0):
        return feynman_kac(problem, points, num_paths=3_000, num_steps=8, rng=3, first_point=first_point, **options)

    whole = run()
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        single = run()
    finally:
        numba.set_num_threads(threads)
    parts = [run(POINTS[:2]), run(POINTS[2:], first_point=2)]
    monkeypatch.setattr("pdekit.paths.simulation._STEPS_PER_CALL", 2 * 256 * 8)
    small = run()
    for other in (single, small):
        np.testing.assert_array_equal(whole.mean, other.mean)
        np.testing.assert_array_equal(whole.standard_error, other.standard_error)
    np.testing.assert_array_equal(whole.mean, np.concatenate([e.mean for e in parts]))


def test_result_does_not_depend_on_the_layout_of_the_points():
    problem = ConvectionDiffusion(swirl, wave, 0.1)
    points = np.random.default_rng(2).uniform(size=(8, 2)).astype(np.float32)
    frozen = points.astype(float)
    frozen.setflags(write=False)
    padded = np.zeros((16, 4), dtype=np.float32)
    padded[::2, ::2] = points
    results = [
        feynman_kac(problem, p, num_paths=300, num_steps=4).mean
        for p in (points, frozen, np.asfortranarray(points), padded[::2, ::2], points.tolist())
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_points_outside_the_box_see_the_periodic_field():
    grid = GridVelocity(np.random.default_rng(1).uniform(-1, 1, (2, 8, 8)))
    problem = ConvectionDiffusion(grid, np.random.default_rng(2).normal(size=(8, 8)), 0.1)
    a, b = (feynman_kac(problem, p, num_paths=300, num_steps=8) for p in (POINTS, POINTS + np.array([3.0, -7.0])))
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("scheme", ["euler", "heun"])
def test_rounding_does_not_pile_up_over_many_small_steps_in_float32(scheme, plain):
    """Each step is lost to rounding in part, in the same direction: 1.4 in all where nothing keeps count of it."""
    start, drift, sigma, horizon, steps = 100.25, 0.3, 1e-3, 1000.0, 2**12 if plain else 2**16
    velocity = (lambda x, t: np.full_like(x, drift)) if plain else GridVelocity(np.full((1, 8), drift), "bilinear")
    problem = ConvectionDiffusion(velocity, lambda x: x[..., 0], sigma, horizon=horizon, dim=1)
    estimate = feynman_kac(
        problem, [[start]], num_paths=256, num_steps=steps, scheme=scheme, sampling=Sampling(dtype="float32")
    )
    assert abs(estimate.mean[0] - (start + drift * horizon)) < 4 * estimate.standard_error[0] < 0.01


@pytest.mark.filterwarnings("ignore::pdekit.paths.estimate.BiasWarning")  # what rounding moves follows no order
@pytest.mark.parametrize(("dtype", "start"), [("float32", 2.0**20), ("float64", 2.0**50), ("float64", -(2.0**50))])
def test_coordinates_too_large_for_their_dtype_are_warned_of_once(dtype, start):
    problem = ConvectionDiffusion(np.full((1, 8), 0.3), lambda x: x[..., 0], 0.1)
    with pytest.warns(RuntimeWarning, match=f"coordinates reach .* rounding in {dtype} moves them") as caught:
        feynman_kac(problem, [[start]], num_paths=1000, num_steps=4, sampling=Sampling(dtype=dtype), bias=True)
    assert sum("coordinates reach" in str(warning.message) for warning in caught) == 1


def test_a_redrawn_velocity_is_followed_interval_by_interval():
    velocity = RedrawnVelocity(8, 1 / 16, seed=4, continuation="bicubic")
    table = ConvectionDiffusion(velocity, wave, 0.1)
    # Heun's second stage lies at the end of a step, where a plain callable already sees the next interval.
    slow = ConvectionDiffusion(lambda x, t: velocity(x, t), wave, 0.1, dim=2)
    a, b = (feynman_kac(p, POINTS, num_paths=300, num_steps=32, scheme="euler") for p in (table, slow))
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="whole number of steps in each interval"):
        feynman_kac(table, POINTS, num_steps=24)


@pytest.mark.parametrize("interval", [1.0, 1.37, 40.0])
def test_a_velocity_redrawn_after_the_horizon_is_a_steady_one(interval):
    velocity = RedrawnVelocity(8, interval, seed=4)
    redrawn, steady = (ConvectionDiffusion(v, wave, 0.1) for v in (velocity, velocity.field(0)))
    options = {"num_paths": 300, "num_steps": 100, "bias": True}
    a, b = (feynman_kac(p, POINTS, **options) for p in (redrawn, steady))
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.bias_estimate, b.bias_estimate)
    np.testing.assert_array_equal(*(characteristics(p, POINTS, num_steps=7) for p in (redrawn, steady)))
    u, v = (solve(p, num_points=32, rtol=1e-6).u[0].values for p in (redrawn, steady))
    np.testing.assert_allclose(u, v, atol=1e-12)


def test_a_redrawn_velocity_jumps_at_multiples_of_its_interval():
    velocity = RedrawnVelocity(8, 0.25, seed=4)
    assert velocity.jump_steps(0.0, 0.125, 8) == [2, 4, 6]
    assert velocity.jump_steps(0.25, 0.125, 6) == [2, 4]
    assert velocity.jump_steps(0.125, 0.125, 7) == [1, 3, 5]
    assert velocity.jump_steps(0.3, 0.1, 2) == []
    assert [field for *_, field in velocity.pieces(0.125, 0.125, 3)] == [velocity.field(0), velocity.field(1)]


def test_antithetic_paths_reduce_the_variance_of_an_odd_payoff():
    problem = drift_problem(drift=(0.25, 0.0))
    odd = [[0.0, 0.0]]  # f is odd about the mean end point
    plain = feynman_kac(problem, odd, num_paths=2_000, num_steps=4)
    paired = feynman_kac(problem, odd, num_paths=2_000, num_steps=4, sampling=Sampling(antithetic=True))
    assert paired.standard_error[0] < 1e-10 < plain.standard_error[0]
    assert paired.num_paths == 2_000
    even = feynman_kac(drift_problem(), POINTS, num_paths=20_000, num_steps=4, sampling=Sampling(antithetic=True))
    assert np.abs(zscores(even, drift_solution(POINTS))).max() < 4


def drift_dataset(num_points=64, frames=17, **parameters):
    times = np.linspace(0.0, 1.0, frames)
    axis = np.arange(num_points) / num_points
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    u = np.stack([drift_solution(grid, duration=1.0 - t, **parameters) for t in times])
    return xr.Dataset({"u": (("time", "x", "y"), u)}, {"time": times, "x": axis, "y": axis})


@pytest.mark.parametrize(("hessian", "reduction"), [(False, 20), (True, 200)])
def test_the_solution_as_control_cuts_the_variance(hessian, reduction):
    options = {"num_paths": 10_000, "num_steps": 64}
    plain = feynman_kac(drift_problem(), POINTS, **options)
    controlled = feynman_kac(
        drift_problem(), POINTS, control=Control.from_solution(drift_dataset(), hessian=hessian), **options
    )
    ratio = (plain.standard_error / controlled.standard_error) ** 2
    assert np.exp(np.log(ratio).mean()) > reduction
    assert np.abs(zscores(controlled, drift_solution(POINTS))).max() < 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pdekit.ResolutionWarning")  # a control need not be right
def test_a_control_in_three_dimensions_keeps_its_variance_reduction_or_says_so(monkeypatch, caplog):
    """Second derivatives in memory for two tables reduced the variance 3 times; one a step does so 47 times."""
    rng = np.random.default_rng(3)
    problem = ConvectionDiffusion(
        GridVelocity(rng.uniform(-0.5, 0.5, (3, 6, 6, 6)), "bicubic"), rng.normal(size=(6, 6, 6)), 0.15
    )
    solution = solve(problem, num_points=20, dt=0.02, times=np.linspace(0, 1, 26), method="spectral_rk4")
    points = rng.uniform(size=(4, 3))

    def squared_error(**options):
        return feynman_kac(problem, points, num_paths=2048, num_steps=50, **options).standard_error ** 2

    plain = squared_error()
    controlled = squared_error(control=Control.from_solution(solution, hessian=True))
    assert np.exp(np.log(plain / controlled).mean()) > 30
    assert not caplog.records
    monkeypatch.setattr("pdekit.paths.control._MOST_BYTES", 2**22)
    monkeypatch.setattr("pdekit.runtime.log._told", set())
    with caplog.at_level("WARNING"):
        capped = squared_error(control=Control.from_solution(solution, hessian=True))
    assert "steps share one, which reduces the variance less" in caplog.text
    assert (capped > controlled).all()


@pytest.mark.parametrize("hessian", [False, True])
def test_a_wrong_solution_as_control_is_unbiased(hessian):
    wrong = drift_dataset(drift=(-0.3, 0.2), sigma=0.15)
    estimate = feynman_kac(
        drift_problem(),
        POINTS,
        control=Control.from_solution(wrong, hessian=hessian),
        num_paths=40_000,
        num_steps=16,
    )
    assert np.abs(zscores(estimate, drift_solution(POINTS))).max() < 4


def test_a_control_has_its_axes_by_their_names():
    solution, options = drift_dataset(num_points=32, frames=5), {"num_paths": 500, "num_steps": 8}
    usual = feynman_kac(drift_problem(), POINTS, control=solution, rng=0, **options)
    for axes in (("time", "y", "x"), ("y", "x", "time")):
        turned = solution.transpose(*axes).isel(time=slice(None, None, -1))
        again = feynman_kac(drift_problem(), POINTS, control=turned, rng=0, **options)
        np.testing.assert_array_equal(again.mean, usual.mean)
    other = solution.rename(x="v", y="u_")  # names that say nothing count in their order
    np.testing.assert_array_equal(
        feynman_kac(drift_problem(), POINTS, control=other, rng=0, **options).mean, usual.mean
    )


def test_control_works_for_plain_callables_alike():
    slow = ConvectionDiffusion(lambda x, t: np.broadcast_to([0.3, -0.2], x.shape), wave, 0.1, dim=2)
    options = {"num_paths": 500, "num_steps": 8, "control": drift_dataset()}
    a, b = (feynman_kac(p, POINTS, **options) for p in (slow, drift_problem()))
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-11)
    np.testing.assert_allclose(a.standard_error, b.standard_error, rtol=1e-8)


@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"dtype": "float32"}])
def test_sobol_paths_meet_the_closed_form_with_an_honest_error(options):
    """The spread of replicates predicts the error: the mean of z² over 40 runs and 6 points is about one."""
    exact, z = drift_solution(POINTS), []
    for seed in range(40):
        sampling = Sampling(qmc=True, **options)
        estimate = feynman_kac(drift_problem(), POINTS, num_paths=16 * 256, num_steps=4, sampling=sampling, rng=seed)
        z.append(zscores(estimate, exact))
    assert estimate.replicates == 16
    # t with 15 degrees of freedom: mean square 15 / 13; 240 values give it a deviation of about 0.12.
    assert abs(np.mean(np.square(z)) - 15 / 13) < 4 * 0.15
    assert abs(np.mean(z)) < 4 / np.sqrt(len(z))  # points of one run share their scrambles


@pytest.mark.filterwarnings("ignore::pdekit.paths.estimate.BiasWarning")
def test_sobol_paths_cut_the_error_of_a_smooth_problem():
    problem = ConvectionDiffusion(swirl, wave, 0.1)
    plain = feynman_kac(problem, POINTS, num_paths=2**16, num_steps=32)
    quasi = feynman_kac(problem, POINTS, num_paths=2**16, num_steps=32, sampling=Sampling(qmc=True))
    assert quasi.num_paths == 2**16
    ratio = (plain.standard_error / quasi.standard_error) ** 2
    assert np.exp(np.log(ratio).mean()) > 5  # the shear mixes coordinates; at constant drift it is 3,000
    error = np.hypot(plain.standard_error, quasi.standard_error)
    assert np.abs((plain.mean - quasi.mean) / error).max() < 4
    met = feynman_kac(problem, POINTS, num_steps=32, sampling=Sampling(qmc=True), tolerance=Tolerance(atol=2e-3))
    low, high = met.confidence_interval()
    assert (high - low).max() <= 4e-3


def test_a_tolerance_is_met_with_the_stated_confidence():
    """Coverage over 200 runs: with 95% confidence at most 21 misses are likely (binomial, p < 1e-3)."""
    exact = drift_solution(POINTS[:1])
    misses = 0
    for seed in range(200):
        estimate = feynman_kac(drift_problem(), POINTS[:1], num_steps=1, tolerance=Tolerance(atol=0.02), rng=seed)
        low, high = estimate.confidence_interval()
        assert (high - low)[0] <= 0.04
        misses += int(abs(estimate.mean[0] - exact[0]) > 0.02)
    assert misses <= 21


def test_a_relative_tolerance_is_met_at_every_point():
    estimate = feynman_kac(
        drift_problem(), POINTS, num_steps=1, tolerance=Tolerance(rtol=0.05, atol=1e-3, confidence=0.99)
    )
    low, high = estimate.confidence_interval(0.99)
    assert (0.5 * (high - low) <= np.maximum(1e-3, 0.05 * np.abs(estimate.mean))).all()
    with pytest.warns(RuntimeWarning, match="the tolerance is not met; 10,000 paths leave errors"):
        capped = feynman_kac(drift_problem(), POINTS, num_steps=1, tolerance=Tolerance(atol=1e-9, max_paths=10_000))
    assert capped.num_paths == 10_000


def test_without_noise_the_characteristic_is_followed_at_fourth_order():
    problem = ConvectionDiffusion(swirl, wave, 0.0)
    reference = characteristics(problem, POINTS, num_steps=1024)
    steps = np.array([16, 32, 64])
    errors = [np.abs(characteristics(problem, POINTS, num_steps=int(n)) - reference).max() for n in steps]
    assert abs(np.polyfit(np.log(1.0 / steps), np.log(errors), 1)[0] - 4) < 0.2
    estimate = feynman_kac(problem, POINTS, num_steps=32)
    assert (estimate.standard_error == 0).all()
    assert np.abs(estimate.mean - wave(reference)).max() < 10 * np.abs(estimate.bias_estimate).max()
    slow = ConvectionDiffusion(lambda x, t: swirl(x, t), wave, 0.0, dim=2)
    np.testing.assert_allclose(
        characteristics(slow, POINTS, num_steps=16), characteristics(problem, POINTS, num_steps=16), atol=1e-13
    )


def test_one_point_and_one_step():
    estimate = feynman_kac(drift_problem(), [[0.1, 0.2]], num_paths=2, num_steps=1)
    assert estimate.mean.shape == (1,)
    assert np.isfinite(estimate.standard_error).all()


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ([[0.1, 0.2]], {"num_paths": 0}, "num_paths: expected a whole number of at least 2"),
        ([[0.1, 0.2]], {"num_paths": 2, "sampling": Sampling(antithetic=True)}, "num_paths: expected .* at least 4"),
        ([[0.1, 0.2]], {"num_steps": 0}, "num_steps: expected a whole number of at least 1"),
        ([[0.1, 0.2]], {"scheme": "milstein"}, "scheme: expected one of euler, heun, got 'milstein'"),
        ([[0.1, 0.2]], {"sampling": Sampling(increments="two_point")}, "expected scheme='euler'"),
        ([[0.1, 0.2]], {"t0": 1.5}, "t0: expected a time before the horizon"),
        ([[0.1, 0.2]], {"num_steps": 3, "bias": True}, "expected a multiple of 2"),
        ([[0.1, 0.2]], {"control": xr.Dataset({"v": 1.0})}, "control: expected a dataset with u"),
        ([0.1, 0.2], {}, r"points: expected shape \(P, 2\)"),
        (np.empty((0, 2)), {}, r"points: expected shape \(P, 2\) with P >= 1"),
        ([[0.1, np.nan]], {}, "points: expected finite coordinates"),
        ([["0.1", "0.2"]], {}, "points: expected real numbers, got dtype <U3"),
        ([[0.1, 0.2]], {"num_paths": 100.5}, "num_paths: expected a whole number of at least 2, got 100.5"),
        ([[0.1, 0.2]], {"num_paths": True}, "num_paths: expected a whole number of at least 2, got True"),
        ([[0.1, 0.2]], {"num_paths": np.inf}, "num_paths: expected a whole number of at least 2, got inf"),
        ([[0.1, 0.2]], {"num_steps": "64"}, "num_steps: expected a whole number of at least 1, got '64'"),
        ([[0.1, 0.2]], {"num_steps": np.nan}, "num_steps: expected a whole number of at least 1, got nan"),
        ([[0.1, 0.2]], {"scheme": ["heun"]}, r"scheme: expected one of euler, heun, got \['heun'\]"),
        ([[0.1, 0.2]], {"bias": 2}, "bias: expected True or False, got 2"),
        ([[0.1, 0.2]], {"tolerance": 1e-3}, "tolerance: expected a pdekit.Tolerance, got 0.001"),
        ([[0.1, 0.2]], {"sampling": "qmc"}, "sampling: expected a pdekit.Sampling, got 'qmc'"),
        ([[0.1, 0.2]], {"control": np.zeros((8, 8))}, "control: expected what solve returned, .* got ndarray"),
        ([[0.1, 0.2]], {"t0": "0"}, "t0: expected a time before the horizon 1, got '0'"),
        ([[0.1, 0.2]], {"t0": np.nan}, "t0: expected a time before the horizon 1, got nan"),
        ([[0.1, 0.2]], {"t0": -np.inf}, "t0: expected a time before the horizon 1, got -inf"),
        ([[0.1, 0.2]], {"first_point": -1}, "first_point: expected a whole number of at least 0, got -1"),
        ([[0.1, 0.2]], {"rng": -1}, "rng: expected a whole number of at least 0 or a numpy Generator, got -1"),
        ([[0.1, 0.2]], {"rng": 1.5}, "rng: expected a whole number of at least 0 or a numpy Generator, got 1.5"),
        ([[0.1, 0.2]], {"rng": "seed"}, "rng: expected a whole number of at least 0 .*, got 'seed'"),
    ],
)
def test_bad_arguments_get_one_clear_line(points, options, message):
    with pytest.raises(ValueError, match=message) as error:
        feynman_kac(drift_problem(), points, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sampling(qmc=True, increments="two_point"), "expected gaussian with qmc=True"),
        (lambda: Sampling(increments="levy"), "increments: expected one of gaussian, two_point"),
        (lambda: Sampling(dtype="float16"), "dtype: expected float64 or float32"),
        (lambda: Tolerance(), "tolerance: expected atol or rtol, got neither"),
        (lambda: Tolerance(atol=1e-3, max_paths=1), "max_paths: expected a whole number of at least 4"),
        (lambda: Tolerance(atol=-1.0), "atol: expected a positive number"),
        (lambda: Tolerance(rtol=1e-3, confidence=1.0), "confidence level: expected a number between 0 and 1"),
        (lambda: Tolerance(rtol=1e-3, confidence="0.9"), "confidence level: expected a number .* got '0.9'"),
        (lambda: Tolerance(rtol=1e-3, confidence=np.nan), "confidence level: expected a number .* got nan"),
        (lambda: Tolerance(rtol="1e-3"), "rtol: expected a positive number, got '1e-3'"),
        (lambda: Tolerance(atol=np.nan), "atol: expected a positive number, got nan"),
        (lambda: Tolerance(atol=np.inf), "atol: expected a positive number, got inf"),
        (lambda: Tolerance(atol=True), "atol: expected a positive number, got True"),
        (lambda: Tolerance(atol=1e-3, max_paths=np.inf), "max_paths: expected a whole number .* got inf"),
        (lambda: Sampling(qmc="yes"), "qmc: expected True or False, got 'yes'"),
        (lambda: Sampling(antithetic=1), "antithetic: expected True or False, got 1"),
        (lambda: Sampling(increments=None), "increments: expected one of gaussian, two_point, got None"),
        (
            lambda: Control(np.arange(2.0), np.zeros((3, 8, 8))),
            "control: expected as many times as frames, got 2 and 3",
        ),
        (lambda: Control(np.zeros(2), np.zeros((2, 8))), "control: expected finite times that increase"),
        (lambda: Control(np.arange(2.0), np.zeros(2)), r"control: expected times .*, got \(2,\), \(2,\)"),
        (lambda: Control(np.arange(2.0), np.full((2, 8), np.nan)), "control: expected a finite solution u"),
        (lambda: Control(np.arange(2.0), np.zeros((2, 8)) + 1j), "control: u: expected real numbers"),
        (lambda: Control(np.arange(2.0), np.zeros((2, 8)), hessian=2), "hessian: expected True or False, got 2"),
    ],
)
def test_options_say_what_they_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    plain = feynman_kac(drift_problem(), POINTS, num_paths=300, num_steps=4, rng=1, t0=0.5)
    numpy = feynman_kac(
        drift_problem(),
        POINTS,
        num_paths=np.int32(300),
        num_steps=4.0,
        rng=np.int64(1),
        t0=np.float32(0.5),
        bias=np.bool_(False),
    )
    np.testing.assert_array_equal(plain.mean, numpy.mean)
    assert isinstance(numpy.num_steps, int)
    assert Tolerance(atol=np.float32(0.5), max_paths=1e4).max_paths == 10_000


def test_paths_that_run_away_are_reported():
    problem = ConvectionDiffusion(lambda x, t: 1e200 * x**3, lambda x: x[..., 0], 0.1, dim=1)
    with np.errstate(over="ignore"), pytest.raises((ValueError, FloatingPointError), match="finite"):
        feynman_kac(problem, [[1.0]], num_paths=10, num_steps=4)


LONG_RUN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands on SIGINT ignored
import numpy as np
from pdekit.problem import ConvectionDiffusion
from pdekit.paths.sampler import Tolerance, feynman_kac
from pdekit.paths.samples import Sampling
from pdekit.paths.control import Control
from pdekit.equation.solver import solve
problem = ConvectionDiffusion(np.ones((2, 8, 8)), np.ones((8, 8)), 0.1)
feynman_kac(problem, [[0.0, 0.0]], num_paths=512, num_steps=8)
print("ready", flush=True)
try:
    feynman_kac(problem, [[0.0, 0.0]], num_paths=10**9, num_steps=1024)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_stops_a_long_run_at_once():
    process = subprocess.Popen([sys.executable, "-c", LONG_RUN], stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120.0, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        start = time.perf_counter()
        assert process.stdout.readline() == "interrupted\n"
        assert time.perf_counter() - start < 1.0
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def test_an_estimate_prints_its_errors():
    estimate = Estimate(np.array([1.23456]), np.array([0.01]), 100, 8, "heun")
    assert "1.23456 ± 0.01" in repr(estimate)
    assert "covers sampling only, not the time-step bias" in repr(estimate)
    known = Estimate(np.array([1.0]), np.array([0.1]), 100, 8, "heun", np.array([0.5]), np.array([0.0]))
    assert "covers sampling and time-step bias" in repr(known)
    np.testing.assert_allclose(np.ravel(known.confidence_interval(0.95)), [0.5 - 0.196, 1.0 + 0.196], atol=1e-3)
    with pytest.raises(ValueError, match="total_error: expected an estimate made with bias=True"):
        estimate.total_error()


CONVERGING = ConvectionDiffusion(
    0.3 + 0.8 * np.sin(TAU * np.arange(16) / 16)[None], lambda x: np.cos(TAU * x[..., 0]), 0.2
)
LINE = np.arange(40)[:, None] / 40


@pytest.fixture(scope="module")
def converging_solution():
    return solve(CONVERGING, num_points=80, dt=4e-3, times=np.linspace(0.0, 1.0, 33))


@pytest.mark.parametrize(("num_steps", "hessian"), [(16, None), (64, None), (64, True)])
def test_an_interval_with_the_bias_in_it_covers_u(converging_solution, num_steps, hessian):
    """Without it 0.49, 0.95 and 0.74 of the points were covered at five times as many paths; 80 here, so ± 0.05."""
    control = {} if hessian is None else {"control": Control.from_solution(converging_solution, hessian=hessian)}
    exact, covered = converging_solution.u[0].values[::2], []
    for seed in range(2):
        options = {"num_paths": 20_000 if hessian is None else 4_000, "num_steps": num_steps, "rng": seed}
        estimate = feynman_kac(CONVERGING, LINE, bias=True, **options, **control)
        low, high = estimate.confidence_interval()
        covered.append((low <= exact) & (exact <= high))
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize(("num_steps", "controlled"), [(8, False), (16, True)])
def test_a_bias_that_the_interval_lacks_is_told(converging_solution, num_steps, controlled):
    control = {"control": Control.from_solution(converging_solution, hessian=True)} if controlled else {}
    with pytest.warns(BiasWarning, match=r"confidence_interval\(\) does not contain: pass bias=True"):
        feynman_kac(CONVERGING, LINE, num_paths=20_000, num_steps=num_steps, **control)


def test_no_bias_is_told_of_where_there_is_none():
    """Constant F has none, and 16 blocks of plain paths on 64 steps cannot show theirs."""
    for seed in range(10):
        feynman_kac(drift_problem(), POINTS, num_paths=20_000, num_steps=4, rng=seed)
        feynman_kac(CONVERGING, LINE[::8], num_paths=4_096, num_steps=64, rng=seed)


def test_a_second_doubling_widens_what_the_first_understates():
    """By the order the bias is change / (2^p - 1); slow decay and an accidentally small first change are found out."""
    exact, zero = np.array([0.3, -0.6]), np.zeros(2)
    bias, error, understated = bias_from_doublings(exact, zero, zero, zero, 2)
    np.testing.assert_allclose(bias, exact / 3)
    assert understated == 0.0
    assert (error == 0).all()
    # order 1 where 2 is declared: the two changes are 1 and 2 times what the bias is
    slow = np.array([0.4, -0.2])
    bias, error, understated = bias_from_doublings(slow, zero, (2 - 4) * slow, zero, 2)
    assert (np.abs(bias) + error >= np.abs(slow) - 1e-12).all()
    assert 2.0 <= understated < 2.3
    bias, error, understated = bias_from_doublings(1e-3 * slow, zero, 4 * slow, zero, 2)
    assert (error >= np.abs(slow) / 3).all()
    assert understated > 100
    noisy = bias_from_doublings(exact, zero + 0.01, np.array([0.05, -0.05]), zero + 0.05, 2)
    np.testing.assert_allclose(noisy[1], 0.01 / 3)


def test_a_rough_velocity_on_few_steps_is_told_and_its_bias_widened():
    nodes = np.random.default_rng(3).uniform(-1, 1, (2, 16, 16))
    rough = ConvectionDiffusion(nodes, wave, 0.1)
    fine = feynman_kac(rough, POINTS, num_paths=10_000, num_steps=256, rng=5)
    with pytest.warns(BiasWarning, match="does not follow the weak order 2 between 4 and 16 steps"):
        coarse = feynman_kac(rough, POINTS, num_paths=20_000, num_steps=16, bias=True)
    assert (np.abs(coarse.mean - fine.mean) < 3 * np.hypot(coarse.total_error(), fine.standard_error)).all()


def test_two_calls_are_independent_and_each_can_be_repeated():
    options = {"num_paths": 500, "num_steps": 4}
    a, b = (sampler.feynman_kac(drift_problem(), POINTS, **options) for _ in range(2))
    assert (a.mean != b.mean).all()
    assert f"rng={a.seed}" in repr(a)
    generator = np.random.default_rng(4)
    for rng in (a.seed, 7, np.random.SeedSequence(3, spawn_key=(1,)), generator, generator):
        first = feynman_kac(drift_problem(), POINTS, rng=rng, **options)
        again = feynman_kac(drift_problem(), POINTS, rng=first.seed, **options)
        np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(a.mean, feynman_kac(drift_problem(), POINTS, rng=a.seed, **options).mean)


def test_moments_equal_numpy_even_where_the_spread_is_tiny():
    samples = 1e6 + np.random.default_rng(0).normal(size=(3, 1000))
    moments = Moments(3)
    for part in (samples[:, :512], samples[:, 512:]):
        moments.add(block_moments(part), part.shape[1])
    np.testing.assert_allclose(moments.mean, samples.mean(1), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, samples.var(1, ddof=1), rtol=1e-7)


def test_a_relative_tolerance_on_a_constant_is_met_at_once():
    nothing = ConvectionDiffusion(np.zeros((2, 8, 8)), np.zeros((8, 8)), 0.1)
    estimate = feynman_kac(nothing, [[0.2, 0.3]], num_steps=1, tolerance=Tolerance(rtol=1e-3))
    assert estimate.mean[0] == 0.0
    assert estimate.standard_error[0] == 0.0


def test_more_quasi_random_paths_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"num_paths: expected at most .* with qmc=True, got 50,000,000"):
        feynman_kac(drift_problem(), POINTS[:1], num_paths=50_000_000, num_steps=2, sampling=Sampling(qmc=True))


@pytest.mark.parametrize(("continuation", "order"), [("bicubic", 4), ("bilinear", 2)])
def test_without_noise_the_time_step_error_is_the_true_one(continuation, order):
    """One step, too: nothing is compared with itself. Bilinear kinks make the order, and so the estimate, rough."""
    nodes = np.random.default_rng(6).uniform(-0.4, 0.4, (2, 4, 4))
    problem = ConvectionDiffusion(
        GridVelocity(nodes, continuation), lambda x: np.sin(2 * np.pi * x[..., 0] + x[..., 1]), 0.0
    )
    points = np.random.default_rng(7).uniform(size=(200, 2))
    truth = feynman_kac(problem, points, num_steps=1024).mean
    for steps in (1, 5, 16):
        estimate = feynman_kac(problem, points, num_steps=steps)
        true_error, told = estimate.mean - truth, estimate.bias_estimate
        assert 0.4 < np.sqrt(np.mean(told**2) / np.mean(true_error**2)) < 2.5, (steps, order)
