"""Verdicts and bounds of `verify`, of right solutions and of solutions that are off by a little."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from pdekit import Verification, solve, verify
from studies.certificate import LEVEL
from studies.certificate.equations import SIGMA, Array, hill, places, problem_of
from studies.lab.promises import Measured, share

VERIFY: dict[str, Any] = {"num_paths": 4096, "num_steps": 64, "level": LEVEL}


@cache
def solved(dim: int, change: str) -> xr.Dataset:
    """The solution of the problem, or of one that differs from it by `change`, as "σ +1%"."""
    what, _, percent = change.rpartition(" ")
    factor = 1 + float(percent.removesuffix("%")) / 100 if percent.endswith("%") else 1.0
    made = problem_of(
        dim,
        factor * SIGMA if what == "σ" else SIGMA,
        factor=factor if what == "F" else 1.0,
        terminal=(lambda x: factor * hill(x)) if what == "f" else hill,
    )
    found = solve(made, num_points=64, dt=5e-3, times=list(np.linspace(0.0, 1.0, 33)))
    return found.roll(x=1, roll_coords=False) if change == "one node off" else found


@cache
def own_error(dim: int) -> Array:
    return verify(problem_of(dim), solved(dim, "right"), places(dim), rng=0, **VERIFY).solution_error


@cache
def reference_values(dim: int) -> Array:
    """u at the places, with twice the nodes and half the step: the deviation of a right solution is far below these."""
    fine = solve(problem_of(dim), num_points=128, dt=2.5e-3, times=[1.0, 0.0])
    outcome = verify(problem_of(dim), fine, places(dim), num_paths=4, num_steps=2, solution_error=0.0, rng=0)
    return outcome.solution


def verifications(dim: int, change: str, n: int, seed: int) -> Iterator[Verification]:
    problem, solution = problem_of(dim), solved(dim, change)
    for number in range(n):
        rng = np.random.default_rng([seed, dim, number])
        yield verify(problem, solution, places(dim), solution_error=own_error(dim), rng=rng, **VERIFY)


def true_deviation(found: Verification, dim: int) -> float:
    """Root mean square over the places."""
    return float(np.sqrt(np.mean((found.solution - reference_values(dim)) ** 2)))


def false_alarms(dim: int, n: int, seed: int) -> Measured:
    verdicts = [each.verdict for each in verifications(dim, "right", n, seed)]
    return share([v == "disagrees" for v in verdicts], f"agrees in {np.mean([v == 'agrees' for v in verdicts]):.1%}")


def power(dim: int, change: str, n: int, seed: int) -> Measured:
    found = list(verifications(dim, change, n, seed))
    agreed = np.mean([each.verdict == "agrees" for each in found])
    return share(
        [each.verdict == "disagrees" for each in found],
        f"off by {true_deviation(found[0], dim):.2g}, allowed {found[0].tolerance:.2g}; agrees in {agreed:.1%}",
    )


def bounds_hold(dim: int, n: int, seed: int) -> Measured:
    """Over right and wrong solutions, how often the true rms deviation lies between the bounds."""
    held = []
    for change in ("right", "σ +5%"):
        for each in verifications(dim, change, -(-n // 2), seed):
            low, high = each.bounds
            held.append(low <= true_deviation(each, dim) <= high)
    return share(held)
