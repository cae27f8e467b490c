"""Log lines, each at most once a process, for what costs speed but is no error."""

from __future__ import annotations

import logging

_log = logging.getLogger("pdekit")
_told: set[str] = set()


def say_once(message: str) -> None:
    """A line on the logger "pdekit"; by default it is printed to stderr."""
    if message not in _told:
        _told.add(message)
        _log.warning(message)
