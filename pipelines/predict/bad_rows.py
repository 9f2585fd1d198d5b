"""Bad rows of a prediction: the first one ends it, or all are set aside with the reason and the others are scored.

Knows no Ray, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from model.errors import DataError, DecodeError
from model.scan.bad_rows import Reason
from model.storage import exists, join, list_names, remove_file, resolve
from model.tables.parquet import is_stored, read_footer
from model.tables.slices import SlicedRowGroup
from pipelines.quarantine import (
    COLUMN,
    FILE,
    REASON,
    ROW,
    ROWS,
    quarantined,
    quarantined_group,
    with_way_out,
    write_quarantine,
)

OnBadRows = Literal["error", "skip"]
QUARANTINE = "_quarantine"  # in the output's directory; hidden from readers of Parquet


@dataclass(frozen=True)
class BadRowPolicy:
    """What to do with bad rows and damaged row groups: raise, or write into `directory` what there is of them."""

    on_bad_rows: OnBadRows
    directory: str

    def __call__(self, table: pa.Table, errors: Mapping[int, DataError], block: SlicedRowGroup, number: int) -> None:
        """Takes the bad rows of slice `number`, which is `table`; `errors` by row of it.

        What is wrong with a whole column or file is no matter of rows, and is raised in any case.
        """
        if not errors:
            return
        column_wide = [error for error in errors.values() if error.row is None]
        if column_wide:
            raise column_wide[0].located(file=block.fragment.file)
        if self.on_bad_rows == "error":
            first = errors[min(errors)]
            first = type(first)(first.problem, row=min(errors), column=first.column)
            raise with_way_out(first.located(file=block.fragment.file, first_row=block.row_in_file(number)))
        rows = quarantined(table, errors, file=block.fragment.file, first_row=block.row_in_file(number))
        write_quarantine(self.directory, block.slice_name(number), rows)

    def begin(self, block: SlicedRowGroup) -> None:
        """Forgets that an earlier, stopped run found the block damaged: its file may have been restored since."""
        if self.on_bad_rows == "skip":
            remove_file(join(self.directory, block.name))

    def damaged(self, block: SlicedRowGroup, error: DecodeError) -> None:
        """Takes a block that cannot be decoded, as a whole: what slices before the damage have brought is forgotten.

        Where its bytes cannot be fetched, they may be tomorrow: that is raised in any case.
        """
        if not is_stored(block.fragment):
            raise error
        if self.on_bad_rows == "error":
            raise with_way_out(error) from error.__cause__
        for number in range(block.first_slice, block.first_slice + block.slices):
            remove_file(join(self.directory, block.slice_name(number)))
        write_quarantine(self.directory, block.name, quarantined_group(error, block.fragment.rows))

    def is_damaged(self, block: SlicedRowGroup) -> bool:
        """Whether the block was found to be damaged, and taken."""
        return self.on_bad_rows == "skip" and exists(join(self.directory, block.name))


def good_rows(rows: int, errors: Mapping[int, DataError]) -> np.ndarray:
    """Places of the rows without an error."""
    return np.delete(np.arange(rows), list(errors))


def count_set_aside(directory: str) -> int:
    """How many rows lie in a quarantine, or are told of there because they could not be read."""
    return sum(_rows_of(join(directory, name)) for name in list_names(directory))


def _rows_of(file: str) -> int:
    footer = read_footer(file)
    if ROWS not in footer.schema.names:
        return int(footer.num_rows)
    groups: int = sum(row[ROWS] for row in _read(file, [ROWS]))
    return groups


def told_set_aside(directory: str, most: int) -> Iterator[str]:
    """A line for each of the first `most` rows, or whole row groups, in a quarantine: where it was, what is wrong."""
    for name in list_names(directory):
        for row in _read(join(directory, name), [FILE, ROW, COLUMN, REASON, ROWS]):
            if most == 0:
                return
            most -= 1
            yield str(Reason(row[REASON], row[COLUMN], row.get(ROWS, 1), row[FILE], row[ROW]))


def _read(file: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Those of the columns that a file has, row by row."""
    import pyarrow.parquet as pq

    filesystem, inner = resolve(file)
    with pq.ParquetFile(inner, filesystem=filesystem) as reader:
        rows: list[dict[str, Any]] = reader.read(columns).to_pylist()
    return rows
