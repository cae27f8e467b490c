"""Two-dimensional data, and the training of small noisy flows on them, naturally or against an attack."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bridge.flow import FlowNetwork
from netkit import attacks

Shape = Literal["moons", "circles", "spirals"]
SHAPES: tuple[str, ...] = get_args(Shape)


def planar_data(
    shape: str, num_points: int, rng: int | np.random.Generator = 0, *, noise: float = 0.08
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points (n, 2) of two classes, roughly within [-1.6, 1.6]², and labels (n,).

    shape: "moons", "circles" or "spirals"; noise: standard deviation added to both coordinates.
    Raises ValueError for another shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
    rng = np.random.default_rng(rng)
    y = rng.integers(0, 2, num_points)
    s = rng.random(num_points)
    if shape == "moons":
        angle = math.pi * s
        x = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1) * (1 - 2 * y)[:, None]
    elif shape == "circles":
        angle, radius = 2 * math.pi * s, np.where(y == 1, 0.6, 1.4)
        x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        angle = 3.0 * math.pi * np.sqrt(0.03 + 0.97 * s)
        x = 1.6 * (angle / (3.0 * math.pi))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        x *= (1 - 2 * y)[:, None]
    return x + noise * rng.standard_normal((num_points, 2)), y


def fit(
    network: FlowNetwork,
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    *,
    num_steps: int = 500,
    lr: float = 0.02,
    batch_size: int = 256,
    eps: float = 0.0,
    attack_steps: int = 3,
    seed: int = 0,
) -> list[float]:
    """Train in place with Adam on noisy forward passes; returns the loss of every step.

    eps: radius of an l-inf attack on every batch (Alg. 1); 0 trains naturally.
    Raises FloatingPointError where the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed)
    points, labels = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=num_steps)
    attack = partial(
        attacks.pgd,
        eps=eps,
        step_size=2.0 * eps / attack_steps,
        num_steps=attack_steps,
        bounds=None,  # points of R^d, not pixels
        generator=generator,
    )
    losses = []
    with network.using_generator(generator):
        for _ in range(num_steps):
            chosen = torch.randint(len(points), (batch_size,), generator=generator)
            batch, target = points[chosen], labels[chosen]
            try:
                batch = attack(network, batch, target) if eps > 0 else batch
                loss = nn.functional.cross_entropy(network(batch), target)
                is_finite = bool(torch.isfinite(loss))
            except attacks.NotFiniteError:
                is_finite = False
            if not is_finite:
                raise FloatingPointError(f"training diverged at learning rate {lr:g}: lower it")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return losses
