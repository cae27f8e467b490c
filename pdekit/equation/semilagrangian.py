"""A semi-Lagrangian step that keeps max|u| <= max|f| by construction, for every sigma >= 0 including 0.

    u(·, s + dt) = D½ C D½ u(·, s)

D½ = exp(½ dt Σ ν_i δ_i²) with second differences along the axes is a non-negative matrix; (C u)(x) is the cubic
B-spline through the nodes at the departure point X(x; dt), clamped to the values at the nodes around that point, times
exp(-∫V) <= 1 for V >= 0 and plus ∫g along the way there, both by the trapezoidal rule.

Departure points X(x; dt) of the nodes follow the velocity by RK4 within the step; a steady velocity needs them
once. The diffusion of two neighbouring steps and the spline's prefilter are one product in Fourier space, so a
step costs two real transforms and one gather. Second order in dt (Strang splitting) where the solution is smooth.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import NDArray

from pdekit.characteristics import characteristics
from pdekit.equation.operator import Grid
from pdekit.equation.spectral_method import fields_first, fields_last
from pdekit.field import node_points
from pdekit.numerics.spectral import resample, second_difference_symbol, wavenumbers
from pdekit.numerics.splines import cubic_symbol, cubic_weights, locate
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread, threads_for


class SemiLagrangian:
    """A stepper on nodal fields (K, N₁, ..., N_d), in reversed time s = T - t; `step(u, s)` advances u in place by dt.

    Between steps u lacks the last half of the diffusion, which the next step applies together with its first
    half; `field(u)` completes it.

    substeps: RK4 steps for a departure point.

    Raises ValueError for a noise that is not constant, or does not act on each axis by itself: its diffusion has no
    non-negative matrix here.
    """

    order = 2

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        grid: Grid,
        dt: float,
        substeps: int,
    ) -> None:
        self.dt, self._problem, self._substeps = dt, problem, substeps
        self._shape, self._dim = grid, problem.dim
        rates = axis_diffusivities(problem)
        self._half = np.exp(0.5 * dt * second_difference_symbol(grid, rates)) if rates.any() else None
        axes = list(zip(wavenumbers(grid), grid, strict=True))
        self._prefilter = 1.0 / np.asarray(math.prod(cubic_symbol(n, k / (2.0 * np.pi)) for k, n in axes))
        self._full = self._prefilter if self._half is None else self._prefilter * self._half**2
        beyond = [9 * np.abs(np.rint(k / (2.0 * np.pi))) > 2 * n for k, n in axes]
        self._upper_third = np.any(np.broadcast_arrays(*beyond), axis=0)
        self._nodes = node_points(grid, problem.dim).reshape(-1, problem.dim)
        self._departure: NDArray | None = None
        self.speed_met = 0.0  # the largest mean speed on the way of a node, for an F that changes
        self._started = False

    def start(self, field: NDArray) -> NDArray:
        self._started = False
        return np.array(fields_first(field, self._dim), dtype=np.float64, order="C")

    def field(self, u: NDArray) -> NDArray[np.float64]:
        half = self._half if self._started else None
        return fields_last(np.stack([v if half is None else self._filter(v, half) for v in u]), self._problem)

    @property
    def _over_space(self) -> tuple[int, ...]:
        return tuple(range(1, self._dim + 1))

    def norm(self, u: NDArray) -> float:
        return float(np.sqrt(np.mean(u**2, axis=self._over_space).max()))

    def energies(self, u: NDArray) -> tuple[NDArray, NDArray]:
        """∫u² of the modes |k_i| > 2N_i/9, of which a step damps the highest by itself, and of all but the mean."""
        energy = np.abs(scipy.fft.rfftn(u, axes=self._over_space, norm="forward")) ** 2
        energy[..., 1 : (u.shape[-1] + 1) // 2] *= 2.0
        total = energy.sum(axis=self._over_space) - energy[(..., *(0,) * self._dim)]
        return energy[:, self._upper_third].sum(axis=-1), total

    def step(self, u: NDArray, s: float, limit: float = np.inf) -> tuple[NDArray, float]:
        if self._departure is None or not self._problem.velocity.steady:
            # a steady flow does not know the time: the same bits wherever a solve was restarted
            t = self.dt if self._problem.velocity.steady else self._problem.horizon - s
            x = characteristics(self._problem, self._nodes, num_steps=self._substeps, t0=t - self.dt, t1=t)
            self._departure = np.ascontiguousarray(x)
        if not self._problem.velocity.steady:
            ways = np.sqrt(((self._departure - self._nodes) ** 2).sum(axis=1))
            self.speed_met = max(self.speed_met, float(ways.max()) / self.dt)
        first = self._prefilter if self._half is None else self._prefilter * self._half
        for field in u:
            coefficients = self._filter(field, self._full if self._started else first)
            spread(_GATHER[self._dim], field.size, coefficients, self._departure, field.reshape(-1))
            self._react(field.reshape(-1), self._problem.horizon - s)
        self._started = True
        return u, self.dt

    def _react(self, u: NDArray, t: float) -> None:
        """Killing and source on the way from the node at t - dt to the departure point at t."""
        potential, source, dt = self._problem.potential, self._problem.source, self.dt
        here, there = self._nodes, self._departure
        assert there is not None
        weight: NDArray | float = 1.0
        if potential is not None:
            weight = np.exp(-0.5 * dt * (potential.at(here, t - dt) + potential.at(there, t)))
            u *= weight
        if source is not None:
            u += 0.5 * dt * (source.at(here, t - dt) + weight * source.at(there, t))

    def _filter(self, u: NDArray, symbol: NDArray) -> NDArray[np.float64]:
        workers = threads_for(u.size)
        u_hat = scipy.fft.rfftn(u, workers=workers)
        u_hat *= symbol
        return scipy.fft.irfftn(u_hat, s=self._shape, overwrite_x=True, workers=workers)

    def convert(self, field: NDArray) -> NDArray:
        """A field from another grid, kept within its own bounds."""
        if field.shape[1:] == self._shape:
            return field
        return resample(field, self._shape, axes=self._over_space).clip(field.min(), field.max())

    def facts(self) -> dict[str, float]:
        return {}

    def history(self) -> dict[str, NDArray]:
        return {"started": np.array(self._started)}

    def restore(self, history: dict[str, NDArray]) -> None:
        self._started = bool(history["started"])


def axis_diffusivities(problem: ConvectionDiffusion) -> NDArray[np.float64]:
    """½a_ii (d,) of a constant noise that acts on each axis by itself. Raises ValueError for any other."""
    noise = problem.noise
    covariance = None if noise.constant is None else noise.constant @ noise.constant.T
    if covariance is None or (covariance != np.diag(np.diag(covariance))).any():
        raise ValueError(
            "sigma: expected a number or a vector with method 'semi_lagrangian', which cannot keep its bound with "
            f"{'a function' if covariance is None else 'a matrix'}; use a method of Fourier modes"
        )
    return 0.5 * np.diag(covariance)


# Gather kernels: spline value at each departure point, clamped to the nodal values around it. Nodal values come
# from the coefficients by the sampling stencil (1, 4, 1)/6, which the interpolation's own stencil contains.


@kernel(inline="always")
def _wrap(i: int, n: int) -> int:
    if i >= n:
        return i - n
    return i + n if i < 0 else i


@kernel()
def _gather_1d(begin: int, end: int, c: NDArray, x: NDArray, out: NDArray) -> None:
    n = c.shape[0]
    for p in range(begin, end):
        i, r = locate(x[p, 0], n)
        c0, c1, c2, c3 = c[_wrap(i - 1, n)], c[i], c[_wrap(i + 1, n)], c[_wrap(i + 2, n)]
        w = cubic_weights(r)
        value = w[0] * c0 + w[1] * c1 + w[2] * c2 + w[3] * c3
        left, right = (c0 + 4.0 * c1 + c2) / 6.0, (c1 + 4.0 * c2 + c3) / 6.0
        out[p] = min(max(value, min(left, right)), max(left, right))


@kernel()
def _gather_2d(begin: int, end: int, c: NDArray, x: NDArray, out: NDArray) -> None:
    n, m = c.shape
    for p in range(begin, end):
        i, r = locate(x[p, 0], n)
        j, s = locate(x[p, 1], m)
        wi, wj = cubic_weights(r), cubic_weights(s)
        j0, j1, j2, j3 = _wrap(j - 1, m), j, _wrap(j + 1, m), _wrap(j + 2, m)
        value = low1 = low2 = high1 = high2 = 0.0
        for a in range(4):
            row = c[_wrap(i - 1 + a, n)]
            c0, c1, c2, c3 = row[j0], row[j1], row[j2], row[j3]
            value += wi[a] * (wj[0] * c0 + wj[1] * c1 + wj[2] * c2 + wj[3] * c3)
            at1, at2 = (c0 + 4.0 * c1 + c2) / 6.0, (c1 + 4.0 * c2 + c3) / 6.0
            low = (1.0, 4.0, 1.0, 0.0)[a] / 6.0
            high = (0.0, 1.0, 4.0, 1.0)[a] / 6.0
            low1 += low * at1
            low2 += low * at2
            high1 += high * at1
            high2 += high * at2
        smallest = min(min(low1, low2), min(high1, high2))
        largest = max(max(low1, low2), max(high1, high2))
        out[p] = min(max(value, smallest), largest)


@kernel()
def _gather_3d(begin: int, end: int, c: NDArray, x: NDArray, out: NDArray) -> None:
    n, m, q = c.shape
    for p in range(begin, end):
        i, r = locate(x[p, 0], n)
        j, s = locate(x[p, 1], m)
        k, t = locate(x[p, 2], q)
        wi, wj, wk = cubic_weights(r), cubic_weights(s), cubic_weights(t)
        k0, k1, k2, k3 = _wrap(k - 1, q), k, _wrap(k + 1, q), _wrap(k + 2, q)
        value = 0.0
        corner = np.zeros(8)
        for a in range(4):
            low_a, high_a = (1.0, 4.0, 1.0, 0.0)[a] / 6.0, (0.0, 1.0, 4.0, 1.0)[a] / 6.0
            for b in range(4):
                low_b, high_b = (1.0, 4.0, 1.0, 0.0)[b] / 6.0, (0.0, 1.0, 4.0, 1.0)[b] / 6.0
                row = c[_wrap(i - 1 + a, n), _wrap(j - 1 + b, m)]
                c0, c1, c2, c3 = row[k0], row[k1], row[k2], row[k3]
                value += wi[a] * wj[b] * (wk[0] * c0 + wk[1] * c1 + wk[2] * c2 + wk[3] * c3)
                at1, at2 = (c0 + 4.0 * c1 + c2) / 6.0, (c1 + 4.0 * c2 + c3) / 6.0
                corner[0] += low_a * low_b * at1
                corner[1] += low_a * low_b * at2
                corner[2] += low_a * high_b * at1
                corner[3] += low_a * high_b * at2
                corner[4] += high_a * low_b * at1
                corner[5] += high_a * low_b * at2
                corner[6] += high_a * high_b * at1
                corner[7] += high_a * high_b * at2
        out[p] = min(max(value, corner.min()), corner.max())


_GATHER = {1: _gather_1d, 2: _gather_2d, 3: _gather_3d}
