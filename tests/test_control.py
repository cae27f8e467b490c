"""The study of training as control: its pieces, and all of it at --smoke size as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

from pdekit.field import node_points
from studies import control
from studies.draw.control import draw, groups, interval, report

STUDY = Path(control.__file__)


@pytest.mark.parametrize("n", [12, 13])
def test_values_at_points_are_those_of_the_interpolant(n):
    points = np.random.default_rng(0).uniform(-4.0, 4.0, (20, 2))

    def u(x):
        a, b = np.pi / control.HALF * x[..., 0], np.pi / control.HALF * x[..., 1]
        return 0.3 + np.sin(2.0 * a - 1.0) * np.cos(3.0 * b + 0.5)

    first, second = control.values_at(points, n)
    nodes = u(2.0 * control.HALF * node_points(n, 2) - control.HALF)
    np.testing.assert_allclose(np.einsum("ia,ab,ib->i", first, nodes, second), u(points), atol=1e-12)


def test_a_classifier_by_its_nodes_knows_values_and_the_steepest_gradient():
    half = 4.0
    nodes = 2.0 * half * node_points(48, 2) - half
    found = control.of_nodes(0.5 + 0.2 * np.sin(np.pi * nodes[..., 0] / half), half)
    points = np.array([[0.0, 1.0], [2.0, -1.0]])
    np.testing.assert_allclose(found.values(points), [0.5, 0.7], atol=1e-12)
    assert found.gradient == pytest.approx(0.2 * np.pi / half, rel=1e-12)


def test_what_some_perturbation_turns_wrong_is_flipped():
    x, y = np.array([[0.05, 0.0], [0.5, 0.0], [-0.3, 0.0], [-0.15, 0.0]]), np.array([1, 1, 1, 0])
    half_plane = control.Classifier(lambda points: (points[:, 0] > 0.0).astype(float), 7.0)
    found = control.measured(half_plane, x, y, eps=0.2)
    assert found == {"accuracy": 0.75, "flipped": pytest.approx(2.0 / 3.0), "gradient": 7.0}


def test_the_search_fits_its_points_and_a_larger_sigma_makes_u_flatter():
    config = replace(control.SMOKE, iterations=12)
    x, y = control.planar_data("moons", config.num_train, 0)
    velocity, how = control.controlled(x, y, 0.3, 1, config)
    assert velocity.shape == (3, 2, 8, 8)
    start = float(((control.label(x) - y) ** 2).mean())
    assert how["objective"] < 0.05 * start
    flat, steep = (
        control.of_nodes(control.refined(velocity, sigma, 1, config)[0], control.HALF) for sigma in (0.5, 0.3)
    )
    assert flat.gradient < steep.gradient


def test_intervals_are_those_of_student():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.30265 / np.sqrt(3.0), rel=1e-5)


@pytest.mark.slow
def test_it_leaves_rows_pictures_and_a_figure(tmp_path):
    command = [sys.executable, str(STUDY), "--smoke", "--out", str(tmp_path), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Training as control" in done.stdout
    stored = json.loads((tmp_path / "control.json").read_text())
    rows = stored["rows"]
    assert stored["provenance"]["config"]["seed"] == 1
    assert {row["seed"] for row in rows} == {1, 2}
    equation = [row for row in rows if row["method"] == "equation"]
    assert min(row["accuracy"] for row in equation) > 0.95
    for seed in (1, 2):
        own = {(row["trained_sigma"], row["sigma"]): row for row in equation if row["seed"] == seed}
        assert own[0.1, 0.1]["gradient"] > own[0.3, 0.3]["gradient"] > own[0.1, 0.3]["gradient"]
        assert own[0.3, 0.3]["gamma"] > own[0.1, 0.1]["gamma"]  # F works against the diffusion
    with xr.open_dataset(tmp_path / "control.nc", engine="h5netcdf") as pictures:
        assert float(np.abs(pictures["moons_0.3"] - 0.5).max()) > 0.4
    (tmp_path / "control.png").unlink()
    draw(tmp_path)  # from what is stored alone
    assert (tmp_path / "control.png").stat().st_size > 20_000
    assert (tmp_path / "control.pdf").exists()


def test_the_stored_result_can_be_printed_and_answers_the_question(capsys):
    stored = json.loads((STUDY.parent / "results" / "control" / "control.json").read_text())
    report(stored)
    assert "Training as control" in capsys.readouterr().out
    rows = {key: found for key, found in groups(stored["rows"]) if key[1] == "equation"}
    for shape in stored["provenance"]["config"]["shapes"]:
        of = {key[2:]: found for key, found in rows.items() if key[0] == shape}

        def mean(name, *sigmas, of=of):
            return interval([row[name] for row in of[sigmas]])[0]

        # diffusion in training makes u regular, F works against it, and the accuracy does not pay
        assert mean("gradient", 0.3, 0.3) < 0.4 * mean("gradient", 0.05, 0.05)
        assert mean("gradient", 0.3, 0.3) > mean("gradient", 0.05, 0.3)
        assert mean("gamma", 0.3, 0.3) > mean("gamma", 0.05, 0.05)
        assert mean("accuracy", 0.3, 0.3) > mean("accuracy", 0.05, 0.05) - 0.005


def test_bad_input_is_met_with_one_line(tmp_path):
    command = typer.Typer()
    command.command()(control.main)
    done = CliRunner().invoke(command, ["--seed", "-1", "--out", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (2, "error: --seed: expected at least 0, got -1\n")


def test_steps_are_as_many_as_are_stable():
    still, fast = np.zeros((3, 2, 8, 8)), np.full((3, 2, 8, 8), 3.0)
    assert control.num_steps(still, 64) == 40
    rate = 2.0 * np.pi * 31 * 6.0 / (2.0 * control.HALF)  # |λ| of the highest mode of 64 nodes
    steps = control.num_steps(fast, 64)
    assert steps % 20 == 0
    assert 0.7 < rate / steps / 2.5 <= 1.0
