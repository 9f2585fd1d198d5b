"""A table to encoded rows, by fitted columns and label. Knows no files, no torch, no Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.batches.encoded_rows import EncodedRows
from model.batches.plan import DataIndex
from model.columns import Embedding, source_key
from model.columns.config import source_of
from model.features.encoded import MISSING_ID, Encoded
from model.features.fitted_columns import GROUPS, FittedColumns
from model.features.labels import FittedLabel
from model.features.numeric import FittedNumeric
from model.features.sequence_table import SequenceTable
from model.state import StateSpec
from model.tables.arrow_lists import offsets_of


def encode_rows(
    table: pa.Table,
    columns: FittedColumns,
    label: FittedLabel | None = None,
    state_spec: StateSpec | None = None,
    rows_B: np.ndarray | None = None,
    *,
    unseen_labels: bool = False,
) -> EncodedRows:
    """A table's rows, encoded; with labels and weights where `label` is given, with states where the table has any.

    Labels of no class are a DataError, or UNSEEN where `unseen_labels` may be.
    """
    lengths_B, sequence, context = columns.encode(table)
    labels = None if label is None else label.encode(table, lengths_B, unseen=unseen_labels)
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
    rows = SequenceTable(padded, columns.columns)
    for group in GROUPS:
        for column in columns.columns.ordered(group):
            key = source_key(source_of(column))
            if isinstance(column, Embedding) and key not in found:
                parts, offsets = rows.source_entries(column, group)
                owners = np.arange(padded.num_rows)
                row_of_entry = owners if offsets is None else np.repeat(owners, np.diff(offsets))
                encoded = columns.sources[key].encode(*parts)
                found[key] = _looked_up(_weighing(encoded, column), row_of_entry, padded.num_rows)
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


def encoded_bytes(index: DataIndex, columns: FittedColumns, states: StateSpec | None = None) -> int:
    """About how many bytes all (selected) rows take once encoded, with one value a step of each categorical column.

    `states` are those that the rows bring.
    """
    widths = [fitted.dimension if isinstance(fitted, FittedNumeric) else 1 for fitted in columns.sources.values()]
    step_bytes = 4 * sum(widths) + 8 + 4  # label and weight
    row_bytes = 32 + (0 if states is None else states.row_bytes)
    return index.steps * step_bytes + index.rows * row_bytes
