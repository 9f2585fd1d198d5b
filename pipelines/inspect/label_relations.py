"""How far a column tells the label: copies it, stands one step before or behind it, or decides it value by value.

Pairs of a column's entry and the label are counted over rows (a label a row: a context column, or the last step of a
sequence column) or over steps (a label a step). Counts merge by addition. Runs in data tasks: knows no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from model.features.quantile_sketch import packed, unpacked
from pipelines.inspect.sketches import mixed

MOST_PAIRS = 1 << 12  # distinct (value, label) pairs; beyond, what a value decides is not followed
MOST_COUNTED = 1 << 22  # pairs of codes that are counted in an array
NEXT, PREVIOUS = "next", "previous"

Moments = tuple[float, ...]  # count, means of x and y, squared deviations of both, and their product
NO_MOMENTS: Moments = (0.0,) * 6


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries to compare, one for each label: their values by code (−1 is null), the values' hashes, and numbers.

    `numbers` are float64, None where the values are no numbers.
    """

    codes: np.ndarray
    value_hashes: np.ndarray
    numbers: np.ndarray | None = None

    @cached_property
    def hashes(self) -> np.ndarray:
        """The hash of each entry, uint64; 0 for null."""
        found: np.ndarray = np.append(self.value_hashes, np.uint64(0))[self.codes]
        return found

    def take(self, places: np.ndarray) -> Entries:
        """The entries at these places."""
        return Entries(self.codes[places], self.value_hashes, None if self.numbers is None else self.numbers[places])


@dataclass(frozen=True, eq=False)
class Relation:
    """Counts over `compared` pairs: in how many the two are `equal`; `shifted` the same for neighbouring steps.

    `pairs` are the distinct pairs as uint64 (column hashes, label hashes) with their counts; None when there are more
    than MOST_PAIRS. `moments` are count, means, squared deviations and their product, for numbers.
    """

    compared: int = 0
    equal: int = 0
    shifted: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(
        default_factory=lambda: (np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    )
    moments: Moments = NO_MOMENTS
    last: bool = False

    @classmethod
    def of(cls, column: Entries, label: Entries, offsets: np.ndarray | None = None, *, last: bool = False) -> Relation:
        """Of entries and the labels at the same places; `offsets` bound the rows where they are steps.

        `last` says that the entries are the last steps of rows with one label each.
        """
        compared = len(label.hashes)
        return cls(
            compared=compared,
            equal=int((column.hashes == label.hashes).sum()),
            shifted={} if offsets is None else _shifted(column.hashes, label.hashes, offsets),
            pairs=_pairs_of(column, label),
            moments=moments_of(column.numbers, label.numbers),
            last=last,
        )

    def merge(self, other: Relation) -> Relation:
        """Of the pairs of both; not in place."""
        shifted = dict(self.shifted)
        for name, (equal, compared) in other.shifted.items():
            before = shifted.get(name, (0, 0))
            shifted[name] = (before[0] + equal, before[1] + compared)
        return Relation(
            compared=self.compared + other.compared,
            equal=self.equal + other.equal,
            shifted=shifted,
            pairs=None if self.pairs is None or other.pairs is None else _joined(self.pairs, other.pairs),
            moments=merged_moments(self.moments, other.moments),
            last=self.last or other.last,
        )

    @property
    def decided(self) -> tuple[float, int] | None:
        """(share of pairs whose label is the most frequent one of its value, pairs beyond the first of each value)."""
        if self.pairs is None or not self.compared:
            return None
        columns, _, counts = self.pairs
        order = np.argsort(columns, kind="stable")
        starts = np.flatnonzero(np.diff(columns[order], prepend=columns[order][:1] + np.uint64(1)))
        right = int(np.maximum.reduceat(counts[order], starts).sum())
        return right / self.compared, self.compared - len(starts)

    @property
    def guessed(self) -> float | None:
        """The share of the most frequent label, which is right without any column."""
        if self.pairs is None or not self.compared:
            return None
        _, labels, counts = self.pairs
        _, places = np.unique(labels, return_inverse=True)
        return float(np.bincount(places, weights=counts).max() / self.compared)

    @property
    def correlation(self) -> float | None:
        """Pearson's, where both are numbers that vary."""
        return correlation_of(self.moments)

    def shift(self, name: str) -> float | None:
        """The share of steps that equal the label of a neighbouring step."""
        equal, compared = self.shifted.get(name, (0, 0))
        return equal / compared if compared else None

    def to_plain(self) -> dict[str, Any]:
        """Plain data that travels as JSON."""
        pairs = self.pairs
        return {
            "compared": self.compared,
            "equal": self.equal,
            "shifted": {name: list(told) for name, told in self.shifted.items()},
            "pairs": None if pairs is None else [packed(pairs[0], "<u8"), packed(pairs[1], "<u8"), pairs[2].tolist()],
            "moments": list(self.moments),
            "last": self.last,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Relation:
        """What `to_plain` described."""
        pairs = plain["pairs"]
        return cls(
            compared=plain["compared"],
            equal=plain["equal"],
            shifted={name: (told[0], told[1]) for name, told in plain["shifted"].items()},
            pairs=None
            if pairs is None
            else (unpacked(pairs[0], "<u8"), unpacked(pairs[1], "<u8"), np.array(pairs[2], np.int64)),
            moments=tuple(plain["moments"]),
            last=plain["last"],
        )


def _shifted(column: np.ndarray, label: np.ndarray, offsets: np.ndarray) -> dict[str, tuple[int, int]]:
    """NEXT: the label is the column's value one step later; PREVIOUS: one step earlier."""
    inside = np.ones(max(len(label) - 1, 0), bool)  # whether a step and the one after it are of one row
    edges = offsets[1:-1]
    inside[edges[(edges > 0) & (edges < len(label))] - 1] = False
    compared = int(inside.sum())
    return {
        NEXT: (int(((column[1:] == label[:-1]) & inside).sum()), compared),
        PREVIOUS: (int(((column[:-1] == label[1:]) & inside).sum()), compared),
    }


def _pairs_of(column: Entries, label: Entries) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The distinct pairs of entries; by codes, because most of a million entries are soon found to be too many."""
    if np.count_nonzero(np.bincount(column.codes + 1)) > MOST_PAIRS:
        return None
    width = len(label.value_hashes) + 1
    joint = (column.codes.astype(np.int64) + 1) * width + label.codes + 1
    size = (len(column.value_hashes) + 1) * width
    if size <= MOST_COUNTED:
        counts = np.bincount(joint, minlength=size)
        pairs = np.flatnonzero(counts)
        counts = counts[pairs]
    else:
        pairs, counts = np.unique(joint, return_counts=True)
    columns = np.append(column.value_hashes, np.uint64(0))[pairs // width - 1]
    labels = np.append(label.value_hashes, np.uint64(0))[pairs % width - 1]
    return _pairs(columns, labels, counts)


def _pairs(
    columns: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Distinct pairs in a fixed order, or None for too many."""
    _, first, places = np.unique(mixed(columns) ^ labels, return_index=True, return_inverse=True)
    if len(first) > MOST_PAIRS:
        return None
    return columns[first], labels[first], np.bincount(places, weights=counts, minlength=len(first)).astype(np.int64)


def _joined(
    one: tuple[np.ndarray, np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    columns, labels, counts = (np.concatenate(both) for both in zip(one, other, strict=True))
    return _pairs(columns, labels, counts)


def moments_of(x: np.ndarray | None, y: np.ndarray | None) -> Moments:
    """Of the pairs of which both are finite."""
    if x is None or y is None:
        return NO_MOMENTS
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return NO_MOMENTS
    mean_x, mean_y = float(x.mean()), float(y.mean())
    with np.errstate(over="ignore", invalid="ignore"):
        dx, dy = x - mean_x, y - mean_y
        # Not dx @ dy: that sums in an order which depends on the threads.
        return (float(len(x)), mean_x, mean_y, float((dx * dx).sum()), float((dy * dy).sum()), float((dx * dy).sum()))


def correlation_of(moments: Moments) -> float | None:
    """Pearson's, where both numbers vary."""
    count, _, _, xx, yy, xy = moments
    if count < 2 or xx <= 0 or yy <= 0:
        return None
    return float(xy / np.sqrt(xx) / np.sqrt(yy))


def merged_moments(one: Moments, other: Moments) -> Moments:
    """Chan's update of means, squared deviations and their product."""
    if not one[0] or not other[0]:
        return one if one[0] else other
    count = one[0] + other[0]
    dx, dy, share = other[1] - one[1], other[2] - one[2], other[0] / count
    weight = one[0] * share
    return (
        count,
        one[1] + dx * share,
        one[2] + dy * share,
        one[3] + other[3] + dx * dx * weight,
        one[4] + other[4] + dy * dy * weight,
        one[5] + other[5] + dx * dy * weight,
    )
