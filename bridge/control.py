"""The first-order expansion in the noise as a control variate, and what a member buys against a draw.

Write a noisy prediction as P(s_1 ξ_1, ..., s_L ξ_L). Around its noise-free twin it is P(0) + Σ_l ∂P/∂x_l · s_l ξ_l +
O(s²), where x_l is the output of block l and s_l the size of its noise in the twin. The first-order term has mean zero
and is known for each draw, so P minus it has the same mean and, for small noise, far less variance. The twin alone is
no control: it does not vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netkit.models import EnResNet
from netkit.noise import ResidualNoise


class NoiseExpansion:
    """Draws of a model's outputs for images x (B, ...), less their first-order term in the noise.

    output: from what the model returns (B, K) to what is averaged. Takes one pass and K backward passes once, without
    noise; `twin` (B, K) is that noise-free output.

    Raises ValueError for a model without netkit's noise layers, with several streams of noise, or with the noise off.
    """

    def __init__(self, model: nn.Module, x: Tensor, output: Callable[[Tensor], Tensor]) -> None:
        layers = [module for module in model.modules() if isinstance(module, ResidualNoise)]
        streams = {id(layer.stream): layer.stream for layer in layers}
        if len(streams) != 1:
            raise ValueError(f"model: expected netkit's noise layers on one stream, got {len(streams)} streams")
        if any(layer.noise.kind == "off" for layer in layers):
            raise ValueError("model: expected noise in every block, got kind 'off'")
        (self._stream,) = streams.values()
        self._model, self._x, self._output = model, x, output
        features: list[Tensor] = []
        self._runs: list[tuple[ResidualNoise, Tensor]] = []  # the layer of every block, and a tensor like its noise
        sizes: list[Tensor] = []
        scale = self._stream.scale

        def look(layer: ResidualNoise, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
            sizes.append(_size(layer, result.detach(), scale))
            features.append(result + torch.zeros_like(result).requires_grad_())
            self._runs.append((layer, result.detach()))
            return features[-1]

        hooks: list[Any] = [layer.register_forward_hook(look) for layer in set(layers)]
        try:
            self._stream.scale = 0.0
            with torch.enable_grad():
                value = output(model(x))
                gradients = [
                    torch.autograd.grad(value[:, k].sum(), features, retain_graph=True) for k in range(value.shape[1])
                ]
        finally:
            self._stream.scale = scale
            for hook in hooks:
                hook.remove()
        self.twin = value.detach().double()
        self._directions = [[g * size for g, size in zip(row, sizes, strict=True)] for row in gradients]

    def draw(self) -> Tensor:
        """A new draw of the output less its first-order term, (B, K) float64; the mean is that of the output."""
        noise = [self._stream.draw(like, layer.noise.kind) for layer, like in self._runs]
        with torch.no_grad(), self._stream.replaced(draws=noise):
            value = self._output(self._model(self._x)).double()
        terms = [
            sum(
                (direction * xi).flatten(1).sum(1, dtype=torch.float64)
                for direction, xi in zip(row, noise, strict=True)
            )
            for row in self._directions
        ]
        return value - torch.stack([torch.as_tensor(term) for term in terms], 1)


def _size(layer: ResidualNoise, features: Tensor, scale: float) -> Tensor:
    """Standard deviation of the noise added to features (B, ...), as (B, 1, ...)."""
    noise, shape = layer.noise, (-1, *[1] * (features.dim() - 1))
    if noise.kind == "off":
        size = torch.zeros(1)
    elif noise.sigma is not None:
        size = torch.tensor([noise.sigma * math.sqrt(1.0 / layer.num_blocks)])
    elif noise.std == "batch":
        size = noise.noise_coef * features.std().view(1)
    else:
        size = noise.noise_coef * features.flatten(1).std(1)
    return (scale * size).to(features).view(shape)


@dataclass(frozen=True)
class BiasVariance:
    """The mean squared error (Brier score) of one member's one draw, split in three; means over images, summed over
    classes.

    rest: of the mean over all members and draws: squared bias and label noise.
    between_members: variance over members of their means over noise.
    between_draws: mean over members of their variance over noise.
    """

    rest: float
    between_members: float
    between_draws: float

    @property
    def total(self) -> float:
        return self.rest + self.between_members + self.between_draws

    def error(self, num_members: int, num_draws: int) -> float:
        """Expected squared error of the average of m members, each drawn r times."""
        return self.rest + self.between_members / num_members + self.between_draws / (num_members * num_draws)

    @property
    def second_member(self) -> float:
        """What a second member, drawn once, takes off the error of one member drawn once."""
        return self.total - self.error(2, 1)

    @property
    def second_draw(self) -> float:
        """What a second draw of the same member takes off; the pass costs as much, training nothing."""
        return self.total - self.error(1, 2)


def bias_variance(probabilities: Tensor, y: Tensor) -> BiasVariance:
    """Split the error of predictions (members, draws, B, K) for labels y (B,).

    Members are taken for independent trainings of one recipe. All three parts are unbiased estimates, so the smaller
    ones may come out slightly negative. Raises ValueError for fewer than two members or draws, or other shapes.
    """
    if probabilities.dim() != 4 or y.shape != probabilities.shape[2:3] or min(probabilities.shape[:2]) < 2:
        raise ValueError(
            "expected probabilities (members >= 2, draws >= 2, B, K) and labels (B,), "
            f"got {tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    p = probabilities.double()
    members, draws = p.shape[:2]
    target = nn.functional.one_hot(y, p.shape[-1]).double()
    within = p.var(1).mean(0)
    means = p.mean(1)
    between = means.var(0) - within / draws
    rest = (means.mean(0) - target).square() - between / members - within / (members * draws)
    return BiasVariance(*(float(part.sum(-1).mean()) for part in (rest, between, within)))


def member_probabilities(model: EnResNet, x: Tensor, *, num_draws: int, generator: torch.Generator) -> Tensor:
    """softmax of every member's logits (members, draws, B, K) for a `netkit.EnResNet` in its current mode."""
    with torch.no_grad(), model.using_generator(generator):
        return torch.stack([model.member_logits(x).softmax(-1) for _ in range(num_draws)], dim=1)
