"""Values that name something (categories, classes, keys of entities) in one form: strings, or int64.

A value is the same by every door: 7, 7.0, decimal 7 and, of booleans, true and 1 are one; bytes that hold UTF-8 are
text, UUIDs their canonical text. What has no such form is an error of its row. Knows no columns, no files.
"""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa

from model.errors import DataError
from model.tables import compute as pc
from model.tables.arrow_lists import Array

_EXACT = 2**53  # whole numbers beyond are not all floats: two keys would be one
_SHOWN_BYTES = 20
_NOT_WHOLE = "a category, class or key must be a whole number or a string, but one is {}"
_NOT_EXACT = "whole numbers beyond 2^53 are not exact as floats, but one is {}; store integers"
_TOO_LARGE = "integers must be less than 2^63, but one is {}; store them as strings"


def key_type(kind: pa.DataType) -> pa.DataType | None:
    """string or int64, by the type of plain values; null for nothing but nulls, None for what cannot name anything."""
    types = pa.types
    if isinstance(kind, pa.UuidType) or types.is_string(kind) or types.is_large_string(kind):
        return pa.string()
    if types.is_string_view(kind) or is_bytes(kind):
        return pa.string()
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return pa.int64()
    return pa.null() if types.is_null(kind) else None


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes without a meaning of their own."""
    types = pa.types
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(of_kind(kind) for of_kind in kinds)


def key_values(values: Array, name: str) -> Array:
    """Flat plain values as strings or int64, null as it is. DataError with the place of what is neither."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_int64(kind):
        return values
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.int64())
    if pa.types.is_floating(kind):
        return _whole(values.cast(pa.float64()), name)
    if pa.types.is_decimal(kind):
        return _whole_decimals(values, name)
    if is_bytes(kind):
        return _text(values, name)
    if pa.types.is_uint64(kind):
        beyond = pc.greater(values, pa.scalar(2**63 - 1, pa.uint64()))
        _refuse(beyond, values, name, _TOO_LARGE)
    wanted = key_type(kind)
    if wanted is None:
        raise DataError(f"must hold strings or integers, but its type is {kind}", column=name)
    return values.cast(pa.int64() if pa.types.is_null(wanted) else wanted)


def _whole(values: Array, name: str) -> Array:
    fractional = pc.invert(pc.equal(pc.floor(values), values))  # NaN, too, which equals nothing
    _refuse(fractional, values, name, _NOT_WHOLE)
    beyond = pc.greater(pc.abs(values), float(_EXACT))
    _refuse(beyond, values, name, _NOT_EXACT)
    return values.cast(pa.int64())


def _whole_decimals(values: Array, name: str) -> Array:
    wide = values.cast(pa.decimal256(76, max(values.type.scale, 0)))
    fractional = pc.not_equal(pc.floor(wide), wide)
    _refuse(fractional, values, name, _NOT_WHOLE)
    beyond = pc.greater_equal(pc.abs(wide), pa.scalar(Decimal(2**63), wide.type))
    _refuse(beyond, values, name, _TOO_LARGE)
    return wide.cast(pa.int64())


def _text(values: Array, name: str) -> Array:
    values = values.cast(pa.binary())
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid as error:
        place = next(place for place, value in enumerate(values.to_pylist()) if not _is_utf8(value or b""))
        shown = repr(values[place].as_py()[:_SHOWN_BYTES])
        raise DataError(f"bytes must hold text in UTF-8, but one holds {shown}", row=place, column=name) from error


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse(wrong: Array, values: Array, name: str, problem: str) -> None:
    """DataError at the first value that is wrong."""
    if pc.any(wrong, min_count=0).as_py():
        place = pc.index(pc.fill_null(wrong, False), True).as_py()
        raise DataError(problem.format(values[place].as_py()), row=place, column=name)
