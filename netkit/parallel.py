"""One batch spread over several processes, each of which computes as if it saw all of it.

Under torchrun each of n processes holds every n-th image of a batch. Inside `spread`, whatever a network takes from its
batch as a whole (the statistics of batch norm, the noise's standard deviation) is taken over the images of all
processes, forward and backward, and whatever is drawn at random for a batch is drawn for all of it. So a training does
not depend on the number of processes, up to rounding. In one process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Share:
    """The images number `rank`, `rank + world`, ... of a batch of `total` >= `world`; by default all of any batch."""

    rank: int = 0
    world: int = 1
    total: int = 1

    @property
    def size(self) -> int:
        """How many images are here."""
        return len(range(self.rank, self.total, self.world))

    @property
    def weight(self) -> float:
        """What the mean over the images here counts in the mean over all."""
        return self.size / self.total

    def rows(self, whole: Tensor) -> Tensor:
        """(k total, ...) -> (k size, ...): the images here of k batches in a row, as of a clean and an attacked one."""
        if self.world == 1:
            return whole
        return whole.unflatten(0, (-1, self.total))[:, self.rank :: self.world].flatten(0, 1)

    def count(self, here: int) -> int:
        """How many there are in all processes of what each image has equally many of."""
        return here * self.total // self.size

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, which overwrites `values`."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all images of what is a mean over those here."""
        return values if self.world == 1 else self.sum(values * self.weight)

    def norm(self, values: Tensor) -> Tensor:
        """The Euclidean length of what has the length `values` here."""
        return values if self.world == 1 else self.sum(values.square()).sqrt()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, at once: one message is faster than one for each parameter."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not gradients:
            return
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


WHOLE = Share()

_current: ContextVar[Share] = ContextVar("share", default=WHOLE)


def share_of(total: int) -> Share:
    """This process's share of a batch; all of it where some process would get nothing."""
    rank, world = processes()
    return Share(rank, world, total) if 1 < world <= total else WHOLE


def current() -> Share:
    """The share that is worked on here and now."""
    return _current.get()


@contextlib.contextmanager
def spread(share: Share) -> Iterator[None]:
    """What runs inside the block, in all processes alike, has this share of a batch."""
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def drawn(like: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """`draw(like)`, or of what `draw` gives for all images of a spread batch the rows of those here.

    `like` and the draw have the same shape, (k size, ...), and memory layout; the values of `like` do not count.
    Drawing for all costs each process what it costs one alone, but needs no message, and with equal generators it is
    exactly what one process draws.
    """
    share = current()
    if share.world == 1:
        return draw(like)
    shape, strides = (share.count(len(like)), *like.shape[1:]), (like[0].numel(), *like.stride()[1:])
    return share.rows(draw(torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)))


class BatchNorm2d(nn.BatchNorm2d):
    """torch's batch norm, in training over all images of a spread batch (torch's own SyncBatchNorm needs CUDA)."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_features, H, W) -> the same."""
        share = current()
        if share.world == 1 or not self.training:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        var_here, mean_here = torch.var_mean(x.detach().to(wide), (0, 2, 3), correction=0)
        mean = share.mean(mean_here)
        var = share.mean(var_here + (mean_here - mean).square())
        count = share.count(x.numel() // self.num_features)
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
        normalised: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, var, self.eps, share)
        return normalised


class _Normalise(torch.autograd.Function):
    """Batch norm with the mean and variance (C,) of all processes' images (Ioffe and Szegedy 2015, section 3)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, share: Share
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.share = share
        return nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # With x̂ = (x - mean) / std: ∂L/∂x = weight / std · (g - mean(g) - x̂ mean(g x̂)), means over all processes.
        x, weight, mean, inverse_std = ctx.saved_tensors
        column = (-1, 1, 1)
        normal = (x.to(mean) - mean.view(column)).mul_(inverse_std.view(column))
        wide = grad.to(mean)
        sums = torch.stack([wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))])
        means = ctx.share.sum(sums / ctx.share.count(x.numel() // x.shape[1]))
        slope = (weight * inverse_std).view(column)
        grad_x = (wide - means[0].view(column)).sub_(normal.mul_(means[1].view(column))).mul_(slope)
        # of the parameters this process's part only, as of any layer: `Share.sum_gradients` adds them up
        return grad_x.to(x.dtype), sums[1].to(weight.dtype), sums[0].to(weight.dtype), None, None, None, None


# The processes themselves


def processes() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def make_current(device: torch.device | str) -> None:
    """Make the GPU `device` the one that torch takes where none is named; plain "cuda" is the current one anyway."""
    if (index := torch.device(device).index) is not None:
        torch.cuda.set_device(index)


@contextlib.contextmanager
def joined(device: torch.device | str) -> Iterator[None]:
    """Join the processes that torchrun started, for work on `device`; nothing happens where it started one or none."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or processes()[1] > 1:
        yield
        return
    is_cpu = torch.device(device).type == "cpu"
    if not is_cpu:
        make_current(device)
    # A process that waits for another's long attack must not give up; where one dies, torchrun ends them all.
    dist.init_process_group("gloo" if is_cpu else "nccl", timeout=_PATIENCE)
    yield
    dist.barrier()  # a process that closes its connections while another still uses them can abort that one
    dist.destroy_process_group()  # not after an error: the others may never come to it


def from_first(make: Callable[[], T]) -> T:
    """What `make()` gives in the first process, say of a file, in all of them; it is called in the first only."""
    rank, world = processes()
    if world == 1:
        return make()
    box: list[Any] = [make() if rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    result: T = box[0]
    return result


def gathered(own: T) -> list[T]:
    """What each process has, in the order of their numbers; also where they wait for each other."""
    _, world = processes()
    if world == 1:
        return [own]
    boxes: list[Any] = [None] * world
    dist.all_gather_object(boxes, own)
    return boxes


def make_equal(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with the first process's."""
    if processes()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
