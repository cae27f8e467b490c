"""Feynman-Kac: u(x, t0) = E[f(X_T) | X_t0 = x] from paths of dX = F(X, t) dt + σ dB   (Eq. 14)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from math import ceil, log2
from time import perf_counter

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import special

from pdekit.characteristics import characteristics, check_points
from pdekit.numerics.lanes import LANES
from pdekit.paths.brownian import INCREMENTS
from pdekit.paths.control import Control
from pdekit.paths.estimate import BiasWarning, Estimate, Moments, bias_from_doublings, quantile
from pdekit.paths.simulation import Simulation
from pdekit.paths.sobol import SobolPaths
from pdekit.paths.stepping import SCHEMES, WEAK_ORDER
from pdekit.paths.threefry import seed_of
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.progress import Progress

Rng = int | np.random.Generator | np.random.SeedSequence | None

_PILOT = 16 * LANES  # paths before the first look at the variance
_REPLICATES = 16  # of a Sobol point set: enough for a standard error good to 18 per cent
_MOST_BITS = 20  # paths a replicate, as a power of two
_BIAS_SHARE = 4  # one path in four is also walked with doubled steps: enough, as the two differ little
_PROBE_SHARE = 64  # where nobody asks for the bias: enough to see one that spoils the interval
_CONTROLLED_PROBE_SHARE = 16  # control variates leave a sampling error so small that a smaller bias matters
_NOTED_BIAS = 0.5  # standard errors (rms over points) at which a 95% interval covers u in 92% only


def feynman_kac(
    problem: ConvectionDiffusion,
    points: ArrayLike,
    *,
    num_paths: int = 100_000,
    num_steps: int = 64,
    scheme: str = "heun",
    increments: str = "gaussian",
    control: xr.Dataset | None = None,
    hessian: bool = False,
    antithetic: bool = False,
    qmc: bool = False,
    extrapolate: bool = False,
    bias: bool = False,
    dtype: str = "float64",
    rng: Rng = None,
    t0: float = 0.0,
    atol: float | None = None,
    rtol: float | None = None,
    confidence: float = 0.95,
    max_paths: int = 10**9,
    first_point: int = 0,
    progress: bool | None = None,
) -> Estimate:
    """Monte Carlo estimates of u(x, t0) at points x, with their standard errors.

    With the same `rng` the result is a function of the arguments alone: the same to the last bit for any number of
    threads, and for all points at once or in several calls (`first_point`).

    points: (P, d), any real dtype and memory order. Paths live in R^d and are never wrapped; node values are
        periodic and wrap where they are looked up, a callable sees the coordinates as they are.
    num_paths: paths a point; with `atol` or `rtol` paths are added until the half-width of the interval at
        `confidence` is at most max(atol, rtol |mean|) at every point, `max_paths` at most.
    num_steps: steps from t0 to the horizon.
    scheme: "heun" (weak order 2 for additive noise) or "euler" (Euler-Maruyama, weak order 1). A redrawn velocity is
        frozen within its interval, both ends of a step included.
    increments: "gaussian" or "two_point", ±√dt, which keeps the weak order of Euler-Maruyama at a third of the cost.
    control: what `solve` returned for this problem; its gradient (with `hessian` also its second derivatives)
        becomes a martingale control variate, unbiased even if that solution is wrong. Between frames it is linear in
        time: keep some thirty of them, `solve(..., times=np.linspace(0, T, 33))`.
    antithetic: paths in pairs with opposite increments; a pair counts as one sample.
    qmc: scrambled Sobol points and a Brownian bridge instead of pseudo-random increments. `num_paths` is rounded up
        to 16 independent replicates of a power of two of paths; the standard error comes from their spread.
    extrapolate: Talay and Tubaro 1990: combine num_steps and num_steps / 2 on the same Brownian paths, which
        removes the leading term of the time-step bias.
    bias: estimate the time-step bias from a quarter of the paths, walked again with steps doubled once and, where they
        divide, twice: its estimate is widened where the two contradict the weak order. The confidence interval
        then covers u. Without it a few paths are walked with doubled steps all the same, where they divide and are few
        beside the rest, to warn of a bias that the interval should not be without.
    dtype: "float64" or "float32" for the paths; payoffs and sums are float64.
    rng: anything `numpy.random.default_rng` takes (SPEC 7). None draws fresh entropy, so that two calls are
        independent; `seed` of the result, given as `rng`, repeats it.
    first_point: index of points[0] in the caller's own list, where that is worked through in several calls.
    progress: show a progress bar; default: on a terminal only.

    At sigma = 0 there is nothing random: the result is f at the end of the characteristic, with the time-step error
    estimated by halving the step; `num_paths` and the options for random paths have no effect.

    Warns (RuntimeWarning) of a tolerance that `max_paths` does not allow, and (its subclass
    `BiasWarning`) of a time-step bias that the interval lacks or that does not follow the weak order.
    Raises ValueError for wrong shapes, names or numbers, FloatingPointError where a path leaves the finite numbers.
    """
    start = perf_counter()
    x = check_points(points, problem)
    duration = problem.horizon - t0
    _check(
        num_paths,
        max_paths,
        num_steps,
        scheme,
        increments,
        dtype,
        antithetic,
        qmc,
        duration,
        int(extrapolate) + int(bias),
    )
    tolerance = _tolerance(atol, rtol)
    half_width = quantile(confidence, _REPLICATES if qmc else None)
    if problem.sigma == 0.0:
        return _without_noise(problem, x, num_steps, t0, start)
    order = WEAK_ORDER[scheme] + int(extrapolate)
    seed = repeatable(rng)
    sim = Simulation(problem, seed_of(seed), scheme, increments, dtype, t0)
    martingale = None if control is None else Control.from_solution(control, x.shape[1], hessian=hessian)
    per_sample = 2 if antithetic else 1
    replicates = _REPLICATES if qmc else 1
    streams = replicates * first_point + np.arange(replicates * len(x), dtype=np.uint64)
    if qmc:
        x = np.repeat(x, replicates, axis=0)
        per_sample *= replicates
        most = max_paths if tolerance else num_paths
        bits = max(8, ceil(log2(most / per_sample)))
        if bits > _MOST_BITS and tolerance is None:
            raise ValueError(
                f"num_paths: expected at most {2**_MOST_BITS * per_sample:,} with qmc=True, got {num_paths:,}"
            )
        bits = min(bits, _MOST_BITS)
        sim.quasi = SobolPaths(sim.seed, num_steps, x.shape[1], replicates, bits)

    def walk(where: slice, first: int, count: int, steps: int, substeps: int) -> NDArray[np.float64]:
        """Samples (points, count) at one step size."""
        args = (x[where], streams[where], first, count, steps)
        values = sim.payoffs(*args, substeps=substeps, control=martingale)
        if antithetic:
            values = 0.5 * (values + sim.payoffs(*args, substeps=substeps, sign=-1, control=martingale))
        return values

    def sample(where: slice, first: int, count: int, coarsening: int = 1) -> NDArray[np.float64]:
        fine = walk(where, first, count, num_steps // coarsening, coarsening)
        if not extrapolate:
            return fine
        coarse = walk(where, first, count, num_steps // (2 * coarsening), 2 * coarsening)
        weight = 1.0 / (2 ** WEAK_ORDER[scheme] - 1)
        return fine + weight * (fine - coarse)

    def grown(samples: float) -> int:
        """Samples a stream, rounded up to whole blocks, or for Sobol points to a power of two."""
        if sim.quasi is None:
            return LANES * max(1, ceil(samples / LANES))
        return 2 ** min(sim.quasi.bits, max(8, ceil(log2(samples))))

    moments, offsets, surplus = (Moments(len(x), replicates) for _ in range(3))

    def extend(done: int, samples: int, bar: Progress) -> None:
        for where, first, count in sim.batches(len(x), samples - done, num_steps):
            moments.add(sample(where, done + first, count), where)
            bar.update(sim.path_steps / (samples * len(x) * num_steps))

    with Progress("feynman_kac", total=1.0, enabled=progress) as bar:
        if tolerance is None:
            done = ceil(num_paths / per_sample) if sim.quasi is None else grown(num_paths / per_sample)
            extend(0, done, bar)
        else:
            most = ceil(max_paths / per_sample) if sim.quasi is None else 2**sim.quasi.bits
            done, target = 0, min(_PILOT, most)
            while done < target:
                extend(done, target, bar)
                done = target
                error, allowed = moments.standard_error * half_width, tolerance(moments.mean_of_replicates)
                excess = np.divide(error, allowed, out=np.full_like(error, np.inf), where=allowed > 0.0)
                excess[error == 0.0] = 0.0  # nothing random is left, whatever was asked for
                if excess.max() > 1.0:
                    # Ten times at most, for the variance of a pilot run may mislead; a tenth more, so as to end there.
                    target = min(grown(done * min(1.1 * excess.max() ** 2, 10.0)), most)
            if excess.max() > 1.0:
                warnings.warn(
                    f"feynman_kac: the tolerance is not met; {done * per_sample:,} paths leave errors up to "
                    f"{excess.max():.3g} times as large (max_paths = {max_paths:,})",
                    RuntimeWarning,
                    stacklevel=2,
                )
        doublings = _doublings(problem, num_steps, t0) - int(extrapolate)
        if bias:
            share = grown(done / _BIAS_SHARE)
        else:
            share = grown(done / (_PROBE_SHARE if martingale is None else _CONTROLLED_PROBE_SHARE))
        probed = bias or (doublings > 0 and (32 * share <= done or martingale is not None))
        for where, first, count in sim.batches(len(x), share, num_steps) if probed else ():
            coarse = sample(where, first, count, 2)
            change = coarse - sample(where, first, count)
            offsets.add(change, where)
            if bias and doublings > 1:
                surplus.add(sample(where, first, count, 4) - coarse - 2**order * change, where)
    estimate = Estimate(
        mean=moments.mean_of_replicates,
        standard_error=moments.standard_error,
        num_paths=done * per_sample,
        num_steps=num_steps,
        scheme=scheme,
        cost=sim.path_steps,
        seconds=perf_counter() - start,
        replicates=replicates if qmc else None,
        seed=seed,
    )
    if not probed:
        return estimate
    changes = offsets.mean_of_replicates, offsets.standard_error
    if not bias:
        _warn_of_bias(estimate, *(values / (2**order - 1) for values in changes))
        return estimate
    if doublings > 1:
        further = surplus.mean_of_replicates, surplus.standard_error
    else:  # one doubling alone: nothing contradicts it
        further = np.zeros_like(estimate.mean), np.zeros_like(estimate.mean)
    offset, error, understated = bias_from_doublings(*changes, *further, order)
    if understated > 1.0 and np.linalg.norm(error) > np.linalg.norm(estimate.standard_error):
        warnings.warn(
            f"feynman_kac: the time-step bias does not follow the weak order {order} between {num_steps // 4} "
            f"and {num_steps} steps; its error is put at {np.sqrt(np.mean(error**2)):.2g}, which one doubling "
            "would not have shown: take more steps",
            BiasWarning,
            stacklevel=2,
        )
    return replace(estimate, bias_estimate=offset, bias_standard_error=error)


def repeatable(rng: Rng) -> Rng:
    """`rng` as something that gives the same numbers each time: what a generator draws, fresh entropy for None."""
    if rng is None:
        return np.random.SeedSequence().entropy  # type: ignore[return-value]
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    return rng


def _doublings(problem: ConvectionDiffusion, num_steps: int, t0: float) -> int:
    """How often the step can be doubled, twice at most, without straddling the ends of redrawn intervals."""
    whole = [num_steps]
    if problem.velocity.jumps:
        dt = (problem.horizon - t0) / num_steps
        whole += [round(problem.velocity.interval / dt), round(t0 / dt)]
    return next(k for k in (2, 1, 0) if all(steps % 2**k == 0 for steps in whole))


def _warn_of_bias(estimate: Estimate, offset: NDArray[np.float64], error: NDArray[np.float64]) -> None:
    """Say so where the time step's bias, certainly there, is not small beside the sampling error."""
    random = estimate.standard_error > 0.0
    noise = np.maximum(error[random], 1e-9 * np.abs(offset[random])) + np.finfo(float).tiny
    if not random.any() or special.chdtrc(random.sum(), float(((offset[random] / noise) ** 2).sum())) > 1e-4:
        return
    excess = np.mean((offset[random] ** 2 - error[random] ** 2) / estimate.standard_error[random] ** 2)
    if excess > _NOTED_BIAS**2:
        warnings.warn(
            f"feynman_kac: {estimate.num_steps} steps move the mean by about {np.sqrt(excess):.2g} standard "
            "errors, which confidence_interval() does not contain: pass bias=True to have it there, or take more steps",
            BiasWarning,
            stacklevel=3,
        )


def _without_noise(
    problem: ConvectionDiffusion, x: NDArray[np.float64], num_steps: int, t0: float, start: float
) -> Estimate:
    """σ = 0: one characteristic a point, and the error of its steps from steps of half their length."""
    used, finer = (
        problem.evaluate_terminal(characteristics(problem, x, num_steps=n, t0=t0)) for n in (num_steps, 2 * num_steps)
    )
    order = 2 if problem.velocity.continuation == "bilinear" else 4  # F has kinks between bilinear nodes
    return Estimate(
        mean=used,
        standard_error=np.zeros(len(x)),
        num_paths=1,
        num_steps=num_steps,
        scheme="rk4",
        bias_estimate=(used - finer) / (1.0 - 0.5**order),
        bias_standard_error=0.5 * np.abs(used - finer),  # rough between nodes, where the order holds on average only
        cost=3 * len(x) * num_steps,
        seconds=perf_counter() - start,
    )


def _check(
    num_paths: int,
    max_paths: int,
    num_steps: int,
    scheme: str,
    increments: str,
    dtype: str,
    antithetic: bool,
    qmc: bool,
    duration: float,
    coarsenings: int,
) -> None:
    """One clear line for each thing that cannot be meant."""
    least = 4 if antithetic else 2
    for name, value in (("num_paths", num_paths), ("max_paths", max_paths)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least} for a standard error, got {value}")
    if num_steps < 1 or num_steps != int(num_steps):
        raise ValueError(f"num_steps: expected a whole number of at least 1, got {num_steps}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if increments not in INCREMENTS:
        raise ValueError(f"increments: expected one of {', '.join(INCREMENTS)}, got {increments!r}")
    if increments == "two_point" and qmc:
        raise ValueError("increments: expected gaussian with qmc=True, got two_point")
    if increments == "two_point" and scheme != "euler":
        raise ValueError("increments: two_point keeps weak order 1, expected scheme='euler' with it")
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype: expected float64 or float32, got {dtype!r}")
    if not duration > 0.0:
        raise ValueError(f"t0: expected a time before the horizon, got one {-duration:g} after it")
    if num_steps % 2**coarsenings:
        raise ValueError(
            f"num_steps: expected a multiple of {2**coarsenings}, as bias and extrapolate double the step, "
            f"got {num_steps}"
        )


def _tolerance(atol: float | None, rtol: float | None) -> Callable[[NDArray[np.float64]], NDArray[np.float64]] | None:
    """The allowed half-width as a function of the mean; None where no tolerance is asked for."""
    if atol is None and rtol is None:
        return None
    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and not (np.isfinite(value) and value > 0.0):
            raise ValueError(f"{name}: expected a positive number, got {value}")
    return lambda mean: np.maximum(atol or 0.0, (rtol or 0.0) * np.abs(mean))
