"""Shows what studies/smoothing.py stored: a table on the terminal, and one figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.draw.style import colour, save, styled
from studies.lab.reporting import read_object, show

Row = Mapping[str, Any]


def report(stored: Mapping[str, Any]) -> None:
    """Print the rows of smoothing.json."""
    config, rows = stored["provenance"]["config"], stored["rows"]

    def text(entry: Mapping[str, Any]) -> str:
        certified = "-" if entry["certified"] is None else f"{100 * entry['certified']['mean']:.0f}"
        return f"{certified}|{100 * entry['attacked']['mean']:.0f}"

    def at(number: int) -> Any:
        return lambda row: text(row["at_radii"][number])

    beaten = sum(entry["beaten"] or 0 for row in rows for entry in row["at_radii"])
    widest = max(
        (cell["interval"][1] - cell["interval"][0]) / 2
        for row in rows
        for entry in row["at_radii"]
        for cell in (entry["certified"], entry["attacked"])
        if cell is not None
    )
    show(
        "Certified | attacked accuracy in %, by distance in L2",
        {"network": "{network}", "training": "{loss}"}
        | {f"{radius:g}": at(number) for number, radius in enumerate(config["radii"])}
        | {"abstained": lambda row: "-" if row["abstained"] is None else f"{row['abstained']:.1%}"},
        rows,
        caption=f"{config['num_test']} images, {len(config['seeds'])} seeds; intervals at 95% reach at most "
        f"±{100 * widest:.1f}. Certified: {config['num_draws']} draws, at {config['confidence']:.1%} an image. "
        f"Attacked: the plurality of {config['voting_draws']} draws, PGD in L2 of {config['attack_steps']} steps, "
        f"{config['eot_draws']} draws a gradient. Certificates that the attack refutes at that confidence: {beaten}.",
        num_texts=2,
    )


def draw(out: Path) -> None:
    """Draw smoothing.png and smoothing.pdf in the folder of the stored numbers."""
    rows = read_object(out / "smoothing.json")["rows"]
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes: Any = figure.subplots()
        for number, row in enumerate(rows):
            style = {"color": colour(number / max(len(rows) - 1, 1))}
            entries = row["at_radii"]
            means = [entry["attacked"]["mean"] for entry in entries]
            below = [
                mean - min(mean, entry["attacked"]["interval"][0]) for mean, entry in zip(means, entries, strict=True)
            ]
            above = [
                max(mean, entry["attacked"]["interval"][1]) - mean for mean, entry in zip(means, entries, strict=True)
            ]
            shift = 0.006 * (number - len(rows) / 2)
            places = [entry["radius"] + shift for entry in entries]
            label = f"{row['network']}, {row['loss']}"
            marker = "o" if row["curve"] else "x"
            axes.errorbar(
                places, means, [below, above], fmt=marker, markersize=3.5, elinewidth=0.8, label=label, **style
            )
            if row["curve"]:
                axes.plot(*zip(*row["curve"], strict=True), linewidth=1.2, **style)
        axes.set(xlabel="distance in L2", ylabel="accuracy", ylim=(0, 1.02), xlim=(-0.05, None))
        axes.set_title("Lines: certified; signs: under attack, of smoothed networks the plurality")
        axes.legend()
        axes.grid(alpha=0.25, linewidth=0.5)
        save(figure, out / "smoothing.png")
