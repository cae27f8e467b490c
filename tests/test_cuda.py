"""The networks, attacks, training and evaluation on a GPU (`make test-cuda`), and the same tests on the CPU.

What has no randomness of its own is held against the CPU in float64, where nothing but the order of sums differs. What
is random draws other numbers on another device, and is held to what is true of any draws.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netkit import attacks, audit, checkpoint, data, evaluate, models
from netkit.attacks import ExpectationOverTransformation
from netkit.models import PreActBlock
from netkit.noise import ResidualNoise
from netkit.randomness import derived_generator, noise_from
from netkit.training import TrainConfig, load_model, train

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
ONLY_CUDA = pytest.mark.parametrize("device", [CUDA])
SHORT = TrainConfig(epochs=2, batch_size=24, eps=0.2, step_size=0.1, num_steps=2, schedule="one-cycle", lr=0.05, seed=7)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """cuDNN chooses the same algorithm each time, one without atomic sums."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def net(num_members: int = 2, **options: Any) -> models.EnResNet:
    return models.en_resnet(8, **{"num_members": num_members, "in_channels": 1, "width": 4, "seed": 1, **options})


def digits(device: str, *, augmented: bool = True) -> data.Dataset:
    return dataclasses.replace(data.load("digits", num_train=40, num_test=12, device=device), augmented=augmented)


def images(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    dataset = digits(device)
    return dataset.images(dataset.test.x, dtype), dataset.test.y


def draws_for(model: nn.Module, x: Tensor) -> list[Tensor]:
    """One draw (on the CPU) for each residual block, in the order in which they are asked for."""
    generator, draws = derived_generator("cpu", 0, "draws"), []
    layers = [module for module in model.modules() if isinstance(module, PreActBlock)]
    hooks = [
        layer.register_forward_hook(
            lambda _module, _inputs, out: draws.append(torch.randn(out.shape, generator=generator, dtype=out.dtype))
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return draws


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


# Networks


@DEVICES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"normalize": ([0.5], [0.2])},
        {"noise": "two_point", "noise_std": "sample"},
        {"noise_std": "constant", "sigma": 0.3, "average": "probabilities"},
    ],
    ids=["batch", "sample", "constant"],
)
def test_given_the_noise_a_network_and_its_gradients_are_those_of_the_cpu(
    device: str, options: dict[str, Any], channels_last: bool
) -> None:
    draws = draws_for(net(**options).double(), images("cpu", torch.float64)[0])

    def compute(device: str, memory_format: torch.memory_format) -> list[Tensor]:
        model = net(**options).to(device, torch.float64).to(memory_format=memory_format)
        x, y = images(device, torch.float64)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        with model.fixed_noise(draws):
            loss = nn.functional.cross_entropy(model(x), y)
        return [loss.detach(), *torch.autograd.grad(loss, [x, *model.parameters()])]

    expected = compute("cpu", torch.contiguous_format)
    found = compute(device, torch.channels_last if channels_last else torch.contiguous_format)
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == device
        assert_close(one, other)


@DEVICES
@pytest.mark.parametrize("kind", ["gaussian", "two_point"])
def test_noise_is_drawn_on_the_device_with_mean_0_and_variance_1(device: str, kind: Any) -> None:
    model = net(1, noise=kind, noise_std="constant", sigma=1.0).to(device)
    layer = next(module for module in model.modules() if isinstance(module, ResidualNoise))
    count = 40_000
    noise = layer(torch.zeros(4, 1, 100, 100, device=device)) / layer.size
    assert noise.device.type == device
    assert abs(float(noise.mean())) < 4 / count**0.5
    assert abs(float(noise.square().mean()) - 1) < (4 * (2 / count) ** 0.5 if kind == "gaussian" else 1e-6)


@DEVICES
def test_noise_repeats_from_a_generators_state(device: str) -> None:
    model, (x, _) = net().to(device), images(device)
    state = model.generator_state()
    first, second = model(x), model(x)
    model.set_generator_state(state)
    assert torch.equal(model(x), first)
    assert not torch.equal(first, second)
    with model.fixed_noise(3):
        assert torch.equal(model(x), model(x))


@ONLY_CUDA
def test_a_generator_of_another_device_is_refused(device: str) -> None:
    model, (x, y) = net().to(device), images(device)
    with model.using_generator(torch.Generator()), pytest.raises(ValueError, match="generator on cuda"):
        model(x)
    with pytest.raises(ValueError, match="generator on cuda"):
        attacks.pgd(model, x, y, eps=0.1, step_size=0.1, num_steps=1, generator=torch.Generator())


# Attacks


@DEVICES
@pytest.mark.parametrize(
    "attack",
    [
        partial(attacks.fgsm, eps=0.2),
        partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=3),
        partial(attacks.pgd, eps=0.2, step_size=0.1, num_steps=3, random_start=False, norm="l2", batch_norm="train"),
        partial(attacks.cw, num_steps=3),
        partial(attacks.cw, variant="l2", num_steps=3, num_searches=2),
        partial(attacks.cw, variant="authors", num_steps=3),
    ],
    ids=["fgsm", "ifgsm", "l2", "cw", "cw-l2", "cw-authors"],
)
def test_an_attack_without_randomness_is_that_of_the_cpu(device: str, attack: evaluate.Attack) -> None:
    def compute(device: str) -> Tensor:
        x, y = images(device, torch.float64)
        return attack(net(noise="off").to(device, torch.float64).eval(), x, y)

    found = compute(device)
    assert found.device.type == device
    assert_close(found, compute("cpu"), 1e-6)


@DEVICES
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_attack_through_eot_raises_the_loss_inside_the_ball(device: str, norm: Any) -> None:
    model, (x, y) = net().to(device).eval(), images(device)
    target = ExpectationOverTransformation(model, 3)
    generator = derived_generator(device, 0, "start")
    x_adv = attacks.pgd(
        target, x, y, eps=0.2, step_size=0.1, num_steps=5, num_restarts=2, norm=norm, generator=generator
    )
    change = (x_adv - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert x_adv.device.type == device
    assert float(size.max()) <= 0.2 + 1e-6
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    with torch.no_grad():
        before, after = (attacks.cross_entropy(model(at), y).mean() for at in (x, x_adv))
    assert after > before


@DEVICES
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_attack_in_bfloat16_does_what_one_in_float32_does(device: str, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, y = images(device)
    x = x.contiguous(memory_format=memory_format)
    model = net(noise="off").to(device).to(memory_format=memory_format).eval()
    attack = partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=3)
    seen: list[torch.dtype] = []
    hook = model.members[0].register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.dtype))
    with torch.autocast(device, torch.bfloat16):
        narrow = attack(model, x, y)
    hook.remove()
    wide = attack(model, x, y)
    assert set(seen) == {torch.bfloat16}
    assert narrow.dtype == torch.float32
    assert float((narrow - x).abs().max()) <= 0.2 + 1e-6
    with torch.no_grad():
        clean, against_narrow, against_wide = (
            float(attacks.cross_entropy(model(at), y).mean()) for at in (x, narrow, wide)
        )
    assert against_narrow - clean == pytest.approx(against_wide - clean, rel=0.1)


def count_waits(work: Callable[[], Any]) -> int:
    """How often the host waits for the device during `work`, as far as torch tells."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@ONLY_CUDA
@pytest.mark.parametrize("attack", [attacks.ifgsm, attacks.pgd])
def test_steps_of_an_attack_do_not_wait_for_the_device(device: str, attack: Callable[..., Tensor]) -> None:
    model, (x, y) = net().to(device), images(device)
    one, four = (
        count_waits(partial(attack, model, x, y, eps=0.2, step_size=0.1, num_steps=num_steps)) for num_steps in (1, 4)
    )
    assert one == four > 0


@ONLY_CUDA
def test_a_step_of_natural_training_waits_at_most_once_for_the_device(device: str) -> None:
    config = dataclasses.replace(SHORT, epochs=1, loss="natural", select="last")
    one, four = (
        count_waits(partial(train, net(1), digits(device), dataclasses.replace(config, batch_size=batch_size)))
        for batch_size in (36, 9)  # of 36 images
    )
    assert 0 <= four - one <= 3


# Training


class Stop(Exception):
    pass


@DEVICES
def test_training_without_randomness_is_that_of_the_cpu(device: str, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, loss="natural", precision="fp64")

    def compute(device: str) -> dict[str, Tensor]:
        model = net(noise="off")
        train(model, digits(device, augmented=False), config, path=tmp_path / device)
        return model.state_dict()

    found, expected = compute(device), compute("cpu")
    for name, tensor in found.items():
        assert tensor.device.type == device
        assert_close(tensor, expected[name])


@DEVICES
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("loss", ["pgd", "trades"])
def test_a_stopped_training_goes_on_where_it_was(device: str, precision: Any, loss: Any, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:  # in the second epoch
            raise Stop

    config = dataclasses.replace(SHORT, loss=loss, precision=precision, channels_last=True)
    train(net(), digits(device), config, path=tmp_path / "whole")
    with pytest.raises(Stop):
        train(net(), digits(device), config, path=tmp_path / "parts", on_step=stop)
    half = checkpoint.load(tmp_path / "parts", kind="training")
    assert (half["epoch"], half["step"], half["device"]) == (1, 1, device)
    train(net(), digits(device), config, path=tmp_path / "parts")
    whole, parts = (checkpoint.load(tmp_path / name, kind="training") for name in ("whole", "parts"))
    for name, state in whole["generators"].items():
        assert torch.equal(state, parts["generators"][name]), name
    for name, tensor in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][name], tensor, rtol=1e-5, atol=1e-6)
    assert load_model(tmp_path / "parts", device=device).weights.device.type == device


@ONLY_CUDA
def test_a_training_begun_on_the_cpu_goes_on_on_the_gpu(device: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        train(net(), digits("cpu"), SHORT, path=tmp_path / "run", on_step=stop)
    begun = checkpoint.load(tmp_path / "run", kind="training")
    model = net()
    result = train(model, digits(device), SHORT, path=tmp_path / "run")
    ended = checkpoint.load(tmp_path / "run", kind="training")
    assert (begun["device"], ended["device"]) == ("cpu", device)
    assert len(result.history) == SHORT.epochs
    assert all(parameter.device.type == device and bool(parameter.isfinite().all()) for parameter in model.parameters())


@ONLY_CUDA
@pytest.mark.parametrize(("precision", "loss"), [("no", "pgd"), ("no", "trades"), ("bf16", "pgd"), ("fp64", "natural")])
def test_steps_of_a_graph_are_those_made_one_by_one(device: str, precision: Any, loss: Any) -> None:
    """A run that gave its graph up would warn, and warnings are errors here."""
    config = dataclasses.replace(SHORT, epochs=4, precision=precision, loss=loss, select="last")

    def weights(*, graph: bool) -> list[Tensor]:
        model = net()
        train(model, digits(device), config, graph=graph)
        return [value.cpu() for value in model.state_dict().values()]

    for found, expected in zip(weights(graph=True), weights(graph=False), strict=True):
        assert_close(found, expected, 1e-9 if precision == "fp64" else 1e-3)


class Reading(nn.Module):
    """A network that looks at a value in each pass, and so cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits * float(x.mean() > -1)


@ONLY_CUDA
def test_a_network_that_cannot_be_recorded_is_trained_step_by_step(device: str) -> None:
    plain, model = Reading(), Reading()
    train(plain, digits(device), SHORT, graph=False)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        train(model, digits(device), SHORT)
    for found, expected in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert_close(found, expected.cpu(), 1e-3)


@ONLY_CUDA
@pytest.mark.parametrize("loss", ["pgd", "trades", "natural"])
def test_training_in_bfloat16_and_then_in_float32(device: str, loss: Any) -> None:
    """One process of the queue trains with one preset after another."""
    losses = {}
    for precision in ("bf16", "no"):
        config = dataclasses.replace(SHORT, loss=loss, precision=precision, channels_last=True)
        seen: set[torch.dtype] = set()
        model = net()
        model.members[1].register_forward_hook(lambda _module, _inputs, logits, seen=seen: seen.add(logits.dtype))
        losses[precision] = train(model, digits(device), config).history[0].loss
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)


# Evaluation


@DEVICES
def test_scores_of_a_network_without_noise_are_those_of_the_cpu(device: str) -> None:
    attack = partial(attacks.ifgsm, eps=0.2, step_size=0.1, num_steps=2)

    def compute(device: str) -> list[evaluate.Score]:
        model, oracle = (net(noise="off", seed=seed).to(device, torch.float64) for seed in (1, 2))
        x, y = images(device, torch.float64)
        return [
            evaluate.accuracy(model, x, y, batch_size=5),
            evaluate.robust_accuracy(model, x, y, attack, batch_size=5),
            evaluate.transfer(oracle, model, x, y, attack, batch_size=5),
        ]

    for found, expected in zip(compute(device), compute("cpu"), strict=True):
        assert found.labels.device.type == found.predictions.device.type == "cpu"
        assert torch.equal(found.predictions, expected.predictions)


@DEVICES
def test_scores_of_a_noisy_network_repeat_and_are_stored(device: str, tmp_path: Path) -> None:
    model, (x, y) = net().to(device), images(device)
    attack = partial(
        evaluate.through_eot, attack=partial(attacks.pgd, eps=0.2, step_size=0.1, num_steps=2), eot_draws=2
    )
    score = partial(evaluate.robust_accuracy, model, x, y, attack, num_draws=3, batch_size=5)
    first, stored, again = score(store=tmp_path / "score"), score(store=tmp_path / "score"), score()
    assert first.predictions.shape == (3, 12)
    assert torch.equal(stored.predictions, first.predictions)
    assert torch.equal(again.predictions, first.predictions)


@DEVICES
def test_an_audit_runs_on_every_device(device: str) -> None:
    report = audit(net().to(device), *images(device), eps=0.2, num_draws=2, eot_draws=(1, 2))
    assert report.is_random
    assert "batch-dependent" in {finding.code for finding in report.findings}


@DEVICES
def test_a_generator_lent_for_the_noise_gives_one_answer(device: str) -> None:
    model, (x, _) = net().to(device), images(device)
    answers = []
    for _ in range(2):
        with noise_from(derived_generator(device, 0, "noise"), model):
            answers.append(model(x))
    assert torch.equal(*answers)
