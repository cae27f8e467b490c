"""Gradients of a number J(u(·, 0)) by F, f, V, g and σ: the solver transposed.

With λ = ∂J/∂u, which starts from the cotangent at t = 0 and goes forward with the transposed equation,

    ∂J/∂a_c = ∫ λ D^c u ds,   ∂J/∂g = ∫ λ ds,   ∂J/∂f = λ(T),

for the coefficients a_c of the terms D^c u; from these it goes back to what the problem was given by
(`pdekit.equation.sensitivity`).

"spectral_rk4" and "spectral_ab4": the gradient of the discrete scheme, exact up to rounding. u is kept at about √n of
the n steps; from each of these the steps up to the next are done again, with their stages, and taken back.
"spectral_krylov": the gradient of the semi-discrete equation, up to its tolerance. Its state is kept at the start of
each basis. Where u = V y(s) and λ = W z(t) are both in one basis, the integrals need no quadrature:
∫ λ D^c u ds = Σ_ij M_ij W_j D^c V_i with M = ∫ y zᵀ ds of one small exponential (Van Loan 1978), whose singular
values tell the few pairs of fields that matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pdekit.equation.krylov import Krylov
from pdekit.equation.method import METHODS, whole_steps
from pdekit.equation.operator import fft_library
from pdekit.equation.plan import Planner, UnstableError, growth_exponent, stands
from pdekit.equation.resolution import Flow
from pdekit.equation.sensitivity import Gradients, Held, Sums, Whole
from pdekit.equation.spectral_method import KrylovMethod, LawsonMethod
from pdekit.equation.steppers import TransposedAB4, TransposedRK4
from pdekit.field import as_grid
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_real, check_whole, real_values

PULLED = ("spectral_rk4", "spectral_ab4", "spectral_krylov")

PullBack = Callable[[NDArray], Gradients]  # ∂J/∂u(x_i, 0) -> ∂J by what the problem was given by
Evaluation = tuple[NDArray, float, NDArray]  # of N: the state, the problem time, and what came out


def solve_and_pull(
    problem: ConvectionDiffusion,
    *,
    num_points: int | tuple[int, ...] = 128,
    dt: float = 1e-3,
    method: str = "auto",
    rtol: float = 1e-8,
    padded: bool | None = None,
    fft: str = "auto",
) -> tuple[NDArray[np.float64], PullBack]:
    """u(x, 0) on the nodes, and the function that takes ∂J/∂u(x_i, 0) to the gradients of J.

    num_points, dt, method, rtol, fft: as of `pdekit.solve`; "auto" stands for "spectral_krylov" where all stands still,
        "spectral_rk4" elsewhere.
    padded: keep all modes of the nodes, in place of two thirds; by default as `solve` chooses for these values. While
        values change, as they do in an optimisation, better say it.

    The function takes a cotangent of the shape of u, (N₁, ..., N_d) or (N₁, ..., N_d, K), any number of times. One
    call costs about three solves and, beside the tape of √n steps, the memory of the gradient itself.

    Nothing is said of resolution: `solve` once, which warns.

    Raises ValueError for another method, and for a field that has no values to differentiate by: a function of t, one
    that is redrawn, splines through node values, a σ that changes in time. Raises `UnstableError` where the step is
    known to be unstable, or u is not finite.
    """
    grid = tuple(check_whole("num_points", n, 8) for n in as_grid(num_points, problem.dim))
    if len(grid) != problem.dim or problem.dim > 3 or problem.domain == "space":
        raise ValueError(f"problem: expected a box and num_points for each of its axes, got {grid} for {problem.dim}")
    dt, rtol = check_real("dt", dt, "a positive step"), check_real("rtol", rtol, "a positive number")
    if method == "auto":
        method = "spectral_krylov" if stands(problem) else "spectral_rk4"
    if method not in PULLED:
        raise ValueError(f"method: expected 'auto' or one of {', '.join(PULLED)}, got {method!r}")
    if METHODS[method].standing and not stands(problem):
        raise ValueError(f"method: expected another one for a problem that changes in time, got {method!r}")
    library = fft_library(fft)
    whole = Whole(problem, grid)
    if padded is None:
        flow = Flow.of(whole.problem, grid, with_strain=False)
        planner = Planner(whole.problem, grid, flow, problem.horizon)
        plan = planner.plan(method)
        padded = plan.padded
        if not METHODS[method].adaptive:
            growth_exponent(planner, plan, whole_steps(problem.horizon, dt))
    if method == "spectral_krylov":
        return _krylov(whole, padded, library, rtol)
    return _lawson(whole, padded, library, method, dt)


def _cotangent(value: NDArray, u: NDArray) -> NDArray[np.float64]:
    values = real_values("cotangent", value)
    if values.shape != u.shape:
        raise ValueError(f"cotangent: expected the shape of u {u.shape}, got {values.shape}")
    return values


# steps of a fixed length


class _Lawson(Held, LawsonMethod):
    """A Lawson method that notes what it evaluates N at, and what comes out."""

    tape: list[Evaluation] | None = None

    def advance(self, u_hat: NDArray, s: float, out: NDArray) -> None:
        super().advance(u_hat, s, out)
        if self.tape is not None:
            self.tape.append((u_hat.copy(), self._time(s), out.copy()))

    def prepared(self, t: float) -> NDArray[np.float64]:
        """Coefficients on the product grid at a time."""
        return self._prepared_at(t)


def _lawson(whole: Whole, padded: bool, library: str, kind: str, dt: float) -> tuple[NDArray[np.float64], PullBack]:
    problem, grid = whole.problem, whole.grid
    steps = whole_steps(problem.horizon, dt)
    every, dt = math.ceil(math.sqrt(steps)), problem.horizon / steps
    fields = problem.num_fields or 1

    def begin() -> _Lawson:
        return _Lawson(problem, grid=grid, dt=dt, kind=kind, padded=padded, fft=library, coefficients=whole)

    method = begin()
    state = method.start(problem.terminal_nodes(grid))
    kept = []  # at steps 0, every, 2 every, ...: the state, and what a restart needs beside it
    for n in range(steps):
        if n % every == 0:
            kept.append((state.copy(), {name: array.copy() for name, array in method.history().items()}))
        state, _ = method.step(state, n * dt)
    u, last = method.field(state), state
    _check_finite(u)

    def backward(method: _Lawson) -> Iterator[tuple[int, list[Evaluation]]]:
        """Steps n - 1, ..., 0 with their evaluations, from one kept state to the next done again."""
        for first in range((len(kept) - 1) * every, -1, -every):
            state, history = kept[first // every]
            # a stepper that has left its start behind cannot make it again
            again, state, taped = begin() if first == 0 else method, state.copy(), []
            if history:
                again.restore(history)
            for n in range(first, min(first + every, steps)):
                again.tape = []
                state, _ = again.step(state, n * dt)
                taped.append(again.tape)
            again.tape = None
            while taped:
                yield first + len(taped) - 1, taped.pop()

    def pull(cotangent: NDArray) -> Gradients:
        method = begin()
        adjoint = method.start(_cotangent(cotangent, u) * math.prod(grid))
        after, aged = last.copy(), np.zeros_like(adjoint)
        sums = Sums(method, padded=padded, fft=library)
        rk4 = TransposedRK4(method.symbol, dt, fields)
        ab4 = TransposedAB4(method.symbol, dt, fields) if kind == "spectral_ab4" else None

        def step_back(n: int, evaluations: Sequence[Evaluation]) -> None:
            # a weight exp(L c dt) of the scheme has the derivative c dt exp(L c dt) by the symbol L
            def pull_at(i: int, v: NDArray, out: NDArray) -> None:
                (state, t, slope), passed = evaluations[i], TransposedRK4.nodes[i] * dt
                sums.pull(state, v, t, method.prepared(t), out)
                sums.add_source(v, t)
                if passed:
                    sums.add_symbol(state, out, passed)
                    sums.add_symbol(slope, v, -passed)

            sums.add_symbol(after, adjoint, dt)
            if ab4 is None:
                rk4.step(adjoint, pull_at)
                return
            ab4.step(adjoint, n, pull_at)
            ab4.aged(n, aged)
            sums.add_symbol(evaluations[0][2], aged, dt)

        for n, evaluations in backward(method):
            step_back(n, evaluations)
            after = evaluations[0][0]
        return sums.gradients(adjoint)

    return u, pull


def _check_finite(u: NDArray) -> None:
    if not np.isfinite(u).all():
        raise UnstableError("u is not finite: use a smaller dt, or more nodes")


# by Krylov bases


class _Krylov(Held, KrylovMethod):
    """The Krylov method on held coefficients."""


def _krylov(whole: Whole, padded: bool, library: str, rtol: float) -> tuple[NDArray[np.float64], PullBack]:
    problem, grid, horizon = whole.problem, whole.grid, whole.problem.horizon
    size: dict[str, Any] = {"grid": grid, "rtol": rtol, "duration": horizon, "padded": padded, "fft": library}
    forward = _Krylov(problem, coefficients=whole, **size)
    state = forward.start(problem.terminal_nodes(grid))
    kept: list[list[dict[str, NDArray]]] = []  # for each field, what each basis begins from
    for modes, propagator in zip(state, forward.propagators, strict=True):
        kept.append([])
        s = 0.0
        while not _reached(s, horizon):
            propagator.serve(modes, s)
            kept[-1].append(propagator.history())
            s = propagator.until
            propagator.state(s, modes)
    u = forward.field(state)
    _check_finite(u)

    def pull(cotangent: NDArray) -> Gradients:
        sums = Sums(forward, padded=padded, fft=library)
        backward = _Krylov(problem, coefficients=whole, transposed=True, **size)
        adjoint = backward.start(_cotangent(cotangent, u) * math.prod(grid))
        for modes, of_u, of_adjoint, bases in zip(
            adjoint, forward.propagators, backward.propagators, kept, strict=True
        ):
            t, waiting = 0.0, list(bases)
            of_u.restore(waiting.pop())
            while True:
                of_adjoint.serve(modes, t)
                began = horizon - of_u.since
                end = min(of_adjoint.until, began)
                if end > t:
                    _add_integral(sums, of_u, of_adjoint, horizon, t, end, rtol)
                t = end
                of_adjoint.state(t, modes)
                if _reached(t, horizon):
                    break
                if _reached(t, began) and waiting:
                    of_u.restore(waiting.pop())
        return sums.gradients(adjoint)

    return u, pull


def _reached(t: float, end: float) -> bool:
    return t >= end * (1.0 - 1e-12)


def _add_integral(
    sums: Sums, of_u: Krylov, of_adjoint: Krylov, horizon: float, t: float, end: float, rtol: float
) -> None:
    """The integrals over [t, end], in which one basis serves u and one λ."""
    h = end - t
    z = of_adjoint.length * of_adjoint.small_state(t)
    y = of_u.length * of_u.small_state(min(horizon - end, of_u.until))
    if sums.with_source:
        forced = np.zeros((len(z) + 1, len(z) + 1))
        forced[:-1, :-1], forced[:-1, -1] = h * of_adjoint.hessenberg, h * z
        sums.add_source(of_adjoint.combined(scipy.linalg.expm(forced)[None, :-1, -1]), 0.0)
    if not (y.any() and z.any()):
        return
    m = len(y)
    block = np.zeros((m + len(z), m + len(z)))
    block[:m, :m], block[m:, m:] = h * of_u.hessenberg, h * of_adjoint.hessenberg.T
    block[:m, m:] = h * np.outer(y, z)
    left, values, right = np.linalg.svd(scipy.linalg.expm(block)[:m, m:])
    rank = int((values > 1e-2 * rtol * values[0]).sum())
    for u, v in zip(of_u.combined((left[:, :rank] * values[:rank]).T), of_adjoint.combined(right[:rank]), strict=True):
        sums.add(u[None], v[None], 0.0)
        sums.add_symbol(u[None], v[None], 1.0)
