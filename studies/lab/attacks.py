"""The attacks of the tables' columns, one row each: what it is called, what it does, what it costs and needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from netkit import attacks
from netkit.attacks.carlini_wagner import CWVariant
from netkit.evaluate import Attack as Perturb

_PAPER_EPS = 8 / 255
_RESTARTS = 5


@dataclass(frozen=True)
class Strength:
    """The strength of a table's attacks, in pixel units; `variant` is that of C&W (see `netkit.attacks.cw`)."""

    eps: float
    step_size: float
    variant: CWVariant = "paper"


@dataclass(frozen=True)
class Attack:
    """A column of a table.

    title: its head; {steps} and {draws} are filled in.
    make: (strength, steps, draws) to the attack, None for clean images; whoever runs it averages gradients over draws.
    steps: of one run, as published; settings may cap them where there is more than one.
    runs: from as many starts.
    eot_draws: noise draws that each gradient is averaged over, where the settings do not say.
    is_about_noise: another way to deal with noise, and so the same as IFGSM20 on a network without.
    on_twin: made on the noise-free twin of the network, and shown to the network.
    batch_size: images attacked at a time; results depend on it.
    needs: a library that this installation may lack.
    """

    title: str
    make: Callable[[Strength, int, int], Perturb] | None = None
    steps: int = 0
    runs: int = 1
    eot_draws: int | None = None
    is_about_noise: bool = False
    on_twin: bool = False
    batch_size: int = 250
    needs: str | None = None

    def capped(self, cap: int | None) -> int:
        """Its steps where settings allow at most `cap`."""
        return self.steps if cap is None or self.steps <= 1 else min(self.steps, cap)

    def lacks(self) -> str | None:
        """The missing library, in words; None where nothing is missing."""
        if self.needs is None or importlib.util.find_spec(self.needs) is not None:
            return None
        return f"{self.title.partition(' (')[0]} needs {self.needs}: pip install {self.needs}"


def _fgsm(strength: Strength, steps: int, draws: int) -> Perturb:
    return partial(attacks.fgsm, eps=strength.eps)


def _ifgsm(strength: Strength, steps: int, draws: int) -> Perturb:
    return partial(attacks.ifgsm, eps=strength.eps, step_size=strength.step_size, num_steps=steps)


def _pgd(strength: Strength, steps: int, draws: int) -> Perturb:
    return partial(attacks.pgd, eps=strength.eps, step_size=strength.step_size, num_steps=steps, num_restarts=_RESTARTS)


def _cw(strength: Strength, steps: int, draws: int) -> Perturb:
    # on another scale than the paper's its learning rate grows with eps, as steps do elsewhere
    rate = 6e-4 * strength.eps / _PAPER_EPS
    return partial(attacks.cw, variant=strength.variant, num_steps=steps, learning_rate=rate, c=10.0)


def _auto_attack(strength: Strength, steps: int, draws: int) -> Perturb:
    return partial(attacks.auto_attack, eps=strength.eps, version="rand", num_steps=steps, eot_draws=draws)


ATTACKS = {
    "nat": Attack("natural"),
    "fgsm": Attack("FGSM", _fgsm, steps=1),
    "ifgsm20": Attack("IFGSM{steps}", _ifgsm, steps=20),
    "cw": Attack("C&W ({steps})", _cw, steps=50),
    "pgd20": Attack("PGD{steps}, best of 5", _pgd, steps=20, runs=_RESTARTS),
    "transfer": Attack("IFGSM{steps} on the noise-free twin", _ifgsm, steps=20, is_about_noise=True, on_twin=True),
    "ifgsm20-eot1": Attack("IFGSM{steps}, 1 draw", _ifgsm, steps=20, eot_draws=1, is_about_noise=True),
    "ifgsm20-eot20": Attack("IFGSM{steps}, 20 draws", _ifgsm, steps=20, eot_draws=20, is_about_noise=True),
    "ifgsm20-eot50": Attack("IFGSM{steps}, 50 draws", _ifgsm, steps=20, eot_draws=50, is_about_noise=True),
    "autoattack": Attack(
        "AutoAttack rand ({steps} steps, {draws} draws)",
        _auto_attack,
        steps=100,
        runs=4,
        batch_size=50,
        needs="pyautoattack",
    ),
}
