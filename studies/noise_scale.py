"""What it changes that σ in the paper's noise depends on the state: a trained network against its twin of constant σ.

The paper adds a·std(x + F(x))·N(0, I), so the network follows dX = F dt + σ(X, t) dB, where Eq. 14 has one σ. Here the
networks are trained with the paper's noise, and their predictions compared with those of the same weights with the σ of
Eq. 14 in its place: one for each block, and one for all, as `bridge.measure_noise` finds them on training images. All
are driven by the same draws, so that their difference has a small error; that error is taken out of its size.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from bridge.comparison import rms_without_noise
from bridge.scaling import constant_sigma_twin, measure_noise
from netkit import PRESETS, data, en_resnet, train
from netkit.checkpoint import CheckpointError
from netkit.models import EnResNet
from netkit.noise import NoiseStd
from netkit.training import TrainingLoss
from pdekit.runtime.progress import Progress
from studies.lab.reporting import ROOT, console, one_line_errors, provenance, write_json

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    cases: tuple[tuple[TrainingLoss, NoiseStd, float, int], ...]  # (loss, noise_std, noise_coef, epochs)
    seeds: tuple[int, ...] = (0, 1, 2)
    draws: int = 100
    num_train: int | None = None
    num_test: int | None = None


FULL = Config(
    cases=(
        *(("natural", std, coef, 6) for std in ("sample", "batch") for coef in (0.1, 0.3)),
        *(("pgd", std, 0.1, 8) for std in ("sample", "batch")),
    )
)
SMOKE = replace(FULL, cases=(("natural", "sample", 0.1, 1),), seeds=(0,), draws=16, num_train=200, num_test=40)


def main(
    out: Annotated[Path, typer.Option(help="folder for noise_scale.json and the trained networks")] = ROOT
    / "out"
    / "noise_scale",
    smoke: Annotated[bool, typer.Option("--smoke", help="one network, few draws")] = False,
) -> None:
    """Train on digits, replace the noise, compare; write noise_scale.json and print it."""
    with one_line_errors(usage=(CheckpointError, OSError), failure=(FloatingPointError,)):
        config = SMOKE if smoke else FULL
        torch.set_num_threads(1)  # passes this small only lose by more
        rows = []
        with Progress("constant σ: networks", total=len(config.cases)) as bar:
            for done, case in enumerate(config.cases, start=1):
                rows.append(row(*case, config, out))
                bar.update(done)
        write_json(out / "noise_scale.json", {"rows": rows, "provenance": provenance(asdict(config))})
        report(out)


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
    """What is compared, for one network; probabilities, rms over test images and classes.

    noise: how far noise moves the mean prediction from that of the network without. spread: standard deviation of a
    draw. blocks, one: how far σ_l for each block, or one σ, moves the mean; *_error: its standard error over draws;
    *_flips: share of images whose decision changes, repeat_flips: between halves of the draws; *_accuracy: of means.
    """
    digits = data.load("digits", num_train=config.num_train, num_test=config.num_test)
    model: EnResNet = en_resnet(
        8,
        num_members=1,
        in_channels=1,
        width=8,
        noise_std=std,
        noise_coef=coef,
        seed=seed,
    )
    recipe = replace(
        PRESETS["digits"],
        loss=loss,
        epochs=epochs,
        select="last",
        hold_out=False,
        seed=seed,
    )
    name = f"{loss}-{std}-{coef}-{config.num_train or 'all'}-{epochs}-{seed}.safetensors"
    path = out / "models" / name  # --smoke and a full run may share a folder
    train(model, digits, recipe, path=path, on_step=lambda *_: None)
    measured = measure_noise(model, digits.images(digits.train.x))
    twins = {
        "blocks": constant_sigma_twin(model, measured.sigma),
        "one": constant_sigma_twin(model, measured.effective_sigma),
    }
    x, y = digits.images(digits.test.x), digits.test.y.numpy()
    own = draws(model, x, config.draws)
    with model.noise_off():
        still = draws(model, x, 1)[0]
    decision = own.mean(0).argmax(-1)
    halves = [half.mean(0).argmax(-1) for half in np.split(own[: len(own) // 2 * 2], 2)]
    found = {
        "noise": _rms(own - still),
        "spread": float(np.sqrt(own.var(0, ddof=1).mean())),
        "accuracy": float((decision == y).mean()),
        "repeat_flips": float((halves[0] != halves[1]).mean()),
        "variation": float(measured.variation.mean()),
        "block_variation": measured.block_variation,
        "sigma": measured.effective_sigma,
    }
    for name, twin in twins.items():
        other = draws(twin, x, config.draws)
        chosen = other.mean(0).argmax(-1)
        found |= {
            name: _rms(own - other),
            f"{name}_error": float(np.sqrt((own - other).var(0, ddof=1).mean() / len(own))),
            f"{name}_flips": float((chosen != decision).mean()),
            f"{name}_accuracy": float((chosen == y).mean()),
        }
    return found


def draws(model: torch.nn.Module, x: Tensor, num_draws: int) -> Array:
    """softmax (draws, B, K), each draw from noise of its own number, the same for every model."""
    assert isinstance(model, EnResNet)
    model.eval()
    out = []
    with torch.no_grad():
        for number in range(num_draws):
            with model.fixed_noise(number):
                out.append(model(x).softmax(-1).double().numpy())
    return np.stack(out)


def _rms(differences: Array) -> float:
    """Of the mean over draws of (draws, B, K), the error of that mean taken out."""
    error = differences.std(0, ddof=1) / len(differences) ** 0.5
    return rms_without_noise(differences.mean(0), error)


def report(out: Path) -> None:
    """Print noise_scale.json."""
    table = Table(title="Constant σ in place of a·std(x + F(x)), in % of probability, rms", title_justify="left")
    for name in ("training", "σ", "varies", "noise", "by block", "one σ", "flips", "again"):
        table.add_column(name, justify="left" if name == "training" else "right")
    for entry in json.loads((out / "noise_scale.json").read_text())["rows"]:
        mean, error = entry["mean"], entry["standard_error"]

        def percent(name: str, mean: dict[str, float] = mean, error: dict[str, Any] = error) -> str:
            return f"{100 * mean[name]:.2f}" + ("" if error[name] is None else f"±{100 * error[name]:.2f}")

        table.add_row(
            f"{entry['loss']}, {entry['noise_std']}, {entry['noise_coef']:g}",
            f"{mean['sigma']:.2f}",
            f"{100 * mean['variation']:.0f}%",
            f"{100 * mean['noise']:.2f}",
            *(percent(name) for name in ("blocks", "one")),
            *(f"{100 * mean[name]:.2f}" for name in ("one_flips", "repeat_flips")),
        )
    console.print(table)
    console.print(
        "Noise: from the network without noise. By block, one σ: from its own noise to the σ of Eq. 14. Flips: "
        "decisions of the mean that one σ changes, in % of images; again: between two halves of the network's own "
        "draws. ±: standard error over seeds."
    )


if __name__ == "__main__":
    typer.run(main)
