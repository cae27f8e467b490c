"""A network's name is parsed once, and says everything that its table needs to know."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from netkit import EnResNet, en_resnet, evaluate, from_name
from netkit.injection import input_sigma
from netkit.models import equal_size_resnet
from netkit.randomness import changed_by_neighbours
from studies.lab.networks import Kind, Network, kind_of, on_dataset, stand_ins

KINDS: dict[str, Kind] = {
    "En": "noisy",
    "Plain": "silent",
    "TwoPoint": "two-point",
    "Wide": "wide",
    "Pni": "trainable",
}
BASES = {"ResNet8": (8, 1), "ResNet20": (20, 1), "WRN-14-2": (14, 2), "WideResNet34-10": (34, 10)}
SMALL: dict[str, Any] = {"seed": 3, "width": 4, "in_channels": 1}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("prefix", "count"), [("", 1), *itertools.product(KINDS, (1, 2, 17))])
def test_a_name_gives_back_what_it_was_made_of(prefix: str, count: int, base: str) -> None:
    name = f"{prefix}{count}{base}" if prefix else base
    network = Network.parse(name)
    assert (str(network), network.name, network.family) == (name, name, base)
    assert (network.kind, network.num_members) == (KINDS.get(prefix, "single"), count)
    assert (network.depth, network.widen_factor) == BASES[base]
    assert network.is_noisy == (prefix in ("En", "TwoPoint", "Pni"))
    assert network.num_averaged == (1 if prefix == "Wide" else count)
    assert network.trained(5) == [(network, 5)]
    for sign in "+&":
        pair = Network.parse(f"{name}{sign}ResNet8")
        assert (str(pair), pair.kind, pair.parts) == (
            f"{name}{sign}ResNet8",
            "average",
            (network, Network.parse("ResNet8")),
        )
        assert pair.is_noisy == network.is_noisy
        assert pair.num_averaged == network.num_averaged + 1
        assert pair.is_trained_apart == (sign == "+")


REFUSED = "VGG16 ResNet ResNet9 ResNet2 En0ResNet20 En2 En02ResNet20 ResNet020 resnet20 WRN-14 WRN-14-0 WRN-14-2-2"
REFUSED += " ResNet20+ &ResNet20 ResNet20++ResNet20 En2ResNet20&VGG16 TwoPoint2 Wide2 2ResNet20 En-1ResNet20"
REFUSED += " Sep0ResNet20 SepResNet20 Sep2 Sep2Sep2ResNet20 Sep2ResNet20+ResNet20 Sep2ResNet20&ResNet20 Sep2VGG16"
REFUSED += " Smooth0ResNet20 SmoothResNet20 Smooth.5ResNet20 Smooth0.50ResNet20 Smooth0.25Sep2ResNet20 Smooth0.5"


@pytest.mark.parametrize("name", ["", "ResNet20 ", "En2 ResNet20", *REFUSED.split()])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected (a network such as|a depth of|SepN by itself)"):
        Network.parse(name)


def are_equal(first: EnResNet, second: EnResNet) -> bool:
    """In architecture, weights and noise."""
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = first.state_dict(), second.state_dict()
    same = first.config == second.config and ours.keys() == theirs.keys()
    return same and all(torch.equal(ours[key], theirs[key]) for key in ours) and torch.equal(first(x), second(x))


@pytest.mark.parametrize("name", ["ResNet8", "WRN-8-2", "En1ResNet8", "En2ResNet8", "En2WRN-8-2"])
def test_the_papers_networks_are_those_of_the_library(name: str) -> None:
    assert are_equal(Network.parse(name).build(**SMALL), from_name(name, **SMALL))
    assert not are_equal(Network.parse(name).build(**SMALL | {"seed": 4}), from_name(name, **SMALL))


def test_the_controls_are_what_they_are_called() -> None:
    assert are_equal(Network.parse("Plain2ResNet8").build(**SMALL), en_resnet(8, num_members=2, noise="off", **SMALL))
    two_point = en_resnet(8, num_members=2, noise="two_point", **SMALL)
    assert are_equal(Network.parse("TwoPoint2ResNet8").build(**SMALL), two_point)
    trainable = en_resnet(8, num_members=2, noise="trainable", noise_coef=0.25, **SMALL)
    assert are_equal(Network.parse("Pni2ResNet8").build(**SMALL), trainable)
    assert are_equal(Network.parse("Wide2ResNet8").build(**SMALL), equal_size_resnet(8, num_members=2, **SMALL))


def test_networks_trained_apart_are_those_that_are_trained_for_it() -> None:
    network = Network.parse("En1ResNet8+ResNet8+En1ResNet8")
    assert [(part.name, seed) for part, seed in network.trained(3)] == [
        ("En1ResNet8", 3),
        ("ResNet8", 3),
        ("En1ResNet8", 1003),
    ]
    parts = [part.build(**SMALL | {"seed": seed}) for part, seed in network.trained(3)]
    assert are_equal(network.build(**SMALL), EnResNet(parts, seed=3))


def test_members_trained_apart_are_those_of_the_single_network_and_its_repetitions() -> None:
    network = Network.parse("Sep3ResNet8")
    assert (network.kind, network.family, network.num_members, network.num_averaged) == ("apart", "ResNet8", 3, 3)
    assert not network.is_noisy
    assert [(part.name, seed) for part, seed in network.trained(2)] == [
        ("ResNet8", 2),
        ("ResNet8", 1002),
        ("ResNet8", 2002),
    ]
    assert network.trained(2)[:2] == Network.parse("ResNet8+ResNet8").trained(2)
    assert are_equal(network.build(**SMALL), Network.parse("ResNet8+ResNet8+ResNet8").build(**SMALL))
    noisy = Network.parse("Sep2En1ResNet20").on("digits")
    assert (noisy.name, noisy.is_noisy, noisy.family) == ("Sep2En1ResNet8", True, "ResNet8")
    assert kind_of("Sep2ResNet20 (natural)") == "apart"


@pytest.mark.parametrize("inner", ["ResNet8", "En2ResNet8", "Plain2ResNet8", "WRN-8-2"])
def test_a_smoothed_network_is_one_with_noise_on_its_input(inner: str) -> None:
    network, base = Network.parse(f"Smooth0.25{inner}"), Network.parse(inner)
    assert (network.kind, network.is_noisy, network.input_sigma) == ("smoothed", True, 0.25)
    assert (network.family, network.num_averaged) == (base.family, base.num_averaged)
    assert network.trained(3) == [(network, 3)]
    model = network.build(**SMALL).eval()
    assert input_sigma(model) == 0.25
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert evaluate.is_random(model, x)
    assert changed_by_neighbours(model, x) is None
    with torch.no_grad(), model.noise_off():
        plain = model(x)
    twin = base.build(**SMALL).eval()
    with torch.no_grad(), twin.noise_off():
        assert torch.equal(twin(x), plain)
    apart = Network.parse(f"Sep2Smooth0.25{inner}")
    assert [part for part, _ in apart.trained(0)] == [network, network]


def test_parts_trained_together_begin_with_weights_of_their_own() -> None:
    model = Network.parse("ResNet8&ResNet8").build(**SMALL)
    first, second = (next(member.parameters()) for member in model.members)
    assert not torch.equal(first, second)
    assert are_equal(model, Network.parse("ResNet8&ResNet8").build(**SMALL))


@pytest.mark.parametrize(
    "name",
    [
        *("ResNet8", "En1ResNet8", "Plain2ResNet8", "TwoPoint2ResNet8", "Wide2ResNet8", "ResNet8&En1ResNet8"),
        *("Pni1ResNet8", "Sep2ResNet8", "Sep2En1ResNet8", "Smooth0.1ResNet8", "Sep2Smooth0.1ResNet8"),
    ],
)
def test_a_network_that_is_called_noisy_answers_at_random(name: str) -> None:
    network = Network.parse(name)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert evaluate.is_random(network.build(**SMALL).eval(), x) == network.is_noisy


def test_on_digits_something_small_stands_for_a_network() -> None:
    joined = "En2ResNet20+En1ResNet32&WRN-14-2"
    assert on_dataset(joined, "digits") == "En2ResNet8+En1ResNet14&WRN-8-2"
    assert on_dataset(joined, "cifar10") == joined
    assert Network.parse("Wide2ResNet20").on("digits") == Network.parse("Wide2ResNet8")
    assert stand_ins(joined) == [
        "ResNet8 stands for ResNet20",
        "ResNet14 stands for ResNet32",
        "WRN-8-2 stands for WRN-14-2",
    ]
    assert Network.parse("En2ResNet20+ResNet32").has_stand_in_on("digits")
    for other in ("ResNet200", "WideResNet20-2", "WRN-14-20"):
        assert on_dataset(other, "digits") == other
        assert stand_ins(other) == []
        assert not Network.parse(f"ResNet20+{other}").has_stand_in_on("digits")
        assert Network.parse(f"ResNet20+{other}").has_stand_in_on("cifar10")
