"""The whole reproduction as settings, and stages in the order of their value for the paper's main claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netkit.training import TrainingLoss
from studies.lab.attacks import ATTACKS
from studies.lab.networks import Network
from studies.lab.tasks import Settings, Task, Training, tasks_for
from studies.paper.tables import WHITE_BOX

CORE = ("ResNet20", "En1ResNet20", "En2ResNet20", "Plain2ResNet20", "Wide2ResNet20")
FIVE = ("En5ResNet20", "Plain5ResNet20", "Wide5ResNet20")
DEEPER = ("ResNet44", "En1ResNet44", "En2ResNet44", "WRN-14-2", "En1WRN-14-2", "ResNet32", "En1ResNet32")
LARGE = ("ResNet110", "En2ResNet110", "WRN-34-10", "En1WideResNet34-10")
MODERN = ("pgd20", "transfer", "ifgsm20-eot1", "ifgsm20-eot20", "ifgsm20-eot50", "autoattack")

_FIRST, _THEN = ("ResNet20", "En2ResNet20", "Plain2ResNet20"), ("Wide2ResNet20", "En1ResNet20")


@dataclass(frozen=True)
class Setting:
    """One way to train and attack.

    limits: what cannot be concluded from it.
    options: of `Settings`.
    rates: peak learning rates of some networks, chosen on validation; others take the preset's, or those of `options`.
    """

    title: str
    what: str
    limits: str
    dataset: str
    preset: str
    loss: TrainingLoss = "pgd"
    options: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)

    def settings(self, *, out: Path, data: Path | None = None, device: str = "cpu") -> Settings:
        """`data` is a folder with the files of several data sets, or the file of one."""
        if self.dataset == "digits":
            data = None
        elif data is not None and data.suffix == ".npz":
            data = data.with_name(f"{self.dataset}.npz")
        elif data is not None and (data / f"{self.dataset}.npz").is_file():
            data /= f"{self.dataset}.npz"
        return Settings(self.dataset, self.preset, out, data, device=device, **self.options)


SETTINGS = {
    "cpu-full": Setting(
        "CPU, full width",
        "ResNet20 and its ensembles of the paper's width on all of CIFAR-10, a one-step attack in training, 10 epochs.",
        "The paper's networks and images, trained for 10 epochs in place of 200 and against one step in place of ten, "
        "from which the distance to its numbers comes. Others' ResNet20 of this size, 160 epochs on clean images and "
        "against seven steps: natural 83.8, FGSM 46.6, PGD of seven steps 39.1 (He, Rakin and Fan, 2019, Parametric "
        "Noise Injection).",
        "cifar10",
        "one-step-bf16",
        options={"epochs": 10, "num_test": 2_000},
        rates={"ResNet20": 0.4, "En2ResNet20": 0.8, "Plain2ResNet20": 0.2},
    ),
    "cpu-full-rates": Setting(
        "CPU, full width, learning rates",
        "The networks of cpu-full, trained on 15,000 images for 3 epochs with several learning rates; not attacked but "
        "for validation.",
        "For the choice of the learning rates of cpu-full.",
        "cifar10",
        "one-step-bf16",
        options={"epochs": 3, "num_train": 15_000, "learning_rates": (0.1, 0.2, 0.4, 0.8, 1.6)},
    ),
    "cpu-narrow": Setting(
        "CPU, narrow networks",
        "ResNet20 and its ensembles of width 8, the first 10,000 training images of CIFAR-10, 1,000 of them held out "
        "for validation, a one-step attack in training, 10 epochs.",
        "A small stand-in that two CPU cores can train: half the paper's width, a fifth of its images, one-step in "
        "place of ten-step attacks, 10 epochs in place of 200. It says nothing about the paper's absolute numbers. The "
        "learning rate, 0.2 times the number of members, was not tuned. Attacks take at most 20 steps.",
        "cifar10",
        "one-step",
        options={"width": 8, "num_train": 10_000, "num_test": 2_000, "epochs": 10, "attack_steps": 20},
    ),
    "fast": Setting(
        "CIFAR-10, one-cycle",
        "The paper's networks on CIFAR-10, PGD-7 in training, 30 epochs with a one-cycle learning rate.",
        "3/20 of the paper's epochs, with another schedule and mixed precision.",
        "cifar10",
        "fast",
    ),
    "paper": Setting(
        "CIFAR-10, as the paper says",
        "The paper's networks on CIFAR-10, PGD-10 in training, 200 epochs.",
        "Batch size, momentum and weight decay are the released code's, as the paper names none.",
        "cifar10",
        "paper",
    ),
    "fast-cifar100": Setting(
        "CIFAR-100, one-cycle",
        "The paper's networks on CIFAR-100, PGD-7 in training, 30 epochs with a one-cycle learning rate.",
        "As for CIFAR-10, one-cycle.",
        "cifar100",
        "fast",
    ),
    "fast-natural": Setting(
        "CIFAR-10, one-cycle, natural training",
        "The paper's networks on CIFAR-10, trained on clean images, 30 epochs with a one-cycle learning rate.",
        "As for CIFAR-10, one-cycle.",
        "cifar10",
        "fast",
        loss="natural",
    ),
    "digits": Setting(
        "Digits, as little as shows that everything runs",
        "ResNet8 and its ensembles of width 8 on 8x8 digits, two epochs.",
        "Nothing can be concluded from it.",
        "digits",
        "digits",
        options={"num_train": 256, "num_test": 40, "epochs": 2, "attack_steps": 2, "num_draws": 2, "auto_draws": 2},
    ),
}


@dataclass(frozen=True)
class Stage:
    """Rows and attacks of one setting, all of seed 0 first; `options` change the setting for attacks alone."""

    setting: str
    rows: tuple[str, ...]
    attacks: tuple[str, ...]
    seeds: Sequence[int] = (0, 1, 2)
    options: Mapping[str, Any] = field(default_factory=dict)


_FEWER: dict[str, Any] = {"num_test": 1_000}
_FEWEST: dict[str, Any] = {"num_test": 500, "auto_draws": 5}

QUEUE = (
    Stage("fast", CORE, WHITE_BOX),
    Stage("fast", CORE, MODERN, options=_FEWER),
    Stage("fast", FIVE, WHITE_BOX),
    Stage("fast", FIVE, MODERN, options=_FEWER),
    Stage("paper", (*CORE, *FIVE), WHITE_BOX),
    Stage("paper", (*CORE, *FIVE), MODERN, options=_FEWER),
    Stage("fast-cifar100", (*CORE, *FIVE), WHITE_BOX),
    Stage("fast-natural", (*CORE, *FIVE), WHITE_BOX),
    Stage("fast", DEEPER, WHITE_BOX),
    Stage("fast", LARGE, WHITE_BOX, seeds=(0,)),
)
"""By value for the claim that noisy ensembles do better on clean and on attacked images."""

ON_REQUEST = (
    Stage("cpu-full-rates", _FIRST, (), (0,)),
    *(Stage("cpu-full", _FIRST, ("nat", "fgsm", "ifgsm20"), (seed,)) for seed in range(3)),
    Stage("cpu-full-rates", _THEN, (), (0,)),
    Stage("cpu-full", _FIRST, ("cw", "autoattack"), options=_FEWEST),
    Stage("cpu-full", _FIRST, ("ifgsm20-eot1", "transfer", "pgd20")),
    *(Stage("cpu-full", _THEN, ("nat", "fgsm", "ifgsm20"), (seed,)) for seed in range(3)),
    Stage("cpu-full", _THEN, ("cw", "autoattack"), options=_FEWEST),
    Stage("cpu-full", _THEN, ("ifgsm20-eot1", "transfer", "pgd20")),
    Stage("digits", ("ResNet8", "En2ResNet8"), (*WHITE_BOX, *MODERN), (0, 1)),
)
"""Settings that are not part of the queue, and run only where they are named."""


def tasks_of(stages: Iterable[Stage], *, data: Path | None, out: Path, device: str) -> Iterator[Task]:
    """The tasks of the stages in order; attacks that do the same to a noise-free network are left out."""
    for stage in stages:
        setting = SETTINGS[stage.setting]
        usual = setting.settings(out=out, data=data, device=device)
        for seed in stage.seeds:
            for network in map(Network.parse, stage.rows):
                rates = (setting.rates[network.name],) if network.name in setting.rates else usual.learning_rates
                training = replace(usual, learning_rates=rates)
                attacking = replace(training, **stage.options)
                attacks = [a for a in stage.attacks if network.is_noisy or not ATTACKS[a].is_about_noise]
                for task in tasks_for(training, network, seed, attacks, loss=setting.loss):
                    yield task if isinstance(task, Training) else replace(task, settings=attacking)
