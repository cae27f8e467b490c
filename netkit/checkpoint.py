"""One file per checkpoint: safetensors for the tensors, JSON for everything else, never pickle.

A checkpoint is a tree of dictionaries and lists whose leaves are tensors and JSON values. The tensors go into the
safetensors body; the tree, with each tensor replaced by its name, into the header, next to a SHA-256 of the whole file
(taken with zeros in the digest's place), so that a file in which any byte changed is refused. A file appears under its
name only once it is complete and on disk, so a kill at any moment leaves the previous one.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

FORMAT = 2
_HEADER = "itoflow"
_NO_DIGEST = "0" * 64
_TENSOR = "__tensor__"
_MOST_TRIES = 10


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and says why."""


def save(path: Path, tree: Mapping[str, Any], *, kind: str) -> None:
    """Write `tree` atomically to `path`, creating its folder; `kind` names its purpose.

    Keys must be strings; leaves tensors of any device or layout, or JSON values (floats round-trip exactly).
    Raises TypeError for anything else, and where two tensors would get one name ("a/b" beside "a" with "b" in it).
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _detach(tree, "", tensors)
    # One entry: safetensors writes several in an order that changes, and equal content should be equal bytes.
    header = json.dumps({"digest": _NO_DIGEST, "format": FORMAT, "kind": kind, "tree": skeleton})
    content = safetensors.torch.save(tensors, metadata={_HEADER: header})
    before, _, after = content.partition(_NO_DIGEST.encode())
    digest = _digest(before, after).encode()
    write_whole(path, (before, digest, after))


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file that takes the place of `path` when it is complete and on disk; creates its folder.

    Several processes may do so at once: the last one counts. Raises OSError, with the name, where the disk is full or
    the folder takes no files; what was there stays.
    """
    parts = tuple(parts)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):  # left by a process that was killed
            stale.unlink(missing_ok=True)
        for _ in range(_MOST_TRIES):
            with temporary.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(temporary, path)
            except FileNotFoundError:  # another process that writes there took it for left behind
                continue
            _sync_folder(path.parent)
            return
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{reason}; what was there stays, and the same call continues", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    raise FileExistsError(f"{path}: expected one process to write it, got others that do so all the time")


def load(path: Path, *, kind: str) -> dict[str, Any]:
    """Read back what `save` wrote; tensors arrive on the CPU.

    Raises FileNotFoundError, or CheckpointError where the file is not one of ours, written by another version of the
    format, differs in any byte from what was written, or is of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    digest, found_kind, skeleton = _read_header(path, content)
    before, found_digest, after = content.partition(digest.encode())
    if not found_digest or _digest(before, after) != digest:
        raise CheckpointError(f"{path} is truncated or damaged: its content does not match its digest")
    if found_kind != kind:
        raise CheckpointError(f"{path}: expected {kind!r}, got {found_kind!r}")
    with contents_of(path):  # a digest is no signature: the file may be made up
        tree: dict[str, Any] = _attach(skeleton, safetensors.torch.load(content))
    return tree


@contextlib.contextmanager
def contents_of(path: Path) -> Iterator[None]:
    """Inside the block the tree of `path`, whole but of any content, is used: where that fails, the file is at fault.

    Raises CheckpointError in place of what an absent key, a value of another type or weights of another shape raise.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} lacks a part that it should hold: {type(error).__name__}: {reason}") from error


def _digest(before: bytes, after: bytes) -> str:
    """SHA-256 of a file whose digest stands between `before` and `after`."""
    digest = hashlib.sha256(before)
    digest.update(_NO_DIGEST.encode())
    digest.update(after)
    return digest.hexdigest()


def _read_header(path: Path, content: bytes) -> tuple[str, Any, Any]:
    """Digest, kind and skeleton of the tree; of these only the digest is sure to be a string, of ASCII, 64 long."""
    size = int.from_bytes(content[:8], "little")
    try:
        # a size beyond the file, as damage makes it, takes all there is, which is then no JSON
        names = json.loads(content[8 : 8 + size])
        metadata = names.get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is truncated or not a safetensors file") from None
    try:
        header = json.loads(metadata[_HEADER])
        found, kind, skeleton = header["format"], header["kind"], header["tree"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of this package") from None
    if found != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, got {found}: it was written by another version")
    digest = header.get("digest")
    if not isinstance(digest, str) or len(digest) != len(_NO_DIGEST) or not digest.isascii():
        raise CheckpointError(f"{path} is damaged: it has no digest")
    return digest, kind, skeleton


def require(path: Path, what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming every entry of `expected` that `found`, from `path`, holds differently."""
    found, expected = (json.loads(json.dumps(dict(side))) for side in (found, expected))
    differing = [
        f"{key}={found.get(key)!r} where {expected.get(key)!r} is asked for"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]
    if differing:
        raise CheckpointError(f"{path} belongs to another {what}: {', '.join(differing)}")


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Sixteen hexadecimal digits of the tensors' shapes, types and bytes, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        # as bytes, since NumPy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _detach(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        if name in tensors:
            raise TypeError(f"tree: expected one tensor under each name, got two at {name!r}")
        # a private contiguous copy: safetensors refuses shared or permuted storage
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(node, Mapping):
        if bad := [key for key in node if not isinstance(key, str)]:
            raise TypeError(f"tree: expected keys that are strings, got {bad[0]!r} under {name!r}")
        if _TENSOR in node:
            raise TypeError(f"tree: expected keys other than {_TENSOR!r}, which marks a tensor, got it under {name!r}")
        return {key: _detach(value, f"{name}/{key}" if name else key, tensors) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_detach(value, f"{name}/{i}", tensors) for i, value in enumerate(node)]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"tree: expected tensors and JSON values, got {type(node).__name__} at {name!r}")


def _attach(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {_TENSOR}:
            return tensors[node[_TENSOR]]
        return {key: _attach(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_attach(value, tensors) for value in node]
    return node


def _sync_folder(folder: Path) -> None:
    # the rename itself must survive a power cut; some file systems do not let a folder be opened
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def optimizer_tree(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state as a tree: parameter numbers become string keys."""
    state = optimizer.state_dict()
    return {
        "state": {str(number): dict(entry) for number, entry in state["state"].items()},
        "param_groups": state["param_groups"],
    }


def load_optimizer_tree(optimizer: torch.optim.Optimizer, tree: Mapping[str, Any]) -> None:
    """Undo `optimizer_tree`."""
    state = {int(number): entry for number, entry in tree["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": tree["param_groups"]})
