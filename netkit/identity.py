"""Descriptions of all that an evaluation's numbers depend on: two things of one description compute the same.

A description goes by content. Functions and classes of this package and of installed libraries are known by name and
version; those of a user's own modules by their code, default values and the module's globals they read; tensors by
their bytes; models by their classes, attributes, parameters and all buffers. Lambdas, closures and objects of unknown
classes hide what they depend on, and have no description.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netkit import checkpoint
from netkit.injection import Injected
from netkit.models import EnResNet, ResNet
from netkit.noise import InjectedNoise, noise_parts

VERSION = 2
"""The version of this package's networks, noise, attacks and evaluations; raised when one gives other numbers."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_MODULE_STATE = frozenset(vars(nn.Module()))
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")


class UnidentifiedError(ValueError):
    """Something has no description; the message says what, and fits behind 'as'."""


def describe(value: Any, _inside: frozenset[int] = frozenset()) -> str:
    """The description of a value, function, partial, tensor or model.

    Raises UnidentifiedError where there is none.
    """
    within = partial(describe, _inside=_inside)
    if type(value) in _PLAIN:
        return repr(value)
    if type(value) in (list, tuple):
        return f"[{', '.join(map(within, value))}]"
    if type(value) in (set, frozenset):
        return f"{{{', '.join(sorted(map(within, value)))}}}"
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        return f"{{{', '.join(f'{within(key)}: {within(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, partial):
        positional = [within(part) for part in value.args]
        named = [f"{key}={within(entry)}" for key, entry in sorted(value.keywords.items())]
        return f"{within(value.func)}({', '.join([*positional, *named])})"
    if isinstance(value, Tensor):
        return f"tensor({_digest(_tensor(value))})"
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        content = f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value).tobytes()
        return f"array({_digest(content)})"
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__}({describe_model(value)})"
    if isinstance(value, enum.Enum):
        return f"{_class(type(value), _inside)}.{value.name}"
    if isinstance(value, type):
        return _class(value, _inside)
    if isinstance(value, FunctionType):
        return _function(value, _inside)
    if isinstance(value, ModuleType):
        return _with_version(value.__name__, f"the module {value.__name__}")
    if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, ModuleType | None):
        name = f"{value.__module__}.{value.__qualname__}"
        return _with_version(value.__module__ or "", name, f".{value.__qualname__}")
    if hasattr(value, "identity"):
        return f"{_class(type(value), _inside)}({within(value.identity)})"
    if dataclasses.is_dataclass(value):
        fields = [f"{field.name}={within(getattr(value, field.name))}" for field in dataclasses.fields(value)]
        return f"{_class(type(value), _inside)}({', '.join(fields)})"
    raise UnidentifiedError(f"an object of {type(value).__module__}.{type(value).__qualname__} may hide anything")


def describe_what_shows(value: Any) -> str:
    """`describe`; of a lambda what its code shows, of what may hide anything its name alone."""
    with suppress(UnidentifiedError):
        return describe(value)
    if isinstance(value, FunctionType):
        with suppress(UnidentifiedError):
            return f"{value.__module__}.{value.__qualname__}#{_digest(_code_of(value, frozenset()).encode())}"
    return without_addresses(value)


def describe_model(model: nn.Module, *, tensors_only: bool = False) -> str:
    """Sixteen hexadecimal digits of everything in the model that its answers in eval mode depend on.

    The state of random generators is left out, and so is the device. tensors_only: leave out everything but parameters
    and buffers, for models that have no description.

    Raises UnidentifiedError, unless `tensors_only`, for a model with hooks or attributes without description.
    """
    modules = () if tensors_only else model.named_modules(remove_duplicate=False)
    content = [_module(name, module) for name, module in modules]
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors = [f"{name} {_digest(_tensor(tensor))}" for name, tensor in named]
    return _digest(json.dumps([content, tensors]).encode())


def architecture(model: nn.Module) -> dict[str, Any]:
    """A description of the model without its weights, fit for JSON, by which a training knows its checkpoint.

    Of this package's networks it is `model.config`. Others are told apart by their class, the names, shapes and types
    of their parameters and buffers, and their repr; what appears in none of these, as the code of a user's forward
    pass, is not.
    """
    owners: Iterator[Any] = iter(vars(model).values())
    described: dict[str, Any]
    if isinstance(model, ResNet):
        described = model.config
    elif isinstance(model, EnResNet):
        members = [architecture(member) for member in model.members]
        described = {"type": "EnResNet", "members": members, "average": model.average}
    else:
        tensors = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict(keep_vars=True).items()]
        layers = _digest(json.dumps([tensors, without_addresses(model)]).encode())
        described = {"type": f"{type(model).__module__}.{type(model).__qualname__}", "layers": layers}
        owners = noise_parts(model)
    injected = [
        {"blocks": list(owner.blocks), "noise": [dataclasses.asdict(layer.noise) for layer in owner.layers]}
        for owner in owners
        if isinstance(owner, InjectedNoise)
    ]
    return {**described, "injected": injected} if injected else described


def is_buildable(described: Mapping[str, Any]) -> bool:
    """Whether `netkit.models.build` makes the model from its `architecture`."""
    return not {"layers", "injected"} & described.keys() and all(map(is_buildable, described.get("members", ())))


def without_addresses(value: Any) -> str:
    """The repr of a value, less what differs from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _module(name: str, module: nn.Module) -> list[str]:
    states = (getattr(module, state) for state in sorted(_MODULE_STATE) if state.endswith("hooks"))
    hooks = [hook for state in states for hook in state.values()]
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    if not all(isinstance(owner, Injected) for owner in owners):
        raise UnidentifiedError(f"hooks on {name or 'the model'} may do anything")
    attributes = [
        f"{key}={describe(value)}"
        for key, value in sorted(vars(module).items())
        if key not in _MODULE_STATE and not isinstance(value, torch.Generator)
    ]
    return [name, _class(type(module), frozenset()), *attributes, *map(describe, owners)]


def _class(cls: type, inside: frozenset[int]) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "builtins" or id(cls) in inside:
        return name
    if (version := _version(cls.__module__)) is not None:
        return f"{name}@{version}"
    inside = inside | {id(cls)}
    parts = [_class(base, inside) for base in cls.__bases__]
    for key, value in sorted(vars(cls).items()):
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, property):
            parts += [f"{key}: {_code_of(part, inside)}" for part in (value.fget, value.fset) if part is not None]
        elif isinstance(value, FunctionType):
            parts.append(f"{key}: {_code_of(value, inside)}")
        elif not (key.startswith("__") and key.endswith("__")) and key != "_abc_impl":
            parts.append(f"{key}: {describe(value, inside)}")
    return f"{name}#{_digest(json.dumps(parts).encode())}"


def _function(function: FunctionType, inside: frozenset[int]) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    if _found(function.__module__, function.__qualname__) is not function:
        raise UnidentifiedError(f"{name} is no function of a module, but a lambda or one made by another")
    if id(function) in inside:
        return name
    if (version := _version(function.__module__)) is not None:
        return f"{name}@{version}"
    return f"{name}#{_digest(_code_of(function, inside).encode())}"


def _code_of(function: Callable[..., Any], inside: frozenset[int]) -> str:
    """The code of a user's function, its defaults, the values it closes over, and the globals it reads."""
    if not isinstance(function, FunctionType):
        raise UnidentifiedError(f"{function!r} is no plain function")
    code = function.__code__
    inside = inside | {id(function)}
    closed = zip(code.co_freevars, function.__closure__ or (), strict=True)
    cells = {name: cell.cell_contents for name, cell in closed if name != "__class__"}
    parts = [
        f"{name}={_code_of(cell, inside) if isinstance(cell, FunctionType) else describe(cell, inside)}"
        for name, cell in cells.items()
    ]
    codes = list(_all_codes(code))
    reads = [instruction for each in codes for instruction in dis.get_instructions(each)]
    names = {str(read.argval) for read in reads if read.opname in _GLOBAL} & function.__globals__.keys()
    parts += [f"{name}={describe(function.__globals__[name], inside)}" for name in sorted(names)]
    modules = sorted({str(read.argval) for read in reads if read.opname == "IMPORT_NAME"})
    parts += [_with_version(module, f"the module {module}") for module in modules]
    parts += [repr((c.co_code, c.co_names, c.co_varnames, _constants(c))) for c in codes]
    parts += [describe(bound, inside) for bound in (function.__defaults__, function.__kwdefaults__)]
    return " ".join(parts)


def _all_codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_codes(constant)


def _constants(code: CodeType) -> list[str]:
    return [
        "code" if isinstance(constant, CodeType) else str(sorted(map(repr, constant)))
        if isinstance(constant, frozenset) else repr(constant)
        for constant in code.co_consts
    ]  # fmt: skip


def _found(module: str, qualname: str) -> Any:
    value: Any = sys.modules.get(module)
    for name in qualname.split("."):
        value = getattr(value, name, None)
    return value


def _with_version(module: str, what: str, suffix: str = "") -> str:
    if (version := _version(module)) is None:
        raise UnidentifiedError(f"{what} belongs to no installed library and may hold anything")
    return f"{module}{suffix}@{version}"


@cache
def _version(module: str) -> str | None:
    """The version of this package, of Python or of the installed library that a module belongs to; None for others."""
    top = module.partition(".")[0]
    if top == "netkit":
        return str(VERSION)
    if top in sys.stdlib_module_names:
        return "python{}.{}".format(*sys.version_info)
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not {"site-packages", "dist-packages"}.intersection(Path(spec.origin or "").parts):
        return None  # also of packages that are installed in place, whose version says nothing about their code
    distributions = importlib.metadata.packages_distributions().get(top, ())
    return importlib.metadata.version(distributions[0]) if distributions else None


def _tensor(tensor: Tensor) -> bytes:
    return f"{checkpoint.fingerprint([tensor])} {tensor.stride()}".encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
