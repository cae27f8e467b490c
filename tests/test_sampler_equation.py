"""The sampler for the equation in full: noise of every kind, potentials, sources, boxes, several functions."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

from pdekit import (
    Control,
    ConvectionDiffusion,
    FunctionVelocity,
    Sampling,
    Tolerance,
    characteristics,
    compiled,
    feynman_kac,
    feynman_kac_gradient,
    multilevel,
    sample_paths,
    solve,
)
from pdekit.characteristics import without_noise
from pdekit.field import FunctionField, GridField, node_points
from pdekit.numerics.lanes import LANES
from pdekit.paths.brownian import GIVEN
from pdekit.paths.diffusion import signs_of_blocks
from pdekit.paths.simulation import Simulation
from pdekit.runtime.kernels import static
from pdekit.series import GridSeries

TAU = 2.0 * np.pi
quiet = pytest.mark.filterwarnings("ignore::pdekit.paths.estimate.BiasWarning")


def close(estimate, exact) -> bool:
    """Within four standard errors of sampling and, where it was estimated, of the time step."""
    error = estimate.standard_error if estimate.bias_estimate is None else estimate.total_error()
    return bool((np.abs(estimate.mean - exact) < 4.0 * error).all())


# closed forms


@quiet
@pytest.mark.parametrize("theta", [0.0, 0.7])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_harmonic_potential_meets_mehler(dim, theta):
    """dX = -θX dt + σ dB killed at rate ½κ|x|² in all of R^d, f = 1: u = exp(-½A|x|² - dC) by a Riccati equation."""
    sigma, kappa, horizon = 0.8, 1.5, 1.2
    rate = math.sqrt(theta**2 + kappa * sigma**2)
    c, s = math.cosh(rate * horizon), math.sinh(rate * horizon)
    a = kappa * s / (rate * c + theta * s)
    log = 0.5 * (math.log(c + theta / rate * s) - theta * horizon)
    problem = ConvectionDiffusion(
        lambda x, t: -theta * x,
        lambda x: np.ones(x.shape[:-1]),
        sigma,
        dim=dim,
        horizon=horizon,
        potential=lambda x, t: 0.5 * kappa * (x**2).sum(-1),
        domain="space",
    )
    x = np.linspace(-1.0, 2.0, 3 * dim).reshape(3, dim)
    estimate = feynman_kac(problem, x, num_paths=8_000, num_steps=64, rng=dim, bias=True)
    assert close(estimate, np.exp(-0.5 * a * (x**2).sum(-1) - dim * log))
    assert estimate.standard_error.max() < 5e-3


def plane_wave(dim: int, columns: int, box, seed: int = 0) -> tuple[ConvectionDiffusion, np.ndarray, np.ndarray]:
    """A wave in a box with a matrix of noise, a constant F, V and a source of the same shape: u, points."""
    rng = np.random.default_rng(seed)
    lengths = np.array([b - a for a, b in box])
    k = TAU * np.arange(1, dim + 1) / lengths
    drift, sigma, v = rng.standard_normal(dim), 0.15 * lengths[:, None] * rng.standard_normal((dim, columns)), 0.6
    problem = ConvectionDiffusion(
        np.broadcast_to(drift[(slice(None), *[None] * dim)], (dim, *[2] * dim)),
        lambda x: np.exp(1j * (x @ k)).real,
        sigma,
        horizon=0.7,
        potential=v,
        source=FunctionField(lambda x, t: np.cos(x @ k), dim, math.inf),
        box=box,
    )
    x = rng.uniform(size=(4, dim)) * lengths
    rate = v + 0.5 * k @ sigma @ sigma.T @ k - 1j * (k @ drift)
    decay = np.exp(-0.7 * rate)
    return problem, (np.exp(1j * (x @ k)) * (decay + (1.0 - decay) / rate)).real, x


@quiet
@pytest.mark.parametrize(("dim", "columns"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 3)])
def test_a_matrix_of_noise_in_a_box_with_units(dim, columns):
    box = ((-1.0, 2.0), (0.5, 2.0), (0.0, 0.3))[:dim]
    problem, exact, x = plane_wave(dim, columns, box)
    assert close(feynman_kac(problem, x, num_paths=10_000, num_steps=16, rng=1, bias=True), exact)
    for scheme, sampling in itertools.product(("euler", "heun"), (Sampling(antithetic=True), Sampling(qmc=True))):
        estimate = feynman_kac(
            problem, x, num_paths=4_096, num_steps=16, rng=2, scheme=scheme, sampling=sampling, bias=True
        )
        assert close(estimate, exact)


def test_a_vector_of_noise_is_a_diagonal_matrix_and_a_number_its_multiple_of_one():
    swirl = np.random.default_rng(0).standard_normal((2, 4, 4))
    f = np.random.default_rng(1).standard_normal((8, 8))
    means = [
        feynman_kac(ConvectionDiffusion(swirl, f, sigma), [[0.1, 0.3]], num_paths=500, num_steps=8, rng=0).mean
        for sigma in (
            0.2,
            [0.2, 0.2],
            [[0.2, 0.0], [0.0, 0.2]],
            [[0.2, 0.0, 0.0], [0.0, 0.2, 0.0]],
            lambda x, t: np.full(x.shape[:-1], 0.2),
        )
    ]
    for other in (means[1], means[2], means[4]):
        np.testing.assert_allclose(other, means[0], rtol=1e-5)  # a table in single precision
    assert abs(means[3] - means[0]) < 0.3  # other increments


@quiet
@pytest.mark.parametrize("scheme", ["euler", "heun"])
def test_geometric_brownian_motion_in_the_whole_space(scheme):
    """dX = μX dt + sX dB, killed at rate r: E X^n e^(-rT) = x^n exp(nμ + ½n(n - 1)s² - r) at T = 1."""
    mu, s, r = 0.1, 0.4, 0.05
    n = np.arange(1, 4)
    problem = ConvectionDiffusion(
        lambda x, t: mu * x,
        lambda x: x**n,
        lambda x, t: s * x[..., 0],
        dim=1,
        potential=r,
        domain="box",
    )
    problem = replace_domain(problem, lambda x, t: np.full(x.shape[:-1], r))
    x = np.array([[0.5], [1.0], [2.0]])
    estimate = feynman_kac(problem, x, num_paths=20_000, num_steps=32, rng=3, scheme=scheme, bias=True)
    assert estimate.scheme == ("platen" if scheme == "heun" else "euler")
    assert estimate.mean.shape == estimate.standard_error.shape == (3, 3)
    assert close(estimate, x**n * np.exp(n * mu + 0.5 * n * (n - 1) * s**2 - r))


def replace_domain(problem: ConvectionDiffusion, potential) -> ConvectionDiffusion:
    return replace(problem, potential=potential, domain="space")


@quiet
def test_an_ornstein_uhlenbeck_process_with_noise_that_grows():
    """dX = -X dt + σ(t) dB, σ = ½(1 + t): the variance is ∫ e^(-2(T - t)) σ²."""
    problem = ConvectionDiffusion(
        lambda x, t: -x, lambda x: x[..., 0] ** 2, lambda x, t: np.full(x.shape[:-1], 0.5 * (1 + t)), dim=1,
        domain="space",
    )  # fmt: skip
    t = np.polynomial.legendre.leggauss(20)[0] * 0.5 + 0.5
    weights = np.polynomial.legendre.leggauss(20)[1] * 0.5
    exact = 2.25 * math.exp(-2) + weights @ (np.exp(-2 * (1 - t)) * 0.25 * (1 + t) ** 2)
    estimate = feynman_kac(problem, [[1.5]], num_paths=20_000, num_steps=32, bias=True, rng=0)
    assert estimate.scheme == "heun"
    assert close(estimate, exact)


# a solution made up, with everything that depends on x and t


def manufactured(dim: int, noise: str, box=None, sigma_size: float = 0.3, still: bool = False) -> tuple:
    """u = e^(t/2) cos(k·x) with F, σ and V that depend on x and t; g makes it the solution."""
    k = TAU * np.arange(1, dim + 1) / dim
    k = TAU * np.ones(dim) if dim > 1 else np.array([TAU])

    def phase(x):
        return x @ k

    def time(t):
        return 0.0 if still else t

    def u(x, t):
        return np.exp(0.5 * time(t)) * np.cos(phase(x))

    def velocity(x, t):
        return 0.4 * np.cos(TAU * x[..., ::-1] + 0.3) * np.cos(2.0 * time(t)) + 0.2

    def potential(x, t):
        return 0.5 + 0.4 * np.cos(TAU * x[..., 0]) * np.sin(3.0 * time(t) + 1.0)

    def sigma(x, t):
        if noise == "none":
            return np.zeros(x.shape[:-1])
        if noise == "constant":
            return np.full(x.shape[:-1], sigma_size)
        if noise == "time":
            return np.full(x.shape[:-1], sigma_size * (1.0 + 0.5 * np.sin(3.0 * time(t))))
        number = sigma_size * (1.0 + 0.4 * np.sin(TAU * x[..., 0] + time(t)))
        if noise == "number":
            return number
        if noise == "vector":
            return np.stack([number * (1.0 + 0.2 * np.cos(TAU * x[..., -1 - a])) for a in range(dim)], -1)
        rows = [
            [number * np.cos(TAU * x[..., -1] + a + 2 * j) + 0.1 * (a == j) for j in range(dim)] for a in range(dim)
        ]
        return np.moveaxis(np.array(rows), (0, 1), (-2, -1))

    def covariance(x, t):
        s = sigma(x, t)
        if s.ndim == x.ndim - 1:
            return s[..., None, None] ** 2 * np.eye(dim)
        if s.ndim == x.ndim:
            return s[..., None] ** 2 * np.eye(dim)
        return s @ np.swapaxes(s, -1, -2)

    def source(x, t):
        spread = -0.5 * np.einsum("i,...ij,j", k, covariance(x, t), k) * u(x, t)
        flow = -(velocity(x, t) @ k) * np.exp(0.5 * time(t)) * np.sin(phase(x))
        grown = 0.0 if still else 0.5 * u(x, t)
        return -(grown + flow + spread - potential(x, t) * u(x, t))

    interval = math.inf if still else 0.0
    shape = {"vector": (dim,), "matrix": (dim, dim)}.get(noise, ())
    problem = ConvectionDiffusion(
        FunctionVelocity(velocity, dim, interval),
        lambda x: u(x, 1.0),
        {"none": 0.0, "constant": sigma_size}.get(noise, FunctionField(sigma, dim, interval, shape)),
        potential=FunctionField(potential, dim, interval),
        source=FunctionField(source, dim, interval),
    )
    return problem, u


def one_step(problem: ConvectionDiffusion, u, x: np.ndarray, dt: float, scheme: str) -> np.ndarray:
    """E u after a step at each point, less u before it: by quadrature over the increments and both signs, exactly."""
    problem = replace(problem, horizon=dt, terminal=lambda x: u(x, dt))
    sim = Simulation(problem, np.uint64(0), scheme)
    m = sim.columns
    node, weight = np.polynomial.hermite_e.hermegauss(14 if m == 1 else 10)
    nodes = np.array(list(itertools.product(node, repeat=m)))
    weights = np.prod(list(itertools.product(weight / weight.sum(), repeat=m)), axis=-1)
    walk = sim.walk(x, np.arange(len(x), dtype=np.uint64), 0, LANES * len(nodes), 1)
    increments = np.broadcast_to(sim.scale(dt, 1) * nodes[None, :, None, :, None], (len(x), len(nodes), 1, m, LANES))
    walk.given = increments.reshape(-1, 1, m, LANES).copy()
    walk.kind = static(GIVEN)
    walk.advance(0, 1)
    values = u(np.moveaxis(walk.x, 1, -1), dt) * np.exp(-walk.killed) + walk.earned
    signs = np.ones((len(walk.x), max(1, m * (m - 1) // 2), LANES))
    if m > 1:
        signs_of_blocks(np.uint64(0), walk.streams, walk.firsts, 0, signs)
    means = np.zeros(len(walk.x))
    combinations = list(itertools.product((-1.0, 1.0), repeat=m * (m - 1) // 2))
    for signs_of in combinations:
        there = (signs[:, : len(signs_of)] == np.reshape(signs_of, (1, -1, 1))).all(1)
        means += (values * there).sum(1) / there.sum(1) / len(combinations)
    return means.reshape(len(x), -1) @ weights - u(x, 0.0)


@pytest.mark.parametrize("scheme", ["euler", "heun"])
@pytest.mark.parametrize(
    ("dim", "noise"),
    [
        (1, "constant"),
        (1, "time"),
        (1, "number"),
        (2, "constant"),
        (2, "time"),
        (2, "number"),
        (2, "vector"),
        (2, "matrix"),
    ],
)
def test_the_weak_order_with_everything_variable(dim, noise, scheme):
    """The error of one step, free of sampling, falls by one order more than the scheme's own."""
    problem, u = manufactured(dim, noise)
    x = np.random.default_rng(5).uniform(size=(12, dim))
    steps = np.array([0.01, 0.005, 0.0025])
    errors = [np.linalg.norm(one_step(problem, u, x, dt, scheme)) for dt in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    order = {"euler": 1, "heun": 2}[scheme]
    assert slope == pytest.approx(order + 1, abs=0.25)


@pytest.mark.slow
def test_the_weak_order_with_three_motions_that_do_not_commute():
    problem, u = manufactured(3, "matrix")
    x = np.random.default_rng(5).uniform(size=(3, 3))
    errors = [np.linalg.norm(one_step(problem, u, x, dt, "heun")) for dt in (0.005, 0.0025)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)


@quiet
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": Sampling(antithetic=True)},
        {"sampling": Sampling(qmc=True)},
        {"sampling": Sampling(dtype="float32")},
        {"sampling": Sampling(extrapolate=True), "scheme": "euler"},
        {"sampling": Sampling(increments="two_point"), "scheme": "euler"},
        pytest.param({"tolerance": Tolerance(atol=0.02)}, marks=pytest.mark.slow),
        {"scheme": "heun", "t0": 0.5},
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("noise", ["constant", "time", "matrix"])
def test_every_option_meets_the_made_up_solution(noise, options):
    problem, u = manufactured(2, noise)
    x = np.random.default_rng(6).uniform(size=(3, 2))
    estimate = feynman_kac(problem, x, **{"num_paths": 4_096, "num_steps": 32, "bias": True, "rng": 1} | options)
    assert close(estimate, u(x, options.get("t0", 0.0)))
    assert estimate.standard_error.max() < 0.08


@quiet
def test_levels_meet_the_made_up_solution():
    for dim, noise in ((1, "number"), (2, "time")):
        problem, u = manufactured(dim, noise)
        x = np.random.default_rng(6).uniform(size=(2, dim))
        found = multilevel(problem, x, rmse=0.1, rng=2)
        assert np.abs(found.mean - u(x, 0.0)).max() < 4 * 0.1
        assert found.consistency.max() < 1.0


@compiled(2)
def carried(x, y, t):
    return 0.4 * math.cos(TAU * y + t) + 0.2, 0.3 * math.sin(TAU * x)


@compiled(2)
def matrix_2d(x, y, t):
    a = 0.3 + 0.1 * math.sin(TAU * x + t)
    return a, 0.1 * math.cos(TAU * y), -0.1 * math.sin(TAU * x), 0.2


@compiled(2)
def number_2d(x, y, t):
    return 0.3 + 0.1 * math.sin(TAU * x + t) * math.cos(TAU * y)


@compiled(2)
def killing(x, y, t):
    return 0.5 + 0.4 * math.cos(TAU * x) * math.sin(3.0 * t)


@pytest.mark.parametrize(
    ("sigma", "scheme"),
    [
        (0.2, "euler"),
        pytest.param([0.1, 0.3], "heun", marks=pytest.mark.slow),
        ([[0.1, 0.2, 0.0], [0.0, 0.1, 0.3]], "heun"),
        pytest.param(number_2d, "euler", marks=pytest.mark.slow),
        pytest.param(number_2d, "heun", marks=pytest.mark.slow),
        pytest.param(matrix_2d, "heun", marks=pytest.mark.slow),
    ],
)
def test_compiled_functions_give_the_paths_of_plain_ones(sigma, scheme):
    box = ((0.0, 1.0), (-1.0, 2.0)) if scheme == "heun" else None

    def plain(field):
        return lambda x, t: field(x, t).reshape(*x.shape[:-1], *({4: (2, 2), 1: ()}[field.components]))

    def problem(compiled_ones: bool) -> ConvectionDiffusion:
        f = np.random.default_rng(1).standard_normal((4, 4, 3))
        noise = sigma if compiled_ones or not hasattr(sigma, "kernel") else plain(sigma)
        return ConvectionDiffusion(
            carried if compiled_ones else lambda x, t: carried(x, t),
            f,
            noise,
            dim=2,
            potential=killing if compiled_ones else lambda x, t: killing(x, t),
            source=number_2d if compiled_ones else lambda x, t: number_2d(x, t),
            box=box,
        )

    rng = np.random.default_rng(2)
    control = Control(np.linspace(0, 1, 3), rng.standard_normal((3, 8, 12, 3)), False, True)
    x = rng.uniform(size=(2, 2))
    options = {"num_paths": 600, "num_steps": 8, "scheme": scheme, "control": control, "rng": 3}
    fast, slow = (feynman_kac(problem(kind), x, **options) for kind in (True, False))
    np.testing.assert_allclose(fast.mean, slow.mean, rtol=1e-11)
    np.testing.assert_allclose(fast.standard_error, slow.standard_error, rtol=1e-9)


# control variates


@pytest.mark.parametrize("hessian", [False, True])
def test_the_solution_as_control_cuts_the_variance_with_weights(hessian):
    """Anisotropic noise in a box that is no square, with killing, a source and as many nodes along each axis as fit."""
    problem, exact, x = plane_wave(2, 2, ((-1.0, 2.0), (0.5, 2.0)))
    solution = solve(problem, num_points=(32, 48), times=np.linspace(0.0, 0.7, 29), method="spectral_rk4", dt=0.01)
    options = {"num_paths": 5_000, "num_steps": 64, "rng": 4}
    plain = feynman_kac(problem, x, **options)
    control = Control.from_solution(solution, hessian=hessian)
    controlled = feynman_kac(problem, x, control=control, **options)
    ratio = (plain.standard_error / controlled.standard_error) ** 2
    assert np.exp(np.log(ratio).mean()) > (200 if hessian else 15)
    assert (np.abs(controlled.mean - exact) < 4 * controlled.standard_error + 2e-4).all()


@pytest.mark.parametrize("noise", ["time", "matrix"])
@pytest.mark.parametrize("hessian", [False, True])
def test_a_wrong_control_moves_no_weighted_mean(noise, hessian):
    problem, u = manufactured(2, noise)
    wrong = Control(np.array([0.0, 1.0]), np.random.default_rng(0).standard_normal((2, 6, 6)), hessian)
    x = np.random.default_rng(6).uniform(size=(3, 2))
    if hessian and noise == "matrix":
        with pytest.raises(
            ValueError, match="control: expected hessian=False with a noise that depends on x, got True"
        ):
            feynman_kac(problem, x, num_paths=512, num_steps=32, control=wrong)
        return
    estimate = feynman_kac(problem, x, num_paths=20_000, num_steps=32, control=wrong, rng=1, bias=True)
    assert close(estimate, u(x, 0.0))


# several functions


@pytest.mark.slow
def test_several_functions_are_what_each_is_alone():
    f = np.random.default_rng(1).standard_normal((4, 4, 3))
    problem = ConvectionDiffusion(carried, f, 0.2, potential=killing, source=number_2d)
    x = np.random.default_rng(2).uniform(size=(4, 2))
    for options in ({}, {"sampling": Sampling(qmc=True)}, {"sampling": Sampling(antithetic=True), "bias": True}):
        options = {"num_paths": 1_000, "num_steps": 16, "rng": 0} | options
        together = feynman_kac(problem, x, **options)
        assert together.mean.shape == (4, 3)
        for k in range(3):
            alone = feynman_kac(problem.only(k), x, **options)
            np.testing.assert_allclose(together.mean[:, k], alone.mean, rtol=1e-12)
            np.testing.assert_allclose(together.standard_error[:, k], alone.standard_error, rtol=1e-9)
    levels = multilevel(problem, x[:2], rmse=0.1, rng=0)
    assert levels.mean.shape == levels.standard_error.shape == (2, 3)
    assert np.abs(levels.mean - together.mean[:2]).max() < 0.4
    assert "4 points of 3 values" in repr(together)


def test_a_tolerance_holds_for_the_worst_function():
    problem = ConvectionDiffusion(carried, lambda x: np.stack([x[..., 0], 5.0 * x[..., 0]], -1), 0.3)
    estimate = feynman_kac(problem, [[0.5, 0.5]], num_steps=4, tolerance=Tolerance(atol=0.05), rng=0)
    low, high = estimate.confidence_interval()
    assert 0.05 < (high - low).max() <= 0.1


# no noise


@pytest.mark.parametrize("still", [False, True])
def test_without_noise_the_weights_have_the_order_of_runge_and_kutta(still):
    problem, u = manufactured(2, "none", still=still)
    x = np.random.default_rng(6).uniform(size=(5, 2))
    errors = [np.abs(without_noise(problem, x, num_steps=n) - u(x, 0.0)).max() for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)
    estimate = feynman_kac(problem, x, num_steps=20)
    assert (np.abs(estimate.mean - u(x, 0.0)) < 3 * estimate.total_error()).all()
    assert estimate.scheme == "rk4"


def test_without_noise_compiled_fields_give_the_weights_of_plain_ones():
    f = np.random.default_rng(1).standard_normal((4, 4, 2))
    fast = ConvectionDiffusion(carried, f, 0.0, potential=killing, source=number_2d, box=(1.0, 2.0))
    slow = ConvectionDiffusion(
        lambda x, t: carried(x, t),
        f,
        0.0,
        dim=2,
        potential=lambda x, t: killing(x, t),
        source=lambda x, t: number_2d(x, t),
        box=(1.0, 2.0),
    )
    x = np.random.default_rng(6).uniform(size=(5, 2))
    np.testing.assert_allclose(without_noise(fast, x, num_steps=9), without_noise(slow, x, num_steps=9), rtol=1e-12)
    np.testing.assert_allclose(characteristics(fast, x, num_steps=9), characteristics(slow, x, num_steps=9), rtol=1e-13)


# fields of other kinds


def wind(t: float, n: int = 12) -> np.ndarray:
    x, y = np.moveaxis(node_points(n, 2), -1, 0)
    return np.stack([0.4 * np.cos(TAU * y + t), 0.3 * np.sin(TAU * x - 2 * t)])


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("most", [pytest.param(2**28, marks=pytest.mark.slow), 2**19])
def test_node_values_at_times_give_the_paths_of_the_function_that_they_are(interpolation, most, monkeypatch):
    """Tables for all times at once, and for a few steps at a time, against two look-ups in NumPy."""
    monkeypatch.setattr("pdekit.paths.lookup._MOST_BYTES", most)
    times = np.linspace(0.0, 1.0, 6)
    flow = GridSeries(times, np.stack([wind(t) for t in times]), interpolation, shape=(2,), name="velocity")
    rate = GridSeries(times, np.stack([wind(t)[:1] for t in times]), interpolation, name="potential")
    noise = GridSeries(times, 0.3 + 0.2 * np.stack([wind(t)[1:] for t in times]), interpolation, name="sigma")
    f = np.random.default_rng(1).standard_normal((4, 4))
    x = np.random.default_rng(2).uniform(size=(3, 2))
    for sigma in (0.1, noise, 0.0):
        series = ConvectionDiffusion(flow, f, sigma, potential=rate)
        plain = ConvectionDiffusion(
            lambda x, t: flow(x, t),
            f,
            sigma if isinstance(sigma, float) else lambda x, t: noise(x, t),
            dim=2,
            potential=lambda x, t: rate(x, t),
        )
        options = {"num_paths": 600, "num_steps": 32, "rng": 1}
        a, b = (feynman_kac(p, x, **options) for p in (series, plain))
        np.testing.assert_allclose(a.mean, b.mean, atol=2e-6)  # tables in single precision
    a, b = (characteristics(p, x, num_steps=10) for p in (series, plain))
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_steady_plain_function_is_looked_up_in_a_table_where_one_holds_it(caplog, monkeypatch):
    monkeypatch.setattr("pdekit.runtime.log._told", set())

    def smooth(x, t):
        return 0.3 * np.cos(TAU * x[..., ::-1])

    def kinked(x, t):
        return 0.3 * np.abs(x[..., ::-1] % 1.0 - 0.5)

    x = np.random.default_rng(2).uniform(size=(3, 2))
    for function, table in ((smooth, True), (kinked, False)):
        steady, moving = (
            ConvectionDiffusion(FunctionVelocity(function, 2, interval), lambda x: x[..., 0], 0.1)
            for interval in (math.inf, 0.0)
        )
        caplog.clear()
        a, b = (feynman_kac(p, x, num_paths=500, num_steps=16, rng=0) for p in (steady, moving))
        assert ("no table" in caplog.text) != table
        np.testing.assert_allclose(a.mean, b.mean, atol=2e-6 if table else 0.0)
        assert np.array_equal(a.mean, b.mean) != table


def test_a_table_in_a_corner_is_found_out():
    """A narrow peak that no coarse grid sees."""

    def peak(x, t):
        return np.exp(-(((x % 1.0 - 0.512) / 0.004) ** 2))

    problem = ConvectionDiffusion(FunctionVelocity(peak, 1, math.inf), lambda x: x[..., 0], 0.05)
    plain = ConvectionDiffusion(lambda x, t: peak(x, t), lambda x: x[..., 0], 0.05, dim=1)
    a, b = (feynman_kac(p, [[0.5]], num_paths=500, num_steps=64, rng=0) for p in (problem, plain))
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-5)


def parabola(x):
    return np.cos(x[..., 0])


def test_two_processes_walk_the_paths_of_one_in_a_box():
    problem = ConvectionDiffusion(
        np.ones((1, 4)), parabola, [0.3], potential=np.array([0.1, 0.2]), source=0.1, box=((1.0, 1.0 + TAU),)
    )
    options = {"num_paths": 700, "num_steps": 8, "rng": 0}
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as executor:
        a, b = (feynman_kac(problem, [[1.2]], executor=e, **options) for e in (None, executor))
    np.testing.assert_array_equal(a.mean, b.mean)


def test_the_sampler_agrees_with_the_solver_where_everything_varies():
    nodes = np.arange(16) / 16
    problem = ConvectionDiffusion(
        (0.4 + 0.3 * np.sin(TAU * nodes))[None],
        lambda x: np.exp(np.sin(TAU * x[..., 0])),
        GridField(0.3 + 0.1 * np.cos(TAU * nodes)[None]),
        horizon=0.8,
        potential=0.5 + 0.4 * np.sin(2 * TAU * nodes),
        source=np.cos(TAU * nodes) + 0.2,
    )
    solution = solve(problem, num_points=64, method="spectral_krylov", times=np.linspace(0.0, 0.8, 33))
    estimate = feynman_kac(problem, solution.x.values[::8, None], num_paths=10_000, num_steps=64, rng=0, bias=True)
    assert close(estimate, solution.u[0].values[::8])
    controlled = feynman_kac(
        problem, solution.x.values[::8, None], num_paths=4_000, num_steps=64, rng=1, bias=True, control=solution
    )
    assert close(controlled, solution.u[0].values[::8])
    assert (controlled.standard_error < 0.4 * estimate.standard_error).all()


# what cannot be


def test_what_cannot_be_is_met_with_one_line():
    space = ConvectionDiffusion(lambda x, t: -x, lambda x: x[..., 0], 0.1, dim=1, domain="space")
    control = Control(np.arange(2.0), np.zeros((2, 8)))
    with pytest.raises(ValueError, match=r"control: expected a problem on a box, .* got domain='space'"):
        feynman_kac(space, [[0.1]], num_paths=10, control=control)
    several = ConvectionDiffusion(np.zeros((1, 4)), np.zeros((4, 3)), 0.1)
    with pytest.raises(ValueError, match="control: expected u of 3 functions, got 1"):
        feynman_kac(several, [[0.1]], num_paths=10, control=control)
    growing = ConvectionDiffusion(np.zeros((1, 4)), np.ones(4), 0.1, potential=-1e4)
    with pytest.raises(FloatingPointError, match="the potential is too negative"), np.errstate(over="ignore"):
        feynman_kac(growing, [[0.1]], num_paths=10, num_steps=4)


# the paths themselves, and derivatives


@pytest.mark.parametrize("sigma", [0.2, pytest.param(number_2d, marks=pytest.mark.slow)])
def test_paths_handed_out_are_those_behind_the_estimate(sigma):
    f = np.random.default_rng(1).standard_normal((4, 4))
    problem = ConvectionDiffusion(carried, f, sigma, potential=killing, source=number_2d, box=((0.0, 1.0), (-1.0, 2.0)))
    x = np.random.default_rng(2).uniform(size=(3, 2))
    options = {"num_steps": 16, "rng": 5}
    estimate = feynman_kac(problem, x, num_paths=700, **options)
    paths = sample_paths(problem, x, num_paths=700, **options)
    assert paths.position.shape == (17, 3, 700, 2)
    np.testing.assert_allclose(paths.position[0, :, 0], x, rtol=1e-14)
    end = paths.isel(time=-1)
    payoffs = problem.evaluate_terminal(end.position.values) * end.weight.values + end.earned.values
    np.testing.assert_allclose(payoffs.mean(-1), estimate.mean, rtol=1e-12)
    again = sample_paths(
        problem, x[1:2], num_paths=1, first_point=1, first_path=431, times=[0.5, 1.0], **(options | {"rng": 5})
    )
    chosen = paths.isel(time=[8, 16], point=[1], path=[431])
    for name in ("position", "weight", "earned"):
        np.testing.assert_allclose(again[name].values, chosen[name].values, rtol=1e-14)
    np.testing.assert_array_equal(again.time, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"times: expected values in \[0, 1\]"):
        sample_paths(problem, x, times=[2.0], **options)


def test_an_estimate_travels_as_a_dataset():
    f = np.random.default_rng(1).standard_normal((4, 4, 3))
    estimate = feynman_kac(
        ConvectionDiffusion(carried, f, 0.2), [[0.1, 0.2]], num_paths=600, num_steps=4, bias=True, rng=7
    )
    found = estimate.to_xarray()
    assert found["mean"].dims == ("point", "field")
    assert {"standard_error", "bias", "points"} <= set(found)
    assert (found.attrs["rng"], found.attrs["scheme"]) == ("7", "heun")


@pytest.mark.parametrize("method", ["pathwise", "weight"])
def test_the_gradient_of_a_wave_in_a_box_with_units(method):
    problem, _, x = plane_wave(2, 3, ((-1.0, 2.0), (0.5, 2.0)))
    estimate = feynman_kac_gradient(problem, x, num_paths=20_000, num_steps=32, method=method, rng=1)
    h = 1e-5
    exact = np.stack(
        [(plane_wave_at(problem, x + e) - plane_wave_at(problem, x - e)) / (2 * h) for e in h * np.eye(2)], -1
    )
    assert (np.abs(estimate.mean - exact) < 4 * estimate.standard_error + 0.01 * np.abs(exact).max()).all()
    assert np.abs(exact).max() > 20 * estimate.standard_error.max()
    assert estimate.to_xarray()["mean"].dims == ("point", "axis")


def plane_wave_at(problem: ConvectionDiffusion, x: np.ndarray) -> np.ndarray:
    """The closed form of `plane_wave`."""
    k = TAU * np.array([1.0, 2.0]) / problem.lengths
    sigma, drift = problem.noise.constant, problem.velocity.values[:, 0, 0]
    rate = 0.6 + 0.5 * k @ sigma @ sigma.T @ k - 1j * (k @ drift)
    decay = np.exp(-0.7 * rate)
    return (np.exp(1j * (x @ k)) * (decay + (1.0 - decay) / rate)).real


def test_the_gradient_of_a_probability_needs_the_weight():
    """P(X_T > 0) for dX = -X dt + σ dB: the normal density at the mean, times e^(-T)."""
    sigma, x = 0.6, np.array([[-0.4], [0.3]])
    problem = ConvectionDiffusion(
        lambda x, t: -x, lambda x: (x[..., 0] > 0.0).astype(float), sigma, dim=1, domain="space"
    )  # fmt: skip
    deviation = sigma * math.sqrt(0.5 * (1.0 - math.exp(-2.0)))
    mean = x * math.exp(-1.0)
    exact = np.exp(-0.5 * (mean / deviation) ** 2) / (deviation * math.sqrt(TAU)) * math.exp(-1.0)
    found = feynman_kac_gradient(problem, x, num_paths=40_000, num_steps=64, method="weight", rng=0)
    assert (np.abs(found.mean - exact) < 4 * found.standard_error + 0.01).all()
    assert found.standard_error.max() < 0.02


@pytest.mark.parametrize("method", ["pathwise", "weight"])
def test_the_gradient_under_a_harmonic_potential(method):
    """u = exp(-½Ax² - C) from f = 1: all of the gradient comes from V."""
    sigma, kappa = 0.8, 1.5
    rate = math.sqrt(kappa) * sigma
    a = kappa * math.tanh(rate) / rate
    problem = ConvectionDiffusion(
        lambda x, t: 0.0 * x,
        lambda x: np.ones(x.shape[:-1]),
        sigma,
        dim=1,
        potential=lambda x, t: 0.5 * kappa * x[..., 0] ** 2,
        domain="space",
    )
    x = np.array([[-1.0], [0.5]])
    exact = -a * x * np.exp(-0.5 * a * x**2 - 0.5 * math.log(math.cosh(rate)))
    found = feynman_kac_gradient(problem, x, num_paths=20_000, num_steps=64, method=method, rng=0)
    assert (np.abs(found.mean - exact) < 4 * found.standard_error + 2e-3).all()


def test_a_gradient_of_noise_on_the_path_or_one_that_is_refused():
    """Geometric Brownian motion: ∂ E X² = 2x exp(2μ + s²)."""
    problem = ConvectionDiffusion(
        lambda x, t: 0.1 * x, lambda x: x[..., 0] ** 2, lambda x, t: 0.4 * x[..., 0], dim=1, domain="space"
    )
    found = feynman_kac_gradient(problem, [[1.5]], num_paths=10_000, num_steps=32, rng=0)
    assert abs(found.mean[0, 0] - 3.0 * math.exp(0.2 + 0.16)) < 4 * found.standard_error[0, 0] + 2e-3
    with pytest.raises(ValueError, match="method 'weight': expected a constant sigma that reaches all directions"):
        feynman_kac_gradient(problem, [[1.5]], num_paths=100, method="weight")
