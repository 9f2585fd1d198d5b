"""The doors of the server: what becomes a table, what becomes an error of its row, and what refuses the request."""

from __future__ import annotations

import contextlib
import json
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from model.columns import ColumnsConfig, Identity, Numeric, OneHot, Vocabulary
from model.errors import DataError
from model.features.categorical import FittedIdentity, FittedVocabulary
from model.features.fitted_columns import FittedColumns
from model.features.numeric import FittedNumeric
from model.scoring.scorer import Scored
from model.state import StateSpec
from model.tables.arrow_lists import list_lengths
from serve.config import LimitsConfig
from serve.wire.arrow_codec import ArrowDecoder, encode_arrow
from serve.wire.errors import RequestError
from serve.wire.inputs import Inputs, RequestRows
from serve.wire.json_codec import JsonDecoder, encode_json, to_lists

LIMITS = LimitsConfig(max_sequences_per_request=8, max_steps_per_request=20, max_string_length=10)
STATE = {"rnn_cell_state_0": [1, 2], "rnn_cell_state_1": [0.5, -0.5]}
GOOD: dict[str, Any] = {"char": ["a", "b"], "load": [[1, 2.5, 3], [4, 5, 6]], "package": "os", "kind": 3}


def make_inputs() -> Inputs:
    columns = ColumnsConfig(
        sequence=(OneHot(source=Vocabulary(name="char", keys=("a", "b"))), Numeric(name="load", dimension=3)),
        context=(
            OneHot(source=Vocabulary(name="package", keys=("os",))),
            OneHot(source=Identity(name="kind", buckets=4)),
        ),
    )
    sources = {
        "vocabulary:char": FittedVocabulary(name="char", keys=("a", "b")),
        "numeric:load": FittedNumeric(name="load", dimension=3),
        "vocabulary:package": FittedVocabulary(name="package", keys=("os",)),
        "identity:kind": FittedIdentity(name="kind", buckets=4),
    }
    return Inputs.of(FittedColumns(columns=columns, sources=sources), StateSpec.of([(2,), (2,)]))


INPUTS = make_inputs()


def decode(*sequences: Any) -> RequestRows:
    return JsonDecoder(INPUTS, LIMITS).decode(json.dumps({"sequences": sequences}).encode())


def features(**changes: Any) -> dict[str, Any]:
    return {"features": {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}}


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def good_table(rows: int = 2) -> pa.Table:
    return pa.table({name: pa.array([value] * rows) for name, value in GOOD.items()})


def decode_arrow(table: pa.Table, **options: Any) -> RequestRows:
    return ArrowDecoder(INPUTS, LIMITS).decode(stream(table, **options))


def told(error: DataError) -> str:
    return str(error)


# JSON in --------------------------------------------------------------------------------------------------------


def test_json_rows_become_the_models_columns() -> None:
    request = decode({**features(), "state": STATE}, {**features(package=None), "state": None})
    assert (request.rows, request.good, request.errors) == (2, [0, 1], {})
    assert request.table.to_pylist() == [
        {**GOOD, **STATE},
        {**GOOD, "package": None, "rnn_cell_state_0": None, "rnn_cell_state_1": None},
    ]


def test_numbers_keep_the_precision_that_normalising_needs() -> None:
    second = 1_700_000_001.0
    assert decode(features(load=[[second, 0, 0]], char=["a"])).table.column("load").to_pylist() == [[[second, 0, 0]]]


def test_whole_floats_and_booleans_are_the_integers_they_are_by_both_doors() -> None:
    request = decode(features(kind=3.0), features(kind=True), features(load=[[True, 2, 3], [4.0, 5, False]]))
    assert request.errors == {}
    assert request.table.column("kind").to_pylist() == [3, 1, GOOD["kind"]]
    assert request.table.column("load").to_pylist()[2] == [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]
    for values, kind in (([3.0, 1.0], None), ([3, 1], pa.decimal128(38, 0))):
        assert decode_arrow(with_column("kind", values, kind)).table.column("kind").to_pylist() == [3, 1]
    assert decode_arrow(with_column("kind", [True, False])).table.column("kind").to_pylist() == [1, 0]


def test_bytes_are_text_in_arrow_requests() -> None:
    held = pa.array([b"a", b"b", b"\xff", b"b", b"a" * 11, b"b"])
    request = decode_arrow(good_table(3).set_column(0, "char", pa.ListArray.from_arrays([0, 2, 4, 6], held)))
    assert request.table.column("char").to_pylist() == [["a", "b"]]
    assert {row: told(error).partition(":")[0] for row, error in request.errors.items()} == {
        1: "column 'char'",
        2: "column 'char'",
    }


def test_one_event_and_no_event_are_sequences() -> None:
    request = decode(features(char=["a"], load=[[1, 2, 3]]), features(char=[], load=[]))
    assert request.errors == {}
    assert request.table.column("char").to_pylist() == [["a"], []]


def test_a_null_list_is_an_empty_one_by_every_door() -> None:
    nothing = {"char": None, "load": None, "kind": 1, "package": None}
    by_json = decode({"features": nothing})
    kinds = {"char": pa.list_(pa.string()), "load": pa.list_(pa.list_(pa.float64())), "package": pa.string()}
    by_arrow = decode_arrow(pa.table({name: pa.array([value], kinds.get(name)) for name, value in nothing.items()}))
    assert by_json.errors == by_arrow.errors == {}
    assert by_json.table.equals(by_arrow.table)
    for name in ("char", "load"):
        assert list_lengths(by_json.table.column(name), name).tolist() == [0]


JSON_FAULTS = [
    (features(chars=["a", "b"], char=...), "column 'chars': is not a feature of this model; did you mean char?"),
    (
        features(colour="red"),
        "column 'colour': is not a feature of this model; it reads char, load, kind, package",
    ),
    (
        features(kind=...),
        "column 'kind': must be given, but is missing; this model reads char, load, kind, package",
    ),
    (features(char="ab"), "column 'char': must be a list of strings, but is 'ab'"),
    (
        features(char=None),
        "column 'load': the lists of a row must be equally long, but this one has 2 steps where 'char' has 0",
    ),
    (features(char=["a", 1]), "column 'char': item 1 must be a string, but is 1"),
    (features(char=["a", "b" * 11]), "column 'char': item 1 must be a string of at most 10 characters, but has 11"),
    (features(package=7), "column 'package': must be a string, but is 7"),
    (features(kind=1.5), "column 'kind': must be an integer, but is 1.5"),
    (features(kind="7"), "column 'kind': must be an integer, but is '7'"),
    (features(kind=2.0**60), "column 'kind': must be written without a point or exponent where it is beyond 2^53"),
    (features(kind=2**63), "column 'kind': must be an integer of at most 64 bits, but is larger"),
    (
        features(load=[[1, 2, 3], [1, 2]]),
        "column 'load': item 1 must be a list of 3 numbers, but has 2 items",
    ),
    (features(load=[[1, 2, 3], 4]), "column 'load': item 1 must be a list of 3 numbers, but is 4"),
    (features(load=[[1, 2, 3], [1, "2", 3]]), "column 'load': item 1, item 1 must be a number, but is '2'"),
    (
        features(load=[[1, 2, 3], [1, float("nan"), 3]]),
        "column 'load': item 1, item 1 must be a finite number, but is nan",
    ),
    (
        features(load=[[1, 2, 3], [float("-inf"), 2, 3]]),
        "column 'load': item 1, item 0 must be a finite number, but is -inf",
    ),
    (
        features(load=[[1, 2, 3]]),
        "column 'load': the lists of a row must be equally long, but this one has 1 steps where 'char' has 2",
    ),
    ({"feature": {}}, "a sequence has features and state, but this has 'feature'; did you mean features?"),
    ({}, "features must be an object with a value for each column, but is null"),
    (3, "a sequence must be an object with features, but is 3"),
    (
        {**features(), "state": {"rnn_cell_state_0": [1, 2]}},
        "a state must have all of rnn_cell_state_0, rnn_cell_state_1 or none, but rnn_cell_state_1 is missing",
    ),
    (
        {**features(), "state": {**STATE, "rnn_cell_state_1": [1]}},
        "column 'rnn_cell_state_1': must be a list of 2 numbers, but has 1 items",
    ),
    (
        {**features(), "state": {**STATE, "rnn_cell_state_1": [1, float("inf")]}},
        "column 'rnn_cell_state_1': item 1 must be a finite number, but is inf",
    ),
    (
        {**features(), "state": {**STATE, "c": [1]}},
        "column 'c': is not a part of this model's state, which has rnn_cell_state_0, rnn_cell_state_1",
    ),
    (
        {**features(), "state": [1]},
        "state must be an object with rnn_cell_state_0, rnn_cell_state_1, but is a list of 1",
    ),
]


@pytest.mark.parametrize(("sequence", "message"), JSON_FAULTS)
def test_a_bad_row_is_told_and_leaves_its_mates_alone(sequence: Any, message: str) -> None:
    request = decode(features(), sequence, features(package="json"))
    assert request.good == [0, 2]
    assert {row: told(error) for row, error in request.errors.items()} == {1: message}
    assert request.table.column("package").to_pylist() == ["os", "json"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body must be JSON, but: EOF while parsing an object at line 1 column 1"),
        (b"[" * 10**6, 400, "the body must be JSON, but: recursion limit exceeded at line 1 column 202"),
        (b"[]", 422, 'the body must be an object {"sequences": [...]} with a list of sequences'),
        (b'{"sequences": {}}', 422, 'the body must be an object {"sequences": [...]} with a list of sequences'),
        (b'{"sequences": [], "x": 1}', 422, "the body must hold sequences and nothing else, but holds 'x'"),
        (
            json.dumps({"sequences": [{}] * 9}).encode(),
            413,
            "a request may hold 8 sequences, but this holds 9; split it",
        ),
        (
            json.dumps({"sequences": [features(char=["a"] * 11, load=[[1, 2, 3]] * 11)] * 2}).encode(),
            413,
            "a request may hold 20 steps, but this holds 22; split it",
        ),
    ],
    ids=["cut", "deep", "a list", "no list", "other keys", "rows", "steps"],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, status: int, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        JsonDecoder(INPUTS, LIMITS).decode(body)
    assert (caught.value.status, caught.value.message) == (status, message)


def test_a_number_too_large_for_a_float_is_an_error_of_its_row() -> None:
    body = b'{"sequences": [{"features": {"char": [], "load": [[1, 2, 1e999]], "package": "os", "kind": 1}}]}'
    (error,) = JsonDecoder(INPUTS, LIMITS).decode(body).errors.values()
    assert told(error) == "column 'load': item 0, item 2 must be a finite number, but is inf"


# Arrow in -------------------------------------------------------------------------------------------------------


def test_arrow_columns_become_the_models_columns_and_others_are_ignored() -> None:
    table = good_table().append_column("path", pa.array(["a.py", "b.py"]))
    request = decode_arrow(table)
    assert request.table.equals(decode(features(), features()).table)
    assert (request.rows, request.good, request.errors) == (2, [0, 1], {})


def test_arrow_states_may_be_null_in_a_row() -> None:
    table = good_table()
    for name, values in STATE.items():
        table = table.append_column(name, pa.array([values, None], pa.list_(pa.float64())))
    assert decode_arrow(table).table.equals(decode({**features(), "state": STATE}, features()).table)


def test_arrow_in_several_batches_and_slices_is_the_same() -> None:
    table = pa.concat_tables([good_table(1), good_table(3).slice(1, 1)])
    assert decode_arrow(table).table.equals(decode(features(), features()).table)


def with_column(name: str, values: list[Any], arrow_type: pa.DataType | None = None) -> pa.Table:
    table = good_table(len(values))
    return table.set_column(table.column_names.index(name), name, pa.array(values, arrow_type))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            with_column("load", [[[1, 2, 3]] * 2, [[1, 2, float("nan")]] * 2], pa.list_(pa.list_(pa.float32()))),
            "column 'load': must hold finite numbers, but holds NaN or an infinite one",
        ),
        (
            with_column("char", [["a", "b"], ["a", "b" * 11]]),
            "column 'char': must hold strings of at most 10 characters, but holds a longer one",
        ),
    ],
    ids=["NaN", "long"],
)
def test_a_bad_arrow_row_is_told_and_leaves_its_mates_alone(table: pa.Table, message: str) -> None:
    request = decode_arrow(table)
    assert request.good == [0]
    assert {row: told(error) for row, error in request.errors.items()} == {1: message}
    assert request.table.num_rows == 1


def test_ragged_arrow_vectors_are_errors_of_their_rows() -> None:
    ragged = with_column("load", [[[1, 2, 3]] * 2, [[1, 2, 3], [1, 2]], [[1, 2, 3]] * 2])
    request = decode_arrow(ragged)
    assert request.good == [0, 2]
    # What follows is Arrow's own reason, in the words of its version.
    (error,) = request.errors.values()
    wanted = "list<item: fixed_size_list<item: double>[3]>"
    assert told(error).startswith(f"column 'load': must be {wanted}, but is list<item: list<item: int64>>: ")


def test_arrow_values_that_would_lose_something_are_errors_of_their_rows() -> None:
    request = decode_arrow(with_column("kind", [1, 1.5]))
    assert request.good == [0]
    assert told(request.errors[1]).startswith("column 'kind': must be int64, but is double: ")


@pytest.mark.parametrize(
    ("table", "status", "message"),
    [
        (
            good_table().drop(["kind", "load"]),
            422,
            "the table must have the model's columns, but load, kind is missing",
        ),
        (
            good_table().append_column("rnn_cell_state_0", pa.array([[1.0, 2.0]] * 2)),
            422,
            "a state must have all of rnn_cell_state_0, rnn_cell_state_1 or none, but only rnn_cell_state_0 is there",
        ),
        (good_table(9), 413, "a request may hold 8 sequences, but this holds 9; split it"),
        (
            with_column("char", [["a"] * 21]),
            413,
            "a request may hold 20 steps, but this holds 21; split it",
        ),
        (
            with_column("package", ["os"]).set_column(2, "package", pa.array(["os"]).dictionary_encode()),
            422,
            "column 'package' must hold numbers, booleans, strings or bytes, or lists of them, but its type is "
            "dictionary<values=string, indices=int32, ordered=0>; cast it",
        ),
        (
            pa.Table.from_arrays([*good_table().columns, good_table()["kind"]], [*GOOD, "kind"]),
            422,
            "each column must be there once, but 'kind' stands twice",
        ),
    ],
    ids=["missing", "half a state", "rows", "steps", "dictionary", "twice"],
)
def test_a_table_of_other_columns_is_refused(table: pa.Table, status: int, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_arrow(table)
    assert (caught.value.status, caught.value.message) == (status, message)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_streams_are_refused_before_they_are_unpacked(codec: str) -> None:
    with pytest.raises(RequestError, match="must not be compressed"):
        decode_arrow(good_table(), compression=codec)


class Marked(pa.ExtensionType):  # type: ignore[misc]
    """An extension type that records that its code ran."""

    ran: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__(pa.int64(), "test.marked")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _serialized: bytes) -> Marked:
        cls.ran.append("deserialize")
        return cls()


def test_extension_types_are_refused_before_their_code_runs() -> None:
    column = pa.ExtensionArray.from_storage(Marked(), pa.array([3, 3]))
    table = good_table().append_column("key", column)
    pa.register_extension_type(Marked())
    try:
        body = stream(table)
        Marked.ran.clear()
        with pytest.raises(RequestError, match="must have no extension types"):
            ArrowDecoder(INPUTS, LIMITS).decode(body)
        assert Marked.ran == []
        with pa.ipc.open_stream(body) as reader:  # the test can fail: pyarrow alone runs it
            reader.read_all()
        assert Marked.ran == ["deserialize"]
    finally:
        pa.unregister_extension_type("test.marked")


def test_a_pickled_extension_type_is_refused_before_pyarrow_sees_it() -> None:
    pickled = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": "cos\nsystem\n"}
    table = good_table().append_column(pa.field("key", pa.int64(), metadata=pickled), pa.array([1, 2]))
    with pytest.raises(RequestError, match="must have no extension types"):
        decode_arrow(table)


def test_offsets_that_lie_are_refused() -> None:
    body = bytearray(stream(good_table(1)))
    good = np.array([0, 2], np.int32).tobytes()
    assert bytes(body).count(good) >= 1, "the offsets of a list of two"
    place = bytes(body).index(good)
    body[place : place + 8] = np.array([0, 2**30], np.int32).tobytes()
    with pytest.raises(RequestError) as caught:
        ArrowDecoder(INPUTS, LIMITS).decode(bytes(body))
    assert caught.value.status == 400


def test_damaged_streams_are_refused_and_never_crash() -> None:
    body = stream(good_table())
    generator = np.random.default_rng(7)
    for _ in range(300):
        damaged = bytearray(body)
        for place in generator.integers(0, len(body), 3):
            damaged[place] = generator.integers(0, 256)
        cut = damaged[: generator.integers(1, len(body) + 1)]
        # Anything but a RequestError fails the test, and a crash ends it.
        with contextlib.suppress(RequestError):
            assert ArrowDecoder(INPUTS, LIMITS).decode(bytes(cut)).rows <= LIMITS.max_sequences_per_request


def test_empty_arrow_lists_need_no_type() -> None:
    request = decode_arrow(pa.Table.from_pylist([{**GOOD, "char": [], "load": []}]))
    assert request.table.equals(decode(features(char=[], load=[])).table)


@pytest.mark.parametrize(
    "wide",
    [
        pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10**6, bool)), 10**6),
        pa.FixedSizeListArray.from_arrays(pa.nulls(10**6), 10**6),
    ],
    ids=["booleans", "nulls"],
)
def test_few_bytes_cannot_stand_for_many_values(wide: pa.Array) -> None:
    # A million booleans are 125 kB on the wire, and 8 MB as numbers; a million nulls are nothing at all.
    with pytest.raises(RequestError, match="holds 1000000 values in a body of"):
        decode_arrow(good_table(1).set_column(1, "load", wide))


# Answers --------------------------------------------------------------------------------------------------------


def scored_rows() -> tuple[RequestRows, Scored]:
    """Three rows, the second of which was not scored; of the scored two, the second has an error."""
    request = RequestRows(3, good_table(2), [0, 2], {1: DataError("is bad", column="char")})
    predictions = pa.table(
        {
            "classes": pa.array([["x", "y"], None], pa.large_list(pa.string())),
            "probabilities": pa.array([[[0.25, 0.75], [1, 0]], None], pa.large_list(pa.list_(pa.float32(), 2))),
        }
    )
    state = tuple(np.array([[i, 0.5], [0, 0]], np.float32) for i in range(2))
    return request, Scored(predictions, state, {1: DataError("is bad, too")})


def test_json_answers_keep_the_rows_places() -> None:
    request, scored = scored_rows()
    assert json.loads(encode_json(request, scored, INPUTS.state.names, "abc")) == {
        "model": "abc",
        "predictions": [
            {
                "classes": ["x", "y"],
                "probabilities": [[0.25, 0.75], [1, 0]],
                "state": {"rnn_cell_state_0": [0, 0.5], "rnn_cell_state_1": [1, 0.5]},
            },
            {"error": {"column": "char", "message": "is bad"}},
            {"error": {"column": None, "message": "is bad, too"}},
        ],
    }


def test_arrow_answers_keep_the_rows_places() -> None:
    request, scored = scored_rows()
    answer = encode_arrow(request, scored, INPUTS.state.arrow_fields(), "abc")
    table = pa.ipc.open_stream(answer).read_all()
    assert table.schema.metadata == {b"model": b"abc"}
    nothing = {"classes": None, "probabilities": None, "rnn_cell_state_0": None, "rnn_cell_state_1": None}
    assert table.to_pylist() == [
        {
            "classes": ["x", "y"],
            "probabilities": [[0.25, 0.75], [1, 0]],
            "rnn_cell_state_0": [0, 0.5],
            "rnn_cell_state_1": [1, 0.5],
            "error": None,
        },
        {**nothing, "error": "column 'char': is bad"},
        {**nothing, "error": "is bad, too"},
    ]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1.5, None, 2.0]),
        pa.array([[1, 2], [], None, [3]], pa.large_list(pa.int64())),
        pa.array([[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]], pa.list_(pa.list_(pa.float32(), 2))),
        pa.array([["a", None], ["b"]]),
        pa.array([[[1, 2]], [[3, 4]], None], pa.list_(pa.list_(pa.int8()), 1)),
    ],
    ids=str,
)
def test_lists_are_what_arrow_would_give(array: pa.Array) -> None:
    assert to_lists(array) == array.to_pylist()
    assert to_lists(array.slice(1)) == array.slice(1).to_pylist()
