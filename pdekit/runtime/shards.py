"""Work in shards, on any `concurrent.futures.Executor`: processes, dask, SLURM through submitit, MPI.

What all shards share travels with each job as bytes and is unpacked once in each process. Results come in the order of
the shards, whoever computed them.
"""

from __future__ import annotations

import itertools
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import lru_cache
from typing import Any, TypeVar

try:  # where a cluster's library has brought it along, functions of a script or notebook may travel, too
    from cloudpickle import dumps
except ImportError:
    from pickle import dumps

Shared = TypeVar("Shared")
Shard = TypeVar("Shard")
Result = TypeVar("Result")

_WAITING = 64  # jobs handed out at a time


def in_order(
    executor: Executor | None,
    function: Callable[[Shared, Shard], Result],
    shared: Shared,
    shards: Iterable[Shard],
    *,
    each: int = 1,
) -> Iterator[Result]:
    """function(shared, shard) of each shard, in their order, `each` to a job; in this process where executor is None.

    Raises ValueError where `shared` cannot travel, and whatever a job raises; jobs that have not begun are cancelled.
    """
    if executor is None:
        for shard in shards:
            yield function(shared, shard)
        return
    packed = _packed(shared)
    waiting: deque[Future[list[Result]]] = deque()
    remaining = iter(shards)
    try:
        while True:
            while len(waiting) < _WAITING and (job := list(itertools.islice(remaining, each))):
                waiting.append(executor.submit(_work, function, packed, job))
            if not waiting:
                return
            yield from waiting.popleft().result()
    except BrokenExecutor as error:
        raise RuntimeError(
            "executor: expected workers that live on, got one that ended; start another executor"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def _packed(shared: Any) -> bytes:
    try:
        return bytes(dumps(shared))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"executor: expected a problem that can be pickled, got {error}; define its functions at the top level of "
            "a module, or install cloudpickle"
        ) from error


def _work(function: Callable[[Any, Any], Any], packed: bytes, shards: list[Any]) -> list[Any]:
    shared = _unpacked(packed)
    return [function(shared, shard) for shard in shards]


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Any:
    return pickle.loads(packed)
