"""Shows what studies/multilevel.py stored: a table on the terminal, and Giles' four panels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from studies.draw.style import save, styled
from studies.lab.reporting import show

Fields = dict[str, Any]


def report(numbers: Fields) -> None:
    """Print errors and work beside those of plain Monte Carlo."""
    x, y = numbers["point"]
    show(
        f"u({x:g}, {y:g}; t = 0) = {numbers['reference']:.7f}, σ = {numbers['sigma']:g}",
        {
            "scheme": "{scheme}",
            "rmse": "{rmse:g}",
            "delivered": "{delivered:.2g}",
            "plain": "{plain_delivered:.2g}",
            "work": "{cost:.3g}",
            "plain work": "{plain_cost:.3g}",
            "saving": lambda row: f"{row['plain_cost'] / row['cost']:.1f}",
            "runs that warned": "{warned} of {repeats}",
        },
        [row | {"scheme": scheme} for scheme, found in numbers["schemes"].items() for row in found["costs"]],
        caption="Errors: root mean square over independent runs, against the spectral solution. Work in path-steps.",
    )


def draw(path: Path) -> None:
    """Draw multilevel.png and multilevel.pdf beside multilevel.json, for the last scheme.

    Variance and mean by level, samples by level for each rmse, and rmse² times cost against plain Monte Carlo.
    """
    *_, found = json.loads(path.read_text())["schemes"].values()
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.0, 7.0), layout="constrained")
        (variance, mean), (samples, cost) = figure.subplots(2, 2)
        levels = found["levels"]
        _by_level(variance, levels["variance_fine"], levels["variance_difference"])
        variance.set(ylabel="log2 variance", title=f"β = {levels['beta']:.2f}")
        _by_level(mean, levels["mean_fine"], levels["mean_difference"])
        mean.set(ylabel="log2 |mean|", title=f"α = {levels['alpha']:.2f}")
        for row in found["costs"]:
            samples.semilogy(row["samples"], "o-", label=f"rmse {row['rmse']:g}")
        samples.set(xlabel="level l", ylabel="samples", xticks=range(len(levels["steps"])))
        rmse, plain, multilevel = np.array([[r[k] for k in ("rmse", "plain_cost", "cost")] for r in found["costs"]]).T
        cost.loglog(rmse, rmse**2 * plain, "o-", label="plain Monte Carlo")
        cost.loglog(rmse, rmse**2 * multilevel, "s--", label="multilevel")
        cost.set(xlabel="rmse", ylabel="rmse² × cost")
        for ax in (variance, mean, samples, cost):
            ax.legend()
        save(figure, path)


def _by_level(ax: Any, fine: list[float], difference: list[float]) -> None:
    """Both on level l; the first level has no difference."""
    levels = np.arange(len(fine))
    with np.errstate(divide="ignore"):
        ax.plot(levels, np.log2(np.abs(fine)), "o-", label="$P_l$")
        ax.plot(levels[1:], np.log2(np.abs(difference[1:])), "s--", label="$P_l - P_{l-1}$")
    ax.set(xlabel="level l", xticks=levels)
