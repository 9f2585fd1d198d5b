"""Arrays, lists and sparse values of Python users as Arrow columns: sequences as one list a row, context as one entry.

What is padding is not decided here: every position given becomes a step, and `cut` drops those beyond a length.

B rows, T positions, D numbers a step, K ids a step. Knows no columns' declarations, no labels, no torch (tensors are
met by their `detach`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from model.errors import DataError, first_line
from model.tables import compute as pc
from model.tables.arrow_lists import Array, is_list, offsets_of, plain, unnest


class SparseValues(NamedTuple):
    """The original's sparse tensor: `values[i]` stands at `indices[i]` of an array of `dense_shape`."""

    indices: np.ndarray
    values: np.ndarray
    dense_shape: Sequence[int]


class Converted(NamedTuple):
    """A column, and for padded input the number of its positions T (None where rows have their own lengths)."""

    array: Array
    padded_steps: int | None = None


def sequence_array(value: Any, name: str, *, numeric: bool) -> Converted:
    """A feature as lists, one a row. Padded: arrays [B, T], [B, T, D or K], sparse [B, T, K]; ragged: lists, Arrow.

    In padded ids, '' and −1 are nothing. DataError for what cannot be read.
    """
    value = _unwrapped(value, name)
    if isinstance(value, SparseValues):
        _refuse_numeric(numeric, name)
        if len(value.dense_shape) < 2:
            raise DataError(f"must have shape [rows, steps, …], but has {list(value.dense_shape)}", column=name)
        rows, steps = value.dense_shape[0], value.dense_shape[1]
        return Converted(_fixed_lists(_sparse_entries(value, 2, name), rows, steps), steps)
    if isinstance(value, np.ndarray) and value.ndim >= 2:
        entries = _number_entries(value, 2) if numeric else _id_entries(value, 2)
        return Converted(_fixed_lists(entries, value.shape[0], value.shape[1]), value.shape[1])
    array = value if isinstance(value, pa.Array) else _from_lists(value, name)
    if not is_list(array.type) and not pa.types.is_null(array.type):
        raise DataError(
            f"a sequence column must have one list a row, or be an array of shape [rows, steps], but holds one "
            f"{array.type} a row",
            column=name,
        )
    return Converted(array)


def context_array(value: Any, name: str, *, numeric: bool) -> Array:
    """A feature with one entry a row: arrays [B], [B, D or K], sparse [B, K], lists, Arrow."""
    value = _unwrapped(value, name)
    if isinstance(value, SparseValues):
        _refuse_numeric(numeric, name)
        return _sparse_entries(value, 1, name)
    if isinstance(value, np.ndarray) and value.ndim >= 2:
        return _number_entries(value, 1) if numeric else _id_entries(value, 1)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _number_entries(value, 1) if numeric else _without_missing(value)
    return value if isinstance(value, pa.Array) else _from_lists(value, name)


def cut(array: Array, lengths_B: np.ndarray, name: str) -> Array:
    """Lists shortened to the rows' lengths; shorter ones are a DataError, what lies beyond is not read."""
    values, offsets = unnest(array, name)
    held = np.diff(offsets)
    if len(held) != len(lengths_B):
        raise DataError(f"must have {len(lengths_B)} rows as sequence_length has, but has {len(held)}", column=name)
    if (held < lengths_B).any():
        row = int(np.argmax(held < lengths_B))
        raise DataError(f"sequence_length is {lengths_B[row]}, but there are {held[row]} steps", row=row, column=name)
    if (held == lengths_B).all():
        return array
    within = np.arange(len(values)) - np.repeat(offsets[:-1], held)
    kept = values.filter(pa.array(within < np.repeat(lengths_B, held)))
    return pa.LargeListArray.from_arrays(pa.array(offsets_of(lengths_B)), kept)


def vector(value: Any, name: str) -> np.ndarray:
    """One number a row, [B]; [B, 1] is taken, too."""
    array = np.asarray(_numpy(value))
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"must have shape [rows], but has {list(array.shape)}", column=name)
    return array


def _unwrapped(value: Any, name: str) -> Any:
    """Arrow as one plain array, tensors as numpy, sparse values by their three parts; others as they are."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return plain(value)
    if isinstance(value, Mapping):
        missing = [part for part in SparseValues._fields if part not in value]
        if missing:
            raise DataError(f"sparse values need indices, values and dense_shape; {missing[0]} is missing", column=name)
        value = SparseValues(value["indices"], value["values"], value["dense_shape"])
    if all(hasattr(value, part) for part in SparseValues._fields):
        shape = [int(size) for size in value.dense_shape]
        return SparseValues(np.asarray(value.indices), _text(np.asarray(value.values)), shape)
    value = _numpy(value)
    return _text(value) if isinstance(value, np.ndarray) else value


def _numpy(value: Any) -> Any:
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    if hasattr(value, "to_numpy") and not isinstance(value, np.ndarray):  # pandas
        return value.to_numpy()
    return value


def _text(array: np.ndarray) -> np.ndarray:
    """Bytes as strings (UTF-8); other arrays as they are."""
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if array.dtype == object and array.size and all(isinstance(item, bytes) for item in array.flat):
        return np.array([item.decode() for item in array.flat], object).reshape(array.shape)
    return array


def _refuse_numeric(numeric: bool, name: str) -> None:
    if numeric:
        raise DataError("a numeric column must be an array or lists, but is sparse", column=name)


def _fixed_lists(entries: Array, rows: int, steps: int) -> Array:
    return pa.LargeListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int64) * steps), entries)


def _number_entries(array: np.ndarray, leading: int) -> Array:
    """The entries at `leading` axes: numbers, or vectors of all that lies beyond; NaN is missing."""
    width = int(np.prod(array.shape[leading:]))
    flat = pa.array(array.reshape(-1), from_pandas=True)
    vectors = array.ndim > leading and width != 1
    return pa.FixedSizeListArray.from_arrays(flat, width) if vectors and width else flat


def _id_entries(array: np.ndarray, leading: int) -> Array:
    """The entries at `leading` axes: ids or keys, or lists of those that are there."""
    several = int(np.prod(array.shape[leading:]))
    flat = _without_missing(array.reshape(-1))
    if several == 1:
        return flat
    valid = flat.is_valid().to_numpy(zero_copy_only=False)
    counts = valid.reshape(-1, several).sum(1)
    return pa.LargeListArray.from_arrays(pa.array(offsets_of(counts)), flat.drop_null())


def _without_missing(flat: np.ndarray) -> Array:
    """Flat ids with −1, or keys with '', as null: the original's marks of nothing in dense input."""
    values = pa.array(flat, from_pandas=True)
    if pa.types.is_signed_integer(values.type):
        return pc.if_else(pc.equal(values, -1), None, values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return pc.if_else(pc.equal(values, ""), None, values)
    return values


def _sparse_entries(sparse: SparseValues, leading: int, name: str) -> Array:
    """Entries of the positions at `leading` axes: one value or null where there is no further axis, else lists."""
    shape = sparse.dense_shape
    count = int(np.prod(shape[:leading]))
    indices = sparse.indices.reshape(-1, len(shape))
    if len(indices) != len(sparse.values) or (indices < 0).any() or (indices >= np.array(shape)).any():
        raise DataError(
            f"sparse indices must be one position inside {list(shape)} for each of the {len(sparse.values)} values",
            column=name,
        )
    flat = np.ravel_multi_index(tuple(indices.T), tuple(shape)) if len(indices) else np.zeros(0, np.int64)
    order = np.argsort(flat, kind="stable")
    position = flat[order] // max(int(np.prod(shape[leading:])), 1)
    values = pa.array(sparse.values[order])
    counts = np.bincount(position, minlength=count)
    if len(shape) > leading:
        return pa.LargeListArray.from_arrays(pa.array(offsets_of(counts)), values)
    place = np.full(count, -1)
    place[position] = np.arange(len(position))
    return values.take(pa.array(place, mask=place < 0))


def _from_lists(value: Any, name: str) -> Array:
    """Python lists (of lists, tuples or arrays) by Arrow's type inference."""
    rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in map(_numpy, value)]
    try:
        return plain(pa.array(rows))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(f"must be lists of one type, but: {first_line(error)}", column=name) from error
