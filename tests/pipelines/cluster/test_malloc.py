"""Large arrays that are taken and freed again and again: their memory stays with the process, at no more faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cluster import malloc

ROOT = Path(__file__).resolve().parents[3]

# In a thread that has allocated before malloc is told, as Ray Train's: page faults of ten rounds, after two.
ROUNDS = """
import resource
import sys
import threading

import numpy as np

from pipelines.cluster import malloc


def rounds():
    told = malloc.keep_freed_memory(getattr(malloc, sys.argv[1]))
    for number in range(12):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        arrays = [np.ones(int(size), np.int8) for size in (1e8, 7e7, 3e7, 5e6)]
        del arrays
    print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


thread = threading.Thread(target=rounds)
thread.start()
thread.join()
"""
PAGES = 205_000_000 // 4096  # of one round's arrays


def faults(kept: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, kept],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    told, count = done.stdout.split()
    assert told == "True"
    return int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep what is freed")
def test_training_takes_the_same_memory_again() -> None:
    small_pages = {**malloc.environment(), "GLIBC_TUNABLES": "", "NUMPY_MADVISE_HUGEPAGE": "0"}
    assert faults("OF_COMPUTING", **small_pages) < PAGES / 10
    assert faults("OF_TASKS", **small_pages) > PAGES  # tasks give large blocks back


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert malloc.environment() == {"MALLOC_ARENA_MAX": "7", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
