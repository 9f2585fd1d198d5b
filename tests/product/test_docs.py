"""The code in docs/ runs as it stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle.bundle import load_bundle
from model.columns import real_valued_column
from model.estimator.estimator import DynamicRnnEstimator
from model.features.labels import PredictionType, ProblemType
from model.network.cells import Cell, build_cell, flatten_state

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "custom_cells.md").read_text()


@pytest.fixture
def documented_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Cell]]:
    """The page's module, imported from a directory as a plugin is; forgotten afterwards."""
    from model import registry

    code = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert code is not None
    (tmp_path / "my_cells.py").write_text(code.group(1))
    monkeypatch.syspath_prepend(tmp_path)
    registry.import_plugins(["my_cells"])
    yield sys.modules["my_cells"].LayerNormLstm
    del sys.modules["my_cells"], registry._cells["layer_norm_lstm"]


def test_the_documented_cell_keeps_the_contract(documented_cell: type[Cell]) -> None:
    cell = build_cell("layer_norm_lstm", 3, 5)
    assert isinstance(cell, documented_cell)
    x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 0, 1, 4])
    y, state = cell.unroll(x, lengths, cell.zero_state(4), keep_state=True)
    for row, length in enumerate(lengths.tolist()):
        alone, after = [], cell.zero_state(1)
        for t in range(length):
            out, after = cell.step(x[row : row + 1, t], after)
            alone.append(out[0])
        for t, out in enumerate(alone):
            torch.testing.assert_close(y[row, t], out, atol=2e-6, rtol=0)
        for part, expected in zip(flatten_state(state), flatten_state(after), strict=True):
            torch.testing.assert_close(part[row], expected[0], atol=2e-6, rtol=0)


def test_the_documented_cell_trains_is_saved_by_name_and_scores_event_by_event(
    documented_cell: type[Cell], tmp_path: Path
) -> None:
    estimator = DynamicRnnEstimator(
        ProblemType.LINEAR_REGRESSION,
        PredictionType.MULTIPLE_VALUE,
        [real_valued_column("x")],
        num_units=4,
        cell_type="layer_norm_lstm",
        model_dir=str(tmp_path / "model"),
    )
    estimator.fit({"x": [[0.0, 1.0, 2.0], [3.0]]}, [[1.0, 2.0, 3.0], [4.0]], steps=3)
    (bundle,) = (tmp_path / "model").glob("checkpoint-*")
    assert load_bundle(bundle).config.cell_type == "layer_norm_lstm"
    assert b"my_cells" not in b"".join(path.read_bytes() for path in bundle.rglob("*") if path.is_file())
    whole = estimator.predict({"x": [[0.0, 1.0, 2.0]]}, as_iterable=False)["scores"][0]
    state, steps = None, []
    for value in (0.0, 1.0, 2.0):
        predictions, state = estimator.step({"x": value}, state)
        steps.append(predictions["scores"])
    np.testing.assert_allclose(np.array(steps, float).ravel(), np.array(whole, float), atol=1e-5)
