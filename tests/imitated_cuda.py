"""A GPU that is not there: tensors that say they are on `cuda:0`, compute on the CPU and refuse what a GPU refuses.

torch's own fake tensors hold no numbers and need a CUDA driver for their gradients. Here every tensor made for a GPU is
an `OnGpu`, which wraps a tensor on the CPU and sees each operation on it, forward and backward, after autograd and
autocast. Numbers, control flow, checkpoints and generators are real; kernels, streams and memory are not.

What is refused: tensors of two devices in one operation (a CPU tensor without dimensions may take part in elementwise
ones, as on a GPU, and copies go anywhere), a generator of another device, `numpy()`. Stricter than a GPU: an index on
the CPU, which costs a GPU a wait. Not seen: `cpu()` and `to()` inside a backward pass, of which torch asks no Python.
`Imitation.waits` counts what makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import return_and_correct_aliasing

GPU = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_ANYWHERE = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
_Generator, _autocast = torch.Generator, torch.autocast


class OnGpu(torch.Tensor):
    """A tensor whose numbers are in `inner`, on the CPU. C++ takes it for a CPU tensor, Python for one on the GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, storage_offset=inner.storage_offset()
        )
        made.inner = inner
        return made

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnGpu({self.inner})"

    # so that nn.Module.to swaps parameters in place, as it moves them to a real GPU
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> OnGpu:
        return OnGpu(inner["inner"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _ANYWHERE:
            _check_devices(func, args, kwargs)
        out = func(*_each(_inner, args), **{name: _each(_inner, value) for name, value in kwargs.items()})
        if func is torch.ops.aten._local_scalar_dense.default or isinstance(out, bool):
            Imitation.wait(str(func))
        return return_and_correct_aliasing(func, args, kwargs, _each(_on_gpu, out))


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `change` made to each tensor in it (torch's own tree_map takes longer than a small operation)."""
    if isinstance(value, list | tuple):
        return type(value)(_each(change, part) for part in value)
    return change(value)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGpu) else value


def _on_gpu(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, Tensor) and not isinstance(value, OnGpu) else value


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _check_devices(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for number, value in [*enumerate(args), *kwargs.items()]:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor) and not isinstance(tensor, OnGpu):
                may_mix = torch.Tag.pointwise in func.tags and tensor.dim() == 0 and number not in _written(func)
                if not may_mix:
                    raise RuntimeError(f"{func}: expected all tensors on {GPU}, got {tuple(tensor.shape)} on the CPU")


@cache
def _written(func: Any) -> set[int | str]:
    """Which arguments the operation changes, by number and by name."""
    changed = [
        (number, argument.name)
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return {key for pair in changed for key in pair}


class _AnyGenerator(_Generator):
    """A generator that says it is where it was asked to be. Its state is a ByteTensor on the CPU, as of a real one."""

    def __new__(cls, device: Any = "cpu") -> _AnyGenerator:
        made: _AnyGenerator = super().__new__(cls, _CPU)
        made.where = GPU if _is_gpu(device) else torch.device(device)
        return made

    device = property(lambda self: self.where)

    def set_state(self, state: Tensor) -> _AnyGenerator:
        if isinstance(state, OnGpu) or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")  # as torch says
        super().set_state(state)
        return self


class Imitation(TorchFunctionMode):
    """Sees what Python asks of torch before C++ does: where tensors are made and moved, and by what they are drawn."""

    waits: list[str]
    _active: Imitation | None = None

    @classmethod
    def wait(cls, what: str) -> None:
        if cls._active is not None:
            cls._active.waits.append(what)

    def __enter__(self) -> Imitation:
        self.waits = []
        Imitation._active = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Imitation._active = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        name = getattr(func, "__name__", "")
        if first is not None and name in _MOVES and func is getattr(torch.Tensor, name):
            return _moved(name, func, args, kwargs)
        if isinstance(first, OnGpu) and name in ("tolist", "numpy", "__array__", "new_tensor"):
            return self._of_gpu(name, first, args[1:], kwargs)
        if (generator := kwargs.get("generator")) is not None:
            device = kwargs.get("device") or (first.device if first is not None else _CPU)
            if _is_gpu(device) != _is_gpu(generator.device):
                raise RuntimeError(f"{resolve_name(func)}: expected a {device} generator, got {generator.device}")
        if _is_gpu(kwargs.get("device")):
            kwargs["device"] = _CPU
            return _each(_on_gpu, func(*args, **kwargs))
        return func(*args, **kwargs)

    def _of_gpu(self, name: str, tensor: OnGpu, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "new_tensor":
            return OnGpu(tensor.inner.new_tensor(*args, **kwargs))
        if name == "tolist":
            self.wait(name)
            return tensor.inner.tolist()
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


_MOVES = ("to", "cpu", "cuda")


def _moved(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`Tensor.to`, `.cpu()` and `.cuda()`, whose C++ believes that every tensor is on the CPU already."""
    tensor, *rest = args
    device: Any = {"cpu": _CPU, "cuda": GPU}.get(name, kwargs.pop("device", None))
    if name == "to":
        for place, value in enumerate(rest):
            if isinstance(value, str | torch.device):
                device, rest[place] = value, _CPU
            elif isinstance(value, Tensor):
                device = value.device
                rest[place : place + 1] = [_CPU, value.dtype]
    here = tensor.device
    there = here if device is None else torch.device(device)
    if here.type == there.type:
        return func(tensor, *rest, **kwargs) if name == "to" else tensor  # type: ignore[no-any-return]
    with torch._C.DisableTorchFunction():
        if there.type == "cpu":
            Imitation.wait("to the CPU")
            moved = _ToCpu.apply(tensor)
        else:
            Imitation.wait("to the GPU")
            moved = _ToGpu.apply(tensor)
    return moved.to(*rest, **{**kwargs, "copy": False}) if name == "to" else moved  # type: ignore[no-any-return]


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: OnGpu) -> Tensor:
        return x.inner.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return OnGpu(grad.clone())


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnGpu(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: OnGpu) -> Tensor:
        return grad.inner.clone()


def _cpu_for(kind: str) -> str:
    return "cpu" if kind == "cuda" else kind


def _asked_of_cpu(ask: Callable[[str], Any], kind: str = "cuda") -> Any:
    return ask(_cpu_for(kind))


def _cpu_autocast(device_type: str, dtype: torch.dtype | None = None, **options: Any) -> torch.autocast:
    return _autocast(_cpu_for(device_type), dtype=dtype, **options)


@contextmanager
def imitated_gpu() -> Iterator[Imitation]:
    """torch has one GPU inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        answers: dict[str, Any] = {
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "set_device": None,
            "get_device_name": "no GPU",
            "synchronize": None,
            "is_current_stream_capturing": False,
            "is_bf16_supported": True,
            "_lazy_init": None,
        }
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            patch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)  # the name changed
        patch.setattr(torch, "Generator", _AnyGenerator)
        patch.setattr(torch.cuda, "default_generators", (_AnyGenerator("cuda"),))
        patch.setattr(torch, "autocast", _cpu_autocast)
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            patch.setattr(torch, name, partial(_asked_of_cpu, getattr(torch, name)))
        with Imitation() as imitation:
            yield imitation
