"""Promises and verdicts: closed forms for the statistics, and the study at its least size."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import typer
from page_reader import Elements
from typer.testing import CliRunner

from studies import certify
from studies.certificate import damage
from studies.certificate.equations import square_after
from studies.lab import promises
from studies.lab.promises import FAILS, HOLDS, TOO_FEW, Measured, Row, exact, mean, order, share, verdict
from studies.lab.reporting import RESULTS


def test_a_share_has_an_interval_that_covers_at_least_as_often_as_three_sigmas():
    rng = np.random.default_rng(0)
    held = [(m := share(rng.random(50) < 0.1)).low <= 0.1 <= m.high for _ in range(2000)]
    assert np.mean(held) >= 0.9973 - 3 * np.sqrt(0.9973 * 0.0027 / 2000)
    assert (share([True] * 5).high, share([False] * 5).low) == (1.0, 0.0)


def test_a_mean_has_the_error_of_a_mean():
    values = np.random.default_rng(1).normal(2.0, 3.0, 10_000)
    found = mean(values)
    assert found.standard_error == pytest.approx(0.03, rel=0.05)
    assert found.high - found.value == pytest.approx(3 * found.standard_error, rel=1e-3)


def test_an_order_is_the_slope_and_its_error_that_of_the_errors():
    steps = np.array([10, 20, 40])
    clean = order(steps, 5.0 * steps**-2.0)
    assert clean.value == pytest.approx(2.0)
    assert clean.standard_error < 1e-12
    slopes = []
    rng = np.random.default_rng(2)
    for _ in range(500):
        noisy = 5.0 * steps**-2.0 * (1 + 0.01 * rng.standard_normal(3))
        slopes.append(order(steps, noisy).value)
    told = order(steps, 5.0 * steps**-2.0, 0.05 * steps**-2.0).standard_error
    assert told == pytest.approx(np.std(slopes), rel=0.15)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.95, 0.99, HOLDS), (0.90, 0.949, FAILS), (0.94, 0.96, TOO_FEW), (0.95, 1.0, HOLDS), (0.0, 1.0, TOO_FEW)],
)
def test_a_promise_holds_or_not_where_the_whole_interval_says_so(low, high, expected):
    assert verdict(Measured(0.5 * (low + high), 0.0, low, high, 10), (0.95, 1.0)) == expected


def test_nothing_is_said_where_nothing_is_promised():
    assert verdict(exact(1.0, 1), None) is None


def test_an_interrupted_run_continues_with_the_rows_that_are_missing(tmp_path):
    done = []

    def measure(n, seed, name):
        done.append((name, n))
        if name == "second" and len(done) == 2:
            raise KeyboardInterrupt
        return exact(1.0, n)

    rows = [Row("g", name, "is 1", (1.0, 1.0), 100, partial(measure, name=name)) for name in ("first", "second")]
    with pytest.raises(KeyboardInterrupt):
        promises.run(rows, tmp_path, share=0.1, seed=0)
    found = promises.run(rows, tmp_path, share=0.1, seed=0)
    assert done == [("first", 10), ("second", 10), ("second", 10)]
    assert [row["verdict"] for row in found] == [HOLDS, HOLDS]
    promises.run(rows[:1], tmp_path, share=0.2, seed=0)  # more cases are measured anew, fewer are not
    promises.run(rows[:1], tmp_path, share=0.1, seed=0)
    promises.run(rows[:1], tmp_path, share=0.2, seed=1)
    assert done[3:] == [("first", 20), ("first", 20)]


def test_the_moments_of_the_linear_equations_solve_their_own_equations():
    for constant, rate in ((True, -4.0), (False, -3.75)):
        at = partial(square_after, constant=constant)
        assert at(1.5) == pytest.approx((1.5**2 - 0.25 / -rate) * np.exp(rate) + 0.25 / -rate)
        assert at(np.sqrt(0.25 / -rate)) == pytest.approx(0.25 / -rate)  # where nothing changes


def test_readers_that_misread_end_or_hang_are_counted(monkeypatch):
    def reader(folder):
        path = folder / "file"
        path.write_bytes(bytes(range(64)))

        def read():
            content = path.read_bytes()
            if content[:1] != b"\0":
                os._exit(1)
            if len(content) != 64:
                raise ValueError("length")
            return content

        return damage.Reader(path, read, lambda found: found == bytes(range(64)), ValueError)

    monkeypatch.setitem(damage.READERS, "made up", reader)
    found = damage.failures(200, 0, "made up")
    assert found.n == 200
    assert all(word in found.note for word in ("refused", "misread", "ended the process"))
    refused = int(found.note.split(" refused")[0])
    assert found.value == pytest.approx(1 - refused / 200)


def test_a_reader_that_refuses_everything_proves_nothing(monkeypatch):
    def refuse():
        raise ValueError("no file at all")

    def reader(folder):
        (folder / "file").write_bytes(b"content")
        return damage.Reader(folder / "file", refuse, lambda found: True, ValueError)

    monkeypatch.setitem(damage.READERS, "made up", reader)
    with pytest.raises(ValueError, match="no file at all"):
        damage.failures(10, 0, "made up")


@pytest.mark.parametrize("name", damage.READERS)
def test_each_reader_reads_its_file_before_it_is_damaged(name, tmp_path):
    reader = damage.READERS[name](tmp_path)
    assert reader.same(reader.read())


FAST = ("Clopper", "certificate", "mean accuracy", "records", "density, mass")


def run(*arguments):
    command = typer.Typer()
    command.command()(certify.main)
    return CliRunner().invoke(command, arguments)


def test_the_smallest_run_writes_numbers_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(certify, "ROWS", [row for row in certify.ROWS if row.name.startswith(FAST)])
    done = run("--smoke", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "certify.json").read_text())
    assert len(stored["rows"]) == len(FAST)
    assert FAILS not in {row["verdict"] for row in stored["rows"]}
    page = (tmp_path / "certify.html").read_text()
    read = Elements(page)
    for row in stored["rows"]:
        assert row["name"] in read.words
        assert row["promise"] in read.words
    assert stored["provenance"]["commit"] in read.words


def test_rows_have_names_of_their_own_and_sizes_of_a_share():
    names = [(row.group, row.name) for row in certify.ROWS]
    assert len(set(names)) == len(names)
    assert {row.group for row in certify.ROWS} == certify.TITLES.keys()
    row = replace(certify.ROWS[0], cases=100, least=5)
    assert [row.size(part) for part in (0.0, 0.01, 0.5, 1.0)] == [5, 5, 50, 100]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--share", "2"), "--share: expected a number above 0 and up to 1, got 2.0"),
        (("--only", "nothing"), "--only: expected a part of the name of a row, got 'nothing'"),
    ],
)
def test_bad_input_is_met_with_one_line(tmp_path, arguments, message):
    done = run(*arguments, "--out", str(tmp_path))
    assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")


def test_the_stored_page_is_that_of_the_stored_numbers(tmp_path):
    folder = RESULTS / "certify"
    stored = json.loads((folder / "certify.json").read_text())
    certify.write_page(stored, tmp_path)
    shown, drawn = (Elements((place / "certify.html").read_text()).words for place in (folder, tmp_path))
    assert shown == drawn
    # replicates of scrambled nets are not normal, so that Student's t is too short, and the mean of 1000 squares of a
    # normal number is not quite normal; the others all may hold
    assert {row["name"] for row in stored["rows"] if row["verdict"] == FAILS} <= {
        "paths, Sobol",
        "paths, Sobol, 8 steps",
        "paths with bias, Euler",
    }
