"""What the files say of themselves: key, order, label and its source, the part of a split, what only the end tells."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from model.tables.parquet import find
from model.tables.prepared import Prepared, PreparedLabel
from pipelines.prepare.run import prepare
from pipelines.prepare.settings import PrepareSettings
from tests.preparing import in_process, settings_of, write

DAY = datetime.datetime(2026, 1, 1)
EVENTS = pa.table(
    {
        "user": ["u", "v"] * 10,
        "at": [DAY + datetime.timedelta(hours=hour) for hour in range(20)],
        "x": [float(x) for x in range(20)],
    }
)


def told(place: Path, table: pa.Table, *, mebibyte: int = 1 << 20, **given: Any) -> tuple[Prepared, ...]:
    """What the files of the sequences of a table say."""
    settings = PrepareSettings.model_validate({"key": "user", "time": "at", "task_mebibytes": 1, **given})
    with in_process(mebibyte=mebibyte, batch_bytes=200):
        prepare(write(place / "events", table, files=4), place / "out", settings)
    return find(place / "out", ["sequence_index"]).prepared


def test_every_file_says_what_its_columns_are(tmp_path: Path) -> None:
    given = {"label": "x", "label_shift": 2, "label_change": True, "gap": "3h", "split_by_time": ["2026-01-01T12"]}
    wanted = Prepared(
        key=("user",),
        index="sequence_index",
        time=("at",),
        gap_seconds=10800.0,
        label=PreparedLabel(column="x_change_2", source="x", shift=2, change=True),
        known_at_end=("at_last",),
    )
    parts = [wanted.model_copy(update={"split": split}) for split in ("train", "validation")]
    assert told(tmp_path, EVENTS, **given) == tuple(parts)
    summary = json.loads((tmp_path / "out" / "_SUMMARY.json").read_text())
    assert Prepared.model_validate(summary["prepared"]) == wanted
    assert summary["sequences"] == {"train": 2, "validation": 2}


def test_a_label_without_shift_and_data_for_scoring_say_so(tmp_path: Path) -> None:
    (found,) = told(tmp_path, EVENTS.append_column("y", EVENTS["x"]), label="y", for_scoring=True, key=None)
    assert found == Prepared(
        index="sequence_index",
        time=("at",),
        label=PreparedLabel(column="y", source="y"),
        known_at_end=("at_last",),
        for_scoring=True,
    )


USERS = 40
LENGTHS = [1 + user % 5 for user in range(USERS)]


def visits(unit: str | None) -> pa.Table:
    """Visits of different lengths, each in an hour of its own, with what a session table joins to its events."""
    rows: dict[str, list[Any]] = {name: [] for name in ("user", "at", "x")}
    once: dict[str, list[Any]] = {}
    for user, length in enumerate(LENGTHS):
        start = 1_767_225_600 + 86_400 * user
        for step in range(length):
            rows["user"].append(user)
            rows["at"].append(start + 60 * step)
            rows["x"].append(step)
        values = {
            "signed_up": start - 1000 * user,
            "began": start,
            "ended": start + 60 * (length - 1),
            "left": None if user % 3 else start + 5000,
            "pages": length,
            "seconds": 60 * (length - 1),
            "age": 20 + user % 7,
            "two": 2,
        }
        for name, value in values.items():
            once.setdefault(name, []).extend([value] * length)
    table = pa.table({**rows, **once})
    if unit is None:
        return table
    for name in ("at", "signed_up", "began", "ended", "left"):
        moments = table[name].cast(pa.timestamp("s")).cast(pa.timestamp(unit))
        table = table.set_column(table.column_names.index(name), name, moments)
    return table


@pytest.mark.parametrize("mebibyte", [1 << 20, 2000], ids=["one run", "many runs"])
@pytest.mark.parametrize("unit", ["us", "s", None])
def test_context_that_only_the_end_of_a_visit_tells_is_marked(tmp_path: Path, unit: str | None, mebibyte: int) -> None:
    found = told(tmp_path, visits(unit), mebibyte=mebibyte)
    # As plain numbers, moments that lie behind the end are like any other numbers.
    wanted = {"at_last", "ended", "pages", "seconds"} | ({"left"} if unit else set())
    assert set(found[0].known_at_end) == wanted
    named = told(tmp_path / "named", visits(unit), mebibyte=mebibyte, context=["ended", "began"], columns=["x"])
    assert named[0].known_at_end == ("at_last", "ended")


def test_the_nights_after_say_what_the_first_one_found(tmp_path: Path) -> None:
    settings = settings_of(key="user", time="at", detect_context=True)
    later = visits("us")
    later = later.set_column(1, "at", pa.array([DAY.replace(year=2030)] * later.num_rows, pa.timestamp("us")))
    with in_process():
        prepare(write(tmp_path / "events", visits("us")), tmp_path / "mon", settings)
        prepare(write(tmp_path / "later", later), tmp_path / "tue", settings, continue_from=tmp_path / "mon")
    monday, tuesday = (find(tmp_path / name, ["sequence_index"]).prepared for name in ("mon", "tue"))
    assert monday == tuesday
    assert set(monday[0].known_at_end) == {"at_last", "ended", "left", "pages", "seconds"}
