"""Estimates: means that never travel without their uncertainty."""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pdekit.numerics.lanes import LANES
from pdekit.runtime.checks import check_fraction
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread

if TYPE_CHECKING:
    import xarray as xr

_CHEAP = 16  # samples summed in the time of one item of `spread`


class BiasWarning(RuntimeWarning):
    """The time-step bias of an estimate is not small beside its error, or not known well."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates of u(x, t0) = E[f(X_T) e^(-∫V) + ∫ g e^(-∫V) | X_t0 = x] at P points, each with its errors.

    mean, standard_error: (P,), or (P, K) of K terminal functions; the standard error is that of the mean, from sampling
        alone.
    num_paths: paths a point; num_steps: steps a path.
    scheme: how they were stepped, "euler", "heun", "platen" or, without noise, "rk4".
    bias_estimate, bias_standard_error: of the same shape, or None: how far the time step moves the mean (mean -
        bias_estimate is nearer to the truth), and the error of that: of sampling, and by what two doublings of the step
        contradict the order.
    cost: path-steps in all; seconds: wall time.
    replicates: independent randomisations behind the standard error where it does not come from single paths.
    seed: what to give as `rng` for the same paths again; None where they came from a level function.
    points: (P, d), where they started; None where they came from a level function.
    dims: names of the axes of the values.
    """

    mean: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    num_paths: int
    num_steps: int
    scheme: str
    bias_estimate: NDArray[np.float64] | None = None
    bias_standard_error: NDArray[np.float64] | None = None
    cost: int = 0
    seconds: float = 0.0
    replicates: int | None = None
    seed: object = None
    points: NDArray[np.float64] | None = None
    dims: tuple[str, ...] = ("point", "field")

    def to_xarray(self) -> xr.Dataset:
        """The estimate as a Dataset over its `dims`, with points (point, axis) and how it was made in `attrs`."""
        import xarray as xr  # with pandas half of the package's import

        dims = self.dims[: self.mean.ndim]
        values = {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "bias": self.bias_estimate,
            "bias_standard_error": self.bias_standard_error,
        }
        variables: dict[str, Any] = {name: (dims, value) for name, value in values.items() if value is not None}
        if self.points is not None:
            variables["points"] = (("point", "axis"), self.points)
        attrs = {
            "scheme": self.scheme,
            "num_paths": self.num_paths,
            "num_steps": self.num_steps,
            "cost": self.cost,
            "seconds": self.seconds,
            "replicates": self.replicates,
            "rng": None if self.seed is None else repr(self.seed),
            "quantity": "gradient of u" if self.dims[-1] == "axis" else "u",
            "equation": "u = E[f(X_T) exp(-int V) + int g exp(-int V)], dX = F dt + sigma dB",
        }
        return xr.Dataset(variables, attrs={name: value for name, value in attrs.items() if value is not None})

    def confidence_interval(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper ends (P,), (P,) of an interval for u where the time-step bias was estimated (bias=True).

        It reaches from the mean to the mean less its bias, and on both sides by the quantile times the errors of the
        two. Without a bias estimate it covers the sampling error only: E f of the stepped paths, and not u.

        Normal quantiles, or Student's t where the error comes from few replicates, as of Sobol points: those are not
        normal, and 95% intervals of 16 replicates covered 92.7 ± 0.3% in the worst of the cases that were measured
        (studies/certify.py), 94 to 96% in the others. Of 1000 paths with skewed values it was 94.5 ± 0.1%.
        Raises ValueError unless 0 < level < 1.
        """
        factor = quantile(level, self.replicates)
        if self.bias_estimate is None or self.bias_standard_error is None:
            half = factor * self.standard_error
            return self.mean - half, self.mean + half
        half = factor * np.hypot(self.standard_error, self.bias_standard_error)
        corrected = self.mean - self.bias_estimate
        return np.minimum(self.mean, corrected) - half, np.maximum(self.mean, corrected) + half

    def total_error(self) -> NDArray[np.float64]:
        """Root-mean-square error (P,) of sampling, time step, and the sampling error of the bias estimate.

        Raises ValueError where the bias was not estimated, for then nothing is known of the time step.
        """
        if self.bias_estimate is None or self.bias_standard_error is None:
            raise ValueError("total_error: expected an estimate made with bias=True, got one without bias_estimate")
        return np.sqrt(self.standard_error**2 + self.bias_estimate**2 + self.bias_standard_error**2)

    def __repr__(self) -> str:
        points = f"{len(self.mean)} points" + ("" if self.mean.ndim == 1 else f" of {self.mean[0].size} values")
        lines = [
            f"Estimate({points}, {self.num_paths:,} paths of {self.num_steps} {self.scheme} steps, "
            f"{self.cost:.3g} path-steps in {self.seconds:.2f} s{'' if self.seed is None else f', rng={self.seed}'})",
            "  ± one standard error of sampling; confidence_interval() covers "
            + (
                "sampling only, not the time-step bias" if self.bias_estimate is None else "sampling and time-step bias"
            ),
        ]
        for p in range(min(len(self.mean), 5)):
            line = f"  {_first(self.mean, p): .6g} ± {_first(self.standard_error, p):.2g}"
            if self.bias_estimate is not None and self.bias_standard_error is not None:
                bias, error = _first(self.bias_estimate, p), _first(self.bias_standard_error, p)
                line += f"   time-step bias {bias: .2g} ± {error:.1g}"
            lines.append(line)
        if len(self.mean) > 5:
            lines.append(f"  ... {len(self.mean) - 5} more")
        return "\n".join(lines)


def _first(values: NDArray[np.float64], point: int) -> float:
    """The value at a point, of the first function."""
    return float(values[point].flat[0])


def quantile(level: float, replicates: int | None = None) -> float:
    """Half-width of a two-sided interval in standard errors."""
    level = check_fraction("confidence level", level)
    if replicates is None:
        return float(scipy.special.ndtri(0.5 + 0.5 * level))
    return float(scipy.special.stdtrit(replicates - 1, 0.5 + 0.5 * level))


def bias_from_doublings(
    change: NDArray[np.float64],
    change_error: NDArray[np.float64],
    surplus: NDArray[np.float64],
    surplus_error: NDArray[np.float64],
    order: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The time-step bias (P,), its error (P,), and by how much the second doubling says it is understated.

    change: how far one doubling of the step moves the mean; by the order p the bias is change / (2^p - 1).
    surplus: how much further a second doubling moves it than 2^p · change, and so should be zero. What it exceeds its
        sampling error by is added to the error of the bias: where the means have not begun to follow the order, the
        first change may be small by accident (the second then counts, 2^p times smaller), or the bias falls more
        slowly (then at the rate seen, at least ½, instead of p).

    The last number is the rms of that addition over the rms of the bias: 0 where the doublings agree.
    """
    gain = 2.0**order
    bias, error = change / (gain - 1.0), change_error / (gain - 1.0)
    z = np.minimum(np.abs(surplus) / np.maximum(surplus_error, np.finfo(float).tiny), 1e9)
    if scipy.special.chdtrc(surplus.size, float((z**2).sum())) > 1e-3:
        return bias, error, 0.0
    beyond = np.sqrt(np.maximum(surplus**2 - 4.0 * surplus_error**2, 0.0)) / gain
    size = float((change**2).sum()) + np.finfo(float).tiny
    seen = np.clip(gain + float((surplus * change).sum()) / size, np.sqrt(2.0), gain)
    slower = np.abs(change) * (1.0 / (seen - 1.0) - 1.0 / (gain - 1.0))
    added = np.maximum(beyond / (gain - 1.0), slower)
    added = np.maximum(added, np.sqrt(np.mean(added**2)))  # where the order fails, both may be small by accident
    understated = np.linalg.norm(added) / max(np.linalg.norm(bias), np.finfo(float).tiny)
    return bias, np.hypot(error, added), float(understated)


class Moments:
    """Running mean and sum of squared deviations at P points, each of one quantity or of `fields` ones.

    Samples are summed within blocks of `LANES` and the blocks merged one after another (Chan, Golub and LeVeque
    1983), so that the result depends neither on threads nor on how the blocks were batched.

    replicates: rows that are independent randomisations of one point set, that many to a point of evaluation;
    their spread then gives the standard error, as samples within a replicate are not independent.
    """

    def __init__(self, num_points: int, replicates: int = 1, fields: int | None = None) -> None:
        self.replicates = replicates
        shape = (num_points,) if fields is None else (num_points, fields)
        self.counts = np.zeros(shape, dtype=np.int64)
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)

    def add(self, blocks: NDArray[np.float64], num_samples: int, where: slice = slice(None)) -> None:
        """Add what `block_moments` gave for samples (P, [K,] num_samples) of the points `where`.

        num_samples: a multiple of `LANES` but for the last call.
        """
        running = (values[where].reshape(-1) for values in (self.counts, self.mean, self.squares))  # views
        _merge(blocks, num_samples, *running)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Unbiased variance of a sample, (P,) or (P, K)."""
        return self.squares / (self.counts - 1)

    @property
    def mean_of_replicates(self) -> NDArray[np.float64]:
        """The mean at each point of evaluation (P / replicates,) or (P / replicates, K)."""
        return self._replicated().mean(axis=-1)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """Of `mean_of_replicates`."""
        if self.replicates == 1:
            return np.sqrt(self.variance / self.counts)
        return self._replicated().std(axis=-1, ddof=1) / np.sqrt(self.replicates)

    def _replicated(self) -> NDArray[np.float64]:
        """The means of the replicates of each point along the last axis."""
        means = self.mean.reshape(-1, self.replicates, *self.mean.shape[1:])
        return np.ascontiguousarray(np.moveaxis(means, 1, -1))


def block_moments(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean and sum of squared deviations of each block of `LANES` samples: (P, [K,] n) -> (P [K], blocks, 2)."""
    samples = np.ascontiguousarray(samples).reshape(-1, samples.shape[-1])
    blocks = np.empty((len(samples), -(-samples.shape[1] // LANES), 2))
    spread(_sum, len(samples), samples, blocks, items=samples.size // _CHEAP)
    return blocks


@kernel()
def _sum(begin, end, samples, blocks):
    for p in range(begin, end):
        for b in range(blocks.shape[1]):
            block = samples[p, b * LANES : (b + 1) * LANES]
            total = 0.0
            for i in range(len(block)):
                total += block[i]
            average = total / len(block)
            deviation = 0.0
            for i in range(len(block)):
                deviation += (block[i] - average) ** 2
            blocks[p, b, 0], blocks[p, b, 1] = average, deviation


@kernel()
def _merge(blocks, num_samples, counts, mean, squares):
    for p in range(blocks.shape[0]):
        for b in range(blocks.shape[1]):
            n, m = counts[p], min(LANES, num_samples - b * LANES)
            delta = blocks[p, b, 0] - mean[p]
            mean[p] += delta * m / (n + m)
            squares[p] += blocks[p, b, 1] + delta * delta * n * m / (n + m)
            counts[p] += m
