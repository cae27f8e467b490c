"""What this project promises of its own numbers, measured: false alarms, coverage, orders, damage, rounding, threads.

A row is a promise, the number that was measured, its standard error and a verdict: it holds where three standard errors
around the number lie within what was promised, does not hold where they lie outside, and the cases were too few where
they do both. Tests hold the same promises at a size that takes seconds; here errors of a percent show. Rows are kept as
they are measured: the same command continues an interrupted run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from studies.certificate.rows import ROWS
from studies.lab.promises import FAILS, HOLDS, run
from studies.lab.reporting import (
    OUT,
    InputError,
    Out,
    Seed,
    Smoke,
    at_least,
    console,
    one_line_errors,
    show,
    store,
)
from studies.report import environment

# Parameters


@dataclass(frozen=True)
class Config:
    share: float = 1.0  # of the cases of each row
    seed: int = 0
    only: str = ""  # rows whose group or name has this in it


SMOKE_SHARE = 0.0  # the least of each row

ShareOfCases = Annotated[float, typer.Option(help="of the cases of each row, above 0 and up to 1")]
Only = Annotated[str, typer.Option(help="only rows whose group or name has this in it")]


def main(
    seed: Seed = 0,
    out: Out = OUT / "certify",
    share: ShareOfCases = 1.0,
    only: Only = "",
    smoke: Smoke = False,
) -> None:
    """Measure; write certify.json, and certify.html from it."""
    with one_line_errors():
        at_least(0, seed=seed)
        if not 0 < share <= 1:
            raise InputError(f"--share: expected a number above 0 and up to 1, got {share}")
        config = Config(SMOKE_SHARE if smoke else share, seed, only)
        rows = [row for row in ROWS if only in row.group or only in row.name]
        if not rows:
            raise InputError(f"--only: expected a part of the name of a row, got {only!r}")
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows measure what warnings are about
            measured = run(rows, out / "rows", share=config.share, seed=seed)
        stored = store(out / "certify.json", {"rows": measured}, config)
        report(stored)
        write_page(stored, out)
        console.print(f"wrote certify.html and certify.json in {out}")


# What is shown


def report(stored: dict[str, Any]) -> None:
    """Print the rows."""
    colours = {HOLDS: "green", FAILS: "red"}
    columns: dict[str, Any] = {
        "promise of": lambda row: f"{row['group']}: {row['name']}",
        "promised": "{promise}",
        "measured": number_of,
        "n": "{n:,}",
        "verdict": lambda row: f"[{colours.get(row['verdict'], 'yellow')}]{row['verdict'] or 'no promise'}[/]",
    }
    show("Promises and measurements", columns, stored["rows"], num_texts=2)


def number_of(row: dict[str, Any]) -> str:
    error = f" ± {row['standard_error']:.2g}" if row["standard_error"] else ""
    return f"{row['value']:.4g}{error}"


def write_page(stored: dict[str, Any], out: Path) -> None:
    """Write certify.html from the stored numbers alone."""
    groups = {name: [row for row in stored["rows"] if row["group"] == name] for name in TITLES}
    template = environment(autoescape=True).get_template("certify.html")
    page = template.render(stored=stored, groups=groups, titles=TITLES, number_of=number_of)
    (out / "certify.html").write_text(page, encoding="utf-8")


TITLES = {
    "verify": "Verdicts of verify",
    "intervals": "Coverage of intervals",
    "orders": "Orders, adjoints and densities",
    "damage": "Damaged files",
    "rounding": "float32 beside float64",
    "bits": "The same bits",
}


if __name__ == "__main__":
    typer.run(main)
