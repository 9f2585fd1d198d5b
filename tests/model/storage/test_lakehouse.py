"""Lakehouse tables: a Delta table is its live files, of one version; what could not be read right is refused."""

from __future__ import annotations

import builtins
import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from model.errors import DataError
from model.storage import pinned, search
from model.storage.search import find_files, search_root
from model.tables.filters import Filter
from model.tables.parquet import find, read_fragment
from pipelines.config import run_config
from pipelines.ingest.fit_cache import fitted_data, is_current

PLAIN = "write its live rows into a directory of their own as plain Parquet"


def rows(*values: float, **columns: Any) -> pa.Table:
    return pa.table({"x": [[value] for value in values], **columns})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three versions: 1 and 2 in one file; overwritten by 3; 4 beside it. So two of three files are live."""
    root = tmp_path / "table"
    write_deltalake(root, rows(1, 2))
    write_deltalake(root, rows(3), mode="overwrite")
    write_deltalake(root, rows(4), mode="append")
    return root


def values(path: Any, column: str = "x", **options: Any) -> list[Any]:
    fragments = find(path, ["x", column], **options).fragments
    return sorted(
        (value for fragment in fragments for value in read_fragment(fragment, [column])[column].to_pylist()), key=str
    )


def error_of(path: Any) -> str:
    with pytest.raises(DataError) as raised:
        find_files(path)
    return str(raised.value)


def commit(root: Path, version: int, *actions: dict[str, Any]) -> None:
    (root / "_delta_log").mkdir(parents=True, exist_ok=True)
    (root / "_delta_log" / f"{version:020}.json").write_text("\n".join(map(json.dumps, actions)))


def added(path: str, **more: Any) -> dict[str, Any]:
    return {"add": {"path": path, "partitionValues": {}, "size": 1, "modificationTime": 0, "dataChange": True, **more}}


def test_a_delta_table_is_its_live_files(table: Path) -> None:
    assert len(list(table.glob("*.parquet"))) == 3
    assert len(find_files(table)) == 2
    assert values(table) == [[3.0], [4.0]]


def test_versions_are_read_by_name_and_pinned(table: Path) -> None:
    assert values(f"{table}@v0") == [[1.0], [2.0]]
    assert values(f"{table}@v1") == [[3.0]]
    assert pinned(str(table)) == f"{table}@v2"
    assert pinned(f"{table}@v1") == f"{table}@v1"
    assert pinned(str(table.parent / "plain")) == str(table.parent / "plain")
    assert search_root(f"{table}@v1", find_files(f"{table}@v1")) == str(table)
    assert error_of(f"{table}@v7") == (
        f"{table}: a version of a Delta table must be in its log, but 7 is not; commits: 0 to 2"
    )


def test_a_table_goes_on_from_its_checkpoint(table: Path) -> None:
    DeltaTable(table).create_checkpoint()
    for version in range(2):
        (table / "_delta_log" / f"{version:020}.json").unlink()
    write_deltalake(table, rows(5), mode="append")
    assert values(table) == [[3.0], [4.0], [5.0]]
    assert values(f"{table}@v2") == [[3.0], [4.0]]
    assert error_of(f"{table}@v1").endswith("but 1 is not; commits: 2 to 3")


def test_partitions_are_those_of_the_log(tmp_path: Path) -> None:
    days = [date(2024, 1, 31), date(2024, 2, 1), None]
    table = rows(1, 2, 3, code=["01", "a b%/ü", "7"], n=[1, 2, None], day=days, ok=[True, False, True])
    write_deltalake(tmp_path / "t", table, partition_by=["code", "n", "day", "ok"])
    assert values(tmp_path / "t", "code") == ["01", "7", "a b%/ü"]
    assert values(tmp_path / "t", "n") == [1, 2, None]
    assert values(tmp_path / "t", "day") == ["2024-01-31", "2024-02-01", None]
    assert values(tmp_path / "t", "ok") == ["false", "true", "true"]
    assert values(tmp_path / "t", "n", partition_types={"n": "string"}) == ["1", "2", None]
    assert values(tmp_path / "t", where=Filter("n >= 2")) == [[2.0]]


def test_a_column_that_came_later_is_null_in_older_files(table: Path) -> None:
    write_deltalake(table, rows(5, new=[7]), mode="append", schema_mode="merge")
    assert values(table, "new") == [7, None, None]
    with pytest.raises(DataError, match=r"column 'nwe': is not in the file"):
        values(table, "nwe")


def test_without_deltalake_a_table_is_refused_in_a_line(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("deltalake"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert error_of(table) == (
        f"{table}: is a Delta table; 2 of 3 files are live; pip install 'dynamic-rnn[lakehouse]' lets it be read, or "
        f"{PLAIN}"
    )


def test_parts_of_a_table_are_no_data_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "lake" / "t"
    write_deltalake(root, rows(1, 2, p=["a", "b"]), partition_by=["p"])
    write_deltalake(root, rows(3, p=["a"]), partition_by=["p"], mode="overwrite")
    told = f"{root}: is a Delta table; 1 of 3 files is live; name its own directory, or a version such as table@v3"
    for path in (tmp_path / "lake", root / "p=a", root / "p=a" / "*.parquet", tmp_path / "*" / "t" / "**"):
        assert error_of(path) == told
    one = str(next((root / "p=b").glob("*.parquet")))
    assert find_files(one) == [one], "who names a file means it"


def test_a_log_that_is_no_table_is_refused_with_what_is_live(tmp_path: Path) -> None:
    for name in ("old", "new"):
        pq.write_table(rows(1), tmp_path / f"{name}.parquet")
    commit(tmp_path, 0, {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, added("old.parquet"))
    commit(tmp_path, 1, {"remove": {"path": "old.parquet", "dataChange": True}}, added("new.parquet"))
    told = error_of(tmp_path)
    assert told.startswith(f"{tmp_path}: is a Delta table whose log cannot be read (")
    assert told.endswith(f"); 1 of 2 files is live; mend it, or {PLAIN}")


def features(tmp_path: Path, *names: str, configuration: dict[str, str] | None = None, **add: Any) -> str:
    """The error of a table with such reader features."""
    tmp_path.mkdir()
    pq.write_table(rows(1), tmp_path / "a.parquet")
    schema = {"type": "struct", "fields": [{"name": "x", "type": "double", "nullable": True, "metadata": {
        "delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}}]}  # fmt: skip
    meta = {"id": "0", "format": {"provider": "parquet", "options": {}}, "schemaString": json.dumps(schema),
            "partitionColumns": [], "configuration": configuration or {}, "createdTime": 0}  # fmt: skip
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": names, "writerFeatures": names}
    commit(tmp_path, 0, {"protocol": protocol}, {"metaData": meta}, added("a.parquet", **add))
    return error_of(tmp_path)


def test_deletion_vectors_and_column_mapping_are_refused_by_name(tmp_path: Path) -> None:
    vector = {
        "storageType": "u",
        "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^",
        "offset": 1,
        "sizeInBytes": 36,
        "cardinality": 2,
    }
    enabled = {"delta.enableDeletionVectors": "true"}
    assert features(tmp_path / "vectors", "deletionVectors", configuration=enabled, deletionVector=vector) == (
        f"{tmp_path}/vectors: is a Delta table with deletion vectors, which are not read; 1 of 1 files is live; purge "
        f"them (REORG TABLE … APPLY (PURGE)), or {PLAIN}"
    )
    mapping = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "1"}
    assert features(tmp_path / "mapping", "columnMapping", configuration=mapping) == (
        f"{tmp_path}/mapping: is a Delta table with column mapping, which is not read; 1 of 1 files is live; {PLAIN}"
    )


def test_deletion_vectors_that_no_live_file_has_do_no_harm(tmp_path: Path) -> None:
    root = tmp_path / "t"
    write_deltalake(root, rows(1, 2), configuration={"delta.enableDeletionVectors": "true"})
    assert values(root) == [[1.0], [2.0]]


def test_iceberg_and_hudi_are_refused_with_what_is_live(tmp_path: Path) -> None:
    iceberg, hudi = tmp_path / "iceberg", tmp_path / "hudi"
    for name in ("iceberg/data/a", "iceberg/data/b", "hudi/p=1/f1-0_0-1-1_2024", "hudi/p=1/f1-0_0-2-2_2025"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(1), tmp_path / f"{name}.parquet")
    (iceberg / "metadata").mkdir()
    for version, files in ((9, 2), (10, 1)):
        snapshot = {"snapshot-id": version, "summary": {"total-data-files": str(files)}}
        told = {"format-version": 2, "current-snapshot-id": version, "snapshots": [snapshot]}
        (iceberg / "metadata" / f"v{version}.metadata.json").write_text(json.dumps(told))
    (hudi / ".hoodie").mkdir()
    (hudi / ".hoodie" / "hoodie.properties").write_text("")
    for path in (iceberg, iceberg / "data", iceberg / "data" / "*"):
        assert error_of(path) == (f"{iceberg}: is an Iceberg table, which is not read; 1 of 2 files is live; {PLAIN}")
    for path in (hudi, hudi / "p=1"):
        assert error_of(path) == f"{hudi}: is a Hudi table, which is not read; 1 of 2 files is live; {PLAIN}"


# Files without an ending ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["000000_0", "000001_0"], ["a.parq"], ["b.pq", "c.parquet"], ["part-0.c000"]])
def test_files_that_begin_as_parquet_are_found_whatever_their_name(
    tmp_path: Path, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in names:
        pq.write_table(rows(1), tmp_path / name)
    for name in ("_SUCCESS", ".000000_0.crc", "README", "notes.txt", "x.crc"):
        (tmp_path / name).write_text("no Parquet")
    search._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="dynamic_rnn"):
        for _ in range(2):
            assert find_files(tmp_path) == sorted(str(tmp_path / name) for name in names)
    sniffed = [name for name in names if not name.endswith((".parquet", ".parq", ".pq"))]
    such = f"{len(sniffed)}, such as {min(sniffed, default='')}"
    told = f"{tmp_path}: files that are not named so are read as Parquet: {such}"
    assert caplog.messages == ([told] if sniffed else [])


def test_a_copy_beside_the_data_stays_unread(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.parquet.bak", "b.tmp"):
        pq.write_table(rows(1), tmp_path / name)
    assert find_files(tmp_path) == [str(tmp_path / "a.parquet")]


def test_a_directory_without_parquet_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    assert error_of(tmp_path) == (
        f"{tmp_path}: must hold at least one .parquet file, but its file is none, such as a.csv"
    )
    (tmp_path / "b").write_bytes(b"PAR")
    assert error_of(tmp_path) == (
        f"{tmp_path}: must hold at least one .parquet file, but its 2 files are none, such as a.csv"
    )


# A run keeps its version ------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_the_version_it_began_with(tmp_path: Path) -> None:
    root = tmp_path / "table"
    for values in ((1, 2), (3, 4)):
        write_deltalake(root, rows(*values, y=[0, 1]), mode="append")
    model = {
        "problem_type": "classification", "prediction_type": "single_value", "label": "y", "num_units": 3,
        "columns": {"sequence": [{"type": "numeric", "name": "x", "normalizer": "zscore"}]},
    }  # fmt: skip
    data = {"train": str(root), "validation_fraction": 0}
    config = run_config({"output": str(tmp_path / "runs"), "data": data, "model": model}, where="run.yaml")
    begun = fitted_data(config)
    assert (begun.train.rows, is_current(config)) == (4, True)
    write_deltalake(root, rows(50, 60, y=[0, 1]), mode="append")
    assert not is_current(config)
    said: list[str] = []
    resumed = fitted_data(config, resume=True, say=said.append)
    assert (resumed.columns, resumed.train.fragments, said) == (begun.columns, begun.train.fragments, [])
    fresh = fitted_data(config, say=said.append)
    assert (fresh.train.rows, len(said)) == (6, 1)
    assert f"data.train was '{root}@v1', but is '{root}@v2'" in said[0]
