"""The density of the paths, forward in time: the Fokker-Planck equation, transpose of the one that `solve` solves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.equation.march import Setup
from pdekit.equation.method import whole_steps
from pdekit.equation.operator import fft_library
from pdekit.equation.plan import Planner, growth_exponent, lost_modes, stands
from pdekit.equation.resolution import Flow
from pdekit.equation.solver import (
    DEFAULT_DT,
    DEFAULT_NUM_POINTS,
    DEFAULT_RTOL,
    Keep,
    checked_grid,
    computed,
    spectral,
    wanted_times,
)
from pdekit.field import node_points
from pdekit.problem import ConvectionDiffusion, Terminal
from pdekit.runtime.checks import check_real

if TYPE_CHECKING:
    import xarray as xr

_METHODS = ("auto", "spectral_krylov", "spectral_rk4", "spectral_ab4")
_LARGEST_LOST_MASS = 0.01  # of the mass
_EQUATION = "drho/dt = -div(F rho) + sum_ij d_i d_j ((sigma sigma^T)_ij rho)/2 - V rho"


def density(
    problem: ConvectionDiffusion,
    initial: Terminal | ArrayLike,
    *,
    num_points: int | tuple[int, ...] = DEFAULT_NUM_POINTS,
    dt: float | None = None,
    method: str = "auto",
    times: Sequence[float] | None = None,
    rtol: float | None = None,
    fft: str = "auto",
    progress: bool | None = None,
    seed: int | None = None,
) -> xr.Dataset:
    """The density of paths dX = F dt + σ dB that start with a given one, killed at the rate V (Fokker-Planck):

        ∂ρ/∂t = -∇·(Fρ) + ½ Σ ∂ᵢ∂ⱼ((σσᵀ)ᵢⱼ ρ) - Vρ,   ρ(x, 0) = ρ₀(x),   0 <= t <= T.

    It is the transpose of the equation of `solve`, to rounding on the same grid: ∫ρ(t) u(t) is constant where g = 0 (to
    the order of the steps), and ∫ρ where V = 0 as well. f and g of the problem have no part in it.

    initial: ρ₀, as a terminal condition: node values, or a callable x -> (...); with a further axis for several.
    num_points, dt, times, fft, progress, seed: as in `solve`; all frames are kept in memory.
    method: "spectral_krylov" (exact in time up to rtol, where F stands still or is redrawn), "spectral_rk4",
        "spectral_ab4", or "auto", the first where it can be and the second otherwise.
    rtol: of ∫|error| over ∫|ρ₀|, in time alone, for Krylov; 1e-8 by default.

    Returns a Dataset with `rho` over (time, x[, y[, z]][, field]) and attributes as those of `solve`. The field is cut
    off in Fourier space, so that it may fall below zero by what the grid does not resolve; warnings say when the tail
    of its modes does not fall off.

    Raises ValueError for what `solve` refuses, and other methods: the clamped steps have no transpose that conserves.
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(_METHODS)}, got {method!r}")
    if problem.domain == "space":
        raise ValueError("density: expected a box, got domain='space', which no grid holds")
    grid = checked_grid(num_points, problem.dim)
    dt = None if dt is None else check_real("dt", dt, "a positive step")
    given = replace(problem, terminal=initial, source=None)  # type: ignore[arg-type]
    unit = given.on_unit_box
    standing = stands(unit)
    if method == "auto":
        method = "spectral_krylov" if standing else "spectral_rk4"
    krylov = method == "spectral_krylov"
    if krylov and not standing:
        raise ValueError(f"method {method!r}: expected a velocity that stands still or jumps, and steady coefficients")
    if rtol is not None and not krylov:
        raise ValueError(f"rtol: expected method 'spectral_krylov', which it drives, got {method!r}")
    if krylov:
        rtol = DEFAULT_RTOL if rtol is None else check_real("rtol", rtol, "a positive number")
    if unit.velocity.jumps and method == "spectral_ab4":
        raise ValueError("a velocity that jumps in time needs a one-step method, got 'spectral_ab4'")
    num_steps = whole_steps(unit.horizon, dt or DEFAULT_DT)
    wanted = sorted(wanted_times(times, unit.horizon))
    if krylov:
        stops = [(t, t) for t in wanted]
    else:
        steps = sorted({round(t / unit.horizon * num_steps) for t in wanted})
        stops = [(unit.horizon * k / num_steps, unit.horizon * k / num_steps) for k in steps]
    flow = Flow.of(unit, grid, with_strain=False)
    first_stop = next((s for s, _ in stops if s > 0.0), 0.0)
    planner = Planner(unit, grid, flow, first_stop)
    plan = planner.plan(method)
    growth, unstable = growth_exponent(planner, plan, num_steps)
    library, duration = fft_library(fft), max(stops[-1][0], 1e-300)
    start = unit.terminal_nodes(grid)
    variation = np.atleast_1d(start.std(axis=tuple(range(unit.dim))))
    messages = [*lost_modes(planner, plan, grid), *unstable, *_lost_mass(unit, start)]
    setup = Setup(
        plan=plan,
        method=spectral(unit, planner, plan, num_steps, duration, rtol, library, transposed=True),
        flow=flow,
        stops=stops,
        num_steps=num_steps,
        terminal=start,
        bound=math.inf,  # a flow may carry it together: only its integral is bounded
        rtol=rtol,
        growth=growth,
        messages=messages,
        watched=(first_stop, variation) if planner.coupled else None,
    )
    solution = computed(given, setup, Keep(), library, progress, seed, equation=_EQUATION)
    return solution.sortby("time").rename(u="rho")


def _lost_mass(problem: ConvectionDiffusion, start: NDArray) -> Iterator[str]:
    """A line where ∫ρ₀ on the nodes is not what it is at many more points."""
    if not callable(problem.terminal):
        return
    over_space = tuple(range(problem.dim))
    finer = tuple(min(8 * n, max(n, 1024 if problem.dim < 3 else 128)) for n in start.shape[: problem.dim])
    here = start.mean(axis=over_space)
    there = problem.evaluate_terminal(node_points(finer, problem.dim) + 0.5 / np.array(finer)).mean(axis=over_space)
    if np.any(np.abs(here - there) > _LARGEST_LOST_MASS * np.abs(there)):
        yield (
            f"initial: its mean is {np.ravel(here)[0]:.4g} over the nodes and {np.ravel(there)[0]:.4g} over finer "
            "ones; use a larger num_points, or a wider start"
        )
