"""A table whose sequence columns are unnested once, whoever asks: for lengths, statistics or encoding.

Knows the columns that are declared, not what was learned of them. Knows no torch, no files, no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa

from model.columns import Column, ColumnsConfig, data_columns
from model.columns.config import source_of
from model.errors import DataError
from model.tables.arrow_lists import Array, Lists, check_lengths, is_list, require_column, unnest

Entries = tuple[Array, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class SequenceTable:
    """A table, one row a sequence, and the entries of its sequence columns as far as they were asked for."""

    table: pa.Table
    columns: ColumnsConfig
    _steps: dict[str, Lists] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, table: pa.Table, columns: ColumnsConfig) -> SequenceTable:
        """Columns of type null (all missing, or of a file without them) become lists of nulls, one for each step."""
        names = [name for name in columns.data_columns("sequence") if name in table.column_names]
        nulls = [name for name in names if pa.types.is_null(table.schema.field(name).type)]
        whole = cls(table, columns)
        if not nulls:
            return whole
        filled = next((name for name in names if name not in nulls), None)
        offsets = np.zeros(table.num_rows + 1, np.int64) if filled is None else whole.steps(filled).offsets
        missing = pa.LargeListArray.from_arrays(pa.array(offsets), pa.nulls(int(offsets[-1])))
        for name in nulls:
            table = table.set_column(table.column_names.index(name), name, missing)
        return cls(table, columns)

    def entries(self, name: str, group: Literal["sequence", "context"]) -> Entries:
        """A data column's entries: the steps of all rows (with the rows' offsets), or the rows themselves."""
        return self.steps(name) if group == "sequence" else (require_column(self.table, name), None)

    def source_entries(
        self, column: Column, group: Literal["sequence", "context"]
    ) -> tuple[list[Array], np.ndarray | None]:
        """The entries of each data column that a column reads, and the rows' offsets in them (sequence columns)."""
        parts = [self.entries(name, group) for name in data_columns(source_of(column))]
        return [entries for entries, _ in parts], parts[0][1]

    def steps(self, name: str) -> Lists:
        """A sequence column's entries and the rows' offsets in them; DataError where it holds no lists."""
        if name not in self._steps:
            self._steps[name] = _steps(require_column(self.table, name), name)
        return self._steps[name]

    @cached_property
    def lengths_B(self) -> np.ndarray:
        """Steps of each row [B]; a DataError names the row whose sequence columns disagree."""
        first, *others = self.columns.data_columns("sequence")
        lengths_B = np.diff(self.steps(first).offsets)
        for name in others:
            check_lengths(np.diff(self.steps(name).offsets), name, lengths_B, repr(first))
        return lengths_B


def _steps(array: Array, name: str) -> Lists:
    if pa.types.is_null(array.type):
        return Lists(pa.array([], pa.null()), np.zeros(len(array) + 1, np.int64))
    if not is_list(array.type):
        raise DataError(
            f"a sequence column must hold lists, one a row, but its type is {array.type}; declare it under context "
            f"if it has one value a row",
            column=name,
        )
    steps = unnest(array, name)
    held = steps.values.type
    if is_list(held) and is_list(held.value_type):
        raise DataError(
            f"a step must hold a value or a list of values, but its type is {held}; write it again as one list a step",
            column=name,
        )
    return steps
