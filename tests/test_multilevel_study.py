"""The multilevel study measures what it says."""

from __future__ import annotations

import json

from studies import multilevel


def test_multilevel_is_measured_against_the_equation():
    numbers, (run,) = multilevel.measure(multilevel.Config((3.2e-2,), ("heun",), 6, 96, seed=1))
    (row,) = numbers["schemes"]["heun"]["costs"]
    assert numbers["reference_error"] < 1e-6
    # chi-squared: the root mean square of six errors of size rmse exceeds 1.9 rmse about once in 700 times
    assert row["delivered"] < 1.9 * row["rmse"]
    assert row["plain_delivered"] < 1.9 * row["rmse"]
    assert row["plain_cost"] == row["plain_paths"] * row["steps"]
    levels = numbers["schemes"]["heun"]["levels"]
    assert levels["steps"] == [run.num_steps // 2**k for k in reversed(range(len(run.num_samples)))]
    json.dumps(numbers)
