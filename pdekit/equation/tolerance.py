"""Resolution in space and time by a tolerance: as many modes, at each time, as the solution needs.

Modes up to K are kept. Truncation takes (1 - P_K) Σ_c a_c D^c u away all the time, F·∇u for one, which by the maximum
principle moves u by no more than the sum of what is taken, and by less where diffusion would have ended those modes
soon. Its size is estimated from the energies of u and the coefficients by shells max|k_i| = k, phases taken for random,

    sup = 4 rms,    rms² = Σ_c Σ_k (2πk)^2|c| |u|²_k Σ_{j > K-k} |a_c|²_j,

and K is the least for which that stays below its part of the tolerance, looked at before a basis is built and on the
way through its substep. The modes that u no longer needs are dropped, and the error in time (`pdekit.equation.krylov`)
has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy
from numpy.typing import NDArray

from pdekit.equation.coefficients import Coefficients, growth, least_diffusivity
from pdekit.equation.krylov import Krylov
from pdekit.equation.operator import Grid, SpectralOperator, compact, resized
from pdekit.equation.spectral_method import Forcing, add_product
from pdekit.field import Field, node_points
from pdekit.numerics.spectral import resample
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.kernels import kernel

MOST_NODES = {1: 8192, 2: 2048, 3: 256}  # an axis, in products
_GOLDEN = 0.5 * (3.0 - math.sqrt(5.0))  # of a spacing: no multiple of it is near a whole number
_LEAKING, _DROPPING = 0.4, 0.1  # parts of the tolerance; the error in time has the rest
_CREST = 4.0  # of max|·| over the root mean square
_LIVES = 2.0  # times the decay time of the first mode that is not kept, for what is taken from u to matter
_START = 0.3  # of what may leak when a basis begins, so that it can serve for some time
_LOOKED_AT = (0, 2, 4, 6, 8)  # halvings of a substep: a cascade may rise and fall within it
_HEADROOM = 1.1  # of the modes when a basis begins
_LEVELS_KEPT = 3
_NOISE = 9.0  # times its own error in time, below which the energy of a shell is taken for that error


class _Level:
    """The operator A with modes up to one cutoff, and its propagator."""

    def __init__(self, method: ResolvedMethod, cutoff: int) -> None:
        dim, points = method.problem.dim, scipy.fft.next_fast_len(2 * cutoff + 2, real=True)
        self._method, self._piece = method, method.piece
        self.operator = SpectralOperator(
            (points,) * dim,
            terms=method.coefficients.terms,
            cutoff=(cutoff,) * dim,
            bands=(method.band,) * dim,
            fft=method.fft,
        )
        self._prepared = self.operator.prepare(method.nodes)
        self._symbol = method.coefficients.symbol(self.operator).reshape(-1)
        self._forcing = None
        if method.source is not None:
            self._forcing = Forcing(resized(method.source, (cutoff,) * dim), method.source_largest, method.duration)
        self.propagator = Krylov(self.operator.shape, self._apply, self._largest, method.duration)
        self.propagator.tolerance = method.in_time

    def _apply(self, u_hat: NDArray, out: NDArray) -> None:
        method = self._method
        method.applications += 1
        if self._piece is not method.piece:
            self._prepared, self._piece = self.operator.prepare(method.nodes), method.piece
        self.operator.evaluate(u_hat, self._prepared, out)
        add_product(self._symbol, u_hat.reshape(-1), out.reshape(-1))
        if self._forcing is not None:
            self._forcing.add(u_hat, out)

    def _largest(self, u_hat: NDArray) -> float:
        size = float(np.abs(self.operator.to_grid(u_hat)).max())
        return size if self._forcing is None else size + self._forcing.effect(u_hat)


class ResolvedMethod:
    """u' = A u + g with as many modes, and substeps as long, as max|error| <= rtol times the bound of |u| allows.

    The state is compact modes of whatever cutoff is in force, the same along each axis, of one field. grid: nodes
    handed out, None for those that the cutoff needs; duration: from T back to the first frame.
    """

    def __init__(
        self,
        problem: ConvectionDiffusion,
        *,
        grid: Grid | None,
        rtol: float,
        duration: float,
        fft: str = "auto",
    ) -> None:
        self.problem, self._grid, self.duration, self.fft = problem, grid, duration, fft
        self.speed_met = 0.0
        dim, most = problem.dim, MOST_NODES[problem.dim]
        terminal, self._lost = _terminal_nodes(problem, rtol, most)
        n = terminal.shape[-1]
        self._terminal = compact(terminal, (n // 2,) * dim)
        largest = float(np.abs(resample(terminal, 4 * n if 4 * n <= most else n)).max())
        self.source, self.source_largest = None, 0.0
        if problem.source is not None:
            nodes = _steady_nodes(problem.source, problem, rtol, most)[0]
            self.source = compact(nodes, (nodes.shape[-1] // 2,) * dim)
            self.source_largest = float(np.abs(nodes).max())
            Forcing(self.source, self.source_largest, duration).begin(self._terminal)
        first, _ = problem.velocity.before(problem.horizon)
        held = [_steady_nodes(field, problem, rtol, most) for field in (first, problem.potential) if field is not None]
        if problem.noise.field is not None:
            held.append(_held("sigma", partial(_covariances, problem), problem, 1e-3 * rtol, most)[0])
        self.coefficients = Coefficients(problem, (max(nodes.shape[-1] for nodes in held),) * dim)
        self.nodes = self.coefficients.nodes(0.0, first)
        own = self.coefficients.grid
        growing = growth(problem, own)
        self.bound = growing * (largest + problem.horizon * self.source_largest)
        # errors grow no more than u itself may, and are measured by what it may reach
        tolerance, self._growth = rtol * (largest + problem.horizon * self.source_largest), growing
        self._allowed, self._droppable = _LEAKING * tolerance, _DROPPING * tolerance
        self.in_time = tolerance - self._allowed - self._droppable
        self._diffusivity = least_diffusivity(problem, own, [0.0])
        self.band = own[0] // 2 if self.coefficients.bands is None else max(self.coefficients.bands)
        self._most = self._fast((most - self.band - 1) // 2)
        self._levels: dict[int, _Level] = {}
        self._level: _Level | None = None
        self.piece = first
        self._shells = self._coefficient_shells()
        self._beyond = np.zeros(1) if self.source is None else _beyond(_shells(self.source))
        self._noise = np.zeros(0)
        self._grown = 1.0
        self._cut = 0.0  # bound of all modes that were dropped from u
        self.space_error = 0.0
        self.largest_cutoff = 0
        self.applications = self._before = 0  # in all, with those that were in vain; before this basis

    # what the march asks for

    def start(self, field: NDArray | None = None) -> NDArray:
        """The terminal condition's own modes, whatever grid is handed out."""
        return self._terminal.copy()

    @property
    def start_points(self) -> int:
        """Nodes an axis that hold f."""
        return 2 * self._terminal.shape[-1]

    def field(self, state: NDArray) -> NDArray[np.float64]:
        k = state.shape[-1] - 1
        grid = self._grid or (max(8, scipy.fft.next_fast_len(2 * k + 2, real=True)),) * self.problem.dim
        # values at the nodes, where the nodes cannot hold the modes
        every = [math.ceil((2 * k + 2) / n) for n in grid]
        finer = self._at(k).operator.to_grid(state, tuple(e * n for e, n in zip(every, grid, strict=True)))
        return np.ascontiguousarray(finer[tuple(slice(None, None, e) for e in every)])

    def norm(self, state: NDArray) -> float:
        return self._at(state.shape[-1] - 1).operator.norm(state)

    def energies(self, state: NDArray) -> tuple[NDArray, NDArray]:
        tail, total = self._at(state.shape[-1] - 1).operator.energies(state)
        return np.array([tail]), np.array([total])

    def convert(self, state: NDArray) -> NDArray:
        return state

    def step(self, state: NDArray, s: float, limit: float = math.inf) -> tuple[NDArray, float]:
        if self._level is None or self._level.propagator.served(s):
            state = self._begin(state, s)
        assert self._level is not None
        propagator = self._level.propagator
        taken = min(limit, propagator.until - s)
        propagator.state(s + taken, state)
        return state, taken

    def facts(self) -> dict[str, float]:
        time = self._level.propagator.estimate if self._level else 0.0
        error = {
            "error_estimate": self._growth * (time + self.space_error + self._cut + self._lost),
            "error_estimate_time": self._growth * time,
        }
        return error | {"applications": self.applications, "cutoff": self.largest_cutoff, "padded": 1}

    def history(self) -> dict[str, NDArray]:
        if self._level is None:
            return {}
        own = {
            "cut": self._cut,
            "space_error": self.space_error,
            "largest_cutoff": self.largest_cutoff,
            "applications": self._before,
        }
        return self._level.propagator.history() | {name: np.array(value) for name, value in own.items()}

    def restore(self, history: dict[str, NDArray]) -> None:
        if "origin" not in history:
            return
        self._cut, self.space_error = float(history["cut"]), float(history["space_error"])
        self.largest_cutoff, self.applications = int(history["largest_cutoff"]), int(history["applications"])
        origin = history["origin"]
        self._stand(float(history["number_0"]))
        self._level = self._at(origin.shape[-1] - 1)
        self._level.propagator.restore(history)
        _, self._grown = self._end_of(self._level, origin)

    # a basis, with the modes that it needs

    def _begin(self, state: NDArray, s: float) -> NDArray:
        """Choose modes and build a basis that serves for some time; returns the state with these modes."""
        left = min(self.duration - s, self._stand(s))
        carried = self._level.propagator.carried() if self._level else None
        energy = _clean(_shells(state), self._noise)
        here = state.shape[-1] - 1
        wanted = self._wanted(energy)
        while True:
            if wanted > self._most:
                raise ValueError(
                    f"rtol: the solution needs modes beyond |k| = {self._most}, of {MOST_NODES[self.problem.dim]} "
                    "nodes an axis; use a larger rtol or sigma, or num_points and method='semi_lagrangian'"
                )
            k = self._fast(wanted)
            level = self._at(k)
            if carried is not None:
                level.propagator.follow(carried)
            own = state if k == here else resized(state, (k,) * self.problem.dim)
            self._before = self.applications
            level.propagator.begin(own, s, left)
            leaked, ended = self._end_of(level, own)
            if leaked <= self._allowed:
                break
            wanted = math.ceil(1.3 * k)  # even a short substep takes too much
        self._cut += _CREST * math.sqrt(energy[k + 1 :].sum())
        self.space_error = max(self.space_error, leaked)
        self._level, self.largest_cutoff = level, max(self.largest_cutoff, k)
        self._grown = ended
        return own

    def _end_of(self, level: _Level, state: NDArray) -> tuple[float, float]:
        """Shorten the substep until what it would lose is allowed; that, and the room the next one needs for more."""
        propagator, there = level.propagator, np.empty_like(state)
        k, room = state.shape[-1] - 1, 1.0
        after = _shells(propagator.vector_after)
        at_once = self._leak(_clean(_shells(state), np.zeros(0)), k)
        for _ in range(8):
            leaked = at_once
            for halvings in _LOOKED_AT:
                noise = propagator.early_state(halvings, there) ** 2 * after
                leaked = max(leaked, self._leak(_clean(_shells(there), noise), k))
                if halvings == 0:
                    self._noise = noise
                if leaked > self._allowed:
                    break
            if leaked <= self._allowed:
                break
            propagator.shorten(0.6)
            room = 1.3
        return leaked, room

    def _wanted(self, energy: NDArray) -> int:
        """The least cutoff that starts well within what truncation may take."""
        allowed, spare = _START * self._allowed, self._droppable - self._cut
        dropped = _CREST * np.sqrt(np.append(energy[::-1].cumsum()[::-1][1:], np.zeros(self._most + 1)))
        for k in range(1, self._most + 1):
            if dropped[k] <= spare and self._leak(energy, k) <= allowed:
                return min(math.ceil(_HEADROOM * self._grown * k) + 1, self._most)
        return self._most + 1

    def _leak(self, energy: NDArray, cutoff: int) -> float:
        """Bound of what truncation at the cutoff moves u by, were the energies by shells these all the time."""
        k = np.arange(min(len(energy), cutoff + 1))
        square = float(self._beyond[min(cutoff + 1, len(self._beyond) - 1)])  # of the source
        for order, shells in self._shells.items():
            beyond = shells[np.clip(cutoff - k + 1, 0, len(shells) - 1)]
            square += float(((2.0 * np.pi * k) ** (2 * order) * energy[: len(k)] * beyond).sum())
        decay = self._diffusivity * (2.0 * np.pi * (cutoff + 1)) ** 2
        return _CREST * math.sqrt(square) * _LIVES * min(self.duration, 1.0 / decay if decay > 0.0 else math.inf)

    def _fast(self, cutoff: int) -> int:
        """The largest cutoff whose products take as many nodes."""
        if 2 * cutoff < self.band:
            return cutoff
        nodes = scipy.fft.next_fast_len(2 * cutoff + self.band + 1, real=True)
        return (nodes - self.band - 1) // 2

    def _at(self, cutoff: int) -> _Level:
        """The operator with modes up to `cutoff`; a few are kept, as each has a basis in memory."""
        if cutoff not in self._levels:
            if len(self._levels) == _LEVELS_KEPT:
                del self._levels[next(iter(self._levels))]
            self._levels[cutoff] = _Level(self, cutoff)
        self._levels[cutoff] = level = self._levels.pop(cutoff)  # the latest comes last
        return level

    def _stand(self, s: float) -> float:
        """Take the piece of F that stands before t = T - s, and return for how long it does."""
        piece, duration = self.problem.velocity.before(self.problem.horizon - s)
        if piece is not self.piece:
            self.piece, self.nodes = piece, self.coefficients.nodes(0.0, piece)
            self._shells = self._coefficient_shells()
        return duration

    def _coefficient_shells(self) -> dict[int, NDArray]:
        """Σ_{i >= j} |a_c|²_i for j = 0, 1, ..., one beyond the last, by the order of the derivative."""
        dim = self.problem.dim
        n = max(self.nodes.shape[-1] | 1, 5)  # odd: no mode is unpaired
        nodes = resample(self.nodes, n, axes=tuple(range(1, dim + 1)))
        energies: dict[int, NDArray] = {}
        for term, values in zip(self.coefficients.terms, nodes, strict=True):
            energies[sum(term)] = energies.get(sum(term), 0.0) + _shells(compact(values, (n // 2,) * dim))
        return {order: _beyond(energy) for order, energy in energies.items()}


def _held(
    name: str, sample: Callable[[NDArray], NDArray], problem: ConvectionDiffusion, share: float, most: int
) -> tuple[NDArray[np.float64], float]:
    """Node values (..., N, ..., N) on the coarsest grid that holds what `sample` gives at points (N, ..., N, d).

    At most `share` of max|value| is in the upper third of its modes, and in the difference to the modes of a grid
    shifted by an irrational part of its spacing: a mode that the nodes take for a slower one shows there. Returns that
    bound of what is lost, too.
    """
    n, dim = 17, problem.dim  # odd, so that no mode is left unpaired
    while n <= most + 1:
        shift = _GOLDEN / n
        values, moved = sample(node_points(n, dim)), sample(node_points(n, dim) + shift)
        k = 2.0 * np.pi * np.concatenate([np.arange(n // 2 + 1.0), np.arange(-(n // 2), 0.0)])
        axes = np.meshgrid(*[k] * (dim - 1), k[: n // 2 + 1], indexing="ij", sparse=True)
        back = np.exp(np.asarray(sum(-1j * shift * axis for axis in axes)))
        fields = [a.reshape(-1, *[n] * dim) for a in (values, moved)]
        cutoff = (n // 2,) * dim
        pairs = [(compact(a, cutoff), back * compact(b, cutoff)) for a, b in zip(*fields, strict=True)]
        upper = np.asarray(sum(_shells(a) for a, _ in pairs))[n // 3 :].sum()
        folded = sum(_shells(a - b).sum() for a, b in pairs)
        lost = _CREST * math.sqrt(upper + folded)
        if lost <= max(share, 1e-14) * np.abs(values).max():  # rounding of the function itself
            return values, lost
        n = 2 * n - 1
    raise ValueError(
        f"rtol: expected a {name} whose modes fall below the tolerance within {most} nodes an axis; "
        "use a larger rtol, or num_points with dt"
    )


def _terminal_nodes(problem: ConvectionDiffusion, rtol: float, most: int) -> tuple[NDArray[np.float64], float]:
    """Node values that hold f: all of its own modes where it has nodes, on an odd grid, which has no unpaired one."""
    if not callable(problem.terminal):
        return problem.terminal_nodes(max(17, max(problem.terminal.shape) | 1)), 0.0
    return _held("terminal f", problem.evaluate_terminal, problem, 0.02 * rtol, most)


def _steady_nodes(field: Field, problem: ConvectionDiffusion, rtol: float, most: int) -> NDArray[np.float64]:
    """Node values (C, N, ..., N) that hold a field: its own where it has them, or of a grid fine enough."""
    own = field.own_nodes
    if own is not None and field.continuation == "trigonometric":
        return field.nodes(max(own.shape[1:]), 0.0)
    return _held(field.name, lambda x: field.flat(x, 0.0), problem, 1e-3 * rtol, most)[0]


def _covariances(problem: ConvectionDiffusion, x: NDArray) -> NDArray[np.float64]:
    """a (d·d, ...) at points."""
    covariance = problem.noise.covariance(x, 0.0)
    return np.moveaxis(covariance.reshape(*x.shape[:-1], -1), -1, 0)


def _beyond(energy: NDArray) -> NDArray[np.float64]:
    """Σ_{i >= j} of energies by shells for j = 0, 1, ..., one beyond the last."""
    return np.append(energy[::-1].cumsum()[::-1], 0.0)


def _clean(energy: NDArray, noise: NDArray) -> NDArray:
    """Energies by shells, without those that the error in time explains."""
    level = np.zeros_like(energy)
    level[: len(noise)] = _NOISE * noise[: len(energy)]
    return np.where(energy > level, energy, 0.0)


def _shells(modes: NDArray) -> NDArray[np.float64]:
    """∫u² by shells max|k_i| = k, k = 0 .. K, of compact modes."""
    k = modes.shape[-1] - 1
    energy = np.zeros(k + 1)
    _sum_shells(modes.reshape(-1, k + 1), modes.ndim, energy)
    return energy


@kernel()
def _sum_shells(rows: NDArray, dim: int, energy: NDArray) -> None:
    n = 2 * rows.shape[1] - 1
    for r in range(rows.shape[0]):
        rest, highest = r, 0
        for _ in range(dim - 1):
            i = rest % n
            rest //= n
            highest = max(highest, min(i, n - i))
        for j in range(rows.shape[1]):
            size = rows[r, j].real ** 2 + rows[r, j].imag ** 2
            energy[max(highest, j)] += size if j == 0 else 2.0 * size
