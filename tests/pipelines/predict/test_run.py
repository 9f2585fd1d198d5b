"""Predictions where each row stands for itself: slices, bad rows, whose output a directory is, the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.batches.encode_valid import encode_valid
from model.bundle.bundle import save_bundle
from model.errors import ConfigError, DataError, StateError
from model.scoring.scorer import Scorer
from model.state import STATES_CURE
from model.storage.atomic import appearing, parquet_output, remove_partial
from model.tables import slices as blocks
from pipelines.cli.app import app
from pipelines.predict.plan import plan_prediction
from pipelines.predict.prediction import Choices
from pipelines.predict.run import predict
from pipelines.predict.score_task import RowPredictor
from pipelines.predict.state_files import FINGERPRINT

NAN = float("nan")
NAN_TOLD = (
    "must be finite numbers, but an entry is NaN; `nan_is_missing: true` of this column, or under data, takes it for "
    "missing"
)


@pytest.fixture
def bundle(make_bundle: Callable[..., Any], tmp_path: Path) -> str:
    save_bundle(tmp_path / "bundle", make_bundle())
    return str(tmp_path / "bundle")


@pytest.fixture
def run(bundle: str, tmp_path: Path) -> Callable[..., pa.Table]:
    """run(table, **choices): what is written for a table of one row group, scored in this process."""

    def run(table: pa.Table, **choices: Any) -> pa.Table:
        pq.write_table(table, tmp_path / "data.parquet")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        prediction = plan_prediction(bundle, str(tmp_path / "data.parquet"), str(tmp_path / "out"), Choices(**choices))
        RowPredictor(prediction, device="cpu")(prediction.blocks[0])
        return pq.read_table(tmp_path / "out" / prediction.blocks[0].name)

    return run


def spoiled(table: pa.Table, *rows: int) -> pa.Table:
    """A value of each of these rows is no number."""
    values = table["x"].to_pylist()
    for row in rows:
        values[row] = [NAN] * len(values[row])
    return table.set_column(table.column_names.index("x"), "x", pa.array(values))


def assert_close(found: pa.Table, expected: pa.Table) -> None:
    """Equal but for the rounding of what is computed."""
    assert found.schema == expected.schema
    assert found.num_rows == expected.num_rows
    for name in found.column_names:
        if name.startswith(("rnn_cell_state", "probabilities")):
            mine, theirs = (np.concatenate(table[name].to_pylist()) for table in (found, expected))
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            assert found[name].equals(expected[name]), name


def test_a_large_row_group_is_scored_slice_by_slice(
    run: Callable[..., pa.Table], make_table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = make_table(rows=40)
    whole = run(table)
    monkeypatch.setattr(blocks, "SLICE_BYTES", 1000)
    cut = run(table)
    files = list((tmp_path / "out").glob("*.parquet"))
    assert pq.read_metadata(files[0]).num_row_groups > 10
    assert_close(cut, whole)
    assert whole.schema.metadata[FINGERPRINT.encode()]


def test_slices_are_bounded_by_what_is_read_and_by_what_is_computed(
    bundle: str, make_table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(blocks, "SLICE_BYTES", 1 << 20)
    table = make_table(lengths=[100] * 300)
    pq.write_table(table, tmp_path / "data.parquet")
    (plain,) = plan_prediction(bundle, str(tmp_path / "data.parquet"), str(tmp_path / "out"), Choices()).blocks
    decoded = sum(table[name].nbytes for name in ("x", "vector", "kind", "tags")) / table.num_rows
    assert 0.1 * blocks.SLICE_BYTES < plain.slice_rows * decoded <= blocks.SLICE_BYTES
    assert plain.slices == -(-300 // plain.slice_rows)
    assert sum(plain.rows_of(number) for number in range(plain.slices)) == 300
    (wide,) = plan_prediction(
        bundle, str(tmp_path / "data.parquet"), str(tmp_path / "out"), Choices(probabilities=True)
    ).blocks
    assert wide.slice_rows < plain.slice_rows


def test_columns_in_paths_are_inputs_and_are_carried(
    bundle: str, make_table: Any, tmp_path: Path, make_bundle: Any
) -> None:
    for country in ("at", "de"):
        directory = tmp_path / "data" / f"country={country}"
        directory.mkdir(parents=True)
        pq.write_table(make_table(rows=6).drop_columns("country"), directory / "part.parquet")
    prediction = plan_prediction(bundle, str(tmp_path / "data"), str(tmp_path / "out"), Choices())
    predictor = RowPredictor(prediction, device="cpu")
    for block, country in zip(prediction.blocks, ("at", "de"), strict=True):
        predictor(block)
        found = pq.read_table(tmp_path / "out" / block.name)
        table = make_table(rows=6)
        table = table.set_column(table.column_names.index("country"), "country", pa.array([country] * 6))
        assert found["country"].to_pylist() == [country] * 6
        assert found["classes"].to_pylist() == Scorer(make_bundle()).score(table).predictions["classes"].to_pylist()


def test_a_column_whose_nulls_the_model_bears_may_be_missing_in_some_files(
    bundle: str, make_bundle: Any, make_table: Any, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(make_table(rows=6), tmp_path / "data" / "a.parquet")
    pq.write_table(make_table(rows=6).drop_columns(["age", "tags"]), tmp_path / "data" / "b.parquet")
    prediction = plan_prediction(bundle, str(tmp_path / "data"), str(tmp_path / "out"), Choices())
    RowPredictor(prediction, device="cpu")(prediction.blocks[1])
    found = pq.read_table(tmp_path / "out" / prediction.blocks[1].name)
    table = make_table(rows=6)
    nulls = [[None] * len(steps) for steps in table["kind"].to_pylist()]  # one a step
    for name, values in (("age", [None] * 6), ("tags", nulls)):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    assert found["classes"].to_pylist() == Scorer(make_bundle()).score(table).predictions["classes"].to_pylist()
    assert found["age"].null_count == 6


def test_bad_rows_are_set_aside_with_their_reason(
    run: Callable[..., pa.Table], make_table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = make_table(lengths=[3] * 20)
    expected = run(table).take(pa.array([row for row in range(20) if row not in (0, 7, 19)]))
    monkeypatch.setattr(blocks, "SLICE_BYTES", 2000)
    found = run(spoiled(table, 0, 7, 19), on_bad_rows="skip")
    assert_close(found, expected)
    aside = pa.concat_tables(pq.read_table(file) for file in sorted((tmp_path / "out" / "_quarantine").iterdir()))
    assert aside["row"].to_pylist() == aside["quarantine_row"].to_pylist() == [0, 7, 19]
    assert set(aside["quarantine_file"].to_pylist()) == {str(tmp_path / "data.parquet")}
    assert set(aside["quarantine_column"].to_pylist()) == {"x"}
    assert set(aside["quarantine_reason"].to_pylist()) == {NAN_TOLD}


def test_an_output_may_hold_no_row_at_all(run: Callable[..., pa.Table], make_table: Any) -> None:
    table = make_table(lengths=[2, 3])
    found = run(spoiled(table, 0, 1), on_bad_rows="skip")
    assert found.num_rows == 0
    assert found.schema == run(table).schema


def test_what_is_wrong_with_a_column_is_no_matter_of_rows(run: Callable[..., pa.Table], make_table: Any) -> None:
    table = make_table(rows=4)
    table = table.set_column(table.column_names.index("x"), "x", pa.array(["a", "b", "c", "d"]))
    with pytest.raises(DataError, match=r"data\.parquet, column 'x': a sequence column must hold lists"):
        run(table, on_bad_rows="skip")


def test_a_state_of_another_width_names_file_row_and_column(run: Callable[..., pa.Table], make_table: Any) -> None:
    table = make_table(lengths=[1, 1])
    for number, width in enumerate((4, 4, 3, 3)):
        table = table.append_column(f"rnn_cell_state_{number}", pa.array([[0.0] * width] * 2))
    assert run(table, unbound_states=True).num_rows == 2
    place = table.column_names.index("rnn_cell_state_2")
    wide = table.set_column(place, "rnn_cell_state_2", pa.array([[0.0] * 3, [0.0] * 4]))
    told = (
        r"data\.parquet, row 1, column 'rnn_cell_state_2': must hold 3 numbers, but holds 4; or leave such rows out "
        r"with --on-bad-rows skip$"
    )
    with pytest.raises(StateError, match=told):
        run(wide, unbound_states=True)
    fixed = table.set_column(place, "rnn_cell_state_2", pa.array([[0.0] * 4] * 2, pa.list_(pa.float32(), 4)))
    told = r"data\.parquet, column 'rnn_cell_state_2': must hold 3 numbers, but holds 4; another model wrote it; "
    with pytest.raises(StateError, match=f"{told}{STATES_CURE}$"):
        run(fixed)
    told = r"data\.parquet: a state must have all of .* or none, but rnn_cell_state_2 is missing; "
    with pytest.raises(StateError, match=f"{told}{STATES_CURE}$"):
        run(table.drop_columns("rnn_cell_state_2"))


def test_a_column_that_only_some_files_have(bundle: str, make_table: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(make_table(), tmp_path / "data" / "a.parquet")
    pq.write_table(make_table().drop_columns("row"), tmp_path / "data" / "b.parquet")
    told = r"b\.parquet, column 'row': is not in the file, but in others; choose by --keep what is carried through$"
    with pytest.raises(DataError, match=told):
        plan_prediction(bundle, str(tmp_path / "data"), str(tmp_path / "out"), Choices())
    plan_prediction(bundle, str(tmp_path / "data"), str(tmp_path / "out"), Choices(keep=("key",)))


# Whose output a directory is ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_an_output_goes_on_only_with_what_it_was_made_from(
    bundle: str, make_bundle: Any, make_table: Any, tmp_path: Path
) -> None:
    data, out = tmp_path / "data.parquet", str(tmp_path / "out")
    pq.write_table(make_table(rows=9), data, row_group_size=3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".data.parquet.0123.partial").write_bytes(b"of a run that was killed")
    assert predict(bundle, str(data), out).skipped_files == 0
    assert not list((tmp_path / "out").glob(".*"))
    assert predict(bundle, str(data), out).skipped_files == 3
    bytes_of = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    save_bundle(tmp_path / "other", make_bundle(seed=5))
    pq.write_table(make_table(rows=9), tmp_path / "other.parquet", row_group_size=3)

    def refused(what: str, *words: str, **choices: Any) -> None:
        told = f"{out} holds predictions or states made with another {what}; remove it or name another directory"
        with pytest.raises(ConfigError) as error:
            predict(*words, out, **choices)
        assert str(error.value) == told

    refused("bundle", str(tmp_path / "other"), str(data))
    refused("input, another content of the input", bundle, str(tmp_path / "other.parquet"))
    refused("choice of columns", bundle, str(data), keep=["key"])
    refused("choice of probabilities", bundle, str(data), probabilities=True)
    refused("treatment of bad rows", bundle, str(data), on_bad_rows="skip")
    pq.write_table(make_table(rows=9, seed=1), data, row_group_size=3)
    refused("content of the input", bundle, str(data))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == bytes_of
    (tmp_path / "out" / "_SOURCE").write_text("of another version")
    with pytest.raises(ConfigError, match="holds predictions or states made with another bundle, another input, "):
        predict(bundle, str(data), out)


@pytest.mark.usefixtures("local_ray")
def test_the_command_tells_of_bad_rows_and_ends_well(bundle: str, make_table: Any, tmp_path: Path) -> None:
    data, out = tmp_path / "data.parquet", tmp_path / "out"
    pq.write_table(spoiled(make_table(lengths=[3] * 30), *range(24)), data, row_group_size=10)
    told = CliRunner().invoke(app, ["predict", bundle, str(data), str(out)], catch_exceptions=False)
    assert told.exit_code == 2
    bad = NAN_TOLD
    way_out = "or leave such rows out with --on-bad-rows skip"
    assert f"dynamic-rnn: {data}, row 0, column 'x': {bad}; {way_out}\n" in told.stderr
    assert not list(out.glob("*.parquet"))

    out = tmp_path / "skipped"
    words = ["predict", bundle, str(data), str(out), "--on-bad-rows", "skip", "--key", "row"]
    for _ in range(2):  # a second run finds all of it done, and says the same
        told = CliRunner().invoke(app, words, catch_exceptions=False)
        assert told.exit_code == 0, told.stderr
        lines = [line for line in told.stderr.splitlines() if line.startswith("bad row: ")]
        assert lines == [f"bad row: {data}, row {row}, column 'x': {bad}" for row in range(20)]
        assert f"24 bad rows were set aside, each with the reason: {out}/_quarantine\n" in told.stdout
        assert "\n6 rows in 3 files" in told.stdout
        assert f"states of 6 keys: {out}/_states\n" in told.stdout
    written = pa.concat_tables(pq.read_table(file) for file in sorted(out.glob("*.parquet")))
    assert written["row"].to_pylist() == list(range(24, 30))
    assert len(list(out.glob("*.parquet"))) == 3
    assert json.loads((out / "_SOURCE").read_text())["treatment of bad rows"] == "skip"


@pytest.mark.usefixtures("local_ray")
def test_evaluation_leaves_bad_rows_out_and_counts_them(bundle: str, make_table: Any, tmp_path: Path) -> None:
    pq.write_table(spoiled(make_table(lengths=[3] * 6), 1, 4), tmp_path / "data.parquet")
    told = CliRunner().invoke(
        app, ["evaluate", bundle, str(tmp_path / "data.parquet"), "--on-bad-rows", "skip"], catch_exceptions=False
    )
    assert told.exit_code == 0, told.stderr
    assert ["bad_rows", "2"] in [line.split() for line in told.stdout.splitlines()]
    assert ["rows", "4"] in [line.split() for line in told.stdout.splitlines()]


def test_mistakes_are_told_before_ray_starts(bundle: str, make_table: Any, tmp_path: Path) -> None:
    pq.write_table(make_table(), tmp_path / "data.parquet")
    words = ["predict", bundle, str(tmp_path / "data.parquet"), str(tmp_path / "out"), "--state-from", "nowhere"]
    told = CliRunner().invoke(app, words, catch_exceptions=False)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == (
        "dynamic-rnn: --state-from needs to know whose states they are: name the key's column by --key\n"
    )
    assert not (tmp_path / "out").exists()


# Parts ----------------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with parquet_output(tmp_path / "new" / "a.parquet", {}) as output:
            output.write(pa.table({"a": [1]}))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list((tmp_path / "new").iterdir()) == []
    for values in ([1, 2], [3]):
        with parquet_output(tmp_path / "new" / "a.parquet", {"k": "v"}) as output:
            output.write(pa.table({"a": values}))
        assert pq.read_table(tmp_path / "new" / "a.parquet").to_pydict() == {"a": values}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.parquet"]
    with appearing(tmp_path / "new" / "b") as local:
        Path(local).write_bytes(b"half")
        assert not (tmp_path / "new" / "b").exists()
        left = Path(local).name
    (tmp_path / "new" / left).write_bytes(b"left by a process that was killed")
    remove_partial(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.parquet", "b"]


def test_bad_rows_are_found_wherever_they_stand(make_bundle: Any, make_table: Any) -> None:
    scorer, table = Scorer(make_bundle()), make_table(lengths=[2] * 9)
    for bad in ([], [0], [8], [3, 4, 5], list(range(9))):
        rows, places, errors = encode_valid(spoiled(table, *bad), scorer._encode)
        assert sorted(errors) == bad
        assert [errors[row].row for row in bad] == bad
        np.testing.assert_array_equal(places, [row for row in range(9) if row not in bad])
        assert (rows is None) == (len(bad) == 9)
