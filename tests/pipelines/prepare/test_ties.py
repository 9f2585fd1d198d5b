"""Events of one time: ordered by further columns, and counted where the order in the files decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest

from pipelines.cli.prepare import show_summary
from pipelines.console import Console
from pipelines.prepare.run import PrepareResult, prepare
from tests.preparing import in_process, sequences, settings_of, write

ROW = st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(0, 3), st.floats(0, 2).map(lambda x: round(x, 0)))


def table_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    types = {"key": pa.string(), "time": pa.int32(), "first": pa.int64(), "second": pa.float64()}
    columns = list(zip(*rows, strict=True))
    table = {name: pa.array(column, types[name]) for name, column in zip(types, columns, strict=True)}
    return pa.table({**table, "row": range(len(rows))})


@hypothesis.given(
    rows=st.lists(ROW, min_size=1, max_size=60),
    order=st.sampled_from(["time", "time,first", "time,first,second", "time,second"]),
    given=st.fixed_dictionaries(
        {},
        optional={
            "max_length": st.integers(1, 4),
            "gap": st.just(1),
            "label_shift": st.integers(0, 2),
            "for_scoring": st.booleans(),
        },
    ),
    mebibyte=st.sampled_from([1 << 20, 500]),
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_any_ties_are_ordered_by_the_columns_and_counted_where_none_does(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, ...]],
    order: str,
    given: dict[str, Any],
    mebibyte: int,
) -> None:
    place = tmp_path_factory.mktemp("ties")
    settings = settings_of(time=order, columns=["row", "time"], label="row", task_mebibytes=1, **given)
    if not settings.label_shift:
        settings = settings.model_copy(update={"columns": ("time",)})
    with in_process(mebibyte=mebibyte, batch_bytes=100):
        result = prepare(write(place / "events", table_of(rows), files=3, group_rows=9), place / "out", settings)
    by = ["time", *order.split(",")[1:]]
    plain = table_of(rows).to_pylist()

    def equal(one: dict[str, Any], other: dict[str, Any], names: list[str]) -> bool:
        return all(one[name] == other[name] for name in ["key", *names])

    tied = {row["row"] for row in plain if sum(equal(row, other, ["time"]) for other in plain) > 1}
    unordered = {row["row"] for row in plain if sum(equal(row, other, by) for other in plain) > 1}
    assert (result.tied_events, result.unordered_events) == (len(tied), len(unordered))

    found = sequences(place / "out")
    if settings.label_shift:
        events = [event for row in found for event in row["row"]]
        wanted = sorted(plain, key=lambda row: [row[name] for name in ["key", *by]])  # stable
        gone = {row["row"] for row in wanted} - set(events)
        assert [
            event for row in sorted(found, key=lambda row: (row["key"], row["sequence_index"])) for event in row["row"]
        ] == [row["row"] for row in wanted if row["row"] not in gone]
        name = result.prepared["label"]["column"]
        pairs = [pair for row in found for pair in zip(row["row"], row[name], strict=True) if pair[1] is not None]
    else:
        pairs = [(row["row"], row["row"]) for row in found]
    decided = sum(event in unordered or label in unordered for event, label in pairs)
    assert (result.unordered_labels, result.labels) == (decided, len(pairs))


def told(result: PrepareResult, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    show_summary(Console(), result)
    lines = [line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[-1].strip() for line in lines}


def test_the_summary_says_what_the_order_in_the_files_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"key": ["a"] * 4, "time": [0, 1, 1, 2], "seq": [0, 2, 1, 0], "x": [1, 2, 3, 4]})
    events, given = write(tmp_path / "events", table), {"label": "x", "label_shift": 1}
    with in_process():
        loose = prepare(events, tmp_path / "loose", settings_of(**given))
        ordered = prepare(events, tmp_path / "ordered", settings_of(time="time,seq", **given))
    assert told(loose, capsys)["events that tie in time"] == (
        "2 of 4 (50%); the files' order decides for 2 and 3 of 3 labels: --time time,COLUMN orders them"
    )
    assert told(ordered, capsys)["events that tie in time"] == "2 of 4 (50%), ordered by seq"
    assert [row["x"] for place in ("loose", "ordered") for row in sequences(tmp_path / place)] == [
        [1, 2, 3],
        [1, 3, 2],
    ]
    assert sequences(tmp_path / "ordered")[0]["seq"] == [0, 1, 2]  # a value like others
