"""Randomised smoothing as a baseline: the accuracy that is certified in L2, beside the accuracy under an attack in L2.

A network trained with noise on its input is smoothed by that noise, and certified as by Cohen et al. 2019
(`netkit.certify`); one with the paper's noise inside is certified just so. The attack, PGD in L2 with gradients
averaged over draws, bounds the accuracy of the smoothed classifier at a radius from above, and the certificate from
below: an image that is certified, and on which the attack certainly wins, would refute the certificate. Networks
without noise on their input have no certificate; the attack tells what they withstand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from netkit import attacks, certify, evaluate
from netkit.injection import input_sigma
from netkit.intervals import clopper_pearson, mean_accuracy
from netkit.training import TrainingLoss
from studies.draw.smoothing import draw, report
from studies.lab import records
from studies.lab.networks import Network
from studies.lab.reporting import OUT, Out, Smoke, one_line_errors, store, tracked
from studies.lab.tasks import Scoring, Settings, tasks_for
from studies.lab.work import do, load_data, trained_model

# Parameters


@dataclass(frozen=True)
class Config:
    cases: tuple[tuple[str, TrainingLoss], ...] = (
        ("Smooth0.25ResNet8", "natural"),
        ("Smooth0.5ResNet8", "natural"),
        ("Smooth0.25En2ResNet8", "natural"),
        ("ResNet8", "pgd"),
        ("En2ResNet8", "pgd"),
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    radii: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.9)
    num_draws: int = 1000
    selection_draws: int = 100
    confidence: float = 0.999
    attack_steps: int = 20
    eot_draws: int = 5
    voting_draws: int = 35
    epochs: int | None = None
    num_train: int | None = None
    num_test: int | None = 100


SMOKE = Config(
    (("Smooth0.25ResNet8", "natural"), ("ResNet8", "natural")),
    seeds=(0,),
    radii=(0.0, 0.2),
    num_draws=50,
    selection_draws=10,
    attack_steps=2,
    voting_draws=5,
    epochs=1,
    num_train=128,
    num_test=20,
)
_CURVE = [step / 50 for step in range(51)]


def main(out: Out = OUT / "smoothing", smoke: Smoke = False) -> None:
    """Train on digits, certify and attack; write smoothing.json, draw and print it."""
    with one_line_errors():
        config = SMOKE if smoke else Config()
        torch.set_num_threads(1)  # passes this small only lose by more
        rows = [row(name, loss, config, out) for name, loss in tracked(config.cases, "smoothing: networks")]
        report(store(out / "smoothing.json", {"rows": rows}, config))
        draw(out)


# Problem


def scoring(network: Network, loss: TrainingLoss, seed: int, config: Config, out: Path) -> Scoring:
    """The network's task on clean images, done after those that it needs, with records as the tables have them."""
    settings = Settings(
        "digits", "digits", out, epochs=config.epochs, num_train=config.num_train, num_test=config.num_test
    )
    *trainings, task = tasks_for(settings, network, seed, ["nat"], loss=loss)
    assert isinstance(task, Scoring)
    for each in (*trainings, task):
        if not records.is_done(each):
            do(each, lambda *_: None)
    return task


# Solve


def row(name: str, loss: TrainingLoss, config: Config, out: Path) -> dict[str, Any]:
    """One network over all seeds.

    certified: right within the radius for certain, None without noise on the input. attacked: the plurality over draws
    is right under the attack. beaten: images of all seeds that are certified and that the attack refutes for certain;
    the plurality of a few draws may be wrong by chance where the right class has hardly more than half of them.
    """
    network = Network.parse(name)
    found = [outcome(network, loss, seed, config, out) for seed in config.seeds]
    has_certificate = found[0]["certified"] is not None
    at_radii = []
    for number, radius in enumerate(config.radii):
        entry: dict[str, Any] = {"radius": radius, "certified": None, "beaten": None}
        scores = [each["attacked"][number] for each in found]
        entry["attacked"] = cell(score.voted for score in scores)
        if has_certificate:
            certified = [each["certified"] >= radius for each in found]
            entry["certified"] = cell(certified)
            refuted = [is_refuted(score, config.confidence) for score in scores]
            entry["beaten"] = sum(int((c & r).sum()) for c, r in zip(certified, refuted, strict=True))
        at_radii.append(entry)
    curve = [[r, cell(each["certified"] >= r for each in found)["mean"]] for r in _CURVE] if has_certificate else None
    return {
        "network": name,
        "loss": loss,
        "sigma": network.input_sigma or None,
        "seeds": len(found),
        "at_radii": at_radii,
        "curve": curve,
        "abstained": sum(each["abstained"] for each in found) / len(found) if has_certificate else None,
    }


def outcome(network: Network, loss: TrainingLoss, seed: int, config: Config, out: Path) -> dict[str, Any]:
    """Certified radii (n,) of one network, -1 where its answer is wrong, and its score under each attack."""
    task = scoring(network, loss, seed, config, out)
    model = trained_model(task, network)
    images = load_data(task.settings)
    x, y = images.images(images.test.x), images.test.y
    found: dict[str, Any] = {"certified": None, "abstained": None}
    if input_sigma(model) is not None:
        certificate = certify(
            model,
            x,
            num_draws=config.num_draws,
            selection_draws=config.selection_draws,
            confidence=config.confidence,
            seed=seed,
        )
        wrong = torch.tensor(-1.0, dtype=torch.float64)
        found["certified"] = certificate.radius.where(certificate.prediction == y, wrong)
        found["abstained"] = float(certificate.abstained.double().mean())
    found["attacked"] = [
        evaluate.robust_accuracy(
            model, x, y, attack, eot_draws=config.eot_draws, num_draws=config.voting_draws, seed=seed
        )
        for attack in (_attack(radius, config.attack_steps) for radius in config.radii)
    ]
    return found


def _attack(radius: float, num_steps: int) -> evaluate.Attack:
    if radius == 0:
        return evaluate.no_attack
    return partial(attacks.pgd, eps=radius, step_size=2.5 * radius / num_steps, num_steps=num_steps, norm="l2")


def is_refuted(score: evaluate.Score, confidence: float) -> Tensor:
    """(n,) bool: whether the right class has a chance below 1/2 over the draws, each at this one-sided confidence."""
    hits = (score.predictions == score.labels).sum(0).tolist()
    highest = [clopper_pearson(count, score.num_draws, confidence=2 * confidence - 1).high for count in hits]
    return torch.tensor(highest) < 0.5


def cell(right: Iterable[Tensor]) -> dict[str, Any]:
    """The share of images that are right, over seeds, with its 95% interval."""
    stacked = [each.double() for each in right]
    interval = mean_accuracy(stacked)
    mean = float(torch.stack(stacked).mean())
    return {"mean": mean, "interval": [interval.low, interval.high], "n": len(stacked[0])}


if __name__ == "__main__":
    typer.run(main)
