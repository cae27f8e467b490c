"""The ensemble against the equation: one network's mean over noise, an independent PDE solve, and every error between.

|mean - u| consists of the sampling error of the mean, the time step of the network (weak order 1 in 1/L) and the grid
of the PDE. All three are estimated, none is assumed: the first from the draws, the second from twice as many blocks
on the same Brownian paths, the third from a second grid.

A mistake smaller than these errors, such as two neighbouring blocks in the wrong order, goes unseen in `compare`.
`scheme_residual` has none of the three: it sets the network beside Euler-Maruyama steps of the equation, path by path.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike, NDArray

from bridge.flow import FlowNetwork, ProblemNetwork, as_points
from bridge.levels import coarsened
from netkit.checks import check_counts
from pdekit import ConvectionDiffusion, UnstableError, solve
from pdekit.equation.refinement import change
from pdekit.numerics.splines import spline_table

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
_BATCH = 8192  # points times draws in one pass: small enough for a cache


@dataclass(frozen=True, eq=False)
class PointValues:
    """u(x, 0) at points (P,), the error of the grid there (P,), and the variance (P,) of f(X_1) itself.

    The variance is that of a single draw if network and equation agree. It comes from a PDE too, as E[f²] solves the
    same equation. The variance of a few draws would not do: where f(X_1) is nearly always 0 and rarely 1, it is too
    small exactly where their mean is.
    """

    value: Array
    grid_error: Array
    variance: Array


def solution_at(
    problem: ConvectionDiffusion, points: ArrayLike, *, num_points: int = 192, dt: float = 0.02, method: str = "auto"
) -> PointValues:
    """u(z, 0) at points (P, d) of the unit box, with the difference from a coarser solve as its error.

    The coarser solve has 3/4 of the nodes and twice the step, so its error is several times larger.
    """

    def squared(z: Array) -> Array:
        return problem.evaluate_terminal(z) ** 2

    def at_points(case: ConvectionDiffusion) -> tuple[xr.Dataset, Array]:
        solution = solve(case, num_points=num_points, dt=dt, method=method, progress=False)
        return solution, spline_table(solution.u[:1].values, "trigonometric")(points)[..., 0]

    solution, value = at_points(problem)
    _, square = at_points(replace(problem, terminal=squared))
    coarser = change(problem, solution, num_points=3 * num_points // 4, dt=2 * dt, progress=False)
    if coarser is None:
        raise UnstableError(f"the coarser solve with 2 dt = {2 * dt:g} is unstable; use a smaller dt")
    error = np.abs(spline_table(coarser[None], "trigonometric")(points)[..., 0])
    return PointValues(value, error, np.maximum(square - value**2, 0.0))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Ensemble mean and PDE at P points; arrays (P,).

    mean, standard_error: of the network's probability over `num_draws` draws, the error from their own variance or
        from that of the equation, whichever is larger.
    bias, bias_standard_error: how far the time step moves the mean, 2 (E P_L - E P_2L), and its sampling error.
    solution, grid_error: u(x, 0).
    corrected, corrected_standard_error: of 2 P_2L - P_L, whose time-step error is of second order.
    """

    mean: Array
    standard_error: Array
    bias: Array
    bias_standard_error: Array
    corrected: Array
    corrected_standard_error: Array
    solution: Array
    grid_error: Array
    num_draws: int
    num_blocks: int

    def total_error(self, level: float = 0.95) -> Array:
        """Half-width (P,) of the stated error: sampling at `level`, time step, and grid, one on top of the other."""
        z = scipy.stats.norm.ppf(0.5 + 0.5 * level)
        return z * self.standard_error + np.abs(self.bias) + z * self.bias_standard_error + self.grid_error

    def coverage(self, level: float = 0.95) -> float:
        """Share of points where |mean - u| is within the stated error."""
        return float(np.mean(np.abs(self.mean - self.solution) <= self.total_error(level)))

    @property
    def z(self) -> Array:
        """(corrected mean - u) in standard deviations (P,), the grid error counted as one."""
        # a probability of 1e-12 has a rounding error too
        error = np.sqrt(self.corrected_standard_error**2 + self.grid_error**2 + 1e-12)
        return (self.corrected - self.solution) / error

    @property
    def p_value(self) -> float:
        """Chance of so large a Σ z² if network and equation agree; tiny for a wrong σ or a wrong order of blocks."""
        return float(scipy.stats.chi2.sf((self.z**2).sum(), len(self.z)))

    @property
    def agrees(self) -> bool:
        """Coverage of at least 95% and no sign of disagreement at a level of 1 in 1,000."""
        return self.coverage() >= 0.95 and self.p_value >= 1e-3

    @property
    def rms(self) -> float:
        """Root-mean-square of (mean - u) over the points, the sampling error taken out."""
        return rms_without_noise(self.mean - self.solution, self.standard_error)


def rms_without_noise(difference: Array, standard_error: Array) -> float:
    """(mean(difference² - standard_error²))^½, zero where that is negative."""
    return float(np.sqrt(max(0.0, float(np.mean(difference**2 - standard_error**2)))))


def compare(
    network: FlowNetwork,
    points: ArrayLike,
    solution: PointValues,
    *,
    num_draws: int = 1000,
    label: int = 1,
    generator: torch.Generator,
) -> Comparison:
    """Run the noisy network `num_draws` times at points (P, d) of R^d, and again with twice the blocks.

    The refined network keeps the given order of blocks, so that a wrong order is not refined away.

    Raises ValueError for fewer than two draws or points that do not match the solution.
    """
    x = as_points(points, network)
    check_counts(2, num_draws=num_draws)
    if x.shape[:-1] != solution.value.shape:
        raise ValueError(f"points: expected {len(solution.value)}, as the solution has, got {tuple(x.shape)}")
    order = [2 * position + half for position in network.order for half in (0, 1)]
    refined = network.variant(num_blocks=2 * network.num_blocks, order=order)
    sums = torch.zeros(6, len(x), dtype=torch.float64)
    each = max(1, min(num_draws, _BATCH // len(x)))
    done = 0
    with torch.no_grad():
        while done < num_draws:
            count = min(each, num_draws - done)
            repeated = x.repeat(count, 1)
            increments = network.brownian(repeated, refined.num_blocks, generator)
            coarse = network(repeated, coarsened(increments, 2)).softmax(-1)[:, label]
            fine = refined(repeated, increments).softmax(-1)[:, label]
            coarse, fine = (v.double().cpu().view(count, -1) for v in (coarse, fine))
            for row, v in enumerate((coarse, 2 * (coarse - fine), 2 * fine - coarse)):
                sums[2 * row] += v.sum(0)
                sums[2 * row + 1] += v.square().sum(0)
            done += count
    n = float(num_draws)
    mean = (sums[0::2] / n).numpy()
    variance = np.maximum((sums[1::2] / n).numpy() - mean**2, 0.0) * n / (n - 1.0)
    for row in (0, 2):
        variance[row] = np.maximum(variance[row], solution.variance)
    errors = np.sqrt(variance / n)
    return Comparison(
        mean[0], errors[0], mean[1], errors[1], mean[2], errors[2],
        solution.value, solution.grid_error, num_draws, network.num_blocks,
    )  # fmt: skip


def scheme_residual(
    network: FlowNetwork,
    problem: ConvectionDiffusion,
    points: ArrayLike,
    *,
    label: int = 1,
    generator: torch.Generator,
) -> Array:
    """The network's probability minus the Euler-Maruyama scheme's of a problem, on one Brownian path a point (P,).

    problem: the equation that the network is declared to discretise, `network_problem` of the network as it should
        be. A problem taken from a network that may be wrong is wrong in the same way and shows nothing: velocity, σ
        and f are compared with themselves then. Only the order of the blocks, unknown to the problem, is checked.
    points: (P, d) of R^d. generator: of the paths, on the CPU.

    Both sides take as many steps, in float64 on the same increments, so the residual of the right network is rounding,
    about 1e-15, and every other residual is a mistake: there is no time step, grid or sampling to hide one. Paths that
    leave [-inner, inner]^d differ as well, since f is led to 1/K out there; see `Box.escape_probability`.

    Raises ValueError for a velocity without a box.
    """
    network = copy.deepcopy(network).double().cpu()
    x = as_points(points, network)
    z = network.box.to_unit(x)
    increments = network.brownian(x, network.num_blocks, generator)
    steps = ProblemNetwork(problem, num_blocks=network.num_blocks)
    with torch.no_grad():
        difference = network(x, increments).softmax(-1)[:, label] - steps(z, increments)[:, 0]
    return np.asarray(difference.numpy())
