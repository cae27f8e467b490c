"""Equations that rows measure on: flows to solve, and equations whose answers have a closed form."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdekit import ConvectionDiffusion, compiled
from pdekit.fastmath import cos, sin

Array = NDArray[np.float64]
TAU = 2 * np.pi
SIGMA = 0.1


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


def mode(x: Array) -> Array:
    return np.asarray(np.cos(TAU * x[..., 0]))


def places(dim: int) -> Array:
    """Points (24, dim) that solutions are compared at."""
    return np.random.default_rng(8).uniform(size=(24, dim))


def problem_of(dim: int, sigma: float = SIGMA, *, factor: float = 1.0, terminal: Any = hill) -> ConvectionDiffusion:
    return ConvectionDiffusion(velocity(dim, factor), terminal, sigma)


def drifting(sigma: float) -> ConvectionDiffusion:
    """Constant F = 0.3 and one mode: every scheme is exact, u = exp(-½τ²σ²) cos τ(x + 0.3)."""
    return ConvectionDiffusion(drift, mode, sigma)


def drifting_value(x: float, sigma: float) -> float:
    return math.exp(-0.5 * (TAU * sigma) ** 2) * math.cos(TAU * (x + 0.3))


def linear(*, constant: bool) -> ConvectionDiffusion:
    """dX = -2 X dt + σ dB in the whole line, f = x²; σ = ½, or σ² = ¼(1 + X²)."""
    noise = 0.5 if constant else spread
    return ConvectionDiffusion(restoring, lambda x: x[..., 0] ** 2, noise, domain="space")


def square_after(start: float, *, constant: bool) -> float:
    """E X² at time 1 of the linear equation, from m' = -4 m + σ²."""
    rate, source = (-4.0, 0.25) if constant else (-3.75, 0.25)
    return (start**2 + source / rate) * math.exp(rate) - source / rate
