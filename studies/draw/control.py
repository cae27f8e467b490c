"""Shows what studies/control.py stored: a table on the terminal, and one figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from studies.draw.style import save, styled
from studies.lab.reporting import read_object, show

Row = Mapping[str, Any]

MEASURES = {"accuracy": "accuracy", "gradient": "max|∇u(·, 0)|", "flipped": "share flipped within {eps:g}"}
_LEVELS = np.linspace(0.0, 1.0, 11)
_SERIES = {  # name: (method, which rows, marker, filled, shade)
    "equation, σ in training": ("equation", "own", "o", "0.1"),
    "equation, σ after training": ("equation", "after", "o", "white"),
    "network, σ in training": ("network", "own", "s", "0.6"),
    "network, σ after training": ("network", "after", "s", "white"),
}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds, and half of the width of its 95 % t-interval; NaN for a single one."""
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(stats.t.ppf(0.975, max(len(values) - 1, 1)) * spread)


def groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that differ in the seed alone, by (shape, method, σ in training, σ)."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row["shape"], row["method"], row["trained_sigma"], row["sigma"]), []).append(row)
    yield from found.items()


def report(stored: Mapping[str, Any]) -> None:
    """Print the rows of control.json, over seeds."""
    config, rows = stored["provenance"]["config"], stored["rows"]

    def cell(name: str, form: str) -> Callable[[Any], str]:
        def say(group: Any) -> str:
            mean, half = interval([row[name] for row in group[1]])
            return f"{mean:{form}} ± {half:{form}}"

        return say

    def gamma(group: Any) -> str:
        found = [row["gamma"] for row in group[1] if "gamma" in row]
        return f"{np.mean(found):.2g}" if found else ""

    steep = sum(row.get("warnings", "none") != "none" for row in rows)
    searched = [row for row in rows if row["method"] == "equation"]
    off = max(row["resolution"] for row in searched if row["sigma"] == row["trained_sigma"])
    show(
        f"Training as control of the equation, {config['num_train']} points, {config['seeds']} seeds",
        {
            "data": lambda group: str(group[0][0]),
            "": lambda group: str(group[0][1]),
            "σ": lambda group: f"{group[0][2]:g}" + (f", then {group[0][3]:g}" if group[0][2] != group[0][3] else ""),
            "accuracy": cell("accuracy", ".3f"),
            "max|∇u|": cell("gradient", ".3g"),
            "flipped": cell("flipped", ".3f"),
            "γ": gamma,
        },
        list(groups(rows)),
        caption=f"± half of a 95 % interval over seeds; {config['num_test']} fresh points each. Flipped: right, but "
        f"not within {config['eps']:g}. γ: steepening rate of F, of Theorem 2.\n"
        "Equations are measured on twice the nodes of the search, from which "
        f"u differs by at most {off:.2g}; of the networks' own, {steep} are not resolved.\n"
        f"{np.mean([row['evaluations'] for row in searched]):.0f} gradients a search, "
        f"{np.mean([row['seconds'] for row in searched]):.1f} s.",
        num_texts=2,
    )


def draw(out: Path) -> None:
    """Draw control.png and control.pdf in the folder of the stored numbers."""
    stored = read_object(out / "control.json")
    pictures = xr.load_dataset(out / "control.nc", engine="h5netcdf")
    config, rows = stored["provenance"]["config"], stored["rows"]
    shapes, sigmas = config["shapes"], config["sigmas"]
    with styled({"font.size": 8, "axes.titlesize": 8.5, "axes.linewidth": 0.6}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.6 * len(sigmas) + 3.2, max(1.6 * len(shapes) + 0.7, 4.2)), layout="constrained")
        halves: Any = figure.subfigures(1, 2, width_ratios=[1.6 * len(sigmas), 3.2])
        left, right = halves
        maps = left.subplots(len(shapes), len(sigmas), squeeze=False)
        for row, shape in zip(maps, shapes, strict=True):
            for axes, sigma in zip(row, sigmas, strict=True):
                filled = _map(axes, pictures, shape, sigma)
            row[0].set_ylabel(shape)
        for letter, axes, sigma in zip("abcdef", maps[0], sigmas, strict=False):
            axes.set_title(f"({letter}) $σ = {sigma:g}$ in training")
        bar = left.colorbar(filled, ax=maps, location="bottom", shrink=0.5, aspect=30, ticks=[0, 0.5, 1], pad=0.02)
        bar.set_label("$u(x, 0)$; white line: ½")
        panels = right.subplots(len(MEASURES), 1, sharex=True)
        for letter, axes, (name, title) in zip("abcdefghi"[len(sigmas) :], panels, MEASURES.items(), strict=False):
            _measure(axes, rows, shapes, sigmas, name)
            axes.set_title(f"({letter}) {title.format(**config)}")
        handles, labels = panels[0].get_legend_handles_labels()
        right.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=6, handletextpad=0.2)
        save(figure, out / "control.png", dpi=220)


def _map(axes: Any, pictures: xr.Dataset, shape: str, sigma: float) -> Any:
    u = np.clip(pictures[f"{shape}_{sigma:g}"].values.T, 0.0, 1.0)  # a spectral solution may overshoot
    x = pictures.x.values
    filled = axes.contourf(x, x, u, levels=_LEVELS, cmap="cividis")
    for colour, width in (("k", 2.2), ("w", 1.2)):
        axes.contour(x, x, u, levels=[0.5], colors=colour, linewidths=width)
    data, labels = pictures[f"{shape}_data"].values, pictures[f"{shape}_label"].values
    for label, marker, face in ((0, "o", "0.75"), (1, "^", "w")):
        chosen = data[labels == label]
        axes.scatter(*chosen.T, s=4, marker=marker, c=face, edgecolors="0.1", linewidths=0.25)
    axes.set(aspect="equal", xticks=[], yticks=[], xlim=(x[0], x[-1]), ylim=(x[0], x[-1]))
    return filled


def _measure(axes: Any, rows: Sequence[Row], shapes: Sequence[str], sigmas: Sequence[float], name: str) -> None:
    """Means with their intervals, shapes side by side, in each the sigmas."""
    found = {key: interval([row[name] for row in group]) for key, group in groups(rows)}
    width = len(sigmas) + 1.5
    for number, (title, (method, which, marker, face)) in enumerate(_SERIES.items()):
        least = min(trained for _, how, trained, _ in found if how == method)
        x, y, half = [], [], []
        for (shape, how, trained, sigma), (mean, spread) in found.items():
            after = sigma != trained
            if how != method or after != (which == "after"):
                continue
            place = 0 if sigma == least else list(sigmas).index(sigma)
            x.append(width * list(shapes).index(shape) + place + 0.2 * (number - 1.5))
            y.append(mean)
            half.append(min(spread, 0.9 * mean) if name == "gradient" else spread)  # on a logarithmic axis
        style = {"markersize": 3.2, "elinewidth": 0.7, "markeredgewidth": 0.6, "markeredgecolor": "0.1"}
        axes.errorbar(x, y, half, fmt=marker, color="0.3", markerfacecolor=face, label=title, **style)
    places = [width * i + j for i in range(len(shapes)) for j in range(len(sigmas))]
    ticks = [f"{sigma:g}" if j else "least" for _ in shapes for j, sigma in enumerate(sigmas)]
    for i, shape in enumerate(shapes):
        ticks[i * len(sigmas) + len(sigmas) // 2] += f"\n{shape}"
    axes.set_xticks(places, ticks, fontsize=5.5)
    axes.tick_params(length=2, labelsize="small")
    if name == "gradient":
        axes.set_yscale("log")
    else:
        axes.set_ylim(max(axes.get_ylim()[0], 0.0), min(axes.get_ylim()[1], 1.02))
    axes.grid(axis="y", alpha=0.25, linewidth=0.5)
