"""solve(): a convection-diffusion problem in, an xarray.Dataset with its whole history in attributes out."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pdekit.advection import SpectralAdvection
from pdekit.characteristics import characteristics
from pdekit.diagnostics import cell_peclet, courant, max_speed, steepening_rate
from pdekit.problem import ConvectionDiffusion
from pdekit.progress import Progress
from pdekit.semilagrangian import SemiLagrangian
from pdekit.steppers import StepperAB4, StepperDP5, StepperRK4
from pdekit.velocity import RedrawnVelocity, node_points

METHODS = ("spectral_rk4", "spectral_ab4", "spectral_adaptive", "semi_lagrangian", "characteristics")

PECLET_LIMIT = 5.0  # cell Péclet number up to which diffusion resolves the grid scale whatever F is
STEEPENING_LIMIT = 3.0  # γT up to which convection cannot steepen gradients by more than exp(3) = 20


class UnstableError(FloatingPointError):
    """A solve left the bound max|u| <= max|f| that the equation itself obeys."""


class SpectralMethod:
    """The equation on kept Fourier modes, advanced by one of the Lawson steppers."""

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        num_points: int,
        dt: float,
        kind: str,
        fft: str = "auto",
        rtol: float | None = None,
    ) -> None:
        dim = problem.dim
        self.problem = problem
        self.advection = SpectralAdvection(num_points, dim, fft=fft)
        self._velocity: NDArray | None = None
        self._velocity_key: float | int | None = None
        symbol = problem.diffusivity * self.advection.laplacian
        if kind == "spectral_rk4":
            self.stepper: Any = StepperRK4(symbol, self._advance, dt)
        elif kind == "spectral_ab4":
            self.stepper = StepperAB4(symbol, self._advance, dt)
        else:
            self.stepper = StepperDP5(symbol, self._advance, dt, norm=self.norm, rtol=rtol or 1e-6)
        self.order, self.history, self.restore = (
            self.stepper.order,
            self.stepper.history,
            self.stepper.restore,
        )

    def _advance(self, u_hat: NDArray, s: float, out: NDArray) -> None:
        self.advection.evaluate(u_hat, self._velocity_at(self.problem.horizon - s), out)

    def _velocity_at(self, t: float) -> NDArray:
        velocity = self.problem.velocity
        if isinstance(velocity, RedrawnVelocity):
            t = self._step_start  # the step's own interval also at its end, which belongs to the next one
        key: float | int = 0 if self.problem.autonomous else t
        if isinstance(velocity, RedrawnVelocity):
            key = velocity.index(t)
        if key != self._velocity_key:
            nodes = self.problem.velocity_nodes(self.advection.num_points, t)
            self._velocity = self.advection.prepare_velocity(nodes)
            self._velocity_key = key
        assert self._velocity is not None
        return self._velocity

    def start(self, field: NDArray) -> NDArray:
        return self.advection.to_modes(field)

    def field(self, u_hat: NDArray) -> NDArray[np.float64]:
        return self.advection.to_grid(u_hat)

    def norm(self, u_hat: NDArray) -> float:
        return math.sqrt(self.advection.mean_square(u_hat))

    def step(self, u_hat: NDArray, s: float, limit: float = math.inf) -> float:
        if isinstance(self.stepper, StepperDP5):
            return self.stepper.step(u_hat, s, limit)
        self._step_start = self.problem.horizon - s - self.stepper.dt
        return self.stepper.step(u_hat, s)


def choose_method(problem: ConvectionDiffusion, num_points: int) -> tuple[str, str]:
    """The method that "auto" stands for, and why.

    Spectral where diffusion resolves the grid scale (cell Péclet number max|F| h / ν <= 5), or where convection is
    too gentle to create fine scales (γT <= 3, γ of Theorem 2); semi-Lagrangian everywhere else.
    """
    speed, gamma = 0.0, 0.0
    times = [0.0] if problem.autonomous else np.linspace(0.0, problem.horizon, 5, endpoint=False)
    for t in times:
        nodes = problem.velocity_nodes(num_points, float(t))
        speed, gamma = max(speed, max_speed(nodes)), max(gamma, steepening_rate(nodes))
    peclet = cell_peclet(speed, num_points, problem.diffusivity)
    if peclet <= PECLET_LIMIT:
        return "spectral_rk4", f"cell Péclet number {peclet:.2g} <= {PECLET_LIMIT:g}"
    if gamma * problem.horizon <= STEEPENING_LIMIT:
        return "spectral_rk4", f"steepening γT = {gamma * problem.horizon:.2g} <= {STEEPENING_LIMIT:g}"
    return "semi_lagrangian", (
        f"cell Péclet number {peclet:.3g} > {PECLET_LIMIT:g} and steepening γT = {gamma * problem.horizon:.3g}"
        f" > {STEEPENING_LIMIT:g}"
    )


def solve(
    problem: ConvectionDiffusion,
    *,
    num_points: int = 128,
    dt: float = 1e-3,
    method: str = "auto",
    times: Sequence[float] | None = None,
    rtol: float | None = None,
    fft: str = "auto",
    progress: bool | None = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Solve the problem from its terminal condition back to t = 0 on a uniform grid.

    num_points: nodes along each axis.
    dt: step size; shortened a little where it does not divide the horizon. With `rtol` it is the first step only.
    method: "spectral_rk4", "spectral_ab4" (one evaluation a step), "spectral_adaptive" (needs rtol),
        "semi_lagrangian" (keeps max|u| <= max|f|), "characteristics" (sigma = 0: every node is carried along the
        flow, the reference there), or "auto": see `choose_method`; with rtol, spectral means adaptive.
    times: problem times t in [0, T] to keep, rounded to the nearest step; default (0, T).
    rtol: tolerance of the adaptive method.
    fft: "auto", "rocket", "scipy" or "fftw".
    progress: show a progress bar; default: on a terminal only.
    seed: recorded in the attributes, for problems drawn at random.

    Returns a Dataset with `u` over (time, x[, y[, z]]), time increasing, and how it was made in `attrs`: sigma, dt,
    num_steps, method and method_reason, fft, continuation, peclet, courant, overshoot, seconds, versions, seed.

    Raises ValueError for arguments that do not fit, `UnstableError` as soon as the solution leaves the bound
    max|u| <= max|f| beyond what an under-resolved grid explains.
    """
    if num_points < 8:
        raise ValueError(f"num_points: expected at least 8, got {num_points}")
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt: expected a positive step, got {dt}")
    reason = "requested"
    if method == "auto":
        method, reason = choose_method(problem, num_points)
        if rtol is not None and method == "spectral_rk4":
            method = "spectral_adaptive"
    _check_method(problem, method, dt, rtol)
    horizon, dim = problem.horizon, problem.dim
    num_steps = max(1, math.ceil(horizon / dt - 1e-9))
    dt = horizon / num_steps
    keep = _kept_steps(times, horizon, num_steps)
    terminal = problem.terminal_nodes(num_points)
    bound = float(np.abs(terminal).max())

    began = time.perf_counter()
    context = _Context(problem, num_points, dt, bound)
    if method == "characteristics":
        frames = _carried(problem, num_points, keep, num_steps)
    else:
        frames, num_steps = _march(context, method, terminal, keep, num_steps, rtol, fft, progress)
    seconds = time.perf_counter() - began

    order = sorted(frames)
    field = np.stack([frames[t] for t in order])
    overshoot = float(np.abs(field).max() / bound - 1.0) if bound > 0 else 0.0
    speed = context.speed()
    attrs: dict[str, Any] = {
        "equation": "du/dt + F.grad u + sigma^2/2 lap u = 0, u(x, T) = f(x)",
        "sigma": problem.sigma,
        "horizon": horizon,
        "dt": dt,
        "num_steps": num_steps,
        "method": method,
        "method_reason": reason,
        "fft": SpectralAdvection(8, dim, fft=fft).fft if method.startswith("spectral") else "scipy",
        "continuation": problem.continuation,
        "peclet": cell_peclet(speed, num_points, problem.diffusivity),
        "courant": courant(speed, num_points, dt),
        "overshoot": max(overshoot, 0.0),
        "seconds": seconds,
        "versions": _versions(),
    }
    if rtol is not None:
        attrs["rtol"] = rtol
    if seed is not None:
        attrs["seed"] = seed
    axes = ("x", "y", "z")[:dim]
    grid = np.arange(num_points) / num_points
    return xr.Dataset(
        {"u": (("time", *axes), field, {"long_name": "solution"})},
        coords={"time": ("time", np.array(order), {"long_name": "problem time t"})}
        | {a: (a, grid, {"long_name": a, "units": "box lengths"}) for a in axes},
        attrs=attrs,
    )


class _Context:
    """What an instability report needs to know."""

    def __init__(self, problem: ConvectionDiffusion, num_points: int, dt: float, bound: float) -> None:
        self.problem, self.num_points, self.dt, self.bound = problem, num_points, dt, bound

    def speed(self) -> float:
        return max_speed(self.problem.velocity_nodes(self.num_points, 0.0))

    def unstable(self, s: float, size: float) -> UnstableError:
        speed, p = self.speed(), self.problem
        return UnstableError(
            f"the solution left its bound max|f| = {self.bound:.3g} at t = {p.horizon - s:.4g} (size {size:.3g}): "
            f"cell Péclet number {cell_peclet(speed, self.num_points, p.diffusivity):.3g}, Courant number "
            f"{courant(speed, self.num_points, self.dt):.3g}; use method='semi_lagrangian', "
            "or a finer grid and a smaller dt, or a larger sigma"
        )


def _check_method(problem: ConvectionDiffusion, method: str, dt: float, rtol: float | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected 'auto' or one of {', '.join(METHODS)}, got {method!r}")
    if method == "spectral_adaptive" and rtol is None:
        raise ValueError("method 'spectral_adaptive': expected rtol, the tolerance that drives it, got None")
    if method != "spectral_adaptive" and rtol is not None:
        raise ValueError(f"rtol drives 'spectral_adaptive' only, got method {method!r}")
    if method == "characteristics" and problem.sigma > 0:
        raise ValueError(f"method 'characteristics': expected sigma = 0, got {problem.sigma:g}")
    if isinstance(problem.velocity, RedrawnVelocity):
        if method in ("spectral_ab4", "spectral_adaptive"):
            raise ValueError(f"a velocity redrawn in time needs a one-step method with fixed dt, got {method!r}")
        ratio = problem.velocity.interval / dt
        if abs(ratio - round(ratio)) > 1e-6 or round(ratio) < 1:
            raise ValueError(
                f"dt: expected a whole fraction of the redrawing interval {problem.velocity.interval:g}, got {dt:g}"
            )


def _kept_steps(times: Sequence[float] | None, horizon: float, num_steps: int) -> list[int]:
    """Step counts (from the terminal time) after which a frame is kept, increasing."""
    wanted = (0.0, horizon) if times is None else tuple(float(t) for t in times)
    if not wanted or min(wanted) < 0 or max(wanted) > horizon * (1 + 1e-12):
        raise ValueError(f"times: expected values in [0, {horizon:g}], got {wanted}")
    return sorted({round((horizon - t) / horizon * num_steps) for t in wanted})


def _march(
    context: _Context,
    kind: str,
    terminal: NDArray,
    keep: list[int],
    num_steps: int,
    rtol: float | None,
    fft: str,
    progress: bool | None,
) -> tuple[dict[float, NDArray], int]:
    problem, n, dt = context.problem, context.num_points, context.dt
    method: Any
    if kind == "semi_lagrangian":
        nodes = problem.velocity_nodes(n, 0.0)
        # an RK4 substep on which F strains by at most a half misses a departure point by less than 1/2000 of the way
        strain = max(steepening_rate(nodes), steepening_rate(-nodes))
        substeps = max(1, math.ceil(2.0 * strain * dt))
        method = SemiLagrangian(problem, num_points=n, dt=dt, substeps=substeps)
    else:
        method = SpectralMethod(problem, num_points=n, dt=dt, kind=kind, fft=fft, rtol=rtol)
    state = method.start(terminal)
    frames: dict[float, NDArray] = {}
    stops = [(k, problem.horizon * k / num_steps) for k in keep]
    end = stops[-1][1]
    s, taken = 0.0, 0
    with Progress(f"{kind}, σ = {problem.sigma:g}", total=max(end, 1e-300), enabled=progress) as bar:
        for k, stop in stops:
            while (taken < k) if rtol is None else (s < stop * (1.0 - 1e-12)):
                try:
                    s += method.step(state, s) if rtol is None else method.step(state, s, stop - s)
                except FloatingPointError as error:
                    raise context.unstable(s, math.nan) from error
                taken += 1
                if rtol is None:
                    s = problem.horizon * taken / num_steps
                size = method.norm(state)
                if not size <= 2.0 * context.bound:  # rms <= max|u| <= max|f|; not finite counts as larger
                    raise context.unstable(s, size)
                bar.update(s)
            field = method.field(state)
            size = float(np.abs(field).max())
            if not size <= 2.0 * context.bound:
                raise context.unstable(s, size)
            frames[problem.horizon - stop] = field if k else terminal.copy()
    return frames, taken


def _carried(problem: ConvectionDiffusion, num_points: int, keep: list[int], num_steps: int) -> dict[float, NDArray]:
    """u(x, t) = f(X_T) along dX = F dt from every node, in `num_steps` RK4 steps a horizon."""
    shape = (num_points,) * problem.dim
    nodes = node_points(num_points, problem.dim)
    frames = {}
    for k in keep:
        t = problem.horizon * (1.0 - k / num_steps)
        ends = characteristics(problem, nodes.reshape(-1, problem.dim), num_steps=k, t0=t) if k else nodes
        frames[t] = problem.evaluate_terminal(ends.reshape(*shape, problem.dim))
    return frames


def _versions() -> str:
    packages = ("itoflow", "numpy", "scipy", "numba", "rocket-fft", "xarray")
    found = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
