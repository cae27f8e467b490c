"""The convection-diffusion equation on kept Fourier modes: its products joined to a way through time.

The state is modes (K, 2K₁+1, ..., K_d+1) of K fields, 1 for a single one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.coefficients import Coefficients, growth
from pdekit.equation.krylov import Krylov
from pdekit.equation.operator import Grid, SpectralOperator, cutoff_of, resized
from pdekit.equation.steppers import Stepper, StepperAB4, StepperDP5, StepperRK4
from pdekit.field import Field
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import kernel


class _Modes:
    """The state and the operators of a problem of the unit box on kept Fourier modes.

    transposed: solve ∂ρ/∂t = Aᵀρ forward in time in place of u' = A u backward. coefficients: in place of those that
    the problem's values need.
    """

    def __init__(
        self,
        problem: ConvectionDiffusion,
        grid: Grid,
        *,
        padded: bool,
        fft: str,
        transposed: bool = False,
        coefficients: Coefficients | None = None,
    ) -> None:
        self.problem, self._padded, self._transposed = problem, padded, transposed
        self.coefficients = coefficients or Coefficients(problem, grid)
        terms, bands = self.coefficients.terms, self.coefficients.bands
        self.operator = SpectralOperator(grid, terms=terms, bands=bands, padded=padded, fft=fft)
        self.symbol = self.coefficients.symbol(self.operator)
        self._standing: Field = problem.velocity
        self._prepared = np.empty((len(terms), *self.operator.product_grid))
        self._prepared_for: list[tuple[Field, float] | None] = [None] * len(self.coefficients.parts())
        self._rows = [0] * len(self._prepared_for)
        self._parts_of, self._parts = self._standing, self.coefficients.parts()
        self._source: NDArray | None = None
        self._source_at: float | None = None

    @property
    def speed_met(self) -> float:
        return self.coefficients.speed_met

    def _time(self, s: float) -> float:
        """The problem time of a march's own time."""
        return s if self._transposed else self.problem.horizon - s

    def _prepared_at(self, t: float) -> NDArray:
        """Coefficients on the product grid; `_standing` serves until the step's end, where the next may begin."""
        if self._parts_of is not self._standing:
            self._parts_of, self._parts = self._standing, self.coefficients.parts(self._standing)
        first = 0
        for i, (field, nodes) in enumerate(self._parts):
            key = field, 0.0 if field.steady else t
            if key != self._prepared_for[i]:
                values = self.operator.prepare(nodes(t))
                self._prepared[first : first + len(values)] = values
                self._prepared_for[i], self._rows[i] = key, len(values)
            first += self._rows[i]
        return self._prepared

    def _source_modes(self, t: float) -> NDArray | None:
        """ĝ at a time, None without a source."""
        source = self.problem.source
        if source is None or self._transposed:
            return None
        at = 0.0 if source.steady else t
        if at != self._source_at:
            self._source, self._source_at = self.operator.to_modes(source.nodes(self.operator.grid, at)[0]), at
        return self._source

    def _products(self, u: NDArray, t: float, out: NDArray) -> None:
        """out = Σ_c a_c D^c u, or its transpose, for each field."""
        apply = self.operator.transpose if self._transposed else self.operator.evaluate
        prepared = self._prepared_at(t)
        for modes, into in zip(u, out, strict=True):
            apply(modes, prepared, into)

    def start(self, field: NDArray) -> NDArray:
        fields = fields_first(field, self.problem.dim)
        return np.stack([self.operator.to_modes(f) for f in fields])

    def field(self, u_hat: NDArray) -> NDArray[np.float64]:
        return fields_last(np.stack([self.operator.to_grid(u) for u in u_hat]), self.problem)

    def norm(self, u_hat: NDArray) -> float:
        norms = [self.operator.norm(u) for u in u_hat]
        return max(norms) if all(n == n for n in norms) else math.nan

    def energies(self, u_hat: NDArray) -> tuple[NDArray, NDArray]:
        tails, totals = zip(*(self.operator.energies(u) for u in u_hat), strict=True)
        return np.array(tails), np.array(totals)

    def facts(self) -> dict[str, Any]:
        return {"cutoff": max(self.operator.cutoff), "padded": int(self._padded)}

    def convert(self, modes: NDArray) -> NDArray:
        """Modes kept on another grid (trailing axes), as modes of this one: cut off or filled up with zeros."""
        here = self.operator.cutoff
        return modes if cutoff_of(modes.shape[-len(here) :]) == here else resized(modes, here)


def fields_first(field: NDArray, dim: int) -> NDArray:
    """(N₁, ..., N_d) or (N₁, ..., N_d, K) as (K, N₁, ..., N_d)."""
    return np.moveaxis(field, -1, 0) if field.ndim > dim else field[None]


def fields_last(fields: NDArray, problem: ConvectionDiffusion) -> NDArray:
    """(K, N₁, ..., N_d) as (N₁, ..., N_d, K), or without that axis for a single function."""
    return fields[0] if problem.num_fields is None else np.ascontiguousarray(np.moveaxis(fields, 0, -1))


class LawsonMethod(_Modes):
    """Advanced by one of the Lawson steppers: "spectral_rk4", "spectral_ab4" or "spectral_adaptive"."""

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        grid: Grid,
        dt: float,
        kind: str,
        padded: bool = False,
        fft: str = "auto",
        rtol: float | None = None,
        transposed: bool = False,
        coefficients: Coefficients | None = None,
    ) -> None:
        super().__init__(problem, grid, padded=padded, fft=fft, transposed=transposed, coefficients=coefficients)
        fields = problem.num_fields or 1
        if kind == "spectral_rk4":
            # a diffusion that varies is partly taken back by the products
            varies = self.coefficients.explicit_diffusivity > 0.0
            self.stepper: Stepper = StepperRK4(self.symbol, self.advance, dt, fields, exponential=varies)
        elif kind == "spectral_ab4":
            self.stepper = StepperAB4(self.symbol, self.advance, dt, fields)
        else:
            assert rtol is not None
            self.stepper = StepperDP5(self.symbol, self.advance, dt, fields, norm=self.norm, rtol=rtol)
        self.history, self.restore = self.stepper.history, self.stepper.restore

    def advance(self, u_hat: NDArray, s: float, out: NDArray) -> None:
        """out = N(u, s), what the stepper treats explicitly."""
        t = self._time(s)
        self._products(u_hat, t, out)
        if (source := self._source_modes(t)) is not None:
            out += source

    def stand(self, s: float) -> None:
        """Take the piece of F that stands in the step from s on."""
        t = self._time(s) if self._transposed else self._time(s) - self.stepper.dt
        self._standing = self.problem.velocity.standing(t)

    def step(self, u_hat: NDArray, s: float, limit: float = math.inf) -> tuple[NDArray, float]:
        self.stand(s)
        return u_hat, self.stepper.step(u_hat, s, limit)


class KrylovMethod(_Modes):
    """Exact in time up to rtol times the bound of |u|, for what stands still or jumps: see `pdekit.equation.krylov`.

    A steady source makes the equation one with a further unknown, constant in time, that it is multiplied by
    (u' = A u + g w, w' = 0): the imaginary part of the mean, which a real field leaves free, is that unknown.

    duration: from T back to the first frame.
    """

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        grid: Grid,
        rtol: float,
        duration: float,
        padded: bool = False,
        fft: str = "auto",
        transposed: bool = False,
        coefficients: Coefficients | None = None,
    ) -> None:
        super().__init__(problem, grid, padded=padded, fft=fft, transposed=transposed, coefficients=coefficients)
        self._rtol = rtol
        source = self._source_modes(0.0)
        self._forcing, self._growth = None, growth(problem, grid)
        if source is not None:
            self._forcing = Forcing(source, float(np.abs(self.operator.to_grid(source)).max()), duration)
        fields = problem.num_fields or 1
        shape = self.operator.shape
        self.propagators = [Krylov(shape, self._apply, self._largest, duration, fields) for _ in range(fields)]

    def history(self) -> dict[str, NDArray]:
        parts = enumerate(p.history() for p in self.propagators)
        return {f"{i}_{name}": array for i, part in parts for name, array in part.items()}

    def restore(self, history: dict[str, NDArray]) -> None:
        if history:
            self._stand(float(history["0_number_0"]))
            for i, propagator in enumerate(self.propagators):
                own = {k.split("_", 1)[1]: v for k, v in history.items() if k.startswith(f"{i}_")}
                propagator.restore(own)

    def start(self, field: NDArray) -> NDArray:
        state = super().start(field)
        for propagator, own in zip(self.propagators, fields_first(field, self.problem.dim), strict=True):
            # errors grow no more than u itself may, and are measured by what it may reach
            size = float(np.abs(own).mean() if self._transposed else np.abs(own).max())
            propagator.tolerance = self._rtol * (size + (self._forcing.reach if self._forcing else 0.0))
        if self._forcing is not None:
            for modes in state:
                self._forcing.begin(modes)
        return state

    def facts(self) -> dict[str, Any]:
        own = {
            "error_estimate_time": self._growth * max(p.estimate for p in self.propagators),
            "applications": sum(p.applications for p in self.propagators),
        }
        return super().facts() | own

    def _apply(self, u_hat: NDArray, out: NDArray) -> None:
        self._products(u_hat[None], 0.0, out[None])
        add_product(self.symbol.reshape(-1), u_hat.reshape(-1), out.reshape(-1))
        if self._forcing is not None:
            self._forcing.add(u_hat, out)

    def _largest(self, u_hat: NDArray) -> float:
        """The norm in which the equation adds nothing to an error: max|u|, or for the density ∫|ρ|."""
        values = np.abs(self.operator.to_grid(u_hat))
        size = float(values.mean() if self._transposed else values.max())
        return size if self._forcing is None else size + self._forcing.effect(u_hat)

    def step(self, u_hat: NDArray, s: float, limit: float = math.inf) -> tuple[NDArray, float]:
        standing = self._stand(s)
        taken = limit
        for propagator, modes in zip(self.propagators, u_hat, strict=True):
            taken = min(taken, propagator.serve(modes, s, standing=standing))
        mean: tuple[Any, ...] = (..., *(0,) * self.problem.dim)
        before = u_hat[mean].copy()
        for propagator, modes in zip(self.propagators, u_hat, strict=True):
            propagator.state(s + taken, modes)
        if self._transposed and self.problem.potential is None:
            u_hat[mean] = before  # nothing is lost, not even by the tolerance
        return u_hat, taken

    def _stand(self, s: float) -> float:
        """Take the piece of F that stands, and return for how long it does."""
        if self._transposed:
            t, interval = self._time(s), self.problem.velocity.interval
            self._standing = self.problem.velocity.standing(t)
            return (math.floor(t / interval + 1e-9) + 1) * interval - t if self.problem.velocity.jumps else math.inf
        self._standing, duration = self.problem.velocity.before(self._time(s))
        return duration


class Forcing:
    """A steady source as a further unknown, the imaginary part of the mean mode: see `KrylovMethod`.

    modes: ĝ; largest: max|g|; duration: in which it acts.
    """

    def __init__(self, modes: NDArray, largest: float, duration: float) -> None:
        self.modes, self.reach = modes, largest * duration
        self._unit = max(self.reach, 1e-300)  # of the unknown, so that it weighs as much as what it brings about
        self._mean = (0,) * modes.ndim

    def begin(self, modes: NDArray) -> None:
        modes[self._mean] = modes[self._mean].real + 1j * self._unit

    def add(self, u_hat: NDArray, out: NDArray) -> None:
        out += (u_hat[self._mean].imag / self._unit) * self.modes
        out[self._mean] = out[self._mean].real

    def effect(self, u_hat: NDArray) -> float:
        """max|u| that the unknown brings about."""
        return abs(float(u_hat[self._mean].imag)) * self.reach / self._unit


@kernel(fastmath={"contract"})
def add_product(symbol: NDArray, u: NDArray, out: NDArray) -> None:
    """out += symbol u."""
    for p in range(len(out)):
        out[p] += symbol[p] * u[p]
