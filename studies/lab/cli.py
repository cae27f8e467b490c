"""The command line that all tables share: the options, the tasks that follow from them, and progress."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from netkit import parallel
from netkit.checkpoint import CheckpointError
from netkit.data import DataError
from netkit.intervals import FEWEST_SEEDS
from netkit.presets import PRESETS
from studies.lab import assemble, engines, records
from studies.lab.attacks import ATTACKS
from studies.lab.declared import Row, Table
from studies.lab.networks import Network, on_dataset
from studies.lab.reporting import (
    OUT,
    InputError,
    Smoke,
    at_least,
    console,
    listed,
    num_cores,
    one_line_errors,
    provenance,
    some_of,
)
from studies.lab.run import WorkerDied, costliest_first, run_all
from studies.lab.tasks import Settings, Task, tasks_for
from studies.lab.work import require_same_data

USAGE = (InputError, DataError, CheckpointError, OSError)
FAILURE = (FloatingPointError, WorkerDied)
INTERRUPTED = "interrupted; the same command continues from here"

_SMOKE = {"epochs": 1, "num_train": 128, "num_test": 40, "attack_steps": 2, "num_draws": 2, "eot": 2}

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto")]


@dataclass(frozen=True)
class Computed:
    """A table whose networks are trained and whose attacks are done; `path` is where its numbers belong."""

    table: Table
    rows: Sequence[Row]
    settings: Settings
    seeds: range
    path: Path

    @property
    def tasks(self) -> list[Task]:
        return tasks_of(self.table, self.rows, self.settings, self.seeds)

    def numbers(self) -> assemble.Fields:
        """The table, from the records of its own tasks."""
        own = records.of_tasks(self.tasks)
        where = assemble.Where(self.settings.dataset, self.settings.title)
        training = asdict(self.settings.train_config(self.seeds[0], self.table.loss))
        config = {
            "settings": asdict(self.settings) | {"data": self.settings.data and self.settings.data.name, "out": ""},
            "training": training | {"lr": list(self.settings.candidates())},
            "seeds": list(self.seeds),
        }
        stamp = {"provenance": provenance(config, device=self.settings.device)}
        return stamp | assemble.table(self.table, self.rows, own, where)


def compute(table: Table, finish: Callable[[Computed], None]) -> Callable[..., None]:
    """The command of one table, or of a figure over the same networks, which has a `finish` of its own."""

    def main(
        dataset: Annotated[str, typer.Option(help="digits, cifar10 or cifar100")] = "digits",
        data: Annotated[Path | None, typer.Option(help=".npz file, or folder with official CIFAR files")] = None,
        download: Annotated[bool, typer.Option(help="Fetch the official CIFAR files")] = False,
        preset: Annotated[str | None, typer.Option(help=f"Of {', '.join(PRESETS)}; default: paper, or digits")] = None,
        rows: Annotated[str | None, typer.Option(help="Only these networks, separated by commas")] = None,
        columns: Annotated[str | None, typer.Option(help=f"Other than the paper's: {', '.join(ATTACKS)}")] = None,
        num_train: Annotated[int | None, typer.Option(help="Only the first N training images")] = None,
        num_test: Annotated[int | None, typer.Option(help="Only the first N test images")] = None,
        epochs: Annotated[int | None, typer.Option(help="Instead of the preset's")] = None,
        lr: Annotated[str | None, typer.Option(help="Learning rates to try; the best on validation counts")] = None,
        attack_steps: Annotated[int | None, typer.Option(help="Cap the steps of all attacks")] = None,
        eot: Annotated[int | None, typer.Option(help="Noise draws in each attack gradient; default 5")] = None,
        num_draws: Annotated[int | None, typer.Option(help="Draws each example is scored on; default 10")] = None,
        seed: Annotated[int, typer.Option(help="The first seed")] = 0,
        num_seeds: Annotated[int | None, typer.Option(help="Default: 3 on digits, else 1")] = None,
        device: Device = "auto",
        workers: engines.Workers = None,
        scheduler: engines.Scheduler = None,
        slurm: engines.Slurm = None,
        threads: engines.Threads = None,
        out: Annotated[Path, typer.Option(help="Folder for models, predictions and results")] = OUT,
        results: Annotated[Path | None, typer.Option(help="Folder whose records those of this table join")] = None,
        smoke: Smoke = False,
    ) -> None:
        with one_line_errors(USAGE, FAILURE, interrupted=INTERRUPTED):
            at_least(0, seed=seed)
            at_least(2, num_train=num_train)
            at_least(1, num_test=num_test, epochs=epochs, attack_steps=attack_steps, eot=eot)
            at_least(1, num_draws=num_draws, num_seeds=num_seeds)
            small = _SMOKE if smoke else {}
            settings = Settings(
                dataset=dataset,
                preset=preset or ("digits" if dataset == "digits" else "paper"),
                out=out,
                data=data,
                download=download,
                learning_rates=tuple(listed("lr", lr, float)),
                num_train=num_train or small.get("num_train"),
                num_test=num_test or small.get("num_test"),
                epochs=epochs or small.get("epochs"),
                attack_steps=attack_steps or small.get("attack_steps"),
                eot_draws=eot or small.get("eot", 5),
                num_draws=num_draws or small.get("num_draws", 10),
                auto_draws=small.get("eot", 20),
                device=device_called(device, is_here=scheduler is None and slurm is None),
            )
            count = num_seeds or (FEWEST_SEEDS if dataset == "digits" and not smoke else 1)
            asked = table if columns is None else replace(table, attacks=_chosen_attacks(table, columns))
            chosen = _chosen_rows(asked, dataset, rows or (",".join(table.smoke) if smoke else None))
            parts = dict.fromkeys((table.name, dataset, settings.preset, "smoke" if smoke else settings.preset))
            path = out / f"{'-'.join(parts)}.json"
            computed = Computed(asked, chosen, settings, range(seed, seed + count), path)
            with parallel.joined(settings.device):
                rank, _ = parallel.processes()
                console.quiet = rank > 0
                usual = min(num_cores(), len(chosen) * count) if settings.device == "cpu" else 1
                require_same_data(computed.tasks)
                with (
                    engines.chosen(
                        workers, scheduler, slurm, out, threads=threads, device=settings.device, usual=usual
                    ) as engine,
                    progress() as (report, finished, _),
                ):
                    run_all(costliest_first(computed.tasks), engine, report=report, finished=finished)
            if rank == 0:
                if results is not None:
                    records.merge(records.of_tasks(computed.tasks), results)
                finish(computed)

    main.__doc__ = (
        f"{table.title}: {table.caption}.\n\nWithout options: 8x8 digits and networks of depth 8, in minutes on two "
        "cores. What is on disk is not done again, and an interrupted run continues where it was."
    )
    return main


def app_for(table: Table, finish: Callable[[Computed], None]) -> typer.Typer:
    """`compute` as a program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(compute(table, finish))
    return app


def tasks_of(table: Table, rows: Sequence[Row], settings: Settings, seeds: Sequence[int]) -> list[Task]:
    """All tasks behind some rows of a table.

    Not clean images where an oracle is attacked, nor "transfer", which has another oracle.
    """
    return [
        task
        for seed in seeds
        for row in rows
        for task in tasks_for(
            settings,
            row.network.on(settings.dataset),
            seed,
            [a for a in table.attacks if row.oracle is None or not (ATTACKS[a].make is None or ATTACKS[a].on_twin)],
            loss=row.loss or table.loss,
            oracle=None if row.oracle is None else Network.parse(row.oracle).on(settings.dataset),
            weights=row.weights,
        )
    ]


def device_called(name: str, *, is_here: bool = True) -> str:
    """The device that the command line asks for; raises InputError where it is to be here and is not.

    Of several processes that torchrun started, each has its own GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: expected cpu, cuda, cuda:1 or auto, got {name!r}") from None
    if is_here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: expected one of {torch.cuda.device_count()} CUDA devices here, got {name}")
    return name


def _chosen_rows(table: Table, dataset: str, names: str | None) -> list[Row]:
    """The declared rows that are asked for; any other network can be asked for too, without paper values."""
    if names is None:
        usual = [row for row in table.rows if row.model not in table.on_request]
        parts = {row.label: [row.model, *filter(None, [row.oracle])] for row in usual}
        return [r for r in usual if all(Network.parse(part).has_stand_in_on(dataset) for part in parts[r.label])]
    declared = {alias: row for row in table.rows for alias in (row.label, on_dataset(row.label, dataset))}
    chosen = [declared.get(name, Row(name)) for name in listed("rows", names, str)]
    try:
        for row in chosen:
            row.network.on(dataset)
    except ValueError as error:
        raise InputError(f"--rows: {error}") from error
    return chosen


def _chosen_attacks(table: Table, names: str) -> tuple[str, ...]:
    """The attacks that are asked for; those the paper does not have have no paper values."""
    if not table.attacks:
        raise InputError(f"--columns: expected none for {table.title}, which attacks nothing, got {names!r}")
    chosen = some_of("columns", names, ATTACKS)
    for reason in filter(None, (ATTACKS[name].lacks() for name in chosen)):
        raise InputError(f"--columns: {reason}")
    return tuple(chosen)


@contextlib.contextmanager
def progress() -> Iterator[
    tuple[Callable[[Task, int, int], None], Callable[[Task, str, float], None], Callable[[Task, str], None]]
]:
    """`report` and `finished` for `run_all`, and `ended(task, what)`, which prints how one ended in any other way.

    A bar for each running task where there is a terminal, a line for each that has ended.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    hidden = not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=hidden, transient=True) as bars:
        shown: dict[Task, TaskID] = {}

        def report(task: Task, done: int, total: int) -> None:
            if task not in shown:
                shown[task] = bars.add_task(str(task))
            bars.update(shown[task], completed=done, total=total)

        def ended(task: Task, what: str) -> None:
            if task in shown:
                bars.remove_task(shown.pop(task))
            bars.console.print(f"{task}: {what}", highlight=False, soft_wrap=True, markup=False)

        def finished(task: Task, outcome: str, seconds: float) -> None:
            ended(task, f"{outcome} ({seconds:.1f} s)")

        yield report, finished, ended
