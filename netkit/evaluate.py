"""Accuracies of randomised models, attacked or not, with what one needs to believe them.

A noisy network answers differently each time, so every (adversarial) example is scored over several fresh noise draws,
and the per-example predictions are kept: `mean` is the accuracy of one draw, `vote` that of the plurality. Randomness
is drawn anew for every block of images from (seed, block), so that a result does not depend on where an evaluation was
interrupted.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from netkit import attacks, checkpoint, parallel
from netkit.intervals import Interval, clopper_pearson, paired_difference, wilson
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
    divided: bool = False,
) -> Score:
    """Score clean images x (N, C, H, W) in [0, 1] with labels y (N,); see `robust_accuracy`."""
    return robust_accuracy(
        model, x, y, no_attack, num_draws=num_draws, batch_size=batch_size, seed=seed, store=store, divided=divided
    )


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
    divided: bool = False,
) -> Score:
    """Attack each block of `batch_size` images, then classify the result under `num_draws` fresh noise draws.

    x: (N, C, H, W) floating point in [0, 1]; y: (N,). Models run in eval mode and get back the mode and the
    noise state they had. A model without noise is scored once, as its draws would all agree. `oracle`, where
    given, is attacked in place of `model` (section 4.1, blind attacks). `store` keeps per-example predictions
    block by block, and a later call with the same arguments continues from them. `on_block(done, total)` is
    called after each block. `divided`: the processes of a distributed run, which all must call this, share the
    blocks, and each gets the whole result.

    Raises ValueError for images outside [0, 1], labels that do not match, counts below 1 or a `store` of a
    divided evaluation; CheckpointError where `store` holds another evaluation.
    """
    _check_inputs(x, y)
    if num_draws < 1 or batch_size < 1:
        raise ValueError(f"num_draws and batch_size must be at least 1, got {num_draws} and {batch_size}")
    if divided and store is not None:
        raise ValueError(f"expected no store for a divided evaluation, got {store}")
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
    rank, world = parallel.processes() if divided else (0, 1)
    with _evaluating(model, attacked):
        for number, start in list(enumerate(starts))[rank::world]:
            if str(number) not in blocks:
                part = slice(start, start + batch_size)
                blocks[str(number)] = _score_block(model, attacked, x[part], y[part], attack, num_draws, (seed, number))
                if store is not None:
                    tree = {"identity": identity, "labels": y, "num_blocks": len(starts), "blocks": blocks}
                    checkpoint.save(store, tree, kind="evaluation")
            if on_block is not None:
                on_block(number + 1, len(starts))
    if divided:
        blocks = {name: block for part in parallel.gathered(blocks) for name, block in part.items()}
    return _joined(blocks, y)


def stored_score(store: Path) -> Score | None:
    """The finished evaluation that `robust_accuracy` left in `store`; None if absent or unfinished.

    Raises CheckpointError for a damaged or foreign file.
    """
    if not store.exists():
        return None
    tree = checkpoint.load(store, kind="evaluation")
    with checkpoint.contents_of(store):
        return _joined(tree["blocks"], tree["labels"]) if len(tree["blocks"]) == tree["num_blocks"] else None


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


@dataclass(frozen=True)
class Finding:
    """Something about a model or its evaluation that makes its numbers doubtful; `message` is one line."""

    code: Literal["inputs", "probabilities", "batch-dependent", "random", "zero-gradients", "masked-gradients"]
    message: str


def check(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float = 8 / 255, num_steps: int = 20, seed: int = 0
) -> list[Finding]:
    """Look for reasons not to believe the robust accuracy of `model`; an empty list means none was found.

    x: some hundred images (N, C, H, W), N >= 2; y: (N,). After Athalye et al. 2018 and Croce et al. 2020: images
    outside [0, 1], probabilities in place of logits, predictions that depend on the rest of the batch,
    predictions that differ between calls, gradients that vanish, and gradients that mislead: many steps worse
    than one, gradients worse than random noise, or survivors of a ball wide enough to erase every image.
    The last three are reported only where a paired 95% interval (a Wilson interval) excludes chance.
    """
    findings = []
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        findings.append(Finding("inputs", f"images reach from {low:.4g} to {high:.4g}, attacks assume [0, 1]"))
        x = x.nan_to_num().clamp(0, 1)
    with _evaluating(model), torch.no_grad(), noise_from(derived_generator(x.device, seed, "check"), model):
        logits = model(x)
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3):
        text = "the outputs are probabilities: their cross-entropy has hardly any gradient; return logits"
        findings.append(Finding("probabilities", text))
    if _is_batch_dependent(model, x, seed):
        text = "a prediction depends on which images share its batch; keep the evaluation's batches fixed"
        findings.append(Finding("batch-dependent", text))
    if is_random(model, x):
        text = "predictions differ between calls: attack through EOT and score over several draws"
        findings.append(Finding("random", text))
    share = _share_without_gradient(model, x, y, seed)
    if share > 0:
        text = f"the gradient is exactly zero for {100 * share:.0f}% of the images: nothing to climb"
        findings.append(Finding("zero-gradients", text))
    findings += [Finding("masked-gradients", text) for text in _misleading_gradients(model, x, y, eps, num_steps, seed)]
    return findings


def _is_batch_dependent(model: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether the first half's logits change with the second half, under the same noise draws."""
    half = len(x) // 2
    first, second = x[:half], x[half : 2 * half]
    answers = []
    with _evaluating(model), torch.no_grad():
        for neighbours in (second, 1 - second):
            with noise_from(derived_generator(x.device, seed, "neighbours"), model):
                answers.append(model(torch.cat([first, neighbours]))[:half])
    return not torch.allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def _share_without_gradient(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
    point = x.detach().clone().requires_grad_()
    with _evaluating(model), noise_from(derived_generator(x.device, seed, "gradient"), model):
        loss = nn.functional.cross_entropy(model(point), y)
        (gradient,) = torch.autograd.grad(loss, point)
    return float((gradient.flatten(1) == 0).all(1).double().mean())


def _misleading_gradients(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, num_steps: int, seed: int
) -> Iterator[str]:
    def corners(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        signs = torch.randint(0, 2, x.shape, generator=generator, device=x.device)
        return (x + eps * (2 * signs - 1)).clamp(0, 1)

    def scored(attack: Attack) -> Score:
        return robust_accuracy(model, x, y, partial(through_eot, attack=attack, eot_draws=5), seed=seed)

    many = scored(partial(attacks.ifgsm, eps=eps, step_size=eps / 4, num_steps=num_steps))
    one = scored(partial(attacks.fgsm, eps=eps))
    noise = scored(corners)
    wide = scored(partial(attacks.ifgsm, eps=1.0, step_size=0.1, num_steps=num_steps))
    for name, weaker in (("one step", one), ("random noise", noise)):
        if paired_difference([many.correct], [weaker.correct]).interval.low > 0:
            yield f"{num_steps} steps leave {100 * many.mean:.1f}% right, {name} only {100 * weaker.mean:.1f}%"
    with _evaluating(model), torch.no_grad():
        chance = 1 / model(x[:2]).shape[1]
    if wide.interval.low > chance:
        yield f"{100 * wide.mean:.1f}% stay right where every pixel may take any value (chance {100 * chance:.0f}%)"


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
    with checkpoint.contents_of(store):
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
