"""Intervals for means of draws in a known range, and the largest of them, by betting: right however often one looks.

For a mean μ of draws X_i and a guess m_i made before the draw, Π (1 + λ_i(X_i - m_i)) exp(-λ_i(μ - m_i)) is a
nonnegative supermartingale, as 1 + z <= e^z, for any stakes λ_i that are placed before the draw and leave every factor
positive. It exceeds 2/α with probability at most α/2 at any time (Ville), so that with probability 1 - α/2, for all n,

    μ >= (Σ log(1 + λ_i(X_i - m_i)) + Σ λ_i m_i - log(2/α)) / Σ λ_i,

and the other end is the same of -X. Nothing is assumed of the distribution but its range: skewed draws, as class
probabilities near 0 and 1 are, are covered like any other (Waudby-Smith and Ramdas 2024; the bound here is sharper than
their empirical Bernstein interval, Theorem 2, and as explicit). To find deviations of size w the stake
λ = w / (σ² + w b), for draws at most b from m on the side that costs, takes least time; σ and m are those seen so far.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROUNDS = 8  # of the contraction in `draws_needed`
_FRACTIONS = (1.0, 0.5, 0.25, 0.125)  # of the wealth that are bet against a class, mixed with equal weights


class MeanBets:
    """Bets on means (B, K) of draws in [0, 1], or little beyond.

    target: half-width that the bets are to reach soon; num_draws: in place of it, the number of draws after which the
    interval at `level` is to be narrow. Guess and variance start with one imagined draw: 1/2, with variance 1/4.
    """

    def __init__(self, like: Tensor, *, target: float | None = None, num_draws: int = 0, level: float = 0.95) -> None:
        self._target, self._num_draws, self._threshold = target, num_draws, threshold(level)
        zeros = torch.zeros_like(like, dtype=torch.float64)
        self._count, self._mean, self._squares = zeros[:, :1] + 1, zeros + 0.5, zeros + 0.25
        self.ends = torch.zeros(*like.shape, 4, dtype=torch.float64, device=like.device)
        """log wealth and sum of stakes of the bets on a larger mean, and of those on a smaller one (B, K, 4)."""

    def place(self, sample: Tensor, active: Tensor | slice, margin: Tensor | float = 0.0) -> None:
        """Bet on draws, one after the other: `sample` (draws, images, K) of the `active` images (B,).

        They lie in [-margin, 1 + margin], up to rounding, which was known before they were drawn.
        """
        sample = torch.minimum(torch.maximum(sample, sample.new_tensor(0.0) - margin), sample.new_tensor(1.0) + margin)
        sums, squares = self._count[active] * self._mean[active], self._squares[active]
        squares = squares + sums * self._mean[active]
        count = self._count[active] + torch.arange(len(sample) + 1, device=sample.device).view(-1, 1, 1)
        mean = torch.cat([sums.unsqueeze(0), sums + sample.cumsum(0)]) / count  # before each draw, and after the last
        left = torch.cat([squares.unsqueeze(0), squares + sample.square().cumsum(0)]) - count * mean.square()
        self._count[active], self._mean[active], self._squares[active] = count[-1], mean[-1], left[-1]
        mean, variance = mean[:-1], (left / count)[:-1]
        target = half_width(variance, self._num_draws, self._threshold) if self._target is None else self._target
        away = sample - mean
        up = target / (variance + target * (mean + margin))
        down = target / (variance + target * (1 - mean + margin))
        bets = [torch.log1p(up * away) + up * mean, up, torch.log1p(-down * away) - down * mean, down]
        self.ends[active] += torch.stack([bet.sum(0) for bet in bets], -1)


def threshold(level: float) -> float:
    """log(2/α): the log wealth of one bet that ends the interval at `level` 1 - α."""
    return math.log(2 / (1 - level))


def half_width(variance: Tensor, num_draws: int, threshold: float) -> Tensor:
    """The rough half-width that draws in [0, 1] of given variance reach at the full stake."""
    linear = 0.5 * threshold
    return (linear + (linear**2 + 8 * num_draws * threshold * variance).sqrt()) / (2 * num_draws)


def interval(ends: Tensor, mean: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Lower and upper ends (B, K) from `MeanBets.ends` (B, K, 4), widened to hold the `mean` (B, K) of the draws."""
    wealth_up, stakes_up, wealth_down, stakes_down = ends.unbind(-1)
    low = ((wealth_up - threshold(level)) / stakes_up).clamp_min(0.0)
    high = ((threshold(level) - wealth_down) / stakes_down).clamp_max(1.0)
    return torch.minimum(low, mean), torch.maximum(high, mean)


def draws_needed(
    variance: Tensor, margin: Tensor | float, target: float, level: float, *, mean: Tensor | float = 0.5
) -> Tensor:
    """The rough number of draws of given variance, in [-margin, 1 + margin], for intervals of half-width `target`.

    The first draws earn little: with the imagined one the variance after i of them is about σ² + κ/i, where
    κ = 1/4 + (mean - 1/2)², least for a mean of 1/2. With A = σ² + w b stakes are in proportion to i / (i + κ / A),
    which is (κ / A) log(1 + n A / κ) draws less than n at the full stake.
    """
    known = variance + target * (0.5 + margin)
    at_full_stake = threshold(level) * (2 * variance / target**2 + (0.5 + margin) / target)
    lag, needed = (0.25 + (mean - 0.5) ** 2) / known, at_full_stake
    for _ in range(_ROUNDS):
        needed = at_full_stake + lag * torch.log1p(needed / lag)
    return needed


class LargestBets:
    """Bets for each of K classes against its mean being the largest, for draws (B, K) in [0, 1].

    The bet against class k is on the leader among the other classes, whose draw minus that of k has mean <= 0 if k is
    the largest. A fraction λ of the wealth is bet, so that the wealth is a product of 1 + λ(p_leader - p_k).
    """

    def __init__(self, like: Tensor) -> None:
        self._fractions = torch.tensor(_FRACTIONS, dtype=torch.float64, device=like.device)
        self._log_wealth = torch.zeros(*like.shape, len(_FRACTIONS), dtype=torch.float64, device=like.device)
        self._largest = torch.zeros_like(like, dtype=torch.float64)

    def place(self, sample: Tensor, mean: Tensor, count: int, active: Tensor | slice) -> None:
        """Bet on draws, one after the other: `sample` (draws, images, K) of the `active` images (B,).

        mean (B, K) over the `count` draws before these. The mean before each draw chooses the leader, so the choice is
        made before the draw; without any draw before it there is no bet.
        """
        sums = count * mean[active] + torch.cat([torch.zeros_like(sample[:1]), sample[:-1].cumsum(0)])
        if count == 0:
            sums, sample = sums[1:], sample[1:]
        if not len(sample):
            return
        top = sums.topk(2, dim=-1).indices
        leader, second = sample.gather(-1, top[..., :1]), sample.gather(-1, top[..., 1:])
        rival = leader.expand_as(sample).scatter(-1, top[..., :1], second)
        gain = (rival - sample).clamp(-1.0, 1.0)
        wealth = self._log_wealth[active] + torch.log1p(self._fractions * gain.unsqueeze(-1)).cumsum(0)
        self._log_wealth[active] = wealth[-1]
        mixed = (wealth.logsumexp(-1) - math.log(len(_FRACTIONS))).exp().amax(0)
        self._largest[active] = torch.maximum(self._largest[active], mixed)

    def decided(self, alpha: float) -> Tensor:
        """(B,) whether the bets have excluded all classes but one."""
        return (self._largest < 1.0 / alpha).sum(-1) <= 1

    @staticmethod
    def fewest(alpha: float) -> int:
        """Draws without which no image can be decided: the first is not bet on, and none more than doubles a bet."""
        count = 1
        while sum((1 + fraction) ** count for fraction in _FRACTIONS) < len(_FRACTIONS) / alpha:
            count += 1
        return 1 + count
