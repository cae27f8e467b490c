"""Seeds and generators for every purpose, lent to models for a while, and a test whether a model is random."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netkit.checks import answer, check_seed
from netkit.models import evaluating
from netkit.noise import NoiseControls, noise_parts

_PROBE_IMAGES = 8
_PROBE_PASSES = 100


def derived_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """An independent 63-bit seed for every (seed, purpose, counters); the same on every machine."""
    digest = hashlib.blake2b(repr((check_seed(seed), purpose, *counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derived_generator(device: torch.device | str, seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A generator on `device`, seeded with `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *counters))


@contextlib.contextmanager
def noise_from(generator: torch.Generator, *models: nn.Module) -> Iterator[None]:
    """Lend `generator` to everything in `models` that takes one (`using_generator`); their own come back after.

    Noise that is fixed (`NoiseControls.fixed_noise`) stays fixed.
    """
    with contextlib.ExitStack() as stack:
        for model in models:
            for part in noise_parts(model):
                lend: Any = getattr(part, "using_generator", None)
                if lend is not None:
                    stack.enter_context(lend(generator))
        yield


@contextlib.contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python inside the block; their states come back.

    Dropout, or a torch.rand in a network of one's own, takes no other generator.
    """
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    generators = [torch.default_generator, *gpus]
    states = [generator.get_state() for generator in generators]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is this one that networks may use
    try:
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextlib.contextmanager
def repeatable(
    models: tuple[nn.Module, ...], device: torch.device | str, seed: int, purpose: str, *counters: int
) -> Iterator[None]:
    """Derive all randomness inside the block from (seed, purpose, counters); the states before come back after.

    It comes from the generators of `noise_from`, those of `seeded_globally`, and torch.Generators that are attributes
    of a module in `models`.
    """
    own = {id(value): value for model in models for value in generators_in(model)}
    states = [generator.get_state() for generator in own.values()]
    noise = noise_from(derived_generator(device, seed, purpose, *counters), *models)
    with noise, seeded_globally(derived_seed(seed, f"{purpose}, global", *counters)):
        for number, generator in enumerate(own.values()):
            generator.manual_seed(derived_seed(seed, f"{purpose}, own", *counters, number))
        try:
            yield
        finally:
            for generator, state in zip(own.values(), states, strict=True):
                generator.set_state(state)


def generators_in(model: nn.Module) -> Iterator[torch.Generator]:
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, torch.Generator))


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether passes over the same images give different logits, in eval mode.

    A hundred passes over up to eight of the images x (B, C, H, W), or fewer until two differ: a model that is random in
    one call of ten is missed with a chance of 3e-5, in one of fifty with 13%.
    """
    images = x[:: max(1, len(x) // _PROBE_IMAGES)][:_PROBE_IMAGES]
    if any(isinstance(part, NoiseControls) and part.stream.has_given_draws for part in noise_parts(model)):
        images = x  # which the draws are for
    with evaluating(model), torch.no_grad(), repeatable((model,), x.device, 0, "probe"):
        first = answer(model, images)
        scale = float(first.abs().max().nan_to_num(posinf=0.0))
        return not all(
            torch.allclose(model(images), first, rtol=1e-4, atol=1e-6 * scale, equal_nan=True)
            for _ in range(_PROBE_PASSES - 1)
        )


def changed_by_neighbours(model: nn.Module, x: Tensor, *, seed: int = 0) -> float | None:
    """The share of predictions that change with the images that share their batch, under the same draws, in eval mode.

    The first half of the images x (B, C, H, W), or one beside itself, is given other neighbours. None where no logits
    change, or where they do for the same batch, too, as of a model with a generator that is not reached from here.
    """
    first, second = (x, x) if len(x) == 1 else x.chunk(2)

    def answers(neighbours: Tensor) -> Tensor:
        with evaluating(model), torch.no_grad(), repeatable((model,), x.device, seed, "neighbours"):
            logits: Tensor = model(torch.cat([first, neighbours]))
        return logits[: len(first)]

    usual, others = answers(second), answers(1 - second)
    tolerance: dict[str, Any] = {
        "rtol": 1e-4,
        "atol": 1e-5 * float(usual.abs().max().nan_to_num(posinf=0.0)),
        "equal_nan": True,
    }
    if torch.allclose(usual, others, **tolerance) or not torch.allclose(usual, answers(second), **tolerance):
        return None
    return float((usual.argmax(1) != others.argmax(1)).double().mean())
