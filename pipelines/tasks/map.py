"""Passes over row groups and the like: by Ray Data's tasks where this process is connected to a Ray, else right here.

Results come in the items' order and are the same bits by either way: the task functions are the same, what they return
travels as the same plain data, and torch computes with one thread. Who connects decides where a pass runs
(`pipelines.cluster.executor`). Each item goes to a process that holds what it needs: a model, for instance. With a
model on GPUs these are actors, one a GPU. On CPUs they are tasks whose process keeps what it has loaded: as fast,
retried wherever a process or a node dies, and without the warning that Ray prints for every pool of actors.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from model.tables.fragments import Fragment
from pipelines.cluster.capacity import available_gpus, ray_is_running
from pipelines.cluster.machine import torch_threads
from pipelines.tasks.task import CachedTask, GpuTask, NumberedTask, ScoringTask, forget_cached, from_message, to_message

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
    raised here; other exceptions come as they are, or as Ray tells them.
    """
    if not items:
        return
    gpus = available_gpus() if scoring else 0
    device = None if not scoring else "cuda" if gpus else "cpu"
    task = CachedTask(holder_class, arguments, tuple(items), uuid.uuid4().hex, device)
    if gpus and ray_is_running():
        yield from (result for _, result in _over_gpus(task, min(gpus, len(items))))
        return
    numbered = ScoringTask(task) if scoring else NumberedTask(task)
    with torch_threads(1) if scoring and not ray_is_running() else nullcontext():  # as Ray's tasks compute
        yield from (result for _, result in over_numbers(numbered, range(len(items))))


def over_numbers(
    task: NumberedTask, numbers: Sequence[int], *, each: int = 1, workers: int | None = None
) -> Iterator[tuple[int, Any]]:
    """(number, result) of each number, in order; on Ray in tasks of `each` numbers, of which `workers` run at once.

    A mistake of the user's is raised here.
    """
    if not numbers:
        return
    if ray_is_running():
        yield from _over_ray(task, numbers, each, workers)
        return
    try:
        for number in numbers:
            yield number, from_message(to_message(partial(task.compute, number)))
    finally:
        forget_cached()


def _over_ray(
    task: Any, numbers: Sequence[int], each: int, workers: int | None, **how: Any
) -> Iterator[tuple[int, Any]]:
    import ray.data

    from pipelines.cluster.session import configure_ray_data

    configure_ray_data()
    if workers is not None:  # Ray warns of a bound that is larger than the number of tasks
        how["compute"] = ray.data.TaskPoolStrategy(size=min(workers, len(numbers)))
    rows = ray.data.from_items([{"id": n} for n in numbers], override_num_blocks=-(-len(numbers) // each))
    # A batch is a block: of fixed sizes Ray Data would cut them anew, in tasks of their own.
    for row in rows.map_batches(task, batch_size=None, batch_format="numpy", **how).iter_rows():
        yield int(row["id"]), from_message(row["result"])


def _over_gpus(task: CachedTask, gpus: int) -> Iterator[tuple[int, Any]]:
    import ray.data

    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=gpus)
    how = {"fn_constructor_args": (task,), "compute": pool, "num_gpus": 1}
    return _over_ray(GpuTask, range(len(task.items)), 1, None, **how)


def fragments_a_task(count: int, nbytes: int) -> int:
    """How many of `count` row groups, of `nbytes` in all, a task of Ray's takes: so few that each CPU has several."""
    if not ray_is_running():
        return 1
    import ray

    by_bytes = TASK_BYTES * count // max(nbytes, 1)
    by_cpus = int(count / (TASKS_A_CPU * max(ray.cluster_resources().get("CPU", 0.0), 1.0)))
    return max(1, min(by_bytes, by_cpus))
