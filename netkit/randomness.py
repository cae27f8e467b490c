"""Seeds derived from what they are for, and the places where a model's noise is lent a generator or a seed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import nn

from netkit.models import EnResNet


def derived_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """An independent 63-bit seed for every (seed, purpose, counters); the same on every machine."""
    digest = hashlib.blake2b(repr((seed, purpose, *counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derived_generator(device: torch.device | str, seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A generator on `device`, seeded with `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *counters))


@contextlib.contextmanager
def noise_from(generator: torch.Generator, *models: nn.Module) -> Iterator[None]:
    """Let every noisy ensemble inside `models` draw from `generator`; their own come back after."""
    with contextlib.ExitStack() as stack:
        for model in models:
            for module in model.modules():
                if isinstance(module, EnResNet):
                    stack.enter_context(module.using_generator(generator))
        yield


@contextlib.contextmanager
def seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, of the CPU and of a CUDA `device`, inside the block; their states come back.

    For what takes no generator, as dropout or a torch.rand in a network of one's own.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
