"""Sorted events to sequences: cut where the key changes, at gaps, at the borders of splits, and at the greatest length.

N events, P sequences. Works on one part of the events after another and keeps the last, unfinished sequence from each
part to the next, so that a key may be longer than any part. Knows no files and no Ray.

A session is a key's events without gap or border of splits between them: labels are looked up within it. With
`label_shift` k its last k events have no label and are left out; a cut at the greatest length leaves out nothing, for
the next piece's first events are the labels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.tables import compute as pc
from model.tables.arrow_lists import Array, offsets_of, plain, ranges
from pipelines.prepare.layout import Layout
from pipelines.prepare.sort import Events, concatenated, unequal


@dataclass
class Counts:
    """What was cut so far."""

    keys: int = 0
    events: int = 0
    unlabelled: int = 0
    lengths: dict[int, Counter[int]] = field(default_factory=dict)  # split -> length -> sequences

    def to_plain(self) -> dict[str, object]:
        """As plain data, to travel as JSON."""
        lengths = {str(split): sorted(found.items()) for split, found in sorted(self.lengths.items())}
        return {"keys": self.keys, "events": self.events, "unlabelled": self.unlabelled, "lengths": lengths}


@dataclass(frozen=True)
class _Part:
    """Events with their borders. Row 0 is the last one of before, if `first` is 1: rows from `first` on are cut."""

    events: Events
    first: int
    same_key_N: np.ndarray  # whether the row before is the same key's
    delta_N: np.ndarray  # since that row; 0 where it is another key's
    split_N: np.ndarray
    session_starts: np.ndarray


class Cutter:
    """Cuts sorted events; `add` returns what is finished, by split, as tables of the layout's output schema."""

    def __init__(self, layout: Layout, *, most_bytes: int) -> None:
        self.layout = layout
        self.most_bytes = most_bytes
        self.schema = layout.output_schema()
        self.counts = Counts()
        self._open: Events | None = None  # events of the unfinished sequence
        self._before: Events | None = None  # the one event before these
        self._index = 0  # sequences of that event's key so far

    def add(self, events: Events | None) -> dict[int, pa.Table]:
        """Sequences that end within these events; None ends the last one."""
        parts = [part for part in (self._before, self._open, events) if part is not None and len(part)]
        if not parts or (self._open is None and events is None):
            return {}
        part = self._bordered(concatenated(parts), 0 if self._before is None else 1)
        self._check_context(part)
        self._count(part, events)
        starts, stops, kept = self._pieces(part, last=events is None)
        index_P = self._indices(part, starts, kept)
        tables = self._tables(part, starts, stops, index_P)
        self._keep(part, kept)
        return tables

    def _bordered(self, events: Events, first: int) -> _Part:
        layout = self.layout
        same = np.zeros(len(events), bool)
        same[1:] = ~unequal(events.keys.slice(0, len(events) - 1), events.keys.slice(1))
        delta = np.zeros(len(events), np.float64 if events.time_N.dtype.kind == "f" else np.uint64)
        # Unsigned, for the difference of two int64 may be larger than an int64.
        times = events.time_N if delta.dtype.kind == "f" else events.time_N.view(np.uint64)
        delta[1:] = np.where(same[1:], times[1:] - times[:-1], 0)
        splits = np.searchsorted(np.array(layout.boundaries), events.time_N, side="right")
        breaks = ~same
        if layout.gap is not None:
            breaks |= delta > layout.gap
        breaks[1:] |= splits[1:] != splits[:-1]
        breaks[first] = True
        starts = np.flatnonzero(breaks[first:]) + first
        return _Part(events, first, same, delta, splits, starts)

    def _check_context(self, part: _Part) -> None:
        for name in self.layout.context:
            values = plain(part.events.table.column(name))
            wrong = unequal(values.slice(0, len(values) - 1), values.slice(1)) & part.same_key_N[1:]
            if wrong.any():
                row = int(np.argmax(wrong))
                key, one, other = (each.as_py() for each in (part.events.keys[row], values[row], values[row + 1]))
                raise DataError(
                    f"a context column must have one value a key, but key {key!r} has {one!r} and {other!r}; leave it "
                    f"out of --context to have a list, or mend the events",
                    column=name,
                )

    def _count(self, part: _Part, added: Events | None) -> None:
        if added is not None:
            self.counts.events += len(added)
            self.counts.keys += int((~part.same_key_N[len(part.events) - len(added) :]).sum())

    def _pieces(self, part: _Part, *, last: bool) -> tuple[np.ndarray, np.ndarray, int]:
        """First rows and ends of the finished sequences, and the first row that is kept for the next part."""
        count, most, shift = len(part.events), self.layout.max_length, self.layout.label_shift
        ends = np.append(part.session_starts[1:], count)
        usable = np.maximum(ends - part.session_starts - shift, 0)
        kept = count
        if not last:  # the last session may go on: only its full pieces are finished
            full = 0 if most is None else int(usable[-1]) // most * most
            kept = int(part.session_starts[-1]) + full
            usable[-1] = full
        closed = (ends - part.session_starts - usable)[: None if last else -1]
        self.counts.unlabelled += int(closed.sum())
        pieces = (usable > 0).astype(np.int64) if most is None else -(-usable // most)
        within = np.arange(pieces.sum()) - np.repeat(offsets_of(pieces)[:-1], pieces)
        length = np.repeat(usable, pieces)
        starts = np.repeat(part.session_starts, pieces)
        if most is None:
            return starts, starts + length, kept
        return starts + within * most, starts + np.minimum((within + 1) * most, length), kept

    def _indices(self, part: _Part, starts: np.ndarray, kept: int) -> np.ndarray:
        """`sequence_index` of each sequence; keeps the count of the key that the row before `kept` belongs to."""
        key_N = np.cumsum(~part.same_key_N)
        key_P = key_N[starts]
        new = np.ones(len(key_P), bool)
        new[1:] = key_P[1:] != key_P[:-1]
        index_P = np.arange(len(key_P)) - np.flatnonzero(new)[np.cumsum(new) - 1] if len(key_P) else np.zeros(0, int)
        goes_on = part.first == 1 and bool(part.same_key_N[part.first])
        if goes_on:
            index_P[key_P == key_N[part.first]] += self._index
        if kept > part.first:
            key = key_N[kept - 1]
            before = self._index if goes_on and key == key_N[part.first] else 0
            self._index = before + int((key_P == key).sum())
        return np.asarray(index_P, np.int64)

    def _keep(self, part: _Part, kept: int) -> None:
        rows = np.arange(kept, len(part.events))
        self._open = part.events.take(rows) if len(rows) else None
        if kept > 0:
            self._before = part.events.take(np.array([kept - 1]))
        if self._open is not None and self._open.nbytes > self.most_bytes:
            raise DataError(
                f"a sequence must fit in {self.most_bytes >> 20} MiB, but that of key {self._open.keys[0].as_py()!r} "
                f"has more than {len(rows)} events in a row; cut it with --max-length or --gap"
            )

    # What a sequence looks like -----------------------------------------------------------------------------------

    def _tables(self, part: _Part, starts: np.ndarray, stops: np.ndarray, index_P: np.ndarray) -> dict[int, pa.Table]:
        split_P = part.split_N[starts]
        tables = {}
        for split in np.unique(split_P).tolist():
            mine = split_P == split
            tables[split] = self._table(part, starts[mine], stops[mine], index_P[mine])
            self.counts.lengths.setdefault(split, Counter()).update((stops - starts)[mine].tolist())
        return tables

    def _table(self, part: _Part, starts: np.ndarray, stops: np.ndarray, index_P: np.ndarray) -> pa.Table:
        layout, table = self.layout, part.events.table
        offsets = pa.array(offsets_of(stops - starts), pa.int32())
        rows = ranges(np.stack([starts, stops], 1).reshape(-1), 2 * np.arange(len(starts)))

        def at(name: str, places: np.ndarray) -> Array:
            return plain(table.column(name)).take(pa.array(places, pa.int64()))

        columns = [at(layout.key, starts), pa.array(index_P), at(layout.time, starts), at(layout.time, stops - 1)]
        columns += [at(name, starts) for name in layout.context]
        columns += [pa.ListArray.from_arrays(offsets, at(name, rows)) for name in layout.sequence]
        if layout.time_delta is not None:
            seconds = part.delta_N[rows].astype(np.float64) * layout.seconds_per_unit
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(seconds)))
        if layout.label is not None and layout.label_shift:
            later = at(layout.label, rows + layout.label_shift)
            if layout.label_change:
                later = pc.subtract(later.cast(pa.float64()), at(layout.label, rows).cast(pa.float64()))
            columns.append(pa.ListArray.from_arrays(offsets, later))
        elif layout.label is not None:
            columns.append(at(layout.label, stops - 1))
        return pa.Table.from_arrays(columns, schema=self.schema)
