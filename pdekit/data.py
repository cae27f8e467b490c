"""Fields from xarray: node values over named coordinates with units, in memory or read from a file frame by frame."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pdekit.field import GridField
from pdekit.series import GridSeries

if TYPE_CHECKING:
    import xarray as xr

_UNEVEN = 1e-3  # of the spacing; below it coordinates are off by their own rounding
_SAME = 1e-3  # of what they are compared with; below it two values are the same one
_HARMLESS_BYTES = 2**30
_MOST_COMPRESSION = 64

_LENGTHS = {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3}
_TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0, "day": 86400.0}
_SPELLINGS = {
    "mm": ("millimeter", "millimetre"),
    "cm": ("centimeter", "centimetre"),
    "m": ("meter", "metre"),
    "km": ("kilometer", "kilometre"),
    "s": ("sec", "second"),
    "min": ("minute",),
    "h": ("hr", "hour"),
    "day": ("d",),
}
_KNOWN = {
    spelling: unit for unit, others in _SPELLINGS.items() for name in (unit, *others) for spelling in (name, f"{name}s")
} | {"D": "day"}
_WORD = r"([A-Za-z]+)"
_INVERSE = r"(?:\^|\*\*)?\(?-1\)?"
_SPEED = re.compile(rf"{_WORD}\s*/\s*{_WORD}|{_WORD}\s*per\s+{_WORD}|{_WORD}[\s.*·]+{_WORD}{_INVERSE}")
_RATE = re.compile(rf"1?\s*/\s*{_WORD}|{_WORD}{_INVERSE}")


def from_xarray(
    data: xr.DataArray | xr.Dataset | str | os.PathLike[str],
    variables: str | Sequence[str] | None = None,
    *,
    dims: Sequence[str] | None = None,
    time: str | None = None,
    time_unit: str | None = None,
    start: Any = None,
    interpolation: str = "linear",
    continuation: str = "trigonometric",
) -> GridField | GridSeries:
    """Take a field from data on a uniform periodic grid: a `GridSeries` where they have times, or else a `GridField`.

    data: DataArray, Dataset, or the path of a file that xarray opens (NetCDF). A file, and a Dataset that was opened
        and not loaded, is read frame by frame when its times are asked for.
    variables: names of the components, ("u", "v") for a velocity, or one name for a number; needed of a Dataset. One
        component is ("u",), too.
    dims: names of the space dimensions, the one that component i goes along in place i; by default those that are
        called x, y, z or say so in their attribute "axis". They may be stored in any order.
    time: name of the time dimension, by default the one that is called time or t, has dates, or says so.
    time_unit: unit of time of the problem, "s", "min", "h" or "day": that dates are counted in, or that numbers with
        another unit are converted to. By default the one of the numbers, or of the velocity where it has one.
    start: the time that is t = 0, a date or a number of the data's own; by default the first of dates, and 0.
    interpolation: between times, "linear" or "cubic"; continuation: between nodes; see `GridSeries` and `GridField`.

    The field has the box of its coordinates, [a, a + N Δx] for N nodes from a on, which `ConvectionDiffusion` takes
    over, and their units, which `solve` hands out. Values keep their units: a velocity is in lengths of the coordinates
    per unit of time, and one that says otherwise is refused with the factor that it lacks. Coordinates that decrease
    are turned round.

    Raises ValueError for coordinates that are not uniform, are degrees, repeat the end of the period, or have units
    that do not fit; for missing values (land); and for dimensions that it cannot tell.
    """
    if time_unit is not None and _canonical(time_unit) not in _TIMES:
        raise ValueError(f"time_unit: expected one of {', '.join(_TIMES)}, got {time_unit!r}")
    arrays = _arrays(data, variables)
    single = isinstance(variables, str) or variables is None
    first = arrays[0]
    time = _time_of(first, time)
    axes = [_axis(first, name) for name in _dims_of(first, dims, time)]
    arrays = [_selected(array, {time, *(axis.name for axis in axes)}) for array in arrays]
    given: dict[str, Any] = {
        "continuation": continuation,
        "shape": () if single else (len(arrays),),
        "name": ", ".join(str(array.name or "data") for array in arrays),
        "box": tuple(axis.ends for axis in axes),
    }
    counted = _unit_of_time(arrays)
    if time is None or first.sizes[time] == 1:
        unit = _canonical(time_unit) if time_unit else counted
    else:
        times, unit = _times(first, time, time_unit, start, counted)
    _check_units(arrays, axes, unit)
    given["units"] = (*(axis.unit for axis in axes), unit or counted)
    frames = DataFrames(tuple(arrays), tuple(axes), time)
    if len(frames) == 1:
        field = GridField(frames[0], **given)
        _check_period(field.values, axes)
        return field
    series = GridSeries(times, frames, interpolation, **given)
    for frame in (0, len(frames) - 1):  # a flow may start from rest
        _check_period(series.at_frame(frame).values, axes)
    return series


@dataclass(frozen=True)
class Axis:
    """One of space: the lowest of its nodes, their spacing, number and unit, and whether they decrease in the data."""

    name: str
    lowest: float
    spacing: float
    count: int
    unit: str
    turned: bool

    @property
    def ends(self) -> tuple[float, float]:
        """Of the period, to twelve digits, as coordinates are rounded themselves."""
        end = self.lowest + self.count * self.spacing
        return float(f"{self.lowest:.12g}"), float(f"{end:.12g}")


@dataclass(frozen=True, eq=False)
class DataFrames:
    """Node values (C, N₁, ..., N_d) of arrays over named dimensions at one time after another, read when asked for."""

    arrays: tuple[xr.DataArray, ...]
    axes: tuple[Axis, ...]
    time: str | None

    def __len__(self) -> int:
        return 1 if self.time is None else self.arrays[0].sizes[self.time]

    def __getitem__(self, i: int) -> NDArray[Any]:
        when = {} if self.time is None else {self.time: i}
        dims = [axis.name for axis in self.axes]
        values = np.stack([array.isel(when).transpose(*dims).values for array in self.arrays])
        if values.dtype.kind == "f" and (missing := int(np.isnan(values).sum())):
            names = ", ".join(str(array.name) for array in self.arrays)
            at = "" if self.time is None else f" at {self.time} {i}"
            raise ValueError(
                f"{names}: expected a value at each node, got {missing} missing (NaN) of {values.size}{at}; "
                "choose a part without land, or fill it, as with data.fillna(0.0)"
            )
        return np.flip(values, tuple(1 + i for i, axis in enumerate(self.axes) if axis.turned))


def _arrays(data: Any, variables: str | Sequence[str] | None) -> list[xr.DataArray]:
    """The variables that were asked for."""
    import xarray as xr  # with pandas half of the package's import

    if isinstance(data, str | os.PathLike):
        check_size(data)
        data = xr.open_dataset(data, cache=False, decode_timedelta=False)
    if isinstance(data, xr.DataArray):
        if variables is not None:
            raise ValueError(f"variables: expected none with a DataArray, got {variables!r}")
        return [data]
    if not isinstance(data, xr.Dataset):
        raise ValueError(f"data: expected a DataArray, a Dataset or a path, got {type(data).__name__}")
    names = [variables] if isinstance(variables, str) else list(variables or data.data_vars)
    missing = [name for name in names if name not in data]
    if missing or not names or (variables is None and len(names) > 1):
        got = repr(missing[0]) if missing else "none"
        raise ValueError(f"variables: expected some of {', '.join(map(str, data.data_vars))}, got {got}")
    arrays = [data[name] for name in names]
    for array in arrays[1:]:
        if set(array.dims) != set(arrays[0].dims):
            raise ValueError(
                f"{array.name}: expected the dimensions of {arrays[0].name}, {arrays[0].dims}, got {array.dims}; "
                "bring staggered components to common nodes first"
            )
    return arrays


def check_size(path: str | os.PathLike[str], *, by_frame: bool = True) -> None:
    """Raise ValueError for an HDF5 file that claims to hold far more than it has: a shape costs a few bytes there.

    by_frame: whether fields are read frame by frame; coordinates are read whole.
    """
    import h5py

    if not os.path.isfile(path) or not h5py.is_hdf5(path):
        return
    most = max(_HARMLESS_BYTES, _MOST_COMPRESSION * os.path.getsize(path))

    def check(name: str, found: Any) -> None:
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            return
        at_once = math.prod(found.shape[1:] if by_frame and found.ndim > 1 else found.shape) * found.dtype.itemsize
        if at_once > most:
            raise ValueError(
                f"{path}: {name}: expected at most {most:.3g} bytes at a time in a file of "
                f"{os.path.getsize(path):,}, got shape {found.shape}"
            )

    with h5py.File(path, "r") as file:
        file.visititems(check)


def _time_of(array: xr.DataArray, time: str | None) -> str | None:
    """The name of the time dimension, None where there is none."""
    if time is not None:
        if time not in array.dims:
            raise ValueError(f"time: expected one of {', '.join(map(str, array.dims))}, got {time!r}")
        return time
    for name in array.dims:
        coordinate = array[name]
        dates = name in array.coords and coordinate.dtype.kind in "mMO"
        if dates or str(name).lower() in ("time", "t") or coordinate.attrs.get("axis") == "T":
            return str(name)
    return None


def _check_no_angle(array: xr.DataArray, name: str) -> None:
    """Raise ValueError for a dimension in degrees."""
    attributes = array[name].attrs
    spherical = attributes.get("standard_name", name) in ("latitude", "longitude", "lat", "lon")
    unit = str(attributes.get("units", "degrees" if spherical else ""))
    if unit.startswith(("deg", "°")):
        raise ValueError(
            f"{name}: expected lengths, got {unit}; project them first, as with x = R cos(latitude) longitude π/180"
        )


def _dims_of(array: xr.DataArray, dims: Sequence[str] | None, time: str | None) -> list[str]:
    """The names of the space dimensions, in the order of the components."""
    for name in array.dims:
        _check_no_angle(array, str(name))
    if dims is not None:
        names = [dims] if isinstance(dims, str) else list(dims)
        if not names or len(set(names)) < len(names) or not set(names) <= set(array.dims) - {time}:
            raise ValueError(f"dims: expected some of {', '.join(map(str, array.dims))} in space, got {dims}")
        return names
    names = [str(name) for name in array.dims if name != time and array.sizes[name] > 1]
    letters = {name: str(array[name].attrs.get("axis", name)).lower() for name in names}
    if len(names) > 1 and (not set(letters.values()) <= set("xyz") or len(set(letters.values())) < len(names)):
        raise ValueError(
            f"dims: expected the space dimensions in the order of the components, dims=('{names[-1]}', ...), as the "
            f"data do not tell it: {', '.join(names)}"
        )
    if not names:
        raise ValueError(f"dims: expected one with at least two nodes, got {dict(array.sizes)}")
    return sorted(names, key=letters.__getitem__)


def _selected(array: xr.DataArray, wanted: set[str | None]) -> xr.DataArray:
    """Without further dimensions, where they have one element."""
    others = [name for name in array.dims if name not in wanted]
    for name in others:
        if array.sizes[name] > 1:
            raise ValueError(f"{name}: expected one, got {array.sizes[name]}; choose it, as with data.isel({name}=0)")
    return array.isel(dict.fromkeys(others, 0))


def _axis(array: xr.DataArray, name: str) -> Axis:
    """The axis of a dimension, or a ValueError where its coordinates are none of a uniform grid."""
    if name not in array.coords:
        raise ValueError(f"{name}: expected coordinates, got none; data.assign_coords({name}=...)")
    coordinate = array[name]
    if coordinate.dtype.kind not in "fiu" or coordinate.size < 2 or not np.isfinite(coordinate.values).all():
        raise ValueError(f"{name}: expected at least two finite numbers, got {coordinate.size} of {coordinate.dtype}")
    x = coordinate.values.astype(np.float64)
    usual = float(np.median(np.diff(x)))
    off = np.abs(np.diff(x) - usual) > _UNEVEN * abs(usual)
    if usual == 0.0 or off.any():
        i = int(np.argmax(off))
        raise ValueError(
            f"{name}: expected a uniform spacing, got {x[i + 1] - x[i]:g} from {name}[{i}] = {x[i]:g} to {x[i + 1]:g} "
            f"where others are {usual:g}; interpolate it, as with data.interp({name}=...)"
        )
    unit = _canonical(str(coordinate.attrs.get("units", "")))
    return Axis(name, float(x.min()), float(np.ptp(x)) / (len(x) - 1), len(x), unit, turned=usual < 0.0)


def _check_period(values: NDArray[np.float64], axes: Sequence[Axis]) -> None:
    """Raise ValueError where the last nodes along an axis are the first ones again, a period later.

    They say so only where the field changes from there to its neighbours, and does not mirror itself: a field that is
    constant near the ends, or even about the middle, has the same values at both ends of any grid.
    """

    def apart(a: NDArray, b: NDArray) -> float:
        return float(np.abs(a - b).max())

    least = _SAME * np.abs(values).max()
    for i, axis in enumerate(axes):
        along = np.moveaxis(values, i + 1, 0)
        change = max(apart(along[0], along[1]), apart(along[-1], along[-2]))
        if change > least and apart(along[0], along[-1]) <= _SAME * change and apart(along, along[::-1]) > least:
            raise ValueError(
                f"{axis.name}: expected the end of the period once, but the last nodes repeat the values of the first; "
                f"leave them out, data.isel({axis.name}=slice(None, -1))"
            )


# Units: those of length and time that are known are compared; whatever else there is, is taken as it is.


def _canonical(text: str) -> str:
    """A unit in one spelling, or as it is."""
    return _KNOWN.get(text.strip(), text.strip())


def _parsed(array: xr.DataArray) -> tuple[str, str]:
    """Units of length and time in those of a speed or a rate, "" where there are none that are known."""
    text = str(array.attrs.get("units", "")).strip()
    if found := _SPEED.fullmatch(text):
        length, duration = (_canonical(word) for word in found.groups() if word)
        if length in _LENGTHS and duration in _TIMES:
            return length, duration
    if found := _RATE.fullmatch(text):
        duration = _canonical(next(word for word in found.groups() if word))
        if duration in _TIMES:
            return "", duration
    return "", ""


def _unit_of_time(arrays: Sequence[xr.DataArray]) -> str:
    """The unit of time in those of speeds or rates, or a ValueError where these have several."""
    found = {duration for array in arrays if (duration := _parsed(array)[1])}
    if len(found) > 1:
        units = ", ".join(str(array.attrs.get("units")) for array in arrays)
        raise ValueError(f"{', '.join(str(a.name) for a in arrays)}: expected the same unit of time, got {units}")
    return found.pop() if found else ""


def _check_units(arrays: Sequence[xr.DataArray], axes: Sequence[Axis], duration: str) -> None:
    """Raise ValueError, with the factor, where a speed or a rate is not in the units of the coordinates."""
    for i, array in enumerate(arrays):
        own_length, own_duration = _parsed(array)
        length = axes[i if len(arrays) == len(axes) else 0].unit
        factor = 1.0
        if own_length and length in _LENGTHS:
            factor *= _LENGTHS[own_length] / _LENGTHS[length]
        if own_duration and duration in _TIMES:
            factor *= _TIMES[duration] / _TIMES[own_duration]
        if abs(factor - 1.0) > 1e-9:
            expected = f"{length}/{duration or own_duration}" if own_length else f"1/{duration}"
            raise ValueError(
                f"{array.name}: expected {expected}, the units of the coordinates, got {array.attrs['units']}; "
                f"multiply it by {factor:.10g}, and say so in its attribute units"
            )


def _times(
    array: xr.DataArray, name: str, time_unit: str | None, start: Any, counted: str
) -> tuple[NDArray[np.float64], str]:
    """Times as numbers, and their unit; counted: the unit of time in those of the values."""
    if name not in array.coords:
        raise ValueError(f"{name}: expected coordinates, got none; data.assign_coords({name}=...)")
    values, attributes = array[name].values, array[name].attrs
    if values.dtype.kind in "mMO":
        unit = _canonical(time_unit or counted)
        if unit not in _TIMES:
            raise ValueError(
                f"time_unit: expected one of {', '.join(_TIMES)} for the dates of {name}, got {time_unit!r}"
            )
        if values.dtype.kind == "O":  # dates of other calendars
            since = values - (values[0] if start is None else start)
            return np.array([delta.total_seconds() for delta in since]) / _TIMES[unit], unit
        if np.isnat(values).any():
            raise ValueError(f"{name}: expected a date for each frame, got {int(np.isnat(values).sum())} missing (NaT)")
        if values.dtype.kind == "M":
            values = values - (values[0] if start is None else np.datetime64(start))
        elif start is not None:
            values = values - np.timedelta64(start)
        return values / np.timedelta64(1, "s") / _TIMES[unit], unit
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected numbers or dates, got dtype {values.dtype}")
    own = _canonical(str(attributes.get("units", "")).partition(" since ")[0])
    if not isinstance(start, Real | None):
        raise ValueError(f"start: expected a number, as {name} has numbers, got {start!r}")
    numbers = values.astype(np.float64) - float(start or 0.0)
    unit = _canonical(time_unit) if time_unit else own
    if own and unit != own:
        if own not in _TIMES or unit not in _TIMES:
            raise ValueError(f"time_unit: expected {own}, the unit of {name}, got {time_unit!r}")
        numbers = numbers * (_TIMES[own] / _TIMES[unit])
    return numbers, unit
