"""Networks by the names that the paper's tables and this project's controls have, each parsed once into a value."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from netkit.injection import inject_input_noise
from netkit.models import EnResNet, en_resnet, equal_size_resnet
from netkit.noise import NoiseKind
from netkit.randomness import derived_seed

Kind = Literal["single", "noisy", "silent", "two-point", "wide", "trainable", "apart", "smoothed", "average"]

_PREFIX: dict[str, Kind] = {
    "": "single",
    "En": "noisy",
    "Plain": "silent",
    "TwoPoint": "two-point",
    "Wide": "wide",
    "Pni": "trainable",
}
_NOISE: dict[Kind, NoiseKind] = {"noisy": "gaussian", "two-point": "two_point", "trainable": "trainable"}
_NAME = re.compile(
    r"(?:(En|Plain|TwoPoint|Wide|Pni)([1-9]\d*))?(?:ResNet([1-9]\d*)|(?:WideResNet|WRN-)([1-9]\d*)-([1-9]\d*))"
)
_APART = re.compile(r"Sep([1-9]\d*)([^+&]*)")
_SMOOTHED = re.compile(r"Smooth(\d+(?:\.\d+)?)([^+&]*)")
_TRAINED_FROM = 0.25  # where He, Rakin and Fan start the coefficients of their noise
_ON_DIGITS = {"ResNet20": "ResNet8", "ResNet32": "ResNet14", "WRN-14-2": "WRN-8-2"}
REPEAT_SEED = 1000  # between the seeds of networks of one kind, trained apart for one ensemble


@dataclass(frozen=True)
class Network:
    """A row's network.

    name: "ResNet20" and "WRN-14-2" are single networks, "En5ResNet20" averages five with noise, "Plain5ResNet20" five
        without, "TwoPoint5ResNet20" five with noise of ±1, "Pni5ResNet20" five whose noise is trained with the weights,
        and "Wide5ResNet20" is a single one with as many parameters as five. "A&B" averages A and B, trained together,
        "A+B" trained apart, and "Sep5A" five of A trained apart. "Smooth0.25A" is A with noise of σ = 0.25 on its
        input, in training as well; other noise is then that of a single image, as a certificate asks for.
    num_members: n in a name that has one, else 1.
    smoothed: A in "Smooth0.25A".
    """

    name: str
    kind: Kind
    num_members: int = 1
    depth: int = 0
    widen_factor: int = 1
    parts: tuple[Network, ...] = ()
    smoothed: Network | None = None
    input_sigma: float = 0.0

    @classmethod
    def parse(cls, name: str) -> Network:
        """The network called `name`; raises ValueError for a name of another form, or a depth that does not exist."""
        for sign in "+&":
            if sign in name:
                parts = tuple(cls.parse(part) for part in name.split(sign))
                if any(part.kind == "apart" for part in parts):
                    raise ValueError(f"expected SepN by itself, not joined with others, got {name!r}")
                return cls(name, "average", parts=parts)
        if (apart := _APART.fullmatch(name)) is not None:
            part = cls.parse(apart[2])
            if part.kind != "apart":
                members = int(apart[1])
                return cls(name, "apart", members, part.depth, part.widen_factor, parts=(part,) * members)
        smoothed = _SMOOTHED.fullmatch(name)
        if smoothed is not None and smoothed[1] == f"{float(smoothed[1]):g}" != "0":
            inner = cls.parse(smoothed[2])
            if inner.kind not in ("apart", "smoothed"):
                return replace(inner, name=name, kind="smoothed", smoothed=inner, input_sigma=float(smoothed[1]))
        if (match := _NAME.fullmatch(name)) is None:
            raise ValueError(
                "expected a network such as ResNet20, WRN-14-2, En2ResNet20, Plain2ResNet20, Wide2ResNet20, "
                "Pni2ResNet20, Sep2ResNet20, Smooth0.25ResNet20, or several joined by & (trained together) or + "
                f"(trained apart), got {name!r}"
            )
        prefix, count, depth, wide_depth, widen = match.groups()
        network = cls(name, _PREFIX[prefix or ""], int(count or 1), int(depth or wide_depth), int(widen or 1))
        if network.depth < 8 or network.depth % 6 not in (2, 4):
            raise ValueError(f"expected a depth of 6n + 2 or 6n + 4 with n >= 1, got {name!r}")
        return network

    def __str__(self) -> str:
        return self.name

    @property
    def is_noisy(self) -> bool:
        """True for a network that answers at random."""
        return self.kind in _NOISE or self.kind == "smoothed" or any(part.is_noisy for part in self.parts)

    @property
    def family(self) -> str:
        """The single network that it is made of: ResNet20 for En2ResNet20."""
        if self.kind == "apart":
            return self.parts[0].family
        if self.smoothed is not None:
            return self.smoothed.family
        prefix = _NAME.fullmatch(self.name)
        return self.name if prefix is None or prefix[1] is None else self.name.removeprefix(prefix[1] + prefix[2])

    @property
    def num_averaged(self) -> int:
        """The number of networks that its prediction averages."""
        if self.parts:
            return sum(part.num_averaged for part in self.parts)
        if self.smoothed is not None:
            return self.smoothed.num_averaged
        return 1 if self.kind == "wide" else self.num_members

    @property
    def is_trained_apart(self) -> bool:
        return self.kind == "apart" or "+" in self.name

    def trained(self, seed: int) -> list[tuple[Network, int]]:
        """The networks that are trained for it, each with its seed: more than one where they are trained apart.

        Networks of one kind get seeds of their own, which no other ensemble of a few seeds in a row uses.
        """
        if not self.is_trained_apart:
            return [(self, seed)]
        return [(part, seed + REPEAT_SEED * self.parts[:i].count(part)) for i, part in enumerate(self.parts)]

    def on(self, dataset: str) -> Network:
        """The network that stands for it; see `on_dataset`."""
        return Network.parse(on_dataset(self.name, dataset))

    def has_stand_in_on(self, dataset: str) -> bool:
        """True where every part has a stand-in that is small enough for the data set."""
        singles = [part.family for part in self.parts or (self,)]
        return dataset != "digits" or all(single in _ON_DIGITS for single in singles)

    def build(self, *, seed: int, **options: Any) -> EnResNet:
        """The untrained network; options as for `netkit.en_resnet`: num_classes, in_channels, width."""
        if self.parts:
            pairs = (
                self.trained(seed)
                if self.is_trained_apart
                else [(part, derived_seed(seed, "part", number)) for number, part in enumerate(self.parts)]
            )
            return EnResNet([part.build(seed=own, **options) for part, own in pairs], seed=seed)
        if self.smoothed is not None:
            return inject_input_noise(self.smoothed.build(seed=seed, noise_std="sample", **options), self.input_sigma)
        options |= {"widen_factor": self.widen_factor, "seed": seed}
        if self.kind == "trainable":
            options["noise_coef"] = _TRAINED_FROM
        if self.kind == "wide":
            return equal_size_resnet(self.depth, num_members=self.num_members, **options)
        return en_resnet(self.depth, num_members=self.num_members, noise=_NOISE.get(self.kind, "off"), **options)


def labelled(label: str) -> Network:
    """The network in the label of a row, which may say more in brackets."""
    return Network.parse(label.partition(" (")[0])


def kind_of(label: str) -> Kind:
    """The kind of the network in a row's label; an average of several counts as what its first part is."""
    network = labelled(label)
    return network.parts[0].kind if network.kind == "average" else network.kind


def on_dataset(text: str, dataset: str) -> str:
    """`text` with the networks that stand for those it names: on digits, depth 8 for depth 20 and 14 for 32."""
    for printed, ours in _ON_DIGITS.items() if dataset == "digits" else ():
        text = re.sub(rf"{printed}(?![\d-])", ours, text)
    return text


def stand_ins(text: str) -> list[str]:
    """For each network named in `text` that another one stands for on digits, which one."""
    return [
        f"{ours} stands for {printed}"
        for printed, ours in _ON_DIGITS.items()
        if re.search(rf"{printed}(?![\d-])", text)
    ]
