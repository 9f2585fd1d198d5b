"""Predictions over files whose pages are damaged: an error, or under `skip` bad rows, all those of the row group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.bundle.bundle import save_bundle
from model.errors import DataError, DecodeError
from model.scoring.scorer import Scorer
from model.state import FINGERPRINT
from model.tables.slices import read_slices
from pipelines.cli.app import app
from pipelines.predict.bad_rows import BadRowPolicy, told_set_aside
from pipelines.predict.plan import plan_prediction
from pipelines.predict.prediction import Choices
from pipelines.predict.run import PredictResult, predict

ROWS, GROUP = 60, 20
NAN = float("nan")
CHAINED = pytest.mark.parametrize("key", [(), ("key",), ("row",)], ids=["plain", "chained", "a row a key"])


def flip(path: Path, column: str, group: int) -> None:
    """Other bytes in the last third of a column's pages: what is before them can be decoded."""
    metadata = pq.read_metadata(path).row_group(group)
    chunk = next(c for c in map(metadata.column, range(metadata.num_columns)) if c.path_in_schema.startswith(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    end = start + chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    for place in range(end - chunk.total_compressed_size // 3, end):
        content[place] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture
def bundle(make_bundle: Callable[..., Any], tmp_path: Path) -> str:
    save_bundle(tmp_path / "bundle", make_bundle())
    return str(tmp_path / "bundle")


@pytest.fixture
def table(make_table: Any) -> pa.Table:
    """Rows of five keys."""
    table = make_table(lengths=[4] * ROWS)
    return table.set_column(table.column_names.index("country"), "country", table["country"].dictionary_encode())


@pytest.fixture
def data(table: pa.Table, tmp_path: Path) -> Path:
    """Three row groups in small pages; the second is damaged."""
    path = tmp_path / "data.parquet"
    write(path, table)
    flip(path, "x", 1)
    return path


def spoiled(table: pa.Table) -> pa.Table:
    """Row 22, in the second row group, has a value that is no number."""
    values = table["x"].to_pylist()
    values[22] = [NAN] * 4
    return table.set_column(table.column_names.index("x"), "x", pa.array(values))


def write(path: Path, table: pa.Table) -> None:
    layout = {"data_page_size": 100, "write_batch_size": 4, "use_dictionary": ["country"], "compression": "zstd"}
    pq.write_table(table, path, row_group_size=GROUP, **layout)


def written(directory: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(directory.glob("*.parquet")))


def test_some_slices_come_before_the_damage(
    bundle: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Else the tests below would prove less than they say."""
    request.getfixturevalue("finely_cut")
    block = plan_prediction(bundle, str(data), str(tmp_path / "out"), Choices()).blocks[1]
    slices = read_slices(block, ["x"])
    assert [next(slices)[0] for _ in range(3)] == [block.first_slice + number for number in range(3)]
    with pytest.raises(DecodeError, match=r"data\.parquet: row group 1 cannot be decoded \("):
        list(slices)


@CHAINED
@pytest.mark.usefixtures("here", "finely_cut")
def test_a_damaged_row_group_is_set_aside_as_a_whole(
    bundle: str, data: Path, table: pa.Table, tmp_path: Path, key: tuple[str, ...]
) -> None:
    def run(data: Path, out: str) -> PredictResult:
        return predict(bundle, str(data), str(tmp_path / out), key=key, on_bad_rows="skip")

    write(data, spoiled(table))  # a bad row in a slice before the damage is counted once
    flip(data, "x", 1)
    first = run(data, "out")
    assert (first.rows, first.files, first.bad_rows) == (ROWS, 3, GROUP)
    good = pa.concat_tables([table.slice(0, GROUP), table.slice(2 * GROUP)])
    write(tmp_path / "good.parquet", good)
    run(tmp_path / "good.parquet", "good")
    assert written(tmp_path / "out").equals(written(tmp_path / "good"))
    assert [pq.read_metadata(file).num_rows for file in sorted((tmp_path / "out").glob("*.parquet"))] == [20, 0, 20]
    schemas = {str(pq.read_schema(file)) for file in (tmp_path / "out").glob("*.parquet")}
    assert len(schemas) == 1
    if key:
        assert first.entities == (5 if key == ("key",) else 2 * GROUP)
        states = [written(tmp_path / out / "_states").sort_by(key[0]) for out in ("out", "good")]
        assert states[0].equals(states[1])

    (told,) = told_set_aside(str(tmp_path / "out" / "_quarantine"), 20)
    assert told.startswith(f"20 times: {data}: row group 1 cannot be decoded (")
    bytes_of = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    sorted(bytes_of)[1].unlink()
    assert run(data, "out").bad_rows == GROUP
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")} == bytes_of


@CHAINED
@pytest.mark.usefixtures("local_ray")
def test_the_command_tells_of_it_and_goes_on(bundle: str, data: Path, tmp_path: Path, key: tuple[str, ...]) -> None:
    def run(out: Path, *words: str) -> Any:
        keys = [word for name in key for word in ("--key", name)]
        return CliRunner().invoke(app, ["predict", bundle, str(data), str(out), *keys, *words], catch_exceptions=False)

    told = run(tmp_path / "refused")
    assert told.exit_code == 2
    assert told.stderr.splitlines()[-1].startswith(f"dynamic-rnn: {data}: row group 1 cannot be decoded (")
    out = tmp_path / "out"
    for _ in range(2):  # a second run finds all of it done, and says the same
        told = run(out, "--on-bad-rows", "skip")
        assert told.exit_code == 0, told.stderr
        (line,) = (line for line in told.stderr.splitlines() if line.startswith("bad row: "))
        assert line.startswith(f"bad row: 20 times: {data}: row group 1 cannot be decoded (")
        assert f"20 bad rows were set aside, each with the reason: {out}/_quarantine\n" in told.stdout
    assert written(out)["row"].to_pylist() == [*range(20), *range(40, 60)]


@CHAINED
@pytest.mark.usefixtures("here", "finely_cut")
def test_a_file_that_was_restored_after_a_stop_is_read(
    bundle: str, data: Path, table: pa.Table, tmp_path: Path, key: tuple[str, ...]
) -> None:
    choices: dict[str, Any] = {"key": key, "on_bad_rows": "skip"}
    predict(bundle, str(data), str(tmp_path / "out"), **choices)
    for file in (tmp_path / "out").glob("**/*.parquet"):
        if file.parent.name != "_quarantine":
            file.unlink()
    write(data, table)
    assert predict(bundle, str(data), str(tmp_path / "out"), **choices).bad_rows == 0
    assert written(tmp_path / "out")["row"].to_pylist() == list(range(ROWS))


@pytest.mark.usefixtures("here")
def test_damaged_initial_states_are_an_error_in_any_case(
    bundle: str, data: Path, make_bundle: Any, table: pa.Table, tmp_path: Path
) -> None:
    spec = Scorer(make_bundle()).state_spec
    columns = dict(zip(spec.names, spec.to_arrow(spec.zeros(GROUP)), strict=True))
    states = tmp_path / "states.parquet"
    table = pa.table({"key": [f"entity {row}" for row in range(GROUP)], **columns})
    pq.write_table(table.replace_schema_metadata({FINGERPRINT: make_bundle().fingerprint}), states)
    flip(states, "rnn_cell_state_0", 0)
    choices: dict[str, Any] = {"key": ["key"], "state_from": str(states), "on_bad_rows": "skip"}
    with pytest.raises(DataError, match=r"states\.parquet: row group 0 cannot be decoded \("):
        predict(bundle, str(data), str(tmp_path / "out"), **choices)


def test_bytes_that_cannot_be_fetched_are_no_bad_rows(bundle: str, data: Path, tmp_path: Path) -> None:
    block = plan_prediction(bundle, str(data), str(tmp_path / "out"), Choices()).blocks[1]
    data.unlink()
    with pytest.raises(DecodeError) as told:
        list(read_slices(block, ["x"]))
    with pytest.raises(DecodeError):
        BadRowPolicy("skip", str(tmp_path / "aside")).damaged(block, told.value)
    assert not (tmp_path / "aside").exists()
