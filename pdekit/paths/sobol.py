"""Randomised quasi-Monte Carlo: scrambled Sobol points turned into Brownian paths by a Brownian bridge.

The bridge spends the best coordinates of a point on the end of the path, the next on its middle, and so on, so that
few coordinates carry most of the variance (Caflisch, Morokoff and Owen 1997). Each replicate of the point set has its
own random linear scramble (Matoušek 1998), each point of evaluation its own digital shift; the spread of the
replicates is an honest error estimate.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt

import numpy as np
from numba import uint32, uint64
from numpy.typing import NDArray

from pdekit.fastmath import lane, log_kernel
from pdekit.numerics.lanes import LANES
from pdekit.paths.threefry import threefry
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread

_BITS = 32


@dataclass(frozen=True, eq=False)
class SobolPaths:
    """Brownian increments from scrambled Sobol points.

    Stream s holds replicate s % replicates of the point set, shifted by what (seed, s) says.
    """

    seed: np.uint64
    num_steps: int
    dim: int
    replicates: int
    bits: int  # 2**bits paths a stream at most

    def increments(
        self, streams: NDArray[np.uint64], paths: NDArray[np.int64], scale: float, dtype: str
    ) -> NDArray[np.floating]:
        """Increments (blocks, num_steps, d, LANES) of the blocks of paths that start at paths[b] of streams[b]."""
        plan, weights = bridge_plan(self.num_steps)
        dw = np.empty((len(paths), self.num_steps, self.dim, LANES), dtype=dtype)
        which = (streams % np.uint64(self.replicates)).astype(np.int64)
        args = (self._directions, self.seed, streams, which, paths, plan, weights, scale, dw)
        spread(_increments, len(dw), *args, items=dw.size)
        return dw

    @cached_property
    def _directions(self) -> NDArray[np.uint32]:
        """Scrambled direction numbers (replicates, dimensions, bits)."""
        plain = direction_numbers(self.num_steps * self.dim, max(self.bits, 8))
        out = np.empty((self.replicates, *plain.shape), dtype=np.uint32)
        for r in range(self.replicates):
            rng = np.random.default_rng([int(self.seed), r])
            # Row b of a lower triangular matrix over GF(2): bits above b at random, bit b itself one.
            rows = rng.integers(0, 2**_BITS, (len(plain), _BITS), dtype=np.uint32)
            unit = np.uint32(1) << np.arange(_BITS - 1, -1, -1, dtype=np.uint32)
            rows = (rows & ~(np.uint32(2) * unit - np.uint32(1))) | unit
            _scramble(plain, rows, out[r])
        return out


@lru_cache(maxsize=4)
def direction_numbers(dimensions: int, bits: int) -> NDArray[np.uint32]:
    """Sobol direction numbers (dimensions, bits) of Joe and Kuo 2008: point i is the XOR of those at i's bits.

    Raises ValueError for more dimensions than are tabulated.
    """
    from scipy.stats import qmc  # half a second of import that only these paths need

    if dimensions > qmc.Sobol.MAXDIM:
        raise ValueError(f"qmc: expected at most {qmc.Sobol.MAXDIM} dimensions (num_steps times d), got {dimensions}")
    engine = qmc.Sobol(dimensions, scramble=False, bits=_BITS)
    out = np.empty((dimensions, bits), dtype=np.uint32)
    for k in range(bits):
        # scipy counts in Gray code, where number 2**(k+1) - 1 has bit k alone. Its generator walks there one point
        # at a time, so only the bits in use may be asked for.
        engine.fast_forward(2 ** (k + 1) - 1 - engine.num_generated)
        out[:, k] = (engine.random(1)[0] * 2.0**_BITS).astype(np.uint32)
    return out


@lru_cache(maxsize=8)
def bridge_plan(num_steps: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How to build W_1 .. W_N of unit steps: rows (left, right, middle) and weights (of left, of right, deviation).

    The first row is the end of the path; then intervals are halved, the longest first.
    """
    rows, weights = [(0, 0, num_steps)], [(0.0, 0.0, sqrt(num_steps))]
    intervals = [(0, num_steps)]
    for left, right in intervals:  # grows as it is walked: breadth first
        if right - left > 1:
            middle = (left + right) // 2
            length = right - left
            rows.append((left, right, middle))
            deviation = sqrt((middle - left) * (right - middle) / length)
            weights.append(((right - middle) / length, (middle - left) / length, deviation))
            intervals += [(left, middle), (middle, right)]
    return np.array(rows), np.array(weights)


@kernel()
def _scramble(plain, rows, out):
    for j in range(plain.shape[0]):
        for k in range(plain.shape[1]):
            word = uint32(0)
            for b in range(rows.shape[1]):
                parity = rows[j, b] & plain[j, k]
                for shift in (16, 8, 4, 2, 1):
                    parity ^= parity >> uint32(shift)
                word |= (parity & uint32(1)) << uint32(rows.shape[1] - 1 - b)
            out[j, k] = word


@lane
def inverse_normal(u):
    """Normal quantile for 2**-33 <= u <= 1 - 2**-33, to 1e-15 (Wichura 1988, AS 241), both branches computed."""
    q = u - 0.5
    r = 0.180625 - q * q
    num = 3.3430575583588128105e4 + r * 2.5090809287301226727e3
    num = 4.5921953931549871457e4 + r * (6.7265770927008700853e4 + r * num)
    num = 1.9715909503065514427e3 + r * (1.3731693765509461125e4 + r * num)
    num = 3.3871328727963666080e0 + r * (1.3314166789178437745e2 + r * num)
    den = 2.8729085735721942674e4 + r * 5.2264952788528545610e3
    den = 2.1213794301586595867e4 + r * (3.9307895800092710610e4 + r * den)
    den = 6.8718700749205790830e2 + r * (5.3941960214247511077e3 + r * den)
    central = q * num / (1.0 + r * (4.2313330701600911252e1 + r * den))
    s = sqrt(-log_kernel(u if q < 0.0 else 1.0 - u)) - 1.6
    num = 2.27238449892691845833e-2 + s * 7.74545014278341407640e-4
    num = 1.27045825245236838258e0 + s * (2.41780725177450611770e-1 + s * num)
    num = 5.76949722146069140550e0 + s * (3.64784832476320460504e0 + s * num)
    num = 1.42343711074968357734e0 + s * (4.63033784615654529590e0 + s * num)
    den = 5.47593808499534494600e-4 + s * 1.05075007164441684324e-9
    den = 1.48103976427480074590e-1 + s * (1.51986665636164571966e-2 + s * den)
    den = 1.67638483018380384940e0 + s * (6.89767334985100004550e-1 + s * den)
    tail = num / (1.0 + s * (2.05319162663775882187e0 + s * den))
    signed = -tail if q < 0.0 else tail
    return central if abs(q) <= 0.425 else signed


@kernel(fastmath={"contract"})
def _normals(directions, shift, first_path, words, z):
    """Coordinate of the points first_path .. first_path + LANES - 1, as normals; first_path a multiple of LANES."""
    start = shift
    for k in range(8, len(directions)):
        if (first_path >> k) & 1:
            start ^= directions[k]
    words[0] = start
    width = 1
    for k in range(8):  # the low bits: the block doubles from one point to LANES
        v = directions[k]
        for i in range(width):
            words[width + i] = words[i] ^ v
        width *= 2
    for i in range(len(z)):
        z[i] = inverse_normal((float(words[i]) + 0.5) * 2.0**-32)


@kernel(fastmath={"contract"})
def _increments(begin, end, directions, seed, streams, which, paths, plan, weights, scale, dw):
    for block in range(begin, end):
        num_steps, d = dw.shape[1], dw.shape[2]
        w = np.zeros((num_steps + 1, d, LANES))
        z = np.empty(LANES)
        words = np.empty(LANES, np.uint32)
        for row in range(num_steps):
            left, right, middle = plan[row]
            a, b, deviation = weights[row]
            for c in range(d):
                # A counter no pseudo-random path uses: those count draws from zero in the second word.
                j = row * d + c
                shift, _ = threefry(seed, streams[block], uint64(j), uint64(2**63))
                _normals(directions[which[block], j], uint32(shift), paths[block], words, z)
                wl, wr, wm = w[left, c], w[right, c], w[middle, c]
                for i in range(LANES):
                    wm[i] = a * wl[i] + b * wr[i] + deviation * z[i]
        s = scale
        for n in range(num_steps):
            for c in range(d):
                before, after, to = w[n, c], w[n + 1, c], dw[block, n, c]
                for i in range(LANES):
                    to[i] = s * (after[i] - before[i])
