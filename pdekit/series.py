"""Fields given on a grid at some times, as simulations and measurements come: winds, currents, layers of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.field import Box, Field, Frame, Grid, GridField, as_grid, check_nodes, digest
from pdekit.numerics.splines import check_continuation
from pdekit.runtime.checks import present

INTERPOLATIONS = {"linear": 2, "cubic": 4}
"""In time, and how many frames each takes at most."""


class Frames(Protocol):
    """Node values (C, N₁, ..., N_d) by their number, in memory or read when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> ArrayLike: ...


class CheckedFrames:
    """Frames, looked at when they are read: real, finite and all of one shape. The last two are kept."""

    def __init__(self, frames: Frames, name: str) -> None:
        self._frames, self._name = frames, name
        self._kept = lru_cache(maxsize=2)(self._read)
        self.shape = self._kept(0).shape

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._frames, self._name)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, i: int) -> NDArray[np.float64]:
        return self._kept(i)

    def _read(self, i: int) -> NDArray[np.float64]:
        values = check_nodes(f"{self._name}, frame {i}", self._frames[i])
        expected = getattr(self, "shape", values.shape)
        if values.shape != expected:
            raise ValueError(f"{self._name}, frame {i}: expected shape {expected}, as frame 0 has, got {values.shape}")
        return values

    @cached_property
    def digest(self) -> str:
        """A short hash of all frames, for which they are read once."""
        found = hashlib.sha256()
        for i in range(len(self)):
            found.update(digest(self[i]).encode())
        return found.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class GridSeries(Field):
    """A field at the nodes of a uniform grid at given times, periodic in space.

    times: (M,), increasing; frames: node values (C, N₁, ..., N_d) of each, an array (M, C, N₁, ..., N_d) or anything
        that gives them by their number (`len(frames)`, `frames[i]`), which is then read frame by frame; memory holds
        no more than about ten.
    interpolation: in time, "linear", or "cubic": the Hermite cubic with slopes from the parabola through three times,
        of third order.
    continuation: in space, as of `GridField`.
    shape: of its values, (d,) for a velocity, () for a number.
    box: that the nodes lie on, the unit box by default; units: of each axis and of time, for the record.

    Raises ValueError for times that do not increase or are fewer than two, frames of different shapes, and where a time
    outside them is asked for.
    """

    times: NDArray[np.float64]
    frames: Frames
    interpolation: str = "linear"
    continuation: str = "trigonometric"
    shape: tuple[int, ...] = ()
    name: str = "field"
    frame: Frame | None = None
    box: Box | None = None
    units: tuple[str, ...] = ()

    interval = 0.0
    periodic = True

    def __post_init__(self) -> None:
        times = check_nodes("times", self.times)
        if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0.0).all():
            raise ValueError(f"times: expected at least two, increasing, got {_shortly(times)}")
        if len(times) != len(self.frames):
            raise ValueError(f"times: expected one for each of {len(self.frames)} frames, got {len(times)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: expected one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        check_continuation(self.continuation)
        object.__setattr__(self, "times", times)
        if not isinstance(self.frames, CheckedFrames):
            object.__setattr__(self, "frames", CheckedFrames(self.frames, self.name))
        # one more than an instant takes: steps that cross a frame's time look back
        kept = lru_cache(maxsize=INTERPOLATIONS[self.interpolation] + 1)
        object.__setattr__(self, "_kept_fields", kept(self._field_of))
        object.__setattr__(self, "_kept_nodes", kept(self._nodes_of))
        self.at_frame(0)  # which checks its shape

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.times, self.frames, self.interpolation, self.continuation, self.shape, self.name, self.frame)
        return type(self), (*given, self.box, self.units)

    def _field_of(self, i: int) -> GridField:
        values = present(f"{self.name}: frame {i}", self.frames[i])
        if self.frame is not None:
            values = values * np.reshape(self.frame.factor, (-1, *[1] * (values.ndim - 1)))
        return GridField(values, self.continuation, self.shape, self.name, self.box, self.units)

    def _nodes_of(self, i: int, grid: Grid) -> NDArray[np.float64]:
        return self.at_frame(i).nodes(grid)

    def at_frame(self, i: int) -> GridField:
        """The field of one frame."""
        return self._kept_fields(i)  # type: ignore[attr-defined]

    @property
    def dim(self) -> int:  # type: ignore[override]
        return len(self.grid)

    @property
    def grid(self) -> Grid:
        return self.frames.shape[1:]  # type: ignore[attr-defined]

    @property
    def span(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self.own_times[0]), float(self.own_times[-1])

    @property
    def own_times(self) -> NDArray[np.float64]:
        if self.frame is None:
            return self.times
        return np.sort(self.frame.sign * (self.times - self.frame.shift))

    def own_nodes_at(self, t: float) -> NDArray[np.float64]:
        return self.at_time(t).values

    def weights(self, t: float) -> list[tuple[int, float]]:
        """(frame, weight): the field at time t is their sum. Raises ValueError for a time outside the frames' own."""
        if self.frame is not None:
            t = self.frame.sign * t + self.frame.shift
        times, slack = self.times, 1e-9 * (self.times[-1] - self.times[0])
        if not times[0] - slack <= t <= times[-1] + slack:
            raise ValueError(f"{self.name}: expected a time within [{times[0]:g}, {times[-1]:g}], got {t:g}")
        i = int(np.clip(np.searchsorted(times, t, side="right") - 1, 0, len(times) - 2))
        h = times[i + 1] - times[i]
        r = float(np.clip((t - times[i]) / h, 0.0, 1.0))
        if self.interpolation == "linear":
            found = {i: 1.0 - r, i + 1: r}
        else:
            found = {i: (1.0 + 2.0 * r) * (1.0 - r) ** 2, i + 1: r * r * (3.0 - 2.0 * r)}
            for at, factor in ((i, h * r * (1.0 - r) ** 2), (i + 1, h * r * r * (r - 1.0))):
                for j, slope in self._slopes(at):
                    found[j] = found.get(j, 0.0) + factor * slope
        return [(j, w) for j, w in sorted(found.items()) if w != 0.0]

    def _slopes(self, i: int) -> Sequence[tuple[int, float]]:
        """(frame, weight) of the derivative at time i of the parabola through it and the two nearest others."""
        first = min(max(i - 1, 0), max(len(self.times) - 3, 0))
        js = range(first, min(first + 3, len(self.times)))
        t = self.times
        out = []
        for j in js:
            others = [k for k in js if k != j]
            bottom = np.prod([t[j] - t[k] for k in others])
            top = sum(np.prod([t[i] - t[k] for k in others if k != left]) for left in others)
            out.append((j, float(top / bottom)))
        return out

    def at_time(self, t: float) -> GridField:
        """The field as it is at time t."""
        values = sum(w * self.at_frame(i).values for i, w in self.weights(t))
        return GridField(np.asarray(values), self.continuation, self.shape, self.name, self.box, self.units)

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        return np.asarray(sum(w * self.at_frame(i)(x) for i, w in self.weights(t)))

    def nodes(self, num_points: int | Grid, t: float) -> NDArray[np.float64]:
        grid = as_grid(num_points, self.dim)
        return np.asarray(sum(w * self._kept_nodes(i, grid) for i, w in self.weights(t)))  # type: ignore[attr-defined]

    def identity(self, points: NDArray, times: NDArray) -> str:
        frames: CheckedFrames = self.frames  # type: ignore[assignment]
        return f"{self.interpolation} {self.continuation} {digest(self.times)} {frames.digest} {self.frame}"

    def seen(self, frame: Frame) -> GridSeries:
        own = self.frame or Frame.none(self.dim, self.components)
        place = (None, ()) if frame.moves else (self.box, self.units)
        return replace(self, frame=own.within(frame), box=place[0], units=place[1])


def _shortly(times: NDArray[np.float64]) -> str:
    return np.array2string(times, threshold=6, precision=6)
