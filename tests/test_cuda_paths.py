"""What runs on a GPU, on an imitated one (imitated_cuda.py): nothing may be made on the wrong device, and with equal
generators the numbers are those of the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import jobs
import pytest
import reproduce
import reproduce_queue
import reproduce_results
import torch
import workers
from imitated_cuda import Imitation, OnGpu, imitated_gpu
from jobs import EvaluateTask, Job, Settings, TrainTask, run_task
from reproduce_queue import Stage
from torch import Tensor
from typer.testing import CliRunner

from bridge.weights import learn_weights, update_weights
from netkit import attacks, checkpoint, data, evaluate, models
from netkit.frozen import frozen
from netkit.randomness import derived_generator
from netkit.training import TrainConfig, load_model, train

SHORT = TrainConfig(epochs=1, batch_size=24, eps=0.2, step_size=0.1, num_steps=2, schedule="one-cycle", lr=0.05, seed=7)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpu() -> Iterator[Imitation]:
    with imitated_gpu() as imitation:
        yield imitation


def net(num_members: int = 2, **options: Any) -> models.EnResNet:
    return models.en_resnet(8, **{"num_members": num_members, "in_channels": 1, "width": 4, "seed": 1, **options})


def digits(device: str, num_train: int = 40) -> data.Dataset:
    return dataclasses.replace(data.load("digits", num_train=num_train, num_test=12, device=device), augmented=True)


def images(device: str) -> tuple[Tensor, Tensor]:
    dataset = digits(device)
    return dataset.images(dataset.test.x), dataset.test.y


def on_both(compute: Callable[[str], Tensor]) -> tuple[Tensor, Tensor]:
    """What `compute(device)` gives on the CPU, and on the GPU, brought back from there."""
    here = compute("cpu")
    with imitated_gpu():
        there = compute("cuda")
        assert isinstance(there, OnGpu)
        return here, there.cpu()


# The imitation


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(3, 4),
        lambda x: torch.zeros(()).add_(x.sum()),
        lambda x: x[torch.arange(2)],
        lambda x: torch.ones(3, 4)[torch.arange(2, device="cuda")],
        lambda x: torch.stack([x.sum(), torch.zeros(())]),
        lambda x: torch.clamp(x, torch.zeros(3, 4), x, out=x),
        lambda x: torch.nn.functional.cross_entropy(x, torch.arange(3)),
        lambda x: torch.nn.functional.linear(x, torch.ones(2, 4)),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.randn(3, device="cuda", generator=torch.Generator()),
        lambda x: torch.randn(3, generator=torch.Generator("cuda")),
        lambda x: torch.autograd.grad(_WrongBackward.apply(x.requires_grad_()).sum(), x),
    ],
)
def test_the_imitation_refuses_what_a_gpu_refuses(gpu: Imitation, wrong: Callable[[Tensor], Any]) -> None:
    with pytest.raises(RuntimeError, match="expected"):
        wrong(torch.rand(3, 4, device="cuda"))


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.ones(3, 4)


def test_the_imitation_takes_what_a_gpu_takes(gpu: Imitation) -> None:
    x = torch.rand(3, 4, device="cuda")
    for right in (
        x * torch.tensor(2.0),
        x.new_tensor([1.0]),
        x[1:],
        torch.zeros(2).to(x),
        x.double(),
        x.clone().cuda(),
    ):
        assert right.device == torch.device("cuda", 0)
    assert torch.zeros(3, 4).copy_(x).device.type == x.cpu().device.type == "cpu"
    gpu.waits.clear()
    x.sum().item()
    assert len(gpu.waits) == 1
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


# Networks


@pytest.mark.parametrize("execution", ["loop", "grouped"])
@pytest.mark.parametrize(
    ("noise", "options"),
    [
        ("gaussian", {}),
        ("two_point", {}),
        ("gaussian", {"noise_std": "sample", "normalize": ([0.5], [0.2])}),
        ("two_point", {"noise_std": "constant", "sigma": 0.3, "average": "probabilities"}),
        ("off", {}),
    ],
)
def test_a_noisy_network_and_its_gradient(noise: Any, options: dict[str, Any], execution: Any) -> None:
    def compute(device: str) -> Tensor:
        model = net(noise=noise, **options).to(device).to(memory_format=torch.channels_last)
        model.execution = execution
        x, y = images(device)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([part.flatten() for part in (loss, *gradients)])

    here, there = on_both(compute)
    assert torch.equal(here, there)


def test_given_and_fixed_noise_and_a_generator_of_another_device(gpu: Imitation) -> None:
    model = net().to("cuda")
    x, _ = images("cuda")
    with model.fixed_noise(3):
        assert torch.equal(model(x), model(x))
    state = model.generator_state()
    first = model(x)
    model.set_generator_state(state)
    assert torch.equal(model(x), first)
    with model.using_generator(torch.Generator()), pytest.raises(ValueError, match="expected a generator on cuda"):
        model(x)


# Attacks


@pytest.mark.parametrize(
    "attack",
    [
        partial(attacks.fgsm, eps=0.2),
        partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=2),
        partial(attacks.pgd, eps=0.2, step_size=0.1, num_steps=2, num_restarts=2),
        partial(attacks.pgd, eps=0.2, step_size=0.1, num_steps=2, norm="l2", batch_norm="train"),
        partial(attacks.cw, num_steps=2),
        partial(attacks.cw, variant="l2", num_steps=2, num_searches=2),
        partial(attacks.cw, variant="authors", num_steps=2),
    ],
)
@pytest.mark.parametrize("draws", [1, 2])
def test_an_attack(attack: evaluate.Attack, draws: int) -> None:
    def compute(device: str) -> Tensor:
        model, (x, y) = net().to(device).eval(), images(device)
        target = attacks.ExpectationOverTransformation(model, draws) if draws > 1 else model
        is_random = "generator" in attack.func.__kwdefaults__  # type: ignore[attr-defined]
        given = {"generator": derived_generator(device, 0, "start")} if is_random else {}
        return attack(target, x, y, **given)

    here, there = on_both(compute)
    assert torch.equal(here, there)


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_attack_in_bfloat16(gpu: Imitation, channels_last: bool) -> None:
    x, y = images("cuda")
    model = net().to("cuda").eval()
    if channels_last:
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        assert {member(x).dtype for member in model.members} == {torch.bfloat16}
        with frozen(model):  # weights are turned into bfloat16 once, not in each step
            kept = [block.frozen for block in model.members[0].blocks]
            assert {weight.dtype for block in kept for weight in (block.conv1, block.bias1, block.conv2)} == {
                torch.bfloat16
            }
        x_adv = attacks.pgd(model, x, y, eps=0.2, step_size=0.1, num_steps=2)
    assert isinstance(x_adv, OnGpu)
    assert x_adv.dtype == torch.float32
    assert 0.1 < float((x_adv - x).abs().max()) <= 0.2 + 1e-6


@pytest.mark.parametrize("attack", [attacks.ifgsm, attacks.pgd])
def test_steps_of_an_attack_do_not_wait_for_the_device(gpu: Imitation, attack: Any) -> None:
    model, (x, y) = net().to("cuda"), images("cuda")
    counts = []
    for num_steps in (1, 4):
        gpu.waits.clear()
        attack(model, x, y, eps=0.2, step_size=0.1, num_steps=num_steps)
        counts.append(len(gpu.waits))
    assert counts[0] == counts[1]


# Training


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "natural"},
        {"loss": "trades", "channels_last": True},
        {"attack_batch_norm": "train", "clamp_start": False, "reset_momentum": True},
        {"precision": "fp64"},
    ],
    ids=["pgd", "natural", "trades", "authors", "fp64"],
)
def test_training_is_that_of_the_cpu(tmp_path: Path, options: dict[str, Any]) -> None:
    config = dataclasses.replace(SHORT, **options)

    def compute(device: str) -> Tensor:
        model = net()
        train(model, digits(device), config, path=tmp_path / device)
        assert {value.device.type for value in model.state_dict().values()} == {device}
        return torch.cat([value.flatten() for value in model.parameters()])

    here, there = on_both(compute)
    assert torch.equal(here, there)
    trees = [checkpoint.load(tmp_path / device, kind="training") for device in ("cpu", "cuda")]
    assert [tree["device"] for tree in trees] == ["cpu", "cuda"]
    for name, weights in trees[0]["best"]["weights"].items():
        assert torch.equal(weights, trees[1]["best"]["weights"][name])


@pytest.mark.parametrize("loss", ["pgd", "trades", "natural"])
def test_training_in_bfloat16_and_then_in_float32(gpu: Imitation, loss: Any) -> None:
    """One process of the queue trains with one preset after another."""
    losses = {}
    for precision in ("bf16", "no"):
        config = dataclasses.replace(SHORT, loss=loss, precision=precision, channels_last=True)
        seen = set()
        model = net()
        model.members[1].register_forward_hook(lambda member, x, logits, seen=seen: seen.add(logits.dtype))
        losses[precision] = train(model, digits("cuda"), config).history[0].loss
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)


class Stop(Exception):
    pass


def test_a_stopped_training_goes_on_where_it_was(gpu: Imitation, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:
            raise Stop

    config = dataclasses.replace(SHORT, precision="bf16", channels_last=True)
    train(net(), digits("cuda"), config, path=tmp_path / "whole")
    with pytest.raises(Stop):
        train(net(), digits("cuda"), config, path=tmp_path / "parts", on_step=stop)
    half = checkpoint.load(tmp_path / "parts", kind="training")
    assert (half["step"], half["device"]) == (1, "cuda")
    train(net(), digits("cuda"), config, path=tmp_path / "parts")
    trees = [checkpoint.load(tmp_path / name, kind="training") for name in ("whole", "parts")]
    for kind in ("weights", "generators"):
        for name, tensor in trees[0][kind].items():
            assert torch.equal(tensor, trees[1][kind][name]), name
    assert load_model(tmp_path / "parts", device="cuda").weights.device.type == "cuda"


def test_a_training_step_moves_nothing(gpu: Imitation) -> None:
    """Two waits a batch would be one for the checks of an attack and one for a batch's place: only the first is due."""
    counts: list[int] = []
    config = dataclasses.replace(SHORT, loss="natural", select="last", batch_size=12)
    train(net(1), digits("cuda"), config, on_step=lambda done, total: counts.append(len(gpu.waits)))
    assert len(counts) >= 3
    assert len(set(counts[:-1])) == 1


# Evaluation


def test_evaluation_over_draws_and_transfer(tmp_path: Path) -> None:
    attack = partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=2)
    answers = {}

    def compute(device: str) -> Tensor:
        model, twin, (x, y) = net().to(device), net(noise="off").to(device), images(device)
        options = {"num_draws": 3, "batch_size": 5}
        through = partial(evaluate.through_eot, attack=attack, eot_draws=2)
        store = tmp_path / device
        scores = [
            evaluate.accuracy(model, x, y, **options),
            evaluate.robust_accuracy(model, x, y, through, store=store, **options),
            evaluate.robust_accuracy(model, x, y, through, store=store, **options),
            evaluate.transfer(twin, model, x, y, attack, **options),
            *evaluate.eot_sweep(model, x, y, attack, eot_draws=(1, 2), **options).values(),
        ]
        answers[device] = torch.stack([score.predictions for score in scores])
        assert all(score.labels.device.type == "cpu" for score in scores)
        return answers[device].to(device)

    here, there = on_both(compute)
    assert torch.equal(here, there)


def test_checks_of_an_evaluation(gpu: Imitation) -> None:
    codes = {finding.code for finding in evaluate.check(net().to("cuda"), *images("cuda"), num_steps=2)}
    assert {"random", "batch-dependent"} <= codes


# Studies


def test_weights_of_members() -> None:
    def compute(device: str) -> Tensor:
        model, (x, y) = net().to(device), images(device)
        found = [
            update_weights(model, x, y, lr=0.1, generator=derived_generator(device, 0, "weights")),
            learn_weights(model, x, y, signs="nonnegative", generator=derived_generator(device, 1, "weights")),
        ]
        return torch.stack([weights.cpu() for weights in (*found, model.weights.double())]).to(device)

    here, there = on_both(compute)
    torch.testing.assert_close(here, there)


def test_weights_that_training_learns(gpu: Imitation, tmp_path: Path) -> None:
    settings = Settings("digits", "digits", tmp_path, num_train=30, epochs=1, attack_steps=1, num_test=4, device="cuda")
    for learns in (True, False):
        training = TrainTask("ResNet8&En1ResNet8", 0, 0.1, learns_weights=learns)
        run_task(training, settings, lambda done, total: None)
        assert Job(training, settings).is_done()
    attack = EvaluateTask(training.model, 0, "fgsm", (training,), weights="optimal")
    run_task(attack, settings, lambda done, total: None)
    assert Job(attack, settings).is_done()


def test_the_queue(gpu: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "num_cores", lambda: 1)
    stage = Stage("digits", ("En2ResNet8",), ("nat", "cw", "transfer"), (0,), {"num_test": 4})
    for module in (reproduce, reproduce_queue, reproduce_results):
        monkeypatch.setattr(module, "ON_REQUEST", (stage,))
    monkeypatch.setitem(reproduce_queue.SETTINGS["digits"].options, "num_train", 30)  # type: ignore[arg-type]
    arguments = ["--settings", "digits", "--workers", "1", "--out", str(tmp_path), "--results", str(tmp_path / "lines")]
    synchronized: list[None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: synchronized.append(None))
    result = CliRunner().invoke(reproduce.app, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert len(synchronized) >= 5
    result = CliRunner().invoke(reproduce.app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 of 4 jobs done, 0 failed" in result.output
    assert "cuda (no GPU)" in (tmp_path / "lines" / "settings.json").read_text()


def test_a_process_reads_a_data_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def loaded(name: str, **options: Any) -> data.Dataset:
        read.append(name)
        return data.load(name, **options)

    monkeypatch.setattr(jobs, "_load", lru_cache(loaded))
    for num_test in (None, 7, 5, None):
        settings = Settings("digits", "digits", tmp_path, num_train=30, num_test=num_test)
        expected = data.load("digits", num_train=30, num_test=num_test)
        found = jobs.load_data(settings)
        assert found.fingerprint() == expected.fingerprint()
        assert len(found.test) == len(expected.test)
    assert read == ["digits"]


@pytest.mark.parametrize(("device", "num_processes"), [("cuda", 2), ("cpu", 1)])
def test_a_process_with_a_broken_gpu_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, num_processes: int
) -> None:
    """After an error of CUDA every other call in that process fails as well."""
    made: list[Any] = []

    class Process:
        def __init__(self, *_: Any) -> None:
            self.connection, self.theirs = Pipe()
            self.process, self.job, self.started = self, None, 0.0
            made.append(self)

        def start(self, job: Job) -> None:
            self.job = job
            self.theirs.send(None)

        def answer(self) -> tuple[Any, ...]:
            self.connection.recv()
            self.job = None
            return ("failed", torch.OutOfMemoryError("no memory")) if failed == [] else ("done", "as it should be")

        def terminate(self) -> None:
            pass

        def end(self) -> None:
            self.connection.close()
            self.theirs.close()

    failed: list[Job] = []
    finished: list[Job] = []
    monkeypatch.setattr(workers, "_Worker", Process)
    settings = Settings("digits", "digits", tmp_path, num_train=30)
    listed = [Job(TrainTask("ResNet8", seed, 0.1), settings) for seed in range(3)]
    queue = workers._Queue(list(listed), {job.path for job in listed}, float("inf"))
    workers._run_in_processes(
        queue,
        device,
        1,
        1,
        lambda *_: None,
        lambda job, outcome, seconds: finished.append(job),
        lambda job, error: failed.append(job),
    )
    assert (failed, finished) == (listed[:1], listed[1:])
    assert len(made) == num_processes
