"""Engines: executors of concurrent.futures, and nothing of them but submit() and futures.

`Processes` is a pool on this machine, `dask` a scheduler by its address, `slurm` a partition through submitit. Any
other Executor, as of mpi4py.futures, does as well. Workers need the folder of outputs, and this code to import.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.lab.reporting import InputError, at_least, num_cores, tracked

Workers = Annotated[int | None, typer.Option(help="Tasks at a time; default: one a core, one on a GPU")]
Scheduler = Annotated[str | None, typer.Option(help="Run on the workers of this dask scheduler, tcp://host:port")]
Slurm = Annotated[str | None, typer.Option(help="Run as jobs of SLURM in this partition")]
Threads = Annotated[int | None, typer.Option(help="CPUs of a task; default: its share here, or what its worker has")]

_MOST_JOBS = 256  # in the queue of a batch system at a time
_PARTS = 64  # of a sweep: enough for workers to end together, few enough to be jobs of a batch system


@dataclass(frozen=True)
class Engine:
    """An executor, and what fits on it.

    num_workers: tasks at a time; infinite where the executor knows better.
    num_threads: of each task; None where the machine that runs it decides, see `own_threads`.
    """

    executor: Executor
    num_workers: float
    num_threads: int | None

    def sweep(
        self, title: str, measure: Callable[..., dict[str, Any]], cases: Iterable[tuple[Any, ...]]
    ) -> list[dict[str, Any]]:
        """[measure(*case) for case in cases], wherever each is measured."""
        waiting = list(cases)
        if isinstance(self.executor, Here):
            return [measure(*case) for case in tracked(waiting, title)]
        # every parts-th case to each: neighbours cost about the same
        parts = min(_PARTS, len(waiting))
        futures = [self.executor.submit(_measured, measure, waiting[first::parts]) for first in range(parts)]
        rows: list[dict[str, Any]] = [{}] * len(waiting)
        try:
            for first, future in enumerate(tracked(futures, title)):
                try:
                    rows[first::parts] = future.result()
                except BrokenExecutor:  # the worker was lost, and another has taken its place
                    rows[first::parts] = self.executor.submit(_measured, measure, waiting[first::parts]).result()
        finally:
            for future in futures:
                future.cancel()
        return rows


def _measured(measure: Callable[..., dict[str, Any]], cases: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [measure(*case) for case in cases]


@contextlib.contextmanager
def chosen(
    workers: int | None,
    scheduler: str | None,
    slurm_partition: str | None,
    out: Path,
    *,
    threads: int | None = None,
    device: str = "cpu",
    usual: int | None = None,
) -> Iterator[Engine]:
    """The engine for options of the command line; `usual`: workers where none are asked for, by default the cores.

    Raises InputError where the options contradict each other.
    """
    at_least(1, workers=workers, threads=threads)
    if scheduler is not None and slurm_partition is not None:
        raise InputError("--scheduler, --slurm: expected one of them, got both")
    count = workers or usual or num_cores()
    # from what was asked for, not from what is left to do: the number of threads can change the last bits
    own = threads or max(1, num_cores() // count)
    if scheduler is not None:
        with dask(scheduler) as executor:
            yield Engine(executor, float("inf"), threads)
    elif slurm_partition is not None:
        with slurm(slurm_partition, out / "slurm", threads=threads, device=device) as executor:
            yield Engine(executor, float("inf"), threads)
    elif count == 1:
        yield Engine(Here(), 1, own)
    else:
        with Processes(count) as executor:
            yield Engine(executor, count, own)


def own_threads() -> int:
    """Threads for a task on this machine: of SLURM's allocation, of OMP_NUM_THREADS, or one for each core.

    dask gives each of its workers OMP_NUM_THREADS=1 unless told otherwise. Another number can change the last bits.
    """
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return num_cores()


class Here(Executor):
    """This process, at once: an interrupt shows where it strikes."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Processes(ThreadPoolExecutor):
    """Processes of this machine, each a pool of its own, so that one that dies costs its own task alone.

    They end with this process. One in which something failed is replaced: after an error of CUDA a process can do no
    more, and keeps the memory that it had from others.
    """

    def __init__(self, num_workers: int) -> None:
        super().__init__(num_workers, initializer=_ignore_interrupts)
        self._own = threading.local()  # each thread minds one process

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._in_process, fn, *args, **kwargs)

    def _in_process(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        pool = getattr(self._own, "pool", None)
        if pool is None:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, mp_context=context, initializer=end_with, initargs=(os.getpid(),))
        self._own.pool = None
        try:
            result = pool.submit(fn, *args, **kwargs).result()
        except BaseException:
            pool.shutdown()  # to its end: Python 3.11 may wake one that is closing when it exits itself
            raise
        if isinstance(result, Exception):
            pool.shutdown()
        else:
            self._own.pool = pool
        return result


def _ignore_interrupts() -> None:
    # Processes inherit it: these go to all processes of a terminal or a job, and the first one tells the others.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def end_with(parent: int) -> None:
    """End this process soon after its parent: a killed one cannot end its workers, and a long attack would go on."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def dask(address: str) -> Iterator[Executor]:
    """The workers of a dask scheduler, `tcp://host:port`; needs dask.distributed."""
    from distributed import Client

    with Client(address) as client, client.get_executor() as executor:
        yield executor


def slurm(
    partition: str, folder: Path, *, threads: int | None = None, device: str = "cpu", cluster: str = "slurm"
) -> Executor:
    """One job of SLURM for each task, queued again where it is preempted; needs submitit. Logs go to `folder`.

    A job asks for one GPU where the device is one, and for `threads` CPUs, else for the partition's usual number.
    """
    import submitit

    batch = submitit.AutoExecutor(folder=folder, cluster=cluster)
    options: dict[str, Any] = {"slurm_partition": partition} if cluster == "slurm" else {}
    if threads is not None:
        options["cpus_per_task"] = threads
    if device.startswith("cuda"):
        options["gpus_per_node"] = 1
    batch.update_parameters(timeout_min=24 * 60, **options)
    return _Batch(batch)


class _Batch(ThreadPoolExecutor):
    """submitit as an Executor: a thread waits for each job."""

    def __init__(self, batch: Any) -> None:
        super().__init__(_MOST_JOBS)
        self._batch = batch

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(lambda: self._batch.submit(_Resumed(fn), *args, **kwargs).result())


class _Resumed(partial[Any]):
    """A function that submitit calls again, with the same arguments, where its job was preempted or timed out."""

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args, **kwargs)
