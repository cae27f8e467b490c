"""Adversarial and natural training (Algorithm 1, section 4.1) that a kill at any moment does not undo.

A checkpoint carries the state of every generator, or the generator follows from the place in the run. The order of the
images depends on (seed, epoch) alone, and the learning rate on the position alone. So on a CPU a resumed run ends with
the same bits as one that was never interrupted. On another kind of device, whose generators are of another kind, a run
goes on with new ones and not bit for bit. So does a run that goes on with another number of processes: weights and
momentum are handed on, draws are not. `netkit.parallel` says what several processes compute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netkit import attacks, checkpoint, evaluate, parallel, step_graph
from netkit.attacks.expectation import checked_images_and_labels, logits_of, under_attack, without_reading
from netkit.checkpoint import CheckpointError
from netkit.checks import check_counts, check_flags, is_real, plain
from netkit.data import Dataset, Split, augment
from netkit.identity import architecture, describe_what_shows, is_buildable
from netkit.metrics import Callback, EpochRecord, StepRecord
from netkit.models import EnResNet, build, evaluating, networks_of
from netkit.noise import trained_coefs
from netkit.progress import progress_bar
from netkit.randomness import derived_generator, derived_seed, noise_from, seeded_globally

TrainingLoss = Literal["pgd", "natural", "trades"]
Model = TypeVar("Model", bound=nn.Module)
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, num_classes), y (B,)) -> a loss (), or one for each image (B,)."""
Schedule = Callable[[int, int], float]
"""(updates done, updates in all) -> what `lr` is multiplied by in the next one."""
OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""The groups of `parameter_groups` -> an optimiser of these, such as torch.optim.AdamW."""

_LEAST = {"epochs": 1, "batch_size": 1, "num_steps": 1, "validate_every": 1, "val_num_steps": 2, "seed": 0}
"""The least of each whole number; one step of attack shows too little in validation."""

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: 0 < value < math.inf, "a positive, finite number"),
    "lr_drop": (lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "warmup": (lambda value: 0 <= value <= 1, "a share of the steps, from 0 to 1"),
    "momentum": (lambda value: 0 <= value < 1, "a number of at least 0 and below 1"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "a finite number >= 0"),
    "eps": (lambda value: 0 < value <= 1, "a number above 0 and at most 1, as pixels are from 0 to 1"),
    "step_size": (lambda value: 0 < value < math.inf, "a positive, finite number"),
    "trades_beta": (lambda value: 0 <= value < math.inf, "a finite number >= 0"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training; the defaults are the paper's (sections 3.3 and 4.1).

    loss: "pgd" (Algorithm 1), "natural" (Eq. 2) or "trades" (Zhang et al. 2019, Eq. 5, weight `trades_beta`).
    batch_size: images in a batch of all processes together.
    lr_scaling: "members" lets each of n averaged networks learn at the pace of one, see below.
    schedule: "steps" multiplies `lr` by `lr_drop` at each of `milestones`, shares of the epochs; "one-cycle" climbs
        linearly over `warmup` of the steps and falls linearly to zero.
    reset_momentum: forget the momentum at each epoch.
    clamp_start: keep PGD's random start inside [0, 1].
    attack_batch_norm: the statistics that the attack in training sees: running ones ("eval"), or those of the batch,
        which then also move the running ones ("train").
    hold_out: keep the validation part out of training.
    select: the epoch whose weights count: the best under attack on validation, the best without, or the last.
    val_num_steps: steps of the validation attack, PGD with a step of 2.5 eps / val_num_steps (at ten, eps/4 as in the
        paper), whatever the attack in training: a network trained against one step may learn to withstand that step
        and nothing else (Wong et al. 2020).
    precision: "bf16" is autocast on CUDA and "no" on a CPU, most of which are slower at it; "bf16-any" is autocast on
        CPUs as well, which pays on those that multiply bfloat16 (AVX512-BF16, AMX); "fp64" is double precision.

    Averaging n networks gives each of them 1/n of the gradient g that it would have alone, and all of the weight
    decay: one step of SGD moves its weights θ by -η(g/n + λθ). With n times the rate but the same decay it would move
    by -(ηg + nηλθ), and an ensemble would be regularised n times as hard as the single network it is compared with.
    lr_scaling="members" takes the rate nη with the decay λ/n, so that θ moves by -η(g + λθ), momentum included: n equal
    members with equal draws stay on the path of one network trained with η and λ. Where ensembles are members of
    ensembles, n is the product of their sizes.

    Raises ValueError for a value outside its range.
    """

    loss: TrainingLoss = "pgd"
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    lr_scaling: Literal["none", "members"] = "none"
    schedule: Literal["steps", "one-cycle"] = "steps"
    milestones: tuple[float, ...] = (0.4, 0.6, 0.8)
    lr_drop: float = 0.1
    warmup: float = 0.3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    reset_momentum: bool = False
    eps: float = 8 / 255
    step_size: float = 2 / 255
    num_steps: int = 10
    clamp_start: bool = True
    attack_batch_norm: Literal["eval", "train"] = "eval"
    trades_beta: float = 6.0
    hold_out: bool = True
    select: Literal["robust", "natural", "last"] = "robust"
    validate_every: int = 1
    val_num_steps: int = 10
    precision: Literal["no", "bf16", "bf16-any", "fp64"] = "no"
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        hints = {
            "loss": get_args(TrainingLoss),
            "lr_scaling": ("none", "members"),
            "schedule": ("steps", "one-cycle"),
            "attack_batch_norm": ("eval", "train"),
            "select": ("robust", "natural", "last"),
            "precision": ("no", "bf16", "bf16-any", "fp64"),
        }
        for name, allowed in hints.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("nesterov", "reset_momentum", "clamp_start", "hold_out", "channels_last"):
            check_flags(**{name: getattr(self, name)})
        for name, least in _LEAST.items():
            check_counts(least, **{name: getattr(self, name)})
        for name, (is_inside, expected) in _RANGES.items():
            if not is_real(value := getattr(self, name)) or not is_inside(value):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")
        if isinstance(self.milestones, str) or not isinstance(self.milestones, Iterable):
            raise ValueError(f"milestones: expected shares of the epochs, got {self.milestones!r}")
        milestones = tuple(self.milestones)
        if not all(is_real(share) and 0 <= share <= 1 for share in milestones):
            raise ValueError(f"milestones: expected shares of the epochs, from 0 to 1, got {milestones!r}")
        for name in (*_LEAST, *_RANGES):
            object.__setattr__(self, name, plain(getattr(self, name)))
        object.__setattr__(self, "milestones", tuple(plain(share) for share in milestones))
        if not self.hold_out and self.select != "last":
            raise ValueError(f"select: expected 'last' without a held-out validation part, got {self.select!r}")

    @property
    def val_step_size(self) -> float:
        """The step of the validation attack; ten of them, or any other number, go 2.5 eps far."""
        return 2.5 / self.val_num_steps * self.eps


@dataclass(frozen=True)
class TrainResult:
    """The history of a finished run and the epoch (counted from 0) whose weights the model was left with."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    config: TrainConfig

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.history)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a single network at update number `step`, a function of the position alone."""
    if config.schedule == "steps":
        epoch = step // steps_per_epoch
        # rounded up, so that a run of one or two epochs starts at the full rate
        drops = sum(epoch >= math.ceil(share * config.epochs - 1e-9) for share in config.milestones)
        return config.lr * config.lr_drop**drops
    done = (step + 1) / (config.epochs * steps_per_epoch + 1)
    return config.lr * (done / config.warmup if done < config.warmup else (1 - done) / (1 - config.warmup))


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The parameters of each averaged network, for the optimiser: its decay, and what its rate is multiplied by.

    Trained coefficients of noise do not decay, as in He, Rakin and Fan's code.
    """
    groups = []
    for network, count in networks_of(model):
        factor = count if config.lr_scaling == "members" else 1
        coefs = list(trained_coefs(network).values())
        others = [parameter for parameter in network.parameters() if all(parameter is not coef for coef in coefs)]
        groups.append({"params": others, "weight_decay": config.weight_decay / factor, "lr_factor": factor})
        if coefs:
            groups.append({"params": coefs, "weight_decay": 0.0, "lr_factor": factor})
    return groups


def batch_plan(config: TrainConfig, model: nn.Module) -> dict[str, Any]:
    """The division of a batch among processes, and its largest learning rate, to be printed and stored."""
    _, world = parallel.processes()
    return {
        "processes": world,
        "per_process": math.ceil(config.batch_size / world),
        "batch_size": config.batch_size,
        "peak_lr": config.lr * max(group["lr_factor"] for group in parameter_groups(model, config)),
    }


def epoch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """The order (num_images,) in which `epoch` visits the images; on the CPU, whatever the device."""
    generator = derived_generator("cpu", seed, "order", epoch)
    return torch.randperm(num_images, generator=generator)


@dataclass(frozen=True)
class _Functions:
    """What a caller of `train` gives in place of the configuration's own."""

    loss: Loss | None = None
    attack: evaluate.Attack | None = None
    val_attack: evaluate.Attack | None = None
    optimizer: OptimizerFactory | None = None
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not callable(value):
                raise ValueError(f"{name}: expected a function, got {value!r}")
        own = self.optimizer.keywords.keys() if isinstance(self.optimizer, partial) else set()
        if clash := {"lr", "weight_decay"} & own:
            raise ValueError(f"optimizer: expected none that binds {', '.join(sorted(clash))}, which train(...) sets")

    @property
    def identity(self) -> dict[str, str]:
        """Descriptions of those that are given."""
        return {name: describe_what_shows(value) for name, value in vars(self).items() if value is not None}


def train(
    model: Model,
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    loss: TrainingLoss | Loss | None = None,
    attack: evaluate.Attack | None = None,
    val_attack: evaluate.Attack | None = None,
    optimizer: OptimizerFactory | None = None,
    schedule: Literal["steps", "one-cycle"] | Schedule | None = None,
    path: Path | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_seconds: float = 30.0,
    provenance: Mapping[str, Any] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Model, int], None] | None = None,
    callbacks: Sequence[Callback] = (),
    graph: bool = True,
    **options: Any,
) -> TrainResult:
    """Train `model`, any network from images to logits, in place; leave it with the weights of the selected epoch.

    It is left in eval mode. The run takes place on the device of `dataset`. Under torchrun all processes call this
    alike; the first one's weights, files and clock count.

    config, options: `train(model, dataset, epochs=3, lr=0.05)` changes fields of `config`, by default the paper's.
    loss: one of the configuration's, or a function of (logits, y), which takes the place of the cross-entropy; attacks
        still ascend the cross-entropy.
    attack: `attack(model, x, y)` in place of PGD in training; `evaluate.no_attack` trains on clean images. It is given
        a generator if it takes one. Meanwhile parameters are constants and batch norm is as `attack_batch_norm` says.
    val_attack: in place of the configuration's validation attack, which does not follow `attack`.
    optimizer: a class or function that takes `parameter_groups`, which hold the decay; the rate is `lr` and `schedule`.
    schedule: one of the configuration's, or a function of (updates done, updates in all) that `lr` is multiplied by.
    callbacks: called with each `netkit.metrics.StepRecord` and `EpochRecord`, in the first process.
    path: the checkpoint to write and to continue from. It is written at the end of every epoch, after
        `checkpoint_steps` updates where given, and whenever `checkpoint_seconds` have passed. A finished run is read
        back, not repeated.
    on_step: called as `on_step(done, total)` after each update. It may raise to stop the run, which is saved first.
        Without it a progress bar is shown where standard error is a terminal.
    on_epoch: called as `on_epoch(model, epoch)` after the last update of each epoch (from 0), before validation. It may
        change the model, but by its arguments alone, so that a resumed run is the same. Of several processes the first
        one's model counts. The run is saved before the call, so that an error in it, or a kill during validation, loses
        no update.

    graph: on one GPU, make the steps as a CUDA graph (`netkit.step_graph`), once the first ones agree with plain steps,
        and as long as one in each epoch does: what `on_epoch`, or a counter in an `attack`, changes is not recorded.
        Either way a GPU is not waited for in a step: where the loss is no longer finite, the epoch's end tells.

    Everything random follows from `config.seed`. What draws from the global generators of torch, NumPy or Python, as
    dropout in a network of one's own, is seeded by its place in the run, and the caller's states come back.

    A run of fewer epochs is extended where every update it made had the learning rate that it would have had with these
    `epochs`, so that the result is that of a run with these from the start. With "steps" that takes `milestones` at the
    same epochs as before, which are smaller shares of more; a one-cycle run has ended at rate zero.

    Raises ValueError for `checkpoint_steps` below 1, or options that contradict each other; CheckpointError where
    `path` holds a run of another model, configuration or data set, or is damaged; FloatingPointError where the loss is
    no longer finite.
    """
    if checkpoint_steps is not None and checkpoint_steps < 1:
        raise ValueError(f"checkpoint_steps: expected at least 1, got {checkpoint_steps}")
    if isinstance(loss, str):
        options["loss"], loss = loss, None
    if isinstance(schedule, str):
        options["schedule"], schedule = schedule, None
    config = dataclasses.replace(TrainConfig() if config is None else config, **options)
    functions = _Functions(loss, attack, val_attack, optimizer, schedule)
    if config.loss == "natural" and attack is not None:
        raise ValueError("attack: expected none with loss='natural', got one; loss='pgd' trains against it")
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.joined(dataset.device))
        if dataset.device.type != "cpu":
            stack.enter_context(_tuned_convolutions())
        run = _Run(model, dataset, config, functions, path, provenance or {}, callbacks)
        tree = parallel.from_first(lambda: checkpoint.load(path, kind="training") if path and path.exists() else None)
        if tree is not None:
            assert path is not None
            with checkpoint.contents_of(path):
                run.restore(path, tree)
        run.averaged = stack.enter_context(parallel.averaging(run.objective))
        if graph:
            run.use_graph()
        saved = time.monotonic()
        report = on_step or stack.enter_context(progress_bar("training", is_shown=run.is_first))
        report(*run.position)
        while run.epoch < config.epochs:
            if run.step < run.steps_per_epoch:  # else it was saved just before the epoch's end
                run.train_step()
            if run.step == run.steps_per_epoch:
                run.save()
                if on_epoch is not None:
                    on_epoch(model, run.epoch)
                parallel.make_equal(run.model.state_dict().values())
                run.finish_epoch()
                due = True
            else:
                due = checkpoint_steps is not None and run.step % checkpoint_steps == 0
                due = due or time.monotonic() - saved >= checkpoint_seconds
            if due:
                run.save()
                saved = time.monotonic()
            try:
                report(*run.position)
            except Exception:
                run.save()
                raise
    run.leave_best_weights()
    return TrainResult(tuple(run.history), run.best_epoch, config)


def load_model(path: Path, *, device: torch.device | str = "cpu") -> EnResNet:
    """The network that a training run left in the checkpoint `path`, with its selected weights, in eval mode.

    The weights are float32, to which those of a training in double precision are rounded.
    Raises FileNotFoundError; CheckpointError for a damaged or foreign file, a run without selected weights yet, or a
    model that this package cannot build, which `load_weights` is for.
    """
    tree = checkpoint.load(path, kind="training")
    with checkpoint.contents_of(path):
        weights, described = _selected_weights(path, tree), tree["identity"]["model"]
        if not is_buildable(described):
            kind = described["type"]
            raise CheckpointError(f"{path} holds weights alone, of a {kind} or its parts: load_weights(path, model)")
        model = build(described)
        model.load_state_dict(weights)
    return model.to(device).eval()


def load_weights(path: Path, model: Model) -> Model:
    """Put the selected weights of the training run in the checkpoint `path` into `model`, made as for that run.

    Gives the model back, in eval mode. Errors are those of `load_model`, and CheckpointError for another model.
    """
    tree = checkpoint.load(path, kind="training")
    with checkpoint.contents_of(path):
        checkpoint.require(path, "model", tree["identity"]["model"], architecture(model))
        model.load_state_dict(_selected_weights(path, tree))
    return model.eval()


def _selected_weights(path: Path, tree: Mapping[str, Any]) -> dict[str, Tensor]:
    if tree["best"]["weights"] is None:
        raise CheckpointError(f"{path} is a run of {tree['epoch']} epochs so far, with no weights selected yet")
    return dict(tree["best"]["weights"])


class _Run:
    """A training run: what changes during it is what `tree` saves and `restore` brings back."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        functions: _Functions,
        path: Path | None,
        provenance: Mapping[str, Any],
        callbacks: Sequence[Callback],
    ) -> None:
        self.config, self.functions, self.dataset, self.device = config, functions, dataset, dataset.device
        self.path = path
        rank, _ = parallel.processes()
        self.is_first = rank == 0
        self.callbacks = callbacks if self.is_first else ()
        self.provenance = {**provenance, "batch": batch_plan(config, model)}
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.model = model.to(self.device, self.dtype)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        nesterov = config.nesterov and config.momentum > 0
        sgd = partial(torch.optim.SGD, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
        self.optimizer = (functions.optimizer or sgd)(parameter_groups(model, config))
        self.objective = _Objective(self.model, config, functions, dataset.num_classes)
        self.averaged: nn.Module = self.objective
        self.data = dataset.train if config.hold_out else _joined(dataset.train, dataset.val)
        self._check_data()
        self.steps_per_epoch = math.ceil(len(self.data) / config.batch_size)
        self.identity = self._identity()
        self.epoch = 0
        self.history: list[EpochRecord] = []
        self.best_epoch, self.best_value = 0, -math.inf
        self.best_weights: dict[str, Tensor] | None = None
        names = ("augment", "attack", "noise")
        self.generators = {name: torch.Generator(self.device) for name in names}
        self.gradients: step_graph.Step = self._gradients
        self._start_epoch()

    def _check_data(self) -> None:
        """Look at images and labels once, as steps on a GPU do not."""
        ends, labels = (torch.stack(values.aminmax()) for values in (self.data.x, self.data.y))
        _, num_labels = checked_images_and_labels(self.dataset.images(ends).unsqueeze(1), labels)
        if num_labels > self.dataset.num_classes:
            expected = self.dataset.num_classes
            raise ValueError(f"dataset: expected labels below {expected}, its number of classes, got {num_labels - 1}")

    def use_graph(self) -> None:
        """Make steps as a graph from now on, where that is possible."""
        _, world = parallel.processes()
        if world == 1 and step_graph.is_available(self.device):
            self.gradients = step_graph.StepGraph(
                self._gradients, self.objective, self.generators.values(), self.config.batch_size
            )

    def _start_epoch(self) -> None:
        self._seed_generators()
        # moved at once: a GPU would have to be waited for at each batch
        self.order = epoch_order(self.config.seed, self.epoch, len(self.data)).to(self.data.x.device)
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, correct, images
        self.seconds = 0.0
        self.step = 0
        if self.config.reset_momentum:
            self.optimizer.state.clear()

    def _seed_generators(self, *place: int) -> None:
        """Start the generators of this process for this epoch; other streams for each `place` in it."""
        seed = self.config.seed
        rank, _ = parallel.processes()
        if rank > 0:  # the first one's are those of a run by one process
            seed = derived_seed(seed, "rank", rank)
        for name, counters in (("augment", (self.epoch,)), ("attack", (self.epoch, 0)), ("noise", (self.epoch, 0))):
            self.generators[name].manual_seed(derived_seed(seed, name, *counters, *place))

    @property
    def position(self) -> tuple[int, int]:
        """Updates done and updates in all."""
        total = self.config.epochs * self.steps_per_epoch
        return self.epoch * self.steps_per_epoch + self.step, total

    def train_step(self) -> None:
        """One pass through the inner loop of Algorithm 1."""
        started = time.perf_counter()
        rank, world = parallel.processes()
        if world > 1:  # streams of this step alone: a checkpoint, which holds the first process's, need hold no others
            self._seed_generators(self.step)
        lr = self._learning_rate(self.config, self.position[0])
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        size = self.config.batch_size
        batch = self.order[self.step * size : (self.step + 1) * size]
        with noise_from(self.generators["noise"], self.model), self._seeded("step", self.epoch, self.step, rank):
            self.model.train()
            unread = contextlib.nullcontext() if self.device.type == "cpu" else without_reading()
            with self._told_of_divergence(), unread:
                sums = parallel.summed(self.gradients(batch))
        self.optimizer.step()
        self.totals += sums
        self.step += 1
        if self.callbacks:  # only then is a GPU waited for
            loss_sum, num_correct, num_images = sums.tolist()
            self._tell(StepRecord(self.position[0], self.epoch, lr, loss_sum / num_images, num_correct / num_images))
        self.seconds += time.perf_counter() - started

    def _gradients(self, batch: Tensor) -> Tensor:
        """Leave the gradients of this process's images of a batch in the parameters; sums of loss, right, images."""
        rank, world = parallel.processes()
        own = batch[rank::world]
        # A process without images must take part in each message: it works on one of another's, of weight 0.
        index, count = own if len(own) else batch[:1], len(own)
        x, y = self._images(index), self.data.y[index]
        loss, logits = self.averaged(x, y, self.generators["attack"])
        self.optimizer.zero_grad(set_to_none=True)
        # The mean over processes that counts them alike becomes the mean over images.
        (loss * (count * world / len(batch))).backward()
        with torch.no_grad():
            correct = (logits.argmax(1) == y)[:count].double().sum()
            return torch.stack([loss.double() * count, correct, torch.full_like(correct, count)])

    def _learning_rate(self, config: TrainConfig, step: int) -> float:
        if self.functions.schedule is None:
            return learning_rate(config, step, self.steps_per_epoch)
        return config.lr * self.functions.schedule(step, config.epochs * self.steps_per_epoch)

    def _tell(self, record: StepRecord | EpochRecord) -> None:
        for callback in self.callbacks:
            callback(record)

    def _seeded(self, *place: str | int) -> contextlib.AbstractContextManager[None]:
        """The global generators, which layers of other libraries draw from, as a function of the place in the run."""
        return seeded_globally(derived_seed(self.config.seed, "global", *place))

    def _images(self, index: Tensor) -> Tensor:
        """The images (B, C, H, W) of these numbers, augmented where the data set is."""
        x = self.data.x[index]
        if self.dataset.augmented:
            x = augment(x, generator=self.generators["augment"])
        images = self.dataset.images(x, self.dtype)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def _diverged(self) -> FloatingPointError:
        lr = self.config.lr
        return FloatingPointError(f"training diverged in epoch {self.epoch + 1} (learning rate {lr:g}): lower it")

    @contextlib.contextmanager
    def _told_of_divergence(self) -> Iterator[None]:
        try:
            yield
        except attacks.NotFiniteError as error:
            raise self._diverged() from error

    def finish_epoch(self) -> None:
        """Validate where it is due, keep the weights if they are the best, and write the epoch's record."""
        config = self.config
        loss, correct, count = self.totals.tolist()
        if not math.isfinite(loss):
            raise self._diverged()
        started = time.perf_counter()
        is_last = self.epoch + 1 == config.epochs
        natural = robust = None
        if config.select != "last" and (is_last or (self.epoch + 1) % config.validate_every == 0):
            natural, robust = self._validate()
            value = natural if config.select == "natural" or robust is None else robust
            if value > self.best_value:
                self._keep(value)
        elif config.select == "last" and is_last:
            self._keep(0.0)
        self.seconds += time.perf_counter() - started
        lr = self._learning_rate(config, self.position[0] - 1)
        self.history.append(EpochRecord(self.epoch, lr, loss / count, correct / count, natural, robust, self.seconds))
        self._tell(self.history[-1])
        self.epoch += 1
        self._start_epoch()
        if isinstance(self.gradients, step_graph.StepGraph):
            self.gradients.check_again()

    def _validate(self) -> tuple[float, float | None]:
        """Validation accuracy, clean and (unless training is natural) under the validation attack."""
        x, y = self.dataset.images(self.dataset.val.x, self.dtype), self.dataset.val.y
        options: dict[str, Any] = {"num_draws": 1, "seed": self.config.seed, "divided": True}
        attack = self.functions.val_attack or self.objective.pgd
        with self._told_of_divergence(), self.objective.autocast():
            natural = evaluate.accuracy(self.model, x, y, **options).mean
            if self.config.loss == "natural":
                return natural, None
            return natural, evaluate.robust_accuracy(self.model, x, y, attack, eot_draws=1, **options).mean

    def _keep(self, value: float) -> None:
        self.best_value, self.best_epoch = value, self.epoch
        self.best_weights = {name: t.detach().clone() for name, t in self.model.state_dict().items()}

    def leave_best_weights(self) -> None:
        """Load the selected weights."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()

    def save(self) -> None:
        if self.path is not None and self.is_first:
            checkpoint.save(self.path, self._tree(), kind="training")

    def _identity(self) -> dict[str, dict[str, Any]]:
        identity = {
            "model": architecture(self.model),
            "configuration": dataclasses.asdict(self.config),
            "data set": {
                "name": self.dataset.name,
                "fingerprint": self.dataset.fingerprint("train", "val"),
            },
        }
        return identity | ({"set of functions": functions} if (functions := self.functions.identity) else {})

    def _tree(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "provenance": self.provenance,
            "epoch": self.epoch,
            "step": self.step,
            "totals": self.totals,
            "seconds": self.seconds,
            "device": self.device.type,
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "weights": self.model.state_dict(),
            "optimizer": checkpoint.optimizer_tree(self.optimizer),
            "best": {"epoch": self.best_epoch, "value": self.best_value, "weights": self.best_weights},
            "history": [dataclasses.asdict(record) for record in self.history],
        }

    def _check_extension(self, path: Path, tree: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless the updates made so far had the learning rates of this configuration."""
        earlier = TrainConfig(**tree["identity"]["configuration"])
        done = range(tree["epoch"] * self.steps_per_epoch + tree["step"])
        before, now = ([self._learning_rate(c, step) for step in done] for c in (earlier, self.config))
        if before == now:
            return
        cure = "a one-cycle run ends at rate zero and cannot be extended, train anew"
        if self.functions.schedule is not None:
            cure = "a schedule that does not depend on the number of updates extends it"
        elif self.config.schedule == "steps":
            same = ", ".join(f"{share * earlier.epochs:g}/{self.config.epochs}" for share in earlier.milestones)
            cure = f"milestones=({same}) extend it"
        raise CheckpointError(
            f"{path} belongs to another configuration: epochs={earlier.epochs} where {self.config.epochs} is asked for,"
            f" with other learning rates in the updates made so far: {cure}"
        )

    def restore(self, path: Path, tree: Mapping[str, Any]) -> None:
        """Go on where `tree`, read from `path`, stopped; raises CheckpointError where it is of another run."""
        found_identity, own = ({"set of functions": {}, **identity} for identity in (tree["identity"], self.identity))
        for what, expected in own.items():
            found = found_identity[what]
            if what == "configuration" and found["epochs"] < self.config.epochs:
                self._check_extension(path, tree)
                found = {**found, "epochs": expected["epochs"], "milestones": expected["milestones"]}
            checkpoint.require(path, what, found, expected)
        self.epoch = tree["epoch"]
        self._start_epoch()
        self.model.load_state_dict(tree["weights"])
        checkpoint.load_optimizer_tree(self.optimizer, tree["optimizer"])
        self.history = [EpochRecord(**record) for record in tree["history"]]
        best = tree["best"]
        self.best_epoch, self.best_value, self.best_weights = best["epoch"], best["value"], best["weights"]
        self.step, self.seconds = tree["step"], tree["seconds"]
        self.totals.copy_(tree["totals"])
        if tree["device"] == self.device.type:
            for name, state in tree["generators"].items():
                self.generators[name].set_state(state)
        elif self.step > 0:  # else they are those that the epoch begins with, as here
            self._seed_generators(self.step)


class _Objective(nn.Module):
    """The loss of a batch, with the attack inside: one module, so that all of it sees the same running statistics.

    Where several processes train, DistributedDataParallel hands the first one's buffers to all before the attack.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, functions: _Functions, num_classes: int) -> None:
        super().__init__()
        self.network, self.config, self.functions, self.num_classes = network, config, functions, num_classes

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The training loss () and the logits (B, num_classes) that training accuracy is counted on."""
        config = self.config
        if config.loss != "natural":
            x_adv = self._attacked(x, y, generator)
        if config.loss != "trades":
            with self.autocast():
                logits = logits_of(self.network, x if config.loss == "natural" else x_adv, self.num_classes)
            return self._loss(logits, y), logits
        with self.autocast():
            clean, logits = logits_of(self.network, torch.cat([x, x_adv]), self.num_classes).chunk(2)
        drift = _drift_from(clean)(logits, y).mean()
        return self._loss(clean, y) + config.trades_beta * drift, logits

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.functions.loss is None:
            return functional.cross_entropy(_wide(logits), y)
        loss = self.functions.loss(_wide(logits), y)
        if loss.shape not in ((), y.shape):
            raise ValueError(
                f"loss: expected a loss () or one for each image {tuple(y.shape)}, got {tuple(loss.shape)}"
            )
        return loss.mean()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The configuration's precision, for passes of the network."""
        device = next(self.network.parameters()).device.type
        is_cast = self.config.precision == "bf16-any" or (self.config.precision == "bf16" and device != "cpu")
        return torch.autocast(device, torch.bfloat16) if is_cast else contextlib.nullcontext()

    def pgd(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        loss: attacks.Loss = attacks.cross_entropy,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The attack of training on a model in train mode, that of validation on one in eval mode."""
        config = self.config
        step_size, num_steps = config.step_size, config.num_steps
        if not model.training:
            step_size, num_steps = config.val_step_size, config.val_num_steps
        return attacks.pgd(
            model,
            x,
            y,
            eps=config.eps,
            step_size=step_size,
            num_steps=num_steps,
            clamp_start=config.clamp_start,
            batch_norm=config.attack_batch_norm if model.training else "eval",
            loss=loss,
            generator=generator,
        )

    def _attacked(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The inner maximisation of Algorithm 1, or of TRADES, or the caller's."""
        if self.functions.attack is not None:
            with self.autocast(), under_attack(self.network, self.config.attack_batch_norm):
                x_adv = evaluate.perturbed(self.functions.attack, self.network, x, y, generator)
            if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
                got = f"{x_adv.dtype} {tuple(x_adv.shape)}"
                raise ValueError(f"attack: expected images {x.dtype} {tuple(x.shape)}, got {got}")
            return x_adv.detach()
        loss: attacks.Loss = attacks.cross_entropy
        with self.autocast():
            if self.config.loss == "trades":
                with torch.no_grad(), evaluating(self.network):
                    loss = _drift_from(self.network(x))
            return self.pgd(self.network, x, y, loss=loss, generator=generator)


def _drift_from(clean: Tensor) -> attacks.Loss:
    """TRADES' KL(clean || attacked) of each image, given the logits (B, num_classes) of the clean ones."""
    target = _wide(clean).log_softmax(1)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        predicted = _wide(logits).log_softmax(1)
        return functional.kl_div(predicted, target, reduction="none", log_target=True).sum(1)

    return loss


def _wide(logits: Tensor) -> Tensor:
    """At least float32, for the loss."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _joined(first: Split, second: Split) -> Split:
    return Split(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]))


@contextlib.contextmanager
def _tuned_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms for a convolution and take the fastest, unless it is told to be repeatable."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
