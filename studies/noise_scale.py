"""A network with the paper's noise, whose σ depends on the state, against its twin of constant σ.

The paper adds a·std(x + F(x))·N(0, I), so the network follows dX = F dt + σ(X, t) dB, where Eq. 14 has one σ. Here the
networks are trained with the paper's noise, and their predictions compared with those of the same weights with the σ of
Eq. 14 in its place: one for each block, and one for all, as `bridge.measure_noise` finds them on training images. All
are driven by the same draws, so that their difference has a small error; that error is taken out of its size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from bridge.comparison import rms_without_noise
from bridge.scaling import NoiseMeasurement, constant_sigma_twin, measure_noise
from netkit import PRESETS, data, en_resnet, train
from netkit.models import EnResNet
from netkit.noise import NoiseStd
from netkit.training import TrainingLoss
from studies.lab.reporting import OUT, Out, Smoke, one_line_errors, show, store, tracked

Array = NDArray[np.float64]

# Parameters


@dataclass(frozen=True)
class Config:
    cases: tuple[tuple[TrainingLoss, NoiseStd, float, int], ...] = (  # (loss, noise_std, noise_coef, epochs)
        ("natural", "sample", 0.1, 6),
        ("natural", "sample", 0.3, 6),
        ("natural", "batch", 0.1, 6),
        ("natural", "batch", 0.3, 6),
        ("pgd", "sample", 0.1, 8),
        ("pgd", "batch", 0.1, 8),
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    draws: int = 100
    num_train: int | None = None
    num_test: int | None = None


SMOKE = Config((("natural", "sample", 0.1, 1),), seeds=(0,), draws=16, num_train=200, num_test=40)


def main(out: Out = OUT / "noise_scale", smoke: Smoke = False) -> None:
    """Train on digits, replace the noise, compare; write noise_scale.json and print it."""
    with one_line_errors():
        config = SMOKE if smoke else Config()
        torch.set_num_threads(1)  # passes this small only lose by more
        rows = [row(*case, config, out) for case in tracked(config.cases, "constant σ: networks")]
        report(store(out / "noise_scale.json", {"rows": rows}, config))


# Problem


def trained(
    loss: TrainingLoss, std: NoiseStd, coef: float, epochs: int, seed: int, config: Config, out: Path
) -> tuple[EnResNet, data.Dataset]:
    """A network with the paper's noise, and the digits that it was trained on."""
    digits = data.load("digits", num_train=config.num_train, num_test=config.num_test)
    options: dict[str, Any] = {"num_members": 1, "in_channels": 1, "width": 8}
    model: EnResNet = en_resnet(8, noise_std=std, noise_coef=coef, seed=seed, **options)
    recipe = replace(PRESETS["digits"], loss=loss, epochs=epochs, select="last", hold_out=False, seed=seed)
    name = f"{loss}-{std}-{coef}-{config.num_train or 'all'}-{epochs}-{seed}.safetensors"
    path = out / "models" / name  # --smoke and a full run may share a folder
    train(model, digits, recipe, path=path, on_step=lambda *_: None)
    return model, digits


def draws(model: Any, x: Tensor, num_draws: int) -> Array:
    """softmax (draws, B, K), each draw from noise of its own number, the same for every model."""
    model.eval()
    probabilities = []
    with torch.no_grad():
        for number in range(num_draws):
            with model.fixed_noise(number):
                probabilities.append(model(x).softmax(-1).double().numpy())
    return np.stack(probabilities)


# Solve


def row(loss: TrainingLoss, std: NoiseStd, coef: float, epochs: int, config: Config, out: Path) -> dict[str, Any]:
    """One recipe over all seeds: means, and standard errors of the means over seeds."""
    found = [effects(loss, std, coef, epochs, seed, config, out) for seed in config.seeds]
    seeds = len(found)
    mean = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    error = {name: float(np.std([f[name] for f in found], ddof=1) / seeds**0.5) if seeds > 1 else None for name in mean}
    return {"loss": loss, "noise_std": std, "noise_coef": coef, "seeds": seeds, "mean": mean, "standard_error": error}


def effects(
    loss: TrainingLoss, std: NoiseStd, coef: float, epochs: int, seed: int, config: Config, out: Path
) -> dict[str, float]:
    """Compare one network with its twins on test images."""
    model, digits = trained(loss, std, coef, epochs, seed, config, out)
    x = digits.images(digits.test.x)
    measured = measure_noise(model, digits.images(digits.train.x))
    return against_constant(model, measured, x, draws(model, x, config.draws))


def against_constant(model: EnResNet, measured: NoiseMeasurement, x: Tensor, own: Array) -> dict[str, float]:
    """Replace the noise by that of constant σ; probabilities, rms over images x and classes.

    own: the network's draws on x. noise: how far noise moves the mean prediction from that of the network without.
    blocks, one: how far σ_l for each block, or one σ, moves the mean; one_flips: share of images whose decision changes
    with it, repeat_flips: between halves of the draws.
    """
    with model.noise_off():
        still = draws(model, x, 1)[0]
    blocks = draws(constant_sigma_twin(model, measured.sigma), x, len(own))
    one = draws(constant_sigma_twin(model, measured.effective_sigma), x, len(own))
    first, second = np.split(own[: len(own) // 2 * 2], 2)
    return {
        "noise": rms_of_mean(own - still),
        "blocks": rms_of_mean(own - blocks),
        "one": rms_of_mean(own - one),
        "one_flips": float((decisions(one) != decisions(own)).mean()),
        "repeat_flips": float((decisions(first) != decisions(second)).mean()),
        "variation": float(measured.variation.mean()),
        "sigma": measured.effective_sigma,
    }


def decisions(probabilities: Array) -> NDArray[np.int64]:
    """The class (B,) of the mean over draws of (draws, B, K)."""
    return probabilities.mean(0).argmax(-1)


def rms_of_mean(differences: Array) -> float:
    """The rms of the mean over draws of (draws, B, K), with the error of that mean taken out."""
    error = differences.std(0, ddof=1) / len(differences) ** 0.5
    return rms_without_noise(differences.mean(0), error)


# Draw


def report(stored: dict[str, Any]) -> None:
    """Print the table of noise_scale.json."""

    def percent(row: dict[str, Any], name: str) -> str:
        error = row["standard_error"][name]
        return f"{100 * row['mean'][name]:.2f}" + ("" if error is None else f"±{100 * error:.2f}")

    show(
        "Constant σ in place of a·std(x + F(x)), in % of probability, rms",
        {
            "training": "{loss}, {noise_std}, {noise_coef:g}",
            "σ": "{mean[sigma]:.2f}",
            "varies": "{mean[variation]:.0%}",
            "noise": "{mean[noise]:.2%}",
            "by block": lambda row: percent(row, "blocks"),
            "one σ": lambda row: percent(row, "one"),
            "flips": "{mean[one_flips]:.2%}",
            "again": "{mean[repeat_flips]:.2%}",
        },
        stored["rows"],
        caption="Noise: from the network without noise. By block, one σ: from its own noise to the σ of Eq. 14. Flips: "
        "decisions of the mean that one σ changes, in % of images; again: between two halves of the network's own "
        "draws. ±: standard error over seeds.",
    )


if __name__ == "__main__":
    typer.run(main)
