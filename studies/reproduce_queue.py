"""What the reproduction trains and attacks, in which settings and in the order of its value; nothing is run here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import Column, Job, Loss, Settings, TrainTask, is_noisy, tasks_for
from reporting import InputError

CORE = ("ResNet20", "En1ResNet20", "En2ResNet20", "Plain2ResNet20", "Wide2ResNet20")
FIVE = ("En5ResNet20", "Plain5ResNet20", "Wide5ResNet20")
DEEPER = ("ResNet44", "En1ResNet44", "En2ResNet44", "WRN-14-2", "En1WRN-14-2", "ResNet32", "En1ResNet32")
LARGE = ("ResNet110", "En2ResNet110", "WRN-34-10", "En1WideResNet34-10")
PAPER_COLUMNS: tuple[Column, ...] = ("nat", "fgsm", "ifgsm20", "cw")
MODERN_COLUMNS: tuple[Column, ...] = (
    "pgd20", "transfer", "ifgsm20-eot1", "ifgsm20-eot20", "ifgsm20-eot50", "autoattack"
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One way to train and attack, with a name of its own in the results; `options` are those of `jobs.Settings`."""

    title: str
    what: str
    limits: str
    dataset: str
    preset: str
    loss: Loss = "pgd"
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of single rows; of all others it is that of the preset or of `options`."""


_FIRST = ("ResNet20", "En2ResNet20", "Plain2ResNet20")
_THEN = ("Wide2ResNet20", "En1ResNet20")
_NARROW: dict[str, Any] = {"width": 8, "num_train": 10_000, "num_test": 2_000, "epochs": 10, "attack_steps": 20}

SETTINGS = {
    "cpu-full": Setting(
        "CPU, full width",
        "ResNet20 and its ensembles of the paper's width on all of CIFAR-10, a one-step attack in training, 10 epochs.",
        "The paper's networks and images, trained for 10 epochs in place of 200 and against one step in place of ten.",
        "cifar10",
        "one-step",
        options={"epochs": 10, "num_test": 2_000},
    ),
    "cpu-full-rates": Setting(
        "CPU, full width, learning rates",
        "The networks of cpu-full, trained for 3 epochs with several learning rates; not attacked but for validation.",
        "For the choice of the learning rates of cpu-full.",
        "cifar10",
        "one-step",
        options={"epochs": 3, "learning_rates": (0.2, 0.4, 0.8)},
    ),
    "cpu-narrow": Setting(
        "CPU, narrow networks",
        "ResNet20 and its ensembles of width 8, the first 10,000 training images of CIFAR-10, 1,000 of them held out "
        "for validation, a one-step attack in training, 10 epochs.",
        "A small stand-in that two CPU cores can train: half the paper's width, a fifth of its images, one-step in "
        "place of ten-step attacks, 10 epochs in place of 200. It says nothing "
        "about the paper's absolute numbers. The learning rate, 0.2 times the number of members, was not tuned. "
        "Attacks take at most 20 steps.",
        "cifar10",
        "one-step",
        options=_NARROW,
    ),
    "cpu-narrow-rates": Setting(
        "CPU, narrow networks, other learning rates",
        "The networks of cpu-narrow, trained with half and twice its learning rate; not attacked but for validation.",
        "For learning_rates.py.",
        "cifar10",
        "one-step",
        options=_NARROW | {"learning_rates": (0.1, 0.2, 0.4)},
    ),
    "fast": Setting(
        "CIFAR-10, one-cycle",
        "The paper's networks on CIFAR-10, PGD-7 in training, 30 epochs with a one-cycle learning rate.",
        "3/20 of the paper's epochs, with another schedule and mixed precision; the learning rate grows with the "
        "number of members.",
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
    """Rows and columns of one setting, all of seed 0 first; `options` change the setting for attacks alone."""

    setting: str
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    seeds: Sequence[int] = (0, 1, 2)
    options: Mapping[str, Any] = field(default_factory=dict)


QUEUE = (
    Stage("fast", CORE, PAPER_COLUMNS),
    Stage("fast", CORE, MODERN_COLUMNS, options={"num_test": 1_000}),
    Stage("fast", FIVE, PAPER_COLUMNS),
    Stage("fast", FIVE, MODERN_COLUMNS, options={"num_test": 1_000}),
    Stage("paper", (*CORE, *FIVE), PAPER_COLUMNS),
    Stage("paper", (*CORE, *FIVE), MODERN_COLUMNS, options={"num_test": 1_000}),
    Stage("fast-cifar100", (*CORE, *FIVE), PAPER_COLUMNS),
    Stage("fast-natural", (*CORE, *FIVE), PAPER_COLUMNS),
    Stage("fast", DEEPER, PAPER_COLUMNS),
    Stage("fast", LARGE, PAPER_COLUMNS, seeds=(0,)),
)
"""By value for the claim that noisy ensembles do better on clean and on attacked images."""

ON_REQUEST = (
    Stage("cpu-full-rates", _FIRST, (), (0,)),
    *(Stage("cpu-full", _FIRST, ("nat", "fgsm", "ifgsm20"), (seed,)) for seed in range(3)),
    Stage("cpu-full-rates", _THEN, (), (0,)),
    Stage("cpu-full", _FIRST, ("cw", "autoattack"), range(3), {"num_test": 500, "auto_draws": 5}),
    Stage("cpu-full", _FIRST, ("pgd20", "transfer"), range(3)),
    *(Stage("cpu-full", _THEN, ("nat", "fgsm", "ifgsm20"), (seed,)) for seed in range(3)),
    Stage("cpu-full", _THEN, ("cw", "autoattack"), range(3), {"num_test": 500, "auto_draws": 5}),
    Stage("cpu-full", _THEN, ("pgd20", "transfer"), range(3)),
    *(
        stage
        for seed in range(6)
        for stage in (
            Stage("cpu-narrow", CORE, ("nat", "fgsm"), (seed,)),
            Stage("cpu-narrow", CORE, ("ifgsm20",), (seed,), {"num_test": 1_000}),
        )
    ),
    Stage("cpu-narrow", CORE, ("transfer", "ifgsm20-eot1"), range(6), {"num_test": 500}),
    Stage("cpu-narrow", CORE, ("cw", "ifgsm20-eot20", "autoattack"), range(6), {"num_test": 250, "auto_draws": 5}),
    Stage("cpu-narrow", ("En5ResNet20", "Plain5ResNet20"), ("nat", "fgsm", "ifgsm20"), range(3), {"num_test": 500}),
    Stage("cpu-narrow-rates", CORE, (), (0,)),
    Stage("digits", ("ResNet8", "En2ResNet8"), (*PAPER_COLUMNS, *MODERN_COLUMNS), (0, 1)),
)
"""Settings that are not part of the queue, and run only where they are named."""


@dataclass(frozen=True)
class Entry:
    """A job and the setting it belongs to."""

    setting: str
    job: Job

    @property
    def key(self) -> tuple[str, str, str, int]:
        """(setting, data set, row, seed), by which results are sorted."""
        return self.setting, self.job.settings.dataset, self.job.task.model, self.job.task.seed


def entries_of(stages: Iterable[Stage], *, data: Path | None, out: Path, device: str) -> Iterator[Entry]:
    """The jobs of the stages in order; attacks that do the same to a noise-free network are left out."""
    seen = set()
    for stage in stages:
        setting = SETTINGS[stage.setting]
        source = _source(setting.dataset, data)
        usual = Settings(setting.dataset, setting.preset, out, source, device=device, **setting.options)
        attacking = replace(usual, **stage.options)
        for seed in stage.seeds:
            for row in stage.rows:
                rates = setting.learning_rates.get(row, usual.learning_rates)
                tuned, tuned_attacking = (replace(s, learning_rates=rates) for s in (usual, attacking))
                columns = [column for column in stage.columns if is_noisy(row) or not is_about_noise(column)]
                for task in tasks_for(tuned, row, seed, columns, loss=setting.loss):
                    job = Job(task, tuned if isinstance(task, TrainTask) else tuned_attacking)
                    if job not in seen:
                        seen.add(job)
                        yield Entry(stage.setting, job)


def is_about_noise(column: str) -> bool:
    """Is this attack another way to deal with noise, and so the same as IFGSM20 on a network without?"""
    return column == "transfer" or "-eot" in column


def _source(dataset: str, data: Path | None) -> Path | None:
    """Where the images of `dataset` are, `data` being a folder for several data sets or the file of one."""
    if data is None or dataset == "digits":
        return None
    if data.suffix == ".npz":
        if data.stem not in ("cifar10", "cifar100"):
            raise InputError(f"expected --data to be a folder, cifar10.npz or cifar100.npz, got {data}")
        return data.with_name(f"{dataset}.npz")
    inside = data / f"{dataset}.npz"
    return inside if inside.is_file() else data
