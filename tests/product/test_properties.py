"""What must hold for every input, through the estimator: rows are independent, sequences may be cut, bundles are whole.

Each example draws lengths and values anew; the models are trained for a few steps once a module, so that no weight is
special. L: lengths of the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model import (
    DynamicRnnEstimator,
    PredictionType,
    ProblemType,
    Scorer,
    embedding_column,
    load_bundle,
    one_hot_column,
    real_valued_column,
    save_bundle,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
)

CLASSIFICATION, REGRESSION = ProblemType.CLASSIFICATION, ProblemType.LINEAR_REGRESSION
SINGLE, MULTIPLE = PredictionType.SINGLE_VALUE, PredictionType.MULTIPLE_VALUE
CELLS = ("basic_rnn", "lstm", "gru", "gru_reset_before")
MODELS = list(product(CELLS, PredictionType))
KEYS = ("the", "cat", "sat", "dog")  # the last one is unknown to the model
FEATURES = ("x", "word", "token", "age")

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=8)
torch.set_num_threads(1)


def rows(lengths_B: Sequence[int], seed: int) -> dict[str, list[Any]]:
    """Ragged features: two numbers, one key and up to two ids a step, and a number a row."""
    random = np.random.default_rng(seed)
    return {
        "x": [random.normal(0, 3, (n, 2)).tolist() for n in lengths_B],
        "word": [random.choice(KEYS, n).tolist() for n in lengths_B],
        "token": [[random.integers(0, 7, random.integers(0, 3)).tolist() for _ in range(n)] for n in lengths_B],
        "age": random.normal(size=len(lengths_B)).tolist(),
    }


@functools.cache
def fitted(cell: str, prediction: PredictionType, problem: ProblemType = REGRESSION) -> Any:
    """A trained model over all four features; it also has a state to begin with."""
    words = sparse_column_with_keys("word", KEYS[:-1])
    tokens = sparse_column_with_integerized_feature("token", 5)
    model = DynamicRnnEstimator(
        problem,
        prediction,
        [real_valued_column("x"), one_hot_column(words), embedding_column(tokens, 3)],
        [real_valued_column("age")],
        num_classes=3 if problem is CLASSIFICATION else None,
        num_units=[5, 4],
        cell_type=cell,
        optimizer="Adam",
        learning_rate=0.05,
        predict_probabilities=problem is CLASSIFICATION,
        config={"device": "cpu"},
    )
    held = [4, 1, 3, 2]
    random = np.random.default_rng(5)
    labels = [random.integers(0, 3, n).tolist() for n in held]
    return model.fit(x=rows(held, 1), y=labels if prediction is MULTIPLE else [0, 1, 2, 1], steps=5)


def predicted(model: Any, features: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """A dict a row; values as arrays."""
    return [{name: np.asarray(value) for name, value in row.items()} for row in model.predict(x=features)]


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def tail(value: Any, steps: slice) -> Any:
    return [row[steps] for row in value]


@pytest.mark.parametrize(("cell", "prediction"), MODELS)
@given(lengths_B=lengths, seed=seeds, data=st.data())
@few
def test_batch_mates_never_change_a_row(
    cell: str, prediction: PredictionType, lengths_B: list[int], seed: int, data: st.DataObject
) -> None:
    model, features = fitted(cell, prediction), rows(lengths_B, seed)
    among = predicted(model, features)
    chosen = data.draw(st.permutations(range(len(lengths_B))))[: data.draw(st.integers(1, len(lengths_B)))]
    apart = predicted(model, {name: [value[i] for i in chosen] for name, value in features.items()})
    for row, alone in zip(chosen, apart, strict=True):
        for name, value in alone.items():
            close(value, among[row][name])


@pytest.mark.parametrize(("cell", "prediction"), MODELS)
@given(lengths_B=lengths, seed=seeds, more=st.integers(0, 5))
@few
def test_padding_never_changes_a_row(
    cell: str, prediction: PredictionType, lengths_B: list[int], seed: int, more: int
) -> None:
    """Padded with other rows' values, to any T."""
    model, features = fitted(cell, prediction), rows(lengths_B, seed)
    whole = max(lengths_B) + more
    garbage = rows([whole] * len(lengths_B), seed + 1)
    padded: dict[str, Any] = {"age": features["age"], "sequence_length": lengths_B}
    for name in ("x", "word", "token"):
        filled = [row + other[len(row) :] for row, other in zip(features[name], garbage[name], strict=True)]
        padded[name] = np.array(filled).reshape(len(filled), whole, 2) if name == "x" else filled
    for ours, theirs in zip(predicted(model, padded), predicted(model, features), strict=True):
        for name, value in theirs.items():
            close(ours[name][: len(value)] if value.ndim and not name.startswith("rnn") else ours[name], value)


@pytest.mark.parametrize(("cell", "prediction"), MODELS)
@given(lengths_B=lengths, seed=seeds, cuts=st.lists(st.integers(0, 9), max_size=3))
@example(lengths_B=[0], seed=0, cuts=[0, 0])
@few
def test_a_sequence_may_be_cut_anywhere(
    cell: str, prediction: PredictionType, lengths_B: list[int], seed: int, cuts: list[int]
) -> None:
    """The state passed on, pieces give what the whole gives; a single value stands where a row's last step is."""
    model, features = fitted(cell, prediction), rows(lengths_B, seed)
    whole = predicted(model, features)
    scores: list[np.ndarray] = [np.zeros(0, np.float32) for _ in lengths_B]
    state: dict[str, np.ndarray] = {}
    places = [0, *sorted(cuts), None]
    for piece in map(slice, places[:-1], places[1:]):
        part = {name: tail(features[name], piece) for name in FEATURES[:-1]} | {"age": features["age"]} | state
        found = predicted(model, part)
        state = {n: np.stack([row[n] for row in found]) for n in found[0] if n.startswith("rnn_cell_state")}
        for row, each in enumerate(found):
            taken = each["scores"] if prediction is MULTIPLE else each["scores"][None]
            scores[row] = np.concatenate([scores[row], taken[~np.isnan(taken)]])
    for row, expected in enumerate(whole):
        last = expected["scores"] if prediction is MULTIPLE else expected["scores"][None]
        kept = scores[row] if prediction is MULTIPLE else scores[row][-1:]
        close(kept, last[~np.isnan(last)])
        for name, value in state.items():
            close(value[row], expected[name])


@pytest.mark.parametrize("cell", CELLS)
@given(seed=seeds, bad=st.integers(0, 3), value=st.sampled_from([np.nan, np.inf, -np.inf]))
@few
def test_nan_in_one_row_never_reaches_another(cell: str, seed: int, bad: int, value: float) -> None:
    """Where it is refused, its row alone has an error; where it is let in, its row alone is spoilt."""
    model = fitted(cell, MULTIPLE)
    features = rows([3, 2, 4, 1], seed)
    spoilt = features | {"x": [[list(step) for step in row] for row in features["x"]]}
    spoilt["x"][bad][0][1] = value
    scorer = Scorer(model.fitted_bundle())
    good, scored = scorer.score(pa.table(features)), scorer.score(pa.table(spoilt))
    assert list(scored.errors) == [bad]
    others = [row for row in range(4) if row != bad]
    for ours, theirs in zip(scored.state, good.state, strict=True):
        close(ours[others], theirs[others])
    x_BD = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 9))).float()
    logits, state = model.step(x_BD)
    x_BD[bad, 2] = value
    with_bad, after = model.step(x_BD)
    for tensor, before in zip((with_bad, *after), (logits, *state), strict=True):
        assert torch.equal(tensor[others], before[others])


@pytest.mark.parametrize("problem", ProblemType)
@pytest.mark.parametrize(("cell", "prediction"), MODELS)
@given(lengths_B=lengths, seed=seeds)
@settings(max_examples=3)
def test_a_bundle_is_the_model_to_the_bit(
    cell: str, prediction: PredictionType, problem: ProblemType, lengths_B: list[int], seed: int
) -> None:
    model, features = fitted(cell, prediction, problem), rows(lengths_B, seed)
    with TemporaryDirectory() as directory:
        fingerprint = save_bundle(directory, model.fitted_bundle())
        assert load_bundle(directory).fingerprint == fingerprint
        loaded = DynamicRnnEstimator(**(model.get_params() | {"model_dir": directory}))
        for ours, theirs in zip(predicted(loaded, features), predicted(model, features), strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                np.testing.assert_array_equal(ours[name], value)
