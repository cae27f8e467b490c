"""The gradient of a noisy network's mean answer by a weight on its paths, which differentiates no later block.

A network with noise is a Markov chain z_l = h_l + s_l ξ_l, where h_l is the residual sum x + F(x) of block l and s_l
its noise's size. Given the noise before block l, the mean answer depends on x through the law of z_l alone, so that for
each l, and for every mean over them,

    ∇ E[f] = E[ f ∇ log p(z_l | x, ξ_1 ... ξ_{l-1}) ],    log p = -|z_l - h_l(x)|² / (2 s_l²) - log s_l, entry by entry.

The first noise alone needs the derivative of the first block: the likelihood ratio (Glynn 1990). The mean over all L
noises needs those of all blocks, and has the smaller variance, L times where blocks keep lengths: for a constant s it
is the formula of Bismut (1984) and Elworthy and Li (1994). (`pdekit.feynman_kac_gradient` moves a path back along a
straight line in its place, which takes states of one shape.) What f does behind the last noise that counts may be a
step function.

Where automatic differentiation works, this is no better an attack, but a much worse one (`studies/random_attacks.py`:
100 digits, three networks trained against PGD, a = 0.3). With ten passes a gradient the cosine with the true one is
0.09, with a hundred 0.28, or 0.41 for all noises; automatic differentiation has 0.97 with ten. IFGSM in 20 steps leaves
80% right with ten passes a step and 70% with fifty, where the mean of five automatic gradients leaves 48%. Behind a
rounding layer that leaves 90%, and this again 79% and 70%. So it is a test for gradients that are masked, in which it
should find nothing more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from netkit.checks import check_counts
from netkit.noise import ResidualNoise, noise_parts

Noises = Literal["first", "all"]


class PathGradient(nn.Module):
    """Answer with the mean logits over draws, whose gradient with respect to the images comes from weights on paths.

    An attack takes it in place of the model, as in `robust_accuracy(..., oracle=PathGradient(model), eot_draws=1)`.

    Draws come in pairs of opposite ξ in the noises that count, and the mean logits of the other pairs are subtracted
    from f, which leaves the gradient unbiased.

    model: one with Gaussian noise of its own or from `netkit.inject_noise`, of `noise_std` "constant" or "sample". The
        noises of each network of an ensemble count.
    num_pairs: of draws, each of two forward passes.
    noises: that count, the "first" or "all".

    Raises ValueError for a model without such noise.
    """

    def __init__(self, model: nn.Module, num_pairs: int = 5, *, noises: Noises = "first") -> None:
        super().__init__()
        check_counts(num_pairs=num_pairs)
        if noises not in get_args(Noises):
            raise ValueError(f"noises: expected one of {get_args(Noises)}, got {noises!r}")
        for layer in _layers(model):
            if layer.noise.kind != "gaussian" or layer.noise.std == "batch":
                raise ValueError(
                    "model: expected noise with a density of its own for each image, that is noise='gaussian' and "
                    f"noise_std='sample' or 'constant', got {layer.noise.kind!r} and {layer.noise.std!r}"
                )
        self.model, self.num_pairs, self.noises = model, num_pairs, noises
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        if any(layer.size == 0 for layer in _layers(self.model)):
            raise ValueError("model: expected its noise on, got it switched off, which leaves no density")
        logits, scores = [], []
        for _ in range(self.num_pairs):
            path = _Path(all_count=self.noises == "all")
            for sign in (1, -1):
                with path.followed(self.model, sign):
                    logits.append(self.model(x).detach())
                scores.append(path.log_density)
        answers = torch.stack(logits).unflatten(0, (self.num_pairs, 2))
        mean = answers.mean((0, 1))
        centred = answers
        if self.num_pairs > 1:
            others = (self.num_pairs * mean - answers.mean(1)) / (self.num_pairs - 1)
            centred = answers - others.unsqueeze(1)
        score = torch.stack(scores).unflatten(0, (self.num_pairs, 2))
        # a difference of zero, whose gradient is the score
        return mean + (centred * (score - score.detach()).unsqueeze(-1)).mean((0, 1))


class _Path:
    """What one pass, and another with the opposite noise, leave behind: draws and log densities."""

    def __init__(self, *, all_count: bool) -> None:
        self.all_count = all_count
        self.log_density: Tensor
        self._draws: list[Tensor] = []

    @contextmanager
    def followed(self, model: nn.Module, sign: int) -> Iterator[None]:
        """Draw new noise for the sign 1, and use its opposite for -1."""
        self.log_density, self._sign, self._place = torch.zeros(()), sign, 0
        self._calls: Counter[int] = Counter()
        handles: list[Any] = []
        try:
            for layer in _layers(model):
                handles.append(layer.register_forward_pre_hook(self._on_sum))
                handles.append(layer.register_forward_hook(self._on_noisy))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, layer: ResidualNoise) -> int:
        return layer.num_blocks if self.all_count else 1

    def _on_sum(self, layer: ResidualNoise, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        self._calls[id(layer)] += 1
        if self._calls[id(layer)] > self._count(layer):
            return None
        self._sum = inputs[0]
        # The layer overwrites what it gets. Behind the last noise that counts nothing is differentiated.
        is_last = self._calls[id(layer)] == self._count(layer)
        return ((self._sum.detach() if is_last else self._sum).clone(),)

    def _on_noisy(self, layer: ResidualNoise, _: tuple[Tensor], noisy: Tensor) -> Tensor:
        count = self._count(layer)
        if self._calls[id(layer)] > count:
            return noisy
        h = self._sum
        size = h.new_tensor(layer.size) if layer.noise.std == "constant" else layer.size * _std(h)
        if self._sign == 1:
            self._draws.append(((noisy - h) / size).detach())
        xi = self._draws[self._place]
        self._place += 1
        if self._sign == -1:
            noisy = h - size * xi
            noisy = noisy.detach() if self._calls[id(layer)] == count else noisy
        density = -((noisy.detach() - h) / size).square() / 2 - size.log()
        self.log_density = self.log_density + density.flatten(1).sum(1) / count
        return noisy


def _std(h: Tensor) -> Tensor:
    return h.flatten(1).std(1).view(-1, *[1] * (h.dim() - 1))


def _layers(model: nn.Module) -> list[ResidualNoise]:
    found = {id(p): p for p in noise_parts(model) if isinstance(p, ResidualNoise) and p.noise.kind != "off"}
    if not found:
        raise ValueError("model: expected noise of its own or injected, got none: netkit.inject_noise(model) gives it")
    return list(found.values())
