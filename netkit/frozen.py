"""Weights as constants, which is what they are to an attack: the same function of the image, with less to do.

With batch norm in eval mode a block is a fixed function of its input, and only the gradient with respect to that input
is wanted. So the second batch norm becomes part of the convolution before it; the first one, which follows a sum and
its noise, shares one backward pass with its relu and skips the sums over the batch that its own weights would need; and
no convolution keeps its input for a gradient that nobody asks for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from netkit.models import PreActBlock


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Treat the weights of the residual blocks in `model` as constants inside the block, equal up to rounding.

    Gradients flow to the images and not to those weights, which must not change meanwhile. Blocks whose batch norm is
    in train mode, and modules of other kinds, are left as they are. Noise is drawn as always.
    """
    blocks = [module for module in model.modules() if isinstance(module, PreActBlock)]
    before = [block.frozen for block in blocks]
    try:
        for block in blocks:
            block.frozen = None if block.bn1.training or block.bn2.training else _FrozenBlock(block)
        yield
    finally:
        for block, what_was in zip(blocks, before, strict=True):
            block.frozen = what_was


class _FrozenBlock:
    """`PreActBlock.residual` with constant weights."""

    @torch.no_grad()
    def __init__(self, block: PreActBlock) -> None:
        self.bn = block.bn1
        self.scale = _scale(block.bn1).view(-1, 1, 1)
        scale = _scale(block.bn2)
        self.conv1 = block.conv1.weight * scale.view(-1, 1, 1, 1)
        self.bias1 = torch.addcmul(block.bn2.bias, block.bn2.running_mean, scale, value=-1)
        self.conv2 = block.conv2.weight.detach()
        self.shortcut = None if block.shortcut is None else block.shortcut.weight.detach()
        self.stride = block.conv1.stride

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = _BatchNormReLU.apply(x, self.bn, self.scale)
        if self.shortcut is not None:
            x = F.conv2d(out, self.shortcut, stride=self.stride)
        out = F.conv2d(out, self.conv1, self.bias1, stride=self.stride, padding=1)
        out = F.conv2d(F.relu(out, inplace=True), self.conv2, padding=1)
        out += x
        return out


class _BatchNormReLU(torch.autograd.Function):
    """relu(bn(x)) in eval mode, whose slope is `scale` (C, 1, 1) where the result is positive and else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bn: nn.BatchNorm2d, scale: Tensor) -> Tensor:
        out = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps).relu_()
        ctx.save_for_backward(out, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out, scale = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0).mul_(scale), None, None


def _scale(bn: nn.BatchNorm2d) -> Tensor:
    """(C,): what batch norm in eval mode multiplies each channel by."""
    assert bn.running_var is not None
    return bn.weight * (bn.running_var + bn.eps).rsqrt()
