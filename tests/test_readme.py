"""The blocks of Python in README.md run as printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

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
