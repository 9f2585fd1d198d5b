"""What the estimator refuses, and how it says so; its parameters and variables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import (
    DynamicRnnEstimator,
    PredictionType,
    ProblemType,
    embedding_column,
    real_valued_column,
    sparse_column_with_integerized_feature,
)
from model.columns import Vocabulary
from model.errors import CheckpointError, ConfigError, DataError, NotFittedError, StateError

ROOT = Path(__file__).resolve().parents[3]

CLASSIFICATION, REGRESSION = ProblemType.CLASSIFICATION, ProblemType.LINEAR_REGRESSION
SINGLE, MULTIPLE = PredictionType.SINGLE_VALUE, PredictionType.MULTIPLE_VALUE
LENGTHS = np.array([5, 3, 1, 0, 4, 5, 2, 3])
B, T = len(LENGTHS), 6  # padded beyond the longest row


def estimator(problem: ProblemType = CLASSIFICATION, prediction: PredictionType = MULTIPLE, **options: Any) -> Any:
    token = embedding_column(sparse_column_with_integerized_feature("token", 5), 3)
    settings: dict[str, Any] = {
        "sequence_feature_columns": [real_valued_column("x"), token],
        "context_feature_columns": [real_valued_column("age")],
        "num_classes": 3 if problem is CLASSIFICATION else None,
        "num_units": [4, 3],
        "cell_type": "lstm",
        "config": {"device": "cpu"},
    }
    return DynamicRnnEstimator(problem, prediction, **(settings | options))


def data() -> tuple[dict[str, Any], Any]:
    """Padded features, and a class a step."""
    random = np.random.default_rng(7)
    features = {
        "x": random.normal(size=(B, T, 2)),
        "token": random.integers(-1, 9, (B, T, 2)),
        "age": random.normal(size=B),
        "sequence_length": LENGTHS,
    }
    return features, random.integers(0, 3, (B, T))


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: model.get_variable_value(name) for name in model.get_variable_names()}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_units": None}, "num_units must be a positive int"),
        ({"num_units": []}, "num_units"),
        ({"num_units": [-1]}, "num_units must be positive"),
        ({"cell_type": "lstmm"}, "did you mean lstm"),
        ({"cell_type": int}, "cell class int has no name"),
        ({"num_classes": None}, "classification needs num_classes"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_classes": -3}, "num_classes must be at least 2"),
        ({"dropout_keep_probabilities": [0.5]}, "dropout_keep_probabilities must hold 3 values"),
        ({"dropout_keep_probabilities": [0.5, 0.0, 1.0]}, "must lie in"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"optimizer": "Momentum"}, "optimizer Momentum needs `momentum`"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"gradient_clipping_norm": -1.0}, "gradient_clipping_norm"),
        ({"sequence_feature_columns": []}, "sequence"),
        ({"sequence_feature_columns": None}, "sequence"),
        ({"sequence_feature_columns": [Vocabulary(name="w")]}, r"embedding_column\(…\) or one_hot_column"),
        ({"sequence_feature_columns": [real_valued_column("x")] * 2}, "'x' stands twice"),
        ({"label": "x"}, "label must be the name of a column that is no input"),
        ({"model_dir": "a", "config": {"model_dir": "b"}}, "give one"),
        ({"config": {"sed": 1}}, "did you mean seed"),
    ],
)
def test_a_mistake_in_an_argument_is_told_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(**wrong)


@pytest.mark.parametrize("wrong", [{"problem_type": "ranking"}, {"prediction_type": 7}])
def test_an_unknown_problem_or_prediction_type_is_refused(wrong: dict[str, Any]) -> None:
    arguments = {"problem_type": CLASSIFICATION, "prediction_type": SINGLE} | wrong
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DynamicRnnEstimator(**arguments, sequence_feature_columns=[real_valued_column("x")], num_classes=2, num_units=2)


def test_probabilities_of_a_regression_are_refused() -> None:
    with pytest.raises(ConfigError, match="predict_probabilities needs problem_type classification"):
        estimator(REGRESSION, predict_probabilities=True)


def test_arguments_that_exclude_each_other_are_refused() -> None:
    features, labels = data()

    def one_batch() -> Any:
        return features, labels

    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "give either x"),
        ({"x": features, "y": labels, "input_fn": one_batch}, "give either x"),
        ({"y": labels, "input_fn": one_batch}, "y goes with x"),
        ({"input_fn": one_batch, "batch_size": 3, "steps": 1}, "batch_size is for x"),
        ({"x": features, "y": labels, "steps": 1, "max_steps": 1}, "not both"),
        ({"x": features, "y": labels, "steps": 0}, "steps must be at least 1"),
        ({"input_fn": one_batch}, "steps or max_steps must say"),
        ({"input_fn": lambda: 7, "steps": 1}, "input_fn must return one batch"),
        ({"x": features, "steps": 1}, "labels are needed"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            estimator().fit(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "column 'x'"),
        ({"sequence_length": [9] * B}, "row 0, column 'token': sequence_length is 9, but there are 6 steps"),
        ({"sequence_length": [-1] * B}, "must not be negative"),
        ({"sequence_length": [1.5] * B}, "must be integers"),
        ({"sequence_length": [1, 2]}, "must have 2 rows as sequence_length has"),
        ({"x": np.full((B, T, 2), np.nan)}, "must not be null"),
        ({"age": np.ones(B + 1)}, "all features must have as many rows"),
        ({"rnn_cell_state_0": np.ones((B, 4))}, "a state must have all of"),
    ],
)
def test_features_that_do_not_fit_are_told_with_their_name(change: dict[str, Any], message: str) -> None:
    features, labels = data()
    changed = {name: value for name, value in (features | change).items() if value is not None}
    with pytest.raises(DataError, match=message):
        estimator().fit(x=changed, y=labels, steps=1)


def test_labels_that_do_not_fit_are_told() -> None:
    features, labels = data()
    for wrong, message in [
        (labels + 5, "must be one of the 3 classes"),
        (labels + 0.5, "a class must be an integer or a string"),
        (labels[:, :2], "labels must have 6 steps as the features have, but have 2"),
        (np.zeros((B, T, 2)), "one label a step, but there are several"),
    ]:
        with pytest.raises(DataError, match=message):
            estimator().fit(x=features, y=wrong, steps=1)


def test_a_declared_dimension_is_checked() -> None:
    model = estimator(REGRESSION, sequence_feature_columns=[real_valued_column("x", 4)], context_feature_columns=None)
    with pytest.raises(DataError, match="declared with dimension 4, but the data hold 1 values a step"):
        model.fit(x={"x": np.ones((2, 3))}, y=np.ones((2, 3)), steps=1)


def test_what_must_be_learned_from_all_rows_is_not_learned_from_a_batch() -> None:
    word = embedding_column(Vocabulary(name="word"), 2)
    model = estimator(REGRESSION, sequence_feature_columns=[word], context_feature_columns=None)
    batch = ({"word": [["a", "b"]]}, [[0.0, 1.0]])
    with pytest.raises(ConfigError, match="the keys of 'word' must be learned from all rows"):
        model.fit(input_fn=lambda: batch, steps=1)
    model.fit(*batch, steps=1)
    assert model.fit(input_fn=lambda: batch, steps=1).get_variable_value("global_step") == 2


def test_an_unfitted_estimator_says_so_at_the_call(tmp_path: Path) -> None:
    model = estimator(model_dir=tmp_path)
    calls = [
        lambda: model.predict(x=data()[0]),
        lambda: model.evaluate(*data()),
        lambda: model.step({}),
        model.get_variable_names,
    ]
    for call in calls:
        with pytest.raises(NotFittedError, match="the estimator must be fitted first"):
            call()
    assert issubclass(NotFittedError, ValueError)
    assert issubclass(NotFittedError, AttributeError)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    estimator(model_dir=tmp_path).fit(*data(), steps=1)
    (tmp_path / "checkpoint-00000001" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        estimator(model_dir=tmp_path).predict(x=data()[0])


def test_a_step_names_the_feature_that_is_missing_or_wrong() -> None:
    model = estimator().fit(*data(), steps=1)
    event = {"x": [0.1, 0.2], "token": [1], "age": 0.3}
    with pytest.raises(DataError, match="column 'token': is not in the event"):
        model.step({name: value for name, value in event.items() if name != "token"})
    with pytest.raises(DataError, match="column 'x'"):
        model.step(event | {"x": "much"})
    with pytest.raises(StateError, match="rnn_cell_state_1, rnn_cell_state_2, rnn_cell_state_3 is missing"):
        model.step(event, {"rnn_cell_state_0": np.zeros(4)})


# Parameters -------------------------------------------------------------------------------------------------------


def test_parameters_go_out_as_they_came_in_and_make_an_equal_estimator() -> None:
    model = estimator()
    params = model.get_params()
    assert params["num_units"] == [4, 3]
    clone = type(model)(**params)  # what sklearn.base.clone does
    assert all(clone.get_params()[name] is value for name, value in params.items())
    assert_same(weights(model.fit(*data(), steps=1)), weights(clone.fit(*data(), steps=1)))
    assert repr(clone).startswith("DynamicRnnEstimator(problem_type=")


def test_parameters_are_changed_by_name() -> None:
    model = estimator().set_params(learning_rate=0.5)
    assert model.learning_rate == 0.5
    model.fit(*data(), steps=1)
    assert model.get_variable_value("learning_rate") == 0.5
    with pytest.raises(ConfigError, match="'learning_rat' is no parameter; did you mean learning_rate"):
        model.set_params(learning_rat=1)
    with pytest.raises(ConfigError, match="learning_rate"):
        model.set_params(learning_rate=-1)
    assert model.learning_rate == 0.5


def test_variables_have_names_and_values() -> None:
    model = estimator(optimizer="Adam", learning_rate=0.01).fit(*data(), steps=1)
    names = model.get_variable_names()
    assert names == sorted(names)
    assert {"global_step", "learning_rate", "projection.weight", "optimizer/m/cell.0.weight_ih"} <= set(names)
    assert model.get_variable_value("projection.weight").shape == (3, 3)
    with pytest.raises(ConfigError, match=r"'projection\.wait' is no variable; did you mean projection\.weight"):
        model.get_variable_value("projection.wait")


def test_importing_model_loads_nothing_heavy() -> None:
    code = "import sys, model; print({'torch', 'ray', 'pyarrow', 'pandas', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
