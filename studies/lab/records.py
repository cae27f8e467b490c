"""The one record format: a line for each training and for each (network, training, attack, seed), with provenance.

A finished task leaves its record as JSON beside its checkpoint or predictions. `merge` gathers records in a folder of
results: trainings.jsonl, scores.jsonl, and outcomes.jsonl with what became of each image. Tables, verdicts and pages
are queries over these lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdekit.runtime.files import write_whole
from studies.lab.networks import Network
from studies.lab.reporting import InputError, read_object, read_objects, write_json
from studies.lab.tasks import Scoring, Task, Training

Record = dict[str, Any]

_FILES = ("trainings.jsonl", "scores.jsonl", "outcomes.jsonl")
_BEGUN = "merge.json"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"

_NUMBER, _NONE = (int, float), type(None)
_COMMON: dict[str, Any] = {
    "job": str,
    "dataset": str,
    "network": str,
    "seed": int,
    "loss": str,
    "setting": str,
    "provenance": dict,
}
_FIELDS: dict[str, dict[str, Any]] = {
    "training": _COMMON
    | {
        "lr": _NUMBER,
        "peak_lr": _NUMBER,
        "num_parameters": int,
        "num_train": int,
        "weights": str,
        "validation": (*_NUMBER, _NONE),
        "selected_epoch": int,
        "history": list,
        "member_weights": (dict, _NONE),
    },
    "score": _COMMON
    | {
        "attack": str,
        "title": str,
        "oracle": (str, _NONE),
        "member_weights": str,
        "eot_draws": int,
        "num_draws": int,
        "n": int,
        "vote": _NUMBER,
        "trainings": dict,
    },
    "outcome": {"job": str, "correct": (str, list)},
}
"""What readers rely on; `None` stands where there is no validation, no oracle, or no members."""
_OF_TASKS = {
    kind: {name: _FIELDS[kind][name] for name in names}
    for kind, names in (("training", ("job", "validation", "weights")), ("score", ("job", "trainings")))
}
"""What tells whether a task is done."""


# Of single tasks


def record_path(task: Task) -> Path:
    return task.path.with_suffix(".json")


def write(task: Task, record: Record) -> None:
    """Leave the record of a finished task."""
    write_json(record_path(task), {"job": task.path.stem} | record)


def of(task: Task) -> Record | None:
    """The record of a finished task, None while it is not; raises InputError for a damaged one."""
    path = record_path(task)
    return _checked(path, [read_object(path)], _OF_TASKS)[0] if path.exists() else None


def best(network: Network, seed: int, trainings: Iterable[Training]) -> tuple[Training, Record]:
    """The training of `network` whose learning rate did best on validation, and its record.

    Raises FileNotFoundError where none is trained yet.
    """
    asked = [task for task in trainings if (task.network, task.seed) == (network, seed)]
    finished = [(task, record) for task in asked if (record := of(task)) is not None]
    if not finished:
        raise FileNotFoundError(f"{network} is not trained yet in {asked[0].settings.out if asked else 'this folder'}")
    return max(finished, key=lambda pair: pair[1]["validation"] or 0.0)


def chosen(task: Scoring) -> list[tuple[Training, Record]]:
    """The trainings whose networks `task` scores or attacks, each the best of its learning rates."""
    pairs = dict.fromkeys((training.network, training.seed) for training in task.trainings)
    return [best(*pair, task.trainings) for pair in pairs]


def is_done(task: Task) -> bool:
    """True where the result of `task` is on disk and its networks have not been trained anew since."""
    record = of(task)
    if record is None or isinstance(task, Training):
        return record is not None and task.path.exists()
    if not all(of(training) for training in task.trainings):
        return True  # its networks are elsewhere
    return record["trainings"] == {training.path.stem: stored["weights"] for training, stored in chosen(task)}


# Of many


@dataclass(frozen=True)
class Records:
    """The lines of a folder of results, or of the output of one run."""

    trainings: Sequence[Record]
    scores: Sequence[Record]

    @cached_property
    def training_of(self) -> dict[str, Record]:
        """By the stem of the file."""
        return {record["job"]: record for record in self.trainings}


def of_tasks(tasks: Iterable[Task]) -> Records:
    """The records of those that are finished."""
    found = [(task, record) for task in dict.fromkeys(tasks) if (record := of(task)) is not None]
    return Records(
        [record for task, record in found if isinstance(task, Training)],
        [record for task, record in found if isinstance(task, Scoring)],
    )


def right_answers(record: Record) -> Tensor:
    """(n,) float64: the share of draws in which each image was classified correctly."""
    counts = torch.tensor(record["correct"], dtype=torch.float64)
    if len(counts) != record["n"] or not bool((counts <= record["num_draws"]).all()):
        raise InputError(
            f"{record['job']}: expected {record['n']} counts of at most {record['num_draws']} draws, got {len(counts)} "
            f"and up to {int(counts.max())}"
        )
    return counts / record["num_draws"]


def read(folder: Path) -> Records:
    """All lines of a folder of results; none where it is empty. Raises InputError for a damaged line."""
    if not folder.is_dir():
        return Records([], [])
    with _locked(folder, fcntl.LOCK_SH):
        return _read(folder)


def _read(folder: Path) -> Records:
    begun = folder / _BEGUN
    if begun.exists():  # a merge that was killed between two of the files
        whole = read_object(begun)
        lines = [whole[name] for name in _FILES]
    else:
        lines = [read_objects(path) if (path := folder / name).exists() else [] for name in _FILES]
    trainings, scores, outcomes = (_checked(folder / name, each) for name, each in zip(_FILES, lines, strict=True))
    try:
        correct = {line["job"]: [_BASE36.index(digit) for digit in line["correct"]] for line in outcomes}
    except ValueError:
        raise InputError(f"{folder / _FILES[2]} is damaged: expected digits of base 36") from None
    if missing := [record["job"] for record in scores if record["job"] not in correct]:
        raise InputError(f"{folder / _FILES[2]}: expected a line for {missing[0]}, got none")
    return Records(trainings, [record | {"correct": correct[record["job"]]} for record in scores])


def merge(new: Records, folder: Path) -> None:
    """Put records into the files of `folder`, each over the older one of its job; several runs may do so at once.

    Scores of a network that has been trained anew since go.
    """
    with _locked(folder):
        old = _read(folder)
        trainings = {record["job"]: record for record in [*old.trainings, *new.trainings]}
        scores = {record["job"]: record for record in [*old.scores, *new.scores]}

        def is_current(record: Record) -> bool:
            return all(trainings.get(job, {"weights": w})["weights"] == w for job, w in record["trainings"].items())

        kept = [scores[job] for job in sorted(scores) if is_current(scores[job])]
        outcomes = [{"job": r["job"], "correct": "".join(_BASE36[count] for count in r["correct"])} for r in kept]
        bare = [{name: value for name, value in record.items() if name != "correct"} for record in kept]
        # all in one file first, which is there or not: the three would differ where a kill comes between them
        whole = dict(zip(_FILES, ([trainings[job] for job in sorted(trainings)], bare, outcomes), strict=True))
        write_json(folder / _BEGUN, whole)
        for name, lines in whole.items():
            write_whole(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())
        (folder / _BEGUN).unlink()


@contextlib.contextmanager
def _locked(folder: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Keep other processes, or with `LOCK_SH` those that write, out of the results in `folder`.

    The system lets go of it where a process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _checked(path: Path, records: list[Record], fields: Mapping[str, Mapping[str, Any]] = _FIELDS) -> list[Record]:
    for number, record in enumerate(records, 1):
        kind = "score" if "trainings" in record else "outcome" if "correct" in record else "training"
        for name, types in fields[kind].items():
            if not isinstance(record.get(name), types):
                got = json.dumps(record.get(name))[:40] if name in record else "none"
                raise InputError(f"{path}, line {number}, is damaged: expected {name} of a {kind}, got {got}")
    return records
