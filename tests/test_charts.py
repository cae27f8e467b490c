"""The charts of the report: points lie where their values are, names are whole, colours are those of the page."""

from __future__ import annotations

import re

import pytest
from page_reader import points_of, texts

from studies.page.charts import Dot, Series, dot_chart, line_chart, tick
from studies.page.panels import looks_of


def test_dots_lie_where_their_values_are():
    dots = (Dot("low", 10.0, 5.0, 15.0), Dot("high", 30.0, 20.0, 40.0, mark=35.0), Dot("middle", 20.0, 19.0, 21.0))
    svg = dot_chart("", dots, title="three").svg
    found = points_of(svg)
    assert list(found)[1] == "high: 30.0%, interval 20.0 to 40.0, paper 35.0"
    (low, *_), (high, *_), (middle, *_) = found.values()
    assert middle - low == pytest.approx(high - middle, abs=0.05)
    assert low < middle
    assert {"low", "high", "middle", "10.0", "30.0", "20.0"} <= set(texts(svg))


def test_a_straight_line_in_logarithms_is_drawn_straight():
    line = Series("power", tuple((x, x**-0.5) for x in (1.0, 10.0, 100.0)), "q1")
    chart = line_chart("", (line,), "n", "error", log="xy", title="a power law")
    (x, y, colour), (x1, y1, _), (x2, y2, _) = points_of(chart.svg).values()
    assert colour == "q1"
    assert x1 - x == pytest.approx(x2 - x1, abs=0.05)
    assert y1 - y == pytest.approx(y2 - y1, abs=0.05)
    assert x < x1
    assert y < y1  # from the top
    assert {"power", "n", "error", "1", "10", "100"} <= set(texts(chart.svg))


def test_a_chart_is_the_same_each_time_it_is_drawn():
    line = Series("a", ((1.0, 1.0), (2.0, 2.0)))
    drawn = [line_chart.__wrapped__("", (line,), "x", "y", title="one line") for _ in range(2)]  # past the cache
    assert drawn[0] == drawn[1]


def test_charts_take_all_colours_from_the_page_and_share_no_ids():
    line = Series("a", ((1.0, 1.0), (2.0, 2.0)), band=((1.0, 0.5, 1.5), (2.0, 1.5, 2.5)), rings=((2.0, 2.0),))
    first, second = (line_chart("", (line,), "x", "y", title=title).svg for title in ("one", "two"))
    assert not re.search(r"#[0-9a-f]{6}\b(?!\w)", re.sub(r'"#\w+"|\(#\w+\)', "", first))
    ids = [set(re.findall(r'id="(\w+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg in (first, second):
        assert set(re.findall(r"#(\w+)", svg)) <= set(re.findall(r'id="(\w+)"', svg))


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (0.5, "0.5"), (1e-4, "10⁻⁴"), (-2.5e6, "−2.5·10⁶"), (0.012345, "0.01235")]
)
def test_ticks_are_short(value, said):
    assert tick(value) == said


NAMES = ["A", "En2ResNet110&ResNet110", "En1ResNet20&En1ResNet32 (learned weights)", "x" * 70]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_whole_and_leave_a_third_of_the_picture(name):
    dots = dot_chart("", (Dot(name, 0.0, 0.0, 0.0), Dot("B", 10.0, 10.0, 10.0)), title=f"two networks {name}").svg
    (start, *_), (end, *_) = points_of(dots).values()
    assert end - start > 360 / 3
    lines = line_chart("", (Series(name, ((0.0, 1.0), (1.0, 2.0))),), "x", "y", title=f"a line {name}").svg
    for svg in (dots, lines):
        assert name.replace(" ", "") in "".join(texts(svg)).replace(" ", "")


def test_no_two_lines_of_a_chart_look_the_same():
    models = [f"En{k}ResNet8" for k in (1, 2, 3, 5, 10)]
    looks = [(look.style, look.dashed, look.marker) for look in looks_of(models)]
    assert len(set(looks)) == len(models)
