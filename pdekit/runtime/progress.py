"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import rich.progress


class _Terminal:
    """Standard error; one that is closed meanwhile takes what is written to it, not the work that is going on."""

    def __init__(self) -> None:
        self._stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def rich_proxied_file(self) -> _Terminal:
        """What rich writes to while it redirects standard error; it would go around this object."""
        return self

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return cast(int, self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Progress:
    """`with Progress("solve", total=1.0) as bar: bar.update(0.3)`; silent unless stderr is a terminal.

    enabled: None decides by the terminal; True and False force it.
    """

    def __init__(self, description: str, *, total: float, enabled: bool | None = None) -> None:
        shown = sys.stderr.isatty() if enabled is None else enabled
        self._bar: rich.progress.Progress | None = None
        if shown:
            from rich import console, progress  # a twentieth of the package's import, where nothing is shown

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TextColumn("{task.percentage:>3.0f}%"),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=console.Console(file=cast(IO[str], _Terminal())),
                transient=True,
            )
            self._task = self._bar.add_task(description, total=total)

    def update(self, completed: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=completed)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
