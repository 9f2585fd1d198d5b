"""Keys of entities: values that mean the same are one key, whatever file and type brings them."""

from __future__ import annotations

import uuid
from decimal import Decimal

import pyarrow as pa
import pytest

from model.errors import DataError
from pipelines.predict.entity_keys import key_bytes, key_types, valid_key_columns

ID = uuid.UUID(int=2**120 + 1)
UUIDS = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ID.bytes], pa.binary(16)))


def schemas(*kinds: pa.DataType) -> dict[str, pa.Schema]:
    return {f"{number}.parquet": pa.schema([("key", kind)]) for number, kind in enumerate(kinds)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([7]), pa.array([7.0])),
        (pa.array([7], pa.int8()), pa.array([Decimal(7)], pa.decimal128(38, 0))),
        (pa.array([7.0]), pa.array([Decimal(7)], pa.decimal128(38, 0))),
        (pa.array([7], pa.uint64()), pa.array([7])),
        (pa.array(["é"]), pa.array(["é".encode()])),
        (pa.array([str(ID)]), UUIDS),
    ],
)
def test_files_of_several_types_share_their_keys(one: pa.Array, other: pa.Array) -> None:
    types = key_types(["key"], schemas(one.type, other.type))
    found = [valid_key_columns(pa.table({"key": array}), types) for array in (one, other)]
    assert [errors for _, errors in found] == [{}, {}]
    assert found[0][0]["key"].equals(found[1][0]["key"])
    assert key_bytes(found[0][0]).equals(key_bytes(found[1][0]))


def test_keys_of_one_type_stay_as_they_are() -> None:
    for kind in (pa.decimal128(38, 0), pa.decimal128(9, 2), pa.binary(), pa.date32(), pa.bool_(), pa.uint64()):
        assert key_types(["key"], schemas(kind, kind)) == {"key": kind}


def test_what_can_be_no_key_is_an_error_of_its_row() -> None:
    table = pa.table({"key": pa.array([7.0, 7.5, None, 8.0])})
    columns, errors = valid_key_columns(table, key_types(["key"], schemas(pa.float64())))
    assert columns["key"].to_pylist() == [7, None, None, 8]
    assert {row: str(error) for row, error in sorted(errors.items())} == {
        1: "row 1, column 'key': a category, class or key must be a whole number or a string, but one is 7.5",
        2: "row 2, column 'key': a key must not be null",
    }


def test_numbers_and_texts_are_no_keys_of_one_data_set() -> None:
    with pytest.raises(DataError) as raised:
        key_types(["key"], schemas(pa.int64(), pa.string()))
    assert str(raised.value) == (
        "1.parquet, column 'key': a key must have one type in data and states, but is string here and int64 in "
        "0.parquet; write one of them again"
    )
