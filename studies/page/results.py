"""The stored results, read once: each study by its name, the tables of the paper and what records say of rates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from studies.lab import assemble, records
from studies.lab.attacks import ATTACKS
from studies.lab.declared import Row, Table
from studies.lab.networks import REPEAT_SEED, Kind, Network, kind_of, labelled
from studies.lab.records import Record, Records
from studies.lab.reporting import read_object
from studies.paper.queue import SETTINGS
from studies.paper.tables import TABLES

Fields = dict[str, Any]

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "8×8 digits"}
_BY_VALUE = ("paper", "fast", "cpu-full", "cpu-narrow")  # settings, the one that tells most first
_INTO_RECORDS = "--results studies/results/records"


@dataclass(frozen=True)
class Study:
    """A part of the results: the command that makes it and, below the folder of results, the file with its numbers."""

    title: str
    command: str
    file: str | None = None


STUDIES = {
    "neural_pde": Study("the network against its own equation", "make neural-pde", "neural_pde/neural_pde.json"),
    "fig4": Study("Figure 4", "make fig4", "fig4/fig4.json"),
    "theorems": Study("Theorems 1 and 2", "make theorems", "theorems/summary.json"),
    "multilevel": Study("multilevel convergence", "python studies/multilevel.py", "multilevel/multilevel.json"),
    "noise_scale": Study(
        "one constant σ in place of the paper’s noise", "python studies/noise_scale.py", "noise_scale/noise_scale.json"
    ),
    "fig5": Study("training curves (Figure 5)", "python studies/fig5_training_curves.py", "fig5/fig5-digits.json"),
    "fig6": Study(
        "adversarial images (Figure 6)", "python studies/fig6_adversarial_images.py", "fig6/fig6-digits.json"
    ),
    "learning_rates": Study("learning rates", f"python studies/table.py 2 --lr 0.4,0.8,1.6 {_INTO_RECORDS}"),
    "cifar": Study("networks trained and attacked on CIFAR", "python studies/reproduce.py --data FOLDER"),
} | {
    name: Study(table.title, f"python studies/table.py {name.removeprefix('table')} {_INTO_RECORDS}")
    for name, table in TABLES.items()
}


@dataclass(frozen=True)
class Results:
    """A folder of results.

    local: a folder with pictures that may be shown but not be passed on, as those of CIFAR.
    """

    folder: Path
    local: Path | None = None

    @cached_property
    def found(self) -> Fields:
        """By the names of STUDIES, those that there are; "cifar" has a table a setting, that which tells most first."""
        paths = {name: self.folder / study.file for name, study in STUDIES.items() if study.file}
        found: Fields = {name: read_object(path) for name, path in paths.items() if path.exists()}
        stored = records.read(self.folder / "records")
        tables = list(_tables(stored))
        found |= {table["table"]: table for table in tables if table["dataset"] == "digits"}
        several = {
            "cifar": sorted((table for table in tables if table["dataset"] != "digits"), key=_untold),
            "learning_rates": list(_learning_rates(stored)),
        }
        return found | {name: values for name, values in several.items() if values}

    @property
    def missing(self) -> list[Study]:
        return [study for name, study in STUDIES.items() if name not in self.found]

    @property
    def tables(self) -> list[Fields]:
        """On digits, in the order of the paper."""
        return [self.found[name] for name in TABLES if name in self.found]

    @property
    def headline(self) -> Fields | None:
        """The table to show first."""
        return next(iter(self.found.get("cifar", ())), self.found.get("table2"))

    @property
    def local_images(self) -> list[tuple[Path, Fields]]:
        """Adversarial images that were drawn on this machine, by the names of Figure 6 on CIFAR."""
        found = sorted(self.local.glob("fig6-cifar*.png")) if self.local is not None else []
        return [(path, read_object(path.with_suffix(".json"))) for path in found if path.with_suffix(".json").exists()]


def _tables(found: Records) -> Iterator[Fields]:
    """On digits every table of the paper, on CIFAR one for each setting and loss, with all networks that there are."""
    named = {(s.dataset, s.settings(out=Path()).title): name for name, s in reversed(SETTINGS.items())}
    places = dict.fromkeys((line["dataset"], line["setting"]) for line in found.scores)
    ranks = {name: rank for rank, name in enumerate(_BY_VALUE)}
    for place in sorted(places, key=lambda place: ranks.get(named.get(place, ""), len(ranks))):
        where, name = assemble.Where(*place), named.get(place)
        for declared in TABLES.values():
            shown = declared if where.dataset == "digits" else _with_all(declared, found, where)
            rows = [row for row in shown.rows if assemble.scores_of(row, shown, found, where)] if shown else []
            if shown is None or len(rows) < 2:
                continue
            table = assemble.table(shown, rows, found, where)
            table["verdicts"] = list(_not_withdrawn(table))
            table["anchor"] = f"{declared.name}-{where.dataset}-{name or re.sub('[ ,]+', '-', where.setting)}"
            if where.dataset != "digits" and name is not None:
                setting = SETTINGS[name]
                table |= {"title": setting.title, "caption": setting.what, "note": setting.limits}
            yield table


def _with_all(declared: Table, found: Records, where: assemble.Where) -> Table | None:
    """The white-box table of this data set with all networks and attacks that there are; None for other tables."""
    if declared.name not in ("table1", "table2", "table4", "table5") or declared.dataset != where.dataset:
        return None
    here = [line for line in found.scores if where.has(line) and line["loss"] == declared.loss]
    others = dict.fromkeys(line["network"] for line in here).keys() - {row.model for row in declared.rows}
    attacks = {line["attack"] for line in here}
    return replace(
        declared,
        rows=(*declared.rows, *map(Row, sorted(others))),
        attacks=(
            *(name for name, row in ATTACKS.items() if name in attacks and not row.is_about_noise),
            assemble.WORST,
        ),
    )


def _not_withdrawn(table: Mapping[str, Any]) -> Iterator[Fields]:
    """The verdicts of a table, "withdrawn" for those between networks that differ in more than they are called.

    Configurations without `val_num_steps` are from when the weights of n members decayed n times as fast as those of
    one network.
    """
    trained = [line for row in table["rows"] for run in row["runs"] for line in run["networks"]]
    is_withdrawn = any("val_num_steps" not in line["provenance"]["config"] for line in trained)
    members = {row["model"]: row["num_members"] for row in table["rows"]}
    for verdict in table["verdicts"]:
        differ = members.get(verdict["better"]) != members.get(verdict["worse"])
        yield verdict | ({"verdict": "withdrawn"} if is_withdrawn and differ else {})


def _learning_rates(found: Records) -> Iterator[Fields]:
    """Robust validation accuracy by network, rate and seed; rates are compared on the seeds that all of them have.

    Not of the further networks of one kind that are trained apart for an ensemble: few kinds have those.
    """
    lines = [line for line in found.trainings if line["loss"] == "pgd" and line["seed"] < REPEAT_SEED]
    for dataset, setting in dict.fromkeys((line["dataset"], line["setting"]) for line in lines):
        by_network: dict[str, dict[float, dict[int, Record]]] = {}
        for line in lines:
            if (line["dataset"], line["setting"]) == (dataset, setting):
                by_network.setdefault(line["network"], {}).setdefault(line["lr"], {})[line["seed"]] = line
        rows: list[Fields] = []
        stamps: list[Fields] = []
        for name, by_rate in by_network.items():
            seeds = sorted(set.intersection(*map(set, by_rate.values())))
            compared = [[by_rate[lr][seed] for seed in seeds] for lr in sorted(by_rate)]
            if len(by_rate) > 1 and seeds:
                stamps += [line["provenance"] for rate in compared for line in rate]
                rates = [
                    {"peak_lr": rate[0]["peak_lr"], "validation": [line["validation"] for line in rate]}
                    for rate in compared
                ]
                rows.append(
                    {"model": name, "members": Network.parse(name).num_averaged, "seeds": seeds, "rates": rates}
                )
        most = max((len(row["seeds"]) for row in rows), default=0)
        shown = sorted((r for r in rows if len(r["seeds"]) == most), key=lambda r: (r["members"], r["model"]))
        if shown:
            yield {"dataset": dataset, "setting": setting, "networks": shown, "stamps": assemble.origins(stamps)}


def _untold(table: Mapping[str, Any]) -> tuple[bool, bool]:
    """Small for CIFAR-10, and where a network, its noisy pair and the noise-free one are there."""
    models = {row["model"] for row in table["rows"] if "nat" in row["cells"]}
    return table["dataset"] != "cifar10", not models.issuperset({"ResNet20", "En2ResNet20", "Plain2ResNet20"})


# The verdicts of tables


def against(table: Mapping[str, Any], kind: Kind) -> list[Fields]:
    """Those that set a noisy ensemble against a control of this kind, or against its own single network."""
    return [
        verdict
        for verdict in table["verdicts"]
        if (kind_of(verdict["better"]), kind_of(verdict["worse"])) == ("noisy", kind)
        and (kind != "single" or verdict["worse"] == labelled(verdict["better"]).family)
    ]


def of_the_paper(tables: Sequence[Mapping[str, Any]]) -> list[Fields]:
    """Those for which the paper has numbers; those of the same networks in several tables count once."""
    found: dict[Any, Fields] = {}
    for table in tables:
        first = table["rows"][0]
        task = table["setting"], table["dataset"], first["loss"], first["oracle"] is None
        for verdict in table["verdicts"]:
            if verdict["paper_difference"] is not None:
                found.setdefault((*task, verdict["better"], verdict["worse"], verdict["column"]), verdict)
    return list(found.values())
