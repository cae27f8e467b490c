"""What a user names on the command line, problem.py, problem.py:name or module:name, and options of numbers."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

from studies.cli import CommandError


def target(text: str, default: str) -> Any:
    """The object that `text` names, `default` where it names a file or module alone.

    The file's folder, or for a module the current one, is looked in first, as `python FILE` does.
    Raises CommandError, with the line, where there is none or its code fails.
    """
    place, _, name = text.rpartition(":") if ":" in text else (text, "", default)
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    if not hasattr(module, name):
        there = ", ".join(key for key in vars(module) if not key.startswith("_")) or "nothing"
        raise CommandError(f"{place}: expected a {name!r}, got {there}; name another as {place}:NAME")
    return getattr(module, name)


def called(text: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a user's function returns; raises CommandError, with the line, where it fails."""
    try:
        return function(*args)
    except Exception as error:
        raise CommandError(f"{text}: {_where(error)}") from error


def number(text: str) -> float:
    """A finite number, also as a fraction: 8/255. Raises ValueError for anything else."""
    try:
        # a fraction has no exponent that it could be written out to
        value = float(Fraction(text)) if "/" in text else float(text)
    except (ZeroDivisionError, OverflowError):
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"expected a number, got {text}")
    return value


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CommandError(f"expected a file of Python, got no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module  # so that what it defines can be sent to other processes
    called(str(path), spec.loader.exec_module, module)
    return module


def _module(name: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise CommandError(f"expected problem.py, problem.py:NAME or module:NAME, got {name!r}")
    sys.path.insert(0, str(Path.cwd()))
    module: ModuleType = called(name, importlib.import_module, name)
    return module


def _where(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(str(error).split())
    return f"{Path(last.filename).name}, line {last.lineno}: {type(error).__name__}: {what}"
