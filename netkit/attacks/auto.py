"""AutoAttack (Croce & Hein 2020), by its authors' own code where that is installed."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from netkit.attacks.ascent import Norm, generator_on
from netkit.attacks.expectation import (
    JUDGING_DRAWS,
    BatchNormMode,
    ExpectationOverTransformation,
    checked_images_and_labels,
    logits_of,
    per_image,
    under_attack,
    unwrapped,
)
from netkit.checks import check_counts, check_positive
from netkit.noise import is_channels_last
from netkit.randomness import is_random, seeded_globally

AutoAttackVersion = Literal["standard", "plus", "rand"]
AutoAttackPart = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]

_NORMS = {"linf": "Linf", "l2": "L2"}
_MAX_TARGETS = 9  # the library's own choice
_RANDOM_PARTS = {"apgd-ce", "apgd-dlr"}


def auto_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: AutoAttackVersion | None = None,
    parts: Sequence[AutoAttackPart] | None = None,
    norm: Norm = "linf",
    num_steps: int = 100,
    num_queries: int = 5000,
    eot_draws: int = 20,
    batch_size: int = 250,
    batch_norm: BatchNormMode = "eval",
    random: bool | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Several parameter-free attacks one after the other, each on the images that are still classified correctly.

    Images that the model gets wrong at once, or that no attack changes its mind on, come back as they were; a random
    model gets every image back attacked. The distance to x is at most eps up to rounding; the library computes in
    float32, whatever the type of images and model. It logs its own doubts (a dynamic model, vanishing gradients) to the
    logger "auto-attack".

    version: `"standard"` is APGD-CE, targeted APGD-DLR, targeted FAB and Square; `"plus"` adds restarts and the
        untargeted forms; `"rand"`, for random models, is APGD-CE and APGD-DLR on gradients averaged over `eot_draws`
        draws. None: `"rand"` for a random model, else `"standard"`.
        By the library's rule an image is lost once a single draw is fooled, and is else given back clean. Over fresh
        draws that would make a random model look strong. So `"standard"` and `"plus"` are refused for random models.
        In `"rand"` both attacks also run on all images: of the library's result and the two points of highest loss,
        each image gets the one that most of `eot_draws`, at least 20, fresh draws are wrong on. That is up to four runs
        in place of two. A model without noise is left to the rule, with one draw a gradient.
    parts: run these attacks instead, with the options of the version; of a random model only the two of `"rand"`.
    num_steps: of APGD and FAB. num_queries: of Square. The defaults are the published ones.
    eot_draws: an `ExpectationOverTransformation` of more draws in place of a model raises it to its own.
    batch_norm: as for `pgd`.
    random: whether the model is random; None: `netkit.randomness.is_random` looks, and an
        `ExpectationOverTransformation` says so.
    generator: seeds the attack, by default from the operating system. Global generators are left as they were; the
        noise of the model comes from the model's own generator.

    Raises ImportError without the library, which the extra `autoattack` installs; ValueError for wrong input, for a
    version or parts that flatter a random model, or fewer than four classes, with which DLR does not exist.
    """
    if version is not None and version not in get_args(AutoAttackVersion):
        raise ValueError(f"version: expected one of {get_args(AutoAttackVersion)}, got {version!r}")
    if parts is not None and (not parts or set(parts) - set(get_args(AutoAttackPart))):
        raise ValueError(f"parts: expected some of {get_args(AutoAttackPart)}, got {list(parts)}")
    if norm not in _NORMS:
        raise ValueError(f"norm: expected one of {tuple(_NORMS)}, got {norm!r}")
    check_positive(eps=eps)
    check_counts(num_steps=num_steps, num_queries=num_queries, eot_draws=eot_draws, batch_size=batch_size)
    x, num_labels = checked_images_and_labels(x, y)
    if isinstance(model, ExpectationOverTransformation):
        eot_draws, random = max(eot_draws, model.num_draws), True if random is None else random
        model = unwrapped(model)
    if random is None:
        random = is_random(model, x)
    version = version or ("rand" if random else "standard")
    if random and (version != "rand" or not _RANDOM_PARTS.issuperset(parts or ())):
        raise ValueError(
            f"version, parts: expected 'rand' and some of {sorted(_RANDOM_PARTS)} for a model that answers at random, "
            f"got {version!r} and {parts}: an image that one draw was wrong on would come back clean"
        )
    library, layout = _library(), torch.channels_last if is_channels_last(x) else torch.contiguous_format
    source = generator_on(x.device, generator)
    seed = int(torch.randint(2**31, (), generator=source, device=source.device))
    with _trace_kept(), seeded_globally(seed), under_attack(model, batch_norm):
        with torch.no_grad():
            num_classes = logits_of(model, x[:1], num_labels).shape[1]
        if num_classes < 4:
            raise ValueError(f"model: expected at least 4 classes, got {num_classes}")
        called, images = _Adapter(model, x.dtype, layout), x.to(torch.float32, memory_format=torch.contiguous_format)
        attack = library.AutoAttack(called, norm=_NORMS[norm], eps=eps, seed=seed, version=version, device=x.device)
        for gradient_attack in (attack.apgd, attack.apgd_targeted, attack.fab):
            gradient_attack.n_iter = num_steps
        for targeted in (attack.apgd_targeted, attack.fab):
            targeted.n_target_classes = min(_MAX_TARGETS, num_classes - 1)
        attack.square.n_queries = num_queries
        if version == "rand":
            attack.apgd.eot_iter = attack.apgd_targeted.eot_iter = eot_draws if random else 1
        if parts is not None:
            attack.attacks_to_run = list(parts)
        x_adv: Tensor = attack.run_standard_evaluation(images, y, batch_size=batch_size)[0]
        if random:
            torch.random.manual_seed(seed)  # the library does so only where it has something to attack
            points = [*_highest_losses(attack, images, y, batch_size)]
            was_left = (x_adv == images).flatten(1).all(1)
            points.append(torch.where(per_image(was_left, images), points[0], x_adv))
            x_adv = _most_often_wrong(called, points, y, max(eot_draws, JUDGING_DRAWS), batch_size)
    x_adv = torch.where(x_adv == images, x, x_adv.detach().to(x.dtype))  # pixels left alone keep all their digits
    return x_adv.clamp(0, 1).contiguous(memory_format=layout)


class _Adapter(nn.Module):
    """The model for the library, whose images and gradients are float32 and lie in memory as usual."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        self.model, self.dtype, self.layout = model, dtype, layout

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(torch.Tensor.contiguous)  # the gradient, which lies as the images of the model do
        logits: Tensor = self.model(x.to(self.dtype, memory_format=self.layout))
        return logits.float()


def _highest_losses(attack: Any, x: Tensor, y: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The points (B, ...) of highest loss of all images, for each kind of APGD among the attacks to run."""
    for part in ("apgd-ce", "apgd-dlr"):
        if part in attack.attacks_to_run:
            attack.apgd.loss = part.removeprefix("apgd-")
            batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
            yield torch.cat([attack.apgd.perturb(*batch, best_loss=True) for batch in batches])


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
def _trace_kept() -> Iterator[None]:
    """The library ends tracing, a debugger's too."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)
