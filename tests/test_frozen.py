"""Constant weights: the same function and the same gradient, and nothing left behind."""

import pytest
import torch
from torch import Tensor, nn

from netkit import attacks
from netkit.frozen import frozen
from netkit.models import EnResNet, PreActBlock, en_resnet


def images() -> Tensor:
    return torch.rand(6, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(**options) -> EnResNet:
    """Batch norms with statistics, weights and biases of all sizes and signs, zero among them."""
    model = en_resnet(14, width=4, num_members=2, seed=0, **options).double()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.zeros_(module.weight[:1])
    return model.eval()


def blocks(model: nn.Module) -> list[PreActBlock]:
    return [module for module in model.modules() if isinstance(module, PreActBlock)]


def logits_and_slope(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    logits = model(x)
    (slope,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), slope


def logits_of_one_noise(model: EnResNet) -> tuple[Tensor, Tensor]:
    with model.fixed_noise(3):
        return logits_and_slope(model, images())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("noise", ["gaussian", "off"])
def test_frozen_blocks_are_the_same_function_with_the_same_gradient(noise, memory_format):
    model = network(noise=noise).to(memory_format=memory_format)
    x = images().contiguous(memory_format=memory_format)
    with model.fixed_noise(3):
        expected = logits_and_slope(model, x)
        with frozen(model):
            assert all(block.frozen for block in blocks(model))
            got = logits_and_slope(model, x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_weights_of_frozen_blocks_collect_no_gradients():
    model = network()
    with frozen(model):
        model(images()).sum().backward()
    for block in blocks(model):
        assert all(parameter.grad is None for parameter in block.parameters())


def test_blocks_in_train_mode_are_left_as_they_are():
    model, same = network(noise="off").train(), network(noise="off").train()
    with frozen(model):
        assert not any(block.frozen for block in blocks(model))
        assert torch.equal(model(images()), same(images()))
    for one, other in zip(model.buffers(), same.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.conv1.register_forward_hook(lambda _module, _inputs, out: 2 * out),
        lambda block: block.bn2.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,)),
        lambda block: block.conv1.register_full_backward_hook(lambda _module, slopes, _: (slopes[0] / 2,)),
        lambda block: block.conv1.register_full_backward_pre_hook(lambda _module, slopes: (slopes[0] / 2,)),
        lambda block: torch.nn.utils.parametrizations.spectral_norm(block.conv1),
    ],
    ids=["hook", "pre-hook", "backward hook", "backward pre-hook", "parametrization"],
)
def test_blocks_that_hooks_change_are_attacked_as_they_are(change):
    model = network()
    unchanged, changed = logits_of_one_noise(model), blocks(model)[2]
    change(changed)
    model.eval()
    expected = logits_of_one_noise(model)
    with frozen(model):
        assert [block.frozen is None for block in blocks(model)] == [block is changed for block in blocks(model)]
        got = logits_of_one_noise(model)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(got[1], unchanged[1])


def test_hooks_of_the_noise_or_the_block_itself_are_called_anyway():
    model = network()
    for module in (blocks(model)[1], blocks(model)[2].noise):
        module.register_forward_hook(lambda _module, _inputs, out: 2 * out)
    expected = logits_of_one_noise(model)
    with frozen(model):
        assert all(block.frozen for block in blocks(model))
        torch.testing.assert_close(logits_of_one_noise(model), expected, rtol=1e-12, atol=1e-12)


def test_what_was_frozen_thaws_after_an_error():
    model = network(noise="off")
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        raise RuntimeError("stop")
    before = model(images())
    with torch.no_grad():
        blocks(model)[0].conv1.weight.mul_(2)
    assert not torch.allclose(model(images()), before)


@pytest.mark.parametrize(("batch_norm", "is_frozen"), [("eval", True), ("train", False), ("keep", True)])
def test_attacks_freeze_what_has_batch_norm_in_eval_mode(batch_norm, is_frozen):
    model, seen = network(), []

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        seen.append({block.frozen is not None for block in blocks(model)})
        return attacks.cross_entropy(logits, y)

    y = torch.zeros(6, dtype=torch.int64)
    attacks.ifgsm(model, images(), y, eps=0.1, step_size=0.1, num_steps=2, loss=loss, batch_norm=batch_norm)
    assert seen == [{is_frozen}] * 2
    assert not any(block.frozen for block in blocks(model))


def test_frozen_blocks_compute_in_the_precision_of_autocast():
    model, x, dtypes = network(noise="off").float(), images().float(), []
    exact = logits_and_slope(model, x)
    blocks(model)[1].register_forward_hook(lambda _module, _inputs, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        usual = logits_and_slope(model, x)
        with frozen(model):
            got = logits_and_slope(model, x)
    assert dtypes == [torch.bfloat16] * 2
    for value, same, reference in zip(got, usual, exact, strict=True):
        assert (value - reference).norm() < 1.5 * (same - reference).norm()
