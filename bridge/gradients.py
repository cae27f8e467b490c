"""u(·, 0) of a problem on a grid as a function of tensors, with its gradient by each of them.

u = solve_tensors(velocity, terminal, sigma, num_points=64, method="spectral_rk4", dt=0.01)
((u - data) ** 2).mean().backward()     # velocity.grad, ... by `pdekit.equation.adjoint`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from pdekit.equation.adjoint import solve_and_pull
from pdekit.equation.sensitivity import Gradients
from pdekit.noise import Noise
from pdekit.problem import ConvectionDiffusion
from pdekit.series import GridSeries

_INPUTS = ("velocity", "terminal", "sigma", "potential", "source")


def solve_tensors(
    velocity: Tensor,
    terminal: Tensor,
    sigma: Tensor | float,
    *,
    potential: Tensor | None = None,
    source: Tensor | None = None,
    times: Sequence[float] | None = None,
    interpolation: str = "linear",
    horizon: float = 1.0,
    box: Sequence[Any] | None = None,
    **options: Any,
) -> Tensor:
    """u(x, 0), (N₁, ..., N_d) or (N₁, ..., N_d, K), of ∂u/∂t + F·∇u + ½ tr(σσᵀ∇²u) - V u + g = 0, u(x, T) = f(x).

    velocity: F, (d, N₁, ..., N_d), or with times (M, d, N₁, ..., N_d). terminal: f, (N₁, ..., N_d), with K functions
        (N₁, ..., N_d, K). sigma: of shape (), (d,) or (d, m). potential, source: V and g, (N₁, ..., N_d), or with times
        also (M, N₁, ..., N_d). Each on a grid of its own.
    times: (M,), from 0 to the horizon, of a velocity that changes; interpolation: between them.
    horizon, box: as of `ConvectionDiffusion`. options: num_points, method, dt, rtol, ... of `solve_and_pull`.

    Computed in double precision on the CPU; u has dtype and device of the velocity. Differentiable once.

    Raises ValueError as these two do, and for tensors that do not agree in dimension.
    """
    given = {"velocity": velocity, "terminal": terminal, "sigma": sigma, "potential": potential, "source": source}
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor) and name != "sigma":
            raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}")
        if isinstance(value, Tensor) and value.is_complex():
            raise ValueError(f"{name}: expected real numbers, got dtype {value.dtype}")
    if velocity.ndim < 2:
        raise ValueError(f"velocity: expected (d, N, ..., N), or (M, d, N, ..., N) with times, got {velocity.shape}")
    dim = velocity.ndim - (1 if times is None else 2)
    sigma = torch.as_tensor(sigma, dtype=torch.float64) if not isinstance(sigma, Tensor) else sigma
    if velocity.shape[-dim - 1] != dim:
        raise ValueError(f"velocity: expected {dim} components on {dim} axes, got {velocity.shape[-dim - 1]}")
    made = _Given(dim, times, interpolation, {"horizon": horizon, "box": box}, options)
    out: Tensor = _Solution.apply(made, velocity, terminal, sigma, potential, source)
    return out


class _Given:
    """All that tensors do not say: how they become a problem, and how it is solved."""

    def __init__(
        self,
        dim: int,
        times: Sequence[float] | None,
        interpolation: str,
        problem: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.dim, self.times, self.interpolation = dim, times, interpolation
        self.of_problem, self.options = problem, options

    def problem(self, arrays: dict[str, NDArray | None]) -> ConvectionDiffusion:
        fields: dict[str, Any] = {}
        for name in ("potential", "source"):
            if (values := arrays[name]) is not None:
                fields[name] = values if values.ndim in (0, self.dim) else self._series(values[:, None], (), name)
        velocity, terminal, sigma = (arrays[name] for name in _INPUTS[:3])
        assert velocity is not None
        assert terminal is not None
        assert sigma is not None
        flow = velocity if self.times is None else self._series(velocity, (self.dim,), "velocity")
        noise = Noise.of(sigma, self.dim)
        return ConvectionDiffusion(flow, terminal, noise, **fields, **self.of_problem)

    def _series(self, values: NDArray, shape: tuple[int, ...], name: str) -> GridSeries:
        if self.times is None:
            raise ValueError(f"{name}: expected {self.dim} axes without times, got {values.ndim - 1}")
        return GridSeries(np.asarray(self.times, float), values, self.interpolation, shape=shape, name=name)

    def gradient(self, name: str, gradients: Gradients, like: Tensor) -> Tensor:
        values = np.asarray(getattr(gradients, name))
        if like.ndim == 0 and name != "sigma":  # a number, which stands for all nodes
            values = values.sum()
        if name == "sigma" and like.ndim < 2:  # of a matrix
            values = np.diagonal(values) if like.ndim else np.trace(values)
        return torch.from_numpy(np.array(values).reshape(like.shape)).to(like)


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: _Given, *tensors: Tensor | None) -> Tensor:
        arrays = {
            name: None if tensor is None else tensor.detach().cpu().double().numpy()
            for name, tensor in zip(_INPUTS, tensors, strict=True)
        }
        u, pull = solve_and_pull(given.problem(arrays), **given.options)
        ctx.given, ctx.pull = given, pull
        ctx.save_for_backward(*tensors)
        assert tensors[0] is not None
        return torch.from_numpy(u).to(tensors[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.pull(cotangent.detach().cpu().double().numpy())
        return None, *(
            ctx.given.gradient(name, gradients, tensor) if needed else None
            for name, tensor, needed in zip(_INPUTS, ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        )
