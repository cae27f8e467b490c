"""Kernels spread over threads that are ours rather than numba's.

numba's own layers end the process where several Python threads call kernels at once (workqueue), and end or hang a
child forked after their first use (OpenMP). Here a kernel works on a range of items and releases the GIL; the ranges
are handed out to the calling thread and to helpers from a pool that every process has for itself. A caller that gets
no helper does all the work alone. Results do not depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba

_SMALL = 1 << 16  # items of some tens of nanoseconds each: a few milliseconds, a scheduler's time slice
_RANGES_A_THREAD = 4  # so that a thread that the machine holds up leaves little for the others to wait for

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def num_threads() -> int:
    """The number of threads in force: NUMBA_NUM_THREADS, by default the CPUs, or less by `numba.set_num_threads`."""
    try:
        numba.threading_layer()
    except ValueError:  # never started, so that nobody has set a number
        return int(numba.config.NUMBA_NUM_THREADS)
    return int(numba.get_num_threads())


def threads_for(items: int) -> int:
    """Threads worth waking for so many items: one where they are few.

    On a busy machine work ends when its last thread has been scheduled, which takes longer than a small work itself.
    """
    return num_threads() if items >= _SMALL else 1


def spread(kernel: Callable[..., None], count: int, *args: Any, items: int | None = None) -> None:
    """kernel(first, last, *args) on ranges that make up 0 .. count, by as many threads as the items are worth.

    items: the size of the work, in units of some tens of nanoseconds; `count` by default.
    """
    threads = min(threads_for(count if items is None else items), count)
    if threads <= 1:
        kernel(0, count, *args)
        return
    pieces = min(count, _RANGES_A_THREAD * threads)
    cuts = [count * i // pieces for i in range(pieces + 1)]
    ranges = deque(pairwise(cuts))

    def work() -> None:
        while ranges:
            try:
                first, last = ranges.popleft()
            except IndexError:  # another thread took the last one
                return
            kernel(first, last, *args)

    helpers = _helpers(work, threads - 1)
    try:
        work()
    finally:
        ranges.clear()
        running = [helper for helper in helpers if not helper.cancel()]  # who has not begun is not waited for
        for helper in running:
            helper.exception()
    for helper in running:
        helper.result()


def _helpers(work: Callable[[], None], count: int) -> list[Future[None]]:
    """`work` begun by the pool, in as many threads as can be had."""
    global _pool
    helpers: list[Future[None]] = []
    try:
        with _lock:
            if _pool is None:
                _pool = ThreadPoolExecutor(int(numba.config.NUMBA_NUM_THREADS), thread_name_prefix="pdekit")
        for _ in range(count):
            helpers.append(_pool.submit(work))
    except RuntimeError:  # no more threads: the process has as many as it may, or is about to end
        pass
    return helpers


def _forget_pool() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
