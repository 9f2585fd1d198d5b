"""The one collate: encoded rows to a padded batch of tensors. Training, evaluation, prediction and serving use it.

B sequences, T padded steps, D values a step, K ids a step, U state width. Knows no files, no Ray, no Arrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from model.batches.encoded_rows import EncodedRows
from model.features.encoded import MISSING_ID, Encoded, weights_key
from model.tables.arrow_lists import offsets_of

Tensor = torch.Tensor
SHORT_ROW = 300  # steps
MAX_PADDED_STEPS = 64 * 1024  # of one forward pass: bounds memory, far above what fills a machine


@dataclass(frozen=True)
class SequenceBatch:
    """A padded batch. Floats are [B, T, D] or [B, D]; ids are int64 [B, T, K] or [B, K] with −1 for nothing; weights of
    ids, under `weights_key`, are floats of the ids' shape.

    Padding holds zeros and −1. `labels` are [B, T] or [B] (padding: 0); `weights` have the labels' shape and are
    0 at padded steps and, for one label a row, at sequences of length 0: masking is a product with them.
    `looked_up` holds ids [B, …] (−1: nothing) whose table rows count as looked up beyond those of the values.
    """

    lengths_B: Tensor
    rows_B: Tensor
    sequence: dict[str, Tensor]
    context: dict[str, Tensor]
    labels: Tensor | None = None
    weights: Tensor | None = None
    state: tuple[Tensor, ...] | None = None
    real_steps: int = 0
    looked_up: dict[str, Tensor] = field(default_factory=dict)

    @property
    def padded_length(self) -> int:
        """T: the longest sequence of the batch."""
        return next(iter(self.sequence.values())).shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the padded values, labels, weights and states."""
        tensors = [*self.sequence.values(), *self.context.values(), self.labels, self.weights, *(self.state or ())]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def __len__(self) -> int:
        return len(self.lengths_B)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> SequenceBatch:
        """On `device` (asynchronously from pinned memory), floats as `dtype`; the lengths stay on the CPU, where the
        cells want them."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

        return replace(self._map(move), lengths_B=self.lengths_B)

    def pin_memory(self) -> SequenceBatch:
        """In page-locked memory, so that `to` a CUDA device overlaps with computation."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of a batch that another CUDA stream has copied until `stream` has used it."""
        tensors = [*self.sequence.values(), *self.context.values(), *self.looked_up.values(), *(self.state or ())]
        for tensor in (self.rows_B, self.labels, self.weights, *tensors):
            if tensor is not None:
                tensor.record_stream(stream)

    def _map(self, change: Callable[[Tensor], Tensor]) -> SequenceBatch:
        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return SequenceBatch(
            lengths_B=change(self.lengths_B),
            rows_B=change(self.rows_B),
            sequence={key: change(tensor) for key, tensor in self.sequence.items()},
            context={key: change(tensor) for key, tensor in self.context.items()},
            labels=maybe(self.labels),
            weights=maybe(self.weights),
            state=None if self.state is None else tuple(change(part) for part in self.state),
            real_steps=self.real_steps,
            looked_up={key: change(tensor) for key, tensor in self.looked_up.items()},
        )


def collate(rows: EncodedRows) -> SequenceBatch:
    """Pads encoded rows to the longest of them."""
    offsets = offsets_of(rows.lengths_B)
    labels, weights = _labels_and_weights(rows, offsets)
    return SequenceBatch(
        lengths_B=torch.from_numpy(rows.lengths_B.astype(np.int64)),
        rows_B=torch.from_numpy(rows.rows_B.astype(np.int64)),
        sequence=_tensors(rows.sequence, lambda value: _pad_entries(value, offsets)),
        context=_tensors(rows.context, _entry_array),
        labels=labels,
        weights=weights,
        state=None if rows.state is None else tuple(torch.from_numpy(np.array(part)) for part in rows.state),
        real_steps=int(offsets[-1]),
        looked_up={key: torch.from_numpy(_entry_array(value)) for key, value in rows.looked_up.items()},
    )


def length_sorted(rows: EncodedRows) -> tuple[EncodedRows, np.ndarray | None]:
    """Rows from the shortest to the longest, and the place of each in `rows`; None where they are in order as it is."""
    order = np.argsort(rows.lengths_B, kind="stable")
    if (np.diff(order) > 0).all():
        return rows, None
    return rows.take(order), order


def length_batches(rows: EncodedRows, batch_sequences: int | None = None) -> Iterator[SequenceBatch]:
    """Every row once, rows of like length together: so many a batch, or as many as `bounded` puts together."""
    if batch_sequences is None:
        return map(collate, bounded(length_sorted(rows)[0]))
    order = np.argsort(rows.lengths_B, kind="stable")  # taken batch by batch: no second copy of all rows
    return (collate(rows.take(order[i : i + batch_sequences])) for i in range(0, len(order), batch_sequences))


def bounded(rows: EncodedRows) -> Iterator[EncodedRows]:
    """Rows (sorted by length) in parts whose padded size stays bounded; a single long row stands alone."""
    lengths_B, start = rows.lengths_B, 0
    for row in range(1, len(lengths_B) + 1):
        if row == len(lengths_B) or (row + 1 - start) * int(lengths_B[row]) > MAX_PADDED_STEPS:
            yield rows.slice(start, row)
            start = row


def pad(values: np.ndarray, offsets: np.ndarray, fill: float = 0) -> np.ndarray:
    """Flat [N, …] with row offsets [B + 1] to [B, T, …].

    Measured fastest of seven ways: one memcpy a row; where rows are short and entries single numbers, a mask, for
    then a memcpy takes less time than asking for it.
    """
    lengths_B = np.diff(offsets)
    rows, longest = len(lengths_B), int(lengths_B.max(initial=0))
    padded = np.full((rows, longest, *values.shape[1:]), fill, values.dtype)
    if math.prod(values.shape[1:]) == 1 and len(values) < SHORT_ROW * rows:
        padded.reshape(rows, longest)[np.arange(longest) < lengths_B[:, None]] = values.reshape(-1)
        return padded
    for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
        padded[row, : stop - start] = values[start:stop]
    return padded


def _tensors(group: Mapping[str, Encoded], padded: Callable[[Encoded], np.ndarray]) -> dict[str, Tensor]:
    tensors = {}
    for key, encoded in group.items():
        tensors[key] = torch.from_numpy(padded(encoded))
        if encoded.weights is not None:
            tensors[weights_key(key)] = torch.from_numpy(padded(Encoded(encoded.weights, encoded.offsets)))
    return tensors


def _entry_array(encoded: Encoded) -> np.ndarray:
    """A copy of the entries as float32 [n, D], or int64 ids [n, K] padded with −1; weights float32 [n, K], with 0."""
    if encoded.values.ndim == 2:
        return np.array(encoded.values)
    weights = encoded.values.dtype == np.float32
    flat = encoded.values.astype(np.float32 if weights else np.int64)  # a copy: torch wants it writable
    return flat[:, None] if encoded.offsets is None else pad(flat, encoded.offsets, 0 if weights else MISSING_ID)


def _pad_entries(encoded: Encoded, offsets: np.ndarray) -> np.ndarray:
    entries = encoded.values if encoded.values.ndim == 2 else _entry_array(encoded)
    return pad(entries, offsets, MISSING_ID if entries.dtype == np.int64 else 0)


def _labels_and_weights(rows: EncodedRows, offsets: np.ndarray) -> tuple[Tensor | None, Tensor | None]:
    if rows.labels is None:
        return None, None
    weights = np.ones(len(rows.labels), np.float32) if rows.weights is None else rows.weights
    if rows.per_step:
        return torch.from_numpy(pad(rows.labels, offsets)), torch.from_numpy(pad(weights, offsets))
    weights = np.where(rows.lengths_B > 0, weights, np.float32(0))
    return torch.from_numpy(np.array(rows.labels)), torch.from_numpy(weights)
