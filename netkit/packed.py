"""CIFAR in little more than half its size, bit for bit, in files small enough to be moved.

`python -m netkit.packed cifar10.npz FOLDER` writes them, `netkit.load("cifar10", data=FOLDER)` reads them.

A packed data set is a folder with `NAME-train-0.npz`, `NAME-train-1.npz`, ... and `NAME-test.npz`. Each holds `webp`
(lossless WebP images one after the other, uint8), `offsets` (num_images + 1 positions in it), `labels`, the names of
all `classes` and, if written here, `num_parts` and `num_images`: how many its half of the data set has.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np

from netkit.data import DataError, read_arrays, read_npz

MAX_BYTES = 55_000_000
"""Of one file, by default."""

_OVERHEAD = 20_000
"""Bytes for labels, headers and the names of classes, besides images and their offsets."""
_OFFICIAL = {"train": 50_000, "test": 10_000}
_KEYS = ("webp", "offsets", "labels", "classes")
_SCALARS = ("num_parts", "num_images")


def is_packed(folder: Path, name: str) -> bool:
    """Whether `folder` holds any file of the packed data set `name`."""
    return any(_parts(folder, name, split) for split in ("train", "test"))


def read(folder: Path, name: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays x_train, y_train, x_test and y_test of the data set `name` in `folder`, and the names of its classes.

    Images are uint8 (N, height, width, 3), labels integers (N,). Raises DataError for a missing or damaged file, and
    without Pillow.
    """
    arrays: dict[str, np.ndarray] = {}
    classes: list[str] = []
    for split in ("train", "test"):
        parts = _parts(folder, name, split)
        contents = [_read_part(path) for _, path in parts]
        _check_complete(folder, f"{name}-{split}", parts, contents, _OFFICIAL[split])
        images = [
            image for (_, path), content in zip(parts, contents, strict=True) for image in _decoded(path, content)
        ]
        if len({image.shape for image in images}) != 1:
            raise DataError(f"{folder}: the images of {name}-{split} differ in shape")
        arrays[f"x_{split}"] = np.stack(images)
        arrays[f"y_{split}"] = np.concatenate([content["labels"] for content in contents])
        classes = [str(label) for label in contents[0]["classes"]]
    return arrays, classes


def _read_part(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one file, once they are of the shapes and types that the rest relies on."""
    content = read_arrays(path, _KEYS, optional=_SCALARS)
    for key, array in content.items():
        if array.ndim != (key not in _SCALARS) or (key != "classes" and array.dtype.kind not in "iu"):
            raise DataError(f"{path} is no packed file: {key} is {array.dtype} of shape {array.shape}")
    offsets = content["offsets"].astype(np.int64)
    if (
        content["webp"].dtype != np.uint8
        or len(offsets) != len(content["labels"]) + 1
        or (offsets[0], offsets[-1]) != (0, len(content["webp"]))
        or (np.diff(offsets) < 0).any()
    ):
        raise DataError(f"{path} is damaged: its offsets do not fit its images and labels")
    return content


def write(source: Path, folder: Path, *, name: str | None = None, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Pack the .npz `source` into `folder`, in files of `max_bytes` at most, and return them.

    `name` is "cifar10" or "cifar100", by default what `source` is called. Raises DataError for another name, a source
    that is no such data set, a limit that leaves no room for images, and without Pillow.
    """
    if max_bytes < 2 * _OVERHEAD:
        raise DataError(f"max_bytes must be at least {2 * _OVERHEAD}, got {max_bytes}")
    name = source.stem if name is None else name
    if name not in ("cifar10", "cifar100"):
        raise DataError(f"expected a data set named cifar10 or cifar100, got {name!r}")
    arrays, classes = read_npz(source, 10 if name == "cifar10" else 100)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for split in ("train", "test"):
        labels, blobs = arrays[f"y_{split}"], _encoded(arrays[f"x_{split}"])
        num_parts = -(-(sum(map(len, blobs)) + 16 * len(blobs)) // (max_bytes - _OVERHEAD))
        cuts = np.linspace(0, len(blobs), num_parts + 1).astype(int)
        for number, (start, stop) in enumerate(pairwise(cuts.tolist())):
            suffix = "" if split == "test" and num_parts == 1 else f"-{number}"
            path = folder / f"{name}-{split}{suffix}.npz"
            np.savez(
                path,
                webp=np.frombuffer(b"".join(blobs[start:stop]), np.uint8),
                offsets=np.cumsum([0, *map(len, blobs[start:stop])]),
                labels=labels[start:stop].astype(np.uint8),
                classes=np.array(classes),
                num_parts=np.array(num_parts),
                num_images=np.array(len(blobs)),
            )
            written.append(path)
    return written


def _parts(folder: Path, name: str, split: str) -> list[tuple[int, Path]]:
    """The files of one half of the data set that lie in `folder`, in order, with their numbers."""
    matches = ((path, re.fullmatch(rf"{name}-{split}(?:-(\d+))?", path.stem)) for path in folder.glob("*.npz"))
    return sorted((int(match[1] or 0), path) for path, match in matches if match)


def _check_complete(
    folder: Path, half: str, parts: Sequence[tuple[int, Path]], contents: Sequence[dict[str, np.ndarray]], official: int
) -> None:
    if not parts:
        raise DataError(f"{folder} holds no {half} file beside other packed ones")
    numbers = [number for number, _ in parts]
    num_parts = int(contents[0].get("num_parts", max(numbers) + 1))
    for position, (number, path) in enumerate(parts):
        if number >= num_parts or number in numbers[:position]:
            expected = f"expected {num_parts} of {half}, numbered from 0"
            raise DataError(f"{path} is one file too many: {expected}; another packing may have left it")
    names = ", ".join(path.name for _, path in parts)
    if len(parts) < num_parts:
        raise DataError(f"{folder} holds {len(parts)} of {num_parts} files of {half}, in {names}: a part is missing")
    # without a number of images: written elsewhere, by someone who packed the official data sets, or before it was kept
    here = sum(len(content["offsets"]) - 1 for content in contents)
    expected_images = int(contents[0].get("num_images", here if "num_parts" in contents[0] else official))
    if here != expected_images:
        reason = "a part is missing" if here < expected_images else "they are not of one packing"
        raise DataError(f"{folder} holds {here} of {expected_images} images of {half}, in {names}: {reason}")


def _decoded(path: Path, content: dict[str, np.ndarray]) -> list[np.ndarray]:
    image_module = _pillow()
    blob, offsets = content["webp"].tobytes(), content["offsets"].tolist()

    def image(start: int, stop: int) -> np.ndarray:
        return np.asarray(image_module.open(io.BytesIO(blob[start:stop])).convert("RGB"))

    try:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(image, offsets, offsets[1:]))
    except Exception as error:  # Pillow raises nearly anything for what is no image
        raise DataError(f"{path} is damaged: {error}") from error


def _encoded(images: np.ndarray) -> list[bytes]:
    image_module = _pillow()
    if images.shape[3] != 3:
        raise DataError(f"expected images of 3 channels, got shape {images.shape}")

    def blob(image: np.ndarray) -> bytes:
        stream = io.BytesIO()
        image_module.fromarray(image).save(stream, "WEBP", lossless=True, quality=100, method=4)
        return stream.getvalue()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(blob, images))


def _pillow() -> ModuleType:
    try:
        from PIL import Image, features
    except ImportError:
        raise DataError("packed images need Pillow: pip install pillow") from None
    if not features.check("webp"):
        raise DataError("packed images need a Pillow with WebP, which this one lacks: pip install --upgrade pillow")
    return Image


def main(words: Sequence[str] | None = None) -> None:
    """The command line; raises SystemExit where it fails."""
    parser = argparse.ArgumentParser(prog="python -m netkit.packed", description=__doc__)
    parser.add_argument("source", type=Path, help="cifar10.npz or cifar100.npz")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--name", help="cifar10 or cifar100, where the file is called otherwise")
    parser.add_argument("--max-bytes", type=int, default=MAX_BYTES, help="of one file; default: %(default)s")
    options = parser.parse_args(words)
    try:
        for path in write(options.source, options.folder, name=options.name, max_bytes=options.max_bytes):
            sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
