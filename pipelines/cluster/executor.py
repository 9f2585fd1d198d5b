"""Where a command computes: in its own process, or on Ray. Ray is worth its start where there is much to read.

A private Ray takes seconds to start, a joined one to reach, and each kind of process once more to import what it
needs; meanwhile one process reads tens of megabytes. Both ways run the same task functions to the same bits.
Knows no data and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import ConfigError
from pipelines.cluster.capacity import ray_is_running
from pipelines.cluster.session import joined_address
from pipelines.config import ExecutorChoice

LOCAL_BYTES = 32 * 2**20  # decompressed: about what one process reads in the time that Ray takes to start


@dataclass(frozen=True)
class Executor:
    """Whether a command needs a Ray, and why, as a line for people."""

    ray: bool
    line: str


def choose_executor(choice: ExecutorChoice, nbytes: int, *, address: str | None, workers: object = 1) -> Executor:
    """The executor for `nbytes` in memory and so many workers: a number, `auto` or a range.

    `auto` takes Ray where a cluster is joined, for several workers, and for more than LOCAL_BYTES. ConfigError for
    `local` beside an `address`.
    """
    if choice == "local":
        if address is not None:
            raise ConfigError(f"executor local computes in this process, but the Ray cluster {address} is to be joined")
        return Executor(False, "computing in this process, as executor=local says")
    cluster = joined_address(address)
    if cluster is not None or ray_is_running():
        return Executor(True, "computing on the connected Ray" if cluster is None else f"joining Ray at {cluster} …")
    read = f"{nbytes / 2**20:,.1f} MiB to read"
    if choice == "ray" or workers != 1 or nbytes > LOCAL_BYTES:
        why = "executor=ray" if choice == "ray" else read if workers == 1 else f"resources.workers is {workers}"
        return Executor(True, f"starting Ray: {why} …")
    return Executor(False, f"computing in this process: {read}, less than Ray takes to start")
