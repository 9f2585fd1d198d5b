"""Truncated back-propagation: a batch of long sequences on its way through segments of at most K steps.

The same rows stay together until all have ended; each row's state goes from segment to segment without its graph, so
memory is bounded by K and gradients reach back K steps at most. Rows that have ended take no part any more.
B rows of a batch, T its padded steps. Knows no network, no optimizer, no workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from model.batches.collate import SequenceBatch

Tensor = torch.Tensor
CARRIED = "carried/"  # what the names of carried states begin with in a checkpoint


def segment_count(longest: int, unroll_steps: int | None) -> int:
    """Segments of a batch whose longest row has so many steps; 1 where all are empty or nothing is truncated."""
    return 1 if unroll_steps is None else max(1, -(-longest // unroll_steps))


class TruncatedBatch:
    """One worker's rows of a global batch (None: it has none), and the states they carry from segment to segment.

    `position` is the batch's place in the plan, from 1: what dropout masks are drawn from. A batch of one segment
    passes through untouched, so that K ≥ T trains to the bit as without K.
    """

    def __init__(self, position: int, batch: SequenceBatch | None, unroll_steps: int | None = None) -> None:
        self.position = position
        self.batch = batch
        self.unroll_steps = unroll_steps
        self.state: tuple[Tensor, ...] | None = None if batch is None else batch.state

    @property
    def segments(self) -> int:
        """Segments of this worker's rows; the global batch may have more."""
        return 0 if self.batch is None else segment_count(self.batch.padded_length, self.unroll_steps)

    def first_step(self, number: int) -> int:
        """The step of the rows with which a segment begins."""
        return number * (self.unroll_steps or 0)

    def segment(self, number: int) -> SequenceBatch | None:
        """Segment `number` of the rows that reach it, with their states; None where there are none.

        One label a row counts in the segment that holds the row's last step: elsewhere its weight is 0.
        """
        if self.batch is None or number >= self.segments:
            return None
        if self.segments == 1:
            return self.batch
        assert self.unroll_steps is not None, "only truncation makes segments"
        rows, first = self._rows(number), number * self.unroll_steps
        left_B = self.batch.lengths_B[rows] - first
        lengths_B = left_B.clamp(max=self.unroll_steps)
        part = _rows_of(self.batch, rows, first, first + int(lengths_B.max()))
        weights = part.weights
        if weights is not None and weights.dim() == 1:
            weights = torch.where((left_B <= self.unroll_steps).to(weights.device), weights, 0)
        state = None if self.state is None else tuple(_pick(tensor, rows) for tensor in self.state)
        return replace(part, lengths_B=lengths_B, weights=weights, state=state, real_steps=int(lengths_B.sum()))

    def sizes(self, number: int) -> tuple[int, int]:
        """(real steps, padded steps) of a segment: what it holds, and what is computed."""
        if self.batch is None or number >= self.segments:
            return 0, 0
        if self.segments == 1:
            return self.batch.real_steps, self.batch.padded_length * len(self.batch)
        lengths_B = (self.batch.lengths_B[self._rows(number)] - self.first_step(number)).clamp(max=self.unroll_steps)
        return int(lengths_B.sum()), int(lengths_B.max()) * len(lengths_B)

    def learns(self, number: int) -> bool:
        """Whether a segment has a loss: always with a label a step, else only where one of these rows ends."""
        assert self.batch is not None, "no rows, no segment"
        if self.segments == 1 or self.batch.labels is None or self.batch.labels.dim() == 2:
            return True
        return bool((self.batch.lengths_B[self._rows(number)] <= self.first_step(number + 1)).any())

    def goes_on(self, number: int) -> bool:
        """Whether some of these rows reach the segment after `number`."""
        return number + 1 < self.segments

    def carry(self, number: int, state: Sequence[Tensor]) -> None:
        """Keeps the states of segment `number`'s rows for the next, without their graph."""
        assert self.batch is not None, "no rows, no states"
        if number == 0:  # has every row; what the batch brought stays as it is
            self.state = tuple(tensor.detach() for tensor in state)
            return
        assert self.state is not None, "a later segment follows a carried state"
        rows = self._rows(number)
        for kept, new in zip(self.state, state, strict=True):
            kept[rows.to(kept.device)] = new.detach()

    def _rows(self, number: int) -> Tensor:
        """Which rows have a step in the segment; in the first, the empty ones stand beside them."""
        assert self.batch is not None, "no rows to choose from"
        reach = self.batch.lengths_B > self.first_step(number)
        return (reach | (number == 0)).nonzero().squeeze(1)


def _rows_of(batch: SequenceBatch, rows: Tensor, start: int, stop: int) -> SequenceBatch:
    """Steps start … stop − 1 of some rows; lengths and state are left to the caller."""

    def steps(tensor: Tensor) -> Tensor:
        return _pick(tensor[:, start:stop], rows)

    def labelled(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else steps(tensor) if tensor.dim() == 2 else _pick(tensor, rows)

    return SequenceBatch(
        lengths_B=batch.lengths_B[rows],
        rows_B=_pick(batch.rows_B, rows),
        sequence={key: steps(tensor) for key, tensor in batch.sequence.items()},
        context={key: _pick(tensor, rows) for key, tensor in batch.context.items()},
        labels=labelled(batch.labels),
        weights=labelled(batch.weights),
        looked_up={key: _pick(tensor, rows) for key, tensor in batch.looked_up.items()},
    )


def _pick(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor if len(rows) == len(tensor) else tensor[rows.to(tensor.device)]
