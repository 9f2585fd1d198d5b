"""Losses, predictions and metrics against formulas written out in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows
from model.errors import DataError
from model.features.labels import FittedLabel
from model.network import heads
from model.scoring import metrics
from model.scoring.metric_names import metric_names, sum_names
from model.scoring.metrics import table_metrics

SHAPES = [(4, 3), (2, 0), (0, 3), (5,), (0,)]
PROBLEMS = [("linear_regression", None), ("classification", 2), ("classification", 5)]


def label_of(problem: str, classes: int | None, prediction: str = "multiple_value") -> FittedLabel:
    return FittedLabel(name="y", problem_type=problem, prediction_type=prediction, num_classes=classes)


def case(problem: str, classes: int | None, shape: tuple[int, ...]) -> tuple[FittedLabel, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(1)
    logits = random.normal(scale=3, size=(*shape, classes if classes and classes > 2 else 1))
    labels = random.integers(0, classes, shape) if classes else random.normal(size=shape)
    return label_of(problem, classes), torch.from_numpy(logits), torch.from_numpy(np.asarray(labels))


def loss_by_formula(classes: int | None, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if classes is None:
        return (logits[..., 0] - labels) ** 2
    if classes == 2:
        z = logits[..., 0]
        return np.maximum(z, 0) - z * labels + np.log1p(np.exp(-np.abs(z)))
    picked = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - picked


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("problem", "classes"), PROBLEMS)
def test_losses_are_the_originals_unreduced(problem: str, classes: int | None, shape: tuple[int, ...]) -> None:
    label, logits, labels = case(problem, classes, shape)
    found = heads.loss(label, logits, labels)
    assert tuple(found.shape) == shape
    np.testing.assert_allclose(found.numpy(), loss_by_formula(classes, logits.numpy(), labels.numpy()), rtol=1e-12)


@pytest.mark.parametrize("logit", [-1e4, -90.0, 90.0, 1e4])
@pytest.mark.parametrize(("problem", "classes"), PROBLEMS[1:])
def test_losses_of_extreme_logits_stay_finite(problem: str, classes: int, logit: float) -> None:
    logits = torch.zeros(1, 1, 1 if classes == 2 else classes)
    logits[..., 0] = logit
    for value in (0, 1):
        assert torch.isfinite(heads.loss(label_of(problem, classes), logits, torch.tensor([[value]]))).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("problem", "classes"), PROBLEMS)
def test_predictions_are_scores_or_the_likeliest_class(
    problem: str, classes: int | None, shape: tuple[int, ...]
) -> None:
    label, logits, _ = case(problem, classes, shape)
    plain, full = (heads.predict(label, logits, probabilities=flag) for flag in (False, True))
    if classes is None:
        assert list(plain) == list(full) == ["scores"]
        np.testing.assert_array_equal(plain["scores"].numpy(), logits.numpy()[..., 0])
        return
    z = logits.numpy()
    z = np.concatenate([np.zeros_like(z), z], -1) if classes == 2 else z
    chances = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    assert list(plain) == ["classes"]
    assert list(full) == ["classes", "probabilities"]
    assert plain["classes"].dtype == full["classes"].dtype == torch.int64
    np.testing.assert_allclose(full["probabilities"].numpy(), chances, rtol=1e-12)
    np.testing.assert_array_equal(plain["classes"].numpy(), z.argmax(-1))
    np.testing.assert_array_equal(full["classes"].numpy(), z.argmax(-1))


def test_the_lowest_class_wins_a_tie() -> None:
    assert heads.class_ids(label_of("classification", 2), torch.zeros(1, 1)).tolist() == [0]
    assert heads.class_ids(label_of("classification", 3), torch.tensor([[1.0, 2.0, 2.0]])).tolist() == [1]


# Metrics --------------------------------------------------------------------------------------------------------


def batch_of(weights: Any, labels: Any) -> SequenceBatch:
    return SequenceBatch(
        lengths_B=torch.zeros(len(labels)),
        rows_B=torch.zeros(len(labels)),
        sequence={},
        context={},
        labels=torch.as_tensor(labels),
        weights=torch.as_tensor(weights),
    )


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize(("problem", "classes"), PROBLEMS)
def test_metrics_are_weighted_means(problem: str, classes: int | None, prediction: str) -> None:
    shape = (6,) if prediction == "single_value" else (3, 4)
    _, logits, labels = case(problem, classes, shape)
    label = label_of(problem, classes, prediction)
    weights = np.random.default_rng(3).uniform(0, 2, shape)
    weights[0] = 0
    found = metrics.results(label, metrics.batch_state(label, logits, batch_of(weights, labels)))
    z, y = logits.numpy(), labels.numpy()
    loss = np.average(loss_by_formula(classes, z, y), weights=weights)
    expected = {"rows": shape[0], "weight": weights.sum(), "loss": loss}
    if classes is None:
        errors = z[..., 0] - y
        variance = np.average((y - np.average(y, weights=weights)) ** 2, weights=weights)
        expected |= {"rmse": loss**0.5, "mae": np.average(abs(errors), weights=weights), "r2": 1 - loss / variance}
    else:
        ids = (z[..., 0] > 0).astype(int) if classes == 2 else z.argmax(-1)
        bits = "bits_per_row" if prediction == "single_value" else "bits_per_step"
        expected |= {
            "accuracy": np.average(ids == y, weights=weights), "perplexity": math.exp(loss), bits: loss / math.log(2)
        }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize(("problem", "classes"), PROBLEMS)
def test_the_names_of_sums_and_metrics_are_those_that_are_computed(
    problem: str, classes: int | None, prediction: str
) -> None:
    shape = (6,) if prediction == "single_value" else (3, 4)
    _, logits, labels = case(problem, classes, shape)
    label = label_of(problem, classes, prediction)
    state = metrics.batch_state(label, logits, batch_of(np.ones(shape), labels))
    assert sum_names(label) == tuple(state)
    assert metric_names(label) == tuple(metrics.results(label, state))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.data())
def test_any_split_of_the_rows_has_the_same_metrics(
    make_bundle: Any, make_table: Any, lengths: list[int], data: st.DataObject
) -> None:
    bundle = make_bundle("classification", "multiple_value", "basic_rnn", weight="w")
    network, cut = bundle.network(), data.draw(st.integers(0, len(lengths)))
    rows = encode_rows(make_table(lengths=lengths), bundle.columns, bundle.label)

    def state(part: EncodedRows) -> metrics.MetricState:
        batch = collate(part)
        with torch.no_grad():
            return metrics.batch_state(bundle.label, network(batch).logits, batch)

    parts = [state(part) for part in (rows.slice(0, cut), rows.slice(cut, len(rows)))]
    assert metrics.merged(parts) == pytest.approx(state(rows), rel=1e-6)


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
def test_a_tables_sums_do_not_depend_on_how_it_is_cut(
    make_bundle: Any, make_table: Any, monkeypatch: pytest.MonkeyPatch, prediction: str
) -> None:
    bundle, table = make_bundle("classification", prediction, weight="w"), make_table("classification", prediction)
    network, rows = bundle.network(), encode_rows(table, bundle.columns, bundle.label)
    with torch.no_grad():
        whole = metrics.batch_state(bundle.label, network(collate(rows)).logits, collate(rows))
    for most in (1, 10, 10_000):
        monkeypatch.setattr("model.batches.collate.MAX_PADDED_STEPS", most)
        assert table_metrics(network, bundle.columns, bundle.label, table) == pytest.approx(whole, rel=1e-6)


def test_a_bad_row_is_named_by_its_place_in_the_table(make_bundle: Any, make_table: Any) -> None:
    bundle, table = make_bundle(), make_table(lengths=[5, 1, 3])
    labels = pa.array([[0] * 5, [7], [0] * 3])
    with pytest.raises(DataError) as raised:
        table_metrics(bundle.network(), bundle.columns, bundle.label, table.set_column(6, "y", labels))
    assert str(raised.value) == "row 1, column 'y': must be one of the 3 classes (0, 1, 2), but is 7"


def test_rows_without_weight_have_no_loss() -> None:
    label = label_of("linear_regression", None)
    state = metrics.batch_state(label, torch.ones(2, 1, 1), batch_of(np.zeros((2, 1)), np.zeros((2, 1))))
    assert metrics.results(label, state) == pytest.approx({"loss": math.nan, "rows": 2}, nan_ok=True)
    assert metrics.results(label, metrics.merged([])) == pytest.approx({"loss": math.nan, "rows": 0}, nan_ok=True)


@pytest.mark.parametrize("target", [3.0, 0.1])
def test_a_constant_target_has_no_r2(target: float) -> None:
    label, targets = label_of("linear_regression", None), np.full((3, 1), target)
    state = metrics.batch_state(label, torch.zeros(3, 1, 1), batch_of(np.ones((3, 1)), targets))
    assert math.isnan(metrics.results(label, state)["r2"])
    assert metrics.results(label, state)["rmse"] == pytest.approx(target)


def test_a_hopeless_loss_does_not_overflow() -> None:
    classes = label_of("classification", 2)
    state = metrics.batch_state(classes, torch.full((1, 1, 1), 1e4), batch_of(np.ones((1, 1)), np.zeros((1, 1), int)))
    assert metrics.results(classes, state)["perplexity"] == math.exp(700)
