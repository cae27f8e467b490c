"""The spatial part of the pseudo-spectral method: u_hat -> the transform of Σ_c a_c D^c u, free of aliasing.

D^c = ∂₁^c₁ ... ∂_d^c_d are the *terms*: (1, 0) and (0, 1) for F·∇u in two dimensions, (0, 0) for a potential, (2, 0),
(1, 1), (0, 2) for a diffusion that depends on x. Their coefficients a_c are fields on a grid.

A field on N nodes an axis keeps the modes |k| <= K. Products with coefficients of modes |k| <= B need 2K + B + 1 nodes,
so that none can alias onto a kept mode. By Orszag's 2/3 rule K = (N - 1) // 3 and B = N - 1 - 2K, so that the nodes
themselves suffice; a grid of twice the coefficients' nodes keeps all of them. *Padded*, K = (N - 1) // 2 and
B = N // 2: all that the nodes hold, for products on 3/2 as many nodes. Steady coefficients of fewer modes get a smaller
grid, and the same result. N, K and B are those of each axis.

The state is *compact*: only the kept modes, of shape (2K₁+1, ..., K_d+1), frequencies in the order 0..K, -K..-1
along all axes but the last, scaled so that mode 0 is the mean.

One evaluation costs an inverse real transform for each term and one forward one; its transpose, for the density
(Fokker-Planck) and for gradients, one inverse and a forward one for each term. Transforms run along the first axes on
the kept columns only, once for all terms that differ in their last order alone; the pass along the last axis is done by
blocks of rows, product included, while they are in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.fft import next_fast_len

from pdekit.numerics.spectral import resample, truncated
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread, threads_for

_HAVE_ROCKET = find_spec("rocket_fft") is not None  # without it the transforms go through scipy.fft
if _HAVE_ROCKET:
    from rocket_fft import c2c, c2r, r2c

_ROWS = 64  # rows in a block: the working set stays in the second-level cache up to N = 2048


class Transforms(Protocol):
    """The two real transforms an FFT library provides, over the trailing axes given by the shape."""

    def inverse(self, hat: NDArray, shape: tuple[int, ...]) -> NDArray: ...
    def forward(self, grid: NDArray, dim: int) -> NDArray: ...


class _SciPy:
    def inverse(self, hat: NDArray, shape: tuple[int, ...]) -> NDArray:
        axes = tuple(range(-len(shape), 0))
        return fft.irfftn(hat, s=shape, axes=axes, norm="forward")

    def forward(self, grid: NDArray, dim: int) -> NDArray:
        return fft.rfftn(grid, axes=tuple(range(-dim, 0)), norm="forward")


class _FFTW:
    """pyFFTW with MEASUREd plans, kept by shape; its arrays are reused, so results are read before the next call."""

    def __init__(self) -> None:
        import pyfftw

        self._fftw = pyfftw
        self._plans: dict[tuple, tuple] = {}

    def _plan(self, direction: str, shape: tuple[int, ...], dim: int) -> tuple:
        key = (direction, shape, dim)
        if key not in self._plans:
            fw = self._fftw
            real = fw.empty_aligned(shape, dtype="float64")
            hat = fw.empty_aligned((*shape[:-1], shape[-1] // 2 + 1), dtype="complex128")
            ends = (real, hat) if direction == "FFTW_FORWARD" else (hat, real)
            axes = tuple(range(-dim, 0))
            plan = fw.FFTW(*ends, axes=axes, direction=direction, flags=("FFTW_MEASURE", "FFTW_DESTROY_INPUT"))
            self._plans[key] = (plan, *ends)
        return self._plans[key]

    def inverse(self, hat: NDArray, shape: tuple[int, ...]) -> NDArray:
        plan, source, target = self._plan("FFTW_BACKWARD", hat.shape[: hat.ndim - len(shape)] + shape, len(shape))
        source[...] = hat
        plan.execute()
        return target

    def forward(self, grid: NDArray, dim: int) -> NDArray:
        plan, source, target = self._plan("FFTW_FORWARD", grid.shape, dim)
        source[...] = grid
        plan.execute()
        target *= 1.0 / np.prod(grid.shape[-dim:])
        return target


@cache
def available_backends() -> tuple[str, ...]:
    """FFT libraries that can be used here, the default first."""
    present = {"rocket": _HAVE_ROCKET, "scipy": True, "fftw": find_spec("pyfftw") is not None}
    return tuple(name for name, here in present.items() if here)


def fft_library(name: str) -> str:
    """The FFT library of that name, or the default for "auto". Raises ValueError for one that is not here."""
    backends = available_backends()
    if name not in ("auto", *backends):
        raise ValueError(f"fft: expected one of {', '.join(('auto', *backends))} here, got {name!r}")
    return backends[0] if name == "auto" else name


Grid = tuple[int, ...]  # nodes along each axis
Term = tuple[int, ...]  # orders of a derivative along each axis


def gradient_terms(dim: int) -> tuple[Term, ...]:
    """Those of F·∇u."""
    return tuple(tuple(int(a == axis) for a in range(dim)) for axis in range(dim))


def bandlimit(values: NDArray) -> Grid:
    """Highest |k| along each axis among the modes of node values (C, N₁, ..., N_d) that are not rounding errors."""
    shape = values.shape[1:]
    size = np.abs(fft.rfftn(values, axes=tuple(range(1, values.ndim)))).max(axis=0)
    present = np.argwhere(size > 1e-14 * math.prod(shape) * np.abs(values).max())
    if not len(present):
        return (0,) * len(shape)
    return tuple(int(np.minimum(p, n - p).max()) for p, n in zip(present.T, shape, strict=True))


def cutoffs(num_points: int, *, padded: bool) -> tuple[int, int]:
    """Highest |k| along an axis that is kept, of u and of the coefficients."""
    if padded:
        return (num_points - 1) // 2, num_points // 2
    cutoff = (num_points - 1) // 3
    return cutoff, num_points - 1 - 2 * cutoff


def _compact_index(grid: Grid, cutoff: Grid) -> tuple[NDArray, ...]:
    """Where the modes up to the cutoff stand in a real transform on a grid."""
    full = [np.r_[0 : k + 1, n - k : n] for n, k in zip(grid[:-1], cutoff[:-1], strict=True)]
    return np.ix_(*full, np.arange(cutoff[-1] + 1))


def compact_shape(cutoff: Grid) -> Grid:
    """The shape of compact modes up to the cutoff."""
    return (*(2 * k + 1 for k in cutoff[:-1]), cutoff[-1] + 1)


def cutoff_of(shape: Grid) -> Grid:
    """The cutoff of compact modes of a shape."""
    return (*(n // 2 for n in shape[:-1]), shape[-1] - 1)


def compact(field: NDArray, cutoff: Grid) -> NDArray[np.complex128]:
    """Modes of a field up to the cutoff, in the order of this module."""
    hat = fft.rfftn(field, norm="forward")
    return np.ascontiguousarray(hat[_compact_index(field.shape, cutoff)])


def resized(modes: NDArray, cutoff: Grid) -> NDArray[np.complex128]:
    """Compact modes (..., 2K₁+1, ..., K_d+1), up to another cutoff: cut off or filled up with zeros."""
    dim = len(cutoff)
    lead, here = modes.shape[: modes.ndim - dim], cutoff_of(modes.shape[modes.ndim - dim :])
    keep = [min(k, to) for k, to in zip(here, cutoff, strict=True)]
    out = np.zeros((*lead, *compact_shape(cutoff)), dtype=complex)
    index: tuple[Any, ...] = (..., *np.ix_(*[np.r_[0 : k + 1, -k:0] for k in keep[:-1]], np.arange(keep[-1] + 1)))
    out[index] = modes[index]
    return out


def wavenumber_axes(cutoff: Grid) -> list[NDArray[np.float64]]:
    """2πk along each axis, in the order of compact modes."""
    both = [np.concatenate([np.arange(k + 1.0), np.arange(-k, 0.0)]) for k in cutoff[:-1]]
    return [2.0 * np.pi * k for k in (*both, np.arange(cutoff[-1] + 1.0))]


class SpectralOperator:
    """Kept modes, symbols, and the map u_hat -> (Σ_c a_c D^c u)_hat on a grid.

    terms: those of the sum, the gradient's by default.
    bands: highest |k| of the coefficients along each axis, where they are known: products then need as few as
        2K + B + 1 nodes an axis, which for smooth coefficients saves half of the work in two dimensions and changes
        nothing else.
    padded: keep all modes that the nodes hold, in place of two thirds of them.
    cutoff: highest |k| of u that is kept, in place of what the nodes hold; products take as many nodes as they need.
    fft: "auto", "rocket" (inside numba), "scipy" or "fftw" (pyFFTW, GPL; only where installed).

    Raises ValueError for an unknown or missing FFT library, or fewer than 4 nodes along an axis.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        terms: Sequence[Term] | None = None,
        bands: Grid | None = None,
        padded: bool = False,
        cutoff: Grid | None = None,
        fft: str = "auto",
    ) -> None:
        if min(grid) < 4:
            raise ValueError(f"num_points: expected at least 4 along each axis, got {grid}")
        self.grid, self.dim = grid, len(grid)
        self.terms = tuple(gradient_terms(self.dim) if terms is None else terms)
        kept, bound = zip(*(cutoffs(n, padded=padded) for n in grid), strict=True)
        if cutoff is not None:
            kept, bound = cutoff, tuple(2 * k for k in cutoff)  # modes of a beyond 2K take kept modes to others only
        self.cutoff: Grid = kept
        self.bands: Grid = bound if bands is None else tuple(min(b, own) for b, own in zip(bound, bands, strict=True))
        needed = (next_fast_len(2 * k + b + 1, real=True) for k, b in zip(self.cutoff, self.bands, strict=True))
        if padded or cutoff is not None:
            self.product_grid: Grid = tuple(needed)
        else:
            self.product_grid = tuple(min(n, own) for n, own in zip(needed, grid, strict=True))
        self.shape = compact_shape(self.cutoff)
        self.axes = wavenumber_axes(self.cutoff)
        self.wavenumbers = np.meshgrid(*self.axes, indexing="ij", sparse=True)
        beyond = [
            3 * np.abs(np.rint(k / (2.0 * np.pi))) > 2 * top
            for k, top in zip(self.wavenumbers, self.cutoff, strict=True)
        ]
        self._upper_third = np.any(np.broadcast_arrays(*beyond), axis=0)
        # a mode of the half-plane stands for itself and its conjugate, unless its last frequency is 0
        self.multiplicity = np.broadcast_to(np.where(np.arange(self.shape[-1]) == 0, 1.0, 2.0), self.shape)
        library = fft_library(fft)
        self._apply: _Applied = (
            _Compiled(self) if library == "rocket" else _Library(self, _FFTW() if library == "fftw" else _SciPy())
        )

    def second_order(self, tensor: NDArray) -> NDArray[np.float64]:
        """Symbol -Σ D_ij k_i k_j of ∇·D∇ with a constant symmetric D (d, d)."""
        k = self.wavenumbers
        pairs = ((i, j) for i in range(self.dim) for j in range(self.dim) if tensor[i, j])
        total = sum((tensor[i, j] * k[i] * k[j] for i, j in pairs), np.zeros(()))
        return np.broadcast_to(-np.asarray(total), self.shape).copy()

    # compact modes <-> grids

    def to_modes(self, field: NDArray) -> NDArray[np.complex128]:
        """Kept modes of a field on the grid."""
        return compact(field, self.cutoff)

    def to_grid(self, u_hat: NDArray, grid: Grid | None = None) -> NDArray[np.float64]:
        """The field of compact modes on the grid, or on another one of at least 2K + 1 nodes an axis."""
        shape = grid or self.grid
        full = np.zeros((*shape[:-1], shape[-1] // 2 + 1), dtype=complex)
        full[_compact_index(shape, self.cutoff)] = u_hat
        return fft.irfftn(full, s=shape, norm="forward")

    def prepare(self, values: NDArray) -> NDArray[np.float64]:
        """Coefficients (C, *product_grid), without the modes that would alias, from node values (C, N₁, ..., N_d)."""
        axes = tuple(range(1, self.dim + 1))
        return resample(truncated(values, self.bands), self.product_grid, axes=axes)

    def mean_square(self, u_hat: NDArray) -> float:
        """∫u² over the box (Parseval)."""
        return _mean_square(u_hat.reshape(-1, u_hat.shape[-1]))

    def norm(self, u_hat: NDArray) -> float:
        """The root mean square of the field."""
        return math.sqrt(self.mean_square(u_hat))

    def energies(self, u_hat: NDArray) -> tuple[float, float]:
        """∫u² of the modes of the upper third, |k_i| > 2K_i/3 for some i, and of all but the mean."""
        energy = (u_hat.real**2 + u_hat.imag**2) * self.multiplicity
        total = float(energy.sum() - energy[(0,) * self.dim])
        return float(energy[self._upper_third].sum()), total

    # u_hat, a -> (Σ a_c D^c u)_hat and its transpose

    def evaluate(self, u_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        """out = (Σ_c a_c D^c u)_hat for coefficients (C, *product_grid)."""
        self._apply.evaluate(u_hat, coefficients, out)

    def transpose(self, v_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        """out = (Σ_c (-1)^|c| D^c (a_c v))_hat, the transpose of `evaluate` under ∫uv."""
        self._apply.transpose(v_hat, coefficients, out)

    def pair(self, u_hat: NDArray, v_hat: NDArray, weight: float, out: NDArray) -> None:
        """out += weight · v D^c u for each term, on the product grid: ∂/∂a_c of ∫ v Σ a_c D^c u, node by node."""
        self._apply.pair(u_hat, v_hat, weight, out)

    def pull(self, u_hat: NDArray, v_hat: NDArray, coefficients: NDArray, by: NDArray, out: NDArray) -> None:
        """out as of `transpose`, by += as of `pair` with weight 1, in one go: what v = ∂J/∂(Σ a_c D^c u) leads to."""
        self._apply.pull(u_hat, v_hat, coefficients, by, out)


class _Applied(Protocol):
    def evaluate(self, u_hat: NDArray, coefficients: NDArray, out: NDArray) -> None: ...
    def transpose(self, v_hat: NDArray, coefficients: NDArray, out: NDArray) -> None: ...
    def pair(self, u_hat: NDArray, v_hat: NDArray, weight: float, out: NDArray) -> None: ...
    def pull(self, u_hat: NDArray, v_hat: NDArray, coefficients: NDArray, by: NDArray, out: NDArray) -> None: ...


class _Library:
    """By an FFT library called from Python."""

    def __init__(self, operator: SpectralOperator, library: Transforms) -> None:
        self._lib, self._grid, self._dim = library, operator.product_grid, operator.dim
        index = _compact_index(self._grid, operator.cutoff)
        self._index: tuple[Any, ...] = (..., *index)
        self._symbols = np.stack([_symbol(term, operator.wavenumbers, operator.shape) for term in operator.terms])

    def _full(self, modes: NDArray) -> NDArray:
        half = (*self._grid[:-1], self._grid[-1] // 2 + 1)
        full = np.zeros((*modes.shape[: modes.ndim - self._dim], *half), dtype=complex)
        full[self._index] = modes
        return full

    def evaluate(self, u_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        derivatives = self._lib.inverse(self._full(self._symbols * u_hat), self._grid)
        product = np.einsum("c...,c...->...", coefficients, derivatives)
        out[...] = self._lib.forward(product, self._dim)[self._index]

    def transpose(self, v_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        v = self._lib.inverse(self._full(v_hat), self._grid)
        products = self._lib.forward(coefficients * v, self._dim)[self._index]
        out[...] = (self._symbols.conj() * products).sum(axis=0)

    def pair(self, u_hat: NDArray, v_hat: NDArray, weight: float, out: NDArray) -> None:
        derivatives = np.array(self._lib.inverse(self._full(self._symbols * u_hat), self._grid))
        out += weight * self._lib.inverse(self._full(v_hat), self._grid) * derivatives

    def pull(self, u_hat: NDArray, v_hat: NDArray, coefficients: NDArray, by: NDArray, out: NDArray) -> None:
        self.pair(u_hat, v_hat, 1.0, by)
        self.transpose(v_hat, coefficients, out)


def _power(order: int, k: NDArray) -> NDArray[np.complex128]:
    return (1j * k) ** order if order else np.ones_like(k, dtype=complex)


def _symbol(term: Term, axes: Sequence[NDArray], shape: Grid) -> NDArray[np.complex128]:
    """(ik)^c."""
    return np.broadcast_to(math.prod(_power(order, k) for order, k in zip(term, axes, strict=True)), shape)


class _Compiled:
    """By transforms within compiled loops.

    Terms that differ in their last order alone form a group, which is transformed along the first axes once.
    """

    def __init__(self, operator: SpectralOperator) -> None:
        self._grid, shape = operator.product_grid, operator.shape
        lead, kept = self._grid[:-1], shape[-1]
        groups = sorted({term[:-1] for term in operator.terms})
        self._group = np.array([groups.index(term[:-1]) for term in operator.terms])
        self._last = np.stack([_power(term[-1], operator.axes[-1]) for term in operator.terms])
        # factors (G, 2K+1) along each of the first axes
        self._factors = tuple(
            np.stack([_power(group[axis], operator.axes[axis]) for group in groups]) for axis in range(len(lead))
        )
        self._none = tuple(np.ones((1, len(k)), dtype=complex) for k in operator.axes[:-1])
        self._columns = np.zeros((len(groups), *lead, kept), dtype=complex)
        self._flat = self._columns.reshape(len(groups), -1, kept)
        self._first, self._size = self._columns[:1], self._flat[0].size
        self._single: NDArray | None = None  # columns of another field
        between = (lead[0], shape[1], kept) if len(lead) == 2 else (0,) * len(shape)
        self._between = np.zeros(between, dtype=complex)  # after the first of two axes
        self._to_columns, self._to_modes = _PASSES[len(shape)]
        self._scratch = self._new_scratch()

    def _new_scratch(self) -> tuple[NDArray, NDArray]:
        """A block of lines, as modes and, for each term and one field more, as nodes."""
        rows, n = min(_ROWS, self._flat.shape[1]), self._grid[-1]
        return np.empty((rows, n // 2 + 1), dtype=complex), np.empty((len(self._group) + 1, rows, n))

    def _by_rows(self, kernel: Callable[..., None], *args: Any) -> None:
        count = self._flat.shape[1]
        if threads_for(self._size) == 1:
            kernel(0, count, *args, *self._scratch)
            return

        def piece(begin: int, end: int) -> None:
            kernel(begin, end, *args, *self._new_scratch())

        spread(piece, count, items=self._columns.size)

    def _other(self) -> NDArray:
        if self._single is None:
            self._single = np.zeros((1, *self._columns.shape[1:]), dtype=complex)
        return self._single

    def evaluate(self, u_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        rows = coefficients.reshape(len(coefficients), -1, self._grid[-1])
        if len(self._grid) == 1:  # a single row, which is its own column
            out[:] = u_hat
            self._by_rows(_product_rows, out[None, None], self._group, self._last, rows)
            return
        threads = threads_for(self._size)
        self._to_columns(u_hat, self._factors, self._between, self._columns, threads)
        self._by_rows(_product_rows, self._flat, self._group, self._last, rows)
        self._to_modes(self._first, self._none, self._between, out, threads)

    def transpose(self, v_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        threads, single = threads_for(self._size), self._other()
        self._to_columns(v_hat, self._none, self._between, single, threads)
        rows = coefficients.reshape(len(coefficients), -1, self._grid[-1])
        lines = single.reshape(1, *self._flat.shape[1:])
        self._by_rows(_transposed_rows, lines, self._flat, self._group, self._last, rows)
        self._to_modes(self._columns, self._factors, self._between, out, threads)

    def pair(self, u_hat: NDArray, v_hat: NDArray, weight: float, out: NDArray) -> None:
        threads, single = threads_for(self._size), self._other()
        self._to_columns(u_hat, self._factors, self._between, self._columns, threads)
        self._to_columns(v_hat, self._none, self._between, single, threads)
        lines = single.reshape(1, *self._flat.shape[1:])
        into = out.reshape(len(out), -1, self._grid[-1])
        self._by_rows(_paired_rows, lines, self._flat, self._group, self._last, weight, into)

    def pull(self, u_hat: NDArray, v_hat: NDArray, coefficients: NDArray, by: NDArray, out: NDArray) -> None:
        threads, single = threads_for(self._size), self._other()
        self._to_columns(u_hat, self._factors, self._between, self._columns, threads)
        self._to_columns(v_hat, self._none, self._between, single, threads)
        lines = single.reshape(1, *self._flat.shape[1:])
        rows, into = (nodes.reshape(len(nodes), -1, self._grid[-1]) for nodes in (coefficients, by))
        self._by_rows(_pulled_rows, lines, self._flat, self._group, self._last, rows, into)
        self._to_modes(self._columns, self._factors, self._between, out, threads)


@kernel(fastmath={"reassoc", "contract"})  # NaN must stay NaN: no other flag
def _mean_square(u_hat: NDArray) -> float:
    total = 0.0
    for i in range(u_hat.shape[0]):
        total += u_hat[i, 0].real ** 2 + u_hat[i, 0].imag ** 2
        for j in range(1, u_hat.shape[1]):
            total += 2.0 * (u_hat[i, j].real ** 2 + u_hat[i, j].imag ** 2)
    return total


if _HAVE_ROCKET:

    @kernel(fastmath={"contract"})
    def _to_lines(spec: NDArray, start: int, count: int, factor: NDArray, line_hat: NDArray, lines: NDArray) -> None:
        """Rows start .. start + count - 1 of spec (R, K+1), times a factor (K+1,), to nodes: lines (rows, N)."""
        kept = spec.shape[1]
        for i in range(count):
            for j in range(kept):
                line_hat[i, j] = factor[j] * spec[start + i, j]
            line_hat[i, kept:] = 0.0
        c2r(line_hat[:count], lines[:count], np.array([1]), False, 1.0, 1)

    @kernel(fastmath={"contract"})
    def _product_rows(
        begin: int,
        end: int,
        spec: NDArray,
        group: NDArray,
        last: NDArray,
        coefficients: NDArray,
        line_hat: NDArray,
        lines: NDArray,
    ) -> None:
        """Last axis: rows of spec (G, R, K+1) to D^c u, times coefficients (C, R, N), summed, back into spec[0]."""
        terms, kept, block, n = len(group), spec.shape[2], lines.shape[1], lines.shape[2]
        for start in range(begin, end, block):
            count = min(block, end - start)
            for c in range(terms):
                _to_lines(spec[group[c]], start, count, last[c], line_hat, lines[c])
            for i in range(count):
                for j in range(n):
                    total = coefficients[0, start + i, j] * lines[0, i, j]
                    for c in range(1, terms):
                        total += coefficients[c, start + i, j] * lines[c, i, j]
                    lines[0, i, j] = total
            r2c(lines[0, :count], line_hat[:count], np.array([1]), True, 1.0 / n, 1)
            for i in range(count):
                for j in range(kept):  # a slice assigned from an array takes numba a second to compile
                    spec[0, start + i, j] = line_hat[i, j]

    @kernel(fastmath={"contract"})
    def _spread_rows(
        start: int,
        count: int,
        spec: NDArray,
        group: NDArray,
        last: NDArray,
        coefficients: NDArray,
        line_hat: NDArray,
        lines: NDArray,
        v: NDArray,
    ) -> None:
        """Rows start .. start + count - 1 of spec: v (rows, N) times each coefficient, to modes, times conjugates."""
        n, kept = v.shape[1], spec.shape[2]
        spec[:, start : start + count] = 0.0
        for c in range(len(group)):
            for i in range(count):
                for j in range(n):
                    lines[c, i, j] = coefficients[c, start + i, j] * v[i, j]
            r2c(lines[c, :count], line_hat[:count], np.array([1]), True, 1.0 / n, 1)
            for i in range(count):
                for j in range(kept):
                    spec[group[c], start + i, j] += np.conj(last[c, j]) * line_hat[i, j]

    @kernel(fastmath={"contract"})
    def _transposed_rows(
        begin: int,
        end: int,
        single: NDArray,
        spec: NDArray,
        group: NDArray,
        last: NDArray,
        coefficients: NDArray,
        line_hat: NDArray,
        lines: NDArray,
    ) -> None:
        """Rows of v (1, R, K+1) to nodes, times each coefficient, back, times conjugate factors, summed by groups."""
        terms, kept, block = len(group), spec.shape[2], lines.shape[1]
        one = np.ones(kept, dtype=spec.dtype)
        for start in range(begin, end, block):
            count = min(block, end - start)
            _to_lines(single[0], start, count, one, line_hat, lines[terms])
            _spread_rows(start, count, spec, group, last, coefficients, line_hat, lines[:terms], lines[terms])

    @kernel(fastmath={"contract"})
    def _paired_rows(
        begin: int,
        end: int,
        single: NDArray,
        spec: NDArray,
        group: NDArray,
        last: NDArray,
        weight: float,
        out: NDArray,
        line_hat: NDArray,
        lines: NDArray,
    ) -> None:
        """out (C, R, N) += weight · v D^c u, from rows of v (1, R, K+1) and of u (G, R, K+1)."""
        terms, kept, block, n = len(group), spec.shape[2], lines.shape[1], lines.shape[2]
        one = np.ones(kept, dtype=spec.dtype)
        for start in range(begin, end, block):
            count = min(block, end - start)
            _to_lines(single[0], start, count, one, line_hat, lines[terms])
            for c in range(terms):
                _to_lines(spec[group[c]], start, count, last[c], line_hat, lines[c])
                for i in range(count):
                    for j in range(n):
                        out[c, start + i, j] += weight * lines[terms, i, j] * lines[c, i, j]

    @kernel(fastmath={"contract"})
    def _pulled_rows(
        begin: int,
        end: int,
        single: NDArray,
        spec: NDArray,
        group: NDArray,
        last: NDArray,
        coefficients: NDArray,
        by: NDArray,
        line_hat: NDArray,
        lines: NDArray,
    ) -> None:
        """`_paired_rows` from rows of u in spec, which then take what `_transposed_rows` makes of v."""
        terms, block = len(group), lines.shape[1]
        for start in range(begin, end, block):
            stop = min(start + block, end)
            _paired_rows(start, stop, single, spec, group, last, 1.0, by, line_hat, lines)
            # the nodes of v are in the last lines
            _spread_rows(start, stop - start, spec, group, last, coefficients, line_hat, lines[:terms], lines[terms])

    # modes to the columns of each group, transformed along all axes but the last, and back, summed over the groups

    @kernel()
    def _row(i: int, kept: int, n: int) -> int:
        """Where compact index i of 2K+1 stands among n."""
        return i if i <= kept // 2 else n - kept + i

    @kernel()
    def _differ(a: NDArray, b: NDArray) -> bool:
        for i in range(len(a)):  # noqa: SIM110
            if a[i] != b[i]:
                return True
        return False

    @kernel()
    def _to_columns_1d(u: NDArray, factors: Any, between: NDArray, spec: NDArray, threads: int) -> None:
        for j in range(len(u)):
            spec[0, j] = u[j]

    @kernel()
    def _to_modes_1d(spec: NDArray, factors: Any, between: NDArray, out: NDArray, threads: int) -> None:
        for j in range(len(out)):
            out[j] = spec[0, j]

    @kernel(fastmath={"contract"})
    def _to_columns_2d(u: NDArray, factors: Any, between: NDArray, spec: NDArray, threads: int) -> None:
        n, kept = spec.shape[1], u.shape[0]
        for g in range(len(spec)):
            for i in range(kept):
                row, factor = _row(i, kept, n), factors[0][g, i]
                for j in range(u.shape[1]):
                    spec[g, row, j] = factor * u[i, j]
            spec[g, kept // 2 + 1 : n - kept // 2] = 0.0
            c2c(spec[g], spec[g], np.array([0]), False, 1.0, threads)

    @kernel(fastmath={"contract"})
    def _to_modes_2d(spec: NDArray, factors: Any, between: NDArray, out: NDArray, threads: int) -> None:
        n, kept = spec.shape[1], out.shape[0]
        for g in range(len(spec)):
            c2c(spec[g], spec[g], np.array([0]), True, 1.0 / n, threads)
            for i in range(kept):
                row, factor = _row(i, kept, n), np.conj(factors[0][g, i])
                for j in range(out.shape[1]):
                    out[i, j] = factor * spec[g, row, j] + (out[i, j] if g else 0.0)

    @kernel(fastmath={"contract"})
    def _to_columns_3d(u: NDArray, factors: Any, between: NDArray, spec: NDArray, threads: int) -> None:
        n, m, kept, across = spec.shape[1], spec.shape[2], u.shape[0], u.shape[1]
        for g in range(len(spec)):
            # groups are in order, so that those of one order along the first axis follow each other
            if g == 0 or _differ(factors[0][g], factors[0][g - 1]):
                for i in range(kept):
                    row, first = _row(i, kept, n), factors[0][g, i]
                    for j in range(across):
                        for l in range(u.shape[2]):
                            between[row, j, l] = first * u[i, j, l]
                between[kept // 2 + 1 : n - kept // 2] = 0.0
                c2c(between, between, np.array([0]), False, 1.0, threads)
            for i in range(n):
                for j in range(across):
                    col, factor = _row(j, across, m), factors[1][g, j]
                    for l in range(u.shape[2]):
                        spec[g, i, col, l] = factor * between[i, j, l]
                spec[g, i, across // 2 + 1 : m - across // 2] = 0.0
            c2c(spec[g], spec[g], np.array([1]), False, 1.0, threads)

    @kernel(fastmath={"contract"})
    def _to_modes_3d(spec: NDArray, factors: Any, between: NDArray, out: NDArray, threads: int) -> None:
        n, m, kept, across = spec.shape[1], spec.shape[2], out.shape[0], out.shape[1]
        for g in range(len(spec)):
            c2c(spec[g], spec[g], np.array([1]), True, 1.0 / m, threads)
            for i in range(n):
                for j in range(across):
                    col, factor = _row(j, across, m), np.conj(factors[1][g, j])
                    for l in range(out.shape[2]):
                        between[i, j, l] = factor * spec[g, i, col, l]
            c2c(between, between, np.array([0]), True, 1.0 / n, threads)
            for i in range(kept):
                row, factor = _row(i, kept, n), np.conj(factors[0][g, i])
                for j in range(across):
                    for l in range(out.shape[2]):
                        out[i, j, l] = factor * between[row, j, l] + (out[i, j, l] if g else 0.0)

    _PASSES = {
        1: (_to_columns_1d, _to_modes_1d),
        2: (_to_columns_2d, _to_modes_2d),
        3: (_to_columns_3d, _to_modes_3d),
    }
