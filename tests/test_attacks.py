"""Attacks: closed forms, independent loops, other libraries, and what an attack must leave alone."""

import math
import warnings
from functools import partial
from types import ModuleType
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from scipy import stats
from torch import Tensor, nn

from netkit import attacks
from netkit.attacks.expectation import expected, logits_of
from netkit.models import en_resnet, resnet

EPS, STEP = 8 / 255, 2 / 255


def images(batch: int = 16, size: int = 12, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Some pixels at 0 and 1, as real images have."""
    x = torch.rand(batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (1.4 * x - 0.2).clamp(0, 1).to(dtype)


def labels(batch: int = 16, classes: int = 10) -> Tensor:
    return torch.arange(batch) % classes


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A noise-free network whose running statistics are those of the images."""
    model = resnet(8, width=8, seed=0).to(dtype).train()
    for seed in range(20):
        model(images(seed=100 + seed, dtype=dtype))
    return model.eval()


class Linear(nn.Module):
    """logits = W x + b."""

    def __init__(self, num_pixels: int, num_classes: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(num_classes, num_pixels, dtype=torch.float64, generator=generator))
        self.bias = nn.Parameter(torch.randn(num_classes, dtype=torch.float64, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class CoinToss(Linear):
    """logits = W x + b + s v for a sign s that is tossed anew in each call, with known expectations."""

    def __init__(self, num_pixels: int, seed: int) -> None:
        super().__init__(num_pixels, num_classes=3)
        self.shift = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        sign = 2 * torch.randint(2, (len(x), 1), generator=self.generator) - 1
        return super().forward(x) + sign * self.shift


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


def margin_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    others = logits.scatter(1, y.unsqueeze(1), -math.inf).amax(1)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others


# Closed forms


def test_fgsm_of_a_linear_model_is_the_closed_form():
    x, y = images(), labels()
    model = Linear(x[0].numel())
    logits = x.flatten(1) @ model.weight.T + model.bias
    gradient = (logits.softmax(1) - F.one_hot(y, 10)) @ model.weight
    expected_images = (x + EPS * gradient.view_as(x).sign()).clamp(0, 1)
    x_adv = attacks.fgsm(model, x, y, eps=EPS)
    torch.testing.assert_close(x_adv, expected_images, rtol=0, atol=1e-15)


def test_l2_attack_of_a_linear_loss_ends_at_the_farthest_point_of_the_ball():
    x, y = torch.full((4, 3, 4, 4), 0.5, dtype=torch.float64), labels(4)
    model = Linear(48)
    farthest = x + 0.3 * (model.weight[0] / model.weight[0].norm()).view(3, 4, 4).detach()
    # Each step of a third of the radius leaves three quarters of what lies across the gradient.
    x_adv = attacks.pgd(
        model, x, y, eps=0.3, step_size=0.1, num_steps=100, norm="l2", loss=lambda logits, y: logits[:, 0]
    )
    torch.testing.assert_close(x_adv, farthest.expand_as(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["pgd", "arc"])
def test_tiny_logits_are_attacked_like_others(attack, norm):
    x, y = images(8, dtype=torch.float32), labels(8)
    model = network(torch.float32)
    options = {"eps": 0.5, "step_size": 0.1, "num_steps": 3, "norm": norm}
    climb = partial(attacks.pgd, random_start=False, loss=attacks.margin)
    run = {"pgd": climb, "arc": partial(attacks.arc, num_draws=1)}[attack]

    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.net, self.factor = model, factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * self.net(x)

    usual, tiny = (run(Scaled(2.0**power), x, y, **options) for power in (0, -100))
    assert not torch.equal(usual, x)
    torch.testing.assert_close(tiny, usual, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("bounds", [None, (-2.0, 3.0)])
def test_pixels_have_the_range_that_is_given(norm, bounds):
    x = torch.linspace(-2, 3, 4 * 48, dtype=torch.float64).view(4, 3, 4, 4)
    model, weight = Linear(48), Linear(48).weight[0].detach().view(3, 4, 4)
    move = 0.3 * (weight.sign() if norm == "linf" else weight / weight.norm())
    options = {"eps": 0.3, "step_size": 0.3, "num_steps": 1, "random_start": False}
    x_adv = attacks.pgd(model, x, labels(4), norm=norm, bounds=bounds, loss=lambda logits, y: logits[:, 0], **options)
    torch.testing.assert_close(x_adv, x + move if bounds is None else (x + move).clamp(*bounds), rtol=0, atol=1e-12)
    assert (x_adv.aminmax().max > 3) == (bounds is None)


def test_random_starts_are_uniform_in_the_ball():
    x, y = torch.full((2000, 3, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2000, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    still = {"eps": 0.3, "step_size": 0.0, "num_steps": 1, "generator": generator}
    cube = attacks.pgd(Linear(12), x, y, norm="linf", **still) - 0.5
    assert stats.kstest(cube.flatten().numpy(), "uniform", args=(-0.3, 0.6)).pvalue > 1e-4
    ball = (attacks.pgd(Linear(12), x, y, norm="l2", **still) - 0.5).flatten(1)
    # The share of the volume within radius r is (r / eps)^12, and directions are isotropic.
    assert stats.kstest(((ball.norm(dim=1) / 0.3) ** 12).numpy(), "uniform").pvalue > 1e-4
    mean_direction = (ball / ball.norm(dim=1, keepdim=True)).mean(0)
    assert (mean_direction * math.sqrt(12 * 2000)).abs().max() < 4


def test_a_schedule_gives_each_step_its_length():
    x, y = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64), labels(2)
    lengths = [0.02, 0.005, 0.001]
    x_adv = attacks.ifgsm(
        Linear(48), x, y, eps=0.1, step_size=lengths.__getitem__, num_steps=3, loss=lambda logits, y: logits[:, 0]
    )
    torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, sum(lengths)), rtol=0, atol=1e-12)


# Independent loops and libraries


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, num_steps: int) -> Tensor:
    """Eq. 16 as one would first write it."""
    x_adv = start.clone()
    for _ in range(num_steps):
        x_adv.requires_grad_()
        F.cross_entropy(model(x_adv), y).backward()
        x_adv = x_adv.detach() + STEP * x_adv.grad.sign()
        x_adv = torch.max(torch.min(x_adv, x + EPS), x - EPS).clamp(0, 1)
    model.zero_grad()
    return x_adv


def assert_same_images(ours: Tensor, theirs: Tensor) -> None:
    """Exactly in float64; in float32 rounding may turn the sign of a gradient near zero, in a vanishing share."""
    if ours.dtype == torch.float64:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    else:
        assert ((ours - theirs).abs() > 1e-6).double().mean() < 1e-3


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@DTYPES
@pytest.mark.parametrize("num_steps", [1, 10])
def test_ifgsm_is_the_plain_loop(dtype, num_steps):
    model, x, y = network(dtype), images(dtype=dtype), labels()
    ours = attacks.ifgsm(model, x, y, eps=EPS, step_size=STEP, num_steps=num_steps)
    assert_same_images(ours, plain_pgd(model, x, y, x, num_steps))
    assert (ours - x).abs().max() > 0.9 * min(EPS, num_steps * STEP)


@DTYPES
@pytest.mark.parametrize("clamp_start", [True, False])
def test_pgd_is_the_plain_loop_from_the_same_start(dtype, clamp_start):
    model, x, y = network(dtype), images(dtype=dtype), labels()
    shift = torch.empty_like(x).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(5))
    start = (x + shift).clamp(0, 1) if clamp_start else x + shift
    ours = attacks.pgd(
        model,
        x,
        y,
        eps=EPS,
        step_size=STEP,
        num_steps=7,
        clamp_start=clamp_start,
        generator=torch.Generator().manual_seed(5),
    )
    assert_same_images(ours, plain_pgd(model, x, y, start, 7))


@DTYPES
@pytest.mark.parametrize("attack", ["fgsm", "ifgsm", "pgd_l2"])
def test_attacks_match_torchattacks(attack, dtype):
    model, x, y = network(dtype), images(dtype=dtype), labels()
    if attack == "fgsm":
        theirs = torchattacks.FGSM(model, eps=EPS)(x, y)
        ours = attacks.fgsm(model, x, y, eps=EPS)
    elif attack == "ifgsm":
        theirs = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=20, random_start=False)(x, y)
        ours = attacks.ifgsm(model, x, y, eps=EPS, step_size=STEP, num_steps=20)
    else:
        # It adds the constant to lengths that we only keep from zero.
        theirs = torchattacks.PGDL2(model, eps=0.5, alpha=0.1, steps=10, random_start=False, eps_for_division=1e-30)(
            x, y
        )
        ours = attacks.pgd(model, x, y, eps=0.5, step_size=0.1, num_steps=10, random_start=False, norm="l2")
    assert_same_images(ours, theirs)


def foolbox_model(model: nn.Module) -> tuple[ModuleType, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports from a SciPy namespace that moved
        import foolbox
    return foolbox, foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")


@DTYPES
@pytest.mark.parametrize("attack", ["fgsm", "ifgsm"])
def test_attacks_match_foolbox(attack, dtype):
    model, x, y = network(dtype), images(dtype=dtype), labels()
    foolbox, wrapped = foolbox_model(model)
    if attack == "fgsm":
        theirs = foolbox.attacks.LinfFastGradientAttack(random_start=False).run(wrapped, x, y, epsilon=EPS)
        ours = attacks.fgsm(model, x, y, eps=EPS)
    else:
        theirs = foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=STEP, steps=20, random_start=False
        ).run(wrapped, x, y, epsilon=EPS)
        ours = attacks.ifgsm(model, x, y, eps=EPS, step_size=STEP, num_steps=20)
    assert_same_images(ours, theirs)


def test_l2_cw_matches_foolbox_wherever_that_succeeds():
    model, x, y = network(), images(), labels()
    foolbox, wrapped = foolbox_model(model)
    y = model(x).argmax(1)
    theirs = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=3, steps=20, stepsize=0.01, initial_const=1.0, abort_early=False
    ).run(wrapped, x, y)
    ours = attacks.cw(model, x, y, variant="l2", num_steps=20, learning_rate=0.01, c=1.0, num_searches=3)
    found = theirs.flatten(1).any(1)
    assert found.double().mean() > 0.5
    torch.testing.assert_close(ours[found], theirs[found], rtol=0, atol=1e-9)


# Staying inside


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 1e-3, 0.7])
def test_no_pixel_leaves_the_eps_ball_or_the_unit_interval_in_exact_arithmetic(eps):
    x = images(64, dtype=torch.float32)
    x[0] *= 1e-6
    model, y = Linear(x[0].numel()).float(), labels(64)
    for x_adv in (
        attacks.fgsm(model, x, y, eps=eps),
        attacks.pgd(model, x, y, eps=eps, step_size=eps / 3, num_steps=5),
    ):
        # The difference of two float32 numbers is exact, or nearly so, in float64.
        change = (x_adv.double() - x.double()).abs()
        assert change.max() <= eps
        assert change.max() > eps * (1 - 1e-4)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


def test_l2_attack_stays_in_its_ball():
    model, x, y = network(torch.float32), images(dtype=torch.float32), labels()
    x_adv = attacks.pgd(model, x, y, eps=0.5, step_size=0.2, num_steps=10, norm="l2")
    length = (x_adv.double() - x.double()).flatten(1).norm(dim=1)
    assert length.max() <= 0.5 * (1 + 1e-5)
    assert length.min() > 0.4
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_eps_zero_returns_the_images():
    model, x, y = network(), images(), labels()
    assert torch.equal(attacks.pgd(model, x, y, eps=0.0, step_size=0.1, num_steps=3), x)


# Strength


def test_more_steps_and_restarts_raise_the_loss():
    model, x, y = network(), images(), labels()

    def reached(**options) -> Tensor:
        x_adv = attacks.pgd(model, x, y, eps=EPS, step_size=STEP, generator=torch.Generator().manual_seed(3), **options)
        return loss_of(model, x_adv, y)

    once, long = reached(num_steps=2), reached(num_steps=20)
    assert (once > loss_of(model, x, y)).all()
    assert long.mean() > once.mean()


def test_restarts_keep_what_fools_the_model_in_any_run_and_else_the_largest_loss():
    # of many classes, the loss may be smaller where one of them is ahead already
    x, model = images(600, 4), Linear(48)
    y = model(x).argmax(1)
    options = {"eps": 0.05, "step_size": 0.005, "num_steps": 1}
    generator = torch.Generator().manual_seed(3)
    runs = torch.stack([attacks.pgd(model, x, y, **options, generator=generator) for _ in range(5)])
    together = attacks.pgd(model, x, y, **options, num_restarts=5, generator=torch.Generator().manual_seed(3))
    losses = torch.stack([loss_of(model, run, y) for run in runs])
    fooled = torch.stack([model(run).argmax(1) != y for run in runs])
    everyone = torch.arange(600)
    by_loss_alone = fooled[losses.argmax(0), everyone]
    assert by_loss_alone.sum() < fooled.any(0).sum()
    assert torch.equal(model(together).argmax(1) != y, fooled.any(0))
    assert torch.equal(together, runs[losses.where(fooled | ~fooled.any(0), -math.inf).argmax(0), everyone])


class Blurred(Linear):
    """logits = W x + b + s times Gaussian noise."""

    def __init__(self, num_pixels: int, scale: float, seed: int) -> None:
        super().__init__(num_pixels, num_classes=3)
        self.scale, self.generator = scale, torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + self.scale * torch.randn(logits.shape, dtype=logits.dtype, generator=self.generator)


def share_wrong(model: nn.Module, x: Tensor, y: Tensor, num_draws: int = 100) -> Tensor:
    with torch.no_grad():
        return torch.stack([(model(x).argmax(1) != y).double() for _ in range(num_draws)]).mean(0)


def assert_fools_more_often(model: nn.Module, x: Tensor, other: Tensor, y: Tensor) -> None:
    difference = share_wrong(model, x, y) - share_wrong(model, other, y)
    assert difference.mean() > 4 * difference.std() / math.sqrt(len(y))


def test_restarts_against_a_random_model_are_judged_by_fresh_draws():
    x = images(400, 2)
    y = Linear(12, 3)(x).argmax(1)

    def restarted(judging_draws: int | None) -> Tensor:
        options = {"eps": 0.2, "step_size": 0.0, "num_steps": 1, "num_restarts": 8, "judging_draws": judging_draws}
        return attacks.pgd(Blurred(12, 0.5, seed=1), x, y, **options, generator=torch.Generator().manual_seed(3))

    assert_fools_more_often(Blurred(12, 0.5, seed=2), restarted(None), restarted(1), y)


@pytest.mark.parametrize("variant", ["paper", "l2", "authors"])
def test_cw_does_not_take_a_lucky_draw_for_success(variant):
    x = images(200, 2)
    y = Linear(12, 3)(x).argmax(1)

    def found(judging_draws: int | None) -> Tensor:
        options = {"variant": variant, "learning_rate": 0.05, "c": 10.0, "judging_draws": judging_draws}
        return attacks.cw(Blurred(12, 1.0, seed=1), x, y, **options)

    model, lucky, judged = Blurred(12, 1.0, seed=2), found(1), found(None)
    assert_fools_more_often(model, judged, lucky, y)
    if variant == "l2":
        assert share_wrong(model, lucky, y).mean() < 0.4 < 0.7 < share_wrong(model, judged, y).mean()


def test_another_loss_can_be_raised():
    model, x, y = network(), images(), labels()
    target = (y + 1) % 10
    towards = attacks.ifgsm(
        model,
        x,
        y,
        eps=EPS,
        step_size=STEP,
        num_steps=10,
        loss=lambda logits, _: -attacks.cross_entropy(logits, target),
    )
    assert (loss_of(model, towards, target) < loss_of(model, x, target)).all()


# Expectation over transformation


def coin_toss_gradients(model: CoinToss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The exact mean over tosses of the loss's gradient, and the gradient of the loss of the mean logits."""
    clean = x.flatten(1) @ model.weight.T + model.bias

    def gradient(logits: Tensor) -> Tensor:
        return ((logits.softmax(1) - F.one_hot(y, 3)) @ model.weight).view_as(x).detach()

    return (gradient(clean + model.shift) + gradient(clean - model.shift)) / 2, gradient(clean)


def test_eot_gradient_is_an_unbiased_mean_of_loss_gradients_and_not_of_logits():
    x = images(1, 2).expand(4000, -1, -1, -1)
    y = torch.zeros(4000, dtype=torch.int64)
    model = CoinToss(12, seed=0)
    eot = attacks.ExpectationOverTransformation(model, num_draws=5)
    values, gradient = expected(eot, x, lambda net, point: F.cross_entropy(net(point), y, reduction="none")[None])
    exact, of_mean_logits = (mean[0] for mean in coin_toss_gradients(model, x[:1], y[:1]))
    assert model.num_calls == 5
    z = (gradient.mean(0) - exact) / (gradient.std(0) / math.sqrt(4000))
    assert z.abs().max() < 4
    other = (gradient.mean(0) - of_mean_logits) / (gradient.std(0) / math.sqrt(4000))
    assert other.abs().max() > 20
    clean = x[:1].flatten(1) @ model.weight.T + model.bias
    exact_loss = sum(F.cross_entropy(clean + sign * model.shift, y[:1]) for sign in (1, -1)).item() / 2
    assert abs(values[0].mean() - exact_loss) < 4 * values[0].std() / math.sqrt(4000)


def test_eot_of_n_draws_has_a_variance_n_times_smaller():
    x, y = images(1, 2).expand(4000, -1, -1, -1), torch.zeros(4000, dtype=torch.int64)

    def spread(num_draws: int) -> float:
        eot = attacks.ExpectationOverTransformation(CoinToss(12, seed=num_draws), num_draws)
        _, gradient = expected(eot, x, lambda net, point: F.cross_entropy(net(point), y, reduction="none")[None])
        return float(gradient.var(0).sum())

    # The tosses are fair: the variance of a variance of 4000 is about 2 / 4000 of its square.
    assert abs(spread(1) / spread(8) / 8 - 1) < 4 * math.sqrt(4 / 4000)


def test_eot_called_as_a_model_averages_logits():
    x = images(3, 2)
    eot = attacks.ExpectationOverTransformation(CoinToss(12, seed=1), 4)
    alone = CoinToss(12, seed=1)
    torch.testing.assert_close(eot(x), sum(alone(x) for _ in range(4)) / 4, rtol=1e-14, atol=1e-14)


def test_eot_of_a_model_without_noise_changes_nothing():
    model, x, y = network(), images(), labels()
    eot = attacks.ExpectationOverTransformation(model, 3)
    assert torch.equal(attacks.fgsm(eot, x, y, eps=EPS), attacks.fgsm(model, x, y, eps=EPS))
    for variant in ("paper", "l2", "authors"):
        one, many = (attacks.cw(net, x, y, variant=variant, num_steps=5) for net in (model, eot))
        torch.testing.assert_close(one, many, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_draws", [1, 5])
def test_noisy_attacks_repeat_from_the_same_generator_states(num_draws):
    model, x, y = en_resnet(8, width=4, seed=0).eval(), images(dtype=torch.float32), labels()
    eot = attacks.ExpectationOverTransformation(model, num_draws)

    def attack() -> Tensor:
        model.set_generator(torch.Generator().manual_seed(2))
        generator = torch.Generator().manual_seed(3)
        return attacks.pgd(eot, x, y, eps=EPS, step_size=STEP, num_steps=3, generator=generator)

    first = attack()
    assert torch.equal(attack(), first)
    model.set_generator(torch.Generator().manual_seed(4))
    other = attacks.pgd(eot, x, y, eps=EPS, step_size=STEP, num_steps=3, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(other, first)


# Carlini & Wagner


def test_authors_cw_of_a_linear_model_is_the_closed_form():
    # Adam's step in a constant gradient is its learning rate: fifty of 6e-4 make 0.03.
    x = images(8, 4)
    model = Linear(48)
    model.bias.data[:] = torch.linspace(1000, 0, 10, dtype=torch.float64)  # so far apart that nothing flips
    x_adv = attacks.cw(model, x, labels(8), variant="authors")
    direction = (model.weight[0] - model.weight[1]).view(3, 4, 4).sign()
    torch.testing.assert_close(x_adv, (x - 0.03 * direction).clamp(0, 1), rtol=0, atol=1e-9)


def plain_cw(model: nn.Module, x: Tensor, y: Tensor, num_steps: int) -> Tensor:
    """Eq. 18 for one image, untargeted with kappa 0: Adam on u, keeping the nearest image that fools the model."""
    start = torch.atanh((2 * x - 1) * (1 - 1e-6))
    u = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([u], lr=6e-4)
    nearest, distance = None, math.inf
    for _ in range(num_steps):
        image = 0.5 * (torch.tanh(u) + 1)
        delta = (image - 0.5 * (torch.tanh(start) + 1)).abs().max()
        logits = model(image)[0]
        margin = logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).max()
        if margin <= 0 and delta.item() < distance:
            nearest, distance = image.detach(), delta.item()
        optimizer.zero_grad()
        (delta + 10 * margin.clamp_min(0)).backward()
        optimizer.step()
    assert nearest is not None
    return nearest


def test_paper_cw_is_the_plain_loop():
    model, x = network(), images()
    y = model(x).argmax(1)
    close = margin_of(model, x, y).argsort()[:3]
    ours = attacks.cw(model, x[close], y[close], num_steps=60)
    for image, origin, label in zip(ours, x[close], y[close], strict=True):
        theirs = plain_cw(model, origin.unsqueeze(0), label.item(), 60)[0]
        torch.testing.assert_close(image, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", ["paper", "l2", "authors"])
def test_every_cw_variant_reduces_every_margin(variant):
    model, x = network(), images()
    y = model(x).argmax(1)
    before = margin_of(model, x, y)
    x_adv = attacks.cw(model, x, y, variant=variant)
    after = margin_of(model, x_adv, y)
    assert (after < before).all()
    fooled = after < 0
    assert fooled.any()
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    bound = {"paper": 0.016, "l2": 0.26, "authors": 0.04}[variant]
    assert (x_adv - x).abs().max() < bound


def test_cw_searches_for_the_smallest_change():
    model, x = network(), images()
    y = model(x).argmax(1)
    lengths = []
    for num_searches in (1, 4):
        x_adv = attacks.cw(model, x, y, variant="l2", c=10.0, num_searches=num_searches)
        assert (margin_of(model, x_adv, y) <= 0).all()
        lengths.append((x_adv - x).flatten(1).norm(dim=1))
    assert (lengths[1] <= lengths[0]).all()
    assert lengths[1].mean() < 0.95 * lengths[0].mean()


def test_cw_reaches_a_target_with_the_confidence_asked_for():
    model, x = network(), images()
    target = (model(x).argmax(1) + 1) % 10
    x_adv = attacks.cw(model, x, labels(), variant="l2", c=100.0, kappa=0.05, target=target, learning_rate=0.05)
    assert margin_of(model, x_adv, target).min() >= 0.05 - 1e-12


# What an attack leaves alone


def run_every_attack(model: nn.Module, x: Tensor, y: Tensor, **options) -> None:
    attacks.fgsm(model, x, y, eps=EPS, **options)
    attacks.pgd(model, x, y, eps=EPS, step_size=STEP, num_steps=2, num_restarts=2, **options)
    attacks.pgd(model, x, y, eps=EPS, step_size=STEP, num_steps=2, norm="l2", **options)
    for variant in ("paper", "l2", "authors"):
        attacks.cw(model, x, y, variant=variant, num_steps=2, **options)


def test_attacks_leave_model_input_and_global_generator_as_they_were():
    model, x, y = en_resnet(8, width=4, seed=0), images(dtype=torch.float32), labels()
    model.train()
    model.members[0].blocks[0].bn1.eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    untouched, rng_state = x.clone(), torch.get_rng_state()
    with torch.no_grad():
        run_every_attack(model, x, y)
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert torch.equal(x, untouched)
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_weights_are_constants_of_the_attack_and_collect_gradients_again_after_an_error():
    model, seen = en_resnet(8, width=4, seed=0).eval(), []
    model.members[0].fc.bias.requires_grad_(False)
    learning = [parameter.requires_grad for parameter in model.parameters()]

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        seen.append(any(parameter.requires_grad for parameter in model.parameters()))
        if len(seen) == 3:
            raise RuntimeError("stop")
        return attacks.cross_entropy(logits, y)

    with pytest.raises(RuntimeError, match="stop"):
        attacks.ifgsm(model, images(dtype=torch.float32), labels(), eps=EPS, step_size=STEP, num_steps=3, loss=loss)
    assert seen == [False] * 3
    assert [parameter.requires_grad for parameter in model.parameters()] == learning


def test_modes_come_back_after_an_error():
    model = en_resnet(8, width=4, seed=0).train()
    with pytest.raises(ValueError, match="expected labels below 10, got 11"):
        attacks.fgsm(model, images(dtype=torch.float32), labels() + 11 - 9, eps=EPS)
    assert all(module.training for module in model.modules())


def test_batch_norm_mode_is_a_choice():
    x, y = images(dtype=torch.float32), labels()

    def running_mean_after(mode: attacks.BatchNormMode, *, training: bool) -> tuple[Tensor, Tensor]:
        model = resnet(8, width=4, seed=0).train(training)
        x_adv = attacks.ifgsm(model, x, y, eps=EPS, step_size=STEP, num_steps=3, batch_norm=mode)
        assert all(module.training == training for module in model.modules())
        return model.members[0].bn.running_mean, x_adv

    mean, by_statistics = running_mean_after("eval", training=True)
    assert torch.equal(mean, torch.zeros_like(mean))
    mean, by_batch = running_mean_after("train", training=False)
    assert mean.abs().min() > 0
    assert not torch.equal(by_statistics, by_batch)
    assert torch.equal(running_mean_after("keep", training=True)[1], by_batch)
    assert torch.equal(running_mean_after("keep", training=False)[1], by_statistics)


@pytest.mark.parametrize(
    "attack",
    [
        partial(attacks.fgsm, eps=EPS),
        partial(attacks.pgd, eps=EPS, step_size=STEP, num_steps=2),
        partial(attacks.pgd, eps=EPS, step_size=STEP, num_steps=2, norm="l2", num_restarts=2),
        *(partial(attacks.cw, num_steps=2, variant=variant) for variant in get_args(attacks.CWVariant)),
        partial(attacks.arc, eps=EPS, step_size=STEP, num_steps=2),
    ],
)
def test_results_carry_no_gradient_and_keep_their_layout(attack):
    model, y = network(torch.float32).to(memory_format=torch.channels_last), labels()
    x = images(dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    x_adv = attack(model, x, y)
    assert not x_adv.requires_grad
    assert x_adv.is_contiguous(memory_format=torch.channels_last)


# Wrong input


class Answers(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x.flatten(1)}


def attack_with(**changes):
    options = {"x": images(4, 4), "y": labels(4), "eps": EPS, "step_size": STEP, "num_steps": 2, **changes}
    return attacks.pgd(Linear(48), options.pop("x"), options.pop("y"), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attack_with(eps=-0.1), "eps: expected a finite number >= 0, got -0.1"),
        (lambda: attack_with(eps=math.nan), "eps: expected a finite number >= 0, got nan"),
        (lambda: attack_with(num_steps=0), "num_steps: expected at least 1, got 0"),
        (lambda: attack_with(num_restarts=0), "num_restarts: expected at least 1, got 0"),
        (lambda: attack_with(num_restarts=2, judging_draws=0), "judging_draws: expected at least 1, got 0"),
        (lambda: attack_with(x=images(4, 4) + 2e-6), "got values from 2e-06 to 1, outside by 2e-06"),
        (lambda: attack_with(step_size=-1.0), "step_size: expected a finite number >= 0, got -1.0"),
        (lambda: attack_with(norm="l1"), "norm: expected one of .* got 'l1'"),
        (lambda: attack_with(batch_norm="off"), "batch_norm: expected one of .* got 'off'"),
        (lambda: attack_with(x=images(4, 4) * 255), r"expected images within \[0, 1\], got values from 0 to 255"),
        (
            lambda: attack_with(x=3 * images(4, 4), bounds=(-1, 2)),
            r"expected images within \[-1, 2\], got values from 0",
        ),
        (lambda: attack_with(x=images(4, 4) * math.nan, bounds=None), r"within \[-inf, inf\], got values from nan"),
        (lambda: attack_with(x=images(4, 4) - 0.5), r"within \[0, 1\], got values from -0.5"),
        (lambda: attack_with(x=images(4, 4) * math.nan), r"within \[0, 1\], got values from nan to nan"),
        (lambda: attack_with(x=torch.ones(4, 3, 4, 4).byte()), r"expected floating-point images .* got torch.uint8"),
        (lambda: attack_with(x=images(0, 4), y=labels(0)), "expected at least one image, got none"),
        (lambda: attack_with(y=labels(3)), r"expected int64 labels of shape \(4,\), got torch.int64 \(3,\)"),
        (lambda: attack_with(y=labels(4).float()), r"expected int64 labels of shape \(4,\), got torch.float32"),
        (lambda: attack_with(y=labels(4) - 1), "expected labels >= 0, got -1"),
        (lambda: attack_with(y=labels(4) + 8), "expected labels below 10, got 11"),
        (
            lambda: attacks.cw(Linear(48), images(4, 4), labels(4), variant="l0"),
            "variant: expected one of .* 'l0'",
        ),
        (
            lambda: attacks.cw(Linear(48), images(4, 4), labels(4), kappa=-1.0),
            "kappa: expected a finite number >= 0, got -1.0",
        ),
        (
            lambda: attacks.cw(Linear(48), images(4, 4), labels(4), variant="authors", num_searches=3),
            "expected no target and one search for variant 'authors'",
        ),
        (lambda: attacks.ExpectationOverTransformation(Linear(48), 0), "num_draws: expected at least 1, got 0"),
        (
            lambda: logits_of(nn.Identity(), images(4, 4), 3),
            r"expected logits of shape \(4, num_classes\), got \(4, 3, 4, 4\)",
        ),
        (lambda: logits_of(Answers(), images(4, 4), 3), "model: expected logits, got dict: wrap it in a module"),
    ],
)
def test_wrong_input_is_met_with_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("dtype", "excess"), [(torch.float64, 1e-7), (torch.float32, 1.2e-7), (torch.bfloat16, 7e-3)])
def test_images_outside_by_rounding_are_attacked_as_the_nearest_inside(dtype, excess):
    model, y = Linear(48).to(dtype), labels(4)
    inside = images(4, 4, dtype=dtype)
    outside = torch.where(inside == 1, torch.nextafter(inside, inside + 1), inside)
    outside = torch.where(inside == 1, torch.maximum(outside, torch.tensor(1 + excess, dtype=dtype)), outside)
    assert outside.max() > 1
    for attack in (attacks.fgsm, attacks.pgd):
        options = {} if attack is attacks.fgsm else {"step_size": STEP, "num_steps": 2, "random_start": False}
        results = [attack(model, x, y, eps=EPS, **options) for x in (inside, outside)]
        assert torch.equal(*results)
    assert torch.equal(*(attacks.cw(model, x, y, num_steps=2) for x in (inside, outside)))


def test_a_model_that_returns_nan_is_reported():
    model = Linear(48)
    model.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="model: expected finite logits and gradients, got infinity or NaN"):
        attacks.fgsm(model, images(4, 4), labels(4), eps=EPS)
