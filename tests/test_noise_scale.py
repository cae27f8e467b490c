"""The study of the noise's scale at --smoke size, as a user runs it, and beside a longer run in one folder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from studies import noise_scale

STUDY = Path(__file__).resolve().parent.parent / "studies" / "noise_scale.py"


@pytest.mark.slow
def test_it_finds_the_noise_larger_than_what_a_constant_sigma_changes(tmp_path):
    command = [sys.executable, str(STUDY), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Constant σ in place of a·std(x + F(x))" in done.stdout
    (row,) = json.loads((tmp_path / "noise_scale.json").read_text())["rows"]
    assert row["standard_error"]["noise"] is None  # one seed has no spread
    mean = row["mean"]
    assert mean["blocks"] < mean["one"] < mean["noise"]  # the nearer to its own noise, the less is changed
    assert mean["sigma"] > 0


def test_a_short_run_and_a_longer_one_share_a_folder(tmp_path):
    short = replace(noise_scale.SMOKE, draws=2, num_train=60, num_test=10)
    longer = replace(short, num_train=90)
    runs = [(1, short), (2, short), (1, longer)]
    for epochs, config in runs:
        noise_scale.effects("natural", "sample", 0.1, epochs, 0, config, tmp_path)
    assert len(list((tmp_path / "models").iterdir())) >= len(runs)
