"""solve(): a convection-diffusion problem in, an xarray.Dataset with its whole history in attributes out."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pdekit.characteristics import characteristics
from pdekit.equation.coefficients import bound
from pdekit.equation.march import March, Record, Setup, unresolved
from pdekit.equation.method import METHODS, Method, whole_steps
from pdekit.equation.operator import Grid, fft_library
from pdekit.equation.plan import Plan, Planner, growth_exponent, lost_modes, stands
from pdekit.equation.resolution import Flow, ResolutionWarning
from pdekit.equation.semilagrangian import SemiLagrangian
from pdekit.equation.spectral_method import KrylovMethod, LawsonMethod
from pdekit.equation.storage import Checkpoint, FileFrames, MemoryFrames, dataset, fingerprint
from pdekit.equation.tolerance import ResolvedMethod
from pdekit.field import as_grid, node_points
from pdekit.numerics.diagnostics import cell_peclet, courant
from pdekit.numerics.spectral import resample
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_real, check_whole, real_values

if TYPE_CHECKING:
    import xarray as xr

DEFAULT_NUM_POINTS = 128
DEFAULT_DT = 1e-3
DEFAULT_RTOL = 1e-8  # of the methods that choose their steps by it


def solve(
    problem: ConvectionDiffusion,
    *,
    num_points: int | tuple[int, ...] | None = None,
    dt: float | None = None,
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

    num_points: nodes along each axis of what is handed out, one number or (N₁, ..., N_d). With `rtol` they restrict
        nothing: the solution is computed with the modes that it needs, and without num_points handed out on the nodes
        of these. Otherwise it is also the grid of the computation, 128 by default.
    dt: step size, 1e-3 by default; shortened a little where it does not divide the horizon. Methods that choose their
        steps do without.
    method: "auto", see `choose_method`; "spectral_krylov" (exact in time up to rtol, for an F that stands still or is
        redrawn), "spectral_rk4", "spectral_ab4" (one evaluation a step), "spectral_adaptive" (Dormand-Prince steps by
        rtol), "semi_lagrangian" (keeps max|u| <= max|f|; sigma a number or a vector), "characteristics" (sigma = 0:
        every node is carried along the flow, the reference there).
    times: problem times t in [0, T] to keep, default (0, T); rounded to the nearest step, but for methods that choose
        their steps, which meet them exactly.
    rtol: tolerance. With "auto", where the equation stands still but for an F that is redrawn, of max|error| relative
        to the bound exp(T max(-V)₊) (max|f| + T max|g|) of |u|, in space and time together; with "spectral_krylov" of
        the same on the grid asked for, so in time alone; with "spectral_adaptive" of the local error a unit of time.
        1e-8 where a method needs one and none is given.
    fft: "auto", "rocket", "scipy" or "fftw".
    progress: show a progress bar; default: on a terminal only.
    seed: recorded in the attributes, for problems drawn at random.
    checkpoint: restart file, written every `checkpoint_seconds`. Where it exists, the solve continues from it; with
        Fourier modes also with another dt, and with frames in memory also on another grid. It is removed when the
        solve is complete. With `rtol` several terminal functions are solved one after the other, each with a file of
        its own, whose name ends in its number.
    frames_to: NetCDF file for the frames, so that memory holds one; the Dataset returned then reads from it. Until all
        are computed they lie in NAME.partial; at the end the disk holds them twice for a moment.

    Returns a Dataset with `u` over (time, x[, y[, z]][, field]), time increasing, and how it was made in `attrs`:
    sigma, box, horizon, dt (the mean one where it changed), num_steps taken, method and method_reason, continuation,
    peclet, courant, overshoot (of max|f| by a frame), seconds (of all calls that took part), versions, rtol, seed, and

    - warnings: all that was warned about, or "none";
    - tail: the largest share of the upper third of the modes in u's variation, watched some thirty times on the way,
      from when diffusion has damped f's own modes there; above 0.01 (0.002 where steps interpolate) errors of some per
      cent were measured, at that share errors below 0.02;
    - terminal_lost: share of f's modes that are not kept, as far as diffusion leaves them until the first frame before
      T; velocity_lost: of F's, the largest of some times. Functions are looked at on lines finer than the grid;
    - error_estimate, error_estimate_time and applications, of a Krylov method: bounds of max|error| in space and time
      and in time alone, the first with `rtol` and "auto" only, and how often F·∇u + ½σ²Δu was evaluated;
    - of Fourier modes: fft, cutoff (highest |k| kept) and padded: 1 where two thirds of the nodes' own modes do not
      suffice, so that all are kept and products take 3/2 as many nodes, 0 otherwise;
    - growth, of a fixed step with a stability region: exponent of the mode that grows most over the march, with F
      frozen where it is largest.

    Warns with `ResolutionWarning` where the modes lost, the tail, an overshoot, the growth or the largest |F| met on
    the way say that the grid or the step does not resolve u, and where F or f differ outside the box
    (`ConvectionDiffusion.check_periodic`); `warnings.simplefilter("error", ResolutionWarning)` makes that an error.
    Not measured: the error of the time step itself within its region of stability; compare two steps.

    Raises ValueError for arguments that do not fit and functions that jump at the box's edge, `CheckpointError` for a
    restart file that is damaged or belongs to another problem or method, OSError for files that cannot be written, or
    frames that another process writes to the same file at the time, `UnstableError` before the first step where it
    is known that a mode would grow, and as soon as the solution leaves the bound max|u| <= max|f| beyond what an
    under-resolved grid explains.
    """
    if problem.dim not in (1, 2, 3):
        raise ValueError(f"solve: expected 1, 2 or 3 space dimensions, got {problem.dim}; feynman_kac takes any")
    if problem.domain == "space":
        raise ValueError(
            "solve: expected a box, got domain='space', which no grid holds; choose box=((a, b), ...) wide enough that "
            "few paths leave it (`bridge.box.Box` bounds how many), with coefficients that are periodic there"
        )
    grid = None if num_points is None else checked_grid(num_points, problem.dim)
    dt = None if dt is None else check_real("dt", dt, "a positive step")
    rtol = None if rtol is None else check_real("rtol", rtol, "a positive number")
    checkpoint_seconds = check_real("checkpoint_seconds", checkpoint_seconds, "a number >= 0", positive=False)
    if method not in ("auto", *METHODS):
        raise ValueError(f"method: expected 'auto' or one of {', '.join(METHODS)}, got {method!r}")
    library = fft_library(fft)
    wanted = wanted_times(times, problem.horizon)
    given, problem = problem, problem.on_unit_box
    keep = Keep(checkpoint, checkpoint_seconds, frames_to)
    if rtol is not None and method == "auto" and stands(problem):
        if problem.num_fields is not None:
            if frames_to is not None:
                raise ValueError(
                    "frames_to: expected a single terminal function with rtol, as each has modes of its own"
                )
            options: dict[str, Any] = {
                "num_points": grid,
                "times": times,
                "rtol": rtol,
                "fft": fft,
                "progress": progress,
                "seed": seed,
                "checkpoint_seconds": checkpoint_seconds,
            }
            paths = [checkpoint and f"{os.fspath(checkpoint)}.{k}" for k in range(problem.num_fields)]
            return _side_by_side(
                [solve(given.only(k), checkpoint=path, **options) for k, path in enumerate(paths)], problem.dim
            )
        setup = _by_tolerance(problem, grid, rtol, wanted, library)
    else:
        grid = grid or as_grid(DEFAULT_NUM_POINTS, problem.dim)
        setup = _on_grid(problem, grid, method, dt, rtol, wanted, library)
    if frames_to is not None and grid is None:
        raise ValueError("frames_to: expected num_points with it, the nodes along an axis of the file")
    return computed(given, setup, keep, library, progress, seed, equation=_EQUATION)


_EQUATION = "du/dt + F.grad u + tr(sigma sigma^T hess u)/2 - V u + g = 0, u(x, T) = f(x)"


@dataclass(frozen=True)
class Keep:
    """Where a solve keeps what it has: see `solve`."""

    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_seconds: float = 60.0
    frames_to: str | os.PathLike[str] | None = None


def computed(
    given: ConvectionDiffusion,
    setup: Setup,
    keep: Keep,
    library: str,
    progress: bool | None,
    seed: int | None,
    *,
    equation: str,
) -> xr.Dataset:
    """March through a setup, warn of what it shows, and hand out the frames with how they were made."""
    problem, plan, findings = given.on_unit_box, setup.plan, list[str]()

    def say(messages: Iterable[str]) -> None:
        for message in messages:
            findings.append(message)
            warnings.warn(message, ResolutionWarning, stacklevel=4)

    if plan.method == "characteristics" and keep.checkpoint is not None:
        raise ValueError("checkpoint: expected a method that steps through time, got 'characteristics'")
    if keep.frames_to is None:
        frames: MemoryFrames | FileFrames = MemoryFrames(len(setup.stops))
    else:
        frames = FileFrames(keep.frames_to, len(setup.stops), setup.terminal.shape, problem.dim)
    if plan.method != "characteristics":
        say(given.check_periodic())
    say(setup.messages)

    restart = None
    if keep.checkpoint is not None:
        description = fingerprint(problem) | {
            "box": given.box and [list(ends) for ends in given.box],
            "method": plan.method,
            "resolved": plan.resolved,
            "rtol": setup.rtol,
            "times": [t for _, t in setup.stops],
            "frames": "memory" if keep.frames_to is None else "file",
            "equation": equation,
        }
        restart = Checkpoint(keep.checkpoint, description)
    with frames:
        if setup.method is None:
            record = _carry(problem, setup, frames)
        else:
            record = March(problem, setup).run(frames, restart, keep.checkpoint_seconds, progress)
            say(unresolved(setup, record, problem.dim))

    grid = frames.grid(problem.dim)
    dt = problem.horizon / setup.num_steps
    steady = record.taken == 0 or math.isclose(record.s, record.taken * dt, rel_tol=1e-9)
    dt = dt if steady else record.s / record.taken  # the mean one where it changed on the way
    speed = max(setup.flow.speed, record.speed_met)
    attrs: dict[str, Any] = {
        "equation": equation,
        "sigma": _described(given),
        "box": np.ravel(given.box) if given.box else "unit",
        "horizon": problem.horizon,
        "dt": dt,
        "num_steps": record.taken,
        "method": plan.method,
        "method_reason": plan.reason,
        "continuation": problem.velocity.continuation,
        "peclet": cell_peclet(speed, min(grid), setup.flow.diffusivity),
        "courant": courant(speed, max(grid), dt),
        "overshoot": max(record.largest / setup.bound - 1.0, 0.0) if 0.0 < setup.bound < math.inf else 0.0,
        "warnings": "; ".join(findings) or "none",
        "seconds": record.seconds,
        "versions": _versions(),
    }
    if plan.kind.spectral:
        attrs["fft"] = library
    if setup.method is not None:
        attrs |= setup.method.facts()
        if not plan.resolved:
            attrs |= {"tail": record.tail, "terminal_lost": plan.terminal_lost, "velocity_lost": plan.velocity_lost}
    attrs |= {k: v for k, v in {"growth": setup.growth, "rtol": setup.rtol, "seed": seed}.items() if v is not None}
    stored = np.array([t for _, t in reversed(setup.stops)])
    *lengths, duration = given.units if given.box else ("box lengths",) * problem.dim + given.units[-1:]
    coords: dict[str, Any] = {"time": ("time", stored, _named("problem time t", duration))}
    for name, n, a, length, unit in zip("xyz", grid, given.origin, given.lengths, lengths, strict=False):
        coords[name] = (name, a + length * np.arange(n) / n, _named(name, unit))
    solution = frames.finish(coords, attrs)
    if restart is not None:
        restart.discard()
    return solution


def _side_by_side(solutions: list[xr.Dataset], dim: int) -> xr.Dataset:
    """Solutions of one field each as one of K fields, on the nodes of the finest."""
    finest = max(solutions, key=lambda solution: solution.u.size)
    axes = tuple(range(1, 1 + dim))
    fields = [resample(solution.u.values, finest.u.shape[1:], axes=axes) for solution in solutions]
    attrs = dict(finest.attrs)
    for name in ("seconds", "applications", "num_steps"):
        attrs[name] = sum(solution.attrs[name] for solution in solutions)
    for name in ("error_estimate", "error_estimate_time", "overshoot", "cutoff"):
        attrs[name] = max(solution.attrs[name] for solution in solutions)
    found = dict.fromkeys(solution.attrs["warnings"] for solution in solutions if solution.attrs["warnings"] != "none")
    attrs["warnings"] = "; ".join(found) or "none"
    return dataset(np.stack(fields, axis=-1), {str(name): finest[name] for name in finest.coords}, attrs)


def checked_grid(num_points: int | tuple[int, ...], dim: int) -> Grid:
    """Nodes along each axis, or a ValueError."""
    counts = num_points if isinstance(num_points, tuple | list | np.ndarray) else (num_points,) * dim
    if len(counts) != dim:
        raise ValueError(f"num_points: expected one number or one for each of {dim} axes, got {num_points}")
    return tuple(check_whole("num_points", n, 8) for n in counts)


def _named(name: str, unit: str) -> dict[str, str]:
    return {"long_name": name, "units": unit} if unit else {"long_name": name}


def _described(problem: ConvectionDiffusion) -> Any:
    """σ for the record: the number or the elements that it is, or that it is a function."""
    if isinstance(problem.sigma, float):
        return problem.sigma
    constant = problem.noise.constant
    return "a function" if constant is None else np.ravel(constant)


def _by_tolerance(problem: ConvectionDiffusion, grid: Grid | None, rtol: float, wanted: list[float], fft: str) -> Setup:
    """Modes and substeps by the tolerance; grid: nodes handed out, None for those that the modes need."""
    if rtol < 1e-13:
        raise ValueError(f"rtol: expected at least 1e-13 in double precision, got {rtol:g}")
    stops = _stops(wanted, problem.horizon, None)
    method = ResolvedMethod(problem, grid=grid, rtol=rtol, duration=stops[-1][0], fft=fft)
    terminal = method.field(method.start())
    return Setup(
        plan=Plan("spectral_krylov", f"as many modes and substeps as rtol = {rtol:g} takes", resolved=True),
        method=method,
        flow=Flow.of(problem, as_grid(method.start_points, problem.dim), with_strain=False),
        stops=stops,
        num_steps=1,
        terminal=terminal,
        bound=method.bound,
        rtol=rtol,
    )


def _on_grid(
    problem: ConvectionDiffusion,
    grid: Grid,
    method: str,
    dt: float | None,
    rtol: float | None,
    wanted: list[float],
    fft: str,
) -> Setup:
    """A grid, and a method for it."""
    first_stop = min((problem.horizon - t for t in wanted if t < problem.horizon), default=0.0)
    flow = Flow.of(problem, grid, with_strain=method in ("auto", "semi_lagrangian"))
    planner = Planner(problem, grid, flow, first_stop)
    plan = planner.plan(method, dt=dt, rtol=rtol)
    if plan.kind.adaptive and rtol is None:
        rtol = DEFAULT_RTOL
    num_steps = whole_steps(problem.horizon, dt or DEFAULT_DT)
    _check_options(problem, plan.method, num_steps, rtol)
    stops = _stops(wanted, problem.horizon, None if plan.kind.adaptive else num_steps)
    terminal = problem.terminal_nodes(grid)
    largest = max(float(np.abs(terminal).max()), *(f.largest for f in planner.terminal))
    setup = Setup(
        plan=plan,
        method=None,
        flow=flow,
        stops=stops,
        num_steps=num_steps,
        terminal=terminal,
        bound=bound(problem, largest, grid),
        rtol=rtol,
    )
    if plan.method == "characteristics":
        return setup
    growth, unstable = growth_exponent(planner, plan, num_steps)
    how: Method
    if plan.method == "semi_lagrangian":
        # an RK4 substep on which F strains by at most a half misses the departure point by < 1/2000 of the way
        substeps = max(1, math.ceil(2.0 * flow.strain * problem.horizon / num_steps))
        how = SemiLagrangian(problem, grid=grid, dt=problem.horizon / num_steps, substeps=substeps)
    else:
        how = spectral(problem, planner, plan, num_steps, stops[-1][0], rtol, fft)
    variation = np.atleast_1d(terminal.std(axis=tuple(range(problem.dim))))
    watched = (first_stop, variation) if not plan.kind.spectral or planner.coupled else None
    messages = [*lost_modes(planner, plan, grid), *unstable]
    return replace(setup, method=how, growth=growth, messages=messages, watched=watched)


def spectral(
    problem: ConvectionDiffusion,
    planner: Planner,
    plan: Plan,
    num_steps: int,
    duration: float,
    rtol: float | None,
    fft: str,
    *,
    transposed: bool = False,
) -> LawsonMethod | KrylovMethod:
    """The method of Fourier modes that a plan names."""
    size: dict[str, Any] = {"grid": planner.coefficients.grid, "padded": plan.padded, "fft": fft}
    size |= {"transposed": transposed, "coefficients": planner.coefficients}
    if plan.kind.standing:
        assert rtol is not None
        return KrylovMethod(problem, rtol=rtol, duration=duration, **size)
    return LawsonMethod(problem, dt=problem.horizon / num_steps, kind=plan.method, rtol=rtol, **size)


def _check_options(problem: ConvectionDiffusion, method: str, num_steps: int, rtol: float | None) -> None:
    kind, dt = METHODS[method], problem.horizon / num_steps
    if not kind.adaptive and rtol is not None:
        adaptive = ", ".join(name for name, other in METHODS.items() if other.adaptive)
        raise ValueError(f"rtol: expected one of the methods that it drives, {adaptive}, got {method!r}")
    if kind.standing and not stands(problem):
        raise ValueError(
            f"method {method!r}: expected a velocity that stands still in time, or jumps, and steady coefficients, "
            "got a function of t"
        )
    if method == "characteristics":
        if not problem.noise.none:
            raise ValueError(f"method 'characteristics': expected sigma = 0, got {_described(problem)}")
        if problem.potential is not None or problem.source is not None:
            raise ValueError("method 'characteristics': expected neither potential nor source; use 'semi_lagrangian'")
    if problem.velocity.jumps:
        if not kind.one_step:
            raise ValueError(f"a velocity that jumps in time needs a one-step method with fixed dt, got {method!r}")
        if not kind.adaptive:
            try:
                problem.velocity.jump_steps(0.0, dt, num_steps)
            except ValueError as error:
                raise ValueError(
                    "dt: expected a whole fraction of the interval between jumps "
                    f"{problem.velocity.interval:g}, got {dt:g}"
                ) from error


def wanted_times(times: Sequence[float] | None, horizon: float) -> list[float]:
    """The problem times of the frames to keep."""
    values = real_values("times", (0.0, horizon) if times is None else times)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= horizon * (1 + 1e-12))).all():
        raise ValueError(f"times: expected values in [0, {horizon:g}], got {times}")
    return sorted(set(values.tolist()), reverse=True)


def _stops(wanted: list[float], horizon: float, num_steps: int | None) -> list[tuple[float, float]]:
    """(s, t) of the frames in the order of s = T - t in which they are computed, at the nearest of `num_steps`."""
    if num_steps is None:
        return [(horizon - t, t) for t in wanted]
    steps = sorted({round((horizon - t) / horizon * num_steps) for t in wanted})
    return [(horizon * k / num_steps, horizon * (num_steps - k) / num_steps) for k in steps]


def _carry(problem: ConvectionDiffusion, setup: Setup, frames: MemoryFrames | FileFrames) -> Record:
    """u(x, t) = f(X_T) along dX = F dt from every node."""
    began = time.perf_counter()
    nodes = node_points(setup.grid(problem.dim), problem.dim)
    record = Record()
    for index, (s, t) in enumerate(setup.stops):
        steps = round(s / problem.horizon * setup.num_steps)
        ends = characteristics(problem, nodes.reshape(-1, problem.dim), num_steps=steps, t0=t) if steps else nodes
        field = problem.evaluate_terminal(ends.reshape(nodes.shape))
        frames.put(len(setup.stops) - 1 - index, field)
        record.s, record.taken = s, steps
        record.largest = max(record.largest, float(np.abs(field).max()))
    record.seconds = time.perf_counter() - began
    return record


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
