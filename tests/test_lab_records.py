"""The files of records: read, merged and refused; and tables as queries over them, against brute force."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_records import STAMP, TINY, a_score, a_training

from studies.lab import assemble, records
from studies.lab.declared import Claim, Row, Table
from studies.lab.records import Record, Records
from studies.lab.reporting import InputError, without_folder

WHERE = assemble.Where(TINY["dataset"], TINY["setting"])


def a_folder(path: Path) -> Records:
    """Two networks, two attacks and three seeds of random answers, written to `path`."""
    rng = np.random.default_rng(0)
    names = ("ResNet20", "En2ResNet20")
    found = Records(
        [a_training(name, seed) for name in names for seed in range(3)],
        [
            a_score(name, seed, attack, rng.integers(0, 36, 50 if attack == "nat" else 30).tolist())
            for name in names
            for seed in range(3)
            for attack in ("nat", "cw")
        ],
    )
    records.merge(found, path)
    return found


def by_job(lines: Any) -> dict[str, Record]:
    return {line["job"]: line for line in lines}


def test_what_is_merged_is_read_back(tmp_path: Path) -> None:
    written = a_folder(tmp_path)
    read = records.read(tmp_path)
    assert by_job(read.trainings) == by_job(written.trainings)
    assert by_job(read.scores) == by_job(written.scores)
    assert list(by_job(read.scores)) == sorted(by_job(read.scores))
    digits = [json.loads(line)["correct"] for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [[int(digit, 36) for digit in line] for line in digits] == [line["correct"] for line in read.scores]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    records.merge(read, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_records_has_none(tmp_path: Path) -> None:
    assert records.read(tmp_path / "absent") == Records([], [])


def test_a_new_line_takes_the_place_of_its_own_job_alone(tmp_path: Path) -> None:
    old = a_folder(tmp_path)
    again = a_score("ResNet20", 0, "nat", [1] * 50)
    records.merge(Records([], [again]), tmp_path)
    assert by_job(records.read(tmp_path).scores) == by_job(old.scores) | {again["job"]: again}


def test_scores_of_a_network_that_is_trained_anew_go(tmp_path: Path) -> None:
    a_folder(tmp_path)
    records.merge(Records([a_training("ResNet20", 1, weights="others")], []), tmp_path)
    left = {(line["network"], line["seed"]) for line in records.read(tmp_path).scores}
    assert left == {("ResNet20", 0), ("ResNet20", 2), *(("En2ResNet20", seed) for seed in range(3))}
    foreign = a_score("ResNet44", 0, "nat", [1])  # whose training no line tells of
    records.merge(Records([], [foreign]), tmp_path)
    assert foreign in records.read(tmp_path).scores


def test_runs_that_merge_at_once_keep_each_others_lines(tmp_path: Path) -> None:
    with ThreadPoolExecutor(10) as pool:  # a lock of the folder holds between threads, too
        list(pool.map(lambda seed: records.merge(Records([a_training("A", seed)], []), tmp_path), range(10)))
    assert [line["seed"] for line in records.read(tmp_path).trainings] == list(range(10))


@pytest.mark.parametrize("name", ["trainings.jsonl", "scores.jsonl", "outcomes.jsonl"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-20],
        lambda line: "",
        lambda line: "[1, 2]",
        lambda line: '{"job": "x"}',
        lambda line: "[" * 100_000,
        lambda line: line.replace('"job"', '"jab"'),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, name: str, damage: Any) -> None:
    a_folder(tmp_path)
    path = tmp_path / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage(lines[1]), *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=rf"{path}, line 2, is damaged: ") as raised:
        records.read(tmp_path)
    assert len(str(raised.value)) < 300


def test_bytes_that_are_no_text_digits_and_lines_that_lack_are_named(tmp_path: Path) -> None:
    a_folder(tmp_path)
    path = tmp_path / "outcomes.jsonl"
    whole = path.read_bytes()
    for content, message in (
        (whole[:100] + b"\xff" + whole[101:], r"outcomes\.jsonl is damaged: invalid start byte"),
        (
            whole.replace(b'"correct": "', b'"correct": "!', 1),
            r"outcomes\.jsonl is damaged: expected digits of base 36",
        ),
        (whole.partition(b"\n")[2], r"outcomes\.jsonl: expected a line for .*-En2ResNet20-0-.*-cw-.*, got none"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            records.read(tmp_path)


@pytest.mark.parametrize("correct", [[1, 2, 36], [1, 2]])
def test_answers_that_do_not_fit_are_refused(correct: list[int]) -> None:
    line = a_score("A", 0, "nat", [1, 2, 3]) | {"correct": correct}
    with pytest.raises(InputError, match="None-equal: expected 3 counts of at most 35 draws"):
        records.right_answers(line)


# Tables

TABLE = Table(
    "table2",
    "Made up",
    (Row("ResNet20"), Row("En2ResNet20")),
    attacks=("nat", "cw", "fgsm"),
    printed={"table2": {"rows": [{"model": "ResNet20", "nat": 75.11}, {"model": "En2ResNet20", "nat": 80.34}]}},
)


def shares(lines: Any, network: str, attack: str) -> np.ndarray:
    """(seeds, images)"""
    found = [line for line in lines if (line["network"], line["attack"]) == (network, attack)]
    return np.array(
        [np.array(line["correct"]) / line["num_draws"] for line in sorted(found, key=lambda line: line["seed"])]
    )


def test_a_table_is_what_brute_force_makes_of_its_records(tmp_path: Path) -> None:
    a_folder(tmp_path)
    others = [
        a_score("ResNet20", 3, "nat", [0], **change) for change in ({"setting": "x"}, {"dataset": "x"}, {"loss": "x"})
    ]
    others += [
        a_score("ResNet20", 4, "nat", [0], oracle="A"),
        a_score("ResNet20", 5, "nat", [0], member_weights="learned"),
    ]
    found = records.read(tmp_path)
    table = assemble.table(TABLE, TABLE.rows, Records(found.trainings, [*found.scores, *others]), WHERE)
    assert list(table["columns"]) == ["nat", "cw"]
    for row in table["rows"]:
        assert list(row["cells"]) == ["nat", "cw"]
        assert row["num_parameters"] == 270_000
        for attack, cell in row["cells"].items():
            own = shares(found.scores, row["model"], attack)
            assert (cell["num_seeds"], cell["n"]) == own.shape
            assert cell["mean"] == pytest.approx(own.mean(), abs=1e-12)
            assert cell["interval"][0] < cell["mean"] < cell["interval"][1]
            singles = [run["cells"][attack]["mean"] for run in row["runs"]]
            assert singles == pytest.approx(own.mean(1).tolist(), abs=1e-12)
    assert [(v["better"], v["worse"], v["column"]) for v in table["verdicts"]] == [
        ("En2ResNet20", "ResNet20", "nat"),
        ("En2ResNet20", "ResNet20", "cw"),
    ]
    for verdict in table["verdicts"]:
        difference = shares(found.scores, "En2ResNet20", verdict["column"]) - shares(
            found.scores, "ResNet20", verdict["column"]
        )
        assert verdict["difference"] == pytest.approx(difference.mean(), abs=1e-12)
        by_image = difference.mean(0)
        least = by_image.std() / np.sqrt(len(by_image))  # the part of the standard error that is over images
        assert verdict["interval"][1] - verdict["interval"][0] > 3.8 * least
    assert table["verdicts"][0]["paper_difference"] == pytest.approx(80.34 - 75.11)
    assert table["verdicts"][1]["paper_difference"] is None


def test_rows_are_compared_on_the_images_and_seeds_that_both_have() -> None:
    first = [a_score("A", seed, "nat", [35] * 40) for seed in (0, 1, 2)]
    second = [a_score("B", seed, "nat", [35] * 20 + [0] * 5) for seed in (1, 2, 3)]
    found = {
        "A": {"nat": {line["seed"]: line for line in first}},
        "B": {"nat": {line["seed"]: line for line in second}},
    }
    (verdict,) = assemble.verdicts([Claim("A", "B")], ["nat"], found, {})
    assert (verdict["num_seeds"], verdict["n"], verdict["difference"]) == (2, 25, pytest.approx(0.2))


def test_verdicts_turn_where_the_paper_does() -> None:
    def scored(name: str, share: float) -> dict[str, dict[int, Record]]:
        correct = [35] * round(200 * share) + [0] * round(200 * (1 - share))
        return {"nat": {seed: a_score(name, seed, "nat", correct) for seed in range(3)}}

    found = {f"{kind}{d}": scored(f"{kind}{d}", share) for d in (44, 110) for kind, share in (("R", 0.9), ("En", 0.6))}
    paper = {"R110": {"nat": 94.30}, "En110": {"nat": 93.49}, "R44": {"nat": 93.22}, "En44": {"nat": 93.54}}
    claims = [Claim("En110", "R110"), Claim("En44", "R44"), Claim("En44", "R44", ("cw",)), Claim("En44", "absent")]
    verdicts = assemble.verdicts(claims, ["nat"], found, paper)
    assert [(v["better"], v["verdict"]) for v in verdicts] == [("R110", "holds"), ("En44", "does not hold")]
    assert verdicts[0]["difference"] == pytest.approx(0.3)
    assert verdicts[0]["paper_difference"] == pytest.approx(94.30 - 93.49)


def test_of_two_scorings_of_one_network_the_one_on_most_images_counts() -> None:
    few = a_score("ResNet20", 0, "nat", [35] * 10, job="z")
    many = a_score("ResNet20", 0, "nat", [0] * 30, job="a")
    stronger = a_score("ResNet20", 0, "cw", [0] * 10, job="b", eot_draws=20)
    weaker = a_score("ResNet20", 0, "cw", [35] * 10, job="c")
    for lines in ([few, many, weaker, stronger], [stronger, weaker, many, few]):
        found = assemble.scores_of(TABLE.rows[0], TABLE, Records([], lines), WHERE)
        assert (found["nat"][0], found["cw"][0]) == (many, stronger)


def test_where_nothing_is_attacked_the_learning_rate_that_did_best_counts() -> None:
    trainings = [a_training("ResNet20", 0, job=f"{v}", validation=v) for v in (0.3, 0.6, 0.5)]
    figure = Table("fig5", "Curves", (Row("ResNet20"),), attacks=())
    (row,) = assemble.table(figure, figure.rows, Records(trainings, []), WHERE)["rows"]
    assert [line["validation"] for line in row["runs"][0]["networks"]] == [0.6]
    unknown = [a_training("ResNet20", 0, job=f"{lr}", validation=None) for lr in (0.1, 0.2)]
    (row,) = assemble.table(figure, figure.rows, Records(unknown, []), WHERE)["rows"]
    assert len(row["runs"]) == 1


def test_what_another_treatment_of_noise_changes_is_paired_with_the_usual() -> None:
    usual = [a_score("En2ResNet20", seed, "ifgsm20", [20] * 20) for seed in range(3)]
    twin = [a_score("En2ResNet20", seed, "transfer", [27] * 10, oracle="noise-free twin") for seed in range(3)]
    (found,) = assemble.table(TABLE, TABLE.rows, Records([], [*usual, *twin]), WHERE)["strengths"]
    assert (found["model"], found["eot_draws"]) == ("En2ResNet20", 5)
    difference = found["differences"]["transfer"]
    assert (difference["difference"], difference["n"], difference["num_seeds"]) == (pytest.approx(0.2), 10, 3)


ATTACKED = Table(
    "table2", "Attacked", (Row("ResNet20"), Row("En2ResNet20")), attacks=("nat", "fgsm", "ifgsm20", assemble.WORST)
)


def worst_cases(lines: list[Record]) -> dict[str, tuple[int, int, float]]:
    """By network, seeds and images of the worst case, and accuracy in it."""
    found = assemble.table(ATTACKED, ATTACKED.rows, Records([], lines), WHERE)
    cells = {row["model"]: row["cells"].get("worst") for row in found["rows"]}
    return {model: (cell["num_seeds"], cell["n"], cell["mean"]) for model, cell in cells.items() if cell}


def test_without_noise_the_worst_case_has_the_images_that_no_attack_broke() -> None:
    rng = np.random.default_rng(0)
    right = {attack: rng.integers(0, 2, (3, 40)) for attack in ("nat", "fgsm", "ifgsm20")}
    lines = [
        a_score("ResNet20", seed, attack, each[: 40 if attack == "nat" else 30].tolist(), num_draws=1)
        for attack, by_seed in right.items()
        for seed, each in enumerate(by_seed)
    ]
    both = (right["fgsm"] & right["ifgsm20"])[:, :30]  # clean images are no attack
    assert worst_cases(lines) == {"ResNet20": (3, 30, pytest.approx(both.mean(), abs=1e-12))}


def test_with_noise_the_worst_case_is_that_of_the_better_attack_on_each_image() -> None:
    rng = np.random.default_rng(1)
    shares = rng.permutation([0.9] * 500 + [0.1] * 500)
    lines = [
        a_score("En2ResNet20", 0, attack, rng.binomial(10, each).tolist(), num_draws=10)
        for attack, each in (("nat", 0 * shares), ("fgsm", shares), ("ifgsm20", 1 - shares))
    ]
    ((*_, mean),) = worst_cases(lines).values()
    # half of the draws pick, so that luck is not taken for harm: the least of both shares alone would be below 0.1
    assert mean == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 10_000))
    alike = [
        a_score("En2ResNet20", 0, a, rng.binomial(10, 0.5, 1000).tolist(), num_draws=10) for a in ("fgsm", "ifgsm20")
    ]
    ((*_, mean),) = worst_cases(alike).values()
    assert mean == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("change", [{"trainings": {"other": "w"}}, {"num_draws": 20}, {"seed": 1}])
def test_there_is_no_worst_case_over_several_networks_or_draws_or_of_one_attack(change: dict[str, Any]) -> None:
    lines = [a_score("ResNet20", 0, attack, [5] * 20, num_draws=10) for attack in ("fgsm", "ifgsm20")]
    assert worst_cases(lines) == {"ResNet20": (1, 20, 0.5)}
    assert worst_cases([lines[0], lines[1] | change]) == {}
    assert worst_cases(lines[:1]) == {}


def test_a_row_without_an_attack_of_the_table_has_no_worst_case() -> None:
    lines = [
        a_score(name, 0, a, [5] * 20, num_draws=10) for name in ("ResNet20", "En2ResNet20") for a in ("fgsm", "ifgsm20")
    ]
    assert list(worst_cases(lines)) == ["ResNet20", "En2ResNet20"]
    assert list(worst_cases(lines[:-1])) == ["ResNet20"]


def test_a_table_says_of_each_run_that_it_was_put_together_from_where_it_came() -> None:
    first = STAMP | {"command": "table2.py --out /home/me/one --lr 0.1", "created": "2026-01-02"}
    again = first | {"config": {"seed": 1}, "created": "2026-01-01"}
    later = first | {"commit": "b", "created": "2026-01-03"}
    found = assemble.origins([later, first, again])
    assert [(stamp["commit"], stamp["created"]) for stamp in found] == [("abc", "2026-01-01"), ("b", "2026-01-03")]
    assert {stamp["command"] for stamp in found} == {"table2.py --out one --lr 0.1"}


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("/a/b/c.npz", "c.npz"),
        ("--data=/a/b/c.npz", "--data=c.npz"),
        ("--out", "--out"),
        ("a/b", "a/b"),
        ("0.1", "0.1"),
    ],
)
def test_a_stored_command_names_no_folder_of_a_machine(word: str, kept: str) -> None:
    assert without_folder(word) == kept


@pytest.mark.parametrize(
    ("file", "line", "missing"),
    [
        ("trainings.jsonl", {"job": "a", "validation": 1, "weights": "x"}, "dataset of a training"),
        ("scores.jsonl", {"job": "a", "attack": "nat", "trainings": {}}, "dataset of a score"),
        ("scores.jsonl", {"job": 3, "attack": "nat", "trainings": {}}, "job of a score, got 3"),
    ],
)
def test_a_line_without_what_readers_rely_on_is_named(
    tmp_path: Path, file: str, line: dict[str, Any], missing: str
) -> None:
    (tmp_path / file).write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=rf"{file}, line 1, is damaged: expected {missing}"):
        records.read(tmp_path)
