"""Giles' four panels: means, variances, samples and costs of multilevel Monte Carlo by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pdekit.paths.multilevel import MultilevelEstimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_multilevel(estimates: MultilevelEstimate | Sequence[MultilevelEstimate], *, point: int = 0) -> Figure:
    """Variance and mean by level, samples by level for each rmse, and rmse² times cost against plain Monte Carlo.

    estimates: one, or several of the same problem at different rmse; the first two panels show the one with the most
    levels. point: which of its points. Needs matplotlib (the `plot` extra). Raises ValueError for an empty list.
    """
    from matplotlib.figure import Figure

    runs = [estimates] if isinstance(estimates, MultilevelEstimate) else list(estimates)
    if not runs:
        raise ValueError("estimates: expected at least one, got none")
    runs.sort(key=lambda e: -e.rmse)
    deepest = max(runs, key=lambda e: len(e.num_samples))
    figure = Figure(figsize=(9.0, 7.0), layout="constrained")
    (variance, mean), (samples, cost) = figure.subplots(2, 2)
    for axis, fine, difference, name in (
        (variance, deepest.variance_fine, deepest.variance_difference, "variance"),
        (mean, deepest.mean_fine, deepest.mean_difference, "|mean|"),
    ):
        levels = np.arange(len(fine))
        with np.errstate(divide="ignore"):
            axis.plot(levels, np.log2(np.abs(fine[:, point])), "o-", label="$P_l$")
            axis.plot(levels[1:], np.log2(np.abs(difference[1:, point])), "s--", label="$P_l - P_{l-1}$")
        axis.set(xlabel="level l", ylabel=f"log2 {name}", xticks=levels)
        axis.legend()
    variance.set_title(f"β = {deepest.beta:.2f}")
    mean.set_title(f"α = {deepest.alpha:.2f}")
    for run in runs:
        samples.semilogy(run.num_samples, "o-", label=f"rmse {run.rmse:g}")
    samples.set(xlabel="level l", ylabel="samples", xticks=np.arange(len(deepest.num_samples)))
    samples.legend()
    errors = [run.rmse for run in runs]
    cost.loglog(errors, [run.rmse**2 * run.plain_cost for run in runs], "o-", label="plain Monte Carlo")
    cost.loglog(errors, [run.rmse**2 * run.cost for run in runs], "s--", label="multilevel")
    cost.set(xlabel="rmse", ylabel="rmse² × cost")
    cost.legend()
    return figure
