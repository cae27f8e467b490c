"""The paths' noise in compiled code: from m Brownian increments to σ dB of the coordinates.

A noise is () where it is one number, which the increments already have in them; a matrix that is the same at all
points, ([σ],), as a vector (d,) of its diagonal, (d, m), or (steps, d, m) with one for each step; or a field
(factor of each row, values, `static` number of axes of the values).
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from math import sqrt

import numpy as np
from numba import uint64
from numba.extending import overload
from numpy.typing import NDArray

from pdekit.numerics.lanes import LANES, field_on_lanes
from pdekit.paths.brownian import two_point_rows
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread

_SIGNS_KEY = np.uint64(0x9E3779B97F4A7C15)  # what tells the seed of the signs from that of the increments


def noise_on_lanes(noise, n, x, t, db, sigma, dw):
    """σ dB of step n, from points x (d, L) at time t, in compiled code: db itself where nothing has to be done.

    db: (m, L); dw: (d, L) for the result; sigma: (d m, L), set to σ at x where that is a field.
    """
    raise RuntimeError("for compiled code only")


@overload(noise_on_lanes, inline="always")
def _noise_on_lanes(noise, n, x, t, db, sigma, dw):
    if len(noise) == 0:
        return lambda noise, n, x, t, db, sigma, dw: db
    if len(noise) == 1:
        mix = {1: _scale, 2: _mix, 3: _mix_of_step}[noise[0].ndim]

        def same_everywhere(noise, n, x, t, db, sigma, dw):
            mix(noise[0], n, db, dw)
            return dw

        return same_everywhere

    def field(noise, n, x, t, db, sigma, dw):
        sigma_on_lanes(noise, len(db) * n, x, t, sigma)
        _mix_lanes(sigma, db, dw)
        return dw

    return field


@kernel(fastmath={"contract"})
def _scale(diagonal, n, db, dw):
    for c in range(len(dw)):
        s, row, to = dw.dtype.type(diagonal[c]), db[c], dw[c]
        for i in range(len(to)):
            to[i] = s * row[i]


@kernel(fastmath={"contract"})
def _mix(matrix, n, db, dw):
    for c in range(len(dw)):
        s, row, to = dw.dtype.type(matrix[c, 0]), db[0], dw[c]
        for i in range(len(to)):
            to[i] = s * row[i]
        for j in range(1, len(db)):
            s, row = dw.dtype.type(matrix[c, j]), db[j]
            for i in range(len(to)):
                to[i] += s * row[i]


@kernel(fastmath={"contract"})
def _mix_of_step(matrices, n, db, dw):
    _mix(matrices[n], n, db, dw)


@kernel(fastmath={"contract"})
def _mix_lanes(sigma, db, dw):
    m = len(db)
    for c in range(len(dw)):
        s, row, to = sigma[c * m], db[0], dw[c]
        for i in range(len(to)):
            to[i] = s[i] * row[i]
        for j in range(1, m):
            s, row = sigma[c * m + j], db[j]
            for i in range(len(to)):
                to[i] += s[i] * row[i]


@kernel(fastmath={"contract"})
def sigma_on_lanes(noise, level, x, t, out):
    """σ at points x (d, L) into out (d m, L), its rows one after another."""
    factor, values, axes = noise
    d = len(x)
    m = len(out) // d
    if len(axes) == 2:
        field_on_lanes(values, level, x, t, out)
        for row in range(len(out)):
            s, to = out.dtype.type(factor[row // m]), out[row]
            for i in range(len(to)):
                to[i] *= s
    else:
        given = d if len(axes) == 1 else 1
        field_on_lanes(values, level, x, t, out[:given])
        for c in range(d - 1, -1, -1):  # from the last, as they are spread out in place
            s, of, to = out.dtype.type(factor[c]), out[c if len(axes) == 1 else 0], out[c * d + c]
            for i in range(len(to)):
                to[i] = s * of[i]
        for row in range(len(out)):
            if row % (d + 1):
                out[row, :] = 0.0


def correct(noise, n, x, t, dt, f, db, signs, sigma, scratch, dw):
    """Add to dw = σ dB what makes Heun's step one of weak order 2 for a σ that depends on x, in compiled code.

    Platen's explicit scheme (Kloeden and Platen 1992, Eq. 15.1.3), but with one set of supporting values
    R± = x + F dt / m ± σ_r √dt for column r: each takes an m-th of the drift, so that all together they take as much as
    Platen's R do beside his U, at half the evaluations of σ. For a σ that does not depend on x nothing is added.

    f: F at x; sigma: σ there; signs: (m (m - 1) / 2, L) of the pairs (r, j), r < j; scratch: (2 d + 2 d m + 1, L).
    """
    raise RuntimeError("for compiled code only")


@overload(correct, inline="always")
def _correct(noise, n, x, t, dt, f, db, signs, sigma, scratch, dw):
    if len(noise) < 3:
        return lambda noise, n, x, t, dt, f, db, signs, sigma, scratch, dw: None

    def add(noise, n, x, t, dt, f, db, signs, sigma, scratch, dw):
        _add_correction(noise, n, x, t, dt, f, db, signs, sigma, scratch, dw)

    return add


@kernel(fastmath={"contract"})
def _add_correction(noise, n, x, t, dt, f, db, signs, sigma, scratch, dw):
    d, m = len(x), len(db)
    real = x.dtype.type
    root, share, step, half = real(sqrt(dt)), real(dt / m), real(dt), real(0.5)
    slope = real(0.25 / sqrt(dt))
    above, below = scratch[:d], scratch[d : 2 * d]
    up, down = scratch[2 * d : 2 * d + d * m], scratch[2 * d + d * m : 2 * d + 2 * d * m]
    product = scratch[2 * d + 2 * d * m]
    for r in range(m):
        for c in range(d):
            xc, fc, s, high, low = x[c], f[c], sigma[c * m + r], above[c], below[c]
            for i in range(len(xc)):
                middle = xc[i] + share * fc[i]
                high[i] = middle + root * s[i]
                low[i] = middle - root * s[i]
        sigma_on_lanes(noise, m * n + 1, above, t + dt / m, up)
        sigma_on_lanes(noise, m * n + 1, below, t + dt / m, down)
        for j in range(m):
            first, second = db[r], db[j]
            if r == j:
                for i in range(len(product)):
                    product[i] = first[i] * second[i] - step
            else:
                low, high = min(r, j), max(r, j)
                sign, v = signs[high * (high - 1) // 2 + low], (step if r < j else -step)
                for i in range(len(product)):
                    product[i] = first[i] * second[i] + v * sign[i]
            for c in range(d):
                s, p, q, to = sigma[c * m + j], up[c * m + j], down[c * m + j], dw[c]
                for i in range(len(to)):
                    to[i] += half * (half * (p[i] + q[i]) - s[i]) * second[i] + slope * (p[i] - q[i]) * product[i]


@kernel()
def fill_signs(key0, key1, path, first, steps, pairs, signs, words):
    """Random signs for the pairs of Brownian motions in steps first..first+steps-1, into signs (steps * pairs, L)."""
    two_point_rows(uint64(key0) ^ _SIGNS_KEY, key1, path, first * pairs, (first + steps) * pairs, signs, words)


@kernel()
def _signs_of_blocks(begin, end, key0, streams, paths, n, signs):
    for b in range(begin, end):
        words = np.empty((2, LANES), np.uint64)
        fill_signs(key0, streams[b], paths[b], n, 1, signs.shape[1], signs[b], words)


def signs_of_blocks(
    key0: np.uint64, streams: NDArray[np.uint64], paths: NDArray[np.int64], n: int, signs: NDArray[np.floating]
) -> None:
    """The signs of step n of many blocks at once: signs (blocks, pairs, LANES), block b at (streams[b], paths[b])."""
    spread(_signs_of_blocks, len(signs), key0, streams, paths, n, signs, items=signs.size)
