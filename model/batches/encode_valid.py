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
        errors = _errors(table, 0, encode)
    good = np.delete(places, list(errors))
    return ValidRows(encode(table.take(pa.array(good))) if len(good) else None, good, errors)


def _errors(table: pa.Table, first: int, encode: Encode) -> dict[int, DataError]:
    """Errors of the bad rows, found by halving: k of n rows cost k·log n encodings, not n."""
    try:
        encode(table)
    except DataError as error:
        if error.row is None or table.num_rows == 1:
            return dict.fromkeys(range(first, first + table.num_rows), error.located(first_row=first))
        half = table.num_rows // 2
        return _errors(table.slice(0, half), first, encode) | _errors(table.slice(half), first + half, encode)
    return {}
