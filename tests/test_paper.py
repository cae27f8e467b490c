"""What is declared of the paper: its numbers, its networks, what it claims; and planning, which computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netkit import data, models
from studies.lab import work
from studies.lab.attacks import ATTACKS
from studies.lab.cli import _chosen_rows, tasks_of
from studies.lab.declared import Claim, Row, Table
from studies.lab.networks import Network
from studies.lab.reporting import InputError
from studies.lab.tasks import Scoring, Settings, Training, tasks_for
from studies.paper import queue
from studies.paper.tables import FIGURE5, FIGURE6, NUMBERS, TABLES

ALL = [*TABLES.values(), FIGURE5, FIGURE6]


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
def test_a_declaration_hangs_together(table: Table) -> None:
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    named = {name for claim in table.claims for name in (claim.better, claim.worse)}
    assert named | {*table.smoke, *table.on_request} <= set(labels)
    assert all(claim.better != claim.worse for claim in table.claims)
    assert len(set(table.claims)) == len(table.claims)
    assert set(table.attacks) <= ATTACKS.keys()
    for row in table.rows:
        assert row.network.on("digits")
        assert row.oracle is None or Network.parse(row.oracle).name != row.model


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_holds_every_number_that_the_paper_prints_in_it(table: Table) -> None:
    printed = NUMBERS[table.name]["rows"]
    found = [table.paper_values(row) for row in table.rows if (row.paper or (table.name, ""))[0] == table.name]
    expected = [{attack: entry[attack] for attack in table.attacks if attack in entry} for entry in printed]
    assert [values for values in expected if values not in found] == []
    assert all(expected)


def test_some_numbers_of_the_paper() -> None:
    values = {row.label: TABLES["table2"].paper_values(row) for row in TABLES["table2"].rows}
    assert values["En2ResNet20"] == {"nat": 80.34, "fgsm": 57.23, "ifgsm20": 50.06, "cw": 66.47}
    missing = [label for label, found in values.items() if found.keys() != set(TABLES["table2"].attacks)]
    controls = ["Plain5ResNet20", "Wide5ResNet20"]
    assert [label for label in missing if label not in TABLES["table2"].on_request] == controls
    (first, *_) = TABLES["table4"].rows
    assert TABLES["table4"].paper_values(first) == {"nat": 68.53}


def test_claims_follow_from_the_rows() -> None:
    names = ("ResNet20", "En1ResNet20", "En2ResNet20", "En5ResNet20", "ResNet44", "En2ResNet44")
    names += ("Plain2ResNet20", "Wide2ResNet20", "Plain5ResNet20", "TwoPoint5ResNet20")
    names += ("Pni2ResNet20", "Sep2ResNet20", "Smooth0.25ResNet20")
    more = (Claim("En2ResNet20", "ResNet20"), Claim("A", "B"))
    table = Table("x", "", tuple(map(Row, names)), ("nat",), more_claims=more)
    assert table.claims == [
        Claim("En1ResNet20", "ResNet20"),
        Claim("En1ResNet20", "Smooth0.25ResNet20"),
        Claim("En2ResNet20", "ResNet20"),
        Claim("En2ResNet20", "En1ResNet20"),
        Claim("En2ResNet20", "Plain2ResNet20"),
        Claim("En2ResNet20", "Wide2ResNet20"),
        Claim("En2ResNet20", "Pni2ResNet20"),
        Claim("En2ResNet20", "Sep2ResNet20"),
        Claim("En5ResNet20", "ResNet20"),
        Claim("En5ResNet20", "En2ResNet20"),
        Claim("En5ResNet20", "Plain5ResNet20"),
        Claim("En5ResNet20", "TwoPoint5ResNet20"),
        Claim("En2ResNet44", "ResNet44"),
        Claim("A", "B"),
    ]
    assert Table("x", "", (Row("ResNet20"), Row("En1ResNet20", loss="natural")), ("nat",)).claims == []


def test_titles_are_those_of_the_paper() -> None:
    assert [table.title for table in ALL][:2] == ["Table 1", "Table 2"]
    assert [table.title for table in ALL][-3:] == ["Section 4.4", "Figure 5", "Figure 6"]


@pytest.mark.parametrize(("name", "dataset"), [("table3", "cifar10"), ("table6", "cifar100")])
def test_blind_attacks_have_an_oracle_for_every_row(name: str, dataset: str) -> None:
    assert TABLES[name].dataset == dataset
    assert all(row.oracle for row in TABLES[name].rows)


def test_a_declared_oracle_is_not_exchanged_for_the_noise_free_twin() -> None:
    table = Table("x", "", (Row("ResNet20", oracle="En2ResNet20"), Row("En2ResNet20")), ("nat", "ifgsm20", "transfer"))
    settings = Settings("digits", "digits", Path("out"))
    tasks = [task for task in tasks_of(table, table.rows, settings, [0]) if isinstance(task, Scoring)]
    assert [(task.network.name, task.attack) for task in tasks] == [
        ("ResNet8", "ifgsm20"),
        *(("En2ResNet8", attack) for attack in table.attacks),
    ]


def test_rows_on_digits_are_those_that_something_small_stands_for() -> None:
    assert [row.label for row in _chosen_rows(TABLES["table7"], "digits", None)] == [
        "En2ResNet20+En5ResNet20",
        "En2ResNet20",
        "En5ResNet20",
        "Plain2ResNet20+Plain5ResNet20",
        "En7ResNet20",
    ]
    assert _chosen_rows(TABLES["table8"], "digits", "WRN-8-2") == [Row("WRN-14-2")]
    labels = [row.label for row in _chosen_rows(TABLES["section4_4"], "digits", None)]
    assert "ResNet20+ResNet44" not in labels
    assert "En1ResNet20 (natural)" in labels


def test_rows_on_request_are_there_only_when_they_are_asked_for() -> None:
    usual = [row.label for row in _chosen_rows(TABLES["table2"], "cifar10", None)]
    assert not {*usual} & {*TABLES["table2"].on_request}
    asked = ("TwoPoint2ResNet8", "Pni2ResNet8", "Sep2ResNet8", "Smooth0.25ResNet8")
    found = [row.label for row in _chosen_rows(TABLES["table2"], "digits", ",".join(asked))]
    assert found == ["TwoPoint2ResNet20", "Pni2ResNet20", "Sep2ResNet20", "Smooth0.25ResNet20"]


# Planning


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("planning loads no data and builds no network")

    monkeypatch.setattr(data, "load", refuse)
    monkeypatch.setattr(work, "_load", refuse)
    monkeypatch.setattr(models.ResNet, "__init__", refuse)
    monkeypatch.setattr(models.EnResNet, "__init__", refuse)


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "cifar100"])
def test_planning_tables_computes_nothing_and_shares_what_they_have_in_common(dataset: str, tmp_path: Path) -> None:
    preset = "digits" if dataset == "digits" else "paper"
    settings = Settings(dataset, preset, tmp_path, learning_rates=(0.1, 0.2))
    rows = {table.name: _chosen_rows(table, dataset, None) for table in ALL}
    tasks = [task for table in ALL for task in tasks_of(table, rows[table.name], settings, range(2))]
    different = list(dict.fromkeys(tasks))
    assert len(different) < 0.8 * len(tasks)
    assert len({task.path for task in different}) == len({str(task) for task in different}) == len(different)
    for task in different:
        assert task.cost > 0
        assert not work.records.is_done(task)
        assert set(task.needs) <= set(different)
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("nothing_is_computed")
def test_each_stage_of_the_queue_names_networks_attacks_and_settings_that_exist(tmp_path: Path) -> None:
    stages = [*queue.QUEUE, *queue.ON_REQUEST]
    tasks = list(queue.tasks_of(stages, data=tmp_path, out=tmp_path, device="cpu"))
    assert {task.settings.dataset for task in tasks} == {"digits", "cifar10", "cifar100"}
    assert {task.attack for task in tasks if isinstance(task, Scoring)} == ATTACKS.keys()
    # before a network is attacked it is trained, with seed 0 before any other
    seen: set[Any] = set()
    for task in tasks:
        seen.add(task)
        assert seen.issuperset(task.needs)
    assert {stage.setting for stage in stages} == queue.SETTINGS.keys() - {"cpu-narrow"}
    titles = {(s.dataset, s.settings(out=tmp_path).title) for s in queue.SETTINGS.values() if s.loss == "pgd"}
    assert len(titles) == sum(s.loss == "pgd" for s in queue.SETTINGS.values())


def test_attacks_about_noise_are_left_to_noisy_networks(tmp_path: Path) -> None:
    (stage,) = (stage for stage in queue.ON_REQUEST if stage.setting == "digits")
    found: dict[str, set[str]] = {}
    for task in queue.tasks_of([stage], data=None, out=tmp_path, device="cpu"):
        if isinstance(task, Scoring):
            found.setdefault(task.network.name, set()).add(task.attack)
    assert found["En2ResNet8"] - found["ResNet8"] == {"transfer", "ifgsm20-eot1", "ifgsm20-eot20", "ifgsm20-eot50"}
    assert found["ResNet8"] == {"nat", "fgsm", "ifgsm20", "cw", "pgd20", "autoattack"}


def test_options_of_attacks_leave_the_trainings_alone(tmp_path: Path) -> None:
    stages = [stage for stage in queue.QUEUE if stage.setting == "fast" and stage.rows == queue.CORE]
    found = [queue.tasks_of([stage], data=None, out=tmp_path, device="cpu") for stage in stages]
    usual, fewer = ({task for task in tasks if isinstance(task, Training)} for tasks in found)
    assert usual == fewer


# Files


def paths(**changes: Any) -> list[Path]:
    options: dict[str, Any] = {"dataset": "digits", "preset": "digits", "out": Path("out")}
    tasks = tasks_for(Settings(**options | changes), Network.parse("En2ResNet8"), 0, ["cw"], loss="pgd")
    return [task.path for task in tasks]


def test_a_file_is_named_by_all_that_its_content_depends_on() -> None:
    usual = paths()
    trained: list[dict[str, Any]] = [{"epochs": 3}, {"num_train": 64}, {"width": 4}, {"learning_rates": (0.3,)}]
    for trained_otherwise in (*trained, {"attack_steps": 1}):
        assert not set(paths(**trained_otherwise)) & set(usual)
    for attacked_otherwise in ({"num_test": 40}, {"num_draws": 3}, {"eot_draws": 3}):
        training, attack = paths(**attacked_otherwise)
        assert training == usual[0]
        assert attack != usual[1]
    assert paths(device="cuda", data=Path("elsewhere"), auto_draws=3) == usual


def test_names_of_files_stay_what_they_were() -> None:
    # a change of these means that networks trained before it are trained again
    assert [path.stem.rsplit("-", 1)[1] for path in paths(learning_rates=(0.05, 0.1))] == [
        "ff7f947a83",
        "a9a8611f83",
        "804b2ac858",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "none"}, "preset: expected one of .*, got 'none'"),
        ({"dataset": "mnist"}, "dataset: expected one of .*, got 'mnist'"),
        ({"num_draws": 36}, "num_draws: expected at most 35, got 36"),
        ({"learning_rates": (-1.0,)}, "lr: expected a positive, finite number, got -1"),
    ],
)
def test_settings_refuse_what_no_training_can_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paths(**options)


def test_a_setting_finds_the_file_of_its_data_set_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cifar100.npz").touch()
    setting = queue.SETTINGS["fast-cifar100"]
    for given in (tmp_path, tmp_path / "cifar10.npz", tmp_path / "cifar100.npz"):
        assert setting.settings(out=tmp_path, data=given).data == tmp_path / "cifar100.npz"
    assert queue.SETTINGS["fast"].settings(out=tmp_path, data=tmp_path).data == tmp_path
    assert queue.SETTINGS["digits"].settings(out=tmp_path, data=tmp_path).data is None


def test_the_numbers_in_print_are_percentages() -> None:
    text = json.dumps(NUMBERS)
    assert "NaN" not in text
    for table in NUMBERS.values():
        for entry in table["rows"]:
            assert all(0 <= value <= 100 for name, value in entry.items() if name in ATTACKS)
