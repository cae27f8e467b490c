"""Compiled time stepping of blocks of paths, dX = F(X, t) dt + σ(X, t) dB, and of what they collect on the way.

The state is x (blocks, d, LANES): one coordinate of 256 paths in a row, so that the innermost loops run over lanes
and become SIMD code, while the loop over time is outside and a block stays in the first-level cache. Paths live
in R^d and are never wrapped; only look-ups in tables on the unit box wrap.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numpy as np
from numba import int32, types
from numba.extending import overload

from pdekit.numerics.lanes import LANES, add_scaled, decay, field_on_lanes
from pdekit.numerics.splines import gather, load, store
from pdekit.paths.brownian import GIVEN, fill_increments
from pdekit.paths.diffusion import correct, fill_signs, noise_on_lanes
from pdekit.paths.weights import accrue
from pdekit.runtime.kernels import kernel

EULER, HEUN = 0, 1
SCHEMES = {"euler": EULER, "heun": HEUN}
WEAK_ORDER = {"euler": 1, "heun": 2}

_ROWS = 16  # rows of normals drawn at a time: enough to use whole draws, few enough for the cache


def control_on_lanes(control, weight, n, x, dw, scratch, words, total):
    """Add the control's martingale increments of step n to total (K, L), in compiled code; () is no control.

    weight: (L,), by which they count, or () for one; scratch: (d + 1, L); words: scratch (2, L) of 64 bits.
    """
    raise RuntimeError("for compiled code only")


@overload(control_on_lanes, inline="always")
def _control_on_lanes(control, weight, n, x, dw, scratch, words, total):
    if len(control) == 0:
        return lambda control, weight, n, x, dw, scratch, words, total: None

    def add(control, weight, n, x, dw, scratch, words, total):
        tables, stride, covariance = control
        node, table = words.view(np.intp)[0], tables[n // stride]
        _to_nodes(table, x, scratch, node)
        for k in range(len(total)):
            _add_martingale(table, k, len(total), covariance, n, dw, scratch, node, total[k])

    def add_weighed(control, weight, n, x, dw, scratch, words, total):
        tables, stride, covariance = control
        node, table, own = words.view(np.intp)[0], tables[n // stride], scratch[-1]
        _to_nodes(table, x, scratch, node)
        for k in range(len(total)):
            own[:] = 0.0
            _add_martingale(table, k, len(total), covariance, n, dw, scratch, node, own)
            _add_product(weight, own, total[k])

    return add if isinstance(weight, types.BaseTuple) else add_weighed


@kernel(fastmath={"contract"})
def _to_nodes(table, x, offset, node):
    """The nearest node to x, as a place in the flat table, and the offset from there."""
    components = table.shape[-1]
    for c in range(len(x)):
        along = table.shape[c]  # nodes along the axis, the periodic one included
        cells = x.dtype.type(along - 1)
        spacing, half = x.dtype.type(1.0) / cells, x.dtype.type(0.5)
        xc, to, factor = x[c], offset[c], np.intp(along if c else 0)
        stride = np.intp(components)
        for i in range(len(node)):
            s = (load(xc, i) - np.floor(load(xc, i))) * cells
            k = max(int32(0), min(int32(s + half), int32(along - 1)))  # NaN must not leave the table
            store(to, i, (s - x.dtype.type(k)) * spacing)
            store(node, i, load(node, i) * factor + k * stride)


@kernel(fastmath={"contract"})
def _add_martingale(table, field, fields, covariance, n, dw, offset, node, total):
    """∇u·dW + ½ Σ ∂ᵢ∂ⱼu (dWᵢ dWⱼ - aᵢⱼ dt), dW = σ dB: mean zero given x, whatever the table holds.

    table: (N₁ + 1, ..., N_d + 1, K C): of each field the gradient, then the upper triangle of the Hessian, which also
    carries the gradient from the nearest node to x: fewer gathers than interpolation needs.
    covariance: (σ²dt,) for one number, (a dt, ()) for matrices a (1 or steps, d, d).
    """
    d, components = len(dw), table.shape[-1] // fields
    half = offset.dtype.type(0.5)
    flat, start = table.reshape(-1), field * components
    for a in range(d):
        wa = dw[a]
        for i in range(len(total)):
            g = total.dtype.type(gather(flat, load(node, i) + (start + a)))
            store(total, i, load(total, i) + g * load(wa, i))
    row = start + d
    if components > d:
        for a in range(d):
            for b in range(a, d):
                wa, wb, ra, rb = dw[a], dw[b], offset[a], offset[b]
                if len(covariance) == 1:
                    v = offset.dtype.type(covariance[0])
                else:
                    v = offset.dtype.type(covariance[0][min(n, len(covariance[0]) - 1), a, b])
                if a == b:
                    for i in range(len(total)):
                        h = total.dtype.type(gather(flat, load(node, i) + row))
                        w = load(wa, i)
                        store(total, i, load(total, i) + h * (load(ra, i) * w + half * (w * w - v)))
                elif len(covariance) == 1:
                    for i in range(len(total)):
                        h = total.dtype.type(gather(flat, load(node, i) + row))
                        first, second = load(wa, i), load(wb, i)
                        moved = load(rb, i) * first + load(ra, i) * second
                        store(total, i, load(total, i) + h * (moved + first * second))
                else:
                    for i in range(len(total)):
                        h = total.dtype.type(gather(flat, load(node, i) + row))
                        first, second = load(wa, i), load(wb, i)
                        moved = load(rb, i) * first + load(ra, i) * second
                        store(total, i, load(total, i) + h * (moved + (first * second - v)))
                row += 1


@kernel(fastmath={"contract"})
def _add_product(weight, row, total):
    for i in range(len(total)):
        total[i] += total.dtype.type(weight[i]) * row[i]


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
    noise,
    potential,
    source,
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
    killed,
    earned,
    total,
):
    """Steps first..last-1 of all blocks. x (blocks, d, LANES), total (blocks, K, LANES): the control's martingales.

    velocity, noise, potential, source: as `field_on_lanes`, `noise_on_lanes` and `accrue` take them.
    kind: `static`; given: (blocks, steps, m, LANES) increments for kind GIVEN, which are drawn here for every
    other kind; carry: what rounding has kept out of x, of x's shape, or () where it is not kept.
    killed, earned: (blocks, LANES), A = ∫V and the source's integral; a single block where there is none.
    """
    for block in range(begin, end):
        xb, sums = x[block], total[block]
        a_b, e_b = killed[block % len(killed)], earned[block % len(earned)]
        d, m = len(xb), given.shape[2]
        chunk = max(1, _ROWS // (m * substeps))
        z = np.empty((chunk * substeps * m + 6, LANES), x.dtype)
        words = np.empty((2, LANES), np.uint64)
        dbs = np.empty((chunk, m, LANES), x.dtype)
        slopes = np.empty((3, d, LANES), x.dtype)
        f, y, h = slopes[0], slopes[1], slopes[2]
        scratch = np.empty((d + 1, LANES), x.dtype)
        row, rates, weight = np.empty((1, LANES), x.dtype), np.zeros((2, LANES)), np.ones(LANES)
        mixed = np.empty((d if len(noise) > 0 else 0, LANES), x.dtype)
        sigma = np.empty((d * m if len(noise) > 1 else 0, LANES), x.dtype)
        second = len(noise) > 1 and scheme == HEUN
        more = np.empty((2 * d + 2 * d * m + 1 if second else 0, LANES), x.dtype)
        pairs = m * (m - 1) // 2 if second else 0
        signs = np.empty((chunk * pairs, LANES), x.dtype)
        accrue(potential, source, first, xb, t0 + first * dt, 0.0, a_b, e_b, rates, weight, row)
        for start in range(first, last, chunk):
            steps = min(chunk, last - start)
            if len(kind) != GIVEN:
                fill_increments(kind, key0, streams[block], paths[block], start, steps, substeps, scale, dbs, z, words)
            if pairs > 0:
                fill_signs(key0, streams[block], paths[block], start, steps, pairs, signs, words)
            for k in range(steps):
                n = start + k
                db = given[block, n] if len(kind) == GIVEN else dbs[k]
                t = t0 + n * dt
                field_on_lanes(velocity, n, xb, t, f)
                dw = noise_on_lanes(noise, n, xb, t, db, sigma, mixed)
                if scheme == HEUN or len(control):
                    add_scaled(xb, dt, f, y)
                    if len(potential) > 0:
                        control_on_lanes(control, weight, n, y, dw, scratch, words, sums)
                    else:
                        control_on_lanes(control, (), n, y, dw, scratch, words, sums)
                if scheme == HEUN:
                    add_scaled(y, 1.0, dw, y)
                    field_on_lanes(velocity, n + 1, y, t + dt, h)
                    correct(noise, n, xb, t, dt, f, db, signs[k * pairs : (k + 1) * pairs], sigma, more, dw)
                    add_scaled(f, 1.0, h, y)
                slope, moved, a = (y, f, 0.5 * dt) if scheme == HEUN else (f, y, dt)
                if len(carry) > 0:
                    _move(xb, carry[block], a, slope, dw)
                else:
                    add_scaled(xb, a, slope, moved)
                    add_scaled(moved, 1.0, dw, xb)
                accrue(potential, source, n + 1, xb, t0 + (n + 1) * dt, 0.5 * dt, a_b, e_b, rates, weight, row)


# numba cannot find a kernel again in a later process once a user's function is among its arguments, so only the
# kernels for tables go to the disk cache.
advance_table, advance_user = kernel()(_advance), kernel(cache=False)(_advance)


@kernel()
def control_of_blocks(begin, end, control, killed, n, x, dw, total):
    """The control's increments of step n for paths stepped in NumPy: x, dw (blocks, d, LANES), total
    (blocks, K, LANES).

    killed: (blocks, LANES), A so far, or () where nothing kills.
    """
    for block in range(begin, end):
        scratch = np.empty((x.shape[1] + 1, LANES), x.dtype)
        words = np.empty((2, LANES), np.uint64)
        if len(killed) > 0:
            weight = np.empty(LANES)
            decay(killed[block], weight)
            control_on_lanes(control, weight, n, x[block], dw[block], scratch, words, total[block])
        else:
            control_on_lanes(control, (), n, x[block], dw[block], scratch, words, total[block])
