"""Error bars of published networks: intervals held against many draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from bridge.ensemble import ensemble_estimate
from netkit import en_resnet
from netkit.models import EnResNet
from netkit.pretrained import publish
from studies import error_bars
from studies.noise_scale import draws


def network() -> EnResNet:
    """Random weights, and noise that decides some images."""
    return en_resnet(8, num_members=2, in_channels=1, width=4, noise_coef=1.0, noise_std="sample", seed=0).eval()


@pytest.mark.slow
def test_intervals_cover_a_mean_that_is_known_as_often_as_they_say() -> None:
    """Against a mean over so many draws that it may pass for the true one; a mean far away is not covered."""
    model, x = network(), torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    config = error_bars.Config(repeats=30, errors=(0.02,))
    own = draws(model, x, 1200)
    found = error_bars.estimates(model, x, 30, own, config)
    bets, student = (found["intervals"][kind] for kind in error_bars.KINDS)
    assert bets["covered"] > 0.98
    assert student["covered"] == pytest.approx(0.95, abs=0.02)
    assert student["half_width"] < bets["half_width"]
    moved = error_bars.estimates(model, x, 30, own + 0.2, config)["intervals"]
    assert max(moved[kind]["covered"] for kind in error_bars.KINDS) < 0.05


def test_the_draws_needed_are_those_that_a_half_width_takes() -> None:
    model, x = network(), torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    found = [ensemble_estimate(model, x, num_draws=100, generator=generator) for _ in range(4)]
    median, most = error_bars.quantiles(found, 0.02, 0.95)
    assert median <= most
    deviation = np.median([estimate.standard_deviation.max(-1).values.numpy() for estimate in found])
    assert median > (1.96 * deviation / 0.02) ** 2  # Student's, which bets exceed
    again = ensemble_estimate(model, x, num_draws=math.ceil(most), generator=generator)
    low, high = again.confidence_interval(0.95)
    assert float(((high - low) / 2).max()) < 1.1 * 0.02


def test_the_study_writes_what_it_prints(tmp_path: Path) -> None:
    publish("digits-small", network(), {}, "", folder=tmp_path)
    app = typer.Typer()
    app.command()(error_bars.main)
    words = ["--names", "digits-small", "--folder", str(tmp_path), "--smoke", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "out" / "error_bars.json").read_text())["rows"]
    assert len(row["sigma_of_blocks"]) == 2 * 3
    assert "digits-small" in result.output
    unknown = CliRunner().invoke(app, ["--names", "digits-large", "--folder", str(tmp_path), "--smoke"])
    assert "expected one of digits-small, got 'digits-large'" in unknown.output
