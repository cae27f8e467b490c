"""Compiled time stepping of blocks of paths, dX = F(X, t) dt + σ dB.

The state is x (blocks, d, LANES): one coordinate of 256 paths in a row, so that the innermost loops run over lanes
and become SIMD code, while the loop over time is outside and a block stays in the first-level cache. Paths live
in R^d and are never wrapped; only look-ups in tables on the unit box wrap.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numpy as np
from numba import int32
from numba.extending import overload

from pdekit.numerics.lanes import LANES, add_scaled, velocity_on_lanes
from pdekit.numerics.splines import gather, load, store
from pdekit.paths.brownian import GIVEN, fill_increments
from pdekit.runtime.kernels import kernel

EULER, HEUN = 0, 1
SCHEMES = {"euler": EULER, "heun": HEUN}
WEAK_ORDER = {"euler": 1, "heun": 2}  # for additive noise

_ROWS = 16  # rows of normals drawn at a time: enough to use whole draws, few enough for the cache


def control_on_lanes(control, n, x, dw, offset, words, total):
    """Add the control's martingale increment of step n to total (L,), in compiled code; () is no control.

    offset: scratch (d, L); words: scratch (2, L) of 64 bits.
    """
    raise RuntimeError("for compiled code only")


@overload(control_on_lanes, inline="always")
def _control_on_lanes(control, n, x, dw, offset, words, total):
    if len(control) == 0:
        return lambda control, n, x, dw, offset, words, total: None

    def add(control, n, x, dw, offset, words, total):
        tables, stride, variance = control
        _add_martingale(tables[n // stride], variance, x, dw, offset, words.view(np.intp)[0], total)

    return add


@kernel(fastmath={"contract"})
def _add_martingale(table, variance, x, dw, offset, node, total):
    """∇u·dW + ½ Σ ∂ᵢ∂ⱼu (dWᵢ dWⱼ - δᵢⱼ σ²dt), dW = σ dB: mean zero given x, whatever the table holds.

    table: (nodes, C): gradient, then the upper triangle of the Hessian, which also carries the gradient from the
    nearest node to x: fewer gathers than interpolation needs. offset, node: scratch (d, L) and (L,).
    """
    d, components = len(x), table.shape[1]
    along = round(table.shape[0] ** (1.0 / d))  # nodes along an axis, the periodic one included
    cells = x.dtype.type(along - 1)
    spacing, half, v = x.dtype.type(1.0) / cells, x.dtype.type(0.5), x.dtype.type(variance)
    for c in range(d):
        xc, to, factor = x[c], offset[c], np.intp(along if c else 0)
        stride = np.intp(components)
        for i in range(len(total)):
            s = (load(xc, i) - np.floor(load(xc, i))) * cells
            k = max(int32(0), min(int32(s + half), int32(along - 1)))  # NaN must not leave the table
            store(to, i, (s - x.dtype.type(k)) * spacing)
            store(node, i, load(node, i) * factor + k * stride)
    flat = table.reshape(-1)
    for a in range(d):
        wa = dw[a]
        for i in range(len(total)):
            g = total.dtype.type(gather(flat, load(node, i) + a))
            store(total, i, load(total, i) + g * load(wa, i))
    row = d
    if components > d:
        for a in range(d):
            for b in range(a, d):
                wa, wb, ra, rb = dw[a], dw[b], offset[a], offset[b]
                if a == b:
                    for i in range(len(total)):
                        h = total.dtype.type(gather(flat, load(node, i) + row))
                        w = load(wa, i)
                        store(total, i, load(total, i) + h * (load(ra, i) * w + half * (w * w - v)))
                else:
                    for i in range(len(total)):
                        h = total.dtype.type(gather(flat, load(node, i) + row))
                        first, second = load(wa, i), load(wb, i)
                        moved = load(rb, i) * first + load(ra, i) * second
                        store(total, i, load(total, i) + h * (moved + first * second))
                row += 1


@kernel(fastmath={"contract"})
def _move(x, carry, a, f, dw):
    """x += a f + dw, where carry holds what rounding has kept out of x so far (Kahan 1965): no error piles up."""
    s = x.dtype.type(a)
    for c in range(len(x)):
        xc, lost, fc, wc = x[c], carry[c], f[c], dw[c]
        for i in range(len(xc)):
            step = s * fc[i] + wc[i] + lost[i]
            moved = xc[i] + step
            lost[i] = step - (moved - xc[i])
            xc[i] = moved


def _advance(
    begin,
    end,
    velocity,
    control,
    scheme,
    kind,
    key0,
    streams,
    paths,
    t0,
    dt,
    first,
    last,
    substeps,
    scale,
    given,
    x,
    carry,
    total,
):
    """Steps first..last-1 of all blocks. x (blocks, d, LANES), total (blocks, LANES): the control's martingale.

    kind: `static`; given: (blocks, steps, d, LANES) increments for kind GIVEN, which are drawn here for every
    other kind; carry: what rounding has kept out of x, of x's shape, or () where it is not kept.
    """
    for block in range(begin, end):
        xb, sum_b = x[block], total[block]
        d = len(xb)
        chunk = max(1, _ROWS // (d * substeps))
        z = np.empty((chunk * substeps * d + 6, LANES), x.dtype)
        words = np.empty((2, LANES), np.uint64)
        dws = np.empty((chunk, d, LANES), x.dtype)
        slopes = np.empty((3, d, LANES), x.dtype)
        f, y, h = slopes[0], slopes[1], slopes[2]
        for start in range(first, last, chunk):
            steps = min(chunk, last - start)
            if len(kind) != GIVEN:
                fill_increments(kind, key0, streams[block], paths[block], start, steps, substeps, scale, dws, z, words)
            for k in range(steps):
                n = start + k
                dw = given[block, n] if len(kind) == GIVEN else dws[k]
                t = t0 + n * dt
                velocity_on_lanes(velocity, xb, t, f)
                if scheme == HEUN or len(control):
                    add_scaled(xb, dt, f, y)
                    control_on_lanes(control, n, y, dw, h, words, sum_b)
                if scheme == HEUN:
                    add_scaled(y, 1.0, dw, y)
                    velocity_on_lanes(velocity, y, t + dt, h)
                    add_scaled(f, 1.0, h, y)
                slope, moved, a = (y, f, 0.5 * dt) if scheme == HEUN else (f, y, dt)
                if len(carry) > 0:
                    _move(xb, carry[block], a, slope, dw)
                else:
                    add_scaled(xb, a, slope, moved)
                    add_scaled(moved, 1.0, dw, xb)


# numba cannot find a kernel again in a later process once a user's function is among its arguments, so only the
# kernels for tables go to the disk cache.
advance_table, advance_user = kernel()(_advance), kernel(cache=False)(_advance)


@kernel()
def control_of_blocks(begin, end, control, n, x, dw, total):
    """The control's increment of step n for paths stepped in NumPy: x, dw (blocks, d, LANES), total (blocks, LANES)."""
    for block in range(begin, end):
        offset, words = np.empty_like(x[block]), np.empty((2, LANES), np.uint64)
        control_on_lanes(control, n, x[block], dw[block], offset, words, total[block])
