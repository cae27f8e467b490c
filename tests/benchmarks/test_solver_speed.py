"""The solver by itself: seconds an evaluation of F·∇u, the share of its transforms, threads, and the first call.

Against other programs it is raced by `studies/work_precision.py`. Prints; nothing here asserts a time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np
import pytest
from scipy import fft

from pdekit import ConvectionDiffusion, solve
from pdekit.equation.operator import SpectralOperator, available_backends
from pdekit.field import node_points
from studies.work_precision import smooth_terminal, smooth_velocity

P1 = ConvectionDiffusion(smooth_velocity(node_points(8, 2)), smooth_terminal, 0.1)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The least wall time of some calls, after one that compiles."""
    run()
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


@pytest.fixture
def threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("n", [128, 256, 512, 1024, 2048])
def test_an_evaluation(n, threads):
    """With F of all modes, so that products take n nodes; the transforms alone are SciPy's of the same sizes."""
    field = np.random.default_rng(0).standard_normal((n, n))
    velocity = np.random.default_rng(1).standard_normal((2, n, n))
    print(f"\n{n}²: milliseconds an evaluation")
    for library in available_backends():
        operator = SpectralOperator((n, n), fft=library)
        u, f = operator.to_modes(field), operator.prepare(velocity)
        out = np.empty_like(u)
        took = []
        for count in (1, 2):
            threads(count)
            took.append(seconds(partial(operator.evaluate, u, f, out), 20))
        print(f"  {library:8s} {1e3 * took[0]:8.3f}   two threads {1e3 * took[1]:8.3f}   {took[0] / took[1]:.2f}x")
    hat = fft.rfft2(field)
    transforms = 2 * seconds(lambda: fft.irfft2(hat, s=(n, n)), 20) + seconds(lambda: fft.rfft2(field), 20)
    print(f"  three full transforms of SciPy {1e3 * transforms:8.3f}")


@pytest.mark.parametrize(("n", "steps"), [(128, 500), (512, 40)])
def test_a_step(n, steps):
    print(f"\n{n}²: milliseconds a step")
    for method in ("spectral_rk4", "spectral_ab4", "semi_lagrangian"):
        short = ConvectionDiffusion(P1.velocity, smooth_terminal, 0.1, horizon=steps / (8 * n))
        took = seconds(lambda m=method, p=short: solve(p, num_points=n, dt=1 / (8 * n), method=m, progress=False), 3)
        print(f"  {method:16s} {1e3 * took / steps:8.3f}")


@pytest.mark.parametrize("n", [128, 512, 1024])
def test_a_tolerance(n):
    print(f"\nP1 handed out on {n}²")
    for rtol in (1e-4, 1e-8, 1e-12):
        took = seconds(lambda r=rtol: solve(P1, num_points=n, rtol=r, progress=False), 3)
        print(f"  rtol {rtol:g}: {took:.3f} s")


def test_first_call_in_a_new_process():
    code = (
        "import time; t = time.perf_counter(); import numpy as np; from pdekit import ConvectionDiffusion, solve; "
        "i = time.perf_counter() - t; v = np.zeros((2, 8, 8)) + .1; f = np.cos(np.arange(8.) * np.ones((8, 1))); "
        "t = time.perf_counter(); solve(ConvectionDiffusion(v, f, .3), num_points=128, rtol=1e-6); "
        "print(f'{i:.2f} {time.perf_counter() - t:.2f}')"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)  # fills the cache
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    print(f"\nnew process: import pdekit {found[0]} s, first solve {found[1]} s")
