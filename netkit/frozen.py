"""Weights as constants, which is what they are to an attack: the same function of the image, with less to do.

With batch norm in eval mode a block is a fixed function of its input, and only the gradient with respect to that input
is wanted. So the second batch norm becomes part of the convolution before it, the backward pass skips the sums over the
batch that the weights of the first one would need, a block keeps the results of its two relus and nothing else, and
gradients are changed in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import is_parametrized

from netkit.models import PreActBlock


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Treat the weights of the residual blocks in `model` as constants inside the block, equal up to rounding.

    Gradients flow to the images and not to those weights, which must not change meanwhile. Noise is drawn as always.
    Blocks with batch norm in train mode, blocks with hooks or parametrizations, and modules of other kinds are left as
    they are.
    """
    blocks = [module for module in model.modules() if isinstance(module, PreActBlock)]
    before = [block.frozen for block in blocks]
    try:
        for block in blocks:
            block.frozen = _FrozenBlock(block) if _is_constant(block) else None
        yield
    finally:
        for block, what_was in zip(blocks, before, strict=True):
            block.frozen = what_was
            if what_was is None:  # nothing is left behind, not even a name
                del block.frozen


def _is_constant(block: PreActBlock) -> bool:
    """Whether the weights and running statistics alone determine the residual mapping."""
    inner = [module for name, child in block.named_children() if name != "noise" for module in child.modules()]
    return not (block.bn1.training or block.bn2.training or any(map(_is_changed, inner)))


def _is_changed(module: nn.Module) -> bool:
    # torch offers no other way to ask for hooks
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(kinds) or is_parametrized(module)


class _FrozenBlock:
    """`PreActBlock.residual` with constant weights."""

    @torch.no_grad()
    def __init__(self, block: PreActBlock) -> None:
        dtype = _dtype_of_convolutions(block.conv1.weight)
        self.bn = block.bn1
        self.scale1 = _scale(block.bn1).view(-1, 1, 1).to(dtype)
        scale2, mean2 = _scale(block.bn2), block.bn2.running_mean
        assert mean2 is not None
        self.conv1 = (block.conv1.weight * scale2.view(-1, 1, 1, 1)).to(dtype)
        self.bias1 = torch.addcmul(block.bn2.bias, mean2, scale2, value=-1).to(dtype)
        self.conv2 = block.conv2.weight.detach().to(dtype)
        self.shortcut = None if block.shortcut is None else block.shortcut.weight.detach().to(dtype)
        self.stride = block.conv1.stride

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = _Residual.apply(x, self)
        return out


class _Residual(torch.autograd.Function):
    """x + F(x) of a frozen block, from the results of its two relus: relu' is 1 where they are positive, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: _FrozenBlock) -> Tensor:
        bn = block.bn
        first = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps).relu_()
        second = F.conv2d(first, block.conv1, block.bias1, stride=block.stride, padding=1).relu_()
        out = F.conv2d(second, block.conv2, padding=1)
        out += x if block.shortcut is None else F.conv2d(first, block.shortcut, stride=block.stride)
        ctx.save_for_backward(first, second)
        ctx.block = block
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        first, second = ctx.saved_tensors
        block, scale = ctx.block, ctx.block.scale1.to(grad.dtype)
        inner = _relu_backward_(_conv_backward(grad, second, block.conv2), second)
        inner = _conv_backward(inner, first, block.conv1, stride=block.stride)
        if block.shortcut is None:
            return torch.addcmul(grad, _relu_backward_(inner, first), scale, out=inner), None
        inner += _conv_backward(grad, first, block.shortcut, stride=block.stride, padding=0)
        return _relu_backward_(inner, first).mul_(scale), None


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, stride: tuple[int, ...] = (1, 1), padding: int = 1
) -> Tensor:
    """The gradient with respect to x; only the shape and layout of x count."""
    grad_x: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight.to(grad.dtype), None, stride, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]
    )[0]
    return grad_x


def _relu_backward_(grad: Tensor, result: Tensor) -> Tensor:
    masked: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, result, 0, grad_input=grad)
    return masked


def _dtype_of_convolutions(weight: Tensor) -> torch.dtype:
    """The dtype that autocast would give the weights, anew in each pass; their own without it."""
    kind = weight.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _scale(bn: nn.BatchNorm2d) -> Tensor:
    """(C,): what batch norm in eval mode multiplies each channel by."""
    assert bn.running_var is not None
    return bn.weight * (bn.running_var + bn.eps).rsqrt()
