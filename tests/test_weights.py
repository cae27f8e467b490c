"""Learned weights (Sec. 5): the derived gradient, the convex optimum, and the cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netkit import data, en_resnet, from_name
from netkit.randomness import noise_from
from netkit.training import TrainConfig, train
from netkit.weights import (
    ensemble_loss,
    learn_weights,
    least_error_weights,
    least_squares_weights,
    member_logits,
    optimal_weights,
    paper_update,
    update_weights,
    weight_gradient,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(k: int, seed: int = 0, n: int = 300, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Members that see the truth through noise of different size."""
    generator = seeded(seed)
    truth = torch.randn(n, classes, dtype=torch.float64, generator=generator)
    noise = torch.randn(k, n, classes, dtype=torch.float64, generator=generator)
    logits = 1.5 * truth + noise * torch.linspace(0.5, 2.0, k, dtype=torch.float64).view(-1, 1, 1)
    y = torch.multinomial((1.5 * truth).softmax(-1), 1, generator=generator)[:, 0]
    return logits, y


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_derived_gradient_is_that_of_autograd(k, average):
    logits, y = case(k)
    weights = torch.randn(k, dtype=torch.float64, generator=seeded(1))
    weights = (weights.abs() if average == "probabilities" else weights).requires_grad_()
    (expected,) = torch.autograd.grad(ensemble_loss(weights, logits, y, average=average), weights)
    found = weight_gradient(weights.detach(), logits, y, average=average)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_loss_of_averaged_probabilities_is_that_of_the_mixture():
    logits, y = case(3)
    weights = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    mixture = torch.einsum("m,mnc->nc", weights, logits.softmax(-1))
    expected = torch.nn.functional.nll_loss(mixture.log(), y)
    torch.testing.assert_close(ensemble_loss(weights, logits, y, average="probabilities"), expected)
    far = torch.tensor([[[0.0, 800.0]], [[0.0, 900.0]]])  # probabilities of e^-800 and e^-900, which are 0 in any type
    found = ensemble_loss(torch.tensor([0.25, 0.75]), far, torch.tensor([0]), average="probabilities")
    assert float(found) == pytest.approx(800 + np.log(4))


def test_the_best_weights_of_probabilities_are_not_those_of_logits():
    """A confident member that is sometimes wrong spoils a mean of logits more than one of probabilities."""
    logits, y = case(2, n=2000)
    logits[1] *= 4.0
    best = optimal_weights(logits, y, average="probabilities")
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    losses = [float(ensemble_loss(torch.stack([1 - w, w]), logits, y, average="probabilities")) for w in grid]
    assert abs(float(best[1]) - float(grid[int(np.argmin(losses))])) <= 1e-3
    assert abs(float(best[1]) - float(optimal_weights(logits, y, signs="nonnegative")[1])) > 0.02
    gradient = weight_gradient(best, logits, y, average="probabilities")
    torch.testing.assert_close(gradient, -torch.ones_like(best), rtol=0, atol=1e-4)  # so that w·gradient is -1


def test_a_model_that_averages_probabilities_learns_weights_for_them():
    model = en_resnet(8, in_channels=1, num_members=2, average="probabilities", noise_std="sample", seed=0, width=4)
    x, y = torch.rand(40, 1, 8, 8, generator=seeded()), torch.randint(10, (40,), generator=seeded(1))
    weights = learn_weights(model.eval(), x, y, num_draws=3, generator=seeded(2))
    assert bool((weights >= 0).all())
    logits = member_logits(model, x, num_draws=3, generator=seeded(2))
    with noise_from(seeded(2), model), torch.no_grad():
        draws = torch.stack([model.member_logits(x).softmax(-1) for _ in range(3)])
    torch.testing.assert_close(logits.exp(), draws.mean(0))
    for other in ([0.5, 0.5], [1.0, 0.0], [0.0, 1.0]):
        assert float(ensemble_loss(weights, logits, y, average="probabilities")) <= 1e-9 + float(
            ensemble_loss(torch.tensor(other), logits, y, average="probabilities")
        )
    with pytest.raises(ValueError, match=r"weights: expected none negative, as probabilities are averaged, got \[-1"):
        model.set_weights([-1.0, 2.0])
    with pytest.raises(ValueError, match="signs: expected 'nonnegative' where probabilities are averaged, got 'any'"):
        learn_weights(model, x, y, signs="any", generator=seeded())
    with torch.no_grad():
        for member in model.members:
            member.fc.bias.copy_(torch.linspace(0, 900, 10))
    assert torch.isfinite(model(x)).all()  # the least probabilities are 0 in float32, their logarithms are not -inf


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("signs", ["any", "nonnegative"])
def test_the_convex_optimum_is_never_worse_than_the_papers_update(seed, signs):
    logits, y = case(3, seed)
    best = optimal_weights(logits, y, signs=signs)
    assert float(best.sum()) == pytest.approx(1.0, abs=1e-12)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    reached = float(ensemble_loss(best, logits, y))
    for _ in range(50):
        weights = paper_update(weights, logits, y, lr=0.1)
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
        if signs == "any" or bool((weights >= 0).all()):
            assert reached <= float(ensemble_loss(weights, logits, y)) + 1e-9


def test_the_optimum_satisfies_the_conditions_of_optimality():
    logits, y = case(4)
    gradient = weight_gradient(optimal_weights(logits, y), logits, y)
    assert float((gradient - gradient.mean()).abs().max()) < 1e-9  # one multiplier for Σ w = 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_weights_are_learned_where_the_images_are(device):
    dataset = data.load("digits", num_train=30, num_test=12, device=device)
    x, y = dataset.images(dataset.test.x, torch.float64), dataset.test.y
    found = []
    for where in (device, "cpu"):
        model = en_resnet(8, num_members=2, in_channels=1, width=4, noise="off", seed=1).to(where, torch.float64)
        found.append(
            [
                learn_weights(model, x.to(where), y.to(where), generator=torch.Generator(where)).cpu(),
                update_weights(model, x.to(where), y.to(where), lr=0.1, generator=torch.Generator(where)).cpu(),
            ]
        )
        assert model.weights.device.type == where
    torch.testing.assert_close(*found)
    assert abs(float(found[0][0][0]) - 0.5) > 1e-3


def test_one_network_has_weight_one():
    logits, y = case(1)
    assert optimal_weights(logits, y).tolist() == [1.0]
    assert paper_update(torch.ones(1, dtype=torch.float64), logits, y, lr=0.1).tolist() == [1.0]


@pytest.mark.parametrize("signs", ["any", "nonnegative"])
def test_equal_networks_keep_equal_weights(signs):
    logits, y = case(1)
    same = logits.expand(3, -1, -1)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(optimal_weights(same, y, signs=signs), third)
    torch.testing.assert_close(paper_update(third, same, y, lr=0.1), third)


def test_a_useless_member_gets_no_weight():
    """The first member is the truth itself; the second knows nothing, so its weight is zero up to sampling."""
    generator = seeded(3)
    truth = 2.0 * torch.randn(20_000, 4, dtype=torch.float64, generator=generator)
    y = torch.multinomial(truth.softmax(-1), 1, generator=generator)[:, 0]
    logits = torch.stack([truth, 2.0 * torch.randn(truth.shape, dtype=torch.float64, generator=generator)])
    assert abs(float(optimal_weights(logits, y)[1])) < 0.02
    assert abs(float(optimal_weights(logits, y, signs="nonnegative")[1])) < 0.02
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for _ in range(300):
        weights = paper_update(weights, logits, y, lr=0.1)
    assert abs(float(weights[1])) < 0.05


def test_a_better_member_gets_more():
    logits, y = case(3, n=3000)
    weights = optimal_weights(logits, y)
    assert weights[0] > weights[1] > weights[2]


def test_exact_means_of_two_depths_get_the_weights_of_extrapolation():
    u = torch.rand(500, dtype=torch.float64, generator=seeded())
    slope = torch.randn(500, dtype=torch.float64, generator=seeded(1))
    outputs = torch.stack([u + slope / 8, u + slope / 16])
    torch.testing.assert_close(least_squares_weights(outputs, u), torch.tensor([-1.0, 2.0], dtype=torch.float64))


def test_shared_noise_makes_learned_weights_those_of_extrapolation_and_own_noise_makes_them_equal():
    slope = torch.tensor([1.0, 0.5], dtype=torch.float64)  # bias proportional to 1/L, for L and 2L
    bias, extrapolation = torch.outer(slope, slope), torch.tensor([-1.0, 2.0], dtype=torch.float64)
    one_draw, own = torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for n in (1, 1000):
        torch.testing.assert_close(least_error_weights(bias, one_draw, n), extrapolation)
    torch.testing.assert_close(least_error_weights(bias, own, 1e9), extrapolation, rtol=0, atol=1e-6)
    torch.testing.assert_close(least_error_weights(bias, own, 1e-9), torch.full_like(slope, 0.5), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected two matrices \(k, k\) and a positive number"):
        least_error_weights(bias, own, 0)


def test_weights_of_least_error_are_equal_where_members_are_and_refused_where_no_weights_are_best():
    ones, eye = torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    equal = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for bias in (0.3 * ones, 0.0 * ones, 1e-9 * eye):
        torch.testing.assert_close(least_error_weights(bias, 0.7 * ones, 10), equal)
    torch.testing.assert_close(least_error_weights(ones[:1, :1], ones[:1, :1], 3), torch.ones(1, dtype=torch.float64))
    slope = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    first_two_orders = torch.outer(slope, slope) + torch.outer(slope**2, slope**2)
    richardson = torch.tensor([1 / 3, -2.0, 8 / 3], dtype=torch.float64)
    torch.testing.assert_close(least_error_weights(first_two_orders, torch.ones(3, 3), 1), richardson)
    # along (1, -1) the first falls for ever as a parabola, the second as a line
    for wrong in (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])):
        with pytest.raises(ValueError, match="expected a positive semidefinite bias"):
            least_error_weights(wrong, 0 * eye, 1)
    with pytest.raises(ValueError, match=r"expected two matrices \(k, k\) and a positive number, got \(2, 3\)"):
        least_error_weights(torch.ones(2, 3), torch.ones(2, 3), 1)


def test_separable_data_end_in_finite_weights():
    y = torch.tensor([0, 1, 0, 1])
    right = torch.nn.functional.one_hot(y, 2).double() * 4
    weights = optimal_weights(torch.stack([right, -right]), y)
    assert torch.isfinite(weights).all()
    assert float(ensemble_loss(weights, torch.stack([right, -right]), y)) < 1e-8


def test_an_ensemble_of_depths_takes_its_learned_weights():
    model = from_name("En1ResNet8&En1ResNet14", in_channels=1, noise_std="sample", seed=0, width=4)
    x, y = torch.rand(40, 1, 8, 8, generator=seeded()), torch.randint(10, (40,), generator=seeded(1))
    model.train()
    weights = learn_weights(model, x, y, num_draws=2, generator=seeded(2))
    torch.testing.assert_close(model.weights.double(), weights, rtol=0, atol=1e-6)
    assert model.training
    logits = member_logits(model, x, num_draws=2, generator=seeded(2))
    assert logits.shape == (2, 40, 10)
    before = float(ensemble_loss(torch.tensor([0.5, 0.5]), logits, y))
    assert float(ensemble_loss(weights, logits, y)) <= before


def test_weights_learned_once_an_epoch_survive_an_interruption(tmp_path):
    """The hook of training, as the tables use it: the resumed run has the same bits, weights of members included."""
    digits = data.load("digits", num_train=60)
    config = TrainConfig(loss="natural", epochs=3, batch_size=16, lr=0.05, hold_out=False, select="last", seed=1)
    x, y, seen = digits.images(digits.train.x), digits.train.y, []

    def on_epoch(model, epoch):
        seen.append((epoch, update_weights(model, x, y, lr=0.5, generator=seeded(epoch)).tolist()))

    def stop_in_the_third_epoch(done, total):
        if done == 10:
            raise KeyError("stopped")

    def fresh():
        return from_name("En1ResNet8&En1ResNet14", in_channels=1, seed=0, width=4)

    whole, half, rest = fresh(), fresh(), fresh()
    options = {"path": tmp_path / "run.safetensors", "on_epoch": on_epoch}
    train(whole, digits, config, on_step=lambda *_: None, on_epoch=on_epoch)
    uninterrupted, seen[:] = list(seen), []
    with pytest.raises(KeyError):
        train(half, digits, config, on_step=stop_in_the_third_epoch, **options)
    train(rest, digits, config, on_step=lambda *_: None, **options)
    assert seen == uninterrupted
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    for (name, a), b in zip(whole.state_dict().items(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert rest.weights.tolist() == pytest.approx(seen[-1][1])
    assert rest.weights.tolist() != [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ensemble_loss(torch.ones(2), torch.ones(3, 4, 5), torch.zeros(4)),
            r"weights, logits, y: expected shapes \(k,\)",
        ),
        (lambda: ensemble_loss(torch.ones(3), *case(3), average="votes"), "average: expected 'logits' or 'prob"),
        (
            lambda: weight_gradient(torch.tensor([2.0, -1.0]), *case(2), average="probabilities"),
            r"weights: expected none negative, as probabilities are averaged, got \[2.0, -1.0\]",
        ),
        (lambda: optimal_weights(*case(2), signs="positive"), "expected 'any' or 'nonnegative', got 'positive'"),
        (lambda: paper_update(torch.tensor([0.5, 0.5]), 50 * case(2)[0], case(2)[1], lr=100.0), "expected a step that"),
        (lambda: least_squares_weights(torch.ones(2, 3), torch.ones(4)), r"outputs, target: expected shapes \(k, N\)"),
        (
            lambda: member_logits(en_resnet(8, in_channels=1), torch.rand(2, 1, 8, 8), num_draws=0, generator=seeded()),
            "num_draws: expected at least 1, got 0",
        ),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
