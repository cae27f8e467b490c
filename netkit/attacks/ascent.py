"""FGSM, IFGSM and PGD: one ascent of the loss within a ball around the image."""

import math
from collections.abc import Callable
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netkit.attacks.expectation import (
    PIXELS,
    BatchNormMode,
    Bounds,
    check_finite,
    checked_images_and_labels,
    expected,
    judged,
    judging_draws_for,
    logits_of,
    per_image,
    under_attack,
)
from netkit.checks import check_counts, check_flags, check_sizes

Norm = Literal["linf", "l2"]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, num_classes), y (B,)) -> one loss for each image (B,)."""
StepSize = float | Callable[[int], float]
"""A length, or one for each step 0, 1, ..."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """(B, num_classes), (B,) -> (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The loss max over i ≠ y of Z_i - Z_y, (B, num_classes), (B,) -> (B,).

    It is positive where the model is fooled and, unlike cross-entropy, never saturates.
    """
    right = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    return logits.scatter(1, y.unsqueeze(1), -math.inf).amax(1) - right


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    loss: Loss = cross_entropy,
    batch_norm: BatchNormMode = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The fast gradient sign method: x + eps · sign(∇ loss), clipped to [0, 1] (Eq. 15). Options as for `pgd`."""
    return ifgsm(
        model, x, y, eps=eps, step_size=eps, num_steps=1, loss=loss, batch_norm=batch_norm, generator=generator
    )


def ifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: StepSize,
    num_steps: int,
    loss: Loss = cross_entropy,
    batch_norm: BatchNormMode = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Iterated FGSM (Eq. 16): `pgd` from x itself, once. Options as for `pgd`.

    The paper's IFGSM^20 is eps = 8/255, step_size = 2/255, num_steps = 20.
    """
    return pgd(
        model,
        x,
        y,
        eps=eps,
        step_size=step_size,
        num_steps=num_steps,
        random_start=False,
        loss=loss,
        batch_norm=batch_norm,
        generator=generator,
    )


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: StepSize,
    num_steps: int,
    random_start: bool = True,
    num_restarts: int = 1,
    norm: Norm = "linf",
    clamp_start: bool = True,
    bounds: Bounds | None = PIXELS,
    loss: Loss = cross_entropy,
    judging_draws: int | None = None,
    batch_norm: BatchNormMode = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent of the loss within distance eps of x (Madry et al. 2018; Alg. 1).

    With `norm="linf"` no pixel of the result is farther than eps from x, in exact arithmetic on the floating-point
    numbers returned; with `"l2"` the distance is at most eps up to rounding.

    eps: the radius, in pixel units.
    step_size: the length of a step, or a function from the step's index to it.
    random_start: start at a uniformly random point of the ball instead of at x.
    num_restarts: the number of runs. Of their results each image keeps the one that most fresh draws are wrong on, of
        equals the one of largest loss. So without noise an image is lost if any run fools the model.
    judging_draws: the number of fresh draws that judge the results of restarts; None: 20 for a model that is random
        (`netkit.randomness.is_random`), else one.
    clamp_start: bring the random start into the bounds. The authors' code does not, so that its first gradient may be
        taken outside.
    bounds: the range of pixels; None for points of R^d, which have none.
    loss: the loss of each image, to be increased.
    batch_norm: the mode of batch norm layers during the attack. `"eval"` uses the running statistics; `"train"`, as in
        the authors' training, normalises by the attacked batch and moves the running statistics at every step;
        `"keep"` leaves each layer as it is.
    generator: for random starts, on x's device; by default a new one seeded by the operating system. The noise of
        the model comes from the model's own generator.
    """
    x, num_labels = checked_images_and_labels(x, y, bounds)
    check_counts(num_steps=num_steps, num_restarts=num_restarts)
    check_flags(random_start=random_start, clamp_start=clamp_start)
    ball = ball_around(norm, x, eps, bounds)
    sizes = [step_size(step) if callable(step_size) else step_size for step in range(num_steps)]
    for size in sizes:
        check_sizes(step_size=size)
    if not callable(loss):
        raise ValueError(f"loss: expected a function (logits, y) -> the loss of each image, got {loss!r}")
    if random_start:
        generator = generator_on(x.device, generator)

    def objective(net: nn.Module, point: Tensor) -> Tensor:
        return loss(logits_of(net, point, num_labels), y).unsqueeze(0)

    def wrong_and_loss(net: nn.Module, point: Tensor) -> Tensor:
        logits = logits_of(net, point, num_labels)
        return torch.stack([(logits.argmax(1) != y).to(logits), loss(logits, y)])

    best: tuple[Tensor, Tensor, Tensor] | None = None
    with under_attack(model, batch_norm):
        num_judging = judging_draws_for(model, x, judging_draws) if num_restarts > 1 else 0
        for _ in range(num_restarts):
            x_adv = x.clone() if generator is None or not random_start else ball.random_point(generator)
            if clamp_start:
                ball.project_(x_adv)
            for size in sizes:
                values, gradient = expected(model, x_adv, objective)
                ball.step_(x_adv, gradient, size)
                ball.project_(x_adv)
            check_finite(values, gradient)
            if num_restarts == 1:
                return x_adv
            wrong, height = judged(model, x_adv, wrong_and_loss, num_judging)
            if best is not None:
                is_better = (wrong > best[1]) | ((wrong == best[1]) & (height > best[2]))
                x_adv = torch.where(per_image(is_better, x), x_adv, best[0])
                wrong, height = torch.where(is_better, torch.stack([wrong, height]), torch.stack(best[1:]))
            best = x_adv, wrong, height
    assert best is not None
    return best[0]


class Ball(Protocol):
    """The images within eps of x, and how to move among them. Methods ending in _ work in place."""

    def step_(self, x_adv: Tensor, gradient: Tensor, size: float) -> None: ...
    def project_(self, x_adv: Tensor) -> None: ...
    def random_point(self, generator: torch.Generator) -> Tensor: ...


class _LinfBall:
    def __init__(self, x: Tensor, eps: float, bounds: Bounds | None) -> None:
        self.x, self.eps = x, eps
        self.lower, self.upper = (_within(_shifted(x, shift), bounds) for shift in (-eps, eps))

    def step_(self, x_adv: Tensor, gradient: Tensor, size: float) -> None:
        x_adv.add_(gradient.sign_(), alpha=size)

    def project_(self, x_adv: Tensor) -> None:
        torch.clamp(x_adv, self.lower, self.upper, out=x_adv)

    def random_point(self, generator: torch.Generator) -> Tensor:
        return torch.empty_like(self.x).uniform_(-self.eps, self.eps, generator=generator).add_(self.x)


class _L2Ball:
    def __init__(self, x: Tensor, eps: float, bounds: Bounds | None) -> None:
        self.x, self.eps, self.bounds = x, eps, bounds

    def step_(self, x_adv: Tensor, gradient: Tensor, size: float) -> None:
        # by the largest entry first: the squares of a tiny gradient would be zero
        largest = per_image(torch.linalg.vector_norm(gradient.flatten(1), math.inf, dim=1), gradient)
        gradient.div_(largest.masked_fill_(largest == 0, 1))
        x_adv.addcmul_(gradient, size / _length(gradient))

    def project_(self, x_adv: Tensor) -> None:
        x_adv.sub_(self.x)
        _within(x_adv.mul_((self.eps / _length(x_adv)).clamp_(max=1)).add_(self.x), self.bounds)

    def random_point(self, generator: torch.Generator) -> Tensor:
        direction = torch.empty_like(self.x).normal_(generator=generator)
        uniform = self.x.new_empty(len(self.x)).uniform_(generator=generator)
        radius = self.eps * uniform ** (1 / max(self.x[0].numel(), 1))
        return direction.mul_(per_image(radius, self.x) / _length(direction)).add_(self.x)


def ball_around(norm: Norm, x: Tensor, eps: float, bounds: Bounds | None) -> Ball:
    check_sizes(eps=eps)
    if norm == "linf":
        return _LinfBall(x, eps, bounds)
    if norm == "l2":
        return _L2Ball(x, eps, bounds)
    raise ValueError(f"norm: expected one of {get_args(Norm)}, got {norm!r}")


def _within(x: Tensor, bounds: Bounds | None) -> Tensor:
    """x, clipped in place."""
    return x if bounds is None else x.clamp_(*bounds)


def _shifted(x: Tensor, shift: float) -> Tensor:
    """x + shift, rounded towards x where rounding would leave the ball."""
    exact = x.double()
    bound = (exact + shift).to(x.dtype)
    too_far = (bound.double() - exact).abs() > abs(shift)
    return torch.where(too_far, torch.nextafter(bound, x), bound)


def _length(x: Tensor) -> Tensor:
    """(B, ...) -> (B, 1, ...): Euclidean lengths, kept from zero so that one can divide by them."""
    return per_image(torch.linalg.vector_norm(x.flatten(1), dim=1), x).clamp_min(1e-12)


def generator_on(device: torch.device, generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        generator = torch.Generator(device)
        generator.seed()
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: expected a torch.Generator, got {generator!r}")
    if generator.device.type != device.type:
        raise ValueError(f"generator: expected one on {device}, got one on {generator.device}")
    return generator
