"""Encoded rows: ragged numpy arrays of many sequences, which can be taken, sliced, joined. Knows no files, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model.features.encoded import Encoded
from model.tables.arrow_lists import offsets_of, ranges


@dataclass(frozen=True)
class EncodedRows:
    """B sequences, ragged. Sequence values are flat over all steps in row order; context values one entry a row.

    `labels` and `weights` are flat over the steps where `per_step`, else one a row. `rows_B` are the rows'
    numbers in the data set, which seed their dropout masks. `state` holds one float32 [B, numel] a component.
    `looked_up` holds, by source key, ids a row (one list each) that count as looked up in training beyond those in
    the values: padding and fillers of padded input.
    """

    lengths_B: np.ndarray
    rows_B: np.ndarray
    sequence: dict[str, Encoded]
    context: dict[str, Encoded]
    per_step: bool = True
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None
    state: tuple[np.ndarray, ...] | None = None
    looked_up: dict[str, Encoded] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths_B)

    def slice(self, start: int, stop: int) -> EncodedRows:
        """Rows start … stop − 1; views, not copies."""
        first, last = int(self.lengths_B[:start].sum()), int(self.lengths_B[:stop].sum())
        span = slice(first, last) if self.per_step else slice(start, stop)
        return EncodedRows(
            lengths_B=self.lengths_B[start:stop],
            rows_B=self.rows_B[start:stop],
            sequence={key: _slice_entries(value, first, last) for key, value in self.sequence.items()},
            context={key: _slice_entries(value, start, stop) for key, value in self.context.items()},
            per_step=self.per_step,
            labels=None if self.labels is None else self.labels[span],
            weights=None if self.weights is None else self.weights[span],
            state=None if self.state is None else tuple(part[start:stop] for part in self.state),
            looked_up={key: _slice_entries(value, start, stop) for key, value in self.looked_up.items()},
        )

    def take(self, rows: np.ndarray) -> EncodedRows:
        """The rows at these places, in this order; copies."""
        steps = ranges(offsets_of(self.lengths_B), rows)
        span = steps if self.per_step else rows
        return EncodedRows(
            lengths_B=self.lengths_B[rows],
            rows_B=self.rows_B[rows],
            sequence={key: _take_entries(value, steps) for key, value in self.sequence.items()},
            context={key: _take_entries(value, rows) for key, value in self.context.items()},
            per_step=self.per_step,
            labels=None if self.labels is None else self.labels[span],
            weights=None if self.weights is None else self.weights[span],
            state=None if self.state is None else tuple(part[rows] for part in self.state),
            looked_up={key: _take_entries(value, rows) for key, value in self.looked_up.items()},
        )


def _slice_entries(encoded: Encoded, start: int, stop: int) -> Encoded:
    offsets = encoded.offsets
    if offsets is not None:
        offsets = offsets[start : stop + 1]
        start, stop, offsets = int(offsets[0]), int(offsets[-1]), offsets - offsets[0]
    weights = None if encoded.weights is None else encoded.weights[start:stop]
    return Encoded(encoded.values[start:stop], offsets, weights)


def _take_entries(encoded: Encoded, entries: np.ndarray) -> Encoded:
    offsets = encoded.offsets
    if offsets is not None:
        counts = np.diff(offsets)[entries]
        entries, offsets = ranges(offsets, entries), offsets_of(counts)
    weights = None if encoded.weights is None else encoded.weights[entries]
    return Encoded(encoded.values[entries], offsets, weights)


def concat(parts: Sequence[EncodedRows]) -> EncodedRows:
    """The rows of all parts (at least one), in order."""
    if len(parts) == 1:
        return parts[0]
    head = parts[0]

    def join(pick: str) -> np.ndarray | None:
        values = [getattr(part, pick) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    return EncodedRows(
        lengths_B=np.concatenate([part.lengths_B for part in parts]),
        rows_B=np.concatenate([part.rows_B for part in parts]),
        sequence={key: _join_entries([part.sequence[key] for part in parts]) for key in head.sequence},
        context={key: _join_entries([part.context[key] for part in parts]) for key in head.context},
        per_step=head.per_step,
        labels=join("labels"),
        weights=join("weights"),
        state=_join_states(parts),
        looked_up={key: _join_entries([part.looked_up[key] for part in parts]) for key in head.looked_up},
    )


def _join_states(parts: Sequence[EncodedRows]) -> tuple[np.ndarray, ...] | None:
    """Parts without states, beside some that have them, begin at zero."""
    widths = next(([array.shape[1] for array in part.state] for part in parts if part.state is not None), None)
    if widths is None:
        return None
    states = [part.state or tuple(np.zeros((len(part), width), np.float32) for width in widths) for part in parts]
    return tuple(np.concatenate(arrays) for arrays in zip(*states, strict=True))


def _join_entries(parts: list[Encoded]) -> Encoded:
    values = np.concatenate([part.values for part in parts])
    held = [part.weights for part in parts if part.weights is not None]
    weights = np.concatenate(held) if held else None
    if all(part.offsets is None for part in parts):
        return Encoded(values, None, weights)
    counts = [np.ones(len(p.values), np.int64) if p.offsets is None else np.diff(p.offsets) for p in parts]
    return Encoded(values, offsets_of(np.concatenate(counts)), weights)
