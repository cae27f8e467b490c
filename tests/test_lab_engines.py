"""Sweeps on engines, and how many threads a worker takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from studies.lab import engines
from studies.lab.reporting import num_cores


def a_row(number: int) -> dict[str, int]:
    if number == 1000:
        raise FloatingPointError("u is not finite")
    return {"number": number, "process": os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_keeps_the_order_of_its_cases_wherever_they_run(workers: int, tmp_path: Path) -> None:
    with engines.chosen(workers, None, None, tmp_path) as engine:
        rows = engine.sweep("", a_row, ((number,) for number in range(150)))
        with pytest.raises(FloatingPointError, match="u is not finite"):
            engine.sweep("", a_row, [(1000,)])
    assert [row["number"] for row in rows] == list(range(150))
    assert (os.getpid() in {row["process"] for row in rows}) == (workers == 1)


def a_row_at_the_second_try(number: int, tried: Path) -> dict[str, int]:
    if number == 7 and not tried.exists():
        tried.touch()
        os._exit(1)
    return {"number": number}


def test_a_lost_worker_costs_a_sweep_nothing(tmp_path: Path) -> None:
    cases = [(number, tmp_path / "tried") for number in range(20)]
    with engines.chosen(2, None, None, tmp_path) as engine:
        rows = engine.sweep("", a_row_at_the_second_try, cases)
    assert (tmp_path / "tried").exists()
    assert [row["number"] for row in rows] == list(range(20))


def test_a_worker_takes_the_threads_of_its_own_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert engines.own_threads() == num_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert engines.own_threads() == 3
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert engines.own_threads() == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert engines.own_threads() == 5


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"partition": "some"}),
        ({"threads": 4}, {"partition": "some", "cpus_per_task": 4}),
        ({"threads": 2, "device": "cuda"}, {"partition": "some", "cpus_per_task": 2, "gpus_per_node": 1}),
    ],
)
def test_a_job_of_slurm_asks_for_the_cpus_and_the_gpu_of_its_task(
    options: dict[str, Any], asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))  # as where there is a SLURM
    with engines.chosen(None, None, "some", tmp_path, **options) as engine:
        jobs = engine.executor._batch._executor  # type: ignore[attr-defined]
    limits = {"partition", "cpus_per_task", "gpus_per_node"}
    assert {name: value for name, value in jobs.parameters.items() if name in limits} == asked
    assert engine.num_threads == options.get("threads")
    script = jobs._make_submission_file_text("", "0")
    assert ("--gpus-per-node=1" in script) == ("device" in options)


def test_threads_that_are_asked_for_are_those_of_each_task(tmp_path: Path) -> None:
    for workers in (1, 2):
        with engines.chosen(workers, None, None, tmp_path, threads=3) as engine:
            assert engine.num_threads == 3
