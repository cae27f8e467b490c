"""Two processes beside one. Run by torchrun, this file is what the two processes do."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netkit import attacks, checkpoint, data, evaluate, models, parallel
from netkit.noise import NoiseStd
from netkit.training import TrainConfig, TrainResult, train

CONFIG = TrainConfig(
    epochs=2, batch_size=16, eps=0.2, step_size=0.1, num_steps=2, schedule="one-cycle", lr=0.05, seed=7,
    validate_every=1, precision="fp64",
)  # fmt: skip
"""The data have 45 images: batches of 16, 16 and 13, of which the first process takes 8, 8 and 7."""

Case = tuple[dict[str, Any], dict[str, Any]]
"""Options of the network and of the training."""

ALIKE: dict[str, Case] = {
    "natural": ({}, {"loss": "natural"}),
    "PGD": ({}, {}),
    "TRADES": ({}, {"loss": "trades", "channels_last": True}),
    "a last batch of one image": ({}, {"batch_size": 22}),
}
"""Trained without noise, augmentation, batch statistics and random starts: nothing depends on who has which images."""

RANDOM: dict[str, Case] = {
    "batch std": ({}, {}),
    "two-point noise": ({"noise": "two_point", "noise_std": "constant", "sigma": 0.3}, {"channels_last": True}),
    "TRADES with noise": ({"noise_std": "sample"}, {"loss": "trades"}),
    "batch norm in the attack": ({}, {"attack_batch_norm": "train", "batch_size": 22}),
}
"""Trained with all that is drawn, and all that is taken over a batch."""

CONTINUED = ("TRADES with noise", "batch norm in the attack")
HANDOVER = 4  # the update after which a run changes hands: in the second epoch
SEEDS = range(10)
ROOT = Path(__file__).parent.parent


class Stop(Exception):
    pass


class FixedStatistics(nn.BatchNorm2d):
    """Batch norm that never looks at the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def net(**options: Any) -> models.EnResNet:
    return models.en_resnet(8, **{"num_members": 2, "in_channels": 1, "width": 4, "seed": 1, **options})


def without_batch_statistics(model: models.EnResNet) -> models.EnResNet:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FixedStatistics(child.num_features))
    return model


def from_a_fixed_start(
    model: nn.Module, x: Tensor, y: Tensor, *, pgd: evaluate.Attack, generator: torch.Generator, **options: Any
) -> Tensor:
    """PGD without draws; not from x itself, where the gradient of TRADES' loss is zero."""
    return pgd(model, (x + 0.05).clamp(max=1), y, **options, random_start=False)


def trained(
    name: str, path: Path, on_step: Callable[[int, int], None] = lambda done, total: None
) -> tuple[models.EnResNet, TrainResult]:
    options, changes = {**ALIKE, **RANDOM}[name]
    dataset = dataclasses.replace(data.load("digits", num_train=50), augmented=name in RANDOM)
    model = net(**options) if name in RANDOM else without_batch_statistics(net(noise="off", **options))
    attack = attacks.pgd if name in RANDOM else partial(from_a_fixed_start, pgd=attacks.pgd)
    config = dataclasses.replace(CONFIG, **changes)
    with mock.patch.object(attacks, "pgd", attack):
        result = train(model, dataset, config, path=path, checkpoint_steps=1, on_step=on_step)
    return model, result


def trained_in_part(name: str, path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == HANDOVER:
            raise Stop

    with pytest.raises(Stop):
        trained(name, path, stop)


def losses(*, batch_free: bool, std: NoiseStd, batch_size: int) -> list[float]:
    """By seed, the loss of an epoch that hardly moves the weights: a mean over 45 images and their draws."""
    dataset = dataclasses.replace(data.load("digits", num_train=50), augmented=True)
    config = dataclasses.replace(CONFIG, epochs=1, lr=1e-12, batch_size=batch_size, select="last")
    found = []
    for seed in SEEDS:
        model = net(noise_std=std, noise_coef=0.5)
        model = without_batch_statistics(model) if batch_free else model
        found.append(train(model, dataset, dataclasses.replace(config, seed=seed)).history[0].loss)
    return found


LAWS: dict[str, dict[str, Any]] = {
    "one law": {"batch_free": True, "std": "sample", "batch_size": 16},
    "statistics over half a batch": {"batch_free": False, "std": "batch", "batch_size": 45},
}


def draws() -> list[list[Any]]:
    """Of each step of a training on images that are all equal: images, and seeds of the attack and of the noise."""
    dataset = dataclasses.replace(data.load("digits", num_train=50), augmented=True)
    equal = data.Split(dataset.train.x[:1].expand(45, -1, -1, -1), dataset.train.y[:1].expand(45))
    pgd, told = attacks.pgd, []

    def recorded(model: models.EnResNet, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        pixels = (x.flatten(1) @ torch.arange(64.0, dtype=x.dtype)).tolist()
        told.append([pixels, options["generator"].initial_seed(), model.generator.initial_seed()])
        return pgd(model, x, y, **options)

    with mock.patch.object(attacks, "pgd", recorded):
        train(net(), dataclasses.replace(dataset, train=equal), dataclasses.replace(CONFIG, select="last"))
    return told


def train_on_gpu(path: Path, device: str) -> None:
    model = net(noise="off")
    train(
        model, data.load("digits", num_train=50, device=device), dataclasses.replace(CONFIG, loss="natural"), path=path
    )
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {type(layer) for layer in layers} == {nn.BatchNorm2d}


# Two processes


def work(folder: Path) -> None:
    rank, world = parallel.processes()
    answers: dict[str, Any] = {}
    states = {}
    for name in (*ALIKE, *RANDOM):
        model, result = trained(name, folder / "two" / name)
        answers[name] = [[record.loss, record.val_robust] for record in result.history], result.best_epoch
        states[name] = model.state_dict()
    checkpoint.save(folder / f"states-{rank}", states, kind="states")
    for name in CONTINUED:
        trained_in_part(name, folder / "continued" / name)
        trained(name, folder / "continued" / name)
    for name in ("PGD", "batch std"):
        trained(name, folder / "from one" / name)
        trained_in_part(name, folder / "to one" / name)
    model = net()
    once = dataclasses.replace(CONFIG, epochs=1, precision="no")
    train(
        model,
        data.load("digits", num_train=50),
        once,
        on_epoch=lambda model, epoch: model.set_weights([0.25, 0.75] if rank == 0 else [0.5, 0.5]),
    )
    answers["weights set after the epoch"] = model.weights.tolist()
    for name, law in LAWS.items():
        answers[name] = losses(**law)
    dataset = data.load("digits", num_test=70)
    x, y = dataset.images(dataset.test.x), dataset.test.y
    score = evaluate.accuracy(net(num_members=1), x, y, num_draws=3, batch_size=16, divided=True)
    answers["evaluation"] = score.predictions.tolist()
    (folder / f"draws-{rank}.json").write_text(json.dumps(draws()))
    (folder / f"answers-{rank}.json").write_text(json.dumps([world, answers]))


def launched(*command: str) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *launch, *command], env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a process that succeeds has printed."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two processes left, with what one process trained beside it, in `one`."""
    folder = tmp_path_factory.mktemp("distributed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in (*ALIKE, "batch std"):
        trained(name, folder / "one" / name)
    for name in ("PGD", "batch std"):
        trained_in_part(name, folder / "from one" / name)
    output = finished(launched(__file__, str(folder)))
    assert output == ""
    yield folder
    torch.set_num_threads(before)


def answers(folder: Path) -> Any:
    """What both processes answered, which is the same."""
    first, second = (json.loads((folder / f"answers-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == 2
    return first[1]


def largest_difference(first: Any, second: Any) -> float:
    """Between numbers and tensors in the same places of two trees; infinite where anything else differs."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return max((largest_difference(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, list):
        assert len(first) == len(second)
        return max((largest_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0)
    if isinstance(first, Tensor) and first.is_floating_point():
        return float((first - second).abs().max())
    if isinstance(first, float):
        return abs(first - second)
    same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
    return 0.0 if same else float("inf")


def assert_same_run(path: Path, other: Path, tolerance: float) -> None:
    """Losses, validation, weights, momentum and selection."""
    trees = [checkpoint.load(file, kind="training") for file in (path, other)]
    for tree in trees:
        for record in tree["history"]:
            record["seconds"] = 0
    for part in ("history", "weights", "optimizer", "best", "totals", "epoch"):
        assert largest_difference(trees[0][part], trees[1][part]) <= tolerance, part


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_without_draws_and_batch_statistics_two_processes_compute_what_one_does(folder: Path, name: str) -> None:
    assert_same_run(folder / "two" / name, folder / "one" / name, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUED)
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(folder: Path, name: str) -> None:
    assert_same_run(folder / "continued" / name, folder / "two" / name, 0.0)


@pytest.mark.slow
def test_all_processes_end_with_the_same_losses_weights_and_statistics(folder: Path) -> None:
    first, second = (checkpoint.load(folder / f"states-{rank}", kind="states") for rank in range(2))
    assert largest_difference(first, second) == 0
    assert first.keys() == {*ALIKE, *RANDOM}
    assert answers(folder)["weights set after the epoch"] == [0.25, 0.75]


@pytest.mark.slow
def test_each_process_draws_for_itself_and_the_first_as_if_alone(folder: Path) -> None:
    first, second = (json.loads((folder / f"draws-{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(second) == 6
    for one, other in zip(first, second, strict=True):
        assert one[0] != other[0]
        assert len({*one[1:], *other[1:]}) == 4
    everything = [seed for step in (*first, *second) for seed in step[1:]]
    assert len({*everything}) == len(everything)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "bias"), [("one law", 0.0), ("statistics over half a batch", 0.03)])
def test_losses_are_those_of_one_process_in_the_mean(folder: Path, law: str, bias: float) -> None:
    ours, theirs = np.array(answers(folder)[law]), np.array(losses(**LAWS[law]))
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / len(SEEDS))
    assert abs(ours.mean() - theirs.mean()) < 4 * error + bias * theirs.mean()
    assert error < 0.01 * theirs.mean()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["from one", "to one"])
def test_a_run_passes_from_one_process_to_two_and_back(folder: Path, way: str) -> None:
    if way == "to one":
        for name in ("PGD", "batch std"):
            assert checkpoint.load(folder / way / name, kind="training")["step"] == HANDOVER - 3
            trained(name, folder / way / name)
    # without draws it can be told that weights and momentum were handed on
    assert_same_run(folder / way / "PGD", folder / "one" / "PGD", 1e-12)
    tree = checkpoint.load(folder / way / "batch std", kind="training")
    assert (tree["epoch"], len(tree["history"])) == (2, 2)


@pytest.mark.slow
def test_a_checkpoint_states_how_its_batches_were_divided(folder: Path) -> None:
    trees = [checkpoint.load(folder / way / "batch std", kind="training") for way in ("one", "two")]
    plans = [tree["provenance"]["batch"] for tree in trees]
    assert plans[0] == {"processes": 1, "per_process": 16, "batch_size": 16, "peak_lr": 0.05}
    assert plans[1] == {"processes": 2, "per_process": 8, "batch_size": 16, "peak_lr": 0.05}


@pytest.mark.slow
def test_a_divided_evaluation_gives_every_process_the_whole(folder: Path) -> None:
    dataset = data.load("digits", num_test=70)
    x, y = dataset.images(dataset.test.x), dataset.test.y
    score = evaluate.accuracy(net(num_members=1), x, y, num_draws=3, batch_size=16)
    assert score.predictions.tolist() == answers(folder)["evaluation"]
    with pytest.raises(ValueError, match="store: expected none for a divided evaluation, got"):
        evaluate.accuracy(net(), x, y, store=folder / "x", divided=True)


def test_one_process_calls_the_network_itself() -> None:
    model = net()
    with parallel.averaging(model) as called:
        assert called is model


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_take_batch_statistics_over_both(tmp_path: Path) -> None:
    train_on_gpu(tmp_path / "one", "cuda:0")
    finished(launched(__file__, str(tmp_path / "two"), "cuda"))
    assert_same_run(tmp_path / "two", tmp_path / "one", 1e-9)


@pytest.mark.slow
def test_two_processes_do_a_table_between_them(tmp_path: Path) -> None:
    options = ["--smoke", "--num-train", "40", "--num-test", "8", "--device", "cpu", "--out", str(tmp_path)]
    output = finished(launched("studies/table2.py", *options))
    told = [line.split(":")[0] for line in output.splitlines() if line.startswith(("train ", "attack "))]
    assert len(told) == len(set(told)) == 2 + 2 * 4  # each once, by the first of them
    rows = json.loads((tmp_path / "table2-digits-smoke.json").read_text())["rows"]
    assert [list(row["cells"]) for row in rows] == 2 * [["nat", "fgsm", "ifgsm20", "cw"]]
    for path in tmp_path.glob("models/*.safetensors"):
        assert checkpoint.load(path, kind="training")["provenance"]["batch"]["processes"] == 2


if __name__ == "__main__":
    if sys.argv[2:] == ["cuda"]:
        train_on_gpu(Path(sys.argv[1]), f"cuda:{os.environ['LOCAL_RANK']}")
    else:
        with parallel.joined("cpu"):
            work(Path(sys.argv[1]))
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        left = [name for name in names if "gloo" in name]
        assert not left, f"threads of a group that was left: {left}"  # they can abort an interpreter that ends
