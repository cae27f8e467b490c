"""Damage as disks, transfers and editors do it, for the tests of everything that reads a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def mutations(content: bytes, count: int, *, seed: int) -> Iterator[bytes]:
    """`count` damaged copies of `content`, each of which differs from it."""
    rng = np.random.default_rng(seed)
    kinds = (_flipped, _overwritten, _truncated, _inserted, _deleted, _swapped, _zeroed, _repeated)
    made = 0
    while made < count:
        damaged = kinds[rng.integers(len(kinds))](content, rng)
        if damaged != content:
            made += 1
            yield damaged


def survivors(
    path: Path, count: int, *, seed: int, read: Callable[[], Any], refuses: type[Exception]
) -> Iterator[tuple[bytes, Any]]:
    """What `read()` returns of damaged copies of the file `path`, where it raises no `refuses` of one line."""
    content = path.read_bytes()
    try:
        for damaged in mutations(content, count, seed=seed):
            path.write_bytes(damaged)
            message = ""
            try:
                yield damaged, read()
            except refuses as error:
                message = str(error)
            assert "\n" not in message
    finally:
        path.write_bytes(content)


def _block(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """A start and a stop, of lengths from one byte to a quarter, short ones as often as long ones."""
    length = int(2 ** rng.uniform(0, np.log2(max(2, len(content) // 4))))
    start = int(rng.integers(len(content) - length + 1))
    return start, start + length


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 4)):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _overwritten(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(content, rng)
    return content[:start] + rng.bytes(stop - start) + content[stop:]


def _truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def _inserted(content: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(content) + 1))
    return content[:place] + rng.bytes(int(rng.integers(1, 50))) + content[place:]


def _deleted(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(content, rng)
    return content[:start] + content[stop:]


def _swapped(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(content, rng)
    length = stop - start
    other = int(rng.integers(len(content) - length + 1))
    start, other = sorted((start, other))
    if start + length > other:
        return content
    between = content[start + length : other]
    return (
        content[:start]
        + content[other : other + length]
        + between
        + content[start : start + length]
        + content[other + length :]
    )


def _zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def _repeated(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(content, rng)
    return content[:stop] + content[start:]
