"""Accuracies of randomised models, attacked or not, with what one needs to believe them.
 A noisy network answers differently each time, so every (adversarial) example is scored over several fresh
noise draws, and the per-example predictions are kept: `mean` is the accuracy of one draw, `vote` that of the
plurality. Randomness is drawn anew for every block of images from (seed, block), so that a result does not
depend on where an evaluation was interrupted.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netkit import attacks, checkpoint
from netkit.intervals import Interval, clopper_pearson, wilson
from netkit.randomness import derived_generator, noise_from

Attack = Callable[..., Tensor]
"""`attack(model, x, y)` with images (B, C, H, W) in [0, 1] and labels (B,) gives adversarial images. An
attack that takes `generator` is given one."""


@dataclass(frozen=True)
class Score:
    """What a model answered: `predictions` (num_draws, n) and true `labels` (n,), both int64 on the CPU."""

    predictions: Tensor
    labels: Tensor
    confidence: float = 0.95

    @property
    def n(self) -> int:
        return self.predictions.shape[1]

    @property
    def num_draws(self) -> int:
        return self.predictions.shape[0]

    @property
    def correct(self) -> Tensor:
        """(n,) float64: the share of draws in which each example was classified correctly."""
        return (self.predictions == self.labels).double().mean(0)

    @property
    def voted(self) -> Tensor:
        """(n,) bool: whether the plurality over draws is right; a tie goes to the smallest label."""
        votes = nn.functional.one_hot(self.predictions).sum(0)
        return votes.argmax(1) == self.labels

    @property
    def mean(self) -> float:
        """Accuracy of a single draw, averaged over draws."""
        return float(self.correct.mean())

    @property
    def vote(self) -> float:
        """Accuracy of the plurality vote over draws."""
        return float(self.voted.double().mean())

    @property
    def interval(self) -> Interval:
        """Wilson's interval for `mean`, counting images, not draws (averaging draws can only narrow it)."""
        return wilson(float(self.correct.sum()), self.n, confidence=self.confidence)

    @property
    def vote_interval(self) -> Interval:
        """Clopper and Pearson's interval for `vote`."""
        return clopper_pearson(int(self.voted.sum()), self.n, confidence=self.confidence)

    def summary(self) -> dict[str, Any]:
        """The numbers that travel together, for JSON."""
        return {
            "mean": self.mean,
            "interval": [self.interval.low, self.interval.high],
            "vote": self.vote,
            "vote_interval": [self.vote_interval.low, self.vote_interval.high],
            "confidence": self.confidence,
            "n": self.n,
            "num_draws": self.num_draws,
        }


def accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    num_draws: int = 10,
    batch_size: int = 250,
    seed: int = 0,
    store: Path | None = None,
) -> Score:
    """Score clean images x (N, C, H, W) in [0, 1] with labels y (N,); see `robust_accuracy`."""
    return robust_accuracy(model, x, y, no_attack, num_draws=num_draws, batch_size=batch_size, seed=seed, store=store)


def robust_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    num_draws: int = 10,
    batch_size: int = 250,
    seed: int = 0,
    oracle: nn.Module | None = None,
    store: Path | None = None,
    on_block: Callable[[int, int], None] | None = None,
) -> Score:
    """Attack each block of `batch_size` images, then classify the result under `num_draws` fresh noise draws.

    x: (N, C, H, W) floating point in [0, 1]; y: (N,). Models run in eval mode and get back the mode and the
    noise state they had. A model without noise is scored once, as its draws would all agree. `oracle`, where
    given, is attacked in place of `model` (section 4.1, blind attacks). `store` keeps per-example predictions
    block by block, and a later call with the same arguments continues from them. `on_block(done, total)` is
    called after each block.

    Raises ValueError for images outside [0, 1], labels that do not match or counts below 1; CheckpointError
    where `store` holds another evaluation.
    """
    _check_inputs(x, y)
    if num_draws < 1 or batch_size < 1:
        raise ValueError(f"num_draws and batch_size must be at least 1, got {num_draws} and {batch_size}")
    attacked = model if oracle is None else oracle
    num_draws = num_draws if is_random(model, x[:2]) else 1
    blocks: dict[str, Tensor] = {}
    identity: dict[str, Any] = {}
    if store is not None:
        identity = {
            "attack": attack_name(attack),
            "model": checkpoint.fingerprint(model.state_dict().values()),
            "oracle": None if oracle is None else checkpoint.fingerprint(oracle.state_dict().values()),
            "images": checkpoint.fingerprint([x, y]),
            "num_draws": num_draws,
            "batch_size": batch_size,
            "seed": seed,
        }
        blocks = _stored_blocks(store, identity)
    starts = range(0, len(x), batch_size)
    with _evaluating(model, attacked):
        for number, start in enumerate(starts):
            if str(number) not in blocks:
                part = slice(start, start + batch_size)
                blocks[str(number)] = _score_block(model, attacked, x[part], y[part], attack, num_draws, (seed, number))
                if store is not None:
                    tree = {"identity": identity, "labels": y, "num_blocks": len(starts), "blocks": blocks}
                    checkpoint.save(store, tree, kind="evaluation")
            if on_block is not None:
                on_block(number + 1, len(starts))
    return _joined(blocks, y)


def stored_score(store: Path) -> Score | None:
    """The finished evaluation that `robust_accuracy` left in `store`; None if absent or unfinished.

    Raises CheckpointError for a damaged or foreign file.
    """
    if not store.exists():
        return None
    tree = checkpoint.load(store, kind="evaluation")
    if len(tree["blocks"]) < tree["num_blocks"]:
        return None
    return _joined(tree["blocks"], tree["labels"])


def transfer(oracle: nn.Module, target: nn.Module, x: Tensor, y: Tensor, attack: Attack, **options: Any) -> Score:
    """Blind attack (Table 3): adversarial images of `oracle`, classified by `target`.

    Options and errors are those of `robust_accuracy`.
    """
    return robust_accuracy(target, x, y, attack, oracle=oracle, **options)


def eot_sweep(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    eot_draws: Sequence[int] = (1, 5, 20, 50),
    **options: Any,
) -> dict[int, Score]:
    """Robust accuracy against the gradient averaged over 1, 5, 20, 50 noise draws (section 4).

    A defence that owes its robustness to noisy gradients loses it as the number of draws grows. Options and
    errors are those of `robust_accuracy`.
    """
    return {
        draws: robust_accuracy(model, x, y, partial(through_eot, attack=attack, eot_draws=draws), **options)
        for draws in eot_draws
    }


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether two passes over the same images x (B, C, H, W) give different logits."""
    with _evaluating(model), torch.no_grad(), noise_from(derived_generator(x.device, 0, "probe"), model):
        return not torch.allclose(model(x), model(x), rtol=1e-4, atol=1e-6)


def through_eot(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: Attack,
    eot_draws: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`attack` with gradients averaged over `eot_draws` noise draws; a plain model is attacked as it is."""
    if not is_random(model, x[:2]):
        return _perturbed(attack, model, x, y, generator)
    eot = attacks.ExpectationOverTransformation(model, eot_draws)
    return _perturbed(attack, eot, x, y, generator)


def attack_name(attack: Attack) -> str:
    """A name that holds the attack's options, for the identity of a stored evaluation."""
    if isinstance(attack, partial):
        positional = [attack_name(part) if callable(part) else repr(part) for part in attack.args]
        named = [
            f"{key}={attack_name(value) if callable(value) else repr(value)}"
            for key, value in sorted(attack.keywords.items())
        ]
        return f"{attack_name(attack.func)}({', '.join([*positional, *named])})"
    return getattr(attack, "__qualname__", repr(attack))


def _score_block(
    model: nn.Module,
    attacked: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    num_draws: int,
    seed: tuple[int, int],
) -> Tensor:
    """Predictions (num_draws, B) int16 on the CPU for one block; `seed` is (seed, block number)."""
    generator = derived_generator(x.device, seed[0], "attack", seed[1])
    with noise_from(derived_generator(x.device, seed[0], "attack noise", seed[1]), model, attacked):
        x_adv = _perturbed(attack, attacked, x, y, generator)
    predictions = []
    with torch.no_grad(), noise_from(derived_generator(x.device, seed[0], "score", seed[1]), model):
        for _ in range(num_draws):
            predictions.append(model(x_adv).argmax(1))
    return torch.stack(predictions).to("cpu", torch.int16)


def _joined(blocks: Mapping[str, Tensor], y: Tensor) -> Score:
    predictions = torch.cat([blocks[str(number)] for number in range(len(blocks))], dim=1)
    return Score(predictions.long(), y.cpu())


def _perturbed(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
    if "generator" in inspect.signature(attack).parameters:
        return attack(model, x, y, generator=generator)
    return attack(model, x, y)


def _stored_blocks(store: Path, identity: Mapping[str, Any]) -> dict[str, Tensor]:
    if not store.exists():
        return {}
    tree = checkpoint.load(store, kind="evaluation")
    checkpoint.require(store, "evaluation", tree["identity"], identity)
    return dict(tree["blocks"])


def no_attack(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    return x


@contextlib.contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each model gets back the mode it had."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _check_inputs(x: Tensor, y: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"expected floating-point images (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    if y.shape != x.shape[:1] or len(x) == 0:
        raise ValueError(f"expected one label for each of {len(x)} images, got shape {tuple(y.shape)}")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"expected images in [0, 1], got values from {low:.4g} to {high:.4g}")
