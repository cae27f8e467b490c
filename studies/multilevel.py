"""Multilevel Monte Carlo on a smooth flow: how levels converge, and what an accuracy costs beside plain Monte Carlo.

The value u(x, 0) at one point of a two-dimensional flow with σ = 0.1 is estimated to several root-mean-square errors,
by Euler-Maruyama (weak order 1) and by Heun's method (2). Each is repeated over independent seeds and set against the
spectral solution of the equation, so that the errors are measured, not promised; plain Monte Carlo gets the same steps,
and as many paths as its share of the error asks for.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from pdekit import ConvectionDiffusion, feynman_kac, multilevel, solve
from pdekit.fastmath import cos2pi, sin2pi
from pdekit.multilevel_plot import plot_multilevel
from pdekit.paths.estimate import BiasWarning
from pdekit.paths.multilevel import MultilevelEstimate
from pdekit.runtime.progress import Progress
from pdekit.velocity import compiled
from studies.lab.reporting import ROOT, InputError, console, one_line_errors, provenance, write_json

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


@compiled(2)
def flow(x, y, t):  # type: ignore[no-untyped-def]
    return sin2pi(x) * cos2pi(y) + 0.3, 0.2 * sin2pi(y) - 0.5 * cos2pi(x) * sin2pi(y)


def terminal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(np.sin(2 * np.pi * x[..., 0])) * np.cos(2 * np.pi * x[..., 1])


def main(
    seed: Annotated[int, typer.Option(help="of the first repetition")] = 0,
    out: Annotated[Path, typer.Option(help="folder for multilevel.json and multilevel.png")] = ROOT
    / "out"
    / "multilevel",
    smoke: Annotated[bool, typer.Option("--smoke", help="few repetitions, in seconds")] = False,
) -> None:
    """Measure, write multilevel.json, print it, and draw Giles' four panels for the last scheme."""
    with one_line_errors(usage=(ValueError,), failure=(FloatingPointError, OSError)):
        if seed < 0:
            raise InputError(f"--seed: expected a number >= 0, got {seed}")
        config = Config(**(asdict(SMOKE if smoke else FULL) | {"seed": seed}))
        numbers, shown = measure(config)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "multilevel.json", numbers | {"provenance": provenance(asdict(config))})
        plot_multilevel(shown).savefig(out / "multilevel.png", dpi=150)
        console.print(table(numbers))
        console.print(f"wrote multilevel.json and multilevel.png in {out}", soft_wrap=True)


def measure(config: Config) -> tuple[dict[str, Any], list[MultilevelEstimate]]:
    """The numbers, and the first repetition of the last scheme at every error."""
    problem = ConvectionDiffusion(flow, terminal, SIGMA)
    exact = reference(problem, config.reference_points, 2e-3)
    change = abs(exact - reference(problem, config.reference_points * 2 // 3, 4e-3))
    schemes: dict[str, dict[str, Any]] = {}
    with Progress("multilevel", total=len(config.schemes) * len(config.rmses)) as bar:
        for scheme in config.schemes:
            firsts, rows = [], []
            for rmse in config.rmses:
                first, row = costs(problem, exact, scheme, rmse, config)
                firsts.append(first)
                rows.append(row)
                bar.update(len(schemes) * len(config.rmses) + len(rows))
            deepest = max(firsts, key=lambda estimate: len(estimate.num_samples))
            schemes[scheme] = {"costs": rows, "levels": levels(deepest)}
    return {
        "sigma": SIGMA,
        "point": POINT,
        "reference": exact,
        "reference_error": change,
        "schemes": schemes,
    }, firsts


def reference(problem: ConvectionDiffusion, num_points: int, dt: float) -> float:
    """u(POINT, 0) by the spectral solver, which shares nothing with the paths but the problem."""
    u = solve(problem, num_points=num_points, dt=dt, method="spectral_rk4", progress=False).u[0].values
    i, j = (round(x * num_points) for x in POINT)
    return float(u[i, j])


def costs(
    problem: ConvectionDiffusion, exact: float, scheme: str, rmse: float, config: Config
) -> tuple[MultilevelEstimate, dict[str, Any]]:
    """Work (path-steps) and measured error of multilevel and of plain Monte Carlo, over independent seeds."""
    runs, plain = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        warnings.simplefilter("ignore", BiasWarning)  # of the plain runs: their errors are measured here
        for repeat in range(config.repeats):
            seeds = np.random.SeedSequence([config.seed, repeat]).spawn(2)
            runs.append(multilevel(problem, [POINT], rmse=rmse, scheme=scheme, rng=seeds[0]))
            paths = math.ceil(runs[0].plain_cost / runs[0].level_cost[-1])
            steps = runs[0].num_steps
            plain.append(
                feynman_kac(
                    problem, [POINT], num_paths=paths, num_steps=steps, scheme=scheme, rng=seeds[1], progress=False
                )
            )
    errors = np.array([float(run.mean[0]) - exact for run in runs])
    plain_errors = np.array([float(run.mean[0]) - exact for run in plain])
    return runs[0], {
        "rmse": rmse,
        "steps": runs[0].num_steps,
        "cost": float(np.mean([run.cost for run in runs])),
        "delivered": float(np.sqrt(np.mean(errors**2))),
        "plain_paths": paths,
        "plain_cost": float(paths * steps),
        "plain_delivered": float(np.sqrt(np.mean(plain_errors**2))),
        "repeats": config.repeats,
        "warned": len(caught),
    }


def levels(run: MultilevelEstimate) -> dict[str, Any]:
    """What one run found on each level."""
    return {
        "steps": [run.num_steps // 2 ** (len(run.num_samples) - 1 - level) for level in range(len(run.num_samples))],
        "num_samples": run.num_samples.tolist(),
        "mean_fine": run.mean_fine[:, 0].tolist(),
        "variance_fine": run.variance_fine[:, 0].tolist(),
        "mean_difference": run.mean_difference[:, 0].tolist(),
        "variance_difference": run.variance_difference[:, 0].tolist(),
        "kurtosis": run.kurtosis[:, 0].tolist(),
        "alpha": run.alpha,
        "beta": run.beta,
        "gamma": run.gamma,
    }


def table(numbers: dict[str, Any]) -> Table:
    found = Table(
        title=f"u({POINT[0]:g}, {POINT[1]:g}; t = 0) = {numbers['reference']:.7f}, σ = {SIGMA:g}",
        caption="Errors: root mean square over independent runs, against the spectral solution. Work in path-steps.",
        box=box.SIMPLE_HEAD,
    )
    for name in ("scheme", "rmse", "delivered", "plain", "work", "plain", "saving", "runs that warned"):
        found.add_column(name, justify="left" if name == "scheme" else "right")
    for scheme, stored in numbers["schemes"].items():
        for row in stored["costs"]:
            work = (f"{row['cost']:.3g}", f"{row['plain_cost']:.3g}", f"{row['plain_cost'] / row['cost']:.1f}")
            errors = (f"{row['delivered']:.2g}", f"{row['plain_delivered']:.2g}")
            found.add_row(scheme, f"{row['rmse']:g}", *errors, *work, f"{row['warned']} of {row['repeats']}")
    return found


if __name__ == "__main__":
    typer.run(main)
