"""Feynman-Kac: u(x, t0) from paths of dX = F(X, t) dt + σ(X, t) dB   (Eq. 14)

u(x, t0) = E[ f(X_T) e^(-∫V) + ∫ g e^(-∫V) ds | X_t0 = x ].
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from pdekit.characteristics import check_points, without_noise
from pdekit.numerics.lanes import LANES
from pdekit.paths.control import Control
from pdekit.paths.estimate import BiasWarning, Estimate, Moments, bias_from_doublings, quantile
from pdekit.paths.samples import Batch, Samples, Sampling, moments_of
from pdekit.paths.simulation import Simulation
from pdekit.paths.stepping import SCHEMES
from pdekit.paths.threefry import seed_of
from pdekit.problem import ConvectionDiffusion
from pdekit.runtime.checks import check_choice, check_finite, check_flag, check_real, check_whole
from pdekit.runtime.progress import Progress
from pdekit.runtime.shards import in_order

if TYPE_CHECKING:
    import xarray as xr

Rng = int | np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | None

_PILOT = 16 * LANES  # samples before the first look at the variance
_BIAS_SHARE = 4  # one path in four is also walked with doubled steps: enough, as the two differ little
_PROBE_SHARE = 64  # where nobody asks for the bias: enough to see one that spoils the interval
_CONTROLLED_PROBE_SHARE = 16  # control variates leave a sampling error so small that a smaller bias matters
_NOTED_BIAS = 0.5  # standard errors (rms over points) at which a 95% interval covers u in 92% only
_EACH = 8  # batches in a job for an executor: a second or so


@dataclass(frozen=True)
class Tolerance:
    """Until when paths are added: the half-width of the interval at `confidence` is at most max(atol, rtol |mean|).

    max_paths: the most a point.

    Raises ValueError for numbers that are not positive, or where neither atol nor rtol is given.
    """

    atol: float = 0.0
    rtol: float = 0.0
    confidence: float = 0.95
    max_paths: int = 10**9

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            check_real(name, getattr(self, name), "a positive number", positive=False)
        if self.atol == self.rtol == 0.0:
            raise ValueError("tolerance: expected atol or rtol, got neither")
        object.__setattr__(self, "max_paths", check_whole("max_paths", self.max_paths, 4))
        quantile(self.confidence)

    def excess(self, mean: NDArray[np.float64], standard_error: NDArray[np.float64], replicates: int) -> float:
        """The largest half-width over what is allowed; nothing random is left where the standard error is 0."""
        allowed = np.maximum(self.atol, self.rtol * np.abs(mean))
        error = quantile(self.confidence, replicates if replicates > 1 else None) * standard_error
        found = np.divide(error, allowed, out=np.full_like(error, np.inf), where=allowed > 0.0)
        return float(np.where(error == 0.0, 0.0, found).max())


_PLAIN = Sampling()


def feynman_kac(
    problem: ConvectionDiffusion,
    points: ArrayLike,
    *,
    num_paths: int = 100_000,
    num_steps: int = 64,
    scheme: str = "heun",
    bias: bool = False,
    tolerance: Tolerance | None = None,
    control: xr.Dataset | Control | None = None,
    sampling: Sampling = _PLAIN,
    rng: Rng = None,
    t0: float = 0.0,
    first_point: int = 0,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> Estimate:
    """Monte Carlo estimates of u(x, t0) at points x, with their standard errors   (Eq. 14):

        u(x, t0) = E[ f(X_T) e^(-∫V) + ∫ g e^(-∫V) ds | X_t0 = x ]   over the paths of   dX = F(X, t) dt + σ(X, t) dB.

    K terminal functions share the paths: mean and errors are then (P, K), and a tolerance holds for the worst of them.
    With the same `rng` the result is a function of the arguments alone: the same to the last bit for any number of
    threads, with any executor, and for all points at once or in several calls (`first_point`).

    points: (P, d), any real dtype and memory order. Paths live in R^d and are never wrapped; node values are
        periodic and wrap where they are looked up, a callable sees the coordinates as they are.
    num_paths: paths a point; more where a `tolerance` asks for them, in place of this number.
    num_steps: steps from t0 to the horizon.
    scheme: "heun" (weak order 2; where the noise depends on x it is Platen's explicit scheme, which is Heun's where it
        does not) or "euler" (Euler-Maruyama, weak order 1); the integrals of V and g are trapezoidal sums. A redrawn
        velocity is frozen within its interval, both ends of a step included.
    bias: estimate the time-step bias from a quarter of the paths, walked again with steps doubled once and, where they
        divide, twice: its estimate is widened where the two contradict the weak order. The confidence interval
        then covers u. Without it a few paths are walked with doubled steps all the same, where they divide and are few
        beside the rest, to warn of a bias that the interval should not be without.
    control: what `solve` returned for this problem; its gradient becomes a martingale control variate, unbiased even if
        that solution is wrong. Between frames it is linear in time: keep some thirty of them,
        `solve(..., times=np.linspace(0, T, 33))`. `Control.from_solution(solution, hessian=True)` takes second
        derivatives, too, where the noise does not depend on x.
    rng: anything `numpy.random.default_rng` takes (SPEC 7). None draws fresh entropy, so that two calls are
        independent; `seed` of the result, given as `rng`, repeats it.
    first_point: index of points[0] in the caller's own list, where that is worked through in several calls.
    executor: a `concurrent.futures.Executor` whose processes share the paths; each takes as many threads as
        NUMBA_NUM_THREADS says there.
    progress: show a progress bar; default: on a terminal only.

    At sigma = 0 there is nothing random: the result comes from the characteristic, with the time-step error estimated
    by halving the step; `num_paths` and the options for random paths have no effect.

    Warns (RuntimeWarning) of a tolerance that `max_paths` does not allow, and (its subclass `BiasWarning`) of a
    time-step bias that the interval lacks or that does not follow the weak order.
    Raises ValueError for wrong shapes, names or numbers, FloatingPointError where a path leaves the finite numbers.
    """
    start = perf_counter()
    x = check_points(points, problem)
    first_point = check_whole("first_point", first_point, 0)
    for name, value, kind in (("sampling", sampling, Sampling), ("tolerance", tolerance, Tolerance | None)):
        if not isinstance(value, kind):
            raise ValueError(f"{name}: expected a pdekit.{name.title()}, got {value!r}")
    bias, t0 = check_flag("bias", bias), check_start(t0, problem)
    num_paths = check_whole("num_paths", num_paths, 4 if sampling.antithetic else 2)
    num_steps = check_whole("num_steps", num_steps, 1)
    _check_together(num_steps, scheme, sampling, bias)
    if problem.noise.none:
        return _without_noise(problem, x, num_steps, t0, start)
    seed = repeatable(rng)
    if control is not None:
        control = _checked_control(control, problem)
    simulation = Simulation(
        problem.on_unit_box, seed_of(seed), scheme, sampling.increments, sampling.dtype, t0, control=control
    )
    samples = Samples.of(simulation, problem.to_unit(x), num_steps, sampling, first_point)
    most = samples.most(num_paths if tolerance is None else tolerance.max_paths, exact=tolerance is None)
    moments, *changes = (Moments(len(samples.points), samples.replicates, problem.num_fields) for _ in range(3))
    cost = 0

    def add(to: list[Moments], doublings: int, first: int, last: int) -> Iterator[None]:
        nonlocal cost
        batches = [
            Batch(doublings, where, first + begin, count)
            for where, begin, count in simulation.batches(len(samples.points), last - first, num_steps)
        ]
        for batch, found in zip(batches, in_order(executor, moments_of, samples, batches, each=_EACH), strict=True):
            for moments_there, blocks in zip(to, found, strict=True):
                moments_there.add(blocks, batch.count, batch.where)
            cost += samples.cost(batch)
            yield

    with Progress("feynman_kac", total=1.0, enabled=progress) as bar:

        def extend(done: int, target: int) -> None:
            whole = samples.cost(Batch(0, slice(None), 0, target))
            for _ in add([moments], 0, done, target):
                bar.update(cost / whole)

        if tolerance is None:
            done = most
            extend(0, done)
        else:
            done, target = 0, min(_PILOT, most)
            while done < target:
                extend(done, target)
                done = target
                excess = tolerance.excess(moments.mean_of_replicates, moments.standard_error, moments.replicates)
                if excess > 1.0:
                    # Ten times at most, for the variance of a pilot run may mislead; a tenth more, so as to end there.
                    target = min(samples.rounded(done * min(1.1 * excess**2, 10.0)), most)
            if excess > 1.0:
                warnings.warn(
                    f"feynman_kac: the tolerance is not met; {done * samples.paths_each:,} paths leave errors up to "
                    f"{excess:.3g} times as large (max_paths = {tolerance.max_paths:,})",
                    RuntimeWarning,
                    stacklevel=2,
                )
        doublings = samples.doublings
        share = _BIAS_SHARE if bias else _PROBE_SHARE if control is None else _CONTROLLED_PROBE_SHARE
        probes = samples.rounded(done / share)
        probed = bias or (doublings > 0 and (32 * probes <= done or control is not None))
        if probed:
            looked_at = max(1, doublings) if bias else 1
            for _ in add(changes[:looked_at], looked_at, 0, probes):
                pass
    estimate = Estimate(
        mean=moments.mean_of_replicates,
        standard_error=moments.standard_error,
        num_paths=done * samples.paths_each,
        num_steps=num_steps,
        scheme=simulation.scheme_used,
        cost=cost,
        seconds=perf_counter() - start,
        replicates=samples.replicates if sampling.qmc else None,
        seed=seed,
        points=x,
    )
    if not probed:
        return estimate
    order = samples.order
    change = changes[0].mean_of_replicates, changes[0].standard_error
    if not bias:
        _warn_of_bias(estimate, *(values / (2**order - 1) for values in change))
        return estimate
    if looked_at > 1:
        surplus = changes[1].mean_of_replicates, changes[1].standard_error
    else:  # one doubling alone: nothing contradicts it
        surplus = np.zeros_like(estimate.mean), np.zeros_like(estimate.mean)
    offset, error, understated = bias_from_doublings(*change, *surplus, order)
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
    """`rng` as something that gives the same numbers each time: what a generator draws, fresh entropy for None.

    Raises ValueError for what `numpy.random.default_rng` does not take.
    """
    if rng is None:
        return np.random.SeedSequence().entropy  # type: ignore[return-value]
    try:
        np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rng: expected a whole number of at least 0 or a numpy Generator, got {rng!r}") from error
    if isinstance(rng, np.random.BitGenerator):
        rng = np.random.Generator(rng)
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    return rng


def _warn_of_bias(estimate: Estimate, offset: NDArray[np.float64], error: NDArray[np.float64]) -> None:
    """Say so where the time step's bias, certainly there, is not small beside the sampling error."""
    random = estimate.standard_error > 0.0
    noise = np.maximum(error[random], 1e-9 * np.abs(offset[random])) + np.finfo(float).tiny
    if not random.any() or scipy.special.chdtrc(random.sum(), float(((offset[random] / noise) ** 2).sum())) > 1e-4:
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
    used, finer = (without_noise(problem, x, num_steps=n, t0=t0) for n in (num_steps, 2 * num_steps))
    fields = (problem.velocity, problem.potential, problem.source)
    rough = any(field is not None and field.continuation == "bilinear" for field in fields)
    order = 2 if rough else 4  # there are kinks between bilinear nodes
    return Estimate(
        mean=used,
        standard_error=np.zeros(used.shape),
        num_paths=1,
        num_steps=num_steps,
        scheme="rk4",
        bias_estimate=(used - finer) / (1.0 - 0.5**order),
        bias_standard_error=0.5 * np.abs(used - finer),  # rough between nodes, where the order holds on average only
        cost=3 * len(x) * num_steps,
        seconds=perf_counter() - start,
        points=x,
    )


def check_start(t0: float, problem: ConvectionDiffusion) -> float:
    """The time at which paths start, or a ValueError."""
    expected = f"a time before the horizon {problem.horizon:g}"
    if check_finite("t0", t0, expected) >= problem.horizon:
        raise ValueError(f"t0: expected {expected}, got {t0:g}")
    return float(t0)


def _checked_control(control: xr.Dataset | Control, problem: ConvectionDiffusion) -> Control:
    """The control, made of a solution where it is one; one line for anything else, and for one of another problem."""
    import xarray as xr  # with pandas half of the package's import

    if isinstance(control, xr.Dataset):
        control = Control.from_solution(control)
    if not isinstance(control, Control):
        raise ValueError(f"control: expected what solve returned, or a pdekit.Control, got {type(control).__name__}")
    if problem.domain == "space":
        raise ValueError("control: expected a problem on a box, which a solution on a grid has, got domain='space'")
    if control.dim != problem.dim:
        raise ValueError(f"control: expected u over {problem.dim} space dimensions, got {control.dim}")
    if control.num_fields != (problem.num_fields or 1):
        raise ValueError(f"control: expected u of {problem.num_fields or 1} functions, got {control.num_fields}")
    return control


def _check_together(num_steps: int, scheme: str, sampling: Sampling, bias: bool) -> None:
    """One clear line for options that do not fit each other."""
    check_choice("scheme", scheme, SCHEMES)
    if sampling.increments == "two_point" and scheme != "euler":
        raise ValueError("increments: two_point keeps weak order 1, expected scheme='euler' with it")
    multiple = 2 ** (sampling.extrapolate + bias)
    if num_steps % multiple:
        raise ValueError(
            f"num_steps: expected a multiple of {multiple}, as bias and extrapolate double the step, got {num_steps}"
        )
