"""Residual networks on R^d, their equation, and the ensemble against the PDE: agreement, order, and what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from bridge.box import Box
from bridge.comparison import Comparison, compare, rms_without_noise, scheme_residual, solution_at
from bridge.flow import FlowNetwork, NetworkVelocity, ProblemNetwork, SmoothVelocity, box_nodes, network_problem
from bridge.planar import fit, planar_data
from pdekit import ConvectionDiffusion, feynman_kac, solve
from pdekit.paths.brownian import brownian_increments
from pdekit.paths.threefry import seed_of

BOX = Box(3.4, 4.6)


def wavy_network(num_blocks: int = 32, sigma: float = 0.25) -> FlowNetwork:
    """Random weights, large enough for a flow that bends and turns with time and for a steep f."""
    velocity = SmoothVelocity(2, width=12, speed=1.2, box=BOX, seed=3)
    network = FlowNetwork(velocity, num_blocks=num_blocks, sigma=sigma, seed=4)
    with torch.no_grad():
        velocity.first.weight.mul_(3.0)
        velocity.first.weight[:, -1].mul_(3.0)
        network.readout.weight.mul_(4.0)
    return network


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, (200, 2))


@pytest.fixture(scope="module")
def solution(points):
    return solution_at(
        network_problem(wavy_network()), BOX.to_unit(points), num_points=128, dt=0.04, method="spectral_rk4"
    )


def run(network: FlowNetwork, points: np.ndarray, solution, num_draws: int = 1000, seed: int = 1) -> Comparison:
    return compare(network, points, solution, num_draws=num_draws, generator=torch.Generator().manual_seed(seed))


def test_the_ensemble_agrees_with_the_equation_within_the_stated_error(points, solution):
    result = run(wavy_network(), points, solution)
    assert result.coverage() >= 0.95
    assert result.p_value > 1e-3
    assert result.agrees
    assert result.grid_error.max() < 2e-3  # the PDE is no excuse
    assert np.ptp(result.solution) > 0.5  # and there is something to agree on


@pytest.mark.parametrize(
    "wrong",
    [
        lambda n: n.variant(sigma=1.2 * n.sigma),
        lambda n: n.variant(sigma=n.sigma / 1.2),
        lambda n: n.with_blocks_swapped(0, 15),
    ],
    ids=["sigma x 1.2", "sigma / 1.2", "two blocks swapped"],
)
def test_a_wrong_network_is_detected(points, solution, wrong):
    assert run(wavy_network(16), points, solution, num_draws=1500).agrees
    result = run(wrong(wavy_network(16)), points, solution, num_draws=1500)
    assert not result.agrees
    assert result.p_value < 1e-6


def test_path_by_path_every_swap_of_neighbours_is_detected(points, solution):
    """`compare` sees none of the smaller ones: they hide in the errors that it states."""
    network, depth = wavy_network(16), 16
    problem = network_problem(network)

    def residual(case: FlowNetwork) -> float:
        found = scheme_residual(case, problem, points, generator=torch.Generator().manual_seed(2))
        assert found.shape == (len(points),)
        return float(np.sqrt(np.mean(found**2)))

    assert residual(network) < 1e-14
    swaps = [network.with_blocks_swapped(l, l + 1) for l in range(depth - 1)]
    assert min(map(residual, swaps)) > 1e-6
    assert residual(network.variant(sigma=1.0001 * network.sigma)) > 1e-6
    assert residual(network.variant(num_blocks=8)) < 1e-14  # another depth is no mistake
    quietest = min(swaps, key=residual)
    assert run(quietest, points, solution).agrees


def relative(num_blocks: int = 16) -> FlowNetwork:
    """The wavy network with the paper's noise, whose size depends on the features."""
    return wavy_network(num_blocks, 0.0).variant(relative_sigma=0.45)


@pytest.mark.slow
def test_the_papers_own_noise_is_that_of_its_equation_and_not_of_a_constant_one(points):
    network = relative()
    assert network.noise.noise.noise_coef == pytest.approx(0.45 / 4)
    z = BOX.to_unit(points)
    options = {"num_points": 96, "dt": 0.01, "method": "spectral_rk4"}
    assert run(network, points, solution_at(network_problem(network), z, **options), num_draws=2000).agrees
    std = torch.from_numpy(points).std(-1)
    constant = 0.45 * float(std.square().mean().sqrt())
    stand_in = solution_at(network_problem(network, sigma=constant), z, **options)
    result = run(network, points, stand_in, num_draws=2000)
    assert not result.agrees
    assert result.p_value < 1e-6


def test_path_by_path_the_papers_noise_is_its_problems(points):
    network = relative()

    def residual(case: FlowNetwork) -> float:
        problem = network_problem(network)
        found = scheme_residual(case, problem, points, generator=torch.Generator().manual_seed(2))
        return float(np.sqrt(np.mean(found**2)))

    assert residual(network) < 1e-14
    assert residual(network.variant(relative_sigma=0.4501)) > 1e-6


def test_all_classes_come_from_one_solve_and_add_up_to_one(points):
    velocity = SmoothVelocity(2, width=12, speed=1.2, box=BOX, seed=3)
    network = FlowNetwork(velocity, num_classes=3, num_blocks=16, sigma=0.3, seed=4)
    options = {"num_points": 64, "dt": 0.05, "method": "spectral_rk4"}
    every = solve(network_problem(network, label=None), **options)
    assert every.u.dims == ("time", "x", "y", "field")
    np.testing.assert_allclose(every.u.sum("field"), 1.0, atol=1e-12)
    for label in range(3):
        alone = solve(network_problem(network, label=label), **options)
        np.testing.assert_allclose(every.u.values[..., label], alone.u.values, atol=1e-13)


def test_any_module_may_be_the_velocity(points):
    class Spin(torch.nn.Module):
        """A turn by the angle t within the box, and nothing to learn but the speed."""

        def __init__(self) -> None:
            super().__init__()
            self.speed = torch.nn.Parameter(torch.tensor(1.5))

        def forward(self, x: torch.Tensor, t: float) -> torch.Tensor:
            return self.speed * torch.stack([-x[..., 1], x[..., 0]], -1)

    network = FlowNetwork(Spin(), num_blocks=64, sigma=0.3, dim=2, box=BOX, seed=4)
    solution = solution_at(
        network_problem(network), BOX.to_unit(points), num_points=96, dt=0.005, method="spectral_rk4"
    )
    assert run(network, points, solution).agrees
    with pytest.raises(ValueError, match="dim: expected the number of features, which Spin does not say"):
        FlowNetwork(Spin(), box=BOX)
    with pytest.raises(ValueError, match=r"relative_sigma: expected 0 beside sigma = 0\.1, got 0\.2"):
        FlowNetwork(Spin(), dim=2, sigma=0.1, relative_sigma=0.2)


def test_relative_noise_takes_two_features_and_gives_way_to_a_constant():
    with pytest.raises(ValueError, match="relative_sigma: expected at least two features"):
        FlowNetwork(SmoothVelocity(1), relative_sigma=0.1)
    with pytest.raises(ValueError, match=r"relative_sigma: expected a finite number >= 0, got -0\.1"):
        FlowNetwork(SmoothVelocity(2), relative_sigma=-0.1)
    constant = relative().variant(sigma=0.3)
    assert (constant.sigma, constant.relative_sigma) == (0.3, 0.0)
    assert constant.variant(relative_sigma=0.2).sigma == 0.0


def test_a_problem_with_more_than_blocks_have_makes_no_network():
    still = np.zeros((2, 4, 4))
    with pytest.raises(ValueError, match="sigma: expected a number, or a function of numbers"):
        ProblemNetwork(ConvectionDiffusion(still, np.ones((4, 4)), [0.1, 0.2]), num_blocks=2)
    with pytest.raises(ValueError, match="problem: expected neither potential nor source"):
        ProblemNetwork(ConvectionDiffusion(still, np.ones((4, 4)), 0.1, source=1.0), num_blocks=2)


def test_the_error_falls_with_order_one_in_the_number_of_blocks(points, solution):
    depths = [2, 4, 8, 16]
    errors = [run(wavy_network(n), points, solution, num_draws=1000, seed=n).rms for n in depths]
    slope = np.polyfit(np.log(depths), np.log(errors), 1)[0]
    assert abs(slope + 1.0) < 0.2, (slope, errors)


def test_the_measured_bias_is_the_error_that_the_time_step_makes(points, solution):
    result = run(wavy_network(4), points, solution, num_draws=1500)
    left = rms_without_noise(result.corrected - result.solution, result.corrected_standard_error)
    assert left < 0.35 * result.rms


def test_without_noise_the_network_tends_to_the_transport_equation(points):
    problem = network_problem(wavy_network(), sigma=0.0)
    nodes = np.round(BOX.to_unit(points) * 64) / 64  # at nodes there is no interpolation between characteristics
    exact = solution_at(problem, nodes, num_points=64, method="characteristics")
    errors = []
    for depth in (16, 32, 64):
        network = wavy_network(depth).double()
        with network.noise_off(), torch.no_grad():
            p = network(torch.from_numpy(BOX.from_unit(nodes))).softmax(-1)[:, 1].numpy()
        errors.append(np.abs(p - exact.value).max())
    slope = np.polyfit(np.log([16, 32, 64]), np.log(errors), 1)[0]
    assert abs(slope + 1.0) < 0.2, errors


def test_a_flow_without_velocity_has_the_expectation_of_a_gaussian():
    network = FlowNetwork(SmoothVelocity(2, speed=1.0, box=BOX), num_blocks=3, sigma=0.5).double()
    with torch.no_grad():
        network.velocity.speed = 0.0
        network.readout.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        network.readout.bias.zero_()
    x = torch.tensor([[0.1, 0.05]], dtype=torch.float64).repeat(40_000, 1)
    p = network(x).detach().softmax(-1)[:, 1]
    exact = stats.norm(0.5, 2.5).expect(special.expit)
    assert abs(float(p.mean()) - exact) < 4 * float(p.std()) / 200


def test_a_residual_network_of_a_problem_walks_the_samplers_own_paths():
    """Same Brownian increments: the stack of blocks is the compiled Euler-Maruyama kernel."""
    rng = np.random.default_rng(0)
    field = rng.uniform(-1, 1, (2, 8, 8))
    terminal = np.cos(2 * np.pi * np.arange(8) / 8)[:, None] * np.ones(8)
    problem = ConvectionDiffusion(field, terminal, 0.2, horizon=0.5)
    start = np.array([[0.3, 0.7]])
    estimate = feynman_kac(problem, start, num_paths=512, num_steps=10, scheme="euler", rng=5)
    network = ProblemNetwork(problem, num_blocks=10)
    increments = brownian_increments(seed_of(5), 512, 10, 2, dt=0.1, stream=0)
    x = torch.from_numpy(start).repeat(512, 1)
    values = network(x, torch.from_numpy(np.ascontiguousarray(increments.swapaxes(0, 1))))
    assert values.shape == (512, 1)
    assert float(values.mean()) == pytest.approx(float(estimate.mean[0]), abs=1e-8)


def test_the_network_velocity_is_the_networks_own_in_box_lengths_and_zero_outside(points):
    network = wavy_network()
    velocity = NetworkVelocity(network)
    z = BOX.to_unit(points)
    with torch.no_grad():
        own = network.velocity.double()(torch.from_numpy(points), 0.3).numpy()
    np.testing.assert_allclose(velocity(z, 0.3), own / BOX.width, atol=1e-15)
    np.testing.assert_allclose(velocity(z + 3.0, 0.3), velocity(z, 0.3), atol=1e-12)
    edge = velocity(np.array([[0.0, 0.4], [1.0, 0.2]]), 0.3)
    np.testing.assert_array_equal(edge, 0.0)
    assert np.abs(box_nodes(BOX, 16)).max() == BOX.outer


def test_the_flow_is_smooth_where_the_cutoff_begins():
    x = torch.linspace(BOX.inner - 1e-3, BOX.inner + 1e-3, 101, dtype=torch.float64)
    chi = BOX.cutoff(torch.stack([x, torch.zeros_like(x)], -1))[:, 0]
    assert float((1 - chi).max()) < 1e-9
    assert not BOX.holds(torch.tensor([[0.0, BOX.inner + 1e-4]]))


def test_few_paths_leave_the_box_than_the_bound_allows():
    box = Box(1.0, 2.0)
    network = FlowNetwork(SmoothVelocity(2, speed=0.3, box=box, seed=1), num_blocks=100, sigma=0.3)
    start = np.array([[0.2, -0.1]])
    x = torch.tensor(start, dtype=torch.float32).repeat(4000, 1)
    steps = network.brownian(x, 100, torch.Generator().manual_seed(0))
    left = torch.zeros(4000, dtype=torch.bool)
    with torch.no_grad():
        for l in range(100):
            x = x + 0.01 * network.velocity(x, l / 100) + 0.3 * steps[l]
            left |= x.abs().amax(1) > box.inner
    bound = float(box.escape_probability(start, speed=0.3, sigma=0.3)[0])
    assert float(left.float().mean()) < bound < 0.5
    assert float(box.escape_probability(start, speed=0.3, sigma=0.0)[0]) == 0.0
    assert float(box.escape_probability(start, speed=0.9, sigma=0.0)[0]) == 1.0


def test_noise_comes_from_the_given_generator_and_can_be_switched_off(points):
    network, x = wavy_network(), torch.tensor(points[:5], dtype=torch.float32)
    with network.using_generator(torch.Generator().manual_seed(7)):
        first = network(x)
    with network.using_generator(torch.Generator().manual_seed(7)):
        torch.testing.assert_close(network(x), first, rtol=0, atol=0)
    with network.noise_off():
        torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", ["moons", "circles", "spirals"])
def test_planar_data_are_balanced_and_bounded(shape):
    x, y = planar_data(shape, 1000, 1)
    assert x.shape == (1000, 2)
    assert 400 < y.sum() < 600
    assert np.abs(x).max() < 2.1


def test_training_against_an_attack_learns():
    x, y = planar_data("circles", 500, 0)
    network = FlowNetwork(SmoothVelocity(2, width=12, box=Box(4.6, 6.0), seed=0), num_blocks=6, sigma=0.1)
    losses = fit(network, x, y, num_steps=60, eps=0.05, attack_steps=1)
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_a_diverging_training_stops(eps):
    x, y = planar_data("circles", 50, 0)
    network = FlowNetwork(SmoothVelocity(2, width=12, seed=0), num_blocks=2, sigma=0.1)
    with pytest.raises(FloatingPointError, match=r"training diverged at learning rate 1e\+38: lower it"):
        fit(network, x, y, num_steps=20, lr=1e38, eps=eps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Box(2.0, 1.0), "expected 0 < inner < outer, got 2.0 and 1.0"),
        (lambda: planar_data("rings", 5), "expected one of moons, circles, spirals, got 'rings'"),
        (lambda: SmoothVelocity(0), "expected at least 1, got 0"),
        (lambda: wavy_network(0), "num_blocks: expected at least 1, got 0"),
        (lambda: wavy_network(4).variant(order=[0, 0, 1, 2]), r"expected a permutation of 0..3, got \[0, 0, 1, 2\]"),
        (lambda: network_problem(wavy_network(), label=2), "label: expected 0..1, got 2"),
        (lambda: network_problem(FlowNetwork(SmoothVelocity(2))), "expected a box, so that the flow fits"),
        (lambda: wavy_network(4).carry(torch.zeros(3, 2), torch.zeros(3, 3, 2)), r"expected shape \(4, 3, 2\)"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_comparison_checks_its_arguments(points, solution):
    with pytest.raises(ValueError, match="num_draws: expected at least 2, got 1"):
        run(wavy_network(), points, solution, num_draws=1)
    with pytest.raises(ValueError, match="points: expected 200"):
        run(wavy_network(), points[:7], solution)
