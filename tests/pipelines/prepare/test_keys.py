"""Keys of every type, of several columns and of none; files that spell types in different ways."""

from __future__ import annotations

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import DataError
from pipelines.prepare.run import PrepareResult, prepare
from tests.preparing import in_process, sequences, settings_of, write

UUIDS = [uuid.UUID(int=number) for number in (7, 2**127 + 5)]


def prepared(place: Path, *tables: pa.Table, **given: Any) -> tuple[PrepareResult, list[dict[str, Any]]]:
    """(result, sequences) of a file a table."""
    (place / "events").mkdir(parents=True)
    for number, table in enumerate(tables):
        pq.write_table(table, place / "events" / f"{number}.parquet")
    with in_process():
        result = prepare(place / "events", place / "out", settings_of(**given))
    return result, sequences(place / "out")


def events_of(keys: Any, first_time: int = 0) -> pa.Table:
    return pa.table({"key": keys, "time": range(first_time, first_time + len(keys)), "x": range(len(keys))})


def uuids(values: list[uuid.UUID | None]) -> pa.Array:
    storage = pa.array([None if value is None else value.bytes for value in values], pa.binary(16))
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (pa.array([7.0, 8.0, 7.0]), [7, 8]),
        (pa.array([7.0, 8.0, 7.0], pa.float32()), [7, 8]),
        (pa.array([decimal.Decimal(7), decimal.Decimal(8), decimal.Decimal(7)], pa.decimal128(38, 0)), [7, 8]),
        (pa.array([7, 8, 7], pa.int16()), [7, 8]),
        (pa.array([True, False, True]), [False, True]),
        (pa.array(["ä", "b", "ä"]).cast(pa.binary()), ["b", "ä"]),
        (pa.array([b"a", b"b", b"a"], pa.binary(1)), ["a", "b"]),
        (pa.array(["ä", "b", "ä"], pa.large_string()), ["b", "ä"]),
        (pa.array(["ä", "b", "ä"], pa.string_view()), ["b", "ä"]),
        (pa.array(["ä", "b", "ä"]).dictionary_encode(), ["b", "ä"]),
        (uuids([UUIDS[0], UUIDS[1], UUIDS[0]]), sorted(str(each) for each in UUIDS)),
    ],
    ids=str,
)
def test_a_key_may_be_of_every_type_that_tells_one_from_another(tmp_path: Path, keys: Any, wanted: list[Any]) -> None:
    _, found = prepared(tmp_path, events_of(keys))
    assert sorted(row["key"] for row in found) == wanted
    assert sorted(row["x"] for row in found) == [[0, 2], [1]]


def test_true_and_one_are_one_key(tmp_path: Path) -> None:
    _, found = prepared(tmp_path, events_of(pa.array([True, False])), events_of(pa.array([1, 2]), 10))
    assert {row["key"]: row["x"] for row in found} == {1: [0, 0], 0: [1], 2: [1]}


def test_seven_is_one_key_as_integer_float_and_decimal(tmp_path: Path) -> None:
    tables = [pa.array([7, 9]), pa.array([7.0, 9.0]), pa.array([decimal.Decimal(7)], pa.decimal128(4, 0))]
    _, found = prepared(tmp_path, *(events_of(keys, 10 * number) for number, keys in enumerate(tables)))
    assert {row["key"]: row["time_first"] for row in found} == {7: 0, 9: 1}
    assert {row["key"]: row["x"] for row in found} == {7: [0, 0, 0], 9: [1, 1]}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (pa.array([7.0, 7.5]), "a key must be a whole number of int64, but this is 7.5"),
        (pa.array([7.0, float("nan")]), "a key must be a whole number of int64, but this is nan"),
        (
            pa.array([7.0, 2.0**60]),
            "whole numbers beyond 2^53 are not exact as floats, but this key is 1.152921504606847e",
        ),
        (pa.array([b"a", b"\xff"]), "a key must be text in UTF-8, but this is b'\\xff'"),
    ],
    ids=str,
)
def test_what_is_no_key_is_a_bad_event(tmp_path: Path, keys: pa.Array, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "stop", events_of(keys))
    place = f"{tmp_path / 'stop' / 'events' / '0.parquet'}, row 1, column 'key': "
    assert str(caught.value).startswith(place + problem)
    result, found = prepared(tmp_path, events_of(keys), on_bad_rows="skip")
    assert (result.bad_events, len(found)) == (1, 1)


def test_uuids_that_are_no_key_are_text_as_well(tmp_path: Path) -> None:
    table = events_of(["a", "a", "a"]).append_column("visit", uuids([UUIDS[1], None, UUIDS[0]]))
    _, (row,) = prepared(tmp_path, table)
    assert row["visit"] == [str(UUIDS[1]), None, str(UUIDS[0])]


PAIRS = {"a": ["x", "x", "xy", "x"], "b": [1, 2, 1, 1], "time": [3, 0, 0, 1], "v": [0, 1, 2, 3]}


def test_several_columns_are_one_key_together(tmp_path: Path) -> None:
    result, found = prepared(tmp_path, pa.table(PAIRS), key="a,b")
    assert {(row["a"], row["b"]): row["v"] for row in found} == {("x", 1): [3, 0], ("x", 2): [1], ("xy", 1): [2]}
    assert (result.keys, result.prepared["key"]) == (3, ["a", "b"])
    assert list(found[0]) == ["a", "b", "sequence_index", "time_first", "time_last", "v"]
    with pytest.raises(DataError, match=r"one value a key, but key \('x', 1\) has 3 and 0"):
        prepared(tmp_path / "context", pa.table(PAIRS), key=["a", "b"], context=["v"], columns=["time"])


@pytest.mark.parametrize(
    "given", [{"key": "flag"}, {"key": "flag,name"}, {"key": None}, {"key": "name,number"}], ids=str
)
def test_every_key_is_merged_from_many_runs(tmp_path: Path, given: dict[str, Any]) -> None:
    rows = range(600)
    table = pa.table(
        {
            "flag": [row % 2 == 0 for row in rows],
            "name": [f"n{row % 5}" for row in rows],
            "number": [float(row % 3) for row in rows],
            "time": [row * 7 % 600 for row in rows],
            "row": rows,
        }
    )
    with in_process(mebibyte=700, batch_bytes=100):
        events = write(tmp_path / "events", table, files=5, group_rows=40)
        settings = settings_of(task_mebibytes=1, max_length=20, columns=["row"], **given)
        result = prepare(events, tmp_path / "out", settings)
    names = given["key"].split(",") if given["key"] else []
    wanted: dict[tuple[Any, ...], list[int]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: int(row["time"])):
        wanted.setdefault(tuple(row[name] for name in names), []).append(row["row"])
    found: dict[tuple[Any, ...], list[int]] = {}
    for row in sequences(tmp_path / "out"):  # the pieces of a key follow each other
        found.setdefault(tuple(row[name] for name in names), []).extend(row["row"])
    assert found == wanted
    assert result.keys == len(wanted)


def test_texts_that_join_alike_are_different_keys(tmp_path: Path) -> None:
    table = pa.table({"a": ["a", "ab", "1:a"], "b": ["bc", "c", ""], "time": [0, 0, 0], "v": [0, 1, 2]})
    assert prepared(tmp_path, table, key="a,b")[0].keys == 3


def test_a_column_whose_name_holds_commas_is_meant_by_its_name(tmp_path: Path) -> None:
    table = pa.table({"a,b": [1, 2, 1], "a": [1, 1, 1], "b": [1, 1, 1], "t,0": [2, 1, 0], "v": [0, 1, 2]})
    result, found = prepared(tmp_path, table, key="a,b", time="t,0", columns=["v"])
    assert {row["a,b"]: row["v"] for row in found} == {1: [2, 0], 2: [1]}
    assert result.prepared["time"] == ["t,0"]


def test_a_single_series_needs_no_key(tmp_path: Path) -> None:
    table = pa.table({"time": [3, 0, 2, 1], "v": [3, 0, 2, 1]})
    result, found = prepared(tmp_path, table, key=None, max_length=3)
    assert [(row["sequence_index"], row["v"]) for row in found] == [(0, [0, 1, 2]), (1, [3])]
    assert (result.keys, result.prepared["key"], next(iter(found[0]))) == (1, [], "sequence_index")


# --- types of several files ---------------------------------------------------------------------------------------


MOMENT = datetime.datetime(2026, 1, 2, 12)


def moments(kind: pa.DataType, day: int) -> pa.Table:
    moment = datetime.datetime(2026, 1, day, 12)
    array = pa.array([moment], pa.timestamp("s"))
    zoned = pa.array([moment.replace(tzinfo=datetime.UTC)])
    return pa.table({"key": ["a"], "time": (zoned if getattr(kind, "tz", None) else array).cast(kind), "x": [day]})


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ([pa.timestamp("us", "UTC"), pa.timestamp("us", "+00:00")], pa.timestamp("us", "UTC")),
        ([pa.timestamp("us", "Europe/Vienna"), pa.timestamp("ms", "UTC")], pa.timestamp("us", "UTC")),
        ([pa.timestamp("us", "+00:00")] * 2, pa.timestamp("us", "+00:00")),
        ([pa.date32(), pa.timestamp("us")], pa.timestamp("us")),
        ([pa.timestamp("ms"), pa.date32()], pa.timestamp("ms")),
    ],
    ids=str,
)
def test_times_that_mean_the_same_agree(tmp_path: Path, kinds: list[pa.DataType], wanted: pa.DataType) -> None:
    _, (row,) = prepared(tmp_path, *(moments(kind, 3 - number) for number, kind in enumerate(kinds)))
    assert row["x"] == [2, 3]
    schema = pq.read_schema(next((tmp_path / "out").glob("*.parquet")))
    assert schema.field("time_first").type == wanted


def test_a_time_without_zone_beside_one_with_a_zone_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, moments(pa.timestamp("us"), 1), moments(pa.timestamp("us", "UTC"), 2))
    events = tmp_path / "events"
    assert str(caught.value) == (
        f"{events / '1.parquet'}: the files of an event table must agree on each column's type, but 'time' is "
        f"timestamp[us, tz=UTC] here and timestamp[us] in {events / '0.parquet'}; write one of them again with the "
        "other's type, or name the type of both with --types"
    )


def test_a_type_may_be_given(tmp_path: Path) -> None:
    tables = [events_of(pa.array([1, 1])), events_of(pa.array(["1", "2"]), 5)]
    _, found = prepared(tmp_path, *tables, types={"key": "string", "x": "float32"})
    assert {row["key"]: row["x"] for row in found} == {"1": [0.0, 1.0, 0.0], "2": [1.0]}
    schema = pq.read_schema(next((tmp_path / "out").glob("*.parquet")))
    assert schema.field("x").type == pa.list_(pa.float32())
    large = pa.table({"key": ["a"], "time": [0], "x": [300]})
    with pytest.raises(DataError, match="column 'x': must fit int8, the type of this column in all files, but in the "):
        prepared(tmp_path / "small", large, types={"x": "int8"})


def test_a_column_that_stands_twice_is_told(tmp_path: Path) -> None:
    write(tmp_path / "events", pa.table([["a"], [0], [1], [2]], names=["key", "time", "x", "x"]))
    with pytest.raises(DataError, match=r"0.parquet, column 'x': stands more than once in the file"):
        prepare(tmp_path / "events", tmp_path / "out", settings_of())
