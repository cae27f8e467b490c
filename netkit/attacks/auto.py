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

    Images that the model gets wrong at once, or that no attack changes its mind on, come back as they were. The
    distance to x is at most eps up to rounding. The library logs its own doubts (a random or a dynamic model, vanishing
    gradients) to the logger "auto-attack".

    Args:
        version: `"standard"` is APGD-CE, targeted APGD-DLR, targeted FAB and Square; `"plus"` adds restarts and the
            untargeted forms; `"rand"`, for noisy models, is APGD-CE and APGD-DLR on gradients averaged over
            `eot_draws` draws.
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
    return x_adv.detach().clamp(0, 1)


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
