"""Files that are complete or absent, never half-written."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_MOST_TRIES = 10


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], Any]) -> None:
    """Write a file that takes the place of `path` when it is complete and on disk; creates its folder.

    content: the bytes, or a function that writes them to a file. Several processes may do so at once: the last one
    counts. Raises OSError, with the name, where the disk is full or the folder takes no files; what was there stays.
    """
    write = content if callable(content) else lambda file: file.write(content)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):  # by a process that was killed
            left.unlink(missing_ok=True)
        for _ in range(_MOST_TRIES):
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(partial, path)
                return
            except FileNotFoundError:  # another process that writes there took it for left behind
                continue
    except OSError as error:  # of a full disk it has no name
        raise OSError(error.errno, f"{error.strerror or error}; what was there stays", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    raise FileExistsError(f"{path}: expected one process to write it, got others that do so all the time")
