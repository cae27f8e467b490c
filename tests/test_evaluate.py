from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from netkit import attacks, evaluate, models
from netkit.checkpoint import CheckpointError
from netkit.evaluate import Score
from netkit.intervals import clopper_pearson, mean_accuracy, paired_difference, wilson
from netkit.randomness import derived_generator, is_random

IFGSM = partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=3)


def images(n: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def net(**options: Any) -> models.EnResNet:
    return models.en_resnet(8, **{"num_members": 2, "in_channels": 1, "width": 4, "seed": 1, **options})


class Linear(nn.Module):
    """A model whose gradient tells the truth: the logits are scaled inner products with fixed patterns."""

    def __init__(self, scale: float = 3.0) -> None:
        super().__init__()
        patterns = torch.randn(10, 64, generator=torch.Generator().manual_seed(5))
        self.register_buffer("patterns", scale * patterns / 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.patterns.T


def labelled_by(model: nn.Module, n: int = 200) -> tuple[Tensor, Tensor]:
    x, _ = images(n)
    return x, model(x).argmax(1)


# Intervals


def test_wilson_matches_its_published_example() -> None:
    # Newcombe 1998, Table I: 81 of 263
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (81, 263)])
def test_clopper_pearson_inverts_the_binomial_tails(successes: int, n: int) -> None:
    interval = clopper_pearson(successes, n, confidence=0.9)
    if successes > 0:
        assert stats.binom.sf(successes - 1, n, interval.low) == pytest.approx(0.05)
    if successes < n:
        assert stats.binom.cdf(successes, n, interval.high) == pytest.approx(0.05)
    assert successes / n in interval


def test_counts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="got 4 of 3"):
        wilson(4, 3)
    with pytest.raises(ValueError, match="n >= 1, got 0 of 0"):
        clopper_pearson(0, 0)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_paired_intervals_cover_the_true_difference(num_seeds: int) -> None:
    # images differ in difficulty, and each trained network by a shift of its own
    generator = torch.Generator().manual_seed(0)
    true, covered, trials = 0.05, 0, 1500
    shift = 0.03 if num_seeds > 1 else 0.0
    for _ in range(trials):
        easy = 0.3 + 0.4 * torch.rand(1, 80, generator=generator)
        sides = []
        for mean in (true / 2, -true / 2):
            chance = easy + mean + shift * torch.randn(num_seeds, 1, generator=generator)
            sides.append(torch.bernoulli(chance.clamp(0, 1), generator=generator).double())
        covered += true in paired_difference(list(sides[0]), list(sides[1])).interval
    standard_error = math.sqrt(0.95 * 0.05 / trials)
    assert covered / trials > 0.95 - 4 * standard_error


def test_the_verdict_follows_the_interval_and_turns_with_its_sides() -> None:
    good, bad = torch.ones(100), torch.cat([torch.zeros(30), torch.ones(70)])
    assert paired_difference([good] * 3, [bad] * 3).verdict == "holds"
    assert paired_difference([bad] * 3, [good] * 3).verdict == "does not hold"
    assert paired_difference([good] * 3, [good] * 3).verdict == "undecided"
    assert paired_difference([good] * 2, [bad] * 2).verdict == "too few seeds"
    one, other = paired_difference([good], [bad]), paired_difference([bad], [good])
    assert one.mean == pytest.approx(0.3)
    assert one.interval.low == pytest.approx(-other.interval.high)


def test_seeds_that_disagree_widen_the_interval() -> None:
    better, worse = torch.cat([torch.ones(60), torch.zeros(40)]), torch.cat([torch.ones(40), torch.zeros(60)])
    agreeing = paired_difference([better, better], [worse, worse])
    disagreeing = paired_difference([better, worse], [worse, better])
    assert agreeing.interval.low > 0
    assert disagreeing.mean == 0
    assert disagreeing.interval.high > agreeing.interval.high - agreeing.mean


def test_an_accuracy_lies_between_none_and_all() -> None:
    for correct in (torch.zeros(20), torch.ones(20)):
        interval = mean_accuracy([correct])
        assert 0 <= interval.low < interval.high <= 1
        assert float(correct.mean()) in interval


def test_mean_accuracy_of_one_seed_is_close_to_wilson() -> None:
    correct = torch.cat([torch.ones(300), torch.zeros(239)])
    ours, binomial = mean_accuracy([correct]), wilson(300, 539)
    assert (ours.low, ours.high) == pytest.approx((binomial.low, binomial.high), abs=2e-3)


def test_different_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the same images on both sides"):
        paired_difference([torch.ones(3)], [torch.ones(4)])
    with pytest.raises(ValueError, match="as many seeds on both sides, got 1 and 2"):
        paired_difference([torch.ones(3)], [torch.ones(3)] * 2)


# Scores


def test_mean_and_vote_of_known_predictions() -> None:
    predictions = torch.tensor([[0, 1, 2, 3], [0, 1, 9, 9], [0, 7, 9, 8]])
    score = Score(predictions, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(score.correct, torch.tensor([3, 2, 1, 1], dtype=torch.float64) / 3)
    assert score.voted.tolist() == [True, True, False, True]  # 3, 9, 8 once each: the smallest label wins
    assert score.mean == pytest.approx(7 / 12)
    assert score.vote == 0.75
    assert (score.n, score.num_draws) == (4, 3)
    assert score.summary()["interval"] == [score.interval.low, score.interval.high]


def test_a_model_without_noise_is_scored_once_and_exactly() -> None:
    model = net(noise="off").eval()
    x, y = images()
    score = evaluate.robust_accuracy(model, x, y, IFGSM, batch_size=11, num_draws=10)
    x_adv = torch.cat([IFGSM(model, a, b) for a, b in zip(x.split(11), y.split(11), strict=True)])
    assert torch.equal(score.predictions, model(x_adv).argmax(1).unsqueeze(0))


def test_a_noisy_model_is_scored_over_fresh_draws() -> None:
    score = evaluate.accuracy(net(noise_coef=2.0), *images(), num_draws=12)
    assert score.predictions.shape == (12, 30)
    assert len({tuple(draw) for draw in score.predictions.tolist()}) > 6


def test_scoring_repeats_itself_and_leaves_the_model_as_it_was() -> None:
    model = net(noise_coef=1.0).train()
    model.members[0].bn.eval()
    modes = [module.training for module in model.modules()]
    state, weights = model.generator_state(), {k: v.clone() for k, v in model.state_dict().items()}
    first = evaluate.robust_accuracy(model, *images(), IFGSM, num_draws=3)
    assert torch.equal(model.generator_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    model.eval()(images()[0])  # advances the model's own noise
    assert torch.equal(evaluate.robust_accuracy(model, *images(), IFGSM, num_draws=3).predictions, first.predictions)
    other = evaluate.robust_accuracy(model, *images(), IFGSM, num_draws=3, seed=1)
    assert not torch.equal(other.predictions, first.predictions)


def test_an_interrupted_evaluation_continues_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # by which each block takes a second
    monkeypatch.setattr(evaluate, "time", clock)
    model, (x, y) = net(), images()
    attacked: list[int] = []

    def counting(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        attacked.append(len(x))
        return attacks.pgd(model, x, y, eps=0.2, step_size=0.1, num_steps=2, generator=generator)

    options: dict[str, Any] = {"batch_size": 8, "num_draws": 4}
    whole = evaluate.robust_accuracy(model, x, y, counting, **options)
    assert attacked == [8, 8, 8, 6]

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 4
        if done == 3:
            raise Stop

    store = tmp_path / "scores"
    attacked.clear()
    with pytest.raises(Stop):
        evaluate.robust_accuracy(model, x, y, counting, store=store, key="counting", on_block=stop, **options)
    assert evaluate.stored_score(store) is None
    parts = evaluate.robust_accuracy(model, x, y, counting, store=store, key="counting", **options)
    assert attacked == [8, 8, 8, 6]
    assert torch.equal(parts.predictions, whole.predictions)
    stored = evaluate.stored_score(store)
    assert stored is not None
    assert torch.equal(stored.predictions, whole.predictions)
    assert torch.equal(stored.labels, y)
    assert (whole.seconds, parts.seconds, stored.seconds) == (4, 4, 4)


def test_a_store_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    model, (x, y), store = net(), images(), tmp_path / "scores"
    evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=2, store=store)
    stronger = partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=4)
    with pytest.raises(CheckpointError, match=r"another evaluation: attack='.*ifgsm@\d\(eps=0\.2, num_steps=3"):
        evaluate.robust_accuracy(model, x, y, stronger, num_draws=2, store=store)
    with pytest.raises(CheckpointError, match="another evaluation: model="):
        evaluate.robust_accuracy(net(seed=2), x, y, IFGSM, num_draws=2, store=store)
    with pytest.raises(CheckpointError, match="num_draws=2 where 3 is asked for"):
        evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=3, store=store)


def test_transfer_attacks_the_oracle_and_scores_the_target() -> None:
    oracle, target, (x, y) = net(noise="off", seed=2).eval(), net(noise="off").eval(), images()
    score = evaluate.transfer(oracle, target, x, y, IFGSM)
    assert torch.equal(score.predictions[0], target(IFGSM(oracle, x, y)).argmax(1))
    noisy = net()
    itself = evaluate.transfer(noisy, noisy, x, y, IFGSM, num_draws=3)
    direct = evaluate.robust_accuracy(noisy, x, y, IFGSM, num_draws=3)
    assert torch.equal(itself.predictions, direct.predictions)


def test_the_eot_sweep_starts_at_the_plain_attack() -> None:
    model, (x, y) = net(), images()
    sweep = evaluate.eot_sweep(model, x, y, IFGSM, eot_draws=(1, 3), num_draws=3)
    assert list(sweep) == [1, 3]
    with_noise = derived_generator("cpu", 0, "attack noise", 0)
    with model.using_generator(with_noise):
        x_adv = IFGSM(model.eval(), x, y)
    with model.using_generator(derived_generator("cpu", 0, "score", 0)):
        plain = torch.stack([model(x_adv).argmax(1) for _ in range(3)])
    assert torch.equal(sweep[1].predictions, plain)
    assert torch.equal(
        sweep[3].predictions, evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=3, eot_draws=3).predictions
    )


def test_a_random_model_is_attacked_through_the_expectation_by_default() -> None:
    model, (x, y), seen = net(), images(6), []

    def looking(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(model.num_draws if isinstance(model, attacks.ExpectationOverTransformation) else None)
        return x

    for options in ({}, {"eot_draws": 2}, {"eot_draws": 1}, {"random": False}):
        evaluate.robust_accuracy(model, x, y, looking, **options)  # type: ignore[arg-type]
    evaluate.robust_accuracy(model, x, y, partial(evaluate.through_eot, attack=looking, eot_draws=3))
    evaluate.robust_accuracy(net(noise="off"), x, y, looking)
    evaluate.robust_accuracy(net(noise="off"), x, y, looking, random=True)
    evaluate.transfer(net(noise="off"), model, x, y, looking)
    evaluate.transfer(model, net(noise="off"), x, y, looking)
    assert seen == [5, 2, 1, None, 3, None, 5, None, 5]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, 1, 8, 8), 1.1), r"images within \[0, 1\], got values from 1.1 to 1.1, outside by 0.1"),
        (torch.full((2, 1, 8, 8), math.nan), r"images within \[0, 1\], got values from nan"),
        (torch.zeros(2, 8, 8), r"floating-point images \(N, C, H, W\), got torch.float32 \(2, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floating-point images"),
        (torch.zeros(3, 1, 8, 8), "one label for each of 3 images"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.accuracy(net(), x, torch.zeros(2, dtype=torch.long))


# What an attack returns, and what a model answers


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda model, x, y: x + 5, r"attack: expected images within \[0, 1\], got values from 5.* outside by 5"),
        (lambda model, x, y: x * math.nan, r"attack: expected images within \[0, 1\], got values from nan to nan"),
        (
            lambda model, x, y: x[:-1],
            r"attack: expected images torch.float32 \(4, 1, 8, 8\) on cpu, got .* \(3, 1, 8, 8\)",
        ),
        (lambda model, x, y: x.double(), r"got torch.float64 \(4, 1, 8, 8\)"),
        (lambda model, x, y: x.numpy(), r"got <class 'numpy.ndarray'>"),
        (lambda model, x, y: x.add_(5), r"attack: expected images within"),
    ],
)
def test_what_is_no_image_is_not_scored(attack: evaluate.Attack, message: str) -> None:
    x, y = images(4)
    before = x.clone()
    with pytest.raises(ValueError, match=message):
        evaluate.robust_accuracy(net(noise="off"), x, y, attack)
    assert torch.equal(x, before)


def towards_white(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str = "linf", by: float) -> Tensor:
    change = torch.full_like(x, by if norm == "linf" else by / 8)
    return (x + change).clamp(0, 1)


def test_an_attack_stays_in_the_ball_that_is_asked_for_or_that_it_binds_itself() -> None:
    model, (x, y) = Linear(), images(4)
    x = x / 2

    def run(attack: Any, **options: Any) -> None:
        evaluate.robust_accuracy(model, x, y, attack, **options)

    for norm in ("linf", "l2"):
        inside, outside = (partial(towards_white, eps=0.1, norm=norm, by=by) for by in (0.1, 0.101))
        run(inside)
        run(outside, eps=math.inf)
        run(outside, eps=0.102, norm=norm)
        for attack in (outside, partial(evaluate.through_eot, attack=outside, eot_draws=2), partial(outside)):
            with pytest.raises(
                ValueError, match=rf"attack: expected images within eps=0.1 \({norm}\), got one at .*0.101"
            ):
                run(attack)
        with pytest.raises(ValueError, match=r"within eps=0.05"):
            run(lambda model, x, y, attack=inside: attack(model, x, y), eps=0.05, norm=norm)
    for eps, norm, message in (
        (-1.0, "linf", "eps: expected a number >= 0, got -1"),
        (0.1, "l1", "norm: expected one of .* got 'l1'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(IFGSM, eps=eps, norm=norm)


def test_images_that_are_outside_by_rounding_are_scored_as_the_nearest_inside() -> None:
    model, (x, y) = net(noise="off"), images()
    x = (1.5 * x).clamp(0, 1)
    outside = torch.where(x == 1, 1 + 1.2e-7, x)
    assert float(outside.max()) > 1
    inside = evaluate.accuracy(model, x, y)
    for score in (
        evaluate.accuracy(model, outside, y),
        evaluate.robust_accuracy(model, x, y, lambda model, x, y: outside),
    ):
        assert torch.equal(score.predictions, inside.predictions)


class Answering(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("logits", [(math.nan,) * 3, (0.0, math.nan, 1.0), (0.0, math.inf, 1.0), (-math.inf,) * 3])
def test_logits_without_an_answer_are_refused(logits: tuple[float, ...]) -> None:
    x, y = images(4)
    with pytest.raises(attacks.NotFiniteError, match="finite logits, got NaN or infinity for 4 of 4 images"):
        evaluate.accuracy(Answering(*logits), x, y % 3)
    assert evaluate.accuracy(Answering(-math.inf, 0.0, -math.inf), x, torch.ones_like(y)).mean == 1


def test_labels_that_the_model_does_not_know_are_refused() -> None:
    x, y = images(4)
    with pytest.raises(ValueError, match="expected labels below 3, got"):
        evaluate.accuracy(Answering(0.0, 1.0, 2.0), x, y.clamp(min=3))
    with pytest.raises(ValueError, match=r"expected integer labels >= 0, got torch\.float32"):
        evaluate.accuracy(Answering(0.0, 1.0, 2.0), x, y.float())
    with pytest.raises(ValueError, match=r"expected integer labels >= 0, got torch\.int64 from -1"):
        evaluate.accuracy(Answering(0.0, 1.0, 2.0), x, y - y.min() - 1)


# Randomness


class Sometimes(Linear):
    """Answers at random in some calls, from torch's, numpy's, Python's or its own generator."""

    def __init__(self, chance: float = 1.0, source: str = "torch") -> None:
        super().__init__()
        self.chance, self.source, self.own = chance, source, torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.source == "dropout":
            return nn.functional.dropout(super().forward(x), 0.5, training=True)
        draws: dict[str, Callable[[], float]] = {
            "torch": lambda: float(torch.rand(())),
            "numpy": np.random.random,
            "python": random.random,
            "own": lambda: float(torch.rand((), generator=self.own)),
        }
        draw = draws[self.source]
        is_random, shift = draw() < self.chance, draw()
        return super().forward(x) + (100 * torch.sin(torch.arange(10) * shift) if is_random else 0)


@pytest.mark.parametrize("source", ["torch", "numpy", "python", "own", "dropout"])
def test_a_models_own_randomness_comes_from_the_seed_and_leaves_no_trace(source: str) -> None:
    model = Sometimes(source=source)
    x, y = labelled_by(Linear(), 40)

    def states() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
            model.own.get_state().tolist(),
        ]

    before = states()
    first = evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=3)
    assert states() == before
    for draw in (torch.rand, np.random.random, lambda _: random.random()):
        draw(5)  # type: ignore[operator]
    torch.rand(5, generator=model.own)
    assert first.num_draws == 3
    assert torch.equal(evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=3).predictions, first.predictions)
    other = evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=3, seed=1)
    assert not torch.equal(other.predictions, first.predictions)


def test_a_model_that_is_random_in_one_call_of_ten_is_found() -> None:
    x, _ = images(200)
    assert all(is_random(Sometimes(0.1, source), x) for source in ("torch", "numpy", "python", "own"))
    assert not is_random(Linear(), x)
    assert not is_random(net(noise="off").train(), x)

    class Patient(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) + (self.calls % 10 == 0) * torch.rand(10)

    class OfSomeImages(Linear):
        def forward(self, x: Tensor) -> Tensor:
            bright = x.flatten(1).mean(1, keepdim=True) > 0.52
            return super().forward(x) + bright * torch.rand(10)

    assert is_random(Patient(), x)
    assert is_random(OfSomeImages(), x)


def test_whether_a_model_is_random_can_be_said() -> None:
    x, y = images(6)
    assert evaluate.accuracy(net(), x, y, random=False).num_draws == 1
    assert evaluate.accuracy(net(noise="off"), x, y, random=True, num_draws=3).num_draws == 3


def test_fixed_noise_stays_fixed_in_an_evaluation() -> None:
    model, (x, y) = net(noise_coef=2.0).eval(), images(8)
    draws = [torch.randn(8, width, 8 // (width // 4), 8 // (width // 4)) for _ in range(2) for width in (4, 8, 16)]
    for source in (3, draws):
        with model.fixed_noise(source):  # type: ignore[arg-type]
            expected = model(x).argmax(1)
            x_adv = IFGSM(model, x, y)
            clean, robust = evaluate.accuracy(model, x, y), evaluate.robust_accuracy(model, x, y, IFGSM)
            assert not is_random(model, x)
            assert torch.equal(clean.predictions, expected.unsqueeze(0))
            assert torch.equal(robust.predictions, model(x_adv).argmax(1).unsqueeze(0))


def test_a_score_says_what_it_is_in_one_line() -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    predictions = (torch.arange(40) % 4 == 0).long().expand(3, -1)  # three in four are right, in each draw
    score = evaluate.Score(predictions, labels)
    low, high = score.interval.low, score.interval.high
    assert repr(score) == f"Score: 75.0% right [{low:.1%}, {high:.1%}] at 95%, 40 images, 3 draws each"
    assert "draws" not in repr(evaluate.Score(predictions[:1], labels))


def test_arrays_and_parts_of_draws_are_refused_with_the_cure() -> None:
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor, got ndarray; torch\.as_tensor makes one"):
        evaluate.accuracy(net(), x.numpy(), y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"y: expected a torch\.Tensor, got list"):
        evaluate.accuracy(net(), x, y.tolist())
    with pytest.raises(ValueError, match=r"num_draws: expected a whole number, got 2\.5"):
        evaluate.accuracy(net(), x, y, num_draws=2.5)
