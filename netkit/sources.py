"""Anybody's images as a `Dataset`: arrays, a torch dataset, a folder, columns of images and labels.

`dataset("photos")` reads a folder of class folders, `dataset(x, y)` arrays. Everything is read once and kept in memory.
Classes, channels and size are found in the data, and what does not fit is refused with the place where it was found.

Splits: a source that names its parts ("train", "val" or "validation", "test") keeps them. A missing test or validation
part is cut from the training part, class by class, in an order drawn from `seed`: a fifth of each class for the test,
then a tenth of the rest for validation, rounded, and at least one image of each class in every part.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from netkit.checks import check_seed
from netkit.data import DataError, Dataset, Split

_PARTS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
_GREY_MODES = ("1", "L")
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS or math.inf
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")

Item = tuple[Any, Any, str]
"""An image, a tensor, array or PIL image; its label; where it was found."""


def dataset(
    source: Any,
    labels: Any = None,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    layout: str | None = None,
    classes: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    test_share: float = 0.2,
    val_share: float = 0.1,
    seed: int = 0,
    augmented: bool = False,
    name: str | None = None,
    device: torch.device | str = "cpu",
) -> Dataset:
    """Make a data set of one's own images, on `device`.

    source: images (N, H, W, C), (N, C, H, W) or (N, H, W), uint8 or floating point in [0, 1], with `labels` (N,);
        a torch dataset of (image, label), iterated once; a folder of class folders with images; a mapping, sequence of
        mappings or Hugging Face dataset with `columns` of images and labels; or a mapping of parts, or a folder of
        folders, "train", "val" and "test", each of these kinds.
    size: height and width, or both at once: images are resized until they cover it, and cropped at their centre. None
        takes images of one size as they are.
    channels: 1 for grey or 3 for RGB, to which image files are converted; None takes grey files as 1, all others as 3.
    layout: "NHWC" or "NCHW" of arrays, where a number of channels, 1 or 3, does not tell.
    classes: the names of labels 0, 1, ...; by default those of folders, the distinct labels where these are strings,
        or the numbers up to the largest label.
    test_share, val_share, seed: of the splits; see this module's docstring.
    augmented: whether random crops and flips leave the label alone.
    name: of the data set, in checkpoints; by default that of the folder, or "images".

    Bytes stay bytes; floating-point images become float32, with 1 as white. Raises DataError, with the place, for
    images that cannot be read, of mixed sizes or channels, NaN or values outside [0, 1], labels that are no whole
    numbers or have no class, a single class, or too few images; FileNotFoundError for a missing folder.
    """
    for option, share in (("test_share", test_share), ("val_share", val_share)):
        if not 0 < share < 1:
            raise DataError(f"{option}: expected a share between 0 and 1, got {share}")
    if layout not in (None, "NHWC", "NCHW"):
        raise DataError(f"layout: expected 'NHWC' or 'NCHW', got {layout!r}")
    if channels not in (None, 1, 3):
        raise DataError(f"channels: expected 1 or 3, got {channels!r}")
    covered = (size, size) if isinstance(size, int) else size
    if covered is not None and not (len(covered) == 2 and min(covered) >= 1):
        raise DataError(f"size: expected a height and a width of at least 1, got {size!r}")
    if isinstance(source, str | Path):
        name = name or Path(source).resolve().name
    sources = _parts(source)
    parts = {part: list(_items(images, labels, columns, layout)) for part, images in sources.items()}
    names = _class_names(parts, classes, getattr(sources["train"], "features", None), columns[1])
    splits = {part: _stacked(items, names, covered, channels) for part, items in parts.items()}
    splits = _with_missing_parts(splits, names, {"test": test_share, "val": val_share}, seed)
    kinds = {part: f"{tuple(split.x.shape[1:])} {split.x.dtype}" for part, split in splits.items()}
    if len(set(kinds.values())) > 1:
        raise DataError(f"source: expected parts of one shape and type, got {kinds}")
    present = splits["train"].y.unique()
    if len(present) < 2:
        raise DataError(f"labels: expected at least two classes in training, got {names[int(present[0])]!r} alone")
    on_device = {part: Split(split.x.to(device), split.y.to(device)) for part, split in splits.items()}
    white = 255 if on_device["train"].x.dtype == torch.uint8 else 1
    return Dataset(name or "images", **on_device, classes=names, max_value=white, augmented=augmented)


def _parts(source: Any) -> dict[str, Any]:
    """The parts that a source names, or all of it for training."""
    if isinstance(source, str | Path):
        folder = Path(source)
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder of images: {folder}")
        inside = {entry.name: entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    else:
        inside = dict(source) if isinstance(source, Mapping) else {}
    if "train" not in inside or not inside.keys() <= _PARTS.keys():
        return {"train": source}
    return {_PARTS[part]: images for part, images in inside.items()}


def _items(source: Any, labels: Any, columns: tuple[str, str], layout: str | None) -> Iterator[Item]:
    """Every image of a source, with its label and place."""
    if isinstance(source, str | Path):
        return _in_folder(Path(source))
    if labels is None and isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor | np.ndarray):
        source, labels = source
    if isinstance(source, Tensor | np.ndarray):
        if labels is None:
            raise DataError("labels: expected one for each image, got none")
        return _in_arrays(source, labels, layout)
    if labels is not None:
        return _numbered("image", source, labels)
    names = source.keys() if isinstance(source, Mapping) else getattr(source, "column_names", None)
    if names is not None:
        if missing := [column for column in columns if column not in names]:
            raise DataError(f"columns: expected {', '.join(missing)} in the data, got {', '.join(map(str, names))}")
        return _numbered("row", *(source[column] for column in columns))
    return _in_rows(source, columns)


def _in_folder(folder: Path) -> Iterator[Item]:
    """Torchvision's ImageFolder: a folder for each class, image files at any depth inside."""
    suffixes = Image.registered_extensions()
    kinds = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if not kinds:
        raise DataError(f"{folder}: expected a folder for each class, got none")
    for kind in kinds:
        files = sorted(file for file in kind.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if not files:
            raise DataError(f"{kind}: expected image files, got none")
        for file in files:
            yield file, kind.name, str(file)


def _in_arrays(x: Any, y: Any, layout: str | None) -> Iterator[Item]:
    images, labels = torch.as_tensor(x), np.asarray(y)
    if images.dim() == 3:
        images, layout = images.unsqueeze(1), "NCHW"
    if images.dim() != 4 or 0 in images.shape:
        raise DataError(f"source: expected images (N, H, W, C), (N, C, H, W) or (N, H, W), got {tuple(images.shape)}")
    if labels.shape != (len(images),):
        raise DataError(f"labels: expected one for each of {len(images)} images, got shape {labels.shape}")
    if layout is None:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first == last:
            raise DataError(f"layout: expected 'NHWC' or 'NCHW', as a shape {tuple(images.shape)} does not tell")
        layout = "NCHW" if first else "NHWC"
    if layout == "NHWC":
        images = images.permute(0, 3, 1, 2)
    return _numbered("image", images, labels)


def _numbered(what: str, images: Iterable[Any], labels: Iterable[Any]) -> Iterator[Item]:
    for number, (image, label) in enumerate(itertools.zip_longest(images, labels, fillvalue=_NONE)):
        if image is _NONE or label is _NONE:
            raise DataError(f"labels: expected one for each image, got another number, seen at {what} {number}")
        yield image, label, f"{what} {number}"


_NONE = object()


def _in_rows(source: Any, columns: tuple[str, str]) -> Iterator[Item]:
    """A torch dataset of pairs, or a sequence of mappings."""
    # By index, where there is one: a class with __getitem__ alone may never stop an iteration.
    has_length = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    rows = (source[index] for index in range(len(source))) if has_length else source
    if not isinstance(rows, Iterable):
        kinds = "arrays with labels, a torch dataset, a folder, or columns"
        raise DataError(f"source: expected {kinds}, got {type(source).__name__}")
    for number, row in enumerate(rows):
        if isinstance(row, Mapping) and all(column in row for column in columns):
            yield row[columns[0]], row[columns[1]], f"row {number}"
        elif isinstance(row, tuple | list) and len(row) == 2:
            yield row[0], row[1], f"item {number}"
        else:
            expected = f"(image, label) or a mapping with {' and '.join(columns)}"
            raise DataError(f"item {number}: expected {expected}, got {type(row).__name__}")


def _class_names(
    parts: Mapping[str, Sequence[Item]], classes: Sequence[str] | None, features: Any, column: str
) -> tuple[str, ...]:
    """The name of each class, by its number."""
    if classes is not None:
        return tuple(map(str, classes))
    labels = [(label, place) for items in parts.values() for _, label, place in items]
    if not labels:
        raise DataError("source: expected images, got none")
    if isinstance(labels[0][0], str):
        return tuple(sorted({str(label) for label, _ in labels}))
    if isinstance(features, Mapping) and hasattr(features.get(column), "names"):  # Hugging Face's ClassLabel
        return tuple(features[column].names)
    return tuple(map(str, range(1 + max(_whole(label, place) for label, place in labels))))


def _whole(label: Any, place: str) -> int:
    is_array = isinstance(label, Tensor | np.ndarray | np.generic)
    value = label.item() if is_array and not label.shape else label
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(f"{place}: expected a whole number >= 0 as label, got {value!r}")
    return value


def _label(label: Any, place: str, names: tuple[str, ...]) -> int:
    if isinstance(label, str):
        if label not in names:
            raise DataError(f"{place}: expected a label of {', '.join(names)}, got {label!r}")
        return names.index(label)
    number = _whole(label, place)
    if number >= len(names):
        raise DataError(f"{place}: expected a label from 0 to {len(names) - 1}, got {number}")
    return number


def _stacked(
    items: Sequence[Item], names: tuple[str, ...], size: tuple[int, int] | None, channels: int | None
) -> Split:
    """All images of a part in one tensor."""
    images: list[Tensor] = []
    for image, _, place in items:
        tensor = _pixels(image, place, channels)
        if size is not None:
            tensor = _covering(tensor, size, place)
        if images and tensor.shape != images[0].shape:
            first, now = tuple(images[0].shape), tuple(tensor.shape)
            cure = "channels=3 or 1 converts files" if first[0] != now[0] else "size=... resizes"
            raise DataError(f"{place}: expected shape (C, H, W) = {first} as of {items[0][2]}, got {now}: {cure}")
        if images and tensor.dtype != images[0].dtype:
            raise DataError(f"{place}: expected {images[0].dtype} as of {items[0][2]}, got {tensor.dtype}")
        images.append(tensor)
    labels = [_label(label, place, names) for _, label, place in items]
    if not images:
        raise DataError("source: expected images in each part, got none in one")
    return Split(torch.stack(images), torch.tensor(labels))


def _pixels(image: Any, place: str, channels: int | None) -> Tensor:
    """(C, H, W), uint8 or float32 in [0, 1], of a file, a PIL image or an array."""
    if isinstance(image, str | Path):
        try:
            with warnings.catch_warnings():
                # Pillow only warns from 90 million pixels on, which a file of some kilobytes may claim to have
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(image, formats=_formats()) as opened:
                    opened.load()
                    return _pixels(opened, place, channels)
        except DataError:
            raise
        except Exception as error:  # a damaged file makes PIL raise nearly anything
            raise DataError(f"{place}: expected a readable image, got {type(error).__name__}: {error}") from error
    if isinstance(image, Image.Image):
        if image.mode in _DEEP_MODES:
            raise DataError(f"{place}: expected eight bits a channel, got an image of mode {image.mode!r}")
        is_grey = image.mode in _GREY_MODES if channels is None else channels == 1
        array = np.array(image.convert("L" if is_grey else "RGB"))
        return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if tensor.dim() == 2:
        tensor = tensor.unsqueeze(0)
    elif tensor.dim() == 3 and not isinstance(image, Tensor):  # arrays of single images have the channels last
        tensor = tensor.permute(2, 0, 1)
    if tensor.dim() != 3 or 0 in tensor.shape:
        raise DataError(f"{place}: expected an image (C, H, W), got shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise DataError(f"{place}: expected uint8 or floating-point pixels, got {tensor.dtype}")
    low, high = (float(bound) for bound in tensor.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise DataError(f"{place}: expected pixels from 0 to 1, got {low:.4g} to {high:.4g}")
    return tensor.to(torch.float32)


def _formats() -> list[str]:
    """Those of Pillow but PostScript, a language whose programs it hands to Ghostscript."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _covering(image: Tensor, size: tuple[int, int], place: str) -> Tensor:
    """The image, resized to the smallest that covers `size`, less what is beyond it on both sides."""
    from torchvision.transforms.v2 import functional

    factor = max(wanted / found for wanted, found in zip(size, image.shape[1:], strict=True))
    height, width = (max(wanted, round(factor * found)) for wanted, found in zip(size, image.shape[1:], strict=True))
    if height * width > (most := max(_MOST_PIXELS, math.prod(size))):  # a strip one pixel wide grows to any length
        found = tuple(image.shape[1:])
        raise DataError(
            f"{place}: expected at most {most:,} pixels to cover {size}, got {height:,} x {width:,} of {found}"
        )
    resized = functional.resize(image, [height, width], antialias=True)
    cropped: Tensor = functional.center_crop(resized, list(size))
    return cropped if cropped.dtype == torch.uint8 else cropped.clamp(0, 1)


def _with_missing_parts(
    splits: dict[str, Split], names: tuple[str, ...], shares: Mapping[str, float], seed: int
) -> dict[str, Split]:
    """Cut the test and validation parts that are missing from the training part, class by class."""
    missing = [part for part in ("test", "val") if part not in splits]
    rng = np.random.default_rng(check_seed(seed))
    x, y = splits["train"].x, splits["train"].y
    cut: dict[str, list[np.ndarray]] = {part: [] for part in ("train", *missing)}
    for label in np.unique(y.numpy()) if missing else ():
        members = rng.permutation(np.flatnonzero(y.numpy() == label))
        if len(members) <= len(missing):
            needed = f"at least {len(missing) + 1} images of each class, for training and {' and '.join(missing)}"
            raise DataError(f"source: expected {needed}, got {len(members)} of {names[label]!r}")
        for part in missing:
            count = max(1, min(round(shares[part] * len(members)), len(members) - 2))
            cut[part].append(members[:count])
            members = members[count:]
        cut["train"].append(members)
    if not missing:
        return splits
    # shuffled once more, so that the first N of a split hold every class
    order = {part: torch.from_numpy(rng.permutation(np.concatenate(indices))) for part, indices in cut.items()}
    return {**splits, **{part: Split(x[index], y[index]) for part, index in order.items()}}
