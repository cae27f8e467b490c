"""The whole reproduction on CIFAR: the stages of paper/queue.py, trained and attacked in order.

Everything on disk is kept: the same command continues where the last one stopped. Records join those of --results
after every task; nothing is drawn here.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from netkit.data import DataError
from studies.lab import engines, records
from studies.lab.cli import FAILURE, INTERRUPTED, USAGE, Device, device_called, progress
from studies.lab.reporting import (
    OUT,
    OWN_RESULTS,
    InputError,
    at_least,
    console,
    listed,
    num_cores,
    one_line_errors,
    some_of,
)
from studies.lab.run import run_all
from studies.lab.tasks import Scoring, Task
from studies.lab.work import load_data, require_same_data
from studies.paper.queue import ON_REQUEST, QUEUE, SETTINGS, Stage, tasks_of

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    settings: Annotated[str | None, typer.Option(help=f"Of {', '.join(SETTINGS)}; default: the queue")] = None,
    rows: Annotated[str | None, typer.Option(help="Only these networks, separated by commas")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, separated by commas")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with cifar10.npz and cifar100.npz; or one of them")] = None,
    budget: Annotated[float | None, typer.Option(help="Minutes; stops cleanly then")] = None,
    dry_run: Annotated[bool, typer.Option(help="List the tasks, and which of them are done")] = False,
    device: Device = "auto",
    workers: engines.Workers = None,
    scheduler: engines.Scheduler = None,
    slurm: engines.Slurm = None,
    threads: engines.Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for models and predictions")] = OUT,
    results: Annotated[Path, typer.Option(help="Folder of records")] = OWN_RESULTS / "records",
) -> None:
    """Train and attack in the order of the queue; what is on disk is not done again."""
    with one_line_errors(USAGE, FAILURE, interrupted=INTERRUPTED):
        at_least(0, budget=budget)
        at_least(1, workers=workers)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError("torchrun is for the tables: the queue runs whole networks side by side, with --workers")
        if data is not None and data.suffix == ".npz" and data.stem not in ("cifar10", "cifar100"):
            raise InputError(f"--data: expected a folder, cifar10.npz or cifar100.npz, got {data}")
        started, on = time.time(), device_called(device, is_here=scheduler is None and slurm is None)
        tasks = list(dict.fromkeys(_possible(_stages(settings, rows, seeds), data, out, on)))
        require_same_data(tasks)
        if dry_run:
            for task in tasks:
                done = "done" if records.is_done(task) else "to do"
                console.print(f"{done:>5}  {task.settings.title}: {task}", highlight=False, soft_wrap=True)
            return
        records.merge(records.of_tasks(tasks), results)
        failures: list[Task] = []
        usual = num_cores() if on == "cpu" else 3
        with (
            engines.chosen(workers, scheduler, slurm, out, threads=threads, device=on, usual=usual) as engine,
            progress() as (report, finished, ended),
        ):

            def keep(task: Task, outcome: str, seconds: float) -> None:
                finished(task, outcome, seconds)
                records.merge(records.of_tasks([task]), results)

            def skip(task: Task, error: Exception) -> None:
                failures.append(task)
                ended(task, f"failed, {type(error).__name__}: {error}")
                if not isinstance(error, (*USAGE, *FAILURE)):  # a bug, which shows itself
                    trace = "".join(traceback.format_exception(error))
                    console.print(trace, highlight=False, soft_wrap=True, markup=False)

            run_all(
                tasks,
                engine,
                report=report,
                finished=keep,
                failed=skip,
                deadline=math.inf if budget is None else started + 60 * budget,
            )
        left = sum(not records.is_done(task) for task in tasks)
        console.print(f"{len(tasks) - left} of {len(tasks)} tasks done, {len(failures)} failed", highlight=False)
        if failures:
            raise SystemExit(1)


def _stages(settings: str | None, rows: str | None, seeds: str | None) -> list[Stage]:
    """The declared stages, less what the command line leaves out."""
    stages = list(QUEUE)
    if settings is not None:
        named = some_of("settings", settings, SETTINGS)
        stages = [stage for stage in (*QUEUE, *ON_REQUEST) if stage.setting in named]
    if rows is not None:
        wanted = some_of("rows", rows, sorted({row for stage in stages for row in stage.rows}))
        stages = [replace(stage, rows=tuple(row for row in stage.rows if row in wanted)) for stage in stages]
    if seeds is not None:
        numbers = listed("seeds", seeds, int)
        stages = [replace(stage, seeds=tuple(seed for seed in stage.seeds if seed in numbers)) for stage in stages]
    return stages


def _possible(stages: Sequence[Stage], data: Path | None, out: Path, device: str) -> Iterator[Task]:
    """The tasks whose data and libraries are here; says what is left out, and why.

    Raises InputError where nothing is left.
    """
    left_out: Counter[str] = Counter()
    unreadable: dict[str, str | None] = {}
    count = 0
    for task in tasks_of(stages, data=data, out=out, device=device):
        dataset = task.settings.dataset
        if dataset not in unreadable:
            unreadable[dataset] = _unreadable(task)
        why = unreadable[dataset] or (task.row.lacks() if isinstance(task, Scoring) else None)
        if why is None:
            count += 1
            yield task
        else:
            left_out[why] += 1
    for why, number in left_out.items():
        console.print(f"left out: {number} tasks: {why}", highlight=False, soft_wrap=True, markup=False)
    if count == 0:
        raise InputError("nothing to do")


def _unreadable(task: Task) -> str | None:
    try:
        load_data(replace(task.settings, device="cpu"))
    except (DataError, OSError) as error:
        return str(error)
    return None


if __name__ == "__main__":
    app()
