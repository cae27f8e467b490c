"""The branch-free functions against extended precision, in both float types, special values included."""

import math

import numpy as np
import pytest
from numba import njit

from pdekit import fastmath


def loop_over(function):
    @njit
    def run(x, out):
        for i in range(len(x)):
            out[i] = function(x[i])

    return run


LOOPS = {name: loop_over(getattr(fastmath, name)) for name in fastmath.__all__}
TAU = 2 * np.longdouble("3.14159265358979323846264338327950288")
REFERENCE = {
    "sin": np.sin,
    "cos": np.cos,
    "exp": np.exp,
    "log": np.log,
    "sin2pi": lambda x: np.sin(TAU * x),
    "cos2pi": lambda x: np.cos(TAU * x),
}


def evaluate(name, x):
    out = np.empty_like(x)
    LOOPS[name](x, out)
    return out


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["sin", "cos", "sin2pi", "cos2pi"])
def test_sines_are_accurate_to_the_last_digits(name, dtype):
    x = np.random.default_rng(0).uniform(-100.0, 100.0, 20_000).astype(dtype)
    error = np.abs(evaluate(name, x) - REFERENCE[name](x.astype(np.longdouble)))
    assert error.max() < 2.0 * np.finfo(dtype).eps


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.float64, -700, 700), (np.float32, -86, 88)])
def test_exp_and_log_are_accurate_to_two_units_in_the_last_place(dtype, low, high):
    x = np.random.default_rng(1).uniform(low, high, 20_000).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    assert np.abs(evaluate("exp", x) / exact - 1).max() < 2.0 * np.finfo(dtype).eps
    y = exact.astype(dtype)
    exact_log = np.log(y.astype(np.longdouble))
    near_one = np.abs(exact_log) > 1e-3  # relative accuracy is tested apart, next to 1
    error = np.abs(evaluate("log", y) - exact_log)
    assert (error[near_one] / np.abs(exact_log[near_one])).max() < 2.0 * np.finfo(dtype).eps
    y = (1 + np.linspace(-1e-2, 1e-2, 1001)).astype(dtype)
    exact_log = np.log(y.astype(np.longdouble))
    assert np.abs(evaluate("log", y) - exact_log).max() < np.finfo(dtype).eps * 1e-2


def test_sin2pi_is_exactly_periodic():
    x = np.arange(4096) / 4096.0
    for name in ("sin2pi", "cos2pi"):
        np.testing.assert_array_equal(evaluate(name, x), evaluate(name, x + 12345.0))
    np.testing.assert_array_equal(evaluate("cos2pi", np.array([0.0, 0.25, 0.5, 0.75])), [1.0, 0.0, -1.0, 0.0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_special_values_follow_ieee(dtype):
    inf, nan = np.inf, np.nan
    x = np.array([0.0, inf, -inf, nan, -1.0], dtype=dtype)
    np.testing.assert_array_equal(evaluate("log", x), np.array([-inf, inf, nan, nan, nan], dtype=dtype))
    np.testing.assert_array_equal(evaluate("exp", x)[:4], np.array([1.0, inf, 0.0, nan], dtype=dtype))
    for name in ("sin", "cos", "sin2pi", "cos2pi"):
        assert np.isnan(evaluate(name, x[1:4])).all()
    tiny = np.array([np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny / 8], dtype=dtype)
    np.testing.assert_allclose(evaluate("log", tiny), np.log(tiny.astype(float)), rtol=1e-6)


def test_functions_are_callable_from_python():
    assert fastmath.sin(1) == pytest.approx(math.sin(1.0), rel=1e-15)
    assert fastmath.cos(1) == pytest.approx(math.cos(1.0), rel=1e-15)
    assert fastmath.exp(1) == pytest.approx(math.e, rel=1e-15)
    assert fastmath.log(2) == pytest.approx(math.log(2.0), rel=1e-15)
    assert fastmath.sin2pi(0.125) == pytest.approx(math.sqrt(0.5), rel=1e-15)
    assert fastmath.cos2pi(0.125) == pytest.approx(math.sqrt(0.5), rel=1e-15)


@pytest.mark.parametrize("name", fastmath.__all__)
def test_loops_become_simd_code(name):
    loop = loop_over(getattr(fastmath, name))
    x = np.ones(8)
    loop(x, x.copy())
    (assembly,) = loop.inspect_asm().values()
    assert any(packed in assembly for packed in ("mulpd", "fmadd213pd", "fmadd231pd", "fmul\tv", "fmla\tv"))
