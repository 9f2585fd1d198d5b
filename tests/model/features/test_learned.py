"""Boundaries learned as quantiles, ids for unknown values, crosses within crosses: declared, fitted and kept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import reduce
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model import registry
from model.batches.collate import collate
from model.batches.encode import encode_rows
from model.columns import (
    Bucketized,
    ColumnsConfig,
    Crossed,
    Leaf,
    Numeric,
    Quantiles,
    Vocabulary,
    Weighted,
    bucketized_column,
    crossed_column,
    embedding_column,
    one_hot_column,
    real_valued_column,
    sparse_column_with_hash_bucket,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
    sparse_column_with_vocabulary_file,
)
from model.columns.config import needs_training_data
from model.errors import ConfigError, DataError
from model.features import quantile_sketch as quantiles
from model.features import stats
from model.features.fitted_columns import FittedColumns
from model.features.hashing import cross, cross_start, fingerprint
from model.features.stats import ColumnStats
from model.network.network import InputLayer
from model.settings import build
from model.settings.yaml_text import parse_yaml
from tests.fitting import column_stats


def columns_of(*columns: Any, context: Sequence[Any] = ()) -> ColumnsConfig:
    return ColumnsConfig(sequence=columns, context=tuple(context))


def fitted_to(columns: ColumnsConfig, *tables: pa.Table) -> FittedColumns:
    """Fitted to fragments that travelled, and kept in a model.json."""
    travelled = [
        {key: ColumnStats.from_plain(json.loads(json.dumps(stats.to_plain()))) for key, stats in part.items()}
        for part in (column_stats(table, columns) for table in tables)
    ]
    stats = {key: reduce(ColumnStats.merge, (part[key] for part in travelled)) for key in travelled[0]}
    fitted = FittedColumns.fit(columns, stats)
    return build(FittedColumns, json.loads(fitted.model_dump_json()), where="model.json")


def network_input(table: pa.Table, fitted: FittedColumns) -> np.ndarray:
    """What the network reads of the steps of all rows [N, width]."""
    batch = collate(encode_rows(table, fitted))
    x_BTF = InputLayer(fitted)(batch, torch.float32)
    found = [x_BTF[row, :length].detach() for row, length in enumerate(batch.lengths_B.tolist())]
    return np.asarray(torch.cat(found).numpy())


def sequences(values: list[Any], kind: Any = None, name: str = "x") -> pa.Table:
    return pa.table({name: pa.array([values], None if kind is None else pa.list_(kind))})


# Quantiles --------------------------------------------------------------------------------------------------------


def boundaries(fitted: FittedColumns, name: str = "x") -> dict[str, tuple[float, ...]]:
    return fitted.sources[f"numeric:{name}"].boundaries  # type: ignore[union-attr]


def test_quantiles_cut_the_training_data_into_intervals_of_like_count() -> None:
    values = np.random.default_rng(0).permutation(100).tolist()
    fitted = fitted_to(columns_of(bucketized_column(real_valued_column("x"), quantiles=4)), sequences(values))
    assert boundaries(fitted) == {"4": (25.0, 50.0, 75.0)}
    x = network_input(sequences([-5.0, 24.9, 25.0, 74.0, 1e6]), fitted)
    assert x.argmax(1).tolist() == [0, 0, 1, 2, 3]
    assert network_input(sequences(values), fitted).sum(0).tolist() == [25, 25, 25, 25]


@pytest.mark.parametrize("cuts", [[], [1], [3, 3, 60], [10, 20, 99]])
def test_any_cut_into_fragments_learns_the_same_boundaries(cuts: list[int]) -> None:
    values = np.random.default_rng(1).normal(size=100).tolist()
    columns = columns_of(bucketized_column(real_valued_column("x", normalizer="zscore"), quantiles=7))
    parts = [part.tolist() for part in np.split(np.array(values), cuts)]
    whole, cut = fitted_to(columns, sequences(values)), fitted_to(columns, *[sequences(p, pa.float64()) for p in parts])
    np.testing.assert_allclose(boundaries(cut)["7"], boundaries(whole)["7"], rtol=1e-6)
    intervals = [network_input(sequences(values), fitted).argmax(1).tolist() for fitted in (whole, cut)]
    assert intervals[0] == intervals[1]


@pytest.mark.parametrize("normalizer", ["none", "zscore", "minmax", "log1p", "backwards"])
def test_boundaries_are_learned_of_what_the_normalizer_gives(normalizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_normalizers", {})
    registry.register_normalizer("backwards", lambda matrix: -matrix)
    values = np.random.default_rng(2).gamma(2, 3, 200)
    columns = columns_of(bucketized_column(Numeric(name="x", normalizer=normalizer), quantiles=5))
    fitted = fitted_to(columns, sequences(values.tolist()))
    counts = network_input(sequences(values.tolist()), fitted).sum(0)
    assert counts.tolist() == [40] * 5  # the network compares in float32 what was learned in float32
    lowest = network_input(sequences([float(values.min())]), fitted)[0].argmax()
    assert lowest == (4 if normalizer == "backwards" else 0)


def test_missing_values_do_not_count_and_are_filled_before_they_are_cut() -> None:
    source = Numeric(name="x", missing=100, indicator=True)
    table = sequences([1.0, None, 2.0, None, 3.0, 4.0])
    fitted = fitted_to(columns_of(bucketized_column(source, quantiles=2)), table)
    assert boundaries(fitted) == {"2": (3.0,)}
    assert network_input(table, fitted)[:2].tolist() == [[1, 0, 0], [0, 1, 1]]


def test_the_values_of_a_vector_are_cut_alike() -> None:
    source = real_valued_column("x", normalizer="minmax")
    table = sequences([[0.0, 1000.0], [1.0, 1001.0], [2.0, 1002.0], [3.0, 1003.0]])
    fitted = fitted_to(columns_of(bucketized_column(source, quantiles=2)), table)
    assert boundaries(fitted) == {"2": (float(np.float32(2 / 3)),)}
    assert network_input(table, fitted).tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1]]


@pytest.mark.parametrize("values", [[5.0, 5.0, 5.0], [None, None]])
def test_a_column_that_does_not_vary_has_one_interval(values: list[Any]) -> None:
    table = sequences(values, pa.float64())
    fitted = fitted_to(columns_of(bucketized_column(Numeric(name="x", missing=0), quantiles=10)), table)
    assert boundaries(fitted) == {"10": ()}
    assert network_input(table, fitted).tolist() == [[1.0]] * len(values)


def test_one_source_learns_several_numbers_of_intervals_and_stands_as_a_number_too() -> None:
    source = real_valued_column("x")
    columns = columns_of(source, bucketized_column(source, quantiles=2), bucketized_column(source, quantiles=3))
    values = [float(value) for value in range(6)]
    fitted = fitted_to(columns, sequences(values))
    assert boundaries(fitted) == {"2": (3.0,), "3": (2.0, 4.0)}
    assert network_input(sequences([3.0]), fitted).tolist() == [[0, 1, 0, 1, 0, 3]]


def test_a_cross_takes_the_learned_intervals() -> None:
    price = bucketized_column(real_valued_column("x"), quantiles=2)
    column = crossed_column([price, sparse_column_with_hash_bucket("w", 9)], 1000)
    table = pa.table({"x": [[1.0, 2.0, 3.0, 4.0]], "w": [list("aaaa")]})
    fitted = fitted_to(columns_of(one_hot_column(column)), table)
    ids = encode_rows(table, fitted).sequence["crossed:w_X_x"].values.tolist()
    assert ids == [cross_id([fingerprint("a"), interval], 1000) for interval in (0, 0, 1, 1)]


def test_learned_boundaries_in_context() -> None:
    table = pa.table({"clock": [[0.0]] * 4, "x": [1.0, 2.0, 3.0, 4.0]})
    fitted = fitted_to(
        columns_of(real_valued_column("clock"), context=[bucketized_column(real_valued_column("x"), quantiles=2)]),
        table,
    )
    assert network_input(table, fitted)[:, 1:].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_a_long_column_is_cut_within_the_documented_error() -> None:
    values = np.random.default_rng(3).normal(size=400_000)
    tables = [sequences(part.tolist(), pa.float64()) for part in np.array_split(values, 4)]
    fitted = fitted_to(columns_of(bucketized_column(real_valued_column("x"), quantiles=10)), *tables)
    edges = np.array(boundaries(fitted)["10"], np.float32)
    counts = np.bincount(np.searchsorted(edges, values.astype(np.float32), side="right"))
    assert np.abs(counts / len(values) - 0.1).max() <= 0.002


def test_learned_boundaries_need_the_training_data() -> None:
    assert needs_training_data(columns_of(bucketized_column(real_valued_column("x"), quantiles=4))) == [
        "the boundaries of 'x'"
    ]
    assert needs_training_data(columns_of(bucketized_column(real_valued_column("x"), [1, 2]))) == []


def test_the_order_of_the_input_does_not_depend_on_what_is_learned() -> None:
    source = real_valued_column("x")
    columns = columns_of(bucketized_column(source, quantiles=5), bucketized_column(source, [0.5]))
    assert [column.sort_key for column in columns.ordered("sequence")] == [
        ("Bucketized", "x", "(0.5,)"), ("Bucketized", "x", "5 quantiles"),
    ]  # fmt: skip


X = {"type": "numeric", "name": "x"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantiles": 1}, "sequence.0.boundaries.quantiles must be at least 2, but is 1"),
        ({"quantiles": 1001}, "sequence.0.boundaries.quantiles must be at most 1000, but is 1001"),
        (
            {},
            "sequence.0.boundaries.quantiles must be given, but is missing (intervals to learn; 10 for deciles)",
        ),
        ([], "sequence.0.boundaries must have at least 1 item, but has none"),
        ([2, 1], "sequence.0: boundaries must rise, but are [2.0, 1.0]"),
        ("x", "sequence.0.boundaries must be a list or a mapping, but is 'x'"),
    ],
)
def test_faulty_boundaries_are_told(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(ColumnsConfig, {"sequence": [{"type": "bucketized", "source": X, "boundaries": given}]}, where="run.yaml")
    assert str(raised.value) == f"run.yaml: {message}"


@pytest.mark.parametrize(
    ("boundaries", "quantiles", "found"), [(None, None, "neither"), ([1.0], 4, "both")], ids=["neither", "both"]
)
def test_the_factory_takes_boundaries_or_quantiles(boundaries: Any, quantiles: Any, found: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bucketized_column(real_valued_column("x"), boundaries, quantiles=quantiles)
    assert str(raised.value) == (f"bucketized_column needs boundaries or quantiles, one of the two, but has {found}")


def test_the_factory_declares_what_the_yaml_does() -> None:
    declared = {"type": "bucketized", "source": X, "boundaries": {"quantiles": 4}}
    column = build(ColumnsConfig, {"sequence": [declared]}, where="run.yaml").sequence[0]
    assert column == bucketized_column(real_valued_column("x"), quantiles=4)
    assert column.boundaries == Quantiles(quantiles=4)


# Ids for unknown values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [-1, 0, 1])
def test_an_unknown_value_gets_the_default_id_and_a_missing_one_none(default: int) -> None:
    column = one_hot_column(sparse_column_with_keys("w", ["a", "b"], default_value=default))
    table = sequences([["a"], ["q", "b", "zz"], [], [None]], name="w")
    x = network_input(table, fitted_to(columns_of(column), table))
    unknown = np.zeros(2) if default < 0 else np.eye(2)[default]
    np.testing.assert_array_equal(x, [[1, 0], np.array([0, 1]) + 2 * unknown, [0, 0], [0, 0]])


@pytest.mark.parametrize("kind", ["file", "learned", "integers"])
def test_every_vocabulary_may_have_a_default_id(kind: str, tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("a\nb\n")
    cases: dict[str, tuple[Vocabulary, list[Any]]] = {
        "file": (sparse_column_with_vocabulary_file("x", str(tmp_path / "keys"), default_value=1), ["a", "q"]),
        "learned": (Vocabulary(name="x", min_count=2, oov_buckets=0, default_value=0), ["b", "q", "b"]),
        "integers": (sparse_column_with_keys("x", [7, 9], default_value=1), [7, 8]),
    }
    source, values = cases[kind]
    fitted = fitted_to(columns_of(one_hot_column(source)), sequences(values))
    ids = encode_rows(sequences(values), fitted).sequence["vocabulary:x"].values.tolist()
    assert ids == {"file": [0, 1], "learned": [0, 0, 0], "integers": [0, 1]}[kind]


def test_a_default_id_is_trained_as_that_keys_own() -> None:
    column = embedding_column(sparse_column_with_keys("w", ["a", "b"], default_value=1), 3)
    table = sequences(["b", "never seen"], name="w")
    x = network_input(table, fitted_to(columns_of(column), table))
    np.testing.assert_array_equal(x[0], x[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"default_value": 2}, "default_value must be the id of a key, 0 to 1, or -1 to drop unknown values, but is 2"),
        ({"default_value": -2}, None),
        (
            {"default_value": 0, "oov_buckets": 3},
            "default_value needs oov_buckets 0, but oov_buckets is 3: unknown values are hashed into those; set one of "
            "the two",
        ),
    ],
)
def test_a_default_id_that_cannot_be_is_told(changes: dict[str, Any], message: str | None) -> None:
    source = {"type": "vocabulary", "name": "w", "keys": ["a", "b"], "oov_buckets": 0, **changes}
    with pytest.raises(ConfigError) as raised:
        build(ColumnsConfig, {"sequence": [{"type": "one_hot", "source": source}]}, where="run.yaml")
    place = "sequence.0.source: " if message else "sequence.0.source."
    assert str(raised.value) == f"run.yaml: {place}{message or 'default_value must be at least -1, but is -2'}"


def test_a_default_id_beyond_the_learned_keys_is_told() -> None:
    source = Vocabulary(name="w", oov_buckets=0, default_value=2)
    with pytest.raises(DataError) as raised:
        fitted_to(columns_of(one_hot_column(source)), sequences(["a", "b"], name="w"))
    assert str(raised.value) == (
        "column 'w': default_value must be the id of a key, and the vocabulary has 2 keys, but it is 2; lower it, or "
        "set it to -1 to drop unknown values"
    )


def test_a_model_saved_before_there_were_default_ids_drops_unknown_values() -> None:
    column = one_hot_column(sparse_column_with_keys("w", ["a"]))
    table = sequences(["a", "q"], name="w")
    saved = json.loads(fitted_to(columns_of(column), table).model_dump_json())
    del saved["sources"]["vocabulary:w"]["default_value"]
    del saved["columns"]["sequence"][0]["source"]["default_value"]
    old = build(FittedColumns, saved, where="model.json")
    assert encode_rows(table, old).sequence["vocabulary:w"].values.tolist() == [0, -1]
    assert old.model_dump(exclude_defaults=True) == fitted_to(columns_of(column), table).model_dump(
        exclude_defaults=True  # which the fingerprint is made of
    )


# Crosses within crosses -------------------------------------------------------------------------------------------


def cross_id(values: list[int], buckets: int, hash_key: int | None = None) -> int:
    number = cross_start(1, hash_key)
    for value in values:
        number = cross(number, np.array([value % 2**64], np.uint64), hash_key)
    return int(number[0]) % buckets


A, B, C = (sparse_column_with_hash_bucket(name, 5) for name in "abc")
N = sparse_column_with_integerized_feature("n", 3)
LETTERS = pa.table({"a": [["p", "q"]], "b": [[["r", "s"], ["r"]]], "c": [["t", None]], "n": [[4, -1]]})


def ids_of(column: Any, table: pa.Table = LETTERS) -> tuple[list[int], list[int] | None]:
    fitted = fitted_to(columns_of(one_hot_column(column)), table)
    encoded = encode_rows(table, fitted).sequence[f"crossed:{column.name}"]
    return encoded.values.tolist(), None if encoded.offsets is None else encoded.offsets.tolist()


@pytest.mark.parametrize("hash_key", [None, 77])
def test_a_cross_within_a_cross_hashes_the_columns_it_crosses(hash_key: int | None) -> None:
    inner = crossed_column([N, A], 3, hash_key=5)  # its own buckets and key do not matter
    found = ids_of(crossed_column([inner, B], 1000, hash_key=hash_key))
    # Names in order: a_X_n, then b; within the inner one a, then n.
    expected = [
        cross_id([fingerprint(a), n, fingerprint(b)], 1000, hash_key)
        for a, n, words in (("p", 4, ["r", "s"]), ("q", -1, ["r"]))
        for b in words
    ]
    assert found == (expected, [0, 2, 3])


def test_an_inner_cross_stands_at_the_place_of_its_name() -> None:
    # a_X_c stands before b, though c alone would stand behind it.
    nested, flat = crossed_column([B, crossed_column([C, A], 9)], 1000), crossed_column([A, B, C], 1000)
    assert [part.name for part in nested.parts] == ["a", "c", "b"]  # type: ignore[union-attr]
    assert nested.name == "a_X_c_X_b"
    assert ids_of(nested)[0] == [
        cross_id([fingerprint("p"), fingerprint("t"), fingerprint(word)], 1000) for word in "rs"
    ]
    assert ids_of(nested) != ids_of(flat)
    assert ids_of(crossed_column([A, crossed_column([B, C], 9)], 1000)) == ids_of(flat)


def test_crosses_nest_to_any_depth_in_any_order() -> None:
    price = bucketized_column(real_valued_column("x"), [0.0])
    table = LETTERS.append_column("x", pa.array([[1.0, -1.0]]))
    found = set()
    for outer, inner in product(permutations([0, 1]), permutations([0, 1])):
        deep: list[Any] = [crossed_column([price, N], 7), A]
        middle: list[Any] = [crossed_column([deep[i] for i in inner], 8), B]
        found.add(str(ids_of(crossed_column([middle[i] for i in outer], 50), table)))
    # a_X_n_X_x_bucketized within: its name sorts before b; n_X_x_bucketized behind a.
    first = [cross_id([fingerprint("p"), 4, 1, fingerprint(word)], 50) for word in "rs"]
    assert found == {str(([*first, cross_id([fingerprint("q"), -1, 0, fingerprint("r")], 50)], [0, 2, 3]))}


def test_a_nested_cross_is_declared_in_yaml_and_kept() -> None:
    part = {"type": "hash_bucket", "buckets": 5}
    inner = {"type": "crossed", "sources": [{**part, "name": "a"}, {**part, "name": "b"}], "buckets": 9}
    outer = {"type": "crossed", "sources": [inner, {**part, "name": "c"}], "buckets": 99}
    columns = build(ColumnsConfig, {"sequence": [{"type": "one_hot", "source": outer}]}, where="run.yaml")
    assert columns == columns_of(one_hot_column(crossed_column([crossed_column([A, B], 9), C], 99)))
    assert build(ColumnsConfig, json.loads(columns.model_dump_json()), where="model.json") == columns
    assert columns.data_columns("sequence") == ("a", "b", "c")


def test_a_column_stands_once_among_all_that_are_crossed() -> None:
    with pytest.raises(ValueError, match="the columns crossed must be distinct, but 'a' stands twice"):
        crossed_column([A, crossed_column([A, B], 9)], 99)


# The page ---------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "columns.md").read_text(encoding="utf-8")


def test_the_columns_of_the_page_are_the_same_in_yaml_and_in_python() -> None:
    first, nested = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    made: dict[str, Any] = {}
    exec(code, made)
    declared = build(ColumnsConfig, parse_yaml(first, where="docs"), where="docs")
    assert declared == ColumnsConfig(sequence=tuple(made["sequence"]), context=tuple(made["context"]))
    cross = build(ColumnsConfig, parse_yaml(nested, where="docs"), where="docs")
    assert cross.data_columns("sequence") == ("city", "kind", "price")


def test_the_page_names_every_kind_of_column_and_the_bounds_that_hold() -> None:
    kinds = {kind.model_fields["type"].default for kind in (*Leaf.__args__, Weighted, Crossed, Bucketized)}
    assert kinds == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) - {"type"}
    assert f"Up to {quantiles.MOST_EXACT:,} distinct values" in PAGE
    assert f"log2(n / {quantiles.LEVEL_VALUES})) / {quantiles.LEVEL_VALUES}" in PAGE
    assert stats.MOST_KEYS == 5_000_000
    assert "more than five million distinct values" in PAGE
