"""The noise σ of the paths, dX = F dt + σ dB: a number, a vector, a matrix, or one of these over points and time.

Whatever it is given as, it stands for a matrix (d, m) that takes m Brownian motions to d coordinates: a number for
itself on the diagonal, a vector for its elements there. The equation has its covariance a = σσᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.field import CompiledField, Field, Function, Grid, as_field, node_points
from pdekit.runtime.checks import check_real, real_values

Sigma = float | ArrayLike | Function | Field

_LOOKED_AT = 2**14  # points, to tell a noise that depends on x from one that does not


@dataclass(frozen=True, eq=False)
class Noise:
    """σ over points and time of the unit box.

    constant: (d, m), or None for a field; field: its values, of shape (), (d,) or (d, m); factor: (d,), of the rows.
    """

    dim: int
    constant: NDArray[np.float64] | None
    field: Field | None = None
    factor: tuple[float, ...] = ()

    @classmethod
    def of(cls, sigma: Sigma, dim: int, at: NDArray | None = None) -> Noise:
        """From what a user gives; at: (d,), a point where a function may be asked for its shape.

        Raises ValueError for a negative number, non-finite values, or another shape.
        """
        if isinstance(sigma, Field) or callable(sigma):
            return cls(dim, None, _as_noise_field(sigma, dim, np.full(dim, 0.5) if at is None else at))
        if np.ndim(sigma) == 0:
            sigma = sigma[()] if isinstance(sigma, np.ndarray) else sigma
            return cls(dim, check_real("sigma", sigma, "a finite number >= 0", positive=False) * np.eye(dim))
        values = real_values("sigma", sigma)
        if not np.isfinite(values).all():
            raise ValueError(f"sigma: expected finite values, got {values[~np.isfinite(values)][0]}")
        if values.shape == (dim,):
            return cls(dim, np.diag(values))
        if values.ndim == 2 and len(values) == dim:
            return cls(dim, values)
        raise ValueError(
            f"sigma: expected a number, a vector ({dim},), a matrix ({dim}, m) or a function, got {values.shape}"
        )

    @property
    def columns(self) -> int:
        """m, the number of Brownian motions."""
        if self.constant is not None:
            return self.constant.shape[1]
        assert self.field is not None
        return self.field.shape[1] if len(self.field.shape) == 2 else self.dim

    @property
    def steady(self) -> bool:
        return self.field is None or self.field.steady

    @cached_property
    def none(self) -> bool:
        """Whether there is no noise at all."""
        return self.constant is not None and not self.constant.any()

    @cached_property
    def number(self) -> float | None:
        """The number that it is, along all axes, or None."""
        if self.constant is None or self.constant.shape != (self.dim, self.dim):
            return None
        first = abs(float(self.constant[0, 0]))
        return first if (self.constant == first * np.eye(self.dim)).all() else None

    def same_everywhere(self, horizon: float) -> bool:
        """Whether it does not depend on x: a function has the same values at many points at each of some times."""
        if self.field is None:
            return True
        rng = np.random.default_rng(0)
        x = rng.random((_LOOKED_AT, self.dim))
        x[: _LOOKED_AT // 8] = 10.0 ** rng.uniform(-3, 3, (_LOOKED_AT // 8, 1)) * (2.0 * x[: _LOOKED_AT // 8] - 1.0)
        for t in (0.1234 * horizon, 0.5719 * horizon, horizon):
            values = self.field.at(x, t)
            if (values != values[:1]).any():
                return False
        return True

    def matrix(self, x: NDArray, t: float) -> NDArray[np.float64]:
        """σ at points (..., d), (..., d, m)."""
        if self.constant is not None:
            return np.broadcast_to(self.constant, (*x.shape[:-1], *self.constant.shape))
        assert self.field is not None
        values = self.field.at(x, t)
        if self.field.shape == ():
            values = values[..., None, None] * np.eye(self.dim)
        elif len(self.field.shape) == 1:
            values = values[..., None] * np.eye(self.dim)
        return values * np.array(self.factor)[:, None] if self.factor else values

    def covariance(self, x: NDArray, t: float) -> NDArray[np.float64]:
        """a = σσᵀ at points (..., d), (..., d, d)."""
        sigma = self.matrix(x, t)
        return np.asarray(sigma @ np.swapaxes(sigma, -1, -2))

    def covariance_nodes(self, num_points: int | Grid, t: float) -> NDArray[np.float64]:
        """a on the nodes of a grid, (d, d, N₁, ..., N_d)."""
        return np.moveaxis(self.covariance(node_points(num_points, self.dim), t), (-2, -1), (0, 1))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The elements a_ij, i <= j, that may differ from zero; those of a constant are not asked."""
        if self.field is not None and len(self.field.shape) < 2:
            return tuple((i, i) for i in range(self.dim))
        return tuple((i, j) for i in range(self.dim) for j in range(i, self.dim))

    def half_covariance_nodes(self, num_points: int | Grid, t: float) -> NDArray[np.float64]:
        """½a_ij (P, N₁, ..., N_d) of the pairs on the nodes of a grid."""
        if self.field is None or len(self.field.shape) == 2:
            a = self.covariance_nodes(num_points, t)
            return np.stack([0.5 * a[i, j] for i, j in self.pairs])
        squares = 0.5 * self.field.nodes(num_points, t) ** 2
        factor = np.reshape(self.factor or (1.0,) * self.dim, (-1, *[1] * self.dim))
        return np.asarray(factor**2 * squares)

    def scaled(self, *factor: float) -> Noise:
        """σ with each row times a factor."""
        if self.constant is not None:
            return Noise(self.dim, self.constant * np.array(factor)[:, None])
        own = self.factor or (1.0,) * self.dim
        return Noise(self.dim, None, self.field, tuple(a * b for a, b in zip(own, factor, strict=True)))

    def seen(self, field: Field) -> Noise:
        """With its field in other coordinates."""
        return Noise(self.dim, None, field, self.factor)

    def identity(self, points: NDArray, times: NDArray) -> Any:
        """Identify it by what JSON can hold."""
        if self.field is None:
            assert self.constant is not None
            return self.constant.tolist() if self.number is None else self.number
        return {"field": self.field.identity(points, times), "factor": list(self.factor)}


def _as_noise_field(sigma: Any, dim: int, at: NDArray) -> Field:
    """A function or a field as one of values (), (d,) or (d, m), which one value of it tells."""
    if isinstance(sigma, CompiledField) and sigma.components % dim == 0 and sigma.components > dim:
        return as_field("sigma", _reshaped(sigma, dim), dim, (dim, sigma.components // dim))
    if isinstance(sigma, Field):
        shape = sigma.shape
    else:
        value = np.asarray(sigma(at[None].copy(), 0.0))
        shape = value.shape[1:]
    if shape not in ((), (dim,)) and (len(shape) != 2 or shape[0] != dim):
        raise ValueError(f"sigma(x, t): expected values of shape (), ({dim},) or ({dim}, m) at a point, got {shape}")
    return as_field("sigma", sigma, dim, shape)


def _reshaped(field: CompiledField, dim: int) -> CompiledField:
    return CompiledField(field.kernel, dim, field.interval, (dim, field.components // dim), "sigma", field.frame)


def _eigenvalues(matrices: NDArray) -> NDArray[np.float64]:
    """Of symmetric matrices (..., d, d), at once where they are diagonal."""
    diagonal = np.einsum("...ii->...i", matrices)
    if np.count_nonzero(matrices) == np.count_nonzero(diagonal):
        return diagonal
    return np.linalg.eigvalsh(matrices)


def largest_eigenvalue(covariance: NDArray) -> float:
    """Of symmetric matrices (..., d, d)."""
    return float(_eigenvalues(covariance).max())


def smallest_eigenvalue(covariance: NDArray) -> float:
    """Of symmetric matrices (..., d, d), not below zero."""
    return max(float(_eigenvalues(covariance).min()), 0.0)
