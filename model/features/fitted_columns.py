"""Rows of a table as encoded, still ragged arrays: the step between Arrow and padded tensors.

Encoding is where strings become ids and numbers are normalised; it runs in data tasks, in the estimator and
in the server alike. Knows no torch, no files, no Ray. `model.batches.collate` pads what this module encodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from model.columns import Column, ColumnsConfig, Leaf, leaves, source_key
from model.columns.config import source_of
from model.errors import DataError
from model.features.encoded import Encoded
from model.features.fit import Fitted, entry_to_row, fit_declared, with_boundaries
from model.features.sequence_table import SequenceTable
from model.features.shared_tables import check_same_ids, joint_stats
from model.features.stats import ColumnStats
from model.settings import Settings

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
        rows = SequenceTable.of(table, self.columns)
        lengths_B = rows.lengths_B
        groups: dict[Group, dict[str, Encoded]] = {"sequence": {}, "context": {}}
        for group, key, column in iterate_sources(self.columns):
            parts, offsets = rows.source_entries(column, group)
            try:
                groups[group][key] = self.sources[key].encode(*parts)
            except DataError as error:
                raise entry_to_row(error, offsets) from error.__cause__
        return lengths_B, groups["sequence"], groups["context"]
