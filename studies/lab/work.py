"""Doing one task: train or attack, continue what was begun, and leave a record of what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from netkit import attacks, checkpoint, data, evaluate, parallel
from netkit.data import Split
from netkit.identity import describe_model
from netkit.models import EnResNet, build, count_parameters
from netkit.noise import Noise
from netkit.randomness import derived_generator, noise_from
from netkit.training import load_weights, train
from netkit.weights import member_logits, optimal_weights, paper_update
from studies.lab import records
from studies.lab.networks import Network
from studies.lab.reporting import InputError, provenance
from studies.lab.tasks import Scoring, Settings, Task, Training, Weights

Report = Callable[[int, int], None]

_BLOCK = 250
_MOST_HALVINGS = 10  # of the step of learned weights
_WEIGHT_IMAGES = 2000  # on which learned weights are updated once an epoch


def load_data(settings: Settings) -> data.Dataset:
    """The images of `settings`, on its device; read once a process."""
    options = {"data": settings.data, "download": settings.download, "device": settings.device}
    dataset = _load(settings.dataset, num_train=settings.num_train, **options)
    return replace(dataset, test=dataset.test.first(settings.num_test))


_load = lru_cache(maxsize=3)(data.load)


@lru_cache
def _fingerprint(settings: Settings, *parts: str) -> str:
    return load_data(settings).fingerprint(*parts)


def require_same_data(tasks: Iterable[Task]) -> None:
    """Raise InputError where a finished task is of other images than `--data` has now."""
    for task in tasks:
        record = records.of(task)
        here = replace(task.settings, device="cpu")  # its device may be that of another machine
        if record is not None and record["data"] != _fingerprint(here, *task.splits):
            folder = task.settings.out
            raise InputError(f"{task.path.name} in {folder} is of other images: other --data need another --out")


def network(training: Training) -> EnResNet:
    """The untrained network, for the images of its data set."""
    dataset = load_data(training.settings)
    options: dict[str, Any] = {"num_classes": dataset.num_classes, "in_channels": dataset.shape[0]}
    if (width := training.settings.network_width) is not None:
        options["width"] = width
    return training.network.build(seed=training.seed, **options)


def do(task: Task, report: Report) -> str:
    """Do `task`, or what is left of it, and say in a few words what came out; `report(done, total)` often.

    Raises CheckpointError for a damaged file in the output folder, FloatingPointError for a diverging training.
    """
    return _train(task, report) if isinstance(task, Training) else _score(task, report)


def _train(task: Training, report: Report) -> str:
    config, settings = task.config, task.settings
    stamp = provenance(asdict(config), device=device_title(settings.device))
    model = network(task)
    result = train(
        model,
        load_data(settings),
        config,
        path=task.path,
        provenance=stamp,
        on_step=report,
        on_epoch=partial(_update_weights, task) if task.learns_weights else None,
    )
    best = result.history[result.best_epoch]
    value = best.val_natural if best.val_robust is None else best.val_robust
    if parallel.processes()[0] == 0:
        tree = checkpoint.load(task.path, kind="training")
        record = _common(task) | {
            "lr": task.lr,
            "peak_lr": tree["provenance"]["batch"]["peak_lr"],
            "num_parameters": count_parameters(model),
            "num_train": len(load_data(settings).train),
            "weights": checkpoint.fingerprint(model.state_dict().values()),  # tells it from one trained anew
            "validation": value,
            "selected_epoch": result.best_epoch + 1,
            "history": [asdict(epoch) for epoch in result.history],
            "member_weights": _member_weights(task, model) if "&" in task.network.name else None,
            "provenance": tree["provenance"],
        }
        records.write(task, record)
    outcome = "" if value is None else f", validation {100 * value:.1f}%"
    return f"epoch {result.best_epoch + 1} of {config.epochs} selected{outcome}"


def _score(task: Scoring, report: Report) -> str:
    settings, row = task.settings, task.row
    dataset = load_data(settings)
    target = trained_model(task, task.network)
    oracle = None if task.oracle is None else trained_model(task, task.oracle)
    if row.on_twin:
        oracle = noise_free(target)
    attack = evaluate.no_attack
    if row.make is not None:
        attack = row.make(settings.strength, task.num_steps, task.eot_draws)
    x = dataset.images(dataset.test.x)
    if x.is_cpu:  # where convolutions of these networks, and so attacks, are a third faster with the channels last
        x = x.contiguous(memory_format=torch.channels_last)
    if task.path.exists():
        begun = checkpoint.load(task.path, kind="evaluation")["identity"]
        ours = {
            "model": describe_model(target),
            "oracle": oracle and describe_model(oracle),
            "batch_size": row.batch_size,
            "layout": list(x.stride()),
        }
        if any(begun.get(name) != value for name, value in ours.items()):
            task.path.unlink()  # begun with a network that was trained anew since, or with other blocks of images
    stamp = provenance({}, device=device_title(settings.device))
    score = evaluate.robust_accuracy(
        target,
        x,
        dataset.test.y,
        attack,
        eot_draws=task.eot_draws,
        num_draws=settings.num_draws,
        batch_size=row.batch_size,
        seed=task.seed,
        oracle=oracle,
        store=task.path,
        on_block=report,
    )
    record = _common(task) | {
        "attack": task.attack,
        "title": task.title,
        "oracle": "noise-free twin" if row.on_twin else task.oracle and task.oracle.name,
        "member_weights": task.weights,
        "eot_draws": task.eot_draws,
        "n": score.n,
        "num_draws": score.num_draws,
        "vote": score.vote,
        "seconds": score.seconds,
        "correct": (score.predictions == score.labels).sum(0).tolist(),
        "trainings": {training.path.stem: stored["weights"] for training, stored in records.chosen(task)},
        "provenance": stamp,
    }
    records.write(task, record)
    return f"accuracy {100 * score.mean:.1f}%"


def _common(task: Task) -> records.Record:
    """The fields that records of trainings and of scores share."""
    settings = task.settings
    return {
        "setting": settings.title,
        "dataset": settings.dataset,
        "network": task.network.name,
        "seed": task.seed,
        "loss": task.loss,
        "data": _fingerprint(settings, *task.splits),
    }


def device_title(device: str) -> str:
    """The device with the name of its hardware where that is not the CPU, which provenance names anyway."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def trained_model(task: Scoring, name: Network) -> EnResNet:
    """The network `name` that `task` needs, from the learning rates that did best on validation.

    Raises FileNotFoundError where it is not trained yet.
    """
    parts = []
    for part, seed in name.trained(task.seed):
        training, record = records.best(part, seed, task.trainings)
        parts.append(load_weights(training.path, network(training)))
        if task.weights == "optimal" and record["member_weights"] is not None:
            parts[-1].set_weights(record["member_weights"]["optimal"])
    model = parts[0] if len(parts) == 1 else EnResNet(parts, seed=task.seed)
    return model.to(task.settings.device).eval()


def noise_free(model: EnResNet) -> EnResNet:
    """A copy of `model` that draws no noise."""

    def quiet(config: dict[str, Any]) -> dict[str, Any]:
        if "members" in config:
            return config | {"members": [quiet(member) for member in config["members"]]}
        return config | {"noise": asdict(Noise("off"))}

    twin = build(quiet(model.config))
    weights = model.state_dict()
    twin.load_state_dict({name: weights[name] for name in twin.state_dict()})  # without coefficients of the noise
    return twin.to(next(model.parameters()).device).eval()


# The weights of members (section 5)


def _member_weights(task: Training, model: EnResNet) -> dict[Weights, list[float]]:
    """The weights of the members of an "A&B" by how they were found."""
    stored = model.weights.tolist()
    if task.learns_weights:
        return {"learned": stored}
    return {"equal": stored, "optimal": _optimal_weights(task, model)}


def _update_weights(task: Training, model: EnResNet, epoch: int) -> None:
    """The paper's update of the members' weights, w <- w - lr ∂L/∂w and division by the sum, on training images.

    The paper does not say which lr: see `Training.weight_rate`; it is halved where the weights would lose their sum, as
    they may while networks are still wild. A few thousand images are enough for a gradient of a few numbers.
    """
    images = load_data(task.settings).train.first(_WEIGHT_IMAGES)
    logits = _logits_as_in_training(task, model, images, epoch)
    for halvings in range(_MOST_HALVINGS + 1):
        try:
            lr = task.weight_rate / 2**halvings
            model.set_weights(paper_update(model.weights.double(), logits, images.y, lr=lr))
        except ValueError as error:
            lost = error
        else:
            return
    raise FloatingPointError(f"training diverged: the members' weights after epoch {epoch + 1}: {lost}") from lost


def _optimal_weights(task: Training, model: EnResNet) -> list[float]:
    """The members' weights of least loss on validation images.

    The loss is convex in them, so that once at the end is enough, and networks fit their training images too well to
    be weighed by them. No weight is negative: with few images a minimum might not exist otherwise.
    """
    images = load_data(task.settings).val
    logits = _logits_as_in_training(task, model, images, num_draws=task.settings.num_draws)
    return optimal_weights(logits, images.y, signs="nonnegative").tolist()


def _logits_as_in_training(task: Training, model: EnResNet, images: Split, *names: int, num_draws: int = 1) -> Tensor:
    """Each member's mean logits (k, N, K) over `num_draws`, on images attacked unless training is natural.

    `names` seed the noise. A block of images at a time, as an attack on thousands takes more memory than training.
    """
    config, dataset = task.config, load_data(task.settings)
    generators = [derived_generator(images.x.device, config.seed, "weights", number, *names) for number in range(3)]
    model.eval()
    blocks = []
    for stored, y in zip(images.x.split(_BLOCK), images.y.split(_BLOCK), strict=True):
        x = dataset.images(stored)
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
