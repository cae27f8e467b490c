"""How a problem is solved on a grid: the method, the modes it keeps, and whether its step is stable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.coefficients import Coefficients
from pdekit.equation.method import METHODS, Kind
from pdekit.equation.operator import Grid, cutoffs
from pdekit.equation.resolution import (
    LARGEST_LOSS,
    LARGEST_VELOCITY_LOSS,
    Flow,
    Spectrum,
    growth,
    other_spectra,
    terminal_spectra,
    velocity_spectra,
)
from pdekit.equation.steppers import StepperRK4
from pdekit.field import as_grid
from pdekit.numerics.diagnostics import cell_peclet, courant
from pdekit.problem import ConvectionDiffusion

DIFFUSION_REACH = 1.5  # the highest kept 2πk over sqrt(γ/ν), from which on diffusion ends the cascade on the grid
STEEPENING_LIMIT = 3.0  # γT up to which convection cannot steepen gradients by more than exp(3) = 20
LARGEST_GROWTH = 1.0  # exponent over the march of a mode that should not grow at all


class UnstableError(FloatingPointError):
    """A solve left the bound max|u| <= max|f| that the equation itself obeys, or is known to leave it."""


def choose_method(problem: ConvectionDiffusion, num_points: int | Grid) -> tuple[str, str]:
    """The method that "auto" stands for on a grid of `num_points` nodes an axis, and why.

    With a tolerance `solve` needs no grid, and takes as many modes as that asks for. On a grid it keeps Fourier modes
    where they hold f, as far as diffusion leaves it, and F, and where either diffusion ends the cascade within them,
    2πK >= 1.5 sqrt(γ/ν), or convection is too gentle to start one, γT <= 3; semi-Lagrangian everywhere else. γ is that
    of Theorem 2: a mode grows finer at the rate γ at most, and diffusion damps it at the rate ν(2πk)². Where the 2/3 of
    the modes that cost least do not suffice and all of them do, all are kept.

    In time a Krylov method is exact where F stands still or jumps, and taken where it needs fewer evaluations of F·∇u
    than the steps asked for (`krylov_applications`); for an F that changes all the time it is RK4, or Dormand-Prince
    steps with rtol. Evaluations of F·∇u for a smooth flow (the one of `studies/work_precision.py`, 128², T = 1) until
    the error in time is

                                                         1e-4    1e-6    1e-8   1e-10   1e-12
        steady F            Krylov                        268     320     376     408     460
                            Lawson RK4                    140     280     968    3008    9336
                            Lawson AB4                    219     219     657    2265       -
                            Dormand-Prince with rtol      223     439     769    2413    4297
        F(x, t), 64²,       Lawson RK4                    280     800    3200   12800       -
        one period in T     Lawson AB4                    219     609    2409    4809       -
                            Magnus of order 4 + Krylov    320     512    1536       -       -

    so that RK4 is the cheaper one only to few digits, and Magnus never worth its code.

    Largest errors for f between -1 and 1, T = 1, dt = 0.005, without padding, against 2πK / sqrt(γ/ν):

        F                              σ      N   criterion   Fourier modes   semi-Lagrangian
        1-D, 32 rough nodes            0.1    64        1.1           0.75              0.12
                                       0.2    64        2.2           0.023             0.025
        1-D, smooth spreading          0.02   64        0.9           0.082             0.11
                                       0.02  128        1.9           0.008             0.016
        2-D, 32² rough nodes           0.1    64        0.8           0.54              0.088
                                       0.1    96        1.2           0.21              0.029
                                       0.2    64        1.7           0.0025            0.0098
        2-D, 16² bilinear nodes        0.1    64        1.4           0.046             0.038
                                       0.1    96        2.0           0.012             0.015
        2-D, shear of both axes        0.03   64        1.1           0.040             0.027
                                       0.1    32        1.8           0.0012            0.0073
        2-D, smooth in x and t         0.02   48        0.8           0.048             0.058
                                       0.1    24        1.9           0.0049            0.015
        2-D, that shear ∝ sin 5πt      0.05   32        0.6           0.0002            0.022
        3-D, 8³ rough nodes            0.2    16        0.8           0.12              0.065
                                       0.4    16        1.6           0.0002            0.0009

    A flow that goes to and fro undoes what it does: there the criterion, which sees rates alone, is too careful.
    """
    problem, grid = problem.on_unit_box, as_grid(num_points, problem.dim)
    flow = Flow.of(problem, grid, with_strain=True)
    plan = Planner(problem, grid, flow, problem.horizon).plan("auto")
    return plan.method, plan.reason


@dataclass(frozen=True)
class Plan:
    """How a problem is solved on a grid, and the shares of f and F above the kept modes.

    resolved: modes are chosen by a tolerance, and no grid restricts them.
    """

    method: str
    reason: str
    padded: bool = True
    terminal_lost: float = 0.0
    velocity_lost: float = 0.0
    resolved: bool = False

    @property
    def kind(self) -> Kind:
        return METHODS[self.method]


class Planner:
    """Weigh which modes a method would keep. duration: from T back to the first frame, in which diffusion acts on f."""

    def __init__(self, problem: ConvectionDiffusion, grid: Grid, flow: Flow, duration: float) -> None:
        self._problem, self._grid, self.flow = problem, grid, flow
        self.damping = flow.diffusivity * duration
        self.terminal: list[Spectrum] = terminal_spectra(problem, grid)
        self.velocity = velocity_spectra(problem, grid, flow.times)
        self.others = other_spectra(problem, grid, flow.times)
        varies = any(v.beyond((0,) * problem.dim) > 1e-12 for v in self.velocity)
        # what varies in space makes modes feed others
        self.coupled = varies or problem.potential is not None or problem.noise.field is not None

    @cached_property
    def coefficients(self) -> Coefficients:
        """Those of the equation on the grid, for a method of Fourier modes."""
        return Coefficients(self._problem, self._grid)

    def lost(self, padded: bool) -> tuple[float, float]:
        """Shares of f and F above what is kept."""
        kept, of_velocity = zip(*(cutoffs(n, padded=padded) for n in self._grid), strict=True)
        terminal = max(f.beyond(kept, self.damping) for f in self.terminal)
        return terminal, max(v.beyond(of_velocity) for v in self.velocity)

    def holds(self, padded: bool) -> bool:
        terminal, velocity = self.lost(padded)
        return terminal <= LARGEST_LOSS and velocity <= LARGEST_VELOCITY_LOSS

    def plan(self, method: str, *, dt: float | None = None, rtol: float | None = None) -> Plan:
        """What a method means here; dt and rtol, as asked for, have a say in what "auto" means.

        Raises ValueError for a tolerance where the grid cannot deliver one.
        """
        if method != "auto":
            padded = not (METHODS[method].spectral and self.holds(False))
            return Plan(method, "requested", padded, *self.lost(padded))
        gamma, nu = self.flow.steepening, self.flow.diffusivity
        steepening = gamma * self._problem.horizon
        diffused = 0.0 if gamma <= 0.0 else math.sqrt(gamma / nu) if nu > 0.0 else math.inf
        peclet = f"cell Péclet number {cell_peclet(self.flow.speed, min(self._grid), nu):.3g}"
        for padded in (False, True):
            if not self.holds(padded):
                continue
            kept = 2.0 * math.pi * cutoffs(min(self._grid), padded=padded)[0]
            cascade = f"2πK = {kept:.3g}, sqrt(γ/ν) = {diffused:.3g}, γT = {steepening:.3g}, {peclet}"
            if kept >= DIFFUSION_REACH * diffused:
                reason = f"diffusion ends the cascade within the grid: {cascade}"
                return Plan(self._spectral(dt, rtol, padded), reason, padded, *self.lost(padded))
            if steepening <= STEEPENING_LIMIT:
                reason = f"convection makes no fine scales: {cascade}"
                return Plan(self._spectral(dt, rtol, padded), reason, padded, *self.lost(padded))
        terminal, velocity = self.lost(True)
        if self.holds(True):
            reason = f"convection makes scales finer than the grid: {cascade}"
        else:
            reason = f"the modes of the grid lack {terminal:.2g} of f and {velocity:.2g} of F, {peclet}"
        if rtol is not None:
            raise ValueError(f"rtol: expected a problem for Fourier modes, but {reason}; give dt alone")
        covariance = self._problem.noise.constant
        if covariance is None or np.count_nonzero(covariance @ covariance.T) > self._problem.dim:
            reason += "; semi-Lagrangian steps would need a sigma that is a number or a vector"
            return Plan(self._spectral(dt, rtol, True), reason, True, terminal, velocity)
        return Plan("semi_lagrangian", reason, True, terminal, velocity)

    def _spectral(self, dt: float | None, rtol: float | None, padded: bool) -> str:
        """The way through time of a problem that the modes resolve: the one that takes fewest evaluations of F·∇u."""
        if not stands(self._problem):
            return "spectral_rk4" if rtol is None else "spectral_adaptive"
        if dt is None or rtol is not None:
            return "spectral_krylov"
        cutoff, horizon = cutoffs(max(self._grid), padded=padded)[0], self._problem.horizon
        largest = self.coefficients.largest_diffusivity
        krylov = krylov_applications(self.flow, cutoff, self._problem.dim, largest, horizon, 1e-8)
        krylov = max(krylov, 12.0 * horizon / self._problem.velocity.interval)  # each piece begins a basis
        return "spectral_krylov" if krylov < 4.0 * horizon / dt else "spectral_rk4"


def krylov_applications(flow: Flow, cutoff: int, dim: int, diffusivity: float, horizon: float, rtol: float) -> float:
    """About how often a Krylov method applies A = F·∇ + ν Δ on modes up to the cutoff, to a relative error.

    The larger of what convection, |λ| <= ω, and diffusion, |λ| <= ρ, take, for bases of 40 vectors: X is where the
    Bessel function J_40(X) is as small as rtol X / 40. Measured: 0.7 to 1.5 times that for smooth F, down to a third
    for rough F.
    """
    omega = 2.0 * math.pi * cutoff * float(flow.fastest.max())
    rho = diffusivity * (2.0 * math.pi * cutoff) ** 2 * dim
    reach = float(np.interp(math.log10(rtol), [-12.0, -8.0, -4.0], [16.0, 21.0, 28.0]))
    return 1.4 * max(0.36 * 40.0 * omega / reach, rho * math.log(10.0 / rtol) / 160.0) * horizon


def stands(problem: ConvectionDiffusion) -> bool:
    """Whether all of the equation stands still in time, or jumps."""
    others = (problem.noise.field, problem.potential, problem.source)
    return problem.velocity.interval > 0.0 and all(field is None or field.steady for field in others)


def lost_modes(planner: Planner, plan: Plan, grid: Grid) -> Iterator[str]:
    """One line for each of f, F, V, g and σ whose modes the grid cannot hold."""
    nodes = " x ".join(str(n) for n in sorted(set(grid)))
    if plan.terminal_lost > LARGEST_LOSS:
        needed = 2 * max(f.cutoff_for(LARGEST_LOSS, planner.damping) for f in planner.terminal) + 2
        yield (
            f"terminal: the grid of {nodes} nodes cannot hold {plan.terminal_lost:.2g} of f (root mean square); "
            f"use num_points >= {needed}"
        )
    if plan.velocity_lost > LARGEST_VELOCITY_LOSS and plan.kind.spectral:
        needed = 2 * max(v.cutoff_for(LARGEST_VELOCITY_LOSS) for v in planner.velocity) + 2
        yield (
            f"velocity: the grid of {nodes} nodes cannot hold {plan.velocity_lost:.2g} of F (root mean square); "
            f"use num_points >= {needed}"
        )
    kept = [cutoffs(n, padded=plan.padded)[1] for n in grid]
    for name, spectra in planner.others.items():
        lost = max(spectrum.beyond(kept) for spectrum in spectra)
        if lost > LARGEST_VELOCITY_LOSS and plan.kind.spectral:
            letter = {"potential": "V", "source": "g", "sigma": "σσᵀ"}[name]
            needed = 2 * max(spectrum.cutoff_for(LARGEST_VELOCITY_LOSS) for spectrum in spectra) + 2
            yield (
                f"{name}: the grid of {nodes} nodes cannot hold {lost:.2g} of {letter} (root mean square); "
                f"use num_points >= {needed}"
            )


def growth_exponent(planner: Planner, plan: Plan, num_steps: int) -> tuple[float | None, list[str]]:
    """Growth exponent of the worst kept mode, for a fixed step with a stability region, and the warning it deserves.

    Raises `UnstableError` where a mode grows at the typical |F|; warns where one does at the largest, which F may reach
    in too few places for that to matter.
    """
    amplification = plan.kind.amplification
    if amplification is None:
        return None, []

    flow, coefficients = planner.flow, planner.coefficients
    grid, horizon = coefficients.grid, coefficients.problem.horizon
    if coefficients.explicit_diffusivity > 0.0 and plan.method == "spectral_rk4":
        amplification = StepperRK4.exponential_amplification

    def exponent(rates: NDArray, steps: int) -> float:
        return growth(
            amplification,
            rates,
            flow,
            cutoff=tuple(cutoffs(n, padded=plan.padded)[0] for n in grid),
            diffusion=coefficients.diffusion,
            dt=horizon / steps,
            num_steps=steps,
            explicit=coefficients.explicit_diffusivity,
        )

    largest = exponent(flow.fastest, num_steps)
    if largest <= LARGEST_GROWTH:
        return largest, []
    steps = num_steps
    while exponent(flow.fastest, steps) > LARGEST_GROWTH:
        steps = math.ceil(1.02 * steps)
    dt = horizon / num_steps
    number = courant(flow.speed, max(grid), dt)
    message = (
        f"dt: {dt:.4g} lies outside the stability region of '{plan.method}' for the modes of "
        f"{max(grid)} nodes and |F| up to {flow.speed:.3g} (Courant number {number:.3g}); "
        f"use a smaller dt, at most {horizon / steps:.4g}"
    )
    if exponent(flow.typical, num_steps) > LARGEST_GROWTH:
        raise UnstableError(message)
    return largest, [message]
