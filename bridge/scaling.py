"""The paper's noise coefficient a and the σ of the Itô process, each from the other.

A noisy block is x + F(x) + a·s·N(0, I), where s is the standard deviation of x + F(x) (Sec. 3.1). An Euler-Maruyama
step of dX = F dt + σ dB over Δt = 1/L adds σ√Δt·N(0, I) (Eq. 14). Equal noise means

    a s = σ √(1/L).

What is approximated: s depends on the state, on other images (`noise_std="batch"`) and on the block, so the network
follows dX = F dt + σ(X, t) dB with σ(X, t) = a s √L, whose equation has ½σ²(x, t)Δu and not ½σ²Δu. Nor does that σ have
a limit as L grows at fixed a: it grows like √L. And where stages change the features' dimension, the process changes
its space. `measure_noise` says by how much σ varies in a given network, and `constant_sigma_twin` what that changes: on
digits (studies/noise_scale.py) one σ for all blocks moves the mean prediction by 0.02 to 0.07 percentage points (rms)
at a = 0.1, where the noise itself moves it by 0.2 to 0.4, and by up to 0.56 of 1.4 at a = 0.3. With
`noise_std="constant"` nothing is approximated but the time step.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netkit.models import evaluating
from netkit.noise import Noise, NoiseKind, ResidualNoise


def sigma_of(noise_coef: float, *, feature_std: float, num_blocks: int) -> float:
    """σ = a s √L.

    noise_coef: a; feature_std: s, of x + F(x); num_blocks: L. Raises ValueError for negative numbers or no blocks.
    """
    _check(num_blocks=num_blocks, noise_coef=noise_coef, feature_std=feature_std)
    return noise_coef * feature_std * math.sqrt(num_blocks)


def noise_coef_of(sigma: float, *, feature_std: float, num_blocks: int) -> float:
    """a = σ / (s √L). Raises ValueError for negative numbers, no blocks or features that do not vary."""
    _check(num_blocks=num_blocks, sigma=sigma)
    _check_positive(feature_std=feature_std)
    return sigma / (feature_std * math.sqrt(num_blocks))


def feature_std_of(sigma: float, *, noise_coef: float, num_blocks: int) -> float:
    """s = σ / (a √L): the features for which both noises agree. Raises ValueError as `noise_coef_of`."""
    _check(num_blocks=num_blocks, sigma=sigma)
    _check_positive(noise_coef=noise_coef)
    return sigma / (noise_coef * math.sqrt(num_blocks))


def num_blocks_of(sigma: float, *, noise_coef: float, feature_std: float) -> float:
    """L = (σ / (a s))²: the depth, rarely whole, at which both noises agree. Raises ValueError as `noise_coef_of`."""
    _check(num_blocks=1, sigma=sigma)
    _check_positive(noise_coef=noise_coef, feature_std=feature_std)
    return (sigma / (noise_coef * feature_std)) ** 2


def time_step(num_blocks: int) -> float:
    """Δt = 1/L. Raises ValueError for no blocks."""
    _check(num_blocks=num_blocks)
    return 1.0 / num_blocks


def effective_sigma(sigmas: Tensor) -> float:
    """The constant σ that adds as much variance over [0, 1] as blocks with σ_1, ..., σ_L (L,): (Σ σ_l² / L)^½.

    Raises ValueError for another shape.
    """
    if sigmas.dim() != 1 or len(sigmas) == 0:
        raise ValueError(f"sigmas: expected shape (L,) with L >= 1, got {tuple(sigmas.shape)}")
    return float(sigmas.double().square().mean().sqrt())


@dataclass(frozen=True)
class NoiseMeasurement:
    """The noise of a network on given images; blocks in the order of `model.modules()`, members one by one.

    feature_std: (blocks,) mean over images of each image's std(x + F(x)).
    variation: (blocks,) its standard deviation over images divided by that mean: 0 where σ(X, t) is no function of X.
    sigma: (blocks,) σ_l = a s_l √L, or the constant σ.
    """

    feature_std: Tensor
    variation: Tensor
    sigma: Tensor

    @property
    def effective_sigma(self) -> float:
        return effective_sigma(self.sigma)

    @property
    def block_variation(self) -> float:
        """Largest σ_l over smallest: 1 where σ(X, t) is no function of t. Infinite where a block has no noise."""
        smallest = float(self.sigma.min())
        return float(self.sigma.max()) / smallest if smallest > 0 else math.inf


def measure_noise(model: nn.Module, x: Tensor) -> NoiseMeasurement:
    """Run the model once on images x (B, ...) in eval mode, noise included, and look at every block's noise.

    For `noise_std="batch"` σ_l comes from the one std of the whole batch, otherwise from the mean over images. Inside
    `model.noise_scale(c)` it is c σ_l. Draws from the model's generator. Raises ValueError for a model without
    noise layers.
    """

    def look(layer: ResidualNoise, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].detach().double()
        each = features.flatten(1).std(1)
        variation = each.std() / each.mean() if len(each) > 1 else torch.zeros_like(each[0])
        noise = layer.noise
        if noise.sigma is not None:
            sigma = torch.tensor(noise.sigma, dtype=torch.float64)
        else:
            std = features.std() if noise.std == "batch" else each.mean()
            sigma = abs(layer.coef_of(inputs)) * std * math.sqrt(layer.num_blocks)
        sigma = sigma.cpu() * (layer.stream.scale if noise.kind != "off" else 0.0)
        runs[layer].append((each.mean().cpu(), variation.cpu(), sigma))

    layers = [module for module in model.modules() if isinstance(module, ResidualNoise)]
    if not layers:
        raise ValueError(f"model: expected one with noise layers, got {type(model).__name__} without")
    runs: dict[ResidualNoise, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in layers}
    hooks: list[Any] = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    means, variations, sigmas = zip(*(run for layer in layers for run in runs[layer]), strict=True)
    return NoiseMeasurement(torch.stack(means), torch.stack(variations), torch.stack(sigmas))


def constant_sigma_twin(model: nn.Module, sigma: float | Tensor) -> nn.Module:
    """A copy of the network whose noise is σ_l√Δt·N(0, I) in place of a·std(x + F(x))·N(0, I): the process of Eq. 14.

    sigma: one for all blocks, such as `NoiseMeasurement.effective_sigma`, or one for each (blocks,), such as
        `NoiseMeasurement.sigma`. Everything else is copied, the state of the generator included, but not a
        `noise_scale` in force: the twin's noise is σ_l, and a σ_l measured inside `noise_scale` contains the scale.

    Raises ValueError for a tensor of another length, or a network whose blocks do not each have their own noise.
    """
    twin = copy.deepcopy(model)
    places = [(module, name, child) for module in twin.modules() for name, child in _noise_layers(module)]
    sigmas = torch.as_tensor(sigma, dtype=torch.float64)
    if sigmas.dim() == 0:
        sigmas = sigmas.expand(len(places))
    if not places or sigmas.shape != (len(places),):
        raise ValueError(f"sigma: expected one for each of {len(places)} blocks with noise, got {sigmas.numel()}")
    for (module, name, layer), own in zip(places, sigmas.tolist(), strict=True):
        layer.stream.scale = 1.0
        kind: NoiseKind = "gaussian" if layer.noise.kind == "trainable" else layer.noise.kind
        noise = Noise(kind, "constant", sigma=own)
        setattr(module, name, ResidualNoise(noise, num_blocks=layer.num_blocks, stream=layer.stream))
    return twin


def _noise_layers(module: nn.Module) -> list[tuple[str, ResidualNoise]]:
    return [(name, child) for name, child in module.named_children() if isinstance(child, ResidualNoise)]


def _check(*, num_blocks: int, **numbers: float) -> None:
    if num_blocks < 1:
        raise ValueError(f"num_blocks: expected at least 1, got {num_blocks}")
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}: expected a finite number >= 0, got {number}")


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {number}")
