"""The weight on paths: unbiased against closed forms and automatic differentiation, and no slope needed behind it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bridge.path_gradient import PathGradient
from netkit import attacks, en_resnet, evaluate, inject_noise, noise_of
from netkit.models import resnet
from netkit.noise import noise_parts

COPIES = 4000


def image(size: int = 4) -> Tensor:
    return torch.rand(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """(COPIES, ...): independent estimates of the gradient of weights · logits."""
    points = x.expand(COPIES, -1, -1, -1).clone().requires_grad_()
    (slope,) = torch.autograd.grad((model(points) * weights).sum(), points)
    return slope


def z_scores(a: Tensor, b: Tensor | float) -> Tensor:
    variance = a.var(0) / len(a) + (b.var(0) / len(b) if isinstance(b, Tensor) and b.dim() == a.dim() else 0)
    return (a.mean(0) - (b.mean(0) if isinstance(b, Tensor) and b.dim() == a.dim() else b)) / variance.sqrt()


class Round(nn.Module):
    """Steps of 1/10, whose derivative is zero wherever it exists."""

    def forward(self, x: Tensor) -> Tensor:
        return (10 * x).round() / 10


class Plain(nn.Module):
    """x + F(x) in two linear blocks, and logits."""

    def __init__(self, *, rounded: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(48, size, bias=False).double() for size in (48, 48, 3))
        generator = torch.Generator().manual_seed(0)
        for layer in (self.first, self.second, self.last):
            nn.init.normal_(layer.weight, std=0.15, generator=generator)
        self.masked = Round() if rounded else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.masked(self.first(x.flatten(1)))))

    def slope(self, weights: Tensor) -> Tensor:
        return (weights @ self.last.weight @ self.second.weight @ self.first.weight).view(3, 4, 4).detach()


def linear(**options: Any) -> Any:
    model = Plain(**options)
    return inject_noise(model, blocks=["first", "second"], noise_std="constant", sigma=0.5, seed=0)


@pytest.mark.parametrize("noises", ["first", "all"])
@pytest.mark.parametrize("num_pairs", [1, 3])
def test_a_linear_network_has_the_gradient_of_the_closed_form(noises, num_pairs):
    model, weights = linear(), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = gradients(PathGradient(model, num_pairs, noises=noises), image(), weights)
    z = z_scores(found, model.slope(weights))
    assert float(z.abs().max()) < 4.5
    assert 0.2 < float(z.square().mean()) < 1.8  # four standard errors of a mean of 48 squares


@pytest.mark.parametrize("noises", ["first", "all"])
@pytest.mark.parametrize("kind", ["constant", "sample", "injected", "probabilities"])
def test_it_is_unbiased_on_a_network(kind, noises):
    options: dict[str, Any] = {"width": 2, "num_classes": 3, "num_members": 1, "seed": 0}
    if kind == "constant":
        model: Any = en_resnet(8, noise_std="constant", sigma=1.0, **options)
    elif kind == "injected":
        model = inject_noise(resnet(8, **options), 0.5, noise_std="sample", seed=0)
    elif kind == "probabilities":
        more = {"num_members": 2, "average": "probabilities"}
        model = en_resnet(8, noise_coef=0.5, noise_std="sample", **(options | more))
    else:
        model = en_resnet(8, noise_coef=0.5, noise_std="sample", **options)
    model = model.double().eval()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ours = gradients(PathGradient(model, 2, noises=noises), image(), weights)
    theirs = gradients(model, image(), weights)
    z = z_scores(ours, theirs)
    assert float(z.abs().max()) < 4.5
    assert 0.2 < float(z.square().mean()) < 1.8


def test_all_noises_have_the_smaller_variance_which_falls_with_the_pairs():
    model, weights = linear(), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    variance = {
        (noises, pairs): float(gradients(PathGradient(model, pairs, noises=noises), image(), weights).var(0).mean())
        for noises in ("first", "all")
        for pairs in (1, 4)
    }
    assert variance["all", 1] < 0.9 * variance["first", 1]
    assert 0.15 < variance["first", 4] / variance["first", 1] < 0.35


def test_behind_the_first_noise_no_slope_is_needed():
    model, weights = linear(rounded=True), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert bool((gradients(model, image(), weights) == 0).all())
    found = gradients(PathGradient(model, 2), image(), weights)
    # steps of 1/10 under noise of 0.35 are a slope of one, up to exp(-2 π² 12) (Poisson's summation)
    assert float(z_scores(found, model.slope(weights)).abs().max()) < 4.5


def test_an_attack_takes_it_in_place_of_the_model():
    model: Any = linear(rounded=True)
    x = image().expand(6, -1, -1, -1).clone()
    with torch.no_grad():
        y = torch.stack([model(x) for _ in range(50)]).mean(0).argmax(1)
    attack = partial(attacks.ifgsm, eps=0.3, step_size=0.1, num_steps=10)
    options: dict[str, Any] = {"num_draws": 50, "eps": 0.3}
    masked = evaluate.robust_accuracy(model, x, y, attack, **options)
    seen = evaluate.robust_accuracy(model, x, y, attack, oracle=PathGradient(model, 10), eot_draws=1, **options)
    assert seen.mean < masked.mean - 0.3


def test_the_model_is_left_as_it_was_also_by_an_error():
    model: Any = en_resnet(8, num_members=2, width=2, noise_std="sample", seed=0).double().eval()
    view = PathGradient(model)
    view(image())
    with pytest.raises(ValueError, match="images of shape"):
        view(image()[:, :1])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert {type(part) for part in noise_parts(view)} >= {type(part) for part in noise_parts(model)}
    assert not view.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PathGradient(resnet(8, width=2)), "got none: netkit.inject_noise"),
        (lambda: PathGradient(en_resnet(8, width=2)), "got 'gaussian' and 'batch'"),
        (lambda: PathGradient(en_resnet(8, width=2, noise="two_point", noise_std="sample")), "got 'two_point' and"),
        (lambda: PathGradient(linear(), 0), "num_pairs: expected at least 1, got 0"),
        (lambda: PathGradient(linear(), noises="some"), "noises: expected one of"),  # type: ignore[arg-type]
    ],
)
def test_noise_without_a_density_is_refused(make, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        make()


def test_noise_that_is_off_is_refused():
    model = linear()
    with noise_of(model).noise_off(), pytest.raises(ValueError, match="expected its noise on"):
        PathGradient(model)(image())
