"""
A tracer in a measured current
==============================

Take a velocity from a NetCDF file with dates and units, and follow a patch of tracer for 30 days.
"""

# %%
# The file
# --------
# Ocean models write dates, lengths and speeds, each with its unit. This file stands for one: a month of a jet
# with drifting eddies, at nodes 10 km apart and every second day, with speeds in metres per second.

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

x, y = np.meshgrid(np.arange(0.0, 640.0, 10.0), np.arange(0.0, 320.0, 10.0), indexing="ij")
days = np.arange(0, 31, 2)
k, l = 2 * np.pi / 640, 2 * np.pi / 320
u, v = np.zeros((2, len(days), *x.shape))
u += 0.05 * np.sin(l * y)  # a jet; then eddies that drift along it, from their stream functions
for m, n, speed, drift in ((1, 1, 0.06, 0.10), (2, 1, 0.05, -0.15), (3, 2, 0.03, 0.30)):
    phase = m * k * x - drift * days[:, None, None]
    u -= speed * np.cos(phase) * np.sin(n * l * y + m)
    v += speed * m * k / (n * l) * np.sin(phase) * np.cos(n * l * y + m)
current = xr.Dataset(
    {"u": (("time", "x", "y"), u, {"units": "m/s"}), "v": (("time", "x", "y"), v, {"units": "m/s"})},
    coords={
        "time": np.datetime64("2024-03-01", "ns") + days * np.timedelta64(1, "D"),
        "x": ("x", x[:, 0], {"units": "km"}),
        "y": ("y", y[0], {"units": "km"}),
    },
)
folder = Path(tempfile.mkdtemp())
current.to_netcdf(folder / "current.nc", engine="h5netcdf")

# %%
# Units that do not fit are refused, with the factor that they lack.

from pdekit import ConvectionDiffusion, from_xarray, solve

try:
    from_xarray(folder / "current.nc", ("u", "v"), time_unit="day")
except ValueError as error:
    print(error)

# %%
# So the file is written again in kilometres per day.

with xr.open_dataset(folder / "current.nc") as given:
    converted = (86.4 * given).assign_coords(given.coords)
    for name in ("u", "v"):
        converted[name].attrs["units"] = "km/day"
    converted.to_netcdf(folder / "current_km_day.nc", engine="h5netcdf")
velocity = from_xarray(folder / "current_km_day.nc", ("u", "v"), time_unit="day")
print("box:", velocity.box, "units:", velocity.units)

# %%
# The tracer
# ----------
# The patch is carried by the current and spread by eddies too small for the file, here with σ = 4 km/√day, a
# diffusivity of 8 km²/day. ``from_initial_value`` turns the forward problem into the backward one that ``solve``
# solves: its t = 0 is the end, after 30 days.


def patch(points):
    angles = 2 * np.pi * (points - np.array([200.0, 160.0])) / np.array([640.0, 320.0])
    return np.exp(((np.cos(angles) - 1) * np.array([640.0, 320.0]) ** 2).sum(-1) / (2 * np.pi * 30.0) ** 2)


problem = ConvectionDiffusion.from_initial_value(velocity, patch, sigma=4.0, horizon=30.0)
solution = solve(problem, num_points=(192, 96), dt=0.05, times=[0, 10, 20, 30])
print("method:", solution.method, "| warnings:", solution.warnings)

# %%
# The picture
# -----------
# Arrows are the current of the day. What the current draws out into threads, diffusion wipes away.

import matplotlib.pyplot as plt

figure, panels = plt.subplots(2, 2, figsize=(6.8, 3.9), sharex=True, sharey=True)
for panel, day in zip(panels.flat, (0, 10, 20, 30), strict=True):
    field = solution.u.sel(time=30 - day)
    image = panel.pcolormesh(field.x, field.y, field.T, vmin=0, vmax=0.5, cmap="magma_r", shading="gouraud")
    flow = converted.isel(time=int(np.searchsorted(days, day)), x=slice(0, None, 5), y=slice(0, None, 4))
    panel.quiver(flow.x, flow.y, flow.u.T, flow.v.T, color="0.35", width=0.003, scale=130)
    panel.set(title=f"day {day}", aspect="equal", xlim=(0, 637), ylim=(0, 317))
for panel in panels[1]:
    panel.set_xlabel("x [km]")
for panel in panels[:, 0]:
    panel.set_ylabel("y [km]")
figure.colorbar(image, ax=panels, label="tracer", shrink=0.7, extend="max")
plt.show()
