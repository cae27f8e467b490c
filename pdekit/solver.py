"""solve(): a convection-diffusion problem in, an xarray.Dataset with its whole history in attributes out."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pdekit.advection import SpectralAdvection
from pdekit.characteristics import characteristics
from pdekit.diagnostics import cell_peclet, courant, max_speed, strain_rates
from pdekit.problem import ConvectionDiffusion
from pdekit.progress import Progress
from pdekit.semilagrangian import SemiLagrangian
from pdekit.spectral import resample
from pdekit.spectral_method import SpectralMethod
from pdekit.storage import Checkpoint, CheckpointError, FileFrames, MemoryFrames, fingerprint
from pdekit.velocity import RedrawnVelocity, node_points

METHODS = ("spectral_rk4", "spectral_ab4", "spectral_adaptive", "semi_lagrangian", "characteristics")

PECLET_LIMIT = 5.0  # cell Péclet number up to which diffusion resolves the grid scale whatever F is
STEEPENING_LIMIT = 3.0  # γT up to which convection cannot steepen gradients by more than exp(3) = 20


class UnstableError(FloatingPointError):
    """A solve left the bound max|u| <= max|f| that the equation itself obeys."""


def choose_method(problem: ConvectionDiffusion, num_points: int) -> tuple[str, str]:
    """The method that "auto" stands for, and why.

    Spectral where diffusion resolves the grid scale (cell Péclet number max|F| h / ν <= 5), or where convection is
    too gentle to create fine scales (γT <= 3, γ of Theorem 2); semi-Lagrangian everywhere else.
    """
    return _choose(problem, num_points, _flow_scales(problem, num_points, with_strain=True))


class _FlowScales(NamedTuple):
    """Largest over the horizon: |F|, the rate at which gradients steepen, the strain in either direction of time.

    Rates that nobody asked for are NaN: they cost as much as some time steps.
    """

    speed: float
    steepening: float
    strain: float


def _flow_scales(problem: ConvectionDiffusion, num_points: int, *, with_strain: bool) -> _FlowScales:
    times = [0.0] if problem.autonomous else np.linspace(0.0, problem.horizon, 6)
    found = []
    for t in times:
        nodes = problem.velocity_nodes(num_points, float(t))
        # Eq. 10 runs from T back to 0, so what steepens gradients is -F (Remark 1)
        low, high = strain_rates(nodes) if with_strain else (math.nan, math.nan)
        found.append((max_speed(nodes), high, max(high, -low)))
    return _FlowScales(*(max(column) for column in zip(*found, strict=True)))


def _choose(problem: ConvectionDiffusion, num_points: int, flow: _FlowScales) -> tuple[str, str]:
    gamma = flow.steepening
    peclet = cell_peclet(flow.speed, num_points, problem.diffusivity)
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
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    frames_to: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Solve the problem from its terminal condition back to t = 0 on a uniform grid.

    num_points: nodes along each axis.
    dt: step size; shortened a little where it does not divide the horizon. With `rtol` it is the first step only.
    method: "spectral_rk4", "spectral_ab4" (one evaluation a step), "spectral_adaptive" (needs rtol),
        "semi_lagrangian" (keeps max|u| <= max|f|), "characteristics" (sigma = 0: every node is carried along the
        flow, the reference there), or "auto": see `choose_method`; with rtol, spectral means adaptive.
    times: problem times t in [0, T] to keep, default (0, T); rounded to the nearest step, but for the adaptive method,
        which meets them exactly.
    rtol: tolerance of the adaptive method.
    fft: "auto", "rocket", "scipy" or "fftw".
    progress: show a progress bar; default: on a terminal only.
    seed: recorded in the attributes, for problems drawn at random.
    checkpoint: restart file, written every `checkpoint_seconds`. Where it exists, the solve continues from it; with
        Fourier modes also with another dt, and with frames in memory also on another grid. It is removed when the
        solve is complete.
    frames_to: NetCDF file that takes the frames as they are computed, so that memory holds one; the Dataset
        returned then reads from it.

    Returns a Dataset with `u` over (time, x[, y[, z]]), time increasing, and how it was made in `attrs`: sigma, dt,
    num_steps, method and method_reason, fft, continuation, peclet, courant, overshoot, seconds, versions, seed.

    Raises ValueError for arguments that do not fit, `CheckpointError` for a restart file that is damaged or belongs to
    another problem or method, `UnstableError` as soon as the solution leaves the bound
    max|u| <= max|f| beyond what an under-resolved grid explains.
    """
    if num_points < 8 or num_points != int(num_points):
        raise ValueError(f"num_points: expected a whole number of at least 8, got {num_points}")
    num_points = int(num_points)
    if problem.dim not in (1, 2, 3):
        raise ValueError(f"solve: expected 1, 2 or 3 space dimensions, got {problem.dim}; feynman_kac takes any")
    library = SpectralAdvection(8, problem.dim, fft=fft).fft
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt: expected a positive step, got {dt}")
    reason = "requested"
    flow = _flow_scales(problem, num_points, with_strain=method in ("auto", "semi_lagrangian"))
    if method == "auto":
        method, reason = _choose(problem, num_points, flow)
        if rtol is not None:
            if method != "spectral_rk4":
                raise ValueError(f"rtol: expected a problem for Fourier modes, but {reason}; give dt alone")
            method = "spectral_adaptive"
    _check_method(problem, method, dt, rtol, checkpoint)
    horizon, dim = problem.horizon, problem.dim
    num_steps = max(1, math.ceil(horizon / dt - 1e-9))
    dt = horizon / num_steps
    stops = _stops(times, horizon, num_steps, exact=rtol is not None)
    shape = (num_points,) * dim
    frames = MemoryFrames(len(stops)) if frames_to is None else FileFrames(frames_to, len(stops), shape)
    terminal = problem.terminal_nodes(num_points)
    bound = float(np.abs(terminal).max())
    context = _Context(problem, num_points, dt, bound, flow)

    began = time.perf_counter()
    restart = None
    if method == "characteristics":
        _carry(problem, num_points, stops, num_steps, frames)
        largest = bound
    else:
        if checkpoint is not None:
            description = fingerprint(problem) | {
                "method": method,
                "times": [t for _, t in stops],
                "frames": "memory" if frames_to is None else "file",
            }
            restart = Checkpoint(checkpoint, description)
        march = _March(context, method, num_steps, rtol, fft)
        largest, num_steps = march.run(terminal, stops, frames, restart, checkpoint_seconds, progress)
    seconds = time.perf_counter() - began

    attrs: dict[str, Any] = {
        "equation": "du/dt + F.grad u + sigma^2/2 lap u = 0, u(x, T) = f(x)",
        "sigma": problem.sigma,
        "horizon": horizon,
        "dt": horizon / num_steps,  # the mean one of an adaptive method
        "num_steps": num_steps,
        "method": method,
        "method_reason": reason,
        "fft": library if method.startswith("spectral") else "scipy",
        "continuation": problem.continuation,
        "peclet": cell_peclet(flow.speed, num_points, problem.diffusivity),
        "courant": courant(flow.speed, num_points, horizon / num_steps),
        "overshoot": max(largest / bound - 1.0, 0.0) if bound > 0 else 0.0,
        "seconds": seconds,
        "versions": _versions(),
    }
    if rtol is not None:
        attrs["rtol"] = rtol
    if seed is not None:
        attrs["seed"] = seed
    grid = np.arange(num_points) / num_points
    stored = np.array([t for _, t in reversed(stops)])
    coords: dict[str, Any] = {"time": ("time", stored, {"long_name": "problem time t"})}
    coords |= {a: (a, grid, {"long_name": a, "units": "box lengths"}) for a in ("x", "y", "z")[:dim]}
    solution = frames.finish(coords, attrs)
    if restart is not None:
        restart.discard()
    return solution


class _Context:
    """What an instability report needs to know."""

    def __init__(
        self, problem: ConvectionDiffusion, num_points: int, dt: float, bound: float, flow: _FlowScales
    ) -> None:
        self.problem, self.num_points, self.dt, self.bound, self.flow = problem, num_points, dt, bound, flow

    def unstable(self, s: float, size: float) -> UnstableError:
        speed, p = self.flow.speed, self.problem
        return UnstableError(
            f"the solution left its bound max|f| = {self.bound:.3g} at t = {p.horizon - s:.4g} (size {size:.3g}): "
            f"cell Péclet number {cell_peclet(speed, self.num_points, p.diffusivity):.3g}, Courant number "
            f"{courant(speed, self.num_points, self.dt):.3g}; use method='semi_lagrangian', "
            "or a finer grid and a smaller dt, or a larger sigma"
        )


def _check_method(problem: ConvectionDiffusion, method: str, dt: float, rtol: float | None, checkpoint: object) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected 'auto' or one of {', '.join(METHODS)}, got {method!r}")
    if method == "spectral_adaptive" and rtol is None:
        raise ValueError("method 'spectral_adaptive': expected rtol, the tolerance that drives it, got None")
    if method != "spectral_adaptive" and rtol is not None:
        raise ValueError(f"rtol drives 'spectral_adaptive' only, got method {method!r}")
    if method == "characteristics" and checkpoint is not None:
        raise ValueError("checkpoint: expected a method that steps through time, got 'characteristics'")
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


def _stops(times: Sequence[float] | None, horizon: float, num_steps: int, *, exact: bool) -> list[tuple[float, float]]:
    """(s, t) of the frames to keep, in the order of s = T - t in which they are computed."""
    wanted = (0.0, horizon) if times is None else tuple(float(t) for t in times)
    if not wanted or min(wanted) < 0 or max(wanted) > horizon * (1 + 1e-12):
        raise ValueError(f"times: expected values in [0, {horizon:g}], got {wanted}")
    if exact:
        return [(horizon - t, t) for t in sorted(set(wanted), reverse=True)]
    steps = sorted({round((horizon - t) / horizon * num_steps) for t in wanted})
    return [(horizon * k / num_steps, horizon * (num_steps - k) / num_steps) for k in steps]


class _March:
    """Steps from the terminal condition to the last kept frame."""

    def __init__(self, context: _Context, kind: str, num_steps: int, rtol: float | None, fft: str) -> None:
        self._context, self._kind, self._num_steps, self._adaptive = context, kind, num_steps, rtol is not None
        problem, n, dt = context.problem, context.num_points, context.dt
        self._method: Any
        if kind == "semi_lagrangian":
            # an RK4 substep on which F strains by at most a half misses the departure point by < 1/2000 of the way
            substeps = max(1, math.ceil(2.0 * context.flow.strain * dt))
            self._method = SemiLagrangian(problem, num_points=n, dt=dt, substeps=substeps)
        else:
            self._method = SpectralMethod(problem, num_points=n, dt=dt, kind=kind, fft=fft, rtol=rtol)

    def run(
        self,
        terminal: NDArray,
        stops: list[tuple[float, float]],
        frames: MemoryFrames | FileFrames,
        restart: Checkpoint | None,
        checkpoint_seconds: float,
        progress: bool | None,
    ) -> tuple[float, int]:
        """Fill the frames; returns the largest |u| among them and the number of steps."""
        method = self._method
        state, s, taken, next_frame, largest = method.start(terminal), 0.0, 0, 0, 0.0
        if restart is not None and (stored := restart.load()) is not None:
            state, s, taken, next_frame, largest = self._restore(*stored, frames)
        saved = time.monotonic()
        label = f"{self._kind}, σ = {self._context.problem.sigma:g}"
        with Progress(label, total=max(stops[-1][0], 1e-300), enabled=progress) as bar:
            for index in range(next_frame, len(stops)):
                stop = stops[index][0]
                while s < stop * (1.0 - 1e-12):
                    s = self._step(state, s, stop)
                    taken += 1
                    bar.update(s)
                    if restart is not None and time.monotonic() - saved >= checkpoint_seconds:
                        self._save(restart, state, s, taken, index, largest, frames)
                        saved = time.monotonic()
                field = method.field(state) if stop else terminal.copy()
                size = float(np.abs(field).max())
                if not size <= 2.0 * self._context.bound:
                    raise self._context.unstable(s, size)
                largest = max(largest, size)
                frames.put(len(stops) - 1 - index, field)
        return largest, taken

    def _step(self, state: NDArray, s: float, stop: float) -> float:
        try:
            if self._adaptive:
                s += self._method.step(state, s, stop - s)
            else:
                self._method.step(state, s)
                s = self._context.problem.horizon * (round(s / self._context.dt) + 1) / self._num_steps
        except FloatingPointError as error:
            raise self._context.unstable(s, math.nan) from error
        size = self._method.norm(state)
        if not size <= 2.0 * self._context.bound:  # rms <= max|u| <= max|f|; not finite counts as larger
            raise self._context.unstable(s, size)
        return s

    def _save(
        self,
        restart: Checkpoint,
        state: NDArray,
        s: float,
        taken: int,
        next_frame: int,
        largest: float,
        frames: MemoryFrames | FileFrames,
    ) -> None:
        history = {f"history_{name}": array for name, array in self._method.history().items()}
        numbers = {"s": s, "taken": taken, "next_frame": next_frame, "largest": largest, "dt": self._context.dt}
        numbers["num_points"] = self._context.num_points
        restart.save({"state": state} | history | frames.arrays(), **numbers)

    def _restore(
        self, arrays: dict[str, NDArray], numbers: dict[str, float], frames: MemoryFrames | FileFrames
    ) -> tuple[NDArray, float, int, int, float]:
        n, s = int(numbers["num_points"]), numbers["s"]
        same_grid = n == self._context.num_points
        steps = s / self._context.dt
        if not self._adaptive and abs(steps - round(steps)) > 1e-6:
            raise CheckpointError(f"expected a dt that divides the time s = {s:g} reached, got {self._context.dt:g}")
        if not same_grid and any(name.startswith("frame_") for name in arrays):
            arrays = {
                k: resample(v, self._context.num_points) if k.startswith("frame_") else v for k, v in arrays.items()
            }
        if numbers["next_frame"] > 0:
            frames.restore(arrays)
        state = arrays["state"] if same_grid else self._method.convert(arrays["state"], n)
        history = {k.removeprefix("history_"): v for k, v in arrays.items() if k.startswith("history_")}
        if not same_grid:
            history = {k: self._method.convert(v, n) if v.ndim else v for k, v in history.items()}
        if self._adaptive or numbers["dt"] == self._context.dt:
            self._method.restore(history)  # with another dt a multistep method starts afresh
        elif self._kind == "semi_lagrangian":
            raise CheckpointError(f"expected dt = {numbers['dt']:g} as in the checkpoint, got {self._context.dt:g}")
        return state, s, int(numbers["taken"]), int(numbers["next_frame"]), numbers["largest"]


def _carry(
    problem: ConvectionDiffusion,
    num_points: int,
    stops: list[tuple[float, float]],
    num_steps: int,
    frames: MemoryFrames | FileFrames,
) -> None:
    """u(x, t) = f(X_T) along dX = F dt from every node, in `num_steps` RK4 steps a horizon."""
    nodes = node_points(num_points, problem.dim)
    for index, (s, t) in enumerate(stops):
        steps = round(s / problem.horizon * num_steps)
        ends = characteristics(problem, nodes.reshape(-1, problem.dim), num_steps=steps, t0=t) if steps else nodes
        frames.put(len(stops) - 1 - index, problem.evaluate_terminal(ends.reshape(nodes.shape)))


@cache
def _versions() -> str:
    packages = ("itoflow", "numpy", "scipy", "numba", "rocket-fft", "xarray")
    found = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
