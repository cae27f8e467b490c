"""The rows of the certificate: each promise, the range that it allows, and how many cases measure it."""

from __future__ import annotations

from functools import partial

from netkit.intervals import clopper_pearson, wilson
from pdekit import Sampling
from studies.certificate import LEVEL, damage, intervals, orders, rounding, verification
from studies.lab.promises import Row

COVERED = 1 - LEVEL
ALARM, ABOUT, AT_LEAST = (0.0, LEVEL), (COVERED - 0.01, COVERED + 0.01), (COVERED, 1.0)
DIMENSIONS = (1, 2)
CHANGES = ("σ +1%", "σ -1%", "σ +0.1%", "F +1%", "F -1%", "F +0.1%", "f +1%", "one node off")
ADJOINTS = ("spectral_rk4", "spectral_ab4", "spectral_krylov")

_of_ensembles = partial(intervals.ensemble_interval, law=(-1.0, 1.5))

# fmt: off
ROWS = [
    *(Row("verify", f"false alarms, {dim}-D", "rejects a right solution in 5% at most", ALARM,
          600, partial(verification.false_alarms, dim), least=2) for dim in DIMENSIONS),
    *(Row("verify", f"bounds, {dim}-D", "the true deviation lies between the bounds in 95% at least", AT_LEAST,
          600, partial(verification.bounds_hold, dim), least=2) for dim in DIMENSIONS),
    *(Row("verify", f"power, {dim}-D, {change}", "none: how often it is rejected", None,
          100, partial(verification.power, dim, change), least=1) for dim in DIMENSIONS for change in CHANGES),

    Row("intervals", "paths", "covers 95%, give or take a point", ABOUT,
        100_000, partial(intervals.paths_interval, sampling=Sampling()), least=20),
    Row("intervals", "paths, antithetic", "covers 95%, give or take a point", ABOUT,
        20_000, partial(intervals.paths_interval, sampling=Sampling(antithetic=True)), least=20),
    Row("intervals", "paths, Sobol", "covers 95%, give or take a point", ABOUT,
        20_000, partial(intervals.paths_interval, sampling=Sampling(qmc=True)), least=20),
    Row("intervals", "paths, Sobol, 8 steps", "covers 95%, give or take a point", ABOUT,
        20_000, partial(intervals.paths_interval, sampling=Sampling(qmc=True), num_steps=8), least=20),
    Row("intervals", "paths with bias, Euler", "covers 95% at least", AT_LEAST,
        40_000, partial(intervals.biased_interval, scheme="euler"), least=10),
    Row("intervals", "paths with bias, Heun", "covers 95% at least", AT_LEAST,
        40_000, partial(intervals.biased_interval, scheme="heun"), least=10),
    Row("intervals", "paths to a tolerance", "the error is within it in 95%, give or take two points", (0.93, 1.0),
        4000, intervals.tolerance_met, least=10),
    Row("intervals", "multilevel", "mean square error over rmse² is 1 at most", (0.0, 1.0),
        1000, intervals.multilevel_error, least=4),
    Row("intervals", "Clopper-Pearson", "covers 95% at least", AT_LEAST,
        2000, partial(intervals.binomial_coverage, interval=clopper_pearson, least=True), least=40),
    Row("intervals", "Wilson", "covers 95% on average, give or take a point", ABOUT,
        2000, partial(intervals.binomial_coverage, interval=wilson, least=False), least=40),
    Row("intervals", "mean accuracy", "covers 94% at least", (0.94, 1.0),
        20_000, partial(intervals.accuracy_interval, paired=False), least=20),
    Row("intervals", "paired difference", "covers 94% at least", (0.94, 1.0),
        20_000, partial(intervals.accuracy_interval, paired=True), least=20),
    Row("intervals", "ensemble, bets", "covers 95% at least", AT_LEAST,
        20_000, partial(_of_ensembles, num_draws=50), least=200),
    Row("intervals", "ensemble, bets, small mean", "covers 95% at least", AT_LEAST,
        20_000, partial(intervals.ensemble_interval, law=(-8.0, 2.0), num_draws=200), least=200),
    Row("intervals", "ensemble, Student", "within 1.5 points of 95%", (0.935, 0.965),
        20_000, partial(_of_ensembles, num_draws=50, kind="student"), least=200),
    Row("intervals", "ensemble, to a target", "covers 95% at least", AT_LEAST,
        10_000, partial(_of_ensembles, target_error=0.1), least=200),
    Row("intervals", "ensemble, decisions", "at most 5% are decided wrongly", ALARM,
        10_000, intervals.wrong_decisions, least=200),
    Row("intervals", "certificate", "at most 5% of the radii are too large", ALARM,
        10_000, intervals.certificate_failures, least=20),
    Row("intervals", "calibration, ECE", "covers 85% at least", (0.85, 1.0),
        4000, partial(intervals.calibration_interval, name="ece"), least=10),
    Row("intervals", "calibration, NLL", "covers 95%, give or take two points", (0.93, 0.97),
        4000, partial(intervals.calibration_interval, name="nll"), least=10),
    Row("intervals", "calibration, Brier", "covers 95%, give or take two points", (0.93, 0.97),
        4000, partial(intervals.calibration_interval, name="brier"), least=10),

    Row("orders", "Lawson RK4", "4", (3.8, 4.2),
        4, partial(orders.order_in_time, method="spectral_rk4", steps=(20, 40, 80, 160)), least=2),
    Row("orders", "Krogstad RK4, σ(x)", "4", (3.8, 4.2),
        4, partial(orders.order_in_time, method="spectral_rk4", steps=(40, 80, 160, 320), sigma=orders.uneven),
        least=2),
    Row("orders", "AB4", "4", (3.8, 4.2),
        4, partial(orders.order_in_time, method="spectral_ab4", steps=(160, 240, 320, 640)), least=2),
    Row("orders", "semi-Lagrangian", "2", (1.8, 2.2),
        3, partial(orders.order_in_time, method="semi_lagrangian", steps=(5, 10, 20)), least=2),
    Row("orders", "Euler-Maruyama, weak", "1", (0.75, 1.25),
        2_000_000, partial(orders.weak_order, scheme="euler", steps=(16, 32, 64), constant=True), least=2000),
    Row("orders", "Heun, weak", "2", (1.75, 2.25),
        2_000_000, partial(orders.weak_order, scheme="heun", steps=(12, 16, 24), constant=True), least=2000),
    Row("orders", "Platen, weak, σ(x)", "2", (1.75, 2.25),
        40_000_000, partial(orders.weak_order, scheme="heun", steps=(12, 16, 24), constant=False), least=2000),
    *(Row("orders", f"adjoint, {name}", "derivatives agree with differences to 1e-7", (0.0, 1e-7),
          40, partial(orders.adjoint_error, method=name)) for name in ADJOINTS),
    Row("orders", "density, pairing under AB4", "4", (3.5, 4.5), 3, orders.pairing),
    Row("orders", "density, mass", "is kept to 1e-11", (0.0, 1e-11), 40, orders.mass_change),

    *(Row("damage", reader, "at most 1 in 1,000 is misread, or ends otherwise than by one line", (0.0, 1e-3),
          10_000, partial(damage.failures, reader=reader), least=20) for reader in damage.READERS),

    Row("rounding", "paths in float32", "within 1.96 errors of those in float64 in 95%, give or take a point", ABOUT,
        20_000, rounding.sampler_rounding, least=20),
    Row("rounding", "network in float32", "moves a probability by less than 1e-5", (0.0, 1e-5),
        500, rounding.network_rounding, least=20),
    Row("rounding", "attack in float32", "changes the class of 1% at most", (0.0, 0.01),
        1000, rounding.attack_rounding, least=20),

    Row("bits", "paths by threads", "no bit differs", (0.0, 0.0), 40, partial(rounding.differing_bits, executor=False)),
    Row("bits", "paths by executor", "no bit differs", (0.0, 0.0), 20, partial(rounding.differing_bits, executor=True)),
    Row("bits", "solver by threads", "no bit differs", (0.0, 0.0), 5, rounding.solver_bits),
]
# fmt: on
