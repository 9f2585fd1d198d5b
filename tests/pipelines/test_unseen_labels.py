"""Evaluation and validation of labels whose class the model does not have, and keys of several columns in messages."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.batches.plan import Plan
from model.bundle.bundle import save_bundle
from model.errors import DataError
from model.scoring.metrics import results, table_metrics
from pipelines.config import RunConfig, run_config
from pipelines.evaluate import evaluate
from pipelines.ingest.fit_cache import fitted_data
from pipelines.ingest.read_task import Request, RowReader
from pipelines.train import loop
from pipelines.train.job import Report, job_on
from pipelines.train.nan_batch import places
from tune.trial import direct_batches


def with_labels(table: pa.Table, labels: Any) -> pa.Table:
    return table.set_column(table.column_names.index("y"), "y", pa.array(labels))


@pytest.mark.usefixtures("here")
def test_an_evaluation_counts_labels_of_no_class(tmp_path: Path, make_table: Any, make_bundle: Any) -> None:
    bundle, data = make_bundle(), tmp_path / "data.parquet"
    save_bundle(tmp_path / "bundle", bundle)
    table = with_labels(make_table(lengths=[2, 1, 2]), [[0, 1], [9], [2, 9]])
    pq.write_table(table, data, row_group_size=2)
    found = evaluate(str(tmp_path / "bundle"), str(data))
    assert (found["unseen_labels"], found["weight"], found["rows"]) == (2, 5, 3)
    state = table_metrics(bundle.network(), bundle.columns, bundle.label, table, unseen_labels=True)
    assert found == pytest.approx(results(bundle.label, state), rel=1e-6)
    with pytest.raises(DataError) as raised:
        evaluate(str(tmp_path / "bundle"), str(data), unseen_labels="error")
    assert str(raised.value) == (
        f"{data}, row 1, column 'y': must be one of the 3 classes (0, 1, 2), but is 9; or leave such rows out with "
        "--on-bad-rows skip"
    )
    skipped = evaluate(str(tmp_path / "bundle"), str(data), unseen_labels="error", on_bad_rows="skip")
    assert (skipped["bad_rows"], skipped["rows"], "unseen_labels" in skipped) == (2, 1, False)


# A separate path of validation rows -------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, make_table: Any, make_config: Any) -> Any:
    """run(model=…, **data): a run over two paths; two of the 5 validation labels are of a class that is no other's."""
    table = make_table(lengths=[2, 2, 2, 2])
    pq.write_table(with_labels(table, [[0, 1], [1, 2], [0, 0], [2, 1]]), tmp_path / "train.parquet")
    pq.write_table(with_labels(make_table(lengths=[2, 3]), [[0, 9], [9, 2, 1]]), tmp_path / "validation.parquet")

    def make(model: Any, **data: Any) -> RunConfig:
        paths = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation")}
        settings = make_config(columns={"sequence": [{"type": "numeric", "name": "x"}]}, **model)
        return run_config(
            {
                "output": str(tmp_path / "runs"),
                "data": {**paths, **data},
                "model": settings.model_dump(mode="json"),
                "train": {"steps": 2, "batch_sequences": 2},
            },
            where="run.yaml",
        )

    return make


@pytest.mark.parametrize("model", [{}, {"num_classes": 3}, {"classes": (0, 1, 2)}], ids=["learned", "number", "named"])
def test_a_validation_counts_labels_of_no_class(
    run: Any, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run(model)
    with caplog.at_level(logging.WARNING, "dynamic_rnn"):
        fitted = fitted_data(config)
    assert caplog.messages[0].startswith("column 'y': 2 of 5 labels of the validation rows are of 1 classes that ")
    reports: list[Report] = []
    reader = RowReader(fitted.columns, fitted.label, unseen_labels=True)
    loop.run(job_on(config, fitted, batches=partial(direct_batches, reader), report=reports.append))
    assert reports[-1].metrics["validation_unseen_labels"] == 2
    assert reports[-1].metrics["validation_weight"] == 5
    assert 0 < reports[-1].metrics["validation_loss"] < 10
    with pytest.raises(DataError, match=r"validation\.parquet, (row 0, )?column 'y': .* 9|\(9\)"):
        fitted_data(run(model, unseen_labels="error").model_copy(update={"name": "strict"}))
    training = tmp_path / "train.parquet"
    pq.write_table(with_labels(pq.read_table(training), [[0, 1], [1, 9], [0, 0], [2, 1]]), training)
    if model:
        with pytest.raises(DataError, match=r"train\.parquet, row 1, column 'y': must be one of the 3 classes"):
            fitted_data(config)


def test_training_rows_are_read_strictly_whatever_validation_counts(run: Any, tmp_path: Path) -> None:
    fitted = fitted_data(run({"num_classes": 3}))
    assert fitted.validation is not None
    reader = RowReader(fitted.columns, fitted.label, unseen_labels=True)
    request = Request.of(fitted.validation, fitted.validation.fragment_rows(0))
    rows = reader.over(Plan(fitted.validation, 2, shuffle=False)).read(request)
    assert rows.labels is not None
    assert rows.labels.tolist() == [0, -1, -1, 2, 1]
    with pytest.raises(DataError, match="must be one of the 3 classes"):
        reader.over(Plan(fitted.validation, 2)).read(request)


def test_rows_are_told_with_keys_of_several_columns(run: Any) -> None:
    fitted = fitted_data(run({"num_classes": 3}))
    plan, rows = Plan(fitted.train, 2), fitted.train.fragment_rows(0)[2:]
    assert [row["key"] for row in places(plan, rows, ("key", "row"))] == [["entity 2", 2], ["entity 3", 3]]
    assert [row["key"] for row in places(plan, rows, ("row",))] == [2, 3]
    assert all("key" not in row for row in places(plan, rows, ()))
