"""Pre-activated residual networks with noise after each residual mapping, and ensembles of them (Sec. 3.1, Fig. 1).

A residual network takes Euler steps of a transport equation (Eq. 8); with noise its blocks are Euler-Maruyama steps of
an Itô process, and the mean over an ensemble estimates the Feynman-Kac expectation (Eq. 14). `en_resnet(20,
num_members=2)` is the paper's En2ResNet20, and `from_name` knows every network of its tables.

The architecture is that of the authors' code: pre-activated blocks; where the width or the resolution changes, a 1x1
convolution of relu(bn(x)) without batch norm of its own is the shortcut; no noise after the first convolution. Only the
last pooling is a mean over whatever resolution is left, so that images smaller than 32x32 work.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from netkit.checks import check_counts, check_seed, check_whole, plain
from netkit.noise import (
    COEF,
    Noise,
    NoiseKind,
    NoiseStd,
    NoiseStream,
    NoisyModel,
    ResidualNoise,
    new_coef,
    share_stream,
)

Average = Literal["logits", "probabilities"]
Normalization = tuple[Sequence[float], Sequence[float]]


class Normalize(nn.Module):
    """(x - mean) / std for each channel, as the model's first layer: attacks see pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0) <= 0:
            raise ValueError(f"normalize: expected a mean and a std > 0 for each channel, got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class PreActBlock(nn.Module):
    """One residual block: x + F(x) with F = conv ∘ relu ∘ bn ∘ conv ∘ relu ∘ bn, then the noise."""

    noise_coef: nn.Parameter | None
    frozen: Callable[[Tensor], Tensor] | None = None
    """The residual mapping inside `netkit.frozen`, in place of the layers."""

    def __init__(self, in_width: int, out_width: int, *, stride: int, noise: ResidualNoise) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = _conv(in_width, out_width, kernel_size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.conv2 = _conv(out_width, out_width, kernel_size=3)
        keeps_shape = stride == 1 and in_width == out_width
        self.shortcut = None if keeps_shape else _conv(in_width, out_width, kernel_size=1, stride=stride)
        self.noise = noise
        self.register_parameter(COEF, new_coef(noise.noise))

    def residual(self, x: Tensor) -> Tensor:
        """x + F(x) without the noise: the Euler step of Eq. 8."""
        if self.frozen is not None:
            return self.frozen(x)
        out = F.relu(self.bn1(x), inplace=True)
        if self.shortcut is not None:
            x = self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out)), inplace=True))
        out += x
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, out_width, H / stride, W / stride)."""
        noisy: Tensor = self.noise(self.residual(x), self.noise_coef)
        return noisy


class ResNet(nn.Module):
    """One residual network: a first convolution, three stages of blocks of width w, 2w, 4w, pooling and a linear layer.

    The width is that of the first convolution, and w = width · widen_factor that of the first stage. The depth counts
    layers: 6n + 2 without the shortcut convolutions, for n blocks a stage. Wide networks are usually named with the
    shortcuts counted, 6n + 4 (WRN-34-10: n = 5); both are accepted.

    noise: the noise after each residual mapping; `Noise("off")` for the plain network.
    normalize: means and standard deviations of the channels, applied first; None for raw pixels.
    seed: of the initial weights and of the noise; None takes one from the operating system.

    Raises ValueError for a depth that is neither 6n + 2 nor 6n + 4, or a count below one.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: int = 16,
        widen_factor: int = 1,
        num_classes: int = 10,
        in_channels: int = 3,
        noise: Noise | None = None,
        normalize: Normalization | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_whole(depth=depth)
        if depth < 8 or depth % 6 not in (2, 4):
            raise ValueError(f"depth: expected 6n + 2 or 6n + 4 with n >= 1, got {depth}")
        counts = {
            "width": width,
            "widen_factor": widen_factor,
            "num_classes": num_classes,
            "in_channels": in_channels,
        }
        check_counts(**counts)
        if normalize is not None:
            if len(normalize[0]) != in_channels:
                got = len(normalize[0])
                raise ValueError(f"normalize: expected a mean for each of {in_channels} channels, got {got}")
            normalize = [plain(value) for value in normalize[0]], [plain(value) for value in normalize[1]]
        noise = Noise("off") if noise is None else noise
        generator, noise_seed = _generator_and_noise_seed(seed)
        self.config: dict[str, Any] = {
            "type": "ResNet",
            "depth": plain(depth),
            **{name: plain(count) for name, count in counts.items()},
            "noise": asdict(noise),
            "normalize": None if normalize is None else list(normalize),
        }
        self.in_channels, self.num_classes = in_channels, num_classes
        blocks_per_stage = (depth - 2) // 6
        residual_noise = ResidualNoise(noise, num_blocks=3 * blocks_per_stage, stream=NoiseStream(noise_seed))
        self.normalize = None if normalize is None else Normalize(*normalize)
        self.stem = _conv(in_channels, width, kernel_size=3)
        blocks, in_width = [], width
        for stage in range(3):
            out_width = width * widen_factor * 2**stage
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(PreActBlock(in_width, out_width, stride=stride, noise=residual_noise))
                in_width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(in_width)
        self.fc = skip_init(nn.Linear, in_width, num_classes)
        self._init_weights(generator)

    def _init_weights(self, generator: torch.Generator) -> None:
        """He et al. 2015 on the fan-out, as in the authors' code; the linear layer as torch has it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out), generator=generator)
        bound = 1 / math.sqrt(self.fc.in_features)
        nn.init.uniform_(self.fc.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.fc.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [0, 1] -> (B, num_classes)."""
        if self.normalize is not None:
            x = self.normalize(x)
        out = F.relu(self.bn(self.blocks(self.stem(x))), inplace=True)
        logits: Tensor = self.fc(out.mean((2, 3)))
        return logits


class EnResNet(NoisyModel):
    """The average of several networks' predictions (Fig. 1c), with one stream of noise for all of them.

    members: at least one; networks that map images to logits, or ensembles (Table 7 joins two ensembles, each of which
        then counts once). They are used, not copied, and draw their noise, also where it is injected, from this model
        from now on.
    weights: one for each member, summing to one; uniform by default. See `set_weights`.
    average: of the `"logits"`, as in the paper's figures and code, or of the `"probabilities"` f = softmax, as
        Eq. 14 reads. The latter returns logarithms of the mean probabilities, so that its softmax is that mean.
    seed: of the noise; None takes one from the operating system.

    in_channels, num_classes: of the members that are networks of this package; None where none is.

    Raises ValueError for no members, members of other classes or channels, or weights that do not sum to one.
    """

    in_channels: int | None
    num_classes: int | None
    weights: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        weights: Sequence[float] | None = None,
        average: Average = "logits",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        shapes = {(m.in_channels, m.num_classes) for m in members if isinstance(m, ResNet | EnResNet)} - {(None, None)}
        if len(shapes) > 1 or not members:
            raise ValueError(f"members: expected one (in_channels, num_classes), got {sorted(shapes)}")
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average: expected 'logits' or 'probabilities', got {average!r}")
        self.members = nn.ModuleList(members)
        self.in_channels, self.num_classes = shapes.pop() if shapes else (None, None)
        self.average = average
        self.register_buffer("weights", torch.empty(len(members)))
        self.set_weights([1 / len(members)] * len(members) if weights is None else weights)
        share_stream(self, NoiseStream(seed))

    @property
    def config(self) -> dict[str, Any]:
        """The argument of `build` for this architecture, fit for JSON. Weights of layers and members are the state."""
        members = [member.config for member in self.members]
        return {"type": "EnResNet", "members": members, "average": self.average}

    def set_weights(self, weights: Sequence[float] | Tensor) -> None:
        """Weight the members; negative weights are allowed for logits, as extrapolation needs them (Sec. 5).

        Raises ValueError unless there is one finite weight for each member and they sum to one; for a negative weight
        where probabilities are averaged, which might then be negative themselves.
        """
        values = torch.as_tensor(weights, dtype=torch.float64)
        if values.shape != (len(self.members),):
            raise ValueError(f"weights: expected one for each of {len(self.members)} members, got {weights}")
        if not abs(float(values.sum()) - 1) < 1e-6:
            raise ValueError(f"weights: expected a sum of one, got {values.tolist()}")
        if self.average == "probabilities" and bool((values < 0).any()):
            raise ValueError(f"weights: expected none negative, as probabilities are averaged, got {values.tolist()}")
        self.weights.copy_(values)

    def member_logits(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (num_members, B, num_classes): each member's logits.

        Raises ValueError for logits of different shapes.
        """
        logits = [member(x) for member in self.members]
        if len(shapes := {tuple(each.shape) for each in logits}) > 1:
            raise ValueError(f"members: expected logits of one shape, got {sorted(shapes)}")
        return torch.stack(logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [0, 1] -> (B, num_classes).

        Raises ValueError for images of another number of dimensions or channels.
        """
        if self.in_channels is not None and (x.dim() != 4 or x.shape[1] != self.in_channels):
            raise ValueError(f"x: expected images of shape (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        logits = self.member_logits(x)
        # Normalised here, as 1/3 stored in float32 would not be one third once the model is in float64.
        weights = (self.weights / self.weights.sum()).view(-1, 1, 1)
        if self.average == "logits":
            return (weights * logits).sum(0)
        return (weights.log() + logits.log_softmax(-1)).logsumexp(0)


def ensemble(
    members: Sequence[nn.Module],
    *,
    weights: Sequence[float] | None = None,
    average: Average = "logits",
    seed: int | None = None,
) -> EnResNet:
    """The average of any networks, which map images in [0, 1] to logits of the same classes; see `EnResNet`."""
    return EnResNet(members, weights=weights, average=average, seed=seed)


def networks_of(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """The single networks inside ensembles of any depth, each with the n of its share 1/n in the average."""
    if not isinstance(model, EnResNet):
        yield model, 1
        return
    for member in model.members:
        for network, count in networks_of(member):
            yield network, count * len(model.members)


def en_resnet(
    depth: int = 20,
    *,
    num_members: int = 2,
    noise_coef: float = 0.1,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    widen_factor: int = 1,
    noise: NoiseKind = "gaussian",
    noise_std: NoiseStd = "batch",
    sigma: float | None = None,
    normalize: Normalization | None = None,
    average: Average = "logits",
    seed: int | None = None,
) -> EnResNet:
    """An ensemble of noisy residual networks of one kind: `en_resnet(20, num_members=5)` is En5ResNet20.

    depth: 6n + 2 or 6n + 4; see `ResNet`.
    num_members: the number of networks that are averaged; their initial weights are independent.
    noise_coef: the paper's a.
    noise: `"gaussian"`, `"two_point"`, `"trainable"` or `"off"`; with `"off"` this is a plain ensemble. See
        `netkit.noise.Noise`.
    noise_std: `"batch"` (the authors' code), `"sample"` or `"constant"`; see `netkit.noise`.
    sigma: σ of Eq. 14, for `noise_std="constant"`, which does not use noise_coef.
    width, widen_factor, num_classes, in_channels, normalize: see `ResNet`.
    average: see `EnResNet`.
    seed: of all initial weights and of the noise; None takes one from the operating system.

    Raises ValueError for other values than these.
    """
    check_counts(num_members=num_members)
    generator, noise_seed = _generator_and_noise_seed(seed)
    seeds = torch.randint(2**63 - 1, (num_members,), generator=generator).tolist()
    members = [
        ResNet(
            depth,
            width=width,
            widen_factor=widen_factor,
            num_classes=num_classes,
            in_channels=in_channels,
            noise=Noise(noise, noise_std, noise_coef, sigma),
            normalize=normalize,
            seed=member_seed,
        )
        for member_seed in seeds
    ]
    return EnResNet(members, average=average, seed=noise_seed)


def resnet(depth: int, **options: Any) -> EnResNet:
    """The base network: one member, no noise. Options as for `en_resnet`."""
    return en_resnet(depth, **{"num_members": 1, "noise": "off", **options})


def wide_resnet(depth: int, widen_factor: int, **options: Any) -> EnResNet:
    """A wide network (Zagoruyko & Komodakis 2016): one member, no noise. Options as for `en_resnet`.

    The paper's WRN-14-2 is `wide_resnet(14, 2)`, with two blocks a stage; with the shortcuts counted it is the usual
    WRN-16-2.
    """
    return resnet(depth, **{"widen_factor": widen_factor, **options})


def equal_size_resnet(depth: int = 20, *, num_members: int, width: int = 16, **options: Any) -> EnResNet:
    """One network with about as many parameters as `num_members` networks of `width`: a control for ensembles.

    It has the same depth, and the width whose number of parameters is nearest. Options as for `resnet`.
    """
    check_counts(num_members=num_members)
    target = num_members * _size_on_paper(depth, width, options)
    wide = width
    while _size_on_paper(depth, wide + 1, options) <= target:
        wide += 1
    nearest = min((wide, wide + 1), key=lambda w: abs(_size_on_paper(depth, w, options) - target))
    return resnet(depth, **{"width": nearest, **options})


def from_name(name: str, **options: Any) -> EnResNet:
    """The network that the paper's tables call `name`.

    `"ResNet20"` and `"WRN-14-2"` are plain, `"En2ResNet20"` and `"En1WideResNet34-10"` noisy ensembles, and
    `"En2ResNet20&En5ResNet20"` averages the two (Tables 7, 9 and 10). Options as for `en_resnet`.

    Raises ValueError for a name of another form, or a depth that does not exist.
    """
    seed = options.pop("seed", None)
    generator, noise_seed = _generator_and_noise_seed(seed)
    parts = name.split("&")
    if len(parts) > 1:
        seeds = torch.randint(2**63 - 1, (len(parts),), generator=generator).tolist()
        members = [from_name(part, seed=part_seed, **options) for part, part_seed in zip(parts, seeds, strict=True)]
        return EnResNet(members, seed=noise_seed)
    match = re.fullmatch(r"(?:En(\d+))?(?:ResNet(\d+)|(?:WideResNet|WRN-)(\d+)-(\d+))", name)
    if match is None:
        raise ValueError(
            "name: expected one such as 'ResNet20', 'En2ResNet20', 'En1WideResNet34-10' or 'WRN-14-2', "
            f"or several joined by '&', got {name!r}"
        )
    num_members, depth, wide_depth, widen_factor = (int(group) if group else None for group in match.groups())
    options = {"widen_factor": widen_factor or 1, "seed": seed, **options}
    if num_members is None:
        return resnet(depth or wide_depth or 0, **options)
    return en_resnet(depth or wide_depth or 0, num_members=num_members, **options)


def build(config: Mapping[str, Any]) -> EnResNet:
    """The architecture that `model.config` describes, with fresh weights.

    Raises ValueError for a mapping that is no such configuration.
    """
    model = _build(config)
    if not isinstance(model, EnResNet):
        raise ValueError(f"config: expected that of an EnResNet, got one of {config.get('type')!r}")
    return model


def _build(config: Mapping[str, Any]) -> ResNet | EnResNet:
    options = dict(config)
    kind = options.pop("type", None)
    try:
        if kind == "ResNet":
            return ResNet(**{**options, "noise": Noise(**options["noise"])})
        if kind == "EnResNet":
            return EnResNet(**{**options, "members": [_build(member) for member in options["members"]]})
    except (KeyError, TypeError) as error:
        raise ValueError(f"config: expected one made by EnResNet.config: {error}") from error
    raise ValueError(f"config: expected type 'ResNet' or 'EnResNet', got {kind!r}")


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each module gets back the mode it had."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def count_parameters(model: nn.Module) -> int:
    """The number of trainable numbers in the model."""
    return sum(parameter.numel() for parameter in model.parameters())


def _size_on_paper(depth: int, width: int, options: Mapping[str, Any]) -> int:
    """`count_parameters(resnet(depth, width=width, **options))` without making it."""
    widen, classes, channels = (
        options.get(name, default) for name, default in (("widen_factor", 1), ("num_classes", 10), ("in_channels", 3))
    )
    total, in_width = 9 * channels * width, width
    for stage in range(3):
        out_width = width * widen * 2**stage
        for index in range((depth - 2) // 6):
            total += 2 * in_width + 9 * in_width * out_width + 2 * out_width + 9 * out_width**2
            if in_width != out_width or (stage > 0 and index == 0):
                total += in_width * out_width
            in_width = out_width
    return int(total + 2 * in_width + in_width * classes + classes)


def _generator_and_noise_seed(seed: int | None) -> tuple[torch.Generator, int]:
    """A generator for initial weights, and a seed for the noise, that depend on `seed` alone."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(check_seed(seed))
    return generator, int(torch.randint(2**63 - 1, (), generator=generator))


def _conv(in_width: int, out_width: int, *, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    # Left without values, which would come from torch's global generator.
    conv = skip_init(nn.Conv2d, in_width, out_width, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    assert isinstance(conv, nn.Conv2d)
    return conv
