"""Characteristics dX/dt = F(X, t): the paths at sigma = 0, and the reference there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.field import Field
from pdekit.numerics.lanes import LANES, add_scaled, decay, field_on_lanes, optional
from pdekit.paths.lookup import Lookup
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
    x = check_points(points, problem)
    num_steps = check_whole("num_steps", num_steps, 1)
    t0 = check_finite("t0", t0, "a finite time")
    t1 = check_finite("t1", problem.horizon if t1 is None else t1, "a finite time")
    on_box = problem.on_unit_box
    ends, _, _ = _carried({"velocity": on_box.velocity}, problem.to_unit(x), t0, (t1 - t0) / num_steps, num_steps)
    return problem.from_unit(ends)


def without_noise(
    problem: ConvectionDiffusion, points: ArrayLike, *, num_steps: int, t0: float = 0.0
) -> NDArray[np.float64]:
    """u(x, t0) = f(X_T) e^(-A) + ∫ g e^(-A) ds, A = ∫V, along the characteristics through points (P, d); (P,) or
    (P, K).

    The two integrals are further components of the state that the Runge-Kutta steps carry.

    Raises ValueError as `characteristics`.
    """
    x = problem.to_unit(check_points(points, problem))
    on_box = problem.on_unit_box
    fields = {"velocity": on_box.velocity, "potential": on_box.potential, "source": on_box.source}
    given = {name: field for name, field in fields.items() if field is not None}
    dt = (on_box.horizon - t0) / num_steps
    ends, killed, earned = _carried(given, x, t0, dt, num_steps)
    values = on_box.evaluate_terminal(ends)
    column = (slice(None), *[None] * (values.ndim - 1))
    if "potential" in given:
        values = values * np.exp(-killed)[column]
    return values + earned[column] if "source" in given else values


def _carried(
    fields: dict[str, Field], x: NDArray[np.float64], t0: float, dt: float, num_steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Points (P, d) after steps with a velocity, and (P,) what potential and source, if any, have added up to there."""
    lookup = Lookup("float64", noisy=False, sampled=False)
    compiled = all(lookup.compiled(field) for field in fields.values())
    blocks = -(-len(x) // LANES)
    lanes = np.zeros((blocks * LANES, x.shape[1]))
    lanes[: len(x)] = x
    state = np.ascontiguousarray(np.moveaxis(lanes.reshape(blocks, LANES, -1), -1, 1)) if compiled else x
    sums = np.zeros((2, blocks, LANES)) if compiled else np.zeros((2, len(x)))
    for first, last, velocity in fields["velocity"].pieces(t0, dt, num_steps):
        now = fields | {"velocity": velocity}
        if not compiled:
            state = _in_numpy(now, state, sums, t0, dt, first, last)
            continue
        fitting = min(lookup.fitting(field) for field in now.values())
        each = last - first if fitting > 2 * num_steps else max(1, int(fitting - 1) // 2)
        for n in range(first, last, each):
            stop = min(n + each, last)
            parts = {k: lookup.argument(v, t0, 0.5 * dt, 2 * n, 2 * stop, 2 * num_steps) for k, v in now.items()}
            potential = optional(parts["potential"]) if "potential" in parts else ()
            source = optional(parts["source"]) if "source" in parts else ()
            step = _ON_FUNCTION if any(callable(part) for part in parts.values()) else _ON_TABLE
            args = (parts["velocity"], potential, source, t0, dt, n, stop, state, sums)
            spread(step, blocks, *args, items=len(x) * (stop - n))
    if not compiled:
        return state, sums[0], sums[1]
    ends = np.moveaxis(state, 1, -1).reshape(-1, x.shape[1])[: len(x)].copy()
    return ends, *sums.reshape(2, -1)[:, : len(x)]


def _in_numpy(
    fields: dict[str, Field],
    x: NDArray[np.float64],
    sums: NDArray[np.float64],
    t0: float,
    dt: float,
    first: int,
    last: int,
) -> NDArray[np.float64]:
    """Points (P, d) after the steps first .. last - 1 with one velocity; what they add to the sums (2, P) is there."""
    velocity, potential, source = fields["velocity"], fields.get("potential"), fields.get("source")

    def rates(x: NDArray[np.float64], killed: NDArray[np.float64], t: float) -> NDArray[np.float64]:
        """V and g e^(-A), (2, P)."""
        v = 0.0 if potential is None else potential.at(x, t)
        return np.stack(np.broadcast_arrays(v, 0.0 if source is None else source.at(x, t) * np.exp(-killed)))

    for n in range(first, last):
        t = t0 + n * dt
        k1 = velocity.at(x, t)
        k2 = velocity.at(x + 0.5 * dt * k1, t + 0.5 * dt)
        k3 = velocity.at(x + 0.5 * dt * k2, t + 0.5 * dt)
        k4 = velocity.at(x + dt * k3, t + dt)
        if len(fields) > 1:
            r1 = rates(x, sums[0], t)
            r2 = rates(x + 0.5 * dt * k1, sums[0] + 0.5 * dt * r1[0], t + 0.5 * dt)
            r3 = rates(x + 0.5 * dt * k2, sums[0] + 0.5 * dt * r2[0], t + 0.5 * dt)
            r4 = rates(x + dt * k3, sums[0] + dt * r3[0], t + dt)
            sums += dt / 6.0 * (r1 + 2.0 * r2 + 2.0 * r3 + r4)
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


def _runge_kutta(
    begin: int,
    end: int,
    velocity: Any,
    potential: Any,
    source: Any,
    t0: float,
    dt: float,
    first: int,
    last: int,
    x: NDArray,
    sums: NDArray,
) -> None:
    """Classical Runge-Kutta steps of dX/dt = F(X, t), every lane its own starting point.

    sums: (2, blocks, LANES), ∫V and ∫ g e^(-∫V), to be added to.
    """
    for block in range(begin, end):
        xb, killed, earned = x[block], sums[0, block], sums[1, block]
        k1, k2, k3, k4 = np.empty_like(xb), np.empty_like(xb), np.empty_like(xb), np.empty_like(xb)
        y = np.empty_like(xb)
        rates, total, row = np.zeros((2, LANES)), np.zeros((2, LANES)), np.empty((1, LANES))
        for n in range(first, last):
            t = t0 + n * dt
            total[:] = 0.0
            field_on_lanes(velocity, 2 * n, xb, t, k1)
            _rate(potential, source, 2 * n, xb, t, 0.0, dt / 6.0, killed, rates, total, row)
            add_scaled(xb, 0.5 * dt, k1, y)
            field_on_lanes(velocity, 2 * n + 1, y, t + 0.5 * dt, k2)
            _rate(potential, source, 2 * n + 1, y, t + 0.5 * dt, 0.5 * dt, dt / 3.0, killed, rates, total, row)
            add_scaled(xb, 0.5 * dt, k2, y)
            field_on_lanes(velocity, 2 * n + 1, y, t + 0.5 * dt, k3)
            _rate(potential, source, 2 * n + 1, y, t + 0.5 * dt, 0.5 * dt, dt / 3.0, killed, rates, total, row)
            add_scaled(xb, dt, k3, y)
            field_on_lanes(velocity, 2 * n + 2, y, t + dt, k4)
            _rate(potential, source, 2 * n + 2, y, t + dt, dt, dt / 6.0, killed, rates, total, row)
            add_scaled(xb, dt / 6.0, k1, xb)
            add_scaled(xb, dt / 3.0, k2, xb)
            add_scaled(xb, dt / 3.0, k3, xb)
            add_scaled(xb, dt / 6.0, k4, xb)
            if len(potential) > 0 or len(source) > 0:
                for i in range(LANES):
                    killed[i] += total[0, i]
                    earned[i] += total[1, i]


@kernel(fastmath={"contract"})
def _rate(potential, source, level, x, t, ahead, share, killed, rates, total, row):  # type: ignore[no-untyped-def]
    """V and g e^(-A) of a stage `ahead` of the step's start, times the stage's share, added to total (2, L).

    rates: (2, L), of the stage before; V and e^(-A) of this one afterwards; killed: A at the step's start.
    """
    if len(potential) > 0:
        for i in range(len(killed)):
            rates[1, i] = killed[i] + ahead * rates[0, i]
        field_on_lanes(potential[1], level, x, t, row)
        for i in range(len(killed)):
            rates[0, i] = row[0, i]
            total[0, i] += share * row[0, i]
    if len(source) > 0:
        field_on_lanes(source[1], level, x, t, row)
        if len(potential) > 0:
            decay(rates[1], rates[1])
            for i in range(len(killed)):
                row[0, i] *= rates[1, i]
        for i in range(len(killed)):
            total[1, i] += share * row[0, i]


# the kernel for functions is not kept on disk, where numba could not find it again
_ON_TABLE, _ON_FUNCTION = kernel()(_runge_kutta), kernel(cache=False)(_runge_kutta)
