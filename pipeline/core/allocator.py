"""Settings of glibc's memory allocator: freed memory is kept for reuse or returned early.

By default glibc returns blocks above 32 MB to the system when they are freed, so that each training
step has a page fault for every 4 KB that it writes: up to half of its time with a large item table.
Kept on the heap, freed blocks are reused.
"""

import ctypes
import os
import platform

_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -4, -3, -1, -2
"""Parameters of mallopt(3)."""
_NEVER_TRIM = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20
_LARGE_BYTES, _FREE_BYTES = 2**20, 2**23
"""Sizes from which a freed block, larger than a read of asyncio, and the free end of a heap are
returned."""


def keep_heap() -> bool:
    """Keep freed memory in this process; return whether that was possible.

    Nothing is changed if the environment configures the allocator (`MALLOC_*`, `GLIBC_TUNABLES`) or
    the C library is not glibc.
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER_TRIM), (_TOP_PAD, _TOP_PAD_BYTES))


def return_heap() -> bool:
    """Return freed memory to the system early; return whether that was possible, as `keep_heap`.

    By default glibc raises the size of blocks that it returns up to 64 MB as large ones are freed.
    """
    return _set((_MMAP_THRESHOLD, _LARGE_BYTES), (_TRIM_THRESHOLD, _FREE_BYTES))


def _set(*settings: tuple[int, int]) -> bool:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) == 1 for name, value in settings)


def trim_heap() -> None:
    """Return free memory of this process to the system, also that in the middle of the heap."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
