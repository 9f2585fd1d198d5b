"""The estimator over every new column: dicts of arrays, sparse values and tables; fit, predict and step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model import (
    DynamicRnnEstimator,
    PredictionType,
    ProblemType,
    SparseValues,
    bucketized_column,
    crossed_column,
    embedding_column,
    one_hot_column,
    real_valued_column,
    shared_embedding_columns,
    sparse_column_with_hash_bucket,
    sparse_column_with_integerized_feature,
    sparse_column_with_vocabulary_file,
    weighted_sparse_column,
)
from model.columns import Numeric
from model.errors import ConfigError, DataError

CPU = {"device": "cpu"}
B, T, K = 6, 4, 2


def columns(path: Any) -> tuple[list[Any], list[Any]]:
    """Sequence and context columns of every new kind."""
    (path / "words.txt").write_text("red\ngreen\n")
    word = sparse_column_with_hash_bucket("word", 20)
    price = bucketized_column(real_valued_column("price"), [0.0])
    shared = shared_embedding_columns([word, sparse_column_with_hash_bucket("home", 20)], 2, max_norm=1.0)
    sequence = [
        shared[0],
        Numeric(name="load", missing="mean", indicator=True),
        embedding_column(weighted_sparse_column(sparse_column_with_integerized_feature("ids", 9), "shares"), 3),
        one_hot_column(crossed_column([word, price], 16)),
    ]
    colour = sparse_column_with_vocabulary_file("colour", str(path / "words.txt"), num_oov_buckets=3)
    return sequence, [shared[1], one_hot_column(colour)]


def features() -> dict[str, Any]:
    random = np.random.default_rng(0)
    shares = random.random((B, T, K))
    load = random.random((B, T))
    load[2, 1] = np.nan
    return {
        "word": random.choice(["a", "b", "c"], (B, T)),
        "price": random.normal(size=(B, T)),
        "load": load,
        "ids": random.integers(0, 30, (B, T, K)),
        "shares": shares,
        "home": random.choice(["a", "z"], B),
        "colour": random.choice(["red", "green", "blue"], B),
        "sequence_length": np.array([4, 1, 3, 4, 2, 4]),
    }


def estimator(path: Any, **more: Any) -> DynamicRnnEstimator:
    return DynamicRnnEstimator(
        ProblemType.LINEAR_REGRESSION, PredictionType.MULTIPLE_VALUE, *columns(path), num_units=3, cell_type="gru",
        optimizer="Ftrl", config=CPU, **more,
    )  # fmt: skip


def test_an_estimator_fits_predicts_and_steps_over_every_new_column(tmp_path: Any) -> None:
    x, y = features(), np.random.default_rng(1).normal(100, 20, (B, T))
    model = estimator(tmp_path, standardize_label=True, model_dir=tmp_path / "run")
    model.fit(x=x, y=y, steps=40)
    before = model.evaluate(x=x, y=y)
    assert before["rmse"] < 30  # of labels about 100
    predicted = model.predict(x=x, as_iterable=False)
    again = estimator(tmp_path, standardize_label=True, model_dir=tmp_path / "run")
    np.testing.assert_array_equal(again.predict(x=x, as_iterable=False)["scores"], predicted["scores"])
    state: Any = None
    for t in range(T):
        event = {name: values[0, t] for name, values in x.items() if values.ndim > 1}
        event |= {"home": x["home"][0], "colour": x["colour"][0]}
        prediction, state = model.step(event, state)
        assert prediction["scores"] == pytest.approx(predicted["scores"][0, t], rel=1e-5)


def test_sparse_values_and_their_weights_are_read_alike(tmp_path: Any) -> None:
    x, y = features(), np.random.default_rng(1).normal(size=(B, T))
    model = estimator(tmp_path).fit(x=x, y=y, steps=2)
    dense = model.predict(x=x, as_iterable=False)["scores"]
    places = np.stack(np.meshgrid(*map(np.arange, (B, T, K)), indexing="ij"), -1).reshape(-1, 3)
    sparse = {name: SparseValues(places, x[name].reshape(-1), (B, T, K)) for name in ("ids", "shares")}
    np.testing.assert_array_equal(model.predict(x={**x, **sparse}, as_iterable=False)["scores"], dense)
    fewer = SparseValues(places[:-1], x["shares"].reshape(-1)[:-1], (B, T, K))
    with pytest.raises(DataError, match="an entry must hold as many weights as 'ids' has values"):
        model.predict(x={**x, **sparse, "shares": fewer}, as_iterable=False)


def test_dense_ids_may_be_missing_where_their_weights_are(tmp_path: Any) -> None:
    x = features()
    model = estimator(tmp_path).fit(x=x, y=np.zeros((B, T)), steps=1)
    x["ids"][0, 0, 1], x["shares"][0, 0, 1] = -1, np.nan
    found = model.predict(x=x, as_iterable=False)["scores"]
    x["ids"][0, 0, 1], x["shares"][0, 0, 1] = 5, 0.0  # of no weight
    np.testing.assert_allclose(model.predict(x=x, as_iterable=False)["scores"], found, rtol=1e-6)


def test_class_weights_are_an_argument() -> None:
    model = DynamicRnnEstimator(
        ProblemType.CLASSIFICATION, PredictionType.SINGLE_VALUE, [real_valued_column("x")], num_classes=2, num_units=2,
        class_weights={"no": 3.0}, config=CPU,
    )  # fmt: skip
    table = pa.table({"x": [[1.0], [2.0], [0.5]], "label": ["no", "yes", "yes"]})
    model.fit(table, steps=1)
    found = model.evaluate(table)
    predicted = [row["classes"] for row in model.predict(table)]
    right = [want == have for want, have in zip(["no", "yes", "yes"], predicted, strict=True)]
    assert found["accuracy"] == pytest.approx((3 * right[0] + right[1] + right[2]) / 5)
    with pytest.raises(ConfigError, match="standardize_label needs problem_type linear_regression"):
        DynamicRnnEstimator(
            ProblemType.CLASSIFICATION, PredictionType.SINGLE_VALUE, [real_valued_column("x")], num_classes=2,
            num_units=2, standardize_label=True,
        )  # fmt: skip


def test_batches_cannot_teach_what_needs_all_rows() -> None:
    model = DynamicRnnEstimator(
        ProblemType.LINEAR_REGRESSION, PredictionType.SINGLE_VALUE, [real_valued_column("x")], num_units=2,
        standardize_label=True, config=CPU,
    )  # fmt: skip
    batches = [({"x": [[1.0], [2.0]]}, [1.0, 2.0])] * 2
    with pytest.raises(ConfigError, match="the label's scale must be learned from all rows"):
        model.fit(input_fn=lambda: iter(batches), steps=2)
