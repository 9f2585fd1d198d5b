"""docs/onnx.md: its script runs an export with onnxruntime alone and gives what the model gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.bundle.bundle import Bundle, bundle_of
from model.columns import ColumnsConfig
from model.config import ModelConfig
from model.export.export import export
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel, PredictionType, ProblemType
from model.network.network import build_network
from model.scoring.stepper import Stepper
from tests.fitting import column_stats

pytest.importorskip("onnxruntime")
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "onnx.md").read_text()
EVENTS = [(12.5, "tea"), (None, "never seen"), (3.0, None)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    columns = ColumnsConfig.model_validate(
        {
            "sequence": [
                {"type": "numeric", "name": "amount", "normalizer": "zscore", "missing": "mean"},
                {"type": "embedding", "source": {"type": "vocabulary", "name": "item"}, "dimension": 3},
            ]
        }
    )
    label = FittedLabel(
        name="y",
        problem_type=ProblemType.CLASSIFICATION,
        prediction_type=PredictionType.MULTIPLE_VALUE,
        num_classes=3,
        classes=("no", "maybe", "yes"),
    )
    config = ModelConfig(
        problem_type=label.problem_type,
        prediction_type=label.prediction_type,
        columns=columns,
        label="y",
        cell_type="lstm",
        num_units=(5,),
        predict_probabilities=True,
    )
    table = pa.table({"amount": [[1.0, 20.0, 300.0]], "item": [["tea", "rum", "tea"]]})
    fitted = FittedColumns.fit(columns, column_stats(table, columns))
    return bundle_of(build_network(config, fitted, label, seed=1), fitted, label)


def test_the_script_gives_what_the_model_gives(bundle: Bundle, tmp_path: Path) -> None:
    export(bundle, tmp_path / "exported")
    script = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert script is not None
    assert set(re.findall(r"^(?:import|from) (\w+)", script.group(1), re.MULTILINE)) == {"json", "numpy", "onnxruntime"}
    done = subprocess.run(
        [sys.executable, "-c", script.group(1)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model, state = Stepper(bundle), None
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(EVENTS)
    for (amount, item), (name, *probabilities) in zip(EVENTS, lines, strict=True):
        told, state = model.event({"amount": amount, "item": item}, state)
        assert name == told["classes"]
        np.testing.assert_allclose(np.array(probabilities, float), told["probabilities"], atol=1e-6)


def test_the_signature_says_that_it_multiplies_and_what_is_missing_or_unknown(bundle: Bundle, tmp_path: Path) -> None:
    export(bundle, tmp_path / "exported")
    columns = json.loads((tmp_path / "exported" / "signature.json").read_text())["columns"]
    values = np.array([1.0, 20.0, 300.0])
    assert columns["numeric:amount"] == {
        "numbers": "(value - subtract) * multiply_by",
        "before": None,
        "subtract": [pytest.approx(values.mean())],
        "multiply_by": [pytest.approx(1 / values.std())],
        "missing": [pytest.approx(values.mean())],
        "behind_the_numbers": None,
    }
    assert columns["vocabulary:item"] == {
        "ids": "places in columns.sources['vocabulary:item'].keys of model.json, from 0",
        "unknown": 2,
        "missing": -1,
    }
