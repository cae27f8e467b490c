"""The released code of the paper in our networks: its line of noise, and its loop of the attack."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netkit.models import EnResNet, en_resnet

EPS, STEP = 8 / 255, 2 / 255


class AuthorsNoise(nn.Module):
    """The released code's line."""

    def forward(self, out: Tensor, _: object = None) -> Tensor:
        return out + 0.1 * torch.std(out) * torch.randn_like(out)


def authors_model(num_members: int) -> EnResNet:
    model = en_resnet(20, num_members=num_members, seed=0)
    for member in model.members:
        for block in member.blocks:
            block.noise = AuthorsNoise()
    return model


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, num_steps: int) -> Tensor:
    """The released code's loop."""
    x_adv = x + torch.zeros_like(x).uniform_(-EPS, EPS)
    for _ in range(num_steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [x_adv])
        x_adv = x_adv.detach() + STEP * torch.sign(gradient.detach())
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv
