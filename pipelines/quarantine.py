"""Rows that were left out, kept for people: as they were read, with the place and the reason of each.

Knows no Ray and no model. One Parquet file for each row group that had bad rows.

May import: model.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import DataError
from model.storage import join, stem, write_bytes
from model.tables.fragments import Fragment
from model.tables.parquet import first_row, read_whole_fragment

FILE, ROW, COLUMN, REASON = "quarantine_file", "quarantine_row", "quarantine_column", "quarantine_reason"
ROWS = "quarantine_rows"  # of what stands for a whole row group: how many rows it had


def with_way_out(error: DataError) -> DataError:
    """The error of a bad row, or of a row group that cannot be decoded, with the option that leaves it out."""
    problem = f"{error.problem}; --on-bad-rows skip leaves such rows out"
    return type(error)(problem, file=error.file, row=error.row, column=error.column)


def quarantined(table: pa.Table, errors: Mapping[int, DataError], *, file: str, first_row: int) -> pa.Table:
    """The bad rows of `table` and four columns more: file, row in that file, column (null: the row), and reason.

    `errors` maps rows of `table` to what is wrong; `first_row` is the place of its row 0 in `file`.
    """
    rows = sorted(errors)
    bad = table.take(pa.array(rows, pa.int64()))
    told = {
        FILE: pa.array([file] * len(rows), pa.string()),
        ROW: pa.array([row + first_row for row in rows], pa.int64()),
        COLUMN: pa.array([errors[row].column for row in rows], pa.string()),
        REASON: pa.array([errors[row].problem for row in rows], pa.string()),
    }
    for name, values in told.items():
        bad = bad.append_column(name, values)
    return bad


def quarantined_group(error: DataError, rows: int) -> pa.Table:
    """One line for all `rows` of a row group that cannot be decoded: of these there is nothing else to keep."""
    told = {
        FILE: pa.array([error.file], pa.string()),
        ROW: pa.nulls(1, pa.int64()),
        COLUMN: pa.nulls(1, pa.string()),
        REASON: pa.array([error.problem], pa.string()),
        ROWS: pa.array([rows], pa.int64()),
    }
    return pa.table(told)


def write_quarantine(directory: str, name: str, rows: pa.Table) -> None:
    """Writes the rows of one row group as `directory`/`name`, whole or not at all."""
    stream = io.BytesIO()
    pq.write_table(rows, stream, compression="zstd")
    write_bytes(join(directory, name), stream.getvalue())


@dataclass(frozen=True)
class Quarantine:
    """Writes bad rows of a fragment, with all their columns, into `directory`."""

    directory: str

    def __call__(self, fragment: Fragment, errors: Mapping[int, DataError]) -> None:
        digest = hashlib.sha256(fragment.file.encode()).hexdigest()[:8]
        name = f"{stem(fragment.file)}-{digest}-{fragment.row_group:05d}.parquet"
        rows = quarantined(read_whole_fragment(fragment), errors, file=fragment.file, first_row=first_row(fragment))
        write_quarantine(self.directory, name, rows)
