from __future__ import annotations

import importlib.util
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netkit import attacks, data, en_resnet
from netkit.attacks import auto_attack
from netkit.evaluate import robust_accuracy

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is not installed (extra autoattack)"
)
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


@needs_library
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


@needs_library
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


@needs_library
def test_the_rand_version_attacks_a_noisy_network_through_the_evaluation() -> None:
    model = en_resnet(8, num_members=1, in_channels=1, width=4, noise_std="sample", seed=0)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model.eval()(x).argmax(1)
    attack = partial(auto_attack, eps=0.2, version="rand", eot_draws=2, num_steps=3)
    scores = [robust_accuracy(model, x, y, attack, num_draws=2) for _ in range(2)]
    assert torch.equal(scores[0].predictions, scores[1].predictions)


@needs_library
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


@needs_library
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
        ({"version": "strong"}, "expected version to be one of"),
        ({"parts": ["pgd"]}, "expected parts among"),
        ({"norm": "l1"}, "expected norm to be one of"),
        ({"eps": 0.0}, "expected a finite eps > 0, got 0"),
        ({"eot_draws": 0}, "expected eot_draws >= 1, got 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=message):
        auto_attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), **{"eps": 0.1, **options})
