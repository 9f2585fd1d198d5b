"""A trial's batches, read in its own process.

The same plan, the same reader and the same cuts as `pipelines.ingest.batches`, so the same batches, without Ray Data: a
trial of one worker starts no pipeline, needs no CPU beside its own, and reads an epoch two to three times as fast.
Training data are read a window at a time; those that are read several times and are small are kept, encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from model.batches.collate import SequenceBatch
from model.batches.plan import Plan
from pipelines.cluster.malloc import OF_COMPUTING, keep_freed_memory
from pipelines.ingest.batches import CPU, planned
from pipelines.ingest.prefetch import prefetched
from pipelines.ingest.read_task import RowReader

KEPT_BYTES = 128 * 2**20  # of encoded rows; less than a worker of a run keeps, for a machine runs several trials


def direct_batches(
    reader: RowReader, plan: Plan, start: int, stop: int, device: torch.device = CPU
) -> Iterator[SequenceBatch | None]:
    """`worker.Batches` of the only worker, for steps start … stop − 1. DataError names file, row and column."""
    keep_freed_memory(OF_COMPUTING)
    return prefetched(planned(plan, reader, 0, 1, start, stop, partial(map, reader.read), KEPT_BYTES), device)
