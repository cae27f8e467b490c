"""Tasks as values: the trainings and scorings behind a table, and the files that they leave.

A file's name carries a hash of everything its content depends on but the data, whose content the files themselves
check. So tables share what they have in common, other settings never overwrite it, and whatever is on disk is not done
again. Nothing here loads data or builds a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from netkit.presets import PRESETS
from netkit.training import TrainConfig, TrainingLoss
from studies.lab.attacks import ATTACKS, Attack, Strength
from studies.lab.networks import Network
from studies.lab.reporting import InputError

Weights = Literal["equal", "learned", "optimal"]
"""Weights of the members of an "A&B" (section 5): learned once an epoch in training, or optimal after it."""

_DIGITS_WIDTH = 8  # half the paper's, at half the time
_MOST_DRAWS = 35  # a record has a digit of base 36 for each image
_NUM_TRAIN = {"digits": 1_080, "cifar10": 45_000, "cifar100": 45_000}
_NUM_TEST = {"digits": 539, "cifar10": 10_000, "cifar100": 10_000}


@dataclass(frozen=True)
class Settings:
    """The settings of a whole table; tables with equal settings share every file.

    attack_steps: caps the steps of every attack in training and in evaluation, not of the one in validation.
    learning_rates: all are trained, and the best on validation is kept, for each row and seed.
    eot_draws, auto_draws: noise draws in each attack gradient, and in each of AutoAttack.
    width: of all networks, by default the paper's 16, and 8 on digits.
    """

    dataset: str
    preset: str
    out: Path
    data: Path | None = None
    download: bool = False
    epochs: int | None = None
    learning_rates: tuple[float, ...] = ()
    num_train: int | None = None
    num_test: int | None = None
    attack_steps: int | None = None
    eot_draws: int = 5
    auto_draws: int = 20
    num_draws: int = 10
    device: str = "cpu"
    width: int | None = None

    def __post_init__(self) -> None:
        if self.dataset not in _NUM_TRAIN:
            raise InputError(f"dataset: expected one of {', '.join(_NUM_TRAIN)}, got {self.dataset!r}")
        if self.preset not in PRESETS:
            raise InputError(f"preset: expected one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.num_draws > _MOST_DRAWS:
            raise InputError(f"num_draws: expected at most {_MOST_DRAWS}, got {self.num_draws}")
        try:
            for lr in self.candidates():
                self.train_config(seed=0, loss="pgd", lr=lr)
        except ValueError as error:
            raise InputError(str(error)) from error

    def train_config(self, seed: int, loss: TrainingLoss, lr: float | None = None) -> TrainConfig:
        """The preset with what the command line changed."""
        config = PRESETS[self.preset]
        return replace(
            config,
            loss=loss,
            seed=seed,
            epochs=self.epochs or config.epochs,
            lr=config.lr if lr is None else lr,
            num_steps=min(config.num_steps, self.attack_steps or config.num_steps),
        )

    def candidates(self) -> tuple[float, ...]:
        return self.learning_rates or (PRESETS[self.preset].lr,)

    @property
    def title(self) -> str:
        """The trainings' common traits in words; records of equal titles and data sets belong together."""
        said = [
            self.preset,
            self.epochs and f"{self.epochs} epochs",
            self.width and f"width {self.width}",
            self.num_train and f"{self.num_train:,} images",
            self.attack_steps and f"attacks of at most {self.attack_steps} steps",
        ]
        return ", ".join(part for part in said if part)

    @property
    def network_width(self) -> int | None:
        """None for the width of `netkit.en_resnet`."""
        return self.width or (_DIGITS_WIDTH if self.dataset == "digits" else None)

    @property
    def strength(self) -> Strength:
        """The strength of attacks in evaluation: no step is longer than eps/4, as one in training may be."""
        config = PRESETS[self.preset]
        variant: Any = "authors" if self.preset == "authors" else "paper"
        return Strength(config.eps, min(config.step_size, config.eps / 4), variant)


@dataclass(frozen=True)
class Training:
    """Train a network with one seed and one learning rate."""

    settings: Settings
    network: Network
    seed: int
    lr: float
    loss: TrainingLoss = "pgd"
    learns_weights: bool = False

    splits: ClassVar = ("train", "val")
    """The images that the result depends on."""

    def __str__(self) -> str:
        how = "" if self.loss == "pgd" else f", {self.loss} loss"
        how += ", learned weights" if self.learns_weights else ""
        return f"train {self.network}{how}, seed {self.seed}, lr {self.lr:g}"

    @property
    def config(self) -> TrainConfig:
        return self.settings.train_config(self.seed, self.loss, self.lr)

    @property
    def weight_rate(self) -> float:
        """The learning rate of members' weights, for the mean loss: the preset's, whatever is tried for the networks.

        A rate that suits a network may be so large for a few weights that their sum is lost.
        """
        return PRESETS[self.settings.preset].lr

    @cached_property
    def path(self) -> Path:
        """The checkpoint; beside it, with the suffix .json, the record of a finished training."""
        settings = self.settings
        identity = {
            "network": [self.network.name, settings.network_width],
            "training": asdict(self.config),
            "num_train": settings.num_train,
            "weights": self.weight_rate if self.learns_weights else None,
        }
        name = f"{settings.dataset}-{self.network}-{settings.preset}-seed{self.seed}"
        return settings.out / "models" / f"{name}-{_hash(identity)}.safetensors"

    @property
    def needs(self) -> tuple[Training, ...]:
        return ()

    @property
    def cost(self) -> float:
        """Passes over one image, forward and back."""
        config = self.config
        attacked = 0 if config.loss == "natural" else config.num_steps
        validated = len(range(0, config.epochs, config.validate_every)) * (0 if attacked == 0 else config.val_num_steps)
        images = self.settings.num_train or _NUM_TRAIN[self.settings.dataset]
        return _size(self.network) * images * (config.epochs * (attacked + 1) + 0.1 * validated)


@dataclass(frozen=True)
class Scoring:
    """Score a network under one attack; an `oracle` is attacked in its place. `trainings` are all that it needs."""

    settings: Settings
    network: Network
    seed: int
    attack: str
    trainings: tuple[Training, ...]
    oracle: Network | None = None
    weights: Weights = "equal"

    splits: ClassVar = ("test",)

    def __str__(self) -> str:
        how = "" if self.loss == "pgd" else f" after {self.loss} training"
        weights = "" if self.weights == "equal" else f" with {self.weights} weights"
        through = "" if self.oracle is None else f" through {self.oracle}"
        return f"attack {self.network}{weights}{how}{through}, seed {self.seed}, {self.attack}"

    @property
    def loss(self) -> TrainingLoss:
        return self.trainings[0].loss

    @property
    def row(self) -> Attack:
        """The attack's row in the registry."""
        return ATTACKS[self.attack]

    @property
    def num_steps(self) -> int:
        return self.row.capped(self.settings.attack_steps)

    @property
    def eot_draws(self) -> int:
        """Noise draws that each gradient is averaged over."""
        if not (self.oracle or self.network).is_noisy or self.row.on_twin or self.row.make is None:
            return 1
        usual = self.settings.auto_draws if self.attack == "autoattack" else self.settings.eot_draws
        return self.row.eot_draws or usual

    @property
    def title(self) -> str:
        """The head of its column, with the number of steps that are taken."""
        return self.row.title.format(steps=self.num_steps, draws=self.settings.auto_draws)

    @cached_property
    def path(self) -> Path:
        """The predictions; beside them, with the suffix .json, the record of a finished scoring."""
        settings = self.settings
        identity = {
            "trainings": [training.path.stem for training in self.trainings],
            "oracle": self.oracle and self.oracle.name,
            "attack": [self.attack, asdict(settings.strength), self.num_steps, self.eot_draws],
            "num_draws": settings.num_draws,
            "num_test": settings.num_test,
            "weights": self.weights,
        }
        name = f"{settings.dataset}-{self.network}-{settings.preset}-seed{self.seed}-{self.attack}"
        return settings.out / "scores" / f"{name}-{_hash(identity)}.safetensors"

    @property
    def needs(self) -> tuple[Training, ...]:
        return self.trainings

    @property
    def cost(self) -> float:
        """Passes over one image, forward and back; of a pass forward alone a third."""
        images = self.settings.num_test or _NUM_TEST[self.settings.dataset]
        gradients = self.row.runs * self.num_steps * self.eot_draws
        return _size(self.network) * images * (gradients + self.settings.num_draws / 3)


Task = Training | Scoring


def tasks_for(
    settings: Settings,
    network: Network,
    seed: int,
    attacks: Iterable[str],
    *,
    loss: TrainingLoss,
    oracle: Network | None = None,
    weights: Weights = "equal",
) -> list[Task]:
    """Everything one row needs with one seed, the trainings first."""
    pairs = [pair for part in (network, oracle) if part is not None for pair in part.trained(seed)]
    trainings = tuple(
        Training(settings, part, own, lr, loss, weights == "learned" and "&" in part.name)
        for part, own in pairs
        for lr in settings.candidates()
    )
    return [
        *trainings,
        *(Scoring(settings, network, seed, attack, trainings, oracle, weights) for attack in attacks),
    ]


def _size(network: Network) -> float:
    """Roughly its number of parameters, in those of ResNet20 of its width."""
    if network.parts:
        return sum(map(_size, network.parts))
    return network.num_members * network.widen_factor**2 * network.depth / 20


def _hash(identity: Any) -> str:
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()
