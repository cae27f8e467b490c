"""The march of a method through time: frames, restart points, and scales met that the grid cannot hold."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.method import Method
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


class March:
    """Steps of a method from the terminal condition to the last kept frame.

    num_steps: of a fixed length; bound: max|f|, which the equation obeys.
    """

    def __init__(
        self,
        problem: ConvectionDiffusion,
        plan: Plan,
        method: Method,
        *,
        num_points: int,
        num_steps: int,
        flow: Flow,
        bound: float,
    ) -> None:
        self._problem, self._plan, self._method, self._flow = problem, plan, method, flow
        self._num_points, self._num_steps, self._bound = num_points, num_steps, bound
        self._dt = problem.horizon / num_steps
        self._record = Record()
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
    ) -> Record:
        """Fill the frames."""
        method = self._method
        began = time.perf_counter()
        state = method.start(terminal)
        if restart is not None and (stored := restart.load()) is not None:
            state = self._restore(*stored, frames)
        record = self._record
        began -= record.seconds
        saved = time.monotonic()
        label = f"{self._plan.method}, σ = {self._problem.sigma:g}"
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
                if not size <= 2.0 * self._bound:
                    raise self._unstable(record.s, size)
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
        lowest = 2.0 * np.pi * 2.0 * self._num_points / 9.0
        rate = self._problem.diffusivity * lowest**2
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
            if self._plan.kind.adaptive:
                record.s += self._method.step(state, record.s, stop - record.s)
            else:
                self._method.step(state, record.s)
                done = round(record.s / self._dt) + 1
                record.s = self._problem.horizon * done / self._num_steps
        except FloatingPointError as error:
            raise self._unstable(record.s, math.nan) from error
        record.taken += 1
        size = self._method.norm(state)
        if not size <= 2.0 * self._bound:  # rms <= max|u| <= max|f|; not finite counts as larger
            raise self._unstable(record.s, size)
        every = 1 if self._plan.kind.standing else max(1, self._num_steps // _CHECKS)
        if record.taken % every == 0 and record.s >= self._watched_from:
            self._watch(state)

    def _save(self, restart: Checkpoint, state: NDArray, frames: MemoryFrames | FileFrames) -> None:
        self._record.speed_met = max(self._record.speed_met, self._method.speed_met)
        history = {f"history_{name}": array for name, array in self._method.history().items()}
        numbers = asdict(self._record) | {"dt": self._dt, "num_points": self._num_points}
        restart.save({"state": state} | history | frames.arrays(), **numbers)

    def _restore(
        self, arrays: dict[str, NDArray], numbers: dict[str, float], frames: MemoryFrames | FileFrames
    ) -> NDArray:
        n, dt = int(numbers.pop("num_points")), numbers.pop("dt")
        record = self._record = Record(**numbers)  # type: ignore[arg-type]
        steps = record.s / self._dt
        if not self._plan.kind.adaptive and abs(steps - round(steps)) > 1e-6:
            raise CheckpointError(f"expected a dt that divides the time s = {record.s:g} reached, got {self._dt:g}")
        if n != self._num_points and any(name.startswith("frame_") for name in arrays):
            arrays = {k: resample(v, self._num_points) if k.startswith("frame_") else v for k, v in arrays.items()}
        if record.next_frame > 0:
            frames.restore(arrays)
        state = self._method.convert(arrays["state"])
        history = {k.removeprefix("history_"): v for k, v in arrays.items() if k.startswith("history_")}
        history = {k: self._method.convert(v) if v.ndim else v for k, v in history.items()}
        if self._plan.kind.adaptive or dt == self._dt:
            self._method.restore(history)  # with another dt a multistep method starts afresh
        elif not self._plan.kind.spectral:
            raise CheckpointError(f"expected dt = {dt:g} as in the checkpoint, got {self._dt:g}")
        return state

    def _unstable(self, s: float, size: float) -> UnstableError:
        speed, problem = self._flow.speed, self._problem
        t = problem.horizon - s
        return UnstableError(
            f"the solution left its bound max|f| = {self._bound:.3g} at t = {t:.4g} (size {size:.3g}): "
            f"cell Péclet number {cell_peclet(speed, self._num_points, problem.diffusivity):.3g}, Courant number "
            f"{courant(speed, self._num_points, self._dt):.3g}; use method='semi_lagrangian', "
            "or a finer grid and a smaller dt, or a larger sigma"
        )


def unresolved(flow: Flow, plan: Plan, record: Record, num_points: int, bound: float) -> Iterator[str]:
    """One line for each way in which the march showed u to be unresolved."""
    limit = LARGEST_TAIL if plan.kind.spectral else LARGEST_SMOOTHED_TAIL
    finer = f"use num_points = {2 * num_points} and compare"
    if record.tail > limit:
        yield (
            f"u is not resolved: up to {record.tail:.2g} of its variation was in the upper third of the modes of "
            f"{num_points} nodes, more than {limit:g}; {finer}, or a larger sigma"
        )
    if record.largest > (1.0 + LARGEST_OVERSHOOT) * bound:
        yield (
            f"max|u| = {record.largest:.3g} exceeds max|f| = {bound:.3g}, which the equation does not allow; "
            f"{finer}, or method='semi_lagrangian'"
        )
    if record.speed_met > SPEED_MARGIN * flow.speed:
        yield (
            f"velocity: |F| reached {record.speed_met:.3g} on the way, {flow.speed:.3g} at the times on which "
            f"method '{plan.method}' was chosen; F varies fast in time, so choose method and dt yourself"
        )
