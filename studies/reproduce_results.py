"""The files of the reproduction's results: a line for each training and each attack, with the setting they belong to.

Lines are merged under a lock, and what an older definition of a setting or another network left does not stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import (
    EvaluateTask,
    Job,
    TrainTask,
    column_title,
    describe,
    eot_draws,
    is_noisy,
    load_data,
    network_fingerprint,
    selected,
)
from reporting import InputError, read_object, read_objects, write_json, write_whole
from reproduce_queue import ON_REQUEST, QUEUE, SETTINGS, Entry, entries_of

from netkit import checkpoint, evaluate
from netkit.training import load_model

Line = dict[str, Any]
Key = tuple[str, str, str, int, str]
"""Setting, data set, row, seed and attack, which is empty for a training."""
_ORDER = ("setting", "dataset", "row", "attack", "seed")
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


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
    described = read_object(path) if path.exists() else {}
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
    stored = read_objects(path) if path.exists() else []
    try:
        found = {_key(line): line for line in [*stored, *new] if stays(line)}
    except KeyError as error:
        raise InputError(f"{path} holds a line without {error}") from None
    lines = sorted(found.values(), key=lambda line: [line.get(name, "") for name in _ORDER])
    content = "".join(json.dumps(line) + "\n" for line in lines)
    if not path.exists() or content != path.read_text(encoding="utf-8"):
        write_whole(path, content.encode())
    return lines


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
        "peak_lr": tree["provenance"]["batch"]["peak_lr"],
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
        "provenance": read_object(path.with_suffix(".json")),
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
