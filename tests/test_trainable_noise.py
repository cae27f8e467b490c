"""Noise whose coefficients are trained: parameters, gradients, checkpoints, and what the bridge makes of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from bridge.control import NoiseExpansion
from bridge.scaling import constant_sigma_twin, measure_noise
from netkit import (
    CheckpointError,
    data,
    en_resnet,
    inject_noise,
    load_model,
    load_weights,
    noise_of,
    remove_noise,
    train,
)
from netkit.identity import describe_model
from netkit.models import EnResNet, build, resnet
from netkit.noise import Noise, trained_coefs
from netkit.training import TrainConfig, parameter_groups


def images(count: int = 4, size: int = 8, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, size, size, dtype=torch.float64, generator=generator)


def small(noise: Any = "trainable", **options: Any) -> EnResNet:
    options = {"num_members": 1, "width": 4, "in_channels": 1, "noise_coef": 0.25, "seed": 0, **options}
    return en_resnet(8, noise=noise, **options).double().eval()


def set_coefs(model: nn.Module, *values: float) -> None:
    with torch.no_grad():
        for coef, value in zip(trained_coefs(model).values(), values, strict=True):
            coef.fill_(value)


def test_each_residual_mapping_has_a_coefficient_in_the_state() -> None:
    model = small(num_members=2)
    names = [f"members.{m}.blocks.{b}.noise_coef" for m in range(2) for b in range(3)]
    assert list(trained_coefs(model)) == names
    assert all(coef.item() == 0.25 and coef.shape == () for coef in trained_coefs(model).values())
    assert set(model.state_dict()) == set(small("gaussian", num_members=2).state_dict()) | set(names)
    assert not trained_coefs(small("gaussian"))


@pytest.mark.parametrize("std", ["batch", "sample"])
def test_at_its_start_it_is_the_noise_of_that_coefficient(std: Any) -> None:
    x, outcomes = images(), []
    for kind in ("gaussian", "trainable"):
        model = small(kind, noise_std=std)
        point = x.clone().requires_grad_()
        logits = model(point)
        logits.logsumexp(1).sum().backward()
        weights = [p.grad for name, p in model.named_parameters() if name not in trained_coefs(model)]
        with torch.no_grad():
            outcomes.append([logits.detach(), point.grad, *weights, model(x)])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("std", ["batch", "sample"])
def test_the_gradient_of_the_coefficients_is_that_of_finite_differences(std: Any) -> None:
    model, x = small(noise_std=std), images()
    set_coefs(model, 0.3, 0.0, -0.2)  # one that is zero is no dead end, and the sign is free
    coefs, step = list(trained_coefs(model).values()), 1e-6

    def loss() -> Tensor:
        with model.fixed_noise(3):
            return nn.functional.cross_entropy(model(x), torch.arange(len(x)))

    found = torch.autograd.grad(loss(), coefs)
    for coef, gradient in zip(coefs, found, strict=True):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                coef.add_(sign * step)
                ends.append(float(loss()))
                coef.sub_(sign * step)
        assert float(gradient) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
        assert float(gradient) != 0


def test_as_constants_the_coefficients_count_the_same() -> None:
    """As they are under attack, where the noise is added in place."""
    model, x = small(noise_std="sample"), images()
    set_coefs(model, 0.3, 0.1, -0.2)
    outcomes = []
    for trains in (True, False):
        model.requires_grad_(trains)
        point = x.clone().requires_grad_()
        with model.fixed_noise(3):
            logits = model(point)
        outcomes.append([logits.detach(), *torch.autograd.grad(logits.square().sum(), point)])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_noise_is_scaled_and_switched_off_as_other_noise() -> None:
    model, x = small(), images()
    with model.noise_off():
        state = model.generator_state()
        assert torch.equal(model(x), model(x))
        assert torch.equal(model.generator_state(), state)
    with model.fixed_noise(1):
        with model.noise_scale(0.4):
            scaled = model(x)
        set_coefs(model, 0.1, 0.1, 0.1)
        torch.testing.assert_close(scaled, model(x), rtol=1e-12, atol=1e-12)


def test_coefficients_do_not_decay_and_all_else_does() -> None:
    config = TrainConfig(lr_scaling="members", weight_decay=0.1)
    model = small(num_members=2)
    groups = parameter_groups(model, config)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups[1::2]] == [(3, 0.0)] * 2
    assert [group["weight_decay"] for group in groups[::2]] == [0.05] * 2
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert len(parameter_groups(small("gaussian", num_members=2), config)) == 2


def test_training_moves_the_coefficients_and_checkpoints_keep_them(tmp_path: Path) -> None:
    digits, path = data.load("digits", num_train=128, num_test=10), tmp_path / "model.safetensors"
    options: dict[str, Any] = {"loss": "natural", "batch_size": 32, "lr": 0.05}
    model = small().float()
    train(model, digits, epochs=2, path=path, **options)
    moved = [coef.item() for coef in trained_coefs(model).values()]
    assert len({0.25, *moved}) == 4
    read = load_model(path)
    assert describe_model(read) == describe_model(model)
    assert [coef.item() for coef in trained_coefs(read).values()] == moved
    rebuilt = build(json.loads(json.dumps(model.config)))
    rebuilt.load_state_dict(model.state_dict())
    assert describe_model(rebuilt.eval()) == describe_model(model)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        train(small("gaussian").float(), digits, epochs=2, path=path, **options)


def test_a_model_is_known_by_its_coefficients() -> None:
    one, other = small(), small()
    assert describe_model(one) == describe_model(copy.deepcopy(other)) != describe_model(small("gaussian"))
    set_coefs(other, 0.25, 0.25, 0.3)
    assert describe_model(one) != describe_model(other)


def test_our_network_with_trainable_noise_injected_is_our_trainable_network() -> None:
    reference, injected = small(noise_std="sample"), resnet(8, width=4, in_channels=1, seed=0).double().eval()
    plain, names, x = injected(images()), set(injected.state_dict()), images()
    inject_noise(injected, 0.25, noise="trainable", noise_std="sample")
    injected.load_state_dict(reference.state_dict())
    set_coefs(reference, 0.3, 0.1, 0.2)
    injected.load_state_dict(reference.state_dict(), assign=True)
    outcomes = []
    for model in (reference, injected):
        with noise_of(model).fixed_noise(5):
            logits = model(x)
        outcomes.append([logits, *torch.autograd.grad(logits.square().sum(), list(trained_coefs(model).values()))])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert describe_model(injected) == describe_model(copy.deepcopy(injected))
    remove_noise(injected)
    assert set(injected.state_dict()) == names
    assert not trained_coefs(injected)
    torch.testing.assert_close(injected(x), plain, rtol=1e-12, atol=1e-12)


def test_other_networks_get_one_coefficient_for_each_sum() -> None:
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tv.VisionTransformer(num_layers=2, num_classes=10, **sizes)
    with torch.no_grad():  # zero in the beginning; equal weights would pass no gradient, as features have mean 0
        model.heads.head.weight[0] = torch.linspace(-1, 1, 8)
    inject_noise(model, noise="trainable", seed=0)
    layers = [f"encoder.layers.encoder_layer_{i}.noise_coef" for i in range(2)]
    assert list(trained_coefs(model)) == [layers[0], f"{layers[0]}2", layers[1], f"{layers[1]}2"]
    model(images(channels=3).float()).sum().backward()
    assert all(coef.grad is not None and abs(float(coef.grad)) > 1e-4 for coef in trained_coefs(model).values())
    twin = copy.deepcopy(model)
    set_coefs(twin, 0.0, 0.0, 0.0, 0.0)
    x = images(channels=3).float()
    with torch.no_grad():
        torch.testing.assert_close(twin(x), twin(x))
        assert not torch.allclose(model(x), model(x))


def test_a_coefficient_of_a_block_of_ones_own_is_trained_and_read_back(tmp_path: Path) -> None:
    digits = data.load("digits", num_train=64, num_test=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    inject_noise(net, blocks="0", noise="trainable")
    path = tmp_path / "model.safetensors"
    train(net, digits, loss="natural", epochs=1, batch_size=32, path=path)
    assert net[0].noise_coef.item() != pytest.approx(0.1)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    set_coefs(net, 7.0)
    load_weights(path, net)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in expected.items())


def test_a_networks_sigma_is_that_of_its_trained_coefficients() -> None:
    trained, x = small(noise_std="sample"), images(50)
    set_coefs(trained, 0.3, -0.1, 0.2)
    measured = measure_noise(trained, x)
    expected = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64) * measured.feature_std * 3**0.5
    torch.testing.assert_close(measured.sigma, expected)
    twin = constant_sigma_twin(trained, measured.sigma)
    with torch.no_grad():
        assert not torch.equal(twin(x), twin(x))


def test_the_first_order_term_is_that_of_the_trained_coefficients() -> None:
    model, x = small(noise_std="sample"), images(3)
    set_coefs(model, 1e-4, -2e-4, 3e-4)
    expansion = NoiseExpansion(model, x, lambda logits: logits)
    value, term = expansion.draw()
    torch.testing.assert_close(value - expansion.twin, term, rtol=1e-2, atol=float(term.abs().max()) * 1e-2)


def test_trainable_noise_of_constant_size_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_std: expected 'batch' or 'sample' with noise='trainable'"):
        Noise("trainable", "constant", sigma=0.1)
