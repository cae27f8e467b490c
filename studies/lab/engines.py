"""Where tasks run: executors of concurrent.futures, and nothing of them but submit() and futures.

`Processes` is a pool on this machine, `dask` a scheduler by its address, `slurm` a partition through submitit. Any
other Executor, as of mpi4py.futures, does as well. Workers need the folder of outputs, and this code to import.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any


class Processes(Executor):
    """Processes of this machine, each a pool of its own, so that one that dies costs its own task alone.

    They end with this process. One in which something failed is
    replaced: after an error of CUDA a process can do no more, and keeps the memory that it had from others.
    """

    def __init__(self, num_workers: int) -> None:
        self._pools = [_pool() for _ in range(num_workers)]
        self._last: list[Future[Any] | None] = [None] * num_workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start `fn` on a free process, or behind the task of the first one."""
        free = (number for number, last in enumerate(self._last) if last is None or last.done())
        number = next(free, 0)
        last = self._last[number]
        if last is not None and last.done() and (last.exception() or isinstance(last.result(), Exception)):
            self._pools[number].shutdown(wait=False)
            self._pools[number] = _pool()
        # what starts meanwhile inherits it: Ctrl-C goes to all processes of a terminal, and this one tells the others
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._last[number] = future = self._pools[number].submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent)


def _follow_parent() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent cannot end its workers, and a long attack would not notice for minutes.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def dask(address: str) -> Iterator[Executor]:
    """The workers of a dask scheduler, `tcp://host:port`; needs dask.distributed."""
    from distributed import Client

    with Client(address) as client, client.get_executor() as executor:
        yield executor


def slurm(partition: str, folder: Path, *, cluster: str = "slurm") -> Executor:
    """One job of SLURM for each task, queued again where it is preempted; needs submitit. Logs go to `folder`."""
    import submitit

    batch = submitit.AutoExecutor(folder=folder, cluster=cluster)
    options: dict[str, Any] = {"slurm_partition": partition} if cluster == "slurm" else {}
    batch.update_parameters(timeout_min=24 * 60, **options)
    return _Batch(batch)


class _Batch(Executor):
    """submitit as an Executor: a thread waits for each job."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        job = self._batch.submit(_Resumed(fn), *args, **kwargs)
        threading.Thread(target=self._wait, args=(future, job), daemon=True).start()
        return future

    @staticmethod
    def _wait(future: Future[Any], job: Any) -> None:
        try:
            future.set_result(job.result())
        except Exception as error:
            future.set_exception(error)


class _Resumed:
    """A function that submitit calls again, with the same arguments, where its job was preempted or timed out."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args, **kwargs)
