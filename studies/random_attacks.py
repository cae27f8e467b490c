"""Attacks on a network with noise, beside the paper's IFGSM on the mean of five gradients.

Does the mean gradient hide an attack? PGD on the margin, and ARC, which takes the network draw by draw, say how much
more there is. Is the gradient by weights on paths, `bridge.path_gradient`, a better one? The networks are trained
against PGD on digits, and attacked as they are and with a rounding layer behind the first noise, where automatic
differentiation gives zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from bridge.path_gradient import PathGradient
from netkit import PRESETS, attacks, data, en_resnet, evaluate, train
from netkit.attacks.expectation import expected, under_attack
from netkit.intervals import mean_accuracy, paired_difference
from netkit.models import EnResNet
from netkit.suite import random_noise
from studies.lab.reporting import OUT, Out, Smoke, one_line_errors, show, store, tracked

# Parameters


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 10
    noise_coef: float = 0.3
    num_images: int = 100
    num_draws: int = 20
    num_steps: int = 20
    eot_draws: int = 5
    many: int = 5
    """How many times the passes of the others one attack by weights has."""
    reference_draws: int = 1000
    """Of the gradient that others are compared with."""
    num_train: int | None = None


SMOKE = Config((0,), epochs=1, num_images=10, num_draws=2, num_steps=2, many=2, reference_draws=10, num_train=100)
EPS, REFERENCE = PRESETS["digits"].eps, "IFGSM, mean gradient"


def main(out: Out = OUT / "random_attacks", smoke: Smoke = False) -> None:
    """Train on digits, attack in several ways, compare; write random_attacks.json and print it."""
    with one_line_errors():
        config = SMOKE if smoke else Config()
        torch.set_num_threads(1)  # passes this small only lose by more
        rows, cosines = [], []
        networks = [trained(seed, config, out) for seed in config.seeds]
        for is_rounded in tracked((False, True), "attacks: networks"):
            models = [rounded(model) if is_rounded else model for model, _ in networks]
            rows += accuracies(models, *images(networks[0][1], config), is_rounded, config)
            cosines += [] if is_rounded else cosines_of(models[0], *images(networks[0][1], config), config)
        report(store(out / "random_attacks.json", {"rows": rows, "cosines": cosines}, config))


# Problem


class Round(nn.Module):
    """Steps of a quarter, without slope."""

    def forward(self, x: Tensor) -> Tensor:
        return (4 * x).round() / 4


def trained(seed: int, config: Config, out: Path) -> tuple[EnResNet, data.Dataset]:
    digits = data.load("digits", num_train=config.num_train)
    options: dict[str, Any] = {"num_members": 1, "in_channels": 1, "width": 8, "noise_std": "sample"}
    model = en_resnet(8, noise_coef=config.noise_coef, seed=seed, **options)
    recipe = replace(PRESETS["digits"], epochs=config.epochs, seed=seed)
    name = f"{config.noise_coef}-{config.epochs}-{config.num_train or 'all'}-{seed}.safetensors"
    train(model, digits, recipe, path=out / "models" / name, on_step=lambda *_: None)
    return model.eval(), digits


def rounded(model: EnResNet) -> EnResNet:
    """The same network, in place, with a rounding layer behind its first noise."""
    (member,) = model.members
    first, *others = member.blocks  # type: ignore[misc]
    member.blocks = nn.Sequential(first, Round(), *others)
    return model.eval()


def images(digits: data.Dataset, config: Config) -> tuple[Tensor, Tensor]:
    return digits.images(digits.test.x[: config.num_images]), digits.test.y[: config.num_images]


# Solve


def accuracies(
    models: Sequence[EnResNet], x: Tensor, y: Tensor, is_rounded: bool, config: Config
) -> list[dict[str, Any]]:
    """One row for each attack: the mean over networks, and the paired difference to the reference's."""
    steps: dict[str, Any] = {"eps": EPS, "step_size": EPS / 4, "num_steps": config.num_steps}
    ifgsm, draws = partial(attacks.ifgsm, **steps), config.eot_draws
    pgd = partial(attacks.pgd, **steps)

    def by_weights(pairs: int, noises: Any = "first") -> Callable[[EnResNet], dict[str, Any]]:
        return lambda model: {"oracle": PathGradient(model, pairs, noises=noises), "eot_draws": 1}

    def by_mean(model: EnResNet) -> dict[str, Any]:
        return {"eot_draws": draws}

    kinds: dict[str, tuple[evaluate.Attack, Callable[[EnResNet], dict[str, Any]], str]] = {
        "none": (evaluate.no_attack, by_mean, ""),
        "random corner": (partial(random_noise, eps=EPS), by_mean, ""),
        REFERENCE: (ifgsm, by_mean, f"{2 * draws}"),
        "PGD, mean gradient": (pgd, by_mean, f"{2 * draws}"),
        "PGD on the margin": (partial(pgd, loss=attacks.margin), by_mean, f"{2 * draws}"),
        "ARC": (partial(attacks.arc, **steps), by_mean, f"{2 * draws} + {2 * draws**2}"),
        "IFGSM, weights of first noise": (ifgsm, by_weights(draws), f"{2 * draws}"),
        "the same, more passes": (ifgsm, by_weights(draws * config.many), f"{2 * draws * config.many}"),
        "IFGSM, weights of all noises": (ifgsm, by_weights(draws, "all"), f"{4 * draws}"),
    }
    correct: dict[str, list[Tensor]] = {}
    for name, (attack, options, _) in kinds.items():
        correct[name] = [
            evaluate.robust_accuracy(
                model, x, y, attack, num_draws=config.num_draws, seed=seed, random=True, **options(model)
            ).correct
            for seed, model in zip(config.seeds, models, strict=True)
        ]
    rows = []
    for name, (_, _, passes) in kinds.items():
        difference = paired_difference(correct[name], correct[REFERENCE])
        interval, mean = difference.interval, mean_accuracy(correct[name])
        rows.append(
            {
                "attack": name,
                "rounded": is_rounded,
                "passes": passes,
                "accuracy": float(torch.stack(correct[name]).mean()),
                "interval": [mean.low, mean.high],
                "difference": difference.mean,
                "difference_interval": [interval.low, interval.high],
            }
        )
    return rows


def cosines_of(model: EnResNet, x: Tensor, y: Tensor, config: Config) -> list[dict[str, Any]]:
    """The cosine of estimates with the gradient of the loss of the mean logits, over images."""

    def gradient(net: nn.Module) -> Tensor:
        return expected(net, x, lambda net, point: attacks.cross_entropy(net(point), y).unsqueeze(0))[1].flatten(1)

    found = []
    with under_attack(model, "eval"):
        reference = gradient(MeanLogits(model, config.reference_draws))
        for passes in (2 * config.eot_draws, 20 * config.eot_draws):
            estimates = {
                "automatic": MeanLogits(model, passes // 2),
                "weights of first noise": PathGradient(model, passes // 2),
                "weights of all noises": PathGradient(model, max(1, passes // 4), noises="all"),
            }
            for name, net in estimates.items():
                cosine = F.cosine_similarity(gradient(net), reference, dim=1).double()
                error = float(cosine.std() / len(x) ** 0.5)
                found.append({"gradient": name, "passes": passes, "cosine": float(cosine.mean()), "error": error})
    return found


class MeanLogits(nn.Module):
    """The mean over draws, differentiated as it stands."""

    def __init__(self, model: nn.Module, num_draws: int) -> None:
        super().__init__()
        self.model, self.num_draws = model, num_draws

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.model(x) for _ in range(self.num_draws)]).mean(0)


# Draw


def report(stored: dict[str, Any]) -> None:
    """Print the tables of random_attacks.json."""

    def points(row: dict[str, Any]) -> str:
        low, high = row["difference_interval"]
        return f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

    show(
        "Attacks on a network with noise, in % right",
        {
            "rounded": lambda row: "yes" if row["rounded"] else "",
            "attack": "{attack}",
            "passes a step": "{passes}",
            "accuracy": "{accuracy:.1%}",
            "minus the mean gradient's": points,
        },
        stored["rows"],
        caption="Passes: forward and backward through the network, for each step. Intervals of 95% over images and "
        "networks.",
    )
    show(
        "Gradients of the loss of the mean answer",
        {"gradient": "{gradient}", "passes": "{passes}", "cosine": "{cosine:.3f}±{error:.3f}"},
        stored["cosines"],
        caption="With automatic differentiation over many draws. ±: standard error over images.",
    )


if __name__ == "__main__":
    typer.run(main)
