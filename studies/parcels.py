"""The state of a study in a few files that can be moved, and back: checkpoints and predictions, checked by SHA-256.

A parcel is a folder with numbered parts and `manifest.json`, which names every part and every file inside with its
size and digest. The manifest is written last and read first, so that half a parcel is never mistaken for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from reporting import InputError, write_json, write_whole

from netkit import checkpoint

MAX_BYTES = 15 * 2**20
"""Of one part."""

_FORMAT = 1
_MANIFEST = "manifest.json"
_FOLDERS = ("models", "evaluations")


def pack(out: Path, folder: Path, *, max_files: int | None = None, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Put checkpoints and predictions of the output folder `out` into parts in `folder`; returns what was left out.

    With `max_files` (manifest included) what does not fit is left out: first the oldest networks that are fully
    trained. Their predictions stay good, but a network that has to be trained again where they are unpacked need not
    come out bit for bit the same, and its predictions are then made again as well. A parcel that `folder` held before
    stays whole until the new one is.

    Raises InputError where there is nothing to pack, or not even one file fits.
    """
    files = sorted(_files(out), key=_priority)
    if not files:
        raise InputError(f"{out} holds no checkpoints or predictions")
    room = None if max_files is None else (max_files - 1) * max_bytes
    packed: dict[str, bytes] = {}
    left_out = []
    for path in files:
        content = path.read_bytes()  # at once: a running study replaces files whole
        if room is not None and sum(map(len, packed.values())) + len(content) > room:
            left_out.append(path)
        else:
            packed[path.relative_to(out).as_posix()] = content
    if not packed:
        raise InputError(f"not one file fits into {max_files} files of {max_bytes} bytes, the manifest included")
    folder.mkdir(parents=True, exist_ok=True)
    stream = b"".join(packed.values())
    parts = []
    for number, start in enumerate(range(0, len(stream), max_bytes)):
        part = stream[start : start + max_bytes]
        # the digest in the name keeps the parts of the last parcel apart
        name = f"part-{number:03}-{_digest(part)[:8]}.bin"
        write_whole(folder / name, part)
        parts.append(_Piece(name, len(part), _digest(part)))
    inside = [_Piece(name, len(content), _digest(content)) for name, content in packed.items()]
    pieces = {"parts": [asdict(part) for part in parts], "files": [asdict(file) for file in inside]}
    write_json(folder / _MANIFEST, {"format": _FORMAT} | pieces)
    for path in folder.glob("part-*.bin"):
        if path.name not in {part.name for part in parts}:
            path.unlink()
    return left_out


def unpack(folder: Path, out: Path, *, replace: bool = False) -> list[Path]:
    """Put the files of the parcel in `folder` into the output folder `out`, and return those that were not there.

    Nothing is written unless the whole parcel is right. Raises InputError for a missing or damaged manifest or part,
    and where `out` holds another version of a file, unless `replace` is set.
    """
    parts, inside = _manifest(folder)
    stream = b"".join(_checked(folder / part.name, part) for part in parts)
    contents: dict[Path, bytes] = {}
    position = 0
    for file in inside:
        name = PurePosixPath(file.name)
        if name.is_absolute() or ".." in name.parts or name.parts[0] not in _FOLDERS:
            raise InputError(f"{folder / _MANIFEST} names a file outside the output folder: {name}")
        content = stream[position : position + file.bytes]
        position += file.bytes
        if _digest(content) != file.sha256:
            raise InputError(f"{folder / _MANIFEST} is damaged: {name} is not what it should be")
        contents[out / name] = content
    new = [path for path, content in contents.items() if not path.exists() or path.read_bytes() != content]
    other = [path for path in new if path.exists()]
    if other and not replace:
        raise InputError(
            f"{other[0]} is there already and differs ({len(other)} such): it may be further on; "
            "--replace takes what is in the parcel"
        )
    for path in new:
        write_whole(path, contents[path])
    return new


def _files(out: Path) -> Iterator[Path]:
    for folder in _FOLDERS:
        yield from (path for path in (out / folder).glob("*") if path.suffix in (".safetensors", ".json"))


def _priority(path: Path) -> tuple[int, float, str]:
    """Predictions and notes first, then trainings under way, then finished ones, the newest first."""
    if path.parent.name != "models" or path.suffix == ".json":
        return 0, 0.0, path.name
    tree = checkpoint.load(path, kind="training")
    is_finished = tree["epoch"] >= tree["identity"]["configuration"]["epochs"]
    return (2, -path.stat().st_mtime, path.name) if is_finished else (1, 0.0, path.name)


@dataclass(frozen=True)
class _Piece:
    """A part of a parcel, or a file inside, as the manifest names it."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> _Piece:
        """Raises KeyError, TypeError or ValueError for anything that is no such entry."""
        return cls(str(entry["name"]), int(entry["bytes"]), str(entry["sha256"]))


def _manifest(folder: Path) -> tuple[list[_Piece], list[_Piece]]:
    """The parts of the parcel in `folder`, and the files inside."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} holds no {_MANIFEST}: expected a parcel made by pack")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != _FORMAT:
            raise InputError(f"{path} has format {manifest['format']}, expected {_FORMAT}")
        parts, files = ([_Piece.of(entry) for entry in manifest[name]] for name in ("parts", "files"))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged, or no manifest of a parcel") from None
    return parts, files


def _checked(path: Path, part: _Piece) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is missing")
    content = path.read_bytes()
    if len(content) != part.bytes or _digest(content) != part.sha256:
        raise InputError(f"{path} is damaged: {len(content)} of {part.bytes} bytes, and not those that were packed")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
