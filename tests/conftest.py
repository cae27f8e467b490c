"""What all tests share: one thread for each process, the same random examples, which need a GPU, and fixtures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before NumPy and torch are imported: the suite runs a process on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    # what tests start finds the packages, installed or not
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    if config.pluginmanager.hasplugin("hypothesispytest"):  # a borrowed GPU may come without
        from hypothesis import settings

        # no deadline, however busy the machine is; --hypothesis-profile=long looks for hours at what is new each time
        settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=8)
        settings.register_profile("long", deadline=None, max_examples=500, print_blob=True)
        settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Studies set the number of threads, and numba's OpenMP layer does so for torch as well, unasked."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("cuda")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One core, as the studies see it: the number of threads can change the last bits."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fake_cifar() -> Callable[..., Path]:
    """Writes a .npz of random images in the form of CIFAR-10; `changes` replace its arrays, None leaves one out."""

    import numpy as np

    def write(path: Path, *, num_train: int = 50, num_test: int = 20, **changes: Any) -> Path:
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {
            "x_train": rng.integers(0, 256, (num_train, 32, 32, 3), dtype=np.uint8),
            "y_train": np.arange(num_train) % 10,
            "x_test": rng.integers(0, 256, (num_test, 32, 32, 3), dtype=np.uint8),
            "y_test": np.arange(num_test) % 10,
        }
        arrays |= changes
        np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
        return path

    return write
