"""One pass over the fragments: lengths, the validation split, and what columns and labels are fitted from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig
from model.errors import DataError
from model.scan.fit import fit_columns, index_of, split_index
from model.scan.fragment_scan import FragmentScan, scan_fragment, scan_table
from model.scan.needed_columns import read_columns
from model.scan.split import SplitBy, training_rows
from model.tables.parquet import find_fragments
from pipelines.tasks.task import from_message, to_message

CUTS = st.lists(st.integers(0, 60), max_size=6).map(sorted)
KEYS = pa.table({"key": [f"user {i}" for i in range(1000)]})


def cut(table: pa.Table, cuts: list[int]) -> list[pa.Table]:
    edges = [0, *(min(place, table.num_rows) for place in cuts), table.num_rows]
    return [table.slice(start, stop - start) for start, stop in pairwise(edges)]


def scans_of(config: ModelConfig, tables: list[pa.Table], split: SplitBy | None = None) -> list[FragmentScan]:
    return [scan_table(table, config, split, fit=True, place=f"part {i}") for i, table in enumerate(tables)]


# The split --------------------------------------------------------------------------------------------------------


def test_the_split_is_what_it_was() -> None:
    """The validation rows of a run must be those of its resumption, on any machine and version."""
    training = training_rows(KEYS.slice(0, 20), SplitBy(fraction=0.3, key="key"), "")
    assert "".join("01"[kept] for kept in training.tolist()) == "11111110101111011011"


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
def test_the_fraction_is_that_of_the_keys(fraction: float) -> None:
    held_out = 1 - training_rows(KEYS, SplitBy(fraction=fraction, key="key"), "").mean()
    assert abs(held_out - fraction) <= 4 * (fraction * (1 - fraction) / 1000) ** 0.5


@settings(max_examples=30)
@given(CUTS)
def test_pieces_of_an_entity_stay_together_however_fragments_are_cut(make_table: Any, cuts: list[int]) -> None:
    table, split = make_table(rows=60), SplitBy(fraction=0.5, key="key")
    parts = [training_rows(part, split, f"part {i}") for i, part in enumerate(cut(table, cuts))]
    training = np.concatenate(parts)
    assert training.tolist() == training_rows(table, split, "whole").tolist()
    sides = {(key, side) for key, side in zip(table.column("key").to_pylist(), training.tolist(), strict=True)}
    assert len(sides) == 5
    assert {side for _, side in sides} == {True, False}


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int64(), pa.uint16(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("null", [False, True])
def test_a_key_falls_on_the_same_side_in_every_file(kind: pa.DataType, null: bool) -> None:
    """Files of one data set may hold a key as another type, or nulls beside it."""
    split = SplitBy(fraction=0.5, key="key")
    expected = training_rows(pa.table({"key": [str(i) for i in range(40)]}), split, "")
    keys = pa.array([str(i) for i in range(40)]).cast(kind) if not pa.types.is_dictionary(kind) else None
    keys = pa.array([str(i) for i in range(40)], kind) if keys is None else keys
    table = pa.table({"key": pa.chunked_array([keys, pa.nulls(1, kind)] if null else [keys])})
    assert training_rows(table, split, "elsewhere")[:40].tolist() == expected.tolist()


def test_without_a_key_a_row_is_split_by_its_place() -> None:
    table, split = pa.table({"x": range(1000)}), SplitBy(fraction=0.3)
    one, other = (training_rows(table, split, place) for place in ("a#0", "a#1"))
    assert one.tolist() == training_rows(table, split, "a#0").tolist()
    assert one.tolist() != other.tolist()
    assert abs(one.mean() - 0.7) < 0.06


def test_a_key_that_cannot_be_compared_is_told() -> None:
    with pytest.raises(DataError) as raised:
        training_rows(pa.table({"key": [[1]]}), SplitBy(fraction=0.5, key="key"), "")
    assert str(raised.value) == (
        "column 'key': a split key must be a string, a number or a time, but its type is list<item: int64>"
    )


# Fitting ----------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(CUTS)
def test_any_grouping_of_rows_into_fragments_fits_the_same(make_table: Any, make_config: Any, cuts: list[int]) -> None:
    table, config = make_table(rows=60), make_config()
    split = SplitBy(fraction=0.5, key="key")
    whole, label = fit_columns(config, scans_of(config, [table], split))
    columns, same_label = fit_columns(config, scans_of(config, cut(table, cuts), split))
    assert same_label == label
    for key, source in columns.sources.items():
        found, expected = source.model_dump(), whole.sources[key].model_dump()
        for name in ("shift", "scale", "fill"):
            assert (found.pop(name, None) or ()) == pytest.approx(expected.pop(name, None) or (), rel=1e-12)
        assert found == expected


def test_only_training_rows_are_learned_from(make_table: Any, make_config: Any) -> None:
    table, config, split = make_table(rows=60), make_config(), SplitBy(fraction=0.5, key="key")
    training = training_rows(table, split, "")
    (scan,) = scans_of(config, [table], split)
    columns, _ = fit_columns(config, [scan])
    only, _ = fit_columns(config, scans_of(config, [table.filter(pa.array(training))]))
    assert columns == only
    assert columns != fit_columns(config, scans_of(config, [table]))[0]
    assert scan.lengths.tolist() == [len(steps) for steps in table.column("x").to_pylist()]
    assert scan.training is not None
    assert scan.training.tolist() == training.tolist()


def test_a_scan_that_fits_nothing_tells_lengths_alone(make_table: Any, make_config: Any) -> None:
    scan = scan_table(make_table(), make_config(), None, fit=False, place="")
    assert (scan.columns, scan.training, dict(scan.labels.keys)) == ({}, None, {})
    assert len(scan.lengths) == 12


@pytest.mark.parametrize("split", [None, SplitBy(fraction=0.5, key="key")])
def test_a_scan_survives_its_message(make_table: Any, make_config: Any, split: SplitBy | None) -> None:
    config = make_config()
    (scan,) = scans_of(config, [make_table()], split)
    found = FragmentScan.from_plain(from_message(to_message(scan.to_plain)))
    assert (found.lengths.dtype, found.lengths.tolist()) == (scan.lengths.dtype, scan.lengths.tolist())
    assert (found.training is None) == (split is None)
    assert split is None or found.training.tolist() == scan.training.tolist()
    assert fit_columns(config, [found]) == fit_columns(config, [scan])


@pytest.mark.parametrize(
    ("changes", "classes"),
    [
        ({}, (3, None)),
        ({"num_classes": 5}, (5, None)),
        ({"classes": [2, 0, 1, 7]}, (4, (2, 0, 1, 7))),
    ],
)
def test_classes_are_learned_or_declared(make_table: Any, make_config: Any, changes: Any, classes: Any) -> None:
    config = make_config(**changes)
    _, label = fit_columns(config, scans_of(config, [make_table()]))
    assert (label.num_classes, label.classes) == classes


def test_regression_has_no_classes(make_table: Any, make_config: Any) -> None:
    config = make_config("linear_regression", "single_value", weight="w")
    _, label = fit_columns(config, scans_of(config, [make_table("linear_regression", "single_value")]))
    assert (label.num_classes, label.classes, label.weight) == (None, None, "w")


def test_files_whose_vectors_differ_in_width_are_told(make_table: Any, make_config: Any) -> None:
    table, config = make_table(lengths=[1, 2]), make_config()
    other = table.set_column(1, "vector", pa.array([[[1.0, 2.0]], [[1.0, 2.0]] * 2]))
    with pytest.raises(DataError) as raised:
        fit_columns(config, scans_of(config, [table, other]))
    assert str(raised.value) == ("column 'vector': every entry must hold as many values, but some hold 3 and others 2")


def test_just_the_columns_a_model_needs_are_read(make_config: Any) -> None:
    assert read_columns(make_config(weight="w")) == ["tags", "kind", "vector", "x", "country", "age", "y", "w"]
    assert read_columns(make_config(weight="w"), labelled=False) == ["tags", "kind", "vector", "x", "country", "age"]


# Files ------------------------------------------------------------------------------------------------------------


def test_the_index_numbers_the_rows_of_all_files(tmp_path: Path, make_table: Any, make_config: Any) -> None:
    table, config = make_table(rows=30), make_config()
    for i, start in enumerate((0, 20)):
        pq.write_table(table.slice(start, 20), tmp_path / f"{i}.parquet", row_group_size=8)
    fragments = find_fragments(tmp_path, read_columns(config))
    split = SplitBy(fraction=0.4, key="key")
    scans = [scan_fragment(fragment, config, split, fit=True) for fragment in fragments]
    index = index_of(fragments, scans)
    assert [fragment.rows for fragment in index.fragments] == [8, 8, 4, 8, 2]
    assert index.lengths.tolist() == [len(steps) for steps in table.column("x").to_pylist()]
    training, validation = split_index(index, scans)
    expected = training_rows(table, split, "")
    assert (training.rows, validation.rows) == (expected.sum(), 30 - expected.sum())
    assert np.concatenate([training.fragment_rows(i) for i in range(5)]).tolist() == np.flatnonzero(expected).tolist()
    assert (
        np.concatenate([validation.fragment_rows(i) for i in range(5)]).tolist() == np.flatnonzero(~expected).tolist()
    )


def test_an_error_counts_rows_from_the_files_start(tmp_path: Path, make_table: Any, make_config: Any) -> None:
    table = make_table(lengths=[1] * 10)
    labels = table.column("y").to_pylist()
    labels[7] = [1, 1]
    path = tmp_path / "a b.parquet"
    pq.write_table(table.set_column(table.column_names.index("y"), "y", [labels]), path, row_group_size=3)
    fragments = find_fragments(path, [])
    with pytest.raises(DataError) as raised:
        scan_fragment(fragments[2], make_config(), None, fit=True)
    assert str(raised.value) == (
        f"{path}, row 7, column 'y': the lists of a row must be equally long, but this one has 2 steps where each "
        f"sequence column has 1"
    )


def test_a_split_key_that_is_not_there_is_told(tmp_path: Path, make_table: Any, make_config: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(), path)
    with pytest.raises(DataError) as raised:
        scan_fragment(find_fragments(path, [])[0], make_config(), SplitBy(fraction=0.1, key="user"), fit=True)
    assert str(raised.value) == (
        f"{path}, column 'user': is not in the data; the columns are tags, kind, vector, x, country, age, y"
    )


INTEGERS = (
    "must hold strings as the keys of its vocabulary do, such as 'at', but its type is int64; declare the keys as "
)
STRINGS = "must hold integers as the keys of its vocabulary do, such as 1, but its type is string; declare the keys as "


@pytest.mark.parametrize(
    ("values", "keys", "told"),
    [
        ([7, 8, None, 9], ["at", "de"], f"{INTEGERS}whole numbers, or write the column as strings"),
        (["at", "de", None, "7"], [1, 2], f"{STRINGS}text in quotes, or write the column as integers"),
        ([1, 2, None, 9], [1, 2], None),
        ([None] * 4, [1, 2], None),
    ],
    ids=["integers", "strings", "alike", "nulls"],
)
@pytest.mark.parametrize("on_bad", [None, lambda *_: pytest.fail("no row is bad")])
def test_keys_of_another_type_than_the_column_are_told(
    tmp_path: Path, make_table: Any, make_config: Any, values: Any, keys: Any, told: str | None, on_bad: Any
) -> None:
    source = {"type": "vocabulary", "name": "country", "keys": keys}
    columns = {"sequence": [{"type": "numeric", "name": "x"}], "context": [{"type": "one_hot", "source": source}]}
    path, table = tmp_path / "a.parquet", make_table(rows=4)
    pq.write_table(table.set_column(table.column_names.index("country"), "country", pa.array(values)), path)
    (fragment,) = find_fragments(path, [])

    def scan() -> FragmentScan:
        return scan_fragment(fragment, make_config(columns=columns), None, fit=True, on_bad=on_bad)

    if told is None:
        assert scan().used is None
        return
    with pytest.raises(DataError) as raised:
        scan()
    assert str(raised.value) == f"{path}, column 'country': {told}"
