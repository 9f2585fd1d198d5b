"""Distributed passes over row groups and the like, by processes that hold what they need: a model, for instance.

Each item goes to one of them; results come back in order. With a model on GPUs they are actors, one a GPU. On CPUs
they are tasks whose process keeps what it has loaded: as fast, retried wherever a process or a node dies, and without
the warning that Ray prints for every pool of actors.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.data

from model.tables.fragments import Fragment
from pipelines.cluster.capacity import available_gpus
from pipelines.cluster.session import configure_ray_data
from pipelines.tasks.task import CachedTask, GpuTask, NumberedTask, from_message

TASK_BYTES = 48 * 2**20  # decompressed; a task costs Ray about 20 ms, whatever it does, as much as reading 4 MiB
TASKS_A_CPU = 4  # at least: the last ones to end keep the others waiting


def over_fragments(holder_class: type[Any], arguments: tuple[Any, ...], fragments: Sequence[Fragment]) -> Iterator[Any]:
    """`holder_class(*arguments, device=…)(fragment)` for each fragment; see `over_items`."""
    return over_items(holder_class, arguments, fragments)


def over_items(
    holder_class: type[Any], arguments: tuple[Any, ...], items: Sequence[Any], *, scoring: bool = True
) -> Iterator[Any]:
    """`holder_class(*arguments, device=…)(item)` for each item, in order, by as many processes as have room.

    Without `scoring` there is no device: the work is that of a CPU. Results are plain data. A mistake of the user's is
    raised here; other exceptions come as Ray tells them.
    """
    if not items:
        return
    task = CachedTask(holder_class, arguments, tuple(items), uuid.uuid4().hex, "cpu" if scoring else None)
    gpus = available_gpus() if scoring else 0
    if gpus:
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(gpus, len(items)))
        on_gpus: dict[str, Any] = {"fn_constructor_args": (task,), "compute": pool, "num_gpus": 1}
        done = over_numbers(GpuTask, range(len(items)), **on_gpus)
    else:
        done = over_numbers(NumberedTask(task), range(len(items)))
    for _, result in done:
        yield result


def over_numbers(task: Any, numbers: Sequence[int], *, each: int = 1, **how: Any) -> Iterator[tuple[int, Any]]:
    """(number, result) of each number, in order, computed in tasks of `each` numbers.

    `task` is a `NumberedTask`, or a class whose objects are called like one. A mistake of the user's is raised here.
    `how` is told to Ray Data's `map_batches`.
    """
    if not numbers:
        return
    configure_ray_data()
    rows = ray.data.from_items([{"id": n} for n in numbers], override_num_blocks=-(-len(numbers) // each))
    # A batch is a block: of fixed sizes Ray Data would cut them anew, in tasks of their own.
    for row in rows.map_batches(task, batch_size=None, batch_format="numpy", **how).iter_rows():
        yield int(row["id"]), from_message(row["result"])


def fragments_a_task(count: int, nbytes: int) -> int:
    """How many of `count` row groups, of `nbytes` in all, a task takes: so few that each CPU has several tasks."""
    by_bytes = TASK_BYTES * count // max(nbytes, 1)
    by_cpus = int(count / (TASKS_A_CPU * max(ray.cluster_resources().get("CPU", 0.0), 1.0)))
    return max(1, min(by_bytes, by_cpus))
