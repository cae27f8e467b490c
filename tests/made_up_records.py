"""Records as a run leaves them, of networks that nobody has trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from studies.lab import records
from studies.lab.attacks import ATTACKS
from studies.lab.cli import _chosen_rows
from studies.lab.networks import on_dataset
from studies.lab.records import Record, Records
from studies.lab.tasks import Settings
from studies.paper.queue import SETTINGS
from studies.paper.tables import TABLES

STAMP: dict[str, Any] = {
    "command": "table2.py --made-up",
    "config": {"lr_scaling": "members", "val_num_steps": 10},
    "commit": "abc",
    "versions": {"torch": "2.15"},
    "device": "cpu",
    "cpu": "made up, 2 cores",
    "created": "2026-01-01T00:00:00+00:00",
}
TINY = {"dataset": "cifar10", "setting": SETTINGS["cpu-narrow"].settings(out=Path()).title}
DIGITS = {"dataset": "digits", "setting": Settings("digits", "digits", Path()).title}
ROWS = {"ResNet20": 0.42, "En1ResNet20": 0.45, "En2ResNet20": 0.56, "Plain2ResNet20": 0.555, "Wide2ResNet20": 0.5}
"""How accurate the networks on CIFAR-10 are under attack."""


def a_training(network: str, seed: int, *, lr: float = 0.1, loss: str = "pgd", **changes: Any) -> Record:
    place = {name: changes.get(name, TINY[name]) for name in TINY}
    history = [
        {"epoch": e, "loss": 2 - e / 5, "accuracy": e / 10, "val_natural": e / 9, "val_robust": None, "seconds": 75.0}
        for e in range(5)
    ]
    history[-1]["val_robust"] = 0.3
    job = f"{place['dataset']}-{network}-{seed}-{loss}-{lr:g}"
    record = {"job": job, **place, "network": network, "seed": seed, "loss": loss, "lr": lr, "peak_lr": lr}
    record |= {"num_parameters": 270_000, "num_train": 100, "weights": f"bits of {job}", "validation": 0.5}
    return record | {"selected_epoch": 5, "history": history, "member_weights": None, "provenance": STAMP} | changes


def a_score(network: str, seed: int, attack: str, correct: list[int], draws: int = 35, **changes: Any) -> Record:
    place = {name: changes.get(name, TINY[name]) for name in TINY}
    loss = changes.get("loss", "pgd")
    oracle = "noise-free twin" if ATTACKS[attack].on_twin else changes.get("oracle")
    weights = changes.get("member_weights", "equal")
    training = f"{place['dataset']}-{network}-{seed}-{loss}-0.1"
    record = {"job": f"{training}-{attack}-{oracle}-{weights}", **place, "network": network, "seed": seed, "loss": loss}
    record |= {"attack": attack, "title": ATTACKS[attack].title.format(steps=20, draws=5), "oracle": oracle}
    record |= {"member_weights": weights, "eot_draws": 5, "n": len(correct), "num_draws": draws}
    record |= {"vote": float(np.mean(correct)) / draws, "correct": correct}
    return record | {"trainings": {training: f"bits of {training}"}, "provenance": STAMP} | changes


def cifar(*, seeds: int = 3, n: int = 400, draws: int = 10, rows: Mapping[str, float] = ROWS) -> Records:
    """Networks that answer at random around `rows`, on images some of which are harder than others."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(-0.3, 0.3, n)
    scores = []
    for network, share in rows.items():
        for seed in range(seeds):
            for attack in ("nat", "fgsm", "ifgsm20", *(["transfer"] if "En" in network else [])):
                chance = share + (0.25 if attack == "nat" else 0.0) + hard[: n // 2 if attack == "transfer" else n]
                right = rng.binomial(draws, np.clip(chance, 0, 1)).tolist()
                scores.append(a_score(network, seed, attack, right, draws))
    return Records([a_training(network, seed) for network in rows for seed in range(seeds)], scores)


def digits(*, seeds: int = 3, n: int = 60) -> Records:
    """Every table of the paper on digits, with three learning rates each."""
    rng = np.random.default_rng(1)
    trainings, scores = {}, {}
    for table in TABLES.values():
        for row in _chosen_rows(table, "digits", None):
            network = row.network.on("digits")
            for seed in range(seeds):
                options = {**DIGITS, "loss": row.loss or table.loss}
                for part, own in network.trained(seed):
                    for lr, validation in ((0.1, 0.4), (0.2, 0.5), (0.4, 0.3)):
                        line = a_training(part.name, own, lr=lr, **options, validation=validation + own % 7 / 100)
                        trainings[line["job"]] = line
                options |= {"oracle": row.oracle and on_dataset(row.oracle, "digits"), "member_weights": row.weights}
                jobs = [f"digits-{part}-{own}-{options['loss']}-0.1" for part, own in network.trained(seed)]
                for attack in table.attacks:
                    right = rng.binomial(35, rng.uniform(0.4, 0.6), n).tolist()
                    line = a_score(network.name, seed, attack, right, **options)
                    line["trainings"] = {job: f"bits of {job}" for job in jobs}
                    scores[line["job"]] = line
    return Records(list(trainings.values()), list(scores.values()))


def less_where_and_when(found: Any) -> Any:
    """What equal tasks have in common wherever they are done, at any depth of what JSON holds."""

    def less(tree: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in tree.items() if name not in {"provenance", "stamps", "seconds"}}

    return json.loads(json.dumps(found), object_hook=less)


def write(folder: Path, *several: Records) -> Path:
    """Put them into the folder of records below `folder`, and return `folder`."""
    for found in several:
        records.merge(found, folder / "records")
    return folder
