"""The report: self-contained, its numbers those of the files, whole with any subset of results, and fit for a phone.

`python tests/test_report.py PAGE FOLDER` takes screenshots of a page at every width and in both themes.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import made_up_records
import numpy as np
import pytest
from jinja2 import ChoiceLoader, DictLoader, FileSystemLoader
from made_up_records import DIGITS, ROWS, STAMP, TINY, a_training
from mutations import survivors

from studies import report
from studies.lab.records import Records
from studies.lab.reporting import InputError, read_objects
from studies.page.charts import WIDTH, Axis, Dot, Series, dot_chart, line_chart
from studies.page.findings import findings, status_of, still_right
from studies.page.panels import accuracies, heads, of_rates, training_curves
from studies.page.results import STYLES, Count, Results, _withdrawn, kind_of
from studies.report import MARKS, markdown_table, readme_block, render, with_block

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "studies" / "results"
WIDTHS = (360, 768, 1280)


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


class Elements(HTMLParser):
    """All start tags with their attributes, and the text outside of styles and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:  # elements such as <img> have no end tag
            pass

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open[-1:]):
            self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


def test_the_page_asks_for_nothing_from_outside(page):
    found = Elements(page)
    for tag, attributes in found.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
    assert "@import" not in page
    assert not re.search(r"url\((?!['\"]?data:)", page)
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
    for table in (*everything.tables, *everything.reproduction):
        section = page.split(f'id="{table["anchor"]}"')[1].split("</section>")[0]
        for row in table["rows"]:
            for cell in row["cells"].values():
                assert f"<b>{100 * cell['mean']:.1f}</b>" in section
        shown = Counter(re.findall(r"<b>(holds|does not hold|undecided)</b>", section))
        assert shown == Counter(verdict["verdict"] for verdict in table["verdicts"])
    assert "nan" not in words.lower().split()


def test_the_same_files_give_the_same_page(page, everything):
    assert render(Results(everything.folder)) == page


def test_the_reproduction_is_one_table_of_all_networks_and_attacks(everything):
    (table,) = everything.reproduction
    assert [row["model"] for row in table["rows"]] == ["ResNet20", "En1ResNet20", "En2ResNet20", *list(ROWS)[3:]]
    assert (table["title"], table["anchor"]) == ("CPU, narrow networks", "table2-cifar10-cpu-narrow")
    assert list(table["columns"]) == ["nat", "fgsm", "ifgsm20"]
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
    for _, command in results.missing:
        assert command in words
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


def verdict(word: str) -> dict:
    return {"verdict": word}


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
    assert status_of(Count([verdict(word) for word in words])) == status


def test_below_three_seeds_nothing_is_decided(tmp_path):
    results = Results(made_up_records.write(tmp_path, made_up_records.cifar(seeds=2)))
    (table,) = results.reproduction
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
    statuses = {}
    for share in (0.05, 0.5):
        for row in stored["rows"]:
            row["mean"]["one"] = share * row["mean"]["noise"]
        (tmp_path / "noise_scale" / "noise_scale.json").write_text(json.dumps(stored))
        (finding,) = findings(Results(tmp_path))
        statuses[finding.status] = finding.evidence
    assert list(statuses) == ["reproduced", "partly"]
    assert "50% to 50%" in statuses["partly"]


def test_learning_rates_are_compared_on_equal_seeds(tmp_path):
    tried = ((0.1, 0, 0.3), (0.1, 1, 0.5), (0.1, 2, 0.9), (0.2, 0, 0.4), (0.2, 1, 0.6))
    trainings = [
        *(a_training("En2ResNet8", s, lr=lr, peak_lr=2 * lr, validation=v, **DIGITS) for lr, s, v in tried),
        a_training("ResNet8", 0, **DIGITS),  # one rate alone: nothing to compare
        *(a_training("ResNet8", 0, lr=lr, loss="natural", **DIGITS) for lr in (0.1, 0.2)),
        *(a_training("ResNet20", 0, lr=lr) for lr in (0.1, 0.2)),
    ]
    small, large = Results(made_up_records.write(tmp_path, Records(trainings, []))).learning_rates
    assert (small["dataset"], large["dataset"]) == ("cifar10", "digits")
    assert [row["model"] for row in small["networks"]] == ["ResNet20"]
    (row,) = large["networks"]
    assert (row["model"], row["seeds"]) == ("En2ResNet8", [0, 1])
    assert row["rates"] == [
        {"lr": 0.1, "peak_lr": 0.2, "validation": [0.3, 0.5]},
        {"lr": 0.2, "peak_lr": 0.4, "validation": [0.4, 0.6]},
    ]


def test_images_that_are_still_right_are_counted():
    columns = [
        {"network": "A", "attack": "FGSM", "predicted": ["1", "2", "9"]},
        {"network": "B", "attack": "FGSM", "predicted": ["3", "1", "2"]},
    ]
    said = still_right({"labels": ["1", "2", "3"], "columns": columns})
    assert said == "2 of 3 for A under FGSM; 0 of 3 for B under FGSM"


def with_tables(tables: list[dict], folder: Path) -> Results:
    """An empty folder of results, but for these tables."""
    results = Results(folder)
    results.__dict__["_all_tables"] = tables  # where the property would keep them
    return results


def test_other_tables_are_counted_together(tmp_path):
    tables = []
    cell = {
        "mean": 0.5,
        "vote": 0.5,
        "interval": [0.4, 0.6],
        "confidence": 0.95,
        "n": 9,
        "num_draws": 1,
        "num_seeds": 1,
    }
    rows = [
        {
            "model": m,
            "oracle": None,
            "loss": "natural",
            "num_parameters": 1,
            "num_members": 1,
            "paper": {},
            "cells": {"nat": cell},
            "runs": [],
        }
        for m in ("En1ResNet8", "En2ResNet8", "ResNet8")
    ]
    claim = {"better": "En1ResNet8", "worse": "ResNet8", "column": "nat", "difference": 0.1, "interval": [0.0, 0.2]}
    again = claim | {"paper_difference": 0.5, "verdict": "holds"}
    for name, verdicts in (
        ("table1", [again]),
        ("table4", [again, claim | {"better": "En2ResNet8", "paper_difference": 1.0, "verdict": "undecided"}]),
        ("table8", [claim | {"paper_difference": None, "verdict": "holds"}]),
    ):
        tables.append(
            {
                "table": name, "title": name, "caption": "", "note": "", "rows": rows, "columns": {"nat": "natural"},
                "dataset": "digits", "paper_dataset": "cifar10", "setting": "", "anchor": name, "verdicts": verdicts,
                "strengths": [], "attack_titles": {}, "stamps": [STAMP],
            }
        )  # fmt: skip
    results = with_tables(tables, tmp_path)
    (finding,) = findings(results)
    assert finding.claim == "The paper’s orderings, Table 1, Table 4 on 8×8 digits"
    assert finding.status == "partly"
    assert finding.evidence.startswith("Of 2 orderings 1 holds, 0 are reversed and 1 is undecided")
    assert Counter(re.findall("<b>(holds|undecided)</b>", render(results))) == {"holds": 3, "undecided": 1}


def test_kinds_of_networks_are_told_by_their_names():
    names = ["ResNet20", "En2ResNet20", "Plain2ResNet20", "Wide5ResNet8", "WRN-14-2", "TwoPoint2ResNet8"]
    assert [kind_of(name) for name in names] == ["single", "noisy", "silent", "wide", "single", "two-point"]


def numbers(pattern: str, svg: str) -> list[float]:
    return [float(text) for text in re.findall(pattern, svg)]


def test_dots_lie_where_their_values_are():
    dots = [Dot("low", 10.0, 5.0, 15.0), Dot("high", 30.0, 20.0, 40.0, mark=35.0), Dot("middle", 20.0, 19.0, 21.0)]
    svg = dot_chart(dots, title="three")
    low, high, middle = numbers(r'<circle class="dot c0" cx="([\d.]+)"', svg)
    assert middle - low == pytest.approx(high - middle, abs=0.2)
    starts = numbers(r'<path class="line c0" d="M([\d.]+) ', svg)
    assert starts[1] == pytest.approx(middle, abs=0.2)
    assert "paper 35.0" in svg


def test_labels_at_the_ends_of_lines_never_overlap():
    series = [Series(f"line {k}", [(1.0, 1.0), (2.0, 1.0 + k / 1000)]) for k in range(6)]
    svg = line_chart(series, Axis("x"), Axis("y"), title="six lines that end together")
    heights = sorted(numbers(r'<text class="label c0" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(heights) == 6
    assert min(np.diff(heights)) > 12
    assert 0 < heights[0] < heights[-1] < 250 - 30


def box(svg: str, label: str) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a label at the end of a line, a little less than is reserved for it."""
    ((x, y),) = re.findall(rf'<text class="label c0" x="([\d.]+)" y="([\d.]+)">{label}</text>', svg)
    return float(x), float(x) + 7.0 * len(label), float(y) - 10, float(y) + 2


def test_labels_stand_where_their_lines_end():
    ends = {"early": (2.0, 1.0), "earlier": (1.8, 1.01), "late": (9.0, 1.02), "low": (9.0, 5.0)}
    series = [Series(label, [(0.0, 0.0), end]) for label, end in ends.items()]
    svg = line_chart(series, Axis("x"), Axis("y"), title="four lines that end apart")
    boxes = {label: box(svg, label) for label in ends}
    for label, s in zip(ends, series, strict=True):
        line = re.search(rf'translate\(([\d.]+) ([\d.]+)\)"><title>{label}: {s.end[0]:g}, ', svg)
        assert line
        assert 0 < boxes[label][0] - float(line[1]) < 12
        assert abs((boxes[label][2] + boxes[label][3]) / 2 - float(line[2])) < 30
        assert boxes[label][1] <= WIDTH
    for (left, right, top, bottom), other in itertools.combinations(boxes.values(), 2):
        assert right < other[0] or other[1] < left or bottom <= other[2] or other[3] <= top


NAMES = [
    "A",
    "En1ResNet8",
    "En2ResNet110&ResNet110",
    "TwoPoint5ResNet8xx",
    "En1ResNet20&En1ResNet32 (learned weights)",
    "x" * 70,
]


@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_chart_is_plot_whatever_the_names(name):
    dots = dot_chart([Dot(name, 10.0, 0.0, 20.0), Dot("B", 10.0, 0.0, 20.0)], title="two networks")
    (start, end), _ = [map(float, s) for s in re.findall(r'class="line c0" d="M([\d.]+) [\d.]+H([\d.]+)"', dots)]
    assert (end - start) / 0.9 > 0.499 * WIDTH  # a twentieth of the values is left free at either side
    lines = line_chart([Series(name, [(0.0, 1.0), (1.0, 2.0)])], Axis("x"), Axis("y"), title="a line")
    (path,) = re.findall(r'<path class="line c0" d="M([\d.]+) [\d.]+L([\d.]+) [\d.]+"', lines)
    assert (float(path[1]) - float(path[0])) / 0.9 > 0.499 * WIDTH
    for svg in (dots, lines):
        text = "".join(re.findall(r'<text class="(?:name|label c0)"[^>]*>(.*?)</text>', svg))
        assert escape(name).replace(" ", "") in text.replace(" ", "")


def test_one_colour_is_one_kind_of_network_in_every_chart(everything):
    table = next(table for table in everything.tables if table["table"] == "table2")
    kinds = {style: kind for kind, style in STYLES.items()}
    for panel in accuracies(table):
        dots = re.findall(r'<title>(\w+): .*?class="dot (c\d)"', panel.chart)
        assert {model: kinds[style] for model, style in dots} == {
            r["model"]: kind_of(r["model"]) for r in table["rows"]
        }
    curves = everything.fig5["rows"]
    rows = [*curves, *(curves[0] | {"model": model} for model in ("En3ResNet8", "En10ResNet8"))]
    ((_, panels),) = training_curves(rows)
    rates = next(stored for stored in everything.learning_rates if stored["dataset"] == "digits")
    for panel in [*panels, *of_rates(rates)]:
        looks = {}
        for style, path, label in re.findall(r'class="dot (c\d)" d="(.+?)".*?<title>(.+?): ', panel.chart):
            looks[unescape(label)] = style, path
        found = re.findall(r'class="label (c\d)"[^>]*>(.+?)</text>', panel.chart)
        labels = [(style, unescape(label)) for style, label in found]
        assert len(labels) == len(looks) > 4
        assert all(looks[label][0] == style for style, label in labels)
        assert all(
            kinds[style] == kind_of(label if "Net" in label or "WRN" in label else label + "ResNet8")
            for label, (style, _) in looks.items()
        )
        assert len(set(looks.values())) == len(looks)  # nor do two lines look the same


def test_networks_of_several_families_keep_their_names_in_one_chart():
    rates = [{"peak_lr": rate, "validation": [0.5, 0.6]} for rate in (0.1, 0.2)]
    models = ("En2ResNet8", "En2ResNet14", "En1ResNet8&En1ResNet14 (learned weights)")
    (panel,) = of_rates({"networks": [{"model": model, "rates": rates} for model in models]})
    for model in models:
        assert f">{escape(model)}</text>" in panel.chart


def in_section(page: str, anchor: str) -> Elements:
    return Elements(page.split(f'id="{anchor}"')[1].split("</section>")[0].partition(">")[2])


def test_every_table_has_a_caption(page):
    tags = [tag for tag, _ in Elements(page).elements]
    assert tags.count("table") > 10
    assert all(following == "caption" for tag, following in itertools.pairwise(tags) if tag == "table")


def test_tables_of_accuracies_hide_no_number(page, everything):
    for table in [*everything.tables, *everything.reproduction]:
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


def a_table(cells: list[dict], title: str = "C&W (50)") -> dict:
    """Networks that were attacked by C&W, in the form of a stored table."""
    base = {"mean": 0.99, "vote": 0.98, "interval": [0.9, 1.02], "confidence": 0.95, "num_draws": 3}
    rows = [
        {
            "model": f"En{k}ResNet8",
            "oracle": None,
            "loss": "pgd",
            "num_parameters": 10**6,
            "paper": {"cw": 58.73},
            "runs": [],
        }
        | {"cells": {"cw": base | cell}}
        for k, cell in enumerate(cells, start=1)
    ]
    return {
        "table": "table2", "title": "Table 2", "caption": "Made up", "note": "", "dataset": "digits",
        "paper_dataset": "cifar10", "columns": {"cw": title}, "rows": rows, "setting": "", "anchor": "table2-digits",
        "strengths": [], "attack_titles": {}, "stamps": [STAMP],
        "verdicts": [
            {"better": "En2ResNet8", "worse": "En1ResNet8", "column": "cw", "difference": 0.1, "interval": [0.0, 0.2]}
            | {"paper_difference": 0.5, "verdict": "too few seeds", "n": 9, "num_seeds": 1}
        ],
    }  # fmt: skip


def page_of(table: dict, folder: Path) -> str:
    return render(with_tables([table], folder))


def test_what_all_cells_share_stands_in_the_head_and_else_in_the_cell(tmp_path):
    same, other = {"n": 1000, "num_seeds": 3}, {"n": 1000, "num_seeds": 1}
    assert heads(a_table([same, same]))["cw"].shared == "n = 1,000, 3 seeds"
    table = a_table([same, other])
    head = heads(table)["cw"]
    assert head.shared == ""
    assert [head.own(row["cells"]["cw"]) for row in table["rows"]] == ["n = 1,000, 3 seeds", "n = 1,000, 1 seed"]
    section = in_section(page_of(table, tmp_path), "table2-digits")
    first, *_ = section.words.partition("Every number")
    assert first.count("n = 1,000, 3 seeds") == first.count("n = 1,000, 1 seed") == 1
    assert "90.0 to 100.0" in first  # an accuracy is at most 100%


@pytest.mark.parametrize(("steps", "is_capped"), [(20, True), (50, False)])
def test_a_capped_attack_is_told_from_the_papers(tmp_path, steps, is_capped):
    table = a_table([{"n": 9, "num_seeds": 1}] * 2, f"C&W ({steps})")
    words = in_section(page_of(table, tmp_path), "table2-digits").words
    assert ("paper 58.7†" in words) == is_capped
    assert ("† The paper’s attack takes 50 steps" in words) == is_capped


def test_a_folded_table_can_be_linked_and_says_what_became_of_it(everything, monkeypatch):
    source = "{% from 'macros.html' import study with context %}{{ study(results.tables[0], [], folded=FOLDED) }}"
    pages = {}
    for folded in ("true", "false"):
        own = DictLoader({"page.html": source.replace("FOLDED", folded)})
        loaders = ChoiceLoader([own, FileSystemLoader(report.TEMPLATES)])
        monkeypatch.setattr(report, "FileSystemLoader", lambda _, loaders=loaders: loaders)
        pages[folded] = render(everything)
    table = everything.tables[0]
    verdicts = Counter(verdict["verdict"] for verdict in table["verdicts"])
    summary = Elements(pages["true"].split("<summary>")[1].split("</summary>")[0]).words
    assert table["title"] in summary
    assert f"of {verdicts.total()} orderings {verdicts['holds']} hold" in summary
    assert pages["true"].index(f'<section id="{table["anchor"]}">') < pages["true"].index("<details")
    assert pages["true"].count("<details") == pages["false"].count("<details") + 1


def test_a_straight_line_in_logarithms_is_drawn_straight():
    line = Series("power", [(x, x**-0.5) for x in (1.0, 10.0, 100.0)])
    svg = line_chart([line], Axis("n", is_log=True), Axis("error", is_log=True), title="a power law")
    x, y = np.reshape(numbers(r"[\d.]+", " ".join(re.findall(r'class="dot c0"[^>]*translate(\(.+?\))', svg))), (3, 2)).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2)


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
    table = everything.headline
    assert table["dataset"] == "cifar10"
    text = markdown_table(table)
    assert "(75.1)" in text.splitlines()[2]
    assert text.splitlines()[0] == "| network | natural | FGSM | IFGSM20 |"  # what the paper does not have stays out
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_orderings_by_number_of_members_are_withdrawn_where_the_decay_differed():
    def table(config):
        networks = [{"provenance": {"config": config}}]
        rows = [
            {"model": name, "num_members": count, "runs": [{"networks": networks}]}
            for name, count in (("A", 1), ("En1A", 1), ("En2A", 2))
        ]
        pairs = [("En1A", "A"), ("En2A", "A")]
        verdicts = [{"better": b, "worse": w, "verdict": "holds"} for b, w in pairs]
        return {"rows": rows, "note": "Small.", "verdicts": verdicts}

    new = table({"lr_scaling": "members", "val_num_steps": 10})
    assert _withdrawn(new) == new
    withdrawn = _withdrawn(table({"lr_scaling": "members"}))
    assert [found["verdict"] for found in withdrawn["verdicts"]] == ["holds", "withdrawn"]
    assert withdrawn["note"].startswith("Small. Orderings of networks with different numbers of members are withdrawn")
    count = Count(withdrawn["verdicts"])
    assert (len(count.holding), len(count.withdrawn), len(count.undecided)) == (1, 1, 0)


# In a browser


class Chromium:
    """A headless browser, spoken to over a pair of pipes in its DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        browser_reads, self._write = os.pipe()
        self._read, browser_writes = os.pipe()
        # bash, as a plain sh may know descriptors of one digit only
        options = f"--headless --no-sandbox --disable-gpu --user-data-dir={profile} --remote-debugging-pipe about:blank"
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {program} {options} 3<&{browser_reads} 4>&{browser_writes}"],
            pass_fds=(browser_reads, browser_writes),
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_reads)
        os.close(browser_writes)
        self._pending = b""
        self._ids = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params) -> dict:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self._pending:
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser has gone"
            self._pending += piece
        message, _, self._pending = self._pending.partition(b"\0")
        answer = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        return answer

    def open(self, url: str, width: int, height: int, theme: str) -> None:
        """Load `url` on a screen of this size; events before it are forgotten."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.events.clear()
        self.send("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def evaluate(self, expression: str):
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium here")
    found = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def url(page, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page)
    return path.as_uri()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_complains_of_nothing(browser, url, width, theme):
    browser.open(url, width, 800, theme)
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= browser.evaluate("innerWidth") == width
    trouble = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"}
    assert not [event for event in browser.events if event["method"] in trouble]
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert {address.split(":")[0] for address in asked} <= {"file", "data"}
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    assert browser.evaluate(CONTRAST) >= 4.5
    assert browser.evaluate(SPILT) == []


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = colour => { const [r, g, b] = rgb(colour).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("p, td, th, figcaption, a, b, svg text, summary")];
  return Math.min(...texts.map(e => { const s = getComputedStyle(e), l = light(e.closest("svg") ? s.fill : s.color);
    return (Math.max(l, back) + 0.05) / (Math.min(l, back) + 0.05); }));
})()"""
"""The least contrast of a text with the page (WCAG 2, 1.4.3 asks for 4.5)."""

SPILT = """[...document.querySelectorAll(".chart svg")].flatMap(svg => {
  const outer = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(t => { const r = t.getBoundingClientRect();
    return r.left < outer.left - 1 || r.right > outer.right + 1 || r.top < outer.top - 1 || r.bottom > outer.bottom + 1;
  }).map(t => t.textContent);
})"""
"""Texts of charts that reach out of their picture."""


def test_the_button_changes_the_theme(browser, url):
    browser.open(url, 768, 800, "light")
    colour = "getComputedStyle(document.body).backgroundColor"
    before = browser.evaluate(colour)
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(colour) != before
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(colour) == before
    browser.evaluate("localStorage.clear()")


if __name__ == "__main__":
    page_path, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    chromium = Chromium(find_chromium() or sys.exit("no chromium here"), folder / "profile")
    for size, colours in itertools.product(WIDTHS, ("light", "dark")):
        chromium.open(page_path.as_uri(), size, 800, colours)
        chromium.screenshot(folder / f"{size}-{colours}.png")
    chromium.close()


def test_stored_lines_that_are_no_objects_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    whole = '{"seed": 0}\n{"seed": 1}\n{"seed": 2}\n'
    path.write_text(whole)
    assert read_objects(path) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    for content, message in (
        (whole.encode() + b'{"seed"', "line 4, is damaged: expected JSON"),
        (whole.encode() + b"[1]", r"line 4, is damaged: expected an object, got '\[1\]'"),
        (b'{"seed": "\xff"}', "is damaged: invalid start byte at byte 10, expected UTF-8"),
        (b'{"a":' + b"[" * 100_000, "line 1, is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_objects(path)
    path.write_text(whole)
    for _ in survivors(path, 300, seed=0, read=lambda: read_objects(path), refuses=InputError):
        pass  # JSON carries no digest: what is not refused is an object a line, at least
