"""Packed data sets: the same bits in smaller files, and a clear word where one is missing or damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from mutations import survivors
from test_data import fake_cifar, tiny_cifar

from netkit import data, packed
from netkit.data import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cifar10.npz, and its packed files in a folder: three for training and one for testing."""
    folder = tmp_path_factory.mktemp("data")
    source = fake_cifar(folder / "cifar10.npz")
    packed.write(source, folder / "packed", max_bytes=90_000)
    return folder


def copy(folder: Path, to: Path, *, without: str = "") -> Path:
    to.mkdir(exist_ok=True)
    for path in (folder / "packed").iterdir():
        if path.name != without:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_packing_keeps_every_bit_in_files_below_the_limit(folder: Path) -> None:
    files = sorted(path.name for path in (folder / "packed").iterdir())
    assert files == ["cifar10-test.npz", "cifar10-train-0.npz", "cifar10-train-1.npz", "cifar10-train-2.npz"]
    assert all(path.stat().st_size <= 90_000 for path in (folder / "packed").iterdir())
    plain, unpacked = (data.load("cifar10", data=folder / name) for name in ("cifar10.npz", "packed"))
    assert unpacked.fingerprint() == plain.fingerprint()
    assert unpacked.classes == plain.classes


def test_cifar100_and_other_file_names_are_packed_alike(tmp_path: Path) -> None:
    source = fake_cifar(
        tmp_path / "mine.npz", y_train=np.arange(50) * 2, classes=np.array([f"c{k}" for k in range(100)])
    )
    packed.write(source, tmp_path, name="cifar100")
    plain, unpacked = (data.load("cifar100", data=path) for path in (source, tmp_path))
    assert unpacked.fingerprint() == plain.fingerprint()
    assert unpacked.classes[99] == "c99"
    with pytest.raises(DataError, match="expected a data set named cifar10 or cifar100, got 'mine'"):
        packed.write(source, tmp_path)


@pytest.mark.parametrize("part", ["cifar10-train-0", "cifar10-train-2", "cifar10-test"])
def test_a_missing_part_is_noticed(folder: Path, tmp_path: Path, part: str) -> None:
    there = copy(folder, tmp_path, without=f"{part}.npz")
    with pytest.raises(DataError, match=r"a part is missing|no cifar10-test file beside other packed ones"):
        data.load("cifar10", data=there)


def test_parts_that_do_not_say_how_many_they_are_must_make_up_the_official_data_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = copy(folder, tmp_path)
    for path in there.iterdir():
        with np.load(path) as file:
            content = {key: file[key] for key in file if key not in ("num_parts", "num_images")}
        np.savez(path, **content)
    with pytest.raises(DataError, match=r"holds 50 of 50000 images of cifar10-train, .*: a part is missing"):
        data.load("cifar10", data=there)
    monkeypatch.setattr(packed, "_OFFICIAL", {"train": 50, "test": 20})
    whole = data.load("cifar10", data=folder / "cifar10.npz")
    assert data.load("cifar10", data=there).fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(("copied", "to"), [("train-2", "train-3"), ("test", "test-0"), ("test", "test-1")])
def test_a_surplus_part_is_named(folder: Path, tmp_path: Path, copied: str, to: str) -> None:
    there = copy(folder, tmp_path)
    (there / f"cifar10-{to}.npz").write_bytes((there / f"cifar10-{copied}.npz").read_bytes())
    with pytest.raises(
        DataError, match=rf"cifar10-({to}|{copied})\.npz is one file too many: expected [13] of cifar10-t"
    ):
        data.load("cifar10", data=there)


def test_parts_of_different_packings_are_refused(folder: Path, tmp_path: Path) -> None:
    there = copy(folder, tmp_path / "there")
    other = fake_cifar(tmp_path / "cifar10.npz", num_train=60)
    packed.write(other, tmp_path / "other", max_bytes=110_000)
    (there / "cifar10-train-1.npz").write_bytes((tmp_path / "other" / "cifar10-train-1.npz").read_bytes())
    with pytest.raises(DataError, match=r"holds 5\d of 50 images of cifar10-train, .*: they are not of one packing"):
        data.load("cifar10", data=there)


@pytest.mark.parametrize("max_bytes", [0, 20_000, 39_999])
def test_files_too_small_for_an_image_are_refused(folder: Path, tmp_path: Path, max_bytes: int) -> None:
    with pytest.raises(DataError, match=f"max_bytes must be at least 40000, got {max_bytes}"):
        packed.write(folder / "cifar10.npz", tmp_path / "there", max_bytes=max_bytes)
    assert not (tmp_path / "there").exists()


def test_damage_is_named(folder: Path, tmp_path: Path) -> None:
    there = copy(folder, tmp_path)
    path = there / "cifar10-train-1.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cifar10-train-1\.npz is not a readable \.npz file"):
        data.load("cifar10", data=there)
    path.write_bytes(whole)
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **(content | {"labels": content["labels"][:-1]}))
    with pytest.raises(DataError, match="offsets do not fit"):
        data.load("cifar10", data=there)
    np.savez(path, **(content | {"webp": np.zeros_like(content["webp"])}))
    with pytest.raises(DataError, match=r"cifar10-train-1\.npz is damaged"):
        data.load("cifar10", data=there)


@pytest.mark.parametrize("part", ["train-0", "test"])
def test_what_is_read_of_a_damaged_part_is_what_it_held(tmp_path: Path, part: str) -> None:
    packed.write(fake_cifar(tmp_path / "cifar10.npz", **tiny_cifar()), tmp_path)
    path = tmp_path / f"cifar10-{part}.npz"
    arrays, names = packed.read(tmp_path, "cifar10")
    read = survivors(path, 150, seed=0, read=lambda: packed.read(tmp_path, "cifar10"), refuses=DataError)
    for damaged, found in read:
        assert found[1] == names, damaged  # the damage is in a time stamp or the like
        assert all(np.array_equal(found[0][key], arrays[key]) for key in arrays), damaged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_parts": np.array([3, 3])}, r"no packed file: num_parts is int64 of shape \(2,\)"),
        ({"num_images": np.array("fifty")}, r"no packed file: num_images is <U5 of shape \(\)"),
        ({"classes": np.array("plane")}, r"no packed file: classes is <U5 of shape \(\)"),
        ({"offsets": np.array([0.0, 1.0])}, r"no packed file: offsets is float64 of shape \(2,\)"),
        ({"webp": np.zeros(99, np.int8)}, "its offsets do not fit its images and labels"),
        ({"labels": np.zeros((0,), int), "offsets": np.zeros((0,), int)}, "its offsets do not fit"),
    ],
)
def test_arrays_that_are_no_packed_images_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    path = copy(folder, tmp_path) / "cifar10-test.npz"
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **(content | changes))
    with pytest.raises(DataError, match=message):
        data.load("cifar10", data=tmp_path)


def test_offsets_that_go_back_are_refused(folder: Path, tmp_path: Path) -> None:
    path = copy(folder, tmp_path) / "cifar10-test.npz"
    with np.load(path) as file:
        content = dict(file)
    content["offsets"][[3, 4]] = content["offsets"][[4, 3]]
    np.savez(path, **content)
    with pytest.raises(DataError, match="its offsets do not fit"):
        data.load("cifar10", data=tmp_path)


def test_without_pillow_the_message_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="need Pillow: pip install pillow"):
        data.load("cifar10", data=folder / "packed")


def test_the_command_packs_and_refuses_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed.main([str(folder / "cifar10.npz"), str(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert data.load("cifar10", data=tmp_path).num_classes == 10
    with pytest.raises(SystemExit, match=r"^error: no such data file: .*absent\.npz$"):
        packed.main([str(tmp_path / "absent.npz"), str(tmp_path), "--name", "cifar10"])
