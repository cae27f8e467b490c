from __future__ import annotations

import random
import re
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from netkit import attacks, data, en_resnet
from netkit.attacks import auto_attack
from netkit.attacks.expectation import rounding
from netkit.evaluate import robust_accuracy
from netkit.identity import describe
from studies.lab.attacks import ATTACKS, Strength

QUICK: dict[str, Any] = {"num_steps": 10, "num_queries": 20}


@pytest.fixture(scope="module")
def fitted() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of digits, and 60 test images."""
    digits = data.load("digits")
    x, y = digits.images(digits.train.x), digits.train.y
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    return model, digits.images(digits.test.x[:60]), digits.test.y[:60]


def test_auto_attack_stays_in_the_ball_and_is_no_weaker_than_ifgsm(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = fitted
    before = torch.random.get_rng_state()
    x_adv = auto_attack(model, x, y, eps=0.1, **QUICK, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-6
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    was_right = model(x).argmax(1) == y
    assert torch.equal(x_adv[~was_right], x[~was_right])
    survivors = int((model(x_adv).argmax(1) == y).sum())
    x_ifgsm = attacks.ifgsm(model, x, y, eps=0.1, step_size=0.025, num_steps=20)
    assert 0 < survivors <= int((model(x_ifgsm).argmax(1) == y).sum()) < int(was_right.sum())


def test_one_generator_seed_gives_one_result_and_the_l2_ball_is_kept(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = fitted
    first, second = (
        auto_attack(
            model, x, y, eps=0.5, norm="l2", parts=["square"], **QUICK, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    )
    assert torch.equal(first, second)
    lengths = (first - x).flatten(1).norm(dim=1)
    assert 0 < float(lengths.max()) <= 0.5 + 1e-5


def test_the_rand_version_attacks_a_noisy_network_through_the_evaluation() -> None:
    model = en_resnet(8, num_members=1, in_channels=1, width=4, noise_std="sample", seed=0)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model.eval()(x).argmax(1)
    attack = partial(auto_attack, eps=0.2, version="rand", eot_draws=2, num_steps=3)
    scores = [robust_accuracy(model, x, y, attack, num_draws=2) for _ in range(2)]
    assert torch.equal(scores[0].predictions, scores[1].predictions)


class Nervous(nn.Module):
    """`model` with logits that new Gaussian noise is added to in each call."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + self.scale * torch.randn(logits.shape, generator=self.generator)


def test_the_rand_version_gives_every_image_back_attacked_and_is_no_kinder_than_apgd_alone(
    fitted: tuple[nn.Module, Tensor, Tensor],
) -> None:
    linear, x, y = fitted
    model = Nervous(linear, scale=3.0)
    options: dict[str, Any] = {"eps": 0.05, "version": "rand", "num_steps": 10, "eot_draws": 10, "batch_size": 40}

    x_adv = auto_attack(model, x, y, **options, generator=torch.Generator().manual_seed(1))
    distance = (x_adv - x).abs().flatten(1).amax(1)
    assert float(distance.min()) > 0.04  # also where the first draw was wrong, or no draw was
    assert float(distance.max()) <= 0.05 + 1e-6

    def rights(x: Tensor, num_draws: int = 400) -> Tensor:
        """(N,): the share of draws that are right."""
        with torch.no_grad():
            return torch.stack([(model(x).argmax(1) == y).double() for _ in range(num_draws)]).mean(0)

    library = AutoAttack(model, norm="Linf", eps=0.05, seed=1, version="rand")
    library.apgd.n_iter, library.apgd.eot_iter = 10, 10
    with torch.random.fork_rng():
        rule = library.run_standard_evaluation(x, y)[0]
        library.apgd.loss = "ce"
        highest = library.apgd.perturb(x, y, best_loss=True)
    assert bool((rule == x).flatten(1).all(1).any())
    against_rule, against_apgd = (
        float(difference.mean() / difference.std() * len(x) ** 0.5)
        for difference in (rights(x_adv) - rights(other) for other in (rule, highest))
    )
    assert against_rule < -4
    assert against_apgd < 4


def test_stored_predictions_are_known_by_the_whole_attack_and_its_version() -> None:
    told = {}
    for name in ("ifgsm20", "pgd20", "cw", "autoattack"):
        make = ATTACKS[name].make
        assert make is not None
        told[name] = describe(make(Strength(eps=0.2, step_size=0.05), ATTACKS[name].steps, 20))
    bound = "(eot_draws=20, eps=0.2, num_steps=100, version='rand')"
    assert re.sub(r"@\d+", "", told["autoattack"]) == f"netkit.attacks.auto.auto_attack{bound}"
    assert all(re.match(r"netkit\.attacks\.\w+\.\w+@\d+\(", text) for text in told.values())
    assert len(set(told.values())) == 4


def test_the_rand_version_leaves_a_model_without_noise_to_the_library(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = fitted
    x_adv, once = (
        auto_attack(
            model,
            x,
            y,
            eps=0.02,
            version="rand",
            num_steps=10,
            eot_draws=draws,
            generator=torch.Generator().manual_seed(0),
        )
        for draws in (20, 1)
    )
    assert torch.equal(x_adv, once)  # draws that would all agree are not made
    was_left = (x_adv == x).flatten(1).all(1)
    with torch.no_grad():
        assert bool(was_left[model(x).argmax(1) != y].all())
        assert torch.equal(model(x_adv).argmax(1) == y, was_left & (model(x).argmax(1) == y))


def test_a_random_model_is_not_flattered_by_versions_that_give_its_images_back_clean(
    fitted: tuple[nn.Module, Tensor, Tensor],
) -> None:
    linear, x, y = fitted
    for model in (Nervous(linear, scale=3.0), attacks.ExpectationOverTransformation(linear, 1)):
        for options in ({"version": "standard"}, {"version": "plus"}, {"version": "rand", "parts": ["square"]}):
            with pytest.raises(ValueError, match=r"version, parts: expected 'rand' and some of .* at random, got"):
                auto_attack(model, x, y, eps=0.05, **options)  # type: ignore[arg-type]


def test_the_version_follows_the_model(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    linear, x, y = fitted
    x, y = x[:12], y[:12]

    def attacked(model: nn.Module, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return auto_attack(model, x, y, eps=0.05, eot_draws=2, **QUICK, **options, generator=generator)

    assert torch.equal(attacked(linear), attacked(linear, version="standard"))
    assert torch.equal(attacked(Nervous(linear, 3.0)), attacked(Nervous(linear, 3.0), version="rand"))
    assert torch.equal(attacked(Nervous(linear, 3.0), random=False), attacked(Nervous(linear, 3.0), random=False))


def test_without_a_generator_no_global_generator_is_touched(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = fitted
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    auto_attack(model, x[:4], y[:4], eps=0.1, parts=["apgd-ce"], num_steps=2)
    assert torch.equal(torch.rand(3), expected)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


@pytest.mark.parametrize("of_weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_images_may_lie_in_memory_as_they_like(
    dtype: torch.dtype, random: bool, of_weights: torch.memory_format
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    model.to(dtype, memory_format=of_weights)
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10

    def attacked(images: Tensor) -> Tensor:
        options: dict[str, Any] = {"eps": 0.2, "random": random, "num_steps": 5, "num_queries": 20, "eot_draws": 2}
        return auto_attack(model, images, y, **options, generator=torch.Generator().manual_seed(2))

    usual, other = attacked(x), attacked(x.contiguous(memory_format=torch.channels_last))
    assert usual.is_contiguous()
    assert other.is_contiguous(memory_format=torch.channels_last)
    for x_adv in (usual, other):
        assert x_adv.dtype == dtype
        assert float((x_adv - x).abs().max()) <= 0.2 + rounding(dtype)
        assert random or torch.equal(x_adv[0], x[0])
        assert int((model(x_adv).argmax(1) == y).sum()) < 6
    if dtype is torch.float64:  # in which layouts differ by so little that no sign of a gradient turns
        torch.testing.assert_close(other, usual, rtol=0, atol=1e-6)


def test_a_debuggers_trace_survives(fitted: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = fitted

    def trace(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        auto_attack(model, x[:2], y[:2], eps=0.1, parts=["apgd-ce"], num_steps=2)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


def test_fewer_than_four_classes_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="at least 4 classes, got 3"):
        auto_attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), eps=0.1)


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(ImportError, match=r"pip install 'itoflow\[autoattack\]'"):
        auto_attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), eps=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "strong"}, "version: expected one of"),
        ({"parts": ["pgd"]}, "parts: expected some of"),
        ({"parts": []}, r"parts: expected some of .*, got \[\]"),
        ({"norm": "l1"}, "norm: expected one of"),
        ({"eps": 0.0}, "eps: expected a finite number > 0, got 0"),
        ({"eot_draws": 0}, "eot_draws: expected at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=message):
        auto_attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), **{"eps": 0.1, **options})
