"""The sections of the report, each declared once, and the charts in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studies.lab.assemble import PARTS, curve_of
from studies.lab.attacks import ATTACKS
from studies.lab.networks import Kind, kind_of, labelled
from studies.page import findings
from studies.page.charts import MARKERS, Chart, Dot, Point, Series, dot_chart, line_chart
from studies.page.findings import Finding
from studies.page.results import DATASETS, STUDIES, Fields, Results, Study

KINDS: dict[Kind, str] = {
    "single": "one network",
    "noisy": "with noise",
    "silent": "control: members without noise",
    "wide": "control: one wide network",
    "two-point": "with two-point noise",
    "trainable": "with trained noise",
    "apart": "members trained apart",
    "smoothed": "with noise on the input",
}
STYLES: dict[Kind, str] = {kind: f"c{number}" for number, kind in enumerate(KINDS)}
SCHEMES = {"euler": "Euler-Maruyama", "heun": "Heun"}
_BOUNDS = {"gradient": "measured", "coupling": "coupling bound", "bernstein": "best μ"}
_STEPS_OF_THE_PAPER = {name: ATTACKS[name].steps for name in ("ifgsm20", "cw")}


@dataclass(frozen=True)
class Panel:
    """A section of the page, drawn by the template that is called as its anchor.

    study: whose command makes what the panel shows.
    stored: what there is of it; None or empty where there is nothing. Usually the study's own numbers.
    charts: of what is stored.
    claims: what became of those that it decides.
    """

    anchor: str
    title: str
    study: str
    stored: Callable[[Results], Any] | None = None
    charts: Callable[[Any], Iterable[Chart]] = lambda stored: ()
    claims: Callable[[Any], Iterator[Finding]] | None = None

    def of(self, results: Results) -> Any:
        return self.stored(results) if self.stored else results.found.get(self.study)

    @property
    def made_by(self) -> Study:
        return STUDIES[self.study]

    def findings(self, results: Results) -> list[Finding]:
        if self.claims is None or not (found := self.of(results)):
            return []
        return [replace(finding, anchor=finding.anchor or self.anchor) for finding in self.claims(found)]


# Charts of single studies


def _charts_of_the_network(stored: Fields) -> Iterator[Chart]:
    """The error in draws and in blocks, and gradients and flips as the noise grows."""
    draws, rows = stored["error_in_draws"], stored["smoothing"]
    curves = tuple(
        Series(f"L = {blocks}", _pairs(draws["draws"], values), f"q{index}")
        for index, (blocks, values) in enumerate(draws["curves"].items())
    )
    title = f"Rms error falls like n to the power {draws['slope_up_to_32']:.2f}, down to a floor that more blocks lower"
    heading = "error against the PDE, by networks averaged"
    yield line_chart(heading, curves, "networks averaged, n", "rms error", log="xy", title=title)

    blocks = stored["error_in_blocks"]
    seen = tuple((number, error) for number, error in zip(blocks["blocks"], blocks["rms"], strict=True) if error > 0)
    sampling = Series("sampling", _pairs(blocks["blocks"], blocks["sampling_error"]), "q1", dashed=True)
    title = f"The error of the step falls like the number of blocks to the power {blocks['slope']:.2f}"
    heading = "error against the PDE, by blocks"
    yield line_chart(heading, (Series("step", seen, "q0"), sampling), "blocks, L", "rms error", log="xy", title=title)

    noisy = [row for row in rows if row["sigma"] >= 0.1]  # as σ goes to 0 the bounds grow like e^γ
    curves = tuple(
        Series(label, tuple((row["sigma"], row[key]) for row in noisy), f"q{index}", dashed=index > 0)
        for index, (key, label) in enumerate(_BOUNDS.items())
    )
    title = "The steepest gradient falls as the noise grows and stays below both bounds"
    yield line_chart("steepest gradient, and its bounds", curves, "noise σ", "max|∇u|", log="y", title=title)

    flipped = Series("flipped", tuple((row["sigma"], 100 * row["flipped"]) for row in rows), "q1")
    wrong = Series("wrong", tuple((row["sigma"], 100 * (1 - row["accuracy"])) for row in rows), "q0", dashed=True)
    title = "Share of points that a small perturbation flips, and that are wrong without any, by noise"
    yield line_chart("test points in %", (flipped, wrong), "noise σ", "% of test points", title=title)


def _charts_of_levels(stored: Fields) -> Iterator[Chart]:
    """How levels converge for each scheme, and the work that each error takes."""
    found_by_name = enumerate(stored["schemes"].items(), 1)
    schemes = [(f"q{index}", SCHEMES[name].split("-")[0], found) for index, (name, found) in found_by_name]
    for key, what, rate in (("variance", "variance", "beta"), ("mean", "|mean|", "alpha")):
        levels = schemes[0][2]["levels"]
        series = [Series("Pₗ", _pairs(levels["steps"], map(abs, levels[f"{key}_fine"])), "q0", dashed=True)]
        for style, name, found in schemes:
            levels = found["levels"]
            points = _pairs(levels["steps"], map(abs, levels[f"{key}_difference"]))
            series.append(Series(f"{name}: Pₗ − Pₗ₋₁", points[1:], style))
        rates = ", ".join(f"{name} {found['levels'][rate]:.2f}" for _, name, found in schemes)
        title = f"{what} of level differences falls as steps double; fitted rates: {rates}"
        yield line_chart(f"{what} by level", tuple(series), "steps at the level", what, log="xy", title=title)
    series = []
    for style, name, found in schemes:
        levels = tuple((row["delivered"], row["cost"]) for row in found["costs"])
        plain = tuple((row["plain_delivered"], row["plain_cost"]) for row in found["costs"])
        series += [Series(f"{name}, levels", levels, style), Series(f"{name}, plain", plain, style, dashed=True)]
    title = "Work against measured error, for multilevel and for plain Monte Carlo"
    heading = "work against measured error"
    yield line_chart(heading, tuple(series), "measured error, rms", "path-steps", log="xy", title=title)


def _pairs(xs: Iterable[float], ys: Iterable[float]) -> tuple[Point, ...]:
    return tuple(zip(xs, ys, strict=True))


# Charts of networks


def looks_of(models: Sequence[str]) -> list[Series]:
    """How networks are drawn, no two alike while there are markers.

    Colour tells the kind, dashes a control, and the marker the number of members.
    """
    is_one_family = len({labelled(model).family for model in models}) == 1
    looks: list[Series] = []
    for model in models:
        kind, network = kind_of(model), labelled(model)
        taken = {look.marker for look in looks if look.style == STYLES[kind]}
        usual = dict(zip((1, 2, 5), MARKERS, strict=False)).get(network.num_members, MARKERS[3])
        marker = next((sign for sign in (usual, *reversed(MARKERS)) if sign not in taken), usual)
        label = model.removesuffix(network.family) or model if is_one_family else model
        looks.append(Series(label, (), STYLES[kind], kind in ("silent", "wide"), marker=marker))
    return looks


def _over_seeds(look: Series, values: Mapping[float, Sequence[float]], rings: Iterable[Point] = ()) -> Series:
    """The mean with a band from the lowest to the highest."""
    means = tuple((x, sum(ys) / len(ys)) for x, ys in values.items())
    band = tuple((x, min(ys), max(ys)) for x, ys in values.items() if len(ys) > 1)
    return replace(look, points=means, band=band, rings=tuple(rings))


def training_curves(table: Fields) -> Iterator[tuple[str, list[Chart]]]:
    """For each family of networks (name, charts): the mean over seeds with the range, a ring at the selected epoch."""
    rows = [row for row in table["rows"] if any(run["networks"] for run in row["runs"])]
    for family in dict.fromkeys(labelled(row["model"]).family for row in rows):
        members = [row for row in rows if labelled(row["model"]).family == family]
        looks = looks_of([row["model"] for row in members])
        charts = []
        for part, heading in PARTS.items():
            series = tuple(_over_seeds(look, *curve_of(row, part)) for row, look in zip(members, looks, strict=True))
            if any(len(s.points) > 1 for s in series):
                names = ", ".join(f"{s.label} ends at {s.points[-1][1]:.1f}" for s in series if s.points)
                title = f"{table['title']} on {DATASETS[table['dataset']]}, {family}: accuracy in % over epochs, "
                charts.append(line_chart(heading, series, "epoch", "accuracy in %", title=f"{title}{heading}: {names}"))
        if charts:
            yield family, charts


def _curves_stored(results: Results) -> list[Fields]:
    figure = results.found.get("fig5")
    return [*([figure] if figure else []), *results.found.get("cifar", [])]


def charts_of_rates(stored: Fields) -> list[Chart]:
    """Validation accuracy by peak learning rate."""
    rows = [row for row in stored["networks"] if kind_of(row["model"]) != "two-point"]
    series = [
        _over_seeds(look, {rate["peak_lr"]: [100 * share for share in rate["validation"]] for rate in row["rates"]})
        for row, look in zip(rows, looks_of([row["model"] for row in rows]), strict=True)
    ]
    place = f"{DATASETS[stored['dataset']]}, {stored['setting']}"
    title = f"Validation accuracy under attack by peak learning rate, for each network: {place}"
    heading = "validation, attacked, by peak learning rate"
    return [line_chart(heading, tuple(series), "peak learning rate", "accuracy in %", log="x", title=title)]


# The tables


@dataclass(frozen=True)
class Head:
    """A column of a table: how it is headed, and what its cells have in common.

    shared: n and seeds where they are those of all cells; empty where each has to say its own.
    paper_steps: None but where the attack takes fewer steps than the paper's.
    """

    title: str
    shared: str
    paper_steps: int | None


def extent_of(cell: Fields) -> str:
    """Over how many images and seeds a number is."""
    return f"n = {cell['n']:,}, {cell['num_seeds']} seed{'' if cell['num_seeds'] == 1 else 's'}"


def heads(table: Fields, verdicts: Sequence[Fields] | None = None) -> dict[str, Head]:
    """The columns of a table's accuracies, or of some of its verdicts."""
    found = {}
    for column, title in table["columns"].items():
        cells = [row["cells"][column] for row in table["rows"] if column in row["cells"]]
        if verdicts is not None:
            cells = [verdict for verdict in verdicts if verdict["column"] == column]
        extents = {extent_of(cell) for cell in cells}
        published = _STEPS_OF_THE_PAPER.get(column, 0)
        is_capped = published > int((re.findall(r"\d+", title) or [published])[-1])
        found[column] = Head(title, extents.pop() if len(extents) == 1 else "", published if is_capped else None)
    return found


def cells_of(tables: Sequence[Fields]) -> list[Fields]:
    return [cell for table in tables for row in table["rows"] for cell in row["cells"].values()]


def by_claim(verdicts: Sequence[Fields]) -> dict[tuple[str, str], dict[str, Fields]]:
    """By (better, worse) and column."""
    found: dict[tuple[str, str], dict[str, Fields]] = {}
    for verdict in verdicts:
        found.setdefault((verdict["better"], verdict["worse"]), {})[verdict["column"]] = verdict
    return found


def accuracies(table: Fields) -> Iterator[Chart]:
    """One chart an attack: all networks with their intervals, and the paper's value where it is of the same task."""
    is_same_task = table["dataset"] == table["paper_dataset"]
    for column, head in heads(table).items():
        dots = []
        for row in table["rows"]:
            if cell := row["cells"].get(column):
                low, high = (100 * min(1.0, max(0.0, bound)) for bound in cell["interval"])
                mark = row["paper"].get(column) if is_same_task else None
                dots.append(Dot(name_of(row), 100 * cell["mean"], low, high, STYLES[kind_of(row["model"])], mark))
        if len(dots) > 1:
            title = f"{table['title']} on {DATASETS[table['dataset']]}: accuracy in % by network, {head.title}: "
            title += ", ".join(f"{dot.label} {dot.value:.1f}" for dot in dots)
            is_other = head.paper_steps is not None and any(dot.mark is not None for dot in dots)
            heading = head.title + (f"; the paper’s takes {head.paper_steps} steps" if is_other else "")
            yield dot_chart(heading, tuple(dots), title=title)


def name_of(row: Fields) -> str:
    """The network, and where another is attacked in its place that one."""
    return row["model"] if row["oracle"] is None else f"{row['model']} on images made for {row['oracle']}"


def num_equal(predicted: Sequence[str], labels: Sequence[str]) -> int:
    return sum(map(str.__eq__, predicted, labels))


PANELS: tuple[Panel, ...] = (
    Panel("short", "In short", "cifar", lambda r: r.headline),
    Panel("idea", "The idea in one picture", "neural_pde", None, _charts_of_the_network, findings.of_the_network),
    Panel("summary", "What became of the claims", "cifar", lambda r: [f for p in PANELS for f in p.findings(r)]),
    Panel("figure4", "Figure 4", "fig4", claims=findings.of_figure4),
    Panel("theorems", "The theorems", "theorems", claims=findings.of_theorems),
    Panel("multilevel", "Multilevel", "multilevel", None, _charts_of_levels, findings.of_multilevel),
    Panel("constant-noise", "Constant noise", "noise_scale", claims=findings.of_constant_noise),
    Panel("cifar", "CIFAR", "cifar", claims=findings.of_cifar),
    Panel("tables", "The tables", "table2", lambda r: r.tables, claims=findings.of_digits),
    Panel("training", "Training curves", "fig5", _curves_stored),
    Panel("learning-rates", "Learning rates", "learning_rates", claims=findings.of_learning_rates),
    Panel("images", "Adversarial images", "fig6"),
    Panel("missing", "What is missing", "cifar", lambda r: r),
)
"""In the order of the page."""
