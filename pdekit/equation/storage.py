"""Frames and restart points of a long solve. Files are complete or absent, never half-written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import reprlib
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pdekit.field import digest
from pdekit.numerics.spectral import resample
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.files import write_whole

if TYPE_CHECKING:
    import xarray as xr

fcntl: Any
try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

_KEY_BYTES = 16


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
        write_whole(self.path, lambda file: np.savez(file, **content))

    def load(self) -> tuple[dict[str, NDArray], dict[str, float]] | None:
        """Arrays and numbers, or None where there is no file.

        Raises `CheckpointError` for a file that cannot be read or was made for something else.
        """
        if not self.path.exists():
            return None
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                if any(member.compress_type != zipfile.ZIP_STORED for member in stored.zip.infolist()):
                    raise ValueError("compressed, which save() never does: it could be of any size")
                if (damaged := stored.zip.testzip()) is not None:  # an array is not always read to its checksum
                    raise ValueError(f"{damaged} differs from its checksum")
                meta = json.loads(str(stored["meta"]))
                arrays = {name: stored[name] for name in stored.files if name != "meta"}
                if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # a length 0 has checksum 0
                    raise ValueError("a member that is no array")
                if sorted(arrays) != meta["arrays"]:
                    raise ValueError(f"{sorted(arrays)} where {meta['arrays']} were stored")
                found, numbers = dict(meta["description"]), dict(meta["numbers"])
                if not all(np.isfinite([*numbers.values()])) or not all(np.isfinite(a).all() for a in arrays.values()):
                    raise ValueError("values that are not finite, which save() never writes")
                differing = [k for k, expected in self._description.items() if not _same(found.get(k), expected)]
        except Exception as error:
            raise CheckpointError(
                f"{self.path}: expected a checkpoint of solve(), got a file that does not read"
            ) from error
        for key in differing:
            was, now = (reprlib.repr(value) for value in (found.get(key), self._description[key]))
            raise CheckpointError(f"{self.path}: made for {key} = {was}, not {now}")
        return arrays, numbers

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside the block what `load` gave, whole but of any content, is used: where that fails, the file is at fault.

        Raises `CheckpointError` in place of what an absent array, or one of another shape or type, raises.
        """
        try:
            yield
        except CheckpointError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{self.path}: expected the parts of a checkpoint of solve(), got {type(error).__name__}: {reason}"
            ) from error

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class MemoryFrames:
    """Frames kept in memory, indexed by their place in time."""

    def __init__(self, count: int) -> None:
        self._frames: dict[int, NDArray] = {}
        self._count = count

    def __enter__(self) -> MemoryFrames:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put(self, index: int, field: NDArray) -> None:
        self._frames[index] = field

    def grid(self, dim: int) -> tuple[int, ...]:
        """Nodes of the finest frame."""
        return max(field.shape[:dim] for field in self._frames.values())

    def arrays(self) -> dict[str, NDArray]:
        return {f"frame_{i}": field for i, field in self._frames.items()}

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        self._frames = {int(k.removeprefix("frame_")): v for k, v in arrays.items() if k.startswith("frame_")}

    def indices(self) -> set[int]:
        """Which there are."""
        return {*self._frames}

    def finish(self, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
        grid = tuple(len(coords[axis][1]) for axis in coords if axis in "xyz")
        axes = tuple(range(len(grid)))
        field = np.stack([resample(self._frames[i], grid, axes=axes) for i in range(self._count)])
        return dataset(field, coords, attrs)


class _Unfailing(io.FileIO):
    """A file for HDF5, which crashes where a write fails: what the disk says is kept for `check`, which raises it."""

    _error: OSError | None = None

    def write(self, content: Any) -> int:
        waiting = memoryview(content).cast("B")
        with self._kept():
            while waiting:
                waiting = waiting[super().write(waiting) :]
        return len(memoryview(content).cast("B"))

    def truncate(self, size: int | None = None) -> int:
        with self._kept():
            super().truncate(size)
        return self.tell() if size is None else size

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


class FileFrames:
    """Frames written to disk as they come, and from there to a NetCDF file, which appears when it is complete.

    On the way they lie in a file beside it, NAME.partial: a key drawn for this solve, then each frame at a place of
    its own, behind a digest of its values under that key. Whatever a kill leaves of the frame being written, the others
    are whole. Frames of another solve, or of a damaged file, differ from their digests.

    As a context it lets go of the file at the end; meanwhile no other process can write frames there.
    """

    def __init__(self, path: str | os.PathLike[str], count: int, shape: tuple[int, ...], dim: int) -> None:
        self._names = ("time", *("x", "y", "z")[:dim], *("field",) * (len(shape) - dim))
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._shape = (count, *shape)
        self._key = b""
        self._written: set[int] = set()
        self._file: Any = None

    def __enter__(self) -> FileFrames:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def grid(self, dim: int) -> tuple[int, ...]:
        """Nodes of each frame."""
        return self._shape[1 : 1 + dim]

    def put(self, index: int, field: NDArray) -> None:
        content = np.ascontiguousarray(field, dtype=np.float64).tobytes()
        try:
            if not self._key:
                self._start()
            self._open().seek(self._place(index))
            self._file.write(self._digest(content) + content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self._partial)) from error
        self._written.add(index)

    def arrays(self) -> dict[str, NDArray]:
        """What a restart file holds of them: whose they are, and which are on disk."""
        key = np.frombuffer(self._key, dtype=np.uint8)
        return {"frames_key": key, "frames_shape": np.array(self._shape), "frames_on_disk": np.array([*self._written])}

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        if not self._partial.exists():
            raise CheckpointError(f"{self._partial}: expected the frames written before the interruption, got no file")
        if "frames_key" not in arrays:
            raise CheckpointError(
                f"{self._partial}: expected frames of this version, got a restart file of an older one"
            )
        found = tuple(int(n) for n in arrays["frames_shape"])
        if found != self._shape:
            raise CheckpointError(f"{self._partial}: expected frames of shape {self._shape}, got {found}")
        self._key = arrays["frames_key"].tobytes()
        self._written = {int(index) for index in arrays["frames_on_disk"]}
        for index in self._written:
            self._read(index)

    def indices(self) -> set[int]:
        """Which are on disk."""
        return {*self._written}

    def finish(self, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Raises OSError where the file cannot be written; its frames stay, for a call that continues."""
        import xarray as xr  # with pandas half of the package's import

        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with self:
                with _Unfailing(temporary, "w+") as file:
                    self._write_netcdf(file, coords, attrs)
                    file.check()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
        except OSError as error:
            reason = f"{error.strerror or error}; its frames stay in {self._partial}"
            raise OSError(error.errno, reason, str(self.path)) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._partial.unlink()
        return xr.open_dataset(self.path, engine="h5netcdf")

    def _write_netcdf(self, target: _Unfailing, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
        import h5netcdf

        with h5netcdf.File(target, "w") as file:
            file.dimensions = dict(zip(self._names, self._shape, strict=True))
            chunks = (1, *self._shape[1:])
            u = file.create_variable("u", self._names, dtype="f8", chunks=chunks, fillvalue=np.nan, fletcher32=True)
            for index in range(self._shape[0]):
                u[index] = self._read(index)
                target.check()
            u.attrs["long_name"] = "solution"
            for name, (dims, values, described) in coords.items():
                variable = file.create_variable(name, (dims,), data=np.asarray(values))
                for key, text in described.items():
                    variable.attrs[key] = text
            for key, value in attrs.items():
                file.attrs[key] = value

    def _start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial.touch()
        file = self._open()
        self._key = secrets.token_bytes(_KEY_BYTES)
        file.truncate(0)
        file.write(self._key)

    def _open(self) -> Any:
        """The file, held against others where the system can."""
        if self._file is None:
            self._file = open(self._partial, "r+b")  # noqa: SIM115 - closed by __exit__
            if fcntl is not None:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.__exit__()
                    raise BlockingIOError(
                        f"{self.path}: expected no other solve to write its frames there, got one that does; wait for "
                        "it, or choose another frames_to"
                    ) from None
        return self._file

    def _place(self, index: int) -> int:
        return _KEY_BYTES + index * (_KEY_BYTES + 8 * math.prod(self._shape[1:]))

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=_KEY_BYTES, key=self._key).digest()

    def _read(self, index: int) -> NDArray[np.float64]:
        file = self._open()
        file.seek(self._place(index))
        found = file.read(self._place(1) - self._place(0))
        if self._digest(found[_KEY_BYTES:]) != found[:_KEY_BYTES]:
            raise CheckpointError(
                f"{self._partial}: expected the frames of this solve so far, got others or a damaged file; remove the "
                "restart file to begin anew"
            )
        return np.frombuffer(found[_KEY_BYTES:]).reshape(self._shape[1:])


def dataset(field: NDArray, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
    import xarray as xr  # with pandas half of the package's import

    dims = [*coords, "field"][: field.ndim]
    return xr.Dataset({"u": (dims, field, {"long_name": "solution"})}, coords=dict(coords), attrs=dict(attrs))
