"""Train/serve skew is impossible: the same rows through every door become the same tensors, bit by bit.

The doors: Parquet (training's reader and batch prediction), Arrow IPC and JSON (the service), pandas and Python dicts
(the estimator), single events (`step`). What is compared is what the network is called with, caught on its way in.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from model import registry
from model.batches.arrow_transport import from_arrow
from model.batches.collate import SequenceBatch, collate
from model.batches.encoded_rows import concat
from model.batches.plan import DataIndex
from model.bundle.bundle import Bundle, load_bundle
from model.columns import (
    Numeric,
    Vocabulary,
    bucketized_column,
    crossed_column,
    embedding_column,
    one_hot_column,
    real_valued_column,
    sparse_column_with_hash_bucket,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
    sparse_column_with_vocabulary_file,
    weighted_sparse_column,
)
from model.estimator.estimator import DynamicRnnEstimator
from model.features.labels import PredictionType, ProblemType
from model.network.network import InputLayer, RnnNetwork
from model.scoring.scorer import Scorer
from model.scoring.stepper import Stepper
from model.tables.parquet import find_fragments, read_fragment
from pipelines.ingest.read_task import ReadTask, Request, RowReader
from serve.config import LimitsConfig
from serve.wire.arrow_codec import ArrowDecoder
from serve.wire.inputs import Inputs
from serve.wire.json_codec import JsonDecoder

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
DAY = 1_700_000_000.0  # seconds: float32 would lose two minutes of it before it is normalised
# Among them: nothing at all, letters that look alike but are not, an empty string, values no training row has.
WORDS = ["view", "é", "e\u0301", "漢字", "🛒", "", "İ", "straße"]
TYPES: dict[str, pa.DataType] = {
    "clock": pa.list_(pa.float64()),
    "x": pa.list_(pa.float64()),
    "vector": pa.list_(pa.list_(pa.float64())),
    "amount": pa.list_(pa.float64()),
    "word": pa.list_(pa.string()),
    "kind": pa.list_(pa.string()),
    "tags": pa.list_(pa.list_(pa.string())),
    "n": pa.list_(pa.int64()),
    "code": pa.list_(pa.int64()),
    "items": pa.list_(pa.list_(pa.string())),
    "scores": pa.list_(pa.list_(pa.float64())),
    "age": pa.float64(),
    "place": pa.list_(pa.float64()),
    "country": pa.string(),
    "groups": pa.list_(pa.string()),
}
LABEL = {"label": pa.list_(pa.int64()), "weight": pa.list_(pa.float64())}


def step(random: np.random.Generator) -> Row:
    """One event with every kind of value, some of them missing."""
    items = random.choice(WORDS, random.integers(0, 4)).tolist()
    maybe: Callable[[Any], Any] = lambda value: None if random.random() < 0.2 else value  # noqa: E731
    return {
        "clock": DAY + float(random.integers(0, 10**6)) + 0.25,
        "x": maybe(float(random.normal(3, 1e-3))),
        "vector": maybe([maybe(float(value)) for value in random.normal(size=3)]),
        "amount": float(random.gamma(2, 5)),
        "word": maybe(str(random.choice(WORDS))),
        "kind": maybe(str(random.choice([*WORDS, "never declared"]))),
        "tags": maybe(random.choice(WORDS, random.integers(0, 4)).tolist()),
        "n": maybe(int(random.integers(-5, 50))),
        "code": maybe(int(random.integers(-(2**62), 2**62))),
        "items": items,
        "scores": [float(value) for value in random.normal(size=len(items))],
    }


def sequence(random: np.random.Generator, length: int) -> Row:
    """One row: lists of what its steps hold, the context, label and weight."""
    steps = [step(random) for _ in range(length)]
    return {
        **{name: [each[name] for each in steps] for name in list(TYPES)[:11]},
        "age": None if random.random() < 0.4 else float(random.integers(18, 90)),
        "place": [float(value) for value in random.uniform(-90, 90, 2)],
        "country": str(random.choice(WORDS)),
        "groups": random.choice(WORDS, random.integers(0, 3)).tolist(),
        "label": random.integers(0, 3, length).tolist(),
        "weight": [float(value) for value in random.uniform(0.1, 2, length)],
    }


def rows_of_lengths(*lengths: int, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    return [sequence(random, length) for length in lengths]


ROWS = rows_of_lengths(4, 0, 1, 7, 3, 2)


def columns(vocabulary: str) -> tuple[list[Any], list[Any]]:
    """Every kind of column there is, in sequences and as context."""
    amount = real_valued_column("amount", normalizer="log1p")
    country = sparse_column_with_hash_bucket("country", 11)
    word = sparse_column_with_hash_bucket("word", 13)
    deciles = bucketized_column(amount, quantiles=10)
    pair = crossed_column([word, deciles], 17)
    items = sparse_column_with_vocabulary_file("items", vocabulary, num_oov_buckets=2)
    sequence_columns = [
        Numeric(name="clock", normalizer="zscore"),
        Numeric(name="x", normalizer="minmax", missing="mean", indicator=True),
        Numeric(name="vector", missing=-1, indicator=True, normalizer="halved"),
        amount,
        deciles,
        bucketized_column(amount, [1.5, 2.5]),
        one_hot_column(word),
        one_hot_column(sparse_column_with_keys("kind", WORDS[:4], default_value=2)),
        embedding_column(Vocabulary(name="tags", max_keys=4, oov_buckets=3), 3, combiner="sqrtn"),
        one_hot_column(sparse_column_with_integerized_feature("n", 7)),
        embedding_column(sparse_column_with_hash_bucket("code", 19), 2),
        embedding_column(weighted_sparse_column(items, "scores"), 2),
        one_hot_column(pair),
        embedding_column(crossed_column([crossed_column([word, sparse_column_with_hash_bucket("code", 19)], 3),
                                         sparse_column_with_integerized_feature("n", 7)], 23), 2),
    ]  # fmt: skip
    context_columns = [
        Numeric(name="age", missing="mean", normalizer="zscore"),
        real_valued_column("place"),
        one_hot_column(country),
        embedding_column(Vocabulary(name="groups"), 2, combiner="sum"),
    ]
    return sequence_columns, context_columns


def table_of(rows: list[Row], *, labelled: bool = True) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema({**TYPES, **(LABEL if labelled else {})}))


def with_states(rows: list[Row], bundle: Bundle) -> list[Row]:
    """The rows, each but the first with a state; float32 values as Python floats."""
    random, spec = np.random.default_rng(8), bundle.network().state_spec()
    states = [
        {part.name: random.normal(size=part.numel).astype(np.float32).tolist() for part in spec.components}
        for _ in rows
    ]
    nothing = dict.fromkeys(states[0])
    return [
        {**row, **(state if number else nothing)} for number, (row, state) in enumerate(zip(rows, states, strict=True))
    ]


# What the network is called with ----------------------------------------------------------------------------------


@contextmanager
def caught() -> Iterator[list[SequenceBatch]]:
    """The batches that any network is called with meanwhile."""
    found: list[SequenceBatch] = []

    def keep(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, RnnNetwork):
            found.append(arguments[0])

    handle = register_module_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def tensors(batch: SequenceBatch) -> dict[str, torch.Tensor]:
    """All of a batch by name, its rows in the order of their numbers."""
    order = torch.argsort(batch.rows_B)
    states = enumerate(batch.state or ())
    named = {
        "lengths": batch.lengths_B,
        "rows": batch.rows_B,
        **{f"sequence {key}": value for key, value in batch.sequence.items()},
        **{f"context {key}": value for key, value in batch.context.items()},
        **{f"state {number}": value.reshape(len(batch.lengths_B), -1) for number, value in states},
        **{name: value for name, value in (("labels", batch.labels), ("weights", batch.weights)) if value is not None},
    }
    return {name: value[order] for name, value in named.items()}


def the_batch(call: Callable[[], object]) -> dict[str, torch.Tensor]:
    """The tensors of the one batch that `call` makes the network compute."""
    with caught() as found:
        call()
    assert len(found) == 1, "few rows are one batch"
    return tensors(found[0])


def check_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], door: str) -> None:
    assert found.keys() == expected.keys(), door
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, f"{door}: {name}"
        assert found[name].shape == value.shape, f"{door}: {name}"
        assert found[name].numpy().tobytes() == value.numpy().tobytes(), f"{door}: {name}"


NAMES = [
    "context hash_bucket:country", "context numeric:age", "context numeric:place", "context vocabulary:groups",
    "lengths", "rows", "sequence crossed:amount_X_word", "sequence crossed:code_X_word_X_n",
    "sequence hash_bucket:code", "sequence hash_bucket:word", "sequence identity:n", "sequence numeric:amount",
    "sequence numeric:clock", "sequence numeric:vector", "sequence numeric:x", "sequence vocabulary:kind",
    "sequence vocabulary:tags", "sequence weighted:items*scores", "sequence weighted:items*scores/weights", "state 0",
    "state 1", "state 2", "state 3",
]  # fmt: skip


# The doors --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamicRnnEstimator]:
    """Fitted to other rows than those that are compared: what it meets there may be unknown to it."""
    before = dict(registry._normalizers)
    registry.register_normalizer("halved", lambda matrix: matrix / 2)
    directory = tmp_path_factory.mktemp("skew")
    (directory / "items.txt").write_text("\n".join(["view", "é", "🛒"]), encoding="utf-8")
    sequence_columns, context_columns = columns(str(directory / "items.txt"))
    made = DynamicRnnEstimator(
        ProblemType.CLASSIFICATION,
        PredictionType.MULTIPLE_VALUE,
        sequence_columns,
        context_columns,
        num_classes=3,
        num_units=[5, 4],
        cell_type="lstm",
        model_dir=str(directory / "model"),
        weight="weight",
    )
    made.fit(table_of(rows_of_lengths(9, 8, 0, 12, 1, seed=1)), steps=1)
    yield made
    registry._normalizers.clear()
    registry._normalizers.update(before)


@pytest.fixture(scope="module")
def bundle(estimator: DynamicRnnEstimator) -> Bundle:
    """What the estimator saved."""
    (path,) = Path(str(estimator.model_dir)).glob("checkpoint-*")
    return load_bundle(path)


def through_parquet(bundle: Bundle, rows: list[Row], path: Path) -> dict[str, torch.Tensor]:
    """Training's way: row groups read in tasks, encoded, shipped as Arrow, joined, collated."""
    pq.write_table(table_of(rows), path, row_group_size=2)
    reader = RowReader(bundle.columns, bundle.label)
    fragments = find_fragments(path, reader.names)
    index = DataIndex(tuple(fragments), np.array([len(row["clock"]) for row in rows]))
    wanted = np.array([3, 0, 5, 1, 4, 2])[: len(rows)]
    shipped = list(ReadTask(reader, ())(Request.of(index, wanted).to_arrow()))
    return tensors(collate(concat([from_arrow(table.slice(0, 4)) for table in shipped]
                                  + [from_arrow(table.slice(4)) for table in shipped])))  # fmt: skip


def score_parquet(bundle: Bundle, rows: list[Row], path: Path) -> None:
    """Batch prediction's way."""
    pq.write_table(with_state_columns(rows, bundle), path)
    (fragment,) = find_fragments(path, [])
    Scorer(bundle).score(read_fragment(fragment, pq.read_schema(path).names))


def score_ipc(bundle: Bundle, rows: list[Row]) -> None:
    table = with_state_columns(rows, bundle)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    scorer = Scorer(bundle)
    request = ArrowDecoder(Inputs.of(scorer.columns, scorer.state_spec), LimitsConfig()).decode(
        sink.getvalue().to_pybytes()
    )
    assert not request.errors
    scorer.score(request.table)


def score_json(bundle: Bundle, rows: list[Row]) -> None:
    scorer = Scorer(bundle)
    names = scorer.state_spec.names
    sequences = [
        {
            "features": {name: row[name] for name in TYPES},
            "state": None if row[names[0]] is None else {name: row[name] for name in names},
        }
        for row in rows
    ]
    body = json.dumps({"sequences": sequences}, ensure_ascii=False).encode()
    request = JsonDecoder(Inputs.of(scorer.columns, scorer.state_spec), LimitsConfig()).decode(body)
    assert not request.errors
    scorer.score(request.table)


def with_state_columns(rows: list[Row], bundle: Bundle) -> pa.Table:
    fields = bundle.network().state_spec().arrow_fields()
    return pa.Table.from_pylist(rows, schema=pa.schema({**TYPES, **{each.name: each.type for each in fields}}))


def as_dict(rows: list[Row], names: list[str]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in names}


def as_arrays(rows: list[Row], bundle: Bundle) -> dict[str, np.ndarray]:
    """States as the estimator takes them in a dict: arrays [B, units], zeros where there are none."""
    spec = bundle.network().state_spec()
    return {
        part.name: np.array([row[part.name] or [0.0] * part.numel for row in rows], np.float32)
        for part in spec.components
    }


def test_rows_to_score_become_the_same_tensors_through_every_door(
    estimator: DynamicRnnEstimator, bundle: Bundle, tmp_path: Path
) -> None:
    rows = with_states(ROWS, bundle)
    features, names = [*TYPES], [*TYPES, *bundle.network().state_spec().names]
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=object) for name in names})
    doors: dict[str, Callable[[], object]] = {
        "parquet": partial(score_parquet, bundle, rows, tmp_path / "rows.parquet"),
        "arrow ipc": partial(score_ipc, bundle, rows),
        "json": partial(score_json, bundle, rows),
        "pandas": lambda: list(estimator.predict(frame)),
        "dict": lambda: list(estimator.predict(as_dict(rows, features) | as_arrays(rows, bundle))),
        "arrow": lambda: list(estimator.predict(with_state_columns(rows, bundle))),
    }
    found = {door: the_batch(call) for door, call in doors.items()}
    expected = found["parquet"]
    assert sorted(expected) == NAMES
    for door, tensors_of_door in found.items():
        check_same(tensors_of_door, expected, door)


def test_training_rows_become_the_same_tensors_through_every_door(
    estimator: DynamicRnnEstimator, bundle: Bundle, tmp_path: Path
) -> None:
    names = [*TYPES, *LABEL]
    frame = pd.DataFrame({name: pd.Series([row[name] for row in ROWS], dtype=object) for name in names})
    features = as_dict(ROWS, [*TYPES, "weight"])
    doors: dict[str, Callable[[], object]] = {
        "pandas": lambda: estimator.evaluate(frame),
        "dict": lambda: estimator.evaluate(features, [row["label"] for row in ROWS]),
        "arrow": lambda: estimator.evaluate(table_of(ROWS)),
    }
    expected = through_parquet(bundle, ROWS, tmp_path / "rows.parquet")
    assert {"labels", "weights"} <= expected.keys()
    for door, call in doors.items():
        check_same(the_batch(call), expected, door)
    # And what is scored is what was trained on.
    scored = the_batch(partial(score_parquet, bundle, with_states(ROWS, bundle), tmp_path / "scored.parquet"))
    same = {name for name in expected if name.startswith(("sequence", "context", "lengths"))}
    check_same({n: scored[n] for n in same}, {n: expected[n] for n in same}, "scored and trained")


def test_an_event_alone_is_encoded_as_in_its_sequence(bundle: Bundle, tmp_path: Path) -> None:
    """`step` encodes plain values without Arrow; the network's input is the same, bit by bit."""
    stepper = Stepper(bundle)
    rows = rows_of_lengths(6, 5, seed=4)
    batch = collate(Scorer(bundle)._encode(table_of(rows, labelled=False)))
    layer: InputLayer = bundle.network().inputs
    with torch.no_grad():
        whole = layer(batch, torch.float32)
        for number, row in enumerate(rows):
            for t in range(len(row["clock"])):
                event = {name: row[name][t] if name in list(TYPES)[:11] else row[name] for name in TYPES}
                alone = stepper.encode(event)[0]
                assert alone.numpy().tobytes() == whole[number, t].numpy().tobytes(), (number, t)


def test_the_doors_would_notice_a_value_that_differs_in_its_last_bit(bundle: Bundle, tmp_path: Path) -> None:
    expected = through_parquet(bundle, ROWS, tmp_path / "rows.parquet")
    changed = [dict(row) for row in ROWS]
    changed[3]["amount"] = [np.nextafter(np.float32(value), np.float32(np.inf)).item() for value in ROWS[3]["amount"]]
    with pytest.raises(AssertionError, match="moved: sequence numeric:amount"):
        check_same(through_parquet(bundle, changed, tmp_path / "changed.parquet"), expected, "moved")


# Nobody else makes batches ----------------------------------------------------------------------------------------

MAKERS = {
    "model/batches/collate.py": "collate, and copies to a device or type",
    "model/training/truncation.py": "steps of a batch that collate made",
    "model/export/graphs.py": "the exported graph's own inputs, while it is traced",
    "model/export/check.py": "the same inputs, to hold the graph against the network",
}
PADDERS = {"pad_sequence", "nested_tensor", "to_padded_tensor"}


def calls(path: Path) -> Iterator[str]:
    """The last names of what a file calls."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            yield function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_only_the_one_collate_makes_batches() -> None:
    makers, padders = set(), set()
    for room in ("model", "pipelines", "tune", "serve"):
        for path in sorted((ROOT / room).rglob("*.py")):
            called = set(calls(path))
            makers |= {path.relative_to(ROOT).as_posix()} if "SequenceBatch" in called else set()
            padders |= {path.relative_to(ROOT).as_posix()} if called & PADDERS else set()
    assert makers <= MAKERS.keys(), "a batch is made by model.batch.collate alone; encode rows and call it"
    assert "model/batches/collate.py" in makers
    assert not padders, "padding is model.batch's; call its collate"
