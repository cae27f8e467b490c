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
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

from pdekit.numerics.spectral import derivative, resample, truncated
from pdekit.runtime.kernels import kernel


class Transforms(Protocol):
    """The two real transforms an FFT library provides, over the trailing axes given by the shape."""

    def inverse(self, hat: NDArray, shape: tuple[int, ...]) -> NDArray: ...
    def forward(self, grid: NDArray, dim: int) -> NDArray: ...


class _SciPy:
    def inverse(self, hat: NDArray, shape: tuple[int, ...]) -> NDArray:
        axes = tuple(range(-len(shape), 0))
        return scipy.fft.irfftn(hat, s=shape, axes=axes, norm="forward")

    def forward(self, grid: NDArray, dim: int) -> NDArray:
        return scipy.fft.rfftn(grid, axes=tuple(range(-dim, 0)), norm="forward")


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
    present = {"rocket": find_spec("rocket_fft") is not None, "scipy": True, "fftw": find_spec("pyfftw") is not None}
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
    size = np.abs(scipy.fft.rfftn(values, axes=tuple(range(1, values.ndim)))).max(axis=0)
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
    hat = scipy.fft.rfftn(field, norm="forward")
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
        needed = (
            scipy.fft.next_fast_len(2 * k + b + 1, real=True) for k, b in zip(self.cutoff, self.bands, strict=True)
        )
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
        self._apply = self._applied(fft_library(fft))

    def _applied(self, library: str) -> _Applied:
        if library == "rocket":
            from pdekit.equation.compiled import Compiled  # with rocket-fft a quarter of the package's import

            return Compiled(self)
        return _Library(self, _FFTW() if library == "fftw" else _SciPy())

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
        return scipy.fft.irfftn(full, s=shape, norm="forward")

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


def _symbol(term: Term, axes: Sequence[NDArray], shape: Grid) -> NDArray[np.complex128]:
    """(ik)^c."""
    return np.broadcast_to(math.prod(derivative(order, k) for order, k in zip(term, axes, strict=True)), shape)


@kernel(fastmath={"reassoc", "contract"})  # NaN must stay NaN: no other flag
def _mean_square(u_hat: NDArray) -> float:
    total = 0.0
    for i in range(u_hat.shape[0]):
        total += u_hat[i, 0].real ** 2 + u_hat[i, 0].imag ** 2
        for j in range(1, u_hat.shape[1]):
            total += 2.0 * (u_hat[i, j].real ** 2 + u_hat[i, j].imag ** 2)
    return total
