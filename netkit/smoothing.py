"""Randomised smoothing (Cohen, Rosenfeld and Kolter 2019): input noise, and a certificate in L2 that comes with it.

The smoothed classifier g answers with the class that f(x + δ), δ ~ N(0, σ²I), gives most often. Where class c has the
chance p_c(x) > 1/2, g gives c for every image nearer than σ Φ⁻¹(p_c(x)) in L2: Φ⁻¹(E h(x + δ)) is Lipschitz with
constant 1/σ for every h from R^d to [0, 1] (Salman et al. 2019, Lemma 2), and chances above 1/2 are the largest.

The same holds for an f that is random itself, as with noise after residual mappings: h(z) is then the chance, over the
noise ω inside, that f(z; ω) is c. A draw takes a fresh δ and a fresh ω, so that the hits of c among n draws are
binomial with chance E h(x + δ) = p_c(x). Needed is an ω whose law does not depend on z, and draws that do not depend
on each other. So each image has to be classified by itself: not with a standard deviation, or statistics of batch norm,
over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor, nn

from netkit.attacks.expectation import NotFiniteError, checked_images, logits_of
from netkit.checks import check_counts, check_positive, check_sizes
from netkit.injection import input_noise_off, input_sigma
from netkit.intervals import Interval, clopper_pearson
from netkit.models import evaluating
from netkit.noise import NoiseControls, noise_parts
from netkit.randomness import changed_by_neighbours, derived_generator, repeatable

ABSTAINED = -1
_PROBE_IMAGES = 8


@dataclass(frozen=True)
class CertifiedAccuracy:
    """The share of `n` images that a smoothed classifier is certified to get right on the whole ball of `radius`."""

    radius: float
    mean: float
    interval: Interval
    n: int


@dataclass(frozen=True, repr=False)
class Certificate:
    """The answers of a smoothed classifier on n images, and how far from each they stay.

    prediction: (n,) int64, the class, or ABSTAINED (-1) where none has a chance certainly above 1/2.
    radius: (n,) float64, in L2 and pixel units: each prediction holds nearer than that, with a chance of at least
        `confidence` over the draws that found it. 0 for abstentions.
    hits: (n,) int64, the draws of `num_draws` that gave the class that was selected.
    """

    prediction: Tensor
    radius: Tensor
    hits: Tensor
    sigma: float
    num_draws: int
    selection_draws: int
    confidence: float

    @property
    def n(self) -> int:
        return len(self.prediction)

    @property
    def abstained(self) -> Tensor:
        """(n,) bool."""
        return self.prediction == ABSTAINED

    def certified_accuracy(
        self, y: Tensor, radii: float | Sequence[float], *, confidence: float = 0.95
    ) -> list[CertifiedAccuracy]:
        """For labels y (n,) and each radius r >= 0: the share of images that are right up to a distance of r.

        Abstentions count as wrong. The interval, Clopper and Pearson's, is over images; it leaves out that each
        certificate fails with a chance of up to 1 - `self.confidence`, on average on fewer than that share of images.

        Raises ValueError for other labels, or a negative or infinite radius.
        """
        if y.shape != self.prediction.shape:
            raise ValueError(f"y: expected one label for each of {self.n} images, got shape {tuple(y.shape)}")
        found = []
        for radius in [radii] if isinstance(radii, int | float) else radii:
            check_sizes(radii=radius)
            right = (self.prediction == y.cpu()) & (self.radius >= radius)
            count = int(right.sum())
            interval = clopper_pearson(count, self.n, confidence=confidence)
            found.append(CertifiedAccuracy(float(radius), count / self.n, interval, self.n))
        return found

    def __repr__(self) -> str:
        median = f", median radius {float(self.radius.median()):.3g}" if self.n else ""
        return (
            f"Certificate: {self.n} images, {int(self.abstained.sum())} abstentions{median}, σ = {self.sigma:g}, "
            f"{self.num_draws} draws each, at {self.confidence:.1%}"
        )


def certify(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float | None = None,
    num_draws: int = 1000,
    selection_draws: int = 100,
    confidence: float = 0.999,
    batch_size: int = 250,
    seed: int = 0,
) -> Certificate:
    """Classify images by the smoothed classifier of `model`, and bound how far each answer holds (Cohen et al. 2019).

        R = σ Φ⁻¹(p),   p the lower bound of the class's chance, Clopper and Pearson's, one-sided,

    where the class is the most frequent one of `selection_draws`, and p comes from `num_draws` others, as it would be
    biased by the choice otherwise. Where p <= 1/2 the answer is ABSTAINED. With all n draws alike R is
    σ Φ⁻¹((1 - confidence)^(1/n)), the largest possible: 2.46 σ for 1,000 draws at 99.9%, 3.20 σ for 10,000.

    An image's answer depends on `seed`, its number and `batch_size`, not on the other images. The model runs in eval
    mode and gets back the mode and the generators it had.

    model: images to logits; noise inside it belongs to the classifier that is smoothed (see this module's docstring).
        Noise on its own input (`netkit.inject_input_noise`) is off meanwhile, and replaced by that of `sigma`.
    x: (N, C, H, W) floating point in [0, 1]. The noisy images are not clipped.
    sigma: of the noise, in pixel units; None: that of the noise on the model's input.
    num_draws, selection_draws: in passes over one image.
    batch_size: draws in a pass.

    Raises ValueError for images outside [0, 1], counts below 1, a confidence outside [1/2, 1), no sigma, a model with
    fixed noise, or one that classifies an image by what shares its batch, unless `batch_size` is 1; NotFiniteError for
    NaN or infinity.
    """
    x = checked_images(x)
    check_counts(num_draws=num_draws, selection_draws=selection_draws, batch_size=batch_size)
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence: expected a number from 1/2 to below 1, got {confidence}")
    if sigma is None and (sigma := input_sigma(model)) is None:
        raise ValueError("sigma: expected a number, as the model has no noise on its input, got None")
    check_positive(sigma=sigma)
    if any(isinstance(part, NoiseControls) and part.stream.is_fixed for part in noise_parts(model)):
        raise ValueError("model: expected noise that each draw has anew, got one inside fixed_noise(...)")
    chosen, hits = [], []
    with evaluating(model), torch.no_grad(), input_noise_off(model):
        if batch_size > 1 and changed_by_neighbours(model, x[:_PROBE_IMAGES]) is not None:
            raise ValueError(
                "model: expected one that classifies each image by itself, got one whose answers depend on the batch: "
                "batch_size=1 is valid, and noise_std='sample' is noise of a single image"
            )
        for number, image in enumerate(x):
            counts = [
                _counts(model, image, draws, sigma, batch_size, seed, purpose, number)
                for draws, purpose in ((selection_draws, "selection"), (num_draws, "certificate"))
            ]
            chosen.append(int(counts[0].argmax()))
            hits.append(int(counts[1][chosen[-1]]))
    # two-sided at 1 - 2α is one-sided at 1 - α
    lower = [clopper_pearson(count, num_draws, confidence=2 * confidence - 1).low for count in hits]
    is_sure = torch.tensor(lower, dtype=torch.float64) > 0.5
    radius = sigma * torch.tensor([float(scipy.special.ndtri(max(p, 0.5))) for p in lower], dtype=torch.float64)
    prediction = torch.tensor(chosen, dtype=torch.int64).where(is_sure, torch.tensor(ABSTAINED))
    return Certificate(prediction, radius, torch.tensor(hits), sigma, num_draws, selection_draws, confidence)


def _counts(
    model: nn.Module, image: Tensor, num_draws: int, sigma: float, batch_size: int, seed: int, purpose: str, number: int
) -> Tensor:
    """How often each class (K,) is the answer to image (C, H, W) with noise."""
    generator = derived_generator(image.device, seed, f"{purpose} input", number)
    counts: Tensor | None = None
    with repeatable((model,), image.device, seed, purpose, number):
        for start in range(0, num_draws, batch_size):
            size = (min(batch_size, num_draws - start), *image.shape)
            noise = torch.randn(size, dtype=image.dtype, device=image.device, generator=generator)
            largest, answers = (logits := logits_of(model, image + sigma * noise, 1)).max(1)
            if not bool(largest.isfinite().all()):
                raise NotFiniteError("model: expected finite logits, got NaN or infinity")
            found = torch.bincount(answers, minlength=logits.shape[1])
            counts = found if counts is None else counts + found
    assert counts is not None
    return counts.cpu()
