"""What several rows or steps of a column tell together: runs, groups, order, and what only a sequence's end knows.

Profiles look at values one by one; these look at neighbours. They merge in (file, row group) order as profiles do.
Runs in data tasks: knows no torch, no Ray, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from model.features.quantile_sketch import packed, unpacked
from model.tables.arrow_lists import Array, numbers, plain
from pipelines.inspect.column_profile import NUMBER, TIME, ColumnProfile, span, unnested
from pipelines.inspect.label_relations import NO_MOMENTS, Moments, correlation_of, merged_moments, moments_of
from pipelines.inspect.sketches import Coded, mixed

GROUPS_KEPT = 256  # of a column's values, those with the smallest hashes: a sample that each part draws alike
SCATTERED_LEAST = 20  # distinct whole numbers from which their spread tells anything
SCATTERED_TIMES = 5  # how often each stands on average, as categories do
GAPS = 4  # numbers that could stand for each that does
NO_ORDER = 0.7  # of von Neumann's ratio, from which neighbouring steps say nothing of each other
LEAST_GROUPS, MOST_GROUP_ROWS = 20, 200  # values, and rows of each, of a column that may name whose rows these are
LEAST_COMPARED = 20  # rows from which a pattern counts
IN_LINE = 0.99999  # correlation
END_NAME = re.compile(
    r"(^|_)(end|ends|ended|last|final|finish|finished|stop|stopped|close|closed|until|exit|logout)(_|$)"
)
CONFLICT = np.uint64(1)  # stands for a group in which a column has several values


@dataclass(frozen=True, eq=False)
class Pattern:
    """`runs` are those of equal values in neighbouring rows, `lengths` the least and the most steps a row.

    `jumps` are how many pairs of neighbouring steps there are, and the sum of their squared differences. `late` are
    rows whose time is not before their sequence's last event, and rows compared; the moments are of a number a row with
    the sequence's length and with its span of time.
    """

    runs: int = 0
    lengths: tuple[int, int] | None = None
    jumps: tuple[int, float] = (0, 0.0)
    late: tuple[int, int] = (0, 0)
    with_length: Moments = NO_MOMENTS
    with_span: Moments = NO_MOMENTS

    def merge(self, other: Pattern) -> Pattern:
        """Of the rows of both, which stand in this order; a run that goes on counts twice."""
        return Pattern(
            runs=self.runs + other.runs,
            lengths=span(self.lengths, other.lengths),
            jumps=(self.jumps[0] + other.jumps[0], self.jumps[1] + other.jumps[1]),
            late=(self.late[0] + other.late[0], self.late[1] + other.late[1]),
            with_length=merged_moments(self.with_length, other.with_length),
            with_span=merged_moments(self.with_span, other.with_span),
        )

    def disorder(self, profile: ColumnProfile) -> float | None:
        """Von Neumann's ratio: about 1 where a step says nothing of the next one's size, near 0 where values flow."""
        moments = profile.moments
        if self.jumps[0] < 1 or len(moments.count) != 1 or not moments.squares[0] > 0:
            return None
        return float(self.jumps[1] / self.jumps[0] / (2 * moments.squares[0] / moments.count[0]))

    def to_plain(self) -> list[Any]:
        """Plain data that travels as JSON."""
        return [self.runs, self.lengths, self.jumps, self.late, self.with_length, self.with_span]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Pattern:
        """What `to_plain` described."""
        runs, lengths, jumps, late, with_length, with_span = plain
        lengths = None if lengths is None else (lengths[0], lengths[1])
        return cls(runs, lengths, (jumps[0], jumps[1]), (late[0], late[1]), tuple(with_length), tuple(with_span))


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows grouped by one column: of GROUPS_KEPT groups their hash, their rows, and each other column's one value.

    `values` are uint64 hashes; CONFLICT where a group has several.
    """

    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    values: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, group: np.ndarray, others: Mapping[str, np.ndarray]) -> Groups:
        """From the hashes of each row."""
        return cls(*_reduced(group, np.ones(len(group), np.int64), others))

    def merge(self, other: Groups) -> Groups:
        """Of the rows of both. A column that only one of them has is not followed further."""
        if not len(self.hashes) or not len(other.hashes):
            return self if len(self.hashes) else other
        names = [name for name in self.values if name in other.values]
        joined = {name: np.concatenate([self.values[name], other.values[name]]) for name in names}
        hashes, rows = np.concatenate([self.hashes, other.hashes]), np.concatenate([self.rows, other.rows])
        return Groups(*_reduced(hashes, rows, joined))

    def constant(self) -> list[str]:
        """The columns that have one value in every group of several rows; none where no group has several."""
        several = self.rows > 1
        if not several.any():
            return []
        return [name for name, values in self.values.items() if not (values[several] == CONFLICT).any()]

    def to_plain(self) -> list[Any]:
        """Plain data that travels as JSON."""
        values = {name: packed(each, "<u8") for name, each in self.values.items()}
        return [packed(self.hashes, "<u8"), self.rows.tolist(), values]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Groups:
        """What `to_plain` described."""
        values = {name: unpacked(each, "<u8") for name, each in plain[2].items()}
        return cls(unpacked(plain[0], "<u8"), np.array(plain[1], np.int64), values)


def _reduced(
    hashes: np.ndarray, rows: np.ndarray, others: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """One entry a group, of the groups with the smallest hashes."""
    kept, places = np.unique(hashes, return_inverse=True)
    inside = places < GROUPS_KEPT
    kept, places = kept[:GROUPS_KEPT], places[inside]
    counts = np.bincount(places, weights=rows[inside], minlength=len(kept)).astype(np.int64)
    values = {}
    for name, each in others.items():
        low, high = np.full(len(kept), np.uint64(2**64 - 1)), np.zeros(len(kept), np.uint64)
        np.minimum.at(low, places, each[inside])
        np.maximum.at(high, places, each[inside])
        values[name] = np.where(low == high, low, CONFLICT)
    return kept, counts, values


@dataclass(frozen=True, eq=False)
class Ends:
    """What is known of each row's sequence only once it has ended: float64 [rows], None where no column tells it."""

    lengths: np.ndarray | None = None
    first: np.ndarray | None = None
    last: np.ndarray | None = None


def pattern_of(array: Array, name: str, profile: ColumnProfile, coded: Coded | None, ends: Ends) -> Pattern:
    """The pattern of one column of a row group."""
    array = plain(array)
    parts = unnested(array, name)
    if coded is None:
        return Pattern()
    if not parts.depth:
        return _of_rows(array, name, profile, coded, ends)
    if parts.row_offsets is None or not len(array):
        return Pattern()
    steps = np.diff(parts.row_offsets)
    found = Pattern(lengths=(int(steps.min()), int(steps.max())))
    if parts.step_offsets is None and profile.kind == NUMBER:
        return replace(found, jumps=_jumps(numbers(parts.values, name), parts.row_offsets))
    return found


def _of_rows(array: Array, name: str, profile: ColumnProfile, coded: Coded, ends: Ends) -> Pattern:
    runs = int((np.diff(coded.codes) != 0).sum()) + min(1, len(coded.codes))
    numeric = profile.kind == NUMBER
    if not numeric and not profile.dates:
        return Pattern(runs=runs)
    values = numbers(array, name)
    known = np.isfinite(values)
    late = (0, 0)
    if ends.last is not None:
        late = int((values[known] >= ends.last[known]).sum()), int(known.sum())
    with_length = moments_of(values, ends.lengths) if numeric else NO_MOMENTS
    span = None if ends.last is None or ends.first is None else ends.last - ends.first
    return Pattern(runs=runs, late=late, with_length=with_length, with_span=moments_of(values, span))


def _jumps(values: np.ndarray, row_offsets: np.ndarray) -> tuple[int, float]:
    """Pairs of neighbouring steps of one row, both known, and the sum of their squared differences."""
    differences = np.diff(values)
    inside = np.isfinite(differences)
    edges = row_offsets[1:-1]
    inside[edges[(edges > 0) & (edges < len(values))] - 1] = False
    with np.errstate(over="ignore"):
        return int(inside.sum()), float((differences[inside] ** 2).sum())


def groups_of(name: str, coded: Mapping[str, Coded]) -> Groups:
    """Rows grouped by a column; `coded` are the columns with one value a row."""
    others = {other: mixed(each.entry_hashes()) | np.uint64(2) for other, each in coded.items() if other != name}
    return Groups.of(mixed(coded[name].entry_hashes()), others)


# What they say ------------------------------------------------------------------------------------------------------


def words(name: str) -> str:
    """A name in small letters with `_` between its words: userId, user-id and user:id are user_id."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")


def ends_with_it(name: str, profile: ColumnProfile, pattern: Pattern) -> bool:
    """Whether a value a row tells how its sequence ends: a time that is never before the last event's, or a number in
    line with how many events there are or how long they take."""
    late, compared = pattern.late
    if profile.depth or profile.distinct.count < 2:
        return False
    a_time = profile.kind == TIME or END_NAME.search(words(name))
    if a_time and compared >= LEAST_COMPARED and late == compared:
        return True
    lines = (correlation_of(pattern.with_length), correlation_of(pattern.with_span))
    counted = pattern.with_length[0] >= LEAST_COMPARED
    return counted and any(line is not None and line >= IN_LINE for line in lines)


def is_scattered(profile: ColumnProfile, pattern: Pattern) -> bool:
    """Whether whole numbers of steps are spread like codes: evenly over their range, and a step's size says nothing of
    the next one's. Amounts crowd somewhere, and measurements flow."""
    if not repeats_without_order(profile, pattern):
        return False
    low, quarter, middle, upper, high = profile.quantiles.quantiles([0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
    even = np.array([quarter, middle, upper]) - (low + (high - low) * np.array([0.25, 0.5, 0.75]))
    return bool(np.abs(even).max() <= 0.1 * (high - low))


def may_be_ids(profile: ColumnProfile, pattern: Pattern) -> bool:
    """Whether whole numbers of steps have gaps and no order, but crowd somewhere: ids, or amounts."""
    if not repeats_without_order(profile, pattern):
        return False
    low, high = profile.quantiles.quantiles([0.0, 1.0]).tolist()
    return bool(high - low >= GAPS * profile.distinct.count)


def repeats_without_order(profile: ColumnProfile, pattern: Pattern) -> bool:
    """Whether whole numbers of steps repeat as codes do, and a step's size says nothing of the next one's."""
    disorder, distinct = pattern.disorder(profile), profile.distinct.count
    often = distinct >= SCATTERED_LEAST and SCATTERED_TIMES * distinct <= profile.counts["known_values"]
    return profile.whole and often and disorder is not None and disorder >= NO_ORDER


def unnamed_key(
    columns: Mapping[str, ColumnProfile], patterns: Mapping[str, Pattern], groups: Mapping[str, Groups], parts: int
) -> tuple[str, str] | None:
    """(a column that looks as if it named whose rows these are, why): its values stand in runs, or most columns with
    one value a row have one value in each of its groups. `parts` row groups may each cut a run in two."""
    for name, grouped in groups.items():
        distinct, rows = columns[name].distinct_values, columns[name].counts["known_values"]
        if not (distinct >= LEAST_GROUPS and 2 * distinct <= rows <= MOST_GROUP_ROWS * distinct):
            continue
        others = [other for other in grouped.values if columns[other].distinct.count > 1]
        constant = [other for other in grouped.constant() if other in others]
        if patterns[name].runs <= 1.05 * distinct + parts:
            return name, "its values repeat, each in one run of rows"
        if constant and 2 * len(constant) >= len(others):
            return name, f"{', '.join(map(repr, constant[:3]))} never changes within one of its values"
    return None


# Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ties:
    """Events with the time of another event of their key, of all events; and next values that the files' order decides,
    of all next values: where the event ties, or the one whose value it is.
    """

    events: int
    tied: int
    labels: int
    decided: int


def ties_of(keys: np.ndarray, times: np.ndarray) -> Ties:
    """From the key's hash and the time of each event."""
    order = np.lexsort([times, keys])
    keys, times = keys[order], times[order]
    same_key = keys[1:] == keys[:-1]
    same = same_key & (times[1:] == times[:-1])
    tied = np.zeros(len(keys), bool)
    tied[1:] |= same
    tied[:-1] |= same
    return Ties(len(keys), int(tied.sum()), int(same_key.sum()), int(((tied[1:] | tied[:-1]) & same_key).sum()))


def event_times(table: pa.Table, name: str) -> np.ndarray | None:
    """The time of each row, float64: seconds, or what the column counts in; NaN for null. None where it is no time."""
    array = plain(table.column(name))
    kind = array.type
    if pa.types.is_temporal(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return numbers(array, name)
    return None
