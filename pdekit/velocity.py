"""Velocity fields F(x, t) on the periodic unit box, in the forms that solver and sampler both understand.

Every velocity is callable as `velocity(x, t)` with points x of shape (..., d) and returns (..., d). What the
compiled kernels need beyond that stands in the classes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import floor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.checks import check_real, check_whole
from pdekit.kernels import kernel
from pdekit.splines import SplineTable, check_continuation, spline_table


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


@dataclass(frozen=True, eq=False)
class GridVelocity:
    """A steady velocity given at the nodes of a uniform grid.

    values: (d, N, ..., N), component c at node x_i = i / N in values[c].
    continuation: how it is continued between nodes; see `pdekit.splines`. At small sigma this choice defines
        the problem, so it is recorded with every solution.

    Raises ValueError for a wrong shape, non-finite values or an unknown continuation.
    """

    values: NDArray[np.float64]
    continuation: str = "trigonometric"

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

    @property
    def dim(self) -> int:
        return self.values.shape[0]

    @property
    def num_points(self) -> int:
        return self.values.shape[-1]

    @cached_property
    def table(self) -> SplineTable:
        return spline_table(self.values, self.continuation)

    def __call__(self, x: ArrayLike, t: float = 0.0) -> NDArray[np.float64]:
        return self.table(x)


@dataclass(frozen=True, eq=False)
class RedrawnVelocity:
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

    def __post_init__(self) -> None:
        check_real("interval", self.interval, "a positive duration")
        check_whole("num_points", self.num_points, 2)
        check_whole("seed", self.seed, 0)
        if check_whole("dim", self.dim, 1) > 3:
            raise ValueError(f"dim: expected 1, 2 or 3, got {self.dim}")
        check_continuation(self.continuation)

    def field(self, n: int) -> GridVelocity:
        """The velocity of interval n, t in [n, n + 1) * interval."""
        return _redrawn_field(self.num_points, self.seed, self.dim, self.continuation, n)

    def index(self, t: float) -> int:
        """The interval that holds time t; a time within rounding of an interval's start belongs to it."""
        return floor(t / self.interval + 1e-9)

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        return self.field(self.index(t))(x)


@lru_cache(maxsize=8)
def _redrawn_field(num_points: int, seed: int, dim: int, continuation: str, n: int) -> GridVelocity:
    rng = np.random.default_rng([seed, n])
    return GridVelocity(rng.uniform(-1.0, 1.0, (dim, *[num_points] * dim)), continuation)


@dataclass(frozen=True, eq=False)
class CompiledVelocity:
    """A velocity written as a scalar function of the coordinates and compiled by numba.

    kernel: jitted `f(x_1, ..., x_d, t) -> (F_1, ..., F_d)`. Use the branch-free functions of `pdekit.fastmath`
    in it: the sampler's loops then vectorise.
    """

    kernel: Any
    dim: int

    @cached_property
    def on_lanes(self) -> Any:
        """The kernel on points x (d, L) into f (d, L), compiled: what the loops over paths call."""
        return _ON_LANES[self.dim](self.kernel)

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        points = np.asarray(x, dtype=np.float64)
        if points.shape[-1] != self.dim:
            raise ValueError(f"points: expected shape (..., {self.dim}), got {points.shape}")
        rows = np.ascontiguousarray(points.reshape(-1, self.dim).T)
        out = np.empty_like(rows)
        self.on_lanes(rows, float(t), out)
        return np.ascontiguousarray(out.T).reshape(points.shape)


_scalar = kernel(cache=False, fastmath={"contract"}, forceinline=True)


def compiled(dim: int) -> Callable[[Callable[..., tuple[float, ...]]], CompiledVelocity]:
    """Decorator: compile a scalar velocity `f(x_1, ..., x_d, t) -> (F_1, ..., F_d)`, d = 1, 2 or 3."""
    if check_whole("dim", dim, 1) not in _ON_LANES:
        raise ValueError(f"dim: expected 1, 2 or 3, got {dim}")

    def wrap(function: Callable[..., tuple[float, ...]]) -> CompiledVelocity:
        return CompiledVelocity(_scalar(function), dim)

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
