"""Keys of entities: one type over all files, one name an entity, and the partition that holds all its rows.

Knows no Ray, no torch, no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.tables import compute as pc
from model.tables.arrow_lists import Array, plain
from model.tables.halving import errors_by_row
from model.tables.keys import key_type, key_values

KeyTypes = dict[str, pa.DataType]


def key_types(keys: Sequence[str], schemas: Mapping[str, pa.Schema]) -> KeyTypes:
    """The type that each key column has over all files (`schemas`, by file), whole numbers and texts made one width.

    DataError names the column and its types where files disagree.
    """
    found: KeyTypes = {}
    first: dict[str, str] = {}
    for file, schema in schemas.items():
        for name in keys:
            kind = unified(schema.field(name).type, file=file, column=name)
            if found.setdefault(name, kind) != kind and (common := key_type(kind)) == key_type(found[name]) is not None:
                found[name] = common
            elif found[name] != kind:
                raise DataError(
                    f"a key must have one type in data and states, but is {kind} here and {found[name]} in "
                    f"{first[name]}; write one of them again",
                    file=file,
                    column=name,
                )
            first.setdefault(name, file)
    return found


def unified(kind: pa.DataType, *, file: str | None = None, column: str | None = None) -> pa.DataType:
    """The type under which keys are compared and written."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_uint64(kind):
        return kind
    if types.is_integer(kind) or types.is_floating(kind):
        return pa.int64()
    if (
        isinstance(kind, pa.UuidType)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    ):
        return pa.string()
    if types.is_binary(kind) or types.is_large_binary(kind):
        return pa.binary()
    if types.is_fixed_size_binary(kind) or types.is_boolean(kind) or types.is_decimal(kind) or types.is_temporal(kind):
        return kind
    raise DataError(
        f"a key must hold texts, whole numbers, bytes, dates or times, but its type is {kind}",
        file=file,
        column=column,
    )


def key_columns(table: pa.Table, types: KeyTypes) -> dict[str, Array]:
    """The key columns of a table, in the types of `key_types`. DataError for a value that no key can be."""
    found = {}
    for name, kind in types.items():
        values = plain(table.column(name))
        found[name] = key_values(values, name) if kind in (pa.int64(), pa.string()) else values.cast(kind)
    return found


def valid_key_columns(table: pa.Table, types: KeyTypes) -> tuple[dict[str, Array], dict[int, DataError]]:
    """The key columns, null where a value can be no key, and what is wrong with the rows without one."""
    try:
        columns, errors = key_columns(table, types), {}
    except DataError:
        errors = errors_by_row(table.select(list(types)), lambda part: key_columns(part, types))
        places = [None if row in errors else row for row in range(table.num_rows)]
        columns = key_columns(table.take(pa.array(places, pa.int64())), types)
    return columns, without_key(columns) | errors


def without_key(columns: Mapping[str, Array]) -> dict[int, DataError]:
    """The rows whose key is null, with what is wrong."""
    errors = {}
    for name, array in columns.items():
        for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)):
            errors[int(row)] = DataError("a key must not be null", row=int(row), column=name)
    return errors


def key_bytes(columns: Mapping[str, Array]) -> Array:
    """One byte string a row, equal where all keys are equal. Several keys are joined with their lengths."""
    texts = [_bytes_of(array) for array in columns.values()]
    if len(texts) == 1:
        return texts[0]
    parts = []
    for text in texts:
        parts += [pc.binary_length(text).cast(pa.string()).cast(pa.binary()), text]
    return pc.binary_join_element_wise(*parts, b":")


def _bytes_of(array: Array) -> Array:
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return array.cast(pa.binary())
    if pa.types.is_temporal(kind):
        array = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return array.cast(pa.string()).cast(pa.binary())


def key_text(columns: Mapping[str, Array], row: int) -> str:
    """A row's key for people."""
    return ", ".join(f"{name} {array[row].as_py()!r}" for name, array in columns.items())


def partitions_of(names: Array, count: int) -> np.ndarray:
    """The partition of each name, int64, by a stable hash: equal names have equal ones, whoever computes them."""
    import pandas as pd  # takes a while to load, and only chained rows need it

    hashes: np.ndarray = pd.util.hash_array(names.to_numpy(zero_copy_only=False), categorize=False)
    return (hashes % np.uint64(count)).astype(np.int64)
