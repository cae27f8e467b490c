"""Draws of a random model's outputs, several to a pass where that is the same; and the noise layers behind them.

A pass over x that repeats every image m times holds m draws of each, if an image's answer depends on itself and on
noise of its own alone. That is so where all that is random is noise of residual mappings of size "sample" or
"constant", `inject_noise`'s or the model's own. `Draws` tries it on one image before it relies on it: given the same
noise, the answer has to be the same whether the image is alone in its batch or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netkit.noise import NoiseStream, ResidualNoise, noise_parts

Output = Callable[[Tensor], Tensor]
Look = Callable[[ResidualNoise, Tensor, Tensor], Tensor]
LOOK_COST = 4  # passes of one image that it takes to see whether draws may share a pass
_WORTH_A_LOOK = 5  # draws wanted at once, from which on the look pays
_SAME = 0.01  # of what noise changes: the most by which an answer may change with its neighbours


def noise_layers(model: nn.Module) -> list[ResidualNoise]:
    """The noise layers of a model, own or injected, but those that are off."""
    parts = {id(part): part for part in noise_parts(model) if isinstance(part, ResidualNoise)}
    return [layer for layer in parts.values() if layer.noise.kind != "off"]


def one_stream(layers: list[ResidualNoise]) -> NoiseStream | None:
    """The stream that all layers draw from; None where there are none or several."""
    streams = {id(layer.stream): layer.stream for layer in layers}
    return streams.popitem()[1] if len(streams) == 1 else None


@contextmanager
def looking(layers: list[ResidualNoise], look: Look, *, silent: bool) -> Iterator[None]:
    """Call `look(layer, features, size)` wherever a layer is about to add noise of `size` (B, 1, ...) to features.

    silent: no noise is added; the pass goes on with what `look` returns. The noise has to be on, as injected noise
    calls no layer without.
    """
    kept: list[Tensor] = []  # a layer may overwrite what it is given

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(inputs[0].clone())

    def after(layer: ResidualNoise, inputs: tuple[Any, ...], result: Tensor) -> Tensor:
        features = kept.pop()
        with torch.no_grad():
            # of the layer itself, for noise of one in every entry
            wide = features.double()
            with layer.stream.fixed([torch.ones_like(wide)]):
                added = layer.forward(wide.clone(), *inputs[1:]) - wide
        size = added.flatten(1)[:, 0].view(-1, *[1] * (features.dim() - 1)).to(features.dtype)
        seen = look(layer, features, size)
        return seen if silent else result

    hooks: list[Any] = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def batch_dependence(model: nn.Module) -> str | None:
    """The parts of a model that make an image's answer in eval mode depend on its batch, in words; None for none."""
    if any(layer.noise.std == "batch" and layer.size > 0 for layer in noise_layers(model)):
        return "expected noise_std 'sample' or 'constant', got 'batch', whose noise depends on the other images"
    if any(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules()):
        return "expected batch norms with running statistics, got some that take those of the batch"
    return None


class Draws:
    """Draws of output(model(x)) for images x (B, ...), of which up to `batch_size` make a pass."""

    def __init__(self, model: nn.Module, output: Output, batch_size: int) -> None:
        self._model, self._output, self._batch_size = model, output, batch_size
        self._shares: bool | None = None
        self.cost = 0
        """Passes of one image that were spent on finding out."""

    def __call__(self, x: Tensor, most: int) -> Tensor:
        """Between 1 and `most` new draws, (draws, B, K) float64."""
        count = min(most, max(1, self._batch_size // len(x)))
        if count > 1 and (most >= _WORTH_A_LOOK or self._shares is not None) and self._may_share(x[:1]):
            values = self._output(self._model(x.repeat(count, *[1] * (x.dim() - 1)))).double()
            return values.view(count, len(x), *values.shape[1:])
        return self._output(self._model(x)).double().unsqueeze(0)

    def _may_share(self, image: Tensor) -> bool:
        if self._shares is None:
            self._shares = batch_dependence(self._model) is None and self._answers_alone(image)
        return self._shares

    def _answers_alone(self, image: Tensor) -> bool:
        """Whether an image's answer is a function of itself and of its own noise behind residual mappings."""
        layers = [layer for layer in noise_layers(self._model) if layer.size > 0]
        stream = one_stream(layers)
        if stream is None or stream.has_given_draws:
            return False
        runs: list[tuple[ResidualNoise, Tensor]] = []

        def look(layer: ResidualNoise, features: Tensor, size: Tensor) -> Tensor:
            runs.append((layer, features))
            return features

        self.cost = LOOK_COST
        with looking(layers, look, silent=False):
            self._model(image)
        if not runs or any(len(features) != 1 for _, features in runs):
            return False
        first, second = ([stream.draw(like, layer.noise.kind) for layer, like in runs] for _ in range(2))
        try:
            with stream.fixed(first):
                alone = self._output(self._model(image))
            with stream.fixed([torch.cat(pair) for pair in zip(first, second, strict=True)]):
                both = self._output(self._model(torch.cat([image, image])))
        except ValueError:  # other parts draw from the stream, too
            return False
        rounding = 100 * torch.finfo(both.dtype).eps * float(both.abs().max())
        apart = float((both[0] - both[1]).abs().max())
        return float((alone[0] - both[0]).abs().max()) <= _SAME * apart + rounding
