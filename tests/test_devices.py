"""Tensors follow the device and the precision of what they are given.

torch's `meta` device holds shapes and no numbers: what is made on another device by mistake cannot be combined with it,
as it could not with what is on a GPU. A default device that nothing else is on finds what is made without saying where.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netkit import attacks, evaluate, models
from netkit.attacks import ExpectationOverTransformation, ascent, carlini_wagner
from netkit.data import augment

META = torch.device("meta")
NOISES = pytest.mark.parametrize(
    "options",
    [
        {"noise": "off"},
        {"normalize": ([0.5], [0.2])},
        {"noise": "two_point", "noise_std": "sample"},
        {"noise_std": "constant", "sigma": 0.3, "average": "probabilities"},
    ],
    ids=["off", "batch", "sample", "constant"],
)
ATTACKS = pytest.mark.parametrize(
    "attack",
    [
        partial(attacks.fgsm, eps=0.2),
        partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=2),
        partial(attacks.pgd, eps=0.2, step_size=0.1, num_steps=2, random_start=False, num_restarts=2),
        partial(attacks.pgd, eps=0.2, step_size=0.1, num_steps=2, random_start=False, norm="l2", batch_norm="train"),
        partial(attacks.cw, num_steps=2),
        partial(attacks.cw, variant="l2", num_steps=2, num_searches=2),
        partial(attacks.cw, variant="authors", num_steps=2),
    ],
    ids=["fgsm", "ifgsm", "restarts", "l2", "cw", "cw-l2", "cw-authors"],
)


def net(**options: Any) -> models.EnResNet:
    return models.en_resnet(8, **{"num_members": 2, "in_channels": 1, "width": 4, "seed": 1, **options})


def images(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8, generator=generator, dtype=dtype)
    return x.to(device), torch.tensor([0, 1, 2], device=device)


def draws() -> list[Tensor]:
    """The noise of three blocks of two members, given: `meta` has no generators."""
    return [torch.ones(3, width, size, size) for width, size in ((4, 8), (8, 4), (16, 2))] * 2


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks do not look at the values of images and logits, which `meta` does not have."""
    for module in (ascent, carlini_wagner):
        monkeypatch.setattr(module, "checked_images_and_labels", lambda x, *_: (x, 10))
        monkeypatch.setattr(module, "judging_draws_for", lambda *_: 1)
        monkeypatch.setattr(module, "check_finite", lambda *_: None)


@NOISES
def test_a_network_and_its_gradients_are_where_its_weights_are(options: dict[str, Any]) -> None:
    model, (x, y) = net(**options).to(META), images(META)
    with model.fixed_noise(draws()):
        logits = model(x.requires_grad_())
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, y), [x, *model.parameters()])
    assert logits.device == META
    assert {gradient.device for gradient in gradients} == {META}
    assert {tensor.device for tensor in model.state_dict().values()} == {META}


@ATTACKS
@pytest.mark.parametrize("num_draws", [1, 2])
@pytest.mark.usefixtures("unread")
def test_an_attack_is_where_its_images_are(attack: evaluate.Attack, num_draws: int) -> None:
    model, (x, y) = net().to(META).eval(), images(META)
    target = ExpectationOverTransformation(model, num_draws) if num_draws > 1 else model
    with model.fixed_noise(draws()):
        x_adv = attack(target, x, y)
    assert x_adv.device == META
    assert x_adv.shape == x.shape


def test_augmented_images_are_where_the_images_are() -> None:
    x = torch.zeros(3, 1, 8, 8, dtype=torch.uint8, device=META)
    assert augment(x).device == META


def test_a_network_on_another_device_than_its_images_is_an_error() -> None:
    """`meta` finds what the tests above look for."""
    x, _ = images()
    with pytest.raises(RuntimeError, match=r"device|meta"):
        net(noise="off").to(META)(x)
    with pytest.raises(RuntimeError, match=r"device|meta"):
        images(META)[0] + x


@NOISES
def test_a_network_needs_nothing_of_the_default_device(options: dict[str, Any]) -> None:
    model, (x, y) = net(**options), images()
    with model.fixed_noise(3):
        expected = model(x)
        with META:
            assert torch.equal(model(x), expected)
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]


@ATTACKS
def test_an_attack_needs_nothing_of_the_default_device(attack: evaluate.Attack) -> None:
    model, (x, y) = net().eval(), images()
    with model.fixed_noise(3):
        expected = attack(model, x, y)
        with META:
            assert torch.equal(attack(model, x, y), expected)


def test_an_evaluation_needs_nothing_of_the_default_device() -> None:
    model, (x, y) = net(), images()
    score = partial(evaluate.robust_accuracy, model, x, y, partial(attacks.fgsm, eps=0.2), num_draws=2)
    expected = score()
    with META:
        assert torch.equal(score().predictions, expected.predictions)


@NOISES
def test_every_layer_of_a_network_in_double_precision_is(options: dict[str, Any]) -> None:
    model, (x, y) = net(**options).double(), images(dtype=torch.float64)
    seen: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _module, _inputs, out, name=name: seen.update({name: out.dtype}))
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x.requires_grad_()), y), [x, *model.parameters()])
    assert len(seen) > 40
    assert set(seen.values()) == {torch.float64}
    assert {gradient.dtype for gradient in gradients} == {torch.float64}


@ATTACKS
def test_an_attack_on_images_in_double_precision_is(attack: evaluate.Attack) -> None:
    x_adv = attack(net().double().eval(), *images(dtype=torch.float64))
    assert x_adv.dtype == torch.float64
    assert bool((x_adv != x_adv.float()).any())  # nothing on the way was rounded to float32
