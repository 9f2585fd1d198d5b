"""INT96, the time of Hive and older Spark, is the time that was written, in every reader; other units stay."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.features.stats import matrix_of
from model.settings import build
from model.tables.arrow_lists import numbers, plain
from model.tables.fragments import Fragment
from model.tables.parquet import find, read_fragment, read_whole_fragment
from model.tables.slices import empty_slices, read_footers, read_slices, slice_row_groups
from pipelines.prepare.plan import plan_of
from pipelines.prepare.read import EventReader
from pipelines.prepare.settings import PrepareSettings

LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999)
TIMES = [datetime(1, 1, 1), datetime(1816, 3, 30), datetime(2024, 2, 29, 12), LAST]


@pytest.fixture
def int96(tmp_path: Path) -> str:
    table = pa.table(
        {
            "t": pa.array(TIMES, pa.timestamp("us")),
            "times": pa.array([[time, None] for time in TIMES], pa.list_(pa.timestamp("us"))),
            "key": [1, 1, 1, 1],
            "v": [0.0, 1.0, 2.0, 3.0],
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    assert pq.read_metadata(path).schema.column(0).physical_type == "INT96"
    return str(path)


def test_int96_of_any_year_is_read_as_it_was_written(int96: str) -> None:
    fragment = Fragment(int96, 0, 4)
    for table in (read_fragment(fragment, ["t", "times"]), read_whole_fragment(fragment)):
        assert table["t"].to_pylist() == TIMES
        assert table["times"].to_pylist() == [[time, None] for time in TIMES]
    seconds = numbers(plain(read_fragment(fragment, ["t"])["t"]), "t")
    assert seconds[-1] == (LAST - datetime(1970, 1, 1)).total_seconds()
    assert matrix_of(plain(read_fragment(fragment, ["t"])["t"]), "t").shape == (4, 1)


def test_slices_of_int96_hold_what_their_footer_promises(int96: str) -> None:
    fragments = find(int96, ["t"]).fragments
    footers = read_footers([int96])
    assert footers[int96].schema.field("t").type == pa.timestamp("us")
    (block,) = slice_row_groups(fragments, footers, ["t"], row_bytes=0, step_bytes=0)
    assert [table["t"].to_pylist() for _, table in read_slices(block, ["t"])] == [TIMES]
    assert [table.schema.field("t").type for _, table in empty_slices(block, ["t"])] == [pa.timestamp("us")]


def test_events_are_sorted_by_int96_of_any_year(int96: str) -> None:
    settings = build(PrepareSettings, {"key": "key", "time": "t", "columns": ["v"]}, where="prepare")
    plan = plan_of(int96, settings)
    assert plan.layout.schema.field("t").type == pa.timestamp("us")
    ((tables, bad),) = EventReader(plan.layout, skip=False).portions(plan.shares[0], 1 << 20)
    assert bad is None
    assert pa.concat_tables(tables)["t"].to_pylist() == TIMES


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_other_times_keep_their_unit(tmp_path: Path, unit: str) -> None:
    values = pa.array(np.array([1, 2], f"datetime64[{unit}]"))
    pq.write_table(pa.table({"t": values}), tmp_path / "a.parquet")
    assert read_fragment(Fragment(str(tmp_path / "a.parquet"), 0, 2), ["t"])["t"].combine_chunks().equals(values)
