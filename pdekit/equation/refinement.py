"""The error of a solution from a second solve: what another grid and step change."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.operator import Grid
from pdekit.equation.plan import UnstableError
from pdekit.equation.solver import solve
from pdekit.numerics.spectral import resample
from pdekit.problem import ConvectionDiffusion

if TYPE_CHECKING:
    import xarray as xr


def change(
    problem: ConvectionDiffusion,
    solution: xr.Dataset,
    *,
    num_points: int | Grid,
    dt: float,
    rtol: float | None = None,
    progress: bool | None = None,
) -> NDArray[np.float64] | None:
    """u(x, 0) of a solve on another grid less that of `solution`, on its nodes; None where it is unstable.

    The second solve takes the method of `solution`, which must be one of `solve` and have a frame at t = 0. It warns of
    nothing: whatever its grid lacks is in the difference.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = solve(
                problem, num_points=num_points, dt=dt, method=solution.attrs["method"], rtol=rtol, progress=progress
            )
    except UnstableError:
        return None
    here = solution.u.sel(time=0.0).values
    return resample(other.u.sel(time=0.0).values, here.shape[: problem.dim], axes=tuple(range(problem.dim))) - here
