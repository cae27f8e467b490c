"""Gradients of a number J(u(·, 0)) by F, f, V, g and σ: the solver transposed.

With λ = ∂J/∂u, which starts from the cotangent at t = 0 and goes forward with the transposed equation,

    ∂J/∂a_c = ∫ λ D^c u ds,   ∂J/∂g = ∫ λ ds,   ∂J/∂f = λ(T),

for the coefficients a_c of the terms D^c u; from the product grid these go back to the nodes that a field is given by.

"spectral_rk4" and "spectral_ab4": the gradient of the discrete scheme, exact up to rounding. u is kept at about √n of
the n steps; from each of these the steps up to the next are done again, with their stages, and taken back.
"spectral_krylov": the gradient of the semi-discrete equation, up to its tolerance. Its state is kept at the start of
each basis. Where u = V y(s) and λ = W z(t) are both in one basis, the integrals need no quadrature:
∫ λ D^c u ds = Σ_ij M_ij W_j D^c V_i with M = ∫ y zᵀ ds of one small exponential (Van Loan 1978), whose singular
values tell the few pairs of fields that matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft as fourier
from scipy.linalg import expm

from pdekit.equation.coefficients import INSTANTS, Coefficients, looked_at
from pdekit.equation.krylov import Krylov
from pdekit.equation.method import METHODS
from pdekit.equation.operator import Grid, SpectralOperator, fft_library, gradient_terms
from pdekit.equation.plan import Planner, UnstableError, growth_exponent, stands
from pdekit.equation.resolution import Flow
from pdekit.equation.spectral_method import KrylovMethod, LawsonMethod, fields_last
from pdekit.equation.steppers import TransposedAB4, TransposedRK4
from pdekit.field import Field, GridField, as_grid
from pdekit.noise import pairs
from pdekit.numerics.spectral import truncated
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_real, check_whole, real_values
from pdekit.runtime.kernels import kernel
from pdekit.series import GridSeries

PULLED = ("spectral_rk4", "spectral_ab4", "spectral_krylov")


@dataclass(frozen=True)
class Gradients:
    """∂J by the values that a problem was given by.

    velocity: (d, N₁, ..., N_d) by the nodes of node values, (M, d, N₁, ..., N_d) by those of a `GridSeries`, and by
        its values on the nodes of the solve for a function.
    terminal: (N₁, ..., N_d) or (N₁, ..., N_d, K), by its nodes, or for a function those of the solve.
    potential, source: (N₁, ..., N_d), or (M, 1, N₁, ..., N_d) of a series; None where there is none. A number stands
        for two nodes an axis: their sum is its derivative.
    sigma: a number, (d,) or (d, m) as the problem has it; for a function by its values on the nodes, (N₁, ..., N_d) or
        (C, N₁, ..., N_d) with the C elements of a vector or a matrix in a row.
    sigma_matrix: (d, m), by the matrix that any constant σ stands for; None for a function.
    """

    velocity: NDArray[np.float64]
    terminal: NDArray[np.float64]
    potential: NDArray[np.float64] | None
    source: NDArray[np.float64] | None
    sigma: NDArray[np.float64] | float
    sigma_matrix: NDArray[np.float64] | None


PullBack = Callable[[NDArray], Gradients]


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
    whole = _Whole(problem, grid)
    if padded is None:
        flow = Flow.of(whole.problem, grid, with_strain=False)
        planner = Planner(whole.problem, grid, flow, problem.horizon)
        plan = planner.plan(method)
        padded = plan.padded
        if not METHODS[method].adaptive:
            growth_exponent(whole.problem, flow, plan, grid, max(1, math.ceil(problem.horizon / dt - 1e-9)))
    if method == "spectral_krylov":
        return _krylov(whole, padded, library, rtol)
    return _lawson(whole, padded, library, method, dt)


# from values that are given to coefficients, and back


class _Input:
    """A field on the unit box as a sum of frames with weights in time, a single one where it stands still.

    factor: (C,), by which the values that were given are multiplied.
    """

    def __init__(self, given: Field, unit: Field, factor: NDArray) -> None:
        name = given.name
        if unit.jumps:
            raise ValueError(f"{name}: expected values to differentiate by, got a field that is redrawn in time")
        if not unit.steady and not isinstance(unit, GridSeries):
            raise ValueError(
                f"{name}: expected values to differentiate by, got a function of t; give a GridSeries, or interval = "
                "math.inf to a function that does not depend on t"
            )
        if isinstance(unit, GridField | GridSeries) and unit.continuation != "trigonometric":
            raise ValueError(f"{name}: expected the continuation 'trigonometric', got {unit.continuation!r}")
        self.unit, self.shape = unit, unit.shape
        self.factor, self.own_grid = factor, unit.grid if isinstance(unit, GridField | GridSeries) else None
        self.num_frames = 1
        if isinstance(unit, GridSeries):
            self.num_frames = len(unit.times)
            self.factor = np.ones(len(factor)) if unit.frame is None else np.array(unit.frame.factor)

    def weights(self, t: float) -> list[tuple[int, float]]:
        return self.unit.weights(t) if isinstance(self.unit, GridSeries) else [(0, 1.0)]

    def nodes(self, frame: int, grid: Grid) -> NDArray[np.float64]:
        """(C, N₁, ..., N_d) of a frame."""
        field = self.unit.at_frame(frame) if isinstance(self.unit, GridSeries) else self.unit
        return field.nodes(grid, 0.0)

    def pulled(self, by_nodes: NDArray) -> NDArray[np.float64]:
        """Gradients (M, C, N₁, ..., N_d) by the nodes of the solve as those by the values that were given."""
        if self.own_grid is not None:
            by_nodes = resample_transposed(by_nodes, self.own_grid)
        by_nodes = by_nodes * self.factor.reshape(-1, *[1] * (by_nodes.ndim - 2))
        if isinstance(self.unit, GridSeries):
            return by_nodes
        return by_nodes[0] if self.shape else by_nodes[0, 0]


def resample_transposed(values: NDArray, grid: Grid) -> NDArray[np.float64]:
    """Transposed `pdekit.numerics.spectral.resample` of trailing axes: (..., N₁, ..., N_d) to (..., *grid).

    As its Nyquist mode is split evenly towards a finer grid, here its real part is taken, and the other way round.
    """
    for axis, n in enumerate(grid, start=-len(grid)):
        if values.shape[axis] != n:
            values = fourier.irfft(fourier.rfft(values, axis=axis), n=n, axis=axis)
    return values


class _Whole(Coefficients):
    """The coefficients with all terms and modes that they get when the values of the fields change.

    given: the problem as it was given; problem: the same on the unit box.
    """

    def __init__(self, given: ConvectionDiffusion, grid: Grid) -> None:
        unit = given.on_unit_box
        super().__init__(unit, grid)
        self.given, dim, one = given, unit.dim, np.ones(1)
        self.velocity = _Input(given.velocity, unit.velocity, 1.0 / given.lengths)
        self.potential = self.source = None
        if given.potential is not None and unit.potential is not None:
            self.potential = _Input(given.potential, unit.potential, one)
        if given.source is not None and unit.source is not None:
            self.source = _Input(given.source, unit.source, one)
        self.sigma = None
        if unit.noise.field is not None:
            if not unit.noise.steady:
                raise ValueError("sigma: expected one that does not change in time, got a function of t")
            self.sigma = _Input(unit.noise.field, unit.noise.field, np.ones(unit.noise.field.components))
            own = self.sigma.own_grid
            if own is not None and any(n > here for n, here in zip(own, grid, strict=True)):
                raise ValueError(f"sigma: expected node values on at most the nodes of the solve {grid}, got {own}")
        others = self.terms[dim + (self._potential is not None) :]
        killed = ((0,) * dim,) if self.potential else ()
        self.terms = (*gradient_terms(dim), *killed, *others)
        self.rows = {"velocity": slice(0, dim), "potential": slice(dim, dim + len(killed))}
        self.noise_rows = slice(dim + len(killed), len(self.terms))
        self.signs = {"velocity": 1.0, "potential": -1.0}
        self.inputs = {"velocity": self.velocity} | ({"potential": self.potential} if self.potential else {})
        grids = [i.own_grid for i in self.inputs.values()] + ([None] if self.sigma else [])
        self.bands = None if None in grids else tuple(max(ns) // 2 for ns in zip(*grids, strict=True))
        self.steady = all(i.unit.steady for i in self.inputs.values())

    def mean_weights(self, field: _Input) -> list[tuple[int, float]]:
        """(frame, weight) of the mean over time that goes into the symbol."""
        times = looked_at(field.unit, np.linspace(0.0, self.problem.horizon, INSTANTS))
        return [(i, w / len(times)) for t in times for i, w in field.weights(t)]

    def fixed(self) -> NDArray[np.float64]:
        """What of the coefficients on the nodes comes from no frame."""
        out = np.zeros((len(self.terms), *self.grid))
        out[self.rows["potential"]] = self.killing
        if self.sigma:
            out[self.noise_rows] = super().nodes(0.0)[-len(self.terms[self.noise_rows]) :]
        return out


class _Held:
    """Part of a method on modes whose coefficients are sums of frames, which are prepared once."""

    coefficients: Coefficients
    operator: SpectralOperator
    _transposed: bool
    _at: float | None = None

    @property
    def whole(self) -> _Whole:
        assert isinstance(self.coefficients, _Whole)
        return self.coefficients

    @cached_property
    def _frames(self) -> dict[str, list[NDArray]]:
        whole = self.whole
        return {
            name: [
                self.operator.prepare(whole.signs[name] * field.nodes(i, whole.grid)) for i in range(field.num_frames)
            ]
            for name, field in whole.inputs.items()
        }

    @cached_property
    def _fixed(self) -> NDArray:
        return self.operator.prepare(self.whole.fixed())

    def _prepared_at(self, t: float) -> NDArray:
        whole = self.whole
        at = 0.0 if whole.steady else t
        if at != self._at:
            self._prepared = self._fixed.copy()
            for name, field in whole.inputs.items():
                for i, w in field.weights(at):
                    _add(w, self._frames[name][i], self._prepared[whole.rows[name]])
            self._at = at
        return self._prepared

    @cached_property
    def _source_frames(self) -> list[NDArray]:
        source = self.whole.source
        assert source is not None
        return [self.operator.to_modes(source.nodes(i, self.operator.grid)[0]) for i in range(source.num_frames)]

    def _source_modes(self, t: float) -> NDArray | None:
        source = self.whole.source
        if source is None or self._transposed:
            return None
        return np.asarray(sum(w * self._source_frames[i] for i, w in source.weights(t)))


class _Sums:
    """∂J by coefficients, source and symbol, added up on the way through time."""

    def __init__(self, method: _Held) -> None:
        self._whole, self._operator = method.whole, method.operator
        whole, operator = self._whole, self._operator
        self._now = np.zeros((len(whole.terms), *operator.product_grid))
        self._by_frames = {
            name: np.zeros((field.num_frames, *self._now[whole.rows[name]].shape))
            for name, field in whole.inputs.items()
        }
        self._by_noise = np.zeros_like(self._now[whole.noise_rows])
        self._time: float | None = None  # of what is in `_now`
        self.by_symbol = np.zeros(operator.shape)
        self.with_source = whole.source is not None
        frames = whole.source.num_frames if whole.source else 0
        self._by_source = np.zeros((frames, *operator.shape), dtype=complex)

    def add(self, u: NDArray, v: NDArray, t: float) -> None:
        """v D^c u for modes (K, ...) of u and v = ∂J/∂N at a time."""
        self._at(t)
        for own, other in zip(u, v, strict=True):
            self._operator.pair(own, other, 1.0, self._now)

    def pull(self, u: NDArray, v: NDArray, t: float, prepared: NDArray, out: NDArray) -> None:
        """`add`, and out = (∂N/∂u)ᵀ v."""
        self._at(t)
        for own, other, into in zip(u, v, out, strict=True):
            self._operator.pull(own, other, prepared, self._now, into)

    def _at(self, t: float) -> None:
        at = 0.0 if self._whole.steady else t
        if at != self._time:
            self._hand_out()
            self._time = at

    def add_source(self, v: NDArray, t: float) -> None:
        """v = ∂J/∂N (K, ...) at a time."""
        if self._whole.source:
            for i, w in self._whole.source.weights(t):
                self._by_source[i] += w * v.sum(axis=0)

    def add_symbol(self, u: NDArray, v: NDArray, weight: float) -> None:
        """weight · v u for the modes of u and of v = ∂J/∂(L u)."""
        _add_products(weight, u.reshape(len(u), -1), v.reshape(len(v), -1), self.by_symbol.reshape(-1))

    def _hand_out(self) -> None:
        """Add what there is of one time to the frames that the fields have there."""
        whole = self._whole
        if self._time is None:
            return
        for name, field in whole.inputs.items():
            for i, w in field.weights(self._time):
                _add(w, self._now[whole.rows[name]], self._by_frames[name][i])
        self._by_noise += self._now[whole.noise_rows]
        self._now[:] = 0.0

    def gradients(self, adjoint: NDArray) -> Gradients:
        """Those by what was given; adjoint: λ(T), modes (K, ...)."""
        self._hand_out()
        whole, operator, given = self._whole, self._operator, self._whole.given
        count = math.prod(operator.grid)
        by_killing = -float((self.by_symbol * operator.multiplicity).sum())

        velocity = whole.velocity.pulled(self._on_nodes(self._by_frames["velocity"]))
        terminal = np.stack([operator.to_grid(modes) / count for modes in adjoint])
        if not callable(given.terminal):
            terminal = resample_transposed(terminal, given.terminal.shape[: given.dim])
        potential = source = None
        if whole.potential:
            by_value = self._by_frames["potential"].sum() / math.prod(operator.product_grid) + by_killing
            by_nodes = -self._on_nodes(self._by_frames["potential"])
            for i, w in whole.mean_weights(whole.potential):
                by_nodes[i] += w * by_value / count
            potential = whole.potential.pulled(by_nodes)
        if whole.source:
            by_nodes = np.stack([operator.to_grid(modes)[None] / count for modes in self._by_source])
            source = whole.source.pulled(by_nodes)
        sigma, matrix = self._sigma()
        return Gradients(velocity, fields_last(terminal, given), potential, source, sigma, matrix)

    def _on_nodes(self, by_products: NDArray) -> NDArray[np.float64]:
        """Transposed `SpectralOperator.prepare`, and the mean over the product grid."""
        operator = self._operator
        by_nodes = resample_transposed(by_products, operator.grid) / math.prod(operator.product_grid)
        return truncated(by_nodes, operator.bands)

    def _sigma(self) -> tuple[Any, NDArray | None]:
        whole, operator = self._whole, self._operator
        dim, noise = whole.problem.dim, whole.problem.noise
        k, weights = operator.wavenumbers, self.by_symbol * operator.multiplicity
        by_diffusion = np.array([[-float((weights * k[i] * k[j]).sum()) for j in range(dim)] for i in range(dim)])
        if noise.constant is not None:
            # of ½σσᵀ, a symmetric matrix
            matrix = by_diffusion @ noise.constant / whole.given.lengths[:, None]
            return _as_given(matrix, whole.given), matrix
        assert whole.sigma is not None
        assert noise.field is not None
        by_pairs = self._on_nodes(self._by_noise[None])[0]
        by_half = np.empty((dim, dim, *operator.grid))
        for (i, j), own in zip(pairs(dim), by_pairs, strict=True):
            by_half[i, j] = by_half[j, i] = own
        over_space = tuple(range(2, 2 + dim))
        mean = (by_diffusion - by_half.sum(axis=over_space)) / math.prod(operator.grid)
        by_half += mean[(..., *[None] * dim)]
        points = np.stack(np.meshgrid(*[np.arange(n) / n for n in operator.grid], indexing="ij"), axis=-1)
        values = np.moveaxis(noise.matrix(points, 0.0), (-2, -1), (0, 1))
        by_matrix = np.einsum("ij...,jm...->im...", by_half, values)
        if noise.factor:
            by_matrix *= np.reshape(noise.factor, (-1, *[1] * (dim + 1)))
        shape = noise.field.shape
        if len(shape) < 2:
            diagonal = np.einsum("ii...->i...", by_matrix)
            by_matrix = diagonal if shape else diagonal.sum(axis=0)
        by_values = by_matrix.reshape(1, noise.field.components, *operator.grid)
        return whole.sigma.pulled(by_values), None


def _as_given(matrix: NDArray, given: ConvectionDiffusion) -> Any:
    """The gradient by the matrix of a constant σ as that by σ itself."""
    if isinstance(given.sigma, float):
        return float(np.trace(matrix))
    return np.diagonal(matrix).copy() if np.ndim(given.sigma) == 1 else matrix


def _add(weight: float, values: NDArray, out: NDArray) -> None:
    """out += weight values."""
    _add_scaled(weight, values.reshape(-1), out.reshape(-1))


@kernel(fastmath={"contract"})
def _add_scaled(weight: float, values: NDArray, out: NDArray) -> None:
    for p in range(len(out)):
        out[p] += weight * values[p]


@kernel(fastmath={"contract"})
def _add_products(weight: float, u: NDArray, v: NDArray, out: NDArray) -> None:
    """out (M,) += weight Re Σ v* u over the fields (K, M)."""
    for k in range(len(u)):
        for p in range(len(out)):
            out[p] += weight * (u[k, p].real * v[k, p].real + u[k, p].imag * v[k, p].imag)


def _cotangent(value: NDArray, u: NDArray) -> NDArray[np.float64]:
    values = real_values("cotangent", value)
    if values.shape != u.shape:
        raise ValueError(f"cotangent: expected the shape of u {u.shape}, got {values.shape}")
    return values


# steps of a fixed length


class _Lawson(_Held, LawsonMethod):
    """A Lawson method that notes what it evaluates N at, and what comes out."""

    tape: list[tuple[NDArray, float, NDArray]] | None = None

    def advance(self, u_hat: NDArray, s: float, out: NDArray) -> None:
        super().advance(u_hat, s, out)
        if self.tape is not None:
            self.tape.append((u_hat.copy(), self._time(s), out.copy()))

    def prepared(self, t: float) -> NDArray[np.float64]:
        """Coefficients on the product grid at a time."""
        return self._prepared_at(t)


def _lawson(whole: _Whole, padded: bool, library: str, kind: str, dt: float) -> tuple[NDArray[np.float64], PullBack]:
    problem, grid = whole.problem, whole.grid
    steps = max(1, math.ceil(problem.horizon / dt - 1e-9))
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

    def pull(cotangent: NDArray) -> Gradients:
        method = begin()
        symbol = method.symbol
        adjoint = method.start(_cotangent(cotangent, u) * math.prod(grid))
        sums = _Sums(method)
        after = last.copy()
        rk4 = TransposedRK4(symbol, dt, fields)
        ab4 = TransposedAB4(symbol, dt, fields) if kind == "spectral_ab4" else None
        aged = np.zeros_like(adjoint)
        nodes = TransposedRK4.nodes

        def step_back(n: int, entries: Sequence[tuple[NDArray, float, NDArray]], after: NDArray) -> None:
            """One step, from its evaluations and the state after it."""

            def pull_at(i: int, v: NDArray, out: NDArray) -> None:
                at, t, slope = entries[i]
                sums.pull(at, v, t, method.prepared(t), out)
                sums.add_source(v, t)
                if nodes[i]:
                    sums.add_symbol(at, out, nodes[i] * dt)
                    sums.add_symbol(slope, v, -nodes[i] * dt)

            sums.add_symbol(after, adjoint, dt)
            if ab4 is None:
                rk4.step(adjoint, pull_at)
                return
            ab4.step(adjoint, n, pull_at)
            ab4.aged(n, aged)
            sums.add_symbol(entries[0][2], aged, dt)

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
            for n in reversed(range(first, first + len(taped))):
                entries = taped.pop()
                step_back(n, entries, after)
                after = entries[0][0]
        return sums.gradients(adjoint)

    return u, pull


def _check_finite(u: NDArray) -> None:
    if not np.isfinite(u).all():
        raise UnstableError("u is not finite: use a smaller dt, or more nodes")


# by Krylov bases


class _Krylov(_Held, KrylovMethod):
    """The Krylov method on held coefficients."""


def _krylov(whole: _Whole, padded: bool, library: str, rtol: float) -> tuple[NDArray[np.float64], PullBack]:
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
        sums = _Sums(forward)
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
    sums: _Sums, of_u: Krylov, of_adjoint: Krylov, horizon: float, t: float, end: float, rtol: float
) -> None:
    """The integrals over [t, end], in which one basis serves u and one λ."""
    y = of_u.length * of_u.small_state(min(horizon - end, of_u.until))
    z = of_adjoint.length * of_adjoint.small_state(t)
    if not (y.any() and z.any()):
        return
    h, m = end - t, len(y)
    block = np.zeros((m + len(z), m + len(z)))
    block[:m, :m], block[m:, m:] = h * of_u.hessenberg, h * of_adjoint.hessenberg.T
    block[:m, m:] = h * np.outer(y, z)
    left, values, right = np.linalg.svd(expm(block)[:m, m:])
    rank = int((values > 1e-2 * rtol * values[0]).sum())
    for u, v in zip(of_u.combined((left[:, :rank] * values[:rank]).T), of_adjoint.combined(right[:rank]), strict=True):
        sums.add(u[None], v[None], 0.0)
        sums.add_symbol(u[None], v[None], 1.0)
    if sums.with_source:
        forced = np.zeros((len(z) + 1, len(z) + 1))
        forced[:-1, :-1], forced[:-1, -1] = h * of_adjoint.hessenberg, h * z
        sums.add_source(of_adjoint.combined(expm(forced)[None, :-1, -1]), 0.0)
