"""Numbers and values from outside, as what they are meant to be, or a ValueError of one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_finite(name: str, value: object, expected: str) -> float:
    """A finite real number as a float; `expected` says in words what it should be."""
    if not _finite(value):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def check_real(name: str, value: object, expected: str, *, positive: bool = True) -> float:
    """A finite real number, > 0 or >= 0, as a float; `expected` says in words what it should be."""
    number = check_finite(name, value, expected)
    if number < 0 or (positive and number == 0):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def check_fraction(name: str, value: object) -> float:
    """A real number between 0 and 1, neither included, as a float."""
    number = check_real(name, value, "a number between 0 and 1")
    if number >= 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
    return number


def check_whole(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`, as an int; 16.0 is one, True is not."""
    if not _finite(value) or value != int(value) or value < least:  # type: ignore[call-overload,operator]
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)  # type: ignore[call-overload]


def check_flag(name: str, value: object) -> bool:
    """True or False, as a bool; 1 is neither."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless it is one of the names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _finite(value: object) -> bool:
    """Whether it is a finite real number; True and False are none."""
    real = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    return real and abs(value) < math.inf  # type: ignore[arg-type]


def present(name: str, values: ArrayLike) -> NDArray:
    """Values as an array; those with a mask are refused, never taken for what lies under it."""
    if isinstance(values, np.ma.MaskedArray) and (missing := int(np.ma.count_masked(values))):
        raise ValueError(
            f"{name}: expected a value everywhere, got {missing} masked of {values.size}; fill them, as with "
            "values.filled(0.0)"
        )
    return np.asarray(values)


def real_values(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Values as a new float64 array; complex ones are refused, never cut to their real part."""
    found = present(name, values)
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers, got dtype {found.dtype}")
    return np.array(found, dtype=np.float64)
