"""Frames and restart points of a long solve. Files are complete or absent, never half-written."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pdekit.field import digest
from pdekit.numerics.spectral import resample
from pdekit.problem import ConvectionDiffusion


class CheckpointError(ValueError):
    """A restart file that is damaged, or belongs to another problem or method."""


def fingerprint(problem: ConvectionDiffusion) -> dict[str, Any]:
    """Identify a problem of the unit box: node values by their hash, functions by values at fixed irregular points."""

    rng = np.random.default_rng(0)
    points = rng.random((128, problem.dim))
    times = problem.horizon * rng.random(4)
    further = {"potential": problem.potential, "source": problem.source}
    terminal: Any
    if callable(problem.terminal):
        terminal = problem.evaluate_terminal(points).tolist()
    else:
        terminal = f"nodes {digest(np.asarray(problem.terminal))}"
    return {
        "sigma": problem.noise.identity(points, times),
        "horizon": problem.horizon,
        "dim": problem.dim,
        "velocity": problem.velocity.identity(points, times),
        "terminal": terminal,
        **{name: field and field.identity(points, times) for name, field in further.items()},
    }


def _same(found: Any, expected: Any) -> bool:
    """Whether two descriptions agree; numbers up to what another order of summation may change."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[k], expected[k]) for k in found)
    if isinstance(found, list) and isinstance(expected, list):
        a, b = np.array(found, dtype=float), np.array(expected, dtype=float)
        return a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-6 * float(np.abs(b).max(initial=0.0)))
    return bool(found == expected)


def _replace(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Checkpoint:
    """A restart file (.npz): arrays, and a description that has to match on loading."""

    def __init__(self, path: str | os.PathLike[str], description: Mapping[str, Any]) -> None:
        self.path, self._description = Path(path), dict(description)

    def save(self, arrays: Mapping[str, NDArray], **numbers: float) -> None:
        """Raises ValueError, and keeps the file that is there, if any array is not finite."""
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"checkpoint: expected finite values, got some that are not in {name!r}")
        meta = json.dumps({"description": self._description, "numbers": numbers, "arrays": sorted(arrays)})
        content: dict[str, Any] = {"meta": np.array(meta), **arrays}
        _replace(self.path, lambda file: np.savez(file, **content))

    def load(self) -> tuple[dict[str, NDArray], dict[str, float]] | None:
        """Arrays and numbers, or None where there is no file.

        Raises `CheckpointError` for a file that cannot be read or was made for something else.
        """
        if not self.path.exists():
            return None
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                if (damaged := stored.zip.testzip()) is not None:  # an array is not always read to its checksum
                    raise ValueError(f"{damaged} differs from its checksum")
                meta = json.loads(str(stored["meta"]))
                arrays = {name: stored[name] for name in stored.files if name != "meta"}
                if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # a length 0 has checksum 0
                    raise ValueError("a member that is no array")
                if sorted(arrays) != meta["arrays"]:
                    raise ValueError(f"{sorted(arrays)} where {meta['arrays']} were stored")
                found, numbers = dict(meta["description"]), dict(meta["numbers"])
        except Exception as error:
            raise CheckpointError(
                f"{self.path}: expected a checkpoint of solve(), got a file that does not read"
            ) from error
        for key, expected in self._description.items():
            if not _same(found.get(key), expected):
                was, now = (reprlib.repr(value) for value in (found.get(key), expected))
                raise CheckpointError(f"{self.path}: made for {key} = {was}, not {now}")
        return arrays, numbers

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class MemoryFrames:
    """Frames kept in memory, indexed by their place in time."""

    def __init__(self, count: int) -> None:
        self._frames: dict[int, NDArray] = {}
        self._count = count

    def put(self, index: int, field: NDArray) -> None:
        self._frames[index] = field

    def grid(self, dim: int) -> tuple[int, ...]:
        """Nodes of the finest frame."""
        return max(field.shape[:dim] for field in self._frames.values())

    def arrays(self) -> dict[str, NDArray]:
        return {f"frame_{i}": field for i, field in self._frames.items()}

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        self._frames = {int(k.removeprefix("frame_")): v for k, v in arrays.items() if k.startswith("frame_")}

    def finish(self, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
        grid = tuple(len(coords[axis][1]) for axis in coords if axis in "xyz")
        axes = tuple(range(len(grid)))
        field = np.stack([resample(self._frames[i], grid, axes=axes) for i in range(self._count)])
        return dataset(field, coords, attrs)


class FileFrames:
    """Frames written to a NetCDF file as they come; the file takes its name when it is complete."""

    def __init__(self, path: str | os.PathLike[str], count: int, shape: tuple[int, ...], dim: int) -> None:
        self._names = ("time", *("x", "y", "z")[:dim], *("field",) * (len(shape) - dim))
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._shape = (count, *shape)
        self._started = False

    def grid(self, dim: int) -> tuple[int, ...]:
        """Nodes of each frame."""
        return self._shape[1 : 1 + dim]

    def _open(self) -> Any:
        import h5netcdf

        return h5netcdf.File(self._partial, "a")

    def _start(self) -> None:
        import h5netcdf

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with h5netcdf.File(self._partial, "w") as file:
            names = self._names
            file.dimensions = dict(zip(names, self._shape, strict=True))
            file.create_variable(
                "u", names, dtype="f8", chunks=(1, *self._shape[1:]), fillvalue=np.nan, fletcher32=True
            )
        self._started = True

    def put(self, index: int, field: NDArray) -> None:
        if not self._started:
            self._start()
        with self._open() as file:
            file["u"][index] = field

    def arrays(self) -> dict[str, NDArray]:
        return {}

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        import h5netcdf

        if not self._partial.exists():
            raise CheckpointError(f"{self._partial}: expected the frames written before the interruption, got no file")
        try:
            with h5netcdf.File(self._partial, "r") as file:
                found = tuple(file["u"].shape)
                for frame in range(len(file["u"])):
                    file["u"][frame]  # which compares its checksum
        except Exception as error:
            raise CheckpointError(
                f"{self._partial}: expected the frames so far, got a file that does not read"
            ) from error
        if found != self._shape:
            raise CheckpointError(f"{self._partial}: expected frames of shape {self._shape}, got {found}")
        self._started = True

    def finish(self, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
        with self._open() as file:
            for name, (dims, values, described) in coords.items():
                variable = file.create_variable(name, (dims,), data=np.asarray(values))
                for key, text in described.items():
                    variable.attrs[key] = text
            file["u"].attrs["long_name"] = "solution"
            for key, value in attrs.items():
                file.attrs[key] = value
        os.replace(self._partial, self.path)
        return xr.open_dataset(self.path, engine="h5netcdf")


def dataset(field: NDArray, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
    dims = [*coords, "field"][: field.ndim]
    return xr.Dataset({"u": (dims, field, {"long_name": "solution"})}, coords=dict(coords), attrs=dict(attrs))
