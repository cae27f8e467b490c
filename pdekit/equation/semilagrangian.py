"""A semi-Lagrangian step that keeps max|u| <= max|f| by construction, for every sigma >= 0 including 0.

    u(·, s + dt) = D½ C D½ u(·, s)

D½ = exp(½ν dt Δ_h) with the second-difference Laplacian is a non-negative matrix; (C u)(x) is the cubic B-spline
through the nodes at the departure point X(x; dt), clamped to the values at the nodes around that point.

Departure points X(x; dt) of the nodes follow the velocity by RK4 within the step; a steady velocity needs them
once. The diffusion of two neighbouring steps and the spline's prefilter are one product in Fourier space, so a
step costs two real transforms and one gather. Second order in dt (Strang splitting) where the solution is smooth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from pdekit.characteristics import characteristics
from pdekit.numerics.spectral import five_point_symbol, resample, wavenumbers
from pdekit.numerics.splines import cubic_symbol, cubic_weights, locate
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread, threads_for
from pdekit.velocity import node_points


class SemiLagrangian:
    """A stepper on nodal fields (N,)*d, in reversed time s = T - t; `step(u, s)` advances u in place by dt.

    Between steps u lacks the last half of the diffusion, which the next step applies together with its first
    half; `field(u)` completes it.

    substeps: RK4 steps for a departure point.
    """

    order = 2

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        num_points: int,
        dt: float,
        substeps: int,
    ) -> None:
        dim, diffusivity = problem.dim, problem.diffusivity
        self.dt, self._problem, self._substeps = dt, problem, substeps
        self._shape, self._dim = (num_points,) * dim, dim
        self._half = np.exp(0.5 * diffusivity * dt * five_point_symbol(num_points, dim)) if diffusivity else None
        prefilter = np.ones(())
        for axis in range(dim):
            k = np.arange(num_points // 2 + 1.0) if axis == dim - 1 else fft.fftfreq(num_points, 1.0 / num_points)
            shape = [1] * dim
            shape[axis] = -1
            prefilter = prefilter / cubic_symbol(num_points, k).reshape(shape)
        self._prefilter = prefilter
        self._full = prefilter if self._half is None else prefilter * self._half**2
        highest = np.max(np.broadcast_arrays(*[np.abs(k) for k in wavenumbers(num_points, dim)]), axis=0)
        self._upper_third = highest > 2.0 * np.pi * (2.0 * num_points / 9.0)
        self._nodes = node_points(num_points, dim).reshape(-1, dim)
        self._departure: NDArray | None = None
        self.speed_met = 0.0  # the largest mean speed on the way of a node, for an F that changes
        self._started = False

    def start(self, field: NDArray) -> NDArray:
        self._started = False
        return np.array(field, dtype=np.float64, order="C")

    def field(self, u: NDArray) -> NDArray[np.float64]:
        return u.copy() if self._half is None or not self._started else self._filter(u, self._half)

    def norm(self, u: NDArray) -> float:
        return float(np.sqrt(np.mean(u**2)))

    def energies(self, u: NDArray) -> tuple[float, float]:
        """∫u² of the modes max|k_i| > 2N/9, of which a step damps the highest by itself, and of all but the mean."""
        energy = np.abs(fft.rfftn(u, norm="forward")) ** 2
        energy[..., 1 : (u.shape[-1] + 1) // 2] *= 2.0
        total = float(energy.sum() - energy[(0,) * self._dim])
        return float(energy[self._upper_third].sum()), total

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
        coefficients = self._filter(u, self._full if self._started else first)
        spread(_GATHER[self._dim], u.size, coefficients, self._departure, u.reshape(-1))
        self._started = True
        return u, self.dt

    def _filter(self, u: NDArray, symbol: NDArray) -> NDArray[np.float64]:
        workers = threads_for(u.size)
        u_hat = fft.rfftn(u, workers=workers)
        u_hat *= symbol
        return fft.irfftn(u_hat, s=self._shape, overwrite_x=True, workers=workers)

    def convert(self, field: NDArray) -> NDArray:
        """A field from another grid, kept within its own bounds."""
        if field.shape == self._shape:
            return field
        return resample(field, self._shape[0]).clip(field.min(), field.max())

    def facts(self) -> dict[str, float]:
        return {}

    def history(self) -> dict[str, NDArray]:
        return {"started": np.array(self._started)}

    def restore(self, history: dict[str, NDArray]) -> None:
        self._started = bool(history["started"])


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
