"""One self-contained page from studies/results: what reproduced, what did not, and every number with its origin.

Nothing is recomputed: the page and the block in README.md are drawn from the stored files alone, and the same files
give the same page. What has not been run is left out and named, with its command.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from studies.lab.networks import Kind
from studies.lab.reporting import ROOT, InputError, console, one_line_errors
from studies.page.findings import (
    DATASETS,
    SCHEMES,
    conditions,
    findings,
    number,
    percent,
    points,
    significant,
    still_right,
    tally,
)
from studies.page.panels import (
    accuracies,
    extent_of,
    heads,
    heads_of_orderings,
    name_of,
    of_levels,
    of_rates,
    of_the_network,
    training_curves,
)
from studies.page.results import KINDS, MADE_BY, STYLES, Results, against, kind_of
from studies.paper.figure4 import RANGES

Fields = dict[str, Any]

TEMPLATES = Path(__file__).parent / "page" / "templates"
MARKS = ("<!-- results: written by make report -->", "<!-- end of results -->")
STATUSES = {
    "reproduced": "Reproduced",
    "partly": "Reproduced in part",
    "not reproduced": "Did not reproduce",
    "undecided": "Undecided",
}


def main(
    results: Annotated[Path, typer.Option(help="folder of results")] = ROOT / "studies" / "results",
    out: Annotated[Path, typer.Option(help="the page")] = ROOT / "out" / "report.html",
    local: Annotated[Path, typer.Option(help="folder with pictures of CIFAR, shown but never stored")] = ROOT / "out",
    readme: Annotated[Path, typer.Option(help="file whose block between the marks is rewritten")] = ROOT / "README.md",
) -> None:
    """Write the page, and the headline figure and table in README.md."""
    with one_line_errors(usage=(InputError,), failure=(OSError,)):
        if not results.is_dir():
            raise InputError(f"--results: expected a folder, got {results}")
        found = Results(results, local)
        page = render(found)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
        readme.write_text(with_block(readme.read_text(encoding="utf-8"), readme_block(found)), encoding="utf-8")
        missing = "".join(f"\nnot there yet: {what}: {command}" for what, command in found.missing)
        console.print(f"wrote {out} ({len(page.encode()) / 2**20:.1f} MiB){missing}", highlight=False, soft_wrap=True)


# The page


def render(results: Results) -> str:
    """The page as HTML, all of it."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "kind_of": kind_of,
        "number": number,
        "percent": percent,
        "points": points,
        "significant": significant,
    }
    environment.globals |= {
        "accuracies": accuracies,
        "answers": answers,
        "conditions": conditions,
        "datasets": DATASETS,
        "extent_of": extent_of,
        "heads": heads,
        "heads_of_orderings": heads_of_orderings,
        "kind_of": kind_of,
        "kinds": KINDS,
        "made_by": MADE_BY,
        "name_of": name_of,
        "of_levels": of_levels,
        "of_rates": of_rates,
        "of_the_network": of_the_network,
        "orderings": orderings,
        "origin": origin,
        "paper_ranges": RANGES,
        "picture": picture,
        "schemes": SCHEMES,
        "still_right": still_right,
        "styles": STYLES,
        "training_curves": training_curves,
    }
    said = findings(results)
    return environment.get_template("page.html").render(
        results=results,
        claims=[
            (
                who,
                [
                    (title, [f for f in said if f.status == key and f.is_ours == ours])
                    for key, title in STATUSES.items()
                ],
            )
            for who, ours in (("The paper’s claims", False), ("What we add", True))
        ],
    )


def picture(path: Path) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def orderings(table: Fields) -> dict[tuple[str, str], dict[str, Fields]]:
    """The verdicts of a table by claim (better, worse) and column."""
    by_claim: dict[tuple[str, str], dict[str, Fields]] = {}
    for verdict in table["verdicts"]:
        by_claim.setdefault((verdict["better"], verdict["worse"]), {})[verdict["column"]] = verdict
    return by_claim


def origin(stamps: Sequence[Fields]) -> list[tuple[str, list[str]]]:
    """What the provenance of some results has to say: (what, distinct values)."""

    def distinct(values: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(value for value in values if value))

    days = sorted(stamp["created"] for stamp in stamps)
    versions = (", ".join(f"{name} {version}" for name, version in s["versions"].items()) for s in stamps)
    said = [
        ("command", distinct(stamp["command"] for stamp in stamps)),
        ("commit", distinct(stamp["commit"] for stamp in stamps)),
        ("hardware", distinct(f"{stamp['device']}; {stamp['cpu']}" for stamp in stamps)),
        ("versions", distinct(versions)),
        ("made (UTC)", distinct([days[0], days[-1]]) if days else []),
        ("configuration", _configuration([stamp["config"] for stamp in stamps if stamp["config"]])),
    ]
    return [(what, values) for what, values in said if values]


def _configuration(configurations: Sequence[Fields]) -> list[str]:
    """What all have in common; then, one by one, what differs."""
    values: dict[str, list[str]] = {}
    for configuration in configurations:
        for name, value in configuration.items():
            values.setdefault(name, []).append(json.dumps(value, sort_keys=True, ensure_ascii=False))
    common = {
        name: found[0] for name, found in values.items() if len(found) == len(configurations) and len({*found}) == 1
    }
    said = [", ".join(f"{name}: {value}" for name, value in sorted(common.items()))]
    said += [f"{name}: {', '.join(dict.fromkeys(values[name]))}" for name in sorted(values.keys() - common.keys())]
    return [line for line in said if line]


def answers(table: Fields) -> Fields:
    """The table with the orderings alone that ask what an ensemble, its noise and its size are worth."""
    asked = [verdict for kind in ("single", "silent", "wide") for verdict in against([table], kind).verdicts]
    return table | {"verdicts": asked}


# README


def readme_block(results: Results) -> str:
    """The headline figure and table in Markdown, between the marks."""
    parts = [MARKS[0]]
    if results.neural_pde is not None:
        right = results.neural_pde["checks"][0]
        parts.append(
            "![A trained network, its equation, and ensembles of it](studies/results/neural_pde/neural_pde.png)\n\n"
            "*A trained residual network with noise, the solution of its own convection-diffusion equation, and the "
            f"mean of more and more such networks: within the stated error at {percent(right['coverage'])} of "
            f"{right['points']} points.*"
        )
    if (table := results.headline) is not None:
        parts += [markdown_table(table), "\n".join(claims_in_words(table))]
    return "\n\n".join([*parts, MARKS[1]])


def claims_in_words(table: Fields) -> Iterator[str]:
    """What became of each question that the table asks, a line each."""
    questions: dict[Kind, str] = {
        "single": "A noisy ensemble over one network",
        "silent": "The noise itself, over as many members without it",
        "wide": "A noisy ensemble over one wide network of its size",
    }
    for kind, question in questions.items():
        count = against([in_the_paper(table)], kind)
        if count.total:
            nothing = "nothing was found. " if not count.holding and not count.withdrawn else ""
            yield f"- {question}: {nothing}{tally(count)}"


def legend(table: Fields) -> str:
    """What the networks are that the paper's names do not tell."""
    kinds: dict[Kind, list[str]] = {}
    for row in table["rows"]:
        kinds.setdefault(kind_of(row["model"]), []).append(row["model"])
    told = [f"{', '.join(models)}: {KINDS[kind]}" for kind, models in kinds.items() if kind not in ("single", "noisy")]
    return "; ".join(told) + "." if told else ""


def in_the_paper(table: Fields) -> Fields:
    """The table without attacks for which the paper has no numbers, whole where it has none at all."""
    columns = {c: title for c, title in table["columns"].items() if any(c in row["paper"] for row in table["rows"])}
    if not columns:
        return table
    rows = [row | {"cells": {c: cell for c, cell in row["cells"].items() if c in columns}} for row in table["rows"]]
    return table | {"columns": columns, "rows": rows}


def markdown_table(table: Fields) -> str:
    """Accuracies in per cent with their intervals, the paper's in brackets."""
    table = in_the_paper(table)
    lines = [
        "| network | " + " | ".join(table["columns"].values()) + " |",
        "|---|" + "---:|" * len(table["columns"]),
    ]
    for row in table["rows"]:
        cells = []
        for column in table["columns"]:
            cell, printed = row["cells"].get(column), row["paper"].get(column)
            text = "" if cell is None else f"{100 * cell['mean']:.1f} [{within(cell['interval'])}]"
            cells.append(text + (f" ({printed:.1f})" if cell and printed is not None else ""))
        lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
    other = "" if table["dataset"] == table["paper_dataset"] else f", which are on {DATASETS[table['paper_dataset']]}"
    about = (
        f"*{DATASETS[table['dataset']]}: accuracy in % [95% interval], {conditions([table])}; in round brackets "
        f"the paper's{other}. {table['caption'].rstrip('.')}. {' '.join([legend(table), table['note']]).strip()}*"
    )
    return "\n".join(lines) + f"\n\n{about}"


def within(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.1f}, {100 * high:.1f}"


def with_block(text: str, block: str) -> str:
    """`text` with `block` in place of what is between the marks.

    Raises InputError unless each mark is there once.
    """
    if [text.count(mark) for mark in MARKS] != [1, 1]:
        raise InputError(f"README: expected {MARKS[0]!r} and {MARKS[1]!r} once each")
    return re.sub(f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    typer.run(main)
