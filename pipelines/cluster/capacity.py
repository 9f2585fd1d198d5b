"""Whether the job fits: asked of Ray, of this machine, or of the cluster.yaml that `ray up` left on the head node.

Knows no data, no model and no config of ours. Ray reads its environment when it is imported, so it is imported inside
functions only.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from model.errors import ResourceError
from pipelines.cluster.machine import memory_bytes

SPARE_CPUS = 2  # without a spare logical CPU Ray Data waits for ever, and says nothing
WAIT_SECONDS = 900.0  # an autoscaler takes minutes: a machine, its image, our dependencies
RAY_UP_FILE = Path("~/ray_bootstrap_config.yaml")  # `ray up` leaves the whole cluster.yaml on the head node


def logical_cpus_for(cpus: int) -> int:
    """CPUs a private Ray has to offer so that workers on `cpus` of them can train while Ray Data feeds them."""
    return cpus + SPARE_CPUS


def preflight(cpus: float, gpus: float, wait_seconds: float = WAIT_SECONDS) -> None:
    """Raise ResourceError at once if the connected Ray can never offer `cpus` and `gpus`.

    Where an autoscaler may still add nodes, this only says so: the job's own requests make it add them. It waits for
    the first CPU, at most `wait_seconds`: without any, Ray Data would wait for ever.
    """
    _require(cpus, gpus, most=_autoscaled_resources(), wait_seconds=wait_seconds)


def preflight_workers(
    workers: int, cpus_each: float, gpus_each: float, *, spare_cpus: float = 1, wait_seconds: float = WAIT_SECONDS
) -> None:
    """`preflight` for workers that each must fit on one node, and `spare_cpus` for Ray Data beside them."""
    preflight(workers * cpus_each + spare_cpus, workers * gpus_each, wait_seconds)
    each = {"CPU": float(cpus_each), "GPU": float(gpus_each)}
    require_room(_nodes(), workers, each, most=_autoscaled_room(each))


def available_gpus() -> int:
    """GPUs that workers could be given: a cluster's, else those torch can use here. Creates no CUDA context."""
    if ray_is_running():
        import ray

        most = _autoscaled_resources()
        if most is not None or len(ray.nodes()) > 1:
            grown = (most or {}).get("GPU", 0.0)
            known = grown if math.isfinite(grown) else 0.0
            return int(max(ray.cluster_resources().get("GPU", 0.0), known))
    # On one machine torch is asked, not Ray: Ray counts devices, torch knows whether its build can use them.
    import torch

    return torch.cuda.device_count()


def node_memories() -> list[int]:
    """Bytes of memory of each node that has CPUs: this machine's own, else what Ray counts there."""
    if not ray_is_running():
        return [memory_bytes()]
    nodes = [node for node in _nodes() if node.get("CPU", 0.0)]
    if len(nodes) <= 1:
        return [memory_bytes()]
    return [int(node.get("memory", 0) + node.get("object_store_memory", 0)) for node in nodes]


def ray_is_running() -> bool:
    """Whether this process is connected to a Ray."""
    # Not imported means not running; to ask Ray would import it before its environment is set.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


# --- joining ---------------------------------------------------------------------------------------------------------


# --- what the cluster has --------------------------------------------------------------------------------------------


def _require(cpus: float, gpus: float, *, most: Mapping[str, float] | None, wait_seconds: float) -> None:
    """`most` is what the cluster may grow to, or None where it is what it is."""
    import ray

    needed = {"CPU": float(cpus), "GPU": float(gpus)}
    there = ray.cluster_resources()
    if _covers(there, needed):
        return
    needs = f"{amounts(needed)} must be in the Ray cluster"
    if most is not None and _covers(most, needed):
        print(f"{needs}; it has {amounts(there)}: waiting for its autoscaler", file=sys.stderr, flush=True)
        if there.get("CPU", 0.0) < 1:
            _await_a_cpu(wait_seconds)
        return
    if most is None:
        raise ResourceError(f"{needs}, but it has {amounts(there)}: lower resources.workers, or use a larger cluster")
    raise ResourceError(
        f"{needs}, but it has {amounts(there)} and grows to {amounts(most)} at most: lower resources.workers, or "
        "raise max_workers in cluster.yaml and run ray up again"
    )


def _await_a_cpu(seconds: float) -> None:
    """A task that needs a CPU makes the autoscaler add a node that has one; ResourceError where none comes in time."""
    import ray

    task = ray.remote(num_cpus=1)(_nothing).remote()
    try:
        ray.get(task, timeout=seconds)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(task)
        raise ResourceError(
            f"a node with a CPU must come within {seconds:g} s, but the autoscaler of the Ray cluster has added none: "
            "look at what it says (ray status), such as that there is no quota or no such machine"
        ) from error


def _nothing() -> None:
    """What waits for a CPU."""


def require_room(
    nodes: Sequence[Mapping[str, float]], workers: int, each: Mapping[str, float], *, most: float | None
) -> None:
    """ResourceError unless `workers` of `each` fit on `nodes`; `most` is what an autoscaler can make room for.

    A cluster may have CPUs enough and no node that holds one worker: Ray would wait for such a node for ever.
    """
    room = sum(_room_on(node, each) for node in nodes)
    if max(room, most or 0) >= workers:
        return
    kinds = Counter(amounts(node) for node in nodes)
    told = ", ".join(f"{count} with {amounts}" for amounts, count in sorted(kinds.items()))
    grows = "" if most is None else f" and would hold {most:g} at most with what its autoscaler adds"
    raise ResourceError(
        f"{workers} worker{'' if workers == 1 else 's'} of {amounts(each)} must fit on nodes of the Ray cluster, each "
        f"on one node, but its nodes ({told}) hold {room}{grows}: lower resources.cpus_per_worker or "
        "resources.workers, or use larger nodes"
    )


def room_in_cluster(each: Mapping[str, float]) -> float:
    """How many workers of `each` the nodes of the connected cluster hold, or would with what its autoscaler adds."""
    return max(sum(_room_on(node, each) for node in _nodes()), _autoscaled_room(each) or 0)


def _room_on(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    return int(min(node.get(name, 0.0) // amount for name, amount in each.items() if amount))


def _nodes() -> list[dict[str, float]]:
    """What each living node has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _covers(there: Mapping[str, float], needed: Mapping[str, float]) -> bool:
    return all(there.get(name, 0.0) >= amount for name, amount in needed.items())


def amounts(resources: Mapping[str, float]) -> str:
    """CPUs and GPUs in words."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    return f"{cpus:g} CPU{'' if cpus == 1 else 's'} and {gpus:g} GPU{'' if gpus == 1 else 's'}"


def _autoscaled_resources() -> dict[str, float] | None:
    """What an autoscaler may grow the connected cluster to; None where there is no autoscaler."""
    if _is_kuberay():
        return {"CPU": math.inf, "GPU": math.inf}  # its limits are Kubernetes', which we cannot see
    cluster = _ray_up_cluster()
    return None if cluster is None else most_resources(cluster)


def _autoscaled_room(each: Mapping[str, float]) -> float | None:
    """For how many workers an autoscaler may make room in the connected cluster; None where there is no autoscaler."""
    if _is_kuberay():
        return math.inf
    cluster = _ray_up_cluster()
    return None if cluster is None else most_room(cluster, each)


def _is_kuberay() -> bool:
    return os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1"


def _ray_up_cluster() -> dict[str, Any] | None:
    """The cluster.yaml of `ray up`, on the head that it has started."""
    file = RAY_UP_FILE.expanduser()
    return yaml.safe_load(file.read_text()) if file.is_file() else None


def most_room(cluster: Mapping[str, Any], each: Mapping[str, float]) -> int:
    """For how many workers of `each` a cluster.yaml has room: on its head and the best set of nodes that it allows."""
    types = cluster["available_node_types"]
    workers = [_room_on(node["resources"], each) for node in types.values() for _ in range(node.get("max_workers", 0))]
    head = _room_on(types[cluster["head_node_type"]]["resources"], each)
    return head + sum(sorted(workers, reverse=True)[: cluster["max_workers"]])


def most_resources(cluster: Mapping[str, Any]) -> dict[str, float]:
    """CPUs and GPUs of a cluster.yaml's head and of the largest set of workers it allows."""
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]["resources"]
    most = {}
    for name in ("CPU", "GPU"):
        workers = sorted(
            (node["resources"].get(name, 0) for node in types.values() for _ in range(node.get("max_workers", 0))),
            reverse=True,
        )
        most[name] = float(head.get(name, 0) + sum(workers[: cluster["max_workers"]]))
    return most
