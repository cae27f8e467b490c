"""Coverage of intervals: of means of paths, of proportions and accuracies, of ensembles and of calibration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor, nn

from bridge.ensemble import IntervalWarning, ensemble_estimate
from netkit import certify
from netkit.calibration import calibration_of
from netkit.intervals import mean_accuracy, paired_difference
from netkit.noise import NoiseStream
from pdekit import ConvectionDiffusion, Estimate, Sampling, Tolerance, feynman_kac, multilevel
from studies.certificate import LEVEL
from studies.certificate.equations import drifting, drifting_value, linear, square_after
from studies.lab.promises import Measured, exact, mean, share

# Means of paths


def estimates(n: int, seed: int, problem: ConvectionDiffusion, start: float, **options: Any) -> Iterator[Estimate]:
    """Independent estimates of E f(X_1) from X_0 = start."""
    for number in range(n):
        yield feynman_kac(problem, [[start]], rng=np.random.default_rng([seed, number]), **options)


def covers(found: Estimate, exact_value: float) -> bool:
    low, high = found.confidence_interval(1 - LEVEL)
    return bool(low[0] <= exact_value <= high[0])


def paths_interval(n: int, seed: int, sampling: Sampling, num_steps: int = 1) -> Measured:
    """Of E f(X_1) by paths that every step moves exactly."""
    options: Any = {"num_paths": 400, "num_steps": num_steps, "scheme": "euler", "sampling": sampling}
    exact_value = drifting_value(0.15, 0.2)
    return share([covers(found, exact_value) for found in estimates(n, seed, drifting(0.2), 0.15, **options)])


def biased_interval(n: int, seed: int, scheme: str) -> Measured:
    options: Any = {"num_paths": 1000, "num_steps": 16, "scheme": scheme, "bias": True}
    exact_value = square_after(1.5, constant=True)
    return share([covers(found, exact_value) for found in estimates(n, seed, linear(constant=True), 1.5, **options)])


def tolerance_met(n: int, seed: int) -> Measured:
    tolerance = Tolerance(atol=0.02, confidence=1 - LEVEL)
    options: Any = {"num_paths": 500, "num_steps": 1, "scheme": "euler", "tolerance": tolerance}
    exact_value = drifting_value(0.15, 0.2)
    means = np.array([found.mean[0] for found in estimates(n, seed, drifting(0.2), 0.15, **options)])
    return share(np.abs(means - exact_value) <= tolerance.atol)


def multilevel_error(n: int, seed: int) -> Measured:
    """(error / rmse)², whose mean is the mean square error in units of what was asked for."""
    problem, exact_value, rmse = linear(constant=True), square_after(1.5, constant=True), 0.01
    errors = [
        multilevel(problem, [[1.5]], rmse=rmse, scheme="euler", rng=np.random.default_rng([seed, number])).mean[0]
        - exact_value
        for number in range(n)
    ]
    return mean((np.array(errors) / rmse) ** 2)


# Proportions and accuracies


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
            held.append(0.0 in paired_difference(first, scores_on(first, generator)).interval)
        else:
            held.append(true in mean_accuracy(first))
    return share(held)


def scores(generator: torch.Generator, p: Tensor, num_seeds: int, spread: float) -> list[Tensor]:
    """Correctness (n,) of `num_seeds` networks on fresh images, right with chance p but for the skill of each."""
    chosen = p[torch.randint(len(p), (200,), generator=generator)]
    skills = spread * torch.randn(num_seeds, 1, generator=generator, dtype=torch.float64)
    chances = (chosen.logit() + skills).sigmoid()
    return list((torch.rand(chances.shape, generator=generator, dtype=torch.float64) < chances).double())


def scores_on(first: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Of other networks on the same images: each answer exchanged with a coin, so that no side is better."""
    other = []
    for each in first:
        swap = torch.rand(each.shape, generator=generator) < 0.15
        other.append(torch.where(swap, (torch.rand(each.shape, generator=generator) < each.mean()).double(), each))
    return other


# Ensembles, certificates and calibration


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
    abstained = float(found.abstained.double().mean())
    return share((found.radius > 0.1) | (found.prediction == 1), f"{abstained:.0%} abstain")


def answers(n: int, generator: torch.Generator, sharpness: float) -> tuple[Tensor, Tensor]:
    logits = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return (sharpness * logits).softmax(1), y


def calibration_interval(n: int, seed: int, name: str) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    truth = getattr(calibration_of(*answers(400_000, generator, 2.0)).mean, name).value
    held = []
    for number in range(n):
        found = calibration_of(*answers(200, generator, 2.0), seed=seed + number)
        held.append(truth in getattr(found.mean, name).interval)
    return share(held)
