"""Multilevel Monte Carlo on a smooth flow: how levels converge, and what an accuracy costs beside plain Monte Carlo.

The value u(x, 0) at one point of a two-dimensional flow with σ = 0.1 is estimated to several root-mean-square errors,
by Euler-Maruyama (weak order 1) and by Heun's method (2). Each is repeated over independent seeds and set against the
spectral solution of the equation, so that the errors are measured, not promised; plain Monte Carlo gets the same steps,
and as many paths as its share of the error asks for.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from pdekit import ConvectionDiffusion, feynman_kac, multilevel, solve
from pdekit.fastmath import cos2pi, sin2pi
from pdekit.field import compiled
from pdekit.paths.estimate import BiasWarning
from pdekit.paths.multilevel import MultilevelEstimate
from studies.lab.reporting import OUT, Out, Seed, Smoke, at_least, one_line_errors, show, store, tracked

# Parameters

SIGMA = 0.1
POINT = (0.25, 0.625)  # a node of the reference grid


@dataclass(frozen=True)
class Config:
    rmses: tuple[float, ...]
    schemes: tuple[str, ...]
    repeats: int  # independent runs, over which errors are measured
    reference_points: int  # nodes along an axis of the spectral solution
    seed: int


FULL = Config((1.6e-2, 8e-3, 4e-3, 2e-3), ("euler", "heun"), 20, 192, 0)
SMOKE = Config((3.2e-2, 1.6e-2), ("heun",), 4, 96, 0)


def main(seed: Seed = 0, out: Out = OUT / "multilevel", smoke: Smoke = False) -> None:
    """Measure, write multilevel.json, and print it; the report draws how levels converge."""
    with one_line_errors():
        at_least(0, seed=seed)
        config = replace(SMOKE if smoke else FULL, seed=seed)
        report(store(out / "multilevel.json", measure(config), config))


# Problem


@compiled(2)
def flow(x, y, t):  # type: ignore[no-untyped-def]
    return sin2pi(x) * cos2pi(y) + 0.3, 0.2 * sin2pi(y) - 0.5 * cos2pi(x) * sin2pi(y)


def terminal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(np.sin(2 * np.pi * x[..., 0])) * np.cos(2 * np.pi * x[..., 1])


PROBLEM = ConvectionDiffusion(flow, terminal, SIGMA)


def reference(num_points: int, dt: float) -> float:
    """u(POINT, 0) by the spectral solver, which shares nothing with the paths but the problem."""
    u = solve(PROBLEM, num_points=num_points, dt=dt, method="spectral_rk4", progress=False).u[0].values
    i, j = (round(x * num_points) for x in POINT)
    return float(u[i, j])


# Solve


def measure(config: Config) -> dict[str, Any]:
    """Errors and work of each scheme at every rmse, and the levels of its deepest first run."""
    exact = reference(config.reference_points, 2e-3)
    change = abs(exact - reference(config.reference_points * 2 // 3, 4e-3))
    schemes = {}
    for scheme in tracked(config.schemes, "multilevel"):
        runs = [costs(exact, scheme, rmse, config) for rmse in config.rmses]
        deepest = max((first for first, _ in runs), key=lambda first: len(first.num_samples))
        schemes[scheme] = {"costs": [row for _, row in runs], "levels": levels(deepest)}
    numbers = {"sigma": SIGMA, "point": POINT, "reference": exact, "reference_error": change}
    return numbers | {"schemes": schemes}


def costs(exact: float, scheme: str, rmse: float, config: Config) -> tuple[MultilevelEstimate, dict[str, Any]]:
    """Work (path-steps) and measured error of multilevel and of plain Monte Carlo, over independent seeds.

    Comes with the first of the multilevel runs.
    """
    runs, plain = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        warnings.simplefilter("ignore", BiasWarning)  # of the plain runs: their errors are measured here
        for repeat in range(config.repeats):
            one, other = np.random.SeedSequence([config.seed, repeat]).spawn(2)
            runs.append(multilevel(PROBLEM, [POINT], rmse=rmse, scheme=scheme, rng=one))
            paths = math.ceil(runs[0].plain_cost / runs[0].level_cost[-1])
            options: dict[str, Any] = {"num_paths": paths, "num_steps": runs[0].num_steps, "scheme": scheme}
            plain.append(feynman_kac(PROBLEM, [POINT], rng=other, progress=False, **options))
    delivered, plain_delivered = (
        float(np.sqrt(np.mean([(float(run.mean[0]) - exact) ** 2 for run in several]))) for several in (runs, plain)
    )
    return runs[0], {
        "rmse": rmse,
        "steps": runs[0].num_steps,
        "samples": runs[0].num_samples.tolist(),
        "cost": float(np.mean([run.cost for run in runs])),
        "delivered": delivered,
        "plain_cost": float(paths * runs[0].num_steps),
        "plain_delivered": plain_delivered,
        "repeats": config.repeats,
        "warned": len(caught),
    }


def levels(run: MultilevelEstimate) -> dict[str, Any]:
    """The numbers of one run by level."""
    deepest = len(run.num_samples) - 1
    by_point = ("mean_fine", "variance_fine", "mean_difference", "variance_difference")
    return {
        "steps": [run.num_steps // 2 ** (deepest - level) for level in range(deepest + 1)],
        **{name: getattr(run, name)[:, 0].tolist() for name in by_point},
        **{name: getattr(run, name) for name in ("alpha", "beta")},
    }


# Draw


def report(numbers: dict[str, Any]) -> None:
    """Print the table of multilevel.json: errors and work beside those of plain Monte Carlo."""
    x, y = numbers["point"]
    show(
        f"u({x:g}, {y:g}; t = 0) = {numbers['reference']:.7f}, σ = {numbers['sigma']:g}",
        {
            "scheme": "{scheme}",
            "rmse": "{rmse:g}",
            "delivered": "{delivered:.2g}",
            "plain": "{plain_delivered:.2g}",
            "work": "{cost:.3g}",
            "plain work": "{plain_cost:.3g}",
            "saving": lambda row: f"{row['plain_cost'] / row['cost']:.1f}",
            "runs that warned": "{warned} of {repeats}",
        },
        [row | {"scheme": scheme} for scheme, found in numbers["schemes"].items() for row in found["costs"]],
        caption="Errors: root mean square over independent runs, against the spectral solution. Work in path-steps.",
    )


if __name__ == "__main__":
    typer.run(main)
