"""Evaluation through the estimator: metrics against torchmetrics, batches that are fed one by one, and the log."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.classification as classification
import torchmetrics.regression as regression

from model import DynamicRnnEstimator, PredictionType, ProblemType, real_valued_column
from model.errors import ConfigError

LENGTHS = np.array([5, 3, 1, 4, 5, 2, 3, 4])
B, T = len(LENGTHS), 5


def estimator(problem: ProblemType = ProblemType.CLASSIFICATION, classes: int | None = 3) -> Any:
    return DynamicRnnEstimator(
        problem,
        PredictionType.MULTIPLE_VALUE,
        [real_valued_column("x")],
        num_classes=classes,
        num_units=[4],
        cell_type="lstm",
        predict_probabilities=problem is ProblemType.CLASSIFICATION,
        config={"device": "cpu"},
    )


def data(classes: int = 3) -> tuple[dict[str, Any], np.ndarray]:
    random = np.random.default_rng(11)
    features = {"x": random.normal(size=(B, T)), "sequence_length": LENGTHS}
    return features, random.integers(0, classes, (B, T))


def real(values: np.ndarray) -> torch.Tensor:
    """The values at real steps."""
    return torch.from_numpy(np.array(values)[np.arange(T)[None, :] < LENGTHS[:, None]])


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_of_classes_are_those_of_torchmetrics(classes: int) -> None:
    features, labels = data(classes)
    model = estimator(classes=classes).fit(features, labels, steps=4)
    predicted = model.predict(x=features, as_iterable=False)
    found, given = real(predicted["classes"]), real(labels)
    metrics = model.evaluate(features, labels, batch_size=3)
    f1 = classification.MulticlassF1Score(classes, average="macro")
    accuracy = classification.MulticlassAccuracy(classes, average="micro")
    assert metrics["macro_f1"] == pytest.approx(float(f1(found, given)), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(float(accuracy(found, given)), rel=1e-6)
    assert ("auc" in metrics) == (classes == 2)
    if classes == 2:
        area = classification.BinaryAUROC()(real(predicted["probabilities"])[:, 1], given)
        assert metrics["auc"] == pytest.approx(float(area), rel=1e-6)


def test_metrics_of_numbers_are_those_of_torchmetrics() -> None:
    features, labels = data()
    model = estimator(ProblemType.LINEAR_REGRESSION, None).fit(features, labels, steps=4)
    found, given = real(model.predict(x=features, as_iterable=False)["scores"]), real(labels).float()
    metrics = model.evaluate(features, labels, batch_size=3)
    theirs = {
        "loss": regression.MeanSquaredError(),
        "rmse": regression.MeanSquaredError(squared=False),
        "mae": regression.MeanAbsoluteError(),
        "r2": regression.R2Score(),
    }
    for name, metric in theirs.items():
        assert metrics[name] == pytest.approx(float(metric(found, given)), rel=1e-5), name


def test_objects_of_torchmetrics_are_metrics() -> None:
    features, labels = data()
    model = estimator().fit(features, labels, steps=2)
    added = {"top_two": classification.MulticlassAccuracy(3, top_k=2, average="micro")}
    found = model.evaluate(features, labels, batch_size=3, metrics=added)
    chances = real(model.predict(x=features, as_iterable=False)["probabilities"])
    hits = (chances.topk(2).indices == real(labels)[:, None]).any(1).double().mean()
    assert found["top_two"] == pytest.approx(float(hits), rel=1e-6)
    again = model.evaluate(features, labels, metrics=added)
    assert again["top_two"] == pytest.approx(found["top_two"], rel=1e-6)  # it starts anew each time


def test_feed_fn_gives_a_batch_a_step() -> None:
    features, labels = data()
    model = estimator().fit(features, labels, steps=2)
    fed = iter(range(0, B, 2))

    def feed() -> tuple[dict[str, Any], np.ndarray]:
        start = next(fed)
        return {name: values[start : start + 2] for name, values in features.items()}, labels[start : start + 2]

    found = model.evaluate(feed_fn=feed, steps=3)
    first_six = {name: values[:6] for name, values in features.items()}
    assert found == pytest.approx(model.evaluate(first_six, labels[:6]))
    with pytest.raises(ConfigError, match=r"^steps must say how many batches feed_fn is asked for$"):
        model.evaluate(feed_fn=feed)
    with pytest.raises(ConfigError, match=r"^feed_fn gives the batches itself; leave x and input_fn out$"):
        model.evaluate(features, labels, feed_fn=feed, steps=1)


def test_progress_is_logged_under_the_evaluations_name(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = data()
    model = estimator().fit(features, labels, steps=1)
    with caplog.at_level(logging.INFO, logger="dynamic_rnn"):
        model.evaluate(features, labels, batch_size=3, steps=2, name="held out")
        model.evaluate(features, labels, batch_size=3)
        model.evaluate(features, labels, batch_size=3, log_progress=False)
    assert [record.getMessage() for record in caplog.records] == [
        "evaluation held out: batch 1 of 2",
        "evaluation held out: batch 2 of 2",
        "evaluation: batch 1",
        "evaluation: batch 2",
        "evaluation: batch 3",
    ]
