from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tables
import torch
from jobs import Settings
from rendering import draw
from rich.console import Console
from table2 import TABLE, app
from test_data import fake_cifar
from typer.testing import CliRunner, Result

from netkit import checkpoint
from netkit.evaluate import Score

SMOKE = ["--smoke", "--workers", "1", "--device", "cpu"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # The number of threads can change the last bits; the studies set it from the number of cores.
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        yield
    torch.set_num_threads(before)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def without_clock(path: Path) -> dict[str, Any]:
    stored = json.loads(path.read_text())
    del stored["provenance"], stored["stamps"]
    for row in stored["rows"]:
        for trained in (trained for entry in row["runs"] for trained in entry["networks"]):
            del trained["train_seconds"]
    return stored


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoke")
    result = run(*SMOKE, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_the_smoke_run_stores_numbers_with_their_provenance(smoke: Path) -> None:
    stored = json.loads((smoke / "table2-digits-smoke.json").read_text())
    assert [row["model"] for row in stored["rows"]] == ["ResNet8", "En2ResNet8"]
    assert stored["rows"][1]["paper"] == {"nat": 80.34, "fgsm": 57.23, "ifgsm20": 50.06, "cw": 66.47}
    assert {"config", "versions", "device", "created"} <= stored["provenance"].keys()
    for row in stored["rows"]:
        for cell in row["cells"].values():
            assert cell["n"] == 40
            assert cell["num_seeds"] == 1
            assert cell["interval"][0] <= cell["mean"] <= cell["interval"][1]
    draws = [row["cells"]["nat"]["num_draws"] for row in stored["rows"]]
    assert draws == [1, 2]


def test_a_second_run_trains_and_attacks_nothing(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.glob("*/*")}
    stored = without_clock(smoke / "table2-digits-smoke.json")
    result = run(*SMOKE, "--out", smoke)
    assert "seed 0" not in result.output
    assert {path: path.stat().st_mtime_ns for path in smoke.glob("*/*")} == before
    assert without_clock(smoke / "table2-digits-smoke.json") == stored


def test_other_test_images_reuse_the_trained_models(smoke: Path) -> None:
    result = run(*SMOKE, "--out", smoke, "--num-test", "30", "--rows", "ResNet20", "--no-table")
    assert "attack ResNet8" in result.output
    assert "train ResNet8" not in result.output


def test_the_table_is_drawn_from_its_file_alone(smoke: Path, tmp_path: Path) -> None:
    shutil.copy(smoke / "table2-digits-smoke.json", tmp_path / "copy.json")
    text = io.StringIO()
    draw(tmp_path / "copy.json", Console(width=100, file=text))
    for word in ("En2ResNet8", "(80.3)", "n = 40", "seeds 0", "natural", "CIFAR-10"):
        assert word in text.getvalue()


def test_listed_jobs_are_commands_that_leave_nothing_to_do(smoke: Path, tmp_path: Path) -> None:
    options = [*SMOKE, "--out", str(tmp_path), "--seed", "3", "--num-seeds", "2"]
    listed = subprocess.run(
        [sys.executable, "studies/table2.py", *options, "--list-jobs"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(listed) == 4
    for line in listed:
        words = line.split()
        assert words[:2] == ["python", "studies/table2.py"]
        assert words.count("--seed") == words.count("--workers") == words.count("--rows") == 1
        assert run(*words[2:]).exit_code == 0
    assert not list(tmp_path.glob("*.json"))
    result = run(*options)
    assert "train " not in result.output
    assert (tmp_path / "table2-digits-smoke.json").exists()


def test_a_cifar_file_goes_through_the_same_command(tmp_path: Path) -> None:
    data = fake_cifar(tmp_path / "fake.npz", num_train=20, num_test=10)
    options = ["--dataset", "cifar10", "--data", data, "--preset", "smoke", "--rows", "ResNet20", "--num-train", "20"]
    result = run(*options, "--num-test", "10", "--out", tmp_path, *SMOKE)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "table2-cifar10-smoke.json").read_text())
    assert stored["rows"][0]["num_parameters"] == pytest.approx(0.27e6, rel=0.02)
    assert stored["provenance"]["config"]["training"]["eps"] == 8 / 255


@pytest.mark.slow
def test_a_killed_study_ends_as_an_uninterrupted_one(smoke: Path, tmp_path: Path) -> None:
    command = [sys.executable, "studies/table2.py", "--smoke", "--workers", "2", "--device", "cpu"]
    command += ["--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        while not list(tmp_path.glob("models/*.safetensors")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "table2-digits-smoke.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "attack" in done.stdout

    assert without_clock(tmp_path / "table2-digits-smoke.json") == without_clock(smoke / "table2-digits-smoke.json")
    assert not list(tmp_path.glob("models/*.tmp"))  # what the killed process left is swept up
    for path in tmp_path.glob("models/*.safetensors"):
        ours, theirs = (
            checkpoint.load(folder / "models" / path.name, kind="training")["best"]["weights"]
            for folder in (tmp_path, smoke)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "unknown data set 'mnist'"),
        (["--dataset", "cifar10", "--data", "absent.npz"], "no such data file: absent.npz"),
        (["--preset", "none"], "unknown preset 'none'"),
        (["--rows", "VGG16"], "got 'VGG16'"),
        (["--lr", "0.1,fast"], "expected numbers separated by commas, got '0.1,fast'"),
        (["--lr", "-1"], "lr must be positive and finite, got -1"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--num-train", "1"], "num_train must be at least 2, got 1"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--num-draws", "0"], "num_draws must be at least 1, got 0"),
    ],
)
def test_wrong_input_ends_with_one_line_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(*SMOKE, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_named_and_refused(smoke: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke, tmp_path / "out")
    path = next((tmp_path / "out" / "models").glob("*-ResNet8-*"))
    path.write_bytes(path.read_bytes()[:1000])
    result = run(*SMOKE, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{path} is truncated" in result.stderr


def test_every_row_has_the_papers_numbers_except_the_controls() -> None:
    missing = [row.model for row in TABLE.rows if set(TABLE.paper_values(row)) != set(TABLE.columns)]
    assert missing == ["Plain5ResNet20", "Wide5ResNet20", *TABLE.on_request]
    assert not {row.model for row in tables._chosen_rows(TABLE, "cifar10", None)} & set(TABLE.on_request)
    printed = {row["model"] for row in tables.PAPER["table2"]["rows"]}
    assert printed <= {row.model for row in TABLE.rows}
    assert {name for claim in TABLE.claims for name in (claim.better, claim.worse)} <= {row.model for row in TABLE.rows}


def test_a_table_says_of_each_run_that_it_was_put_together_from_where_it_came() -> None:
    first = {"command": "table2.py --out /home/me/one --lr 0.1", "commit": "a", "versions": {}, "device": "cpu"}
    first |= {"cpu": "x", "config": {"seed": 0}, "created": "2026-01-02"}
    again = first | {"config": {"seed": 1}, "created": "2026-01-01"}
    later = first | {"commit": "b", "created": "2026-01-03"}
    found = tables.origins([later, first, again])
    assert [(stamp["commit"], stamp["created"]) for stamp in found] == [("a", "2026-01-01"), ("b", "2026-01-03")]
    assert {stamp["command"] for stamp in found} == {"table2.py --out one --lr 0.1"}


def test_verdicts_come_from_the_scores_and_turn_where_the_paper_does() -> None:
    y = torch.zeros(200, dtype=torch.long)

    def scores_of(share: float) -> list[Score]:
        return 3 * [Score((torch.arange(200) >= 200 * share).long().unsqueeze(0), y)]

    # The paper's ResNet110 beats En2ResNet110 when both are trained naturally (Table 1)
    natural = dataclasses.replace(TABLE, name="table1", columns=("nat",))
    rows = [tables.Row("ResNet110"), tables.Row("En2ResNet110"), tables.Row("ResNet44"), tables.Row("En2ResNet44")]
    scores = {("ResNet110", "nat"): scores_of(0.9), ("En2ResNet110", "nat"): scores_of(0.6)}
    scores |= {("ResNet44", "nat"): scores_of(0.9), ("En2ResNet44", "nat"): scores_of(0.6)}
    claims = (tables.Claim("En2ResNet110", "ResNet110"), tables.Claim("En2ResNet44", "ResNet44"))
    verdicts = tables.verdicts(dataclasses.replace(natural, claims=claims), rows, "cifar10", scores)  # type: ignore[arg-type]
    assert [(v["better"], v["verdict"]) for v in verdicts] == [("ResNet110", "holds"), ("En2ResNet44", "does not hold")]
    assert verdicts[0]["difference"] == pytest.approx(0.3)
    assert verdicts[0]["paper_difference"] == pytest.approx(94.30 - 93.49)


def test_several_learning_rates_are_tried_and_the_best_on_validation_counts(tmp_path: Path) -> None:
    result = run(*SMOKE, "--out", tmp_path, "--rows", "ResNet20", "--lr", "1e-9,0.4", "--epochs", "16")
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "table2-digits-smoke.json").read_text())
    entry = stored["rows"][0]["runs"][0]["networks"][0]
    values = {
        tree["identity"]["configuration"]["lr"]: tree["best"]["value"]
        for path in tmp_path.glob("models/*")
        for tree in [checkpoint.load(path, kind="training")]
    }
    assert entry["lr"] == max(values, key=lambda lr: values[lr])
    assert len(values) == 2


def test_settings_refuse_what_no_training_can_use() -> None:
    with pytest.raises(ValueError, match="unknown preset"):
        Settings(dataset="digits", preset="none", out=Path("out"))
