"""Numbers that describe a field or a velocity: variation, steepness, Péclet and Courant numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pdekit.numerics.spectral import gradient


def total_variation(u: NDArray) -> float:
    """Anisotropic total variation ∫|∂u/∂x_1| + ... of nodal values (N,)*d, by sums of neighbour differences."""
    n, d = u.shape[-1], u.ndim
    return float(sum(np.abs(np.diff(u, axis=a, append=np.take(u, [0], axis=a))).sum() for a in range(d)) / n ** (d - 1))


def steepest_difference(u: NDArray) -> float:
    """max |u_i - u_j| / h over neighbouring nodes: the steepest slope that the grid shows."""
    n = u.shape[-1]
    return float(max(np.abs(np.diff(u, axis=a, append=np.take(u, [0], axis=a))).max() for a in range(u.ndim)) * n)


def max_gradient(u: NDArray) -> float:
    """max |∇u| over the nodes, with the spectral gradient; for resolved fields."""
    return float(np.sqrt((gradient(u) ** 2).sum(axis=0)).max())


def strain_rates(velocity: NDArray) -> tuple[float, float]:
    """Smallest and largest ξ·∇F·ξ over nodes and unit ξ, from node values (d, N, ..., N).

    They are the extreme eigenvalues of (∇F + ∇Fᵀ)/2, with spectral derivatives.
    """
    grads = np.stack([gradient(component) for component in velocity])  # (c, a, N, ..., N): ∂F_c/∂x_a
    if len(velocity) == 1:
        return float(grads.min()), float(grads.max())
    if len(velocity) == 2:  # eigvalsh is 100 times slower here
        (a, b), (c, d) = grads
        centre, radius = 0.5 * (a + d), np.hypot(0.5 * (a - d), 0.5 * (b + c))
        return float((centre - radius).min()), float((centre + radius).max())
    strain = 0.5 * (grads + grads.swapaxes(0, 1))
    eigenvalues = np.linalg.eigvalsh(np.moveaxis(strain.reshape(3, 3, -1), -1, 0))
    return float(eigenvalues.min()), float(eigenvalues.max())


def steepening_rate(velocity: NDArray) -> float:
    """γ = max over nodes and unit ξ of -ξ·∇F·ξ, from node values (d, N, ..., N)   (Theorem 2).

    In ∂u/∂t + F·∇u = 0 run forward in time (Eq. 12), convection can steepen |∇u| by at most exp(γ t); for the
    terminal-value problem (Eq. 10), which runs backward, γ is that of -F.
    """
    return -strain_rates(velocity)[0]


def max_speed(velocity: NDArray) -> float:
    """max |F| over the nodes of (d, N, ..., N)."""
    return float(np.sqrt((velocity**2).sum(axis=0)).max())


def cell_peclet(speed: float, num_points: int, diffusivity: float) -> float:
    """max|F| h / ν: below about 5 diffusion resolves the grid scale; infinite without diffusion."""
    return speed / (num_points * diffusivity) if diffusivity > 0 else float("inf")


def courant(speed: float, num_points: int, dt: float) -> float:
    """max|F| dt / h."""
    return speed * dt * num_points
