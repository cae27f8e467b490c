"""The command line that all tables share, on Table 2 at --smoke size."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_records import less_where_and_when
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner, Result

from netkit import checkpoint
from studies.draw.terminal import draw
from studies.lab import cli, engines, records
from studies.lab.networks import Network
from studies.lab.tasks import Settings, Training
from studies.table2 import app

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--smoke", "--device", "cpu", "--num-train", "64", "--num-test", "20"]
SMOKE = [*SMALL, "--workers", "1"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def the_table_in(folder: Path) -> Any:
    return less_where_and_when(json.loads((folder / "table2-digits-smoke.json").read_text()))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    out = tmp_path_factory.mktemp("smoke")
    result = run(*SMOKE, "--out", out, "--results", out / "results")
    assert result.exit_code == 0, result.output
    assert result.output.count("train ") == 2
    return out


def test_the_smoke_run_stores_numbers_with_their_provenance(smoke: Path) -> None:
    stored = json.loads((smoke / "table2-digits-smoke.json").read_text())
    assert [row["model"] for row in stored["rows"]] == ["ResNet8", "En2ResNet8"]
    assert stored["rows"][1]["paper"] == {"nat": 80.34, "fgsm": 57.23, "ifgsm20": 50.06, "cw": 66.47}
    assert {"config", "versions", "device", "created"} <= stored["provenance"].keys()
    for row in stored["rows"]:
        for cell in row["cells"].values():
            assert (cell["n"], cell["num_seeds"]) == (20, 1)
            assert cell["interval"][0] <= cell["mean"] <= cell["interval"][1]
    assert [row["cells"]["nat"]["num_draws"] for row in stored["rows"]] == [1, 2]
    assert str(smoke) not in json.dumps(stored)


def test_its_records_join_a_folder_of_results(smoke: Path) -> None:
    found = records.read(smoke / "results")
    assert len(found.trainings) == 2
    assert len(found.scores) == 8
    assert {"commit", "cpu", "created"} <= found.scores[0]["provenance"].keys()
    assert str(smoke) not in json.dumps([found.trainings, found.scores])


def test_a_second_run_trains_and_attacks_nothing(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.glob("*/*")}
    stored = the_table_in(smoke)
    result = run(*SMOKE, "--out", smoke)
    assert "seed 0" not in result.output.partition("Table 2")[0]
    assert {path: path.stat().st_mtime_ns for path in smoke.glob("*/*")} == before
    assert the_table_in(smoke) == stored


def test_the_table_is_drawn_from_its_file_alone(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(smoke / "table2-digits-smoke.json", tmp_path / "copy.json")
    draw(tmp_path / "copy.json")
    text = capsys.readouterr().out
    for word in ("En2ResNet8", "(80.3)", "n = 20", "seeds 0", "natural", "CIFAR-10", "too few seeds"):
        assert word in text


def test_other_test_images_reuse_the_trained_models(smoke: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke, tmp_path / "out")
    result = run(*SMOKE, "--out", tmp_path / "out", "--num-test", "10", "--rows", "ResNet20", "--columns", "nat")
    assert result.exit_code == 0, result.output
    assert "attack ResNet8" in result.output
    assert "train ResNet8" not in result.output


def test_a_cifar_file_goes_through_the_same_command_and_another_one_is_refused(
    tmp_path: Path, fake_cifar: Callable[..., Path]
) -> None:
    data = fake_cifar(tmp_path / "fake.npz", num_train=20, num_test=10)
    options = ["--dataset", "cifar10", "--preset", "smoke", "--rows", "ResNet20", "--columns", "nat", "--smoke"]
    options += ["--num-train", "20", "--num-test", "10", "--out", tmp_path / "out", "--workers", "1", "--device", "cpu"]
    result = run(*options, "--data", data)
    assert result.exit_code == 0, result.output
    assert "another task" not in result.output
    stored = json.loads((tmp_path / "out" / "table2-cifar10-smoke.json").read_text())
    assert stored["rows"][0]["num_parameters"] == pytest.approx(0.27e6, rel=0.02)
    assert stored["provenance"]["config"]["training"]["eps"] == 8 / 255
    other = fake_cifar(tmp_path / "other.npz", num_train=20, num_test=10, y_test=torch.arange(1, 11).numpy() % 10)
    result = run(*options, "--data", other)
    assert result.exit_code == 2
    assert "is of other images: other --data need another --out" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_interrupted_and_killed_study_ends_as_an_undisturbed_one(smoke: Path, tmp_path: Path) -> None:
    def written() -> int:
        return len([*tmp_path.glob("models/*.safetensors"), *tmp_path.glob("scores/*.safetensors")])

    command = [sys.executable, "studies/table2.py", *SMALL, "--workers", "2", "--out", str(tmp_path)]
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    options |= {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "start_new_session": True}
    # A background shell hands on SIGINT ignored.
    options["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    ended = {}
    for how in (signal.SIGINT, signal.SIGKILL):
        before = written()
        with subprocess.Popen(command, **options) as process:
            while written() == before:
                assert process.poll() is None
                time.sleep(0.005)
            if how is signal.SIGINT:
                os.killpg(process.pid, how)  # as Ctrl-C in a terminal does
            else:
                process.kill()
            ended[how] = process.communicate()[1], process.returncode
        assert not (tmp_path / "table2-digits-smoke.json").exists()
        if how is signal.SIGINT:
            assert not [path for path in tmp_path.rglob("*") if path.suffix == ".progress" or "stop-" in path.name]
    assert ended[signal.SIGINT] == ("interrupted; the same command continues from here\n", 130)
    assert ended[signal.SIGKILL][1] == -signal.SIGKILL
    done = run(*SMOKE, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "attack" in done.output
    assert the_table_in(tmp_path) == the_table_in(smoke)
    assert not list(tmp_path.glob("*/*.tmp"))  # what the killed process left is swept up
    for path in tmp_path.glob("models/*.safetensors"):
        ours, theirs = (
            checkpoint.load(folder / "models" / path.name, kind="training")["best"]["weights"]
            for folder in (tmp_path, smoke)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@contextlib.contextmanager
def a_scheduler(folder: Path) -> Iterator[list[str]]:
    import distributed

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "local_directory": folder}
    with distributed.LocalCluster(**options) as cluster:
        yield ["--scheduler", cluster.scheduler_address]


@contextlib.contextmanager
def a_partition(folder: Path) -> Iterator[list[str]]:
    """submitit's local executor in the place of SLURM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "slurm", partial(engines.slurm, cluster="local"))
        yield ["--slurm", "any"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [a_scheduler, a_partition])
def test_a_table_is_the_same_wherever_its_tasks_run(engine: Callable[..., Any], smoke: Path, tmp_path: Path) -> None:
    with engine(tmp_path / "engine") as options:
        done = run(*SMALL, *options, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert done.output.count("train ") == 2
    assert the_table_in(tmp_path) == the_table_in(smoke)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "dataset: expected one of digits, cifar10, cifar100, got 'mnist'"),
        (["--dataset", "cifar10", "--data", "absent.npz"], "no such data file: absent.npz"),
        (["--preset", "none"], "got 'none'"),
        (["--rows", "VGG16"], "got 'VGG16'"),
        (["--rows", ","], "--rows: expected values separated by commas, got ','"),
        (["--columns", "nat,square"], "--columns: expected some of nat, fgsm"),
        (["--columns", ","], "--columns: expected values separated by commas"),
        (["--lr", "0.1,fast"], "--lr: expected numbers separated by commas, got '0.1,fast'"),
        (["--lr", "-1"], "lr: expected a positive, finite number, got -1"),
        (["--device", "abacus"], "--device: expected cpu, cuda, cuda:1 or auto, got 'abacus'"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--num-train", "1"], "--num-train: expected at least 2, got 1"),
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["--num-draws", "0"], "--num-draws: expected at least 1, got 0"),
        (["--num-draws", "36"], "num_draws: expected at most 35, got 36"),
        (["--scheduler", "tcp://localhost:1", "--slurm", "x"], "--scheduler, --slurm: expected one of them, got both"),
    ],
)
def test_wrong_input_ends_with_one_line_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(*SMOKE, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models/*-ResNet8-*.safetensors", "is truncated"),
        ("scores/*-ResNet8-*-nat-*.safetensors", "is truncated"),
        ("models/*-ResNet8-*.json", "line 2, is damaged"),
        ("scores/*-ResNet8-*-nat-*.json", "line 2, is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_refused(smoke: Path, tmp_path: Path, name: str, message: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(smoke, out)
    (path,) = out.glob(name)
    if path.suffix == ".safetensors":  # read where there is something left to do
        next(out.glob("scores/*-ResNet8-*-nat-*.json")).unlink()
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.write_text(path.read_text()[:20])
    result = run(*SMOKE, "--out", out)
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_several_learning_rates_are_tried_and_the_best_on_validation_counts(tmp_path: Path) -> None:
    options = ["--rows", "ResNet20", "--columns", "nat", "--lr", "1e-9,0.4", "--epochs", "16", "--num-train", "128"]
    result = run(*SMOKE, "--out", tmp_path, "--results", tmp_path / "results", *options)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "table2-digits-smoke.json").read_text())
    (entry,) = stored["rows"][0]["runs"][0]["networks"]
    values = {
        tree["identity"]["configuration"]["lr"]: tree["best"]["value"]
        for path in tmp_path.glob("models/*.safetensors")
        for tree in [checkpoint.load(path, kind="training")]
    }
    assert entry["lr"] == max(values, key=lambda lr: values[lr])
    assert len(values) == len(set(values.values())) == 2
    found = records.read(tmp_path / "results")
    assert {line["lr"]: line["validation"] for line in found.trainings} == values
    (score,) = found.scores
    assert list(score["trainings"]) == [entry["job"]]


def test_the_bar_of_a_task_goes_with_it_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Kept(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            made.append(self)

    monkeypatch.setattr(cli, "Progress", Kept)
    monkeypatch.setattr(cli, "console", Console(file=io.StringIO(), force_terminal=True))
    settings = Settings("digits", "digits", Path())
    first, second, third = (Training(settings, Network.parse("ResNet8"), seed, 0.1) for seed in range(3))
    with cli.progress() as (report, finished, ended):
        for task in (first, second, third):
            report(task, 1, 2)
        finished(first, "accuracy 50%", 1.0)
        ended(second, "failed, out of memory")
        assert [bar.description for bar in made[0].tasks] == [str(third)]
    assert made[0].live.transient  # what a deadline stops leaves nothing behind either
