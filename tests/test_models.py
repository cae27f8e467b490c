"""Noisy residual networks: architecture, noise, ensembles, names."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from netkit.models import (
    EnResNet,
    ResNet,
    build,
    count_parameters,
    en_resnet,
    equal_size_resnet,
    from_name,
    resnet,
    wide_resnet,
)
from netkit.noise import Noise, NoiseStream, ResidualNoise, add_scaled_noise


def images(batch: int = 4, channels: int = 3, size: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64):
    return torch.rand(batch, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def small(**options) -> EnResNet:
    options = {"num_members": 2, "width": 4, "seed": 0, **options}
    return en_resnet(8, **options).double().eval()


# Architecture


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ResNet20", 0.27),
        ("ResNet32", 0.46),
        ("ResNet44", 0.66),
        ("ResNet110", 1.73),
        ("WRN-14-2", 0.69),
        ("En2ResNet20", 0.54),
        ("WideResNet34-10", 46.16),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    # He et al. 2016 print 0.46M and 1.7M for 32 and 110 layers without 1x1 shortcuts, which add 2,560.
    model = from_name(name, seed=0)
    assert abs(count_parameters(model) / 1e6 - millions) < 0.01


def test_forward_is_the_authors_formula_written_out():
    model = resnet(14, width=4, seed=1).double()
    state = {key.removeprefix("members.0."): value for key, value in model.state_dict().items()}
    x = images(size=12)

    def bn_relu(out: Tensor, name: str) -> Tensor:
        mean, var = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), correction=0, keepdim=True)
        out = (out - mean) / torch.sqrt(var + 1e-5)
        return torch.relu(out * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1))

    out = F.conv2d(x, state["stem.weight"], padding=1)
    for index in range(6):
        block = f"blocks.{index}"
        stride = 2 if index in (2, 4) else 1
        activated = bn_relu(out, f"{block}.bn1")
        if stride == 2:
            out = F.conv2d(activated, state[f"{block}.shortcut.weight"], stride=2)
        inner = F.conv2d(activated, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        out = out + F.conv2d(bn_relu(inner, f"{block}.bn2"), state[f"{block}.conv2.weight"], padding=1)
    features = bn_relu(out, "bn").mean((2, 3))
    expected = features @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (2, 7)])
def test_any_small_image_size_and_number_of_channels_works(channels, size):
    model = en_resnet(8, in_channels=channels, num_classes=7, width=4, seed=0)
    assert model(images(3, channels, size, dtype=torch.float32)).shape == (3, 7)


def test_initial_weights_have_he_variance_on_the_fan_out():
    convolution = resnet(20, width=32, seed=0).members[0].blocks[-3].conv1.weight.detach().double()
    assert convolution.shape == (128, 64, 3, 3)
    standardised = convolution.flatten() / math.sqrt(2 / (9 * 128))
    assert stats.kstest(standardised.numpy(), "norm").pvalue > 1e-4


def test_the_seed_decides_all_weights_and_members_differ():
    one, same, other = (en_resnet(8, width=4, seed=seed).state_dict() for seed in (3, 3, 4))
    for key, value in one.items():
        assert torch.equal(value, same[key])
    stem = "members.0.stem.weight"
    assert not torch.equal(one[stem], other[stem])
    assert not torch.equal(one[stem], one["members.1.stem.weight"])
    unseeded = [en_resnet(8, width=4).state_dict()[stem] for _ in range(2)]
    assert not torch.equal(*unseeded)


def test_normalisation_is_the_first_layer():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    plain, normalised = resnet(8, width=4, seed=0), resnet(8, width=4, normalize=(mean, std), seed=0)
    x = images(dtype=torch.float32)
    by_hand = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(normalised(x), plain(by_hand))


# Noise


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("std", ["batch", "sample"])
def test_scaled_noise_is_the_closed_form_and_so_is_its_gradient(std, channels_last):
    x, xi, upstream = (images(seed=seed) - 0.3 for seed in range(3))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    size = x.std() if std == "batch" else x.flatten(1).std(1).view(-1, 1, 1, 1)
    expected = x + 0.7 * size * xi
    (expected_gradient,) = torch.autograd.grad(expected, x, upstream)
    result = add_scaled_noise(x, xi, noise_coef=0.7, std=std)
    (gradient,) = torch.autograd.grad(result, x, upstream)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    assert result.stride() == x.stride()
    # Cutting the gradient through std would be something else.
    assert not torch.allclose(gradient, upstream, rtol=1e-2)
    few, given = x.detach()[:2, :2, :3, :3].clone().requires_grad_(), xi[:2, :2, :3, :3]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        check(lambda t: add_scaled_noise(t, given, noise_coef=0.7, std=std), (few,))


def test_scaled_noise_in_place_overwrites_and_has_the_same_gradient():
    x, xi = images(seed=1), images(seed=2)
    x.requires_grad_()
    outside = add_scaled_noise(x * 2, xi, noise_coef=0.5)
    doubled = x * 2
    inside = add_scaled_noise(doubled, xi, noise_coef=0.5, inplace=True)
    assert inside.data_ptr() == doubled.data_ptr()
    assert torch.equal(inside, outside)
    gradients = [torch.autograd.grad(out.sin().sum(), x)[0] for out in (inside, outside)]
    assert torch.equal(*gradients)


def test_scaled_noise_of_a_constant_image_adds_nothing_and_has_a_finite_gradient():
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64, requires_grad=True)
    result = add_scaled_noise(x, images(2, 1, 4), noise_coef=0.5)
    assert torch.equal(result, x)
    (gradient,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    assert torch.equal(gradient, torch.ones_like(x))
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.isfinite().all()


def test_scaled_noise_measures_std_in_single_precision_for_half_precision_images():
    # Summed in bfloat16, a million squares would stop growing at 256.
    x = (images(64, 16, 32, dtype=torch.float32) - 0.5).to(torch.bfloat16)
    result = add_scaled_noise(x, torch.ones_like(x), noise_coef=2.0)
    assert result.dtype == torch.bfloat16
    added = (result.float() - x.float()).mean()
    torch.testing.assert_close(added, 2 * x.float().std(), rtol=0.005, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 4.0])
def test_scaled_noise_in_half_precision_is_that_of_double_precision_but_for_rounding(mean, dtype):
    generator = torch.Generator().manual_seed(0)
    x, xi, upstream = (torch.randn(40, 16, 16, 16, generator=generator).to(dtype) for _ in range(3))
    x, upstream = (x + mean).requires_grad_(), upstream + xi  # so that the gradient through std matters
    exact = x.detach().double().requires_grad_()
    expected = exact + 0.7 * exact.std() * xi.double()
    result = add_scaled_noise(x, xi, noise_coef=0.7)
    gradients = torch.autograd.grad(result, x, upstream)[0], torch.autograd.grad(expected, exact, upstream.double())[0]
    for found, wanted in ((result, expected), gradients):
        error = (found.double() - wanted).abs()
        assert (error <= 4 * torch.finfo(dtype).eps * (wanted.abs() + mean + 1)).all()
    assert (gradients[1] - upstream.double()).abs().max() > 100 * torch.finfo(dtype).eps


def test_scaled_noise_needs_two_entries():
    with pytest.raises(ValueError, match=r"expected at least two entries .* got \(3, 1\)"):
        add_scaled_noise(torch.ones(3, 1), torch.ones(3, 1), noise_coef=0.1, std="sample")


def draw(noise: Noise, *, shape=(64, 4, 16, 16), channels_last: bool = False, num_blocks: int = 4) -> Tensor:
    """What the noise adds to zeros."""
    layer = ResidualNoise(noise, num_blocks=num_blocks, stream=NoiseStream(seed=5))
    zeros = torch.zeros(shape, dtype=torch.float64)
    return layer(zeros.contiguous(memory_format=torch.channels_last) if channels_last else zeros)


@pytest.mark.parametrize("channels_last", [False, True])
def test_constant_noise_is_a_brownian_increment_over_one_block(channels_last):
    added = draw(Noise("gaussian", "constant", sigma=0.3), channels_last=channels_last)
    standardised = added.flatten().numpy() / (0.3 * math.sqrt(1 / 4))
    assert stats.kstest(standardised, "norm").pvalue > 1e-4


@pytest.mark.parametrize("channels_last", [False, True])
def test_two_point_noise_is_fair_independent_signs(channels_last):
    signs = draw(Noise("two_point", "constant", sigma=2.0), channels_last=channels_last)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    flat = signs.contiguous().flatten()
    count = flat.numel()
    assert abs(flat.sum()) < 4 * math.sqrt(count)
    for lag in (1, 2, 31, 32, 33, 64, 4096):
        assert abs((flat[lag:] * flat[:-lag]).sum()) < 4 * math.sqrt(count - lag)


def test_two_point_noise_of_any_number_of_entries():
    assert draw(Noise("two_point", "constant", sigma=1.0), shape=(1, 1, 3, 5)).abs().unique().tolist() == [0.5]


@pytest.mark.parametrize("kind", ["gaussian", "two_point"])
def test_noise_of_a_block_has_the_measured_size(kind):
    layer = ResidualNoise(Noise(kind, "sample", 0.2), num_blocks=1, stream=NoiseStream(seed=0))
    x = images(3, 16, 32) * torch.tensor([1.0, 5.0, 25.0]).view(3, 1, 1, 1)
    ratio = (layer(x.clone()) - x).flatten(1).square().mean(1) / (0.2 * x.flatten(1).std(1)) ** 2
    # A mean of squares of n standard normals has variance 2 / n; of signs, zero.
    assert torch.all((ratio - 1).abs() < 4 * math.sqrt(2 / x[0].numel()))


def test_sample_noise_does_not_depend_on_batch_neighbours_and_batch_noise_does():
    x = images(4)
    neighbours = torch.cat([x[:1], 0.1 * x[1:]])
    for std, independent in (("sample", True), ("batch", False)):
        model = small(noise_std=std)
        with model.fixed_noise(7):
            first, again = model(x)[0], model(neighbours)[0]
        assert torch.equal(first, again) is independent


def test_same_generator_state_same_output():
    model, x = small(), images()
    state = model.generator_state()
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    model.set_generator_state(state)
    assert torch.equal(model(x), first)
    assert torch.equal(model(x), second)
    # A fresh model of the same seed starts at the same state.
    assert torch.equal(small()(x), first)


def test_a_generator_can_be_set_lent_and_taken_back():
    model, x = small(), images()
    first = model(x)
    model.set_generator(torch.Generator().manual_seed(9))
    state = model.generator_state()
    with model.using_generator(torch.Generator().manual_seed(11)):
        lent = model(x)
    assert torch.equal(model.generator_state(), state)
    nine = model(x)
    model.set_generator(torch.Generator().manual_seed(11))
    assert torch.equal(model(x), lent)
    model.set_generator(None)
    assert torch.equal(model(x), first)
    assert not torch.equal(nine, lent)
    model.set_generator(torch.Generator().manual_seed(9))
    assert torch.equal(model(x), nine)


def test_a_generator_of_another_device_is_refused():
    stream = NoiseStream(seed=0)
    stream.set_generator(torch.Generator())
    with pytest.raises(ValueError, match="generator: expected one on cuda, got one on cpu"):
        stream.generator(torch.device("cuda"))


def test_a_copied_model_continues_with_the_same_noise_by_itself():
    model, x = small(), images()
    model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(model(x), twin(x))
    model(x)
    assert not torch.equal(model.generator_state(), twin.generator_state())


def test_noise_off_is_the_network_without_noise_and_draws_nothing():
    model, plain, x = small(), small(noise="off"), images()
    plain.load_state_dict(model.state_dict())
    state = model.generator_state()
    with model.noise_off():
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model.generator_state(), state)
    assert not torch.equal(model(x), plain(x))


def test_noise_scale_multiplies_the_noise():
    model, direct, x = small(noise_coef=0.1), small(noise_coef=0.05), images()
    with model.noise_scale(0.5):
        halved = model(x)
    torch.testing.assert_close(halved, direct(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(x), direct(x))


def test_fixed_noise_repeats_itself_and_leaves_the_generator_alone():
    model, x = small(), images()
    expected = small()(x)
    with model.fixed_noise(3):
        first = model(x)
        assert torch.equal(model(x), first)
        with model.using_generator(torch.Generator().manual_seed(11)):
            assert torch.equal(model(x), first)
    assert torch.equal(model(x), expected)
    assert not torch.equal(first, expected)


def test_given_draws_make_the_network_an_euler_maruyama_path():
    model = small(num_members=1, noise_std="constant", sigma=0.4)
    network, x = model.members[0], images()
    shapes = [(4, 4, 8, 8), (4, 8, 4, 4), (4, 16, 2, 2)]
    draws = [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    path = network.stem(x)
    for block, xi in zip(network.blocks, draws, strict=True):
        path = block.residual(path) + 0.4 * math.sqrt(1 / 3) * xi
    expected = network.fc(F.relu(network.bn(path)).mean((2, 3)))
    with model.fixed_noise(draws):
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    with (
        model.fixed_noise(draws[:2]),
        pytest.raises(ValueError, match="source: expected one draw for each residual block, got 2"),
    ):
        model(x)
    with model.fixed_noise(draws[::-1]), pytest.raises(ValueError, match=r"draw 0 to have shape \(4, 4, 8, 8\), got"):
        model(x)


def test_neither_making_nor_running_a_model_touches_the_global_generator():
    before = torch.get_rng_state()
    for kind in ("gaussian", "two_point"):
        model = en_resnet(8, width=4, noise=kind)
        model(images(dtype=torch.float32)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_noisy_network_has_second_derivatives():
    model, x = small(noise_std="batch"), images(2)
    v = images(2, seed=1)

    def slope(point: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(model(point).square().sum(), point, create_graph=True)
        return gradient

    with model.fixed_noise(3):
        point = x.clone().requires_grad_()
        (hessian_times_v,) = torch.autograd.grad((slope(point) * v).sum(), point)
        step = 1e-6
        ends = [slope((x + sign * step * v).requires_grad_()).detach() for sign in (1, -1)]
    torch.testing.assert_close(hessian_times_v, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"noise_std": "sample"}, {"noise_std": "constant", "sigma": 0.3}])
def test_transforms_of_torch_func_see_through_noise(options):
    model, x = small(**options), images(2)

    def from_the_start(call):
        model.set_generator(torch.Generator().manual_seed(5))
        return call()

    point = x.clone().requires_grad_()
    logits = from_the_start(lambda: model(point))
    rows = [torch.autograd.grad(logits[i, k], point, retain_graph=True)[0] for i in range(2) for k in range(10)]
    jacobian = torch.stack(rows).view(2, 10, *x.shape)
    (gradient,) = torch.autograd.grad(logits.sin().sum(), point)
    found = from_the_start(lambda: torch.func.grad(lambda t: model(t).sin().sum())(x))
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)
    found = from_the_start(lambda: torch.func.jacrev(model)(x))
    torch.testing.assert_close(found, jacobian, rtol=1e-10, atol=1e-12)


def test_vmap_draws_the_same_noise_or_other_noise_as_it_is_told():
    model, x = small(noise_std="sample"), images(1).expand(3, -1, -1, -1)

    def mapped(randomness: str) -> Tensor:
        return torch.func.vmap(lambda image: model(image.unsqueeze(0))[0], randomness=randomness)(x)

    same, different = mapped("same"), mapped("different")
    torch.testing.assert_close(same, same[:1].expand(3, -1))
    assert len({tuple(row) for row in different.tolist()}) == 3
    with pytest.raises(RuntimeError, match="randomness"):
        mapped("error")
    inside = torch.func.vmap(lambda image: image.sum() + model(images(1)).sum(), randomness="same")(x)
    assert inside.shape == (3,)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize(
    "options", [{"noise_std": "batch"}, {"noise": "two_point", "noise_std": "constant", "sigma": 1.0}]
)
def test_torch_compile_makes_one_graph_of_a_noisy_network(options):
    model, x = small(num_members=1, **options), images(2)
    torch.compiler.reset()
    compiled, outcomes = torch.compile(model, backend="aot_eager", fullgraph=True), []
    for network in (model, compiled, compiled):
        point = x.clone().requires_grad_()
        model.set_generator(torch.Generator().manual_seed(5))
        first = network(point)
        outcomes.append(
            [first, network(point), *torch.autograd.grad(first.square().sum(), [point, *model.parameters()])]
        )
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(*outcomes[0][:2])
    twin = copy.deepcopy(model)
    assert twin.stream._number != model.stream._number


def test_noisy_channels_last_networks_stay_channels_last():
    model = small(num_members=1).to(memory_format=torch.channels_last)
    outputs = []
    for block in model.members[0].blocks:
        block.register_forward_hook(lambda _module, _inputs, out: outputs.append(out))
    model(images().contiguous(memory_format=torch.channels_last))
    assert len(outputs) == 3
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in outputs)


# Ensembles


def test_an_ensemble_is_the_mean_over_its_members():
    model, x = small(num_members=3, noise="off"), images()
    logits = [member(x) for member in model.members]
    torch.testing.assert_close(model(x), sum(logits) / 3, rtol=1e-14, atol=1e-14)
    assert torch.equal(model.member_logits(x), torch.stack(logits))


def test_members_draw_their_noise_one_after_the_other():
    model, x = small(), images()
    expected = model(x)
    fresh = small()
    one_by_one = [member(x) for member in fresh.members]
    torch.testing.assert_close(expected, sum(one_by_one) / 2, rtol=1e-14, atol=1e-14)


def test_weights_and_depths_may_differ_and_weights_may_be_negative():
    x = images()
    members = [ResNet(depth, width=4, seed=depth).double().eval() for depth in (8, 14)]
    model = EnResNet(members, weights=[-0.25, 1.25]).double()
    expected = -0.25 * members[0](x) + 1.25 * members[1](x)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    model.set_weights([0.5, 0.5])
    torch.testing.assert_close(model(x), (members[0](x) + members[1](x)) / 2, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match=r"expected a sum of one, got \[0.5, 0.6\]"):
        model.set_weights([0.5, 0.6])
    with pytest.raises(ValueError, match="expected one for each of 2 members"):
        model.set_weights([1.0])
    with pytest.raises(ValueError, match="expected a sum of one"):
        model.set_weights([math.nan, 1.0])


def test_average_of_probabilities_is_the_mean_of_softmax():
    model, x = small(noise="off"), images()
    mean = torch.stack([member(x).softmax(1) for member in model.members]).mean(0)
    model.average = "probabilities"
    torch.testing.assert_close(model(x).softmax(1), mean, rtol=1e-12, atol=1e-12)


def test_joined_ensembles_count_once_each_and_share_one_stream():
    x = images()
    two, three = small(num_members=2, seed=1), small(num_members=3, seed=2)
    joined = EnResNet([two, three], seed=3).double().eval()
    with joined.noise_off():
        expected = (two(x) + three(x)) / 2
        torch.testing.assert_close(joined(x), expected, rtol=1e-14, atol=1e-14)
    streams = {id(module.stream) for module in joined.modules() if isinstance(module, ResidualNoise)}
    assert streams == {id(joined.stream)} == {id(two.stream)}
    state = joined.generator_state()
    first = joined(x)
    joined.set_generator_state(state)
    assert torch.equal(joined(x), first)


@pytest.mark.parametrize("name", ["En2ResNet8", "En1ResNet8&En2ResNet14", "WRN-10-2"])
def test_a_model_is_rebuilt_from_its_config_and_state(name):
    options = {"num_classes": 5, "in_channels": 1, "width": 4, "noise_std": "sample", "normalize": ([0.3], [0.4])}
    model = from_name(name, seed=0, **options).eval()
    rebuilt = build(json.loads(json.dumps(model.config))).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert rebuilt.config == model.config
    x = images(channels=1, dtype=torch.float32)
    with model.fixed_noise(1), rebuilt.fixed_noise(1):
        assert torch.equal(rebuilt(x), model(x))


# Names


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("ResNet20", lambda: resnet(20, seed=0)),
        ("En1ResNet44", lambda: en_resnet(44, num_members=1, seed=0)),
        ("En5ResNet20", lambda: en_resnet(20, num_members=5, seed=0)),
        ("WRN-14-2", lambda: wide_resnet(14, 2, seed=0)),
        ("En2WideResNet10-2", lambda: en_resnet(10, widen_factor=2, num_members=2, seed=0)),
    ],
)
def test_names_are_those_of_the_tables(name, same):
    named, expected = from_name(name, seed=0), same()
    assert named.config == expected.config
    for value, other in zip(named.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other)


def test_joined_names_are_joined_models():
    model = from_name("En2ResNet8&En1ResNet14", width=4, seed=0)
    assert [len(part.members) for part in model.members] == [2, 1]
    assert [part.members[0].config["depth"] for part in model.members] == [8, 14]


@pytest.mark.parametrize("name", ["ResNet", "resnet20", "En2", "En2ResNet20&", "WRN-14", "VGG16", "ResNet20 "])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="name: expected one such as 'ResNet20'"):
        from_name(name)


@pytest.mark.parametrize("num_members", [2, 5])
def test_the_equal_size_control_has_the_size_of_the_ensemble(num_members):
    ensemble = en_resnet(20, num_members=num_members, in_channels=1, seed=0)
    control = equal_size_resnet(20, num_members=num_members, in_channels=1, seed=0)
    assert len(control.members) == 1
    assert abs(count_parameters(control) / count_parameters(ensemble) - 1) < 0.05
    neighbours = [resnet(20, width=control.members[0].config["width"] + step, in_channels=1) for step in (-1, 1)]
    gap = abs(count_parameters(control) - count_parameters(ensemble))
    assert all(abs(count_parameters(other) - count_parameters(ensemble)) >= gap for other in neighbours)


# Wrong input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(21), r"depth: expected 6n \+ 2 or 6n \+ 4 with n >= 1, got 21"),
        (lambda: resnet(2), "got 2"),
        (lambda: en_resnet(20, num_members=0), "num_members: expected at least 1, got 0"),
        (lambda: equal_size_resnet(20, num_members=0), "num_members: expected at least 1, got 0"),
        (lambda: en_resnet(20, width=0), "width: expected at least 1, got 0"),
        (lambda: en_resnet(20, noise_coef=-0.1), "noise_coef: expected a finite number >= 0, got -0.1"),
        (lambda: en_resnet(20, noise="cauchy"), "noise: expected one of .* got 'cauchy'"),
        (lambda: en_resnet(20, noise_std="layer"), "noise_std: expected one of .* got 'layer'"),
        (lambda: en_resnet(20, noise_std="constant"), "sigma: expected a value exactly when noise_std is 'constant'"),
        (lambda: en_resnet(20, sigma=0.1), "got sigma=0.1 with noise_std='batch'"),
        (lambda: en_resnet(20, noise_std="constant", sigma=-1.0), "sigma: expected a finite number >= 0, got -1.0"),
        (lambda: en_resnet(20, average="median"), "average: expected 'logits' or 'probabilities', got 'median'"),
        (lambda: resnet(20, normalize=([0.5], [0.5])), "expected a mean for each of 3 channels, got 1"),
        (lambda: resnet(20, normalize=([0.5] * 3, [0.5, 0.5, 0.0])), "a mean and a std > 0 for each channel"),
        (lambda: EnResNet([]), r"members: expected one \(in_channels, num_classes\), got \[\]"),
        (lambda: EnResNet([ResNet(8), ResNet(8, num_classes=3)]), r"got \[\(3, 3\), \(3, 10\)\]"),
        (lambda: build({"type": "VGG"}), "config: expected type 'ResNet' or 'EnResNet', got 'VGG'"),
        (lambda: build({"type": "EnResNet"}), "config: expected one made by EnResNet.config: 'members'"),
        (lambda: build(ResNet(8).config), "config: expected that of an EnResNet, got one of 'ResNet'"),
        (lambda: resnet(8)(torch.rand(2, 1, 8, 8)), r"images of shape \(B, 3, H, W\), got \(2, 1, 8, 8\)"),
        (lambda: resnet(8).noise_scale(-1).__enter__(), "scale: expected a finite number >= 0, got -1"),
    ],
)
def test_wrong_input_is_met_with_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
