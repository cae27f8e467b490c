"""Shows a table's stored numbers on the terminal; reads the JSON file and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.lab.reporting import console, show

Fields = dict[str, Any]

STYLES = {"holds": "green", "does not hold": "red"}


def draw(path: Path) -> None:
    """Ours beside the paper's, and what became of the paper's orderings."""
    stored = json.loads(path.read_text())
    columns = {title: f"{{cells[{name}]}}" for name, title in stored["columns"].items()}
    show(
        f"{stored['title']}: {stored['caption']} ({stored['dataset']})",
        {"network": "{name}", "size": "{size}"} | columns,
        _accuracies(stored),
        caption=_conditions(stored),
    )
    if stored["verdicts"]:
        show(
            "Does the paper's ordering hold here?",
            {"claim": "{name}"} | columns,
            _orderings(stored),
            caption="Paired 95% intervals of the difference, in points, over images and seeds; each stands alone, not "
            "adjusted for their number. Where the paper has no numbers its own network comes first.",
        )
        console.print(_conclusion(stored), highlight=False)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _accuracies(stored: Fields) -> Iterator[Fields]:
    for row in stored["rows"]:
        cells = dict.fromkeys(stored["columns"], "")
        for column, cell in row["cells"].items():
            low, high = cell["interval"]
            printed = f"\n({row['paper'][column]:.1f})" if column in row["paper"] else ""
            cells[column] = f"{100 * cell['mean']:.1f} ±{50 * (high - low):.1f}{printed}"
        name = row["model"] if row["oracle"] is None else f"{row['model']} < {row['oracle']}"
        yield {"name": name, "size": f"{row['num_parameters'] / 1e6:.2f}M", "cells": cells}


def _conditions(stored: Fields) -> str:
    """Under which conditions the numbers of the table were obtained."""
    cells = [cell for row in stored["rows"] for cell in row["cells"].values()]
    config = stored["provenance"]["config"]
    noisy = f"noisy networks scored over {max(cell['num_draws'] for cell in cells)} fresh draws"
    is_attacked = set(stored["columns"]) != {"nat"}
    if is_attacked:
        noisy += f" and attacked through EOT ({config['settings']['eot_draws']} draws)"
    seeds = ", ".join(map(str, config["seeds"]))
    parts = [f"Accuracy in %, with 95% intervals over n = {cells[0]['n']} test images and seeds {seeds}; {noisy}."]
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


def _orderings(stored: Fields) -> Iterator[Fields]:
    claims: dict[str, dict[str, str]] = {}
    for verdict in stored["verdicts"]:
        low, high = (100 * bound for bound in verdict["interval"])
        style = STYLES.get(verdict["verdict"], "dim")
        cells = claims.setdefault(f"{verdict['better']}\n> {verdict['worse']}", dict.fromkeys(stored["columns"], ""))
        cells[verdict["column"]] = f"{low:+.1f}..{high:+.1f}\n[{style}]{verdict['verdict']}[/{style}]"
    yield from ({"name": name, "cells": cells} for name, cells in claims.items())


def _conclusion(stored: Fields) -> str:
    verdicts = stored["verdicts"]
    count = Counter(verdict["verdict"] for verdict in verdicts)
    few = f", {count['too few seeds']} have too few seeds to tell" if count["too few seeds"] else ""
    return (
        f"On {stored['dataset']}, of {len(verdicts)} orderings {count['holds']} hold, {count['does not hold']} do not "
        f"(the reverse does), {count['undecided']} are undecided{few}."
    )
