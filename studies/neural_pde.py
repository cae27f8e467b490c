"""A trained residual network against its own convection-diffusion equation (Sec. 2 and 3.1), in two dimensions.

Small noisy residual networks are trained on moons, circles and spirals. Their velocity goes to a PDE solver that knows
nothing of networks, and the mean over noisy networks is compared with the solution point by point: within the stated
error, as the number of draws grows, as the number of blocks grows, and with mistakes made on purpose. Then what the
diffusion does: level sets, gradients beside the bounds of Theorem 2, and points that a small perturbation flips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import torch
import typer
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from bridge.box import Box
from bridge.comparison import Comparison, PointValues, compare, rms_without_noise, scheme_residual, solution_at
from bridge.flow import FlowNetwork, SmoothVelocity, as_points, box_nodes, network_problem
from bridge.levels import multilevel_ensemble
from bridge.planar import SHAPES, fit, planar_data
from pdekit import characteristics, solve
from pdekit.numerics.diagnostics import steepening_rate
from pdekit.numerics.spectral import gradient
from pdekit.numerics.splines import spline_table
from pdekit.regularity import bernstein_bound, coupling_bound
from studies.draw.neural_pde import draw, report
from studies.lab.reporting import OUT, Out, Seed, Smoke, at_least, console, one_line_errors, store

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
    shape: str = "moons"  # of the data: one of SHAPES
    sigma: float = 0.3  # at most 0.8, for which the box is large enough
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


def main(seed: Seed = 0, out: Out = OUT / "neural_pde", smoke: Smoke = False) -> None:
    """Train, solve, compare; write neural_pde.nc and neural_pde.json, then draw from them."""
    with one_line_errors():
        at_least(0, seed=seed)
        config = replace(SMOKE if smoke else FULL, seed=seed)
        # passes and grids this small only lose by more; numba may set torch's number too, so torch's comes last
        numba.set_num_threads(1)
        torch.set_num_threads(1)
        fields, numbers = compute(config)
        title = "A residual network and its equation"
        stored = store(out / "neural_pde.json", numbers, config, fields=fields, title=title)
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
        "multilevel": multilevel_savings(network, open_points, config),
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
    in_draws = {
        "draws": counts,
        "curves": {str(depth): curve for depth, curve in curves.items()},
        "slope_up_to_32": slope(counts[:few], deepest[:few]),
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
    """One more network: does its ensemble agree with its equation?"""
    network, _, _ = trained(shape, sigma, num_blocks, eps, config)
    points = np.random.default_rng(config.seed + 2).uniform(-1.8, 1.8, (min(300, config.points), 2))
    solution, draws = solution_of(network, points, config), min(400, config.draws)
    deep = network.variant(num_blocks=32)
    result = compare(deep, points, solution, num_draws=draws, generator=seeded(config, 40))
    own = {"shape": shape, "sigma": sigma, "trained_blocks": num_blocks, "adversarial_eps": eps}
    return own | summary(result)


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
            "gradient": steepest_slope(u, VIEW),
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


def multilevel_savings(network: FlowNetwork, points: Array, config: Config) -> list[Fields]:
    """Work of the plain ensemble of the deepest network over that of multilevel, for each error."""
    rows = []
    for number, rmse in enumerate(config.rmses):
        generator = seeded(config, 60 + number)
        estimate = multilevel_ensemble(network, points, rmse=rmse, generator=generator, first_blocks=FIRST_BLOCKS)
        rows.append({"rmse": rmse, "saving": estimate.plain_cost / estimate.cost})
    return rows


if __name__ == "__main__":
    typer.run(main)
