"""Event tables to sequences, held against an obvious loop over sorted rows: grouping, order, cuts, labels, context."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import DataError, DynamicRnnError
from pipelines.prepare import (
    plan as prepare_plan,
)
from pipelines.prepare import (
    read as prepare_read,
)
from pipelines.prepare import (
    sort as prepare_order,
)
from pipelines.prepare import (
    tasks as prepare_tasks,
)
from pipelines.prepare.run import PrepareResult, prepare
from pipelines.prepare.settings import PrepareSettings
from pipelines.tasks import map as passes
from tests.preparing import in_process, sequences, settings_of, write

START = datetime.datetime(2026, 1, 1)


# --- the reference: what a sequence is, in plain Python -----------------------------------------------------------


def expected(rows: Sequence[dict[str, Any]], settings: PrepareSettings, gap: float | None) -> list[dict[str, Any]]:
    """The sequences of rows in input order; times are plain numbers, all columns but key and time are lists."""
    found = []
    for key in dict.fromkeys(row["key"] for row in rows):
        events = sorted((row for row in rows if row["key"] == key), key=lambda row: row["time"])  # sorted is stable
        pieces: list[dict[str, Any]] = []
        for session in _sessions(events, settings, gap):
            labelled = session if settings.for_scoring else session[: len(session) - settings.label_shift]
            step = settings.max_length or len(session)
            for start in range(0, len(labelled), step):
                pieces.append(_piece(labelled[start : start + step], session[start:], settings, events))
        found += [{"key": key, "sequence_index": index, **piece} for index, piece in enumerate(pieces)]
    return found


def _sessions(events: list[dict[str, Any]], settings: PrepareSettings, gap: float | None) -> list[list[dict[str, Any]]]:
    sessions: list[list[dict[str, Any]]] = []
    for i, event in enumerate(events):
        before = events[i - 1] if i else None
        borders = [float(border) for border in settings.split_by_time]
        new = (
            before is None
            or (gap is not None and event["time"] - before["time"] > gap)
            or any(before["time"] < border <= event["time"] for border in borders)
        )
        sessions = [*sessions, [event]] if new else [*sessions[:-1], [*sessions[-1], event]]
    return sessions


def unlabelled_events(rows: Sequence[dict[str, Any]], settings: PrepareSettings, gap: float | None) -> int:
    """How many events have no later value in their session."""
    found = 0
    for key in dict.fromkeys(row["key"] for row in rows):
        events = sorted((row for row in rows if row["key"] == key), key=lambda row: row["time"])
        found += sum(min(settings.label_shift, len(each)) for each in _sessions(events, settings, gap))
    return found


def _piece(
    part: list[dict[str, Any]], rest: list[dict[str, Any]], settings: PrepareSettings, events: list[dict[str, Any]]
) -> dict[str, Any]:
    piece: dict[str, Any] = {"time_first": part[0]["time"], "time_last": part[-1]["time"]}
    for name in ("x", "kind", "tags"):
        if name != settings.label or settings.label_shift:
            piece[name] = [event[name] for event in part]
    places = [next(i for i, each in enumerate(events) if each is event) for event in part]
    if settings.time_delta:
        piece[settings.time_delta] = [float(events[i]["time"] - events[i - 1]["time"]) if i else 0.0 for i in places]
    if settings.label and settings.label_shift:
        shift = settings.label_shift
        name = ("x_change" if settings.label_change else "x_next") + ("" if shift == 1 else f"_{shift}")
        later = [rest[i + shift]["x"] if i + shift < len(rest) else None for i in range(len(part))]
        changes = [None if None in (b, a["x"]) else b - a["x"] for a, b in zip(part, later, strict=True)]
        piece[name] = changes if settings.label_change else later
    elif settings.label:
        piece["x"] = part[-1]["x"]
    return piece


# --- any table ----------------------------------------------------------------------------------------------------


def sorted_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (str(row["key"]), row["sequence_index"]))


KEYS = {
    "string": (pa.string(), ["a", "b", "größe", ""]),
    "integer": (pa.int32(), [-3, 0, 1, 2**31 - 1]),
    "unsigned": (pa.uint64(), [0, 1, 2**63, 2**64 - 1]),
}
ROW = st.tuples(
    st.integers(0, 3),
    st.integers(-4, 12),
    st.one_of(st.none(), st.integers(-9, 9)),
    st.sampled_from(["view", "buy", None]),
    st.lists(st.sampled_from(["s", "t"]), max_size=2),
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "gap": st.sampled_from([1, 3, 2.5]),
        "max_length": st.integers(1, 5),
        "time_delta": st.just("since"),
        "split_by_time": st.sampled_from([("4",), ("0", "6")]),
        "label": st.just("x"),
        "label_shift": st.integers(1, 2),
        "label_change": st.booleans(),
        "for_scoring": st.booleans(),
        "row_group_rows": st.integers(1, 3),
    },
).filter(
    lambda given: (
        ("label_shift" not in given or "label" in given) and (not given.get("label_change") or "label_shift" in given)
    )
)


@hypothesis.given(
    rows=st.lists(ROW, min_size=1, max_size=50),
    given=SETTINGS,
    kind=st.sampled_from(sorted(KEYS)),
    time=st.sampled_from([pa.int64(), pa.float64(), pa.int8()]),
    files=st.integers(1, 3),
    group_rows=st.integers(1, 20),
    mebibyte=st.sampled_from([1 << 20, 2000]),
    collide=st.booleans(),
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_any_table_becomes_the_sequences_of_the_loop(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, ...]],
    given: dict[str, Any],
    kind: str,
    time: pa.DataType,
    files: int,
    group_rows: int,
    mebibyte: int,
    collide: bool,
) -> None:
    directory, settings = tmp_path_factory.mktemp("prepare"), settings_of(task_mebibytes=1, **given)
    key_type, keys = KEYS[kind]
    names = ("key", "time", "x", "kind", "tags")
    plain = [dict(zip(names, (keys[row[0]], *row[1:]), strict=True)) for row in rows]
    types = (key_type, time, pa.float64(), pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.string()))
    table = pa.table(
        {name: pa.array([row[name] for row in plain], each) for name, each in zip(names, types, strict=True)}
    )
    with in_process(mebibyte=mebibyte, batch_bytes=200), pytest.MonkeyPatch.context() as patch:
        if collide:  # all keys have one hash
            patch.setattr(prepare_order, "key_hashes", lambda keys: np.full(len(keys), 2**63, np.uint64))
        events = write(directory / "events", table, files=files, group_rows=group_rows)
        result = prepare(events, directory / "out", settings)
    splits = ["train", "validation", "test"][: len(settings.split_by_time) + 1] if settings.split_by_time else ["."]
    found = {split: sequences(directory / "out" / split) for split in splits}
    wanted = expected(plain, settings, None if settings.gap is None else float(settings.gap))
    assert sorted_rows([row for split in splits for row in found[split]]) == sorted_rows(wanted)
    borders = [-np.inf, *(float(border) for border in settings.split_by_time), np.inf]
    for place, split in enumerate(splits):
        assert all(borders[place] <= row["time_first"] <= row["time_last"] < borders[place + 1] for row in found[split])
    assert list(result.sequences.values()) == [len(found[split]) for split in splits]
    assert (result.events, result.keys) == (len(rows), len({row[0] for row in rows}))
    unlabelled = unlabelled_events(plain, settings, None if settings.gap is None else float(settings.gap))
    assert result.unlabelled_events == unlabelled
    assert sum(len(row["kind"]) for row in wanted) == len(rows) - (0 if settings.for_scoring else unlabelled)
    assert sorted(path.name for path in (directory / "out").iterdir() if path.name.startswith("_")) == [
        "_PREPARE.json",
        "_SUMMARY.json",
        "_open",
    ]


# --- one thing at a time ------------------------------------------------------------------------------------------


Prepared = Callable[..., tuple[PrepareResult, list[dict[str, Any]]]]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """prepared(table, mebibyte, files, **settings): (result, sequences) of a table."""

    def run(
        table: pa.Table, *, mebibyte: int = 1 << 20, files: int = 1, **given: Any
    ) -> tuple[PrepareResult, list[dict[str, Any]]]:
        number = len(list(tmp_path.iterdir()))
        events = write(tmp_path / f"events-{number}", table, files=files, group_rows=50)
        with in_process(mebibyte=mebibyte, batch_bytes=200):
            result = prepare(events, tmp_path / f"out-{number}", settings_of(**given))
        return result, sequences(tmp_path / f"out-{number}")

    return run


def test_events_of_one_time_keep_the_order_of_the_input(prepared: Prepared) -> None:
    table = pa.table({"key": ["a", "b"] * 400, "time": [1, 1, 0, 0] * 200, "row": range(800)})
    _, found = prepared(table, mebibyte=600, files=7, task_mebibytes=1, max_length=10)
    rows: dict[str, list[int]] = {"a": [], "b": []}
    for sequence in found:
        rows[sequence["key"]] += sequence["row"]
    assert rows["a"] == [*range(2, 800, 4), *range(0, 800, 4)]
    assert rows["b"] == [*range(3, 800, 4), *range(1, 800, 4)]


def test_the_order_of_keys_depends_on_neither_memory_nor_files(prepared: Prepared) -> None:
    random = np.random.default_rng(0)
    table = pa.table({"key": random.integers(0, 90, 900), "time": random.integers(0, 50, 900), "row": range(900)})
    _, once = prepared(table)
    _, often = prepared(table, mebibyte=500, files=4, task_mebibytes=1)
    assert once == often
    assert [row["key"] for row in once] != sorted(row["key"] for row in once)  # by the hash, so that a row group mixes


def at(minutes: float) -> datetime.datetime:
    return START + datetime.timedelta(minutes=minutes)


TIMES = [0, 1, 31, 62, 63]
EVENTS = pa.table({"key": ["u"] * 5, "time": [at(t) for t in TIMES], "x": [1.0, 2.0, 3.0, 4.0, 5.0]})


def test_a_longer_gap_begins_a_sequence_and_the_delta_is_the_true_one(prepared: Prepared) -> None:
    _, found = prepared(EVENTS, gap="30m", time_delta="since")
    assert [(row["sequence_index"], row["x"], row["since"]) for row in found] == [
        (0, [1.0, 2.0, 3.0], [0.0, 60.0, 1800.0]),  # 30 minutes are not longer than 30 minutes
        (1, [4.0, 5.0], [1860.0, 60.0]),
    ]
    assert [(row["time_first"], row["time_last"]) for row in found] == [(at(0), at(31)), (at(62), at(63))]


def test_the_next_value_is_found_behind_a_cut_but_not_behind_a_gap(prepared: Prepared) -> None:
    result, found = prepared(EVENTS, gap="30m", label="x", label_shift=1, max_length=1)
    assert [(row["sequence_index"], row["x"], row["x_next"]) for row in found] == [
        (0, [1.0], [2.0]),
        (1, [2.0], [3.0]),
        (2, [4.0], [5.0]),
    ]
    assert result.unlabelled_events == 2


def test_a_label_may_be_the_change_until_a_later_event(prepared: Prepared) -> None:
    _, found = prepared(EVENTS, gap="30m", label="x", label_shift=1, label_change=True)
    assert [(row["x"], row["x_change"]) for row in found] == [([1.0, 2.0], [1.0, 1.0]), ([4.0], [1.0])]
    words = EVENTS.append_column("word", pa.array(["a", "b", "c", "d", "e"]))
    with pytest.raises(DataError, match="a label that tells a change must hold numbers, but its type is string"):
        prepared(words, label="word", label_shift=1, label_change=True)


def test_a_split_ends_sequences_and_no_label_looks_behind_it(prepared: Prepared, tmp_path: Path) -> None:
    prepared(EVENTS, split_by_time=["2026-01-01T00:31:00"], label="x", label_shift=1)
    (train,), (validation,) = (sequences(tmp_path / "out-0" / split) for split in ("train", "validation"))
    assert (train["sequence_index"], train["x"], train["x_next"]) == (0, [1.0], [2.0])
    assert (validation["sequence_index"], validation["x"], validation["x_next"]) == (1, [3.0, 4.0], [4.0, 5.0])


def test_a_label_without_shift_is_the_last_value_and_no_input(prepared: Prepared) -> None:
    table = EVENTS.append_column("y", pa.array(["a", "b", "c", "d", "e"]))
    _, found = prepared(table, label="y", max_length=3)
    assert [(row["x"], row["y"]) for row in found] == [([1.0, 2.0, 3.0], "c"), ([4.0, 5.0], "e")]


@pytest.mark.parametrize(
    ("kind", "boundary", "gap", "deltas"),
    [
        (pa.timestamp("ns"), "2026-01-03", "36h", [0.0, 86400.0, 172800.0]),
        (pa.timestamp("s", "Europe/Vienna"), "2026-01-03T01:00+01:00", "36h", [0.0, 86400.0, 172800.0]),
        (pa.timestamp("ms", "UTC"), "2026-01-03", "1.5d", [0.0, 86400.0, 172800.0]),
        (pa.date32(), "2026-01-03", "1d", [0.0, 86400.0, 172800.0]),
        (pa.date64(), "2026-01-03", "1440m", [0.0, 86400.0, 172800.0]),
    ],
)
def test_every_kind_of_moment_is_ordered_and_measured(
    prepared: Prepared, tmp_path: Path, kind: pa.DataType, boundary: str, gap: str, deltas: list[float]
) -> None:
    days = [datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (4, 1, 2)]
    times = pa.array([day.replace(tzinfo=None) for day in days], pa.timestamp("us"))
    times = times.cast(pa.timestamp("us", "UTC")).cast(kind) if getattr(kind, "tz", None) else times.cast(kind)
    table = pa.table({"key": ["u"] * 3, "time": times, "x": [3, 1, 2]})
    _, found = prepared(table, gap=gap, time_delta="since")
    assert [row["x"] for row in found] == [[1, 2], [3]]
    assert [value for row in found for value in row["since"]] == deltas
    prepared(table, split_by_time=[boundary])
    out = tmp_path / "out-2"
    assert [row["x"] for split in ("train", "validation") for row in sequences(out / split)] == [[1, 2], [3]]
    written = pq.read_schema(next((tmp_path / "events-0").glob("*"))).field("time").type
    assert pq.read_schema(next(out.rglob("*.parquet"))).field("time_first").type == written


def test_lists_and_vectors_of_an_event_become_lists_of_lists(prepared: Prepared, tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(10, dtype=np.float32)), 2)
    table = pa.table(
        {"key": [1, 2, 1, 2, 1], "time": range(5), "v": vectors, "tags": [["a"], [], ["b", "c"], None, []]}
    )
    _, found = prepared(table)
    assert {row["key"]: (row["v"], row["tags"]) for row in found} == {
        1: ([[0, 1], [4, 5], [8, 9]], [["a"], ["b", "c"], []]),
        2: ([[2, 3], [6, 7]], [[], None]),
    }
    schema = pq.read_schema(next((tmp_path / "out-0").glob("*.parquet")))
    assert schema.field("v").type == pa.list_(pa.list_(pa.float32(), 2))


def test_files_that_spell_a_type_otherwise_are_one_table(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    text = pa.array(["a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"key": text, "time": pa.array([1, 2], pa.int32()), "x": [1, 2]}), events / "1.parquet")
    other = {"x": [0.5], "time": pa.array([0], pa.int64()), "key": pa.array(["a"], pa.large_string())}
    pq.write_table(pa.table(other), events / "2.parquet")
    with in_process():
        prepare(events, tmp_path / "out", settings_of())
    assert {row["key"]: row["x"] for row in sequences(tmp_path / "out")} == {"a": [0.5, 1.0], "b": [2.0]}


# --- context ------------------------------------------------------------------------------------------------------


CONTEXT = {
    "key": ["a", "b", "a", "b", "a", "c"],
    "time": range(6),
    "country": ["at", "de", "at", "de", "at", "fr"],
    "age": pa.array([30, None, 30, None, 30, 7], pa.int8()),
    "late": [1, 2, 1, 2, 9, 3],  # differs in the last event of a alone
    "some": [None, "x", None, "x", "y", None],  # a null is another value
    "share": [np.nan, 1.0, np.nan, 1.0, np.nan, 2.0],
    "tags": [["p"]] * 6,  # lists stay lists unless named
}


@pytest.mark.parametrize("mebibyte", [1 << 20, 200], ids=["one run", "many runs"])
def test_columns_with_one_value_a_key_become_context(prepared: Prepared, mebibyte: int) -> None:
    table = pa.table(CONTEXT)
    result, found = prepared(table, mebibyte=mebibyte, files=6, task_mebibytes=1, detect_context=True)
    assert result.detected_context == result.context_columns == ("country", "age", "share")
    assert result.sequence_columns == ("late", "some", "tags")
    assert {row["key"]: (row["country"], row["age"], row["late"]) for row in found} == {
        "a": ("at", 30, [1, 1, 9]),
        "b": ("de", None, [2, 2]),
        "c": ("fr", 7, [3]),
    }


def test_nothing_is_taken_for_context_without_evidence_or_against_a_choice(prepared: Prepared) -> None:
    once = pa.table({"key": [1, 2, 3], "time": [0, 0, 0], "x": [1, 2, 3], "y": [1, 2, 3]})
    assert prepared(once, detect_context=True)[0].detected_context == ()
    constant = pa.table({"key": [1, 1], "time": [0, 1], "x": [5, 5]})
    assert prepared(constant, detect_context=True)[0].sequence_columns == ("x",)  # else nothing would have a length
    both = constant.append_column("y", pa.array([1, 1]))
    assert prepared(both, columns=["x"], detect_context=True)[0].sequence_columns == ("x",)


def test_named_context_is_taken_and_a_conflict_names_key_and_values(prepared: Prepared, tmp_path: Path) -> None:
    _, found = prepared(pa.table(CONTEXT), context=["tags", "age"], columns=["late"])
    assert {row["key"]: (row["tags"], row["age"]) for row in found}["b"] == (["p"], None)
    with pytest.raises(DataError) as caught:
        prepared(pa.table(CONTEXT), mebibyte=200, files=6, task_mebibytes=1, context=["late"])
    assert str(caught.value) == (
        "column 'late': a context column must have one value a key, but key 'a' has 1 and 9; leave it out of "
        "--context to have a list, or mend the events"
    )
    assert not (tmp_path / "out-2").exists()


# --- mistakes -----------------------------------------------------------------------------------------------------


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "key": (
        {"key": "kye"},
        "--key must name a column of the events, but 'kye' is none; did you mean key?; they have key, time, x, meta",
    ),
    "time": ({"time": "meta"}, "column 'meta': the time must be a timestamp, date, integer or float, but its type is"),
    "map key": (
        {"key": "meta"},
        "column 'meta': a key must hold texts, whole numbers, booleans or uuids, but its ",
    ),
    "two keys": ({"key": "key,kye"}, "--key must name a column of the events, but 'kye' is none; did you mean key?"),
    "order": ({"time": "time,key"}, "column 'key': what orders events of one time must be a timestamp, date, integer "),
    "type": (
        {"types": {"x": "int"}},
        "--types must be types of Arrow, such as int64, float64, string, bool, date32, t",
    ),
    "typed": (
        {"types": {"y": "int64"}},
        "--types must name columns of the events, but 'y' is none; they have key, tim",
    ),
    "two parts": ({"context": ["x"], "columns": ["x"]}, "has one part, but 'x' stands under --context and --columns"),
    "map": (
        {},
        "column 'meta': must hold values or lists of them, but its type is map<string, int64 ('meta')>; name",
    ),
    "nothing left": ({"context": ["meta"], "label": "x"}, "at least one column must be left for the sequences, but k"),
    "name": ({"columns": ["x"], "time_delta": "x"}, "the sequences would have two columns 'x'; rename that of the ev"),
    "gap": ({"columns": ["x"], "gap": "30"}, "--gap must be a duration such as 30m, because 'time' is timestamp[us], "),
    "gap unit": ({"gap": "30 minutes"}, "gap must be a duration such as 90s, 30m, 12h or 7d, or a number, but is '30"),
    "gap sign": ({"gap": -1}, "gap must be longer than nothing, but is -1"),
    "change": ({"label": "x", "label_change": True}, "label_change needs `label_shift`, which says until when"),
    "shift": ({"label_shift": 1}, "label_shift needs `label`, the column whose later value is the label"),
    "boundary": ({"columns": ["x"], "split_by_time": ["monday"]}, "--split-by-time must be a moment such as 2018-01-"),
    "boundaries": ({"columns": ["x"], "split_by_time": ["2026-02-01", "2026-01-01"]}, "must rise, but is 2026-02-01,"),
    "three": ({"split_by_time": ["1", "2", "3"]}, "split_by_time"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(prepared: Prepared, tmp_path: Path, mistake: str) -> None:
    given, message = MISTAKES[mistake]
    meta = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))
    table = pa.table({"key": ["a"], "time": [START], "x": [1.0], "meta": meta})
    with pytest.raises(DynamicRnnError) as caught:
        prepared(table, **given)
    assert message in str(caught.value)
    assert not (tmp_path / "out-0").exists()


def test_files_whose_types_do_not_go_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    pq.write_table(pa.table({"key": ["a"], "time": [1], "x": [1]}), tmp_path / "events" / "1.parquet")
    pq.write_table(pa.table({"key": ["a"], "time": [1], "x": ["one"]}), tmp_path / "events" / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet: the files of an event table must agree on each column's type"):
        prepare(tmp_path / "events", tmp_path / "out", settings_of())
    pq.write_table(pa.table({"key": ["a"], "time": [1]}), tmp_path / "events" / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet, column 'x': is not in the file"):
        prepare(tmp_path / "events", tmp_path / "out", settings_of())


def test_damaged_pages_are_told_with_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "events", pa.table({"key": ["a"] * 999, "time": range(999), "x": range(999)})) / "0.parquet"
    content = bytearray(file.read_bytes())
    content[4:200] = b"\xff" * 196
    file.write_bytes(content)
    with in_process(), pytest.raises(DataError, match=r"0\.parquet: row group 0 cannot be decoded"):
        prepare(tmp_path / "events", tmp_path / "out", settings_of())
    assert not (tmp_path / "out").exists()


BAD = pa.table(
    {
        "key": pa.array(["a", None, "a", "b", "b", None], pa.string()),
        "time": pa.array([3.0, 1.0, None, np.nan, 1.0, np.inf], pa.float64()),
        "x": [0, 1, 2, 3, 4, 5],
    }
)


def test_an_event_without_key_or_time_is_named(prepared: Prepared) -> None:
    for row, message in [
        (1, "1, column 'key': an event must have a key, but this is null"),
        (2, "0, column 'time': an event must have a time, but this is null"),
        (3, "0, column 'time': the time must be a finite number, but is nan"),
    ]:
        with pytest.raises(DataError) as caught:
            prepared(BAD.slice(row - (row == 1)))
        assert str(caught.value).endswith(f"0.parquet, row {message}")


def test_bad_events_are_counted_and_kept_apart_where_they_are_skipped(prepared: Prepared, tmp_path: Path) -> None:
    result, found = prepared(BAD, files=2, on_bad_rows="skip")
    assert (result.bad_events, result.events, result.keys) == (4, 2, 2)
    assert {row["key"]: row["x"] for row in found} == {"a": [0], "b": [4]}
    files = sorted((tmp_path / "out-0" / "_quarantine").glob("*.parquet"))
    told = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    assert [(Path(row["quarantine_file"]).name, row["quarantine_row"], row["x"]) for row in told] == [
        ("0.parquet", 1, 1),
        ("0.parquet", 2, 2),
        ("1.parquet", 0, 3),
        ("1.parquet", 2, 5),
    ]
    assert [row["quarantine_column"] for row in told] == ["key", "time", "time", "time"]
    with pytest.raises(DataError, match="no event is left: all 1 lack a key or a time"):
        prepared(BAD.slice(2, 1), on_bad_rows="skip")


def test_a_sequence_that_no_task_can_hold_is_refused_with_its_key(prepared: Prepared) -> None:
    table = pa.table({"key": ["long"] * 3000, "time": range(3000), "x": np.zeros(3000)})
    with pytest.raises(DataError) as caught:
        prepared(table, mebibyte=4000, files=9, task_mebibytes=1)
    assert str(caught.value).startswith("a sequence must fit in ")
    assert "but that of key 'long' has more than " in str(caught.value)
    assert str(caught.value).endswith("events in a row; cut it with --max-length or --gap")
    result, _ = prepared(table, mebibyte=4000, files=9, task_mebibytes=1, max_length=10)
    assert result.sequences == {"": 300}


def test_row_groups_and_files_are_bounded_in_rows_and_bytes(prepared: Prepared, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pa.table({"key": random.integers(0, 99, 5000), "time": range(5000), "x": random.normal(size=5000)})
    prepared(table, row_group_rows=7)
    out = tmp_path / "out-0" / "part-00000-000.parquet"
    metadata = pq.read_metadata(out)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [7] * 14 + [1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_tasks, "MIB", 8000)
        events = tmp_path / "events-0"
        patch.setattr(passes, "ray_is_running", lambda: False)
        prepare(events, tmp_path / "small", settings_of(row_group_mebibytes=1, file_mebibytes=1, task_mebibytes=40))
    files = sorted((tmp_path / "small").glob("part-*.parquet"))
    groups = [
        pq.ParquetFile(file).read_row_group(i) for file in files for i in range(pq.read_metadata(file).num_row_groups)
    ]
    assert len(files) == 3
    assert max(group.nbytes for group in groups) < 9000
    assert sum(group.num_rows for group in groups) == 99


def test_a_row_group_larger_than_the_memory_is_read_in_portions(tmp_path: Path) -> None:
    table = pa.table({"key": [1] * 2000, "time": range(2000), "x": np.zeros(2000)})
    reader = prepare_read.EventReader(
        prepare_plan.plan_of(write(tmp_path / "events", table), settings_of()).layout, False
    )
    share = prepare_plan.plan_of(tmp_path / "events", settings_of()).shares[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_read, "BATCH_BYTES", 2000)
        portions = list(reader.portions(share, 10_000))
    assert sum(table.num_rows for tables, _ in portions for table in tables) == 2000
    assert max(sum(table.num_rows for table in tables) for tables, _ in portions) <= 10_000 // 40 + 128
