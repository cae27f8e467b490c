"""How the members of an ensemble are computed: one after the other, or as one network with a group for each member.

Grouped, n members of w channels are one network of n·w channels whose convolutions have n groups; the first one needs
no groups, as all members see the same images. Batch norm is per channel and so per member by nature, and the noise has
a standard deviation for each member. The parameters stay those of the members. What pays depends on the device: on CPUs
grouped convolutions are slower than separate ones, so the loop is the default, and `fastest_execution` measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netkit import parallel

if TYPE_CHECKING:
    from netkit.models import EnResNet
    from netkit.noise import NoiseStream

Execution = Literal["loop", "grouped"]


def fastest_execution(model: EnResNet, x: Tensor, *, num_rounds: int = 5) -> Execution:
    """The faster way to attack images x of the size and number to come, by the median of interleaved runs.

    To use it: `model.execution = fastest_execution(model, x)`; the studies keep the loop.

    What is measured is what attacks do over and over: the gradient of the logits with respect to x, in eval mode and
    with constant weights (`netkit.frozen`), which make the loop faster and groups not. The model, its execution and the
    noise to come are left as they were. Members that are not alike can only be looped.
    """
    from netkit.frozen import frozen  # it needs `netkit.models`, which needs this module

    try:
        check_groupable(model.members)
    except ValueError:
        return "loop"
    before, state = model.execution, model.generator_state()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    seconds: dict[Execution, list[float]] = {"loop": [], "grouped": []}
    try:
        for turn in range(num_rounds + 1):
            for execution, times in seconds.items():
                model.execution = execution
                with frozen(model):  # made outside the time taken: attacks do it once for many gradients
                    elapsed = _seconds(lambda: _gradient(model, x), x.device)
                if turn > 0:  # the first run sets things up
                    times.append(elapsed)
    finally:
        model.execution = before
        model.set_generator_state(state)
        for module, training in modes:
            module.training = training
    return min(seconds, key=lambda execution: sorted(seconds[execution])[num_rounds // 2])


def check_groupable(members: Iterable[nn.Module]) -> None:
    """Raises ValueError unless the members are residual networks of one configuration."""
    configs = [getattr(member, "config", {}) for member in members]
    if any(config != configs[0] or config.get("type") != "ResNet" for config in configs):
        raise ValueError("expected residual networks of one configuration to compute them in groups")


def grouped_logits(members: Sequence[Any], x: Tensor, stream: NoiseStream) -> Tensor:
    """(B, in_channels, H, W) -> (num_members, B, num_classes): what each member says, computed in groups.

    Equal to the loop up to rounding, with given draws too. Noise that is drawn comes block by block, each for all
    members, and so in another order than in the loop.

    Raises:
        ValueError: for a batch that is spread over processes, or batch norms in different modes.
    """
    if parallel.current().world > 1:
        raise ValueError("expected the loop over members where a batch is spread over processes")
    first, n = members[0], len(members)
    if first.normalize is not None:
        x = first.normalize(x)
    out = F.conv2d(x, torch.cat([member.stem.weight for member in members]), padding=1)
    with stream.block_by_block(num_members=n, num_blocks=len(first.blocks)):
        for index in range(len(first.blocks)):
            out = _block([member.blocks[index] for member in members], out)
    features = F.relu(_batch_norm([member.bn for member in members], out)).mean((2, 3))
    weight, bias = (torch.stack([getattr(member.fc, name) for member in members]) for name in ("weight", "bias"))
    return torch.baddbmm(bias.unsqueeze(1), features.unflatten(1, (n, -1)).transpose(0, 1), weight.mT)


def _block(blocks: Sequence[Any], x: Tensor) -> Tensor:
    """`PreActBlock.forward` of one block of each member."""
    out = F.relu(_batch_norm([block.bn1 for block in blocks], x), inplace=True)
    if blocks[0].shortcut is not None:
        x = _conv([block.shortcut for block in blocks], out)
    out = _conv([block.conv1 for block in blocks], out)
    out = F.relu(_batch_norm([block.bn2 for block in blocks], out), inplace=True)
    out = _conv([block.conv2 for block in blocks], out)
    out += x
    if blocks[0].noise.size == 0:
        return out
    parts = out.chunk(len(blocks), 1)
    return torch.cat([block.noise(part.contiguous()) for block, part in zip(blocks, parts, strict=True)], 1)


def _conv(convs: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    weight = torch.cat([conv.weight for conv in convs])
    return F.conv2d(x, weight, stride=convs[0].stride, padding=convs[0].padding, groups=len(convs))


def _batch_norm(norms: Sequence[parallel.BatchNorm2d], x: Tensor) -> Tensor:
    training = norms[0].training
    if any(norm.training != training for norm in norms):
        raise ValueError("expected the batch norms of all members in one mode to compute them in groups")
    weight, bias = (torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    running = [[getattr(norm, name) for norm in norms] for name in ("running_mean", "running_var")]
    mean, var = (torch.cat(parts) for parts in running)
    out = F.batch_norm(x, mean, var, weight, bias, training, norms[0].momentum, norms[0].eps)
    if training:
        for parts, moved in zip(running, (mean, var), strict=True):
            for part, value in zip(parts, moved.chunk(len(parts)), strict=True):
                part.copy_(value)
        for norm in norms:
            norm.num_batches_tracked += 1
    return out


def _gradient(model: nn.Module, x: Tensor) -> None:
    variable = x.detach().requires_grad_()
    torch.autograd.grad(model(variable).sum(), variable)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
