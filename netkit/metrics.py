"""Records of a training, step by step, and where to write them: a table, lines of JSON, TensorBoard.

`train(..., callbacks=[MetricsFile(Path("run.csv"))])` calls each callback with a `StepRecord` after every update and an
`EpochRecord` after every epoch. A run that goes on from a checkpoint repeats the updates after it; `MetricsFile` drops
what it wrote of those before, so that a resumed run leaves one line for each.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from netkit.checkpoint import write_whole


@dataclass(frozen=True)
class StepRecord:
    """One update: its number from 1, epoch from 0, rate of a single network, loss and accuracy on its batch."""

    step: int
    epoch: int
    lr: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: rate of a single network, loss and accuracy (on attacked images, unless natural), validation, time."""

    epoch: int
    lr: float
    loss: float
    accuracy: float
    val_natural: float | None
    val_robust: float | None
    seconds: float


Record = StepRecord | EpochRecord
Callback = Callable[[Record], None]

_COLUMNS = ("step", "epoch", "lr", "loss", "accuracy", "val_natural", "val_robust", "seconds")


class MetricsFile:
    """Writes each record as a line of `path`: a .csv with one table, or a .jsonl of objects.

    The lines of epochs are those without a step. Raises ValueError for another suffix.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"path: expected a name that ends with .csv or .jsonl, got {path}")
        self._is_open = False

    def __call__(self, record: Record) -> None:
        row = asdict(record)
        if not self._is_open:
            self._begin_before(row)
            self._is_open = True
        with self.path.open("a", newline="") as file:
            file.write(self._line(row))

    def _begin_before(self, first: dict[str, Any]) -> None:
        """Keep the lines of what comes before the row `first`, without those that a killed process left unfinished."""
        kept = [row for row in self._rows() if _place(row) < _place(first)]
        head = [",".join(_COLUMNS) + "\n"] if self.path.suffix == ".csv" else []
        write_whole(self.path, (line.encode() for line in (*head, *map(self._line, kept))))

    def _line(self, row: dict[str, Any]) -> str:
        if self.path.suffix == ".jsonl":
            return json.dumps({name: value for name, value in row.items() if value is not None}) + "\n"
        return ",".join("" if row.get(name) is None else repr(row[name]) for name in _COLUMNS) + "\n"

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        lines = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if self.path.suffix == ".jsonl":
            yield from map(json.loads, lines)
            return
        for row in csv.DictReader(lines):
            yield {name: json.loads(value) for name, value in row.items() if value}


def _place(row: dict[str, Any]) -> tuple[int, float]:
    """The order in which rows are written: the steps of an epoch, then its summary."""
    return row["epoch"], row.get("step", float("inf"))


class TensorBoard:
    """Writes the records for TensorBoard into `folder`, by torch's SummaryWriter: steps by step, validation by epoch.

    Raises ImportError without the library `tensorboard`.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils import tensorboard
        except ImportError as error:
            raise ImportError("TensorBoard: expected the library tensorboard, got none: install it") from error
        self._make = tensorboard.SummaryWriter
        self._folder = str(folder)
        self._writer: Any = None

    def __call__(self, record: Record) -> None:
        is_step = isinstance(record, StepRecord)
        place = record.step if isinstance(record, StepRecord) else record.epoch
        if self._writer is None:
            # what a run before wrote from this step on is repeated now
            self._writer = self._make(self._folder, purge_step=place if is_step else None)
        for name, value in asdict(record).items():
            if name not in ("step", "epoch") and value is not None:
                self._writer.add_scalar(f"{'step' if is_step else 'epoch'}/{name}", value, place)
        if not is_step:
            self._writer.flush()
