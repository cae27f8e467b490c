"""Theorems 1 and 2 put to the test: what holds, where, and what does not.

Theorem 1 bounds the modulus of continuity of u(·, 0) by C (|δ|/σ)^α for a bounded f. Here f jumps, velocities are
random Fourier fields from rough to smooth, and the measured modulus is set against |δ|/σ, against closed forms where
F is constant, and against a family of velocities that all have max |F| = 1.

Theorem 2 bounds max|∇u(·, 1)| by e^(-σ²) e^γ (|u0| + |∇u0|). Here that bound, the one its proof gives once ½σ²Δ is
put where Eq. (12) has it, and the sharp one by coupling (`pdekit.regularity`) meet solutions for random smooth
velocities and random compactly supported u0, and a ramp without any convection.

Every case is drawn before the first is solved, so that the numbers do not depend on who solves which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.special import j1
from scipy.stats import chi, norm

from pdekit import ConvectionDiffusion, GridVelocity, solve
from pdekit.field import node_points
from pdekit.numerics.diagnostics import max_gradient, max_speed, steepening_rate
from pdekit.numerics.spectral import gradient, resample
from pdekit.regularity import modulus_of_continuity
from studies.draw.theorems import draw, report
from studies.lab import engines
from studies.lab.reporting import OUT, Out, Seed, Smoke, at_least, console, one_line_errors, store, write_json
from studies.paper.theorems import judge

Array = NDArray[np.float64]
Row = dict[str, Any]

# Parameters

SCALED_SHIFTS = np.geomspace(0.01, 3.0, 13)  # |δ|/σ
MODULUS_SIGMAS = {1: (0.05, 0.1, 0.2, 0.4, 0.7, 1.0), 2: (0.1, 0.2, 0.4, 1.0)}  # by dimension, as all below
MODULUS_LENGTH = {1: 16.0, 2: 8.0}  # of the box
MODULUS_MODES = {1: 128, 2: 24}  # finest wavelengths 1/8 and 1/3
DECAYS = {"rough": 1.7, "medium": 2.5, "smooth": 4.0}  # of the velocity's spectrum, |k|^-p; Lipschitz for p > 3/2
SPEEDS = (0.5, 1.0, 2.0)  # max |F|
DIRECTIONS = 12  # of a shift in the plane, over half a turn: the largest modulus is missed by 1% at most
STEEP_SIGMAS = (0.4, 0.2, 0.1, 0.05)
STEEP_LENGTH = 4.0
CELL = 1.5  # period of the smooth random velocities; their wavelengths are 1/2 and longer
SUPPORT = {1: (0.3, 3.0), 2: (0.3, 1.0)}  # radius of the support of u0
SIGMA_RANGE = (0.05, 3.0)
GAMMA_MAX = 5.0
RAMP_LENGTH = 64.0
RAMP_CUT = 24.0  # distance from the middle at which the plateaus end


@dataclass(frozen=True)
class Config:
    lines: int  # velocities in one dimension, Theorem 2
    planes: int  # and in two
    sigmas_each: int
    seeds: int  # velocities a roughness and a speed, Theorem 1, in one dimension
    plane_decays: tuple[str, ...]  # roughness of the velocities in the plane, one of each
    steep_gammas: int
    ramp_sigmas: int
    seed: int


FULL = Config(170, 32, 8, 4, tuple(DECAYS), 9, 60, 0)
SMOKE = Config(8, 2, 4, 1, (), 3, 13, 0)


def main(
    seed: Seed = 0,
    out: Out = OUT / "theorems",
    workers: engines.Workers = None,
    scheduler: engines.Scheduler = None,
    slurm: engines.Slurm = None,
    smoke: Smoke = False,
) -> None:
    """Measure, write theorems.json and its verdicts alone, then print the verdicts and draw theorems.png from it."""
    with one_line_errors():
        at_least(0, seed=seed)
        config = replace(SMOKE if smoke else FULL, seed=seed)
        steep_cases = product(STEEP_SIGMAS, np.geomspace(1.0, 400.0, config.steep_gammas).tolist())
        ramp_cases = zip(np.linspace(*SIGMA_RANGE, config.ramp_sigmas).tolist(), strict=True)
        with engines.chosen(workers, scheduler, slurm, out) as engine:
            ramps = engine.sweep("Theorem 2: the ramp", measure_ramp, ramp_cases)
            results: Row = {
                "scaled_shifts": SCALED_SHIFTS.tolist(),
                "moduli": engine.sweep("Theorem 1: moduli", measure_modulus, modulus_cases(config)),
                "steep": engine.sweep("Theorem 1: one speed, every steepness", measure_steep, steep_cases),
                "gradients": engine.sweep("Theorem 2: gradients", measure_gradient, gradient_cases(config)),
                "ramp": {name: [row[name] for row in ramps] for name in ramps[0]} | {"length": RAMP_LENGTH},
            }
        # of the verdicts alone: what the page of results reads, a hundredth of the size
        summary = store(out / "summary.json", {"verdicts": judge(results)}, config)
        write_json(out / "theorems.json", results | summary)
        report(summary["verdicts"])
        draw(out / "theorems.json")
        console.print(f"wrote theorems.png, theorems.pdf, theorems.json and summary.json in {out}", soft_wrap=True)


# Problem: velocities and jumping f of Theorem 1


@dataclass(frozen=True)
class Flow:
    """A velocity of Theorem 1 with what the theorem may use of it."""

    kind: str
    speed: float
    velocity: Array  # (d, N, ..., N), physical units
    gamma: float = 0.0  # largest stretching rate of dX = F dt: max ξ·∇F·ξ
    sharpest: float = 0.0  # the larger of stretching and compression: sets the finest scale, σ / √(2 sharpest)

    @property
    def dim(self) -> int:
        return len(self.velocity)


def random_flow(rng: np.random.Generator, dim: int, kind: str, speed: float) -> Flow:
    length, decay = MODULUS_LENGTH[dim], DECAYS[kind] + 0.5 * (dim - 1)
    field = random_field(rng, dim, MODULUS_MODES[dim], lambda k: (1.0 + (4.0 * k / length) ** 2) ** (-decay / 2))
    fine = resampled(field, 8)
    scale = speed / max_speed(fine)
    rates = [scale / length * steepening_rate(sign * fine) for sign in (-1.0, 1.0)]
    return Flow(kind, speed, scale * field, rates[0], max(rates))


def random_field(rng: np.random.Generator, dim: int, modes: int, symbol: Callable[[Array], Array]) -> Array:
    """A Gaussian vector field (d, N, ..., N), N = 2 modes + 2, with weights symbol(|k|) where 0 < |k| <= modes."""
    n = 2 * modes + 2
    ks = np.meshgrid(*[np.fft.fftfreq(n, 1 / n)] * (dim - 1), np.arange(n // 2 + 1.0), indexing="ij")
    k = np.sqrt(sum(component**2 for component in ks))
    weights = np.where((k > 0) & (k <= modes), symbol(np.maximum(k, 1.0)), 0.0)
    axes = tuple(range(1, dim + 1))
    noise = np.fft.rfftn(rng.standard_normal((dim, *[n] * dim)), axes=axes)
    return np.fft.irfftn(noise * weights, s=(n,) * dim, axes=axes)


def resampled(velocity: Array, finest: float) -> Array:
    """The same field on `finest` times as many nodes, close enough for its maxima."""
    return resample(velocity, round(finest * velocity.shape[-1]), axes=tuple(range(1, velocity.ndim)))


def jumping_line(num_points: int, jumps: Array) -> Array:
    """±1 on the unit interval, changing sign at the given points (an even number): its truncated Fourier series.

    Galerkin's method needs no more: at t = 0 the modes left out enter through the density of X_1, which diffusion has
    made smooth, so the truncation error there falls faster than any power of N, while node values would move the
    jumps by up to half a cell.
    """
    k = np.arange(num_points // 2)
    signs = 2.0 * (-1.0) ** np.arange(len(jumps))
    safe = 2j * np.pi * np.maximum(k, 1)
    modes = (signs * np.exp(-2j * np.pi * np.outer(k, jumps))).sum(axis=1) / safe
    modes[0] = 2.0 * np.sum(jumps[1::2] - jumps[::2]) - 1.0
    return np.fft.irfft(np.append(modes, 0.0), n=num_points, norm="forward")


def stripes(num_points: int) -> Array:
    """`jumping_line` over the unit square, constant along y."""
    return np.repeat(jumping_line(num_points, np.array([0.25, 0.75]))[:, None], num_points, axis=1)


def disc(num_points: int, radius: float = 0.25) -> Array:
    """+1 in a disc in the middle of the unit square, -1 outside: its truncated Fourier series, of Bessel functions."""
    kx, ky = np.meshgrid(np.fft.fftfreq(num_points, 1 / num_points), np.arange(num_points // 2 + 1.0), indexing="ij")
    k = np.maximum(np.hypot(kx, ky), 1e-9)
    modes = 2.0 * radius * j1(2.0 * np.pi * radius * k) / k * np.cos(np.pi * (kx + ky))
    modes[0, 0] = 2.0 * np.pi * radius**2 - 1.0
    modes[np.maximum(np.abs(kx), ky) >= num_points // 2] = 0.0
    return np.fft.irfft2(modes, s=(num_points, num_points), norm="forward")


def modulus_cases(config: Config) -> Iterator[tuple[Flow, Callable[[int], Array], float, Row]]:
    """Every flow, jump set and σ, and what the row says of them."""
    rng = np.random.default_rng([config.seed, 1])
    flows = [Flow("constant", 0.5, np.full((dim, *[8] * dim), 0.5 / math.sqrt(dim))) for dim in (1, 2)]
    flows += [random_flow(rng, 1, kind, s) for kind in DECAYS for s in SPEEDS for _ in range(config.seeds)]
    flows += [random_flow(rng, 2, kind, 1.0) for kind in config.plane_decays]
    for number, flow in enumerate(flows):
        starts: dict[str, Callable[[int], Array]] = {"stripes": stripes, "disc": disc}
        if flow.dim == 1:
            jumps = (np.arange(4) + rng.uniform(-0.15, 0.15, (2, 4)) + 0.5) / 4.0
            starts = {f"jumps {i}": partial(jumping_line, jumps=places) for i, places in enumerate(jumps)}
        said = {"dim": flow.dim, "flow": number, "kind": flow.kind, "speed": flow.speed, "gamma": flow.gamma}
        for sigma in MODULUS_SIGMAS[flow.dim]:
            for name, start in starts.items():
                yield flow, start, sigma, said | {"start": name, "sigma": sigma}


# Problem: velocities and u0 of Theorem 2


@dataclass(frozen=True)
class Bump:
    """u0(x) = (1 - |x|²/R²)⁴ cos(q·x + φ) inside the ball of radius R, 0 outside."""

    radius: float
    wave: Array  # q (d,)
    phase: float

    @classmethod
    def random(cls, rng: np.random.Generator, dim: int) -> Bump:
        radius = float(np.exp(rng.uniform(*np.log(SUPPORT[dim]))))
        return cls(radius, rng.uniform(-3.0, 3.0, dim) / radius, float(rng.uniform(0.0, 2.0 * np.pi)))

    def __call__(self, x: Array) -> Array:
        inside = np.maximum(1.0 - (x**2).sum(axis=-1) / self.radius**2, 0.0)
        return inside**4 * np.cos(x @ self.wave + self.phase)

    def norms(self) -> tuple[float, float]:
        """max |u0| and max |∇u0|."""
        n = 4096 if len(self.wave) == 1 else 512
        u = self(2.2 * self.radius * (node_points(n, len(self.wave)) - 0.5))
        slope = np.sqrt((gradient(u) ** 2).sum(axis=0)).max() / (2.2 * self.radius)
        return float(np.abs(u).max()), float(slope)


def gradient_cases(config: Config) -> Iterator[tuple[Array, Bump, Row]]:
    """Random velocities with γ spread evenly over (0, 5) and √σ about evenly, σ in [0.05, 3]; each with a u0."""
    rng = np.random.default_rng([config.seed, 2])
    each, number = config.sigmas_each, 0
    for dim, count in ((1, config.lines), (2, config.planes)):
        for gamma in GAMMA_MAX * (rng.permutation(count) + rng.uniform(size=count)) / count:
            field = random_field(rng, dim, 3, lambda k: np.exp(-((k / 1.5) ** 2)))
            field *= gamma * CELL / steepening_rate(resampled(field, 512 / field.shape[-1]))
            bump = Bump.random(rng, dim)
            u_max, grad_max = bump.norms()
            said = {"dim": dim, "flow": number, "gamma": float(gamma), "u_max": u_max, "grad_max": grad_max}
            strata = (np.arange(each) + rng.uniform(size=each)) / each
            for sigma in SIGMA_RANGE[0] + (SIGMA_RANGE[1] - SIGMA_RANGE[0]) * strata**2:
                yield field, bump, said | {"sigma": float(sigma)}
            number += 1


def ramp(x: Array) -> Array:
    """Slope 1 between plateaus at -1 and 1, back to 0 with slope 1 at RAMP_CUT from the middle of the box."""
    y = (x[..., 0] % 1.0 - 0.5) * RAMP_LENGTH
    return np.clip(y, -1, 1) - np.clip(y - RAMP_CUT, 0, 1) + np.clip(-y - RAMP_CUT, 0, 1)


# Solve


def evolve(
    problem: Callable[..., ConvectionDiffusion],
    velocity: Array,
    start: Any,
    sigma: float,
    length: float,
    num_points: int,
    refine: float = 1.0,
) -> Array:
    """u one time unit after `start`, (N,)*d, in a box of any `length`; refine: finer in time by this factor.

    pdekit's box is the unit box: with F/L and σ/L there, u and γ are the same, and gradients L times as large. The time
    step is two thirds of what AB4's stability allows for the modes that the solver keeps, 1/50 at most.
    """
    fastest = 2.0 * math.pi * num_points / 3.0 / length
    speed = float(sum(np.abs(component).max() for component in velocity))
    dt = min(1.0 / 50.0, 0.28 / max(fastest * speed, 1e-300)) / refine
    scaled = problem(GridVelocity(velocity / length), start, sigma / length)
    return solve(scaled, num_points=num_points, dt=dt, method="spectral_ab4", progress=False).u[0].values


def even_length(minimum: float) -> int:
    return 2 * next_fast_len(math.ceil(minimum / 2.0))


def with_error(measure: Callable[[int, float], Any], num_points: int, fewer: int) -> tuple[Any, Any]:
    """`measure(num_points, 1)`, and what `fewer` nodes, two thirds of them, and as many steps change in it."""
    fine = measure(num_points, 1.0)
    return fine, abs(fine - measure(fewer, 1.0 / 1.5))


def modulus(u: Array, sigma: float, length: float) -> Array:
    """max |u(x + δ) - u(x)| over x and directions, for |δ| = σ SCALED_SHIFTS."""
    angles = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    directions = np.ones((1, 1)) if u.ndim == 1 else np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    shifts = sigma / length * SCALED_SHIFTS[:, None, None] * directions
    factor = 8 if u.ndim == 1 else math.ceil(256 / len(u))  # the largest value lies between nodes
    return modulus_of_continuity(resample(u, factor * len(u)), shifts).max(axis=-1)


def measure_modulus(flow: Flow, start: Callable[[int], Array], sigma: float, said: Row) -> Row:
    """The modulus of continuity of u(·, 0)."""
    length = MODULUS_LENGTH[flow.dim]
    finest = 0.35 * sigma / math.sqrt(1.0 + 2.0 * flow.sharpest)
    n = even_length(max(length / finest, 3.2 * MODULUS_MODES[flow.dim]))

    def at(points: int, refine: float) -> Array:
        u = evolve(ConvectionDiffusion, flow.velocity, start(points), sigma, length, points, refine)
        return modulus(u, sigma, length)

    omega, error = with_error(at, n, even_length(n / 1.5))
    row = said | {"modulus": omega.tolist(), "error": error.tolist()}
    if flow.kind == "constant" and isinstance(start, partial):
        row["exact"] = modulus(heat_line(start.keywords["jumps"], sigma), sigma, length).tolist()
    return row


def heat_line(jumps: Array, sigma: float, num_points: int = 4096) -> Array:
    """The heat equation at t = 0 from ±1 that changes sign at the jumps: sums of normal distribution functions."""
    x = np.arange(num_points)[:, None] / num_points
    u = -np.ones(num_points)
    for image in (-2, -1, 0, 1, 2):
        steps = norm.cdf((x - jumps - image) * MODULUS_LENGTH[1] / sigma)
        u += 2.0 * (steps * (-1.0) ** np.arange(len(jumps))).sum(axis=1)
    return u


def measure_steep(sigma: float, gamma: float) -> Row:
    """The modulus for F = tanh(γ x) made periodic: max |F| = 1 whatever γ, stretching at x = 0, where f jumps."""

    def at(n: int, refine: float) -> Array:
        x = STEEP_LENGTH * np.arange(n) / n
        velocity = np.tanh(gamma * np.sin(2 * np.pi * x / STEEP_LENGTH) * STEEP_LENGTH / (2 * np.pi))[None]
        start = jumping_line(n, np.array([0.0, 0.5]))
        u = evolve(ConvectionDiffusion, velocity, start, sigma, STEEP_LENGTH, n, refine)
        return modulus(u, sigma, STEEP_LENGTH)

    finest = min(0.35 * sigma / math.sqrt(1.0 + 2.0 * gamma), 0.3 / gamma)
    nodes = max(STEEP_LENGTH / finest, 256)
    omega, error = with_error(at, even_length(nodes), even_length(nodes / 1.5))
    return {"sigma": sigma, "gamma": gamma, "modulus": omega.tolist(), "error": error.tolist()}


def measure_gradient(field: Array, bump: Bump, said: Row) -> Row:
    """max |∇u(·, 1)|, and at most what images of u0 in the periodic box add."""
    dim, speed, gamma, sigma = said["dim"], max_speed(field), said["gamma"], said["sigma"]
    cells = math.ceil(2.0 * (bump.radius + speed + 7.0 * sigma) / CELL)
    length = cells * CELL
    velocity = np.tile(field, (1, *[cells] * dim))
    blurred = max(bump.radius / 16.0, min(sigma / 5.0, bump.radius / 5.0))  # details finer than σ/5 are gone at t = 1
    finest = min(0.4 * sigma / math.sqrt(2.0 * gamma), blurred, CELL / (36.0 if dim == 1 else 18.0))
    n = even_length(length / finest)

    def start(x: Array) -> Array:
        return bump(length * (x % 1.0 - 0.5))

    def at(points: int, refine: float) -> float:
        u = evolve(ConvectionDiffusion.from_initial_value, velocity, start, sigma, length, points, refine)
        return max_gradient(resample(u, 2 * points)) / length

    measured, error = with_error(at, n, even_length(n / 1.5))
    images = math.exp(gamma) * said["grad_max"] * images_reached(dim, length, bump.radius + speed, sigma)
    return said | {"measured": measured, "error": error, "images": images, "length": length, "num_points": n}


def images_reached(dim: int, length: float, reach: float, sigma: float) -> float:
    """At most the expected number of copies of u0's support, but its own, that a path from inside the box ends in.

    Points at distance r stay within e^γ r under one Brownian motion, so |∇u(x, 1)| <= e^γ |∇u0| P(X_1 in the
    support); and X_1 is at most max|F| + σ|B_1| away from x. `reach` is the support's radius plus max|F|.
    """
    rings = np.arange(1, 6)
    copies = (2 * rings + 1) ** dim - (2 * rings - 1) ** dim
    return float((copies * chi.sf(np.maximum((rings - 0.5) * length - reach, 0.0) / sigma, dim)).sum())


def measure_ramp(sigma: float) -> Row:
    """max |∇u(·, 1)| of the ramp without convection, and how much the cut-off and the box can change it."""

    def at(n: int, refine: float) -> float:
        u = evolve(ConvectionDiffusion.from_initial_value, np.zeros((1, 8)), ramp, sigma, RAMP_LENGTH, n)
        return max_gradient(resample(u, 2 * n)) / RAMP_LENGTH

    measured, error = with_error(at, 4096, 2048)
    # ∇u(·, 1) is the mean slope of u0 around x; from |x| <= 1 the cut-offs and all images are RAMP_CUT - 1 away
    images = float(2.0 * norm.sf((RAMP_CUT - 1.0) / sigma))
    return {"sigma": sigma, "measured": measured, "error": error, "images": images}


if __name__ == "__main__":
    typer.run(main)
