"""Events of row groups in portions of bounded memory, with the types that all files agree on; bad rows apart.

A row group is read page by page, a CSV file block by block, so either may be larger than the memory. Knows no Ray.
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
from model.tables.nested import NestedSchema
from model.tables.parquet import batches_of, leaf_paths, undecodable
from model.tables.parquet_file import open_parquet
from pipelines.prepare.csv_events import csv_batches, is_csv
from pipelines.prepare.keys import key_values
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
            for batch in self._batches(fragment):
                table, problems = self._typed(batch, fragment, first_row)
                kept, left_out = self._apart(table, problems, fragment, first_row)
                first_row += table.num_rows
                good += [kept] if kept.num_rows else []
                bad += [] if left_out is None else [left_out]
                size += kept.nbytes + 16 * kept.num_rows + (0 if left_out is None else left_out.nbytes)
                if size >= most_bytes:
                    yield good, pa.concat_tables(bad) if bad else None
                    good, bad, size = [], [], 0
        if good or bad:
            yield good, pa.concat_tables(bad) if bad else None

    def _batches(self, fragment: Fragment) -> Iterator[Any]:
        if is_csv(fragment.file):
            yield from csv_batches(fragment.file, self.layout.schema)
            return
        try:
            # Buffered, or a column's whole part of the row group would be in memory.
            with open_parquet(fragment.file, buffer_size=PAGE_BUFFER_BYTES, pre_buffer=False) as file:
                group = file.metadata.row_group(fragment.row_group)
                columns = NestedSchema(file.schema_arrow)
                names = [name for name in self.layout.read_schema.names if name in columns]
                width = memory_bytes(group, set(names)) / group.num_rows
                rows = int(min(BATCH_ROWS, max(64, BATCH_BYTES / width)))
                for batch in batches_of(file, fragment, leaf_paths(file.metadata, columns, names), rows):
                    yield from columns.table(pa.Table.from_batches([batch]), names).to_batches()
        except DataError as error:
            raise DataError(error.problem, file=fragment.file, column=error.column) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise undecodable(fragment, error) from error

    def _typed(self, batch: Any, fragment: Fragment, first_row: int) -> tuple[pa.Table, dict[int, DataError]]:
        """The batch in the layout's types, and what is wrong with its keys, by row."""
        columns, problems = [], dict[int, DataError]()
        for field in self.layout.read_schema:
            if field.name not in batch.schema.names:  # events are no rows that an earlier preparation has left
                columns.append(pa.nulls(batch.num_rows, field.type))
                continue
            column = plain(batch.column(field.name))
            if field.name in self.layout.keys:
                column, wrong = key_values(column, field.type)
                problems |= {row: DataError(what, row=row, column=field.name) for row, what in wrong.items()}
            try:
                columns.append(column if column.type == field.type else column.cast(field.type))
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"must fit {field.type}, the type of this column in all files, but in the rows from {first_row} "
                    f"on does not: {first_line(error)}",
                    file=fragment.file,
                    column=field.name,
                ) from error
        return pa.Table.from_arrays(columns, schema=self.layout.read_schema), problems

    def _apart(
        self, table: pa.Table, problems: dict[int, DataError], fragment: Fragment, first_row: int
    ) -> tuple[pa.Table, pa.Table | None]:
        errors = self._errors(table, fragment, first_row) | problems
        if not errors:
            return table, None
        if not self.skip:
            raise errors[min(errors)].located(file=fragment.file, first_row=first_row)
        good = np.ones(table.num_rows, bool)
        good[list(errors)] = False
        bad = quarantined(table.select(self.layout.schema.names), errors, file=fragment.file, first_row=first_row)
        return table.filter(pa.array(good)), bad

    def _errors(self, table: pa.Table, fragment: Fragment, first_row: int) -> dict[int, DataError]:
        """What is wrong with key or time, by row of the table."""
        errors = {}
        layout = self.layout
        order = [(name, "time" if name == layout.time else "value to order by") for name in layout.times]
        for name, what in [*reversed(order), *((key, "key") for key in layout.keys)]:
            column = plain(table.column(name))
            if column.null_count:
                for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
                    errors[row] = DataError(f"an event must have a {what}, but this is null", row=row, column=name)
        for name, what in reversed(order):
            time = plain(table.column(name))
            if pa.types.is_floating(time.type):
                known = pc.fill_null(time, 0.0).to_numpy(zero_copy_only=False)
                for row in np.flatnonzero(~np.isfinite(known)).tolist():
                    problem = f"the {what} must be a finite number, but is {known[row]}"
                    errors[row] = DataError(problem, row=row, column=name)
            elif pa.types.is_uint64(time.type):
                self._check_uint64(time, name, fragment, first_row)
        return errors

    def _check_uint64(self, time: Any, name: str, fragment: Fragment, first_row: int) -> None:
        try:
            time_numbers(pc.fill_null(time, 0))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"the time must be below 2^63, but in the rows from {first_row} on is not ({first_line(error)})",
                file=fragment.file,
                column=name,
            ) from error


def memory_bytes(group: Any, names: set[str]) -> int:
    """About the bytes that the columns of a row group take in memory; on storage, dictionaries make them far fewer."""
    total, tops = ORDER_BYTES * group.num_rows, {name.partition(".")[0] for name in names}
    for number in range(group.num_columns):
        column = group.column(number)
        # The path is the column's name, or for lists NAME.list.element; of structs all fields are counted.
        if column.path_in_schema.partition(".")[0] in tops:
            total += max(column.total_uncompressed_size, VALUE_BYTES.get(column.physical_type, 0) * column.num_values)
    return int(total)
