"""A noisy network's prediction as a Monte Carlo estimate: mean, error, number of draws, and when to stop (Eq. 14).

`ensemble_estimate` averages f = softmax over noise draws of any random model: netkit's networks, those with noise from
`inject_noise`, those of `bridge.flow`, and any other whose passes differ. Three ways to choose the number of draws:

- `num_draws`, the same for every image.
- `target_error`: each image drops out once the interval of every class has the half-width asked for.
- `stop_when_decided`: each image drops out once its class is certain, however often one looks. For every class k bets
  are placed against "k has the largest mean probability", whose wealth is a supermartingale that reaches 1/α with
  probability at most α (Ville; Waudby-Smith and Ramdas 2024). A class whose bet has reached 1/α is out, and the image
  is decided when one is left. As only the truly largest class can be excluded by mistake, there is no correction for
  the number of classes.

Intervals for draws in [0, 1] are those of bets on them (`bridge.betting`), which hold whatever the distribution and for
each of the three. Student's t, its skewness taken out, does not where probabilities are next to 0 or 1: of a promised
95% it covered 91% for softmax of a logit N(-8, 2²) and 200 draws, 89% for 50, and 77% for 50 draws of which 3% jump
from 0.02 to 0.98; nothing shows that in draws among which none jumped. The bets covered at least 99% for all of 25 such
laws, with 10, 20, 50 and 200 draws. The price is width: 1.5 times Student's where 200 draws have a deviation of 0.2,
and where next to nothing varies about 5 divided by the number of draws, as no fewer would rule out rare large ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import scipy
import torch
from torch import Tensor, nn

from bridge.betting import LargestBets, MeanBets, draws_needed, interval
from bridge.control import ControlledDraws, NoiseExpansion, draw_cost, expansion_cost, probe_control, probe_cost
from bridge.draws import Draws, Output, batch_dependence
from netkit.checks import check_tensors, check_whole
from netkit.models import evaluating
from netkit.noise import noise_parts
from netkit.randomness import is_random, repeatable

_PROBE_IMAGES = 16
_PROBE_SHARE = 0.1  # of the passes sure to be made: the most that is spent on finding out whether a control pays
_MARGIN = 3  # what a control must promise to save: a short probe misses the tails, and promised up to 3 times too much
_CONTROLLED_DRAWS = 200  # with fewer the heavy tails that a control leaves make intervals too short
_REACH = 3.0  # deviations of the control beyond which it is cut off where draws have to be bounded
_GROWTH = 8  # draws made already for each that a pass may hold: the most that stopping overshoots is one in so many
_DOUBTFUL = 0.3  # skewness / √n, from which on Student's t covers too little
_ROUNDING = 1e-6  # by which float32 probabilities may leave [0, 1]


def softmax(logits: Tensor) -> Tensor:
    """f of Eq. 14."""
    return logits.softmax(-1)


def values(outputs: Tensor) -> Tensor:
    """The outputs as they are, for models that return f itself."""
    return outputs


IntervalKind = Literal["bets", "student"]


class IntervalWarning(UserWarning):
    """An interval covers less than it says."""


@dataclass(frozen=True, eq=False)
class EnsembleEstimate:
    """Mean predictions of B images in K classes, with their errors.

    mean, standard_deviation, skewness: (B, K) over draws, float64; the latter two are those of one draw (of one draw
        less the control, where one was used).
    num_draws: (B,) draws behind each image; cost: passes of one image through the network, in all.
    decided: (B,) whether early stopping excluded all classes but one; all False without it.
    controlled: whether the first-order control was used.
    bets: for draws in [0, 1], what became of the bets for the interval (B, K, 4), as `bridge.betting` keeps them.
    """

    mean: Tensor
    standard_deviation: Tensor
    skewness: Tensor
    num_draws: Tensor
    decided: Tensor
    cost: int
    controlled: bool
    bets: Tensor | None = None

    @property
    def standard_error(self) -> Tensor:
        """(B, K), of the mean."""
        return self.standard_deviation / self.num_draws.unsqueeze(-1).sqrt()

    @property
    def prediction(self) -> Tensor:
        """(B,) int64: the class of largest mean."""
        return self.mean.argmax(-1)

    @property
    def doubtful(self) -> Tensor:
        """(B, K) where Student's interval is not to be believed: draws too few for their skewness, or all the same."""
        skew = self.skewness / self.num_draws.unsqueeze(-1).sqrt()
        still = self.standard_deviation <= _ROUNDING * self.mean.abs()
        return (skew.abs() > _DOUBTFUL) | still

    def confidence_interval(self, level: float = 0.95, *, kind: IntervalKind | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper ends (B, K).

        kind: "bets", the default where draws are known to lie in [0, 1], covers the mean with at least the probability
            `level` whatever the distribution, and however many draws early stopping made. It is not centred on `mean`.
            With `target_error` it is, at the level asked for, no wider than twice the target, but for images that
            `max_draws` cut short. "student", the default otherwise and for a fixed number of draws under a control, is
            Student's t with the skewness taken out (Hall 1992, cubic transformation), narrower and right for many draws
            of one kind: on softmax of logits N(-2..0.5, 1..3²) within 1.5 points of 95% from 50 draws on, with 200
            under a control. Rare large draws that none of them shows are not in it, and early stopping is not accounted
            for. IntervalWarning where it is `doubtful`.

        Raises ValueError unless 0 < level < 1, or for "bets" where there are none.
        """
        quantile = _student(level, self.num_draws).unsqueeze(-1)
        if self._kind(kind) == "bets":
            assert self.bets is not None
            return interval(self.bets, self.mean, level)
        if share := float(self.doubtful.double().mean()):
            text = f"{share:.1%} of the intervals are of draws too few for their skewness, or that were all the same, "
            warnings.warn(text + "and may cover less than they say: see `doubtful`", IntervalWarning, stacklevel=2)
        skew = self.skewness / self.num_draws.unsqueeze(-1).sqrt()
        low, high = (self.mean - self.standard_error * _unskewed(q, skew) for q in (quantile, -quantile))
        return low, high

    def draws_for(self, target_error: float, *, level: float = 0.95, kind: IntervalKind | None = None) -> Tensor:
        """(B,) draws that a half-width of `target_error` needs for every class, judged by the variance seen so far.

        kind: of the interval, as for `confidence_interval`.
        """
        if not target_error > 0:
            raise ValueError(f"target_error: expected a positive half-width, got {target_error}")
        quantile = _student(level, self.num_draws)
        if self._kind(kind) == "bets":
            variance = self.standard_deviation.square()
            needed = draws_needed(variance, 0.0, target_error, level, mean=self.mean).max(-1).values
        else:
            needed = (quantile * self.standard_deviation.max(-1).values / target_error).square()
        return needed.ceil().clamp_min(2).long()

    def _kind(self, kind: IntervalKind | None) -> IntervalKind:
        if kind not in (None, *get_args(IntervalKind)):
            raise ValueError(f"kind: expected one of {get_args(IntervalKind)}, got {kind!r}")
        if kind == "bets" and self.bets is None:
            raise ValueError("kind: expected 'student', as no bets were placed on these draws, got 'bets'")
        return kind or ("student" if self.bets is None else "bets")


def ensemble_estimate(
    model: nn.Module,
    x: Tensor,
    *,
    num_draws: int = 100,
    target_error: float | None = None,
    stop_when_decided: bool = False,
    level: float = 0.95,
    output: Output = softmax,
    control: bool | Literal["auto"] = False,
    batch_size: int = 250,
    max_draws: int = 100_000,
    generator: torch.Generator,
) -> EnsembleEstimate:
    """Average the model's predictions for x (B, ...) over its noise, in eval mode and without gradients.

    num_draws: for every image; with `stop_when_decided` the most that an image gets.
    target_error: half-width of the interval at `level` for every class of every image; replaces num_draws, and takes
        `max_draws` at most. Like early stopping for outputs in [0, 1] alone.
    stop_when_decided: drop each image once its class is certain at `level`, valid however often one looks.
    output: from the model's result (B, K) to the values that are averaged; in [0, 1] unless num_draws is fixed. Of
        another function than `softmax` that is known with `target_error` or `stop_when_decided` only, so that for a
        fixed number of draws its interval is Student's.
    control: subtract the first-order expansion in the noise (`bridge.control`), whose mean is known. It costs K
        backward passes an image and the memory of K times the outputs of all blocks, which is why it is not the
        default. "auto" subtracts it where it lowers variance times cost, judged on a few images whose draws are not
        used again, for a tenth of the passes that are sure to be made and one more. "auto" does without it for
        `num_draws` below 200, as the draws left have heavier tails; with early stopping, which bets on bounded draws;
        and for models that have no expansion.
    batch_size: images a pass. Fewer images are repeated up to so many, for several draws in one pass, where an image's
        answer depends on nothing but itself and its own noise (`bridge.draws`).
    generator: seeds all randomness of the model, that of torch's global generators included; these are as they were
        after. A model without noise of netkit's is random by what it draws in eval mode, where nn.Dropout is off.

    Raises ValueError for counts that do not fit, options that exclude each other, outputs outside [0, 1] where they may
    not be, a model that is not random, whose answers depend on the rest of the batch where images would drop out of it,
    or whose output is the same for different noise.
    """
    check_tensors(x=x)
    check_whole(num_draws=num_draws, batch_size=batch_size, max_draws=max_draws)
    if num_draws < 2 or batch_size < 1:
        raise ValueError(f"num_draws, batch_size: expected at least 2 and 1, got {num_draws} and {batch_size}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    if not isinstance(control, bool) and control != "auto":  # 1 and np.True_ equal True and would pass for "auto" below
        raise ValueError(f"control: expected True, False or 'auto', got {control!r}")
    if stop_when_decided and (target_error is not None or control is True):
        raise ValueError("stop_when_decided: expected neither target_error nor control=True beside it")
    if target_error is not None and not target_error > 0:
        raise ValueError(f"target_error: expected a positive half-width, got {target_error}")
    if target_error is not None and max_draws < 2:
        raise ValueError(f"max_draws: expected at least 2, got {max_draws}")
    if not any(hasattr(part, "using_generator") for part in noise_parts(model)) and not is_random(model, x):
        raise ValueError(
            f"model: expected a random one, got {type(model).__name__}, whose passes in eval mode give the same; "
            "netkit.inject_noise gives it noise"
        )
    dropping = target_error is not None or stop_when_decided
    if dropping and (dependence := batch_dependence(model)) is not None:
        raise ValueError(f"model: {dependence}, while images drop out of the batch once done")
    target = None if target_error is None else _Target(target_error, level, max_draws)
    bounded = dropping or output is softmax
    if dropping:
        output = partial(_bounded, output, "stop_when_decided" if target is None else "target_error")
    parts, cost, coefficient = [], 0, None
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.no_grad(), evaluating(model), repeatable((model,), x.device, seed, "ensemble"):
        if control and not stop_when_decided:
            coefficient, cost = _judged(model, x, output, num_draws, target, always=control is True)
        shared = Draws(model, output, batch_size)
        for start in range(0, len(x), batch_size):
            batch = x[start : start + batch_size]
            draw: _Draw | ControlledDraws = partial(_plain, shared, batch)
            if coefficient is not None:
                reach = math.inf if target is None else _REACH
                draw = ControlledDraws(NoiseExpansion(model, batch, output), coefficient, reach=reach)
            everyone = torch.ones(len(batch), dtype=torch.bool, device=x.device)
            if target is not None:
                parts.append(_until_narrow(draw, everyone, target))
            else:
                alpha = 1 - level if stop_when_decided else None
                parts.append(_fixed(draw, everyone, num_draws, alpha, level if bounded else None))
    mean, deviation, skewness, counts, decided, bets = (torch.cat(column) for column in zip(*parts, strict=True))
    if bad := int((~mean.isfinite()).any(-1).sum()):
        raise ValueError(f"model: expected finite outputs, got others for {bad} of {len(x)} images; is x finite?")
    draws, num_outputs = int(counts.sum()), mean.shape[1]
    if coefficient is None:
        cost += draws + shared.cost
    else:
        cost += math.ceil(draws * draw_cost(num_outputs)) + len(x) * expansion_cost(num_outputs)
    return EnsembleEstimate(
        mean, deviation, skewness, counts, decided, cost, coefficient is not None, bets if bets.numel() else None
    )


@dataclass(frozen=True)
class _Target:
    error: float
    level: float
    max_draws: int

    def draws(self, variance: Tensor, margin: Tensor | float) -> Tensor:
        """The rough number of draws (B,) of given variance (B, K), in [-margin, 1 + margin], that images take."""
        return draws_needed(variance, margin, self.error, self.level).max(-1).values.clamp(2, self.max_draws)

    @property
    def sure(self) -> int:
        """Draws that every image takes."""
        return max(2, int(self.draws(torch.zeros(1), 0.0)))


_Draw = Callable[[Tensor, int], Tensor]  # images (B,) bool, n -> 1 to n draws of those, (draws, images, K) float64
_Part = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # EnsembleEstimate's


def _plain(draws: Draws, x: Tensor, active: Tensor, most: int) -> Tensor:
    return draws(x if bool(active.all()) else x[active], most)


def _bounded(output: Output, option: str, logits: Tensor) -> Tensor:
    result = output(logits)
    low, high = (float(end) for end in result.detach().aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # written so that NaN fails too
        raise ValueError(f"{option}: expected probabilities from output, got {low:.3g} to {high:.3g}")
    return result


def _judged(
    model: nn.Module,
    x: Tensor,
    output: Output,
    num_draws: int,
    target: _Target | None,
    *,
    always: bool,
) -> tuple[float | None, int]:
    """The coefficient to start the control with, None where it does not pay, and the passes spent on finding out."""
    if target is None and num_draws < _CONTROLLED_DRAWS and not always:
        return None, 0
    num_outputs = output(model(x[:1])).shape[-1]
    setup, controlled_draw, each = expansion_cost(num_outputs), draw_cost(num_outputs), probe_cost(num_outputs)
    sure = num_draws if target is None else target.sure
    count = min(_PROBE_IMAGES, len(x), int(_PROBE_SHARE * len(x) * sure / each))
    if always:
        count = max(count, 1)
    if count < 1:
        return None, 1
    try:
        probe = probe_control(model, x[:: len(x) // count][:count], output)
    except ValueError:
        if always:
            raise
        return None, 1  # no expansion
    if target is None:
        each_draw = setup / num_draws + controlled_draw
        pays = _MARGIN * each_draw * float(probe.controlled.mean()) < float(probe.plain.mean())
    else:
        margin = _REACH * (probe.plain - probe.controlled).clamp_min(0.0).sqrt()  # the deviation of what is subtracted
        controlled = float(target.draws(_MARGIN * probe.controlled, margin).mean())
        pays = setup + controlled_draw * controlled < float(target.draws(probe.plain, 0.0).mean())
    return (probe.coefficient if always or pays else None), 1 + count * each


class _Sums:
    """Running mean and sums of deviations squared and cubed (Pébay 2008), for a subset of images at a time."""

    def __init__(self) -> None:
        self.mean = self.squares = self.cubes = torch.zeros(0)
        self.counts = torch.zeros(0)

    def add(self, sample: Tensor, active: Tensor) -> None:
        """sample: (draws, images, K) of the active images (B,)."""
        if not len(self.counts):
            self.mean = torch.zeros(len(active), sample.shape[2], dtype=torch.float64, device=sample.device)
            self.squares, self.cubes = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
            self.counts = torch.zeros(len(active), dtype=torch.float64, device=sample.device)
        m, before, squares = len(sample), self.counts[active].unsqueeze(-1), self.squares[active]
        mean = sample.mean(0)
        away = sample - mean
        new_squares, new_cubes = away.square().sum(0), away.pow(3).sum(0)
        n, delta = before + m, mean - self.mean[active]
        self.cubes[active] += (
            new_cubes
            + delta**3 * before * m * (before - m) / n**2
            + 3 * delta * (before * new_squares - m * squares) / n
        )
        self.squares[active] += new_squares + delta.square() * before * m / n
        self.mean[active] += delta * m / n
        self.counts[active] += m

    @property
    def deviation(self) -> Tensor:
        return (self.squares / (self.counts - 1).clamp_min(1).unsqueeze(-1)).sqrt()

    @property
    def skewness(self) -> Tensor:
        """Third central moment over that of second order to the power of 3/2; 0 where nothing varies."""
        n = self.counts.unsqueeze(-1)
        return torch.where(self.squares > 0, n.sqrt() * self.cubes / self.squares.pow(1.5), 0.0)


def _fixed(
    draw: _Draw | ControlledDraws, everyone: Tensor, num_draws: int, alpha: float | None, level: float | None
) -> _Part:
    """Draws until there are num_draws, or the image is decided at error `alpha`; bets for an interval at `level`."""
    sums, active, decided, done = _Sums(), everyone, ~everyone, 0
    means: MeanBets | None = None
    largest: LargestBets | None = None
    while done < num_draws and bool(active.any()):
        if isinstance(draw, ControlledDraws):
            sample = draw(active)
        else:
            most = num_draws - done
            if alpha is not None:
                most = min(most, max(LargestBets.fewest(alpha) - done, done // _GROWTH, 1))
            sample = draw(active, most)
            if level is not None:
                means = means or MeanBets(_like(sample, everyone), num_draws=num_draws, level=level)
                means.place(sample, active)
            if alpha is not None:
                largest = largest or LargestBets(_like(sample, everyone))
                largest.place(sample, sums.mean if done else _like(sample, everyone), done, active)
                decided = largest.decided(alpha)
        sums.add(sample, active)
        active = ~decided
        done += len(sample)
    ends = torch.empty(0) if means is None else means.ends
    return sums.mean, sums.deviation, sums.skewness, sums.counts, decided, ends


def _until_narrow(draw: _Draw | ControlledDraws, everyone: Tensor, target: _Target) -> _Part:
    sums, active, done = _Sums(), everyone, 0
    bets: MeanBets | None = None
    while done < target.max_draws and bool(active.any()):
        margin: Tensor | float = 0.0
        if isinstance(draw, ControlledDraws):
            margin = draw.margin(active)
            sample = draw(active)
        else:
            sample = draw(active, min(target.max_draws - done, max(target.sure - done, done // _GROWTH, 1)))
        bets = bets or MeanBets(_like(sample, everyone), target=target.error)
        bets.place(sample, active, margin)
        sums.add(sample, active)
        done += len(sample)
        if done > 1:  # one draw has no deviation
            low, high = interval(bets.ends, sums.mean, target.level)
            active = (high - low).max(-1).values > 2 * target.error
    assert bets is not None
    return sums.mean, sums.deviation, sums.skewness, sums.counts, ~everyone, bets.ends


def _like(sample: Tensor, everyone: Tensor) -> Tensor:
    """Zeros (B, K) for draws (draws, images, K)."""
    return sample.new_zeros(len(everyone), sample.shape[-1])


def _student(level: float, num_draws: Tensor) -> Tensor:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    quantiles = scipy.stats.t.ppf(0.5 + 0.5 * level, (num_draws.cpu() - 1).clamp_min(1).numpy())
    return torch.as_tensor(quantiles, dtype=torch.float64, device=num_draws.device)


def _unskewed(quantile: Tensor, skew: Tensor) -> Tensor:
    """The t for which t + s(t²/3 + 1/6) + s²t³/27 is the quantile, s = skewness / √n: of Hall's transformation."""
    s = torch.where(skew.abs() < 1e-4, 1e-4, skew)
    cube = 1 + s * (quantile - s / 6)
    return 3 / s * (cube.sign() * cube.abs().pow(1 / 3) - 1)
