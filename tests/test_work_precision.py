"""The race of programs: each solves the equation, and the numbers and the picture are left."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from pdekit import solve
from pdekit.numerics.spectral import resample
from studies import work_precision
from studies.draw.work_precision import fastest
from studies.lab.reporting import read_object

command = typer.Typer()
command.command()(work_precision.main)


@pytest.mark.parametrize("name", ["with_scipy", "with_jax", "with_exponax"])
@pytest.mark.parametrize("case", ["smooth", "cube"])
def test_a_program_solves_the_equation(name: str, case: str) -> None:
    library = {"with_jax": "jax", "with_exponax": "exponax"}.get(name)
    if library and not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    problem = work_precision.cases()[case].problem
    n = 48 if problem.dim == 2 else 32
    reference = solve(problem, num_points=n, rtol=1e-6).u[0].values
    make = getattr(work_precision, name)
    variants = [{"etd": False}, {"etd": True}] if name == "with_jax" else [{}]
    for options in variants:
        u = make(problem, n, **options)(100)
        assert np.abs(resample(u, n) - reference).max() < 2e-3


def test_it_leaves_what_the_picture_shows(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--smoke", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "seconds to an error" in done.output
    rows = read_object(tmp_path / "work_precision.json")["rows"]
    assert {row["program"] for row in rows} >= {"pdekit", "SciPy, RK4"}
    for row in rows:
        if row["program"] == "pdekit":
            assert row["error"] <= row["rtol"]
    assert (tmp_path / "work_precision.png").stat().st_size > 10_000


def test_the_fastest_is_the_least_time_that_reaches_the_error() -> None:
    rows = [{"case": "c", "program": "p", "seconds": s, "error": e} for s, e in ((3, 1e-8), (1, 1e-3), (2, 1e-8))]
    assert fastest(rows, "c", "p", 1e-3) == 1
    assert fastest(rows, "c", "p", 1e-6) == 2
    assert fastest(rows, "c", "p", 1e-9) is None
    assert fastest(rows, "c", "q", 1.0) is None
