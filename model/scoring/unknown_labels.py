"""Labels that are not known yet, as `prepare --for-scoring` leaves them: null, and of no weight in an evaluation.

Knows no network and no files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from model.features.labels import FittedLabel, ProblemType
from model.tables import compute as pc
from model.tables.arrow_lists import is_list, plain, unnest

WEIGHT = "dynamic_rnn.known"  # the column that has no weight where the label is null


def without_unknown(table: pa.Table, label: FittedLabel) -> tuple[pa.Table, FittedLabel, int]:
    """The table with some label for null, the label that weighs these with 0, and how many there are."""
    if label.name not in table.column_names or is_list(plain(table.column(label.name)).type) != label.per_step:
        return table, label, 0  # encoding tells what is wrong
    column = plain(table.column(label.name))
    entries, offsets = unnest(column, label.name) if label.per_step else (column, np.zeros(0, np.int64))
    if not entries.null_count:
        return table, label, 0
    weights = label.model_copy(update={"class_weights": None}).encode_weights(table, np.diff(offsets))
    known = entries.is_valid().to_numpy(zero_copy_only=False)
    weights = np.where(known, np.float32(1) if weights is None else weights, np.float32(0))
    columns = _known(entries, label), pa.array(weights, pa.float32())
    if label.per_step:
        columns = tuple(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values) for values in columns)
    table = table.set_column(table.column_names.index(label.name), label.name, columns[0])
    return table.append_column(WEIGHT, columns[1]), label.model_copy(update={"weight": WEIGHT}), int((~known).sum())


def _known(entries: Any, label: FittedLabel) -> Any:
    value = label.class_values[0] if label.problem_type is ProblemType.CLASSIFICATION else 0
    if pa.types.is_null(entries.type):
        return pa.array([value] * len(entries))
    return pc.fill_null(entries, pa.scalar(value).cast(entries.type))
