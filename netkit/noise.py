"""Noise after a residual mapping (Sec. 3.1): its distribution, its size, and the source of its randomness.

Each residual mapping x + F(x) is followed by one Euler-Maruyama increment, `x + F(x) + s ξ`, with ξ of mean 0 and
variance 1 in every entry. The size s is one of

- `"batch"`: a·std(x + F(x)), one unbiased standard deviation over the whole batch tensor, as in the authors' code. A
  prediction then depends on which images share its batch;
- `"sample"`: the same, with one standard deviation an image, so that it does not;
- `"constant"`: σ √dt with dt = 1/L for L residual blocks, the increment of dX = F dt + σ dB on [0, 1] (Eq. 14).

The standard deviation is part of the computation graph: its gradient is not cut, in training and in attacks alike.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from netkit.checks import check_seed, check_sizes, plain

NoiseKind = Literal["gaussian", "two_point", "trainable", "off"]
NoiseStd = Literal["batch", "sample", "constant"]


@dataclass(frozen=True)
class Noise:
    """The kind and size of the noise after a residual mapping.

    kind: `"gaussian"`; `"two_point"`, ±1 with equal chance, which has the same weak order in Eq. 14 and is much
        cheaper to draw; `"trainable"`, Gaussian with an a of its own for each residual mapping, which is trained with
        the weights (see `trained_coefs`); or `"off"`.
    std: the scale of the noise; see this module's docstring.
    noise_coef: the paper's a, for `std="batch"` and `"sample"`; where it is trainable, the value that training starts
        from, 0.25 in He et al.
    sigma: σ of Eq. 14, for `std="constant"` and only there.

    Raises ValueError for an unknown kind or std, a negative or non-finite size, a sigma that does not belong, or
    trainable noise of constant size.
    """

    kind: NoiseKind = "gaussian"
    std: NoiseStd = "batch"
    noise_coef: float = 0.1
    sigma: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(NoiseKind):
            raise ValueError(f"noise: expected one of {get_args(NoiseKind)}, got {self.kind!r}")
        if self.std not in get_args(NoiseStd):
            raise ValueError(f"noise_std: expected one of {get_args(NoiseStd)}, got {self.std!r}")
        check_sizes(noise_coef=self.noise_coef)
        object.__setattr__(self, "noise_coef", plain(self.noise_coef))
        if (self.sigma is not None) != (self.std == "constant"):
            raise ValueError(
                f"sigma: expected a value exactly when noise_std is 'constant', "
                f"got sigma={self.sigma} with noise_std={self.std!r}"
            )
        if self.sigma is not None:
            check_sizes(sigma=self.sigma)
            object.__setattr__(self, "sigma", plain(self.sigma))
        if self.kind == "trainable" and self.std == "constant":
            raise ValueError("noise_std: expected 'batch' or 'sample' with noise='trainable', got 'constant'")


class NoiseStream:
    """The randomness of one model: a generator that all its blocks draw from, one after the other, and a switch.

    The generator is created at the first draw, on the device of that draw, from `seed`; with `seed=None` the seed
    comes from the operating system. torch's global generators are neither read nor advanced.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = torch.Generator().seed() if seed is None else check_seed(seed)
        self.scale = 1.0
        self._generator: torch.Generator | None = None
        self._is_own = True
        self._fixed: torch.Generator | Sequence[Tensor] | None = None  # goes before the generator, whoever lends one
        self._position = 0
        self._number = _numbered(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._number = _numbered(self)  # a copy is another stream

    @property
    def is_fixed(self) -> bool:
        """Whether passes repeat their noise."""
        return self._fixed is not None

    @property
    def has_given_draws(self) -> bool:
        """Whether the noise is fixed to given tensors, which fit one batch only."""
        return self.is_fixed and not isinstance(self._fixed, torch.Generator)

    @property
    def identity(self) -> tuple[Any, ...]:
        """All that stored results depend on (`netkit.identity`), but the generator, which evaluations lend."""
        return self.scale, self._fixed

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator for draws on `device`; raises ValueError if one was set for another device."""
        if self._generator is None or (self._is_own and not _same_device(self._generator.device, device)):
            self._generator = torch.Generator(device).manual_seed(self.seed)
        if not _same_device(self._generator.device, device):
            raise ValueError(f"generator: expected one on {device}, got one on {self._generator.device}")
        return self._generator

    def set_generator(self, generator: torch.Generator | None) -> None:
        """Draw from `generator` from now on; None: from a new one, seeded with `seed` as in the beginning."""
        self._generator, self._is_own = generator, generator is None

    def draw(self, like: Tensor, kind: NoiseKind) -> Tensor:
        """Noise with the shape, dtype, device and memory layout of `like`, or the next given draw."""
        if torch.compiler.is_compiling():
            compiled: Tensor = _draw_in_graph(like.detach(), kind, self._number)
            return compiled
        if self._fixed is None or isinstance(self._fixed, torch.Generator):
            generator = self.generator(like.device) if self._fixed is None else self._fixed
            return _DRAW[kind](like, generator)
        if self._position == len(self._fixed):
            raise ValueError(f"source: expected one draw for each residual block, got {len(self._fixed)}")
        noise = self._fixed[self._position]
        if noise.shape != like.shape:
            raise ValueError(
                f"source: expected draw {self._position} to have shape {tuple(like.shape)}, got {tuple(noise.shape)}"
            )
        self._position += 1
        return noise.to(like)

    def is_fixed_to(self, source: torch.Generator | Sequence[Tensor]) -> bool:
        return self._fixed is source

    def rewind(self, seed: int | None) -> None:
        """Start the given draws, or the fixed generator with `seed`, from the beginning."""
        self._position = 0
        if seed is not None and isinstance(self._fixed, torch.Generator):
            self._fixed.manual_seed(seed)

    @contextmanager
    def replaced(self, *, generator: torch.Generator) -> Iterator[None]:
        """Draw from another generator inside the block; what was there before comes back. Fixed noise stays fixed."""
        before = self._generator, self._is_own
        self.set_generator(generator)
        try:
            yield
        finally:
            self._generator, self._is_own = before

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """Multiply all noise by `scale` inside the block. Raises ValueError unless it is finite and >= 0."""
        check_sizes(scale=scale)
        before = self.scale
        self.scale = scale
        try:
            yield
        finally:
            self.scale = before

    @contextmanager
    def fixed(self, source: torch.Generator | Sequence[Tensor]) -> Iterator[None]:
        """Use given draws, or a generator that `rewind` starts anew, inside the block, whatever generator is lent."""
        before = self._fixed, self._position
        self._fixed, self._position = source, 0
        try:
            yield
        finally:
            self._fixed, self._position = before


class NoiseControls:
    """The noise of one model, all of one stream: it can be lent a generator, fixed, scaled and switched off."""

    stream: NoiseStream

    @property
    @abstractmethod
    def noisy_module(self) -> nn.Module:
        """The model whose forward passes draw the noise."""

    @property
    def _device(self) -> torch.device:
        return next(self.noisy_module.parameters()).device

    @property
    def generator(self) -> torch.Generator:
        """The generator of the noise, on the device of the parameters.

        By default it is the model's own, from the `seed` it was made with; torch's global generators are not used.
        """
        return self.stream.generator(self._device)

    def set_generator(self, generator: torch.Generator | None) -> None:
        """Draw the noise from `generator` from now on; None goes back to the model's own, from its beginning."""
        self.stream.set_generator(generator)

    def generator_state(self) -> Tensor:
        """The generator's state, (num_bytes,) uint8, for `set_generator_state` to continue bit for bit."""
        return self.generator.get_state()

    def set_generator_state(self, state: Tensor) -> None:
        """Put the generator where `generator_state` found it; the same kind of device is needed."""
        self.generator.set_state(state.cpu())

    @contextmanager
    def using_generator(self, generator: torch.Generator) -> Iterator[None]:
        """Draw the noise from another generator inside the block, say to evaluate without disturbing training."""
        with self.stream.replaced(generator=generator):
            yield

    @contextmanager
    def noise_scale(self, scale: float) -> Iterator[None]:
        """Multiply all noise by `scale` inside the block. Raises ValueError unless it is finite and >= 0."""
        with self.stream.scaled(scale):
            yield

    @contextmanager
    def noise_off(self) -> Iterator[None]:
        """No noise inside the block, in which nothing is drawn: the twin that steps along characteristics (Eq. 5)."""
        with self.noise_scale(0.0):
            yield

    @contextmanager
    def fixed_noise(self, source: int | Sequence[Tensor]) -> Iterator[None]:
        """The same noise in every forward pass inside the block, also for what would lend the model a generator.

        The generator outside is not advanced.

        source: a seed, from which each pass starts over, or the draws themselves: one tensor of mean 0 and
            variance 1 for each residual block, of the shape of that block's output, members one after the other; before
            them one for the input, where it is noisy.
        """
        seed = source if isinstance(source, int) else None
        fixed = torch.Generator(self._device) if isinstance(source, int) else source

        def start_over(*_: Any) -> None:
            if self.stream.is_fixed_to(fixed):  # else another block inside this one has fixed it
                self.stream.rewind(seed)

        # First of the hooks there are: one that draws for the input comes after it.
        hook = self.noisy_module.register_forward_pre_hook(start_over, prepend=True)
        try:
            with self.stream.fixed(fixed):
                yield
        finally:
            hook.remove()


class NoisyModel(NoiseControls, nn.Module):
    """A model that makes noise of its own."""

    @property
    def noisy_module(self) -> nn.Module:
        return self


_streams: WeakValueDictionary[int, NoiseStream] = WeakValueDictionary()
_numbers = itertools.count()


def _numbered(stream: NoiseStream) -> int:
    """A number by which `_draw_in_graph` finds the stream: the graphs of torch.compile hold no generators."""
    number = next(_numbers)
    _streams[number] = stream
    return number


# Seeded randomness is what torch.compile must neither merge, drop, nor draw once more in the backward pass.
@torch.library.custom_op("netkit::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _draw_in_graph(like: Tensor, kind: str, number: int) -> Tensor:
    noise = _streams[number].draw(like, cast(NoiseKind, kind))
    return noise.clone() if noise is like else noise


@_draw_in_graph.register_fake
def _(like: Tensor, kind: str, number: int) -> Tensor:
    return torch.empty_like(like)


class ResidualNoise(nn.Module):
    """Adds the noise to x + F(x); holds no parameters: the a of trainable noise is the block's (`trained_coefs`).

    noise: its kind and size.
    num_blocks: L, the number of residual blocks on the path; only `std="constant"` uses it.
    stream: the source of the randomness.
    """

    def __init__(self, noise: Noise, *, num_blocks: int, stream: NoiseStream) -> None:
        super().__init__()
        self.noise = noise
        self.num_blocks = num_blocks
        self.stream = stream

    @property
    def size(self) -> float:
        """The factor of ξ, or with `std="batch"` and `"sample"` of std(x + F(x))·ξ; 0 without noise.

        Of trainable noise, the factor before training.
        """
        noise = self.noise
        if noise.kind == "off":
            return 0.0
        if noise.sigma is not None:
            return noise.sigma * math.sqrt(1 / self.num_blocks) * self.stream.scale
        return noise.noise_coef * self.stream.scale

    @property
    def is_silent(self) -> bool:
        """True where nothing is drawn; not where training has made a coefficient zero, which may grow again."""
        return self.stream.scale == 0 if self.noise.kind == "trainable" else self.size == 0

    def coef_of(self, inputs: tuple[Tensor | None, ...]) -> float:
        """The a of a call with `inputs`, as a hook on this layer gets them; negative where training made it so."""
        given = inputs[1] if len(inputs) > 1 else None
        return self.noise.noise_coef if given is None else float(given.detach())

    def forward(self, x: Tensor, coef: Tensor | None = None) -> Tensor:
        """(B, ...) -> (B, ...), in the same memory layout. May overwrite x; without noise nothing is drawn.

        coef: the a () of trainable noise.
        """
        if self.is_silent:
            return x
        noise = self.noise
        xi = self.stream.draw(x, noise.kind)
        if noise.kind == "trainable":
            if coef is None:
                raise ValueError("coef: expected that of trainable noise, got None")
            return add_scaled_noise(x, xi, noise_coef=coef * self.stream.scale, std=noise.std, inplace=True)
        size = self.size
        if noise.std == "constant":
            return x.add(xi, alpha=size) if _is_traced(x, xi) else x.add_(xi, alpha=size)
        return add_scaled_noise(x, xi, noise_coef=size, std=noise.std, inplace=True)

    def extra_repr(self) -> str:
        return f"{self.noise}, num_blocks={self.num_blocks}"


COEF = "noise_coef"
"""The parameter of a block with trainable noise; further sums in one block have a number behind it."""


def new_coef(noise: Noise, like: Tensor | None = None) -> nn.Parameter | None:
    """The a () that training starts from, on the device of `like`; None for noise that is not trainable."""
    if noise.kind != "trainable":
        return None
    coef = torch.tensor(noise.noise_coef)
    return nn.Parameter(coef if like is None else coef.to(like))


def trained_coefs(model: nn.Module) -> dict[str, nn.Parameter]:
    """The coefficients a () of trainable noise (He, Rakin and Fan 2019), by name.

    Of the variants of parametric noise injection this is layer-wise noise on activations, x + a·std(x)·ξ after each
    residual mapping: it keeps the form of Eq. 14, where noise on weights, another variant, does not. Here the gradient
    flows through std(x), too, as everywhere in this package; theirs is cut. As there, `netkit.train` lets no weight
    decay pull at a. Its sign means nothing, as ξ is symmetric.

    The loss itself pulls a to zero: on digits, from 0.25, all three of a ResNet8 to below 0.02 in ten epochs on clean
    images (three seeds); against PGD the first stays at 0.11 to 0.21, the others fall below 0.07.
    """
    named = model.named_parameters()
    return {name: parameter for name, parameter in named if name.rpartition(".")[2].rstrip("0123456789") == COEF}


class InjectedNoise(NoiseControls):
    """The noise that `netkit.inject_noise` and `inject_input_noise` put into a model, as an attribute of that model.

    It is no module, so that children and buffers stay the model's own. layers: that of the input, and one for each
    network inside; blocks: the names of the modules with a noisy sum, "(input)" for the input.
    """

    ATTRIBUTE = "injected_noise"

    def __init__(self, model: nn.Module, layers: Sequence[ResidualNoise], blocks: Sequence[str]) -> None:
        self.model, self.layers, self.blocks, self.stream = model, tuple(layers), tuple(blocks), layers[0].stream

    def joined(self, layers: Sequence[ResidualNoise], blocks: Sequence[str]) -> "InjectedNoise":
        """This and more noise in the same model."""
        return InjectedNoise(self.model, [*self.layers, *layers], [*self.blocks, *blocks])

    @property
    def noisy_module(self) -> nn.Module:
        return self.model

    @property
    def identity(self) -> tuple[Any, ...]:
        """All that stored results depend on (`netkit.identity`), beside the hooks themselves."""
        return self.stream, *((layer.noise, layer.num_blocks) for layer in self.layers)


def noise_parts(model: nn.Module) -> Iterator[nn.Module | InjectedNoise]:
    """Everything in `model` that may make noise or control it: its modules, and what was injected into them."""
    for module in model.modules():
        yield module
        injected = vars(module).get(InjectedNoise.ATTRIBUTE)
        if isinstance(injected, InjectedNoise):
            yield injected
            yield from injected.layers


def share_stream(model: nn.Module, stream: NoiseStream) -> None:
    """Let all noise in `model` come from `stream`."""
    for part in noise_parts(model):
        if isinstance(part, ResidualNoise | NoiseControls):
            part.stream = stream


def add_scaled_noise(
    x: Tensor, xi: Tensor, *, noise_coef: float | Tensor, std: NoiseStd = "batch", inplace: bool = False
) -> Tensor:
    """x + a·std(x)·ξ, with the gradient through std(x) (Sec. 3.1), and to an a that requires one.

    x: (B, ...), B >= 1.
    xi: ξ, of x's shape; no gradient flows to it.
    noise_coef: a, a number or a tensor ().
    std: `"batch"`, one unbiased standard deviation of all entries, or `"sample"`, one for each x[i].
    inplace: overwrite x where that saves time.

    Raises ValueError if a standard deviation would be taken over fewer than two entries.
    """
    num_rows = x.shape[0] if std == "sample" else 1
    if x.numel() < 2 * num_rows:
        raise ValueError(f"x: expected at least two entries to take a standard deviation of, got {tuple(x.shape)}")
    if not x.is_contiguous() and not is_channels_last(x):
        x = x.contiguous()
    if _is_traced(x, xi) or (isinstance(noise_coef, Tensor) and noise_coef.requires_grad):
        return _add_scaled_noise(x, xi, noise_coef, std)
    noisy, _, _ = _AddScaledNoise.apply(x if inplace else x.clone(), xi, noise_coef, num_rows)
    return noisy


def _is_traced(*tensors: Tensor) -> bool:
    """Whether torch.compile or a transform of torch.func looks on; they see through plain operations only."""
    return torch.compiler.is_compiling() or any(torch.func.debug_unwrap(t) is not t for t in tensors)


def _add_scaled_noise(x: Tensor, xi: Tensor, noise_coef: float | Tensor, std: NoiseStd) -> Tensor:
    """`add_scaled_noise` in plain operations."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = wide.std() if std == "batch" else wide.flatten(1).std(1).view(-1, *[1] * (x.dim() - 1))
    return x + (noise_coef * size).to(x.dtype) * xi


class _AddScaledNoise(torch.autograd.Function):
    """x += a·std(x)·ξ, one std for each of `num_rows` parts of x.

    On a CPU, touching fresh memory costs more than arithmetic: this allocates nothing forward, one tensor backward,
    and keeps only ξ, since the next layer keeps the result anyway. torch.std itself is slower than the two passes here.
    Mean and std are results, too, so that derivatives of the backward pass, which takes them, flow through them.
    """

    @staticmethod
    def forward(x: Tensor, xi: Tensor, noise_coef: float | Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = _rows(x, x, num_rows)
        mean = rows.mean(-1, keepdim=True, dtype=wide)
        centre = mean.to(x.dtype)  # an operation on two types copies to the wider one, which takes far longer
        norm = _norm(rows.sub_(centre), wide)
        std = norm / math.sqrt(rows.shape[-1] - 1)
        rows.addcmul_(_rows(xi, x, num_rows), (noise_coef * std).to(x.dtype)).add_(centre)
        return x, mean, std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, xi, ctx.noise_coef, num_rows = inputs
        ctx.count = x.numel() // num_rows
        ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[0], xi, *output[1:])

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, grad_std: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        # ∂std/∂x = (x - mean) / ((M - 1) std), and 0 where std is 0, as torch.std has it; x = noisy - a std ξ.
        noisy, xi, mean, std = ctx.saved_tensors
        grad = torch.zeros_like(noisy) if grad is None else grad
        num_rows = len(std)
        rows, noisy_rows, xi_rows = (_rows(tensor, noisy, num_rows) for tensor in (grad, noisy, xi))
        slope = ctx.noise_coef * _dot(rows, xi_rows).unsqueeze(-1).to(std.dtype)
        if grad_std is not None:
            slope = slope + grad_std
        factor = slope / ((ctx.count - 1) * std.masked_fill(std == 0, math.inf))
        shift = -factor * mean
        if grad_mean is not None:
            shift = shift + grad_mean / ctx.count
        result = torch.addcmul(rows, noisy_rows, factor.to(grad.dtype))
        result.addcmul_(xi_rows, (-ctx.noise_coef * factor * std).to(grad.dtype)).add_(shift.to(grad.dtype))
        return _from_storage_order(result, noisy), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, tuple[None, None, None]]:
        """For what lies inside a vmap and is not mapped over: all else comes as plain operations."""
        return _AddScaledNoise.apply(*inputs), (None, None, None)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products of rows (num_rows, M) or of one row (M,)."""
    if a.dim() > 1:
        return torch.linalg.vecdot(a, b)  # makes a tensor of products first
    return _dot_in_pieces(a, b) if _is_slow(a) else torch.dot(a, b)


def _norm(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The lengths (num_rows, 1) of rows, or (1,) of one."""
    if _is_slow(rows):
        return _dot_in_pieces(rows, rows).sqrt().unsqueeze(-1)
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=dtype)


def _is_slow(row: Tensor) -> bool:
    """Whether it is one row in half precision on a CPU, where torch multiplies number by number, or copies it all."""
    return row.dim() == 1 and row.is_cpu and row.dtype in (torch.bfloat16, torch.float16)


def _dot_in_pieces(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products in single precision, piece by piece, so that the caches hold the copies."""
    pieces = zip(a.split(_PIECE), b.split(_PIECE), strict=True)
    return torch.stack([torch.dot(one.float(), other.float()) for one, other in pieces]).sum()


def _rows(x: Tensor, like: Tensor, num_rows: int) -> Tensor:
    """(num_rows, M) in the order in which `like` is stored, so that a tensor of the same layout is not copied.

    One row is (M,): torch is twice as fast at multiplying that by one number.
    """
    x = x.permute(0, 2, 3, 1) if is_channels_last(like) else x
    return x.reshape(-1) if num_rows == 1 else x.reshape(num_rows, -1)


def _draw_gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    # In storage order: torch fills a tensor that is not contiguous, as channels_last is not, about nine times slower.
    flat = torch.randn(like.numel(), dtype=like.dtype, device=like.device, generator=generator)
    return _from_storage_order(flat, like)


def _draw_two_point(like: Tensor, generator: torch.Generator) -> Tensor:
    # One random bit an entry: shifted to the sign bit of 1.0.
    num_words = -(-like.numel() // 64)
    words = torch.empty(num_words, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    shifts = torch.arange(32, dtype=torch.int32, device=like.device)
    bits = (words.view(torch.int32).unsqueeze(1) << shifts).bitwise_and_(-(2**31)).bitwise_or_(_ONE_AS_INT32)
    flat = bits.view(torch.float32).view(-1)[: like.numel()]
    return _from_storage_order(flat.to(like.dtype), like)


_PIECE = 2**16
_ONE_AS_INT32 = 0x3F800000
_DRAW = {"gaussian": _draw_gaussian, "two_point": _draw_two_point, "trainable": _draw_gaussian}


def is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _from_storage_order(flat: Tensor, like: Tensor) -> Tensor:
    if not is_channels_last(like):
        return flat.view(like.shape)
    batch, channels, height, width = like.shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _same_device(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (a.index or 0) == (b.index or 0)
