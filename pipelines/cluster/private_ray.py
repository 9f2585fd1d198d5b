"""A Ray of our own on this machine: its environment, its start, and its end without a process left.

Knows Ray's variables and processes. Knows no clusters: joining one is `pipelines.cluster.capacity`'s work.
Ray reads its environment when it is imported, so it is imported inside functions only.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.cluster import malloc
from pipelines.cluster.machine import GIB, cpu_count, memory_bytes, shared_memory_free_bytes

OBJECT_STORE_MOST_BYTES = 2 * GIB
OBJECT_STORE_LEAST_BYTES = 80 * 2**20  # Ray refuses less than 75 MiB
STOP_SECONDS = 10.0  # what Ray takes at most to end by itself: two are usual

SOURCE_ROOT = Path(__file__).resolve().parents[2]

EVERY_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` builds its environment anew in every worker
}
_PRIVATE_RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # this and the next: 7 s less for each training job
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes our own machine away
}
_SECRET = secrets.token_hex(32)  # one a process: Ray caches it, and a second session has to match


@contextmanager
def private_ray(
    logical_cpus: int, gpus: int | None, object_store_bytes: int | None, **logging_options: Any
) -> Iterator[None]:
    """Ray with at least `logical_cpus`; `gpus=0` hides this machine's GPUs. Stopped at the end, however it comes."""
    set_defaults({**EVERY_RAY, **_PRIVATE_RAY, **_token()})
    import ray

    if object_store_bytes is None:
        object_store_bytes = default_object_store_bytes(memory_bytes(), shared_memory_free_bytes())
    others = set(_children())
    ours: list[Any] = []
    started = False
    try:
        try:
            with _inherited_by_workers():
                ray.init(
                    address="local",  # a bare init joins, or hangs on, whatever a stale cluster file names
                    num_cpus=max(logical_cpus, cpu_count()),
                    num_gpus=0 if gpus == 0 else None,
                    object_store_memory=object_store_bytes,
                    **logging_options,
                )
            started = True
        finally:
            ours = [child for child in _children() if child not in others]
        yield
    finally:
        # A start that was interrupted left processes Ray does not know: nobody would tell them to end.
        _stop(ours, patience_seconds=STOP_SECONDS if started else 0.0)


def set_defaults(variables: Mapping[str, str]) -> None:
    """Environment variables, where the user has not set them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def default_object_store_bytes(memory_bytes: int, shared_memory_free_bytes: int | None) -> int:
    """30 % of the memory, at most 2 GiB, and within /dev/shm unless that is too small for any object store."""
    most = min(int(0.3 * memory_bytes), OBJECT_STORE_MOST_BYTES)
    if shared_memory_free_bytes is not None and int(0.9 * shared_memory_free_bytes) >= OBJECT_STORE_LEAST_BYTES:
        most = min(most, int(0.9 * shared_memory_free_bytes))
    return max(most, OBJECT_STORE_LEAST_BYTES)


def _token() -> dict[str, str]:
    """A secret of this process alone, unless the user has one or has turned authentication off.

    Ray listens on every interface even when it is private, so without a token any machine that reaches this one could
    run code here; and left to itself Ray writes a token file into the home directory.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    has_own = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    secret = {} if has_own or Path("~/.ray/auth_token").expanduser().is_file() else {"RAY_AUTH_TOKEN": _SECRET}
    # A Ray that is imported already has read its mode; it then turns authentication on by itself, with a notice.
    return secret if "ray" in sys.modules else {**secret, "RAY_AUTH_MODE": "token"}


@contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """The environment in which Ray starts and which its workers inherit; afterwards ours is as it was.

    Not a `runtime_env`: that costs an agent's round trip for each worker and clashes with a job's own.
    """
    wanted = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **malloc.environment()}
    if (SOURCE_ROOT / "pyproject.toml").is_file():  # a source tree, perhaps not installed
        paths = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        wanted["PYTHONPATH"] = os.pathsep.join(paths)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _stop(ours: list[Any], patience_seconds: float) -> None:
    """End the private Ray, and return when no process of its tree is left."""
    psutil = ray_psutil()
    import ray

    tree = [process for root in ours for process in (root, *_children(root, recursive=True))]
    ray.shutdown(wait_for_processes=True)
    # Ray waits for its direct children only; the dashboard's and the workers' own end a second or two later.
    _, left = psutil.wait_procs(tree, timeout=patience_seconds)
    for process in left:
        if process.is_running():
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def _children(parent: Any = None, *, recursive: bool = False) -> list[Any]:
    psutil = ray_psutil()
    try:
        children: list[Any] = (parent or psutil.Process()).children(recursive=recursive)
    except psutil.NoSuchProcess:  # it ended between the listing and the question
        return []
    return children


def ray_psutil() -> Any:
    """psutil. Ray brings its own copy and puts it on the path when it is imported: no dependency of ours, no stubs."""
    importlib.import_module("ray")
    return importlib.import_module("psutil")
