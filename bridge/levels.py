"""Ensembles of different depths as multilevel Monte Carlo (Sec. 5; Giles 2015).

Networks of L, 2L, 4L, ... blocks that discretise one weight function of time are levels of one estimate, if the two
of a pair are driven by the same Brownian path: the increments of the coarse one are sums of those of the fine one.
With additive noise Euler-Maruyama has strong order 1, so the variance of a difference falls with β = 2, its mean with
α = 1, and a pass costs γ = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bridge.flow import FlowNetwork, as_points
from netkit.checks import check_counts
from pdekit.paths.multilevel import MultilevelEstimate, multilevel

ALPHA, BETA, GAMMA = 1.0, 2.0, 1.0
_BATCH = 8192  # points times draws in one pass: small enough for a cache


def coarsened(increments: Tensor, factor: int) -> Tensor:
    """Increments (L, B, d) of a Brownian path on steps `factor` times as long, (L / factor, B, d).

    Raises ValueError unless factor divides L.
    """
    steps = len(increments)
    check_counts(factor=factor)
    if steps % factor:
        raise ValueError(f"factor: expected a divisor of the {steps} steps, got {factor}")
    if factor == 1:
        return increments
    return increments.view(steps // factor, factor, *increments.shape[1:]).sum(1)


def depth_levels(network: FlowNetwork, num_blocks: Sequence[int]) -> list[FlowNetwork]:
    """Networks of the given depths with the weights of one. Raises ValueError unless each depth divides the last."""
    if not num_blocks or any(num_blocks[-1] % n for n in num_blocks):
        raise ValueError(f"num_blocks: expected divisors of the last, got {list(num_blocks)}")
    return [network.variant(num_blocks=n) for n in num_blocks]


def coupled_outputs(networks: Sequence[FlowNetwork], x: Tensor, generator: torch.Generator) -> Tensor:
    """Logits (networks, B, K) at points x (B, d), all on the same Brownian paths.

    Raises ValueError unless each depth divides the largest.
    """
    finest = max(networks, key=lambda network: network.num_blocks)
    factors = [_quotient(finest.num_blocks, network.num_blocks) for network in networks]
    increments = finest.brownian(x, finest.num_blocks, generator)
    logits = [network(x, coarsened(increments, factor)) for network, factor in zip(networks, factors, strict=True)]
    return torch.stack(logits)


def _quotient(num_blocks: int, divisor: int) -> int:
    if num_blocks % divisor:
        raise ValueError(f"num_blocks: expected a divisor of {num_blocks}, got {divisor}")
    return num_blocks // divisor


class DepthLevels:
    """Level function of a network for `pdekit.multilevel`: first_blocks · 2^level blocks at points (P, d) of R^d.

    P is the probability of class `label`. Every call draws new Brownian paths from the generator.
    """

    def __init__(
        self,
        network: FlowNetwork,
        points: ArrayLike,
        *,
        generator: torch.Generator,
        first_blocks: int = 2,
        label: int = 1,
    ) -> None:
        check_counts(first_blocks=first_blocks)
        if not network.noisy:
            raise ValueError(f"network: expected noise to sample, got sigma {network.sigma}")
        self.network, self.first_blocks, self.label, self._generator = network, first_blocks, label, generator
        self.x = as_points(points, network)

    def blocks(self, level: int) -> int:
        return self.first_blocks * 2**level

    def cost(self, level: int) -> float:
        """Blocks passed for one sample, those of the coarse network included."""
        return self.first_blocks * (1.5 * 2**level if level else 1.0)

    def __call__(self, level: int, num_samples: int) -> NDArray[np.float64]:
        """Sums (6, P) over new samples of Y, Y², Y³, Y⁴, P_l, P_l²."""
        depths = [self.blocks(level)] if level == 0 else [self.blocks(level - 1), self.blocks(level)]
        networks = depth_levels(self.network, depths)
        sums = torch.zeros(6, len(self.x), dtype=torch.float64)
        each = max(1, _BATCH // len(self.x))
        with torch.no_grad():
            for start in range(0, num_samples, each):
                count = min(each, num_samples - start)
                logits = coupled_outputs(networks, self.x.repeat(count, 1), self._generator)
                values = logits.softmax(-1)[..., self.label].double().cpu().view(len(networks), count, -1)
                fine = values[-1]
                y = fine if level == 0 else fine - values[0]
                sums += torch.stack([v.sum(0) for v in (y, y**2, y**3, y**4, fine, fine**2)])
        return sums.numpy()


def multilevel_ensemble(
    network: FlowNetwork,
    points: ArrayLike,
    *,
    rmse: float,
    generator: torch.Generator,
    first_blocks: int = 2,
    label: int = 1,
    max_level: int = 10,
) -> MultilevelEstimate:
    """u(x, 0) at points (P, d) of R^d to a root-mean-square error, from networks of different depths.

    See `pdekit.multilevel`, whose allocation and diagnostics these are; `plain_cost` of the result is what as good an
    ensemble of the deepest network alone costs, in blocks passed a point. It pays where that network is deep; where a
    handful of blocks reach the rmse, the plain ensemble is as cheap and simpler.
    """
    levels = DepthLevels(network, points, generator=generator, first_blocks=first_blocks, label=label)
    return multilevel(levels, rmse=rmse, level_cost=levels.cost, max_level=max_level, alpha=ALPHA)
