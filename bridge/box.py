"""From R^d to pdekit's periodic unit box and back, and a bound on the effect of the boundary.

x in [-outer, outer]^d goes to z = (x + outer) / (2 outer) in [0, 1]^d. Lengths shrink by 2·outer, and with them
velocity and noise: F_z = F / (2 outer), σ_z = σ / (2 outer). u keeps its values.

F is multiplied by a smooth cut-off χ, 1 on [-inner, inner]^d and 0 outside the box; f keeps its values on
[-inner, inner]^d and runs smoothly into a constant outside. A path that never leaves [-inner, inner]^d sees no
difference, so |u_box - u| <= max f - min f times the probability of leaving, which `escape_probability` bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", NDArray[np.float64], Tensor)


@dataclass(frozen=True)
class Box:
    """[-outer, outer]^d, with everything of interest within [-inner, inner]^d.

    Raises ValueError unless 0 < inner < outer.
    """

    inner: float
    outer: float

    def __post_init__(self) -> None:
        if not 0 < self.inner < self.outer < math.inf:
            raise ValueError(f"box: expected 0 < inner < outer, got {self.inner} and {self.outer}")

    @property
    def width(self) -> float:
        return 2.0 * self.outer

    def to_unit(self, x: Array) -> Array:
        """z = (x + outer) / (2 outer), any shape; points outside the box stay outside the unit box."""
        return (x + self.outer) / self.width

    def from_unit(self, z: Array) -> Array:
        """x = 2 outer z - outer."""
        return self.width * z - self.outer

    def wrapped(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """x of the periodic image of z within the box."""
        return self.from_unit(z - np.floor(z))

    def cutoff(self, x: Tensor) -> Tensor:
        """χ at points (..., d), as (..., 1): a product of smoothsteps with three continuous derivatives."""
        s = ((self.outer - x.abs()) / (self.outer - self.inner)).clamp(0.0, 1.0)
        step = (s * s).square() * (35.0 + s * (-84.0 + s * (70.0 - 20.0 * s)))
        return step.prod(-1, keepdim=True)

    def holds(self, x: Tensor) -> bool:
        """Whether all points lie in [-inner, inner]^d, where χ = 1 and need not be evaluated."""
        return bool(x.detach().abs().max() <= self.inner)

    def escape_probability(self, points: NDArray[np.float64], *, speed: float, sigma: float) -> NDArray[np.float64]:
        """A bound (P,) on the probability that a path from a point (P, d) leaves [-inner, inner]^d within unit time.

        speed: a bound on each |F_i|. Each coordinate moves by at most speed + max |σB_i|, and by the reflection
        principle P(max |B_i| > r) <= 4 P(N > r); the bound adds over the coordinates.
        """
        reach = self.inner - np.abs(np.asarray(points, dtype=np.float64)) - speed
        if sigma == 0:
            return (reach < 0).any(axis=-1).astype(float)
        return np.minimum(1.0, 4.0 * scipy.special.ndtr(-reach / sigma).sum(axis=-1))
