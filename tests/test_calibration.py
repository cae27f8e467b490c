from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from netkit import calibration, calibration_of
from netkit.attacks import NotFiniteError


def answers(n: int = 300, num_draws: int = 4, seed: int = 0, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """Probabilities (num_draws, n, 5), and labels that the mean over draws predicts well but not perfectly."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_draws, n, 5, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return (sharpness * logits + noise / 2).softmax(2), y


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_the_error_of_each_side_is_that_of_torchmetrics(num_bins: int) -> None:
    draws, y = answers()
    report = calibration_of(draws, y, num_bins=num_bins)
    every, labels = draws.flatten(0, 1), y.repeat(len(draws))
    for side, probabilities, truth in ((report.one_draw, every, labels), (report.mean, draws.mean(0), y)):
        theirs = multiclass_calibration_error(probabilities, truth, num_classes=5, n_bins=num_bins)
        assert side.ece.value == pytest.approx(float(theirs), abs=1e-6)  # they count in float32
        nll = nn.functional.nll_loss(probabilities.log(), truth)
        assert side.nll.value == pytest.approx(float(nll), abs=1e-12)
        squares = (probabilities - nn.functional.one_hot(truth, 5)).square().sum(1).mean()
        assert side.brier.value == pytest.approx(float(squares), abs=1e-12)


def test_sure_answers_and_edges_of_bins_fall_where_torchmetrics_puts_them() -> None:
    probabilities = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0.25, 0.25], [0.4, 0.3, 0.3]], dtype=torch.float64)
    y = torch.tensor([0, 2, 0, 1])
    report = calibration_of(probabilities, y, num_bins=10)
    theirs = multiclass_calibration_error(probabilities, y, num_classes=3, n_bins=10)
    assert report.mean.ece.value == pytest.approx(float(theirs), abs=1e-6)
    assert [(row.low, row.share) for row in report.bins] == [(0.4, 0.25), (0.5, 0.25), (1.0, 0.5)]
    assert report.mean.nll.value == math.inf  # a true class had probability 0
    assert report.mean.nll.interval.high == math.inf
    assert report.one_draw == report.mean


@pytest.mark.parametrize(("sharpness", "least"), [(2.0, 0.95), (1.2, 0.95), (1.0, 0.85)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(sharpness: float, least: float) -> None:
    truth = calibration_of(*answers(100_000, 2, sharpness=sharpness)).mean
    trials = 120
    reports = [calibration_of(*answers(200, 2, seed=seed + 1, sharpness=sharpness)).mean for seed in range(trials)]
    for name, promised in (("ece", least), ("nll", 0.95), ("brier", 0.95)):
        held = sum(getattr(truth, name).value in getattr(report, name).interval for report in reports) / trials
        assert held > promised - 4 * math.sqrt(promised * (1 - promised) / trials), name


def test_a_calibrated_model_shows_the_error_that_chance_explains() -> None:
    generator = torch.Generator().manual_seed(9)
    found, explained = [], []
    for seed in range(60):
        draws, _ = answers(1000, 1, seed=seed)
        y = torch.multinomial(draws[0], 1, generator=generator).squeeze(1)
        report = calibration_of(draws, y)
        found.append(report.mean.ece.value)
        explained.append(report.ece_by_chance)
    difference = torch.tensor(found) - torch.tensor(explained)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(60)
    assert min(explained) > 0.02  # though nothing is wrong with the model


class Noisy(nn.Module):
    """Logits with noise, or so large that their softmax underflows."""

    def __init__(self, noise: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
        self.noise, self.scale = noise, scale

    def forward(self, x: Tensor) -> Tensor:
        logits = self.scale * (x.flatten(1) - 0.5) @ self.weight
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 2, 2, generator=generator), torch.randint(3, (n,), generator=generator)


def test_a_model_is_measured_over_draws_that_come_from_the_seed() -> None:
    x, y = images()
    report = calibration(Noisy(), x, y, num_draws=6, batch_size=15)
    assert report.num_draws == 6
    assert report.mean.nll.value < report.one_draw.nll.value  # Jensen
    assert calibration(Noisy(), x, y, num_draws=6, batch_size=15) == report
    assert calibration(Noisy(), x, y, num_draws=6, batch_size=15, seed=1) != report
    fixed = calibration(Noisy(noise=0), x, y)
    assert fixed.num_draws == 1
    by_hand = calibration_of(Noisy(noise=0)(x).detach().double().softmax(1), y)
    assert fixed.mean.nll.value == pytest.approx(by_hand.mean.nll.value, rel=1e-12)
    assert fixed.mean.ece.value == pytest.approx(by_hand.mean.ece.value, rel=1e-12)


def test_large_logits_keep_a_finite_loss() -> None:
    x, y = images()
    model = Noisy(noise=0, scale=1e4)
    expected = nn.functional.cross_entropy(model(x).detach().double(), y)
    assert calibration(model, x, y).mean.nll.value == pytest.approx(float(expected))


def test_what_cannot_be_measured_is_refused() -> None:
    draws, y = answers(10)
    with pytest.raises(ValueError, match=r"probabilities, y: expected shapes \(num_draws, N, K\) or \(N, K\)"):
        calibration_of(draws, y[:5])
    with pytest.raises(ValueError, match=r"expected integer labels from 0 to 4, got torch\.int64 up to 5"):
        calibration_of(draws, y.clamp(min=5))
    with pytest.raises(ValueError, match=r"expected integer labels from 0 to 4, got torch\.bool"):
        calibration_of(draws, y > 2)
    with pytest.raises(ValueError, match="numbers >= 0 with sums of 1, got others"):
        calibration_of(draws.log(), y)
    with pytest.raises(NotFiniteError, match="expected finite logits"):
        calibration(Noisy(scale=math.nan, noise=0), *images())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_of_votes_on_the_edges_of_bins_fall_above_them(dtype: torch.dtype) -> None:
    votes = torch.arange(5, 11)
    report = calibration_of(torch.stack([votes / 10, 1 - votes / 10], 1).to(dtype), torch.zeros(6).long(), num_bins=10)
    assert [round(10 * row.low) for row in report.bins] == votes.tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_of_any_integers(dtype: torch.dtype) -> None:
    draws, y = answers(10)
    assert calibration_of(draws, y.to(dtype)).summary() == calibration_of(draws, y).summary()


def test_one_image_leaves_everything_open() -> None:
    report = calibration_of(torch.tensor([[0.7, 0.3]]), torch.tensor([0]))
    assert (report.mean.nll.interval.low, report.mean.nll.interval.high) == (0, math.inf)
    assert (report.mean.brier.interval.low, report.mean.brier.interval.high) == (0, 2)
    assert report.mean.ece.interval.high == 1


def test_a_report_prints_and_goes_into_json() -> None:
    draws, y = answers()
    report = calibration_of(draws, y)
    lines = str(report).splitlines()
    assert lines[0] == "Calibration on 300 images"
    assert "mean of 4 draws" in lines[1]
    assert f"{report.mean.ece.value:.4f}" in lines[2]
    assert max(map(len, lines)) < 100
    assert len(lines) == 7 + len(report.bins)
    assert json.loads(json.dumps(report.summary()))["n"] == 300
    certain = calibration_of(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))  # wrong, and sure of it
    assert json.loads(json.dumps(certain.summary(), allow_nan=False))["mean"]["nll"]["value"] is None
