"""Image data sets that live on the device as uint8: no loader, no worker, one cast a batch.

`netkit.dataset` makes them of one's own images.
`load` returns a `Dataset` whose splits never change: the validation part is cut from the training part with a
fixed seed (45K/5K for CIFAR, section 4.1 of the paper), so that two runs always select on the same images.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from netkit.checkpoint import fingerprint

NAMES = ("digits", "cifar10", "cifar100")

_SPLIT_SEED = 0
_VALIDATION_SHARE = 0.1
_DIGITS_TEST_SHARE = 0.3
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_HARMLESS_BYTES = 2**30
_MOST_COMPRESSION = 64


class DataError(ValueError):
    """A data set that cannot be used; the message is one line and says what was expected."""


@dataclass(frozen=True)
class Split:
    """Images `x` (N, C, H, W), uint8 or float32 in [0, 1], and labels `y` (N,) int64, on one device."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def first(self, count: int | None) -> Split:
        """The first `count` images (all of them where `count` is None)."""
        return self if count is None else Split(self.x[:count], self.y[:count])


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test images, and how to feed them to a network.

    `max_value` is the integer that stands for white (255, 16 for the digits, or 1 for floating-point images);
    `augmented` says whether random crops and flips leave the label alone.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    max_value: int
    augmented: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        return self.train.x.device

    def images(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Stored images (..., C, H, W) as floating point in [0, 1]."""
        return x.to(dtype) / self.max_value

    def fingerprint(self, *parts: str) -> str:
        """Sixteen hexadecimal digits that change with any pixel or label of `parts`, by default all."""
        splits = [getattr(self, part) for part in parts or ("train", "val", "test")]
        return fingerprint([tensor for split in splits for tensor in (split.x, split.y)])


def load(
    name: str,
    *,
    data: str | Path | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    num_train: int | None = None,
    num_test: int | None = None,
) -> Dataset:
    """Load a data set onto `device`.

    name: "digits", scikit-learn's embedded set (1,797 images, 1x8x8), split by class into 60% training, 10% validation
        and 30% test; "cifar10" or "cifar100", from `data`.
    data: a .npz with x_train, y_train, x_test, y_test (uint8, NHWC), or a folder with torchvision's official files, by
        default ~/.cache/itoflow.
    download: fetch torchvision's files into that folder where they are missing.
    num_train: keep the first so many training images, of which one in ten becomes validation.
    num_test: keep the first so many test images.

    Raises DataError for an unknown name, a file without the keys, wrong shapes, types, values or labels;
    FileNotFoundError for a missing file or folder.
    """
    for option, count in (("num_train", num_train), ("num_test", num_test)):
        if count is not None and not isinstance(count, int):
            raise DataError(f"{option}: expected a whole number, got {count!r}")
        if count is not None and count < 1:
            raise DataError(f"{option}: expected at least 1, got {count}")

    if name == "digits":
        if data is not None:
            raise DataError(f"data: expected none for the digits, which are embedded in scikit-learn, got {data}")
        return _digits(torch.device(device), num_train, num_test)
    if name not in NAMES:
        raise DataError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    source = _cache() if data is None else Path(data)
    num_classes = 10 if name == "cifar10" else 100
    if source.suffix == ".npz":
        arrays, classes = read_npz(source, num_classes)
    else:
        arrays, classes = _read_torchvision(name, source, download)
    return _cifar(name, arrays, classes, torch.device(device), num_train, num_test)


def _cache() -> Path:
    try:
        return Path.home() / ".cache" / "itoflow"
    except RuntimeError as error:
        raise DataError(f"data: expected a file or folder of images, as there is no default: {error}") from error


def augment(x: Tensor, *, padding: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Random crop after zero padding and random horizontal flip, each image its own; any dtype.

    x: (B, C, H, W) -> (B, C, H, W). The draws happen on the generator's device, by default on x's.
    """
    batch, channels, height, width = x.shape
    source = generator.device if generator is not None else x.device
    offsets = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator, device=source)
    flip = torch.randint(0, 2, (batch, 1), generator=generator, device=source).bool().to(x.device)
    top, left = offsets.to(x.device)
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    columns = torch.where(flip, columns.flip(1), columns)
    padded = functional.pad(x, [padding] * 4)
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _digits(device: torch.device, num_train: int | None, num_test: int | None) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8)[:, None], bunch.target.astype(np.int64)
    rng = np.random.default_rng(_SPLIT_SEED)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for label in range(10):
        members = rng.permutation(np.flatnonzero(y == label))
        test, val = (round(share * len(members)) for share in (_DIGITS_TEST_SHARE, _VALIDATION_SHARE))
        parts["test"].append(members[:test])
        parts["val"].append(members[test : test + val])
        parts["train"].append(members[test + val :])
    # shuffled once more, so that the first N of a split hold every class
    order = {part: rng.permutation(np.concatenate(indices)) for part, indices in parts.items()}
    if num_train is not None:
        num_val = _num_validation(num_train)
        order["train"], order["val"] = order["train"][: num_train - num_val], order["val"][:num_val]
    order["test"] = order["test"][:num_test]
    splits = {part: _split(x[index], y[index], device) for part, index in order.items()}
    return Dataset("digits", **splits, classes=tuple("0123456789"), max_value=16, augmented=False)


def _cifar(
    name: str,
    arrays: Mapping[str, np.ndarray],
    classes: tuple[str, ...],
    device: torch.device,
    num_train: int | None,
    num_test: int | None,
) -> Dataset:
    x, y = arrays["x_train"][:num_train], arrays["y_train"][:num_train]
    if len(y) < 2:
        raise DataError(f"data: expected at least 2 training images, one of them for validation, got {len(y)}")
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
    val, train = np.split(order, [_num_validation(len(y))])
    x = x.transpose(0, 3, 1, 2)
    x_test, y_test = arrays["x_test"][:num_test].transpose(0, 3, 1, 2), arrays["y_test"][:num_test]
    return Dataset(
        name,
        train=_split(x[train], y[train], device),
        val=_split(x[val], y[val], device),
        test=_split(x_test, y_test, device),
        classes=classes,
        max_value=255,
        augmented=True,
    )


def _num_validation(num_images: int) -> int:
    return max(1, round(_VALIDATION_SHARE * num_images))


def _split(x: np.ndarray, y: np.ndarray, device: torch.device) -> Split:
    # Flattened once: a view with one channel may keep strides that torch takes for channels_last.
    images = torch.from_numpy(np.ascontiguousarray(x).reshape(-1)).view(x.shape).to(device)
    return Split(images, torch.from_numpy(np.ascontiguousarray(y)).to(device))


def read_npz(path: Path, num_classes: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays x_train, y_train, x_test and y_test of a data set, and the names of its classes; errors as `load`."""
    arrays = read_arrays(path, _NPZ_KEYS, optional=("classes",))
    classes = arrays.pop("classes", np.empty(0))
    # compared first: zeros of 1 MB may unpack to a name for each byte, and names of no bytes cost no file anything
    names = [str(label) for label in classes.ravel()] if classes.size == num_classes else []
    return _checked(path, arrays, names, num_classes)


def read_arrays(path: Path, keys: Sequence[str], *, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by their names; `optional` ones may be absent.

    Raises FileNotFoundError; DataError for a file that is damaged, holds anything but plain arrays, or lacks a key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    contents: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != (declared := _declared_members(path, archive)):
                raise zipfile.BadZipFile(f"it names {len(names)} of {declared} members")
            size, most = sum(member.file_size for member in archive.infolist()), _most_bytes(path)
            if size > most:
                raise zipfile.BadZipFile(
                    f"its arrays would take {size:.3g} bytes, a file of its size at most {most:.3g}"
                )
            # All of them to their end: only then have checksums been compared, and the two places of each name.
            for name in names:
                content = archive.read(name)
                if (key := name.removesuffix(".npy")) in (*keys, *optional):
                    contents[key] = content
    except Exception as error:  # a damaged archive makes zipfile raise nearly anything
        raise DataError(f"{path} is not a readable .npz file: {_one_line(error)}") from error
    missing = [key for key in keys if key not in contents]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: expected {', '.join(keys)}")
    try:
        return {key: np.lib.format.read_array(io.BytesIO(content)) for key, content in contents.items()}
    except Exception as error:  # as here of numpy
        raise DataError(f"{path} holds something other than plain arrays: {_one_line(error)}") from error


def _most_bytes(path: Path) -> int:
    """What a compressed file may hold: images shrink to a half, made-up zeros to a thousandth."""
    return max(_HARMLESS_BYTES, _MOST_COMPRESSION * path.stat().st_size)


def _declared_members(path: Path, archive: zipfile.ZipFile) -> int:
    """The number of members by the end record (22 bytes and a comment), which zipfile does not compare."""
    with path.open("rb") as file:
        file.seek(-22 - len(archive.comment), os.SEEK_END)
        return int.from_bytes(file.read(12)[10:], "little")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _checked(
    path: Path, arrays: dict[str, np.ndarray], names: Sequence[str], num_classes: int
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    for part in ("train", "test"):
        images = _checked_images(path, f"x_{part}", arrays[f"x_{part}"])
        arrays[f"x_{part}"] = images
        labels = _checked_labels(path, f"y_{part}", arrays[f"y_{part}"], num_classes)
        if len(images) != len(labels):
            raise DataError(
                f"{path}: y_{part}: expected {len(images)} labels, as x_{part} has images, got {len(labels)}"
            )
        arrays[f"y_{part}"] = labels.astype(np.int64)  # eight times the bytes, once there are no more than images
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        shapes = f"{arrays['x_train'].shape[1:]} and {arrays['x_test'].shape[1:]}"
        raise DataError(f"{path}: expected training and test images of one shape, got {shapes}")
    if len(names) != num_classes:
        names = [str(label) for label in range(num_classes)]
    return arrays, tuple(names)


def _checked_images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype.kind == "f" and np.isnan(images).any():
        raise DataError(f"{path}: {key}: expected uint8 pixels, got NaN")
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {key}: expected uint8 pixels, got {images.dtype}")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{path}: {key}: expected shape (N, height, width, 1 or 3), got {images.shape}")
    return images


def _checked_labels(path: Path, key: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        found = f"{labels.dtype} of shape {labels.shape}"
        raise DataError(f"{path}: {key}: expected integer labels of shape (N,), got {found}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        found = f"{labels.min()} to {labels.max()}"
        raise DataError(f"{path}: {key}: expected labels from 0 to {num_classes - 1}, got {found}")
    return labels


def _read_torchvision(name: str, folder: Path, download: bool) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    from torchvision import datasets

    if not download and not folder.is_dir():
        raise FileNotFoundError(f"no such data folder: {folder}; give a .npz file or a folder, or allow a download")
    source: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        try:
            files = source(folder, train=part == "train", download=download)
        except RuntimeError as error:  # torchvision's answer to absent or damaged files
            raise DataError(f"{folder} does not hold the official {name} files: {error}") from error
        arrays[f"x_{part}"], arrays[f"y_{part}"] = files.data, np.asarray(files.targets, np.int64)
    return arrays, tuple(files.classes)
