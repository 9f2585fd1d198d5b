"""Encoding of the rows that can be encoded: what is wrong with the others is told row by row.

Batch prediction and serving use it. Knows no torch, no files, no Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from model.batches.encoded_rows import EncodedRows
from model.errors import DataError
from model.tables.halving import errors_by_row

Encode = Callable[[pa.Table], EncodedRows]


class ValidRows(NamedTuple):
    """The rows that can be encoded (None: there is none), their places in the table, and the errors of the others."""

    rows: EncodedRows | None
    places: np.ndarray
    errors: dict[int, DataError]


def encode_valid(table: pa.Table, encode: Encode) -> ValidRows:
    """What `encode` makes of a table that may hold bad rows. An error without a row stands at every row."""
    places = np.arange(table.num_rows)
    try:
        return ValidRows(encode(table), places, {})
    except DataError:
        errors = errors_by_row(table, encode, rowless_is_all=True)
    good = np.delete(places, list(errors))
    return ValidRows(encode(table.take(pa.array(good))) if len(good) else None, good, errors)
