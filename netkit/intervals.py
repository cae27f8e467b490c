"""Confidence intervals for accuracies, and for the difference of two models scored on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import scipy
import torch
from torch import Tensor

Verdict = Literal["holds", "does not hold", "undecided", "too few seeds"]
FEWEST_SEEDS = 3  # with two, the spread between seeds is known too badly for an interval to cover what it says


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a proportion or a difference of proportions."""

    low: float
    high: float
    confidence: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Difference:
    """Accuracy of one model minus that of another on the same `n` images, over `num_seeds` pairs."""

    mean: float
    interval: Interval
    n: int
    num_seeds: int

    @property
    def verdict(self) -> Verdict:
        """Does "the first is more accurate" hold, not hold (the reverse does), or is it undecided?

        Below FEWEST_SEEDS the answer would be about these trained networks, not about the method: none is given.
        """
        if self.num_seeds < FEWEST_SEEDS:
            return "too few seeds"
        if self.interval.low > 0:
            return "holds"
        return "does not hold" if self.interval.high < 0 else "undecided"


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval (1927) for a proportion; `successes` may be a sum of shares, hence fractional.

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    _check_counts(successes, n)
    z2 = float(scipy.special.ndtri(0.5 + confidence / 2)) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half), confidence)


def clopper_pearson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval (1934) for a proportion; never covers less than `confidence`.

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    _check_counts(successes, n)
    tail = (1 - confidence) / 2
    low = scipy.special.betaincinv(successes, n - successes + 1, tail) if successes > 0 else 0.0
    high = scipy.special.betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return Interval(float(low), float(high), confidence)


def mean_accuracy(correct: Sequence[Tensor], *, confidence: float = 0.95) -> Interval:
    """An interval for the accuracy of a method, from per-example correctness (n,) for each of its seeds.

    See `paired_difference` for how images and seeds are put together; here two images right and two wrong are
    added (Agresti and Coull 1998), and the interval ends at 0 and 1.

    Raises ValueError where the seeds differ in images, or there are none.
    """
    interval = _over_images_and_seeds(_stacked(correct), 4, 2, 2, confidence)
    return Interval(max(0.0, interval.low), min(1.0, interval.high), confidence)


def paired_difference(first: Sequence[Tensor], second: Sequence[Tensor], *, confidence: float = 0.95) -> Difference:
    """Accuracy of `first` minus `second`, each a tensor (n,) of per-example correctness for every seed.

    The standard error adds two parts in squares: that over images, of the differences averaged over seeds
    (with half an image added to each cell of the paired table, after Agresti and Min 2005, so that it never
    vanishes), and that over seeds, of the differences averaged over images. Student's t with Welch and
    Satterthwaite's degrees of freedom. One seed leaves the second part out: the answer is then about those
    two trained networks, not about the method.

    Raises ValueError where the two sides differ in seeds or images.
    """
    if len(first) != len(second):
        raise ValueError(f"first, second: expected as many seeds on both sides, got {len(first)} and {len(second)}")
    if {tuple(s.shape) for s in first} != {tuple(s.shape) for s in second}:
        raise ValueError("first, second: expected the same images on both sides")
    differences = _stacked(first) - _stacked(second)
    interval = _over_images_and_seeds(differences, 2, 0, 1, confidence)
    num_seeds, n = differences.shape
    return Difference(float(differences.mean()), interval, n, num_seeds)


def _stacked(correct: Sequence[Tensor]) -> Tensor:
    """(num_seeds, n) float64."""
    shapes = {tuple(scores.shape) for scores in correct}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"correct: expected the same images (n,) for every seed, got shapes {sorted(shapes)}")
    return torch.stack(list(correct)).double()


def _over_images_and_seeds(
    values: Tensor, extra: float, extra_sum: float, extra_squares: float, confidence: float
) -> Interval:
    """A t interval for the mean of values (num_seeds, n), with `extra` images of given sum and sum of squares."""
    num_seeds, n = values.shape
    by_image = values.mean(0)
    size = n + extra
    centre = (float(by_image.sum()) + extra_sum) / size
    over_images = ((float(by_image.square().sum()) + extra_squares) / size - centre**2) / size
    over_seeds = float(values.mean(1).var()) / num_seeds if num_seeds > 1 else 0.0
    freedom = (over_images + over_seeds) ** 2 / (
        over_images**2 / (size - 1) + (over_seeds**2 / (num_seeds - 1) if num_seeds > 1 else 0.0)
    )
    half = float(scipy.special.stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(over_images + over_seeds)
    return Interval(centre - half, centre + half, confidence)


def _check_counts(successes: float, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes: expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
