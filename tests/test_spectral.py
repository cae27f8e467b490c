"""Fourier calculus, the dealiased product, the continuation of node values, and the numbers that describe fields."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import fft

from pdekit.equation.operator import SpectralOperator, available_backends, bandlimit
from pdekit.field import compiled, node_points
from pdekit.numerics.diagnostics import (
    cell_peclet,
    courant,
    max_gradient,
    max_speed,
    steepening_rate,
    steepest_difference,
    total_variation,
)
from pdekit.numerics.spectral import gradient, laplacian_symbol, resample, second_difference_symbol
from pdekit.numerics.splines import spline_table
from pdekit.velocity import GridVelocity, RedrawnVelocity

TAU = 2.0 * np.pi


def random_field(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("dim", "n"), [(1, 24), (2, 16), (2, 15), (3, 8)])
def test_gradient_of_a_mode_is_exact(dim, n):
    k = np.array([2, 1, 3])[:dim]
    x = node_points(n, dim)
    expected = -TAU * k * np.sin(TAU * (x @ k))[..., None]
    np.testing.assert_allclose(np.moveaxis(gradient(np.cos(TAU * (x @ k))), 0, -1), expected, atol=1e-12)


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("finer", [12, 16, 25])
def test_resampling_interpolates_the_nodes_and_can_be_undone(n, finer):
    values = random_field((n, n))
    fine = resample(values, finer)
    if finer % n == 0:
        np.testing.assert_allclose(fine[:: finer // n, :: finer // n], values, atol=1e-13)
    np.testing.assert_allclose(resample(fine, n), values, atol=1e-12)


def test_five_point_heat_kernel_is_a_non_negative_matrix_with_the_right_variance():
    n, time = 32, 1e-3
    kernel = fft.irfftn(np.exp(time * second_difference_symbol((n, n))), s=(n, n))
    assert kernel.min() > -1e-16
    assert kernel.sum() == pytest.approx(1.0)
    offset = (np.arange(n) + n // 2) % n - n // 2
    assert (kernel.sum(axis=1) * (offset / n) ** 2).sum() == pytest.approx(2 * time, rel=1e-10)
    truncated = fft.irfftn(np.exp(time / 40 * laplacian_symbol(n, 2)), s=(n, n))
    assert truncated.min() < -1e-4  # why the exact symbol is not used where bounds must hold


@pytest.mark.parametrize("library", available_backends())
@pytest.mark.parametrize(("dim", "n"), [(1, 32), (2, 16), (2, 21), (3, 10)])
def test_the_product_is_free_of_aliasing(dim, n, library):
    """Against the product formed on a grid four times finer, which holds every mode of it."""
    operator = SpectralOperator((n,) * dim, fft=library)
    velocity = operator.prepare(random_field((dim, *[n] * dim), 1))
    u = operator.to_grid(operator.to_modes(random_field((n,) * dim, 2)))
    fine_velocity = np.stack([resample(c, 4 * n) for c in velocity])
    fine_product = (fine_velocity * gradient(resample(u, 4 * n))).sum(axis=0)
    expected = operator.to_modes(fine_product)
    out = np.empty(operator.shape, dtype=complex)
    operator.evaluate(operator.to_modes(u), velocity, out)
    np.testing.assert_allclose(out, expected, atol=1e-12 * np.abs(expected).max() * n)


@pytest.mark.parametrize("library", available_backends())
@pytest.mark.parametrize(("dim", "n"), [(1, 64), (2, 48), (3, 24)])
def test_a_band_limited_velocity_needs_a_smaller_product_grid(dim, n, library):
    velocity = np.stack([resample(c, n) for c in random_field((dim, *[5] * dim), 3)])
    assert bandlimit(velocity) == (2,) * dim
    small = SpectralOperator((n,) * dim, bands=(2,) * dim, fft=library)
    full = SpectralOperator((n,) * dim, fft=library)
    assert max(small.product_grid) < 0.8 * n
    u_hat = full.to_modes(random_field((n,) * dim, 4))
    found, expected = np.empty_like(u_hat), np.empty_like(u_hat)
    small.evaluate(u_hat, small.prepare(velocity), found)
    full.evaluate(u_hat, full.prepare(velocity), expected)
    np.testing.assert_allclose(found, expected, atol=1e-13 * np.abs(expected).max() * n)
    assert bandlimit(random_field((2, 10, 12))) == (5, 6)
    assert bandlimit(np.ones((2, 8, 8))) == (0, 0)
    assert bandlimit(np.zeros((2, 8, 8))) == (0, 0)


def test_parseval():
    operator = SpectralOperator((20, 20))
    u_hat = operator.to_modes(random_field((20, 20)))
    assert operator.mean_square(u_hat) == pytest.approx(np.mean(operator.to_grid(u_hat) ** 2), rel=1e-12)


@pytest.mark.parametrize("continuation", ["trigonometric", "bicubic", "bilinear"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_continuations_pass_through_the_nodes_and_are_periodic(continuation, dim):
    n = 6
    values = random_field((dim, *[n] * dim))
    velocity = GridVelocity(values, continuation)
    np.testing.assert_allclose(np.moveaxis(velocity(node_points(n, dim)), -1, 0), values, atol=1e-12)
    x = np.random.default_rng(4).uniform(-2, 2, (50, dim))
    np.testing.assert_allclose(velocity(x), velocity(x + np.array([3, -1, 2])[:dim]), atol=1e-10)


def test_the_trigonometric_continuation_is_the_trigonometric_interpolant():
    n = 16
    values = random_field((2, n, n))
    x = np.random.default_rng(1).uniform(size=(40, 2))
    k = np.fft.fftfreq(n, 1 / n)
    basis = np.exp(1j * TAU * x[:, :, None] * k)  # (points, axis, mode)
    basis[:, :, n // 2] = np.cos(TAU * x * (n // 2))  # the unpaired mode of an even grid
    hat = np.fft.fft2(values) / n**2
    exact = np.einsum("pi,cij,pj->pc", basis[:, 0], hat, basis[:, 1]).real
    assert np.abs(GridVelocity(values, "trigonometric")(x) - exact).max() < 1e-4


@pytest.mark.parametrize(
    ("large", "huge", "degree", "finer", "error"),
    [(2**22, 2**25, 3, 8, 7e-5), (0, 2**25, 5, 4, 2.2e-5), (0, 0, 5, 3, 1.5e-4)],
)
@pytest.mark.parametrize(("dim", "n"), [(1, 16), (1, 15), (2, 8), (3, 6)])
def test_a_wave_is_continued_to_the_stated_error_and_much_better_where_it_is_long(
    dim, n, large, huge, degree, finer, error, monkeypatch
):
    monkeypatch.setattr("pdekit.numerics.splines._LARGE", large)
    monkeypatch.setattr("pdekit.numerics.splines._HUGE", huge)
    x = np.random.default_rng(0).uniform(-1, 2, (500, dim))
    for cycles in ((n - 1) // 2, 1):
        k = np.zeros(dim)
        k[-1] = cycles

        def wave(p, k=k):
            return np.cos(TAU * (p @ k) + 0.3)

        table = spline_table(wave(node_points(n, dim))[None], "trigonometric")
        assert (table.degree, table.coefficients.shape[0]) == (degree, finer * n + degree)
        frequency = cycles / (n * finer)  # cycles between two points of the finer grid
        aliases = (frequency / np.array([j - frequency for j in range(-9, 10) if j])) ** (degree + 1)
        assert np.abs(table(x)[:, 0] - wave(x)).max() < min(2.0 * aliases.sum() + 1e-13, error)


def test_the_table_of_a_fine_grid_in_three_dimensions_is_built_in_little_more_memory_than_it_holds():
    """Allocations as NumPy reports them; all components at once took four times as much, 1.6 GB here."""
    nodes = random_field((3, 32, 32, 32))
    tracemalloc.start()
    table = spline_table(nodes, "trigonometric")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.coefficients.nbytes < 60e6
    assert peak < 1.5 * table.coefficients.nbytes
    x = node_points(32, 3)[::8, ::8, ::8]
    np.testing.assert_allclose(np.moveaxis(table(x), -1, 0), nodes[:, ::8, ::8, ::8], atol=1e-12)


@pytest.mark.parametrize("continuation", ["trigonometric", "bicubic", "bilinear"])
@pytest.mark.parametrize("grid", [(12, 6), (5, 9), (6, 10, 4), (4, 7, 12)])
def test_other_numbers_of_nodes_along_each_axis_are_continued_from_all_of_them(grid, continuation):
    values = random_field((2, *grid))
    table = spline_table(values, continuation)
    atol = 1e-12 * np.abs(values).max()
    np.testing.assert_allclose(np.moveaxis(table(node_points(grid, len(grid))), -1, 0), values, atol=atol)


def test_bicubic_continuation_converges_with_fourth_order():
    x = np.random.default_rng(2).uniform(size=(200, 2))

    def f(p):
        return np.sin(TAU * p[..., 0]) * np.exp(np.cos(TAU * p[..., 1]))

    sizes = np.array([64, 128, 256])  # past the first terms of the expansion
    errors = [np.abs(spline_table(f(node_points(n, 2))[None], "bicubic")(x)[:, 0] - f(x)).max() for n in sizes]
    assert abs(-np.polyfit(np.log(sizes), np.log(errors), 1)[0] - 4.0) < 0.2


def test_bilinear_continuation_stays_within_the_node_values():
    values = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12))
    x = np.random.default_rng(5).uniform(size=(5000, 2))
    assert np.abs(GridVelocity(values, "bilinear")(x)).max() <= np.abs(values).max()


def test_redrawn_fields_depend_on_seed_and_interval_only():
    velocity = RedrawnVelocity(8, 0.1, seed=3)
    again = RedrawnVelocity(8, 0.1, seed=3)
    x = np.random.default_rng(0).uniform(size=(5, 2))
    np.testing.assert_array_equal(velocity(x, 0.25), again.field(2)(x))
    np.testing.assert_array_equal(velocity(x, 0.3), again.field(3)(x))  # 0.3 / 0.1 is 2.9999999999999996
    assert np.abs(velocity(x, 0.15) - velocity(x, 0.25)).max() > 0.01


def test_a_compiled_velocity_is_its_formula():
    @compiled(2)
    def velocity(x, y, t):
        return x + 2.0 * t, -x * y

    x = random_field((3, 4, 2))
    np.testing.assert_allclose(velocity(x, 0.5), np.stack([x[..., 0] + 1.0, -x[..., 0] * x[..., 1]], axis=-1))


def test_diagnostics_of_known_fields():
    n = 64
    x = node_points(n, 2)
    u = np.sin(TAU * x[..., 0])
    assert total_variation(u) == pytest.approx(4.0, rel=1e-2)
    assert max_gradient(u) == pytest.approx(TAU, rel=1e-12)
    assert steepest_difference(u) == pytest.approx(n * np.sin(TAU / n), rel=1e-12)
    shear = np.stack([np.sin(TAU * x[..., 1]), np.zeros((n, n))])
    assert steepening_rate(shear) == pytest.approx(TAU / 2, rel=1e-12)  # eigenvalues ±½ ∂F_1/∂y
    assert steepening_rate(np.sin(TAU * np.arange(n) / n)[None]) == pytest.approx(TAU, rel=1e-12)
    three = np.zeros((3, 8, 8, 8))
    three[0] = np.sin(TAU * np.arange(8) / 8)[:, None, None]
    assert steepening_rate(three) == pytest.approx(TAU, rel=1e-12)
    assert max_speed(np.stack([3 * u, 4 * u])) == pytest.approx(5.0, rel=1e-3)
    assert cell_peclet(2.0, 100, 0.005) == pytest.approx(4.0)
    assert cell_peclet(2.0, 100, 0.0) == np.inf
    assert courant(2.0, 128, 1e-3) == pytest.approx(0.256)
