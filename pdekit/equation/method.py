"""The interface between a method and the march through time, and the facts known of each method beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from numpy.typing import NDArray

from pdekit.equation.steppers import StepperAB4, StepperRK4


class Method(Protocol):
    """Advances a state of K fields, of whatever form, in reversed time s = T - t."""

    @property
    def speed_met(self) -> float:
        """The largest |F| that was used, for an F that changes; 0 otherwise."""

    def start(self, field: NDArray) -> NDArray:
        """The state of fields (N₁, ..., N_d) or (N₁, ..., N_d, K) at s = 0."""

    def step(self, state: NDArray, s: float, limit: float = math.inf) -> tuple[NDArray, float]:
        """Advance the state from s on, and return it with the time taken: a fixed step, or at most `limit`.

        The state may be changed in place or be another one.

        Raises FloatingPointError where it cannot.
        """

    def field(self, state: NDArray) -> NDArray:
        """The fields of a state, of that shape."""

    def norm(self, state: NDArray) -> float:
        """The largest root mean square of a field."""

    def energies(self, state: NDArray) -> tuple[NDArray, NDArray]:
        """∫u² (K,) of the upper third of the modes, and of all but the mean."""

    def convert(self, state: NDArray) -> NDArray:
        """A state of another grid as one of this grid."""

    def facts(self) -> dict[str, float]:
        """Numbers of its own for the record of a solve, by the names of attributes."""

    def history(self) -> dict[str, NDArray]:
        """State that a restart needs beyond `state`."""

    def restore(self, history: dict[str, NDArray]) -> None:
        """Take over the arrays that `history` gave."""


def whole_steps(duration: float, dt: float) -> int:
    """How many equal steps, none longer than dt up to rounding, make up a duration."""
    return max(1, math.ceil(duration / dt - 1e-9))


@dataclass(frozen=True)
class Kind:
    """Facts about a method, known before it runs.

    spectral: it keeps Fourier modes; adaptive: it chooses its steps by `rtol` and meets every frame's time exactly;
    one_step: F may jump between its steps; standing: F must stand still between its jumps; amplification: its growth in
    a step of u' = Lu + λu as a function of λ dt and L dt, where it has a stability region.
    """

    spectral: bool = False
    adaptive: bool = False
    one_step: bool = True
    standing: bool = False
    amplification: Callable[[NDArray, NDArray], NDArray] | None = None


METHODS = {
    "spectral_rk4": Kind(spectral=True, amplification=StepperRK4.amplification),
    "spectral_ab4": Kind(spectral=True, one_step=False, amplification=StepperAB4.amplification),
    "spectral_krylov": Kind(spectral=True, adaptive=True, standing=True),
    "spectral_adaptive": Kind(spectral=True, adaptive=True, one_step=False),
    "semi_lagrangian": Kind(),
    "characteristics": Kind(),
}
