"""Draws a table's stored numbers on the terminal; reads the JSON file and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def draw(path: Path, console: Console) -> None:
    """Ours beside the paper's, and what became of the paper's orderings."""
    stored = json.loads(path.read_text())
    console.print(_accuracies(stored))
    if stored["verdicts"]:
        console.print(_orderings(stored))
        console.print(_conclusion(stored), highlight=False)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _accuracies(stored: dict[str, Any]) -> Table:
    table = Table(
        title=f"{stored['title']}: {stored['caption']} ({stored['dataset']})",
        caption=_conditions(stored),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("network", overflow="fold")
    table.add_column("size", justify="right")
    for title in stored["columns"].values():
        table.add_column(title, justify="right", no_wrap=True)
    for row in stored["rows"]:
        size = f"{row['num_parameters'] / 1e6:.2f}M"
        values = [_cell(row["cells"].get(column), row["paper"].get(column)) for column in stored["columns"]]
        table.add_row(row["model"] if row["oracle"] is None else f"{row['model']} < {row['oracle']}", size, *values)
    return table


def _cell(cell: dict[str, Any] | None, paper: float | None) -> str:
    if cell is None:
        return ""
    low, high = cell["interval"]
    ours = f"{100 * cell['mean']:.1f} ±{50 * (high - low):.1f}"
    return ours if paper is None else f"{ours}\n({paper:.1f})"


def _conditions(stored: dict[str, Any]) -> str:
    """Under which conditions the numbers of the table were obtained."""
    cells = [cell for row in stored["rows"] for cell in row["cells"].values()]
    config = stored["provenance"]["config"]
    draws = max(cell["num_draws"] for cell in cells)
    noisy = f"noisy networks scored over {draws} fresh draws"
    is_attacked = set(stored["columns"]) != {"nat"}
    if is_attacked:
        noisy += f" and attacked through EOT ({config['settings']['eot_draws']} draws)"
    parts = [
        f"Accuracy in %, with 95% intervals over n = {cells[0]['n']} test images and seeds "
        f"{', '.join(str(seed) for seed in config['seeds'])}; {noisy}."
    ]
    if any(row["paper"] for row in stored["rows"]):
        name = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[stored["paper_dataset"]]
        other = "" if stored["paper_dataset"] == stored["dataset"] else ", another task"
        parts.append(f"In brackets the paper's, which are on {name}{other}.")
    if is_attacked:
        parts.append(f"eps = {config['training']['eps']:.4g}.")
    if any(row["oracle"] for row in stored["rows"]):
        parts.append("A < B: A on images that attack B.")
    if any("+" in row["model"] for row in stored["rows"]):
        parts.append("A+B: trained apart, averaged.")
    return " ".join([*parts, stored["note"]]).strip()


def _orderings(stored: dict[str, Any]) -> Table:
    table = Table(
        title="Does the paper's ordering hold here?",
        caption="Paired 95% intervals of the difference, in points, over images and seeds; each stands alone, not "
        "adjusted for their number. Where the paper has no numbers its own network comes first.",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("claim", overflow="fold")
    for title in stored["columns"].values():
        table.add_column(title, justify="right", no_wrap=True)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    styles = {"holds": "green", "does not hold": "red", "undecided": "dim", "too few seeds": "dim"}
    for verdict in stored["verdicts"]:
        low, high = (100 * bound for bound in verdict["interval"])
        style = styles[verdict["verdict"]]
        text = f"{low:+.1f}..{high:+.1f}\n[{style}]{verdict['verdict']}[/{style}]"
        lines.setdefault((verdict["better"], verdict["worse"]), {})[verdict["column"]] = text
    for (better, worse), values in lines.items():
        table.add_row(f"{better}\n> {worse}", *(values.get(column, "") for column in stored["columns"]))
    return table


def _conclusion(stored: dict[str, Any]) -> str:
    count = Counter(verdict["verdict"] for verdict in stored["verdicts"])
    total = sum(count.values())
    reversed_ = [
        f"{v['worse']} is more accurate than {v['better']} under {stored['columns'][v['column']]}"
        for v in stored["verdicts"]
        if v["verdict"] == "does not hold"
    ]
    claims: dict[str, set[str]] = {}
    for verdict in stored["verdicts"]:
        claims.setdefault(f"{verdict['better']} over {verdict['worse']}", set()).add(verdict["verdict"])
    unsupported = [claim for claim, found in claims.items() if "holds" not in found]
    sentences = [
        f"On {stored['dataset']}, of {total} orderings {count['holds']} hold, {count['does not hold']} do not "
        f"(the reverse does), {count['undecided']} are undecided"
        + (f", {count['too few seeds']} have too few seeds to tell." if count["too few seeds"] else ".")
    ]
    if reversed_:
        sentences.append(f"Against the paper: {'; '.join(reversed_)}.")
    if unsupported:
        sentences.append(f"Shown in no column: {'; '.join(unsupported)}.")
    return " ".join(sentences)
