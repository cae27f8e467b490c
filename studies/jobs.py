"""The work behind a table: models to train and attacks to run, as resumable tasks spread over processes.

A file's name carries a hash of everything its content depends on (network, training, data, attack, seed), so that
tables share models, other settings never overwrite them, and whatever is already on disk is not done again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from reporting import InputError, provenance, write_json
from torch import Tensor

from netkit import attacks, checkpoint, data, evaluate, models, parallel
from netkit.checkpoint import CheckpointError
from netkit.data import Split
from netkit.identity import describe as described
from netkit.identity import describe_model
from netkit.noise import Noise, NoiseKind
from netkit.presets import PRESETS
from netkit.randomness import derived_generator, noise_from
from netkit.training import TrainConfig, batch_plan, load_model, train

Column = Literal[
    "nat", "fgsm", "ifgsm20", "cw",
    "pgd20", "ifgsm20-eot1", "ifgsm20-eot20", "ifgsm20-eot50", "transfer", "autoattack",
]  # fmt: skip
"""The paper's attacks, and today's; "ifgsm20" itself averages gradients over `Settings.eot_draws` draws."""
Loss = Literal["pgd", "natural", "trades"]
Weights = Literal["equal", "learned", "optimal"]
"""Of the members of an "A&B" (section 5): learned is once an epoch in training, optimal is the minimum after it."""
Report = Callable[[int, int], None]

_EVALUATION_BATCH = 250
_COSTLY_BATCH: dict[Column, int] = {"autoattack": 50}
"""Smaller blocks where one of the usual size would take too long to be lost; results depend on the size."""
_PAPER_EPS = 8 / 255
_DIGITS_WIDTH = 8  # half the paper's, at half the time
_PGD_RESTARTS = 5
_MOST_HALVINGS = 10  # of the step of learned weights
_WEIGHT_IMAGES = 2000  # on which learned weights are updated once an epoch
_REPEAT_SEED = 1000  # between the seeds of networks of one kind, trained separately for one ensemble


@dataclass(frozen=True)
class Settings:
    """What a whole table is computed with; tables with equal settings share every file.

    `attack_steps` caps the steps of every attack in training and in evaluation, not of the one in validation, and
    `auto_draws` are the noise draws in each gradient of AutoAttack. Several `learning_rates` are all trained, and the
    best on validation is kept, for each row and seed. `width` is that of all networks, by default the paper's 16, and 8
    on digits.
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
    num_draws: int = 10
    device: str = "cpu"
    width: int | None = None
    auto_draws: int = 20

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"unknown preset {self.preset!r}: expected one of {', '.join(PRESETS)}")
        try:
            for lr in self.candidates():
                self.train_config(seed=0, loss="pgd", lr=lr)
        except ValueError as error:
            raise InputError(str(error)) from error

    def train_config(self, seed: int, loss: Loss, lr: float | None = None) -> TrainConfig:
        """The preset with what the command line changed."""
        config = PRESETS[self.preset]
        return replace(
            config,
            loss=loss,
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
    loss: Loss = "pgd"
    learns_weights: bool = False

    def __str__(self) -> str:
        how = "" if self.loss == "pgd" else f", {self.loss} loss"
        how += ", learned weights" if self.learns_weights else ""
        return f"train {self.model}{how}, seed {self.seed}, lr {self.lr:g}"


@dataclass(frozen=True)
class EvaluateTask:
    """Score `model` on one column; an `oracle` is attacked in its place."""

    model: str
    seed: int
    column: Column
    needs: tuple[TrainTask, ...]
    oracle: str | None = None
    weights: Weights = "equal"

    def __str__(self) -> str:
        how = "" if self.needs[0].loss == "pgd" else f" after {self.needs[0].loss} training"
        weights = "" if self.weights == "equal" else f" with {self.weights} weights"
        return f"attack {self.oracle or self.model}{weights}{how}, seed {self.seed}, {self.column}"


Task = TrainTask | EvaluateTask


def separate_networks(model: str, seed: int) -> list[tuple[str, int]]:
    """The networks that are trained apart for `model`, each with its seed: more than one where "+" joins them.

    Networks of one kind get seeds of their own, which no other ensemble of a few seeds in a row uses.
    """
    parts = model.split("+")
    return [(part, seed + _REPEAT_SEED * parts[:index].count(part)) for index, part in enumerate(parts)]


def tasks_for(
    settings: Settings,
    model: str,
    seed: int,
    columns: Iterable[Column],
    *,
    loss: Loss,
    oracle: str | None = None,
    weights: Weights = "equal",
) -> list[Task]:
    """Everything one row needs with one seed, the training first."""
    networks = [pair for name in (model, oracle) if name is not None for pair in separate_networks(name, seed)]
    training = tuple(
        TrainTask(name, own, lr, loss, weights == "learned" and "&" in name)
        for name, own in networks
        for lr in settings.candidates()
    )
    return [*training, *(EvaluateTask(model, seed, column, training, oracle, weights) for column in columns)]


def network(model: str, settings: Settings, seed: int) -> models.EnResNet:
    """The network called `model`, for the images of this data set.

    Besides the paper's names (`netkit.models.from_name`), "Plain5ResNet20" averages five members without
    noise, "TwoPoint5ResNet20" is En5ResNet20 with noise of ±1 in place of Gaussian noise, "Wide5ResNet20" is one
    network without noise and with as many parameters as five, and "A+B" averages A and B, which are trained apart.

    Raises InputError for other names.
    """
    if "+" in model:
        parts = [network(part, settings, own) for part, own in separate_networks(model, seed)]
        return models.EnResNet(parts, seed=seed)
    dataset = load_data(settings)
    options: dict[str, Any] = {
        "num_classes": dataset.num_classes,
        "in_channels": dataset.shape[0],
        "seed": seed,
    }
    if width := settings.width or (_DIGITS_WIDTH if settings.dataset == "digits" else None):
        options["width"] = width
    if control := re.fullmatch(r"(Plain|TwoPoint|Wide)(\d+)ResNet(\d+)", model):
        kind, num_members, depth = control[1], int(control[2]), int(control[3])
        if kind == "Wide":
            return models.equal_size_resnet(depth, num_members=num_members, **options)
        noise: NoiseKind = "two_point" if kind == "TwoPoint" else "off"
        return models.en_resnet(depth, num_members=num_members, noise=noise, **options)
    try:
        return models.from_name(model, **options)
    except ValueError as error:
        raise InputError(str(error)) from error


@lru_cache
def describe(model: str, settings: Settings) -> tuple[dict[str, Any], int]:
    """The architecture of the network called `model` and its number of parameters; see `network`."""
    built = network(model, settings, seed=0)
    return built.config, models.count_parameters(built)


def load_data(settings: Settings) -> data.Dataset:
    dataset = _load(
        settings.dataset,
        data=settings.data,
        download=settings.download,
        device=settings.device,
        num_train=settings.num_train,
    )
    # cut here: packed images take seconds to read, and attacks on fewer images would read them once more
    return replace(dataset, test=dataset.test.first(settings.num_test))


_load = lru_cache(maxsize=3)(data.load)


@lru_cache
def _fingerprint(settings: Settings, *parts: str) -> str:
    return load_data(settings).fingerprint(*parts)


def attack_for(column: Column, settings: Settings) -> evaluate.Attack | None:
    """The attack of a column, as section 3.2 sets it up, for `eot_draws` draws a gradient; None for clean images.

    On another scale than the paper's 8/255 the learning rate of C&W grows with eps, as steps do elsewhere.
    """
    config = PRESETS[settings.preset]
    num_steps = _num_steps(column, settings)
    attack: evaluate.Attack
    if column == "nat":
        return None
    if column == "autoattack":
        return partial(
            attacks.auto_attack, version="rand", eps=config.eps, num_steps=num_steps, eot_draws=settings.auto_draws
        )
    if column == "fgsm":
        attack = partial(attacks.fgsm, eps=config.eps)
    elif column == "cw":
        attack = partial(
            attacks.cw,
            variant="authors" if settings.preset == "authors" else "paper",
            num_steps=num_steps,
            learning_rate=6e-4 * config.eps / _PAPER_EPS,
            c=10.0,
        )
    else:
        step_size = min(config.step_size, config.eps / 4)  # training may take one long step
        attack = partial(attacks.ifgsm, eps=config.eps, step_size=step_size, num_steps=num_steps)
        if column == "pgd20":
            attack = partial(attacks.pgd, **attack.keywords, num_restarts=_PGD_RESTARTS)
    return attack


def _num_steps(column: Column, settings: Settings) -> int:
    """Steps of one run of a column's attack, capped as the settings say."""
    published = {"nat": 0, "fgsm": 1, "cw": 50, "autoattack": 100}.get(column, 20)
    return settings.capped(published) if published > 1 else published


def eot_draws(column: Column, settings: Settings) -> int:
    """Noise draws that each gradient of a column's attack is averaged over, for a noisy network."""
    if column == "autoattack":
        return settings.auto_draws
    _, _, draws = column.partition("-eot")
    return int(draws) if draws else settings.eot_draws


def gradients_per_image(column: Column, settings: Settings, *, is_noisy: bool) -> int:
    """Passes forward and back that a column's attack takes for an image, at most."""
    runs = {"pgd20": _PGD_RESTARTS, "autoattack": 4 if is_noisy else 2}.get(column, 1)
    draws = eot_draws(column, settings) if is_noisy and column != "transfer" else 1
    return runs * draws * _num_steps(column, settings)


def lacking(column: Column) -> str | None:
    """What this installation lacks for a column's attack, in words; None where it lacks nothing."""
    if column == "autoattack" and importlib.util.find_spec("pyautoattack") is None:
        return "AutoAttack needs pyautoattack: pip install 'itoflow[autoattack]'"
    return None


def is_noisy(model: str) -> bool:
    """Whether the network called `model` answers at random."""
    return re.search("En|TwoPoint", model) is not None


def column_title(column: Column, settings: Settings) -> str:
    """How a column is headed, with the number of steps that were taken."""
    steps = _num_steps(column, settings)
    titles = {
        "nat": "natural",
        "fgsm": "FGSM",
        "cw": f"C&W ({steps})",
        "pgd20": f"PGD{steps}, best of {_PGD_RESTARTS}",
        "transfer": f"IFGSM{steps} on the noise-free twin",
        "autoattack": f"AutoAttack rand ({steps} steps, {settings.auto_draws} draws)",
    }
    draws = f", {eot_draws(column, settings)} draws" if "-eot" in column else ""
    return titles.get(column, f"IFGSM{steps}{draws}")


def checkpoint_path(task: TrainTask, settings: Settings) -> Path:
    """Where the model of `task` lives."""
    identity = {
        "model": describe(task.model, settings)[0],
        "training": asdict(settings.train_config(task.seed, task.loss, task.lr)),
        "data": _fingerprint(settings, "train", "val"),
    }
    if task.learns_weights:
        identity["weights"] = f"learned with {_weight_rate(settings):g}"
    name = f"{settings.dataset}-{task.model}-{settings.preset}-seed{task.seed}-{_hash(identity)}.safetensors"
    return settings.out / "models" / name


def evaluation_path(task: EvaluateTask, settings: Settings) -> Path:
    """Where the predictions of `task` live."""
    attack = attack_for(task.column, settings)
    identity: dict[str, Any] = {
        "models": [checkpoint_path(need, settings).name for need in task.needs],
        "oracle": task.oracle,
        "attack": None if attack is None else described(attack),
        "eot_draws": None if attack is None else eot_draws(task.column, settings),
        "num_draws": settings.num_draws,
        "data": _fingerprint(settings, "test"),
    }
    if task.weights != "equal":
        identity["weights"] = task.weights
    name = f"{settings.dataset}-{task.model}-{settings.preset}-seed{task.seed}-{task.column}"
    return settings.out / "evaluations" / f"{name}-{_hash(identity)}.safetensors"


def _hash(identity: Any) -> str:
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()


def weights_path(task: TrainTask, settings: Settings) -> Path:
    """Where the optimal weights of the members of an "A&B" live."""
    return checkpoint_path(task, settings).with_suffix(".weights.json")


def member_weights(task: TrainTask, settings: Settings, tree: dict[str, Any]) -> dict[str, list[float]]:
    """The weights of the members of an "A&B" after the training in the checkpoint `tree`, by how they were found."""
    stored = tree["best"]["weights"]["weights"].tolist()
    if task.learns_weights:
        return {"learned": stored}
    return {"equal": stored, "optimal": _stored_weights(weights_path(task, settings), len(stored))}


def _stored_weights(path: Path, count: int) -> list[float]:
    """Raises CheckpointError for a file that holds anything but `count` weights, none negative, that sum to one."""
    try:
        weights = [float(weight) for weight in json.loads(path.read_bytes())]
    except (ValueError, TypeError, RecursionError):
        weights = []
    if len(weights) != count or min(weights) < 0 or not abs(sum(weights) - 1) < 1e-6:
        raise CheckpointError(f"{path} is damaged: expected {count} weights that sum to one")
    return weights


def _needs_optimum(task: TrainTask) -> bool:
    return "&" in task.model and not task.learns_weights


def trained(task: TrainTask, settings: Settings) -> dict[str, Any] | None:
    """The checkpoint of a finished training, None while it is absent or unfinished."""
    path = checkpoint_path(task, settings)
    if not path.exists():
        return None
    tree = checkpoint.load(path, kind="training")
    epochs = settings.train_config(task.seed, task.loss).epochs
    return tree if tree["epoch"] == epochs else None


def selected(model: str, seed: int, settings: Settings, needs: Iterable[TrainTask]) -> tuple[TrainTask, dict[str, Any]]:
    """Of the learning rates tried for `model`, the one that did best on validation, and its checkpoint."""
    finished = [(task, trained(task, settings)) for task in needs if (task.model, task.seed) == (model, seed)]
    usable = [(task, tree) for task, tree in finished if tree is not None]
    if not usable:
        raise FileNotFoundError(f"{model} is not trained yet in {settings.out}")
    return max(usable, key=lambda pair: pair[1]["best"]["value"])


def is_done(task: Task, settings: Settings) -> bool:
    """Whether the result of `task` is already on disk.

    Predictions of networks that were trained anew since do not count, those of networks that are not here do.
    """
    if isinstance(task, TrainTask):
        is_weighted = not _needs_optimum(task) or weights_path(task, settings).exists()
        return is_weighted and trained(task, settings) is not None
    path = evaluation_path(task, settings)
    if evaluate.stored_score(path) is None:
        return False
    scored = checkpoint.load(path, kind="evaluation")["identity"]
    here = _fingerprints_here(task, settings)
    return here is None or all(scored[name] == found for name, found in here.items())


def network_fingerprint(model: models.EnResNet) -> str:
    """What predictions carry to tell by which weights they were made."""
    return describe_model(model)


def _fingerprints_here(task: EvaluateTask, settings: Settings) -> dict[str, str] | None:
    """Those of the networks of `task` on disk, as `netkit.evaluate` names them; None unless all are fully trained."""
    files = [checkpoint_path(need, settings) for need in task.needs]
    if not all(path.exists() for path in files):
        return None
    files += [path for need in task.needs if (path := weights_path(need, settings)).exists()]
    stamps = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _fingerprints(replace(task, column="nat"), settings, stamps)


@cache
def _fingerprints(task: EvaluateTask, settings: Settings, stamps: tuple[tuple[int, int], ...]) -> dict[str, str] | None:
    # for all columns at once, until a file changes: reading and hashing networks takes its time
    if not all(is_done(need, settings) for need in task.needs):
        return None
    names = {"model": task.model} | ({} if task.oracle is None else {"oracle": task.oracle})
    return {key: network_fingerprint(trained_model(name, settings, task)) for key, name in names.items()}


def run_task(task: Task, settings: Settings, report: Report) -> str:
    """Do `task`, or what is left of it, and say in a few words what came out; `report(done, total)` often.

    Raises CheckpointError for a damaged file in the output folder, FloatingPointError for a diverging training.
    """
    if isinstance(task, TrainTask):
        return _train(task, settings, report)
    dataset = load_data(settings)
    target, oracle = (
        None if name is None else trained_model(name, settings, task) for name in (task.model, task.oracle)
    )
    assert target is not None
    if task.column == "transfer":
        oracle = noise_free(target)
    attack = attack_for(task.column, settings) or evaluate.no_attack
    store = evaluation_path(task, settings)
    batch_size = _COSTLY_BATCH.get(task.column, _EVALUATION_BATCH)
    if store.exists():
        scored = checkpoint.load(store, kind="evaluation")["identity"]
        if (scored["model"], scored["batch_size"]) != (network_fingerprint(target), batch_size) or (
            oracle is not None and scored["oracle"] != network_fingerprint(oracle)
        ):
            store.unlink()  # begun with a network that was trained anew since, or in other blocks
    write_json(store.with_suffix(".json"), provenance({}, device=device_title(settings.device)))
    score = evaluate.robust_accuracy(
        target,
        dataset.images(dataset.test.x),
        dataset.test.y,
        attack,
        eot_draws=eot_draws(task.column, settings),
        num_draws=settings.num_draws,
        batch_size=batch_size,
        seed=task.seed,
        oracle=oracle,
        store=store,
        on_block=report,
    )
    return f"accuracy {100 * score.mean:.1f}%"


def _train(task: TrainTask, settings: Settings, report: Report) -> str:
    config = settings.train_config(task.seed, task.loss, task.lr)
    model = network(task.model, settings, task.seed)
    result = train(
        model,
        load_data(settings),
        config,
        path=checkpoint_path(task, settings),
        provenance=provenance(asdict(config), device=device_title(settings.device)),
        on_step=report,
        on_epoch=partial(_update_weights, settings, config) if task.learns_weights else None,
    )
    rank, _ = parallel.processes()
    if _needs_optimum(task) and rank == 0:
        write_json(weights_path(task, settings), _optimal_weights(model, settings, config))
    best = result.history[result.best_epoch]
    value = best.val_natural if best.val_robust is None else best.val_robust
    outcome = "" if value is None else f", validation {100 * value:.1f}%"
    return f"epoch {result.best_epoch + 1} of {config.epochs} selected{outcome}{_division(config, model)}"


def _division(config: TrainConfig, model: models.EnResNet) -> str:
    """How several processes divided a batch; nothing for one."""
    plan = batch_plan(config, model)
    if plan["processes"] == 1:
        return ""
    shares = f"{plan['processes']} processes x {plan['per_process']} images = batches of {plan['batch_size']}"
    return f"; {shares}, peak learning rate {plan['peak_lr']:g}"


def device_title(device: str) -> str:
    """The device with the name of its hardware where that is not the CPU, which provenance names anyway."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def _update_weights(settings: Settings, config: TrainConfig, model: models.EnResNet, epoch: int) -> None:
    """The paper's update of the members' weights, w <- w - lr ∂L/∂w and division by the sum, on training images.

    The paper does not say which lr: see `_weight_rate`; it is halved where the weights would lose their sum, as they
    may while networks are still wild. A few thousand images are enough for a gradient of a few numbers.
    """
    from bridge.weights import paper_update  # brings numba, which the other tables can do without

    images = load_data(settings).train.first(_WEIGHT_IMAGES)
    logits = _logits_as_in_training(model, images, settings, config, epoch)
    for halvings in range(_MOST_HALVINGS + 1):
        try:
            lr = _weight_rate(settings) / 2**halvings
            model.set_weights(paper_update(model.weights.double(), logits, images.y, lr=lr))
        except ValueError as error:
            lost = error
        else:
            return
    raise FloatingPointError(f"training diverged: the members' weights after epoch {epoch + 1}: {lost}") from lost


def _weight_rate(settings: Settings) -> float:
    """The learning rate of members' weights, for the mean loss: the preset's, whatever is tried for the networks.

    A rate that suits a network may be so large for a few weights that their sum is lost.
    """
    return PRESETS[settings.preset].lr


def _optimal_weights(model: models.EnResNet, settings: Settings, config: TrainConfig) -> list[float]:
    """The members' weights of least loss on validation images.

    The loss is convex in them, so that once at the end is enough, and networks fit their training images too well to
    be weighed by them. No weight is negative: with few images a minimum might not exist otherwise.
    """
    from bridge.weights import optimal_weights

    images = load_data(settings).val
    logits = _logits_as_in_training(model, images, settings, config, num_draws=settings.num_draws)
    return optimal_weights(logits, images.y, signs="nonnegative").tolist()


def _logits_as_in_training(
    model: models.EnResNet, images: Split, settings: Settings, config: TrainConfig, *names: int, num_draws: int = 1
) -> Tensor:
    """Each member's mean logits (k, N, K) over `num_draws`, on images attacked unless training is natural.

    `names` seed the noise. A block of images at a time, as an attack on thousands takes more memory than training.
    """
    from bridge.weights import member_logits

    generators = [derived_generator(images.x.device, config.seed, "weights", number, *names) for number in range(3)]
    model.eval()
    blocks = []
    for stored, y in zip(images.x.split(_EVALUATION_BATCH), images.y.split(_EVALUATION_BATCH), strict=True):
        x = load_data(settings).images(stored)
        if config.loss != "natural":
            with noise_from(generators[1], model):
                x = attacks.pgd(
                    model,
                    x,
                    y,
                    eps=config.eps,
                    step_size=config.step_size,
                    num_steps=config.num_steps,
                    generator=generators[0],
                )
        blocks.append(member_logits(model, x, num_draws=num_draws, generator=generators[2]))
    return torch.cat(blocks, dim=1)


def trained_model(name: str, settings: Settings, task: EvaluateTask) -> models.EnResNet:
    """The network `name` that `task` needs, from the learning rates that did best on validation.

    Raises FileNotFoundError where it is not trained yet.
    """
    parts = []
    for part, seed in separate_networks(name, task.seed):
        training, _ = selected(part, seed, settings, task.needs)
        parts.append(load_model(checkpoint_path(training, settings), device=settings.device))
        if task.weights == "optimal" and "&" in part:
            parts[-1].set_weights(_stored_weights(weights_path(training, settings), len(parts[-1].members)))
    model = parts[0] if len(parts) == 1 else models.EnResNet(parts, seed=task.seed)
    return model.to(settings.device).eval()


def noise_free(model: models.EnResNet) -> models.EnResNet:
    """A copy of `model` that draws no noise."""

    def quiet(config: dict[str, Any]) -> dict[str, Any]:
        if "members" in config:
            return config | {"members": [quiet(member) for member in config["members"]]}
        return config | {"noise": asdict(Noise("off"))}

    twin = models.build(quiet(model.config))
    twin.load_state_dict(model.state_dict())
    return twin.to(next(model.parameters()).device).eval()


def cost(task: Task, settings: Settings) -> float:
    """Passes over one image, times parameters: a rough order, enough to start the long tasks first."""
    dataset = load_data(settings)
    _, size = describe(task.model, settings)
    if isinstance(task, TrainTask):
        config = settings.train_config(task.seed, task.loss)
        return size * config.epochs * (config.num_steps + 2) * len(dataset.train)
    gradients = gradients_per_image(task.column, settings, is_noisy=is_noisy(task.oracle or task.model))
    return size * (gradients + settings.num_draws) * len(dataset.test)


@dataclass(frozen=True)
class Job:
    """A task with the settings it is done in."""

    task: Task
    settings: Settings

    def __str__(self) -> str:
        return str(self.task)

    @property
    def path(self) -> Path:
        """The file that the job leaves: a checkpoint, or predictions."""
        if isinstance(self.task, TrainTask):
            return checkpoint_path(self.task, self.settings)
        return evaluation_path(self.task, self.settings)

    @property
    def needs(self) -> set[Path]:
        """The checkpoints that must be finished before."""
        needs = () if isinstance(self.task, TrainTask) else self.task.needs
        return {checkpoint_path(task, self.settings) for task in needs}

    def is_done(self) -> bool:
        """Whether the result is already on disk."""
        return is_done(self.task, self.settings)
