"""Promises held against measurements: rows with errors and verdicts, kept one by one so that a run continues."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from studies.lab.reporting import provenance, read_object, tracked, write_json

SIGMAS = 3.0  # standard errors on both sides of a measured number
LEVEL = float(2 * special.ndtr(SIGMAS) - 1)
HOLDS, FAILS, TOO_FEW = "holds", "does not hold", "too few"


@dataclass(frozen=True)
class Measured:
    """A number from n cases, its standard error, the interval at `LEVEL` that it lies in, and what else was seen."""

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    note: str = ""


def share(hits: ArrayLike, note: str = "") -> Measured:
    """Of cases (n,) True or False, with Clopper and Pearson's interval."""
    cases = np.asarray(hits, dtype=bool).ravel()
    n, k = len(cases), int(cases.sum())
    tail = (1 - LEVEL) / 2
    low = float(special.betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(special.betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Measured(k / n, math.sqrt(k / n * (1 - k / n) / n), low, high, n, note)


def mean(values: ArrayLike, note: str = "") -> Measured:
    """Of independent numbers (n,), with Student's interval."""
    found = np.asarray(values, dtype=np.float64).ravel()
    n = len(found)
    error = float(found.std(ddof=1)) / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    return Measured(float(found.mean()), error, float(found.mean()) - half, float(found.mean()) + half, n, note)


def exact(value: float, n: int, note: str = "") -> Measured:
    """A number without a sampling error: a sum over all cases, or a count of what must never be."""
    return Measured(float(value), 0.0, float(value), float(value), n, note)


def order(steps: ArrayLike, errors: ArrayLike, errors_of_errors: ArrayLike | None = None) -> Measured:
    """Minus the slope of log error in log steps, with the error of the fit, or that of the errors if it is larger."""
    x, y = np.log(np.asarray(steps, dtype=np.float64)), np.log(np.abs(np.asarray(errors, dtype=np.float64)))
    away = x - x.mean()
    weights = away / (away**2).sum()
    slope = float(weights @ y)
    fitted = y.mean() + slope * away
    scatter = math.sqrt(float(((y - fitted) ** 2).sum()) / max(1, len(x) - 2) / float((away**2).sum()))
    sampling = 0.0
    if errors_of_errors is not None:
        sampling = math.sqrt(float(((weights * np.asarray(errors_of_errors) / np.asarray(errors)) ** 2).sum()))
    error = max(scatter, sampling)
    half = SIGMAS * error
    return Measured(-slope, error, -slope - half, -slope + half, len(x), "between " + _between(steps) + " steps")


def _between(steps: ArrayLike) -> str:
    found = np.asarray(steps)
    return f"{found.min():g} and {found.max():g}"


@dataclass(frozen=True)
class Row:
    """A promise, and how it is measured.

    group, name: where the row stands, and what it is called. promise: in words. allowed: the range that the promise
        leaves to the measured number; None for numbers that nothing was promised of.
    cases: how many at share 1; least: how many at any share. measure: (cases, seed) -> Measured.
    """

    group: str
    name: str
    promise: str
    allowed: tuple[float, float] | None
    cases: int
    measure: Callable[[int, int], Measured]
    least: int = 1

    def size(self, share: float) -> int:
        return max(min(self.least, self.cases), math.ceil(share * self.cases))


def verdict(measured: Measured, allowed: tuple[float, float] | None) -> str | None:
    """Whether the interval lies within what is allowed, apart from it, or across its border: cases too few to tell."""
    if allowed is None:
        return None
    low, high = allowed
    if low <= measured.low and measured.high <= high:
        return HOLDS
    return FAILS if measured.high < low or measured.low > high else TOO_FEW


def run(rows: Sequence[Row], folder: Path, *, share: float, seed: int) -> list[dict[str, Any]]:
    """Measure the rows that `folder` does not have of this commit and seed with as many cases; return all, in order.

    Each row is a file of its own, written when it is done.
    """
    found = []
    for row in tracked(rows, "measuring"):
        path = folder / f"{row.group}-{row.name}.json".replace(" ", "_").replace("/", "_")
        cases = row.size(share)
        stamp = provenance({"cases": cases, "seed": seed})
        stored = read_object(path) if path.exists() else {}
        if not _is_current(stored, stamp):
            start = time.perf_counter()
            measured = row.measure(cases, seed)
            seconds = time.perf_counter() - start
            stored = asdict(measured) | {"seconds": round(seconds, 2), "share": share, "provenance": stamp}
            write_json(path, stored)
        said = {"group": row.group, "name": row.name, "promise": row.promise, "allowed": row.allowed, "seed": seed}
        found.append(said | stored | {"verdict": verdict(Measured(**{k: stored[k] for k in FIELDS}), row.allowed)})
    return found


FIELDS = tuple(Measured.__dataclass_fields__)


def _is_current(stored: dict[str, Any], stamp: dict[str, Any]) -> bool:
    old = stored.get("provenance")
    if old is None or any(old[key] != stamp[key] for key in ("commit", "versions")):
        return False
    return old["config"]["seed"] == stamp["config"]["seed"] and old["config"]["cases"] >= stamp["config"]["cases"]
