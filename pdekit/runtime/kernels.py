"""The one place where kernels are compiled: numba's `njit` with a disk cache where there is a folder for it.

numba keeps compiled code in NUMBA_CACHE_DIR, else beside the source in `__pycache__`, else in the user's cache folder.
Where none can be written (a read-only installation and no home) it refuses to compile at all; kernels are then
compiled anew in every process.

Kernels release the GIL, so Python threads that call them run at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.compiler_lock import global_compiler_lock

from pdekit.runtime.log import say_once


def kernel(*, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compile a function with numba's `options`, dividing by zero as IEEE 754 does, for Python callers only.

    cache: keep the compiled code on disk. numba cannot find it again once a user's function is among the arguments.
    """
    options = {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True, **options}

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(cache=cache, **options)(function)
        except RuntimeError:  # nothing is compiled yet: numba has found no folder for its cache
            say_once(
                "no folder for compiled code can be written, so every process compiles for some seconds; set "
                "NUMBA_CACHE_DIR to one that can"
            )
            return njit(**options)(function)

    return compiled


def static(number: int) -> tuple[int, ...]:
    """A small number as an argument that a kernel is compiled for: a tuple as long, which the kernel reads by `len`.

    Numba knows the length from the type, and drops what stands behind an `if len(argument) == other` unseen: one
    choice takes a fraction of the time of all of them to compile.
    """
    return (0,) * number


# A child forked while another thread compiles would find numba's lock held for good: wait for the compiler first.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
