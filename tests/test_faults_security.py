"""Hostile files: nothing in them runs, claims of size are refused unread, names stay names. SECURITY.md promises it."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pickle
import shlex
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import made_up_records
import numpy as np
import pytest
import torch
from page_reader import Elements
from PIL import Image
from safetensors.torch import save_file
from torchvision import datasets
from typer.testing import CliRunner

import netkit.data
import pdekit.data
from netkit import MetricsFile, audit, checkpoint, data, dataset, en_resnet
from netkit.checkpoint import CheckpointError
from netkit.data import DataError
from netkit.evaluate import stored_score
from netkit.training import load_model
from pdekit.equation.storage import Checkpoint
from pdekit.equation.storage import CheckpointError as RestartError
from studies.cli import CommandError
from studies.cli.audit import with_weights
from studies.lab.networks import Network
from studies.lab.records import Records
from studies.lab.reporting import InputError, read_object, read_objects
from studies.page.results import Results
from studies.report import render
from studies.table2 import app

ROOT = Path(__file__).resolve().parent.parent


# Nothing in a file runs


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the packages: its module, what is called, and the call."""
    for package in ("pdekit", "netkit", "bridge", "studies"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield str(path.relative_to(ROOT)), ast.unparse(node.func), node


def test_no_module_reads_what_can_hold_code() -> None:
    """But for jobs of one's own executor, see SECURITY.md."""
    words = {"pickle.load", "pickle.loads", "torch.load", "torch.hub.load", "joblib.load", "yaml.load", "dill.loads"}
    words |= {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads", "shelve.open"}
    found = {(module, name) for module, name, _ in calls() if name in words}
    assert found == {("pdekit/runtime/shards.py", "pickle.loads"), ("studies/cli/audit.py", "torch.load")}
    (load,) = (call for _, name, call in calls() if name == "torch.load")
    assert "weights_only=True" in ast.unparse(load)
    options = [keyword for *_, call in calls() for keyword in call.keywords if keyword.arg in ("allow_pickle", "shell")]
    assert options
    assert all(isinstance(option.value, ast.Constant) and option.value.value is False for option in options)


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sprung),)


def pickled(path: Path, trap: Trap) -> None:
    path.write_bytes(pickle.dumps(trap))


def from_torch(path: Path, trap: Trap) -> None:
    torch.save({"weights": trap}, path)


def in_arrays(path: Path, trap: Trap) -> None:
    names = ("x_train", "y_train", "x_test", "y_test", "meta")
    arrays: dict[str, Any] = dict.fromkeys(names, np.array([trap], dtype=object))
    with path.open("wb") as file:
        np.savez(file, **arrays)


READERS: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
    "load_model": (load_model, CheckpointError),
    "stored_score": (stored_score, CheckpointError),
    "restart file": (lambda path: Checkpoint(path, {}).load(), RestartError),
    "data": (lambda path: data.load("cifar10", data=path), DataError),
    "from_xarray": (lambda path: pdekit.data.from_xarray(path, "u"), ValueError),
    "record": (read_object, InputError),
    "records": (read_objects, InputError),
}


@pytest.mark.parametrize("write", [pickled, from_torch, in_arrays])
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_in_place_of_any_file_is_refused_and_not_unpickled(reader: str, write: Any, tmp_path: Path) -> None:
    read, refuses = READERS[reader]
    path, trap = tmp_path / "hostile.npz", Trap(tmp_path / "sprung")
    write(path, trap)
    with pytest.raises(refuses):
        read(path)
    assert not trap.sprung.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.sprung.exists()  # it would have been


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_official_files_are_known_by_their_digests_before_they_are_read(name: str, tmp_path: Path) -> None:
    """They are pickles: of any others none is opened."""
    source: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder, trap = tmp_path / source.base_folder, Trap(tmp_path / "sprung")
    folder.mkdir()
    for file, digest in [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]:
        assert len(digest) == 32
        pickled(folder / file, trap)
    with pytest.raises(DataError, match=f"does not hold the official {name} files"):
        data.load(name, data=tmp_path)
    assert not trap.sprung.exists()


def test_a_download_is_known_by_its_digest_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(url: str, filename: str | Path, *rest: Any) -> None:
        with tarfile.open(filename, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", hostile)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    folder = tmp_path / "data"
    with pytest.raises(DataError, match="does not hold the official cifar10 files"):
        data.load("cifar10", data=folder, download=True)
    assert [path.name for path in folder.iterdir()] == ["cifar-10-python.tar.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# Claims of size


def test_an_archive_that_would_swell_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netkit.data, "_HARMLESS_BYTES", 2**16)  # to do without a gigabyte
    path = tmp_path / "bomb.npz"
    images = np.zeros((100, 32, 32, 3), np.uint8)
    labels = np.arange(100) % 10
    np.savez_compressed(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.setattr("zipfile.ZipFile.read", lambda *_: pytest.fail("was read"))
    with pytest.raises(DataError, match=r"its arrays would take 6\.\d+e\+05 bytes, a file of its size at most"):
        data.load("cifar10", data=path)


def test_an_array_of_more_than_its_bytes_is_refused(tmp_path: Path, fake_cifar: Callable[..., Path]) -> None:
    """The shape in a header is a claim, too."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)})
    whole = fake_cifar(tmp_path / "whole.npz")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "c.npz", "w") as target:
        for name in source.namelist():
            target.writestr(name, header.getvalue() if name == "x_train.npy" else source.read(name))
    with pytest.raises(DataError, match="holds something other than plain arrays"):
        data.load("cifar10", data=tmp_path / "c.npz")


@pytest.mark.parametrize(
    "hostile", [{"classes": ("<U0", 10**6)}, {"classes": ("|S1", 10**6)}, {"y_train": ("|u1", 10**6)}]
)
def test_an_array_of_small_entries_is_not_spread_out_before_it_fits(
    hostile: dict[str, tuple[str, int]], tmp_path: Path, fake_cifar: Callable[..., Path]
) -> None:
    """A name takes 57 bytes of memory and a label eight, where a compressed file has a thousandth of a byte."""
    whole = fake_cifar(tmp_path / "whole.npz", classes=None)
    ((wrong, (descr, count)),) = hostile.items()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": (count,)})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "c.npz", "w") as target:
        for name in source.namelist():
            if name != f"{wrong}.npy":
                target.writestr(name, source.read(name))
        target.writestr(f"{wrong}.npy", header.getvalue() + bytes(np.dtype(descr).itemsize * count))
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            data.load("cifar10", data=tmp_path / "c.npz")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_weights_that_would_swell_or_have_no_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain, swollen = torch.nn.Linear(2, 2), tmp_path / "plain.pt", tmp_path / "swollen.pt"
    torch.save({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, plain)
    assert not with_weights(model, plain).weight.any()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(swollen, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    torch.save({3: torch.zeros(1)}, plain)
    with pytest.raises(CommandError, match=r"plain\.pt: expected a state_dict, tensors by their names"):
        with_weights(model, plain)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(CommandError, match=r"swollen\.pt: expected tensors as torch\.save writes them, got compressed"):
        with_weights(model, swollen)


def png(width: int, height: int) -> bytes:
    """A picture of that size by its header, and no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 100_000, 2**31 - 1])
def test_a_picture_of_any_number_of_pixels_is_refused(side: int, tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "0.png").write_bytes(png(side, side))
    with pytest.raises(DataError, match=r"cat/0\.png: expected a readable image, got DecompressionBomb") as raised:
        dataset(tmp_path, size=8)
    assert "\n" not in str(raised.value)


def test_a_strip_that_would_grow_is_refused_unresized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of one pixel's width becomes as many times longer as it becomes wider."""
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        Image.new("L", (1, 10**6)).save(tmp_path / kind / "0.png")
    monkeypatch.setattr("torchvision.transforms.v2.functional.resize", lambda *_, **__: pytest.fail("was resized"))
    with pytest.raises(DataError, match=r"cat/0\.png: expected at most 89,478,485 pixels to cover \(32, 32\), got"):
        dataset(tmp_path, size=32)


def test_postscript_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a language, which Pillow leaves to the interpreter `gs`, whatever the file is called."""
    programs, ran = tmp_path / "programs", tmp_path / "ran"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {shlex.quote(str(ran))}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # to be looked for
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        (tmp_path / "photos" / kind / "0.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
        )
    with pytest.raises(DataError, match=r"cat/0\.png: expected a readable image, got UnidentifiedImageError"):
        dataset(tmp_path / "photos")
    assert not ran.exists()


@pytest.mark.parametrize("hollow", ["field", "coordinate"])
def test_a_file_of_kilobytes_that_claims_terabytes_is_refused(hollow: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "u.nc", "w") as file:
        shape = (10**11,) if hollow == "coordinate" else (3, 10**6, 10**6)
        file.create_dataset(
            "x" if hollow == "coordinate" else "u", shape, "f8", chunks=(1,) * (len(shape) - 1) + (1000,)
        )
    assert (tmp_path / "u.nc").stat().st_size < 10_000
    with pytest.raises(
        ValueError, match=r"u\.nc: [xu]: expected at most 1\.07e\+09 bytes at a time in a file of"
    ) as raised:
        pdekit.data.from_xarray(tmp_path / "u.nc", "u")
    assert "\n" not in str(raised.value)


def test_a_solution_that_is_read_whole_may_not_claim_much_in_all(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "u.nc", "w") as file:
        file.create_dataset("u", (10**9, 1000), "f8", chunks=(1, 1000))
    pdekit.data.check_size(tmp_path / "u.nc")  # a frame is small
    with pytest.raises(ValueError, match=r"u\.nc: u: expected at most 1\.07e\+09 bytes at a time"):
        pdekit.data.check_size(tmp_path / "u.nc", by_frame=False)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "1" * 100_000 + "}", '{"a": 1e999999'])
def test_json_of_any_depth_or_length_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    for read in (read_object, read_objects):
        with pytest.raises(InputError, match=r"record\.json, line 1, is damaged") as raised:
            read(tmp_path / "record.json")
        assert len(str(raised.value)) < 300
        assert "\n" not in str(raised.value)


def nested(depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = [tree]
    return tree


@pytest.mark.parametrize(
    "tree",
    [nested(900), {"__tensor__": "absent"}, {"__tensor__": ["no", "name"]}, {"__tensor__": {}}, 3, None],
    ids=["deep", "absent", "list", "mapping", "number", "null"],
)
def test_a_made_up_checkpoint_with_a_right_digest_is_refused(
    tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest finds damage, not malice."""
    path = tmp_path / "run"
    for kind, read in (("training", load_model), ("evaluation", stored_score)):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_detach", lambda *_: tree)
            checkpoint.save(path, {}, kind=kind)
        with pytest.raises(CheckpointError) as raised:
            read(path)
        assert "\n" not in str(raised.value)


def test_a_header_that_claims_to_be_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    (tmp_path / "run").write_bytes(struct.pack("<Q", 2**63) + content[8:])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load_model(tmp_path / "run")


def test_a_digest_of_no_characters_of_a_file_is_refused(tmp_path: Path) -> None:
    """JSON may spell half a pair of UTF-16, which no bytes encode."""
    header = json.dumps({"digest": "\ud800" * 64, "format": checkpoint.FORMAT, "kind": "training", "tree": {}})
    save_file({"a": torch.zeros(3)}, tmp_path / "run", metadata={"itoflow": header.replace("\\ud800", "x")})
    content = (tmp_path / "run").read_bytes()
    size = int.from_bytes(content[:8], "little")
    names = content[8 : 8 + size].replace(b"x" * 64, rb"\\ud800" * 64)
    (tmp_path / "run").write_bytes(struct.pack("<Q", len(names)) + names + content[8 + size :])
    with pytest.raises(CheckpointError, match="is damaged: it has no digest"):
        load_model(tmp_path / "run")


# Names that become files


@pytest.mark.parametrize(
    "options",
    [["--rows", "../../evil"], ["--rows", "ResNet8/../../evil"], ["--columns", "../evil"], ["--dataset", "../evil"],
     ["--preset", "/evil"]],
)  # fmt: skip
def test_names_of_networks_attacks_and_settings_are_no_paths(options: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--smoke", "--out", str(tmp_path / "a" / "out"), *options])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_network_has_a_name_that_leaves_its_folder() -> None:
    for name in ("..", "/etc/passwd", "ResNet20/..", "ResNet20\n", "ResNet20\0", "En1ResNet8&../x"):
        with pytest.raises(ValueError, match="expected"):
            Network.parse(name)


def unchanged(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x


def test_titles_of_own_attacks_become_no_files(tmp_path: Path) -> None:
    digits = data.load("digits", num_test=4)
    model = en_resnet(8, num_members=1, in_channels=1, width=2, seed=0)
    x, y = digits.images(digits.test.x), digits.test.y
    options: dict[str, Any] = {"budget": "quick", "num_draws": 2, "eot_draws": [1], "key": "a name"}
    audit(
        model, x, y, own_attacks=dict.fromkeys(["../../evil", "/evil"], unchanged), store=tmp_path / "store", **options
    )
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert {path.name for path in (tmp_path / "store").iterdir()} >= {"clean", "own-0", "own-1"}


def test_a_file_of_metrics_holds_its_names_as_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a name that ends with"):
        MetricsFile(tmp_path / "run.py")


# What the report shows


def test_the_report_shows_names_and_provenance_as_text(tmp_path: Path) -> None:
    script = "<script>alert('x')</script>"
    stamp = {**made_up_records.STAMP, **dict.fromkeys(("command", "commit", "device", "cpu"), script)}
    stamp |= {"config": {**made_up_records.STAMP["config"], script: script}, "versions": {script: script}}
    found = made_up_records.cifar(seeds=1, n=20)
    hostile = Records(
        [replace_line(line, provenance=stamp) for line in found.trainings],
        [replace_line(line, provenance=stamp, title=f"{line['title']} {script}") for line in found.scores],
    )
    page = render(Results(made_up_records.write(tmp_path, hostile)))
    assert "&lt;script&gt;alert" in page
    assert script not in page
    assert sum(tag == "script" for tag, _ in Elements(page).elements) == page.count("<script") <= 1


def replace_line(line: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return line | changes
