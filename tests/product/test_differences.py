"""Where we differ from the original on purpose (docs/differences.md), as far as no other test holds it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model import (
    DynamicRnnEstimator,
    PredictionType,
    ProblemType,
    Scorer,
    embedding_column,
    real_valued_column,
    sparse_column_with_integerized_feature,
)
from model.batches.collate import collate
from model.batches.encode import encode_rows
from model.errors import ConfigError, DataError
from model.network import heads as losses
from model.training.config import OptimizerConfig
from model.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
CLASSIFICATION, REGRESSION = ProblemType.CLASSIFICATION, ProblemType.LINEAR_REGRESSION
SINGLE, MULTIPLE = PredictionType.SINGLE_VALUE, PredictionType.MULTIPLE_VALUE
X = np.random.default_rng(0).normal(size=(3, 4))


def estimator(problem: ProblemType = REGRESSION, prediction: PredictionType = MULTIPLE, **options: Any) -> Any:
    settings = {"sequence_feature_columns": [real_valued_column("x")], "num_units": 3, "config": {"device": "cpu"}}
    return DynamicRnnEstimator(problem, prediction, **(settings | options))


def fitted(problem: ProblemType = REGRESSION, prediction: PredictionType = MULTIPLE, **options: Any) -> Any:
    labels = np.zeros((3, 4) if prediction is MULTIPLE else 3, np.int64)
    return estimator(problem, prediction, **options).fit(x={"x": X}, y=labels, steps=2)


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: model.get_variable_value(name) for name in model.get_variable_names()}


# Lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ProblemType)
def test_a_row_without_steps_has_no_prediction_and_keeps_its_state(problem: ProblemType) -> None:
    model = fitted(problem, SINGLE, num_classes=2)
    state = np.full((3, 3), 0.5, np.float32)
    features = {"x": X, "rnn_cell_state_0": state}
    found = model.predict(x={**features, "sequence_length": [4, 0, 2]}, as_iterable=False)
    key = "classes" if problem is CLASSIFICATION else "scores"
    np.testing.assert_array_equal(found[key][1], -1 if problem is CLASSIFICATION else np.nan)
    np.testing.assert_array_equal(found["rnn_cell_state_0"][1], state[1])
    other = model.predict(x={**features, "x": X[[0, 2, 1]], "sequence_length": [4, 2, 0]}, as_iterable=False)
    np.testing.assert_array_equal(found[key][[0, 2]], other[key][[0, 1]])


@pytest.mark.parametrize("prediction", PredictionType)
def test_a_length_beyond_the_data_is_refused(prediction: PredictionType) -> None:
    with pytest.raises(DataError) as raised:
        fitted(REGRESSION, prediction).predict(x={"x": X, "sequence_length": [4, 5, 4]}, as_iterable=False)
    assert str(raised.value) == "row 1, column 'x': sequence_length is 5, but there are 4 steps"


def test_lengths_may_be_any_integers_and_have_a_trailing_one() -> None:
    model = fitted()
    expected = model.predict(x={"x": X, "sequence_length": [1, 2, 3]}, as_iterable=False)["scores"]
    for kind in (np.int32, np.int64, np.uint8):
        lengths = np.array([[1], [2], [3]], kind)
        found = model.predict(x={"x": X, "sequence_length": lengths}, as_iterable=False)["scores"]
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError) as raised:
        model.predict(x={"x": X, "sequence_length": np.array([1.0, 2.0, 3.0])}, as_iterable=False)
    assert str(raised.value) == "column 'sequence_length': must be integers, but are float64"


def test_a_batch_without_steps_moves_nothing() -> None:
    model = fitted(optimizer="Adam")
    before = weights(model)
    after = weights(model.fit(x={"x": X, "sequence_length": [0, 0, 0]}, y=np.zeros((3, 4)), steps=1))
    assert (before.pop("global_step"), after.pop("global_step")) == (2, 3)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


# Labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "wrong", "message"),
    [
        (2, 5, "row 1, column 'label': must be one of the 2 classes (0, 1), but is 5"),
        (2, -1, "row 1, column 'label': must be one of the 2 classes (0, 1), but is -1"),
        (3, 3, "row 1, column 'label': must be one of the 3 classes (0, 1, 2), but is 3"),
        (2, 0.5, "column 'label': a class must be an integer or a string, but a label is 0.5"),
    ],
)
def test_a_label_out_of_range_is_refused(classes: int, wrong: float, message: str) -> None:
    labels = np.zeros((3, 4), np.float64 if isinstance(wrong, float) else np.int64)
    labels[1, 2] = wrong
    with pytest.raises(DataError) as raised:
        estimator(CLASSIFICATION, num_classes=classes).fit(x={"x": X}, y=labels, steps=1)
    assert str(raised.value) == message
    padded = {"x": X, "sequence_length": [4, 2, 4]}  # in the padding it is ignored, as the original does
    assert estimator(CLASSIFICATION, num_classes=classes).fit(x=padded, y=np.floor(labels), steps=1)


def test_whole_numbers_of_any_type_are_classes() -> None:
    labels = np.array([[0, 1, 1, 0]] * 3)
    trained = [
        weights(estimator(CLASSIFICATION, num_classes=3).fit(x={"x": X}, y=labels.astype(kind), steps=1))
        for kind in (np.int64, np.int32, np.uint8, np.float32, np.bool_)
    ]
    for other in trained[1:]:
        np.testing.assert_array_equal(other["projection.weight"], trained[0]["projection.weight"])


# Inputs -----------------------------------------------------------------------------------------------------------


def test_several_values_of_a_dense_step_are_one_step() -> None:
    column = embedding_column(sparse_column_with_integerized_feature("token", 5), 2)
    model = estimator(sequence_feature_columns=[column])
    dense, lists = np.array([[[1, 2], [3, -1], [-1, -1]]]), [[[1, 2], [3], []]]
    model.fit(x={"token": dense}, y=np.zeros((1, 3)), steps=1)
    found = model.predict(x={"token": dense}, as_iterable=False)["scores"]
    assert found.shape == (1, 3)
    np.testing.assert_array_equal(found[0], model.predict(x={"token": lists}, as_iterable=False)["scores"][0])


def test_later_inputs_may_have_other_lengths_types_and_further_features() -> None:
    model = fitted()
    longer = {"x": np.zeros((2, 9), np.int32), "unused": ["a", "b"]}
    assert model.fit(x=longer, y=np.zeros((2, 9)), steps=1).evaluate(x=longer, y=np.zeros((2, 9)))["weight"] == 18


def test_states_may_be_of_any_number_type() -> None:
    model = fitted()
    state = np.array([[0, 1, -1]] * 3)
    expected = model.predict(x={"x": X, "rnn_cell_state_0": state.astype(np.float32)}, as_iterable=False)["scores"]
    for kind in (np.int64, np.float64):
        found = model.predict(x={"x": X, "rnn_cell_state_0": state.astype(kind)}, as_iterable=False)
        np.testing.assert_array_equal(found["scores"], expected)
        assert found["rnn_cell_state_0"].dtype == np.float32


def test_a_layer_has_units() -> None:
    with pytest.raises(ConfigError) as raised:
        estimator(num_units=[3, 0])
    assert str(raised.value) == "DynamicRnnEstimator: num_units must be positive, but is [3, 0]"


def test_empty_context_columns_are_none() -> None:
    np.testing.assert_array_equal(
        weights(fitted(context_feature_columns=[]))["projection.weight"], weights(fitted())["projection.weight"]
    )


# Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"steps": 0}, {"steps": -1}, {"max_steps": 0}, {"max_steps": -2}])
def test_a_budget_below_one_step_is_refused(budget: dict[str, int]) -> None:
    name, value = next(iter(budget.items()))
    with pytest.raises(ConfigError) as raised:
        estimator().fit(x={"x": X}, y=np.zeros((3, 4)), **budget)
    assert str(raised.value) == f"{name} must be at least 1, but is {value}"


def test_an_evaluation_of_no_steps_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        fitted().evaluate(x={"x": X}, y=np.zeros((3, 4)), steps=0)
    assert str(raised.value) == "steps must be at least 1, or None for all rows, but is 0"


def test_numbers_may_be_of_any_type() -> None:
    whole = weights(fitted(learning_rate=1, gradient_clipping_norm=5, num_units=[3]))
    exact = weights(fitted(learning_rate=np.float32(1.0), gradient_clipping_norm=5.0, num_units=(3,)))
    np.testing.assert_array_equal(whole["projection.weight"], exact["projection.weight"])


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_clipping_norm_that_stops_or_disables_training_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError) as raised:
        estimator(gradient_clipping_norm=limit)
    assert str(raised.value) == f"DynamicRnnEstimator: gradient_clipping_norm must be greater than 0, but is {limit}"


@pytest.mark.parametrize("keep", [[0.5, None], (0.5, 1.0)])
def test_none_keeps_everything(keep: Any) -> None:
    np.testing.assert_array_equal(
        weights(fitted(dropout_keep_probabilities=keep))["projection.weight"],
        weights(fitted(dropout_keep_probabilities=[0.5, 1.0]))["projection.weight"],
    )
    for nothing in ([], None, [None, None]):
        np.testing.assert_array_equal(
            weights(fitted(dropout_keep_probabilities=nothing))["projection.weight"],
            weights(fitted())["projection.weight"],
        )


def test_the_gradient_norm_is_that_of_summed_rows(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle()
    batch = collate(encode_rows(make_table(rows=9), bundle.columns, bundle.label))
    network = bundle.network()
    loss = (losses.loss(bundle.label, network(batch).logits, batch.labels) * batch.weights).sum() / batch.weights.sum()
    gradients = torch.autograd.grad(loss, [each for each in network.parameters() if each.requires_grad])
    expected = torch.cat([gradient.reshape(-1) for gradient in gradients]).norm()
    trainer = Trainer(bundle.network().train(), bundle.label, OptimizerConfig(gradient_clipping_norm=None), seed=0)
    assert trainer.step(batch).gradient_norm == pytest.approx(float(expected), rel=1e-5)


def test_looking_changes_no_file(tmp_path: Path) -> None:
    model = fitted(model_dir=tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    model.evaluate(x={"x": X}, y=np.zeros((3, 4)), name="again")
    model.predict(x={"x": X}, as_iterable=False)
    assert sorted(path for path in tmp_path.rglob("*")) == before


# States -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ProblemType)
def test_a_served_single_value_comes_with_its_states(problem: ProblemType) -> None:
    model = fitted(problem, SINGLE, num_classes=2, predict_probabilities=problem is CLASSIFICATION, cell_type="lstm")
    scored = Scorer(model.fitted_bundle()).score(pa.table({"x": X.tolist()}))
    kept = ["classes", "probabilities"] if problem is CLASSIFICATION else ["scores"]
    assert scored.predictions.column_names == kept
    expected = model.predict(x={"x": X}, as_iterable=False)
    assert set(expected) == {*kept, "rnn_cell_state_0", "rnn_cell_state_1"}
    for i, part in enumerate(scored.state):
        np.testing.assert_array_equal(part, expected[f"rnn_cell_state_{i}"])


# The page ---------------------------------------------------------------------------------------------------------


def test_every_difference_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(line.split("|")[1]) for line in rows] == list(range(1, len(rows) + 1))
    functions: dict[str, set[str]] = {}
    for row in rows:
        named = re.findall(r"`([\w/]+)::(test_\w+)`", row)
        assert named, f"a difference without a test: {row}"
        for file, name in named:
            if file not in functions:
                tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
                functions[file] = {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}
            assert name in functions[file], f"{file} has no {name}"
