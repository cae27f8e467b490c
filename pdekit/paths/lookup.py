"""Fields as the compiled loops over paths take them, which is not always what they were given as.

Node values at times are blended into one table for each level of time at which steps look them up, and a plain Python
function that does not depend on time is sampled once, where a spline through its values holds it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pdekit.field import Field, FunctionField, GridField, node_points
from pdekit.numerics.splines import spline_table
from pdekit.runtime.log import say_once
from pdekit.series import GridSeries

_MOST_BYTES = 2**28  # of blended tables that are kept
_AN_INSTANT = 4  # frames that an interpolation in time takes at most
_MOST_NODES = 2**22  # of a sampled function, over all components
_HELD_TO = 1e-6  # of the largest value, by which a spline may differ from the function that it stands for


class Lookup:
    """Arguments of the compiled loops for the fields of one problem.

    dtype: of the paths; noisy: whether they have noise, beside which a relative error of 6e-8 in a table is nothing;
    sampled: whether functions may be looked up in tables, which are periodic.
    """

    def __init__(self, dtype: str, *, noisy: bool = True, sampled: bool = True) -> None:
        self.dtype, self.noisy, self.sampled = dtype, noisy, sampled
        self._standing: dict[str, tuple[Field, Any]] = {}
        self._samples: dict[int, tuple[Field, GridField | None]] = {}
        self._blended: dict[tuple[Any, ...], tuple[Field, Any]] = {}
        self._frames: dict[tuple[int, int], Any] = {}

    def compiled(self, field: Field) -> bool:
        """Whether the compiled loops can take it."""
        if isinstance(field, FunctionField):
            return self._sample(field) is not None
        return isinstance(field, GridSeries) or field.standing(0.0).for_lanes(self.dtype, noisy=self.noisy) is not None

    def argument(self, field: Field, t0: float, dt: float, first: int, last: int, levels: int) -> Any:
        """What the loops take for times t0 + level · dt, level first .. last of so many; `compiled` has said yes."""
        if isinstance(field, GridSeries):
            if self.fitting(field) > levels:  # all at once, and for all batches
                first, last = 0, levels
            return self._blend(field, t0, dt, first, last)
        sample = self._sample(field) if isinstance(field, FunctionField) else None
        standing = field if sample is None else sample
        if self._standing.get(field.name, (None, None))[0] is not standing:  # a redrawn one needs one table at a time
            self._standing[field.name] = standing, standing.for_lanes(self.dtype, noisy=self.noisy)
        return self._standing[field.name][1]

    def fitting(self, field: Field) -> float:
        """Levels of time whose tables are kept at once, at least two."""
        if not isinstance(field, GridSeries):
            return math.inf
        table = field.at_frame(0).for_lanes(self.dtype, noisy=self.noisy)[0]
        return max(2, _MOST_BYTES // (4 * table.nbytes))  # four: velocity and source, and another length of step

    def _blend(self, field: GridSeries, t0: float, dt: float, first: int, last: int) -> Any:
        key = (id(field), t0, dt, first, last)
        if key not in self._blended:
            for level in range(first, last + 1):
                weights = field.weights(t0 + level * dt)
                frames = [self._frame(field, i) for i, _ in weights]
                if level == first:
                    table, degree = frames[0]
                    tables = np.empty((last - first + 1, *table.shape), dtype=table.dtype)
                _weighted(
                    tables[level - first], [(table, w) for (table, _), (_, w) in zip(frames, weights, strict=True)]
                )
            kept = sum(tables.nbytes for _, (tables, *_) in self._blended.values())
            if kept + tables.nbytes > _MOST_BYTES:
                self._blended = {}
            self._blended[key] = field, (tables, degree, first)
        return self._blended[key][1]

    def _frame(self, field: GridSeries, i: int) -> Any:
        """The table of one frame, kept for other lengths of step."""
        if (id(field), i) not in self._frames:
            found = field.at_frame(i).for_lanes(self.dtype, noisy=self.noisy)
            if (len(self._frames) + 1) * found[0].nbytes > _MOST_BYTES // 4:
                newest = list(self._frames.items())[-_AN_INSTANT:]
                self._frames = dict(newest)
            self._frames[id(field), i] = found
        return self._frames[id(field), i]

    def _sample(self, field: FunctionField) -> GridField | None:
        """The function as node values of a cubic spline, or None where none holds it."""
        if not (field.steady and self.sampled and field.dim <= 3):
            return None
        if id(field) not in self._samples:
            self._samples[id(field)] = field, _sampled(field)
        return self._samples[id(field)][1]


def _weighted(total: Any, parts: list[tuple[Any, float]]) -> None:
    (table, weight), *others = parts
    np.multiply(table, table.dtype.type(weight), out=total)
    for table, weight in others:
        total += table.dtype.type(weight) * table


def _sampled(field: FunctionField) -> GridField | None:
    x = np.random.default_rng(0).uniform(-1.5, 2.5, (4096, field.dim))
    try:
        exact = field.flat(x, 0.0)
    except ValueError:  # outside the box, where paths may lead, and are told of then
        return None
    allowed = _HELD_TO * np.abs(exact).max()
    n = 16
    while field.components * n**field.dim <= _MOST_NODES and n <= 2**12:
        nodes = field.nodes(n, 0.0)
        table = spline_table(nodes, "bicubic")
        difference = np.abs(table(x).T - exact).max()
        if difference <= allowed and _between(field, table, n) <= allowed:
            return GridField(nodes, "bicubic", field.shape, field.name)
        if difference > 2e4 * allowed and n >= 128:  # a kink, a jump, or no period: finer nodes will not do
            break
        n *= 2
    say_once(
        f"the {field.name} is a plain Python callable that no table of {n} nodes an axis holds to {_HELD_TO:g}: it is "
        "called at each step"
    )
    return None


def _between(field: FunctionField, table: Any, n: int) -> float:
    """The largest difference in the middle of the cells, where a narrow peak would show."""
    middle = node_points(n, field.dim) + 0.5 / n
    return float(np.abs(np.moveaxis(table(middle), -1, 0) - field.flat(middle, 0.0)).max())
