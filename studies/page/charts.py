"""Charts of the report: matplotlib draws them as SVG, the page's style sheet colours them."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

Point = tuple[float, float]

WIDTH = 360  # in the picture's units, which are pixels on a phone
MARKERS = "os^PDv"
"""Matplotlib's names of the signs that set lines of one colour apart."""

_NAMES = ("ink", "soft", "rule", "paper", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "q0", "q1", "q2", "q3")
_HEX = {name: f"#0000{index:02x}" for index, name in enumerate(_NAMES, 1)}  # each stands for a colour of the page
_STYLE = Path(__file__).parent / "templates" / "charts.mplstyle"
_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Chart:
    """A picture under its heading."""

    heading: str
    svg: Markup


@dataclass(frozen=True)
class Series:
    """A line through points (x, y).

    style: a colour of the style sheet.
    band: (x, low, high) around the line.
    rings: points that are set off.
    marker: one of MARKERS.
    """

    label: str
    points: tuple[Point, ...]
    style: str = "c0"
    dashed: bool = False
    band: tuple[tuple[float, float, float], ...] = ()
    rings: tuple[Point, ...] = ()
    marker: str = "o"


@dataclass(frozen=True)
class Dot:
    """A value with its interval in a row of its own; `mark` is a value from elsewhere, set beside it."""

    label: str
    value: float
    low: float
    high: float
    style: str = "c0"
    mark: float | None = None


@lru_cache
def line_chart(heading: str, series: tuple[Series, ...], x: str, y: str, *, title: str, log: str = "") -> Chart:
    """Lines over a common axis with a key above them.

    x, y: what is along the axes.
    title: tells those who do not see the chart what it shows; no two on a page are the same.
    log: the axes that are logarithmic, of "x" and "y".
    """
    drawn = [s for s in series if s.points]
    num_columns = 2 if max((len(s.label) for s in drawn), default=0) <= 18 else 1
    tips = {}
    with style.context(_STYLE):
        figure, axes = _figure(230 + 16 * math.ceil(len(drawn) / num_columns))
        for index, s in enumerate(drawn):
            colour, step, gid = _HEX[s.style], math.ceil(len(s.points) / 20), f"line{index}"
            (line,) = axes.plot(*zip(*s.points, strict=True), color=colour, marker=s.marker, markevery=step)
            line.set(gid=gid, label=s.label, linestyle=(0, (4, 2)) if s.dashed else "-")
            tips[gid] = [f"{s.label}: {tick(a)}, {tick(b)}" for a, b in s.points[::step]]
            if s.band:
                places, low, high = zip(*s.band, strict=True)
                axes.fill_between(places, low, high, color=colour, alpha=0.14, linewidth=0)
            if s.rings:
                axes.plot(*zip(*s.rings, strict=True), "o", mec=colour, mfc=_HEX["paper"], mew=1.6, ms=8)
        axes.set(xlabel=x, ylabel=y, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
        axes.grid(visible=False, axis="x")
        for axis, is_log in ((axes.xaxis, "x" in log), (axes.yaxis, "y" in log)):
            first, last = axis.get_view_interval()
            # powers of ten, with 2 and 5 between them where there would be few
            factors = (1.0, 2.0, 5.0) if is_log and last < 100 * first else (1.0,)
            axis.set_major_locator(LogLocator(subs=factors) if is_log else _even())
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(lambda value, _: tick(value))
        figure.legend(loc="outside upper left", ncols=num_columns, labelcolor="linecolor")
        return Chart(heading, _svg(figure, title, tips))


@lru_cache
def dot_chart(heading: str, dots: tuple[Dot, ...], *, title: str) -> Chart:
    """A row for each value in %: its name, its interval, the value in figures; a diamond for what is beside it."""
    names = [_wrapped(dot.label) for dot in dots]
    heights = [22.0 + 13.0 * name.count("\n") for name in names]
    ends = list(accumulate(heights))
    places = [end - taken / 2 for end, taken in zip(ends, heights, strict=True)]
    with style.context(_STYLE):
        figure, axes = _figure(ends[-1] + 34)
        axes.xaxis.set_major_locator(_even())
        axes.grid(visible=False, axis="y")
        tips = {}
        for index, (dot, y) in enumerate(zip(dots, places, strict=True)):
            colour = _HEX[dot.style]
            axes.plot([dot.low, dot.high], [y, y], color=colour)
            axes.plot(dot.value, y, "o", color=colour, markersize=8, gid=f"dot{index}")
            axes.text(1.02, y, f"{dot.value:.1f}", transform=axes.get_yaxis_transform(), va="center")
            paper = "" if dot.mark is None else f", paper {dot.mark:.1f}"
            tips[f"dot{index}"] = [f"{dot.label}: {dot.value:.1f}%, interval {dot.low:.1f} to {dot.high:.1f}{paper}"]
            if dot.mark is not None:
                axes.plot(dot.mark, y, "D", mfc="none", mec=_HEX["ink"], mew=1.3, ms=6)
        axes.set_yticks(places, names, color=_HEX["ink"])
        axes.set_ylim(ends[-1], 0)
        return Chart(heading, _svg(figure, title, tips))


def _even() -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 5, 10])


def _wrapped(name: str) -> str:
    """The name of a network in lines that leave half of the picture free; it may be broken after "+" and "&"."""
    lines = textwrap.wrap(re.sub(r"([+&])", r"\1 ", name), 22)
    return re.sub(r"([+&]) ", r"\1", "\n".join(lines))


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def tick(value: float) -> str:
    """A number in a few letters."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        digits = mantissa.removesuffix(".0").replace("-", "−")
        return power if digits == "1" else f"{digits}·{power}"
    return f"{value:.4g}".replace("-", "−")


def _svg(figure: Figure, title: str, tips: Mapping[str, Sequence[str]]) -> Markup:
    """The figure as an element of the page: what points say when pointed at, by the id of their line."""
    stored = io.StringIO()
    with rc_context({"svg.hashsalt": title}):  # sets its ids apart from those of other charts
        figure.savefig(stored, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(re.sub(r"(\.\d\d)\d{4}\b", r"\1", stored.getvalue()))
    for child in root.findall(f"{_SVG}metadata") + root.findall(f"{_SVG}defs[{_SVG}style]"):  # a style of all the page
        root.remove(child)
    for group in root.iter(f"{_SVG}g"):
        said = tips.get(group.attrib.pop("id", ""), ())
        for point, text in zip(group.iter(f"{_SVG}use"), said, strict=False):
            ElementTree.SubElement(point, f"{_SVG}title").text = text
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    text = re.sub(r"\s*\n\s*", "\n", ElementTree.tostring(root, encoding="unicode"))
    return Markup(re.sub("#0000([01].)", lambda found: f"var(--{_NAMES[int(found[1], 16) - 1]})", text))
