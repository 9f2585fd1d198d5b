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

UUID_BYTES = 16
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


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes without a meaning of their own."""
    types = pa.types
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(of_kind(kind) for of_kind in kinds)


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


def uuid_text(array: Array) -> Array:
    """uuids as their canonical text: 8-4-4-4-12 hexadecimal digits."""
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    known = pc.fill_null(storage, bytes(UUID_BYTES))
    raw = np.frombuffer(known.buffers()[1], np.uint8)[known.offset * UUID_BYTES :][: len(known) * UUID_BYTES]
    digits = np.frombuffer(raw.tobytes().hex().encode(), np.uint8).reshape(len(known), 2 * UUID_BYTES)
    text = np.full((len(known), 2 * UUID_BYTES + 4), ord("-"), np.uint8)
    text[:, [place for place in range(36) if place not in (8, 13, 18, 23)]] = digits
    offsets = pa.py_buffer(np.arange(len(known) + 1, dtype=np.int32) * text.shape[1])
    found = pa.Array.from_buffers(pa.string(), len(known), [None, offsets, pa.py_buffer(text.tobytes())])
    return pc.if_else(storage.is_valid(), found, None) if storage.null_count else found
