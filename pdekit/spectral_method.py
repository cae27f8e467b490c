"""The convection-diffusion equation on kept Fourier modes: what joins the advection term to a time stepper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdekit.advection import SpectralAdvection, bandlimit
from pdekit.diagnostics import max_speed
from pdekit.problem import ConvectionDiffusion
from pdekit.steppers import StepperAB4, StepperDP5, StepperRK4
from pdekit.velocity import RedrawnVelocity


class SpectralMethod:
    """The equation on kept Fourier modes, advanced by one of the Lawson steppers."""

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        num_points: int,
        dt: float,
        kind: str,
        padded: bool = False,
        fft: str = "auto",
        rtol: float | None = None,
    ) -> None:
        self.problem = problem
        cutoff = bandlimit(problem.velocity_nodes(num_points, 0.0)) if problem.autonomous else None
        self.advection = SpectralAdvection(num_points, problem.dim, velocity_cutoff=cutoff, padded=padded, fft=fft)
        self._velocity: NDArray | None = None
        self._velocity_key: float | int | None = None
        self.speed_met = 0.0  # the largest |F| that was used, for an F that changes
        symbol = problem.diffusivity * self.advection.laplacian
        if kind == "spectral_rk4":
            self.stepper: Any = StepperRK4(symbol, self._advance, dt)
        elif kind == "spectral_ab4":
            self.stepper = StepperAB4(symbol, self._advance, dt)
        else:
            assert rtol is not None
            self.stepper = StepperDP5(symbol, self._advance, dt, norm=self.norm, rtol=rtol)
        self.order, self.history, self.restore = (
            self.stepper.order,
            self.stepper.history,
            self.stepper.restore,
        )

    def _advance(self, u_hat: NDArray, s: float, out: NDArray) -> None:
        self.advection.evaluate(u_hat, self._velocity_at(self.problem.horizon - s), out)

    def _velocity_at(self, t: float) -> NDArray:
        velocity = self.problem.velocity
        if isinstance(velocity, RedrawnVelocity):
            t = self._step_start  # the step's own interval also at its end, which belongs to the next one
        key: float | int = 0 if self.problem.autonomous else t
        if isinstance(velocity, RedrawnVelocity):
            key = velocity.index(t)
        if key != self._velocity_key:
            nodes = self.problem.velocity_nodes(self.advection.num_points, t)
            if not self.problem.autonomous:
                self.speed_met = max(self.speed_met, max_speed(nodes))
            self._velocity = self.advection.prepare_velocity(nodes)
            self._velocity_key = key
        assert self._velocity is not None
        return self._velocity

    def start(self, field: NDArray) -> NDArray:
        return self.advection.to_modes(field)

    def field(self, u_hat: NDArray) -> NDArray[np.float64]:
        return self.advection.to_grid(u_hat)

    def norm(self, u_hat: NDArray) -> float:
        return math.sqrt(self.advection.mean_square(u_hat))

    def step(self, u_hat: NDArray, s: float, limit: float = math.inf) -> float:
        if isinstance(self.stepper, StepperDP5):
            return self.stepper.step(u_hat, s, limit)
        self._step_start = self.problem.horizon - s - self.stepper.dt
        return self.stepper.step(u_hat, s)

    def energies(self, u_hat: NDArray) -> tuple[float, float]:
        return self.advection.energies(u_hat)

    def convert(self, modes: NDArray) -> NDArray:
        """Modes kept on another grid (trailing axes), as modes of this one: cut off or filled up with zeros."""
        lead = modes.ndim - len(self.advection.shape)
        other, here = modes.shape[-1] - 1, self.advection.cutoff
        if other == here:
            return modes
        keep = min(other, here)
        out = np.zeros((*modes.shape[:lead], *self.advection.shape), dtype=complex)
        both = [np.r_[0 : keep + 1, -keep:0]] * (len(self.advection.shape) - 1) + [np.arange(keep + 1)]
        index: Any = (..., *np.ix_(*both))
        out[index] = modes[index]
        return out
