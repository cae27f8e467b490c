"""Members in groups and members in a loop say the same, learn the same, and take the same given noise."""

import copy

import pytest
import torch
from torch import Tensor

import netkit
from netkit.models import EnResNet, PreActBlock, ResNet, en_resnet, from_name

NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def images(seed: int = 0) -> Tensor:
    return torch.rand(5, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(**options) -> tuple[EnResNet, EnResNet]:
    """The same ensemble twice, with running statistics of some images: looped, and grouped."""
    looped = en_resnet(14, width=4, num_members=3, seed=0, normalize=NORMALIZE, **options).double()
    looped(images(seed=1))
    grouped = copy.deepcopy(looped)
    grouped.execution = "grouped"
    return looped, grouped


def draws(model: EnResNet) -> list[Tensor]:
    sizes = [(4, 12)] * 2 + [(8, 6)] * 2 + [(16, 3)] * 2
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(5, width, size, size, dtype=torch.float64, generator=generator)
        for _ in model.members
        for width, size in sizes
    ]


def logits_and_gradients(model: EnResNet, x: Tensor) -> list[Tensor]:
    x = x.requires_grad_()
    logits = model(x)
    return [logits, *torch.autograd.grad(logits.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "noise", [{"noise": "off"}, {}, {"noise_std": "sample"}, {"noise_std": "constant", "sigma": 0.5}]
)
def test_groups_are_the_loop_with_the_same_gradients_and_statistics(noise, training, memory_format):
    outcomes = []
    for model in pair(**noise):
        model = model.train(training).to(memory_format=memory_format)
        with model.fixed_noise(draws(model)):
            outcomes.append([*logits_and_gradients(model, images()), *model.buffers()])
    torch.testing.assert_close(*outcomes, rtol=1e-12, atol=1e-12)


def test_grouped_members_are_inside_another_ensemble_what_they_are_alone():
    outcomes = []
    for inner in pair():
        with torch.no_grad():
            outer = EnResNet([inner, en_resnet(14, width=4, num_members=1, seed=3).double()], seed=0).eval()
            with outer.fixed_noise([*draws(inner), *draws(inner)[:6]]):
                outcomes.append(outer(images()))
    torch.testing.assert_close(*outcomes, rtol=1e-12, atol=1e-12)


def test_noise_drawn_in_groups_has_the_size_of_each_member():
    looped, grouped = (model.eval() for model in pair())
    with torch.no_grad():
        for model in (looped, grouped):
            model.members[0].stem.weight.mul_(100)  # of which its noise must be the only one to take notice
        spreads = [
            torch.stack([model.member_logits(images()) for _ in range(200)]).std(0) for model in (looped, grouped)
        ]
    ratio = (spreads[1] / spreads[0]).flatten(1).mean(1)
    # a ratio of two deviations of 200 draws has a relative error of 1/√200; logits of one image are not independent
    assert ((ratio - 1).abs() < 4 / (200 * 5) ** 0.5).all()


def test_the_state_is_the_same_and_execution_is_no_part_of_it():
    looped, grouped = pair()
    assert grouped.config == looped.config
    assert list(grouped.state_dict()) == list(looped.state_dict())


def test_only_equal_residual_networks_are_grouped():
    for model in (EnResNet([ResNet(8, seed=0), ResNet(14, seed=0)]), from_name("ResNet20&ResNet20", width=2)):
        with pytest.raises(ValueError, match="expected residual networks of one configuration"):
            model.execution = "grouped"
        assert model.execution == "loop"
        assert netkit.fastest_execution(model, images().float()) == "loop"
    with pytest.raises(ValueError, match=r"expected execution to be one of .*, got 'stacked'"):
        en_resnet(8, seed=0).execution = "stacked"


def test_members_in_different_modes_are_not_grouped():
    _, grouped = pair()
    grouped.members[0].bn.eval()
    with pytest.raises(ValueError, match="batch norms of all members in one mode"):
        grouped(images())


def test_measuring_what_is_fastest_leaves_no_trace(monkeypatch):
    model, _ = pair()
    model.train().members[0].bn.eval()
    before = copy.deepcopy(model.state_dict()), model.generator_state(), [m.training for m in model.modules()]
    for faster in ("loop", "grouped"):

        def seconds(run, _device, faster=faster) -> float:
            run()
            blocks = [module for module in model.modules() if isinstance(module, PreActBlock)]
            assert all(block.frozen for block in blocks)  # as in an attack
            return 1.0 if model.execution == faster else 2.0

        monkeypatch.setattr("netkit.execution._seconds", seconds)
        assert netkit.fastest_execution(model, images(), num_rounds=1) == faster
    after = model.state_dict(), model.generator_state(), [m.training for m in model.modules()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert model.execution == "loop"
