"""The equation as a sum of products: which terms it has, what of them is exact in time, and their coefficients.

    u' = L u + Σ_c a_c D^c u + g   in reversed time s = T - t

L has the means over the box of ½σσᵀ and V, which a method applies exactly; the coefficients a_c are F and what ½σσᵀ and
-V have beyond those means. Where σ varies so much that a step would not be stable with that, L gets more, D̄ in place of
the mean so that ½σσᵀ <= 3/2 D̄ everywhere: what is left to the step is damped by what it treats exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.operator import Grid, SpectralOperator, Term, bandlimit, gradient_terms
from pdekit.field import Field, as_grid
from pdekit.noise import largest_eigenvalue, smallest_eigenvalue
from pdekit.numerics.diagnostics import max_speed
from pdekit.problem import ConvectionDiffusion

INSTANTS = 9  # at which fields that change in time are looked at for their means


class Coefficients:
    """Those of a problem on the unit box, on the nodes of a grid.

    diffusion: (d, d), D̄; mean_diffusion: the mean of ½σσᵀ; killing: the mean of V; terms: of the products; speed_met:
        the largest |F| handed out, for one that changes.
    """

    def __init__(self, problem: ConvectionDiffusion, grid: Grid) -> None:
        self.problem, self.grid = problem, grid
        self.explicit_diffusivity = 0.0  # the largest that is left to the step
        dim, noise, potential = problem.dim, problem.noise, problem.potential
        times = np.linspace(0.0, problem.horizon, INSTANTS)
        if noise.constant is not None:
            self.diffusion = self.mean_diffusion = 0.5 * noise.constant @ noise.constant.T
        else:
            self.diffusion = self._enough([noise.covariance_nodes(grid, t) for t in looked_at(noise.field, times)])
        self.killing = 0.0
        if potential is not None:
            self.killing = float(np.mean([potential.nodes(grid, t).mean() for t in looked_at(potential, times)]))
        varies = potential is not None and not (potential.steady and np.ptp(potential.nodes(grid, 0.0)) == 0.0)
        self.terms: tuple[Term, ...] = gradient_terms(dim)
        self._potential = potential if varies else None
        if varies:
            self.terms += ((0,) * dim,)
        if noise.field is not None:
            self.terms += tuple(_pair_term(i, j, dim) for i, j in noise.pairs)
        self.speed_met = 0.0
        self.steady = problem.velocity.steady and noise.steady and (not varies or potential.steady)  # type: ignore[union-attr]

    @cached_property
    def bands(self) -> Grid | None:
        """The highest |k| of steady coefficients along each axis, None for others."""
        return bandlimit(self.nodes(0.0)) if self.steady else None

    @property
    def largest_diffusivity(self) -> float:
        """The largest eigenvalue of ½σσᵀ anywhere."""
        return largest_eigenvalue(self.diffusion) + self.explicit_diffusivity

    def _enough(self, covariances: Sequence[NDArray]) -> NDArray[np.float64]:
        """D̄ from a = σσᵀ (d, d, N₁, ..., N_d) at some times: the mean, and what makes ½a <= 3/2 D̄."""
        dim = self.problem.dim
        diffusions = [0.5 * np.moveaxis(a, (0, 1), (dim, dim + 1)) for a in covariances]
        mean = np.mean([d.mean(axis=tuple(range(dim))) for d in diffusions], axis=0)
        lacking = max(largest_eigenvalue(d - 1.5 * mean) for d in diffusions)
        self.mean_diffusion = np.asarray(mean)
        enough = self.mean_diffusion + max(lacking, 0.0) / 1.5 * np.eye(dim)
        self.explicit_diffusivity = max(largest_eigenvalue(d - enough) for d in diffusions)
        return enough

    def symbol(self, operator: SpectralOperator) -> NDArray[np.float64]:
        """Of L on kept modes."""
        return operator.second_order(self.diffusion) - self.killing

    def parts(self, velocity: Field | None = None) -> list[tuple[Field, Callable[[float], NDArray]]]:
        """(what it comes from, its rows of `nodes` as a function of time), one after the other."""
        flow = velocity or self.problem.velocity
        found: list[tuple[Field, Callable[[float], NDArray]]] = [(flow, partial(self._flow_nodes, flow))]
        if (potential := self._potential) is not None:
            found.append((potential, lambda t: self.killing - potential.nodes(self.grid, t)))
        if self.problem.noise.field is not None:
            found.append((self.problem.noise.field, self._diffusion_nodes))
        return found

    def nodes(self, t: float, velocity: Field | None = None) -> NDArray[np.float64]:
        """a_c (C, N₁, ..., N_d) at a time; velocity: the piece of F that stands, where it jumps."""
        return np.concatenate([nodes(t) for _, nodes in self.parts(velocity)])

    def _flow_nodes(self, flow: Field, t: float) -> NDArray[np.float64]:
        nodes = flow.nodes(self.grid, t)
        if not self.problem.velocity.steady:
            self.speed_met = max(self.speed_met, max_speed(nodes))
        return nodes

    def _diffusion_nodes(self, t: float) -> NDArray[np.float64]:
        """What ½a_ij is beyond D̄, twice for i < j, which stand for two elements."""
        noise = self.problem.noise
        nodes = noise.half_covariance_nodes(self.grid, t)
        for (i, j), own in zip(noise.pairs, nodes, strict=True):
            own -= self.diffusion[i, j]
            own *= 1.0 if i == j else 2.0
        return nodes


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
