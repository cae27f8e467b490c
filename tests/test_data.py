from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from netkit import data
from studies.certificate.mutations import survivors

Write = Callable[..., Path]


def test_digits_are_split_by_class_without_overlap_or_loss() -> None:
    digits = data.load("digits")
    splits = (digits.train, digits.val, digits.test)
    assert sum(len(split) for split in splits) == 1797
    assert digits.shape == (1, 8, 8)
    for split, share in zip(splits, (0.6, 0.1, 0.3), strict=True):
        counts = torch.bincount(split.y, minlength=10)
        whole = torch.stack([torch.bincount(part.y, minlength=10) for part in splits]).sum(0)
        assert ((counts - share * whole).abs() <= 1).all()
    from sklearn.datasets import load_digits

    every = torch.cat([split.x for split in splits]).flatten(1)
    expected = torch.from_numpy(load_digits().data).to(torch.uint8)
    assert sorted(map(tuple, every.tolist())) == sorted(map(tuple, expected.tolist()))


def test_digits_reach_both_ends_of_the_unit_interval() -> None:
    digits = data.load("digits")
    images = digits.images(digits.train.x)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)


def test_a_split_is_the_same_every_time_and_its_fingerprint_notices_one_pixel() -> None:
    first, second = data.load("digits"), data.load("digits")
    assert first.fingerprint() == second.fingerprint()
    second.test.x[0, 0, 0, 0] ^= 1
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint("train", "val") == second.fingerprint("train", "val")


def test_npz_becomes_channels_first_bytes_with_a_tenth_for_validation(tmp_path: Path, fake_cifar: Write) -> None:
    path = fake_cifar(tmp_path / "c.npz")
    cifar = data.load("cifar10", data=path)
    assert (len(cifar.train), len(cifar.val), len(cifar.test)) == (45, 5, 20)
    assert cifar.train.x.dtype == torch.uint8
    with np.load(path) as file:
        assert torch.equal(cifar.test.x, torch.from_numpy(file["x_test"]).permute(0, 3, 1, 2))
        together = torch.cat([cifar.train.x, cifar.val.x]).double().sum((1, 2, 3)).sort().values
        assert torch.equal(together, torch.from_numpy(file["x_train"]).double().sum((1, 2, 3)).sort().values)


def test_num_train_takes_the_first_images(tmp_path: Path, fake_cifar: Write) -> None:
    path = fake_cifar(tmp_path / "c.npz")
    some = data.load("cifar10", data=path, num_train=20, num_test=7)
    assert (len(some.train), len(some.val), len(some.test)) == (18, 2, 7)
    with np.load(path) as file:
        first = file["x_train"][:20].astype(int).sum((1, 2, 3))
    kept = torch.cat([some.train.x, some.val.x]).long().sum((1, 2, 3))
    assert sorted(kept.tolist()) == sorted(first.tolist())


def test_augmented_images_are_crops_of_the_padded_image_or_its_mirror() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 256, (40, 3, 6, 6), dtype=torch.uint8, generator=generator)
    moved = data.augment(x, padding=2, generator=generator)
    padded = torch.nn.functional.pad(x, [2] * 4)
    seen = set()
    for image, source in zip(moved, padded, strict=True):
        crops = {
            (top, left, flip): (crop.flip(-1) if flip else crop)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            for crop in [source[:, top : top + 6, left : left + 6]]
        }
        found = [key for key, crop in crops.items() if torch.equal(crop, image)]
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for _, _, flip in seen} == {False, True}
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))


def test_augmentation_depends_on_its_generator_alone() -> None:
    x = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8)
    first, second = (data.augment(x, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None, "x_train": None}, "lacks x_train, y_test"),
        ({"x_train": np.zeros((50, 32, 32, 3), np.float32)}, "x_train: expected uint8 pixels, got float32"),
        ({"x_train": np.full((50, 32, 32, 3), np.nan)}, "x_train: expected uint8 pixels, got NaN"),
        ({"x_train": np.zeros((50, 3, 32, 32), np.uint8)}, r"x_train: expected shape .*, got \(50, 3, 32, 32\)"),
        ({"y_train": np.arange(49) % 10}, "y_train: expected 50 labels, as x_train has images, got 49"),
        ({"y_train": np.arange(50)}, "y_train: expected labels from 0 to 9, got 0 to 49"),
        ({"y_test": np.zeros((20, 1), int)}, r"y_test: expected integer labels .*, got int64 of shape \(20, 1\)"),
        ({"x_test": np.zeros((20, 28, 28, 3), np.uint8)}, "images of one shape, got"),
        ({"x_train": np.array([None] * 50, dtype=object)}, "other than plain arrays"),
    ],
)
def test_a_wrong_npz_is_refused_with_what_was_expected(
    tmp_path: Path, fake_cifar: Write, changes: dict[str, np.ndarray | None], message: str
) -> None:
    with pytest.raises(data.DataError, match=message):
        data.load("cifar10", data=fake_cifar(tmp_path / "c.npz", **changes))


def test_wrong_names_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="name: expected one of digits, cifar10, cifar100, got 'mnist'"):
        data.load("mnist")
    with pytest.raises(FileNotFoundError, match="no such data file"):
        data.load("cifar10", data=tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match="no such data folder"):
        data.load("cifar10", data=tmp_path / "absent")
    with pytest.raises(data.DataError, match="does not hold the official cifar100 files"):
        data.load("cifar100", data=tmp_path)
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(data.DataError, match=r"not a readable \.npz file"):
        data.load("cifar10", data=tmp_path / "text.npz")
    with pytest.raises(data.DataError, match="num_train: expected at least 1, got 0"):
        data.load("digits", num_train=0)
    with pytest.raises(data.DataError, match=r"num_test: expected a whole number, got 2\.5"):
        data.load("digits", num_test=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_is_read_of_a_damaged_npz_is_what_it_held(
    tmp_path: Path, fake_cifar: Write, save: Callable[..., None]
) -> None:
    path = fake_cifar(tmp_path / "c.npz", **tiny_cifar())
    with np.load(path) as file:
        save(path, **dict(file))
    arrays, names = data.read_npz(path, 10)
    for damaged, found in survivors(path, 300, seed=0, read=lambda: data.read_npz(path, 10), refuses=data.DataError):
        assert found[1] == names, damaged  # the damage is in a time stamp or the like
        assert all(np.array_equal(found[0][key], arrays[key]) for key in arrays), damaged


def test_a_member_that_the_directory_swallows_is_missed(tmp_path: Path, fake_cifar: Write) -> None:
    """One byte, the length of the comment before, hides the names of the classes from zipfile."""
    path = fake_cifar(tmp_path / "c.npz", **tiny_cifar())
    content = bytearray(path.read_bytes())
    before = content.rindex(b"PK\1\2", 0, content.rindex(b"PK\1\2"))
    content[before + 32] = len(content) - 22 - content.rindex(b"PK\1\2")
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert "classes.npy" not in archive.namelist()
    with pytest.raises(data.DataError, match="it names 4 of 5 members"):
        data.load("cifar10", data=path)


def test_an_array_that_is_cut_short_by_its_header_is_refused(tmp_path: Path, fake_cifar: Write) -> None:
    path = fake_cifar(tmp_path / "c.npz", **tiny_cifar())
    content = path.read_bytes()
    assert content.count(b"(12, 8, 8, 3)") == 1
    path.write_bytes(content.replace(b"(12, 8, 8, 3)", b"(11, 8, 8, 3)"))
    with pytest.raises(data.DataError, match=r"not a readable \.npz file: Bad CRC-32"):
        data.load("cifar10", data=path)


def tiny_cifar() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(12) % 10,
        "x_test": rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(5),
        "classes": np.array([f"c{k}" for k in range(10)]),
    }
