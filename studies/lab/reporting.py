"""Options, tables on the terminal, files and provenance that all studies share."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.markup import render
from rich.progress import track
from rich.table import Table

from pdekit.runtime.files import write_whole

if TYPE_CHECKING:
    import xarray as xr

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
IS_CLONE = (ROOT / ".git").exists()  # else this is installed, or a copy without its history
RESULTS = ROOT / "studies" / "results"  # those that are stored with the code
OUT = Path("out").absolute()  # where new ones go
OWN_RESULTS = RESULTS if IS_CLONE else OUT  # that a study may add to
console = Console()
_NO_MEMORY = ("allocate memory", "out of memory", "could not create a primitive")  # of torch, CUDA and oneDNN


def _writable(folder: Path) -> Path:
    """The folder for what a study is about to compute, refused before that where nothing can be written to it."""
    with one_line_errors():
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"--out: expected a folder that can be written, got {folder}")
    return folder


Seed = Annotated[int, typer.Option(help="of everything that is drawn at random")]
Out = Annotated[Path, typer.Option(help="folder for numbers and pictures", callback=_writable)]
Smoke = Annotated[bool, typer.Option("--smoke", help="as little as shows that everything runs, in seconds")]


def tracked(items: Iterable[T], title: str) -> Iterable[T]:
    """`items`, with a progress bar where there is a terminal."""
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)


def show(
    title: str,
    columns: Mapping[str, str | Callable[[Any], str]],
    rows: Iterable[Any],
    *,
    caption: str = "",
    num_texts: int = 1,
) -> None:
    """Print a table, `num_texts` columns of text first, the others of numbers.

    columns: how each shows a row: a function of it, or the format of its entries, "{sigma:g}" for a mapping and "{0}"
        for a sequence.
    """
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    shown = [[_shown(say, row) for say in columns.values()] for row in rows]
    for number, name in enumerate(columns):
        words = " ".join([name, *(render(cells[number]).plain for cells in shown)]).split()
        justify: Any = "left" if number < num_texts else "right"
        table.add_column(name, justify=justify, min_width=max(map(len, words), default=0))
    for cells in shown:
        table.add_row(*cells)
    console.print(table)


def _shown(say: str | Callable[[Any], str], row: Any) -> str:
    if callable(say):
        return say(row)
    return say.format(**row) if isinstance(row, Mapping) else say.format(*row)


_PACKAGES = ("itoflow", "numpy", "scipy", "numba", "rocket-fft", "xarray", "torch", "scikit-learn")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    if not IS_CLONE:  # a folder around an installed copy may have a history of its own
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


_COMMIT = _commit()  # now: a long study ends with the code it began with, whatever was committed meanwhile


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """The cores that this process may use; fewer than the machine has where a scheduler or taskset says so."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def provenance(config: Mapping[str, Any], *, device: str = "cpu") -> dict[str, Any]:
    """The stamp a stored result carries: what ran, with which versions, where and when (UTC)."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *map(without_folder, sys.argv[1:])]),
        "config": dict(config),
        "commit": _COMMIT,
        "versions": {p: v for p in _PACKAGES if (v := _version(p))} | {"python": platform.python_version()},
        "device": device,
        "cpu": f"{_cpu()}, {num_cores()} core{'s' if num_cores() > 1 else ''}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def without_folder(word: str) -> str:
    """The last part of an absolute path, and any other word as it is: where a file lay is no part of a result."""
    option, _, value = word.rpartition("=")
    if not Path(value).is_absolute():
        return word
    return f"{option}={Path(value).name}" if option else Path(value).name


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def store(
    path: Path, numbers: Mapping[str, Any], config: Any, *, fields: xr.Dataset | None = None, title: str = ""
) -> dict[str, Any]:
    """Write a study's numbers with the provenance that its `config`, a dataclass, belongs to; return both.

    fields: written beside them as NetCDF, with this title.
    """
    stamped = dict(numbers) | {"provenance": provenance(asdict(config))}
    if fields is not None:
        named = fields.assign_attrs({"title": title, "provenance": json.dumps(stamped["provenance"])})
        write_whole(path.with_suffix(".nc"), _netcdf(named))
    write_json(path, stamped)
    return stamped


def _netcdf(fields: xr.Dataset) -> bytes:
    """A file's content, made in memory, as HDF5 may crash where a write to disk fails."""
    try:
        return bytes(fields.to_netcdf(engine="h5netcdf"))
    except ValueError:  # xarray before 2025.9
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "fields.nc")
            fields.to_netcdf(place, engine="h5netcdf")
            return place.read_bytes()


class InputError(ValueError):
    """A command line asks for something that does not exist or does not fit."""


def at_least(least: int, **options: float | None) -> None:
    """Raise InputError for an option that is given and below `least`."""
    for name, value in options.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")


def listed(option: str, text: str | None, kind: Callable[[str], T]) -> list[T]:
    """The values of an option, separated by commas, each once; none where it is not given.

    Raises InputError where it is given and has none, or has some of another kind.
    """
    words = dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip())
    try:
        values = [kind(word) for word in words]
    except ValueError:
        raise InputError(f"--{option}: expected numbers separated by commas, got {text!r}") from None
    if text is not None and not values:
        raise InputError(f"--{option}: expected values separated by commas, got {text!r}")
    return values


def some_of(option: str, text: str, known: Iterable[str]) -> list[str]:
    """`listed`, which must be known."""
    names = dict.fromkeys(known)
    for word in (words := listed(option, text, str)):
        if word not in names:
            raise InputError(f"--{option}: expected some of {', '.join(names)}, got {word!r}")
    return words


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises InputError, in one line, where it holds anything else."""
    return parsed_object(path, _text(path))


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file; errors as `read_object`."""
    return [parsed_object(path, line, number) for number, line in enumerate(_text(path).splitlines(), 1)]


def parsed_object(path: Path, text: str, number: int = 1) -> dict[str, Any]:
    """The JSON object in `text`, which begins in line `number` of the file; errors as `read_object`."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number + error.lineno - 1}, is damaged: expected JSON, {error.msg}") from None
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{path}, line {number}, is damaged: {error}") from None
    except RecursionError:
        raise InputError(f"{path}, line {number}, is damaged: nested too deep for JSON of this project") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}, line {number}, is damaged: expected an object, got {text[:40]!r}")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error.reason} at byte {error.start}, expected UTF-8") from None


class Ended(KeyboardInterrupt):
    """The system asks this process to end, by the signal `number`: as Ctrl-C does, and so with its state on disk."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def one_line_errors(
    usage: tuple[type[Exception], ...] = (ValueError,),
    failure: tuple[type[Exception], ...] = (FloatingPointError, OSError),
    *,
    interrupted: str = "interrupted",
) -> Iterator[None]:
    """End a command on wrong input with one line and code 2, on a failed run with code 1, interrupted with 130.

    `interrupted` is what Ctrl-C prints, and what SIGTERM and a terminal that is closed would print (codes 143 and 129).
    A reader of the output that goes, as `head` does, ends the command without a word. Any other exception is a bug and
    shows itself.
    """
    try:
        with _asked_to_end():
            yield
    except KeyboardInterrupt as interruption:
        _end(interrupted, 128 + getattr(interruption, "number", signal.SIGINT))
    except BrokenPipeError as error:
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at the end
        raise SystemExit(128 + signal.SIGPIPE) from None
    except usage as error:
        _end(f"error: {error}", 2)
    except failure as error:
        _end(f"error: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        if (reason := lack_of_memory(error)) is None:
            raise
        _end(f"error: {reason}", 1)


def lack_of_memory(error: BaseException) -> str | None:
    """One line where memory did not suffice, of the machine or a GPU; None for any other error."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not any(words in text for words in _NO_MEMORY):
        return None
    return f"not enough memory: {text or 'Python had none left'}; fewer workers, or less at a time, need less"


def _end(line: str, code: int) -> None:
    with suppress(OSError):  # a terminal that is gone
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(" ".join(line.splitlines()))
    raise SystemExit(code) from None


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise `Ended`, unless somebody else minds them, as nohup."""

    def end(number: int, _: Any) -> None:
        raise Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
