"""Every kind of source, in sequences and as context, with one value and with several: against a slow reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.batches.arrow_transport import from_arrow, to_arrow
from model.batches.collate import collate
from model.batches.encode import encode_rows
from model.batches.encoded_rows import concat
from model.columns import (
    ColumnsConfig,
    Embedding,
    HashBucket,
    Numeric,
    Vocabulary,
    bucketized_column,
    crossed_column,
    one_hot_column,
    real_valued_column,
    sparse_column_with_hash_bucket,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
    sparse_column_with_vocabulary_file,
    weighted_sparse_column,
)
from model.errors import ConfigError, DataError
from model.features.fitted_columns import FittedColumns
from model.features.hashing import cross, cross_start, fingerprint
from model.network.network import InputLayer
from model.settings import build
from tests.fitting import column_stats

Step = list[Any]  # the values of one entry

# Two rows of three entries and of one; what an entry holds in each column, as a list of values.
ENTRIES: list[dict[str, Step]] = [
    {"w": ["a", "b"], "n": [3, 4], "v": [0.5, 2.0], "x": [1.0]},
    {"w": [], "n": [], "v": [], "x": [-1.0]},
    {"w": ["zz", "a", "b"], "n": [-1, 12, 3], "v": [1.5, 0.0, -2.0], "x": [7.0]},
    {"w": ["b"], "n": [3], "v": [0.25], "x": [2.0]},
]


def hashed(values: list[Any], buckets: int) -> list[int]:
    return [fingerprint(value) % buckets for value in values]


def crossed(parts: list[list[int]], buckets: int, hash_key: int | None) -> list[int]:
    found = []
    for combination in product(*parts):
        number = cross_start(1, hash_key)
        for value in combination:
            number = cross(number, np.array([value % 2**64], np.uint64), hash_key)
        found.append(int(number[0]) % buckets)
    return found


def interval(x: float) -> int:
    return sum(x >= edge for edge in (0, 2))


WORD = sparse_column_with_hash_bucket("w", 7)
PRICE = bucketized_column(real_valued_column("x"), [0, 2])
# (source, buckets, ids and weights of an entry)
SOURCES: dict[str, tuple[Any, int, Callable[[dict[str, Step]], list[tuple[int, float]]]]] = {
    "hashed words": (WORD, 7, lambda e: [(i, 1) for i in hashed(e["w"], 7)]),
    "hashed integers": (sparse_column_with_hash_bucket("n", 5), 5, lambda e: [(i, 1) for i in hashed(e["n"], 5)]),
    "several OOV buckets": (
        Vocabulary(name="w", keys=("b",), oov_buckets=4),
        5,
        lambda e: [(0 if word == "b" else 1 + fingerprint(word) % 4, 1) for word in e["w"]],
    ),
    "weighted words": (
        weighted_sparse_column(sparse_column_with_keys("w", ["a", "b"]), "v"),
        2,
        lambda e: [("ab".index(w), v) for w, v in zip(e["w"], e["v"], strict=True) if w in "ab"],
    ),
    "weighted integers": (
        weighted_sparse_column(sparse_column_with_integerized_feature("n", 5), "v"),
        5,
        lambda e: [(n % 5, v) for n, v in zip(e["n"], e["v"], strict=True)],
    ),
    "crossed words and integers": (
        crossed_column([sparse_column_with_keys("w", ["a"]), sparse_column_with_integerized_feature("n", 3)], 11),
        11,
        lambda e: [(i, 1) for i in crossed([e["n"], [fingerprint(word) for word in e["w"]]], 11, None)],
    ),
    "crossed with a key": (
        crossed_column([WORD, PRICE], 13, hash_key=5),
        13,
        lambda e: [(i, 1) for i in crossed([[fingerprint(w) for w in e["w"]], [interval(e["x"][0])]], 13, 5)],
    ),
}


def table_of(group: str, *, several: bool) -> pa.Table:
    """The entries as two rows of steps, or as four rows of context beside a number."""
    columns = {}
    for name in ENTRIES[0]:
        values = [entry[name] for entry in ENTRIES]
        if not several or name == "x":
            values = [value[0] if value else None for value in values]
        columns[name] = values if group == "context" else [values[:3], values[3:]]
    if group == "context":
        columns["clock"] = [[0.5], [1.5, 2.5], [], [3.5]]
    return pa.table(columns)


def declared(group: str, column: Any) -> ColumnsConfig:
    clock = real_valued_column("clock")
    return (
        ColumnsConfig(sequence=(column,))
        if group == "sequence"
        else ColumnsConfig(sequence=(clock,), context=(column,))
    )


def fitted_to(columns: ColumnsConfig, table: pa.Table) -> FittedColumns:
    return FittedColumns.fit(columns, column_stats(table, columns))


def entries_seen(group: str, fitted: FittedColumns, rows: Any) -> np.ndarray:
    """What the network reads of each entry that is there, [4, width]."""
    batch = collate(rows)
    part = InputLayer(fitted).represents("sequence" if group == "sequence" else "context")[0]
    found = part.read(batch.sequence if group == "sequence" else batch.context, torch.float32).detach().numpy()
    if group == "context":
        return found
    return np.concatenate([found[row, :length] for row, length in enumerate(batch.lengths_B.tolist())])


@pytest.mark.parametrize("several", [False, True], ids=["one value", "several values"])
@pytest.mark.parametrize("group", ["sequence", "context"])
@pytest.mark.parametrize("name", SOURCES)
def test_each_source_counts_the_ids_of_each_entry(name: str, group: str, several: bool) -> None:
    source, buckets, ids = SOURCES[name]
    table = table_of(group, several=several)
    columns = declared(group, one_hot_column(source))
    fitted = fitted_to(columns, table)
    fitted = build(FittedColumns, json.loads(fitted.model_dump_json()), where="model.json")  # as a bundle holds it
    expected = np.zeros((4, buckets))
    for row, entry in enumerate(ENTRIES):
        held = entry if several else {key: values[:1] for key, values in entry.items()}
        for each, weight in ids(held):
            expected[row, each] += weight
    rows = encode_rows(table, fitted)
    np.testing.assert_array_equal(entries_seen(group, fitted, rows), expected)
    # The same after cutting, joining, reordering and a journey between processes.
    count = table.num_rows
    again = concat([rows.slice(1, count), rows.slice(0, 1)]).take(np.array([count - 1, *range(count - 1)]))
    shipped = from_arrow(pa.concat_tables([to_arrow(again).slice(0, 1), to_arrow(again).slice(1)]))
    np.testing.assert_array_equal(entries_seen(group, fitted, shipped), expected)
    asked = encode_rows(table.cast(_wide(fitted.input_schema(), table)), fitted)
    np.testing.assert_array_equal(entries_seen(group, fitted, asked), expected)


def _wide(schema: pa.Schema, table: pa.Table) -> pa.Schema:
    """The schema that the model asks for, and the columns it does not read as they are."""
    return pa.schema([schema.field(f.name) if f.name in schema.names else f for f in table.schema])


def test_an_input_has_the_type_that_the_training_data_had() -> None:
    columns = ColumnsConfig(
        sequence=(
            one_hot_column(sparse_column_with_hash_bucket("n", 5)),
            one_hot_column(weighted_sparse_column(sparse_column_with_hash_bucket("w", 5), "v")),
            one_hot_column(crossed_column([sparse_column_with_hash_bucket("n", 5), PRICE], 5)),
        )
    )
    schema = fitted_to(columns, table_of("sequence", several=True)).input_schema()
    assert {field.name: str(field.type) for field in schema} == {
        "n": "list<item: list<item: int64>>",
        "x": "list<item: float>",
        "w": "list<item: list<item: string>>",
        "v": "list<item: list<item: float>>",
    }


def test_weights_may_be_missing_where_the_value_is() -> None:
    source = weighted_sparse_column(sparse_column_with_keys("w", ["a"]), "v")
    table = pa.table({"w": [["a", None]], "v": [[2.0, None]]})
    fitted = fitted_to(ColumnsConfig(sequence=(one_hot_column(source),)), table)
    assert entries_seen("sequence", fitted, encode_rows(table, fitted)).tolist() == [[2], [0]]
    lists = pa.table({"w": [[["a", None], None]], "v": [[[2.0, None], None]]})
    assert entries_seen("sequence", fitted, encode_rows(lists, fitted)).tolist() == [[2], [0]]
    nothing = pa.table({"w": [[None]], "v": pa.array([[[]]], pa.list_(pa.list_(pa.float32())))})
    assert entries_seen("sequence", fitted, encode_rows(nothing, fitted)).tolist() == [[0]]
    nothing = pa.table({"w": pa.array([[[]]], pa.list_(pa.list_(pa.string()))), "v": [[None]]})
    assert entries_seen("sequence", fitted, encode_rows(nothing, fitted)).tolist() == [[0]]


@pytest.mark.parametrize(
    ("words", "weights", "message"),
    [
        (["a"], [None], "row 1, column 'v': a weight must be a finite number, but is None"),
        (["a"], [float("inf")], "row 1, column 'v': a weight must be a finite number, but is inf"),
        ([["a"]], [[float("nan")]], "row 1, column 'v': a weight must be a finite number, but is nan"),
        ([["a", "b"]], [[1.0]],
         "row 1, column 'v': an entry must hold as many weights as 'w' has values, but this one holds 1 where that "
         "has 2"),
        ([["a"]], [1.0],
         "column 'v': must be nested as 'w' is, but holds a single weight an entry where that holds lists"),
        (["a"], [[1.0]],
         "column 'v': must be nested as 'w' is, but holds a list of weights an entry where that holds single values"),
        (["a"], ["1"], "column 'v': must hold numbers, but its type is string"),
        (["a", "b"], [1.0],
         "row 1, column 'v': the lists of a row must be equally long, but this one has 1 steps where 'w' has 2"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_told(words: Any, weights: Any, message: str) -> None:
    source = weighted_sparse_column(sparse_column_with_keys("w", ["a"]), "v")
    columns = ColumnsConfig(sequence=(one_hot_column(source),))
    first = pa.table({"w": pa.array([[], words]), "v": pa.array([[], weights])})
    fitted = fitted_to(columns, pa.table({"w": [["a"]], "v": [[1.0]]}))
    with pytest.raises(DataError) as raised:
        encode_rows(first, fitted)
    assert str(raised.value) == message


# Vocabularies in files --------------------------------------------------------------------------------------------


def test_a_vocabulary_is_read_when_the_columns_are_fitted(tmp_path: Any) -> None:
    path = tmp_path / "words.txt"
    path.write_text("b\nä\r\nthe third\n", encoding="utf-8")
    table = pa.table({"w": [["ä", "b", "q", None]]})
    column = one_hot_column(sparse_column_with_vocabulary_file("w", str(path), num_oov_buckets=2))
    fitted = fitted_to(ColumnsConfig(sequence=(column,)), table)
    path.unlink()
    kept = build(FittedColumns, json.loads(fitted.model_dump_json()), where="model.json")
    encoded = encode_rows(table, kept).sequence["vocabulary:w"]
    assert encoded.values.tolist() == [1, 0, 3 + fingerprint("q") % 2, -1]


@pytest.mark.parametrize(("size", "ids"), [(None, [1, 0, 2]), (2, [1, 0, -1]), (1, [-1, 0, -1])])
def test_lines_are_integers_where_the_data_are(tmp_path: Any, size: int | None, ids: list[int]) -> None:
    (tmp_path / "keys").write_text("7\n-3\n5")
    table = pa.table({"n": pa.array([[-3, 7, 5]], pa.list_(pa.int16()))})
    column = one_hot_column(sparse_column_with_vocabulary_file("n", str(tmp_path / "keys"), vocab_size=size))
    fitted = fitted_to(ColumnsConfig(sequence=(column,)), table)
    assert encode_rows(table, fitted).sequence["vocabulary:n"].values.tolist() == ids


@pytest.mark.parametrize(
    ("content", "values", "message"),
    [
        (None, ["a"], "must be a vocabulary, one key a line, but cannot be read: there is no such file"),
        (b"", ["a"], "must be a vocabulary, one key a line, but is empty"),
        (b"a\n\xff\n", ["a"], "must be a vocabulary in UTF-8, but byte 2 is not"),
        (b"a\nb\na\n", ["a"], "keys must be distinct, but 'a' stands in lines 1 and 3"),
        (b"1\n01\n", [1], "keys must be distinct, but 1 stands in lines 1 and 2"),
        (b"1\nx\n", [1], "the column holds integers, so each line must be one, but line 2 is 'x'"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_told(tmp_path: Any, content: bytes | None, values: Any, message: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    column = one_hot_column(sparse_column_with_vocabulary_file("w", str(path)))
    with pytest.raises(ConfigError) as raised:
        fitted_to(ColumnsConfig(sequence=(column,)), pa.table({"w": [values]}))
    assert str(raised.value) == f"{path}: {message}"


# Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["sequence", "context"])
def test_an_indicator_tells_what_was_missing(group: str) -> None:
    source = Numeric(name="x", missing=-5, indicator=True)
    values = pa.array([[1.0, None], None, [None, 4.0]], pa.list_(pa.float32(), 2))
    array = values if group == "context" else pa.array([values[:2].to_pylist(), values[2:].to_pylist()])
    table = pa.table({"x": array, "clock": [[1.0]] * len(array)})
    fitted = fitted_to(declared(group, source), table)
    assert entries_seen(group, fitted, encode_rows(table, fitted)).tolist() == [
        [1, -5, 0, 1], [-5, -5, 1, 1], [-5, 4, 1, 0],
    ]  # fmt: skip
    fitted = fitted_to(declared(group, bucketized_column(source, [0])), table)
    assert entries_seen(group, fitted, encode_rows(table, fitted)).tolist() == [
        [0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 1], [1, 0, 0, 1, 1, 0],
    ]  # fmt: skip
    assert InputLayer(fitted).width == (6 if group == "sequence" else 7)


def test_an_indicator_is_zero_where_nothing_is_missing() -> None:
    table = pa.table({"x": [[1.0, 2.0]]})
    fitted = fitted_to(ColumnsConfig(sequence=(Numeric(name="x", missing="mean", indicator=True),)), table)
    assert encode_rows(table, fitted).sequence["numeric:x"].values.tolist() == [[1, 0], [2, 0]]


def test_a_cross_leaves_out_what_is_missing_and_takes_every_dimension() -> None:
    source = crossed_column([bucketized_column(real_valued_column("x", default_value=0), [0, 2]), WORD], 1000)
    table = pa.table({"x": [[[1.0, 3.0], [None, -1.0]]], "w": [["a", None]]})
    fitted = fitted_to(ColumnsConfig(sequence=(one_hot_column(source),)), table)
    encoded = encode_rows(table, fitted).sequence["crossed:w_X_x"]
    expected = crossed([[fingerprint("a")], [1, 2 + 3]], 1000, None)  # the second dimension counts from 3
    assert (encoded.values.tolist(), encoded.offsets.tolist()) == (expected, [0, 2, 2])


# Declarations -----------------------------------------------------------------------------------------------------


def test_the_order_of_a_cross_is_that_of_its_names() -> None:
    parts = [sparse_column_with_hash_bucket("b", 2), sparse_column_with_keys("a", ["x"])]
    assert crossed_column(parts, 9).parts == crossed_column(parts[::-1], 9).parts
    assert crossed_column(parts, 9).name == "a_X_b"


def test_the_network_reads_the_new_sources_in_the_originals_order() -> None:
    columns = ColumnsConfig(
        sequence=tuple(
            Embedding(source=source, dimension=2)
            for source in (
                weighted_sparse_column(sparse_column_with_keys("a", ["x"]), "v"),
                sparse_column_with_vocabulary_file("a", "words.txt"),
                sparse_column_with_keys("b", ["x"]),
                sparse_column_with_integerized_feature("c", 3),
                HashBucket(name="d", buckets=3),
                crossed_column([HashBucket(name="e", buckets=3), HashBucket(name="f", buckets=2)], 3),
            )
            if source.name != "a" or source.type != "vocabulary"
        )
    )
    kinds = [column.source.type for column in columns.ordered("sequence") if isinstance(column, Embedding)]
    assert kinds == ["crossed", "hash_bucket", "identity", "vocabulary", "weighted"]
    file = Embedding(source=sparse_column_with_vocabulary_file("a", "words.txt"), dimension=2)
    keys = Embedding(source=sparse_column_with_keys("b", ["x"]), dimension=2)
    assert ColumnsConfig(sequence=(file, keys)).ordered("sequence") == (keys, file)


X = {"type": "numeric", "name": "x"}
HASH = {"type": "hash_bucket", "name": "w", "buckets": 3}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"sequence": [{**X, "indicator": True}]},
            "sequence.0: indicator needs `missing` to be mean or a number, but it is error, which refuses nulls",
        ),
        (
            {"sequence": [{"type": "one_hot", "source": {"type": "weighted", "source": HASH, "weights": "w"}}]},
            "sequence.0.source: weights must be another column than that of the values, but both are 'w'",
        ),
        (
            {"sequence": [{"type": "one_hot", "source": {"type": "crossed", "sources": [HASH, HASH], "buckets": 3}}]},
            "sequence.0.source: the columns crossed must be distinct, but 'w' stands twice",
        ),
        (
            {"sequence": [{"type": "one_hot", "source": {"type": "crossed", "sources": [HASH], "buckets": 3}}]},
            "sequence.0.source.sources must have at least 2 items, but has 1",
        ),
        (
            {
                "sequence": [{"type": "one_hot", "source": {"type": "weighted", "source": HASH, "weights": "v"}}],
                "context": [{"type": "numeric", "name": "v"}],
            },
            "a column must stand under sequence or under context, but 'v' stands in both",
        ),
        (
            {
                "sequence": [
                    {"type": "one_hot", "source": {"type": "weighted", "source": HASH, "weights": "v"}},
                    {"type": "embedding", "source": {**HASH, "buckets": 4}, "dimension": 2},
                ]
            },
            "the sources over one column must be equal, but those over 'w' differ",
        ),
        (
            {
                "sequence": [
                    {"type": "one_hot", "source": {"type": "vocabulary", "name": "w", "keys": ["a"], "file": "f"}}
                ]
            },
            "sequence.0.source: keys and file exclude each other; set one of them to null",
        ),
        (
            {"sequence": [{**X, "normalizer": "zscor"}]},
            "sequence.0: normalizer must be one of none, zscore, minmax, log1p, but is 'zscor'; did you mean zscore?; "
            "a function of your own must be registered by a module listed under `plugins:`",
        ),
    ],
)
def test_a_faulty_declaration_is_told(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(ColumnsConfig, columns, where="run.yaml")
    assert str(raised.value) == f"run.yaml: {message}"
