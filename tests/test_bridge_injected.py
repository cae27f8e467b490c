"""The bridge on networks that know nothing of it: injected noise, dropout and noise of one's own."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.box import Box
from bridge.control import NoiseExpansion
from bridge.draws import LOOK_COST, Draws
from bridge.ensemble import ensemble_estimate, softmax
from bridge.flow import FlowNetwork, SmoothVelocity, network_problem
from bridge.scaling import constant_sigma_twin, measure_noise
from netkit import en_resnet, ensemble, inject_noise, noise_of
from netkit.models import resnet
from netkit.weights import learn_weights, member_logits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, size: int = 8, seed: int = 0) -> Tensor:
    """Noise of a colour and brightness of its own for each image."""
    generator = seeded(seed)
    colours = torch.rand(count, 3, 1, 1, generator=generator, dtype=torch.float64)
    return colours * torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)


def twins(depth: int = 8, num_members: int = 2, **noise: Any) -> tuple[nn.Module, nn.Module]:
    """Our noisy network, and our plain one with as much noise injected."""
    own = en_resnet(depth, num_members=num_members, width=4, seed=1, **noise).double().eval()
    injected = resnet(depth, num_members=num_members, width=4, seed=1).double().eval()
    injected.load_state_dict(own.state_dict())
    return own, inject_noise(injected, **noise)


def perturbed(make: Any) -> nn.Module:
    """A network with weights of its own, in float32 and eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def transformer() -> nn.Module:
    return tv.VisionTransformer(8, 4, 2, 2, 8, 8, num_classes=5)


class Small(nn.Module):
    """Four of torchvision's blocks, with weights under which predictions vary."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(tv.resnet.BasicBlock(8, 8) for _ in range(4)))
        self.norm, self.fc = nn.BatchNorm1d(8), nn.Linear(8, 5)
        with torch.no_grad():
            self.fc.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


def small(scale: float = 2.0, **noise: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small(scale).double()
        with torch.no_grad():
            for _ in range(20):
                model(images(64))  # statistics of the batch norms
    return inject_noise(model.eval(), **{"noise_std": "sample", "noise_coef": 0.3, "seed": 0, **noise})


@pytest.mark.parametrize("options", [
    {"num_draws": 30},
    {"target_error": 0.15},
    {"stop_when_decided": True},
    {"num_draws": 20, "control": True},
    {"target_error": 0.15, "control": True},
], ids=lambda options: " ".join(options))  # fmt: skip
@pytest.mark.parametrize("noise", [
    {"noise_std": "sample", "noise_coef": 0.3},
    {"noise_std": "constant", "sigma": 0.3, "noise": "two_point"},
], ids=["sample", "constant"])  # fmt: skip
def test_injected_noise_gives_the_numbers_of_our_own(noise: dict[str, Any], options: dict[str, Any]) -> None:
    own, injected = (ensemble_estimate(net, images(), generator=seeded(3), **options) for net in twins(**noise))
    torch.testing.assert_close(own.mean, injected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own.standard_deviation, injected.standard_deviation, rtol=1e-10, atol=1e-12)
    if own.bets is not None:
        ends = own.confidence_interval(), injected.confidence_interval()
        torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)
    assert (own.cost, own.controlled) == (injected.cost, injected.controlled)
    assert own.num_draws.tolist() == injected.num_draws.tolist()
    assert float(own.standard_deviation.max()) > 1e-3


@pytest.mark.parametrize("std", ["batch", "sample"])
def test_the_noise_measured_and_its_twin_are_those_of_our_own(std: str) -> None:
    own, injected = twins(14, noise_std=std, noise_coef=0.3)
    with noise_of(own).fixed_noise(1), noise_of(injected).fixed_noise(1):
        first, second = measure_noise(own, images()), measure_noise(injected, images())
    assert second.sigma.shape == (12,)
    assert second.dt.tolist() == [1 / 6] * 12
    for name in ("sigma", "feature_std", "variation", "dt"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-12, atol=1e-12)
    nets = constant_sigma_twin(own, first.sigma), constant_sigma_twin(injected, second.sigma)
    with torch.no_grad(), noise_of(nets[0]).fixed_noise(2), noise_of(nets[1]).fixed_noise(2):
        torch.testing.assert_close(nets[0](images()), nets[1](images()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(measure_noise(nets[1], images()).sigma, second.sigma, rtol=1e-12, atol=1e-12)
    with noise_of(injected).noise_off():
        still = measure_noise(injected, images())
    assert still.effective_sigma == 0.0
    with noise_of(injected).noise_scale(0.5), noise_of(injected).fixed_noise(1):
        assert float(measure_noise(injected, images()).sigma[0]) == pytest.approx(0.5 * float(second.sigma[0]))


def test_the_sigmas_of_an_ensemble_have_time_steps_of_their_own() -> None:
    model = ensemble([small(noise_std="constant", noise_coef=0.1, sigma=0.4)], seed=0)
    both = ensemble([model, inject_noise(perturbed(transformer).double(), noise_std="constant", sigma=0.1)]).eval()
    measured = measure_noise(both, images())
    assert measured.dt.tolist() == [0.25] * 4 + [0.25] * 4
    assert measured.sigma.tolist() == pytest.approx([0.4] * 4 + [0.1] * 4)
    assert measured.effective_sigma == pytest.approx(math.sqrt((0.4**2 + 0.1**2) / 2))


class Backwards(nn.Module):
    """Runs its second block before its first, whose features are three times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = Times(3.0), Times(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_every_sigma_belongs_to_its_injected_block_whatever_runs_first() -> None:
    model = inject_noise(Backwards(), blocks="Times", noise_std="sample", noise_coef=0.1)
    x = torch.randn(6, 2000, generator=seeded(1))
    measured = measure_noise(model, x)
    assert float(measured.feature_std[0] / measured.feature_std[1]) == pytest.approx(3, rel=0.05)
    assert measured.sigma.tolist() == pytest.approx((0.1 * math.sqrt(2) * measured.feature_std).tolist())
    twin = measure_noise(constant_sigma_twin(model, measured.sigma), x)
    torch.testing.assert_close(twin.sigma, measured.sigma)


def test_the_first_order_term_is_the_derivative_by_injected_noise() -> None:
    """Of noise scaled by ε, P - P(0) - C is of second order in a network without kinks."""
    model = inject_noise(perturbed(transformer).double(), 0.3, noise_std="sample", seed=0)
    x = images(3)
    left = []
    for scale in (1e-2, 1e-3, 1e-4):
        with noise_of(model).noise_scale(scale):
            expansion = NoiseExpansion(model, x, softmax)
            with noise_of(model).using_generator(seeded(5)):
                value, first = expansion.draw()
        assert float(first.abs().max()) > 0.003 * scale
        left.append(float((value - expansion.twin - first).abs().max()) / float(first.abs().max()))
    assert left[0] / left[1] == pytest.approx(10, rel=0.1)
    assert left[1] / left[2] == pytest.approx(10, rel=0.1)
    with noise_of(model).noise_off(), torch.no_grad():
        torch.testing.assert_close(model(x).softmax(-1), expansion.twin, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("make", "size"), [
    (lambda: tv.resnet18(num_classes=5), 16),
    (transformer, 8),
    (lambda: tv.ConvNeXt([tv.convnext.CNBlockConfig(*row) for row in ((4, 8, 1), (8, None, 1))], num_classes=5), 16),
], ids=["resnet18", "vit", "convnext"])  # fmt: skip
def test_the_control_keeps_the_mean_of_any_architecture(make: Any, size: int) -> None:
    model = inject_noise(perturbed(make), 0.05, noise_std="sample", seed=0)
    x = images(2, size).float()
    plain = ensemble_estimate(model, x, num_draws=60, generator=seeded(1))
    controlled = ensemble_estimate(model, x, num_draws=60, control=True, generator=seeded(2))
    z = (plain.mean - controlled.mean) / torch.hypot(plain.standard_error, controlled.standard_error)
    assert float(z.abs().max()) < 4
    assert controlled.controlled
    assert float(controlled.standard_deviation.max()) < float(plain.standard_deviation.max())
    assert plain.cost == 2 * 60 + LOOK_COST


@pytest.mark.parametrize("options", [{"target_error": 0.1}, {"stop_when_decided": True}], ids=str)
def test_images_cannot_drop_out_of_a_batch_that_answers_depend_on(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="model: expected noise_std 'sample' or 'constant', got 'batch'"):
        ensemble_estimate(small(noise_std="batch"), images(), generator=seeded(), **options)
    model = small()
    model.norm = nn.BatchNorm1d(8, track_running_stats=False).double()
    with pytest.raises(ValueError, match="model: expected batch norms with running statistics"):
        ensemble_estimate(model, images(), generator=seeded(), **options)


def test_a_few_images_share_a_pass_with_their_draws() -> None:
    model, x = small(), images(3)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    estimate = ensemble_estimate(model, x, num_draws=100, batch_size=64, generator=seeded(1))
    assert passes == [1, 1, 2, 63, 63, 63, 63, 48]
    assert estimate.cost == sum(passes)
    again = ensemble_estimate(model, x, num_draws=100, batch_size=64, generator=seeded(1))
    assert torch.equal(estimate.mean, again.mean)
    one_by_one = ensemble_estimate(model, x, num_draws=100, batch_size=3, generator=seeded(2))
    z = (estimate.mean - one_by_one.mean) / torch.hypot(estimate.standard_error, one_by_one.standard_error)
    assert float(z.abs().max()) < 4
    ratio = estimate.standard_deviation.square().mean() / one_by_one.standard_deviation.square().mean()
    assert 0.6 < float(ratio) < 1.6


class SharedNoise(nn.Module):
    """Beside its injected noise, the same random shift for all images of a pass, or none."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.inner, self.size = small(), size

    def forward(self, x: Tensor) -> Tensor:
        shift = self.size * torch.randn(5, dtype=x.dtype)
        return self.inner(x) + shift


class Attentive(nn.Module):
    """An image's logits depend on its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits - logits.mean(0)


class DrawsByItself(nn.Module):
    """Draws from the stream of its injected noise once more, one number for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + noise_of(self.inner).stream.draw(x[:1, :1, 0, :5], "gaussian").view(1, -1)


@pytest.mark.parametrize("make", [
    partial(SharedNoise, 1.0), partial(SharedNoise, 0.1), Attentive, DrawsByItself, partial(small, noise_std="batch"),
], ids=["shared", "shared a little", "attentive", "stream", "batch"])  # fmt: skip
def test_draws_share_no_pass_where_that_would_change_them(make: Any) -> None:
    draws = Draws(make(), softmax, 250)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        assert draws(images(2), 50).shape == (1, 2, 5)
        assert Draws(small(), softmax, 250)(images(2), 50).shape == (50, 2, 5)


class Dropout(nn.Module):
    """Monte Carlo dropout, which is on in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.dropout(x, 0.5, training=True))


def test_other_randomness_is_averaged_repeatably_and_left_as_it_was() -> None:
    model, x = Dropout(), torch.ones(2, 4)
    with torch.no_grad():
        model.linear.weight.copy_(2 * torch.eye(3, 4))
        model.linear.bias.zero_()
    before = torch.get_rng_state()
    first = ensemble_estimate(model, x, num_draws=400, generator=seeded(1))
    again = ensemble_estimate(model, x, num_draws=400, generator=seeded(1))
    other = ensemble_estimate(model, x, num_draws=400, generator=seeded(2))
    assert torch.equal(first.mean, again.mean)
    assert not torch.equal(first.mean, other.mean)
    assert torch.equal(torch.get_rng_state(), before)
    logits = 4.0 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # each of eight masks with equal chance
    z = (first.mean - logits.double().softmax(-1).mean(0)) / first.standard_error
    assert float(z.abs().max()) < 4
    early = ensemble_estimate(model, x, num_draws=400, stop_when_decided=True, generator=seeded(1))
    assert early.num_draws.tolist() == [400, 400]
    with pytest.raises(ValueError, match="model: expected a random one, got Dropout, whose passes in eval mode"):
        ensemble_estimate(nn.Dropout(0.5), x, generator=seeded())
    with pytest.raises(ValueError, match="on one stream, got 0 streams"):
        ensemble_estimate(model, x, control=True, generator=seeded())


def test_early_stopping_on_an_injected_network_is_wrong_no_more_often_than_promised() -> None:
    """Against the class of 600 draws, for images whose two largest classes are three standard errors apart."""
    model, x = small(scale=12.0), images(20, size=4, seed=1)
    many = ensemble_estimate(model, x, num_draws=600, generator=seeded(1))
    top = many.mean.topk(2, -1).values
    clear = (top[:, 0] - top[:, 1]) > 3 * 2**0.5 * many.standard_error.max(-1).values
    assert float(many.standard_deviation.max()) > 0.2
    wrong, decided, cost, repetitions = 0, 0, 0, 4
    for repetition in range(repetitions):
        early = ensemble_estimate(model, x, stop_when_decided=True, generator=seeded(10 + repetition))
        sure = early.decided & clear
        decided += int(sure.sum())
        wrong += int((early.prediction != many.prediction)[sure].sum())
        cost += early.cost
    assert decided > 0.4 * repetitions * len(x)
    assert wrong <= 0.05 * decided
    assert cost < 0.75 * 100 * repetitions * len(x)


def test_members_with_injected_noise_learn_weights() -> None:
    """The weights of our own members, and of architectures that have nothing in common."""
    y = torch.tensor([0, 1, 2, 3])
    learned = [learn_weights(net, images(), y, num_draws=3, generator=seeded(7))
               for net in twins(noise_std="sample", noise_coef=0.3)]  # fmt: skip
    torch.testing.assert_close(learned[0], learned[1], rtol=1e-8, atol=1e-8)
    other = inject_noise(perturbed(transformer).double(), noise_std="sample")
    model = ensemble([small(), other], average="probabilities").eval()
    logits = member_logits(model, images(), num_draws=50, generator=seeded(1))
    assert not torch.equal(logits, member_logits(model, images(), num_draws=50, generator=seeded(2)))
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 4, dtype=torch.float64))
    first, second = logits.argmax(-1)
    y = torch.where(torch.arange(4) < 2, first, second)
    weights = learn_weights(model, images(), y, num_draws=50, generator=seeded(1))
    assert float(weights.sum()) == pytest.approx(1.0)
    estimate = ensemble_estimate(model, images(), num_draws=60, generator=seeded(1))
    expected = (weights.view(-1, 1, 1) * logits.exp()).sum(0)  # by other draws
    assert float((estimate.mean - expected).abs().max()) < 5 * 2**0.5 * float(estimate.standard_error.max())


def test_a_velocity_with_noise_of_its_own_makes_no_flow() -> None:
    box = Box(3.0, 4.0)
    noisy = inject_noise(SmoothVelocity(2, box=box), blocks="first", noise_std="constant", sigma=0.1)
    with pytest.raises(ValueError, match="velocity: expected one without noise, which the blocks add"):
        FlowNetwork(noisy)
    network = FlowNetwork(SmoothVelocity(2, box=box), sigma=0.1)
    inject_noise(network.velocity, blocks="first", noise_std="constant", sigma=0.1)
    with pytest.raises(ValueError, match="velocity: expected one without noise, which the blocks add"):
        network_problem(network)
