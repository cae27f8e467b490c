"""The split of an ensemble's squared error into members, draws and the rest."""

from __future__ import annotations

import pytest
import torch

from netkit import en_resnet
from netkit.variance import bias_variance, member_probabilities


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_split_finds_the_parts_that_were_put_in():
    generator = seeded(7)
    members = 0.1 * torch.randn(400, 1, 3, 2, generator=generator, dtype=torch.float64)
    draws = 0.2 * torch.randn(400, 6, 3, 2, generator=generator, dtype=torch.float64)
    p = torch.tensor([0.7, 0.3], dtype=torch.float64) + members + draws
    split = bias_variance(p, torch.tensor([0, 0, 0]))
    assert split.between_draws == pytest.approx(2 * 0.04, rel=0.05)
    assert split.between_members == pytest.approx(2 * 0.01, rel=0.15)
    assert split.rest == pytest.approx(2 * 0.09, rel=0.05)
    measured = float((p - torch.tensor([1.0, 0.0], dtype=torch.float64)).square().sum(-1).mean())
    assert split.total == pytest.approx(measured, rel=1e-6)
    assert split.second_member > split.second_draw
    assert split.error(2, 3) == pytest.approx(split.rest + split.between_members / 2 + split.between_draws / 6)


def test_member_probabilities_are_those_of_the_members():
    model = en_resnet(8, num_members=3, in_channels=1, noise="off", seed=0).eval()
    x = torch.rand(4, 1, 8, 8, generator=seeded())
    p = member_probabilities(model, x, num_draws=2, generator=seeded())
    assert p.shape == (3, 2, 4, 10)
    torch.testing.assert_close(p[:, 0], model.member_logits(x).softmax(-1).detach())


def test_one_member_cannot_be_told_from_its_draws():
    with pytest.raises(ValueError, match="members >= 2"):
        bias_variance(torch.rand(1, 2, 3, 4), torch.zeros(3, dtype=torch.long))
