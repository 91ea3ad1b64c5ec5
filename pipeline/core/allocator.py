"""How the C library gives out memory for large tensors.

glibc takes every block above 32 MB from the system and hands it back when it is freed, so that a
training step pays for a page fault in every 4 KB that it writes: up to half of its time where the
item table is large. Kept on the heap, freed blocks are used again.
"""

import ctypes
import os
import platform

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2
"""Parameters of mallopt(3)."""
_NEVER_TRIM = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def keep_heap() -> bool:
    """Have this process keep the memory that it frees; whether that was done.

    Not where the environment says something of its own (`MALLOC_*`, `GLIBC_TUNABLES`), and not
    with another C library.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER_TRIM), (_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
