"""The report: self-contained, its numbers those of the files, whole with any subset of results, and fit for a phone."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from html import unescape
from pathlib import Path

import made_up_records
import pytest
from made_up_records import DIGITS, ROWS, STAMP, TINY, a_training
from page_reader import Elements, in_section, points_of, texts

from studies import report
from studies.lab.networks import kind_of
from studies.lab.records import Records
from studies.lab.reporting import InputError
from studies.page.findings import Finding, status_of
from studies.page.panels import PANELS, STYLES, accuracies, charts_of_rates, heads, num_equal, training_curves
from studies.page.results import Results
from studies.report import MARKS, readme_block, render, with_block

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "studies" / "results"
WIDTHS = (360, 1280)


def findings(results: Results) -> list[Finding]:
    return [finding for panel in PANELS for finding in panel.findings(results)]


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Results:
    """The stored results of all studies but of those that train networks, which are made up."""
    folder = tmp_path_factory.mktemp("results")
    for part in STORED.iterdir():
        if part.is_dir() and part.name != "records":
            (folder / part.name).symlink_to(part)
    return Results(made_up_records.write(folder, made_up_records.cifar(), made_up_records.digits()))


@pytest.fixture(scope="module")
def page(everything) -> str:
    return render(everything)


def test_the_page_asks_for_nothing_from_outside(page):
    found = Elements(page)
    for tag, attributes in found.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
    assert "@import" not in page
    assert not re.search(r"url\((?!['\"]?(data:|#))", page)
    assert len(page.encode()) < 6 * 2**20


def test_ids_are_unique_and_links_lead_somewhere(page):
    found = Elements(page)
    ids = Counter(attributes["id"] for _, attributes in found.elements if "id" in attributes)
    assert max(ids.values()) == 1, ids.most_common(2)
    for link in found.all("a"):
        assert link["href"].startswith("#")
        assert link["href"][1:] in ids


def test_pictures_and_charts_say_what_they_show(page):
    found = Elements(page)
    assert found.all("html")[0]["lang"] == "en"
    assert found.all("img")
    assert all(len(image["alt"]) > 20 for image in found.all("img"))
    named = [svg for svg in found.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(named) > 5
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in named)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_numbers_are_those_of_the_files(page, everything):
    words = Elements(page).words
    pde = json.loads((STORED / "neural_pde" / "neural_pde.json").read_text())
    check = pde["checks"][0]
    assert f"{100 * check['coverage']:.1f}% of {check['points']:,} points" in words
    verdicts = json.loads((STORED / "theorems" / "summary.json").read_text())["verdicts"]
    printed = verdicts["theorem2"]["bounds"]["printed"]
    assert f"exceeded in {printed['fails']} of {verdicts['theorem2']['n']} random cases" in words
    for panel in json.loads((STORED / "fig4" / "fig4.json").read_text())["panels"]:
        assert f"{panel['minimum']:.2f} to {panel['maximum']:.2f}".replace("-", "−") in words
    assert len(everything.tables) == 11
    for table in (*everything.tables, *everything.found["cifar"]):
        section = page.split(f'id="{table["anchor"]}"')[1].split("</section>")[0]
        for row in table["rows"]:
            for cell in row["cells"].values():
                assert f"<b>{100 * cell['mean']:.1f}</b>" in section
        assert "<td>6.2 " in section  # minutes: five epochs of 75 s
        shown = Counter(re.findall(r"<b>(holds|does not hold|undecided)</b>", section))
        assert shown == Counter(verdict["verdict"] for verdict in table["verdicts"])
    assert "nan" not in words.lower().split()


def test_the_same_files_give_the_same_page(page, everything):
    assert render(Results(everything.folder)) == page


def test_the_reproduction_is_one_table_of_all_networks_and_attacks(everything):
    (table,) = everything.found["cifar"]
    assert [row["model"] for row in table["rows"]] == ["ResNet20", "En1ResNet20", "En2ResNet20", *list(ROWS)[3:]]
    assert (table["title"], table["anchor"]) == ("CPU, narrow networks", "table2-cifar10-cpu-narrow")
    assert list(table["columns"]) == ["nat", "fgsm", "ifgsm20", "worst"]
    verdicts = {(v["better"], v["worse"], v["column"]): v for v in table["verdicts"]}
    assert verdicts["En2ResNet20", "ResNet20", "ifgsm20"]["verdict"] == "holds"
    assert verdicts["En2ResNet20", "Wide2ResNet20", "ifgsm20"]["paper_difference"] is None
    assert verdicts["En2ResNet20", "ResNet20", "nat"]["paper_difference"] == pytest.approx(80.34 - 75.11)
    assert [row["model"] for row in table["strengths"]] == ["En1ResNet20", "En2ResNet20"]
    assert {(f["n"], f["num_seeds"]) for row in table["strengths"] for f in row["differences"].values()} == {(200, 3)}


def test_an_empty_folder_gives_a_page_that_says_how_to_fill_it(tmp_path):
    results = Results(tmp_path)
    words = Elements(render(results)).words
    assert len(results.missing) >= 18
    for study in results.missing:
        assert study.command in words
    assert readme_block(results) == "\n\n".join(MARKS)


@pytest.mark.parametrize(
    "left_out",
    ["neural_pde", "fig4", "theorems", "multilevel", "noise_scale", "records", "fig5", "fig6"],
)
def test_any_part_may_be_missing(everything, tmp_path, left_out):
    for part in everything.folder.iterdir():
        if part.name != left_out:
            (tmp_path / part.name).symlink_to(part)
    partial = Results(tmp_path)
    assert len(partial.missing) > len(everything.missing)
    ids = {attributes.get("id") for _, attributes in Elements(render(partial)).elements}
    assert {"summary", "idea", "figure4", "theorems", "multilevel", "tables", "missing"} <= ids


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "fig4").mkdir()
    (tmp_path / "fig4" / "fig4.json").write_text("{")
    with pytest.raises(InputError, match=r"fig4\.json, line 1, is damaged: expected JSON"):
        render(Results(tmp_path))


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["holds"] * 3, "reproduced"),
        (["holds"] * 2 + ["undecided"], "partly"),
        (["holds"] + ["undecided"] * 2, "undecided"),
        (["holds"] + ["does not hold"] * 2, "not reproduced"),
    ],
)
def test_a_set_of_orderings_has_the_status_of_most_of_them(words, status):
    assert status_of([{"verdict": word} for word in words]) == status


def test_below_three_seeds_nothing_is_decided(tmp_path):
    results = Results(made_up_records.write(tmp_path, made_up_records.cifar(seeds=2)))
    (table,) = results.found["cifar"]
    assert {verdict["verdict"] for verdict in table["verdicts"]} == {"too few seeds"}
    assert {finding.status for finding in findings(results)} == {"undecided"}


def test_the_headline_is_of_the_setting_that_tells_of_the_claim(tmp_path):
    tiny = made_up_records.cifar()
    fast = [r | {"setting": "fast", "job": f"fast {r['job']}", "trainings": {}} for r in tiny.scores]
    early = [r for r in fast if (r["network"], r["attack"]) in [("ResNet20", "nat"), ("En2ResNet20", "fgsm")]]
    found = {}
    for name, more in (("alone", []), ("early", early), ("whole", fast)):
        results = Results(made_up_records.write(tmp_path / name, tiny, Records([], more)))
        found[name] = (results.headline or {})["setting"]
    assert found == {"alone": TINY["setting"], "early": TINY["setting"], "whole": "fast"}


def test_a_best_rate_at_the_end_of_what_was_tried_decides_nothing(tmp_path):
    statuses = []
    for single, pair in ((0.4, 0.2), (0.2, 0.2), (0.2, 0.4)):
        trainings = [
            a_training(network, 0, lr=lr, peak_lr=lr * members, validation=0.5 - abs(lr - best), **DIGITS)
            for network, members, best in (("ResNet8", 1, single), ("En2ResNet8", 2, pair))
            for lr in (0.1, 0.2, 0.4)
        ]
        results = Results(made_up_records.write(tmp_path / f"{single} {pair}", Records(trainings, [])))
        (finding,) = findings(results)
        statuses.append(finding.status)
    assert statuses == ["undecided", "reproduced", "undecided"]


def test_findings_follow_the_data(tmp_path):
    stored = json.loads((STORED / "theorems" / "summary.json").read_text())
    (tmp_path / "theorems").mkdir()
    path = tmp_path / "theorems" / "summary.json"
    path.write_text(json.dumps(stored))
    before = [finding.status for finding in findings(Results(tmp_path))]
    stored["verdicts"]["theorem2"]["bounds"]["printed"]["fails"] = 0
    stored["verdicts"]["ramp"]["fails"]["printed"] = 0
    stored["verdicts"]["ramp"]["fails"]["best_mu"] = 1
    path.write_text(json.dumps(stored))
    assert [before, [finding.status for finding in findings(Results(tmp_path))]] == [
        ["partly", "not reproduced", "reproduced"],
        ["partly", "reproduced", "not reproduced"],
    ]


def test_constant_noise_is_judged_by_what_it_moves_beside_the_noise_itself(tmp_path):
    stored = json.loads((STORED / "noise_scale" / "noise_scale.json").read_text())
    (tmp_path / "noise_scale").mkdir()
    statuses = []
    for share in (0.05, 0.5):
        for row in stored["rows"]:
            row["mean"]["one"] = share * row["mean"]["noise"]
        (tmp_path / "noise_scale" / "noise_scale.json").write_text(json.dumps(stored))
        results = Results(tmp_path)
        (finding,) = findings(results)
        statuses.append(finding.status)
        assert f"{100 * share:.0f}% to {100 * share:.0f}% of what the noise itself" in Elements(render(results)).words
    assert statuses == ["reproduced", "partly"]


def test_learning_rates_are_compared_on_equal_seeds(tmp_path):
    tried = ((0.1, 0, 0.3), (0.1, 1, 0.5), (0.1, 2, 0.9), (0.2, 0, 0.4), (0.2, 1, 0.6))
    trainings = [
        *(a_training("En2ResNet8", s, lr=lr, peak_lr=2 * lr, validation=v, **DIGITS) for lr, s, v in tried),
        a_training("ResNet8", 0, **DIGITS),  # one rate alone: nothing to compare
        *(a_training("ResNet8", 0, lr=lr, loss="natural", **DIGITS) for lr in (0.1, 0.2)),
        *(a_training("ResNet20", 0, lr=lr) for lr in (0.1, 0.2)),
    ]
    small, large = Results(made_up_records.write(tmp_path, Records(trainings, []))).found["learning_rates"]
    assert (small["dataset"], large["dataset"]) == ("cifar10", "digits")
    assert [row["model"] for row in small["networks"]] == ["ResNet20"]
    (row,) = large["networks"]
    assert (row["model"], row["seeds"]) == ("En2ResNet8", [0, 1])
    assert row["rates"] == [
        {"peak_lr": 0.2, "validation": [0.3, 0.5]},
        {"peak_lr": 0.4, "validation": [0.4, 0.6]},
    ]


def test_images_that_are_still_right_are_counted():
    assert num_equal(["1", "2", "9"], ["1", "2", "3"]) == 2


def a_table(name: str, column: str, cells: list[dict], verdicts: list[dict], title: str = "natural") -> dict:
    """A table of networks En1ResNet8, En2ResNet8, ... on digits."""
    usual = {"mean": 0.99, "vote": 0.98, "interval": [0.9, 1.02], "confidence": 0.95, "num_draws": 3, "seconds": 90.0}
    network = {"oracle": None, "loss": "pgd", "num_parameters": 10**6, "num_members": 1, "paper": {"cw": 58.73}}
    rows = [
        network | {"model": f"En{k}ResNet8", "runs": [], "cells": {column: usual | cell}}
        for k, cell in enumerate(cells, 1)
    ]
    common = {"column": column, "difference": 0.1, "interval": [0.0, 0.2], "n": 9, "num_seeds": 3}
    return {
        "table": name, "title": name, "caption": "Made up", "note": "", "dataset": "digits", "paper_dataset": "cifar10",
        "columns": {column: title}, "rows": rows, "setting": "", "anchor": f"{name}-digits", "strengths": [],
        "attack_titles": {}, "stamps": [STAMP], "verdicts": [common | verdict for verdict in verdicts],
    }  # fmt: skip


def with_tables(folder: Path, *tables: dict) -> Results:
    """An empty folder of results, but for these tables."""
    results = Results(folder)
    results.__dict__["found"] = {table["table"]: table for table in tables}  # where the property would keep them
    return results


def test_other_tables_are_counted_together(tmp_path):
    cells = [{"n": 9, "num_seeds": 3}] * 3
    first = {"better": "En2ResNet8", "worse": "En1ResNet8", "paper_difference": 0.5, "verdict": "holds"}
    second = first | {"better": "En3ResNet8", "paper_difference": 1.0, "verdict": "undecided"}
    several = {"table1": [first], "table4": [first, second], "table8": [first | {"paper_difference": None}]}
    results = with_tables(tmp_path, *(a_table(name, "nat", cells, found) for name, found in several.items()))
    (finding,) = findings(results)
    assert finding.status == "partly"
    words = Elements(render(results)).words
    assert "The paper’s orderings, Table 1, Table 4 on 8×8 digits" in words
    assert "Of 2 orderings 1 holds, 0 are reversed and 1 is undecided, each at 95%" in words
    assert Counter(re.findall("<b>(holds|undecided)</b>", render(results))) == {"holds": 3, "undecided": 1}


def test_kinds_of_networks_are_told_by_their_names():
    names = ["ResNet20", "En2ResNet20", "Plain2ResNet20", "Wide5ResNet8", "WRN-14-2", "TwoPoint2ResNet8"]
    assert [kind_of(name) for name in names] == ["single", "noisy", "silent", "wide", "single", "two-point"]


def test_one_colour_is_one_kind_of_network_in_every_chart(everything):
    kinds = {style: kind for kind, style in STYLES.items()}
    table = everything.found["table2"]
    curves = everything.found["fig5"]
    more = [curves["rows"][0] | {"model": model} for model in ("En3ResNet8", "En10ResNet8")]
    ((_, charts),) = training_curves(curves | {"rows": [*curves["rows"], *more]})
    rates = next(stored for stored in everything.found["learning_rates"] if stored["dataset"] == "digits")
    for chart in [*accuracies(table), *charts, *charts_of_rates(rates)]:
        found = {text.split(":")[0]: colour for text, (_, _, colour) in points_of(chart.svg).items()}
        assert len(found) > 4
        for label, colour in found.items():
            assert kinds[colour] == kind_of(label if "Net" in label or "WRN" in label else f"{label}ResNet8")


def test_networks_of_several_families_keep_their_names_in_one_chart():
    rates = [{"peak_lr": rate, "validation": [0.5, 0.6]} for rate in (0.1, 0.2)]
    models = ("En2ResNet8", "En2ResNet14", "En1ResNet8&En1ResNet14 (learned weights)")
    stored = {"dataset": "digits", "setting": "", "networks": [{"model": model, "rates": rates} for model in models]}
    (chart,) = charts_of_rates(stored)
    assert set(models) <= set(texts(chart.svg))


def test_every_table_has_a_caption(page):
    tags = [tag for tag, _ in Elements(page).elements]
    assert tags.count("table") > 10
    assert all(following == "caption" for tag, following in itertools.pairwise(tags) if tag == "table")


def test_tables_of_accuracies_hide_no_number(page, everything):
    for table in [*everything.tables, *everything.found["cifar"]]:
        section = in_section(page, table["anchor"])
        assert len(section.all("table")) >= 3
        assert {div["aria-label"] for div in section.all("div") if "aria-label" in div} == {"scrolls sideways"}
        assert not [tag for tag, attributes in section.elements if tag in ("td", "th", "tr") and "title" in attributes]
        for row in table["rows"]:
            for cell in row["cells"].values():
                low, high = (100 * min(1, max(0, bound)) for bound in cell["interval"])
                assert f"{low:.1f} to {high:.1f}" in section.words
                assert f"{low:.2f} to {high:.2f}" in section.words
                assert f"n = {cell['n']:,}, {cell['num_seeds']} seeds" in section.words
        for found in table["verdicts"]:
            assert f"{100 * found['difference']:+.2f}".replace("-", "−") in section.words


OPEN = {"better": "En2ResNet8", "worse": "En1ResNet8", "paper_difference": 0.5, "verdict": "too few seeds"}


def test_what_all_cells_share_stands_in_the_head_and_else_in_the_cell(tmp_path):
    same, other = {"n": 1000, "num_seeds": 3}, {"n": 1000, "num_seeds": 1}
    assert heads(a_table("table2", "cw", [same, same], [OPEN]))["cw"].shared == "n = 1,000, 3 seeds"
    table = a_table("table2", "cw", [same, other], [OPEN])
    assert heads(table)["cw"].shared == ""
    section = in_section(render(with_tables(tmp_path, table)), "table2-digits")
    first, *_ = section.words.partition("Every number")
    assert first.count("n = 1,000, 3 seeds") == first.count("n = 1,000, 1 seed") == 1
    assert "90.0 to 100.0" in first  # an accuracy is at most 100%


@pytest.mark.parametrize(("steps", "is_capped"), [(20, True), (50, False)])
def test_a_capped_attack_is_told_from_the_papers(tmp_path, steps, is_capped):
    table = a_table("table2", "cw", [{"n": 9, "num_seeds": 1}] * 2, [OPEN], f"C&W ({steps})")
    words = in_section(render(with_tables(tmp_path, table)), "table2-digits").words
    assert ("paper 58.7†" in words) == is_capped
    assert ("† The paper’s attack takes 50 steps" in words) == is_capped


def test_a_folded_table_can_be_linked_and_says_what_became_of_it(page, everything):
    table = everything.found["table1"]
    before, _, after = page.partition(f'<section id="{table["anchor"]}">')
    assert before
    assert after.lstrip().startswith("<details")
    verdicts = Counter(verdict["verdict"] for verdict in table["verdicts"])
    summary = Elements(after.split("<summary>")[1].split("</summary>")[0]).words
    assert table["title"] in summary
    assert f"Of {verdicts.total()} orderings {verdicts['holds']} hold" in summary
    assert (
        not page.partition(f'<section id="{everything.found["table2"]["anchor"]}">')[2].lstrip().startswith("<details")
    )


def test_orderings_by_number_of_members_are_withdrawn_where_the_decay_differed(tmp_path):
    records = made_up_records.cifar()
    verdicts = {}
    for name, config in (("new", STAMP["config"]), ("old", {"lr_scaling": "members"})):
        trainings = [line | {"provenance": STAMP | {"config": config}} for line in records.trainings]
        results = Results(made_up_records.write(tmp_path / name, Records(trainings, records.scores)))
        verdicts[name] = {(v["better"], v["worse"]): v["verdict"] for v in results.found["cifar"][0]["verdicts"]}
        assert ("are withdrawn until they are trained again" in readme_block(results)) == (name == "old")
    several = {pair for pair, found in verdicts["old"].items() if found == "withdrawn"}
    assert several == {("En2ResNet20", worse) for worse in ("ResNet20", "En1ResNet20", "Wide2ResNet20")}
    assert {pair: found for pair, found in verdicts["new"].items() if pair not in several} == {
        pair: found for pair, found in verdicts["old"].items() if pair not in several
    }


def test_readme_shows_what_the_files_give():
    text = (ROOT / "README.md").read_text()
    assert with_block(text, readme_block(Results(STORED))) == text, "README.md is behind its files: run `make report`"


def test_readme_needs_its_marks():
    with pytest.raises(InputError, match="once each"):
        with_block("no marks", "\n".join(MARKS))
    assert (
        with_block(f"a {MARKS[0]} old {MARKS[1]} b", f"{MARKS[0]} new {MARKS[1]}") == f"a {MARKS[0]} new {MARKS[1]} b"
    )


def test_the_headline_is_cifar_where_there_is_any(everything):
    assert everything.headline["dataset"] == "cifar10"
    lines = [line for line in readme_block(everything).splitlines() if line.startswith("|")]
    # what the paper does not have stays out but for the worst case
    assert lines[0] == "| network | natural | FGSM | IFGSM20 | worst case (FGSM, IFGSM20) |"
    assert "(75.1)" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


# In a browser


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_complains_of_nothing(page, tmp_path, width, theme):
    found, log = seen(page, tmp_path, width, theme)
    assert "CONSOLE" not in log
    assert found["width"] == width
    assert found["content"] <= width
    assert found["opened"] <= width
    assert found["broken"] == []
    assert found["contrast"] >= 4.5
    assert found["spilt"] == []
    first, other, again = found["themes"]
    assert first == again != other


def seen(page: str, folder: Path, width: int, theme: str) -> tuple[dict, str]:
    """What PROBE finds on the page in a frame of this width, as windows have a least width; and the browser's log."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no chromium here")
    (folder / "page.html").write_text(page + PROBE)
    frame = folder / "frame.html"
    frame.write_text(
        "<script>addEventListener('message', event => document.title = event.data)</script>"
        f"<iframe src='page.html' width='{width}' height='800' style='border: 0'></iframe>"
    )
    options = [f"--user-data-dir={folder}", "--window-size=1400,900", "--virtual-time-budget=10000"]
    options += ["--enable-logging=stderr", f"--blink-settings=preferredColorScheme={int(theme == 'light')}"]
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", *options, "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(unescape(re.findall("<title>(.*?)</title>", done.stdout)[0])), done.stderr


PROBE = """<script>addEventListener("load", () => {
  const wide = () => document.scrollingElement.scrollWidth;
  const content = wide();
  document.querySelectorAll("details").forEach(d => d.open = true);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = colour => { const [r, g, b] = rgb(colour).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const colour = () => getComputedStyle(document.body).backgroundColor;
  const back = light(colour());
  const texts = [...document.querySelectorAll("p, td, th, figcaption, a, b, svg text, summary")];
  const contrasts = texts.map(e => { const s = getComputedStyle(e), l = light(e.closest("svg") ? s.fill : s.color);
    return (Math.max(l, back) + 0.05) / (Math.min(l, back) + 0.05); });
  const spilt = [...document.querySelectorAll(".chart svg")].flatMap(svg => { const o = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter(t => { const r = t.getBoundingClientRect();
      return r.left < o.left - 1 || r.right > o.right + 1 || r.top < o.top - 1 || r.bottom > o.bottom + 1; }); });
  const broken = [...document.images].filter(i => !i.complete || i.naturalWidth == 0);
  const themes = [0, 1, 2].map(() => { const now = colour(); document.getElementById("theme").click(); return now; });
  parent.postMessage(JSON.stringify({ width: innerWidth, content, opened: wide(), contrast: Math.min(...contrasts),
    spilt: spilt.map(t => t.textContent), broken: broken.map(i => i.alt), themes }), "*");
})</script>"""
"""Widths of the screen, of the page and of the page with all details open; the least contrast of a text with the page
(WCAG 2, 1.4.3 asks for 4.5); texts of charts that reach out of their picture; pictures that are not shown; and the
background before the theme's button is clicked, after it and after another click."""


def test_a_page_of_other_results_leaves_readme_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "IS_CLONE", True)
    (tmp_path / "README.md").write_text("mine\n" + "\n".join(MARKS) + "\n")
    (tmp_path / "others").mkdir()
    report.main(tmp_path / "others", tmp_path / "report.html", None)
    assert (tmp_path / "README.md").read_text() == "mine\n" + "\n".join(MARKS) + "\n"
    report.main(STORED, tmp_path / "report.html", None)
    assert "CIFAR-10" in (tmp_path / "README.md").read_text()
