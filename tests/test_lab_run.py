"""Tasks spread over engines: stopped, killed and continued anywhere, they end with the same records."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_records import less_where_and_when

from netkit import checkpoint
from netkit.training import load_model
from studies.lab import engines, records, run
from studies.lab.networks import Network
from studies.lab.tasks import Settings, Task, Training, tasks_for

pytestmark = pytest.mark.usefixtures("one_thread")


def tasks_in(out: Path, *, epochs: int = 60) -> list[Task]:
    """Two trainings, by default so long that they tell of their progress before they end, and what follows them."""
    settings = Settings(
        "digits", "digits", out, epochs=epochs, num_train=20, num_test=4, attack_steps=1, num_draws=2, width=2
    )
    return [
        *tasks_for(settings, Network.parse("En1ResNet8"), 0, ["nat", "fgsm"], loss="natural"),
        *tasks_for(settings, Network.parse("ResNet8"), 0, ["nat"], loss="natural"),
    ]


def run_all(tasks: list[Task], executor: Executor | None = None, **options: Any) -> list[Task]:
    """What was finished, in its order."""
    done: list[Task] = []
    engine = engines.Engine(engines.Here(), 1, 1) if executor is None else engines.Engine(executor, 2, 1)
    usual: dict[str, Any] = {"report": lambda *_: None}
    run.run_all(tasks, engine, finished=lambda task, *_: done.append(task), **usual | options)
    return done


def results(tasks: list[Task]) -> list[dict[str, Any]]:
    return less_where_and_when([records.of(task) for task in tasks])


def left_over(out: Path) -> list[str]:
    return [
        path.name for path in out.rglob("*") if path.suffix in (".progress", ".tmp") or path.name.startswith("stop-")
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[dict[str, Any]]:
    """What comes out of a run that nothing interrupts, in this process."""
    tasks = tasks_in(tmp_path_factory.mktemp("whole"))
    assert run_all(tasks) == tasks
    assert run_all(tasks) == []
    return results(tasks)


def on_processes(folder: Path) -> engines.Processes:
    return engines.Processes(2)


@contextlib.contextmanager
def on_dask(folder: Path) -> Iterator[Executor]:
    import distributed

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "local_directory": folder / "dask"}
    with distributed.LocalCluster(**options) as cluster, engines.dask(cluster.scheduler_address) as executor:
        yield executor


def kill_workers(most: int) -> int:
    """SIGKILL to so many workers below this process, whichever engine has started them; how many there were."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    ours = {os.getpid()}
    while below := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= below
    killed = 0
    for pid in ours:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if "spawn_main" in command and killed < most:
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "most"), [(on_processes, 2), (on_dask, 2), (on_dask, 1)])
def test_workers_that_are_killed_cost_nothing(
    engine: Callable[[Path], Any], most: int, whole: Any, tmp_path: Path
) -> None:
    tasks = tasks_in(tmp_path / "out")
    histories: dict[Task, Any] = {}

    def stored() -> dict[Task, Any]:
        started = [t for t in tasks if isinstance(t, Training) and t.path.exists()]
        return {t: checkpoint.load(t.path, kind="training")["history"] for t in started}

    def report(task: Task, done: int, total: int) -> None:
        if not histories and done < total and any(stored().values()):
            assert kill_workers(most) == most
            histories.update(stored())

    with engine(tmp_path) as executor:
        done = run_all(tasks, executor, report=report)
    assert sorted(map(str, done)) == sorted(map(str, tasks))
    assert results(tasks) == whole
    assert left_over(tmp_path / "out") == []
    assert any(histories.values())
    for task, history in histories.items():  # with the seconds that they took: continued, not repeated
        assert records.of(task)["history"][: len(history)] == history  # type: ignore[index]


@pytest.mark.parametrize("way", ["deadline", "stop"])
def test_a_worker_that_is_to_stop_leaves_its_state_on_disk(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, *_ = tasks_in(tmp_path / "out", epochs=9)
    clock = itertools.count()
    ticks = SimpleNamespace(time=lambda: next(clock), monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    stop: Any = SimpleNamespace(exists=lambda: way == "stop" and next(clock) >= 16)
    monkeypatch.setattr(run, "time", ticks)
    assert run.work(training, 1, 16 if way == "deadline" else math.inf, stop) is None
    assert 0 < checkpoint.load(training.path, kind="training")["epoch"] < 9
    assert not records.is_done(training)
    assert left_over(tmp_path / "out") == []


# Any executor does: here threads, whose tasks are made up


class Recorded(ThreadPoolExecutor):
    """Threads, and which tasks they were given; those in `lost` end without an answer."""

    def __init__(self, lost: Any = ()) -> None:
        super().__init__(2)
        self.lost, self.given = lost, list[str]()

    def submit(self, fn: Callable[..., Any], /, task: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given.append(str(task))
        if str(task) not in self.lost:
            return super().submit(fn, task, *args, **kwargs)
        future: Future[Any] = Future()
        future.set_exception(RuntimeError("killed for its memory"))
        return future


def made_up(task: Task, report: Callable[[int, int], None]) -> str:
    """In place of training and attacking."""
    if "train ResNet8" in str(task):
        raise FloatingPointError("training diverged")
    trainings = {training.path.stem: "x" for training in task.needs}
    records.write(task, {"validation": 0.5, "weights": "x", "trainings": trainings, "attack": "nat"})
    task.path.touch()
    return "done"


@pytest.mark.parametrize("executor", [None, Recorded()])
def test_a_task_that_fails_leaves_those_alone_that_do_not_need_it(
    executor: Executor | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "do", made_up)
    tasks = tasks_in(tmp_path)
    failed: dict[Task, Exception] = {}
    assert set(run_all(tasks, executor, failed=failed.__setitem__)) == set(tasks[:3])
    assert list(failed) == [tasks[3]]
    assert str(failed[tasks[3]]) == "training diverged"
    with pytest.raises(FloatingPointError, match="training diverged") as raised:
        run_all(tasks, executor)
    if executor is not None:
        assert 'raise FloatingPointError("training diverged")' in "".join(raised.value.__notes__)
    assert left_over(tmp_path) == []


def test_a_task_whose_worker_is_lost_three_times_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "do", made_up)
    first, *others, _, _ = tasks_in(tmp_path)
    executor = Recorded({str(first)})
    failed: dict[Task, Exception] = {}
    assert run_all([first, *others], executor, failed=failed.__setitem__) == []
    assert executor.given == 3 * [str(first)]
    expected = (
        "the process that was to train En1ResNet8.* ended unexpectedly 3 times, last with .*killed for its memory"
    )
    with pytest.raises(run.WorkerDied, match=expected):
        raise failed[first]
    with pytest.raises(run.WorkerDied, match=expected):
        run_all([first, *others], executor)


def test_an_interrupt_stops_what_runs_and_starts_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(task: Task, report: Callable[[int, int], None]) -> str:
        for step in range(1_000_000):
            time.sleep(0.01)
            report(step, 1_000_000)
        raise AssertionError("was not stopped")

    def interrupt(*news: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "do", endless)
    executor = Recorded()
    tasks = [task for seed in range(4) for task in tasks_in(tmp_path / str(seed))[:1]]
    with pytest.raises(KeyboardInterrupt):
        run_all(tasks, executor, report=interrupt)
    assert executor.given == 2 * [str(tasks[0])]
    assert left_over(tmp_path) == []


def test_the_costliest_task_comes_first_and_a_network_before_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "do", lambda task, report: made_up(task, report) if "En1" in str(task) else "")
    tasks = run.costliest_first(tasks_in(tmp_path))
    assert [task.cost for task in tasks] == sorted((task.cost for task in tasks), reverse=True)
    reverse = tasks[::-1]
    done = run_all(reverse)
    assert [str(task).split()[:2] for task in done if "En1" in str(task)] == [
        ["train", "En1ResNet8,"],
        ["attack", "En1ResNet8"],
        ["attack", "En1ResNet8"],
    ]
    executor = Recorded()
    run_all([*tasks, *tasks], executor)
    assert not [name for name in executor.given if "En1" in name]  # all is done


# Networks that are trained anew


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    out = tmp_path_factory.mktemp("short")
    run_all(tasks_in(out, epochs=1))
    return out


@pytest.mark.slow
def test_jobs_of_a_batch_system_leave_the_same_records(short: Path, tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path / "out", epochs=1)[:2]
    with engines.slurm("none", tmp_path / "logs", cluster="local") as executor:
        assert run_all(tasks, executor) == tasks
    assert results(tasks) == results(tasks_in(short, epochs=1)[:2])
    assert left_over(tmp_path / "out") == []


@pytest.mark.parametrize("lost", ["checkpoint", "record", "both"])
@pytest.mark.parametrize("is_another", [False, True])
def test_a_network_trained_again_is_attacked_again_only_if_it_is_another(
    is_another: bool, lost: str, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = run.do

    def elsewhere(task: Task, report: Callable[[int, int], None]) -> str:
        """As a machine whose rounding is another."""
        outcome = do(task, report)
        if isinstance(task, Training) and is_another:
            tree = checkpoint.load(task.path, kind="training")
            tree["best"]["weights"]["members.0.fc.bias"] += 0.5
            checkpoint.save(task.path, tree, kind="training")
            weights = checkpoint.fingerprint(load_model(task.path).state_dict().values())
            records.write(task, (records.of(task) or {}) | {"weights": weights})
        return outcome

    monkeypatch.setattr(run, "do", elsewhere)
    out = tmp_path / "out"
    shutil.copytree(short, out)
    tasks = tasks_in(out, epochs=1)
    assert run_all(tasks) == []
    training, nat, fgsm = tasks[:3]
    if lost != "record":
        training.path.unlink()
    if lost != "checkpoint":
        records.record_path(training).unlink()
    nat.path.unlink()
    records.record_path(nat).unlink()
    assert run_all(tasks) == [training, nat, *([fgsm] if is_another else [])]
    weights = records.of(training)["weights"]  # type: ignore[index]
    assert [records.of(task)["trainings"] for task in (nat, fgsm)] == 2 * [{training.path.stem: weights}]  # type: ignore[index]
    records.merge(records.of_tasks(tasks), tmp_path / "results")
    assert len(records.read(tmp_path / "results").scores) == 3
