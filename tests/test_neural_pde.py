"""The study of a network and its equation at --smoke size, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

from studies import neural_pde
from studies.draw.neural_pde import report

STUDY = Path(__file__).resolve().parent.parent / "studies" / "neural_pde.py"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(STUDY), *args], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_leaves_the_picture_the_fields_and_the_checks(tmp_path):
    done = run("--smoke", "--out", str(tmp_path), "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert "Ensemble against PDE" in done.stdout
    assert (tmp_path / "neural_pde.png").stat().st_size > 50_000
    assert (tmp_path / "neural_pde.pdf").exists()
    numbers = json.loads((tmp_path / "neural_pde.json").read_text())
    right, *wrong = numbers["checks"]
    assert right["agrees"]
    assert right["follows"]
    assert right["scheme_residual"] < 1e-14
    assert [check["network"] for check in wrong if check["follows"]] == []
    assert not wrong[0]["agrees"]  # the wrong sigma shows in the mean
    assert min(check["scheme_residual"] for check in wrong) > 1e-7
    assert right["coverage"] >= 0.95
    assert abs(numbers["error_in_draws"]["slope_up_to_32"] + 0.5) < 0.05
    assert numbers["boundary"] < 1e-3
    gradients = [row["gradient"] for row in numbers["smoothing"]]
    assert gradients[0] > gradients[1] > gradients[2]
    assert all(row["gradient"] <= row["coupling"] * 1.01 for row in numbers["smoothing"])
    assert all(row["coverage"] >= 0.95 for row in numbers["networks"])
    with xr.open_dataset(tmp_path / "neural_pde.nc", engine="h5netcdf") as data:
        assert json.loads(data.attrs["provenance"])["config"]["seed"] == 1
        far = np.abs(data.ensemble - data.diffused).max(("x", "y"))
        assert float(far.sel(draws=1000)) < 0.1 < float(far.sel(draws=1))


def test_the_stored_result_can_be_printed(capsys):
    stored = STUDY.parent / "results" / "neural_pde"
    report(json.loads((stored / "neural_pde.json").read_text()))
    printed = capsys.readouterr().out
    assert "neighbouring" in printed
    assert "Of 10 other networks 10 agree" in printed


def test_bad_input_is_met_with_one_line(tmp_path):
    command = typer.Typer()
    command.command()(neural_pde.main)
    done = CliRunner().invoke(command, ["--seed", "-1", "--out", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (2, "error: --seed: expected at least 0, got -1\n")
    assert not list(tmp_path.iterdir())
