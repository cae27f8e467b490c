"""Shows what studies/fig4_diffusion.py stored: a table on the terminal, and Figure 4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.draw.style import COLOURS, save, styled
from studies.lab.reporting import show
from studies.paper.figure4 import RANGES

LETTERS = "abc"
LINES = {
    "method": "{method}",
    "solver grid, dt": "1/{solver_points}, {dt:g}",
    "range": "{minimum:.3f} .. {maximum:.3f}",
    "  paper's colour bar": "{paper[0]:g} .. {paper[1]:g}",
    "total variation": "{total_variation:.3g}",
    "steepest gradient": "{steepest_gradient:.3g}",
    "error: rms": "{error_rms:.2g}",
    "  95% of nodes below": "{error_95:.2g}",
    "  maximum": "{error_max:.2g}",
    "  refined: 95% below": "{refined_error_95:.2g}",
    "digits: panel, refined": "{certain[0]:.1f}, {certain[1]:.1f}",
    "paths - panel, rms": "{rms_to_paths:.2g}",
    "paths - refined, rms": "{rms_refined_to_paths:.2g}",
    "probes within errors": "{within_error:.0%} of {probes}",
    "z: rms, largest": "{z_rms:.2f}, {z_max:.2f}",
    "  within 3": "{z_within_3:.0%}",
}


def report(stored: dict[str, Any]) -> None:
    """Print the table of fig4.json."""
    config = stored["provenance"]["config"]
    panels = [
        panel | {"paper": paper, "certain": [certain(panel[name]) for name in ("error_95", "refined_error_95")]}
        for panel, paper in zip(stored["panels"], RANGES, strict=True)
    ]
    heads = [f"({letter}) σ = {panel['sigma']:g}" for letter, panel in zip(LETTERS, panels, strict=True)]
    show(
        f"Figure 4, {config['velocity']} velocity, {config['continuation']} between nodes, seed {config['seed']}",
        {name: f"{{{number}}}" for number, name in enumerate(["", *heads])},
        [[name, *(shown(line, panel) for panel in panels)] for name, line in LINES.items()],
        caption=f"(d) u(x, 1): max |f| = {stored['max_terminal']:.3f}, total variation "
        f"{stored['variation_terminal']:.3g}. Error: |panel - refined solution| over all nodes. Probes count as within "
        "errors where |paths - panel| is at most the panel's error there plus the refined solution's plus three errors "
        "of the paths. z carries sampling and time-step error of the paths alone, where the panel is resolved. Digits: "
        "decimal places certain at 95% of the nodes.",
    )


def shown(line: str, panel: Mapping[str, Any]) -> str:
    return "-" if "{z_" in line and "z_rms" not in panel else line.format(**panel)


def certain(error: float) -> float:
    """Decimal places that an error leaves certain."""
    return max(-math.log10(2.0 * error), 0.0)


def draw(path: Path) -> None:
    """Draw fig4.png and fig4.pdf beside fig4.nc."""
    data = xr.load_dataset(path, engine="h5netcdf")
    panels = {
        f"({letter})  u(x, 0),  σ = {sigma:g}": data.u.sel(sigma=sigma).values
        for letter, sigma in zip(LETTERS, data.sigma.values, strict=True)
    }
    with styled():
        save(plot_panels(panels | {"(d)  u(x, 1)": data.terminal.values}), path)


def plot_panels(panels: Mapping[str, NDArray[np.float64]]) -> Any:
    """Fields (N, N) on the unit square side by side, each with its own levels and colour bar. Keys are titles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(panels), 2.75), layout="constrained")
    for ax, (title, field) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        plot_field(ax, field)
        ax.set_title(title)
    return figure


def plot_field(ax: Any, u: NDArray[np.float64]) -> Any:
    """Filled level sets of nodal values (N, N), with their contour lines; the periodic edge is repeated."""
    from matplotlib.ticker import MaxNLocator

    axis, closed = np.arange(len(u) + 1) / len(u), np.pad(u, (0, 1), mode="wrap")
    levels = list(MaxNLocator(11).tick_values(float(closed.min()), float(closed.max())))
    filled = ax.contourf(axis, axis, closed.T, levels=levels, cmap=COLOURS)
    ax.contour(axis, axis, closed.T, levels=levels, colors="k", linewidths=0.3, negative_linestyles="solid")
    ax.set(aspect="equal", xlim=(0, 1), ylim=(0, 1))
    ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    ax.figure.colorbar(filled, ax=ax, fraction=0.046, pad=0.04).ax.tick_params(labelsize="small")
    return filled
