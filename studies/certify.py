"""What this project promises of its own numbers, measured: false alarms, coverage, orders, damage, rounding, threads.

A row is a promise, the number that was measured, its standard error and a verdict: it holds where three standard errors
around the number lie within what was promised, does not hold where they lie outside, and the cases were too few where
they do both. Tests hold the same promises at a size that takes seconds; here errors of a percent show. Rows are kept as
they are measured: the same command continues an interrupted run.
"""

from __future__ import annotations

import copy
import itertools
import math
import multiprocessing
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any

import numba
import numpy as np
import torch
import typer
import xarray as xr
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from bridge.ensemble import IntervalWarning, ensemble_estimate
from netkit import attacks, certify, checkpoint, data, en_resnet
from netkit.calibration import calibration_of
from netkit.intervals import clopper_pearson, mean_accuracy, paired_difference, wilson
from netkit.noise import NoiseStream
from pdekit import (
    ConvectionDiffusion,
    Sampling,
    Tolerance,
    compiled,
    density,
    feynman_kac,
    multilevel,
    solve,
    solve_and_pull,
    verify,
)
from pdekit.equation.storage import Checkpoint, CheckpointError, FileFrames
from pdekit.fastmath import cos, sin
from studies.lab.promises import FAILS, HOLDS, Measured, Row, exact, mean, order, run, share
from studies.lab.reporting import (
    ROOT,
    InputError,
    Out,
    Seed,
    Smoke,
    at_least,
    console,
    one_line_errors,
    read_objects,
    show,
    store,
)
from studies.report import environment

Array = NDArray[np.float64]
TAU = 2 * np.pi

# Parameters


@dataclass(frozen=True)
class Config:
    share: float = 1.0  # of the cases of each row
    seed: int = 0
    only: str = ""  # rows whose group or name has this in it


SMOKE_SHARE = 0.0  # the least of each row
LEVEL = 0.05  # of verdicts and intervals, where a row does not say another
VERIFY: dict[str, Any] = {"num_paths": 4096, "num_steps": 64, "level": LEVEL}

ShareOfCases = Annotated[float, typer.Option(help="of the cases of each row, above 0 and up to 1")]
Only = Annotated[str, typer.Option(help="only rows whose group or name has this in it")]


def main(
    seed: Seed = 0,
    out: Out = ROOT / "out" / "certify",
    share: ShareOfCases = 1.0,
    only: Only = "",
    smoke: Smoke = False,
) -> None:
    """Measure; write certify.json, and certify.html from it."""
    with one_line_errors():
        at_least(0, seed=seed)
        if not 0 < share <= 1:
            raise InputError(f"--share: expected a number above 0 and up to 1, got {share}")
        config = Config(SMOKE_SHARE if smoke else share, seed, only)
        rows = [row for row in ROWS if only in row.group or only in row.name]
        if not rows:
            raise InputError(f"--only: expected a part of the name of a row, got {only!r}")
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows measure what warnings are about
            measured = run(rows, out / "rows", share=config.share, seed=seed)
        stored = store(out / "certify.json", {"rows": measured}, config)
        report(stored)
        write_page(stored, out)
        console.print(f"wrote certify.html and certify.json in {out}")


# Problem: equations with known answers


@cache
def velocity(dim: int, factor: float = 1.0) -> Any:
    @compiled(2)
    def flow(x: Any, y: Any, t: Any) -> Any:
        a, b = TAU * x, TAU * y
        return factor * (sin(a) * cos(b) + 0.3), factor * (0.2 * sin(b) - 0.5 * cos(a) * sin(b))

    @compiled(1)
    def current(x: Any, t: Any) -> Any:
        return (factor * (0.4 * sin(TAU * x) + 0.2 * cos(t)),)

    return {1: current, 2: flow}[dim]


@compiled(1)
def drift(x: Any, t: Any) -> Any:
    return (0.0 * x + 0.3,)


@compiled(1)
def restoring(x: Any, t: Any) -> Any:
    return (-2.0 * x,)


@compiled(1)
def spread(x: Any, t: Any) -> Any:
    return (0.5 * (1.0 + x * x) ** 0.5,)


def hill(x: Array) -> Array:
    found = np.exp(np.sin(TAU * x[..., 0]))
    return np.asarray(found * np.cos(TAU * x[..., 1]) if x.shape[-1] > 1 else found)


SIGMA = 0.1


def problem_of(dim: int, sigma: float = SIGMA, *, factor: float = 1.0, terminal: Any = hill) -> ConvectionDiffusion:
    return ConvectionDiffusion(velocity(dim, factor), terminal, sigma)


def mode(x: Array) -> Array:
    return np.asarray(np.cos(TAU * x[..., 0]))


def drifting(sigma: float) -> ConvectionDiffusion:
    """Constant F = 0.3 and one mode: every scheme is exact, u = exp(-½τ²σ²) cos τ(x + 0.3)."""
    return ConvectionDiffusion(drift, mode, sigma)


def drifting_value(x: float, sigma: float) -> float:
    return math.exp(-0.5 * (TAU * sigma) ** 2) * math.cos(TAU * (x + 0.3))


def linear(noise: Any = 0.5) -> ConvectionDiffusion:
    """dX = -2 X dt + σ dB in the whole line, f = x²."""
    return ConvectionDiffusion(restoring, lambda x: x[..., 0] ** 2, noise, domain="space")


def square_after(start: float, *, constant: bool) -> float:
    """E X² at time 1, from m' = -4 m + σ², σ = ½, or σ² = ¼(1 + X²)."""
    rate, source = (-4.0, 0.25) if constant else (-3.75, 0.25)
    return (start**2 + source / rate) * math.exp(rate) - source / rate


# Solve: verify


@cache
def solved(dim: int, change: str) -> xr.Dataset:
    """The solution of the problem, or of one that differs from it by `change`, as "σ +1%"."""
    what, _, percent = change.rpartition(" ")
    factor = 1 + float(percent.removesuffix("%")) / 100 if percent.endswith("%") else 1.0
    made = problem_of(
        dim,
        factor * SIGMA if what == "σ" else SIGMA,
        factor=factor if what == "F" else 1.0,
        terminal=(lambda x: factor * hill(x)) if what == "f" else hill,
    )
    found = solve(made, num_points=64, dt=5e-3, times=list(np.linspace(0.0, 1.0, 33)))
    return found.roll(x=1, roll_coords=False) if change == "one node off" else found


@cache
def own_error(dim: int) -> Array:
    return verify(problem_of(dim), solved(dim, "right"), places(dim), rng=0, **VERIFY).solution_error


def places(dim: int) -> Array:
    return np.random.default_rng(8).uniform(size=(24, dim))


def verifications(dim: int, change: str, n: int, seed: int) -> Iterator[Any]:
    problem, solution = problem_of(dim), solved(dim, change)
    for number in range(n):
        rng = np.random.default_rng([seed, dim, number])
        yield verify(problem, solution, places(dim), solution_error=own_error(dim), rng=rng, **VERIFY)


def false_alarms(dim: int, n: int, seed: int) -> Measured:
    verdicts = [each.verdict for each in verifications(dim, "right", n, seed)]
    return share([v == "disagrees" for v in verdicts], f"agrees in {np.mean([v == 'agrees' for v in verdicts]):.1%}")


def power(dim: int, change: str, n: int, seed: int) -> Measured:
    found = list(verifications(dim, change, n, seed))
    agreed = np.mean([each.verdict == "agrees" for each in found])
    true = rms(found[0].solution - reference_values(dim))
    return share(
        [each.verdict == "disagrees" for each in found],
        f"off by {true:.2g}, allowed {found[0].tolerance:.2g}; agrees in {agreed:.1%}",
    )


def bounds_hold(dim: int, n: int, seed: int) -> Measured:
    """Over right and wrong solutions, how often the true rms deviation lies between the bounds."""
    held = []
    for change in ("right", "σ +5%"):
        for each in verifications(dim, change, -(-n // 2), seed):
            low, high = each.bounds
            held.append(low <= rms(each.solution - reference_values(dim)) <= high)
    return share(held)


@cache
def reference_values(dim: int) -> Array:
    """u at the places, with twice the nodes and half the step: the deviation of a right solution is far below these."""
    fine = solve(problem_of(dim), num_points=128, dt=2.5e-3, times=[1.0, 0.0])
    outcome = verify(problem_of(dim), fine, places(dim), num_paths=4, num_steps=2, solution_error=0.0, rng=0)
    return outcome.solution


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


# Solve: intervals


def paths_interval(n: int, seed: int, sampling: Sampling, num_steps: int = 1) -> Measured:
    """Of E f(X_1) by paths that every step moves exactly."""
    problem, exact_value, held = drifting(0.2), drifting_value(0.15, 0.2), []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        found = feynman_kac(
            problem, [[0.15]], num_paths=400, num_steps=num_steps, scheme="euler", sampling=sampling, rng=rng
        )
        low, high = found.confidence_interval(1 - LEVEL)
        held.append(low[0] <= exact_value <= high[0])
    return share(held)


def biased_interval(n: int, seed: int, scheme: str) -> Measured:
    problem, exact_value, held = linear(), square_after(1.5, constant=True), []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        found = feynman_kac(problem, [[1.5]], num_paths=1000, num_steps=16, scheme=scheme, bias=True, rng=rng)
        low, high = found.confidence_interval(1 - LEVEL)
        held.append(low[0] <= exact_value <= high[0])
    return share(held)


def tolerance_met(n: int, seed: int) -> Measured:
    problem, exact_value, near = drifting(0.2), drifting_value(0.15, 0.2), []
    tolerance = Tolerance(atol=0.02, confidence=1 - LEVEL)
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        found = feynman_kac(problem, [[0.15]], num_paths=500, num_steps=1, scheme="euler", tolerance=tolerance, rng=rng)
        near.append(abs(found.mean[0] - exact_value) <= 0.02)
    return share(near)


def multilevel_error(n: int, seed: int) -> Measured:
    """(error / rmse)², whose mean is the mean square error in units of what was asked for."""
    problem, exact_value, rmse = linear(), square_after(1.5, constant=True), 0.01
    errors = [
        multilevel(problem, [[1.5]], rmse=rmse, scheme="euler", rng=np.random.default_rng([seed, number])).mean[0]
        - exact_value
        for number in range(n)
    ]
    return mean((np.array(errors) / rmse) ** 2)


def binomial_coverage(n: int, seed: int, interval: Callable[..., Any], *, least: bool) -> Measured:
    """Exact, by summing the binomial law, for n proportions and 10, 50 and 500 images; least: of all, or the mean."""
    del seed
    covered = []
    for size in (10, 50, 500):
        ends = [interval(k, size) for k in range(size + 1)]
        p = (np.arange(n) + 0.5) / n
        inside = np.array([[each.low <= q <= each.high for each in ends] for q in p])
        covered.append((stats.binom.pmf(np.arange(size + 1), size, p[:, None]) * inside).sum(1))
    every = np.array(covered)
    note = f"least {every.min():.3f}, mean {every.mean():.3f}, over {every.size} proportions and sizes"
    return exact(every.min() if least else every.mean(), every.size, note)


def scores(generator: torch.Generator, p: Tensor, num_seeds: int, spread: float) -> list[Tensor]:
    """Correctness (n,) of `num_seeds` networks on fresh images, right with chance p but for the skill of each."""
    chosen = p[torch.randint(len(p), (200,), generator=generator)]
    skills = spread * torch.randn(num_seeds, 1, generator=generator, dtype=torch.float64)
    chances = (chosen.logit() + skills).sigmoid()
    return list((torch.rand(chances.shape, generator=generator, dtype=torch.float64) < chances).double())


def accuracy_interval(n: int, seed: int, *, paired: bool) -> Measured:
    """Over images and seeds at once; what is covered is the mean over both."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(2000, generator=generator, dtype=torch.float64) ** 0.3
    spread = 0.3
    skill = torch.linspace(-5, 5, 401, dtype=torch.float64)
    weights = torch.softmax(-0.5 * skill.square(), 0)
    true = float(((p.logit()[:, None] + spread * skill).sigmoid() * weights).sum(1).mean())
    held = []
    for _ in range(n):
        first = scores(generator, p, 5, spread)
        if paired:  # against networks of the same kind: the true difference is 0
            chosen = paired_difference(first, scores_on(first, generator)).interval
            held.append(0.0 in chosen)
        else:
            held.append(true in mean_accuracy(first))
    return share(held)


def scores_on(first: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Of other networks on the same images: each answer exchanged with a coin, so that no side is better."""
    other = []
    for each in first:
        swap = torch.rand(each.shape, generator=generator) < 0.15
        other.append(torch.where(swap, (torch.rand(each.shape, generator=generator) < each.mean()).double(), each))
    return other


class Logit(nn.Module):
    """Probabilities (p, 1 - p), p = 1 / (1 + exp(-N(m, s²))), with a draw of its own for each image."""

    def __init__(self, m: float, s: float) -> None:
        super().__init__()
        self.m, self.s, self.stream = m, s, NoiseStream(0)

    def using_generator(self, generator: torch.Generator) -> Any:
        return self.stream.replaced(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x), 1, generator=self.stream.generator(x.device), dtype=torch.float64)
        logit = self.m + self.s * noise
        return torch.cat([logit, torch.zeros_like(logit)], 1)

    @property
    def mean(self) -> float:
        return float(stats.norm(self.m, self.s).expect(special.expit))


def ensemble_interval(n: int, seed: int, law: tuple[float, float], **options: Any) -> Measured:
    """n images that are all the same: as many repetitions of one estimate."""
    model, kind = Logit(*law), options.pop("kind", None)
    x = torch.zeros(n, 1)
    generator = torch.Generator().manual_seed(seed)
    found = ensemble_estimate(model, x, batch_size=n, generator=generator, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntervalWarning)
        low, high = found.confidence_interval(1 - LEVEL, kind=kind)
    width = float((high - low)[:, 0].mean())
    note = f"width {width:.3f}, draws {found.num_draws.double().mean():.0f}"
    return share((low[:, 0] <= model.mean) & (model.mean <= high[:, 0]), note)


def wrong_decisions(n: int, seed: int) -> Measured:
    """How often early stopping leaves a class that has not the largest mean."""
    generator = torch.Generator().manual_seed(seed)
    found = ensemble_estimate(
        Logit(0.4, 2.0), torch.zeros(n, 1), num_draws=2000, stop_when_decided=True, batch_size=n, generator=generator
    )
    decided = float(found.decided.double().mean())
    return share(found.decided & (found.prediction != 0), f"{decided:.1%} decided")


class Plane(nn.Module):
    """Logits (x₁ - ½, 0): the answer changes at a known distance."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0] - 0.5
        return torch.stack([first, torch.zeros_like(first)], 1)


def certificate_failures(n: int, seed: int) -> Measured:
    """How often a radius is larger than the distance to the plane, at a confidence of 95%."""
    x = torch.zeros(n, 1, 1, 2, dtype=torch.float64)
    x[:, 0, 0, 0] = 0.5 + 0.1
    found = certify(Plane(), x, sigma=0.25, num_draws=200, selection_draws=20, confidence=1 - LEVEL, seed=seed)
    return share(
        (found.radius > 0.1) | (found.prediction == 1), f"{float(found.abstained.double().mean()):.0%} abstain"
    )


def answers(n: int, generator: torch.Generator, sharpness: float) -> tuple[Tensor, Tensor]:
    logits = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return (sharpness * logits).softmax(1), y


def calibration_interval(n: int, seed: int, name: str) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    truth = getattr(calibration_of(*answers(400_000, generator, 2.0)).mean, name).value
    held = []
    for number in range(n):
        report_ = calibration_of(*answers(200, generator, 2.0), seed=seed + number)
        held.append(truth in getattr(report_.mean, name).interval)
    return share(held)


# Solve: orders


def smooth(x: Array, t: float) -> Array:
    a, b = TAU * x[..., 0], TAU * x[..., 1]
    return np.stack([0.4 * np.sin(a) * np.cos(b + t) + 0.3, 0.3 * np.cos(a - 2 * t) * np.sin(b)], axis=-1)


def uneven(x: Array, t: float) -> Array:
    return np.asarray(0.25 + 0.05 * np.sin(TAU * x[..., 0]))


def order_in_time(n: int, seed: int, method: str, steps: tuple[int, ...], sigma: Any = 0.2) -> Measured:
    del seed
    problem = ConvectionDiffusion(smooth, hill, sigma, dim=2)
    nodes = 256 if method == "semi_lagrangian" else 48
    fine = solve(problem, num_points=64 if nodes == 256 else 48, dt=1e-3, method="spectral_rk4").u[0].values
    stride = nodes // len(fine)
    chosen = steps[: max(2, n)]
    errors = [
        np.abs(solve(problem, num_points=nodes, dt=1 / s, method=method).u[0].values[::stride, ::stride] - fine).max()
        for s in chosen
    ]
    return order(chosen, errors)


def weak_order(n: int, seed: int, scheme: str, steps: tuple[int, ...], *, constant: bool) -> Measured:
    """On a linear equation whose second moment is known, by n antithetic pairs a step size."""
    noise = 0.5 if constant else spread
    exact_value = square_after(8.0, constant=constant)
    errors, sampling = [], []
    for number, count in enumerate(steps):
        found = feynman_kac(
            linear(noise), [[8.0]], num_paths=2 * n, num_steps=count, scheme=scheme,
            sampling=Sampling(antithetic=True), rng=np.random.default_rng([seed, number]),
        )  # fmt: skip
        errors.append(found.mean[0] - exact_value)
        sampling.append(found.standard_error[0])
    measured = order(steps, errors, sampling)
    return Measured(**(asdict(measured) | {"n": 2 * n}))


def adjoint_error(n: int, seed: int, method: str) -> Measured:
    """Largest relative difference of n directional derivatives from differences of fourth order."""
    rng = np.random.default_rng(seed)
    return exact(max(_adjoint_difference(rng, method) for _ in range(n)), n, "largest of all")


def _adjoint_difference(rng: np.random.Generator, method: str) -> float:
    (nodes, direction), terminal = 0.3 * rng.standard_normal((2, 2, 5, 5)), rng.standard_normal((5, 5))

    def at(step: float) -> tuple[Array, Any]:
        problem = ConvectionDiffusion(nodes + step * direction, terminal, 0.3)
        return solve_and_pull(problem, num_points=24, method=method, rtol=1e-12, dt=1 / 30)

    u, back = at(0.0)
    cotangent = rng.standard_normal(u.shape)
    own = float((back(cotangent).velocity * direction).sum())
    h = 1e-3
    near, far = (float((cotangent * (at(step)[0] - at(-step)[0])).sum()) for step in (h, 2 * h))
    return abs(own - (8 * near - far) / (12 * h)) / abs(own)


def pairing(n: int, seed: int, steps: tuple[int, ...] = (40, 80, 160)) -> Measured:
    """How fast ∫ρu stops changing under AB4."""
    del n, seed
    problem = ConvectionDiffusion(
        lambda x, t: 0.5 * np.sin(TAU * x) * np.cos(3 * t), lambda x: np.cos(TAU * x[..., 0]), 0.2, dim=1
    )
    changes = []
    for count in steps:
        how: Any = {"num_points": 64, "method": "spectral_ab4", "dt": 1 / count}
        paired = (solve(problem, **how).u * density(problem, hill, **how).rho).mean(dim="x").values
        changes.append(abs(paired[1] - paired[0]))
    return order(steps, changes)


def mass_change(n: int, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(n):
        problem = ConvectionDiffusion(0.3 * rng.standard_normal((2, 6, 6)), np.ones((4, 4)), 0.3)
        mass = (
            density(problem, lambda x: np.exp(np.sin(TAU * x).sum(-1)), num_points=32, dt=0.02)
            .rho.mean(dim=("x", "y"))
            .values
        )
        worst = max(worst, float(np.ptp(mass) / abs(mass[0])))
    return exact(worst, n, "largest of all")


# Solve: damaged files

_SECONDS = 5  # after which a reader hangs


def damage(n: int, seed: int, reader: str) -> Measured:
    """Of n damaged copies, how many are neither refused in one line nor read as what they held."""
    with tempfile.TemporaryDirectory() as folder:
        path, read, same, refuses = READERS[reader](Path(folder))
        content = path.read_bytes()
        found = _in_children(n, partial(_outcomes, path, content, seed, read, same, refuses))
    kinds = {letter: found.count(letter) for letter in dict.fromkeys(found)}
    said = {
        "r": "refused",
        "s": "read as they were",
        "m": "misread",
        "e": "another exception",
        "x": "ended the process",
    }
    note = ", ".join(f"{kinds[letter]:,} {said[letter]}" for letter in said if letter in kinds)
    return share([letter in "mex" for letter in found], note)


def _outcomes(path: Path, content: bytes, seed: int, read: Any, same: Any, refuses: Any, first: int, n: int) -> Any:
    for damaged in itertools.islice(_mutations()(content, n, seed=seed), first, None):
        path.write_bytes(damaged)
        signal.alarm(_SECONDS)
        try:
            yield "s" if same(read()) else "m"
        except refuses as error:
            yield "e" if "\n" in str(error) else "r"
        except Exception:
            yield "e"


def _in_children(n: int, outcomes: Any) -> str:
    """Letters of all cases; a child that a case ends is followed by another one, from the next case on."""
    found = ""
    while len(found) < n:
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of damage, where they are closed
            try:
                for letter in outcomes(len(found), n):
                    os.write(send, letter.encode())
            finally:
                os._exit(0)
        os.close(send)
        with os.fdopen(receive) as letters:
            found += letters.read()
        os.waitpid(child, 0)
        found += "x" * (len(found) < n)
    return found


@cache
def _mutations() -> Any:
    """That of tests/mutations.py, which is no package: damage is defined in one place."""
    spec = spec_from_file_location("mutations", ROOT / "tests" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.mutations


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return np.array_equal(a, b)


Reader = tuple[Path, Callable[[], Any], Callable[[Any], bool], type[Exception]]


def _network_checkpoint(folder: Path) -> Reader:
    path, tree = folder / "network", {"identity": {"depth": 20}, "weights": [torch.rand(30, 4), torch.rand(3)]}
    checkpoint.save(path, tree, kind="test")
    return path, lambda: checkpoint.load(path, kind="test"), partial(_equal, tree), checkpoint.CheckpointError


def _restart_file(folder: Path) -> Reader:
    stored = Checkpoint(folder / "c.npz", {"sigma": 0.1})
    arrays = {"u": np.random.default_rng(0).random((8, 8)), "frame_0": np.ones((2, 8))}
    stored.save(arrays, t=0.5)
    return (
        folder / "c.npz",
        stored.load,
        lambda found: _equal(arrays, found[0]) and found[1] == {"t": 0.5},
        CheckpointError,
    )


def _images(folder: Path) -> Reader:
    path, rng = folder / "c.npz", np.random.default_rng(0)
    np.savez(
        path,
        x_train=rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8),
        y_train=np.arange(10),
        x_test=rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8),
        y_test=np.arange(10),
    )
    arrays, names = data.read_npz(path, 10)
    return (
        path,
        lambda: data.read_npz(path, 10),
        lambda found: _equal(arrays, found[0]) and found[1] == names,
        data.DataError,
    )


def _lines(folder: Path) -> Reader:
    """JSON carries no digest: an object a line is all that is promised."""
    path = folder / "scores.jsonl"
    path.write_text("".join(f'{{"job": "a{k}", "seed": {k}, "correct": "0123"}}\n' for k in range(8)))
    return path, lambda: read_objects(path), lambda found: all(isinstance(each, dict) for each in found), InputError


def _frames(folder: Path) -> Reader:
    shape, path = (16, 16), folder / "u.nc"
    values = np.random.default_rng(0).random((3, *shape))
    frames = FileFrames(path, 3, shape, 2)
    for number, value in enumerate(values):
        frames.put(number, value)
    partial_path = path.with_name(path.name + ".partial")

    def read() -> Array:
        import h5netcdf

        FileFrames(path, 3, shape, 2).restore({})
        with h5netcdf.File(partial_path, "r") as file:
            return np.asarray(file["u"][...])

    return partial_path, read, partial(_equal, values), CheckpointError


READERS: dict[str, Callable[[Path], Reader]] = {
    "checkpoint of a network": _network_checkpoint,
    "restart file of a solve": _restart_file,
    "images in .npz": _images,
    "records in .jsonl": _lines,
    "frames in NetCDF": _frames,
}


# Solve: rounding


def sampler_rounding(n: int, seed: int) -> Measured:
    """At how many of n points means of float32 and float64 paths, which are drawn apart, are within 1.96 errors."""
    points = np.random.default_rng(seed).uniform(size=(n, 2))
    options: Any = {"num_paths": 1024, "num_steps": 32, "rng": seed}
    double = feynman_kac(problem_of(2), points, **options)
    single = feynman_kac(problem_of(2), points, sampling=Sampling(dtype="float32"), **options)
    z = (single.mean - double.mean) / np.hypot(single.standard_error, double.standard_error)
    return share(np.abs(z) <= special.ndtri(1 - LEVEL / 2), f"mean z {z.mean():.3f}")


def _digits(n: int) -> tuple[Tensor, Tensor]:
    found = data.load("digits")
    return found.images(found.train.x)[:n], found.train.y[:n]


@cache
def _network() -> nn.Module:
    model = en_resnet(8, num_members=1, in_channels=1, width=4, noise_coef=0.0, seed=0)
    return model.eval()


def network_rounding(n: int, seed: int) -> Measured:
    """Largest difference of probabilities of a ResNet8."""
    del seed
    x, _ = _digits(n)
    double = copy.deepcopy(_network()).double()
    with torch.no_grad():
        apart = _network()(x).softmax(1).double() - double(x.double()).softmax(1)
    return exact(float(apart.abs().max()), n, "largest of all")


def attack_rounding(n: int, seed: int) -> Measured:
    """How often the classes under IFGSM in float32 and float64 differ."""
    del seed
    x, y = _digits(n)
    double = copy.deepcopy(_network()).double()
    attack: Any = {"eps": 0.1, "step_size": 0.025, "num_steps": 8}
    single = _network()(attacks.ifgsm(_network(), x, y, **attack)).argmax(1)
    other = double(attacks.ifgsm(double, x.double(), y, **attack)).argmax(1)
    return share(single != other)


# Solve: the same bits


def differing_bits(n: int, seed: int, executor: bool) -> Measured:
    """Numbers that differ between one thread and two, or between this process and two others, over n seeds."""
    points, differ, total = places(2), 0, 0
    options: Any = {"num_paths": 2000, "num_steps": 16, "bias": True}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        for number in range(n):
            rng = seed + number
            numba.set_num_threads(1)
            one = feynman_kac(PICKLED, points, rng=rng, **options)
            numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
            two = feynman_kac(PICKLED, points, rng=rng, executor=processes if executor else None, **options)
            for name in ("mean", "standard_error", "bias_estimate"):
                differ += int((getattr(one, name) != getattr(two, name)).sum())
                total += len(points)
    return exact(differ, total)


PICKLED = ConvectionDiffusion(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8)), hill, 0.2)


def solver_bits(n: int, seed: int) -> Measured:
    differ = 0
    for number in range(n):
        nodes = np.random.default_rng(seed + number).uniform(-1, 1, (2, 8, 8))
        problem = ConvectionDiffusion(nodes, hill, 0.2)
        found = []
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            found.append(solve(problem, num_points=512, dt=0.1, method="spectral_rk4").u[0].values)
        differ += int((found[0] != found[1]).sum())
    return exact(differ, n * 512**2)


# The rows

COVERED = 1 - LEVEL
ALARM, ABOUT, AT_LEAST = (0.0, LEVEL), (COVERED - 0.01, COVERED + 0.01), (COVERED, 1.0)
DIMENSIONS = (1, 2)
CHANGES = ("σ +1%", "σ -1%", "σ +0.1%", "F +1%", "F -1%", "F +0.1%", "f +1%", "one node off")
ADJOINTS = ("spectral_rk4", "spectral_ab4", "spectral_krylov")

_of_ensembles = partial(ensemble_interval, law=(-1.0, 1.5))

# fmt: off
ROWS = [
    *(Row("verify", f"false alarms, {dim}-D", "rejects a right solution in 5% at most", ALARM,
          600, partial(false_alarms, dim), least=2) for dim in DIMENSIONS),
    *(Row("verify", f"bounds, {dim}-D", "the true deviation lies between the bounds in 95% at least", AT_LEAST,
          600, partial(bounds_hold, dim), least=2) for dim in DIMENSIONS),
    *(Row("verify", f"power, {dim}-D, {change}", "none: how often it is rejected", None,
          100, partial(power, dim, change), least=1) for dim in DIMENSIONS for change in CHANGES),

    Row("intervals", "paths", "covers 95%, give or take a point", ABOUT,
        20_000, partial(paths_interval, sampling=Sampling()), least=20),
    Row("intervals", "paths, antithetic", "covers 95%, give or take a point", ABOUT,
        20_000, partial(paths_interval, sampling=Sampling(antithetic=True)), least=20),
    Row("intervals", "paths, Sobol", "covers 95%, give or take a point", ABOUT,
        20_000, partial(paths_interval, sampling=Sampling(qmc=True)), least=20),
    Row("intervals", "paths, Sobol, 8 steps", "covers 95%, give or take a point", ABOUT,
        20_000, partial(paths_interval, sampling=Sampling(qmc=True), num_steps=8), least=20),
    Row("intervals", "paths with bias, Euler", "covers 95% at least", AT_LEAST,
        4000, partial(biased_interval, scheme="euler"), least=10),
    Row("intervals", "paths with bias, Heun", "covers 95% at least", AT_LEAST,
        4000, partial(biased_interval, scheme="heun"), least=10),
    Row("intervals", "paths to a tolerance", "the error is within it in 95%, give or take two points", (0.93, 1.0),
        4000, tolerance_met, least=10),
    Row("intervals", "multilevel", "mean square error over rmse² is 1 at most", (0.0, 1.0),
        1000, multilevel_error, least=4),
    Row("intervals", "Clopper-Pearson", "covers 95% at least", AT_LEAST,
        2000, partial(binomial_coverage, interval=clopper_pearson, least=True), least=40),
    Row("intervals", "Wilson", "covers 95% on average, give or take a point", ABOUT,
        2000, partial(binomial_coverage, interval=wilson, least=False), least=40),
    Row("intervals", "mean accuracy", "covers 94% at least", (0.94, 1.0),
        20_000, partial(accuracy_interval, paired=False), least=20),
    Row("intervals", "paired difference", "covers 94% at least", (0.94, 1.0),
        20_000, partial(accuracy_interval, paired=True), least=20),
    Row("intervals", "ensemble, bets", "covers 95% at least", AT_LEAST,
        20_000, partial(_of_ensembles, num_draws=50), least=200),
    Row("intervals", "ensemble, bets, small mean", "covers 95% at least", AT_LEAST,
        20_000, partial(ensemble_interval, law=(-8.0, 2.0), num_draws=200), least=200),
    Row("intervals", "ensemble, Student", "within 1.5 points of 95%", (0.935, 0.965),
        20_000, partial(_of_ensembles, num_draws=50, kind="student"), least=200),
    Row("intervals", "ensemble, to a target", "covers 95% at least", AT_LEAST,
        10_000, partial(_of_ensembles, target_error=0.1), least=200),
    Row("intervals", "ensemble, decisions", "at most 5% are decided wrongly", ALARM,
        10_000, wrong_decisions, least=200),
    Row("intervals", "certificate", "at most 5% of the radii are too large", ALARM,
        10_000, certificate_failures, least=20),
    Row("intervals", "calibration, ECE", "covers 85% at least", (0.85, 1.0),
        4000, partial(calibration_interval, name="ece"), least=10),
    Row("intervals", "calibration, NLL", "covers 95%, give or take two points", (0.93, 0.97),
        4000, partial(calibration_interval, name="nll"), least=10),
    Row("intervals", "calibration, Brier", "covers 95%, give or take two points", (0.93, 0.97),
        4000, partial(calibration_interval, name="brier"), least=10),

    Row("orders", "Lawson RK4", "4", (3.8, 4.2),
        4, partial(order_in_time, method="spectral_rk4", steps=(20, 40, 80, 160)), least=2),
    Row("orders", "Krogstad RK4, σ(x)", "4", (3.8, 4.2),
        4, partial(order_in_time, method="spectral_rk4", steps=(40, 80, 160, 320), sigma=uneven), least=2),
    Row("orders", "AB4", "4", (3.8, 4.2),
        4, partial(order_in_time, method="spectral_ab4", steps=(160, 240, 320, 640)), least=2),
    Row("orders", "semi-Lagrangian", "2", (1.8, 2.2),
        3, partial(order_in_time, method="semi_lagrangian", steps=(5, 10, 20)), least=2),
    Row("orders", "Euler-Maruyama, weak", "1", (0.75, 1.25),
        2_000_000, partial(weak_order, scheme="euler", steps=(16, 32, 64), constant=True), least=2000),
    Row("orders", "Heun, weak", "2", (1.75, 2.25),
        2_000_000, partial(weak_order, scheme="heun", steps=(12, 16, 24), constant=True), least=2000),
    Row("orders", "Platen, weak, σ(x)", "2", (1.75, 2.25),
        10_000_000, partial(weak_order, scheme="heun", steps=(12, 16, 24), constant=False), least=2000),
    *(Row("orders", f"adjoint, {name}", "derivatives agree with differences to 1e-7", (0.0, 1e-7),
          40, partial(adjoint_error, method=name)) for name in ADJOINTS),
    Row("orders", "density, pairing under AB4", "4", (3.5, 4.5), 3, pairing),
    Row("orders", "density, mass", "is kept to 1e-11", (0.0, 1e-11), 40, mass_change),

    *(Row("damage", reader, "at most 1 in 1,000 is misread, or ends otherwise than by one line", (0.0, 1e-3),
          10_000, partial(damage, reader=reader), least=20) for reader in READERS),

    Row("rounding", "paths in float32", "within 1.96 errors of those in float64 in 95%, give or take a point", ABOUT,
        20_000, sampler_rounding, least=20),
    Row("rounding", "network in float32", "moves a probability by less than 1e-5", (0.0, 1e-5),
        500, network_rounding, least=20),
    Row("rounding", "attack in float32", "changes the class of 1% at most", (0.0, 0.01),
        1000, attack_rounding, least=20),

    Row("bits", "paths by threads", "no bit differs", (0.0, 0.0), 40, partial(differing_bits, executor=False)),
    Row("bits", "paths by executor", "no bit differs", (0.0, 0.0), 20, partial(differing_bits, executor=True)),
    Row("bits", "solver by threads", "no bit differs", (0.0, 0.0), 5, solver_bits),
]
# fmt: on


# What is shown


def report(stored: dict[str, Any]) -> None:
    """Print the rows."""
    colours = {HOLDS: "green", FAILS: "red"}
    columns: dict[str, Any] = {
        "promise of": lambda row: f"{row['group']}: {row['name']}",
        "promised": "{promise}",
        "measured": lambda row: number_of(row),
        "n": "{n:,}",
        "verdict": lambda row: f"[{colours.get(row['verdict'], 'yellow')}]{row['verdict'] or 'no promise'}[/]",
    }
    show("Promises and measurements", columns, stored["rows"], num_texts=2)


def number_of(row: dict[str, Any]) -> str:
    error = f" ± {row['standard_error']:.2g}" if row["standard_error"] else ""
    return f"{row['value']:.4g}{error}"


def write_page(stored: dict[str, Any], out: Path) -> None:
    """Write certify.html from the stored numbers alone."""
    groups = {name: [row for row in stored["rows"] if row["group"] == name] for name in dict.fromkeys(TITLES)}
    template = environment(autoescape=True).get_template("certify.html")
    page = template.render(stored=stored, groups=groups, titles=TITLES, number_of=number_of)
    (out / "certify.html").write_text(page, encoding="utf-8")


TITLES = {
    "verify": "Verdicts of verify",
    "intervals": "Coverage of intervals",
    "orders": "Orders, adjoints and densities",
    "damage": "Damaged files",
    "rounding": "float32 beside float64",
    "bits": "The same bits",
}


if __name__ == "__main__":
    typer.run(main)
