"""One self-contained page from studies/results: what reproduced, what did not, and every number with its origin.

Nothing is recomputed: the page and the block in README.md are drawn from the stored files alone, and the same files
give the same page. What has not been run is left out and named, with its command.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pdekit.runtime.files import write_whole
from studies.lab.networks import kind_of
from studies.lab.reporting import IS_CLONE, OUT, RESULTS, ROOT, InputError, console, one_line_errors
from studies.page import panels
from studies.page.results import DATASETS, Fields, Results, against
from studies.paper.figure4 import RANGES

TEMPLATES = Path(__file__).parent / "page" / "templates"
MARKS = ("<!-- results: written by make report -->", "<!-- end of results -->")


def main(
    results: Annotated[Path, typer.Option(help="folder of results")] = RESULTS,
    out: Annotated[Path, typer.Option(help="the page")] = OUT / "report.html",
    readme: Annotated[
        Path | None,
        typer.Option(help="file whose block between the marks is rewritten; usual: this repository's, by its results"),
    ] = None,
) -> None:
    """Write the page, and the headline figure and table in README.md.

    Pictures of CIFAR that lie beside the page are shown in it, but never stored with the results.
    """
    with one_line_errors(usage=(InputError,), failure=(OSError,)):
        if not results.is_dir():
            raise InputError(f"--results: expected a folder, got {results}")
        if readme is None and IS_CLONE and results.resolve() == RESULTS:
            readme = ROOT / "README.md"
        found = Results(results, out.parent)
        page = render(found)
        write_whole(out, page.encode())
        if readme is not None:
            write_whole(readme, with_block(readme.read_text(encoding="utf-8"), readme_block(found)).encode())
        missing = "".join(f"\nnot there yet: {study.title}: {study.command}" for study in found.missing)
        console.print(f"wrote {out} ({len(page.encode()) / 2**20:.1f} MiB){missing}", highlight=False, soft_wrap=True)


def render(results: Results) -> str:
    """The page as HTML, all of it."""
    return environment(autoescape=True).get_template("page.html").render(results=results)


def readme_block(results: Results) -> str:
    """The headline figure and table in Markdown, between the marks."""
    text = environment(autoescape=False).get_template("readme.md").render(results=results)
    return "\n\n".join(part for part in (MARKS[0], text.strip(), MARKS[1]) if part)


def with_block(text: str, block: str) -> str:
    """`text` with `block` in place of what is between the marks.

    Raises InputError unless each mark is there once.
    """
    if [text.count(mark) for mark in MARKS] != [1, 1]:
        raise InputError(f"README: expected {MARKS[0]!r} and {MARKS[1]!r} once each")
    return re.sub(f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}", lambda _: block, text, flags=re.DOTALL)


def environment(*, autoescape: bool) -> Environment:
    """The templates, with what they may call."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {each.__name__: each for each in (extent, fixed, kind_of, number, percent, points)}
    found.globals |= {each.__name__: each for each in (against, kind_of, origin, picture)}
    found.globals |= {"datasets": DATASETS, "panels": panels, "paper_ranges": RANGES}
    return found


# Numbers in words


def fixed(value: float, digits: int = 2, sign: str = "-") -> str:
    """With so many digits after the point; `sign` "+" shows that of positive numbers too."""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def points(interval: Sequence[float], digits: int = 1) -> str:
    """An interval of a difference of shares, in percentage points."""
    return " to ".join(fixed(100 * bound, digits, "+") for bound in interval)


def extent(values: Iterable[int]) -> str:
    low, high = min(found := [*values]), max(found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# What templates call


def picture(path: Path) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def origin(stamps: Sequence[Fields]) -> dict[str, list[str]]:
    """What the provenance of some results has to say: by what it is, the distinct values."""
    days = sorted(stamp["created"] for stamp in stamps)
    said: dict[str, Iterable[str]] = {
        "command": (stamp["command"] for stamp in stamps),
        "commit": (stamp["commit"] for stamp in stamps),
        "hardware": (f"{stamp['device']}; {stamp['cpu']}" for stamp in stamps),
        "versions": (", ".join(f"{name} {version}" for name, version in stamp["versions"].items()) for stamp in stamps),
        "made (UTC)": (days[0], days[-1]) if days else (),
        "configuration": (
            ", ".join(f"{name}: {json.dumps(stamp['config'][name], ensure_ascii=False)}" for name in stamp["config"])
            for stamp in stamps
        ),
    }
    distinct = {what: list(dict.fromkeys(value for value in values if value)) for what, values in said.items()}
    return {what: values for what, values in distinct.items() if values}


if __name__ == "__main__":
    typer.run(main)
