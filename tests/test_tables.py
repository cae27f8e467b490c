"""Figures 5 and 6, and all tables but the second (test_table2.py), at --smoke size over one folder of networks."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import tables
import torch
from jobs import EvaluateTask, Job, Settings, TrainTask, load_data, network, separate_networks, tasks_for, trained_model
from rich.console import Console
from rich.progress import Progress
from tables import Row, Table, on_dataset
from test_data import fake_cifar
from typer.testing import CliRunner, Result

from netkit import attacks, checkpoint
from netkit.training import load_model

STUDIES = [f"table{number}" for number in (1, *range(3, 11))] + ["gradient_mask"]
FIGURES = ["fig5_training_curves", "fig6_adversarial_images"]
SMOKE = ["--smoke", "--workers", "1", "--device", "cpu"]
SMALL = ["--num-train", "64", "--num-test", "20"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        yield
    torch.set_num_threads(before)


def declared(study: str) -> Table:
    table: Table = importlib.import_module(study).TABLE
    return table


def run(study: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(importlib.import_module(study).app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    out = tmp_path_factory.mktemp("tables")
    return out, {study: run(study, *SMOKE, *SMALL, "--out", out) for study in [*STUDIES, *FIGURES]}


def stored(out: Path, study: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"{declared(study).name}-digits-smoke.json").read_text())
    return content


@pytest.mark.parametrize("study", STUDIES)
def test_a_table_runs_and_stores_the_papers_numbers_beside_ours(study: str, runs: Any) -> None:
    out, results = runs
    assert results[study].exit_code == 0, results[study].output
    table, found = declared(study), stored(out, study)
    assert [row["model"] for row in found["rows"]] == [on_dataset(label, "digits") for label in table.smoke]
    for row in found["rows"]:
        assert set(row["cells"]) == set(table.columns)
        assert all(cell["n"] == 20 for cell in row["cells"].values())
    assert any(row["paper"] for row in found["rows"])
    assert found["title"] in results[study].output


def test_no_network_is_trained_twice(runs: Any) -> None:
    _, results = runs
    lines = [line for result in results.values() for line in result.output.splitlines() if line.startswith("train ")]
    trained = [line.split(":")[0] for line in lines]
    assert len(trained) == len(set(trained))
    assert "train En5ResNet8, seed 0, lr 0.1" in trained  # tables 3 and 7


@pytest.mark.parametrize("study", STUDIES)
def test_a_declaration_holds_what_the_paper_prints(study: str) -> None:
    table = declared(study)
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    assert {name for claim in table.claims for name in (claim.better, claim.worse)} | set(table.smoke) <= set(labels)
    sources = {row.paper or (table.name, row.model) for row in table.rows}
    assert {(table.name, entry["model"]) for entry in tables.PAPER[table.name]["rows"]} <= sources
    printed = [row for row in table.rows if table.paper_values(row)]
    assert len(printed) >= len(tables.PAPER[table.name]["rows"])


@pytest.mark.parametrize(("study", "dataset"), [("table3", "cifar10"), ("table6", "cifar100")])
def test_blind_attacks_have_an_oracle_for_every_row(study: str, dataset: str) -> None:
    table = declared(study)
    assert table.paper_dataset == dataset
    assert all(row.oracle and row.oracle != row.model for row in table.rows)


def test_blind_attacks_are_stored_with_both_networks(runs: Any) -> None:
    out, _ = runs
    row = stored(out, "table3")["rows"][0]
    assert (row["model"], row["oracle"]) == ("ResNet8", "En5ResNet8")
    assert [network["model"] for network in row["runs"][0]["networks"]] == ["ResNet8", "En5ResNet8"]


def test_networks_trained_apart_are_averaged(runs: Any) -> None:
    out, _ = runs
    row = stored(out, "gradient_mask")["rows"][2]
    assert row["model"] == "ResNet8+ResNet8"
    networks = row["runs"][0]["networks"]
    assert [network["seed"] for network in networks] == [0, 1000]
    settings = Settings("digits", "digits", out, epochs=1, num_train=64, num_test=20, attack_steps=2)
    task = tasks_for(settings, "ResNet8+ResNet8", 0, ["nat"], loss="pgd")[-1]
    assert isinstance(task, EvaluateTask)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        joined = trained_model("ResNet8+ResNet8", settings, task)(x)
        parts = [load_model(out / "models" / network["checkpoint"])(x) for network in networks]
    torch.testing.assert_close(joined, sum(parts) / 2)
    assert not torch.allclose(parts[0], parts[1])


def test_seeds_of_separate_networks_of_one_kind_never_meet() -> None:
    assert separate_networks("A+B+A", 3) == [("A", 3), ("B", 3), ("A", 1003)]
    assert separate_networks("A&B", 3) == [("A&B", 3)]


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
    settings = Settings("digits", "digits", out, epochs=1, num_train=64, num_test=20, attack_steps=2)
    for choice, expected in (("learned", learned), ("optimal", optimal), ("equal", [0.5, 0.5])):
        model = on_dataset(rows[0]["paper_model"], "digits")
        task = tasks_for(settings, model, 0, ["nat"], loss="pgd", weights=choice)[-1]  # type: ignore[arg-type]
        assert isinstance(task, EvaluateTask)
        assert trained_model(model, settings, task).weights.tolist() == pytest.approx(expected)


def test_natural_and_robust_training_stand_side_by_side(runs: Any) -> None:
    out, _ = runs
    natural, robust = stored(out, "gradient_mask")["rows"][:2]
    assert (natural["model"], natural["loss"]) == ("En1ResNet8 (natural)", "natural")
    assert (robust["model"], robust["loss"]) == ("En1ResNet8", "pgd")
    assert natural["runs"][0]["networks"][0]["checkpoint"] != robust["runs"][0]["networks"][0]["checkpoint"]
    assert natural["paper"] == {"ifgsm20": 0.0}
    verdicts = stored(out, "gradient_mask")["verdicts"]
    assert [(v["better"], v["worse"], v["column"]) for v in verdicts] == [
        ("En1ResNet8", "En1ResNet8 (natural)", "ifgsm20")
    ]


def test_rows_on_digits_are_those_that_something_small_stands_for() -> None:
    rows = tables._chosen_rows(declared("table7"), "digits", None)
    assert [row.label for row in rows] == [
        "En2ResNet20+En5ResNet20",
        "En2ResNet20",
        "En5ResNet20",
        "Plain2ResNet20+Plain5ResNet20",
        "En7ResNet20",
    ]
    assert tables._chosen_rows(declared("table8"), "digits", "WRN-8-2") == [Row("WRN-14-2")]
    labels = [row.label for row in tables._chosen_rows(declared("gradient_mask"), "digits", None)]
    assert "ResNet20+ResNet44" not in labels
    assert "En1ResNet20 (natural)" in labels


def test_cifar100_goes_through_the_same_command(tmp_path: Path) -> None:
    data = fake_cifar(tmp_path / "fake.npz", num_train=20, num_test=10)
    options = ["--dataset", "cifar100", "--data", data, "--preset", "smoke", "--rows", "ResNet20", "--num-train", "20"]
    result = run("table4", *SMOKE, *options, "--num-test", "10", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "another task" not in result.output
    found = json.loads((tmp_path / "table4-cifar100-smoke.json").read_text())
    assert found["rows"][0]["paper"] == {"nat": 68.53}


def test_an_unknown_oracle_or_part_is_refused_in_one_line(tmp_path: Path) -> None:
    result = run("table7", *SMOKE, "--out", tmp_path, "--rows", "ResNet20+VGG16")
    assert result.exit_code == 2
    assert "got 'VGG16'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_training_curves_are_drawn_from_stored_histories(runs: Any) -> None:
    out, results = runs
    assert results["fig5_training_curves"].exit_code == 0, results["fig5_training_curves"].output
    assert "attack " not in results["fig5_training_curves"].output
    rows = json.loads((out / "fig5-digits-smoke.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["ResNet8", "En2ResNet8"]
    (record,) = rows[0]["runs"][0]["networks"][0]["history"]
    assert {"accuracy", "val_natural", "val_robust"} <= record.keys()
    assert (out / "fig5-digits-smoke.pdf").exists()
    before = (out / "fig5-digits-smoke.png").read_bytes()
    assert len(before) > 20_000
    (out / "fig5-digits-smoke.png").unlink()
    importlib.import_module("fig5_training_curves").draw(out / "fig5-digits-smoke.json")
    assert (out / "fig5-digits-smoke.png").read_bytes() == before


def test_the_images_of_figure_6_are_within_the_attacks_reach(runs: Any) -> None:
    out, results = runs
    assert results["fig6_adversarial_images"].exit_code == 0, results["fig6_adversarial_images"].output
    assert "train " not in results["fig6_adversarial_images"].output  # by then the tables have
    found = json.loads((out / "fig6-digits-smoke.json").read_text())
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


def test_figure_6_takes_colour_images(tmp_path: Path) -> None:
    data = fake_cifar(tmp_path / "fake.npz", num_train=20, num_test=10)
    options = ["--dataset", "cifar10", "--data", data, "--preset", "smoke", "--rows", "ResNet20", "--num-train", "20"]
    result = run("fig6_adversarial_images", *SMOKE, *options, "--num-test", "10", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "fig6-cifar10-smoke.npz") as images:
        assert images["original"].shape[1:] == (32, 32, 3)
    assert (tmp_path / "fig6-cifar10-smoke.png").exists()


def test_todays_attacks_are_columns_like_the_papers(runs: Any) -> None:
    out, _ = runs
    columns = "nat,ifgsm20,pgd20,transfer,ifgsm20-eot20,autoattack"
    result = run("table2", *SMOKE, *SMALL, "--out", out, "--columns", columns, "--rows", "En2ResNet20")
    assert result.exit_code == 0, result.output
    (row,) = stored(out, "table2")["rows"]
    assert list(row["cells"]) == columns.split(",")
    assert set(row["paper"]) == {"nat", "ifgsm20"}
    assert stored(out, "table2")["columns"]["autoattack"] == "AutoAttack rand (2 steps, 2 draws)"
    for column, batch_size in (("autoattack", 50), ("pgd20", 250)):  # costly blocks are small, the others as ever
        (path,) = out.glob(f"evaluations/*-En2ResNet8-*-{column}-*.safetensors")
        assert checkpoint.load(path, kind="evaluation")["identity"]["batch_size"] == batch_size


def test_the_bar_of_a_job_goes_with_it_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Kept(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            made.append(self)

    monkeypatch.setattr(tables, "Progress", Kept)
    monkeypatch.setattr(tables, "console", Console(file=io.StringIO(), force_terminal=True))
    first, second, third = (Job(TrainTask("A", seed, 0.1), Settings("digits", "digits", Path())) for seed in range(3))
    with tables.progress() as (report, finished, ended):
        for job in (first, second, third):
            report(job, 1, 2)
        finished(first, "accuracy 50%", 1.0)
        ended(second, "failed, out of memory")
        assert [bar.description for bar in made[0].tasks] == [str(third)]
    assert made[0].live.transient  # what a deadline stops leaves nothing behind either


def test_a_declared_oracle_is_not_exchanged_for_the_noise_free_twin() -> None:
    table = dataclasses.replace(declared("table3"), columns=("nat", "ifgsm20", "transfer"))
    with_oracle = next(row for row in table.rows if row.oracle is not None)
    settings = Settings("digits", "digits", Path("out"))
    tasks = [task for task in tables._tasks(table, with_oracle, settings, 0) if isinstance(task, EvaluateTask)]
    assert [task.column for task in tasks] == ["ifgsm20"]
    assert tables._columns_of(table, dataclasses.replace(with_oracle, oracle=None)) == table.columns


def test_weights_are_learned_from_blocks_of_attacked_images(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("digits", "digits", Path("out"), num_train=64, attack_steps=2)
    config = settings.train_config(0, "pgd")
    model = network("Plain2ResNet8", settings, 0)
    images = load_data(settings).train.first(20)
    whole = jobs._logits_as_in_training(model, images, settings, config, 3)
    sizes = []
    pgd = attacks.pgd

    def counted(model: Any, x: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
        sizes.append(len(x))
        return pgd(model, x, y, **options)

    monkeypatch.setattr(attacks, "pgd", counted)
    monkeypatch.setattr(jobs, "_EVALUATION_BATCH", 8)
    blocks = jobs._logits_as_in_training(model, images, settings, config, 3)
    assert sizes == [8, 8, 4]
    assert blocks.shape == whole.shape == (2, 20, 10)
    natural = []
    for size in (8, 250):
        monkeypatch.setattr(jobs, "_EVALUATION_BATCH", size)
        clean = dataclasses.replace(config, loss="natural")
        natural.append(jobs._logits_as_in_training(model, images, settings, clean, 3))
    torch.testing.assert_close(natural[0], natural[1])
    assert not torch.allclose(natural[0], blocks, atol=1e-3)


def test_a_step_of_the_weights_is_halved_where_they_would_lose_their_sum() -> None:
    settings = Settings("digits", "digits", Path("out"), num_train=64, attack_steps=2)
    config = settings.train_config(0, "natural")
    sums = {}
    for bias in (0.0, 1e3):
        model = network("Plain2ResNet8", settings, 0)
        with torch.no_grad():
            model.members[0].fc.bias[0] = bias
        jobs._update_weights(settings, config, model, 4)
        sums[bias] = float(model.weights.sum())
        assert float(model.weights.double().std()) > 0
    assert sums == pytest.approx({0.0: 1, 1e3: 1}, rel=1e-5)


def test_weights_that_lose_their_sum_are_a_training_that_diverged() -> None:
    settings = Settings("digits", "digits", Path("out"), num_train=64, attack_steps=2)
    model = network("Plain2ResNet8", settings, 0)
    with torch.no_grad():
        model.members[0].fc.bias[0] = 1e7
    config = settings.train_config(0, "natural")
    with pytest.raises(FloatingPointError, match="training diverged: the members' weights after epoch 5: lr: expected"):
        jobs._update_weights(settings, config, model, 4)


@pytest.mark.parametrize(
    ("study", "columns", "message"),
    [
        ("table2", "nat,square", "unknown column 'square': expected some of nat, fgsm"),
        ("fig5_training_curves", "nat", "attacks nothing and has no columns to choose"),
    ],
)
def test_columns_that_do_not_exist_are_refused(study: str, columns: str, message: str) -> None:
    result = run(study, *SMOKE, "--columns", columns)
    assert result.exit_code == 2
    assert message in result.stderr
