"""Events of row groups in portions of bounded memory, with the types that all files agree on; bad rows apart.

A row group is read page by page, so it may be larger than the memory. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from model.errors import DataError, first_line
from model.tables import compute as pc
from model.tables.arrow_lists import plain
from model.tables.fragments import Fragment
from model.tables.parquet_file import open_parquet
from pipelines.prepare.layout import Layout, time_numbers
from pipelines.quarantine import quarantined

BATCH_ROWS = 1 << 16
BATCH_BYTES = 1 << 23  # about; rows of a batch are fewer where they are wide
PAGE_BUFFER_BYTES = 1 << 22
ORDER_BYTES = 16  # an event's hash and time
VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 12}


@dataclass(frozen=True)
class Share:
    """The part of the input that one task reads: row groups, and the number of each one's first row in its file."""

    fragments: tuple[Fragment, ...]
    first_rows: tuple[int, ...]


@dataclass(frozen=True)
class EventReader:
    """Reads events; rows without key or time are an error, or with `skip` handed out apart."""

    layout: Layout
    skip: bool

    def portions(self, share: Share, most_bytes: int) -> Iterator[tuple[list[pa.Table], pa.Table | None]]:
        """(good rows in tables of the layout's schema, bad rows or None) of at least `most_bytes` but the last."""
        good: list[pa.Table] = []
        bad: list[pa.Table] = []
        size = 0
        for fragment, first_row in zip(share.fragments, share.first_rows, strict=True):
            for table in self._batches(fragment, first_row):
                kept, left_out = self._apart(table, fragment, first_row)
                first_row += table.num_rows
                good += [kept] if kept.num_rows else []
                bad += [] if left_out is None else [left_out]
                size += kept.nbytes + 16 * kept.num_rows + (0 if left_out is None else left_out.nbytes)
                if size >= most_bytes:
                    yield good, pa.concat_tables(bad) if bad else None
                    good, bad, size = [], [], 0
        if good or bad:
            yield good, pa.concat_tables(bad) if bad else None

    def _batches(self, fragment: Fragment, first_row: int) -> Iterator[pa.Table]:
        try:
            # Buffered, or a column's whole part of the row group would be in memory.
            with open_parquet(fragment.file, buffer_size=PAGE_BUFFER_BYTES, pre_buffer=False) as file:
                group = file.metadata.row_group(fragment.row_group)
                width = memory_bytes(group, set(self.layout.schema.names)) / group.num_rows
                rows = int(min(BATCH_ROWS, max(64, BATCH_BYTES / width)))
                names = list(self.layout.schema.names)
                for batch in file.iter_batches(rows, row_groups=[fragment.row_group], columns=names, use_threads=False):
                    yield self._typed(batch, fragment, first_row)
                    first_row += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"row group {fragment.row_group} cannot be decoded ({first_line(error)}); write or remove the file",
                file=fragment.file,
            ) from error

    def _typed(self, batch: Any, fragment: Fragment, first_row: int) -> pa.Table:
        columns = []
        for field in self.layout.schema:
            column = plain(batch.column(field.name))
            try:
                columns.append(column if column.type == field.type else column.cast(field.type))
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"must fit {field.type}, the type of this column in all files, but in the rows from {first_row} "
                    f"on does not: {first_line(error)}",
                    file=fragment.file,
                    column=field.name,
                ) from error
        return pa.Table.from_arrays(columns, schema=self.layout.schema)

    def _apart(self, table: pa.Table, fragment: Fragment, first_row: int) -> tuple[pa.Table, pa.Table | None]:
        errors = self._errors(table, fragment, first_row)
        if not errors:
            return table, None
        if not self.skip:
            raise errors[min(errors)].located(file=fragment.file, first_row=first_row)
        good = np.ones(table.num_rows, bool)
        good[list(errors)] = False
        return table.filter(pa.array(good)), quarantined(table, errors, file=fragment.file, first_row=first_row)

    def _errors(self, table: pa.Table, fragment: Fragment, first_row: int) -> dict[int, DataError]:
        """What is wrong with key or time, by row of the table."""
        errors = {}
        for name, what in ((self.layout.time, "time"), (self.layout.key, "key")):
            column = plain(table.column(name))
            if column.null_count:
                for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
                    errors[row] = DataError(f"an event must have a {what}, but this is null", row=row, column=name)
        time = plain(table.column(self.layout.time))
        if pa.types.is_floating(time.type):
            known = pc.fill_null(time, 0.0).to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(~np.isfinite(known)).tolist():
                problem = f"the time must be a finite number, but is {known[row]}"
                errors[row] = DataError(problem, row=row, column=self.layout.time)
        elif pa.types.is_uint64(time.type):
            self._check_uint64(time, fragment, first_row)
        return errors

    def _check_uint64(self, time: Any, fragment: Fragment, first_row: int) -> None:
        try:
            time_numbers(pc.fill_null(time, 0))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"the time must be below 2^63, but in the rows from {first_row} on is not ({first_line(error)})",
                file=fragment.file,
                column=self.layout.time,
            ) from error


def memory_bytes(group: Any, names: set[str]) -> int:
    """About the bytes that the columns of a row group take in memory; on storage, dictionaries make them far fewer."""
    total = ORDER_BYTES * group.num_rows
    for number in range(group.num_columns):
        column = group.column(number)
        # The path is the column's name, or for lists NAME.list.element; a name may hold dots itself.
        if column.path_in_schema in names or any(column.path_in_schema.startswith(f"{name}.") for name in names):
            total += max(column.total_uncompressed_size, VALUE_BYTES.get(column.physical_type, 0) * column.num_values)
    return int(total)
