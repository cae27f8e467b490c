"""Samples of E[f(X_T) | X_t0 = x] from paths: paired, extrapolated, of Sobol points, at several step sizes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from pdekit.numerics.lanes import LANES
from pdekit.paths.brownian import INCREMENTS
from pdekit.paths.estimate import block_moments
from pdekit.paths.simulation import Simulation
from pdekit.paths.sobol import SobolPaths
from pdekit.paths.stepping import WEAK_ORDER
from pdekit.runtime.checks import check_choice, check_flag

_REPLICATES = 16  # of a Sobol point set: enough for a standard error good to 18 per cent
_MOST_BITS = 20  # paths a replicate, as a power of two


@dataclass(frozen=True)
class Sampling:
    """How paths are drawn and put together.

    increments: "gaussian" or "two_point", ±√dt, which keeps the weak order of Euler-Maruyama at a third of the cost.
    antithetic: paths in pairs with opposite increments; a pair counts as one sample.
    qmc: scrambled Sobol points and a Brownian bridge instead of pseudo-random increments. `num_paths` is rounded up
        to 16 independent replicates of a power of two of paths; the standard error comes from their spread.
    extrapolate: Talay and Tubaro 1990: combine num_steps and num_steps / 2 on the same Brownian paths, which
        removes the leading term of the time-step bias.
    dtype: "float64" or "float32" for the paths; payoffs and sums are float64.

    Raises ValueError for other names, or flags that are neither True nor False.
    """

    increments: str = "gaussian"
    antithetic: bool = False
    qmc: bool = False
    extrapolate: bool = False
    dtype: str = "float64"

    def __post_init__(self) -> None:
        check_choice("increments", self.increments, INCREMENTS)
        for name in ("antithetic", "qmc", "extrapolate"):
            check_flag(name, getattr(self, name))
        if self.increments == "two_point" and self.qmc:
            raise ValueError("increments: expected gaussian with qmc=True, got two_point")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype: expected float64 or float32, got {self.dtype!r}")


@dataclass(frozen=True)
class Batch:
    """Samples first .. first + count - 1 of the streams `where`; doublings: how often their step is doubled, too."""

    doublings: int
    where: slice
    first: int
    count: int


@dataclass(eq=False)
class Samples:
    """The samples of all streams, each a function of its number; a stream is a point, or one of its replicates.

    points: (S, d), keys: (S,) of the streams; replicates: streams a point; order: weak order of the time step.
    """

    simulation: Simulation
    points: NDArray[np.float64]
    keys: NDArray[np.uint64]
    num_steps: int
    sampling: Sampling
    replicates: int

    @classmethod
    def of(
        cls, simulation: Simulation, points: NDArray[np.float64], num_steps: int, sampling: Sampling, first_point: int
    ) -> Samples:
        """Of points (P, d), of which the first has the number `first_point`."""
        replicates = _REPLICATES if sampling.qmc else 1
        keys = replicates * first_point + np.arange(replicates * len(points), dtype=np.uint64)
        return cls(simulation, np.repeat(points, replicates, axis=0), keys, num_steps, sampling, replicates)

    @property
    def order(self) -> int:
        return WEAK_ORDER[self.simulation.scheme] + int(self.sampling.extrapolate)

    @property
    def paths_each(self) -> int:
        """Paths a point behind one sample of each of its streams."""
        return self.replicates * (2 if self.sampling.antithetic else 1)

    @property
    def doublings(self) -> int:
        """How often the step can be doubled, twice at most, without straddling a jump."""
        whole = [self.num_steps, *self.simulation.jump_steps(self.num_steps)]
        possible = next(k for k in (2, 1, 0) if all(steps % 2**k == 0 for steps in whole))
        return possible - int(self.sampling.extrapolate)

    def most(self, num_paths: int, *, exact: bool) -> int:
        """Samples a stream for so many paths a point. Lays out the Sobol points, which are that many at most.

        Raises ValueError for more Sobol points than there are, if they are to be that many exactly.
        """
        count = num_paths / self.paths_each
        if not self.sampling.qmc:
            return ceil(count)
        bits = max(8, ceil(log2(count)))
        if bits > _MOST_BITS and exact:
            most = 2**_MOST_BITS * self.paths_each
            raise ValueError(f"num_paths: expected at most {most:,} with qmc=True, got {num_paths:,}")
        bits = min(bits, _MOST_BITS)
        sim = self.simulation
        sim.quasi = SobolPaths(sim.seed, self.num_steps, sim.columns, self.replicates, bits)
        return 2**bits

    def rounded(self, count: float) -> int:
        """A number of samples up to whole blocks, or for Sobol points to a power of two."""
        if self.simulation.quasi is None:
            return LANES * max(1, ceil(count / LANES))
        return 2 ** min(self.simulation.quasi.bits, max(8, ceil(log2(count))))

    def at(self, batch: Batch, coarsening: int) -> NDArray[np.float64]:
        """Samples (streams, count) or (streams, K, count) with steps `coarsening` times as long."""
        fine = self._walk(batch, coarsening)
        if not self.sampling.extrapolate:
            return fine
        weight = 1.0 / (2 ** WEAK_ORDER[self.simulation.scheme] - 1)
        return fine + weight * (fine - self._walk(batch, 2 * coarsening))

    def _walk(self, batch: Batch, coarsening: int) -> NDArray[np.float64]:
        steps = self.num_steps // coarsening
        args = (self.points[batch.where], self.keys[batch.where], batch.first, batch.count, steps)
        values = self.simulation.payoffs(*args, substeps=coarsening)
        if self.sampling.antithetic:
            values = 0.5 * (values + self.simulation.payoffs(*args, substeps=coarsening, sign=-1))
        return values

    def cost(self, batch: Batch) -> int:
        """Path-steps of a batch, whole blocks of lanes counted."""
        walks = [2**k for k in range(batch.doublings + 1)]
        steps = sum(self.num_steps // c for c in walks)
        if self.sampling.extrapolate:
            steps += sum(self.num_steps // (2 * c) for c in walks)
        blocks = -(-batch.count // LANES) * len(self.points[batch.where])
        return blocks * LANES * steps * (2 if self.sampling.antithetic else 1)


def moments_of(samples: Samples, batch: Batch) -> list[NDArray[np.float64]]:
    """Block moments of samples, or of how far a doubled step moves them and how much too far a second one does."""
    fine = samples.at(batch, 1)
    if batch.doublings == 0:
        return [block_moments(fine)]
    coarse = samples.at(batch, 2)
    change = coarse - fine
    if batch.doublings == 1:
        return [block_moments(change)]
    surplus = samples.at(batch, 4) - coarse - 2**samples.order * change
    return [block_moments(change), block_moments(surplus)]
