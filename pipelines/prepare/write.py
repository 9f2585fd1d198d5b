"""Sequences to Parquet files of bounded row groups; the files lie in a work directory until all of them are whole.

Knows no Ray.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.storage import join, make_directory, resolve
from model.storage.atomic import sync
from model.tables.arrow_lists import is_list, list_lengths


class SequenceWriter:
    """Writes the tables it is given as one or more files `NAME-000.parquet`, `NAME-001.parquet` …

    A row group ends before it has more than `group_rows` rows or about `group_bytes`, and has one row at least; a file
    ends with the row group that brings it to `file_bytes`. Bytes are those in memory.
    """

    def __init__(
        self,
        work: str,
        name: str,
        schema: pa.Schema,
        *,
        group_rows: int,
        group_bytes: int,
        file_bytes: int,
        suffix: str = ".parquet",
    ) -> None:
        self.work = work
        self.name = name
        self.schema = schema
        self.group_rows = group_rows
        self.group_bytes = group_bytes
        self.file_bytes = file_bytes
        self.suffix = suffix
        self.files: list[tuple[str, str]] = []  # (where it lies, name below the output)
        self._pending: list[pa.Table] = []
        self._pending_size = np.zeros(2, np.int64)  # rows and bytes
        self._written = 0
        self._stream: Any = None
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        """Takes rows, and writes the row groups that are full."""
        self._pending.append(table)
        self._pending_size += [table.num_rows, table.nbytes]
        if self._full():
            self._write(rest=False)

    def close(self) -> list[tuple[str, str]]:
        """Writes what is left. Returns where each file lies, and its name below the output."""
        if self._pending_size[0]:
            self._write(rest=True)
        self._end_file()
        return self.files

    def _full(self) -> bool:
        rows, size = self._pending_size
        return bool(rows >= self.group_rows or size >= self.group_bytes)

    def _write(self, *, rest: bool) -> None:
        table = pa.concat_tables(self._pending).combine_chunks()
        ends = group_ends(table, self.group_rows, self.group_bytes)
        if not rest:  # the last group may not be full yet
            ends = ends[:-1]
        for start, stop in zip([0, *ends], ends, strict=False):
            self._write_group(table.slice(start, stop - start))
        left = table.slice(ends[-1] if ends else 0)
        self._pending, self._pending_size = [left], np.array([left.num_rows, left.nbytes])

    def _write_group(self, table: pa.Table) -> None:
        if self._writer is None:
            self._begin_file()
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._written += table.nbytes
        if self._written >= self.file_bytes:
            self._end_file()

    def _begin_file(self) -> None:
        name = f"{self.name}-{len(self.files):03d}{self.suffix}"
        # A name of its own for each attempt: two of one task, after a node was lost, do not meet.
        path = join(self.work, f"{name.replace('/', '-')}.{uuid.uuid4().hex[:8]}")
        make_directory(self.work)
        filesystem, inner = resolve(path)
        self.files.append((path, name))
        self._written = 0
        self._stream = filesystem.open_output_stream(inner)
        self._writer = pq.ParquetWriter(
            self._stream, self.schema, compression="zstd", use_dictionary=dictionary_paths(self.schema)
        )

    def _end_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._stream.close()
        self._writer = self._stream = None
        sync(self.files[-1][0])


def group_ends(table: pa.Table, most_rows: int, most_bytes: int) -> list[int]:
    """Where the row groups of a table end: each has `most_rows` and about `most_bytes` at most, and one row at least.

    A row's bytes are taken to go with its length.
    """
    lists = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if is_list(kind)]
    lengths = list_lengths(table.column(lists[0]), lists[0]) if lists else np.ones(table.num_rows, np.int64)
    share = (lengths + 1) / max(1, (lengths + 1).sum())
    total = np.cumsum(share) * table.nbytes
    ends: list[int] = []
    start = 0
    while start < table.num_rows:
        before = total[start - 1] if start else 0.0
        by_bytes = int(np.searchsorted(total, before + most_bytes, "right"))
        start = max(start + 1, min(start + most_rows, by_bytes, table.num_rows))
        ends.append(start)
    return ends


def dictionary_paths(schema: pa.Schema) -> list[str]:
    """The leaves that are worth a dictionary: all but floats, which rarely repeat."""
    paths = []
    for field in schema:
        path, kind = field.name, field.type
        while is_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        if not pa.types.is_floating(kind):
            paths.append(path)
    return paths
