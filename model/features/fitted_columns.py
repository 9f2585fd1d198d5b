"""Rows of a table as encoded, still ragged arrays: the step between Arrow and padded tensors.

Encoding is where strings become ids and numbers are normalised; it runs in data tasks, in the estimator and
in the server alike. Knows no torch, no files, no Ray. `model.batches.collate` pads what this module encodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from model.columns import Column, ColumnsConfig, Leaf, data_columns, leaves, source_key
from model.columns.config import source_of
from model.errors import DataError
from model.features.encoded import Encoded
from model.features.fit import Fitted, entry_to_row, fit_declared, with_boundaries
from model.features.shared_tables import check_same_ids, joint_stats
from model.features.stats import ColumnStats
from model.settings import Settings
from model.tables.arrow_lists import Array, check_lengths, is_list, require_column, unnest

Group = Literal["sequence", "context"]
GROUPS: tuple[Group, ...] = ("sequence", "context")


# Columns ------------------------------------------------------------------------------------------------------


def iterate_sources(columns: ColumnsConfig) -> Iterator[tuple[Group, str, Column]]:
    """(group, source key, column) for each distinct source, in input order."""
    seen: set[str] = set()
    for group in GROUPS:
        for column in columns.ordered(group):
            key = source_key(source_of(column))
            if key not in seen:
                seen.add(key)
                yield group, key, column


def iterate_leaves(columns: ColumnsConfig) -> Iterator[tuple[Group, str, Leaf]]:
    """(group, source key, source) for each distinct source over one column whose statistics fit the columns."""
    seen: set[str] = set()
    for group, _, column in iterate_sources(columns):
        for leaf in leaves(source_of(column)):
            if (key := source_key(leaf)) not in seen:
                seen.add(key)
                yield group, key, leaf


class FittedColumns(Settings):
    """The declared columns and, by source key, what fitting made of them: all it takes to encode a table."""

    columns: ColumnsConfig
    sources: dict[str, Fitted]

    @classmethod
    def fit(cls, columns: ColumnsConfig, stats: Mapping[str, ColumnStats]) -> FittedColumns:
        """From the merged statistics of the training data, by source key. DataError when the data do not fit."""
        stats = joint_stats(columns, stats)
        fitted = {key: fit_declared(source_of(column), stats) for _, key, column in iterate_sources(columns)}
        check_same_ids(columns, fitted)
        return cls(columns=columns, sources=with_boundaries(columns, fitted, stats))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The data columns that are read, in input order."""
        return tuple(name for group in GROUPS for name in self.columns.data_columns(group))

    def input_schema(self) -> pa.Schema:
        """The Arrow columns the model reads, one row a sequence: what clients send and files hold."""
        fields: dict[str, pa.Field] = {}  # two sources may read one column
        for group, key, _ in iterate_sources(self.columns):
            for name, entry in self.sources[key].entry_types.items():
                fields.setdefault(name, pa.field(name, pa.list_(entry) if group == "sequence" else entry))
        return pa.schema(list(fields.values()))

    def encode(self, table: pa.Table) -> tuple[np.ndarray, dict[str, Encoded], dict[str, Encoded]]:
        """(lengths [B], sequence values, context values) by source key. DataError names column and row."""
        table = with_null_steps(table, self.columns)
        lengths_B = sequence_lengths(table, self.columns)
        groups: dict[Group, dict[str, Encoded]] = {"sequence": {}, "context": {}}
        for group, key, column in iterate_sources(self.columns):
            parts, offsets = source_entries(table, column, group)
            try:
                groups[group][key] = self.sources[key].encode(*parts)
            except DataError as error:
                raise entry_to_row(error, offsets) from error.__cause__
        return lengths_B, groups["sequence"], groups["context"]


def source_entries(table: pa.Table, column: Column, group: Group) -> tuple[list[Array], np.ndarray | None]:
    """The entries of each data column that a column reads, and the rows' offsets in them (sequence columns)."""
    parts = [entries_of(table, name, group) for name in data_columns(source_of(column))]
    return [entries for entries, _ in parts], parts[0][1]


def entries_of(table: pa.Table, name: str, group: Group) -> tuple[Array, np.ndarray | None]:
    """A data column's entries: the steps of all rows (with the rows' offsets), or the rows themselves."""
    array = require_column(table, name)
    if group == "context":
        return array, None
    if not is_list(array.type) and not pa.types.is_null(array.type):
        raise DataError(
            f"a sequence column must hold lists, one a row, but its type is {array.type}; declare it under context "
            f"if it has one value a row",
            column=name,
        )
    if pa.types.is_null(array.type):
        return pa.array([], pa.null()), np.zeros(len(array) + 1, np.int64)
    return unnest(array, name)


def sequence_lengths(table: pa.Table, columns: ColumnsConfig) -> np.ndarray:
    """Steps of each row [B]; a DataError names the row whose sequence columns disagree."""
    lengths_B: np.ndarray | None = None
    first = ""
    for name in columns.data_columns("sequence"):
        _, offsets = entries_of(table, name, "sequence")
        assert offsets is not None
        if lengths_B is None:
            lengths_B, first = np.diff(offsets), name
        check_lengths(np.diff(offsets), name, lengths_B, repr(first))
    assert lengths_B is not None, "ColumnsConfig holds at least one sequence column"
    return lengths_B


def with_null_steps(table: pa.Table, columns: ColumnsConfig) -> pa.Table:
    """Columns of type null (all missing, or of a file without them) as lists of nulls, one for each step of the row."""
    names = [name for name in columns.data_columns("sequence") if name in table.column_names]
    nulls = [name for name in names if pa.types.is_null(table.schema.field(name).type)]
    if not nulls:
        return table
    whole = next((name for name in names if name not in nulls), None)
    offsets = np.zeros(table.num_rows + 1, np.int64)
    if whole is not None:
        _, found = entries_of(table, whole, "sequence")
        assert found is not None, "sequence columns have offsets"
        offsets = found
    missing = pa.LargeListArray.from_arrays(pa.array(offsets), pa.nulls(int(offsets[-1])))
    for name in nulls:
        table = table.set_column(table.column_names.index(name), name, missing)
    return table
