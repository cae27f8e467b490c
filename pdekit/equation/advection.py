"""The spatial part of the pseudo-spectral method: u_hat -> the transform of F·∇u, free of aliasing.

A field on N nodes an axis keeps the modes |k| <= K. Products with a velocity of modes |k| <= B need 2K + B + 1 nodes,
so that none can alias onto a kept mode. By Orszag's 2/3 rule K = (N - 1) // 3 and B = N - 1 - 2K, so that the nodes
themselves suffice; a grid of twice the velocity's nodes keeps all of F. *Padded*, K = (N - 1) // 2 and B = N // 2: all
that the nodes hold, for products on 3/2 as many nodes. A steady velocity of fewer modes gets a smaller grid, and the
same result.

The state is *compact*: only the kept modes, of shape (2K+1,)*(d-1) + (K+1,), frequencies in the order 0..K, -K..-1
along all axes but the last, scaled so that mode 0 is the mean.

One evaluation costs d inverse real transforms and one forward one. Transforms run along the first axes on the
kept columns only; the pass along the last axis is done by blocks of rows, product included, while they are in
cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.fft import next_fast_len

from pdekit.numerics.spectral import resample
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


def bandlimit(values: NDArray) -> int:
    """Highest |k| along any axis among the modes of node values (C, N, ..., N) that are not rounding errors."""
    n, dim = values.shape[-1], values.ndim - 1
    size = np.abs(fft.rfftn(values, axes=tuple(range(1, dim + 1)))).max(axis=0)
    present = np.argwhere(size > 1e-14 * n**dim * np.abs(values).max())
    return int(np.minimum(present, n - present).max()) if len(present) else 0


def cutoffs(num_points: int, *, padded: bool) -> tuple[int, int]:
    """Highest |k| that is kept, of u and of F."""
    if padded:
        return (num_points - 1) // 2, num_points // 2
    cutoff = (num_points - 1) // 3
    return cutoff, num_points - 1 - 2 * cutoff


def _compact_index(num_points: int, dim: int, cutoff: int) -> tuple[NDArray, ...]:
    """Where the modes up to the cutoff stand in a real transform of N nodes an axis."""
    full = np.r_[0 : cutoff + 1, num_points - cutoff : num_points]
    return np.ix_(*[full] * (dim - 1), np.arange(cutoff + 1))


def compact(field: NDArray, cutoff: int) -> NDArray[np.complex128]:
    """Modes of a field (N,)*d up to the cutoff, in the order of this module."""
    hat = fft.rfftn(field, norm="forward")
    return np.ascontiguousarray(hat[_compact_index(field.shape[-1], field.ndim, cutoff)])


def resized(modes: NDArray, cutoff: int, dim: int) -> NDArray[np.complex128]:
    """Compact modes (..., K+1), `dim` axes of them last, up to another cutoff: cut off or filled up with zeros."""
    lead, keep = modes.shape[: modes.ndim - dim], min(modes.shape[-1] - 1, cutoff)
    out = np.zeros((*lead, *(2 * cutoff + 1,) * (dim - 1), cutoff + 1), dtype=complex)
    index: tuple[Any, ...] = (..., *np.ix_(*[np.r_[0 : keep + 1, -keep:0]] * (dim - 1), np.arange(keep + 1)))
    out[index] = modes[index]
    return out


class SpectralAdvection:
    """Kept modes, their Laplacian, and the map u_hat -> (F·∇u)_hat on a grid of N nodes an axis.

    velocity_cutoff: highest |k| of F, where it is known: products then need as few as 2K + velocity_cutoff + 1 nodes
        an axis, which for a smooth F saves half of the work in two dimensions and changes nothing else.
    padded: keep all modes that the nodes hold, in place of two thirds of them.
    cutoff: highest |k| of u that is kept, in place of what the nodes hold; products take as many nodes as they need.
    fft: "auto", "rocket" (inside numba), "scipy" or "fftw" (pyFFTW, GPL; only where installed).

    Raises ValueError for an unknown or missing FFT library, or fewer than 4 nodes.
    """

    def __init__(
        self,
        num_points: int,
        dim: int,
        *,
        velocity_cutoff: int | None = None,
        padded: bool = False,
        cutoff: int | None = None,
        fft: str = "auto",
    ) -> None:
        if num_points < 4:
            raise ValueError(f"num_points: expected at least 4, got {num_points}")
        self.num_points, self.dim = num_points, dim
        self.cutoff, self.velocity_cutoff = cutoffs(num_points, padded=padded)
        if cutoff is not None:
            self.cutoff, self.velocity_cutoff = cutoff, 2 * cutoff  # modes of F above 2K take kept modes to others only
        k = self.cutoff
        if velocity_cutoff is not None:
            self.velocity_cutoff = min(self.velocity_cutoff, velocity_cutoff)
        self.product_points = next_fast_len(2 * k + self.velocity_cutoff + 1, real=True)
        if not padded and cutoff is None:
            self.product_points = min(self.product_points, num_points)
        self.shape = (2 * k + 1,) * (dim - 1) + (k + 1,)
        self._all = 2.0 * np.pi * np.concatenate([np.arange(k + 1.0), np.arange(-k, 0.0)])
        self._half = self._all[: k + 1].copy()
        axes = np.meshgrid(*[self._all] * (dim - 1), self._half, indexing="ij", sparse=True)
        self.laplacian = np.asarray(-sum(a**2 for a in axes), dtype=np.float64)
        self.wavenumbers = axes
        highest = np.max(np.broadcast_arrays(*[np.abs(a) for a in axes]), axis=0)
        self._upper_third = highest > 2.0 * np.pi * (2.0 * k / 3.0)
        # a mode of the half-plane stands for itself and its conjugate, unless its last frequency is 0
        self.multiplicity = np.broadcast_to(np.where(np.arange(k + 1) == 0, 1.0, 2.0), self.shape)
        library = fft_library(fft)
        self.evaluate = (
            self._rocket() if library == "rocket" else self._library(_FFTW() if library == "fftw" else _SciPy())
        )

    # compact modes <-> grids

    def _compact_index(self, num_points: int) -> tuple:
        return (..., *_compact_index(num_points, self.dim, self.cutoff))

    def to_modes(self, field: NDArray) -> NDArray[np.complex128]:
        """Kept modes of a field (N,)*d."""
        return compact(field, self.cutoff)

    def to_grid(self, u_hat: NDArray, num_points: int | None = None) -> NDArray[np.float64]:
        """The field of compact modes on a grid of N (or another number of at least 2K + 1) nodes."""
        n = num_points or self.num_points
        full = np.zeros((n,) * (self.dim - 1) + (n // 2 + 1,), dtype=complex)
        full[self._compact_index(n)[1:]] = u_hat
        return fft.irfftn(full, s=(n,) * self.dim, norm="forward")

    def prepare_velocity(self, values: NDArray) -> NDArray[np.float64]:
        """F on the product grid, without the modes that would alias, from node values (d, N, ..., N)."""
        axes = tuple(range(1, self.dim + 1))
        hat = fft.rfftn(values, axes=axes)
        for axis in axes:
            n = values.shape[axis]
            k = np.arange(n // 2 + 1) if axis == self.dim else np.abs(fft.fftfreq(n, 1.0 / n))
            shape = [1] * hat.ndim
            shape[axis] = -1
            hat *= (k <= self.velocity_cutoff).reshape(shape)
        return resample(fft.irfftn(hat, s=values.shape[1:], axes=axes), self.product_points, axes=axes)

    def mean_square(self, u_hat: NDArray) -> float:
        """∫u² over the box (Parseval)."""
        return _mean_square(u_hat.reshape(-1, u_hat.shape[-1]))

    def norm(self, u_hat: NDArray) -> float:
        """The root mean square of the field."""
        return math.sqrt(self.mean_square(u_hat))

    def energies(self, u_hat: NDArray) -> tuple[float, float]:
        """∫u² of the modes of the upper third, max|k_i| > 2K/3, and of all but the mean."""
        energy = (u_hat.real**2 + u_hat.imag**2) * self.multiplicity
        total = float(energy.sum() - energy[(0,) * self.dim])
        return float(energy[self._upper_third].sum()), total

    # u_hat, F -> (F·∇u)_hat

    def _library(self, lib: Transforms) -> Callable[[NDArray, NDArray, NDArray], None]:
        n, d = self.product_points, self.dim
        full = np.zeros((d,) + (n,) * (d - 1) + (n // 2 + 1,), dtype=complex)
        index = self._compact_index(n)
        back = index[1:]
        symbols = [1j * k for k in self.wavenumbers]

        def evaluate(u_hat: NDArray, velocity: NDArray, out: NDArray) -> None:
            for c in range(d):
                full[(c, *back)] = symbols[c] * u_hat
            gradient = lib.inverse(full, (n,) * d)
            product = np.einsum("c...,c...->...", velocity, gradient)
            out[...] = lib.forward(product, d)[back]

        return evaluate

    def _rocket(self) -> Callable[[NDArray, NDArray, NDArray], None]:
        n, d, k = self.product_points, self.dim, self.cutoff
        lines_all = n ** (d - 1)
        rows = min(_ROWS, lines_all)
        columns = np.zeros((d,) + (n,) * (d - 1) + (k + 1,), dtype=complex)
        flat = columns.reshape(d, lines_all, k + 1)
        line_hat = np.zeros((rows, n // 2 + 1), dtype=complex)
        lines = np.zeros((d, rows, n))
        to_columns, to_modes = _PASSES[d]
        ks, kl = self._all, self._half

        def evaluate(u_hat: NDArray, velocity: NDArray, out: NDArray) -> None:
            threads = threads_for(flat[0].size)
            to_columns(u_hat, ks, kl, columns, threads)
            if threads == 1:
                _product_rows(0, lines_all, flat, velocity.reshape(d, lines_all, n), line_hat, lines)
            else:
                spread(_product_rows_by_threads, lines_all, flat, velocity.reshape(d, lines_all, n), items=columns.size)
            to_modes(columns, out, threads)

        return evaluate


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
    def _product_rows(
        begin: int, end: int, spec: NDArray, velocity: NDArray, line_hat: NDArray, lines: NDArray
    ) -> None:
        """Last axis: rows of spec (d, R, K+1) to nodes, times velocity (d, R, N), summed, back into spec[0]."""
        d, kept = spec.shape[0], spec.shape[2]
        block, n = lines.shape[1], lines.shape[2]
        axis = np.array([1])
        for start in range(begin, end, block):
            count = min(block, end - start)
            for c in range(d):
                for i in range(count):
                    line_hat[i, :kept] = spec[c, start + i]
                    line_hat[i, kept:] = 0.0
                c2r(line_hat[:count], lines[c, :count], axis, False, 1.0, 1)
            for i in range(count):
                for j in range(n):
                    total = velocity[0, start + i, j] * lines[0, i, j]
                    for c in range(1, d):
                        total += velocity[c, start + i, j] * lines[c, i, j]
                    lines[0, i, j] = total
            r2c(lines[0, :count], line_hat[:count], axis, True, 1.0 / n, 1)
            for i in range(count):
                spec[0, start + i] = line_hat[i, :kept]

    @kernel(fastmath={"contract"})
    def _product_rows_by_threads(begin: int, end: int, spec: NDArray, velocity: NDArray) -> None:
        d, n, rows = spec.shape[0], velocity.shape[2], min(_ROWS, end - begin)
        line_hat = np.empty((rows, n // 2 + 1), spec.dtype)
        _product_rows(begin, end, spec, velocity, line_hat, np.empty((d, rows, n)))

    # modes (..., K+1) to the columns of each derivative, transformed along all axes but the last, and back

    @kernel(fastmath={"contract"})
    def _to_columns_1d(u: NDArray, ks: NDArray, kl: NDArray, spec: NDArray, threads: int) -> None:
        for j in range(u.shape[0]):
            spec[0, j] = complex(-kl[j] * u[j].imag, kl[j] * u[j].real)

    @kernel()
    def _to_modes_1d(spec: NDArray, out: NDArray, threads: int) -> None:
        out[:] = spec[0]

    @kernel(fastmath={"contract"})
    def _to_columns_2d(u: NDArray, ks: NDArray, kl: NDArray, spec: NDArray, threads: int) -> None:
        n, kept = spec.shape[1], u.shape[1]
        axis = np.array([0])
        for i in range(u.shape[0]):
            row = i if i < kept else n - u.shape[0] + i
            for j in range(kept):
                re, im = -u[i, j].imag, u[i, j].real
                spec[0, row, j] = complex(ks[i] * re, ks[i] * im)
                spec[1, row, j] = complex(kl[j] * re, kl[j] * im)
        spec[:, kept : n - kept + 1] = 0.0
        c2c(spec[0], spec[0], axis, False, 1.0, threads)
        c2c(spec[1], spec[1], axis, False, 1.0, threads)

    @kernel(fastmath={"contract"})
    def _to_modes_2d(spec: NDArray, out: NDArray, threads: int) -> None:
        n, kept = spec.shape[1], out.shape[1]
        c2c(spec[0], spec[0], np.array([0]), True, 1.0 / n, threads)
        for i in range(out.shape[0]):
            out[i] = spec[0, i if i < kept else n - out.shape[0] + i]

    @kernel(fastmath={"contract"})
    def _to_columns_3d(u: NDArray, ks: NDArray, kl: NDArray, spec: NDArray, threads: int) -> None:
        n, kept, m = spec.shape[1], u.shape[2], u.shape[0]
        first, second = np.array([0]), np.array([1])
        spec[:] = 0.0
        for i in range(m):
            row = i if i < kept else n - m + i
            for j in range(m):
                col = j if j < kept else n - m + j
                for l in range(kept):
                    re, im = -u[i, j, l].imag, u[i, j, l].real
                    spec[0, row, col, l] = complex(ks[i] * re, ks[i] * im)
                    spec[1, row, col, l] = complex(ks[j] * re, ks[j] * im)
                    spec[2, row, col, l] = complex(kl[l] * re, kl[l] * im)
        for c in range(3):  # along the first axis only the kept columns hold anything
            c2c(spec[c, :, :kept], spec[c, :, :kept], first, False, 1.0, threads)
            c2c(spec[c, :, n - kept + 1 :], spec[c, :, n - kept + 1 :], first, False, 1.0, threads)
            c2c(spec[c], spec[c], second, False, 1.0, threads)

    @kernel(fastmath={"contract"})
    def _to_modes_3d(spec: NDArray, out: NDArray, threads: int) -> None:
        n, kept, m = spec.shape[1], out.shape[2], out.shape[0]
        first, second = np.array([0]), np.array([1])
        c2c(spec[0], spec[0], second, True, 1.0 / n, threads)
        c2c(spec[0, :, :kept], spec[0, :, :kept], first, True, 1.0 / n, threads)
        c2c(spec[0, :, n - kept + 1 :], spec[0, :, n - kept + 1 :], first, True, 1.0 / n, threads)
        for i in range(m):
            row = i if i < kept else n - m + i
            for j in range(m):
                out[i, j] = spec[0, row, j if j < kept else n - m + j]

    _PASSES = {
        1: (_to_columns_1d, _to_modes_1d),
        2: (_to_columns_2d, _to_modes_2d),
        3: (_to_columns_3d, _to_modes_3d),
    }
