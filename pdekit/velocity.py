"""Velocity fields F(x, t), in the forms that solver and sampler both understand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.field import (
    CompiledField,
    Field,
    Frame,
    Function,
    FunctionField,
    Grid,
    GridField,
    as_field,
    check_dim,
    check_nodes,
)
from pdekit.numerics.splines import check_continuation
from pdekit.runtime.checks import check_real, check_whole


def as_velocity(value: Field | Function | ArrayLike, dim: int | None) -> Field:
    """Node values or a function as a velocity; dim: of a function that does not say it itself.

    Raises ValueError where nobody knows the dimension of a function, or for a field that is no velocity.
    """
    if isinstance(value, Field):
        return as_field("velocity", value, value.dim, (value.dim,))
    if not callable(value):
        return GridVelocity(value)
    dim = getattr(value, "dim", dim)
    if dim is None:
        raise ValueError("dim: expected the number of space dimensions, as velocity and terminal are callables")
    return FunctionVelocity(value, dim)


def FunctionVelocity(function: Function, dim: int, interval: float = 0.0) -> FunctionField:
    """A plain Python function (x, t) -> F with x and F of shape (..., d); interval: inf for one without t."""
    return FunctionField(function, dim, interval, (dim,), "velocity")


def GridVelocity(values: ArrayLike, continuation: str = "trigonometric") -> GridField:
    """A steady velocity given at the nodes of a uniform grid: values (d, N₁, ..., N_d); see `GridField`."""
    nodes = check_nodes("velocity", values)
    dim = nodes.ndim - 1
    if not 1 <= dim <= 3 or len(nodes) != dim:
        raise ValueError(
            f"velocity: expected node values of shape (d, N, ..., N) with d = 1, 2 or 3, got {nodes.shape}"
        )
    return GridField(nodes, continuation, (dim,), "velocity")


def CompiledVelocity(kernel: Any, dim: int, interval: float = 0.0) -> CompiledField:
    """A velocity compiled by numba: a jitted `f(x_1, ..., x_d, t) -> (F_1, ..., F_d)`; see `pdekit.compiled`."""
    return CompiledField(kernel, dim, interval, (dim,), "velocity")


@dataclass(frozen=True, eq=False)
class RedrawnVelocity(Field):
    """A velocity redrawn at random at the start of every time interval and frozen within it.

    Each component at each node is uniform(-1, 1), independent in space and between intervals. The field of
    interval n depends only on (seed, n), so solver and sampler see the same one.

    num_points: nodes along an axis; interval: its duration in time units; dim: 1, 2 or 3; factor: of each component.
    """

    num_points: int
    interval: float
    seed: int
    dim: int = 2
    continuation: str = "trigonometric"
    factor: tuple[float, ...] = ()

    name = "velocity"
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

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.dim,)

    def field(self, n: int) -> GridField:
        """The velocity of interval n, t in [n, n + 1) * interval."""
        return _redrawn_field(self.num_points, self.seed, self.dim, self.continuation, n, self.factor)

    def standing(self, t: float) -> GridField:
        return self.field(math.floor(t / self.interval + 1e-9))

    def __call__(self, x: ArrayLike, t: float) -> NDArray[np.float64]:
        return self.standing(t)(x)

    def nodes(self, num_points: int | Grid, t: float) -> NDArray[np.float64]:
        return self.standing(t).nodes(num_points)

    def identity(self, points: NDArray, times: NDArray) -> str:
        return repr(self)

    def seen(self, frame: Frame) -> RedrawnVelocity:
        if frame.sign < 0.0:
            raise ValueError("velocity: expected one that does not jump in time, got a redrawn one")
        own = self.factor or (1.0,) * self.dim
        return replace(self, factor=tuple(a * b for a, b in zip(own, frame.factor, strict=True)))


@lru_cache(maxsize=8)
def _redrawn_field(
    num_points: int, seed: int, dim: int, continuation: str, n: int, factor: tuple[float, ...]
) -> GridField:
    rng = np.random.default_rng([seed, n])
    values = rng.uniform(-1.0, 1.0, (dim, *[num_points] * dim))
    if factor:
        values *= np.reshape(factor, (-1, *[1] * dim))
    return GridVelocity(values, continuation)
