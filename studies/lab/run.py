"""Tasks in their order, each after the trainings that it needs, here or spread by an executor; nothing done is lost."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path

import torch

from netkit import parallel
from netkit.memory import keep_freed_memory
from studies.lab import engines, records
from studies.lab.reporting import lack_of_memory
from studies.lab.tasks import Scoring, Task, Training
from studies.lab.work import do

_MOST_TRIES = 3
_SECONDS_BETWEEN_NEWS = 0.5

Report = Callable[[Task, int, int], None]
Finished = Callable[[Task, str, float], None]
Failed = Callable[[Task, Exception], None]


class WorkerDied(RuntimeError):
    """Workers that were to do a task ended without an answer, as when the system kills them for their memory."""


class OutOfTime(Exception):
    """Raised inside a task that is to stop, where its state is on disk or about to be."""


def run_all(
    tasks: Iterable[Task],
    engine: engines.Engine,
    *,
    report: Report,
    finished: Finished,
    failed: Failed | None = None,
    deadline: float = math.inf,
) -> None:
    """Do all tasks that are not done yet, each once the trainings that it needs are.

    `report(task, done, total)`, `finished(task, outcome, seconds)` and `failed(task, error)` are called in this
    process. From `deadline` (as `time.time()` counts), or Ctrl-C, on nothing new is started, and what runs stops with
    its state on disk at its next training step or block of images. A task whose worker is lost is tried again from
    its checkpoint, three times in all.

    Processes that torchrun started (`netkit.parallel.joined`) all call this and do the tasks between them; only the
    first reports. They use no executor, no `failed` and no `deadline`.

    Raises what a task raises, and WorkerDied, unless `failed` is given, which then has the last word: what needs that
    task is left out.
    """
    pending = parallel.from_first(lambda: _to_do(tasks))
    if parallel.processes() != (0, 1):
        _run_together(pending, engine.num_threads, report, finished)
    elif pending:
        _Run(pending, engine, report, finished, failed, deadline).run()


def costliest_first(tasks: Iterable[Task]) -> list[Task]:
    """The order in which the last task to finish keeps the others waiting least."""
    return sorted(tasks, key=lambda task: -task.cost)


def _to_do(tasks: Iterable[Task]) -> list[Task]:
    """The tasks that are not done, or need one that is not."""
    unique = list(dict.fromkeys(tasks))
    undone = {task for task in unique if not records.is_done(task)}
    return [task for task in unique if task in undone or not undone.isdisjoint(task.needs)]


class _Run:
    """The tasks of one run: those not started yet, in order, those that run, and the trainings still to come."""

    def __init__(
        self,
        pending: list[Task],
        engine: engines.Engine,
        report: Report,
        finished: Finished,
        failed: Failed | None,
        deadline: float,
    ) -> None:
        self.pending, self.engine, self.deadline = pending, engine, deadline
        self.report, self.finished, self.failed = report, finished, failed
        self.untrained = {task for task in pending if isinstance(task, Training)}
        self.running: dict[Future[Answer], Task] = {}
        self.lost: Counter[Task] = Counter()
        self.stop = pending[0].settings.out / f"stop-{secrets.token_hex(4)}"

    def run(self) -> None:
        try:
            while self._start():
                ended, _ = wait(self.running, timeout=_SECONDS_BETWEEN_NEWS, return_when=FIRST_COMPLETED)
                for future in ended:
                    self._settle(self.running.pop(future), future)
                for task in self.running.values():
                    with contextlib.suppress(OSError, ValueError):  # not there yet, or half written
                        done, total = map(int, _news_of(task).read_text().split())
                        self.report(task, done, total)
        finally:  # after an error or Ctrl-C: what runs stops with its state on disk
            with contextlib.suppress(OSError):  # where nothing can be written, they end by themselves
                self.stop.parent.mkdir(parents=True, exist_ok=True)
                self.stop.touch()
            wait(self.running)
            with contextlib.suppress(OSError):
                self.stop.unlink()

    def _start(self) -> bool:
        """Start what can be started; whether anything runs."""
        while len(self.running) < self.engine.num_workers and (task := self._take()) is not None:
            tell = partial(self.report, task) if isinstance(self.engine.executor, engines.Here) else None
            future = self.engine.executor.submit(work, task, self.engine.num_threads, self.deadline, self.stop, tell)
            self.running[future] = task
        return bool(self.running)

    def _take(self) -> Task | None:
        """The first task that is to be done and whose needs are met; None where there is none, or no time left."""
        while time.time() < self.deadline:
            task = next((task for task in self.pending if self.untrained.isdisjoint(task.needs)), None)
            if task is None:
                return None
            self.pending.remove(task)
            if not records.is_done(task):  # predictions may prove to be those of the network just trained
                return task
        return None

    def _settle(self, task: Task, future: Future[Answer]) -> None:
        try:
            answer = future.result()
        except Exception as error:  # the worker was lost
            self.lost[task] += 1
            if self.lost[task] < _MOST_TRIES:
                self.pending.insert(0, task)
                return
            times = f"ended unexpectedly {_MOST_TRIES} times"
            answer = WorkerDied(f"the process that was to {task} {times}, last with {error!r}")
        if isinstance(answer, Exception):
            if self.failed is None:
                raise answer
            self.failed(task, answer)
        elif answer is not None:
            self.untrained -= {task}
            self.finished(task, *answer)


Answer = tuple[str, float] | Exception | None


def work(
    task: Task,
    num_threads: int | None,
    deadline: float,
    stop: Path,
    tell: Callable[[int, int], None] | None = None,
) -> Answer:
    """Do `task` in a worker, with news of its progress to `tell`, or else in a file.

    Returns (outcome, seconds), None where it had to stop, or what it raised: not every engine hands an exception on,
    and so what an engine itself raises means that the worker was lost.
    """
    _prepare_process(task.settings.device, num_threads)
    started, told = time.perf_counter(), -math.inf
    news = _news_of(task)

    def report(done: int, total: int) -> None:
        nonlocal told
        if tell is not None:
            tell(done, total)
        elif time.monotonic() - told < _SECONDS_BETWEEN_NEWS and done < total:
            return
        else:
            told = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk is the checkpoint's to tell
                news.parent.mkdir(parents=True, exist_ok=True)
                news.write_text(f"{done} {total}")
        if done < total and (time.time() >= deadline or stop.exists()):
            raise OutOfTime

    try:
        return do(task, report), time.perf_counter() - started
    except OutOfTime:
        return None
    except Exception as error:
        if (reason := lack_of_memory(error)) is not None:
            return WorkerDied(f"the process that was to {task} had {reason}")
        error.add_note(traceback.format_exc())
        return error
    finally:
        with contextlib.suppress(OSError):
            news.unlink(missing_ok=True)


def _news_of(task: Task) -> Path:
    return task.path.with_suffix(".progress")


def _prepare_process(device: str, num_threads: int | None) -> None:
    torch.set_num_threads(num_threads or engines.own_threads())
    if device == "cpu":
        keep_freed_memory()


def _run_together(pending: list[Task], num_threads: int | None, report: Report, finished: Finished) -> None:
    """All processes of torchrun train each network together; then each attacks its own part of the list."""
    # a torchrun that is killed leaves its processes running, in the way of those that continue their work
    engines.end_with(os.getppid())
    rank, world = parallel.processes()

    def outcome_of(task: Task) -> tuple[Task, str, float]:
        _prepare_process(task.settings.device, num_threads)
        started = time.perf_counter()
        outcome = do(task, partial(report, task) if rank == 0 else lambda done, total: None)
        done = task, outcome, time.perf_counter() - started
        if rank == 0:
            finished(*done)
        return done

    for task in pending:
        if isinstance(task, Training):
            outcome_of(task)
            parallel.gathered(None)  # what the first process writes last must be there for all
    scorings = parallel.from_first(
        lambda: [task for task in pending if isinstance(task, Scoring) and not records.is_done(task)]
    )
    for others in parallel.gathered([outcome_of(task) for task in scorings[rank::world]])[1:]:
        for done in others if rank == 0 else []:
            finished(*done)
