"""Bad rows under on_bad_rows: skip: found one by one, counted, set aside with the reason, and never used."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bundle.bundle import save_bundle
from model.errors import ConfigError, DataError
from model.features.sequence_table import SequenceTable
from model.scan.bad_rows import Reason, common_widths, find_bad_rows, merged_reasons, reasons_of
from model.scan.fragment_scan import FragmentScan, scan_fragment
from model.scan.split import SplitBy, training_rows
from model.scoring.metrics import results, table_metrics
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import find_fragments
from pipelines.config import RunConfig, run_config
from pipelines.evaluate import evaluate
from pipelines.ingest import scan as ingest
from pipelines.ingest.fitted_data import load_fitted, save_fitted
from pipelines.ingest.read_task import Request, RowReader
from pipelines.ingest.row_counts import RowCounts
from pipelines.quarantine import Quarantine
from pipelines.tasks.task import from_message, to_message

NAN = float("nan")

# Finding them -----------------------------------------------------------------------------------------------------


def refuse_negative(table: pa.Table) -> None:
    values = table["x"].to_pylist()
    for row, value in enumerate(values):
        if value < 0:
            raise DataError(f"is {value}", row=row, column="x")


@given(st.lists(st.integers(-2, 9), max_size=40))
def test_every_bad_row_is_found_and_no_other(values: list[int]) -> None:
    errors = find_bad_rows(pa.table({"x": pa.array(values, pa.int64())}), refuse_negative)
    assert {row: str(error.problem) for row, error in errors.items()} == {
        row: f"is {value}" for row, value in enumerate(values) if value < 0
    }


def test_a_few_bad_rows_cost_few_checks() -> None:
    values, checks = [1] * 4096, []
    for row in (5, 1000, 4000):
        values[row] = -1

    def check(table: pa.Table) -> None:
        checks.append(table.num_rows)
        refuse_negative(table)

    assert sorted(find_bad_rows(pa.table({"x": values}), check)) == [5, 1000, 4000]
    assert len(checks) <= 3 * 2 * 12 + 3


def test_rows_that_only_together_are_bad_are_found() -> None:
    def increasing(table: pa.Table) -> None:
        values = table["x"].to_pylist()
        for row in range(1, len(values)):
            if values[row] < values[row - 1]:
                raise DataError("must rise", row=row, column="x")

    table = pa.table({"x": [1, 2, 0, 3]})
    assert sorted(find_bad_rows(table, increasing)) == [2]


def test_what_is_wrong_with_a_whole_column_is_raised() -> None:
    def refuse(table: pa.Table) -> None:
        raise DataError("is of another type", column="x")

    with pytest.raises(DataError, match="column 'x': is of another type"):
        find_bad_rows(pa.table({"x": [1, 2]}), refuse)


def test_reasons_that_differ_by_values_alone_are_one() -> None:
    errors = {
        4: DataError("must be one of the 3 classes (0, 1), but is 'seven'", column="y"),
        1: DataError("must be one of the 3 classes (0, 1), but is 'two'", column="y"),
        3: DataError("must be one of the 3 classes (0, 1), but is 5", column="z"),
        2: DataError("must not be null", column="y"),
    }
    found = reasons_of(errors, "a.parquet", 10)
    assert [(reason.column, reason.rows, reason.row) for reason in found] == [("y", 2, 11), ("y", 1, 12), ("z", 1, 13)]
    assert [str(reason) for reason in merged_reasons([*found, *found])] == [
        "4 times: a.parquet, row 11, column 'y': must be one of the 3 classes (0, 1), but is 'two'",
        "2 times: a.parquet, row 12, column 'y': must not be null",
        "2 times: a.parquet, row 13, column 'z': must be one of the 3 classes (0, 1), but is 5",
    ]


# In a scan --------------------------------------------------------------------------------------------------------

BAD = {
    3: ("x", [1.0, NAN, 2.0], "must be finite numbers, but an entry is NaN; `nan_is_missing: true` of this column, or "
                             "under data, takes it for missing"),
    7: ("y", [0, 1], "the lists of a row must be equally long, but this one has 2 steps where each sequence column "
                     "has 3"),
    8: ("y", [0, None, 1], "a label must not be null, but one is"),
    11: ("vector", [[0.0] * 3, [0.0] * 2, [0.0] * 3], "every entry must hold 3 values, but this one holds 2"),
    12: ("w", -1.0, "a weight must be a number of at least 0, but is -1.0"),
}  # fmt: skip
LISTS = {"vector": pa.list_(pa.list_(pa.float32()))}


def spoilt(table: pa.Table) -> pa.Table:
    """`make_table(lengths=[3] * 16)` with the bad rows of BAD."""
    for place, (name, value, _) in BAD.items():
        values = table[name].to_pylist()
        values[place] = value
        kind = LISTS.get(name, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
    return table


@pytest.fixture
def table(make_table: Callable[..., pa.Table]) -> pa.Table:
    return spoilt(make_table(lengths=[3] * 16))


def test_bad_rows_are_left_out_of_lengths_split_and_statistics(
    tmp_path: Path, table: pa.Table, make_config: Any
) -> None:
    config, split = make_config(weight="w"), SplitBy(fraction=0.5)
    pq.write_table(table, tmp_path / "bad.parquet", row_group_size=16)
    good = [row for row in range(16) if row not in BAD]
    (fragment,) = find_fragments(tmp_path, [])
    told: dict[int, DataError] = {}
    scan = scan_fragment(fragment, config, split, fit=True, on_bad=lambda _, errors: told.update(errors))
    assert {row: (error.column, error.problem) for row, error in told.items()} == {
        row: (column, problem) for row, (column, _, problem) in BAD.items()
    }
    assert scan.used is not None
    assert scan.training is not None
    assert np.flatnonzero(scan.used).tolist() == good
    assert scan.lengths.tolist() == [0 if row in BAD else 3 for row in range(16)]
    places = training_rows(table, split, f"{fragment.file}#0")
    assert scan.training.tolist() == [bool(places[row]) and row not in BAD for row in range(16)]
    assert scan.bad_rows == len(BAD)
    kept = table.take(pa.array([row for row in good if places[row]]))
    pq.write_table(kept, tmp_path / "good.parquet")
    alone = scan_fragment(Fragment(str(tmp_path / "good.parquet"), 0, kept.num_rows), config, None, fit=True)
    assert {key: stats.to_plain() for key, stats in scan.columns.items()} == {
        key: stats.to_plain() for key, stats in alone.columns.items()
    }
    again = FragmentScan.from_plain(from_message(to_message(scan.to_plain)))
    assert (again.reasons, again.used.tolist()) == (scan.reasons, scan.used.tolist())  # type: ignore[union-attr]


def test_a_bad_row_that_a_filter_keeps_out_is_none(tmp_path: Path, table: pa.Table, make_config: Any) -> None:
    pq.write_table(table, tmp_path / "bad.parquet")
    (fragment,) = find_fragments(tmp_path, [])
    where = Filter(f"row not in {sorted(BAD)}")
    scan = scan_fragment(fragment, make_config(weight="w"), None, fit=True, where=where)
    assert scan.used is not None
    assert np.flatnonzero(~scan.used).tolist() == sorted(BAD)
    with pytest.raises(DataError) as raised:
        scan_fragment(fragment, make_config(weight="w"), None, fit=True, where=Filter("row not in (3, 7, 8)"))
    assert str(raised.value) == (
        f"{fragment.file}, row 11, column 'vector': every entry must hold 3 values, but this one holds 2"
    )


@pytest.mark.parametrize("odd", [0, 15])
def test_the_width_of_most_entries_is_the_right_one(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any, odd: int
) -> None:
    """One entry that is too long must not make bad rows of all the others."""
    table = make_table(lengths=[3] * 16)
    vectors = table["vector"].to_pylist()
    vectors[odd][1] = [0.0] * 9
    table = table.set_column(table.column_names.index("vector"), "vector", pa.array(vectors, LISTS["vector"]))
    assert common_widths(SequenceTable(table, make_config().columns), make_config()) == {"vector": 3}
    pq.write_table(table, tmp_path / "a.parquet")
    told: dict[int, DataError] = {}
    scan_fragment(find_fragments(tmp_path, [])[0], make_config(), None, fit=True, on_bad=lambda _, e: told.update(e))
    assert list(told) == [odd]


def test_a_wrong_type_is_no_matter_of_rows(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any
) -> None:
    table = make_table(lengths=[1] * 4)
    texts = pa.array([["a"]] * 4)
    pq.write_table(table.set_column(table.column_names.index("x"), "x", texts), tmp_path / "a.parquet")
    (fragment,) = find_fragments(tmp_path, [])
    with pytest.raises(DataError) as raised:
        scan_fragment(fragment, make_config(), None, fit=True, on_bad=lambda *_: pytest.fail("no row is bad"))
    assert str(raised.value) == f"{fragment.file}, column 'x': must hold numbers, but its type is string"


def damage(path: Path, group: int) -> None:
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(group).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)


def test_a_damaged_row_group_is_bad_as_a_whole(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(lengths=[2] * 12), path, row_group_size=4)
    damage(path, 1)
    fragments = find_fragments(path, [])
    with pytest.raises(DataError, match="row group 1 cannot be decoded"):
        scan_fragment(fragments[1], make_config(), SplitBy(fraction=0.5), fit=True)
    scan = scan_fragment(fragments[1], make_config(), SplitBy(fraction=0.5), fit=True, on_bad=lambda *_: None)
    assert scan.used is not None
    assert (scan.used.tolist(), scan.lengths.tolist(), scan.bad_rows) == ([False] * 4, [0] * 4, 4)
    assert str(scan.reasons[0]).startswith(f"4 times: {path}: row group 1 cannot be decoded (")


def test_a_file_that_cannot_be_reached_is_no_bad_data(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(make_table(), path)
    (fragment,) = find_fragments(path, [])
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        scan_fragment(fragment, make_config(), None, fit=True, on_bad=lambda *_: None)


def test_the_quarantine_holds_whole_rows_with_their_places_and_reasons(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "year=2020" / "a b.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=10)
    fragment = find_fragments(tmp_path, ["x", "year"])[1]
    Quarantine(str(tmp_path / "quarantine"))(fragment, {1: DataError("is bad", column="x"), 5: DataError("is worse")})
    (file,) = (tmp_path / "quarantine").iterdir()
    assert file.name.startswith("a b-")
    assert file.name.endswith("-00001.parquet")
    rows = pq.ParquetFile(file).read().to_pylist()
    assert [row["row"] for row in rows] == [11, 15]
    assert [row["year"] for row in rows] == [2020, 2020]
    assert [[row[f"quarantine_{name}"] for name in ("file", "row", "column", "reason")] for row in rows] == [
        [str(path), 11, "x", "is bad"],
        [str(path), 15, None, "is worse"],
    ]


# In a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, table: pa.Table, make_config: Any) -> Callable[..., RunConfig]:
    """run(**data): the config of a run over 16 rows of which BAD are bad, and a row group of 4 that is damaged."""
    path = tmp_path / "data" / "a.parquet"
    path.parent.mkdir()
    rows = pa.concat_tables([table, table.slice(0, 3), table.slice(4, 1)], promote_options="permissive")
    pq.write_table(rows, path, row_group_size=4)
    damage(path, 4)

    def make(**data: Any) -> RunConfig:
        return run_config(
            {
                "output": str(tmp_path / "runs"),
                "data": {"train": str(path.parent), "validation_fraction": 0, **data},
                "model": make_config(weight="w").model_dump(mode="json"),
            },
            where="run.yaml",
        )

    return make


@pytest.mark.usefixtures("local_ray", "large")
def test_a_run_counts_reports_and_sets_aside(
    run: Callable[..., RunConfig], table: pa.Table, caplog: pytest.LogCaptureFixture
) -> None:
    config = run(on_bad_rows="skip", filter="row != 0")
    quarantine = Path(config.directory, "quarantine")
    quarantine.mkdir(parents=True)
    (quarantine / "left.parquet").write_bytes(b"by an earlier scan")
    with caplog.at_level(logging.WARNING, "dynamic_rnn"):
        prepared = ingest.fit_data(config)
    report = prepared.rows
    assert (report.rows, report.used, report.filtered, report.bad) == (20, 10, 1, 9)
    assert [reason.rows for reason in report.reasons] == [1, 1, 1, 1, 1, 4]
    assert caplog.messages[0] == f"9 of 20 rows are bad and left out; those that can be read lie in {quarantine}"
    assert len(caplog.messages) == 7
    lying = [row for file in sorted(quarantine.iterdir()) for row in pq.ParquetFile(file).read()["row"].to_pylist()]
    assert lying == sorted(BAD)
    save_fitted(config.directory, prepared)
    assert load_fitted(config.directory).rows == report
    assert json.loads(Path(config.directory, "data", "rows.json").read_text())["bad"] == 9
    reader = RowReader(prepared.columns, prepared.label)
    index = prepared.train
    rows = np.concatenate([index.fragment_rows(i) for i in range(len(index.fragments))])
    assert rows.tolist() == [row for row in range(1, 16) if row not in BAD]
    backwards = reader.read(Request.of(index, rows[::-1].copy()))
    assert backwards.rows_B.tolist() == rows[::-1].tolist()
    assert backwards.labels is not None
    assert backwards.labels.tolist() == [y for row in rows[::-1] for y in table["y"][int(row)].as_py()]


@pytest.mark.usefixtures("local_ray", "large")
def test_by_default_the_first_bad_row_ends_the_run(run: Callable[..., RunConfig]) -> None:
    way_out = "; or leave such rows out with data.on_bad_rows=skip$"
    with pytest.raises(DataError, match=rf"a\.parquet, row 3, column 'x': must be finite numbers.*{way_out}"):
        ingest.fit_data(run(filter="row < 7"))
    way_out = r"; write the file again; or leave its rows out with data\.on_bad_rows=skip$"
    with pytest.raises(DataError, match=rf"a\.parquet: row group 4 cannot be decoded \(.*\){way_out}"):
        ingest.fit_data(run(filter="row != 3 and row != 7 and row != 8 and row != 11 and row != 12"))
    with pytest.raises(DataError, match=r"training needs rows, but of 20 the filter keeps out 15 and 5 are bad"):
        ingest.fit_data(run(filter="row == 3", on_bad_rows="skip"))


@pytest.mark.usefixtures("local_ray")
def test_an_evaluation_leaves_bad_rows_out_and_counts_them(
    tmp_path: Path, run: Callable[..., RunConfig], table: pa.Table, make_bundle: Callable[..., Any]
) -> None:
    bundle = make_bundle(weight="w")
    save_bundle(tmp_path / "bundle", bundle)
    data, reports = str(tmp_path / "data"), list[RowCounts]()
    run()
    found = evaluate(
        str(tmp_path / "bundle"),
        data,
        filter="row != 0",
        on_bad_rows="skip",
        quarantine=str(tmp_path / "aside"),
        on_report=reports.append,
    )
    assert (found.pop("bad_rows"), found.pop("filtered_rows")) == (9, 1)
    good = table.take(pa.array([row for row in range(1, 16) if row not in BAD]))
    expected = results(bundle.label, table_metrics(bundle.network(), bundle.columns, bundle.label, good))
    assert found == pytest.approx(expected, rel=1e-6)
    (report,) = reports
    assert (report.rows, report.used, report.filtered, report.bad) == (20, 10, 1, 9)
    assert sum(pq.read_metadata(file).num_rows for file in (tmp_path / "aside").iterdir()) == 5
    way_out = "; or leave such rows out with --on-bad-rows skip$"
    with pytest.raises(DataError, match=rf"a\.parquet, row 3, column 'x': must be finite numbers.*{way_out}"):
        evaluate(str(tmp_path / "bundle"), data, filter="row < 4")
    with pytest.raises(ConfigError, match="a quarantine is for on_bad_rows='skip'"):
        evaluate(str(tmp_path / "bundle"), data, quarantine="x")


def test_a_report_tells_its_first_reasons() -> None:
    reasons = tuple(Reason(f"is bad {'x' * i}", f"c{i}", 1, "f", i) for i in range(12))
    report = RowCounts(rows=20, used=8, bad=12, reasons=reasons)
    lines = list(report.lines("aside"))
    assert lines[0] == "12 of 20 rows are bad and left out; those that can be read lie in aside"
    assert lines[1] == "  f, row 0, column 'c0': is bad "
    assert lines[-1] == "  and 2 more reasons"
    assert len(lines) == 12
    assert list(RowCounts(rows=3, used=3).lines("aside")) == []
    assert RowCounts.from_plain(json.loads(json.dumps(report.to_plain()))) == report


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["good", "bad", "filtered"]), min_size=1, max_size=12))
def test_no_row_is_dropped_without_being_counted(make_table: Any, make_config: Any, kinds: list[str]) -> None:
    import tempfile

    table = make_table(lengths=[2] * len(kinds))
    values = [[1.0, NAN if kind == "bad" else 2.0] for kind in kinds]
    table = table.set_column(table.column_names.index("x"), "x", pa.array(values))
    table = table.append_column("kind of row", pa.array(kinds))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.parquet")
        pq.write_table(table, path, row_group_size=5)
        fragments = find_fragments(path, [])
        scans = [
            scan_fragment(
                f, make_config(), None, fit=True, where=Filter("`kind of row` != 'filtered'"), on_bad=lambda *_: 0
            )
            for f in fragments
        ]
    report = RowCounts.of([], scans)
    counts = {kind: kinds.count(kind) for kind in ("good", "bad", "filtered")}
    assert (report.rows, report.used, report.bad, report.filtered) == (len(kinds), *counts.values())
