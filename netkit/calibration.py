"""Calibration: whether a model is right as often as it is sure, for one draw of its noise and for the mean over draws.

report = calibration(model, x, y, num_draws=10)
print(report)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import scipy
import torch
from torch import Tensor, nn

from netkit.attacks.expectation import NotFiniteError, logits_of
from netkit.checks import check_counts
from netkit.evaluate import checked
from netkit.intervals import Interval, wilson
from netkit.models import evaluating
from netkit.randomness import derived_generator, is_random, repeatable

_RESAMPLES = 1000
_ROUNDING = 4e-8  # of float32 numbers below 1


@dataclass(frozen=True)
class Measured:
    """A number with its interval."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.interval.low:.4f}, {self.interval.high:.4f}]"


@dataclass(frozen=True)
class Quality:
    """How good probabilities are, over images; less is better.

    ece: expected calibration error, Σ_b (n_b / n) |accuracy_b - confidence_b| over bins b of equal width of the largest
        probability (Guo et al. 2017), which few images make too large. So its interval reaches as far down as the
        bootstrap over images (of the bins' sums, taken for normal) reaches up; that of 95% held the truth in 85 to 97%
        of the cases tried with 200 images.
    nll: mean of -ln p_y, in nats, infinite where a true class has probability 0; brier: mean of Σ_k (p_k - 1{k = y})²,
        in [0, 2]. Their intervals are Student's, over images.
    """

    ece: Measured
    nll: Measured
    brier: Measured


@dataclass(frozen=True)
class Bin:
    """Images whose largest probability is in [low, high): their share, mean confidence and accuracy."""

    low: float
    high: float
    share: float
    confidence: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True, repr=False)
class Calibration:
    """The calibration of `one_draw` and of the `mean` of `num_draws` draws' probabilities, for `n` images.

    ece_by_chance: the ECE of the mean that a calibrated model with the same confidences has on average over so few
        images: an ECE near it says nothing against the model.
    bins: the reliability table of the mean, without empty bins.
    """

    one_draw: Quality
    mean: Quality
    ece_by_chance: float
    bins: tuple[Bin, ...]
    n: int
    num_draws: int

    def __str__(self) -> str:
        sides = {"one draw": self.one_draw, f"mean of {self.num_draws} draws": self.mean}
        if self.num_draws == 1:
            sides = {"": self.mean}
        lines = [f"Calibration on {self.n} images", f"{'':10}" + "".join(f"{side:26}" for side in sides)]
        for name, title in (("ece", "ECE"), ("nll", "NLL"), ("brier", "Brier")):
            lines.append(f"{title:10}" + "".join(f"{getattr(side, name)!s:26}" for side in sides.values()))
        lines.append(f"A calibrated model would show an ECE of {self.ece_by_chance:.4f} on so few images.")
        lines.append(f"{'confidence':>13} {'images':>7} {'mean':>7} {'right':>7}")
        for row in self.bins:
            lines.append(
                f"{row.low:5.2f} to {row.high:4.2f} {row.share:7.1%} {row.confidence:7.1%} {row.accuracy:7.1%} "
                f"[{row.interval.low:.1%}, {row.interval.high:.1%}]"
            )
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    def summary(self) -> dict[str, Any]:
        """All numbers, for JSON; infinite ones, which it does not have, are None."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def calibration(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    num_draws: int = 10,
    batch_size: int = 250,
    seed: int = 0,
    random: bool | None = None,
    num_bins: int = 15,
    confidence: float = 0.95,
) -> Calibration:
    """Measure the calibration of `model` on clean images x (N, C, H, W) in [0, 1] with labels y (N,).

    A model without noise answers once. Randomness comes from `seed`, anew for each block of `batch_size` images.

    num_draws, random: as for `netkit.evaluate.robust_accuracy`. num_bins, confidence: as for `calibration_of`.

    Raises ValueError for wrong images, labels or counts; NotFiniteError where the model answers NaN or infinity.
    """
    x, y = checked(x, y)
    check_counts(num_draws=num_draws, batch_size=batch_size)
    if num_draws > 1 and not (is_random(model, x) if random is None else random):
        num_draws = 1
    num_labels = int(y.max()) + 1
    blocks = []
    with evaluating(model), torch.no_grad():
        for number, images in enumerate(x.split(batch_size)):
            with repeatable((model,), x.device, seed, "calibration", number):
                draws = [logits_of(model, images, num_labels).double().log_softmax(1) for _ in range(num_draws)]
            blocks.append(torch.stack(draws).cpu())
    logarithms = torch.cat(blocks, dim=1)
    if bool(logarithms.isnan().any()):
        raise NotFiniteError("model: expected finite logits, got NaN or infinity")
    return _measured(logarithms, y, num_bins, confidence, seed)


def calibration_of(
    probabilities: Tensor, y: Tensor, *, num_bins: int = 15, confidence: float = 0.95, seed: int = 0
) -> Calibration:
    """Measure the calibration of given probabilities (num_draws, N, K) or (N, K) for labels y (N,).

    num_bins: bins of equal width, those of torchmetrics' MulticlassCalibrationError; confidence 1 is a bin of its own.
    confidence: of the intervals. seed: of the bootstrap.

    Raises ValueError for other shapes, labels beyond K, or anything but probabilities.
    """
    draws = probabilities.detach().double().cpu()
    draws = draws.unsqueeze(0) if draws.dim() == 2 else draws
    if draws.dim() != 3 or 0 in draws.shape or y.shape != draws.shape[1:2]:
        raise ValueError(
            "probabilities, y: expected shapes (num_draws, N, K) or (N, K), and (N,), "
            f"got {tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.dtype == torch.bool or int(y.min()) < 0 or int(y.max()) >= draws.shape[2]:
        raise ValueError(f"y: expected integer labels from 0 to {draws.shape[2] - 1}, got {y.dtype} up to {y.max()}")
    if not (bool((draws >= 0).all()) and bool(((draws.sum(2) - 1).abs() < 1e-3).all())):
        raise ValueError(
            "probabilities: expected numbers >= 0 with sums of 1, got others: softmax makes them of logits"
        )
    return _measured(draws.log(), y, num_bins, confidence, seed)


def _measured(logarithms: Tensor, y: Tensor, num_bins: int, confidence: float, seed: int) -> Calibration:
    """logarithms: of the probabilities, (num_draws, N, K) float64 on the CPU; y: (N,), of any integers."""
    check_counts(num_bins=num_bins)
    y = y.cpu().long()
    num_draws, n, _ = logarithms.shape
    generator = derived_generator("cpu", seed, "calibration")
    # of the draws' mean: their logarithms would average the wrong thing
    mean = (logarithms.logsumexp(0) - math.log(num_draws)).unsqueeze(0)
    sure, right, index = (each[0] for each in _binned(mean, y, num_bins))
    # a sum of right - sure over a bin is then nearly normal, with the variance of independent coins
    variance = torch.zeros(num_bins + 1, dtype=torch.float64).index_add_(0, index, (sure * (1 - sure)).clamp(min=0))
    of_mean = _quality(mean, y, num_bins, confidence, generator)
    return Calibration(
        one_draw=of_mean if num_draws == 1 else _quality(logarithms, y, num_bins, confidence, generator),
        mean=of_mean,
        ece_by_chance=float((2 * variance / math.pi).sqrt().sum()) / n,
        bins=tuple(_table(sure, right, index, num_bins, confidence)),
        n=n,
        num_draws=num_draws,
    )


def _binned(logarithms: Tensor, y: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, correctness (0 or 1) and bin of each answer, (num_draws, N)."""
    largest, answer = logarithms.max(2)
    sure = largest.exp()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64) - _ROUNDING  # one on an edge is above it
    index = (torch.bucketize(sure, edges, right=True) - 1).clamp(max=num_bins)
    return sure, (answer == y).double(), index


def _quality(logarithms: Tensor, y: Tensor, num_bins: int, confidence: float, generator: torch.Generator) -> Quality:
    num_draws, n, num_classes = logarithms.shape
    sure, right, index = _binned(logarithms, y, num_bins)
    # (N, bins): what an image adds to accuracy minus confidence of each bin, averaged over its draws
    excess = torch.zeros(n, num_bins + 1, dtype=torch.float64)
    excess.scatter_add_(1, index.T, (right - sure).T / num_draws)
    ece = float(excess.mean(0).abs().sum())
    high = _upper_end(excess, confidence, generator) if n > 1 else 1.0
    of_truth = logarithms.gather(2, y.expand(num_draws, -1).unsqueeze(2)).squeeze(2)
    squares = (logarithms.exp() - nn.functional.one_hot(y, num_classes)).square().sum(2)
    return Quality(
        ece=Measured(ece, Interval(max(0.0, 2 * ece - high), min(1.0, high), confidence)),
        nll=_mean_of(-of_truth.mean(0), math.inf, confidence),
        brier=_mean_of(squares.mean(0), 2.0, confidence),
    )


def _upper_end(excess: Tensor, confidence: float, generator: torch.Generator) -> float:
    """A quantile of the ECE of resampled images, whose excesses are the rows (N, bins)."""
    normal = torch.randn(_RESAMPLES, excess.shape[1], generator=generator, dtype=torch.float64)
    variances, directions = torch.linalg.eigh(torch.cov(excess.T, correction=0) / len(excess))
    resampled = excess.mean(0) + (normal * variances.clamp(min=0).sqrt()) @ directions.T
    return float(torch.quantile(resampled.abs().sum(1), (1 + confidence) / 2))


def _mean_of(values: Tensor, largest: float, confidence: float) -> Measured:
    """The mean of values (N,) in [0, largest], with Student's interval."""
    n, mean = len(values), float(values.mean())
    if math.isinf(mean) or n == 1:
        return Measured(mean, Interval(0.0, largest, confidence))
    half = float(scipy.special.stdtrit(n - 1, 0.5 + confidence / 2)) * float(values.std()) / math.sqrt(n)
    return Measured(mean, Interval(max(0.0, mean - half), min(largest, mean + half), confidence))


def _table(sure: Tensor, right: Tensor, index: Tensor, num_bins: int, confidence: float) -> list[Bin]:
    rows = []
    for number in index.unique().tolist():
        inside = index == number
        count = int(inside.sum())
        rows.append(
            Bin(
                low=number / num_bins,
                high=min(1.0, (number + 1) / num_bins),
                share=count / len(index),
                confidence=float(sure[inside].mean()),
                accuracy=float(right[inside].mean()),
                interval=wilson(float(right[inside].sum()), count, confidence=confidence),
            )
        )
    return rows
