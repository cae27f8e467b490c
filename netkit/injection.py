"""Noise after every residual mapping of a network that knows nothing of it (Sec. 3.1, for any architecture).

`inject_noise(torchvision.models.resnet18())` adds a·std(x + F(x))·ξ to each x + F(x) through forward hooks: the model
stays the same object, its parameters and their names stay, and `remove_noise` takes it out again. The sums are found by
the class that defines the block's forward pass:

- the block's result, where the sum is that: this package's blocks, ConvNeXt, pre-activated ResNets;
- before the last relu, in blocks that end with relu(x + F(x)), as torchvision's and timm's ResNets. There it is noise
  of x + F(x), as in Sec. 3.1, and what the next block gets stays non-negative, as its weights were trained for;
- in a transformer's block, whose attention and MLP are a residual mapping each, before the second norm, which is given
  the first sum, and at the block's end. The first sum is overwritten: the skip connection carries the noise, too.

`inject_input_noise` adds noise to the images instead, or as well, for randomised smoothing (`netkit.smoothing`).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from netkit.models import networks_of
from netkit.noise import (
    COEF,
    InjectedNoise,
    Noise,
    NoiseControls,
    NoiseKind,
    NoiseStd,
    NoiseStream,
    ResidualNoise,
    new_coef,
    noise_parts,
    share_stream,
)

Model = TypeVar("Model", bound=nn.Module)
Blocks = str | Collection[str] | Callable[[str, nn.Module], bool]
"""Names of modules or of their classes, or `chosen(name, module)`."""


@dataclass(frozen=True)
class _Sum:
    """A sum x + F(x) in a block: its result, or what its child `before` is given in the call that follows `after`'s."""

    before: str | None = None
    after: str | None = None


_RESULT = (_Sum(),)
_INPUT = "(input)"  # no module's name
_TRANSFORMER = (_Sum(before="norm2"), _Sum())
_SUMS: dict[str, tuple[_Sum, ...]] = {
    "netkit.models.PreActBlock": _RESULT,
    # One relu is called after all batch norms but the last, and after the sum. Convolutions tell the calls apart, as
    # batch norms may be replaced later, by SyncBatchNorm.
    "torchvision.models.resnet.BasicBlock": (_Sum(before="relu", after="conv2"),),
    "torchvision.models.resnet.Bottleneck": (_Sum(before="relu", after="conv3"),),
    "torchvision.models.convnext.CNBlock": _RESULT,
    "torchvision.models.vision_transformer.EncoderBlock": (_Sum(before="ln_2"), _Sum()),
    "torchvision.models.swin_transformer.SwinTransformerBlock": _TRANSFORMER,
    "timm.models.resnet.BasicBlock": (_Sum(before="act2"),),
    "timm.models.resnet.Bottleneck": (_Sum(before="act3"),),
    "timm.models.resnetv2.PreActBasic": _RESULT,
    "timm.models.resnetv2.PreActBottleneck": _RESULT,
    "timm.models.convnext.ConvNeXtBlock": _RESULT,
    "timm.models.vision_transformer.Block": _TRANSFORMER,
    "timm.models.swin_transformer.SwinTransformerBlock": _TRANSFORMER,
}


def inject_noise(
    model: Model,
    noise_coef: float = 0.1,
    *,
    blocks: Blocks | None = None,
    noise: NoiseKind = "gaussian",
    noise_std: NoiseStd = "batch",
    sigma: float | None = None,
    seed: int | None = None,
) -> Model:
    """Put noise after every residual mapping of `model`, in place, and give the model back.

    All of it comes from one stream, which `noise_of(model)` controls; attacks and evaluations draw from it repeatably,
    as from an `EnResNet`'s. A checkpoint of the model fits before and after, unless the noise is trainable: then the
    blocks get their coefficients as parameters (`netkit.noise.trained_coefs`). Activation checkpointing must be off: it
    would repeat a block with other noise.

    noise_coef, noise, noise_std, sigma: as for `en_resnet`. With `noise_std="constant"` the L of dt = 1/L is the number
        of residual mappings that were found, in an ensemble those of each network.
    blocks: the blocks, where they are of classes that this module does not know: names of modules or of classes, or
        `chosen(name, module)`. The noise is added to what such a block returns, which must be one tensor.
    seed: of the noise; None takes one from the operating system.

    Raises ValueError where no block is found, a name of `blocks` is nowhere in the model, or it is noisy already.
    """
    if any(isinstance(part, InjectedNoise) and set(part.blocks) != {_INPUT} for part in noise_parts(model)):
        raise ValueError("model: expected one without injected noise, got one with: netkit.remove_noise(model) first")
    if any(isinstance(module, ResidualNoise) and module.noise.kind != "off" for module in model.modules()):
        raise ValueError("model: expected one without noise of its own, got one with: make it with noise='off'")
    kind = Noise(noise, noise_std, noise_coef, sigma)
    chosen = _chooser(model, blocks)
    networks = {id(network): network for network, _ in networks_of(model)}
    found = [list(_sums(network, model, chosen)) for network in networks.values()]
    if not all(found):
        raise ValueError(_nothing_found(model, blocks))
    layers, stream = [], NoiseStream(seed)
    for sums in found:
        layer = ResidualNoise(kind, num_blocks=len(sums), stream=stream)
        layers.append(layer)
        for name, block, place in sums:
            InjectedSum(layer, name, place).attach(block)
    _keep(model, layers, [name for sums in found for name, _, _ in sums])
    share_stream(model, stream)
    return model


def inject_input_noise(model: Model, sigma: float, *, seed: int | None = None) -> Model:
    """Add σ·N(0, I) to every image that `model` is given, in place, and give the model back (Cohen et al. 2019).

    In training this is their Gaussian augmentation; in evaluation each pass is one draw of the smoothed classifier, of
    which `netkit.certify` says how far it is constant. The noisy images are not clipped. The noise comes from one
    stream with all other noise of the model, and may be injected before or after it. `remove_noise` takes it out.
    Calls of the model make it: `EnResNet.member_logits`, called by itself, sees the images as they are.

    sigma: σ, in pixel units. seed: of the noise, where the model has none yet.

    Raises ValueError for a negative or infinite sigma, or a model whose input is noisy already.
    """
    if _input_layer(model) is not None:
        raise ValueError(
            "model: expected one without noise on its input, got one with: netkit.remove_noise(model) first"
        )
    kind = Noise("gaussian", "constant", sigma=sigma)
    controls = [part for part in noise_parts(model) if isinstance(part, NoiseControls)]
    stream = controls[0].stream if controls else NoiseStream(seed)
    layer = ResidualNoise(kind, num_blocks=1, stream=stream)
    model.register_forward_pre_hook(InjectedInput(layer).on_input)
    _keep(model, [layer], [_INPUT])
    share_stream(model, stream)
    return model


def remove_noise(model: Model) -> Model:
    """Undo `inject_noise` and `inject_input_noise`, in place, and give the model back.

    Raises ValueError for a model without injected noise.
    """
    if not any(isinstance(part, InjectedNoise) for part in noise_parts(model)):
        raise ValueError("model: expected one with noise from netkit.inject_noise, got one without")
    for module in model.modules():
        vars(module).pop(InjectedNoise.ATTRIBUTE, None)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, Injected):
                    owner.detach()
                    del hooks[key]
    return model


def input_sigma(model: nn.Module) -> float | None:
    """The σ of the noise on the input of `model` itself; None without."""
    layer = _input_layer(model)
    return None if layer is None else layer.size


@contextmanager
def input_noise_off(model: nn.Module) -> Iterator[None]:
    """No noise on the input of `model` inside the block; other noise stays."""
    layer = _input_layer(model)
    if layer is None:
        yield
        return
    before, layer.noise = layer.noise, Noise("off")
    try:
        yield
    finally:
        layer.noise = before


def _input_layer(model: nn.Module) -> ResidualNoise | None:
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner.layer for owner in owners if isinstance(owner, InjectedInput)), None)


def _keep(model: nn.Module, layers: list[ResidualNoise], names: list[str]) -> None:
    """Note in `model` what was injected."""
    before = vars(model).get(InjectedNoise.ATTRIBUTE)
    both = InjectedNoise(model, layers, names) if before is None else before.joined(layers, names)
    setattr(model, InjectedNoise.ATTRIBUTE, both)


def noise_of(model: nn.Module) -> NoiseControls:
    """The noise of a model, own or injected: `with noise_of(model).noise_off(): ...`.

    Raises ValueError for a model without noise, or one whose parts have several streams: `netkit.ensemble` joins them.
    """
    controls = [part for part in noise_parts(model) if isinstance(part, NoiseControls)]
    if len({id(part.stream) for part in controls}) != 1:
        cure = "netkit.ensemble joins them" if controls else "netkit.inject_noise(model) gives it one"
        raise ValueError(f"model: expected one stream of noise, got {len(controls)}: {cure}")
    return controls[0]


class Injected:
    """The owner of hooks that were put into a model."""

    layer: ResidualNoise

    @property
    def identity(self) -> tuple[Any, ...]:
        """All that stored results depend on (`netkit.identity`)."""
        return self.layer.noise, self.layer.num_blocks

    def detach(self) -> None:
        """Take out what is no hook."""


class InjectedInput(Injected):
    """The input of a model: a hook that adds the noise to it."""

    def __init__(self, layer: ResidualNoise) -> None:
        self.layer = layer

    def on_input(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        return (x if self.layer.is_silent else self.layer(x.clone()), *others)  # a copy, as the layer overwrites it


class InjectedSum(Injected):
    """One residual mapping: hooks that add the noise where x + F(x) passes."""

    def __init__(self, layer: ResidualNoise, name: str, place: _Sum) -> None:
        self.layer, self.name, self.place = layer, name, place
        self.is_due = place.after is None
        self.block: nn.Module | None = None  # that has the parameter `coef`, where the noise is trainable
        self.coef = COEF

    @property
    def identity(self) -> tuple[Any, ...]:
        return *super().identity, self.place.before, self.place.after

    def attach(self, block: nn.Module) -> None:
        if (coef := new_coef(self.layer.noise, next(block.parameters(), None))) is not None:
            self.block = block
            taken = [name for name, parameter in block.named_parameters(recurse=False) if name.startswith(COEF)]
            self.coef = f"{COEF}{len(taken) + 1}" if taken else COEF
            block.register_parameter(self.coef, coef)
        # First of the hooks there are: what others see, they see with the noise.
        if self.place.before is None:
            block.register_forward_hook(self.on_result, prepend=True)
            return
        block.get_submodule(self.place.before).register_forward_pre_hook(self.on_sum, prepend=True)
        if self.place.after is not None:
            block.register_forward_pre_hook(self.on_start)
            block.get_submodule(self.place.after).register_forward_hook(self.on_term)

    def detach(self) -> None:
        if self.block is not None:
            setattr(self.block, self.coef, None)  # blocks of this package ask for it
            self.block = None

    def noisy(self, x: Tensor) -> Tensor:
        # A copy, as the layer overwrites it: a backward pass may need the sum, or it may be a view.
        coef = None if self.block is None else getattr(self.block, self.coef)
        noisy: Tensor = self.layer(x.clone(), coef)
        return noisy

    def on_result(self, _: nn.Module, __: tuple[Any, ...], result: Any) -> Tensor:
        if not isinstance(result, Tensor):
            raise ValueError(f"blocks: expected modules that return one tensor, got {type(result)} from {self.name!r}")
        return result if self.layer.is_silent else self.noisy(result)

    def on_start(self, *_: Any) -> None:
        self.is_due = False  # also after a pass that an error ended

    def on_term(self, *_: Any) -> None:
        self.is_due = True

    def on_sum(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.is_due and not self.layer.is_silent:
            inputs[0].copy_(self.noisy(inputs[0]))
        self.is_due = self.place.after is None


def _known(block: nn.Module) -> tuple[_Sum, ...] | None:
    """The sums of a block, by the class in which its forward pass is written."""
    written = next(cls for cls in type(block).__mro__ if "forward" in vars(cls))
    return _SUMS.get(f"{written.__module__}.{written.__qualname__}")


def _sums(
    network: nn.Module, model: nn.Module, chosen: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, nn.Module, _Sum]]:
    names = {id(module): name for name, module in model.named_modules()}
    for block in network.modules():
        if chosen(block):
            for place in _known(block) or _RESULT:
                yield names[id(block)], block, place


def _chooser(model: nn.Module, blocks: Blocks | None) -> Callable[[nn.Module], bool]:
    """Whether a module of `model` is one of `blocks`."""
    if blocks is None:
        return lambda module: _known(module) is not None
    named = list(model.named_modules())
    if callable(blocks):
        ids = {id(module) for name, module in named if blocks(name, module)}
        return lambda module: id(module) in ids
    wanted = {blocks} if isinstance(blocks, str) else set(blocks)
    if unknown := wanted - {key for name, module in named for key in (name, type(module).__name__)}:
        raise ValueError(f"blocks: expected names of modules or of their classes in the model, got {sorted(unknown)}")
    ids = {id(module) for name, module in named if wanted & {name, type(module).__name__}}
    return lambda module: id(module) in ids


def _nothing_found(model: nn.Module, blocks: Blocks | None) -> str:
    if blocks is not None:
        return "blocks: expected some modules of each network, got none: nothing would be noisy"
    kinds = sorted({type(module).__name__ for name, module in model.named_modules() if name and any(module.children())})
    return (
        "model: expected residual blocks of a known class (torchvision's and timm's ResNets, ConvNeXt, ViT and Swin), "
        f"got none: pass blocks=..., names of modules or of classes, here of {', '.join(kinds) or 'none with children'}"
    )
