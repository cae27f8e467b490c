"""Several processes train one network: torch's DistributedDataParallel, and the little that it leaves to its callers.

Each of n processes that torchrun started holds every n-th image of a batch and a copy of the network, and gradients are
averaged (`averaging`). Three things are not what one process computes:

- Batch statistics. On GPUs batch norm is over the images of all processes (torch's SyncBatchNorm). On CPUs, where torch
  has none, each process normalises by its own images, and the first one's running statistics count.
- The noise's standard deviation over a batch, with `noise_std="batch"`, is over the process's own images.
- Draws. Each process draws noise, augmentation and starts of attacks for its own images, from a stream of its own.

So a training by n processes is one of its own, with the same expected gradient but for batch statistics. Small networks
are better trained one seed a GPU, each by one process, as the studies' executors do.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=30)


def processes() -> tuple[int, int]:
    """This process's number, and the number of processes; (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def joined(device: torch.device | str) -> Iterator[None]:
    """Join the processes that torchrun started, for work on `device`; nothing happens where it started one or none."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or processes()[1] > 1:
        yield
        return
    # Some functions there take the group of their import's moment as a default. Imported later, by the wrapper of
    # `averaging`, they would keep this group and its threads alive, which abort an interpreter that ends.
    import torch.distributed.nn.functional

    device = torch.device(device)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # the GPU that NCCL takes; plain "cuda" is the current one anyway
    # A process that waits for another's long attack must not give up; where one dies, torchrun ends them all.
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=_PATIENCE)
    yield
    gc.collect()  # wrappers of `averaging` hang in cycles, and hold the group as well
    dist.barrier()  # a process that closes its connections while another still uses them can abort that one
    dist.destroy_process_group()  # not after an error: the others may never come to it


@contextlib.contextmanager
def averaging(module: nn.Module) -> Iterator[nn.Module]:
    """Wrap `module` for the block: its backward pass gives every process the mean of their gradients.

    Each call hands the first process's buffers to all. On GPUs the batch norm layers inside `module` count the images
    of all processes; the layers before, with the same tensors, come back after the block. In one process this gives
    `module` itself.
    """
    if processes()[1] == 1:
        yield module
        return
    layers = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    if all(parameter.is_cuda for parameter in module.parameters()):
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
    try:
        yield nn.parallel.DistributedDataParallel(module)
    finally:
        for parent, name, layer in layers:
            layer.train(getattr(parent, name).training)
            setattr(parent, name, layer)


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process alone, and give its result, say the content of a file, to all."""
    rank, world = processes()
    if world == 1:
        return make()
    box: list[Any] = [make() if rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    result: T = box[0]
    return result


def gathered(own: T) -> list[T]:
    """Collect `own` from every process, in the order of their numbers, in all; each waits for the others."""
    _, world = processes()
    if world == 1:
        return [own]
    boxes: list[Any] = [None] * world
    dist.all_gather_object(boxes, own)
    return boxes


def summed(values: Tensor) -> Tensor:
    """Sum `values` over all processes, in place."""
    if processes()[1] > 1:
        dist.all_reduce(values)
    return values


def make_equal(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with the first process's."""
    if processes()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
