"""Figures 5 and 6, and all tables, at --smoke size over one folder of networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from netkit import checkpoint
from netkit.training import load_model
from studies import fig5_training_curves, fig6_adversarial_images, table
from studies.lab import records
from studies.lab.networks import Network, on_dataset
from studies.lab.tasks import Scoring, Settings, Weights, tasks_for
from studies.lab.work import trained_model
from studies.paper.tables import TABLES

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

FIGURES = {"fig5": fig5_training_curves.app, "fig6": fig6_adversarial_images.app}
SMOKE = ["--smoke", "--workers", "1", "--device", "cpu", "--num-train", "64", "--num-test", "20"]


def run(name: str, *arguments: str | Path) -> Result:
    words = [] if name in FIGURES else [name.removeprefix("table")]
    return CliRunner().invoke(FIGURES.get(name, table.app), [*words, *map(str, arguments)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Path, dict[str, Result]]:
    out = tmp_path_factory.mktemp("tables")
    return out, {name: run(name, *SMOKE, "--out", out) for name in [*TABLES, *FIGURES]}


def stored(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"{name}-digits-smoke.json").read_text())
    return content


@pytest.mark.parametrize("name", TABLES)
def test_a_table_runs_and_stores_the_papers_numbers_beside_ours(name: str, runs: Any) -> None:
    out, results = runs
    assert results[name].exit_code == 0, results[name].output
    declared, found = TABLES[name], stored(out, name)
    assert [row["model"] for row in found["rows"]] == [on_dataset(label, "digits") for label in declared.smoke]
    for row in found["rows"]:
        assert set(row["cells"]) == set(declared.attacks)
        assert all(cell["n"] == 20 for cell in row["cells"].values())
    assert any(row["paper"] for row in found["rows"])
    assert found["title"] in results[name].output


def test_no_network_is_trained_twice(runs: Any) -> None:
    _, results = runs
    lines = [line for result in results.values() for line in result.output.splitlines() if line.startswith("train ")]
    trained = [line.split(":")[0] for line in lines]
    assert len(trained) == len(set(trained))
    assert "train En5ResNet8, seed 0, lr 0.1" in trained  # tables 3 and 7


def test_blind_attacks_are_stored_with_both_networks(runs: Any) -> None:
    out, results = runs
    row = stored(out, "table3")["rows"][0]
    assert (row["model"], row["oracle"]) == ("ResNet8", "En5ResNet8")
    (score,) = [
        path
        for path in out.glob("scores/digits-ResNet8-*-fgsm-*.json")
        if json.loads(path.read_text())["oracle"] == "En5ResNet8"
    ]
    networks = [name.split("-")[1] for name in json.loads(score.read_text())["trainings"]]
    assert networks == ["ResNet8", "En5ResNet8"]
    assert "attack ResNet8 through En5ResNet8, seed 0, fgsm" in results["table3"].output
    assert [network["network"] for network in row["runs"][0]["networks"]] == ["ResNet8", "En5ResNet8"]


SETTINGS: dict[str, Any] = {"epochs": 1, "num_train": 64, "num_test": 20, "attack_steps": 2, "eot_draws": 2}


def model_of(out: Path, name: str, weights: Weights = "equal") -> torch.nn.Module:
    settings = Settings("digits", "digits", out, num_draws=2, **SETTINGS)
    task = tasks_for(settings, Network.parse(name), 0, ["nat"], loss="pgd", weights=weights)[-1]
    assert isinstance(task, Scoring)
    return trained_model(task, task.network)


def test_networks_trained_apart_are_averaged(runs: Any) -> None:
    out, _ = runs
    row = stored(out, "section4_4")["rows"][2]
    assert row["model"] == "ResNet8+ResNet8"
    networks = row["runs"][0]["networks"]
    assert [network["seed"] for network in networks] == [0, 1000]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        joined = model_of(out, "ResNet8+ResNet8")(x)
        parts = [load_model(out / "models" / f"{network['job']}.safetensors")(x) for network in networks]
    torch.testing.assert_close(joined, sum(parts) / 2)
    assert not torch.allclose(parts[0], parts[1])


def test_learned_weights_are_stored_used_and_sum_to_one(runs: Any) -> None:
    out, _ = runs
    rows = stored(out, "table9")["rows"]
    found = [row["runs"][0]["networks"][0]["member_weights"] for row in rows]
    learned, optimal = found[0]["learned"], found[1]["optimal"]
    for weights in (learned, optimal):
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
        assert weights != [0.5, 0.5]
    assert found[1]["equal"] == [0.5, 0.5]
    name = on_dataset(rows[0]["paper_model"], "digits")
    choices: dict[Weights, list[float]] = {"learned": learned, "optimal": optimal, "equal": [0.5, 0.5]}
    for choice, expected in choices.items():
        weights_used: Any = model_of(out, name, choice).weights
        assert weights_used.tolist() == pytest.approx(expected)


def test_natural_and_robust_training_stand_side_by_side(runs: Any) -> None:
    out, _ = runs
    natural, robust = stored(out, "section4_4")["rows"][:2]
    assert (natural["model"], natural["loss"]) == ("En1ResNet8 (natural)", "natural")
    assert (robust["model"], robust["loss"]) == ("En1ResNet8", "pgd")
    assert natural["runs"][0]["networks"][0]["job"] != robust["runs"][0]["networks"][0]["job"]
    assert natural["paper"] == {"ifgsm20": 0.0}
    verdicts = stored(out, "section4_4")["verdicts"]
    assert [(v["better"], v["worse"], v["column"]) for v in verdicts] == [
        ("En1ResNet8", "En1ResNet8 (natural)", "ifgsm20")
    ]


def test_cifar100_goes_through_the_same_command(tmp_path: Path, fake_cifar: Callable[..., Path]) -> None:
    data = fake_cifar(tmp_path / "fake.npz", num_train=20, num_test=10)
    options = ["--dataset", "cifar100", "--data", data, "--preset", "smoke", "--rows", "ResNet20"]
    result = run("table4", *SMOKE, *options, "--num-train", "20", "--num-test", "10", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "another task" not in result.output
    found = json.loads((tmp_path / "table4-cifar100-smoke.json").read_text())
    assert found["rows"][0]["paper"] == {"nat": 68.53}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("table7", ["--rows", "ResNet20+VGG16"], "got 'VGG16'"),
        ("fig5", ["--columns", "nat"], "--columns: expected none for Figure 5, which attacks nothing, got 'nat'"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(
    name: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = run(name, *SMOKE, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_training_curves_are_drawn_from_stored_histories(runs: Any) -> None:
    out, results = runs
    assert results["fig5"].exit_code == 0, results["fig5"].output
    assert "attack " not in results["fig5"].output
    rows = stored(out, "fig5")["rows"]
    assert [row["model"] for row in rows] == ["ResNet8", "En2ResNet8"]
    (record,) = rows[0]["runs"][0]["networks"][0]["history"]
    assert {"accuracy", "val_natural", "val_robust"} <= record.keys()
    assert (out / "fig5-digits-smoke.pdf").exists()
    before = (out / "fig5-digits-smoke.png").read_bytes()
    assert len(before) > 20_000
    (out / "fig5-digits-smoke.png").unlink()
    fig5_training_curves.draw(out / "fig5-digits-smoke.json")
    assert (out / "fig5-digits-smoke.png").read_bytes() == before


def test_the_images_of_figure_6_are_within_the_attacks_reach(runs: Any) -> None:
    out, results = runs
    assert results["fig6"].exit_code == 0, results["fig6"].output
    assert "train " not in results["fig6"].output  # by then the tables have
    found = stored(out, "fig6")
    assert [column["key"] for column in found["columns"]] == [
        f"{network} {attack}" for network in ("ResNet8", "En5ResNet8") for attack in ("ifgsm20", "cw")
    ]
    with np.load(out / "fig6-digits-smoke.npz") as images:
        original = images["original"]
        assert original.shape == (len(found["labels"]), 8, 8, 1)
        for column in found["columns"]:
            change = np.abs(images[column["key"]] - original).max()
            assert change == pytest.approx(column["largest_change"])
            assert 0 < change <= 0.2 + 1e-6
    for suffix in (".png", ".pdf"):
        assert (out / f"fig6-digits-smoke{suffix}").stat().st_size > 5_000


def test_figure_6_takes_colour_images(tmp_path: Path, fake_cifar: Callable[..., Path]) -> None:
    data = fake_cifar(tmp_path / "fake.npz", num_train=20, num_test=10)
    options = ["--dataset", "cifar10", "--data", data, "--preset", "smoke", "--rows", "ResNet20"]
    result = run("fig6", *SMOKE, *options, "--num-train", "20", "--num-test", "10", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "fig6-cifar10-smoke.npz") as images:
        assert images["original"].shape[1:] == (32, 32, 3)
    assert (tmp_path / "fig6-cifar10-smoke.png").exists()


def test_todays_attacks_are_columns_like_the_papers(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs[0], out)
    columns = "nat,ifgsm20,pgd20,transfer,ifgsm20-eot20"
    result = run("table2", *SMOKE, "--out", out, "--columns", columns, "--rows", "En2ResNet20")
    assert result.exit_code == 0, result.output
    assert "train " not in result.output
    (row,) = stored(out, "table2")["rows"]
    assert list(row["cells"]) == columns.split(",")
    assert set(row["paper"]) == {"nat", "ifgsm20"}
    assert stored(out, "table2")["columns"]["pgd20"] == "PGD2, best of 5"
    (found,) = stored(out, "table2")["strengths"]
    assert found["differences"].keys() == {"transfer", "ifgsm20-eot20"}


def test_autoattack_is_a_column_whose_blocks_are_small(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs[0], out)
    result = run("table2", *SMOKE, "--out", out, "--columns", "nat,autoattack", "--rows", "En2ResNet20")
    assert result.exit_code == 0, result.output
    assert stored(out, "table2")["attack_titles"]["autoattack"] == "AutoAttack rand (2 steps, 2 draws)"
    for attack, batch_size in (("autoattack", 50), ("nat", 250)):
        paths = list(out.glob(f"scores/*-En2ResNet8-*-{attack}-*.safetensors"))
        identities = [checkpoint.load(path, kind="evaluation")["identity"] for path in paths]
        assert {identity["batch_size"] for identity in identities} == {batch_size}


def test_baselines_are_rows_on_request(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs[0], out)
    names = ["Pni2ResNet8", "Sep2ResNet8", "Smooth0.25ResNet8", "Sep2En1ResNet8"]
    options = ["--columns", "nat,ifgsm20,transfer", "--rows", ",".join(["En2ResNet8", *names])]
    result = run("table2", *SMOKE, "--out", out, *options, "--results", tmp_path / "results")
    assert result.exit_code == 0, result.output
    trained = {line.split(":")[0].split(",")[0] for line in result.output.splitlines() if line.startswith("train ")}
    assert trained == {"train Pni2ResNet8", "train Smooth0.25ResNet8", "train En1ResNet8"}  # ResNet8 twice is there
    found = stored(out, "table2")
    assert [row["model"] for row in found["rows"]] == ["En2ResNet8", *names]
    seeds = {row["model"]: [net["seed"] for net in row["runs"][0]["networks"]] for row in found["rows"]}
    assert seeds["Sep2ResNet8"] == seeds["Sep2En1ResNet8"] == [0, 1000]
    assert seeds["Pni2ResNet8"] == [0]
    draws = {row["model"]: row["cells"]["ifgsm20"]["num_draws"] for row in found["rows"]}
    assert draws == dict.fromkeys(draws, 2) | {"Sep2ResNet8": 1}
    assert {(v["better"], v["worse"]) for v in found["verdicts"]} == {
        ("En2ResNet8", "Pni2ResNet8"),
        ("En2ResNet8", "Sep2ResNet8"),
    }
    assert {line["network"] for line in records.read(tmp_path / "results").scores} == {"En2ResNet8", *names}
