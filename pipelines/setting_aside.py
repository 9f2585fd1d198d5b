"""Bad rows of a prediction: the first one ends it, or all are set aside with the reason and the others are scored.

Knows no Ray, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.parquet import read_footer
from model.storage import join, list_names
from pipelines.blocks import Block
from pipelines.quarantine import COLUMN, FILE, REASON, ROW, quarantined, write_quarantine

OnBadRows = Literal["error", "skip"]
QUARANTINE = "_quarantine"  # in the output's directory; hidden from readers of Parquet


@dataclass(frozen=True)
class SettingAside:
    """What to do with bad rows: raise, or write them into `directory`."""

    on_bad_rows: OnBadRows
    directory: str

    def __call__(self, table: pa.Table, errors: Mapping[int, DataError], block: Block, number: int) -> None:
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
            raise first.located(file=block.fragment.file, first_row=block.row_in_file(number))
        rows = quarantined(table, errors, file=block.fragment.file, first_row=block.row_in_file(number))
        write_quarantine(self.directory, block.slice_name(number), rows)


def good_rows(rows: int, errors: Mapping[int, DataError]) -> np.ndarray:
    """Places of the rows without an error."""
    return np.delete(np.arange(rows), list(errors))


def count_set_aside(directory: str) -> int:
    """How many rows lie in a quarantine."""
    return sum(read_footer(join(directory, name)).num_rows for name in list_names(directory))


def told_set_aside(directory: str, most: int) -> Iterator[str]:
    """A line for each of the first `most` rows in a quarantine: where it was, and what is wrong."""
    import pyarrow.parquet as pq

    from model.storage import resolve

    for name in list_names(directory):
        filesystem, inner = resolve(join(directory, name))
        for row in pq.read_table(inner, filesystem=filesystem, columns=[FILE, ROW, COLUMN, REASON]).to_pylist():
            if most == 0:
                return
            most -= 1
            yield str(DataError(row[REASON], file=row[FILE], row=row[ROW], column=row[COLUMN]))
