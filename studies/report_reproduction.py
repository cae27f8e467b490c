"""The reproduction's stored answers, put in the form of a table: accuracies, and what became of the paper's orderings.

Nothing is trained or attacked: from each image's number of right answers come paired differences with intervals over
images and seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import table1
import table2
import table4
import table5
import torch
from reproduce_queue import is_about_noise
from tables import Claim, Row, Table, as_printed, verdict
from torch import Tensor

from netkit.intervals import mean_accuracy, paired_difference

Fields = dict[str, Any]
Scores = dict[tuple[str, str], dict[int, Fields]]
"""By row and attack, then by seed."""

_PAPER = {
    ("cifar10", "pgd"): table2.TABLE,
    ("cifar10", "natural"): table1.TABLE,
    ("cifar100", "pgd"): table5.TABLE,
    ("cifar100", "natural"): table4.TABLE,
}
_FIRST = ("nat", "fgsm", "ifgsm20", "cw")


def tables(scores: Sequence[Fields], trainings: Sequence[Fields], settings: Mapping[str, Fields]) -> list[Fields]:
    """One table for each setting and data set, with the fields that studies/tables.py stores, and its trainings."""
    found = []
    for name, dataset in dict.fromkeys((line["setting"], line["dataset"]) for line in scores):
        own = [line for line in scores if (line["setting"], line["dataset"]) == (name, dataset)]
        trained = [line for line in trainings if (line["setting"], line["dataset"]) == (name, dataset)]
        found.append(_table(name, dataset, own, trained, settings.get(name, {})))
    return found


def _table(name: str, dataset: str, lines: Sequence[Fields], trained: Sequence[Fields], described: Fields) -> Fields:
    loss = trained[0]["config"]["loss"] if trained else "pgd"
    declared = _PAPER.get((dataset, loss), table2.TABLE)
    found: Scores = {}
    for line in lines:
        found.setdefault((line["row"], line["attack"]), {})[line["seed"]] = line
    titles = {line["attack"]: _short(line["attack_title"]) for line in lines}
    attacks = sorted(titles, key=lambda a: (_order(_FIRST, a), a))
    columns = {attack: titles[attack] for attack in attacks if not is_about_noise(attack)}
    names = [row.model for row in declared.rows]
    rows = sorted({line["row"] for line in lines}, key=lambda row: (_order(names, row), row))
    paper = _paper_values(declared, rows) if declared.paper_dataset == dataset else {}
    return {
        "setting": name,
        "anchor": f"setting-{name}-{dataset}",
        "dataset": dataset,
        "paper_dataset": declared.paper_dataset,
        "table": declared.name,
        "title": described.get("title", name),
        "caption": described.get("what", ""),
        "note": described.get("limits", ""),
        "columns": columns,
        "rows": [_row(row, columns, found, trained, paper.get(row, {})) for row in rows],
        "verdicts": verdicts(_claims(declared), columns, found, paper),
        "strengths": _strengths(rows, found),
        "attack_titles": titles,
        "stamps": [line["provenance"] for line in [*lines, *trained]],
    }


def _short(title: str) -> str:
    """A title fit for the head of a column: a long one without what is in brackets."""
    return title.partition(" (")[0] if len(title) > 30 else title


def _order(known: Sequence[str], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _paper_values(declared: Table, rows: Iterable[str]) -> dict[str, dict[str, float]]:
    known = {row.model: row for row in declared.rows}
    return {row: declared.paper_values(known.get(row, Row(row))) for row in rows}


def _claims(declared: Table) -> list[Claim]:
    """The table's own, and the controls of equal size that the reproduction adds to every table."""
    controls = [Claim(f"En{n}ResNet20", f"{kind}{n}ResNet20") for n in (2, 5) for kind in ("Plain", "Wide")]
    return list(dict.fromkeys([*(replace(claim, columns=None) for claim in declared.claims), *controls]))


def _row(
    row: str, columns: Iterable[str], found: Scores, trained: Sequence[Fields], paper: Mapping[str, float]
) -> Fields:
    first = next(line for (name, _), by_seed in found.items() if name == row for line in by_seed.values())
    seeds = sorted({seed for (name, _), by_seed in found.items() if name == row for seed in by_seed})
    own = {line["seed"]: line for line in trained if line["row"] == row}
    return {
        "model": row,
        "paper_model": row,
        "oracle": None,
        "loss": first.get("loss", "pgd"),
        "num_members": first["num_members"],
        "num_parameters": first["num_parameters"],
        "paper": dict(paper),
        "cells": {attack: _cell(found[row, attack]) for attack in columns if (row, attack) in found},
        "runs": [
            {
                "seed": seed,
                "networks": [own[seed]] if seed in own else [],
                "cells": {a: found[row, a][seed] for a in columns if seed in found.get((row, a), {})},
            }
            for seed in seeds
        ],
    }


def right_answers(line: Fields) -> Tensor:
    """(n,) float64: the share of draws in which each image was classified correctly; a base-36 digit an image."""
    counts = torch.tensor([int(digit, 36) for digit in line["correct"]], dtype=torch.float64)
    if len(counts) != line["n"] or not bool((counts <= line["num_draws"]).all()):
        raise ValueError(
            f"{line['row']}, {line['attack']}, seed {line['seed']}: expected {line['n']} counts of at most "
            f"{line['num_draws']} draws, got {len(counts)} and up to {int(counts.max())}"
        )
    return counts / line["num_draws"]


def _strengths(rows: Iterable[str], found: Scores) -> list[Fields]:
    """What it changes for each noisy network how IFGSM20 deals with noise: paired differences to its usual form."""
    out = []
    for row in rows:
        usual = found.get((row, "ifgsm20"), {})
        differences = {}
        for attack in [attack for name, attack in found if name == row and is_about_noise(attack)]:
            other = found[row, attack]
            if seeds := sorted(usual.keys() & other.keys()):
                n = min(by_seed[seed]["n"] for by_seed in (usual, other) for seed in seeds)
                ours, theirs = ([right_answers(by_seed[seed])[:n] for seed in seeds] for by_seed in (other, usual))
                found_here = paired_difference(ours, theirs)
                differences[attack] = {
                    "mean": found_here.mean,
                    "interval": [found_here.interval.low, found_here.interval.high],
                    "n": found_here.n,
                    "num_seeds": found_here.num_seeds,
                }
        if differences:
            draws = next(iter(usual.values()))["eot_draws"]
            out.append({"model": row, "eot_draws": draws, "differences": differences})
    return out


def _cell(by_seed: Mapping[int, Fields]) -> Fields:
    lines = list(by_seed.values())
    shared = min(line["n"] for line in lines)
    correct = [right_answers(line)[:shared] for line in lines]
    interval = mean_accuracy(correct)
    return {
        "mean": float(torch.stack(correct).mean()),
        "vote": sum(line["vote"] for line in lines) / len(lines),
        "interval": [interval.low, interval.high],
        "confidence": interval.confidence,
        "n": shared,
        "num_draws": lines[0]["num_draws"],
        "num_seeds": len(lines),
        "oracle": lines[0]["oracle"],
    }


def verdicts(
    claims: Iterable[Claim], columns: Iterable[str], found: Scores, paper: Mapping[str, Mapping[str, float]]
) -> list[Fields]:
    """Each claim under each attack, on the images and seeds that both rows have; turned where the paper's numbers are.

    Images are the first of the test set, so that fewer of them are the beginning of more.
    """
    out = []
    for claim in claims:
        for attack in columns:
            better, worse, printed = as_printed(claim, attack, paper)
            both = found.get((better, attack), {}), found.get((worse, attack), {})
            seeds = sorted(both[0].keys() & both[1].keys())
            if not seeds:
                continue
            n = min(by_seed[seed]["n"] for by_seed in both for seed in seeds)
            first, second = ([right_answers(by_seed[seed])[:n] for seed in seeds] for by_seed in both)
            out.append(verdict(better, worse, attack, printed, first, second))
    return out
