"""Which columns have one value a key, and which of these are known only at the end of a key's events.

Sorted rows are looked at key by key: the first and last ones of each, and how many there are. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from model.tables.arrow_lists import numbers, plain
from pipelines.prepare.layout import Layout, is_moment
from pipelines.prepare.sort import Arrange, Events, concatenated, in_order, unequal
from pipelines.prepare.sorted_runs import RunFile, RunReader

ROWS = "_prepare_rows"  # of a key, behind the first of which this row stands
ROUNDING_SECONDS = 1e-6  # of moments as floats
MOST = 0.5  # of the keys: a clock that is wrong for some does not hide what a column is


@dataclass(frozen=True)
class Detect:
    """Which candidates have one value in every key of a bucket; within each run they have. And what `ends_of` finds."""

    runs: tuple[RunFile, ...]
    layout: Layout
    candidates: tuple[str, ...]

    def __call__(self, number: int) -> dict[str, Any]:
        columns = list(
            dict.fromkeys([*self.layout.keys, *self.candidates, *ends_columns(self.layout, self.candidates)])
        )
        found: list[Events] = []
        for run in self.runs:
            reader = RunReader(run, Arrange(self.layout.keys), columns, self.layout.read_schema.names)
            found += [first_and_last(events) for events in reader.bucket(number)]
        if not found:
            return {"candidates": list(self.candidates), "repeats": False, "ends": {}}
        events = in_order(concatenated(found))
        same = same_key(events)
        constant = [column for column in self.candidates if not differs_within(events, column, same)]
        ends = ends_of(events, self.layout, ends_columns(self.layout, constant))
        return {"candidates": constant, "repeats": bool(same.any()), "ends": ends}


def same_key(events: Events) -> np.ndarray:
    """Whether a row goes on with the key of the one before, [rows − 1]."""
    return ~unequal(events.keys.slice(0, len(events) - 1), events.keys.slice(1))


def differs_within(events: Events, column: str, same: np.ndarray) -> bool:
    """Whether a column has two values within a key; the rows are sorted, `same` says which go on with a key."""
    values = plain(events.table.column(column))
    return bool((unequal(values.slice(0, len(values) - 1), values.slice(1)) & same).any())


def first_and_last(events: Events) -> Events:
    """The first and the last row of each key, with the count of the rows up to the next one in `ROWS`."""
    new = np.append(True, ~same_key(events))
    rows = np.flatnonzero(new | np.append(new[1:], True))
    kept = events.take(rows)
    counts = pa.array(np.diff(np.append(rows, len(events))), pa.int64())
    return replace(kept, table=kept.table.append_column(ROWS, counts))


# What is known only at the end ------------------------------------------------------------------------------------


def ends_columns(layout: Layout, candidates: Sequence[str]) -> list[str]:
    """Columns with one value a key that might tell how its events end: moments, and numbers."""
    names = dict.fromkeys([*layout.context, *candidates])
    return [name for name in names if _may_tell(layout.schema.field(name).type, layout.schema.field(layout.time).type)]


def _may_tell(kind: pa.DataType, time: pa.DataType) -> bool:
    if is_moment(kind):
        return is_moment(time)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def ends_of(events: Events, layout: Layout, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """How often a column's value is what only a key's end tells: [keys, least, greatest value] by column and by what.

    `all` are the keys with a value whose events differ in time; `after` those whose value is a moment after the first
    event, `last` the time of the last, `count` how many events there are, `span` how long they take (in seconds, or in
    the time's unit). `events` are those of `first_and_last`, sorted.
    """
    first = np.flatnonzero(np.append(True, ~same_key(events)))
    last = np.append(first[1:], len(events)) - 1
    count_K = np.add.reduceat(plain(events.table.column(ROWS)).to_numpy(), first)
    begin_K, end_K = (events.time_N[rows] * layout.seconds_per_unit for rows in (first, last))
    found = {}
    for name in names:
        value_K = numbers(plain(events.table.column(name)).take(pa.array(first)), name)  # moments in seconds
        several = (end_K > begin_K) & np.isfinite(value_K)
        if is_moment(layout.schema.field(name).type):
            is_end = {"after": value_K > begin_K + ROUNDING_SECONDS}
        else:
            is_end = {"last": value_K == end_K, "count": value_K == count_K, "span": value_K == end_K - begin_K}
        told = {"all": several} | {what: hits & several for what, hits in is_end.items()}
        found[name] = {what: _told(value_K[hits]) for what, hits in told.items() if hits.any()}
    return found


def _told(values: np.ndarray) -> list[float]:
    return [float(len(values)), float(values.min()), float(values.max())]


def ends(parts: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], names: Sequence[str]) -> tuple[str, ...]:
    """The columns that are known only at a key's end, by what `ends_of` found in each part of the keys.

    What most keys have is no chance; a number, however, has to differ from key to key: 2 may be any constant.
    """
    return tuple(name for name in names if _is_end([part[name] for part in parts if name in part]))


def _is_end(parts: Sequence[Mapping[str, Sequence[float]]]) -> bool:
    keys = sum(part["all"][0] for part in parts if "all" in part)
    for what in ("after", "last", "count", "span"):
        hits = [part[what] for part in parts if what in part]
        differ = bool(hits) and (what == "after" or min(hit[1] for hit in hits) < max(hit[2] for hit in hits))
        if differ and sum(hit[0] for hit in hits) >= MOST * keys:
            return True
    return False
