"""Build the sdist, and the wheel from it: one state of the source gives the same bytes on any day, in any folder.

python .ci/dist.py [FOLDER], dist by default. Files carry the time SOURCE_DATE_EPOCH, by default that of the commit.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", ".venv*", ".git", "build", "dist", "out", ".*_cache")


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "dist").absolute()
    target.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)  # the modes of what setuptools writes
    environment = os.environ | {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH") or committed()}
    with tempfile.TemporaryDirectory() as temporary:
        source, unpacked = Path(temporary, "source"), Path(temporary, "unpacked")
        copy_to(source)
        sdist = built("sdist", source, environment)
        write_again(sdist, int(environment["SOURCE_DATE_EPOCH"]))
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        wheel = built("wheel", next(unpacked.iterdir()), environment)
        for file in (sdist, wheel):
            print(shutil.copy(file, target))


def committed() -> str:
    """The time of the last commit; of a copy without its history the earliest that a wheel can hold."""
    found = _git("log", "-1", "--format=%ct")
    return found.strip() or "315532800"


def copy_to(folder: Path) -> None:
    """The source as it is now, without what is built, stored or tried beside it."""
    tracked = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")[:-1]
    if not tracked:
        shutil.copytree(ROOT, folder, ignore=_JUNK)
    for name in tracked:
        if (ROOT / name).is_file():  # not deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def _git(*words: str) -> str:
    if not (ROOT / ".git").exists():
        return ""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


def built(kind: str, source: Path, environment: dict[str, str]) -> Path:
    """What setuptools builds, in a process of its own; its words are shown where it fails."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    run = subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stdout + run.stderr)
    (file,) = (source / "dist").iterdir()
    return file


def write_again(sdist: Path, when: int) -> None:
    """The same files without a trace of who packed them, when and where: setuptools keeps that in an sdist."""
    packed = io.BytesIO()
    with (
        tarfile.open(sdist) as before,
        gzip.GzipFile("", "wb", fileobj=packed, mtime=when) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            if member.isfile():
                entry = tarfile.TarInfo(member.name)
                entry.size, entry.mtime, entry.mode = member.size, when, 0o755 if member.mode & 0o100 else 0o644
                after.addfile(entry, before.extractfile(member))
    sdist.write_bytes(packed.getvalue())


if __name__ == "__main__":
    main()
