"""A trained residual network against its own convection-diffusion equation (Sec. 2 and 3.1), in two dimensions.

Small noisy residual networks are trained on moons, circles and spirals. Their velocity goes to a PDE solver that knows
nothing of networks, and the mean over noisy networks is compared with the solution point by point: within the stated
error, as the number of draws grows, as the number of blocks grows, and with mistakes made on purpose. Then what the
diffusion does: level sets, gradients beside the bounds of Theorem 2, and points that a small perturbation flips.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numba
import numpy as np
import torch
import typer
import xarray as xr
from numpy.typing import NDArray
from rich.table import Table

from bridge.box import Box
from bridge.comparison import Comparison, PointValues, compare, rms_without_noise, scheme_residual, solution_at
from bridge.control import NoiseExpansion
from bridge.ensemble import ensemble_estimate, softmax
from bridge.flow import FlowNetwork, SmoothVelocity, as_points, box_nodes, network_problem
from bridge.levels import coupled_outputs, depth_levels, multilevel_ensemble
from bridge.planar import SHAPES, fit, planar_data
from netkit.weights import least_error_weights, least_squares_weights, optimal_weights
from pdekit import characteristics, solve
from pdekit.numerics.diagnostics import steepening_rate
from pdekit.numerics.spectral import gradient
from pdekit.numerics.splines import spline_table
from pdekit.regularity import bernstein_bound, coupling_bound, printed_bound
from studies.draw.neural_pde import draw
from studies.lab.reporting import ROOT, InputError, console, one_line_errors, provenance, write_json

BOX = Box(4.8, 6.0)
SPEED = 1.6
VIEW = 2.1  # half-width of the pictures, where the data are
PANEL_DRAWS = (1, 5, 25, 1000)
DEPTHS = (8, 16, 32, 64)
FIRST_BLOCKS = 16  # of multilevel: a trained flow is steep, and shallower levels do not couple
_BATCH = 8192
_ROUNDING = 1e-9  # above any rms of rounding in float64, far below that of a mistake


@dataclass(frozen=True)
class Config:
    shape: str
    sigma: float
    num_blocks: int  # while training, and in the pictures
    train_steps: int
    width: int
    num_points: int  # nodes along an axis of the PDE's grid
    dt: float
    points: int  # at which ensemble and PDE are compared
    draws: int
    picture: int  # nodes along an axis of the pictures
    sigmas: tuple[float, ...]
    eps: float  # radius of the perturbations, l2
    zoo: tuple[tuple[str, float, int, float], ...]  # (shape, sigma, blocks, eps of adversarial training)
    rmses: tuple[float, ...]
    seed: int


FULL = Config(
    shape="moons",
    sigma=0.3,
    num_blocks=16,
    train_steps=350,
    width=16,
    num_points=192,
    dt=0.02,
    points=1000,
    draws=1024,
    picture=80,
    sigmas=(0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8),
    eps=0.2,
    zoo=(
        *((shape, 0.3, 16, eps) for shape in SHAPES for eps in (0.0, 0.15)),
        *(("moons", sigma, 16, 0.0) for sigma in (0.2, 0.6)),
        ("moons", 0.3, 8, 0.0),
        ("moons", 0.3, 32, 0.0),
    ),
    rmses=(2e-2, 1e-2, 5e-3, 2.5e-3),
    seed=0,
)
SMOKE = replace(
    FULL,
    train_steps=120,
    width=12,
    num_points=128,
    dt=0.04,
    points=300,
    draws=256,
    picture=32,
    sigmas=(0.0, 0.3, 0.6),
    zoo=(("circles", 0.4, 8, 0.15),),
    rmses=(2e-2, 5e-3),
)


def main(
    shape: Annotated[str, typer.Option(help="data of the figure: moons, circles or spirals")] = FULL.shape,
    sigma: Annotated[float, typer.Option(help="noise of the figure's network")] = FULL.sigma,
    draws: Annotated[int, typer.Option(help="noisy networks a point, 256 at least")] = FULL.draws,
    seed: Annotated[int, typer.Option(help="of data, weights, points and noise")] = FULL.seed,
    out: Annotated[Path, typer.Option(help="folder for neural_pde.png, .pdf, .nc and .json")] = ROOT
    / "out"
    / "neural_pde",
    device: Annotated[str, typer.Option(help="cpu; networks this small gain nothing elsewhere")] = "cpu",
    smoke: Annotated[bool, typer.Option("--smoke", help="small networks, a coarse grid, few draws")] = False,
) -> None:
    """Train, solve, compare; write neural_pde.nc and neural_pde.json, then draw from them."""
    with one_line_errors(usage=(ValueError,), failure=(FloatingPointError, OSError)):
        if device != "cpu":
            raise InputError(f"--device: expected cpu, got {device!r}")
        if shape not in SHAPES:
            raise InputError(f"--shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
        if not 0 < sigma <= 0.8:
            raise InputError(f"--sigma: expected a number in (0, 0.8], for which the box is large enough, got {sigma}")
        if draws < 256:
            raise InputError(f"--draws: expected at least 256, got {draws}")
        config = replace(SMOKE if smoke else FULL, shape=shape, sigma=sigma, seed=seed)
        config = replace(config, draws=min(draws, 256) if smoke else draws)
        # passes and grids this small only lose by more; numba may set torch's number too, so torch's comes last
        numba.set_num_threads(1)
        torch.set_num_threads(1)
        began = time.perf_counter()
        fields, numbers = compute(config)
        numbers |= {"seconds": time.perf_counter() - began, "provenance": provenance(asdict(config))}
        out.mkdir(parents=True, exist_ok=True)
        fields.attrs = {"title": "A residual network and its equation", "provenance": json.dumps(numbers["provenance"])}
        fields.to_netcdf(out / "neural_pde.nc", engine="h5netcdf")
        write_json(out / "neural_pde.json", numbers)
        report(out)
        draw(out)
        console.print(f"wrote neural_pde.png, .pdf, .nc and .json in {out}")


def compute(config: Config) -> tuple[xr.Dataset, dict[str, Any]]:
    """The fields of the pictures and every number of the report."""
    rng = np.random.default_rng(config.seed)
    network, x, y = trained(config.shape, config.sigma, config.num_blocks, 0.0, config)
    points = rng.uniform(-1.8, 1.8, (config.points, 2))
    solution = solution_of(network, points, config)
    fields = pictures(network, config) | {"data": (("point", "axis"), x[:300]), "label": ("point", y[:300])}
    numbers: dict[str, Any] = {
        "boundary": float(BOX.escape_probability(points, speed=SPEED, sigma=config.sigma).max()),
        "checks": checks(network, points, solution, config),
    }
    error_n, error_l = convergence(network, points, solution, config)
    numbers |= {"error_in_draws": error_n, "error_in_blocks": error_l}
    numbers["smoothing"] = smoothing(network, config)
    numbers["networks"] = [describe(*row, config) for row in config.zoo]
    # where the decision is open: elsewhere a handful of draws does
    open_points = points[np.argsort(np.abs(solution.value - 0.5))[:100:25]]
    numbers["multilevel"] = multilevel_costs(network, open_points, config)
    numbers["weights"] = weights_of_depths(network, points, solution, x, y, config)
    numbers["control"] = control_gains(network, points[:100], config)
    axis = np.linspace(-VIEW, VIEW, config.picture)
    coords = {"x": axis, "y": axis, "draws": list(PANEL_DRAWS)}
    return xr.Dataset(fields, coords=coords), numbers


def trained(
    shape: str, sigma: float, num_blocks: int, eps: float, config: Config
) -> tuple[FlowNetwork, NDArray[np.float64], NDArray[np.int64]]:
    """A network and the data that it was trained on; eps > 0: adversarially."""
    x, y = planar_data(shape, 2000, config.seed)
    velocity = SmoothVelocity(2, width=config.width, speed=SPEED, box=BOX, seed=config.seed)
    network = FlowNetwork(velocity, num_blocks=num_blocks, sigma=sigma, seed=config.seed)
    fit(network, x, y, num_steps=config.train_steps, batch_size=128, eps=eps, attack_steps=1, seed=config.seed)
    return network.requires_grad_(False), x, y


def solution_of(network: FlowNetwork, points: NDArray, config: Config, sigma: float | None = None) -> PointValues:
    """The PDE's u(x, 0) at points of the box."""
    method = "characteristics" if sigma == 0 else "spectral_rk4"
    problem = network_problem(network, sigma=sigma)
    return solution_at(problem, BOX.to_unit(points), num_points=config.num_points, dt=config.dt, method=method)


def seeded(config: Config, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * config.seed + purpose)


def probabilities(network: FlowNetwork, x: torch.Tensor, num_draws: int, generator: torch.Generator) -> Iterator[Any]:
    """Batches (draws, P) of the noisy network's probability of class 1."""
    each = max(1, _BATCH // len(x))
    with torch.no_grad(), network.using_generator(generator):
        for start in range(0, num_draws, each):
            count = min(each, num_draws - start)
            yield network(x.repeat(count, 1)).softmax(-1)[:, 1].view(count, -1).double().numpy()


# What is in the pictures


def pictures(network: FlowNetwork, config: Config) -> dict[str, Any]:
    """Velocity, PDE at both noises, the network without noise, and ensembles, on the pictures' grid."""
    n, axis = config.picture, np.linspace(-VIEW, VIEW, config.picture)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    x = as_points(grid, network)
    with torch.no_grad():
        velocity = network.velocity(x, 0.5).numpy().T.reshape(2, n, n)
        with network.noise_off():
            plain = network(x).softmax(-1)[:, 1].numpy().reshape(n, n)
    # the transport equation has steep fronts: characteristics from the pictures' own nodes, not an interpolant
    problem = network_problem(network, sigma=0.0)
    ends = characteristics(problem, BOX.to_unit(grid), num_steps=100)
    transported = problem.evaluate_terminal(ends).reshape(n, n)
    means, total, done = [], np.zeros(n * n), 0
    for wanted in PANEL_DRAWS:
        for batch in probabilities(network, x, wanted - done, seeded(config, wanted)):
            total += batch.sum(0)
        done = wanted
        means.append((total / done).reshape(n, n))
    diffused = solution_of(network, grid, config).value.reshape(n, n)
    plane = ("x", "y")
    return {
        "velocity": (("component", *plane), velocity, {"long_name": "velocity at t = 1/2"}),
        "transported": (plane, transported, {"long_name": "u(x, 0), sigma = 0, along characteristics"}),
        "diffused": (plane, diffused, {"long_name": "u(x, 0), PDE"}),
        "network": (plane, plain, {"long_name": "the network without noise"}),
        "ensemble": (("draws", *plane), np.stack(means), {"long_name": "mean over noisy networks"}),
    }


# What is checked


def checks(network: FlowNetwork, points: NDArray, solution: PointValues, config: Config) -> list[dict[str, Any]]:
    """The ensemble of 32 blocks against the PDE, and the same with mistakes.

    agrees: its mean is the solution, within the stated error. follows: path by path it is the Euler-Maruyama scheme of
    the same equation, up to rounding; this sees what moves the mean by less than any error, as neighbouring blocks
    swapped do.
    """
    deep, problem = network.variant(num_blocks=32), network_problem(network)
    cases = {
        "as trained": deep,
        "sigma x 1.2": deep.variant(sigma=1.2 * deep.sigma),
        "two blocks swapped": deep.with_blocks_swapped(0, 31),
        "neighbouring blocks swapped": deep.with_blocks_swapped(15, 16),
    }
    rows = []
    for number, (name, case) in enumerate(cases.items()):
        result = compare(case, points, solution, num_draws=config.draws, generator=seeded(config, 10 + number))
        residual = float(np.sqrt(np.mean(scheme_residual(case, problem, points, generator=seeded(config, 15)) ** 2)))
        path_by_path = {"scheme_residual": residual, "follows": residual < _ROUNDING}
        rows.append({"network": name} | summary(result) | path_by_path)
    return rows


def summary(result: Comparison) -> dict[str, Any]:
    return {
        "points": len(result.mean),
        "draws": result.num_draws,
        "blocks": result.num_blocks,
        "coverage": result.coverage(),
        "p_value": result.p_value,
        "z_rms": float(np.sqrt(np.mean(result.z**2))),
        "rms": result.rms,
        "sampling_error": float(np.sqrt(np.mean(result.standard_error**2))),
        "time_step_error": float(np.sqrt(np.mean(result.bias**2))),
        "grid_error": float(result.grid_error.max()),
        "agrees": result.agrees,
    }


def convergence(
    network: FlowNetwork, points: NDArray, solution: PointValues, config: Config
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Root-mean-square error over points: as n grows for each depth, and at the largest n as the depth grows."""
    x = as_points(points, network)
    counts = [2**k for k in range(int(np.log2(config.draws)) + 1)]
    curves, errors, spreads = {}, [], []
    for depth in DEPTHS:
        deep = network.variant(num_blocks=depth)
        p = np.concatenate(list(probabilities(deep, x, counts[-1], seeded(config, 20 + depth))))
        # the mean over all groups of n draws and all points
        curves[depth] = [
            float(np.sqrt(np.mean((p.reshape(-1, n, len(x)).mean(1) - solution.value) ** 2))) for n in counts
        ]
        spread = p.std(0, ddof=1) / np.sqrt(counts[-1])
        errors.append(rms_without_noise(p.mean(0) - solution.value, spread))
        spreads.append(float(np.sqrt(np.mean(spread**2))))
    # of the deepest, as long as the time step is a small part of its error
    shown = [k for k, n in enumerate(counts) if n <= 32]
    raw = _slope([counts[k] for k in shown], [curves[DEPTHS[-1]][k] for k in shown])
    sampling = [np.sqrt(max(e**2 - errors[-1] ** 2, 0.0)) for e in curves[DEPTHS[-1]]]
    in_draws = {
        "draws": counts,
        "curves": {str(depth): curve for depth, curve in curves.items()},
        "slope_up_to_32": raw,
        "slope_without_time_step": _slope(counts[:-2], sampling[:-2]),
    }
    in_blocks = {
        "blocks": list(DEPTHS),
        "rms": errors,
        "sampling_error": spreads,
        "grid_error": float(np.sqrt(np.mean(solution.grid_error**2))),
        "slope": _slope(list(DEPTHS), errors),
    }
    return in_draws, in_blocks


def _slope(x: list[int], y: list[Any]) -> float:
    """Least-squares slope in logarithms, NaN where an error is too small to be seen."""
    if min(y) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# What the diffusion does


def smoothing(network: FlowNetwork, config: Config) -> list[dict[str, Any]]:
    """For each sigma, on the same velocity: steepest gradient, bounds, accuracy and what perturbations flip.

    Lengths are those of the data. gamma: of Theorem 2, for the terminal-value problem that of -F, over 9 times.
    """
    x, y = planar_data(config.shape, 1000, config.seed + 1)
    n = config.num_points
    problem = network_problem(network)
    gamma = max(steepening_rate(-problem.velocity.nodes(n, float(t))) for t in np.linspace(0, 1, 9))
    f = problem.terminal_nodes(2 * n)
    inside = np.abs(box_nodes(BOX, 2 * n)).max(-1) <= BOX.inner
    steepest = float(np.sqrt((gradient(f) ** 2).sum(0))[inside].max()) / BOX.width
    rows = []
    for sigma in config.sigmas:
        u = field(network, sigma, config)
        inside = np.abs(box_nodes(BOX, len(u))).max(-1) <= VIEW
        slope = float(np.sqrt((gradient(u) ** 2).sum(0))[inside].max()) / BOX.width
        right, flipped = flips(u, x, y, config.eps)
        # f - 1/2 has the same gradient and half the maximum
        rows.append(
            {
                "sigma": sigma,
                "gamma": gamma,
                "gradient_terminal": steepest,
                "gradient": slope,
                "printed": float(printed_bound(gamma, sigma, 1.0, steepest)),
                "bernstein": float(bernstein_bound(gamma, sigma, 0.5, steepest)),
                "coupling": float(coupling_bound(gamma, sigma, 0.5, steepest)),
                "accuracy": right,
                "flipped": flipped,
                "points": len(x),
            }
        )
    return rows


def field(network: FlowNetwork, sigma: float, config: Config) -> NDArray[np.float64]:
    """u(x, 0) on the nodes; on a finer grid, by a method that obeys the maximum principle, where fronts are steep."""
    steep = sigma < 0.15
    n = config.num_points * (2 if steep else 1)
    method = "characteristics" if sigma == 0 else "semi_lagrangian" if steep else "spectral_rk4"
    problem = network_problem(network, sigma=sigma)
    solution = solve(problem, num_points=n, dt=config.dt, method=method, progress=False)
    return np.asarray(solution.u[0].values)


def flips(u: NDArray, x: NDArray, y: NDArray, eps: float) -> tuple[float, float]:
    """Accuracy of u > 1/2 at points (P, 2), and the share of the right ones that some point within eps turns wrong.

    The ball is searched: 24 directions, three radii. No gradient is followed, so none can mislead.
    """
    table = spline_table(u[None], "bicubic")
    angles = 2 * np.pi * np.arange(24) / 24
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    shifts = np.concatenate([np.zeros((1, 2)), *(r * eps * ring for r in (1 / 3, 2 / 3, 1.0))])
    decisions = (table(BOX.to_unit(x[:, None] + shifts))[..., 0] > 0.5) == (y[:, None] == 1)
    right = decisions[:, 0]
    return float(right.mean()), float((~decisions[right]).any(1).mean())


def describe(shape: str, sigma: float, num_blocks: int, eps: float, config: Config) -> dict[str, Any]:
    """One more network: does its ensemble agree with its equation, and what do perturbations flip?"""
    network, _, _ = trained(shape, sigma, num_blocks, eps, config)
    points = np.random.default_rng(config.seed + 2).uniform(-1.8, 1.8, (min(300, config.points), 2))
    result = compare(
        network.variant(num_blocks=32),
        points,
        solution_of(network, points, config),
        num_draws=min(400, config.draws),
        generator=seeded(config, 40),
    )
    right, flipped = flips(field(network, sigma, config), *planar_data(shape, 1000, config.seed + 1), config.eps)
    own = {"shape": shape, "sigma": sigma, "trained_blocks": num_blocks, "adversarial_eps": eps}
    return own | summary(result) | {"accuracy": right, "flipped": flipped}


# What Monte Carlo theory gives


def multilevel_costs(network: FlowNetwork, points: NDArray, config: Config) -> list[dict[str, Any]]:
    rows = []
    for number, rmse in enumerate(config.rmses):
        generator = seeded(config, 60 + number)
        estimate = multilevel_ensemble(network, points, rmse=rmse, generator=generator, first_blocks=FIRST_BLOCKS)
        rows.append(
            {
                "rmse": rmse,
                "deepest": FIRST_BLOCKS * 2 ** (len(estimate.num_samples) - 1),
                "cost": estimate.cost,
                "plain_cost": estimate.plain_cost,
                "saving": estimate.plain_cost / estimate.cost,
                "pays": estimate.cost < estimate.plain_cost,
                "beta": estimate.beta,
                "samples": estimate.num_samples.tolist(),
            }
        )
    return rows


def weights_of_depths(
    network: FlowNetwork, points: NDArray, solution: PointValues, x: NDArray, y: NDArray, config: Config
) -> dict[str, Any]:
    """Weights of 8 and 16 blocks: learned on labels (Sec. 5), nearest to the PDE, and those of extrapolation."""
    pair = [network.variant(num_blocks=8), network.variant(num_blocks=16)]
    draws = {
        n: torch.stack(
            [
                torch.from_numpy(sum(b.sum(0) for b in probabilities(member, p, n, seeded(config, 70))) / n)
                for member in pair
            ]
        )
        for n in (1, 16, config.draws)
        for p in [as_points(points, network)]
    }
    target = torch.from_numpy(solution.value)
    with torch.no_grad():
        inputs = as_points(x, network)
        logits = []
        for member in pair:
            with member.using_generator(seeded(config, 71)):
                logits.append(torch.stack([member(inputs) for _ in range(16)]).mean(0))
    learned = optimal_weights(torch.stack(logits), torch.from_numpy(y))
    return {
        "blocks": [8, 16],
        "extrapolation": [-1.0, 2.0],
        "nearest_to_pde": {str(n): least_squares_weights(means, target).tolist() for n, means in draws.items()},
        "learned_on_labels": learned.tolist(),
        "least_error": weights_in_draws(network, points[:400], solution, config),
    }


def weights_in_draws(network: FlowNetwork, points: NDArray, solution: PointValues, config: Config) -> dict[str, Any]:
    """Weights of L, 2L, 4L blocks of least mean-square error against the PDE, for means over n draws.

    Of members that share their Brownian paths, as levels do, and of members with paths of their own, as in Sec. 5; rms
    errors beside those of equal weights and of Richardson's, which take out the first two orders of 1/L. The weights
    are fitted on half of the points and draws, and all errors measured on the others. There the grid and the finite
    number of draws set a floor, below which no weights can be told to be best: those errors are None.
    """
    depths, richardson = (8, 16, 32), torch.tensor([1 / 3, -2.0, 8 / 3], dtype=torch.float64)
    members, half = depth_levels(network, depths), 2 * config.draws
    (bias, shared), (other_bias, other_shared) = (
        biases(members, points[part::2], solution.value[: len(points)][part::2], half, seeded(config, 72 + part))
        for part in (0, 1)
    )
    grid = float(np.sqrt(np.mean(solution.grid_error[: len(points)][1::2] ** 2)))
    rows = []
    for name, own in (("shared paths", False), ("own paths", True)):
        covariance, other = (c.diag().diag() if own else c for c in (shared, other_shared))
        for n in (n for n in (1, 10, 100, 1000) if n <= half):
            best = least_error_weights(bias, covariance, n)
            errors: dict[str, float | None] = {}
            for kind, w in (("best", best), ("equal", torch.full_like(best, 1 / 3)), ("richardson", richardson)):
                error = float((w @ (other_bias + other / n) @ w).clamp_min(0).sqrt())
                sampling = float((w @ other_shared @ w / half).sqrt())
                errors[kind] = error if error > math.hypot(grid, sampling) else None
            rows.append({"noise": name, "draws": n, "weights": best.tolist(), "rms": errors})
    floor = {"grid": grid, "sampling": float((other_shared.diag().mean() / half).sqrt())}
    return {"blocks": list(depths), "richardson": richardson.tolist(), "floor": floor, "fitted_on": half, "rows": rows}


def biases(
    members: list[FlowNetwork], points: NDArray, exact: NDArray, num_draws: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of the members' biases, their sampling error taken out, and covariance of one draw on shared paths.

    Both (k, k) float64, means over points (P, d).
    """
    x, each, p = as_points(points, members[0]), max(1, _BATCH // len(points)), []
    with torch.no_grad():
        for start in range(0, num_draws, each):
            repeated = x.repeat(min(each, num_draws - start), 1)
            p.append(coupled_outputs(members, repeated, generator).softmax(-1)[..., 1].view(len(members), -1, len(x)))
    sample = torch.cat(p, 1).double()
    mean = sample.mean(1)
    left = sample - mean.unsqueeze(1)
    covariance = torch.einsum("inp,jnp->ij", left, left) / (num_draws - 1) / len(x)
    off = mean - torch.from_numpy(exact)
    return off @ off.T / len(x) - covariance / num_draws, covariance


def control_gains(network: FlowNetwork, points: NDArray, config: Config) -> list[dict[str, Any]]:
    """Variance of a draw over that of a draw less β times its first-order term, for parts of the noise.

    one: for β = 1. fitted: for the β that each point takes from its draws so far. chosen: whether "auto" uses it.
    """
    x, rows, n = as_points(points, network), [], max(200, config.draws // 4)
    choices: tuple[bool | Literal["auto"], ...] = (False, True, "auto")
    for scale in (0.1, 0.3, 1.0):
        with network.noise_scale(scale):
            plain, fitted, auto = (
                ensemble_estimate(network, x, num_draws=n, control=control, generator=seeded(config, 80 + k))
                for k, control in enumerate(choices)
            )
            with network.using_generator(seeded(config, 83)):
                expansion = NoiseExpansion(network, x, softmax)
                p, c = (torch.stack(column) for column in zip(*(expansion.draw() for _ in range(n)), strict=True))
        variance, left = (float(e.standard_deviation.square().mean()) for e in (plain, fitted))
        one = float(p.var(0).mean() / (p - c).var(0).mean())
        row = {"sigma": scale * network.sigma, "one": one, "fitted": variance / left, "chosen": auto.controlled}
        rows.append(row)
    return rows


def report(out: Path) -> None:
    """Print the tables from neural_pde.json."""
    numbers = json.loads((out / "neural_pde.json").read_text())
    config = numbers["provenance"]["config"]
    table = Table(title=f"Ensemble against PDE ({config['shape']}, σ = {config['sigma']:g})", title_justify="left")
    table.add_column("network", min_width=len("neighbouring"))
    for name in ("within error", "p", "rms error", "agrees", "by path", "follows"):
        table.add_column(name, justify="right")
    for row in numbers["checks"]:
        table.add_row(
            row["network"],
            f"{100 * row['coverage']:.1f}%",
            f"{row['p_value']:.2g}",
            f"{row['rms']:.2g}",
            "yes" if row["agrees"] else "no",
            f"{row['scheme_residual']:.2g}",
            "yes" if row["follows"] else "no",
        )
    console.print(table)
    first, blocks = numbers["checks"][0], numbers["error_in_blocks"]
    draws = numbers["error_in_draws"]
    console.print(
        f"{first['points']} points, {first['draws']} draws, {first['blocks']} blocks, as trained: sampling error "
        f"{first['sampling_error']:.2g}, time-step error {first['time_step_error']:.2g}, grid error at most "
        f"{first['grid_error']:.2g}; paths leave the box with probability at most {numbers['boundary']:.1g}.\n"
        f"By path: rms difference from Euler-Maruyama steps of the equation.\n"
        f"Slope in n: {draws['slope_up_to_32']:.3f} up to n = 32, {draws['slope_without_time_step']:.3f} with the "
        f"time-step error taken out.\nError for L = {blocks['blocks']}: "
        f"{', '.join(f'{e:.4f}' for e in blocks['rms'])}; slope in L {blocks['slope']:.2f}."
    )
    table = Table(title="Other networks, 32 blocks of the same flow", title_justify="left")
    names = ("data", "σ", "trained L", "training", "within error", "p", "accuracy", f"flipped at {config['eps']:g}")
    for name in names:
        table.add_column(name, justify="right")
    for row in numbers["networks"]:
        table.add_row(
            row["shape"],
            f"{row['sigma']:g}",
            str(row["trained_blocks"]),
            f"eps {row['adversarial_eps']:g}" if row["adversarial_eps"] else "natural",
            f"{100 * row['coverage']:.1f}%",
            f"{row['p_value']:.2g}",
            f"{100 * row['accuracy']:.1f}%",
            f"{100 * row['flipped']:.1f}%",
        )
    console.print(table)
    table = Table(title="Multilevel against the plain ensemble of the deepest network", title_justify="left")
    for name in ("rmse", "deepest L", "blocks passed", "plain", "saving", "β"):
        table.add_column(name, justify="right")
    for row in numbers["multilevel"]:
        table.add_row(
            f"{row['rmse']:g}",
            str(row["deepest"]),
            f"{row['cost']:.3g}",
            f"{row['plain_cost']:.3g}",
            f"{row['saving']:.1f} times",
            f"{row['beta']:.2f}",
        )
    console.print(table)
    weights = numbers["weights"]
    nearest = ", ".join(f"({a:.2f}, {b:.2f}) for n = {n}" for n, (a, b) in weights["nearest_to_pde"].items())
    learned = ", ".join(f"{w:.2f}" for w in weights["learned_on_labels"])
    control = "; ".join(
        f"{row['one']:.2g} and {row['fitted']:.2g} at σ = {row['sigma']:g} ({'' if row['chosen'] else 'not '}chosen)"
        for row in numbers["control"]
    )
    least = weights["least_error"]
    table = Table(title=f"Weights of {least['blocks']} blocks, least error against the PDE", title_justify="left")
    for name in ("noise", "draws", "weights", "rms error", "equal", "Richardson"):
        table.add_column(name, justify="right")
    for row in least["rows"]:
        shown = ", ".join(f"{w:.2f}" for w in row["weights"])
        errors = ("below floor" if e is None else f"{e:.2g}" for e in row["rms"].values())
        table.add_row(row["noise"], str(row["draws"]), shown, *errors)
    console.print(table)
    floor = least["floor"]
    console.print(
        f"Fitted on one half of points and draws, measured on the other; floor there: grid {floor['grid']:.2g}, "
        f"sampling {floor['sampling']:.2g} for a single member.\n{multilevel_verdict(numbers['multilevel'])}"
    )
    console.print(
        f"Weights of 8 and 16 blocks: extrapolation (-1, 2); nearest to the PDE {nearest}; learned on labels "
        f"({learned}).\nVariance reduction by the first-order control, with β = 1 and fitted: {control}."
        f"\n{numbers['seconds']:.0f} s."
    )


def multilevel_verdict(rows: list[dict[str, Any]]) -> str:
    """For which rmse multilevel is cheaper than the plain ensemble."""
    pays, loses = (", ".join(f"{row['rmse']:g}" for row in rows if row["pays"] is kind) for kind in (True, False))
    paying = f"Multilevel pays for rmse {pays}." if pays else "Multilevel pays for none of these."
    return paying + (f" For {loses} the plain ensemble is cheaper, and simpler." if loses else "")


if __name__ == "__main__":
    typer.run(main)
