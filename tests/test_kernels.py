"""Kernels compile wherever the package is installed, and are kept on disk wherever there is a folder for them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.errors import TypingError

import pdekit
from pdekit.runtime.kernels import kernel, static

EVALUATE = """
import warnings
warnings.simplefilter("error")
import pdekit
from pdekit.fastmath import exp
print(pdekit.__file__, exp(0.0))
"""


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A copy of the package beside whose source nothing can be kept: a file has the folder's name, which stops root."""
    source = Path(pdekit.__file__).parent
    shutil.copytree(source, tmp_path / "pdekit", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pdekit" / "__pycache__").touch()
    return tmp_path


def evaluate(installation: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    left_out = ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    env |= {"PYTHONPATH": str(installation), "HOME": os.devnull} | environment
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE], env=env, cwd=installation, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installation / "pdekit" / "__init__.py"), "1.0"]
    return done


def test_without_any_folder_for_a_cache_kernels_are_compiled_and_one_line_says_so(installation: Path) -> None:
    done = evaluate(installation)
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
    assert len(done.stderr.splitlines()) == 1


def test_compiled_code_is_kept_in_the_folder_that_the_user_names(installation: Path) -> None:
    cache = installation / "cache"
    done = evaluate(installation, NUMBA_CACHE_DIR=str(cache))
    assert done.stderr == ""
    assert list(cache.rglob("fastmath._exp-*.nbi"))


def test_a_static_number_is_compiled_for_alone() -> None:
    @kernel(cache=False)
    def chosen(number):
        if len(number) == 1:
            return 10
        return number.there_is_no_such_thing_in_the_other_branches

    assert chosen(static(1)) == 10
    with pytest.raises(TypingError, match="there_is_no_such_thing"):
        chosen(static(2))
