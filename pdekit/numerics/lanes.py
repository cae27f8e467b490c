"""Points in blocks of lanes: one coordinate of 256 points in a row, so that innermost loops become SIMD code."""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from numba import types
from numba.extending import overload

from pdekit.numerics.splines import SPLINES
from pdekit.runtime.kernels import kernel

LANES = 256  # points in a block: their working set stays in the first-level cache


def velocity_on_lanes(velocity, x, t, f):
    """F at points x (d, L) into f (d, L), in compiled code; a velocity is (table, degree) or a jitted function."""
    raise RuntimeError("for compiled code only")


@overload(velocity_on_lanes)
def _velocity_on_lanes(velocity, x, t, f):
    if isinstance(velocity, types.Dispatcher):
        return lambda velocity, x, t, f: velocity(x, t, f)
    spline = SPLINES[velocity[0].ndim - 1]
    return lambda velocity, x, t, f: spline(velocity[0], velocity[1], x, f)


@kernel(fastmath={"contract"})
def add_scaled(x, a, f, y):
    """y = x + a f; quickest where y is an array of its own."""
    s = x.dtype.type(a)
    for c in range(len(x)):
        xc, fc, yc = x[c], f[c], y[c]
        for i in range(len(xc)):
            yc[i] = xc[i] + s * fc[i]
