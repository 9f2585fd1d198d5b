"""Files of one data set that are not alike: drift, missing columns, partitions in paths, empty parts."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.batches.plan import DataIndex
from model.config import ModelConfig
from model.errors import DataError
from model.scan.fit import fit_columns, index_of
from model.scan.fragment_scan import scan_fragment
from model.scan.needed_columns import optional_columns, read_columns
from model.storage import stem
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import find, find_fragments, read_fragment, read_whole_fragment
from pipelines.ingest.read_task import Request, RowReader

CONFIG = ModelConfig.model_validate(
    {
        "problem_type": "classification",
        "prediction_type": "multiple_value",
        "label": "y",
        "cell_type": "lstm",
        "num_units": [2],
        "columns": {
            "sequence": [
                {"type": "numeric", "name": "x", "missing": 7, "normalizer": "zscore"},
                {"type": "numeric", "name": "v"},
                {"type": "one_hot", "source": {"type": "vocabulary", "name": "word"}},
                {"type": "one_hot", "source": {"type": "vocabulary", "name": "tags"}},
            ],
            "context": [
                {"type": "numeric", "name": "year", "missing": "mean"},
                {"type": "one_hot", "source": {"type": "vocabulary", "name": "country"}},
            ],
        },
    }
)
ROWS = {
    "x": [[1, 2], [3]],
    "v": [[[1, 2], [3, 4]], [[5, 6]]],
    "word": [["a", "b"], ["a"]],
    "tags": [[["s"], []], [["s", "t"]]],
    "year": [2020, 2021],
    "country": ["de", "at"],
    "y": [[0, 1], [1]],
}
PLAIN = {
    "x": pa.list_(pa.float64()),
    "v": pa.list_(pa.list_(pa.float64(), 2)),
    "word": pa.list_(pa.string()),
    "tags": pa.list_(pa.list_(pa.string())),
    "year": pa.int64(),
    "country": pa.string(),
    "y": pa.list_(pa.int64()),
}
OTHER = {
    "x": pa.large_list(pa.int32()),
    "v": pa.list_(pa.large_list(pa.float32())),
    "word": pa.list_(pa.dictionary(pa.int32(), pa.string())),
    "tags": pa.large_list(pa.list_(pa.large_string())),
    "year": pa.float32(),
    "country": pa.dictionary(pa.int8(), pa.string()),
    "y": pa.large_list(pa.int8()),
}


def write(path: Path, kinds: dict[str, pa.DataType] = PLAIN, rows: dict[str, Any] = ROWS, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: pa.array(rows[name], kind) for name, kind in kinds.items()})
    pq.write_table(table, path, **options)
    return str(path)


def read_all(path: Path, config: ModelConfig = CONFIG, **options: Any) -> tuple[Any, DataIndex, RowReader]:
    """Scanned and fitted as a run does: (encoded rows, index, reader)."""
    fragments = find_fragments(path, read_columns(config), optional=optional_columns(config), **options)
    scans = [scan_fragment(fragment, config, None, fit=True, **options) for fragment in fragments]
    columns, label = fit_columns(config, scans)
    index, reader = index_of(fragments, scans), RowReader(columns, label)
    rows = np.concatenate([index.fragment_rows(i) for i in range(len(fragments))])
    return reader.read(Request.of(index, rows)), index, reader


def entries(encoded: Any) -> list[Any]:
    """Values with their offsets, whichever of the two forms of ids they have."""
    offsets = range(len(encoded.values) + 1) if encoded.offsets is None else encoded.offsets
    return [encoded.values[start:stop].tolist() for start, stop in pairwise(offsets)]


def assert_same(found: Any, expected: Any) -> None:
    assert found.lengths_B.tolist() == expected.lengths_B.tolist()
    assert found.labels.tolist() == expected.labels.tolist()
    for group in ("sequence", "context"):
        for key, encoded in getattr(expected, group).items():
            assert entries(getattr(found, group)[key]) == entries(encoded), key


# Drift ------------------------------------------------------------------------------------------------------------


def test_files_of_other_types_give_the_rows_of_files_of_one_type(tmp_path: Path) -> None:
    for number, kinds in enumerate((PLAIN, OTHER, {name: OTHER[name] for name in reversed(OTHER)})):
        write(tmp_path / "drift" / f"{number}.parquet", kinds)
        write(tmp_path / "same" / f"{number}.parquet")
    found, _, _ = read_all(tmp_path / "drift")
    expected, _, _ = read_all(tmp_path / "same")
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("column", "kind", "values", "told"),
    [
        ("word", pa.string(), ["a", "b"], "string and in {first} it is list<element: string>"),
        ("word", pa.list_(pa.int64()), [[1, 2], [3]],
         "list<element: int64> and in {first} it is list<element: string>"),
        ("x", pa.list_(pa.string()), [["a", "b"], ["c"]],
         "list<element: string> and in {first} it is list<element: double>"),
        ("x", pa.list_(pa.timestamp("us")), [[1, 2], [3]],
         "list<element: timestamp[us]> and in {first} it is list<element: double>"),
        ("v", pa.list_(pa.float64()), [[1, 2], [3]],
         "list<element: double> and in {first} it is list<element: fixed_size_list<element: double>[2]>"),
        ("v", pa.list_(pa.list_(pa.float32(), 3)), [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9]]],
         "list<element: fixed_size_list<element: float>[3]> and in {first} it is "
         "list<element: fixed_size_list<element: double>[2]>"),
        ("country", pa.int8(), [1, 2], "int8 and in {first} it is string"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_files_the_column_and_both_types(
    tmp_path: Path, column: str, kind: pa.DataType, values: Any, told: str
) -> None:
    first, _ = write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet", OTHER | {"v": PLAIN["v"]})
    last = write(tmp_path / "c.parquet", PLAIN | {column: kind}, ROWS | {column: values})
    with pytest.raises(DataError) as raised:
        read_all(tmp_path)
    assert str(raised.value) == (
        f"{last}, column {column!r}: the files of a data set must agree on each column's type, but here it is "
        f"{told.format(first=first)}; write one of them again with the other's type"
    )


def test_wall_clocks_and_instants_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": pa.timestamp("ms")}, {"x": [1]})
    write(tmp_path / "b.parquet", {"x": pa.timestamp("us")}, {"x": [1]})
    write(tmp_path / "c.parquet", {"x": pa.date32()}, {"x": [1]})
    assert len(find_fragments(tmp_path, ["x"])) == 3
    write(tmp_path / "d.parquet", {"x": pa.timestamp("us", "UTC")}, {"x": [1]})
    with pytest.raises(DataError, match=r"here it is timestamp\[us, tz=UTC\] and in .*a.parquet it is timestamp\[ms\]"):
        find_fragments(tmp_path, ["x"])


def test_columns_that_are_not_used_may_contradict_each_other(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": pa.int8(), "z": pa.string()}, {"x": [1], "z": ["a"]})
    write(tmp_path / "b.parquet", {"x": pa.int8(), "z": pa.list_(pa.int8())}, {"x": [1], "z": [[1]]})
    assert len(find_fragments(tmp_path, ["x"])) == 2
    with pytest.raises(DataError):
        find_fragments(tmp_path, ["x", "z"])


def test_a_column_that_stands_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "x", "z"]), path)
    assert len(find_fragments(path, ["z"])) == 1
    with pytest.raises(DataError) as raised:
        find_fragments(path, ["x"])
    assert str(raised.value) == (
        f"{path}, column 'x': stands more than once in the file; write it again with a name for each"
    )


# Missing columns and nulls ----------------------------------------------------------------------------------------


def test_what_bears_nulls_may_be_missing_in_some_files() -> None:
    assert optional_columns(CONFIG) == ["tags", "word", "x", "country", "year"]


@pytest.mark.parametrize("form", ["absent", "null", "nulls"])
def test_an_optional_column_that_is_missing_reads_as_nulls(tmp_path: Path, form: str) -> None:
    missing = ["x", "word", "tags", "year", "country"]
    empty = {name: [[None] * 2, [None]] if pa.types.is_list(PLAIN[name]) else [None] * 2 for name in missing}
    write(tmp_path / "nulls" / "a.parquet")
    write(tmp_path / "nulls" / "b.parquet", PLAIN, ROWS | empty)
    expected, _, _ = read_all(tmp_path / "nulls")
    write(tmp_path / "found" / "a.parquet")
    kinds = {name: kind for name, kind in PLAIN.items() if name not in missing or form != "absent"}
    if form == "null":
        kinds, empty = kinds | dict.fromkeys(missing, pa.null()), {name: [None, None] for name in missing}
    write(tmp_path / "found" / "b.parquet", kinds, ROWS | empty)
    found, _, _ = read_all(tmp_path / "found")
    assert found.lengths_B.tolist() == [2, 1, 2, 1]
    assert found.sequence["numeric:x"].values[3:].tolist() == expected.sequence["numeric:x"].values[3:].tolist()
    for key in ("numeric:year", "vocabulary:country"):
        assert entries(found.context[key]) == entries(expected.context[key])
    for key in ("vocabulary:word", "vocabulary:tags"):
        ids = [[each for each in entry if each >= 0] for entry in entries(found.sequence[key])]
        assert ids == [[each for each in entry if each >= 0] for entry in entries(expected.sequence[key])]


def test_an_optional_column_that_no_file_has_is_told(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", {name: kind for name, kind in PLAIN.items() if name != "country"})
    with pytest.raises(DataError) as raised:
        read_all(tmp_path)
    assert str(raised.value) == (
        f"{first}, column 'country': is not in the file; its columns are x, v, word, tags, year, y"
    )


@pytest.mark.parametrize("column", ["v", "y"])
def test_a_needed_column_that_one_file_lacks_is_told(tmp_path: Path, column: str) -> None:
    write(tmp_path / "a.parquet")
    second = write(tmp_path / "b.parquet", {name: kind for name, kind in PLAIN.items() if name != column})
    with pytest.raises(DataError, match=f"{second}, column '{column}': is not in the file"):
        read_all(tmp_path)


def test_empty_files_and_row_groups_without_rows_are_passed_over(tmp_path: Path) -> None:
    schema = pa.schema(PLAIN)
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for count in (0, 2, 0):
            writer.write_table(pa.table({n: pa.array(ROWS[n][:count], k) for n, k in PLAIN.items()}, schema))
    write(tmp_path / "b.parquet", PLAIN, {name: [] for name in ROWS})
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 3
    _, index, _ = read_all(tmp_path)
    assert [(Path(f.file).name, f.row_group, f.rows, f.first_row) for f in index.fragments] == [("a.parquet", 1, 2, 0)]


# Partitions -------------------------------------------------------------------------------------------------------

UNPARTED = {name: kind for name, kind in PLAIN.items() if name not in ("year", "country")}


def test_partition_keys_are_context_features(tmp_path: Path) -> None:
    for year in (2020, 2021):
        for country in ("de", "a t", "ö%2F"):
            write(tmp_path / "hive" / f"year={year}" / f"country={country}" / "p.parquet", UNPARTED)
            rows = ROWS | {"year": [year] * 2, "country": [country.replace("%2F", "/")] * 2}
            write(tmp_path / "plain" / f"{year}{country.replace('%', '-')}.parquet", PLAIN, rows)
    found, _, reader = read_all(tmp_path / "hive")
    expected, _, _ = read_all(tmp_path / "plain")
    assert_same(found, expected)
    assert set(reader.columns.sources["vocabulary:country"].keys) == {"de", "a t", "ö/"}


def test_a_partition_key_is_of_integers_if_all_of_its_values_are(tmp_path: Path) -> None:
    for name in ("n=1/m=1", "n=2/m=x", "n=-3/m=2", "n=__HIVE_DEFAULT_PARTITION__/m=3"):
        write(tmp_path / name / "a.parquet", {"x": pa.int8()}, {"x": [1, 2]})
    tables = [read_fragment(fragment, ["m", "n"]) for fragment in find_fragments(tmp_path, ["m", "n"])]
    rows = [row for table in tables for row in table.to_pylist()]
    assert rows == [
        each for each in ({"m": "2", "n": -3}, {"m": "1", "n": 1}, {"m": "x", "n": 2}, {"m": "3", "n": None})
        for _ in range(2)
    ]  # fmt: skip


def test_below_the_data_the_path_speaks_and_above_it_the_file(tmp_path: Path) -> None:
    """As with Spark and pyarrow; what a directory far above happens to be called must not hide a column."""
    path = tmp_path / "x=7" / "y=8" / "a.parquet"
    write(path, {"x": pa.int64(), "z": pa.int64()}, {"x": [1], "z": [2]})
    for root, x, y in ((tmp_path, 7, 8), (tmp_path / "x=7", 1, 8), (path.parent, 1, 8), (path, 1, 8)):
        (fragment,) = find_fragments(root, ["x", "y", "z"])
        assert read_fragment(fragment, ["x", "y", "z"]).to_pylist() == [{"x": x, "y": y, "z": 2}], root
        assert read_whole_fragment(fragment).to_pylist() == [{"x": x, "y": y, "z": 2}], root
    (fragment,) = find_fragments(f"{tmp_path}/x=*/*/*.parquet", ["x", "y"])
    assert read_fragment(fragment, ["x", "y"]).to_pylist() == [{"x": 7, "y": 8}]


def test_a_filter_on_a_partition_key_leaves_files_unread(tmp_path: Path) -> None:
    for year in (2019, 2020, 2021):
        write(tmp_path / f"year={year}" / "a.parquet", UNPARTED | {"country": pa.string()})
    (tmp_path / "year=2019" / "a.parquet").write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="must be a whole Parquet file"):
        find(tmp_path, ["x"])
    found = find(tmp_path, ["x"], where=Filter("year > 2019 and country == 'at'"))
    assert [fragment.partitions for fragment in found.fragments] == [(("year", 2020),), (("year", 2021),)]
    assert (found.excluded_files, found.excluded_rows) == (1, 0)
    rows, index, _ = read_all(tmp_path, where=Filter("year > 2019 and country == 'de'"))
    assert rows.lengths_B.tolist() == [2, 2]
    assert index.selected is not None
    assert index.selected.tolist() == [True, False] * 2


def test_a_fragment_survives_json() -> None:
    fragment = Fragment("größe.parquet", 3, 7, 11, (("year", 2020), ("country", None), ("key", "a b")), ("x",))
    assert Fragment(**json.loads(json.dumps(asdict(fragment)))) == fragment
    assert hash(Fragment(**json.loads(json.dumps(asdict(fragment))))) == hash(fragment)


# Times ------------------------------------------------------------------------------------------------------------


def test_times_keep_their_precision_through_normalisation(tmp_path: Path) -> None:
    """Seconds since 1970 do not fit into float32; they are centred in float64 before."""
    starts = 1_700_000_000 + np.arange(6)
    times = [[int(start), int(start) + 1] for start in starts]
    config = CONFIG.model_copy(
        update={
            "columns": type(CONFIG.columns).model_validate(
                {"sequence": [{"type": "numeric", "name": "at", "normalizer": "zscore"}]}
            )
        }
    )
    for kind in ("s", "ns"):
        factor = 1 if kind == "s" else 10**9
        values = [[each * factor for each in row] for row in times]
        write(
            tmp_path / f"{kind}.parquet",
            {"at": pa.list_(pa.timestamp(kind)), "y": pa.list_(pa.int8())},
            {"at": values, "y": [[0, 1]] * 6},
        )
    rows, _, _ = read_all(tmp_path, config)
    flat = np.array(times, np.float64).reshape(-1)
    expected = (flat - flat.mean()) / flat.std()
    np.testing.assert_allclose(rows.sequence["numeric:at"].values[:, 0], np.tile(expected, 2), rtol=1e-6)


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/a b.c.parquet", "a b.c"),
        ("/data/x?y[1].parquet", "x_y_1_"),
        ("s3://bucket/a%20b.parquet?endpoint_override=host:1.2", "a b"),
        ("s3://bucket/part", "part"),
    ],
)
def test_a_stem_is_a_files_name_without_its_ending(path: str, name: str) -> None:
    assert stem(path) == name
