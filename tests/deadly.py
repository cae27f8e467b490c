"""A function that kills the first process that evaluates it, for workers, which import no more than this module."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARK = "ITOFLOW_TEST_MARK"
"""The environment variable with the path of a folder that the killed process makes."""


def deadly(x: NDArray[Any]) -> NDArray[Any]:
    """cos 2πx; only in processes that were started by another one, and where a mark is asked for, deadly."""
    mark = os.environ.get(MARK)
    if mark is not None and multiprocessing.parent_process() is not None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(mark)
            os.kill(os.getpid(), signal.SIGKILL)
    return np.cos(2 * np.pi * x[..., 0])


def at(shared: NDArray[Any], shard: int) -> float:
    return float(deadly(shared)[shard])
