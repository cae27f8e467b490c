"""Deterministic views of a random model, to be attacked in its place: without noise, or with one draw of it.

view = attacks.frozen_noise(model, x, seed=0)
score = evaluate.robust_accuracy(model, x, y, attack, oracle=view)

A view is a module of its own that shares the weights. It changes the model during its forward pass alone, and puts back
what it found, also after an error.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from netkit.attacks.expectation import checked_images, unwrapped
from netkit.models import evaluating
from netkit.noise import NoiseControls, NoiseKind, NoiseStream, ResidualNoise, noise_parts
from netkit.randomness import generators_in, repeatable


def noise_free(model: nn.Module) -> nn.Module:
    """View `model` without its noise, own or injected: the network that steps along characteristics (Eq. 5).

    Raises ValueError for a model without such noise, and, at the forward pass, for one that draws random numbers
    nevertheless, as dropout does: `frozen_noise` takes these.
    """
    net = unwrapped(model)
    if not _streams_of(net):
        raise ValueError(
            "model: expected noise of this package, own or injected, to switch off, got none: "
            "attacks.frozen_noise(model, x, seed) fixes any randomness"
        )
    return _NoiseFree(net)


def frozen_noise(model: nn.Module, x: Tensor, seed: int) -> nn.Module:
    """View `model` with one draw of its noise, own or injected: ξ_l of one image for each residual block l.

    All images get the same ξ_l, in every call and whatever else is in their batch, so that the view is one function of
    an image. Two things it cannot promise: with `noise_std="batch"`, or batch norm in train mode, the rest of the batch
    changes an image's answer through the standard deviation; and other randomness, as dropout's, is only seeded anew in
    each pass (`netkit.randomness.repeatable`), so that it depends on the shape of the batch and the place in it.

    x: images (B, C, H, W) of the shape, dtype and device that the view will get; one pass over the first finds the
        shapes of the draws.
    seed: of the draw.

    Raises ValueError, at the forward pass, for images of another size.
    """
    view = _FrozenNoise(unwrapped(model), seed)
    with evaluating(view), torch.no_grad():
        view(checked_images(x[:1], bounds=None))
    return view


class _View(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training


class _NoiseFree(_View):
    def forward(self, x: Tensor) -> Tensor:
        tensors, others = _states(self.model)
        with ExitStack() as stack:
            for stream in _streams_of(self.model):
                stack.enter_context(stream.scaled(0.0))
            logits: Tensor = self.model(x)
        tensors_after, others_after = _states(self.model)
        # torch.equal: a transform of torch.func lets nothing else look at the states
        if others_after != others or not all(map(torch.equal, tensors, tensors_after)):
            raise ValueError(
                "model: expected no randomness but the noise that was switched off, got one that draws random numbers, "
                "as dropout does: attacks.frozen_noise(model, x, seed) fixes them"
            )
        return logits


class _FrozenNoise(_View):
    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__(model)
        self.seed = seed
        self.streams = [_FrozenStream(seed + number) for number in range(len(_streams_of(model)))]

    def forward(self, x: Tensor) -> Tensor:
        with repeatable((self.model,), x.device, self.seed, "frozen noise"), _streaming(self.model, self.streams):
            logits: Tensor = self.model(x)
        return logits


class _FrozenStream(NoiseStream):
    """One draw for each residual block, which all images share; made in the first pass."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.draws: list[Tensor] = []

    @property
    def identity(self) -> tuple[Any, ...]:
        """The draws; the scale is the model's own."""
        return tuple(self.draws)

    def draw(self, like: Tensor, kind: NoiseKind) -> Tensor:
        if self._position == len(self.draws):
            self.draws.append(super().draw(like[:1].detach(), kind))
        noise = self.draws[self._position]
        if noise.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"x: expected images of the size that the noise was frozen for, got {tuple(like.shape[1:])} where a "
                f"draw has {tuple(noise.shape[1:])}"
            )
        self._position += 1
        return noise.to(like).expand_as(like)


@contextmanager
def _streaming(model: nn.Module, streams: list[_FrozenStream]) -> Iterator[None]:
    """Draw from the given streams inside the block, each in place of one of the model's and at its scale."""
    parts = _parts_of(model)
    before = [part.stream for part in parts]
    given = dict(zip(map(id, _streams_of(model)), streams, strict=True))
    try:
        for part in parts:
            stream = given[id(part.stream)]
            stream.scale = part.stream.scale
            stream.rewind(None)
            part.stream = stream
        yield
    finally:
        for part, stream_before in zip(parts, before, strict=True):
            part.stream = stream_before


def _parts_of(model: nn.Module) -> list[ResidualNoise | NoiseControls]:
    return [part for part in noise_parts(model) if isinstance(part, ResidualNoise | NoiseControls)]


def _streams_of(model: nn.Module) -> list[NoiseStream]:
    """Each stream of noise in `model` once, in the order of its parts."""
    return list({id(part.stream): part.stream for part in _parts_of(model)}.values())


def _states(model: nn.Module) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Where all generators stand that a forward pass may draw from: the global ones and those in the modules."""
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    generators = [torch.default_generator, *gpus, *generators_in(model)]
    _, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002 - it is this one that networks may use
    return [generator.get_state() for generator in generators], (random.getstate(), keys.tobytes(), *rest)
