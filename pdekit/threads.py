"""How many threads a kernel gets: one where waking the others costs more than they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from numba import get_num_threads, set_num_threads

SMALL = 1 << 16  # items of some tens of nanoseconds each: a few milliseconds, a scheduler's time slice


@contextmanager
def threads_for(items: int) -> Iterator[int]:
    """Run the kernels inside on one thread where there are few items; yields the number of threads in force.

    On a busy machine a parallel region waits for its last thread to be scheduled, which takes longer than a small
    region's work. Results do not depend on the number of threads.
    """
    before = get_num_threads()
    chosen = before if items >= SMALL else 1
    set_num_threads(chosen)
    try:
        yield chosen
    finally:
        set_num_threads(before)
