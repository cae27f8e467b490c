"""The convection-diffusion problem, apart from any way of solving it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.numerics.spectral import resample
from pdekit.numerics.splines import SplineTable, spline_table
from pdekit.runtime.checks import check_real, check_whole, real_values
from pdekit.velocity import Function, Velocity, as_velocity, check_nodes, node_points

Terminal = NDArray | Callable[[NDArray], NDArray]


@dataclass(frozen=True, eq=False, init=False)
class ConvectionDiffusion:
    """∂u/∂t + F(x,t)·∇u + ½σ²Δu = 0 on the periodic unit box, u(x, T) = f(x)   (Eq. 10).

    Its solution at t = 0 is the Feynman-Kac expectation u(x, 0) = E[f(X_T) | X_0 = x] over the paths of
    dX = F(X, t) dt + σ dB   (Eq. 14).

    velocity: node values (d, N, ..., N), continued trigonometrically; or one of `GridVelocity`,
        `RedrawnVelocity`, `CompiledVelocity`; or a callable (x, t) -> F with x and F of shape (..., d).
    terminal: node values (N,)*d, continued trigonometrically; or a callable x -> f with x (..., d), f (...).
    sigma: noise of the paths, >= 0, in box lengths per square root of time; the diffusivity is sigma**2 / 2.
    dim: number of space dimensions; needed only where both velocity and terminal are plain callables, and told
        by them otherwise.
    horizon: the final time T.

    Raises ValueError for a negative or non-finite sigma, a non-positive horizon, wrong shapes, complex or non-finite
    values, a velocity that is said to be steady and changes, or a dimension that is no whole number, cannot be told or
    does not agree.
    """

    velocity: Velocity
    terminal: Terminal
    sigma: float
    dim: int
    horizon: float

    def __init__(
        self,
        velocity: Velocity | Function | ArrayLike,
        terminal: Terminal | ArrayLike,
        sigma: float,
        dim: int = 0,
        horizon: float = 1.0,
    ) -> None:
        sigma = check_real("sigma", sigma, "a finite number >= 0", positive=False)
        horizon = check_real("horizon", horizon, "a positive time")
        dims = {"dim": dim} if check_whole("dim", dim, 0) else {}
        if not callable(terminal):
            terminal = check_nodes("terminal", terminal)
            if len(set(terminal.shape)) != 1 or terminal.size < 2:
                raise ValueError(f"terminal: expected node values of shape (N, ..., N), got {terminal.shape}")
            dims["terminal"] = terminal.ndim
        velocity = as_velocity(velocity, next(iter(dims.values()), None))
        dims = {"velocity": velocity.dim} | dims
        if len(set(dims.values())) != 1:
            raise ValueError(f"dimensions do not agree: {', '.join(f'{n} has {d}' for n, d in dims.items())}")
        velocity.check_steady(horizon)
        values = {"velocity": velocity, "terminal": terminal, "sigma": sigma, "dim": velocity.dim, "horizon": horizon}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def diffusivity(self) -> float:
        """½σ², the coefficient of the Laplacian."""
        return 0.5 * self.sigma**2

    @cached_property
    def _terminal_table(self) -> SplineTable:
        return spline_table(np.asarray(self.terminal)[None], "trigonometric")

    def evaluate_terminal(self, x: NDArray) -> NDArray[np.float64]:
        """f at points (..., d), checked like the velocity's values."""
        if callable(self.terminal):
            out = real_values("terminal(x)", self.terminal(x.copy()))
        else:
            out = self._terminal_table(x)[..., 0]
        if out.shape != x.shape[:-1]:
            raise ValueError(f"terminal(x): expected shape {x.shape[:-1]} for points {x.shape}, got {out.shape}")
        if not np.isfinite(out).all():
            raise ValueError(f"terminal(x): expected finite values, got {out[~np.isfinite(out)][0]}")
        return out

    def check_periodic(self) -> list[str]:
        """Whether F and f have the period 1 along each axis, where they are given as functions.

        Compared at fixed irregular points x and times: F(x + e) with F(x), relative to max|F|, and f(x + e) with f(x),
        relative to its range. Up to 1e-5, the rounding of single precision, is taken for equal. Returns one line for
        each function that is not: what stands in the box is continued periodically on a grid, while paths that leave it
        see the function as it is there, so that the two answer different questions. Within a few per cent of a box at
        its edges a difference above 0.05 is no such question but a jump that no grid resolves, F = -x or f = x² among
        them.

        Raises ValueError there, with the cure.
        """
        rng = np.random.default_rng(0)
        times = [self.horizon * t for t in (0.1234, 0.5719, 0.9183)]
        found = []
        if not self.velocity.periodic:
            found.append(("velocity", "F", lambda x: [self.velocity.at(x, t) for t in times]))
        if callable(self.terminal):
            found.append(("terminal", "f", lambda x: [self.evaluate_terminal(x)]))
        cure = "wrap the coordinates, x - np.floor(x)"
        messages = []
        for name, letter, function in found:
            edge = within = 0.0
            inside = np.stack(function(rng.random((64, self.dim))))
            size = float(np.abs(inside).max() if letter == "F" else np.ptp(inside))
            rounding = 1e-12 * float(np.abs(inside).max())
            for axis in range(self.dim):
                x = rng.random((32, self.dim))
                x[:24, axis] = np.repeat([-0.0173, 0.0, 0.0119], 8)
                try:
                    far = np.stack(function(x + np.eye(self.dim)[axis]))
                    near = np.stack(function(x))
                except ValueError as error:
                    messages.append(f"{name}: cannot be evaluated outside the box, where paths lead ({error}); {cure}")
                    break
                gap = np.abs(far - near) - rounding
                edge = max(edge, float(gap[:, :24].max()))
                within = max(within, float(gap.max()))
            difference = f"{name}: expected {letter}(x + e) = {letter}(x) on the periodic box, got a difference of"
            if edge > 0.05 * size:
                raise ValueError(f"{difference} {edge:.3g} at its edge; {cure}, or let it be constant near the edge")
            if within > 1e-5 * size:
                messages.append(f"{difference} {within:.3g}, so that paths which leave it see another {letter}; {cure}")
        return messages

    def terminal_nodes(self, num_points: int) -> NDArray[np.float64]:
        """f on the nodes of a grid, (N,)*d; node values given on another grid are resampled."""
        if callable(self.terminal):
            return self.evaluate_terminal(node_points(num_points, self.dim))
        return resample(self.terminal, num_points)

    @classmethod
    def from_initial_value(
        cls,
        velocity: Velocity | Function | ArrayLike,
        initial: Terminal | ArrayLike,
        sigma: float,
        *,
        dim: int = 0,
        horizon: float = 1.0,
    ) -> ConvectionDiffusion:
        """The terminal-value problem whose u(x, 0) is v(x, T) of the initial-value problem (Eq. 12, Remark 1)

            ∂v/∂t + G(x,t)·∇v = ½σ²Δv,   v(x, 0) = v_0(x).

        With u(x, t) = v(x, T - t) the velocity becomes F(x, t) = -G(x, T - t), and f = v_0.
        """
        told = dim or None if callable(initial) else np.ndim(initial)
        return cls(as_velocity(velocity, told).reversed(horizon), initial, sigma, dim, horizon)
