"""Characteristics dX/dt = F(X, t): the paths at sigma = 0, and the reference there, u(x, t0) = f(X_T)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.field import Field
from pdekit.numerics.lanes import LANES, add_scaled, velocity_on_lanes
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_finite, check_whole, real_values
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread


def characteristics(
    problem: ConvectionDiffusion, points: ArrayLike, *, num_steps: int, t0: float = 0.0, t1: float | None = None
) -> NDArray[np.float64]:
    """Ends (P, d) at time t1 (the horizon) of the characteristics through points (P, d) at time t0.

    Classical Runge-Kutta steps: fourth order for a smooth velocity. Between bilinear nodes F has kinks and the
    order drops to two; compare two step sizes. Ends lie in R^d and are not wrapped.

    Raises ValueError for points of a wrong shape, num_steps < 1, or steps that straddle the intervals of a redrawn
    velocity.
    """
    x = problem.to_unit(check_points(points, problem))
    given, problem = problem, problem.on_unit_box
    num_steps = check_whole("num_steps", num_steps, 1)
    t0 = check_finite("t0", t0, "a finite time")
    dt = (check_finite("t1", problem.horizon if t1 is None else t1, "a finite time") - t0) / num_steps
    for first, last, velocity in problem.velocity.pieces(t0, dt, num_steps):
        x = _carried(velocity, x, t0, dt, first, last)
    return given.from_unit(x)


def _carried(
    velocity: Field, x: NDArray[np.float64], t0: float, dt: float, first: int, last: int
) -> NDArray[np.float64]:
    """Points (P, d) after the steps first .. last - 1 with one velocity."""
    argument = velocity.for_lanes("float64")
    if argument is None:
        for n in range(first, last):
            t = t0 + n * dt
            k1 = velocity.at(x, t)
            k2 = velocity.at(x + 0.5 * dt * k1, t + 0.5 * dt)
            k3 = velocity.at(x + 0.5 * dt * k2, t + 0.5 * dt)
            k4 = velocity.at(x + dt * k3, t + dt)
            x = x + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return x
    blocks = -(-len(x) // LANES)
    lanes = np.zeros((blocks * LANES, x.shape[1]))
    lanes[: len(x)] = x
    state = np.ascontiguousarray(np.moveaxis(lanes.reshape(blocks, LANES, -1), -1, 1))
    step = _ON_TABLE if isinstance(argument, tuple) else _ON_FUNCTION
    spread(step, blocks, argument, t0, dt, first, last, state, items=len(x) * (last - first))
    return np.moveaxis(state, 1, -1).reshape(-1, x.shape[1])[: len(x)].copy()


def check_points(points: ArrayLike, problem: ConvectionDiffusion) -> NDArray[np.float64]:
    """Points as a new contiguous float64 array (P, d), or a ValueError."""
    x = np.ascontiguousarray(real_values("points", points))
    if x.ndim != 2 or x.shape[1] != problem.dim or len(x) == 0:
        raise ValueError(f"points: expected shape (P, {problem.dim}) with P >= 1, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"points: expected finite coordinates, got {x[~np.isfinite(x)][0]}")
    return x


def _runge_kutta(begin: int, end: int, velocity: Any, t0: float, dt: float, first: int, last: int, x: NDArray) -> None:
    """Classical Runge-Kutta steps of dX/dt = F(X, t), every lane its own starting point."""
    for block in range(begin, end):
        xb = x[block]
        k1, k2, k3, k4 = np.empty_like(xb), np.empty_like(xb), np.empty_like(xb), np.empty_like(xb)
        y = np.empty_like(xb)
        for n in range(first, last):
            t = t0 + n * dt
            velocity_on_lanes(velocity, xb, t, k1)
            add_scaled(xb, 0.5 * dt, k1, y)
            velocity_on_lanes(velocity, y, t + 0.5 * dt, k2)
            add_scaled(xb, 0.5 * dt, k2, y)
            velocity_on_lanes(velocity, y, t + 0.5 * dt, k3)
            add_scaled(xb, dt, k3, y)
            velocity_on_lanes(velocity, y, t + dt, k4)
            add_scaled(xb, dt / 6.0, k1, xb)
            add_scaled(xb, dt / 3.0, k2, xb)
            add_scaled(xb, dt / 3.0, k3, xb)
            add_scaled(xb, dt / 6.0, k4, xb)


# the kernel for functions is not kept on disk, where numba could not find it again
_ON_TABLE, _ON_FUNCTION = kernel()(_runge_kutta), kernel(cache=False)(_runge_kutta)
