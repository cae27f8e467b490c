"""The queue: stopped and continued anywhere it ends with the same results, and what moves is checked."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import numpy as np
import parcels
import pytest
import reproduce
import reproduce_estimate
import reproduce_queue
import reproduce_results
import torch
import workers
from jobs import (
    EvaluateTask,
    Job,
    Settings,
    TrainTask,
    checkpoint_path,
    column_title,
    lacking,
    network,
    network_fingerprint,
    noise_free,
    tasks_for,
)
from reporting import InputError
from reproduce_queue import Stage
from test_data import fake_cifar
from typer.testing import CliRunner, Result

from netkit import checkpoint, data, evaluate
from netkit.training import load_model

DIGITS = ["--settings", "digits", "--seeds", "0", "--workers", "1", "--device", "cpu"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        yield
    torch.set_num_threads(before)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(reproduce.app, [str(argument) for argument in arguments])


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def computed(folder: Path) -> list[dict[str, Any]]:
    """All lines, less what tells where and when."""
    found = lines(folder, "trainings.jsonl") + lines(folder, "scores.jsonl")
    for line in found:
        del line["provenance"]
        for record in line.get("history", []):
            del record["seconds"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted, with its results."""
    out = tmp_path_factory.mktemp("whole")
    result = run(*DIGITS, "--out", out, "--results", out / "results")
    assert result.exit_code == 0, result.output
    return out


def test_a_line_holds_what_every_image_was_answered(whole: Path) -> None:
    scores = lines(whole / "results", "scores.jsonl")
    keys = [(s["setting"], s["dataset"], s["row"], s["attack"], s["seed"]) for s in scores]
    assert keys == sorted(set(keys))
    for score in scores:
        counts = [int(character, 36) for character in score["correct"]]
        assert len(counts) == score["n"] == 40
        assert max(counts) <= score["num_draws"]
        assert score["mean"] == pytest.approx(np.mean(counts) / score["num_draws"])
        assert score["interval"][0] <= score["mean"] <= score["interval"][1]
        assert {"commit", "cpu", "created"} <= score["provenance"].keys()
    of_row = {row: {s["attack"] for s in scores if s["row"] == row} for row in ("ResNet8", "En2ResNet8")}
    assert of_row["ResNet8"] >= {"nat", "fgsm", "ifgsm20", "cw", "pgd20"}
    assert of_row["En2ResNet8"] - of_row["ResNet8"] == {"transfer", "ifgsm20-eot1", "ifgsm20-eot20", "ifgsm20-eot50"}
    trainings = lines(whole / "results", "trainings.jsonl")
    assert [len(line["history"]) for line in trainings] == [2, 2]
    described = json.loads((whole / "results" / "settings.json").read_text())
    assert set(described) == {"digits"}
    assert str(whole) not in json.dumps([scores, trainings, described])


def test_stopped_interrupted_and_moved_it_ends_with_the_same_results(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    with monkeypatch.context() as patch:
        # a clock that jumps past every budget in the middle of the second training
        clock = [0.0]
        run_task = workers.run_task

        def long(task: TrainTask | EvaluateTask, settings: Settings, report: Any) -> str:
            def reported(done: int, total: int) -> None:
                if isinstance(task, TrainTask) and task.model == "En2ResNet8" and done == 3:
                    clock[0] = math.inf
                report(done, total)

            return run_task(task, settings, reported)

        patch.setattr(workers, "run_task", long)
        patch.setattr(workers, "time", SimpleNamespace(time=lambda: clock[0], perf_counter=time.perf_counter))
        result = run(*DIGITS, "--out", first, "--results", first / "results", "--budget", "60")
    assert result.exit_code == 0, result.output
    assert ", 0 failed" in result.output
    assert "train En2ResNet8" not in result.output
    trees = [checkpoint.load(path, kind="training") for path in first.glob("models/*-En2ResNet8-*")]
    assert [(tree["epoch"], tree["step"]) for tree in trees] == [(1, 1)]
    assert run("pack", tmp_path / "parcel", "--out", first).exit_code == 0
    assert run("unpack", tmp_path / "parcel", "--out", second).exit_code == 0
    with monkeypatch.context() as patch:
        written = iter(range(10_000))
        merge = reproduce_results.write_results

        def interrupted(entries: Any, folder: Path) -> None:
            if next(written) == 6:
                raise KeyboardInterrupt
            merge(entries, folder)

        patch.setattr(reproduce, "write_results", interrupted)
        result = run(*DIGITS, "--out", second, "--results", second / "results")
    assert result.exit_code == 130
    assert "the same command continues from here" in result.stderr
    assert run("pack", tmp_path / "parcel", "--out", second).exit_code == 0
    assert run("unpack", tmp_path / "parcel", "--out", third).exit_code == 0
    result = run(*DIGITS, "--out", third, "--results", third / "results")
    assert result.exit_code == 0, result.output
    assert "train ResNet8" not in result.output
    assert computed(third / "results") == computed(whole / "results")


def test_done_work_is_estimated_at_nothing_and_the_rest_by_what_a_pass_takes(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(whole.rglob("*"))
    result = run(*DIGITS, "--out", whole, "--rows", "ResNet8", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.count("done") == (6 if lacking("autoattack") else 7)  # one training, its attacks
    assert "0 minutes in all" in result.output
    monkeypatch.setattr(reproduce_estimate, "seconds_per_gradient", lambda model, settings: 3.0)
    result = run("--settings", "digits", "--seeds", "1", *DIGITS[4:], "--rows", "ResNet8", "--out", whole, "--dry-run")
    estimates = [line.split() for line in result.output.splitlines() if " s " in line]
    seconds = [float(words[0]) for words in estimates]
    assert seconds[:2] == [3 * (2 * 230 * 3 + 26 * (10 + 2 / 3)), 3 * 40 / 3]
    assert [float(words[2]) for words in estimates] == pytest.approx(np.cumsum(seconds) / 60, abs=0.06)
    assert sorted(whole.rglob("*")) == before


def test_a_pass_is_measured_in_training_steps() -> None:
    settings = Settings("digits", "digits", Path("out"), num_train=64, num_test=10)
    started = time.perf_counter()
    seconds = reproduce_estimate.seconds_per_gradient("ResNet8", settings)
    # three of its four steps, two passes each, over 57 images
    assert 0 < seconds * 57 * 2 * 3 < time.perf_counter() - started


def test_estimates_count_the_passes_of_every_job() -> None:
    jobs = {
        str(entry.job): entry.job
        for entry in reproduce_queue.entries_of(
            reproduce._stages("digits", None, "0"), data=None, out=Path(), device="cpu"
        )
    }
    # 256 images: 230 for training with 2 + 1 passes in 2 epochs, 26 for one validation with 10 and two forward
    assert reproduce_estimate.passes(jobs["train ResNet8, seed 0, lr 0.1"]) == pytest.approx(
        2 * 230 * 3 + 26 * (10 + 2 / 3)
    )
    # 40 images: 2 steps of 20 draws, scored twice
    assert reproduce_estimate.passes(jobs["attack En2ResNet8, seed 0, ifgsm20-eot20"]) == pytest.approx(
        40 * (40 + 2 / 3)
    )
    assert reproduce_estimate.passes(jobs["attack ResNet8, seed 0, pgd20"]) == pytest.approx(40 * (5 * 2 + 1 / 3))


def test_listed_jobs_keep_the_device(tmp_path: Path) -> None:
    listed = run(*DIGITS, "--list-jobs", "--out", tmp_path).output.splitlines()
    assert listed
    assert all("--device cpu" in line for line in listed)


def test_listed_jobs_are_the_queue_in_its_order(tmp_path: Path) -> None:
    listed = [shlex.split(line) for line in run("--list-jobs", "--out", tmp_path).output.splitlines()]
    found = [(w[w.index("--settings") + 1], w[w.index("--rows") + 1], w[w.index("--seeds") + 1]) for w in listed]
    assert len(found) == len(set(found))
    core = [("fast", row, seed) for seed in "012" for row in reproduce_queue.CORE]
    assert found[: len(core)] == core
    assert ("fast-cifar100", "En5ResNet20", "2") in found
    assert not {"digits", "cpu-narrow"} & {setting for setting, _, _ in found}


def test_each_stage_names_networks_and_settings_that_exist() -> None:
    for stage in (*reproduce_queue.QUEUE, *reproduce_queue.ON_REQUEST):
        setting = reproduce_queue.SETTINGS[stage.setting]
        settings = Settings(setting.dataset, setting.preset, Path("out"), **{**setting.options, **stage.options})
        assert all(column_title(column, settings) for column in stage.columns)
    assert [stage.setting for stage in reproduce_queue.QUEUE][:1] == ["fast"]


def test_results_of_other_settings_stay(whole: Path, tmp_path: Path) -> None:
    ours = lines(whole / "results", "scores.jsonl")[0]
    other = ours | {"setting": "aaa", "mean": 0.5}
    (tmp_path / "scores.jsonl").write_text(json.dumps(other) + "\n" + json.dumps(ours | {"mean": 2}) + "\n")
    assert run(*DIGITS, "--out", whole, "--results", tmp_path).exit_code == 0
    assert lines(tmp_path, "scores.jsonl") == [other, *lines(whole / "results", "scores.jsonl")]


def test_a_job_that_fails_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_task(task: TrainTask | EvaluateTask, settings: Settings, report: Any) -> str:
        if task.model == "ResNet8":
            raise FloatingPointError("training diverged")
        return "done"

    monkeypatch.setattr(workers, "run_task", run_task)
    result = run(*DIGITS, "--out", tmp_path, "--no-results")
    assert result.exit_code == 1
    assert "train ResNet8, seed 0, lr 0.1: failed, FloatingPointError: training diverged" in result.output
    assert "Traceback" not in result.output
    assert "attack ResNet8" not in result.output
    assert "attack En2ResNet8, seed 0, nat: done" in result.output


def test_autoattack_without_its_library_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run(*DIGITS, "--rows", "ResNet8", "--dry-run")
    assert "left out: 1 jobs: AutoAttack needs pyautoattack" in result.output


def test_a_bug_in_a_job_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_task(task: TrainTask | EvaluateTask, settings: Settings, report: Any) -> str:
        return {}["x"]  # type: ignore[no-any-return]

    monkeypatch.setattr(workers, "run_task", run_task)
    result = run(*DIGITS, "--rows", "ResNet8", "--out", tmp_path, "--no-results")
    assert result.exit_code == 1
    assert "failed, KeyError: 'x'\nTraceback" in result.output
    assert 'return {}["x"]' in result.output


def test_results_of_an_older_definition_or_of_another_network_go(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*DIGITS, "--out", whole, "--results", tmp_path]
    assert run(*arguments).exit_code == 0
    ours = lines(tmp_path, "scores.jsonl")
    strange = ours[0] | {"attack": "gone"}, ours[-1] | {"network": "trained elsewhere"}
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*ours[:-1], *strange)))
    assert run(*arguments, "--rows", "En2ResNet8").exit_code == 0
    left = lines(tmp_path, "scores.jsonl")
    assert [line for line in left if line["row"] == "ResNet8"] == [
        line for line in ours[:-1] if line["row"] == "ResNet8"
    ]
    # more epochs: what is there of the one row must not stand beside what is new of the other
    options = reproduce_queue.SETTINGS["digits"].options
    longer = dataclasses.replace(reproduce_queue.SETTINGS["digits"], options={**options, "epochs": 3})
    monkeypatch.setitem(reproduce_queue.SETTINGS, "digits", longer)
    (tmp_path / "out").mkdir()
    arguments = [*DIGITS, "--out", tmp_path / "out", "--results", tmp_path, "--rows", "ResNet8"]
    assert run(*arguments).exit_code == 0
    for name in ("trainings.jsonl", "scores.jsonl"):
        assert {line["row"] for line in lines(tmp_path, name)} == {"ResNet8"}
    (training,) = lines(tmp_path, "trainings.jsonl")
    assert len(training["history"]) == 3
    assert {line["network"] for line in lines(tmp_path, "scores.jsonl")} == {training["network"]}


def _merge_one(whole: Path, results: Path, index: int) -> None:
    stages = reproduce._stages("digits", None, "0")
    entries = reproduce_queue.entries_of(stages, data=None, out=whole, device="cpu")
    done = [entry for entry in entries if entry.job.is_done()]  # AutoAttack's library may be missing
    reproduce_results.write_results([done[index]], results)


def test_two_runs_into_one_folder_keep_each_others_lines(whole: Path, tmp_path: Path) -> None:
    count = 10
    with ThreadPoolExecutor(count) as pool:  # a lock of the folder holds between threads, too
        list(pool.map(lambda index: _merge_one(whole, tmp_path, index), range(count)))
    assert len(lines(tmp_path, "scores.jsonl") + lines(tmp_path, "trainings.jsonl")) == count


@pytest.mark.parametrize(("name", "where"), [("scores.jsonl", "line 2,"), ("settings.json", "line ")])
def test_damaged_results_are_named_with_their_line(whole: Path, tmp_path: Path, name: str, where: str) -> None:
    for path in (whole / "results").iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text[: text.index("\n") + 100] if name == "scores.jsonl" else text[:-10])
    result = run(*DIGITS, "--out", whole, "--results", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path / name}, {where}" in result.stderr
    assert "is damaged" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_data_set_that_is_not_here_is_left_out_with_the_reason(tmp_path: Path) -> None:
    fake_cifar(tmp_path / "cifar10.npz")
    result = run("--settings", "fast-cifar100", "--data", tmp_path / "cifar10.npz", "--dry-run")
    assert result.exit_code == 2
    assert "cifar100.npz" in result.output
    assert result.stderr == "error: nothing to do\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--settings", "slow"], "unknown setting 'slow'"),
        (["--settings", "digits", "--rows", "VGG"], "no stage has the row 'VGG'"),
        (["--seeds", "a"], "expected seeds separated by commas"),
        (["--budget", "-1"], "budget must be at least 0"),
        (["--data", "subset.npz"], "expected --data to be a folder, cifar10.npz or cifar100.npz, got subset.npz"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: list[str], message: str) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run(*DIGITS)
    assert result.exit_code == 2
    assert "torchrun is for the tables" in result.stderr


def test_a_noise_free_twin_answers_as_the_network_without_its_noise() -> None:
    model = network("En2ResNet8", Settings("digits", "digits", Path("out")), 0).eval()
    twin = noise_free(model)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.noise_off():
        torch.testing.assert_close(twin(x), model(x))
    assert evaluate.is_random(model, x)
    assert not evaluate.is_random(twin, x)


def test_names_of_files_stay_what_they_were() -> None:
    settings = Settings("digits", "digits", Path("out"), learning_rates=(0.05, 0.1, 0.2))
    *trainings, attack = tasks_for(settings, "En2ResNet8", 0, ["cw"], loss="pgd")
    hashes = [Job(task, settings).path.stem.rsplit("-", 1)[1] for task in (*trainings, attack)]
    # a change of these means that networks trained before it are trained again
    assert hashes == ["585e4e2a9d", "c2afba3188", "e118fa42b2", "fc53daee02"]


def test_a_narrow_network_has_the_width_it_is_asked_for(tmp_path: Path) -> None:
    source = fake_cifar(tmp_path / "cifar10.npz")
    settings = Settings("cifar10", "one-step", tmp_path, source, width=8)
    assert [member["width"] for member in network("En2ResNet20", settings, 0).config["members"]] == [8, 8]
    assert checkpoint_path(TrainTask("ResNet20", 0, 0.2), settings) != checkpoint_path(
        TrainTask("ResNet20", 0, 0.2), Settings("cifar10", "one-step", tmp_path, source)
    )


# Networks that are trained anew


def train_anew(path: Path) -> str:
    """Give the checkpoint `path` the bits of another machine, and return the new network's fingerprint."""
    tree = checkpoint.load(path, kind="training")
    tree["best"]["weights"]["members.0.fc.bias"] += 0.5
    checkpoint.save(path, tree, kind="training")
    return network_fingerprint(load_model(path))


def scored_networks(out: Path, row: str) -> set[str]:
    found = [checkpoint.load(path, kind="evaluation") for path in out.glob(f"evaluations/*-{row}-*.safetensors")]
    return {tree["identity"]["model"] for tree in found}


def test_attacks_are_repeated_where_a_network_is_another(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    network = train_anew(next((tmp_path / "out" / "models").glob("*-ResNet8-*.safetensors")))
    half = next((tmp_path / "out" / "evaluations").glob("*-ResNet8-*-nat-*.safetensors"))
    checkpoint.save(half, checkpoint.load(half, kind="evaluation") | {"num_blocks": 2}, kind="evaluation")
    result = run(*DIGITS, "--out", tmp_path / "out", "--results", tmp_path / "results")
    assert result.exit_code == 0, result.output
    repeated = [line for line in result.output.splitlines() if "seed 0" in line]
    assert len(repeated) == len(list(whole.glob("evaluations/*-ResNet8-*.safetensors")))
    assert all(line.startswith("attack ResNet8") for line in repeated)
    assert scored_networks(tmp_path / "out", "ResNet8") == {network}
    assert scored_networks(tmp_path / "out", "En2ResNet8") == scored_networks(whole, "En2ResNet8")


@pytest.mark.parametrize("is_another", [False, True])
def test_a_network_trained_again_is_attacked_again_only_if_it_is_another(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_another: bool
) -> None:
    run_task = workers.run_task

    def elsewhere(task: TrainTask | EvaluateTask, settings: Settings, report: Any) -> str:
        outcome = run_task(task, settings, report)
        if isinstance(task, TrainTask) and is_another:
            train_anew(checkpoint_path(task, settings))
        return outcome

    monkeypatch.setattr(workers, "run_task", elsewhere)
    shutil.copytree(whole, tmp_path / "out")
    next((tmp_path / "out" / "models").glob("*-ResNet8-*.safetensors")).unlink()
    next((tmp_path / "out" / "evaluations").glob("*-ResNet8-*-nat-*.safetensors")).unlink()
    result = run(*DIGITS, "--out", tmp_path / "out", "--results", tmp_path / "out" / "results")
    assert result.exit_code == 0, result.output
    assert result.output.count("train ResNet8") == 1
    attacks = len(list(whole.glob("evaluations/*-ResNet8-*.safetensors")))
    assert result.output.count("attack ResNet8") == (attacks if is_another else 1)
    assert len(scored_networks(tmp_path / "out", "ResNet8")) == 1
    (training,) = (s for s in lines(tmp_path / "out" / "results", "trainings.jsonl") if s["row"] == "ResNet8")
    scores = [s for s in lines(tmp_path / "out" / "results", "scores.jsonl") if s["row"] == "ResNet8"]
    assert {s["network"] for s in scores} == {training["network"]} == scored_networks(tmp_path / "out", "ResNet8")


def test_a_network_left_out_of_a_parcel_is_not_trained_for_nothing(whole: Path, tmp_path: Path) -> None:
    assert len(parcels.pack(whole, tmp_path / "parcel", max_files=2, max_bytes=600_000)) >= 1
    parcels.unpack(tmp_path / "parcel", tmp_path / "out")
    result = run(*DIGITS, "--out", tmp_path / "out", "--results", tmp_path / "out" / "results")
    assert result.exit_code == 0, result.output
    assert "seed 0" not in result.output
    assert lines(tmp_path / "out" / "results", "scores.jsonl") == lines(whole / "results", "scores.jsonl")


# Several processes


def work_by_the_step(connection: Connection, device: str, num_threads: int, deadline: float) -> None:
    """A worker whose clock shows how often its jobs have reported."""
    clock = itertools.count()
    workers.time = SimpleNamespace(time=lambda: next(clock), monotonic=time.monotonic)  # type: ignore[assignment]
    workers._work(connection, device, num_threads, deadline)


@pytest.mark.slow
def test_a_deadline_stops_all_workers_with_their_state_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("digits", "digits", tmp_path, epochs=10, num_train=256, num_test=4, attack_steps=1)
    jobs = [
        Job(task, settings) for seed in (0, 1) for task in tasks_for(settings, "ResNet8", seed, ["nat"], loss="pgd")
    ]
    monkeypatch.setattr(workers, "_work", work_by_the_step)
    monkeypatch.setattr(workers, "time", SimpleNamespace(time=lambda: 0, perf_counter=time.perf_counter))
    ended: list[Any] = []
    workers.run_all(
        jobs,
        device="cpu",
        num_workers=2,
        num_threads=1,
        report=lambda *_: None,
        finished=lambda *done: ended.append(done),
        failed=lambda *failed: ended.append(failed),
        deadline=5,
    )
    assert ended == []
    trees = [checkpoint.load(path, kind="training") for path in tmp_path.glob("models/*.safetensors")]
    assert [(tree["epoch"], tree["step"]) for tree in trees] == [(2, 1), (2, 1)]  # five steps, two to an epoch


@pytest.mark.slow
def test_a_killed_worker_costs_its_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("digits", "digits", tmp_path, epochs=1, num_train=20, num_test=4, attack_steps=1)
    first, second, third = (tasks_for(settings, "ResNet8", seed, ["nat"], loss="pgd") for seed in range(3))
    jobs = [Job(task, settings) for task in (*first, *second, *third)]
    doomed = {jobs[0], jobs[2]}
    start = workers._Worker.start

    def start_and_kill(worker: workers._Worker, job: Job) -> None:
        start(worker, job)
        if job in doomed:
            os.kill(worker.process.pid or 0, signal.SIGKILL)

    monkeypatch.setattr(workers._Worker, "start", start_and_kill)
    done: list[Job] = []
    failed: dict[Job, Exception] = {}
    common: dict[str, Any] = {"device": "cpu", "num_workers": 2, "num_threads": 1, "report": lambda *_: None}
    workers.run_all(jobs, **common, finished=lambda job, *_: done.append(job), failed=failed.__setitem__)
    assert failed.keys() == doomed
    assert all(isinstance(error, workers.WorkerDied) for error in failed.values())
    assert done == jobs[4:]
    with pytest.raises(workers.WorkerDied, match="the process that was to train ResNet8"):
        workers.run_all(jobs, **common, finished=lambda *_: None)


@pytest.mark.parametrize(("device", "num_processes"), [("cuda", 2), ("cpu", 1)])
def test_a_process_with_a_broken_gpu_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, num_processes: int
) -> None:
    """After an error of CUDA every other call in that process fails as well."""
    made: list[Any] = []

    class Process:
        def __init__(self, *_: Any) -> None:
            self.connection, self.theirs = Pipe()
            self.process, self.job, self.started = self, None, 0.0
            made.append(self)

        def start(self, job: Job) -> None:
            self.job = job
            self.theirs.send(None)

        def answer(self) -> tuple[Any, ...]:
            self.connection.recv()
            self.job = None
            return ("failed", torch.OutOfMemoryError("no memory")) if failed == [] else ("done", "as it should be")

        def terminate(self) -> None:
            pass

        def end(self) -> None:
            self.connection.close()
            self.theirs.close()

    failed: list[Job] = []
    finished: list[Job] = []
    monkeypatch.setattr(workers, "_Worker", Process)
    settings = Settings("digits", "digits", tmp_path, num_train=30)
    listed = [Job(TrainTask("ResNet8", seed, 0.1), settings) for seed in range(3)]
    queue = workers._Queue(list(listed), {job.path for job in listed}, float("inf"))
    workers._run_in_processes(
        queue,
        device,
        1,
        1,
        lambda *_: None,
        lambda job, outcome, seconds: finished.append(job),
        lambda job, error: failed.append(job),
    )
    assert (failed, finished) == (listed[:1], listed[1:])
    assert len(made) == num_processes


# Devices


def test_a_process_reads_a_data_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def loaded(name: str, **options: Any) -> data.Dataset:
        read.append(name)
        return data.load(name, **options)

    monkeypatch.setattr(jobs, "_load", lru_cache(loaded))
    for num_test in (None, 7, 5, None):
        settings = Settings("digits", "digits", tmp_path, num_train=30, num_test=num_test)
        expected = data.load("digits", num_train=30, num_test=num_test)
        found = jobs.load_data(settings)
        assert found.fingerprint() == expected.fingerprint()
        assert len(found.test) == len(expected.test)
    assert read == ["digits"]


@pytest.mark.cuda
def test_the_queue_works_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("digits", ("En2ResNet8",), ("nat", "cw", "transfer"), (0,), {"num_test": 4})
    for module in (reproduce, reproduce_queue, reproduce_results):
        monkeypatch.setattr(module, "ON_REQUEST", (stage,))
    monkeypatch.setitem(reproduce_queue.SETTINGS["digits"].options, "num_train", 30)  # type: ignore[arg-type]
    options = ["--settings", "digits", "--workers", "1", "--device", "cuda", "--out", tmp_path]
    result = run(*options, "--results", tmp_path / "lines", "--dry-run")
    assert result.exit_code == 0, result.output
    result = run(*options, "--results", tmp_path / "lines")
    assert result.exit_code == 0, result.output
    assert "4 of 4 jobs done, 0 failed" in result.output
    assert "cuda (" in (tmp_path / "lines" / "settings.json").read_text()


# Parcels


@pytest.fixture
def parcel(tmp_path: Path) -> tuple[Path, Path]:
    """An output folder of a large and some small files, and a parcel of it in parts of 1,000 bytes."""
    out, folder = tmp_path / "out", tmp_path / "parcel"
    rng = np.random.default_rng(0)
    for name, size in (("models/w.weights.json", 3_500), ("evaluations/b.json", 10), ("evaluations/c.json", 0)):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(rng.bytes(size))
    (out / "models" / "w.safetensors.1.tmp").write_bytes(b"half a file")
    assert parcels.pack(out, folder, max_bytes=1_000) == []
    return out, folder


def test_parts_are_small_and_bring_every_byte_back(parcel: tuple[Path, Path], tmp_path: Path) -> None:
    out, folder = parcel
    assert [path.stat().st_size for path in sorted(folder.glob("part-*"))] == [1_000, 1_000, 1_000, 510]
    there = tmp_path / "there"
    assert len(parcels.unpack(folder, there)) == 3
    assert parcels.unpack(folder, there) == []
    for path in there.rglob("*.json"):
        assert path.read_bytes() == (out / path.relative_to(there)).read_bytes()
    assert not list(there.rglob("*.tmp"))


def test_a_second_parcel_takes_the_place_of_the_first(parcel: tuple[Path, Path], tmp_path: Path) -> None:
    out, folder = parcel
    (out / "evaluations" / "b.json").write_bytes(b"more")
    (out / "models" / "w.weights.json").unlink()
    parcels.pack(out, folder, max_bytes=1_000)
    assert len(list(folder.iterdir())) == 2
    assert len(parcels.unpack(folder, tmp_path / "there")) == 2


def test_missing_damaged_and_foreign_parcels_are_refused(parcel: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = parcel
    part = sorted(folder.glob("part-*"))[1]
    content = part.read_bytes()
    there = tmp_path / "there"
    for damaged, message in ((b"\0" + content[1:], "is damaged"), (content[:-1], "is damaged: 999 of 1000 bytes")):
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            parcels.unpack(folder, there)
    part.unlink()
    with pytest.raises(InputError, match=f"{part.name} is missing"):
        parcels.unpack(folder, there)
    part.write_bytes(content)
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace("evaluations/b.json", "../b.json"))
    with pytest.raises(InputError, match="outside the output folder"):
        parcels.unpack(folder, there)
    manifest.write_text(whole[:-20])
    with pytest.raises(InputError, match="no manifest of a parcel"):
        parcels.unpack(folder, there)
    manifest.write_text(whole.replace('"bytes"', '"size"', 1))
    with pytest.raises(InputError, match="no manifest of a parcel"):
        parcels.unpack(folder, there)
    manifest.unlink()
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        parcels.unpack(folder, there)
    assert not there.exists()
    with pytest.raises(InputError, match="holds no checkpoints or predictions"):
        parcels.pack(there, folder)


def test_what_is_there_and_differs_is_not_overwritten_unasked(parcel: tuple[Path, Path]) -> None:
    out, folder = parcel
    changed = out / "evaluations" / "b.json"
    packed = changed.read_bytes()
    changed.write_bytes(b"further on")
    with pytest.raises(InputError, match=r"b\.json is there already and differs \(1 such\)"):
        parcels.unpack(folder, out)
    assert changed.read_bytes() == b"further on"
    assert parcels.unpack(folder, out, replace=True) == [changed]
    assert changed.read_bytes() == packed


def test_where_not_all_fits_finished_networks_stay_behind(whole: Path, tmp_path: Path) -> None:
    size = max(path.stat().st_size for path in whole.glob("models/*"))
    left_out = parcels.pack(whole, tmp_path / "parcel", max_files=2, max_bytes=size + 120_000)
    assert len(list((tmp_path / "parcel").iterdir())) == 2
    assert 1 <= len(left_out) < 2 + len(list(whole.glob("models/*")))
    assert {path.parent.name for path in left_out} == {"models"}
    # a training under way goes before all that are finished, however old
    shutil.copytree(whole, tmp_path / "out")
    under_way, other = (next((tmp_path / "out" / "models").glob(f"*-{row}-*")) for row in ("En2ResNet8", "ResNet8"))
    checkpoint.save(under_way, checkpoint.load(under_way, kind="training") | {"epoch": 1}, kind="training")
    os.utime(under_way, (0, 0))
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*/*") if path != other]
    left_out = parcels.pack(tmp_path / "out", tmp_path / "parcel", max_files=2, max_bytes=sum(sizes))
    assert left_out == [other]
    with pytest.raises(InputError, match="not one file fits"):
        parcels.pack(whole, tmp_path / "parcel", max_files=2, max_bytes=10)
