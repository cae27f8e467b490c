"""Whole paths of a problem from points to payoffs, in batches that can be interrupted.

`Simulation` knows how to step a batch with whatever velocity the problem has; it does not know what is estimated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdekit.field import Field
from pdekit.numerics.lanes import LANES
from pdekit.paths import stepping
from pdekit.paths.brownian import GIVEN, INCREMENTS, increments_of_blocks
from pdekit.paths.control import Control
from pdekit.paths.sobol import SobolPaths
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import static
from pdekit.runtime.log import say_once
from pdekit.runtime.threads import spread

_STEPS_PER_CALL = 2**22  # path-steps between two chances to interrupt: a fraction of a second
_STATE_PER_CALL = 2**21  # coordinates held at a time
_COARSEST = 1e-3  # box lengths by which rounding may move a path


@dataclass(eq=False)
class Simulation:
    """Paths of `problem` from t0 on.

    seed: 64-bit key; scheme, increments, dtype: names as in `feynman_kac`; quasi: where the increments come from
    instead of the pseudo-random generator; control: whose martingale is taken off the payoffs.
    """

    problem: ConvectionDiffusion
    seed: np.uint64
    scheme: str = "heun"
    increments: str = "gaussian"
    dtype: str = "float64"
    t0: float = 0.0
    quasi: SobolPaths | None = None
    control: Control | None = None
    _argument: tuple[Field | None, Any] = field(default=(None, None), init=False, repr=False)
    _tables: dict[int, tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)
    _coarse: bool = field(default=False, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables, which another process builds for itself."""
        return self.__dict__ | {"_argument": (None, None), "_tables": {}}

    @property
    def duration(self) -> float:
        return self.problem.horizon - self.t0

    def for_lanes(self, velocity: Field) -> Any:
        """Argument of the kernels for a velocity; a redrawn one needs one table at a time."""
        if self._argument[0] is not velocity:
            self._argument = velocity, velocity.for_lanes(self.dtype, noisy=True)
        return self._argument[1]

    def control_tables(self, num_steps: int) -> tuple[Any, ...]:
        """Arguments of the kernels for the control: tables, steps that share one, and σ²Δt; () without one."""
        if self.control is None:
            return ()
        dt = self.duration / num_steps
        if num_steps not in self._tables:
            self._tables[num_steps] = *self.control.tables(self.t0, dt, num_steps), 2.0 * self.problem.diffusivity * dt
        return self._tables[num_steps]

    def batches(self, num_points: int, num_paths: int, num_steps: int) -> Iterator[tuple[slice, int, int]]:
        """Batches (points, first path, number of paths), cut between blocks of paths."""
        dim = self.problem.dim or 1
        stored = dim * num_steps if self.quasi else dim
        blocks = max(1, min(_STEPS_PER_CALL // num_steps, _STATE_PER_CALL // stored) // LANES)
        needed = -(-num_paths // LANES)
        points_each = max(1, blocks // needed)
        paths_each = LANES * min(needed, blocks)
        for point in range(0, num_points, points_each):
            for first in range(0, num_paths, paths_each):
                yield (
                    slice(point, min(point + points_each, num_points)),
                    first,
                    min(paths_each, num_paths - first),
                )

    def payoffs(
        self,
        points: NDArray[np.float64],
        streams: NDArray[np.uint64],
        first_path: int,
        num_paths: int,
        num_steps: int,
        *,
        substeps: int = 1,
        sign: int = 1,
    ) -> NDArray[np.float64]:
        """f(X_T) less the control's martingale, (P, num_paths).

        streams: (P,) key of each point; first_path: a multiple of `LANES`; substeps: fine increments summed into
        one step; sign: -1 for the antithetic paths.
        """
        per_point = -(-num_paths // LANES)
        starts = np.repeat(points, per_point, axis=0)[:, :, None]
        x = np.repeat(starts.astype(self.dtype), LANES, axis=2)
        # Rounding of single steps would pile up in float32; in float64 it matters for coordinates of a billion only.
        kept = self.dtype == "float32"
        carry = np.repeat((starts - x[:, :, :1]).astype(self.dtype), LANES, axis=2) if kept else ()
        total = np.zeros((len(x), LANES), dtype=self.dtype)
        firsts = np.tile(first_path + LANES * np.arange(per_point, dtype=np.int64), len(points))
        dt = self.duration / num_steps
        scale = sign * np.sqrt(2.0 * self.problem.diffusivity * dt / substeps)
        tables = self.control_tables(num_steps)
        run = _Run(self, np.repeat(streams, per_point), firsts, dt, substeps, scale, tables, x, carry, total)
        if self.quasi is not None:
            run.take_given(self.quasi)
        for first, last, velocity in self.problem.velocity.pieces(self.t0, dt, num_steps):
            run.advance(velocity, first, last)
        if not np.isfinite(x).all():
            raise FloatingPointError(
                f"paths: a position became {x[~np.isfinite(x)][0]}; the velocity is not finite on the way, "
                f"or {num_steps} steps are too few for it"
            )
        self._check_resolution(x, 1 if kept else num_steps)
        ends = np.add(x, carry, dtype=np.float64) if kept else x
        values = self.problem.evaluate_terminal(np.moveaxis(ends, 1, -1))
        values -= total
        return values.reshape(len(points), -1)[:, :num_paths]

    def _check_resolution(self, x: NDArray[Any], roundings: int) -> None:
        """Warn, once, where so many roundings of coordinates as large as these blur places of the box."""
        farthest = max(x.max(), -x.min())
        blur = roundings * np.spacing(farthest)
        if blur > _COARSEST and not self._coarse:
            self._coarse = True
            warnings.warn(
                f"paths: coordinates reach {farthest:.3g}, where rounding in {self.dtype} moves them by up to "
                f"{blur:.1g} box lengths; "
                + ("use dtype='float64'" if self.dtype == "float32" else "take whole box lengths off the points"),
                RuntimeWarning,
                stacklevel=7,
            )


@dataclass(eq=False)
class _Run:
    """A batch on its way: x (blocks, d, LANES) and the control's martingale (blocks, LANES) are advanced in place.

    carry: what rounding has kept out of x, of x's shape, or () where it is not kept.
    """

    simulation: Simulation
    streams: NDArray[np.uint64]
    firsts: NDArray[np.int64]
    dt: float
    substeps: int
    scale: float
    control: tuple[Any, ...]
    x: NDArray[Any]
    carry: NDArray[Any] | tuple[()]
    total: NDArray[Any]
    given: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.kind = INCREMENTS[self.simulation.increments]
        self.given = np.empty((0, 0, *self.x.shape[1:]), dtype=self.x.dtype)

    def take_given(self, quasi: SobolPaths) -> None:
        """Increments of all steps at once, as a Brownian bridge makes them."""
        dw = quasi.increments(self.streams, self.firsts, self.scale, self.simulation.dtype)
        blocks, _, dim, lanes = dw.shape
        self.given = dw.reshape(blocks, -1, self.substeps, dim, lanes).sum(axis=2)
        self.kind = static(GIVEN)

    def advance(self, velocity: Field, first: int, last: int) -> None:
        argument = self.simulation.for_lanes(velocity)
        if argument is None:
            self._in_numpy(velocity, first, last)
        elif isinstance(argument, tuple):
            self._compiled(stepping.advance_table, argument, first, last)
        else:
            self._compiled(stepping.advance_user, argument, first, last)

    def _compiled(self, kernel: Any, velocity: Any, first: int, last: int) -> None:
        sim = self.simulation
        each = max(1, _STEPS_PER_CALL // (len(self.x) * LANES))
        for n in range(first, last, each):
            stop = min(n + each, last)
            spread(
                kernel,
                len(self.x),
                velocity,
                self.control,
                stepping.SCHEMES[sim.scheme],
                self.kind,
                sim.seed,
                self.streams,
                self.firsts,
                sim.t0,
                self.dt,
                n,
                stop,
                self.substeps,
                self.scale,
                self.given,
                self.x,
                self.carry,
                self.total,
                items=len(self.x) * LANES * (stop - n) * self.substeps,
            )

    def _in_numpy(self, velocity: Field, first: int, last: int) -> None:
        """The same steps for a plain Python callable, with the same increments."""
        sim, x, dt = self.simulation, self.x, self.dt
        say_once(
            "the velocity is a plain Python callable: its paths are stepped with NumPy, about ten times slower "
            "than with a pdekit.compiled one"
        )
        dw = np.empty_like(x)
        for n in range(first, last):
            t = sim.t0 + n * dt
            if len(self.kind) == GIVEN:
                dw = self.given[:, n]
            else:
                args = (self.kind, sim.seed, self.streams, self.firsts, n, self.substeps, self.scale)
                increments_of_blocks(*args, dw[:, None])
            f = _on_points(velocity, x, t)
            drifted = x + dt * f
            if self.control:
                spread(stepping.control_of_blocks, len(x), self.control, n, drifted, dw, self.total, items=x.size)
            if sim.scheme == "heun":
                f = 0.5 * (f + _on_points(velocity, drifted + dw, t + dt))
            step = dw + dt * f
            if isinstance(self.carry, np.ndarray):
                step += self.carry
                before = x.copy()
                x += step
                self.carry[...] = step - (x - before)
            else:
                x += step


def _on_points(velocity: Field, x: NDArray[Any], t: float) -> NDArray[np.float64]:
    """F of paths x (blocks, d, LANES), of the same shape."""
    points = np.ascontiguousarray(np.moveaxis(x, 1, -1), dtype=np.float64)
    values = velocity.at(points.reshape(-1, x.shape[1]), t)
    return np.moveaxis(values.reshape(points.shape), -1, 1)
