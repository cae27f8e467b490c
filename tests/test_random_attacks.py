"""The study of attacks on random networks at --smoke size, and that its rounding layer masks what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from netkit import attacks
from netkit.models import en_resnet
from studies import random_attacks

STUDY = Path(__file__).resolve().parent.parent / "studies" / "random_attacks.py"


@pytest.mark.slow
def test_it_writes_a_row_for_each_attack_and_gradient(tmp_path):
    command = [sys.executable, str(STUDY), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Attacks on a network with noise" in done.stdout
    stored = json.loads((tmp_path / "random_attacks.json").read_text())
    assert len(stored["rows"]) == 18
    assert len(stored["cosines"]) == 6
    reference = [row for row in stored["rows"] if row["attack"] == random_attacks.REFERENCE]
    assert [row["difference"] for row in reference] == [0, 0]


def test_behind_the_rounding_layer_attacks_see_no_slope():
    model = en_resnet(8, num_members=1, width=4, in_channels=1, noise_std="sample", seed=0).eval()
    x, y = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2, dtype=torch.int64)
    attack = {"eps": 0.1, "step_size": 0.1, "num_steps": 1}
    assert not torch.equal(attacks.ifgsm(model, x, y, **attack), x)
    assert torch.equal(attacks.ifgsm(random_attacks.rounded(model), x, y, **attack), x)
