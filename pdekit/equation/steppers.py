"""Time steppers for u' = L u + N(u, s) with a diagonal L: exact in L, explicit in N. They know no PDE.

Most are Lawson (integrating factor) methods: a classical scheme applied to v = exp(-L s) u, written back in u, so
every stage is a sum of diagonal weights times earlier evaluations of N. The weights are precomputed for a step
size; a stage is then one fused pass over the modes.

    StepperRK4       classical fourth order, 4 evaluations a step; as an exponential integrator (Krogstad 2005) where N
                     nearly cancels L: it holds what stands still, where Lawson's error is that of L itself
    StepperAB4       Adams-Bashforth, fourth order, 1 evaluation a step, started by RK4
    StepperDP5       Dormand-Prince 5(4), step size driven by a tolerance, 6 evaluations a step (FSAL)

A stepper advances a state (K, ...) of K fields in place: `step(u, s, limit)` returns the step size taken, which for the
adaptive one is at most `limit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pdekit.runtime.kernels import kernel

Advance = Callable[[NDArray, float, NDArray], None]  # (u_hat, s, out): out = N(u_hat, s)
Pull = Callable[[int, NDArray, NDArray], None]  # (i, v, out): out = (∂N/∂u)ᵀ v at evaluation i of a step


class Stepper(Protocol):
    """order: of the method; dt: the step it takes, or tries next."""

    order: int
    dt: float

    def step(self, u: NDArray, s: float, limit: float = np.inf) -> float:
        """Advance u (modes) in place from s on, and return by how much."""

    def history(self) -> dict[str, NDArray]:
        """Arrays that a restart needs beyond the state."""

    def restore(self, history: dict[str, NDArray]) -> None:
        """Take over the arrays that `history` gave."""


def _rows(fields: NDArray) -> NDArray:
    """(K, ...) as (K, M)."""
    return fields.reshape(len(fields), -1)


@kernel(fastmath={"contract"})
def _combine(u: NDArray, factor: NDArray, weights: NDArray, stages: NDArray, out: NDArray) -> None:
    """out = factor * u + Σ_j weights[j] * stages[j], elementwise; out may be u.

    u, out: (K, M); factor: (M,); weights: (S, M); stages: (S, K, M).
    """
    num_stages, fields, m = stages.shape
    for k in range(fields):
        for start in range(0, m, 512):  # by blocks, so that out stays in the first-level cache
            stop = min(start + 512, m)
            for p in range(start, stop):
                out[k, p] = factor[p] * u[k, p]
            for j in range(num_stages):
                for p in range(start, stop):
                    out[k, p] += weights[j, p] * stages[j, k, p]


class _Tableau:
    """Weights of an explicit Runge-Kutta scheme under the integrating factor, for one step size."""

    def __init__(self, a: Sequence[Sequence[float]], c: Sequence[float], symbol: NDArray, dt: float) -> None:
        exponential: dict[float, NDArray] = {}

        def e(fraction: float) -> NDArray:
            key = round(fraction, 12)
            if key not in exponential:
                exponential[key] = np.exp(symbol * (fraction * dt))
            return exponential[key]

        self.rows: list[tuple[NDArray, NDArray, slice]] = []  # factor of u, weights of slopes, which slopes
        for row, c_i in zip(a[1:], c[1:], strict=True):
            first = next(j for j, a_ij in enumerate(row) if a_ij)
            weights = np.stack([dt * row[j] * e(c_i - c[j]) for j in range(first, len(row))])
            self.rows.append((e(c_i), weights, slice(first, len(row))))


def _phi(z: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """φ₁, φ₂, φ₃ of z <= 0: φ_{k+1}(z) = (φ_k(z) - 1/k!) / z, φ₀ = exp; by their series where that would cancel."""
    small = np.abs(z) < 1.0
    w = np.where(small, -1.0, z)
    series = [np.zeros_like(z) for _ in range(3)]
    for k, out in enumerate(series, start=1):
        for j in range(19, -1, -1):
            out[...] = out * z + 1.0 / math.factorial(j + k)
    first = np.expm1(w) / w
    second = (first - 1.0) / w
    third = (second - 0.5) / w
    found = [np.where(small, s, r) for s, r in zip(series, (first, second, third), strict=True)]
    return found[0], found[1], found[2]


def _krogstad(z: NDArray) -> list[tuple[NDArray, NDArray, slice]]:
    """Stages of the exponential fourth-order method of S. Krogstad, J. Comput. Phys. 203 (2005), for z = L dt.

    As those of `_Tableau`: factor of u, weights of slopes in units of dt, which slopes.
    """
    one, two, three = _phi(z)
    half, quarter, _ = _phi(0.5 * z)
    middle, whole = np.exp(0.5 * z), np.exp(z)
    return [
        (middle, np.stack([0.5 * half]), slice(0, 1)),
        (middle, np.stack([0.5 * half - quarter, quarter]), slice(0, 2)),
        (whole, np.stack([one - 2.0 * two, np.zeros_like(z), 2.0 * two]), slice(0, 3)),
        (
            whole,
            np.stack([one - 3.0 * two + 4.0 * three, *[2.0 * two - 4.0 * three] * 2, 4.0 * three - two]),
            slice(0, 4),
        ),
    ]


class StepperRK4:
    """Lawson's fourth-order method: classical RK4 on the transformed variable.

    exponential: Krogstad's method in its place, which is stable for N = θ L, -1 <= θ <= ½.
    """

    order = 4
    _A = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
    _C = (0.0, 0.5, 0.5, 1.0, 1.0)

    def __init__(
        self, symbol: NDArray, advance: Advance, dt: float, fields: int = 1, *, exponential: bool = False
    ) -> None:
        self.dt, self._advance = dt, advance
        if exponential:
            self.rows = [(factor, dt * weights, used) for factor, weights, used in _krogstad(symbol.ravel() * dt)]
        else:
            self.rows = _Tableau(self._A, self._C, symbol.ravel(), dt).rows
        self.slopes = np.empty((4, fields, *symbol.shape), dtype=complex)
        self._stage = np.empty((fields, *symbol.shape), dtype=complex)

    @staticmethod
    def amplification(w: NDArray, z: NDArray) -> NDArray[np.float64]:
        """Growth in a step of u' = L u + λu where w = λ dt, z = L dt; for L = 0 at most 1 up to |w| = 2√2 on iR."""
        return np.abs(1.0 + w * (1.0 + w / 2.0 * (1.0 + w / 3.0 * (1.0 + w / 4.0)))) * np.exp(z)

    @staticmethod
    def exponential_amplification(w: NDArray, z: NDArray) -> NDArray[np.float64]:
        """The same of Krogstad's method."""
        slopes: list[NDArray] = []
        u = np.ones_like(w)
        for factor, weights, used in _krogstad(z):
            slopes.append(w * u)
            u = factor + sum(b * n for b, n in zip(weights, slopes[used], strict=True))
        return np.abs(u)

    def step(self, u: NDArray, s: float, limit: float = np.inf) -> float:
        flat, stage = _rows(u), _rows(self._stage)
        slopes = self.slopes.reshape(4, *flat.shape)
        self._advance(u, s, self.slopes[0])
        for i, (factor, weights, used) in enumerate(self.rows[:-1], start=1):
            _combine(flat, factor, weights, slopes[used], stage)
            self._advance(self._stage, s + self._C[i] * self.dt, self.slopes[i])
        factor, weights, used = self.rows[-1]
        _combine(flat, factor, weights, slopes[used], flat)
        return self.dt

    def history(self) -> dict[str, NDArray]:
        """Nothing, as a one-step method needs no more than its state."""
        return {}

    def restore(self, history: dict[str, NDArray]) -> None:
        pass


class StepperAB4:
    """Fourth-order Adams-Bashforth under the integrating factor; its history belongs in a checkpoint."""

    order = 4
    _B = (55 / 24, -59 / 24, 37 / 24, -9 / 24)

    def __init__(self, symbol: NDArray, advance: Advance, dt: float, fields: int = 1) -> None:
        self.dt, self._advance = dt, advance
        flat = symbol.ravel()
        self._factor = np.exp(flat * dt)
        # the slope of j steps ago reaches the new time through exp(L (j + 1) dt)
        self._weights = np.stack([dt * b * np.exp(flat * ((j + 1) * dt)) for j, b in enumerate(self._B)])
        self._rolled = [np.stack([self._weights[(newest - slot) % 4] for slot in range(4)]) for newest in range(4)]
        self._slopes = np.zeros((4, fields, *symbol.shape), dtype=complex)
        self._taken = 0
        self._starter: StepperRK4 | None = StepperRK4(symbol, advance, dt, fields)

    @classmethod
    def amplification(cls, w: NDArray, z: NDArray) -> NDArray[np.float64]:
        """Growth in a step of u' = L u + λu where w = λ dt, z = L dt; for L = 0 at most 1 up to |w| = 0.43 on iR."""
        companion = np.zeros((*w.shape, 4, 4), dtype=complex)
        companion[..., 0, :] = w[..., None] * np.array(cls._B)
        companion[..., 0, 0] += 1.0
        companion[..., [1, 2, 3], [0, 1, 2]] = 1.0
        return np.abs(np.linalg.eigvals(companion)).max(axis=-1) * np.exp(z)

    def step(self, u: NDArray, s: float, limit: float = np.inf) -> float:
        newest = self._taken % 4
        self._taken += 1
        if self._starter is not None and self._taken < 4:
            self._starter.step(u, s)
            self._slopes[newest] = self._starter.slopes[0]
            return self.dt
        self._starter = None
        self._advance(u, s, self._slopes[newest])
        flat = _rows(u)
        _combine(flat, self._factor, self._rolled[newest], self._slopes.reshape(4, *flat.shape), flat)
        return self.dt

    def history(self) -> dict[str, NDArray]:
        return {"slopes": self._slopes, "taken": np.array(self._taken)}

    def restore(self, history: dict[str, NDArray]) -> None:
        self._slopes[...] = history["slopes"]
        self._taken = int(history["taken"])
        if self._taken >= 3:
            self._starter = None


class StepperDP5:
    """Dormand-Prince 5(4) under the integrating factor, with a PI step-size controller.

    rtol: the local error a unit of time, in the root-mean-square norm of the field, is kept below rtol * rms(u). dt: of
        the first step.
    norm: u_hat -> rms of the field.
    """

    order = 5
    _A = (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )
    _C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
    _ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

    def __init__(
        self,
        symbol: NDArray,
        advance: Advance,
        dt: float,
        fields: int = 1,
        *,
        norm: Callable[[NDArray], float],
        rtol: float,
    ) -> None:
        if not rtol > 0:
            raise ValueError(f"rtol: expected a positive number, got {rtol}")
        self.dt, self.rtol = dt, rtol
        self._symbol, self._advance, self._norm = symbol.ravel(), advance, norm
        self._slopes = np.empty((7, fields, *symbol.shape), dtype=complex)
        self._stage = np.empty((fields, *symbol.shape), dtype=complex)
        self._error = np.empty((fields, *symbol.shape), dtype=complex)
        self._zero = np.zeros(symbol.size)
        self._tableau_dt, self._have_first, self._last_ratio = np.nan, False, 1.0

    def _prepare(self, dt: float) -> None:
        if dt == self._tableau_dt:
            return
        self._tableau = _Tableau(self._A, self._C, self._symbol, dt)
        decay = [np.exp(self._symbol * ((1.0 - c) * dt)) for c in self._C]
        self._error_weights = np.stack([dt * b * e for b, e in zip(self._ERROR, decay, strict=True)])
        self._tableau_dt = dt

    def step(self, u: NDArray, s: float, limit: float = np.inf) -> float:
        """One accepted step, not past s + limit. Raises FloatingPointError where the step size collapses."""
        flat, stage = _rows(u), _rows(self._stage)
        slopes = self._slopes.reshape(7, *flat.shape)
        while True:
            dt = min(self.dt, limit)
            if limit < 2.0 * dt and dt < limit:
                dt = 0.5 * limit  # two equal steps rather than one and a sliver
            if not dt > 1e-12 * max(1.0, abs(s)):
                raise FloatingPointError(f"the step size fell to {dt:.1e}")
            self._prepare(dt)
            if not self._have_first:
                self._advance(u, s, self._slopes[0])
                self._have_first = True
            for i, (factor, weights, used) in enumerate(self._tableau.rows, start=1):
                _combine(flat, factor, weights, slopes[used], stage)
                self._advance(self._stage, s + self._C[i] * dt, self._slopes[i])
            _combine(flat, self._zero, self._error_weights, slopes, _rows(self._error))
            allowed = self.rtol * self._norm(u) * dt
            ratio = self._norm(self._error) / allowed if allowed > 0 else 0.0
            if ratio <= 1.0:
                # PI controller (Hairer, Norsett & Wanner 1993, II.4) on an error per unit step of order 4
                growth = 0.9 * max(ratio, 1e-4) ** -0.175 * max(self._last_ratio, 1e-4) ** 0.08
                self._last_ratio = max(ratio, 1e-4)
                u[...] = self._stage
                self._slopes[0] = self._slopes[6]
                if dt >= 0.999 * self.dt or growth < 1.0:
                    self.dt = dt * min(max(growth, 0.2), 3.0)
                return dt
            shrink = 0.9 * ratio**-0.25 if np.isfinite(ratio) else 0.1
            self.dt = dt * max(shrink, 0.1)

    def history(self) -> dict[str, NDArray]:
        return {"dt": np.array(self.dt), "last_ratio": np.array(self._last_ratio)}

    def restore(self, history: dict[str, NDArray]) -> None:
        self.dt, self._last_ratio = float(history["dt"]), float(history["last_ratio"])


class TransposedRK4:
    """Steps of `StepperRK4` transposed: ∂J/∂u after a step to that before it.

    nodes: c_i, the part of a step that has passed at evaluation i.
    """

    nodes = StepperRK4._C[:4]

    def __init__(self, symbol: NDArray, dt: float, fields: int = 1) -> None:
        *stages, (self._factor, self._weights, _) = _Tableau(StepperRK4._A, StepperRK4._C, symbol.ravel(), dt).rows
        # of all stages, the next one alone has an evaluation
        self._next = [weights[-1:] for _, weights, _ in stages] + [self._weights[:0]]
        self._factors = np.stack([np.ones(symbol.size), *(factor for factor, _, _ in stages)])
        self._pulled = np.empty((4, fields, *symbol.shape), dtype=complex)
        self._slope = np.empty((fields, *symbol.shape), dtype=complex)

    def step(self, adjoint: NDArray, pull: Pull, first: NDArray | None = None) -> None:
        """Take ∂J/∂u a step back in place; pull gets ∂J/∂N of evaluations 3, 2, 1, 0; first: added to the last one."""
        flat = _rows(adjoint)
        pulled = self._pulled.reshape(4, *flat.shape)
        for i in (3, 2, 1, 0):
            _combine(
                flat, self._weights[i], self._next[i], pulled[i + 1 : i + 1 + len(self._next[i])], _rows(self._slope)
            )
            if i == 0 and first is not None:
                self._slope += first
            pull(i, self._slope, self._pulled[i])
        _combine(flat, self._factor, self._factors, pulled, flat)


class TransposedAB4:
    """Steps of `StepperAB4` transposed, those of its start among them."""

    def __init__(self, symbol: NDArray, dt: float, fields: int = 1) -> None:
        forward = StepperAB4(symbol, lambda u, s, out: None, dt, 0)
        self._factor, self._weights = forward._factor, forward._weights
        self._aged = np.arange(4.0)[:, None] * self._weights
        self._zero = np.zeros(symbol.size)
        self._starter = TransposedRK4(symbol, dt, fields)
        self._kept = np.zeros((4, fields, *symbol.shape), dtype=complex)  # ∂J/∂u after step m in slot m % 4
        self._slope = np.zeros((fields, *symbol.shape), dtype=complex)
        self._pulled = np.empty((fields, *symbol.shape), dtype=complex)

    def step(self, adjoint: NDArray, n: int, pull: Pull) -> None:
        """Take ∂J/∂u before step n from that after it, in place; the steps come in the order N - 1, ..., 0."""
        self._kept[n % 4] = adjoint
        self._gather(n, self._weights, self._slope)
        if n < 3:
            self._starter.step(adjoint, pull, self._slope)
            return
        pull(0, self._slope, self._pulled)
        flat = _rows(adjoint)
        _combine(flat, self._factor, np.ones((1, flat.shape[1])), _rows(self._pulled)[None], flat)

    def aged(self, n: int, out: NDArray) -> None:
        """The sum that gives ∂J/∂N of step n, with each part times the steps that N had waited; after `step`."""
        self._gather(n, self._aged, out)

    def _gather(self, n: int, weights: NDArray, out: NDArray) -> None:
        """out = the sum over steps m >= n that N of step n enters, which those of RK4 do not."""
        ages = [(slot - n) % 4 for slot in range(4)]
        entered = np.stack([weights[age] if n + age >= 3 else self._zero for age in ages])
        kept = self._kept.reshape(4, *_rows(out).shape)
        _combine(_rows(out), self._zero, entered, kept, _rows(out))
