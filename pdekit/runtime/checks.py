"""Numbers and values from outside, as what they are meant to be, or a ValueError of one line."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_real(name: str, value: object, expected: str, *, positive: bool = True) -> float:
    """A finite real number, > 0 or >= 0, as a float; `expected` says in words what it should be."""
    real = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not real or not math.isfinite(value) or value < 0 or (positive and value == 0):  # type: ignore[arg-type,operator]
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def check_whole(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`, as an int; 16.0 is one, True is not."""
    real = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not real or not math.isfinite(value) or value != int(value) or value < least:  # type: ignore[arg-type,operator,call-overload]
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)  # type: ignore[call-overload]


def real_values(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Values as a new float64 array; complex ones are refused, never cut to their real part."""
    found = np.asarray(values)
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers, got dtype {found.dtype}")
    return np.array(found, dtype=np.float64)
