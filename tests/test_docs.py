"""What the documentation says exists: names, tests, imports, numbers; its docstrings become valid markup.

`make docs` builds all of it and runs tutorial and gallery; here is what can be held without.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "generated" not in path.parts)
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py"), *(DOCS / "tutorial_source").glob("*.py")])
TABLE = (DOCS / "equations.md").read_text()

NAME = re.compile(r"`((?:pdekit|netkit|bridge|studies)(?:\.\w+)+)`")
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def named(name: str) -> Any:
    """What a dotted name stands for, by the longest module in it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[length:]:
                found = getattr(found, part)
        except AttributeError:
            continue
        return found
    raise AttributeError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_names_on_a_page_exist(page: Path) -> None:
    for name in NAME.findall(page.read_text()):
        if not name.endswith((".py", ".json")):
            named(name)


def test_tests_that_hold_an_equation_exist() -> None:
    cited = TEST.findall(TABLE)
    assert len(cited) > 60
    functions = {file: functions_in(file) for file in {file for file, _ in cited}}
    assert not [f"{file}::{test}" for file, test in cited if test not in functions[file]]


def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("what", "numbers"),
    [("Eq.", range(1, 19)), ("Figure", range(1, 7)), ("Table", range(1, 11)), ("Theorem", (1, 2)), ("Algorithm", (1,))],
)
def test_all_that_the_paper_numbers_has_a_row(what: str, numbers: range) -> None:
    rows = [line.split("|")[1] for line in TABLE.splitlines() if line.startswith("| ")]
    for number in numbers:
        pattern = rf"{what}s? (\d+\w? and )?{number}(?!\d)"
        assert any(re.match(rf"\s*{pattern}", row) for row in rows), f"{what} {number}"


def test_every_row_has_code_and_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| in the paper")]
    assert len(rows) > 45
    for row in rows:
        _, _, here, held, _ = (part.strip() for part in re.split(r"(?<!\\)\|", row))
        assert NAME.search(here) or "as Eq. 13" in here, row
        assert TEST.search(held), row


def blocks(page: Path) -> Iterator[str]:
    yield from re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_on_a_page_is_python_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page):
        check_imports(block)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_begin_with_a_title_and_import_what_there_is(script: Path) -> None:
    text = script.read_text()
    title, line, *_ = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert set(line) == {"="}
    assert len(line) == len(title)
    check_imports(text)


def check_imports(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pdekit", "netkit", "bridge"):
            for alias in node.names:
                named(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("package", ["pdekit", "netkit", "netkit.attacks", "bridge"])
def test_the_reference_has_all_public_names(package: str) -> None:
    listed = (DOCS / "api" / f"{package.split('.')[0]}.md").read_text()
    sections = re.findall(rf"currentmodule:: {re.escape(package)}\n(.*?)```", listed, flags=re.DOTALL)
    entries = {entry for section in sections for entry in re.findall(r"^   ([A-Za-z]\w+)$", section, re.MULTILINE)}
    public = {name for name in importlib.import_module(package).__all__ if not is_type_or_module(package, name)}
    assert entries == public


def is_type_or_module(package: str, name: str) -> bool:
    """Names of types have no page; modules have one of their own."""
    value = getattr(importlib.import_module(package), name)
    return type(value).__name__ == "module" or type(value).__module__ in ("typing", "types", "collections.abc")


def test_the_table_of_benchmarks_is_that_of_the_stored_run() -> None:
    stored = json.loads((ROOT / "studies/results/work_precision/work_precision.json").read_text())["rows"]
    programs = {row["program"] for row in stored}
    told = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (DOCS / "benchmarks.md").read_text().splitlines()
    ]
    rows = [row for row in told if len(row) == 5 and row[1] in programs]
    assert len(rows) == 12
    for case, program, *cells in rows:
        runs = [row for row in stored if row["case"] == case and row["program"] == program]
        assert runs
        for tolerance, cell in zip((1e-4, 1e-6, 1e-8), cells, strict=True):
            seconds = min((row["seconds"] for row in runs if row["error"] <= tolerance), default=None)
            assert cell == ("-" if seconds is None else f"{seconds:.3f}")


@pytest.fixture
def restructured(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    yield importlib.import_module("dialect").restructured
    sys.modules.pop("dialect", None)


def test_docstrings_become_markup(restructured: Any) -> None:
    docstring = """Take |F| and N_d (Eq. 10), `a_b`s too: x*y.

    u = e^(-t) f
    v = 0

x, dim: shape (P, d),
    on two lines; `solve` knows.
y: a number.

- a list
  goes on
- its end

result = solve(problem)

Raises ValueError for 2*x.
    And no more."""
    assert restructured(docstring.splitlines()) == [
        "Take \\|F\\| and N\\_d (Eq.\u2060\u00a010), \\ ``a_b``\\ s too: x\\*y.",
        "",
        "::",
        "",
        "    u = e^(-t) f",
        "    v = 0",
        "",
        r"- **x**, **dim**: shape (P, d), on two lines; \ ``solve``\  knows.",
        "- **y**: a number.",
        "",
        "- a list goes on",
        "- its end",
        "",
        ".. code-block:: python",
        "",
        "    result = solve(problem)",
        "",
        r"Raises ValueError for 2\*x. And no more.",
        "",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_run(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    runpy.run_path(str(script), run_name="__main__")
    plt.close("all")
