"""Types in signatures as the source has them, and names where they are exported."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from sphinx.util.inspect import stringify_signature
from sphinx.util.typing import stringify_annotation


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-signature", on_signature)
    app.connect("autodoc-skip-member", skip_exported)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def on_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Names such as NDArray and ArrayLike in place of what they stand for, which fills lines."""
    if what not in ("function", "method", "class") or signature is None:
        return None
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    names = vars(sys.modules[inspect.unwrap(obj).__module__])
    parameters = [p.replace(annotation=_full(p.annotation, names)) for p in found.parameters.values()]
    if what == "method" and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    if what != "class" and found.return_annotation is not inspect.Signature.empty:
        returned = stringify_annotation(_full(found.return_annotation, names), "smart")
    found = found.replace(parameters=parameters)
    return stringify_signature(found, show_return_annotation=False, unqualified_typehints=True), returned


def _full(annotation: Any, names: dict[str, Any]) -> Any:
    """An annotation as it is written, with the full names of this project's classes, so that they become links."""
    if not isinstance(annotation, str):
        return annotation

    def full(match: re.Match[str]) -> str:
        value = names.get(match[0])
        return public_name(value) if isinstance(value, type) and _is_ours(value) else match[0]

    return re.sub(r"(?<![\w.'\"])[A-Za-z_]\w*(?![\w.'\"])", full, annotation)


def public_name(value: Any) -> str:
    """Where an object is exported, or else where it is defined."""
    module, name = value.__module__, value.__qualname__
    for package in (module.split(".")[0], module.rpartition(".")[0]):
        exporting = sys.modules.get(package)
        if name in getattr(exporting, "__all__", ()) and getattr(exporting, name) is value:
            return f"{package}.{name}"
    return f"{module}.{name}"


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] in ("pdekit", "netkit", "bridge")


def skip_exported(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """On the page of a module leave out what has a page of its own."""
    if what == "module" and _is_ours(obj) and hasattr(obj, "__qualname__"):
        return skip or public_name(obj) != f"{obj.__module__}.{obj.__qualname__}"
    return None
