"""NaN as missing: with `nan_is_missing` a NaN is what a null is, by every door; else the error names the option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model import DynamicRnnEstimator
from model.batches.encode import encode_rows
from model.columns import ColumnsConfig, real_valued_column
from model.errors import DataError
from model.features.encoded import Encoded
from model.features.fitted_columns import FittedColumns
from model.state import StateSpec
from pipelines.config import run_config
from pipelines.ingest.scan import fit_data
from serve.config import LimitsConfig
from serve.wire.arrow_codec import ArrowDecoder
from serve.wire.inputs import Inputs
from tests.fitting import column_stats

NAN = float("nan")
NUMBER: dict[str, Any] = {"type": "numeric", "name": "x", "missing": "mean", "nan_is_missing": True}
KINDS: dict[str, dict[str, Any]] = {
    "mean": NUMBER,
    "zscore": NUMBER | {"normalizer": "zscore", "missing": 3},
    "minmax": NUMBER | {"normalizer": "minmax"},
    "indicator": NUMBER | {"indicator": True},
    "intervals": {"type": "bucketized", "source": NUMBER, "boundaries": [0, 2]},
    "quantiles": {"type": "bucketized", "source": NUMBER, "boundaries": {"quantiles": 3}},
    "crossed": {
        "type": "one_hot",
        "source": {
            "type": "crossed",
            "sources": [
                {"type": "bucketized", "source": NUMBER, "boundaries": [0, 2]},
                {"type": "hash_bucket", "name": "w", "buckets": 5},
            ],
            "buckets": 7,
        },
    },
}


def rows(nothing: float | None, group: str, *, vectors: bool) -> pa.Table:
    values: list[Any] = [1.0, nothing, -2.0, 5.0, 0.5]
    kind = pa.float64()
    if vectors:
        values, kind = [[value, 7.0] for value in values], pa.list_(pa.float64(), 2)
    words = ["a", "b", "c", "d", "e"]
    if group == "sequence":
        return pa.table({"x": pa.array([values[:3], values[3:]], pa.list_(kind)), "w": [words[:3], words[3:]]})
    return pa.table({"x": pa.array(values, kind), "w": words, "clock": [[1.0]] * 5})


@pytest.mark.parametrize("vectors", [False, True], ids=["one number", "vectors"])
@pytest.mark.parametrize("group", ["sequence", "context"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_is_fitted_and_encoded_as_a_null_is(kind: str, group: str, vectors: bool) -> None:
    declared = {"sequence": [{"type": "numeric", "name": "clock"}], "context": [KINDS[kind]]}
    columns = ColumnsConfig.model_validate({"sequence": [KINDS[kind]]} if group == "sequence" else declared)
    found = []
    for nothing in (NAN, None):
        table = rows(nothing, group, vectors=vectors)
        fitted = FittedColumns.fit(columns, column_stats(table, columns))
        encoded: dict[str, Encoded] = getattr(encode_rows(table, fitted), group)
        found.append((fitted, {key: part.values.tolist() for key, part in encoded.items()}))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (
            {},
            [1.0, None, NAN],
            "row 0, column 'x': must be finite numbers, but an entry is NaN; `nan_is_missing: true` of this column, or "
            "under data, takes it for missing",
        ),
        ({}, [1.0, float("inf")], "row 0, column 'x': must be finite numbers, but an entry is infinite"),
        (
            {"nan_is_missing": True},
            [NAN, float("-inf")],
            "row 0, column 'x': must be finite numbers, but an entry is infinite",
        ),
        (
            {"nan_is_missing": True, "missing": "error"},
            [1.0, NAN],
            "row 0, column 'x': must not be null or NaN; declare `missing: mean` or a number for this column to fill "
            "both",
        ),
    ],
)
def test_what_is_no_number_is_told(settings: dict[str, Any], values: list[Any], message: str) -> None:
    columns = ColumnsConfig.model_validate({"sequence": [{"type": "numeric", "name": "x", "missing": 0, **settings}]})
    fitted = FittedColumns.fit(columns, column_stats(pa.table({"x": [[1.0, 2.0]]}), columns))
    with pytest.raises(DataError) as raised:
        encode_rows(pa.table({"x": pa.array([values], pa.list_(pa.float64()))}), fitted)
    assert str(raised.value) == message


def run_of(tmp_path: Path, data: dict[str, Any], column: dict[str, Any]) -> Any:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [[1.0, NAN, 2.0]] * 8, "y": [0, 1] * 4}), path)
    model = {
        "problem_type": "classification", "prediction_type": "single_value", "label": "y", "num_units": 3,
        "columns": {"sequence": [{"type": "numeric", "name": "x", "missing": 0.5, **column}]},
    }  # fmt: skip
    settings = {"output": str(tmp_path), "data": {"train": str(path), **data}, "model": model}
    return run_config(settings, where="run.yaml")


def test_a_run_takes_nan_for_missing_in_all_its_numbers_and_its_model_knows(tmp_path: Path) -> None:
    whole = run_of(tmp_path, {"nan_is_missing": True}, {})
    single = run_of(tmp_path, {}, {"nan_is_missing": True})
    assert whole.model == single.model
    assert fit_data(whole).columns == fit_data(single).columns
    assert run_config(whole.model_dump(mode="json"), where="run.yaml") == whole
    with pytest.raises(DataError) as raised:
        fit_data(run_of(tmp_path, {}, {}))
    assert str(raised.value) == (
        f"{tmp_path}/a.parquet, row 0, column 'x': must be finite numbers, but an entry is NaN; `nan_is_missing: true` "
        f"of this column, or under data, takes it for missing; or leave such rows out with data.on_bad_rows=skip"
    )


def test_the_service_takes_nan_for_missing_where_the_model_does() -> None:
    columns = ColumnsConfig.model_validate(
        {"sequence": [NUMBER], "context": [{"type": "numeric", "name": "z", "missing": 0}]}
    )
    table = pa.table({"x": [[1.0, NAN], [2.0], [float("inf")]], "z": [1.0, NAN, 0.0]})
    fitted = FittedColumns.fit(columns, column_stats(pa.table({"x": [[1.0]], "z": [1.0]}), columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    decoder = ArrowDecoder(Inputs.of(fitted, StateSpec.of([(2,)])), LimitsConfig())
    request = decoder.decode(sink.getvalue().to_pybytes())
    assert request.good == [0]
    np.testing.assert_array_equal(request.table["x"].to_pylist()[0], [1.0, NAN])
    told = "must hold finite numbers, but holds NaN or an infinite one"
    assert {row: str(error) for row, error in request.errors.items()} == {
        1: f"column 'z': {told}", 2: f"column 'x': {told}",
    }  # fmt: skip


def test_the_estimator_takes_nan_of_tables_for_missing() -> None:
    found = []
    for nothing in (NAN, None):
        table = pa.table({"x": pa.array([[1.0, nothing], [2.0, 0.5]] * 4, pa.list_(pa.float64())), "y": [0, 1] * 4})
        column = real_valued_column("x", default_value=-1, nan_is_missing=True)
        estimator = DynamicRnnEstimator(
            problem_type="classification", prediction_type="single_value", sequence_feature_columns=[column],
            num_units=2, label="y", num_classes=2,
        )  # fmt: skip
        estimator.fit(table, steps=2, batch_size=4)
        found.append(list(estimator.predict(table.drop(["y"]), as_iterable=True)))
    assert str(found[0]) == str(found[1])
