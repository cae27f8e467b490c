"""Fields over points and time: what velocity, noise, potential and source have in common.

A `Field` answers for itself all that solver and sampler ask: values at points and nodes, for how long it stands still,
what the compiled loops over paths take, how it is told from another. Points are those of the periodic unit box, or of
the box that its data lie on.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.numerics.spectral import resample
from pdekit.numerics.splines import SplineTable, check_continuation, spline_table
from pdekit.runtime.checks import check_whole, present, real_values
from pdekit.runtime.kernels import kernel

Function = Callable[[NDArray, float], ArrayLike]
Grid = tuple[int, ...]
Box = tuple[tuple[float, float], ...]  # the ends of each axis


def as_grid(num_points: int | Grid, dim: int) -> Grid:
    """Nodes along each axis, from one number for all of them or a number for each."""
    return num_points if isinstance(num_points, tuple) else (num_points,) * dim


def node_points(num_points: int | Grid, dim: int) -> NDArray[np.float64]:
    """The grid x_i = i / N as points, shape (N₁, ..., N_d, d)."""
    axes = [np.arange(n) / n for n in as_grid(num_points, dim)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def to_unit(x: NDArray, box: Box | None) -> NDArray[np.float64]:
    """Points (..., d) of a box as points of the unit box."""
    if box is None:
        return x
    ends = np.array(box)
    return np.asarray((x - ends[:, 0]) / (ends[:, 1] - ends[:, 0]))


def from_unit(y: NDArray, box: Box | None) -> NDArray[np.float64]:
    """Points (..., d) of the unit box as points of a box."""
    if box is None:
        return y
    ends = np.array(box)
    return np.asarray(ends[:, 0] + (ends[:, 1] - ends[:, 0]) * y)


def check_nodes(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Node values as a finite float64 array, or a ValueError that says what is wrong."""
    nodes = present(name, values)
    if nodes.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got dtype {nodes.dtype}")
    nodes = nodes.astype(np.float64)
    bad = ~np.isfinite(nodes)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name}: expected finite values, got {nodes[where]} at index {where} ({bad.sum()} in all)")
    return nodes


def digest(values: NDArray) -> str:
    """A short hash of node values."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Frame:
    """Other coordinates: G(y, t) = factor · F(origin + lengths · y, sign · t + shift).

    origin, lengths: (d,); factor: for each component; sign, shift: -1 and the horizon where time runs backward.
    """

    origin: tuple[float, ...]
    lengths: tuple[float, ...]
    factor: tuple[float, ...]
    sign: float = 1.0
    shift: float = 0.0

    @classmethod
    def none(cls, dim: int, components: int) -> Frame:
        return cls((0.0,) * dim, (1.0,) * dim, (1.0,) * components)

    @property
    def moves(self) -> bool:
        """Whether points have other coordinates in it."""
        return any(self.origin) or any(length != 1.0 for length in self.lengths)

    def within(self, outer: Frame) -> Frame:
        """This frame seen through another: outer is applied to what this one gives."""
        return Frame(
            tuple(a + l * b for a, l, b in zip(self.origin, self.lengths, outer.origin, strict=True)),
            tuple(a * b for a, b in zip(self.lengths, outer.lengths, strict=True)),
            tuple(a * b for a, b in zip(self.factor, outer.factor, strict=True)),
            self.sign * outer.sign,
            self.sign * outer.shift + self.shift,
        )


class Field(ABC):
    """Values of one shape over points and time: `field(x, t)` takes points x (..., d) and returns (..., *shape).

    name: for messages; shape: (d,) for a velocity, () for a number.
    interval: how long it stands still, from each multiple of it: inf for a steady field, 0 for one that changes at all
        times. In between it jumps, and no step may straddle a multiple.
    continuation: how it is continued between its nodes, "exact" where it has none.
    periodic: whether it has the period of the box by construction.
    box: the box that its data lie on, None where they do not say; points are then those of this box.
    units: of each axis and of time, as its data say; "" for one that they do not.
    span: the times from first to last at which it is known.
    """

    name: str
    dim: int
    shape: tuple[int, ...]
    interval: float
    continuation: str = "exact"
    periodic: bool = False
    box: Box | None = None
    units: tuple[str, ...] = ()
    span: tuple[float, float] = (-math.inf, math.inf)

    @property
    def components(self) -> int:
        return math.prod(self.shape)

    @property
    def steady(self) -> bool:
        return self.interval == math.inf

    @property
    def jumps(self) -> bool:
        return 0.0 < self.interval < math.inf

    @property
    def own_nodes(self) -> NDArray[np.float64] | None:
        """The node values (C, N₁, ..., N_d) that it is given by, None for a function."""
        return None

    @property
    def own_times(self) -> NDArray[np.float64] | None:
        """The times that it is given at, increasing; None for one that is given at all times."""
        return None

    def own_nodes_at(self, t: float) -> NDArray[np.float64] | None:
        """The node values (C, N₁, ..., N_d) that it is given by at a time, None for a function."""
        return self.standing(t).own_nodes

    @abstractmethod
    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        """Values (..., *shape) at points x (..., d) and a time."""

    def at(self, x: NDArray, t: float) -> NDArray[np.float64]:
        """Values at points (..., d), checked for shape, finiteness and real values.

        A function gets points of its own and its result is copied: it may change either afterwards.
        """
        out = real_values(f"{self.name}(x, t)", self(x.copy(), t))
        expected = x.shape[:-1] + self.shape
        if out.shape != expected:
            of = "points of that shape" if expected == x.shape else f"points {x.shape}"
            raise ValueError(f"{self.name}(x, t): expected shape {expected} for {of}, got {out.shape}")
        if not np.isfinite(out).all():
            raise ValueError(f"{self.name}(x, t): expected finite values, got {out[~np.isfinite(out)][0]} at t = {t:g}")
        return out

    def flat(self, x: NDArray, t: float) -> NDArray[np.float64]:
        """Values at points (..., d) with their components in a row, first: (C, ...)."""
        return np.ascontiguousarray(np.moveaxis(self.at(x, t).reshape(*x.shape[:-1], -1), -1, 0))

    def nodes(self, num_points: int | Grid, t: float) -> NDArray[np.float64]:
        """Values on the nodes of a grid at time t, (C, N₁, ..., N_d)."""
        return self.flat(from_unit(node_points(num_points, self.dim), self.box), t)

    def standing(self, t: float) -> Field:
        """It as it stands from time t until its next jump; a time within rounding of a jump comes after it."""
        return self

    def before(self, t: float) -> tuple[Field, float]:
        """It as it stands up to time t, and for how long it has; inf where it never jumped."""
        if not self.jumps:
            return self, math.inf
        began = (math.ceil(t / self.interval - 1e-9) - 1) * self.interval
        return self.standing(began), t - began

    def jump_steps(self, t0: float, dt: float, num_steps: int) -> list[int]:
        """The steps, of num_steps from t0 on, at whose start it jumps; the first one is none of them.

        Raises ValueError where a step would straddle a jump.
        """
        found: list[int] = []
        if not self.jumps:
            return found
        n = math.floor(t0 / self.interval + 1e-9) + 1
        while (ahead := (n * self.interval - t0) / dt) < num_steps - 1e-6:
            step = round(ahead)
            if abs(ahead - step) > 1e-6 * max(n, 1) or step == 0:
                raise ValueError(
                    f"num_steps: expected a whole number of steps in each interval {self.interval:g} of the "
                    f"{self.name}, got steps of {dt:g} from t0 = {t0:g}"
                )
            found.append(step)
            n += 1
        return found

    def pieces(self, t0: float, dt: float, num_steps: int) -> Iterator[tuple[int, int, Field]]:
        """(first step, last step, field) of the pieces of steps between two jumps.

        Raises ValueError where a step would straddle a jump.
        """
        for first, last in pairwise([0, *self.jump_steps(t0, dt, num_steps), num_steps]):
            yield first, last, self.standing(t0 + 0.5 * (first + last) * dt)

    def check_steady(self, x: NDArray, horizon: float) -> None:
        """Raise ValueError where it is said to be steady, and its values at points (P, d) change up to the horizon."""
        if not self.steady or self.own_nodes is not None:
            return
        values = self.at(x, 0.0)
        for t in (0.1234 * horizon, 0.5719 * horizon, horizon):
            difference = float(np.abs(self.at(x, t) - values).max())
            if difference > 1e-6 * np.abs(values).max():
                raise ValueError(
                    f"interval: expected a function that does not depend on t, as inf says, got a difference of "
                    f"{difference:.3g} between t = 0 and t = {t:g} in the {self.name}; leave interval out"
                )

    def for_lanes(self, dtype: str, *, noisy: bool = False) -> Any:
        """Argument of the compiled loops over paths: (table, degree), a compiled function, or None without either.

        noisy: the paths have noise, beside which a relative error of 6e-8 is nothing.
        """
        return None

    def identity(self, points: NDArray, times: NDArray) -> Any:
        """Identify it by what JSON can hold: a function by its values at points (P, d) and times."""
        return [self.at(points, float(t)).ravel().tolist() for t in times]

    @abstractmethod
    def seen(self, frame: Frame) -> Field:
        """It in other coordinates. Raises ValueError where it cannot be turned back in time."""

    def scaled(self, *factor: float) -> Field:
        """It times a factor, one for all components or one for each."""
        none = Frame.none(self.dim, self.components)
        return self.seen(replace(none, factor=factor if len(factor) == self.components else factor * self.components))


def as_field(name: str, value: Field | Function | ArrayLike, dim: int, shape: tuple[int, ...] = ()) -> Field:
    """A number, node values, a function or a field as a field of a shape. Raises ValueError for any other."""
    if not isinstance(value, Field):
        if callable(value):
            return FunctionField(value, dim, 0.0, shape, name)
        nodes = check_nodes(name, value)
        if nodes.ndim == len(shape):  # a constant
            nodes = np.broadcast_to(nodes[(..., *[None] * dim)], (*nodes.shape, *[2] * dim))
        if nodes.shape[: len(shape)] != shape or nodes.ndim != len(shape) + dim:
            raise ValueError(
                f"{name}: expected a number, a function, or node values of {dim} axes"
                f"{f' behind {shape}' if shape else ''}, got shape {nodes.shape}"
            )
        return GridField(nodes.reshape(-1, *nodes.shape[len(shape) :]), "trigonometric", shape, name)
    if value.dim != dim or value.shape != shape:
        raise ValueError(
            f"{name}: expected a field of {dim} dimensions and values of shape {shape}, "
            f"got {value.dim} and {value.shape}"
        )
    return replace(value, name=name) if isinstance(value, FunctionField | CompiledField | GridField) else value


def check_dim(dim: int) -> int:
    """The number of space dimensions as an int, or a ValueError unless it is 1, 2 or 3."""
    if check_whole("dim", dim, 1) > 3:
        raise ValueError(f"dim: expected 1, 2 or 3, got {dim}")
    return int(dim)


def check_interval(interval: float) -> None:
    """Raise ValueError unless it is that of a function: 0, or inf."""
    if isinstance(interval, bool) or interval not in (0.0, math.inf):
        raise ValueError(
            f"interval: expected 0, or math.inf for a function that does not depend on t, got {interval!r}"
        )


@dataclass(frozen=True, eq=False)
class FunctionField(Field):
    """A plain Python function (x, t) -> values with x (..., d) and values (..., *shape).

    interval: inf for a function that does not depend on t, which only its writer knows.
    """

    function: Function
    dim: int
    interval: float = 0.0
    shape: tuple[int, ...] = ()
    name: str = "field"
    frame: Frame | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_whole("dim", self.dim, 1))
        check_interval(self.interval)

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        if self.frame is None:
            return self.function(x, t)  # type: ignore[arg-type,return-value]
        there = np.array(self.frame.origin) + np.array(self.frame.lengths) * np.asarray(x)
        values = np.asarray(self.function(there, self.frame.sign * t + self.frame.shift))
        if values.ndim < len(self.shape) or values.shape[values.ndim - len(self.shape) :] != self.shape:
            return values  # which `at` refuses
        return values * np.reshape(self.frame.factor, self.shape)

    def seen(self, frame: Frame) -> FunctionField:
        own = self.frame or Frame.none(self.dim, self.components)
        return replace(self, frame=own.within(frame))


@dataclass(frozen=True, eq=False)
class GridField(Field):
    """A steady field given at the nodes of a uniform grid.

    values: (C, N₁, ..., N_d), component c at the node i / N of each axis, or a + i (b - a) / N of a box, in values[c].
    continuation: how it is continued between nodes; see `pdekit.numerics.splines`. At small sigma this choice defines
        the problem, so it is recorded with every solution.

    Raises ValueError for a wrong shape, non-finite values or an unknown continuation.
    """

    values: NDArray[np.float64]
    continuation: str = "trigonometric"
    shape: tuple[int, ...] = ()
    name: str = "field"
    box: Box | None = None
    units: tuple[str, ...] = ()

    interval = math.inf
    periodic = True

    def __post_init__(self) -> None:
        values = check_nodes(self.name, self.values)
        expected = f"{self.components}, " if self.shape else ""
        if not 2 <= values.ndim <= 4 or len(values) != self.components:
            got = values.shape if self.shape else values.shape[1:]
            raise ValueError(
                f"{self.name}: expected node values of shape ({expected}N, ..., N) with d = 1, 2 or 3, got {got}"
            )
        if min(values.shape[1:]) < 2:
            raise ValueError(f"{self.name}: expected at least 2 nodes an axis, got shape {values.shape}")
        check_continuation(self.continuation)
        object.__setattr__(self, "values", values)

    def __reduce__(self) -> tuple[Any, ...]:
        # without the table, which may be large
        return type(self), (self.values, self.continuation, self.shape, self.name, self.box, self.units)

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.values.ndim - 1

    @property
    def grid(self) -> Grid:
        return self.values.shape[1:]

    @property
    def own_nodes(self) -> NDArray[np.float64]:
        return self.values

    @cached_property
    def table(self) -> SplineTable:
        return spline_table(self.values, self.continuation)

    def __call__(self, x: ArrayLike, t: float = 0.0) -> NDArray[np.float64]:
        values = self.table(to_unit(np.asarray(x), self.box))
        return values.reshape(*values.shape[:-1], *self.shape)

    def nodes(self, num_points: int | Grid, t: float = 0.0) -> NDArray[np.float64]:
        """Values on the nodes of another grid, (C, N₁, ..., N_d).

        A coarser grid gets the modes that it can hold, never samples, which would fold the others into them.
        """
        grid, axes = as_grid(num_points, self.dim), tuple(range(1, self.dim + 1))
        if self.continuation == "trigonometric":
            return resample(self.values, grid, axes=axes)
        # splines have modes beyond those of their nodes; twice the nodes hold all that matter
        sampled = tuple(n * max(1, math.ceil(2 * own / n)) for n, own in zip(grid, self.grid, strict=True))
        return resample(super().nodes(sampled, t), grid, axes=axes)

    def for_lanes(self, dtype: str, *, noisy: bool = False) -> tuple[NDArray[Any], tuple[int, ...]]:
        if noisy and self.continuation == "trigonometric":
            dtype = "float32"  # its table is large, and gathers from it are what a step of a path costs
        return self.table.for_lanes(dtype)

    def identity(self, points: NDArray, times: NDArray) -> str:
        return f"nodes {digest(self.values)} {self.continuation}"

    def seen(self, frame: Frame) -> Self:
        factor = np.reshape(frame.factor, (-1, *[1] * self.dim))
        place = (None, ()) if frame.moves else (self.box, self.units)
        return replace(self, values=factor * self.values, box=place[0], units=place[1])


@dataclass(frozen=True, eq=False)
class CompiledField(Field):
    """A field written as a scalar function of the coordinates and compiled by numba.

    kernel: jitted `f(x_1, ..., x_d, t)`, which returns a number, or a tuple of as many as there are components. Use the
    branch-free functions of `pdekit.fastmath` in it: the sampler's loops then vectorise.
    interval: inf for a function that does not depend on t.
    """

    kernel: Any
    dim: int
    interval: float = 0.0
    shape: tuple[int, ...] = ()
    name: str = "field"
    frame: Frame | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_dim(self.dim))
        check_interval(self.interval)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kernel, self.dim, self.interval, self.shape, self.name, self.frame)

    @cached_property
    def on_lanes(self) -> Any:
        """The kernel on points x (d, L) into f (C, L), compiled: what the loops over paths call."""
        velocity = self.shape == (self.dim,)
        own = (_VELOCITY if velocity else _TUPLE if self.shape else _NUMBER)[self.dim](self.kernel)
        return own if self.frame is None else _framed(own, self.frame)

    def for_lanes(self, dtype: str, *, noisy: bool = False) -> Any:
        return self.on_lanes

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        points = np.asarray(x, dtype=np.float64)
        if points.shape[-1] != self.dim:
            raise ValueError(f"points: expected shape (..., {self.dim}), got {points.shape}")
        rows = np.ascontiguousarray(points.reshape(-1, self.dim).T)
        out = np.empty((self.components, rows.shape[1]))
        self.on_lanes(rows, float(t), out)
        return np.ascontiguousarray(out.T).reshape(*points.shape[:-1], *self.shape)

    def seen(self, frame: Frame) -> CompiledField:
        own = self.frame or Frame.none(self.dim, self.components)
        return replace(self, frame=own.within(frame))


_scalar = kernel(cache=False, fastmath={"contract"}, forceinline=True)


def compiled(dim: int, interval: float = 0.0) -> Callable[[Callable[..., Any]], CompiledField]:
    """Decorator: compile a field `f(x_1, ..., x_d, t)`, d = 1, 2 or 3.

    A velocity returns the tuple (F_1, ..., F_d), potential and source a number, sigma a number or the rows of its
    matrix one after another.

    interval: `math.inf` for one that does not depend on t, which the solver then takes for steady.
    """
    dim = check_dim(dim)
    check_interval(interval)

    def wrap(function: Callable[..., Any]) -> CompiledField:
        jitted = _scalar(function)
        example = jitted(*[0.5] * dim, 0.0)
        shape = (len(example),) if isinstance(example, tuple) else ()
        return CompiledField(jitted, dim, interval, shape, "velocity" if shape == (dim,) else "field")

    return wrap


# Rows are taken out before the loops: LLVM then sees separate streams and vectorises.
_lanes = kernel(cache=False, fastmath={"contract"})


def _velocity_1d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, f0 = x[0], f[0]
        for i in range(len(x0)):
            (f0[i],) = kernel(x0[i], t)

    return on_lanes


def _velocity_2d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, x1, f0, f1 = x[0], x[1], f[0], f[1]
        for i in range(len(x0)):
            f0[i], f1[i] = kernel(x0[i], x1[i], t)

    return on_lanes


def _velocity_3d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, x1, x2, f0, f1, f2 = x[0], x[1], x[2], f[0], f[1], f[2]
        for i in range(len(x0)):
            f0[i], f1[i], f2[i] = kernel(x0[i], x1[i], x2[i], t)

    return on_lanes


def _number_1d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, f0 = x[0], f[0]
        for i in range(len(x0)):
            f0[i] = kernel(x0[i], t)

    return on_lanes


def _number_2d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, x1, f0 = x[0], x[1], f[0]
        for i in range(len(x0)):
            f0[i] = kernel(x0[i], x1[i], t)

    return on_lanes


def _number_3d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, x1, x2, f0 = x[0], x[1], x[2], f[0]
        for i in range(len(x0)):
            f0[i] = kernel(x0[i], x1[i], x2[i], t)

    return on_lanes


def _tuple_1d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        for i in range(x.shape[1]):
            values = kernel(x[0, i], t)
            for c in range(len(f)):
                f[c, i] = values[c]

    return on_lanes


def _tuple_2d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        for i in range(x.shape[1]):
            values = kernel(x[0, i], x[1, i], t)
            for c in range(len(f)):
                f[c, i] = values[c]

    return on_lanes


def _tuple_3d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        for i in range(x.shape[1]):
            values = kernel(x[0, i], x[1, i], x[2, i], t)
            for c in range(len(f)):
                f[c, i] = values[c]

    return on_lanes


def _framed(inner: Any, frame: Frame) -> Any:
    """The kernel on lanes in other coordinates."""
    origin, lengths, factor = np.array(frame.origin), np.array(frame.lengths), np.array(frame.factor)
    sign, shift = frame.sign, frame.shift

    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        y = np.empty_like(x)
        for c in range(len(x)):
            for i in range(x.shape[1]):
                y[c, i] = origin[c] + lengths[c] * x[c, i]
        inner(y, sign * t + shift, f)
        for c in range(len(f)):
            for i in range(f.shape[1]):
                f[c, i] *= factor[c]

    return on_lanes


_VELOCITY = {1: _velocity_1d, 2: _velocity_2d, 3: _velocity_3d}
_NUMBER = {1: _number_1d, 2: _number_2d, 3: _number_3d}
_TUPLE = {1: _tuple_1d, 2: _tuple_2d, 3: _tuple_3d}
