"""Coupled depths: shared Brownian paths, declared rates, and what multilevel costs against a plain ensemble."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bridge.box import Box
from bridge.flow import FlowNetwork, SmoothVelocity
from bridge.levels import BETA, DepthLevels, coarsened, coupled_outputs, depth_levels, multilevel_ensemble


@pytest.fixture(scope="module")
def network() -> FlowNetwork:
    velocity = SmoothVelocity(2, width=8, speed=1.5, box=Box(6.0, 8.0), seed=3)
    made = FlowNetwork(velocity, num_blocks=32, sigma=0.4, seed=4)
    with torch.no_grad():
        velocity.first.weight.mul_(1.5)
        made.readout.weight.mul_(3.0)
    return made


POINTS = np.array([[0.3, -0.4], [-0.5, 0.2]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_coarse_increments_are_sums_of_fine_ones():
    fine = torch.randn(8, 5, 2, generator=seeded())
    torch.testing.assert_close(coarsened(fine, 4), torch.stack([fine[:4].sum(0), fine[4:].sum(0)]))
    torch.testing.assert_close(coarsened(coarsened(fine, 2), 2), coarsened(fine, 4))
    with pytest.raises(ValueError, match="expected a divisor of the 8 steps, got 3"):
        coarsened(fine, 3)


def test_levels_share_their_weights(network):
    shallow, deep = depth_levels(network, [4, 8])
    assert shallow.velocity is deep.velocity is network.velocity
    assert shallow.readout is network.readout
    with pytest.raises(ValueError, match="expected divisors of the last"):
        depth_levels(network, [3, 8])


def test_the_variance_of_differences_falls_with_the_declared_rate(network):
    x = torch.tensor(POINTS, dtype=torch.float32).repeat(3000, 1)
    depths = [8, 16, 32, 64, 128]
    with torch.no_grad():
        p = coupled_outputs(depth_levels(network, depths), x, seeded(1)).softmax(-1)[..., 1].double()
    variances = (p[1:] - p[:-1]).view(4, -1, 2).var(1).mean(1)
    slope = np.polyfit(np.log2(depths[1:]), np.log2(variances.numpy()), 1)[0]
    assert abs(slope + BETA) < 0.2, variances


def test_independent_paths_do_not_couple(network):
    """The rate comes from the shared path: without it the variance of a difference is twice that of one network."""
    x = torch.tensor(POINTS, dtype=torch.float32).repeat(2000, 1)
    with torch.no_grad():
        together = coupled_outputs(depth_levels(network, [16, 32]), x, seeded(1)).softmax(-1)[..., 1]
        apart = network.variant(num_blocks=16)(x, network.brownian(x, 16, seeded(2))).softmax(-1)[..., 1]
    assert float((together[1] - together[0]).var()) < 0.02 * float((together[1] - apart).var())


def test_multilevel_costs_at_most_half_of_a_plain_ensemble_where_networks_are_deep(network):
    estimate = multilevel_ensemble(network, POINTS, rmse=1.5e-3, generator=seeded(3))
    finest = 2 * 2 ** (len(estimate.num_samples) - 1)
    assert finest >= 32
    assert estimate.cost <= 0.5 * estimate.plain_cost
    assert estimate.consistency.max() < 1
    deep = network.variant(num_blocks=256)
    x = torch.tensor(POINTS, dtype=torch.float32).repeat(4000, 1)
    with torch.no_grad():
        p = deep(x, deep.brownian(x, 256, seeded(4))).softmax(-1)[:, 1].double().view(-1, 2)
    error = np.hypot((p.std(0) / 4000**0.5).numpy(), 1.5e-3)
    assert (np.abs(estimate.mean - p.mean(0).numpy()) < 4 * error).all()


def test_where_a_few_blocks_do_multilevel_does_not_pay(network):
    estimate = multilevel_ensemble(network, POINTS, rmse=0.05, generator=seeded(5), first_blocks=4)
    assert estimate.cost > 0.5 * estimate.plain_cost


def test_samples_are_not_repeated_and_errors_are_clear(network):
    levels = DepthLevels(network, POINTS, generator=seeded(6))
    assert not np.allclose(levels(1, 64), levels(1, 64))
    assert levels.cost(0) == 2
    assert levels.cost(3) == 24
    assert levels.blocks(3) == 16
    with pytest.raises(ValueError, match="expected noise to sample, got sigma 0"):
        DepthLevels(network.variant(sigma=0.0), POINTS, generator=seeded())
    with pytest.raises(ValueError, match="first_blocks: expected at least 1, got 0"):
        DepthLevels(network, POINTS, generator=seeded(), first_blocks=0)
    with pytest.raises(ValueError, match="num_blocks: expected a divisor of 8, got 3"):
        coupled_outputs([network.variant(num_blocks=3), network.variant(num_blocks=8)], torch.zeros(1, 2), seeded())
