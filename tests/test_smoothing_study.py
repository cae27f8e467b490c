"""The study of randomised smoothing at --smoke size, as a user runs it, twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from netkit import evaluate
from studies import smoothing
from studies.draw import smoothing as pictures

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_stores_certified_accuracy_beside_that_under_attack(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(smoothing.main)
    first = CliRunner().invoke(app, ["--smoke", "--out", str(tmp_path)])
    assert first.exit_code == 0, first.output
    assert "Certified | attacked accuracy in %" in first.output
    stored = json.loads((tmp_path / "smoothing.json").read_text())
    smoothed, plain = stored["rows"]
    assert [row["network"] for row in stored["rows"]] == ["Smooth0.25ResNet8", "ResNet8"]
    for entry in smoothed["at_radii"]:
        assert entry["beaten"] == 0
        assert entry["certified"]["mean"] <= entry["attacked"]["mean"]
        assert entry["certified"]["n"] == 20
    assert all(entry["certified"] is None for entry in plain["at_radii"])
    shares = [share for _, share in smoothed["curve"]]
    assert shares == sorted(shares, reverse=True)
    records = {json.loads(path.read_text())["network"] for path in tmp_path.glob("*/*.json")}
    assert records == {"Smooth0.25ResNet8", "ResNet8"}
    picture, models = (tmp_path / "smoothing.png").read_bytes(), sorted(tmp_path.glob("models/*"))
    pictures.draw(tmp_path)
    assert (tmp_path / "smoothing.png").read_bytes() == picture
    before = {path: path.stat().st_mtime_ns for path in models}
    again = smoothing.row("Smooth0.25ResNet8", "natural", smoothing.SMOKE, tmp_path)
    assert again == smoothed
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("models/*"))} == before


def test_a_cell_is_the_share_over_images_and_seeds() -> None:
    right = [torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 0]).bool()]
    found = smoothing.cell(right)
    assert found["mean"] == 3 / 8
    assert found["interval"][0] < 3 / 8 < found["interval"][1]


def test_a_certificate_is_refuted_by_draws_that_chance_does_not_explain() -> None:
    hits = torch.tensor([0, 5, 15, 17, 35])  # of 35 draws; the plurality alone would blame the third and fourth, too
    predictions = (torch.arange(35).unsqueeze(1) >= hits).long()
    score = evaluate.Score(predictions, torch.zeros(5, dtype=torch.int64))
    assert smoothing.is_refuted(score, 0.999).tolist() == [True, True, False, False, False]
    assert score.voted.tolist() == [False, False, False, False, True]
