"""The solution of the PDE as a control variate for its own paths.

By Itô's formula u(X_t, t) is a martingale along the paths, so f(X_T) - u(x, 0) is the sum of σ∇u·dB. The sum
over the steps of ∇u(X̃, t)·σΔB, with X̃ the drifted point, known before ΔB is, has mean exactly zero whatever
function stands for ∇u: a wrong solution costs variance and never a bias. The Hessian adds the next term,
½ Σ ∂ᵢ∂ⱼu (σ²ΔBᵢΔBⱼ - δᵢⱼ σ²Δt), also of mean zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pdekit.spectral import gradient, resample

if TYPE_CHECKING:
    from pdekit.simulation import Simulation

_MOST_BYTES = 2**24  # of tables: outside the caches the gathers would cost more than the variance they save
_NODES_A_WAVE = 8  # the Taylor step from the nearest node is then good to a few per cent at the shortest wave


@dataclass(frozen=True, eq=False)
class Control:
    """Gradients (and Hessians) of the frames of a solution.

    times: (frames,); components: (frames, C, N, ..., N) with C = d, or d + d (d + 1) / 2 with the upper triangle
    of the Hessian row by row.
    """

    times: NDArray[np.float64]
    components: NDArray[np.float64]

    @classmethod
    def from_solution(cls, solution: xr.Dataset, dim: int, *, hessian: bool = False) -> Control:
        """From what `solve` returns: `u` with dimensions ("time", space ...).

        Raises ValueError where `u` is missing, has other dimensions or holds non-finite values.
        """
        if "u" not in solution or solution["u"].ndim != dim + 1 or solution["u"].dims[0] != "time":
            got = dict(solution["u"].sizes) if "u" in solution else f"variables {list(solution.data_vars)}"
            raise ValueError(f"control: expected a dataset with u of (time, {dim} space dimensions), got {got}")
        u = np.asarray(solution["u"].values, dtype=np.float64)
        if not np.isfinite(u).all():
            raise ValueError("control: expected a finite solution u, got NaN or infinity in it")
        times = np.asarray(solution["time"].values, dtype=np.float64)
        order = np.argsort(times)
        nodes = _nodes_needed(u)
        return cls(times[order], np.stack([_derivatives(resample(u[n], nodes), hessian) for n in order]))

    def tables(self, simulation: Simulation, num_steps: int) -> tuple[Any, ...]:
        """What the kernels take: tables (steps / stride, nodes, C) for runs of `stride` steps each, and σ²Δt."""
        dt = simulation.duration / num_steps
        key = (num_steps, simulation.t0)
        cache = self.__dict__.setdefault("_tables", {})
        if key not in cache:
            cache[key] = self._build(simulation.t0, num_steps, dt)
        return (*cache[key], simulation.problem.sigma**2 * dt)

    def _build(self, t0: float, num_steps: int, dt: float) -> tuple[NDArray[np.float32], int]:
        # Single precision is plenty for a control variate, and halves what the caches must hold.
        stride = max(1, ceil(num_steps * self.components[0].size * 4 / _MOST_BYTES))
        dim = self.components.ndim - 2
        tables = []
        for n in range(0, num_steps, stride):
            # The step's martingale is centred at the drifted point, at the step's end.
            t = t0 + (n + 0.5 * (min(stride, num_steps - n) + 1)) * dt
            periodic = np.pad(self._at(t), [(0, 0)] + [(0, 1)] * dim, mode="wrap")
            by_node = np.moveaxis(periodic, 0, -1).reshape(-1, len(periodic))
            tables.append(by_node.astype(np.float32, order="C"))
        return np.stack(tables), stride

    def _at(self, t: float) -> NDArray[np.float64]:
        """Components at time t, linear between frames."""
        k = int(np.clip(np.searchsorted(self.times, t) - 1, 0, max(len(self.times) - 2, 0)))
        if len(self.times) == 1:
            return self.components[0]
        w = np.clip((t - self.times[k]) / (self.times[k + 1] - self.times[k]), 0.0, 1.0)
        return (1.0 - w) * self.components[k] + w * self.components[k + 1]


def _derivatives(u: NDArray[np.float64], hessian: bool) -> NDArray[np.float64]:
    """Gradient, and the upper triangle of the Hessian, on the nodes, (C, N, ..., N)."""
    first = gradient(u)
    if not hessian:
        return first
    dim = u.ndim
    second = [gradient(first[a])[b] for a in range(dim) for b in range(a, dim)]
    return np.concatenate([first, np.stack(second)])


def _nodes_needed(u: NDArray[np.float64]) -> int:
    """Nodes along an axis for tables of ∇u: enough for the waves that hold all but 1e-3 of |∇u|² in each frame.

    Small tables stay in the caches, and what is cut off costs a little variance and no bias.
    """
    num_points, needed = u.shape[-1], 1
    for frame in u:
        for derivative in gradient(frame):
            for along in range(frame.ndim):
                power = np.abs(np.fft.rfft(derivative, axis=along)) ** 2
                spectrum = power.sum(axis=tuple(a for a in range(frame.ndim) if a != along))
                tail = spectrum[::-1].cumsum()[::-1]
                needed = max(needed, int((tail > 1e-3 * tail[0]).sum()))
    return min(max(_NODES_A_WAVE * needed, 32), 4 * num_points)
