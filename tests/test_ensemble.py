"""The ensemble as an estimate: its interval, number of draws, early stopping, and control."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn
from torch.overrides import TorchFunctionMode

from bridge.control import NoiseExpansion
from bridge.draws import LOOK_COST
from bridge.ensemble import IntervalWarning, _Sums, ensemble_estimate, softmax, values
from bridge.flow import FlowNetwork, ProblemNetwork, SmoothVelocity
from netkit import PRESETS, en_resnet, load, train
from netkit.noise import Noise, NoiseStream, ResidualNoise
from pdekit import ConvectionDiffusion


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Drawn(nn.Module):
    """Returns f = fixed probabilities or random ones, one independent draw an image; each call advances."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.draw, self.stream = draw, NoiseStream(0)

    def using_generator(self, generator):
        return self.stream.replaced(generator=generator)

    def forward(self, x):
        return self.draw(x, self.stream.generator(x.device))


def gaussian_logit(sigma: float = 1.5) -> FlowNetwork:
    """No velocity: logits (0, N(x_1, σ²)), so the mean probability is an integral in one dimension."""
    velocity = SmoothVelocity(2, speed=1.0)
    velocity.speed = 0.0
    network = FlowNetwork(velocity, num_blocks=1, sigma=sigma)
    with torch.no_grad():
        network.readout.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        network.readout.bias.zero_()
    return network


def test_students_interval_is_right_in_95_of_100_repetitions_and_that_of_bets_in_no_fewer():
    """10,000 images that are all the same point: as many repetitions of one estimate with a known answer."""
    exact = stats.norm(0.5, 1.5).expect(special.expit)
    x = torch.tensor([[0.5, 0.0]]).expand(10_000, 2)
    estimate = ensemble_estimate(gaussian_logit(), x, num_draws=50, batch_size=10_000, generator=seeded(1))
    low, high = estimate.confidence_interval(0.95, kind="student")
    right = float(((low[:, 1] <= exact) & (exact <= high[:, 1])).double().mean())
    assert abs(right - 0.95) <= 0.015
    student = float((high - low).mean())
    low, high = estimate.confidence_interval(0.95)
    assert float(((low[:, 1] <= exact) & (exact <= high[:, 1])).double().mean()) >= 0.95
    assert student < float((high - low).mean()) < 2 * student
    assert abs(float(estimate.mean[:, 1].mean()) - exact) < 4 * float(estimate.standard_error[:, 1].mean()) / 100


def test_with_the_control_chosen_by_itself_the_interval_is_as_right():
    """The same, where the control takes nine tenths of the variance and leaves heavy tails; and no bias comes in."""
    exact = stats.norm(0.5, 1.5).expect(special.expit)
    x = torch.tensor([[0.5, 0.0]]).expand(10_000, 2)
    options = {"num_draws": 200, "batch_size": 10_000}
    plain = ensemble_estimate(gaussian_logit(), x, **options, generator=seeded(1))
    estimate = ensemble_estimate(gaussian_logit(), x, **options, control="auto", generator=seeded(2))
    assert estimate.controlled
    assert estimate.cost <= 1.15 * plain.cost  # of which 1.1 is that of a draw in two classes
    with pytest.warns(IntervalWarning, match="too few for their skewness"):
        low, high = estimate.confidence_interval(0.95)
    right = float(((low[:, 1] <= exact) & (exact <= high[:, 1])).double().mean())
    assert abs(right - 0.95) <= 0.015
    error = estimate.mean[:, 1] - exact
    assert abs(float(error.mean())) < 4 * float(error.std()) / 100
    assert float(error.square().mean()) < 0.1 * float((plain.mean[:, 1] - exact).square().mean())


def test_the_interval_knows_skewness():
    """Most draws are near 0 and a few near 1: Student's t alone misses high means far more often than low ones."""

    def draw(x, generator):
        return torch.rand(len(x), 1, generator=generator, dtype=torch.float64) ** 3

    estimate = ensemble_estimate(
        Drawn(draw), torch.zeros(10_000, 1), num_draws=50, output=values, batch_size=10_000, generator=seeded(8)
    )
    with pytest.warns(IntervalWarning, match=r"^\d\.\d% of the intervals"):
        low, high = estimate.confidence_interval()
    assert abs(float(((low <= 0.25) & (high >= 0.25)).double().mean()) - 0.95) <= 0.015
    t = (estimate.mean - 0.25) / estimate.standard_error
    far = stats.t.ppf(0.975, 49)
    naive, ours = (
        abs(float(above.double().mean()) - float(below.double().mean()))
        for above, below in ((t > far, t < -far), (low > 0.25, high < 0.25))
    )
    assert ours < 0.5 * naive
    sample = torch.stack([torch.rand(40, generator=seeded(n), dtype=torch.float64) ** 6 for n in range(3)], 1)
    sums = _Sums()
    for row in sample:
        sums.add(row.view(1, 3, 1), torch.ones(3, dtype=torch.bool))
    np.testing.assert_allclose(sums.skewness[:, 0], stats.skew(sample.numpy(), axis=0), rtol=1e-10)
    sums = _Sums()
    for part in sample.unsqueeze(-1).split([1, 7, 32]):
        sums.add(part, torch.ones(3, dtype=torch.bool))
    np.testing.assert_allclose(sums.skewness[:, 0], stats.skew(sample.numpy(), axis=0), rtol=1e-10)
    np.testing.assert_allclose(sums.deviation[:, 0], sample.std(0), rtol=1e-10)


def test_the_control_is_used_where_it_pays():
    """Small noise: yes. Few draws, for which its remainder's tails are too heavy, or nothing to expand: no."""
    network = FlowNetwork(SmoothVelocity(2, seed=1), num_blocks=8, sigma=0.2, seed=2)
    x = torch.randn(60, 2, generator=seeded())
    assert ensemble_estimate(network, x, num_draws=200, control="auto", generator=seeded(1)).controlled
    few = ensemble_estimate(network, x, num_draws=199, control="auto", generator=seeded(1))
    assert not few.controlled
    assert few.cost == 199 * 60 + LOOK_COST  # nothing was spent on looking for a control
    coin = Drawn(lambda x, g: torch.rand(len(x), 2, generator=g).softmax(-1))
    assert not ensemble_estimate(coin, x, control="auto", generator=seeded()).controlled
    bowl = {"x": torch.zeros(60, 2), "output": torch.square, "generator": seeded(1)}  # level where the noise starts
    assert not ensemble_estimate(gaussian_logit(), num_draws=200, control="auto", **bowl).controlled
    early = ensemble_estimate(network, x, stop_when_decided=True, control="auto", generator=seeded(1))
    assert not early.controlled
    assert torch.equal(early.mean, ensemble_estimate(network, x, stop_when_decided=True, generator=seeded(1)).mean)


def test_a_target_error_is_reached_sooner_with_the_control():
    exact = stats.norm(0.5, 1.5).expect(special.expit)
    x = torch.tensor([[0.5, 0.0]]).expand(2000, 2)
    options = {"target_error": 0.03, "batch_size": 2000}
    plain = ensemble_estimate(gaussian_logit(), x, **options, generator=seeded(2))
    estimate = ensemble_estimate(gaussian_logit(), x, **options, control="auto", generator=seeded(3))
    assert estimate.controlled
    assert estimate.cost < 0.4 * plain.cost
    assert float((estimate.mean[:, 1] - exact).abs().le(0.03).double().mean()) >= 0.945


def test_a_control_of_many_classes_pays_for_all_their_sums():
    """100 sums make a draw six times as dear: what pays for 2 classes does not for 100, at the same variance."""
    x, chosen = torch.randn(10, 2, generator=seeded()), []
    for classes in (2, 100):
        network = FlowNetwork(SmoothVelocity(2, seed=1), num_classes=classes, num_blocks=2, sigma=0.3, seed=2)
        with torch.no_grad():
            network.readout.weight.mul_(4.0)  # so that a tenth of the variance is left

        def first_two(logits):
            return logits[:, :2].softmax(-1).repeat(1, logits.shape[1] // 2)

        options = {"num_draws": 1000, "output": first_two, "control": "auto", "generator": seeded(1)}
        chosen.append(ensemble_estimate(network, x, **options).controlled)
    assert chosen == [True, False]
    network = FlowNetwork(SmoothVelocity(2, seed=1), num_classes=10, num_blocks=2, sigma=0.1, seed=2)
    cost = ensemble_estimate(network, x, num_draws=20, control=True, generator=seeded(1)).cost
    assert cost == 10 * (20 * 1.5 + 21) + 1 * (16 * 1.5 + 21) + 1  # draws and gradients, a probe, a look at K


def test_the_probe_never_costs_more_than_a_tenth_of_what_is_sure_to_be_spent():
    for images in (4, 60):
        x = torch.tensor([[0.5, 0.0]]).expand(images, 2)
        plain = ensemble_estimate(gaussian_logit(), x, target_error=0.1, generator=seeded(1))
        auto = ensemble_estimate(gaussian_logit(), x, target_error=0.1, control="auto", generator=seeded(1))
        assert plain.cost >= 19 * images
        assert auto.cost <= 1.1 * plain.cost + 1


SKEWED = {
    "even": stats.norm(0.5, 1.5),
    "skewed": stats.norm(-2.0, 1.5),
    "near 0": stats.norm(-4.0, 2.0),
    "next to 0": stats.norm(-6.0, 1.0),
    "near 1": stats.norm(4.0, 2.0),
}


def draws_of(logit):
    """A model that draws the logits of two classes, (0, logit)."""

    def draw(x, generator):
        noise = torch.randn(len(x), 1, generator=generator, dtype=torch.float64)
        return torch.cat([torch.zeros_like(noise), logit.mean() + logit.std() * noise], 1)

    return Drawn(draw)


@pytest.mark.parametrize("control", [False, True], ids=["plain", "control"])
@pytest.mark.parametrize("name", SKEWED)
def test_a_target_error_is_kept_however_skewed_the_draws(name, control):
    """Of 2,000 repetitions at most one in ten may miss, and four standard errors; Stein's stages miss 4 to 22%."""
    logit = SKEWED[name]
    exact, repetitions = logit.expect(special.expit), 2000
    model = draws_of(logit)
    if control:
        model = gaussian_logit(logit.std())
        with torch.no_grad():
            model.readout.bias[1] = logit.mean()
    estimate = ensemble_estimate(
        model, torch.zeros(repetitions, 2), target_error=0.05, level=0.9, control=control, batch_size=repetitions,
        generator=seeded(9),
    )  # fmt: skip
    assert estimate.controlled == control
    allowed = 0.1 + 4 * (0.1 * 0.9 / repetitions) ** 0.5
    low, high = estimate.confidence_interval(0.9)
    assert float((high - low).max()) <= 0.1 + 1e-12
    assert float(((exact < low[:, 1]) | (exact > high[:, 1])).double().mean()) <= allowed
    assert float(((1 - exact < low[:, 0]) | (1 - exact > high[:, 0])).double().mean()) <= allowed
    assert bool(((low <= estimate.mean) & (estimate.mean <= high)).all())
    wider_low, wider_high = estimate.confidence_interval(0.99)
    assert bool(((wider_low <= low) & (high <= wider_high)).all())


def test_an_interval_takes_less_than_twice_what_the_normal_distribution_would():
    """And, where next to nothing varies, what it takes to rule out rare large draws, of which Stein saw none."""
    exact, x = SKEWED["even"].expect(special.expit), torch.zeros(500, 1)
    even = ensemble_estimate(draws_of(SKEWED["even"]), x, target_error=0.02, batch_size=500, generator=seeded(2))
    normal = (1.96 * float(even.standard_deviation.mean()) / 0.02) ** 2
    assert float(even.num_draws.double().mean()) < 2.1 * normal
    assert len(set(even.num_draws.tolist())) > 10  # every image has its own number
    assert float((even.mean[:, 1] - exact).abs().le(0.02).double().mean()) >= 0.95
    still = Drawn(lambda x, _: x.expand(-1, 2))
    estimate = ensemble_estimate(still, torch.ones(3, 1), target_error=0.02, output=values, generator=seeded())
    (needed,) = set(estimate.num_draws.tolist())
    assert np.log(40) / 0.04 < needed < np.log(40) / 0.02
    assert estimate.confidence_interval()[0].min() >= 0.96


def test_an_image_cut_short_has_a_wider_interval_that_is_still_right():
    logit = SKEWED["skewed"]
    estimate = ensemble_estimate(
        draws_of(logit), torch.zeros(2000, 1), target_error=0.05, max_draws=20, batch_size=2000, generator=seeded(3)
    )
    low, high = estimate.confidence_interval()
    assert estimate.num_draws.unique().tolist() == [20]
    assert float((high - low).mean()) > 0.2
    exact = logit.expect(special.expit)
    assert float(((low[:, 1] <= exact) & (exact <= high[:, 1])).double().mean()) >= 0.95


@pytest.mark.parametrize(("sigma", "target"), [(0.02, 0.02), (0.02, 0.005), (0.1, 0.02), (0.1, 0.005)])
def test_draws_of_little_variance_need_what_is_said(sigma, target):
    """Where the range of the draws decides, not their variance, and the first draws, whose bets are small."""
    x = torch.tensor([[0.0, 0.0]]).expand(10, 2)
    pilot = ensemble_estimate(gaussian_logit(sigma), x, num_draws=100, generator=seeded(3))
    needed = int(pilot.draws_for(target).double().median())
    low, high = ensemble_estimate(gaussian_logit(sigma), x, num_draws=needed, generator=seeded(4)).confidence_interval()
    assert float((high - low).mean()) / 2 == pytest.approx(target, rel=0.15)


def test_the_number_of_draws_asked_for_delivers_the_half_width():
    x = torch.tensor([[0.5, 0.0]]).expand(20, 2)
    pilot = ensemble_estimate(gaussian_logit(), x, num_draws=200, generator=seeded(3))
    needed = int(pilot.draws_for(0.02).double().median())
    low, high = ensemble_estimate(gaussian_logit(), x, num_draws=needed, generator=seeded(4)).confidence_interval()
    assert float((high - low).mean()) / 2 == pytest.approx(0.02, rel=0.15)
    fewer = int(pilot.draws_for(0.02, kind="student").double().median())
    assert fewer < 0.6 * needed
    estimate = ensemble_estimate(gaussian_logit(), x, num_draws=fewer, generator=seeded(4))
    low, high = estimate.confidence_interval(kind="student")
    assert float((high - low).mean()) / 2 == pytest.approx(0.02, rel=0.1)


def test_early_stopping_is_wrong_no_more_often_than_promised():
    """Two classes at 0.5 ± 0.02, 3000 times: a procedure that looks at every draw and ignores it would err often."""

    def draw(x, generator):
        p = torch.rand(len(x), 1, generator=generator) < 0.52
        return torch.cat([p, ~p], 1).double()

    x = torch.zeros(3000, 1)
    estimate = ensemble_estimate(
        Drawn(draw), x, num_draws=300, stop_when_decided=True, output=values, batch_size=3000, generator=seeded(5)
    )
    wrong = estimate.decided & (estimate.prediction == 1)
    assert 0 < int(estimate.decided.sum()) < 3000
    assert float(wrong.double().mean()) <= 0.05
    naive = ensemble_estimate(Drawn(draw), x, num_draws=20, output=values, batch_size=3000, generator=seeded(5))
    assert float((naive.prediction == 1).double().mean()) > 0.2


def test_a_certain_image_stops_early_and_an_even_one_never():
    def draw(x, generator):
        noise = torch.rand(len(x), 1, generator=generator, dtype=torch.float64)
        even = torch.cat([noise, 1 - noise, torch.zeros(len(x), 1)], 1)
        sure = torch.tensor([[0.02, 0.95, 0.03]], dtype=torch.float64).expand(len(x), 3)
        return torch.where(x > 0, sure, even)

    x = torch.tensor([[1.0], [0.0]]).repeat(100, 1)
    estimate = ensemble_estimate(
        Drawn(draw), x, num_draws=100, stop_when_decided=True, output=values, generator=seeded(6)
    )
    sure = x[:, 0] > 0
    assert int(estimate.num_draws[sure].max()) <= 10
    assert (estimate.prediction[sure] == 1).all()
    assert float((estimate.num_draws[~sure] == 100).double().mean()) > 0.9
    assert estimate.cost == int(estimate.num_draws.sum())


@pytest.mark.slow
def test_on_trained_digits_early_stopping_saves_draws_at_the_same_decision_error():
    """Error: decisions that differ from those of many more draws. A fixed 100 makes it too, at ties."""
    data = load("digits")
    model = en_resnet(8, num_members=1, in_channels=1, width=8, noise_std="sample", noise_coef=0.3, seed=0)
    recipe = replace(PRESETS["digits"], loss="natural", epochs=4, select="last", hold_out=False)
    train(model, data, recipe, on_step=lambda *_: None)
    x, y = data.images(data.test.x[:250]), data.test.y[:250]
    true = ensemble_estimate(model, x, num_draws=800, batch_size=len(x), generator=seeded(0)).prediction
    assert float((true == y).double().mean()) > 0.8
    fixed, stopped, cost = 0, 0, 0
    for repetition in range(3):
        options = {"num_draws": 100, "batch_size": len(x)}
        full = ensemble_estimate(model, x, **options, generator=seeded(10 + repetition))
        early = ensemble_estimate(model, x, **options, stop_when_decided=True, generator=seeded(20 + repetition))
        fixed += int((full.prediction != true).sum())
        stopped += int((early.prediction != true).sum())
        cost += early.cost
    n = 3 * len(x)
    assert cost <= 0.4 * 100 * n
    # two binomial counts: no more than four standard errors apart
    assert stopped - fixed <= 4 * np.sqrt(max(stopped + fixed, 1))
    assert stopped / n < 0.01


@pytest.mark.parametrize("std", ["sample", "constant"])
@pytest.mark.parametrize("size", [0.02, 0.2])
def test_the_control_keeps_the_mean_and_takes_the_variance(std, size):
    network = en_resnet(
        8,
        num_members=2,
        in_channels=1,
        width=4,
        noise_std=std,
        noise_coef=size,
        sigma=size if std == "constant" else None,
        seed=1,
    ).double()
    x = torch.rand(6, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    plain = ensemble_estimate(network, x, num_draws=300, generator=seeded(1))
    controlled = ensemble_estimate(network, x, num_draws=300, control=True, generator=seeded(2))
    z = (plain.mean - controlled.mean) / torch.hypot(plain.standard_error, controlled.standard_error)
    assert float(z.abs().max()) < 4
    ratio = (plain.standard_deviation.square().mean() / controlled.standard_deviation.square().mean()).item()
    assert ratio > (3 if size == 0.02 else 1), ratio  # kinks of the relu leave more than second order


class LiveBytes(TorchFunctionMode):
    """The most that tensors made inside took at one time, views counted as if they were copies."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not any(out is given for given in args):
            self.add(out.nbytes)
            weakref.finalize(out, self.add, -out.nbytes)
        return out

    def add(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def test_a_draw_needs_little_memory_beside_what_the_expansion_keeps():
    network = FlowNetwork(SmoothVelocity(2, width=4, seed=1), num_classes=20, num_blocks=50, sigma=0.2)
    expansion = NoiseExpansion(network, torch.randn(100, 2, generator=seeded()), softmax)
    kept = 20 * 50 * 100 * 2 * 4
    for rows in (None, torch.arange(100) < 90):
        with LiveBytes() as memory:
            expansion.draw(rows)
        assert 0.05 * kept < memory.peak < 0.3 * kept  # the noise itself is a twentieth


def test_what_is_left_after_the_control_is_of_second_order():
    network = FlowNetwork(SmoothVelocity(2, seed=1), num_blocks=8, sigma=0.2, seed=2).double()
    x = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    left = []
    for scale in (0.1, 0.2, 0.4):
        with network.noise_scale(scale):
            estimate = ensemble_estimate(network, x, num_draws=200, control=True, generator=seeded(3))
            twin = NoiseExpansion(network, x, softmax).twin
        left.append(float(estimate.standard_deviation.mean()))
    assert abs(np.polyfit(np.log([0.1, 0.2, 0.4]), np.log(left), 1)[0] - 2) < 0.1
    with network.noise_off(), torch.no_grad():
        torch.testing.assert_close(network(x).softmax(-1), twin)


def test_it_averages_any_model_and_leaves_it_as_it_was():
    model = en_resnet(8, in_channels=1, noise_std="batch", seed=0).train()
    state = model.generator_state()
    x = torch.rand(7, 1, 8, 8, generator=seeded())
    first = ensemble_estimate(model, x, num_draws=4, batch_size=3, generator=seeded(1))
    again = ensemble_estimate(model, x, num_draws=4, batch_size=3, generator=seeded(1))
    assert torch.equal(first.mean, again.mean)
    assert model.training
    assert torch.equal(model.generator_state(), state)
    torch.testing.assert_close(first.mean.sum(1), torch.ones(7, dtype=torch.float64))
    assert not first.decided.any()


def test_a_problem_of_pdekit_is_averaged_as_it_is():
    problem = ConvectionDiffusion(np.zeros((2, 8, 8)), lambda z: np.cos(2 * np.pi * z[..., 0]), 0.2)
    network = ProblemNetwork(problem, num_blocks=1)
    x = torch.tensor([[0.1, 0.2]], dtype=torch.float64).repeat(500, 1)
    estimate = ensemble_estimate(network, x, num_draws=20, batch_size=500, output=values, generator=seeded())
    exact = np.cos(0.2 * np.pi) * np.exp(-0.5 * (2 * np.pi * 0.2) ** 2)
    assert abs(float(estimate.mean.mean()) - exact) < 4 * float(estimate.standard_error.mean()) / 500**0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 1}, "num_draws, batch_size: expected at least 2 and 1, got 1 and"),
        ({"level": 1.0}, "level: expected a number between 0 and 1, got 1.0"),
        ({"target_error": -1.0}, "target_error: expected a positive half-width, got -1.0"),
        ({"control": "sometimes"}, "control: expected True, False or 'auto', got 'sometimes'"),
        ({"control": 1}, "control: expected True, False or 'auto', got 1"),
        ({"control": np.True_}, "control: expected True, False or 'auto', got np.True_"),
        ({"num_draws": 2.5}, r"num_draws: expected a whole number, got 2\.5"),
        ({"target_error": 0.1, "max_draws": 1}, "max_draws: expected at least 2, got 1"),
        ({"control": True, "stop_when_decided": True}, "expected neither target_error nor control=True beside it"),
        ({"stop_when_decided": True, "output": values}, "stop_when_decided: expected probabilities from output"),
        ({"target_error": 0.1, "output": values}, "target_error: expected probabilities from output, got"),
    ],
)
def test_errors_say_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        ensemble_estimate(gaussian_logit(), 9 * torch.ones(3, 2), generator=seeded(), **options)


def test_images_that_are_none_or_lead_nowhere_are_refused():
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor, got ndarray; torch\.as_tensor makes one"):
        ensemble_estimate(gaussian_logit(), np.ones((3, 2)), generator=seeded())
    x = torch.ones(3, 2)
    x[1, 0] = np.nan
    with pytest.raises(ValueError, match="model: expected finite outputs, got others for 1 of 3 images; is x finite"):
        ensemble_estimate(gaussian_logit(), x, generator=seeded())


def test_images_cannot_drop_out_of_a_batch_they_make_noise_for():
    model = en_resnet(8, in_channels=1, noise_std="batch", seed=0)
    with pytest.raises(
        ValueError, match=r"expected noise_std 'sample' or 'constant', got 'batch', .*, while images drop"
    ):
        ensemble_estimate(model, torch.rand(3, 1, 8, 8), stop_when_decided=True, generator=seeded())


def test_models_without_noise_are_refused():
    with pytest.raises(ValueError, match="model: expected a random one, got Linear, whose passes in eval mode"):
        ensemble_estimate(nn.Linear(2, 2), torch.ones(3, 2), generator=seeded())
    with pytest.raises(ValueError, match="expected noise layers that are on, on one stream, got 0"):
        NoiseExpansion(ResidualNoise(Noise("off"), num_blocks=1, stream=NoiseStream(0)), torch.ones(3, 2), softmax)
    still = ProblemNetwork(ConvectionDiffusion(np.zeros((2, 8, 8)), lambda z: z[..., 0], 0.2), num_blocks=1)
    with pytest.raises(ValueError, match="expected one that gradients flow through"):
        NoiseExpansion(still, torch.rand(3, 2), values)
    with pytest.raises(ValueError, match="on one stream, got 0 streams"):
        NoiseExpansion(nn.Linear(2, 2), torch.ones(3, 2), softmax)
    estimate = ensemble_estimate(gaussian_logit(), torch.ones(3, 2), num_draws=2, generator=seeded())
    with pytest.raises(ValueError, match="target_error: expected a positive half-width, got 0"):
        estimate.draws_for(0)
