"""Draws what studies/theorems.py stored: verdicts on the terminal, one figure; reads the JSON file and nothing else."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import erf

from pdekit.plotting import COLOURS
from pdekit.regularity import coupling_constant, coupling_modulus
from studies.paper.theorems import BOUNDS, columns, envelopes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Fields = dict[str, Any]
NAMES = {
    "printed": "printed",
    "halved": "with σ²/2",
    "bernstein": "μ = 1",
    "best_mu": "best μ",
    "coupling": "coupling",
}
REFINEMENT = "two thirds of nodes and steps against all"
STYLES = {"rough": "-", "medium": "--", "smooth": ":"}
KINDS = {"constant": "D", "rough": "o", "medium": "s", "smooth": "^"}


def report(path: Path, console: Console) -> None:
    """Print three tables from theorems.json: the fits of Theorem 1, its verdicts, and those of Theorem 2."""
    verdicts = json.loads(path.read_text())["verdicts"]
    console.print(_fits(verdicts["theorem1"]))
    console.print(_theorem1(verdicts["theorem1"]))
    console.print(_theorem2(verdicts["theorem2"], verdicts["ramp"]))


def _pm(pair: list[float], digits: int = 3) -> str:
    mean, error = pair
    return f"{mean:.{digits}f}±{error:.{digits}f}" if error else f"{mean:.{digits}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _verdict(holds: bool | None) -> str:
    return {True: "[green]holds[/green]", False: "[red]does not hold[/red]", None: ""}[holds]


def _fits(found: Fields) -> Table:
    table = Table(
        title="Theorem 1: fits of C (|δ|/σ)^α to |u(x + δ, 0) - u(x, 0)|, f = ±1 with jumps",
        caption="σ from 0.05 (d = 2: 0.1) to 1. α and C: least squares of log ω on log |δ|/σ up to ½, where ω is one "
        "velocity's largest modulus over σ and f; mean over n velocities ± standard error. C at α = 1: the smallest "
        f"with ω <= C |δ|/σ. Discretisation error of ω: {_percent(found['error_relative'])} at most ({REFINEMENT}).",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("F", "max|F|", "n", "γ", "α", "C", "C at α = 1"):
        table.add_column(name, justify="left" if name == "F" else "right", no_wrap=True)
    for fit in found["fits"]:
        table.add_row(
            f"{fit['kind']}, d = {fit['dim']}", f"{fit['speed']:g}", str(fit["n"]), _pm(fit["gamma"], 2),
            _pm(fit["alpha"], 4), _pm(fit["C"]), _pm(fit["C_at_alpha_1"]),
        )  # fmt: skip
    return table


def _theorem1(found: Fields) -> Table:
    closed, spread, coupling = found["closed_form"], found["collapse"], found["coupling"]
    small, lines, last = spread["random_small_sigma"], found["steep"], found["steep"][-1]
    sigmas, moduli = (
        ", ".join(f"{value:g}" for value in values)
        for values in ([line["sigma"] for line in lines], [round(line["modulus_at_quarter"][0], 2) for line in lines])
    )
    error = _percent(found["error_relative"])
    growth = "; ".join(f"{g['kind']} {_pm(g['exponent'], 2)}" for g in found["growth"])
    rows = [
        (
            "F constant: sums of erf",
            closed["largest_difference"] <= closed["error_max"],
            f"differs from the closed form by {closed['largest_difference']:.1e} at most (relative, |δ|/σ <= ½: "
            f"{closed['largest_relative']:.1e}), error estimated as {closed['error_max']:.1e}, "
            f"n = {closed['n']}; C = √(2/π) = 0.798",
        ),
        (
            "C |δ|/σ for each F and every σ <= 1",
            found["envelope"]["finite"],
            f"C <= {found['envelope']['C']:.2f}, error {error}: {found['velocities']} velocities, "
            f"n = {found['n']} solutions",
        ),
        (
            "collapse over |δ|/σ",
            None,
            "C(σ) of one velocity, largest / smallest. F constant: "
            f"{spread['constant']['largest']:.3f}. Random F, σ <= 1: median {spread['random']['median']:.2f}, largest "
            f"{spread['random']['largest']:.2f}; σ <= 0.2: median {small['median']:.3f}, largest "
            f"{small['largest']:.2f} (n = {spread['random']['n']}; error {error})",
        ),
        (
            "C ~ max|F|^p",
            None,
            f"p = {growth} (max|F| from ½ to 2, n = {found['growth'][0]['n']} velocities each)",
        ),
        (
            "ω <= 2|f| erf(|δ|/(2√2 σ s)), s² = (1 - e^(-2γ))/2γ",
            coupling["violations"] == 0,
            f"{coupling['violations']} of {coupling['n']} moduli exceed it by more than their error; "
            f"largest measured / bound {coupling['largest_ratio']:.4f}",
        ),
        (
            "C from d, |f|, max|F| alone",
            last["modulus_at_quarter"][0] < 1.9,
            f"max|F| = 1: C at σ = {last['sigma']:g} grows from {last['constants'][0]:.2f} (γ = {last['gammas'][0]:g}) "
            f"to {last['constants'][-1]:.1f} (γ = {last['gammas'][-1]:g}). There the modulus at |δ| = σ/4 "
            f"is {moduli} for σ = {sigmas}, towards its largest value 2, so that no C and α > 0 serve every σ "
            f"(n = {sum(len(line['gammas']) for line in lines)}; error "
            f"{_percent(max(line['error_relative'] for line in lines))})",
        ),
    ]
    table = Table(title="Theorem 1: verdicts", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("claim", ratio=4)
    table.add_column("", no_wrap=True)
    table.add_column("found", ratio=9)
    for claim, holds, text in rows:
        table.add_row(claim, _verdict(holds), text)
    return table


def _theorem2(found: Fields, ramp: Fields) -> Table:
    start, attained, printed = ramp["fails_from"], ramp["coupling_ratio"], found["bounds"]["printed"]
    where = ""
    if printed["fails"]:
        where = (
            f"The printed bound fails only where σ >= {printed['smallest_sigma']:.2f} and "
            f"σ² >= {printed['smallest_sigma2_over_gamma']:.2f} γ; "
        )
    median, largest = map(_percent, found["error_relative"])
    table = Table(
        title=f"Theorem 2: max|∇u(·, 1)|, {found['velocities']} velocities, {found['n']} solutions",
        caption="Bounds: Eq. 13 as printed; the same with σ²/2; its proof with ½σ²Δ at μ = 1 and at the best μ; by "
        "coupling, the sharp one. Above: by more than the measured value's error; share ± standard error over "
        f"velocities. Error: median {median}, largest {largest} ({REFINEMENT}); images of u0 in the box add "
        f"{_percent(found['images_relative'])} at most.\n"
        f"{where}where its proof stands (γ >= σ², |u0| <= 2|∇u0|) it fails in {printed['fails_where_proven']} of "
        f"{found['proven']}.\n"
        f"Ramp: |∇u(1)| = erf(1/√2σ) to {ramp['closed_form_difference']:.0e}, cut-off and box change "
        f"{ramp['images_max']:.0e} at most. The printed bound fails from σ = {start['printed']:.4f} on, with σ²/2 from "
        f"{start['halved']:.4f}; coupling is attained: measured / bound = {attained[0]:.5f} to {attained[1]:.5f}.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    rows = list(found["bounds"].values())
    table.add_column("", no_wrap=True)
    for name in found["bounds"]:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    broken = [row["fails"] + ramp["fails"][name] for name, row in found["bounds"].items()]
    table.add_row("verdict", *["[red]fails[/red]" if count else "[green]holds[/green]" for count in broken])
    table.add_row("above the bound", *[f"{row['fails']}" for row in rows])
    table.add_row("  within error", *[f"{row['undecided']}" for row in rows])
    table.add_row("  share, %", *[_pm([100 * x for x in row["share"]], 1) for row in rows])
    for number, band in enumerate(rows[0]["bands"]):
        cells = [f"{row['bands'][number]['fails']} of {row['bands'][number]['n']}" for row in rows]
        table.add_row(f"  σ {band['low']:g} to {band['high']:g}", *cells)
    table.add_row("measured / bound", *[f"{row['largest_ratio']:.3g}" for row in rows])
    table.add_row("  median", *[f"{row['median_ratio']:.2g}" for row in rows])
    table.add_row("ramp, F = 0: fails", *[f"{ramp['fails'][name]} of {ramp['n']}" for name in found["bounds"]])
    return table


def draw(path: Path) -> None:
    """Draw theorems.png and theorems.pdf beside theorems.json."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stored = json.loads(path.read_text())
    with plt.rc_context({"font.size": 8.5, "axes.titlesize": 9, "legend.fontsize": 7.5, "legend.frameon": False}):
        figure, axes = plt.subplots(2, 3, figsize=(11.5, 7.0), layout="constrained")
        _draw_collapse(axes[0, 0], stored)
        _draw_constants(axes[0, 1], stored)
        _draw_steep(axes[0, 2], stored)
        _draw_map(axes[1, 0], stored)
        _draw_tightness(axes[1, 1], stored)
        _draw_ramp(axes[1, 2], stored)
        for letter, ax in zip("abcdef", axes.flat, strict=True):
            ax.set_title(f"({letter})  {ax.get_title()}", loc="left")
            ax.set_title("")
        for suffix in ("png", "pdf"):
            figure.savefig(path.with_suffix(f".{suffix}"), dpi=200)
        plt.close(figure)


def _shade(value: float, low: float, high: float) -> Any:
    """A colour for a value on a logarithmic scale; the palest end of the map is left out."""
    import matplotlib

    return matplotlib.colormaps[COLOURS](0.88 * np.log(value / low) / np.log(high / low))


def _draw_collapse(ax: Axes, stored: Fields) -> None:
    """Moduli divided by |δ|/σ: one curve for every σ where they collapse, level where α = 1."""
    z = np.array(stored["scaled_shifts"])
    flows = envelopes(stored["moduli"])
    line = [f for f in flows if f["dim"] == 1]
    for kind, style in STYLES.items():
        flow = max((f for f in line if f["kind"] == kind and f["speed"] == 1.0), key=lambda f: f["supremum"][0])
        for sigma, omega in zip(flow["sigmas"], flow["by_sigma"], strict=True):
            ax.semilogx(z, omega / z, style, color=_shade(sigma, 0.05, 1.0), lw=1.1)
        ax.plot([], [], style, color="0.3", lw=1.1, label=f"{kind} F")
    still = next(f for f in line if f["kind"] == "constant")
    ax.semilogx(z, coupling_modulus(z, 0.0, 1.0) / z, "k-", lw=0.8, label="F constant: erf")
    ax.semilogx(z, still["supremum"] / z, "kD", ms=3, mfc="w", label="  measured")
    for sigma in line[0]["sigmas"]:
        ax.plot([], [], color=_shade(sigma, 0.05, 1.0), lw=2.5, label=f"σ = {sigma:g}")
    ax.set(xlabel="|δ| / σ", ylabel="sup |u(x + δ, 0) - u(x, 0)| · σ/|δ|", title="Theorem 1: moduli, max|F| = 1, d = 1")
    ax.set_ylim(0.5, 1.45 * max(f["supremum"][0] / z[0] for f in line if f["speed"] == 1.0))
    ax.legend(loc="upper left", ncol=3, columnspacing=1.0)


def _draw_constants(ax: Axes, stored: Fields) -> None:
    z = np.array(stored["scaled_shifts"])
    flows = envelopes(stored["moduli"])
    for kind, marker in KINDS.items():
        group = [f for f in flows if f["kind"] == kind]
        ax.scatter(
            [f["gamma"] for f in group], [(f["supremum"] / z).max() for f in group], marker=marker, s=22, lw=0.6,
            c=[_shade(f["speed"], 0.5, 2.0) for f in group], edgecolors=["k" if f["dim"] == 2 else "w" for f in group],
            zorder=3,
        )  # fmt: skip
        ax.scatter([], [], marker=marker, c="0.5", s=22, label=kind)
    for speed in sorted({f["speed"] for f in flows}):
        ax.scatter([], [], marker="o", s=22, color=_shade(speed, 0.5, 2.0), label=f"max|F| = {speed:g}")
    ax.scatter([], [], marker="o", s=22, c="w", edgecolors="k", label="d = 2 (black rim)")
    gamma = np.linspace(0, 1.05 * max(f["gamma"] for f in flows), 200)
    ax.plot(gamma, coupling_constant(gamma), "k-", lw=1, label="√(2/π) / s(γ)")
    ax.set(xlabel="γ, largest stretching rate of F", ylabel="C = sup σω/|δ|", title="Theorem 1: the constant at α = 1")
    ax.set_ylim(0.6, 1.15 * float(coupling_constant(gamma[-1])))
    ax.legend(loc="upper left", ncol=2)


def _draw_steep(ax: Axes, stored: Fields) -> None:
    for line, style in zip(stored["verdicts"]["theorem1"]["steep"], ("o", "s", "^", "v"), strict=True):
        colour = _shade(line["sigma"], 0.05, 1.0)
        ax.loglog(
            line["gammas"], line["constants"], style + "-", color=colour, ms=3.5, lw=1, label=f"σ = {line['sigma']:g}"
        )
    gamma = np.geomspace(1, 400, 100)
    ax.loglog(gamma, coupling_constant(gamma), "k-", lw=1, label="√(2/π) / s(γ)")
    for line in stored["verdicts"]["theorem1"]["steep"]:
        ax.axhline(2 / line["sigma"], xmin=0.82, color=_shade(line["sigma"], 0.05, 1.0), ls=":", lw=1.2)
    ax.plot([], [], "k:", lw=1.2, label="γ → ∞:  2 max|F| / σ")
    ax.set(xlabel="γ, while max|F| = 1", ylabel="C = sup σω/|δ|", title="Theorem 1: C is no function of max|F|")
    ax.set_ylim(0.9, 55)
    ax.legend(loc="upper left")


def _draw_map(ax: Axes, stored: Fields) -> None:
    gamma, sigma, u_max, grad_max, measured, error, images = columns(
        stored["gradients"], "gamma", "sigma", "u_max", "grad_max", "measured", "error", "images"
    )
    bound = BOUNDS["printed"](gamma, sigma, u_max, grad_max)
    fails = measured - error - images > bound
    ax.scatter(gamma[~fails], sigma[~fails], s=7, facecolors="none", edgecolors="0.6", lw=0.5, label="holds")
    found = ax.scatter(
        gamma[fails], sigma[fails], s=26, c=np.log10(measured / bound)[fails], cmap=f"{COLOURS}_r", edgecolors="k",
        lw=0.4, vmin=0.0, label="fails", zorder=3,
    )  # fmt: skip
    ramp = stored["ramp"]
    failing = [s for s in ramp["sigma"] if s > stored["verdicts"]["ramp"]["fails_from"]["printed"]]
    ax.plot([0.0] * len(failing), failing, "k_", ms=9, mew=1.0, clip_on=False, zorder=4, label="fails for the ramp")
    curve = np.linspace(0, 5, 200)
    ax.plot(curve, np.sqrt(curve), "k-", lw=1.2, label="σ² = γ, the proof's limit")
    ax.set(xlabel="γ", ylabel="σ", title="Theorem 2: where Eq. 13 as printed fails", xlim=(0, 5), ylim=(0, 4.2))
    ax.set_yticks([0, 1, 2, 3])
    bar = ax.figure.colorbar(found, cax=ax.inset_axes((0.71, 0.94, 0.26, 0.025)), orientation="horizontal")
    bar.set_label("log₁₀ of the excess", fontsize=7.5, labelpad=1)
    bar.ax.tick_params(labelsize=7, pad=1)
    ax.legend(loc="upper left", ncol=2, columnspacing=0.6, handletextpad=0.3, borderaxespad=0.2, handlelength=1.3)


def _draw_tightness(ax: Axes, stored: Fields) -> None:
    gamma, sigma, u_max, grad_max, measured = columns(
        stored["gradients"], "gamma", "sigma", "u_max", "grad_max", "measured"
    )
    edges = np.quantile(sigma, np.linspace(0, 1, 9))
    styles = {"printed": ("o", 0.85), "bernstein": ("s", 0.6), "best_mu": ("^", 0.35), "coupling": ("v", 0.0)}
    import matplotlib

    for name, (marker, shade) in styles.items():
        ratio = measured / BOUNDS[name](gamma, sigma, u_max, grad_max)
        inside = [(sigma >= a) & (sigma <= b) for a, b in pairwise(edges)]
        centre = [np.median(sigma[i]) for i in inside]
        colour = matplotlib.colormaps[COLOURS](shade)
        ax.plot(
            centre,
            [ratio[i].max() for i in inside],
            marker + "-",
            color=colour,
            ms=4,
            lw=1.2,
            label=NAMES[name].strip(),
        )
        ax.plot(centre, [np.median(ratio[i]) for i in inside], marker + ":", color=colour, ms=3, lw=1)
    ax.axhline(1, color="k", lw=0.8)
    ax.set_yscale("log")
    ax.set(xlabel="σ", ylabel="measured / bound", title="Theorem 2: largest (—) and median (···) ratio")
    ax.set_ylim(top=10 * ax.get_ylim()[1])
    ax.legend(loc="upper left", ncol=2)


def _draw_ramp(ax: Axes, stored: Fields) -> None:
    ramp = stored["ramp"]
    sigma = np.linspace(ramp["sigma"][0], ramp["sigma"][-1], 400)
    ax.plot(ramp["sigma"][::3], ramp["measured"][::3], "ko", ms=3, label="measured max|∇u(·, 1)|", zorder=4)
    ax.plot(sigma, erf(1 / (np.sqrt(2) * sigma)), "k-", lw=0.9, label="erf(1/√2σ), and the coupling bound")
    styles = {"printed": ("-", 0.0), "halved": ("--", 0.3), "bernstein": ("-.", 0.55), "best_mu": (":", 0.75)}
    import matplotlib

    for name, (style, shade) in styles.items():
        bound = BOUNDS[name](0.0, sigma, 1.0, 1.0)
        ax.plot(sigma, bound, style, color=matplotlib.colormaps[COLOURS](shade), lw=1.4, label=NAMES[name].strip())
    start = stored["verdicts"]["ramp"]["fails_from"]["printed"]
    ax.axvline(start, ymax=0.58, color="0.6", lw=0.8, zorder=0)
    ax.annotate(
        f"printed fails from σ = {start:.3f}", (start, 1.2), xytext=(4, 0), textcoords="offset points", fontsize=7.5
    )
    ax.set(xlabel="σ", ylabel="max|∇u(·, 1)|", title="Theorem 2: the ramp, F = 0", ylim=(0, 2.75))
    ax.legend(loc="upper right")
