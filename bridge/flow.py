"""Residual networks on R^d as the Euler-Maruyama scheme of their own equation, and back.

Block l takes x to y = x + Δt·F(x, t_l) and on to y + σ√Δt·N(0, I) with Δt = 1/L and t_l = l/L (Eq. 5, Sec. 3.1), and
the output is softmax(W x + b) of the last features (Eq. 3). All blocks come from one weight function of time, so that
networks of every depth discretise one flow, and the mean over noise tends to u(x, 0) of Eq. 10 as L grows.

The paper's own noise, a·std(y)·N(0, I), is that of σ(x) = a√L·std(x), the standard deviation over the d features: an
equation with a diffusion that depends on x, which pdekit solves as it is.

`network_problem` hands that flow to pdekit as a problem of its own; `ProblemNetwork` makes a residual network of a
problem of pdekit's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from bridge.box import Box
from bridge.draws import noise_layers
from netkit.checks import check_counts, check_sizes
from netkit.noise import Noise, NoiseStream, NoisyModel, ResidualNoise
from pdekit.field import node_points
from pdekit.problem import ConvectionDiffusion

UNCUT = Box(1e6, 2e6)  # where a velocity needs no cut-off


class SmoothVelocity(nn.Module):
    """F(x, t) = speed · χ(x) · tanh(MLP(x, t)), smooth in x and t, |F_i| <= speed, zero outside the box.

    dim: d; width: units in each of the `depth` hidden layers (tanh); speed: bound on each component;
    box: where the cut-off χ acts; scale: length by which x is divided before the first layer; seed: of the weights.
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        width: int = 24,
        depth: int = 2,
        speed: float = 2.0,
        box: Box = UNCUT,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(dim, width, depth) < 1:
            raise ValueError(f"dim, width and depth: expected at least 1, got {dim}, {width} and {depth}")
        self.dim, self.speed, self.box, self.scale = dim, speed, box, scale
        sizes = [dim + 1, *[width] * depth, dim]
        generator = torch.Generator().manual_seed(seed)
        first, *others = (_linear(a, b, generator) for a, b in pairwise(sizes))
        self.first, self.others = first, nn.ModuleList(others)

    def forward(self, x: Tensor, t: float) -> Tensor:
        """(..., d) -> (..., d)."""
        weight, bias = self.first.weight, self.first.bias
        # t enters through the bias, which saves building (x, t) for every point
        y = nn.functional.linear(x / self.scale, weight[:, :-1], bias + t * weight[:, -1])
        for layer in self.others:
            y = layer(y.tanh())
        bounded = self.speed * y.tanh()
        return bounded if self.box.holds(x) else self.box.cutoff(x) * bounded


def _linear(size_in: int, size_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, size_in, size_out)
    assert isinstance(layer, nn.Linear)
    nn.init.normal_(layer.weight, std=1.0 / math.sqrt(size_in), generator=generator)
    nn.init.normal_(layer.bias, std=0.1, generator=generator)
    return layer


class NoisyFlow(NoisyModel):
    """L Euler-Maruyama steps of a velocity module (x, t) -> F: the part that the networks below have in common.

    sigma: of the noise; relative_sigma: in place of it, of the paper's noise, σ(x) = relative_sigma · std(x), so that
    its a is relative_sigma / √L. order: the time of each block, by default t_l = l/L of block l; a wrong order is for
    tests of tests.

    Raises ValueError for a velocity with noise of its own, which the equation would know nothing of.
    """

    def __init__(
        self,
        velocity: nn.Module,
        *,
        num_blocks: int,
        sigma: float,
        seed: int,
        order: Sequence[int] | None = None,
        relative_sigma: float = 0.0,
    ) -> None:
        super().__init__()
        _check_velocity(velocity)
        check_counts(num_blocks=num_blocks)
        check_sizes(relative_sigma=relative_sigma)
        if sigma and relative_sigma:
            raise ValueError(f"relative_sigma: expected 0 beside sigma = {sigma:g}, got {relative_sigma:g}")
        self.order = list(range(num_blocks)) if order is None else list(order)
        if sorted(self.order) != list(range(num_blocks)):
            raise ValueError(f"order: expected a permutation of 0..{num_blocks - 1}, got {self.order}")
        self.velocity, self.num_blocks = velocity, num_blocks
        self.sigma, self.relative_sigma = sigma, relative_sigma
        self.stream = NoiseStream(seed)
        noise = Noise("gaussian", "constant", sigma=sigma)
        if relative_sigma:
            noise = Noise("gaussian", "sample", noise_coef=relative_sigma / math.sqrt(num_blocks))
        self.noise = ResidualNoise(noise, num_blocks=num_blocks, stream=self.stream)

    @property
    def noisy(self) -> bool:
        return self.sigma > 0 or self.relative_sigma > 0

    def _size(self, y: Tensor, t: float) -> Tensor | float:
        """σ at points y (B, d), a number or one for each point or entry."""
        return self.relative_sigma * y.std(-1, keepdim=True) if self.relative_sigma else self.sigma

    def carry(self, x: Tensor, increments: Tensor | None = None) -> Tensor:
        """The last features (B, d) from points (B, d).

        increments: (L, B, d) Brownian increments of variance Δt, to be multiplied by σ; by default the noise comes
        from the stream. Raises ValueError for another shape.
        """
        dt = 1.0 / self.num_blocks
        if increments is not None and increments.shape != (self.num_blocks, *x.shape):
            raise ValueError(
                f"increments: expected shape {(self.num_blocks, *x.shape)}, one for each block and point, "
                f"got {tuple(increments.shape)}"
            )
        for l, position in enumerate(self.order):
            y = x + dt * self.velocity(x, position * dt)
            x = self._noisy(y, position * dt, None if increments is None else increments[l])
        return x

    def _noisy(self, y: Tensor, t: float, increment: Tensor | None) -> Tensor:
        """y with the noise of its block."""
        return self.noise(y) if increment is None else y + self._size(y, t) * self.stream.scale * increment

    def brownian(self, x: Tensor, num_steps: int, generator: torch.Generator) -> Tensor:
        """Brownian increments (num_steps, B, d) over [0, 1] for points (B, d)."""
        size = (num_steps, *x.shape)
        return torch.randn(size, dtype=x.dtype, device=x.device, generator=generator).mul_(num_steps**-0.5)


def _check_velocity(velocity: nn.Module) -> None:
    if noise_layers(velocity):
        raise ValueError(
            "velocity: expected one without noise, which the blocks add (sigma, relative_sigma), got one with: "
            "netkit.remove_noise(velocity) takes out what was injected"
        )


class FlowNetwork(NoisyFlow):
    """A residual classifier on R^d: L blocks of one velocity, then W x + b.

    velocity: any module (x, t) -> F on points (..., d), such as a `SmoothVelocity`. num_classes: K. num_blocks: L.
    seed: of W and of the noise. sigma, relative_sigma, order: see `NoisyFlow`. dim: d, where the velocity has no `dim`.
    box: in which the equation stands, where the velocity has none; F is cut off at its edge there, see `bridge.box`.

    Raises ValueError where nobody says d.
    """

    def __init__(
        self,
        velocity: nn.Module,
        *,
        num_classes: int = 2,
        num_blocks: int = 16,
        sigma: float = 0.0,
        seed: int = 0,
        order: Sequence[int] | None = None,
        relative_sigma: float = 0.0,
        dim: int | None = None,
        box: Box | None = None,
    ) -> None:
        super().__init__(
            velocity, num_blocks=num_blocks, sigma=sigma, seed=seed, order=order, relative_sigma=relative_sigma
        )
        dim = dim or getattr(velocity, "dim", None)
        if dim is None:
            raise ValueError(f"dim: expected the number of features, which {type(velocity).__name__} does not say")
        if relative_sigma and dim < 2:
            raise ValueError("relative_sigma: expected at least two features, whose standard deviation it is of, got 1")
        self.num_classes, self.dim, self.own_box = num_classes, int(dim), box
        self.readout = _linear(self.dim, num_classes, torch.Generator().manual_seed(seed))
        self.seed = seed

    @property
    def box(self) -> Box:
        """Where the equation stands. Raises ValueError for a network without one."""
        box = self.own_box or getattr(self.velocity, "box", UNCUT)
        if not isinstance(box, Box) or box is UNCUT:
            raise ValueError("network: expected a box, so that the flow fits into the unit box; give box=Box(...)")
        return box

    def forward(self, x: Tensor, increments: Tensor | None = None) -> Tensor:
        """Points (B, d) -> logits (B, K); increments as in `carry`."""
        logits: Tensor = self.readout(self.carry(x, increments))
        return logits

    def variant(
        self,
        *,
        num_blocks: int | None = None,
        sigma: float | None = None,
        relative_sigma: float | None = None,
        order: Sequence[int] | None = None,
    ) -> FlowNetwork:
        """Another discretisation of the same flow; the weights are shared, not copied."""
        other = FlowNetwork(
            self.velocity,
            num_classes=self.num_classes,
            num_blocks=num_blocks or self.num_blocks,
            sigma=self.sigma if sigma is None and relative_sigma is None else sigma or 0.0,
            relative_sigma=self.relative_sigma if relative_sigma is None and sigma is None else relative_sigma or 0.0,
            seed=self.seed,
            order=order,
            dim=self.dim,
            box=self.own_box,
        )
        other.readout = self.readout
        return other

    def with_blocks_swapped(self, i: int, j: int) -> FlowNetwork:
        """The same network with blocks i and j exchanged: a mistake that a comparison should find."""
        order = list(range(self.num_blocks))
        order[i], order[j] = order[j], order[i]
        return self.variant(order=order)


class NetworkVelocity:
    """A network's F on the periodic unit box, for pdekit: callable (z, t) with z and F_z of shape (..., d).

    F is that of eval mode. Raises ValueError for a velocity that noise was injected into.
    """

    def __init__(self, network: FlowNetwork) -> None:
        _check_velocity(network.velocity)
        self.dim, self.box = network.dim, network.box
        self._module = copy.deepcopy(network.velocity).double().cpu().eval()
        self._cut = getattr(network.velocity, "box", None) is not network.box

    def __call__(self, z: NDArray[np.float64], t: float) -> NDArray[np.float64]:
        x = torch.from_numpy(self.box.wrapped(np.asarray(z, dtype=np.float64)))
        with torch.no_grad():
            f = self._module(x, float(t))
            return np.asarray((self.box.cutoff(x) * f if self._cut else f).numpy()) / self.box.width


class NetworkNoise:
    """The paper's noise on the periodic unit box: σ(z) = relative_sigma · std(x) · χ(x) over the box's width."""

    def __init__(self, network: FlowNetwork) -> None:
        self.dim, self.box, self._relative = network.dim, network.box, network.relative_sigma

    def __call__(self, z: NDArray[np.float64], t: float) -> NDArray[np.float64]:
        x = torch.from_numpy(self.box.wrapped(np.asarray(z, dtype=np.float64)))
        size = self._relative * x.std(-1) * self.box.cutoff(x)[..., 0]
        return np.asarray(size.numpy()) / self.box.width


class NetworkTerminal:
    """f = softmax(W x + b) on the periodic unit box, smoothly led to 1/K outside [-inner, inner]^d (Eq. 8).

    label: of the one class that is wanted, or None for all of them, (..., K).
    """

    def __init__(self, network: FlowNetwork, box: Box, label: int | None) -> None:
        self.box, self.label = box, label
        self._readout = copy.deepcopy(network.readout).double().cpu()

    def __call__(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        x = torch.from_numpy(self.box.wrapped(np.asarray(z, dtype=np.float64)))
        with torch.no_grad():
            probability = self._readout(x).softmax(-1)
            level = 1.0 / probability.shape[-1]
            out = level + self.box.cutoff(x) * (probability - level)
        return np.asarray((out if self.label is None else out[..., self.label]).numpy())


def network_problem(network: FlowNetwork, *, label: int | None = 1, sigma: float | None = None) -> ConvectionDiffusion:
    """The equation (Eq. 10; Eq. 8 for σ = 0) that the network discretises, on pdekit's unit box.

    Its u(z, 0) is the probability of class `label`, or of each class (K of them) for None, for points
    x = box.from_unit(z) of [-inner, inner]^d, up to the time step of the network and the boundary
    (`Box.escape_probability`). sigma: by default the network's own, which depends on x for the paper's noise; a number
    is the constant that stands in for it.

    Raises ValueError for a label out of range, or a network without a box.
    """
    box = network.box
    if label is not None and not 0 <= label < network.num_classes:
        raise ValueError(f"label: expected 0..{network.num_classes - 1}, got {label}")
    noise: NetworkNoise | float = NetworkNoise(network)
    if sigma is not None or not network.relative_sigma:
        noise = (network.sigma if sigma is None else sigma) / box.width
    return ConvectionDiffusion(NetworkVelocity(network), NetworkTerminal(network, box, label), noise)


def box_nodes(box: Box, num_points: int, dim: int = 2) -> NDArray[np.float64]:
    """The nodes of pdekit's grid as points of the box, (N,)*d + (d,)."""
    return box.from_unit(node_points(num_points, dim))


class _ProblemVelocity(nn.Module):
    """A velocity of pdekit's as a module; it has no weights and no gradient."""

    def __init__(self, problem: ConvectionDiffusion) -> None:
        super().__init__()
        self._problem = problem

    def forward(self, x: Tensor, t: float) -> Tensor:
        values = self._problem.velocity.at(x.detach().cpu().double().numpy(), self._problem.horizon * t)
        return torch.from_numpy(self._problem.horizon * values).to(x)


class ProblemNetwork(NoisyFlow):
    """The residual network whose blocks are Euler-Maruyama steps of a problem of pdekit's: (B, d) -> f(X_T) (B, 1).

    Time is measured in units of the horizon T, so F becomes T·F and σ becomes σ√T. A σ that depends on x is taken where
    the block has moved x to, as blocks take theirs. There is nothing to train, and no gradient flows; average its
    `values`, not softmax, over draws.

    Raises ValueError for a σ that is neither a number nor a function of numbers, and for a potential or a source, which
    blocks do not have.
    """

    def __init__(self, problem: ConvectionDiffusion, *, num_blocks: int, seed: int = 0) -> None:
        number, field = problem.noise.number, problem.noise.field
        if number is None and (field is None or field.shape != ()):
            raise ValueError("sigma: expected a number, or a function of numbers, as noise of a block")
        if problem.potential is not None or problem.source is not None:
            raise ValueError("problem: expected neither potential nor source, as blocks have none")
        sigma = (number or 0.0) * math.sqrt(problem.horizon)
        super().__init__(_ProblemVelocity(problem), num_blocks=num_blocks, sigma=sigma, seed=seed)
        self._problem = problem

    def _noisy(self, y: Tensor, t: float, increment: Tensor | None) -> Tensor:
        if increment is None and self._problem.noise.field is not None:
            increment = self.stream.draw(y, "gaussian") * self.num_blocks**-0.5
        return super()._noisy(y, t, increment)

    def _size(self, y: Tensor, t: float) -> Tensor | float:
        problem, field = self._problem, self._problem.noise.field
        if field is None:
            return self.sigma
        values = field.at(y.detach().cpu().double().numpy(), problem.horizon * t)
        return torch.from_numpy(math.sqrt(problem.horizon) * values).to(y).unsqueeze(-1)

    def forward(self, x: Tensor, increments: Tensor | None = None) -> Tensor:
        """Points (B, d) of the box -> (B, 1), or (B, K) of K terminal functions; increments as in `carry`."""
        ends = self.carry(x, increments).detach().cpu().double().numpy()
        values = torch.from_numpy(self._problem.evaluate_terminal(ends)).to(x)
        return values if self._problem.num_fields else values.unsqueeze(-1)


def as_points(points: ArrayLike | Tensor, like: nn.Module) -> Tensor:
    """Points (B, d) with the dtype and device of the module's parameters."""
    parameter = next(like.parameters())
    return torch.as_tensor(np.asarray(points)).to(parameter)
