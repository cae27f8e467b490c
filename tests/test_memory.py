"""The allocator setting does what it says, seen in page faults."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from netkit.memory import keep_freed_memory

def faults() -> int:
    # the least of some: a machine that takes idle pages back adds to single ones
    found = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB, 16384 pages
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found)

torch.ones(2**24)
usual = faults()
assert keep_freed_memory()
torch.ones(2**24)
print(usual, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_kept_memory_is_not_fetched_again():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, kept = map(int, run.stdout.split())
    assert kept < 0.25 * usual
