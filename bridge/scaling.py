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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bridge.draws import looking
from netkit.checks import check_counts, check_positive, check_sizes
from netkit.injection import InjectedSum
from netkit.models import evaluating
from netkit.noise import InjectedNoise, Noise, NoiseKind, ResidualNoise, noise_parts


def sigma_of(noise_coef: float, *, feature_std: float, num_blocks: int) -> float:
    """σ = a s √L.

    noise_coef: a; feature_std: s, of x + F(x); num_blocks: L. Raises ValueError for negative numbers or no blocks.
    """
    check_counts(num_blocks=num_blocks)
    check_sizes(noise_coef=noise_coef, feature_std=feature_std)
    return noise_coef * feature_std * math.sqrt(num_blocks)


def noise_coef_of(sigma: float, *, feature_std: float, num_blocks: int) -> float:
    """a = σ / (s √L). Raises ValueError for negative numbers, no blocks or features that do not vary."""
    check_counts(num_blocks=num_blocks)
    check_sizes(sigma=sigma)
    check_positive(feature_std=feature_std)
    return sigma / (feature_std * math.sqrt(num_blocks))


def feature_std_of(sigma: float, *, noise_coef: float, num_blocks: int) -> float:
    """s = σ / (a √L): the features for which both noises agree. Raises ValueError as `noise_coef_of`."""
    check_counts(num_blocks=num_blocks)
    check_sizes(sigma=sigma)
    check_positive(noise_coef=noise_coef)
    return sigma / (noise_coef * math.sqrt(num_blocks))


def num_blocks_of(sigma: float, *, noise_coef: float, feature_std: float) -> float:
    """L = (σ / (a s))²: the depth, rarely whole, at which both noises agree. Raises ValueError as `noise_coef_of`."""
    check_sizes(sigma=sigma)
    check_positive(noise_coef=noise_coef, feature_std=feature_std)
    return (sigma / (noise_coef * feature_std)) ** 2


def time_step(num_blocks: int) -> float:
    """Δt = 1/L. Raises ValueError for no blocks."""
    check_counts(num_blocks=num_blocks)
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

    A block is a residual mapping, of which a transformer's block has two.

    feature_std: (blocks,) mean over images of each image's std(x + F(x)).
    variation: (blocks,) its standard deviation over images divided by that mean: 0 where σ(X, t) is no function of X.
    sigma: (blocks,) σ_l = a s_l √L, or the constant σ.
    dt: (blocks,) Δt = 1/L, with the L of the network that the block is in.
    """

    feature_std: Tensor
    variation: Tensor
    sigma: Tensor
    dt: Tensor

    @property
    def effective_sigma(self) -> float:
        """The constant σ of as much variance, averaged over networks: (Σ σ_l² Δt_l / Σ Δt_l)^½."""
        return math.sqrt(float((self.sigma.square() * self.dt).sum() / self.dt.sum()))

    @property
    def block_variation(self) -> float:
        """Largest σ_l over smallest: 1 where σ(X, t) is no function of t. Infinite where a block has no noise."""
        smallest = float(self.sigma.min())
        return float(self.sigma.max()) / smallest if smallest > 0 else math.inf


def measure_noise(model: nn.Module, x: Tensor) -> NoiseMeasurement:
    """Run the model once on images x (B, ...) in eval mode, noise included, and look at every block's noise.

    The noise is the model's own or that of `inject_noise`. For `noise_std="batch"` σ_l comes from the one std of the
    whole batch, otherwise from the mean over images. Inside `noise_scale(c)` it is c σ_l. Draws from the model's
    generator. Raises ValueError for a model without noise layers, or whose noise layers have different scales.
    """
    sums = _injected_sums(model)
    layers = [module for module in model.modules() if isinstance(module, ResidualNoise)]
    if sums:  # the injected noise is that of blocks whose own layers are off
        layers = [layer for layer in layers if layer.noise.kind != "off"]
    streams = {id(layer.stream): layer.stream for layer in [*layers, *(each.layer for each in sums)]}
    if not streams:
        raise ValueError(f"model: expected one with noise layers, got {type(model).__name__} without")
    scales = {stream.scale for stream in streams.values()}
    if len(scales) > 1:
        raise ValueError(f"model: expected one noise_scale, got {sorted(scales)}")
    (scale,) = scales
    with ExitStack() as stack:
        layers += [stack.enter_context(_own_layer(each)) for each in sums]
        if scale == 0:  # noise that is off is not looked at: it is on, but goes no further than the look
            for stream in streams.values():
                stack.enter_context(stream.scaled(1.0))
        runs: dict[ResidualNoise, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in layers}

        def look(layer: ResidualNoise, features: Tensor, size: Tensor) -> Tensor:
            each = features.double().flatten(1).std(1)
            variation = each.std() / each.mean() if len(each) > 1 else torch.zeros_like(each[0])
            sigma = size.double().abs().mean() * math.sqrt(layer.num_blocks) * (scale > 0)
            runs[layer].append((each.mean().cpu(), variation.cpu(), sigma.cpu()))
            return features

        stack.enter_context(looking(layers, look, silent=scale == 0))
        with torch.no_grad(), evaluating(model):
            model(x)
    found = [
        (*run, torch.tensor(1.0 / layer.num_blocks, dtype=torch.float64)) for layer in layers for run in runs[layer]
    ]
    if not found:
        raise ValueError("model: expected noise of some size, got noise_coef 0 in every block")
    return NoiseMeasurement(*(torch.stack(column) for column in zip(*found, strict=True)))


def constant_sigma_twin(model: nn.Module, sigma: float | Tensor) -> nn.Module:
    """A copy of the network whose noise is σ_l√Δt·N(0, I) in place of a·std(x + F(x))·N(0, I): the process of Eq. 14.

    sigma: one for all blocks, such as `NoiseMeasurement.effective_sigma`, or one for each (blocks,), such as
        `NoiseMeasurement.sigma`. Everything else is copied, the state of the generator included, but not a
        `noise_scale` in force: the twin's noise is σ_l, and a σ_l measured inside `noise_scale` contains the scale.

    Raises ValueError for a tensor of another length, or a network whose blocks do not each have their own noise.
    """
    twin = copy.deepcopy(model)
    sums = _injected_sums(twin)
    own = [(module, name, child) for module in twin.modules() for name, child in _noise_layers(module)]
    places: list[tuple[Any, str, ResidualNoise]] = [p for p in own if not sums or p[2].noise.kind != "off"]
    places += [(each, "layer", each.layer) for each in sums]
    sigmas = torch.as_tensor(sigma, dtype=torch.float64)
    if sigmas.dim() == 0:
        sigmas = sigmas.expand(len(places))
    if not places or sigmas.shape != (len(places),):
        raise ValueError(f"sigma: expected one for each of {len(places)} blocks with noise, got {sigmas.numel()}")
    replaced: dict[int, list[ResidualNoise]] = {}
    for (owner, name, layer), each in zip(places, sigmas.tolist(), strict=True):
        layer.stream.scale = 1.0
        kind: NoiseKind = layer.noise.kind if layer.noise.kind in ("two_point", "off") else "gaussian"
        noise = Noise(kind, "constant", sigma=each)
        constant = ResidualNoise(noise, num_blocks=layer.num_blocks, stream=layer.stream)
        setattr(owner, name, constant)
        replaced.setdefault(id(layer), []).append(constant)
    for part in [part for part in noise_parts(twin) if isinstance(part, InjectedNoise)]:
        part.layers = tuple(new for old in part.layers for new in replaced.get(id(old), [old]))
    return twin


def _injected_sums(model: nn.Module) -> list[InjectedSum]:
    """The residual mappings with injected noise, those of one block in the order in which they run."""
    hooks = [
        hook
        for module in model.modules()
        for registered in (module._forward_hooks, module._forward_pre_hooks)
        for hook in registered.values()
    ]
    owners = dict.fromkeys(owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), InjectedSum))
    position: dict[tuple[int, str], int] = {}
    for owner in owners:
        position.setdefault((id(owner.layer), owner.name), len(position))
    return sorted(owners, key=lambda owner: (position[id(owner.layer), owner.name], owner.place.before is None))


@contextmanager
def _own_layer(owner: InjectedSum) -> Iterator[ResidualNoise]:
    """A layer of its own inside the block, in place of the one that all residual mappings of a network share."""
    shared = owner.layer
    owner.layer = ResidualNoise(shared.noise, num_blocks=shared.num_blocks, stream=shared.stream)
    try:
        yield owner.layer
    finally:
        owner.layer = shared


def _noise_layers(module: nn.Module) -> list[tuple[str, ResidualNoise]]:
    return [(name, child) for name, child in module.named_children() if isinstance(child, ResidualNoise)]
