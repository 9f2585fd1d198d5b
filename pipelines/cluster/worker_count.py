"""How many workers train: a number, as many as there is room for (`auto`), or a range that Ray Train stays within.

Knows Ray only once it is connected.
"""

from __future__ import annotations

from typing import Literal

from model.errors import ResourceError
from pipelines.cluster.capacity import SPARE_CPUS, available_gpus, room_in_cluster
from pipelines.cluster.machine import cpu_count
from pipelines.cluster.session import joined_address
from pipelines.config import ResourcesConfig, Workers


def room_for(resources: ResourcesConfig) -> int:
    """CPUs for workers that Ray must have once it is started here, or is joined."""
    workers, cpus_per_worker = resources.workers, resources.cpus_per_worker
    if isinstance(workers, int):
        return workers * cpus_per_worker
    if joined_address(resources.address) is not None:
        return cpus_per_worker * (1 if workers == "auto" else workers.min)
    return cpus_per_worker * (max(1, cpu_count() // cpus_per_worker) if workers == "auto" else workers.max)


def settled(workers: Workers, cpus_per_worker: int, gpu: bool | Literal["auto"]) -> tuple[int, int]:
    """(fewest, most) workers of a training on the Ray that is connected.

    `auto` takes a worker a GPU, or where there are none (or `gpu` is false) all CPUs but those that Ray Data needs.
    ResourceError where they do not suffice for one.
    """
    if isinstance(workers, int):
        return workers, workers
    if workers != "auto":
        return workers.min, workers.max
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))
    gpus = available_gpus() if gpu else 0
    each = {"CPU": float(cpus_per_worker), "GPU": 1.0 if gpus else 0.0}
    room = int(min((cpus - SPARE_CPUS) // cpus_per_worker, room_in_cluster(each)))
    if room < 1:
        raise ResourceError(
            f"resources.workers auto needs {cpus_per_worker} CPUs for a worker on one node and {SPARE_CPUS} beside "
            f"them, but the Ray cluster has {cpus}; lower resources.cpus_per_worker, or use larger nodes"
        )
    count = min(room, gpus) if gpus else room
    return count, count
