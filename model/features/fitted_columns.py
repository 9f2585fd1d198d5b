"""Rows of a table as encoded, still ragged arrays: the step between Arrow and padded tensors.

Encoding is where strings become ids and numbers are normalised; it runs in data tasks, in the estimator and
in the server alike. Knows no torch, no files, no Ray. `model.batches.collate` pads what this module encodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from model.columns import Column, ColumnsConfig, Embedding, Leaf, data_columns, leaves, source_key
from model.columns.config import column_name, source_of
from model.errors import DataError
from model.features.encoded import MISSING_ID, Encoded
from model.features.fit import Fitted, entry_to_row, fit_declared, with_boundaries
from model.features.labels import FittedLabel, check_lengths, require_column
from model.features.shared_tables import check_same_ids, joint_stats
from model.features.stats import ColumnStats, stats_of
from model.settings import Settings
from model.state import StateSpec
from model.tables.arrow_lists import Array, is_list, offsets_of, ranges, unnest

Group = Literal["sequence", "context"]
GROUPS: tuple[Group, ...] = ("sequence", "context")


@dataclass(frozen=True)
class EncodedRows:
    """B sequences, ragged. Sequence values are flat over all steps in row order; context values one entry a row.

    `labels` and `weights` are flat over the steps where `per_step`, else one a row. `rows_B` are the rows'
    numbers in the data set, which seed their dropout masks. `state` holds one float32 [B, numel] a component.
    `looked_up` holds, by source key, ids a row (one list each) that count as looked up in training beyond those in
    the values: padding and fillers of padded input.
    """

    lengths_B: np.ndarray
    rows_B: np.ndarray
    sequence: dict[str, Encoded]
    context: dict[str, Encoded]
    per_step: bool = True
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None
    state: tuple[np.ndarray, ...] | None = None
    looked_up: dict[str, Encoded] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths_B)

    def slice(self, start: int, stop: int) -> EncodedRows:
        """Rows start … stop − 1; views, not copies."""
        first, last = int(self.lengths_B[:start].sum()), int(self.lengths_B[:stop].sum())
        span = slice(first, last) if self.per_step else slice(start, stop)
        return EncodedRows(
            lengths_B=self.lengths_B[start:stop],
            rows_B=self.rows_B[start:stop],
            sequence={key: _slice_entries(value, first, last) for key, value in self.sequence.items()},
            context={key: _slice_entries(value, start, stop) for key, value in self.context.items()},
            per_step=self.per_step,
            labels=None if self.labels is None else self.labels[span],
            weights=None if self.weights is None else self.weights[span],
            state=None if self.state is None else tuple(part[start:stop] for part in self.state),
            looked_up={key: _slice_entries(value, start, stop) for key, value in self.looked_up.items()},
        )

    def take(self, rows: np.ndarray) -> EncodedRows:
        """The rows at these places, in this order; copies."""
        steps = ranges(offsets_of(self.lengths_B), rows)
        span = steps if self.per_step else rows
        return EncodedRows(
            lengths_B=self.lengths_B[rows],
            rows_B=self.rows_B[rows],
            sequence={key: _take_entries(value, steps) for key, value in self.sequence.items()},
            context={key: _take_entries(value, rows) for key, value in self.context.items()},
            per_step=self.per_step,
            labels=None if self.labels is None else self.labels[span],
            weights=None if self.weights is None else self.weights[span],
            state=None if self.state is None else tuple(part[rows] for part in self.state),
            looked_up={key: _take_entries(value, rows) for key, value in self.looked_up.items()},
        )


def _slice_entries(encoded: Encoded, start: int, stop: int) -> Encoded:
    offsets = encoded.offsets
    if offsets is not None:
        offsets = offsets[start : stop + 1]
        start, stop, offsets = int(offsets[0]), int(offsets[-1]), offsets - offsets[0]
    weights = None if encoded.weights is None else encoded.weights[start:stop]
    return Encoded(encoded.values[start:stop], offsets, weights)


def _take_entries(encoded: Encoded, entries: np.ndarray) -> Encoded:
    offsets = encoded.offsets
    if offsets is not None:
        counts = np.diff(offsets)[entries]
        entries, offsets = ranges(offsets, entries), offsets_of(counts)
    weights = None if encoded.weights is None else encoded.weights[entries]
    return Encoded(encoded.values[entries], offsets, weights)


def concat(parts: Sequence[EncodedRows]) -> EncodedRows:
    """The rows of all parts (at least one), in order."""
    if len(parts) == 1:
        return parts[0]
    head = parts[0]

    def join(pick: str) -> np.ndarray | None:
        values = [getattr(part, pick) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    return EncodedRows(
        lengths_B=np.concatenate([part.lengths_B for part in parts]),
        rows_B=np.concatenate([part.rows_B for part in parts]),
        sequence={key: _join_entries([part.sequence[key] for part in parts]) for key in head.sequence},
        context={key: _join_entries([part.context[key] for part in parts]) for key in head.context},
        per_step=head.per_step,
        labels=join("labels"),
        weights=join("weights"),
        state=_join_states(parts),
        looked_up={key: _join_entries([part.looked_up[key] for part in parts]) for key in head.looked_up},
    )


def _join_states(parts: Sequence[EncodedRows]) -> tuple[np.ndarray, ...] | None:
    """Parts without states, beside some that have them, begin at zero."""
    widths = next(([array.shape[1] for array in part.state] for part in parts if part.state is not None), None)
    if widths is None:
        return None
    states = [part.state or tuple(np.zeros((len(part), width), np.float32) for width in widths) for part in parts]
    return tuple(np.concatenate(arrays) for arrays in zip(*states, strict=True))


def _join_entries(parts: list[Encoded]) -> Encoded:
    values = np.concatenate([part.values for part in parts])
    held = [part.weights for part in parts if part.weights is not None]
    weights = np.concatenate(held) if held else None
    if all(part.offsets is None for part in parts):
        return Encoded(values, None, weights)
    counts = [np.ones(len(p.values), np.int64) if p.offsets is None else np.diff(p.offsets) for p in parts]
    return Encoded(values, offsets_of(np.concatenate(counts)), weights)


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


def column_entries(table: pa.Table, column: Column, group: Group) -> tuple[Array, np.ndarray | None]:
    """`entries_of` the one data column that a column reads."""
    return entries_of(table, column_name(column), group)


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


def column_stats(table: pa.Table, columns: ColumnsConfig) -> dict[str, ColumnStats]:
    """Statistics of one fragment by source key, for `FittedColumns.fit` after merging in fragment order."""
    stats, quantiles = {}, columns.learned_boundaries()
    for group, key, leaf in iterate_leaves(columns):
        entries, offsets = entries_of(table, leaf.name, group)
        try:
            stats[key] = stats_of(leaf, entries, quantiles=leaf.name in quantiles)
        except DataError as error:
            raise entry_to_row(error, offsets) from error.__cause__
    return stats


def encode_rows(
    table: pa.Table,
    columns: FittedColumns,
    label: FittedLabel | None = None,
    state_spec: StateSpec | None = None,
    rows_B: np.ndarray | None = None,
) -> EncodedRows:
    """A table's rows, encoded; with labels and weights where `label` is given, with states where the table has any."""
    lengths_B, sequence, context = columns.encode(table)
    labels = None if label is None else label.encode(table, lengths_B)
    return EncodedRows(
        lengths_B=lengths_B,
        rows_B=np.arange(table.num_rows) if rows_B is None else rows_B,
        sequence=sequence,
        context=context,
        per_step=label is None or label.per_step,
        labels=labels,
        weights=None if label is None else label.encode_weights(table, lengths_B, labels),
        state=None if state_spec is None else state_spec.from_arrow(table),
    )


def padding_lookups(padded: pa.Table, columns: FittedColumns) -> dict[str, Encoded]:
    """The table rows that the original looks up in padded input, by source key: one list of ids a row of `padded`.

    That is every id at every position, padding included, and id 0, its filler, where a position holds none.
    """
    found: dict[str, Encoded] = {}
    for group in GROUPS:
        for column in columns.columns.ordered(group):
            key = source_key(source_of(column))
            if isinstance(column, Embedding) and key not in found:
                parts, offsets = source_entries(padded, column, group)
                owners = np.arange(padded.num_rows)
                rows = owners if offsets is None else np.repeat(owners, np.diff(offsets))
                encoded = columns.sources[key].encode(*parts)
                found[key] = _looked_up(_weighing(encoded, column), rows, padded.num_rows)
    return found


def _weighing(encoded: Encoded, column: Embedding) -> Encoded:
    """Without the ids whose weight is not positive, where the combiner leaves them out."""
    if encoded.weights is None or column.combiner == "sum":
        return encoded
    return Encoded(np.where(encoded.weights > 0, encoded.values, MISSING_ID), encoded.offsets)


def _looked_up(encoded: Encoded, row_of_entry: np.ndarray, rows: int) -> Encoded:
    """Ids of entries, and 0 for each entry without any, gathered a row."""
    ids, entry = encoded.values, np.arange(len(row_of_entry))
    if encoded.offsets is not None:
        entry = np.repeat(entry, np.diff(encoded.offsets))
    valid = ids >= 0
    empty = np.bincount(entry[valid], minlength=len(row_of_entry)) == 0
    ids = np.concatenate([ids[valid], np.zeros(int(empty.sum()), ids.dtype)])
    owner = np.concatenate([row_of_entry[entry[valid]], row_of_entry[empty]])
    return Encoded(ids[np.argsort(owner, kind="stable")], offsets_of(np.bincount(owner, minlength=rows)))
