"""The equation in full: boxes, potentials, sources, noise of every kind and several fields, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import expm

import pdekit.equation.march as march
from pdekit import ConvectionDiffusion, RedrawnVelocity, ResolutionWarning, compiled, solve
from pdekit.field import FunctionField, GridField, node_points

TAU = 2.0 * np.pi
SPECTRAL = ("spectral_rk4", "spectral_ab4", "spectral_krylov")


def values(solution) -> np.ndarray:
    return solution.u.sel(time=0.0).values


def mesh(solution) -> list[np.ndarray]:
    axes = [solution[name].values for name in "xyz" if name in solution]
    return np.meshgrid(*axes, indexing="ij")


# closed forms


@pytest.mark.parametrize("method", [*SPECTRAL, "semi_lagrangian"])
def test_a_wave_is_carried_and_damped_on_a_box_with_units(method):
    """F = c on a box of 3 x 1.5: cos(k·(x + cT)) exp(-½|k|²σ²T), and killing at a constant rate."""
    c, k = np.array([0.7, -0.4]), TAU * np.array([2 / 3, 1 / 1.5])
    problem = ConvectionDiffusion(
        lambda x, t: np.broadcast_to(c, x.shape),
        lambda x: np.cos(x @ k),
        0.2,
        dim=2,
        horizon=2.0,
        potential=0.3,
        box=((-1.0, 2.0), (0.5, 2.0)),
    )
    if method == "spectral_krylov":
        problem = ConvectionDiffusion(
            np.broadcast_to(c[:, None, None], (2, 2, 2)),
            problem.terminal,
            0.2,
            horizon=2.0,
            potential=0.3,
            box=problem.box,
        )
    solution = solve(problem, num_points=(48, 32), dt=0.02, method=method)
    x, y = mesh(solution)
    assert (x[0, 0], y[0, 0]) == (-1.0, 0.5)
    assert x[-1, 0] == pytest.approx(2.0 - 3 / 48)
    exact = np.cos(k[0] * (x + 2 * c[0]) + k[1] * (y + 2 * c[1])) * math.exp(-0.5 * k @ k * 0.04 * 2 - 0.6)
    error = np.abs(values(solution) - exact).max()
    allowed = {"semi_lagrangian": 1e-2, "spectral_ab4": 1e-6}.get(method, 1e-7)
    assert error < allowed * np.abs(exact).max()


@pytest.mark.parametrize("method", SPECTRAL)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_matrix_of_noise_damps_each_wave_by_its_own_rate(dim, method):
    """F = 0: exp(-½ kᵀσσᵀk T), for a rotated and a rectangular σ."""
    rng = np.random.default_rng(dim)
    for columns in (dim, dim + 1):
        sigma = 0.1 * rng.standard_normal((dim, columns))
        k = TAU * np.arange(1, dim + 1)
        still = np.zeros((dim, *[4] * dim))
        problem = ConvectionDiffusion(still, lambda x, k=k: np.sin(x @ k), sigma)
        solution = solve(problem, num_points=16, dt=0.1, method=method)
        exact = np.sin(np.moveaxis(np.array(mesh(solution)), 0, -1) @ k) * math.exp(-0.5 * k @ sigma @ sigma.T @ k)
        np.testing.assert_allclose(values(solution), exact, atol=1e-9)


def test_a_vector_of_noise_is_a_diagonal_matrix():
    still, f = np.zeros((2, 4, 4)), np.random.default_rng(0).standard_normal((8, 8))
    solutions = [
        solve(ConvectionDiffusion(still, f, sigma), num_points=32, method="spectral_rk4", dt=0.05)
        for sigma in (
            [0.2, 0.3],
            np.diag([0.2, 0.3]),
            lambda x, t: np.broadcast_to([0.2, 0.3], x.shape),
        )
    ]
    for other in solutions[1:]:
        np.testing.assert_allclose(values(other), values(solutions[0]), atol=1e-12)


@pytest.mark.parametrize("method", [*SPECTRAL, "semi_lagrangian"])
def test_heat_with_a_source(method):
    """u = e^(-λT) cos kx + (1 - e^(-λT)) / λ · cos kx for g = cos kx, λ = ½σ²k² + V."""
    k, v, sigma = TAU, 0.4, 0.3
    rate = 0.5 * sigma**2 * k**2 + v
    problem = ConvectionDiffusion(
        np.zeros((1, 4)),
        lambda x: np.cos(k * x[..., 0]),
        sigma,
        potential=v,
        source=lambda x, t: np.cos(k * x[..., 0]),
    )
    if method == "spectral_krylov":
        problem = ConvectionDiffusion(
            np.zeros((1, 4)), problem.terminal, sigma, potential=v, source=np.cos(k * np.arange(8) / 8)
        )
    solution = solve(problem, num_points=48, dt=0.005, method=method)
    exact = np.cos(k * solution.x.values) * (math.exp(-rate) + (1.0 - math.exp(-rate)) / rate)
    assert np.abs(values(solution) - exact).max() < (1e-3 if method == "semi_lagrangian" else 1e-8)


def dense(n: int, velocity, sigma, potential, source, horizon: float):
    """(exp(TA) f + ∫ exp(sA) g) on n nodes in one dimension, from matrices of spectral derivatives."""
    x = np.arange(n) / n
    k = TAU * np.fft.fftfreq(n, 1 / n)
    k[n // 2] = 0.0
    first = np.real(np.fft.ifft(1j * k[:, None] * np.fft.fft(np.eye(n), axis=0), axis=0))
    second = np.real(np.fft.ifft(-(k[:, None] ** 2) * np.fft.fft(np.eye(n), axis=0), axis=0))
    a = velocity(x)[:, None] * first + 0.5 * sigma(x)[:, None] ** 2 * second - np.diag(potential(x))
    augmented = np.zeros((n + 1, n + 1))
    augmented[:n, :n], augmented[:n, n] = horizon * a, horizon * source(x)
    return x, expm(augmented)


FIELDS = {
    "velocity": lambda x: 0.4 + 0.3 * np.sin(TAU * x),
    "sigma": lambda x: 0.3 + 0.1 * np.cos(TAU * x),
    "potential": lambda x: 0.5 + 0.4 * np.sin(2 * TAU * x),
    "source": lambda x: np.cos(TAU * x) + 0.2,
}


def steady_problem(horizon: float = 0.8) -> ConvectionDiffusion:
    @compiled(1, interval=math.inf)
    def sigma(x, t):
        return 0.3 + 0.1 * math.cos(2.0 * math.pi * x)

    nodes = np.arange(16) / 16
    return ConvectionDiffusion(
        FIELDS["velocity"](nodes)[None],
        lambda x: np.exp(np.sin(TAU * x[..., 0])),
        sigma,
        horizon=horizon,
        potential=FIELDS["potential"](nodes),
        source=FIELDS["source"](nodes),
    )


@pytest.mark.parametrize("how", [{"method": m, "dt": 1e-3} for m in SPECTRAL] + [{"rtol": 1e-3}, {"rtol": 1e-10}])
def test_everything_at_once_is_the_matrix_exponential(how):
    x, propagator = dense(64, *FIELDS.values(), 0.8)
    exact = (propagator @ np.append(np.exp(np.sin(TAU * x)), 1.0))[:-1]
    solution = solve(steady_problem(), num_points=64, **how)
    error = np.abs(values(solution) - exact).max()
    if "rtol" in how:
        assert error <= solution.attrs["error_estimate"] <= 1.01 * how["rtol"] * (math.e + 0.8 * 1.2)
        assert error > 1e-4 * how["rtol"]
    else:
        assert error < 1e-7


def manufactured(dim: int) -> tuple[ConvectionDiffusion, np.ndarray]:
    """u = e^t Π sin(τ x_i) with F, V and σ that depend on x and t; g makes it the solution."""

    def u(x, t):
        return np.exp(t) * np.sin(TAU * x).prod(-1)

    def gradient(x, t):
        s, c = np.sin(TAU * x), np.cos(TAU * x)
        parts = [TAU * c[..., a] * np.delete(s, a, -1).prod(-1) for a in range(dim)]
        return np.exp(t) * np.stack(parts, -1)

    def velocity(x, t):
        return 0.3 * np.cos(TAU * x) * np.cos(t)

    def potential(x, t):
        return 0.5 + 0.3 * np.cos(TAU * x[..., 0]) * np.sin(3 * t)

    def sigma(x, t):
        return 0.2 * (1.0 + 0.2 * np.sin(TAU * x[..., 0]) * np.cos(2 * t))

    def source(x, t):
        laplacian = -dim * TAU**2 * u(x, t)
        flow = (velocity(x, t) * gradient(x, t)).sum(-1)
        return -(u(x, t) + flow + 0.5 * sigma(x, t) ** 2 * laplacian - potential(x, t) * u(x, t))

    problem = ConvectionDiffusion(
        velocity, lambda x: u(x, 1.0), sigma, dim=dim, horizon=1.0, potential=potential, source=source
    )
    return problem, u(node_points(16, dim), 0.0)


@pytest.mark.parametrize(("method", "order"), [("spectral_rk4", 4), ("spectral_ab4", 4)])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_order_in_time_with_everything_variable(dim, method, order):
    problem, exact = manufactured(dim)
    steps = (20, 40) if dim == 3 else (40, 80)
    errors = [
        np.abs(values(solve(problem, num_points=16, dt=1 / n, method=method, times=[0.0])) - exact).max() for n in steps
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_the_order_of_semi_lagrangian_steps_with_potential_and_source():
    def u(x, t):
        return np.exp(t) * np.sin(TAU * x[..., 0])

    def velocity(x, t):
        return 0.3 * np.cos(TAU * x) * np.cos(t)

    def potential(x, t):
        return 0.5 + 0.3 * np.cos(TAU * x[..., 0]) * np.sin(3 * t)

    def source(x, t):
        gradient = TAU * np.exp(t) * np.cos(TAU * x[..., 0])
        diffusion = -0.5 * 0.04 * TAU**2 * u(x, t)
        return -(u(x, t) + velocity(x, t)[..., 0] * gradient + diffusion - potential(x, t) * u(x, t))

    problem = ConvectionDiffusion(
        velocity, lambda x: u(x, 1.0), 0.2, dim=1, horizon=1.0, potential=potential, source=source
    )
    errors = []
    for n in (8, 16):
        solution = solve(problem, num_points=512, dt=1 / n, method="semi_lagrangian", times=[0.0])
        errors.append(np.abs(values(solution) - u(node_points(512, 1), 0.0)).max())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


# bounds and other properties


@pytest.mark.filterwarnings("ignore::pdekit.ResolutionWarning")
@pytest.mark.parametrize("sigma", [0.0, 0.05, [0.2, 0.0]])
def test_semi_lagrangian_steps_keep_their_bound_under_killing(sigma):
    rng = np.random.default_rng(3)
    problem = ConvectionDiffusion(
        rng.uniform(-1, 1, (2, 12, 20)),
        rng.choice([-1.0, 1.0], (24, 40)),
        sigma,
        potential=GridField(rng.uniform(0.5, 3, (1, 12, 20)), "bilinear"),
        box=(1.0, 2.0),
    )
    solution = solve(problem, num_points=(24, 40), dt=0.02, method="semi_lagrangian", times=[0.0, 0.5, 1.0])
    largest = np.abs(solution.u).max(dim=("x", "y")).values
    assert (largest <= np.exp(-0.5 * np.array([1.0, 0.5, 0.0])) + 1e-12).all()


@pytest.mark.parametrize(
    "how",
    [
        {"method": "spectral_rk4", "dt": 0.02},
        {"method": "spectral_ab4", "dt": 0.01},
        {"method": "spectral_adaptive", "rtol": 1e-7},
        {"method": "spectral_krylov"},
        {"method": "semi_lagrangian", "dt": 0.05},
        {"rtol": 1e-8},
    ],
)
def test_several_fields_are_what_each_is_alone(how):
    rng = np.random.default_rng(1)
    several = rng.standard_normal((5, 7, 3))
    flow = 0.2 * rng.standard_normal((2, 3, 3))
    problem = ConvectionDiffusion(flow, several, 0.3, potential=0.3 + 0.1 * rng.standard_normal((3, 3)))
    together = solve(problem, num_points=(48, 40), times=[0.0, 0.4], **how)
    assert together.u.dims == ("time", "x", "y", "field")
    for k in range(3):
        alone = solve(problem.only(k), num_points=(48, 40), times=[0.0, 0.4], **how)
        np.testing.assert_allclose(together.u.values[..., k], alone.u.values, atol=2e-7)


def test_a_number_of_nodes_for_each_axis_changes_nothing_that_is_resolved():
    rng = np.random.default_rng(4)
    problem = ConvectionDiffusion(0.2 * rng.standard_normal((2, 3, 5)), rng.standard_normal((5, 3)), 0.4)
    fine = values(solve(problem, num_points=64, method="spectral_krylov"))
    for grid in ((32, 64), (64, 32)):
        other = values(solve(problem, num_points=grid, method="spectral_krylov"))
        np.testing.assert_allclose(other, fine[:: 64 // grid[0], :: 64 // grid[1]], atol=1e-6)


def test_a_box_is_another_way_to_write_lengths():
    rng = np.random.default_rng(5)
    flow, f = 0.3 * rng.standard_normal((2, 5, 5)), rng.standard_normal((5, 5))
    unit = solve(ConvectionDiffusion(flow, f, 0.2), num_points=32, method="spectral_krylov")
    metres = ConvectionDiffusion(1000 * flow, f, 200.0, box=(1000.0, 1000.0))
    np.testing.assert_allclose(values(solve(metres, num_points=32, method="spectral_krylov")), values(unit), atol=1e-12)


def test_an_initial_value_problem_runs_backward_in_all_its_parts():
    """v_t + G v_x = ½σ²v_xx - Vv + g with parts that depend on time, by a manufactured v = (1 + t) cos(τ(x - t))."""

    def v(x, t):
        return (1 + t) * np.cos(TAU * (x[..., 0] - t))

    def source(x, t):
        phase = TAU * (x[..., 0] - t)
        slope = -TAU * (1 + t) * np.sin(phase)
        change = np.cos(phase) - slope
        return change + (1 + t) * slope + 0.5 * (0.2 + 0.1 * t) ** 2 * TAU**2 * v(x, t) + t * v(x, t)

    problem = ConvectionDiffusion.from_initial_value(
        lambda x, t: np.full_like(x, 1 + t),
        lambda x: v(x, 0.0),
        lambda x, t: np.full(x.shape[:-1], 0.2 + 0.1 * t),
        dim=1,
        horizon=0.5,
        potential=lambda x, t: np.full(x.shape[:-1], t),
        source=source,
    )
    solution = solve(problem, num_points=16, dt=1e-2, method="spectral_rk4")
    np.testing.assert_allclose(values(solution), v(node_points(16, 1), 0.5), atol=1e-6)


def test_a_redrawn_velocity_with_potential_and_source():
    """A Krylov piece for each interval against RK4 with small steps."""
    problem = ConvectionDiffusion(
        RedrawnVelocity(6, 0.25, seed=1, dim=1),
        lambda x: np.sin(TAU * x[..., 0]),
        0.2,
        potential=np.array([0.1, 0.4, 0.9, 0.2]),
        source=np.array([1.0, 0.0, -1.0, 0.0]),
    )
    krylov = solve(problem, num_points=96, method="spectral_krylov", rtol=1e-10)
    small = solve(problem, num_points=96, method="spectral_rk4", dt=1 / 1000)
    free = solve(problem, num_points=96, rtol=1e-8)
    np.testing.assert_allclose(values(krylov), values(small), atol=1e-8)
    np.testing.assert_allclose(values(free), values(small), atol=3e-8)


# what cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvectionDiffusion(np.zeros((2, 4, 4)), np.ones((4, 4)), [0.1]), r"sigma: expected .*got \(1,\)"),
        (lambda: ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), [np.nan]), "sigma: expected finite values, got nan"),
        (lambda: ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1, box=(0.0,)), "box: expected 1 positive"),
        (lambda: ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1, box=(1.0, 1.0)), "box: expected 1 positive"),
        (
            lambda: ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1, potential=np.ones((2, 2))),
            r"potential: expected a number, a function, or node values of 1 axes, got shape \(2, 2\)",
        ),
        (
            lambda: ConvectionDiffusion(lambda x, t: 0 * x, np.ones((64, 2)), 0.1),
            r"dim: expected the number .* as terminal \(64, 2\) may be functions on 1 axes or one on 2",
        ),
        (
            lambda: ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1, domain="space"),
            "domain: expected functions, and no box",
        ),
        (
            lambda: solve(ConvectionDiffusion(lambda x, t: -x, lambda x: x[..., 0], 0.1, dim=1, domain="space")),
            "solve: expected a box, got domain='space'.*choose box",
        ),
        (
            lambda: solve(
                ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), lambda x, t: 0.1 + 0 * x[..., 0]),
                method="semi_lagrangian",
            ),
            "sigma: expected a number or a vector with method 'semi_lagrangian'",
        ),
        (
            lambda: solve(ConvectionDiffusion(np.zeros((2, 4, 4)), np.ones((4, 4)), 0.1), num_points=(32, 32, 32)),
            "num_points: expected one number or one for each of 2 axes",
        ),
        (
            lambda: solve(
                ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1, source=lambda x, t: np.nan * x[..., 0]),
                method="spectral_rk4",
            ),
            r"source\(x, t\): expected finite values, got nan",
        ),
    ],
)
def test_what_cannot_be_is_met_with_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# what was found by trying


@pytest.mark.parametrize("how", [{"method": "spectral_rk4", "dt": 0.05}, {"method": "spectral_krylov"}, {"rtol": 1e-6}])
def test_a_solve_with_noise_that_varies_continues_and_refuses_other_noise(tmp_path, how):
    x = np.arange(8) / 8
    flow, f = 0.3 * np.sin(TAU * x)[None], np.cos(TAU * x)

    def problem(size: float) -> ConvectionDiffusion:
        return ConvectionDiffusion(flow, f, GridField((0.3 + size * np.cos(TAU * x))[None], shape=()))

    path, whole = tmp_path / "restart.npz", solve(problem(0.1), num_points=24, times=[0.0, 0.5], **how)

    class Interrupted(Exception):
        pass

    steps, original = [], march.March._step

    def interrupt(self, state, stop):
        steps.append(1)
        if len(steps) == 2:
            raise Interrupted
        return original(self, state, stop)

    march.March._step = interrupt  # type: ignore[method-assign]
    try:
        with pytest.raises(Interrupted):
            solve(problem(0.1), num_points=24, times=[0.0, 0.5], checkpoint=path, checkpoint_seconds=0, **how)
    finally:
        march.March._step = original  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="made for sigma"):
        solve(problem(0.2), num_points=24, times=[0.0, 0.5], checkpoint=path, **how)
    again = solve(problem(0.1), num_points=24, times=[0.0, 0.5], checkpoint=path, **how)
    np.testing.assert_array_equal(again.u, whole.u)


@pytest.mark.parametrize("name", ["potential", "source", "sigma"])
def test_waves_that_the_grid_takes_for_slower_ones_are_warned_about(name):
    def fast(x, t):
        return 0.4 * (1.5 + np.cos(32 * TAU * x[..., 0]))

    fields = {"sigma": 0.2, name: fast}
    problem = ConvectionDiffusion(np.zeros((1, 4)), lambda x: np.cos(TAU * x[..., 0]), **fields)
    with pytest.warns(ResolutionWarning, match=f"{name}: the grid of 32 nodes cannot hold .*num_points >= "):
        solve(problem, num_points=32, dt=0.01, method="spectral_rk4")
    problem = ConvectionDiffusion(np.zeros((1, 4)), lambda x: np.cos(TAU * x[..., 0]), **fields)
    solve(problem, num_points=256, dt=0.01, method="spectral_rk4")


@pytest.mark.parametrize("rate", [-3.0, -20.0])
@pytest.mark.parametrize("how", [{"rtol": 1e-8}, {"method": "spectral_krylov", "rtol": 1e-8}])
def test_growth_leaves_the_tolerance_relative_to_what_u_may_reach(rate, how):
    x = np.arange(8) / 8
    grown = ConvectionDiffusion(0.3 * np.sin(TAU * x)[None], np.cos(TAU * x), 0.3, potential=rate)
    still = ConvectionDiffusion(0.3 * np.sin(TAU * x)[None], np.cos(TAU * x), 0.3)
    reference = values(solve(still, num_points=64, rtol=1e-12)) * math.exp(-rate)
    solution = solve(grown, num_points=64, **how)
    error = np.abs(values(solution) - reference).max()
    estimate = solution.attrs.get("error_estimate", solution.attrs["error_estimate_time"])
    assert error <= 1.01 * estimate + 1e-13 * math.exp(-rate)
    assert estimate <= 1e-8 * math.exp(-rate)


def test_a_source_alone_sets_the_scale_of_the_tolerance():
    problem = ConvectionDiffusion(np.zeros((1, 4)), np.zeros(4), 0.3, source=np.cos(TAU * np.arange(8) / 8))
    solution = solve(problem, num_points=64, method="spectral_krylov", rtol=1e-6)
    rate = 0.5 * 0.09 * TAU**2
    np.testing.assert_allclose(values(solution), np.cos(TAU * solution.x) * (1 - math.exp(-rate)) / rate, atol=2e-6)
    assert solution.attrs["num_steps"] <= 5


def test_functions_are_asked_within_their_box_alone():
    def inside(x):
        assert ((x >= 10.0 - 0.1) & (x <= 14.0 + 0.1)).all() or x.shape[0] == 32  # the look beyond the edge
        return x[..., 0]

    def sigma(x, t):
        return 0.1 + 0.0 * inside(x)

    problem = ConvectionDiffusion(
        np.zeros((1, 4)), lambda x: np.cos(0.5 * TAU * inside(x)), sigma, box=((10.0, 14.0),), potential=1.0
    )
    assert problem.num_fields is None
    with pytest.raises(ValueError, match="interval: expected a function that does not depend on t"):
        ConvectionDiffusion(
            np.zeros((1, 4)),
            np.ones(4),
            0.1,
            box=((10.0, 14.0),),
            potential=FunctionField(lambda x, t: t * (x[..., 0] > 10.0), 1, math.inf),
        )


@pytest.mark.parametrize("box", ["ab", ((0, 1), 2), (1j,), (True,), ("1",), {}])
def test_a_box_that_is_none_is_met_with_one_line(box):
    with pytest.raises(ValueError, match="box: expected 1 positive lengths, or ends"):
        ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1, box=box)
