"""Does a solution of the PDE agree with the paths of its own process? z-scores with every error in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import special

from pdekit.estimate import Estimate
from pdekit.problem import ConvectionDiffusion
from pdekit.sampler import Rng, feynman_kac
from pdekit.solver import solve
from pdekit.spectral import resample
from pdekit.splines import spline_table
from pdekit.velocity import RedrawnVelocity


@dataclass(frozen=True, eq=False)
class Verification:
    """Solution against paths at P points.

    z: (P,), (solution - paths) / error; error: (P,), root of the summed squares of the paths' sampling error, their
    time-step error and the solution's own error.
    p_value: probability that χ² with P degrees of freedom exceeds Σz², were the solution right and all errors
        standard deviations. The time-step and solution errors are sizes that are rarely exceeded, so that where they
        matter a right solution is rejected less often than the level says.
    """

    points: NDArray[np.float64]
    solution: NDArray[np.float64]
    estimate: Estimate
    solution_error: NDArray[np.float64]
    z: NDArray[np.float64]
    level: float

    @property
    def error(self) -> NDArray[np.float64]:
        return np.hypot(self.estimate.total_error(), self.solution_error)

    @property
    def p_value(self) -> float:
        return float(special.chdtrc(len(self.z), float((self.z**2).sum())))

    @property
    def passed(self) -> bool:
        return self.p_value >= self.level

    def __repr__(self) -> str:
        verdict = "agrees with" if self.passed else "does NOT agree with"
        e = self.estimate
        return (
            f"Verification: the solution {verdict} its paths at {len(self.z)} points (p = {self.p_value:.2g}, "
            f"level {self.level:g}); rms z {np.sqrt(np.mean(self.z**2)):.2f}, largest |z| {np.abs(self.z).max():.2f}; "
            f"errors (rms): sampling {_rms(e.standard_error):.2g}, time step {_rms(e.bias_estimate):.2g}, "
            f"solution {_rms(self.solution_error):.2g}"
        )


def verify(
    problem: ConvectionDiffusion,
    solution: xr.Dataset,
    points: ArrayLike,
    *,
    num_paths: int = 16_384,
    num_steps: int = 128,
    level: float = 1e-3,
    solution_error: ArrayLike | None = None,
    rng: Rng = 0,
) -> Verification:
    """Compare u(x, 0) of a solution with Feynman-Kac paths of the problem at points (P, d).

    The solution also serves as control variate: that sharpens the test, and cannot hide a wrong solution, because
    the control's mean is zero whatever it is. Keep some frames (`times` of `solve`) to make it sharp.

    num_paths, num_steps: of the paths (Heun); the time-step error is estimated by doubling the step.
    level: the solution is rejected where the p-value is smaller.
    solution_error: the solution's own error at the points; estimated by default from two solves of the problem, on
        the solution's grid and on half of it with doubled dt.

    Raises ValueError where the solution has no frame at t = 0, lacks what `solve` records, or sigma is 0 (compare
    with method "characteristics" there).
    """
    if problem.sigma == 0.0:
        raise ValueError("verify: expected sigma > 0; at sigma = 0 compare with solve(..., method='characteristics')")
    missing = {"dt", "method"} - set(solution.attrs)
    if "u" not in solution or missing or abs(float(solution.time.values.min())) > 1e-12:
        raise ValueError("verify: expected a Dataset as solve() returns it, with a frame at t = 0")
    x = np.array(points, dtype=np.float64)
    claimed = _at(solution.sortby("time").u[0].values, x)
    estimate = feynman_kac(
        problem, x, num_paths=num_paths, num_steps=num_steps, scheme="heun", control=solution, bias=True, rng=rng
    )
    own = _own_error(problem, solution, x) if solution_error is None else np.broadcast_to(solution_error, claimed.shape)
    # rounding alone is left where nothing is random, as for a constant terminal condition
    rounding = 1e-12 * max(float(np.abs(solution.u).max()), 1e-300)
    error = np.hypot(np.hypot(estimate.total_error(), own), rounding)
    return Verification(x, claimed, estimate, np.asarray(own), (claimed - estimate.mean) / error, level)


def _own_error(problem: ConvectionDiffusion, solution: xr.Dataset, x: NDArray) -> NDArray[np.float64]:
    """|u_N - u_{N/2}| from two solves, at the points or its root mean square over the grid, whichever is larger."""
    n, dt, method = solution.sizes["x"], float(solution.attrs["dt"]), str(solution.attrs["method"])
    rtol = solution.attrs.get("rtol")
    fine = solve(problem, num_points=n, dt=dt, method=method, rtol=rtol, progress=False)
    coarse = solve(
        problem,
        num_points=max(n // 2, 8),
        dt=dt if isinstance(problem.velocity, RedrawnVelocity) else 2 * dt,
        method=method,
        rtol=None if rtol is None else 10 * rtol,
        progress=False,
    )
    on_grid = resample(coarse.u[0].values, n) - fine.u[0].values
    return np.maximum(np.abs(_at(on_grid, x)), _rms(on_grid))


def _at(field: NDArray, x: NDArray) -> NDArray[np.float64]:
    return spline_table(field[None], "trigonometric")(x)[..., 0]


def _rms(values: NDArray | None) -> float:
    return float("nan") if values is None else float(np.sqrt(np.mean(values**2)))
