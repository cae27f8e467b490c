"""The solution of the PDE as a control variate for its own paths.

By Itô's formula u(X_t, t) is a martingale along the paths, so f(X_T) - u(x, 0) is the sum of σ∇u·dB. The sum
over the steps of ∇u(X̃, t)·σΔB, with X̃ the drifted point, known before ΔB is, has mean exactly zero whatever
function stands for ∇u: a wrong solution costs variance and never a bias. The Hessian adds the next term,
½ Σ ∂ᵢ∂ⱼu (ΔWᵢΔWⱼ - aᵢⱼ Δt) with ΔW = σΔB and a = σσᵀ, also of mean zero. With a potential V each increment counts by
e^(-∫V) up to its step, which is known before ΔB, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pdekit.numerics.spectral import gradient, resample
from pdekit.runtime.checks import check_flag, real_values
from pdekit.runtime.log import say_once

if TYPE_CHECKING:
    import xarray as xr

_MOST_BYTES = 2**28  # of tables, a fixed number, as results are the same on every machine
_NODES_A_WAVE = 4, 8  # with 8 the Taylor step from the nearest node is good to a few per cent at the shortest wave


@dataclass(frozen=True, eq=False)
class Control:
    """A solution whose gradient, and with `hessian` also second derivatives, paths look up.

    times: (frames,), increasing; u: (frames, N₁, ..., N_d), on the nodes of the problem's box.
    several: whether u has a further axis at the end, for the solutions of K terminal functions.

    Raises ValueError for other shapes, times that do not increase, or values that are not real and finite.
    """

    times: NDArray[np.float64]
    u: NDArray[np.float64]
    hessian: bool = False
    several: bool = False

    def __post_init__(self) -> None:
        check_flag("hessian", self.hessian)
        check_flag("several", self.several)
        times, u = real_values("control: times", self.times), real_values("control: u", self.u)
        if times.ndim != 1 or len(times) == 0 or u.ndim < 2 + self.several or u.size == 0:
            raise ValueError(
                f"control: expected times (frames,) and u (frames, N, ..., N{', K' if self.several else ''}), "
                f"got {times.shape}, {u.shape}"
            )
        if len(u) != len(times):
            raise ValueError(f"control: expected as many times as frames, got {len(times)} and {len(u)}")
        if not np.isfinite(u).all():
            raise ValueError("control: expected a finite solution u, got NaN or infinity in it")
        if not (np.isfinite(times).all() and (np.diff(times) > 0.0).all()):
            raise ValueError(f"control: expected finite times that increase, got {times}")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "u", u)

    @classmethod
    def from_solution(cls, solution: xr.Dataset, *, hessian: bool = False) -> Control:
        """From what `solve` returns: `u` over "time", space and perhaps "field"; axes as of `by_axes`.

        Raises ValueError where `u` is missing or has other dimensions, and as the class does.
        """
        if "u" not in solution or not set(solution["u"].dims) - {"field"} > {"time"}:
            got = dict(solution["u"].sizes) if "u" in solution else f"variables {list(solution.data_vars)}"
            raise ValueError(f"control: expected a dataset with u over time and space, got {got}")
        solution = by_axes(solution)
        return cls(solution["time"].values, solution["u"].values, hessian, solution["u"].dims[-1] == "field")

    @property
    def dim(self) -> int:
        return self.u.ndim - 1 - self.several

    @property
    def num_fields(self) -> int:
        """K, 1 for a single solution."""
        return self.u.shape[-1] if self.several else 1

    def tables(self, t0: float, dt: float, num_steps: int) -> tuple[NDArray[np.float32], int]:
        """Tables (runs, N₁ + 1, ..., N_d + 1, K C) of the derivatives along steps from t0 on, and their length."""
        nodes, stride = self._resolution(num_steps)
        dim = self.dim
        size = self.num_fields * self._components
        # Single precision is plenty for a control variate, and halves what the caches must hold.
        tables = np.empty((ceil(num_steps / stride), *[n + 1 for n in nodes], size), dtype=np.float32)
        for table, n in zip(tables, range(0, num_steps, stride), strict=True):
            # The step's martingale is centred at the drifted point, at the step's end.
            t = t0 + (n + 0.5 * (min(stride, num_steps - n) + 1)) * dt
            fields = _by_field(self._at(t), dim)
            components = np.concatenate([_derivatives(resample(u, nodes), self.hessian) for u in fields])
            table[...] = np.moveaxis(np.pad(components, [(0, 0)] + [(0, 1)] * dim, mode="wrap"), 0, -1)
        return tables, stride

    @property
    def _components(self) -> int:
        return self.dim + self.dim * (self.dim + 1) // 2 if self.hessian else self.dim

    def _resolution(self, num_steps: int) -> tuple[tuple[int, ...], int]:
        """Nodes along each axis, and steps that share a table: as fine as the memory allows, space giving way first."""
        waves = max(_waves(u) for u in np.moveaxis(self.u, -1, 0)) if self.several else _waves(self.u)
        bytes_a_node = 4 * self.num_fields * self._components * num_steps
        fitting = int((_MOST_BYTES / bytes_a_node) ** (1.0 / self.dim)) - 1
        nodes = []
        for n in self.u.shape[1 : 1 + self.dim]:
            coarse, fine = (min(max(each * waves, 32), 4 * n) for each in _NODES_A_WAVE)
            nodes.append(min(max(fitting, coarse), fine))
        size = bytes_a_node * prod(n + 1 for n in nodes)
        stride = ceil(size / _MOST_BYTES)
        if stride > 1:
            say_once(
                f"control: tables for each of {num_steps} steps would take {size / 2**20:,.0f} MiB, so {stride} steps "
                "share one, which reduces the variance less; take fewer steps or a smoother solution"
            )
        return tuple(nodes), stride

    def _at(self, t: float) -> NDArray[np.float64]:
        """u at time t, linear between frames."""
        k = int(np.clip(np.searchsorted(self.times, t) - 1, 0, max(len(self.times) - 2, 0)))
        if len(self.times) == 1:
            return self.u[0]
        w = np.clip((t - self.times[k]) / (self.times[k + 1] - self.times[k]), 0.0, 1.0)
        return (1.0 - w) * self.u[k] + w * self.u[k + 1]


def by_axes(solution: xr.Dataset) -> xr.Dataset:
    """A solution with time first, increasing, then space, then fields.

    Files often have x last, so x, y and z are known by name; other axes count in their order.
    """
    space = [str(name) for name in solution["u"].dims if name not in ("time", "field")]
    if set(space) == set("xyz"[: len(space)]):
        space.sort()
    return solution.transpose("time", *space, ...).sortby("time")


def _by_field(u: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
    """Values (N₁, ..., N_d[, K]) with the axis of the fields first."""
    return np.moveaxis(u, -1, 0) if u.ndim > dim else u[None]


def _derivatives(u: NDArray[np.float64], hessian: bool) -> NDArray[np.float64]:
    """Gradient, and the upper triangle of the Hessian, on the nodes, (C, N₁, ..., N_d)."""
    first = gradient(u)
    if not hessian:
        return first
    dim = u.ndim
    second = [gradient(first[a])[b] for a in range(dim) for b in range(a, dim)]
    return np.concatenate([first, np.stack(second)])


def _waves(u: NDArray[np.float64]) -> int:
    """Highest wave number along an axis that is needed to hold all but 1e-3 of |∇u|² in each frame.

    Small tables stay in the caches, and what is cut off costs a little variance and no bias.
    """
    needed = 1
    for frame in u:
        for derivative in gradient(frame):
            for along in range(frame.ndim):
                power = np.abs(np.fft.rfft(derivative, axis=along)) ** 2
                spectrum = power.sum(axis=tuple(a for a in range(frame.ndim) if a != along))
                tail = spectrum[::-1].cumsum()[::-1]
                needed = max(needed, int((tail > 1e-3 * tail[0]).sum()))
    return needed
