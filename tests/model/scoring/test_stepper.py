"""One event at a time: the quick readers of plain values give what the encoding of tables gives."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.batches.collate import collate
from model.batches.encode import encode_rows
from model.bundle.bundle import bundle_of
from model.columns import ColumnsConfig
from model.config import ModelConfig
from model.errors import DataError, StateError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel, PredictionType, ProblemType
from model.network.network import build_network
from model.scoring.scorer import Scorer
from model.scoring.stepper import Stepper
from tests.fitting import column_stats

SOURCES: dict[str, dict[str, Any]] = {
    "number": {"type": "numeric", "name": "a"},
    "normalised": {"type": "numeric", "name": "a", "normalizer": "zscore", "missing": "mean"},
    "intervals": {"type": "bucketized", "source": {"type": "numeric", "name": "a"}, "boundaries": [0, 2.5]},
    "vector": {"type": "numeric", "name": "v", "normalizer": "minmax"},
    "word": {"type": "embedding", "source": {"type": "vocabulary", "name": "w"}, "dimension": 3},
    "dropped": {
        "type": "one_hot",
        "source": {"type": "vocabulary", "name": "w", "keys": ["a", "b"], "oov_buckets": 0},
    },
    "numbered": {"type": "one_hot", "source": {"type": "vocabulary", "name": "n"}},
    "identity": {"type": "embedding", "source": {"type": "identity", "name": "n", "buckets": 5}, "dimension": 2},
    "several": {"type": "embedding", "source": {"type": "vocabulary", "name": "s"}, "dimension": 2},
    "indicated": {"type": "numeric", "name": "a", "missing": 0, "indicator": True},
    "indicated intervals": {
        "type": "bucketized",
        "source": {"type": "numeric", "name": "h", "missing": "mean", "indicator": True},
        "boundaries": [1],
    },
    "hashed": {"type": "one_hot", "source": {"type": "hash_bucket", "name": "w", "buckets": 5}},
    "hashed numbers": {
        "type": "embedding",
        "source": {"type": "hash_bucket", "name": "n", "buckets": 5},
        "dimension": 2,
        "max_norm": 0.1,
    },
    "hashed unknown": {
        "type": "one_hot",
        "source": {"type": "vocabulary", "name": "w", "keys": ["a"], "oov_buckets": 4},
    },
    "weighted": {
        "type": "embedding",
        "source": {"type": "weighted", "source": {"type": "hash_bucket", "name": "s", "buckets": 5}, "weights": "p"},
        "dimension": 2,
        "combiner": "sqrtn",
    },
    "weighted once": {
        "type": "one_hot",
        "source": {"type": "weighted", "source": {"type": "identity", "name": "n", "buckets": 4}, "weights": "a"},
    },
    "crossed": {
        "type": "one_hot",
        "source": {
            "type": "crossed",
            "sources": [
                {"type": "hash_bucket", "name": "s", "buckets": 5},
                {"type": "identity", "name": "n", "buckets": 5},
                {"type": "bucketized", "source": {"type": "numeric", "name": "a"}, "boundaries": [0, 2.5]},
            ],
            "buckets": 9,
        },
    },
}
ROWS = pa.table(
    {
        "a": [[0.0, 2.5, -1.5, 7.0]],
        "v": [[[0.5, 1.0], [1.5, -2.0], [3.0, 4.0], [0.0, 0.1]]],
        "w": [["a", "b", "zzz", ""]],
        "n": [[3, -1, 12, 0]],
        "s": [[["x"], ["y", "x"], [], ["q", "y"]]],
        "p": [[[0.5], [-2.0, 3.0], [], [1.0, 0.0]]],
        "h": [[0.5, None, 2.0, 1.0]],
    }
)
LABEL = FittedLabel(name="y", problem_type=ProblemType.LINEAR_REGRESSION, prediction_type=PredictionType.MULTIPLE_VALUE)


def stepper(name: str, *, context: bool = False) -> Stepper:
    """A model that reads one column (as context: beside the number)."""
    number = {"type": "numeric", "name": "clock"}
    groups = {"sequence": [number], "context": [SOURCES[name]]} if context else {"sequence": [SOURCES[name]]}
    columns = ColumnsConfig.model_validate(groups)
    config = ModelConfig(
        problem_type=LABEL.problem_type,
        prediction_type=LABEL.prediction_type,
        columns=columns,
        label="y",
        num_units=(3,),
    )
    table = ROWS if not context else context_rows()
    fitted = FittedColumns.fit(columns, column_stats(table, columns))
    return Stepper(bundle_of(build_network(config, fitted, LABEL, seed=1), fitted, LABEL))


def context_rows() -> pa.Table:
    columns = {name: ROWS[name].combine_chunks().flatten() for name in ROWS.column_names}
    return pa.table({**columns, "clock": [[0.5]] * 4})


def encoded(model: Stepper, table: pa.Table) -> np.ndarray:
    batch = collate(encode_rows(table, model.columns))
    values: np.ndarray = model.network.inputs(batch, torch.float32).numpy()
    return values


@pytest.mark.parametrize("name", SOURCES)
def test_an_event_is_encoded_as_a_step_of_a_table_is(name: str) -> None:
    model = stepper(name)
    expected = encoded(model, ROWS)[0]
    for t in range(4):
        event = {column: ROWS[column].to_pylist()[0][t] for column in ROWS.column_names}
        np.testing.assert_array_equal(model.encode(event)[0], expected[t])


@pytest.mark.parametrize("name", ["numbered", "identity", "hashed numbers", "weighted once"])
def test_whole_numbers_of_any_type_are_the_integers_they_are(name: str) -> None:
    model = stepper(name)
    for value in (3.0, Decimal(3), np.float32(3)):
        assert torch.equal(model.encode({"n": value, "a": 0.5}), model.encode({"n": 3, "a": 0.5}))
    with pytest.raises(DataError) as raised:
        model.encode({"n": 3.5, "a": 0.5})
    assert (raised.value.column, raised.value.problem) == (
        "n", "a category, class or key must be a whole number or a string, but one is 3.5",
    )  # fmt: skip


def test_bytes_are_the_text_they_hold() -> None:
    for name in ("word", "hashed"):
        model = stepper(name)
        assert torch.equal(model.encode({"w": b"b"}), model.encode({"w": "b"}))


@pytest.mark.parametrize("name", SOURCES)
def test_an_event_has_the_context_of_its_row(name: str) -> None:
    model = stepper(name, context=True)
    expected = encoded(model, context_rows())
    for row in range(4):
        event = context_rows().slice(row, 1).to_pylist()[0] | {"clock": 0.5}
        np.testing.assert_array_equal(model.encode(event)[0], expected[row, 0])


def test_values_of_numpy_and_null_are_read_by_the_encoding_of_tables() -> None:
    model = stepper("normalised")
    mean = model.encode({"a": float(np.mean([0.0, 2.5, -1.5, 7.0]))})
    np.testing.assert_allclose(model.encode({"a": None}), mean, atol=1e-7)
    np.testing.assert_array_equal(model.encode({"a": np.float64(2.5)}), model.encode({"a": 2.5}))
    vector = stepper("vector")
    np.testing.assert_array_equal(vector.encode({"v": np.array([0.5, 1.0])}), vector.encode({"v": [0.5, 1.0]}))
    np.testing.assert_array_equal(stepper("several").encode({"s": "x"}), stepper("several").encode({"s": ["x"]}))


@pytest.mark.parametrize(
    ("name", "event", "message"),
    [
        ("number", {}, "column 'a': is not in the event"),
        ("number", {"a": "much"}, "column 'a': must be of type double"),
        ("number", {"a": float("nan")}, "column 'a': must be finite"),
        ("number", {"a": None}, "column 'a': must not be null"),
        ("vector", {"v": [1.0]}, "column 'v'"),
        ("word", {"w": 7}, "column 'w': must be of type string"),
        ("identity", {"n": "a"}, "column 'n': must be of type int64"),
        ("hashed", {"w": 7}, "column 'w': must be of type string"),
        ("weighted", {"s": ["x"]}, "column 'p': is not in the event; its features are s"),
        ("weighted", {"s": ["x"], "p": [1.0, 2.0]}, "column 'p': an entry must hold as many weights as 's' has values"),
    ],
)
def test_a_value_that_does_not_fit_is_named(name: str, event: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stepper(name).event(event, None)


@pytest.mark.parametrize("classes", [("no", "maybe", "yes"), (3, 10, 7), None])
@pytest.mark.parametrize("probabilities", [True, False])
def test_an_event_tells_the_class_by_its_name_and_the_probabilities_in_the_classes_order(
    classes: tuple[str | int, ...] | None, probabilities: bool
) -> None:
    """Event by event what the whole sequence gives, and both what the logits say."""
    label = FittedLabel(
        name="y",
        problem_type=ProblemType.CLASSIFICATION,
        prediction_type=PredictionType.MULTIPLE_VALUE,
        num_classes=3,
        classes=classes,
    )
    columns = ColumnsConfig.model_validate({"sequence": [SOURCES["number"]]})
    config = ModelConfig(
        problem_type=label.problem_type,
        prediction_type=label.prediction_type,
        columns=columns,
        label="y",
        num_units=(3,),
        predict_probabilities=probabilities,
    )
    fitted = FittedColumns.fit(columns, column_stats(ROWS, columns))
    network = build_network(config, fitted, label, seed=1)
    with torch.no_grad():
        network.projection.bias.copy_(torch.tensor([0.0, 0.05, -0.05]))
        network.projection.weight.mul_(3.0)
    bundle = bundle_of(network, fitted, label)
    model = Stepper(bundle)
    whole = Scorer(bundle).score(ROWS.select(["a"]))
    names = list(classes or range(3))
    state, seen = None, set()
    for t, value in enumerate(ROWS["a"].to_pylist()[0]):
        logits, _ = model.tensors(model.encode({"a": value}), model._state(state))
        told, state = model.event({"a": value}, state)
        seen.add(told["classes"])
        assert told["classes"] == names[int(logits.argmax())] == whole.predictions["classes"][0].as_py()[t]
        assert type(told["classes"]) is type(names[0])
        assert ("probabilities" in told) == probabilities
        if probabilities:
            np.testing.assert_allclose(told["probabilities"], torch.softmax(logits[0], 0), atol=1e-6)
            np.testing.assert_allclose(
                told["probabilities"], whole.predictions["probabilities"][0].as_py()[t], atol=1e-6
            )
    assert len(seen) > 1, "all of one class would not tell names in a wrong order"


def test_a_state_that_does_not_fit_is_refused() -> None:
    model = stepper("number")
    with pytest.raises(StateError, match="must have shape"):
        model.event({"a": 1.0}, {"rnn_cell_state_0": np.zeros(7)})
    with pytest.raises(StateError, match="a state must have 1 tensors, but has 2"):
        model.tensors(torch.zeros(1, 1), (torch.zeros(1, 3), torch.zeros(1, 3)))
