"""`inspect` on files of which some row groups cannot be decoded, with a run and without: it goes on, and tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from model.errors import DataError
from model.scan.fragment_scan import scan_fragment
from model.tables import parquet
from model.tables.parquet import find_fragments, first_row
from pipelines.cli.app import app
from pipelines.config import RunConfig, run_config
from pipelines.ingest.scan import fit_data
from pipelines.inspect.profile_task import Look, profile_fragment
from pipelines.inspect.run import Inspection, inspect_data

GROUPS, ROWS = 4, 30


def write(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = GROUPS * ROWS
    table = pa.table(
        {
            "user_id": [f"{seed}-{row}" for row in range(rows)],
            "x": [random.normal(size=3).tolist() for _ in range(rows)],
            "label": random.choice(["a", "b"], rows).tolist(),
        }
    )
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=ROWS, compression="zstd")


def damage(path: Path, *groups: int, column: int = 1) -> None:
    """Overwrites the pages of a column in some row groups; the footer stays whole."""
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in groups:
        chunk = metadata.row_group(group).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: one is damaged in its first and last row group, another in its second."""
    directory = tmp_path_factory.mktemp("damaged") / "data"
    for number, name in enumerate("abc"):
        write(directory / f"{name}.parquet", number)
    damage(directory / "a.parquet", 0, 3)
    damage(directory / "b.parquet", 1)
    return directory


def run_over(data: Path, **settings: Any) -> RunConfig:
    columns = {"sequence": [{"type": "numeric", "name": "x"}]}
    model = {"problem_type": "classification", "prediction_type": "single_value", "label": "label", "columns": columns}
    return run_config({"data": {"train": str(data), **settings}, "model": {**model, "num_units": 4}}, where="run.yaml")


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("configured", [False, True])
def test_damaged_row_groups_are_told_by_file_and_the_rest_is_inspected(data: Path, configured: bool) -> None:
    inspection: Inspection = inspect_data(str(data), config=run_over(data) if configured else None, sample=True)
    shown = inspection.survey.sample[0]
    assert shown["x"] == json.dumps(pq.ParquetFile(data / "a.parquet").read_row_group(1)["x"][0].as_py())
    assert shown.get("user_id") == (None if configured else '"0-30"')  # a run's other columns are not read
    found = [finding for finding in inspection.findings if finding.code == "damaged"]
    assert [finding.severity for finding in found] == ["error", "error"]
    assert found[0].text.startswith(f"row groups 0, 3 of {data}/a.parquet with 60 rows cannot be decoded (")
    assert found[1].text.startswith(f"row group 1 of {data}/b.parquet with 30 rows cannot be decoded (")
    assert found[0].text.endswith("; training stops there, unless `data.on_bad_rows: skip` leaves them out")
    assert found[0].places.found == ((f"{data}/a.parquet", 0), (f"{data}/a.parquet", 90))
    assert inspection.survey.rows == 9 * ROWS
    assert inspection.survey.columns["x"].counts["rows"] == 9 * ROWS
    assert inspection.survey.lengths is not None
    assert len(inspection.survey.lengths) == 9 * ROWS
    assert not inspection.survey.faults.counts


@pytest.mark.usefixtures("local_ray")
def test_the_run_proposed_for_damaged_files_reads_what_can_be_read(data: Path, tmp_path: Path) -> None:
    proposed = inspect_data(str(data)).proposal.config
    assert proposed is not None
    assert proposed.data.on_bad_rows == "skip"
    prepared = fit_data(proposed.model_copy(update={"output": str(tmp_path)}))
    assert prepared.validation is not None
    assert prepared.train.rows + prepared.validation.rows == 9 * ROWS


@pytest.mark.usefixtures("local_ray")
def test_the_command_tells_and_counts_them_and_exits_as_for_other_errors(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_over(data).model_dump(mode="json")
    Path("run.yaml").write_text(yaml.safe_dump(run))
    for words in ([], ["--config", "run.yaml"]):
        invoke = [*("--quiet", "inspect", str(data), "--json", "told.json", "--force"), *words]
        told = CliRunner().invoke(app, invoke)
        assert told.exit_code == 0, told.output
        assert "3 row groups with 90 rows cannot be decoded" in told.stdout
        report = json.loads(Path("told.json").read_text())
        assert report["damaged"] == {"row_groups": 3, "rows": 90}
        assert report["counts"]["error"] == 2
        assert "of them damaged" in Path("inspect.html").read_text()
    assert CliRunner().invoke(app, ["--quiet", "inspect", str(data), "--no-html", "--check"]).exit_code == 1


@pytest.mark.usefixtures("local_ray")
def test_where_the_peek_meets_damage_alone_it_looks_further(tmp_path: Path) -> None:
    path = tmp_path / "data" / "a.parquet"
    write(path, 0)
    damage(path, 0, 2, 3)
    inspection = inspect_data(str(path))
    assert (inspection.survey.label.name, inspection.survey.rows) == ("label", ROWS)
    damage(path, 1)
    for config in (None, run_over(path)):
        with pytest.raises(DataError, match=r"cannot be decoded .*; and no other row group can be decoded"):
            inspect_data(str(path), config=config)


# One row group ----------------------------------------------------------------------------------------------------


def test_a_row_group_is_decoded_once_also_for_a_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    read = parquet._read
    monkeypatch.setattr(parquet, "_read", lambda *of, **how: decoded.append(of) or read(*of, **how))
    fragment = find_fragments(data / "c.parquet", ["x"])[0]
    look = Look(reference="x", label="label", model=run_over(data).model)
    assert profile_fragment(fragment, look).rows == ROWS
    assert len(decoded) == 1


def test_a_file_that_is_gone_is_no_damage(data: Path, tmp_path: Path) -> None:
    [*fragments] = find_fragments(data / "c.parquet", ["x"])
    gone = replace(fragments[1], file=str(tmp_path / "gone.parquet"))
    with pytest.raises(DataError):
        profile_fragment(gone, Look())


@pytest.mark.parametrize("optional", [False, True])
def test_the_rows_refused_are_those_that_training_finds_bad(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any, optional: bool
) -> None:
    """Of a file that lacks an optional column, with a filter, and with rows bad for several reasons."""
    table = make_table(rows=40, seed=3)
    x = table["x"].to_pylist()
    x[4] = [*x[4], 1.0]  # longer than the other lists
    x[30] = [float("nan") for _ in x[30]]
    table = table.set_column(table.column_names.index("x"), "x", pa.array(x))
    config = make_config()
    where = run_over(tmp_path, filter="row >= 10").data.where
    if optional:
        table = table.drop_columns(["age"])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    if optional:
        pq.write_table(make_table(rows=3), tmp_path / "b.parquet")
    names = ["x", "vector", "kind", "tags", "age", "country", "y"]
    for kept in (None, where):
        for fragment in find_fragments(tmp_path, names, optional=["age"], where=kept)[:2]:
            bad: dict[int, str] = {}
            scan_fragment(
                fragment,
                config,
                None,
                fit=False,
                where=kept,
                on_bad=lambda each, errors, into=bad: into.update(
                    {first_row(each) + row: error.problem for row, error in errors.items()}
                ),
            )
            told = profile_fragment(fragment, Look(model=config, where=kept)).faults
            found = {each.row: each.problem for examples in told.examples.values() for each in examples}
            assert found == bad
            assert told.rows == len(bad) == (0 if kept is not None and fragment.row_group == 0 else 1)
