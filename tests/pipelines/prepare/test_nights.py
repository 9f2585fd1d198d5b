"""Preparations that go on from one another: night after night they give what one preparation of everything gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError, DataError
from pipelines.prepare import sort as prepare_order
from pipelines.prepare.run import PrepareResult, finished, prepare
from tests.preparing import in_process, sequences, settings_of, write

TYPES = {"key": pa.string(), "time": pa.int64(), "x": pa.float64(), "kind": pa.string(), "tags": pa.list_(pa.string())}
ROW = st.tuples(
    st.sampled_from("abcd"),
    st.integers(-4, 20),
    st.one_of(st.none(), st.integers(-9, 9)),
    st.sampled_from(["view", "buy", None]),
    st.lists(st.sampled_from(["s", "t"]), max_size=2),
)


def table_of(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(values, TYPES[name]) for name, values in zip(TYPES, columns, strict=True)})


def nights_of(rows: Sequence[tuple[Any, ...]], borders: Sequence[int]) -> list[pa.Table]:
    """The rows by nights that begin at the borders; a night without event falls out."""
    parts = [[row for row in rows if sum(row[1] >= b for b in borders) == night] for night in range(len(borders) + 1)]
    return [table_of(part) for part in parts if part]


def in_a_row(tables: Sequence[Sequence[dict[str, Any]]]) -> dict[str, dict[str, list[Any]]]:
    """Of each key the lists of its sequences, one behind the other, over all nights."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row in (row for table in tables for row in sorted(table, key=lambda row: int(row["sequence_index"]))):
        columns = found.setdefault(row["key"], {})
        for name, values in row.items():
            if isinstance(values, list):
                columns[name] = columns.get(name, []) + values
    return found


@hypothesis.given(
    rows=st.lists(ROW, min_size=1, max_size=40),
    borders=st.lists(st.integers(-3, 18), min_size=1, max_size=3, unique=True).map(sorted),
    given=st.fixed_dictionaries(
        {"label": st.just("x"), "label_shift": st.integers(1, 3), "for_scoring": st.booleans()},
        optional={
            "gap": st.sampled_from([1, 3, 5]),
            "max_length": st.integers(1, 4),
            "label_change": st.booleans(),
            "split_by_time": st.sampled_from([("4",), ("0", "9")]),
        },
    ),
    unlabelled=st.booleans(),
    mebibyte=st.sampled_from([1 << 20, 1500]),
    collide=st.booleans(),
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow], max_examples=40)
def test_any_nights_in_a_row_are_one_preparation_of_everything(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, ...]],
    borders: list[int],
    given: dict[str, Any],
    unlabelled: bool,
    mebibyte: int,
    collide: bool,
) -> None:
    if unlabelled:
        given = {name: value for name, value in given.items() if not name.startswith("label")}
    settings = settings_of(task_mebibytes=1, time_delta="since", **given)
    place = tmp_path_factory.mktemp("nights")
    results: list[PrepareResult] = []
    with in_process(mebibyte=mebibyte, batch_bytes=200), pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(prepare_order, "key_hashes", lambda keys: np.full(len(keys), 2**63, np.uint64))
        for number, night in enumerate(nights_of(rows, borders)):
            events = write(place / f"events-{number}", night, files=2, group_rows=7)
            before = place / f"out-{number - 1}" if number else None
            results.append(prepare(events, place / f"out-{number}", settings, continue_from=before))
        whole = prepare(write(place / "events", table_of(rows)), place / "out", settings)
    splits = ("train", "validation", "test") if settings.split_by_time else (".",)
    outputs = [place / f"out-{number}" for number in range(len(results))]
    found = in_a_row([[row for split in splits for row in sequences(out / split)] for out in outputs])
    wanted = in_a_row([[row for split in splits for row in sequences(place / "out" / split)]])
    if settings.for_scoring and not unlabelled:  # what was not known that night stays so
        label = next(name for name in results[0].prepared["label"]["column"].split())
        for key, columns in found.items():
            known = [value is not None for value in columns[label]]
            wanted[key][label] = [v if k else None for v, k in zip(wanted[key][label], known, strict=True)]
    assert found == wanted
    indices: dict[str, list[int]] = {}
    for row in (row for out in outputs for split in splits for row in sequences(out / split)):
        indices.setdefault(row["key"], []).append(row["sequence_index"])
    assert all(sorted(each) == list(range(len(each))) for each in indices.values())
    assert sum(result.events for result in results) == whole.events == len(rows)


FIRST = [("a", 0, 1.0), ("a", 10, 2.0), ("b", 5, 3.0), ("c", 1, 9.0)]
SECOND = [("a", 12, 4.0), ("b", 40, 5.0), ("d", 11, 6.0), ("a", 13, 7.0)]


def events_of(rows: Sequence[tuple[str, int, float]]) -> pa.Table:
    return pa.table(dict(zip(("key", "time", "x"), map(list, zip(*rows, strict=True)), strict=True)))


def two_nights(
    place: Path, first: pa.Table, second: pa.Table, changes: dict[str, Any] | None = None, **given: Any
) -> list[list[dict[str, Any]]]:
    """The sequences of two nights, by key and index."""
    with in_process():
        prepare(write(place / "monday", first), place / "mon", settings_of(**given))
        settings = settings_of(**given | (changes or {}))
        prepare(write(place / "tuesday", second), place / "tue", settings, continue_from=place / "mon")
    return [
        sorted(sequences(place / out), key=lambda row: (row["key"], row["sequence_index"])) for out in ("mon", "tue")
    ]


def test_the_first_event_of_a_returning_key_knows_the_time_since_its_last(tmp_path: Path) -> None:
    _, tuesday = two_nights(tmp_path, events_of(FIRST), events_of(SECOND), time_delta="since", gap=20)
    assert [(row["key"], row["sequence_index"], row["x"], row["since"]) for row in tuesday] == [
        ("a", 1, [4.0, 7.0], [2.0, 1.0]),
        ("b", 1, [5.0], [35.0]),
        ("d", 0, [6.0], [0.0]),
    ]


def test_an_event_waits_for_its_label_until_the_night_that_knows_it(tmp_path: Path) -> None:
    nights = two_nights(tmp_path, events_of(FIRST), events_of(SECOND), label="x", label_shift=1, gap=20)
    monday, tuesday = ([(row["key"], row["x"], row["x_next"]) for row in each] for each in nights)
    assert monday == [("a", [1.0], [2.0])]
    assert tuesday == [("a", [2.0, 4.0], [4.0, 7.0])]  # b's session ended in the gap


def test_for_scoring_each_event_stands_in_the_night_it_came_in(tmp_path: Path) -> None:
    given = {"label": "x", "label_shift": 1, "for_scoring": True}
    nights = two_nights(tmp_path, events_of(FIRST), events_of(SECOND), **given)
    monday, tuesday = ([(row["key"], row["x"], row["x_next"]) for row in each] for each in nights)
    assert monday == [("a", [1.0, 2.0], [2.0, None]), ("b", [3.0], [None]), ("c", [9.0], [None])]
    assert tuesday == [("a", [4.0, 7.0], [7.0, None]), ("b", [5.0], [None]), ("d", [6.0], [None])]


def test_a_key_without_event_is_carried_on_to_the_nights_after(tmp_path: Path) -> None:
    two_nights(tmp_path, events_of(FIRST), events_of(SECOND), time_delta="since")
    with in_process():
        events = write(tmp_path / "wednesday", events_of([("c", 61, 0.0)]))
        prepare(events, tmp_path / "wed", settings_of(time_delta="since"), continue_from=tmp_path / "tue")
    (row,) = sequences(tmp_path / "wed")
    assert (row["key"], row["sequence_index"], row["since"]) == ("c", 1, [60.0])


def test_what_is_left_is_as_small_as_a_row_a_key_and_hidden_from_readers(tmp_path: Path) -> None:
    with in_process():
        prepare(write(tmp_path / "monday", events_of(FIRST)), tmp_path / "mon", settings_of())
    left = pq.read_table(next((tmp_path / "mon" / "_open").iterdir())).to_pylist()
    assert {row["key"]: (row["time"], row["x"]) for row in left} == {"a": (10, None), "b": (5, None), "c": (1, None)}
    assert len(list(pq.ParquetDataset(tmp_path / "mon").files)) == 1


def test_an_event_that_comes_too_late_is_told_or_left_out_and_kept(tmp_path: Path) -> None:
    late = events_of([("a", 9, 8.0), *SECOND])
    with pytest.raises(DataError) as caught:
        two_nights(tmp_path / "stop", events_of(FIRST), late)
    assert str(caught.value) == (
        "column 'time': an event must not be older than those that the preparation before has written of its key, but "
        "key 'a' has one at 9 behind one at 10; leave such events out with --on-bad-rows skip, or prepare all events "
        "anew"
    )
    _, tuesday = two_nights(tmp_path, events_of(FIRST), late, {"on_bad_rows": "skip"})
    assert [(row["key"], row["x"]) for row in tuesday] == [("a", [4.0, 7.0]), ("b", [5.0]), ("d", [6.0])]
    result = json.loads((tmp_path / "tue" / "_SUMMARY.json").read_text())
    assert (result["late_events"], result["events"]) == (1, 4)
    (file,) = (tmp_path / "tue" / "_quarantine").iterdir()
    (row,) = pq.read_table(file).to_pylist()
    assert (row["key"], row["time"], row["quarantine_reason"], row["quarantine_row"]) == (
        *("a", 9),
        *("older than the events of its key that the preparation before has written", None),
    )


def test_context_is_what_the_first_night_found_and_one_value_a_key_over_all_nights(tmp_path: Path) -> None:
    first = events_of(FIRST).append_column("home", pa.array(["at", "at", "de", "fr"]))
    second = events_of(SECOND).append_column("home", pa.array(["at", "de", "it", "at"]))
    nights = two_nights(tmp_path, first, second, detect_context=True)
    assert [[(row["key"], row["home"]) for row in night] for night in nights] == [
        [("a", "at"), ("b", "de"), ("c", "fr")],
        [("a", "at"), ("b", "de"), ("d", "it")],
    ]
    moved = events_of(SECOND).append_column("home", pa.array(["fr", "de", "it", "fr"]))
    with pytest.raises(DataError, match="but key 'a' has 'at' and 'fr'"):
        two_nights(tmp_path / "moved", first, moved, detect_context=True)


def test_other_settings_and_what_is_no_preparation_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        two_nights(tmp_path, events_of(FIRST), events_of(SECOND), {"gap": 9}, gap=20)
    assert str(caught.value) == f"--continue {tmp_path / 'mon'} needs the settings of then: gap was 20.0 and is 9.0"
    with pytest.raises(ConfigError) as caught:
        finished(tmp_path / "tuesday", tmp_path / "tue", settings_of(), tmp_path / "monday")
    assert str(caught.value) == (
        f"--continue must name the output of a finished prepare, but {tmp_path / 'monday'} is none"
    )
    (tmp_path / "mon" / "_open").rename(tmp_path / "mon" / "_lost")
    with pytest.raises(ConfigError, match="is of an earlier version, or its _open is lost; prepare those events again"):
        finished(tmp_path / "tuesday", tmp_path / "tue", settings_of(gap=20), tmp_path / "mon")


def test_a_night_is_not_made_again_and_not_taken_for_one_that_begins_anew(tmp_path: Path) -> None:
    two_nights(tmp_path, events_of(FIRST), events_of(SECOND))
    tuesday = tmp_path / "tuesday", tmp_path / "tue", settings_of()
    assert finished(*tuesday, tmp_path / "mon") is not None
    with pytest.raises(ConfigError, match="holds the sequences of other events or settings"):
        finished(*tuesday)
