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
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numba
import numpy as np
import torch
import typer
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

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
from studies.draw.neural_pde import draw, report
from studies.lab.reporting import ROOT, InputError, Out, Seed, Smoke, at_least, console, one_line_errors, store

Array = NDArray[np.float64]
Fields = dict[str, Any]

# Parameters

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
    shape: str = "moons"
    sigma: float = 0.3
    num_blocks: int = 16  # while training, and in the pictures
    train_steps: int = 350
    width: int = 16
    num_points: int = 192  # nodes along an axis of the PDE's grid
    dt: float = 0.02
    points: int = 1000  # at which ensemble and PDE are compared
    draws: int = 1024
    picture: int = 80  # nodes along an axis of the pictures
    sigmas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
    eps: float = 0.2  # radius of the perturbations, l2
    zoo: tuple[tuple[str, float, int, float], ...] = (  # (shape, sigma, blocks, eps of adversarial training)
        *((shape, 0.3, 16, eps) for shape in SHAPES for eps in (0.0, 0.15)),
        *(("moons", sigma, 16, 0.0) for sigma in (0.2, 0.6)),
        *(("moons", 0.3, blocks, 0.0) for blocks in (8, 32)),
    )
    rmses: tuple[float, ...] = (2e-2, 1e-2, 5e-3, 2.5e-3)
    seed: int = 0


FULL = Config()
SMOKE = Config(
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
    seed: Seed = 0,
    out: Out = ROOT / "out" / "neural_pde",
    smoke: Smoke = False,
) -> None:
    """Train, solve, compare; write neural_pde.nc and neural_pde.json, then draw from them."""
    with one_line_errors():
        if shape not in SHAPES:
            raise InputError(f"--shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
        if not 0 < sigma <= 0.8:
            raise InputError(f"--sigma: expected a number in (0, 0.8], for which the box is large enough, got {sigma}")
        at_least(256, draws=draws)
        usual = replace(SMOKE, draws=min(draws, SMOKE.draws)) if smoke else replace(FULL, draws=draws)
        config = replace(usual, shape=shape, sigma=sigma, seed=seed)
        # passes and grids this small only lose by more; numba may set torch's number too, so torch's comes last
        numba.set_num_threads(1)
        torch.set_num_threads(1)
        began = time.perf_counter()
        fields, numbers = compute(config)
        numbers["seconds"] = time.perf_counter() - began
        stored = store(out / "neural_pde.json", numbers, config)
        fields.attrs = {"title": "A residual network and its equation", "provenance": json.dumps(stored["provenance"])}
        fields.to_netcdf(out / "neural_pde.nc", engine="h5netcdf")
        report(stored)
        draw(out)
        console.print(f"wrote neural_pde.png, .pdf, .nc and .json in {out}")


def compute(config: Config) -> tuple[xr.Dataset, Fields]:
    """The fields of the pictures and every number of the report."""
    rng = np.random.default_rng(config.seed)
    network, x, y = trained(config.shape, config.sigma, config.num_blocks, 0.0, config)
    points = rng.uniform(-1.8, 1.8, (config.points, 2))
    solution = solution_of(network, points, config)
    fields = pictures(network, config) | {"data": (("point", "axis"), x[:300]), "label": ("point", y[:300])}
    error_in_draws, error_in_blocks = convergence(network, points, solution, config)
    # where the decision is open: elsewhere a handful of draws does
    open_points = points[np.argsort(np.abs(solution.value - 0.5))[:100:25]]
    numbers = {
        "boundary": float(BOX.escape_probability(points, speed=SPEED, sigma=config.sigma).max()),
        "checks": checks(network, points, solution, config),
        "error_in_draws": error_in_draws,
        "error_in_blocks": error_in_blocks,
        "smoothing": smoothing(network, config),
        "networks": [describe(*row, config) for row in config.zoo],
        "multilevel": multilevel_costs(network, open_points, config),
        "weights": weights_of_depths(network, points, solution, x, y, config)
        | {"least_error": weights_in_draws(network, points[:400], solution, config)},
        "control": control_gains(network, points[:100], config),
    }
    axis = np.linspace(-VIEW, VIEW, config.picture)
    return xr.Dataset(fields, coords={"x": axis, "y": axis, "draws": list(PANEL_DRAWS)}), numbers


# Problem: trained networks, and the equation of each


def trained(
    shape: str, sigma: float, num_blocks: int, eps: float, config: Config
) -> tuple[FlowNetwork, Array, NDArray[np.int64]]:
    """A network and the data that it was trained on; eps > 0: adversarially."""
    x, y = planar_data(shape, 2000, config.seed)
    velocity = SmoothVelocity(2, width=config.width, speed=SPEED, box=BOX, seed=config.seed)
    network = FlowNetwork(velocity, num_blocks=num_blocks, sigma=sigma, seed=config.seed)
    fit(network, x, y, num_steps=config.train_steps, batch_size=128, eps=eps, attack_steps=1, seed=config.seed)
    return network.requires_grad_(False), x, y


def solution_of(network: FlowNetwork, points: Array, config: Config) -> PointValues:
    """The PDE's u(x, 0) at points of the box."""
    at, problem = BOX.to_unit(points), network_problem(network)
    return solution_at(problem, at, num_points=config.num_points, dt=config.dt, method="spectral_rk4")


def field(network: FlowNetwork, sigma: float, config: Config) -> Array:
    """u(x, 0) on the nodes; on a finer grid, by a method that obeys the maximum principle, where fronts are steep."""
    steep = sigma < 0.15
    n = config.num_points * (2 if steep else 1)
    method = "characteristics" if sigma == 0 else "semi_lagrangian" if steep else "spectral_rk4"
    problem = network_problem(network, sigma=sigma)
    return np.asarray(solve(problem, num_points=n, dt=config.dt, method=method, progress=False).u[0].values)


def seeded(config: Config, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * config.seed + purpose)


def batches(num_draws: int, num_points: int) -> Iterator[int]:
    """Numbers of draws that together are `num_draws`, each few enough for memory."""
    each = max(1, _BATCH // num_points)
    yield from (min(each, num_draws - start) for start in range(0, num_draws, each))


def probabilities(network: FlowNetwork, x: Tensor, num_draws: int, generator: torch.Generator) -> Iterator[Any]:
    """Batches (draws, P) of the noisy network's probability of class 1."""
    with torch.no_grad(), network.using_generator(generator):
        for count in batches(num_draws, len(x)):
            yield network(x.repeat(count, 1)).softmax(-1)[:, 1].view(count, -1).double().numpy()


# Solve: pictures


def pictures(network: FlowNetwork, config: Config) -> Fields:
    """Velocity, PDE at both noises, the network without noise, and ensembles, on the pictures' grid."""
    n, axis = config.picture, np.linspace(-VIEW, VIEW, config.picture)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    x = as_points(grid, network)
    with torch.no_grad():
        velocity = network.velocity(x, 0.5).numpy().T.reshape(2, n, n)
        with network.noise_off():
            plain = network(x).softmax(-1)[:, 1].numpy().reshape(n, n)
    # the transport equation has steep fronts: characteristics from the pictures' own nodes, not an interpolant
    transport = network_problem(network, sigma=0.0)
    transported = transport.evaluate_terminal(characteristics(transport, BOX.to_unit(grid), num_steps=100))
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
        "transported": (plane, transported.reshape(n, n), {"long_name": "u(x, 0), sigma = 0, along characteristics"}),
        "diffused": (plane, diffused, {"long_name": "u(x, 0), PDE"}),
        "network": (plane, plain, {"long_name": "the network without noise"}),
        "ensemble": (("draws", *plane), np.stack(means), {"long_name": "mean over noisy networks"}),
    }


# Solve: does the ensemble solve its equation?


def checks(network: FlowNetwork, points: Array, solution: PointValues, config: Config) -> list[Fields]:
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
        residual = rms(scheme_residual(case, problem, points, generator=seeded(config, 15)))
        by_path = {"scheme_residual": residual, "follows": residual < _ROUNDING}
        rows.append({"network": name} | summary(result) | by_path)
    return rows


def summary(result: Comparison) -> Fields:
    return {
        "points": len(result.mean),
        "draws": result.num_draws,
        "blocks": result.num_blocks,
        "coverage": result.coverage(),
        "p_value": result.p_value,
        "z_rms": rms(result.z),
        "rms": result.rms,
        "sampling_error": rms(result.standard_error),
        "time_step_error": rms(result.bias),
        "grid_error": float(result.grid_error.max()),
        "agrees": result.agrees,
    }


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(values**2)))


def convergence(network: FlowNetwork, points: Array, solution: PointValues, config: Config) -> tuple[Fields, Fields]:
    """Root-mean-square error over points: as n grows for each depth, and at the largest n as the depth grows."""
    x = as_points(points, network)
    counts = [2**k for k in range(int(np.log2(config.draws)) + 1)]
    curves, errors, spreads = {}, [], []
    for depth in DEPTHS:
        deep = network.variant(num_blocks=depth)
        p = np.concatenate(list(probabilities(deep, x, counts[-1], seeded(config, 20 + depth))))
        # the mean over all groups of n draws and all points
        curves[depth] = [rms(p.reshape(-1, n, len(x)).mean(1) - solution.value) for n in counts]
        spread = p.std(0, ddof=1) / np.sqrt(counts[-1])
        errors.append(rms_without_noise(p.mean(0) - solution.value, spread))
        spreads.append(rms(spread))
    deepest = curves[DEPTHS[-1]]
    few = sum(n <= 32 for n in counts)  # as long as the time step is a small part of the error
    sampling = [np.sqrt(max(e**2 - errors[-1] ** 2, 0.0)) for e in deepest]
    in_draws = {
        "draws": counts,
        "curves": {str(depth): curve for depth, curve in curves.items()},
        "slope_up_to_32": slope(counts[:few], deepest[:few]),
        "slope_without_time_step": slope(counts[:-2], sampling[:-2]),
    }
    in_blocks = {
        "blocks": list(DEPTHS),
        "rms": errors,
        "sampling_error": spreads,
        "grid_error": rms(solution.grid_error),
        "slope": slope(list(DEPTHS), errors),
    }
    return in_draws, in_blocks


def slope(x: list[int], y: list[Any]) -> float:
    """Least-squares slope in logarithms, NaN where an error is too small to be seen."""
    return float("nan") if min(y) <= 0 else float(np.polyfit(np.log(x), np.log(y), 1)[0])


def describe(shape: str, sigma: float, num_blocks: int, eps: float, config: Config) -> Fields:
    """One more network: does its ensemble agree with its equation, and what do perturbations flip?"""
    network, _, _ = trained(shape, sigma, num_blocks, eps, config)
    points = np.random.default_rng(config.seed + 2).uniform(-1.8, 1.8, (min(300, config.points), 2))
    solution, draws = solution_of(network, points, config), min(400, config.draws)
    deep = network.variant(num_blocks=32)
    result = compare(deep, points, solution, num_draws=draws, generator=seeded(config, 40))
    own = {"shape": shape, "sigma": sigma, "trained_blocks": num_blocks, "adversarial_eps": eps}
    data = planar_data(shape, 1000, config.seed + 1)
    return own | summary(result) | flips(field(network, sigma, config), *data, config.eps)


# Solve: what does the diffusion do?


def smoothing(network: FlowNetwork, config: Config) -> list[Fields]:
    """For each sigma, on the same velocity: steepest gradient, bounds, accuracy and what perturbations flip.

    Lengths are those of the data. gamma: of Theorem 2, for the terminal-value problem that of -F, over 9 times.
    """
    x, y = planar_data(config.shape, 1000, config.seed + 1)
    problem = network_problem(network)
    velocities = (problem.velocity.nodes(config.num_points, float(t)) for t in np.linspace(0, 1, 9))
    gamma = max(steepening_rate(-velocity) for velocity in velocities)
    steepest = steepest_slope(problem.terminal_nodes(2 * config.num_points), BOX.inner)
    rows = []
    for sigma in config.sigmas:
        u = field(network, sigma, config)
        row = {
            "sigma": sigma,
            "gamma": gamma,
            "gradient_terminal": steepest,
            "gradient": steepest_slope(u, VIEW),
            "printed": float(printed_bound(gamma, sigma, 1.0, steepest)),
            # f - 1/2 has the same gradient and half the maximum
            "bernstein": float(bernstein_bound(gamma, sigma, 0.5, steepest)),
            "coupling": float(coupling_bound(gamma, sigma, 0.5, steepest)),
            "points": len(x),
        }
        rows.append(row | flips(u, x, y, config.eps))
    return rows


def steepest_slope(u: Array, half_width: float) -> float:
    """max |∇u| where both coordinates are within `half_width` of the middle."""
    inside = np.abs(box_nodes(BOX, len(u))).max(-1) <= half_width
    return float(np.sqrt((gradient(u) ** 2).sum(0))[inside].max()) / BOX.width


def flips(u: Array, x: Array, y: NDArray[np.int64], eps: float) -> Fields:
    """Accuracy of u > 1/2 at points (P, 2), and the share of the right ones that some point within eps turns wrong.

    The ball is searched: 24 directions, three radii. No gradient is followed, so none can mislead.
    """
    table = spline_table(u[None], "bicubic")
    angles = 2 * np.pi * np.arange(24) / 24
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    shifts = np.concatenate([np.zeros((1, 2)), *(r * eps * ring for r in (1 / 3, 2 / 3, 1.0))])
    decisions = (table(BOX.to_unit(x[:, None] + shifts))[..., 0] > 0.5) == (y[:, None] == 1)
    right = decisions[:, 0]
    return {"accuracy": float(right.mean()), "flipped": float((~decisions[right]).any(1).mean())}


# Solve: what does Monte Carlo theory give?


def multilevel_costs(network: FlowNetwork, points: Array, config: Config) -> list[Fields]:
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
    network: FlowNetwork, points: Array, solution: PointValues, x: Array, y: NDArray[np.int64], config: Config
) -> Fields:
    """Weights of 8 and 16 blocks: learned on labels (Sec. 5), nearest to the PDE, and those of extrapolation."""
    pair = [network.variant(num_blocks=blocks) for blocks in (8, 16)]
    target, at, inputs = torch.from_numpy(solution.value), as_points(points, network), as_points(x, network)

    def mean(member: FlowNetwork, n: int) -> Tensor:
        return torch.from_numpy(sum(batch.sum(0) for batch in probabilities(member, at, n, seeded(config, 70))) / n)

    nearest = {}
    for n in (1, 16, config.draws):
        means = torch.stack([mean(member, n) for member in pair])
        nearest[str(n)] = least_squares_weights(means, target).tolist()
    logits = []
    for member in pair:
        with torch.no_grad(), member.using_generator(seeded(config, 71)):
            logits.append(torch.stack([member(inputs) for _ in range(16)]).mean(0))
    learned = optimal_weights(torch.stack(logits), torch.from_numpy(y)).tolist()
    known = {"blocks": [8, 16], "extrapolation": [-1.0, 2.0]}
    return known | {"nearest_to_pde": nearest, "learned_on_labels": learned}


def weights_in_draws(network: FlowNetwork, points: Array, solution: PointValues, config: Config) -> Fields:
    """Weights of L, 2L, 4L blocks of least mean-square error against the PDE, for means over n draws.

    Of members that share their Brownian paths, as levels do, and of members with paths of their own, as in Sec. 5; rms
    errors beside those of equal weights and of Richardson's, which take out the first two orders of 1/L. The weights
    are fitted on half of the points and draws, and all errors measured on the others. There the grid and the finite
    number of draws set a floor, below which no weights can be told to be best: those errors are None.
    """
    depths, richardson = (8, 16, 32), torch.tensor([1 / 3, -2.0, 8 / 3], dtype=torch.float64)
    members, half = depth_levels(network, depths), 2 * config.draws
    value, grid_error = solution.value[: len(points)], solution.grid_error[: len(points)]
    (bias, shared), (other_bias, other_shared) = (
        biases(members, points[part::2], value[part::2], half, seeded(config, 72 + part)) for part in (0, 1)
    )
    grid = rms(grid_error[1::2])
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
    members: list[FlowNetwork], points: Array, exact: Array, num_draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Products of the members' biases, their sampling error taken out, and covariance of one draw on shared paths.

    Both (k, k) float64, means over points (P, d).
    """
    x, p = as_points(points, members[0]), []
    with torch.no_grad():
        for count in batches(num_draws, len(x)):
            outputs = coupled_outputs(members, x.repeat(count, 1), generator)
            p.append(outputs.softmax(-1)[..., 1].view(len(members), -1, len(x)))
    sample = torch.cat(p, 1).double()
    mean = sample.mean(1)
    left = sample - mean.unsqueeze(1)
    covariance = torch.einsum("inp,jnp->ij", left, left) / (num_draws - 1) / len(x)
    off = mean - torch.from_numpy(exact)
    return off @ off.T / len(x) - covariance / num_draws, covariance


def control_gains(network: FlowNetwork, points: Array, config: Config) -> list[Fields]:
    """Variance of a draw over that of a draw less β times its first-order term, for parts of the noise.

    one: for β = 1. fitted: for the β that each point takes from its draws so far. chosen: whether "auto" uses it.
    """
    x, rows, n = as_points(points, network), [], max(200, config.draws // 4)
    for scale in (0.1, 0.3, 1.0):
        with network.noise_scale(scale):
            plain = ensemble_estimate(network, x, num_draws=n, control=False, generator=seeded(config, 80))
            fitted = ensemble_estimate(network, x, num_draws=n, control=True, generator=seeded(config, 81))
            auto = ensemble_estimate(network, x, num_draws=n, control="auto", generator=seeded(config, 82))
            with network.using_generator(seeded(config, 83)):
                expansion = NoiseExpansion(network, x, softmax)
                p, c = (torch.stack(column) for column in zip(*(expansion.draw() for _ in range(n)), strict=True))
        variance, left = (float(e.standard_deviation.square().mean()) for e in (plain, fitted))
        one = float(p.var(0).mean() / (p - c).var(0).mean())
        row = {"sigma": scale * network.sigma, "one": one, "fitted": variance / left, "chosen": auto.controlled}
        rows.append(row)
    return rows


if __name__ == "__main__":
    typer.run(main)
