"""The blocks of Python in README.md run as printed, one after the other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_equation_and_its_paths(capsys):
    plain = next(i for i, block in enumerate(BLOCKS) if "feynman_kac" in block)
    full = next(i for i, block in enumerate(BLOCKS) if "density" in block)
    assert plain < full
    names: dict[str, object] = {}
    exec(BLOCKS[plain], names)
    exec(BLOCKS[full], names)
    printed = capsys.readouterr().out
    assert "Estimate(1 points, 100,000 paths" in printed
    assert names["full"].num_fields == 2
    solution, estimate = names["solution"], names["estimate"]
    error = abs(float(solution.u.sel(time=0, x=0.25, y=0.5)) - estimate.mean[0])
    assert error < 5 * estimate.standard_error[0] + 1e-3


class BasicBlock(nn.Module):
    """As in RobustBench's WideResNets: the result is x + F(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv1(self.bn1(x).relu()))


def small_wide_resnet(name: str) -> nn.Module:
    """In place of weights from the network."""
    assert name == "Standard"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = nn.Sequential(BasicBlock(8), BasicBlock(8))
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        )


def test_networks_images_and_attacks_of_ones_own(tmp_path, monkeypatch, capsys):
    """Of the block before, which takes a minute, only the imports."""
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for index in range(8):
            image = Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8))
            image.save(tmp_path / "photos" / kind / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "robustbench", SimpleNamespace(load_model=small_wide_resnet))
    own = next(i for i, block in enumerate(BLOCKS) if "inject_noise" in block)
    names: dict[str, object] = {}
    exec("\n".join(line for line in BLOCKS[own - 1].splitlines() if line.startswith("from")), names)
    exec(BLOCKS[own], names)
    printed = capsys.readouterr().out
    assert "Audit within eps=0.03137 (linf): 4 images, 10 draws each" in printed
    assert "4 images leave an interval of" in printed
    exec(BLOCKS[own + 1], names)
    fixed, twin = capsys.readouterr().out.split("Audit within")[1:]
    assert "no randomness" in fixed
    assert "10 draws each" in twin
    assert all("random corners" in part for part in (fixed, twin))
