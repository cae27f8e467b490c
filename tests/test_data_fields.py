"""Fields from xarray and NetCDF: which are taken, which refused with what cure, and a flow from file to solution."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pdekit import ConvectionDiffusion, GridSeries, from_xarray, solve
from pdekit.field import GridField, node_points

ROOT = Path(__file__).parent.parent
TAU = 2.0 * np.pi
BOX = ((0.0, 1000.0), (0.0, 500.0))  # km
SPEED, DRIFT = 12.0, 10.0  # km/day, of the gyres and of their pattern


def gyres(x: np.ndarray, y: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of counter-rotating gyres that drift to the east: a stream function sin(k (x - ct)) sin(ly)."""
    k, l = TAU / 1000.0, TAU / 500.0
    along, across = k * (x - DRIFT * t), l * y
    return -SPEED * np.sin(along) * np.cos(across), 0.5 * SPEED * np.cos(along) * np.sin(across)


def currents(num_points: tuple[int, int] = (64, 32), days: int = 40) -> xr.Dataset:
    """Those gyres as models store them: (time, y, x), single precision, units in attributes."""
    x, y = (np.arange(n) * b / n for n, (_, b) in zip(num_points, BOX, strict=True))
    t = np.arange(float(days))
    values = np.broadcast_arrays(*gyres(x, y[:, None], t[:, None, None]))
    described = {"u": "eastward", "v": "northward"}
    return xr.Dataset(
        {
            name: (("time", "y", "x"), part.astype("f4"), {"units": "km/day", "long_name": f"{way} velocity"})
            for (name, way), part in zip(described.items(), values, strict=True)
        },
        coords={"time": ("time", t, {"units": "days"}), "y": ("y", y, {"units": "km"}), "x": ("x", x, {"units": "km"})},
    )


def small() -> xr.Dataset:
    return currents((8, 6), 3)


# Data that are taken


def test_a_file_becomes_a_velocity_with_its_box_units_and_times(tmp_path):
    currents().to_netcdf(tmp_path / "currents.nc")
    field = from_xarray(tmp_path / "currents.nc", ("u", "v"))
    assert isinstance(field, GridSeries)
    assert (field.shape, field.grid, field.box, field.units) == ((2,), (64, 32), BOX, ("km", "km", "day"))
    x = np.random.default_rng(0).uniform(-500.0, 1500.0, (50, 2))
    np.testing.assert_allclose(field(x, 7.0), np.stack(gyres(*x.T, 7.0), axis=-1), atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [("time", "x", "y"), ("x", "time", "y"), ("y", "x", "time")])
@pytest.mark.parametrize("turned", [("x",), ("y",), ("x", "y"), ()])
def test_order_of_dimensions_and_direction_of_coordinates_do_not_matter(order, turned):
    data = small().transpose(*order).isel({name: slice(None, None, -1) for name in turned})
    expected, found = (from_xarray(d, ("u", "v")) for d in (small(), data))
    assert found.box == expected.box
    for t in (0.0, 1.3):
        np.testing.assert_array_equal(found.nodes((8, 6), t), expected.nodes((8, 6), t))


def test_a_box_begins_where_the_first_node_is():
    data = small().assign_coords(x=small().x - 437.5)
    field = from_xarray(data, ("u", "v"))
    assert field.box == ((-437.5, 562.5), (0.0, 500.0))
    np.testing.assert_allclose(
        field([[-437.5, 0.0]], 1.0), from_xarray(small(), ("u", "v"))([[0.0, 0.0]], 1.0), atol=1e-9
    )


def test_linear_interpolation_is_that_of_xarray_on_the_nodes():
    data = currents((16, 8), 5)
    field = from_xarray(data, ("u", "v"), continuation="bilinear")
    x = np.stack(np.meshgrid(data.x, data.y, indexing="ij"), axis=-1)
    for t in (0.0, 1.25, 3.9):
        at = data.astype("f8").interp(time=t).transpose("x", "y")
        np.testing.assert_allclose(field(x, t), np.stack([at.u, at.v], axis=-1), atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_one_to_three_dimensions_and_steady_fields(dim):
    names, grid = "xyz"[:dim], (6, 8, 10)[:dim]
    values = np.random.default_rng(0).uniform(-1, 1, (dim, *grid))
    data = xr.Dataset(
        {f"u{i}": (tuple(names), part) for i, part in enumerate(values)},
        coords={name: np.arange(n) * 0.5 for name, n in zip(names, grid, strict=True)},
    )
    field = from_xarray(data.transpose(*reversed(names)), [f"u{i}" for i in range(dim)])
    assert isinstance(field, GridField)
    assert field.box == tuple((0.0, 0.5 * n) for n in grid)
    np.testing.assert_array_equal(field.values, values)
    again = from_xarray(data.expand_dims(time=[3.0]), [f"u{i}" for i in range(dim)])
    np.testing.assert_array_equal(again.nodes(grid), values)  # type: ignore[call-arg]


def test_dimensions_may_be_told_or_say_so_themselves():
    data = small()
    expected = from_xarray(data, ("u", "v")).nodes((8, 6), 0.5)
    renamed = data.rename(x="east", y="north", time="days")
    found = from_xarray(renamed, ("u", "v"), dims=("east", "north"), time="days")
    np.testing.assert_array_equal(found.nodes((8, 6), 0.5), expected)
    for name, axis in (("east", "X"), ("north", "Y"), ("days", "T")):
        renamed[name].attrs["axis"] = axis
    np.testing.assert_array_equal(from_xarray(renamed, ("u", "v")).nodes((8, 6), 0.5), expected)
    deep = data.expand_dims(depth=[5.0])
    np.testing.assert_array_equal(from_xarray(deep, ("u", "v")).nodes((8, 6), 0.5), expected)


DATES = {
    "datetime64": (np.array(["2000-01-01", "2000-01-02", "2000-01-04"], dtype="datetime64[ns]"), "2000-01-02"),
    "timedelta64": (np.array([24, 48, 96], dtype="timedelta64[h]").astype("timedelta64[ns]"), np.timedelta64(2, "D")),
}


@pytest.mark.parametrize("kind", DATES)
def test_dates_are_counted_in_the_unit_of_the_velocity_or_in_one_asked_for(kind):
    dates, second = DATES[kind]
    data = small().assign_coords(time=dates)
    first = 1.0 if kind == "timedelta64" else 0.0
    np.testing.assert_allclose(from_xarray(data, ("u", "v")).times, first + np.array([0.0, 1.0, 3.0]))
    np.testing.assert_allclose(from_xarray(data, ("u", "v"), start=second).times, [-1.0, 0.0, 2.0])
    for name in ("u", "v"):
        del data[name].attrs["units"]
    field = from_xarray(data, ("u", "v"), time_unit="hours")
    np.testing.assert_allclose(field.times, 24.0 * (first + np.array([0.0, 1.0, 3.0])))
    assert field.units == ("km", "km", "h")
    with pytest.raises(ValueError, match="time_unit: expected one of s, min, h, day for the dates of time, got None"):
        from_xarray(data, ("u", "v"))


class Date:
    """Dates of another calendar, as of cftime: their differences are timedeltas."""

    def __init__(self, day: int) -> None:
        self.day = day

    def __sub__(self, other: Date) -> np.timedelta64:
        import datetime

        return datetime.timedelta(days=self.day - other.day)  # type: ignore[return-value]


def test_dates_of_other_calendars_are_counted_too():
    dates = np.empty(3, dtype=object)
    dates[:] = [Date(59), Date(60), Date(62)]
    data = small().drop_vars("time").assign_coords(time=("time", dates))
    np.testing.assert_allclose(from_xarray(data, ("u", "v")).times, [0.0, 1.0, 3.0])
    np.testing.assert_allclose(from_xarray(data, ("u", "v"), start=Date(60)).times, [-1.0, 0.0, 2.0])


def test_numbers_may_count_from_another_start_and_in_another_unit():
    data = small().assign_coords(time=("time", [100.0, 101.0, 103.0], {"units": "days since 1999-09-23"}))
    np.testing.assert_allclose(from_xarray(data, ("u", "v"), start=100.0).times, [0.0, 1.0, 3.0])
    for name in ("u", "v"):
        data[name].attrs["units"] = "km/h"
    field = from_xarray(data, ("u", "v"), start=100.0, time_unit="h")
    np.testing.assert_allclose(field.times, [0.0, 24.0, 72.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "2000-01-01"}, "start: expected a number, as time has numbers, got '2000-01-01'"),
        ({"time_unit": "fortnight"}, "time_unit: expected one of s, min, h, day, got 'fortnight'"),
        ({"time": "t"}, "time: expected one of time, y, x, got 't'"),
        ({"dims": ("x", "time")}, "dims: expected some of time, y, x in space, got"),
        ({"interpolation": "nearest"}, "interpolation: expected one of linear, cubic, got 'nearest'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        from_xarray(small(), ("u", "v"), **options)


@pytest.mark.parametrize(
    "units", ["km/day", "km day-1", "km d-1", "km day^-1", "km.day**-1", "kilometers per day", "km / d", "knots", ""]
)
def test_units_that_fit_or_that_nobody_knows_are_taken(units):
    data = small()
    data.u.attrs["units"] = units
    assert from_xarray(data, ("u", "v")).units == ("km", "km", "day")


# Data that are refused


def labelled(units: str) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        for name in ("u", "v"):
            data[name].attrs["units"] = units
        return data

    return change


def with_land(data: xr.Dataset) -> xr.Dataset:
    return data.where(data.x + data.y > 100.0)


def closed(data: xr.Dataset) -> xr.Dataset:
    """With the nodes at x = 0 again at x = 1000."""
    return xr.concat([data, data.isel(x=[0]).assign_coords(x=[1000.0])], "x")


def stretched(data: xr.Dataset) -> xr.Dataset:
    x = data.x.values.copy()
    x[5:] += 20.0
    return data.assign_coords(x=("x", x, data.x.attrs))


def in_degrees(data: xr.Dataset) -> xr.Dataset:
    return data.rename(x="lon").assign_coords(lon=("lon", np.arange(8.0), {"units": "degrees_east"}))


REFUSED = {
    "x: expected a uniform spacing, got 145 from x[4] = 500 to 645 where others are 125": stretched,
    "leave them out, data.isel(x=slice(None, -1))": closed,
    "lon: expected lengths, got degrees_east; project them first": in_degrees,
    "lat: expected lengths, got degrees": lambda d: d.rename(y="lat").drop_attrs(),
    "expected a value at each node, got 4 missing (NaN) of 96 at time 0; choose a part without land": with_land,
    "u: expected km/day, the units of the coordinates, got m s-1; multiply it by 86.4": labelled("m s-1"),
    "u: expected km/day, the units of the coordinates, got m/s; multiply it by 86.4": labelled("m/s"),
    "u, v: expected the same unit of time, got km/h, km/day": lambda d: d.assign(u=d.u.assign_attrs(units="km/h")),
    "dims: expected the space dimensions in the order of the components": lambda d: d.rename(x="east", y="north"),
    "x: expected coordinates, got none": lambda d: d.drop_vars("x"),
    "time: expected coordinates, got none": lambda d: d.drop_vars("time"),
    "z: expected one, got 2; choose it, as with data.isel(z=0)": lambda d: d.expand_dims(z=[0.0, 1.0]),
    "v: expected the dimensions of u": lambda d: d.assign(v=d.v.rename(y="y_v")),
    "variables: expected some of u, w, got 'v'": lambda d: d.rename(v="w"),
    "times: expected at least two, increasing": lambda d: d.isel(time=[0, 2, 1]),
    "x: expected the end of the period once": closed,
    "y: expected at least two finite numbers": lambda d: d.assign_coords(y=["a", "b", "c", "d", "e", "f"]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_data_that_do_not_fit_are_refused_in_one_line_with_the_cure(message):
    dims = {"dims": ("x", "y")} if message.startswith("z:") else {}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        from_xarray(REFUSED[message](small()), ("u", "v"), **dims)
    assert "\n" not in str(caught.value)


def test_the_cures_cure():
    for data in (
        closed(small()).isel(x=slice(None, -1)),
        with_land(small()).fillna(0.0),
        (86.4 * (small() / 86.4)).assign_coords(small().coords).pipe(labelled("km/day")),
        closed(small()).isel(x=slice(None, None, -1)).isel(x=slice(None, -1)),
    ):
        assert from_xarray(data, ("u", "v")).grid == (8, 6)


def test_a_repeated_end_is_seen_where_the_flow_starts_from_rest():
    data = closed(small())
    data["u"][{"time": 0}] = 0.0
    data["v"][{"time": 0}] = 0.0
    with pytest.raises(ValueError, match="x: expected the end of the period once"):
        from_xarray(data, ("u", "v"))


def test_values_that_are_constant_at_the_ends_or_mirror_each_other_repeat_no_end():
    x = (np.arange(8) + 0.5) / 8
    blob = np.array([0.0, 0.0, 0.2, 1.0, 0.7, 0.0, 0.0, 0.0])
    for values in (np.ones(8), np.cos(TAU * x), blob, 1.0 + blob, np.exp(-100.0 * (x - 0.4) ** 2)):
        from_xarray(xr.DataArray(np.stack([values, values]), dims=("y", "x"), coords={"x": x, "y": [0.0, 1.0]}))


def test_a_rate_has_to_be_one_per_time_of_the_problem():
    rate = small().u.assign_attrs(units="s-1")
    with pytest.raises(
        ValueError, match="u: expected 1/day, the units of the coordinates, got s-1; multiply it by 86400"
    ):
        from_xarray(rate)
    assert from_xarray(rate.assign_attrs(units="1/day")).shape == ()


# Problems


def test_potential_source_terminal_and_sigma_come_from_arrays_of_the_same_box():
    """All constant in space: u = 2 exp(-V T) + g (1 - exp(-V T)) / V."""
    data = small().isel(time=0, drop=True)

    def constant(value: float) -> GridField | GridSeries:
        return from_xarray(xr.full_like(data.u, value).assign_attrs(units=""))

    problem = ConvectionDiffusion(
        from_xarray(data, ("u", "v")),
        constant(2.0),
        constant(5.0),
        horizon=2.0,
        potential=constant(0.3),
        source=constant(0.1),
    )
    assert problem.box == BOX
    solution = solve(problem, num_points=(16, 12), dt=0.1)
    expected = 2.0 * np.exp(-0.6) + 0.1 * (1.0 - np.exp(-0.6)) / 0.3
    np.testing.assert_allclose(solution.u[0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="terminal: expected data on the box of velocity"):
        ConvectionDiffusion(from_xarray(data, ("u", "v")), from_xarray(data.u.assign_coords(x=data.x + 1.0)), 5.0)
    with pytest.raises(ValueError, match="terminal: expected values at one time"):
        ConvectionDiffusion(from_xarray(data, ("u", "v")), from_xarray(small().u), 5.0)
    several = ConvectionDiffusion(from_xarray(data, ("u", "v")), from_xarray(data, ("u", "v")), 5.0)
    assert several.num_fields == 2
    metres = data.assign_coords(x=data.x.assign_attrs(units="m"), y=data.y.assign_attrs(units="m"))
    with pytest.raises(ValueError, match="potential: expected units"):
        ConvectionDiffusion(
            from_xarray(data, ("u", "v")),
            np.zeros((8, 6)),
            5.0,
            potential=from_xarray(xr.zeros_like(metres.u).drop_attrs(deep=False)),
        )


def test_a_blob_is_carried_by_a_uniform_wind_that_changes_and_spreads_by_diffusion(tmp_path):
    """A periodic Gaussian of variance s² about c: about c + ∫F with s² + σ²T at the end."""
    days = np.arange(0.0, 11.0)
    wind = np.stack([20.0 * np.cos(0.4 * days), 5.0 + days])
    x, y = np.arange(16) * 1000.0 / 16, 100.0 + np.arange(8) * 500.0 / 8
    data = xr.Dataset(
        {
            name: (("time", "y", "x"), w[:, None, None] * np.ones((1, 8, 16)))
            for name, w in zip("uv", wind, strict=True)
        },
        coords={
            "time": ("time", days, {"units": "days"}),
            "x": ("x", x, {"units": "km"}),
            "y": ("y", y, {"units": "km"}),
        },
    )
    data.to_netcdf(tmp_path / "wind.nc")
    start, spread, sigma = np.array([300.0, 350.0]), 40.0, 8.0
    lengths = np.array([1000.0, 500.0])

    def gaussian(p: np.ndarray, centre: np.ndarray, variance: float) -> np.ndarray:
        total = np.ones(p.shape[:-1])
        for axis in range(2):
            images = p[..., axis, None] - centre[axis] + lengths[axis] * np.arange(-4, 5)
            total = total * np.exp(-(images**2) / (2.0 * variance)).sum(axis=-1) * spread / np.sqrt(variance)
        return total

    problem = ConvectionDiffusion.from_initial_value(
        from_xarray(tmp_path / "wind.nc", ("u", "v")), lambda p: gaussian(p, start, spread**2), sigma, horizon=10.0
    )
    solution = solve(problem, num_points=(64, 32), dt=0.1, method="spectral_rk4")
    assert (solution.x.units, solution.y.units, solution.time.units) == ("km", "km", "day")
    assert (float(solution.y[0]), float(solution.x[1])) == (100.0, 1000.0 / 64)
    way = 0.5 * (wind[:, 1:] + wind[:, :-1]).sum(axis=1)
    nodes = problem.from_unit(node_points((64, 32), 2))
    expected = gaussian(nodes, start + way, spread**2 + sigma**2 * 10.0)
    np.testing.assert_allclose(solution.u[0], expected, atol=2e-4)
    centre = np.average(np.exp(1j * TAU * (solution.x / 1000.0)), weights=solution.u[0].sum("y"))
    assert np.angle(centre) / TAU * 1000.0 % 1000.0 == pytest.approx((start + way)[0] % 1000.0, abs=1e-2)


def test_two_ways_to_give_the_gyres_have_one_solution():
    def gyre(x: np.ndarray, t: float) -> np.ndarray:
        return np.stack(gyres(x[..., 0], x[..., 1], t), axis=-1)  # type: ignore[arg-type]

    def patch(x: np.ndarray) -> np.ndarray:
        return np.exp(np.cos(TAU * x[..., 0] / 1000.0) + np.sin(TAU * x[..., 1] / 500.0))

    field = from_xarray(currents((16, 16), 41), ("u", "v"), interpolation="cubic")
    settings = {"num_points": (64, 32), "dt": 0.2, "method": "spectral_rk4"}
    data = solve(ConvectionDiffusion(field, patch, 8.0, horizon=20.0), **settings)
    function = solve(ConvectionDiffusion(gyre, patch, 8.0, 2, horizon=20.0, box=BOX), **settings)
    np.testing.assert_allclose(data.u, function.u, atol=2e-4)


# Files


def test_frames_are_read_from_the_file_when_they_are_asked_for(tmp_path, monkeypatch):
    from pdekit.data import DataFrames

    currents((16, 8), 30).to_netcdf(tmp_path / "currents.nc")
    reads: list[int] = []
    original = DataFrames.__getitem__
    monkeypatch.setattr(DataFrames, "__getitem__", lambda self, i: reads.append(i) or original(self, i))
    field = from_xarray(tmp_path / "currents.nc", ("u", "v"))
    assert reads == [0, 29]  # whether they repeat the end of the period
    field.nodes((16, 8), 4.5)
    assert reads == [0, 29, 4, 5]


READ = "import pickle, sys; print(repr(float(pickle.load(sys.stdin.buffer)([[100.0, 50.0]], 7.25)[0, 0])))"


def test_a_field_of_a_file_is_sent_without_its_values_and_read_elsewhere(tmp_path):
    currents().to_netcdf(tmp_path / "currents.nc")
    field = from_xarray(tmp_path / "currents.nc", ("u", "v"))
    content = pickle.dumps(field)
    assert len(content) < 10_000
    run = subprocess.run([sys.executable, "-c", READ], input=content, capture_output=True, check=True)
    assert float(run.stdout) == float(field([[100.0, 50.0]], 7.25)[0, 0])


def readme_example() -> str:
    """The block of README.md that takes a field from a file."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "from_xarray(" in block)


def test_the_example_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    data = currents()
    x, y = np.meshgrid(data.x, data.y)
    shape = np.exp(-((x - 300.0) ** 2 + (y - 150.0) ** 2) / 50.0**2)
    data.assign(tracer=(("y", "x"), shape)).to_netcdf(tmp_path / "currents.nc")
    monkeypatch.chdir(tmp_path)
    found: dict[str, xr.Dataset] = {}
    exec(readme_example(), found)
    solution = found["solution"]
    later = solution.u.sel(time=0.0)
    assert (solution.warnings, solution.x.units, solution.time.units) == ("none", "km", "day")
    assert float(later.mean()) == pytest.approx(shape.mean(), rel=1e-6)  # the flow has no sources
    assert -1e-3 < float(later.min()) < float(later.max()) < 0.9
