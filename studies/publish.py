"""Publish networks of `reproduce.py`: weights in half precision, and a model card made from their records.

The card's numbers are those of the records. Rounding to half precision is measured on the images of the natural score:
with equal draws of the noise, how many decisions change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from netkit import evaluate
from netkit.intervals import mean_accuracy
from netkit.models import EnResNet, count_parameters
from netkit.pretrained import publish, rounded
from studies.lab import records
from studies.lab.networks import Network
from studies.lab.records import Record, right_answers
from studies.lab.reporting import IS_CLONE, OUT, ROOT, InputError, console, listed, one_line_errors
from studies.lab.tasks import Scoring, Training
from studies.lab.work import load_data, trained_model
from studies.paper.queue import ON_REQUEST, QUEUE, SETTINGS, tasks_of

# Parameters

TO = ROOT / "netkit" / "published" if IS_CLONE else OUT / "published"
DATA = {
    "cifar10": "CIFAR-10 (Krizhevsky 2009)",
    "cifar100": "CIFAR-100 (Krizhevsky 2009)",
    "digits": "scikit-learn's digits",
}


def main(
    rows: Annotated[str, typer.Option(help="Networks, separated by commas")] = "ResNet20,En2ResNet20,Plain2ResNet20",
    settings: Annotated[str, typer.Option(help=f"One of {', '.join(SETTINGS)}")] = "cpu-full",
    seed: int = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with cifar10.npz and cifar100.npz; or one of them")] = None,
    out: Annotated[Path, typer.Option(help="Folder of models and predictions")] = OUT,
    to: Annotated[Path, typer.Option(help="Folder to publish in")] = TO,
) -> None:
    """Round the selected weights, measure what that changes, write network and card."""
    with one_line_errors():
        if settings not in SETTINGS:
            raise InputError(f"--settings: expected one of {', '.join(SETTINGS)}, got {settings!r}")
        for row in listed("rows", rows, str):
            path = publish_row(row, settings, seed, data, out, to)
            console.print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", highlight=False, soft_wrap=True)


# Problem


def scorings_of(row: str, settings: str, data: Path | None, out: Path) -> list[tuple[Scoring, Record]]:
    """The finished attacks on one network with all its seeds, each once."""
    stages = [stage for stage in (*QUEUE, *ON_REQUEST) if stage.setting == settings and row in stage.rows]
    return [
        (task, record)
        for task in dict.fromkeys(tasks_of(stages, data=data, out=out, device="cpu"))
        if isinstance(task, Scoring) and task.network.name == row
        if (record := records.of(task)) is not None
    ]


# Solve


def publish_row(row: str, settings: str, seed: int, data: Path | None, out: Path, to: Path) -> Path:
    scored = scorings_of(row, settings, data, out)
    natural = next((task for task, _ in scored if (task.attack, task.seed) == ("nat", seed)), None)
    if natural is None:
        raise InputError(
            f"{row}, seed {seed}: expected its natural accuracy in {out}, got none; run reproduce.py first"
        )
    training, record = records.chosen(natural)[0]
    model = trained_model(natural, natural.network)
    told = ("job", "setting", "seed", "lr", "peak_lr", "num_train", "provenance")
    facts = {
        "training": {name: record[name] for name in told},
        "accuracy": {
            task.attack: accuracy_of(stored)
            | {"other_seeds": [mean_of(other) for o, other in scored if o.attack == task.attack and o.seed != seed]}
            for task, stored in scored
            if task.seed == seed
        },
        "half_precision": change_by_rounding(model, natural),
    }
    name = f"{natural.settings.dataset}-{row}"
    text = card(name, training, record, facts, count_parameters(model))
    return publish(name, model, facts, text, folder=to)


def change_by_rounding(model: EnResNet, task: Scoring) -> dict[str, int]:
    """The decisions on test images, with equal draws of the noise, that change with weights in half precision."""
    dataset, how = load_data(task.settings), {"num_draws": task.settings.num_draws, "seed": task.seed}
    x, y = dataset.images(dataset.test.x), dataset.test.y
    ours, theirs = (evaluate.accuracy(network, x, y, **how).predictions for network in (model, rounded(model)))
    return {"decisions": ours.numel(), "changed": int((ours != theirs).sum())}


def mean_of(stored: Record) -> float:
    return float(right_answers(stored).mean())


def accuracy_of(stored: Record) -> dict[str, Any]:
    interval = mean_accuracy([right_answers(stored)])
    return {
        "title": stored["title"],
        "mean": mean_of(stored),
        "interval": [interval.low, interval.high],
        "n": stored["n"],
        "eot_draws": stored["eot_draws"],
        "num_draws": stored["num_draws"],
    }


# Draw


def card(name: str, training: Training, record: Record, facts: dict[str, Any], num_parameters: int) -> str:
    """The model card: data, recipe, seed, accuracy, hardware, licence, and what the network is not for."""
    config, network, settings = training.config, training.network, training.settings
    stamp, half = record["provenance"], facts["half_precision"]
    versions = ", ".join(f"{key} {version}" for key, version in stamp["versions"].items())
    hours = sum(epoch["seconds"] for epoch in record["history"]) / 3600
    lines = [
        f"# {name}",
        "",
        f"`netkit.load_pretrained({name!r})`: {described(network)}, {num_parameters:,} weights in half precision.",
        f"Rounding them changed {half['changed']} of {half['decisions']:,} decisions on unattacked test images.",
        "",
        "| attack | accuracy, % [95% interval over images] | other seeds | test images | draws in each gradient "
        "| in each answer |",
        "|---|---|---|---:|---:|---:|",
        *(
            f"| {cell['title']} | {100 * cell['mean']:.1f} [{100 * cell['interval'][0]:.1f}, "
            f"{100 * cell['interval'][1]:.1f}] | {', '.join(f'{100 * share:.1f}' for share in cell['other_seeds'])} "
            f"| {cell['n']:,} | {cell['eot_draws']} | {cell['num_draws']} |"
            for cell in facts["accuracy"].values()
        ),
        "",
        f"Attacks are within eps = {config.eps:.4f} in L∞. The intervals are about this network, not about its kind:",
        "other seeds give other networks, of which these are the accuracies that there are.",
        "",
        f"**Data.** {DATA[settings.dataset]}: {record['num_train']:,} training images; the rest of the training set "
        "chose learning rate and epoch. No image comes with the weights.",
        "",
        f"**Recipe.** Preset {settings.preset!r}, loss {config.loss!r}, {config.epochs} epochs, seed {training.seed}, "
        f"peak learning rate {record['peak_lr']:g}, epoch {record['selected_epoch']} selected; steps in the attack of "
        f"training: {config.num_steps}, of size {config.step_size:.4f}.",
        "",
        f"`{stamp['command']}` at commit {stamp['commit']}; {stamp['cpu']}, {stamp['device']}, {hours:.1f} hours; "
        f"{versions}.",
        "",
        "**Licence.** MIT, as the code.",
        "",
        "**Not for** anything that a wrong answer harms, nor as a measure of what adversarial training can reach: the "
        "network is small and its training short. Accuracy under attack holds for these attacks; a stronger one finds "
        "less.",
        "",
    ]
    return "\n".join(lines)


def described(network: Network) -> str:
    """The network in words."""
    count = network.num_averaged
    parts = "one residual network" if count == 1 else f"the average of {count} residual networks"
    return f"{parts} of depth {network.depth}, {'with' if network.is_noisy else 'without'} noise"


if __name__ == "__main__":
    typer.run(main)
