"""Training steps replayed from a recording: here by a stand-in for CUDA graphs, on a GPU by tests/test_cuda.py."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from netkit import attacks, data, models, step_graph
from netkit.attacks.expectation import without_reading
from netkit.step_graph import StepGraph
from netkit.training import TrainConfig, TrainResult, train

SHORT = TrainConfig(epochs=2, batch_size=16, eps=0.2, step_size=0.1, num_steps=2, lr=0.05, select="last", seed=7)


class Recorder:
    """Repeats the Python of a step; as `record` of a GPU its results and gradients lie where they first were."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(
        self, run: Callable[[], Tensor], generators: Collection[torch.Generator]
    ) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        result = run()

        def replay() -> None:
            self.replayed += 1
            result.copy_(run())

        return replay, result


def net(num_members: int = 2, **options: Any) -> models.EnResNet:
    return models.en_resnet(8, num_members=num_members, in_channels=1, width=4, seed=1, **options)


def digits(num_train: int = 40) -> data.Dataset:
    return dataclasses.replace(data.load("digits", num_train=num_train, num_test=8, device="cpu"), augmented=True)


def trained(monkeypatch: pytest.MonkeyPatch, recorder: Any, model: nn.Module) -> tuple[TrainResult, dict[str, Tensor]]:
    monkeypatch.setattr(step_graph, "is_available", lambda device: True)
    monkeypatch.setattr(step_graph, "record", recorder)
    return train(model, digits(), SHORT), model.state_dict()


def gradients_of(model: nn.Module, replay: Callable[[], None]) -> Callable[[], None]:
    """`replay`, with its gradients copied to where those of the recording are."""
    places = [parameter.grad for parameter in model.parameters()]

    def run() -> None:
        replay()
        for place, parameter in zip(places, model.parameters(), strict=True):
            if place is not None and parameter.grad is not None:
                place.copy_(parameter.grad)

    return run


class FaithfulRecorder(Recorder):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __call__(
        self, run: Callable[[], Tensor], generators: Collection[torch.Generator]
    ) -> tuple[Callable[[], None], Tensor]:
        replay, result = super().__call__(run, generators)
        return gradients_of(self.model, replay), result


def test_a_run_of_replayed_steps_ends_with_the_bits_of_one_of_plain_steps(monkeypatch):
    plain = net()
    expected = train(plain, digits(), SHORT, graph=False)
    model = net()
    recorder = FaithfulRecorder(model)
    result, weights = trained(monkeypatch, recorder, model)
    # 36 images in training: two steps of 16 and one of 4 an epoch, the first two of which are checked
    assert (recorder.recorded, recorder.replayed) == (1, 2 + 2)
    for name, value in plain.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert [record.loss for record in result.history] == [record.loss for record in expected.history]


class Frozen(FaithfulRecorder):
    """Forgets to draw: each replay starts from the generators' states of the recording."""

    def __call__(
        self, run: Callable[[], Tensor], generators: Collection[torch.Generator]
    ) -> tuple[Callable[[], None], Tensor]:
        states = [generator.get_state() for generator in generators]

        def run_again() -> Tensor:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            return run()

        return super().__call__(run_again, generators)


class NotRecordable(Recorder):
    def __call__(
        self, run: Callable[[], Tensor], generators: Collection[torch.Generator]
    ) -> tuple[Callable[[], None], Tensor]:
        run()  # which spoils buffers and generators
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more lines")


@pytest.mark.parametrize(
    ("make", "reason"),
    [(Frozen, "gives other gradients"), (lambda _: NotRecordable(), "not permitted when stream is capturing$")],
)
def test_a_recording_that_fails_is_told_in_one_line_and_changes_nothing(monkeypatch, make, reason):
    plain, model = net(), net()
    train(plain, digits(), SHORT, graph=False)
    with pytest.warns(UserWarning, match=f"without a CUDA graph, as .*{reason}"):
        _, weights = trained(monkeypatch, make(model), model)
    for name, value in plain.state_dict().items():
        assert torch.equal(weights[name], value), name


class Moody(nn.Module):
    """Decides in Python, by Python's own random numbers, which a GPU's recording would not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return random.choice([-1.0, 1.0]) * self.layer(x.flatten(1))


def test_decisions_in_python_are_found(monkeypatch):
    model = Moody()

    class AsRecorded(FaithfulRecorder):
        """Makes the decisions of the recording again."""

        def __call__(
            self, run: Callable[[], Tensor], generators: Collection[torch.Generator]
        ) -> tuple[Callable[[], None], Tensor]:
            decisions = random.getstate()

            def run_again() -> Tensor:
                random.setstate(decisions)
                return run()

            return super().__call__(run_again, generators)

    with pytest.warns(UserWarning, match="gives other gradients, as if it decided"):
        trained(monkeypatch, AsRecorded(model), model)


class Signed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sign = nn.Linear(64, 10), 1.0
        nn.init.constant_(self.layer.weight, 0.01)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.layer(x.flatten(1))


def test_what_changes_in_python_after_an_epoch_is_found(monkeypatch):
    def turn(model: nn.Module, epoch: int) -> None:
        assert isinstance(model, Signed)
        model.sign = -1.0

    plain, model = Signed(), Signed()
    train(plain, digits(), SHORT, graph=False, on_epoch=turn)

    class AsRecorded(FaithfulRecorder):
        def __call__(
            self, run: Callable[[], Tensor], generators: Collection[torch.Generator]
        ) -> tuple[Callable[[], None], Tensor]:
            sign = model.sign

            def run_again() -> Tensor:
                now, model.sign = model.sign, sign
                try:
                    return run()
                finally:
                    model.sign = now

            return super().__call__(run_again, generators)

    monkeypatch.setattr(step_graph, "is_available", lambda device: True)
    monkeypatch.setattr(step_graph, "record", AsRecorded(model))
    with pytest.warns(UserWarning, match="gives other gradients, as if it decided"):
        train(model, digits(), SHORT, on_epoch=turn)
    assert torch.equal(model.layer.weight, plain.layer.weight)


def test_a_checked_step_leaves_the_state_of_a_plain_one():
    model = net(1)
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(8, 1, 8, 8, generator=generator)

    def step(index: Tensor) -> Tensor:
        model.zero_grad()
        with model.using_generator(generator):
            loss = model(x[index]).square().sum()
        loss.backward()
        return loss.detach().clone()

    def state() -> list[Tensor]:
        return [*(buffer.clone() for buffer in model.buffers()), generator.get_state()]

    graph = StepGraph(step, model, [generator], 4)
    before = generator.get_state()
    model.train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    step(torch.arange(4))
    expected = state()
    generator.set_state(before)
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(step_graph, "record", FaithfulRecorder(model))
        graph(torch.arange(4))
    assert all(torch.equal(one, other) for one, other in zip(state(), expected, strict=True))


def waits(run: Callable[[], object]) -> int:
    """The number of values read, each of which a GPU would have to be waited for."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    names = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}
    return sum(event.count for event in found.key_averages() if event.key in names)


@pytest.mark.parametrize("loss", ["pgd", "trades", "natural"])
def test_no_step_reads_a_value(loss):
    from netkit.training import _Functions, _Run

    run = _Run(net(), digits(), dataclasses.replace(SHORT, loss=loss), _Functions(), None, {}, ())
    with without_reading():
        assert waits(run.train_step) == 0
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    assert waits(lambda: attacks.fgsm(net(), x, y, eps=0.1)) > 0  # so that it would be seen


def test_images_of_a_data_set_are_looked_at_once(monkeypatch):
    good = digits()
    dark = dataclasses.replace(good, train=data.Split(good.train.x.to(torch.int16) - 3, good.train.y))
    with pytest.raises(ValueError, match="x: expected images within"):
        train(net(), dark, SHORT)
    wrong = dataclasses.replace(good, train=data.Split(good.train.x, good.train.y + 5))
    with pytest.raises(ValueError, match="dataset: expected labels below 10, its number of classes, got 14"):
        train(net(), wrong, SHORT)
