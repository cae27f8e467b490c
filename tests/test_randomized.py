"""ARC: where it provably wins, where the optimum is known, and what any attack must keep to."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netkit import attacks, en_resnet, evaluate
from netkit.models import resnet

EPS = 0.1


class Binary(nn.Module):
    """Logits (w·x + b, 0), of two classes."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.flatten().double())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight.to(x) + self.bias
        return torch.stack([margin, torch.zeros_like(margin)], 1)


class RandomChoice(nn.Module):
    """One of the members in each call."""

    def __init__(self, members: list[nn.Module], probabilities: list[float]) -> None:
        super().__init__()
        self.members, self.probabilities = nn.ModuleList(members), torch.tensor(probabilities)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.members[int(torch.multinomial(self.probabilities, 1, generator=self.generator))](x)


def grey(count: int = 1, pixels: tuple[int, int, int] = (1, 4, 4), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((count, *pixels), 0.5, dtype=dtype)


def direction(seed: int, size: int = 16) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def at_distance(weight: Tensor, distance: float, norm: str, slope: float = 1.0) -> Binary:
    """A classifier whose boundary is `distance` away from the grey image, at the given slope of its margin."""
    weight = slope * weight / torch.linalg.vector_norm(weight, 1 if norm == "linf" else 2)
    return Binary(weight, slope * distance - 0.5 * float(weight.sum()))


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64)


def right(members: list[nn.Module], x: Tensor) -> Tensor:
    """(num_members, B): whether each member answers with class 0."""
    return torch.stack([member(x).argmax(1) == 0 for member in members])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_opposite_classifiers_hide_from_the_mean_loss_and_not_from_arc(norm):
    # The first cannot be fooled within eps, yet has the steeper loss: ascent goes its way, away from the other's
    # boundary, which is half as far as eps. So at best one of the two is fooled.
    weight = direction(0)
    stubborn = at_distance(weight, 1.1 * EPS, norm, slope=1 / EPS)
    weak = at_distance(-weight, 0.5 * EPS, norm, slope=0.05 / EPS)
    members: list[nn.Module] = [stubborn, weak]
    x, choice = grey(3), RandomChoice(members, [0.5, 0.5])
    pgd = partial(attacks.pgd, eps=EPS, step_size=EPS / 4, num_steps=20, norm=norm)
    arc = partial(attacks.arc, eps=EPS, norm=norm, members=members)
    options: dict[str, Any] = {"num_draws": 50, "eot_draws": 50}
    assert evaluate.robust_accuracy(choice, x, zeros(x), pgd, **options).mean == 1
    score = evaluate.robust_accuracy(choice, x, zeros(x), arc, **options)
    assert abs(score.mean - 0.5) < 4 * 0.5 / 50**0.5
    x_adv = arc(choice, x, zeros(x))
    assert right(members, x_adv).sum(0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_two_equal_and_opposite_classifiers_arc_fools_the_likelier(norm):
    weight, x = direction(0), grey(2)
    members: list[nn.Module] = [at_distance(sign * weight, 0.5 * EPS, norm) for sign in (1, -1)]
    for probabilities, fooled in (([0.3, 0.7], 1), ([0.6, 0.4], 0)):
        choice = RandomChoice(members, probabilities)
        x_adv = attacks.arc(choice, x, zeros(x), eps=EPS, norm=norm, members=members, probabilities=probabilities)
        assert bool((~right(members, x_adv)[fooled]).all())
    # the mean of the logits has no gradient at all
    both = evaluate.robust_accuracy(
        MeanLogits(members), x, zeros(x), partial(attacks.ifgsm, eps=EPS, step_size=EPS / 4, num_steps=20)
    )
    assert both.mean == 1


class MeanLogits(nn.Module):
    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


def shortest_that_fools_both(a: Tensor, b: Tensor, distances: tuple[float, float]) -> float:
    """The length of the shortest move δ with a·δ <= -d0 and b·δ <= -d1, for unit vectors a and b."""
    cosine = float(a @ b)
    for d, other in ((distances[0], distances[1]), (distances[1], distances[0])):
        if d * cosine >= other:
            return d
    gram = torch.tensor([[1, cosine], [cosine, 1]], dtype=torch.float64)
    d = torch.tensor(distances, dtype=torch.float64)
    return math.sqrt(float(d @ torch.linalg.solve(gram, d)))


def test_arc_finds_the_optimum_of_two_linear_classifiers():
    num_both, num_found = 0, 0
    for seed in range(16):
        a, b = (direction(2 * seed + k) for k in (0, 1))
        a, b = a / a.norm(), b / b.norm()
        generator = torch.Generator().manual_seed(seed)
        distances = tuple((0.9 * EPS * torch.rand(2, generator=generator, dtype=torch.float64)).tolist())
        members: list[nn.Module] = [at_distance(w, d, "l2") for w, d in zip((a, b), distances, strict=True)]
        x = grey()
        x_adv = attacks.arc(RandomChoice(members, [0.5, 0.5]), x, zeros(x), eps=EPS, norm="l2", members=members)
        num_fooled = int((~right(members, x_adv)).sum())
        assert num_fooled >= 1  # each alone is within reach
        length = shortest_that_fools_both(a, b, distances)
        assert num_fooled == 1 or length <= EPS
        num_both += length <= 0.9 * EPS
        num_found += length <= 0.9 * EPS and num_fooled == 2
    assert num_both >= 10
    assert num_found == num_both


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deterministic_model_is_moved_straight_to_its_nearest_boundary(norm, dtype):
    # Three classes, the boundary of the third nearer: the closed form of DeepFool's step, of the length asked for.
    weights = torch.stack([direction(seed) for seed in range(3)]).to(dtype)
    near = weights[0] - weights[2]
    dual = torch.linalg.vector_norm(near, 1 if norm == "linf" else 2)
    bias = -(weights @ torch.full((16,), 0.5, dtype=dtype)) + torch.tensor(
        [0.0, -10.0, -float(dual) * EPS], dtype=dtype
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, dtype=dtype))
    with torch.no_grad():
        model[1].weight.copy_(weights)
        model[1].bias.copy_(bias)
    x = grey(2, dtype=dtype)
    unit = -(near.sign() if norm == "linf" else near / dual).view(1, 4, 4)
    x_adv = attacks.arc(model, x, zeros(x), eps=2 * EPS, step_size=1.01 * EPS, num_steps=1, norm=norm, num_targets=2)
    torch.testing.assert_close(x_adv, x + 1.01 * EPS * unit, rtol=0, atol=1e-6)
    assert x_adv.dtype == dtype
    assert model(x_adv).argmax(1).tolist() == [2, 2]
    assert model(x + 0.99 * EPS * unit).argmax(1).tolist() == [0, 0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_stay_in_the_ball_and_in_range_and_the_model_as_it_was(norm, dtype):
    model = en_resnet(8, num_members=2, width=4, noise_std="sample", noise_coef=0.5, seed=0).to(dtype).eval()
    x = torch.rand(6, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)).mul(1.4).sub(0.2).clamp(0, 1)
    y = model(x).argmax(1)
    state = model.generator_state()
    attack = partial(attacks.arc, model, x, y, eps=EPS, num_steps=3, num_draws=3, norm=norm)
    x_adv, again = (attack(generator=torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(x_adv, again, rtol=0, atol=0)
    far = (x_adv.double() - x.double()).flatten(1)
    assert float(torch.linalg.vector_norm(far, math.inf if norm == "linf" else 2, dim=1).max()) <= EPS * (1 + 1e-6)
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    assert x_adv.dtype == dtype
    assert not x_adv.requires_grad
    assert bool((x_adv != x).flatten(1).any(1).all())
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.generator_state(), state, rtol=0, atol=0)


def test_the_expected_accuracy_of_given_members_never_rises():
    members: list[nn.Module] = [resnet(8, width=4, seed=seed).double().eval() for seed in range(3)]
    x = torch.rand(30, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 10
    accuracy = [torch.stack([member(x).argmax(1) == y for member in members]).double().mean(0)]
    for num_steps in (1, 2, 4, 8):
        x_adv = attacks.arc(members[0], x, y, eps=EPS, num_steps=num_steps, members=members)
        accuracy.append(torch.stack([member(x_adv).argmax(1) == y for member in members]).double().mean(0))
        assert bool((accuracy[-1] <= accuracy[-2] + 1e-9).all())


def test_a_random_model_is_taken_apart_into_the_draws_that_are_asked_for(monkeypatch):
    model = en_resnet(8, num_members=1, width=4, noise_std="sample", noise_coef=0.5, seed=0).eval()
    x, y = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2, dtype=torch.int64)
    from netkit.attacks import randomized

    seeds: list[int] = []

    def counted(net: nn.Module, x: Tensor, seed: int) -> nn.Module:
        seeds.append(seed)
        return attacks.frozen_noise(net, x, seed)

    monkeypatch.setattr(randomized, "frozen_noise", counted)
    wrapped = attacks.ExpectationOverTransformation(model, 3)
    for attacked, asked, count in ((wrapped, None, 6), (model, 4, 8), (model, None, 10), (resnet(8, width=4), None, 0)):
        seeds.clear()
        attacks.arc(attacked, x, y, eps=EPS, num_steps=2, num_draws=asked)
        assert len(set(seeds)) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": -1.0}, "step_size: expected a finite number >= 0, got -1.0"),
        ({"num_draws": 0}, "num_draws: expected at least 1, got 0"),
        ({"num_targets": 0}, "num_targets: expected at least 1"),
        ({"norm": "l1"}, "norm: expected one of"),
        ({"members": []}, "members: expected at least one"),
        ({"probabilities": [1.0]}, "probabilities: expected one for each of 0 members"),
        ({"members": [resnet(8, width=4)], "probabilities": [0.5]}, "expected none negative and a sum of one"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    x = torch.full((1, 3, 8, 8), 0.5)
    with pytest.raises(ValueError, match=message):
        attacks.arc(resnet(8, width=4), x, zeros(x), **{"eps": EPS, **options})
