"""Jobs spread over processes that die with their parent and lose nothing when they do."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from jobs import Job, TrainTask, cost, run_task

from netkit import parallel
from netkit.memory import keep_freed_memory


class WorkerDied(RuntimeError):
    """A worker process ended without an answer, as when the system kills it for its memory."""


class OutOfTime(Exception):
    """Raised inside a task once the deadline has passed, where its state is on disk or about to be."""


def run_all(
    jobs: Iterable[Job],
    *,
    device: str,
    num_workers: int,
    num_threads: int,
    report: Callable[[Job, int, int], None],
    finished: Callable[[Job, str, float], None],
    failed: Callable[[Job, Exception], None] | None = None,
    deadline: float = math.inf,
) -> None:
    """Do all jobs that are not done yet, in their order, on `num_workers` processes (1: in this one).

    A job waits for the trainings it needs; predictions on disk are made anew where such a training ends with another
    network. `report(job, done, total)`, `finished(job, outcome, seconds)` and `failed(job, error)` are called in this
    process. From `deadline` (as `time.time()` counts) on nothing new is started, and what runs stops with its state on
    disk at its next training step or block of images, however long that takes: so that every run gets further.

    Processes that torchrun started (`netkit.parallel.joined`) all call this and do the jobs between them, whatever
    `num_workers`; only the first reports. They have no `failed` and no `deadline`.

    Raises what a job raises, and WorkerDied where its process ends without an answer, unless `failed` is given, which
    then has the last word: what needs that job is left out.
    """
    jobs = list(dict.fromkeys(jobs))
    are_done = parallel.from_first(lambda: [job.is_done() for job in jobs])
    done = {job for job, is_done in zip(jobs, are_done, strict=True) if is_done}
    untrained = {job.path for job in jobs if isinstance(job.task, TrainTask) and job not in done}
    pending = [job for job in jobs if job not in done or not untrained.isdisjoint(job.needs)]
    queue = _Queue(pending, untrained, deadline)
    if parallel.processes() != (0, 1):
        assert failed is None
        assert deadline == math.inf
        _run_together(queue.pending, device, num_threads, report, finished)
    elif num_workers == 1:
        _prepare_process(device, num_threads)
        while (job := queue.take()) is not None:
            started = time.perf_counter()
            try:
                outcome = run_task(job.task, job.settings, _until(deadline, partial(report, job)))
            except OutOfTime:
                return
            except Exception as error:
                if failed is None:
                    raise
                failed(job, error)
            else:
                queue.done(job)
                finished(job, outcome, time.perf_counter() - started)
    elif queue.pending:
        _run_in_processes(queue, device, min(num_workers, len(queue.pending)), num_threads, report, finished, failed)


def costliest_first(jobs: Iterable[Job]) -> list[Job]:
    """The order in which the last job to finish keeps the others waiting least."""
    return sorted(jobs, key=lambda job: -cost(job.task, job.settings))


class _Queue:
    """Jobs not started yet, in order, and the checkpoints that are still to come."""

    def __init__(self, pending: list[Job], untrained: set[Path], deadline: float) -> None:
        self.pending, self.untrained, self.deadline = pending, untrained, deadline

    def take(self) -> Job | None:
        """The first job that is to be done and whose needs are met; None where there is none, or no time left."""
        while time.time() < self.deadline:
            job = next((job for job in self.pending if self.untrained.isdisjoint(job.needs)), None)
            if job is None:
                return None
            self.pending.remove(job)
            if not job.is_done():  # predictions may prove to be those of the network just trained
                return job
        return None

    def done(self, job: Job) -> None:
        self.untrained -= {job.path}


def _until(deadline: float, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`report` that ends its task once `deadline` has passed, unless the task is through."""

    def checked(done: int, total: int) -> None:
        report(done, total)
        if done < total and time.time() >= deadline:
            raise OutOfTime

    return checked


def _run_together(
    pending: list[Job],
    device: str,
    num_threads: int,
    report: Callable[[Job, int, int], None],
    finished: Callable[[Job, str, float], None],
) -> None:
    """All processes train each network together; then each attacks its own part of the list."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    _prepare_process(device, num_threads)
    rank, world = parallel.processes()
    is_first = rank == 0

    def outcome_of(job: Job) -> tuple[Job, str, float]:
        started = time.perf_counter()
        outcome = run_task(job.task, job.settings, partial(report, job) if is_first else lambda done, total: None)
        done = job, outcome, time.perf_counter() - started
        if is_first:
            finished(*done)
        return done

    for job in pending:
        if isinstance(job.task, TrainTask):
            outcome_of(job)
            parallel.gathered(None)  # what the first process writes last must be there for all
    attacks = parallel.from_first(
        lambda: [job for job in pending if not isinstance(job.task, TrainTask) and not job.is_done()]
    )
    for others in parallel.gathered([outcome_of(job) for job in attacks[rank::world]])[1:]:
        for done in others if is_first else []:
            finished(*done)


def _run_in_processes(
    queue: _Queue,
    device: str,
    num_workers: int,
    num_threads: int,
    report: Callable[[Job, int, int], None],
    finished: Callable[[Job, str, float], None],
    failed: Callable[[Job, Exception], None] | None,
) -> None:
    workers: list[_Worker] = []
    try:
        workers += [_Worker(device, num_threads, queue.deadline) for _ in range(num_workers)]
        while True:
            for worker in workers:
                if worker.job is None and (job := queue.take()) is not None:
                    worker.start(job)
            busy = [worker.connection for worker in workers if worker.job is not None]
            if not busy:
                break
            answering = wait(busy)
            for number, worker in enumerate(workers):
                if worker.connection not in answering or worker.job is None:
                    continue
                job = worker.job
                kind, *content = worker.answer()
                if kind == "progress":
                    report(job, *content)
                elif kind == "done":
                    queue.done(job)
                    finished(job, content[0], time.perf_counter() - worker.started)
                elif kind == "failed":
                    if failed is None:
                        raise content[0]
                    failed(job, content[0])
                    # after an error of CUDA a process can do no more, and keeps the memory that it had from others
                    if isinstance(content[0], WorkerDied) or (device != "cpu" and isinstance(content[0], RuntimeError)):
                        worker.end()
                        workers[number] = _Worker(device, num_threads, queue.deadline)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


class _Worker:
    """A process that does one job at a time, as this one sees it."""

    def __init__(self, device: str, num_threads: int, deadline: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, device, num_threads, deadline), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.started = 0.0

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()

    def start(self, job: Job) -> None:
        self.connection.send(job)
        self.job, self.started = job, time.perf_counter()

    def answer(self) -> tuple[Any, ...]:
        """("progress", done, total), or what frees the worker: ("done", outcome), ("failed", error) or ("stopped",)."""
        try:
            message: tuple[Any, ...] = self.connection.recv()
        except (EOFError, ConnectionResetError):
            message = "failed", WorkerDied(f"the process that was to {self.job} ended unexpectedly")
        if message[0] != "progress":
            self.job = None
        return message


def _work(connection: Connection, device: str, num_threads: int, deadline: float) -> None:
    """A worker's life: receive a job, answer with progress and an outcome; end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _prepare_process(device, num_threads)
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 0.2 or done == total:
            connection.send(("progress", done, total))
            reported = time.monotonic()

    try:
        while True:
            job = connection.recv()
            try:
                connection.send(("done", run_task(job.task, job.settings, _until(deadline, report))))
            except (ConnectionError, KeyboardInterrupt):
                raise
            except OutOfTime:
                connection.send(("stopped",))
            except Exception as error:
                error.add_note(traceback.format_exc())
                connection.send(("failed", error))
    except (EOFError, ConnectionError):
        os._exit(1)


def _prepare_process(device: str, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    if device == "cpu":
        keep_freed_memory()


def _end_with_launcher() -> None:
    # A torchrun that is killed leaves its processes running, in the way of those that continue their work.
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def _end_with_parent() -> None:
    # A killed parent cannot end its workers, and a long attack would not notice for minutes.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
