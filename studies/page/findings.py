"""What the results say about the paper, in plain sentences whose numbers and verdicts come from the stored files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from netkit.intervals import Interval, wilson
from studies.lab.networks import Kind
from studies.page.results import Count, Results, against, family_of, kind_of, of_the_paper, title_of
from studies.paper.figure4 import RANGES

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
    is_ours: bool = False
    """Not a claim of the paper."""


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
    ] + [*_tables(results), *(finding for stored in results.learning_rates for finding in _learning_rates(stored))]


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
    by_mean = [check["network"] for check in wrong if not check["agrees"]]
    by_path = [check["network"] for check in wrong if not check["follows"]]
    is_right = right["agrees"] and right["follows"] and agree == len(zoo)
    yield Finding(
        "An ensemble of noisy residual networks is a Monte Carlo estimate of a convection-diffusion equation",
        "reproduced" if is_right and by_mean and len(by_path) == len(wrong) else "partly",
        f"The mean of {right['draws']:,} noisy networks of {right['blocks']} blocks lies within the stated error of "
        f"an independent PDE solution at {percent(right['coverage'])} of {right['points']:,} points; {agree} of "
        f"{len(zoo)} other trained networks agree too. On logarithmic axes the error falls with slope {in_draws:.2f} "
        f"in the draws (up to 32) and {in_blocks:.2f} in the blocks. Mistakes made on purpose show in the mean "
        f"({'; '.join(by_mean)}) or path by path ({'; '.join(by_path)}).",
        "idea",
    )
    first, last = stored["smoothing"][0], stored["smoothing"][-1]
    steeper = first["gradient"] / last["gradient"]
    levels = f"from σ = {first['sigma']:g} to {last['sigma']:g}"
    yield Finding(
        "Noise smooths the decision function",
        "reproduced" if steeper > 1 else "not reproduced",
        f"On one trained flow, {levels}, the steepest gradient falls {number(steeper, 2)}-fold.",
        "idea",
    )
    before, after = (_flipped(row) for row in (first, last))
    yield Finding(
        "Small perturbations flip fewer decisions as the noise grows",
        "reproduced" if after.high < before.low else "not reproduced" if after.low > before.high else "undecided",
        f"On the same flow, {levels}, the points that a small perturbation flips go from {percent(first['flipped'])} "
        f"({percent(before.low)} to {percent(before.high)}) to {percent(last['flipped'])} ({percent(after.low)} to "
        f"{percent(after.high)}) of {first['points']:,}, and accuracy from {percent(first['accuracy'])} to "
        f"{percent(last['accuracy'])}. One network, one seed.",
        "idea",
        "A smaller maximum of the gradient says nothing about how far the points lie from the decision boundary."
        if after.high >= before.low
        else "",
    )


def _flipped(row: Fields) -> Interval:
    """Of the share that is flipped among the points that were right."""
    right = round(row["accuracy"] * row["points"])
    return wilson(row["flipped"] * right, right)


def span(bounds: tuple[float, float]) -> float:
    return bounds[1] - bounds[0]


def _figure4(stored: Fields) -> Iterator[Finding]:
    panels = stored["panels"]
    variations = [panel["total_variation"] for panel in panels]
    yield Finding(
        "Figure 4: level sets become regular as σ grows",
        "reproduced" if variations == sorted(variations, reverse=True) else "not reproduced",
        "The total variation of u(x, 0) is "
        + ", ".join(f"{number(panel['total_variation'])} at σ = {panel['sigma']:g}" for panel in panels)
        + ".",
        "figure4",
    )
    agrees, said = [], []
    for panel, letter, printed in zip(panels, "abc", RANGES, strict=True):
        ours = (panel["minimum"], panel["maximum"])
        agrees.append(1 / _RANGE_FACTOR <= span(ours) / span(printed) <= _RANGE_FACTOR)
        said.append(
            f"({letter}) {ours[0]:.2f} to {ours[1]:.2f}, paper {printed[0]:g} to {printed[1]:g}, our error up to "
            f"{number(panel['error_max'], 2)}"
        )
    static = stored["provenance"]["config"]["velocity"] == "static"
    off = " and ".join(f"({letter})" for letter, good in zip("abc", agrees, strict=True) if not good)
    yield Finding(
        "Figure 4: the range of u in each panel",
        "partly" if off else "reproduced",
        f"{'; '.join(said).replace('-', '−')}."
        + (
            f" {off} is off by more than a factor of {_RANGE_FACTOR}, which another draw of the field allows."
            * bool(off)
        ),
        "figure4",
        "The velocity here is one random field held fixed in time, as the text reads: it traps particles near where "
        "they start, which keeps the extremes of u. A field drawn anew at every step may mix them away."
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
        f"{ramp['n']:,} ramps; largest measured / bound {best['largest_ratio']:.2f}.",
        "theorems",
        is_ours=True,
    )


def _multilevel(stored: Fields) -> Iterator[Finding]:
    schemes = stored["schemes"]
    finest = {scheme: min(found["costs"], key=lambda row: row["rmse"]) for scheme, found in schemes.items()}
    best, plain = (min(row[cost] for row in finest.values()) for cost in ("cost", "plain_cost"))
    own = "; ".join(
        f"{SCHEMES[scheme]} {number(row['plain_cost'] / row['cost'], 2)} (rate of the variance "
        f"{schemes[scheme]['levels']['beta']:.2f})"
        for scheme, row in finest.items()
    )
    delivered = all(row["delivered"] <= row["rmse"] for found in schemes.values() for row in found["costs"])
    yield Finding(
        "Multilevel Monte Carlo delivers the error it is asked for, for less work",
        "reproduced" if delivered and plain > best else "partly",
        f"At rmse {min(row['rmse'] for row in finest.values()):g} the best multilevel run takes "
        f"{number(plain / best, 2)} times less work than the best plain one; each scheme against itself: {own}. The "
        f"error asked for was {'always' if delivered else 'not always'} delivered.",
        "multilevel",
        is_ours=True,
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
    headline = results.headline
    if headline is not None:
        yield from _orderings(headline)
    for table in results.reproduction:
        if table is not headline:
            yield from _of_the_paper([table], where(table), table["anchor"])
    for table in results.tables:
        if table["table"] == "table2" and table is not headline:
            yield from _orderings(table)
    others = [table for table in results.tables if table["table"] != "table2"]
    for dataset in dict.fromkeys(table["dataset"] for table in others):
        found = [table for table in others if table["dataset"] == dataset and of_the_paper([table]).total]
        names = ", ".join(title_of(table["table"]) for table in found)
        yield from _of_the_paper(found, f"{names} on {DATASETS[dataset]}", "tables")


def where(table: Fields) -> str:
    title = table["title"] if "setting" in table else title_of(table["table"])
    return f"{title} on {DATASETS[table['dataset']]}"


def _of_the_paper(tables: Sequence[Fields], name: str, anchor: str) -> Iterator[Finding]:
    """What became of the orderings of some tables that the paper's own numbers give, each counted once."""
    count = of_the_paper(tables)
    if count.total:
        yield Finding(
            f"The paper’s orderings, {name}",
            status_of(count),
            f"{tally(count, tables[0] if len(tables) == 1 else None)} {conditions(tables)}.",
            anchor,
        )


_CLAIMS: tuple[tuple[Kind, str, bool], ...] = (
    ("single", "A noisy ensemble beats one network", False),
    ("silent", "The noise itself helps: a noisy ensemble beats as many members without noise", False),
    ("wide", "A noisy ensemble beats one wide network of its size", True),
    ("two-point", "Gaussian noise is better than noise of two points, which is cheaper to draw", True),
)


def _orderings(table: Fields) -> Iterator[Finding]:
    yield from _of_the_paper([table], where(table), table["anchor"])
    for kind, claim, is_ours in _CLAIMS:
        count = against([table], kind)
        if count.total:
            evidence = f"{tally(count, table)} {conditions([table])}."
            yield Finding(f"{claim} ({where(table)})", status_of(count), evidence, table["anchor"], is_ours=is_ours)


def _learning_rates(stored: Fields) -> Iterator[Finding]:
    """Best peak rates by mean validation; what lies at the end of what was tried may lie beyond it."""
    said, best, at_edge = [], {}, []
    families: dict[str, list[Fields]] = {}
    for row in stored["networks"]:
        if kind_of(row["model"]) in ("single", "noisy"):
            families.setdefault(family_of(row["model"]), []).append(row)
    shown = [row for rows in families.values() if len({r["num_members"] for r in rows}) > 1 for row in rows]
    for row in shown:
        validation = {rate["peak_lr"]: sum(rate["validation"]) / len(rate["validation"]) for rate in row["rates"]}
        peaks = sorted(validation)
        best[row["model"]] = peak = max(peaks, key=lambda rate: validation[rate])
        if peak in (peaks[0], peaks[-1]):
            at_edge.append(row["model"])
        said.append(f"{row['model']} {peak:g} ({percent(validation[peak])}; tried {peaks[0]:g} to {peaks[-1]:g})")
    seeds = sorted({len(row["seeds"]) for row in shown})
    single = [best[row["model"]] for row in shown if row["num_members"] == 1]
    several = [best[row["model"]] for row in shown if row["num_members"] > 1]
    if not single or not several:
        return
    is_larger = min(several) > max(single)
    yield Finding(
        f"An ensemble wants a larger peak learning rate than one network ({DATASETS[stored['dataset']]})",
        "undecided" if at_edge else "reproduced" if is_larger else "not reproduced",
        f"Best peak rate by validation accuracy under attack: {'; '.join(said)}; "
        f"{extent(seeds)} seed{'' if seeds == [1] else 's'}."
        + (f" The end of what was tried: {', '.join(at_edge)}." if at_edge else ""),
        "learning-rates",
        "Members share one loss, so each sees only its share of the gradient: the tables scale the rate by the number "
        "of members, and choose it on validation where several are asked for."
        if is_larger
        else "",
        is_ours=True,
    )


def status_of(count: Count) -> Status:
    """More than half of the orderings decide; where most cannot be told apart, that is the answer."""
    holding, total = len(count.holding), count.total
    if holding == total:
        return "reproduced"
    if len(count.reversed) * 2 > total:
        return "not reproduced"
    if len(count.undecided + count.withdrawn) * 2 > total:
        return "undecided"
    return "partly"


def tally(count: Count, table: Mapping[str, Any] | None = None) -> str:
    said = (
        f"Of {counted(count.total, 'ordering')} {counted(len(count.holding), 'hold', verb=True)}, "
        f"{len(count.reversed)} {'is' if len(count.reversed) == 1 else 'are'} reversed and "
        f"{len(count.undecided)} {'is' if len(count.undecided) == 1 else 'are'} undecided, each at 95%"
        + (f"; {len(count.untold)} of these for want of seeds" if count.untold else "")
        + (f"; {len(count.withdrawn)} are withdrawn (see the table)" if count.withdrawn else "")
        + "."
    )
    if table is None:
        return said
    for name, found in (("Reversed", count.reversed), ("Hold", count.holding)):
        if found and len(found) <= 4:
            said += f" {name}: " + "; ".join(in_words(verdict, table) for verdict in found) + "."
    return said


def counted(number: int, noun: str, *, verb: bool = False) -> str:
    """ "1 ordering", "2 orderings"; of a verb, "1 holds", "2 hold"."""
    return f"{number} {noun}{'s' if (number == 1) == verb else ''}"


def in_words(verdict: Fields, table: Mapping[str, Any]) -> str:
    column = table["columns"][verdict["column"]]
    return f"{verdict['better']} over {verdict['worse']}, {column} ({points(verdict['interval'])} points)"


def conditions(tables: Sequence[Mapping[str, Any]]) -> str:
    """n and seeds of some tables."""
    cells = [cell for table in tables for row in table["rows"] for cell in row["cells"].values()]
    seeds = extent([cell["num_seeds"] for cell in cells])
    return f"n = {extent([cell['n'] for cell in cells])} images, {seeds} seed{'' if seeds == '1' else 's'}"


def extent(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


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
