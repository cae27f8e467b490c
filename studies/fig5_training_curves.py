"""Figure 5: training and validation accuracy over the epochs of PGD adversarial training.

The networks are those of Table 2, and are trained here only where that table has not done so. Without arguments: 8x8
digits and networks of depth 8. The paper's own setting: --dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from studies.draw.style import save, styled
from studies.lab.assemble import PARTS, curve_of
from studies.lab.cli import Computed, app_for
from studies.lab.networks import labelled
from studies.lab.reporting import console, write_json
from studies.paper.tables import FIGURE5

# Okabe and Ito's colours, told apart by colour-blind readers too, and line styles for grey prints
_COLOURS = ("#000000", "#e69f00", "#0072b2", "#d55e00", "#009e73")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def finish(computed: Computed) -> None:
    write_json(computed.path, computed.numbers())
    draw(computed.path)
    console.print(f"written to {computed.path}, with .png and .pdf beside it", highlight=False, soft_wrap=True)


def draw(path: Path) -> None:
    """Draw the stored histories at `path` as a PNG and a PDF beside it; reads nothing else."""
    stored = json.loads(path.read_text())
    families: dict[str, list[dict[str, Any]]] = {}
    for row in stored["rows"]:
        families.setdefault(labelled(row["model"]).family, []).append(row)
    with styled({"font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 0.5 + 2.3 * len(families)), layout="constrained")
        grid = figure.subplots(len(families), len(PARTS), sharey=True, sharex="row", squeeze=False)
        for letter, axes, rows in zip("abcdefgh", grid, families.values(), strict=False):
            for ax, (part, title) in zip(axes, PARTS.items(), strict=True):
                _draw_panel(ax, rows, part)
                is_first = ax is axes[0] and len(families) > 1
                ax.set_title(f"({letter}) {title}" if is_first else title, loc="left")
                ax.set_xlabel("epoch")
            axes[0].set_ylabel("accuracy in %")
            axes[-1].legend(*axes[0].get_legend_handles_labels(), fontsize=7)
        figure.suptitle(_title(stored), fontsize=8)
        save(figure, path, dpi=300)


def _draw_panel(ax: Any, rows: list[dict[str, Any]], part: str) -> None:
    """One line a network: the mean over seeds, a band from the lowest to the highest, a ring where it was selected."""
    longest = 1.0
    for colour, line, row in zip(cycle(_COLOURS), cycle(_LINES), rows):
        by_epoch, selected = curve_of(row, part)
        epochs, values = list(by_epoch), list(by_epoch.values())
        # a run of one epoch is a point, which a line alone would not show
        look = {"color": colour, "linestyle": line, "marker": "." if len(epochs) < 40 else ""}
        ax.plot(epochs, [np.mean(each) for each in values], linewidth=1.2, label=row["model"], **look)
        low, high = ([end(each) for each in values] for end in (min, max))
        ax.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        for epoch, accuracy in selected:
            ax.plot(epoch, accuracy, "o", color=colour, markerfacecolor="white", markersize=4, zorder=3)
        longest = max([longest, *epochs])
    ax.set_xlim(1 - 0.02 * longest, 1.02 * longest)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.25, linewidth=0.5)


def _title(stored: dict[str, Any]) -> str:
    config, seeds = stored["provenance"]["config"]["training"], len(stored["provenance"]["config"]["seeds"])
    over = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    how = f"PGD training (eps {config['eps']:.3g}, {config['num_steps']} steps)"
    return f"{stored['dataset']}, {how}, {over}; rings: the selected epoch"


app = app_for(FIGURE5, finish)

if __name__ == "__main__":
    app()
