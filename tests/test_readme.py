"""The blocks of Python in README.md run as printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

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


def test_the_network_and_the_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    """In the block before, only the imports: it takes a minute."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for index in range(8):
            Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(
                tmp_path / "photos" / kind / f"{index}.png"
            )
    monkeypatch.chdir(tmp_path)
    own = next(i for i, block in enumerate(BLOCKS) if "inject_noise" in block)
    imports = [line for line in BLOCKS[own - 1].splitlines() if line.startswith("from")]
    exec("\n".join([*imports, BLOCKS[own]]), {})
    assert "4 images, 10 draws each" in capsys.readouterr().out
