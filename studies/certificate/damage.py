"""Damaged files: whether each reader refuses them in one line, or reads what they held."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from netkit import checkpoint, data
from pdekit.equation.storage import Checkpoint, CheckpointError, FileFrames
from studies.certificate.equations import Array
from studies.certificate.mutations import mutations
from studies.lab.promises import Measured, share
from studies.lab.reporting import InputError, read_objects

_SECONDS = 5  # after which a reader hangs
_OUTCOMES = {
    "r": "refused",
    "s": "read as they were",
    "m": "misread",
    "e": "another exception",
    "x": "ended the process",
}


class Reader(NamedTuple):
    """A file, how it is read, whether that is what it held, and the error that refuses it."""

    path: Path
    read: Callable[[], Any]
    same: Callable[[Any], bool]
    refuses: type[Exception]


def failures(n: int, seed: int, reader: str) -> Measured:
    """Of n damaged copies, how many are neither refused in one line nor read as what they held."""
    with tempfile.TemporaryDirectory() as folder:
        made = READERS[reader](Path(folder))
        content = made.path.read_bytes()
        if not made.same(made.read()):
            raise AssertionError(f"{reader}: expected to read the file as it was before it is damaged")
        found = _in_children(n, partial(_outcomes, made, content, seed))
    note = ", ".join(f"{found.count(letter):,} {said}" for letter, said in _OUTCOMES.items() if letter in found)
    return share([letter in "mex" for letter in found], note)


def _outcomes(reader: Reader, content: bytes, seed: int, first: int, n: int) -> Iterator[str]:
    for damaged in itertools.islice(mutations(content, n, seed=seed), first, None):
        reader.path.write_bytes(damaged)
        signal.alarm(_SECONDS)
        try:
            yield "s" if reader.same(reader.read()) else "m"
        except reader.refuses as error:
            yield "e" if "\n" in str(error) else "r"
        except Exception:
            yield "e"


def _in_children(n: int, outcomes: Callable[[int, int], Iterator[str]]) -> str:
    """Letters of all cases; a child that a case ends is followed by another one, from the next case on."""
    found = ""
    while len(found) < n:
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of damage, where they are closed
            try:
                for letter in outcomes(len(found), n):
                    os.write(send, letter.encode())
            finally:
                os._exit(0)
        os.close(send)
        with os.fdopen(receive) as letters:
            found += letters.read()
        os.waitpid(child, 0)
        found += "x" * (len(found) < n)
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return np.array_equal(a, b)


def _network_checkpoint(folder: Path) -> Reader:
    path, tree = folder / "network", {"identity": {"depth": 20}, "weights": [torch.rand(30, 4), torch.rand(3)]}
    checkpoint.save(path, tree, kind="test")
    return Reader(path, lambda: checkpoint.load(path, kind="test"), partial(_equal, tree), checkpoint.CheckpointError)


def _restart_file(folder: Path) -> Reader:
    path = folder / "c.npz"
    stored = Checkpoint(path, {"sigma": 0.1})
    arrays = {"u": np.random.default_rng(0).random((8, 8)), "frame_0": np.ones((2, 8))}
    stored.save(arrays, t=0.5)
    return Reader(path, stored.load, partial(_equal, (arrays, {"t": 0.5})), CheckpointError)


def _images(folder: Path) -> Reader:
    path, rng = folder / "c.npz", np.random.default_rng(0)
    np.savez(
        path,
        x_train=rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8),
        y_train=np.arange(10),
        x_test=rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8),
        y_test=np.arange(10),
    )
    read = partial(data.read_npz, path, 10)
    return Reader(path, read, partial(_equal, read()), data.DataError)


def _lines(folder: Path) -> Reader:
    """JSON carries no digest: an object a line is all that is promised."""
    path = folder / "scores.jsonl"
    path.write_text("".join(f'{{"job": "a{k}", "seed": {k}, "correct": "0123"}}\n' for k in range(8)))
    return Reader(
        path, partial(read_objects, path), lambda found: all(isinstance(each, dict) for each in found), InputError
    )


def _frames(folder: Path) -> Reader:
    shape, path = (16, 16), folder / "u.nc"
    values = np.random.default_rng(0).random((3, *shape))
    with FileFrames(path, 3, shape, 2) as frames:
        for number, value in enumerate(values):
            frames.put(number, value)
    stored = frames.arrays()

    def read() -> Array:
        again = FileFrames(path, 3, shape, 2)
        again.restore(stored)
        with again.finish({}, {}) as solution:
            return solution["u"].values

    return Reader(path.with_name(path.name + ".partial"), read, partial(_equal, values), CheckpointError)


READERS: dict[str, Callable[[Path], Reader]] = {
    "checkpoint of a network": _network_checkpoint,
    "restart file of a solve": _restart_file,
    "images in .npz": _images,
    "records in .jsonl": _lines,
    "frames of a solve": _frames,
}
