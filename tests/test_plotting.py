"""Pictures are drawn from the right numbers; how they look is for eyes."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pdekit import ConvectionDiffusion, solve
from pdekit.plotting import plot_field, plot_panels, plot_solution, plot_velocity


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_every_panel_has_its_title_and_colour_bar(tmp_path):
    x = np.linspace(0, 1, 16, endpoint=False)
    field = np.sin(2 * np.pi * x)[:, None] * np.ones(16)
    figure = plot_panels({"first": field, "second": 3 * field, "third": field}, columns=2)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["first", "second", "third"]
    assert len(figure.axes) == 6
    figure.savefig(tmp_path / "panels.png")


def test_a_field_is_drawn_with_x_to_the_right():
    field = np.zeros((16, 16))
    field[12, 4] = 1.0  # x = 0.75, y = 0.25
    _, ax = plt.subplots()
    drawn = plot_field(ax, field, levels=[-0.5, 0.5, 1.5])
    centre = drawn.get_paths()[-1].vertices.mean(axis=0)
    np.testing.assert_allclose(centre, [0.75, 0.25], atol=0.05)


def test_a_solution_and_its_velocity_can_be_drawn():
    velocity = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8))
    solution = solve(ConvectionDiffusion(velocity, np.eye(8), 0.3), num_points=32, dt=0.05)
    assert "σ = 0.3" in plot_solution(solution).axes[0].get_title()
    _, ax = plt.subplots()
    plot_velocity(ax, velocity)
    with pytest.raises(ValueError, match=r"\(2, N, N\), got shape \(3, 8, 8\)"):
        plot_velocity(ax, np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match=r"\(N, N\), got shape \(4,\)"):
        plot_field(ax, np.zeros(4))
