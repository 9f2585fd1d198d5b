"""The network: how columns become input, and that a row's activations are its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from model.columns import ColumnsConfig
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.network.cells import Cell
from model.network.column_layers import ColumnLayer
from model.network.dropout import DropoutKey, drop
from model.network.network import InputLayer, RnnNetwork, build_network, logit_count
from model.registry import BUILT_IN_CELLS
from tests.fitting import column_stats

IDS = torch.tensor([[[0, 2, -1], [-1, -1, -1]], [[1, 1, 1], [2, -1, 1]]])  # B 2, T 2, K 3


def columns_of(column: dict[str, Any], table: pa.Table) -> FittedColumns:
    config = ColumnsConfig.model_validate({"sequence": [column]})
    return FittedColumns.fit(config, column_stats(table, config))


def represent(**column: Any) -> ColumnLayer:
    """A representation over three ids."""
    fitted = columns_of(
        {"source": {"type": "identity", "name": "id", "buckets": 3}, **column}, pa.table({"id": [[[1]]]})
    )
    return ColumnLayer(fitted.columns.sequence[0], fitted)


def test_one_hot_counts_each_id() -> None:
    found = represent(type="one_hot")(IDS, torch.float32)
    assert found.tolist() == [[[1, 0, 1], [0, 0, 0]], [[0, 3, 0], [0, 1, 1]]]


@pytest.mark.parametrize(
    ("combiner", "divisors"), [("sum", (1, 1, 1)), ("mean", (2, 3, 2)), ("sqrtn", (2**0.5, 3**0.5, 2**0.5))]
)
def test_several_vectors_of_a_step_are_combined(combiner: str, divisors: tuple[float, ...]) -> None:
    part = represent(type="embedding", dimension=2, combiner=combiner)
    a, b, c = part.weight
    found = part(IDS, torch.float32)
    torch.testing.assert_close(found[0, 0], (a + c) / divisors[0])
    torch.testing.assert_close(found[0, 1], torch.zeros(2))
    torch.testing.assert_close(found[1, 0], 3 * b / divisors[1])
    torch.testing.assert_close(found[1, 1], (b + c) / divisors[2])


@pytest.mark.parametrize("column", [{"type": "one_hot"}, {"type": "embedding", "dimension": 4}])
@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 1), (0, 3, 2)])
def test_no_ids_give_zeros_of_the_right_shape(column: dict[str, Any], shape: tuple[int, ...]) -> None:
    found = represent(**column)(torch.full(shape, -1), torch.float64)
    assert tuple(found.shape) == (*shape[:2], 3 if column["type"] == "one_hot" else 4)
    assert not found.any()


def test_a_number_on_an_edge_belongs_to_the_interval_above() -> None:
    column = {"type": "bucketized", "source": {"type": "numeric", "name": "x"}, "boundaries": [0, 2]}
    fitted = columns_of(column, pa.table({"x": [[[1.0, 1.0]]]}))
    part = ColumnLayer(fitted.columns.sequence[0], fitted)
    found = part(torch.tensor([[[-0.5, 0.0], [1.9, 2.0]]]), torch.float32)
    assert found.tolist() == [[[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]]]
    assert part.width == 6
    assert part.state_dict() == {}  # the boundaries stand in the config


def test_embedding_tables_start_as_the_originals() -> None:
    fitted = columns_of(
        {"type": "embedding", "source": {"type": "identity", "name": "id", "buckets": 400}, "dimension": 16},
        pa.table({"id": [[1]]}),
    )
    torch.manual_seed(0)
    weight = ColumnLayer(fitted.columns.sequence[0], fitted).weight.detach()
    assert weight.abs().max() <= 2 / math.sqrt(400)
    assert abs(float(weight.std()) - 0.88 / math.sqrt(400)) < 0.002  # a normal cut at two deviations


def test_context_stands_beside_every_step(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle()
    batch = collate(encode_rows(make_table(lengths=[2, 4, 0]), bundle.columns))
    network = bundle.network()
    x = network.inputs(batch, torch.float32)
    sequence = [part(batch.sequence[part.key], torch.float32) for part in network.inputs.represents("sequence")]
    context = [part(batch.context[part.key], torch.float32) for part in network.inputs.represents("context")]
    assert tuple(x.shape) == (3, 4, network.inputs.width)
    for step in range(4):
        assert torch.equal(x[:, step], torch.cat([*(part[:, step] for part in sequence), *context], -1))
    # By the original's order of keys: embeddings, one-hots, numbers; within them by name.
    assert [part.key for part in network.inputs.represents("sequence")] == [
        "vocabulary:tags", "vocabulary:kind", "numeric:vector", "numeric:x",
    ]  # fmt: skip
    assert [part.key for part in network.inputs.represents("context")] == ["vocabulary:country", "numeric:age"]


# Rows are independent -----------------------------------------------------------------------------------------


class LastInputCell(Cell):
    """A user's cell whose state is the last input: easy to predict."""

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__(input_size, num_units)
        self.scale = torch.nn.Parameter(torch.ones(num_units))

    def zero_state(self, rows: int) -> Any:
        return (self.scale.new_zeros(rows, self.input_size), (self.scale.new_zeros(rows),))

    def step(self, x_BF: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        last, (count,) = state
        return torch.tanh(self.scale * (x_BF.sum(1) + last.sum(1) + count).unsqueeze(1)), (x_BF, (count + 1,))


@pytest.fixture(autouse=True, scope="module")
def _registered(register: Any) -> None:
    register("last_input_for_tests", LastInputCell)


CELLS = (*BUILT_IN_CELLS, "last_input_for_tests")


def network_of(make_bundle: Any, cell: str, units: list[int], **more: Any) -> tuple[RnnNetwork, FittedColumns]:
    bundle = make_bundle("classification", "multiple_value", cell, num_units=units, **more)
    return bundle.network(), bundle.columns


@pytest.mark.parametrize("units", [[4], [4, 3], [3, 4, 2]], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_the_same_alone_and_among_others(
    make_bundle: Any, make_table: Any, cell: str, units: list[int]
) -> None:
    network, columns = network_of(make_bundle, cell, units)
    rows = encode_rows(make_table(lengths=[3, 0, 7, 1]), columns)
    with torch.no_grad():
        together = network(collate(rows))
        for row, length in enumerate(rows.lengths_B):
            alone = network(collate(rows.slice(row, row + 1)))
            torch.testing.assert_close(together.logits[row, :length], alone.logits[0], atol=1e-6, rtol=1e-6)
            for mine, other in zip(together.state, alone.state, strict=True):
                torch.testing.assert_close(mine[row], other[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("units", [[4], [4, 3]], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_one_event_at_a_time_is_the_whole_sequence(
    make_bundle: Any, make_table: Any, cell: str, units: list[int]
) -> None:
    network, columns = network_of(make_bundle, cell, units)
    batch = collate(encode_rows(make_table(lengths=[6, 6]), columns))
    with torch.no_grad():
        whole, state = network(batch), None
        for t in range(6):
            step = SequenceBatch(
                lengths_B=torch.tensor([1, 1]),
                rows_B=batch.rows_B,
                sequence={key: value[:, t : t + 1] for key, value in batch.sequence.items()},
                context=batch.context,
                state=None if state is None else tuple(part.flatten(1) if part.dim() > 1 else part for part in state),
            )
            logits, state = network(step)
            torch.testing.assert_close(logits[:, 0], whole.logits[:, t], atol=1e-6, rtol=1e-6)
    for mine, other in zip(state, whole.state, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_a_single_prediction_is_made_after_the_last_real_step(make_bundle: Any, make_table: Any, cell: str) -> None:
    single = make_bundle("classification", "single_value", cell)
    network, lengths = single.network(), [4, 1, 6, 0]
    multiple = make_bundle("classification", "multiple_value", cell).network()
    batch = collate(encode_rows(make_table(lengths=lengths), single.columns))
    with torch.no_grad():
        last, every = network(batch).logits, multiple(batch).logits
    for row, length in enumerate(lengths):
        if length:
            torch.testing.assert_close(last[row], every[row, length - 1])


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_no_rows_and_no_steps_are_legal(make_bundle: Any, make_table: Any, prediction: str, lengths: list[int]) -> None:
    bundle = make_bundle("classification", prediction)
    rows = encode_rows(make_table(lengths=lengths), bundle.columns)
    state = tuple(np.full((len(lengths), width), 0.5, np.float32) for width in (4, 4, 3, 3))
    batch = collate(rows.__class__(**{**vars(rows), "state": state}))
    output = bundle.network()(batch)
    assert tuple(output.logits.shape) == ((len(lengths), 3) if prediction == "single_value" else (len(lengths), 0, 3))
    for part, given in zip(output.state, state, strict=True):
        assert np.array_equal(part.detach().numpy(), given)


# Dropout, weights, shapes -------------------------------------------------------------------------------------


def test_dropout_falls_on_each_layers_input_and_on_the_last_output(make_bundle: Any, make_table: Any) -> None:
    keep = [0.5, 0.7, 0.6]
    network, columns = network_of(make_bundle, "lstm", [4, 3], dropout_keep_probabilities=keep)
    batch = collate(encode_rows(make_table(lengths=[5, 3]), columns))
    key = DropoutKey(1, 2, batch.rows_B)
    x = network.inputs(batch, torch.float32)
    for site, cell in enumerate(network.cells):
        x, _ = cell.unroll(drop(x, keep[site], site, key), batch.lengths_B, cell.zero_state(2), keep_state=True)
    expected = network.projection(drop(x, keep[2], 2, key))
    torch.testing.assert_close(network(batch, dropout=key).logits[0], expected[0])
    torch.testing.assert_close(network(batch, dropout=key).logits[1, :3], expected[1, :3])
    assert not torch.allclose(network(batch).logits, expected)


def test_initial_weights_are_a_function_of_the_seed_alone(make_bundle: Any) -> None:
    bundle = make_bundle()
    before = torch.random.get_rng_state()
    first, again, other = (build_network(bundle.config, bundle.columns, bundle.label, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.projection.weight, other.projection.weight)


@pytest.mark.parametrize(
    ("cell", "shapes"),
    [
        ("lstm", [(4,), (4,), (3,), (3,)]),
        ("gru", [(4,), (3,)]),
        ("last_input_for_tests", [(15,), (), (4,), ()]),
    ],
)
def test_the_state_spec_says_what_the_network_returns(
    make_bundle: Any, make_table: Any, cell: str, shapes: list[Any]
) -> None:
    network, columns = network_of(make_bundle, cell, [4, 3])
    state = network(collate(encode_rows(make_table(rows=5), columns))).state
    assert [component.shape for component in network.state_spec().components] == shapes
    assert [tuple(part.shape) for part in state] == [(5, *shape) for shape in shapes]


@pytest.mark.parametrize(
    ("problem", "classes", "logits"),
    [("linear_regression", None, 1), ("classification", 2, 1), ("classification", 3, 3)],
)
def test_two_classes_and_regression_have_one_logit(problem: str, classes: int | None, logits: int) -> None:
    label = FittedLabel(name="y", problem_type=problem, prediction_type="single_value", num_classes=classes)
    assert logit_count(label) == logits


def test_float64_is_float64_throughout(make_bundle: Any, make_table: Any) -> None:
    network, columns = network_of(make_bundle, "lstm", [4, 3], dtype="float64")
    batch = collate(encode_rows(make_table(), columns)).to(network.device, network.dtype)
    output = network(batch)
    assert {part.dtype for part in (output.logits, *output.state, *network.parameters())} == {torch.float64}


def test_an_input_layer_of_one_column_is_that_column() -> None:
    fitted = columns_of({"type": "numeric", "name": "x"}, pa.table({"x": [[1.0]]}))
    batch = collate(encode_rows(pa.table({"x": [[1.0, 2.0], [3.0]]}), fitted))
    assert InputLayer(fitted)(batch, torch.float32).tolist() == [[[1], [2]], [[3], [0]]]
