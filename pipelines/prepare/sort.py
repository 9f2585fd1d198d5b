"""The order of sequences: by the key's 64-bit hash, then key, time, what orders equal times, and place in the input.

Keys come in the order of their hashes, so that any share of the hash range is a share of the keys (a bucket), and
the order does not depend on how many buckets there are. Equal hashes of different keys are told apart by the key.
Knows no files and no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from model.features.hashing import fingerprints
from model.tables import compute as pc
from model.tables.arrow_lists import Array, is_list, plain, ranges, unnest
from pipelines.prepare.keys import keys_of
from pipelines.prepare.layout import IS_WRITTEN, Layout, time_numbers


@dataclass(frozen=True)
class Events:
    """Rows with what orders them: `hash_N` of the key (uint64), and `ranks` (int64 or float64, [N] each).

    The rows of a key are ordered by `ranks`, by the first before the second: the time, what orders equal times, and
    before them, where there is an earlier preparation, whether a row is an event (1) or what that one has left (0).
    """

    hash_N: np.ndarray
    keys: Array
    table: pa.Table
    ranks: tuple[np.ndarray, ...]
    time_rank: int = 0  # which of them is the time

    @property
    def time_N(self) -> np.ndarray:
        """The times."""
        return self.ranks[self.time_rank]

    def __len__(self) -> int:
        return len(self.hash_N)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in memory."""
        return int(self.table.nbytes) + 16 * len(self)

    def slice(self, start: int, stop: int) -> Events:
        """Rows start … stop − 1, sharing memory."""
        length = stop - start
        return Events(
            self.hash_N[start:stop],
            self.keys.slice(start, length),
            self.table.slice(start, length),
            tuple(rank[start:stop] for rank in self.ranks),
            self.time_rank,
        )

    def take(self, rows: np.ndarray) -> Events:
        """The rows in that order, in memory of their own."""
        places = pa.array(rows, pa.int64())
        return Events(
            self.hash_N[rows],
            self.keys.take(places),
            self.table.take(places).combine_chunks(),
            tuple(rank[rows] for rank in self.ranks),
            self.time_rank,
        )


def concatenated(parts: Sequence[Events]) -> Events:
    """All parts one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return Events(
        np.concatenate([part.hash_N for part in parts]),
        pa.concat_arrays([part.keys for part in parts]),
        pa.concat_tables([part.table for part in parts]).combine_chunks(),
        tuple(np.concatenate(ranks) for ranks in zip(*(part.ranks for part in parts), strict=True)),
        parts[0].time_rank,
    )


@dataclass(frozen=True)
class Arrange:
    """Makes Events of tables: the key's columns, and what else orders them than the time."""

    keys: tuple[str, ...]
    then: tuple[str, ...] = ()
    continues: bool = False

    @classmethod
    def of(cls, layout: Layout) -> Arrange:
        """As the sequences of a layout are ordered."""
        return cls(layout.keys, layout.times[1:], layout.continues)

    def __call__(self, table: pa.Table, time_N: np.ndarray, hash_N: np.ndarray | None = None) -> Events:
        """A table's rows with what orders them, in the order they stand."""
        keys = keys_of(table, self.keys)
        ranks = [time_N, *(time_numbers(plain(table.column(name))) for name in self.then)]
        if self.continues:
            is_event = plain(table.column(IS_WRITTEN)).is_null()
            ranks.insert(0, is_event.to_numpy(zero_copy_only=False).astype(np.int8))
        hash_N = key_hashes(keys) if hash_N is None else hash_N
        return Events(hash_N, keys, table, tuple(ranks), int(self.continues))


def key_hashes(keys: Array) -> np.ndarray:
    """A hash of each key, uint64: strings by their fingerprint, integers by a mixer that has no collisions."""
    if not pa.types.is_integer(keys.type):
        return fingerprints(keys)
    wide = keys if pa.types.is_uint64(keys.type) else keys.cast(pa.int64())
    mixed = wide.to_numpy(zero_copy_only=False).astype(np.uint64)
    # splitmix64's finalizer (Steele, Lea and Flood, 2014): a bijection of 64 bits
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def bucket_of(hash_N: np.ndarray, buckets: int) -> np.ndarray:
    """Which of `buckets` equal shares of the hash range each hash lies in: rising with the hash, int64."""
    high = hash_N >> np.uint64(32)
    return np.asarray((high * np.uint64(buckets) >> np.uint64(32)).astype(np.int64))


def in_order(events: Events) -> Events:
    """The rows sorted by (hash, key, ranks); rows equal in these keep their order."""
    order = np.argsort(events.hash_N, kind="stable")
    hash_N = events.hash_N[order]
    if (falls(tuple(rank[order] for rank in events.ranks)) & (hash_N[1:] == hash_N[:-1])).any():
        # Else the rows of a key stand in order already, as in most tables.
        order = np.lexsort((*reversed(events.ranks), events.hash_N))
        hash_N = events.hash_N[order]
    keys = events.keys.take(pa.array(order, pa.int64()))
    if (unequal(keys.slice(0, len(keys) - 1), keys.slice(1)) & (hash_N[1:] == hash_N[:-1])).any():
        order = _order_with_collisions(events)
    return events if np.array_equal(order, np.arange(len(order))) else events.take(order)


def falls(ranks: tuple[np.ndarray, ...]) -> np.ndarray:
    """Whether a row comes before the one it stands behind, [rows − 1]."""
    less, equal = np.zeros(len(ranks[0]) - 1, bool), np.ones(len(ranks[0]) - 1, bool)
    for rank in ranks:
        less |= equal & (rank[1:] < rank[:-1])
        equal &= rank[1:] == rank[:-1]
    return less


def _order_with_collisions(events: Events) -> np.ndarray:
    """As above where two keys have one hash, which happens in one of 40 tables of a billion different strings."""
    ranks = {f"rank {place}": rank for place, rank in enumerate(events.ranks)}
    columns = pa.table({"hash": events.hash_N, "key": events.keys, **ranks})
    names = [(name, "ascending") for name in columns.column_names]
    return np.asarray(pc.sort_indices(columns, sort_keys=names).to_numpy())  # Arrow's is stable


def unequal(left: Array, right: Array) -> np.ndarray:
    """Whether values differ place by place, bool [n]: null equals null, NaN equals NaN, lists by their values."""
    known_left, known_right = (np.asarray(side.is_valid().to_numpy(zero_copy_only=False)) for side in (left, right))
    if is_list(left.type):
        return np.asarray((known_left != known_right) | _unequal_lists(left, right))
    if pa.types.is_null(left.type):
        return np.zeros(len(left), bool)
    differ = pc.fill_null(pc.not_equal(left, right), False).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(left.type):
        nan = pc.and_(pc.fill_null(pc.is_nan(left), False), pc.fill_null(pc.is_nan(right), False))
        differ = differ & ~nan.to_numpy(zero_copy_only=False)
    return np.asarray(differ | (known_left != known_right))


def _unequal_lists(left: Array, right: Array) -> np.ndarray:
    (values_l, offsets_l), (values_r, offsets_r) = unnest(left, ""), unnest(right, "")
    lengths = np.diff(offsets_l)
    differ: np.ndarray = lengths != np.diff(offsets_r)
    rows = np.flatnonzero(~differ & (lengths > 0))
    if len(rows):
        places_l, places_r = (pa.array(ranges(offsets, rows)) for offsets in (offsets_l, offsets_r))
        entries = unequal(values_l.take(places_l), values_r.take(places_r))
        starts = np.concatenate([[0], np.cumsum(lengths[rows])[:-1]])
        differ[rows] = np.logical_or.reduceat(entries, starts)
    return differ


# Merging ----------------------------------------------------------------------------------------------------------


Bound: TypeAlias = tuple[int, Any, tuple[Any, ...]]  # hash, key, ranks


class Run:
    """A sorted run as it is read: some of its rows in memory, the rest still to come from `source`."""

    def __init__(self, source: Iterator[Events], buffer_bytes: int) -> None:
        self.source = source
        self.buffer_bytes = buffer_bytes
        self.rows: Events | None = None
        self.fill()

    def fill(self) -> None:
        """Reads on until there are `buffer_bytes` in memory, where there are none."""
        if self.rows is not None and len(self.rows):
            return
        parts: list[Events] = []
        while sum(part.nbytes for part in parts) < self.buffer_bytes:
            part = next(self.source, None)
            if part is None:
                break
            parts.append(part)
        self.rows = concatenated(parts) if parts else None

    def last(self) -> Bound:
        """What orders the last row in memory."""
        assert self.rows is not None
        return int(self.rows.hash_N[-1]), self.rows.keys[-1].as_py(), tuple(rank[-1] for rank in self.rows.ranks)

    def take_up_to(self, bound: Bound, *, inclusive: bool) -> Events:
        """Takes the rows in memory that come before `bound`, or up to it."""
        assert self.rows is not None
        cut = place_of(self.rows, bound, inclusive=inclusive)
        taken, self.rows = self.rows.slice(0, cut), self.rows.slice(cut, len(self.rows))
        return taken


def place_of(rows: Events, bound: Bound, *, inclusive: bool) -> int:
    """How many of the sorted `rows` come before `bound`, or up to it."""
    key_hash, key, ranks = bound
    low, high = (int(np.searchsorted(rows.hash_N, np.uint64(key_hash), side)) for side in ("left", "right"))
    if low == high:
        return low
    keys = rows.keys.slice(low, high - low)
    scalar = pa.scalar(key, keys.type)
    below, same = pc.sum(pc.less(keys, scalar)).as_py(), pc.sum(pc.equal(keys, scalar)).as_py()
    start, stop = low + below, low + below + same
    for rank, value in zip(rows.ranks, ranks, strict=True):
        within = rank[start:stop]
        start, stop = (start + int(np.searchsorted(within, value, side)) for side in ("left", "right"))
    return int(stop if inclusive else start)


def merged(sources: Sequence[Iterator[Events]], memory_bytes: int) -> Iterator[Events]:
    """Sorted runs as one sorted run, in parts; equal rows in the order of the runs. Holds about `memory_bytes`.

    Each part is all that is in memory up to the least of the runs' last rows: what the runs have still to read comes
    after that. At least one run's memory is used up each time, so that there are no more parts than reads.
    """
    buffer_bytes = memory_bytes // max(1, len(sources))
    runs = [run for run in (Run(source, buffer_bytes) for source in sources) if run.rows is not None]
    while runs:
        bound, first = min((run.last(), number) for number, run in enumerate(runs))
        # A row equal to the bound may have equals yet unread in runs behind the one that gave the bound, not before it.
        taken = [run.take_up_to(bound, inclusive=number <= first) for number, run in enumerate(runs)]
        yield in_order(concatenated([part for part in taken if len(part)]))
        for run in runs:
            run.fill()
        runs = [run for run in runs if run.rows is not None]
