"""The dependency direction: studies -> bridge -> {pdekit, netkit}; pdekit needs no torch, netkit no numba."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "pdekit": {"torch", "torchvision", "safetensors", "sklearn", "typer", "netkit", "bridge", "studies"},
    "netkit": {"numba", "rocket_fft", "xarray", "typer", "pdekit", "bridge", "studies"},
    "bridge": {"typer", "studies"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_their_layer_may(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    offences = {f.name: bad for f in files if (bad := imported(f) & FORBIDDEN[package])}
    assert not offences


def test_importing_pdekit_needs_neither_matplotlib_nor_torch():
    import subprocess
    import sys

    code = "import sys, pdekit; print([m for m in ('torch', 'matplotlib', 'typer') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_netkit_is_imported_without_a_home_folder():
    """As in a container whose user has no entry: only what looks for the cache of data says that there is none."""
    import os
    import subprocess
    import sys

    code = (
        "import pwd\n"
        "def absent(_): raise KeyError('no such user')\n"
        "pwd.getpwuid = absent\n"
        "import netkit, netkit.packed\n"
        "netkit.load('digits')\n"
        "try:\n"
        "    netkit.load('cifar10')\n"
        "except netkit.DataError as error:\n"
        "    print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "Could not determine home directory.: say where the images are, data=..."
