"""Who may import whom: studies -> bridge -> {pdekit, netkit}, layers within studies and pdekit, no circles anywhere."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pdekit", "netkit", "bridge", "studies")
FORBIDDEN = {
    "pdekit": {"torch", "torchvision", "safetensors", "sklearn", "typer", "netkit", "bridge", "studies"},
    "netkit": {"numba", "rocket_fft", "xarray", "typer", "pdekit", "bridge", "studies"},
    "bridge": {"typer", "studies"},
}
_OFTEN_UNNEEDED = {"xarray", "pandas", "h5netcdf", "h5py", "rocket_fft", "matplotlib", "typer"}
_PARTS_OF_SCIPY = {f"scipy.{part}" for part in ("fft", "linalg", "ndimage", "optimize", "special", "stats")}
UNNEEDED = {
    "pdekit": {*_OFTEN_UNNEEDED, *_PARTS_OF_SCIPY, "torch", "rich"},
    "netkit": {*_OFTEN_UNNEEDED, *_PARTS_OF_SCIPY, "sklearn", "torchvision"},
    "bridge": {*_OFTEN_UNNEEDED, *_PARTS_OF_SCIPY, "sklearn", "torchvision"},
}
"""What a package's import leaves to the first call that needs it."""
LAYERS = {
    "studies": {
        "lab": set(),
        "certificate": {"lab"},
        "paper": {"lab"},
        "draw": {"lab", "paper"},
        "page": {"lab", "paper"},
    },
    "pdekit": {
        "runtime": set(),
        "numerics": {"runtime", "fastmath"},
        "equation": {"runtime", "numerics", "problem", "field", "series", "noise", "velocity", "characteristics"},
        "paths": {
            "runtime",
            "numerics",
            "fastmath",
            "problem",
            "field",
            "series",
            "noise",
            "velocity",
            "characteristics",
        },
    },
}
"""Which other parts of its package each part may import; modules beside the parts may import all."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported(module: str, *, when_called: bool = True) -> Iterator[str]:
    """The modules that one imports, also those of other projects; not what only type checkers import."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not when_called:
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_their_layer_may(package: str) -> None:
    ours = [module for module in MODULES if module.split(".")[0] == package]
    assert len(ours) > 3
    offences = {m: bad for m in ours if (bad := {name.split(".")[0] for name in imported(m)} & FORBIDDEN[package])}
    assert not offences


@pytest.mark.parametrize(("package", "part"), [(package, part) for package in LAYERS for part in LAYERS[package]])
def test_parts_of_a_package_import_only_those_below_them(package: str, part: str) -> None:
    ours = [module for module in MODULES if module.startswith(f"{package}.{part}.")]
    assert len(ours) > 1
    allowed = {part, *LAYERS[package][part]}
    offences = {
        module: bad
        for module in ours
        if (
            bad := [
                name
                for name in imported(module)
                if name.startswith(f"{package}.") and name.split(".")[1] not in allowed
            ]
        )
    }
    assert not offences


@pytest.mark.parametrize("when_called", [False, True])
def test_no_module_imports_itself_by_a_detour(when_called: bool) -> None:
    graph = {
        module: {name for name in imported(module, when_called=when_called) if name in MODULES and name not in PACKAGES}
        for module in MODULES
    }
    assert sum(map(len, graph.values())) > 100
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("package", UNNEEDED)
def test_an_import_loads_nothing_that_only_some_calls_need(package: str) -> None:
    """Each of these would be a tenth of the import or more."""
    code = f"import sys, {package}; print(*sorted({UNNEEDED[package]} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == []


def test_netkit_is_imported_without_a_home_folder():
    """As in a container whose user has no entry: only what looks for the cache of data says that there is none."""
    code = (
        "import pwd\n"
        "def absent(_): raise KeyError('no such user')\n"
        "pwd.getpwuid = absent\n"
        "import netkit\n"
        "netkit.load('digits')\n"
        "try:\n"
        "    netkit.load('cifar10')\n"
        "except netkit.DataError as error:\n"
        "    print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == (
        "data: expected a file or folder of images, as there is no default: Could not determine home directory."
    )


@pytest.mark.parametrize("script", ["fig4_diffusion", "theorems"])
def test_studies_of_the_equation_need_no_torch(script: str) -> None:
    waiting, seen = [f"studies.{script}"], set()
    while waiting:
        module = waiting.pop()
        names = set(imported(module, when_called=False))
        assert "torch" not in {name.split(".")[0] for name in names}, module
        seen.add(module)
        waiting += [name for name in names if name in MODULES and name not in seen]
