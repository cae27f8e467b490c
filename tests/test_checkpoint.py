from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from netkit import checkpoint, evaluate, models
from netkit.checkpoint import CheckpointError
from studies.certificate.mutations import survivors


def leaves(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return ("tensor", tree.dtype, tuple(tree.shape), tree.tolist())
    if isinstance(tree, dict):
        return {key: leaves(value) for key, value in tree.items()}
    return [leaves(value) for value in tree] if isinstance(tree, list) else tree


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tree = {
        "floats": [0.1, 1e-300, float("inf"), -0.0],
        "nested": {"none": None, "yes": True, "text": "σ"},
        "tensors": [shared, shared.T, shared[0], torch.tensor(3), torch.empty(0, dtype=torch.uint8)],
        "strided": torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    checkpoint.save(tmp_path / "new" / "file", tree, kind="test")
    assert leaves(checkpoint.load(tmp_path / "new" / "file", kind="test")) == leaves(tree)


def test_equal_trees_are_equal_bytes(tmp_path: Path) -> None:
    contents = set()
    for name in "abcdef":
        checkpoint.save(tmp_path / name, {"b": torch.ones(2), "a": torch.zeros(3), "c": 1}, kind="test")
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1


def test_a_tree_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected tensors and JSON values, got set"):
        checkpoint.save(tmp_path / "file", {"a": {1}}, kind="test")
    with pytest.raises(TypeError, match="expected keys that are strings, got 1"):
        checkpoint.save(tmp_path / "file", {"a": {1: 2}}, kind="test")


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected one tensor under each name, got two at 'a/b'"):
        checkpoint.save(tmp_path / "file", {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}, kind="test")
    with pytest.raises(TypeError, match="expected keys other than '__tensor__'"):
        checkpoint.save(tmp_path / "file", {"a": {"__tensor__": 1}}, kind="test")


def test_every_truncation_and_every_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.save(path, {"weights": torch.rand(20), "rate": 0.1, "seed": 10}, kind="test")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            checkpoint.load(path, kind="test")
    for place, flip in zip(range(len(content)), itertools.cycle([0x01, 0x20, 0x80, 0xFF]), strict=False):
        damaged = bytearray(content)
        damaged[place] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.load(path, kind="test")
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="truncated or damaged: its content does not match its digest"):
        checkpoint.load(path, kind="test")


def test_no_damaged_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tree = {
        "identity": {"depth": 20, "lr": 0.1},
        "weights": [torch.rand(30, 4), torch.rand(3).bfloat16()],
        "best": None,
    }
    checkpoint.save(path, tree, kind="test")
    read = survivors(path, 400, seed=0, read=lambda: checkpoint.load(path, kind="test"), refuses=CheckpointError)
    assert list(read) == []


def test_any_safetensors_reader_reads_the_weights(tmp_path: Path) -> None:
    weights = torch.rand(3, 4)
    checkpoint.save(tmp_path / "file", {"model": {"weights": weights}}, kind="test")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "file")["model/weights"], weights)


def test_foreign_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        checkpoint.load(path, kind="test")
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(path, kind="test")
    safetensors.torch.save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="but not a checkpoint of this package"):
        checkpoint.load(path, kind="test")
    safetensors.torch.save_file({}, path, metadata={"itoflow": '{"format": 1, "kind": "test", "tree": {}}'})
    with pytest.raises(CheckpointError, match="expected format 2, got 1: it was written by another version"):
        checkpoint.load(path, kind="test")
    checkpoint.save(path, {}, kind="evaluation")
    with pytest.raises(CheckpointError, match="expected 'training', got 'evaluation'"):
        checkpoint.load(path, kind="training")


def test_a_failing_write_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    checkpoint.save(path, {"value": 1}, kind="test")

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, {"value": 2}, kind="test")
    monkeypatch.undo()
    assert checkpoint.load(path, kind="test") == {"value": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_require_names_every_difference() -> None:
    found, expected = {"depth": 20, "width": 16, "extra": 1}, {"depth": 8, "width": 16}
    message = "file belongs to another model: depth=20 where 8 is asked for, extra=1 where None is asked for"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.require(Path("file"), "model", found, expected)
    checkpoint.require(Path("file"), "model", {"milestones": [1, 2]}, {"milestones": (1, 2)})


def test_an_optimizer_continues_from_its_tree(tmp_path: Path) -> None:
    def steps(optimizer: torch.optim.Optimizer, weight: torch.Tensor, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()

    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
    steps(optimizer, weight, 3)
    checkpoint.save(
        tmp_path / "file", {"weight": weight, "optimizer": checkpoint.optimizer_tree(optimizer)}, kind="test"
    )
    steps(optimizer, weight, 3)

    tree = checkpoint.load(tmp_path / "file", kind="test")
    resumed = tree["weight"].requires_grad_()
    second = torch.optim.SGD([resumed], lr=0.5)
    checkpoint.load_optimizer_tree(second, tree["optimizer"])
    steps(second, resumed, 3)
    assert torch.equal(resumed, weight)


def test_the_fingerprint_sees_values_shapes_and_types() -> None:
    a = torch.zeros(4)
    prints = [checkpoint.fingerprint([t]) for t in (a, a.view(2, 2), a.int(), a + 1)]
    assert len(set(prints)) == 4
    halves = [checkpoint.fingerprint([t.bfloat16()]) for t in (a, a + 1)]
    assert halves[0] != halves[1]
    assert checkpoint.fingerprint([a]) == checkpoint.fingerprint([torch.zeros(4)])


def test_en2resnet20_with_optimizer_and_best_weights_stays_under_eight_megabytes(tmp_path: Path) -> None:
    model = models.from_name("En2ResNet20", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    tree = {
        "weights": model.state_dict(),
        "optimizer": checkpoint.optimizer_tree(optimizer),
        "best": model.state_dict(),
        "generators": {"noise": torch.Generator().get_state(), "attack": torch.Generator().get_state()},
    }
    checkpoint.save(tmp_path / "file", tree, kind="training")
    assert len(tree["optimizer"]["state"]) == len(list(model.parameters()))
    assert (tmp_path / "file").stat().st_size < 8e6


def test_a_whole_file_that_holds_no_predictions_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    whole = {"identity": {}, "labels": torch.zeros(2), "num_blocks": 1, "blocks": {"0": torch.zeros(1, 2)}}
    checkpoint.save(store, whole, kind="evaluation")
    assert evaluate.stored_score(store) is not None
    for change in ({"blocks": {"1": torch.zeros(1, 2)}}, {"blocks": None}, {"labels": 3}):
        checkpoint.save(store, {**whole, **change}, kind="evaluation")
        with pytest.raises(CheckpointError, match="lacks a part that it should hold"):
            evaluate.stored_score(store)
