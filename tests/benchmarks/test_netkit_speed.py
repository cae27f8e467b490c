"""Speed of noise, attacks and training against the authors' formulation and another library; printed, not asserted.

The candidates take turns, so that they share whatever else the machine is doing; ratios are of medians. On a busy
machine the CPU time is the steadier of the two clocks.
"""

import copy
import shutil
import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from authors import EPS, STEP, authors_model, plain_pgd
from torch import Tensor, nn

from netkit import attacks
from netkit.memory import keep_freed_memory
from netkit.models import EnResNet, en_resnet, resnet

BATCH = 64


@pytest.fixture(scope="module", params=["usual", "kept"], autouse=True)
def freed_memory(request: pytest.FixtureRequest) -> None:
    """Everything once with the C library's usual setting and once with `keep_freed_memory`, which cannot be undone."""
    if request.param == "kept" and not keep_freed_memory():
        pytest.skip("not a setting of this C library")
    print(f"\n== freed memory: {request.param}")


def compare(title: str, candidates: dict[str, Callable[[], object]], *, rounds: int = 7) -> None:
    """The first candidate is what the others are measured against."""
    clocks = {"wall": time.perf_counter, "CPU": time.process_time}
    seconds = {(name, clock): [] for name in candidates for clock in clocks}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                if turn > 0:
                    seconds[name, clock].append(read() - start[clock])
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    reference = next(iter(candidates))
    print(f"\n{title} ({torch.get_num_threads()} threads)")
    for name in candidates:
        columns = [
            f"{1e3 * medians[name, clock]:9.2f} ms {clock} {medians[reference, clock] / medians[name, clock]:6.2f}x"
            for clock in clocks
        ]
        print(f"  {name:<32}", *columns)


def batch(*, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)
    return (x.contiguous(memory_format=torch.channels_last) if channels_last else x), y


def channels_last(model: EnResNet) -> EnResNet:
    return model.to(memory_format=torch.channels_last)


def test_drawing_noise():
    like = torch.zeros(BATCH, 16, 32, 32)
    permuted = like.contiguous(memory_format=torch.channels_last)
    ours = {kind: en_resnet(8, noise=kind, seed=0).stream for kind in ("gaussian", "two_point")}
    candidates: dict[str, Callable[[], object]] = {
        "torch.randn_like": lambda: torch.randn_like(like),
        "torch.randn_like, channels_last": lambda: torch.randn_like(permuted),
        "gaussian": lambda: ours["gaussian"].draw(like, "gaussian"),
        "gaussian, channels_last": lambda: ours["gaussian"].draw(permuted, "gaussian"),
        "two_point": lambda: ours["two_point"].draw(like, "two_point"),
        "two_point, channels_last": lambda: ours["two_point"].draw(permuted, "two_point"),
    }
    compare(f"{like.numel():,} entries of noise", candidates, rounds=25)


def test_pgd_20_without_noise():
    model, permuted = resnet(20, seed=0).eval(), channels_last(resnet(20, seed=0)).eval()
    (x, y), (x_permuted, _) = batch(), batch(channels_last=True)
    library = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=20)
    options = {"eps": EPS, "step_size": STEP, "num_steps": 20}
    candidates: dict[str, Callable[[], object]] = {
        "torchattacks": lambda: library(x, y),
        "pgd": lambda: attacks.pgd(model, x, y, **options),
        "pgd, channels_last": lambda: attacks.pgd(permuted, x_permuted, y, **options),
    }
    compare("PGD-20 of a noise-free ResNet20", candidates, rounds=5)


def test_noisy_pgd_10():
    (x, y), (x_permuted, _) = batch(), batch(channels_last=True)
    options = {"eps": EPS, "step_size": STEP, "num_steps": 10}

    def ours(model: EnResNet, images: Tensor) -> Callable[[], object]:
        model.eval()
        return lambda: attacks.pgd(model, images, y, **options)

    theirs = authors_model(1).eval()
    candidates: dict[str, Callable[[], object]] = {
        "authors": lambda: plain_pgd(theirs, x, y, 10),
        "gaussian": ours(en_resnet(20, num_members=1, seed=0), x),
        "gaussian, channels_last": ours(channels_last(en_resnet(20, num_members=1, seed=0)), x_permuted),
        "two_point": ours(en_resnet(20, num_members=1, noise="two_point", seed=0), x),
        "two_point, channels_last": ours(
            channels_last(en_resnet(20, num_members=1, noise="two_point", seed=0)), x_permuted
        ),
        "no noise": ours(resnet(20, seed=0), x),
        "no noise, channels_last": ours(channels_last(resnet(20, seed=0)), x_permuted),
    }
    compare("PGD-10 of En1ResNet20", candidates, rounds=5)


def test_one_training_step_of_en2():
    (x, y), (x_permuted, _) = batch(), batch(channels_last=True)

    def step(model: EnResNet, craft: Callable[[EnResNet], Tensor]) -> Callable[[], object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        model.train()

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(craft(model)), y).backward()
            optimizer.step()

        return run

    def ours(images: Tensor) -> Callable[[EnResNet], Tensor]:
        return lambda model: attacks.pgd(model, images, y, eps=EPS, step_size=STEP, num_steps=10)

    candidates: dict[str, Callable[[], object]] = {
        "authors": step(authors_model(2), lambda model: plain_pgd(model, x, y, 10)),
        "gaussian": step(en_resnet(20, seed=0), ours(x)),
        "gaussian, channels_last": step(channels_last(en_resnet(20, seed=0)), ours(x_permuted)),
        "two_point, channels_last": step(channels_last(en_resnet(20, noise="two_point", seed=0)), ours(x_permuted)),
    }
    compare("Adversarial training step (PGD-10) of En2ResNet20", candidates, rounds=3)


class Stacked(nn.Module):
    """The members by torch.func.vmap over their stacked parameters, which cannot draw our noise."""

    def __init__(self, model: EnResNet) -> None:
        super().__init__()
        self.member = (copy.deepcopy(model.members[0]).to("meta"),)  # no submodule
        self.stack = torch.func.stack_module_state(list(model.members))

    def forward(self, x: Tensor) -> Tensor:
        def logits(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.member[0], (parameters, buffers), (x,))

        return torch.func.vmap(logits)(*self.stack).mean(0)


@pytest.mark.parametrize("noise", ["off", "gaussian"])
def test_members_in_a_loop_and_stacked(noise):
    (x, y), (x_permuted, _) = batch(), batch(channels_last=True)

    def ensemble() -> EnResNet:
        return en_resnet(20, num_members=3, noise=noise, seed=0).eval()

    def pgd(model: nn.Module, images: Tensor) -> Callable[[], object]:
        return lambda: attacks.pgd(model, images, y, eps=EPS, step_size=STEP, num_steps=3)

    candidates: dict[str, Callable[[], object]] = {
        "loop": pgd(ensemble(), x),
        "loop, channels_last": pgd(channels_last(ensemble()), x_permuted),
    }
    if noise == "off":
        candidates["stacked"] = pgd(Stacked(ensemble()).eval(), x)
    compare(f"PGD-3 of En3ResNet20, noise {noise}", candidates, rounds=3)


def test_torch_compile():
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    _, y = batch()
    x, _ = batch(channels_last=True)
    model = channels_last(resnet(20, seed=0)).eval()
    start = time.perf_counter()
    compiled = torch.compile(copy.deepcopy(model).requires_grad_(False), dynamic=False)

    class Opaque(nn.Module):
        """So that the attack leaves the compiled network as it is."""

        def forward(self, images: Tensor) -> Tensor:
            return compiled(images)

    def pgd(net: nn.Module) -> Callable[[], object]:
        return lambda: attacks.pgd(net, x, y, eps=EPS, step_size=STEP, num_steps=3)

    pgd(Opaque())()
    print(f"\ncompilation: {time.perf_counter() - start:.0f} s")
    compare(
        "PGD-3 of a noise-free ResNet20, channels_last", {"as it is": pgd(model), "compiled": pgd(Opaque())}, rounds=5
    )
