"""What became of each claim, decided from the stored numbers; claims.html says it in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from netkit.intervals import Interval, wilson
from studies.lab.networks import Kind, kind_of, labelled
from studies.page.results import DATASETS, Fields, against, of_the_paper
from studies.paper.figure4 import RANGES
from studies.paper.tables import TABLES

Status = Literal["reproduced", "partly", "not reproduced", "undecided"]

_RANGE_FACTOR = 1.25  # how far the span of a picture's colours may be from the paper's, whose field is another draw


@dataclass(frozen=True)
class Finding:
    """What became of a claim.

    name: of the macro in claims.html that words the claim, the evidence and, where it is known, the reason.
    told: the numbers that it tells.
    anchor: of the section that tells more; empty for that of the panel.
    is_ours: not a claim of the paper.
    """

    name: str
    status: Status
    told: Mapping[str, Any]
    is_ours: bool = False
    anchor: str = ""


# The equation


def of_the_network(stored: Fields) -> Iterator[Finding]:
    right, *wrong = stored["checks"]
    by_mean = [check["network"] for check in wrong if not check["agrees"]]
    by_path = [check["network"] for check in wrong if not check["follows"]]
    agree = sum(network["agrees"] for network in stored["networks"])
    is_right = right["agrees"] and right["follows"] and agree == len(stored["networks"])
    are_seen = by_mean and len(by_path) == len(wrong)
    told = {"stored": stored, "right": right, "agree": agree, "by_mean": by_mean, "by_path": by_path}
    yield Finding("estimate", "reproduced" if is_right and are_seen else "partly", told)

    first, last = stored["smoothing"][0], stored["smoothing"][-1]
    steeper = first["gradient"] / last["gradient"]
    told = {"first": first, "last": last, "steeper": steeper}
    yield Finding("smoothing", "reproduced" if steeper > 1 else "not reproduced", told)

    before, after = _flipped(first), _flipped(last)
    status: Status = (
        "reproduced" if after.high < before.low else "not reproduced" if after.low > before.high else "undecided"
    )
    yield Finding("flips", status, {"first": first, "last": last, "before": before, "after": after})


def _flipped(row: Fields) -> Interval:
    """Of the share that is flipped among the points that were right."""
    right = round(row["accuracy"] * row["points"])
    return wilson(row["flipped"] * right, right)


def of_figure4(stored: Fields) -> Iterator[Finding]:
    panels = stored["panels"]
    variations = [panel["total_variation"] for panel in panels]
    is_falling = variations == sorted(variations, reverse=True)
    yield Finding("level_sets", "reproduced" if is_falling else "not reproduced", {"panels": panels})

    ratios = [
        (panel["maximum"] - panel["minimum"]) / (high - low) for panel, (low, high) in zip(panels, RANGES, strict=True)
    ]
    off = [f"({letter})" for letter, r in zip("abc", ratios, strict=True) if max(r, 1 / r) > _RANGE_FACTOR]
    told = {"panels": panels, "printed": RANGES, "off": off, "factor": _RANGE_FACTOR}
    told["is_static"] = stored["provenance"]["config"]["velocity"] == "static"
    yield Finding("ranges", "partly" if off else "reproduced", told)


def of_theorems(stored: Fields) -> Iterator[Finding]:
    first, second, ramp = (stored["verdicts"][name] for name in ("theorem1", "theorem2", "ramp"))
    constants = [constant for line in first["steep"] for constant in line["constants"]]
    depends = max(constants) > 2 * min(constants)
    holds = first["envelope"]["finite"] and first["coupling"]["violations"] == 0
    status: Status = "not reproduced" if not holds else "partly" if depends else "reproduced"
    yield Finding("theorem1", status, {"first": first, "constants": constants, "depends": depends})

    told = {"second": second, "ramp": ramp}
    fails = second["bounds"]["printed"]["fails"] or ramp["fails"]["printed"]
    yield Finding("theorem2", "not reproduced" if fails else "reproduced", told)
    fails = second["bounds"]["best_mu"]["fails"] or ramp["fails"]["best_mu"]
    yield Finding("theorem2_redone", "not reproduced" if fails else "reproduced", told, is_ours=True)


def of_multilevel(stored: Fields) -> Iterator[Finding]:
    finest = {name: min(scheme["costs"], key=lambda row: row["rmse"]) for name, scheme in stored["schemes"].items()}
    best, plain = (min(row[cost] for row in finest.values()) for cost in ("cost", "plain_cost"))
    delivers = all(row["delivered"] <= row["rmse"] for scheme in stored["schemes"].values() for row in scheme["costs"])
    told = {"stored": stored, "finest": finest, "saving": plain / best, "delivers": delivers}
    yield Finding("multilevel", "reproduced" if delivers and plain > best else "partly", told, is_ours=True)


def of_constant_noise(stored: Fields) -> Iterator[Finding]:
    shares = [row["mean"]["one"] / row["mean"]["noise"] for row in stored["rows"]]
    yield Finding("constant_noise", "reproduced" if max(shares) < 0.1 else "partly", stored | {"shares": shares})


# The networks

_QUESTIONS: tuple[tuple[Kind, bool], ...] = (
    ("single", False),
    ("silent", False),
    ("wide", True),
    ("two-point", True),
    ("trainable", True),
    ("apart", True),
    ("smoothed", True),
)
"""The kinds of networks that noisy ensembles are set against, and whether it is we who ask."""


def of_cifar(tables: Sequence[Fields]) -> Iterator[Finding]:
    yield from _orderings(tables[0])
    for table in tables[1:]:
        yield from _of_the_paper([table], _where(table), table["anchor"])


def of_digits(tables: Sequence[Fields]) -> Iterator[Finding]:
    for table in tables:
        if table["table"] == "table2":
            yield from _orderings(table)
    others = [table for table in tables if table["table"] != "table2" and of_the_paper([table])]
    names = ", ".join(TABLES[table["table"]].title for table in others)
    yield from _of_the_paper(others, f"{names} on {DATASETS['digits']}")


def _where(table: Fields) -> str:
    return f"{table['title']} on {DATASETS[table['dataset']]}"


def _of_the_paper(tables: Sequence[Fields], where: str, anchor: str = "") -> Iterator[Finding]:
    """What became of the orderings of some tables that the paper's own numbers give, each counted once."""
    if found := of_the_paper(tables):
        yield Finding("orderings", status_of(found), {"tables": tables, "found": found, "where": where}, anchor=anchor)


def _orderings(table: Fields) -> Iterator[Finding]:
    yield from _of_the_paper([table], _where(table), table["anchor"])
    for kind, is_ours in _QUESTIONS:
        if found := against(table, kind):
            told = {"tables": [table], "found": found, "where": _where(table), "kind": kind}
            yield Finding("orderings", status_of(found), told, is_ours, table["anchor"])


def of_learning_rates(several: Sequence[Fields]) -> Iterator[Finding]:
    """Best peak rates by mean validation; what lies at the end of what was tried may lie beyond it."""
    for stored in several:
        rows = [row for row in stored["networks"] if kind_of(row["model"]) in ("single", "noisy")]
        sizes = {(labelled(row["model"]).family, row["members"]) for row in rows}
        families = [family for family, _ in sizes]
        best = [_best_rate(row) for row in rows if families.count(labelled(row["model"]).family) > 1]
        single, several_members = (
            [b["peak"] for b in best if (b["members"] > 1) is wanted] for wanted in (False, True)
        )
        if single and several_members:
            is_larger = min(several_members) > max(single)
            told = {"dataset": stored["dataset"], "best": best, "is_larger": is_larger}
            status: Status = "reproduced" if is_larger else "not reproduced"
            is_open = any(found["is_at_the_end"] for found in best)
            yield Finding("learning_rates", "undecided" if is_open else status, told, is_ours=True)


def _best_rate(row: Fields) -> Fields:
    validation = {rate["peak_lr"]: sum(rate["validation"]) / len(rate["validation"]) for rate in row["rates"]}
    peak, tried = max(validation, key=lambda rate: validation[rate]), sorted(validation)
    ends = tried[0], tried[-1]
    return row | {"peak": peak, "validation": validation[peak], "tried": ends, "is_at_the_end": peak in ends}


def status_of(verdicts: Sequence[Fields]) -> Status:
    """More than half of the orderings decide; where most cannot be told apart, that is the answer."""
    words = [found["verdict"] for found in verdicts]
    holding, reversed_ = words.count("holds"), words.count("does not hold")
    if holding == len(words):
        return "reproduced"
    if 2 * reversed_ > len(words):
        return "not reproduced"
    return "partly" if 2 * (holding + reversed_) >= len(words) else "undecided"
