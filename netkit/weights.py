"""Learned weights of an ensemble of different networks, w_1 + ... + w_k = 1 (Sec. 5, for any k).

The ensemble's logits are Σ_m w_m y_m, and the loss is the cross-entropy, here its mean over the N examples where the
paper has the sum. As log-sum-exp is convex and the logits are linear in w, the loss is convex in w: the best weights
need no training schedule, they are the minimum of a convex function on an affine space. So it is where the ensemble
averages probabilities, Σ_m w_m softmax(y_m), as -log is convex; weights are then not negative.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from netkit.checks import check_counts
from netkit.models import Average, EnResNet, evaluating
from netkit.randomness import noise_from

Array = NDArray[np.float64]
Signs = Literal["any", "nonnegative"]
_NEWTON_STEPS = 100
_ROUNDING = 1e-12  # of the largest entry: a curvature below counts as zero


def ensemble_loss(weights: Tensor, logits: Tensor, y: Tensor, *, average: Average = "logits") -> Tensor:
    """Mean cross-entropy () of Σ_m w_m logits_m, or of Σ_m w_m softmax(logits_m) if `average` is "probabilities".

    weights (k,), logits (k, N, K), y (N,) int64. Raises ValueError for other shapes, or for negative weights of
    probabilities.
    """
    _check(weights, logits, y, average)
    weights = weights.to(logits)
    if average == "probabilities":
        return -(weights.log().unsqueeze(-1) + _at_label(logits.log_softmax(-1), y)).logsumexp(0).mean()
    return torch.nn.functional.cross_entropy(torch.einsum("m,mnc->nc", weights, logits), y)


def weight_gradient(weights: Tensor, logits: Tensor, y: Tensor, *, average: Average = "logits") -> Tensor:
    """∂L/∂w_m (k,), as derived in Sec. 5: minus the mean of y_m[t] - Σ_j y_m[j] softmax(Σ w y)_j.

    For probabilities p_m it is minus the mean of p_m[t] / Σ_l w_l p_l[t]. Arguments and errors as of `ensemble_loss`;
    Σ w = 1 is not built in.
    """
    _check(weights, logits, y, average)
    weights = weights.to(logits)
    if average == "probabilities":
        log_p = _at_label(logits.log_softmax(-1), y)
        return -(log_p - (weights.log().unsqueeze(-1) + log_p).logsumexp(0)).exp().mean(1)
    probability = torch.einsum("m,mnc->nc", weights, logits).softmax(-1)
    expected = torch.einsum("nc,mnc->mn", probability, logits)
    return -(_at_label(logits, y) - expected).mean(1)


def paper_update(weights: Tensor, logits: Tensor, y: Tensor, *, lr: float, average: Average = "logits") -> Tensor:
    """One update as the paper makes it once an epoch: a gradient step, then division by the sum.

    It stays where the gradient is a multiple of the weights, which is not where the loss is least: there all entries of
    the gradient are equal (for probabilities -1), and the division draws the weights together.

    Raises ValueError where the sum after the step is not positive: the step was too long.
    """
    stepped = weights - lr * weight_gradient(weights, logits, y, average=average).to(weights)
    total = float(stepped.sum())
    if not total > 0:
        raise ValueError(f"lr: expected a step that leaves a positive sum of weights, got {total:.3g} with lr {lr:g}")
    return stepped / total


def optimal_weights(
    logits: Tensor, y: Tensor, *, signs: Signs | None = None, average: Average = "logits", tol: float = 1e-10
) -> Tensor:
    """The weights (k,), float64, of least training loss with Σ w = 1.

    logits: (k, N, K). signs: "any" (extrapolation needs negative weights), the default for logits, or "nonnegative",
    for which a minimum always exists, the only one for probabilities. Members that agree get equal weights: the search
    starts there and does not move along directions that change nothing. With "any" and data that some weights separate
    perfectly the loss has no minimum; the search then ends where its gradient is below `tol`.

    Raises ValueError for shapes or options that do not fit; RuntimeError where the search does not converge.
    """
    k = len(logits)
    start = torch.full((k,), 1.0 / k, dtype=torch.float64)
    logits = logits.detach().double().cpu()
    y = y.cpu()
    _check(start, logits, y, average)
    if signs is None:
        signs = "any" if average == "logits" else "nonnegative"
    if signs not in ("any", "nonnegative"):
        raise ValueError(f"signs: expected 'any' or 'nonnegative', got {signs!r}")
    if signs == "any" and average == "probabilities":
        raise ValueError("signs: expected 'nonnegative' where probabilities are averaged, got 'any'")
    if k == 1:
        return start
    if signs == "nonnegative":
        return _on_simplex(start, logits, y, tol, average)
    return _newton(start, logits, y, tol)


def _newton(weights: Tensor, logits: Tensor, y: Tensor, tol: float) -> Tensor:
    """Newton's method in coordinates of {Σ w = 1}, halving steps that do not lower the loss enough (Armijo)."""
    basis = _basis(len(logits))
    directions = torch.einsum("mv,mnc->vnc", basis, logits)
    for _ in range(_NEWTON_STEPS):
        loss = ensemble_loss(weights, logits, y)
        gradient = basis.T @ weight_gradient(weights, logits, y)
        if float(gradient.norm()) <= tol:
            return weights
        step = basis @ -(torch.linalg.pinv(_hessian(weights, logits, directions), rtol=1e-12) @ gradient)
        slope = float((basis.T @ step) @ gradient)
        length = 1.0
        while float(ensemble_loss(weights + length * step, logits, y)) > float(loss) + 1e-4 * length * slope:
            length *= 0.5
            if length < 1e-12:
                return weights  # rounding: no step lowers the loss any more
        weights = weights + length * step
    raise RuntimeError(f"optimal_weights: expected convergence within {_NEWTON_STEPS} steps, got {weights.tolist()}")


def _hessian(weights: Tensor, logits: Tensor, directions: Tensor) -> Tensor:
    """Mean covariance (k-1, k-1) of the directions' logits under the ensemble's probabilities."""
    probability = torch.einsum("m,mnc->nc", weights, logits).softmax(-1)
    mean = torch.einsum("nc,vnc->vn", probability, directions)
    second = torch.einsum("nc,vnc,unc->vu", probability, directions, directions)
    return (second - mean @ mean.T) / logits.shape[1]


def _on_simplex(start: Tensor, logits: Tensor, y: Tensor, tol: float, average: Average) -> Tensor:
    def loss_and_gradient(w: Array) -> tuple[float, Array]:
        weights = torch.from_numpy(w).clamp_min(0.0)  # below zero by rounding
        loss = ensemble_loss(weights, logits, y, average=average)
        return float(loss), weight_gradient(weights, logits, y, average=average).numpy()

    found = optimize.minimize(
        loss_and_gradient,
        start.numpy(),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(start),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones_like(w)},
        options={"ftol": tol, "maxiter": 500},
    )
    if not found.success:
        raise RuntimeError(f"optimal_weights: expected convergence, got {found.message!r}")
    clipped = np.clip(found.x, 0.0, None)
    return torch.from_numpy(clipped / clipped.sum())


def member_logits(model: EnResNet, x: Tensor, *, num_draws: int = 1, generator: torch.Generator) -> Tensor:
    """Each member's logits (k, N, K) for images x (N, C, H, W), averaged over noise draws, in eval mode.

    Of a model that averages probabilities, logarithms of each member's mean probabilities.
    """
    check_counts(num_draws=num_draws)
    with torch.no_grad(), evaluating(model), noise_from(generator, model):
        if model.average == "logits":
            return sum((model.member_logits(x) for _ in range(num_draws)), torch.zeros(())) / num_draws
        draws = (model.member_logits(x).log_softmax(-1) for _ in range(num_draws))
        return reduce(torch.logaddexp, draws) - math.log(num_draws)


def learn_weights(
    model: EnResNet,
    x: Tensor,
    y: Tensor,
    *,
    num_draws: int = 1,
    signs: Signs | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Give the members their optimal weights on images x (N, C, H, W) with labels y (N,); returns them (k,).

    They are optimal for the model's kind of average, logits or probabilities; `signs` and errors as of
    `optimal_weights`.
    """
    logits = member_logits(model, x, num_draws=num_draws, generator=generator)
    weights = optimal_weights(logits, y, signs=signs, average=model.average)
    model.set_weights(weights)
    return weights


def update_weights(
    model: EnResNet, x: Tensor, y: Tensor, *, lr: float, num_draws: int = 1, generator: torch.Generator
) -> Tensor:
    """Move the members' weights by one `paper_update` on images x (N, C, H, W), labels y (N,); returns them (k,)."""
    logits = member_logits(model, x, num_draws=num_draws, generator=generator)
    weights = paper_update(model.weights.double(), logits, y, lr=lr, average=model.average)
    model.set_weights(weights)
    return weights


def least_squares_weights(outputs: Tensor, target: Tensor) -> Tensor:
    """The weights (k,), Σ w = 1, for which Σ w_m outputs_m is nearest to the target.

    outputs: (k, N), say mean probabilities of networks of k depths; target: (N,), say the PDE's solution. For two
    depths L and 2L and exact means these are the weights of extrapolation, (-1, 2), up to terms of order 1/L.
    """
    if outputs.dim() != 2 or target.shape != outputs.shape[1:]:
        raise ValueError(
            f"outputs, target: expected shapes (k, N) and (N,), got {tuple(outputs.shape)}, {tuple(target.shape)}"
        )
    outputs, target = outputs.double(), target.double()
    free = torch.linalg.lstsq((outputs[:-1] - outputs[-1]).T, (target - outputs[-1]).unsqueeze(-1)).solution[:, 0]
    return torch.cat([free, 1.0 - free.sum().unsqueeze(0)])


def least_error_weights(bias: Tensor, covariance: Tensor, num_draws: float) -> Tensor:
    """The weights w (k,), Σ w = 1, of least mean-square error wᵀ(bias + covariance / n)w of a mean over n draws.

    bias: (k, k) products of the members' biases, averaged over points; covariance: (k, k) of one draw. Here learned
    weights and multilevel meet: members on the same noise have nearly one draw in common, which no weights change, so
    the biases decide: depths L and 2L get (-1, 2), and L, 2L, 4L get (1/3, -2, 8/3). With noise of their own and equal
    variances, small n gets equal weights. Where some direction changes nothing, the weights nearest to equal ones.

    Raises ValueError for other shapes, n <= 0, or a sum of matrices under which the error has no minimum: an estimate
    of the biases with too much sampling error taken out, say.
    """
    if bias.dim() != 2 or not bias.shape[0] == bias.shape[1] > 0 or covariance.shape != bias.shape or not num_draws > 0:
        raise ValueError(
            "bias, covariance, num_draws: expected two matrices (k, k) and a positive number, "
            f"got {tuple(bias.shape)}, {tuple(covariance.shape)}, {num_draws}"
        )
    total = (bias.cpu() + covariance.cpu() / num_draws).double()
    total = (total + total.T) / 2
    scale = total.abs().max()
    equal, basis = torch.full((len(total),), 1.0 / len(total), dtype=torch.float64), _basis(len(total))
    curvatures, axes = torch.linalg.eigh(basis.T @ total @ basis)
    slopes = axes.T @ (basis.T @ (total @ equal))
    flat = curvatures <= _ROUNDING * scale
    # the slope of a semidefinite form is at most (scale curvature)^½
    falls = flat & (slopes.abs() > 2 * _ROUNDING**0.5 * scale)
    if bool((curvatures < -_ROUNDING * scale).any() or falls.any()):
        raise ValueError(f"bias: expected a positive semidefinite bias + covariance / draws, got {total.tolist()}")
    return equal - basis @ (axes @ torch.where(flat, 0.0, slopes / torch.where(flat, 1.0, curvatures)))


def _basis(k: int) -> Tensor:
    """Orthonormal columns (k, k - 1) that span the directions of {Σ w = 1}."""
    return torch.linalg.qr(torch.eye(k, dtype=torch.float64)[:, : k - 1] - 1.0 / k)[0]


def _at_label(values: Tensor, y: Tensor) -> Tensor:
    """(k, N) of values (k, N, K)."""
    return values.gather(2, y.expand(len(values), -1).unsqueeze(-1))[..., 0]


def _check(weights: Tensor, logits: Tensor, y: Tensor, average: Average) -> None:
    if logits.dim() != 3 or weights.shape != logits.shape[:1] or y.shape != logits.shape[1:2]:
        raise ValueError(
            f"weights, logits, y: expected shapes (k,), (k, N, K) and (N,), "
            f"got {tuple(weights.shape)}, {tuple(logits.shape)} and {tuple(y.shape)}"
        )
    if average not in get_args(Average):
        raise ValueError(f"average: expected 'logits' or 'probabilities', got {average!r}")
    if average == "probabilities" and bool((weights < 0).any()):
        raise ValueError(f"weights: expected none negative, as probabilities are averaged, got {weights.tolist()}")
