"""A noisy network's prediction as a Monte Carlo estimate: mean, error, number of draws, and when to stop (Eq. 14).

`ensemble_estimate` averages f = softmax over noise draws of any model whose noise comes from a generator: netkit's
networks, and those of `bridge.flow`. Three ways to choose the number of draws:

- `num_draws`, the same for every image.
- `target_error`: each image drops out once the interval of every class has the half-width asked for. The interval is
  one of bets on draws in [0, 1] (`bridge.betting`), which holds however often one looks and whatever the distribution.
  Measured on softmax of a Gaussian logit it takes 1.7 times the draws of Stein's (1945) two stages, whose 95% were 78
  to 96% there: a pilot of skewed draws mostly misses the rare large ones. Where next to nothing varies, about
  log(2/α) / (2 target) draws are needed, as fewer would not rule out rare ones.
- `stop_when_decided`: each image drops out once its class is certain, however often one looks. For every class k a
  bet against "k has the largest mean probability" is placed before each draw: on the leader among the other classes,
  whose probability minus that of k has mean <= 0 if k is the largest. A fraction λ of the wealth is bet, so the
  wealth is a product of 1 + λ(p_leader - p_k), a supermartingale that reaches 1/α with probability at most α (Ville;
  Waudby-Smith and Ramdas 2024). A class whose bet has reached 1/α is out, and the image is decided when one is left.
  As only the truly largest class can be excluded by mistake, there is no correction for the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import scipy
import torch
from torch import Tensor, nn

from bridge.betting import MeanBets, draws_needed, interval
from bridge.control import ControlledDraws, NoiseExpansion, draw_cost, expansion_cost, probe_control, probe_cost
from netkit.models import evaluating
from netkit.noise import ResidualNoise
from netkit.randomness import noise_from

_PROBE_IMAGES = 16
_PROBE_SHARE = 0.1  # of the passes sure to be made: the most that is spent on finding out whether a control pays
_MARGIN = 3  # what a control must promise to save: a short probe misses the tails, and promised up to 3 times too much
_CONTROLLED_DRAWS = 200  # with fewer the heavy tails that a control leaves make intervals too short
_REACH = 3.0  # deviations of the control beyond which it is cut off where draws have to be bounded
_BETS = (1.0, 0.5, 0.25, 0.125)  # λ, mixed with equal weights
_ROUNDING = 1e-6  # by which float32 probabilities may leave [0, 1]


def softmax(logits: Tensor) -> Tensor:
    """f of Eq. 14."""
    return logits.softmax(-1)


def values(outputs: Tensor) -> Tensor:
    """The outputs as they are, for models that return f itself."""
    return outputs


@dataclass(frozen=True, eq=False)
class EnsembleEstimate:
    """Mean predictions of B images in K classes, with their errors.

    mean, standard_deviation, skewness: (B, K) over draws, float64; the latter two are those of one draw (of one draw
        less the control, where one was used).
    num_draws: (B,) draws behind each image; cost: passes of one image through the network, in all.
    decided: (B,) whether early stopping excluded all classes but one; all False without it.
    controlled: whether the first-order control was used.
    bets: with `target_error`, what became of the bets for its interval (B, K, 4), as `bridge.betting` keeps them.
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

    def confidence_interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper ends (B, K).

        With `target_error` the interval is that of `bridge.betting`, which covers the mean with at least the
        probability `level`. At the level asked for it is no wider than twice the target, but for images that
        `max_draws` cut short. It is not centred on `mean`.
        For a fixed number of draws it is Student's t with the skewness taken out (Hall 1992, cubic transformation), as
        probabilities near 0 or 1 are skew. The heavy tails that a control leaves are not taken out. Measured on softmax
        of a Gaussian logit, intervals at 95% are right within 1.5 points with 50 draws, and with 200 under a control;
        under a control with 50 to 100 draws they cover 92 to 94%.
        With early stopping the number of draws depends on the outcome, and only the decision is guaranteed.

        Raises ValueError unless 0 < level < 1.
        """
        quantile = _student(level, self.num_draws).unsqueeze(-1)
        if self.bets is not None:
            return interval(self.bets, self.mean, level)
        skew = self.skewness / self.num_draws.unsqueeze(-1).sqrt()
        low, high = (self.mean - self.standard_error * _unskewed(q, skew) for q in (quantile, -quantile))
        return low, high

    def draws_for(self, target_error: float, *, level: float = 0.95) -> Tensor:
        """(B,) draws that a half-width of `target_error` needs for every class, judged by the variance seen so far."""
        if not target_error > 0:
            raise ValueError(f"target_error: expected a positive half-width, got {target_error}")
        quantile = _student(level, self.num_draws)
        largest = self.standard_deviation.max(-1).values
        return (quantile * largest / target_error).square().ceil().clamp_min(2).long()


def ensemble_estimate(
    model: nn.Module,
    x: Tensor,
    *,
    num_draws: int = 100,
    target_error: float | None = None,
    stop_when_decided: bool = False,
    level: float = 0.95,
    output: Callable[[Tensor], Tensor] = softmax,
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
    output: from the model's result (B, K) to the values that are averaged; in [0, 1] unless num_draws is fixed.
    control: subtract the first-order expansion in the noise (`bridge.control`), whose mean is known. It costs K
        backward passes an image and the memory of K times the outputs of all blocks, which is why it is not the
        default. "auto" subtracts it where it lowers variance times cost, judged on a few images whose draws are not
        used again, for a tenth of the passes that are sure to be made and one more. "auto" does without it for
        `num_draws` below 200, as the draws left have heavier tails; with early stopping, which bets on bounded draws;
        and for models that have no expansion.
    batch_size: images a pass. generator: of the noise, on x's device.

    Raises ValueError for counts that do not fit, options that exclude each other, outputs outside [0, 1] where they may
    not be, a model whose noise depends on the rest of the batch where images would drop out of it, or one whose output
    is the same for different noise.
    """
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
    if not any(hasattr(module, "using_generator") for module in model.modules()):
        raise ValueError(
            f"model: expected one with noise from a generator (a using_generator method), got {type(model).__name__}"
        )
    dropping = target_error is not None or stop_when_decided
    if dropping and any(m.noise.std == "batch" for m in model.modules() if isinstance(m, ResidualNoise)):
        raise ValueError(
            "model: expected noise_std 'sample' or 'constant', as images drop out of the batch once done, got 'batch', "
            "whose noise depends on the images that are left"
        )
    target = None if target_error is None else _Target(target_error, level, max_draws)
    if dropping:
        output = partial(_bounded, output, "stop_when_decided" if target is None else "target_error")
    parts, cost, coefficient = [], 0, None
    with torch.no_grad(), evaluating(model), noise_from(generator, model):
        if control and not stop_when_decided:
            coefficient, cost = _judged(model, x, output, num_draws, target, always=control is True)
        for start in range(0, len(x), batch_size):
            batch = x[start : start + batch_size]
            draw: _Draw = partial(_plain, model, output, batch)
            if coefficient is not None:
                reach = math.inf if target is None else _REACH
                draw = ControlledDraws(NoiseExpansion(model, batch, output), coefficient, reach=reach)
            everyone = torch.ones(len(batch), dtype=torch.bool, device=x.device)
            if target is not None:
                parts.append(_until_narrow(draw, everyone, target))
            else:
                parts.append(_fixed(draw, everyone, num_draws, 1 - level if stop_when_decided else None))
    mean, deviation, skewness, counts, decided, bets = (torch.cat(column) for column in zip(*parts, strict=True))
    draws, num_outputs = int(counts.sum()), mean.shape[1]
    if coefficient is None:
        cost += draws
    else:
        cost += math.ceil(draws * draw_cost(num_outputs)) + len(x) * expansion_cost(num_outputs)
    controlled = coefficient is not None
    return EnsembleEstimate(
        mean, deviation, skewness, counts, decided, cost, controlled, None if target is None else bets
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


_Draw = Callable[[Tensor], Tensor]  # images (B,) bool -> a new draw of those that are True, (images, K) float64
_Part = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # EnsembleEstimate's


def _plain(model: nn.Module, output: Callable[[Tensor], Tensor], x: Tensor, active: Tensor) -> Tensor:
    return output(model(x if bool(active.all()) else x[active])).double()


def _bounded(output: Callable[[Tensor], Tensor], option: str, logits: Tensor) -> Tensor:
    result = output(logits)
    low, high = (float(end) for end in result.detach().aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # written so that NaN fails too
        raise ValueError(f"{option}: expected probabilities from output, got {low:.3g} to {high:.3g}")
    return result


def _judged(
    model: nn.Module,
    x: Tensor,
    output: Callable[[Tensor], Tensor],
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
    """Running mean and sums of deviations squared and cubed (Welford; Pébay 2008), for a subset of images at a time."""

    def __init__(self) -> None:
        self.mean = self.squares = self.cubes = torch.zeros(0)
        self.counts = torch.zeros(0)

    def add(self, sample: Tensor, active: Tensor) -> None:
        if not len(self.counts):
            self.mean = torch.zeros(len(active), sample.shape[1], dtype=torch.float64, device=sample.device)
            self.squares, self.cubes = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
            self.counts = torch.zeros(len(active), dtype=torch.float64, device=sample.device)
        self.counts[active] += 1
        n = self.counts[active].unsqueeze(-1)
        delta = sample - self.mean[active]
        self.mean[active] += delta / n
        more = delta * (sample - self.mean[active])
        self.cubes[active] += delta / n * (more * (n - 2) - 3 * self.squares[active])
        self.squares[active] += more

    @property
    def deviation(self) -> Tensor:
        return (self.squares / (self.counts - 1).clamp_min(1).unsqueeze(-1)).sqrt()

    @property
    def skewness(self) -> Tensor:
        """Third central moment over that of second order to the power of 3/2; 0 where nothing varies."""
        n = self.counts.unsqueeze(-1)
        return torch.where(self.squares > 0, n.sqrt() * self.cubes / self.squares.pow(1.5), 0.0)


def _fixed(draw: _Draw, active: Tensor, num_draws: int, alpha: float | None) -> _Part:
    sums, bets = _Sums(), None
    decided = torch.zeros_like(active)
    for number in range(num_draws):
        sample = draw(active)
        if alpha is not None and number > 0:
            bets = bets or _Bets(sums.mean)
            bets.place(sample, sums.mean, active)
        sums.add(sample, active)
        if bets is not None and alpha is not None:
            decided = bets.decided(alpha)
            active = ~decided
            if not active.any():
                break
    return sums.mean, sums.deviation, sums.skewness, sums.counts, decided, torch.empty(0)


class _Bets:
    """Wealth (B, K, bets) of the bets against each class being the largest; logarithms."""

    def __init__(self, mean: Tensor) -> None:
        self._fractions = torch.tensor(_BETS, dtype=torch.float64, device=mean.device)
        self._log_wealth = torch.zeros(*mean.shape, len(_BETS), dtype=torch.float64, device=mean.device)
        self._largest = torch.zeros_like(mean)

    def place(self, sample: Tensor, mean: Tensor, active: Tensor) -> None:
        """mean (B, K) over the draws before this one chooses the rival, so the choice is made before the draw."""
        top = mean[active].topk(2, dim=-1).indices
        leader, second = sample.gather(1, top[:, :1]), sample.gather(1, top[:, 1:])
        rival = leader.expand_as(sample).scatter(1, top[:, :1], second)
        gain = (rival - sample).clamp(-1.0, 1.0)
        self._log_wealth[active] += torch.log1p(self._fractions * gain.unsqueeze(-1))
        mixed = (self._log_wealth[active].logsumexp(-1) - math.log(len(_BETS))).exp()
        self._largest[active] = torch.maximum(self._largest[active], mixed)

    def decided(self, alpha: float) -> Tensor:
        return (self._largest < 1.0 / alpha).sum(-1) <= 1


def _until_narrow(draw: _Draw, everyone: Tensor, target: _Target) -> _Part:
    sums, active, bets = _Sums(), everyone, None
    for number in range(1, target.max_draws + 1):
        margin = draw.margin(active) if isinstance(draw, ControlledDraws) else 0.0
        sample = draw(active)
        bets = bets or MeanBets(len(active), sample.shape[1], target.error, sample.device)
        bets.place(sample, active, margin)
        sums.add(sample, active)
        if number < 2:  # one draw has no deviation
            continue
        low, high = interval(bets.ends, sums.mean, target.level)
        active = (high - low).max(-1).values > 2 * target.error
        if not active.any():
            break
    assert bets is not None
    return sums.mean, sums.deviation, sums.skewness, sums.counts, ~everyone, bets.ends


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
