"""What lies under studies/results, read once; whatever is not there is left out, with the command that makes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from netkit.intervals import FEWEST_SEEDS
from studies.lab import assemble, records
from studies.lab.attacks import ATTACKS
from studies.lab.declared import Row, Table
from studies.lab.networks import REPEAT_SEED, Kind, Network
from studies.lab.reporting import read_object
from studies.paper.queue import SETTINGS
from studies.paper.tables import TABLES

Fields = dict[str, Any]

MADE_BY = {
    "neural_pde": "make neural-pde",
    "fig4": "make fig4",
    "theorems": "make theorems",
    "multilevel": "python studies/multilevel.py",
    "noise_scale": "python studies/noise_scale.py",
    "learning_rates": "make table2 ARGS='--lr 0.1,0.2,0.4 --results studies/results/records'",
    "fig5": "python studies/fig5_training_curves.py",
    "fig6": "python studies/fig6_adversarial_images.py",
    "reproduction": "python studies/reproduce.py --data FOLDER",
} | {name: f"python studies/table.py {name.removeprefix('table')} --results studies/results/records" for name in TABLES}
CALLED = {
    "neural_pde": "the network against its own equation",
    "fig4": "Figure 4",
    "theorems": "Theorems 1 and 2",
    "multilevel": "multilevel convergence",
    "noise_scale": "one constant σ in place of the paper’s noise",
    "learning_rates": "learning rates of ensembles",
    "fig5": "training curves (Figure 5)",
    "fig6": "adversarial images (Figure 6)",
    "reproduction": "CIFAR",
}
KINDS: dict[Kind, str] = {
    "single": "one network",
    "noisy": "with noise",
    "silent": "control: members without noise",
    "wide": "control: one wide network",
    "two-point": "with two-point noise",
}
STYLES: dict[Kind, str] = {"single": "c0", "noisy": "c1", "silent": "c2", "wide": "c3", "two-point": "c4"}


def kind_of(model: str) -> Kind:
    """Which of KINDS a row is, by its label; an average of several networks counts as what its first part is."""
    network = Network.parse(model.partition(" (")[0])
    return network.parts[0].kind if network.parts else network.kind


def family_of(model: str) -> str:
    return Network.parse(model.partition(" (")[0]).family


@dataclass(frozen=True)
class Results:
    """The folder of results; a part that is not there is None or empty."""

    folder: Path
    local: Path | None = None
    """A folder with pictures that may be shown but not be passed on, as those of CIFAR."""

    def part(self, name: str, file: str) -> Fields | None:
        """The numbers of a study, None where it has not been run."""
        path = self.folder / name / file
        return read_object(path) if path.exists() else None

    @cached_property
    def neural_pde(self) -> Fields | None:
        return self.part("neural_pde", "neural_pde.json")

    @cached_property
    def fig4(self) -> Fields | None:
        return self.part("fig4", "fig4.json")

    @cached_property
    def theorems(self) -> Fields | None:
        return self.part("theorems", "summary.json")

    @cached_property
    def multilevel(self) -> Fields | None:
        return self.part("multilevel", "multilevel.json")

    @cached_property
    def noise_scale(self) -> Fields | None:
        return self.part("noise_scale", "noise_scale.json")

    @cached_property
    def records(self) -> records.Records:
        return records.read(self.folder / "records")

    @cached_property
    def learning_rates(self) -> list[Fields]:
        """By data set and setting, of the networks that were trained with the most seeds and more than one rate."""
        found = list(_learning_rates(self.records))
        known = {rates["dataset"] for rates in found}
        old = [stored for stored in self._stored("learning_rates") if stored["dataset"] not in known]
        return [*found, *(stored | {"stamps": [stored["provenance"]]} for stored in old)]

    @cached_property
    def fig5(self) -> Fields | None:
        return self.part("fig5", "fig5-digits.json")

    @cached_property
    def fig6(self) -> Fields | None:
        return self.part("fig6", "fig6-digits.json")

    @cached_property
    def local_images(self) -> list[tuple[Path, Fields]]:
        """Adversarial images that were drawn on this machine, by the names of Figure 6 on CIFAR."""
        found = sorted(self.local.glob("fig6-cifar*.png")) if self.local is not None else []
        return [(path, read_object(path.with_suffix(".json"))) for path in found if path.with_suffix(".json").exists()]

    @cached_property
    def _all_tables(self) -> list[Fields]:
        return list(_tables(self.records))

    @property
    def tables(self) -> list[Fields]:
        """The tables of the paper on digits, in its order."""
        found = {table["table"]: table for table in self._all_tables if table["dataset"] == "digits"}
        for old in self._stored("tables"):
            blank: Fields = {"setting": "", "strengths": [], "attack_titles": old["columns"]}
            anchor = f"{old['table']}-{old['dataset']}"
            found.setdefault(old["table"], _withdrawn(old | blank | {"anchor": anchor}))
        return [found[name] for name in TABLES if name in found]

    def _stored(self, name: str) -> list[Fields]:
        """Results from before there were records, until they are made again."""
        return [read_object(path) for path in sorted((self.folder / name).glob("*.json"))]

    @property
    def reproduction(self) -> list[Fields]:
        """The tables on CIFAR, one a setting."""
        return [table for table in self._all_tables if table["dataset"] != "digits"]

    @property
    def headline(self) -> Fields | None:
        """The table to show first: CIFAR-10 by the fullest training that tells of the claim, else Table 2 on digits."""
        found = [table for table in self.reproduction if table["dataset"] == "cifar10"]
        if found:
            return max(found, key=_telling)  # the first of equals
        return next((table for table in self.tables if table["table"] == "table2"), None)

    @property
    def missing(self) -> list[tuple[str, str]]:
        """(what, command) for each part that is not there."""
        absent = [name for name in CALLED if not getattr(self, name)]
        there = {table["table"] for table in self.tables}
        tables = [name for name in TABLES if name not in there]
        return [(CALLED.get(name) or title_of(name), MADE_BY[name]) for name in [*absent, *tables]]


def _tables(found: records.Records) -> Iterator[Fields]:
    """On digits every table of the paper, on CIFAR one for each setting and loss, with all networks that there are."""
    order = [(name, setting.dataset, setting.settings(out=Path()).title) for name, setting in SETTINGS.items()]
    places = dict.fromkeys(assemble.Where(line["dataset"], line["setting"]) for line in found.scores)
    known = {(dataset, title): name for name, dataset, title in reversed(order)}
    ranks = {name: rank for rank, name in enumerate(("paper", "fast", "cpu-full", "cpu-narrow"))}
    for where in sorted(places, key=lambda place: ranks.get(known.get((place.dataset, place.setting), ""), len(ranks))):
        name = known.get((where.dataset, where.setting))
        for declared in TABLES.values():
            shown = declared if where.dataset == "digits" else _with_all(declared, found, where)
            if shown is None:
                continue
            rows = [row for row in shown.rows if assemble.scores_of(row, shown, found, where)]
            if len(rows) < 2:
                continue
            table = _withdrawn(assemble.table(shown, rows, found, where))
            place = name or re.sub("[ ,]+", "-", where.setting)
            table["anchor"] = f"{declared.name}-{where.dataset}-{place}"
            if where.dataset != "digits" and name is not None:
                setting = SETTINGS[name]
                limits = " ".join(part for part in (setting.limits, table["note"]) if part)
                table |= {"title": setting.title, "caption": setting.what, "note": limits}
            yield table


def _with_all(declared: Table, found: records.Records, where: assemble.Where) -> Table | None:
    """The white-box table of this data set with all networks and attacks that there are; None for other tables."""
    if declared not in (TABLES["table1"], TABLES["table2"], TABLES["table4"], TABLES["table5"]):
        return None
    if declared.dataset != where.dataset:
        return None
    here = [line for line in found.scores if where.has(line) and line["loss"] == declared.loss]
    printed = {row.model for row in declared.rows}
    others = dict.fromkeys(line["network"] for line in here if line["network"] not in printed)
    attacks = [a for a in ATTACKS if any(line["attack"] == a for line in here) and not ATTACKS[a].is_about_noise]
    return replace(declared, rows=(*declared.rows, *map(Row, others)), attacks=tuple(attacks))


def _learning_rates(found: records.Records) -> Iterator[Fields]:
    """Robust validation accuracy by network, rate and seed; rates are compared on the seeds that all of them have.

    Not of the further networks of one kind that are trained apart for an ensemble: few kinds have those.
    """
    by_place: dict[tuple[str, str], dict[str, dict[float, dict[int, records.Record]]]] = {}
    for line in found.trainings:
        if line["loss"] == "pgd" and line["seed"] < REPEAT_SEED:
            networks = by_place.setdefault((line["dataset"], line["setting"]), {})
            networks.setdefault(line["network"], {}).setdefault(line["lr"], {})[line["seed"]] = line
    for (dataset, setting), networks in by_place.items():
        rows: list[Fields] = []
        stamps: list[Fields] = []
        for name, by_rate in networks.items():
            seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_rate.values())))
            if len(by_rate) > 1 and seeds:
                stamps += [by_seed[seed]["provenance"] for by_seed in by_rate.values() for seed in seeds]
                rates = [
                    {
                        "lr": lr,
                        "peak_lr": by_seed[seeds[0]]["peak_lr"],
                        "validation": [by_seed[seed]["validation"] for seed in seeds],
                    }
                    for lr, by_seed in sorted(by_rate.items())
                ]
                members = Network.parse(name).num_averaged
                rows.append({"model": name, "num_members": members, "seeds": seeds, "rates": rates})
        most = max((len(row["seeds"]) for row in rows), default=0)
        if rows:
            shown = sorted((r for r in rows if len(r["seeds"]) == most), key=lambda r: (r["num_members"], r["model"]))
            yield {"dataset": dataset, "setting": setting, "networks": shown, "stamps": assemble.origins(stamps)}


_WHY_WITHDRAWN = (
    "Orderings of networks with different numbers of members are withdrawn until they are trained again: the weights "
    "of n members decayed n times as fast as those of one network."
)


def _withdrawn(table: Fields) -> Fields:
    """The table, with orderings by number of members withdrawn where that changed more than the number of members.

    Before `val_num_steps` was part of a configuration, an ensemble's rate was scaled and its weight decay was not.
    """
    networks = [line for row in table["rows"] for run in row["runs"] for line in run["networks"]]
    configs = [line["provenance"]["config"] for line in networks if "provenance" in line]
    if "provenance" in table:
        configs.append(table["provenance"]["config"]["training"])
    if all(config.get("lr_scaling") != "members" or "val_num_steps" in config for config in configs):
        return table
    members = {row["model"]: row["num_members"] for row in table["rows"]}
    verdicts = [
        found if members[found["better"]] == members[found["worse"]] else found | {"verdict": "withdrawn"}
        for found in table["verdicts"]
    ]
    note = " ".join(part for part in (table["note"], _WHY_WITHDRAWN) if part)
    return table | {"verdicts": verdicts, "note": note}


def _telling(table: Mapping[str, Any]) -> int:
    """How many seeds, up to the fewest for a verdict, there are of a network, its noisy pair and the noise-free one."""
    seeds = {row["model"]: row["cells"]["nat"]["num_seeds"] for row in table["rows"] if "nat" in row["cells"]}
    return min(FEWEST_SEEDS, *(seeds.get(f"{kind}ResNet20", 0) for kind in ("", "En2", "Plain2")))


def title_of(table: str) -> str:
    return TABLES[table].title


# Questions about the verdicts of tables


@dataclass(frozen=True)
class Count:
    """How many of a set of orderings hold, are reversed, or cannot be told."""

    verdicts: Sequence[Fields] = field(default_factory=list)

    def _with(self, verdict: str) -> list[Fields]:
        return [found for found in self.verdicts if found["verdict"] == verdict]

    @property
    def total(self) -> int:
        return len(self.verdicts)

    @property
    def holding(self) -> list[Fields]:
        return self._with("holds")

    @property
    def reversed(self) -> list[Fields]:
        return self._with("does not hold")

    @property
    def untold(self) -> list[Fields]:
        return self._with("too few seeds")

    @property
    def withdrawn(self) -> list[Fields]:
        return self._with("withdrawn")

    @property
    def undecided(self) -> list[Fields]:
        """With those of too few seeds."""
        return [*self._with("undecided"), *self.untold]


def against(tables: Iterable[Mapping[str, Any]], kind: Kind) -> Count:
    """The orderings that set a noisy ensemble against a control of this kind, or against its own single network."""

    def is_asked(better: str, worse: str) -> bool:
        is_pair = (kind_of(better), kind_of(worse)) == ("noisy", kind)
        return is_pair and (kind != "single" or worse == family_of(better))

    return Count([v for table in tables for v in table["verdicts"] if is_asked(v["better"], v["worse"])])


def of_the_paper(tables: Iterable[Mapping[str, Any]]) -> Count:
    """The orderings for which the paper has numbers; those of the same networks in several tables count once."""
    found: dict[Any, Fields] = {}
    for table in tables:
        first = table["rows"][0]
        task = table["setting"], table["dataset"], first["loss"], first["oracle"] is None
        for verdict in table["verdicts"]:
            if verdict["paper_difference"] is not None:
                found.setdefault((*task, verdict["better"], verdict["worse"], verdict["column"]), verdict)
    return Count(list(found.values()))
