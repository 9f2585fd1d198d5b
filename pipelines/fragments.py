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

from model.plan import Fragment
from pipelines.cluster import available_gpus, configure_ray_data
from pipelines.holding import GpuTask, HeldTask
from pipelines.messages import value_of


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
    configure_ray_data()
    rows = ray.data.range(len(items), override_num_blocks=len(items))
    task = HeldTask(holder_class, arguments, tuple(items), uuid.uuid4().hex, "cpu" if scoring else None)
    gpus = available_gpus() if scoring else 0
    if gpus:
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(gpus, len(items)))
        done = rows.map_batches(
            GpuTask, fn_constructor_args=(task,), batch_size=1, batch_format="numpy", compute=pool, num_gpus=1
        )
    else:
        done = rows.map_batches(task, batch_size=1, batch_format="numpy")
    for row in done.iter_rows():
        yield value_of(row["result"])
