"""From stored numbers to the charts of the report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from report_charts import Axis, Dot, Series, dot_chart, line_chart
from report_findings import SCHEMES
from report_results import STYLES, kind_of

Fields = dict[str, Any]

PARTS = {
    "accuracy": "training, attacked",
    "val_robust": "validation, attacked",
    "val_natural": "validation, clean",
}
_BOUNDS = {"gradient": "measured", "coupling": "coupling bound", "bernstein": "best μ"}


@dataclass(frozen=True)
class Panel:
    """A chart under its heading."""

    heading: str
    chart: Markup


def accuracies(table: Fields) -> list[Panel]:
    """One chart an attack: all networks with their intervals, and the paper's value where it is of the same task."""
    is_same_task = table["dataset"] == table["paper_dataset"]
    panels = []
    for column, heading in table["columns"].items():
        dots = []
        for row in table["rows"]:
            if cell := row["cells"].get(column):
                low, high = (100 * bound for bound in cell["interval"])
                mark = row["paper"].get(column) if is_same_task else None
                dots.append(Dot(name_of(row), 100 * cell["mean"], low, high, STYLES[kind_of(row["model"])], mark))
        if len(dots) > 1:
            title = f"Accuracy in % by network, {heading}: " + ", ".join(f"{d.label} {d.value:.1f}" for d in dots)
            panels.append(Panel(heading, dot_chart(dots, title=title)))
    return panels


def name_of(row: Fields) -> str:
    """The network, and after "<" the one that is attacked in its place."""
    return row["model"] if row["oracle"] is None else f"{row['model']} < {row['oracle']}"


def training_curves(rows: Sequence[Fields]) -> Iterator[tuple[str, list[Panel]]]:
    """For each family of networks (name, charts): the mean over seeds with the range, a ring at the selected epoch."""
    families: dict[str, list[Fields]] = {}
    for row in rows:
        if any(run["networks"] for run in row["runs"]):
            families.setdefault(re.sub("^(En|Plain|Wide|TwoPoint)[0-9]+", "", row["model"]), []).append(row)
    for family, members in families.items():
        panels = []
        for part, heading in PARTS.items():
            series = [_curve(row, part, index) for index, row in enumerate(members)]
            if any(len(s.points) > 1 for s in series):
                names = ", ".join(f"{s.label} ends at {s.points[-1][1]:.1f}" for s in series if s.points)
                chart = line_chart(
                    series, Axis("epoch"), Axis("accuracy in %"), title=f"Accuracy in % over epochs, {heading}: {names}"
                )
                panels.append(Panel(heading, chart))
        if panels:
            yield family, panels


def _curve(row: Fields, part: str, index: int) -> Series:
    networks = [run["networks"][0] for run in row["runs"] if run["networks"]]
    curves = [
        {r["epoch"] + 1: 100 * r[part] for r in network["history"] if r[part] is not None} for network in networks
    ]
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = [(float(e), sum(curve[e] for curve in curves) / len(curves)) for e in epochs]
    band = [(float(e), min(c[e] for c in curves), max(c[e] for c in curves)) for e in epochs] if len(curves) > 1 else []
    chosen = [(network["selected_epoch"], curve) for network, curve in zip(networks, curves, strict=True)]
    rings = [(float(e), curve[e]) for e, curve in chosen if part != "accuracy" and e in curve]
    label = re.sub(r"(?<=\d)(ResNet|WRN|WideResNet).*", "", row["model"])  # the family is in the heading
    return Series(label, means, f"c{index % 6}", kind_of(row["model"]) in ("silent", "wide"), band, rings)


def of_rates(stored: Fields) -> list[Panel]:
    """Validation accuracy by peak learning rate, the mean over seeds with the range."""
    series = []
    for index, row in enumerate(row for row in stored["networks"] if kind_of(row["model"]) != "two-point"):
        means = [(rate["peak_lr"], 100 * sum(rate["validation"]) / len(rate["validation"])) for rate in row["rates"]]
        band = [(r["peak_lr"], 100 * min(r["validation"]), 100 * max(r["validation"])) for r in row["rates"]]
        dashed = kind_of(row["model"]) in ("silent", "wide")
        series.append(Series(row["model"].partition("ResNet")[0] or row["model"], means, f"c{index % 6}", dashed, band))
    title = "Validation accuracy under attack by peak learning rate, for each network"
    chart = line_chart(series, Axis("peak learning rate", is_log=True), Axis("accuracy in %"), title=title, height=300)
    return [Panel("validation, attacked, by peak learning rate", chart)]


def of_the_network(stored: Fields) -> list[Panel]:
    """neural_pde's curves, large enough to read: the error in draws, and gradients and flips as the noise grows."""
    draws, rows = stored["error_in_draws"], stored["smoothing"]
    in_draws = [
        Series(f"L = {blocks}", list(zip(map(float, draws["draws"]), values, strict=True)), f"c{index}")
        for index, (blocks, values) in enumerate(draws["curves"].items())
    ]
    noisy = [row for row in rows if row["sigma"] >= 0.1]  # as σ goes to 0 the bounds grow like e^γ
    gradients = [
        Series(label, [(row["sigma"], row[key]) for row in noisy], f"c{index}", dashed=index > 0)
        for index, (key, label) in enumerate(_BOUNDS.items())
    ]
    flips = [
        Series("flipped", [(row["sigma"], 100 * row["flipped"]) for row in rows], "c2"),
        Series("wrong", [(row["sigma"], 100 * (1 - row["accuracy"])) for row in rows], "c0", dashed=True),
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
            series.append(Series(f"{name}: Pₗ − Pₗ₋₁", difference[1:], f"c{index + 1}"))
            if index == 0:
                series.append(Series("Pₗ", fine, "c0", dashed=True))
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
        series.append(Series(f"{name}, levels", ours, f"c{index + 1}"))
        series.append(Series(f"{name}, plain", plain, f"c{index + 1}", dashed=True))
    chart = line_chart(
        series,
        Axis("measured error, rms", is_log=True),
        Axis("path-steps", is_log=True),
        title="Work against measured error, for multilevel and for plain Monte Carlo",
    )
    panels.append(Panel("work against measured error", chart))
    return panels
