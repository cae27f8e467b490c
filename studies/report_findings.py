"""What the results say about the paper, in plain sentences whose numbers and verdicts come from the stored files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from report_results import Count, Results, against, kind_of, of_the_paper, title_of

Fields = dict[str, Any]
Status = Literal["reproduced", "partly", "not reproduced", "undecided"]

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "8×8 digits"}
_RANGE_FACTOR = 1.25  # how far the span of a picture's colours may be from the paper's, whose field is another draw


@dataclass(frozen=True)
class Finding:
    """A claim, what became of it, the evidence, and why it is so where that is known; `anchor` is a section."""

    claim: str
    status: Status
    evidence: str
    anchor: str
    why: str = ""


def findings(results: Results) -> list[Finding]:
    """All findings for which there are results, in the order of the page."""
    return [
        finding
        for part, say in (
            (results.neural_pde, _ensemble_is_estimate),
            (results.fig4, _figure4),
            (results.theorems, _theorems),
            (results.multilevel, _multilevel),
            (results.noise_scale, _constant_noise),
        )
        if part is not None
        for finding in say(part)
    ] + [*_tables(results), *(_learning_rates(results.learning_rates) if results.learning_rates else [])]


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def points(interval: Sequence[float]) -> str:
    """An interval of a difference of shares, in percentage points."""
    low, high = (f"{100 * bound:+.1f}".replace("-", "−") for bound in interval)
    return f"{low} to {high}"


def number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


# The equation


def _ensemble_is_estimate(stored: Fields) -> Iterator[Finding]:
    right, *wrong = stored["checks"]
    zoo = stored["networks"]
    in_draws, in_blocks = stored["error_in_draws"]["slope_up_to_32"], stored["error_in_blocks"]["slope"]
    agree = sum(network["agrees"] for network in zoo)
    caught = [check["network"] for check in wrong if not check["agrees"]]
    yield Finding(
        "An ensemble of noisy residual networks is a Monte Carlo estimate of a convection-diffusion equation",
        "reproduced" if right["agrees"] and agree == len(zoo) and len(caught) == len(wrong) else "partly",
        f"The mean of {right['draws']} noisy networks lies within the stated error of an independent PDE solution at "
        f"{percent(right['coverage'])} of {right['points']} points; {agree} of {len(zoo)} other trained networks agree "
        f"too. On logarithmic axes the error falls with slope {number(in_draws)} in the draws and {number(in_blocks)} "
        f"in the blocks. Mistakes made on purpose that the check catches: {'; '.join(caught) or 'none'}.",
        "idea",
    )
    smoothing = stored["smoothing"]
    first, last = smoothing[0], smoothing[-1]
    steeper = first["gradient"] / last["gradient"]
    fewer = last["flipped"] < first["flipped"]
    yield Finding(
        "Noise smooths the decision function, so small perturbations flip fewer points",
        "reproduced" if steeper > 1 and fewer else "partly",
        f"On one trained flow, from σ = {first['sigma']:g} to {last['sigma']:g}, the steepest gradient falls "
        f"{number(steeper, 2)}-fold, while the points that a small perturbation flips go from "
        f"{percent(first['flipped'])} to {percent(last['flipped'])}, and accuracy from {percent(first['accuracy'])} to "
        f"{percent(last['accuracy'])}.",
        "idea",
        ""
        if fewer
        else "A smaller maximum of the gradient says nothing about how far the points lie from the decision boundary.",
    )


def span(bounds: tuple[float, float]) -> float:
    return bounds[1] - bounds[0]


def paper_ranges() -> list[tuple[float, float]]:
    """The colour bars of the paper's panels (a), (b), (c)."""
    from fig4_diffusion import PAPER_RANGES

    return [(float(low), float(high)) for low, high in (text.split("..") for text in PAPER_RANGES)]


def _figure4(stored: Fields) -> Iterator[Finding]:
    agrees, said = [], []
    for panel, letter, printed in zip(stored["panels"], "abc", paper_ranges(), strict=True):
        ours = (panel["minimum"], panel["maximum"])
        ratio = span(ours) / span(printed)
        agrees.append(1 / _RANGE_FACTOR <= ratio <= _RANGE_FACTOR)
        said.append(f"({letter}) {ours[0]:.2f} to {ours[1]:.2f}, paper {printed[0]:g} to {printed[1]:g}")
    static = stored["provenance"]["config"]["velocity"] == "static"
    off = [letter for letter, good in zip("abc", agrees, strict=True) if not good]
    yield Finding(
        "Figure 4: level sets become regular as σ grows",
        "reproduced" if all(agrees) else "partly",
        f"Range of u(x, 0) by panel: {'; '.join(said).replace('-', '−')}. The total variation falls from "
        f"{number(stored['panels'][0]['total_variation'])} to {number(stored['panels'][-1]['total_variation'])}."
        + (f" The range of panel {' and '.join(f'({o})' for o in off)} is not the paper’s." if off else ""),
        "figure4",
        "The velocity here is one random field held fixed in time, as the text reads: it traps particles near where "
        "they start, which keeps the extremes of u. A field drawn anew at every step would mix them away."
        if static and off
        else "",
    )


def _theorems(stored: Fields) -> Iterator[Finding]:
    first, second, ramp = (stored["verdicts"][name] for name in ("theorem1", "theorem2", "ramp"))
    coupling, steep = first["coupling"], [c for line in first["steep"] for c in line["constants"]]
    spread = max(steep) / min(steep)
    holds = first["envelope"]["finite"] and coupling["violations"] == 0
    depends = spread > 2
    yield Finding(
        "Theorem 1: the modulus of continuity is at most C (|δ|/σ)^α",
        ("partly" if depends else "reproduced") if holds else "not reproduced",
        f"For each velocity it holds with α = 1 in all {first['n']} solutions; a bound by coupling is exceeded by "
        f"{coupling['violations']} of {coupling['n']} measured moduli. But C goes from {number(min(steep))} to "
        f"{number(max(steep))} at the same max|F| = 1.",
        "theorems",
        "The constant needs the Lipschitz constant of F, not its maximum alone." if depends else "",
    )
    printed, halved, best = (second["bounds"][name] for name in ("printed", "halved", "best_mu"))
    yield Finding(
        "Theorem 2: the gradient decays as the printed bound says",
        "not reproduced" if printed["fails"] or ramp["fails"]["printed"] else "reproduced",
        f"The printed bound is exceeded in {printed['fails']} of {second['n']} random cases"
        + (f", all with σ ≥ {printed['smallest_sigma']:.2f}" if printed["fails"] else "")
        + f", by up to {number(printed['largest_ratio'], 2)} times, and for a ramp without convection from "
        f"σ = {ramp['fails_from']['printed']:.3f} on. With ½σ² where Eq. (12) has it and no more, "
        f"{halved['fails']} random cases exceed it, but the ramp does from σ = {ramp['fails_from']['halved']:.3f} on.",
        "theorems",
        "The proof works with σ²Δ where the equation has ½σ²Δ, and needs an exponent that is not negative.",
    )
    yield Finding(
        "Theorem 2, its proof redone: |∇u|² ≤ exp(2λ)(μ|u₀|² + |∇u₀|²) for every μ ≥ 0, where λ = max(0, γ − μσ²/2)",
        "reproduced" if best["fails"] == 0 and ramp["fails"]["best_mu"] == 0 else "not reproduced",
        f"With the best μ exceeded in {best['fails']} of {second['n']} random cases and {ramp['fails']['best_mu']} of "
        f"{ramp['n']} ramps; largest measured / bound {best['largest_ratio']:.2f}.",
        "theorems",
    )


def _multilevel(stored: Fields) -> Iterator[Finding]:
    said, kept = [], []
    for scheme, found in stored["schemes"].items():
        finest = min(found["costs"], key=lambda row: row["rmse"])
        saving = finest["plain_cost"] / finest["cost"]
        said.append(
            f"{SCHEMES[scheme]}: {number(saving, 2)} times less work at rmse {finest['rmse']:g} "
            f"(delivered {number(finest['delivered'], 2)}; rate of the variance {found['levels']['beta']:.2f})"
        )
        kept += [saving > 1 and row["delivered"] <= row["rmse"] for row in found["costs"]]
    yield Finding(
        "Multilevel Monte Carlo delivers the error it is asked for, for less work (beyond the paper)",
        "reproduced" if all(kept) else "partly",
        "; ".join(said) + ".",
        "multilevel",
    )


def _constant_noise(stored: Fields) -> Iterator[Finding]:
    rows = stored["rows"]
    said = []
    for coef in sorted({row["noise_coef"] for row in rows}):
        moved = [100 * row["mean"]["one"] for row in rows if row["noise_coef"] == coef]
        said.append(f"{min(moved):.2f} to {max(moved):.2f} percentage points at a = {coef:g}")
    shares = [row["mean"]["one"] / row["mean"]["noise"] for row in rows]
    flips, again = (max(row["mean"][name] for row in rows) for name in ("one_flips", "repeat_flips"))
    yield Finding(
        "The paper’s noise, a·std(x + F(x)), may be taken for one constant σ, as its equation does",
        "reproduced" if max(shares) < 0.1 else "partly",
        f"Networks trained on digits, the σ of the equation in place of their noise: the mean prediction moves by "
        f"{' and '.join(said)} (rms over images and classes), {percent(min(shares), 0)} to {percent(max(shares), 0)} "
        f"of what the noise itself moves it by. Decisions changed: at most {percent(flips, 2)}, where halves of the "
        f"network’s own draws disagree on up to {percent(again, 2)}.",
        "constant-noise",
        "The standard deviation differs from image to image and from block to block." if max(shares) >= 0.1 else "",
    )


SCHEMES = {"euler": "Euler-Maruyama", "heun": "Heun"}


# The networks


def _tables(results: Results) -> Iterator[Finding]:
    for table in results.reproduction:
        yield from _orderings(table, f"{DATASETS[table['dataset']]}, {table['title']}")
    for table in results.tables:
        if table["table"] == "table2":
            yield from _orderings(table, f"{title_of('table2')} on {DATASETS[table['dataset']]}")
    others = [table for table in results.tables if table["table"] != "table2" and table["dataset"] == "digits"]
    count = of_the_paper(others)
    if count.total:
        names = ", ".join(title_of(table["table"]) for table in others if of_the_paper([table]).total)
        yield Finding(
            f"The paper’s orderings in {names}, on stand-ins of 8×8 digits",
            status_of(count),
            tally(count),
            "tables",
            "A small task with small networks: what it orders may be ordered otherwise on CIFAR.",
        )


def _orderings(table: Fields, where: str) -> Iterator[Finding]:
    count = of_the_paper([table])
    if count.total:
        yield Finding(f"The paper’s orderings, {where}", status_of(count), tally(count, table), table["anchor"])
    for kind, claim in (
        ("silent", "The noise itself helps: a noisy ensemble beats as many members without noise"),
        ("wide", "A noisy ensemble beats one wide network of its size"),
        ("two-point", "Gaussian noise is better than noise of two points, which is cheaper to draw"),
    ):
        count = against([table], kind)
        if count.total:
            evidence = f"{tally(count, table)} {gains(table, count)}".strip()
            yield Finding(f"{claim} ({where})", status_of(count), evidence, table["anchor"])


def gains(table: Fields, count: Count) -> str:
    """What each side of the orderings gains over one plain network, in points, averaged over the attacks they share."""
    rows = {row["model"]: row["cells"] for row in table["rows"]}
    said = []
    for better, worse in dict.fromkeys((verdict["better"], verdict["worse"]) for verdict in count.verdicts):
        base = re.sub(r"^En\d+", "", better)
        columns = [c for c in rows.get(base, {}) if c in rows[better] and c in rows[worse]]
        if columns:
            ours, control = (
                100 * sum(rows[model][c]["mean"] - rows[base][c]["mean"] for c in columns) / len(columns)
                for model in (better, worse)
            )
            said.append(f"{better} {ours:+.1f}, {worse} {control:+.1f}".replace("-", "−"))
    return f"Points gained over one network, mean over attacks: {'; '.join(said)}." if said else ""


def _learning_rates(stored: Fields) -> Iterator[Finding]:
    said, grows = [], []
    shown = [row for row in stored["networks"] if kind_of(row["model"]) in ("base", "noisy")]
    for row in shown:
        validation = {rate["peak_lr"]: sum(rate["validation"]) / len(rate["validation"]) for rate in row["rates"]}
        rates = ", ".join(f"{percent(value)} at {peak:g}" for peak, value in sorted(validation.items()))
        said.append(f"{row['model']} {rates}")
        if row["num_members"] > 1:
            grows.append(max(validation, key=lambda peak: validation[peak]) > min(validation))
    seeds = sorted({len(row["seeds"]) for row in shown})
    yield Finding(
        "With one network’s learning rate an ensemble looks worse than it is (beyond the paper)",
        "reproduced" if grows and all(grows) else "not reproduced",
        f"Validation accuracy under attack by peak learning rate, {DATASETS[stored['dataset']]}: {'; '.join(said)} "
        f"({' to '.join(map(str, seeds))} seeds).",
        "learning-rates",
        "Members share one loss, so each sees only its share of the gradient. The tables scale the rate by the number "
        "of members, or choose it on validation; without that an ensemble is judged at a rate too small for it.",
    )


def status_of(count: Count) -> Status:
    """More than half of the orderings decide; where most cannot be told apart, that is the answer."""
    holding, total = len(count.holding), count.total
    if holding == total:
        return "reproduced"
    if len(count.reversed) * 2 > total:
        return "not reproduced"
    if len(count.undecided) * 2 > total:
        return "undecided"
    return "partly"


def tally(count: Count, table: Mapping[str, Any] | None = None) -> str:
    said = (
        f"Of {count.total} orderings {len(count.holding)} hold, {len(count.reversed)} are reversed and "
        f"{len(count.undecided)} are undecided at 95%."
    )
    if table is None:
        return said
    for name, found in (("Reversed", count.reversed), ("Hold", count.holding)):
        if found and len(found) <= 4:
            said += f" {name}: " + "; ".join(in_words(verdict, table) for verdict in found) + "."
    return said + f" {conditions(table)}."


def in_words(verdict: Fields, table: Mapping[str, Any]) -> str:
    column = table["columns"][verdict["column"]]
    return f"{verdict['better']} over {verdict['worse']}, {column} ({points(verdict['interval'])} points)"


def conditions(table: Mapping[str, Any]) -> str:
    """n and seeds of a table."""
    cells = [cell for row in table["rows"] for cell in row["cells"].values()]

    def extent(values: Sequence[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    seeds = extent([cell["num_seeds"] for cell in cells])
    return f"n = {extent([cell['n'] for cell in cells])} images, {seeds} seed{'' if seeds == '1' else 's'}"


def still_right(stored: Fields) -> str:
    """For each network and attack of Figure 6, how many of its images are still taken for what they are."""
    labels = stored["labels"]
    return "; ".join(
        f"{sum(map(str.__eq__, column['predicted'], labels))} of {len(labels)} for {column['network']} under "
        f"{column['attack']}"
        for column in stored["columns"]
    )


def significant(value: float) -> str:
    """A measured error to two digits, without an exponent for those of everyday size."""
    if value == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits <= 6 else f"{value:.1e}"
