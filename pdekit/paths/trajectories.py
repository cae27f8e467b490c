"""The paths themselves, the very ones that `feynman_kac` walks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.characteristics import check_points
from pdekit.numerics.lanes import LANES
from pdekit.paths.sampler import Rng, check_start, repeatable
from pdekit.paths.simulation import Simulation
from pdekit.paths.stepping import SCHEMES
from pdekit.paths.threefry import seed_of
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_choice, check_whole, real_values

if TYPE_CHECKING:
    import xarray as xr


def sample_paths(
    problem: ConvectionDiffusion,
    points: ArrayLike,
    *,
    num_paths: int = 256,
    num_steps: int = 64,
    scheme: str = "heun",
    rng: Rng = None,
    times: Sequence[float] | None = None,
    t0: float = 0.0,
    first_point: int = 0,
    first_path: int = 0,
) -> xr.Dataset:
    """Paths of dX = F dt + σ dB from points (P, d) at t0, those that `feynman_kac` walks with the same `rng` and steps.

    scheme, rng, t0, first_point: as in `feynman_kac`.
    times: to keep, within t0 and the horizon, rounded to the nearest step; all steps by default.
    first_path: number of the first path: path number n from point number p is again what first_point=p, first_path=n,
        num_paths=1 gives from that point with the `rng` in the attributes.

    Returns a Dataset of `position` (time, point, path, axis), `weight` = e^(-∫V), and `earned` = ∫ g e^(-∫V) ds up to
    that time, (time, point, path) each, where the problem has V or g. The estimate of u(x, t0) is the mean over path of
    f(position) · weight + earned at the horizon. Positions are not wrapped into the box.

    Raises ValueError for arguments that do not fit, and at sigma = 0, where `characteristics` has all there is.
    """
    import xarray as xr  # with pandas half of the package's import

    x = check_points(points, problem)
    check_choice("scheme", scheme, SCHEMES)
    num_paths, num_steps = check_whole("num_paths", num_paths, 1), check_whole("num_steps", num_steps, 1)
    first_point, first_path = check_whole("first_point", first_point, 0), check_whole("first_path", first_path, 0)
    t0 = check_start(t0, problem)
    if problem.noise.none:
        raise ValueError("sample_paths: expected noise, got sigma = 0; use characteristics instead")
    seed = repeatable(rng)
    simulation = Simulation(problem.on_unit_box, seed_of(seed), scheme, t0=t0)
    kept = _steps(times, simulation, num_steps)
    streams = first_point + np.arange(len(x), dtype=np.uint64)
    begin = first_path // LANES * LANES  # paths come in blocks
    skipped = first_path - begin
    shape = len(kept), len(x), num_paths
    position = np.empty((*shape, problem.dim))
    sums = {"weight": np.empty(shape), "earned": np.empty(shape)}
    for where, first, count in simulation.batches(len(x), skipped + num_paths, num_steps):
        walk = simulation.walk(problem.to_unit(x[where]), streams[where], begin + first, count, num_steps)
        inside = slice(max(first, skipped) - first, count)
        to = slice(first + inside.start - skipped, first + count - skipped)
        lanes = (x[where].shape[0], -1)

        def keep(step: int) -> None:
            for row in np.flatnonzero(kept == step):
                found = np.moveaxis(walk.positions(), 1, -1).reshape(*lanes, problem.dim)  # noqa: B023
                position[row, where, to] = problem.from_unit(found[:, inside])  # noqa: B023
                for name, values in (("weight", np.exp(-walk.killed)), ("earned", walk.earned)):  # noqa: B023
                    everywhere = np.broadcast_to(values, (len(walk.x), LANES)).reshape(lanes)  # noqa: B023
                    sums[name][row, where, to] = everywhere[:, inside]  # noqa: B023

        keep(0)
        stops = sorted({0, *simulation.jump_steps(num_steps), *kept.tolist(), num_steps})
        for start, stop in pairwise(stops):
            walk.advance(start, stop)
            keep(stop)
    variables = {"position": (("time", "point", "path", "axis"), position)}
    for name, field in (("weight", problem.potential), ("earned", problem.source)):
        if field is not None:
            variables[name] = (("time", "point", "path"), sums[name])  # type: ignore[assignment]
    return xr.Dataset(
        variables,
        coords={
            "time": t0 + simulation.duration / num_steps * kept,
            "point": first_point + np.arange(len(x)),
            "path": first_path + np.arange(num_paths),
        },
        attrs={"scheme": simulation.scheme_used, "num_steps": num_steps, "t0": t0, "rng": repr(seed)},
    )


def _steps(times: Sequence[float] | None, simulation: Simulation, num_steps: int) -> NDArray[np.int64]:
    """The steps whose ends are kept, or a ValueError."""
    if times is None:
        return np.arange(num_steps + 1)
    values = real_values("times", times)
    t0, horizon = simulation.t0, simulation.problem.horizon
    slack = 1e-9 * simulation.duration
    if values.ndim != 1 or not len(values) or not ((values >= t0 - slack) & (values <= horizon + slack)).all():
        raise ValueError(f"times: expected values in [{t0:g}, {horizon:g}], got {times}")
    return np.unique(np.rint((values - t0) / simulation.duration * num_steps).astype(np.int64))
