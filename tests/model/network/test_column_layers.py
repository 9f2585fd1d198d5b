"""Representations in the network: weighted combiners, limits, shared, frozen and pretrained tables; normalizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save_file

from model.batches.collate import collate
from model.batches.encode import encode_rows, padding_lookups
from model.bundle.bundle import bundle_of, load_bundle, save_bundle
from model.columns import (
    ColumnsConfig,
    Embedding,
    HashBucket,
    Numeric,
    Vocabulary,
    embedding_column,
    real_valued_column,
    shared_embedding_columns,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
    weighted_sparse_column,
)
from model.config import ModelConfig
from model.errors import ConfigError, DataError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.network.column_layers import ColumnLayer
from model.network.network import InputLayer, RnnNetwork, build_network
from model.settings import build
from model.training.config import OptimizerConfig
from model.training.trainer import Trainer
from model.training.truncation import TruncatedBatch
from tests.fitting import column_stats

LABEL = FittedLabel(name="y", problem_type="linear_regression", prediction_type="multiple_value")
IDS = sparse_column_with_integerized_feature("i", 6)


def fitted_to(columns: ColumnsConfig, table: pa.Table) -> FittedColumns:
    return FittedColumns.fit(columns, column_stats(table, columns))


def network_of(table: pa.Table, *columns: Any, context: tuple[Any, ...] = (), seed: int = 1) -> tuple[RnnNetwork, Any]:
    """A network over these columns, and what fitting made of them."""
    declared = ColumnsConfig(sequence=columns, context=context)
    config = ModelConfig(
        problem_type="linear_regression", prediction_type="multiple_value", columns=declared, label="y", num_units=(2,)
    )
    fitted = fitted_to(declared, table)
    return build_network(config, fitted, LABEL, seed), fitted


# Weighted ids -----------------------------------------------------------------------------------------------------

WEIGHTED = pa.table(
    {
        "i": [[[1, 2, 1], [3], [], [4, 5], [2, 0]]],
        "v": [[[0.5, 2.0, 1.0], [3.0], [], [-1.0, 0.0], [-2.0, 1.5]]],
        "y": [[0.0] * 5],
    }
)


def combined(combiner: str, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The original's rules, for one step."""
    if combiner == "sum":
        return (vectors * weights[:, None]).sum(0)
    vectors, weights = vectors[weights > 0], weights[weights > 0]
    divisor = weights.sum() if combiner == "mean" else np.sqrt((weights**2).sum())
    return (vectors * weights[:, None]).sum(0) / (divisor or 1)


@pytest.mark.parametrize("group", ["sequence", "context"])
@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
def test_weights_are_combined_as_the_original_does(combiner: Any, group: str) -> None:
    column = embedding_column(weighted_sparse_column(IDS, "v"), 3, combiner)
    if group == "sequence":
        table = WEIGHTED
        network, fitted = network_of(table, column)
    else:
        flat = {name: WEIGHTED[name].combine_chunks().flatten() for name in "iv"}
        table = pa.table({**flat, "clock": [[1.0]] * 5})
        network, fitted = network_of(table, real_valued_column("clock"), context=(column,))
    part = network.inputs.represents("sequence" if group == "sequence" else "context")[0]
    batch = collate(encode_rows(table, fitted))
    found = part.read(batch.sequence if group == "sequence" else batch.context, torch.float32)
    found = found[0] if group == "sequence" else found
    ids, weights = (WEIGHTED[name].to_pylist()[0] for name in "iv")
    for step in range(5):
        vectors = part.weight.detach().numpy()[np.array(ids[step], int)]
        expected = combined(combiner, vectors, np.array(weights[step], np.float32))
        np.testing.assert_allclose(found[step].detach().numpy(), expected, rtol=1e-6, atol=1e-7)
    found.sum().backward()
    assert part.weight.grad is not None
    assert torch.isfinite(part.weight.grad).all()


@pytest.mark.parametrize(("combiner", "rows"), [("mean", [0, 1, 2, 3]), ("sum", [0, 1, 2, 3, 4, 5])])
def test_ids_that_a_combiner_leaves_out_are_not_looked_up(combiner: Any, rows: list[int]) -> None:
    network, fitted = network_of(WEIGHTED, embedding_column(weighted_sparse_column(IDS, "v"), 2, combiner))
    part = network.inputs.represents("sequence")[0]
    read = part.rows_read(collate(encode_rows(WEIGHTED, fitted)).sequence)
    assert sorted({*read.flatten().tolist()} - {-1}) == rows
    padded = padding_lookups(WEIGHTED, fitted)[part.key].values.tolist()
    assert sorted({*padded}) == rows  # 0, the filler of the empty step, is among them in any case


# Limits, frozen and pretrained tables -----------------------------------------------------------------------------


def test_max_norm_scales_down_what_is_read_and_leaves_the_table() -> None:
    table = pa.table({"i": [[0, 1, 2]], "y": [[0.0] * 3]})
    network, fitted = network_of(table, embedding_column(IDS, 2, max_norm=1.0))
    part = network.inputs.represents("sequence")[0]
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    part.weight.data[:3] = vectors
    found = network.inputs(collate(encode_rows(table, fitted)), torch.float32)[0]
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert torch.equal(part.weight[:3], vectors)
    found[:, 0].sum().backward()
    # d(x/‖x‖)/dx at (3, 4) is (16, −12)/125; below the limit it is the identity.
    torch.testing.assert_close(part.weight.grad[:3], torch.tensor([[0.128, -0.096], [1.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Ftrl"])
def test_a_table_that_is_not_trainable_stays(optimizer: Any) -> None:
    table = pa.table({"i": [[0, 1, 2]], "j": [[0, 1, 0]], "y": [[1.0, 2.0, 3.0]]})
    moving = embedding_column(sparse_column_with_integerized_feature("j", 2), 2)
    network, fitted = network_of(table, embedding_column(IDS, 2, trainable=False), moving)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trainer = Trainer(network, LABEL, OptimizerConfig(optimizer=optimizer), seed=1)
    trainer.step(collate(encode_rows(table, fitted, LABEL)))
    after = network.state_dict()
    assert torch.equal(after["inputs.sequence.0.weight"], before["inputs.sequence.0.weight"])
    assert not torch.equal(after["inputs.sequence.1.weight"], before["inputs.sequence.1.weight"])


def written(path: Any, form: str, **arrays: np.ndarray) -> str:
    file = str(path / f"vectors.{form}")
    if form == "npy":
        np.save(file, next(iter(arrays.values())))
    elif form == "npz":
        np.savez(file, **arrays)
    else:
        save_file(arrays, file)
    return file


@pytest.mark.parametrize("form", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_pretrained_vectors_are_the_first_weights_and_stay_in_the_bundle(tmp_path: Any, form: str, kind: Any) -> None:
    vectors = np.arange(6).reshape(3, 2).astype(kind)
    path = written(tmp_path, form, vectors=vectors)
    source = Vocabulary(name="w", keys=("a", "b", "c"), oov_buckets=2)
    table = pa.table({"w": [["a", "q"]], "y": [[1.0, 2.0]]})
    column = Embedding(source=source, dimension=2, pretrained=path)
    network, fitted = network_of(table, column)
    weight = network.state_dict()["inputs.sequence.0.weight"]
    assert torch.equal(weight[:3], torch.from_numpy(vectors.astype(np.float32)))
    assert torch.equal(weight[3:], network_of(table, column.model_copy(update={"pretrained": None}))[0]
                       .state_dict()["inputs.sequence.0.weight"][3:])  # fmt: skip
    save_bundle(tmp_path / "bundle", bundle_of(network, fitted, LABEL))
    (tmp_path / f"vectors.{form}").unlink()
    loaded = load_bundle(tmp_path / "bundle").network()
    assert torch.equal(loaded.state_dict()["inputs.sequence.0.weight"], weight)


def test_an_array_of_several_is_named(tmp_path: Any) -> None:
    path = written(tmp_path, "npz", words=np.zeros((6, 2)), other=np.ones((6, 2)))
    table = pa.table({"i": [[0]], "y": [[0.0]]})
    column = Embedding(source=IDS, dimension=2, pretrained=path, pretrained_array="other")
    assert (network_of(table, column)[0].inputs.represents("sequence")[0].weight == 1).all()
    with pytest.raises(ConfigError, match=r"vectors.npz: holds words, other; name one as pretrained_array$"):
        network_of(table, column.model_copy(update={"pretrained_array": None}))
    with pytest.raises(ConfigError, match=r"pretrained_array must be one of words, other, but is 'third'$"):
        network_of(table, column.model_copy(update={"pretrained_array": "third"}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.npy", None, "must hold pretrained vectors, but cannot be read: there is no such file"),
        ("v.bin", b"", "pretrained vectors must be a .npy, .npz or .safetensors file, but the name ends otherwise"),
        ("v.npy", np.zeros((3, 2)), "column 'w' needs 4 vectors (or 2 without those of unknown values) of 2 numbers, "
         "but the shape is [3, 2]"),
        ("v.npy", np.zeros((4, 3)), "column 'w' needs 4 vectors (or 2 without those of unknown values) of 2 numbers, "
         "but the shape is [4, 3]"),
        ("v.npy", np.zeros((4, 2), int), "pretrained vectors must be finite floats, but are int64"),
        ("v.npy", np.full((4, 2), np.nan), "pretrained vectors must be finite floats, but are not all finite"),
    ],
)  # fmt: skip
def test_vectors_that_do_not_fit_are_told(tmp_path: Any, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    column = Embedding(source=Vocabulary(name="w", keys=("a", "b"), oov_buckets=2), dimension=2, pretrained=str(path))
    with pytest.raises(ConfigError) as raised:
        network_of(pa.table({"w": [["a"]], "y": [[0.0]]}), column)
    assert str(raised.value) == f"{path}: {message}"


@pytest.mark.parametrize("form", ["npy", "npz", "safetensors"])
def test_a_damaged_file_is_told(tmp_path: Any, form: str) -> None:
    path = tmp_path / f"v.{form}"
    path.write_bytes(b"PK\x03\x04 no archive" if form == "npz" else b"nothing of the kind")
    with pytest.raises(ConfigError, match=rf"v.{form}: must be a .npy, .npz or .safetensors file of numbers, but: "):
        network_of(pa.table({"i": [[0]], "y": [[0.0]]}), Embedding(source=IDS, dimension=2, pretrained=str(path)))


def test_no_object_is_unpickled_from_an_array_file(tmp_path: Any) -> None:
    np.save(tmp_path / "v.npy", np.array([{}], object))
    column = Embedding(source=IDS, dimension=2, pretrained=str(tmp_path / "v.npy"))
    with pytest.raises(ConfigError, match="Object arrays cannot be loaded when allow_pickle=False"):
        network_of(pa.table({"i": [[0]], "y": [[0.0]]}), column)


def test_a_local_path_is_made_absolute(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Embedding(source=IDS, dimension=2, pretrained="v.npy").pretrained == str(tmp_path / "v.npy")
    assert Embedding(source=IDS, dimension=2, pretrained="s3://b/v.npy").pretrained == "s3://b/v.npy"
    columns = {"sequence": [{"type": "embedding", "source": IDS, "dimension": 2, "pretrained_array": "a"}]}
    with pytest.raises(ConfigError) as raised:
        build(ColumnsConfig, columns, where="run.yaml")
    message = "run.yaml: sequence.0: pretrained_array names an array of the file `pretrained`, but that is null"
    assert str(raised.value) == message


# Shared tables ----------------------------------------------------------------------------------------------------

TRIPS = pa.table({"from": [["a", "b"], ["c"]], "to": [["b", "d"], ["b"]], "home": ["e", "b"], "y": [[1.0, 2.0], [3.0]]})


def trips() -> list[Embedding]:
    return shared_embedding_columns([Vocabulary(name=name) for name in ("from", "to", "home")], 2)


def test_columns_of_a_table_learn_one_vocabulary_and_have_one_table() -> None:
    start, end, home = trips()
    assert start.table == "from_home_to_shared_embedding"
    network, fitted = network_of(TRIPS, start, end, context=(home,))
    assert {fitted.sources[f"vocabulary:{name}"].keys for name in ("from", "to", "home")} == {("b", "a", "c", "d", "e")}
    names = [name for name, _ in network.named_parameters() if name.startswith("inputs")]
    assert names == ["inputs.sequence.0.weight"]
    assert [name for name in network.state_dict() if name.startswith("inputs")] == names
    batch = collate(encode_rows(TRIPS, fitted))
    x = network.inputs(batch, torch.float32)
    weight = network.inputs.represents("sequence")[0].weight
    torch.testing.assert_close(x[0, 1], torch.cat([weight[0], weight[3], weight[4]]))  # b, d and, at home, e
    bundle = bundle_of(network, fitted, LABEL)
    again = bundle.network()
    assert again.inputs.represents("context")[0].weight is again.inputs.represents("sequence")[0].weight
    assert torch.equal(again.inputs(batch, torch.float32), x)


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Ftrl", "Adam"])
def test_a_shared_table_trains_on_the_uses_of_all_its_columns(optimizer: Any) -> None:
    start, end, home = trips()
    network, fitted = network_of(TRIPS, start, end, context=(home,))
    config = OptimizerConfig(optimizer=optimizer, momentum=0.9 if optimizer == "Momentum" else None)
    trainer = Trainer(network, LABEL, config, seed=1)
    weight = network.inputs.represents("sequence")[0].weight
    before = weight.detach().clone()
    batch = collate(encode_rows(TRIPS, fitted, LABEL))
    trainer.step(batch)
    segment = next(s for s in trainer.flat.segments if s.name == "inputs.sequence.0.weight")
    assert segment.touched is not None
    assert trainer.flat.buffer[segment.touched : segment.touched + 6].tolist() == [1, 1, 1, 1, 1, 0]  # OOV: not read
    moved = (weight != before).any(1).tolist()
    assert moved == [True] * 5 + [False]
    gradient = weight.grad
    assert gradient is not None
    assert (gradient[:5] != 0).any(1).all()
    # Rows that only the context has, or only the second column, move with it alone.
    alone = pa.table({**{name: TRIPS[name] for name in ("from", "to", "y")}, "home": ["b", "b"]})
    before = weight.detach().clone()
    if optimizer in ("Momentum", "Ftrl", "SGD"):
        trainer.step(collate(encode_rows(alone, fitted, LABEL)))
        assert (weight != before).any(1).tolist() == [True] * 4 + [False, False]


def test_several_workers_add_up_to_one_with_a_shared_table() -> None:
    start, end, home = trips()
    network, fitted = network_of(TRIPS, start, end, context=(home,))
    rows = encode_rows(TRIPS, fitted, LABEL)
    together, parts = (Trainer(network_of(TRIPS, start, end, context=(home,))[0], LABEL, OptimizerConfig(), seed=1)
                       for _ in range(2))  # fmt: skip
    together.step(collate(rows))
    other = Trainer(network, LABEL, OptimizerConfig(), seed=1)
    rest = collate(rows.slice(1, 2))
    other._accumulate(TruncatedBatch(1, rest), 0, rest)
    parts.reduce = lambda buffer: buffer.add_(other.flat.buffer)
    parts.step(collate(rows.slice(0, 1)))
    torch.testing.assert_close(parts.flat.weights, together.flat.weights)


def shared(**changes: Any) -> tuple[Embedding, Embedding]:
    first, second = shared_embedding_columns([HashBucket(name="a", buckets=3), HashBucket(name="b", buckets=3)], 2)
    return first, second.model_copy(update=changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 3}, "must agree in dimension, but 'a' has 2 and 'b' has 3"),
        ({"max_norm": 1.5}, "must agree in max_norm, but 'a' has None and 'b' has 1.5"),
        ({"trainable": False}, "must agree in trainable, but 'a' has True and 'b' has False"),
    ],
)
def test_columns_of_a_table_agree(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"columns that share the table 'a_b_shared_embedding' {message}"):
        ColumnsConfig(sequence=shared(**change))


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        (HashBucket(name="b", buckets=4), "4 hash bucket ids"),
        (sparse_column_with_keys("b", ["x", "y", "z"]), "3 vocabulary ids"),
    ],
)
def test_ids_of_a_table_mean_the_same(source: Any, ids: str) -> None:
    columns = ColumnsConfig(sequence=shared(source=source))
    with pytest.raises(DataError) as raised:
        fitted_to(columns, pa.table({"a": [["x"]], "b": [["x"]]}))
    assert str(raised.value) == (
        f"column 'b': columns that share the table 'a_b_shared_embedding' must have the same ids, but 'a' has 3 hash "
        f"bucket ids and 'b' has {ids}; give their sources the same settings"
    )


# Everything at once -----------------------------------------------------------------------------------------------


def test_a_model_over_the_new_columns_trains_and_survives_its_bundle(tmp_path: Any) -> None:
    shared_words = shared_embedding_columns([Vocabulary(name="w"), Vocabulary(name="u")], 2, max_norm=0.5)
    table = pa.table(
        {
            "w": [["a", "b"], ["c"], []], "u": ["c", None, "a"], "n": [[[1], [2, 3]], [[]], []],
            "v": [[[1.0], [0.5, -1.0]], [[]], []], "x": [[None, 1.0], [2.0], []], "y": [[1.0, 0.0], [2.0], []],
        }
    )  # fmt: skip
    columns = (
        shared_words[0],
        embedding_column(weighted_sparse_column(sparse_column_with_integerized_feature("n", 4), "v"), 2),
        Numeric(name="x", missing="mean", indicator=True),
    )
    network, fitted = network_of(table, *columns, context=(shared_words[1],))
    trainer = Trainer(network, LABEL, OptimizerConfig(optimizer="Adam", learning_rate=0.05), seed=1)
    batch = collate(encode_rows(table, fitted, LABEL))
    losses = [trainer.step(batch).loss for _ in range(60)]
    assert losses[-1] < losses[0] / 10
    save_bundle(tmp_path / "bundle", bundle_of(network, fitted, LABEL))
    with torch.no_grad():
        torch.testing.assert_close(load_bundle(tmp_path / "bundle").network()(batch).logits, network(batch).logits)


def test_input_layers_know_their_width() -> None:
    table = pa.table({"x": [[[1.0, 2.0]]], "i": [[[1]]]})
    columns = ColumnsConfig(sequence=(Numeric(name="x", missing=0, indicator=True), embedding_column(IDS, 3)))
    fitted = fitted_to(columns, table)
    assert InputLayer(fitted).width == 7
    assert ColumnLayer(columns.ordered("sequence")[1], fitted).width == 4
