"""`itoflow verify problem.py`: solve a user's equation, follow its paths, and say whether the two agree."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pdekit import ConvectionDiffusion, UnstableError, solve, verify
from pdekit.data import check_size
from studies.cli import CommandError
from studies.cli.targets import called, target

if TYPE_CHECKING:
    import xarray as xr

CODES = {"agrees": 0, "disagrees": 1, "inconclusive": 2}
_FRAMES = 9  # of the solution, which make the paths' control sharp


def main(words: Sequence[str]) -> int:
    """Print the verdict; return 0 where solution and paths agree, 1 where they do not, 2 where nothing is decided."""
    options = _parser().parse_args(words)
    problem = target(options.problem, "problem")
    if not isinstance(problem, ConvectionDiffusion) and callable(problem):
        problem = called(options.problem, problem)
    if not isinstance(problem, ConvectionDiffusion):
        raise CommandError(f"{options.problem}: expected a pdekit.ConvectionDiffusion, got {type(problem).__name__}")
    if problem.domain == "space":
        raise CommandError(f"{options.problem}: expected a problem on a box, got domain='space', which has no grid")
    with _warnings_as_lines(), _errors_as_lines():
        solution = _solution(problem, options)
        result = verify(problem, solution, _points(problem, options.points, options.seed), **_paths(options))
    print(f"solution: {_made(solution)}")
    print(result)
    return CODES[result.verdict]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itoflow verify",
        description="Solve an equation of your own, follow its paths, and say whether the two agree.",
        epilog="Exit codes: 0 they agree, 1 they disagree, 2 undecided, or an error.",
    )
    parser.add_argument(
        "problem", help="FILE.py, FILE.py:NAME or MODULE:NAME; a ConvectionDiffusion, or a function that makes one"
    )
    solving = parser.add_argument_group("the solution")
    solving.add_argument("--solution", type=Path, help="NetCDF file with u(time, x, ...) to check, in place of solving")
    solving.add_argument("--solution-error", type=float, help="its own error, where solve() did not make it")
    solving.add_argument("--num-points", type=int, help="nodes along an axis")
    solving.add_argument("--dt", type=float, help="time step")
    solving.add_argument("--rtol", type=float, help="tolerance, in place of a grid and a step")
    solving.add_argument("--method", help="of pdekit.solve")
    paths = parser.add_argument_group("the paths")
    paths.add_argument("--points", type=int, default=64, help="points at which they start, drawn in the box (64)")
    paths.add_argument("--num-paths", type=int, help="from each point")
    paths.add_argument("--num-steps", type=int, help="of each path, an even number")
    paths.add_argument("--seed", type=int, default=0, help="of points and paths (0)")
    paths.add_argument("--level", type=float, help="a right solution is rejected with at most this probability")
    paths.add_argument("--resolves", type=float, help="fraction of half the range of u that has to be excluded")
    return parser


def _solution(problem: ConvectionDiffusion, options: argparse.Namespace) -> xr.Dataset:
    asked = _given(options, "num_points", "dt", "rtol", "method")
    if options.solution is None:
        return solve(problem, times=np.linspace(0.0, problem.horizon, _FRAMES).tolist(), **asked)
    if asked:
        raise CommandError(f"--{next(iter(asked)).replace('_', '-')}: expected none with --solution, which is solved")
    import xarray as xr

    try:
        check_size(options.solution, by_frame=False)
        with xr.open_dataset(options.solution, engine="h5netcdf", decode_timedelta=False) as stored:
            return stored.load()
    except (OSError, ValueError, RuntimeError) as error:
        why = "a folder" if options.solution.is_dir() else " ".join(str(error).split())
        raise CommandError(f"--solution: expected a NetCDF-4 file, got {options.solution}: {why}") from error


def _paths(options: argparse.Namespace) -> dict[str, Any]:
    return {"rng": options.seed} | _given(options, "num_paths", "num_steps", "level", "resolves", "solution_error")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _points(problem: ConvectionDiffusion, count: int, seed: int) -> np.ndarray:
    """Evenly distributed in the box."""
    for name, value, least in (("points", count, 1), ("seed", seed, 0)):
        if value < least:
            raise CommandError(f"--{name}: expected at least {least}, got {value}")
    where = np.random.default_rng([seed, 1]).uniform(size=(count, problem.dim))
    return np.asarray(problem.origin) + where * np.asarray(problem.lengths)


def _made(solution: xr.Dataset) -> str:
    """How the solution came to be, as far as it says so."""
    grid = " x ".join(str(size) for name, size in solution.u.sizes.items() if name not in ("time", "field"))
    said = solution.attrs.get("method", "unknown method")
    error = solution.attrs.get("error_estimate")
    return f"{said}, {grid} nodes" + ("" if error is None else f", error at most {float(error):.2g}")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Each warning once, without its place in the code of this package."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in found):
                print(f"warning: {message}", file=sys.stderr)


@contextmanager
def _errors_as_lines() -> Iterator[None]:
    try:
        yield
    except (ValueError, UnstableError, FloatingPointError, OSError, MemoryError) as error:
        raise CommandError(" ".join(str(error).split()) or type(error).__name__) from error
