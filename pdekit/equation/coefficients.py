"""The equation as a sum of products: which terms it has, what of them is exact in time, and their coefficients.

    u' = L u + Σ_c a_c D^c u + g   in reversed time s = T - t

L has the means over the box of ½σσᵀ and V, which a method applies exactly; the coefficients a_c are F and what ½σσᵀ and
-V have beyond those means.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.operator import Grid, SpectralOperator, Term, bandlimit, gradient_terms
from pdekit.field import Field, as_grid
from pdekit.noise import largest_eigenvalue, pairs, smallest_eigenvalue
from pdekit.numerics.diagnostics import max_speed
from pdekit.problem import ConvectionDiffusion

INSTANTS = 9  # at which fields that change in time are looked at for their means


class Coefficients:
    """Those of a problem on the unit box, on the nodes of a grid.

    diffusion: (d, d), the mean of ½σσᵀ; killing: the mean of V; terms: of the products; bands: the highest |k| of
        steady coefficients along each axis, None for others; speed_met: the largest |F| handed out, for one that
        changes.
    """

    def __init__(self, problem: ConvectionDiffusion, grid: Grid) -> None:
        self.problem, self.grid = problem, grid
        dim, noise, potential = problem.dim, problem.noise, problem.potential
        times = np.linspace(0.0, problem.horizon, INSTANTS)
        over_space = tuple(range(-dim, 0))
        if noise.constant is not None:
            self.diffusion = 0.5 * noise.constant @ noise.constant.T
        else:
            looks = [noise.covariance_nodes(grid, t).mean(axis=over_space) for t in looked_at(noise.field, times)]
            self.diffusion = 0.5 * np.mean(looks, axis=0)
        self.killing = 0.0
        if potential is not None:
            self.killing = float(np.mean([potential.nodes(grid, t).mean() for t in looked_at(potential, times)]))
        varies = potential is not None and not (potential.steady and np.ptp(potential.nodes(grid, 0.0)) == 0.0)
        self.terms: tuple[Term, ...] = gradient_terms(dim)
        self._potential = potential if varies else None
        if varies:
            self.terms += ((0,) * dim,)
        if noise.field is not None:
            self.terms += tuple(_pair_term(i, j, dim) for i, j in pairs(dim))
        self.speed_met = 0.0
        self.steady = problem.velocity.steady and noise.steady and (not varies or potential.steady)  # type: ignore[union-attr]
        self.bands = bandlimit(self.nodes(0.0)) if self.steady else None

    @cached_property
    def largest_diffusivity(self) -> float:
        """The largest eigenvalue of ½σσᵀ anywhere."""
        noise, dim = self.problem.noise, self.problem.dim
        if noise.constant is not None:
            return self.mean_diffusivity
        looks = looked_at(noise.field, np.linspace(0.0, self.problem.horizon, INSTANTS))
        matrices = [np.moveaxis(noise.covariance_nodes(self.grid, t), (0, 1), (dim, dim + 1)) for t in looks]
        return 0.5 * max(largest_eigenvalue(m) for m in matrices)

    @property
    def mean_diffusivity(self) -> float:
        """The largest eigenvalue of its mean."""
        return largest_eigenvalue(self.diffusion)

    def symbol(self, operator: SpectralOperator) -> NDArray[np.float64]:
        """Of L on kept modes."""
        return operator.second_order(self.diffusion) - self.killing

    def nodes(self, t: float, velocity: Field | None = None) -> NDArray[np.float64]:
        """a_c (C, N₁, ..., N_d) at a time; velocity: the piece of F that stands, where it jumps."""
        problem, dim = self.problem, self.problem.dim
        flow = (velocity or problem.velocity).nodes(self.grid, t)
        if not problem.velocity.steady:
            self.speed_met = max(self.speed_met, max_speed(flow))
        parts = [flow]
        if self._potential is not None:
            parts.append(self.killing - self._potential.nodes(self.grid, t))
        if problem.noise.field is not None:
            beyond = 0.5 * problem.noise.covariance_nodes(self.grid, t) - self.diffusion[(..., *[None] * dim)]
            parts.append(np.stack([beyond[i, j] * (1.0 if i == j else 2.0) for i, j in pairs(dim)]))
        return np.concatenate(parts) if len(parts) > 1 else flow


def _pair_term(i: int, j: int, dim: int) -> Term:
    return tuple(int(axis == i) + int(axis == j) for axis in range(dim))


def looked_at(field: Field | None, times: NDArray) -> Sequence[float]:
    return [0.0] if field is None or field.steady else times.tolist()


def least_diffusivity(problem: ConvectionDiffusion, num_points: int | Grid, times: Sequence[float]) -> float:
    """The smallest eigenvalue of ½σσᵀ over the nodes of a grid and some times."""
    noise = problem.noise
    if noise.constant is not None:
        return 0.5 * smallest_eigenvalue(noise.constant @ noise.constant.T)
    grid, dim = as_grid(num_points, problem.dim), problem.dim
    return min(
        0.5 * smallest_eigenvalue(np.moveaxis(noise.covariance_nodes(grid, t), (0, 1), (dim, dim + 1))) for t in times
    )


def growth(problem: ConvectionDiffusion, num_points: int | Grid) -> float:
    """exp(T max(-V)₊), by which a negative potential lets u grow at most, by the nodes of a grid and some times."""
    if problem.potential is None:
        return 1.0
    times = looked_at(problem.potential, np.linspace(0.0, problem.horizon, INSTANTS))
    rate = max(-float(problem.potential.nodes(num_points, t).min()) for t in times)
    return float(np.exp(max(rate, 0.0) * problem.horizon))


def bound(problem: ConvectionDiffusion, largest: float, num_points: int | Grid) -> float:
    """max|u| <= exp(T max(-V)₊) (max|f| + T max|g|), the maximum principle; largest: max|f|."""
    added = 0.0
    if problem.source is not None:
        times = looked_at(problem.source, np.linspace(0.0, problem.horizon, INSTANTS))
        added = max(float(np.abs(problem.source.nodes(num_points, t)).max()) for t in times)
    return growth(problem, num_points) * (largest + problem.horizon * added)
