"""Settings of glibc's memory allocator for large tensors.

By default glibc returns blocks above 32 MB to the system when they are freed, so that each training
step has a page fault for every 4 KB that it writes: up to half of its time with a large item table.
Kept on the heap, freed blocks are reused.
"""

import ctypes
import os
import platform

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2
"""Parameters of mallopt(3)."""
_NEVER_TRIM = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def keep_heap() -> bool:
    """Keep freed memory in this process; return whether that was possible.

    Nothing is changed if the environment configures the allocator (`MALLOC_*`, `GLIBC_TUNABLES`) or
    the C library is not glibc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER_TRIM), (_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
