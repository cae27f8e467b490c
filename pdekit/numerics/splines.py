"""Periodic B-splines on the unit box: the one continuation of node values that solver and sampler share.

A field given at the nodes x_i = i / N of [0, 1)^d is continued between them in one of three ways, all of which
end as a B-spline on a (possibly finer) grid, so that one kernel evaluates them all:

    bilinear       degree 1 on the nodes; local, never exceeds the node values
    bicubic        degree 3 on the nodes; C², interpolating
    trigonometric  the trigonometric interpolant of the nodes, sampled on a finer grid and splined there: eight times
                   finer with degree 3, four times with degree 5 where that table would be large, three times where
                   that one would be (64³ nodes of a velocity: 0.17 GB). The relative error of the highest resolved
                   mode is below 7e-5, 2.2e-5, or 1.5e-4, along each axis; it falls with the fourth or sixth power of
                   the wave number

Points outside the box are wrapped into it.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy
from numba import int32, types
from numba.extending import overload
from numba.np.arrayobj import make_array
from numpy.typing import ArrayLike, NDArray

from pdekit.fastmath import intrinsic, lane
from pdekit.numerics.spectral import resample
from pdekit.runtime.kernels import kernel, static
from pdekit.runtime.threads import spread

Continuation = Literal["trigonometric", "bicubic", "bilinear"]
CONTINUATIONS: tuple[str, ...] = get_args(Continuation)

# Degree and grid points per node for the trigonometric continuation: few gathers where they come from a cache, few
# grid points where they would not.
_SMALL_TABLE, _LARGE_TABLE, _HUGE_TABLE = (3, 8), (5, 4), (5, 3)
_LARGE, _HUGE = 2**22, 2**25  # coefficients that the next smaller kind of table would have
_GHOST = {1: 1, 3: 1, 5: 2}  # table index of node 0: ghost layers below, one more above: kernels never wrap indices
_BLOCK = 256  # points that a kernel works on at a time


@dataclass(frozen=True)
class SplineTable:
    """B-spline coefficients ready for the kernels.

    coefficients: (M₁ + 3, ..., M_d + 3, C), C components, with one periodic ghost layer below and two above; M + 5
        with two below and three above for degree 5.
    degree: 1, 3 or 5.
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
        spread(_evaluate, len(flat), *self.for_lanes("float64"), flat, out)
        return out.reshape((*points.shape[:-1], -1))

    def for_lanes(self, dtype: str) -> tuple[NDArray[Any], tuple[int, ...]]:
        """Arguments of the kernels: the coefficients and the degree, which is `static`."""
        return self.coefficients.astype(dtype, copy=False), static(self.degree)


def check_continuation(name: str) -> None:
    """Raises ValueError for a continuation that there is not."""
    if name not in CONTINUATIONS:
        raise ValueError(f"continuation: expected one of {', '.join(CONTINUATIONS)}, got {name!r}")


def spline_table(values: ArrayLike, continuation: str) -> SplineTable:
    """Table of the continuation of node values (C, N₁, ..., N_d); d = 1, 2 or 3.

    Raises ValueError for an unknown continuation or d > 3.
    """
    check_continuation(continuation)
    nodes = np.asarray(values, dtype=np.float64)
    dim = nodes.ndim - 1
    if not 1 <= dim <= 3:
        raise ValueError(f"node values: expected 1 to 3 space dimensions, got shape {nodes.shape}")
    degree, oversampling = {"bilinear": (1, 1), "bicubic": (3, 1)}.get(continuation, _SMALL_TABLE)
    if continuation == "trigonometric":
        for most, finer in ((_LARGE, _LARGE_TABLE), (_HUGE, _HUGE_TABLE)):
            if nodes.size * oversampling**dim > most:
                degree, oversampling = finer
    below = _GHOST[degree]
    sizes = tuple(oversampling * n for n in nodes.shape[1:])
    coefficients = np.empty((*(size + max(degree, 3) for size in sizes), len(nodes)))
    inside = coefficients[tuple(slice(below, below + size) for size in sizes)]
    for c in range(len(nodes)):
        # The first axis comes last, a plane at a time: all at once takes several times the memory of the table.
        across = _refined(nodes[c], sizes[1:], degree, axes=tuple(range(1, dim)))
        for j in np.ndindex(across.shape[1:2]):
            inside[(slice(None), *j, ..., c)] = _refined(across[(slice(None), *j)], sizes[:1], degree, axes=(0,))
    for axis, size in enumerate(sizes):
        along = np.moveaxis(coefficients, axis, 0)
        along[:below] = along[size : size + below]
        along[below + size :] = along[below : len(along) - size]
    return SplineTable(coefficients, degree)


def _refined(
    values: NDArray[np.float64], sizes: tuple[int, ...], degree: int, axes: tuple[int, ...]
) -> NDArray[np.float64]:
    """Along some axes, the B-spline coefficients of the trigonometric interpolant's values on so many grid points."""
    fine = resample(values, sizes, axes=axes)
    for axis in axes if degree > 1 else ():
        fine = scipy.ndimage.spline_filter1d(fine, degree, axis, mode="grid-wrap")
    return fine


def cubic_symbol(num_points: int, frequencies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Fourier symbol of sampling a cubic B-spline, (2 + cos(2πk/N)) / 3, at integer frequencies k."""
    return (2.0 + np.cos(2.0 * np.pi * frequencies / num_points)) / 3.0


# Kernels. They work on lanes: x (d, L) holds one coordinate a row, and the loop over the L points is innermost, so
# that it becomes SIMD code with gathers. `locate` wraps a coordinate and splits it into a table index and a fraction.


@lane
def locate(x, num_cells):
    s = (x - np.floor(x)) * num_cells
    i = int32(s)
    # A rounding error below an integer, or NaN, whose integer is arbitrary, must not leave the table.
    i = max(int32(0), min(i, int32(num_cells - 1)))
    return np.intp(i), s - i


@lane
def cubic_weights(r):
    q = 1.0 - r
    rr = r * r
    return (
        q * q * q / 6.0,
        (4.0 - 6.0 * rr + 3.0 * rr * r) / 6.0,
        (1.0 + 3.0 * r + 3.0 * rr - 3.0 * rr * r) / 6.0,
        rr * r / 6.0,
    )


@lane
def quintic_weights(r):
    q = 1.0 - r
    rr, qq = r * r, q * q
    return (
        qq * qq * q / 120.0,
        (26.0 + r * (-50.0 + r * (20.0 + r * (20.0 + r * (-20.0 + 5.0 * r))))) / 120.0,
        (66.0 + rr * (-60.0 + rr * (30.0 - 10.0 * r))) / 120.0,
        (66.0 + qq * (-60.0 + qq * (30.0 - 10.0 * q))) / 120.0,
        (26.0 + q * (-50.0 + q * (20.0 + q * (20.0 + q * (-20.0 + 5.0 * q))))) / 120.0,
        rr * rr * r / 120.0,
    )


# LLVM gathers from a table only where it knows that nothing stored in the loop touches it. So the loads from tables
# carry an alias scope, and everything else in these loops is declared to lie outside it.


def _element(context, builder, array_type, array, index):
    return builder.gep(make_array(array_type)(context, builder, array).data, [index])


def _tag(builder, instruction, kind):
    domain = builder.module.add_metadata(["pdekit"])
    instruction.set_metadata(kind, builder.module.add_metadata([builder.module.add_metadata(["tables", domain])]))
    return instruction


@intrinsic
def gather(typing_context, flat, index):
    """flat[index] from a table, for index >= 0."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], *args)
        return _tag(builder, builder.load(pointer), "alias.scope")

    return flat.dtype(flat, types.intp), codegen


@intrinsic
def load(typing_context, row, index):
    """row[index], where row is no part of a table."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], *args)
        return _tag(builder, builder.load(pointer), "noalias")

    return row.dtype(row, types.intp), codegen


@intrinsic
def store(typing_context, row, index, value):
    """row[index] = value, where row is no part of a table."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], *args[:2])
        _tag(builder, builder.store(args[2], pointer), "noalias")

    return types.void(row, types.intp, row.dtype), codegen


@lane
def _linear_line(flat, k, step, r):
    return (1.0 - r) * gather(flat, k) + r * gather(flat, k + step)


@lane
def _cubic_line(flat, k, step, w):
    return (
        w[0] * gather(flat, k)
        + w[1] * gather(flat, k + step)
        + w[2] * gather(flat, k + 2 * step)
        + w[3] * gather(flat, k + 3 * step)
    )


@lane
def _quintic_line(flat, k, step, w):
    return (
        w[0] * gather(flat, k)
        + w[1] * gather(flat, k + step)
        + w[2] * gather(flat, k + 2 * step)
        + w[3] * gather(flat, k + 3 * step)
        + w[4] * gather(flat, k + 4 * step)
        + w[5] * gather(flat, k + 5 * step)
    )


@lane
def _linear_patch(flat, k, row, step, r, s):
    return (1.0 - r) * _linear_line(flat, k, step, s) + r * _linear_line(flat, k + row, step, s)


@lane
def _cubic_patch(flat, k, row, step, w, v):
    return (
        w[0] * _cubic_line(flat, k, step, v)
        + w[1] * _cubic_line(flat, k + row, step, v)
        + w[2] * _cubic_line(flat, k + 2 * row, step, v)
        + w[3] * _cubic_line(flat, k + 3 * row, step, v)
    )


@lane
def _quintic_patch(flat, k, row, step, w, v):
    total = w[0] * _quintic_line(flat, k, step, v)
    for a in range(1, 6):
        total += w[a] * _quintic_line(flat, k + a * row, step, v)
    return total


_kernel = kernel(fastmath={"contract"})


@_kernel
def _lanes_1d(table: NDArray, degree: tuple[int, ...], x: NDArray, out: NDArray) -> None:
    n, m = table.shape[1], table.shape[0] - max(len(degree), 3)
    flat = table.reshape(-1)
    for c in range(len(out)):
        x0, to = x[0], out[c]
        if len(degree) == 1:
            for p in range(len(to)):
                i, r = locate(load(x0, p), m)
                store(to, p, _linear_line(flat, (i + 1) * n + c, n, r))
        elif len(degree) == 3:
            for p in range(len(to)):
                i, r = locate(load(x0, p), m)
                store(to, p, _cubic_line(flat, i * n + c, n, cubic_weights(r)))
        else:
            for p in range(len(to)):
                i, r = locate(load(x0, p), m)
                store(to, p, _quintic_line(flat, i * n + c, n, quintic_weights(r)))


@_kernel
def _lanes_2d(table: NDArray, degree: tuple[int, ...], x: NDArray, out: NDArray) -> None:
    ghosts = max(len(degree), 3)
    n, mi, mj = table.shape[2], table.shape[0] - ghosts, table.shape[1] - ghosts
    row = table.shape[1] * n
    flat = table.reshape(-1)
    # Two components at a time share the weights and, being neighbours in the table, the cache lines; the last one of
    # an odd number is its own partner.
    for c in range(0, len(out), 2):
        e = min(c + 1, len(out) - 1)
        x0, x1, to, other = x[0], x[1], out[c], out[e]
        if len(degree) == 1:
            for p in range(len(to)):
                i, r = locate(load(x0, p), mi)
                j, s = locate(load(x1, p), mj)
                k = (i + 1) * row + (j + 1) * n + c
                store(to, p, _linear_patch(flat, k, row, n, r, s))
                store(other, p, _linear_patch(flat, k + e - c, row, n, r, s))
        elif len(degree) == 3:
            for p in range(len(to)):
                i, r = locate(load(x0, p), mi)
                j, s = locate(load(x1, p), mj)
                w, v = cubic_weights(r), cubic_weights(s)
                k = i * row + j * n + c
                store(to, p, _cubic_patch(flat, k, row, n, w, v))
                store(other, p, _cubic_patch(flat, k + e - c, row, n, w, v))
        else:
            for p in range(len(to)):
                i, r = locate(load(x0, p), mi)
                j, s = locate(load(x1, p), mj)
                w, v = quintic_weights(r), quintic_weights(s)
                k = i * row + j * n + c
                store(to, p, _quintic_patch(flat, k, row, n, w, v))
                store(other, p, _quintic_patch(flat, k + e - c, row, n, w, v))


@_kernel
def _lanes_3d(table: NDArray, degree: tuple[int, ...], x: NDArray, out: NDArray) -> None:
    ghosts = max(len(degree), 3)
    n, mi, mj, mk = table.shape[3], table.shape[0] - ghosts, table.shape[1] - ghosts, table.shape[2] - ghosts
    row = table.shape[2] * n
    plane = table.shape[1] * row
    flat = table.reshape(-1)
    for c in range(len(out)):
        x0, x1, x2, to = x[0], x[1], x[2], out[c]
        if len(degree) == 1:
            for p in range(len(to)):
                i, r = locate(load(x0, p), mi)
                j, s = locate(load(x1, p), mj)
                k, q = locate(load(x2, p), mk)
                start = (i + 1) * plane + (j + 1) * row + (k + 1) * n + c
                near, far = start, start + plane
                low = (1.0 - s) * _linear_line(flat, near, n, q) + s * _linear_line(flat, near + row, n, q)
                high = (1.0 - s) * _linear_line(flat, far, n, q) + s * _linear_line(flat, far + row, n, q)
                store(to, p, (1.0 - r) * low + r * high)
        elif len(degree) == 3:
            for p in range(len(to)):
                i, r = locate(load(x0, p), mi)
                j, s = locate(load(x1, p), mj)
                k, q = locate(load(x2, p), mk)
                w, v, u = cubic_weights(r), cubic_weights(s), cubic_weights(q)
                start = i * plane + j * row + k * n + c
                total = 0.0
                for a in range(4):
                    for b in range(4):
                        total += w[a] * v[b] * _cubic_line(flat, start + a * plane + b * row, n, u)
                store(to, p, total)
        else:
            for p in range(len(to)):
                i, r = locate(load(x0, p), mi)
                j, s = locate(load(x1, p), mj)
                k, q = locate(load(x2, p), mk)
                w, v, u = quintic_weights(r), quintic_weights(s), quintic_weights(q)
                start = i * plane + j * row + k * n + c
                total = 0.0
                for a in range(6):
                    total += w[a] * _quintic_patch(flat, start + a * plane, row, n, v, u)
                store(to, p, total)


SPLINES = {1: _lanes_1d, 2: _lanes_2d, 3: _lanes_3d}  # the kernels by dimension


def _table_on_lanes(table, degree, x, out):
    raise RuntimeError("for compiled code only")


@overload(_table_on_lanes)
def _table_of_dimension(table, degree, x, out):
    spline = SPLINES[table.ndim - 1]
    return lambda table, degree, x, out: spline(table, degree, x, out)


@kernel()
def _evaluate(begin: int, end: int, table: NDArray, degree: tuple[int, ...], x: NDArray, out: NDArray) -> None:
    points, values = np.empty((x.shape[1], _BLOCK)), np.empty((out.shape[1], _BLOCK))
    for first in range(begin, end, _BLOCK):
        count = min(_BLOCK, end - first)
        for c in range(len(points)):
            for p in range(count):
                points[c, p] = x[first + p, c]
        _table_on_lanes(table, degree, points[:, :count], values[:, :count])
        for c in range(len(values)):
            for p in range(count):
                out[first + p, c] = values[c, p]
