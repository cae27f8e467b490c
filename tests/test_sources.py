"""Anybody's images: arrays, torch datasets, folders, columns; their splits; and what is refused."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from netkit import attacks, dataset, evaluate, inject_noise, load_weights, train
from netkit.data import DataError, Dataset

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
Y = np.arange(30) % 3


def of_everything(data: Dataset) -> dict[bytes, int]:
    """Each image, channels last, as bytes, and its label."""
    parts = (data.train, data.val, data.test)
    pairs = ((x, y) for part in parts for x, y in zip(part.x, part.y, strict=True))
    return {x.permute(1, 2, 0).contiguous().numpy().tobytes(): int(y) for x, y in pairs}


WHOLE = {x.tobytes(): int(y) for x, y in zip(X, Y, strict=True)}


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.seen = 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.seen += 1
        return Image.fromarray(X[index]), int(Y[index])


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.from_numpy(X).permute(0, 3, 1, 2), torch.from_numpy(Y), strict=True)


class HuggingFace:
    """What matters of a `datasets.Dataset`."""

    column_names = ("image", "label")
    features = types.MappingProxyType({"label": types.SimpleNamespace(names=["0", "1", "2"])})

    def __getitem__(self, column: str) -> list[Any]:
        return list(map(Image.fromarray, X)) if column == "image" else Y.tolist()


SOURCES: dict[str, Callable[[], Any]] = {
    "NHWC": lambda: dataset(X, Y),
    "NCHW": lambda: dataset(torch.from_numpy(X).permute(0, 3, 1, 2), torch.from_numpy(Y)),
    "a list": lambda: dataset(list(map(Image.fromarray, X)), Y.tolist()),
    "torch": lambda: dataset(Pairs()),
    "a stream": lambda: dataset(Stream()),
    "columns": lambda: dataset({"image": X, "label": Y}),
    "named columns": lambda: dataset({"img": X, "kind": Y}, columns=("img", "kind")),
    "rows": lambda: dataset([{"image": x, "label": y} for x, y in zip(X, Y, strict=True)]),
    "Hugging Face": lambda: dataset(HuggingFace()),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_images_in_the_same_splits(name: str) -> None:
    data, reference = SOURCES[name](), SOURCES["NHWC"]()
    assert data.shape == (3, 6, 5)
    assert data.classes == ("0", "1", "2")
    assert data.max_value == 255
    assert of_everything(data) == WHOLE
    assert data.fingerprint() == reference.fingerprint()


def test_classes_have_the_names_that_the_data_know() -> None:
    class Named(HuggingFace):
        features = types.MappingProxyType({"label": types.SimpleNamespace(names=["cat", "dog", "fish", "owl"])})

    assert dataset(Named()).classes == ("cat", "dog", "fish", "owl")
    words = np.array(["dog", "cat", "fish"])[Y]
    assert dataset(X, words.tolist()).classes == ("cat", "dog", "fish")
    assert dataset(X, Y, classes=["a", "b", "c"]).classes == ("a", "b", "c")


def test_a_torch_dataset_is_read_once() -> None:
    pairs = Pairs()
    dataset(pairs)
    assert pairs.seen == 30


def test_floating_point_images_keep_their_values() -> None:
    x = RNG.random((30, 7, 7))
    data = dataset(x, Y)
    assert (data.shape, data.max_value) == ((1, 7, 7), 1)
    assert data.train.x.dtype == torch.float32
    assert of_everything(data).keys() == {image.astype(np.float32).tobytes() for image in x}
    assert torch.equal(data.images(data.val.x), data.val.x)


def test_splits_hold_every_class_by_its_share_and_follow_the_seed() -> None:
    y = np.repeat([0, 1, 2], [100, 50, 4])
    x = RNG.integers(0, 256, (154, 4, 4), dtype=np.uint8)
    data = dataset(x, y)
    counts = {part: torch.bincount(getattr(data, part).y).tolist() for part in ("train", "val", "test")}
    assert counts == {"test": [20, 10, 1], "val": [8, 4, 1], "train": [72, 36, 2]}
    assert dataset(x, y).fingerprint() == data.fingerprint() != dataset(x, y, seed=1).fingerprint()
    assert len(dataset(x, y, test_share=0.4, val_share=0.5).train) == 30 + 15 + 1


def test_parts_that_are_given_stay_as_they_are() -> None:
    given = {"train": (X[:18], Y[:18]), "test": (X[18:], Y[18:])}
    data = dataset(given)
    assert torch.equal(data.test.x, torch.from_numpy(X[18:]).permute(0, 3, 1, 2))
    assert (len(data.train), len(data.val)) == (15, 3)
    data = dataset({**given, "validation": (X[:3], Y[:3])})
    assert torch.equal(data.train.y, torch.from_numpy(Y[:18]))
    assert torch.equal(data.val.x, torch.from_numpy(X[:3]).permute(0, 3, 1, 2))


def write_folder(folder: Path, *, count: int = 5, sizes: tuple[int, ...] = (16,), mode: str = "RGB") -> Path:
    """Class folders of images, each class of its own brightness."""
    for number, kind in enumerate(("cat", "dog")):
        (folder / kind / "deeper").mkdir(parents=True)
        for index in range(count):
            shape = (sizes[index % len(sizes)], 16) + ((3,) if mode == "RGB" else ())
            pixels = RNG.integers(128 * number, 128 * number + 128, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / ("deeper" if index % 2 else ".") / f"{index}.png")
    (folder / "cat" / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_class_folders_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    data = dataset(write_folder(tmp_path / "pets"))
    assert (data.name, data.classes, data.shape) == ("pets", ("cat", "dog"), (3, 16, 16))
    theirs = torchvision.datasets.ImageFolder(tmp_path / "pets")
    assert tuple(theirs.classes) == data.classes
    assert of_everything(data) == {np.array(image).tobytes(): label for image, label in theirs}
    assert dataset(write_folder(tmp_path / "grey", mode="L")).shape == (1, 16, 16)
    assert dataset(tmp_path / "grey", channels=3).shape == (3, 16, 16)


def test_a_folder_may_name_its_parts(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        write_folder(tmp_path / part, count=count)
    data = dataset(tmp_path, name="pets")
    assert (len(data.train), len(data.val), len(data.test), data.name) == (8, 4, 6, "pets")


@pytest.mark.parametrize(("height", "width"), [(20, 16), (16, 40), (7, 9)])
def test_images_of_other_sizes_are_resized_and_cropped_at_the_centre(height: int, width: int) -> None:
    ramp = np.linspace(0, 1, width)[None, None, :, None].repeat(height, 1).repeat(30, 0)
    data = dataset(ramp, Y, size=8)
    assert data.shape == (1, 8, 8)
    factor = max(8 / height, 8 / width)
    centres = (np.arange(8) - 3.5) / factor / (width - 1) + 0.5
    inner = data.train.x[0, 0, 4, 1:-1].numpy()  # the filter folds at the ends
    np.testing.assert_allclose(inner, centres[1:-1], atol=0.02)
    assert dataset(X, Y, size=(4, 5)).shape == (3, 4, 5)


def test_resnet18_with_noise_learns_a_folder_in_an_epoch_and_is_attacked(tmp_path: Path) -> None:
    data = dataset(write_folder(tmp_path / "pets", count=6, sizes=(16, 20)), size=16)

    def network() -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return inject_noise(torchvision.models.resnet18(num_classes=data.num_classes), 0.1, seed=0)

    model, path = network(), tmp_path / "run"
    options: dict[str, Any] = {"optimizer": torch.optim.AdamW, "lr": 1e-3, "schedule": "one-cycle", "warmup": 0.5}
    result = train(model, data, epochs=1, batch_size=4, num_steps=1, step_size=8 / 255, path=path, **options)
    assert result.history[0].val_robust is not None
    attack = partial(attacks.pgd, eps=8 / 255, step_size=2 / 255, num_steps=2)
    loaded, x = load_weights(path, network()), data.images(data.test.x)
    scores = [evaluate.robust_accuracy(net, x, data.test.y, attack, num_draws=3) for net in (model, loaded)]
    assert scores[0].num_draws == 3
    assert torch.equal(scores[0].predictions, scores[1].predictions)


def changed(index: int, value: Any) -> np.ndarray:
    x = X / 255
    x[index, 0, 0, 0] = value
    return x


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: dataset(changed(4, np.nan), Y), "image 4: expected pixels from 0 to 1, got nan to nan"),
    "range": (lambda: dataset(changed(4, 2.0), Y), r"image 4: expected pixels from 0 to 1, got 0 to 2"),
    "integers": (
        lambda: dataset(X.astype(int), Y),
        "image 0: expected uint8 or floating-point pixels",
    ),
    "no labels": (lambda: dataset(X), "labels: expected one for each image, got none"),
    "too few labels": (lambda: dataset(X, Y[:-1]), "labels: expected one for each of 30 images, got shape"),
    "columns of two lengths": (lambda: dataset({"image": X, "label": Y[:-1]}), "another number, seen at row 29"),
    "negative": (lambda: dataset(X, Y - 1), "image 0: expected a whole number >= 0 as label, got -1"),
    "fractions": (lambda: dataset(X, Y + 0.5), "image 0: expected a whole number >= 0 as label, got 0.5"),
    "above": (lambda: dataset(X, Y, classes=["a", "b"]), "image 2: expected a label from 0 to 1, got 2"),
    "one class": (lambda: dataset(X, Y * 0), "labels: expected at least two classes in training, got '0' alone"),
    "lonely": (lambda: dataset(X, np.minimum(np.arange(30), 1)), "at least 3 images of each class, .* got 1 of '0'"),
    "flat": (lambda: dataset(X.reshape(30, -1), Y), r"source: expected images \(N, H, W, C\), .* got \(30, 90\)"),
    "layout": (lambda: dataset(X[..., :1].reshape(30, 2, 3, 5), Y), "layout: expected 'NHWC' or 'NCHW', as a shape"),
    "columns": (lambda: dataset({"img": X, "label": Y}), "columns: expected image in the data, got img, label"),
    "rows": (lambda: dataset([1, 2]), r"item 0: expected \(image, label\) or a mapping with image and label, got int"),
    "nothing": (lambda: dataset(3), "source: expected arrays with labels, .* got int"),
    "empty": (lambda: dataset([]), "source: expected images, got none"),
    "mixed types": (lambda: dataset([(X[0], 0), (X[0] / 255, 1)]), "item 1: expected torch.uint8 as of item 0, got"),
    "share": (lambda: dataset(X, Y, test_share=1.0), "test_share: expected a share between 0 and 1, got 1.0"),
    "size": (lambda: dataset(X, Y, size=0), "size: expected a height and a width of at least 1, got 0"),
    "channels": (lambda: dataset(X, Y, channels=2), "channels: expected 1 or 3, got 2"),
    "parts": (
        lambda: dataset({"train": (X, Y), "test": (X[:, :4], Y)}),
        "source: expected parts of one shape and type, got",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_data_gets_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_bad_folders_get_one_line_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="expected a folder for each class, got none"):
        dataset(tmp_path)
    folder = write_folder(tmp_path / "sizes", sizes=(16, 20))
    with pytest.raises(DataError, match=r"1\.png: expected shape \(C, H, W\) = .* got \(3, 20, 16\): size=... resizes"):
        dataset(folder)
    folder = write_folder(tmp_path / "broken")
    (folder / "dog" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"dog/0\.png: expected a readable image, got"):
        dataset(folder)
    folder = write_folder(tmp_path / "mixed")
    Image.new("L", (16, 16)).save(folder / "dog" / "0.png")
    with pytest.raises(DataError, match=r"dog/0\.png: expected shape .* got \(1, 16, 16\): channels=3 or 1"):
        dataset(folder)
    Image.new("I;16", (16, 16)).save(folder / "dog" / "0.png")
    with pytest.raises(DataError, match=r"dog/0\.png: expected eight bits a channel, got an image of mode 'I;16'"):
        dataset(folder)
    (folder / "fish").mkdir()
    with pytest.raises(DataError, match="fish: expected image files, got none"):
        dataset(folder)
