"""What lies under studies/results, read once; whatever is not there is left out, with the command that makes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import report_reproduction
from reporting import read_object, read_objects

from netkit.intervals import FEWEST_SEEDS

Fields = dict[str, Any]

TABLES = ("table1", "table2", *(f"table{n}" for n in range(3, 11)), "section4_4")
MADE_BY = {
    "neural_pde": "make neural-pde",
    "fig4": "make fig4",
    "theorems": "make theorems",
    "multilevel": "python studies/multilevel.py",
    "noise_scale": "python studies/noise_scale.py",
    "learning_rates": "python studies/learning_rates.py",
    "fig5": "python studies/fig5_training_curves.py",
    "fig6": "python studies/fig6_adversarial_images.py",
    "reproduction": "python studies/reproduce.py --data FOLDER",
    "section4_4": "python studies/gradient_mask.py",
} | {name: f"python studies/{name}.py" for name in TABLES if name.startswith("table")}
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
Kind = Literal["base", "noisy", "silent", "wide", "two-point"]
KINDS: dict[Kind, str] = {
    "base": "one network",
    "noisy": "with noise",
    "silent": "control: members without noise",
    "wide": "control: one wide network",
    "two-point": "with two-point noise",
}
STYLES: dict[Kind, str] = {"base": "c0", "noisy": "c1", "silent": "c2", "wide": "c3", "two-point": "c4"}


SIZED = re.compile(r"^(En|Plain|Wide|TwoPoint)(\d+)(?=[RW])")


def family_of(model: str) -> str:
    """The network that `model` is made of: ResNet20 for En2ResNet20."""
    return SIZED.sub("", model)


def kind_of(model: str) -> Kind:
    """Which of KINDS a network is, by its name."""
    patterns: dict[Kind, str] = {"noisy": r"En\d", "silent": r"Plain\d", "wide": r"Wide\dR", "two-point": "TwoPoint"}
    return next((kind for kind, pattern in patterns.items() if re.match(pattern, model)), "base")


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
    def learning_rates(self) -> list[Fields]:
        """By data set, of the networks that were trained with the most seeds."""
        found = [read_object(path) for path in sorted((self.folder / "learning_rates").glob("*.json"))]
        for stored in found:
            most = max(len(row["seeds"]) for row in stored["networks"])
            stored["networks"] = [row for row in stored["networks"] if len(row["seeds"]) == most]
        return found

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
    def tables(self) -> list[Fields]:
        """The tables of the paper that have been computed, in its order; variants of one table after one another."""
        read = [read_object(path) | {"anchor": path.stem} for path in sorted((self.folder / "tables").glob("*.json"))]
        found = [_withdrawn(table, table["provenance"]["config"]) for table in read]
        return sorted(found, key=lambda stored: (TABLES.index(stored["table"]), stored["dataset"] != "cifar10"))

    @cached_property
    def reproduction(self) -> list[Fields]:
        """The tables of the reproduction on CIFAR, one a setting; see `report_reproduction`."""
        folder = self.folder / "reproduction"
        if not (folder / "scores.jsonl").exists():
            return []
        trainings = read_objects(folder / "trainings.jsonl") if (folder / "trainings.jsonl").exists() else []
        scores, settings = read_objects(folder / "scores.jsonl"), read_object(folder / "settings.json")
        tables = report_reproduction.tables(scores, trainings, settings)
        configs = {line["setting"]: line["config"] for line in trainings}
        return [_withdrawn(table, configs.get(table["setting"], {})) for table in tables]

    @property
    def headline(self) -> Fields | None:
        """The table to show first: CIFAR-10 by the fullest training that tells of the claim, else Table 2 on digits."""
        by_name = {table["setting"]: table for table in self.reproduction if table["dataset"] == "cifar10"}
        order = [by_name[name] for name in dict.fromkeys(("paper", "fast", *sorted(by_name))) if name in by_name]
        if order:
            return max(order, key=_telling)  # the first of equals
        return next((table for table in self.tables if table["table"] == "table2"), None)

    @property
    def missing(self) -> list[tuple[str, str]]:
        """(what, command) for each part that is not there."""
        absent = [name for name in CALLED if not getattr(self, name)]
        there = {table["table"] for table in self.tables}
        tables = [name for name in TABLES if name not in there]
        return [(CALLED.get(name) or title_of(name), MADE_BY[name]) for name in [*absent, *tables]]


_WHY_WITHDRAWN = (
    "Orderings of networks with different numbers of members are withdrawn until they are trained again: the weights "
    "of n members decayed n times as fast as those of one network."
)


def _withdrawn(table: Fields, config: Mapping[str, Any]) -> Fields:
    """The table, with orderings by number of members withdrawn where that changed more than the number of members.

    Before `val_num_steps` was part of a configuration, an ensemble's rate was scaled and its weight decay was not.
    """
    if config.get("lr_scaling") != "members" or "val_num_steps" in config:
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
    """ "table2" is Table 2, "section4_4" is Section 4.4."""
    return table.replace("table", "Table ").replace("section", "Section ").replace("_", ".")


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
        return is_pair and (kind != "base" or worse == family_of(better))

    return Count([v for table in tables for v in table["verdicts"] if is_asked(v["better"], v["worse"])])


def of_the_paper(tables: Iterable[Mapping[str, Any]]) -> Count:
    """The orderings for which the paper has numbers; those of the same networks in several tables count once."""
    found: dict[Any, Fields] = {}
    for table in tables:
        first = table["rows"][0]
        task = table.get("setting"), table["dataset"], first["loss"], first["oracle"] is None
        for verdict in table["verdicts"]:
            if verdict["paper_difference"] is not None:
                found.setdefault((*task, verdict["better"], verdict["worse"], verdict["column"]), verdict)
    return Count(list(found.values()))
