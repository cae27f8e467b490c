"""Figure 4: diffusion smooths the solution of the transport equation, and paths confirm it.

The convection-diffusion equation (Eq. 10) on the periodic unit square, with a velocity drawn uniformly from
(-1, 1) at the nodes of a 1/128 grid and a smooth random terminal condition, solved for σ = 0, 0.01 and 0.1. Every panel
comes with its discretisation error, estimated by refinement, and is compared at random nodes with Feynman-Kac paths
(characteristics at σ = 0) of the same continued velocity field.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from numpy.typing import NDArray
from rich.table import Table

from pdekit import ConvectionDiffusion, GridVelocity, RedrawnVelocity, choose_method, feynman_kac, solve
from pdekit.numerics.diagnostics import steepest_difference, total_variation
from pdekit.numerics.spectral import laplacian_symbol
from pdekit.plotting import plot_panels
from studies.lab.reporting import ROOT, InputError, console, one_line_errors, provenance, write_json
from studies.paper.figure4 import RANGES

SIGMAS = (0.0, 0.01, 0.1)
LETTERS = ("a", "b", "c")
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
        str,
        typer.Option(
            help="between nodes: trigonometric, bicubic or bilinear [default: trigonometric; redrawn: bicubic]"
        ),
    ] = "",
    num_points: Annotated[int, typer.Option(help="nodes along an axis, of the velocity and of the solution")] = 128,
    dt: Annotated[float, typer.Option(help="time step")] = 1e-3,
    probes: Annotated[int, typer.Option(help="nodes at which paths are compared with the solution")] = 100,
    paths: Annotated[int, typer.Option(help="Feynman-Kac paths a probe")] = 2048,
    seed: Annotated[int, typer.Option(help="of the velocity, the terminal condition, the probes and the paths")] = 0,
    out: Annotated[Path, typer.Option(help="folder for fig4.png, fig4.pdf, fig4.nc and fig4.json")] = ROOT
    / "out"
    / "fig4",
    device: Annotated[str, typer.Option(help="cpu; the solver has no other")] = "cpu",
    smoke: Annotated[bool, typer.Option("--smoke", help="a small grid and few paths, in seconds")] = False,
) -> None:
    """Solve, check against paths, write fig4.nc and fig4.json, then draw fig4.png from them."""
    with one_line_errors(usage=(ValueError,), failure=(FloatingPointError, OSError)):
        if device != "cpu":
            raise InputError(f"--device: expected cpu, which is where pdekit runs, got {device!r}")
        if velocity not in ("static", "redrawn"):
            raise InputError(f"--velocity: expected static or redrawn, got {velocity!r}")
        if probes < 1 or paths < 2:
            raise InputError(f"expected at least one probe and two paths, got {probes} and {paths}")
        if smoke:
            num_points, dt, probes, paths = 32, 1 / 200, min(probes, 64), min(paths, 1024)
        config = Config(
            velocity=velocity,
            # 1,000 redrawn fields need a table each: the local continuation keeps that to minutes
            continuation=continuation or ("trigonometric" if velocity == "static" else "bicubic"),
            num_points=num_points,
            dt=dt,
            # fewer, longer steps interpolate less often; a redrawn field does not allow them
            refined_dt=2 * dt if velocity == "static" else dt,
            finest=4 if velocity == "static" else 3,
            probes=probes,
            paths=paths,
            seed=seed,
        )
        out.mkdir(parents=True, exist_ok=True)
        dataset, summary = compute(config)
        dataset.to_netcdf(out / "fig4.nc.tmp", engine="h5netcdf")
        os.replace(out / "fig4.nc.tmp", out / "fig4.nc")
        write_json(out / "fig4.json", summary | {"provenance": provenance(asdict(config))})
        report(out)
        draw(out)
        console.print(f"wrote fig4.png, fig4.pdf, fig4.nc and fig4.json in {out}")


def smooth_terminal(num_points: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian-filtered white noise on the nodes, scaled to max |f| = 1: smooth blobs about 0.1 across."""
    noise = np.fft.rfft2(rng.standard_normal((num_points, num_points)))
    field = np.fft.irfft2(
        noise * np.exp(0.5 * CORRELATION**2 * laplacian_symbol(num_points, 2)), s=(num_points, num_points)
    )
    return field / np.abs(field).max()


def compute(config: Config) -> tuple[xr.Dataset, dict[str, Any]]:
    rng = np.random.default_rng(config.seed)
    n = config.num_points
    field: GridVelocity | RedrawnVelocity
    nodes = rng.uniform(-1.0, 1.0, (2, n, n))
    if config.velocity == "static":
        field = GridVelocity(nodes, config.continuation)
    else:
        field = RedrawnVelocity(n, config.dt, config.seed, continuation=config.continuation)
    terminal = smooth_terminal(n, rng)
    probes = rng.choice(n * n, size=min(config.probes, n * n), replace=False)
    index = np.stack(np.unravel_index(probes, (n, n)), axis=-1)

    panels, errors, rows, means, spreads = [], [], [], [], []
    for sigma in SIGMAS:
        problem = ConvectionDiffusion(field, terminal, sigma)
        panel = Panel.solve(problem, config)
        estimate = _paths(problem, index / n, config)
        rows.append(panel.describe() | panel.compare(index, *estimate))
        panels.append(panel.u)
        errors.append(panel.error)
        means.append(estimate[0])
        spreads.append(estimate[1])
    axis = np.arange(n) / n
    variables: dict[str, Any] = {
        "u": (("sigma", "x", "y"), np.stack(panels), {"long_name": "solution at t = 0"}),
        "u_error": (("sigma", "x", "y"), np.stack(errors), {"long_name": "|u - refined solution|"}),
        "terminal": (("x", "y"), terminal, {"long_name": "u(x, 1)"}),
        "probe_mean": (("sigma", "probe"), np.stack(means), {"long_name": "Feynman-Kac estimate"}),
        "probe_error": (("sigma", "probe"), np.stack(spreads), {"long_name": "its sampling and time-step error"}),
        "probe_index": (("probe", "axis"), index, {"long_name": "node of the probe"}),
    }
    if config.velocity == "static":
        variables["velocity"] = (("component", "x", "y"), nodes, {"long_name": "velocity at the nodes"})
    dataset = xr.Dataset(variables, coords={"sigma": list(SIGMAS), "x": axis, "y": axis})
    dataset.attrs = {"title": "Figure 4", "provenance": json.dumps(provenance(asdict(config)))}
    summary = {
        "panels": rows,
        "max_terminal": float(np.abs(terminal).max()),
        "variation_terminal": total_variation(terminal),
    }
    return dataset, summary


@dataclass(frozen=True)
class Panel:
    """A solution at t = 0 on the nodes, with its pointwise error by refinement and the error of the refined one."""

    u: NDArray[np.float64]
    refined: NDArray[np.float64]
    refined_error: float  # 95% quantile over the nodes
    sigma: float
    attrs: dict[str, Any]
    solver_points: int

    @property
    def error(self) -> NDArray[np.float64]:
        return np.abs(self.u - self.refined)

    @classmethod
    def solve(cls, problem: ConvectionDiffusion, config: Config) -> Panel:
        n = config.num_points

        def at_nodes(factor: int, dt: float, method: str = "auto") -> tuple[NDArray, dict[str, Any]]:
            solution = solve(problem, num_points=factor * n, dt=dt, method=method, seed=config.seed)
            return solution.u[0].values[::factor, ::factor], solution.attrs

        # A spectral grid of N nodes holds products of F's modes up to N/3 only: twice the nodes hold all of F.
        factor = 2 if choose_method(problem, 2 * n)[0].startswith("spectral") else 1
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
        return cls(u, refined, refined_error, problem.sigma, attrs, factor * n)

    @property
    def resolved(self) -> bool:
        return self.attrs["method"].startswith("spectral")

    def describe(self) -> dict[str, Any]:
        return {
            "sigma": self.sigma,
            "method": self.attrs["method"],
            "method_reason": self.attrs["method_reason"],
            "warnings": self.attrs["warnings"],
            "solver_points": self.solver_points,
            "dt": self.attrs["dt"],
            "minimum": float(self.u.min()),
            "maximum": float(self.u.max()),
            "total_variation": total_variation(self.u),
            "steepest_gradient": steepest_difference(self.u),
            "error_rms": float(np.sqrt(np.mean(self.error**2))),
            "error_95": float(np.quantile(self.error, 0.95)),
            "error_max": float(self.error.max()),
            "refined_error_95": self.refined_error,
        }

    def compare(self, index: NDArray, mean: NDArray, error: NDArray) -> dict[str, Any]:
        """Paths against this panel at nodes (P, 2); error: sampling and time-step error of the paths."""
        i, j = index.T
        difference = np.abs(mean - self.u[i, j])
        out: dict[str, Any] = {
            "probes": len(index),
            "rms_to_paths": float(np.sqrt(np.mean(difference**2))),
            "rms_refined_to_paths": float(np.sqrt(np.mean((mean - self.refined[i, j]) ** 2))),
            "within_error": float(np.mean(difference <= self.error[i, j] + self.refined_error + 3.0 * error)),
        }
        if self.resolved:
            z = difference / error
            out |= {
                "z_rms": float(np.sqrt(np.mean(z**2))),
                "z_max": float(z.max()),
                "z_within_3": float(np.mean(z <= 3.0)),
            }
        return out


def _paths(problem: ConvectionDiffusion, points: NDArray, config: Config) -> tuple[NDArray, NDArray]:
    """Feynman-Kac means at the points, and the root-mean-square of their sampling and time-step errors."""
    # an even number, in each interval of a redrawn field too, so that the steps can be doubled for the bias
    half = math.ceil(problem.horizon / config.dt * (0.5 if config.velocity == "static" else 1.0) - 1e-9)
    steps = 2 * half
    estimate = feynman_kac(
        problem, points, num_paths=config.paths, num_steps=steps, bias=problem.sigma > 0, rng=config.seed
    )
    return estimate.mean, estimate.total_error()


def _digits(error: float) -> str:
    """Decimal places that an error leaves certain."""
    return f"{max(-math.log10(2.0 * error), 0.0):.1f}"


def report(out: Path) -> None:
    """Print the table from fig4.json."""
    summary = json.loads((out / "fig4.json").read_text())
    config = summary["provenance"]["config"]
    table = Table(
        title=f"Figure 4, {config['velocity']} velocity, {config['continuation']} between nodes, seed {config['seed']}",
        title_justify="left",
    )
    panels = summary["panels"]
    table.add_column("")
    for letter, panel in zip(LETTERS, panels, strict=True):
        table.add_column(f"({letter}) σ = {panel['sigma']:g}", justify="right")
    formats: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("method", lambda p: p["method"]),
        ("solver grid, dt", lambda p: f"1/{p['solver_points']}, {p['dt']:g}"),
        ("range", lambda p: f"{p['minimum']:.3f} .. {p['maximum']:.3f}"),
        ("total variation", lambda p: f"{p['total_variation']:.3g}"),
        ("steepest gradient", lambda p: f"{p['steepest_gradient']:.3g}"),
        ("error: rms", lambda p: f"{p['error_rms']:.2g}"),
        ("  95% of nodes below", lambda p: f"{p['error_95']:.2g}"),
        ("  maximum", lambda p: f"{p['error_max']:.2g}"),
        ("  refined: 95% below", lambda p: f"{p['refined_error_95']:.2g}"),
        ("digits: panel, refined", lambda p: f"{_digits(p['error_95'])}, {_digits(p['refined_error_95'])}"),
        ("paths - panel, rms", lambda p: f"{p['rms_to_paths']:.2g}"),
        ("paths - refined, rms", lambda p: f"{p['rms_refined_to_paths']:.2g}"),
        ("probes within errors", lambda p: f"{100 * p['within_error']:.0f}% of {p['probes']}"),
        ("z: rms, largest", lambda p: f"{p['z_rms']:.2f}, {p['z_max']:.2f}" if "z_rms" in p else "-"),
        ("  within 3", lambda p: f"{100 * p['z_within_3']:.0f}%" if "z_within_3" in p else "-"),
    ]
    for name, show in formats:
        table.add_row(name, *[show(p) for p in panels])
        if name == "range":
            table.add_row("  paper's colour bar", *(f"{low:g} .. {high:g}" for low, high in RANGES))
    console.print(table)
    console.print(
        f"(d) u(x, 1): max |f| = {summary['max_terminal']:.3f}, total variation {summary['variation_terminal']:.3g}. "
        "Error: |panel - refined solution| over all nodes. Probes count as within errors where |paths - panel| is "
        "at most the panel's error there plus the refined solution's plus three errors of the paths. z carries "
        "sampling and time-step error of the paths alone. Digits: decimal places certain at 95% of the nodes."
    )


def draw(out: Path) -> None:
    """Draw fig4.png and fig4.pdf from fig4.nc."""
    import matplotlib

    matplotlib.use("Agg")
    with xr.open_dataset(out / "fig4.nc", engine="h5netcdf") as data:
        panels = {
            f"({letter})  u(x, 0),  σ = {sigma:g}": data.u.sel(sigma=sigma).values
            for letter, sigma in zip(LETTERS, SIGMAS, strict=True)
        }
        panels["(d)  u(x, 1)"] = data.terminal.values
    figure = plot_panels(panels)
    for suffix in ("png", "pdf"):
        figure.savefig(out / f"fig4.{suffix}", dpi=200)


if __name__ == "__main__":
    typer.run(main)
