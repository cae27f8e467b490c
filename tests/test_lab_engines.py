"""Sweeps on engines, and how many threads a worker takes."""

from __future__ import annotations

import os
from pathlib import Path

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
