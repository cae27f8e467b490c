"""The page with sliders: its numbers against closed forms, and what a browser shows of them."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, chromium
from page_reader import Elements

from bridge.comparison import PointValues
from bridge.flow import FlowNetwork, SmoothVelocity
from studies import interactive

STUDY = Path(__file__).resolve().parent.parent / "studies" / "interactive.py"
STORED = STUDY.parent / "results" / "interactive"
PHONE, DESK = 360, 1280
RIGHT = ("ArrowRight", 39)
CONFIG = replace(interactive.SMOKE, draws=(1, 4, 16))


def test_errors_are_those_of_draws_with_a_known_variance():
    rng = np.random.default_rng(0)
    members, points, deviation = 3, 4000, 0.3
    solved = [PointValues(rng.random(points), np.zeros(points), np.full(points, deviation**2)) for _ in range(members)]
    exact = np.stack([each.value for each in solved])
    noise = deviation * rng.standard_normal((members, 16, points))
    means = np.stack([exact + noise[:, :n].mean(1) for n in CONFIG.draws], axis=1)
    for n, row in zip(CONFIG.draws, interactive.errors(means, solved, CONFIG), strict=True):
        theory = deviation / np.sqrt(members * n)
        assert row["standard_error"] == pytest.approx(theory, rel=1e-12)
        assert abs(row["rms"] - theory) < 4 * theory / np.sqrt(2 * points)
        assert abs(row["within"] - 0.95) < 4 * np.sqrt(0.95 * 0.05 / points)


def test_running_means_are_those_of_the_first_draws_of_one_stream():
    network = FlowNetwork(SmoothVelocity(2, width=4, box=interactive.neural_pde.BOX), num_blocks=3, sigma=0.5)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    found = interactive.running_means(network, x, (1, 2, 8), torch.Generator().manual_seed(2))
    again = torch.Generator().manual_seed(2)
    draws = np.concatenate(
        [batch for count in (1, 1, 6) for batch in interactive.neural_pde.probabilities(network, x, count, again)]
    )
    np.testing.assert_allclose(found, [draws[:n].mean(0) for n in (1, 2, 8)], rtol=1e-12)


def test_quantised_values_are_off_by_half_a_step():
    values = np.random.default_rng(0).random(1000)
    back = np.frombuffer(base64.b64decode(interactive.quantised(values)), np.uint8) / interactive.TOP
    assert np.abs(back - values).max() <= 0.5 / interactive.TOP + 1e-12


def test_the_error_that_is_stored_falls_as_the_root_of_draws_until_the_time_step_is_left():
    stored = json.loads((STORED / "interactive.json").read_text())
    config = stored["provenance"]["config"]
    draws, shape = config["draws"], (len(config["sigmas"]), config["members"], config["picture"] ** 2)
    deviation = np.frombuffer(base64.b64decode(stored["deviation"]), np.uint8).reshape(shape) / interactive.TOP
    for (sigma, by_members), members in itertools.product(enumerate(stored["numbers"]), range(1, shape[1] + 1)):
        rows = by_members[members - 1]
        few = [row["rms"] for row in rows[:4]]
        assert abs(np.polyfit(np.log(draws[:4]), np.log(few), 1)[0] + 0.5) < 0.1
        variance = (deviation[sigma, :members] ** 2).sum(0)
        independent = variance.sum() ** 2 / (variance**2).sum()  # so many points of equal noise vary as much
        least = 1 - 4 / np.sqrt(2 * independent)
        assert all(row["rms"] > least * row["standard_error"] for row in rows)
        assert rows[0]["grid_error"] < rows[5]["standard_error"]  # that of 32 draws


def test_the_page_is_one_small_file_that_asks_for_nothing():
    page = (STORED / "index.html").read_text()
    assert len(page.encode()) < 3 * 2**20
    read = Elements(page)
    assert not [tag for tag, attributes in read.elements if {"src", "srcset"} & attributes.keys()]
    assert [link["href"] for link in read.all("link")] == ["data:,"]
    labels = {label["for"] for label in read.all("label")}
    assert {slider["id"] for slider in read.all("input")} == labels == {"sigma", "members", "draws"}
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(data) == json.loads((STORED / "interactive.json").read_text())


@pytest.mark.slow
def test_the_study_writes_numbers_and_page(tmp_path):
    done = subprocess.run(
        [sys.executable, str(STUDY), "--smoke", "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "interactive.json").read_text())
    assert [len(rows) for rows in stored["numbers"]] == [2, 2]
    assert (tmp_path / "index.html").stat().st_size > 10_000


# In a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Drawn anew from the stored numbers, with the templates as they are."""
    stored = json.loads((STORED / "interactive.json").read_text())
    return interactive.write_page(stored, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(browser, page):
    """On the page, which afterwards has neither complained nor asked for anything but itself."""
    browser.errors.clear()
    browser.requests.clear()
    browser.show(page)
    yield browser
    browser.evaluate("localStorage.clear()")
    assert browser.errors == []
    assert {address for address in browser.requests if not address.startswith("data:")} == {page.as_uri()}


def seen(tab):
    """What the page shows: the pictures and the numbers."""
    pictures = ("mean", "solution", "difference", "error")
    numbers = ("rms", "standard-error", "largest", "within", "chart", "sentence", "table-title")
    return {name: tab.evaluate(f"document.getElementById('{name}').toDataURL()") for name in pictures} | {
        name: tab.evaluate(f"document.getElementById('{name}').innerHTML") for name in numbers
    }


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("slider", "stays"), [("sigma", set()), ("members", set()), ("draws", {"solution", "table-title"})]
)
def test_the_arrows_move_a_slider_and_picture_and_numbers_follow(tab, slider, stays):
    before = seen(tab)
    tab.evaluate(f"document.getElementById('{slider}').focus()")
    tab.press(*RIGHT)
    after = seen(tab)
    expected = before.keys() - stays
    assert changed(before, after) | {"within"} == expected | {"within"}
    said = tab.evaluate(f"document.getElementById('{slider}-value').textContent")
    assert tab.evaluate(f"document.getElementById('{slider}').getAttribute('aria-valuetext')") == said


def test_the_focus_goes_from_slider_to_slider_and_is_seen(tab):
    tab.evaluate("document.getElementById('theme').focus()")
    order = []
    for _ in range(4):
        tab.press("Tab", 9)
        order.append(tab.evaluate("document.activeElement.id"))
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert order == ["sigma", "members", "draws", "play"]


def test_pictures_have_the_errors_that_the_numbers_say(tab):
    stored = json.loads((STORED / "interactive.json").read_text())
    config = stored["provenance"]["config"]
    for sigma, members, draws in itertools.product(range(len(config["sigmas"])), (1, config["members"]), (0, 9)):
        shown = tab.evaluate(
            f"(() => {{ const {{ difference, error }} = averaged({sigma}, {members}, {draws});"
            " return [difference, error].map((field) => Math.hypot(...field) / side); })()"
        )
        row = stored["numbers"][sigma][members - 1][draws]
        # two independent roundings of one byte each
        assert shown == pytest.approx([row["rms"], row["standard_error"]], rel=0.02, abs=1e-3)


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_into_windows_narrow_and_wide_light_and_dark(tab, page, width, dark):
    tab.show(page, width=width, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    canvases = tab.evaluate("[...document.querySelectorAll('#fields canvas')].map((each) => each.clientWidth)")
    assert min(canvases) > 130
    assert tab.evaluate("Math.min(...[...document.querySelectorAll('input, #play')].map((e) => e.clientHeight))") >= 40
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(253, 253, 251)")
    before = seen(tab)
    tab.evaluate("document.getElementById('theme').click()")
    assert {"mean", "solution", "difference", "error"} <= changed(before, seen(tab))


def test_draws_are_added_one_after_the_other_and_at_once_for_less_motion(tab, page):
    position = "Number(document.getElementById('draws').value)"
    tab.evaluate("document.getElementById('play').click()")
    assert tab.evaluate("document.getElementById('play').textContent") == "Stop"
    end = time.monotonic() + 20
    while not 0 < tab.evaluate(position) < 9:
        assert time.monotonic() < end
        time.sleep(0.1)
    tab.evaluate("document.getElementById('play').click()")
    assert tab.evaluate("document.getElementById('play').textContent") == "Add draws"
    tab.show(page, still=True)
    tab.evaluate("document.getElementById('play').click()")
    assert tab.evaluate(position) == 9
    assert tab.evaluate("document.getElementById('play').textContent") == "Add draws"
