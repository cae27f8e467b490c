"""torch's number of threads, kept from numba's.

Where both use one OpenMP library, numba's parallel regions set the number of threads for torch too; small passes of
a network then run several times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def keeping_torch_threads() -> Iterator[None]:
    """Give torch back the number of threads it had before the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
