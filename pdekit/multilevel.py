"""Multilevel Monte Carlo: E[P_L] as the sum of E[P_l - P_{l-1}] over levels of doubling step numbers.

After M. B. Giles, "Multilevel Monte Carlo methods", Acta Numerica 2015, Algorithm 1 and Section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.characteristics import check_points
from pdekit.estimate import Estimate
from pdekit.paths import SCHEMES, WEAK_ORDER
from pdekit.problem import ConvectionDiffusion
from pdekit.sampler import Rng
from pdekit.simulation import Simulation
from pdekit.threefry import LANES, seed_of
from pdekit.velocity import RedrawnVelocity

LevelFunction = Callable[[int, int], ArrayLike]

# Shares of rmse²: half for the sampling error, a quarter for the bias, and a quarter in reserve, as both are
# estimated from the same samples: with nothing in reserve the delivered error exceeds the requested one.
_SAMPLING, _BIAS = 0.5, 0.25
_PILOT = 4 * LANES
_FINEST_START = 64
_LEVEL_STREAM = 40  # bits of a stream left for the point's index, below those of the level


@dataclass(frozen=True, eq=False)
class MultilevelEstimate(Estimate):
    """An `Estimate` with the diagnostics of its levels, l = 0 .. L; arrays by level (and point: (L + 1, P)).

    num_paths: samples over all levels; num_steps: steps at the finest; cost: in units of the cost model, path-steps
    for a problem.
    rmse: the requested root-mean-square error.
    num_samples, level_cost: (L + 1,) samples and cost of one.
    mean_fine, variance_fine: of P_l; mean_difference, variance_difference: of P_l - P_{l-1} (P_0 at l = 0).
    kurtosis: of the difference; over 100 its variance is not to be trusted.
    consistency: |E P_{l-1} - E P_l + E(P_l - P_{l-1})| over three standard deviations; over 1 something is wrong.
    alpha, beta, gamma: fitted rates of |mean| ~ 2^(-alpha l), variance ~ 2^(-beta l), cost ~ 2^(gamma l).
    """

    rmse: float = 0.0
    num_samples: NDArray[np.int64] = None  # type: ignore[assignment]
    level_cost: NDArray[np.float64] = None  # type: ignore[assignment]
    mean_fine: NDArray[np.float64] = None  # type: ignore[assignment]
    variance_fine: NDArray[np.float64] = None  # type: ignore[assignment]
    mean_difference: NDArray[np.float64] = None  # type: ignore[assignment]
    variance_difference: NDArray[np.float64] = None  # type: ignore[assignment]
    kurtosis: NDArray[np.float64] = None  # type: ignore[assignment]
    consistency: NDArray[np.float64] = None  # type: ignore[assignment]
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0

    @property
    def plain_cost(self) -> float:
        """Cost of plain Monte Carlo with the finest step and the same share of rmse² for its sampling error."""
        return float(self.variance_fine[-1].max() / (_SAMPLING * self.rmse**2) * self.level_cost[-1])

    def __repr__(self) -> str:
        head = super().__repr__().replace("Estimate(", "MultilevelEstimate(", 1)
        rows = ["  level   samples     cost    mean P_l    var P_l     mean Y_l    var Y_l   kurtosis  consistency"]
        kurtosis, consistency = self.kurtosis.max(axis=1), self.consistency.max(axis=1)
        for l in range(len(self.num_samples)):
            fine = f"{self.mean_fine[l, 0]: 11.4g} {self.variance_fine[l, 0]:10.3g}"
            difference = f"{self.mean_difference[l, 0]: 12.4g} {self.variance_difference[l, 0]:10.3g}"
            work = f"{self.num_samples[l]:9d} {self.level_cost[l]:8.3g}"
            rows.append(f"  {l:5d} {work} {fine} {difference} {kurtosis[l]:10.3g} {consistency[l]:12.2g}")
        rates = f"  alpha {self.alpha:.2f}, beta {self.beta:.2f}, gamma {self.gamma:.2f}; "
        return "\n".join([head, *rows, rates + f"plain Monte Carlo would cost {self.plain_cost / self.cost:.3g} times"])


def multilevel(
    source: ConvectionDiffusion | LevelFunction,
    points: ArrayLike | None = None,
    *,
    rmse: float,
    scheme: str = "heun",
    rng: Rng = 0,
    t0: float = 0.0,
    first_steps: int | None = None,
    max_level: int = 16,
    alpha: float | None = None,
    beta: float | None = None,
    level_cost: Callable[[int], float] | None = None,
) -> MultilevelEstimate:
    """Estimate E[P] to a root-mean-square error, sampling and bias together.

    source: a problem, for u(x, t0) at points (P, d), every point to the same rmse; or a level function
        (level, num_samples) -> sums (6,) or (6, P) over that many new, independent samples of
        Y, Y², Y³, Y⁴, P, P², where P = P_l and Y = P_l - P_{l-1} from the same randomness (Y = P_0 at level 0).
    rmse: requested error; half of rmse² goes to sampling, a quarter to the bias, a quarter is kept in reserve.
    scheme, rng, t0: for a problem, as in `feynman_kac`.
    first_steps: steps at level 0 of a problem; by default the fewest for which the next level's coupling pays.
    max_level: finest level allowed; RuntimeWarning where the bias is then still too large.
    alpha, beta: weak rate and rate of the variance; by default fitted, at least 0.5.
    level_cost: cost of a sample at a level; by default path-steps for a problem, 2**level for a level function.

    Warns (RuntimeWarning) of a kurtosis over 100 or a consistency check over 1.
    Raises ValueError for arguments that do not fit, or sums of a wrong shape or not finite.
    """
    start = perf_counter()
    if not (np.isfinite(rmse) and rmse > 0.0):
        raise ValueError(f"rmse: expected a positive error, got {rmse}")
    if max_level < 2:
        raise ValueError(f"max_level: expected at least 2, got {max_level}")
    if not isinstance(source, ConvectionDiffusion):
        if points is not None:
            raise ValueError("points: expected None with a level function, which knows its own")
        run = _Run(source, rmse, level_cost or (lambda l: 2.0**l), max_level, alpha, beta)
        run.converge()
        return run.result("own", 2 ** (len(run.counts) - 1), start)
    if points is None:
        raise ValueError("points: expected an array (P, d) for a problem, got None")
    levels = ProblemLevels(source, points, scheme=scheme, rng=rng, t0=t0, first_steps=first_steps)
    run = _Run(levels, rmse, level_cost or levels.cost, max_level, alpha or WEAK_ORDER[scheme], beta)
    run.converge()
    return run.result(scheme, levels.steps(len(run.counts) - 1), start)


class ProblemLevels:
    """Level function of a problem: first_steps * 2**level steps, coupled through the same Brownian path.

    The coarse path is drawn again with its increments summed in pairs; every sample of every level has its own
    counter, so results do not depend on how the samples were asked for.
    """

    def __init__(
        self,
        problem: ConvectionDiffusion,
        points: ArrayLike,
        *,
        scheme: str = "heun",
        rng: Rng = 0,
        t0: float = 0.0,
        first_steps: int | None = None,
    ) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
        if not problem.sigma > 0.0:
            raise ValueError("sigma: expected noise to sample, got 0; use characteristics instead")
        self.points = check_points(points, problem)
        self._sim = Simulation(problem, seed_of(rng), scheme, t0=t0)
        if not self._sim.duration > 0.0:
            raise ValueError(f"t0: expected a time before the horizon {problem.horizon:g}, got {t0}")
        self._done: dict[int, int] = {}
        if first_steps is not None and first_steps < 1:
            raise ValueError(f"first_steps: expected at least 1, got {first_steps}")
        self.first_steps = first_steps or self._choose_start()

    def steps(self, level: int) -> int:
        return self.first_steps * 2**level

    def cost(self, level: int) -> float:
        """Path-steps of one sample, the coarse path included."""
        return self.first_steps * (1.5 * 2**level if level else 1.0)

    def __call__(self, level: int, num_samples: int) -> NDArray[np.float64]:
        """Sums (6, P) over new samples, their number rounded up to whole blocks by the caller."""
        first = self._done.get(level, 0)
        self._done[level] = first + num_samples
        sums = np.zeros((6, len(self.points)))
        for where, begin, count in self._sim.batches(len(self.points), num_samples, self.steps(level)):
            fine, coarse = self._pair(level, where, first + begin, count, self.steps(level))
            difference = fine if level == 0 else fine - coarse
            powers = [difference, difference**2, difference**3, difference**4, fine, fine**2]
            sums[:, where] += [p.sum(axis=1) for p in powers]
        return sums

    def _pair(
        self, level: int, where: slice, first: int, count: int, steps: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        index = np.arange(len(self.points), dtype=np.uint64)[where]
        # Level 0 has a stream of its own too: `feynman_kac` with the same seed must be an independent check.
        args = (self.points[where], index + np.uint64((level + 1) << _LEVEL_STREAM), first, count)
        fine = self._sim.payoffs(*args, steps)
        return fine, fine if level == 0 else self._sim.payoffs(*args, steps // 2, substeps=2)

    def _choose_start(self) -> int:
        """Fewest steps m at which levels from m on cost less than levels from 2m on (Giles 2015, Section 2.6)."""
        velocity = self._sim.problem.velocity
        m = 1
        if isinstance(velocity, RedrawnVelocity):  # a step may not straddle two intervals
            m = ceil(self._sim.duration / velocity.interval - 1e-9)
        pilot_level = 2**20
        while m < _FINEST_START:
            fine, coarse = self._pair(pilot_level + m, slice(None), 0, 2 * _PILOT, 2 * m)
            below, above = coarse.var(axis=1), fine.var(axis=1)
            extra = (fine - coarse).var(axis=1)
            if (np.sqrt(below * m) + np.sqrt(extra * 3 * m) < np.sqrt(above * 2 * m)).all():
                break
            m *= 2
        return m


class _Run:
    """The adaptive loop and the sums it has gathered."""

    def __init__(
        self,
        function: LevelFunction,
        rmse: float,
        cost: Callable[[int], float],
        max_level: int,
        alpha: float | None,
        beta: float | None,
    ) -> None:
        self.function, self.rmse, self.cost, self.max_level = function, rmse, cost, max_level
        self.given_alpha, self.given_beta = alpha, beta
        self.counts: list[int] = []
        self.sums: list[NDArray[np.float64]] = []

    def converge(self) -> None:
        """Add samples where they are worth most, and levels until the bias is small enough (Giles 2015, Alg. 1)."""
        for level in range(3):
            self._extend(level, _PILOT)
        while True:
            wanted = self._wanted()
            missing = [n - m for n, m in zip(wanted, self.counts, strict=True)]
            # The last per cent is not worth another look.
            if any(more > 0.01 * have for more, have in zip(missing, self.counts, strict=True)):
                for level, more in enumerate(missing):
                    # Ten times at most, for the variance of few samples may mislead.
                    if more > 0:
                        self._extend(level, min(more, 9 * self.counts[level]))
                continue
            if self.bias().max() <= sqrt(_BIAS) * self.rmse:
                return
            if len(self.counts) > self.max_level:
                warnings.warn(
                    f"multilevel: bias {self.bias().max():.2g} at level {self.max_level}, the finest allowed, "
                    f"where {sqrt(_BIAS) * self.rmse:.2g} was wanted",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return
            self._extend(len(self.counts), _PILOT)

    def _extend(self, level: int, samples: int) -> None:
        number = LANES * ceil(samples / LANES)
        sums = np.asarray(self.function(level, number), dtype=np.float64)
        if sums.ndim not in (1, 2) or sums.shape[0] != 6:
            raise ValueError(f"level function: expected sums of shape (6,) or (6, P), got {sums.shape}")
        if not np.isfinite(sums).all():
            raise ValueError(f"level function: expected finite sums, got {sums[~np.isfinite(sums)][0]} at {level}")
        sums = sums.reshape(6, -1)
        if level == len(self.counts):
            self.counts.append(0)
            self.sums.append(np.zeros_like(sums))
        self.counts[level] += number
        self.sums[level] += sums

    def _moments(self, first: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance (L + 1, P) of the quantity whose sum and sum of squares stand at first, first + 1."""
        n = np.array(self.counts, dtype=float)[:, None]
        total, squares = (np.stack([s[k] for s in self.sums]) for k in (first, first + 1))
        mean = total / n
        return mean, np.maximum(squares / n - mean**2, 0.0) * n / (n - 1)

    def _variances(self) -> NDArray[np.float64]:
        """Variances of the differences, where levels with few samples may not fall far below the rate's prediction."""
        _, variance = self._moments(0)
        for l in range(2, len(variance)):
            variance[l] = np.maximum(variance[l], 0.5 * variance[l - 1] / 2**self.beta)
        return variance

    def _wanted(self) -> list[int]:
        variance = self._variances()
        cost = np.array([self.cost(l) for l in range(len(variance))])[:, None]
        total = np.sqrt(variance * cost).sum(axis=0)
        n = np.sqrt(variance / cost) * total / (_SAMPLING * self.rmse**2)
        return [int(v) for v in np.ceil(n.max(axis=1))]

    @property
    def alpha(self) -> float:
        return self.given_alpha or max(0.5, -_slope(np.abs(self._moments(0)[0])))

    @property
    def beta(self) -> float:
        return self.given_beta or max(0.5, -_slope(self._moments(0)[1]))

    def bias(self) -> NDArray[np.float64]:
        """Bound on |E[P - P_L]| (P,): the largest that the last three levels predict, one standard error added.

        A fitted rate or the last mean alone is too optimistic where means change sign or are mostly noise.
        """
        mean, variance = self._moments(0)
        high = np.abs(mean) + np.sqrt(variance / np.array(self.counts)[:, None])
        last = len(self.counts) - 1
        back = range(min(3, last))
        return np.max([high[last - k] / 2 ** (self.alpha * k) for k in back], axis=0) / (2**self.alpha - 1)

    def result(self, scheme: str, num_steps: int, start: float) -> MultilevelEstimate:
        mean, variance = self._moments(0)
        mean_fine, variance_fine = self._moments(4)
        n = np.array(self.counts, dtype=float)[:, None]
        cost = np.array([self.cost(l) for l in range(len(n))])
        consistency = np.zeros_like(mean)
        deviations = (np.sqrt(variance_fine / n)[:-1], np.sqrt(variance_fine / n)[1:], np.sqrt(variance / n)[1:])
        gap = np.abs(mean_fine[:-1] - mean_fine[1:] + mean[1:])
        consistency[1:] = gap / (3.0 * np.maximum(sum(deviations), np.finfo(float).tiny))
        kurtosis = self._kurtosis(mean, variance)
        _warn(kurtosis, consistency)
        standard_error = np.sqrt((variance / n).sum(axis=0))
        return MultilevelEstimate(
            mean=mean.sum(axis=0),
            standard_error=standard_error,
            num_paths=sum(self.counts),
            num_steps=num_steps,
            scheme=scheme,
            bias_estimate=-mean[-1] / (2**self.alpha - 1),
            bias_standard_error=np.sqrt(variance[-1] / n[-1]) / (2**self.alpha - 1),
            cost=int(n[:, 0] @ cost),
            seconds=perf_counter() - start,
            rmse=self.rmse,
            num_samples=np.array(self.counts),
            level_cost=cost,
            mean_fine=mean_fine,
            variance_fine=variance_fine,
            mean_difference=mean,
            variance_difference=variance,
            kurtosis=kurtosis,
            consistency=consistency,
            alpha=max(0.0, -_slope(np.abs(mean))),
            beta=max(0.0, -_slope(variance)),
            gamma=_slope(cost[:, None]),
        )

    def _kurtosis(self, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
        n = np.array(self.counts, dtype=float)[:, None]
        second, third, fourth = (np.stack([s[k] for s in self.sums]) / n for k in (1, 2, 3))
        central = fourth - 4 * third * mean + 6 * second * mean**2 - 3 * mean**4
        safe = np.maximum(variance, np.finfo(float).tiny ** 0.25)
        return np.where(variance > 0, central / safe**2, 0.0)


def _slope(values: NDArray[np.float64]) -> float:
    """Least-squares slope of log2(values) over the levels from 1 on, the mean over points."""
    levels = np.arange(1, len(values))
    logs = np.log2(np.maximum(values[1:], np.finfo(float).tiny))
    return float(np.polyfit(levels, logs.mean(axis=1), 1)[0])


def _warn(kurtosis: NDArray[np.float64], consistency: NDArray[np.float64]) -> None:
    if kurtosis.max() > 100.0:
        level = int(np.argmax(kurtosis.max(axis=1)))
        warnings.warn(
            f"multilevel: kurtosis {kurtosis.max():.3g} at level {level} is over 100; few samples carry its variance, "
            "so the standard error is not to be trusted",
            RuntimeWarning,
            stacklevel=4,
        )
    if consistency.max() > 1.0:
        level = int(np.argmax(consistency.max(axis=1)))
        warnings.warn(
            f"multilevel: levels {level - 1} and {level} do not agree (consistency {consistency.max():.2g} is over 1): "
            "the fine paths of one level and the coarse paths of the next are not the same in law",
            RuntimeWarning,
            stacklevel=4,
        )
