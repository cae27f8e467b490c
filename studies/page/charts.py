"""Charts of the report as inline SVG: sized for a phone, coloured by the page's style sheet, with tooltips."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH = 360
_PLAIN, _BOLD = 7.0, 7.2  # width of a letter in the widest of the usual fonts
_LABEL_GAP = 12.5  # between the baselines of neighbouring labels
_LEFT = 46.0  # what the figures of an upright axis take
_LONGEST_BESIDE = 18  # letters of a name that stands beside its row; above it where one is longer
_LONGEST_END = 16  # letters of a name that stands at the end of its line; in a key where one is longer
_LINE_OF_TEXT = 46  # letters across the picture, with room for the sample of a line

MARKERS = {
    "circle": "M-2.8 0a2.8 2.8 0 1 0 5.6 0a2.8 2.8 0 1 0-5.6 0Z",
    "square": "M-2.8-2.8h5.6v5.6h-5.6Z",
    "triangle": "M0-4.2l4 7.2h-8Z",
    "cross": "M-1.1-3.5h2.2v2.4h2.4v2.2h-2.4v2.4h-2.2v-2.4h-2.4v-2.2h2.4Z",
    "diamond": "M0-4.4l3.6 4.4-3.6 4.4-3.6-4.4Z",
    "wedge": "M0 4.2l4-7.2h-8Z",
}
"""What sets lines of one colour apart; paths around (0, 0)."""


@dataclass(frozen=True)
class Series:
    """A line: points (x, y) in order, its label where it ends, `style` names a colour of the style sheet.

    `band` are (x, low, high) around it, `rings` the points that are set off, `marker` is one of MARKERS.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str = "c0"
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    rings: Sequence[tuple[float, float]] = ()
    marker: str = "circle"

    @property
    def end(self) -> tuple[float, float]:
        return max(self.points)


@dataclass(frozen=True)
class Axis:
    """What is along an axis; `ticks` where the usual ones do not do."""

    label: str
    is_log: bool = False
    ticks: Sequence[float] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Dot:
    """A value with its interval in a row of its own; `mark` is a value from elsewhere, set beside it."""

    label: str
    value: float
    low: float
    high: float
    style: str = "c0"
    mark: float | None = None


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, title: str, height: int = 250) -> Markup:
    """Lines over a common axis, each labelled where it ends; `title` says what is seen to those who do not see it.

    Names too long for that are in a key above the lines.
    """
    drawn = [s for s in series if s.points]
    times = [p[0] for s in drawn for p in s.points]
    has_key = max((len(s.label) for s in drawn), default=0) > _LONGEST_END
    key = _key(drawn) if has_key else []
    top, bottom = 10.0 + _LABEL_GAP * len(key), 38.0
    height += round(_LABEL_GAP * len(key))
    right = 8.0 if has_key else _room_for_labels(drawn, _scale(x, times, 0.0, 1.0))
    across = _scale(x, times, _LEFT, WIDTH - right)
    values = [p[1] for s in drawn for p in s.points] + [v for s in drawn for b in s.band for v in b[1:]]
    up = _scale(y, values, height - bottom, top)
    parts = [*key, _grid(across, up, x, y, height, top)]
    for s in drawn:
        if s.band:
            upper = [(across(t), up(high)) for t, _, high in s.band]
            lower = [(across(t), up(low)) for t, low, _ in reversed(s.band)]
            parts.append(f'<path class="band {s.style}" d="{_path([*upper, *lower])}Z"/>')
    for s in drawn:
        dash = ' stroke-dasharray="5 3"' if s.dashed else ""
        parts.append(f'<path class="line {s.style}"{dash} d="{_path([(across(t), up(v)) for t, v in s.points])}"/>')
        parts += [
            f'<path class="dot {s.style}" d="{MARKERS[s.marker]}" transform="translate({across(t):.1f} {up(v):.1f})">'
            f"<title>{escape(s.label)}: {_number(t)}, {_number(v)}</title></path>"
            for t, v in s.points[:: math.ceil(len(s.points) / 20)]
        ]
        parts += [f'<circle class="ring {s.style}" cx="{across(t):.1f}" cy="{up(v):.1f}" r="4"/>' for t, v in s.rings]
    if not has_key:
        parts += _end_labels(drawn, across, up, top + 4, height - bottom - 6)
    return _svg(parts, height, title)


def _room_for_labels(series: Sequence[Series], share: Callable[[float], float]) -> float:
    """What has to be free on the right for every label to fit beside the end of its line.

    `share` says how far along the axis a value is, from 0 to 1.
    """

    def room(s: Series) -> float:
        at = share(s.end[0])
        return WIDTH - _LEFT - (WIDTH - _LEFT - _width_of_label(s)) / at if at > 0 else 0.0

    return max([8.0, *map(room, series)])


def _width_of_label(series: Series) -> float:
    """With the gap between the line and the label."""
    return 11.0 + _BOLD * len(series.label)


def _end_labels(series: Sequence[Series], across: _Scale, up: _Scale, low: float, high: float) -> list[str]:
    """Labels right of where lines end; those that would stand above one another are moved apart."""
    parts = []
    ordered = sorted(series, key=lambda s: across(s.end[0]))
    while ordered:
        group = [ordered.pop(0)]
        reach = across(group[0].end[0]) + _width_of_label(group[0])
        while ordered and across(ordered[0].end[0]) < reach:
            group.append(ordered.pop(0))
            reach = max(reach, across(group[-1].end[0]) + _width_of_label(group[-1]))
        group.sort(key=lambda s: up(s.end[1]))
        for s, y in zip(group, _apart([up(s.end[1]) for s in group], low, high), strict=True):
            x = across(s.end[0]) + 7
            parts.append(f'<text class="label {s.style}" x="{x:.1f}" y="{y + 3.5:.1f}">{escape(s.label)}</text>')
    return parts


def _key(series: Sequence[Series]) -> list[str]:
    """A row of text for each line of a name, with a sample of its line before the first; one element a row."""
    rows = [(s, index, words) for s in series for index, words in enumerate(textwrap.wrap(s.label, _LINE_OF_TEXT))]
    parts = []
    for row, (s, index, words) in enumerate(rows):
        y = 8.0 + _LABEL_GAP * row
        dash = ' stroke-dasharray="5 3"' if s.dashed else ""
        sample = (
            f'<path class="line {s.style}"{dash} d="M2 {y:.1f}H24"/>'
            f'<path class="dot {s.style}" d="{MARKERS[s.marker]}" transform="translate(13 {y:.1f})"/>'
        )
        text = f'<text class="label {s.style}" x="30" y="{y + 3.5:.1f}">{escape(words)}</text>'
        parts.append((sample if index == 0 else "") + text)
    return parts


def dot_chart(dots: Sequence[Dot], *, title: str, unit: str = "%") -> Markup:
    """A row for each value: its name, its interval, the value in figures; a diamond for what is set beside it.

    Where a name is long, names stand above their rows.
    """
    is_above = max(len(dot.label) for dot in dots) > _LONGEST_BESIDE
    names = [textwrap.wrap(dot.label, _LINE_OF_TEXT) if is_above else [dot.label] for dot in dots]
    row, line, top, bottom = 21.0, 14.0, 6.0, 24.0
    left, right = (12.0 if is_above else 10.0 + _PLAIN * max(len(dot.label) for dot in dots)), 42.0
    heights = [row + line * len(lines) if is_above else row for lines in names]
    height = round(top + sum(heights) + bottom)
    values = [v for dot in dots for v in (dot.low, dot.high, dot.mark) if v is not None]
    across = _scale(Axis(unit), values, left, WIDTH - right)
    parts = []
    for tick in across.ticks:
        place = across(tick)
        parts.append(f'<path class="grid" d="M{place:.1f} {top}V{height - bottom:.1f}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{height - 9}" text-anchor="middle">{_number(tick)}</text>')
    end = top
    for dot, lines, taken in zip(dots, names, heights, strict=True):
        end += taken
        y = end - row / 2
        said = f"{dot.label}: {dot.value:.1f}{unit}, interval {dot.low:.1f} to {dot.high:.1f}"
        said += "" if dot.mark is None else f", paper {dot.mark:.1f}"
        if is_above:
            first = end - taken + 16  # nearer to its own row than to the one above
            parts += [
                f'<text class="name" x="4" y="{first + line * index:.1f}">{escape(words)}</text>'
                for index, words in enumerate(lines)
            ]
        else:
            parts.append(
                f'<text class="name" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.label)}</text>'
            )
        if dot.mark is not None:
            x = across(dot.mark)
            parts.append(f'<path class="mark" d="M{x - 4.5:.1f} {y:.1f}l4.5-4.5 4.5 4.5-4.5 4.5Z"/>')
        parts.append(
            f"<g><title>{escape(said)}</title>"
            f'<path class="line {dot.style}" d="M{across(dot.low):.1f} {y:.1f}H{across(dot.high):.1f}"/>'
            f'<circle class="dot {dot.style}" cx="{across(dot.value):.1f}" cy="{y:.1f}" r="4"/></g>'
        )
        parts.append(f'<text class="value" x="{WIDTH - 4}" y="{y + 4:.1f}" text-anchor="end">{dot.value:.1f}</text>')
    return _svg(parts, height, title)


@dataclass(frozen=True)
class _Scale:
    place: Callable[[float], float]
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        return self.place(value)


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    """Positions from `start` to `end` in the picture, with some room beyond the outermost values."""
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if axis.is_log:
        low, high = math.log10(low), math.log10(high)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    room = 0.05 * (high - low)
    low, high = low - room * (axis.low is None), high + room * (axis.high is None)

    def place(value: float) -> float:
        position = math.log10(value) if axis.is_log else value
        return start + (end - start) * (position - low) / (high - low)

    ticks = axis.ticks or (_log_ticks(low, high) if axis.is_log else _ticks(low, high))
    return _Scale(place, ticks)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [round(step * k, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there would be few."""
    within = high - low
    factors = (1, 2, 5) if within < 2 else (1,)
    stride = max(1, math.ceil(within / 5))
    decades = range(math.floor(low), math.ceil(high) + 1, stride)
    return [m * 10.0**k for k in decades for m in factors if low <= k + math.log10(m) <= high]


def _number(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        digits = mantissa.removesuffix(".0").replace("-", "−")
        return f"10{power}" if digits == "1" else f"{digits}·10{power}"
    return f"{value:.4g}".replace("-", "−")


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis, height: int, top: float) -> str:
    left, bottom = _LEFT, height - 38.0
    parts = []
    for tick in up.ticks:
        at = up(tick)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{WIDTH - 8}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in across.ticks:
        at = across(tick)
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v4"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
    middle = (across(across.ticks[0]) + across(across.ticks[-1])) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(x.label)}</text>')
    turn = f"translate(10 {(top + bottom) / 2:.1f}) rotate(-90)"
    parts.append(f'<text class="tick" transform="{turn}" text-anchor="middle">{escape(y.label)}</text>')
    parts.append(f'<path class="axis" d="M{left} {bottom}H{WIDTH - 8}"/>')
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _apart(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Sorted positions at least a label's height apart, near the wanted ones and between `low` and `high`."""
    placed: list[float] = []
    for position in wanted:
        placed.append(max(position, placed[-1] + _LABEL_GAP if placed else low))
    limit = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - _LABEL_GAP
    return placed


def _svg(parts: Sequence[str], height: float, title: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
