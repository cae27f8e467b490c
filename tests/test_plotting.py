"""Pictures are drawn from the right numbers; how they look is for eyes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from studies.draw.figure4 import plot_field, plot_panels
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
