"""The collate on generated tables of the contract, against a slow reference that walks over Python objects."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from model.columns import ColumnsConfig
from model.features.categorical import FittedIdentity, FittedVocabulary
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.features.numeric import FittedNumeric
from model.state import StateSpec

EPOCH = datetime.datetime(1970, 1, 1)


def seconds(count: int) -> datetime.timedelta:
    return datetime.timedelta(seconds=count)


# How the number n is held by a type, and what the model reads.
NUMBERS: dict[pa.DataType, Callable[[int], tuple[Any, float]]] = {
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32(), pa.int64()), lambda n: (n - 4, n - 4.0)),
    **dict.fromkeys((pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()), lambda n: (n, float(n))),
    **dict.fromkeys((pa.float16(), pa.float32(), pa.float64()), lambda n: (n / 4 - 1, n / 4 - 1)),
    **dict.fromkeys((pa.decimal128(9, 2), pa.decimal256(50, 2)), lambda n: (Decimal(n) / 4, n / 4)),
    pa.bool_(): lambda n: (n % 2 == 1, float(n % 2)),
    **dict.fromkeys((pa.date32(), pa.date64()), lambda n: ((EPOCH + seconds(86400 * n)).date(), 86400.0 * n)),
    **dict.fromkeys(
        (pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns", "UTC")),
        lambda n: (EPOCH + seconds(n - 4), n - 4.0),
    ),
    **dict.fromkeys((pa.time32("s"), pa.time64("us")), lambda n: ((EPOCH + seconds(n)).time(), float(n))),
    **dict.fromkeys((pa.duration("s"), pa.duration("ns")), lambda n: (seconds(n - 4), n - 4.0)),
}
TEXTS = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string())]
INTEGERS = [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64()]
LISTS = [pa.list_, pa.large_list]

WORDS = ("a", "b")
COLUMNS = FittedColumns(
    columns=ColumnsConfig.model_validate(
        {
            "sequence": [
                {"type": "numeric", "name": "x", "missing": 7},
                {"type": "numeric", "name": "v", "missing": 0.5},
                {"type": "one_hot", "source": {"type": "vocabulary", "name": "word"}},
                {"type": "one_hot", "source": {"type": "vocabulary", "name": "tags"}},
                {"type": "one_hot", "source": {"type": "identity", "name": "id", "buckets": 3}},
            ],
            "context": [
                {"type": "numeric", "name": "age", "missing": 9},
                {"type": "numeric", "name": "place", "missing": 0},
                {"type": "one_hot", "source": {"type": "vocabulary", "name": "city"}},
                {"type": "one_hot", "source": {"type": "identity", "name": "groups", "buckets": 5}},
            ],
        }
    ),
    sources={
        "numeric:x": FittedNumeric(name="x", dimension=1, fill=(7.0,)),
        "numeric:v": FittedNumeric(name="v", dimension=2, fill=(0.5, 0.5)),
        "vocabulary:word": FittedVocabulary(name="word", keys=WORDS),
        "vocabulary:tags": FittedVocabulary(name="tags", keys=WORDS, oov_buckets=0, several=True),
        "identity:id": FittedIdentity(name="id", buckets=3),
        "numeric:age": FittedNumeric(name="age", dimension=1, fill=(9.0,)),
        "numeric:place": FittedNumeric(name="place", dimension=2, fill=(0.0, 0.0)),
        "vocabulary:city": FittedVocabulary(name="city", keys=WORDS),
        "identity:groups": FittedIdentity(name="groups", buckets=5, several=True),
    },
)
LABEL = FittedLabel(
    name="y", weight="w", problem_type="classification", prediction_type="multiple_value", num_classes=3
)
STATE = StateSpec.of([(2,)])

# Generated tables -------------------------------------------------------------------------------------------------

MAYBE_NUMBER = st.none() | st.integers(0, 8)
WORD = st.sampled_from([None, "a", "b", "other"])
PAIR = st.none() | st.lists(st.integers(0, 8), min_size=2, max_size=2)
SEVERAL_WORDS = st.none() | st.lists(WORD, max_size=3)


@st.composite
def rows(draw: Any) -> dict[str, Any]:
    """A row of the contract; numbers stand as the n of NUMBERS. A row without steps may hold null for a list."""
    length = draw(st.integers(0, 4))

    def steps(entry: st.SearchStrategy[Any]) -> Any:
        found = draw(st.lists(entry, min_size=length, max_size=length))
        return None if not found and draw(st.booleans()) else found

    return {
        "x": steps(MAYBE_NUMBER),
        "v": steps(PAIR),
        "word": steps(WORD),
        "tags": steps(SEVERAL_WORDS),
        "id": steps(MAYBE_NUMBER),
        "age": draw(MAYBE_NUMBER),
        "place": draw(PAIR),
        "city": draw(WORD),
        "groups": draw(st.none() | st.lists(MAYBE_NUMBER, max_size=3)),
        "y": steps(st.integers(0, 2)),
        "w": draw(st.integers(0, 8)),
        "rnn_cell_state_0": draw(PAIR),
    }


@st.composite
def types(draw: Any) -> dict[str, Any]:
    """An Arrow type for each column, nested as the contract lets it be."""
    number, kind = st.sampled_from(list(NUMBERS)), st.sampled_from(LISTS)
    v, place = draw(number), draw(number)

    def pair(value: pa.DataType) -> pa.DataType:
        return draw(st.sampled_from([pa.list_(value, 2), pa.list_(value), pa.large_list(value)]))

    text, integer = st.sampled_from(TEXTS), st.sampled_from(INTEGERS)
    return {
        "x": draw(kind)(draw(number)),
        "v": draw(kind)(pair(v)),
        "word": draw(kind)(draw(text)),
        "tags": draw(kind)(draw(kind)(draw(text))),
        "id": draw(kind)(draw(integer)),
        "age": draw(number),
        "place": pair(place),
        "city": draw(text),
        "groups": draw(kind)(draw(integer)),
        "y": draw(kind)(draw(integer)),
        "w": pa.float32(),
        "rnn_cell_state_0": pair(pa.float32()),
    }


def value_type(arrow_type: pa.DataType) -> pa.DataType:
    while not (pa.types.is_primitive(arrow_type) or pa.types.is_decimal(arrow_type)) and hasattr(
        arrow_type, "value_field"
    ):
        arrow_type = arrow_type.value_type
    return arrow_type


def held(value: Any, arrow_type: pa.DataType) -> Any:
    """A value as the type holds it: n becomes a number, a date, …; lists keep their form."""
    if isinstance(value, list):
        return [held(each, arrow_type) for each in value]
    inner = value_type(arrow_type)
    return NUMBERS[inner](value)[0] if isinstance(value, int) and inner in NUMBERS else value


def table_of(data: list[dict[str, Any]], kinds: dict[str, pa.DataType], before: int, cuts: list[int]) -> pa.Table:
    """The rows as chunks, each a slice of a longer array that has other rows before and behind it."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    columns = {}
    for name, kind in kinds.items():
        raw = name in ("id", "groups", "y", "w", "rnn_cell_state_0")  # read as they are
        values = [row[name] if raw else held(row[name], kind) for row in data]
        around = values[:1] * before
        chunks = [
            pa.array(around + values[start:stop] + around, kind).slice(before * bool(values), stop - start)
            for start, stop in pairwise(edges)
        ]
        columns[name] = pa.chunked_array(chunks, kind)
    return pa.table(columns)


# The reference ----------------------------------------------------------------------------------------------------


def number(n: int | None, kind: pa.DataType, fill: float) -> float:
    return fill if n is None else float(np.float32(NUMBERS[value_type(kind)](n)[1]))


def numbers(pair: list[int] | None, kind: pa.DataType, fill: float) -> list[float]:
    return [fill, fill] if pair is None else [number(n, kind, fill) for n in pair]


def word(text: str | None, unknown: int) -> int:
    return -1 if text is None else {"a": 0, "b": 1}.get(text, unknown)


def padded(lists: list[list[Any]], fill: Any) -> list[list[Any]]:
    longest = max((len(entries) for entries in lists), default=0)
    return [entries + [fill] * (longest - len(entries)) for entries in lists]


def ids_padded(lists: list[list[list[int]]]) -> list[list[list[int]]]:
    """Ids of each step to the most that a step has, then steps to the longest row."""
    widest = max((len(entry) for entries in lists for entry in entries), default=0)
    wide = [[entry + [-1] * (widest - len(entry)) for entry in entries] for entries in lists]
    return padded(wide, [-1] * widest)


def reference(data: list[dict[str, Any]], kinds: dict[str, pa.DataType]) -> dict[str, Any]:
    """The batch as nested lists, a value at a time."""

    def steps(name: str) -> list[list[Any]]:
        return [row[name] or [] for row in data]

    groups = [[-1 if n is None else n % 5 for n in row["groups"] or []] for row in data]
    return {
        "lengths": [len(row["x"] or []) for row in data],
        "numeric:x": padded([[[number(n, kinds["x"], 7.0)] for n in row] for row in steps("x")], [0.0]),
        "numeric:v": padded([[numbers(n, kinds["v"], 0.5) for n in row] for row in steps("v")], [0.0, 0.0]),
        "vocabulary:word": ids_padded([[[word(w, 2)] for w in row] for row in steps("word")]),
        "vocabulary:tags": ids_padded([[[word(w, -1) for w in tags or []] for tags in row] for row in steps("tags")]),
        "identity:id": ids_padded([[[-1 if n is None else n % 3] for n in row] for row in steps("id")]),
        "numeric:age": [[number(row["age"], kinds["age"], 9.0)] for row in data],
        "numeric:place": [numbers(row["place"], kinds["place"], 0.0) for row in data],
        "vocabulary:city": [[word(row["city"], 2)] for row in data],
        "identity:groups": padded(groups, -1),
        "labels": padded(steps("y"), 0),
        "weights": padded([[float(row["w"])] * len(row["x"] or []) for row in data], 0.0),
        "state": [[float(n) for n in row["rnn_cell_state_0"] or (0, 0)] for row in data],
    }


def as_lists(batch: SequenceBatch) -> dict[str, Any]:
    assert batch.labels is not None
    assert batch.weights is not None
    assert batch.state is not None
    found = {key: tensor.tolist() for key, tensor in (batch.sequence | batch.context).items()}
    found |= {"labels": batch.labels.tolist(), "weights": batch.weights.tolist(), "state": batch.state[0].tolist()}
    return found | {"lengths": batch.lengths_B.tolist()}


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(rows(), min_size=1, max_size=5),
    types(),
    st.integers(0, 2),
    st.lists(st.integers(0, 5), max_size=3),
)
def test_a_batch_is_what_the_slow_reference_makes_of_the_rows(
    data: list[dict[str, Any]], kinds: dict[str, pa.DataType], before: int, cuts: list[int]
) -> None:
    table = table_of(data, kinds, before, cuts)
    found, expected = as_lists(collate(encode_rows(table, COLUMNS, LABEL, STATE))), reference(data, kinds)
    longest = max(expected["lengths"])
    for key, value in expected.items():
        if key in COLUMNS.sources and not longest and key in ("vocabulary:tags",):
            continue  # no step says how many ids one has
        assert found[key] == value, (key, kinds)


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
@pytest.mark.parametrize(
    "wrap", [*LISTS, lambda value: pa.list_(value, 3), pa.list_view], ids=["32", "64", "3", "view"]
)
def test_every_type_of_number_is_read_in_every_kind_of_list(kind: pa.DataType, wrap: Any) -> None:
    entries = [[held(n, kind) for n in (1, 2, None)], [held(n, kind) for n in (3, None, 5)], None]
    if wrap is not pa.list_view:
        array = pa.array([*entries, entries[0]], wrap(kind)).slice(1, 2)
    else:
        array = pa.array([entries[1], entries[2]], pa.list_view(pa.int64())) if kind == pa.int64() else None
        if array is None:
            flat = pa.array([each for entry in entries[:2] for each in entry], kind)
            array = pa.ListViewArray.from_arrays(pa.array([3, 0], pa.int32()), pa.array([3, 0], pa.int32()), flat)
    columns = FittedColumns(
        columns=ColumnsConfig.model_validate({"sequence": [{"type": "numeric", "name": "x", "missing": 7}]}),
        sources={"numeric:x": COLUMNS.sources["numeric:x"]},
    )
    batch = collate(encode_rows(pa.table({"x": array}), columns))
    assert batch.lengths_B.tolist() == [3, 0]
    assert batch.sequence["numeric:x"][0].tolist() == [[number(n, kind, 7.0)] for n in (3, None, 5)]
