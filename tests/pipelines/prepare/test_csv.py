"""Event tables in CSV: types are found or given, files of any size are read in blocks, mistakes name the file."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError, DataError
from pipelines.cli.prepare import named_types
from pipelines.prepare import csv_events
from pipelines.prepare.run import PrepareResult, prepare
from tests.preparing import in_process, sequences, settings_of

LOG = """user,at,page,seconds,zip
ann,2026-01-01 10:00:00,"home, sweet",1.5,01234
bob,2026-01-01 09:00:00,shop,,99999
ann,2026-01-01 09:30:00.25,NA,2,
"""


def prepared(place: Path, files: dict[str, str | bytes], **given: Any) -> tuple[PrepareResult, list[dict[str, Any]]]:
    (place / "events").mkdir(parents=True)
    for name, text in files.items():
        (place / "events" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with in_process():
        result = prepare(place / "events", place / "out", settings_of(**{"key": "user", "time": "at", **given}))
    return result, sequences(place / "out")


WANTED = {
    "ann": {
        "at_first": datetime.datetime(2026, 1, 1, 9, 30, 0, 250_000),
        "page": ["NA", "home, sweet"],
        "seconds": [2.0, 1.5],
        "zip": [None, "01234"],
    },
    "bob": {
        "at_first": datetime.datetime(2026, 1, 1, 9),
        "page": ["shop"],
        "seconds": [None],
        "zip": ["99999"],
    },
}


@pytest.mark.parametrize(
    "files",
    [
        {"a.csv": LOG},
        {"a.csv.gz": gzip.compress(LOG.encode())},
        {"a.CSV".lower(): LOG.replace("\n", "\r\n")},
        {"a.tsv": LOG.replace("home, sweet", "home; sweet").replace(",", "\t").replace("; ", ", ")},
        {"a.csv": LOG.replace("home, sweet", "home~ sweet").replace(",", ";").replace("~", ",")},
        {"a.csv": "\n".join(LOG.split("\n")[:3]) + "\n", "b.csv": "\n".join(LOG.split("\n")[0:4:3]) + "\n"},
    ],
    ids=["csv", "gzip", "crlf", "tab", "semicolon", "two files"],
)
def test_a_log_in_csv_becomes_sequences(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    result, found = prepared(tmp_path, files)
    assert {row["user"]: {name: row[name] for name in WANTED["ann"]} for row in found} == WANTED
    assert result.read_as == {
        "user": "string",
        "at": "timestamp[us]",
        "page": "string",
        "seconds": "double",
        "zip": "string",
    }


def test_a_file_or_a_glob_of_csv_may_be_named(tmp_path: Path) -> None:
    prepared(tmp_path, {"a.csv": LOG, "b.csv": LOG.replace("ann", "cid")})
    for number, name in enumerate(("a.csv", "*.csv", "b*")):
        with in_process():
            settings = settings_of(key="user", time="at")
            result = prepare(tmp_path / "events" / name, tmp_path / f"out-{number}", settings)
        assert result.events == (6 if name == "*.csv" else 3)


def test_types_may_be_given_where_the_first_block_misleads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_events, "BLOCK_BYTES", 64)
    rows = [f"u{number % 3},{number},{number if number < 50 else number + 0.5}" for number in range(100)]
    text = "user,at,x\n" + "\n".join(rows) + "\n"
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "first", {"a.csv": text})
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'first' / 'events' / 'a.csv'}: cannot be read as CSV (In CSV column #2: ")
    assert told.endswith("; mend the file, or name a column's type with --types COLUMN=TYPE, such as float64 or string")
    result, found = prepared(tmp_path, {"a.csv": text}, types={"x": "float64"})
    assert result.events == 100
    assert sum(sum(row["x"]) for row in found) == sum(range(100)) + 25


def test_a_large_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_events, "BLOCK_BYTES", 500)
    text = "user,at,note\n" + "".join(f'u{number % 7},{number},"line\nof {number}"\n' for number in range(500))
    (tmp_path / "a.csv").write_text(text)
    schema = csv_events.csv_schema(str(tmp_path / "a.csv"))
    batches = list(csv_events.csv_batches(str(tmp_path / "a.csv"), schema))
    assert sum(batch.num_rows for batch in batches) == 500
    assert max(batch.num_rows for batch in batches) < 50
    assert batches[-1].column("note")[-1].as_py() == "line\nof 499"


def test_an_event_without_time_is_named_by_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, {"a.csv": "user,at,x\na,1,1\nb,,1\n"})
    assert str(caught.value) == (
        f"{tmp_path / 'events' / 'a.csv'}, row 1, column 'at': an event must have a time, but this is null"
    )


def test_what_cannot_be_read_as_csv_is_told_with_the_file(tmp_path: Path) -> None:
    for name, text in {"empty": "", "short": "user,at,x\na,1\n"}.items():
        with pytest.raises(DataError, match=rf"{name}/events/a.csv: cannot be read as CSV"):
            prepared(tmp_path / name, {"a.csv": text})
    with pytest.raises(DataError, match=r"b.csv, column 'x': is not in the file; its columns are user, at"):
        prepared(tmp_path / "less", {"a.csv": "user,at,x\na,1,1\n", "b.csv": "user,at\na,1\n"})


def test_csv_beside_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    pq.write_table(pa.table({"user": ["a"]}), tmp_path / "events" / "a.parquet")
    (tmp_path / "events" / "b.csv").write_text(LOG)
    with pytest.raises(
        DataError, match=r"an event table must be Parquet or CSV, but here are both, such as .*a\.parquet"
    ):
        prepare(tmp_path / "events", tmp_path / "out", settings_of())


def test_types_are_named_in_one_option_or_in_several() -> None:
    assert named_types(["a=int64,b=timestamp[us, UTC]", "c,d=string"]) == {
        "a": "int64",
        "b": "timestamp[us, UTC]",
        "c,d": "string",
    }
    with pytest.raises(ConfigError, match="--types must be COLUMN=TYPE, such as zip=string, but is 'zip'"):
        named_types(["zip"])
