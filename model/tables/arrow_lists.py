"""Arrow lists as flat values and offsets, read from the buffers and never through Python objects.

The one place that knows list, large_list, fixed_size_list and list_view, chunks, slices and nulls, and what number a
time is. Knows no columns, no torch, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from model.errors import DataError, listed
from model.tables import compute as pc

Array: TypeAlias = Any  # a pyarrow.Array; pyarrow ships no types


class Lists(NamedTuple):
    """`values[offsets[i]:offsets[i + 1]]` is list i; `offsets` is int64 [lists + 1] and starts at 0."""

    values: Array
    offsets: np.ndarray


def is_list(arrow_type: pa.DataType) -> bool:
    """Whether a type is one of Arrow's list types."""
    types = pa.types
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(kind(arrow_type) for kind in kinds)


def widened(arrow_type: pa.DataType) -> pa.DataType:
    """The type with float64 for float32: numbers are normalised before they are cast."""
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.list_(widened(arrow_type.value_type), arrow_type.list_size)
    if is_list(arrow_type):
        return pa.list_(widened(arrow_type.value_type))
    return pa.float64() if pa.types.is_floating(arrow_type) else arrow_type


def is_whole(array: Array) -> bool:
    """Whether an array holds lists of a fixed size, none of them null: their places need no offsets."""
    return pa.types.is_fixed_size_list(array.type) and not array.null_count


def plain(array: Array) -> Array:
    """One contiguous array without chunks, extension type, dictionary or run-end encoding. UUIDs become text."""
    if isinstance(array, pa.ChunkedArray):
        array = _joined(array)
    if isinstance(array, pa.ExtensionArray):
        array = _stored(array)
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def _stored(array: Array) -> Array:
    """The values of an extension type: tensors as lists in lists, UUIDs as text, others as they are stored."""
    if is_tensor(array.type):
        return _tensor_lists(array)
    return _uuid_texts(array.storage) if isinstance(array.type, pa.UuidType) else array.storage


def is_tensor(arrow_type: pa.DataType) -> bool:
    """Whether values are tensors of two dimensions or more, which are lists in lists when they are `plain`."""
    return isinstance(arrow_type, pa.FixedShapeTensorType) and len(arrow_type.shape) > 1 and 0 not in arrow_type.shape


def stored_type(arrow_type: pa.BaseExtensionType) -> pa.DataType:
    """The type that an array of an extension type has when it is `plain`."""
    if isinstance(arrow_type, pa.UuidType):
        return pa.string()
    if not is_tensor(arrow_type):
        return arrow_type.storage_type
    return shaped_type(arrow_type.storage_type.value_type, _shape(arrow_type))


def shaped_type(value: pa.DataType, shape: Sequence[int]) -> pa.DataType:
    """The type of tensors as lists of a fixed size."""
    for size in reversed(shape):
        value = pa.list_(value, size)
    return value


def _shape(kind: pa.DataType) -> list[int]:
    """A tensor's dimensions as it is to be seen; in memory its axes may stand in another order."""
    return [kind.shape[axis] for axis in kind.permutation or range(len(kind.shape))]


def _tensor_lists(array: Array) -> Array:
    """Tensors as lists of a fixed size: [T, D] is a list of T lists of D values each."""
    kind, storage = array.type, array.storage
    count = storage.type.list_size
    values = storage.values.slice(storage.offset * count, len(array) * count)
    order = list(kind.permutation or range(len(kind.shape)))
    if order != sorted(order):
        places = np.arange(len(values)).reshape(len(array), *kind.shape)
        values = values.take(pa.array(places.transpose(0, *(axis + 1 for axis in order)).reshape(-1)))
    return shaped(values, _shape(kind), array)


def shaped(values: Array, shape: Sequence[int], like: Array) -> Array:
    """The values of all tensors as lists of a fixed size, null where `like` is."""
    for size in reversed(shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return pa.FixedSizeListArray.from_arrays(values, shape[0], mask=like.is_null() if like.null_count else None)


_HEX = np.array([list(f"{byte:02x}".encode()) for byte in range(256)], np.uint8)
_DIGITS = np.flatnonzero(np.array(list("00000000-0000-0000-0000-000000000000")) == "0")


def _uuid_texts(storage: Array) -> Array:
    """UUIDs, 16 bytes each, as their canonical text."""
    rows = len(storage)
    held = np.frombuffer(storage.buffers()[1] or b"", np.uint8)[storage.offset * 16 :][: rows * 16].reshape(-1, 16)
    texts = np.full((rows, 36), ord("-"), np.uint8)
    texts[:, _DIGITS] = _HEX[held].reshape(rows, 32)
    found = pa.FixedSizeBinaryArray.from_buffers(pa.binary(36), rows, [None, pa.py_buffer(texts)]).cast(pa.string())
    return pc.if_else(storage.is_valid(), found, None) if storage.null_count else found


def _joined(column: Array) -> Array:
    """The chunks of a column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    array = _combined(column)
    if not isinstance(array, pa.ChunkedArray):
        return array
    if not len(array):  # an empty column combines to no chunk at all
        return pa.array([], array.type)
    return column.cast(large(column.type)).combine_chunks()


def _combined(column: Array) -> Array:
    """One array; or chunks still, where they are more than 2 GiB of text, which one string array cannot hold."""
    try:
        return column.combine_chunks()
    except pa.ArrowInvalid:  # what it says of such text in lists
        return column


def large(kind: pa.DataType) -> pa.DataType:
    """The type with 64-bit offsets."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(large(kind.value_type), kind.list_size)
    if is_list(kind):
        return pa.large_list(large(kind.value_type))
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary(kind) else kind


def unnest(array: Array, column: str) -> Lists:
    """Takes one level of lists off; a null list is an empty one.

    `.values` ignores a slice's start and may hold data behind nulls, so it is cut by the offsets, or
    replaced by `flatten()` where there are nulls.
    """
    if not is_list(array.type):
        raise DataError(f"must be a list, but its type is {array.type}", column=column)
    if pa.types.is_fixed_size_list(array.type):
        return _unnest_fixed(array)
    views = pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type)
    if array.null_count or views:  # the lists of a view stand in any order
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        return Lists(plain(array.flatten()), offsets_of(lengths))
    offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return Lists(plain(values), offsets - offsets[0])


def _unnest_fixed(array: Array) -> Lists:
    width = array.type.list_size
    if array.null_count:
        lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), width, 0)
        return Lists(plain(array.flatten()), offsets_of(lengths))
    return Lists(fixed_values(array), np.arange(len(array) + 1, dtype=np.int64) * width)


def fixed_values(array: Array) -> Array:
    """The flat values of lists of a fixed size, none of them null."""
    width = array.type.list_size
    return plain(array.values.slice(array.offset * width, len(array) * width))


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Lengths [n] to int64 offsets [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(offsets: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """The places offsets[i] … offsets[i + 1] − 1 of each list i of `lists`, one behind the other."""
    counts = np.diff(offsets)[lists]
    within = np.arange(int(counts.sum())) - np.repeat(offsets_of(counts)[:-1], counts)
    places: np.ndarray = np.repeat(offsets[lists], counts) + within
    return places


def list_lengths(array: Array, column: str) -> np.ndarray:
    """Length of each list, int64; 0 for null."""
    return np.diff(unnest(plain(array), column).offsets)


_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # a second's parts
_DAY_SECONDS = 86_400


def numbers(array: Array, column: str) -> np.ndarray:
    """Primitive values to float64, null to NaN: numbers, booleans, decimals and times.

    Times count in seconds whatever their unit: timestamps and dates since 1970-01-01 00:00 UTC (those without a time
    zone as if they were UTC), times of day since midnight, durations as they are.
    """
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _seconds(array)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        # Arrow would parse strings that look like numbers, and so let the values decide about the type.
        raise DataError(f"must hold numbers, but its type is {kind}", column=column)
    return _floats(array)


def narrow_numbers(array: Array, column: str) -> np.ndarray:
    """`numbers`, but float32 without nulls as it is: a view of the array's memory, which nobody may write to."""
    if pa.types.is_float32(array.type) and not array.null_count:
        view: np.ndarray = array.to_numpy(zero_copy_only=True)
        return view
    return numbers(array, column)


def _seconds(array: Array) -> np.ndarray:
    kind = array.type
    counts = _floats(array.cast(pa.int64() if kind.bit_width == 64 else pa.int32()))
    if pa.types.is_date32(kind):
        return counts * _DAY_SECONDS
    return counts / _UNITS["ms" if pa.types.is_date64(kind) else kind.unit]


def _floats(array: Array) -> np.ndarray:
    result: np.ndarray = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return result


def as_float32(values: np.ndarray) -> np.ndarray:
    """Contiguous float32; what is beyond its range becomes infinite, which the callers refuse."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def owner(offsets: np.ndarray, entry: int) -> int:
    """Index of the list that holds flat entry `entry`."""
    return int(np.searchsorted(offsets, entry, side="right") - 1)


def require_column(table: pa.Table, name: str) -> Array:
    """A column as one plain array; a DataError that lists what there is when it is missing."""
    if name not in table.column_names:
        raise DataError(f"is not in the data; the columns are {listed(table.column_names)}", column=name)
    array = plain(table.column(name))
    held = array.type
    while is_list(held):
        held = held.value_type
    if pa.types.is_struct(held):
        fields = ", ".join(f"{name}.{field.name}" for field in held)
        raise DataError(f"must hold values or lists of them, but holds structs; name a field: {fields}", column=name)
    return array


def check_lengths(lengths_B: np.ndarray, name: str, expected_B: np.ndarray, expected_name: str) -> None:
    """All lists of a row are equally long, or a DataError names the first row where they are not."""
    wrong = lengths_B != expected_B
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"the lists of a row must be equally long, but this one has {lengths_B[row]} steps "
            f"where {expected_name} has {expected_B[row]}",
            row=row,
            column=name,
        )
