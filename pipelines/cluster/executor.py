"""Where a command computes: in its own process, or on Ray. Ray is worth its start where there is much to read.

A private Ray takes seconds to start, a joined one to reach, and each kind of process once more to import what it
needs; meanwhile one process reads tens of megabytes. Both ways run the same task functions to the same bits.
Knows no data and no model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from model.errors import ConfigError
from pipelines.cluster.capacity import ray_is_running
from pipelines.config import ExecutorChoice

LOCAL_BYTES = 32 * 2**20  # decompressed: about what one process reads in the time that Ray takes to start
JOINING = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")  # in the environment: work belongs on that cluster


@dataclass(frozen=True)
class Executor:
    """Whether a command needs a Ray, and why, as a line for people."""

    ray: bool
    line: str


def choose_executor(choice: ExecutorChoice, nbytes: int, *, address: str | None, workers: object = 1) -> Executor:
    """The executor for `nbytes` of decompressed columns and so many workers: a number, `auto` or a range.

    `auto` takes Ray where a cluster is joined, for several workers, and for more than LOCAL_BYTES. ConfigError where
    `local` contradicts the rest.
    """
    joins = address is not None or any(os.environ.get(name) for name in JOINING) or ray_is_running()
    if choice == "local":
        if address is not None:
            raise ConfigError(f"executor local computes in this process, but the Ray cluster {address} is to be joined")
        if workers != 1:
            raise ConfigError("executor local is one process, so resources.workers must be 1; else choose ray or auto")
        return Executor(False, "computing in this process, as executor=local says")
    if choice == "ray" or joins:
        why = f"at {address}" if address is not None else "of the environment" if joins else "as executor=ray says"
        return Executor(True, f"joining Ray {why} …" if joins else f"starting Ray, {why} …")
    if workers != 1:
        return Executor(True, f"starting Ray for {workers} workers …")
    told = f"{nbytes / 2**20:,.1f} MiB to read"
    if nbytes > LOCAL_BYTES:
        return Executor(True, f"starting Ray: {told} …")
    return Executor(False, f"computing in this process: {told}, less than Ray takes to start")
