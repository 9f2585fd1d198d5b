"""Lists out of Arrow's buffers, against what Python reads from the same arrays."""

from __future__ import annotations

import datetime
from decimal import Decimal
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from model.tables import arrow_lists
from model.tables.arrow_lists import as_float32, list_lengths, numbers, offsets_of, owner, plain, stored_type, unnest

NESTED = st.lists(st.none() | st.lists(st.none() | st.integers(-9, 9), max_size=4), max_size=6)
MIDNIGHT = datetime.datetime(1970, 1, 2)
TWO_SECONDS = datetime.timedelta(seconds=2)


def assert_unnests(array: pa.Array, lists: list[list[Any] | None]) -> None:
    values, offsets = unnest(array, "x")
    assert values.to_pylist() == [value for entry in lists for value in entry or []]
    assert offsets.dtype == np.int64
    assert offsets.tolist() == [0, *accumulate(len(entry or []) for entry in lists)]


@given(NESTED, st.sampled_from([pa.list_, pa.large_list]), st.integers(0, 3), st.integers(0, 3))
def test_a_slice_of_lists_is_read_as_python_reads_it(lists: list[Any], kind: Any, before: int, after: int) -> None:
    around = [[7, 7]], [None, [8]]
    array = pa.array(around[0] * before + lists + around[1] * after, kind(pa.int64()))
    assert_unnests(array.slice(before, len(lists)), lists)


@given(st.lists(st.none() | st.lists(st.none() | st.integers(-9, 9), min_size=2, max_size=2), max_size=6))
def test_a_slice_of_fixed_size_lists_is_read_as_python_reads_it(lists: list[Any]) -> None:
    array = pa.array([[7, 7], *lists, [8, 8]], pa.list_(pa.int64(), 2)).slice(1, len(lists))
    assert_unnests(array, lists)


@given(st.lists(NESTED, max_size=4), st.sampled_from([pa.int64(), pa.dictionary(pa.int8(), pa.int64())]))
def test_chunks_and_dictionaries_are_read_as_python_reads_them(chunks: list[Any], entry: pa.DataType) -> None:
    column = pa.chunked_array([pa.array(chunk, pa.list_(entry)) for chunk in chunks], pa.list_(entry))
    assert_unnests(plain(column), [entry for chunk in chunks for entry in chunk])


def test_what_lies_hidden_behind_a_null_list_is_not_read() -> None:
    hiding = pa.ListArray.from_arrays(pa.array([0, 2, 5, 6]), pa.array(range(6)), mask=pa.array([False, True, False]))
    assert_unnests(hiding, [[0, 1], None, [5]])
    assert_unnests(hiding.slice(1), [None, [5]])


def test_an_extension_type_is_read_by_its_storage() -> None:
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    )
    assert plain(pa.chunked_array([tensors, tensors])).to_pylist() == [[1, 2], None, [1, 2], None]


def tensors(values: np.ndarray, permutation: list[int] | None = None, nulls: bool = False) -> pa.ExtensionArray:
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:], permutation=permutation)
    count = int(np.prod(values.shape[1:]))
    mask = pa.array([row == 1 for row in range(len(values))]) if nulls else None
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values.ravel(), count, mask=mask))


@pytest.mark.parametrize("permutation", [None, [0, 1], [1, 0]])
def test_a_tensor_of_steps_and_values_is_steps_of_values(permutation: list[int] | None) -> None:
    values = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    seen = values if permutation is None else values.transpose(0, *(axis + 1 for axis in permutation))
    array = plain(tensors(values, permutation))
    assert array.type == stored_type(tensors(values, permutation).type)
    assert array.to_pylist() == seen.tolist()
    assert plain(tensors(values, permutation).slice(1, 2)).to_pylist() == seen[1:3].tolist()
    with_null = plain(tensors(values, permutation, nulls=True))
    assert with_null.to_pylist() == [seen[0].tolist(), None, *seen[2:].tolist()]
    steps = seen.shape[1]
    assert unnest(with_null, "x").offsets.tolist() == [0, steps, steps, 2 * steps, 3 * steps]


def test_a_list_of_vectors_is_steps_of_values() -> None:
    array = pa.ListArray.from_arrays([0, 2, 3], tensors(np.arange(6, dtype=np.float32).reshape(3, 2)))
    assert unnest(array, "x").values.to_pylist() == [[0, 1], [2, 3], [4, 5]]


@given(NESTED, st.integers(0, 3))
def test_a_view_of_lists_is_read_as_python_reads_it(lists: list[Any], before: int) -> None:
    array = pa.array([[7, 7]] * before + lists + [[8]], pa.list_view(pa.int64()))
    assert_unnests(array.slice(before, len(lists)), lists)


def test_run_ends_are_read_as_python_reads_them() -> None:
    array = pc.run_end_encode(pa.array(["a", "a", None, "b"]))
    assert plain(pa.chunked_array([array, array.slice(1, 2)])).to_pylist() == ["a", "a", None, "b", "a", None]


def test_text_that_no_string_array_can_hold_is_not_lost() -> None:
    """More than 2 GiB, which Arrow leaves in several chunks; here the chunks are small."""
    column = pa.chunked_array([["a", "b"], ["c"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_lists, "_combined", lambda chunked: chunked)
        assert plain(column).to_pylist() == ["a", "b", "c"]
        assert plain(column).type == pa.large_string()


def test_a_null_list_is_an_empty_one() -> None:
    assert list_lengths(pa.chunked_array([[[1, 2], None], [[]]], pa.list_(pa.int8())), "x").tolist() == [2, 0, 0]


def test_a_column_that_is_no_list_is_named() -> None:
    with pytest.raises(DataError) as raised:
        unnest(pa.array([1, 2]), "x")
    assert str(raised.value) == "column 'x': must be a list, but its type is int64"


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        *[(pa.array([1, None, 100], kind), [1, np.nan, 100]) for kind in (pa.int8(), pa.int16(), pa.int32())],
        *[(pa.array([1, None, 100], kind), [1, np.nan, 100]) for kind in (pa.uint8(), pa.uint16(), pa.uint32())],
        (pa.array([2**63 - 1, None], pa.int64()), [float(2**63), np.nan]),
        (pa.array([2**64 - 1, None], pa.uint64()), [float(2**64), np.nan]),
        (pa.array([0.5, None], pa.float16()), [0.5, np.nan]),
        (pa.array([0.1, None], pa.float32()), [float(np.float32(0.1)), np.nan]),
        (pa.array([0.1, float("inf")], pa.float64()), [0.1, np.inf]),
        (pa.array([True, None, False]), [1, np.nan, 0]),
        (pa.array([Decimal("1.25"), None], pa.decimal128(10, 2)), [1.25, np.nan]),
        (pa.array([Decimal("-1.25"), None], pa.decimal256(50, 2)), [-1.25, np.nan]),
        *[(pa.array([MIDNIGHT, None], pa.timestamp(unit)), [86_400, np.nan]) for unit in ("s", "ms", "us", "ns")],
        (pa.array([MIDNIGHT, None], pa.timestamp("us", "UTC")), [86_400, np.nan]),
        (pa.array([MIDNIGHT, None], pa.timestamp("us", "Asia/Tokyo")), [86_400, np.nan]),
        (pa.array([MIDNIGHT.date(), None], pa.date32()), [86_400, np.nan]),
        (pa.array([MIDNIGHT.date(), None], pa.date64()), [86_400, np.nan]),
        (pa.array([datetime.time(1, 0, 0, 500_000), None], pa.time32("ms")), [3600.5, np.nan]),
        (pa.array([datetime.time(1, 0, 0, 500_000), None], pa.time64("ns")), [3600.5, np.nan]),
        *[(pa.array([TWO_SECONDS, None], pa.duration(unit)), [2, np.nan]) for unit in ("s", "ms", "us", "ns")],
        (pa.nulls(2), [np.nan, np.nan]),
        (pa.array([], pa.int8()), []),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_every_numeric_type_becomes_float64_and_null_becomes_nan(array: pa.Array, expected: list[float]) -> None:
    found = numbers(array, "x")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("array", [pa.array(["1.5"]), pa.array([b"1"]), pa.array([{"a": 1}]), pa.array([[1.0]])])
def test_what_is_no_number_is_refused_by_its_type_not_by_its_values(array: pa.Array) -> None:
    with pytest.raises(DataError) as raised:
        numbers(array, "x")
    assert str(raised.value) == f"column 'x': must hold numbers, but its type is {array.type}"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_an_entry_belongs_to_the_list_that_holds_it(lengths: list[int]) -> None:
    owners = [i for i, length in enumerate(lengths) for _ in range(length)]
    assert [owner(offsets_of(np.array(lengths)), entry) for entry in range(len(owners))] == owners


def test_what_float32_cannot_hold_becomes_infinite_without_a_warning() -> None:
    assert as_float32(np.array([1e39, -1e39, 1.5])).tolist() == [np.inf, -np.inf, 1.5]


def test_values_are_views_of_arrows_buffers() -> None:
    array = pa.array([[1.0, 2.0], [3.0]] * 3)
    values = unnest(array.slice(2, 2), "x").values
    assert values.buffers()[1].address == array.values.buffers()[1].address
    assert pc.equal(values, pa.array([1.0, 2.0, 3.0])).to_pylist() == [True] * 3
