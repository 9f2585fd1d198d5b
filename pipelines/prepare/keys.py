"""Keys of events: values that mean the same are one key, whatever their type, and several columns are one key together.

Strings, UTF-8 bytes and uuids become text; whole numbers, be they integers, floats or decimals, become integers. Knows
no files and no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from model.tables import compute as pc
from model.tables.arrow_lists import Array, plain
from model.tables.keys import is_bytes

EXACT = 2**53  # whole numbers beyond are not all floats: two keys would be one


def key_type(kind: pa.DataType) -> pa.DataType | None:
    """The type under which keys of `kind` are compared and written; None where they are no keys."""
    types = pa.types
    if types.is_floating(kind) or (types.is_decimal(kind) and kind.scale == 0):
        return pa.int64()
    if is_bytes(kind):
        return pa.string()
    known = types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)
    return kind if known else None


def key_values(values: Array, kind: pa.DataType) -> tuple[Array, dict[int, str]]:
    """(the keys of a column as `kind`, null where there is none; what is wrong, by row)."""
    if values.type == kind:
        return values, {}
    values = values.cast(pa.binary()) if is_bytes(values.type) else values
    try:
        if not (pa.types.is_floating(values.type) and pc.any(pc.greater(pc.abs(values), EXACT)).as_py()):
            return values.cast(kind), {}
    except pa.ArrowInvalid:  # some value is none
        pass
    problems = {row: problem for row, value in enumerate(values.to_pylist()) if (problem := _problem(value, kind))}
    wrong = np.zeros(len(values), bool)
    wrong[list(problems)] = True
    return pc.if_else(pa.array(wrong), None, values).cast(kind), problems


def _problem(value: Any, kind: pa.DataType) -> str | None:
    if value is None:
        return None
    if isinstance(value, float) and EXACT < abs(value) < np.inf:
        return f"whole numbers beyond 2^53 are not exact as floats, but this key is {value}; store integers"
    try:
        pa.array([value]).cast(kind)
    except pa.ArrowInvalid:
        must = "text in UTF-8" if isinstance(value, bytes) else f"a whole number of {kind}"
        return f"a key must be {must}, but this is {value!r}"
    return None


def keys_of(table: pa.Table, names: Sequence[str]) -> Array:
    """One value a row, equal where the values of all `names` are; with no name all rows are one key's."""
    if not names:
        return pa.array(np.zeros(table.num_rows, np.int8))
    columns = [plain(table.column(name)) for name in names]
    if len(columns) == 1:
        return columns[0]
    texts = [column.cast(pa.string()) for column in columns]
    # Each with its length, or ("a", "bc") and ("ab", "c") would be one.
    parts = [part for text in texts for part in (pc.binary_length(text).cast(pa.string()), text)]
    return pc.binary_join_element_wise(*parts, ":")


def key_text(table: pa.Table, names: Sequence[str], row: int) -> str:
    """The key of a row for people: `key 7`, `key (7, 'a')`, or `the series` where there is no key."""
    values = [table.column(name)[row].as_py() for name in names]
    return "the series" if not values else f"key {values[0]!r}" if len(values) == 1 else f"key {tuple(values)!r}"
