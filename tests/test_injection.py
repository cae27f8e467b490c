"""Noise in networks that know nothing of it: ours as the reference, torchvision's and timm's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

from netkit import attacks, en_resnet, ensemble, evaluate, inject_noise, noise_of, remove_noise
from netkit.identity import describe_model
from netkit.models import resnet
from netkit.noise import NoiseStream, add_scaled_noise


def images(count: int = 4, size: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with weights of its own, and batch norms and layer scales that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def vit(**options: Any) -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return tv.VisionTransformer(**{**sizes, "num_classes": 10, **options})


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    return tv.ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)], num_classes=10)


def swin() -> nn.Module:
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": [2, 2]}
    return tv.SwinTransformer(**sizes, num_classes=10)


def small_resnet(block: str = "BasicBlock", **options: Any) -> nn.Module:
    return tv.ResNet(getattr(tv.resnet, block), [1, 1, 1, 1], num_classes=10, **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (partial(tv.resnet18, num_classes=10), 8),
    "bottleneck": (partial(small_resnet, "Bottleneck"), 4),
    "wide": (partial(small_resnet, "Bottleneck", width_per_group=128), 4),
    "convnext": (convnext, 3),
    "vit": (vit, 4),
    "swin": (swin, 6),
}


@pytest.mark.parametrize("noise", ["gaussian", "two_point"])
@pytest.mark.parametrize(("std", "sigma"), [("batch", None), ("sample", None), ("constant", 0.3)])
def test_our_network_with_noise_injected_is_our_noisy_network(std: Any, sigma: float | None, noise: Any) -> None:
    options: dict[str, Any] = {"noise": noise, "noise_std": std, "sigma": sigma}
    reference = en_resnet(20, num_members=2, width=4, seed=1, **options).double()
    injected = resnet(20, num_members=2, width=4, seed=1).double()
    injected.load_state_dict(reference.state_dict())
    assert inject_noise(injected, **options) is injected
    for mode in (True, False):
        results = []
        for model in (reference, injected):
            model.train(mode).zero_grad()
            x = images(size=16).double().requires_grad_()
            with model.using_generator(torch.Generator().manual_seed(5)):
                logits = model(x)
            logits.logsumexp(1).sum().backward()
            results.append([logits.detach(), x.grad, *(parameter.grad for parameter in model.parameters())])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert float(results[0][0].std()) > 0


class NoisySum(nn.Module):
    """A torchvision block written out, with the noise in its place."""

    def __init__(self, block: Any, stream: NoiseStream) -> None:
        super().__init__()
        self.block, self.stream = block, stream

    def noisy(self, x: Tensor) -> Tensor:
        return add_scaled_noise(x, self.stream.draw(x, "gaussian"), noise_coef=0.1)


class NoisyBasicBlock(NoisySum):
    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        out = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        return self.noisy(out + (x if block.downsample is None else block.downsample(x))).relu()


class NoisyEncoderBlock(NoisySum):
    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        inside = block.ln_1(x)
        x = self.noisy(x + block.self_attention(inside, inside, inside, need_weights=False)[0])
        return self.noisy(x + block.mlp(block.ln_2(x)))


@pytest.mark.parametrize(
    ("make", "kind", "written_out"),
    [
        (partial(small_resnet), tv.resnet.BasicBlock, NoisyBasicBlock),
        (vit, tv.vision_transformer.EncoderBlock, NoisyEncoderBlock),
    ],
)
def test_the_noise_is_where_a_copy_of_the_code_has_it(make: Any, kind: type, written_out: type[NoisySum]) -> None:
    injected = seeded(make).double()
    copied, stream = copy.deepcopy(injected), NoiseStream(3)
    inject_noise(injected, seed=3)
    for name, block in [(name, module) for name, module in copied.named_modules() if isinstance(module, kind)]:
        parent, _, last = name.rpartition(".")
        setattr(copied.get_submodule(parent), last, written_out(block, stream))
    x, y = images().double().requires_grad_(), images().double().requires_grad_()
    first, second = injected(x), copied(y)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    first.square().sum().backward()
    second.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_residual_mapping_draws_and_nothing_else_of_the_model_changes(name: str) -> None:
    make, num_mappings = NETWORKS[name]
    model = seeded(make).double()
    x, names = images().double(), [name for name, _ in model.named_modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain = model(x)
        inject_noise(model, 0.2, seed=0)
        with noise_of(model).fixed_noise([torch.ones(1)] * num_mappings), pytest.raises(ValueError, match="have shape"):
            model(x)
        assert not torch.allclose(model(x), model(x))
        assert model.state_dict().keys() == state.keys()
        assert [name for name, _ in model.named_modules()] == names
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with noise_of(twin).fixed_noise(1), noise_of(model).fixed_noise(1):
                assert torch.equal(twin(x), model(x))
            with noise_of(twin).noise_off():
                assert torch.equal(twin(x), plain)
                assert not torch.equal(model(x), plain)
        before = noise_of(model).generator_state()
        with noise_of(model).noise_off():
            assert torch.equal(model(x), plain)
        assert torch.equal(noise_of(model).generator_state(), before)
        drawn: list[Tensor] = []
        noise_of(model).stream.draw = lambda like, kind: drawn.append(like) or torch.zeros_like(like)  # type: ignore
        torch.testing.assert_close(model(x), plain)
        assert len(drawn) == num_mappings
        remove_noise(model)
        assert torch.equal(model(x), plain)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="expected one with noise"):
        remove_noise(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_derivative_is_that_of_the_noisy_function(name: str) -> None:
    model = inject_noise(seeded(NETWORKS[name][0]).double(), 0.3)
    x, direction = images(2).double(), images(3)[1:].double()

    def loss(point: Tensor) -> Tensor:
        with noise_of(model).fixed_noise(7):
            return model(point).square().sum()

    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    step = 1e-6
    with torch.no_grad():
        difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "bottleneck"])
def test_the_noise_outlives_batch_norms_that_are_replaced(name: str) -> None:
    """As they are where several GPUs train."""
    model = inject_noise(seeded(NETWORKS[name][0]).double())
    with noise_of(model).fixed_noise(1), torch.no_grad():
        expected = model(images().double())
        replaced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        torch.testing.assert_close(replaced(images().double()), expected)


def test_an_error_within_a_pass_leaves_the_next_one_as_it_should_be() -> None:
    model = inject_noise(seeded(small_resnet), 0.3)
    block = model.get_submodule("layer2.0")
    with noise_of(model).fixed_noise(1), torch.no_grad():
        expected = model(images())
        hook = block.bn2.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(images())
        hook.remove()
        assert torch.equal(model(images()), expected)


def test_evaluations_and_attacks_repeat_their_draws() -> None:
    model = inject_noise(seeded(small_resnet), 0.5)
    x, y = images(8), torch.arange(8)
    attack = partial(attacks.pgd, eps=0.05, step_size=0.02, num_steps=2)
    wrapped = nn.Sequential(nn.Identity(), model)  # as with a normalisation in front
    scores = [evaluate.robust_accuracy(net, x, y, attack, seed=3) for net in (model, model, wrapped)]
    assert scores[0].num_draws == 10
    assert (scores[0].predictions != scores[0].predictions[0]).any()
    assert all(torch.equal(score.predictions, scores[0].predictions) for score in scores)
    assert noise_of(wrapped).stream is noise_of(model).stream


def test_stored_scores_know_the_noise_they_were_made_with(tmp_path: Path) -> None:
    names = set()
    for options in ({}, {"noise_coef": 0.2}, {"noise_std": "sample"}, {"noise": "two_point"}, {"blocks": "layer1.0"}):
        model = seeded(small_resnet)
        names.add(describe_model(model))
        again = describe_model(inject_noise(model, **options))
        names.add(again)
        assert describe_model(copy.deepcopy(model)) == again
        assert describe_model(remove_noise(model)) in names
    assert len(names) == 6
    model = inject_noise(seeded(small_resnet))
    first, second = (evaluate.accuracy(model, images(), torch.arange(4), store=tmp_path / "s") for _ in range(2))
    assert torch.equal(first.predictions, second.predictions)
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks on the model may do anything"):
        describe_model(model)


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return 2 * x


class Pair(Doubling):
    def forward(self, x: Tensor) -> Any:
        return x, x


CHOICES: list[Any] = ["0", ["0"], "Doubling", lambda name, module: isinstance(module, Doubling)]


@pytest.mark.parametrize("blocks", CHOICES, ids=["name", "names", "class", "predicate"])
def test_blocks_of_ones_own_are_named_or_chosen(blocks: Any) -> None:
    model = nn.Sequential(Doubling(), nn.Flatten(), nn.Linear(12, 3))
    x = images(5, size=2)
    with pytest.raises(ValueError, match="expected residual blocks of a known class"):
        inject_noise(model)
    inject_noise(model, blocks=blocks, noise_std="sample", noise_coef=0.5)
    xi = torch.randn(5, 3, 2, 2)
    with noise_of(model).fixed_noise([xi]):
        expected = model[1:](2 * x + 0.5 * (2 * x).flatten(1).std(1).view(-1, 1, 1, 1) * xi)
        torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match=r"netkit\.remove_noise\(model\) first"):
        inject_noise(model, blocks=blocks)


def test_wrong_choices_get_one_line() -> None:
    model = nn.Sequential(Pair(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"blocks: expected names .* in the model, got \['layer9'\]"):
        inject_noise(model, blocks=["0", "layer9"])
    with pytest.raises(ValueError, match="blocks: expected some modules of each network, got none"):
        inject_noise(model, blocks=lambda name, module: False)
    with pytest.raises(ValueError, match="model: expected one without noise of its own"):
        inject_noise(en_resnet(8, width=4))
    with pytest.raises(ValueError, match="expected one stream of noise, got 0"):
        noise_of(model)
    inject_noise(model, blocks="0")
    with pytest.raises(ValueError, match="expected modules that return one tensor, got <class 'tuple'> from '0'"):
        model(torch.ones(1, 2))


def test_the_noise_of_eq_14_counts_the_mappings_of_each_network() -> None:
    one, two = seeded(small_resnet), resnet(14, width=4, num_members=2, seed=0)
    for model, num_blocks in ((one, [4]), (ensemble([one, seeded(vit)]), [4, 4]), (two, [6, 6])):
        injected = vars(inject_noise(model, noise_std="constant", sigma=1.0))["injected_noise"]
        assert [layer.num_blocks for layer in injected.layers] == num_blocks
        remove_noise(model)


def test_a_member_that_counts_twice_has_its_noise_once() -> None:
    member, x = seeded(small_resnet), images()
    inject_noise(member, seed=0)
    with noise_of(member).fixed_noise(1), torch.no_grad():
        expected = member(x)
    model = inject_noise(ensemble([remove_noise(member)] * 2).eval())
    first = model.members[0]
    with model.fixed_noise(1), torch.no_grad():
        model(x)  # the first member's pass draws as the member alone did
        model.stream.rewind(1)
        torch.testing.assert_close(first(x), expected)


def test_an_ensemble_of_any_networks_is_their_weighted_mean_with_one_stream() -> None:
    members = [inject_noise(seeded(small_resnet)), seeded(vit), resnet(8, width=4, seed=0).eval()]
    model, x = ensemble(members, weights=[0.5, 0.2, 0.3], seed=0).eval(), images()
    assert noise_of(model) is model
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        with model.noise_off():
            expected = 0.5 * members[0](x) + 0.2 * members[1](x) + 0.3 * members[2](x)
            torch.testing.assert_close(model(x), expected)
            model.average = "probabilities"
            mean = sum(w * m(x).softmax(1) for w, m in zip((0.5, 0.2, 0.3), members, strict=True))
            torch.testing.assert_close(model(x).softmax(1), mean)
    with pytest.raises(ValueError, match=r"members: expected one \(in_channels, num_classes\), got \[\]"):
        ensemble([])
    with pytest.raises(ValueError, match=r"expected logits of one shape, got \[\(4, 7\), \(4, 10\)\]"):
        ensemble([seeded(vit), seeded(partial(vit, num_classes=7))])(x)


@pytest.mark.parametrize(
    ("name", "num_mappings", "options"),
    [
        ("resnet18", 8, {}),
        ("resnet50", 16, {}),
        ("wide_resnet50_2", 16, {}),
        ("resnetv2_50", 16, {}),
        ("convnext_atto", 12, {}),
        ("vit_tiny_patch16_224", 4, {"img_size": 32, "depth": 2}),
        ("swin_tiny_patch4_window7_224", 24, {"img_size": 64}),
    ],
)
def test_timms_networks_are_known(name: str, num_mappings: int, options: dict[str, Any]) -> None:
    model = seeded(partial(timm.create_model, name, num_classes=10, **options)).double()
    x = images(2, size=options.get("img_size", 32)).double()
    plain = model(x).detach()
    inject_noise(model, 0.1)
    drawn: list[Tensor] = []
    stream = noise_of(model).stream
    draw = stream.draw
    stream.draw = lambda like, kind: drawn.append(like) or draw(like, kind)  # type: ignore[method-assign]
    with noise_of(model).fixed_noise(0):
        point = x.clone().requires_grad_()
        noisy = model(point)
        assert len(drawn) == num_mappings
        (gradient,) = torch.autograd.grad(noisy.square().sum(), point)
        step = 1e-6 * torch.ones_like(x)
        with torch.no_grad():
            difference = float(model(x + step).square().sum() - model(x - step).square().sum()) / 2e-6
    assert not torch.allclose(noisy, plain)
    assert float(gradient.sum()) == pytest.approx(difference, rel=1e-4)
    with noise_of(model).noise_off(), torch.no_grad():
        torch.testing.assert_close(model(x), plain, rtol=1e-12, atol=1e-12)
