"""solve(): a convection-diffusion problem in, an xarray.Dataset with its whole history in attributes out."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pdekit.advection import SpectralAdvection, cutoffs
from pdekit.characteristics import characteristics
from pdekit.checks import check_real, check_whole, real_values
from pdekit.diagnostics import cell_peclet, courant
from pdekit.problem import ConvectionDiffusion
from pdekit.progress import Progress
from pdekit.resolution import (
    LARGEST_LOSS,
    LARGEST_OVERSHOOT,
    LARGEST_SMOOTHED_TAIL,
    LARGEST_TAIL,
    LARGEST_VELOCITY_LOSS,
    Flow,
    ResolutionWarning,
    Spectrum,
    growth,
    terminal_spectrum,
    velocity_spectra,
)
from pdekit.semilagrangian import SemiLagrangian
from pdekit.spectral import resample
from pdekit.spectral_method import SpectralMethod
from pdekit.steppers import StepperAB4, StepperRK4
from pdekit.storage import Checkpoint, CheckpointError, FileFrames, MemoryFrames, fingerprint
from pdekit.velocity import RedrawnVelocity, node_points

METHODS = ("spectral_rk4", "spectral_ab4", "spectral_adaptive", "semi_lagrangian", "characteristics")
_AMPLIFICATION: dict[str, Callable[[NDArray], NDArray]] = {
    "spectral_rk4": StepperRK4.amplification,
    "spectral_ab4": StepperAB4.amplification,
}

DIFFUSION_REACH = 1.5  # the highest kept 2πk over sqrt(γ/ν), from which on diffusion ends the cascade on the grid
STEEPENING_LIMIT = 3.0  # γT up to which convection cannot steepen gradients by more than exp(3) = 20
LARGEST_GROWTH = 1.0  # exponent over the march of a mode that should not grow at all
SPEED_MARGIN = 1.25  # met on the way, against what the choice was made on
_CHECKS = 32  # of the tail of u on the way


class UnstableError(FloatingPointError):
    """A solve left the bound max|u| <= max|f| that the equation itself obeys, or is known to leave it."""


def choose_method(problem: ConvectionDiffusion, num_points: int) -> tuple[str, str]:
    """The method that "auto" stands for, and why.

    Spectral where the kept modes hold f, as far as diffusion leaves it, and F, and where either diffusion ends the
    cascade within them, 2πK >= 1.5 sqrt(γ/ν), or convection is too gentle to start one, γT <= 3; semi-Lagrangian
    everywhere else. γ is that of Theorem 2: a mode grows finer at the rate γ at most, and diffusion damps it at the
    rate ν(2πk)². Where the 2/3 of the modes that cost least do not suffice and all of them do, all are kept.

    Largest errors for f between -1 and 1, T = 1, dt = 0.005, without padding, against 2πK / sqrt(γ/ν):

        F                              σ      N   criterion   Fourier modes   semi-Lagrangian
        1-D, 32 rough nodes            0.1    64        1.1           0.75              0.12
                                       0.2    64        2.2           0.023             0.025
        1-D, smooth spreading          0.02   64        0.9           0.082             0.11
                                       0.02  128        1.9           0.008             0.016
        2-D, 32² rough nodes           0.1    64        0.8           0.54              0.088
                                       0.1    96        1.2           0.21              0.029
                                       0.2    64        1.7           0.0025            0.0098
        2-D, 16² bilinear nodes        0.1    64        1.4           0.046             0.038
                                       0.1    96        2.0           0.012             0.015
        2-D, shear of both axes        0.03   64        1.1           0.040             0.027
                                       0.1    32        1.8           0.0012            0.0073
        2-D, smooth in x and t         0.02   48        0.8           0.048             0.058
                                       0.1    24        1.9           0.0049            0.015
        2-D, that shear ∝ sin 5πt      0.05   32        0.6           0.0002            0.022
        3-D, 8³ rough nodes            0.2    16        0.8           0.12              0.065
                                       0.4    16        1.6           0.0002            0.0009

    A flow that goes to and fro undoes what it does: there the criterion, which sees rates alone, is too careful.
    """
    flow = Flow.of(problem, num_points, with_strain=True)
    plan = _Planner(problem, num_points, flow, problem.horizon).plan("auto")
    return plan.method, plan.reason


@dataclass(frozen=True)
class _Plan:
    """How a problem is solved on a grid, and what of it the kept modes cannot hold."""

    method: str
    reason: str
    padded: bool
    terminal_lost: float
    velocity_lost: float


class _Planner:
    """Weighs what modes a method would keep. duration: from T back to the first frame, in which diffusion acts on f."""

    def __init__(self, problem: ConvectionDiffusion, num_points: int, flow: Flow, duration: float) -> None:
        self._problem, self._num_points, self._flow = problem, num_points, flow
        self.damping = problem.diffusivity * duration
        self.terminal: Spectrum = terminal_spectrum(problem, num_points)
        self.velocity = velocity_spectra(problem, num_points, flow.times)
        self.coupled = any(v.beyond(0) > 1e-12 for v in self.velocity)  # F varies in space: modes feed others

    def lost(self, padded: bool) -> tuple[float, float]:
        """Shares of f and F above what is kept."""
        cutoff, velocity_cutoff = cutoffs(self._num_points, padded=padded)
        return self.terminal.beyond(cutoff, self.damping), max(v.beyond(velocity_cutoff) for v in self.velocity)

    def holds(self, padded: bool) -> bool:
        terminal, velocity = self.lost(padded)
        return terminal <= LARGEST_LOSS and velocity <= LARGEST_VELOCITY_LOSS

    def plan(self, method: str) -> _Plan:
        if method != "auto":
            padded = not (method.startswith("spectral") and self.holds(False))
            return _Plan(method, "requested", padded, *self.lost(padded))
        gamma, nu = self._flow.steepening, self._problem.diffusivity
        steepening = gamma * self._problem.horizon
        diffused = 0.0 if gamma <= 0.0 else math.sqrt(gamma / nu) if nu > 0.0 else math.inf
        peclet = f"cell Péclet number {cell_peclet(self._flow.speed, self._num_points, nu):.3g}"
        for padded in (False, True):
            if not self.holds(padded):
                continue
            kept = 2.0 * math.pi * cutoffs(self._num_points, padded=padded)[0]
            cascade = f"2πK = {kept:.3g}, sqrt(γ/ν) = {diffused:.3g}, γT = {steepening:.3g}, {peclet}"
            if kept >= DIFFUSION_REACH * diffused:
                reason = f"diffusion ends the cascade within the grid: {cascade}"
                return _Plan("spectral_rk4", reason, padded, *self.lost(padded))
            if steepening <= STEEPENING_LIMIT:
                reason = f"convection makes no fine scales: {cascade}"
                return _Plan("spectral_rk4", reason, padded, *self.lost(padded))
        terminal, velocity = self.lost(True)
        if self.holds(True):
            reason = f"convection makes scales finer than the grid: {cascade}"
        else:
            reason = f"the modes of the grid lack {terminal:.2g} of f and {velocity:.2g} of F, {peclet}"
        return _Plan("semi_lagrangian", reason, True, terminal, velocity)


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

    Returns a Dataset with `u` over (time, x[, y[, z]]), time increasing, and how it was made in `attrs`: sigma,
    horizon, dt (the mean one where it changed on the way), num_steps taken, method and method_reason, continuation,
    peclet, courant, overshoot (of max|f| by a frame), seconds (of all calls that took part), versions, rtol, seed, and

    - warnings: all that was warned about, or "none";
    - tail: the largest share of the upper third of the modes in u's variation, watched some thirty times on the way,
      from when diffusion has damped f's own modes there; above 0.01 (0.002 where steps interpolate) errors of some per
      cent were measured, at that share errors below 0.02;
    - terminal_lost: share of f's modes that are not kept, as far as diffusion leaves them until the first frame before
      T; velocity_lost: of F's, the largest of some times. Functions are looked at on lines finer than the grid;
    - of Fourier modes: fft, cutoff (highest |k| kept) and padded: 1 where two thirds of the nodes' own modes do not
      suffice, so that all are kept and products take 3/2 as many nodes, 0 otherwise;
    - growth, of a fixed step with a stability region: exponent of the mode that grows most over the march, with F
      frozen where it is largest.

    Warns with `ResolutionWarning` where the modes lost, the tail, an overshoot, the growth or the largest |F| met on
    the way say that the grid or the step does not resolve u, and where F or f differ outside the box
    (`ConvectionDiffusion.check_periodic`); `warnings.simplefilter("error", ResolutionWarning)` makes that an error.
    Not measured: the error of the time step itself within its region of stability; compare two steps.

    Raises ValueError for arguments that do not fit and functions that jump at the box's edge, `CheckpointError` for a
    restart file that is damaged or belongs to another problem or method, `UnstableError` before the first step where it
    is known that a mode would grow, and as soon as the solution leaves the bound max|u| <= max|f| beyond what an
    under-resolved grid explains.
    """
    num_points = check_whole("num_points", num_points, 8)
    if problem.dim not in (1, 2, 3):
        raise ValueError(f"solve: expected 1, 2 or 3 space dimensions, got {problem.dim}; feynman_kac takes any")
    library = SpectralAdvection(8, problem.dim, fft=fft).fft
    dt = check_real("dt", dt, "a positive step")
    if rtol is not None:
        rtol = check_real("rtol", rtol, "a positive number")
    checkpoint_seconds = check_real("checkpoint_seconds", checkpoint_seconds, "a number >= 0", positive=False)
    if method not in ("auto", *METHODS):
        raise ValueError(f"method: expected 'auto' or one of {', '.join(METHODS)}, got {method!r}")
    horizon, dim = problem.horizon, problem.dim
    num_steps = max(1, math.ceil(horizon / dt - 1e-9))
    stops = _stops(times, horizon, num_steps, exact=rtol is not None)
    flow = Flow.of(problem, num_points, with_strain=method in ("auto", "semi_lagrangian"))
    first_stop = next((s for s, _ in stops if s > 0.0), 0.0)
    planner = _Planner(problem, num_points, flow, first_stop)
    plan = planner.plan(method)
    if method == "auto" and rtol is not None:
        if plan.method != "spectral_rk4":
            raise ValueError(f"rtol: expected a problem for Fourier modes, but {plan.reason}; give dt alone")
        plan = replace(plan, method="spectral_adaptive")
    method = plan.method
    _check_method(problem, method, dt, rtol, checkpoint)
    dt = horizon / num_steps
    shape = (num_points,) * dim
    frames = MemoryFrames(len(stops)) if frames_to is None else FileFrames(frames_to, len(stops), shape)
    terminal = problem.terminal_nodes(num_points)
    bound = max(float(np.abs(terminal).max()), planner.terminal.largest)
    context = _Context(problem, num_points, dt, bound, flow)
    findings = _Findings()
    if method != "characteristics":
        findings.say(*problem.check_periodic(), *_lost_modes(planner, plan, num_points))
    exponent = _check_stability(context, plan, num_steps, findings)

    record = _Record()
    restart = None
    if method == "characteristics":
        began = time.perf_counter()
        record.taken = _carry(problem, num_points, stops, num_steps, frames)
        record.s, record.largest, record.seconds = stops[-1][0], bound, time.perf_counter() - began
    else:
        if checkpoint is not None:
            description = fingerprint(problem) | {
                "method": method,
                "rtol": rtol,
                "times": [t for _, t in stops],
                "frames": "memory" if frames_to is None else "file",
            }
            restart = Checkpoint(checkpoint, description)
        march = _March(context, plan, num_steps, rtol, fft)
        if method == "semi_lagrangian" or planner.coupled:
            march.watch_from(first_stop, float(terminal.std()))
        record = march.run(terminal, stops, frames, restart, checkpoint_seconds, progress)
        findings.say(*_what_came(context, plan, record))

    steady = record.taken == 0 or math.isclose(record.s, record.taken * dt, rel_tol=1e-9)
    overshoot = max(record.largest / bound - 1.0, 0.0) if bound > 0 else 0.0
    speed = max(flow.speed, record.speed_met)
    attrs: dict[str, Any] = {
        "equation": "du/dt + F.grad u + sigma^2/2 lap u = 0, u(x, T) = f(x)",
        "sigma": problem.sigma,
        "horizon": horizon,
        "dt": dt if steady else record.s / record.taken,  # the mean one where it changed on the way
        "num_steps": record.taken,
        "method": method,
        "method_reason": plan.reason,
        "continuation": problem.continuation,
        "peclet": cell_peclet(speed, num_points, problem.diffusivity),
        "courant": courant(speed, num_points, dt),
        "overshoot": overshoot,
        "warnings": "; ".join(findings.messages) or "none",
        "seconds": record.seconds,
        "versions": _versions(),
    }
    if method.startswith("spectral"):
        attrs |= {"fft": library, "cutoff": cutoffs(num_points, padded=plan.padded)[0], "padded": int(plan.padded)}
    if method != "characteristics":
        attrs |= {"tail": record.tail, "terminal_lost": plan.terminal_lost, "velocity_lost": plan.velocity_lost}
    if exponent is not None:
        attrs["growth"] = exponent
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


class _Findings:
    """What is known to be unresolved: warned about as it is found, and recorded."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, *messages: str) -> None:
        for message in messages:
            self.messages.append(message)
            warnings.warn(message, ResolutionWarning, stacklevel=3)


def _lost_modes(planner: _Planner, plan: _Plan, num_points: int) -> Iterator[str]:
    """What the grid cannot hold of f and F."""
    if plan.terminal_lost > LARGEST_LOSS:
        needed = 2 * planner.terminal.cutoff_for(LARGEST_LOSS, planner.damping) + 2
        yield (
            f"terminal: the grid of {num_points} nodes cannot hold {plan.terminal_lost:.2g} of f (root mean square); "
            f"use num_points >= {needed}"
        )
    if plan.velocity_lost > LARGEST_VELOCITY_LOSS and plan.method.startswith("spectral"):
        needed = 2 * max(v.cutoff_for(LARGEST_VELOCITY_LOSS) for v in planner.velocity) + 2
        yield (
            f"velocity: the grid of {num_points} nodes cannot hold {plan.velocity_lost:.2g} of F (root mean square); "
            f"use num_points >= {needed}"
        )


def _what_came(context: _Context, plan: _Plan, record: _Record) -> Iterator[str]:
    """What the march showed to be unresolved."""
    limit = LARGEST_TAIL if plan.method.startswith("spectral") else LARGEST_SMOOTHED_TAIL
    finer = f"use num_points = {2 * context.num_points} and compare"
    if record.tail > limit:
        yield (
            f"u is not resolved: up to {record.tail:.2g} of its variation was in the upper third of the modes of "
            f"{context.num_points} nodes, more than {limit:g}; {finer}, or a larger sigma"
        )
    if record.largest > (1.0 + LARGEST_OVERSHOOT) * context.bound:
        yield (
            f"max|u| = {record.largest:.3g} exceeds max|f| = {context.bound:.3g}, which the equation does not allow; "
            f"{finer}, or method='semi_lagrangian'"
        )
    if record.speed_met > SPEED_MARGIN * context.flow.speed:
        yield (
            f"velocity: |F| reached {record.speed_met:.3g} on the way, {context.flow.speed:.3g} at the times on which "
            f"method '{plan.method}' was chosen; F varies fast in time, so choose method and dt yourself"
        )


def _check_stability(context: _Context, plan: _Plan, num_steps: int, findings: _Findings) -> float | None:
    """Growth exponent of the worst kept mode, for methods with a stability region and a fixed step.

    Raises `UnstableError` where a mode grows at the typical |F|; warns where one does at the largest, which F may reach
    in too few places for that to matter.
    """
    if plan.method not in _AMPLIFICATION:
        return None
    flow, cutoff = context.flow, cutoffs(context.num_points, padded=plan.padded)[0]

    def exponent(rates: NDArray, steps: int) -> float:
        return growth(
            _AMPLIFICATION[plan.method],
            rates,
            flow,
            cutoff=cutoff,
            diffusivity=context.problem.diffusivity,
            dt=context.problem.horizon / steps,
            num_steps=steps,
        )

    largest = exponent(flow.fastest, num_steps)
    if largest <= LARGEST_GROWTH:
        return largest
    steps = num_steps
    while exponent(flow.fastest, steps) > LARGEST_GROWTH:
        steps = math.ceil(1.02 * steps)
    number = courant(flow.speed, context.num_points, context.dt)
    message = (
        f"dt: {context.dt:.4g} lies outside the stability region of '{plan.method}' for the modes of "
        f"{context.num_points} nodes and |F| up to {flow.speed:.3g} (Courant number {number:.3g}); use a smaller dt, "
        f"at most {context.problem.horizon / steps:.4g}"
    )
    if exponent(flow.typical, num_steps) > LARGEST_GROWTH:
        raise UnstableError(message)
    findings.say(message)
    return largest


class _Context:
    """What an instability report needs to know."""

    def __init__(self, problem: ConvectionDiffusion, num_points: int, dt: float, bound: float, flow: Flow) -> None:
        self.problem, self.num_points, self.dt, self.bound, self.flow = problem, num_points, dt, bound, flow

    def unstable(self, s: float, size: float) -> UnstableError:
        speed, p = self.flow.speed, self.problem
        return UnstableError(
            f"the solution left its bound max|f| = {self.bound:.3g} at t = {p.horizon - s:.4g} (size {size:.3g}): "
            f"cell Péclet number {cell_peclet(speed, self.num_points, p.diffusivity):.3g}, Courant number "
            f"{courant(speed, self.num_points, self.dt):.3g}; use method='semi_lagrangian', "
            "or a finer grid and a smaller dt, or a larger sigma"
        )


@dataclass
class _Record:
    """How far a march has come, and what it met on the way."""

    s: float = 0.0
    taken: int = 0
    next_frame: int = 0
    largest: float = 0.0  # |u| among the frames
    tail: float = 0.0
    speed_met: float = 0.0
    seconds: float = 0.0  # over all calls that took part


def _check_method(problem: ConvectionDiffusion, method: str, dt: float, rtol: float | None, checkpoint: object) -> None:
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
    values = real_values("times", (0.0, horizon) if times is None else times)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= horizon * (1 + 1e-12))).all():
        raise ValueError(f"times: expected values in [0, {horizon:g}], got {times}")
    wanted = values.tolist()
    if exact:
        return [(horizon - t, t) for t in sorted(set(wanted), reverse=True)]
    steps = sorted({round((horizon - t) / horizon * num_steps) for t in wanted})
    return [(horizon * k / num_steps, horizon * (num_steps - k) / num_steps) for k in steps]


class _March:
    """Steps from the terminal condition to the last kept frame."""

    def __init__(self, context: _Context, plan: _Plan, num_steps: int, rtol: float | None, fft: str) -> None:
        self._context, self._kind, self._num_steps, self._adaptive = context, plan.method, num_steps, rtol is not None
        problem, n, dt = context.problem, context.num_points, context.dt
        self._method: Any
        if plan.method == "semi_lagrangian":
            # an RK4 substep on which F strains by at most a half misses the departure point by < 1/2000 of the way
            substeps = max(1, math.ceil(2.0 * context.flow.strain * dt))
            self._method = SemiLagrangian(problem, num_points=n, dt=dt, substeps=substeps)
        else:
            self._method = SpectralMethod(
                problem, num_points=n, dt=dt, kind=plan.method, padded=plan.padded, fft=fft, rtol=rtol
            )
        self._record = _Record()
        self._watched_from = math.inf
        self._least_variation = 0.0

    def run(
        self,
        terminal: NDArray,
        stops: list[tuple[float, float]],
        frames: MemoryFrames | FileFrames,
        restart: Checkpoint | None,
        checkpoint_seconds: float,
        progress: bool | None,
    ) -> _Record:
        """Fill the frames."""
        method = self._method
        began = time.perf_counter()
        state = method.start(terminal)
        if restart is not None and (stored := restart.load()) is not None:
            state = self._restore(*stored, frames)
        record = self._record
        began -= record.seconds
        saved = time.monotonic()
        label = f"{self._kind}, σ = {self._context.problem.sigma:g}"
        with Progress(label, total=max(stops[-1][0], 1e-300), enabled=progress) as bar:
            for index in range(record.next_frame, len(stops)):
                stop = stops[index][0]
                while record.s < stop * (1.0 - 1e-12):
                    self._step(state, stop)
                    bar.update(record.s)
                    if restart is not None and time.monotonic() - saved >= checkpoint_seconds:
                        record.seconds = time.perf_counter() - began
                        self._save(restart, state, frames)
                        saved = time.monotonic()
                field = method.field(state) if stop else terminal.copy()
                size = float(np.abs(field).max())
                if not size <= 2.0 * self._context.bound:
                    raise self._context.unstable(record.s, size)
                record.largest = max(record.largest, size)
                if stop >= self._watched_from:
                    self._watch(state)
                frames.put(len(stops) - 1 - index, field)
                record.next_frame = index + 1
        record.seconds = time.perf_counter() - began
        record.speed_met = max(record.speed_met, method.speed_met)
        return record

    def watch_from(self, first_stop: float, variation: float) -> None:
        """Watch the tail of u once diffusion alone would have damped f's own to a hundredth, or from the first frame.

        What is left then is what convection makes. variation: root mean square of f about its mean.
        """
        lowest = 2.0 * np.pi * 2.0 * self._context.num_points / 9.0
        rate = self._context.problem.diffusivity * lowest**2
        damped = math.log(1.0 / LARGEST_TAIL) / rate if rate > 0.0 else math.inf
        self._watched_from = min(damped, first_stop)
        self._least_variation = (0.1 * variation) ** 2

    def _watch(self, state: NDArray) -> None:
        """Note the share of the upper third of the modes in the variation of u, itself 1/10 of f's at least."""
        tail, variation = self._method.energies(state)
        variation = max(variation, self._least_variation)
        if variation > 0.0:
            self._record.tail = max(self._record.tail, math.sqrt(tail / variation))

    def _step(self, state: NDArray, stop: float) -> None:
        record = self._record
        try:
            if self._adaptive:
                record.s += self._method.step(state, record.s, stop - record.s)
            else:
                self._method.step(state, record.s)
                done = round(record.s / self._context.dt) + 1
                record.s = self._context.problem.horizon * done / self._num_steps
        except FloatingPointError as error:
            raise self._context.unstable(record.s, math.nan) from error
        record.taken += 1
        size = self._method.norm(state)
        if not size <= 2.0 * self._context.bound:  # rms <= max|u| <= max|f|; not finite counts as larger
            raise self._context.unstable(record.s, size)
        if record.taken % max(1, self._num_steps // _CHECKS) == 0 and record.s >= self._watched_from:
            self._watch(state)

    def _save(self, restart: Checkpoint, state: NDArray, frames: MemoryFrames | FileFrames) -> None:
        self._record.speed_met = max(self._record.speed_met, self._method.speed_met)
        history = {f"history_{name}": array for name, array in self._method.history().items()}
        numbers = asdict(self._record) | {"dt": self._context.dt, "num_points": self._context.num_points}
        restart.save({"state": state} | history | frames.arrays(), **numbers)

    def _restore(
        self, arrays: dict[str, NDArray], numbers: dict[str, float], frames: MemoryFrames | FileFrames
    ) -> NDArray:
        n, dt = int(numbers.pop("num_points")), numbers.pop("dt")
        record = self._record = _Record(**numbers)  # type: ignore[arg-type]
        steps = record.s / self._context.dt
        if not self._adaptive and abs(steps - round(steps)) > 1e-6:
            raise CheckpointError(
                f"expected a dt that divides the time s = {record.s:g} reached, got {self._context.dt:g}"
            )
        if n != self._context.num_points and any(name.startswith("frame_") for name in arrays):
            arrays = {
                k: resample(v, self._context.num_points) if k.startswith("frame_") else v for k, v in arrays.items()
            }
        if record.next_frame > 0:
            frames.restore(arrays)
        state = self._method.convert(arrays["state"])
        history = {k.removeprefix("history_"): v for k, v in arrays.items() if k.startswith("history_")}
        history = {k: self._method.convert(v) if v.ndim else v for k, v in history.items()}
        if self._adaptive or dt == self._context.dt:
            self._method.restore(history)  # with another dt a multistep method starts afresh
        elif self._kind == "semi_lagrangian":
            raise CheckpointError(f"expected dt = {dt:g} as in the checkpoint, got {self._context.dt:g}")
        return state


def _carry(
    problem: ConvectionDiffusion,
    num_points: int,
    stops: list[tuple[float, float]],
    num_steps: int,
    frames: MemoryFrames | FileFrames,
) -> int:
    """u(x, t) = f(X_T) along dX = F dt from every node, in `num_steps` RK4 steps a horizon; returns the most taken."""
    nodes = node_points(num_points, problem.dim)
    steps = 0
    for index, (s, t) in enumerate(stops):
        steps = round(s / problem.horizon * num_steps)
        ends = characteristics(problem, nodes.reshape(-1, problem.dim), num_steps=steps, t0=t) if steps else nodes
        frames.put(len(stops) - 1 - index, problem.evaluate_terminal(ends.reshape(nodes.shape)))
    return steps


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
