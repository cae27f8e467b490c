"""Tasks spread over processes that die with their parent and lose nothing when they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from jobs import EvaluateTask, Settings, Task, TrainTask, cost, is_done, run_task

from netkit.memory import keep_freed_memory


class WorkerDied(RuntimeError):
    """A worker process ended without an answer, as when the system kills it for its memory."""


def run_all(
    tasks: Iterable[Task],
    settings: Settings,
    *,
    num_workers: int,
    num_threads: int,
    report: Callable[[Task, int, int], None],
    finished: Callable[[Task, str, float], None],
) -> None:
    """Do all tasks that are not done yet, costliest first, on `num_workers` processes (1: in this one).

    `report(task, done, total)` and `finished(task, outcome, seconds)` are called in this process. Raises what
    a task raises, and WorkerDied where a process ends without an answer.
    """
    pending = [task for task in dict.fromkeys(tasks) if not is_done(task, settings)]
    pending.sort(key=lambda task: -cost(task, settings))
    if num_workers == 1:
        _prepare_process(settings, num_threads)
        for task in sorted(pending, key=lambda task: isinstance(task, EvaluateTask)):
            started = time.perf_counter()
            outcome = run_task(task, settings, partial(report, task))
            finished(task, outcome, time.perf_counter() - started)
    elif pending:
        _run_in_processes(pending, settings, min(num_workers, len(pending)), num_threads, report, finished)


def _run_in_processes(
    pending: list[Task],
    settings: Settings,
    num_workers: int,
    num_threads: int,
    report: Callable[[Task, int, int], None],
    finished: Callable[[Task, str, float], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    untrained = {task for task in pending if isinstance(task, TrainTask)}
    try:
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, settings, num_threads), daemon=True)
            process.start()
            theirs.close()
            workers.append(_Worker(process, ours))
        while pending or any(worker.task for worker in workers):
            for worker in workers:
                ready = (t for t in pending if isinstance(t, TrainTask) or untrained.isdisjoint(t.needs))
                if worker.task is None and (task := next(ready, None)) is not None:
                    pending.remove(task)
                    worker.start(task)
            answering = wait([worker.connection for worker in workers if worker.task is not None])
            for worker in workers:
                if worker.connection in answering and worker.task is not None:
                    done = worker.task
                    kind, *content = worker.answer()
                    if kind == "progress":
                        report(done, *content)
                    else:
                        untrained -= {done}
                        finished(done, content[0], time.perf_counter() - worker.started)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task | None = None
    started: float = 0.0

    def start(self, task: Task) -> None:
        self.connection.send(task)
        self.task, self.started = task, time.perf_counter()

    def answer(self) -> tuple[Any, ...]:
        """("progress", done, total) or ("done", outcome), which frees the worker."""
        try:
            message: tuple[Any, ...] = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerDied(f"the process that was to {self.task} ended unexpectedly") from None
        if message[0] == "failed":
            raise message[1]
        if message[0] == "done":
            self.task = None
        return message


def _work(connection: Connection, settings: Settings, num_threads: int) -> None:
    """A worker's life: receive a task, answer with progress and an outcome; end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _prepare_process(settings, num_threads)
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 0.2 or done == total:
            connection.send(("progress", done, total))
            reported = time.monotonic()

    try:
        while True:
            task = connection.recv()
            try:
                connection.send(("done", run_task(task, settings, report)))
            except (ConnectionError, KeyboardInterrupt):
                raise
            except Exception as error:
                error.add_note(traceback.format_exc())
                connection.send(("failed", error))
    except (EOFError, ConnectionError):
        os._exit(1)


def _prepare_process(settings: Settings, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    if settings.device == "cpu":
        keep_freed_memory()


def _end_with_parent() -> None:
    # A killed parent cannot end its workers, and a long attack would not notice for minutes.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
