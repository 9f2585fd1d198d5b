"""Encoded rows of several parts, put into another order with one copy. Knows no torch, no files.

Measured against joining the parts and indexing the whole: half the time where rows have some tens of steps, for then
a row is one copy of memory. Short rows are indexed: asking for a copy takes longer than the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.batches.encoded_rows import EncodedRows, concat
from model.features.encoded import Encoded
from model.tables.arrow_lists import offsets_of

SHORT_STEPS = 16  # of a row, on average


def take_across(parts: Sequence[EncodedRows], places: np.ndarray) -> EncodedRows:
    """The rows at these places of all parts (at least one), counted over one after another, in this order."""
    rows = sum(len(part) for part in parts)
    if np.array_equal(places, np.arange(rows)):
        return concat(parts)
    short = sum(int(part.lengths_B.sum()) for part in parts) < SHORT_STEPS * rows
    if not len(places) or short or len({part.state is None for part in parts}) > 1:
        return concat(parts).take(places)
    part_starts = offsets_of(np.array([len(part) for part in parts]))
    part = np.searchsorted(part_starts, places, side="right") - 1
    row = places - part_starts[part]
    return _gathered(parts, _Spans(part, row, row + 1))


@dataclass(frozen=True)
class _Spans:
    """Entries first … last − 1 of a part each: rows, steps, or values of steps."""

    part: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def within(self, offsets: Sequence[np.ndarray]) -> _Spans:
        """The spans of what each part's entries consist of."""
        part_starts = offsets_of(np.array([len(each) for each in offsets]))[self.part]
        joined = np.concatenate(offsets)
        return _Spans(self.part, joined[part_starts + self.first], joined[part_starts + self.last])

    def copied(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """What stands in them, one behind the other; an array a part."""
        spans = zip(self.part.tolist(), self.first.tolist(), self.last.tolist(), strict=True)
        return np.concatenate([arrays[part][first:last] for part, first, last in spans])

    def copied_if_any(self, arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """Of what all parts have or none."""
        held = [array for array in arrays if array is not None]
        assert len(held) in (0, len(arrays)), "all parts have labels, or none; so with weights and states"
        return self.copied(held) if held else None

    def encoded(self, parts: Sequence[Encoded]) -> Encoded:
        """The entries, with their weights; lists where some entry has not exactly one value."""
        spans, offsets = self, None
        if any(part.offsets is not None for part in parts):
            starts = [np.arange(len(part.values) + 1) if part.offsets is None else part.offsets for part in parts]
            offsets = offsets_of(self.copied([np.diff(start) for start in starts]))
            spans = self.within(starts)
        return Encoded(
            spans.copied([part.values for part in parts]),
            offsets,
            spans.copied_if_any([part.weights for part in parts]),
        )


def _gathered(parts: Sequence[EncodedRows], rows: _Spans) -> EncodedRows:
    steps = rows.within([offsets_of(part.lengths_B) for part in parts])
    head = parts[0]
    owners = steps if head.per_step else rows
    components = zip(*(part.state for part in parts if part.state is not None), strict=True)
    return EncodedRows(
        lengths_B=rows.copied([part.lengths_B for part in parts]),
        rows_B=rows.copied([part.rows_B for part in parts]),
        sequence={key: steps.encoded([part.sequence[key] for part in parts]) for key in head.sequence},
        context={key: rows.encoded([part.context[key] for part in parts]) for key in head.context},
        per_step=head.per_step,
        labels=owners.copied_if_any([part.labels for part in parts]),
        weights=owners.copied_if_any([part.weights for part in parts]),
        state=tuple(rows.copied(component) for component in components) or None,
        looked_up={key: rows.encoded([part.looked_up[key] for part in parts]) for key in head.looked_up},
    )
