"""Training as the control problem of Eq. 9: which F(x, t) leads to u(x_i, 0) = y_i, and does diffusion make u regular?

F is looked for itself, on the nodes of a grid at some times, not the weights of a network: L-BFGS on the gradient that
the transposed solver gives, of

    mean (u(x_i, 0) - y_i)² + α ∫∫ |F|² + ℓ²|∇F|² dx dt,

for σ in training of 0.3, 0.1 and 0.05, the smallest that the grid resolves; f is a fixed smooth function of one
coordinate. Beside it stands a residual network, which is trained by Adam on the same points with σ in its blocks, 0.3,
0.1 and 0; its u(x, 0) is the solution of its own equation, or itself where σ = 0. Both are measured on fresh points:
accuracy, max|∇u(·, 0)|, and the share of points that are classified right but not all over a ball of radius eps. What
was found with the least σ is measured with the larger ones, too: diffusion that comes after training.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
import typer
import xarray as xr
from numpy.typing import NDArray
from scipy import fft
from scipy.optimize import minimize

from bridge.box import Box
from bridge.flow import FlowNetwork, SmoothVelocity, network_problem
from bridge.planar import SHAPES, fit, planar_data
from pdekit import ConvectionDiffusion, ResolutionWarning, solve
from pdekit.equation.adjoint import PullBack, solve_and_pull
from pdekit.field import node_points
from pdekit.numerics.diagnostics import steepening_rate
from pdekit.numerics.spectral import gradient, resample
from pdekit.series import GridSeries
from studies.draw.control import draw, report
from studies.lab.reporting import OUT, Out, Seed, Smoke, at_least, console, num_cores, one_line_errors, store, tracked

Array = NDArray[np.float64]
Row = dict[str, Any]

# Parameters

HALF = 3.0  # of the width of the periodic box [-HALF, HALF]² of Eq. 9
NETWORK_BOX = Box(3.6, 4.4)  # which a network's paths hardly leave
SPEED = 1.6
VIEW = 2.0  # half-width of where the data are, and of the pictures
LENGTH = 0.5  # ℓ
_STABLE = 2.5  # |λ| dt of RK4, which allows 2.8 without diffusion
_NETWORK_STEP = 0.0125  # stable for 144 nodes of the box and |F_i| <= SPEED


@dataclass(frozen=True)
class Config:
    shapes: tuple[str, ...] = SHAPES
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.3)
    num_points: tuple[int, ...] = (128, 96, 64)  # nodes along an axis while F is looked for, for each sigma
    velocity_points: int = 16  # nodes of F along an axis
    frames: int = 5  # times of F
    alpha: float = 1e-3
    iterations: int = 25
    num_train: int = 300
    num_test: int = 1000
    eps: float = 0.2  # radius of the perturbations, l2
    num_blocks: int = 16
    width: int = 16
    train_steps: int = 500
    network_points: int = 144
    picture: int = 80  # nodes along an axis of the pictures
    seeds: int = 3
    seed: int = 0


FULL = Config()
SMOKE = Config(
    shapes=("moons",),
    sigmas=(0.1, 0.3),
    num_points=(48, 32),
    velocity_points=8,
    frames=3,
    iterations=8,
    num_train=150,
    num_test=300,
    train_steps=120,
    network_points=96,
    picture=24,
    seeds=2,
)


def main(seed: Seed = 0, out: Out = OUT / "control", smoke: Smoke = False) -> None:
    """Find velocities, train networks, compare; write control.nc and control.json, then draw from them."""
    with one_line_errors():
        at_least(0, seed=seed)
        config = replace(SMOKE if smoke else FULL, seed=seed)
        rows, pictures = compute(config)
        title = "Training as a control problem"
        stored = store(out / "control.json", {"rows": rows}, config, fields=pictures, title=title)
        report(stored)
        draw(out)
        console.print(f"wrote control.png, .pdf, .nc and .json in {out}", soft_wrap=True)


# Problem


@dataclass(frozen=True)
class Classifier:
    """u(·, 0): values at points (P, 2), and max|∇u| where the data are."""

    values: Callable[[Array], Array]
    gradient: float


def label(x: Array) -> Array:
    """f: from 0 to 1 with the first coordinate, smooth and periodic."""
    return np.asarray(0.5 + 0.5 * np.tanh(2.0 * np.sin(np.pi * x[..., 0] / HALF)))


def problem_of(velocity: Array, sigma: float) -> ConvectionDiffusion:
    """Velocity (M, 2, n, n) at times from 0 to 1, linear between them."""
    series = GridSeries(np.linspace(0.0, 1.0, len(velocity)), velocity, shape=(2,), name="velocity")
    return ConvectionDiffusion(series, label, sigma, box=((-HALF, HALF), (-HALF, HALF)))


def num_steps(velocity: Array, num_points: int) -> int:
    """Steps of RK4 that are stable for all modes of the grid: a search that may take too few makes use of that."""
    fastest = float(np.abs(velocity).sum(axis=1).max()) / (2.0 * HALF)
    return 20 * max(2, math.ceil(2.0 * np.pi * (num_points // 2) * fastest / _STABLE / 20))


def solution(velocity: Array, sigma: float, num_points: int) -> tuple[Array, PullBack]:
    """u(x, 0) of Eq. 9 with diffusion, and its gradient."""
    dt = 1.0 / num_steps(velocity, num_points)
    options: Row = {"num_points": num_points, "dt": dt, "method": "spectral_rk4", "padded": True}
    return solve_and_pull(problem_of(velocity, sigma), **options)


def values_at(points: Array, num_points: int) -> tuple[Array, Array]:
    """Matrices (P, N) of both axes that take nodes of [-HALF, HALF]² to the trigonometric interpolant at points."""
    k = np.arange(num_points // 2 + 1)
    weights = np.where(k == 0, 1.0, 2.0)
    if num_points % 2 == 0:
        weights[-1] = 1.0

    def along(z: Array) -> Array:
        # Σ_k cos(2πk (z - j/N)), as a product of matrices
        j, turns = np.arange(num_points) / num_points, 2.0 * np.pi * k
        at, node = np.exp(1j * np.outer(z, turns)), np.exp(-1j * np.outer(turns, j))
        return np.asarray(((at * weights) @ node).real / num_points)

    z = (points + HALF) / (2.0 * HALF)
    return along(z[:, 0]), along(z[:, 1])


# Solve: Eq. 9


def controlled(x: Array, y: NDArray[np.int64], sigma: float, number: int, config: Config) -> tuple[Array, Row]:
    """F (M, 2, n, n) for points (P, 2) and labels (P,), and how it was found; number: of the sigma."""
    n, size = config.velocity_points, config.num_points[number]
    shape = (config.frames, 2, n, n)
    first, second = values_at(x, size)
    in_time = np.full(config.frames, 1.0 / (config.frames - 1))
    in_time[[0, -1]] *= 0.5
    k = np.pi / HALF * fft.fftfreq(n, 1.0 / n)
    weight = 1.0 + LENGTH**2 * (k[:, None] ** 2 + k[: n // 2 + 1] ** 2)

    def objective(values: Array) -> tuple[float, Array]:
        velocity = values.reshape(shape)
        u, pull = solution(velocity, sigma, size)
        residual = np.einsum("ia,ia->i", first @ u, second) - y
        cotangent = first.T @ (2.0 / len(y) * residual[:, None] * second)
        smooth = fft.irfft2(weight * fft.rfft2(velocity), s=(n, n)) * in_time[:, None, None, None] / n**2
        value = float((residual**2).mean() + config.alpha * (velocity * smooth).sum())
        return value, (pull(cotangent).velocity + 2.0 * config.alpha * smooth).ravel()

    began = time.perf_counter()
    options = {"maxiter": config.iterations, "maxcor": 20}
    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    velocity = np.asarray(found.x).reshape(shape)
    how = {
        "objective": float(found.fun),
        "evaluations": int(found.nfev),
        "seconds": time.perf_counter() - began,
        "speed": float(np.sqrt((velocity**2).sum(axis=1)).max()),
        "gamma": max(steepening_rate(-resample(frame, 4 * n, axes=(1, 2)) / (2.0 * HALF)) for frame in velocity),
    }
    return velocity, how


def refined(velocity: Array, sigma: float, number: int, config: Config) -> tuple[Array, float]:
    """u(x, 0) on a grid of twice the nodes, and the largest difference from that of the search."""
    size = config.num_points[number]
    fine, _ = solution(velocity, sigma, 2 * size)
    coarse, _ = solution(velocity, sigma, size)
    return fine, float(np.abs(fine[::2, ::2] - coarse).max())


def of_nodes(u: Array, half: float) -> Classifier:
    """u on the nodes of [-half, half]²."""
    inside = np.abs(2.0 * half * node_points(len(u), 2) - half).max(axis=-1) <= VIEW
    steepest = float(np.sqrt((gradient(u) ** 2).sum(axis=0))[inside].max()) / (2.0 * half)

    def values(points: Array) -> Array:
        out = []
        for some in np.array_split(points * HALF / half, 1 + len(points) // 5000):
            first, second = values_at(some, len(u))
            out.append(np.einsum("ia,ia->i", first @ u, second))
        return np.concatenate(out)

    return Classifier(values, steepest)


# Solve: networks


def trained(x: Array, y: NDArray[np.int64], sigma: float, seed: int, config: Config) -> FlowNetwork:
    velocity = SmoothVelocity(2, width=config.width, speed=SPEED, box=NETWORK_BOX, seed=seed)
    network = FlowNetwork(velocity, num_blocks=config.num_blocks, sigma=sigma, seed=seed)
    fit(network, x, y, num_steps=config.train_steps, batch_size=128, seed=seed)
    return network.requires_grad_(False)


def of_network(network: FlowNetwork, sigma: float, config: Config) -> tuple[Classifier, Row]:
    """The solution of its equation with that σ, or the network itself without noise; and what the solver said."""
    if sigma > 0.0:
        problem = network_problem(network, sigma=sigma)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResolutionWarning)  # recorded, and told
            options: Row = {"num_points": config.network_points, "dt": _NETWORK_STEP, "method": "spectral_rk4"}
            solved = solve(problem, times=[0.0], progress=False, **options)
        said = {"warnings": solved.attrs["warnings"], "tail": solved.attrs["tail"]}
        return of_nodes(np.asarray(solved.u[0].values), NETWORK_BOX.outer), said

    def values(points: Array) -> Array:
        with torch.no_grad(), network.noise_off():
            return network(torch.from_numpy(points).float()).softmax(-1)[:, 1].double().numpy()

    axis = np.linspace(-VIEW, VIEW, 200)
    lattice = torch.from_numpy(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)).float().requires_grad_()
    with network.noise_off():
        (slopes,) = torch.autograd.grad(network(lattice).softmax(-1)[:, 1].sum(), lattice)
    return Classifier(values, float(slopes.norm(dim=-1).max())), {}


# Solve: all of them, measured


def compute(config: Config) -> tuple[list[Row], xr.Dataset]:
    """A row for each classifier, and the pictures of the first seed; cases are shared out among the cores."""
    cases = [(shape, number) for shape in config.shapes for number in range(config.seeds)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_cores(), len(cases)), mp_context=context) as workers:
        done = list(tracked(workers.map(partial(compute_case, config), cases), "shapes and seeds"))
    axis = np.linspace(-VIEW, VIEW, config.picture)
    pictures = {name: value for _, some in done for name, value in some.items()}
    return [row for rows, _ in done for row in rows], xr.Dataset(pictures, coords={"x": axis, "y": axis})


def compute_case(config: Config, case: tuple[str, int]) -> tuple[list[Row], dict[str, Any]]:
    """Rows and pictures of one shape and seed."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)  # after numba, which may set it, too
    shape, number = case
    seed = config.seed + number
    x, y = planar_data(shape, config.num_train, seed)
    fresh = planar_data(shape, config.num_test, seed + 1000)
    rows: list[Row] = []
    pictures: dict[str, Any] = {}
    for own, classifier in classifiers(x, y, seed, config):
        rows.append({"shape": shape, "seed": seed} | own | measured(classifier, *fresh, config.eps))
        if number == 0 and own["method"] == "equation" and own["sigma"] == own["trained_sigma"]:
            pictures[f"{shape}_{own['sigma']:g}"] = picture(classifier, config)
    if number == 0:
        pictures |= {f"{shape}_data": (("point", "axis"), x), f"{shape}_label": ("point", y)}
    return rows, pictures


def classifiers(x: Array, y: NDArray[np.int64], seed: int, config: Config) -> Iterator[tuple[Row, Classifier]]:
    """What is to be known of each, and the classifier."""
    least = config.sigmas[0]
    for number, sigma in enumerate(config.sigmas):
        velocity, how = controlled(x, y, sigma, number, config)
        for other in config.sigmas if sigma == least else (sigma,):
            u, resolution = refined(velocity, other, number, config)
            own = {"method": "equation", "trained_sigma": sigma, "sigma": other, "resolution": resolution}
            yield own | how, of_nodes(u, HALF)
    for sigma in (0.0, *config.sigmas[1:]):
        network = trained(x, y, sigma, seed, config)
        for other in (0.0, *config.sigmas[1:]) if sigma == 0.0 else (sigma,):
            classifier, said = of_network(network, other, config)
            yield {"method": "network", "trained_sigma": sigma, "sigma": other} | said, classifier


def measured(classifier: Classifier, x: Array, y: NDArray[np.int64], eps: float) -> Row:
    """Accuracy of u > 1/2, and the share of the right points that some point within eps turns wrong: a search."""
    angles = 2.0 * np.pi * np.arange(24) / 24
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    shifts = np.concatenate([np.zeros((1, 2)), *(r * eps * ring for r in (1 / 3, 2 / 3, 1.0))])
    points = (x[:, None] + shifts).reshape(-1, 2)
    decisions = (classifier.values(points) > 0.5).reshape(len(x), -1) == (y[:, None] == 1)
    right = decisions[:, 0]
    flipped = float((~decisions[right]).any(axis=1).mean()) if right.any() else 0.0
    return {"accuracy": float(right.mean()), "flipped": flipped, "gradient": classifier.gradient}


def picture(classifier: Classifier, config: Config) -> tuple[tuple[str, str], Array]:
    axis = np.linspace(-VIEW, VIEW, config.picture)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return ("x", "y"), classifier.values(points).reshape(config.picture, config.picture)


if __name__ == "__main__":
    typer.run(main)
