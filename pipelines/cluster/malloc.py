"""Freed memory that stays with the process: for processes that take and free the same large arrays again and again.

glibc's malloc takes large blocks from the kernel and gives them back at once; the next batch's arrays then cost a
page fault every 4 KiB. Measured: a tenth of the processor time of data tasks, a fifth of that of scoring, a quarter of
that of training, nearly all of what they spent in the kernel. For threads malloc has arenas of at most 64 MiB that it
gives back whatever it was told, and Ray trains in a thread: so there is one arena for all (`ENVIRONMENT`), which only a
process's start can say.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from dataclasses import dataclass

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # and pages of 2 MiB

MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2  # parameters of mallopt, <malloc.h>
ALWAYS_ALLOWED_BYTES = 32 * 2**20  # as a threshold for mmap: the most that glibc before 2.35 takes
PAD_BYTES = 64 * 2**20  # of address space, not of memory


@dataclass(frozen=True)
class MallocLimits:
    """The largest block that is taken from the heap, and the free bytes at its end beyond which it is given back."""

    block: int
    free: int


OF_TASKS = MallocLimits(block=32 * 2**20, free=256 * 2**20)  # there are as many as processors, also when they are idle
OF_COMPUTING = MallocLimits(
    block=2**30, free=2**31 - 1
)  # takes all it ever took again, a batch later; mallopt knows no more


def environment() -> dict[str, str]:
    """`ENVIRONMENT` where the user has not set it: for processes that are yet to start."""
    return {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}


@functools.cache
def keep_freed_memory(kept: MallocLimits) -> bool:
    """Tells malloc, once each a process; whether it could be told (only glibc's can)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    from_heap = mallopt(MMAP_THRESHOLD, kept.block) or mallopt(MMAP_THRESHOLD, ALWAYS_ALLOWED_BYTES)
    return bool(from_heap and mallopt(TRIM_THRESHOLD, kept.free) and mallopt(TOP_PAD, PAD_BYTES))
