"""How much of a problem a grid and a step can hold: measured before the first step, and watched while it is solved.

Shares are root mean squares: the part of a field in some of its modes, relative to the whole field. The frequency of a
mode is max|k_i|, the one along the axis where it is highest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pdekit.equation.coefficients import least_diffusivity
from pdekit.equation.operator import Grid
from pdekit.numerics.diagnostics import max_speed, strain_rates
from pdekit.problem import ConvectionDiffusion

LARGEST_TAIL = 0.01  # of u in the upper third of its modes: above it, errors of some per cent were measured
LARGEST_SMOOTHED_TAIL = 0.002  # the same where a step interpolates, and damps that third itself
LARGEST_LOSS = 0.01  # of f, as far as diffusion leaves it
LARGEST_VELOCITY_LOSS = 0.05  # of F: a resolved u averages over what oscillates faster than it does
LARGEST_OVERSHOOT = 0.05  # Gibbs' overshoot is 0.09 of a jump

_LINES = 8  # along each axis, for the spectrum of a callable
_INSTANTS = 8  # at which all nodes of a time-dependent F are looked at
_GLANCES = 32  # at each of which a few points are, to find that one


class ResolutionWarning(UserWarning):
    """The grid or the step may not resolve the solution that is returned; the message says what would."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Energy of a field by frequency along each axis.

    energy: for each axis (M,), energy[a][k] of the modes of frequency ±k along axis a; size: the root mean square that
    shares relate to; largest: max|value|, also between the nodes of a grid.
    """

    energy: list[NDArray[np.float64]]
    size: float
    largest: float

    def beyond(self, cutoff: Sequence[int], damping: float = 0.0) -> float:
        """Share of the modes above the cutoff of an axis, each times exp(-damping (2πk)²); ν times the time is
        diffusion's."""
        if self.size == 0.0:
            return 0.0
        lost = 0.0
        for energy, highest in zip(self.energy, cutoff, strict=True):
            k = np.arange(highest + 1, len(energy))
            lost += float((energy[highest + 1 :] * np.exp(-2.0 * damping * (2.0 * np.pi * k) ** 2)).sum())
        return min(math.sqrt(lost) / self.size, 1.0)

    def cutoff_for(self, share: float, damping: float = 0.0) -> int:
        """The lowest cutoff, the same along each axis, beyond which at most `share` lies."""
        most = max(len(energy) for energy in self.energy)
        return next(k for k in range(most + 1) if self.beyond([k] * len(self.energy), damping) <= share)


def _spectrum(along: Sequence[NDArray], *, components: int = 1, centred: bool = False) -> Spectrum:
    """From values along the last axis of along[a] for each axis a, mean over all other axes but a sum over components.

    centred: shares relate to the field's variation about its mean.
    """
    rows = []
    for values in along:
        m = values.shape[-1]
        power = np.abs(np.fft.rfft(values) / m) ** 2
        power[..., 1 : (m + 1) // 2] *= 2.0  # a frequency and its negative
        rows.append(power.reshape(-1, power.shape[-1]).mean(axis=0) * components)
    square = float(np.mean([np.mean(values**2) for values in along]))
    mean = float(np.mean([values.mean() for values in along])) if centred else 0.0
    largest = max(float(np.abs(values).max()) for values in along)
    return Spectrum(rows, math.sqrt(max(square - mean**2, 0.0) * components), largest)


def _lines(grid: Grid) -> list[NDArray[np.float64]]:
    """Points (lines, M, d) along each axis, finer than the grid, which takes fast modes for slow ones."""
    dim = len(grid)
    offsets = np.random.default_rng(0).random((1 if dim == 1 else _LINES, 1, dim))
    lines = []
    for axis in range(dim):
        fine = np.arange(4 * grid[axis] + 1) / (4 * grid[axis] + 1)
        points = np.repeat(offsets, len(fine), axis=1)
        points[..., axis] = fine
        lines.append(points)
    return lines


def terminal_spectra(problem: ConvectionDiffusion, grid: Grid) -> list[Spectrum]:
    """Of each f, from its own nodes, or along lines finer than a grid."""
    dim = problem.dim
    if callable(problem.terminal):
        along = [problem.evaluate_terminal(points) for points in _lines(grid)]
        if problem.num_fields is None:
            return [_spectrum(along, centred=True)]
        return [_spectrum([a[..., k] for a in along], centred=True) for k in range(problem.num_fields)]
    fields = np.moveaxis(problem.terminal, -1, 0) if problem.num_fields else np.asarray(problem.terminal)[None]
    return [_spectrum([np.moveaxis(f, axis, -1) for axis in range(dim)], centred=True) for f in fields]


def velocity_spectra(problem: ConvectionDiffusion, grid: Grid, times: Sequence[float]) -> list[Spectrum]:
    """Of F at some times, from its own nodes, or along lines finer than a grid."""
    dim, spectra = problem.dim, []
    for t in times:
        if (values := problem.velocity.own_nodes_at(t)) is not None:
            along = [np.moveaxis(values, axis + 1, -1) for axis in range(dim)]
        else:
            along = [np.moveaxis(problem.velocity.at(points, t), -1, 0) for points in _lines(grid)]
        spectra.append(_spectrum(along, components=dim))
    return spectra


def other_spectra(problem: ConvectionDiffusion, grid: Grid, times: Sequence[float]) -> dict[str, list[Spectrum]]:
    """Of V, g and ½σσᵀ at some times, by name, where they are there, as those of F."""
    found: dict[str, list[Spectrum]] = {}
    for name, field in (("potential", problem.potential), ("source", problem.source), ("sigma", problem.noise.field)):
        if field is None:
            continue
        found[name] = []
        for t in [0.0] if field.steady else times:
            if name == "sigma":
                covariances = [problem.noise.covariance(points, t) for points in _lines(grid)]
                along = [np.moveaxis(a.reshape(*a.shape[:-2], -1), -1, 0) for a in covariances]
            elif (values := field.own_nodes) is not None:
                along = [np.moveaxis(values, axis + 1, -1) for axis in range(problem.dim)]
            else:
                along = [field.flat(points, t) for points in _lines(grid)]
            found[name].append(_spectrum(along, components=len(along[0])))
    return found


@dataclass(frozen=True, eq=False)
class Flow:
    """Scales of F, each the largest that was met over the horizon.

    times: the instants looked at; speed: max|F|; diffusivity: the least eigenvalue of ½σσᵀ; steepening: the rate at
    which gradients of u grow; strain: the same in either direction of time. Rates nobody asked for are NaN: they cost
    as much as some time steps.
    directions: (D, d), of wave vectors with max|k_i| = 1; fastest, typical: (D,), Σ|F_i k_i| for each, at its largest
    and in the root mean square over nodes and instants.
    """

    times: tuple[float, ...]
    speed: float
    diffusivity: float
    steepening: float
    strain: float
    directions: NDArray[np.float64]
    fastest: NDArray[np.float64]
    typical: NDArray[np.float64]

    @classmethod
    def of(cls, problem: ConvectionDiffusion, grid: Grid, *, with_strain: bool) -> Flow:
        parts = np.array(list(product(np.linspace(0.0, 1.0, 5 if problem.dim < 3 else 3), repeat=problem.dim)))
        directions = parts[parts.max(axis=1) == 1.0]
        nodes = problem.velocity.nodes(grid, 0.0)  # first, so that a wrong F is met in the shape of the grid
        times = _instants(problem)
        scales, fastest, squares = [], [], []
        for t in times:
            nodes = nodes if t == 0.0 else problem.velocity.nodes(grid, t)
            # Eq. 10 runs from T back to 0, so what steepens gradients is -F (Remark 1)
            low, high = strain_rates(nodes) if with_strain else (math.nan, math.nan)
            scales.append((max_speed(nodes), high, max(high, -low)))
            rates = directions @ np.abs(nodes).reshape(problem.dim, -1)
            fastest.append(rates.max(axis=1))
            squares.append((rates**2).mean(axis=1))
        speed, steepening, strain = (max(column) for column in zip(*scales, strict=True))
        typical = np.sqrt(np.mean(squares, axis=0))
        diffusivity = least_diffusivity(problem, grid, times)
        return cls(times, speed, diffusivity, steepening, strain, directions, np.max(fastest, axis=0), typical)


def _instants(problem: ConvectionDiffusion) -> tuple[float, ...]:
    """Times at which F is looked at: in each of some equal parts of the horizon, the one where it is largest.

    That one is found from a few points at irregular times, so that pulses and periodic factors do not hide; of an F
    given at some times, from its own nodes at some of these.
    """
    horizon = problem.horizon
    if problem.velocity.steady:
        return (0.0,)
    if problem.velocity.jumps:
        return tuple(float(t) for t in np.linspace(0.0, horizon, _INSTANTS, endpoint=False))
    velocity, own = problem.velocity, problem.velocity.own_times
    rng = np.random.default_rng(0)
    points = rng.random((64, problem.dim))

    def size(t: float) -> float:
        values = velocity.at(points, t) if own is None else velocity.own_nodes_at(t)
        return float(np.abs(values).max())  # type: ignore[arg-type]

    chosen = []
    for part in range(_INSTANTS):
        glances = horizon * (part + rng.random(_GLANCES)) / _INSTANTS
        if own is not None:
            begin, end = (horizon * k / _INSTANTS for k in (part, part + 1))
            within = own[(own >= begin) & (own <= end)]
            glances = within[:: math.ceil(len(within) / _GLANCES)] if len(within) else np.array([0.5 * (begin + end)])
        chosen.append(max(map(float, glances), key=size))
    return (0.0, *chosen, horizon)


def growth(
    amplification: Callable[[NDArray, NDArray], NDArray],
    rates: NDArray,
    flow: Flow,
    *,
    cutoff: Grid,
    diffusion: NDArray,
    dt: float,
    num_steps: int,
    explicit: float = 0.0,
) -> float:
    """log of the factor by which the step lets the worst mode grow over the whole march; <= 0 for a stable one.

    A mode of wave vector 2πr k turns at the rate 2πr Σ|F_i k_i|, `rates` (D,) times 2πr, and diffusion, exact in the
    step, damps it: diffusion (d, d) is ½σσᵀ in the mean, and explicit the largest that is left to the step. F is frozen
    at a point here, which is exact for a constant F.
    """
    highest = float(max(cutoff))
    r = 2.0 * np.pi * np.linspace(0.0, highest, 65)[1:]
    k = flow.directions * (np.array(cutoff) / highest)
    size = (k**2).sum(axis=1)[:, None] * r**2
    damped = dt * np.einsum("ki,ij,kj->k", k, diffusion, k)[:, None] * r**2
    grown = amplification(dt * (1j * rates[:, None] * r - explicit * size), -damped)
    with np.errstate(divide="ignore"):
        return float(np.log(grown).max() * num_steps)
