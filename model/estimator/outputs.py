"""Scored rows as the original's predictions: padded arrays for padded input, one array a row for ragged input.

B rows, T positions, C classes. Where a row has no step, or a position is padding, classes are −1 (None for classes
that are strings), scores and probabilities NaN. Knows no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from model.errors import ConfigError
from model.scoring.scorer import Scored
from model.state import StateSpec
from model.tables.arrow_lists import Array, is_list, plain, unnest

Batch = dict[str, Any]  # each value an array [B, …], or for ragged input a list of B arrays


def predictions_of(scored: Scored, spec: StateSpec, *, per_step: bool, padded_steps: int | None) -> Batch:
    """Predictions and states by the original's keys; the first error of a row is raised."""
    for row in sorted(scored.errors):
        raise scored.errors[row]
    batch: Batch = {}
    for name in scored.predictions.column_names:
        column = plain(scored.predictions.column(name))
        if not per_step:
            batch[name] = _flat(column)
            continue
        values, offsets = unnest(column, name)
        flat = _flat(values)
        rows = np.split(flat, offsets[1:-1]) if len(offsets) > 1 else []
        batch[name] = rows if padded_steps is None else _padded(flat, np.diff(offsets), padded_steps)
    return batch | dict(zip(spec.names, scored.state, strict=True))


def _flat(values: Array) -> np.ndarray:
    """Entries as an array [n] or [n, C], nulls as the mark of nothing."""
    if is_list(values.type):
        width = values.type.list_size
        flat = np.full((len(values), width), np.nan, np.float32)
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        flat[valid] = unnest(values, "probabilities").values.to_numpy().reshape(-1, width)
        return flat
    if pa.types.is_integer(values.type):
        integers: np.ndarray = values.fill_null(-1).to_numpy(zero_copy_only=False)
        return integers
    result: np.ndarray = values.to_numpy(zero_copy_only=False)
    return result


def _padded(flat: np.ndarray, lengths_B: np.ndarray, steps: int) -> np.ndarray:
    """Flat entries to [B, T, …] with the mark of nothing behind each row's end."""
    nothing: Any = {"i": -1, "f": np.nan}.get(flat.dtype.kind)
    padded = np.full((len(lengths_B), steps, *flat.shape[1:]), nothing, flat.dtype)
    padded[np.arange(steps)[None, :] < lengths_B[:, None]] = flat
    return padded


def chosen(batch: Batch, outputs: Sequence[str] | None) -> Batch:
    """The wanted keys; ConfigError where none of them is there."""
    if not outputs:
        return batch
    kept = {name: value for name, value in batch.items() if name in outputs}
    if not kept:
        raise ConfigError(f"outputs must name some of {', '.join(batch)}, but are {', '.join(outputs)}")
    return kept


def rows_in(batch: Batch) -> Iterator[Batch]:
    """One dict a row."""
    for row in range(len(next(iter(batch.values())))):
        yield {name: values[row] for name, values in batch.items()}


def concatenated(batches: Sequence[Batch]) -> Batch:
    """All batches as one; padded arrays of different T are padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    return {name: _join([batch[name] for batch in batches]) for name in batches[0]}


def _join(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    steps = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
    return np.concatenate([_widened(part, steps) for part in parts])


def _widened(part: np.ndarray, steps: int) -> np.ndarray:
    if part.ndim < 2 or part.shape[1] == steps:
        return part
    return _padded(part.reshape(-1, *part.shape[2:]), np.full(len(part), part.shape[1]), steps)
