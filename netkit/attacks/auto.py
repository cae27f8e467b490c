"""AutoAttack (Croce & Hein 2020), by its authors' own code where that is installed."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from netkit.attacks.ascent import Norm
from netkit.attacks.expectation import (
    BatchNormMode,
    check_counts,
    check_images_and_labels,
    logits_of,
    per_image,
    under_attack,
)

AutoAttackVersion = Literal["standard", "plus", "rand"]
AutoAttackPart = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]

_NORMS = {"linf": "Linf", "l2": "L2"}
_MAX_TARGETS = 9  # the library's own choice


def auto_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: AutoAttackVersion = "standard",
    parts: Sequence[AutoAttackPart] | None = None,
    norm: Norm = "linf",
    num_steps: int = 100,
    num_queries: int = 5000,
    eot_draws: int = 20,
    batch_size: int = 250,
    batch_norm: BatchNormMode = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Several parameter-free attacks one after the other, each on the images that are still classified correctly.

    Images that the model gets wrong at once, or that no attack changes its mind on, come back as they were; a noisy
    model that "rand" attacks gets every image back attacked. The distance to x is at most eps up to rounding. The
    library logs its own doubts (a random or a dynamic model, vanishing gradients) to the logger "auto-attack".

    Args:
        version: `"standard"` is APGD-CE, targeted APGD-DLR, targeted FAB and Square; `"plus"` adds restarts and the
            untargeted forms; `"rand"`, for noisy models, is APGD-CE and APGD-DLR on gradients averaged over
            `eot_draws` draws. By the library's rule an image is lost once a single draw is fooled, and is else given
            back clean, which over fresh draws would make a noisy model look strong. So here both run on all images,
            too, and of the library's result and the two points of highest loss each image gets the one that most of
            `eot_draws` draws are wrong on: up to four runs in place of two. A model without noise is left to the rule.
        parts: run these attacks instead, with the options of the version.
        num_steps: of APGD and FAB. num_queries: of Square. The defaults are the published ones.
        batch_norm: as for `pgd`.
        generator: seeds the attack, by default from the operating system. torch's global generators are left as they
            were; the noise of the model comes from the model's own generator.

    Raises:
        ImportError: without the library, which the extra `autoattack` installs.
        ValueError: for wrong input, or fewer than four classes, with which DLR does not exist.
    """
    if version not in get_args(AutoAttackVersion):
        raise ValueError(f"expected version to be one of {get_args(AutoAttackVersion)}, got {version!r}")
    if unknown := sorted(set(parts or ()) - set(get_args(AutoAttackPart))):
        raise ValueError(f"expected parts among {get_args(AutoAttackPart)}, got {unknown}")
    if norm not in _NORMS:
        raise ValueError(f"expected norm to be one of {tuple(_NORMS)}, got {norm!r}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"expected a finite eps > 0, got {eps}")
    check_counts(num_steps=num_steps, num_queries=num_queries, eot_draws=eot_draws, batch_size=batch_size)
    x = x.detach()
    num_labels = check_images_and_labels(x, y)
    library = _library()
    seed = torch.seed() if generator is None else torch.randint(2**31, (), generator=generator, device=generator.device)
    with _as_it_was(model, x.device), under_attack(model, batch_norm):
        with torch.no_grad():
            num_classes = logits_of(model, x[:1], num_labels).shape[1]
        if num_classes < 4:
            raise ValueError(f"expected a model of at least 4 classes, got {num_classes}")
        attack = library.AutoAttack(
            model, norm=_NORMS[norm], eps=eps, seed=int(seed) % 2**31, version=version, device=x.device
        )
        for gradient_attack in (attack.apgd, attack.apgd_targeted, attack.fab):
            gradient_attack.n_iter = num_steps
        for targeted in (attack.apgd_targeted, attack.fab):
            targeted.n_target_classes = min(_MAX_TARGETS, num_classes - 1)
        attack.square.n_queries = num_queries
        if version == "rand":
            attack.apgd.eot_iter = attack.apgd_targeted.eot_iter = eot_draws
        if parts is not None:
            attack.attacks_to_run = list(parts)
        x_adv: Tensor = attack.run_standard_evaluation(x, y, batch_size=batch_size)[0]
        if version == "rand" and _is_random(model, x[:2]):
            torch.random.manual_seed(attack.seed)  # the library does so only where it has something to attack
            points = [*_highest_losses(attack, x, y, batch_size)]
            if points:
                was_left = (x_adv == x).flatten(1).all(1)
                points.append(torch.where(per_image(was_left, x), points[0], x_adv))
                x_adv = _most_often_wrong(model, points, y, eot_draws, batch_size)
    return x_adv.detach().clamp(0, 1)


@torch.no_grad()
def _is_random(model: nn.Module, x: Tensor) -> bool:
    return not torch.allclose(model(x), model(x), rtol=1e-4, atol=1e-6)


def _highest_losses(attack: Any, x: Tensor, y: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Of each kind of APGD among the library's attacks, the points (B, ...) of highest loss of all images."""
    for part in ("apgd-ce", "apgd-dlr"):
        if part in attack.attacks_to_run:
            attack.apgd.loss = part.removeprefix("apgd-")
            batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
            yield torch.cat([attack.apgd.perturb(*batch, best_loss=True).to(x.dtype) for batch in batches])


@torch.no_grad()
def _most_often_wrong(model: nn.Module, points: list[Tensor], y: Tensor, num_draws: int, batch_size: int) -> Tensor:
    """(B, ...): for each image the one of its points that most of `num_draws` fresh draws are wrong on."""
    wrong = []
    for point in points:
        draws = [torch.cat([model(part).argmax(1) for part in point.split(batch_size)]) != y for _ in range(num_draws)]
        wrong.append(torch.stack(draws).sum(0))
    return torch.stack(points)[torch.stack(wrong).argmax(0), torch.arange(len(y), device=y.device)]


def _library() -> Any:
    try:
        return importlib.import_module("pyautoattack")
    except ImportError as error:
        raise ImportError("auto_attack needs pyautoattack: pip install 'itoflow[autoattack]'") from error


@contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The library seeds torch's generators, lets parameters collect gradients and ends tracing, a debugger's too."""
    trace = sys.gettrace()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            yield
    finally:
        sys.settrace(trace)
        for parameter in learning:
            parameter.requires_grad_()
