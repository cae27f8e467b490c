"""Work against precision: seconds until u(x, 0) has an error, for this solver and for programs that users could write.

Three problems with steady velocities: a smooth flow and a rough one in two dimensions, a smooth one in three. Peers are
a loop of some twelve lines in JAX (real transforms, the 2/3 rule, a compiled `fori_loop`) with Lawson's RK4 or ETDRK4,
the same with SciPy, and Exponax; each is tried on several grids with several steps, and the fastest that reaches an
error counts. This solver gets a tolerance and chooses grid and steps itself. All get one thread, compile first, and are
timed in one run; errors are max|u - reference| / max|f| on the nodes that are handed out. JAX and Exponax are in the
extra `peers`; without them only SciPy is raced.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numba
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import fft

from pdekit import ConvectionDiffusion, solve
from pdekit.equation.operator import bandlimit
from pdekit.field import node_points
from pdekit.numerics.spectral import derivative_wavenumbers, laplacian_symbol, resample
from studies.draw.work_precision import draw, report
from studies.lab.reporting import OUT, Out, Smoke, console, one_line_errors, store, tracked

Array = NDArray[np.float64]
Program = Callable[[int], Array]  # number of steps -> u(x, 0) on the program's grid

# Parameters

TAU = 2.0 * np.pi


@dataclass(frozen=True)
class Case:
    """A problem, the nodes it is handed out on, the peers' grids and numbers of steps, and our tolerances."""

    name: str
    problem: ConvectionDiffusion
    num_points: int
    grids: tuple[int, ...]
    steps: tuple[int, ...]
    tolerances: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12)


@dataclass(frozen=True)
class Config:
    repeats: int
    cases: tuple[str, ...]


def main(out: Out = OUT / "work_precision", smoke: Smoke = False) -> None:
    """Race, write work_precision.json, print the times, and draw them."""
    with one_line_errors():
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
        numba.set_num_threads(1)
        config = Config(1, ("smoke",)) if smoke else Config(3, ("smooth", "rough", "cube"))
        report(store(out / "work_precision.json", measure(config), config))
        draw(out / "work_precision.json")
        console.print(f"wrote work_precision.json, .png and .pdf in {out}", soft_wrap=True)


# Problem


def smooth_velocity(x: Array) -> Array:
    a, b = TAU * x[..., 0], TAU * x[..., 1]
    return np.stack([np.sin(a) * np.cos(b) + 0.3, -0.5 * np.cos(a) * np.sin(b) + 0.2 * np.sin(b)])


def smooth_terminal(x: Array) -> Array:
    return np.asarray(np.exp(np.sin(TAU * x[..., 0])) * np.cos(TAU * x[..., 1]))


def cube_velocity(x: Array) -> Array:
    a, b, c = (TAU * x[..., axis] for axis in range(3))
    return 0.5 * np.stack([np.sin(c) + 0.5 * np.cos(b), np.sin(a) + 0.5 * np.cos(c), np.sin(b) + 0.5 * np.cos(a)])


def cube_terminal(x: Array) -> Array:
    a, b, c = (TAU * x[..., axis] for axis in range(3))
    return np.asarray(np.sin(a) * np.cos(b) + 0.5 * np.cos(c))


def cases() -> dict[str, Case]:
    doubling = (60, 90, 130, 200, 300, 450, 700, 1000, 1500, 2200, 3300, 5000)
    smooth = ConvectionDiffusion(smooth_velocity(node_points(8, 2)), smooth_terminal, 0.1)
    rough = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 32, 32))
    cube = ConvectionDiffusion(cube_velocity(node_points(8, 3)), cube_terminal, 0.1)
    return {
        "smoke": Case("a smooth flow, 32²", smooth, 32, (32,), (60, 120), (1e-2, 1e-3)),
        "smooth": Case("a smooth flow, 128²", smooth, 128, (48, 64, 80, 96, 128), doubling),
        "rough": Case(
            "a rough flow, 256²",
            ConvectionDiffusion(rough, smooth_terminal, 0.1),
            256,
            (160, 192, 240),
            doubling[3:-3],
            (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
        ),
        "cube": Case("a smooth flow, 64³", cube, 64, (24, 32, 40, 48), doubling[:-4], (1e-3, 1e-4, 1e-6, 1e-8, 1e-10)),
    }


# Solve: the peers


@dataclass(frozen=True)
class Symbols:
    """What every program of the kind needs on n nodes: F, i k, ½σ²Δ, the modes that the 2/3 rule keeps, and f."""

    velocity: Array
    derivatives: list[NDArray[Any]]
    diffusion: Array
    mask: NDArray[np.bool_]
    terminal: Array

    @classmethod
    def of(cls, problem: ConvectionDiffusion, n: int) -> Symbols:
        ks = derivative_wavenumbers((n,) * problem.dim)
        cut = TAU * ((n - 1) // 3) + 1.0
        mask = np.logical_and.reduce(np.broadcast_arrays(*[np.abs(k) < cut for k in ks]))
        diffusion = problem.diffusivity * laplacian_symbol(n, problem.dim)
        return cls(problem.velocity.nodes(n, 0.0), [1j * k for k in ks], diffusion, mask, problem.terminal_nodes(n))


def with_scipy(problem: ConvectionDiffusion, n: int) -> Program:
    """Lawson's RK4 as one would write it with scipy.fft."""
    at, shape = Symbols.of(problem, n), (n,) * problem.dim

    def slope(h: Array) -> Array:
        gradient = (fft.irfftn(d * h, s=shape) for d in at.derivatives)
        return np.asarray(at.mask * fft.rfftn(sum(f * g for f, g in zip(at.velocity, gradient, strict=True))))

    def run(steps: int) -> Array:
        dt = problem.horizon / steps
        half = np.exp(at.diffusion * dt / 2)
        full = half**2
        h = at.mask * fft.rfftn(at.terminal)
        for _ in range(steps):
            k1 = slope(h)
            k2 = slope(half * (h + dt / 2 * k1))
            k3 = slope(half * h + dt / 2 * k2)
            k4 = slope(full * h + dt * half * k3)
            h = full * h + dt / 6 * (full * k1 + 2 * half * (k2 + k3) + k4)
        return np.asarray(fft.irfftn(h, s=shape))

    return run


def with_jax(problem: ConvectionDiffusion, n: int, *, etd: bool) -> Program:
    """Lawson's RK4, or ETDRK4 with its coefficients by contour integrals (Kassam and Trefethen 2005), in JAX."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    at, shape = Symbols.of(problem, n), (n,) * problem.dim
    f, mask, diffusion = jnp.asarray(at.velocity), jnp.asarray(at.mask), jnp.asarray(at.diffusion)
    derivatives = [jnp.asarray(d) for d in at.derivatives]

    def slope(h: Any) -> Any:
        product = sum(f[c] * jnp.fft.irfftn(d * h, s=shape) for c, d in enumerate(derivatives))
        return mask * jnp.fft.rfftn(product)

    def lawson(h: Any, dt: Any) -> Any:
        half = jnp.exp(diffusion * dt / 2)
        full = half**2

        def step(_: Any, h: Any) -> Any:
            k1 = slope(h)
            k2 = slope(half * (h + dt / 2 * k1))
            k3 = slope(half * h + dt / 2 * k2)
            k4 = slope(full * h + dt * half * k3)
            return full * h + dt / 6 * (full * k1 + 2 * half * (k2 + k3) + k4)

        return step

    def etdrk4(h: Any, dt: Any) -> Any:
        z = dt * diffusion[..., None] + jnp.exp(2j * jnp.pi * (jnp.arange(16) + 0.5) / 16)
        half, full = jnp.exp(diffusion * dt / 2), jnp.exp(diffusion * dt)
        q = dt * jnp.mean((jnp.exp(z / 2) - 1) / z, -1).real
        a = dt * jnp.mean((-4 - z + jnp.exp(z) * (4 - 3 * z + z**2)) / z**3, -1).real
        b = dt * jnp.mean((2 + z + jnp.exp(z) * (-2 + z)) / z**3, -1).real
        c = dt * jnp.mean((-4 - 3 * z - z**2 + jnp.exp(z) * (4 - z)) / z**3, -1).real

        def step(_: Any, h: Any) -> Any:
            k1 = slope(h)
            first = half * h + q * k1
            k2 = slope(first)
            k3 = slope(half * h + q * k2)
            k4 = slope(half * first + q * (2 * k3 - k1))
            return full * h + a * k1 + 2 * b * (k2 + k3) + c * k4

        return step

    @jax.jit
    def loop(u: Any, steps: Any, dt: Any) -> Any:
        h = mask * jnp.fft.rfftn(u)
        h = jax.lax.fori_loop(0, steps, (etdrk4 if etd else lawson)(h, dt), h)
        return jnp.fft.irfftn(h, s=shape)

    start = jnp.asarray(at.terminal)
    return lambda steps: np.asarray(loop(start, steps, problem.horizon / steps))


def with_exponax(problem: ConvectionDiffusion, n: int) -> Program:
    """Exponax's ETDRK4 with the advection term of this equation."""
    import exponax as ex
    import jax
    import jax.numpy as jnp
    from exponax.nonlin_fun import BaseNonlinearFun

    jax.config.update("jax_enable_x64", True)
    dim, f = problem.dim, jnp.asarray(problem.velocity.nodes(n, 0.0))

    class Advection(BaseNonlinearFun):
        derivative: jax.Array

        def __init__(self, derivative: Any) -> None:
            super().__init__(dim, n, dealiasing_fraction=2 / 3)
            self.derivative = derivative

        def __call__(self, u_hat: Any) -> Any:
            return self.fft(jnp.sum(f * self.ifft(self.derivative * u_hat), axis=0, keepdims=True))

    class Stepper(ex.BaseStepper):
        def __init__(self, steps: int) -> None:
            dt = problem.horizon / steps
            super().__init__(num_spatial_dims=dim, domain_extent=1.0, num_points=n, dt=dt, num_channels=1, order=4)

        def _build_linear_operator(self, derivative: Any) -> Any:
            return problem.diffusivity * jnp.sum(derivative**2, axis=0, keepdims=True)

        def _build_nonlinear_fun(self, derivative: Any) -> Any:
            return Advection(derivative)

    start = jnp.asarray(problem.terminal_nodes(n))[None]
    compiled: dict[int, Any] = {}

    def run(steps: int) -> Array:
        if steps not in compiled:
            stepper = Stepper(steps)

            def loop(u: Any) -> Any:
                u_hat = ex.fft(u, num_spatial_dims=dim)
                u_hat = jax.lax.fori_loop(0, steps, lambda _, h: stepper.step_fourier(h), u_hat)
                return ex.ifft(u_hat, num_spatial_dims=dim, num_points=n)

            compiled[steps] = jax.jit(loop)
        return np.asarray(compiled[steps](start))[0]

    return run


def peers() -> dict[str, Callable[[ConvectionDiffusion, int], Program]]:
    found: dict[str, Callable[[ConvectionDiffusion, int], Program]] = {"SciPy, RK4": with_scipy}
    if importlib.util.find_spec("jax"):
        found["JAX by hand, RK4"] = lambda problem, n: with_jax(problem, n, etd=False)
        found["JAX by hand, ETDRK4"] = lambda problem, n: with_jax(problem, n, etd=True)
    if importlib.util.find_spec("exponax"):
        found["Exponax, ETDRK4"] = with_exponax
    return found


# Solve: the race


def timed(run: Callable[[], Array], repeats: int) -> tuple[float, Array]:
    """The least processor time of some calls, after one that compiles; and what it gives. Long calls are timed once."""
    found, best = run(), np.inf
    for _ in range(repeats):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
        if best > 1.0:
            break
    return best, found


def to_tolerance(case: Case, rtol: float) -> Array:
    return np.asarray(solve(case.problem, num_points=case.num_points, rtol=rtol, progress=False).u[0].values)


def race(case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each program, grid and number of steps, and each tolerance of ours."""
    reference = to_tolerance(case, 1e-13)
    largest = float(np.abs(case.problem.terminal_nodes(case.num_points)).max())

    def row(program: str, seconds: float, u: Array, **how: float) -> dict[str, Any]:
        error = float(np.abs(resample(u, case.num_points) - reference).max()) / largest
        return {"case": case.name, "program": program, **how, "seconds": seconds, "error": error}

    for rtol in case.tolerances:
        yield row("pdekit", *timed(partial(to_tolerance, case, rtol), repeats + 2), rtol=rtol)
    band = max(bandlimit(case.problem.velocity.nodes(max(case.grids), 0.0)))
    for name, make in peers().items():
        for n in case.grids:
            if n <= 2 * band:
                continue
            program, last = make(case.problem, n), np.inf
            for steps in case.steps:
                seconds, u = timed(partial(program, steps), repeats)
                if not np.isfinite(u).all():
                    continue
                found = row(name, seconds, u, num_points=n, steps=steps)
                yield found
                if found["error"] > 0.8 * last:
                    break  # the grid's own error is left
                last = found["error"]


def measure(config: Config) -> dict[str, Any]:
    known = cases()
    rows = [row for name in tracked(config.cases, "racing") for row in race(known[name], config.repeats)]
    return {"rows": rows, "cases": [known[name].name for name in config.cases]}


if __name__ == "__main__":
    typer.run(main)
