"""A mergeable summary of numbers that answers quantiles: exact while small, then with a bounded error of rank.

The summary is a list of distinct values with whole-number weights. Up to MOST_EXACT of them nothing is lost, however
often each stands. Beyond, the values whose weight has the bit 2^h (the *level* h) are thinned, level by level, where
more than LEVEL_VALUES share it: of each two neighbours one stays, with twice the weight, by turns the lower and the
upper one. Each such step moves the rank of any number by at most 2^h, and takes up at least LEVEL_VALUES · 2^h of the
weight, so that with L = 1 + log2(n / LEVEL_VALUES) levels n values have ranks that are off by at most n · L /
LEVEL_VALUES: 0.1 % of a million, 0.22 % of a thousand million. `rank_error` is what a summary has really run up.

Nothing is random: a merge depends on its two parts alone, so parts that are merged in the data's order give the same
bits whoever computed them. Knows numpy only.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_EXACT = 1 << 16  # distinct values that are kept as they are
LEVEL_VALUES = 1 << 13  # of one weight, where there are more distinct values


@dataclass(frozen=True, eq=False)
class QuantileSketch:
    """Distinct `values` float64 [P], rising, and their `weights` int64 [P], which add up to `count`.

    `low` and `high` are the least and the largest number, NaN where there is none; `compactions` counts the steps
    that thinned each level.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    low: float = math.nan
    high: float = math.nan
    compactions: tuple[int, ...] = ()

    @classmethod
    def of(cls, numbers: np.ndarray) -> QuantileSketch:
        """The summary of an array of any shape, as float64; NaN is missing, and −0 is 0."""
        flat = np.asarray(numbers, np.float64).reshape(-1) + 0.0
        values, counts = np.unique(flat[~np.isnan(flat)], return_counts=True)
        if not len(values):
            return cls()
        return _bounded(values, counts.astype(np.int64), float(values[0]), float(values[-1]), ())

    def merge(self, other: QuantileSketch) -> QuantileSketch:
        """The summary of both parts' numbers; not in place. The order of the parts may matter beyond MOST_EXACT."""
        if not self.count or not other.count:
            return self if self.count else other
        values, places = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        weights = np.zeros(len(values), np.int64)
        np.add.at(weights, places, np.concatenate([self.weights, other.weights]))
        levels = max(len(self.compactions), len(other.compactions))
        steps = tuple(a + b for a, b in zip(_long(self, levels), _long(other, levels), strict=True))
        return _bounded(values, weights, min(self.low, other.low), max(self.high, other.high), steps)

    @property
    def count(self) -> int:
        """How many numbers are summarised; missing ones do not count."""
        return int(self.weights.sum())

    @property
    def rank_error(self) -> int:
        """By how much the rank of any number may be off, in numbers; 0 while nothing was thinned."""
        return sum(steps << level for level, steps in enumerate(self.compactions))

    @property
    def exact(self) -> bool:
        """Whether every number is still known."""
        return not self.rank_error

    def rank(self, number: float) -> int:
        """How many numbers are ≤ `number`, give or take `rank_error`."""
        return int(self.weights[: np.searchsorted(self.values, number, side="right")].sum())

    def quantiles(self, shares: Sequence[float] | np.ndarray) -> np.ndarray:
        """For each share in [0, 1] the least number that so many are ≤ to, float64: one of the data, not between two.

        While `exact` it is numpy.quantile's `inverted_cdf`; 0 and 1 give the least and the largest number always.
        NaN where there are no numbers.
        """
        shares = np.asarray(shares, np.float64)
        assert ((shares >= 0) & (shares <= 1)).all(), "shares lie in [0, 1]"
        if not self.count:
            return np.full(shares.shape, np.nan)
        ranks = np.cumsum(self.weights)
        places = np.searchsorted(ranks, shares * ranks[-1], side="left").clip(max=len(ranks) - 1)
        inner = np.where(shares == 1, self.high, self.values[places])
        return np.asarray(np.where(shares == 0, self.low, inner))

    def edges(self, intervals: int) -> np.ndarray:
        """Numbers that cut the data into `intervals` parts of like size, float64, rising: a number on an edge goes up.

        Equal numbers stay together: where edges coincide or no number lies below one there are fewer; a column of one
        value has none.
        """
        assert intervals >= 2, "one interval has no edges"
        ranks = np.cumsum(self.weights)
        wanted = np.arange(1, intervals, dtype=np.int64) * self.count
        places = np.searchsorted(ranks * intervals, wanted, side="right")
        found = np.unique(self.values[places[places < len(self.values)]])
        return np.asarray(found[found > self.low])

    def mapped(self, rising: Callable[[np.ndarray], np.ndarray]) -> QuantileSketch:
        """The summary of the numbers after a function [n] to [n] that never falls; equal results count together."""
        if not self.count:
            return self
        values, places = np.unique(rising(self.values) + 0.0, return_inverse=True)
        weights = np.zeros(len(values), np.int64)
        np.add.at(weights, places, self.weights)
        low, high = (rising(np.array([self.low, self.high])) + 0.0).tolist()
        return QuantileSketch(values.astype(np.float64), weights, low, high, self.compactions)

    def to_plain(self) -> dict[str, Any]:
        """Plain data that travels as JSON, arrays as base64 of little-endian bytes; bit by bit."""
        return {
            "values": packed(self.values, "<f8"),
            "weights": packed(self.weights, "<i8"),
            "ends": packed(np.array([self.low, self.high]), "<f8"),
            "compactions": list(self.compactions),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> QuantileSketch:
        """What `to_plain` described."""
        low, high = unpacked(plain["ends"], "<f8").tolist()
        values, weights = unpacked(plain["values"], "<f8"), unpacked(plain["weights"], "<i8")
        return cls(values, weights, low, high, tuple(plain["compactions"]))


def _bounded(
    values: np.ndarray, weights: np.ndarray, low: float, high: float, compactions: tuple[int, ...]
) -> QuantileSketch:
    """A sketch of distinct, rising values (weights may be changed in place), thinned if they are too many."""
    if len(values) <= MOST_EXACT:
        return QuantileSketch(values, weights, low, high, compactions)
    steps, level = list(compactions), 0
    while (weights >> level).any():
        if level == len(steps):
            steps.append(0)
        sharing = np.flatnonzero((weights >> level) & 1)
        if len(sharing) > LEVEL_VALUES:
            pairs = sharing[: len(sharing) // 2 * 2]
            weights[pairs] -= 1 << level
            weights[pairs[(steps[level] + level) % 2 :: 2]] += 2 << level
            steps[level] += 1
        level += 1
    kept = weights > 0
    return QuantileSketch(values[kept], weights[kept], low, high, tuple(steps))


def _long(sketch: QuantileSketch, levels: int) -> list[int]:
    return [*sketch.compactions, *[0] * (levels - len(sketch.compactions))]


def packed(array: np.ndarray, kind: str) -> str:
    """An array as base64 of bytes of a numpy type such as "<u8", to travel as JSON."""
    return base64.b64encode(array.astype(kind).tobytes()).decode()


def unpacked(text: str, kind: str) -> np.ndarray:
    """The array of `packed`, in the machine's own byte order."""
    return np.frombuffer(base64.b64decode(text), kind).astype(kind[1:])
