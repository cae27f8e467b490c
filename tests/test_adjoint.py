"""Gradients of J(u(·, 0)) against finite differences of the solver, for all that a problem may be given by."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from pdekit import ConvectionDiffusion, RedrawnVelocity, UnstableError, solve
from pdekit.equation.adjoint import solve_and_pull
from pdekit.equation.operator import SpectralOperator, available_backends, gradient_terms
from pdekit.equation.sensitivity import Gradients, resample_transposed
from pdekit.field import FunctionField, GridField
from pdekit.noise import Noise
from pdekit.numerics.spectral import resample
from pdekit.series import GridSeries

GRIDS = {1: (16,), 2: (10, 9), 3: (8, 9, 8)}
OWN = {1: (5,), 2: (4, 7), 3: (4, 3, 5)}
NAMES = ("velocity", "terminal", "sigma", "potential", "source")


def values_of(dim, fields=0, seed=0):
    """Values of all that a problem is given by, rough enough that all modes matter."""
    rng, own = np.random.default_rng(seed), OWN[dim]
    finer = tuple(n + 1 for n in own)
    return {
        "velocity": 0.3 * rng.standard_normal((dim, *own)),
        "terminal": rng.standard_normal((*finer, fields) if fields else finer),
        "sigma": 0.3,
        "potential": rng.standard_normal(own),
        "source": rng.standard_normal(finer),
    }


def problem_of(values, **others):
    values = dict(values)
    velocity, terminal, sigma = (values.pop(name) for name in NAMES[:3])
    return ConvectionDiffusion(velocity, terminal, sigma, **{"horizon": 0.5} | values | others)


def cotangent_of(u, seed=1):
    return np.random.default_rng(seed).standard_normal(u.shape)


def difference(j, step=5e-4):
    """The derivative of a function of a number at 0, of fourth order."""
    return (8.0 * (j(step) - j(-step)) - (j(2.0 * step) - j(-2.0 * step))) / (12.0 * step)


def check(make, given, names, *, tolerance=1e-7, **options):
    """The gradient along a random direction for each name; make: values -> problem."""
    u, pull = solve_and_pull(make(given), **options)
    cotangent = cotangent_of(u)
    gradients = pull(cotangent)
    for seed, name in enumerate(names):
        direction = np.random.default_rng(10 + seed).standard_normal(np.shape(given[name]))

        def j(step, name=name, direction=direction):
            moved = given | {name: given[name] + step * direction}
            return float((cotangent * solve_and_pull(make(moved), **options)[0]).sum())

        own = getattr(gradients, name)
        assert np.shape(own) == np.shape(given[name])
        expected = difference(j)
        assert float((own * direction).sum()) == pytest.approx(expected, rel=tolerance), name
    return gradients


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4", "spectral_krylov"])
def test_gradients_are_those_of_finite_differences(method, dim, padded):
    steps = {"dt": 0.5 / 11} if method == "spectral_rk4" else {"dt": 0.5 / 30}
    options = {"num_points": GRIDS[dim], "method": method, "rtol": 1e-12, "padded": padded, **steps}
    check(problem_of, values_of(dim), NAMES, **options)


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4", "spectral_krylov"])
def test_several_functions_share_the_gradient_of_the_flow(method):
    options = {"num_points": GRIDS[2], "method": method, "rtol": 1e-12, "dt": 0.5 / 30, "padded": True}
    check(problem_of, values_of(2, fields=3), NAMES, **options)


@pytest.mark.parametrize("sigma", [np.array([0.2, 0.4]), np.array([[0.3, 0.1, 0.2], [-0.1, 0.2, 0.05]])])
@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4", "spectral_krylov"])
def test_vectors_and_matrices_of_noise_in_a_box(method, sigma):
    def make(values):
        return problem_of(values, box=((-1.0, 1.0), (0.0, 0.7)))

    options = {"num_points": GRIDS[2], "method": method, "rtol": 1e-12, "dt": 0.5 / 30, "padded": False}
    gradients = check(make, values_of(2) | {"sigma": sigma}, NAMES, **options)
    assert gradients.sigma_matrix.shape == (2, sigma.shape[-1])


def test_the_matrix_of_a_noise_is_what_its_number_stands_for():
    given = values_of(2)
    options = {"num_points": GRIDS[2], "method": "spectral_krylov", "padded": False}
    u, pull = solve_and_pull(problem_of(given), **options)
    number = pull(cotangent_of(u))
    _, pull = solve_and_pull(problem_of(given | {"sigma": Noise.of([0.3, 0.3], 2)}), **options)
    np.testing.assert_allclose(pull(cotangent_of(u)).sigma, number.sigma_matrix, rtol=1e-12)
    assert np.trace(number.sigma_matrix) == pytest.approx(number.sigma, rel=1e-14)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4"])
def test_fields_given_at_times(method, interpolation):
    rng, times = np.random.default_rng(3), np.array([0.0, 0.2, 0.3, 0.55])

    def series(frames, shape):
        return GridSeries(times, frames, interpolation, shape=shape)

    def make(values):
        fields = {"velocity": (2,), "potential": (), "source": ()}
        as_series = {name: series(values[name], shape) for name, shape in fields.items()}
        return problem_of(values | as_series, box=((0.0, 2.0), (0.0, 1.0)))

    given = values_of(2) | {
        "velocity": 0.5 * rng.standard_normal((4, 2, 5, 6)),
        "potential": rng.standard_normal((4, 1, 6, 4)),
        "source": rng.standard_normal((4, 1, 5, 5)),
    }
    check(make, given, NAMES, num_points=GRIDS[2], method=method, dt=0.5 / 30, padded=True)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_krylov"])
def test_noise_and_functions_by_their_values_on_the_nodes(method, shape):
    """Functions that take their values from the nodes of the solve, so that each can be moved."""
    grid, rng = GRIDS[2], np.random.default_rng(4)

    def looked_up(values, shape):
        def function(x, t=0.0):
            index = tuple(np.rint(x[..., axis] * n).astype(int) % n for axis, n in enumerate(grid))
            return np.moveaxis(values, 0, -1)[index].reshape(*x.shape[:-1], *shape)

        return FunctionField(function, 2, math.inf, shape)

    def make(values):
        as_fields = {
            "velocity": looked_up(values["velocity"], (2,)),
            "terminal": looked_up(values["terminal"][None], ()).function,
            "sigma": looked_up(values["sigma"].reshape(-1, *grid), shape),
            "potential": looked_up(values["potential"][None], ()),
        }
        return problem_of(as_fields)

    given = {
        "velocity": 0.3 * rng.standard_normal((2, *grid)),
        "terminal": rng.standard_normal(grid),
        "sigma": 0.2 + 0.05 * rng.standard_normal((*([math.prod(shape)] if shape else []), *grid)),
        "potential": rng.standard_normal(grid),
    }
    options = {"num_points": grid, "method": method, "rtol": 1e-12, "dt": 0.5 / 100, "padded": False}
    gradients = check(make, given, ("velocity", "terminal", "sigma"), **options)
    assert gradients.sigma_matrix is None


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_krylov"])
def test_a_smooth_field_has_a_gradient_by_modes_that_it_lacks(method):
    x = np.arange(16) / 16
    smooth = 0.2 * np.sin(2 * np.pi * (x[:, None] + x) + 0.3)
    given = values_of(2) | {"velocity": np.stack([smooth, -smooth]), "potential": np.ones((6, 6))}
    options = {"num_points": (16, 18), "method": method, "rtol": 1e-12, "dt": 0.5 / 30, "padded": False}
    check(problem_of, given, NAMES, **options)


def test_u_is_that_of_the_solver():
    problem = problem_of(values_of(2) | {"sigma": 0.6})
    for method, options in (("spectral_rk4", {"dt": 0.02}), ("spectral_krylov", {"rtol": 1e-11})):
        u, _ = solve_and_pull(problem, num_points=24, method=method, **options)
        expected = solve(problem, num_points=24, method=method, times=[0.0], progress=False, **options).u[0]
        np.testing.assert_allclose(u, expected, atol=1e-11)


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4", "spectral_krylov"])
def test_what_is_linear_in_the_data_is_its_own_gradient(method):
    """u is linear in (f, g): <c, u> = <∂J/∂f, f> + <∂J/∂g, g>, the adjoint identity."""
    given = values_of(2)
    u, pull = solve_and_pull(problem_of(given), num_points=GRIDS[2], method=method, rtol=1e-13, padded=True, dt=0.02)
    cotangent = cotangent_of(u)
    gradients = pull(cotangent)
    total = (gradients.terminal * given["terminal"]).sum() + (gradients.source * given["source"]).sum()
    assert total == pytest.approx((cotangent * u).sum(), rel=1e-11)


def test_constant_shifts_of_the_potential_have_a_closed_form():
    """u of V + δ is exp(-δT) u without a source."""
    given = {name: value for name, value in values_of(2).items() if name != "source"} | {"potential": 0.7}
    u, pull = solve_and_pull(problem_of(given), num_points=12, method="spectral_krylov", rtol=1e-11, padded=True)
    cotangent = cotangent_of(u)
    assert pull(cotangent).potential.sum() == pytest.approx(-0.5 * (cotangent * u).sum(), rel=1e-9)


def test_diffusion_of_a_mode_has_a_closed_form():
    """Without F, u = exp(-½σ²k²T) cos(k x)."""
    x, k, sigma = np.arange(16) / 16, 4.0 * np.pi, 0.2
    problem = ConvectionDiffusion(np.zeros((1, 4)), np.cos(k * x), sigma, horizon=0.5)
    for method in ("spectral_rk4", "spectral_krylov"):
        u, pull = solve_and_pull(problem, num_points=16, method=method, dt=0.1, padded=True)
        assert pull(u).sigma == pytest.approx(-sigma * k**2 * 0.5 * (u * u).sum(), rel=1e-9)


def test_the_gradient_of_the_scheme_tends_to_that_of_the_equation():
    def gradient(**options):
        u, pull = solve_and_pull(problem_of(values_of(2)), num_points=GRIDS[2], padded=True, **options)
        return pull(cotangent_of(u))

    exact = gradient(method="spectral_krylov", rtol=1e-13)
    for name in NAMES:
        errors = []
        for steps in (20, 40, 80):
            own = gradient(method="spectral_rk4", dt=0.5 / steps)
            errors.append(float(np.abs(getattr(own, name) - getattr(exact, name)).max()))
        assert -np.polyfit(np.log([20, 40, 80]), np.log(errors), 1)[0] == pytest.approx(4.0, abs=0.3), name


def test_pulling_again_gives_the_same_and_is_linear():
    u, pull = solve_and_pull(problem_of(values_of(2)), num_points=12, method="spectral_ab4", dt=0.02, padded=True)
    first, second = cotangent_of(u), cotangent_of(u, seed=2)
    once, again = pull(first), pull(first)
    both = pull(first + second)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))
        other = getattr(pull(second), name)
        np.testing.assert_allclose(getattr(both, name), getattr(once, name) + other, rtol=1e-9, atol=1e-11)


def test_memory_grows_with_the_root_of_the_steps():
    def peak(steps):
        u, pull = solve_and_pull(problem, num_points=32, dt=1.0 / steps, method="spectral_rk4", padded=False)
        tracemalloc.start()
        pull(u)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    problem = ConvectionDiffusion(0.1 * np.ones((2, 4, 4)), np.eye(8), 0.1)
    peak(16)
    few, many = peak(100), peak(1600)
    assert many < 5.0 * few


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("grid", [(16,), (12, 15), (8, 9, 10), (300, 300)])
def test_pulling_in_one_go_is_the_transpose_and_the_pairing(grid, backend):
    rng, dim = np.random.default_rng(0), len(grid)
    terms = (*gradient_terms(dim), (0,) * dim, (2,) + (0,) * (dim - 1))
    operator = SpectralOperator(grid, terms=terms, fft=backend)
    u, v = (operator.to_modes(rng.standard_normal(grid)) for _ in range(2))
    coefficients = operator.prepare(rng.standard_normal((len(terms), *grid)))
    by, expected_by = np.ones_like(coefficients), np.ones_like(coefficients)
    out, expected = np.empty_like(u), np.empty_like(u)
    operator.pull(u, v, coefficients, by, out)
    operator.transpose(v, coefficients, expected)
    operator.pair(u, v, 1.0, expected_by)
    np.testing.assert_allclose(out, expected, rtol=1e-13)
    np.testing.assert_allclose(by, expected_by, rtol=1e-13)


@pytest.mark.parametrize(("old", "new"), [(8, 12), (7, 12), (8, 13), (12, 8), (13, 8), (12, 7), (8, 8), (6, 7)])
def test_resampling_is_transposed(old, new):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, old, old)), rng.standard_normal((2, new, new))
    forward = (resample(x, new, axes=(1, 2)) * y).sum()
    assert (x * resample_transposed(y, (old, old))).sum() == pytest.approx(forward, rel=1e-12)


def test_what_has_no_gradient_is_refused_in_one_line():
    still = np.zeros((1, 8))
    f = np.cos(2 * np.pi * np.arange(8) / 8)

    def refused(match, problem, **options):
        with pytest.raises(ValueError, match=match) as caught:
            solve_and_pull(problem, **{"num_points": 8} | options)
        assert "\n" not in str(caught.value)

    plain = ConvectionDiffusion(still, f, 0.1)
    refused("method: expected 'auto' or one of spectral_rk4", plain, method="semi_lagrangian")
    refused("num_points: expected", plain, num_points=7)
    refused("dt: expected", plain, dt=-1.0)
    refused("velocity: .* function of t", ConvectionDiffusion(lambda x, t: 0 * x, f, 0.1))
    refused("velocity: .* redrawn", ConvectionDiffusion(RedrawnVelocity(8, 0.1, 0, dim=1), f, 0.1))
    refused("velocity: .*'bilinear'", ConvectionDiffusion(GridField(still, "bilinear", (1,), "velocity"), f, 0.1))
    refused("sigma: .* does not change", ConvectionDiffusion(still, f, lambda x, t: 0.1 + 0 * x[..., 0]))
    refused("sigma: .* at most", ConvectionDiffusion(still, f, GridField(np.ones((1, 32)), name="sigma")))
    series = GridSeries(np.array([0.0, 1.0]), np.zeros((2, 1, 8)), shape=(1,), name="velocity")
    refused("changes in time", ConvectionDiffusion(series, f, 0.1), method="spectral_krylov")
    _, pull = solve_and_pull(plain, num_points=8)
    with pytest.raises(ValueError, match=r"cotangent: expected the shape of u \(8,\), got \(9,\)"):
        pull(np.zeros(9))
    with pytest.raises(UnstableError):
        solve_and_pull(ConvectionDiffusion(1e4 * np.ones((1, 8)), f, 0.1), num_points=64, dt=0.1, method="spectral_rk4")


def test_nothing_to_pull_gives_nothing():
    u, pull = solve_and_pull(ConvectionDiffusion(np.zeros((1, 4)), np.ones(8), 0.0), num_points=8)
    gradients = pull(np.zeros_like(u))
    assert isinstance(gradients, Gradients)
    assert gradients.potential is None
    assert gradients.source is None
    assert not gradients.velocity.any()
    assert gradients.sigma == 0.0


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_krylov"])
def test_a_source_has_a_gradient_where_u_is_zero(method):
    """u = T g for a constant g without anything else, however small u is."""
    problem = ConvectionDiffusion(np.zeros((1, 4)), np.zeros(8), 0.2, horizon=0.5, source=np.zeros(4))
    u, pull = solve_and_pull(problem, num_points=8, method=method, dt=0.05)
    assert not u.any()
    assert pull(np.ones(8)).source.sum() == pytest.approx(0.5 * 8.0, rel=1e-10)
