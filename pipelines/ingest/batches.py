"""One rank's batches in the plan's order, through deterministic Ray Data pipelines or, without a Ray, a thread.

The plan says which rows form each batch; a task reads the row groups of one window and encodes the rank's rows in
the order they are computed; order is preserved, so the rank only has to cut the stream. Nothing is split
dynamically: which rank computes what never depends on timing. Data that are read several times and fit in memory are
read once, encoded, and kept; small data are read without a pipeline: the batches are the same.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from model.batches.arrow_transport import from_arrow
from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encoded_bytes
from model.batches.encoded_rows import EncodedRows, concat
from model.batches.plan import DataIndex, Plan
from model.batches.reorder import take_across
from model.errors import from_plain
from pipelines.cluster.capacity import ray_is_running
from pipelines.cluster.malloc import OF_COMPUTING, keep_freed_memory
from pipelines.cluster.session import configure_ray_data
from pipelines.ingest.prefetch import prefetched
from pipelines.ingest.read_task import ERROR, FEW_FRAGMENTS, ReadTask, Request, RowReader

CPU = torch.device("cpu")
Read = Callable[[Iterable[Request]], Iterable[EncodedRows]]  # rows of each request, in the requests' order
ROWS_PER_PIPELINE = 1 << 20  # bounds the row numbers that one pipeline holds
REQUESTS_PER_PIPELINE = 1 << 9
SWITCH_SECONDS = 5e-4  # Ray Data's threads wait so long for the one that pads: a sixteenth faster than with 5e-3
TASK_BYTES = 48 * 2**20  # of encoded rows: a task reads so much, for each costs Ray 20 ms, whatever it does
SMALL_BYTES = 8 * 2**20  # of encoded rows that are read in less time than Ray Data takes to start
KEPT_BYTES = 512 * 2**20  # of encoded rows that a worker keeps rather than reads again each epoch


def batches(
    plan: Plan,
    reader: RowReader,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    plugins: tuple[str, ...] = (),
    device: torch.device = CPU,
) -> Iterator[SequenceBatch | None]:
    """Rank's batch of each step from start_step to stop_step − 1; None where it has no row of that step's batch.

    Some are computed ahead, in a thread, and lie on `device` when they come.
    """
    keep_freed_memory(OF_COMPUTING)
    sys.setswitchinterval(SWITCH_SECONDS)
    read = reading(plan.index, reader, plugins)
    return prefetched(planned(plan, reader, rank, world, start_step, stop_step, read, KEPT_BYTES), device)


def reading(index: DataIndex, reader: RowReader, plugins: tuple[str, ...]) -> Read:
    """How requests for rows of an index are read: by Ray Data's tasks; small data, and all without a Ray, right here.

    Small is what all rows of the row groups are, not only those of this split: they are decoded, too.
    """
    whole = encoded_bytes(replace(index, selected=None), reader.columns, reader.states)
    if not ray_is_running() or (whole <= SMALL_BYTES and len(index.fragments) <= FEW_FRAGMENTS):
        return partial(map, reader.read)
    task_rows = TASK_BYTES * index.rows // max(encoded_bytes(index, reader.columns, reader.states), 1)
    return partial(read_encoded, reader=reader, plugins=plugins, task_rows=task_rows)


def planned(
    plan: Plan,
    reader: RowReader,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    read: Read,
    kept_bytes: int,
) -> Iterator[SequenceBatch | None]:
    """The same, computed when asked for, from rows that `read` gives; those of several epochs that fit are kept."""
    pieces = plan.pieces(rank, world, start_step, stop_step)
    counts = (plan.rank_rows(step, rank, world) for step in range(start_step, stop_step))
    several_epochs = stop_step - start_step > plan.steps_per_epoch
    if several_epochs and encoded_bytes(plan.index, reader.columns, reader.states) <= kept_bytes:
        kept = KeptRows(plan.index, read)
        parts: Iterable[EncodedRows] = (kept.take(piece.rows) for piece in pieces)
    else:
        parts = read(Request.of(plan.index, piece.rows) for piece in pieces)
    yield from cut(parts, counts)


class KeptRows:
    """All (selected) rows of an index, read once, a fragment a request; `read` gives them in the requests' order."""

    def __init__(self, index: DataIndex, read: Read) -> None:
        by_fragment = [index.fragment_rows(fragment) for fragment in range(len(index.fragments))]
        self._numbers = np.concatenate(by_fragment)
        self._rows = concat(list(read(Request.of(index, rows) for rows in by_fragment if len(rows))))

    def take(self, numbers: np.ndarray) -> EncodedRows:
        """The rows with these numbers, in this order."""
        return take_across([self._rows], np.searchsorted(self._numbers, numbers))


def cut(parts: Iterable[EncodedRows], counts: Iterable[int]) -> Iterator[SequenceBatch | None]:
    """Cuts a stream of rows, whatever its blocks, into batches of the given numbers of rows."""
    stream, waiting, have = iter(parts), deque[EncodedRows](), 0
    for count in counts:
        while have < count:
            waiting.append(next(stream))
            have += len(waiting[-1])
        yield collate(_take(waiting, count)) if count else None
        have -= count


def _take(waiting: deque[EncodedRows], count: int) -> EncodedRows:
    taken: list[EncodedRows] = []
    while count:
        head = waiting.popleft()
        if len(head) > count:
            waiting.appendleft(head.slice(count, len(head)))
            head = head.slice(0, count)
        taken.append(head)
        count -= len(head)
    return concat(taken)


def read_encoded(
    requests: Iterable[Request], reader: RowReader, plugins: tuple[str, ...], task_rows: int
) -> Iterator[EncodedRows]:
    """Encoded rows of all requests, in order, computed ahead by Ray Data's tasks, each of about `task_rows` rows."""
    import ray.data

    configure_ray_data()
    task = ReadTask(reader, plugins)
    tasks = map(Request.joined, _groups(requests, task_rows))
    for group in _groups(tasks, ROWS_PER_PIPELINE, REQUESTS_PER_PIPELINE):
        pipeline = ray.data.from_arrow([request.to_arrow() for request in group]).map_batches(
            task, batch_size=1, batch_format="pyarrow", zero_copy_batch=True
        )
        for block in pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            if ERROR in block.column_names:
                raise from_plain(json.loads(block[ERROR][0].as_py()))
            for chunk in block.to_batches():  # each as it lies: a block that Ray has joined would be copied
                yield from_arrow(pa.Table.from_batches([chunk]))


def _groups(requests: Iterable[Request], rows: int, most: int = sys.maxsize) -> Iterator[list[Request]]:
    """Requests in order, in groups that reach so many rows, or hold the most that one may."""
    group: list[Request] = []
    held = 0
    for request in requests:
        group.append(request)
        held += len(request.rows)
        if held >= rows or len(group) == most:
            yield group
            group, held = [], 0
    if group:
        yield group
