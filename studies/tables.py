"""What the tables of the paper share: rows, columns and claims are declared, everything else happens here.

A table is computed in two steps. The first trains and attacks whatever is not on disk yet and writes one JSON
file of numbers; the second draws that file. The paper's numbers are in paper_tables.json.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
import typer
from jobs import (
    Column,
    EvaluateTask,
    Job,
    Loss,
    Settings,
    Task,
    TrainTask,
    Weights,
    checkpoint_path,
    column_title,
    evaluation_path,
    lacking,
    member_weights,
    network,
    selected,
    tasks_for,
)
from rendering import draw
from reporting import (
    ROOT,
    InputError,
    console,
    num_cores,
    one_line_errors,
    provenance,
    read_object,
    without_folder,
    write_json,
)
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor
from workers import WorkerDied, costliest_first, run_all

from netkit import evaluate, parallel
from netkit.checkpoint import CheckpointError
from netkit.data import DataError
from netkit.intervals import FEWEST_SEEDS, mean_accuracy, paired_difference
from netkit.models import count_parameters
from netkit.presets import PRESETS

Scores = dict[tuple[str, Column], list[evaluate.Score]]
"""By the label of a row and the column, one for each seed."""
PAPER = json.loads((Path(__file__).parent / "paper_tables.json").read_text())["tables"]


USAGE = (InputError, DataError, CheckpointError, OSError)
FAILURE = (FloatingPointError, WorkerDied)
_SMOKE = {"epochs": 1, "num_train": 128, "num_test": 40, "attack_steps": 2, "num_draws": 2, "eot": 2}
_ON_DIGITS = {"ResNet20": "ResNet8", "ResNet32": "ResNet14", "WRN-14-2": "WRN-8-2"}


@dataclass(frozen=True)
class Row:
    """A network of the table.

    `paper` says where its numbers are if not under its own name in this table, `loss` how it is trained if not as
    the table says. An `oracle` is attacked in its place. "A+B" averages networks that are trained apart.
    """

    model: str
    paper: tuple[str, str] | None = None
    oracle: str | None = None
    loss: Loss | None = None
    weights: Weights = "equal"

    @property
    def label(self) -> str:
        """What the row is called, in claims and on the command line; no two rows of a table share one."""
        how = "" if self.loss is None else f" ({self.loss})"
        return f"{self.model}{how}" if self.weights == "equal" else f"{self.model} ({self.weights} weights)"


@dataclass(frozen=True)
class Claim:
    """The paper has it that `better` is more accurate than `worse` (labels of rows), in all columns or in some."""

    better: str
    worse: str
    columns: tuple[Column, ...] | None = None


@dataclass(frozen=True)
class Table:
    """One table of the paper, declared; `smoke` are the rows that show that everything runs.

    The networks of `on_request` are computed only where --rows names them.
    Without columns nothing is attacked: the numbers are the histories of the trainings.
    """

    name: str
    caption: str
    loss: Loss
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    smoke: tuple[str, ...] = ("ResNet20", "En2ResNet20")
    on_request: tuple[str, ...] = ()

    @property
    def paper_dataset(self) -> str:
        """The data set of the paper's numbers."""
        names = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}
        rows = _printed_rows(self.name)
        return names[rows[0].get("dataset", "CIFAR10") if rows else "CIFAR10"]

    def loss_of(self, row: Row) -> Loss:
        """How the network of `row` is trained."""
        return row.loss or self.loss

    def paper_values(self, row: Row) -> dict[str, float]:
        """The paper's percentages for `row`, by column; empty for a control the paper does not have."""
        table, name = row.paper or (self.name, row.model)
        for entry in _printed_rows(table):
            if entry["model"] == name and entry.get("oracle") == row.oracle:
                return {column: entry[column] for column in self.columns if column in entry}
        return {}


def _printed_rows(table: str) -> list[dict[str, Any]]:
    """The paper's rows; none where it prints a figure."""
    rows: list[dict[str, Any]] = PAPER[table]["rows"] if table in PAPER else []
    return rows


def on_dataset(model: str, dataset: str) -> str:
    """The network that stands for the paper's `model`: on digits, depth 8 for depth 20 and 14 for 32."""
    if dataset == "digits":
        for printed, ours in _ON_DIGITS.items():
            model = model.replace(printed, ours)
    return model


def _is_for_digits(row: Row) -> bool:
    names = re.split("[+&]", row.model) + ([row.oracle] if row.oracle else [])
    return all(any(known in name for known in _ON_DIGITS) for name in names)


@dataclass(frozen=True)
class Computed:
    """A table whose networks are trained and whose attacks are done; `path` is where its numbers belong."""

    table: Table
    rows: Sequence[Row]
    settings: Settings
    seeds: range
    path: Path


def write_and_draw(computed: Computed) -> None:
    """What most tables end with: the numbers as JSON, and on the terminal."""
    write_json(computed.path, results(computed.table, computed.rows, computed.settings, computed.seeds))
    draw(computed.path, console)


def app_for(table: Table, finish: Callable[[Computed], None] = write_and_draw) -> typer.Typer:
    """The command line of one table, or of a figure over the same networks, which has a `finish` of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    title = f"{title_of(table.name)}: {table.caption}."

    @app.command(
        help=f"{title}\n\nWithout options: 8x8 digits and networks of depth 8, in minutes on two cores. "
        "What is on disk is not done again, and an interrupted run continues where it was."
    )
    def main(
        dataset: Annotated[str, typer.Option(help="digits, cifar10 or cifar100")] = "digits",
        data: Annotated[
            Path | None, typer.Option(help=".npz file, or folder with packed (netkit.packed) or official CIFAR files")
        ] = None,
        download: Annotated[bool, typer.Option(help="Fetch the official CIFAR files")] = False,
        preset: Annotated[str | None, typer.Option(help=f"Of {', '.join(PRESETS)}; default: paper, or digits")] = None,
        rows: Annotated[str | None, typer.Option(help="Only these networks, separated by commas")] = None,
        columns: Annotated[
            str | None, typer.Option(help=f"Instead of the paper's, separated by commas: {', '.join(get_args(Column))}")
        ] = None,
        num_train: Annotated[int | None, typer.Option(help="Only the first N training images")] = None,
        num_test: Annotated[int | None, typer.Option(help="Only the first N test images")] = None,
        epochs: Annotated[int | None, typer.Option(help="Instead of the preset's")] = None,
        lr: Annotated[
            str | None, typer.Option(help="Learning rates, separated by commas; the best on validation counts")
        ] = None,
        attack_steps: Annotated[int | None, typer.Option(help="Cap the steps of all attacks")] = None,
        eot: Annotated[int | None, typer.Option(help="Noise draws in each attack gradient; default 5")] = None,
        num_draws: Annotated[int | None, typer.Option(help="Draws each example is scored on; default 10")] = None,
        seed: Annotated[int, typer.Option(help="The first seed")] = 0,
        num_seeds: Annotated[int | None, typer.Option(help="Default: 3 on digits, else 1")] = None,
        device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto")] = "auto",
        workers: Annotated[int | None, typer.Option(help="Processes; default: one a core, one on a GPU")] = None,
        out: Annotated[Path, typer.Option(help="Folder for models, predictions and results")] = ROOT / "out",
        smoke: Annotated[bool, typer.Option(help="As little as shows that everything runs")] = False,
        list_jobs: Annotated[bool, typer.Option(help="Print one command for each network and seed")] = False,
        no_table: Annotated[bool, typer.Option(help="Train and attack, but write no table")] = False,
    ) -> None:
        with one_line_errors(USAGE, FAILURE, interrupted="interrupted; the same command continues from here"):
            require(0, seed=seed)
            require(2, num_train=num_train)
            require(1, num_test=num_test, epochs=epochs, attack_steps=attack_steps, eot=eot)
            require(1, num_draws=num_draws, num_seeds=num_seeds, workers=workers)
            small = _SMOKE if smoke else {}
            settings = Settings(
                dataset=dataset,
                preset=preset or ("digits" if dataset == "digits" else "paper"),
                out=out,
                data=data,
                download=download,
                learning_rates=_numbers(lr),
                num_train=num_train or small.get("num_train"),
                num_test=num_test or small.get("num_test"),
                epochs=epochs or small.get("epochs"),
                attack_steps=attack_steps or small.get("attack_steps"),
                eot_draws=eot or small.get("eot", 5),
                num_draws=num_draws or small.get("num_draws", 10),
                auto_draws=small.get("eot", 20),
                device=device_called(device),
            )
            count = num_seeds or (FEWEST_SEEDS if dataset == "digits" and not smoke else 1)
            seeds = range(seed, seed + count)
            asked = table if columns is None else replace(table, columns=_chosen_columns(table, columns))
            chosen = _chosen_rows(asked, dataset, rows or (",".join(table.smoke) if smoke else None))
            if list_jobs:
                _print_jobs(chosen, dataset, seeds)
                return
            with parallel.joined(settings.device):
                rank, _ = parallel.processes()
                console.quiet = rank > 0
                _compute(asked, chosen, settings, seeds, workers)
            if not no_table and rank == 0:
                parts = [table.name, dataset, settings.preset, "smoke" if smoke else ""]
                path = out / ("-".join(part for part in dict.fromkeys(parts) if part) + ".json")
                finish(Computed(asked, chosen, settings, seeds, path))

    return app


def require(least: int, **options: float | None) -> None:
    """Raise InputError for an option that is given and below `least`."""
    for name, value in options.items():
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"expected numbers separated by commas, got {text!r}") from None


def device_called(name: str) -> str:
    """The device that the command line asks for; raises InputError where there is none.

    Of several processes that torchrun started, each has its own GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: expected cpu, cuda, cuda:1 or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return name


def _chosen_rows(table: Table, dataset: str, names: str | None) -> list[Row]:
    """The declared rows that are asked for; any other network can be asked for too, without paper values."""
    if names is None:
        usual = [row for row in table.rows if row.model not in table.on_request]
        return [row for row in usual if dataset != "digits" or _is_for_digits(row)]
    declared = {alias: row for row in table.rows for alias in (row.label, on_dataset(row.label, dataset))}
    return [declared.get(name.strip(), Row(name.strip())) for name in names.split(",") if name.strip()]


def _chosen_columns(table: Table, names: str) -> tuple[Column, ...]:
    """The columns that are asked for; those the paper does not have have no paper values."""
    if not table.columns:
        raise InputError(f"{title_of(table.name)} attacks nothing and has no columns to choose")
    columns = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if unknown := [name for name in columns if name not in get_args(Column)]:
        raise InputError(f"unknown column {unknown[0]!r}: expected some of {', '.join(get_args(Column))}")
    chosen = cast("tuple[Column, ...]", columns)
    for reason in filter(None, map(lacking, chosen)):
        raise InputError(reason)
    return chosen


def _print_jobs(rows: Sequence[Row], dataset: str, seeds: range) -> None:
    """One command for each row and seed, for any scheduler; the plain command then draws the table."""
    words = [word for word in sys.argv[1:] if word != "--list-jobs"]
    script = os.path.relpath(sys.argv[0])
    for row in rows:
        for seed in seeds:
            job = ["--rows", row.label, "--seed", str(seed), "--num-seeds", "1", "--workers", "1", "--no-table"]
            print(shlex.join(["python", script, *_without(words, job), *job]))


def _without(words: list[str], job: list[str]) -> list[str]:
    """The words of a command line less the options that `job` sets."""
    options = {word for word in job if word.startswith("--")}
    kept, skip = [], False
    for word in words:
        name, _, value = word.partition("=")
        if not skip and name not in options:
            kept.append(word)
        skip = not skip and name in options and not value and name != "--no-table"
    return kept


def _columns_of(table: Table, row: Row) -> tuple[Column, ...]:
    """Not clean images where an oracle is attacked, nor "transfer", which has another oracle."""
    return tuple(column for column in table.columns if row.oracle is None or column not in ("nat", "transfer"))


def _tasks(table: Table, row: Row, settings: Settings, seed: int) -> list[Task]:
    return tasks_for(
        settings,
        on_dataset(row.model, settings.dataset),
        seed,
        _columns_of(table, row),
        loss=table.loss_of(row),
        oracle=None if row.oracle is None else on_dataset(row.oracle, settings.dataset),
        weights=row.weights,
    )


def _compute(table: Table, rows: Sequence[Row], settings: Settings, seeds: range, num_workers: int | None) -> None:
    """Train and attack whatever is missing."""
    for row in rows:
        for name in filter(None, (row.model, row.oracle)):
            network(on_dataset(name, settings.dataset), settings, seed=0)  # a wrong name fails here, at once
    jobs = [Job(task, settings) for seed in seeds for row in rows for task in _tasks(table, row, settings, seed)]
    if num_workers is None:
        # from the whole table, not from what is left: the number of threads can change the last bits
        num_workers = min(num_cores(), len(rows) * len(seeds)) if settings.device == "cpu" else 1
    with progress() as (report, finished, _):
        run_all(
            costliest_first(jobs),
            device=settings.device,
            num_workers=num_workers,
            num_threads=max(1, num_cores() // num_workers),
            report=report,
            finished=finished,
        )


@contextmanager
def progress() -> Iterator[
    tuple[Callable[[Job, int, int], None], Callable[[Job, str, float], None], Callable[[Job, str], None]]
]:
    """`report` and `finished` for `run_all`, and `ended(job, what)`, which prints how a job ended in any other way.

    A bar for each running job where there is a terminal, a line for each that has ended.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    hidden = not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=hidden, transient=True) as bars:
        shown: dict[Job, TaskID] = {}

        def report(job: Job, done: int, total: int) -> None:
            if job not in shown:
                shown[job] = bars.add_task(str(job))
            bars.update(shown[job], completed=done, total=total)

        def ended(job: Job, what: str) -> None:
            if job in shown:
                bars.remove_task(shown.pop(job))
            bars.console.print(f"{job}: {what}", highlight=False, soft_wrap=True, markup=False)

        def finished(job: Job, outcome: str, seconds: float) -> None:
            ended(job, f"{outcome} ({seconds:.1f} s)")

        yield report, finished, ended


def results(table: Table, rows: Sequence[Row], settings: Settings, seeds: range) -> dict[str, Any]:
    """The numbers of the table, from files on disk alone; fit for JSON."""
    scores: Scores = {}
    entries = []
    stamps = []
    for row in rows:
        built = network(on_dataset(row.model, settings.dataset), settings, seed=0)
        runs: list[dict[str, Any]] = []
        for seed in seeds:
            tasks = _tasks(table, row, settings, seed)
            cells = {}
            for task in tasks:
                if isinstance(task, EvaluateTask):
                    score = evaluate.stored_score(evaluation_path(task, settings))
                    assert score is not None
                    scores.setdefault((row.label, task.column), []).append(score)
                    cells[task.column] = score.summary()
                    stamps.append(read_object(evaluation_path(task, settings).with_suffix(".json")))
            training = [task for task in tasks if isinstance(task, TrainTask)]
            counted = [
                selected(*pair, settings, training) for pair in dict.fromkeys((t.model, t.seed) for t in training)
            ]
            stamps += [tree["provenance"] for _, tree in counted]
            networks = _networks(counted, settings, with_history=not table.columns)
            runs.append({"seed": seed, "networks": networks, "cells": cells})
        entries.append(
            {
                "model": on_dataset(row.label, settings.dataset),
                "paper_model": row.model,
                "oracle": None if row.oracle is None else on_dataset(row.oracle, settings.dataset),
                "loss": table.loss_of(row),
                "num_members": len(built.members),
                "num_parameters": count_parameters(built),
                "paper": table.paper_values(row),
                "cells": {column: _cell(scores[row.label, column], len(seeds)) for column in _columns_of(table, row)},
                "runs": runs,
            }
        )
    config = asdict(settings.train_config(seeds[0], table.loss)) | {"lr": list(settings.candidates())}
    return {
        "provenance": provenance(
            {"settings": asdict(settings) | {"data": settings.data and settings.data.name, "out": settings.out.name}}
            | {"training": config, "seeds": list(seeds)},
            device=settings.device,
        ),
        "table": table.name,
        "title": title_of(table.name),
        "caption": table.caption,
        "dataset": settings.dataset,
        "paper_dataset": table.paper_dataset,
        "note": _digits_note(rows) if settings.dataset == "digits" else "",
        "columns": {column: column_title(column, settings) for column in table.columns},
        "rows": entries,
        "verdicts": verdicts(table, rows, settings.dataset, scores),
        "stamps": origins(stamps),
    }


def origins(stamps: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each way in which networks were trained and attacked, once: a table may be put together from several runs."""
    found: dict[str, dict[str, Any]] = {}
    for stamp in sorted(stamps, key=lambda stamp: stamp["created"]):
        known = {name: stamp[name] for name in ("command", "commit", "versions", "device", "cpu")}
        known["command"] = shlex.join(map(without_folder, shlex.split(stamp["command"])))
        found.setdefault(json.dumps(known, sort_keys=True), known | {"config": {}, "created": stamp["created"]})
    return list(found.values())


def _networks(
    counted: Sequence[tuple[TrainTask, dict[str, Any]]], settings: Settings, *, with_history: bool
) -> list[dict[str, Any]]:
    """What was trained for one row and one seed: the network itself, its parts or its oracle, each with its file."""
    found = []
    for chosen, tree in counted:
        found.append(
            {
                "model": chosen.model,
                "seed": chosen.seed,
                "lr": chosen.lr,
                "peak_lr": tree["provenance"]["batch"]["peak_lr"],
                "selected_epoch": tree["best"]["epoch"] + 1,
                "checkpoint": checkpoint_path(chosen, settings).name,
                "batch": tree["provenance"].get("batch"),
                "train_seconds": sum(record["seconds"] for record in tree["history"]),
            }
            | ({"history": tree["history"]} if with_history else {})
            | ({"member_weights": member_weights(chosen, settings, tree)} if "&" in chosen.model else {})
        )
    return found


def _digits_note(rows: Sequence[Row]) -> str:
    names = " ".join(name for row in rows for name in (row.model, row.oracle) if name)
    stand_ins = [f"{ours} stands for {printed}" for printed, ours in _ON_DIGITS.items() if printed in names]
    return "; ".join([*stand_ins, "width 8 for 16"]) + "."


def title_of(name: str) -> str:
    """ "table2" is Table 2, "fig5" is Figure 5, "section4_4" is Section 4.4."""
    return name.replace("table", "Table ").replace("fig", "Figure ").replace("section", "Section ").replace("_", ".")


def _cell(scores: Sequence[evaluate.Score], num_seeds: int) -> dict[str, Any]:
    interval = mean_accuracy([score.correct for score in scores])
    return {
        "mean": sum(score.mean for score in scores) / num_seeds,
        "vote": sum(score.vote for score in scores) / num_seeds,
        "interval": [interval.low, interval.high],
        "confidence": interval.confidence,
        "n": scores[0].n,
        "num_draws": scores[0].num_draws,
        "num_seeds": num_seeds,
    }


def verdicts(
    table: Table,
    rows: Sequence[Row],
    dataset: str,
    scores: Scores,
) -> list[dict[str, Any]]:
    """Each claim in each column, on the same images: ours with its paired interval, and the paper's difference.

    Where the paper's own numbers order two rows the other way round in some column, the claim is turned there.
    """
    paper = {row.label: table.paper_values(row) for row in rows}
    found = []
    for claim in table.claims:
        if claim.better not in paper or claim.worse not in paper:
            continue
        for column in claim.columns or table.columns:
            if (claim.better, column) not in scores or (claim.worse, column) not in scores:
                continue
            better, worse, printed = as_printed(claim, column, paper)
            first, second = ([score.correct for score in scores[name, column]] for name in (better, worse))
            names = on_dataset(better, dataset), on_dataset(worse, dataset)
            found.append(verdict(*names, column, printed, first, second))
    return found


def as_printed(claim: Claim, column: str, paper: Mapping[str, Mapping[str, float]]) -> tuple[str, str, float | None]:
    """(better, worse, difference): the rows of `claim` as the paper orders them in `column`, where it has numbers."""
    better, worse = claim.better, claim.worse
    if column not in paper.get(better, {}) or column not in paper.get(worse, {}):
        return better, worse, None
    printed = paper[better][column] - paper[worse][column]
    return (worse, better, -printed) if printed < 0 else (better, worse, printed)


def verdict(
    better: str, worse: str, column: str, printed: float | None, first: Sequence[Tensor], second: Sequence[Tensor]
) -> dict[str, Any]:
    """What became of an ordering, fit for JSON: `first` and `second` are, by seed, the images (n,) of the two rows."""
    difference = paired_difference(first, second)
    return {
        "better": better,
        "worse": worse,
        "column": column,
        "difference": difference.mean,
        "interval": [difference.interval.low, difference.interval.high],
        "confidence": difference.interval.confidence,
        "paper_difference": printed,
        "verdict": difference.verdict,
        "n": difference.n,
        "num_seeds": difference.num_seeds,
    }
