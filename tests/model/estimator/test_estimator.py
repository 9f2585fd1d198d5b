"""The estimator: the original's class on data in memory. What goes in and what comes out."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model import (
    DynamicRnnEstimator,
    PredictionKey,
    PredictionType,
    ProblemType,
    RNNKeys,
    SparseValues,
    embedding_column,
    one_hot_column,
    real_valued_column,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
)
from model.columns import Numeric
from model.errors import ConfigError

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[3]
CELLS = ("basic_rnn", "lstm", "gru", "gru_reset_before")
COMBINATIONS = list(product(ProblemType, PredictionType))
CLASSIFICATION, REGRESSION = ProblemType.CLASSIFICATION, ProblemType.LINEAR_REGRESSION
SINGLE, MULTIPLE = PredictionType.SINGLE_VALUE, PredictionType.MULTIPLE_VALUE
LENGTHS = np.array([5, 3, 1, 0, 4, 5, 2, 3])
B, T = len(LENGTHS), 6  # padded beyond the longest row


def columns() -> list[Any]:
    word = sparse_column_with_keys("word", ["the", "cat", "sat"])
    token = sparse_column_with_integerized_feature("token", 5)
    return [real_valued_column("x"), one_hot_column(word), embedding_column(token, 3)]


def estimator(problem: ProblemType = CLASSIFICATION, prediction: PredictionType = MULTIPLE, **options: Any) -> Any:
    classification = problem is CLASSIFICATION
    settings = {
        "sequence_feature_columns": columns(),
        "context_feature_columns": [real_valued_column("age")],
        "num_classes": 3 if classification else None,
        "num_units": [4, 3],
        "cell_type": "lstm",
        "predict_probabilities": classification,
        "config": {"device": "cpu"},
    }
    return DynamicRnnEstimator(problem, prediction, **(settings | options))


def data(problem: ProblemType = CLASSIFICATION, prediction: PredictionType = MULTIPLE) -> tuple[dict[str, Any], Any]:
    """Padded features and labels."""
    random = np.random.default_rng(7)
    features = {
        "x": random.normal(size=(B, T, 2)),
        "word": random.choice(["the", "cat", "sat", "dog", ""], (B, T)),
        "token": random.integers(-1, 9, (B, T, 2)),
        "age": random.normal(size=B),
        RNNKeys.SEQUENCE_LENGTH_KEY: LENGTHS,
    }
    shape = (B, T) if prediction is MULTIPLE else (B,)
    labels = random.integers(0, 3, shape) if problem is CLASSIFICATION else random.normal(size=shape)
    return features, labels


def ragged(features: dict[str, Any]) -> dict[str, Any]:
    """The same rows as lists without padding."""
    tokens = [[[i for i in step if i != -1] for step in row] for row in features["token"].tolist()]
    return {
        "x": [row[:length] for row, length in zip(features["x"].tolist(), LENGTHS, strict=True)],
        "word": [list(row[:length]) for row, length in zip(features["word"].tolist(), LENGTHS, strict=True)],
        "token": [row[:length] for row, length in zip(tokens, LENGTHS, strict=True)],
        "age": features["age"].tolist(),
    }


def spoilt(features: dict[str, Any]) -> dict[str, Any]:
    """The same rows with garbage in the padding."""
    padding = np.arange(T)[None, :] >= LENGTHS[:, None]
    changed = {name: np.array(value) for name, value in features.items()}
    changed["x"][padding] = [np.nan, np.inf]
    changed["word"][padding] = "??"
    changed["token"][padding] = [4, 2]
    return changed


def fitted(problem: ProblemType, prediction: PredictionType, **options: Any) -> Any:
    features, labels = data(problem, prediction)
    return estimator(problem, prediction, **options).fit(x=features, y=labels, steps=3)


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: model.get_variable_value(name) for name in model.get_variable_names()}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# What comes out ---------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_works() -> None:
    sequences, labels = [[0.1, 0.4, 0.2], [0.9, 0.8], [0.7]], [0, 1, 1]
    model = DynamicRnnEstimator(
        CLASSIFICATION,
        SINGLE,
        [real_valued_column("x")],
        num_classes=2,
        num_units=8,
        cell_type="lstm",
        optimizer="Adam",
    )
    model.fit(x={"x": sequences}, y=labels, steps=30)
    assert [row["classes"] for row in model.predict(x={"x": sequences})] == labels
    assert model.evaluate(x={"x": sequences}, y=labels)["accuracy"] == 1.0


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("problem", "prediction"), COMBINATIONS)
def test_padded_input_gives_padded_predictions(problem: ProblemType, prediction: PredictionType, cell: str) -> None:
    model = fitted(problem, prediction, cell_type=cell)
    found = model.predict(x=data(problem, prediction)[0], as_iterable=False)
    rows = (B, T) if prediction is MULTIPLE else (B,)
    nothing = np.arange(T)[None, :] >= LENGTHS[:, None] if prediction is MULTIPLE else LENGTHS == 0
    widths = [4, 4, 3, 3] if cell == "lstm" else [4, 3]
    states = {f"{RNNKeys.STATE_PREFIX}_{i}": (B, width) for i, width in enumerate(widths)}
    if problem is CLASSIFICATION:
        expected = {PredictionKey.CLASSES: rows, PredictionKey.PROBABILITIES: (*rows, 3)}
        assert found["classes"].dtype == np.int64
        np.testing.assert_array_equal(found["classes"] == -1, nothing)
        np.testing.assert_array_equal(np.isnan(found["probabilities"]).all(-1), nothing)
        np.testing.assert_allclose(found["probabilities"][~nothing].sum(-1), 1, rtol=1e-6)
    else:
        expected = {PredictionKey.SCORES: rows}
        np.testing.assert_array_equal(np.isnan(found["scores"]), nothing)
    assert {name: value.shape for name, value in found.items()} == expected | states


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("problem", "prediction"), COMBINATIONS)
def test_ragged_input_gives_what_padded_input_gives(
    problem: ProblemType, prediction: PredictionType, cell: str
) -> None:
    model = fitted(problem, prediction, cell_type=cell)
    features = data(problem, prediction)[0]
    padded = model.predict(x=features, as_iterable=False)
    rows = list(model.predict(x=ragged(features)))
    assert len(rows) == B
    for i, row in enumerate(rows):
        for name, value in row.items():
            per_step = prediction is MULTIPLE and not name.startswith(RNNKeys.STATE_PREFIX)
            np.testing.assert_array_equal(value, padded[name][i, : LENGTHS[i]] if per_step else padded[name][i])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("problem", "prediction"), COMBINATIONS)
def test_a_row_alone_gets_the_predictions_it_gets_among_others(
    problem: ProblemType, prediction: PredictionType, cell: str
) -> None:
    model = fitted(problem, prediction, cell_type=cell)
    features = ragged(data(problem, prediction)[0])
    together = list(model.predict(x=features))
    for i, expected in enumerate(together):
        (alone,) = model.predict(x={name: values[i : i + 1] for name, values in features.items()})
        for name, value in alone.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("problem", "prediction"), COMBINATIONS)
def test_padding_is_never_read(problem: ProblemType, prediction: PredictionType, cell: str) -> None:
    features, labels = data(problem, prediction)
    garbage = np.array(labels, float)
    if prediction is MULTIPLE:
        garbage[np.arange(T)[None, :] >= LENGTHS[:, None]] = np.nan
    clean = estimator(problem, prediction, cell_type=cell).fit(x=features, y=labels, steps=2)
    dirty = estimator(problem, prediction, cell_type=cell).fit(x=spoilt(features), y=garbage, steps=2)
    assert_same(weights(clean), weights(dirty))
    assert clean.evaluate(x=features, y=labels) == dirty.evaluate(x=spoilt(features), y=garbage)
    assert_same(clean.predict(x=features, as_iterable=False), clean.predict(x=spoilt(features), as_iterable=False))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("problem", "prediction"), COMBINATIONS)
def test_events_one_by_one_give_what_the_whole_sequence_gives(
    problem: ProblemType, prediction: PredictionType, cell: str
) -> None:
    model = fitted(problem, prediction, cell_type=cell)
    features = ragged(data(problem, prediction)[0])
    name = "probabilities" if problem is CLASSIFICATION else "scores"
    for i, whole in enumerate(model.predict(x=features)):
        state: Any = None
        for t in range(LENGTHS[i]):
            event = {key: features[key][i][t] for key in ("x", "word", "token")} | {"age": features["age"][i]}
            predictions, state = model.step(event, state)
            if prediction is MULTIPLE or t == LENGTHS[i] - 1:
                expected = whole[name][t] if prediction is MULTIPLE else whole[name]
                np.testing.assert_allclose(predictions[name], expected, atol=2e-6)
        for key, value in (state or {}).items():
            np.testing.assert_allclose(value, whole[key], atol=2e-6)


def test_a_step_on_ready_tensors_is_the_step_on_values() -> None:
    model = estimator(REGRESSION, sequence_feature_columns=[real_valued_column("x")], context_feature_columns=None)
    model.fit(x={"x": [[[0.5, 1.0]]]}, y=[[1.0]], steps=1)
    predictions, state = model.step({"x": [0.5, 1.0]})
    logits, tensors = model.step(torch.tensor([[0.5, 1.0]]))
    assert predictions == {"scores": pytest.approx(logits.item())}
    for ours, theirs in zip(tensors, state.values(), strict=True):
        np.testing.assert_array_equal(ours[0], theirs)
    again, _ = model.step(torch.tensor([[0.5, 1.0]]), tensors)
    assert model.step({"x": [0.5, 1.0]}, state)[0]["scores"] == pytest.approx(again.item())


@pytest.mark.parametrize("prediction", PredictionType)
def test_a_sequence_cut_in_pieces_gives_what_it_gives_whole(prediction: PredictionType) -> None:
    model = fitted(REGRESSION, prediction)
    features = {name: value for name, value in data(REGRESSION, prediction)[0].items() if name != "sequence_length"}
    whole = model.predict(x=features, as_iterable=False)
    first = {name: value if name == "age" else value[:, :2] for name, value in features.items()}
    second = {name: value if name == "age" else value[:, 2:] for name, value in features.items()}
    head = model.predict(x=first, as_iterable=False)
    states = {name: value for name, value in head.items() if name.startswith(RNNKeys.STATE_PREFIX)}
    tail = model.predict(x=second | states, as_iterable=False)
    for name, value in tail.items():
        expected = whole[name][:, 2:] if prediction is MULTIPLE and name == "scores" else whole[name]
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_outputs_choose_and_batches_cut_what_predict_gives() -> None:
    model, features = fitted(CLASSIFICATION, MULTIPLE), data()[0]
    batches = list(model.predict(x=features, batch_size=3, outputs=["classes", "nonsense"], iterate_batches=True))
    assert [batch["classes"].shape for batch in batches] == [(3, T), (3, T), (2, T)]
    assert all(list(batch) == ["classes"] for batch in batches)
    everything = model.predict(x=features, as_iterable=False)
    np.testing.assert_array_equal(np.concatenate([batch["classes"] for batch in batches]), everything["classes"])
    with pytest.raises(ConfigError, match="outputs must name some of classes, probabilities, rnn_cell_state_0"):
        model.predict(x=features, outputs=["nonsense"], as_iterable=False)


def test_predictions_run_to_the_end_of_the_input() -> None:
    model, features = fitted(CLASSIFICATION, MULTIPLE), data()[0]
    batches = [({name: value[i : i + 2] for name, value in features.items()}, None) for i in range(0, B, 2)]
    rows = list(model.predict(input_fn=lambda: iter(batches)))
    for row, expected in zip(rows, model.predict(x=features), strict=True):
        np.testing.assert_array_equal(row["classes"], expected["classes"])


def test_classes_may_be_strings() -> None:
    model = estimator(prediction=SINGLE, num_classes="auto", sequence_feature_columns=[real_valued_column("x")],
                      context_feature_columns=None)  # fmt: skip
    model.fit(x={"x": [[1.0], [2.0], [3.0]]}, y=["dog", "cat", "dog"], steps=1)
    found = model.predict(x={"x": np.ones((2, 3)), "sequence_length": [3, 0]}, as_iterable=False)
    assert found["classes"].tolist() == [found["classes"][0], None]
    assert found["classes"][0] in ("cat", "dog")


# What goes in -----------------------------------------------------------------------------------------------------


def as_table(features: dict[str, Any], labels: Any, prediction: PredictionType) -> pa.Table:
    columns = ragged(features)
    held = [list(row[:n]) for row, n in zip(labels, LENGTHS, strict=True)] if prediction is MULTIPLE else list(labels)
    return pa.table({**columns, "label": held})


@pytest.mark.parametrize(("problem", "prediction"), COMBINATIONS)
def test_all_forms_of_input_train_the_same_model(
    problem: ProblemType, prediction: PredictionType, tmp_path: Path
) -> None:
    features, labels = data(problem, prediction)
    table = as_table(features, labels, prediction)
    pq.write_table(table, tmp_path / "rows.parquet")
    expected = estimator(problem, prediction).fit(x=features, y=labels, steps=2)
    others: dict[str, dict[str, Any]] = {
        "lists": {"x": ragged(features), "y": table["label"].to_pylist()},
        "arrow columns": {"x": {name: table[name] for name in table.column_names}, "y": table["label"]},
        "table": {"x": table, "batch_size": B},
        "table and labels": {"x": table.drop_columns("label"), "y": table["label"], "batch_size": B},
        "pandas": {"x": table.to_pandas(), "batch_size": B},
        "path": {"x": str(tmp_path), "batch_size": B},
        "input_fn of a table": {"input_fn": lambda: table, "batch_size": B},
        "input_fn of a path": {"input_fn": lambda: tmp_path / "rows.parquet", "batch_size": B},
        "input_fn of one batch": {"input_fn": lambda: (features, labels)},
        "input_fn of batches": {"input_fn": lambda: ((features, labels) for _ in range(9))},
        "input_fn of tensors": {"input_fn": lambda: ({**features, "x": torch.tensor(features["x"])}, labels)},
    }
    for form, arguments in others.items():
        model = estimator(problem, prediction).fit(steps=2, **arguments)
        for name, value in weights(expected).items():
            # One batch of a table is put in order by the plan; batches are summed in that order.
            np.testing.assert_allclose(model.get_variable_value(name), value, atol=1e-6, err_msg=f"{form}: {name}")


def test_a_data_loader_gives_batches() -> None:
    random = np.random.default_rng(1)
    rows = [({"x": random.normal(size=(4, 1)).astype(np.float32)}, i % 2) for i in range(6)]
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
    model = DynamicRnnEstimator(CLASSIFICATION, SINGLE, [real_valued_column("x")], num_classes=2, num_units=3)
    assert model.fit(input_fn=lambda: loader).get_variable_value("global_step") == 3


def test_sparse_values_are_what_dense_ones_are() -> None:
    token = embedding_column(sparse_column_with_integerized_feature("token", 5), 3, "sum")
    model = estimator(REGRESSION, sequence_feature_columns=[token], context_feature_columns=None)
    dense = np.array([[[3, 1], [-1, -1]], [[9, -1], [0, 0]]])
    indices = np.argwhere(dense != -1)
    sparse = SparseValues(indices, dense[dense != -1], dense.shape)
    model.fit(x={"token": sparse}, y=np.zeros((2, 2)), steps=1)
    by_name = {"indices": indices, "values": dense[dense != -1], "dense_shape": np.array(dense.shape)}
    found = [model.predict(x={"token": form}, as_iterable=False)["scores"] for form in (dense, sparse, by_name)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_missing_numbers_are_filled_and_nan_in_arrays_is_missing() -> None:
    model = estimator(
        REGRESSION, SINGLE, sequence_feature_columns=[Numeric(name="x", missing=2.0)], context_feature_columns=None
    )
    model.fit(x={"x": [[1.0, None], [3.0]]}, y=[0.0, 1.0], steps=1)
    (filled,) = model.predict(x={"x": np.array([[1.0, np.nan]])})
    (given,) = model.predict(x={"x": [[1.0, 2.0]]})
    assert filled["scores"] == given["scores"]


def test_feature_engineering_runs_in_all_modes() -> None:
    modes = []

    def double(features: dict[str, Any], labels: Any) -> tuple[dict[str, Any], Any]:
        modes.append(labels is None)
        return {"x": 2 * features["raw"]}, labels

    options: dict[str, Any] = {"sequence_feature_columns": [real_valued_column("x")], "context_feature_columns": None}
    model = estimator(REGRESSION, **options, feature_engineering_fn=double)
    raw, labels = np.ones((2, 3)), np.zeros((2, 3))
    plain = estimator(REGRESSION, **options).fit(x={"x": 2 * raw}, y=labels, steps=1)
    model.fit(x={"raw": raw}, y=labels, steps=1)
    assert_same(weights(model), weights(plain))
    assert model.evaluate(x={"raw": raw}, y=labels) == plain.evaluate(x={"x": 2 * raw}, y=labels)
    np.testing.assert_array_equal(
        model.predict(x={"raw": raw}, as_iterable=False)["scores"],
        plain.predict(x={"x": 2 * raw}, as_iterable=False)["scores"],
    )
    assert modes == [False, False, True]


def test_weights_of_rows_count_in_loss_and_metrics() -> None:
    features, labels = data(REGRESSION, SINGLE)
    half = {name: value[:4] for name, value in features.items()}
    weighted = estimator(REGRESSION, SINGLE, weight="importance")
    importance = np.array([1.0] * 4 + [0.0] * 4)
    weighted.fit(x=features | {"importance": importance}, y=labels, steps=2)
    plain = estimator(REGRESSION, SINGLE).fit(x=half, y=labels[:4], steps=2)
    for name, value in weights(plain).items():
        np.testing.assert_allclose(weighted.get_variable_value(name), value, atol=1e-6)


def test_a_frame_of_pandas_is_a_table() -> None:
    frame = pd.DataFrame({"x": [[1.0, 2.0], [3.0]], "age": [1.0, 2.0], "label": [0.0, 1.0]})
    options: dict[str, Any] = {"sequence_feature_columns": [real_valued_column("x")]}
    model = estimator(REGRESSION, SINGLE, **options).fit(x=frame, steps=1)
    assert [row["scores"].shape for row in model.predict(x=frame.drop(columns="label"))] == [(), ()]
