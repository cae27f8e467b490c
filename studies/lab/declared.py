"""The declaration of a table: rows, columns, claims, and where the numbers in print are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netkit.training import TrainingLoss
from studies.lab.networks import Network
from studies.lab.tasks import Weights


@dataclass(frozen=True)
class Row:
    """A network of a table.

    paper: where its numbers are, if not under its own name in this table.
    oracle: attacked in its place (a blind attack).
    loss: how it is trained, if not as the table says.
    """

    model: str
    paper: tuple[str, str] | None = None
    oracle: str | None = None
    loss: TrainingLoss | None = None
    weights: Weights = "equal"

    @property
    def label(self) -> str:
        """The row's name in claims and on the command line; no two rows of a table share one."""
        how = "" if self.loss is None else f" ({self.loss})"
        return f"{self.model}{how}" if self.weights == "equal" else f"{self.model} ({self.weights} weights)"

    @property
    def network(self) -> Network:
        return Network.parse(self.model)


@dataclass(frozen=True)
class Claim:
    """`better` is more accurate than `worse` (labels of rows), under all attacks or some."""

    better: str
    worse: str
    attacks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Table:
    """One table, or a figure over the same networks.

    attacks: the columns; none for a figure that shows trainings.
    more_claims: besides those that follow from the rows, see `claims`.
    smoke: the rows that show that everything runs.
    on_request: rows that are computed only where they are asked for.
    printed: the numbers in print, by table: {"rows": [{"model": ..., "nat": ...}, ...]}.
    """

    name: str
    caption: str
    rows: tuple[Row, ...]
    attacks: tuple[str, ...]
    loss: TrainingLoss = "pgd"
    dataset: str = "cifar10"
    more_claims: tuple[Claim, ...] = ()
    smoke: tuple[str, ...] = ("ResNet20", "En2ResNet20")
    on_request: tuple[str, ...] = ()
    printed: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def title(self) -> str:
        """ "table2" is Table 2, "fig5" is Figure 5, "section4_4" is Section 4.4."""
        name = self.name.replace("table", "Table ").replace("fig", "Figure ").replace("section", "Section ")
        return name.replace("_", ".")

    @property
    def claims(self) -> list[Claim]:
        """More noisy members over fewer, over none, and over each control of the same size; then `more_claims`."""
        usual = [row for row in self.rows if row.loss is None and row.weights == "equal"]
        return list(dict.fromkeys([*_claims_of_rows(usual), *self.more_claims]))

    def paper_values(self, row: Row) -> dict[str, float]:
        """The paper's percentages for `row`, by attack; empty for a control that the paper does not have."""
        table, name = row.paper or (self.name, row.model)
        for entry in self.printed.get(table, {"rows": []})["rows"]:
            if entry["model"] == name and entry.get("oracle") == row.oracle:
                return {attack: entry[attack] for attack in self.attacks if attack in entry}
        return {}


def _claims_of_rows(rows: Sequence[Row]) -> Iterator[Claim]:
    networks = [row.network for row in rows]
    for better in (network for network in networks if network.kind == "noisy"):
        rivals = [network for network in networks if network.family == better.family]
        fewer = [r.num_members for r in rivals if r.kind == "noisy" and r.num_members < better.num_members]
        for worse in rivals:
            if worse.kind == "noisy":
                is_next = worse.num_members == max(fewer, default=0)
            else:
                is_next = worse.kind == "single" or worse.num_members == better.num_members
            if is_next:
                yield Claim(better.name, worse.name)
