"""noise_coef, feature std, depth and σ, each from the others; and what a network's noise is."""

from __future__ import annotations

import math

import pytest
import torch

from bridge.scaling import (
    constant_sigma_twin,
    effective_sigma,
    feature_std_of,
    measure_noise,
    noise_coef_of,
    num_blocks_of,
    sigma_of,
    time_step,
)
from netkit import en_resnet
from netkit.noise import Noise, NoiseStream, ResidualNoise


def test_each_number_follows_from_the_others():
    sigma = sigma_of(0.1, feature_std=1.3, num_blocks=9)
    assert sigma == pytest.approx(0.1 * 1.3 * 3)
    assert noise_coef_of(sigma, feature_std=1.3, num_blocks=9) == pytest.approx(0.1)
    assert feature_std_of(sigma, noise_coef=0.1, num_blocks=9) == pytest.approx(1.3)
    assert num_blocks_of(sigma, noise_coef=0.1, feature_std=1.3) == pytest.approx(9)
    assert time_step(20) == 0.05


def test_the_effective_sigma_adds_variances():
    assert effective_sigma(torch.tensor([0.3, 0.3, 0.3])) == pytest.approx(0.3)
    assert effective_sigma(torch.tensor([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sigma_of(-0.1, feature_std=1, num_blocks=3), "noise_coef: expected a finite number >= 0, got -0.1"),
        (lambda: sigma_of(0.1, feature_std=1, num_blocks=0), "num_blocks: expected at least 1, got 0"),
        (lambda: noise_coef_of(0.1, feature_std=0, num_blocks=3), "feature_std: expected a finite number > 0, got 0"),
        (lambda: effective_sigma(torch.ones(2, 2)), r"sigmas: expected shape \(L,\)"),
        (lambda: measure_noise(torch.nn.Linear(2, 2), torch.ones(3, 2)), "expected one with noise layers, got Linear"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("std", ["batch", "sample"])
def test_the_measured_sigma_is_that_of_the_noise_added(std):
    model = en_resnet(8, num_members=1, noise_coef=0.2, in_channels=1, noise_std=std, seed=0)
    model.train()
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    measured = measure_noise(model, x)
    assert model.training
    assert measured.sigma.shape == (3,)
    # what the layer itself adds, over many draws
    layer = model.members[0].blocks[0].noise
    features = torch.randn(4000, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    added = layer(features.clone()) - features
    assert float(added.std()) == pytest.approx(0.2, rel=0.01)
    assert noise_coef_of(sigma_of(0.2, feature_std=1.0, num_blocks=3), feature_std=1.0, num_blocks=3) == 0.2
    if std == "sample":
        expected = 0.2 * measured.feature_std * math.sqrt(3)
        torch.testing.assert_close(measured.sigma, expected)
    assert (measured.variation > 0).all()


def test_the_twin_adds_the_noise_that_was_measured_and_changes_nothing_else():
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = en_resnet(8, num_members=2, noise_coef=0.2, in_channels=1, noise_std="sample", seed=0).eval()
    measured = measure_noise(model, x)
    assert measured.sigma.shape == (6,)
    twin = constant_sigma_twin(model, measured.sigma)
    torch.testing.assert_close(measure_noise(twin, x).sigma, measured.sigma)
    one = measure_noise(constant_sigma_twin(model, measured.effective_sigma), x)
    assert one.block_variation == 1.0
    assert one.effective_sigma == pytest.approx(measured.effective_sigma)
    with model.noise_off(), twin.noise_off(), torch.no_grad():
        torch.testing.assert_close(twin(x), model(x))
    # the same draws of ξ, so that only the sizes differ, and those by less than noise does from none
    with torch.no_grad(), model.fixed_noise(1), twin.fixed_noise(1):
        apart = (model(x) - twin(x)).square().mean()
        model_alone = model(x)
    with torch.no_grad(), model.noise_off():
        assert 0 < apart < 0.1 * (model_alone - model(x)).square().mean()
    assert measure_noise(model, x).variation.min() > 0  # the original is as it was
    with pytest.raises(ValueError, match="expected one for each of 6 blocks with noise, got 5"):
        constant_sigma_twin(model, measured.sigma[:5])


def test_constant_noise_is_what_it_says():
    model = en_resnet(8, num_members=2, in_channels=1, noise_std="constant", sigma=0.25, seed=0)
    measured = measure_noise(model, torch.rand(4, 1, 8, 8))
    assert measured.effective_sigma == pytest.approx(0.25)
    assert measured.block_variation == 1.0
    with model.noise_off():
        assert measure_noise(model, torch.rand(4, 1, 8, 8)).effective_sigma == 0.0


class Backwards(torch.nn.Module):
    """Runs its second block before its first; x + F(x) is 2x, then 6x."""

    def __init__(self) -> None:
        super().__init__()
        noise, stream = Noise(std="sample", noise_coef=0.1), NoiseStream(0)
        self.last, self.first = (ResidualNoise(noise, num_blocks=2, stream=stream) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(3 * self.first(2 * x))


def test_every_sigma_belongs_to_its_block_whatever_runs_first():
    x = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1))
    measured = measure_noise(Backwards(), x)
    assert float(measured.feature_std[0] / measured.feature_std[1]) == pytest.approx(3, rel=0.05)
    twin = constant_sigma_twin(Backwards(), measured.sigma)
    assert twin.last.noise.sigma == pytest.approx(float(measured.sigma[0]))
    assert twin.last.noise.sigma == pytest.approx(3 * twin.first.noise.sigma, rel=0.05)
    model = en_resnet(8, num_members=2, in_channels=1, seed=0)
    with model.noise_off():
        assert measure_noise(model, torch.rand(8, 1, 8, 8)).effective_sigma == 0.0


def test_a_noise_scale_in_force_counts_once():
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = en_resnet(8, num_members=1, noise_std="constant", sigma=0.4, in_channels=1, seed=0)
    with model.noise_scale(0.5):
        measured = measure_noise(model, x)
        twin = constant_sigma_twin(model, measured.sigma)
    assert measured.effective_sigma == pytest.approx(0.2)
    assert measure_noise(twin, x).effective_sigma == pytest.approx(0.2)
    assert measure_noise(model, x).effective_sigma == pytest.approx(0.4)


def test_one_sigma_may_be_a_tensor():
    model = en_resnet(8, num_members=1, in_channels=1, seed=0)
    twin = constant_sigma_twin(model, torch.tensor(0.25))
    assert measure_noise(twin, torch.rand(4, 1, 8, 8)).sigma.tolist() == pytest.approx([0.25] * 3)
