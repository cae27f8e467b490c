"""A gradient: as a multiple of a solve, and beside JAX's of a scan that is checkpointed by hand.

The problem is the smooth one of `studies/work_precision.py`, 128², with 992 steps of RK4 or as many of AB4, and the
tolerance of the Krylov method that gives what these steps do. Prints CPU seconds, which a busy machine does not change
much, and the memory above that of the forward solve; nothing here asserts a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from pdekit import ConvectionDiffusion, solve
from pdekit.equation.adjoint import solve_and_pull
from pdekit.equation.sensitivity import Gradients
from pdekit.field import node_points
from pdekit.numerics.spectral import truncated, wavenumbers
from studies.work_precision import Symbols, smooth_terminal, smooth_velocity

N, STEPS, SEGMENT = 128, 992, 31
P1 = ConvectionDiffusion(smooth_velocity(node_points(N, 2)), smooth_terminal, 0.1)
COTANGENT = np.random.default_rng(0).standard_normal((N, N))
WAYS = {
    "spectral_rk4": {"dt": 1.0 / STEPS},
    "spectral_ab4": {"dt": 1.0 / STEPS},
    "spectral_krylov": {"rtol": 1e-8},
}


def cpu_seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The least of some calls, after one that compiles."""
    run()
    best = np.inf
    for _ in range(repeats):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best


def memory(run: Callable[[], Any]) -> float:
    """MB that the process grows by at most, looked at every 2 ms."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    def watch() -> None:
        while not done.is_set():
            found.append(resident())
            time.sleep(0.002)

    done, found = threading.Event(), [resident()]
    watching = threading.Thread(target=watch)
    watching.start()
    run()
    done.set()
    watching.join()
    return max(found) - found[0]


def gradient(method: str) -> Gradients:
    _, pull = solve_and_pull(P1, num_points=N, method=method, padded=False, **WAYS[method])
    return pull(COTANGENT)


@pytest.fixture(autouse=True)
def _one_thread():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.mark.parametrize("method", WAYS)
def test_a_gradient(method):
    options = {"num_points": N, "method": method, "times": [0.0], "progress": False, **WAYS[method]}
    forward = cpu_seconds(partial(solve, P1, **options))
    taken = cpu_seconds(partial(gradient, method))
    grown = memory(partial(gradient, method))
    print(f"\n{method:16s} gradient {taken:.3f} s, {taken / forward:.2f} solves; {grown:.0f} MB")


def test_jax():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    jax.config.update("jax_enable_x64", True)
    at, shape, dt = Symbols.of(P1, N), (N, N), 1.0 / STEPS
    half = jnp.exp(jnp.asarray(at.diffusion) * dt / 2)
    full, derivatives = half**2, [jnp.asarray(d) for d in at.derivatives]
    kept = (N - 1) // 3
    mask = jnp.asarray(
        np.logical_and.reduce(
            [np.abs(k) < 2.0 * np.pi * (kept + 0.5) for k in np.broadcast_arrays(*wavenumbers(shape))]
        )
    )

    def objective(f: Any, u: Any) -> Any:
        def slope(h: Any) -> Any:
            return mask * jnp.fft.rfftn(sum(f[c] * jnp.fft.irfftn(d * h, s=shape) for c, d in enumerate(derivatives)))

        def step(h: Any, _: Any) -> Any:
            k1 = slope(h)
            k2 = slope(half * (h + dt / 2 * k1))
            k3 = slope(half * h + dt / 2 * k2)
            k4 = slope(full * h + dt * half * k3)
            return full * h + dt / 6 * (full * k1 + 2 * half * (k2 + k3) + k4), None

        @jax.checkpoint
        def segment(h: Any, _: Any) -> Any:
            return jax.lax.scan(step, h, None, length=SEGMENT)

        h, _ = jax.lax.scan(segment, mask * jnp.fft.rfftn(u), None, length=STEPS // SEGMENT)
        return (jnp.asarray(COTANGENT) * jnp.fft.irfftn(h, s=shape)).sum()

    f, u = jnp.asarray(at.velocity), jnp.asarray(at.terminal)
    forward, backward = jax.jit(objective), jax.jit(jax.grad(objective, argnums=(0, 1)))
    jax.block_until_ready(forward(f, u))
    taken = cpu_seconds(lambda: jax.block_until_ready(backward(f, u)))
    grown = memory(lambda: jax.block_until_ready(backward(f, u)))
    own = gradient("spectral_rk4").velocity
    # by the 2/3 rule F has no modes that would alias
    theirs = truncated(np.asarray(backward(f, u)[0]), (N - 1 - 2 * kept,) * 2)
    far = np.abs(own - theirs).max() / np.abs(theirs).max()
    print(f"\nJAX              gradient {taken:.3f} s; {grown:.0f} MB; ours differs by {far:.1e}")
