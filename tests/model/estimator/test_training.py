"""Training that goes on where it stopped, what watches it, and evaluation, through the estimator."""

from __future__ import annotations

from collections.abc import Iterator
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
from model.bundle.bundle import load_bundle, save_bundle
from model.errors import ConfigError
from model.estimator.evaluation import area_under_curve
from model.estimator.learned import StepInfo
from model.estimator.monitors import Checkpoints, EarlyStopping, Progress

OPTIMIZERS = ("Adagrad", "Adam", "Ftrl", "Momentum", "RMSProp", "SGD")

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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_in_parts_is_training_at_once_to_the_bit(optimizer: str, tmp_path: Path) -> None:
    features, labels = data()
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "momentum": 0.9 if optimizer == "Momentum" else None,
        "dropout_keep_probabilities": [0.8, None, 0.7],
    }

    def go(steps: int, model: Any) -> Any:
        return model.fit(x=features, y=labels, steps=steps, batch_size=3)

    at_once = go(7, estimator(**options))
    in_parts = go(4, go(3, estimator(**options)))
    go(3, estimator(**options, model_dir=tmp_path))
    resumed = go(4, estimator(**options, model_dir=tmp_path))
    assert resumed.get_variable_value("global_step") == 7
    assert_same(weights(at_once), weights(in_parts))
    assert_same(weights(at_once), weights(resumed))
    assert_same(weights(at_once), weights(estimator(**options, model_dir=tmp_path)))


def test_steps_count_from_here_and_max_steps_from_the_start() -> None:
    features, labels = data()
    model = estimator().fit(x=features, y=labels, steps=2)
    assert model.fit(x=features, y=labels, max_steps=5).get_variable_value("global_step") == 5
    before = weights(model)
    assert_same(weights(model.fit(x=features, y=labels, max_steps=5)), before)
    assert model.partial_fit(x=features, y=labels).get_variable_value("global_step") == 6
    assert model.fit(x=features, y=labels, batch_size=3).get_variable_value("global_step") == 9  # one pass


def test_a_finite_input_ends_the_training() -> None:
    batch = data()
    assert estimator().fit(input_fn=lambda: [batch] * 3, steps=99).get_variable_value("global_step") == 3


def test_no_batch_is_asked_for_beyond_the_last_step() -> None:
    asked = []

    def batches() -> Iterator[Any]:
        for i in range(9):
            asked.append(i)
            yield data()

    estimator().fit(input_fn=batches, steps=3)
    assert asked == [0, 1, 2]


def test_a_changed_learning_rate_holds_after_a_resume(tmp_path: Path) -> None:
    features, labels = data()
    estimator(model_dir=tmp_path).fit(x=features, y=labels, steps=1)
    still = estimator(model_dir=tmp_path, learning_rate=1e-30).fit(x=features, y=labels, steps=1)
    assert still.get_variable_value("learning_rate") == np.float32(1e-30)
    first = estimator().fit(x=features, y=labels, steps=1)
    for name in ("projection.weight", "cell.0.weight_hh"):
        np.testing.assert_array_equal(still.get_variable_value(name), first.get_variable_value(name))


def test_a_fresh_object_uses_what_another_has_trained_meanwhile(tmp_path: Path) -> None:
    features, labels = data()
    first = estimator(model_dir=tmp_path).fit(x=features, y=labels, steps=1)
    estimator(model_dir=tmp_path).fit(x=features, y=labels, steps=1)
    assert first.evaluate(x=features, y=labels)["global_step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best", "checkpoint-00000001", "checkpoint-00000002", "latest",
    ]  # fmt: skip
    old = first.evaluate(x=features, y=labels, checkpoint_path=tmp_path / "checkpoint-00000001")
    assert old["global_step"] == 1


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    model = estimator(model_dir=tmp_path, config={"keep_checkpoints": 2, "device": "cpu"})
    for _ in range(4):
        model.partial_fit(*data())
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == [
        "checkpoint-00000003", "checkpoint-00000004",
    ]  # fmt: skip


def test_another_network_or_optimizer_cannot_go_on(tmp_path: Path) -> None:
    estimator(model_dir=tmp_path).fit(*data(), steps=1)
    with pytest.raises(ConfigError, match=r"num_units is \(4, 3\) there and \(5,\) here; use another model_dir"):
        estimator(model_dir=tmp_path, num_units=5).fit(*data(), steps=1)
    with pytest.raises(ConfigError, match="optimizer must be SGD, with which the model has been trained so far"):
        estimator(model_dir=tmp_path, optimizer="Adam").fit(*data(), steps=1)
    dropped = estimator(model_dir=tmp_path, dropout_keep_probabilities=[0.5] * 3).fit(*data(), steps=1)
    assert dropped.get_variable_value("global_step") == 2


def test_a_monitor_sees_each_step_and_may_stop() -> None:
    seen: list[StepInfo] = []

    def stop_at_three(info: StepInfo) -> bool:
        seen.append(info)
        return info.global_step == 3

    model = estimator().fit(*data(), steps=9, monitors=[stop_at_three])
    assert [info.global_step for info in seen] == [1, 2, 3]
    assert all(np.isfinite(info.loss) for info in seen)
    assert model.get_variable_value("global_step") == 3


def test_one_more_worker_of_the_seed_is_the_same_model() -> None:
    assert_same(weights(estimator().fit(*data(), steps=2)), weights(estimator().fit(*data(), steps=2)))
    other = estimator(config={"seed": 43, "device": "cpu"}).fit(*data(), steps=2)
    name = "projection.weight"
    assert (other.get_variable_value(name) != estimator().fit(*data(), steps=2).get_variable_value(name)).all()


def test_evaluation_weighs_every_step_the_same_however_it_is_batched() -> None:
    features, labels = data()
    model = estimator().fit(x=features, y=labels, steps=3)
    whole = model.evaluate(x=features, y=labels)
    for size in (1, 3):
        assert model.evaluate(x=features, y=labels, batch_size=size) == pytest.approx(whole)
    batches = [({n: v[i : i + 3] for n, v in features.items()}, labels[i : i + 3]) for i in range(0, B, 3)]
    assert model.evaluate(input_fn=lambda: batches) == pytest.approx(whole)
    assert model.evaluate(input_fn=lambda: (features, labels)) == pytest.approx(whole)
    assert {"loss", "accuracy", "global_step"} <= whole.keys()
    first = {n: v[:3] for n, v in features.items()}, labels[:3]
    assert model.evaluate(x=features, y=labels, batch_size=3, steps=1) == pytest.approx(model.evaluate(*first))


def test_early_stopping_measures_the_weights_of_its_step() -> None:
    features, labels = data()
    model = estimator()
    measured: list[float] = []

    def loss() -> float:
        measured.append(model.evaluate(x=features, y=labels)["loss"])
        return measured[-1] if len(measured) < 3 else measured[1] + len(measured)  # from the third on: worse

    stop = EarlyStopping(loss, every_steps=2, patience=2)
    model.fit(x=features, y=labels, steps=99, monitors=[stop])
    assert model.get_variable_value("global_step") == 8
    assert (stop.best, stop.best_step) == (measured[1], 4)
    for steps, expected in ((2, measured[0]), (4, measured[1])):
        assert estimator().fit(x=features, y=labels, steps=steps).evaluate(x=features, y=labels)["loss"] == expected


def test_monitors_write_checkpoints_and_tell_progress(tmp_path: Path) -> None:
    told: list[str] = []
    monitors = [Checkpoints(every_steps=2), Progress(every_seconds=0, report=told.append)]
    estimator(model_dir=tmp_path).fit(*data(), steps=5, monitors=monitors)
    names = [path.name for path in sorted(tmp_path.glob("checkpoint-*"))]
    assert names == ["checkpoint-00000002", "checkpoint-00000004", "checkpoint-00000005"]
    assert [line.split(":")[0] for line in told] == [f"step {i}" for i in range(1, 6)]


def test_a_bundle_is_a_model_to_use_and_to_train_on(tmp_path: Path) -> None:
    features, labels = data()
    trained = estimator(model_dir=tmp_path / "run", optimizer="Adam", learning_rate=0.01).fit(features, labels, steps=2)
    bundle = load_bundle(tmp_path / "run" / "checkpoint-00000002")
    save_bundle(tmp_path / "bundle", bundle)  # without its training part
    warm = estimator(model_dir=tmp_path / "bundle", optimizer="SGD")
    np.testing.assert_array_equal(
        warm.predict(x=features, as_iterable=False)["classes"],
        trained.predict(x=features, as_iterable=False)["classes"],
    )
    assert warm.fit(features, labels, steps=1).get_variable_value("global_step") == 1


def test_metrics_of_classes_and_numbers_are_what_their_definitions_say() -> None:
    features, labels = data()
    model = estimator().fit(x=features, y=labels, steps=3)
    rows = list(model.predict(x=features))
    found = np.concatenate([row["classes"][:n] for row, n in zip(rows, LENGTHS, strict=True)])
    given = np.concatenate([row[:n] for row, n in zip(labels, LENGTHS, strict=True)])
    scores = []
    for i in range(3):
        hits = ((found == i) & (given == i)).sum()
        scores.append(2 * hits / ((found == i).sum() + (given == i).sum()))
    metrics = model.evaluate(x=features, y=labels, batch_size=3)
    assert metrics["macro_f1"] == pytest.approx(np.mean(scores))
    assert metrics["accuracy"] == pytest.approx((found == given).mean())
    regression = estimator(REGRESSION).fit(x=features, y=labels, steps=1)
    found = np.concatenate([row["scores"][:n] for row, n in zip(regression.predict(x=features), LENGTHS, strict=True)])
    metrics = regression.evaluate(x=features, y=labels)
    assert metrics["mae"] == pytest.approx(np.abs(found - given).mean())
    assert metrics["rmse"] == pytest.approx(np.sqrt(((found - given) ** 2).mean()))
    assert metrics["r2"] == pytest.approx(1 - ((found - given) ** 2).sum() / ((given - given.mean()) ** 2).sum())


def test_area_under_the_curve_counts_the_pairs_in_order() -> None:
    random = np.random.default_rng(3)
    labels, scores = random.integers(0, 2, 40), random.integers(0, 9, 40).astype(float)
    weights = random.integers(0, 3, 40).astype(float)
    pairs = [
        (weights[i] * weights[j], (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
        for i in range(40) for j in range(40) if labels[i] == 1 and labels[j] == 0
    ]  # fmt: skip
    expected = sum(w * won for w, won in pairs) / sum(w for w, _ in pairs)
    assert area_under_curve(labels, scores, weights) == pytest.approx(expected)
    assert np.isnan(area_under_curve(np.ones(3), np.ones(3), np.ones(3)))


def test_users_metrics_are_functions_or_objects() -> None:
    class Mean:
        def reset(self) -> None:
            self.total, self.count = 0.0, 0

        def update(self, predictions: Any, labels: Any) -> None:
            self.total, self.count = self.total + float(predictions.sum()), self.count + len(labels)

        def compute(self) -> float:
            return self.total / self.count

    def share(labels: Any, predictions: Any, weights: Any) -> float:
        return float((predictions["classes"] * weights).sum() / len(labels))

    features, labels = data()
    model = estimator(num_classes=2, predict_probabilities=True).fit(x=features, y=labels % 2, steps=2)
    found = model.evaluate(x=features, y=labels % 2, batch_size=3, metrics={"mean": Mean(), "share": share})
    real = np.arange(T)[None, :] < LENGTHS[:, None]
    whole = model.predict(x=features, as_iterable=False)
    assert found["mean"] == pytest.approx(whole["probabilities"][real][:, 1].mean(), rel=1e-6)
    assert found["share"] == pytest.approx(whole["classes"][real].mean())
    assert 0 <= found["auc"] <= 1
    with pytest.raises(ConfigError, match=r"metrics\['x'\] must be a function"):
        model.evaluate(x=features, y=labels % 2, metrics={"x": 1})


def test_evaluation_tells_its_hooks_each_batch() -> None:
    seen: list[int] = []
    estimator().fit(*data(), steps=1).evaluate(*data(), batch_size=3, hooks=[seen.append])
    assert seen == [1, 2, 3]


def test_padded_ids_and_empty_positions_count_as_looked_up_in_padded_input_alone() -> None:
    column = embedding_column(sparse_column_with_integerized_feature("token", 6), 2)
    options: dict[str, Any] = {"sequence_feature_columns": [column], "context_feature_columns": None}
    # One step, then padding with an id, then padding without one.
    padded = {"token": np.array([[[3], [4], [-1]]]), "sequence_length": [1]}

    def table(features: dict[str, Any], optimizer: str, learning_rate: float) -> np.ndarray:
        model = estimator(REGRESSION, SINGLE, **options, optimizer=optimizer, learning_rate=learning_rate)
        value: np.ndarray = model.fit(x=features, y=[1.0], steps=1).get_variable_value("inputs.sequence.0.weight")
        return value

    def untouched(features: dict[str, Any]) -> list[int]:
        """The rows that Ftrl, which moves what is looked up even without a gradient, leaves alone."""
        initial = table(features, "SGD", 1e-30)
        return np.flatnonzero((table(features, "Ftrl", 0.1) == initial).all(1)).tolist()

    assert untouched(padded) == [1, 2, 5]
    assert untouched({"token": [[[3]]]}) == [0, 1, 2, 4, 5]
