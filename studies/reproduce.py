"""The queue behind the reproduction on CIFAR: what is declared in reproduce_queue.py, trained and attacked in order.

Everything on disk is kept: the same command continues where the last one stopped, here or, through `pack` and
`unpack`, on another machine. Results are merged into three files after every job; nothing is drawn here.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import parcels
import typer
from jobs import EvaluateTask, Job, lacking, load_data
from reporting import ROOT, InputError, console, num_cores, one_line_errors
from reproduce_estimate import estimate
from reproduce_queue import ON_REQUEST, QUEUE, SETTINGS, Entry, Stage, entries_of
from reproduce_results import write_results
from tables import FAILURE, USAGE, device_called, progress, require
from workers import run_all

from netkit.data import DataError

RESULTS = ROOT / "studies" / "results" / "reproduction"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    settings: Annotated[str | None, typer.Option(help=f"Of {', '.join(SETTINGS)}; default: the queue")] = None,
    rows: Annotated[str | None, typer.Option(help="Only these networks, separated by commas")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, separated by commas")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with cifar10.npz and cifar100.npz, packed or official files; or one .npz"),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Minutes; stops cleanly then")] = None,
    dry_run: Annotated[bool, typer.Option(help="Measure a few steps of each network and estimate every job")] = False,
    list_jobs: Annotated[bool, typer.Option(help="Print one command for each setting, network and seed")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core, three on a GPU")] = None,
    out: Annotated[Path, typer.Option(help="Folder for models and predictions")] = ROOT / "out",
    results: Annotated[Path, typer.Option(help="Folder for scores.jsonl, trainings.jsonl, settings.json")] = RESULTS,
    no_results: Annotated[bool, typer.Option(help="Train and attack, but write no results")] = False,
) -> None:
    """Train and attack in the order of the queue; what is on disk is not done again.

    Results are merged into the files of --results after every job.
    """
    if context.invoked_subcommand is not None:
        return
    with one_line_errors(USAGE, FAILURE, interrupted="interrupted; the same command continues from here"):
        require(0, budget=budget)
        require(1, workers=workers)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError("the queue runs whole networks side by side (--workers); torchrun is for the tables")
        started = time.time()
        on = device_called(device)
        entries = list(entries_of(_stages(settings, rows, seeds), data=data, out=out, device=on))
        if list_jobs:
            _print_jobs(entries, data, out, device)
            return
        entries = list(_needed(list(_possible(entries))))
        num_workers = workers or (num_cores() if on == "cpu" else 3)
        num_threads = max(1, num_cores() // num_workers)
        if dry_run:
            estimate(entries, num_workers, num_threads)
            return
        merge = partial(write_results, folder=results) if not no_results else lambda _: None
        merge([entry for entry in entries if entry.job.is_done()])
        of_job = {entry.job: entry for entry in entries}
        failures: list[Job] = []
        with progress() as (report, finished, ended):

            def keep(job: Job, outcome: str, seconds: float) -> None:
                finished(job, outcome, seconds)
                merge([of_job[job]])

            def skip(job: Job, error: Exception) -> None:
                failures.append(job)
                ended(job, f"failed, {type(error).__name__}: {error}")
                if not isinstance(error, (*USAGE, *FAILURE)):  # a bug, which shows itself
                    trace = "".join(traceback.format_exception(error))
                    console.print(trace, highlight=False, soft_wrap=True, markup=False)

            run_all(
                of_job,
                device=on,
                num_workers=num_workers,
                num_threads=num_threads,
                report=report,
                finished=keep,
                failed=skip,
                deadline=math.inf if budget is None else started + 60 * budget,
            )
        left = sum(not job.is_done() for job in of_job)
        console.print(f"{len(of_job) - left} of {len(of_job)} jobs done, {len(failures)} failed", highlight=False)
        if failures:
            raise SystemExit(1)


@app.command("pack")
def pack_command(
    folder: Annotated[Path, typer.Argument(help="Where to put parts and manifest")],
    out: Annotated[Path, typer.Option(help="Folder with models and predictions")] = ROOT / "out",
    max_files: Annotated[
        int | None,
        typer.Option(
            help="Leave out what does not fit, oldest networks first; where an attack on such a network is still to be "
            "made, it is trained again from the start, and attacks on it are all repeated unless it comes out the same"
        ),
    ] = None,
) -> None:
    """Put the state of the queue into files of at most 15 MiB that can be moved to another machine."""
    with one_line_errors(USAGE):
        require(2, max_files=max_files)
        left_out = parcels.pack(out, folder, max_files=max_files)
        for path in left_out:
            console.print(f"left out: {path.name}", highlight=False, soft_wrap=True)
        count = len(list(folder.glob("part-*.bin")))
        console.print(f"{count} parts and a manifest in {folder}", highlight=False, soft_wrap=True)


@app.command("unpack")
def unpack_command(
    folder: Annotated[Path, typer.Argument(help="A folder that pack has filled")],
    out: Annotated[Path, typer.Option(help="Folder for models and predictions")] = ROOT / "out",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite files of --out that differ")] = False,
) -> None:
    """Put the state of a queue, packed elsewhere, where this one finds it."""
    with one_line_errors(USAGE):
        new = parcels.unpack(folder, out, replace=replace)
        console.print(f"{len(new)} files unpacked into {out}", highlight=False, soft_wrap=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _stages(settings: str | None, rows: str | None, seeds: str | None) -> list[Stage]:
    """The declared stages, less what the command line leaves out."""
    stages = list(QUEUE)
    if settings is not None:
        if unknown := set(_names(settings)) - SETTINGS.keys():
            raise InputError(f"unknown setting {min(unknown)!r}: expected some of {', '.join(SETTINGS)}")
        stages = [stage for stage in (*QUEUE, *ON_REQUEST) if stage.setting in _names(settings)]
    if rows is not None:
        known = {row for stage in stages for row in stage.rows}
        if unknown := set(_names(rows)) - known:
            raise InputError(f"no stage has the row {min(unknown)!r}: expected some of {', '.join(sorted(known))}")
        stages = [replace(stage, rows=tuple(row for row in stage.rows if row in _names(rows))) for stage in stages]
    if seeds is not None:
        try:
            wanted = {int(seed) for seed in _names(seeds)}
        except ValueError:
            raise InputError(f"expected seeds separated by commas, got {seeds!r}") from None
        stages = [replace(stage, seeds=tuple(seed for seed in stage.seeds if seed in wanted)) for stage in stages]
    return stages


def _possible(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries whose data and libraries are here; says what is left out, and why.

    Raises InputError where nothing is left.
    """
    reasons: dict[str, str | None] = {}
    left_out: dict[str, int] = {}
    count = 0
    for entry in entries:
        settings = entry.job.settings
        if settings.dataset not in reasons:
            try:
                load_data(settings)
                reasons[settings.dataset] = None
            except (DataError, OSError) as error:
                reasons[settings.dataset] = str(error)
        reason = reasons[settings.dataset]
        if reason is None and isinstance(entry.job.task, EvaluateTask):
            reason = lacking(entry.job.task.column)
        if reason is None:
            count += 1
            yield entry
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    for reason, number in left_out.items():
        console.print(f"left out: {number} jobs: {reason}", highlight=False, soft_wrap=True, markup=False)
    if count == 0:
        raise InputError("nothing to do")


def _needed(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries, less trainings that `pack` left out after all attacks on them were done."""
    scoring = [entry.job for entry in entries if isinstance(entry.job.task, EvaluateTask)]
    answered = {path for job in scoring for path in job.needs} - {
        path for job in scoring if not job.is_done() for path in job.needs
    }
    for entry in entries:
        if entry.job.path not in answered or entry.job.path.exists():
            yield entry


def _print_jobs(entries: Sequence[Entry], data: Path | None, out: Path, device: str) -> None:
    """One command for each setting, row and seed, for any scheduler; the plain command then writes the results."""
    common = ["--out", str(out), "--device", device, "--workers", "1", "--no-results"]
    common += [] if data is None else ["--data", str(data)]
    script = os.path.relpath(sys.argv[0])
    for setting, _, row, seed in dict.fromkeys(entry.key for entry in entries):
        print(shlex.join(["python", script, "--settings", setting, "--rows", row, "--seeds", str(seed), *common]))


if __name__ == "__main__":
    app()
