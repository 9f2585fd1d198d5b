"""The one collate: padding, masks and types of a batch, against a slow reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.batches.collate import MAX_PADDED_STEPS, SequenceBatch, bounded, collate, pad
from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows
from model.features.encoded import Encoded

LENGTHS = st.lists(st.integers(0, 5), max_size=6)


def padded_slowly(lists: list[list[Any]], fill: Any) -> list[list[Any]]:
    longest = max((len(entries) for entries in lists), default=0)
    return [entries + [fill] * (longest - len(entries)) for entries in lists]


def cut(values: list[Any], lengths: list[int]) -> list[list[Any]]:
    ends = np.cumsum([0, *lengths])
    return [values[start : start + length] for start, length in zip(ends, lengths, strict=False)]


@given(LENGTHS)
def test_rows_are_padded_to_the_longest(lengths: list[int]) -> None:
    values = np.arange(1, sum(lengths) + 1, dtype=np.float32)
    found = pad(values, np.cumsum([0, *lengths]), fill=-7)
    assert found.tolist() == padded_slowly(cut(values.tolist(), lengths), -7)
    assert found.dtype == np.float32


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,)])
@pytest.mark.parametrize("lengths", [[], [0, 0], [2, 0, 3], [400, 1, 380], [299, 301]])
def test_short_and_long_rows_of_any_width_are_padded_alike(lengths: list[int], shape: tuple[int, ...]) -> None:
    values = np.arange(1, sum(lengths) * int(np.prod(shape)) + 1, dtype=np.float32).reshape(sum(lengths), *shape)
    found = pad(values, np.cumsum([0, *lengths]), fill=-7)
    assert found.shape == (len(lengths), max(lengths, default=0), *shape)
    fill = np.full(shape, -7).tolist()
    assert found.tolist() == padded_slowly(cut(values.tolist(), lengths), fill)


def rows_of(lengths: list[int], *, per_step: bool = True, weights: bool = False) -> EncodedRows:
    """Rows with a vector, one id and several ids a step, a context number and context ids, and labels."""
    steps, rows = sum(lengths), len(lengths)
    count = steps if per_step else rows
    counts = np.arange(steps) % 3
    return EncodedRows(
        lengths_B=np.array(lengths, np.int64),
        rows_B=np.arange(10, 10 + rows),
        sequence={
            "vector": Encoded(np.arange(steps * 2, dtype=np.float32).reshape(-1, 2)),
            "id": Encoded(np.arange(steps, dtype=np.int32) % 4 - 1),
            "ids": Encoded(np.arange(counts.sum(), dtype=np.int32), np.cumsum([0, *counts])),
        },
        context={
            "number": Encoded(np.arange(rows, dtype=np.float32)[:, None]),
            "groups": Encoded(np.arange(rows, dtype=np.int32), np.array([0] * rows + [rows])),
        },
        per_step=per_step,
        labels=np.arange(1, count + 1),
        weights=np.arange(1, count + 1).astype(np.float32) / 2 if weights else None,
        state=(np.arange(rows * 3, dtype=np.float32).reshape(rows, 3),),
    )


@given(LENGTHS)
def test_a_batch_holds_every_value_at_its_place(lengths: list[int]) -> None:
    rows = rows_of(lengths)
    batch = collate(rows)
    steps = sum(lengths)
    ids = cut([*range(sum(i % 3 for i in range(steps)))], [i % 3 for i in range(steps)])
    widest = max((len(entry) for entry in ids), default=0)
    several = [entry + [-1] * (widest - len(entry)) for entry in ids]
    vectors = [[2.0 * i, 2.0 * i + 1] for i in range(steps)]
    assert batch.lengths_B.tolist() == lengths
    assert batch.rows_B.tolist() == list(range(10, 10 + len(lengths)))
    assert batch.sequence["vector"].tolist() == padded_slowly(cut(vectors, lengths), [0, 0])
    assert batch.sequence["id"].tolist() == padded_slowly(cut([[i % 4 - 1] for i in range(steps)], lengths), [-1])
    assert batch.sequence["ids"].tolist() == padded_slowly(cut(several, lengths), [-1] * widest)
    assert batch.context["number"].tolist() == [[float(row)] for row in range(len(lengths))]
    assert batch.labels is not None
    assert batch.labels.tolist() == padded_slowly(cut([*range(1, steps + 1)], lengths), 0)
    assert (batch.real_steps, batch.padded_length, len(batch)) == (steps, max(lengths, default=0), len(lengths))


def test_types_are_those_the_network_takes() -> None:
    batch = collate(rows_of([2, 1]))
    dtypes = {key: value.dtype for key, value in (batch.sequence | batch.context).items()}
    assert dtypes == {
        "vector": torch.float32, "id": torch.int64, "ids": torch.int64, "number": torch.float32, "groups": torch.int64
    }  # fmt: skip
    assert batch.context["groups"].tolist() == [[-1, -1], [0, 1]]
    assert batch.state is not None
    assert (batch.state[0].dtype, tuple(batch.state[0].shape)) == (torch.float32, (2, 3))


@pytest.mark.parametrize(
    ("per_step", "weights", "expected"),
    [
        (True, False, [[1, 1], [0, 0], [1, 0]]),
        (True, True, [[0.5, 1], [0, 0], [1.5, 0]]),
        (False, False, [1, 0, 1]),
        (False, True, [0.5, 0, 1.5]),
    ],
)
def test_padding_and_empty_rows_weigh_nothing(per_step: bool, weights: bool, expected: Any) -> None:
    batch = collate(rows_of([2, 0, 1], per_step=per_step, weights=weights))
    assert batch.weights is not None
    assert (batch.weights.dtype, batch.weights.tolist()) == (torch.float32, expected)


def test_without_labels_there_are_no_weights(make_bundle: Any, make_table: Any) -> None:
    batch = collate(encode_rows(make_table(), make_bundle().columns))
    assert (batch.labels, batch.weights, batch.state) == (None, None, None)


def test_a_batch_owns_its_memory() -> None:
    rows = rows_of([2, 1], weights=True)
    batch = collate(rows)
    for name in ("vector", "id"):
        batch.sequence[name].add_(100)
    for tensor in (batch.context["number"], batch.lengths_B, batch.rows_B, batch.labels, batch.weights, *batch.state):
        tensor.add_(100)
    again, fresh = collate(rows), collate(rows_of([2, 1], weights=True))
    assert_equal(again, fresh)


def assert_equal(batch: SequenceBatch, other: SequenceBatch) -> None:
    assert batch.lengths_B.tolist() == other.lengths_B.tolist()
    assert batch.rows_B.tolist() == other.rows_B.tolist()
    for group in ("sequence", "context"):
        mine, yours = getattr(batch, group), getattr(other, group)
        assert {k: v.tolist() for k, v in mine.items()} == {k: v.tolist() for k, v in yours.items()}
    assert batch.labels.tolist() == other.labels.tolist()
    assert batch.weights.tolist() == other.weights.tolist()
    assert [part.tolist() for part in batch.state] == [part.tolist() for part in other.state]


def test_moving_a_batch_changes_floats_and_leaves_the_lengths_on_the_cpu() -> None:
    batch = collate(rows_of([2, 0], weights=True))
    moved = batch.to(torch.device("meta"), torch.float64)
    assert moved.lengths_B.tolist() == [2, 0]
    assert moved.rows_B.device.type == moved.sequence["id"].device.type == moved.labels.device.type == "meta"
    assert (moved.sequence["vector"].dtype, moved.weights.dtype) == (torch.float64, torch.float64)
    assert (moved.sequence["id"].dtype, moved.labels.dtype) == (torch.int64, torch.int64)


def test_rows_are_cut_where_padding_would_pass_the_bound() -> None:
    half = MAX_PADDED_STEPS // 2
    lengths = [0, 1, half, half, half, MAX_PADDED_STEPS * 2]
    rows = EncodedRows(np.array(lengths), np.arange(6), {}, {})
    assert [part.rows_B.tolist() for part in bounded(rows)] == [[0, 1], [2, 3], [4], [5]]
    assert list(bounded(EncodedRows(np.array([], np.int64), np.array([]), {}, {}))) == []


def test_a_table_of_another_chunking_gives_the_same_tensors(make_bundle: Any, make_table: Any) -> None:
    table, columns = make_table(), make_bundle().columns
    chunked = pa.concat_tables([table.slice(0, 5), table.slice(5, 0), table.slice(5)])
    whole, other = collate(encode_rows(table, columns)), collate(encode_rows(chunked, columns))
    for group in ("sequence", "context"):
        for key, tensor in getattr(whole, group).items():
            assert torch.equal(tensor, getattr(other, group)[key])
