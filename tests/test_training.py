from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netkit import attacks, checkpoint, data, evaluate, models, training
from netkit.checkpoint import CheckpointError
from netkit.noise import Noise
from netkit.presets import PRESETS
from netkit.randomness import derived_generator, noise_from
from netkit.training import TrainConfig, epoch_order, learning_rate, train

SHORT = TrainConfig(epochs=3, batch_size=16, eps=0.2, step_size=0.1, num_steps=2, schedule="one-cycle", lr=0.05, seed=7)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", num_train=50)


def small_net(num_members: int = 2, **options: Any) -> models.EnResNet:
    return models.en_resnet(8, **{"num_members": num_members, "in_channels": 1, "width": 4, "seed": 1, **options})


def everything_trained(path: Path) -> dict[str, Any]:
    """What a run leaves behind, less the clock."""
    tree = checkpoint.load(path, kind="training")
    history = [{**record, "seconds": 0} for record in tree["history"]]
    return {key: tree[key] for key in ("weights", "optimizer", "best", "generators", "epoch")} | {"history": history}


def assert_identical(first: Any, second: Any) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_identical(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_identical(a, b)
    else:
        assert first == second


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("no", torch.float32), ("bf16", torch.float32), ("bf16-any", torch.bfloat16), ("fp64", torch.float64)],
)
def test_the_precision_on_a_cpu_is_the_one_that_is_said(
    precision: Any, dtype: torch.dtype, digits: data.Dataset
) -> None:
    """Float32 unless asked for by name; autocast leaves weights in float32, and the loss is near that of float32."""
    losses = []
    for chosen in (precision, "no"):
        config = dataclasses.replace(SHORT, precision=chosen, channels_last=True, epochs=1)
        seen: set[torch.dtype] = set()
        model = small_net()
        model.members[1].register_forward_hook(lambda _module, _inputs, logits, seen=seen: seen.add(logits.dtype))
        losses.append(train(model, digits, config).history[0].loss)
        assert seen == {dtype if chosen == precision else torch.float32}
        assert {weight.dtype for weight in model.parameters()} == {torch.float64 if chosen == "fp64" else torch.float32}
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert (losses[0] == losses[1]) == (dtype == torch.float32)


def test_the_paper_schedule_is_torchs_multistep_schedule() -> None:
    config, steps_per_epoch = PRESETS["paper"], 2
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 120, 160], gamma=0.1)
    for epoch in range(200):
        for step in range(steps_per_epoch):
            ours = learning_rate(config, epoch * steps_per_epoch + step, steps_per_epoch)
            assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        reference.step()


def test_one_cycle_climbs_to_the_peak_and_falls_to_zero_in_straight_lines() -> None:
    config = dataclasses.replace(SHORT, epochs=10, warmup=0.25, lr=0.4)
    rates = torch.tensor([learning_rate(config, step, 40) for step in range(400)], dtype=torch.float64)
    assert rates.min() > 0
    assert rates.max() == pytest.approx(0.4, rel=0.01)
    bends = rates.diff().diff().abs() > 1e-12
    assert bends.sum() <= 2
    assert abs(int(rates.argmax()) - 100) <= 1


def equal_networks(shape: list[Any]) -> models.EnResNet:
    """An ensemble of copies of one noisy network, [1, 1] of two, [[1, 1], 1] of two and one, all with equal draws."""

    def build(part: Any) -> nn.Module:
        if isinstance(part, list):
            return models.EnResNet([build(inside) for inside in part])
        return models.ResNet(8, in_channels=1, width=4, noise=Noise(std="sample", noise_coef=0.3), seed=1)

    model = models.EnResNet([build(part) for part in shape])
    networks = [module for module in model.modules() if isinstance(module, models.ResNet)]
    state: list[torch.Tensor] = []
    networks[0].register_forward_pre_hook(lambda *_: state.__setitem__(slice(None), [model.generator_state()]))
    for network in networks[1:]:
        network.register_forward_pre_hook(lambda *_: model.set_generator_state(state[0]))
    return model


@pytest.mark.parametrize("loss", ["pgd", "natural", "trades"])
@pytest.mark.parametrize("shape", [[1, 1, 1], [[1, 1], 1]])
def test_equal_members_with_equal_draws_stay_on_the_path_of_one_network(
    digits: data.Dataset, loss: Any, shape: list[Any]
) -> None:
    options = {"epochs": 2, "precision": "fp64", "weight_decay": 0.05, "momentum": 0.9, "select": "last"}
    config = dataclasses.replace(SHORT, loss=loss, lr_scaling="members", **options)
    one, many = equal_networks([1]), equal_networks(shape)
    train(one, digits, config)
    train(many, digits, config)
    networks = [module for module in many.modules() if isinstance(module, models.ResNet)]
    assert len(networks) == 3
    for network in networks:
        for ours, theirs in zip(network.parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_without_scaling_members_have_the_rate_and_the_decay_that_are_given() -> None:
    groups = training.parameter_groups(small_net(3), SHORT)
    assert [(group["lr_factor"], group["weight_decay"]) for group in groups] == [(1, SHORT.weight_decay)] * 3


@pytest.mark.parametrize(("training_steps", "step_size"), [(1, 0.25), (1, 0.2), (7, 0.05)])
def test_validation_attacks_in_many_steps_whatever_the_attack_in_training(
    digits: data.Dataset, monkeypatch: pytest.MonkeyPatch, training_steps: int, step_size: float
) -> None:
    seen = []
    pgd = attacks.pgd

    def recorded(model: nn.Module, x: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((model.training, options["num_steps"], options["step_size"]))
        return pgd(model, x, y, **options)

    monkeypatch.setattr(attacks, "pgd", recorded)
    train(small_net(1), digits, dataclasses.replace(SHORT, epochs=1, num_steps=training_steps, step_size=step_size))
    assert set(seen) == {(True, training_steps, step_size), (False, 10, 0.05)}


@pytest.mark.parametrize("warmup", [0.0, 1e-9, 0.5, 1.0])
def test_every_warmup_climbs_and_falls_in_straight_lines(warmup: float) -> None:
    config = dataclasses.replace(SHORT, epochs=2, lr=1.0, warmup=warmup)
    rates = [learning_rate(config, step, 5) for step in range(10)]
    done = [(step + 1) / 11 for step in range(10)]
    expected = {0.0: [1 - d for d in done], 0.5: [2 * min(d, 1 - d) for d in done], 1.0: done}
    assert rates == pytest.approx(expected.get(warmup, expected[0.0]), rel=1e-6)


def test_the_order_is_a_permutation_of_seed_and_epoch_alone() -> None:
    order = epoch_order(3, 4, 100)
    torch.manual_seed(0)
    assert torch.equal(order, epoch_order(3, 4, 100))
    assert torch.equal(order.sort().values, torch.arange(100))
    assert not torch.equal(order, epoch_order(3, 5, 100))
    assert not torch.equal(order, epoch_order(4, 4, 100))


def test_training_is_algorithm_1_written_out(digits: data.Dataset) -> None:
    config = dataclasses.replace(SHORT, epochs=1, select="last", schedule="steps")
    trained, plain = small_net(), small_net()
    train(trained, digits, config)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    starts = derived_generator("cpu", 7, "attack", 0, 0)
    with noise_from(derived_generator("cpu", 7, "noise", 0, 0), plain):
        for batch in epoch_order(7, 0, len(digits.train)).split(16):
            x, y = digits.train.x[batch] / 16, digits.train.y[batch]
            plain.eval()
            x_adv = (x + (2 * torch.rand(x.shape, generator=starts) - 1) * 0.2).clamp(0, 1)
            for _ in range(2):
                x_adv.requires_grad_()
                (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(plain(x_adv), y), x_adv)
                x_adv = (x_adv.detach() + 0.1 * gradient.sign()).clamp(x - 0.2, x + 0.2).clamp(0, 1)
            plain.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x_adv), y).backward()
            optimizer.step()
    for ours, theirs in zip(trained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mode", "passes"), [("eval", 1), ("train", 1 + 2)])
def test_batch_norm_statistics_see_the_attack_only_if_asked(digits: data.Dataset, mode: Any, passes: int) -> None:
    model = small_net(1)
    result = train(model, digits, dataclasses.replace(SHORT, attack_batch_norm=mode, select="last"))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    num_steps = len(result.history) * -(-len(digits.train) // 16)
    assert {int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None} == {
        passes * num_steps
    }


def test_momentum_that_is_reset_every_step_is_a_longer_step(digits: data.Dataset) -> None:
    # Nesterov's first step from an empty buffer is 1 + momentum times the gradient
    config = dataclasses.replace(
        SHORT, loss="natural", select="last", schedule="steps", milestones=(), batch_size=100, lr=0.01
    )
    forgetful, plain = small_net(1), small_net(1)
    train(forgetful, digits, dataclasses.replace(config, reset_momentum=True))
    train(plain, digits, dataclasses.replace(config, momentum=0.0, lr=0.019))
    for ours, theirs in zip(forgetful.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_trades_without_its_second_term_still_learns_and_with_it_flattens(digits: data.Dataset) -> None:
    x, y = digits.images(digits.test.x), digits.test.y
    drift = []
    for beta in (0.0, 6.0):
        model = small_net(1, noise="off", width=8)
        config = dataclasses.replace(SHORT, loss="trades", trades_beta=beta, epochs=25, lr=0.05, select="last")
        result = train(model, digits, config)
        assert result.history[-1].loss < result.history[0].loss
        x_adv = attacks.pgd(model, x, y, eps=0.2, step_size=0.1, num_steps=4, generator=torch.Generator())
        with torch.no_grad():
            clean, moved = model(x).log_softmax(1), model(x_adv).log_softmax(1)
        drift.append(float(nn.functional.kl_div(moved, clean, log_target=True, reduction="batchmean")))
    assert drift[1] < drift[0] / 2


def test_the_model_is_left_with_the_weights_of_the_best_epoch(digits: data.Dataset, tmp_path: Path) -> None:
    model = small_net(1)
    result = train(model, digits, dataclasses.replace(SHORT, epochs=6), path=tmp_path / "run")
    values = [record.val_robust for record in result.history]
    assert result.best_epoch == max(range(6), key=lambda epoch: values[epoch] or 0)
    tree = checkpoint.load(tmp_path / "run", kind="training")
    assert_identical(tree["best"]["weights"], dict(model.state_dict()))
    assert not model.training


def test_the_test_set_plays_no_part_in_training(digits: data.Dataset) -> None:
    other = dataclasses.replace(digits, test=data.Split(16 - digits.test.x, digits.test.y.flip(0)))
    models_ = [small_net(1), small_net(1)]
    for model, dataset in zip(models_, (digits, other), strict=True):
        train(model, dataset, SHORT)
    assert_identical(dict(models_[0].state_dict()), dict(models_[1].state_dict()))


def test_training_learns_the_digits() -> None:
    dataset = data.load("digits", num_train=600)
    model = small_net(1, width=8)
    train(model, dataset, dataclasses.replace(SHORT, loss="natural", epochs=8, batch_size=32))
    assert evaluate.accuracy(model, dataset.images(dataset.test.x), dataset.test.y).interval.low > 0.8


class Stop(Exception):
    pass


AUTHORS = dataclasses.replace(
    PRESETS["authors"], epochs=3, batch_size=16, eps=0.2, step_size=0.1, num_steps=2, milestones=(0.5,)
)


@pytest.mark.parametrize(
    ("config", "checkpoint_steps"),
    [(SHORT, 1), (SHORT, None), (AUTHORS, 1), (dataclasses.replace(SHORT, loss="trades"), 1)],
    ids=["every-step", "every-epoch", "authors", "trades"],
)
def test_a_run_stopped_at_every_step_ends_with_the_same_bits(
    digits: data.Dataset, tmp_path: Path, config: TrainConfig, checkpoint_steps: int | None
) -> None:
    digits = dataclasses.replace(digits, augmented=True)
    train(small_net(), digits, config, path=tmp_path / "whole")
    last = num_steps = 0

    def stop_when_new(done: int, total: int) -> None:
        nonlocal last, num_steps
        num_steps = total
        if done > last and (done == last + 1 if checkpoint_steps else done % 4 == 0):
            last = done
            raise Stop

    for _ in range(20):
        try:
            train(
                small_net(),
                digits,
                config,
                path=tmp_path / "parts",
                checkpoint_steps=checkpoint_steps,
                on_step=stop_when_new,
            )
            break
        except Stop:
            continue
    assert last == (num_steps if checkpoint_steps else num_steps - num_steps % 4)
    assert_identical(everything_trained(tmp_path / "parts"), everything_trained(tmp_path / "whole"))


def test_a_run_takes_the_device_of_its_data(digits: data.Dataset) -> None:
    """Nothing else in the process decides: one training may follow another on another device."""
    parts = {
        part: data.Split(*(t.to("meta") for t in vars(getattr(digits, part)).values())) for part in ("train", "val")
    }
    elsewhere = dataclasses.replace(digits, **parts)
    for dataset, device in ((digits, "cpu"), (elsewhere, "meta"), (digits, "cpu")):
        model = small_net()
        with contextlib.suppress(NotImplementedError, RuntimeError):  # a meta tensor has no values to print or store
            train(model, dataset, dataclasses.replace(SHORT, epochs=1))
        assert model.weights.device.type == device


@pytest.mark.parametrize("stop_after", [6, 7])
def test_a_run_moves_to_another_kind_of_device(digits: data.Dataset, tmp_path: Path, stop_after: int) -> None:
    """What a GPU would have left: generator states of sixteen bytes. Epochs of three steps end after the sixth."""

    def stop(done: int, total: int) -> None:
        if done == stop_after:
            raise Stop

    whole, moved = tmp_path / "whole", tmp_path / "moved"
    train(small_net(), digits, SHORT, path=whole)
    with pytest.raises(Stop):
        train(small_net(), digits, SHORT, path=moved, on_step=stop)
    tree = checkpoint.load(moved, kind="training")
    assert tree["device"] == "cpu"
    states = dict.fromkeys(tree["generators"], torch.zeros(16, dtype=torch.uint8))
    ends = []
    for _ in range(2):
        checkpoint.save(moved, {**tree, "device": "cuda", "generators": states}, kind="training")
        assert len(train(small_net(), digits, SHORT, path=moved).history) == SHORT.epochs
        ends.append(everything_trained(moved))
    assert_identical(*ends)
    # at the beginning of an epoch nothing is lost; within one, noise and random starts are drawn anew
    same_weights = [
        torch.equal(a, b)
        for a, b in zip(*(t["weights"].values() for t in (ends[0], everything_trained(whole))), strict=True)
    ]
    assert all(same_weights) == (stop_after == 6)


def test_an_error_at_the_end_of_an_epoch_loses_no_update(digits: data.Dataset, tmp_path: Path) -> None:
    def quarter(model: models.EnResNet, epoch: int) -> None:
        model.set_weights([0.25, 0.75] if epoch == 1 else [0.75, 0.25])

    def fail(model: models.EnResNet, epoch: int) -> None:
        quarter(model, epoch)
        if epoch == 1:
            raise Stop

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small_net(), digits, SHORT, path=whole, on_epoch=quarter)
    with pytest.raises(Stop):
        train(small_net(), digits, SHORT, path=parts, on_epoch=fail)
    tree = checkpoint.load(parts, kind="training")
    assert (tree["epoch"], tree["step"]) == (1, 3)
    assert tree["weights"]["weights"].tolist() == [0.75, 0.25]
    positions: list[int] = []
    train(small_net(), digits, SHORT, path=parts, on_epoch=quarter, on_step=lambda done, total: positions.append(done))
    assert positions == [6, 6, 7, 8, 9]
    assert_identical(everything_trained(parts), everything_trained(whole))


def test_a_run_interrupted_in_validation_ends_with_the_same_bits(
    digits: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **options: Any) -> evaluate.Score:
        raise KeyboardInterrupt

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small_net(), digits, SHORT, path=whole)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "robust_accuracy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(small_net(), digits, SHORT, path=parts)
    assert checkpoint.load(parts, kind="training")["step"] == 3
    train(small_net(), digits, SHORT, path=parts)
    assert_identical(everything_trained(parts), everything_trained(whole))


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_training import SHORT, small_net
from netkit import data, training
def report(done, total): print(done, flush=True)
training.train(small_net(), data.load("digits", num_train=50), SHORT, path=Path(sys.argv[1]),
               checkpoint_steps=1, on_step=report)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(digits: data.Dataset, tmp_path: Path) -> None:
    train(small_net(), digits, SHORT, path=tmp_path / "whole")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "parts"), str(Path(__file__).parent)]
    for kill_after in (1, 4, None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD) as process:
            assert process.stdout is not None
            for count, _ in enumerate(process.stdout):
                if count == kill_after:
                    process.kill()
                    break
            process.wait()
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
    assert_identical(everything_trained(tmp_path / "parts"), everything_trained(tmp_path / "whole"))


def test_a_finished_run_is_read_back(digits: data.Dataset, tmp_path: Path) -> None:
    first, second = small_net(), small_net()
    result = train(first, digits, SHORT, path=tmp_path / "run")
    positions: list[int] = []
    again = train(second, digits, SHORT, path=tmp_path / "run", on_step=lambda done, total: positions.append(done))
    assert positions == [9]
    assert again == result
    assert_identical(dict(first.state_dict()), dict(second.state_dict()))


STEPS = dataclasses.replace(SHORT, schedule="steps", epochs=2, milestones=(0.5,))


@pytest.mark.parametrize("select", ["robust", "last"])
def test_a_finished_run_is_extended_to_what_the_longer_one_would_have_been(
    digits: data.Dataset, tmp_path: Path, select: Any
) -> None:
    short, longer = (
        dataclasses.replace(STEPS, select=select, epochs=epochs, milestones=milestones)
        for epochs, milestones in ((2, (0.5,)), (4, (1 / 4, 3 / 4)))
    )
    train(small_net(), digits, longer, path=tmp_path / "whole")
    train(small_net(), digits, short, path=tmp_path / "parts")
    positions: list[int] = []
    result = train(small_net(), digits, longer, path=tmp_path / "parts", on_step=lambda done, _: positions.append(done))
    assert positions == list(range(6, 13))
    assert len(result.history) == 4
    assert_identical(everything_trained(tmp_path / "parts"), everything_trained(tmp_path / "whole"))
    with pytest.raises(CheckpointError, match="epochs=4 where 2 is asked for"):
        train(small_net(), digits, short, path=tmp_path / "parts")


def test_an_extension_that_would_be_another_run_is_refused(digits: data.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(small_net(), digits, STEPS, path=path)
    message = (
        r"epochs=2 where 10 is asked for, with other learning rates in the updates made so far: "
        r"milestones=\(1/10\) extend it"
    )
    with pytest.raises(CheckpointError, match=message):
        train(small_net(), digits, dataclasses.replace(STEPS, epochs=10), path=path)
    with pytest.raises(CheckpointError, match=r"belongs to another configuration: eps=0\.2 where 0\.1"):
        train(small_net(), digits, dataclasses.replace(STEPS, epochs=10, milestones=(0.1,), eps=0.1), path=path)


class WithDropout(models.ResNet):
    """A network that draws from the global generator, as of a user's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.2)) + 0.1 * torch.rand(len(x), 1)


def test_what_a_network_draws_globally_follows_from_the_seed_of_the_run(digits: data.Dataset, tmp_path: Path) -> None:
    def net() -> models.EnResNet:
        return models.EnResNet([WithDropout(8, in_channels=1, width=4, seed=1)], seed=1)

    def stop(done: int, total: int) -> None:
        torch.rand(done)  # what others draw between two updates does not count
        if done == 4:
            raise Stop

    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(net(), digits, SHORT, path=tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    with pytest.raises(Stop):
        train(net(), digits, SHORT, path=tmp_path / "parts", on_step=stop)
    train(net(), digits, SHORT, path=tmp_path / "parts")
    assert_identical(everything_trained(tmp_path / "parts"), everything_trained(tmp_path / "whole"))
    train(net(), digits, dataclasses.replace(SHORT, seed=8), path=tmp_path / "other")
    weights = [everything_trained(tmp_path / name)["weights"]["members.0.fc.weight"] for name in ("whole", "other")]
    assert not torch.equal(*weights)


def test_a_checkpoint_of_something_else_is_refused(digits: data.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(small_net(1), digits, dataclasses.replace(SHORT, epochs=1), path=path)
    with pytest.raises(CheckpointError, match="belongs to another configuration: epochs=1 where 3 is asked for"):
        train(small_net(1), digits, SHORT, path=path)
    config = dataclasses.replace(SHORT, epochs=1)
    with pytest.raises(CheckpointError, match="belongs to another model: members="):
        train(small_net(2), digits, config, path=path)
    with pytest.raises(CheckpointError, match="belongs to another data set: fingerprint="):
        train(small_net(1), data.load("digits", num_train=40), config, path=path)


def test_a_whole_file_without_what_a_run_holds_is_refused(digits: data.Dataset, tmp_path: Path) -> None:
    config, path = dataclasses.replace(SHORT, epochs=1), tmp_path / "run"
    train(small_net(), digits, config, path=path)
    tree = checkpoint.load(path, kind="training")
    assert training.load_model(path).num_classes == 10
    for key in tree.keys() - {"provenance"}:
        checkpoint.save(path, {name: value for name, value in tree.items() if name != key}, kind="training")
        with pytest.raises(CheckpointError, match=f"lacks a part that it should hold: KeyError: '{key}'"):
            train(small_net(), digits, config, path=path)
    others: list[dict[str, Any]] = [
        {},
        {"identity": {"model": {"depth": 9}}},
        {"identity": {"model": [8]}},
        {"best": {**tree["best"], "weights": {"weights": torch.zeros(3)}}},
        {"best": None},
    ]
    for other in others:
        checkpoint.save(path, {**tree, **other} if other else {}, kind="training")
        with pytest.raises(CheckpointError, match="lacks a part that it should hold"):
            training.load_model(path)


def test_a_diverging_run_stops_with_an_error(digits: data.Dataset) -> None:
    config = dataclasses.replace(SHORT, lr=1e30, schedule="steps")
    with pytest.raises(FloatingPointError, match=r"training diverged in epoch 1 \(learning rate 1e\+30\): lower it"):
        train(small_net(1), digits, config)


def test_a_network_whose_gradient_is_not_finite_has_diverged(digits: data.Dataset) -> None:
    net = small_net(1)
    with torch.no_grad():
        net.members[0].fc.weight[0, 0] = 3e38  # finite logits, with a gradient that overflows on its way back
        net.members[0].fc.weight[1, 0] = -3e38
    with pytest.raises(FloatingPointError, match=r"training diverged in epoch 1 .*: lower it"):
        train(net, digits, SHORT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "loss: expected one of pgd, natural, trades, got 'hinge'"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"epochs": 1.5}, "epochs: expected a whole number, got 1.5"),
        ({"batch_size": True}, "batch_size: expected a whole number, got True"),
        ({"num_steps": "7"}, "num_steps: expected a whole number, got '7'"),
        ({"validate_every": 0}, "validate_every: expected at least 1, got 0"),
        ({"val_num_steps": 1}, "val_num_steps: expected at least 2, got 1"),
        ({"seed": 1.0}, "seed: expected a whole number, got 1.0"),
        ({"eps": -0.1}, "eps: expected a number above 0 and at most 1, as pixels are from 0 to 1, got -0.1"),
        ({"eps": 8}, "eps: expected a number above 0 and at most 1, as pixels are from 0 to 1, got 8"),
        ({"lr": float("nan")}, "lr: expected a positive, finite number, got nan"),
        ({"epochs": np.float64(1)}, r"epochs: expected a whole number, got np\.float64\(1\.0\)"),
        ({"lr": np.bool_(True)}, r"lr: expected a positive, finite number, got np\.True_"),
        ({"lr": "0.1"}, "lr: expected a positive, finite number, got '0.1'"),
        ({"lr_drop": 0}, "lr_drop: expected a number above 0 and at most 1, got 0"),
        ({"warmup": -0.1}, "warmup: expected a share of the steps, from 0 to 1, got -0.1"),
        ({"warmup": 1.1}, "warmup: expected a share of the steps, from 0 to 1, got 1.1"),
        ({"momentum": 1}, "momentum: expected a number of at least 0 and below 1, got 1"),
        ({"weight_decay": -5e-4}, "weight_decay: expected a finite number >= 0, got -0.0005"),
        ({"trades_beta": float("inf")}, "trades_beta: expected a finite number >= 0, got inf"),
        ({"step_size": 0}, "step_size: expected a positive, finite number, got 0"),
        ({"milestones": (80, 120)}, r"milestones: expected shares of the epochs, from 0 to 1, got \(80, 120\)"),
        ({"milestones": 0.5}, "milestones: expected shares of the epochs, got 0.5"),
        ({"nesterov": "no"}, "nesterov: expected True or False, got 'no'"),
        ({"hold_out": False}, "select: expected 'last' without"),
    ],
)
def test_a_configuration_outside_its_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT, **changes)


def test_a_configuration_stores_numbers_of_python() -> None:
    of_numpy = {
        "epochs": np.int64(2),
        "lr": np.float32(0.25),
        "eps": Fraction(1, 4),
        "milestones": np.array([0.25, 0.5]),
    }
    config = dataclasses.replace(SHORT, **of_numpy)
    assert config == dataclasses.replace(SHORT, epochs=2, lr=0.25, eps=0.25, milestones=(0.25, 0.5))
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert TrainConfig(**stored) == config


def test_presets_keep_the_papers_numbers_where_they_claim_to() -> None:
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.lr, paper.num_steps) == (200, 0.1, 10)
    assert (paper.eps, paper.step_size) == (8 / 255, 2 / 255)
    assert PRESETS["authors"].attack_batch_norm == "train"
    assert all(preset.attack_batch_norm == "eval" for name, preset in PRESETS.items() if name != "authors")
