"""Does a solution of the PDE agree with the paths of its own process? A verdict with every error in it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from pdekit.characteristics import check_points
from pdekit.equation.coefficients import bound
from pdekit.equation.plan import UnstableError
from pdekit.equation.refinement import change
from pdekit.equation.resolution import ResolutionWarning
from pdekit.equation.solver import solve
from pdekit.numerics.splines import spline_table
from pdekit.paths.control import by_axes
from pdekit.paths.estimate import BiasWarning, Estimate
from pdekit.paths.sampler import Rng, feynman_kac
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_fraction, check_whole, real_values

if TYPE_CHECKING:
    import xarray as xr

_MOST_WORK = 1e9  # nodes times steps of the solve on a doubled grid: half a minute in 2-D
_SLOWEST = 0.75  # differences of doubled grids that fall more slowly than this are not extrapolated any further
_FROM_THE_WORST = ("disagrees", "inconclusive", "agrees")


@dataclass(frozen=True, eq=False)
class Verification:
    """Solution against paths at P points; of K terminal functions it is that of the worst.

    z: (P,), (solution - paths) / error; error: (P,), root of the summed squares of the paths' sampling error, their
    time-step error and the solution's own error.
    p_value: probability that χ² with P degrees of freedom exceeds Σz², were the solution right and all errors
        standard deviations. The time-step and solution errors are sizes that are rarely exceeded, so that where they
        matter a right solution is rejected less often than the level says.
    bounds: of the root mean square over the points of the solution's deviation from u, whatever its own error is said
        to be: with probability 1 - level it lies between the two, by the errors of the paths alone.
    scale: half the range of u(x, 0), as solution and paths show it, but not more than half the range of f.
    tolerance: the root-mean-square deviation that has to be excluded for an agreement, `resolves` · scale.

    field: number of the terminal function, None where there is one alone; level: that of each of num_fields functions,
        so that all together keep the level asked for (Bonferroni).

    verdict: "disagrees" where no error explains the deviations (p_value < level), "agrees" where one does and the paths
        alone prove that the deviation is within the tolerance, "inconclusive" where they do not: paths too few, or a
        grid so coarse that its error could hide a wrong solution. `reason` says what would decide it.
    """

    points: NDArray[np.float64]
    solution: NDArray[np.float64]
    estimate: Estimate
    solution_error: NDArray[np.float64]
    level: float
    resolves: float
    scale: float
    rounding: float
    field: int | None = None
    num_fields: int = 1

    @property
    def deviation(self) -> NDArray[np.float64]:
        """solution - paths, (P,)."""
        return self.solution - self.estimate.mean

    @property
    def path_error(self) -> NDArray[np.float64]:
        """Of sampling and time step, (P,); rounding alone is left where nothing is random, as for a constant f."""
        return np.hypot(self.estimate.total_error(), self.rounding)

    @property
    def error(self) -> NDArray[np.float64]:
        return np.hypot(self.path_error, self.solution_error)

    @property
    def z(self) -> NDArray[np.float64]:
        return self.deviation / self.error

    @property
    def p_value(self) -> float:
        return float(scipy.special.chdtrc(len(self.z), float((self.z**2).sum())))

    @property
    def tolerance(self) -> float:
        return max(self.resolves * self.scale, 100.0 * self.rounding)

    @property
    def bounds(self) -> tuple[float, float]:
        middle, noise = _rms(self.deviation), self._noise()
        return max(0.0, middle - noise), middle + noise

    def _noise(self) -> float:
        """Bound that the rms of P normal errors exceeds with probability `level`, by Satterthwaite's χ²."""
        variances = self.path_error**2
        degrees = float(variances.sum() ** 2 / (variances**2).sum())
        return float(np.sqrt(scipy.special.chdtri(degrees, self.level) / degrees * variances.mean()))

    @property
    def verdict(self) -> str:
        if self.p_value < self.level:
            return "disagrees"
        return "agrees" if self.bounds[1] <= self.tolerance else "inconclusive"

    @property
    def passed(self) -> bool:
        """Whether the verdict is "agrees"; an inconclusive one is not a pass."""
        return self.verdict == "agrees"

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, and for an inconclusive one what would decide it."""
        least, most = self.bounds
        if self.verdict == "disagrees":
            return f"no error explains deviations of {_rms(self.deviation):.2g} (rms)"
        if self.verdict == "agrees":
            return f"its deviation (rms) is {most:.2g} at most, where {self.tolerance:.2g} is allowed"
        finer = "solve on a finer grid or with a smaller dt"
        if least > self.tolerance:
            return (
                f"it is certainly off by {least:.2g}, where {self.tolerance:.2g} is allowed; "
                f"its own error of {_rms(self.solution_error):.2g} explains that and would hide a mistake: {finer}"
            )
        cause = f"a deviation of {most:.2g} is not excluded, where {self.tolerance:.2g} has to be"
        excess = 2.5 * self._noise() / self.tolerance  # a right solution adds about 0.7 of the noise to the bound
        if excess <= 1.0:
            return f"{cause}; the deviations themselves are near it: {finer}"
        e = self.estimate
        if _rms(e.bias_estimate) > 0.5 * _rms(self.path_error):
            return f"{cause}; the paths' time step decides: take more than {e.num_steps} steps"
        paths = 1000 * ceil(e.num_paths * excess**2 / 1000)
        return f"{cause}; take about num_paths={paths}, or keep more frames in the solution"

    def __repr__(self) -> str:
        verb = {
            "agrees": "agrees with",
            "disagrees": "does NOT agree with",
            "inconclusive": "may or may not agree with",
        }
        e = self.estimate
        which = "" if self.field is None else f" {self.field}, the worst of {self.num_fields},"
        return (
            f"Verification: {self.verdict}; the solution{which} {verb[self.verdict]} its paths "
            f"at {len(self.z)} points: "
            f"{self.reason} (p = {self.p_value:.2g}, level {self.level:g}; rms z {_rms(self.z):.2f}, "
            f"largest |z| {np.abs(self.z).max():.2f}; errors (rms): sampling {_rms(e.standard_error):.2g}, "
            f"time step {_rms(e.bias_estimate):.2g}, solution {_rms(self.solution_error):.2g})"
        )


def verify(
    problem: ConvectionDiffusion,
    solution: xr.Dataset,
    points: ArrayLike,
    *,
    num_paths: int = 16_384,
    num_steps: int = 128,
    level: float = 1e-3,
    resolves: float = 0.05,
    solution_error: ArrayLike | None = None,
    rng: Rng = None,
    progress: bool | None = None,
) -> Verification:
    """Compare u(x, 0) of a solution with Feynman-Kac paths of the problem at points (P, d).

    The solution also serves as control variate: that sharpens the test, and cannot hide a wrong solution, because
    the control's mean is zero whatever it is. Keep some frames (`times` of `solve`) to make it sharp.

    solution: u over (time, x, ...[, field]), in any order where these are the names, on the nodes a + i (b - a) / N
        of the box, a frame at t = 0 among them; of any origin if `solution_error` is given, of `solve` otherwise. Of K
        terminal functions the worst decides.
    num_paths, num_steps: of the paths (scheme "heun"); the time-step error is estimated by doubling the step.
    level: the solution is rejected where the p-value is smaller; bounds hold with probability 1 - level.
    resolves: an agreement has to exclude deviations of this fraction of half the range of u(x, 0); where paths
        cannot, the verdict is "inconclusive".
    rng: as in `feynman_kac`; `estimate.seed` of the result repeats it.
    solution_error: the solution's own error at the points, a number, (P,) or (P, K); estimated by default from three
        solves of the problem, on the solution's grid, a finer and a coarser one.

    Warns with `ResolutionWarning` where F, f, σ, V or g are functions without the period of the box: paths see them as
    they are.

    Raises ValueError where the solution has no frame at t = 0, lacks what `solve` records and no `solution_error` is
    given, does not lie on the nodes, or sigma is 0 (compare with method "characteristics" there).
    """
    if problem.noise.none:
        raise ValueError("verify: expected sigma > 0; at sigma = 0 compare with solve(..., method='characteristics')")
    level, resolves = check_fraction("level", level), check_fraction("resolves", resolves)
    num_paths, num_steps = check_whole("num_paths", num_paths, 2), check_whole("num_steps", num_steps, 2)
    if num_steps % 2:
        raise ValueError(f"num_steps: expected an even number, as the step is doubled, got {num_steps}")
    x = check_points(points, problem)
    for message in problem.check_periodic():
        warnings.warn(message, ResolutionWarning, stacklevel=2)
    solution = _checked(problem, solution)
    if solution_error is None and {"dt", "method"} - set(solution.attrs):
        raise ValueError("verify: expected a Dataset as solve() returns it, or the solution's own solution_error=")
    field = solution.u[0].values
    places = problem.to_unit(x)
    claimed = _at(field, places)
    if solution_error is not None:
        own = _admitted(solution_error, claimed)
    elif "error_estimate" in solution.attrs:
        own = _error_of_a_tolerance(problem, solution, places, progress)
    else:
        own = _own_error(problem, solution, places, progress)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasWarning)  # the wider error of the bias is in the verdict
        estimate = feynman_kac(
            problem,
            x,
            num_paths=num_paths,
            num_steps=num_steps,
            scheme="heun",
            control=solution,
            bias=True,
            rng=rng,
            progress=progress,
        )
    grid = field.shape[: problem.dim]
    terminal = problem.terminal_nodes(grid)
    rounding = 1e-12 * max(float(np.abs(solution.u).max()), 1e-300)
    if problem.num_fields is None:
        scale = _scale(problem, field, estimate.mean, terminal)
        return Verification(x, claimed, estimate, own, level, resolves, scale, rounding)
    found = []
    for k in range(problem.num_fields):
        alone = _only(estimate, k)
        scale = _scale(problem, field[..., k], alone.mean, terminal[..., k])
        share = level / problem.num_fields
        one = Verification(x, claimed[:, k], alone, own[:, k], share, resolves, scale, rounding, k, problem.num_fields)
        found.append(one)
    return min(found, key=lambda one: (_FROM_THE_WORST.index(one.verdict), one.p_value))


def _only(estimate: Estimate, k: int) -> Estimate:
    """The estimate of one of several functions."""
    assert estimate.bias_estimate is not None
    assert estimate.bias_standard_error is not None
    return replace(
        estimate,
        mean=estimate.mean[:, k],
        standard_error=estimate.standard_error[:, k],
        bias_estimate=estimate.bias_estimate[:, k],
        bias_standard_error=estimate.bias_standard_error[:, k],
    )


def _scale(problem: ConvectionDiffusion, field: NDArray, mean: NDArray, terminal: NDArray) -> float:
    """Half the range of u(x, 0), as solution and paths show it, but no more than f, V and g allow."""
    seen = 0.5 * float(max(np.ptp(field), np.ptp(mean)))
    if problem.potential is None and problem.source is None:
        return min(seen, 0.5 * float(np.ptp(terminal)))
    return min(seen, bound(problem.on_unit_box, float(np.abs(terminal).max()), terminal.shape))


def _checked(problem: ConvectionDiffusion, solution: xr.Dataset) -> xr.Dataset:
    """The solution with time first and increasing, or a ValueError."""
    import xarray as xr  # with pandas half of the package's import

    if not isinstance(solution, xr.Dataset):
        raise ValueError(f"verify: expected a Dataset as solve() returns it, got {type(solution).__name__}")
    u = solution.get("u")
    space = [] if u is None else [name for name in u.dims if name not in ("time", "field")]
    several = u is not None and "field" in u.dims
    if u is not None and several != (problem.num_fields is not None):
        raise ValueError(f"verify: expected u of {problem.num_fields or 'one'} functions, got dimensions {u.dims}")
    if u is None or "time" not in u.coords or u.ndim != len(space) + 1 + several or len(space) != problem.dim:
        found = f"variables {list(solution.data_vars)}" if u is None else f"u over {u.dims}"
        raise ValueError(
            f"verify: expected u over time and {problem.dim} space dimensions, as solve() returns it, got {found}"
        )
    if u.dtype.kind not in "fiu" or not np.isfinite(u.values).all():
        raise ValueError(f"verify: expected finite real values u, got dtype {u.dtype}, {_bad(u.values)} not finite")
    solution = by_axes(solution)
    if abs(float(solution.time.values[0])) > 1e-12 or (np.diff(solution.time.values) <= 0).any():
        raise ValueError(f"verify: expected different times, with a frame at t = 0, got {u.time.values}")
    for name, a, length in zip(solution.u.dims[1 : 1 + problem.dim], problem.origin, problem.lengths, strict=True):
        count = u.sizes[name]
        spacing = length / count
        if name in u.coords and not np.allclose(
            u[name].values, a + spacing * np.arange(count), rtol=0, atol=1e-6 * spacing
        ):
            expected = f"i / {count}" if problem.box is None else f"{a:g} + i · {length:g} / {count}"
            raise ValueError(
                f"verify: expected the nodes {expected} along {name}, without the end of the box, "
                f"got {u[name].values[0]:g} to {u[name].values[-1]:g}"
            )
    return solution


def _bad(values: NDArray) -> int:
    return int(np.sum(~np.isfinite(values)))


def _admitted(solution_error: ArrayLike, claimed: NDArray[np.float64]) -> NDArray[np.float64]:
    own = real_values("solution_error", solution_error)
    if own.shape not in ((), claimed.shape):
        raise ValueError(f"solution_error: expected a number or shape {claimed.shape}, got {own.shape}")
    own = np.broadcast_to(own, claimed.shape)
    if not (own >= 0.0).all():
        raise ValueError(f"solution_error: expected numbers >= 0, got {own.min():g}")
    return own


def _error_of_a_tolerance(
    problem: ConvectionDiffusion, solution: xr.Dataset, x: NDArray, progress: bool | None
) -> NDArray[np.float64]:
    """The error (P,) of a solve with a tolerance: what a tenth of it changes, and the estimate of that solve."""
    rtol = max(0.1 * float(solution.attrs["rtol"]), 1e-13)
    here, finer = (
        solve(problem, num_points=_grid(problem, solution), rtol=r, times=[0.0], progress=progress)
        for r in (float(solution.attrs["rtol"]), rtol)
    )
    change = _at(finer.u[0].values - here.u[0].values, x)
    return np.abs(change) + float(finer.attrs["error_estimate"])


def _own_error(
    problem: ConvectionDiffusion, solution: xr.Dataset, x: NDArray, progress: bool | None
) -> NDArray[np.float64]:
    """The error of u_N: the difference to u_2N, a geometric series on from there, at the points (P,).

    Differences of doubled grids (steps halved with them) that fall by ρ leave |u_2N - u_N| / (1 - ρ); ρ comes from
    u_{N/2}. Where u_2N is out of reach, |u_N - u_{N/2}| stands for it, an upper bound where the solution converges.
    Each is the larger of the value at the point and the root mean square over the grid. x: in the unit box.
    Infinite where a grid is unstable: nothing is known of the error then.
    """
    grid, attrs = _grid(problem, solution), solution.attrs
    dt, rtol = float(attrs["dt"]), attrs.get("rtol")
    unknown = (len(x),) if problem.num_fields is None else (len(x), problem.num_fields)
    coarser_dt = dt if problem.velocity.jumps else 2.0 * dt
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever the grid lacks shows in the differences
            here = solve(problem, num_points=grid, dt=dt, method=str(attrs["method"]), rtol=rtol, progress=progress)
    except UnstableError:
        return np.full(unknown, np.inf)

    def changed(factor: float, dt: float) -> NDArray[np.float64] | None:
        tighter = None if rtol is None else rtol / 10.0 ** np.sign(factor - 1.0)
        other = tuple(max(8, round(factor * n)) for n in grid)
        return change(problem, here, num_points=other, dt=dt, rtol=tighter, progress=progress)

    coarse = changed(0.5, coarser_dt)
    affordable = prod(2 * n for n in grid) * 2 * problem.horizon / dt <= _MOST_WORK
    difference = changed(2.0, 0.5 * dt) if affordable else coarse
    if difference is None:
        return np.full(unknown, np.inf)
    ratio = 0.0
    if affordable:
        ratio = _SLOWEST
        if coarse is not None and (before := _rms(coarse)) > 0.0:
            ratio = min(_SLOWEST, _rms(difference) / before)
    return np.maximum(np.abs(_at(difference, x)), _rms(difference)) / (1.0 - ratio)


def _grid(problem: ConvectionDiffusion, solution: xr.Dataset) -> tuple[int, ...]:
    """Nodes along each axis."""
    return tuple(solution.u.shape[1 : 1 + problem.dim])


def _at(field: NDArray, x: NDArray) -> NDArray[np.float64]:
    """Node values (N₁, ..., N_d[, K]) at points (P, d) of the unit box, (P,) or (P, K)."""
    several = field.ndim > x.shape[1]
    values = spline_table(np.moveaxis(field, -1, 0) if several else field[None], "trigonometric")(x)
    return values if several else values[..., 0]


def _rms(values: NDArray | None) -> float:
    return float("nan") if values is None else float(np.sqrt(np.mean(values**2)))
