"""Figure 4: diffusion smooths the solution of the transport equation, and paths confirm it.

The convection-diffusion equation (Eq. 10) on the periodic unit square, with a velocity drawn uniformly from
(-1, 1) at the nodes of a 1/128 grid and a smooth random terminal condition, solved for σ = 0, 0.01 and 0.1. Every panel
comes with its discretisation error, estimated by refinement, and is compared at random nodes with Feynman-Kac paths
(characteristics at σ = 0) of the same continued velocity field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from numpy.typing import NDArray

from pdekit import ConvectionDiffusion, GridVelocity, RedrawnVelocity, choose_method, feynman_kac, solve
from pdekit.numerics.diagnostics import steepest_difference, total_variation
from pdekit.numerics.spectral import laplacian_symbol
from studies.draw.figure4 import draw, report
from studies.lab.reporting import OUT, InputError, Out, Seed, Smoke, at_least, console, one_line_errors, store

Array = NDArray[np.float64]

# Parameters

SIGMAS = (0.0, 0.01, 0.1)
TOLERANCES = (1e-3, 1e-4)  # of a panel that Fourier modes resolve, and of the solution beside it
CORRELATION = 0.03  # standard deviation of the Gaussian that smooths the terminal condition, in box lengths


@dataclass(frozen=True)
class Config:
    velocity: str
    continuation: str
    num_points: int
    dt: float
    refined_dt: float  # of the semi-Lagrangian solves behind an error estimate, on grids twice
    finest: int  # and this many times finer
    probes: int
    paths: int
    seed: int


def main(
    velocity: Annotated[str, typer.Option(help="static: one field; redrawn: a new one every time step")] = "static",
    continuation: Annotated[
        str, typer.Option(help="between nodes: trigonometric (usual), bicubic (usual if redrawn) or bilinear")
    ] = "",
    num_points: Annotated[int, typer.Option(help="nodes along an axis, of the velocity and of the solution")] = 128,
    dt: Annotated[float, typer.Option(help="time step")] = 1e-3,
    finest: Annotated[
        int, typer.Option(help="how many times finer a rough panel's refined solution is; usual: 4, 3 if redrawn")
    ] = 0,
    probes: Annotated[int, typer.Option(help="nodes at which paths are compared with the solution")] = 100,
    paths: Annotated[int, typer.Option(help="Feynman-Kac paths a probe")] = 2048,
    seed: Seed = 0,
    out: Out = OUT / "fig4",
    smoke: Smoke = False,
) -> None:
    """Solve, check against paths, write fig4.nc and fig4.json, then draw fig4.png from them."""
    with one_line_errors():
        if velocity not in ("static", "redrawn"):
            raise InputError(f"--velocity: expected static or redrawn, got {velocity!r}")
        at_least(1, probes=probes)
        at_least(2, paths=paths)
        at_least(3, finest=finest or 3)
        if smoke:
            num_points, dt, probes, paths = 32, 1 / 200, min(probes, 64), min(paths, 1024)
        is_static = velocity == "static"
        config = Config(
            velocity=velocity,
            # 1,000 redrawn fields need a table each: the local continuation keeps that to minutes
            continuation=continuation or ("trigonometric" if is_static else "bicubic"),
            num_points=num_points,
            dt=dt,
            # fewer, longer steps interpolate less often; a redrawn field does not allow them
            refined_dt=2 * dt if is_static else dt,
            finest=finest or (4 if is_static else 3),
            probes=probes,
            paths=paths,
            seed=seed,
        )
        fields, numbers = compute(config)
        stored = store(out / "fig4.json", numbers, config, fields=fields, title="Figure 4")
        report(stored)
        draw(out / "fig4.nc")
        console.print(f"wrote fig4.png, fig4.pdf, fig4.nc and fig4.json in {out}")


# Problem


def smooth_terminal(num_points: int, rng: np.random.Generator) -> Array:
    """Gaussian-filtered white noise on the nodes, scaled to max |f| = 1: smooth blobs about 0.1 across."""
    noise = np.fft.rfft2(rng.standard_normal((num_points, num_points)))
    smoothed = noise * np.exp(0.5 * CORRELATION**2 * laplacian_symbol(num_points, 2))
    field = np.fft.irfft2(smoothed, s=(num_points, num_points))
    return field / np.abs(field).max()


def compute(config: Config) -> tuple[xr.Dataset, dict[str, Any]]:
    """The fields of the figure, and what the table says of each panel."""
    rng = np.random.default_rng(config.seed)
    n, is_static = config.num_points, config.velocity == "static"
    nodes = rng.uniform(-1.0, 1.0, (2, n, n))
    terminal = smooth_terminal(n, rng)
    probes = rng.choice(n * n, size=min(config.probes, n * n), replace=False)
    index = np.stack(np.unravel_index(probes, (n, n)), axis=-1)
    velocity = (
        GridVelocity(nodes, config.continuation)
        if is_static
        else RedrawnVelocity(n, config.dt, config.seed, continuation=config.continuation)
    )
    problems = [ConvectionDiffusion(velocity, terminal, sigma) for sigma in SIGMAS]
    panels = [solve_panel(problem, config) for problem in problems]
    paths = [follow_paths(problem, index / n, config) for problem in problems]
    plane, probe = ("sigma", "x", "y"), ("sigma", "probe")
    variables: dict[str, Any] = {
        "u": (plane, np.stack([panel.u for panel in panels]), {"long_name": "solution at t = 0"}),
        "u_error": (plane, np.stack([panel.error for panel in panels]), {"long_name": "|u - refined solution|"}),
        "terminal": (plane[1:], terminal, {"long_name": "u(x, 1)"}),
        "probe_mean": (probe, np.stack([mean for mean, _ in paths]), {"long_name": "Feynman-Kac estimate"}),
        "probe_error": (
            probe,
            np.stack([error for _, error in paths]),
            {"long_name": "its sampling and time-step error"},
        ),
        "probe_index": (("probe", "axis"), index, {"long_name": "node of the probe"}),
    }
    if is_static:
        variables["velocity"] = (("component", "x", "y"), nodes, {"long_name": "velocity at the nodes"})
    axis = np.arange(n) / n
    numbers = {
        "panels": [describe(panel) | against(panel, index, *found) for panel, found in zip(panels, paths, strict=True)],
        "max_terminal": float(np.abs(terminal).max()),
        "variation_terminal": total_variation(terminal),
    }
    return xr.Dataset(variables, coords={"sigma": list(SIGMAS), "x": axis, "y": axis}), numbers


# Solve


@dataclass(frozen=True)
class Panel:
    """A solution at t = 0 on the nodes, the refined one beside it, and the error of that, a 95% quantile over nodes."""

    u: Array
    refined: Array
    refined_error: float
    sigma: float
    solver_points: int
    attrs: dict[str, Any]

    @property
    def error(self) -> Array:
        return np.abs(self.u - self.refined)


def solve_panel(problem: ConvectionDiffusion, config: Config) -> Panel:
    n = config.num_points
    is_spectral = choose_method(problem, 2 * n)[0].startswith("spectral")
    if is_spectral and problem.velocity.steady and problem.velocity.continuation == "trigonometric":
        solution, finer = (solve(problem, num_points=n, rtol=rtol, seed=config.seed) for rtol in TOLERANCES)
        used = 2 * int(solution.attrs["cutoff"]) + 1
        return Panel(
            solution.u[0].values, finer.u[0].values, finer.attrs["error_estimate"], problem.sigma, used, solution.attrs
        )

    def at_nodes(factor: int, dt: float, method: str = "auto") -> tuple[Array, dict[str, Any]]:
        solution = solve(problem, num_points=factor * n, dt=dt, method=method, seed=config.seed)
        return solution.u[0].values[::factor, ::factor], solution.attrs

    # A spectral grid of N nodes holds products of F's modes up to N/3 only: twice the nodes hold all of F.
    factor = 2 if is_spectral else 1
    u, attrs = at_nodes(factor, config.dt)
    if factor == 2:
        refined, _ = at_nodes(3, config.dt, attrs["method"])
        coarse, remaining = u, 1.0  # what the panel lacks bounds what the refined solution lacks
    else:
        coarse, _ = at_nodes(2, config.refined_dt, attrs["method"])
        refined, _ = at_nodes(config.finest, config.refined_dt, attrs["method"])
        # a limited scheme on a rough solution converges with first order (Richardson)
        remaining = 2.0 / (config.finest - 2.0)
    refined_error = remaining * float(np.quantile(np.abs(refined - coarse), 0.95))
    return Panel(u, refined, refined_error, problem.sigma, factor * n, attrs)


def follow_paths(problem: ConvectionDiffusion, points: Array, config: Config) -> tuple[Array, Array]:
    """Feynman-Kac means at the points, and the root-mean-square of their sampling and time-step errors."""
    # an even number, in each interval of a redrawn field too, so that the steps can be doubled for the bias
    half = math.ceil(problem.horizon / config.dt * (0.5 if config.velocity == "static" else 1.0) - 1e-9)
    options: dict[str, Any] = {"num_paths": config.paths, "num_steps": 2 * half, "rng": config.seed}
    estimate = feynman_kac(problem, points, bias=problem.sigma > 0, **options)
    return estimate.mean, estimate.total_error()


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def describe(panel: Panel) -> dict[str, Any]:
    return {
        "sigma": panel.sigma,
        **{name: panel.attrs[name] for name in ("method", "method_reason", "warnings", "dt")},
        "solver_points": panel.solver_points,
        "minimum": float(panel.u.min()),
        "maximum": float(panel.u.max()),
        "total_variation": total_variation(panel.u),
        "steepest_gradient": steepest_difference(panel.u),
        "error_rms": rms(panel.error),
        "error_95": float(np.quantile(panel.error, 0.95)),
        "error_max": float(panel.error.max()),
        "refined_error_95": panel.refined_error,
    }


def against(panel: Panel, index: NDArray[np.int64], mean: Array, error: Array) -> dict[str, Any]:
    """Paths against a panel at nodes (P, 2); error: sampling and time-step error of the paths."""
    i, j = index.T
    difference = np.abs(mean - panel.u[i, j])
    found: dict[str, Any] = {
        "probes": len(index),
        "rms_to_paths": rms(difference),
        "rms_refined_to_paths": rms(mean - panel.refined[i, j]),
        "within_error": float(np.mean(difference <= panel.error[i, j] + panel.refined_error + 3.0 * error)),
    }
    if panel.attrs["method"].startswith("spectral"):
        z = difference / error
        found |= {"z_rms": rms(z), "z_max": float(z.max()), "z_within_3": float(np.mean(z <= 3.0))}
    return found


if __name__ == "__main__":
    typer.run(main)
