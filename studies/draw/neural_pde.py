"""Shows what studies/neural_pde.py stored: tables on the terminal, and one figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from studies.draw.style import save, styled
from studies.lab.reporting import show

Fields = dict[str, Any]

COLOURS = "cividis"  # monotone in lightness, so grey print and colour-blind readers see the same
LEVELS = np.linspace(0, 1, 11)


def report(numbers: Fields) -> None:
    """Print the numbers of neural_pde.json."""
    config, first = numbers["provenance"]["config"], numbers["checks"][0]
    in_draws, in_blocks = numbers["error_in_draws"], numbers["error_in_blocks"]
    agree = sum(network["agrees"] for network in numbers["networks"])
    savings = ", ".join(f"{row['saving']:.1f} at rmse {row['rmse']:g}" for row in numbers["multilevel"])
    show(
        f"Ensemble against PDE ({config['shape']}, σ = {config['sigma']:g})",
        {
            "network": "{network}",
            "within error": "{coverage:.1%}",
            "p": "{p_value:.2g}",
            "rms error": "{rms:.2g}",
            "agrees": lambda row: yes(row["agrees"]),
            "by path": "{scheme_residual:.2g}",
            "follows": lambda row: yes(row["follows"]),
        },
        numbers["checks"],
        caption=f"{first['points']} points, {first['draws']} draws, {first['blocks']} blocks, as trained: sampling "
        f"error {first['sampling_error']:.2g}, time-step error {first['time_step_error']:.2g}, grid error at most "
        f"{first['grid_error']:.2g}; paths leave the box with probability at most {numbers['boundary']:.1g}.\n"
        "By path: rms difference from Euler-Maruyama steps of the equation.\n"
        f"Slope in n: {in_draws['slope_up_to_32']:.3f} up to n = 32. Error for L = {in_blocks['blocks']}: "
        f"{', '.join(f'{error:.4f}' for error in in_blocks['rms'])}; slope in L {in_blocks['slope']:.2f}.\n"
        f"Of {len(numbers['networks'])} other networks {agree} agree with their equations.\n"
        f"Multilevel takes this many times less work than the plain ensemble of the deepest network: {savings}.",
    )


def yes(holds: bool) -> str:
    return "yes" if holds else "no"


def draw(out: Path) -> None:
    """Draw neural_pde.png and neural_pde.pdf in the folder of the stored numbers."""
    numbers = json.loads((out / "neural_pde.json").read_text())
    fields = xr.load_dataset(out / "neural_pde.nc", engine="h5netcdf")
    with styled({"font.size": 8, "axes.titlesize": 8.5, "axes.linewidth": 0.6}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.2, 5.0), layout="constrained")
        _maps(figure, fields, numbers["provenance"]["config"])
        save(figure, out / "neural_pde.png", dpi=220)


def _maps(figure: Any, fields: xr.Dataset, config: Fields) -> None:
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    _velocity(axes[0, 0], fields)
    axes[0, 0].set_title("(a) velocity $F(x, ½)$ and data")
    panels = {
        "(b) PDE, $σ = 0$": fields.transported,
        f"(c) PDE, $σ = {config['sigma']:g}$": fields.diffused,
        f"(d) network, {config['num_blocks']} blocks, no noise": fields.network,
    }
    for letter, n in zip("efgh", fields.draws.values, strict=True):
        panels[f"({letter}) " + ("1 noisy network" if n == 1 else f"mean of {n} noisy networks")] = fields.ensemble.sel(
            draws=n
        )
    x = fields.x.values
    for ax, (title, field) in zip(axes.flat[1:], panels.items(), strict=True):
        values = np.clip(field.values.T, 0.0, 1.0)  # a spectral solution may overshoot by its grid error
        filled = ax.contourf(x, x, values, levels=LEVELS, cmap=COLOURS, extend="neither")
        if title.startswith("(e)"):
            # one draw a pixel has no level sets: show the pixels
            ax.pcolormesh(x, x, values, cmap=COLOURS, vmin=0, vmax=1, shading="nearest", rasterized=True)
        else:
            ax.contour(x, x, values, levels=LEVELS[1:-1], colors="k", linewidths=0.25)
            for colour, width in (("k", 2.4), ("w", 1.3)):
                ax.contour(x, x, values, levels=[0.5], colors=colour, linewidths=width)
        ax.set_title(title)
    for ax in axes.flat:
        ax.set(aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        ax.tick_params(length=2, labelsize="small")
    bar = figure.colorbar(filled, ax=list(axes[:, 3]), shrink=0.6, pad=0.03, ticks=[0, 0.5, 1])
    bar.set_label("probability of the second class; white line: ½")


def _velocity(ax: Any, fields: xr.Dataset) -> None:
    x = fields.x.values
    step = max(1, len(x) // 16)
    fx, fy = fields.velocity.values[:, ::step, ::step]
    for label, marker, face in ((0, "o", "0.62"), (1, "^", "w")):
        chosen = fields.data.values[fields.label.values == label]
        ax.scatter(*chosen.T, s=9, marker=marker, c=face, edgecolors="0.25", linewidths=0.35, zorder=1)
    spacing, fastest = x[step] - x[0], float(np.hypot(fx, fy).max())
    heads = {"width": 0.006, "headwidth": 3.5, "headlength": 4, "headaxislength": 3.5}
    units = {"pivot": "mid", "angles": "xy", "scale_units": "xy", "scale": fastest / (1.1 * spacing)}
    ax.quiver(x[::step], x[::step], fx.T, fy.T, color="k", zorder=2, **heads, **units)
    ax.set(xlim=(x[0], x[-1]), ylim=(x[0], x[-1]))
