"""The losses that one process and several are compared by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import typer
from jobs import Settings
from typer.testing import CliRunner

from netkit import training


@pytest.mark.parametrize("preset", ["smoke", "authors"])
def test_the_losses_are_those_of_the_steps_with_and_without_a_held_out_part(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings("digits", preset, tmp_path, num_train=50, epochs=2, attack_steps=1, width=2)
    config = replace(settings.train_config(seed=0, loss="pgd"), precision="fp64", batch_size=32)
    losses: list[float] = []
    loss_of = training._Run._loss

    def noted(*arguments: Any) -> Any:
        loss, logits = loss_of(*arguments)
        losses.append(float(loss.detach()))
        return loss, logits

    monkeypatch.setattr(training._Run, "_loss", noted)
    processes._train("ResNet8", settings, config, tmp_path / "answer.json")
    assert len(losses) == 4
    assert json.loads((tmp_path / "answer.json").read_text())["losses"] == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("option", ["epochs", "attack-steps", "num-processes"])
def test_counts_below_one_are_refused(option: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(processes.main)
    result = CliRunner().invoke(app, [f"--{option}", "0", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{option.replace('-', '_')} must be at least 1, got 0" in result.output
