"""Stored results that are damaged are named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.certificate.mutations import survivors
from studies.lab.reporting import InputError, read_objects


def test_stored_lines_that_are_no_objects_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    whole = '{"seed": 0}\n{"seed": 1}\n{"seed": 2}\n'
    path.write_text(whole)
    assert read_objects(path) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    for content, message in (
        (whole.encode() + b'{"seed"', "line 4, is damaged: expected JSON"),
        (whole.encode() + b"[1]", r"line 4, is damaged: expected an object, got '\[1\]'"),
        (b'{"seed": "\xff"}', "is damaged: invalid start byte at byte 10, expected UTF-8"),
        (b'{"a":' + b"[" * 100_000, "line 1, is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_objects(path)
    path.write_text(whole)
    for _ in survivors(path, 300, seed=0, read=lambda: read_objects(path), refuses=InputError):
        pass  # JSON carries no digest: what is not refused is an object a line, at least
