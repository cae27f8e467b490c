"""Pictures of solutions and velocities. matplotlib is imported when one is drawn, not before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"  # perceptually uniform, and monotone in grey


def _closed(u: NDArray) -> tuple[NDArray, NDArray]:
    """Coordinates and values with the periodic edge repeated, so that the picture fills the unit square."""
    n = u.shape[0]
    return np.arange(n + 1) / n, np.pad(u, (0, 1), mode="wrap")


def plot_field(
    ax: Axes, u: NDArray, *, levels: int | Sequence[float] = 10, lines: bool = True, colorbar: bool = True
) -> Any:
    """Filled level sets of nodal values u (N, N) on the unit square, with their contour lines.

    Raises ValueError unless u is two-dimensional.
    """
    if np.ndim(u) != 2:
        raise ValueError(f"plot_field: expected a field (N, N), got shape {np.shape(u)}")
    from matplotlib.ticker import MaxNLocator

    axis, closed = _closed(np.asarray(u))
    if isinstance(levels, int):
        levels = list(MaxNLocator(levels + 1).tick_values(float(closed.min()), float(closed.max())))
    filled = ax.contourf(axis, axis, closed.T, levels=levels, cmap=COLOURS)
    if lines:
        ax.contour(axis, axis, closed.T, levels=levels, colors="k", linewidths=0.3, negative_linestyles="solid")
    _square(ax)
    if colorbar:
        bar = ax.figure.colorbar(filled, ax=ax, fraction=0.046, pad=0.04)
        bar.ax.tick_params(labelsize="small")
    return filled


def plot_velocity(ax: Axes, velocity: NDArray, *, max_arrows: int = 24) -> None:
    """Speed as colour and direction as arrows, from node values (2, N, N).

    Raises ValueError for another shape.
    """
    if np.ndim(velocity) != 3 or len(velocity) != 2:
        raise ValueError(f"plot_velocity: expected node values (2, N, N), got shape {np.shape(velocity)}")
    axis, speed = _closed(np.sqrt((velocity**2).sum(axis=0)))
    mesh = ax.pcolormesh(axis, axis, speed.T, cmap=COLOURS, shading="gouraud")
    step = max(1, velocity.shape[-1] // max_arrows)
    nodes = np.arange(0, velocity.shape[-1], step) / velocity.shape[-1]
    fx, fy = velocity[:, ::step, ::step]
    ax.quiver(nodes, nodes, fx.T, fy.T, color="w", pivot="mid", width=0.004)
    _square(ax)
    ax.figure.colorbar(mesh, ax=ax, fraction=0.046, pad=0.04).ax.tick_params(labelsize="small")


def plot_panels(panels: Mapping[str, NDArray], *, levels: int = 10, columns: int | None = None) -> Figure:
    """Fields side by side, each with its own levels and colour bar, as in Fig. 4. Keys are titles."""
    import matplotlib.pyplot as plt

    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 2.75 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (title, field) in zip(axes.flat, panels.items(), strict=False):
        plot_field(ax, field, levels=levels)
        ax.set_title(title, fontsize="medium")
    return figure


def plot_solution(solution: xr.Dataset, *, time: float = 0.0, levels: int = 10) -> Figure:
    """The field at the stored time nearest to `time`, from what `solve` returned in two dimensions."""
    frame = solution.u.sel(time=time, method="nearest")
    return plot_panels({f"u(x, {float(frame.time):g}),  σ = {solution.attrs['sigma']:g}": frame.values}, levels=levels)


def _square(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
