"""Numbers and tensors from outside, as what they are meant to be, or an error of one line."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn


def check_tensors(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise TypeError(f"{name}: expected a torch.Tensor, got {got}; torch.as_tensor makes one of an array")


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """`model(x)`. Raises ValueError where it fails on images of another type than its weights have."""
    try:
        return model(x)
    except RuntimeError as error:
        weights = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
        if len(weights) != 1 or x.dtype in weights:
            raise
        (dtype,) = weights
        raise ValueError(f"x: expected images of the weights' {dtype}, got {x.dtype}; x.to({dtype})") from error


def check_flags(**flags: object) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{name}: expected True or False, got {flag!r}")


def check_whole(**counts: object) -> None:
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool):
            raise ValueError(f"{name}: expected a whole number, got {count!r}")


def check_counts(least: int = 1, /, **counts: int) -> None:
    """Whole numbers of at least `least`."""
    check_whole(**counts)
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"{name}: expected at least {least}, got {count}")


def is_real(value: object) -> bool:
    """Whether it is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain(number: Any) -> int | float:
    """The same as a number of Python's own, which JSON stores, and torch takes for one of no particular precision."""
    if type(number) in (int, float):
        return number
    return int(number) if isinstance(number, Integral) else float(number)


def check_seed(seed: int) -> int:
    """A seed that torch and NumPy take, as an int."""
    check_counts(0, seed=seed)
    if seed >= 2**64:
        raise ValueError(f"seed: expected a whole number below 2**64, got {seed}")
    return int(seed)


def check_sizes(**numbers: float) -> None:
    """Finite real numbers of at least 0."""
    for name, number in numbers.items():
        if not is_real(number) or not 0 <= number < math.inf:
            raise ValueError(f"{name}: expected a finite number >= 0, got {number!r}")


def check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not is_real(number) or not 0 < number < math.inf:
            raise ValueError(f"{name}: expected a finite number > 0, got {number!r}")
