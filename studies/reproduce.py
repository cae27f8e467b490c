"""The queue behind the reproduction on CIFAR: what is trained and attacked, in the order of its value for the claim.

What runs is declared in SETTINGS and QUEUE. Everything on disk is kept: the same command continues where the last one
stopped, here or, through `pack` and `unpack`, on another machine. Results are merged into three files after every
job; nothing is drawn here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import parcels
import torch
import typer
from jobs import (
    Column,
    EvaluateTask,
    Job,
    Loss,
    Settings,
    TrainTask,
    column_title,
    describe,
    eot_draws,
    gradients_per_image,
    is_noisy,
    lacking,
    load_data,
    network,
    network_fingerprint,
    selected,
    tasks_for,
)
from reporting import ROOT, InputError, console, one_line_errors, write_json, write_whole
from tables import FAILURE, USAGE, device_called, progress, require
from workers import run_all

from netkit import checkpoint, evaluate
from netkit.data import DataError
from netkit.training import load_model, peak_learning_rate, train

RESULTS = ROOT / "studies" / "results" / "reproduction"

CORE = ("ResNet20", "En1ResNet20", "En2ResNet20", "Plain2ResNet20", "Wide2ResNet20")
FIVE = ("En5ResNet20", "Plain5ResNet20", "Wide5ResNet20")
DEEPER = ("ResNet44", "En1ResNet44", "En2ResNet44", "WRN-14-2", "En1WRN-14-2", "ResNet32", "En1ResNet32")
LARGE = ("ResNet110", "En2ResNet110", "WRN-34-10", "En1WideResNet34-10")
PAPER_COLUMNS: tuple[Column, ...] = ("nat", "fgsm", "ifgsm20", "cw")
MODERN_COLUMNS: tuple[Column, ...] = (
    "pgd20", "transfer", "ifgsm20-eot1", "ifgsm20-eot20", "ifgsm20-eot50", "autoattack"
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One way to train and attack, with a name of its own in the results; `options` are those of `jobs.Settings`."""

    title: str
    what: str
    limits: str
    dataset: str
    preset: str
    loss: Loss = "pgd"
    options: Mapping[str, Any] = field(default_factory=dict)


SETTINGS = {
    "cpu-narrow": Setting(
        "CPU, narrow networks",
        "ResNet20 and its ensembles of width 8, the first 10,000 training images of CIFAR-10, a one-step attack in "
        "training, 10 epochs.",
        "A small stand-in that two CPU cores can train: half the paper's width, a fifth of its images, one-step in "
        "place of ten-step attacks, 10 epochs in place of 200. It can order networks trained alike, and says nothing "
        "about the paper's absolute numbers. Attacks take at most 20 steps.",
        "cifar10",
        "one-step",
        options={"width": 8, "num_train": 10_000, "num_test": 2_000, "epochs": 10, "attack_steps": 20},
    ),
    "fast": Setting(
        "CIFAR-10, one-cycle",
        "The paper's networks on CIFAR-10, PGD-7 in training, 30 epochs with a one-cycle learning rate.",
        "3/20 of the paper's epochs, with another schedule and mixed precision; the learning rate grows with the "
        "number of members.",
        "cifar10",
        "fast",
    ),
    "paper": Setting(
        "CIFAR-10, as the paper says",
        "The paper's networks on CIFAR-10, PGD-10 in training, 200 epochs.",
        "Batch size, momentum and weight decay are the released code's, as the paper names none.",
        "cifar10",
        "paper",
    ),
    "fast-cifar100": Setting(
        "CIFAR-100, one-cycle",
        "The paper's networks on CIFAR-100, PGD-7 in training, 30 epochs with a one-cycle learning rate.",
        "As for CIFAR-10, one-cycle.",
        "cifar100",
        "fast",
    ),
    "fast-natural": Setting(
        "CIFAR-10, one-cycle, natural training",
        "The paper's networks on CIFAR-10, trained on clean images, 30 epochs with a one-cycle learning rate.",
        "As for CIFAR-10, one-cycle.",
        "cifar10",
        "fast",
        loss="natural",
    ),
    "digits": Setting(
        "Digits, as little as shows that everything runs",
        "ResNet8 and its ensembles of width 8 on 8x8 digits, two epochs.",
        "Nothing can be concluded from it.",
        "digits",
        "digits",
        options={"num_train": 256, "num_test": 40, "epochs": 2, "attack_steps": 2, "num_draws": 2, "auto_draws": 2},
    ),
}


@dataclass(frozen=True)
class Stage:
    """Rows and columns of one setting, all of seed 0 first; `options` change the setting for attacks alone."""

    setting: str
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    options: Mapping[str, Any] = field(default_factory=dict)


QUEUE = (
    Stage("fast", CORE, PAPER_COLUMNS),
    Stage("fast", CORE, MODERN_COLUMNS, options={"num_test": 1_000}),
    Stage("fast", FIVE, PAPER_COLUMNS),
    Stage("fast", FIVE, MODERN_COLUMNS, options={"num_test": 1_000}),
    Stage("paper", (*CORE, *FIVE), PAPER_COLUMNS),
    Stage("paper", (*CORE, *FIVE), MODERN_COLUMNS, options={"num_test": 1_000}),
    Stage("fast-cifar100", (*CORE, *FIVE), PAPER_COLUMNS),
    Stage("fast-natural", (*CORE, *FIVE), PAPER_COLUMNS),
    Stage("fast", DEEPER, PAPER_COLUMNS),
    Stage("fast", LARGE, PAPER_COLUMNS, seeds=(0,)),
)
"""By value for the claim that noisy ensembles do better on clean and on attacked images."""

ON_REQUEST = (
    *(
        stage
        for seed in (0, 1, 2)
        for stage in (
            Stage("cpu-narrow", CORE, ("nat", "fgsm"), (seed,)),
            Stage("cpu-narrow", CORE, ("ifgsm20",), (seed,), {"num_test": 1_000}),
        )
    ),
    Stage("cpu-narrow", CORE, ("transfer", "ifgsm20-eot1"), options={"num_test": 500}),
    Stage("cpu-narrow", CORE, ("cw", "ifgsm20-eot20", "autoattack"), (0,), {"num_test": 250, "auto_draws": 5}),
    Stage("cpu-narrow", ("En5ResNet20", "Plain5ResNet20"), ("nat", "fgsm", "ifgsm20"), (0,), {"num_test": 500}),
    Stage("digits", ("ResNet8", "En2ResNet8"), (*PAPER_COLUMNS, *MODERN_COLUMNS), (0, 1)),
)
"""Settings that are not part of the queue, and run only where they are named."""

Line = dict[str, Any]
Key = tuple[str, str, str, int, str]
"""Setting, data set, row, seed and attack, which is empty for a training."""
_ORDER = ("setting", "dataset", "row", "attack", "seed")
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"

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
        num_cores = os.cpu_count() or 1
        num_workers = workers or (num_cores if on == "cpu" else 3)
        num_threads = max(1, num_cores // num_workers)
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


# What to do


@dataclass(frozen=True)
class Entry:
    """A job and the setting it belongs to."""

    setting: str
    job: Job

    @property
    def key(self) -> tuple[str, str, str, int]:
        """(setting, data set, row, seed), by which results are sorted."""
        return self.setting, self.job.settings.dataset, self.job.task.model, self.job.task.seed


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


def entries_of(stages: Iterable[Stage], *, data: Path | None, out: Path, device: str) -> Iterator[Entry]:
    """The jobs of the stages in order; attacks that do the same to a noise-free network are left out."""
    seen = set()
    for stage in stages:
        setting = SETTINGS[stage.setting]
        source = _source(setting.dataset, data)
        usual = Settings(setting.dataset, setting.preset, out, source, device=device, **setting.options)
        attacking = replace(usual, **stage.options)
        for seed in stage.seeds:
            for row in stage.rows:
                columns = [column for column in stage.columns if is_noisy(row) or not _is_about_noise(column)]
                for task in tasks_for(usual, row, seed, columns, loss=setting.loss):
                    job = Job(task, usual if isinstance(task, TrainTask) else attacking)
                    if job not in seen:
                        seen.add(job)
                        yield Entry(stage.setting, job)


def _is_about_noise(column: Column) -> bool:
    return column == "transfer" or "-eot" in column


def _source(dataset: str, data: Path | None) -> Path | None:
    """Where the images of `dataset` are, `data` being a folder for several data sets or the file of one."""
    if data is None or dataset == "digits":
        return None
    if data.suffix == ".npz":
        if data.stem not in ("cifar10", "cifar100"):
            raise InputError(f"expected --data to be a folder, cifar10.npz or cifar100.npz, got {data}")
        return data.with_name(f"{dataset}.npz")
    inside = data / f"{dataset}.npz"
    return inside if inside.is_file() else data


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


# How long it takes


def estimate(entries: Sequence[Entry], num_workers: int, num_threads: int) -> None:
    """Print for every job what it would take, from a few training steps of each network measured here and now."""
    torch.set_num_threads(num_threads)
    measured: dict[tuple[Any, ...], float] = {}
    total = 0.0
    for entry in entries:
        task, settings = entry.job.task, entry.job.settings
        if entry.job.is_done():
            console.print(
                f"{'done':>10}  {total / 60:8.1f} min  {entry.setting}: {task}", highlight=False, soft_wrap=True
            )
            continue
        key = (task.model, settings.dataset, settings.preset, settings.width)
        if key not in measured:
            measured[key] = seconds_per_gradient(task.model, settings)
        seconds = measured[key] * passes(entry.job)
        total += seconds / num_workers
        line = f"{seconds:8.0f} s  {total / 60:8.1f} min  {entry.setting}: {task}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{total / 60:.0f} minutes in all with {num_workers} processes, as busy as this device is now")


class _Measured(Exception):
    pass


def seconds_per_gradient(model: str, settings: Settings) -> float:
    """Seconds that `model` takes for one image forward and back, in training steps against one attack step."""
    dataset = load_data(settings)
    _, size = describe(model, settings)
    is_long = settings.device == "cpu" and size > 2_000_000
    config = settings.train_config(0, "pgd")
    config = replace(config, epochs=10, num_steps=1, batch_size=8 if is_long else 128, select="last")
    times: list[float] = []

    def count(done: int, total: int) -> None:
        if settings.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) == 5:  # before the first step, after a warm-up, and three to measure
            raise _Measured

    with contextlib.suppress(_Measured):
        train(network(model, settings, 0), dataset, config, on_step=count)
    images = min(config.batch_size, len(dataset.train))
    return (times[-1] - times[1]) / (len(times) - 2) / images / 2


def passes(job: Job) -> float:
    """Passes forward and back, over one image, that a job takes; a pass forward alone counts a third."""
    task, settings = job.task, job.settings
    dataset = load_data(settings)
    if isinstance(task, TrainTask):
        config = settings.train_config(task.seed, task.loss)
        attacked = 0 if config.loss == "natural" else config.num_steps
        validated = 0 if config.loss == "natural" else config.iterated().num_steps
        validations = math.ceil(config.epochs / config.validate_every)
        return config.epochs * len(dataset.train) * (attacked + 1) + validations * len(dataset.val) * (
            validated + 2 / 3
        )
    noisy = is_noisy(task.model)
    draws = settings.num_draws if noisy else 1
    return len(dataset.test) * (gradients_per_image(task.column, settings, is_noisy=noisy) + draws / 3)


# Results


def write_results(entries: Sequence[Entry], folder: Path) -> None:
    """Merge the results of finished jobs into the files of `folder`; several runs may do so at once.

    Lines of other settings stay as they are. Of the settings of `entries` only lines go that are no result of what is
    declared today, or of a network that was trained anew since.
    """
    if not entries:
        return
    trainings = [training_line(entry) for entry in entries if isinstance(entry.job.task, TrainTask)]
    scores = [score_line(entry) for entry in entries if isinstance(entry.job.task, EvaluateTask)]
    declared = _declared(entries)

    def is_of_today(line: Line) -> bool:
        if line["setting"] not in {entry.setting for entry in entries}:
            return True
        job = declared.get(_key(line))
        return job is not None and line.get("job") == job.path.stem

    with _locked(folder):
        trained = _merged(folder / "trainings.jsonl", trainings, is_of_today)
        networks = {_key(line): line["network"] for line in trained if "network" in line}

        def is_of_its_network(line: Line) -> bool:
            return line.get("network") == networks.get((*_key(line)[:4], ""), line.get("network"))

        scored = _merged(folder / "scores.jsonl", scores, lambda line: is_of_today(line) and is_of_its_network(line))
        _describe_settings(folder / "settings.json", [*trained, *scored])


def _declared(entries: Sequence[Entry]) -> dict[Key, Job]:
    """All jobs of the settings of `entries` that are declared, by the keys of their lines."""
    found: dict[Key, Job] = {}
    for name, settings in {entry.setting: entry.job.settings for entry in entries}.items():
        stages = [stage for stage in (*QUEUE, *ON_REQUEST) if stage.setting == name]
        for entry in entries_of(stages, data=settings.data, out=settings.out, device=settings.device):
            task = entry.job.task
            found[*entry.key, "" if isinstance(task, TrainTask) else task.column] = entry.job
    return found


def _describe_settings(path: Path, lines: Sequence[Line]) -> None:
    """Write what SETTINGS says of the settings of `lines`, with the hardware and the commands behind them."""
    described = _parsed(path, path.read_text()) if path.exists() else {}
    for name, setting in SETTINGS.items():
        stamps = [line["provenance"] for line in lines if line["setting"] == name]
        if stamps:
            described[name] = {
                "title": setting.title,
                "what": setting.what,
                "limits": setting.limits,
                "dataset": setting.dataset,
                "preset": setting.preset,
                "hardware": sorted({f"{stamp['device']}; {stamp['cpu']}" for stamp in stamps}),
                "command": sorted({stamp["command"] for stamp in stamps}),
            }
    write_json(path, dict(sorted(described.items())))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the results in `folder`; the system lets go of it where a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _key(line: Line) -> Key:
    return line["setting"], line["dataset"], line["row"], line["seed"], line.get("attack", "")


def _merged(path: Path, new: Sequence[Line], stays: Callable[[Line], bool]) -> list[Line]:
    """Write `new` lines over those with the same keys, drop what `stays` refuses, and return all, sorted."""
    text = path.read_text() if path.exists() else ""
    stored = [_parsed(path, line, number) for number, line in enumerate(text.splitlines(), 1)]
    try:
        found = {_key(line): line for line in [*stored, *new] if stays(line)}
    except KeyError as error:
        raise InputError(f"{path} holds a line without {error}") from None
    lines = sorted(found.values(), key=lambda line: [line.get(name, "") for name in _ORDER])
    content = "".join(json.dumps(line) + "\n" for line in lines)
    if content != text:
        write_whole(path, content.encode())
    return lines


def _parsed(path: Path, text: str, number: int = 1) -> Line:
    """The object in `text`, which begins in line `number` of the file."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number + error.lineno - 1}, is damaged: {error.msg}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}, line {number}, is damaged: expected an object, got {text[:40]!r}")
    return content


def training_line(entry: Entry) -> dict[str, Any]:
    """How a network was trained, from its checkpoint; `seconds` and `provenance` alone tell where."""
    task, settings = entry.job.task, entry.job.settings
    assert isinstance(task, TrainTask)
    chosen, tree = selected(task.model, task.seed, settings, [task])
    config = settings.train_config(task.seed, task.loss, chosen.lr)
    return _identity(entry) | {
        "network": network_fingerprint(load_model(entry.job.path)),
        "config": asdict(config),
        "lr": chosen.lr,
        "peak_lr": peak_learning_rate(config, len(tree["identity"]["model"]["members"])),
        "num_train": len(load_data(settings).train),
        "selected_epoch": tree["best"]["epoch"] + 1,
        "history": tree["history"],
        "provenance": tree["provenance"],
    }


def score_line(entry: Entry) -> dict[str, Any]:
    """What a network answered under one attack, from its stored predictions."""
    task, settings, path = entry.job.task, entry.job.settings, entry.job.path
    assert isinstance(task, EvaluateTask)
    score = evaluate.stored_score(path)
    assert score is not None
    if score.num_draws >= len(_BASE36):
        raise InputError(f"expected at most {len(_BASE36) - 1} draws, got {score.num_draws}")
    right = (score.predictions == score.labels).sum(0).tolist()
    draws = eot_draws(task.column, settings) if is_noisy(task.model) and task.column != "transfer" else 1
    return _identity(entry) | {
        "network": checkpoint.load(path, kind="evaluation")["identity"]["model"],
        "attack": task.column,
        "attack_title": column_title(task.column, settings),
        "n": score.n,
        "num_draws": score.num_draws,
        "eot_draws": None if task.column == "nat" else draws,
        "mean": score.mean,
        "vote": score.vote,
        "interval": [score.interval.low, score.interval.high],
        "confidence": score.confidence,
        "correct": "".join(_BASE36[count] for count in right),
        "oracle": "noise-free twin" if task.column == "transfer" else None,
        "provenance": json.loads(path.with_suffix(".json").read_text()),
    }


def _identity(entry: Entry) -> dict[str, Any]:
    setting, dataset, row, seed = entry.key
    config, num_parameters = describe(row, entry.job.settings)
    return {
        "setting": setting,
        "dataset": dataset,
        "row": row,
        "seed": seed,
        "job": entry.job.path.stem,
        "num_parameters": num_parameters,
        "num_members": len(config["members"]),
        "width": config["members"][0]["width"],
    }


if __name__ == "__main__":
    app()
