"""The queue: stopped and continued anywhere it ends with the same records, and what goes wrong is said in a line."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from made_up_records import less_where_and_when
from typer.testing import CliRunner, Result

from netkit import checkpoint, load_pretrained, model_card
from studies import publish, reproduce
from studies.lab import records, run
from studies.lab.attacks import ATTACKS
from studies.lab.tasks import Scoring, Task, Training
from studies.paper.queue import ON_REQUEST, tasks_of

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

DIGITS = ["--settings", "digits", "--seeds", "0", "--workers", "1", "--device", "cpu"]


def start(*arguments: str | Path) -> Result:
    return CliRunner().invoke(reproduce.app, [str(argument) for argument in arguments])


def computed(folder: Path) -> list[dict[str, Any]]:
    read = records.read(folder)
    return less_where_and_when([*read.trainings, *read.scores])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder of a run that nothing interrupted, with its results."""
    out = tmp_path_factory.mktemp("whole")
    result = start(*DIGITS, "--out", out, "--results", out / "results")
    assert result.exit_code == 0, result.output
    assert ", 0 failed" in result.output
    return out


def test_a_record_holds_what_every_image_was_answered(whole: Path) -> None:
    found = records.read(whole / "results")
    for score in found.scores:
        assert len(score["correct"]) == score["n"] == 40
        assert max(score["correct"]) <= score["num_draws"]
        assert {"commit", "cpu", "created"} <= score["provenance"].keys()
        assert score["trainings"].items() <= {(line["job"], line["weights"]) for line in found.trainings}
    here = {name for name, row in ATTACKS.items() if row.lacks() is None}
    assert {line["attack"] for line in found.scores if line["network"] == "En2ResNet8"} == here
    assert [len(line["history"]) for line in found.trainings] == [2, 2]
    assert str(whole) not in "".join(path.read_text() for path in (whole / "results").iterdir())


def test_stopped_and_interrupted_it_ends_with_the_same_records(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*DIGITS, "--out", tmp_path, "--results", tmp_path / "results"]
    do = run.do
    with monkeypatch.context() as patch:
        # a clock that jumps past every budget in the middle of the second training
        clock = [0.0]

        def long(task: Task, report: Callable[[int, int], None]) -> str:
            def reported(done: int, total: int) -> None:
                if isinstance(task, Training) and task.network.name == "En2ResNet8" and done == 3:
                    clock[0] = math.inf
                report(done, total)

            return do(task, reported)

        patch.setattr(run, "do", long)
        patch.setattr(run, "time", SimpleNamespace(time=lambda: clock[0], perf_counter=time.perf_counter))
        result = start(*arguments, "--budget", "60")
    assert result.exit_code == 0, result.output
    assert ", 0 failed" in result.output
    assert "train En2ResNet8" not in result.output
    trees = [checkpoint.load(path, kind="training") for path in tmp_path.glob("models/*-En2ResNet8-*.safetensors")]
    assert [(tree["epoch"], tree["step"]) for tree in trees] == [(1, 1)]
    with monkeypatch.context() as patch:
        left = iter(range(4))

        def interrupted(task: Task, report: Callable[[int, int], None]) -> str:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return do(task, report)

        patch.setattr(run, "do", interrupted)
        result = start(*arguments)
    assert result.exit_code == 130
    assert "the same command continues from here" in result.stderr
    result = start(*arguments)
    assert result.exit_code == 0, result.output
    assert "train ResNet8" not in result.output
    assert computed(tmp_path / "results") == computed(whole / "results")


def test_a_dry_run_says_what_is_done_and_does_nothing(whole: Path) -> None:
    before = sorted(whole.rglob("*"))
    for seeds, done in (("0", True), ("1", False)):
        arguments = ["--settings", "digits", "--seeds", seeds, "--device", "cpu", "--rows", "ResNet8", "--out", whole]
        result = start(*arguments, "--dry-run")
        assert result.exit_code == 0, result.output
        lines = [line for line in result.output.splitlines() if "left out" not in line]
        assert len(lines) == (6 if ATTACKS["autoattack"].lacks() else 7)  # one training, its attacks
        assert all(line.startswith(" done  digits" if done else "to do  digits") for line in lines)
    assert sorted(whole.rglob("*")) == before


def test_a_gpu_is_needed_only_where_the_tasks_run(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = [*DIGITS[:4], "--device", "cuda", "--dry-run", "--out", whole]
    here, elsewhere = start(*arguments), start(*arguments, "--slurm", "some")
    assert (here.exit_code, elsewhere.exit_code) == (2, 0)
    assert "--device: expected one of 0 CUDA devices here, got cuda" in here.stderr
    assert " done  digits" in elsewhere.output  # found, and of the same images, whatever the device


def test_the_queue_begins_with_the_core_and_leaves_out_what_is_on_request(tmp_path: Path) -> None:
    stages = reproduce._stages(None, None, None)
    assert stages == list(reproduce.QUEUE)
    assert not {"digits", "cpu-full"} & {stage.setting for stage in stages}
    (only,) = {(stage.rows, stage.seeds) for stage in reproduce._stages("digits", "En2ResNet8", "1,2")}
    assert only == (("En2ResNet8",), (1,))


def test_records_of_other_settings_stay(whole: Path, tmp_path: Path) -> None:
    ours = records.read(whole / "results")
    other = ours.scores[0] | {"job": "aaa", "setting": "another"}
    records.merge(records.Records([], [other, ours.scores[0] | {"vote": 2}]), tmp_path)
    assert start(*DIGITS, "--out", whole, "--results", tmp_path).exit_code == 0
    assert records.read(tmp_path).scores == [other, *ours.scores]


def test_a_task_that_fails_leaves_the_others_alone_and_a_bug_shows_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(task: Task, report: Callable[[int, int], None]) -> str:
        if task.network.name == "ResNet8":
            raise FloatingPointError("training diverged")
        if isinstance(task, Training):
            records.write(task, {"validation": 0.5, "weights": "x", "data": ""})
            return "done"
        return {}["x"]  # type: ignore[no-any-return]

    monkeypatch.setattr(run, "do", failing)
    result = start(*DIGITS, "--out", tmp_path, "--results", tmp_path / "results")
    assert result.exit_code == 1
    assert "train ResNet8, seed 0, lr 0.1: failed, FloatingPointError: training diverged" in result.output
    assert "attack ResNet8" not in result.output
    first, _, bug = result.output.partition("attack En2ResNet8, seed 0, nat: failed, KeyError: 'x'\n")
    assert "Traceback" not in first
    assert bug.startswith("Traceback")
    assert 'return {}["x"]' in bug


def test_autoattack_without_its_library_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = start(*DIGITS, "--rows", "ResNet8", "--dry-run")
    assert "left out: 1 tasks: AutoAttack rand needs pyautoattack" in result.output


@pytest.mark.parametrize("name", ["trainings.jsonl", "scores.jsonl", "outcomes.jsonl"])
def test_damaged_results_are_named_with_their_line(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "results", tmp_path / "results")
    path = tmp_path / "results" / name
    text = path.read_text()
    path.write_text(text[: text.index("\n") + 20])
    result = start(*DIGITS, "--out", whole, "--results", tmp_path / "results")
    assert result.exit_code == 2
    assert f"{path}, line 2, is damaged" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_data_set_that_is_not_here_is_left_out_with_the_reason(
    tmp_path: Path, fake_cifar: Callable[..., Path]
) -> None:
    data = fake_cifar(tmp_path / "cifar10.npz")
    result = start("--settings", "fast-cifar100", "--data", data, "--dry-run")
    assert result.exit_code == 2
    assert "cifar100.npz" in result.output
    assert result.stderr == "error: nothing to do\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--settings", "slow"], "--settings: expected some of "),
        (["--settings", "digits", "--rows", "VGG"], "--rows: expected some of En2ResNet8, ResNet8, got 'VGG'"),
        (["--seeds", "a"], "--seeds: expected numbers separated by commas, got 'a'"),
        (["--budget", "-1"], "--budget: expected at least 0"),
        (["--workers", "0"], "--workers: expected at least 1"),
        (["--data", "subset.npz"], "--data: expected a folder, cifar10.npz or cifar100.npz, got subset.npz"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: list[str], message: str) -> None:
    result = start(*options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = start(*DIGITS)
    assert result.exit_code == 2
    assert "torchrun is for the tables" in result.stderr


def test_a_network_is_published_with_a_card_of_its_records(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    found = {(score["network"], score["attack"]): score for score in records.read(whole / "results").scores}
    clean, draws = found["En2ResNet8", "nat"], found["En2ResNet8", "nat"]["num_draws"]
    for task in tasks_of(ON_REQUEST, data=None, out=out, device="cpu"):
        if isinstance(task, Scoring) and (task.network.name, task.attack, task.seed) == ("En2ResNet8", "nat", 1):
            records.write(task, clean | {"seed": 1, "correct": [draws] * 30 + [0] * 10})
    arguments = ["--settings", "digits", "--rows", "En2ResNet8", "--out", str(out), "--to", str(tmp_path)]
    app = typer.Typer()
    app.command()(publish.main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    share = records.right_answers(clean).mean()
    text = model_card("digits-En2ResNet8", folder=tmp_path)
    assert re.search(rf"\| natural \| {100 * float(share):.1f} \[.*\] \| 75\.0 \| 40 \|", text)  # the other seed's
    assert re.search(r"\| FGSM \| .*\] \|  \| 40 \|", text)  # which has no more
    assert load_pretrained("digits-En2ResNet8", folder=tmp_path).config["members"][1]["noise"]["kind"] == "gaussian"
    missing = CliRunner().invoke(app, [*arguments, "--seed", "2"])
    assert missing.exit_code != 0
    assert "run reproduce.py first" in missing.output
