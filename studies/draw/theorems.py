"""Shows what studies/theorems.py stored: verdicts on the terminal, and one figure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf

from pdekit.regularity import coupling_constant, coupling_modulus
from studies.draw.style import COLOURS, colour, save, styled
from studies.lab.reporting import show
from studies.paper.theorems import BOUNDS, columns, envelopes

Fields = dict[str, Any]
NAMES = {"printed": "printed", "halved": "with σ²/2", "bernstein": "μ = 1", "best_mu": "best μ", "coupling": "coupling"}
LINES = {"rough": "-", "medium": "--", "smooth": ":"}
MARKERS = {"constant": "D", "rough": "o", "medium": "s", "smooth": "^"}
VERDICTS = {True: "[green]holds[/green]", False: "[red]fails[/red]"}


def report(verdicts: Fields) -> None:
    """Print what became of the claims of both theorems."""
    first, second, ramp = (verdicts[name] for name in ("theorem1", "theorem2", "ramp"))
    show(
        "Theorem 1: the modulus ω of u(·, 0), f = ±1 with jumps",
        {"claim": "{0}", "": lambda row: VERDICTS[row[1]], "found": "{2}"},
        _theorem1(first),
        caption=f"Error of ω, by two thirds of nodes and steps: {100 * first['error_relative']:.2g}% at most.",
        num_texts=3,
    )
    median, largest = second["error_relative"]
    attained, start = ramp["coupling_ratio"], ramp["fails_from"]
    show(
        f"Theorem 2: max|∇u(·, 1)|, {second['velocities']} velocities, {second['n']} solutions, {ramp['n']} ramps",
        {
            "bound": lambda row: NAMES[row["name"]],
            "": lambda row: VERDICTS[not row["fails"] + row["ramp"]],
            "above": "{fails}",
            "± error": "{undecided}",
            "ramps above": "{ramp}",
            "largest ratio": "{largest_ratio:.3g}",
            "median": "{median_ratio:.2g}",
        },
        [found | {"name": name, "ramp": ramp["fails"][name]} for name, found in second["bounds"].items()],
        caption="Bounds: Eq. 13 as printed; the same with σ²/2; its proof with ½σ²Δ at μ = 1 and at the best μ; by "
        "coupling, the sharp one. Above: by more than the error of the measured value. Error: median "
        f"{100 * median:.2g}%, largest {100 * largest:.2g}%; images of u0 in the box add "
        f"{100 * second['images_relative']:.2g}% at most. Where its proof stands (γ >= σ², |u0| <= 2|∇u0|) the "
        f"printed bound fails in {second['bounds']['printed']['fails_where_proven']} of {second['proven']}.\n"
        f"Ramp, F = 0: |∇u(1)| = erf(1/√2σ) to {ramp['closed_form_difference']:.0e}. The printed bound fails from "
        f"σ = {start['printed']:.4f} on, with σ²/2 from {start['halved']:.4f}; coupling is attained: measured / bound "
        f"= {attained[0]:.5f} to {attained[1]:.5f}.",
        num_texts=2,
    )


def _theorem1(found: Fields) -> Iterator[tuple[str, bool, str]]:
    """The claims, what became of them, and the evidence."""
    closed, envelope, coupling = found["closed_form"], found["envelope"], found["coupling"]
    last = found["steep"][-1]
    yield (
        "F constant: sums of erf, C = √(2/π)",
        closed["largest_difference"] <= closed["error_max"],
        f"off by {closed['largest_difference']:.1e} at most, error {closed['error_max']:.1e}, n = {closed['n']}",
    )
    yield (
        "ω <= C |δ|/σ for each F, every σ <= 1",
        envelope["finite"],
        f"C <= {envelope['C']:.2f}; {found['velocities']} velocities, {found['n']} solutions",
    )
    yield (
        "ω <= 2|f| erf(|δ|/(2√2 σ s)), s² = (1 - e^(-2γ))/2γ",
        coupling["violations"] == 0,
        f"exceeded by {coupling['violations']} of {coupling['n']}; measured / bound <= {coupling['largest_ratio']:.4f}",
    )
    yield (
        "C from d, |f|, max|F| alone",
        last["modulus_at_quarter"][0] < 1.9,
        f"max|F| = 1, σ = {last['sigma']:g}: C grows from {last['constants'][0]:.2f} (γ = {last['gammas'][0]:g}) to "
        f"{last['constants'][-1]:.1f} (γ = {last['gammas'][-1]:g}), and ω at |δ| = σ/4 to "
        f"{last['modulus_at_quarter'][0]:.2f} of at most 2: no C and α > 0 serve every σ",
    )


def draw(path: Path) -> None:
    """Draw theorems.png and theorems.pdf beside theorems.json."""
    stored = json.loads(path.read_text())
    flows = envelopes(stored["moduli"], np.array(stored["scaled_shifts"]))
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.5, 7.0), layout="constrained")
        panels = figure.subplots(2, 3).flat
        _draw_collapse(panels[0], np.array(stored["scaled_shifts"]), flows)
        _draw_constants(panels[1], flows)
        _draw_steep(panels[2], stored["verdicts"]["theorem1"]["steep"])
        _draw_map(panels[3], stored)
        _draw_tightness(panels[4], stored["gradients"])
        _draw_ramp(panels[5], stored)
        for letter, ax in zip("abcdef", panels, strict=True):
            ax.set_title(f"({letter})  {ax.get_title()}", loc="left")
            ax.set_title("")
        save(figure, path)


def _shade(value: float, low: float, high: float) -> Any:
    """A colour for a value on a logarithmic scale."""
    return colour(0.88 * np.log(value / low) / np.log(high / low))


def _draw_collapse(ax: Any, z: np.ndarray, flows: list[Fields]) -> None:
    """Moduli divided by |δ|/σ: one curve for every σ where they collapse, level where α = 1."""
    line = [flow for flow in flows if flow["dim"] == 1]
    for kind, style in LINES.items():
        flow = max((f for f in line if f["kind"] == kind and f["speed"] == 1.0), key=lambda f: f["supremum"][0])
        for sigma, omega in zip(flow["sigmas"], flow["by_sigma"], strict=True):
            ax.semilogx(z, omega / z, style, color=_shade(sigma, 0.05, 1.0), lw=1.1)
        ax.plot([], [], style, color="0.3", lw=1.1, label=f"{kind} F")
    still = next(flow for flow in line if flow["kind"] == "constant")
    ax.semilogx(z, coupling_modulus(z, 0.0, 1.0) / z, "k-", lw=0.8, label="F constant: erf")
    ax.semilogx(z, still["supremum"] / z, "kD", ms=3, mfc="w", label="  measured")
    for sigma in line[0]["sigmas"]:
        ax.plot([], [], color=_shade(sigma, 0.05, 1.0), lw=2.5, label=f"σ = {sigma:g}")
    ax.set(xlabel="|δ| / σ", ylabel="sup |u(x + δ, 0) - u(x, 0)| · σ/|δ|", title="Theorem 1: moduli, max|F| = 1, d = 1")
    ax.set_ylim(0.5, 1.45 * max(flow["supremum"][0] / z[0] for flow in line if flow["speed"] == 1.0))
    ax.legend(loc="upper left", ncol=3, columnspacing=1.0)


def _draw_constants(ax: Any, flows: list[Fields]) -> None:
    for kind, marker in MARKERS.items():
        group = [flow for flow in flows if flow["kind"] == kind]
        gamma, constant = columns(group, "gamma", "constant")
        colours = [_shade(flow["speed"], 0.5, 2.0) for flow in group]
        rims = ["k" if flow["dim"] == 2 else "w" for flow in group]
        ax.scatter(gamma, constant, marker=marker, s=22, lw=0.6, c=colours, edgecolors=rims, zorder=3)
        ax.scatter([], [], marker=marker, c="0.5", s=22, label=kind)
    for speed in sorted({flow["speed"] for flow in flows}):
        ax.scatter([], [], marker="o", s=22, color=_shade(speed, 0.5, 2.0), label=f"max|F| = {speed:g}")
    ax.scatter([], [], marker="o", s=22, c="w", edgecolors="k", label="d = 2 (black rim)")
    gamma = np.linspace(0, 1.05 * max(flow["gamma"] for flow in flows), 200)
    ax.plot(gamma, coupling_constant(gamma), "k-", lw=1, label="√(2/π) / s(γ)")
    ax.set(xlabel="γ, largest stretching rate of F", ylabel="C = sup σω/|δ|", title="Theorem 1: the constant at α = 1")
    ax.set_ylim(0.6, 1.15 * float(coupling_constant(gamma[-1])))
    ax.legend(loc="upper left", ncol=2)


def _draw_steep(ax: Any, lines: list[Fields]) -> None:
    for line, marker in zip(lines, "os^v", strict=True):
        shade, label = _shade(line["sigma"], 0.05, 1.0), f"σ = {line['sigma']:g}"
        ax.loglog(line["gammas"], line["constants"], f"{marker}-", color=shade, ms=3.5, lw=1, label=label)
        ax.axhline(2 / line["sigma"], xmin=0.82, color=shade, ls=":", lw=1.2)
    gamma = np.geomspace(1, 400, 100)
    ax.loglog(gamma, coupling_constant(gamma), "k-", lw=1, label="√(2/π) / s(γ)")
    ax.plot([], [], "k:", lw=1.2, label="γ → ∞:  2 max|F| / σ")
    ax.set(xlabel="γ, while max|F| = 1", ylabel="C = sup σω/|δ|", title="Theorem 1: C is no function of max|F|")
    ax.set_ylim(0.9, 55)
    ax.legend(loc="upper left")


def _draw_map(ax: Any, stored: Fields) -> None:
    cases = columns(stored["gradients"], "gamma", "sigma", "u_max", "grad_max")
    measured, error, images = columns(stored["gradients"], "measured", "error", "images")
    gamma, sigma = cases[:2]
    bound = BOUNDS["printed"](*cases)
    fails = measured - error - images > bound
    ax.scatter(gamma[~fails], sigma[~fails], s=7, facecolors="none", edgecolors="0.6", lw=0.5, label="holds")
    excess = {"c": np.log10(measured / bound)[fails], "cmap": f"{COLOURS}_r", "vmin": 0.0}
    found = ax.scatter(gamma[fails], sigma[fails], s=26, edgecolors="k", lw=0.4, label="fails", zorder=3, **excess)
    start = stored["verdicts"]["ramp"]["fails_from"]["printed"]
    ramps = [s for s in stored["ramp"]["sigma"] if s > start]
    ax.plot([0.0] * len(ramps), ramps, "k_", ms=9, mew=1.0, clip_on=False, zorder=4, label="fails for the ramp")
    curve = np.linspace(0, 5, 200)
    ax.plot(curve, np.sqrt(curve), "k-", lw=1.2, label="σ² = γ, the proof's limit")
    ax.set(xlabel="γ", ylabel="σ", title="Theorem 2: where Eq. 13 as printed fails", xlim=(0, 5), ylim=(0, 4.2))
    ax.set_yticks([0, 1, 2, 3])
    bar = ax.figure.colorbar(found, cax=ax.inset_axes((0.71, 0.94, 0.26, 0.025)), orientation="horizontal")
    bar.set_label("log₁₀ of the excess", fontsize=7.5, labelpad=1)
    bar.ax.tick_params(labelsize=7, pad=1)
    ax.legend(loc="upper left", ncol=2, columnspacing=0.6, handletextpad=0.3, borderaxespad=0.2, handlelength=1.3)


def _draw_tightness(ax: Any, rows: list[Fields]) -> None:
    cases = columns(rows, "gamma", "sigma", "u_max", "grad_max")
    (measured,), sigma = columns(rows, "measured"), cases[1]
    inside = [(sigma >= a) & (sigma <= b) for a, b in pairwise(np.quantile(sigma, np.linspace(0, 1, 9)))]
    centre = [np.median(sigma[i]) for i in inside]
    for name, marker, shade in (
        ("printed", "o", 0.85),
        ("bernstein", "s", 0.6),
        ("best_mu", "^", 0.35),
        ("coupling", "v", 0),
    ):
        ratio = measured / BOUNDS[name](*cases)
        largest, medians = ([statistic(ratio[i]) for i in inside] for statistic in (np.max, np.median))
        ax.plot(centre, largest, f"{marker}-", color=colour(shade), ms=4, lw=1.2, label=NAMES[name])
        ax.plot(centre, medians, f"{marker}:", color=colour(shade), ms=3, lw=1)
    ax.axhline(1, color="k", lw=0.8)
    ax.set_yscale("log")
    ax.set(xlabel="σ", ylabel="measured / bound", title="Theorem 2: largest (—) and median (···) ratio")
    ax.set_ylim(top=10 * ax.get_ylim()[1])
    ax.legend(loc="upper left", ncol=2)


def _draw_ramp(ax: Any, stored: Fields) -> None:
    ramp, start = stored["ramp"], stored["verdicts"]["ramp"]["fails_from"]["printed"]
    sigma = np.linspace(ramp["sigma"][0], ramp["sigma"][-1], 400)
    ax.plot(ramp["sigma"][::3], ramp["measured"][::3], "ko", ms=3, label="measured max|∇u(·, 1)|", zorder=4)
    ax.plot(sigma, erf(1 / (np.sqrt(2) * sigma)), "k-", lw=0.9, label="erf(1/√2σ), and the coupling bound")
    for name, style, shade in (
        ("printed", "-", 0.0),
        ("halved", "--", 0.3),
        ("bernstein", "-.", 0.55),
        ("best_mu", ":", 0.75),
    ):
        ax.plot(sigma, BOUNDS[name](0.0, sigma, 1.0, 1.0), style, color=colour(shade), lw=1.4, label=NAMES[name])
    ax.axvline(start, ymax=0.58, color="0.6", lw=0.8, zorder=0)
    said = f"printed fails from σ = {start:.3f}"
    ax.annotate(said, (start, 1.2), xytext=(4, 0), textcoords="offset points", fontsize=7.5)
    ax.set(xlabel="σ", ylabel="max|∇u(·, 1)|", title="Theorem 2: the ramp, F = 0", ylim=(0, 2.75))
    ax.legend(loc="upper right")
