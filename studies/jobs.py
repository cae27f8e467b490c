"""The work behind a table: models to train and attacks to run, as resumable tasks spread over processes.
 A file's name carries a hash of everything its content depends on (network, training, data, attack, seed), so
that tables share models, other settings never overwrite them, and whatever is already on disk is not done
again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from reporting import InputError, provenance

from netkit import attacks, checkpoint, data, evaluate, models
from netkit.presets import PRESETS
from netkit.training import TrainConfig, load_model, make_accelerator, train

Column = Literal["nat", "fgsm", "ifgsm20", "cw"]
Report = Callable[[int, int], None]

_EVALUATION_BATCH = 250
_PAPER_EPS = 8 / 255
_DIGITS_WIDTH = 8  # half the paper's, at half the time


@dataclass(frozen=True)
class Settings:
    """What a whole table is computed with; two runs with equal settings share every file.

    `attack_steps` caps the steps of every attack, in training and in evaluation. Several `learning_rates` are
    all trained, and the best on validation is kept, for each row and seed.
    """

    dataset: str
    loss: Literal["pgd", "natural", "trades"]
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
    num_draws: int = 10
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"unknown preset {self.preset!r}: expected one of {', '.join(PRESETS)}")
        try:
            for lr in self.candidates():
                self.train_config(seed=0, lr=lr)
        except ValueError as error:
            raise InputError(str(error)) from error

    def train_config(self, seed: int, lr: float | None = None) -> TrainConfig:
        """The preset with this table's loss and what the command line changed."""
        config = PRESETS[self.preset]
        return replace(
            config,
            loss=self.loss,
            seed=seed,
            epochs=self.epochs or config.epochs,
            lr=config.lr if lr is None else lr,
            num_steps=self.capped(config.num_steps),
        )

    def capped(self, num_steps: int) -> int:
        return min(num_steps, self.attack_steps or num_steps)

    def candidates(self) -> tuple[float, ...]:
        return self.learning_rates or (PRESETS[self.preset].lr,)


@dataclass(frozen=True)
class TrainTask:
    """Train the network `model` with one seed and one learning rate."""

    model: str
    seed: int
    lr: float

    def __str__(self) -> str:
        return f"train {self.model}, seed {self.seed}, lr {self.lr:g}"


@dataclass(frozen=True)
class EvaluateTask:
    """Score `model` on one column; an `oracle` is attacked in its place."""

    model: str
    seed: int
    column: Column
    needs: tuple[TrainTask, ...] = field(compare=False)
    oracle: str | None = None

    def __str__(self) -> str:
        return f"attack {self.oracle or self.model}, seed {self.seed}, {self.column}"


Task = TrainTask | EvaluateTask


def tasks_for(settings: Settings, model: str, seed: int, columns: Iterable[Column], oracle: str | None) -> list[Task]:
    """Everything one row needs with one seed, the training first."""
    names = [model] if oracle is None else [model, oracle]
    training = tuple(TrainTask(name, seed, lr) for name in names for lr in settings.candidates())
    return [*training, *(EvaluateTask(model, seed, column, training, oracle) for column in columns)]


def network(model: str, settings: Settings, seed: int) -> models.EnResNet:
    """The network called `model`, for the images of this data set.

    Besides the paper's names (`netkit.models.from_name`), "Plain5ResNet20" averages five members without
    noise, and "Wide5ResNet20" is one network without noise and with as many parameters as five.

    Raises InputError for other names.
    """
    dataset = load_data(settings)
    options: dict[str, Any] = {
        "num_classes": dataset.num_classes,
        "in_channels": dataset.shape[0],
        "seed": seed,
    }
    if settings.dataset == "digits":
        options["width"] = _DIGITS_WIDTH
    if control := re.fullmatch(r"(Plain|Wide)(\d+)ResNet(\d+)", model):
        kind, num_members, depth = control[1], int(control[2]), int(control[3])
        if kind == "Wide":
            return models.equal_size_resnet(depth, num_members=num_members, **options)
        return models.en_resnet(depth, num_members=num_members, noise="off", **options)
    try:
        return models.from_name(model, **options)
    except ValueError as error:
        raise InputError(str(error)) from error


@lru_cache(maxsize=1)
def load_data(settings: Settings) -> data.Dataset:
    return data.load(
        settings.dataset,
        data=settings.data,
        download=settings.download,
        device=settings.device,
        num_train=settings.num_train,
        num_test=settings.num_test,
    )


@lru_cache(maxsize=4)
def _fingerprint(settings: Settings, *parts: str) -> str:
    return load_data(settings).fingerprint(*parts)


def attack_for(column: Column, settings: Settings) -> evaluate.Attack | None:
    """The attack of a column, as section 3.2 sets it up, through EOT; None for clean images.

    On another scale than the paper's 8/255 the learning rate of C&W grows with eps, as steps do elsewhere.
    """
    config = PRESETS[settings.preset]
    attack: evaluate.Attack
    if column == "nat":
        return None
    if column == "fgsm":
        attack = partial(attacks.fgsm, eps=config.eps)
    elif column == "ifgsm20":
        attack = partial(attacks.ifgsm, eps=config.eps, step_size=config.step_size, num_steps=settings.capped(20))
    else:
        attack = partial(
            attacks.cw,
            variant="authors" if settings.preset == "authors" else "paper",
            num_steps=settings.capped(50),
            learning_rate=6e-4 * config.eps / _PAPER_EPS,
            c=10.0,
        )
    return partial(evaluate.through_eot, attack=attack, eot_draws=settings.eot_draws)


def checkpoint_path(task: TrainTask, settings: Settings) -> Path:
    """Where the model of `task` lives."""
    identity = {
        "model": network(task.model, settings, task.seed).config,
        "training": asdict(settings.train_config(task.seed, task.lr)),
        "data": _fingerprint(settings, "train", "val"),
    }
    name = f"{settings.dataset}-{task.model}-{settings.preset}-seed{task.seed}-{_hash(identity)}.safetensors"
    return settings.out / "models" / name


def evaluation_path(task: EvaluateTask, settings: Settings) -> Path:
    """Where the predictions of `task` live."""
    attack = attack_for(task.column, settings)
    identity = {
        "models": [checkpoint_path(need, settings).name for need in task.needs],
        "oracle": task.oracle,
        "attack": None if attack is None else evaluate.attack_name(attack),
        "num_draws": settings.num_draws,
        "data": _fingerprint(settings, "test"),
    }
    name = f"{settings.dataset}-{task.model}-{settings.preset}-seed{task.seed}-{task.column}"
    return settings.out / "evaluations" / f"{name}-{_hash(identity)}.safetensors"


def _hash(identity: Any) -> str:
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()


def trained(task: TrainTask, settings: Settings) -> dict[str, Any] | None:
    """The checkpoint of a finished training, None while it is absent or unfinished."""
    path = checkpoint_path(task, settings)
    if not path.exists():
        return None
    tree = checkpoint.load(path, kind="training")
    epochs = settings.train_config(task.seed).epochs
    return tree if tree["epoch"] == epochs else None


def selected(model: str, settings: Settings, needs: Iterable[TrainTask]) -> tuple[TrainTask, dict[str, Any]]:
    """Of the learning rates tried for `model`, the one that did best on validation, and its checkpoint."""
    finished = [(task, trained(task, settings)) for task in needs if task.model == model]
    usable = [(task, tree) for task, tree in finished if tree is not None]
    if not usable:
        raise FileNotFoundError(f"{model} is not trained yet in {settings.out}")
    return max(usable, key=lambda pair: pair[1]["best"]["value"])


def is_done(task: Task, settings: Settings) -> bool:
    """Whether the result of `task` is already on disk."""
    if isinstance(task, TrainTask):
        return trained(task, settings) is not None
    return evaluate.stored_score(evaluation_path(task, settings)) is not None


def run_task(task: Task, settings: Settings, report: Report) -> str:
    """Do `task`, or what is left of it, and say in a few words what came out; `report(done, total)` often.

    Raises CheckpointError for a damaged file in the output folder, FloatingPointError for a diverging training.
    """
    if isinstance(task, TrainTask):
        return _train(task, settings, report)
    dataset = load_data(settings)
    target, oracle = (None if name is None else _best_model(name, settings, task) for name in (task.model, task.oracle))
    assert target is not None
    attack = attack_for(task.column, settings) or evaluate.no_attack
    score = evaluate.robust_accuracy(
        target,
        dataset.images(dataset.test.x),
        dataset.test.y,
        attack,
        num_draws=settings.num_draws,
        batch_size=_EVALUATION_BATCH,
        seed=task.seed,
        oracle=oracle,
        store=evaluation_path(task, settings),
        on_block=report,
    )
    return f"accuracy {100 * score.mean:.1f}%"


def _train(task: TrainTask, settings: Settings, report: Report) -> str:
    config = settings.train_config(task.seed, task.lr)
    result = train(
        network(task.model, settings, task.seed),
        load_data(settings),
        config,
        path=checkpoint_path(task, settings),
        provenance=provenance(asdict(config), device=settings.device),
        accelerator=make_accelerator(config, settings.device),
        on_step=report,
    )
    best = result.history[result.best_epoch]
    value = best.val_natural if best.val_robust is None else best.val_robust
    outcome = "" if value is None else f", validation {100 * value:.1f}%"
    return f"epoch {result.best_epoch + 1} of {config.epochs} selected{outcome}"


def _best_model(name: str, settings: Settings, task: EvaluateTask) -> models.EnResNet:
    training, _ = selected(name, settings, task.needs)
    return load_model(checkpoint_path(training, settings), device=settings.device)


def cost(task: Task, settings: Settings) -> float:
    """Passes over one image, times parameters: a rough order, enough to start the long tasks first."""
    config, dataset = settings.train_config(task.seed), load_data(settings)
    size = models.count_parameters(network(task.model, settings, task.seed))
    if isinstance(task, TrainTask):
        return size * config.epochs * (config.num_steps + 2) * len(dataset.train)
    num_steps = {"nat": 0, "fgsm": 1, "ifgsm20": settings.capped(20), "cw": settings.capped(50)}[task.column]
    eot_draws = settings.eot_draws if task.model.startswith("En") else 1
    return size * (num_steps * eot_draws + settings.num_draws) * len(dataset.test)
