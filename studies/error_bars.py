"""Error bars of published networks: how far an answer depends on the draw of the noise, and whether intervals hold.

For each network with noise: σ of every block (Eq. 14), how far the noise moves the mean answer and what one constant σ
in its place would change, the draws that a decision or an error needs, and the share of `ensemble_estimate`'s 95%
intervals, from few draws, that contain the mean over many.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from bridge.ensemble import EnsembleEstimate, IntervalKind, IntervalWarning, ensemble_estimate
from bridge.scaling import measure_noise
from netkit import data, load_pretrained
from netkit.models import EnResNet
from netkit.pretrained import FOLDER
from studies.lab.reporting import OUT, Out, Smoke, listed, one_line_errors, show, store, tracked
from studies.noise_scale import Array, against_constant, decisions, draws

# Parameters


@dataclass(frozen=True)
class Config:
    num_images: int = 60
    num_measured: int = 500  # training images that σ is measured on
    reference_draws: int = 500
    num_draws: tuple[int, ...] = (10, 50)
    repeats: int = 10
    errors: tuple[float, ...] = (0.05, 0.01)
    level: float = 0.95
    seed: int = 0


SMOKE = Config(num_images=8, num_measured=16, reference_draws=12, num_draws=(5,), repeats=2)
KINDS: tuple[IntervalKind, ...] = ("bets", "student")


def main(
    names: Annotated[str, typer.Option(help="Published networks, separated by commas")] = "cifar10-En2ResNet20",
    data_file: Annotated[Path | None, typer.Option("--data", help="The file of the data set, where it has one")] = None,
    folder: Annotated[Path, typer.Option(help="Where they are published")] = FOLDER,
    out: Out = OUT / "error_bars",
    smoke: Smoke = False,
) -> None:
    """Measure each network; write error_bars.json and print it."""
    with one_line_errors():
        config = SMOKE if smoke else Config()
        networks = {name: load_pretrained(name, folder=folder) for name in listed("names", names, str)}
        rows = [row(name, model, data_file, config) for name, model in networks.items()]
        report(store(out / "error_bars.json", {"rows": rows}, config))


# Solve


def row(name: str, model: EnResNet, data_file: Path | None, config: Config) -> dict[str, Any]:
    images = data.load(name.partition("-")[0], data=data_file)
    x = images.images(images.test.first(config.num_images).x)
    measured = measure_noise(model, images.images(images.train.first(config.num_measured).x))
    own = draws(model, x, config.reference_draws)
    return {
        "network": name,
        "sigma_of_blocks": measured.sigma.tolist(),
        "effects": against_constant(model, measured, x, own),
        "estimates": [estimates(model, x, num, own, config) for num in tracked(config.num_draws, f"{name}: draws")],
    }


def estimates(model: EnResNet, x: Tensor, num_draws: int, own: Array, config: Config) -> dict[str, Any]:
    """Repeat `ensemble_estimate` with `num_draws`, and hold its intervals and decisions against the draws `own`.

    covered, half_width: over repetitions, images and classes, by the kind of interval. decided: share of decisions that
    are those of the mean over `own`. needed: draws for each half-width of `Config.errors`, of the median image and of
    the 90th in 100.
    """
    generator = torch.Generator().manual_seed(config.seed)
    mean = torch.from_numpy(own.mean(0))
    found = [ensemble_estimate(model, x, num_draws=num_draws, generator=generator) for _ in range(config.repeats)]
    agreed = [float((estimate.prediction.numpy() == decisions(own)).mean()) for estimate in found]
    return {
        "num_draws": num_draws,
        "intervals": {kind: coverage(found, mean, kind, config.level) for kind in KINDS},
        "decided": float(np.mean(agreed)),
        "needed": {f"{error:g}": quantiles(found, error, config.level) for error in config.errors},
    }


def coverage(found: list[EnsembleEstimate], mean: Tensor, kind: IntervalKind, level: float) -> dict[str, float]:
    """Of repeated estimates; the standard error is that over images, whose classes and repetitions depend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntervalWarning)  # how often it is right to warn is what is measured
        ends = [estimate.confidence_interval(level, kind=kind) for estimate in found]
    by_image = torch.stack([((low <= mean) & (mean <= high)).double().mean(-1) for low, high in ends]).mean(0)
    return {
        "covered": float(by_image.mean()),
        "standard_error": float(by_image.std() / len(by_image) ** 0.5),
        "half_width": float(torch.stack([(high - low) / 2 for low, high in ends]).mean()),
    }


def quantiles(found: list[EnsembleEstimate], error: float, level: float) -> list[float]:
    needed = torch.stack([estimate.draws_for(error, level=level) for estimate in found]).double()
    return torch.quantile(needed.flatten(), torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()


# Draw


def report(stored: dict[str, Any]) -> None:
    """Print the tables of error_bars.json."""
    effects = [{"network": row["network"], **row["effects"]} for row in stored["rows"]]
    show(
        "What the noise does to the mean answer, in % of probability, rms",
        {
            "network": "{network}",
            "σ": "{sigma:.2f}",
            "varies": "{variation:.0%}",
            "noise": "{noise:.2%}",
            "σ by block": "{blocks:.2%}",
            "one σ": "{one:.2%}",
            "flips": "{one_flips:.1%}",
            "again": "{repeat_flips:.1%}",
        },
        effects,
        caption="Noise: from the network without it. By block, one: from its own noise to the constant σ of Eq. 14. "
        "Flips: decisions that one σ changes; again: between two halves of the network's own draws.",
    )
    errors = [f"{error:g}" for error in stored["provenance"]["config"]["errors"]]
    cells = [{"network": row["network"], **cell} for row in stored["rows"] for cell in row["estimates"]]
    show(
        "Intervals of 95% from few draws, held against many",
        {
            "network": "{network}",
            "draws": "{num_draws}",
            "decided": "{decided:.1%}",
            "bets": "{intervals[bets][covered]:.1%} ±{intervals[bets][half_width]:.3f}",
            "Student": "{intervals[student][covered]:.1%} ±{intervals[student][half_width]:.3f}",
            **{f"±{error}": "{needed[" + error + "][0]:,.0f}–{needed[" + error + "][1]:,.0f}" for error in errors},
        },
        cells,
        caption="Decided: decisions that are those of the mean over many draws. Of each interval the coverage, and the "
        "mean half-width. ±: the draws that such a half-width needs, of the median image and of the 90th in 100.",
    )


if __name__ == "__main__":
    typer.run(main)
