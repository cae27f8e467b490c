"""ARC: attack a classifier that is chosen at random, member by member (Dbouk and Shanbhag 2022).

The gradient of the mean loss may hide an attack on each member: it may vanish, or point where no member is fooled, as
of two linear classifiers with opposite weights. So each member is attacked by itself, and the step is kept if the
expected accuracy says so. For images x_adv, which begin at x, a step of length η is, with δ = 0 at first,

    for each member f, in descending order of its probability p:
        w = ∇(f_y - f_j) at x_adv, for the class j of the nearest linearised boundary, ζ = (f_y - f_j) / |w|* away
        δ' = η (δ + β g) / |δ + β g|,  where g is the unit step that reduces ⟨w, g⟩ most
        δ = δ' if the expected accuracy at x_adv + δ' is no higher than the lowest of this step

and x_adv moves by δ, back into the ball and [0, 1]. β is the shortest that puts δ' behind the boundary for certain,
η (ζ - ⟨-w, δ⟩ / |w|*) / (η - ζ) + 0.05 eps, so that what fooled earlier members is given up as little as possible; it
is η where ζ >= η, as no step reaches the boundary.

The source is the paper with its code, github.com/hsndbk4/ARC. Here, five things differ.

- Equal accuracies are told apart by the smooth one, Σ p (1 - exp(-ζ / η)) with ζ >= 0, which falls where a member comes
  near its boundary. The authors keep every δ' of equal accuracy: while no boundary is within η, members with opposite
  gradients take back each other's moves, and a step of eps / 4 finds nothing where one of eps does.
- A member also adds its βg to the δ' of the member before it, kept or not: it may make good what that one spoiled.
- w is taken at x_adv, where β counts from; the code takes it at x_adv + δ.
- w leads from the label's class: a member that is fooled is moved deeper into its mistake, not to the nearest boundary
  of what it answers, which may be the way back.
- For a model with noise the members are draws of it, new ones in each step.

Of 81 pairs of linear classifiers in 16 dimensions that one image within 0.9 eps fools both (L2, 20 steps), steps of
eps / 8, eps / 4, eps / 2 and eps find 81, 81, 79 and 71, by the rule of the authors' code 67, 74, 81 and 80.

Networks with noise hide less: 100 digits on three networks trained against PGD are right in 45.5% of draws, after IFGSM
with the same 100 gradients in 48.2%, a difference of 2.7 points [0.1, 5.3]. PGD on the margin, which needs no forward
passes of its own, has 46.5% (`studies/random_attacks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netkit.attacks.ascent import Ball, Norm, ball_around, generator_on
from netkit.attacks.expectation import (
    PIXELS,
    BatchNormMode,
    ExpectationOverTransformation,
    check_finite,
    checked_images_and_labels,
    logits_of,
    per_image,
    under_attack,
    unwrapped,
)
from netkit.attacks.surrogates import frozen_noise
from netkit.checks import check_counts, check_sizes
from netkit.randomness import is_random

_BEHIND = 0.05
"""How far behind a boundary a step ends, in units of eps; the authors' ρ."""
_ROUNDING = 1e-9
"""Of sums of probabilities."""


def arc(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float | None = None,
    num_steps: int = 20,
    num_draws: int | None = None,
    norm: Norm = "linf",
    num_targets: int = 1,
    members: Sequence[nn.Module] | None = None,
    probabilities: Sequence[float] | None = None,
    batch_norm: BatchNormMode = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack a random model through each of its members (ARC; see this module's docstring), within distance eps of x.

    A model with noise is a random choice among draws of its noise (`frozen_noise`). The average of an ensemble is no
    random choice: its networks are members only where `members` says so. A deterministic model is its only member,
    which leaves the steps of DeepFool (Moosavi-Dezfooli et al. 2016), of given length.

    One step takes num_targets gradients of each member, and two forward passes of all members for each: with K draws K
    gradients and 2 K² forward passes.

    step_size: η, the length of a step in pixel units; None for eps / 4.
    num_draws: the number of draws that are the members of a step; None for an `ExpectationOverTransformation`'s own, 5
        for another model that is random (`netkit.randomness.is_random`), else 1.
    num_targets: the number of classes, by their logits, whose boundaries are tried; the paper's "approximate ARC" for
        fewer than all.
    members: the deterministic networks among which `model` chooses at random, which are attacked in place of draws.
    probabilities: of the members; None for equal ones.
    batch_norm: as for `pgd`.
    generator: for the draws, on x's device; by default a new one seeded by the operating system.
    """
    x, num_labels = checked_images_and_labels(x, y)
    check_counts(num_steps=num_steps, num_targets=num_targets)
    ball = ball_around(norm, x, eps, PIXELS)
    size = eps / 4 if step_size is None else step_size
    check_sizes(step_size=size)
    generator = generator_on(x.device, generator)
    net = unwrapped(model)
    shares = _shares(members, probabilities)
    with under_attack(nn.ModuleList([net, *(members or ())]), batch_norm):
        if members is None:
            num_draws = _num_draws(model, x, num_draws)
        x_adv = x.clone()
        for _ in range(num_steps):
            chosen = _draws(net, x, num_draws, generator) if members is None else members
            choice = _Choice(chosen, shares or [1 / len(chosen)] * len(chosen), y, num_labels, num_targets, norm)
            x_adv = choice.step(x_adv, ball, size, behind=_BEHIND * eps)
    return x_adv


@dataclass(frozen=True)
class _Choice:
    """A random choice among members, and what a step of the attack asks of it."""

    members: Sequence[nn.Module]
    probabilities: Sequence[float]
    y: Tensor
    num_labels: int
    num_targets: int
    norm: Norm

    def step(self, centre: Tensor, ball: Ball, size: float, *, behind: float) -> Tensor:
        order = sorted(range(len(self.members)), key=lambda member: -self.probabilities[member])
        boundaries = [self._nearest_boundary(member, centre) for member in self.members]
        steepness = [boundary.steepness for boundary in boundaries]
        lowest, local, point = self._accuracy(centre, steepness, size), torch.zeros_like(centre), centre
        before: Tensor | None = None  # what the last member wanted
        for member in order:
            wanted = [self._moved(local, boundaries[member], size, behind)]
            if before is not None:
                wanted.append(self._moved(before, boundaries[member], size, behind))
            for moved in wanted:
                candidate = centre + moved
                ball.project_(candidate)
                accuracy = self._accuracy(candidate, steepness, size)
                is_lower = (accuracy[0] < lowest[0] - _ROUNDING) | (
                    (accuracy[0] < lowest[0] + _ROUNDING) & (accuracy[1] <= lowest[1] + _ROUNDING)
                )
                lowest = torch.where(is_lower, accuracy, lowest)
                is_kept = per_image(is_lower, centre)
                local, point = torch.where(is_kept, moved, local), torch.where(is_kept, candidate, point)
            before = wanted[0]
        return point

    def _moved(self, local: Tensor, boundary: _Boundary, size: float, behind: float) -> Tensor:
        """η (δ + β g) / |δ + β g|."""
        distance, slope = boundary.distance, boundary.slope
        is_near = distance < size
        left = (distance - (slope * local).flatten(1).sum(1)).clamp_min(0)
        beta = torch.where(is_near, size * left / (size - distance).masked_fill(~is_near, 1) + behind, size)
        moved = local + per_image(beta, local) * (slope.sign() if self.norm == "linf" else slope)
        return moved * per_image(size / _norm(moved, self.norm), moved)

    @torch.no_grad()
    def _accuracy(self, point: Tensor, steepness: Sequence[Tensor], size: float) -> Tensor:
        """(2, B) float64: the probability that each image is classified correctly, and the same, made smooth."""
        total = torch.zeros(2, len(point), dtype=torch.float64, device=point.device)
        index = self.y.unsqueeze(1)
        for member, probability, steep in zip(self.members, self.probabilities, steepness, strict=True):
            logits = logits_of(member, point, max(self.num_labels, 2))
            others = logits.scatter(1, index, -math.inf).amax(1)
            distance = (logits.gather(1, index).squeeze(1) - others).double() / steep
            smooth = -torch.expm1(-distance.clamp_min(0) / max(size, 1e-12))
            total += probability * torch.stack([(logits.argmax(1) == self.y).double(), smooth])
        return total

    def _nearest_boundary(self, member: nn.Module, point: Tensor) -> _Boundary:
        dual = 1 if self.norm == "linf" else 2
        nearest: _Boundary | None = None
        with torch.enable_grad():
            variable = point.detach().requires_grad_()
            logits = logits_of(member, variable, max(self.num_labels, 2))
            index = self.y.unsqueeze(1)
            others = logits.detach().scatter(1, index, -math.inf)
            targets = others.topk(min(self.num_targets, logits.shape[1] - 1), dim=1).indices
            margins = logits.gather(1, index) - logits.gather(1, targets)
            for number, margin in enumerate(margins.unbind(1)):
                is_last = number == margins.shape[1] - 1
                (slope,) = torch.autograd.grad(margin.sum(), variable, retain_graph=not is_last)
                check_finite(margin.detach(), slope)
                # float64, as the squares of a tiny slope would be zero
                steepness = torch.linalg.vector_norm(slope.flatten(1), dual, dim=1, dtype=torch.float64)
                steepness = steepness.clamp_min(torch.finfo(steepness.dtype).tiny)
                distance = (margin.detach() / steepness).to(slope)
                found = _Boundary(distance, (-slope / per_image(steepness, slope)).to(slope), steepness)
                nearest = found if nearest is None else nearest.or_nearer(found)
        assert nearest is not None
        return nearest


@dataclass(frozen=True)
class _Boundary:
    """A linearised boundary: its distance (B,), negative where the member is fooled, -w / |w|*, and |w|* (B,)."""

    distance: Tensor
    slope: Tensor
    steepness: Tensor

    def or_nearer(self, other: _Boundary) -> _Boundary:
        is_nearer = other.distance < self.distance
        return _Boundary(
            torch.where(is_nearer, other.distance, self.distance),
            torch.where(per_image(is_nearer, self.slope), other.slope, self.slope),
            torch.where(is_nearer, other.steepness, self.steepness),
        )


def _draws(net: nn.Module, x: Tensor, num_draws: int | None, generator: torch.Generator) -> list[nn.Module]:
    """The model itself for no draws, else as many frozen draws of its noise."""
    if num_draws is None:
        return [net]
    seeds = torch.randint(2**62, (num_draws,), generator=generator, device=x.device).tolist()
    return [frozen_noise(net, x, seed) for seed in seeds]


def _num_draws(model: nn.Module, x: Tensor, asked: int | None) -> int | None:
    """None for a model that is its only member."""
    if asked is not None:
        check_counts(num_draws=asked)
        return asked
    if isinstance(model, ExpectationOverTransformation):
        return model.num_draws
    return 5 if is_random(model, x) else None


def _shares(members: Sequence[nn.Module] | None, probabilities: Sequence[float] | None) -> list[float] | None:
    if members is not None and len(members) == 0:
        raise ValueError("members: expected at least one, got none")
    if probabilities is None:
        return None
    check_sizes(**{f"probabilities[{k}]": probability for k, probability in enumerate(probabilities)})
    shares = [float(probability) for probability in probabilities]
    if members is None or len(shares) != len(members):
        raise ValueError(f"probabilities: expected one for each of {len(members or ())} members, got {shares}")
    if not (min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6):
        raise ValueError(f"probabilities: expected none negative and a sum of one, got {shares}")
    return shares


def _norm(x: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), math.inf if norm == "linf" else 2, dim=1).clamp_min(1e-12)
