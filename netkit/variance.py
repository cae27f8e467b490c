"""The squared error of an ensemble split in three: the gain of a second member, and that of a second draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netkit.models import EnResNet


@dataclass(frozen=True)
class BiasVariance:
    """Three parts of the squared error (Brier score) of a draw of one member, summed over classes, mean over images.

    rest: of the mean over all members and draws: squared bias and label noise.
    between_members: variance over members of their means over noise.
    between_draws: mean over members of their variance over noise.
    """

    rest: float
    between_members: float
    between_draws: float

    @property
    def total(self) -> float:
        return self.rest + self.between_members + self.between_draws

    def error(self, num_members: int, num_draws: int) -> float:
        """Expected squared error of the average of m members, each drawn r times."""
        return self.rest + self.between_members / num_members + self.between_draws / (num_members * num_draws)

    @property
    def second_member(self) -> float:
        """The error that a second member, drawn once, takes off that of one member drawn once."""
        return self.total - self.error(2, 1)

    @property
    def second_draw(self) -> float:
        """The error that a second draw of the same member takes off: as much of a pass, and no training."""
        return self.total - self.error(1, 2)


def bias_variance(probabilities: Tensor, y: Tensor) -> BiasVariance:
    """Split the error of predictions (members, draws, B, K) for labels y (B,).

    Members are taken for independent trainings of one recipe. All three parts are unbiased estimates, so the smaller
    ones may come out slightly negative. Raises ValueError for fewer than two members or draws, or other shapes.
    """
    if probabilities.dim() != 4 or y.shape != probabilities.shape[2:3] or min(probabilities.shape[:2]) < 2:
        raise ValueError(
            "probabilities, y: expected shapes (members >= 2, draws >= 2, B, K) and (B,), "
            f"got {tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    p = probabilities.double()
    members, draws = p.shape[:2]
    target = nn.functional.one_hot(y, p.shape[-1]).double()
    within = p.var(1).mean(0)
    means = p.mean(1)
    between = means.var(0) - within / draws
    rest = (means.mean(0) - target).square() - between / members - within / (members * draws)
    return BiasVariance(*(float(part.sum(-1).mean()) for part in (rest, between, within)))


def member_probabilities(model: EnResNet, x: Tensor, *, num_draws: int, generator: torch.Generator) -> Tensor:
    """softmax of every member's logits (members, draws, B, K) for a `netkit.EnResNet` in its current mode."""
    with torch.no_grad(), model.using_generator(generator):
        return torch.stack([model.member_logits(x).softmax(-1) for _ in range(num_draws)], dim=1)
