"""exp(τA) v by Arnoldi's method, for a steady flow: A u = F·∇u + ½σ²Δu on kept Fourier modes.

m applications of A span K_m = span{v, Av, ..., A^(m-1) v} with an orthonormal basis V and A V = V H + h v_{m+1} e_mᵀ.
The approximation u(s) = β V y(s), y' = H y, y(0) = e_1, has the defect u' - A u = -β h y_m(s) v_{m+1}, so that by
the maximum principle, |exp(tA)| <= 1 in the max norm,

    max|u(τ) - exp(τA) v| <= β h max|v_{m+1}| ∫_0^τ |y_m(s)| ds.

This is the error estimate, with |∫h y_m| for the integral, as y_m does not change its sign where it is accepted.
Substeps are as long as it allows, and the errors of substeps add up. Only the last `WINDOW` vectors are orthogonalised
against (incomplete orthogonalisation, Saad 1980): the identity above holds all the same, and an application costs the
same at any m.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread

LARGEST_BASIS = 60
SMALLEST_BASIS = 20  # where memory is short
WINDOW = 4
HALVINGS = 8  # of a substep, up to which states are cheap
_CHUNK = 4096  # numbers summed in one go: the same sums for any number of threads
_MOST_BYTES = 2**28  # of a basis
_STRETCH = 1.1  # of the last substep, up to which a longer one is hoped for

Apply = Callable[[NDArray, NDArray], None]  # (u_hat, out): out = A u_hat


class Krylov:
    """The state of compact Fourier modes (..., K+1), advanced by substeps as long as the estimate allows.

    Modes with last frequency 0 stand for themselves, all others also for their conjugates; inner products are those of
    the fields, so that the basis is real.

    apply: (u_hat, out): out = A u_hat; largest: u_hat -> max|u| over the nodes; beside: propagators that share memory.
    tolerance: of max|error| over all of `duration`, set before the first step; estimate: the errors so far, added up;
    applications: of A so far.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        apply: Apply,
        largest: Callable[[NDArray], float],
        duration: float,
        beside: int = 1,
    ) -> None:
        self._shape, self._apply, self._largest, self._duration = shape, apply, largest, duration
        size = 2 * math.prod(shape)
        most = int(np.clip(_MOST_BYTES // (8 * size * beside) - 1, SMALLEST_BASIS, LARGEST_BASIS))
        self._basis = np.zeros((most + 1, size))
        self._hessenberg = np.zeros((most + 1, most))
        rows = max(1, _CHUNK // (2 * shape[-1]))
        self._chunk = rows * 2 * shape[-1]
        self._sums = np.empty((-(-size // self._chunk), WINDOW))
        self._y = np.zeros(most + 1)  # at `until`
        self._powers: list[NDArray] = []  # of the small exponential, for `early`
        self._length = 0.0  # of the state that the basis starts from
        self._dimension = 0
        self.since = self.until = 0.0  # reversed times between which the basis serves
        self._left = 0.0  # time that the basis was begun for
        self._origin = np.empty(0)
        self._last, self._taken = 1e300, 0  # the last substep, and its vectors
        self._crest = 1.0  # max|v| of the vector after the last basis
        self.tolerance, self.estimate, self.applications = 0.0, 0.0, 0
        self._before = self.carried()  # when the basis was begun

    def serve(self, u: NDArray, s: float, *, standing: float = math.inf) -> float:
        """How long from s on the basis serves; another one is begun from u where it has served.

        standing: the time for which A stays as it is.
        """
        if self.served(s):
            self.begin(u, s, min(self._duration - s, standing))
        return self.until - s

    def served(self, s: float) -> bool:
        """Whether the basis has served, and another one has to begin at s."""
        return self._dimension == 0 or s >= self.until - 1e-12 * self._duration

    def begin(self, u: NDArray, s: float, left: float) -> None:
        """Build a basis from u at s, and find for how long it serves, `left` at most."""
        basis, hessenberg = self._basis, self._hessenberg
        most = hessenberg.shape[1]
        self._before, self.since, self._left = self.carried(), s, left
        self._origin = u.copy()
        basis[0] = u.reshape(-1).view(np.float64)
        self._length = self._orthogonalise(0)
        rate = self.tolerance / self._duration
        spare = max(rate * s - self.estimate, 0.0)
        goal = left / math.ceil(left / (_STRETCH * self._last)) if self._last < left else left
        hessenberg[:] = 0.0
        if self._length == 0.0:
            self._dimension, self.until = 1, s + left
            return
        # the last basis says how many vectors a substep as long takes: no need to look much before
        look_at = max(1, math.floor(0.7 * self._taken * min(goal / self._last, 1.0)))
        for j in range(most):
            m = j + 1
            self._apply(self._modes(j), self._modes(m))
            self.applications += 1
            length = self._orthogonalise(m)
            hessenberg[m, j] = length
            if not length >= 0.0:
                raise FloatingPointError("the Krylov basis is not finite")
            if length > 0.0 and m < most:
                if m < look_at:
                    continue
                # look first without a transform, with the crest that the last basis ended with
                guess = 0.5 * self._length * self._crest
                reached, _ = longest_substep(hessenberg, m, goal, guess, spare, rate, self._y, coarsely=True)
                if reached < goal * (1.0 - 1e-12):
                    # what is reached grows faster than m, and may be twice what the coarse look has found
                    look_at = m + max(1, m // 4, min(m, math.floor(0.2 * m * goal / max(reached, 1e-3 * goal))))
                    continue
            crest = self._largest(self._modes(m)) if length else 0.0
            reached, error = longest_substep(hessenberg, m, goal, self._length * crest, spare, rate, self._y)
            if reached >= goal * (1.0 - 1e-12) or length == 0.0:
                break
            look_at = m + max(1, m // 8)
        if not reached > 1e-9 * min(self._duration, left):
            raise ValueError(
                f"velocity: expected one that substeps of {1e-9 * self._duration:.1g} follow, got an |F| too large for "
                "them; rescale the time or the box"
            )
        self._dimension, self._crest = m, crest or self._crest
        self._last, self._taken = reached, m
        self.until, self._powers = s + (left if reached >= left * (1.0 - 1e-12) else reached), []
        self.estimate += error

    def shorten(self, factor: float) -> None:
        """Let the basis serve for less time, with the smaller error of that."""
        self.until, self._powers = self.since + factor * (self.until - self.since), []
        self._y = self._early(0)
        self.estimate = self._before[2] + self._length * self._crest * abs(float(self._y[self._dimension]))

    def _coefficients(self, s: float) -> NDArray[np.float64]:
        """y at a time that the basis serves, and after it the integral of its defect."""
        if s == self.until:
            return self._y
        y = np.zeros_like(self._y)
        longest_substep(self._hessenberg, self._dimension, s - self.since, 0.0, math.inf, 0.0, y)
        return y

    def _early(self, halvings: int) -> NDArray[np.float64]:
        """`_coefficients` after the time that the basis serves halved so often, for a few of them by one squaring."""
        m = self._dimension
        if not self._powers:
            b = _augmented(self._hessenberg, m) * (self.until - self.since)
            levels = max(HALVINGS, math.ceil(math.log2(max(float(np.abs(b).sum(axis=0).max()), 1.0))))
            self._powers = [_exponential(b / 2.0**levels)]
            while len(self._powers) <= levels:
                self._powers.append(self._powers[-1] @ self._powers[-1])
        y = np.zeros_like(self._y)
        y[: m + 1] = self._powers[-1 - halvings][:, 0]
        return y

    def state(self, s: float, out: NDArray) -> float:
        """u at a time that the basis serves, into out; returns what its error is of the vector after the basis."""
        return self._put(self._coefficients(s), out)

    def early_state(self, halvings: int, out: NDArray) -> float:
        """`state` at since + (until - since) / 2^halvings, cheap for 0 to `HALVINGS` of them."""
        return self._put(self._early(halvings), out)

    def _put(self, y: NDArray, out: NDArray) -> float:
        m, flat = self._dimension, out.reshape(-1).view(np.float64)
        args = (self._chunk, self._basis, self._length * y[:m], flat)
        spread(_combine, len(self._sums), *args, items=m * flat.size // 16)
        return self._length * float(y[m])

    @property
    def hessenberg(self) -> NDArray[np.float64]:
        """H (m, m): u = |u(since)| V y with y' = H y, y(since) = e_1, for the vectors V of the basis."""
        return self._hessenberg[: self._dimension, : self._dimension]

    @property
    def length(self) -> float:
        """|u(since)|."""
        return self._length

    def small_state(self, s: float) -> NDArray[np.float64]:
        """y (m,) at a time that the basis serves."""
        return self._coefficients(s)[: self._dimension].copy()

    def combined(self, y: NDArray) -> NDArray[np.complex128]:
        """V y for each row of y (R, m): modes (R, ...)."""
        return (y @ self._basis[: self._dimension]).view(np.complex128).reshape(-1, *self._shape)

    @property
    def vector_after(self) -> NDArray[np.complex128]:
        """The vector after the basis."""
        return self._modes(self._dimension)

    def carried(self) -> tuple[float, ...]:
        """What another propagator needs to go on from here: see `follow`."""
        return self._last, float(self._taken), self.estimate, self._crest, float(self.applications)

    def follow(self, carried: tuple[float, ...]) -> None:
        """Go on where another one has come to; carried: what it gave."""
        self._last, vectors, self.estimate, self._crest, applications = carried
        self._taken, self.applications = int(vectors), int(applications)
        self._dimension = 0

    def _modes(self, j: int) -> NDArray[np.complex128]:
        return self._basis[j].view(np.complex128).reshape(self._shape)

    def _orthogonalise(self, j: int) -> float:
        """Take the `WINDOW` vectors before j out of vector j, scale it to length 1, and return its length, or 0."""
        pieces, row, size = len(self._sums), 2 * self._shape[-1], self._basis.shape[1]
        coefficients = np.zeros(WINDOW)
        if j:
            spread(_products, pieces, self._chunk, row, self._basis, j, self._sums, items=size // 4)
            there = min(j, WINDOW)
            coefficients[WINDOW - there :] = self._sums.sum(axis=0)[WINDOW - there :]
            self._hessenberg[j - there : j, j - 1] = coefficients[WINDOW - there :]
        spread(_subtract, pieces, self._chunk, row, self._basis, j, self._sums, coefficients, items=size // 4)
        length = math.sqrt(self._sums[:, 0].sum())
        if not length > 1e-14 * np.abs(coefficients).sum():
            return 0.0 if length == length else length
        self._basis[j] *= 1.0 / length
        return length

    def history(self) -> dict[str, NDArray]:
        """The state that the basis starts from: a restart builds the same basis again."""
        if self._dimension == 0:
            return {}
        numbers = (self.since, self._left, *self._before)
        return {"origin": self._origin} | {f"number_{i}": np.array(value) for i, value in enumerate(numbers)}

    def restore(self, history: dict[str, NDArray]) -> None:
        if not history:
            return
        since, left, *before = (float(history[f"number_{i}"]) for i in range(7))
        self.follow(tuple(before))
        self.begin(history["origin"], since, left)


@kernel(fastmath={"reassoc", "contract"})
def _products(begin: int, end: int, chunk: int, row: int, basis: NDArray, j: int, sums: NDArray) -> None:
    """Inner products of vector j with the four before it, by chunks: sums (chunks, 4)."""
    w = basis[j]
    v0, v1, v2, v3 = basis[max(j - 4, 0)], basis[max(j - 3, 0)], basis[max(j - 2, 0)], basis[max(j - 1, 0)]
    for piece in range(begin, end):
        start, stop = piece * chunk, min((piece + 1) * chunk, len(w))
        t0 = t1 = t2 = t3 = 0.0
        for p in range(start, stop):
            t0 += v0[p] * w[p]
            t1 += v1[p] * w[p]
            t2 += v2[p] * w[p]
            t3 += v3[p] * w[p]
        o0 = o1 = o2 = o3 = 0.0
        for p in range(start, stop, row):  # modes that have no conjugate elsewhere
            o0 += v0[p] * w[p] + v0[p + 1] * w[p + 1]
            o1 += v1[p] * w[p] + v1[p + 1] * w[p + 1]
            o2 += v2[p] * w[p] + v2[p + 1] * w[p + 1]
            o3 += v3[p] * w[p] + v3[p + 1] * w[p + 1]
        sums[piece, 0], sums[piece, 1] = 2.0 * t0 - o0, 2.0 * t1 - o1
        sums[piece, 2], sums[piece, 3] = 2.0 * t2 - o2, 2.0 * t3 - o3


@kernel(fastmath={"reassoc", "contract"})
def _subtract(begin: int, end: int, chunk: int, row: int, basis: NDArray, j: int, sums: NDArray, c: NDArray) -> None:
    """Vector j less Σ c[i] times the four before it, and the square of its length by chunks: sums[:, 0]."""
    w = basis[j]
    v0, v1, v2, v3 = basis[max(j - 4, 0)], basis[max(j - 3, 0)], basis[max(j - 2, 0)], basis[max(j - 1, 0)]
    for piece in range(begin, end):
        start, stop = piece * chunk, min((piece + 1) * chunk, len(w))
        total = 0.0
        for p in range(start, stop):
            left = w[p] - (c[0] * v0[p] + c[1] * v1[p] + c[2] * v2[p] + c[3] * v3[p])
            w[p] = left
            total += left * left
        once = 0.0
        for p in range(start, stop, row):
            once += w[p] * w[p] + w[p + 1] * w[p + 1]
        sums[piece, 0] = 2.0 * total - once


@kernel(fastmath={"contract"})
def _combine(begin: int, end: int, chunk: int, basis: NDArray, weights: NDArray, out: NDArray) -> None:
    """out = Σ weights[i] basis[i]."""
    for piece in range(begin, end):
        start, stop = piece * chunk, min((piece + 1) * chunk, len(out))
        out[start:stop] = 0.0
        for i in range(len(weights)):
            v, c = basis[i], weights[i]
            for p in range(start, stop):
                out[p] += c * v[p]


def _exponential(b: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(b) for |b|_1 <= 1: Taylor's series to degree 18 (Paterson and Stockmeyer 1973)."""
    square = b @ b
    cube = square @ b
    out = cube / math.factorial(18)
    for k in (15, 12, 9, 6, 3, 0):
        out += b / math.factorial(k + 1) + square / math.factorial(k + 2)
        out.flat[:: len(b) + 1] += 1.0 / math.factorial(k)
        if k:
            out = out @ cube
    return out


def _augmented(hessenberg: NDArray, m: int) -> NDArray[np.float64]:
    """[[H, 0], [h e_mᵀ, 0]]."""
    b = np.zeros((m + 1, m + 1))
    b[:, :m] = hessenberg[: m + 1, :m]
    return b


def longest_substep(
    hessenberg: NDArray,
    m: int,
    limit: float,
    factor: float,
    spare: float,
    rate: float,
    y: NDArray,
    *,
    coarsely: bool = False,
) -> tuple[float, float]:
    """The longest τ <= limit found for which factor |z(τ)| <= spare + rate τ, with z' = h y_m, y' = H y, y(0) = e_1.

    Returns τ and the largest factor |z| met on the way, and fills y[:m] with y(τ), y[m] with z(τ). H and h: rows of
    hessenberg up to m. exp(2^i δ [[H, 0], [h e_mᵀ, 0]]) for i = 0, 1, ... by squaring, while it is allowed; then back
    down the powers, at each adding what is still allowed; coarsely: without that, to a factor of two.
    """
    b = _augmented(hessenberg, m)
    norm = float(np.abs(b).sum(axis=0).max())
    levels = max(0, math.ceil(math.log2(max(limit * norm, 1.0))))
    delta = limit / 2.0**levels

    def allowed(v: NDArray, s: float) -> bool:
        return bool(factor * abs(v[m]) <= spare + rate * s)

    y[:] = 0.0
    for _ in range(10):
        powers = [_exponential(delta * b)]
        while len(powers) <= levels and allowed(powers[-1][:, 0], delta * 2.0 ** (len(powers) - 1)):
            powers.append(powers[-1] @ powers[-1])
        top = len(powers) - 1 - (not allowed(powers[-1][:, 0], delta * 2.0 ** (len(powers) - 1)))
        if top >= 0 or coarsely:
            break
        delta *= 0.5
    if top < 0:
        return 0.0, 0.0
    v, s = powers[top][:, 0], delta * 2.0**top
    largest = max(abs(float(power[m, 0])) for power in powers[: top + 1])
    for i in range(top - 1, top if coarsely else max(top - 6, -1), -1):
        t = s + delta * 2.0**i
        if t > limit * (1.0 + 1e-12):
            continue
        w = powers[i] @ v
        if allowed(w, t):
            v, s, largest = w, t, max(largest, abs(float(w[m])))
    y[: m + 1] = v
    return s, factor * largest
