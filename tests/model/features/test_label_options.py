"""Class weights, standardised regression labels, and string classes under a declared number of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.batches.collate import collate
from model.batches.encode import encode_rows
from model.bundle.bundle import Bundle, bundle_of, load_bundle, save_bundle
from model.config import ModelConfig
from model.errors import ConfigError, DataError
from model.features.labels import FittedLabel
from model.network import heads
from model.network.network import build_network
from model.scan.fit import fit_columns
from model.scan.fragment_scan import scan_table
from model.scan.split import SplitBy
from model.scoring.metrics import results, table_metrics
from model.scoring.scorer import Scorer
from model.scoring.stepper import Stepper
from model.settings import build
from model.training.config import OptimizerConfig
from model.training.trainer import Trainer

STEPS = {"x": [[0.5, -1.0, 2.0], [1.0], []], "w": [2.0, 0.5, 1.0]}
MODEL = {"columns": {"sequence": [{"type": "numeric", "name": "x"}]}, "label": "y", "num_units": [3]}


def config_of(problem: str, prediction: str, **changes: Any) -> ModelConfig:
    named = {"problem_type": problem, "prediction_type": prediction}
    return build(ModelConfig, {**MODEL, **named, **changes}, where="run.yaml")


def table_of(labels: Any) -> pa.Table:
    return pa.table({**STEPS, "y": labels})


def fitted_bundle(config: ModelConfig, table: pa.Table, seed: int = 3) -> Bundle:
    scans = [scan_table(part, config, None, fit=True, place="") for part in (table.slice(0, 1), table.slice(1))]
    columns, label = fit_columns(config, scans)
    return bundle_of(build_network(config, columns, label, seed), columns, label)


# Class weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["classes alone", "times the rows"])
@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("values", [("a", "b"), (0, 1), (7, 9), (0, 1, 2)], ids=str)
def test_class_weights_count_in_loss_and_metrics_alike(values: Any, prediction: str, weighted: bool) -> None:
    first, second = values[:2]
    labels = (
        [second, first, values[-1]] if prediction == "single_value" else [[first, second, second], [values[-1]], []]
    )
    weights = {first: 0.5, second: 3}
    config = config_of("classification", prediction, class_weights=weights, **({"weight": "w"} if weighted else {}))
    again = build(ModelConfig, json.loads(config.model_dump_json()), where="model.json")
    assert again == config
    table = table_of(labels)
    bundle = fitted_bundle(again, table)
    assert bundle.label.class_weights == tuple(float(weights.get(value, 1)) for value in values)
    rows = encode_rows(table, bundle.columns, bundle.label)
    if prediction == "single_value":
        held, of_rows = labels, STEPS["w"]
    else:
        held, of_rows = [*labels[0], *labels[1]], [2.0, 2.0, 2.0, 0.5]
    expected = [weights.get(value, 1) * (row if weighted else 1) for value, row in zip(held, of_rows, strict=True)]
    assert rows.weights is not None
    assert rows.weights.tolist() == expected
    batch = collate(rows)
    network = bundle.network()
    with torch.no_grad():
        losses = heads.loss(bundle.label, network(batch).logits, batch.labels)
    mean = float((losses * batch.weights).sum() / batch.weights.sum())
    trained = Trainer(bundle.network().requires_grad_(True), bundle.label, OptimizerConfig(), seed=1).step(batch)
    measured = results(bundle.label, table_metrics(network, bundle.columns, bundle.label, table))
    assert trained.loss == pytest.approx(mean, rel=1e-6)
    assert measured["loss"] == pytest.approx(mean, rel=1e-6)
    assert measured["weight"] == trained.weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"], "class_weights": {"aa": 2}},
         "class_weights must name classes ('a', 'b'), but names 'aa'; did you mean a?"),
        ({"class_weights": {"a": -1}}, "class_weights.a must be at least 0, but is -1"),
        ({"class_weights": [1, 2]}, "class_weights must be a mapping, but is [1, 2]"),
        ({"problem_type": "linear_regression", "class_weights": {"a": 1}},
         "class_weights need problem_type classification, but it is linear_regression"),
        ({"standardize_label": True},
         "standardize_label needs problem_type linear_regression, but it is classification"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of("classification", "single_value", **changes)
    assert str(raised.value) == f"run.yaml: {message}"


def test_a_weight_of_an_unknown_class_is_told_at_fit() -> None:
    for num_classes in (3, "auto"):
        config = config_of("classification", "single_value", num_classes=num_classes, class_weights={7: 2})
        with pytest.raises(ConfigError, match=r"^class_weights must name classes \(0, 1, 2\), but names '7'$"):
            fitted_bundle(config, table_of([0, 1, 2]))


# String classes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_string_labels_are_classes_under_a_declared_number(kind: pa.DataType) -> None:
    config = config_of("classification", "single_value", num_classes=3)
    table = table_of(pa.array(["no", "yes", "maybe"]).cast(kind))
    bundle = fitted_bundle(config, table)
    assert (bundle.label.num_classes, bundle.label.classes) == (3, ("maybe", "no", "yes"))
    assert encode_rows(table, bundle.columns, bundle.label).labels.tolist() == [1, 2, 0]
    assert set(Scorer(bundle).score(table).predictions["classes"].to_pylist()) <= {"maybe", "no", "yes", None}


@pytest.mark.parametrize("labels", [["a", "b", "a"], [["a"] * 3, ["b"], []]])
def test_another_number_of_string_classes_is_told(labels: Any) -> None:
    prediction = "multiple_value" if isinstance(labels[0], list) else "single_value"
    config = config_of("classification", prediction, num_classes=3)
    with pytest.raises(DataError) as raised:
        fitted_bundle(config, table_of(labels))
    assert str(raised.value) == (
        "column 'y': num_classes is 3, but the training labels hold 2 values ('a', 'b'); declare `classes` with all of "
        "them, or num_classes: auto to take those there are"
    )


def test_integer_labels_are_ids_under_a_declared_number() -> None:
    bundle = fitted_bundle(config_of("classification", "single_value", num_classes=4), table_of([1, 2, 1]))
    assert (bundle.label.num_classes, bundle.label.classes) == (4, None)


# Standardised labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
def test_standardised_labels_train_small_and_are_predicted_large(tmp_path: Any, prediction: str) -> None:
    values = [1010.0, 1030.0, 990.0, 1050.0]
    labels = values[:3] if prediction == "single_value" else [values[:3], values[3:], []]
    held = np.array(values[:3] if prediction == "single_value" else values)
    table = table_of(labels)
    config = config_of("linear_regression", prediction, standardize_label=True)
    bundle = fitted_bundle(config, table)
    assert bundle.label.shift == pytest.approx(held.mean())
    assert bundle.label.scale == pytest.approx(held.std())
    network = bundle.network()
    batch = collate(encode_rows(table, bundle.columns, bundle.label))
    assert batch.labels is not None
    assert float(batch.labels.max()) == held.max()  # batches hold what the data hold
    with torch.no_grad():
        logits = network(batch).logits
    real = (batch.weights if batch.weights is not None else torch.ones(1)).numpy() > 0
    raw = logits.squeeze(-1).numpy()[real]
    targets = batch.labels.numpy()[real]
    step = Trainer(bundle.network().requires_grad_(True), bundle.label, OptimizerConfig(), seed=1).step(batch)
    standardized = (targets - bundle.label.shift) / bundle.label.scale
    assert step.loss == pytest.approx(float(((raw - standardized) ** 2).mean()), rel=1e-5)
    scores = raw * bundle.label.scale + bundle.label.shift
    measured = results(bundle.label, table_metrics(network, bundle.columns, bundle.label, table))
    assert measured["rmse"] == pytest.approx(float(np.sqrt(((scores - targets) ** 2).mean())), rel=1e-5)
    assert measured["loss"] == pytest.approx(measured["rmse"] ** 2)
    assert measured["mae"] == pytest.approx(float(np.abs(scores - targets).mean()), rel=1e-5)
    save_bundle(tmp_path / "bundle", bundle)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.label == bundle.label
    found = Scorer(loaded).score(table).predictions["scores"].to_pylist()
    flat = found if prediction == "single_value" else [value for row in found for value in row]
    np.testing.assert_allclose([value for value in flat if value is not None], scores, rtol=1e-6)
    first = Stepper(loaded).event({"x": 0.5}, None)[0]["scores"]
    if prediction == "multiple_value":
        assert first == pytest.approx(float(scores[0]), rel=1e-6)


@pytest.mark.parametrize(("labels", "scale"), [([5.0, 5.0, 5.0], (5.0, 1.0)), ([0.1, 0.1, 0.1], (0.1, 1.0))])
def test_a_constant_label_is_only_shifted(labels: list[float], scale: tuple[float, float]) -> None:
    config = config_of("linear_regression", "single_value", standardize_label=True)
    label = fitted_bundle(config, table_of(labels)).label
    assert (label.shift, label.scale) == scale


def test_no_label_at_all_leaves_the_scale() -> None:
    config = config_of("linear_regression", "multiple_value", standardize_label=True)
    table = pa.table({"x": pa.array([[]], pa.list_(pa.float32())), "y": pa.array([[]], pa.list_(pa.float32()))})
    _, label = fit_columns(config, [scan_table(table, config, None, fit=True, place="")])
    assert (label.shift, label.scale) == (0, 1)


def test_the_scale_is_that_of_the_training_rows() -> None:
    config = config_of("linear_regression", "single_value", standardize_label=True)
    table = pa.table({"x": [[1.0]] * 200, "y": np.arange(200.0)})
    scan = scan_table(table, config, SplitBy(fraction=0.5), fit=True, place="")
    _, label = fit_columns(config, [scan])
    assert scan.training is not None
    held = np.arange(200.0)[scan.training]
    assert 0 < len(held) < 200
    assert (label.shift, label.scale) == pytest.approx((held.mean(), held.std()))


def test_a_training_tells_its_loss_in_the_labels_units(train_in_memory: Any) -> None:
    table = table_of([1010.0, 1030.0, 990.0])
    bundle = fitted_bundle(config_of("linear_regression", "single_value", standardize_label=True), table)
    rows = encode_rows(table, bundle.columns, bundle.label)
    told: list[Any] = []
    job = {"progress": told.append}
    trained = train_in_memory(bundle, rows, validation=rows, job=job, steps=1, batch_sequences=3, learning_rate=1e-12)
    metrics = trained.reports[-1].metrics
    assert metrics["train_loss"] > 100  # the labels' variance is 267
    assert metrics["train_loss"] == pytest.approx(metrics["validation_loss"], rel=1e-5)
    assert told[-1].loss == metrics["train_loss"]


def test_labels_that_are_not_standardised_are_left_alone() -> None:
    label = FittedLabel(name="y", problem_type="linear_regression", prediction_type="single_value")
    logits = torch.tensor([[0.1], [-0.0]])
    assert heads.scores(label, logits).numpy().tobytes() == logits.squeeze(-1).numpy().tobytes()
    assert torch.equal(heads.loss(label, logits, torch.zeros(2)), logits.squeeze(-1) ** 2)
