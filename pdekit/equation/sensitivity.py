"""From the values that a problem is given by to the coefficients of its terms, and from gradients by these back.

Node values of a `GridField` or the frames of a `GridSeries` are resampled to the nodes of a solve, of these the modes
that would alias are left out, and the rest goes to the product grid. All of that is linear and is transposed here to
the bit: Nyquist modes, weights of frames in time, lengths of the box, and the means over space of V and ½σσᵀ, which
act through the symbol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pdekit.equation.coefficients import INSTANTS, Coefficients, looked_at
from pdekit.equation.operator import Grid, SpectralOperator, gradient_terms
from pdekit.equation.spectral_method import fields_last
from pdekit.field import Field, GridField, node_points
from pdekit.numerics.spectral import truncated
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import kernel
from pdekit.series import GridSeries


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


class Given:
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
            values = scipy.fft.irfft(scipy.fft.rfft(values, axis=axis), n=n, axis=axis)
    return values


class Whole(Coefficients):
    """The coefficients with all terms that they get when the values of the fields change.

    given: the problem as it was given; problem: the same on the unit box; all_bands: the highest |k| along each axis
        that the values could have, None where these are on the nodes of the solve; bands: that they have.
    """

    def __init__(self, given: ConvectionDiffusion, grid: Grid) -> None:
        unit = given.on_unit_box
        super().__init__(unit, grid)
        self.given, dim, one = given, unit.dim, np.ones(1)
        # Lawson's weights, whose derivative by the symbol is known, about the mean itself
        self.diffusion, self.explicit_diffusivity = self.mean_diffusion, 0.0
        self.velocity = Given(given.velocity, unit.velocity, 1.0 / given.lengths)
        self.potential = self.source = None
        if given.potential is not None and unit.potential is not None:
            self.potential = Given(given.potential, unit.potential, one)
        if given.source is not None and unit.source is not None:
            self.source = Given(given.source, unit.source, one)
        self.sigma = None
        if unit.noise.field is not None:
            if not unit.noise.steady:
                raise ValueError("sigma: expected one that does not change in time, got a function of t")
            self.sigma = Given(unit.noise.field, unit.noise.field, np.ones(unit.noise.field.components))
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
        own_bands = None if None in grids else tuple(max(ns) // 2 for ns in zip(*grids, strict=True))
        self.all_bands = own_bands
        self.steady = all(i.unit.steady for i in self.inputs.values())
        if not self.steady:
            self.bands = own_bands

    def mean_weights(self, field: Given) -> list[tuple[int, float]]:
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


class Held:
    """Part of a method on modes whose coefficients are sums of frames, which are prepared once."""

    coefficients: Coefficients
    operator: SpectralOperator
    _transposed: bool
    _at: float | None = None

    @property
    def whole(self) -> Whole:
        assert isinstance(self.coefficients, Whole)
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


class Sums:
    """∂J by coefficients, source and symbol, added up on the way through time."""

    def __init__(self, method: Held, *, padded: bool, fft: str) -> None:
        self._whole, whole = method.whole, method.whole
        # u and λ take the modes that the coefficients have, gradients all that they could have
        size: dict[str, Any] = {"terms": whole.terms, "bands": whole.all_bands, "padded": padded, "fft": fft}
        operator = SpectralOperator(whole.grid, **size)
        self._together = operator.product_grid == method.operator.product_grid
        self._operator, self._solving = operator, method.operator
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
        if not self._together:
            self.add(u, v, t)
            for other, into in zip(v, out, strict=True):
                self._solving.transpose(other, prepared, into)
            return
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
        by_half = np.zeros((dim, dim, *operator.grid))
        for (i, j), own in zip(noise.pairs, by_pairs, strict=True):
            by_half[i, j] = by_half[j, i] = own
        over_space = tuple(range(2, 2 + dim))
        mean = (by_diffusion - by_half.sum(axis=over_space)) / math.prod(operator.grid)
        by_half += mean[(..., *[None] * dim)]
        values = np.moveaxis(noise.matrix(node_points(operator.grid, dim), 0.0), (-2, -1), (0, 1))
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
