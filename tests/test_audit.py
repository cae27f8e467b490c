from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netkit import Audit, attacks, audit, data, inject_noise
from netkit.checkpoint import CheckpointError
from netkit.evaluate import Score, worst_case
from netkit.findings import Kind, Look, Row, judge
from netkit.suite import random_noise

EPS = 0.1


class Mlp(nn.Module):
    """A small network for digits; `hidden` is what noise is injected behind."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.hidden = nn.Linear(width, width)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.hidden(self.first(x.flatten(1) - 0.5).relu()).relu())
        return logits


class Around(nn.Module):
    """A network with something before or behind it."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.behind = net, before, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net(self.before(x)))


def same(x: Tensor) -> Tensor:
    return x


def fitted(model: nn.Module, *, eps: float = EPS, epochs: int = 5, seed: int = 0) -> nn.Module:
    """`model`, trained on digits against PGD, or on clean ones where eps is 0."""
    digits = data.load("digits")
    images, labels = digits.images(digits.train.x), digits.train.y
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 2 / math.sqrt(parameter.shape[-1])
            parameter.uniform_(-spread / 2, spread / 2, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            x, y = images[batch], labels[batch]
            if eps:
                x = attacks.pgd(model, x, y, eps=eps, step_size=eps / 2, num_steps=3, generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def sound() -> nn.Module:
    return fitted(Mlp())


@pytest.fixture(scope="module")
def noisy() -> nn.Module:
    return fitted(inject_noise(Mlp(), noise_coef=0.3, noise_std="sample", blocks="hidden", seed=0))


@pytest.fixture(scope="module")
def test_images() -> tuple[Tensor, Tensor]:
    digits = data.load("digits")
    return digits.images(digits.test.x[:450]), digits.test.y[:450]


def codes(report: Audit) -> set[str]:
    return {finding.code for finding in report.findings}


def row_of(report: Audit, name: str) -> Row:
    return next(row for row in report.rows if row.name == name)


# The five planted cases, and their relatives


def test_a_sound_network_gets_a_number_and_no_finding(sound: nn.Module, test_images: tuple[Tensor, Tensor]) -> None:
    report = audit(sound, *test_images, eps=EPS)
    assert report.findings == ()
    assert report.is_trusted
    low, high = 100 * report.worst.interval.low, 100 * report.worst.interval.high
    number = f"{100 * report.worst.mean:.1f}% [{low:.1f}, {high:.1f}]"
    assert report.verdict.startswith(f"Trust {number}: the worst case of each image over 5 attacks. The strongest")
    assert 0.3 < report.worst.mean < row_of(report, "clean").score.mean


def test_a_sound_network_with_noise_gets_a_number_and_no_finding(
    noisy: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    report = audit(noisy, *test_images, eps=EPS)
    assert report.is_random
    assert report.findings == ()
    assert "picked by half of 10 fresh draws and scored by the other half" in report.verdict
    assert "One draw answers; the vote of 10 is right for" in report.verdict
    assert {"noise_free", "frozen_noise", "arc", "ifgsm-5"} <= {row.name for row in report.rows}
    assert report.left_out == ("AutoAttack (budget='full' or auto_attack=True runs it)",)


@pytest.mark.parametrize("seed", range(3))
def test_sound_networks_raise_no_false_alarm(seed: int, test_images: tuple[Tensor, Tensor]) -> None:
    assert audit(fitted(Mlp(), epochs=3, seed=seed), *test_images, eps=EPS, budget="quick", seed=seed).findings == ()


class Shattered(torch.autograd.Function):
    """Rounding with a gradient that has nothing to do with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.sin(1e4 * gradient)


class Turned(Shattered):
    """The gradient points the wrong way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


MASKS: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "rounding": (lambda x: (4 * x).round() / 4, {"zero-gradients", "masked-gradients"}),
    "a step": (lambda x: (x > 0.5).to(x), {"zero-gradients"}),
    "shattered": (Shattered.apply, {"masked-gradients"}),
    "turned": (Turned.apply, {"masked-gradients"}),
    "a fine wave": (lambda x: x + 0.05 * torch.sin(1e3 * x), {"masked-gradients"}),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masked_gradients_leave_no_number_to_trust(
    mask: str, sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    before, expected = MASKS[mask]
    report = audit(Around(sound, before, same), *test_images, eps=EPS)
    assert codes(report) == expected
    assert report.verdict.startswith("Do not trust any number here: ")
    assert report.verdict.endswith("is an upper bound at best.")
    if mask == "a step":
        assert "no gradient reaches the image" in report.verdict
        assert [row.name for row in report.rows] == ["clean", "noise"]
    else:
        assert "stay right where every pixel may take any value (chance 10%)" in report.verdict


def test_an_attack_of_ones_own_counts_and_may_show_that_gradients_mislead(
    sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = test_images
    attack = partial(attacks.pgd, eps=EPS, step_size=EPS / 4, num_steps=20)

    def through_the_open_door(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attack(sound, x, y)  # an attacker who knows what the model hides

    report = audit(
        Around(sound, Turned.apply, same), x, y, eps=EPS, budget="quick", own_attacks={"mine": through_the_open_door}
    )
    own = row_of(report, "own-0")
    assert (own.title, own.kind) == ("mine", "own")
    assert report.worst.mean <= own.score.mean < 0.9
    assert any(finding.code == "masked-gradients" and "mine leaves" in finding.message for finding in report.findings)


def test_an_attack_of_ones_own_has_to_stay_within_eps(sound: nn.Module, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:20] for part in test_images)
    too_far = partial(attacks.pgd, eps=2 * EPS, step_size=EPS, num_steps=2)
    for attack in (too_far, lambda model, x, y: too_far(model, x, y)):
        with pytest.raises(ValueError, match=r"own_attacks: 'mine': attack: expected images within eps=0\.1 \(linf\)"):
            audit(sound, x, y, eps=EPS, budget="quick", own_attacks={"mine": attack})


def test_a_transfer_that_beats_the_gradients_shows_that_they_are_masked(
    sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    report = audit(Around(sound, MASKS["rounding"][0], same), *test_images, eps=EPS, transfer_from=sound)
    assert "Transfer from Mlp leaves" in report.verdict
    assert report.worst.mean <= row_of(report, "transfer-0").score.mean
    assert audit(sound, *test_images, eps=EPS, transfer_from=[fitted(Mlp(), seed=5)]).findings == ()


class Sometimes(nn.Module):
    """Noise in one call of twenty."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + 20 * torch.randn_like(logits) if torch.rand(()) < 0.05 else logits


def test_randomness_in_some_calls_is_called_so(sound: nn.Module, test_images: tuple[Tensor, Tensor]) -> None:
    report = audit(Sometimes(sound), *test_images, eps=EPS, eot_draws=(1, 5), budget="quick")
    assert report.is_random
    assert "random-in-some-calls" in codes(report)
    assert "random in some calls only: " in report.verdict
    assert "of 40 answer otherwise than the rest" in report.verdict


def test_randomness_that_shows_under_attack_alone_is_found_in_the_answers(
    sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    class OffTheData(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            is_changed = ((16 * x - (16 * x).round()).abs() > 1e-3).flatten(1).any(1, keepdim=True)
            return logits + 5 * is_changed * torch.randn_like(logits)

    report = audit(OffTheData(sound), *test_images, eps=EPS)
    assert not report.is_random
    assert codes(report) >= {"random-after-all"}
    assert "answered otherwise when asked again" in report.verdict
    assert "run again with random=True" in report.verdict
    assert "random-after-all" not in codes(audit(OffTheData(sound), *test_images, eps=EPS, random=True, budget="quick"))


def test_batch_statistics_at_test_time_leave_no_number_to_trust(test_images: tuple[Tensor, Tensor]) -> None:
    layers = (nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32, track_running_stats=False, affine=False), nn.ReLU())
    model = fitted(nn.Sequential(*layers, nn.Linear(32, 10)))
    report = audit(model, *test_images, eps=EPS)
    assert codes(report) == {"batch-dependent"}
    assert report.verdict.startswith("Do not trust any number here: predictions depend on the batch: other neighbours")
    assert "track_running_stats=True" in report.verdict


class Relapsing(nn.Module):
    """Puts its batch norm back into train mode in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 32), nn.BatchNorm1d(32, affine=False), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm.train()(self.first(x.flatten(1))).relu())
        return logits


def test_batch_norm_that_a_forward_pass_puts_into_train_mode_is_found(test_images: tuple[Tensor, Tensor]) -> None:
    x, y = test_images
    report = audit(fitted(Relapsing(), eps=0.0), x, y, eps=0.01, budget="quick")
    assert not report.is_trusted
    assert "let batch norm use running statistics" in report.verdict


def test_wrong_labels_are_not_called_a_lack_of_defence(sound: nn.Module, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = test_images
    report = audit(sound, x, (y + 1) % 10, eps=EPS, budget="quick")
    assert "no-better-than-chance" in codes(report)
    assert "undefended" not in codes(report)
    assert "look at the labels" in report.verdict
    assert not report.is_trusted


def test_noise_by_the_batchs_deviation_is_named_with_its_cure(test_images: tuple[Tensor, Tensor]) -> None:
    model = fitted(inject_noise(Mlp(), noise_coef=0.1, noise_std="batch", blocks="hidden", seed=0))
    report = audit(model, *test_images, eps=EPS, budget="quick")
    assert codes(report) == {"batch-dependent"}
    assert "take noise_std='sample'" in report.verdict
    assert report.is_trusted


def test_randomness_that_no_seed_reaches_is_not_taken_for_dependence_on_the_batch(
    sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    numbers = np.random.default_rng(0)

    def hidden(x: Tensor) -> Tensor:
        return x + 0.3 * torch.from_numpy(numbers.standard_normal(x.shape)).to(x)

    report = audit(Around(sound, hidden, same), *test_images, eps=EPS, budget="quick")
    assert report.is_random
    assert "batch-dependent" not in codes(report)


def test_an_undefended_network_is_called_so_and_its_number_trusted(test_images: tuple[Tensor, Tensor]) -> None:
    model = fitted(Mlp(), eps=0)
    report = audit(model, *test_images, eps=0.25)
    assert "undefended" in codes(report)
    assert report.is_trusted
    assert report.verdict.startswith("Trust ")
    assert "the model is not defended: " in report.verdict.lower()
    # that the truth may be lower does not matter at the bottom
    softened = audit(Around(model, same, lambda logits: logits.softmax(1)), *test_images, eps=0.25)
    assert codes(softened) == {"probabilities", "undefended"}
    assert softened.is_trusted


def test_a_tiny_temperature_saturates_the_loss_and_the_margin_tells_the_truth(
    sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    honest, cold = (
        audit(Around(sound, same, behind), *test_images, eps=EPS) for behind in (same, lambda logits: 1e4 * logits)
    )
    assert codes(cold) == {"saturated-loss"}
    assert "the cross-entropy is exactly 0 in torch.float32 for" in cold.verdict
    assert row_of(cold, "ifgsm-1").score.mean > row_of(honest, "ifgsm-1").score.mean + 0.05
    assert row_of(cold, "margin").score.mean == pytest.approx(row_of(honest, "margin").score.mean, abs=0.01)
    assert cold.is_trusted


def test_probabilities_are_refused_and_their_logarithms_taken(
    sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    softened = audit(Around(sound, same, lambda logits: logits.softmax(1)), *test_images, eps=EPS)
    assert codes(softened) == {"probabilities"}
    assert "return logits" in softened.verdict
    assert not softened.is_trusted
    logarithms = audit(Around(sound, same, lambda logits: logits.log_softmax(1)), *test_images, eps=EPS)
    assert logarithms.findings == ()
    assert logarithms.worst.mean == pytest.approx(audit(sound, *test_images, eps=EPS).worst.mean, abs=0.01)


@pytest.mark.parametrize(
    "before",
    [lambda x: nn.functional.dropout(x, 0.2), lambda x: x * (torch.rand_like(x) < 0.6) + 0.3 * torch.randn_like(x)],
    ids=["dropout", "a random mask with noise"],
)
def test_other_randomness_is_averaged_over(
    before: Callable[[Tensor], Tensor], sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:200] for part in test_images)
    report = audit(Around(sound, before, same), x, y, eps=EPS, eot_draws=(1, 5))
    assert report.is_random
    assert report.is_trusted
    assert codes(report) <= {"too-few-images", "too-few-draws"}  # the sweep was cut short
    assert any(text.startswith("the network without noise (model: expected noise") for text in report.left_out)
    assert row_of(report, "ifgsm-5").score.mean < row_of(report, "ifgsm-1").score.mean


def test_a_network_in_double_precision_one_class_and_one_image(
    sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = test_images
    single = audit(sound, x, y, eps=EPS)
    try:
        double = audit(sound.double(), x.double(), y, eps=EPS)
    finally:
        sound.float()
    assert double.findings == ()
    assert double.worst.mean == pytest.approx(single.worst.mean, abs=0.01)
    threes = audit(sound, x[y == 3], y[y == 3], eps=EPS)
    assert codes(threes) == {"too-few-images"}
    assert threes.is_trusted
    one = audit(sound, x[:1], y[:1], eps=EPS)
    assert codes(one) == {"too-few-images"}
    assert "1 image leaves an interval of 79 points: 381 would leave at most 10" in one.verdict
    assert not one.is_trusted


# What scores alone say


def row(name: str, kind: Kind, accuracy: float, *, n: int = 1000, eot_draws: int = 1, draws: int = 10) -> Row:
    """An attack that leaves this share right, on the first images, in each draw."""
    right = (torch.arange(n) < accuracy * n).long().expand(draws, -1)
    return Row(name, f"the attack {name}", kind, Score(right, torch.ones(n, dtype=torch.long)), eot_draws, 0.0, 0, 0)


def judged(*rows: Row, random: bool = True) -> dict[str, str]:
    look = Look(random, True, 10, ())
    findings = judge(rows, worst_case([row.score for row in rows if row.kind != "wide"]), look, random=random)
    return {finding.code: finding.message for finding in findings}


HONEST = (row("clean", "clean", 0.9), row("fgsm", "one step", 0.6), row("a", "sweep", 0.5), row("b", "sweep", 0.49))


def test_scores_in_their_order_raise_no_finding() -> None:
    assert judged(*HONEST, row("pgd", "steps", 0.48), row("view", "surrogate", 0.5), row("wide", "wide", 0.0)) == {}


@pytest.mark.parametrize(
    ("odd", "code", "text"),
    [
        (
            row("pgd", "steps", 0.55),
            "weaker-than-relative",
            "leaves 55.0% right, its weaker relative the attack b 49.0%",
        ),
        (row("c", "sweep", 0.55), "weaker-than-relative", "the attack c leaves 55.0% right"),
        (row("aa", "auto", 0.55), "weaker-than-relative", "the attack aa leaves 55.0% right"),
        (row("c", "sweep", 0.4, eot_draws=50), "too-few-draws", "50 draws a gradient leave 40.0% right, 1 49.0%"),
        (
            row("view", "surrogate", 0.4),
            "surrogate-stronger",
            "averaged over 1 draws 49.0%: the noise hides the gradient",
        ),
        (row("other", "transfer", 0.4), "masked-gradients", "the attack other leaves 40.0% right, the best ascent"),
        (row("aa", "auto", 0.3), "masked-gradients", "the attack aa leaves 30.0% right, the best ascent"),
        (row("noise", "noise", 0.4), "masked-gradients", "the attack noise leaves 40.0% right, the best ascent"),
        (row("fgsm", "one step", 0.4), "masked-gradients", "the attack fgsm leaves 40.0% right, the best ascent"),
        (row("wide", "wide", 0.3), "masked-gradients", "30.0% stay right where every pixel may take any value (chance"),
    ],
)
def test_scores_out_of_order_are_found(odd: Row, code: str, text: str) -> None:
    found = judged(*HONEST, odd)
    assert found.keys() == {code}
    assert text in found[code]


def test_draws_that_share_their_noise_are_too_few() -> None:
    labels = torch.ones(1000, dtype=torch.long)
    right = (torch.arange(10) % 2).unsqueeze(1).expand(-1, 1000)  # each draw is right for all images or for none
    rows = [Row("a", "an attack", "sweep", Score(right, labels), 1, 0.0, 0, 0)]
    message = judged(*rows)["too-few-draws"]
    assert message.startswith("one draw leaves from 0.0% to 100.0% right, so 10 draws leave ±38 points: num_draws=")


def test_too_few_images_are_told_how_many_would_do() -> None:
    found = judged(row("a", "sweep", 0.5, n=100))
    assert found == {"too-few-images": "100 images leave an interval of 19 points: 381 would leave at most 10"}
    assert judged(row("a", "sweep", 0.5, n=381)) == {}


# The worst case


def test_without_noise_an_image_is_lost_where_any_attack_broke_it() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    scores = [Score(torch.tensor([p]), labels) for p in ([0, 1, 9, 9], [0, 9, 2, 9], [0, 1, 2, 9])]
    worst = worst_case(scores)
    assert (worst.predictions == labels).tolist() == [[True, False, False, False]]
    assert worst_case([Score(score.predictions.expand(3, -1), labels) for score in scores]).mean == 0.25


def test_the_worst_of_equal_attacks_is_not_worse_than_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    chance, labels = torch.rand(4000, generator=generator), torch.ones(4000, dtype=torch.long)
    scores = [Score(torch.bernoulli(chance.expand(10, -1), generator=generator).long(), labels) for _ in range(8)]
    worst = worst_case(scores)
    naive = torch.stack([score.correct for score in scores]).min(0).values.mean()
    error = float((chance * (1 - chance) / 10).mean() / 4000) ** 0.5
    assert abs(worst.mean - float(chance.mean())) < 4 * error
    assert float(naive) < worst.mean - 0.1
    assert worst.predictions.shape == (10, 4000)


def test_weak_attacks_do_not_hide_a_strong_one() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.ones(2000, dtype=torch.long)
    chances = [torch.full((10, 2000), chance) for chance in (*[0.6] * 8, 0.5)]
    scores = [Score(torch.bernoulli(chance, generator=generator).long(), labels) for chance in chances]
    assert abs(worst_case(scores).mean - scores[-1].mean) < 0.01


def test_the_worst_case_approaches_that_of_the_truly_worst_attacks_from_above() -> None:
    generator = torch.Generator().manual_seed(1)
    chances, labels = torch.rand(5, 3000, generator=generator), torch.ones(3000, dtype=torch.long)
    truth = float(chances.min(0).values.mean())
    means = []
    for draws in (4, 20, 100):
        scores = [Score(torch.bernoulli(c.expand(draws, -1), generator=generator).long(), labels) for c in chances]
        means.append(worst_case(scores).mean)
    assert means[0] > means[1] > means[2] > truth - 0.01
    assert means[2] < truth + 0.01


@pytest.mark.parametrize("draws", [2, 4, 10])
def test_the_worst_case_is_never_above_a_single_attack(draws: int) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.ones(100, dtype=torch.long)
    chance = torch.rand(100, generator=generator)
    for _ in range(20):
        chances = [(chance + 0.01 * number).clamp(max=1) for number in range(9)]
        scores = [Score(torch.bernoulli(c.expand(draws, -1), generator=generator).long(), labels) for c in chances]
        assert worst_case(scores).mean <= min(score.mean for score in scores)


def test_scores_of_other_images_or_draws_have_no_worst_case() -> None:
    labels = torch.zeros(3, dtype=torch.long)
    score = Score(torch.zeros(2, 3, dtype=torch.long), labels)
    with pytest.raises(ValueError, match="scores: expected at least one, got none"):
        worst_case([])
    for other in (Score(score.predictions, labels + 1), Score(score.predictions[:1], labels)):
        with pytest.raises(ValueError, match="scores: expected the same images and 2 draws each"):
            worst_case([score, other])


# The report


def test_passes_are_counted_and_rows_come_in_turn(sound: nn.Module, test_images: tuple[Tensor, Tensor]) -> None:
    seen: list[str] = []
    report = audit(sound, *test_images, eps=EPS, batch_size=200, on_attack=lambda row: seen.append(row.name))
    assert seen == ["clean", "noise", "fgsm", "ifgsm-1", "pgd", "margin", "wide"] == [row.name for row in report.rows]
    passes = {row.name: (row.forward, row.backward) for row in report.rows}
    assert passes["clean"] == passes["noise"] == (3, 0)
    assert passes["fgsm"] == (4, 1)
    assert passes["ifgsm-1"] == passes["wide"] == (23, 20)
    assert passes["pgd"] == passes["margin"] == (2 * 21 + 3, 40)
    assert not nn.modules.module._global_forward_hooks


def test_the_sweep_ends_where_more_draws_do_not_help(noisy: nn.Module, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:50] for part in test_images)
    report = audit(noisy, x, y, eps=EPS, num_draws=4)
    names = [row.name for row in report.rows if row.kind == "sweep"]
    assert names == ["ifgsm-1", "ifgsm-5"]
    assert row_of(report, "margin").eot_draws == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_networks_of_any_precision_are_audited(
    noisy: nn.Module, test_images: tuple[Tensor, Tensor], dtype: torch.dtype, norm: attacks.Norm
) -> None:
    x, y = (part[:60] for part in test_images)
    report = audit(copy.deepcopy(noisy).to(dtype), x.to(dtype), y, eps=EPS, norm=norm, num_draws=4, budget="quick")
    assert row_of(report, "clean").score.mean > 0.8
    middle = torch.full((3, 1, 8, 8), 0.5, dtype=dtype)
    moved = random_noise(noisy, middle, y[:3], eps=EPS, norm=norm, generator=torch.Generator().manual_seed(0)) - middle
    assert moved.dtype == dtype
    length = torch.linalg.vector_norm(moved.flatten(1).double(), math.inf if norm == "linf" else 2, dim=1)
    torch.testing.assert_close(length, torch.full_like(length, EPS), rtol=10 * torch.finfo(dtype).eps, atol=0)


def test_a_report_repeats_itself_and_leaves_the_model_as_it_was(
    noisy: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:60] for part in test_images)

    def numbers(seed: int) -> Any:
        summary = audit(noisy, x, y, eps=EPS, num_draws=4, budget="quick", seed=seed).summary()
        return json.loads(json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in summary["rows"]]))

    noisy.train()
    before = torch.get_rng_state()
    first = numbers(0)
    assert noisy.training
    assert torch.equal(torch.get_rng_state(), before)
    noisy.eval()(x)
    torch.rand(3)
    assert numbers(0) == first
    assert numbers(1) != first


def test_an_interrupted_audit_goes_on_from_its_store(
    noisy: nn.Module, test_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, y = (part[:40] for part in test_images)
    options: dict[str, Any] = {"eps": EPS, "num_draws": 4, "budget": "quick", "store": tmp_path, "key": "noisy"}

    class Stop(Exception):
        pass

    def stop(row: Row) -> None:
        if row.name == "ifgsm-1":
            raise Stop

    with pytest.raises(Stop):
        audit(noisy, x, y, **options, on_attack=stop)
    again = audit(noisy, x, y, **options)
    assert row_of(again, "ifgsm-1").backward == 0
    assert row_of(again, "ifgsm-5").backward == 50
    fresh = audit(noisy, x, y, **(options | {"store": None}))
    assert [row.score.summary() for row in again.rows] == [row.score.summary() for row in fresh.rows]


def test_an_attack_of_ones_own_is_stored_by_its_title(
    sound: nn.Module, test_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, y = (part[:20] for part in test_images)
    options: dict[str, Any] = {"eps": EPS, "budget": "quick", "store": tmp_path, "key": "sound"}
    audit(sound, x, y, **options, own_attacks={"nothing": lambda model, x, y: x})
    with pytest.raises(CheckpointError, match="belongs to another evaluation"):
        audit(sound, x, y, **options, own_attacks={"noise": lambda model, x, y: (x + EPS).clamp(0, 1)})


def test_auto_attack_runs_where_it_fits(
    noisy: nn.Module, sound: nn.Module, test_images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (part[:20] for part in test_images)
    versions = []

    def recorded(model: nn.Module, x: Tensor, y: Tensor, *, version: str, **_: Any) -> Tensor:
        versions.append((version, isinstance(model, attacks.ExpectationOverTransformation)))
        return x

    monkeypatch.setattr(attacks, "auto_attack", recorded)
    for model in (sound, noisy):
        report = audit(model, x, y, eps=EPS, budget="quick", auto_attack=True)
        assert row_of(report, "autoattack").title == f"AutoAttack ({versions[-1][0]})"
        assert not any("AutoAttack" in text for text in report.left_out)
    assert versions == [("standard", False), ("rand", True)]
    few = nn.Sequential(sound, nn.Linear(10, 3))
    with pytest.raises(ValueError, match="auto_attack: it needs four classes, got 3"):
        audit(few, x, y % 3, eps=EPS, auto_attack=True)


def test_the_table_is_what_one_would_print(noisy: nn.Module, test_images: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:60] for part in test_images)
    report = audit(noisy, x, y, eps=EPS, num_draws=4, budget="quick")
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[0] == "Audit within eps=0.1 (linf): 60 images, 4 draws each, budget 'quick', seed 0"
    for row in report.rows:
        assert any(line.startswith(row.title) and f"{100 * row.score.mean:.1f}%" in line for line in lines)
    assert "Findings: too-few-images" in lines
    assert any("surrogates and ARC (budget='quick')" in line for line in lines)
    assert repr(report) == f"Audit: {report.verdict}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 1}, "num_draws: expected at least 2, since one half picks an attack, got 1"),
        ({"eps": 0.0}, r"eps: expected a finite number > 0, got 0\.0"),
        ({"norm": "l1"}, "norm: expected one of"),
        ({"budget": "huge"}, "budget: expected one of .*, got 'huge'"),
        ({"eot_draws": ()}, "eot_draws: expected at least one number, got none"),
        ({"eot_draws": (0,)}, "expected at least 1, got 0"),
    ],
)
def test_audits_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, sound: nn.Module, test_images: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        audit(sound, *test_images, **({"eps": EPS} | options))
