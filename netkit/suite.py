"""The attacks of an audit: which of them fit a model, and running one after the other."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from netkit import attacks
from netkit.attacks.expectation import JUDGING_DRAWS, per_image, unwrapped
from netkit.checkpoint import CheckpointError
from netkit.evaluate import Attack, no_attack, perturbed, robust_accuracy, through_eot
from netkit.findings import Kind, Look, Row, is_lower
from netkit.randomness import is_random

Budget = Literal["quick", "standard", "full"]
View = Literal["noise_free", "frozen_noise"]

_FIRM_DRAWS = 3  # answers of a model that looks fixed, to see that it is
_MOST_DRAWS = 20  # a gradient, for attacks outside the sweep


@dataclass(frozen=True)
class _Size:
    num_steps: int
    num_restarts: int
    eot_draws: tuple[int, ...]


_SIZES: dict[Budget, _Size] = {
    "quick": _Size(10, 1, (1, 5)),
    "standard": _Size(20, 2, (1, 5, 20, 50)),
    "full": _Size(50, 5, (1, 5, 20, 50)),
}


class UnfitError(ValueError):
    """The attack does not fit the model; the message says why."""


@dataclass(frozen=True)
class Step:
    """An attack to run.

    draws: of a gradient of a random model; None for as many as the sweep found to help. oracle: attacked in place of
    the model. has_gradient: whether the attack needs one.
    """

    name: str
    title: str
    kind: Kind
    attack: Attack
    draws: int | None = None
    oracle: nn.Module | None = None
    has_gradient: bool = True


def plan(
    look: Look,
    budget: Budget,
    eps: float,
    norm: attacks.Norm,
    *,
    eot_draws: Sequence[int] | None = None,
    others: Sequence[nn.Module] = (),
    own: Mapping[str, Attack] | None = None,
    auto_attack: bool | Literal["auto"] = "auto",
) -> tuple[list[Step], list[str]]:
    """The attacks that fit the model, and what is left out. Arguments are those of `netkit.audit`."""
    size, left_out = _SIZES[budget], []
    sweep = size.eot_draws if eot_draws is None else tuple(eot_draws)
    random, num_steps, few = look.is_random, size.num_steps, min(5, sweep[-1])
    ball: dict[str, Any] = {"eps": eps, "norm": norm}
    small: dict[str, Any] = {**ball, "step_size": eps / 4, "num_steps": num_steps}
    climb = partial(attacks.pgd, **small, random_start=False)
    judging = JUDGING_DRAWS if random else 1
    restarted = partial(attacks.pgd, **small, num_restarts=size.num_restarts, judging_draws=judging)
    at_once = partial(attacks.pgd, **ball, step_size=eps, num_steps=1, random_start=False)
    free = partial(attacks.pgd, eps=1.0, step_size=0.1, num_steps=num_steps, random_start=False, loss=attacks.margin)
    starts = f"{num_steps} steps, {size.num_restarts} starts" if size.num_restarts > 1 else f"{num_steps} steps"
    steps = [
        Step("clean", "clean", "clean", no_attack, has_gradient=False),
        Step("noise", "random noise at eps", "noise", partial(random_noise, **ball), has_gradient=False),
        Step("fgsm", "FGSM" if norm == "linf" else "one step", "one step", at_once, few),
    ]
    for draws in sweep if random else (1,):
        steps.append(Step(f"ifgsm-{draws}", f"IFGSM, {num_steps} steps", "sweep", climb, draws))
    if size.num_restarts > 1:
        steps.append(Step("pgd", f"PGD, {starts}", "steps", restarted))
    steps.append(Step("margin", f"PGD on the margin, {starts}", "steps", partial(restarted, loss=attacks.margin)))
    if random and budget != "quick":
        views: dict[View, str] = {
            "noise_free": "the network without noise",
            "frozen_noise": "the network, noise frozen",
        }
        for view, title in views.items():
            steps.append(Step(view, title, "surrogate", partial(through_view, view=view, attack=climb), 1))
        arc = partial(attacks.arc, **ball, num_steps=num_steps)
        steps.append(Step("arc", f"ARC, {num_steps} steps", "steps", arc, few))
    if budget == "quick":
        left_out.append("restarts, more than 10 steps and 5 draws a gradient, surrogates and ARC (budget='quick')")
    reason = _no_auto_attack(look, wanted=auto_attack is True or (auto_attack == "auto" and budget == "full"))
    if reason is None:
        version: attacks.AutoAttackVersion = "rand" if random else "standard"
        whole = partial(attacks.auto_attack, **ball, version=version, random=random)
        steps.append(Step("autoattack", f"AutoAttack ({version})", "auto", whole, _MOST_DRAWS))
    elif auto_attack is True:
        raise ValueError(f"auto_attack: {reason}")
    else:
        left_out.append(f"AutoAttack ({reason})")
    for number, other in enumerate(others):
        title = f"transfer from {type(other).__name__}"
        steps.append(Step(f"transfer-{number}", title, "transfer", climb, few, oracle=other))
    for number, (title, attack) in enumerate((own or {}).items()):
        steps.append(Step(f"own-{number}", title, "own", attack))
    steps.append(Step("wide", "wide ball: every pixel is free", "wide", free, few))
    if not look.has_gradient:
        left_out.append("all attacks by gradients (there are none)")
        steps = [step for step in steps if not step.has_gradient or step.oracle is not None or step.kind == "own"]
    return steps, left_out


class Runner:
    """Runs one attack after the other on one model and its images; arguments are those of `netkit.audit`."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        random: bool,
        num_draws: int,
        eps: float,
        norm: attacks.Norm,
        store: Path | None,
        key: str | None,
        **options: Any,
    ) -> None:
        self.model, self.x, self.y, self.random, self.store, self.key = model, x, y, random, store, key
        self.ball: dict[str, Any] = {"eps": eps, "norm": norm}
        self.options = options | {"num_draws": num_draws if random else _FIRM_DRAWS}
        self.rows: list[Row] = []
        self.is_settled, self.draws = False, 1

    def run(self, step: Step) -> Row | None:
        """The scored attack; None where the sweep has settled before. Raises UnfitError where it does not fit."""
        if step.kind == "sweep" and self.is_settled:
            return None
        draws = min(self.draws, _MOST_DRAWS) if step.draws is None else step.draws
        random = draws > 1 and (self.random if step.oracle is None else is_random(step.oracle, self.x))
        attack = partial(through_eot, attack=step.attack, eot_draws=draws, random=random)
        options = self.options
        if step.kind != "wide":
            options = options | self.ball  # an attack of one's own need not bind it
        key = self.key
        if key is not None and step.kind == "own":
            key = f"{key}, {step.title}"  # its place says nothing of what it is
        begun = time.perf_counter()
        with _passes(self.model, step.oracle) as passes, _named(step):
            score = robust_accuracy(
                self.model,
                self.x,
                self.y,
                attack if step.has_gradient else step.attack,
                random=True,  # or it would be asked once; `through_eot` knows better
                oracle=step.oracle,
                store=None if self.store is None else self.store / step.name,
                key=key,
                **options,
            )
        seconds, n = time.perf_counter() - begun, len(self.x)
        eot = draws if step.has_gradient else None
        row = Row(step.name, step.title, step.kind, score, eot, seconds, passes["forward"] / n, passes["backward"] / n)
        if step.kind == "sweep":
            before = [row for row in self.rows if row.kind == "sweep"]
            self.is_settled = bool(before) and not is_lower(score, before[-1].score, by=0.0, confidence=0.95)
            self.draws = draws
        self.rows.append(row)
        return row


def random_noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: attacks.Norm = "linf",
    generator: torch.Generator | None = None,
) -> Tensor:
    """x plus noise of length eps in a random direction, of a corner of the ball for `"linf"`, clipped to [0, 1]."""
    if norm == "linf":
        signs = torch.randint(0, 2, x.shape, generator=generator, device=x.device)
        return (x + eps * (2 * signs - 1).to(x)).clamp(0, 1)
    direction = torch.empty_like(x).normal_(generator=generator)
    length = torch.linalg.vector_norm(direction.flatten(1), dim=1)
    return (x + direction * per_image(eps / length, x)).clamp(0, 1)


def through_view(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    view: View,
    attack: Attack,
    generator: torch.Generator,
) -> Tensor:
    """`attack` on the model without noise, or with a draw of it frozen."""
    net = unwrapped(model)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    try:
        surrogate = attacks.noise_free(net) if view == "noise_free" else attacks.frozen_noise(net, x, seed)
        return perturbed(attack, surrogate, x, y, generator)
    except attacks.NotFiniteError:
        raise
    except ValueError as error:
        raise UnfitError(str(error)) from error


def _no_auto_attack(look: Look, *, wanted: bool) -> str | None:
    """Why AutoAttack does not run; None where it does."""
    if not wanted:
        return "budget='full' or auto_attack=True runs it"
    if look.num_classes < 4:
        return f"it needs four classes, got {look.num_classes}"
    if importlib.util.find_spec("pyautoattack") is None:
        return "pyautoattack is not installed: pip install 'itoflow[autoattack]'"
    return None


@contextlib.contextmanager
def _named(step: Step) -> Iterator[None]:
    """Say which attack it was where one of the caller's returns what it may not."""
    try:
        yield
    except (attacks.NotFiniteError, CheckpointError):
        raise
    except ValueError as error:
        if step.kind != "own":
            raise
        raise ValueError(f"own_attacks: {step.title!r}: {error}") from error


@contextlib.contextmanager
def _passes(*models: nn.Module | None) -> Iterator[dict[str, int]]:
    """Count the images that go forward and backward through the models inside the block.

    By torch's global hook, since one on the models would be part of their identity.
    """
    counts = {"forward": 0, "backward": 0}

    def on_backward(gradient: Tensor) -> None:
        counts["backward"] += len(gradient)

    def on_forward(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and any(module is model for model in models):
            counts["forward"] += len(output)
            if output.requires_grad:
                output.register_hook(on_backward)

    handle = nn.modules.module.register_module_forward_hook(on_forward)
    try:
        yield counts
    finally:
        handle.remove()
