"""Accuracies of randomised models, attacked or not, with what one needs to believe them.

A noisy network answers differently each time, so every (adversarial) example is scored over several fresh noise draws,
and the per-example predictions are kept: `mean` is the accuracy of one draw, `vote` that of the plurality. Randomness
is drawn anew for every block of images from (seed, block), so that a result does not depend on where an evaluation was
interrupted.
"""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from netkit import attacks, checkpoint, parallel
from netkit.attacks.expectation import NotFiniteError, checked_images, logits_of, rounding, unwrapped
from netkit.checks import check_counts, check_seed, check_tensors
from netkit.identity import VERSION, UnidentifiedError, describe, describe_model
from netkit.intervals import Interval, clopper_pearson, wilson
from netkit.models import evaluating
from netkit.randomness import derived_generator, is_random, repeatable

Attack = Callable[..., Tensor]
"""`attack(model, x, y)` with images (B, C, H, W) in [0, 1] and labels (B,) gives adversarial images. An
attack that takes `generator` is given one. The model may be an `ExpectationOverTransformation`."""


@dataclass(frozen=True, repr=False)
class Score:
    """The answers of a model: `predictions` (num_draws, n) and true `labels` (n,), both int64 on the CPU.

    seconds: that an evaluation took, all runs that continued it together; None where that is not known.
    """

    predictions: Tensor
    labels: Tensor
    confidence: float = 0.95
    seconds: float | None = None

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

    def __repr__(self) -> str:
        low, high = self.interval.low, self.interval.high
        draws = f", {self.num_draws} draws each" if self.num_draws > 1 else ""
        return f"Score: {self.mean:.1%} right [{low:.1%}, {high:.1%}] at {self.confidence:.0%}, {self.n} images{draws}"

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


def worst_case(scores: Sequence[Score]) -> Score:
    """The score of the adversary who picks, for each image, the most harmful of the attacks scored.

    Without noise an image is right where no attack broke it. With noise, the least of several noisy shares would be
    less than any of them is in truth. So one half of the draws picks the attacks, and the other half scores them; then
    the halves change places. The picking half takes, for each image, the attack that is right least often among those
    that help: it begins with the one that is best over all images, and adds another as long as that lowers the accuracy
    where a part of its draws picks and the rest scores. So the expected mean is the accuracy under attacks that half
    the draws pick: never below that of the truly worst ones, and closer to it the more draws there are. A vote joins
    answers under up to two attacks. Where one attack alone leaves fewer right, as it may after few draws, that is the
    worst case; it is chosen by the draws that score it, but once for all images, which lowers the mean little.

    Raises ValueError for no scores, or for other labels or numbers of draws.
    """
    if not scores:
        raise ValueError("scores: expected at least one, got none")
    first = scores[0]
    for score in scores:
        if score.num_draws != first.num_draws or not torch.equal(score.labels, first.labels):
            raise ValueError(f"scores: expected the same images and {first.num_draws} draws each, got others")
    predictions = torch.stack([score.predictions for score in scores])
    right = (predictions == first.labels).double()
    half = first.num_draws // 2
    parts = [slice(0, half), slice(half, None)] if half else [slice(None)]
    picked = [
        predictions[_worst_attacks(right[:, judging]), scoring, torch.arange(first.n)].T
        for judging, scoring in zip(parts[::-1], parts, strict=True)
    ]
    found = Score(torch.cat(picked), first.labels, first.confidence)
    return min([found, *scores], key=lambda score: score.mean)


def _worst_attacks(right: Tensor) -> Tensor:
    """(attacks, draws, n) -> (n,): for each image the number of the attack to pick, as `worst_case` says."""
    shares = right.mean(1)
    one, other = (right[:, ::2].mean(1), right[:, 1::2].mean(1)) if right.shape[1] > 1 else (shares, shares)
    judging, scoring = torch.stack([one, other]), torch.stack([other, one])
    lowest, scored = torch.full_like(judging[:, 0], math.inf), torch.zeros_like(judging[:, 0])
    chosen: list[int] = []
    least = math.inf
    while True:
        trials = torch.where(judging < lowest.unsqueeze(1), scoring, scored.unsqueeze(1))  # (2, attacks, n)
        left, best = (float(each) for each in trials.mean((0, 2)).min(0))
        if left >= least:  # as it is for those chosen before, too
            return torch.tensor(chosen)[shares[chosen].argmin(0)]
        chosen.append(int(best))
        least, scored = left, trials[:, int(best)]
        lowest = torch.minimum(lowest, judging[:, int(best)])


def accuracy(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Score:
    """Score clean images x (N, C, H, W) in [0, 1] with labels y (N,).

    Options and errors are those of `robust_accuracy`.
    """
    return robust_accuracy(model, x, y, no_attack, **options)


def robust_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    eot_draws: int = 5,
    num_draws: int = 10,
    batch_size: int = 250,
    seed: int = 0,
    random: bool | None = None,
    eps: float | None = None,
    norm: attacks.Norm | None = None,
    oracle: nn.Module | None = None,
    store: Path | None = None,
    key: str | None = None,
    on_block: Callable[[int, int], None] | None = None,
    divided: bool = False,
) -> Score:
    """Attack each block of `batch_size` images, then classify the result under `num_draws` fresh noise draws.

    A random model is attacked through `ExpectationOverTransformation`, with gradients averaged over draws; a model
    without noise is attacked as it is, and scored once, as its draws would all agree. Models run in eval mode and get
    back the mode and the noise state they had. All randomness is derived from `seed`, that of models which draw from
    the global generators of torch, numpy or Python included; those come back as they were.

    x: (N, C, H, W) floating point in [0, 1]; y: (N,).
    attack: its result is checked: shape, type, finite pixels within [0, 1], and the ball where it is known.
    eot_draws: the number of draws that make one gradient of a random model under attack; the paper takes 5.
    random: whether the models are random; None: `netkit.randomness.is_random` looks.
    eps, norm: the ball that the attack must stay in, up to rounding. By default these are the values that the attack,
        as a `functools.partial`, binds to these names ("linf" without a norm); an eps of infinity checks none.
    oracle: attacked in place of `model` (section 4.1, blind attacks).
    store: a file for per-example predictions, written block by block, from which a later call with the same arguments
        continues. Arguments are the same if all that the numbers depend on is (`netkit.identity`). Where the attack or
        the model has no such description, as a lambda, nothing is stored, and a warning says so.
    key: a name in place of that description, with which predictions are stored: it must differ where that differs.
    on_block: `on_block(done, total)` is called after each block.
    divided: the processes of a distributed run, which all must call this, share the blocks, and each gets the whole
        result.

    Raises ValueError for images outside [0, 1], labels that do not match, counts below 1, a `store` of a divided
    evaluation, or an attack that returns anything but images in its ball; NotFiniteError where the model answers NaN or
    infinity; CheckpointError where `store` holds another evaluation.
    """
    x, y = checked(x, y)
    check_counts(eot_draws=eot_draws, num_draws=num_draws, batch_size=batch_size)
    eot_draws, num_draws, batch_size, seed = int(eot_draws), int(num_draws), int(batch_size), check_seed(seed)
    if divided and store is not None:
        raise ValueError(f"store: expected none for a divided evaluation, got {store}")
    attacked = model if oracle is None else oracle

    def looks_random(net: nn.Module) -> bool:
        return is_random(net, x) if random is None else random

    varies = num_draws > 1 and looks_random(model)  # with one draw of each kind nothing depends on the answer
    if attack is not no_attack:
        answered = attacked is model and num_draws > 1
        if varies if answered else eot_draws > 1 and looks_random(attacked):
            attacked = attacks.ExpectationOverTransformation(attacked, eot_draws)
    num_draws = num_draws if varies else 1
    ball = _ball_of(attack, eps, norm)
    blocks: dict[str, Tensor] = {}
    seconds: float | None = None if divided else 0.0
    identity: dict[str, Any] = {}
    if store is not None:
        try:
            identity = _identity(model, attacked, oracle, x, y, attack, key) | {
                "num_draws": num_draws,
                "batch_size": batch_size,
                "seed": seed,
            }
            blocks, seconds = _stored_blocks(store, identity)
        except UnidentifiedError as error:
            warnings.warn(f"{store}: nothing is stored, as {error}; key=... would name it", stacklevel=2)
            store = None
    starts = range(0, len(x), batch_size)
    rank, world = parallel.processes() if divided else (0, 1)
    with evaluating(model, attacked):
        for number, start in list(enumerate(starts))[rank::world]:
            if str(number) not in blocks:
                part = slice(start, start + batch_size)
                begun = time.perf_counter()
                blocks[str(number)] = _score_block(
                    model, attacked, x[part], y[part], attack, num_draws, ball, (seed, number)
                )
                seconds = None if seconds is None else seconds + time.perf_counter() - begun
                if store is not None:
                    tree = {"identity": identity, "labels": y, "num_blocks": len(starts), "blocks": blocks}
                    checkpoint.save(store, tree | {"seconds": seconds}, kind="evaluation")
            if on_block is not None:
                on_block(number + 1, len(starts))
    if divided:
        blocks = {name: block for part in parallel.gathered(blocks) for name, block in part.items()}
    return _joined(blocks, y, seconds)


def stored_score(store: Path) -> Score | None:
    """The finished evaluation that `robust_accuracy` left in `store`; None if absent or unfinished.

    Raises CheckpointError for a damaged or foreign file.
    """
    if not store.exists():
        return None
    tree = checkpoint.load(store, kind="evaluation")
    with checkpoint.contents_of(store):
        if len(tree["blocks"]) < tree["num_blocks"]:
            return None
        return _joined(tree["blocks"], tree["labels"], tree.get("seconds"))


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
    return {draws: robust_accuracy(model, x, y, attack, eot_draws=draws, **options) for draws in eot_draws}


def through_eot(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: Attack,
    eot_draws: int,
    random: bool | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`attack` with gradients averaged over `eot_draws` noise draws; a plain model is attacked as it is.

    For attacks outside `robust_accuracy`, which does this by itself. random: as there; an
    `ExpectationOverTransformation` says that its model is.
    """
    net = unwrapped(model)
    if random is None:
        random = net is not model or is_random(net, x)
    return perturbed(attack, attacks.ExpectationOverTransformation(net, eot_draws) if random else net, x, y, generator)


def _score_block(
    model: nn.Module,
    attacked: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    num_draws: int,
    ball: tuple[float, attacks.Norm],
    seed: tuple[int, int],
) -> Tensor:
    """Predictions (num_draws, B) int16 on the CPU for one block; `seed` is (seed, block number)."""
    generator = derived_generator(x.device, seed[0], "attack", seed[1])
    with repeatable((model, attacked), x.device, seed[0], "attack noise", seed[1]):
        x_adv = _checked_result(perturbed(attack, attacked, x.clone(), y, generator), x, *ball)
    num_labels = int(y.max()) + 1
    predictions = []
    with torch.no_grad(), repeatable((model,), x.device, seed[0], "score", seed[1]):
        for _ in range(num_draws):
            largest, prediction = logits_of(model, x_adv, num_labels).max(1)
            # NaN is the largest of all; a single logit may be minus infinity, the logarithm of no chance
            if not bool(largest.isfinite().all()):
                count = int((~largest.isfinite()).sum())
                raise NotFiniteError(
                    f"model: expected finite logits, got NaN or infinity for {count} of {len(x)} images"
                )
            predictions.append(prediction)
    return torch.stack(predictions).to("cpu", torch.int16)


def _ball_of(attack: Any, eps: float | None, norm: attacks.Norm | None) -> tuple[float, attacks.Norm]:
    """The radius and norm that are asked for, or those that a partial binds; any distance where neither says."""
    if norm not in (None, *get_args(attacks.Norm)):
        raise ValueError(f"norm: expected one of {get_args(attacks.Norm)}, got {norm!r}")
    if eps is not None and not eps >= 0:
        raise ValueError(f"eps: expected a number >= 0, got {eps}")
    while eps is None and isinstance(attack, partial):
        bound = attack.keywords
        bound_norm = bound.get("norm", "linf") if norm is None else norm
        if isinstance(bound.get("eps"), int | float) and bound_norm in get_args(attacks.Norm):
            eps, norm = bound["eps"], bound_norm
        attack = bound.get("attack", attack.func)
    return math.inf if eps is None else eps, "linf" if norm is None else norm


def _checked_result(x_adv: Any, x: Tensor, eps: float, norm: attacks.Norm) -> Tensor:
    """Adversarial images, clipped to [0, 1] where they are outside by rounding. Raises ValueError for anything else."""
    if not isinstance(x_adv, Tensor) or (x_adv.shape, x_adv.dtype, x_adv.device) != (x.shape, x.dtype, x.device):
        got = f"{x_adv.dtype} {tuple(x_adv.shape)} on {x_adv.device}" if isinstance(x_adv, Tensor) else type(x_adv)
        raise ValueError(f"attack: expected images {x.dtype} {tuple(x.shape)} on {x.device}, got {got}")
    try:
        x_adv = checked_images(x_adv)
    except ValueError as error:
        raise ValueError(f"attack: {str(error).removeprefix('x: ')}") from error
    change = (x_adv.double() - x.double()).flatten(1)
    farthest = float(torch.linalg.vector_norm(change, math.inf if norm == "linf" else 2, dim=1).max())
    allowed = eps + rounding(x.dtype) * (1 if norm == "linf" else change.shape[1] ** 0.5)
    if farthest > allowed:
        raise ValueError(f"attack: expected images within eps={eps:.6g} ({norm}), got one at distance {farthest:.6g}")
    return x_adv


def _identity(
    model: nn.Module,
    attacked: nn.Module,
    oracle: nn.Module | None,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    key: str | None,
) -> dict[str, Any]:
    """All that predictions depend on, besides counts and seed. Raises UnidentifiedError without a key for the rest."""

    def known(describe: Callable[[], str], otherwise: Callable[[], str | None]) -> str | None:
        try:
            return describe()
        except UnidentifiedError:
            if key is None:
                raise
            return otherwise()

    def model_identity(net: nn.Module) -> str | None:
        return known(lambda: describe_model(net), lambda: describe_model(net, tensors_only=True))

    is_wrapped = isinstance(attacked, attacks.ExpectationOverTransformation)
    kind = x.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return {
        "attack": known(lambda: describe(attack), lambda: None),
        "model": model_identity(model),
        "oracle": None if oracle is None else model_identity(oracle),
        "key": key,
        "images": checkpoint.fingerprint([x, y]),
        "layout": list(x.stride()),
        "device": kind,
        "autocast": str(torch.get_autocast_dtype(kind)) if is_cast else None,
        "eot_draws": attacked.num_draws if is_wrapped else None,
        "version": VERSION,
    }


def _joined(blocks: Mapping[str, Tensor], y: Tensor, seconds: float | None) -> Score:
    predictions = torch.cat([blocks[str(number)] for number in range(len(blocks))], dim=1)
    return Score(predictions.long(), y.cpu(), seconds=seconds)


def perturbed(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
    """What `attack` returns, given the generator if it takes one."""
    if "generator" in inspect.signature(attack).parameters:
        return attack(model, x, y, generator=generator)
    return attack(model, x, y)


def _stored_blocks(store: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], float | None]:
    """The blocks that are done, and the seconds that they took."""
    if not store.exists():
        return {}, 0.0
    tree = checkpoint.load(store, kind="evaluation")
    with checkpoint.contents_of(store):
        checkpoint.require(store, "evaluation", tree["identity"], identity)
        return dict(tree["blocks"]), tree.get("seconds")


def no_attack(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    return x


def checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels that can be scored; raises ValueError for others."""
    x = checked_images(x)
    if x.dim() != 4:
        raise ValueError(f"x: expected floating-point images (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    check_tensors(y=y)
    if y.shape != x.shape[:1]:
        raise ValueError(f"y: expected one label for each of {len(x)} images, got shape {tuple(y.shape)}")
    if y.is_floating_point() or y.dtype == torch.bool or int(y.min()) < 0:
        raise ValueError(f"y: expected integer labels >= 0, got {y.dtype} from {float(y.min()):.4g}")
    return x, y
