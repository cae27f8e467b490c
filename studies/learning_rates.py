"""What the learning rate does to an ensemble: the validation accuracies of all networks that a table has trained.

A table that is asked for several learning rates (--lr 0.05,0.1,0.2) trains a network with each and keeps the best on
validation. All of them are still in its folder; here they are gathered, with the peak that the members' number gives:
members share one loss, so that each sees 1/n of its gradient, and a rate that is right for one network is too small
for an ensemble.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from reporting import ROOT, InputError, console, one_line_errors, provenance, write_json

from netkit import checkpoint
from netkit.checkpoint import CheckpointError
from netkit.presets import PRESETS

_NAME = re.compile(rf"(?P<dataset>[a-z0-9]+)-(?P<model>.+)-({'|'.join(PRESETS)})-seed\d+-[0-9a-f]+\.safetensors")


def main(
    models: Annotated[Path, typer.Option(help="folder of a table's networks")] = ROOT / "out" / "models",
    out: Annotated[Path, typer.Option(help="folder for learning_rates-DATASET.json")] = ROOT / "out" / "learning_rates",
    dataset: Annotated[str, typer.Option(help="of which data set")] = "digits",
) -> None:
    """Gather what is stored, train nothing."""
    with one_line_errors(usage=(InputError,), failure=(CheckpointError, OSError)):
        networks = gather(models, dataset)
        if not networks:
            raise InputError(f"--models: no networks of {dataset} trained with several learning rates in {models}")
        write_json(
            out / f"learning_rates-{dataset}.json",
            {
                "dataset": dataset,
                "networks": networks,
                "provenance": provenance({"models": models.name, "dataset": dataset}),
            },
        )
        for row in networks:
            rates = ", ".join(
                f"peak {rate['peak_lr']:g}: {100 * sum(rate['validation']) / len(rate['validation']):.1f}%"
                for rate in row["rates"]
            )
            console.print(f"{row['model']}: {rates}", highlight=False)


def gather(models: Path, dataset: str) -> list[dict[str, Any]]:
    """Robust validation accuracy by network, learning rate and seed, of networks with more than one rate.

    A network of which only some seeds have all rates is represented by those, so that rates are compared on equal
    seeds.
    """
    found: dict[tuple[str, int], dict[float, dict[int, tuple[float, float]]]] = {}
    for path in sorted(models.glob("*.safetensors")):
        name = _NAME.fullmatch(path.name)
        if name is None or name["dataset"] != dataset:
            continue
        tree = checkpoint.load(path, kind="training")
        training, members = tree["identity"]["configuration"], len(tree["identity"]["model"]["members"])
        if training["loss"] != "pgd" or tree["epoch"] < training["epochs"]:
            continue
        peak = tree["provenance"]["batch"]["peak_lr"]
        by_rate = found.setdefault((name["model"], members), {})
        by_rate.setdefault(training["lr"], {})[training["seed"]] = (peak, tree["best"]["value"])
    rows = []
    for (model, members), by_rate in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_rate.values())))
        if len(by_rate) > 1 and seeds:
            rates = [
                {"lr": lr, "peak_lr": by_seed[seeds[0]][0], "validation": [by_seed[seed][1] for seed in seeds]}
                for lr, by_seed in sorted(by_rate.items())
            ]
            rows.append({"model": model, "num_members": members, "seeds": seeds, "rates": rates})
    return rows


if __name__ == "__main__":
    typer.run(main)
