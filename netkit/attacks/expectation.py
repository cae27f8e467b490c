"""The common part of all attacks: expected gradients of an objective, the mode of the model, and checks of input."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from netkit.checks import answer, check_counts, check_tensors
from netkit.frozen import frozen
from netkit.randomness import is_random

BatchNormMode = Literal["eval", "train", "keep"]
Objective = Callable[[nn.Module, Tensor], Tensor]
"""(model, point (B, ...)) -> (k, B); an attack raises or lowers the first row."""

Bounds = tuple[float, float]
"""The least and the largest value that a pixel may have."""

PIXELS: Bounds = (0.0, 1.0)
JUDGING_DRAWS = 20

_is_reading = ContextVar("_is_reading", default=True)


@contextmanager
def without_reading() -> Iterator[None]:
    """Inside the block attacks check shapes and types, and no values: to read one is to wait for a GPU.

    For callers who know their images and labels, and look for NaN themselves.
    """
    token = _is_reading.set(False)
    try:
        yield
    finally:
        _is_reading.reset(token)


class ExpectationOverTransformation(nn.Module):
    """Attack a noisy model through the mean over independent draws of its noise (Athalye et al. 2018; Sec. 4).

    The attacks of this package average the *gradients of the loss* over the draws, as the paper says: "the gradient
    which is averaged over five independent runs". Another library's attack, which calls it as a model, gets the
    *logits* averaged over the draws. The gradient of their loss is another one, since the loss is convex in the logits:
    it estimates how to fool the averaged prediction, not the average draw.

    It also tells an attack that the model is random: fresh draws judge several candidates, even with one draw a
    gradient.

    model: images to logits, with new noise in each call.
    num_draws: the number of calls that make one gradient; the paper takes 5.
    """

    def __init__(self, model: nn.Module, num_draws: int = 5) -> None:
        super().__init__()
        check_counts(num_draws=num_draws)
        self.model = model
        self.num_draws = num_draws
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes), the mean logits."""
        return torch.stack([self.model(x) for _ in range(self.num_draws)]).mean(0)


def expected(model: nn.Module, point: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """The objective's values (k, B) and the gradient (B, ...) of the first row, averaged over the model's draws."""
    net, num_draws = unwrapped(model), model.num_draws if isinstance(model, ExpectationOverTransformation) else 1
    values, gradient = None, None
    for _ in range(num_draws):
        with torch.enable_grad():
            variable = point.detach().requires_grad_()
            draw = objective(net, variable)
            # The sum: an image's gradient does not depend on how many share its batch.
            (slope,) = torch.autograd.grad(draw[0].sum(), variable)
        draw = draw.detach()
        values = draw if values is None else values.add_(draw)
        gradient = slope if gradient is None else gradient.add_(slope)
    assert values is not None
    assert gradient is not None
    if num_draws == 1:
        return values, gradient
    return values.div_(num_draws), gradient.div_(num_draws)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside, one call of which is one draw."""
    while isinstance(model, ExpectationOverTransformation):
        model = model.model
    return model


def judging_draws_for(model: nn.Module, x: Tensor, asked: int | None) -> int:
    """Fresh draws that a candidate is judged by: those asked for, or 20 where the model is random, else one."""
    if asked is not None:
        check_counts(judging_draws=asked)
        return asked
    return JUDGING_DRAWS if isinstance(model, ExpectationOverTransformation) or is_random(model, x) else 1


@torch.no_grad()
def judged(model: nn.Module, point: Tensor, measure: Callable[[nn.Module, Tensor], Tensor], num_draws: int) -> Tensor:
    """The mean of `measure(net, point)`, (k, B), over draws that had no part in how the point was found."""
    net = unwrapped(model)
    return torch.stack([measure(net, point) for _ in range(num_draws)]).mean(0)


def logits_of(net: nn.Module, x: Tensor, num_labels: int) -> Tensor:
    logits = answer(net, x)
    if not isinstance(logits, Tensor):
        raise ValueError(f"model: expected logits, got {type(logits).__name__}: wrap it in a module that returns them")
    if logits.dim() != 2 or len(logits) != len(x):
        raise ValueError(f"model: expected logits of shape ({len(x)}, num_classes), got {tuple(logits.shape)}")
    if logits.shape[1] < num_labels:
        raise ValueError(f"y: expected labels below {logits.shape[1]}, got {num_labels - 1}")
    return logits


@contextmanager
def under_attack(model: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """Inside the block, batch norm layers are in `mode`, and parameters are constants (`netkit.frozen`)."""
    if mode not in get_args(BatchNormMode):
        raise ValueError(f"batch_norm: expected one of {get_args(BatchNormMode)}, got {mode!r}")
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [layer.training for layer in layers]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if mode != "keep":
            for layer in layers:
                layer.train(mode == "train")
        for parameter in learning:
            parameter.requires_grad_(False)
        with frozen(model):
            yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.train(training)
        for parameter in learning:
            parameter.requires_grad_()


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to broadcast against x."""
    return values.view(-1, *[1] * (x.dim() - 1))


def rounding(dtype: torch.dtype) -> float:
    """The error that pixels of this type may have after somebody computed with them."""
    return max(1e-6, torch.finfo(dtype).eps)


def checked_images(x: Tensor, bounds: Bounds | None = PIXELS) -> Tensor:
    """x without gradient; clipped to the bounds where it is outside by no more than rounding."""
    check_tensors(x=x)
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"x: expected floating-point images (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    if len(x) == 0:
        raise ValueError("x: expected at least one image, got none")
    x = x.detach()
    if not _is_reading.get():
        return x
    lowest, highest = (-math.inf, math.inf) if bounds is None else bounds
    low, high = (float(bound) for bound in x.aminmax())
    if low >= lowest and high <= highest:
        return x
    outside = max(lowest - low, high - highest)
    if not outside <= rounding(x.dtype):  # written so that NaN fails too
        raise ValueError(
            f"x: expected images within [{lowest:g}, {highest:g}], got values from {low:.4g} to {high:.4g}, "
            f"outside by {outside:.2g}"
        )
    return x.clamp(lowest, highest)


def checked_images_and_labels(x: Tensor, y: Tensor, bounds: Bounds | None = PIXELS) -> tuple[Tensor, int]:
    """`checked_images`, and the number of classes that the labels need."""
    check_tensors(y=y)
    x = checked_images(x, bounds)
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(f"y: expected int64 labels of shape ({len(x)},), got {y.dtype} {tuple(y.shape)}")
    if not _is_reading.get():
        return x, 0
    first, last = (int(bound) for bound in y.aminmax())
    if first < 0:
        raise ValueError(f"y: expected labels >= 0, got {first}")
    return x, last + 1


class NotFiniteError(ValueError):
    """The model that is attacked or scored answers infinity or NaN, or its gradient does."""


def check_finite(*tensors: Tensor) -> None:
    """Raise NotFiniteError for infinity or NaN.

    Attacks check once, on their last step: the sign of NaN is 0, so that nothing else would tell.
    """
    if _is_reading.get() and not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise NotFiniteError("model: expected finite logits and gradients, got infinity or NaN")
