"""A whole training step: what it asks of a GPU, counted on the CPU, and what it takes on a GPU where there is one."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from authors import authors_model, plain_pgd
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from netkit import data, en_resnet, train
from netkit.attacks.expectation import without_reading
from netkit.metrics import StepRecord
from netkit.training import TrainConfig

NUM_STEPS, BATCH = 10, 128
COUNTED = 8  # images a batch where operations are counted, which are as many for more


def authors_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """The released code's step, which reads the loss and the number of right answers each time."""
    x_adv = plain_pgd(model, x, y, NUM_STEPS)
    optimizer.zero_grad()
    logits = model(x_adv)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    optimizer.step()
    loss.item()
    logits.argmax(1).eq(y).sum().item()


def images(num_batches: int, device: str, batch: int = BATCH) -> data.Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (num_batches * batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.randint(10, (len(x),), generator=generator)
    split = data.Split(x.to(device), y.to(device))
    few = data.Split(split.x[:2], split.y[:2])
    return data.Dataset("random", split, few, few, tuple("0123456789"), max_value=255, augmented=True)


class Operations(TorchDispatchMode):
    """Counts the operations that start something on the device, by name; a value read is a `_local_scalar_dense`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.name():
            self.counts[func.name().removeprefix("aten::").split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def one_more_step(run: Callable[[int], object]) -> Counter[str]:
    """The operations of a third step."""
    counts = []
    for num_steps in (2, 3):
        with Operations() as operations:
            run(num_steps)
        counts.append(operations.counts)
    return counts[1] - counts[0]


def test_operations_of_a_training_step():
    def authors(num_steps: int) -> None:
        dataset, model = images(1, "cpu", COUNTED), authors_model(2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        for _ in range(num_steps):
            authors_step(model, optimizer, dataset.images(dataset.train.x), dataset.train.y)

    def ours(num_steps: int) -> None:
        config = TrainConfig(epochs=1, num_steps=NUM_STEPS, batch_size=COUNTED, select="last", seed=0)
        with without_reading():  # as on a GPU
            train(en_resnet(20, seed=0), images(num_steps, "cpu", COUNTED), config)

    print("\none step of En2ResNet20 with PGD-10")
    for name, run in (("authors", authors), ("itoflow", ours)):
        counts = one_more_step(run)
        reads = counts.pop("_local_scalar_dense", 0)
        most = ", ".join(f"{count} {name}" for name, count in counts.most_common(12))
        print(f"  {name}: {counts.total():,} operations, {reads} values read; {most}")


def test_training_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    dataset, num_steps = images(60, "cuda"), 60
    print(f"\nEn2ResNet20 with PGD-10, fp32, {torch.cuda.get_device_name()}, images a second")
    model = authors_model(2).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    started = 0.0
    for step in range(num_steps):
        if step == num_steps // 2:
            torch.cuda.synchronize()
            started = time.perf_counter()
        part = slice(step * BATCH, (step + 1) * BATCH)
        authors_step(model, optimizer, dataset.images(dataset.train.x[part]), dataset.train.y[part])
    torch.cuda.synchronize()
    reference = (num_steps // 2) * BATCH / (time.perf_counter() - started)
    print(f"  {'authors':<34}{reference:9,.0f}")
    for name, options, graph in (
        ("one by one", {}, False),
        ("graph", {}, True),
        ("graph, channels_last", {"channels_last": True}, True),
        ("graph, channels_last, bf16", {"channels_last": True, "precision": "bf16"}, True),
    ):
        times: list[float] = []

        def note(record: object, times: list[float] = times) -> None:
            if isinstance(record, StepRecord) and record.step in (num_steps // 2, num_steps):
                torch.cuda.synchronize()
                times.append(time.perf_counter())

        config = TrainConfig(epochs=1, num_steps=NUM_STEPS, batch_size=BATCH, select="last", seed=0, **options)
        train(en_resnet(20, seed=0), dataset, config, callbacks=[note], graph=graph)
        speed = (num_steps // 2) * BATCH / (times[1] - times[0])
        print(f"  {name:<34}{speed:9,.0f} {speed / reference:6.2f}x")
