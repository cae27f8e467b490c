"""A counter-based random generator for SIMD lanes: Threefry-2x64-20 and branch-free normals.

Random numbers are a pure function of a key and a counter (Salmon, Moraes, Dror and Shaw 2011, "Parallel random
numbers: as easy as 1, 2, 3"), so a path may be drawn again instead of being stored, in any order, on any
thread. Here the key is (seed, stream) and the counter (path, draw). Paths are worked on in blocks of `LANES`;
loops over the lanes are innermost and free of branches, so LLVM turns them into SIMD code.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from math import sqrt

import numpy as np
from numba import float32, int32, uint32, uint64

from pdekit.fastmath import (
    cos_kernel,
    cos_kernel32,
    float_of,
    lane,
    log_kernel,
    log_kernel32,
    sin_kernel,
    sin_kernel32,
)
from pdekit.runtime.kernels import kernel

_PARITY = np.uint64(0x1BD11BDAA9FC1A22)
_WORD = np.uint64(64)
_ONE_TO_TWO = np.uint64(0x3FF0000000000000)  # exponent bits of the floats in [1, 2)
# Rotations of odd and even groups of four rounds. As arguments of a type of their own, not as literal numbers, for
# each of which numba would compile anew.
_ODD = tuple(np.uint64(bits) for bits in (16, 42, 12, 31))
_EVEN = tuple(np.uint64(bits) for bits in (16, 32, 24, 21))


@lane
def _four_rounds(x0, x1, bits, k0, k1):
    """Four rounds, which rotate by so many bits, and the key injection that follows them."""
    x0 += x1
    x1 = ((x1 << bits[0]) | (x1 >> (_WORD - bits[0]))) ^ x0
    x0 += x1
    x1 = ((x1 << bits[1]) | (x1 >> (_WORD - bits[1]))) ^ x0
    x0 += x1
    x1 = ((x1 << bits[2]) | (x1 >> (_WORD - bits[2]))) ^ x0
    x0 += x1
    x1 = ((x1 << bits[3]) | (x1 >> (_WORD - bits[3]))) ^ x0
    return x0 + k0, x1 + k1


@lane
def threefry(key0, key1, counter0, counter1):
    """Threefry-2x64 with 20 rounds: two random words of 64 bits; all arguments uint64."""
    key2 = _PARITY ^ key0 ^ key1
    x0, x1 = counter0 + key0, counter1 + key1
    x0, x1 = _four_rounds(x0, x1, _ODD, key1, key2 + uint64(1))
    x0, x1 = _four_rounds(x0, x1, _EVEN, key2, key0 + uint64(2))
    x0, x1 = _four_rounds(x0, x1, _ODD, key0, key1 + uint64(3))
    x0, x1 = _four_rounds(x0, x1, _EVEN, key1, key2 + uint64(4))
    return _four_rounds(x0, x1, _ODD, key2, key0 + uint64(5))


@lane
def box_muller(word0, word1):
    """Two independent normals from 128 random bits, |z| <= 8.5.

    The angle is drawn in [-π/4, π/4) and moved to a random octant by three further bits, which needs no range
    reduction.
    """
    u = 2.0 - float_of((word0 >> uint64(12)) | _ONE_TO_TWO)  # (0, 1]
    r = sqrt(-2.0 * log_kernel(u))
    angle = (float_of((word1 >> uint64(12)) | _ONE_TO_TWO) - 1.5) * 1.5707963267948966
    s, c = r * sin_kernel(angle), r * cos_kernel(angle)
    a, b = (s, c) if word1 & uint64(1) else (c, s)
    return (-a if word1 & uint64(2) else a), (-b if word1 & uint64(4) else b)


@lane
def box_muller32(word0, word1):
    """Two independent float32 normals from 64 random bits, |z| <= 6.8."""
    u = float32(word0) * float32(2.0**-32) + float32(2.0**-33)
    r = sqrt(float32(-2.0) * log_kernel32(u))
    angle = float32(int32(word1)) * float32(1.5707963267948966 / 2.0**32)
    s, c = r * sin_kernel32(angle), r * cos_kernel32(angle)
    a, b = (s, c) if word1 & uint32(1) else (c, s)
    return (-a if word1 & uint32(2) else a), (-b if word1 & uint32(4) else b)


@kernel()
def fill_words(key0, key1, first_path, draw, words) -> None:
    """128 random bits for each lane: words (2, LANES) of uint64 at counter (first_path + lane, draw)."""
    counter1 = uint64(draw)
    for i in range(words.shape[1]):
        a, b = threefry(uint64(key0), uint64(key1), uint64(first_path) + uint64(i), counter1)
        words[0, i] = a
        words[1, i] = b


@kernel(fastmath={"contract"})
def normals64(word0, word1, z0, z1) -> None:
    """Two rows of float64 normals from two rows of uint64 words."""
    for i in range(len(z0)):
        z0[i], z1[i] = box_muller(word0[i], word1[i])


@kernel(fastmath={"contract"})
def normals32(word0, word1, z0, z1) -> None:
    """Two rows of float32 normals from two rows of uint32 words."""
    for i in range(len(z0)):
        z0[i], z1[i] = box_muller32(word0[i], word1[i])


def seed_of(rng: int | np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | None) -> np.uint64:
    """A 64-bit key from anything `numpy.random.default_rng` takes (SPEC 7); a Generator is advanced by one draw."""
    return np.random.default_rng(rng).integers(0, 2**64, dtype=np.uint64)
