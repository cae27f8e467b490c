"""Velocity fields F(x, t) on the periodic unit box, in the forms that solver and sampler both understand.

A `Velocity` answers for itself all that they ask: values at points and nodes, for how long it stands still, what the
compiled loops over paths take, how it is told from another.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.numerics.spectral import resample
from pdekit.numerics.splines import SplineTable, check_continuation, spline_table
from pdekit.runtime.checks import check_real, check_whole, real_values
from pdekit.runtime.kernels import kernel

Function = Callable[[NDArray, float], ArrayLike]


def node_points(num_points: int, dim: int) -> NDArray[np.float64]:
    """The grid x_i = i / N as points, shape (N,)*d + (d,)."""
    axis = np.arange(num_points) / num_points
    return np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1)


def check_nodes(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Node values as a finite float64 array, or a ValueError that says what is wrong."""
    nodes = np.asarray(values)
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


class Velocity(ABC):
    """F(x, t) in dim space dimensions; `velocity(x, t)` takes points x (..., d) and returns (..., d).

    interval: how long F stands still in time, from each multiple of it: inf for a steady F, 0 for one that changes at
        all times. In between F jumps, and no step may straddle a multiple.
    continuation: how F is continued between its nodes, "exact" where it has none.
    periodic: whether F has the period of the box by construction.
    """

    dim: int
    interval: float
    continuation: str = "exact"
    periodic: bool = False

    @property
    def steady(self) -> bool:
        return self.interval == math.inf

    @property
    def jumps(self) -> bool:
        return 0.0 < self.interval < math.inf

    @property
    def own_nodes(self) -> NDArray[np.float64] | None:
        """The node values (d, N, ..., N) that F is given by, None for a function."""
        return None

    @abstractmethod
    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        """F at points x (..., d) and a time, of the shape of x."""

    def at(self, x: NDArray, t: float) -> NDArray[np.float64]:
        """F at points (..., d), checked for shape, finiteness and real values.

        A function gets points of its own and its result is copied: it may change either afterwards.
        """
        out = real_values("velocity(x, t)", self(x.copy(), t))
        if out.shape != x.shape:
            raise ValueError(f"velocity(x, t): expected shape {x.shape} for points of that shape, got {out.shape}")
        if not np.isfinite(out).all():
            raise ValueError(f"velocity(x, t): expected finite values, got {out[~np.isfinite(out)][0]} at t = {t:g}")
        return out

    def nodes(self, num_points: int, t: float) -> NDArray[np.float64]:
        """F on the nodes of a grid at time t, (d, N, ..., N)."""
        return np.ascontiguousarray(np.moveaxis(self.at(node_points(num_points, self.dim), t), -1, 0))

    def standing(self, t: float) -> Velocity:
        """F as it stands from time t until its next jump; a time within rounding of a jump comes after it."""
        return self

    def before(self, t: float) -> tuple[Velocity, float]:
        """F as it stands up to time t, and for how long it has; inf where it never jumped."""
        if not self.jumps:
            return self, math.inf
        began = (math.ceil(t / self.interval - 1e-9) - 1) * self.interval
        return self.standing(began), t - began

    def jump_steps(self, t0: float, dt: float, num_steps: int) -> list[int]:
        """The steps, of num_steps from t0 on, at whose start F jumps; the first one is none of them.

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
                    f"num_steps: expected a whole number of steps in each interval {self.interval:g} of the velocity, "
                    f"got steps of {dt:g} from t0 = {t0:g}"
                )
            found.append(step)
            n += 1
        return found

    def pieces(self, t0: float, dt: float, num_steps: int) -> Iterator[tuple[int, int, Velocity]]:
        """(first step, last step, velocity) of the pieces of steps between two jumps.

        Raises ValueError where a step would straddle a jump.
        """
        for first, last in pairwise([0, *self.jump_steps(t0, dt, num_steps), num_steps]):
            yield first, last, self.standing(t0 + 0.5 * (first + last) * dt)

    def check_steady(self, horizon: float) -> None:
        """Raise ValueError where F is said to be steady, and its values at a few points change up to the horizon."""
        if not self.steady or self.own_nodes is not None:
            return
        x = np.random.default_rng(0).random((16, self.dim))
        values = self.at(x, 0.0)
        for t in (0.1234 * horizon, 0.5719 * horizon, horizon):
            difference = float(np.abs(self.at(x, t) - values).max())
            if difference > 1e-6 * np.abs(values).max():
                raise ValueError(
                    f"interval: expected a function that does not depend on t, as inf says, got a difference of "
                    f"{difference:.3g} between t = 0 and t = {t:g}; leave interval out"
                )

    def for_lanes(self, dtype: str, *, noisy: bool = False) -> Any:
        """Argument of the compiled loops over paths: (table, degree), a compiled function, or None without either.

        noisy: the paths have noise, beside which a relative error of 6e-8 in F is nothing.
        """
        return None

    def identity(self, points: NDArray, times: NDArray) -> Any:
        """Identify F by what JSON can hold: a function by its values at points (P, d) and times."""
        return [self.at(points, float(t)).ravel().tolist() for t in times]

    def reversed(self, horizon: float) -> Velocity:
        """-F(x, horizon - t), the velocity of the initial-value problem (Remark 1). Raises ValueError if F jumps."""
        return FunctionVelocity(lambda x, t: -np.asarray(self(x, horizon - t)), self.dim, self.interval)


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


def as_velocity(value: Velocity | Function | ArrayLike, dim: int | None) -> Velocity:
    """Node values or a function as a `Velocity`; dim: of a function that does not say it itself.

    Raises ValueError where nobody knows the dimension of a function.
    """
    if isinstance(value, Velocity):
        return value
    if not callable(value):
        return GridVelocity(np.asarray(value))
    dim = getattr(value, "dim", dim)
    if dim is None:
        raise ValueError("dim: expected the number of space dimensions, as velocity and terminal are callables")
    return FunctionVelocity(value, dim)


@dataclass(frozen=True, eq=False)
class FunctionVelocity(Velocity):
    """A plain Python function (x, t) -> F with x and F of shape (..., d).

    interval: inf for a function that does not depend on t, which only its writer knows.
    """

    function: Function
    dim: int
    interval: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_whole("dim", self.dim, 1))
        check_interval(self.interval)

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        return self.function(x, t)  # type: ignore[arg-type,return-value]


@dataclass(frozen=True, eq=False)
class GridVelocity(Velocity):
    """A steady velocity given at the nodes of a uniform grid.

    values: (d, N, ..., N), component c at node x_i = i / N in values[c].
    continuation: how it is continued between nodes; see `pdekit.numerics.splines`. At small sigma this choice defines
        the problem, so it is recorded with every solution.

    Raises ValueError for a wrong shape, non-finite values or an unknown continuation.
    """

    values: NDArray[np.float64]
    continuation: str = "trigonometric"

    interval = math.inf
    periodic = True

    def __post_init__(self) -> None:
        values = check_nodes("velocity", self.values)
        dim = values.ndim - 1
        if not 1 <= dim <= 3 or values.shape[0] != dim or len(set(values.shape[1:])) != 1:
            raise ValueError(
                f"velocity: expected node values of shape (d, N, ..., N) with d = 1, 2 or 3, got {values.shape}"
            )
        object.__setattr__(self, "values", values)
        if values.shape[-1] < 2:
            raise ValueError(f"velocity: expected at least 2 nodes an axis, got shape {values.shape}")
        check_continuation(self.continuation)

    def __reduce__(self) -> tuple[Any, ...]:
        return GridVelocity, (self.values, self.continuation)  # without the table, which may be large

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.values.shape[0]

    @property
    def num_points(self) -> int:
        return self.values.shape[-1]

    @property
    def own_nodes(self) -> NDArray[np.float64]:
        return self.values

    @cached_property
    def table(self) -> SplineTable:
        return spline_table(self.values, self.continuation)

    def __call__(self, x: ArrayLike, t: float = 0.0) -> NDArray[np.float64]:
        return self.table(x)

    def nodes(self, num_points: int, t: float = 0.0) -> NDArray[np.float64]:
        """F on the nodes of another grid.

        A coarser grid gets the modes that it can hold, never samples, which would fold the others into them.
        """
        axes = tuple(range(1, self.dim + 1))
        if self.continuation == "trigonometric":
            return resample(self.values, num_points, axes=axes)
        # splines have modes beyond those of their nodes; twice the nodes hold all that matter
        sampled = num_points * max(1, math.ceil(2 * self.num_points / num_points))
        return resample(super().nodes(sampled, t), num_points, axes=axes)

    def for_lanes(self, dtype: str, *, noisy: bool = False) -> tuple[NDArray[Any], tuple[int, ...]]:
        if noisy and self.continuation == "trigonometric":
            dtype = "float32"  # its table is large, and gathers from it are what a step of a path costs
        return self.table.for_lanes(dtype)

    def identity(self, points: NDArray, times: NDArray) -> str:
        return f"nodes {digest(self.values)} {self.continuation}"

    def reversed(self, horizon: float) -> GridVelocity:
        return GridVelocity(-self.values, self.continuation)


@dataclass(frozen=True, eq=False)
class RedrawnVelocity(Velocity):
    """A velocity redrawn at random at the start of every time interval and frozen within it.

    Each component at each node is uniform(-1, 1), independent in space and between intervals. The field of
    interval n depends only on (seed, n), so solver and sampler see the same one.

    num_points: nodes along an axis; interval: its duration in time units; dim: 1, 2 or 3.
    """

    num_points: int
    interval: float
    seed: int
    dim: int = 2
    continuation: str = "trigonometric"

    periodic = True

    def __post_init__(self) -> None:
        checked = {
            "num_points": check_whole("num_points", self.num_points, 2),
            "interval": check_real("interval", self.interval, "a positive duration"),
            "seed": check_whole("seed", self.seed, 0),
            "dim": check_dim(self.dim),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        check_continuation(self.continuation)

    def field(self, n: int) -> GridVelocity:
        """The velocity of interval n, t in [n, n + 1) * interval."""
        return _redrawn_field(self.num_points, self.seed, self.dim, self.continuation, n)

    def standing(self, t: float) -> GridVelocity:
        return self.field(math.floor(t / self.interval + 1e-9))

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        return self.standing(t)(x)

    def nodes(self, num_points: int, t: float) -> NDArray[np.float64]:
        return self.standing(t).nodes(num_points)

    def identity(self, points: NDArray, times: NDArray) -> str:
        return repr(self)

    def reversed(self, horizon: float) -> Velocity:
        raise ValueError("velocity: expected one that does not jump in time, got a redrawn one")


@lru_cache(maxsize=8)
def _redrawn_field(num_points: int, seed: int, dim: int, continuation: str, n: int) -> GridVelocity:
    rng = np.random.default_rng([seed, n])
    return GridVelocity(rng.uniform(-1.0, 1.0, (dim, *[num_points] * dim)), continuation)


@dataclass(frozen=True, eq=False)
class CompiledVelocity(Velocity):
    """A velocity written as a scalar function of the coordinates and compiled by numba.

    kernel: jitted `f(x_1, ..., x_d, t) -> (F_1, ..., F_d)`. Use the branch-free functions of `pdekit.fastmath`
    in it: the sampler's loops then vectorise.
    interval: inf for a function that does not depend on t.
    """

    kernel: Any
    dim: int
    interval: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_dim(self.dim))
        check_interval(self.interval)

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledVelocity, (self.kernel, self.dim, self.interval)

    @cached_property
    def on_lanes(self) -> Any:
        """The kernel on points x (d, L) into f (d, L), compiled: what the loops over paths call."""
        return _ON_LANES[self.dim](self.kernel)

    def for_lanes(self, dtype: str, *, noisy: bool = False) -> Any:
        return self.on_lanes

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        points = np.asarray(x, dtype=np.float64)
        if points.shape[-1] != self.dim:
            raise ValueError(f"points: expected shape (..., {self.dim}), got {points.shape}")
        rows = np.ascontiguousarray(points.reshape(-1, self.dim).T)
        out = np.empty_like(rows)
        self.on_lanes(rows, float(t), out)
        return np.ascontiguousarray(out.T).reshape(points.shape)


_scalar = kernel(cache=False, fastmath={"contract"}, forceinline=True)


def compiled(dim: int, interval: float = 0.0) -> Callable[[Callable[..., tuple[float, ...]]], CompiledVelocity]:
    """Decorator: compile a scalar velocity `f(x_1, ..., x_d, t) -> (F_1, ..., F_d)`, d = 1, 2 or 3.

    interval: `math.inf` for one that does not depend on t, which the solver then takes for steady.
    """
    dim = check_dim(dim)
    check_interval(interval)

    def wrap(function: Callable[..., tuple[float, ...]]) -> CompiledVelocity:
        return CompiledVelocity(_scalar(function), dim, interval)

    return wrap


# Rows are taken out before the loops: LLVM then sees d separate streams and vectorises.
_lanes = kernel(cache=False, fastmath={"contract"})


def _on_lanes_1d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, f0 = x[0], f[0]
        for i in range(len(x0)):
            (f0[i],) = kernel(x0[i], t)

    return on_lanes


def _on_lanes_2d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, x1, f0, f1 = x[0], x[1], f[0], f[1]
        for i in range(len(x0)):
            f0[i], f1[i] = kernel(x0[i], x1[i], t)

    return on_lanes


def _on_lanes_3d(kernel: Any) -> Any:
    @_lanes
    def on_lanes(x: NDArray, t: float, f: NDArray) -> None:
        x0, x1, x2, f0, f1, f2 = x[0], x[1], x[2], f[0], f[1], f[2]
        for i in range(len(x0)):
            f0[i], f1[i], f2[i] = kernel(x0[i], x1[i], x2[i], t)

    return on_lanes


_ON_LANES = {1: _on_lanes_1d, 2: _on_lanes_2d, 3: _on_lanes_3d}
