"""What this machine has: CPUs, memory, shared memory, sockets; and how many threads torch takes of it. Knows no Ray.

A container's limits count, not its host's: Ray and torch would otherwise plan for memory that is not ours.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
CONNECT_SECONDS = 5.0

_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # cgroup v2, v1


def cpu_count() -> int:
    """CPUs this process may use: its affinity, and its container's quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(_CGROUPS)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def memory_bytes() -> int:
    """The memory of the machine, or its container's limit where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *memory_limits(_CGROUPS)])


def shared_memory_free_bytes() -> int | None:
    """What is free in /dev/shm, or None where there is none (macOS)."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def listens(host_and_port: str) -> bool:
    """Whether something accepts connections at "host:port"."""
    host, _, port = host_and_port.rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could bind `port` now."""
    with socket.socket() as probe:
        # A server's own option: a port that only waits for its last connections to fade counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def memory_limits(cgroups: Path) -> list[int]:
    texts = [_read(cgroups / name) for name in _MEMORY_LIMITS]
    return [int(text) for text in texts if text.isdigit()]


def cpu_quota(cgroups: Path) -> float | None:
    """CPUs the container may keep busy, or None where nothing limits them."""
    quota, _, period = _read(cgroups / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(cgroups / "cpu/cpu.cfs_quota_us"), _read(cgroups / "cpu/cpu.cfs_period_us")
    # "max" in version 2 and "-1" in version 1 mean no limit.
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch with so many threads within the block; as it was afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
