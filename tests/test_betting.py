"""Intervals by betting: right for any law of draws in [0, 1], where Student's are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from bridge.betting import LargestBets, MeanBets
from bridge.ensemble import IntervalWarning, ensemble_estimate, values
from netkit.noise import NoiseStream


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(draw: Any) -> nn.Module:
    """A model that draws the logits of two classes, (0, draw(B, generator))."""

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stream = NoiseStream(0)

        def using_generator(self, generator: torch.Generator) -> Any:
            return self.stream.replaced(generator=generator)

        def forward(self, x: Tensor) -> Tensor:
            logit = draw(len(x), self.stream.generator(x.device))
            return torch.stack([torch.zeros_like(logit), logit], 1)

    return Drawn()


def gaussian(mean: float, deviation: float) -> tuple[Any, float]:
    def draw(count: int, generator: torch.Generator) -> Tensor:
        return mean + deviation * torch.randn(count, generator=generator, dtype=torch.float64)

    law = stats.norm(mean, deviation)
    return draw, float(law.expect(special.expit, lb=mean - 12 * deviation, ub=mean + 12 * deviation))


def jump(chance: float, low: float, high: float) -> tuple[Any, float]:
    def draw(count: int, generator: torch.Generator) -> Tensor:
        return torch.where(torch.rand(count, generator=generator, dtype=torch.float64) < chance, high, low)

    return draw, chance * float(special.expit(high)) + (1 - chance) * float(special.expit(low))


LAWS = {
    "N(-4, 1)": gaussian(-4, 1),
    "N(-8, 2)": gaussian(-8, 2),
    "N(-12, 3)": gaussian(-12, 3),
    "jumps": jump(0.02, -4.6, 4.6),
    "rare jumps": jump(0.005, -4.0, 4.0),
    "constant": jump(0.0, -1.4, 0.0),
}


@pytest.mark.parametrize("num_draws", [10, 50, 200])
@pytest.mark.parametrize("name", LAWS)
def test_the_interval_of_a_fixed_number_of_draws_holds_whatever_the_law(name: str, num_draws: int) -> None:
    draw, exact = LAWS[name]
    x = torch.zeros(1000, 1)
    estimate = ensemble_estimate(drawn(draw), x, num_draws=num_draws, batch_size=1000, generator=seeded(4))
    low, high = estimate.confidence_interval()
    inside = (low[:, 1] <= exact) & (exact <= high[:, 1])
    assert float(inside.double().mean()) >= 0.95
    assert float((high - low).min()) > 3 / num_draws  # a chance of 3/n stays unseen in one of twenty
    with pytest.warns(IntervalWarning):
        low, high = estimate.confidence_interval(kind="student")
    missed = ~((low[:, 1] <= exact) & (exact <= high[:, 1]))
    if name in ("N(-12, 3)", "rare jumps"):
        assert float(missed.double().mean()) > 0.1
        assert float(estimate.doubtful[:, 1].double().mean()) > 0.9


def test_the_interval_holds_where_early_stopping_chose_the_number_of_draws() -> None:
    draw, exact = gaussian(0.3, 2.0)
    x = torch.zeros(1000, 1)
    options = {"num_draws": 200, "batch_size": 1000}
    estimate = ensemble_estimate(drawn(draw), x, stop_when_decided=True, generator=seeded(4), **options)
    assert 0.2 < float(estimate.decided.double().mean()) < 1
    low, high = estimate.confidence_interval()
    assert float(((low[:, 1] <= exact) & (exact <= high[:, 1])).double().mean()) >= 0.95


def test_intervals_of_values_without_known_range_are_students() -> None:
    model = drawn(lambda count, generator: torch.ones(count))
    estimate = ensemble_estimate(model, torch.zeros(3, 1), num_draws=10, output=values, generator=seeded())
    assert estimate.bets is None
    assert bool(estimate.doubtful.all())
    with pytest.warns(IntervalWarning, match=r"^100\.0% of the intervals .* all the same"):
        estimate.confidence_interval()
    with pytest.raises(ValueError, match="kind: expected 'student', as no bets were placed"):
        estimate.confidence_interval(kind="bets")
    with pytest.raises(ValueError, match=r"kind: expected one of .*, got 'normal'"):
        estimate.draws_for(0.1, kind="normal")  # type: ignore[arg-type]


def test_bets_are_the_same_on_draws_together_as_one_by_one() -> None:
    draws = torch.rand(30, 6, 4, generator=seeded(2), dtype=torch.float64) ** 3
    active = torch.tensor([True, True, False, True, True, True])
    like = torch.zeros(6, 4, dtype=torch.float64)
    for options in ({"target": 0.05}, {"num_draws": 30, "level": 0.9}):
        ends = []
        for lengths in ([1] * 30, [30], [3, 1, 26]):
            bets = MeanBets(like, **options)
            for part in draws.split(lengths):
                bets.place(part[:, active], active)
            ends.append(bets.ends)
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(ends[2], ends[0], rtol=1e-11, atol=1e-11)
    wealth = []
    for lengths in ([1] * 30, [30], [3, 1, 26]):
        largest, mean, count = LargestBets(like), like.clone(), 0
        for part in draws.split(lengths):
            largest.place(part[:, active], mean, count, active)
            mean[active] = (count * mean[active] + part[:, active].sum(0)) / (count + len(part))
            count += len(part)
        wealth.append(largest._largest)
    torch.testing.assert_close(wealth[1], wealth[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(wealth[2], wealth[0], rtol=1e-11, atol=1e-11)


def test_no_image_is_decided_by_fewer_draws_than_that_takes() -> None:
    sure = torch.tensor([1.0, 0.0]).expand(50, 1, 2).double()
    for alpha in (0.2, 0.05, 1e-4):
        fewest = LargestBets.fewest(alpha)
        for count in (fewest - 1, fewest):
            bets = LargestBets(sure[0])
            bets.place(sure[:count], sure[0], 0, slice(None))
            assert bool(bets.decided(alpha)) == (count == fewest)
