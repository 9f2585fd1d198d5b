"""Rows on their way to those of the same key: Arrow files whose batches are partitions, read one by one.

A task writes one file for each slice that it reads; batch p of it holds the rows of partition p, in the slice's order.
So a partition is read from every file without reading the others, and a shuffle of any size needs memory for a slice.
Files appear whole or not at all, so what is there is finished. Knows no Ray, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from model.storage import resolve
from model.storage.atomic import appearing
from model.storage.filesystems import PathLike


@contextmanager
def batch_file(path: PathLike, schema: pa.Schema) -> Iterator[Any]:
    """A writer of record batches to a file that appears when the block ends without an error."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as stack:
        local = stack.enter_context(appearing(path))
        sink = stack.enter_context(pa.OSFile(local, "wb"))
        yield stack.enter_context(pa.ipc.new_file(sink, schema, options=options))


def write_partitions(path: PathLike, table: pa.Table, partition_B: np.ndarray, count: int) -> None:
    """Writes the rows of `table` as `count` batches by their partition; the order within a partition stays."""
    order = np.argsort(partition_B, kind="stable")
    table = table.take(pa.array(order)).combine_chunks()
    bounds = np.searchsorted(partition_B[order], np.arange(count + 1))
    with batch_file(path, table.schema) as out:
        for start, stop in pairwise(bounds):
            out.write_batch(one_batch(table.slice(start, stop - start)))


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table's rows as one batch; none is one, too."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def read_batch(path: PathLike, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Batch `number` of a file, or some of its columns: the others are not decoded."""
    filesystem, inner = resolve(path)
    with filesystem.open_input_file(inner) as source:
        options = pa.ipc.IpcReadOptions()
        if columns is not None:
            with pa.ipc.open_file(source) as reader:
                options.included_fields = sorted(reader.schema.get_field_index(name) for name in columns)
        with pa.ipc.open_file(source, options=options) as reader:
            return pa.Table.from_batches([reader.get_batch(number)])


def metadata_of(path: PathLike) -> dict[bytes, bytes]:
    """What the writer of a file said about it."""
    filesystem, inner = resolve(path)
    with filesystem.open_input_file(inner) as source, pa.ipc.open_file(source) as reader:
        return dict(reader.schema.metadata or {})
