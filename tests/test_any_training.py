"""The trainer on networks, losses, attacks, optimisers and schedules of one's own, and the records of its steps."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional

from netkit import (
    MetricsFile,
    TensorBoard,
    attacks,
    checkpoint,
    data,
    ensemble,
    evaluate,
    inject_noise,
    load_model,
    load_weights,
    train,
)
from netkit.checkpoint import CheckpointError
from netkit.metrics import EpochRecord, StepRecord
from netkit.models import en_resnet, resnet
from netkit.presets import PRESETS
from netkit.randomness import derived_generator
from netkit.training import TrainConfig, epoch_order, parameter_groups

SHORT = TrainConfig(epochs=2, batch_size=16, eps=0.2, step_size=0.1, num_steps=2, schedule="one-cycle", lr=0.05, seed=7)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", num_train=50, num_test=50)


def plain_net(width: int = 6) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(36 * width, 10))


def noisy_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
        model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        for name in ("layer2", "layer3", "layer4"):
            setattr(model, name, nn.Identity())
        model.fc = nn.Linear(64, 10)
    return inject_noise(model, 0.3, seed=1)


class Stop(Exception):
    pass


def weights_of(path: Path) -> dict[str, Any]:
    tree = checkpoint.load(path, kind="training")
    return {key: tree[key] for key in ("weights", "best", "optimizer", "generators")}


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, Tensor) else bool(first == second)


def test_a_plain_network_is_trained_as_a_loop_written_out_would(digits: data.Dataset) -> None:
    trained, plain = (plain_net().double() for _ in range(2))
    trained[3] = plain[3] = nn.Identity()
    options: dict[str, Any] = {"precision": "fp64", "select": "last", "epochs": 1, "weight_decay": 0.01}
    smooth = partial(functional.cross_entropy, label_smoothing=0.2, reduction="none")
    train(
        trained,
        digits,
        SHORT,
        loss=smooth,
        attack=partial(attacks.fgsm, eps=0.1),
        optimizer=torch.optim.AdamW,
        schedule=lambda done, total: 1 - done / total,
        **options,
    )
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.01)
    batches = epoch_order(7, 0, len(digits.train)).split(16)
    for done, batch in enumerate(batches):
        x, y = digits.images(digits.train.x[batch], torch.float64), digits.train.y[batch]
        x_adv = attacks.fgsm(plain.eval(), x, y, eps=0.1)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - done / len(batches))
        optimizer.zero_grad()
        smooth(plain.train()(x_adv), y).mean().backward()
        optimizer.step()
    for ours, theirs in zip(trained.eval().state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_presets_are_callables_like_any_other(digits: data.Dataset) -> None:
    """PGD and cross-entropy, given as functions, are the configuration's own."""
    config = dataclasses.replace(SHORT, epochs=1)
    models = [plain_net(), plain_net(), plain_net()]
    train(models[0], digits, config)
    pgd = partial(attacks.pgd, eps=0.2, step_size=0.1, num_steps=2)
    train(models[1], digits, config, attack=pgd, loss=functional.cross_entropy)
    train(models[2], digits, config, attack=evaluate.no_attack)
    states = [dict(model.state_dict()) for model in models]
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


@pytest.mark.parametrize("make", [plain_net, noisy_net], ids=["plain", "injected"])
def test_any_network_stopped_at_every_step_ends_with_the_same_bits(
    digits: data.Dataset, tmp_path: Path, make: Any
) -> None:
    options: dict[str, Any] = {"optimizer": torch.optim.AdamW, "schedule": cosine, "lr": 1e-3}
    last = 0

    def stop_when_new(done: int, total: int) -> None:
        nonlocal last
        if done > last:
            last = done
            raise Stop

    whole = MetricsFile(tmp_path / "whole.csv")
    train(make(), digits, SHORT, path=tmp_path / "whole", callbacks=[whole], **options)
    for _ in range(10):
        callbacks = [MetricsFile(tmp_path / f"parts{suffix}") for suffix in (".csv", ".jsonl")]
        run = partial(train, make(), digits, SHORT, path=tmp_path / "parts", callbacks=callbacks, **options)
        try:
            # every other step is only in the file of metrics when the run stops, and is made once more
            run(checkpoint_steps=2, on_step=stop_when_new)
            break
        except Stop:
            continue
    assert last == 6
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    texts = [(tmp_path / f"{name}.csv").read_text() for name in ("whole", "parts")]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    assert [row["step"] for row in tables[0]] == ["1", "2", "3", "", "4", "5", "6", ""]
    for row in (row for table in tables for row in table):
        row.pop("seconds")
    assert tables[0] == tables[1]
    lines = [json.loads(line) for line in (tmp_path / "parts.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [1, 2, 3, None, 4, 5, 6, None]


def cosine(done: int, total: int) -> float:
    return float(torch.cos(torch.tensor(torch.pi * done / total)) + 1) / 2


def test_records_are_what_the_result_says(digits: data.Dataset) -> None:
    records: list[Any] = []
    result = train(plain_net(), digits, SHORT, callbacks=[records.append])
    assert tuple(record for record in records if isinstance(record, EpochRecord)) == result.history
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [(step.step, step.epoch) for step in steps] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)]
    counts = (16, 16, 13)
    for name in ("loss", "accuracy"):
        mean = sum(count * getattr(step, name) for count, step in zip(counts, steps[:3], strict=True)) / 45
        assert mean == pytest.approx(getattr(result.history[0], name), rel=1e-9)


def test_a_line_that_a_killed_process_left_unfinished_is_dropped(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl"):
        path = tmp_path / f"run{suffix}"
        first = MetricsFile(path)
        for step in (1, 2, 3):
            first(StepRecord(step, 0, 0.1, 1.5, 0.25))
        path.write_text(
            path.read_text() + '{"step": 4, "ep'.replace('{"step": ', "" if suffix == ".csv" else '{"step": ')
        )
        second = MetricsFile(path)
        second(StepRecord(3, 0, 0.1, 7.0, 0.25))
        assert len(path.read_text().splitlines()) == 3 + (suffix == ".csv")
        assert "7.0" in path.read_text()
    with pytest.raises(ValueError, match=r"path: expected a name that ends with \.csv or \.jsonl, got run\.txt"):
        MetricsFile("run.txt")


def test_tensorboard_is_given_steps_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            seen.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, place: int) -> None:
            seen.append((name, value, place))

        def flush(self) -> None:
            seen.append("flush")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr("torch.utils.tensorboard", fake, raising=False)
    board = TensorBoard("runs")
    board(StepRecord(4, 1, 0.1, 2.0, 0.5))
    board(EpochRecord(1, 0.1, 2.0, 0.5, 0.6, None, 3.0))
    assert seen[:4] == [("runs", 4), ("step/lr", 0.1, 4), ("step/loss", 2.0, 4), ("step/accuracy", 0.5, 4)]
    assert ("epoch/val_natural", 0.6, 1) in seen
    assert seen[-1] == "flush"


def test_tensorboard_is_asked_for_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match="TensorBoard: expected the library tensorboard, got none"):
        TensorBoard("runs")


def test_weights_go_back_into_a_network_made_as_for_the_run(digits: data.Dataset, tmp_path: Path) -> None:
    config, x = dataclasses.replace(SHORT, epochs=1), digits.images(digits.test.x)
    makers: dict[str, Any] = {
        "foreign": plain_net,
        "injected": noisy_net,
        "ours, injected": lambda: inject_noise(resnet(8, width=4, in_channels=1, seed=0)),
        "ensemble": lambda: ensemble([plain_net(), resnet(8, width=4, in_channels=1, seed=0)], weights=[0.3, 0.7]),
    }
    for name, make in makers.items():
        path, model = tmp_path / name, make()
        train(model, digits, config, path=path)
        loaded = load_weights(path, make())
        assert not loaded.training
        assert equal(dict(loaded.state_dict()), dict(model.state_dict()))
        with pytest.raises(CheckpointError, match=r"holds weights alone, .*: load_weights\(path, model\)"):
            load_model(path)
        assert len(train(make(), digits, config, path=path).history) == 1
    with pytest.raises(CheckpointError, match="belongs to another model: layers="):
        load_weights(tmp_path / "foreign", plain_net(width=5))
    with pytest.raises(CheckpointError, match="belongs to another model: injected="):
        train(inject_noise(resnet(8, width=4, in_channels=1), 0.2), digits, config, path=tmp_path / "ours, injected")
    own = en_resnet(8, num_members=2, width=4, in_channels=1, seed=0)
    train(own, digits, config, path=tmp_path / "own")
    assert equal(
        dict(load_weights(tmp_path / "own", own).state_dict()), dict(load_model(tmp_path / "own").state_dict())
    )
    with torch.no_grad(), own.noise_off():
        assert own(x).shape == (50, 10)


def test_the_identity_of_a_run_by_the_presets_is_what_it_was(digits: data.Dataset, tmp_path: Path) -> None:
    model = en_resnet(8, num_members=2, width=4, in_channels=1, seed=0)
    train(model, digits, SHORT, path=tmp_path / "run")
    identity = checkpoint.load(tmp_path / "run", kind="training")["identity"]
    assert list(identity) == ["model", "configuration", "data set"]
    assert identity["model"] == model.config
    assert identity["configuration"] == json.loads(json.dumps(dataclasses.asdict(SHORT)))


def test_a_run_with_other_functions_is_another_run(digits: data.Dataset, tmp_path: Path) -> None:
    config, path = dataclasses.replace(SHORT, epochs=1), tmp_path / "run"
    train(plain_net(), digits, config, path=path, optimizer=partial(torch.optim.SGD, momentum=0.5))
    for options in ({}, {"optimizer": torch.optim.AdamW}, {"optimizer": partial(torch.optim.SGD, momentum=0.6)}):
        with pytest.raises(CheckpointError, match="belongs to another set of functions: optimizer="):
            train(plain_net(), digits, config, path=path, **options)  # type: ignore[arg-type]
    train(plain_net(), digits, config, path=tmp_path / "plain")
    with pytest.raises(CheckpointError, match="schedule="):
        train(plain_net(), digits, config, path=tmp_path / "plain", schedule=cosine)


def decaying(rate: float) -> Callable[[int, int], float]:
    return lambda done, total: rate**done


def test_two_lambdas_are_told_apart_by_their_code_and_what_they_close_over(
    digits: data.Dataset, tmp_path: Path
) -> None:
    config, path = dataclasses.replace(SHORT, epochs=1), tmp_path / "run"
    train(plain_net(), digits, config, path=path, schedule=decaying(0.5))
    assert train(plain_net(), digits, config, path=path, schedule=decaying(0.5)).history
    for other in (decaying(0.6), lambda done, total: 1.0):
        with pytest.raises(CheckpointError, match="belongs to another set of functions: schedule="):
            train(plain_net(), digits, config, path=path, schedule=other)


def test_a_schedule_of_ones_own_is_extended_where_its_past_is_the_same(digits: data.Dataset, tmp_path: Path) -> None:
    for epochs in (1, 2):
        result = train(plain_net(), digits, SHORT, epochs=epochs, schedule=inverse, path=tmp_path / "parts")
    assert [record.lr for record in result.history] == [pytest.approx(0.05 / 3), pytest.approx(0.05 / 6)]
    train(plain_net(), digits, SHORT, schedule=inverse, path=tmp_path / "whole")
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    train(plain_net(), digits, SHORT, epochs=1, schedule=cosine, path=tmp_path / "bent")
    with pytest.raises(CheckpointError, match="a schedule that does not depend on the number of updates extends it"):
        train(plain_net(), digits, SHORT, schedule=cosine, path=tmp_path / "bent")


def inverse(done: int, total: int) -> float:
    return 1 / (done + 1)


def test_options_change_single_fields(digits: data.Dataset) -> None:
    config = dataclasses.replace(SHORT, epochs=1, loss="natural", lr=0.1)
    assert train(plain_net(), digits, SHORT, epochs=1, loss="natural", lr=0.1).config == config
    fields = {field.name: getattr(SHORT, field.name) for field in dataclasses.fields(SHORT)}
    assert train(plain_net(), digits, **{**fields, "epochs": 1}).config == dataclasses.replace(SHORT, epochs=1)


def test_groups_hold_what_the_optimiser_needs() -> None:
    groups = parameter_groups(ensemble([plain_net(), plain_net(4)]), dataclasses.replace(SHORT, lr_scaling="members"))
    assert [(group["lr_factor"], group["weight_decay"]) for group in groups] == [(2, 2.5e-4), (2, 2.5e-4)]
    assert parameter_groups(plain_net(), PRESETS["paper"])[0]["lr_factor"] == 1


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"loss": "natural", "attack": evaluate.no_attack}, "attack: expected none with loss='natural'"),
    ({"loss": lambda logits, y: logits}, r"loss: expected a loss \(\) or one for each image \(16,\), got \(16, 10\)"),
    ({"attack": lambda model, x, y: x[:3]}, r"attack: expected images torch.float32 \(16, 1, 8, 8\), got"),
    ({"attack": "fgsm"}, "attack: expected a function, got 'fgsm'"),
    (
        {"optimizer": partial(torch.optim.SGD, lr=1.0)},
        r"optimizer: expected none that binds lr, which train\(...\) sets",
    ),
    ({"learning_rate": 1}, "unexpected keyword argument 'learning_rate'"),
    ({"epochs": 0}, "epochs: expected at least 1, got 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_options_get_one_line(digits: data.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        train(plain_net(), digits, SHORT, **options)


def test_a_network_with_too_few_logits_is_told(digits: data.Dataset) -> None:
    with pytest.raises(ValueError, match="y: expected labels below 3, got 9"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), digits, SHORT, loss="natural")


def test_an_attack_in_training_moves_neither_statistics_nor_weights(digits: data.Dataset) -> None:
    starts = derived_generator("cpu", 7, "attack", 0, 0)
    first = torch.rand((), generator=starts)
    seen = []

    def looking(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        seen.append(float(torch.rand((), generator=generator)))
        model(x)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        return x

    model = plain_net()
    train(model, digits, SHORT, epochs=1, attack=looking, select="last")
    assert int(model[1].num_batches_tracked) == 3
    assert seen[0] == pytest.approx(float(first))
