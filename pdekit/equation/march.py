"""The march of a method through time: frames, restart points, and scales met that the grid cannot hold."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.method import Method
from pdekit.equation.operator import Grid
from pdekit.equation.plan import Plan, UnstableError
from pdekit.equation.resolution import LARGEST_OVERSHOOT, LARGEST_SMOOTHED_TAIL, LARGEST_TAIL, Flow
from pdekit.equation.storage import Checkpoint, CheckpointError, FileFrames, MemoryFrames
from pdekit.numerics.diagnostics import cell_peclet, courant
from pdekit.numerics.spectral import resample
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.progress import Progress

SPEED_MARGIN = 1.25  # met on the way, against what the choice was made on
_CHECKS = 32  # of the tail of u on the way


@dataclass
class Record:
    """Progress of a march, and the extremes that it met."""

    s: float = 0.0
    taken: int = 0
    next_frame: int = 0
    largest: float = 0.0  # |u| among the frames
    tail: float = 0.0
    speed_met: float = 0.0
    seconds: float = 0.0  # over all calls that took part


@dataclass(frozen=True)
class Setup:
    """What a march starts from.

    method: None where no state is marched; stops: (s, t) of the frames, in the order of s = T - t; num_steps: of a
    fixed length; terminal: f on the nodes handed out; bound: of |u|, which the equation obeys; growth: exponent of the
    worst mode over the march; messages: what is known to be unresolved beforehand; watched: (first stop, root mean
    squares (K,) of f about its means) where the tail of u is to be watched.
    """

    plan: Plan
    method: Method | None
    flow: Flow
    stops: list[tuple[float, float]]
    num_steps: int
    terminal: NDArray
    bound: float
    rtol: float | None
    growth: float | None = None
    messages: Sequence[str] = ()
    watched: tuple[float, NDArray] | None = None

    def grid(self, dim: int) -> Grid:
        """Nodes handed out."""
        return self.terminal.shape[:dim]


class March:
    """Steps of a method from the terminal condition to the last kept frame."""

    def __init__(self, problem: ConvectionDiffusion, setup: Setup) -> None:
        assert setup.method is not None
        self._problem, self._setup, self._method, self._kind = problem, setup, setup.method, setup.plan.kind
        self._dt = problem.horizon / setup.num_steps
        self._record = Record()
        self._grid = setup.grid(problem.dim)
        self._watched_from, self._least_variation = math.inf, np.zeros(1)
        if setup.watched is not None:
            # from when diffusion alone would have damped f's own tail to a hundredth: what is left is convection's
            first_stop, variation = setup.watched
            rate = setup.flow.diffusivity * (2.0 * np.pi * 2.0 * min(self._grid) / 9.0) ** 2
            damped = math.log(1.0 / LARGEST_TAIL) / rate if rate > 0.0 else math.inf
            self._watched_from, self._least_variation = min(damped, first_stop), (0.1 * variation) ** 2

    def run(
        self,
        frames: MemoryFrames | FileFrames,
        restart: Checkpoint | None,
        checkpoint_seconds: float,
        progress: bool | None,
    ) -> Record:
        """Fill the frames."""
        method, stops, terminal = self._method, self._setup.stops, self._setup.terminal
        began = time.perf_counter()
        state = method.start(terminal)
        if restart is not None and (stored := restart.load()) is not None:
            with restart.in_use():
                state = self._restore(*stored, frames, like=state)
        record = self._record
        began -= record.seconds
        saved = time.monotonic()
        number = self._problem.noise.number
        label = self._setup.plan.method + ("" if number is None else f", σ = {number:g}")
        with Progress(label, total=max(stops[-1][0], 1e-300), enabled=progress) as bar:
            for index in range(record.next_frame, len(stops)):
                stop = stops[index][0]
                while record.s < stop * (1.0 - 1e-12):
                    state = self._step(state, stop)
                    bar.update(record.s)
                    if restart is not None and time.monotonic() - saved >= checkpoint_seconds:
                        record.seconds = time.perf_counter() - began
                        self._save(restart, state, frames)
                        saved = time.monotonic()
                field = method.field(state) if stop else terminal.copy()
                size = float(np.abs(field).max())
                if not size <= 2.0 * self._setup.bound:
                    raise self._unstable(record.s, size)
                record.largest = max(record.largest, size)
                if stop >= self._watched_from:
                    self._watch(state)
                frames.put(len(stops) - 1 - index, field)
                record.next_frame = index + 1
        record.seconds = time.perf_counter() - began
        record.speed_met = max(record.speed_met, method.speed_met)
        return record

    def _watch(self, state: NDArray) -> None:
        """Note the share of the upper third of the modes in the variation of u, itself 1/10 of f's at least."""
        tail, variation = self._method.energies(state)
        variation = np.maximum(variation, self._least_variation)
        shares = tail[variation > 0.0] / variation[variation > 0.0]
        self._record.tail = max(self._record.tail, math.sqrt(shares.max(initial=0.0)))

    def _step(self, state: NDArray, stop: float) -> NDArray:
        record = self._record
        try:
            if self._kind.adaptive:
                state, taken = self._method.step(state, record.s, stop - record.s)
                record.s += taken
            else:
                state, _ = self._method.step(state, record.s)
                done = round(record.s / self._dt) + 1
                record.s = self._problem.horizon * done / self._setup.num_steps
        except FloatingPointError as error:
            raise self._unstable(record.s, math.nan) from error
        record.taken += 1
        size = self._method.norm(state)
        if not size <= 2.0 * self._setup.bound:  # rms <= max|u| <= max|f|; not finite counts as larger
            raise self._unstable(record.s, size)
        every = 1 if self._kind.standing else max(1, self._setup.num_steps // _CHECKS)
        if record.taken % every == 0 and record.s >= self._watched_from:
            self._watch(state)
        return state

    def _save(self, restart: Checkpoint, state: NDArray, frames: MemoryFrames | FileFrames) -> None:
        self._record.speed_met = max(self._record.speed_met, self._method.speed_met)
        history = {f"history_{name}": array for name, array in self._method.history().items()}
        numbers = asdict(self._record) | {"dt": self._dt}
        grid = {"grid": np.array(self._grid)}
        restart.save({"state": state} | grid | history | frames.arrays(), **numbers)

    def _restore(
        self, arrays: dict[str, NDArray], numbers: dict[str, float], frames: MemoryFrames | FileFrames, *, like: NDArray
    ) -> NDArray:
        """The state of a restart file, in shape and type as `like`; its frames go into `frames`."""
        dt = numbers.pop("dt")
        grid = tuple(int(n) for n in arrays.pop("grid"))
        record = self._record = Record(**numbers)  # type: ignore[arg-type]
        count, end = len(self._setup.stops), self._problem.horizon
        shape = (*self._grid, *self._setup.terminal.shape[self._problem.dim :])
        if numbers.keys() != asdict(record).keys() or not (0.0 <= record.s <= end * (1.0 + 1e-9)):
            raise ValueError(f"numbers: expected s from 0 to {end:g} among {', '.join(asdict(record))}, got {numbers}")
        if not 0 <= record.next_frame <= count:
            raise ValueError(f"next_frame: expected 0 to {count}, got {record.next_frame}")
        steps = record.s / self._dt
        if not self._kind.adaptive and abs(steps - round(steps)) > 1e-6:
            raise CheckpointError(f"expected a dt that divides the time s = {record.s:g} reached, got {self._dt:g}")
        if grid != self._grid:
            over_space = tuple(range(self._problem.dim))
            arrays = {
                k: resample(v, self._grid, axes=over_space) if k.startswith("frame_") else v for k, v in arrays.items()
            }
        if record.next_frame > 0:
            frames.restore(arrays)
        if frames.indices() != {count - 1 - i for i in range(record.next_frame)}:
            raise ValueError(
                f"expected {record.next_frame} frames, the last of {count}, got {sorted(frames.indices())}"
            )
        for name, frame in arrays.items():
            if name.startswith("frame_"):
                self._check_fits(name, frame, shape, np.dtype(np.float64))
        state = self._method.convert(arrays["state"])
        self._check_fits("state", state, like.shape, like.dtype)
        history = {k.removeprefix("history_"): v for k, v in arrays.items() if k.startswith("history_")}
        history = {k: self._method.convert(v) if v.ndim else v for k, v in history.items()}
        if self._kind.adaptive or dt == self._dt:
            self._method.restore(history)  # with another dt a multistep method starts afresh
        elif not self._kind.spectral:
            raise CheckpointError(f"expected dt = {dt:g} as in the checkpoint, got {self._dt:g}")
        return state

    def _check_fits(self, name: str, stored: NDArray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """An adaptive method may hold as many modes as it needs, and hand out frames on a grid of its own."""
        fits = stored.shape == shape or (self._kind.adaptive and stored.ndim == len(shape))
        if not fits or stored.dtype != dtype:
            raise ValueError(f"{name}: expected shape {shape} of {dtype}, got {stored.shape} of {stored.dtype}")

    def _unstable(self, s: float, size: float) -> UnstableError:
        speed, problem = self._setup.flow.speed, self._problem
        t, n, noise = problem.horizon - s, max(self._grid), problem.noise.constant
        clamped = noise is not None and np.count_nonzero(noise @ noise.T) <= problem.dim
        other = "method='semi_lagrangian', or " if clamped else ""
        return UnstableError(
            f"the solution left its bound {self._setup.bound:.3g} at t = {t:.4g} (size {size:.3g}): "
            f"cell Péclet number {cell_peclet(speed, n, self._setup.flow.diffusivity):.3g}, Courant number "
            f"{courant(speed, n, self._dt):.3g}; use {other}a finer grid and a smaller dt, or a larger sigma"
        )


def unresolved(setup: Setup, record: Record, dim: int) -> Iterator[str]:
    """One line for each way in which the march showed u to be unresolved."""
    plan, flow, num_points = setup.plan, setup.flow, max(setup.grid(dim))
    limit = LARGEST_TAIL if plan.kind.spectral else LARGEST_SMOOTHED_TAIL
    finer = f"use num_points = {2 * num_points} and compare"
    if record.tail > limit:
        yield (
            f"u is not resolved: up to {record.tail:.2g} of its variation was in the upper third of the modes of "
            f"{num_points} nodes, more than {limit:g}; {finer}, or a larger sigma"
        )
    if record.largest > (1.0 + LARGEST_OVERSHOOT) * setup.bound:
        yield (
            f"max|u| = {record.largest:.3g} exceeds its bound {setup.bound:.3g}, which the equation does not allow; "
            f"{finer}, or method='semi_lagrangian'"
        )
    if record.speed_met > SPEED_MARGIN * flow.speed:
        yield (
            f"velocity: |F| reached {record.speed_met:.3g} on the way, {flow.speed:.3g} at the times on which "
            f"method '{plan.method}' was chosen; F varies fast in time, so choose method and dt yourself"
        )
