"""Draws the figure of neural_pde.py from neural_pde.nc and neural_pde.json, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

COLOURS = "cividis"  # monotone in lightness, so grey print and colour-blind readers see the same
LEVELS = np.linspace(0, 1, 11)
INK: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.fontsize": 6.5,
}


def draw(out: Path) -> None:
    """Draw neural_pde.png and neural_pde.pdf in the folder of the stored numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    numbers = json.loads((out / "neural_pde.json").read_text())
    with xr.open_dataset(out / "neural_pde.nc", engine="h5netcdf") as fields, plt.rc_context(INK):
        figure = plt.figure(figsize=(9.2, 7.4), layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.04, wspace=0.02))
        parts: Any = figure.subfigures(2, 1, height_ratios=(2.05, 1))
        upper, lower = parts
        maps = upper.subplots(2, 4, sharex=True, sharey=True)
        _maps(upper, maps, fields.load(), numbers)
        _curves(lower.subplots(1, 4), numbers)
        for suffix in ("png", "pdf"):
            figure.savefig(out / f"neural_pde.{suffix}", dpi=220)
        plt.close(figure)


def _maps(figure: Any, axes: Any, fields: xr.Dataset, numbers: dict[str, Any]) -> None:
    config = numbers["provenance"]["config"]
    x = fields.x.values
    sigma, blocks = config["sigma"], config["num_blocks"]
    _velocity(axes[0, 0], fields)
    axes[0, 0].set_title("(a) velocity $F(x, ½)$ and data")
    panels = [
        (axes[0, 1], fields.transported, "(b) PDE, $σ = 0$"),
        (axes[0, 2], fields.diffused, f"(c) PDE, $σ = {sigma:g}$"),
        (axes[0, 3], fields.network, f"(d) network, {blocks} blocks, no noise"),
    ]
    for ax, letter, n in zip(axes[1], "efgh", fields.draws.values, strict=True):
        title = f"({letter}) {'mean of ' if n > 1 else ''}{n} noisy network{'s' if n > 1 else ''}"
        panels.append((ax, fields.ensemble.sel(draws=n), title))
    for ax, field, title in panels:
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
        ax.set_aspect("equal")
        ax.set_xticks([-2, 0, 2])
        ax.set_yticks([-2, 0, 2])
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
    ax.quiver(
        x[::step], x[::step], fx.T, fy.T, pivot="mid", angles="xy", scale_units="xy", scale=fastest / (1.1 * spacing),
        width=0.006, headwidth=3.5, headlength=4, headaxislength=3.5, color="k", zorder=2,
    )  # fmt: skip
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(x[0], x[-1])


def _curves(axes: Any, numbers: dict[str, Any]) -> None:
    _error_in_draws(axes[0], numbers["error_in_draws"])
    _error_in_blocks(axes[1], numbers["error_in_blocks"])
    _gradients(axes[2], numbers["smoothing"])
    _flips(axes[3], numbers["smoothing"], numbers["provenance"]["config"]["eps"])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(length=2, labelsize="small")


def _error_in_draws(ax: Any, errors: dict[str, Any]) -> None:
    from matplotlib.ticker import NullFormatter

    n = np.array(errors["draws"])
    markers, greys = "os^D", ("0.70", "0.52", "0.34", "0.0")
    for (depth, curve), marker, grey in zip(errors["curves"].items(), markers, greys, strict=True):
        ax.loglog(n, curve, marker=marker, ms=3, color=grey, label=f"$L = {depth}$")
    deepest = list(errors["curves"].values())[-1]
    ax.loglog(n, 0.6 * deepest[0] / np.sqrt(n), "k:", lw=0.9)
    middle = len(n) // 2
    ax.annotate("$n^{-1/2}$", (n[middle], 0.55 * deepest[0] / np.sqrt(n[middle])), ha="right", va="top")
    ax.set_title(f"(i) {_signed(errors['slope_without_time_step'])} in $n$", loc="left")
    ax.set_xlabel("networks averaged, $n$")
    ax.set_ylabel("|ensemble − PDE|, rms")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False)


def _error_in_blocks(ax: Any, errors: dict[str, Any]) -> None:
    from matplotlib.ticker import NullFormatter

    depth = np.array(errors["blocks"])
    rms = np.maximum(errors["rms"], 1e-5)  # zero: below what sampling shows
    ax.loglog(depth, rms, "ko-", ms=4, label="time step, measured")
    ax.loglog(depth, 0.7 * rms[0] * depth[0] / depth, "k:", lw=0.9)
    ax.annotate("$1/L$", (depth[1], 0.66 * rms[0] * depth[0] / depth[1]), ha="right", va="top")
    ax.loglog(depth, errors["sampling_error"], "s--", color="0.5", ms=3, label="sampling")
    ax.axhline(errors["grid_error"], color="0.5", lw=0.9, ls="-.", label="PDE grid")
    ax.set_xticks(depth, [str(d) for d in depth])
    ax.minorticks_off()
    ax.set_title(f"(j) {_signed(errors['slope'])} in $L$", loc="left")
    ax.set_xlabel("blocks, $L$")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False, loc="upper right")


def _gradients(ax: Any, rows: list[dict[str, Any]]) -> None:
    noisy = [row for row in rows if row["sigma"] > 0]  # without noise the bounds are e^γ |∇f|, far off the picture
    sigma = [row["sigma"] for row in noisy]
    ax.semilogy(sigma, [row["bernstein"] for row in noisy], "--", color="0.5", label="Theorem 2, proof with ½σ²")
    ax.semilogy(sigma, [row["coupling"] for row in noisy], color="0.5", label="coupling, sharp in general")
    ax.semilogy([r["sigma"] for r in rows], [r["gradient"] for r in rows], "ko-", ms=4, label="PDE, $\\max|∇u|$")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
    ax.set_title("(k) steepest gradient", loc="left")
    ax.set_xlabel("noise, $σ$")
    ax.legend(frameon=False, loc="upper right")


def _flips(ax: Any, rows: list[dict[str, Any]], eps: float) -> None:
    sigma = [row["sigma"] for row in rows]
    ax.plot(sigma, [100 * row["flipped"] for row in rows], "ko-", ms=4, label=f"flipped within {eps:g}")
    ax.plot(sigma, [100 * (1 - row["accuracy"]) for row in rows], "s--", color="0.5", ms=3, label="wrong unperturbed")
    ax.set_ylim(bottom=0)
    ax.set_title("(l) test points, in %", loc="left")
    ax.set_xlabel("noise, $σ$")
    ax.legend(frameon=False)


def _signed(slope: float) -> str:
    return f"slope {slope:.2f}".replace("-", "−")
