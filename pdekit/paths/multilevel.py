"""Multilevel Monte Carlo: E[P_L] as the sum of E[P_l - P_{l-1}] over levels of doubling step numbers.

After M. B. Giles, "Multilevel Monte Carlo methods", Acta Numerica 2015, Algorithm 1 and Section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.characteristics import check_points
from pdekit.numerics.lanes import LANES
from pdekit.paths.estimate import Estimate
from pdekit.paths.sampler import Rng, check_start, repeatable
from pdekit.paths.simulation import Simulation
from pdekit.paths.stepping import SCHEMES, WEAK_ORDER
from pdekit.paths.threefry import seed_of
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_choice, check_real, check_whole
from pdekit.runtime.progress import Progress
from pdekit.runtime.shards import in_order

LevelFunction = Callable[[int, int], ArrayLike]

# Shares of rmse²: half for the sampling error, a quarter for the bias, and a quarter in reserve, as both are
# estimated from the same samples: with nothing in reserve the delivered error exceeds the requested one.
_SAMPLING, _BIAS = 0.5, 0.25
_PILOT = 4 * LANES
_CALL = 2**18  # samples asked for at a time, so that a bar moves and a level function may hold them all
_UNCERTAIN = 0.3  # relative standard error of the sampling variance over which kurtosis is warned of
_FINEST_START = 64
_LEVEL_STREAM = 40  # bits of a stream left for the point's index, below those of the level


@dataclass(frozen=True, eq=False, kw_only=True)
class MultilevelEstimate(Estimate):
    """An `Estimate` with the diagnostics of its levels, l = 0 .. L; arrays by level (and point: (L + 1, P), of K
    functions (L + 1, P K)).

    num_paths: samples over all levels; num_steps: steps at the finest; cost: in units of the cost model, path-steps
    for a problem.
    rmse: the root-mean-square error aimed at: the requested one, or what `max_cost` allows.
    num_samples, level_cost: (L + 1,) samples and cost of one.
    mean_fine, variance_fine: of P_l; mean_difference, variance_difference: of P_l - P_{l-1} (P_0 at l = 0).
    kurtosis: of the difference; where it is large and samples are few, the variance is not to be trusted.
    consistency: |E P_{l-1} - E P_l + E(P_l - P_{l-1})| over three standard deviations; over 1 something is wrong.
    alpha, beta, gamma: fitted rates of |mean| ~ 2^(-alpha l), variance ~ 2^(-beta l), cost ~ 2^(gamma l).
    """

    rmse: float
    num_samples: NDArray[np.int64]
    level_cost: NDArray[np.float64]
    mean_fine: NDArray[np.float64]
    variance_fine: NDArray[np.float64]
    mean_difference: NDArray[np.float64]
    variance_difference: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    consistency: NDArray[np.float64]
    alpha: float
    beta: float
    gamma: float

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
    rng: Rng = None,
    t0: float = 0.0,
    first_steps: int | None = None,
    max_level: int = 16,
    max_cost: float = 1e10,
    alpha: float | None = None,
    beta: float | None = None,
    level_cost: Callable[[int], float] | None = None,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> MultilevelEstimate:
    """Estimate E[P] to a root-mean-square error, sampling and bias together.

    source: a problem, for u(x, t0) at points (P, d), every point and every terminal function to the same rmse, as in
        `feynman_kac`, with K functions (P, K); or a level function
        (level, num_samples) -> sums (6,) or (6, P) over that many new, independent samples of
        Y, Y², Y³, Y⁴, P, P², where P = P_l and Y = P_l - P_{l-1} from the same randomness (Y = P_0 at level 0).
    rmse: requested error; half of rmse² goes to sampling, a quarter to the bias, a quarter is kept in reserve.
    scheme, rng, t0: for a problem, as in `feynman_kac`.
    first_steps: steps at level 0 of a problem; by default the fewest for which the next level's coupling pays.
    max_level: finest level allowed; RuntimeWarning where the bias is then still too large.
    max_cost: the most to spend, in units of the cost model, for a problem path-steps a point (1e10 take a core one
        to six minutes). Where rmse takes more, a RuntimeWarning says so before it is spent, and the error that is
        within reach is aimed at.
    alpha, beta: weak rate and rate of the variance; by default fitted, at least 0.5.
    level_cost: cost of a sample at a level; by default path-steps for a problem, 2**level for a level function.
    executor: a `concurrent.futures.Executor` whose processes share the paths of a problem; same bits as without.
    progress: show a progress bar; default: on a terminal only.

    Warns (RuntimeWarning) where heavy tails leave the sampling error in doubt or a consistency check is over 1.
    Raises ValueError for arguments that do not fit, or sums that cannot be: of a wrong or changing shape, complex, not
    finite, against Cauchy and Schwarz, or of samples that are not new and independent (means in place of sums, too).
    """
    start = perf_counter()
    rmse, max_level = check_real("rmse", rmse, "a positive error"), check_whole("max_level", max_level, 2)
    if max_cost != inf:
        max_cost = check_real("max_cost", max_cost, "a positive cost")
    alpha = None if alpha is None else check_real("alpha", alpha, "a positive rate")
    beta = None if beta is None else check_real("beta", beta, "a positive rate")
    if level_cost is not None and not callable(level_cost):
        raise ValueError(f"level_cost: expected a function of the level, got {level_cost!r}")
    if not isinstance(source, ConvectionDiffusion):
        if not callable(source):
            raise ValueError(f"source: expected a ConvectionDiffusion or a level function, got {source!r}")
        if points is not None:
            raise ValueError("points: expected None with a level function, which knows its own")
        if executor is not None:
            raise ValueError("executor: expected None with a level function, which may use one itself")
        run = _Run(source, rmse, level_cost or (lambda l: 2.0**l), max_level, max_cost, alpha, beta)
        run.converge(progress)
        return run.result("own", 2 ** (len(run.counts) - 1), start, None)
    if points is None:
        raise ValueError("points: expected an array (P, d) for a problem, got None")
    levels = ProblemLevels(source, points, scheme=scheme, rng=rng, t0=t0, first_steps=first_steps, executor=executor)
    run = _Run(levels, rmse, level_cost or levels.cost, max_level, max_cost, alpha or WEAK_ORDER[scheme], beta)
    run.converge(progress)
    found = run.result(levels.scheme_used, levels.steps(len(run.counts) - 1), start, levels.seed)
    found = replace(found, points=check_points(points, source))
    if source.num_fields is None:
        return found
    names = ("mean", "standard_error", "bias_estimate", "bias_standard_error")
    return replace(found, **{name: getattr(found, name).reshape(len(levels.points), -1) for name in names})


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
        rng: Rng = None,
        t0: float = 0.0,
        first_steps: int | None = None,
        executor: Executor | None = None,
    ) -> None:
        check_choice("scheme", scheme, SCHEMES)
        if problem.noise.none:
            raise ValueError("sigma: expected noise to sample, got 0; use characteristics instead")
        self.seed = repeatable(rng)
        simulation = Simulation(problem.on_unit_box, seed_of(self.seed), scheme, t0=check_start(t0, problem))
        self._coupled = _Coupled(simulation, problem.to_unit(check_points(points, problem)))
        self._executor = executor
        self._done: dict[int, int] = {}
        self.first_steps = self._choose_start() if first_steps is None else check_whole("first_steps", first_steps, 1)

    @property
    def points(self) -> NDArray[np.float64]:
        return self._coupled.points

    def steps(self, level: int) -> int:
        return self.first_steps * 2**level

    def cost(self, level: int) -> float:
        """Path-steps of one sample, the coarse path included."""
        return self.first_steps * (1.5 * 2**level if level else 1.0)

    @property
    def scheme_used(self) -> str:
        return self._coupled.simulation.scheme_used

    def __call__(self, level: int, num_samples: int) -> NDArray[np.float64]:
        """Sums (6, P), or (6, P K) for K functions, over new samples, of which the caller asks for whole blocks."""
        first = self._done.get(level, 0)
        self._done[level] = first + num_samples
        steps = self.steps(level)
        shards = [
            _Pairs(level, where, first + begin, count, steps)
            for where, begin, count in self._coupled.simulation.batches(len(self.points), num_samples, steps)
        ]
        sums = np.zeros((6, len(self.points), self._coupled.simulation.problem.num_fields or 1))
        for shard, found in zip(shards, in_order(self._executor, _sums_of, self._coupled, shards, each=8), strict=True):
            sums[:, shard.where] += found.reshape(6, -1, sums.shape[2])
        return sums.reshape(6, -1)

    def _choose_start(self) -> int:
        """Fewest steps m at which levels from m on cost less than levels from 2m on (Giles 2015, Section 2.6)."""
        simulation = self._coupled.simulation
        m = 1
        for field in simulation.fields.values():
            if field.jumps:  # a step may not straddle two intervals
                m = max(m, ceil(simulation.duration / field.interval - 1e-9))
        pilot_level = 2**20
        while m < _FINEST_START:
            fine, coarse = self._coupled(_Pairs(pilot_level + m, slice(None), 0, 2 * _PILOT, 2 * m))
            below, above = coarse.var(axis=-1), fine.var(axis=-1)
            extra = (fine - coarse).var(axis=-1)
            if (np.sqrt(below * m) + np.sqrt(extra * 3 * m) < np.sqrt(above * 2 * m)).all():
                break
            m *= 2
        return m


@dataclass(frozen=True)
class _Pairs:
    """Samples first .. first + count - 1 of a level at the points `where`, of so many steps."""

    level: int
    where: slice
    first: int
    count: int
    steps: int


@dataclass(frozen=True)
class _Coupled:
    """Fine and coarse paths on the same Brownian path."""

    simulation: Simulation
    points: NDArray[np.float64]

    def __call__(self, pairs: _Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        index = np.arange(len(self.points), dtype=np.uint64)[pairs.where]
        # Level 0 has a stream of its own too: `feynman_kac` with the same seed must be an independent check.
        keys = index + np.uint64((pairs.level + 1) << _LEVEL_STREAM)
        args = (self.points[pairs.where], keys, pairs.first, pairs.count)
        fine = self.simulation.payoffs(*args, pairs.steps)
        if pairs.level == 0:
            return fine, fine
        return fine, self.simulation.payoffs(*args, pairs.steps // 2, substeps=2)


def _sums_of(coupled: _Coupled, pairs: _Pairs) -> NDArray[np.float64]:
    """Sums (6, points) of Y, Y², Y³, Y⁴, P, P²."""
    fine, coarse = coupled(pairs)
    difference = fine if pairs.level == 0 else fine - coarse
    powers = [difference, difference**2, difference**3, difference**4, fine, fine**2]
    return np.stack([p.sum(axis=-1) for p in powers])


class _Run:
    """The adaptive loop and the sums it has gathered."""

    def __init__(
        self,
        function: LevelFunction,
        rmse: float,
        cost: Callable[[int], float],
        max_level: int,
        max_cost: float,
        alpha: float | None,
        beta: float | None,
    ) -> None:
        self.function, self.rmse, self.max_level = function, rmse, max_level
        self.cost = lambda level: check_real(f"level_cost({level})", cost(level), "a positive cost")
        for level in range(3):
            self.cost(level)  # a cost that cannot be is told of before anything is sampled
        self.max_cost, self.limited = max_cost, False
        self.given_alpha, self.given_beta = alpha, beta
        self.counts: list[int] = []
        self.sums: list[NDArray[np.float64]] = []
        self.shape: tuple[int, ...] = ()
        self.spread: list[NDArray[np.float64]] = []

    def converge(self, progress: bool | None) -> None:
        """Add samples where they are worth most, and levels until the bias is small enough (Giles 2015, Alg. 1)."""
        with Progress("multilevel", total=1.0, enabled=progress) as bar:
            for level in range(3):
                self._pilot(level)
            self._check_independence()
            while True:
                wanted = self._affordable()
                missing = [n - m for n, m in zip(wanted, self.counts, strict=True)]
                # The last per cent is not worth another look.
                if any(more > 0.01 * have for more, have in zip(missing, self.counts, strict=True)):
                    for level, more in enumerate(missing):
                        # Ten times at most, for the variance of few samples may mislead.
                        if more > 0:
                            self._extend(level, min(more, 9 * self.counts[level]), bar, self._price(wanted))
                    continue
                if self.bias().max() <= sqrt(_BIAS) * self.rmse:
                    return
                level = len(self.counts)
                spent = self._price(self.counts)
                if level > self.max_level or spent + _PILOT * self.cost(level) > self.max_cost:
                    limit = "the finest allowed" if level > self.max_level else "the finest within max_cost"
                    warnings.warn(
                        f"multilevel: bias {self.bias().max():.2g} at level {level - 1}, {limit}, "
                        f"where {sqrt(_BIAS) * self.rmse:.2g} was wanted",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                    return
                self._pilot(level)

    def _price(self, counts: list[int]) -> float:
        return sum(n * self.cost(l) for l, n in enumerate(counts))

    def _affordable(self) -> list[int]:
        """Samples wanted; where they cost too much, for the smallest error within `max_cost`, aimed at from then on."""
        wanted = self._wanted()
        price = self._price([max(n, m) for n, m in zip(wanted, self.counts, strict=True)])
        if price <= self.max_cost:
            return wanted
        reachable = self.rmse * sqrt(2.0 * price / self.max_cost)  # half of the cost is kept for finer levels
        if not self.limited:
            self.limited = True
            warnings.warn(
                f"multilevel: rmse {self.rmse:.2g} takes a cost of about {price:.2g}, more than max_cost = "
                f"{self.max_cost:.2g}; about {reachable:.2g} is within reach and aimed at",
                RuntimeWarning,
                stacklevel=4,
            )
        self.rmse = reachable
        return self._wanted()

    def _pilot(self, level: int) -> None:
        """The first samples of a level, in four calls."""
        parts = np.stack([self._sums(level, LANES) for _ in range(_PILOT // LANES)])
        self.counts.append(_PILOT)
        self.sums.append(parts.sum(axis=0))
        mean, variance = (m[level] for m in self._moments(0))
        squares = ((parts[:, 0] - LANES * mean) ** 2).sum(axis=0)
        self.spread.append(squares / np.maximum(LANES * variance, np.finfo(float).tiny))

    def _check_independence(self) -> None:
        """Sums of independent samples differ between calls as their squares say: χ² with 3 degrees a level.

        Below 0.1 it falls once in 10⁷ for three levels; means in place of sums leave 3/256 a level.
        """
        total = np.sum(self.spread, axis=0)
        if (self._moments(0)[1] > 0.0).all() and (total < 0.1).all():
            raise ValueError(
                f"level function: expected sums over new, independent samples, got sums that vary between calls by "
                f"{total.max() / (3 * len(self.spread)):.1g} of what their squares say: means in place of sums, or the "
                "same samples again"
            )

    def _extend(self, level: int, samples: int, bar: Progress, price: float) -> None:
        missing = LANES * ceil(samples / LANES)
        while missing > 0:
            number = min(missing, _CALL)
            self.sums[level] += self._sums(level, number)
            self.counts[level] += number
            missing -= number
            bar.update(self._price(self.counts) / price)

    def _sums(self, level: int, number: int) -> NDArray[np.float64]:
        """Sums (6, P) over new samples, checked for all that can be known of them."""
        sums = np.asarray(self.function(level, number))
        if sums.dtype.kind not in "fiu":
            raise ValueError(f"level function: expected real sums, got dtype {sums.dtype} at level {level}")
        if sums.ndim not in (1, 2) or sums.shape[0] != 6 or sums.size == 0:
            raise ValueError(f"level function: expected sums of shape (6,) or (6, P), got {sums.shape}")
        if not np.isfinite(sums).all():
            raise ValueError(f"level function: expected finite sums, got {sums[~np.isfinite(sums)][0]} at {level}")
        sums = sums.astype(np.float64).reshape(6, -1)
        self.shape = self.shape or sums.shape
        if sums.shape != self.shape:
            raise ValueError(f"level function: expected the same shape each time, {self.shape}, got {sums.shape}")
        y, y2, y3, y4, p, p2 = sums
        most = number * (1.0 + 1e-5)  # rounding, in single precision perhaps
        possible = {
            "ΣY² >= 0, ΣY⁴ >= 0, ΣP² >= 0": np.minimum(np.minimum(y2, y4), p2) >= 0.0,
            "(ΣY)² <= n ΣY²": y**2 <= most * y2,
            "(ΣY²)² <= n ΣY⁴": y2**2 <= most * y4,
            "(ΣY³)² <= ΣY² ΣY⁴": y3**2 <= (1.0 + 1e-5) * y2 * y4,
            "(ΣP)² <= n ΣP²": p**2 <= most * p2,
        }
        if level == 0:
            rounding = 1e-5 * np.sqrt(number * np.abs(p2))
            possible["P = Y at level 0"] = (np.abs(p - y) <= rounding) & (np.abs(p2 - y2) <= 1e-5 * p2)
        for rule, kept in possible.items():
            if not kept.all():
                raise ValueError(
                    f"level function: expected sums of Y, Y², Y³, Y⁴, P, P² over {number} samples, for which {rule}; "
                    f"got {[float(v) for v in sums[:, np.argmin(kept)]]} at level {level}"
                )
        return sums

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

    def result(self, scheme: str, num_steps: int, start: float, seed: object) -> MultilevelEstimate:
        mean, variance = self._moments(0)
        mean_fine, variance_fine = self._moments(4)
        n = np.array(self.counts, dtype=float)[:, None]
        cost = np.array([self.cost(l) for l in range(len(n))])
        consistency = np.zeros_like(mean)
        deviations = (np.sqrt(variance_fine / n)[:-1], np.sqrt(variance_fine / n)[1:], np.sqrt(variance / n)[1:])
        gap = np.abs(mean_fine[:-1] - mean_fine[1:] + mean[1:])
        consistency[1:] = gap / (3.0 * np.maximum(sum(deviations), np.finfo(float).tiny))
        kurtosis = self._kurtosis(mean, variance)
        # Of the variance of the mean, Σ V/n: V is known to V √((κ - 1) / n), whatever a level adds to it.
        doubt = np.sqrt(((variance / n) ** 2 * np.maximum(kurtosis - 1.0, 0.0) / n).sum(axis=0))
        doubt /= np.maximum((variance / n).sum(axis=0), np.finfo(float).tiny)
        _warn(doubt, kurtosis, consistency)
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
            seed=seed,
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


def _warn(doubt: NDArray[np.float64], kurtosis: NDArray[np.float64], consistency: NDArray[np.float64]) -> None:
    if doubt.max() > _UNCERTAIN:
        level = int(np.argmax(kurtosis.max(axis=1)))
        warnings.warn(
            f"multilevel: few samples carry the variance (kurtosis {kurtosis.max():.3g} at level {level}); it is known "
            f"to {doubt.max():.0%}, so the standard error is not to be trusted",
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
