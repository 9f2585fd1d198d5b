"""Sorted runs on storage: Arrow IPC files whose record batches lie in one bucket each, to be read bucket by bucket.

One file holds all buckets of a run, so that there are as many files as runs, not as runs times buckets. The two
columns that order the rows stand first and are found by their place, for the events' own may have any name.
Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from model.storage import is_remote, resolve
from model.tables.arrow_lists import plain
from pipelines.prepare.sort import Arrange, Events, bucket_of

BATCH_ROWS = 1 << 14  # of a record batch at most, and:
BATCH_BYTES = 1 << 19  # about; what a merge holds of each run at least
ORDER = ("hash", "time")


@dataclass(frozen=True)
class RunFile:
    """A run on storage: for each bucket the first of its record batches, and its rows. `starts` has one entry more."""

    file: str
    starts: tuple[int, ...]
    rows: tuple[int, ...]

    def to_plain(self) -> dict[str, Any]:
        """As plain data, to travel as JSON."""
        return {"file": self.file, "starts": list(self.starts), "rows": list(self.rows)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> RunFile:
        """The run of `to_plain`."""
        return cls(values["file"], tuple(values["starts"]), tuple(values["rows"]))


def write_run(path: str, parts: Iterable[Events], buckets: int) -> RunFile:
    """Writes sorted rows as one run. The file counts once it is named in a task's result; before, nobody reads it."""
    starts, rows, written = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64), 0
    writer: Any = None
    filesystem, inner = resolve(path)
    with filesystem.open_output_stream(inner) as stream:
        for events in parts:
            if writer is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                writer = pa.ipc.new_file(stream, _schema(events), options=options)
            for bucket, chunk in _chunks(events, buckets):
                writer.write_batch(_batch(chunk))
                starts[bucket] += 1
                rows[bucket] += len(chunk)
                written += 1
        assert writer is not None, "a run has at least one row"
        writer.close()
    return RunFile(path, (0, *np.cumsum(starts).tolist()), tuple(rows.tolist()))


def _chunks(events: Events, buckets: int) -> Iterator[tuple[int, Events]]:
    """The rows of each bucket, in parts that make record batches."""
    step = max(1, min(BATCH_ROWS, int(BATCH_BYTES * len(events) / max(1, events.nbytes))))
    bucket_N = bucket_of(events.hash_N, buckets)
    edges = [0, *(np.flatnonzero(np.diff(bucket_N)) + 1).tolist(), len(events)]
    for start, stop in pairwise(edges):
        for begin in range(start, stop, step):
            yield int(bucket_N[start]), events.slice(begin, min(begin + step, stop))


def _schema(events: Events) -> pa.Schema:
    order = [pa.field(ORDER[0], pa.uint64()), pa.field(ORDER[1], pa.from_numpy_dtype(events.time_N.dtype))]
    return pa.schema([*order, *events.table.schema])


def _batch(events: Events) -> pa.RecordBatch:
    columns = [pa.array(events.hash_N), pa.array(events.time_N), *(plain(column) for column in events.table.columns)]
    return pa.RecordBatch.from_arrays(columns, schema=_schema(events))


class RunReader:
    """Reads buckets of a run; `columns` are those of the events to read, those that `arrange` needs among them."""

    def __init__(self, run: RunFile, arrange: Arrange, columns: Sequence[str], names: Sequence[str]) -> None:
        self.run = run
        self.arrange = arrange
        self.columns = list(columns)
        self.places = [0, 1, *(names.index(name) + len(ORDER) for name in columns)]

    def bucket(self, bucket: int) -> Iterator[Events]:
        """The bucket's rows in order, a record batch at a time."""
        return self.batches(self.run.starts[bucket], self.run.starts[bucket + 1])

    def batches(self, first: int, stop: int) -> Iterator[Events]:
        """Record batches first … stop − 1."""
        if first == stop:
            return
        with _opened(self.run.file) as source:
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=sorted(self.places)))
            order = [sorted(self.places).index(place) for place in self.places]
            for number in range(first, stop):
                batch = reader.get_batch(number)
                hash_N, time_N, *columns = (batch.column(place) for place in order)
                table = pa.Table.from_arrays(columns, names=self.columns)
                yield self.arrange(table, time_N.to_numpy(), hash_N.to_numpy())


def _opened(path: str) -> Any:
    filesystem, inner = resolve(path)
    return filesystem.open_input_file(inner) if is_remote(path) else pa.OSFile(inner, "rb")
