"""Any table of the paper: `python studies/table.py 7`, `... section4_4`; options as of table2.py."""

import typer

from studies.draw.terminal import draw
from studies.lab.cli import Computed, compute
from studies.lab.reporting import write_json
from studies.paper.tables import TABLES


def finish(computed: Computed) -> None:
    """The numbers as JSON, and from there on the terminal."""
    write_json(computed.path, computed.numbers())
    draw(computed.path)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
for name, table in TABLES.items():
    app.command(name.removeprefix("table"))(compute(table, finish))

if __name__ == "__main__":
    app()
