"""What the original's own tests asserted, restated for ours: input assembly, state plumbing, and learning.

Numbers in the names' comments are those of the original's tests in the order of its files. Where ours differs on
purpose the assertion is turned round: 3 (states stay with single-value predictions), 11, 18 and 20 (a declared
dimension is checked), 17 (bucketized and crossed columns are allowed in sequences).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import (
    DynamicRnnEstimator,
    PredictionType,
    ProblemType,
    Scorer,
    SparseValues,
    bucketized_column,
    crossed_column,
    embedding_column,
    one_hot_column,
    real_valued_column,
    registry,
    sparse_column_with_hash_bucket,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
)
from model.batches.collate import SequenceBatch, collate
from model.bundle.bundle import load_bundle
from model.columns import Numeric
from model.errors import ConfigError, DataError
from model.estimator.arguments import declare
from model.estimator.inputs import rows_of
from model.estimator.learned import start
from model.estimator.row_sources import Encoder
from model.features.hashing import fingerprint
from model.features.stats import ColumnStats
from model.network.cells import BasicRnnCell, LstmCell, flatten_state, last_step, unflatten_state
from model.network.network import RnnNetwork
from model.scan.fit import fit_columns
from model.scan.fragment_scan import FragmentScan
from tests.fitting import column_stats

CLASSIFICATION, REGRESSION = ProblemType.CLASSIFICATION, ProblemType.LINEAR_REGRESSION
SINGLE, MULTIPLE = PredictionType.SINGLE_VALUE, PredictionType.MULTIPLE_VALUE
CPU = {"device": "cpu"}


def assembled(
    features: dict[str, Any], sequence: list[Any], context: list[Any] | None = None
) -> tuple[RnnNetwork, SequenceBatch]:
    """A network over these columns, and the features as its batch."""
    model = DynamicRnnEstimator(REGRESSION, MULTIPLE, sequence, context, num_units=2, config=CPU)
    declared = declare(model.get_params())
    rows = rows_of(features, None, declared.model)
    scan = FragmentScan(np.zeros(0), None, column_stats(rows.table, declared.model.columns), ColumnStats())
    bundle = start(declared, *fit_columns(declared.model, [scan])).bundle
    network = bundle.network()
    return network, collate(Encoder(bundle.columns, None, network.state_spec()).encode(rows))


def rnn_input(features: dict[str, Any], sequence: list[Any], context: list[Any] | None = None) -> np.ndarray:
    """The network's input [B, T, D]."""
    network, batch = assembled(features, sequence, context)
    values: np.ndarray = network.inputs(batch, torch.float32).detach().numpy()
    return values


# 1–6: the estimator's parts ---------------------------------------------------------------------------------------

WIRE = SparseValues(
    np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 0, 0]]),
    np.array(["marlo", "stringer", "omar", "stringer", "marlo", "marlo"]),
    (3, 2, 2),
)


def wire_features() -> dict[str, Any]:
    random = np.random.default_rng(0)
    location = SparseValues(np.array([[0, 0], [1, 0], [2, 0]]), np.array(["west_side", "west_side", "nyc"]), (3, 1))
    return {"location": location, "measurements": random.random((3, 2, 2)), "wire_cast": WIRE}


def wire_columns() -> tuple[list[Any], list[Any]]:
    cast = embedding_column(sparse_column_with_keys("wire_cast", ["marlo", "omar", "stringer"]), 8)
    location = one_hot_column(sparse_column_with_keys("location", ["west_side", "east_side", "nyc"]))
    return [real_valued_column("measurements", 2), cast], [location]


def test_the_rnn_input_holds_all_columns() -> None:  # 1
    assert rnn_input(wire_features(), *wire_columns()).shape == (3, 2, 13)


def test_a_cell_and_a_projection_give_activations_and_state() -> None:  # 2
    x = torch.from_numpy(rnn_input(wire_features(), *wire_columns()))
    cell, projection = BasicRnnCell(13, 8), torch.nn.Linear(8, 6)
    outputs, state = cell.unroll(x, torch.tensor([2, 2, 2]), cell.zero_state(3), keep_state=True)
    assert projection(outputs).shape == (3, 2, 6)
    assert state.shape == (3, 8)


@pytest.mark.parametrize("prediction", PredictionType)
@pytest.mark.parametrize("problem", ProblemType)
def test_what_is_served_comes_with_its_states(problem: ProblemType, prediction: PredictionType) -> None:  # 3, turned
    features, shape = wire_features(), (3,) if prediction is SINGLE else (3, 2)
    model = DynamicRnnEstimator(problem, prediction, *wire_columns(), num_classes=2, num_units=[4], cell_type="lstm",
                                predict_probabilities=problem is CLASSIFICATION, config=CPU)  # fmt: skip
    model.fit(x=features, y=np.zeros(shape, int), steps=1)
    table = rows_of(features, None, declare(model.get_params()).model).table
    scorer = Scorer(model.fitted_bundle())
    served, expected = scorer.score(table), model.predict(x=features, as_iterable=False)
    named = ["classes", "probabilities"] if problem is CLASSIFICATION else ["scores"]
    assert served.predictions.column_names == named
    assert scorer.state_spec.names == ("rnn_cell_state_0", "rnn_cell_state_1")
    for name, part in zip(scorer.state_spec.names, served.state, strict=True):
        np.testing.assert_array_equal(part, expected[name])


def test_the_model_function_has_what_each_mode_needs() -> None:  # 4, 5, 6
    features, labels = wire_features(), np.random.default_rng(1).integers(0, 2, (3, 2, 1))
    model = DynamicRnnEstimator(CLASSIFICATION, MULTIPLE, *wire_columns(), num_classes=2, num_units=[10], config=CPU)
    model.fit(x=features, y=labels, steps=1)
    train = model.model_fn(features, labels, "train")
    assert train.loss is not None
    assert train.loss.requires_grad
    assert train.train_op is not None
    assert {"accuracy", "loss"} <= train.eval_metrics.keys()
    evaluation = model.model_fn(features, labels, "eval")
    assert evaluation.loss is not None
    assert evaluation.loss.item() == pytest.approx(model.evaluate(x=features, y=labels)["loss"], rel=1e-6)
    assert (evaluation.train_op, bool(evaluation.eval_metrics)) == (None, True)
    infer = model.model_fn(features)
    assert (infer.loss, infer.train_op, infer.eval_metrics) == (None, None, {})
    for outputs in (train, evaluation, infer):
        assert set(outputs.predictions) == {"classes", "rnn_cell_state_0"}
    train.train_op()
    assert model.get_variable_value("global_step") == 2
    with pytest.raises(ConfigError, match="mode 'infer' takes no labels"):
        model.model_fn(features, labels)


def test_a_fresh_estimator_on_a_trained_directory_exports(tmp_path: Path) -> None:  # 7
    sequence, context = wire_columns()

    def estimator() -> DynamicRnnEstimator:
        return DynamicRnnEstimator(
            CLASSIFICATION,
            MULTIPLE,
            sequence,
            context,
            num_classes=2,
            num_units=8,
            predict_probabilities=True,
            model_dir=str(tmp_path / "model"),
            config=CPU,
        )

    labels = np.random.default_rng(0).integers(0, 2, (3, 2, 1))
    trained = estimator().fit(wire_features(), labels, steps=100)
    exported = estimator().export_savedmodel(tmp_path / "exports")
    assert load_bundle(exported).fingerprint == trained.fitted_bundle().fingerprint


# 8–10: states -----------------------------------------------------------------------------------------------------


def test_a_state_goes_to_named_arrays_and_back() -> None:  # 8
    zeros = tuple(LstmCell(1, units).zero_state(1) for units in (5, 3, 7))
    rows = [torch.arange(width)[None] for width in (5, 5, 3, 3, 7, 7)]
    nested = unflatten_state(zeros, rows)
    assert [tuple(part.shape for part in layer) for layer in nested] == [((1, n), (1, n)) for n in (5, 3, 7)]
    for back, row in zip(flatten_state(nested), rows, strict=True):
        assert back.dtype == row.dtype
        assert torch.equal(back, row)


def test_a_stack_of_lstms_takes_and_gives_all_its_states() -> None:  # 9
    random = np.random.default_rng(21212)
    bits = random.integers(0, 2, (11, 17))
    widths = (4, 4, 8, 8, 7, 7)
    states = {f"rnn_cell_state_{i}": random.random((11, width)) for i, width in enumerate(widths)}
    model = DynamicRnnEstimator(CLASSIFICATION, MULTIPLE, [real_valued_column("inputs")], num_classes=2,
                                num_units=[4, 8, 7], cell_type="lstm", config=CPU)  # fmt: skip
    features = {"inputs": bits[:, :16, None].astype(np.float32)} | states
    model.fit(x=features, y=bits[:, 1:], steps=5)
    found = model.predict(x=features, as_iterable=False)
    assert [found[f"rnn_cell_state_{i}"].shape for i in range(6)] == [(11, width) for width in widths]
    without = model.predict(x={"inputs": features["inputs"]}, as_iterable=False)
    assert (without["rnn_cell_state_0"] != found["rnn_cell_state_0"]).any()


@pytest.mark.parametrize("cell", ["basic_rnn", "lstm", "gru", "gru_reset_before"])
def test_chunks_with_the_state_passed_on_give_what_one_run_gives(cell: str) -> None:  # 10
    start_bit = np.arange(11)[:, None]
    bits = (start_bit + np.arange(28)[None, :]) % 2
    model = DynamicRnnEstimator(CLASSIFICATION, MULTIPLE, [real_valued_column("inputs")], num_classes=2,
                                num_units=[4, 7], cell_type=cell, dropout_keep_probabilities=[0.5, 0.5, 0.5],
                                config=CPU)  # fmt: skip
    model.fit(x={"inputs": bits[:, 1:22].astype(float)}, y=bits[:, :21], steps=121)
    inputs = bits[:, 1:].astype(float)
    whole = model.predict(x={"inputs": inputs}, as_iterable=False)
    state: dict[str, Any] = {}
    begin = 0
    for steps in (3, 2, 5, 11, 6):
        chunk = model.predict(x={"inputs": inputs[:, begin : begin + steps]} | state, as_iterable=False)
        state = {name: value for name, value in chunk.items() if name.startswith("rnn_cell_state")}
        begin += steps
    np.testing.assert_array_equal(chunk["classes"], whole["classes"][:, -6:])
    for name, value in state.items():
        np.testing.assert_allclose(value, whole[name], atol=1e-6)
    one_shot = stepped(model, inputs[0], [27])
    in_chunks = stepped(model, inputs[0], [3, 2, 5, 11, 6])
    for name, value in one_shot.items():
        np.testing.assert_array_equal(value, in_chunks[name])


def stepped(model: Any, inputs: np.ndarray, chunks: list[int]) -> dict[str, np.ndarray]:
    """The last state of one sequence, event by event; the state goes through copies between chunks."""
    state: dict[str, np.ndarray] = {}
    events = iter(inputs)
    for steps in chunks:
        state = {name: value.copy() for name, value in state.items()}
        for _ in range(steps):
            _, state = model.step({"inputs": float(next(events))}, state)
    return state


# 11–14: learning --------------------------------------------------------------------------------------------------


def test_learns_a_sine() -> None:  # 11
    random = np.random.default_rng(1234)

    def batches() -> Iterator[Any]:
        while True:
            starts = random.random((8, 1)) * 2 * np.pi
            curve = np.sin(starts + np.linspace(0, 1, 65)[None, :] * (63 * np.pi / 32 - starts))
            yield {"inputs": curve[:, :-1, None]}, curve[:, 1:]

    def model(dimension: int | None) -> Any:
        column = real_valued_column("inputs", dimension)
        return DynamicRnnEstimator(REGRESSION, MULTIPLE, [column], num_units=[4], learning_rate=0.1,
                                   dropout_keep_probabilities=[0.9, 0.9], config=CPU)  # fmt: skip

    learned = model(None).fit(input_fn=batches, steps=200)
    assert learned.evaluate(input_fn=batches, steps=20)["loss"] < 0.02
    with pytest.raises(DataError, match="declared with dimension 4, but the data hold 1 values a step"):
        model(4).fit(input_fn=batches, steps=1)


def test_learns_to_shift_by_one() -> None:  # 12
    random = np.random.default_rng(21212)

    def batch() -> Any:
        bits = random.integers(0, 2, (16, 33))
        return {"inputs": bits[:, 1:, None].astype(np.float32)}, bits[:, :-1]

    model = DynamicRnnEstimator(CLASSIFICATION, MULTIPLE, [real_valued_column("inputs")], num_classes=2, num_units=4,
                                learning_rate=0.3, predict_probabilities=True, config=CPU)  # fmt: skip
    model.fit(input_fn=batch, steps=200)
    assert model.evaluate(input_fn=batch, steps=20)["accuracy"] > 0.9
    found = model.predict(input_fn=lambda: batch()[0], as_iterable=False)
    assert {name: value.shape for name, value in found.items()} == {
        "classes": (16, 32), "probabilities": (16, 32, 2), "rnn_cell_state_0": (16, 4),
    }  # fmt: skip


def test_learns_a_mean() -> None:  # 13
    random = np.random.default_rng(6)

    def batch() -> Any:
        values = random.uniform(-0.75, 0.75, (16, 1)) + random.uniform(-0.25, 0.25, (16, 3))
        return {"inputs": values[:, :, None]}, values.mean(1)

    model = DynamicRnnEstimator(REGRESSION, SINGLE, [real_valued_column("inputs")], num_units=8, optimizer="Momentum",
                                momentum=0.9, learning_rate=0.1, config=CPU)  # fmt: skip
    assert model.fit(input_fn=batch, steps=200).evaluate(input_fn=batch, steps=20)["loss"] < 0.1


def test_learns_a_majority() -> None:  # 14
    random = np.random.default_rng(77)

    def batch() -> Any:
        bits = random.integers(0, 2, (16, 7))
        return {"inputs": bits[:, :, None].astype(np.float32)}, (bits.sum(1) > 3.5).astype(np.int32)

    def learned(seed: int) -> Any:
        model = DynamicRnnEstimator(CLASSIFICATION, SINGLE, [real_valued_column("inputs")], num_classes=2, num_units=4,
                                    cell_type="lstm", optimizer="Momentum", momentum=0.9, learning_rate=2.0,
                                    predict_probabilities=True, config={**CPU, "seed": seed})  # fmt: skip
        return model.fit(input_fn=batch, steps=500)

    # At this learning rate about one seed in ten ends in a bad place, so three vote.
    models = [learned(seed) for seed in (77, 78, 79)]
    assert np.median([model.evaluate(input_fn=batch, steps=20)["accuracy"] for model in models]) > 0.6
    found = models[0].predict(input_fn=lambda: batch()[0], as_iterable=False)
    assert {name: value.shape for name, value in found.items()} == {
        "classes": (16,), "probabilities": (16, 2), "rnn_cell_state_0": (16, 4), "rnn_cell_state_1": (16, 4),
    }  # fmt: skip


# 15–16: what of the steps counts ----------------------------------------------------------------------------------


def test_items_are_the_real_steps_row_by_row() -> None:  # 15
    random = np.random.default_rng(1234)
    labels, lengths = random.integers(0, 4, (4, 6)), [3, 6, 5, 4]
    model = DynamicRnnEstimator(
        CLASSIFICATION, MULTIPLE, [real_valued_column("x")], num_classes=4, num_units=4, config=CPU
    )
    features = {"x": random.random((4, 6)), "sequence_length": lengths}
    seen: list[Any] = []
    model.fit(x=features, y=labels, steps=1)

    def count(given: Any, _predictions: Any, _weights: Any) -> int:
        seen.append(given)
        return len(given)

    assert model.evaluate(x=features, y=labels, metrics={"items": count})["items"] == 18
    by_length = [labels[row, : lengths[row]] for row in np.argsort(lengths, kind="stable")]
    np.testing.assert_array_equal(seen[0], np.concatenate(by_length))


def test_the_last_activations_are_those_of_each_rows_last_real_step() -> None:  # 16
    activations, lengths = torch.rand(4, 6, 4), [1, 5, 1, 3]
    found = last_step(activations, torch.tensor(lengths), torch.zeros(4, 4))
    for row, length in enumerate(lengths):
        assert torch.equal(found[row], activations[row, length - 1])


# 17–28: sequence columns ------------------------------------------------------------------------------------------

PETS = SparseValues(
    np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [3, 2, 0]]),
    np.array(["c", "b", "a", "c", "b", "b"]),
    (4, 3, 2),
)


def test_bucketized_columns_are_allowed_in_sequences() -> None:  # 17, turned round
    column = bucketized_column(real_valued_column("price"), [0.0, 10.0, 100.0])
    found = rnn_input({"price": np.array([[-1.0, 0.0, 10.0], [99.9, 100.0, 1e9]])}, [column])
    np.testing.assert_array_equal(found.argmax(-1), [[0, 1, 2], [2, 3, 3]])  # a value on an edge goes up
    np.testing.assert_array_equal(found.sum(-1), np.ones((2, 3)))
    pairs = rnn_input({"price": np.array([[[-1.0, 50.0]]])}, [column])
    np.testing.assert_array_equal(pairs, [[[1, 0, 0, 0, 0, 0, 1, 0]]])


def test_crossed_columns_are_allowed_in_sequences() -> None:  # 17, turned round
    country = sparse_column_with_hash_bucket("country", 50)
    crossed = crossed_column([country, sparse_column_with_hash_bucket("pets", 30)], 100)
    features = {"country": np.array([["at", "de", "at"]] * 4), "pets": PETS}
    embedded = rnn_input(features, [embedding_column(crossed, 5), one_hot_column(country)])
    assert embedded.shape == (4, 3, 55)
    counts = rnn_input(features, [one_hot_column(crossed)])
    expected = np.zeros((4, 3))
    np.add.at(expected, tuple(PETS.indices[:, :2].T), 1)
    np.testing.assert_array_equal(counts.sum(-1), expected)  # a combination a pet
    np.testing.assert_array_equal(counts[0, 1] != counts[1, 1], np.zeros(100))  # both are de with b
    assert (counts[1, 1] != counts[3, 2]).any()  # of de and at, with b


def test_numbers_come_through_as_they_are() -> None:  # 18, 20
    values = np.random.default_rng(0).random((4, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(rnn_input({"x": values}, [real_valued_column("x")]), values)
    deep = np.random.default_rng(0).random((4, 8, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(rnn_input({"x": deep}, [real_valued_column("x")]), deep.reshape(4, 8, 60))
    with pytest.raises(DataError, match="declared with dimension 1, but the data hold 3 values a step"):
        rnn_input({"x": values}, [real_valued_column("x", 1)])


def test_one_number_a_step_is_a_column_of_width_one() -> None:  # 19
    values = np.array([[0, 1, 2, -1], [3, 4, 5, 6]])
    np.testing.assert_array_equal(rnn_input({"x": values}, [real_valued_column("x")]), values[:, :, None])


def test_normalizers_apply_to_every_dimension() -> None:  # 21, 22
    deep = np.random.default_rng(0).random((4, 8, 3, 4, 5))
    found = rnn_input({"x": deep}, [Numeric(name="x", normalizer="minmax")])
    flat = deep.reshape(4, 8, 60)
    expected = (flat - flat.min((0, 1))) / (flat.max((0, 1)) - flat.min((0, 1)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("function", [lambda x: x - 2, lambda x: x / 2], ids=["x - 2", "x / 2"])
def test_normalizers_may_be_functions(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # 21, 22
    monkeypatch.setitem(registry._normalizers, "of_the_test", function)
    deep = np.random.default_rng(0).random((4, 8, 3, 4, 5))
    found = rnn_input({"x": deep}, [real_valued_column("x", normalizer=function)])
    np.testing.assert_allclose(found, function(deep).reshape(4, 8, 60), rtol=1e-6)


def test_keys_of_a_step_are_counted() -> None:  # 23
    found = rnn_input({"pets": PETS}, [one_hot_column(sparse_column_with_keys("pets", ["a", "b", "c", "unseen"]))])
    expected = np.zeros((4, 3, 4))
    for (row, step, _), pet in zip(PETS.indices, PETS.values, strict=True):
        expected[row, step, "abc".index(pet)] += 1
    np.testing.assert_array_equal(found, expected)


def test_hashed_values_are_counted() -> None:  # 24
    found = rnn_input({"pets": PETS}, [one_hot_column(sparse_column_with_hash_bucket("pets", 10))])
    assert found.shape == (4, 3, 10)
    expected = np.zeros((4, 3, 10))
    for (row, step, _), pet in zip(PETS.indices, PETS.values, strict=True):
        expected[row, step, fingerprint(str(pet)) % 10] += 1
    np.testing.assert_array_equal(found, expected)


def test_embeddings_have_their_width() -> None:  # 25, 26
    column = embedding_column(sparse_column_with_hash_bucket("pets", 10), 5)
    assert rnn_input({"pets": PETS}, [column]).shape == (4, 3, 5)
    one_a_step = SparseValues(np.array([[0, 0], [0, 1], [3, 2]]), np.array(["a", "b", "c"]), (4, 3))
    assert rnn_input({"pets": one_a_step}, [column]).shape == (4, 3, 5)


def test_the_gradient_of_a_table_counts_each_rows_uses() -> None:  # 27
    column = embedding_column(sparse_column_with_hash_bucket("pets", 1000), 3, "sum")
    network, batch = assembled({"pets": PETS}, [column])
    network.inputs(batch, torch.float32).sum().backward()
    table = network.inputs.represents("sequence")[0].table
    assert table is not None
    assert table.grad is not None
    uses = {fingerprint(pet) % 1000: count for pet, count in (("a", 1), ("c", 2), ("b", 3))}
    expected = np.zeros((1000, 3))
    for row, count in uses.items():
        expected[row] = count
    np.testing.assert_array_equal(table.grad, expected)
    looked_up = batch.looked_up["hash_bucket:pets"].flatten().tolist()
    assert set(looked_up) == {-1, 0, *uses}  # 0: the filler of empty steps


def test_several_columns_stand_side_by_side() -> None:  # 28
    random = np.random.default_rng(0)
    features = {"x": random.random((4, 3, 5)), "pets": PETS, "ids": random.integers(0, 200, (4, 3))}
    columns = [
        Numeric(name="x", dimension=5, normalizer="log1p"),
        one_hot_column(sparse_column_with_hash_bucket("pets", 10)),
        embedding_column(sparse_column_with_integerized_feature("ids", 200), 11),
    ]
    found = rnn_input(features, columns)
    assert found.shape == (4, 3, 26)
    assert found.dtype == np.float32
