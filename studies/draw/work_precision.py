"""Seconds against error, a panel a problem, and the table of the fastest at each error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.draw.style import colour, save, styled
from studies.lab.reporting import read_object, show

ERRORS = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
_OURS = "pdekit"
_MARKERS = "osD^v"


def fastest(rows: list[dict[str, Any]], case: str, program: str, error: float) -> float | None:
    """The least seconds in which a program has an error of at most `error`, None where it has not."""
    found = [
        row["seconds"] for row in rows if (row["case"], row["program"]) == (case, program) and row["error"] <= error
    ]
    return min(found, default=None)


def programs(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["program"] for row in rows))


def report(stored: Mapping[str, Any]) -> None:
    """Print seconds, and how many times as long as ours, for each error."""
    rows = stored["rows"]
    for case in stored["cases"]:
        table = []
        for program in programs(rows):
            cells = [program]
            for error in ERRORS:
                own, ours = (fastest(rows, case, name, error) for name in (program, _OURS))
                ratio = f" ({own / ours:.1f}x)" if own and ours and program != _OURS else ""
                cells.append("" if own is None else f"{own:.3f} s{ratio}")
            table.append(cells)
        columns = {"": "{0}"} | {f"error {error:g}": f"{{{index + 1}}}" for index, error in enumerate(ERRORS)}
        show(f"{case}: seconds to an error, one thread", columns, table)


def draw(path: Path) -> None:
    """Draw what is stored in `path` beside it, as PNG and PDF."""
    stored = read_object(path)
    rows, cases = stored["rows"], stored["cases"]
    with styled():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, len(cases), figsize=(3.4 * len(cases), 3.0), squeeze=False, layout="constrained")
        names = programs(rows)
        for axis, case in zip(axes[0], cases, strict=True):
            for index, name in enumerate(names):
                front: list[tuple[float, float]] = []
                own = [row for row in rows if (row["case"], row["program"]) == (case, name)]
                for row in sorted(own, key=lambda row: row["seconds"]):
                    if not front or row["error"] < front[-1][1]:
                        front.append((row["seconds"], row["error"]))
                if front:
                    axis.loglog(
                        [error for _, error in front],
                        [seconds for seconds, _ in front],
                        marker=_MARKERS[index % len(_MARKERS)],
                        markersize=3.5,
                        linewidth=1.6 if name == _OURS else 1.0,
                        color="black" if name == _OURS else colour(0.15 + 0.7 * index / len(names)),
                        label=name,
                    )
            axis.invert_xaxis()
            axis.set_title(case)
            axis.set_xlabel("max error / max|f|")
            axis.grid(alpha=0.25, linewidth=0.5)
        axes[0, 0].set_ylabel("seconds, one thread")
        axes[0, 0].legend()
        save(figure, path)
        plt.close(figure)
