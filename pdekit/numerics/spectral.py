"""Fourier calculus on the periodic unit box: wavenumbers, derivatives, truncation, resampling. Pure functions.

Fields are real arrays on the nodes x_i = i / N; transforms are `rfftn` over the trailing axes, so the last
axis keeps the frequencies 0 .. N/2 only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft


def wavenumbers(num_points: int, dim: int) -> tuple[NDArray[np.float64], ...]:
    """Angular wavenumbers 2πk along each axis, shaped to broadcast against an rfftn transform."""
    out = []
    for axis in range(dim):
        k = np.arange(num_points // 2 + 1.0) if axis == dim - 1 else fft.fftfreq(num_points, 1.0 / num_points)
        shape = [1] * dim
        shape[axis] = -1
        out.append((2.0 * np.pi * k).reshape(shape))
    return tuple(out)


def derivative_wavenumbers(num_points: int, dim: int) -> tuple[NDArray[np.float64], ...]:
    """Wavenumbers for odd derivatives: the unpaired Nyquist mode of an even grid has none."""
    out = []
    for k in wavenumbers(num_points, dim):
        odd = k.copy()
        if num_points % 2 == 0:
            odd[np.isclose(np.abs(k), np.pi * num_points)] = 0.0
        out.append(odd)
    return tuple(out)


def laplacian_symbol(num_points: int, dim: int) -> NDArray[np.float64]:
    """-|k|², the symbol of the Laplace operator."""
    total = -sum(k**2 for k in wavenumbers(num_points, dim))
    return np.asarray(total, dtype=np.float64)


def five_point_symbol(num_points: int, dim: int) -> NDArray[np.float64]:
    """Symbol of the second-difference Laplacian (five points in 2-D), -Σ (2N sin(k/2N))².

    exp(t Δ_h) is a non-negative matrix for every t >= 0, so it obeys the maximum principle exactly; the
    exact heat kernel truncated to the grid does not.
    """
    total = -sum((2.0 * num_points * np.sin(k / (2.0 * num_points))) ** 2 for k in wavenumbers(num_points, dim))
    return np.asarray(total, dtype=np.float64)


def gradient(u: ArrayLike) -> NDArray[np.float64]:
    """Spectral gradient of a field (N,)*d, as (d, N, ..., N)."""
    field = np.asarray(u, dtype=np.float64)
    u_hat = fft.rfftn(field)
    ks = derivative_wavenumbers(field.shape[-1], field.ndim)
    return np.stack([fft.irfftn(1j * k * u_hat, s=field.shape) for k in ks])


def resample(values: ArrayLike, num_points: int, *, axes: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """Trigonometric interpolant of periodic node values on a grid of another size.

    Towards a coarser grid the modes that it cannot hold are dropped. The unpaired Nyquist mode of an even grid
    is split evenly between +N/2 and -N/2, which is the interpolant of least oscillation and keeps it real.
    """
    out = np.asarray(values, dtype=np.float64)
    for axis in range(out.ndim) if axes is None else axes:
        old = out.shape[axis]
        if old == num_points:
            continue
        hat = np.moveaxis(fft.rfft(out, axis=axis), axis, -1)
        new = np.zeros((*hat.shape[:-1], num_points // 2 + 1), dtype=complex)
        keep = min(old, num_points)
        new[..., : keep // 2 + 1] = hat[..., : keep // 2 + 1]
        if keep % 2 == 0:
            new[..., keep // 2] *= 0.5 if num_points > old else 2.0
            if num_points < old:
                new[..., keep // 2] = new[..., keep // 2].real
        new *= num_points / old
        out = np.moveaxis(fft.irfft(new, n=num_points, axis=-1, overwrite_x=True), -1, axis)
    return np.ascontiguousarray(out)
