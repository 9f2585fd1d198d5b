"""Freed memory that stays with the process: for processes that take and free the same large arrays again and again.

glibc's malloc takes large blocks from the kernel and gives them back at once; the next window's arrays then cost a
page fault every 4 KiB. Measured: a tenth of the processor time of data tasks, most of what they spent in the kernel.
"""

from __future__ import annotations

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT_BYTES = 256 * 2**20  # of free memory at the heap's end, beyond which it is given back
HEAP_BYTES = 32 * 2**20  # the largest blocks that are taken from the heap: the most that malloc allows


@functools.cache
def keep_freed_memory() -> bool:
    """Tells malloc, once a process; whether it could be told (only glibc's can)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, HEAP_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
