"""Multilevel Monte Carlo: delivered errors on closed forms, rates, diagnostics, warnings."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from pdekit import multilevel as multilevel_estimate
from pdekit.fastmath import cos2pi, sin2pi
from pdekit.field import compiled
from pdekit.paths.multilevel import ProblemLevels
from pdekit.paths.sampler import feynman_kac
from pdekit.problem import ConvectionDiffusion
from pdekit.velocity import GridVelocity, RedrawnVelocity

multilevel = partial(multilevel_estimate, rng=0)

RATE, VOLATILITY = 0.05, 0.2
D1 = (RATE + VOLATILITY**2 / 2) / VOLATILITY
CALL = stats.norm.cdf(D1) - np.exp(-RATE) * stats.norm.cdf(D1 - VOLATILITY)  # Black and Scholes 1973
POINTS = np.random.default_rng(0).uniform(size=(3, 2))


def geometric_brownian_call(seed, *, milstein, broken=False):
    """Levels for a European call on dX = rX dt + sX dW, by Euler-Maruyama or Milstein."""
    rng = np.random.default_rng(seed)

    def advance(x, dt, dw):
        correction = 0.5 * VOLATILITY**2 * x * (dw**2 - dt) if milstein else 0.0
        return x + RATE * x * dt + VOLATILITY * x * dw + correction

    def level_function(level, num_samples):
        dt = 2.0**-level
        fine = np.ones(num_samples)
        coarse = np.ones(num_samples)
        summed = np.zeros(num_samples)
        for n in range(2**level):
            dw = rng.normal(scale=np.sqrt(dt), size=num_samples)
            fine, summed = advance(fine, dt, dw), summed + dw
            if n % 2:
                coarse, summed = advance(coarse, 2 * dt, summed), np.zeros(num_samples)
        fine, coarse = (np.exp(-RATE) * np.maximum(x - 1.0, 0.0) for x in (fine, coarse))
        if broken:
            coarse = coarse + 0.05
        y = fine - coarse if level else fine
        return np.array([y.sum(), (y**2).sum(), (y**3).sum(), (y**4).sum(), fine.sum(), (fine**2).sum()])

    return level_function


@compiled(2)
def swirl(x, y, t):
    return sin2pi(x) * cos2pi(y) + 0.3, 0.2 * sin2pi(y) - 0.5 * cos2pi(x) * sin2pi(y)


def bumps(x):
    return np.exp(np.sin(2 * np.pi * x[..., 0])) * np.cos(2 * np.pi * x[..., 1])


@pytest.mark.parametrize(("milstein", "beta"), [(False, 1), (True, 2)])
def test_delivered_error_is_within_the_requested_one(milstein, beta):
    """Root-mean-square error over 30 seeds; half of rmse² is sampling error, so 1 lies three deviations above."""
    rmse = 1e-3
    runs = [multilevel(geometric_brownian_call(s, milstein=milstein), rmse=rmse) for s in range(30)]
    errors = np.array([run.mean[0] - CALL for run in runs])
    assert np.sqrt(np.mean(errors**2)) <= rmse
    assert abs(np.median([run.beta for run in runs]) - beta) < 0.3
    assert all(run.gamma == pytest.approx(1.0) for run in runs)


def test_levels_of_a_problem_agree_with_plain_monte_carlo():
    problem = ConvectionDiffusion(swirl, bumps, 0.1, horizon=0.25)
    run = multilevel(problem, POINTS, rmse=4e-3)
    plain = feynman_kac(problem, POINTS, num_paths=200_000, num_steps=128, rng=7)
    error = np.sqrt(plain.standard_error**2 + run.rmse**2)
    assert np.abs((run.mean - plain.mean) / error).max() < 4
    assert (run.standard_error <= run.rmse).all()
    assert (run.total_error() <= 1.1 * run.rmse).all()
    assert run.beta == pytest.approx(2.0, abs=0.4)  # additive noise: strong order one
    assert run.plain_cost > run.cost
    assert "plain Monte Carlo would cost" in repr(run)


def test_levels_telescope_along_one_brownian_path():
    """With F constant every step size gives the same end point, so the coupled levels do not differ at all."""
    constant = GridVelocity(np.ones((2, 4, 4)), "bilinear")
    levels = ProblemLevels(ConvectionDiffusion(constant, bumps, 0.1), POINTS, first_steps=2, rng=0)
    sums = levels(3, 512)
    assert np.abs(sums[0]).max() < 1e-10 * 512
    assert (sums[5] > 0).all()
    again = ProblemLevels(ConvectionDiffusion(constant, bumps, 0.1), POINTS, first_steps=2, rng=0)
    np.testing.assert_allclose(again(3, 256) + again(3, 256), sums, rtol=1e-12, atol=1e-9)


def test_first_level_is_where_the_coupling_begins_to_pay():
    assert ProblemLevels(ConvectionDiffusion(swirl, bumps, 0.1), POINTS).first_steps in (4, 8, 16, 32)
    constant = ConvectionDiffusion(GridVelocity(np.ones((2, 4, 4)), "bilinear"), bumps, 0.1)
    assert ProblemLevels(constant, POINTS).first_steps == 1
    redrawn = ConvectionDiffusion(RedrawnVelocity(8, 1 / 8, seed=1), bumps, 0.1)
    assert ProblemLevels(redrawn, POINTS).first_steps % 8 == 0


def test_inconsistent_levels_are_reported():
    with pytest.warns(RuntimeWarning, match="do not agree"), pytest.warns(RuntimeWarning, match="finest allowed"):
        multilevel(geometric_brownian_call(0, milstein=True, broken=True), rmse=2e-3, max_level=4)


def sums_of(y, fine=None):
    fine = y if fine is None else fine
    return np.array([y.sum(), (y**2).sum(), (y**3).sum(), (y**4).sum(), fine.sum(), (fine**2).sum()])


def rare_events(seed, size):
    """Normal at level 0; above, `size` once in 512 samples: a kurtosis of 512 whatever the size."""
    rng = np.random.default_rng(seed)

    def rare(level, n):
        return sums_of((rng.uniform(size=n) < 2.0**-9) * size if level else rng.normal(size=n))

    return rare


def test_a_kurtosis_that_spoils_the_variance_is_reported():
    with pytest.warns(RuntimeWarning, match="finest allowed"), pytest.warns(RuntimeWarning, match="kurtosis"):
        multilevel(rare_events(0, 40.0), rmse=0.1, max_level=2, alpha=1.0, beta=1.0)


def test_a_kurtosis_that_changes_nothing_is_not():
    """Their share of the variance is 1e-3: with ten times the variance the standard error would be the same."""
    run = multilevel(rare_events(0, 1.0), rmse=0.1, max_level=2, alpha=1.0, beta=1.0)
    assert run.kurtosis.max() > 100
    problem = ConvectionDiffusion(swirl, bumps, 0.1, horizon=0.25)
    assert multilevel(problem, POINTS[:1], rmse=1e-2, scheme="euler").kurtosis.max() > 0


def test_an_error_that_costs_too_much_is_told_before_it_is_paid():
    levels = geometric_brownian_call(0, milstein=True)
    with pytest.warns(
        RuntimeWarning, match=r"rmse 1e-09 takes a cost of about \S+, more than max_cost = 1e\+06; about"
    ):
        run = multilevel(levels, rmse=1e-9, max_cost=1e6)
    assert run.cost <= 1.1e6
    assert run.rmse > 1e-9
    assert np.hypot(run.standard_error[0], run.bias_estimate[0]) <= 1.1 * run.rmse
    assert abs(run.mean[0] - CALL) < 4 * run.rmse
    with pytest.raises(ValueError, match="max_cost: expected a positive cost"):
        multilevel(levels, rmse=1e-3, max_cost=0.0)


def test_levels_repeat_with_the_recorded_seed():
    problem = ConvectionDiffusion(swirl, bumps, 0.1, horizon=0.25)
    a, b = (multilevel_estimate(problem, POINTS[:1], rmse=0.05) for _ in range(2))
    assert a.mean[0] != b.mean[0]
    assert multilevel_estimate(problem, POINTS[:1], rmse=0.05, rng=a.seed).mean[0] == a.mean[0]
    assert "covers sampling and time-step bias" in repr(a)


def broken_levels(change):
    """A level function as `change` makes it of right sums, the samples and their number."""
    rng = np.random.default_rng(0)

    def level_function(level, n):
        fine = rng.normal(1.0, 1.0, n)
        y = fine if level == 0 else rng.normal(0.0, 2.0**-level, n)
        return change(sums_of(y, fine), y, n)

    return level_function


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sums, y, n: sums / n, "means in place of sums"),
        (lambda sums, y, n: sums_of(np.linspace(-1.0, 2.0, n)), "the same samples again"),
        (lambda sums, y, n: sums + 0j, "expected real sums, got dtype complex128"),
        (lambda sums, y, n: sums[[1, 0, 2, 3, 4, 5]], r"for which \(ΣY\)² <= n ΣY²"),
        (lambda sums, y, n: sums[[0, 3, 2, 1, 4, 5]], "for which"),
        (lambda sums, y, n: sums[[0, 1, 2, 3, 5, 4]], "for which"),
        (lambda sums, y, n: np.append(sums[:4], [0.0, n]), "P = Y at level 0"),
        (lambda sums, y, n: np.stack([sums] * (1 + (y[0] > 1.0)), axis=1), "expected the same shape each time"),
        (lambda sums, y, n: np.stack([y] * 6), "for which"),
        (lambda sums, y, n: [str(v) for v in sums], "expected real sums"),
    ],
)
def test_what_are_no_sums_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        multilevel(broken_levels(change), rmse=0.02)


def test_a_level_limit_that_is_too_low_is_reported():
    with pytest.warns(RuntimeWarning, match="at level 2, the finest allowed"):
        multilevel(
            ConvectionDiffusion(swirl, bumps, 0.1), POINTS[:1], rmse=2e-3, scheme="euler", first_steps=1, max_level=2
        )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((lambda l, n: np.zeros(6),), {"rmse": 0.0}, "rmse: expected a positive error"),
        (
            (lambda l, n: np.zeros(6),),
            {"rmse": 1.0, "max_level": 1},
            "max_level: expected a whole number of at least 2",
        ),
        ((lambda l, n: np.zeros(6),), {"rmse": 1.0, "max_level": 2.5}, "max_level: expected a whole number .* got 2.5"),
        ((lambda l, n: np.zeros(6),), {"rmse": "1"}, "rmse: expected a positive error, got '1'"),
        ((lambda l, n: np.zeros(6),), {"rmse": np.nan}, "rmse: expected a positive error, got nan"),
        ((lambda l, n: np.zeros(6),), {"rmse": True}, "rmse: expected a positive error, got True"),
        ((lambda l, n: np.zeros(6),), {"rmse": 1.0, "alpha": -1}, "alpha: expected a positive rate, got -1"),
        ((lambda l, n: np.zeros(6),), {"rmse": 1.0, "beta": 0}, "beta: expected a positive rate, got 0"),
        ((lambda l, n: np.zeros(6),), {"rmse": 1.0, "max_cost": np.nan}, "max_cost: expected a positive cost, got nan"),
        ((lambda l, n: np.zeros(6),), {"rmse": 1.0, "max_cost": "1"}, "max_cost: expected a positive cost, got '1'"),
        ((lambda l, n: np.zeros(6),), {"rmse": 1.0, "level_cost": 2.0}, "level_cost: expected a function of the level"),
        (
            (lambda l, n: np.array([0.0, n, 0.0, n, 0.0, n]),),
            {"rmse": 1.0, "level_cost": lambda l: -1.0},
            r"level_cost\(0\): expected a positive cost, got -1.0",
        ),
        ((3.0,), {"rmse": 1.0}, "source: expected a ConvectionDiffusion or a level function, got 3.0"),
        ((lambda l, n: np.zeros(6), POINTS), {"rmse": 1.0}, "points: expected None with a level function"),
        ((lambda l, n: np.zeros(5),), {"rmse": 1.0}, r"expected sums of shape \(6,\) or \(6, P\), got \(5,\)"),
        ((lambda l, n: np.full(6, np.nan),), {"rmse": 1.0}, "expected finite sums"),
        ((ConvectionDiffusion(swirl, bumps, 0.1),), {"rmse": 1.0}, "points: expected an array"),
        ((ConvectionDiffusion(swirl, bumps, 0.0), POINTS), {"rmse": 1.0}, "sigma: expected noise to sample"),
        ((ConvectionDiffusion(swirl, bumps, 0.1), POINTS), {"rmse": 1.0, "scheme": "rk4"}, "scheme: expected one of"),
        ((ConvectionDiffusion(swirl, bumps, 0.1), POINTS), {"rmse": 1.0, "first_steps": 0}, "first_steps: expected"),
        ((ConvectionDiffusion(swirl, bumps, 0.1), POINTS), {"rmse": 1.0, "t0": 2.0}, "t0: expected a time before"),
        ((ConvectionDiffusion(swirl, bumps, 0.1), POINTS), {"rmse": 1.0, "t0": "0"}, "t0: expected a time .* got '0'"),
        ((ConvectionDiffusion(swirl, bumps, 0.1), POINTS), {"rmse": 1.0, "rng": -1}, "rng: expected a whole number"),
        ((ConvectionDiffusion(swirl, bumps, 0.1), POINTS), {"rmse": 1.0, "first_steps": 1.5}, "first_steps: expected"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, options, message):
    with pytest.raises(ValueError, match=message) as error:
        multilevel(*arguments, **options)
    assert "\n" not in str(error.value)
