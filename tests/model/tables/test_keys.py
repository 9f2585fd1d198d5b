"""Keys in one form: a value is the same category, class and key whatever Arrow type brings it."""

from __future__ import annotations

import uuid
from decimal import Decimal

import pyarrow as pa
import pytest

from model.columns import HashBucket, Identity, Vocabulary
from model.errors import DataError
from model.features.fit import fit_source
from model.features.hashing import fingerprint
from model.features.labels import FittedLabel, PredictionType, ProblemType, fit_classes, label_stats
from model.features.stats import stats_of
from model.tables.arrow_lists import plain
from model.tables.keys import key_type, key_values

IDS = [uuid.UUID(int=2**127 + 5), None, uuid.UUID("0123abcd-4567-89ef-0123-456789abcdef")]

SEVENS = {
    "int8": pa.array([7, None, 0], pa.int8()),
    "uint64": pa.array([7, None, 0], pa.uint64()),
    "float16": pa.array([7.0, None, -0.0], pa.float16()),
    "float32": pa.array([7.0, None, 0.0], pa.float32()),
    "float64": pa.array([7.0, None, 0.0]),
    "decimal of scale 0": pa.array([Decimal(7), None, Decimal(0)], pa.decimal128(38, 0)),
    "decimal of scale 2": pa.array([Decimal("7.00"), None, Decimal(0)], pa.decimal128(9, 2)),
    "decimal256": pa.array([Decimal(7), None, Decimal(0)], pa.decimal256(76, 0)),
}
TEXTS = {
    "large_string": pa.array(["é", None, ""], pa.large_string()),
    "string_view": pa.array(["é", None, ""], pa.string_view()),
    "binary": pa.array(["é".encode(), None, b""], pa.binary()),
    "large_binary": pa.array(["é".encode(), None, b""], pa.large_binary()),
    "binary_view": pa.array(["é".encode(), None, b""], pa.binary_view()),
}


@pytest.mark.parametrize("kind", SEVENS)
def test_whole_numbers_of_any_type_are_one_key_class_and_id(kind: str) -> None:
    values = SEVENS[kind]
    assert key_type(values.type) == pa.int64()
    assert key_values(values, "k").equals(pa.array([7, None, 0]))
    counted = stats_of(Vocabulary(name="k"), values)
    assert fit_source(Vocabulary(name="k"), counted).encode(values).values.tolist() == [1, -1, 0]
    assert fit_source(Vocabulary(name="k", keys=(0, 7)), counted).encode(values).values.tolist() == [1, -1, 0]
    assert fit_source(Identity(name="k", buckets=5), counted).encode(values).values.tolist() == [2, -1, 0]
    hashed = fit_source(HashBucket(name="k", buckets=99), counted).encode(values).values.tolist()
    assert hashed == [fingerprint(7) % 99, -1, fingerprint(0) % 99]
    assert fit_classes("k", label_stats("k", values)) == (2, (0, 7))


@pytest.mark.parametrize("kind", SEVENS)
def test_whole_numbers_of_any_type_are_declared_classes(kind: str) -> None:
    label = FittedLabel(
        name="k",
        problem_type=ProblemType.CLASSIFICATION,
        prediction_type=PredictionType.SINGLE_VALUE,
        num_classes=2,
        classes=(7, 0),
    )
    assert label.encode_entries(SEVENS[kind].drop_null(), None).tolist() == [0, 1]


@pytest.mark.parametrize("kind", TEXTS)
def test_text_of_any_type_is_one_key(kind: str) -> None:
    assert key_type(TEXTS[kind].type) == pa.string()
    assert key_values(TEXTS[kind], "k").equals(pa.array(["é", None, ""]))


def test_booleans_are_the_whole_numbers_0_and_1() -> None:
    assert key_values(pa.array([True, None, False]), "k").equals(pa.array([1, None, 0]))


@pytest.mark.parametrize("rows", [slice(0, 3), slice(1, 3), slice(2, 3), slice(0, 0)])
def test_uuids_are_their_canonical_text(rows: slice) -> None:
    stored = pa.array([None if each is None else each.bytes for each in [None, *IDS]], pa.binary(16))
    ids = pa.ExtensionArray.from_storage(pa.uuid(), stored).slice(1)[rows]
    assert key_type(ids.type) == pa.string()
    assert plain(ids).to_pylist() == [None if each is None else str(each) for each in IDS[rows]]


@pytest.mark.parametrize(
    ("values", "row", "problem"),
    [
        (pa.array([1.0, None, 7.5]), 2, "a category, class or key must be a whole number or a string, but one is 7.5"),
        (
            pa.array([1.0, float("nan")]),
            1,
            "a category, class or key must be a whole number or a string, but one is nan",
        ),
        (
            pa.array([None, Decimal("7.50")]),
            1,
            "a category, class or key must be a whole number or a string, but one is 7.50",
        ),
        (
            pa.array([2.0**53, 2.0**54]),
            1,
            "whole numbers beyond 2^53 are not exact as floats, but one is 1.8014398509481984e+16; store integers",
        ),
        (
            pa.array([Decimal(2**63 - 1), Decimal(2**63)], pa.decimal128(38, 0)),
            1,
            "integers must be less than 2^63, but one is 9223372036854775808; store them as strings",
        ),
        (
            pa.array([None, b"ok", b"\xff" * 30]),
            2,
            "bytes must hold text in UTF-8, but one holds b'" + r"\xff" * 20 + "'",
        ),
        (pa.array([1], pa.duration("s")), None, "must hold strings or integers, but its type is duration[s]"),
    ],
)
def test_what_can_be_no_key_is_told_with_its_place(values: pa.Array, row: int | None, problem: str) -> None:
    with pytest.raises(DataError) as raised:
        key_values(values, "k")
    assert (raised.value.row, raised.value.column, raised.value.problem) == (row, "k", problem)
