"""The first-order expansion in the noise as a control variate.

Write a noisy prediction as P(s_1 ξ_1, ..., s_L ξ_L). Around its noise-free twin it is P(0) + Σ_l ∂P/∂x_l · s_l ξ_l +
O(s²), where x_l is the output of block l and s_l the size of its noise in the twin. The first-order term C has mean
zero and is known for each draw, so P - βC has the same mean and, for small noise and β = 1, far less variance. The twin
alone is no control: it does not vary. Large noise makes C vary more than P: the best β = cov(P, C) / var(C) goes to
zero, and the control stops being worth its cost, which `probe_control` finds out on a few images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from bridge.draws import looking, noise_layers, one_stream
from netkit.noise import ResidualNoise

_PROBE_DRAWS = 16
_PRIOR_DRAWS = 8  # what the coefficient at the start counts for, against the draws since
_SUMS_SHARE = 0.05  # of a pass, for one class's sums: 0.02 to 0.05 on small networks; a chosen control is to pay


class NoiseExpansion:
    """Draws of a model's outputs for images x (B, ...), each with its first-order term in the noise.

    output: from the model's result (B, K) to the values that are averaged.
    twin: (B, K) the output without noise. variance: (B, K) of the first-order term, exact.

    Making one takes one pass and K backward passes, without noise, and keeps K times the outputs of all blocks.

    Raises ValueError for a model without noise layers, own or injected, with several streams of noise, with the noise
    off, or that no gradient flows through.
    """

    def __init__(self, model: nn.Module, x: Tensor, output: Callable[[Tensor], Tensor]) -> None:
        layers = [layer for layer in noise_layers(model) if layer.size > 0]
        stream = one_stream(layers)
        if stream is None:
            streams = len({id(layer.stream) for layer in layers})
            raise ValueError(f"model: expected noise layers that are on, on one stream, got {streams} streams")
        self._stream, self._model, self._x, self._output = stream, model, x, output
        features: list[Tensor] = []
        self._runs: list[tuple[ResidualNoise, Tensor]] = []  # the layer of every block, and a tensor like its noise
        sizes: list[Tensor] = []

        def look(layer: ResidualNoise, before: Tensor, size: Tensor) -> Tensor:
            sizes.append(size)
            features.append(before + torch.zeros_like(before).requires_grad_())
            self._runs.append((layer, before.detach()))
            return features[-1]

        with looking(layers, look, silent=True), torch.enable_grad():
            value = output(model(x))
        if not value.requires_grad:
            raise ValueError("model: expected one that gradients flow through, got outputs without")
        if any(len(like) != len(x) for _, like in self._runs):
            raise ValueError("model: expected noise in tensors with a row for each image, got another number of rows")
        self._directions: list[list[Tensor]] = []
        for k in range(value.shape[1]):  # one class after the other: there is memory for one row of gradients
            with torch.enable_grad():
                total = value[:, k].sum()
            gradients = torch.autograd.grad(total, features, retain_graph=True)
            self._directions.append([g * size for g, size in zip(gradients, sizes, strict=True)])
        self.twin = value.detach().double()
        self.variance = _summed((direction.square() for direction in row) for row in self._directions)

    def draw(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A new draw of the output, and its first-order term: both (B, K) float64, or for some rows only."""
        pick = (lambda t: t) if rows is None else (lambda t: t[rows])
        noise = [self._stream.draw(pick(like), layer.noise.kind) for layer, like in self._runs]
        with torch.no_grad(), self._stream.fixed(noise):
            value = self._output(self._model(pick(self._x))).double()
        return value, _summed((pick(d) * xi for d, xi in zip(row, noise, strict=True)) for row in self._directions)


def _summed(terms: Iterable[Iterable[Tensor]]) -> Tensor:
    """Sums (B, K) over blocks and entries of terms (K, blocks, (B, ...)); one term exists at a time."""
    return torch.stack([reduce(torch.add, map(_sum, row)) for row in terms], 1)


def _sum(term: Tensor) -> Tensor:
    return term.flatten(1).sum(1, dtype=torch.float64)


class ControlledDraws:
    """Draws of P - βC; each takes its β, one for every image and class, from the draws before it.

    As β is known before its draw, every draw has mean E[P] exactly, and the draws are uncorrelated. β starts from
    `coefficient` and moves to the cov(P, C) / var(C) of least variance. C is cut off at `reach` deviations either way,
    which leaves its mean at zero, as the noise is symmetric.
    """

    def __init__(self, expansion: NoiseExpansion, coefficient: float = 1.0, *, reach: float = math.inf) -> None:
        self._expansion = expansion
        deviation = expansion.variance.sqrt()
        self._largest = torch.full_like(deviation, math.inf) if math.isinf(reach) else reach * deviation
        weight = _PRIOR_DRAWS * expansion.variance
        self._mean_p, self._mean_c = torch.zeros_like(weight), torch.zeros_like(weight)
        self._count = torch.zeros_like(weight[:, :1])
        self._square, self._product = weight.clamp_min(torch.finfo(weight.dtype).tiny), coefficient * weight

    def _coefficient(self, rows: Tensor) -> Tensor:
        return self._product[rows] / self._square[rows]

    def margin(self, rows: Tensor) -> Tensor:
        """The largest distance (rows, K) of the next draw from P, with a finite `reach`."""
        return self._coefficient(rows).abs() * self._largest[rows]

    def __call__(self, rows: Tensor) -> Tensor:
        """A new draw for the rows (B,) that are True, (1, rows, K) float64."""
        p, c = self._expansion.draw(None if bool(rows.all()) else rows)
        largest = self._largest[rows]
        c = torch.minimum(torch.maximum(c, -largest), largest)
        value = p - self._coefficient(rows) * c
        self._count[rows] += 1
        delta_p, delta_c = p - self._mean_p[rows], c - self._mean_c[rows]
        self._mean_p[rows] += delta_p / self._count[rows]
        self._mean_c[rows] += delta_c / self._count[rows]
        left = c - self._mean_c[rows]
        self._product[rows] += delta_p * left
        self._square[rows] += delta_c * left
        return value.unsqueeze(0)


@dataclass(frozen=True, eq=False)
class ControlProbe:
    """The effect of the control on a few images (P, ...) of K classes.

    coefficient: the β of least variance, one for all, to start from. plain, controlled: variance (P, K) of a draw
        without the control and with the β that other draws of the same image and class give.
    """

    coefficient: float
    plain: Tensor
    controlled: Tensor


def probe_control(model: nn.Module, x: Tensor, output: Callable[[Tensor], Tensor]) -> ControlProbe:
    """Try the control on images x (P, ...). Raises ValueError as `NoiseExpansion`."""
    expansion = NoiseExpansion(model, x, output)
    p, c = (torch.stack(column) for column in zip(*(expansion.draw() for _ in range(_PROBE_DRAWS)), strict=True))
    p, c = p - p.mean(0), c - c.mean(0)
    cc = c.square().sum(0).clamp_min(torch.finfo(c.dtype).tiny)
    beta = (p * c).sum(0) / cc
    coefficient = float((p * c).sum() / cc.sum()) if bool(c.any()) else 0.0
    # What is left of each draw with the β and the mean of the others (PRESS, Allen 1974). With the draw itself in the
    # fit, a few large terms of a heavy-tailed expansion would explain themselves.
    weight = c.square() / cc + 1 / _PROBE_DRAWS
    left = (p - beta * c) / (1 - weight).clamp_min(1e-6)
    plain = p / (1 - 1 / _PROBE_DRAWS)
    return ControlProbe(coefficient, *(each.square().mean(0) * (1 - 1 / _PROBE_DRAWS) for each in (plain, left)))


def expansion_cost(num_outputs: int) -> int:
    """The cost of a `NoiseExpansion` of K outputs for an image, in passes; a backward pass counts two."""
    return 2 * num_outputs + 1


def draw_cost(num_outputs: int) -> float:
    """The cost of a draw with its first-order term, in passes; each of K outputs takes a sum over all blocks."""
    return 1 + _SUMS_SHARE * num_outputs


def probe_cost(num_outputs: int) -> int:
    """The cost of `probe_control` for an image, in passes."""
    return expansion_cost(num_outputs) + math.ceil(_PROBE_DRAWS * draw_cost(num_outputs))
