"""Fields given on a grid at some times, as simulations and measurements come: winds, currents, layers of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.field import Field, Frame, Grid, GridField, as_grid, check_nodes, digest
from pdekit.numerics.splines import check_continuation

_FRAMES_KEPT = 8  # in memory, with what has been made of them
INTERPOLATIONS = ("linear", "cubic")


class Frames(Protocol):
    """Node values (C, N₁, ..., N_d) by their number, in memory or read when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> ArrayLike: ...


@dataclass(frozen=True, eq=False)
class GridSeries(Field):
    """A field at the nodes of a uniform grid at given times, periodic in space.

    times: (M,), increasing; frames: node values (C, N₁, ..., N_d) of each, an array (M, C, N₁, ..., N_d) or anything
        that gives them by their number, which is then read frame by frame.
    interpolation: in time, "linear", or "cubic": the Hermite cubic with slopes from the parabola through three times,
        of third order.
    continuation: in space, as of `GridField`.

    Raises ValueError for times that do not increase or are fewer than two, and where a time outside them is asked for.
    """

    times: NDArray[np.float64]
    frames: Frames
    interpolation: str = "linear"
    continuation: str = "trigonometric"
    shape: tuple[int, ...] = ()
    name: str = "field"
    frame: Frame | None = None

    interval = 0.0
    periodic = True

    def __post_init__(self) -> None:
        times = check_nodes("times", self.times)
        if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0.0).all():
            raise ValueError(f"times: expected at least two, increasing, got {self.times}")
        if len(times) != len(self.frames):
            raise ValueError(f"times: expected one for each of {len(self.frames)} frames, got {len(times)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: expected one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        check_continuation(self.continuation)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "_kept", lru_cache(maxsize=_FRAMES_KEPT)(self._read))
        self.at_frame(0)  # which checks its shape

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.times, self.frames, self.interpolation, self.continuation, self.shape, self.name, self.frame)
        return type(self), given

    def _read(self, i: int) -> GridField:
        values = check_nodes(f"{self.name}, frame {i}", self.frames[i])
        if self.frame is not None:
            values = values * np.reshape(self.frame.factor, (-1, *[1] * (values.ndim - 1)))
        return GridField(values, self.continuation, self.shape, self.name)

    def at_frame(self, i: int) -> GridField:
        """The field of one frame."""
        return self._kept(i)  # type: ignore[attr-defined]

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.at_frame(0).dim

    @property
    def grid(self) -> Grid:
        return self.at_frame(0).grid

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
        return GridField(np.asarray(values), self.continuation, self.shape, self.name)

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        return np.asarray(sum(w * self.at_frame(i)(x) for i, w in self.weights(t)))

    def nodes(self, num_points: int | Grid, t: float) -> NDArray[np.float64]:
        return self.at_time(t).nodes(as_grid(num_points, self.dim))

    def identity(self, points: NDArray, times: NDArray) -> Any:
        frames = [digest(self.at_frame(i).values) for i in range(len(self.times))]
        return f"{self.interpolation} {self.continuation} {self.times.tolist()} {frames}"

    def seen(self, frame: Frame) -> GridSeries:
        own = self.frame or Frame.none(self.dim, self.components)
        given = (self.times, self.frames, self.interpolation, self.continuation, self.shape, self.name)
        return GridSeries(*given, own.within(frame))
