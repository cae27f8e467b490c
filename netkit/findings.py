"""Reasons not to believe a robust accuracy: what a model shows before any attack, and what the attacks' scores say.

After Athalye et al. 2018 and Croce et al. 2020. A score is called lower than another only where a paired interval at
99.8% excludes chance, so that an honest model is left in peace.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import scipy
import torch
from torch import Tensor, nn

from netkit.attacks import cross_entropy, margin
from netkit.attacks.expectation import logits_of
from netkit.evaluate import Score
from netkit.intervals import paired_difference, wilson
from netkit.models import evaluating
from netkit.noise import ResidualNoise, noise_parts
from netkit.randomness import changed_by_neighbours, is_random, repeatable

Code = Literal[
    "probabilities",
    "batch-dependent",
    "random-in-some-calls",
    "random-after-all",
    "zero-gradients",
    "saturated-loss",
    "masked-gradients",
    "surrogate-stronger",
    "weaker-than-relative",
    "too-few-draws",
    "too-few-images",
    "undefended",
    "no-better-than-chance",
]
Kind = Literal["clean", "noise", "one step", "sweep", "steps", "surrogate", "auto", "transfer", "own", "wide"]

_SURE = 0.998
_CALLS = 40
_WIDEST = 0.1  # an interval of an accuracy that is still worth quoting
_HOPELESS = 0.3
_FEW = 0.05


@dataclass(frozen=True)
class Finding:
    """Something that makes the numbers doubtful, and its cure; `is_fatal` where it leaves none to trust."""

    code: Code
    message: str
    is_fatal: bool = False


@dataclass(frozen=True)
class Row:
    """One attack and what it left.

    name: fit for a file; title: for people. eot_draws: noise draws that make one gradient, None without gradients.
    seconds, forward, backward: the time and the passes an image of the call that scored it, judging and scoring
    included; what came from a store took none.
    """

    name: str
    title: str
    kind: Kind
    score: Score
    eot_draws: int | None
    seconds: float
    forward: float
    backward: float


@dataclass(frozen=True)
class Look:
    """What a model shows on clean images, before any attack."""

    is_random: bool
    has_gradient: bool
    num_classes: int
    findings: tuple[Finding, ...]


def look_at(model: nn.Module, x: Tensor, y: Tensor, *, random: bool | None, batch_size: int, seed: int) -> Look:
    """Look for probabilities, randomness, dependence on the batch, and gradients that vanish, on images (N, C, H, W).

    random: whether the model is random; None: `netkit.randomness.is_random` looks.
    """
    findings = []
    images = x[:batch_size]
    with evaluating(model), torch.no_grad(), repeatable((model,), x.device, seed, "look"):
        logits = logits_of(model, images, int(y.max()) + 1)
    if logits.shape[1] < 2:
        raise ValueError(f"model: expected at least 2 classes, got {logits.shape[1]}")
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3):
        text = "the outputs are probabilities, whose cross-entropy has hardly any gradient: return logits"
        findings.append(Finding("probabilities", text, is_fatal=True))
    findings += _dependence_on_batch(model, images, seed)
    if random is None:
        random = is_random(model, x)
        if random and (odd := _odd_calls(model, x, seed)) is not None:
            text = (
                f"the model is random in some calls only: {odd} of {_CALLS} answer otherwise than the rest; rare "
                "randomness defends nothing, but upsets single answers: leave it out, or raise num_draws"
            )
            findings.append(Finding("random-in-some-calls", text))
    gradients = _gradients(model, x, y, batch_size, seed)
    if gradients is None:
        text = (
            "no gradient reaches the image: a step of the model is not differentiable, or runs without autograd; "
            "attack a differentiable stand-in"
        )
        findings.append(Finding("zero-gradients", text, is_fatal=True))
        return Look(random, False, logits.shape[1], tuple(findings))
    right, flat, stuck = gradients
    count = max(1, int(right.sum()))
    if (share := float((flat & right).sum()) / count) > 0.01:
        text = (
            f"the gradient is exactly zero for {share:.0%} of the images that are right, for any loss: nothing to "
            "climb; attack through a smooth stand-in of the step that stops it"
        )
        findings.append(Finding("zero-gradients", text, is_fatal=True))
    if (share := float((stuck & right & ~flat).sum()) / count) > _FEW:
        text = (
            f"the cross-entropy is exactly 0 in {logits.dtype} for {share:.0%} of the images that are right, so that "
            "attacks on it stand still or stray: read the attacks on the margin, which has no such limit"
        )
        findings.append(Finding("saturated-loss", text))
    return Look(random, True, logits.shape[1], tuple(findings))


def _dependence_on_batch(model: nn.Module, x: Tensor, seed: int) -> Iterable[Finding]:
    if (changed := changed_by_neighbours(model, x, seed=seed)) is None:
        return
    cures = []
    by_batch = _normalises_by_batch(model, x, seed)
    if by_batch:
        cures.append("let batch norm use running statistics (eval mode, track_running_stats=True)")
    if any(isinstance(part, ResidualNoise) and part.noise.std == "batch" for part in noise_parts(model)):
        cures.append("take noise_std='sample'")
    cure = " and ".join(cures) or "normalise each image by itself"
    text = f"predictions depend on the batch: other neighbours change {changed:.0%} of them; {cure}"
    yield Finding("batch-dependent", text, is_fatal=by_batch or changed > _FEW)


def _normalises_by_batch(model: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether a pass in eval mode takes a batch norm's statistics from the batch, as the layer itself has it."""
    own, found = {id(module) for module in model.modules()}, []

    def look(layer: nn.Module, _: Any) -> None:
        if id(layer) in own and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            found.append(layer.training or layer.running_mean is None)

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        with evaluating(model), torch.no_grad(), repeatable((model,), x.device, seed, "norms"):
            model(x)
    finally:
        handle.remove()
    return any(found)


def _odd_calls(model: nn.Module, x: Tensor, seed: int) -> int | None:
    """How many of `_CALLS` calls differ from the usual answer; None where there is no usual one."""
    images = x[:: max(1, len(x) // 8)][:8]
    with evaluating(model), torch.no_grad(), repeatable((model,), x.device, seed, "calls"):
        answers = [model(images) for _ in range(_CALLS)]
    alike = max(sum(torch.allclose(one, other, rtol=1e-4) for other in answers) for one in answers)
    return _CALLS - alike if alike > _CALLS // 2 else None


def _gradients(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int, seed: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """For each image: is it right, has the margin no gradient, is the cross-entropy or its gradient zero.

    None where no gradient reaches the image.
    """
    parts = []
    with evaluating(model):
        for number, (images, labels) in enumerate(zip(x.split(batch_size), y.split(batch_size), strict=True)):
            point = images.detach().clone().requires_grad_()
            with torch.enable_grad(), repeatable((model,), x.device, seed, "gradient", number):
                logits = model(point)
                if not logits.requires_grad:
                    return None
                losses = [loss(logits, labels) for loss in (margin, cross_entropy)]
                slopes = [torch.autograd.grad(e.sum(), point, retain_graph=True, allow_unused=True)[0] for e in losses]
            if slopes[0] is None:
                return None
            flat, stuck = ((slope == 0).flatten(1).all(1) for slope in slopes)
            parts.append(torch.stack([logits.argmax(1) == labels, flat, stuck | (losses[1] == 0)]))
    right, flat, stuck = torch.cat(parts, dim=1)
    return right, flat, stuck


def judge(rows: Sequence[Row], worst: Score, look: Look, *, random: bool) -> list[Finding]:
    """What the scores of all attacks, and the worst case over them, say about themselves."""
    findings = []
    if not random and (count := sum(bool((r.score.predictions != r.score.predictions[0]).any()) for r in rows)):
        text = (
            f"the model passed for one without randomness, and then answered otherwise when asked again, under {count} "
            f"of {len(rows)} attacks, which took it for fixed: run again with random=True"
        )
        findings.append(Finding("random-after-all", text, is_fatal=True))
    findings += [Finding("masked-gradients", text, is_fatal=True) for text in _signs_of_masking(rows, look.num_classes)]
    findings += _odd_orders(rows)
    if random:
        findings += _doubts_about_draws(rows, worst)
    low, high = worst.interval.low, worst.interval.high
    if high - low > _WIDEST:
        needed = _images_for(min(max(0.5, low), high), worst.confidence)
        images = "1 image leaves" if worst.n == 1 else f"{worst.n} images leave"
        text = f"{images} an interval of {100 * (high - low):.0f} points: {needed} would leave at most 10"
        findings.append(Finding("too-few-images", text, is_fatal=high - low > _HOPELESS))
    if clean := [row.score for row in rows if row.kind == "clean" and _is_chance(row.score, look.num_classes)]:
        text = (
            f"{clean[0].mean:.1%} of the clean images are right, no more than chance gives: look at the labels, the "
            "order of the classes, and the pixels that the model expects"
        )
        findings.append(Finding("no-better-than-chance", text, is_fatal=True))
    elif high <= _WIDEST:
        easiest = min((row for row in rows if row.kind != "wide"), key=lambda row: row.score.mean)
        text = f"the model is not defended: {easiest.title} alone leaves {easiest.score.mean:.1%} right"
        findings.append(Finding("undefended", text))
    return findings


def _is_chance(score: Score, num_classes: int) -> bool:
    found = wilson(float(score.correct.sum()), score.n, confidence=_SURE)
    return found.low <= 1 / num_classes and found.high <= 2 / num_classes


def is_lower(score: Score, than: Score, *, by: float = 0.01, confidence: float = _SURE) -> bool:
    """Whether `score` is lower by more than `by`, with a paired interval that leaves little doubt."""
    return paired_difference([than.correct], [score.correct], confidence=confidence).interval.low > by


def _signs_of_masking(rows: Sequence[Row], num_classes: int) -> Iterable[str]:
    climbing = [row for row in rows if row.kind in ("sweep", "steps")]
    if not climbing:
        return
    best = min(climbing, key=lambda row: row.score.mean)
    for row in rows:
        weaker = row.kind in ("clean", "noise", "one step", "transfer")
        if (weaker and is_lower(row.score, best.score)) or (
            row.kind in ("auto", "own") and is_lower(row.score, best.score, by=0.1)
        ):
            yield (
                f"{row.title} leaves {row.score.mean:.1%} right, the best ascent of its gradients, {best.title}, "
                f"{best.score.mean:.1%}: they mislead"
            )
        if row.kind == "wide":
            chance, mean = 1 / num_classes, row.score.mean
            if wilson(float(row.score.correct.sum()), row.score.n, confidence=_SURE).low > chance:
                yield f"{mean:.1%} stay right where every pixel may take any value (chance {chance:.0%})"
            elif is_lower(best.score, row.score):
                yield f"{mean:.1%} stay right where every pixel may take any value, {best.score.mean:.1%} within eps"


def _odd_orders(rows: Sequence[Row]) -> Iterable[Finding]:
    """Attacks that do worse than what they are stronger versions of."""
    climbing = [row for row in rows if row.kind in ("sweep", "steps")]
    if not climbing:
        return
    best = min(climbing, key=lambda row: row.score.mean)
    sweep = [row for row in climbing if row.kind == "sweep"]
    pairs = list(itertools.pairwise(sweep))
    pairs += [(sweep[-1], row) for row in climbing if row.name == "pgd" and sweep]
    pairs += [(best, row) for row in rows if row.kind == "auto"]
    for weaker, stronger in pairs:
        if is_lower(weaker.score, stronger.score):
            text = (
                f"{stronger.title} leaves {stronger.score.mean:.1%} right, its weaker relative {weaker.title} "
                f"{weaker.score.mean:.1%}: quote it nowhere alone"
            )
            yield Finding("weaker-than-relative", text)
    for row in rows:
        if row.kind == "surrogate" and is_lower(row.score, best.score):
            text = (
                f"{row.title} leaves {row.score.mean:.1%} right, gradients averaged over {best.eot_draws} draws "
                f"{best.score.mean:.1%}: the noise hides the gradient, and an attack made for it may find more"
            )
            yield Finding("surrogate-stronger", text)


def _doubts_about_draws(rows: Sequence[Row], worst: Score) -> Iterable[Finding]:
    draws, half_of_images = worst.num_draws, (worst.interval.high - worst.interval.low) / 2
    accuracies = (worst.predictions == worst.labels).double().mean(1)
    half = float(scipy.special.stdtrit(draws - 1, 0.975)) * float(accuracies.std()) / math.sqrt(draws)
    if half > max(_WIDEST / 2, half_of_images):
        low, high, needed = float(accuracies.min()), float(accuracies.max()), math.ceil(draws * (half / 0.05) ** 2)
        text = (
            f"one draw leaves from {low:.1%} to {high:.1%} right, so {draws} draws leave ±{100 * half:.0f} points: "
            f"num_draws={needed} would leave ±5"
        )
        yield Finding("too-few-draws", text)
    sweep = [row for row in rows if row.kind == "sweep"]
    if len(sweep) > 1 and is_lower(sweep[-1].score, sweep[-2].score):
        text = (
            f"{sweep[-1].eot_draws} draws a gradient leave {sweep[-1].score.mean:.1%} right, {sweep[-2].eot_draws} "
            f"{sweep[-2].score.mean:.1%}, and it may go on: raise eot_draws"
        )
        yield Finding("too-few-draws", text)


def _images_for(share: float, confidence: float) -> int:
    """The number of images that leaves Wilson's interval for this share ten points wide."""
    n = 1
    while (interval := wilson(share * n, n, confidence=confidence)).high - interval.low > _WIDEST:
        n += 1
    return n
