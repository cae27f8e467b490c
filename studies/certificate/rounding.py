"""float32 beside float64, and the same bits whatever the threads and processes."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from scipy import special
from torch import Tensor, nn

from netkit import attacks, data, en_resnet
from pdekit import ConvectionDiffusion, Sampling, feynman_kac, solve
from studies.certificate import LEVEL
from studies.certificate.equations import hill, places, problem_of
from studies.lab.promises import Measured, exact, share

# float32 beside float64


def sampler_rounding(n: int, seed: int) -> Measured:
    """At how many of n points means of float32 and float64 paths, which are drawn apart, are within 1.96 errors."""
    points = np.random.default_rng(seed).uniform(size=(n, 2))
    options: Any = {"num_paths": 1024, "num_steps": 32}
    double = feynman_kac(problem_of(2), points, rng=2 * seed, **options)
    single = feynman_kac(problem_of(2), points, rng=2 * seed + 1, sampling=Sampling(dtype="float32"), **options)
    z = (single.mean - double.mean) / np.hypot(single.standard_error, double.standard_error)
    return share(np.abs(z) <= special.ndtri(1 - LEVEL / 2), f"mean z {z.mean():.3f}")


def network_rounding(n: int, seed: int) -> Measured:
    """Largest difference of probabilities of a ResNet8."""
    del seed
    x, _ = _digits(n)
    with torch.no_grad():
        single, double = (_network(dtype)(x.to(dtype)).softmax(1) for dtype in (torch.float32, torch.float64))
    return exact(float((single.double() - double).abs().max()), n, "largest of all")


def attack_rounding(n: int, seed: int) -> Measured:
    """How often the classes under IFGSM in float32 and float64 differ."""
    del seed
    x, y = _digits(n)
    classes = []
    for dtype in (torch.float32, torch.float64):
        model = _network(dtype)
        classes.append(model(attacks.ifgsm(model, x.to(dtype), y, eps=0.1, step_size=0.025, num_steps=8)).argmax(1))
    return share(classes[0] != classes[1])


def _digits(n: int) -> tuple[Tensor, Tensor]:
    found = data.load("digits")
    return found.images(found.train.x)[:n], found.train.y[:n]


@cache
def _network(dtype: torch.dtype) -> nn.Module:
    model = en_resnet(8, num_members=1, in_channels=1, width=4, noise_coef=0.0, seed=0)
    return model.eval().to(dtype)


# The same bits

THREADS = (1, min(2, numba.config.NUMBA_NUM_THREADS))


def random_problem(seed: int) -> ConvectionDiffusion:
    """Made of arrays and a named function, so that other processes can have it."""
    return ConvectionDiffusion(np.random.default_rng(seed).uniform(-1, 1, (2, 8, 8)), hill, 0.2)


def differing_bits(n: int, seed: int, executor: bool) -> Measured:
    """Numbers that differ between one thread and two, or between this process and two others, over n seeds."""
    problem, points, differ, total = random_problem(0), places(2), 0, 0
    options: Any = {"num_paths": 2000, "num_steps": 16, "bias": True}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        for number in range(n):
            rng = seed + number
            numba.set_num_threads(THREADS[0])
            one = feynman_kac(problem, points, rng=rng, **options)
            numba.set_num_threads(THREADS[1])
            two = feynman_kac(problem, points, rng=rng, executor=processes if executor else None, **options)
            for name in ("mean", "standard_error", "bias_estimate"):
                differ += int((getattr(one, name) != getattr(two, name)).sum())
                total += len(points)
    return exact(differ, total)


def solver_bits(n: int, seed: int) -> Measured:
    differ = 0
    for number in range(n):
        found = []
        for threads in THREADS:
            numba.set_num_threads(threads)
            solution = solve(random_problem(seed + number), num_points=512, dt=0.1, method="spectral_rk4")
            found.append(solution.u[0].values)
        differ += int((found[0] != found[1]).sum())
    return exact(differ, n * 512**2)
