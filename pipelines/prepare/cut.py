"""Sorted events to sequences: cut where the key changes, at gaps, at the borders of splits, and at the greatest length.

N events, P sequences, S sessions. Works on one part of the events after another and keeps the last, unfinished sequence
from each part to the next, so that a key may be longer than any part. Knows no files and no Ray.

A session is a key's events without gap or border of splits between them: labels are looked up within it. With
`label_shift` k its last k events have no label and are left out, or with `for_scoring` have null for one; a cut at the
greatest length leaves out nothing, for the next piece's first events are the labels.

What an earlier preparation has left of a key comes before the key's events: a row that stands in a sequence already,
for its time, and rows that wait for their label and are events like others. The same is left of every key at its end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.tables import compute as pc
from model.tables.arrow_lists import Array, offsets_of, plain, ranges
from pipelines.prepare.keys import key_text
from pipelines.prepare.layout import CARRIED, IS_WRITTEN, NEXT_INDEX, Layout
from pipelines.prepare.sort import Events, concatenated, falls, unequal


@dataclass
class Counts:
    """What was cut so far. Events tie that have one key and time; the order in the files decides among those that are
    equal in all that orders them, and with them the labels that they have or are."""

    keys: int = 0
    events: int = 0
    unlabelled: int = 0
    late: int = 0  # older than what an earlier preparation has written of their key, and left out
    tied: int = 0
    unordered: int = 0
    unordered_labels: int = 0
    lengths: dict[int, Counter[int]] = field(default_factory=dict)  # split -> length -> sequences

    def to_plain(self) -> dict[str, object]:
        """As plain data, to travel as JSON."""
        lengths = {str(split): sorted(found.items()) for split, found in sorted(self.lengths.items())}
        return {**vars(self), "lengths": lengths}


@dataclass(frozen=True)
class _Part:
    """Events with their borders. Row 0 is the last one of before, if `first` is 1: rows from `first` on are cut."""

    events: Events
    first: int
    is_written_N: np.ndarray  # whether it stands in a sequence of an earlier preparation
    is_left_N: np.ndarray  # whether that one has left it
    key_N: np.ndarray  # number of the row's key
    same_key_N: np.ndarray  # whether the row before is the same key's
    ties_N: np.ndarray  # whether the row before has the same time; never where one is left by an earlier preparation
    unordered_N: np.ndarray  # and is equal in all that orders events
    delta_N: np.ndarray  # since that row; 0 where it is another key's
    split_N: np.ndarray
    starts_S: np.ndarray


@dataclass(frozen=True)
class _Pieces:
    """The finished sequences: their rows and the ends of their sessions; rows from `kept` on are kept."""

    starts_P: np.ndarray
    stops_P: np.ndarray
    ends_P: np.ndarray
    kept: int


class Cutter:
    """Cuts sorted events; `add` returns what is finished, by split, as tables of the layout's output schema.

    `left` gathers what is left of the keys that ended, `late_rows` the events that came too late, if they may `skip`.
    """

    def __init__(self, layout: Layout, *, most_bytes: int, skip: bool = False) -> None:
        self.layout = layout
        self.most_bytes = most_bytes
        self.skip = skip
        self.schema = layout.output_schema()
        self.counts = Counts()
        self.left: list[pa.Table] = []
        self.late_rows: list[pa.Table] = []
        self._open: Events | None = None  # events of the unfinished sequence
        self._before: Events | None = None  # the one event before these
        self._index = 0  # sequences of that event's key so far
        self._bound: Events | None = None  # the last row that was left by an earlier preparation
        self._last_ties = (False, False)  # whether the last event ties, or is unordered, with the one before it
        self._last_labels = 0  # labels that are the last event's, and decided by the order in the files if it ties

    def add(self, events: Events | None) -> dict[int, pa.Table]:
        """Sequences that end within these events; None ends the last one."""
        if events is not None and self.layout.continues:
            events = self._in_time(events)
        parts = [part for part in (self._before, self._open, events) if part is not None and len(part)]
        if not parts or (events is not None and not len(events)):
            return {}
        part = self._bordered(concatenated(parts), 0 if self._before is None else 1)
        if events is not None:
            self._check_context(part)
            self._count(part, len(events))
        pieces = self._pieces(part, last=events is None)
        index_P, total_K = self._indices(part, pieces)
        tables = self._tables(part, pieces, index_P)
        self._leave(part, total_K, last=events is None)
        self._keep(part, pieces.kept)
        return tables

    def _in_time(self, events: Events) -> Events:
        """The events that are not older than what an earlier preparation has left of their key."""
        bound = 0 if self._bound is None else 1
        both = events if self._bound is None else concatenated([self._bound, events])
        is_left = _is_left(both)
        rows = np.arange(len(both))
        new_key = np.ones(len(both), bool)
        new_key[1:] = unequal(both.keys.slice(0, len(both) - 1), both.keys.slice(1))
        last_left = np.maximum.accumulate(np.where(is_left, rows, -1))
        has_bound = last_left >= np.maximum.accumulate(np.where(new_key, rows, 0))
        if has_bound.any():
            self._bound = both.take(last_left[-1:])
        late = np.flatnonzero(~is_left & has_bound)
        pairs = [np.stack([rank[last_left[late]], rank[late]], 1).reshape(-1) for rank in both.ranks[1:]]
        late = late[falls(tuple(pairs))[::2]] if len(late) else late
        if len(late) and not self.skip:
            raise self._too_late(both, int(late[0]), int(last_left[late[0]]))
        if len(late):
            self.counts.late += len(late)
            self.late_rows.append(both.take(late).table.select(self.layout.schema.names))
        return both.take(np.setdiff1d(rows[bound:], late)) if len(late) else events

    def _too_late(self, events: Events, row: int, bound: int) -> DataError:
        time = events.table.column(self.layout.time)
        return DataError(
            f"an event must not be older than those that the preparation before has written of its key, but "
            f"{key_text(events.table, self.layout.keys, row)} has one at {time[row].as_py()} behind one at "
            f"{time[bound].as_py()}; leave such events out with --on-bad-rows skip, or prepare all events anew",
            column=self.layout.time,
        )

    def _bordered(self, events: Events, first: int) -> _Part:
        layout = self.layout
        same = np.zeros(len(events), bool)
        same[1:] = ~unequal(events.keys.slice(0, len(events) - 1), events.keys.slice(1))
        delta = np.zeros(len(events), np.float64 if events.time_N.dtype.kind == "f" else np.uint64)
        # Unsigned, for the difference of two int64 may be larger than an int64.
        times = events.time_N if delta.dtype.kind == "f" else events.time_N.view(np.uint64)
        delta[1:] = np.where(same[1:], times[1:] - times[:-1], 0)
        splits = np.searchsorted(np.array(layout.boundaries), events.time_N, side="right")
        is_left = _is_left(events) if layout.continues else np.zeros(len(events), bool)
        is_written = _is_written(events) if layout.continues else is_left
        ties = same & (delta == 0)
        ties[1:] &= ~is_left[:-1]  # whose place is certain
        unordered = ties.copy()
        for rank in events.ranks:
            unordered[1:] &= rank[1:] == rank[:-1]
        breaks = ~same | is_written
        if layout.gap is not None:
            breaks |= delta > layout.gap
        breaks[1:] |= (splits[1:] != splits[:-1]) | is_written[:-1]
        breaks[first : first + 1] = True
        starts = np.flatnonzero(breaks[first:]) + first
        key_N = np.cumsum(~same) - 1
        return _Part(events, first, is_written, is_left, key_N, same, ties, unordered, delta, splits, starts)

    def _check_context(self, part: _Part) -> None:
        for name in self.layout.context:
            values = plain(part.events.table.column(name))
            wrong = unequal(values.slice(0, len(values) - 1), values.slice(1)) & part.same_key_N[1:]
            if wrong.any():
                row = int(np.argmax(wrong))
                key = key_text(part.events.table, self.layout.keys, row)
                one, other = values[row].as_py(), values[row + 1].as_py()
                raise DataError(
                    f"a context column must have one value a key, but {key} has {one!r} and {other!r}; leave it "
                    f"out of --context to have a list, or mend the events",
                    column=name,
                )

    def _count(self, part: _Part, added: int) -> None:
        """Counts the last `added` events of a part."""
        new = np.arange(len(part.events) - added, len(part.events))
        is_event = ~part.is_left_N[new]
        counts, before = self.counts, self._last_ties
        counts.events += int(is_event.sum())
        counts.keys += int((is_event & (~part.same_key_N[new] | part.is_left_N[new - 1])).sum())
        counts.tied += _tied(part.ties_N[new], before[0])
        counts.unordered += _tied(part.unordered_N[new], before[1])
        self._last_ties = bool(part.ties_N[-1]), bool(part.unordered_N[-1])
        if part.unordered_N[new[0]]:
            counts.unordered_labels += self._last_labels
        self._last_labels = 0

    def _pieces(self, part: _Part, *, last: bool) -> _Pieces:
        count, most, shift = len(part.events), self.layout.max_length, self.layout.label_shift
        starts, ends = part.starts_S, np.append(part.starts_S, count)[1:]
        lengths = np.where(part.is_written_N[starts], 0, ends - starts)
        without = np.minimum(lengths, shift)
        usable = lengths if self.layout.for_scoring else lengths - without
        kept = count
        if not last:  # the last session may go on: only its full pieces are finished
            full = 0 if most is None else int(lengths[-1] - without[-1]) // most * most
            kept = int(starts[-1]) + full
            usable[-1] = full
        self.counts.unlabelled += int(without[: None if last else -1].sum())
        pieces = (usable > 0).astype(np.int64) if most is None else -(-usable // most)
        within = np.arange(pieces.sum()) - np.repeat(offsets_of(pieces)[:-1], pieces)
        length, ends_P, starts_P = (np.repeat(each, pieces) for each in (usable, ends, starts))
        if most is None:
            return _Pieces(starts_P, starts_P + length, ends_P, kept)
        stops_P = starts_P + np.minimum((within + 1) * most, length)
        return _Pieces(starts_P + within * most, stops_P, ends_P, kept)

    def _indices(self, part: _Part, pieces: _Pieces) -> tuple[np.ndarray, np.ndarray]:
        """`sequence_index` of each sequence, and how many each key of the part has; keeps that of row `kept` − 1."""
        before_K = np.zeros(part.key_N[-1] + 1, np.int64)
        if self.layout.continues:
            left = pc.fill_null(plain(part.events.table.column(NEXT_INDEX)), 0).to_numpy(zero_copy_only=False)
            before_K = left[~part.same_key_N].copy()
        if part.first == 1:
            before_K[0] = self._index
        key_P = part.key_N[pieces.starts_P]
        count_K = np.bincount(key_P, minlength=len(before_K))
        index_P = before_K[key_P] + np.arange(len(key_P)) - offsets_of(count_K)[key_P]
        total_K = before_K + count_K
        if pieces.kept > 0:
            self._index = int(total_K[part.key_N[pieces.kept - 1]])
        return index_P, total_K

    def _leave(self, part: _Part, total_K: np.ndarray, *, last: bool) -> None:
        """Gathers what is left of the keys that end in a part, for the preparation that continues this one."""
        ends = np.flatnonzero(~np.append(part.same_key_N, not last)[1:]) + 1
        if self._open is not None and part.first == 1:
            ends = ends[ends > 1]  # that the key of row 0 had ended was known before
        waiting = np.zeros(len(ends), np.int64)
        if self.layout.label_shift and not self.layout.for_scoring and len(part.starts_S):
            session = np.searchsorted(part.starts_S, ends) - 1
            waiting = np.where(session < 0, 0, np.minimum(ends - part.starts_S[session], self.layout.label_shift))
            waiting[part.is_written_N[ends - 1]] = 0
        # No key's first row is the same key's as the one before.
        has_before = (waiting == 0) | part.same_key_N[np.where(waiting == 0, 0, ends - waiting)]
        begins = ends - waiting - has_before
        rows = _rows(begins, ends)
        if len(rows):
            is_written = np.isin(rows, begins[has_before])
            index = np.repeat(total_K[part.key_N[ends - 1]], ends - begins)
            self.left.append(self._left_rows(part, rows, is_written, index))

    def _left_rows(self, part: _Part, rows: np.ndarray, is_written: np.ndarray, index: np.ndarray) -> pa.Table:
        layout, table = self.layout, part.events.table
        everywhere = {*layout.keys, *layout.times, *layout.context}
        columns = []
        for name in layout.schema.names:
            unknown = None if name in everywhere else is_written  # is not needed again
            columns.append(plain(table.column(name)).take(pa.array(rows, pa.int64(), mask=unknown)))
        schema = pa.schema([*layout.schema, *CARRIED])
        return pa.Table.from_arrays([*columns, pa.array(index, pa.int64()), pa.array(is_written)], schema=schema)

    def _keep(self, part: _Part, kept: int) -> None:
        rows = np.arange(kept, len(part.events))
        self._open = part.events.take(rows) if len(rows) else None
        if kept > 0:
            self._before = part.events.take(np.array([kept - 1]))
        if self._open is not None and self._open.nbytes > self.most_bytes:
            key = key_text(self._open.table, self.layout.keys, 0)
            raise DataError(
                f"a sequence must fit in {self.most_bytes >> 20} MiB, but that of {key} has more than {len(rows)} "
                f"events in a row; cut it with --max-length or --gap"
            )

    # What a sequence looks like -----------------------------------------------------------------------------------

    def _tables(self, part: _Part, pieces: _Pieces, index_P: np.ndarray) -> dict[int, pa.Table]:
        self._count_labels(part, pieces)
        split_P = part.split_N[pieces.starts_P]
        tables = {}
        for split in np.unique(split_P).tolist():
            mine = split_P == split
            starts, stops = pieces.starts_P[mine], pieces.stops_P[mine]
            tables[split] = self._table(part, starts, stops, pieces.ends_P[mine], index_P[mine])
            self.counts.lengths.setdefault(split, Counter()).update((stops - starts).tolist())
        return tables

    def _count_labels(self, part: _Part, pieces: _Pieces) -> None:
        """Counts the labels that the order in the files decides: where the event, or that of its label, ties."""
        if self.layout.label is None:
            return
        rows = labels = pieces.stops_P - 1
        if self.layout.label_shift:
            rows = _rows(pieces.starts_P, pieces.stops_P)
            labels = rows + self.layout.label_shift
            known = labels < np.repeat(pieces.ends_P, pieces.stops_P - pieces.starts_P)
            rows, labels = rows[known], labels[known]
        ties = part.unordered_N | np.append(part.unordered_N, False)[1:]
        decided = ties[rows] | ties[labels]
        self.counts.unordered_labels += int(decided.sum())
        # Whether the last event ties is known with the next one.
        self._last_labels = int((~decided & (labels == len(part.events) - 1)).sum())

    def _table(
        self, part: _Part, starts: np.ndarray, stops: np.ndarray, ends: np.ndarray, index_P: np.ndarray
    ) -> pa.Table:
        layout, table = self.layout, part.events.table
        offsets = pa.array(offsets_of(stops - starts), pa.int32())
        rows = _rows(starts, stops)

        def at(name: str, places: np.ndarray, unknown: np.ndarray | None = None) -> Array:
            return plain(table.column(name)).take(pa.array(places, pa.int64(), mask=unknown))

        columns = [at(key, starts) for key in layout.keys]
        columns += [pa.array(index_P), at(layout.time, starts), at(layout.time, stops - 1)]
        columns += [at(name, starts) for name in layout.context]
        columns += [pa.ListArray.from_arrays(offsets, at(name, rows)) for name in layout.sequence]
        if layout.time_delta is not None:
            seconds = part.delta_N[rows].astype(np.float64) * layout.seconds_per_unit
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(seconds)))
        if layout.label is not None and layout.label_shift:
            places = rows + layout.label_shift
            unknown = places >= np.repeat(ends, stops - starts) if layout.for_scoring else None
            later = at(layout.label, places, unknown)
            if layout.label_change:
                later = pc.subtract(later.cast(pa.float64()), at(layout.label, rows).cast(pa.float64()))
            columns.append(pa.ListArray.from_arrays(offsets, later))
        elif layout.label is not None:
            columns.append(at(layout.label, stops - 1))
        return pa.Table.from_arrays(columns, schema=self.schema)


def _rows(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """start … stop − 1 of each pair, one behind the other."""
    return ranges(np.stack([starts, stops], 1).reshape(-1), 2 * np.arange(len(starts)))


def _is_left(events: Events) -> np.ndarray:
    return np.asarray(plain(events.table.column(IS_WRITTEN)).is_valid().to_numpy(zero_copy_only=False))


def _is_written(events: Events) -> np.ndarray:
    column = pc.fill_null(plain(events.table.column(IS_WRITTEN)), False)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _tied(ties: np.ndarray, before: bool) -> int:
    """How many more events tie with another: `ties` says which do with the one before, `before` whether that did."""
    begins = ties & ~np.append(before, ties[:-1])
    return int(ties.sum() + begins.sum())
