"""The study of Theorems 1 and 2 at --smoke size, as a user runs it, and the pieces that its verdicts rest on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.special import erf
from typer.testing import CliRunner

from studies import theorems
from studies.paper.theorems import judge_gradients, judge_ramp
from studies.theorems import Bump, disc, images_reached, jumping_line, random_field

STUDY = Path(__file__).resolve().parent.parent / "studies" / "theorems.py"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(STUDY), *args], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_leaves_the_picture_the_numbers_and_the_verdicts(tmp_path):
    done = run("--smoke", "--out", str(tmp_path), "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert "Theorem 1" in done.stdout
    assert "Theorem 2" in done.stdout
    assert (tmp_path / "theorems.png").stat().st_size > 50_000
    assert (tmp_path / "theorems.pdf").exists()
    stored = json.loads((tmp_path / "theorems.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {key: stored[key] for key in ("verdicts", "provenance")}
    assert stored["provenance"]["config"]["seed"] == 1
    first, second, ramp = (stored["verdicts"][key] for key in ("theorem1", "theorem2", "ramp"))
    assert first["coupling"]["violations"] == 0
    assert first["closed_form"]["largest_difference"] < 1e-3
    assert first["steep"][-1]["modulus_at_quarter"][0] > 1.9
    assert second["error_relative"][1] < 0.05
    assert second["images_relative"] < 0.01
    for name in ("bernstein", "best_mu", "coupling"):
        assert second["bounds"][name]["fails"] == ramp["fails"][name] == 0
        assert second["bounds"][name]["largest_ratio"] < 1.0
    assert second["bounds"]["printed"]["fails_where_proven"] == 0
    assert ramp["fails"]["printed"] > 0
    assert ramp["coupling_ratio"] == pytest.approx([1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--seed", "-1"), "--seed: expected at least 0, got -1"),
        (("--workers", "0"), "--workers: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_met_with_one_line(args, message, tmp_path):
    command = typer.Typer()
    command.command()(theorems.main)
    done = CliRunner().invoke(command, [*args, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_truncated_series_belong_to_the_sets_they_name():
    n, jumps = 1024, np.array([0.1, 0.35, 0.6, 0.72])
    x = np.arange(n) / n
    expected = np.where(np.searchsorted(jumps, x) % 2 == 1, 1.0, -1.0)
    away = np.abs(x[:, None] - jumps).min(axis=1) > 0.03
    assert np.abs(jumping_line(n, jumps) - expected)[away].max() < 0.03  # what Gibbs leaves
    assert jumping_line(n, jumps).mean() == pytest.approx(2 * (0.25 + 0.12) - 1)
    x, y = np.meshgrid(np.arange(256) / 256 - 0.5, np.arange(256) / 256 - 0.5, indexing="ij")
    distance = np.hypot(x, y) - 0.25
    away = (np.abs(distance) > 0.05) & (np.hypot(x, y) > 0.05)  # ripples meet in the centre
    assert np.abs(disc(256, 0.25) - np.where(distance < 0, 1.0, -1.0))[away].max() < 0.08


def test_random_fields_hold_the_modes_asked_for():
    field = random_field(np.random.default_rng(0), 2, 3, lambda k: 1.0 / k)
    assert field.shape == (2, 8, 8)
    modes = np.abs(np.fft.fft2(field))
    kx, ky = np.meshgrid(*[np.fft.fftfreq(8, 1 / 8)] * 2, indexing="ij")
    outside = (np.hypot(kx, ky) > 3) | ((kx == 0) & (ky == 0))
    assert modes[:, outside].max() < 1e-12
    assert modes[:, ~outside].min() > 0


@pytest.mark.parametrize("dim", [1, 2])
def test_norms_of_a_bump_are_those_of_its_values(dim):
    bump = Bump(0.7, np.array([1.3, -2.0])[:dim], 0.4)
    u_max, grad_max = bump.norms()
    x = np.random.default_rng(1).uniform(-0.7, 0.7, (200_000, dim))
    step = 1e-5 * np.eye(dim)
    slopes = np.stack([(bump(x + s) - bump(x - s)) / 2e-5 for s in step])
    assert u_max == pytest.approx(np.abs(bump(x)).max(), rel=1e-3)
    assert grad_max == pytest.approx(np.sqrt((slopes**2).sum(axis=0)).max(), rel=3e-3)
    assert bump(np.full(dim, 0.71)) == 0.0


def test_the_effect_of_images_is_at_least_the_probability_of_reaching_one():
    length, reach, sigma = 6.0, 1.0, 0.7
    ends = np.random.default_rng(2).normal(length / 2, sigma, 400_000)  # from the edge of the box
    hits = np.mean(np.abs(ends - length) <= reach)
    assert hits <= images_reached(1, length, reach, sigma)
    assert images_reached(2, length, reach, 0.3) < images_reached(2, length, reach, 0.6) < 0.1


def test_a_violation_counts_only_beyond_its_error():
    case = {"flow": 0, "gamma": 0.5, "sigma": 2.5, "u_max": 1.0, "grad_max": 1.0, "error": 1e-3, "images": 0.0}
    bound = 2.0 * np.exp(0.5 - 2.5**2)
    rows = [case | {"measured": bound + excess} for excess in (2e-3, 0.5e-3, -2e-3)]
    printed = judge_gradients(rows)["bounds"]["printed"]
    assert (printed["fails"], printed["undecided"]) == (1, 1)


def test_the_ramp_crosses_the_printed_bound_where_the_closed_form_does():
    sigma = np.linspace(0.05, 3.0, 20)
    exact = erf(1 / (np.sqrt(2) * sigma))
    zeros = np.zeros(20).tolist()
    found = judge_ramp({"sigma": sigma.tolist(), "measured": exact.tolist(), "error": zeros, "images": zeros})
    start = found["fails_from"]["printed"]
    assert erf(1 / (np.sqrt(2) * start)) == pytest.approx(2 * np.exp(-(start**2)))
    assert found["fails"]["printed"] == (sigma > start).sum()
    assert found["fails"]["best_mu"] == 0
