"""The study of multilevel Monte Carlo: measured against the equation, and at --smoke size as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from studies import multilevel

command = typer.Typer()
command.command()(multilevel.main)


def test_multilevel_is_measured_against_the_equation() -> None:
    numbers = multilevel.measure(multilevel.Config((3.2e-2,), ("heun",), 6, 96, seed=1))
    (row,) = numbers["schemes"]["heun"]["costs"]
    assert numbers["reference_error"] < 1e-6
    # chi-squared: the root mean square of six errors of size rmse exceeds 1.9 rmse about once in 700 times
    assert row["delivered"] < 1.9 * row["rmse"]
    assert row["plain_delivered"] < 1.9 * row["rmse"]
    levels = numbers["schemes"]["heun"]["levels"]
    assert levels["steps"] == [row["steps"] // 2**k for k in reversed(range(len(row["samples"])))]
    json.dumps(numbers)


def test_it_leaves_its_numbers_and_prints_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--smoke", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "u(0.25, 0.625; t = 0)" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["multilevel.json"]


def test_bad_input_is_met_with_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--seed", "-1", "--out", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (2, "error: --seed: expected at least 0, got -1\n")
    assert not list(tmp_path.iterdir())
