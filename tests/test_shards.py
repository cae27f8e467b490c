"""Paths on an executor: the same bits as in this process, whoever walks them."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from pdekit import ConvectionDiffusion, GridVelocity, Sampling, Tolerance, compiled, feynman_kac, multilevel, solve
from pdekit.fastmath import cos2pi, sin2pi
from pdekit.runtime.shards import in_order

POINTS = [[0.1, 0.2], [0.7, 0.4], [0.5, 0.5]]


@compiled(dim=2)
def swirl(x, y, t):
    return 0.5 * sin2pi(y) + 0.1 * t, 0.3 * cos2pi(x)


def wave(x):
    return np.sin(2 * np.pi * x[..., 0]) * np.cos(2 * np.pi * x[..., 1])


def rough() -> ConvectionDiffusion:
    return ConvectionDiffusion(GridVelocity(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8))), wave, 0.2)


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.filterwarnings("ignore::pdekit.BiasWarning")
@pytest.mark.filterwarnings("ignore:feynman_kac. the tolerance:RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"bias": True}, marks=pytest.mark.slow),
        {"tolerance": Tolerance(atol=5e-3, max_paths=40_000)},
        {"sampling": Sampling(qmc=True, antithetic=True)},
        {"sampling": Sampling(extrapolate=True), "scheme": "euler"},
    ],
    ids=["bias", "tolerance", "sobol", "extrapolated"],
)
def test_two_processes_walk_the_paths_of_one(processes, monkeypatch, options):
    monkeypatch.setattr("pdekit.paths.simulation._STEPS_PER_CALL", 2**14)  # many batches
    for problem in (rough(), ConvectionDiffusion(swirl, wave, 0.2)):
        one, two = (
            feynman_kac(problem, POINTS, num_paths=9_000, num_steps=8, rng=3, executor=executor, **options)
            for executor in (None, processes)
        )
        for name in ("mean", "standard_error", "bias_estimate", "bias_standard_error"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert (one.num_paths, one.cost) == (two.num_paths, two.cost)


def test_a_control_travels_with_its_paths(processes):
    solution = solve(rough(), num_points=48, dt=0.02, times=np.linspace(0, 1, 5), progress=False)
    one, two = (
        feynman_kac(rough(), POINTS, num_paths=2_000, num_steps=8, rng=3, control=solution, executor=executor)
        for executor in (None, processes)
    )
    np.testing.assert_array_equal(one.mean, two.mean)


def test_the_levels_of_two_processes_are_those_of_one(processes):
    one, two = (multilevel(rough(), POINTS, rmse=0.02, rng=1, executor=e) for e in (None, processes))
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.num_samples, two.num_samples)
    with pytest.raises(ValueError, match="executor: expected None with a level function"):
        multilevel(lambda level, n: np.zeros(6), rmse=0.1, executor=processes)


def test_threads_are_an_executor_too():
    with ThreadPoolExecutor(3) as executor:
        one, two = (
            feynman_kac(rough(), POINTS, num_paths=60_000, num_steps=8, rng=3, executor=e) for e in (None, executor)
        )
    np.testing.assert_array_equal(one.mean, two.mean)
    assert one.cost == two.cost


def test_a_function_that_cannot_travel_is_told(processes, monkeypatch):
    monkeypatch.setattr("pdekit.runtime.shards.dumps", __import__("pickle").dumps)
    problem = ConvectionDiffusion(lambda x, t: 0.1 * x, lambda x: x[..., 0], 0.1, dim=1)
    with pytest.raises(ValueError, match="executor: expected a problem that can be pickled") as error:
        feynman_kac(problem, [[0.5]], num_paths=1_000, num_steps=2, executor=processes)
    assert "\n" not in str(error.value)


class Failing(Executor):
    """Runs jobs at once; the third is lost."""

    def __init__(self, error: Exception) -> None:
        self.count, self.error = 0, error

    def submit(self, function, /, *args, **kwargs):
        self.count += 1
        future: Future = Future()
        if self.count == 3:
            future.set_exception(self.error)
        else:
            future.set_result(function(*args, **kwargs))
        return future


def plus(shared: int, shard: int) -> int:
    return shared + shard


def test_results_come_in_order_and_a_failure_is_not_lost():
    assert list(in_order(None, plus, 1, range(5))) == [1, 2, 3, 4, 5]
    for error, message in (
        (ValueError("no such number"), "no such number"),
        (BrokenExecutor(), "executor: expected workers that live on"),
    ):
        found = in_order(Failing(error), plus, 1, range(10), each=2)
        assert [next(found) for _ in range(4)] == [1, 2, 3, 4]
        with pytest.raises((ValueError, RuntimeError), match=message):
            next(found)
