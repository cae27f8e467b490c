"""Docstrings of this project as reStructuredText.

Their dialect is plain text: paragraphs, lists that start with "- ", equations and tables indented by four spaces, code
in single backticks, and arguments as `name: shape, unit, meaning`, each on a line of its own with its continuation
indented. Everything else in them stands for itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

_ARGUMENT = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): ")
_MARKUP = re.compile(r"([\\*|_])")
_SHORT = re.compile(r"\b(Eqs?|Alg|Secs?|Figs?)\. (?=\d)")


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", on_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def on_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def restructured(lines: list[str]) -> list[str]:
    """Lines of a docstring as lines of reStructuredText."""
    out: list[str] = []
    for block in _blocks(lines):
        out += [*_of_block(block), ""]
    return out


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """What stands between blank lines; indented blocks in a row are one, with the blank lines between them."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    merged: list[list[str]] = []
    for block in filter(None, blocks):
        if merged and _is_indented(block) and _is_indented(merged[-1]):
            merged[-1] += ["", *block]
        else:
            merged.append(block)
    yield from merged


def _is_indented(block: list[str]) -> bool:
    return all(line.startswith("    ") for line in block if line)


def _of_block(block: list[str]) -> list[str]:
    if _is_indented(block):
        return ["::", "", *block]
    if block[0].startswith("- "):
        return [f"- {_inline(item[2:])}" for item in _items(block, "- ")]
    if _ARGUMENT.match(block[0]):
        return [_argument(item) for item in _items(block, _ARGUMENT)]
    if _is_code(block):
        return [".. code-block:: python", "", *(f"    {line}" for line in block)]
    return [_inline(" ".join(line.strip() for line in block))]


def _items(block: list[str], start: str | re.Pattern[str]) -> Iterator[str]:
    """Lines joined with their continuations."""
    item: list[str] = []
    for line in block:
        begins = line.startswith(start) if isinstance(start, str) else start.match(line)
        if begins and item:
            yield " ".join(item)
            item = []
        item.append(line.strip())
    yield " ".join(item)


def _argument(text: str) -> str:
    match = _ARGUMENT.match(text)
    assert match is not None
    names = ", ".join(f"**{_escaped(name)}**" for name in match[1].split(", "))
    return f"- {names}: {_inline(text[match.end() :])}"


def _is_code(block: list[str]) -> bool:
    try:
        parsed = ast.parse("\n".join(block))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Assign | ast.Import | ast.ImportFrom) for node in ast.walk(parsed))


def _inline(text: str) -> str:
    """Prose with its code; a space without width keeps either apart where RST wants a boundary."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick of its own
        return _escaped(text).replace("`", "\\`")
    out = []
    for number, part in enumerate(parts):
        out.append(f"\\ ``{part}``\\ " if number % 2 and part else _escaped(part))
    return "".join(out)


def _escaped(text: str) -> str:
    text = _SHORT.sub("\\1.\u2060\u00a0", text)  # a joiner, as a stop before a space ends a summary
    return _MARKUP.sub(r"\\\1", text)
