"""Memory that is freed and wanted again at once, as activations are."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_INT_MAX = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse what it frees, instead of handing it to the system and asking for it again.

    glibc returns large blocks to the kernel when they are freed. torch frees and allocates all activations of a CPU
    model in every pass, so each pass pays for mapping and clearing fresh pages. Call this once, early in a program that
    trains or attacks on a CPU; the process then keeps the largest size it has had. The setting is that of the whole
    process (mallopt(3)), which is why importing this package does not change it.

    Returns whether the C library took the setting; False without glibc, where nothing changes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _INT_MAX))
