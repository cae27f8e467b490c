"""What all tests share: one thread for each process, the same random examples, and which need a GPU."""

from __future__ import annotations

import os
import sys

import pytest

# Before NumPy and torch are imported: the suite runs a process on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("hypothesispytest"):  # a borrowed GPU may come without
        from hypothesis import settings

        settings.register_profile("repeatable", derandomize=True, deadline=None)  # however busy the machine is
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
