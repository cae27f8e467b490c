"""Points in blocks of lanes: one coordinate of 256 points in a row, so that innermost loops become SIMD code."""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from pdekit.fastmath import exp
from pdekit.numerics.splines import SPLINES
from pdekit.runtime.kernels import kernel

LANES = 256  # points in a block: their working set stays in the first-level cache


def optional(field: Any) -> tuple[Any, ...]:
    """An argument of kernels for a field that there need not be, () then: kernels find it at [1].

    numba takes a tuple that begins with a function for something else.
    """
    return 0, field


def field_on_lanes(field, level, x, t, out):
    """Values (C, L) at points x (d, L) and a time into out, in compiled code.

    field: (table, degree) of a steady one, (tables, degree, first) with a table for each level of time from `first` on,
        or a jitted function of x, t and out.
    level: the number of the time t among those for which there are tables.
    """
    raise RuntimeError("for compiled code only")


@overload(field_on_lanes)
def _field_on_lanes(field, level, x, t, out):
    if isinstance(field, types.Dispatcher):
        return lambda field, level, x, t, out: field(x, t, out)
    if len(field) == 2:
        spline = SPLINES[field[0].ndim - 1]
        return lambda field, level, x, t, out: spline(field[0], field[1], x, out)
    spline = SPLINES[field[0].ndim - 2]
    return lambda field, level, x, t, out: spline(field[0][level - field[2]], field[1], x, out)


@kernel(fastmath={"contract"})
def add_scaled(x, a, f, y):
    """y = x + a f; quickest where y is an array of its own."""
    s = x.dtype.type(a)
    for c in range(len(x)):
        xc, fc, yc = x[c], f[c], y[c]
        for i in range(len(xc)):
            yc[i] = xc[i] + s * fc[i]


@kernel(fastmath={"contract"})
def decay(killed, weight):
    """weight = e^(-killed)."""
    for i in range(len(killed)):
        weight[i] = exp(-killed[i])
