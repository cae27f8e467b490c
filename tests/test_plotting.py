"""Pictures are drawn from the right numbers, and leave the same bytes each time; how they look is for eyes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner

from studies import multilevel
from studies.draw.figure4 import plot_field, plot_panels
from studies.draw.multilevel import draw
from studies.draw.style import save, styled


def test_every_panel_has_its_title_and_colour_bar(tmp_path: Path) -> None:
    field = np.sin(2 * np.pi * np.arange(16) / 16)[:, None] * np.ones(16)
    with styled():
        figure = plot_panels({"first": field, "second": 3 * field, "third": field})
        assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["first", "second", "third"]
        assert len(figure.axes) == 6
        save(figure, tmp_path / "panels.json")
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"panels.{suffix}").stat().st_size > 5_000


def test_a_field_is_drawn_with_x_to_the_right() -> None:
    field = np.zeros((16, 16))
    field[12, 4] = 1.0  # x = 0.75, y = 0.25
    drawn = plot_field(Figure().subplots(), field)
    centre = drawn.get_paths()[-1].vertices.mean(axis=0)
    np.testing.assert_allclose(centre, [0.75, 0.25], atol=0.05)


def test_the_study_of_multilevel_stores_what_its_panels_show(tmp_path: Path) -> None:
    command = typer.Typer()
    command.command()(multilevel.main)
    done = CliRunner().invoke(command, ["--smoke", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "multilevel.json").read_text())
    rows = stored["schemes"]["heun"]["costs"]
    assert all(row["delivered"] < 2 * row["rmse"] for row in rows)
    assert stored["schemes"]["heun"]["levels"]["num_samples"] in [row["samples"] for row in rows]
    before = (tmp_path / "multilevel.png").read_bytes()
    draw(tmp_path / "multilevel.json")
    assert (tmp_path / "multilevel.png").read_bytes() == before


def test_bad_input_is_met_with_one_line(tmp_path: Path) -> None:
    command = typer.Typer()
    command.command()(multilevel.main)
    done = CliRunner().invoke(command, ["--seed", "-1", "--out", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (2, "error: --seed: expected at least 0, got -1\n")
    assert not list(tmp_path.iterdir())
