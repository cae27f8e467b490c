"""Charts of the report as inline SVG: sized for a phone, coloured by the page's style sheet, with tooltips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH = 360
_PLAIN, _BOLD = 7.0, 7.2  # width of a letter in the widest of the usual fonts
_LABEL_GAP = 12.5  # between the baselines of neighbouring labels


@dataclass(frozen=True)
class Series:
    """A line: points (x, y) in order, its label at the right end, `style` names a colour of the style sheet.

    `band` are (x, low, high) around it, `rings` the points that are set off.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str = "c0"
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    rings: Sequence[tuple[float, float]] = ()


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
    """Lines over a common axis, each labelled where it ends; `title` says what is seen to those who do not see it."""
    drawn = [s for s in series if s.points]
    left, right, top, bottom = 46.0, 11.0 + _BOLD * max((len(s.label) for s in drawn), default=0), 10.0, 38.0
    across = _scale(x, [p[0] for s in drawn for p in s.points], left, WIDTH - right)
    values = [p[1] for s in drawn for p in s.points] + [v for s in drawn for b in s.band for v in b[1:]]
    up = _scale(y, values, height - bottom, top)
    parts = [_grid(across, up, x, y, height)]
    for s in drawn:
        if s.band:
            upper = [(across(t), up(high)) for t, _, high in s.band]
            lower = [(across(t), up(low)) for t, low, _ in reversed(s.band)]
            parts.append(f'<path class="band {s.style}" d="{_path([*upper, *lower])}Z"/>')
        dash = ' stroke-dasharray="5 3"' if s.dashed else ""
        parts.append(f'<path class="line {s.style}"{dash} d="{_path([(across(t), up(v)) for t, v in s.points])}"/>')
        if len(s.points) <= 20:
            parts += [
                f'<circle class="dot {s.style}" cx="{across(t):.1f}" cy="{up(v):.1f}" r="2.6">'
                f"<title>{escape(s.label)}: {_number(t)}, {_number(v)}</title></circle>"
                for t, v in s.points
            ]
        parts += [f'<circle class="ring {s.style}" cx="{across(t):.1f}" cy="{up(v):.1f}" r="4"/>' for t, v in s.rings]
    ends = sorted((up(max(s.points)[1]), s.label, s.style) for s in drawn)
    for at, (_, label, style) in zip(_apart([end[0] for end in ends], top + 4, height - bottom - 6), ends, strict=True):
        parts.append(
            f'<text class="label {style}" x="{WIDTH - right + 7:.1f}" y="{at + 3.5:.1f}">{escape(label)}</text>'
        )
    return _svg(parts, height, title)


def dot_chart(dots: Sequence[Dot], *, title: str, unit: str = "%") -> Markup:
    """A row for each value: its name, its interval, the value in figures; a diamond for what is set beside it."""
    row, top, bottom = 21.0, 6.0, 24.0
    left, right = 10.0 + _PLAIN * max(len(dot.label) for dot in dots), 42.0
    height = round(top + row * len(dots) + bottom)
    values = [v for dot in dots for v in (dot.low, dot.high, dot.mark) if v is not None]
    axis = Axis(unit)
    across = _scale(axis, values, left, WIDTH - right)
    parts = []
    for tick in across.ticks:
        place = across(tick)
        parts.append(f'<path class="grid" d="M{place:.1f} {top}V{height - bottom:.1f}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{height - 9}" text-anchor="middle">{_number(tick)}</text>')
    for index, dot in enumerate(dots):
        y = top + row * (index + 0.5)
        said = f"{dot.label}: {dot.value:.1f}{unit}, interval {dot.low:.1f} to {dot.high:.1f}"
        said += "" if dot.mark is None else f", paper {dot.mark:.1f}"
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


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis, height: int) -> str:
    left, bottom = 46.0, height - 38.0
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
    turn = f"translate(10 {(10 + bottom) / 2:.1f}) rotate(-90)"
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
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
