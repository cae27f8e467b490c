"""u(·, 0) as a function of tensors: PyTorch's own check of its gradient, and what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from bridge.gradients import solve_tensors
from pdekit import ConvectionDiffusion
from pdekit.equation.adjoint import solve_and_pull

OPTIONS = {"num_points": 8, "dt": 0.05, "horizon": 0.4, "padded": True}


def tensor(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def test_u_is_that_of_the_problem():
    velocity, terminal = tensor(2, 4, 4, scale=0.3), tensor(5, 5, seed=1)
    u = solve_tensors(velocity, terminal, 0.3, method="spectral_rk4", **OPTIONS)
    problem = ConvectionDiffusion(velocity.detach().numpy(), terminal.detach().numpy(), 0.3, horizon=0.4)
    expected, _ = solve_and_pull(problem, num_points=8, dt=0.05, padded=True, method="spectral_rk4")
    np.testing.assert_array_equal(u.detach().numpy(), expected)


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4"])
@pytest.mark.parametrize("sigma", [(), (2,), (2, 3)])
def test_the_gradient_by_all_tensors(method, sigma):
    def function(velocity, terminal, sigma, potential, source):
        options = OPTIONS | {"method": method, "box": (1.0, 0.8)}
        return solve_tensors(velocity, terminal, 0.3 + 0.1 * sigma, potential=potential, source=source, **options)

    inputs = (tensor(2, 3, 4, scale=0.3), tensor(4, 4, seed=1), tensor(*sigma, seed=2), tensor(3, 3, seed=3))
    assert gradcheck(function, (*inputs, tensor(4, 3, seed=4)), fast_mode=True)


def test_the_gradient_by_tensors_that_change_in_time():
    def function(velocity, terminal, sigma, potential):
        options = OPTIONS | {"method": "spectral_rk4", "times": [0.0, 0.1, 0.4], "interpolation": "cubic"}
        return solve_tensors(velocity, terminal, sigma, potential=potential, **options)

    sigma = torch.tensor([0.3, 0.3], dtype=torch.float64, requires_grad=True)  # equal, and two all the same
    inputs = (tensor(3, 2, 3, 4, scale=0.3), tensor(4, 4, 2, seed=1), sigma, tensor(3, 3, 3, seed=2))
    assert gradcheck(function, inputs, fast_mode=True)


def test_an_element_of_every_tensor_in_one_dimension():
    def function(velocity, terminal, sigma):
        return solve_tensors(velocity, terminal, sigma, method="spectral_krylov", rtol=1e-12, **OPTIONS)

    sigma = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (tensor(1, 4, scale=0.3), tensor(6, seed=1), sigma), atol=1e-7, rtol=1e-6)


def test_single_precision_goes_in_and_out():
    velocity = tensor(1, 4).detach().float().requires_grad_()
    u = solve_tensors(velocity, torch.ones(8), 0.2, **OPTIONS)
    assert u.dtype == torch.float32
    u.sum().backward()
    assert velocity.grad is not None
    assert velocity.grad.dtype == torch.float32
    assert velocity.grad.shape == (1, 4)


def test_descent_finds_the_velocity_that_made_the_data():
    true, terminal = tensor(1, 4, scale=0.2).detach(), torch.cos(2 * torch.pi * torch.arange(8) / 8).double()
    options = {"num_points": 8, "method": "spectral_krylov", "padded": True, "horizon": 0.5}
    data = solve_tensors(true, terminal, 0.1, **options)
    velocity = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([velocity], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = ((solve_tensors(velocity, terminal, 0.1, **options) - data) ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert loss().item() < 1e-8


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="velocity: expected"):
        solve_tensors(torch.zeros(4), torch.zeros(8), 0.1)
    with pytest.raises(ValueError, match="potential: expected 1 axes without times, got 2"):
        solve_tensors(torch.zeros(1, 4), torch.zeros(8), 0.1, potential=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="sigma: expected"):
        solve_tensors(torch.zeros(1, 4), torch.zeros(8), torch.zeros(3))
