"""Bounded, mergeable summaries of values: how many distinct ones there are, and which stand most often.

Neither depends on chance: values are hashed by fixed functions, ties break by value, and a merge depends on its two
parts alone. Runs in data tasks: knows no torch, no Ray, no files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from model.features.hashing import fingerprint, fingerprints
from model.features.quantile_sketch import packed, unpacked
from model.tables import compute as pc
from model.tables.arrow_lists import Array

MOST_DISTINCT = 1 << 12  # distinct values that are counted exactly
MOST_TOP = 1 << 10  # values whose counts are kept
MOST_CHARACTERS = 80  # of a value that is kept for people to read
EXACT_INTEGER = 1 << 53  # up to here every integer is a float64

Value = str | int | float | bool


@dataclass(frozen=True)
class Coded:
    """An array's distinct values, and for each entry the number of its value; −1 is null."""

    values: Array
    codes: np.ndarray = field(repr=False)
    hashes: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, array: Array) -> Coded:
        """From a flat array of strings, numbers, times or booleans."""
        if pa.types.is_null(array.type):
            return cls(pa.array([], pa.string()), np.full(len(array), -1), np.zeros(0, np.uint64))
        coded = pc.dictionary_encode(array)
        codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
        return cls(coded.dictionary, codes, hashes_of(coded.dictionary))

    @property
    def counts(self) -> np.ndarray:
        """How often each distinct value stands, int64."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))

    def entry_hashes(self) -> np.ndarray:
        """The hash of each entry, uint64; 0 for null."""
        found: np.ndarray = np.append(self.hashes, np.uint64(0))[self.codes]
        return found


def hashes_of(values: Array) -> np.ndarray:
    """uint64 hashes of a flat array without nulls; equal numbers of different types hash alike."""
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _hash_floats(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = values.cast(pa.uint8()) if pa.types.is_boolean(kind) else values
        whole = values.to_numpy(zero_copy_only=False)
        large = (whole > EXACT_INTEGER) | (whole < -EXACT_INTEGER)
        hashed = _hash_floats(whole.astype(np.float64))
        return np.where(large, mixed(whole.astype(np.uint64) ^ np.uint64(0xA5A5)), hashed)
    if pa.types.is_temporal(kind):
        return hashes_of(values.cast(pa.int64() if kind.bit_width == 64 else pa.int32()))
    return fingerprints(values.cast(pa.string()))


def _hash_floats(numbers: np.ndarray) -> np.ndarray:
    return mixed((numbers + 0.0).view(np.uint64))  # −0 is 0


def mixed(words: np.ndarray) -> np.ndarray:
    """uint64 words scattered over all 64 bits (the finalizer of SplitMix64)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: np.ndarray = words ^ (words >> np.uint64(31))
    return found


@dataclass(frozen=True, eq=False)
class Distinct:
    """The MOST_DISTINCT smallest hashes of the values seen: their number while there are no more, else an estimate.

    k smallest of uniform hashes estimate (k − 1) / (the k-th smallest), with a relative standard error of
    1 / √(k − 2): 1.6 % (Bar-Yossef et al. 2002, Beyer et al. 2007).
    """

    smallest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)

    @classmethod
    def of(cls, hashes: np.ndarray) -> Distinct:
        """From the hashes of (distinct) values, uint64."""
        if len(hashes) > 2 * MOST_DISTINCT:  # what follows sorts
            most = min(len(hashes) - 1, 2 * MOST_DISTINCT)
            few = np.unique(np.partition(hashes, most)[:most])
            if len(few) >= MOST_DISTINCT:
                return cls(few[:MOST_DISTINCT])
        return cls(np.unique(hashes)[:MOST_DISTINCT])

    def merge(self, other: Distinct) -> Distinct:
        """Of the values of both."""
        return Distinct.of(np.concatenate([self.smallest, other.smallest]))

    @property
    def exact(self) -> bool:
        """Whether `count` is no estimate."""
        return len(self.smallest) < MOST_DISTINCT

    @property
    def count(self) -> int:
        """How many distinct values there are, exactly or about."""
        if self.exact:
            return len(self.smallest)
        return round((MOST_DISTINCT - 1) * 2**64 / (float(self.smallest[-1]) + 1))

    def to_plain(self) -> str:
        """Text that travels as JSON."""
        return packed(self.smallest, "<u8")

    @classmethod
    def from_plain(cls, plain: str) -> Distinct:
        """What `to_plain` gave."""
        return cls(unpacked(plain, "<u8"))


@dataclass(frozen=True)
class TopValues:
    """Counts of the values that stand most often: each is too small by at most `error`, which is 0 while all fit.

    A Misra-Gries summary with the merge of Agarwal et al. (2012): beyond MOST_TOP values the largest count that does
    not fit is taken off all of them, so that `error` is at most (entries / MOST_TOP).
    """

    counts: Mapping[Value, int] = field(default_factory=dict)
    error: int = 0

    @classmethod
    def of(cls, coded: Coded) -> TopValues:
        """From the distinct values of one array."""
        counts = coded.counts
        if len(counts) <= MOST_TOP:
            return cls(dict(zip(readable(coded.values), counts.tolist(), strict=True)))
        threshold = int(np.partition(counts, len(counts) - MOST_TOP - 1)[len(counts) - MOST_TOP - 1])
        kept = np.flatnonzero(counts > threshold)
        values = readable(coded.values.take(pa.array(kept)))
        return cls(dict(zip(values, (counts[kept] - threshold).tolist(), strict=True)), threshold)

    def merge(self, other: TopValues) -> TopValues:
        """Of the entries of both."""
        counts = dict(self.counts)
        for value, count in other.counts.items():
            counts[value] = counts.get(value, 0) + count
        error = self.error + other.error
        if len(counts) <= MOST_TOP:
            return TopValues(counts, error)
        threshold = sorted(counts.values(), reverse=True)[MOST_TOP]
        kept = {value: count - threshold for value, count in counts.items() if count > threshold}
        return TopValues(kept, error + threshold)

    def most(self, number: int) -> list[tuple[Value, int]]:
        """The values that stand most often, with their counts; ties by value."""
        ranked = sorted(self.counts.items(), key=lambda pair: (-pair[1], *value_order(pair[0])))
        return ranked[:number]

    def to_plain(self) -> list[Any]:
        """Plain data that travels as JSON."""
        return [list(self.counts.items()), self.error]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> TopValues:
        """What `to_plain` gave."""
        return cls(dict(plain[0]), plain[1])


def value_order(value: Value) -> tuple[bool, float, str]:
    """Sorts numbers by size before strings by their text."""
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")


def readable(values: Array) -> list[Value]:
    """Values for people and JSON: long texts are cut and marked by their hash, so that they stay apart."""
    kind = values.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return list(values.to_pylist())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = values.cast(pa.float64(), safe=False).to_pylist()
        return [number if math.isfinite(number) else str(number) for number in numbers]
    texts = values.cast(pa.string()).to_pylist()
    if pa.types.is_temporal(kind):
        texts = [re.sub(r"( 00:00:00)?(\.0+)?(?=Z?$)", "", text) for text in texts]
    return [_short(text) for text in texts]


def _short(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[: MOST_CHARACTERS - 12]}… #{fingerprint(text) % 16**8:08x}"
