"""The wheel and the sdist: the same bytes each time, all that is needed in them, and nothing else."""

from __future__ import annotations

import ast
import configparser
import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pdekit", "netkit", "bridge", "studies")
OPTIONAL = {
    "pdekit": {"pyfftw", "cloudpickle"},
    "netkit": {"tensorboard", "autoattack", "pyautoattack"},
    "bridge": set(),
    "studies": {"jax", "exponax", "distributed", "submitit", "cloudpickle"},
}
"""Imported only where it is installed, or said to be missing in one line."""
NAMES = {
    "rocket_fft": "rocket-fft",
    "sklearn": "scikit-learn",
    "PIL": "torchvision",
    "llvmlite": "numba",
    "markupsafe": "jinja2",
}
"""The package that brings a module, or needs it too, where names differ."""


def build(folder: Path, *, umask: int = 0o022, epoch: str = "1700000000") -> tuple[Path, Path]:
    """The sdist and the wheel."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch, "TZ": "UTC" if umask == 0o022 else "Asia/Tokyo"}
    before = os.umask(umask)
    try:
        command = [sys.executable, str(ROOT / ".ci" / "dist.py"), str(folder)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    finally:
        os.umask(before)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(unpacked):
    return email.message_from_string(next(unpacked.glob("*.dist-info/METADATA")).read_text())


def test_two_builds_have_the_same_bytes(built, tmp_path):
    """On another day, in another time zone, by somebody whose files others may not read."""
    again = build(tmp_path, umask=0o077)
    assert [file.name for file in again] == [file.name for file in built]
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in built]


def test_the_wheel_holds_every_package_and_its_data(unpacked):
    for package in PACKAGES:
        modules = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert {path.relative_to(unpacked) for path in (unpacked / package).rglob("*.py")} == modules
        assert len(modules) > 9
        assert (unpacked / package / "py.typed").is_file()
    for data in ("paper/numbers.json", *(f"page/templates/{path.name}" for path in templates())):
        assert (unpacked / "studies" / data).read_bytes() == (ROOT / "studies" / data).read_bytes()
    published = {path.name: path.read_bytes() for path in (ROOT / "netkit" / "published").iterdir()}
    assert {path.name: path.read_bytes() for path in (unpacked / "netkit" / "published").iterdir()} == published


def templates() -> Iterator[Path]:
    return (ROOT / "studies" / "page" / "templates").iterdir()


def test_the_wheel_holds_nothing_else(built, unpacked):
    top = {path.name for path in unpacked.iterdir()}
    (info,) = (name for name in top if name.endswith(".dist-info"))
    assert top == {*PACKAGES, info}
    assert (unpacked / info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    kinds = {path.suffix for path in unpacked.rglob("*") if path.is_file() and info not in path.parts}
    data = {".json", ".jsonl", ".png", ".html", ".css", ".js", ".md", ".mplstyle", ".safetensors"}
    assert kinds == {".py", ".typed", *data}
    assert built[1].stat().st_size < 5 * 2**20


def test_the_wheel_shows_the_same_report_as_the_repository(unpacked):
    """The results in the wheel are those that the page shows; the repository stores more."""
    from studies.page.results import Results
    from studies.report import render

    ours, stored = (place / "studies" / "results" for place in (unpacked, ROOT))
    page = render(Results(ours))
    assert len(page) > 2**20
    assert page == render(Results(stored))
    assert not (ours / "work_precision").exists()


def test_every_module_of_the_wheel_imports_without_the_source(unpacked, tmp_path):
    """Nothing of an installed copy takes the history of a folder around it for its own."""
    names = [
        ".".join(path.relative_to(unpacked).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (unpacked / package).rglob("*.py")
        if path.name != "__main__.py"
    ]
    assert len(names) > 100
    code = (
        f"import importlib\nfor name in {names!r}:\n    module = importlib.import_module(name)\n"
        "    print(module.__file__)\n"
        "from studies.lab import reporting\nprint(reporting._COMMIT, reporting.OUT, reporting.OWN_RESULTS)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    subprocess.run(["git", "init", "-q", str(unpacked.parent)], check=True)
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    *files, said = run.stdout.splitlines()
    assert all(file.startswith(str(unpacked)) for file in files)
    assert said == f"unknown {tmp_path / 'out'} {tmp_path / 'out'}"


def test_the_sdist_is_a_copy_of_the_repository(built):
    if not (ROOT / ".git").exists():
        pytest.skip("needs the list of tracked files")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    with tarfile.open(built[0]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    expected = {name for name in tracked if (ROOT / name).is_file()}
    assert expected - packed == set()
    assert {name for name in packed - expected if not name.startswith("itoflow.egg-info/")} == {"PKG-INFO"}


def test_the_version_and_the_description_are_said_once(metadata):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    assert metadata["Version"] == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert metadata["License-File"] == "LICENSE"
    assert "__version__" not in "".join(
        path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    )


def required(metadata: email.message.Message, extra: str | None) -> set[str]:
    """The packages that the installation of an extra brings, or the one without any."""
    found = set()
    for line in metadata.get_all("Requires-Dist", []):
        need, _, marker = line.partition(";")
        if marker.strip() in ("", f'extra == "{extra}"'):
            found.add(re.split(r"[<>=!~\[ ]", need)[0])
    return found


@pytest.mark.parametrize(
    ("package", "extra"), [("pdekit", None), ("netkit", "netkit"), ("bridge", "netkit"), ("studies", "studies")]
)
def test_each_extra_brings_what_its_packages_import(package, extra, metadata):
    imported = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {*PACKAGES, *OPTIONAL[package]}
    assert len(others) > 3
    assert {NAMES.get(name, name) for name in others} - required(metadata, extra) == set()


def test_pdekit_alone_brings_no_networks(metadata):
    assert not required(metadata, None) & {"torch", "torchvision", "safetensors", "scikit-learn", "typer", "matplotlib"}
    assert not required(metadata, "figures") & {"torch", "torchvision", "safetensors", "scikit-learn"}


def test_the_command_asks_for_what_its_extras_bring(metadata):
    from studies.cli import REQUIRED

    for extra, packages in REQUIRED.items():
        brought = required(metadata, extra) - required(metadata, None)
        assert {NAMES.get(name, name) for name in packages} == (brought if extra else set())
