"""Characteristics dX/dt = F(X, t): the paths at sigma = 0, and the reference there, u(x, t0) = f(X_T)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit import paths
from pdekit.checks import check_whole, real_values
from pdekit.problem import ConvectionDiffusion
from pdekit.simulation import velocity_pieces
from pdekit.threads import spread
from pdekit.threefry import LANES
from pdekit.velocity import CompiledVelocity, GridVelocity, RedrawnVelocity


def characteristics(
    problem: ConvectionDiffusion, points: ArrayLike, *, num_steps: int, t0: float = 0.0, t1: float | None = None
) -> NDArray[np.float64]:
    """Ends (P, d) at time t1 (the horizon) of the characteristics through points (P, d) at time t0.

    Classical Runge-Kutta steps: fourth order for a smooth velocity. Between bilinear nodes F has kinks and the
    order drops to two; compare two step sizes. Ends lie in R^d and are not wrapped.

    Raises ValueError for points of a wrong shape, num_steps < 1, or steps that straddle the intervals of a redrawn
    velocity.
    """
    x = check_points(points, problem)
    num_steps = check_whole("num_steps", num_steps, 1)
    if not np.isfinite([t0, problem.horizon if t1 is None else t1]).all():
        raise ValueError(f"t0, t1: expected finite times, got {t0} and {t1}")
    dt = ((problem.horizon if t1 is None else t1) - t0) / num_steps
    if not isinstance(problem.velocity, GridVelocity | RedrawnVelocity | CompiledVelocity):
        return _in_numpy(problem, x, t0, dt, num_steps)
    blocks = -(-len(x) // LANES)
    lanes = np.zeros((blocks * LANES, x.shape[1]))
    lanes[: len(x)] = x
    state = np.ascontiguousarray(np.moveaxis(lanes.reshape(blocks, LANES, -1), -1, 1))
    for first, last, velocity in velocity_pieces(problem.velocity, t0, dt, num_steps):
        work = len(x) * (last - first)
        if isinstance(velocity, GridVelocity):
            table = (velocity.table.coefficients, velocity.table.degree)
            spread(paths.characteristics_table, blocks, table, t0, dt, first, last, state, items=work)
        else:
            args = (velocity.on_lanes, t0, dt, first, last, state)
            spread(paths.characteristics_user, blocks, *args, items=work)
    return np.moveaxis(state, 1, -1).reshape(-1, x.shape[1])[: len(x)].copy()


def _in_numpy(
    problem: ConvectionDiffusion, x: NDArray[np.float64], t0: float, dt: float, num_steps: int
) -> NDArray[np.float64]:
    velocity = problem.evaluate_velocity
    for n in range(num_steps):
        t = t0 + n * dt
        k1 = velocity(x, t)
        k2 = velocity(x + 0.5 * dt * k1, t + 0.5 * dt)
        k3 = velocity(x + 0.5 * dt * k2, t + 0.5 * dt)
        k4 = velocity(x + dt * k3, t + dt)
        x = x + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return x


def check_points(points: ArrayLike, problem: ConvectionDiffusion) -> NDArray[np.float64]:
    """Points as a new contiguous float64 array (P, d), or a ValueError."""
    x = np.ascontiguousarray(real_values("points", points))
    if x.ndim != 2 or x.shape[1] != problem.dim or len(x) == 0:
        raise ValueError(f"points: expected shape (P, {problem.dim}) with P >= 1, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"points: expected finite coordinates, got {x[~np.isfinite(x)][0]}")
    return x
