"""Rows that break the contract: each is told with its row, its column and what must be."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from model.batches.encode import encode_rows
from model.columns import ColumnsConfig
from model.errors import DataError
from model.features.categorical import FittedIdentity, FittedVocabulary
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.features.numeric import FittedNumeric
from model.state import StateSpec

WORD = {"type": "vocabulary", "name": "word"}
IDENTITY = {"type": "identity", "name": "id", "buckets": 3}
COLUMNS = FittedColumns(
    columns=ColumnsConfig.model_validate(
        {
            "sequence": [
                {"type": "numeric", "name": "x", "normalizer": "minmax"},
                {"type": "numeric", "name": "v"},
                {"type": "one_hot", "source": WORD},
                {"type": "one_hot", "source": IDENTITY},
            ],
            "context": [{"type": "numeric", "name": "age", "normalizer": "log1p"}],
        }
    ),
    sources={
        "numeric:x": FittedNumeric(name="x", dimension=1, fill=(7.0,), shift=(1.0,), scale=(2.0,)),
        "numeric:v": FittedNumeric(name="v", dimension=2),
        "vocabulary:word": FittedVocabulary(name="word", keys=("a", "b")),
        "identity:id": FittedIdentity(name="id", buckets=3),
        "numeric:age": FittedNumeric(name="age", dimension=1, log1p=True),
    },
)
LABEL = FittedLabel(
    name="y", weight="w", problem_type="classification", prediction_type="multiple_value", num_classes=3
)
STATE = StateSpec.of([(2,), (1,)])
SCHEMA = pa.schema(
    {
        "x": pa.list_(pa.float64()),
        "v": pa.list_(pa.list_(pa.float32())),
        "word": pa.list_(pa.string()),
        "id": pa.list_(pa.int64()),
        "age": pa.float64(),
        "y": pa.list_(pa.int64()),
        "w": pa.float64(),
        "rnn_cell_state_0": pa.list_(pa.float32(), 2),
        "rnn_cell_state_1": pa.list_(pa.float32(), 1),
    }
)
ROW = {
    "x": [0.5], "v": [[1, 2]], "word": ["b"], "id": [4], "age": 3, "y": [1], "w": 1,
    "rnn_cell_state_0": [9, 9], "rnn_cell_state_1": [9],
}  # fmt: skip
EMPTY = ROW | {"x": [], "v": [], "word": [], "id": [], "y": []}
NAN = float("nan")


def error_of(rows: list[dict[str, Any]], **changed: Any) -> str:
    table = pa.Table.from_pylist([ROW, ROW, *rows], SCHEMA).slice(1)
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, [values])
    with pytest.raises(DataError) as raised:
        encode_rows(table, COLUMNS, LABEL, STATE)
    return str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"word": ["a", "b"]},
            "row 2, column 'word': the lists of a row must be equally long, but this one has 2 steps where 'id' has 1",
        ),
        ({"x": [NAN]}, "row 2, column 'x': must be finite numbers, but an entry is NaN; `nan_is_missing: true` of this "
                       "column, or under data, takes it for missing"),
        ({"v": [[0, float("inf")]]}, "row 2, column 'v': must be finite numbers, but an entry is infinite"),
        ({"x": [1e39]}, "row 2, column 'x': must lie within float32's range when normalised, but an entry does not"),
        ({"age": None}, "row 2, column 'age': must not be null; declare `missing: mean` or a number for this column "
                        "to fill nulls"),
        ({"age": -1}, "row 2, column 'age': log1p needs values above -1, but an entry is not"),
        ({"y": [3]}, "row 2, column 'y': must be one of the 3 classes (0, 1, 2), but is 3"),
        ({"y": [None]}, "row 2, column 'y': a label must not be null, but one is"),
        ({"y": [1, 1]}, "row 2, column 'y': the lists of a row must be equally long, but this one has 2 steps where "
                        "each sequence column has 1"),
        ({"w": -1}, "row 2, column 'w': a weight must be a number of at least 0, but is -1.0"),
        ({"w": None}, "row 2, column 'w': a weight must be a number of at least 0, but is None"),
        ({"rnn_cell_state_0": None}, "row 2: a state must have all of rnn_cell_state_0, rnn_cell_state_1 or none, but "
                                     "rnn_cell_state_0 is missing"),
        ({"rnn_cell_state_1": [NAN]}, "row 2, column 'rnn_cell_state_1': must be finite numbers, but a value is not"),
    ],
)  # fmt: skip
def test_a_bad_value_is_told_with_its_row_and_column(change: dict[str, Any], message: str) -> None:
    assert error_of([EMPTY, ROW | change, ROW]) == message


def test_the_row_that_is_named_holds_the_fault_and_not_a_null_or_a_small_number() -> None:
    filled = ROW | {"x": [None], "age": 0.5}
    rows = [filled, EMPTY, filled]
    assert error_of([*rows, ROW | {"x": [NAN]}]).startswith("row 4, column 'x': must be finite numbers")
    assert error_of([*rows, ROW | {"age": -1.5}]).startswith("row 4, column 'age': log1p needs values above -1")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"x": pa.array([1.0, 2.0])},
            "column 'x': a sequence column must hold lists, one a row, but its type is double; declare it under "
            "context if it has one value a row",
        ),
        (
            {"v": pa.array([[[1, 2]], [[1, 2, 3]]])},
            "row 1, column 'v': every entry must hold 2 values, but this one holds 3",
        ),
        ({"v": pa.array([[1.0], [2.0]])}, "row 0, column 'v': every entry must hold 2 values, but this one holds 1"),
        (
            {"word": pa.array([[1], [2]])},
            "column 'word': must hold values of type string as its vocabulary does, but holds int64",
        ),
        ({"id": pa.array([["a"], ["b"]])}, "column 'id': must hold integers, but its type is string"),
        (
            {"rnn_cell_state_1": pa.array([[1.0], [1.0, 2.0]])},
            "row 1, column 'rnn_cell_state_1': must hold 1 numbers, but holds 2",
        ),
    ],
)
def test_a_column_of_another_type_is_told(changed: dict[str, Any], message: str) -> None:
    assert error_of([ROW], **changed) == message


def test_a_missing_column_is_told_with_those_there_are() -> None:
    with pytest.raises(DataError) as raised:
        encode_rows(pa.table({"id": [[1]], "word": [["a"]]}), COLUMNS)
    assert str(raised.value) == "column 'v': is not in the data; the columns are id, word"
