"""Whole paths of a problem from points to payoffs, in batches that can be interrupted.

`Simulation` knows how to step a batch with whatever fields the problem has; it does not know what is estimated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdekit.field import Field
from pdekit.numerics.lanes import LANES, optional
from pdekit.paths import stepping
from pdekit.paths.brownian import GIVEN, INCREMENTS, increments_of_blocks
from pdekit.paths.control import Control
from pdekit.paths.diffusion import signs_of_blocks
from pdekit.paths.lookup import Lookup
from pdekit.paths.sobol import SobolPaths
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import static
from pdekit.runtime.log import say_once
from pdekit.runtime.threads import spread

_STEPS_PER_CALL = 2**22  # path-steps between two chances to interrupt: a fraction of a second
_STATE_PER_CALL = 2**21  # coordinates held at a time
_STEPS_IN_CACHE = 4  # whose tables all blocks read before those of later steps
_COARSEST = 1e-3  # box lengths by which rounding may move a path


@dataclass(eq=False)
class Simulation:
    """Paths of `problem`, which is one on the unit box, from t0 on.

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
    _lookup: Lookup | None = field(default=None, init=False, repr=False)
    _tables: dict[int, tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)
    _coarse: bool = field(default=False, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables, which another process builds for itself."""
        return self.__dict__ | {"_lookup": None, "_tables": {}}

    @property
    def duration(self) -> float:
        return self.problem.horizon - self.t0

    @cached_property
    def additive(self) -> bool:
        """Whether the noise does not depend on x."""
        return self.problem.noise.same_everywhere(self.problem.horizon)

    @property
    def scheme_used(self) -> str:
        """The scheme by the name of its inventors: Heun's is that of Platen where the noise depends on x."""
        return self.scheme if self.additive or self.scheme != "heun" else "platen"

    @property
    def fields(self) -> dict[str, Field]:
        """All that depends on x, by name."""
        noise = None if self.additive else self.problem.noise.field
        found = {
            "velocity": self.problem.velocity,
            "sigma": noise,
            "potential": self.problem.potential,
            "source": self.problem.source,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def lookup(self) -> Lookup:
        if self._lookup is None:
            self._lookup = Lookup(self.dtype, sampled=self.problem.domain == "box")
        return self._lookup

    def use(self, lookup: Lookup) -> None:
        """Look fields up with this."""
        self._lookup = lookup

    @cached_property
    def compiled(self) -> bool:
        """Whether the compiled loops can step the paths."""
        plain = [name for name, value in self.fields.items() if not self.lookup.compiled(value)]
        if plain:
            say_once(
                f"the {plain[0]} is a plain Python callable: its paths are stepped with NumPy, about ten times slower "
                "than with a pdekit.compiled one"
            )
        return not plain

    # the noise

    @property
    def columns(self) -> int:
        """Brownian motions of a path."""
        return self.problem.noise.columns

    def scale(self, dt: float, substeps: int) -> float:
        """Standard deviation of the increments of a substep, which have a noise that is one number in them."""
        number = self.problem.noise.number
        return float(np.sqrt((1.0 if number is None else 2.0 * self.problem.diffusivity) * dt / substeps))

    def matrices(self, num_steps: int) -> NDArray[np.float64]:
        """σ where it does not depend on x, (1, d, m), or (steps, d, m) in the middle of each step.

        That is the midpoint rule for the covariance of the step's noise, of second order.
        """
        noise, dt = self.problem.noise, self.duration / num_steps
        if noise.constant is not None:
            return noise.constant[None]
        somewhere = np.full((1, self.problem.dim), 0.5)
        return np.concatenate([noise.matrix(somewhere, self.t0 + (n + 0.5) * dt) for n in range(num_steps)])

    def mix(self, num_steps: int) -> tuple[Any, ...]:
        """The noise as the kernels take it, where it does not depend on x."""
        if self.problem.noise.number is not None:
            return ()
        matrices = self.matrices(num_steps)
        if len(matrices) > 1:
            return (matrices,)
        square = matrices.shape[1] == matrices.shape[2]
        if square and not (matrices[0] * (1.0 - np.eye(len(matrices[0])))).any():
            return (np.diag(matrices[0]).copy(),)
        return (matrices[0],)

    def control_tables(self, num_steps: int) -> tuple[Any, ...]:
        """Arguments of the kernels for the control: tables, steps that share one, covariance; () without one.

        Raises ValueError for second derivatives where the noise depends on x, and so the covariance on the path.
        """
        if self.control is None:
            return ()
        if num_steps not in self._tables:
            dt = self.duration / num_steps
            covariance: tuple[Any, ...] = (np.empty((1, 1, 1)), ())
            if self.problem.noise.number is not None:
                covariance = (2.0 * self.problem.diffusivity * dt,)
            elif self.additive:
                sigma = self.matrices(num_steps)
                covariance = (dt * (sigma @ np.swapaxes(sigma, 1, 2)), ())
            elif self.control.hessian:
                raise ValueError("control: expected hessian=False with a noise that depends on x, got True")
            self._tables[num_steps] = *self.control.tables(self.t0, dt, num_steps), covariance
        return self._tables[num_steps]

    # batches

    def jump_steps(self, num_steps: int) -> list[int]:
        """The steps at whose start a field jumps."""
        dt = self.duration / num_steps
        return sorted({n for value in self.fields.values() for n in value.jump_steps(self.t0, dt, num_steps)})

    def batches(self, num_points: int, num_paths: int, num_steps: int) -> Iterator[tuple[slice, int, int]]:
        """Batches (points, first path, number of paths), cut between blocks of paths."""
        dim = self.problem.dim or 1
        stored = self.columns * num_steps if self.quasi else max(dim, self.problem.num_fields or 1)
        most = _STEPS_PER_CALL // num_steps
        if any(self.lookup.fitting(value) <= num_steps for value in self.fields.values()):
            most = _STATE_PER_CALL  # tables of few steps at a time are blended anew for each batch
        blocks = max(1, min(most, _STATE_PER_CALL // stored) // LANES)
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
        """f(X_T) e^(-∫V) + ∫ g e^(-∫V) less the control's martingale, (P, num_paths) or (P, K, num_paths).

        streams: (P,) key of each point; first_path: a multiple of `LANES`; substeps: fine increments summed into
        one step; sign: -1 for the antithetic paths.
        """
        walk = self.walk(points, streams, first_path, num_paths, num_steps, substeps=substeps, sign=sign)
        for first, last in pairwise([0, *self.jump_steps(num_steps), num_steps]):
            walk.advance(first, last)
        self._check(walk, num_steps)
        values = self.problem.evaluate_terminal(np.moveaxis(walk.positions(), 1, -1))
        several = values.ndim == 3
        values = np.moveaxis(values, -1, 1) if several else values[:, None]
        if self.problem.potential is not None:
            values = values * np.exp(-walk.killed)[:, None]
        if self.problem.source is not None:
            values = values + walk.earned[:, None]
        values = values - walk.total
        if not np.isfinite(values).all():
            raise FloatingPointError(
                f"paths: a payoff became {values[~np.isfinite(values)][0]}; the potential is too negative"
            )
        fields, per_point = values.shape[1], len(values) // len(points)
        values = np.moveaxis(values.reshape(len(points), per_point, fields, LANES), 2, 1)
        values = values.reshape(len(points), fields, -1)[:, :, :num_paths]
        return values if several else values[:, 0]

    def walk(
        self,
        points: NDArray[np.float64],
        streams: NDArray[np.uint64],
        first_path: int,
        num_paths: int,
        num_steps: int,
        *,
        substeps: int = 1,
        sign: int = 1,
    ) -> Walk:
        """A batch of paths at their start."""
        per_point = -(-num_paths // LANES)
        starts = np.repeat(points, per_point, axis=0)[:, :, None]
        x = np.repeat(starts.astype(self.dtype), LANES, axis=2)
        # Rounding of single steps would pile up in float32; in float64 it matters for coordinates of a billion only.
        kept = self.dtype == "float32"
        carry = np.repeat((starts - x[:, :, :1]).astype(self.dtype), LANES, axis=2) if kept else ()
        fields = self.control.num_fields if self.control is not None else 1
        dt = self.duration / num_steps
        walk = Walk(
            simulation=self,
            streams=np.repeat(streams, per_point),
            firsts=np.tile(first_path + LANES * np.arange(per_point, dtype=np.int64), len(points)),
            num_steps=num_steps,
            dt=dt,
            substeps=substeps,
            scale=sign * self.scale(dt, substeps),
            control=self.control_tables(num_steps),
            x=x,
            carry=carry,
            killed=np.zeros((len(x) if self.problem.potential is not None else 1, LANES)),
            earned=np.zeros((len(x) if self.problem.source is not None else 1, LANES)),
            total=np.zeros((len(x), fields, LANES), dtype=self.dtype),
        )
        if self.quasi is not None:
            walk.take_given(self.quasi)
        return walk

    def _check(self, walk: Walk, num_steps: int) -> None:
        """Raise FloatingPointError where a path left the finite numbers; warn of coordinates that rounding blurs."""
        x = walk.x
        if not np.isfinite(x).all():
            raise FloatingPointError(
                f"paths: a position became {x[~np.isfinite(x)][0]}; the velocity is not finite on the way, "
                f"or {num_steps} steps are too few for it"
            )
        roundings = 1 if len(walk.carry) else num_steps
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
class Walk:
    """A batch on its way: positions x (blocks, d, LANES), and what the paths have collected, advanced in place.

    carry: what rounding has kept out of x, of x's shape, or () where it is not kept.
    killed, earned: (blocks, LANES), ∫V and ∫ g e^(-∫V), a single block where there is none.
    total: (blocks, K, LANES), the control's martingales.
    """

    simulation: Simulation
    streams: NDArray[np.uint64]
    firsts: NDArray[np.int64]
    num_steps: int
    dt: float
    substeps: int
    scale: float
    control: tuple[Any, ...]
    x: NDArray[Any]
    carry: NDArray[Any] | tuple[()]
    killed: NDArray[np.float64]
    earned: NDArray[np.float64]
    total: NDArray[Any]
    given: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.kind = INCREMENTS[self.simulation.increments]
        self.given = np.empty((0, 0, self.simulation.columns, LANES), dtype=self.x.dtype)

    def take_given(self, quasi: SobolPaths) -> None:
        """Increments of all steps at once, as a Brownian bridge makes them."""
        db = quasi.increments(self.streams, self.firsts, self.scale, self.simulation.dtype)
        blocks, _, columns, lanes = db.shape
        self.given = db.reshape(blocks, -1, self.substeps, columns, lanes).sum(axis=2)
        self.kind = static(GIVEN)

    def positions(self) -> NDArray[np.float64]:
        """x in double precision, with what rounding has kept out of it."""
        return np.add(self.x, self.carry, dtype=np.float64) if isinstance(self.carry, np.ndarray) else self.x

    def advance(self, first: int, last: int) -> None:
        """Steps first .. last - 1, in which no field jumps."""
        sim = self.simulation
        middle = sim.t0 + 0.5 * (first + last) * self.dt
        fields = {name: value.standing(middle) for name, value in sim.fields.items()}
        if not sim.compiled:
            self._in_numpy(fields, first, last)
            return
        each = max(1, _STEPS_PER_CALL // (len(self.x) * LANES))
        for name, value in fields.items():
            levels_a_step = sim.columns if name == "sigma" else 1
            fitting = sim.lookup.fitting(value)
            if fitting < np.inf:  # tables of its own for each step
                each = max(1, min(each, _STEPS_IN_CACHE, int(fitting - 1) // levels_a_step))
        for n in range(first, last, each):
            self._compiled(fields, n, min(n + each, last))

    def _compiled(self, fields: dict[str, Field], first: int, last: int) -> None:
        sim = self.simulation

        def argument(name: str, levels_a_step: int = 1) -> Any:
            levels = levels_a_step * self.num_steps
            step = self.dt / levels_a_step
            return sim.lookup.argument(fields[name], sim.t0, step, levels_a_step * first, levels_a_step * last, levels)

        noise: tuple[Any, ...] = sim.mix(self.num_steps) if sim.additive else ()
        if not sim.additive:
            sigma = sim.problem.noise
            factor = np.array(sigma.factor or (1.0,) * sigma.dim)
            noise = factor, argument("sigma", sim.columns), static(len(fields["sigma"].shape))
        velocity = argument("velocity")
        potential = optional(argument("potential")) if "potential" in fields else ()
        source = optional(argument("source")) if "source" in fields else ()
        functions = [callable(part) for part in (velocity, *noise[1:2], *potential[1:], *source[1:])]
        spread(
            stepping.advance_user if any(functions) else stepping.advance_table,
            len(self.x),
            velocity,
            noise,
            potential,
            source,
            self.control,
            stepping.SCHEMES[sim.scheme],
            self.kind,
            sim.seed,
            self.streams,
            self.firsts,
            sim.t0,
            self.dt,
            first,
            last,
            self.substeps,
            self.scale,
            self.given,
            self.x,
            self.carry,
            self.killed,
            self.earned,
            self.total,
            items=len(self.x) * LANES * (last - first) * self.substeps,
        )

    def _in_numpy(self, fields: dict[str, Field], first: int, last: int) -> None:
        """The same steps for plain Python callables, with the same increments."""
        sim, x, dt = self.simulation, self.x, self.dt
        velocity, heun = fields["velocity"], sim.scheme == "heun"
        mix = None if not sim.additive or sim.problem.noise.number is not None else sim.matrices(self.num_steps)
        db = np.empty((len(x), sim.columns, LANES), dtype=x.dtype)
        rates = self._rates(fields, sim.t0 + first * dt)
        for n in range(first, last):
            t = sim.t0 + n * dt
            if len(self.kind) == GIVEN:
                db = self.given[:, n]
            else:
                which = (self.kind, sim.seed, self.streams, self.firsts, n, self.substeps, self.scale)
                increments_of_blocks(*which, db[:, None])
            f = values_on_lanes(velocity, x, t)
            sigma = None if sim.additive else self._sigma(fields["sigma"], x, t)
            if sigma is not None:
                dw = np.einsum("bcmi,bmi->bci", sigma, db)
            else:
                dw = db if mix is None else np.einsum("cm,bmi->bci", mix[min(n, len(mix) - 1)], db)
            drifted = x + dt * f
            if self.control:
                killed = self.killed if "potential" in fields else ()
                # rows in one piece: kernels count on it
                args = np.ascontiguousarray(drifted), np.ascontiguousarray(dw, dtype=x.dtype), self.total
                spread(stepping.control_of_blocks, len(x), self.control, killed, n, *args, items=x.size)
            if heun:
                f_end = values_on_lanes(velocity, drifted + dw, t + dt)
                if sigma is not None:
                    dw = dw + self._correction(fields["sigma"], n, f, db, sigma)
                f = 0.5 * (f + f_end)
            step = dw + dt * f
            if isinstance(self.carry, np.ndarray):
                step += self.carry
                before = x.copy()
                x += step
                self.carry[...] = step - (x - before)
            else:
                x += step
            if rates:
                rates = self._accrue(rates, fields, n)

    def _rates(self, fields: dict[str, Field], t: float) -> dict[str, NDArray[np.float64]]:
        """V and g at the paths' positions."""
        return {k: values_on_lanes(fields[k], self.x, t)[:, 0] for k in ("potential", "source") if k in fields}

    def _accrue(
        self, before: dict[str, NDArray[np.float64]], fields: dict[str, Field], n: int
    ) -> dict[str, NDArray[np.float64]]:
        """Add step n to the integrals by the trapezoidal rule; the rates at its end."""
        after, half = self._rates(fields, self.simulation.t0 + (n + 1) * self.dt), 0.5 * self.dt
        began = np.exp(-self.killed)
        if "potential" in after:
            self.killed += half * (before["potential"] + after["potential"])
        if "source" in after:
            self.earned += half * (began * before["source"] + np.exp(-self.killed) * after["source"])
        return after

    def _sigma(self, values: Field, x: NDArray[Any], t: float) -> NDArray[np.float64]:
        """σ at paths (blocks, d, LANES), (blocks, d, m, LANES)."""
        points = np.ascontiguousarray(np.moveaxis(x, 1, -1), dtype=np.float64)
        matrices = self.simulation.problem.noise.seen(values).matrix(points.reshape(-1, x.shape[1]), t)
        return np.moveaxis(matrices.reshape(*points.shape[:-1], *matrices.shape[1:]), 1, -1)

    def _correction(
        self, values: Field, n: int, f: NDArray[Any], db: NDArray[Any], sigma: NDArray[Any]
    ) -> NDArray[np.float64]:
        """What `diffusion.correct` adds."""
        sim, dt, m = self.simulation, self.dt, self.simulation.columns
        signs = np.empty((len(self.x), m * (m - 1) // 2, LANES))
        signs_of_blocks(sim.seed, self.streams, self.firsts, n, signs)
        added = np.zeros(self.x.shape)
        for r in range(m):
            middle, shift = self.x + dt / m * f, np.sqrt(dt) * sigma[:, :, r]
            t = sim.t0 + n * dt + dt / m
            up, down = (self._sigma(values, middle + side * shift, t) for side in (1.0, -1.0))
            for j in range(m):
                product = db[:, r] * db[:, j]
                if r == j:
                    product = product - dt
                else:
                    low, high = min(r, j), max(r, j)
                    product = product + (dt if r < j else -dt) * signs[:, high * (high - 1) // 2 + low]
                p, q = up[:, :, j], down[:, :, j]
                added += (0.25 * (p + q) - 0.5 * sigma[:, :, j]) * db[:, None, j]
                added += 0.25 / np.sqrt(dt) * (p - q) * product[:, None]
        return added


def values_on_lanes(values: Field, x: NDArray[Any], t: float) -> NDArray[np.float64]:
    """Values at paths x (blocks, d, LANES), (blocks, C, LANES)."""
    points = np.ascontiguousarray(np.moveaxis(x, 1, -1), dtype=np.float64)
    found = values.at(points.reshape(-1, x.shape[1]), t)
    return np.moveaxis(found.reshape(*points.shape[:-1], -1), -1, 1)
