"""Periodic B-splines on the unit box: the one continuation of node values that solver and sampler share.

A field given at the nodes x_i = i / N of [0, 1)^d is continued between them in one of three ways, all of which
end as a B-spline on a (possibly finer) grid, so that one kernel evaluates them all:

    bilinear       degree 1 on the nodes; local, never exceeds the node values
    bicubic        degree 3 on the nodes; C², interpolating
    trigonometric  the trigonometric interpolant of the nodes, sampled on an eight times finer grid and splined
                   there with degree 3; the relative error is below (1/15)⁴ = 2e-5 at the highest resolved mode

Points outside the box are wrapped into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Literal, get_args

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from pdekit.spectral import resample

Continuation = Literal["trigonometric", "bicubic", "bilinear"]
CONTINUATIONS: tuple[str, ...] = get_args(Continuation)

_OVERSAMPLING = 8  # grid points per node for the trigonometric continuation
_GHOST = 1  # table index of node 0: one ghost layer below, two above, so that kernels never wrap indices


@dataclass(frozen=True)
class SplineTable:
    """B-spline coefficients ready for the kernels.

    coefficients: (M + 3,) * d + (C,), C components, with one periodic ghost layer below and two above.
    degree: 1 or 3.
    """

    coefficients: NDArray[np.float64]
    degree: int

    @property
    def dim(self) -> int:
        return self.coefficients.ndim - 1

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """Values at points x (..., d), as (..., C)."""
        points = np.ascontiguousarray(x, dtype=np.float64)
        if points.shape[-1] != self.dim:
            raise ValueError(f"points: expected shape (..., {self.dim}), got {points.shape}")
        flat = points.reshape(-1, self.dim)
        out = np.empty((len(flat), self.coefficients.shape[-1]))
        _EVALUATE[self.dim, self.degree](self.coefficients, flat, out)
        return out.reshape(points.shape[:-1] + (-1,))


def spline_table(values: ArrayLike, continuation: str) -> SplineTable:
    """Table of the continuation of node values (C, N, ..., N); d = 1, 2 or 3.

    Raises ValueError for an unknown continuation or d > 3.
    """
    if continuation not in CONTINUATIONS:
        raise ValueError(f"continuation: expected one of {', '.join(CONTINUATIONS)}, got {continuation!r}")
    nodes = np.asarray(values, dtype=np.float64)
    dim = nodes.ndim - 1
    if not 1 <= dim <= 3:
        raise ValueError(f"node values: expected 1 to 3 space dimensions, got shape {nodes.shape}")
    axes = tuple(range(1, dim + 1))
    if continuation == "trigonometric":
        nodes = resample(nodes, _OVERSAMPLING * nodes.shape[-1], axes=axes)
    degree = 1 if continuation == "bilinear" else 3
    coefficients = cubic_coefficients(nodes, axes) if degree == 3 else nodes
    padded = np.pad(coefficients, [(0, 0)] + [(_GHOST, 2)] * dim, mode="wrap")
    return SplineTable(np.ascontiguousarray(np.moveaxis(padded, 0, -1)), degree)


def cubic_symbol(num_points: int, frequencies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Fourier symbol of sampling a cubic B-spline, (2 + cos(2πk/N)) / 3, at integer frequencies k."""
    return (2.0 + np.cos(2.0 * np.pi * frequencies / num_points)) / 3.0


def cubic_coefficients(nodes: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Coefficients of the periodic cubic B-spline through the nodes, along the given axes."""
    hat = np.fft.rfftn(nodes, axes=axes)
    for axis in axes:
        n = nodes.shape[axis]
        k = np.arange(hat.shape[axis]) if axis == axes[-1] else np.fft.fftfreq(n, 1.0 / n)
        shape = [1] * nodes.ndim
        shape[axis] = -1
        hat /= cubic_symbol(n, k).reshape(shape)
    return np.fft.irfftn(hat, s=[nodes.shape[a] for a in axes], axes=axes)


# Kernels. `locate` wraps a coordinate and splits it into a table index and a fraction; the weights follow.


@njit(inline="always")
def locate(x: float, num_cells: int) -> tuple[int, float]:
    s = (x - floor(x)) * num_cells
    i = int(s)
    if i >= num_cells:  # x a rounding error below an integer
        i = num_cells - 1
    return i, s - i


@njit(inline="always")
def cubic_weights(r: float) -> tuple[float, float, float, float]:
    q = 1.0 - r
    rr = r * r
    return (
        q * q * q / 6.0,
        (4.0 - 6.0 * rr + 3.0 * rr * r) / 6.0,
        (1.0 + 3.0 * r + 3.0 * rr - 3.0 * rr * r) / 6.0,
        rr * r / 6.0,
    )


@njit(cache=True, parallel=True, error_model="numpy")
def _linear_1d(table: NDArray, x: NDArray, out: NDArray) -> None:
    m = table.shape[0] - 3
    for p in prange(x.shape[0]):
        i, r = locate(x[p, 0], m)
        for c in range(out.shape[1]):
            out[p, c] = (1.0 - r) * table[i + 1, c] + r * table[i + 2, c]


@njit(cache=True, parallel=True, error_model="numpy")
def _linear_2d(table: NDArray, x: NDArray, out: NDArray) -> None:
    mi, mj = table.shape[0] - 3, table.shape[1] - 3
    for p in prange(x.shape[0]):
        i, r = locate(x[p, 0], mi)
        j, s = locate(x[p, 1], mj)
        for c in range(out.shape[1]):
            low = (1.0 - s) * table[i + 1, j + 1, c] + s * table[i + 1, j + 2, c]
            high = (1.0 - s) * table[i + 2, j + 1, c] + s * table[i + 2, j + 2, c]
            out[p, c] = (1.0 - r) * low + r * high


@njit(cache=True, parallel=True, error_model="numpy")
def _linear_3d(table: NDArray, x: NDArray, out: NDArray) -> None:
    mi, mj, mk = table.shape[0] - 3, table.shape[1] - 3, table.shape[2] - 3
    for p in prange(x.shape[0]):
        i, r = locate(x[p, 0], mi)
        j, s = locate(x[p, 1], mj)
        k, q = locate(x[p, 2], mk)
        for c in range(out.shape[1]):
            total = 0.0
            for a in range(2):
                for b in range(2):
                    line = (1.0 - q) * table[i + 1 + a, j + 1 + b, k + 1, c]
                    line += q * table[i + 1 + a, j + 1 + b, k + 2, c]
                    total += (r if a else 1.0 - r) * (s if b else 1.0 - s) * line
            out[p, c] = total


@njit(cache=True, parallel=True, error_model="numpy")
def _cubic_1d(table: NDArray, x: NDArray, out: NDArray) -> None:
    m = table.shape[0] - 3
    for p in prange(x.shape[0]):
        i, r = locate(x[p, 0], m)
        w = cubic_weights(r)
        for c in range(out.shape[1]):
            total = 0.0
            for a in range(4):
                total += w[a] * table[i + a, c]
            out[p, c] = total


@njit(cache=True, parallel=True, error_model="numpy")
def _cubic_2d(table: NDArray, x: NDArray, out: NDArray) -> None:
    mi, mj = table.shape[0] - 3, table.shape[1] - 3
    for p in prange(x.shape[0]):
        i, r = locate(x[p, 0], mi)
        j, s = locate(x[p, 1], mj)
        wi, wj = cubic_weights(r), cubic_weights(s)
        for c in range(out.shape[1]):
            total = 0.0
            for a in range(4):
                line = 0.0
                for b in range(4):
                    line += wj[b] * table[i + a, j + b, c]
                total += wi[a] * line
            out[p, c] = total


@njit(cache=True, parallel=True, error_model="numpy")
def _cubic_3d(table: NDArray, x: NDArray, out: NDArray) -> None:
    mi, mj, mk = table.shape[0] - 3, table.shape[1] - 3, table.shape[2] - 3
    for p in prange(x.shape[0]):
        i, r = locate(x[p, 0], mi)
        j, s = locate(x[p, 1], mj)
        k, q = locate(x[p, 2], mk)
        wi, wj, wk = cubic_weights(r), cubic_weights(s), cubic_weights(q)
        for c in range(out.shape[1]):
            total = 0.0
            for a in range(4):
                for b in range(4):
                    line = 0.0
                    for e in range(4):
                        line += wk[e] * table[i + a, j + b, k + e, c]
                    total += wi[a] * wj[b] * line
            out[p, c] = total


_EVALUATE = {
    (1, 1): _linear_1d,
    (2, 1): _linear_2d,
    (3, 1): _linear_3d,
    (1, 3): _cubic_1d,
    (2, 3): _cubic_2d,
    (3, 3): _cubic_3d,
}
