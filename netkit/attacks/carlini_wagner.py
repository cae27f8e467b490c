"""The attack of Carlini & Wagner: the paper's form, the usual one, and the one that the authors released."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netkit.attacks.ascent import margin
from netkit.attacks.expectation import (
    BatchNormMode,
    Objective,
    check_finite,
    checked_images_and_labels,
    expected,
    judged,
    judging_draws_for,
    logits_of,
    per_image,
    rounding,
    under_attack,
)
from netkit.checks import check_counts, check_sizes

CWVariant = Literal["paper", "l2", "authors"]


def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    variant: CWVariant = "paper",
    num_steps: int = 50,
    learning_rate: float | None = None,
    c: float | None = None,
    kappa: float = 0.0,
    target: Tensor | None = None,
    num_searches: int = 1,
    judging_draws: int | None = None,
    batch_norm: BatchNormMode = "eval",
) -> Tensor:
    """The attack of Carlini & Wagner (2017), in three variants that differ much in strength.

    With δ = x_adv - x and the margin m = Z_y - max over i ≠ y of Z_i (with a target t: max over i ≠ t of Z_i - Z_t),
    Adam lowers, for each image,

    - `"paper"`: max |δ| + c·max(-κ, m) over u, where x_adv = ½(tanh(u) + 1) (Eq. 18; the bracket is misprinted
      there), 50 steps, learning rate 6e-4, c = 10. Since dx_adv/du <= ½ and Adam moves u by about its learning rate
      a step, no pixel moves by more than about 0.015: as configured this is a weak attack;
    - `"l2"`: ‖δ‖² + c·max(-κ, m) over the same u, the usual form. Defaults here: 50 steps, 0.01, c = 1;
    - `"authors"`: c·max(0, m + κ) over x_adv itself. The released code computes this, as its distance term compares a
      variable with itself. y is not used: m is taken between the classes that the model finds most and second most
      likely for x, for better or worse on images it gets wrong. Pixels may leave [0, 1] on the way, and are clipped
      at the end, as the paper says of all attacks. 50 steps of 6e-4 move a pixel by about 0.03, the paper's eps in all
      but name. The released script's last scaling of δ by its eps option is left out.

    Of all iterates, `"paper"` and `"l2"` return for each image the nearest one that fools the model (m <= -κ), or the
    one that comes closest to it if none does; `"authors"` returns the one after the step with the lowest objective, as
    the released code does. Where the model is random, one draw that is fooled by luck would end the search. There,
    fresh draws judge each iterate that the draws of its gradient speak for: all of them must be fooled, and "closest"
    means fooled in most of them; `"authors"` goes by their mean objective.

    learning_rate, c: None means the variant's default.
    kappa: κ >= 0, the confidence asked for.
    target: (B,), classes to reach; None for any class but y. Not for `"authors"`.
    num_searches: the number of values of c tried for each image: ten times larger after a failure, then by bisection.
        Carlini & Wagner take 9. Not for `"authors"`.
    judging_draws: as for `pgd`.
    batch_norm: as for `pgd`.
    """
    x, num_labels = checked_images_and_labels(x, y)
    if variant not in get_args(CWVariant):
        raise ValueError(f"variant: expected one of {get_args(CWVariant)}, got {variant!r}")
    check_counts(num_steps=num_steps, num_searches=num_searches)
    learning_rate = (0.01 if variant == "l2" else 6e-4) if learning_rate is None else learning_rate
    c = (1.0 if variant == "l2" else 10.0) if c is None else c
    check_sizes(learning_rate=learning_rate, c=c, kappa=kappa)
    if target is not None:
        num_labels = max(num_labels, checked_images_and_labels(x, target)[1])
    if variant == "authors" and (target is not None or num_searches != 1):
        raise ValueError("target, num_searches: expected no target and one search for variant 'authors'")
    with under_attack(model, batch_norm):
        num_judging = judging_draws_for(model, x, judging_draws)
        settings = _Settings(num_labels, num_steps, learning_rate, c, kappa, num_judging)
        if variant == "authors":
            x_adv = _cw_authors(model, x, settings)
        else:
            distance = _largest_change if variant == "paper" else _squared_length

            def short_of(logits: Tensor) -> Tensor:
                return -margin(logits, y) if target is None else margin(logits, target)

            x_adv = _cw_tanh(model, x, settings, distance=distance, short_of=short_of, num_searches=num_searches)
    return x_adv.clamp(0, 1)


@dataclass(frozen=True)
class _Settings:
    num_labels: int
    num_steps: int
    learning_rate: float
    c: float
    kappa: float
    num_judging: int


def _cw_tanh(
    model: nn.Module,
    x: Tensor,
    settings: _Settings,
    *,
    distance: Callable[[Tensor], Tensor],
    short_of: Callable[[Tensor], Tensor],
    num_searches: int,
) -> Tensor:
    """Eq. 18 for any distance of δ, over images ½(tanh(u) + 1); `short_of(logits)` is positive until it is fooled."""
    cs = torch.full((len(x),), settings.c, dtype=x.dtype, device=x.device)
    low, high = torch.zeros_like(cs), torch.full_like(cs, math.inf)
    start = torch.atanh((2 * x - 1) * (1 - rounding(x.dtype)))
    origin = (start.tanh() + 1) / 2
    best, lowest = x.clone(), torch.full_like(cs, math.inf, dtype=torch.float64)

    def objective(net: nn.Module, u: Tensor) -> Tensor:
        image = (u.tanh() + 1) / 2
        far = distance(image - origin)
        # max(-κ, m) = max(0, m + κ) - κ: zero where the model is fooled with enough confidence.
        short = F.relu(short_of(logits_of(net, image, settings.num_labels)) + settings.kappa)
        return torch.stack([far + cs * short, far, short, (short > 0).to(short)])

    def score_of(values: Tensor) -> Tensor:
        """Negative and ordered by distance where every draw is fooled, else by how many are not, then by how much."""
        _, far, short, missed = values.double()
        return torch.where(missed == 0, -1 / (1 + far), missed + short / (1 + short) / (2 * settings.num_judging))

    for _ in range(num_searches):
        fooled = torch.zeros_like(cs, dtype=torch.bool)
        for values, u, _ in _descend(model, start, objective, settings):
            score = score_of(values)
            promising = score < lowest
            if settings.num_judging > 1 and bool(promising.any()):
                score = torch.where(promising, score_of(judged(model, u, objective, settings.num_judging)), score)
            is_better = promising & (score < lowest)
            best = torch.where(per_image(is_better, x), (u.tanh() + 1) / 2, best)
            lowest = torch.where(is_better, score, lowest)
            fooled |= score < 0
        low, high = torch.where(fooled, low, cs), torch.where(fooled, cs, high)
        cs = torch.where(high.isinf(), 10 * cs, (low + high) / 2)
    return best


def _cw_authors(model: nn.Module, x: Tensor, settings: _Settings) -> Tensor:
    """The released code's attack, for a batch at once: Adam acts on each pixel by itself."""
    with torch.no_grad():
        first, second = logits_of(model, x, max(settings.num_labels, 2)).topk(2).indices.unbind(1)

    def objective(net: nn.Module, point: Tensor) -> Tensor:
        logits = logits_of(net, point, settings.num_labels)
        lead = logits.gather(1, first.unsqueeze(1)) - logits.gather(1, second.unsqueeze(1))
        return settings.c * F.relu(lead + settings.kappa).T

    best, lowest = x.clone(), x.new_full((len(x),), math.inf)
    for (value,), before, after in _descend(model, x, objective, settings):
        promising = value < lowest
        if settings.num_judging > 1 and bool(promising.any()):
            value = torch.where(promising, judged(model, before, objective, settings.num_judging)[0], math.inf)
        best = torch.where(per_image(value < lowest, x), after, best)
        lowest = torch.minimum(value, lowest)
    return best


def _descend(
    model: nn.Module, start: Tensor, objective: Objective, settings: _Settings
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Adam (Kingma & Ba 2015): for each step the objective's values, the point they belong to, and the point after."""
    point = start.clone()
    optimizer = torch.optim.Adam([point], lr=settings.learning_rate)
    for _ in range(settings.num_steps):
        before = point.clone()
        values, point.grad = expected(model, before, objective)
        optimizer.step()
        yield values, before, point
    check_finite(values, point)


def _largest_change(delta: Tensor) -> Tensor:
    return delta.flatten(1).abs().amax(1)


def _squared_length(delta: Tensor) -> Tensor:
    return delta.flatten(1).square().sum(1)
