"""∇u(x, t0) from paths, with standard errors.

Where f is smooth: central differences of the payoff along the same Brownian paths, whose difference is that of the
tangent process up to O(ε²). Where it is not, the weight of Bismut (1984) and Elworthy and Li (1994): the start is moved
along e, the path back to its old end in a straight line, and what that takes from the noise, by Girsanov, is

    ∂u/∂e = E[ f(X_T) ∫ a⁻¹ (e / T + (1 - s/T) ∇F e) · σ dB ],   a = σσᵀ,   from t0 = 0 on,

so that f is never differentiated; V and g, which the moved path sees on its way, are.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.characteristics import check_points
from pdekit.field import Field
from pdekit.numerics.lanes import LANES
from pdekit.paths.brownian import increments_of_blocks
from pdekit.paths.estimate import Estimate, Moments, block_moments
from pdekit.paths.lookup import Lookup
from pdekit.paths.sampler import Rng, check_start, repeatable
from pdekit.paths.simulation import Simulation, values_on_lanes
from pdekit.paths.stepping import SCHEMES
from pdekit.paths.threefry import seed_of
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_choice, check_whole
from pdekit.runtime.progress import Progress

_APART = 1e-5  # in lengths of the box: differences lose 1e-11 to rounding and 1e-10 k³ of a wave k to curvature


def feynman_kac_gradient(
    problem: ConvectionDiffusion,
    points: ArrayLike,
    *,
    num_paths: int = 100_000,
    num_steps: int = 64,
    method: str = "pathwise",
    scheme: str = "heun",
    rng: Rng = None,
    t0: float = 0.0,
    progress: bool | None = None,
) -> Estimate:
    """∇u(x, t0) at points (P, d): an Estimate of shape (P, d), or (P, K, d) for K terminal functions.

    method: "pathwise" for an f without jumps, for every noise and of the scheme's weak order; "weight" for any f, where
        σ is a constant that reaches all directions, of weak order 1, and with a variance that grows as T falls.
    scheme: of the pathwise method; the weight takes Euler's steps.
    num_paths, num_steps, rng, t0, progress: as in `feynman_kac`; the paths are those of `feynman_kac`.

    Raises ValueError for arguments that do not fit, sigma = 0, and where the weight does not exist.
    """
    start = perf_counter()
    x = check_points(points, problem)
    check_choice("method", method, ("pathwise", "weight"))
    check_choice("scheme", scheme, SCHEMES)
    num_paths, num_steps = check_whole("num_paths", num_paths, 2), check_whole("num_steps", num_steps, 1)
    t0 = check_start(t0, problem)
    if problem.noise.none:
        raise ValueError("feynman_kac_gradient: expected noise to sample, got sigma = 0")
    seed = repeatable(rng)
    scheme = "euler" if method == "weight" else scheme
    simulation = Simulation(problem.on_unit_box, seed_of(seed), scheme, t0=t0)
    simulation.use(Lookup("float64", noisy=False, sampled=problem.domain == "box"))  # single precision is too rough
    differences = _Weighted(simulation, num_steps) if method == "weight" else _Pathwise(simulation, num_steps)
    fields = problem.num_fields or 1
    moments = Moments(len(x), fields=fields * problem.dim)
    keys = np.arange(len(x), dtype=np.uint64)
    with Progress("feynman_kac_gradient", total=float(len(x) * num_paths), enabled=progress) as bar:
        for where, first, count in simulation.batches(len(x), num_paths, num_steps):
            found = differences(problem.to_unit(x[where]), keys[where], first, count)  # (P, K, d, n)
            found /= problem.lengths[:, None]
            moments.add(block_moments(found.reshape(len(found), -1, count)), count, where)
            bar.update(float(where.stop * (first + count)))
    shape = (len(x), problem.dim) if problem.num_fields is None else (len(x), fields, problem.dim)
    return Estimate(
        mean=moments.mean_of_replicates.reshape(shape),
        standard_error=moments.standard_error.reshape(shape),
        num_paths=num_paths,
        num_steps=num_steps,
        scheme=simulation.scheme_used,
        cost=len(x) * num_paths * num_steps * (2 * problem.dim if method == "pathwise" else 1),
        seconds=perf_counter() - start,
        seed=seed,
        points=x,
        dims=("point", "axis") if problem.num_fields is None else ("point", "field", "axis"),
    )


@dataclass(frozen=True)
class _Pathwise:
    """Samples (P, K, d, n) of the gradient by central differences along the same Brownian paths."""

    simulation: Simulation
    num_steps: int

    def __call__(self, x: NDArray[np.float64], keys: NDArray[np.uint64], first: int, count: int) -> NDArray[np.float64]:
        found = []
        for e in _APART * np.eye(x.shape[1]):
            up, down = (self.simulation.payoffs(x + s * e, keys, first, count, self.num_steps) for s in (1.0, -1.0))
            found.append((up - down).reshape(len(x), -1, count) / (2.0 * _APART))
        return np.stack(found, axis=2)


class _Weighted:
    """Samples (P, K, d, n) of the gradient by the weight.

    Raises ValueError where the noise is no constant that reaches all directions.
    """

    def __init__(self, simulation: Simulation, num_steps: int) -> None:
        self.simulation, self.num_steps = simulation, num_steps
        sigma = simulation.problem.noise.constant
        if sigma is None or np.linalg.matrix_rank(sigma) < len(sigma):
            raise ValueError(
                "method 'weight': expected a constant sigma that reaches all directions; 'pathwise' takes any, for an "
                "f without jumps"
            )
        self.sigma = sigma
        self.inverse = np.linalg.inv(sigma @ sigma.T)

    def __call__(self, x: NDArray[np.float64], keys: NDArray[np.uint64], first: int, count: int) -> NDArray[np.float64]:
        sim, steps = self.simulation, self.num_steps
        dim, dt = x.shape[1], sim.duration / steps
        walk = sim.walk(x, keys, first, count, steps)
        sums = _Sums(len(walk.x), dim)
        db = np.empty((len(walk.x), 1, sim.columns, LANES))
        jumps = {0, *sim.jump_steps(steps)}
        for n in range(steps + 1):
            left = 1.0 - n / steps  # of the way back
            if n in jumps:
                now = {name: field.standing(sim.t0 + (n + 0.5) * dt) for name, field in sim.fields.items()}
            slopes = {
                name: _slopes(now[name], walk.x, sim.t0 + n * dt) for name in ("potential", "source") if name in now
            }
            sums.see(walk, slopes, now, left, sim.t0 + n * dt, 0.5 * dt if n in (0, steps) else dt)
            if n == steps:
                break
            increments_of_blocks(walk.kind, sim.seed, walk.streams, walk.firsts, n, 1, walk.scale, db)
            dw = db[:, 0] if sim.problem.noise.number is not None else np.einsum("cm,bmi->bci", self.sigma, db[:, 0])
            moved = left * _slopes(now["velocity"], walk.x, sim.t0 + n * dt)
            moved += (np.eye(dim) / sim.duration)[None, :, :, None]
            sums.score += np.einsum("bcai,ce,bei->bai", moved, self.inverse, dw)
            walk.advance(n, n + 1)
        values = sim.problem.evaluate_terminal(np.moveaxis(walk.x, 1, -1))
        values = values[:, None] if values.ndim == 2 else np.moveaxis(values, -1, 1)
        values = values * np.exp(-walk.killed)[:, None]
        found = values[:, :, None] * (sums.score - sums.killed)[:, None]
        found += (walk.earned[:, None] * sums.score + sums.earned)[:, None]
        found = np.moveaxis(found.reshape(len(x), -1, *found.shape[1:]), 1, -2)
        return found.reshape(*found.shape[:3], -1)[..., :count].copy()


class _Sums:
    """What moving the start along each axis does on the way, (blocks, d, LANES).

    score: the weight; killed: to ∫V; earned: to ∫ g e^(-∫V), the weight apart.
    """

    def __init__(self, blocks: int, dim: int) -> None:
        self.score, self.killed, self.earned = (np.zeros((blocks, dim, LANES)) for _ in range(3))
        self._before: NDArray[np.float64] | float = 0.0

    def see(self, walk, slopes, now, left, t, share) -> None:  # type: ignore[no-untyped-def]
        """Add a node of time to the trapezoidal sums; share: the part of a step that it stands for."""
        if "potential" in slopes:
            here = left * slopes["potential"][:, 0]
            self.killed += 0.5 * walk.dt * (self._before + here) if t > walk.simulation.t0 else 0.0
            self._before = here
        if "source" in slopes:
            g = values_on_lanes(now["source"], walk.x, t)
            self.earned += share * (left * slopes["source"][:, 0] - g * self.killed) * np.exp(-walk.killed)[:, None]


def _slopes(field: Field, x: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """Derivatives along each axis at paths x (blocks, d, LANES), (blocks, C, d, LANES), by central differences."""
    found = []
    for e in _APART * np.eye(x.shape[1]):
        up, down = (values_on_lanes(field, x + s * e[:, None], t) for s in (1.0, -1.0))
        found.append((up - down) / (2.0 * _APART))
    return np.stack(found, axis=2)
