"""solve(): closed forms, convergence orders, the maximum principle, and errors that say what to do."""

from __future__ import annotations

import numpy as np
import pytest

from pdekit import (
    ConvectionDiffusion,
    GridVelocity,
    RedrawnVelocity,
    ResolutionWarning,
    UnstableError,
    choose_method,
    solve,
)
from pdekit.field import node_points

TAU = 2.0 * np.pi


def mode(x: np.ndarray, k: tuple[int, ...]) -> np.ndarray:
    return np.cos(TAU * (x @ np.array(k, dtype=float)))


def constant_drift(drift: tuple[float, ...], sigma: float, k: tuple[int, ...]) -> ConvectionDiffusion:
    d = len(drift)
    velocity = np.broadcast_to(np.array(drift).reshape(-1, *[1] * d), (d, *[8] * d))
    return ConvectionDiffusion(velocity, lambda x: mode(x, k), sigma)


def constant_drift_solution(
    x: np.ndarray, t: float, drift: tuple[float, ...], sigma: float, k: tuple[int, ...]
) -> np.ndarray:
    decay = np.exp(-0.5 * sigma**2 * TAU**2 * np.dot(k, k) * (1.0 - t))
    return decay * mode(x + (1.0 - t) * np.array(drift), k)


def smooth_velocity(x: np.ndarray, t: float) -> np.ndarray:
    """Time-dependent and smooth, so that every stage of a stepper matters."""
    a, b = TAU * x[..., 0], TAU * x[..., 1]
    return np.stack([0.4 * np.sin(a) * np.cos(b + t) + 0.3, 0.3 * np.cos(a - 2 * t) * np.sin(b)], axis=-1)


def bump(x: np.ndarray) -> np.ndarray:
    return np.exp(np.sin(TAU * x[..., 0])) * np.cos(TAU * x[..., 1])


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4"])
@pytest.mark.parametrize(
    ("drift", "k"), [((0.37,), (2,)), ((0.37, -0.21), (1, 2)), ((0.37, -0.21, 0.11), (1, 0, 2))], ids=["1d", "2d", "3d"]
)
def test_a_drifting_mode_decays_exactly(method, drift, k):
    n = 16 if len(drift) == 3 else 32
    solution = solve(constant_drift(drift, 0.1, k), num_points=n, dt=1e-3, method=method, times=[0.0, 0.25, 1.0])
    points = node_points(n, len(drift))
    for t in solution.time.values:
        exact = constant_drift_solution(points, t, drift, 0.1, k)
        np.testing.assert_allclose(solution.u.sel(time=t).values, exact, atol=2e-8)


@pytest.mark.parametrize(
    ("method", "steps"),
    [("spectral_rk4", (20, 40, 80)), ("spectral_ab4", (160, 320, 640)), ("semi_lagrangian", (5, 10, 20))],
)
def test_observed_order_is_the_declared_one(method, steps):
    from pdekit.equation.semilagrangian import SemiLagrangian
    from pdekit.equation.steppers import StepperAB4, StepperRK4

    order = {"spectral_rk4": StepperRK4, "spectral_ab4": StepperAB4, "semi_lagrangian": SemiLagrangian}[method].order
    problem = ConvectionDiffusion(smooth_velocity, bump, 0.2, dim=2)
    n = 256 if method == "semi_lagrangian" else 48
    # against the same grid solved with a far smaller step, by the most accurate method: only dt is left
    reference = (
        solve(problem, num_points=n if method != "semi_lagrangian" else 64, dt=1e-3, method="spectral_rk4").u[0].values
    )
    stride = n // len(reference)
    errors = [
        np.abs(solve(problem, num_points=n, dt=1 / s, method=method).u[0].values[::stride, ::stride] - reference).max()
        for s in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2, (slope, errors)


def test_the_adaptive_method_delivers_its_tolerance():
    problem = ConvectionDiffusion(smooth_velocity, bump, 0.1, dim=2)
    reference = solve(problem, num_points=48, dt=5e-4, method="spectral_rk4").u[0].values
    errors, counts = [], []
    for rtol in (1e-4, 1e-6, 1e-8):
        solution = solve(problem, num_points=48, rtol=rtol, times=[0.0, 0.333, 1.0])
        assert solution.attrs["method"] == "spectral_adaptive"
        errors.append(np.sqrt(np.mean((solution.u[0].values - reference) ** 2)) / np.sqrt(np.mean(reference**2)))
        counts.append(solution.attrs["num_steps"])
    assert all(error < 10 * rtol for error, rtol in zip(errors, (1e-4, 1e-6, 1e-8), strict=True)), errors
    assert errors[0] > errors[1] > errors[2]
    assert counts[0] < counts[1] < counts[2]


def test_fft_libraries_agree():
    problem = ConvectionDiffusion(smooth_velocity, bump, 0.1, dim=2)
    rocket = solve(problem, num_points=33, dt=1e-2, fft="rocket", method="spectral_rk4").u.values
    scipy = solve(problem, num_points=33, dt=1e-2, fft="scipy", method="spectral_rk4").u.values
    np.testing.assert_allclose(rocket, scipy, atol=1e-13)


@pytest.mark.filterwarnings("ignore::pdekit.ResolutionWarning")  # no grid resolves these; the bound holds anyway
@pytest.mark.parametrize("sigma", [0.0, 1e-4, 0.01, 0.1])
@pytest.mark.parametrize("continuation", ["trigonometric", "bicubic", "bilinear"])
def test_semi_lagrangian_keeps_the_maximum_principle_on_rough_fields(sigma, continuation):
    rng = np.random.default_rng(3)
    velocity = GridVelocity(rng.uniform(-1, 1, (2, 32, 32)), continuation)
    terminal = rng.uniform(-1, 1, (48, 48))
    solution = solve(
        ConvectionDiffusion(velocity, terminal, sigma),
        num_points=48,
        dt=0.02,
        method="semi_lagrangian",
        times=[0, 0.5, 1],
    )
    assert np.abs(solution.u).max() <= np.abs(terminal).max() * (1 + 1e-12)
    assert solution.u.values[0].min() >= terminal.min() - 1e-12


@pytest.mark.parametrize("dim", [1, 3])
def test_semi_lagrangian_follows_a_shift_in_other_dimensions(dim):
    drift, k = (0.3, -0.2, 0.15)[:dim], (1, 1, 0)[:dim]
    n = 64 if dim == 1 else 32
    solution = solve(constant_drift(drift, 0.05, k), num_points=n, dt=0.05, method="semi_lagrangian")
    exact = constant_drift_solution(node_points(n, dim), 0.0, drift, 0.05, k)
    assert np.abs(solution.u[0].values - exact).max() < (2e-3 if dim == 1 else 2e-2)
    shift_by_cells = solve(constant_drift((0.5,) * dim, 0.0, k), num_points=n, dt=0.25, method="semi_lagrangian")
    exact = constant_drift_solution(node_points(n, dim), 0.0, (0.5,) * dim, 0.0, k)
    np.testing.assert_allclose(shift_by_cells.u[0].values, exact, atol=1e-12)  # departure points are nodes


def test_methods_agree_where_all_of_them_resolve():
    problem = ConvectionDiffusion(smooth_velocity, bump, 0.15, dim=2)
    spectral = solve(problem, num_points=64, dt=5e-3, method="spectral_rk4").u[0].values
    monotone = solve(problem, num_points=256, dt=5e-3, method="semi_lagrangian").u[0].values[::4, ::4]
    assert np.abs(spectral - monotone).max() < 2e-3


def test_without_noise_characteristics_and_semi_lagrangian_agree():
    problem = ConvectionDiffusion(smooth_velocity, bump, 0.0, dim=2)
    exact = solve(problem, num_points=32, dt=0.01, method="characteristics", times=[0.0, 0.5, 1.0])
    monotone = solve(problem, num_points=256, dt=0.01, method="semi_lagrangian", times=[0.0, 0.5, 1.0])
    assert np.abs(exact.u.values - monotone.u.values[:, ::8, ::8]).max() < 5e-3


def test_rigid_rotation_of_characteristics():
    """F = Ω × (x - c) turns every point by the angle Ω; the closed form needs no periodicity near the centre."""

    def rotation(x, t):
        return TAU / 4 * np.stack([-(x[..., 1] - 0.5), x[..., 0] - 0.5], axis=-1)

    def blob(x):
        return np.exp(-((x[..., 0] - 0.6) ** 2 + (x[..., 1] - 0.5) ** 2) / 0.01)

    u = (
        solve(ConvectionDiffusion(rotation, blob, 0.0, dim=2), num_points=40, dt=0.02, method="characteristics")
        .u[0]
        .values
    )
    x = node_points(40, 2)
    turned = np.stack([0.5 - (x[..., 1] - 0.5), 0.5 + (x[..., 0] - 0.5)], axis=-1)
    np.testing.assert_allclose(u, blob(turned), atol=1e-6)


def test_initial_value_problem_is_the_time_reversal():
    """Remark 1: v_t + G·∇v = ½σ²Δv carries v_0 along +G, with its own closed form."""
    drift = np.array([0.3, -0.2])
    problem = ConvectionDiffusion.from_initial_value(
        lambda x, t: np.broadcast_to(drift * (1 + t), x.shape), lambda x: mode(x, (1, 1)), 0.1, dim=2
    )
    solution = solve(problem, num_points=24, dt=1e-2)
    x = node_points(24, 2)
    travelled = drift * 1.5  # ∫(1 + t) dt over [0, 1]
    exact = np.exp(-0.5 * 0.01 * TAU**2 * 2) * mode(x - travelled, (1, 1))
    np.testing.assert_allclose(solution.u[0].values, exact, atol=1e-8)


def test_redrawn_velocity_is_solved_interval_by_interval():
    redrawn = RedrawnVelocity(num_points=8, interval=0.25, seed=5, continuation="trigonometric")
    together = solve(ConvectionDiffusion(redrawn, bump, 0.2), num_points=48, dt=1 / 200, method="spectral_rk4")
    field: np.ndarray | None = None
    for n in (3, 2, 1, 0):
        terminal = bump if field is None else field
        piece = ConvectionDiffusion(redrawn.field(n), terminal, 0.2, horizon=0.25)
        field = solve(piece, num_points=48, dt=1 / 200, method="spectral_rk4").u[0].values
    np.testing.assert_allclose(together.u[0].values, field, atol=1e-12)
    monotone = solve(ConvectionDiffusion(redrawn, bump, 0.2), num_points=192, dt=1 / 100, method="semi_lagrangian")
    assert np.abs(monotone.u[0].values[::4, ::4] - field).max() < 5e-3


def test_auto_chooses_by_peclet_number_and_steepening():
    rough = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64))
    assert choose_method(ConvectionDiffusion(rough, bump, 0.1), 128)[0] == "spectral_krylov"
    assert choose_method(ConvectionDiffusion(rough, bump, 0.01), 128)[0] == "semi_lagrangian"
    assert choose_method(constant_drift((0.3, 0.2), 0.0, (1, 1)), 128)[0] == "spectral_krylov"
    with pytest.warns(ResolutionWarning, match="u is not resolved"):
        solution = solve(ConvectionDiffusion(rough, bump, 0.02), num_points=64, dt=0.02)
    assert solution.attrs["method"] == "semi_lagrangian"
    assert "Péclet" in solution.attrs["method_reason"]


def test_auto_sees_which_way_the_flow_steepens():
    """In 1-D, paths that spread (F' > 0 on most of the box) steepen u(·, 0) and paths that gather smooth it."""

    def spreading(x, t):
        s = x - np.floor(x) - 0.5
        return 0.5 * (np.tanh(10 * s) - 2 * s * np.tanh(5))

    def f(x):
        return np.cos(TAU * x[..., 0] + 0.5)

    spread = ConvectionDiffusion(spreading, f, 0.003, dim=1)
    gather = ConvectionDiffusion(lambda x, t: -spreading(x, t), f, 0.003, dim=1)
    assert choose_method(spread, 256)[0] == "semi_lagrangian"
    assert choose_method(gather, 256)[0] == "spectral_rk4"


def test_an_unstable_solve_stops_with_a_reason():
    rough = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64))
    with pytest.raises(UnstableError, match=r"at t = 0\.\d+.*Péclet number \d+.*Courant number.*semi_lagrangian"):
        solve(ConvectionDiffusion(rough, bump, 0.01), num_points=64, dt=5e-3, method="spectral_rk4")


def test_a_step_too_large_for_explicit_convection_stops_with_a_reason():
    problem = ConvectionDiffusion(smooth_velocity, bump, 0.05, dim=2)
    with pytest.raises(UnstableError, match="smaller dt"), pytest.warns(ResolutionWarning, match="dt: 0.05 lies out"):
        solve(problem, num_points=128, dt=0.05, method="spectral_rk4")


def test_dataset_carries_coordinates_and_provenance(tmp_path):
    import xarray as xr

    solution = solve(constant_drift((0.3, 0.2), 0.1, (1, 0)), num_points=16, dt=0.3, times=[1.0, 0.5, 0.0], seed=7)
    assert solution.u.dims == ("time", "x", "y")
    np.testing.assert_allclose(solution.time, [0.0, 0.5, 1.0])  # 0.3 does not divide 1: four steps
    assert solution.attrs["num_steps"] == 4
    assert {"sigma", "dt", "method", "method_reason", "continuation", "versions", "seed"} <= set(solution.attrs)
    solution.to_netcdf(tmp_path / "u.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "u.nc", engine="h5netcdf") as stored:
        np.testing.assert_array_equal(stored.u, solution.u)
        assert stored.attrs["sigma"] == 0.1


@pytest.mark.parametrize("layout", ["fortran", "float32", "read_only", "strided"])
def test_any_array_layout_gives_the_same_solution(layout):
    rng = np.random.default_rng(1)
    velocity, terminal = (
        rng.uniform(-1, 1, (2, 16, 16)).astype(np.float32),
        rng.uniform(-1, 1, (16, 16)).astype(np.float32),
    )
    expected = solve(ConvectionDiffusion(velocity.astype(float), terminal.astype(float), 0.4), num_points=48, dt=0.02).u

    def convert(a):
        if layout == "fortran":
            return np.asfortranarray(a, dtype=float)
        if layout == "strided":
            return np.repeat(a.astype(float), 2, axis=-1)[..., ::2]
        a = a.copy() if layout == "float32" else a.astype(float)
        a.flags.writeable = False
        return a

    found = solve(ConvectionDiffusion(convert(velocity), convert(terminal), 0.4), num_points=48, dt=0.02).u
    np.testing.assert_array_equal(found, expected)


NODES = np.zeros((2, 8, 8))
JUMPING = RedrawnVelocity(8, 0.01, seed=0)
TERMINAL = np.ones((8, 8))
NAN = np.where(np.arange(128).reshape(2, 8, 8) == 77, np.nan, 0.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvectionDiffusion(NODES, TERMINAL, -0.1), "sigma: expected a finite number >= 0, got -0.1"),
        (lambda: ConvectionDiffusion(NODES, TERMINAL, float("nan")), "sigma: expected a finite number >= 0, got nan"),
        (
            lambda: ConvectionDiffusion(NAN, TERMINAL, 0.1),
            r"velocity: expected finite values, got nan at index \(1, 1, 5\)",
        ),
        (lambda: ConvectionDiffusion(np.zeros((3, 8, 8)), TERMINAL, 0.1), r"shape \(d, N, ..., N\).*got \(3, 8, 8\)"),
        (lambda: ConvectionDiffusion(NODES, np.ones((8, 1)), 0.1), r"terminal: expected .*got \(8, 1\)"),
        (
            lambda: ConvectionDiffusion(NODES, np.ones(8), 0.1),
            "dimensions do not agree: velocity has 2, terminal has 1",
        ),
        (lambda: ConvectionDiffusion(lambda x, t: x, lambda x: x[..., 0], 0.1), "dim: expected the number of space"),
        (lambda: ConvectionDiffusion(NODES, TERMINAL, 0.1, horizon=0.0), "horizon: expected a positive time, got 0"),
        (lambda: GridVelocity(NODES, "quadratic"), "continuation: expected one of .*got 'quadratic'"),
        (lambda: GridVelocity(NODES.astype(complex)), "velocity: expected real numbers, got dtype complex128"),
        (
            lambda: solve(ConvectionDiffusion(NODES, TERMINAL, 0.1), num_points=4),
            "num_points: expected a whole number of at least 8, got 4",
        ),
        (lambda: solve(ConvectionDiffusion(NODES, TERMINAL, 0.1), dt=-1.0), "dt: expected a positive step, got -1"),
        (
            lambda: solve(ConvectionDiffusion(NODES, TERMINAL, 0.1), method="magic"),
            "method: expected 'auto' or .*'magic'",
        ),
        (
            lambda: solve(ConvectionDiffusion(NODES, TERMINAL, 0.1), method="characteristics"),
            "expected sigma = 0, got 0.1",
        ),
        (lambda: solve(ConvectionDiffusion(NODES, TERMINAL, 0.1), times=[2.0]), r"times: expected values in \[0, 1\]"),
        (
            lambda: solve(ConvectionDiffusion(NODES, TERMINAL, 0.1), fft="cufft"),
            "fft: expected one of auto, .*got 'cufft'",
        ),
        (
            lambda: solve(
                ConvectionDiffusion(RedrawnVelocity(8, 0.01, 0), TERMINAL, 0.1), dt=0.004, method="spectral_rk4"
            ),
            "whole fraction of the interval between jumps 0.01, got 0.004",
        ),
        (
            lambda: solve(ConvectionDiffusion(lambda x, t: x[..., 0], TERMINAL, 0.1)),
            r"velocity\(x, t\): expected shape \(128, 128, 2\).*got \(128, 128\)",
        ),
    ],
)
def test_bad_input_is_met_with_one_clear_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_grid_coarser_than_the_velocitys_cuts_its_modes_and_does_not_fold_them():
    """F has the one mode 30; a grid of 32 nodes cannot hold it, and sampled there it would pass for the mode 2."""
    x = np.arange(64) / 64
    nodes = np.stack([np.broadcast_to(np.sin(TAU * 30 * x)[:, None], (64, 64)), np.zeros((64, 64))])
    f = node_points(64, 2)
    terminal = np.cos(TAU * f[..., 0])
    for continuation in ("trigonometric", "bicubic"):
        problem = ConvectionDiffusion(GridVelocity(nodes, continuation), terminal, 0.2)
        assert np.abs(problem.velocity.nodes(32, 0.0)).max() < 0.02
        with pytest.warns(ResolutionWarning, match="32 nodes cannot hold 1 of F .*num_points >= 62"):
            coarse = float(solve(problem, num_points=32, dt=5e-3, method="spectral_rk4").u[0, 0, 0])
        fine = float(solve(problem, num_points=128, dt=5e-3, method="spectral_rk4").u[0, 0, 0])
        assert abs(coarse - fine) < 0.03


def test_a_flow_that_rests_at_first_is_followed_and_described_all_the_same():
    def swirl(x, t):
        return 3.0 * np.sin(np.pi * t) * np.sin(TAU * x[..., ::-1])

    problem = ConvectionDiffusion(swirl, bump, 0.0, dim=2)
    exact = solve(problem, num_points=32, dt=1e-3, method="characteristics").u[0].values
    with pytest.warns(ResolutionWarning, match="u is not resolved"):
        large_steps = solve(problem, num_points=256, dt=0.25, method="semi_lagrangian")
    assert np.sqrt(np.mean((large_steps.u[0].values[::8, ::8] - exact) ** 2)) < 0.2
    assert large_steps.attrs["courant"] > 100


def test_stored_times_are_the_numbers_asked_for():
    problem = constant_drift((0.3, 0.2), 0.1, (1, 0))
    tenths = np.arange(11) / 10
    fixed = solve(problem, num_points=16, dt=0.1, times=tenths)
    np.testing.assert_array_equal(fixed.time, tenths)
    adaptive = solve(problem, num_points=16, dt=0.5, rtol=1e-6, times=np.linspace(0, 1, 12))
    np.testing.assert_array_equal(adaptive.time, np.linspace(0, 1, 12))
    points = node_points(16, 2)
    for t in adaptive.time.values:
        exact = constant_drift_solution(points, t, (0.3, 0.2), 0.1, (1, 0))
        np.testing.assert_allclose(adaptive.u.sel(time=t), exact, atol=1e-5)


def test_a_three_dimensional_velocity_costs_nothing_until_it_is_used():
    import tracemalloc

    values = np.ones((3, 32, 32, 32))
    tracemalloc.start()
    GridVelocity(values)
    assert tracemalloc.get_traced_memory()[1] < 10 * values.nbytes
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: solve(constant_drift((0.1, 0.2), 0.1, (1, 1)), num_points=16.5),
            "whole number of at least 8, got 16.5",
        ),
        (
            lambda: solve(ConvectionDiffusion(lambda x, t: x, lambda x: x[..., 0], 0.1, dim=4)),
            "1, 2 or 3 space dim.*got 4",
        ),
        (lambda: solve(constant_drift((0.1, 0.2), 0.1, (1, 1)), rtol=0.0), "rtol: expected a positive number, got 0"),
        (
            lambda: solve(constant_drift((0.1,), 0.0, (1,)), method="characteristics", checkpoint="c.npz"),
            "checkpoint: expected a method that steps through time",
        ),
        (
            lambda: solve(constant_drift((0.1,), 0.1, (1,)), method="semi_lagrangian", fft="foo"),
            "fft: expected one of auto, .*got 'foo'",
        ),
        (
            lambda: ConvectionDiffusion.from_initial_value(RedrawnVelocity(8, 0.1, 0), bump, 0.1),
            "does not jump in time, got a redrawn one",
        ),
        (lambda: RedrawnVelocity(8, 0.1, 0, continuation="cubist"), "continuation: expected one of .*got 'cubist'"),
        (lambda: RedrawnVelocity(8, 0.1, 0, dim=4), "dim: expected 1, 2 or 3, got 4"),
        (lambda: ConvectionDiffusion(NODES, np.ones((0, 0)), 0.1), r"terminal: expected node values .*got \(0, 0\)"),
    ],
)
def test_more_bad_input_is_met_with_one_clear_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_characteristics_leave_a_file_that_is_not_theirs(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("precious")
    with pytest.raises(ValueError, match="checkpoint"):
        solve(constant_drift((0.1,), 0.0, (1,)), method="characteristics", checkpoint=path)
    assert path.read_text() == "precious"
