"""Encoding, slicing, joining and transport of rows, against a slow reference that walks over Python objects."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches.arrow_transport import from_arrow, to_arrow
from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows, concat
from model.batches.reorder import take_across
from model.columns import ColumnsConfig
from model.features.categorical import FittedIdentity, FittedVocabulary
from model.features.encoded import Encoded
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.features.numeric import FittedNumeric
from model.state import StateSpec
from tests.fitting import column_stats

WORDS = FittedVocabulary(name="word", keys=("a", "b"), several=False)
TAGS = FittedVocabulary(name="tags", keys=("t", "u"), oov_buckets=0, several=True)
CITY = FittedVocabulary(name="city", keys=("rome",))
SOURCES: dict[str, Any] = {
    "numeric:x": FittedNumeric(name="x", dimension=1, fill=(7.0,), shift=(1.0,), scale=(2.0,)),
    "numeric:v": FittedNumeric(name="v", dimension=2, fill=(0.0, 0.5)),
    "vocabulary:word": WORDS,
    "vocabulary:tags": TAGS,
    "identity:id": FittedIdentity(name="id", buckets=3),
    "numeric:age": FittedNumeric(name="age", dimension=1, log1p=True),
    "vocabulary:city": CITY,
    "identity:groups": FittedIdentity(name="groups", buckets=5, several=True),
}


def one_hot(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": "one_hot", "source": {"type": kind, "name": name, **more}}


COLUMNS = FittedColumns(
    columns=ColumnsConfig.model_validate(
        {
            "sequence": [
                {"type": "numeric", "name": "x", "normalizer": "minmax", "missing": 7},
                {"type": "numeric", "name": "v", "missing": "mean"},
                one_hot("vocabulary", "word"),
                one_hot("vocabulary", "tags"),
                one_hot("identity", "id", buckets=3),
            ],
            "context": [
                {"type": "numeric", "name": "age", "normalizer": "log1p"},
                one_hot("vocabulary", "city"),
                one_hot("identity", "groups", buckets=5),
            ],
        }
    ),
    sources=SOURCES,
)
LABEL = FittedLabel(
    name="y", weight="w", problem_type="classification", prediction_type="multiple_value", num_classes=3
)
STATE = StateSpec.of([(2,), (1,)])

# The reference ------------------------------------------------------------------------------------------------


def float32(value: float) -> float:
    return float(np.float32(value))


def reference(row: dict[str, Any], number: int) -> dict[str, Any]:
    """What encoding makes of one row, a value at a time."""
    words = {None: -1, "a": 0, "b": 1}
    tags = {None: -1, "t": 0, "u": 1}
    length = len(row["x"] or [])
    return {
        "length": length,
        "row": number,
        "numeric:x": [[float32(((7.0 if x is None else x) - 1.0) * 2.0)] for x in row["x"] or []],
        "numeric:v": [
            [float32(d if f is None else f) for f, d in zip(v or [None, None], (0, 0.5), strict=True)]
            for v in row["v"] or []
        ],
        "vocabulary:word": [[words.get(word, 2)] for word in row["word"] or []],
        "vocabulary:tags": [[tags.get(tag, -1) for tag in step or []] for step in row["tags"] or []],
        "identity:id": [[-1 if i is None else i % 3] for i in row["id"] or []],
        "numeric:age": [float32(math.log1p(row["age"]))],
        "vocabulary:city": [{None: -1, "rome": 0}.get(row["city"], 1)],
        "identity:groups": [-1 if i is None else i % 5 for i in row["groups"] or []],
        "labels": row["y"] or [],
        "weights": [float32(row["w"])] * length,
        "state": [row["rnn_cell_state_0"] or [0, 0], row["rnn_cell_state_1"] or [0]],
    }


def as_python(rows: EncodedRows) -> list[dict[str, Any]]:
    """Encoded rows, each as the reference writes it."""
    steps_held = int(rows.lengths_B.sum())
    assert {len(entries(value)) for value in rows.sequence.values()} == {steps_held}
    assert {len(entries(value)) for value in rows.context.values()} == {len(rows)}
    found, start = [], 0
    for b, length in enumerate(rows.lengths_B.tolist()):
        steps = slice(start, start + length)
        start += length
        row = {"length": length, "row": rows.rows_B[b]}
        row |= {key: entries(value)[steps] for key, value in rows.sequence.items()}
        row |= {key: entries(value)[b] for key, value in rows.context.items()}
        span = steps if rows.per_step else slice(b, b + 1)
        for name in ("labels", "weights"):
            values = getattr(rows, name)
            row |= {} if values is None else {name: values[span].tolist()}
        row |= {} if rows.state is None else {"state": [part[b].tolist() for part in rows.state]}
        found.append(row)
    return found


def entries(encoded: Encoded) -> list[list[Any]]:
    values, offsets, _ = encoded
    if values.ndim == 2:
        return values.tolist()
    if offsets is None:
        return [[value] for value in values.tolist()]
    return [values[a:b].tolist() for a, b in pairwise(offsets)]


# Tables of the contract -----------------------------------------------------------------------------------------


def make_rows(lengths: list[int], seed: int) -> list[dict[str, Any]]:
    return [make_row(Random(f"{seed} {i}"), length) for i, length in enumerate(lengths)]


def make_row(random: Random, length: int) -> dict[str, Any]:
    def several(pick: Any, most: int) -> list[Any]:
        return [pick() for _ in range(random.randint(0, most))]

    def steps(pick: Any) -> list[Any] | None:
        return [pick() for _ in range(length)] if length or random.random() < 0.5 else None

    def number() -> float | None:
        return random.choice([None, 0.0, -1.5, float32(random.uniform(-100, 100))])

    def small() -> int | None:
        return random.choice([None, random.randint(-9, 9)])

    state = random.random() < 0.5
    return {
        "x": steps(number),
        "v": steps(lambda: random.choice([None, [number(), number()]])),
        "word": steps(lambda: random.choice([None, "a", "b", "c"])),
        "tags": steps(lambda: random.choice([None, several(lambda: random.choice([None, "t", "u", "?"]), 3)])),
        "id": steps(small),
        "age": random.randint(0, 99),
        "city": random.choice([None, "rome", "bonn"]),
        "groups": random.choice([None, several(small, 3)]),
        "y": [random.randint(0, 2) for _ in range(length)],
        "w": float32(random.uniform(0, 3)),
        "rnn_cell_state_0": [1.5, random.randint(-3, 3)] if state else None,
        "rnn_cell_state_1": [random.randint(-3, 3)] if state else None,
    }


TABLE = st.builds(make_rows, st.lists(st.integers(0, 4), max_size=5), st.integers(0, 2**32))
LISTS = st.sampled_from([pa.list_, pa.large_list])
STRINGS = st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
INTEGERS = st.sampled_from([pa.int8(), pa.int32(), pa.int64()])
FLOATS = st.sampled_from([pa.float32(), pa.float64()])
VECTORS = st.sampled_from([pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.large_list(pa.float32())])


@st.composite
def arrow_schemas(draw: st.DrawFn) -> pa.Schema:
    lists, inner, text, integer = draw(LISTS), draw(LISTS), draw(STRINGS), draw(INTEGERS)
    types = {
        "x": lists(draw(FLOATS)),
        "v": lists(draw(VECTORS)),
        "word": lists(text),
        "tags": lists(inner(text)),
        "id": lists(integer),
        "age": draw(FLOATS | INTEGERS),
        "city": text,
        "groups": inner(integer),
        "y": lists(integer),
        "w": draw(FLOATS),
        "rnn_cell_state_0": pa.list_(pa.float32(), 2),
        "rnn_cell_state_1": inner(draw(FLOATS)),
    }
    return pa.schema(list(types.items()))


OTHER = {
    "x": [0.5], "v": [[1, 2]], "word": ["b"], "tags": [["u"]], "id": [4], "age": 3, "city": "rome", "groups": [1],
    "y": [1], "w": 1, "rnn_cell_state_0": [9, 9], "rnn_cell_state_1": [9],
}  # fmt: skip


def table_of(rows: list[dict[str, Any]], schema: pa.Schema, before: int, cut: int) -> pa.Table:
    """The rows, cut out of a longer table and standing in two chunks."""
    table = pa.Table.from_pylist([OTHER] * before + rows + [OTHER], schema).slice(before, len(rows))
    return pa.concat_tables([table.slice(0, cut), table.slice(cut)])


# Tests ------------------------------------------------------------------------------------------------------


@given(TABLE, arrow_schemas(), st.integers(0, 2), st.integers(0, 5))
def test_encoding_is_what_walking_over_python_objects_gives(
    rows: list[Any], schema: pa.Schema, before: int, cut: int
) -> None:
    encoded = encode_rows(table_of(rows, schema, before, cut), COLUMNS, LABEL, STATE)
    assert as_python(encoded) == [reference(row, number) for number, row in enumerate(rows)]
    assert {key: value.values.dtype.name for key, value in (encoded.sequence | encoded.context).items()} == {
        key: "float32" if key.startswith("numeric") else "int32" for key in SOURCES
    }


SCHEMA = pa.schema(
    {
        "x": pa.list_(pa.float64()), "v": pa.list_(pa.list_(pa.float32(), 2)), "word": pa.list_(pa.string()),
        "tags": pa.list_(pa.list_(pa.string())), "id": pa.list_(pa.int64()), "age": pa.float64(), "city": pa.string(),
        "groups": pa.list_(pa.int64()), "y": pa.list_(pa.int64()), "w": pa.float64(),
        "rnn_cell_state_0": pa.list_(pa.float32(), 2), "rnn_cell_state_1": pa.list_(pa.float32(), 1),
    }
)  # fmt: skip


def encode(rows: list[dict[str, Any]], first: int = 0) -> EncodedRows:
    table = pa.Table.from_pylist(rows, SCHEMA)
    return encode_rows(table, COLUMNS, LABEL, STATE, np.arange(first, first + len(rows)))


@given(TABLE, st.integers(0, 5), st.integers(0, 5))
def test_a_slice_holds_those_rows(rows: list[Any], start: int, count: int) -> None:
    encoded = encode(rows)
    stop = min(start + count, len(rows))
    assert as_python(encoded.slice(min(start, stop), stop)) == as_python(encoded)[min(start, stop) : stop]


@given(TABLE, st.data())
def test_taking_rows_gives_them_in_that_order(rows: list[Any], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    whole = as_python(encode(rows))
    assert as_python(encode(rows).take(np.array(places, np.int64))) == [whole[place] for place in places]


@settings(max_examples=30)
@given(st.lists(TABLE, min_size=1, max_size=3))
def test_joined_parts_hold_all_rows_in_order(parts: list[Any]) -> None:
    joined = concat([encode(part) for part in parts])
    assert as_python(joined) == [row for part in parts for row in as_python(encode(part))]


@pytest.mark.parametrize("short_steps", [0, 1000], ids=["copied", "indexed"])
@given(st.lists(TABLE, min_size=1, max_size=3), st.randoms())
def test_gathered_parts_hold_their_rows_in_the_order_asked_for(
    short_steps: int, parts: list[Any], random: Random
) -> None:
    whole = [row for part in parts for row in as_python(encode(part))]
    places = random.sample(range(len(whole)), random.randint(0, len(whole)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.batches.reorder.SHORT_STEPS", short_steps)
        found = take_across([encode(part) for part in parts], np.array(places, np.int64))
    assert as_python(found) == [whole[place] for place in places]


def test_gathering_joins_parts_that_differ_in_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.batches.reorder.SHORT_STEPS", 0)
    schema = SCHEMA.set(2, pa.field("word", pa.list_(pa.list_(pa.string()))))
    several = encode_rows(pa.Table.from_pylist([OTHER | {"word": [["a", "b"]]}], schema), COLUMNS)
    single = encode_rows(pa.Table.from_pylist([OTHER], SCHEMA), COLUMNS)
    gathered = take_across([single, several, single], np.array([1, 2, 0]))
    assert entries(gathered.sequence["vocabulary:word"]) == [[0, 1], [1], [1]]
    without = encode_rows(pa.Table.from_pylist([OTHER], SCHEMA).drop_columns(["rnn_cell_state_0"]), COLUMNS, LABEL)
    with_state = encode_rows(pa.Table.from_pylist([OTHER], SCHEMA), COLUMNS, LABEL, STATE)
    state = take_across([without, with_state], np.array([1, 0])).state
    assert state is not None
    assert state[0].tolist() == [[9, 9], [0, 0]]


def test_parts_without_states_begin_at_zero_beside_parts_that_have_them() -> None:
    table = pa.Table.from_pylist([OTHER], SCHEMA)
    without = table.drop_columns(["rnn_cell_state_0", "rnn_cell_state_1"])
    parts = [encode_rows(part, COLUMNS, LABEL, STATE) for part in (without, table, without)]
    joined = concat(parts)
    assert joined.state is not None
    assert [part.tolist() for part in joined.state] == [[[0, 0], [9, 9], [0, 0]], [[0], [9], [0]]]
    assert concat(parts[::2]).state is None


def test_parts_with_one_id_a_step_join_parts_with_several() -> None:
    schema = SCHEMA.set(2, pa.field("word", pa.list_(pa.list_(pa.string()))))
    several = encode_rows(pa.Table.from_pylist([OTHER | {"word": [["a", "b"]]}], schema), COLUMNS)
    single = encode_rows(pa.Table.from_pylist([OTHER], SCHEMA), COLUMNS)
    assert entries(concat([single, several, single]).sequence["vocabulary:word"]) == [[1], [0, 1], [1]]


@settings(max_examples=30)
@given(st.lists(TABLE, min_size=1, max_size=3), st.integers(0, 9), st.integers(0, 9))
def test_transport_survives_cutting_and_joining_of_tables(parts: list[Any], start: int, count: int) -> None:
    table = pa.concat_tables([to_arrow(encode(part)) for part in parts]).slice(start, count)
    whole = [row for part in parts for row in as_python(encode(part))]
    assert as_python(from_arrow(table)) == whole[start : start + count]


@pytest.mark.parametrize("rows", [0, 3])
def test_transport_keeps_rows_without_labels_weights_and_states(rows: int) -> None:
    encoded = encode_rows(pa.Table.from_pylist([OTHER] * rows, SCHEMA), COLUMNS)
    back = from_arrow(to_arrow(encoded))
    assert as_python(back) == as_python(encoded)
    assert (back.labels, back.weights, back.state) == (None, None, None)


def test_transport_copies_no_values() -> None:
    encoded = encode([OTHER] * 3)
    back = from_arrow(to_arrow(encoded))
    assert np.shares_memory(back.sequence["numeric:v"].values, encoded.sequence["numeric:v"].values)


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.null())])
def test_a_table_of_nulls_holds_sequences_of_length_0(kind: pa.DataType) -> None:
    sequence = {name: pa.nulls(2, kind) for name in ("x", "v", "word", "tags", "id")}
    table = pa.table({**sequence, "age": [1, 2], "city": pa.nulls(2), "groups": pa.nulls(2)})
    encoded = encode_rows(table, COLUMNS)
    assert encoded.lengths_B.tolist() == [0, 0]
    assert encoded.context["vocabulary:city"].values.tolist() == [-1, -1]


def test_the_schema_is_what_clients_send() -> None:
    assert COLUMNS.input_schema() == pa.schema(
        {
            "id": pa.list_(pa.int64()),
            "tags": pa.list_(pa.list_(pa.string())),
            "word": pa.list_(pa.string()),
            "v": pa.list_(pa.list_(pa.float32(), 2)),
            "x": pa.list_(pa.float32()),
            "groups": pa.list_(pa.int64()),
            "city": pa.string(),
            "age": pa.float32(),
        }
    )
    assert COLUMNS.input_names == tuple(COLUMNS.input_schema().names)


def test_a_column_with_two_sources_stands_once_in_the_schema() -> None:
    columns = ColumnsConfig.model_validate(
        {"sequence": [{"type": "numeric", "name": "i"}, one_hot("identity", "i", buckets=2)]}
    )
    fitted = FittedColumns.fit(columns, column_stats(pa.table({"i": [[1, 2]]}), columns))
    assert fitted.input_schema() == pa.schema({"i": pa.list_(pa.int64())})
    assert entries(encode_rows(pa.table({"i": [[1, 2]]}), fitted).sequence["numeric:i"]) == [[1], [2]]
    assert entries(encode_rows(pa.table({"i": [[1, 2]]}), fitted).sequence["identity:i"]) == [[1], [0]]


def test_fitted_columns_survive_json() -> None:
    COLUMNS.encode(pa.Table.from_pylist([OTHER], SCHEMA))  # what encoding caches must not be written
    assert FittedColumns.model_validate_json(COLUMNS.model_dump_json()) == COLUMNS


@pytest.mark.parametrize("keys", [("a", "b"), (*map(str, range(1000)), "a", "b")])
def test_few_and_many_values_find_the_same_ids(keys: tuple[str, ...]) -> None:
    source = FittedVocabulary(name="word", keys=keys)
    values = ["b", None, "?", "a"]
    expected = [len(keys) - 1, -1, len(keys), len(keys) - 2]
    assert source.encode(pa.array(values)).values.tolist() == expected
    assert source.encode(pa.array(values * 1000)).values.tolist() == expected * 1000
