"""The ensemble approaching the solution of its equation, as a page with sliders: sigma, members, draws.

Networks are trained apart on moons. Each has an equation of its own, which a PDE solver solves; the mean over members
and over draws of the noise approaches the mean of their solutions. Everything is computed here, and the page, one file
without requests, is drawn from the stored numbers alone.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from bridge.comparison import PointValues
from bridge.flow import FlowNetwork, as_points
from studies import neural_pde
from studies.lab.reporting import OUT, Out, Seed, Smoke, at_least, console, one_line_errors, store, tracked
from studies.report import environment

Array = NDArray[np.float64]

# Parameters

TOP = 255  # of a quantised probability
FINE = replace(neural_pde.FULL, num_points=256, dt=0.01)  # what the smallest sigma needs


@dataclass(frozen=True)
class Config:
    sigmas: tuple[float, ...] = (0.15, 0.2, 0.3, 0.5, 0.8)  # one velocity under each; trained under that of `network`
    members: int = 4
    draws: tuple[int, ...] = tuple(2**k for k in range(10))
    num_blocks: int = 64  # so many that the time step is the smaller part of the error
    picture: int = 40  # nodes along an axis
    level: float = 0.95
    network: neural_pde.Config = FINE
    seed: int = 0


FULL = Config()
SMOKE = Config(
    sigmas=(0.3, 0.8),
    members=2,
    draws=(1, 2, 4, 8),
    num_blocks=8,
    picture=12,
    network=replace(neural_pde.SMOKE, dt=0.05),
)


def main(seed: Seed = 0, out: Out = OUT / "interactive", smoke: Smoke = False) -> None:
    """Train, solve and average; write interactive.json, and index.html from it."""
    with one_line_errors():
        at_least(0, seed=seed)
        config = replace(SMOKE if smoke else FULL, seed=seed)
        numba.set_num_threads(1)
        torch.set_num_threads(1)
        stored = store(out / "interactive.json", compute(config), config)
        page = write_page(stored, out)
        console.print(f"wrote {page} ({page.stat().st_size / 2**20:.2f} MiB) and interactive.json")


def compute(config: Config) -> dict[str, Any]:
    """Quantised fields for the pictures, and every number that the page shows, from the fields before they were."""
    axis = np.linspace(-neural_pde.VIEW, neural_pde.VIEW, config.picture)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    networks = [trained(member, config) for member in tracked(range(config.members), "training")]
    means, solutions, deviations, numbers = [], [], [], []
    for number, sigma in enumerate(tracked(config.sigmas, "solving and averaging")):
        cases = [network.variant(num_blocks=config.num_blocks, sigma=sigma) for network in networks]
        solved = [neural_pde.solution_of(case, points, config.network) for case in cases]
        averages = np.stack(
            [
                running_means(case, as_points(points, case), config.draws, generator(config, number, member))
                for member, case in enumerate(cases)
            ]
        )
        means.append(averages)
        solutions.append(np.stack([each.value for each in solved]))
        deviations.append(np.sqrt([each.variance for each in solved]))
        numbers.append([errors(averages[:count], solved[:count], config) for count in range(1, config.members + 1)])
    return {
        "axis": [-neural_pde.VIEW, neural_pde.VIEW],
        "mean": quantised(np.stack(means)),  # (sigma, member, draws, x, y)
        "solution": quantised(np.stack(solutions)),  # (sigma, member, x, y)
        "deviation": quantised(np.stack(deviations)),  # of one draw
        "numbers": numbers,  # by sigma, then by number of members
    }


# Problem: networks trained apart


def trained(member: int, config: Config) -> FlowNetwork:
    """The network of `neural_pde` for member 0, the others from further seeds."""
    own = replace(config.network, seed=config.seed + member)
    network, _, _ = neural_pde.trained(own.shape, own.sigma, own.num_blocks, 0.0, own)
    return network


def generator(config: Config, sigma: int, member: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_000 * config.seed + 1000 * sigma + member)


# Solve


def running_means(network: FlowNetwork, x: Tensor, counts: tuple[int, ...], generator: torch.Generator) -> Array:
    """Means (len(counts), P) of the probability of class 1 over the first 1, 2, 4, ... draws of one stream."""
    total, done, means = np.zeros(len(x)), 0, []
    for count in counts:
        for batch in neural_pde.probabilities(network, x, count - done, generator):
            total += batch.sum(0)
        done = count
        means.append(total / count)
    return np.stack(means)


def errors(means: Array, solved: list[PointValues], config: Config) -> list[dict[str, float]]:
    """For each number of draws, the mean of members (M, draws, P) against that of their solutions.

    rms: of the difference over the points. standard_error: (Σ var_m / (M² n))^½, rms over the points, the variances
    from the equation. within: share of points where the difference is at most the half-width of the interval at
    `level`, the grid's error on top.
    """
    count = len(solved)
    solution = np.mean([each.value for each in solved], axis=0)
    variance = np.sum([each.variance for each in solved], axis=0) / count**2
    grid_error = np.mean([each.grid_error for each in solved], axis=0)
    half = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.5 + 0.5 * config.level)))
    rows = []
    for draws, mean in zip(config.draws, means.mean(0), strict=True):
        difference, error = mean - solution, np.sqrt(variance / draws)
        rows.append(
            {
                "rms": neural_pde.rms(difference),
                "standard_error": neural_pde.rms(error),
                "largest": float(np.abs(difference).max()),
                "within": float(np.mean(np.abs(difference) <= half * error + grid_error)),
                "grid_error": neural_pde.rms(grid_error),
            }
        )
    return rows


def quantised(values: Array) -> str:
    """Values in [0, 1] as base64 of one byte each, off by 1/510 at most."""
    return base64.b64encode(np.round(np.clip(values, 0, 1) * TOP).astype(np.uint8).tobytes()).decode()


# The page


def write_page(stored: Mapping[str, Any], out: Path) -> Path:
    """Write index.html from the stored numbers, all of them inside."""
    path = out / "index.html"
    page = environment(autoescape=True).get_template("interactive.html").render(stored=stored)
    path.write_text(page, encoding="utf-8")
    return path


if __name__ == "__main__":
    typer.run(main)
