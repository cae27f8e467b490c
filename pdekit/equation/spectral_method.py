"""The convection-diffusion equation on kept Fourier modes: the advection term joined to a way through time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.advection import SpectralAdvection, bandlimit, resized
from pdekit.equation.krylov import Krylov
from pdekit.equation.steppers import Stepper, StepperAB4, StepperDP5, StepperRK4
from pdekit.numerics.diagnostics import max_speed
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import kernel
from pdekit.velocity import Velocity


class _Modes:
    """The state and the operators of a problem on kept Fourier modes."""

    def __init__(self, problem: ConvectionDiffusion, num_points: int, *, padded: bool, fft: str) -> None:
        self.problem, self._padded = problem, padded
        cutoff = bandlimit(problem.velocity.nodes(num_points, 0.0)) if problem.velocity.steady else None
        self.advection = SpectralAdvection(num_points, problem.dim, velocity_cutoff=cutoff, padded=padded, fft=fft)
        self.symbol = problem.diffusivity * self.advection.laplacian
        self._standing: Velocity = problem.velocity
        self._prepared = np.empty(0)
        self._prepared_for: tuple[Velocity, float | None] | None = None
        self.speed_met = 0.0  # the largest |F| that was used, for an F that changes

    def _velocity_at(self, t: float) -> NDArray:
        """F of the step on the product grid; `_standing` serves until the step's end, where the next may begin."""
        key = self._standing, None if self._standing.steady else t
        if key != self._prepared_for:
            nodes = self._standing.nodes(self.advection.num_points, t)
            if not self.problem.velocity.steady:
                self.speed_met = max(self.speed_met, max_speed(nodes))
            self._prepared, self._prepared_for = self.advection.prepare_velocity(nodes), key
        return self._prepared

    def start(self, field: NDArray) -> NDArray:
        return self.advection.to_modes(field)

    def field(self, u_hat: NDArray) -> NDArray[np.float64]:
        return self.advection.to_grid(u_hat)

    def norm(self, u_hat: NDArray) -> float:
        return self.advection.norm(u_hat)

    def energies(self, u_hat: NDArray) -> tuple[float, float]:
        return self.advection.energies(u_hat)

    def facts(self) -> dict[str, float]:
        return {"cutoff": self.advection.cutoff, "padded": int(self._padded)}

    def convert(self, modes: NDArray) -> NDArray:
        """Modes kept on another grid (trailing axes), as modes of this one: cut off or filled up with zeros."""
        here = self.advection.cutoff
        return modes if modes.shape[-1] - 1 == here else resized(modes, here, self.problem.dim)


class LawsonMethod(_Modes):
    """Advanced by one of the Lawson steppers: "spectral_rk4", "spectral_ab4" or "spectral_adaptive"."""

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
        super().__init__(problem, num_points, padded=padded, fft=fft)
        if kind == "spectral_rk4":
            self.stepper: Stepper = StepperRK4(self.symbol, self._advance, dt)
        elif kind == "spectral_ab4":
            self.stepper = StepperAB4(self.symbol, self._advance, dt)
        else:
            assert rtol is not None
            self.stepper = StepperDP5(self.symbol, self._advance, dt, norm=self.norm, rtol=rtol)
        self.history, self.restore = self.stepper.history, self.stepper.restore

    def _advance(self, u_hat: NDArray, s: float, out: NDArray) -> None:
        self.advection.evaluate(u_hat, self._velocity_at(self.problem.horizon - s), out)

    def step(self, u_hat: NDArray, s: float, limit: float = math.inf) -> tuple[NDArray, float]:
        self._standing = self.problem.velocity.standing(self.problem.horizon - s - self.stepper.dt)
        return u_hat, self.stepper.step(u_hat, s, limit)


class KrylovMethod(_Modes):
    """Exact in time up to rtol · max|f|, for an F that stands still or jumps: see `pdekit.equation.krylov`.

    duration: from T back to the first frame.
    """

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        num_points: int,
        rtol: float,
        duration: float,
        padded: bool = False,
        fft: str = "auto",
    ) -> None:
        super().__init__(problem, num_points, padded=padded, fft=fft)
        self._rtol = rtol
        self.propagator = Krylov(self.advection.shape, self._apply, self._largest, duration)
        self.history = self.propagator.history

    def restore(self, history: dict[str, NDArray]) -> None:
        if history:
            self._stand(float(history["number_0"]))
            self.propagator.restore(history)

    def start(self, field: NDArray) -> NDArray:
        self.propagator.tolerance = self._rtol * float(np.abs(field).max())
        return super().start(field)

    def facts(self) -> dict[str, float]:
        own = {"error_estimate_time": self.propagator.estimate, "applications": self.propagator.applications}
        return super().facts() | own

    def _apply(self, u_hat: NDArray, out: NDArray) -> None:
        self.advection.evaluate(u_hat, self._velocity_at(0.0), out)
        add_product(self.symbol.reshape(-1), u_hat.reshape(-1), out.reshape(-1))

    def _largest(self, u_hat: NDArray) -> float:
        return float(np.abs(self.advection.to_grid(u_hat)).max())

    def step(self, u_hat: NDArray, s: float, limit: float = math.inf) -> tuple[NDArray, float]:
        return u_hat, self.propagator.step(u_hat, s, limit, standing=self._stand(s))

    def _stand(self, s: float) -> float:
        """Take the piece of F that stands before t = T - s, and return for how long it does."""
        self._standing, duration = self.problem.velocity.before(self.problem.horizon - s)
        return duration


@kernel(fastmath={"contract"})
def add_product(symbol: NDArray, u: NDArray, out: NDArray) -> None:
    """out += symbol u."""
    for p in range(len(out)):
        out[p] += symbol[p] * u[p]
