"""Deterministic views of random models: what they compute, what they leave alone, and what they refuse."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

from netkit import attacks, en_resnet, evaluate, inject_noise, noise_of
from netkit.identity import describe_model
from netkit.models import ResNet
from netkit.noise import Noise, noise_parts
from netkit.randomness import is_random

EPS = 8 / 255


def images(count: int = 6, size: int = 12, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def noisy(std: Any = "sample", noise: Any = "gaussian") -> nn.Module:
    sigma = 0.5 if std == "constant" else None
    model = en_resnet(8, num_members=2, width=4, noise=noise, noise_std=std, noise_coef=0.5, sigma=sigma, seed=0)
    return model.double().eval()


def injected() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10).double().eval()
    return inject_noise(model, 0.5, noise_std="sample", seed=0)


class TwoStreams(nn.Module):
    """Two noisy networks that nobody joined."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(ResNet(8, width=4, noise=Noise(std="sample"), seed=seed) for seed in (0, 1))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x) + self.parts[1](x)


class Dropped(nn.Module):
    """Logits of noisy pixels, with dropout at test time."""

    def __init__(self, inside: nn.Module | None = None) -> None:
        super().__init__()
        self.inside = inside
        self.weight = nn.Parameter(torch.ones(10, 3 * 12 * 12, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        logits = F.dropout(x.flatten(1)) @ self.weight.T
        return logits if self.inside is None else logits + self.inside(x)


MODELS = {"own": noisy, "two-point": partial(noisy, noise="two_point"), "injected": injected, "two streams": TwoStreams}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_frozen_view_gives_each_image_one_answer_whatever_its_batch(make):
    model, x = make(), images()
    view = attacks.frozen_noise(model, x, 3)
    whole = view(x)
    torch.testing.assert_close(view(x), whole, rtol=0, atol=0)
    torch.testing.assert_close(view(x.flip(0)).flip(0), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([view(x[:1]), view(x[1:])]), whole, rtol=1e-12, atol=1e-12)
    for other in (attacks.frozen_noise(model, x, 4), attacks.noise_free(model), model):
        assert float((other(x) - whole).detach().abs().max()) > 1e-3
    assert not is_random(view, x)


@pytest.mark.parametrize("std", ["sample", "constant"])
def test_frozen_noise_is_the_fixed_noise_of_one_draw_for_all_images(std):
    model, x = noisy(std), images()
    view = attacks.frozen_noise(model, x, 3)
    draws = [draw.expand(len(x), -1, -1, -1) for draw in view.streams[0].draws]
    assert len(draws) == 6
    with noise_of(model).fixed_noise(draws):
        torch.testing.assert_close(view(x), model(x), rtol=1e-12, atol=1e-12)


def test_frozen_draws_have_the_distribution_of_the_noise():
    model, x = noisy(), images()
    drawn = torch.stack([attacks.frozen_noise(model, x, seed).streams[0].draws[0].flatten() for seed in range(20)])
    z = (drawn.mean() * drawn.numel() ** 0.5, (drawn.square().mean() - 1) * (drawn.numel() / 2) ** 0.5)
    assert max(abs(float(value)) for value in z) < 4
    assert len(drawn.unique(dim=0)) == 20


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_view_without_noise_is_the_twin(make):
    model, x = make(), images()
    view = attacks.noise_free(model)
    torch.testing.assert_close(view(x), view(x), rtol=0, atol=0)
    if not isinstance(model, TwoStreams):
        with noise_of(model).noise_off():
            torch.testing.assert_close(view(x), model(x), rtol=0, atol=0)


def test_the_noise_scale_of_the_model_holds_in_its_views():
    model, x = noisy(), images()
    view, still = attacks.frozen_noise(model, x, 3), attacks.noise_free(model)
    full = view(x)
    with noise_of(model).noise_scale(0.5):
        assert float((view(x) - full).detach().abs().max()) > 1e-3
        torch.testing.assert_close(still(x), attacks.noise_free(model)(x), rtol=0, atol=0)
    with noise_of(model).noise_off():
        torch.testing.assert_close(view(x), still(x), rtol=0, atol=0)
        made_without = attacks.frozen_noise(model, x, 3)
    torch.testing.assert_close(made_without(x), full, rtol=0, atol=0)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_model_is_left_as_it_was_also_by_an_error(make):
    model, x = make().train(), images()
    streams = [part.stream for part in noise_parts(model) if hasattr(part, "stream")]
    before = describe_model(model), [stream.generator(x.device).get_state() for stream in streams]
    world = torch.get_rng_state()
    views = [attacks.noise_free(model), attacks.frozen_noise(model, x, 3)]
    for view in views:
        assert view.training
        view.eval()(x)
        with pytest.raises((RuntimeError, ValueError), match=r"channels|shape"):
            view(x[:, :1])
    model.train()
    after = [part.stream for part in noise_parts(model) if hasattr(part, "stream")]
    assert all(a is b for a, b in zip(streams, after, strict=True))
    assert describe_model(model) == before[0]
    for stream, state in zip(streams, before[1], strict=True):
        assert stream.scale == 1
        torch.testing.assert_close(stream.generator(x.device).get_state(), state, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), world, rtol=0, atol=0)


def test_views_share_the_weights():
    model, x = noisy(), images()
    views = [attacks.noise_free(model), attacks.frozen_noise(model, x, 3)]
    before = [view(x) for view in views]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert all(bool((view(x) != logits).any()) for view, logits in zip(views, before, strict=True))


@pytest.mark.parametrize("make", [noisy, injected, partial(noisy, std="constant")])
def test_gradients_and_transforms_see_one_function(make):
    model, x = make(), images(3)
    for view in (attacks.frozen_noise(model, x, 3), attacks.noise_free(model)):
        tensor, direction = x.clone().requires_grad_(), images(3, dtype=torch.float64) - 0.5
        (slope,) = torch.autograd.grad(view(tensor).logsumexp(1).sum(), tensor)
        up, down = (view(x + s * 1e-6 * direction).logsumexp(1).sum() for s in (1, -1))
        torch.testing.assert_close((slope * direction).sum(), (up - down) / 2e-6, rtol=1e-6, atol=1e-7)
        ours = torch.func.vmap(torch.func.grad(lambda each, view=view: view(each[None]).logsumexp(1).sum()))(x)
        torch.testing.assert_close(ours, slope, rtol=1e-9, atol=1e-12)


def test_views_are_oracles_of_stored_evaluations(tmp_path: Path):
    model, x, y = noisy(), images(4, size=8), torch.arange(4)
    attack = partial(attacks.ifgsm, eps=EPS, step_size=EPS / 4, num_steps=1)
    names = []
    for oracle in (attacks.noise_free(model), attacks.frozen_noise(model, x, 0), attacks.frozen_noise(model, x, 1)):
        store = tmp_path / f"{len(names)}.safetensors"
        first = evaluate.robust_accuracy(model, x, y, attack, oracle=oracle, batch_size=2, store=store)
        again = evaluate.robust_accuracy(model, x, y, attack, oracle=copy.deepcopy(oracle), batch_size=2, store=store)
        torch.testing.assert_close(again.predictions, first.predictions, rtol=0, atol=0)
        names.append(describe_model(oracle))
    assert len(set(names)) == 3
    assert describe_model(attacks.frozen_noise(model, x, 1)) == names[2]


def test_other_randomness_is_seeded_by_frozen_noise_and_refused_by_noise_free():
    x = images()
    for model in (Dropped(), Dropped(noisy())):
        view = attacks.frozen_noise(model, x, 3)
        torch.testing.assert_close(view(x), view(x), rtol=0, atol=0)
        assert float((view(x) - attacks.frozen_noise(model, x, 4)(x)).detach().abs().max()) > 0
        assert float((view(x) - model(x)).detach().abs().max()) > 0
    with pytest.raises(ValueError, match="own or injected, to switch off, got none: attacks"):
        attacks.noise_free(Dropped())
    with pytest.raises(ValueError, match="draws random numbers, as dropout does: attacks"):
        attacks.noise_free(Dropped(noisy()))(x)


@pytest.mark.parametrize("draw", [lambda model: np.random.rand(), lambda model: torch.rand((), generator=model.own)])  # noqa: NPY002
def test_noise_free_notices_generators_of_other_kinds(draw):
    model = noisy()
    model.own = torch.Generator().manual_seed(0)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * (1 + draw(module)),))
    with pytest.raises(ValueError, match="draws random numbers"):
        attacks.noise_free(model)(images())


def test_frozen_noise_is_for_images_of_one_size():
    model = noisy()
    view = attacks.frozen_noise(model, images(), 3)
    with pytest.raises(ValueError, match="size that the noise was frozen for"):
        view(images(size=16))
