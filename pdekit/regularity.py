"""How regular solutions are: moduli of continuity (Theorem 1), gradient bounds (Theorem 2), and what holds instead.

All bounds are for unit time; for a horizon T put γT for γ and σ√T for σ. They are stated for the initial-value
problem ∂u/∂t + F·∇u = ½σ²Δu (Eq. 12), where γ = -min ξ·∇F·ξ is `diagnostics.steepening_rate(F)`. For the
terminal-value problem (Eq. 10) the velocity changes sign (Remark 1): there γ = `steepening_rate(-F)`.

Three arguments, from weakest to sharpest:

Printed (Eq. 13). exp(γ - σ²) (|u0| + |∇u0|). Its proof has σ²Δ where Eq. (12) has ½σ²Δ, and it takes λ = γ - σ²,
which the maximum principle allows only while λ >= 0. It is not true for every σ.

Bernstein. The paper's own argument with ½σ²Δ: w = e^(-2λt) (μu² + |∇u|²) cannot grow if λ >= 0 and
λ >= γ - ½μσ², so |∇u(1)|² <= e^(2λ) (μ|u0|² + |∇u0|²).

Coupling. u(x, 1) = E u0(X_1). Run X from x and Y from y with Brownian motions that mirror each other (Lindvall &
Rogers 1986): their distance is at most r with dr = γr dt + 2σ dB, absorbed at 0, and u0 differs by at most
min(|∇u0| r, 2|u0|) between points at distance r. Taking expectations gives a bound on |u(x) - u(y)| that a ramp in a
linear compressing flow attains, so no better one depends on γ, σ, |u0| and |∇u0| alone.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from pdekit.numerics.spectral import derivative_wavenumbers

Array = NDArray[np.float64]


def modulus_of_continuity(u: ArrayLike, shifts: ArrayLike) -> Array:
    """max over the nodes of |u(x + δ) - u(x)| for every shift δ, by trigonometric interpolation   (Theorem 1).

    u: a resolved field on the periodic unit box, (N,)*d. shifts: (..., d), in box lengths, of any size.
    Returns an array (...). Between nodes the supremum is larger by O(h²): resample u first where that matters.

    Raises ValueError where the shifts do not have d components.
    """
    field = np.asarray(u, dtype=np.float64)
    delta = np.asarray(shifts, dtype=np.float64)
    if delta.ndim == 0 or delta.shape[-1] != field.ndim:
        raise ValueError(f"shifts: expected shape (..., {field.ndim}) for a field {field.shape}, got {delta.shape}")
    u_hat = scipy.fft.rfftn(field)
    ks = derivative_wavenumbers(field.shape)
    out = np.empty(delta.shape[:-1])
    for index in np.ndindex(out.shape):
        moved = u_hat
        for k, component in zip(ks, delta[index], strict=True):
            moved = moved * np.exp(1j * k * component)
        out[index] = np.abs(scipy.fft.irfftn(moved - u_hat, s=field.shape)).max()
    return out


def printed_bound(gamma: ArrayLike, sigma: ArrayLike, u_max: ArrayLike, grad_max: ArrayLike) -> Array:
    """Eq. 13 as printed: exp(γ - σ²) (|u0| + |∇u0|). Not a true bound for every σ; see the module."""
    gamma, sigma, u_max, grad_max = _checked(gamma, sigma, u_max, grad_max)
    return np.exp(gamma - sigma**2) * (u_max + grad_max)


def bernstein_bound(
    gamma: ArrayLike, sigma: ArrayLike, u_max: ArrayLike, grad_max: ArrayLike, *, mu: ArrayLike | None = None
) -> Array:
    """The proof of Theorem 2 redone with ½σ²: e^λ (μ|u0|² + |∇u0|²)^½ with λ = max(0, γ - ½μσ²).

    mu: the weight μ >= 0 of u²; default: the best one, `best_mu`. At μ = 0 the sign of λ = γ is free.

    Raises ValueError for a negative sigma, norm or mu.
    """
    gamma, sigma, u_max, grad_max = _checked(gamma, sigma, u_max, grad_max)
    mu = best_mu(gamma, sigma, u_max, grad_max) if mu is None else np.asarray(mu, dtype=np.float64)
    if (mu < 0).any():
        raise ValueError(f"mu: expected a number >= 0, got {mu.min():g}")
    rate = gamma - 0.5 * mu * sigma**2
    rate = np.where(mu > 0, np.maximum(rate, 0.0), rate)
    return np.exp(rate) * np.sqrt(mu * u_max**2 + grad_max**2)


def best_mu(gamma: ArrayLike, sigma: ArrayLike, u_max: ArrayLike, grad_max: ArrayLike) -> Array:
    """The μ that makes `bernstein_bound` smallest: 0 or 2γ/σ².

    On [0, 2γ/σ²] the logarithm of the squared bound, 2γ - μσ² + log(μ|u0|² + |∇u0|²), is concave in μ, so its minimum
    is at an end; beyond, λ = 0 and it increases. The two ends give e^γ |∇u0| and (2γ|u0|²/σ² + |∇u0|²)^½.
    """
    gamma, sigma, u_max, grad_max = _checked(gamma, sigma, u_max, grad_max)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        largest = 2.0 * gamma / sigma**2
        gain = grad_max**2 * np.expm1(2.0 * gamma) > largest * u_max**2
    return np.where((gamma > 0) & (sigma > 0) & gain, largest, 0.0)


def coupling_bound(gamma: ArrayLike, sigma: ArrayLike, u_max: ArrayLike, grad_max: ArrayLike) -> Array:
    """The sharp bound on |∇u(1)|:  g erf(|u0| / (√2 σ s g)),  g = e^γ |∇u0|,  s² = (1 - e^(-2γ)) / 2γ.

    At most e^γ |∇u0| (all there is without noise) and at most √(2/π) |u0| / (σ s), which needs no ∇u0 at all.
    Attained by u0 = a ramp of slope |∇u0| between plateaus ±|u0|, with F = -γx. |u0| may be half the oscillation.

    Raises ValueError for a negative sigma or norm.
    """
    gamma, sigma, u_max, grad_max = _checked(gamma, sigma, u_max, grad_max)
    steepest = np.exp(gamma) * grad_max
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = u_max / (np.sqrt(2.0) * sigma * _spread(gamma) * steepest)
    return np.where(steepest * u_max > 0, steepest * scipy.special.erf(reach), 0.0)


def coupling_modulus(length: ArrayLike, gamma: ArrayLike, sigma: ArrayLike, f_max: ArrayLike = 1.0) -> Array:
    """Theorem 1 with its constant: |u(x + δ) - u(x)| <= 2|f| erf(|δ| / (2√2 σ s)),  s² = (1 - e^(-2γ)) / 2γ.

    For any bounded f, discontinuous ones included; so α = 1 and C = √(2/π) |f| / s, `coupling_constant`. Equality for a
    step f in F = γx (terminal-value problem); at γ = 0 it is the heat equation's own modulus.

    Raises ValueError for a negative sigma, length or norm.
    """
    gamma, sigma, f_max, length = _checked(gamma, sigma, f_max, length)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = length / (2.0 * np.sqrt(2.0) * sigma * _spread(gamma))
    return np.where(length > 0, 2.0 * f_max * scipy.special.erf(reach), 0.0)


def coupling_constant(gamma: ArrayLike, f_max: ArrayLike = 1.0) -> Array:
    """C of |u(x + δ) - u(x)| <= C |δ| / σ: the slope of `coupling_modulus` at 0, √(2/π) |f| (2γ / (1 - e^(-2γ)))^½."""
    gamma = np.asarray(gamma, dtype=np.float64)
    return np.sqrt(2.0 / np.pi) * np.asarray(f_max, dtype=np.float64) / _spread(gamma)


def _spread(gamma: Array) -> Array:
    """s: the standard deviation of X_1 without noise's σ and the flow's e^γ, for the linear flow F = γx."""
    safe = np.where(gamma == 0, 1.0, gamma)
    return np.sqrt(np.where(gamma == 0, 1.0, -np.expm1(-2.0 * safe) / (2.0 * safe)))


def _checked(gamma: ArrayLike, sigma: ArrayLike, *norms: ArrayLike) -> tuple[Array, ...]:
    arrays = [np.asarray(a, dtype=np.float64) for a in (gamma, sigma, *norms)]
    for name, array in zip(("sigma", *["norms and lengths"] * len(norms)), arrays[1:], strict=True):
        if not (array >= 0).all():
            raise ValueError(f"{name}: expected numbers >= 0, got {np.min(array):g}")
    return tuple(arrays)
