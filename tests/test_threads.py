"""Kernels give the same bits from several Python threads and in forked children, whatever layer numba would choose."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest

from pdekit.runtime import threads
from pdekit.runtime.threads import num_threads, spread

JOBS = """
import multiprocessing, sys, threading
import numpy as np
from pdekit import ConvectionDiffusion, GridVelocity, Sampling, feynman_kac, solve

velocity = GridVelocity(np.random.default_rng(1).uniform(-0.3, 0.3, (2, 8, 8)), "bicubic")
problem = ConvectionDiffusion(velocity, np.random.default_rng(2).normal(size=(8, 8)), 0.2)
slow = ConvectionDiffusion(lambda x, t: velocity(x), problem.terminal, 0.2, dim=2)  # stepped in NumPy

def job(_=None):
    options = {"num_steps": 16, "progress": False, "rng": 0}
    return [
        feynman_kac(problem, [[0.1, 0.2], [0.3, 0.4]], num_paths=20_000, **options).mean,
        feynman_kac(problem, [[0.1, 0.2]], num_paths=4096, sampling=Sampling(qmc=True), **options).mean,
        feynman_kac(slow, [[0.1, 0.2]], num_paths=4096, **options).mean,
        solve(problem, num_points=288, dt=0.5, method="semi_lagrangian", progress=False).u.values,
        solve(problem, num_points=64, dt=0.05, method="spectral_rk4", progress=False).u.values,
    ]

def same(results):
    assert all(np.array_equal(a, b) for result in results for a, b in zip(result, expected, strict=True))

expected = job()

def at_once(n=4):
    results = [None] * n
    def run(i):
        results[i] = job()
    workers = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    same(results)

def forked():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        same(pool.map_async(job, range(3)).get(timeout=60))

def run():
    at_once()
    if sys.platform == "linux":
        forked()
    at_once(2)

run()
print("done")
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_threads_and_forked_children_compute_the_same_bits_on_every_layer(layer):
    """In another process, as a layer can be chosen once only, and as it is the process that dies where this fails."""
    env = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", JOBS], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "done\n", done.stderr


@numba.njit(nogil=True)
def count_visits(first, last, visits):
    for i in range(first, last):
        visits[i] += 1


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("items", [1, 1 << 20])
def test_every_item_is_visited_once(count, items):
    visits = np.zeros(count, dtype=np.int64)
    spread(count_visits, count, visits, items=items)
    assert (visits == 1).all()


def test_a_process_that_gets_no_thread_does_the_work_alone(monkeypatch):
    class Exhausted:
        def submit(self, work):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", Exhausted())
    monkeypatch.setattr(threads, "num_threads", lambda: 4)
    visits = np.zeros(100, dtype=np.int64)
    spread(count_visits, 100, visits, items=1 << 20)
    assert (visits == 1).all()


def test_an_error_in_one_thread_ends_the_others_and_is_raised(monkeypatch):
    monkeypatch.setattr(threads, "num_threads", lambda: 2)
    caller, helped, calls = threading.get_ident(), threading.Event(), []

    def fails_in_the_helper(first, last):
        calls.append(first)
        if threading.get_ident() != caller:
            helped.set()
            raise ZeroDivisionError("in a helper")
        assert helped.wait(60)

    with pytest.raises(ZeroDivisionError, match="in a helper"):
        spread(fails_in_the_helper, 100, items=1 << 20)
    assert len(calls) <= 8


def test_the_number_of_threads_is_numbas(monkeypatch):
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert num_threads() == 1
    finally:
        numba.set_num_threads(before)
    assert num_threads() == before
    monkeypatch.setattr(numba, "threading_layer", lambda: (_ for _ in ()).throw(ValueError("not initialized")))
    assert num_threads() == numba.config.NUMBA_NUM_THREADS


@pytest.mark.skipif(sys.platform != "linux", reason="a forked child is what is tested")
def test_a_child_forked_while_another_thread_compiles_is_not_stuck():
    compiling, go_on = threading.Event(), threading.Event()

    def compile_slowly():
        with numba.core.compiler_lock.global_compiler_lock:
            compiling.set()
            go_on.wait(60)

    compiler = threading.Thread(target=compile_slowly)
    compiler.start()
    assert compiling.wait(60)
    threading.Timer(0.2, go_on.set).start()
    child = multiprocessing.get_context("fork").Process(target=_compiles)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    compiler.join()


def _compiles():
    numba.njit(lambda x: x + 1)(1)
