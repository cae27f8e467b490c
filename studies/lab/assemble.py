"""Assemble a table from records: accuracies with their intervals, and a verdict on each claim."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from netkit.evaluate import Score, worst_case
from netkit.intervals import mean_accuracy, paired_difference
from studies.lab.attacks import ATTACKS
from studies.lab.declared import Claim, Row, Table
from studies.lab.networks import Network, on_dataset, stand_ins
from studies.lab.records import Record, Records, right_answers
from studies.lab.reporting import without_folder

Fields = dict[str, Any]
BySeed = Mapping[int, Record]
PARTS = {"accuracy": "training, attacked", "val_robust": "validation, attacked", "val_natural": "validation, clean"}
"""The curves of a training's history, and what they show."""
WORST = "worst"
"""Among the attacks of a table: for each image the worst of the others, in rows that have them all."""
Scores = Mapping[str, Mapping[str, BySeed]]
"""By label of the row, attack and seed."""


@dataclass(frozen=True)
class Where:
    """The data set and the setting whose records make a table."""

    dataset: str
    setting: str

    def has(self, record: Record) -> bool:
        return (record["dataset"], record["setting"]) == (self.dataset, self.setting)


def table(declared: Table, rows: Sequence[Row], records: Records, where: Where) -> Fields:
    """The numbers of `rows`, fit for JSON.

    Claims are decided on the images and seeds that both rows have. Images are the first of the test set, so that fewer
    of them are the beginning of more.
    """
    found = {row.label: scores_of(row, declared, records, where) for row in rows}
    if WORST in declared.attacks:
        known = {attack for row in found.values() for attack in row}
        harmful = [attack for attack in declared.attacks if attack != "nat" and attack in known]
        found = {label: row | _worst_of(row, harmful) for label, row in found.items()}
    by_attack = {attack: line for row in found.values() for attack, by_seed in row.items() for line in by_seed.values()}
    titles = {attack: line["title"] for attack, line in by_attack.items()}
    columns = {attack: _short(titles[attack]) for attack in declared.attacks if attack in titles}
    entries = [_row(declared, row, found[row.label], records, where) for row in rows]
    paper = {row.label: declared.paper_values(row) for row in rows}
    stamps = [line["provenance"] for row in found.values() for by_seed in row.values() for line in by_seed.values()]
    stamps += [line["provenance"] for entry in entries for run in entry["runs"] for line in run["networks"]]
    return {
        "table": declared.name,
        "title": declared.title,
        "caption": declared.caption,
        "dataset": where.dataset,
        "setting": where.setting,
        "paper_dataset": declared.dataset,
        "note": _digits_note(rows) if where.dataset == "digits" else "",
        "columns": columns,
        "rows": entries,
        "verdicts": [
            found_here | {side: on_dataset(found_here[side], where.dataset) for side in ("better", "worse")}
            for found_here in verdicts(declared.claims, columns, found, paper)
        ],
        "strengths": [found_here for row in rows if (found_here := _ways_with_noise(row, found[row.label], where))],
        "attack_titles": titles,
        "stamps": origins(stamps),
    }


def _short(title: str) -> str:
    """A title fit for the head of a column: a long one without what is in brackets."""
    return title.partition(" (")[0] if len(title) > 30 else title


def _ways_with_noise(row: Row, found: Mapping[str, BySeed], where: Where) -> Fields | None:
    """Paired differences between other ways in which IFGSM20 deals with a network's noise and its usual one."""
    usual = found.get("ifgsm20", {})
    differences = {}
    for attack, by_seed in found.items():
        if attack != WORST and ATTACKS[attack].is_about_noise and (seeds := sorted(usual.keys() & by_seed.keys())):
            differences[attack] = compare([by_seed[seed] for seed in seeds], [usual[seed] for seed in seeds])
    if not differences:
        return None
    draws = next(iter(usual.values()))["eot_draws"]
    return {"model": on_dataset(row.label, where.dataset), "eot_draws": draws, "differences": differences}


def scores_of(row: Row, declared: Table, records: Records, where: Where) -> dict[str, dict[int, Record]]:
    """The scores of a row, by attack and seed."""
    oracle = row.oracle and on_dataset(row.oracle, where.dataset)
    loss, model = row.loss or declared.loss, on_dataset(row.model, where.dataset)
    found: dict[str, dict[int, Record]] = {}
    for line in records.scores:
        attacked = "noise-free twin" if ATTACKS[line["attack"]].on_twin else oracle
        asked = (model, attacked, loss, row.weights)
        if where.has(line) and asked == tuple(line[n] for n in ("network", "oracle", "loss", "member_weights")):
            by_seed = found.setdefault(line["attack"], {})
            by_seed[line["seed"]] = max(by_seed.get(line["seed"], line), line, key=_tells)
    return found


def _tells(line: Record) -> tuple[int, int, int, str]:
    """The order of scorings of one network and attack: the one on most images counts, then the one of most draws."""
    return line["n"], line["eot_draws"], line["num_draws"], line["job"]


def _worst_of(found: Mapping[str, BySeed], attacks: Sequence[str]) -> dict[str, dict[int, Record]]:
    """The worst case of a row over several attacks, by seeds whose network was scored under all of them."""
    by_attack = [found.get(attack, {}) for attack in attacks]
    if len(by_attack) < 2:
        return {}
    worst: dict[int, Record] = {}
    for seed in sorted(set.intersection(*map(set, by_attack))):
        lines = [by_seed[seed] for by_seed in by_attack]
        if all(line[name] == lines[0][name] for line in lines for name in ("trainings", "num_draws")):
            worst[seed] = _worst_line(lines)
    return {WORST: worst} if worst else {}


def _worst_line(lines: Sequence[Record]) -> Record:
    """The record of the worst case of several attacks on one network, on the images that all have.

    Records count the draws that were right, and `netkit.evaluate.worst_case` lets some draws pick the attack that
    others score. Draws are alike, so which of them were right is drawn here. A vote needs their answers: there is none.
    """
    n, generator = min(line["n"] for line in lines), torch.Generator().manual_seed(0)
    scores = []
    for line in lines:
        order = torch.rand(line["num_draws"], n, generator=generator).argsort(0)
        is_right = order < torch.tensor(line["correct"][:n])
        scores.append(Score(is_right.long(), torch.ones(n, dtype=torch.int64)))
    return lines[0] | {
        "attack": WORST,
        "title": f"worst case ({', '.join(line['title'] for line in lines)})",
        "eot_draws": max(line["eot_draws"] for line in lines),
        "n": n,
        "vote": None,
        "seconds": None,
        "correct": worst_case(scores).predictions.sum(0).tolist(),
    }


def _row(declared: Table, row: Row, found: Mapping[str, BySeed], records: Records, where: Where) -> Fields:
    network, loss = row.network.on(where.dataset), row.loss or declared.loss
    cells = {attack: found[attack] for attack in declared.attacks if attack in found}
    trained = {
        seed: [records.training_of[job] for job in line["trainings"] if job in records.training_of]
        for by_seed in cells.values()
        for seed, line in by_seed.items()
    } or _best_trainings(network, loss, records, where)
    own = {part.name for part, _ in network.trained(0)}
    networks = [line for line in next(iter(trained.values()), []) if line["network"] in own]
    return {
        "model": on_dataset(row.label, where.dataset),
        "paper_model": row.model,
        "oracle": row.oracle and on_dataset(row.oracle, where.dataset),
        "loss": loss,
        "num_members": network.num_averaged,
        "num_parameters": sum(line["num_parameters"] for line in networks),
        "paper": declared.paper_values(row),
        "cells": {attack: _cell(list(by_seed.values())) for attack, by_seed in cells.items()},
        "runs": [
            {
                "seed": seed,
                "networks": networks,
                "cells": {a: _cell([by_seed[seed]]) for a, by_seed in cells.items() if seed in by_seed},
            }
            for seed, networks in sorted(trained.items())
        ],
    }


def _best_trainings(network: Network, loss: str, records: Records, where: Where) -> dict[int, list[Record]]:
    """By seed, of all learning rates the training that did best on validation."""
    found: dict[int, list[Record]] = {}
    for line in records.trainings:
        if where.has(line) and (line["network"], line["loss"]) == (network.name, loss):
            found.setdefault(line["seed"], []).append(line)
    return {seed: [max(lines, key=lambda line: line["validation"] or 0.0)] for seed, lines in found.items()}


def _cell(lines: Sequence[Record]) -> Fields:
    """Accuracy over seeds, on the images that all have."""
    n = min(line["n"] for line in lines)
    correct = [right_answers(line)[:n] for line in lines]
    interval = mean_accuracy(correct)
    seconds = [line["seconds"] for line in lines if line.get("seconds") is not None]  # older records lack them
    return {
        "mean": float(torch.stack(correct).mean()),
        "vote": None if lines[0]["vote"] is None else sum(line["vote"] for line in lines) / len(lines),
        "interval": [interval.low, interval.high],
        "confidence": interval.confidence,
        "n": n,
        "num_draws": lines[0]["num_draws"],
        "eot_draws": lines[0]["eot_draws"],
        "num_seeds": len(lines),
        "seconds": sum(seconds) / len(lines) if len(seconds) == len(lines) else None,
    }


def verdicts(
    claims: Iterable[Claim], attacks: Iterable[str], found: Scores, paper: Mapping[str, Mapping[str, float]]
) -> list[Fields]:
    """Judge each claim under each attack; one is turned where the paper's own numbers order its rows the other way."""
    attacks, out = list(attacks), []
    for claim in claims:
        for attack in claim.attacks or attacks:
            better, worse, printed = _as_printed(claim, attack, paper)
            first, second = (found.get(label, {}).get(attack, {}) for label in (better, worse))
            seeds = sorted(first.keys() & second.keys())
            if seeds:
                compared = compare([first[seed] for seed in seeds], [second[seed] for seed in seeds])
                names = {"better": better, "worse": worse, "column": attack}
                out.append(names | compared | {"paper_difference": printed})
    return out


def _as_printed(claim: Claim, attack: str, paper: Mapping[str, Mapping[str, float]]) -> tuple[str, str, float | None]:
    """(better, worse, difference): the rows of `claim` as the paper orders them, where it has numbers."""
    better, worse = claim.better, claim.worse
    if attack not in paper.get(better, {}) or attack not in paper.get(worse, {}):
        return better, worse, None
    printed = paper[better][attack] - paper[worse][attack]
    return (worse, better, -printed) if printed < 0 else (better, worse, printed)


def compare(first: Sequence[Record], second: Sequence[Record]) -> Fields:
    """Accuracy of `first` over that of `second`, seed by seed on the images that all have."""
    n = min(line["n"] for line in (*first, *second))
    difference = paired_difference(*([right_answers(line)[:n] for line in side] for side in (first, second)))
    return {
        "difference": difference.mean,
        "interval": [difference.interval.low, difference.interval.high],
        "confidence": difference.interval.confidence,
        "verdict": difference.verdict,
        "n": difference.n,
        "num_seeds": difference.num_seeds,
    }


def origins(stamps: Iterable[Mapping[str, Any]]) -> list[Fields]:
    """List each way in which networks were trained and attacked once: a table may come from several runs."""
    found: dict[str, Fields] = {}
    for stamp in sorted(stamps, key=lambda stamp: stamp["created"]):
        known = {name: stamp[name] for name in ("command", "commit", "versions", "device", "cpu")}
        known["command"] = shlex.join(map(without_folder, shlex.split(stamp["command"])))
        found.setdefault(json.dumps(known, sort_keys=True), known | {"config": {}, "created": stamp["created"]})
    return list(found.values())


def _digits_note(rows: Sequence[Row]) -> str:
    names = " ".join(name for row in rows for name in (row.model, row.oracle) if name)
    return "; ".join([*stand_ins(names), "width 8 for 16"]) + "."


def curve_of(row: Fields, part: str) -> tuple[dict[float, list[float]], list[tuple[float, float]]]:
    """The accuracies in % of a row's seeds by epoch, counted from 1; and (epoch, accuracy) of each that was selected.

    part: of PARTS. Epochs are those that all seeds have; in training, attacked, none was selected.
    """
    networks = [run["networks"][0] for run in row["runs"] if run["networks"]]
    curves = [
        {epoch["epoch"] + 1: 100 * epoch[part] for epoch in network["history"] if epoch[part] is not None}
        for network in networks
    ]
    chosen = [(network["selected_epoch"], curve) for network, curve in zip(networks, curves, strict=True)]
    selected = [(epoch, curve[epoch]) for epoch, curve in chosen if part != "accuracy" and epoch in curve]
    shared = sorted(set.intersection(*map(set, curves)))
    return {epoch: [curve[epoch] for curve in curves] for epoch in shared}, selected
