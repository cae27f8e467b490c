"""Input noise and its certificate: closed forms for linear classifiers, coverage, and attacks that must not win."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from netkit import (
    PRESETS,
    attacks,
    certify,
    data,
    en_resnet,
    evaluate,
    inject_input_noise,
    inject_noise,
    load_weights,
    noise_of,
    remove_noise,
    train,
)
from netkit.attacks import NotFiniteError
from netkit.identity import describe_model
from netkit.injection import input_sigma
from netkit.models import resnet
from netkit.smoothing import ABSTAINED

SIGMA = 0.25


def images(count: int = 4, size: int = 8, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """Logits (w·x + b + τξ, 0), so that g changes on the plane w·x + b = 0, with or without the noise inside."""

    def __init__(self, shift: float = 0.0, tau: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        weight = torch.randn(64, dtype=dtype, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight / weight.norm())
        self.shift, self.tau = shift, tau
        self.generator = torch.Generator().manual_seed(2)

    def distance(self, x: Tensor) -> Tensor:
        """(B,) from the plane, with its sign."""
        return (x.flatten(1) * self.weight).sum(1) + self.shift  # not a product of matrices, which rounds by batch

    def forward(self, x: Tensor) -> Tensor:
        first = self.distance(x)
        first = first + self.tau * torch.randn(first.shape, dtype=first.dtype, generator=self.generator)
        return torch.stack([first, torch.zeros_like(first)], 1)


def at_distance(model: Linear, distance: float, count: int = 1) -> tuple[Linear, Tensor]:
    """The model moved so that these images, all equal, are as far from the plane."""
    x = images(1).double().expand(count, 1, 8, 8)
    with torch.no_grad():
        model.shift = distance - float(model.distance(x[:1]) - model.shift)
    return model, x


# The certificate


@pytest.mark.parametrize("tau", [0.0, 0.3])
@pytest.mark.parametrize("distance", [0.2, -0.4])
def test_the_radius_of_a_linear_classifier_is_the_closed_form(distance: float, tau: float) -> None:
    model, x = at_distance(Linear(tau=tau), distance, 4)
    found = certify(model, x, sigma=SIGMA, num_draws=20_000, batch_size=1000)
    # p = Φ(d / (σ² + τ²)^½), so that without noise inside the radius is the distance itself
    exact = SIGMA * abs(distance) / math.hypot(SIGMA, tau)
    chance = float(special.ndtr(exact / SIGMA))
    assert (found.prediction == (0 if distance > 0 else 1)).all()
    hits = found.hits.double()
    assert ((hits / 20_000 - chance).abs() < 4 * math.sqrt(chance * (1 - chance) / 20_000)).all()
    assert (found.radius < exact).all()
    assert (found.radius > 0.85 * exact).all()
    assert exact <= abs(distance) + 1e-12  # g changes on the plane, and never within the radius


def test_the_bound_covers_as_often_as_it_says() -> None:
    count, confidence = 800, 0.9
    model, x = at_distance(Linear(), 0.2, count)
    found = certify(model, x, sigma=SIGMA, num_draws=60, selection_draws=30, confidence=confidence)
    too_large = int((found.radius > 0.2).sum())
    assert too_large <= stats.binom.ppf(1 - 1e-4, count, 1 - confidence)
    assert too_large > 0.03 * count  # and is no wider than it must be, up to the steps of a count


def test_an_image_on_the_boundary_is_abstained_from_and_a_far_one_is_not() -> None:
    count = 300
    model, x = at_distance(Linear(), 0.0, count)
    found = certify(model, x, sigma=SIGMA, num_draws=50, selection_draws=10, confidence=0.95)
    answered = int((~found.abstained).sum())
    assert answered <= stats.binom.ppf(1 - 1e-4, count, 0.05)
    assert (found.radius[found.abstained] == 0).all()
    assert (found.prediction[found.abstained] == ABSTAINED).all()
    model, x = at_distance(Linear(), 3.0, count)
    assert not certify(model, x, sigma=SIGMA, num_draws=50, selection_draws=10).abstained.any()


def test_more_draws_give_larger_radii_up_to_the_exact_one() -> None:
    far, x = at_distance(Linear(), 10.0)
    for draws in (100, 1000):
        (radius,) = certify(far, x, sigma=SIGMA, num_draws=draws).radius.tolist()
        assert radius == pytest.approx(SIGMA * special.ndtri(0.001 ** (1 / draws)), rel=1e-9)
    near, x = at_distance(Linear(), 0.3, 30)
    means = [float(certify(near, x, sigma=SIGMA, num_draws=draws).radius.mean()) for draws in (50, 200, 1000, 4000)]
    assert means == sorted(means)
    assert means[-1] < 0.3


def test_certified_accuracy_counts_right_answers_within_the_radius() -> None:
    model = Linear()
    x = images(40).double()
    with torch.no_grad():
        model.shift = -float(model.distance(x).median())
        exact = model.distance(x)
    found = certify(model, x, sigma=SIGMA, num_draws=500)
    y = (exact < 0).long()
    radii = [0.0, 0.1, 0.2, 0.4]
    shares = found.certified_accuracy(y, radii)
    assert [share.mean for share in shares] == sorted((share.mean for share in shares), reverse=True)
    for share in shares:
        assert share.mean <= float((exact.abs() >= share.radius).double().mean())
        assert share.interval.low <= share.mean <= share.interval.high
        assert share.n == 40
    assert shares[0].mean > 0.5
    (wrong,) = found.certified_accuracy(1 - y, 0.0)
    assert wrong.mean == 0
    assert wrong.interval.high > 0
    with pytest.raises(ValueError, match="radii: expected a finite number >= 0, got -1"):
        found.certified_accuracy(y, -1)
    with pytest.raises(ValueError, match="y: expected one label for each of 40 images"):
        found.certified_accuracy(y[:3], 0.1)
    assert "40 images" in repr(found)


def test_an_images_certificate_depends_neither_on_the_others_nor_much_on_the_batch_size() -> None:
    model, x = at_distance(Linear(tau=0.1), 0.2, 6)
    whole, first = (certify(model, part, sigma=SIGMA, num_draws=300) for part in (x, x[:2]))
    assert torch.equal(whole.hits[:2], first.hits)
    assert torch.equal(certify(model, x, sigma=SIGMA, num_draws=300).hits, whole.hits)
    assert not torch.equal(certify(model, x, sigma=SIGMA, num_draws=300, seed=1).hits, whole.hits)
    chance = float(special.ndtr(0.2 / math.hypot(SIGMA, 0.1)))
    for batch_size in (7, 64, 1000):
        total = int(certify(model, x, sigma=SIGMA, num_draws=300, batch_size=batch_size).hits.sum())
        assert abs(total - 1800 * chance) < 4 * math.sqrt(1800 * chance * (1 - chance))


def test_single_and_double_precision_agree() -> None:
    radii = []
    for dtype in (torch.float32, torch.float64):
        model, x = at_distance(Linear(dtype=dtype), 0.25, 10)
        found = certify(model, x.to(dtype), sigma=SIGMA, num_draws=1000)
        assert found.radius.dtype == torch.float64
        assert (found.prediction == 0).all()
        radii.append(found.radius)
    chance = float(special.ndtr(1.0))
    error = SIGMA * math.sqrt(chance * (1 - chance) / 1000) / stats.norm.pdf(1.0)
    assert abs(float(radii[0].mean() - radii[1].mean())) < 4 * error * math.sqrt(2 / 10)


def test_a_model_that_classifies_by_the_batch_is_certified_one_image_at_a_time() -> None:
    x = images(2)
    by_batch = en_resnet(8, width=4, in_channels=1, seed=0)
    by_image = en_resnet(8, width=4, in_channels=1, noise_std="sample", seed=0)
    options: dict[str, Any] = {"sigma": SIGMA, "num_draws": 20, "selection_draws": 5}
    for part in (x, x[:1]):
        with pytest.raises(
            ValueError, match=r"expected one that classifies each image by itself.*batch_size=1 is valid"
        ):
            certify(by_batch, part, **options)
        certify(by_image, part, **options)
    certify(by_batch, x, batch_size=1, **options)


def test_wrong_input_gets_one_line() -> None:
    model, x = resnet(8, width=4, in_channels=1, seed=0), images(2)
    for options, message in (
        ({}, "sigma: expected a number, as the model has no noise on its input, got None"),
        ({"sigma": 0.0}, "sigma: expected a finite number > 0, got 0"),
        ({"sigma": 0.1, "num_draws": 0}, "num_draws: expected at least 1, got 0"),
        ({"sigma": 0.1, "confidence": 1.0}, r"confidence: expected a number from 1/2 to below 1, got 1\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(model, x, **options)
    with pytest.raises(ValueError, match="x: expected images within"):
        certify(model, 2 * x, sigma=0.1)
    noisy = inject_input_noise(model, 0.1)
    with noise_of(noisy).fixed_noise(1), pytest.raises(ValueError, match="got one inside fixed_noise"):
        certify(noisy, x)
    with torch.no_grad():
        model.members[0].fc.bias.fill_(math.nan)
    with pytest.raises(NotFiniteError):
        certify(model, x, num_draws=2)


# Noise on the input


def test_input_noise_is_sigma_times_a_standard_normal_on_a_copy() -> None:
    model, x = resnet(8, width=4, in_channels=1, seed=0).double().eval(), images().double()
    plain, before, xi = model(x), x.clone(), torch.randn(x.shape, dtype=torch.float64)
    names = list(model.state_dict())
    expected = model(x + SIGMA * xi)
    assert inject_input_noise(model, SIGMA, seed=5) is model
    assert input_sigma(model) == SIGMA
    with model.fixed_noise([xi]):
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(x, before)
    assert list(model.state_dict()) == names
    with model.noise_off():
        assert torch.equal(model(x), plain)
    with model.fixed_noise(3):
        first = model(x)
        with model.fixed_noise(4):
            other = model(x)
            assert torch.equal(model(x), other)
        assert torch.equal(model(x), first)
    assert not torch.equal(first, other)
    point = x.clone().requires_grad_()
    model(point).sum().backward()
    assert point.grad is not None
    with pytest.raises(ValueError, match=r"expected one without noise on its input.*remove_noise"):
        inject_input_noise(model, SIGMA)
    assert torch.equal(remove_noise(model)(x), plain)
    assert input_sigma(model) is None
    with pytest.raises(ValueError, match="sigma: expected a finite number >= 0, got -1"):
        inject_input_noise(model, -1.0)


@pytest.mark.parametrize("first", ["input", "blocks"])
def test_input_noise_and_noise_in_blocks_come_from_one_stream_in_either_order(first: str) -> None:
    model, x = resnet(8, width=4, in_channels=1, seed=0).double().eval(), images().double()
    puts = [partial(inject_input_noise, sigma=SIGMA), partial(inject_noise, noise_std="sample")]
    for put in puts if first == "input" else puts[::-1]:
        put(model)
    assert len({id(part.stream) for part in (model, noise_of(model), vars(model)["injected_noise"])}) == 1
    shapes = [(4, 1, 8, 8), (4, 4, 8, 8), (4, 8, 4, 4), (4, 16, 2, 2)]
    draws = [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    with model.fixed_noise(draws):
        found = model(x)
    remove_noise(model)
    inject_noise(model, noise_std="sample")
    with model.fixed_noise(draws[1:]):
        torch.testing.assert_close(found, model(x + SIGMA * draws[0]), rtol=1e-12, atol=1e-12)


def test_stored_results_know_the_noise_on_the_input() -> None:
    model = resnet(8, width=4, in_channels=1, seed=0)
    told = [describe_model(model)]
    for sigma in (0.1, 0.2):
        told.append(describe_model(inject_input_noise(model, sigma)))
        assert describe_model(copy.deepcopy(model)) == told[-1]
        remove_noise(model)
    assert len(set(told)) == 3
    assert describe_model(model) == told[0]


def test_evaluations_repeat_and_certificates_take_the_noise_of_the_model() -> None:
    model, x, y = resnet(8, width=4, in_channels=1, seed=0), images(6), torch.arange(6)
    plain = certify(model, x, sigma=0.4, num_draws=50)
    inject_input_noise(model, 0.4)
    own = certify(model, x, num_draws=50)
    assert own.sigma == 0.4
    assert torch.equal(own.hits, plain.hits)  # added once
    assert evaluate.is_random(model, x)
    scores = [evaluate.accuracy(model, x, y, seed=2) for _ in range(2)]
    assert torch.equal(scores[0].predictions, scores[1].predictions)


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, data.Dataset, Path]:
    """A small network trained on noisy digits, with noise of its own."""
    digits = data.load("digits", num_test=60)
    path = tmp_path_factory.mktemp("smoothed") / "model.safetensors"
    model = fresh()
    train(model, digits, PRESETS["digits"], loss="natural", epochs=8, path=path)
    return model, digits, path


def fresh() -> nn.Module:
    return inject_input_noise(en_resnet(8, num_members=1, width=4, in_channels=1, noise_std="sample", seed=0), SIGMA)


def test_a_network_trained_with_input_noise_is_read_back(smoothed: Any) -> None:
    model, _, path = smoothed
    again = load_weights(path, fresh())
    assert describe_model(again) == describe_model(model)
    with pytest.raises(ValueError, match="belongs to another model"):
        load_weights(path, remove_noise(fresh()))


def test_no_attack_within_the_certified_radius_wins(smoothed: Any) -> None:
    model, digits, _ = smoothed
    x, y = digits.images(digits.test.x), digits.test.y
    found = certify(model, x, num_draws=400)
    right = (found.prediction == y) & (found.radius > 0)
    assert right.sum() > 30
    for radius in (0.15, 0.3):
        (certified,) = found.certified_accuracy(y, radius)
        attack = partial(attacks.pgd, eps=radius, step_size=radius / 4, num_steps=10, norm="l2")
        empirical = evaluate.robust_accuracy(model, x, y, attack, num_draws=35)
        assert certified.mean <= empirical.vote
        held = right & (found.radius >= radius)
        assert held.any()
        x_adv = attack(attacks.ExpectationOverTransformation(model, 5), x[held], y[held])
        assert (x_adv - x[held]).flatten(1).norm(dim=1).max() <= radius + 1e-5
        answers = certify(model, x_adv, num_draws=400, seed=1).prediction
        assert ((answers == y[held]) | (answers == ABSTAINED)).all()
