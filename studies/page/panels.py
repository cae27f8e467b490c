"""From stored numbers to the charts of the report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from studies.lab.networks import Network
from studies.page.charts import MARKERS, Axis, Dot, Series, dot_chart, line_chart
from studies.page.findings import SCHEMES
from studies.page.results import STYLES, family_of, kind_of

Fields = dict[str, Any]

PARTS = {
    "accuracy": "training, attacked",
    "val_robust": "validation, attacked",
    "val_natural": "validation, clean",
}
_STEPS_OF_THE_PAPER = {"ifgsm20": 20, "cw": 50}
_USUAL_MARKERS = {1: "circle", 2: "square", 5: "triangle"}
_BOUNDS = {"gradient": "measured", "coupling": "coupling bound", "bernstein": "best μ"}


@dataclass(frozen=True)
class Panel:
    """A chart under its heading."""

    heading: str
    chart: Markup


@dataclass(frozen=True)
class Head:
    """A column of a table: how it is headed, and what its cells have in common.

    `shared` says n and seeds where they are those of all cells, and is empty where each has to say its own;
    `paper_steps` is None but where the attack takes fewer steps than the paper's.
    """

    title: str
    shared: str
    paper_steps: int | None

    def own(self, cell: Fields) -> str:
        """What a cell has to say of n and seeds beyond its head."""
        return "" if self.shared else extent_of(cell)


def extent_of(cell: Fields) -> str:
    """Over how many images and seeds a number is; of a verdict that was stored without them nothing."""
    if "n" not in cell:
        return ""
    seeds = cell["num_seeds"]
    return f"n = {cell['n']:,}, {seeds} seed{'' if seeds == 1 else 's'}"


def heads(table: Fields) -> dict[str, Head]:
    """The columns of a table's accuracies."""
    return _heads(table, {c: [row["cells"][c] for row in table["rows"] if c in row["cells"]] for c in table["columns"]})


def heads_of_orderings(table: Fields) -> dict[str, Head]:
    """The columns of a table's verdicts."""
    return _heads(table, {c: [v for v in table["verdicts"] if v["column"] == c] for c in table["columns"]})


def _heads(table: Fields, cells: Mapping[str, Sequence[Fields]]) -> dict[str, Head]:
    found = {}
    for column, title in table["columns"].items():
        extents = {extent_of(cell) for cell in cells[column]}
        published = _STEPS_OF_THE_PAPER.get(column, 0)
        is_capped = published > int((re.findall(r"\d+", title) or [published])[-1])
        found[column] = Head(title, extents.pop() if len(extents) == 1 else "", published if is_capped else None)
    return found


def accuracies(table: Fields) -> list[Panel]:
    """One chart an attack: all networks with their intervals, and the paper's value where it is of the same task."""
    is_same_task = table["dataset"] == table["paper_dataset"]
    panels = []
    for column, head in heads(table).items():
        dots = []
        for row in table["rows"]:
            if cell := row["cells"].get(column):
                low, high = (100 * min(1.0, max(0.0, bound)) for bound in cell["interval"])
                mark = row["paper"].get(column) if is_same_task else None
                dots.append(Dot(name_of(row), 100 * cell["mean"], low, high, STYLES[kind_of(row["model"])], mark))
        if len(dots) > 1:
            title = f"Accuracy in % by network, {head.title}: "
            title += ", ".join(f"{dot.label} {dot.value:.1f}" for dot in dots)
            is_other = head.paper_steps is not None and any(dot.mark is not None for dot in dots)
            heading = head.title + (f"; the paper’s takes {head.paper_steps} steps" if is_other else "")
            panels.append(Panel(heading, dot_chart(dots, title=title)))
    return panels


def name_of(row: Fields) -> str:
    """The network, and where another is attacked in its place that one."""
    return row["model"] if row["oracle"] is None else f"{row['model']} on images made for {row['oracle']}"


def by_epoch(history: Sequence[Fields], part: str) -> dict[int, float]:
    """Accuracy in % by epoch, counted from 1, where it was measured; `part` is one of PARTS."""
    return {record["epoch"] + 1: 100 * record[part] for record in history if record[part] is not None}


def training_curves(rows: Sequence[Fields]) -> Iterator[tuple[str, list[Panel]]]:
    """For each family of networks (name, charts): the mean over seeds with the range, a ring at the selected epoch."""
    families: dict[str, list[Fields]] = {}
    for row in rows:
        if any(run["networks"] for run in row["runs"]):
            families.setdefault(family_of(row["model"]), []).append(row)
    for family, members in families.items():
        panels = []
        looks = _looks([row["model"] for row in members])
        for part, heading in PARTS.items():
            series = [_curve(row, part, look) for row, look in zip(members, looks, strict=True)]
            if any(len(s.points) > 1 for s in series):
                names = ", ".join(f"{s.label} ends at {s.points[-1][1]:.1f}" for s in series if s.points)
                chart = line_chart(
                    series, Axis("epoch"), Axis("accuracy in %"), title=f"Accuracy in % over epochs, {heading}: {names}"
                )
                panels.append(Panel(heading, chart))
        if panels:
            yield family, panels


@dataclass(frozen=True)
class _Look:
    """How a network is drawn: its kind by colour, and by dashes where it is a control, its members by the marker."""

    label: str
    style: str
    dashed: bool
    marker: str


def _looks(models: Sequence[str]) -> list[_Look]:
    """One for each line of a chart, no two alike while there are markers."""
    is_one_family = len(set(map(family_of, models))) == 1
    looks: list[_Look] = []
    for model in models:
        kind, network = kind_of(model), Network.parse(model.partition(" (")[0])
        taken = {look.marker for look in looks if look.style == STYLES[kind]}
        usual = _USUAL_MARKERS.get(network.num_members, "cross")
        marker = next((name for name in (usual, *reversed(MARKERS)) if name not in taken), usual)
        label = model.removesuffix(network.family) or model if is_one_family else model
        looks.append(_Look(label, STYLES[kind], kind in ("silent", "wide"), marker))
    return looks


def _curve(row: Fields, part: str, look: _Look) -> Series:
    networks = [run["networks"][0] for run in row["runs"] if run["networks"]]
    curves = [by_epoch(network["history"], part) for network in networks]
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = [(float(e), sum(curve[e] for curve in curves) / len(curves)) for e in epochs]
    band = [(float(e), min(c[e] for c in curves), max(c[e] for c in curves)) for e in epochs] if len(curves) > 1 else []
    chosen = [(network["selected_epoch"], curve) for network, curve in zip(networks, curves, strict=True)]
    rings = [(float(e), curve[e]) for e, curve in chosen if part != "accuracy" and e in curve]
    return Series(look.label, means, look.style, look.dashed, band, rings, look.marker)


def of_rates(stored: Fields) -> list[Panel]:
    """Validation accuracy by peak learning rate, the mean over seeds with the range."""
    rows = [row for row in stored["networks"] if kind_of(row["model"]) != "two-point"]
    series = []
    for row, look in zip(rows, _looks([row["model"] for row in rows]), strict=True):
        means = [(rate["peak_lr"], 100 * sum(rate["validation"]) / len(rate["validation"])) for rate in row["rates"]]
        band = [(r["peak_lr"], 100 * min(r["validation"]), 100 * max(r["validation"])) for r in row["rates"]]
        series.append(Series(look.label, means, look.style, look.dashed, band, marker=look.marker))
    title = "Validation accuracy under attack by peak learning rate, for each network"
    chart = line_chart(series, Axis("peak learning rate", is_log=True), Axis("accuracy in %"), title=title, height=300)
    return [Panel("validation, attacked, by peak learning rate", chart)]


def of_the_network(stored: Fields) -> list[Panel]:
    """neural_pde's curves, large enough to read: the error in draws, and gradients and flips as the noise grows."""
    draws, rows = stored["error_in_draws"], stored["smoothing"]
    in_draws = [
        Series(f"L = {blocks}", list(zip(map(float, draws["draws"]), values, strict=True)), f"q{index}")
        for index, (blocks, values) in enumerate(draws["curves"].items())
    ]
    noisy = [row for row in rows if row["sigma"] >= 0.1]  # as σ goes to 0 the bounds grow like e^γ
    gradients = [
        Series(label, [(row["sigma"], row[key]) for row in noisy], f"q{index}", dashed=index > 0)
        for index, (key, label) in enumerate(_BOUNDS.items())
    ]
    flips = [
        Series("flipped", [(row["sigma"], 100 * row["flipped"]) for row in rows], "q1"),
        Series("wrong", [(row["sigma"], 100 * (1 - row["accuracy"])) for row in rows], "q0", dashed=True),
    ]
    sigma = Axis("noise σ")
    return [
        Panel(
            "error against the PDE, by networks averaged",
            line_chart(
                in_draws,
                Axis("networks averaged, n", is_log=True),
                Axis("rms error", is_log=True),
                title=f"Root-mean-square error falls like n to the power {draws['slope_up_to_32']:.2f}, "
                "down to a floor that more blocks lower",
            ),
        ),
        Panel(
            "steepest gradient, and its bounds",
            line_chart(
                gradients,
                sigma,
                Axis("max|∇u|", is_log=True),
                title="The steepest gradient falls as the noise grows and stays below both bounds",
            ),
        ),
        Panel(
            "test points in %",
            line_chart(
                flips,
                sigma,
                Axis("% of test points"),
                title="Share of points that a small perturbation flips, and that are wrong without any, by noise",
            ),
        ),
    ]


def of_levels(stored: Fields) -> list[Panel]:
    """How levels converge for each scheme, and the work that each error takes."""
    panels = []
    for key, what, rate in (("variance", "variance", "beta"), ("mean", "|mean|", "alpha")):
        series = []
        for index, (scheme, found) in enumerate(stored["schemes"].items()):
            levels, name = found["levels"], SCHEMES[scheme].split("-")[0]
            fine = list(zip(map(float, levels["steps"]), map(abs, levels[f"{key}_fine"]), strict=True))
            difference = list(zip(map(float, levels["steps"]), map(abs, levels[f"{key}_difference"]), strict=True))
            series.append(Series(f"{name}: Pₗ − Pₗ₋₁", difference[1:], f"q{index + 1}"))
            if index == 0:
                series.append(Series("Pₗ", fine, "q0", dashed=True))
        rates = ", ".join(f"{SCHEMES[s]} {f['levels'][rate]:.2f}" for s, f in stored["schemes"].items())
        chart = line_chart(
            series,
            Axis("steps at the level", is_log=True),
            Axis(what, is_log=True),
            title=f"{what} of level differences falls as steps double; fitted rates: {rates}",
        )
        panels.append(Panel(f"{what} by level", chart))
    series = []
    for index, (scheme, found) in enumerate(stored["schemes"].items()):
        rows, name = found["costs"], SCHEMES[scheme].split("-")[0]
        ours = [(row["delivered"], row["cost"]) for row in rows]
        plain = [(row["plain_delivered"], row["plain_cost"]) for row in rows]
        series.append(Series(f"{name}, levels", ours, f"q{index + 1}"))
        series.append(Series(f"{name}, plain", plain, f"q{index + 1}", dashed=True))
    chart = line_chart(
        series,
        Axis("measured error, rms", is_log=True),
        Axis("path-steps", is_log=True),
        title="Work against measured error, for multilevel and for plain Monte Carlo",
    )
    panels.append(Panel("work against measured error", chart))
    return panels
