"""Intervals for means of draws in a known range, by betting, right however often one looks.

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


class MeanBets:
    """Bets for intervals of half-width `target` for means (B, K) of draws in [0, 1], or little beyond.

    Guess and variance start with one imagined draw: 1/2, with variance 1/4.
    """

    def __init__(self, num_images: int, num_classes: int, target: float, device: torch.device) -> None:
        self._target = target
        zeros = torch.zeros(num_images, num_classes, dtype=torch.float64, device=device)
        self._count, self._mean, self._squares = zeros[:, :1] + 1, zeros + 0.5, zeros + 0.25
        self.ends = torch.zeros(num_images, num_classes, 4, dtype=torch.float64, device=device)
        """log wealth and sum of stakes of the bets on a larger mean, and of those on a smaller one (B, K, 4)."""

    def place(self, sample: Tensor, active: Tensor, margin: Tensor | float = 0.0) -> None:
        """Bet on the draws `sample` (images, K) of the `active` images (B,).

        They lie in [-margin, 1 + margin], up to rounding, which was known before they were drawn.
        """
        sample = torch.minimum(torch.maximum(sample, sample.new_tensor(0.0) - margin), sample.new_tensor(1.0) + margin)
        count, mean = self._count[active], self._mean[active]
        variance = self._squares[active] / count
        away = sample - mean
        up = self._target / (variance + self._target * (mean + margin))
        down = self._target / (variance + self._target * (1 - mean + margin))
        self.ends[active] += torch.stack(
            [torch.log1p(up * away) + up * mean, up, torch.log1p(-down * away) - down * mean, down], -1
        )
        self._count[active] += 1
        self._mean[active] += away / (count + 1)
        self._squares[active] += away * (sample - self._mean[active])


def interval(ends: Tensor, mean: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Lower and upper ends (B, K) from `MeanBets.ends` (B, K, 4), widened to hold the `mean` (B, K) of the draws."""
    threshold = math.log(2 / (1 - level))
    wealth_up, stakes_up, wealth_down, stakes_down = ends.unbind(-1)
    low = ((wealth_up - threshold) / stakes_up).clamp_min(0.0)
    high = ((threshold - wealth_down) / stakes_down).clamp_max(1.0)
    return torch.minimum(low, mean), torch.maximum(high, mean)


def draws_needed(variance: Tensor, margin: Tensor | float, target: float, level: float) -> Tensor:
    """The rough number of draws of given variance, in [-margin, 1 + margin], for intervals of half-width `target`."""
    return math.log(2 / (1 - level)) * (2 * variance / target**2 + (0.5 + margin) / target)
