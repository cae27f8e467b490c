"""Brownian increments of a block of paths, drawn from the counter-based generator.

Normal number q of a path (q = step * d + coordinate) is a function of (seed, stream, path, q) alone. So a path is
drawn again rather than stored: with `substeps` = m, step n of a coarse path is the sum of the fine increments
n m .. n m + m - 1 of the very same Brownian path.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numpy as np
from numba import types, uint64
from numba.extending import overload
from numpy.typing import NDArray

from pdekit.numerics.lanes import LANES
from pdekit.paths.threefry import fill_words, normals32, normals64
from pdekit.runtime.kernels import kernel, static
from pdekit.runtime.threads import spread

GAUSSIAN, TWO_POINT, GIVEN = 0, 1, 2
INCREMENTS = {"gaussian": static(GAUSSIAN), "two_point": static(TWO_POINT)}


def _gaussian_rows(key0, key1, path, first, last, z, words):
    """Normals first..last-1 into rows of z, from the row returned on; a draw of 128 bits serves 2 (float32: 4)."""
    raise RuntimeError("for compiled code only")


@overload(_gaussian_rows)
def _gaussian_rows_of_type(key0, key1, path, first, last, z, words):
    def rows64(key0, key1, path, first, last, z, words):
        start = first // 2
        for draw in range(start, (last + 1) // 2):
            fill_words(key0, key1, path, draw, words)
            r = 2 * (draw - start)
            normals64(words[0], words[1], z[r], z[r + 1])
        return first - 2 * start

    def rows32(key0, key1, path, first, last, z, words):
        start, half = first // 4, words.shape[1]
        halves = words.view(np.uint32)
        for draw in range(start, (last + 3) // 4):
            fill_words(key0, key1, path, draw, words)
            r = 4 * (draw - start)
            normals32(halves[0, :half], halves[1, :half], z[r], z[r + 1])
            normals32(halves[0, half:], halves[1, half:], z[r + 2], z[r + 3])
        return first - 4 * start

    return rows32 if z.dtype == types.float32 else rows64


@kernel()
def two_point_rows(key0, key1, path, first, last, z, words):
    """Signs first..last-1: weak order one needs no more of an increment than its moments up to the third."""
    for draw in range(first // 128, (last + 127) // 128):
        fill_words(key0, key1, path, draw, words)
        for q in range(max(first, 128 * draw), min(last, 128 * draw + 128)):
            word, shift, row = words[(q % 128) // 64], uint64(q % 64), z[q - first]
            for i in range(len(row)):
                row[i] = 1.0 if (word[i] >> shift) & uint64(1) else -1.0
    return 0


@kernel(fastmath={"contract"})
def fill_increments(kind, key0, key1, path, first, steps, substeps, scale, dw, z, words):
    """Increments of steps first..first+steps-1 of the block of paths from `path` on, into dw (steps, d, LANES).

    kind: `static`; scale: the standard deviation of an increment over one substep, negative for the antithetic path;
    z: scratch of at least steps * substeps * d + 6 rows; words: scratch (2, LANES) of uint64.
    """
    d, lanes = dw.shape[1], dw.shape[2]
    q0, q1 = first * substeps * d, (first + steps) * substeps * d
    if len(kind) == GAUSSIAN:
        offset = _gaussian_rows(key0, key1, path, q0, q1, z, words)
    else:
        offset = two_point_rows(key0, key1, path, q0, q1, z, words)
    s = dw.dtype.type(scale)
    for n in range(steps):
        for c in range(d):
            row, total = offset + n * substeps * d + c, dw[n, c]
            part = z[row]
            for i in range(lanes):
                total[i] = s * part[i]
            for j in range(1, substeps):
                part = z[row + j * d]
                for i in range(lanes):
                    total[i] += s * part[i]


@kernel()
def _increments_of_blocks(begin, end, kind, key0, streams, paths, first, substeps, scale, dw):
    for b in range(begin, end):
        steps, d = dw.shape[1], dw.shape[2]
        z = np.empty((steps * substeps * d + 6, LANES), dw.dtype)
        words = np.empty((2, LANES), np.uint64)
        fill_increments(kind, key0, streams[b], paths[b], first, steps, substeps, scale, dw[b], z, words)


def increments_of_blocks(
    kind: tuple[int, ...],
    key0: np.uint64,
    streams: NDArray[np.uint64],
    paths: NDArray[np.int64],
    first: int,
    substeps: int,
    scale: float,
    dw: NDArray[np.floating],
) -> None:
    """Increments of many blocks at once: dw (blocks, steps, d, LANES), block b at (streams[b], paths[b])."""
    args = (kind, key0, streams, paths, first, substeps, scale, dw)
    spread(_increments_of_blocks, len(dw), *args, items=dw.size * substeps)


def brownian_increments(
    seed: int,
    num_paths: int,
    num_steps: int,
    dim: int,
    *,
    dt: float = 1.0,
    stream: int = 0,
    first_step: int = 0,
    substeps: int = 1,
    increments: str = "gaussian",
    dtype: str = "float64",
) -> NDArray[np.floating]:
    """The increments that `feynman_kac` gives its paths, (num_paths, num_steps, dim): for reference solutions.

    seed: the 64-bit key; stream: index of the starting point; dt: length of a step.
    """
    blocks = -(-num_paths // LANES)
    dw = np.empty((blocks, num_steps, dim, LANES), dtype=dtype)
    streams = np.full(blocks, stream, dtype=np.uint64)
    paths = np.arange(blocks, dtype=np.int64) * LANES
    scale = np.sqrt(dt / substeps)
    increments_of_blocks(INCREMENTS[increments], np.uint64(seed), streams, paths, first_step, substeps, scale, dw)
    return np.moveaxis(dw, -1, 1).reshape(-1, num_steps, dim)[:num_paths]
