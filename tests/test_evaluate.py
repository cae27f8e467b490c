from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from netkit import attacks, evaluate, models
from netkit.checkpoint import CheckpointError
from netkit.evaluate import Score
from netkit.intervals import clopper_pearson, mean_accuracy, paired_difference, wilson

IFGSM = partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # two threads of a small network mostly wait for each other
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def test_an_interrupted_evaluation_continues_to_the_same_result(tmp_path: Path) -> None:
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
        evaluate.robust_accuracy(model, x, y, counting, store=store, on_block=stop, **options)
    assert evaluate.stored_score(store) is None
    parts = evaluate.robust_accuracy(model, x, y, counting, store=store, **options)
    assert attacked == [8, 8, 8, 6]
    assert torch.equal(parts.predictions, whole.predictions)
    stored = evaluate.stored_score(store)
    assert stored is not None
    assert torch.equal(stored.predictions, whole.predictions)
    assert torch.equal(stored.labels, y)


def test_a_store_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    model, (x, y), store = net(), images(), tmp_path / "scores"
    evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=2, store=store)
    stronger = partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=4)
    with pytest.raises(CheckpointError, match=r"another evaluation: attack='ifgsm\(eps=0\.2, num_steps=3"):
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
    plain = evaluate.robust_accuracy(model, x, y, IFGSM, num_draws=3)
    assert torch.equal(sweep[1].predictions, plain.predictions)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, 1, 8, 8), 1.1), r"images in \[0, 1\], got values from 1.1 to 1.1"),
        (torch.full((2, 1, 8, 8), math.nan), r"images in \[0, 1\], got values from nan"),
        (torch.zeros(2, 8, 8), r"floating-point images \(N, C, H, W\), got torch.float32 \(2, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floating-point images"),
        (torch.zeros(3, 1, 8, 8), "one label for each of 3 images"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.accuracy(net(), x, torch.zeros(2, dtype=torch.long))


# Checks


def codes(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> set[str]:
    return {finding.code for finding in evaluate.check(model, x, y, **options)}


def test_an_honest_model_raises_no_findings() -> None:
    model = Linear()
    assert evaluate.check(model, *labelled_by(model)) == []


def test_probabilities_in_place_of_logits_are_found() -> None:
    model = nn.Sequential(Linear(), nn.Softmax(1))
    assert "probabilities" in codes(model, *labelled_by(model))


def test_images_outside_the_unit_interval_are_found() -> None:
    x, y = labelled_by(Linear())
    assert codes(Linear(), 2 * x, y) == {"inputs"}


def test_noise_is_found_and_so_is_its_dependence_on_the_batch() -> None:
    x, y = images(40)
    assert {"random", "batch-dependent"} <= codes(net(noise_std="batch"), x, y)
    found = codes(net(noise_std="sample"), x, y)
    assert "random" in found
    assert "batch-dependent" not in found


def test_a_gradient_cut_by_rounding_is_found() -> None:
    class Rounding(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((4 * x).round() / 4)

    model = Rounding()
    assert {"zero-gradients", "masked-gradients"} <= codes(model, *labelled_by(model))


def test_a_gradient_that_points_the_wrong_way_is_found() -> None:
    class Misleading(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return -gradient

    class Turned(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(Misleading.apply(x))  # type: ignore[no-untyped-call]

    model = Turned()
    findings = evaluate.check(model, *labelled_by(model), eps=0.1)
    assert {finding.code for finding in findings} == {"masked-gradients"}
    assert any("random noise" in finding.message for finding in findings)
    assert any("every pixel may take any value" in finding.message for finding in findings)
