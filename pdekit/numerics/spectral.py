"""Fourier calculus on the periodic unit box: wavenumbers, derivatives, truncation, resampling. Pure functions.

Fields are real arrays (N₁, ..., N_d) on the nodes x_i = i / N of each axis; transforms are `rfftn` over the trailing
axes, so the last axis keeps the frequencies 0 .. N/2 only.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray


def wavenumbers(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], ...]:
    """Angular wavenumbers 2πk along each axis of a grid, shaped to broadcast against an rfftn transform."""
    ks = [2.0 * np.pi * scipy.fft.fftfreq(n, 1.0 / n) for n in shape[:-1]]
    ks.append(2.0 * np.pi * np.arange(shape[-1] // 2 + 1.0))
    return tuple(np.meshgrid(*ks, indexing="ij", sparse=True))


def derivative_wavenumbers(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], ...]:
    """Wavenumbers for odd derivatives: the unpaired Nyquist mode of an even grid has none."""
    out = []
    for k, n in zip(wavenumbers(shape), shape, strict=True):
        odd = k.copy()
        if n % 2 == 0:
            odd[np.isclose(np.abs(k), np.pi * n)] = 0.0
        out.append(odd)
    return tuple(out)


def laplacian_symbol(num_points: int, dim: int) -> NDArray[np.float64]:
    """-|k|², the symbol of the Laplace operator."""
    total = -sum(k**2 for k in wavenumbers((num_points,) * dim))
    return np.asarray(total, dtype=np.float64)


def second_difference_symbol(shape: tuple[int, ...], weights: ArrayLike = 1.0) -> NDArray[np.float64]:
    """Symbol of Σ w_i δ_i² with second differences along each axis, -Σ w_i (2N_i sin(k_i/2N_i))²; w: (d,) or a number.

    For w_i >= 0 the exponential of t times it is a non-negative matrix for every t >= 0, so it obeys the maximum
    principle exactly; the exact heat kernel truncated to the grid does not.
    """
    parts = zip(np.broadcast_to(weights, (len(shape),)), shape, wavenumbers(shape), strict=True)
    total = -sum(w * (2.0 * n * np.sin(k / (2.0 * n))) ** 2 for w, n, k in parts)
    return np.asarray(total, dtype=np.float64)


def derivative(order: int, k: NDArray) -> NDArray[np.complex128]:
    """Symbol (ik)^order of a derivative along an axis of wavenumbers k."""
    return (1j * k) ** order if order else np.ones_like(k, dtype=complex)


def gradient(u: ArrayLike) -> NDArray[np.float64]:
    """Spectral gradient of a field (N₁, ..., N_d), as (d, N₁, ..., N_d)."""
    field = np.asarray(u, dtype=np.float64)
    u_hat = scipy.fft.rfftn(field)
    ks = derivative_wavenumbers(field.shape)
    return np.stack([scipy.fft.irfftn(1j * k * u_hat, s=field.shape) for k in ks])


def truncated(values: NDArray, cutoff: tuple[int, ...]) -> NDArray[np.float64]:
    """Node values (..., N₁, ..., N_d) without the modes beyond a cutoff along each axis."""
    shape = values.shape[-len(cutoff) :]
    if all(2 * k >= n - 1 for k, n in zip(cutoff, shape, strict=True)):
        return values
    axes = tuple(range(-len(cutoff), 0))
    hat = scipy.fft.rfftn(values, axes=axes)
    for k, highest in zip(wavenumbers(shape), cutoff, strict=True):
        hat *= np.abs(k) <= 2.0 * np.pi * (highest + 0.5)
    return scipy.fft.irfftn(hat, s=shape, axes=axes)


def resample(
    values: ArrayLike, num_points: int | tuple[int, ...], *, axes: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    """Trigonometric interpolant of periodic node values on a grid of another size.

    num_points: nodes along each of the axes, all by default, or one number for all of them.

    Towards a coarser grid the modes that it cannot hold are dropped. The unpaired Nyquist mode of an even grid
    is split evenly between +N/2 and -N/2, which is the interpolant of least oscillation and keeps it real.
    """
    out = np.asarray(values, dtype=np.float64)
    along = tuple(range(out.ndim)) if axes is None else axes
    counts = num_points if isinstance(num_points, tuple) else (num_points,) * len(along)
    for axis, count in zip(along, counts, strict=True):
        old = out.shape[axis]
        if old == count:
            continue
        hat = np.moveaxis(scipy.fft.rfft(out, axis=axis), axis, -1)
        new = np.zeros((*hat.shape[:-1], count // 2 + 1), dtype=complex)
        keep = min(old, count)
        new[..., : keep // 2 + 1] = hat[..., : keep // 2 + 1]
        if keep % 2 == 0:
            new[..., keep // 2] *= 0.5 if count > old else 2.0
            if count < old:
                new[..., keep // 2] = new[..., keep // 2].real
        new *= count / old
        out = np.moveaxis(scipy.fft.irfft(new, n=count, axis=-1, overwrite_x=True), -1, axis)
    return np.ascontiguousarray(out)
