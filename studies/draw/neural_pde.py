"""Shows what studies/neural_pde.py stored: tables on the terminal, and one figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from studies.draw.style import save, styled
from studies.lab.reporting import console, show

Fields = dict[str, Any]

COLOURS = "cividis"  # monotone in lightness, so grey print and colour-blind readers see the same
LEVELS = np.linspace(0, 1, 11)


def report(numbers: Fields) -> None:
    """Print the numbers of neural_pde.json."""
    config, first = numbers["provenance"]["config"], numbers["checks"][0]
    in_draws, in_blocks = numbers["error_in_draws"], numbers["error_in_blocks"]
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
        f"By path: rms difference from Euler-Maruyama steps of the equation.\n"
        f"Slope in n: {in_draws['slope_up_to_32']:.3f} up to n = 32, {in_draws['slope_without_time_step']:.3f} with "
        f"the time-step error taken out.\nError for L = {in_blocks['blocks']}: {listed(in_blocks['rms'], '.4f')}; "
        f"slope in L {in_blocks['slope']:.2f}.",
    )
    show(
        "Other networks, 32 blocks of the same flow",
        {
            "data": "{shape}",
            "σ": "{sigma:g}",
            "trained L": "{trained_blocks}",
            "trained eps": "{adversarial_eps:g}",
            "within error": "{coverage:.1%}",
            "p": "{p_value:.2g}",
            "accuracy": "{accuracy:.1%}",
            f"flipped at {config['eps']:g}": "{flipped:.1%}",
        },
        numbers["networks"],
    )
    show(
        "Multilevel against the plain ensemble of the deepest network",
        {
            "rmse": "{rmse:g}",
            "deepest L": "{deepest}",
            "blocks passed": "{cost:.3g}",
            "plain": "{plain_cost:.3g}",
            "saving": "{saving:.1f} times",
            "β": "{beta:.2f}",
        },
        numbers["multilevel"],
        caption=multilevel_verdict(numbers["multilevel"]),
    )
    weights = numbers["weights"]
    nearest = ", ".join(f"({listed(pair)}) for n = {n}" for n, pair in weights["nearest_to_pde"].items())
    control = ", ".join(f"{row['fitted']:.2g} at σ = {row['sigma']:g}" for row in numbers["control"])
    console.print(
        f"Weights of 8 and 16 blocks: extrapolation (-1, 2); nearest to the PDE {nearest}; learned on labels "
        f"({listed(weights['learned_on_labels'])}). The first-order control divides the variance by {control}. "
        f"{numbers['seconds']:.0f} s."
    )


def yes(holds: bool) -> str:
    return "yes" if holds else "no"


def listed(values: list[float], form: str = ".2f") -> str:
    return ", ".join(format(value, form) for value in values)


def multilevel_verdict(rows: list[Fields]) -> str:
    """For which rmse multilevel is cheaper than the plain ensemble."""
    pays, loses = (", ".join(f"{row['rmse']:g}" for row in rows if row["pays"] is kind) for kind in (True, False))
    paying = f"Multilevel pays for rmse {pays}." if pays else "Multilevel pays for none of these."
    return paying + (f" For {loses} the plain ensemble is cheaper, and simpler." if loses else "")


def draw(out: Path) -> None:
    """Draw neural_pde.png and neural_pde.pdf in the folder of the stored numbers."""
    numbers = json.loads((out / "neural_pde.json").read_text())
    fields = xr.load_dataset(out / "neural_pde.nc", engine="h5netcdf")
    with styled(
        {"font.size": 8, "axes.titlesize": 8.5, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "legend.fontsize": 6.5}
    ):
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure = Figure(figsize=(9.2, 7.4), layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.04, wspace=0.02))
        parts: Any = figure.subfigures(2, 1, height_ratios=(2.05, 1))
        upper, lower = parts
        _maps(upper, fields, numbers["provenance"]["config"])
        curves = lower.subplots(1, 4)
        _error_in_draws(curves[0], numbers["error_in_draws"])
        _error_in_blocks(curves[1], numbers["error_in_blocks"])
        _gradients(curves[2], numbers["smoothing"])
        _flips(curves[3], numbers["smoothing"], numbers["provenance"]["config"]["eps"])
        for ax in curves:
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(length=2, labelsize="small")
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


def _error_in_draws(ax: Any, errors: Fields) -> None:
    n = np.array(errors["draws"])
    for (depth, curve), marker, grey in zip(
        errors["curves"].items(), "os^D", ("0.70", "0.52", "0.34", "0.0"), strict=True
    ):
        ax.loglog(n, curve, marker=marker, ms=3, color=grey, label=f"$L = {depth}$")
    deepest = list(errors["curves"].values())[-1]
    ax.loglog(n, 0.6 * deepest[0] / np.sqrt(n), "k:", lw=0.9)
    middle = len(n) // 2
    ax.annotate("$n^{-1/2}$", (n[middle], 0.55 * deepest[0] / np.sqrt(n[middle])), ha="right", va="top")
    ax.set_title(f"(i) {_signed(errors['slope_without_time_step'])} in $n$", loc="left")
    ax.set(xlabel="networks averaged, $n$", ylabel="|ensemble − PDE|, rms")
    ax.yaxis.set_tick_params(which="minor", labelleft=False)
    ax.legend()


def _error_in_blocks(ax: Any, errors: Fields) -> None:
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
    _leave_room(ax, 0.45)
    ax.legend(loc="upper right")


def _gradients(ax: Any, rows: list[Fields]) -> None:
    noisy = [row for row in rows if row["sigma"] > 0]  # without noise the bounds are e^γ |∇f|, far off the picture
    sigma = [row["sigma"] for row in noisy]
    ax.semilogy(sigma, [row["bernstein"] for row in noisy], "--", color="0.5", label="Theorem 2, proof with ½σ²")
    ax.semilogy(sigma, [row["coupling"] for row in noisy], color="0.5", label="coupling, sharp in general")
    ax.semilogy([r["sigma"] for r in rows], [r["gradient"] for r in rows], "ko-", ms=4, label="PDE, $\\max|∇u|$")
    ax.set_title("(k) steepest gradient", loc="left")
    ax.set_xlabel("noise, $σ$")
    _leave_room(ax, 0.4)
    ax.legend(loc="upper right")


def _flips(ax: Any, rows: list[Fields], eps: float) -> None:
    sigma = [row["sigma"] for row in rows]
    ax.plot(sigma, [100 * row["flipped"] for row in rows], "ko-", ms=4, label=f"flipped within {eps:g}")
    ax.plot(sigma, [100 * (1 - row["accuracy"]) for row in rows], "s--", color="0.5", ms=3, label="wrong unperturbed")
    ax.set_ylim(bottom=0)
    ax.set_title("(l) test points, in %", loc="left")
    ax.set_xlabel("noise, $σ$")
    ax.legend()


def _leave_room(ax: Any, share: float) -> None:
    """Extend a logarithmic axis upwards, for the legend."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** share)


def _signed(slope: float) -> str:
    return f"slope {slope:.2f}".replace("-", "−")
