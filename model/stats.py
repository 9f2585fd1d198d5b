"""What one fragment tells of a column: moments of its numbers or counts of its values, made to be merged.

Entries are the steps of a sequence column or the rows of a context column. Statistics merge in fragment order, so
that any number of workers gives the same bits (design: one pass, float64). Knows no torch, no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from model import compute as pc
from model.arrow_lists import Array, is_list, numbers, owner, unnest
from model.columns import Key, Leaf, Numeric, Vocabulary
from model.errors import DataError


@dataclass
class ColumnStats:
    """Mergeable statistics of one source: moments of its numbers, or counts of its values."""

    count: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    keys: Counter[Key] = field(default_factory=Counter)
    several: bool = False  # categorical entries are lists of values
    integers: bool = False  # categorical values are integers

    def merge(self, other: ColumnStats) -> ColumnStats:
        """Statistics of both parts (Chan's update of mean and squared deviations); not in place.

        DataError when entries of one part hold more values than those of the other.
        """
        kind = (self.keys + other.keys, self.several or other.several, self.integers or other.integers)
        if not self.count.any() or not other.count.any():
            part = max(self, other, key=lambda stats: (stats.count.any(), len(stats.count)))
            return ColumnStats(part.count, part.mean, part.squares, part.low, part.high, *kind)
        if len(self.count) != len(other.count):
            raise DataError(
                f"every entry must hold as many values, but some hold {len(self.count)} and others {len(other.count)}"
            )
        count = self.count + other.count
        delta = other.mean - self.mean
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        return ColumnStats(
            count,
            self.mean + delta * share,
            self.squares + other.squares + delta**2 * self.count * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            *kind,
        )

    def to_plain(self) -> dict[str, Any]:
        """Plain data that travels as JSON; floats come back bit by bit."""
        moments = {name: getattr(self, name).tolist() for name in _MOMENTS}
        return {**moments, "keys": list(self.keys.items()), "several": self.several, "integers": self.integers}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ColumnStats:
        """What `to_plain` described."""
        moments = {name: np.array(plain[name], np.float64) for name in _MOMENTS}
        keys = Counter[Key](dict(plain["keys"]))
        return cls(**moments, keys=keys, several=plain["several"], integers=plain["integers"])


_MOMENTS = ("count", "mean", "squares", "low", "high")


def numeric_stats(matrix: np.ndarray) -> ColumnStats:
    """Moments of the columns of a float64 matrix [n, D]; NaN counts as missing."""
    valid = ~np.isnan(matrix)
    count = valid.sum(0).astype(np.float64)
    filled = np.where(valid, matrix, 0.0)
    mean = np.divide(filled.sum(0), count, out=np.zeros_like(count), where=count > 0)
    deviation = np.where(valid, matrix - mean, 0.0)
    low = np.where(valid, matrix, np.inf).min(0, initial=np.inf)
    high = np.where(valid, matrix, -np.inf).max(0, initial=-np.inf)
    return ColumnStats(count, mean, (deviation**2).sum(0), low, high)


def key_stats(values: Array, name: str) -> ColumnStats:
    """Counts of the distinct strings or integers of a flat array; nulls are not counted."""
    counted = pc.value_counts(values)
    try:
        counted.validate(full=True)
    except pa.ArrowInvalid as error:  # Parquet files of some writers hold any bytes as strings
        raise DataError("must hold strings in UTF-8, but one is not", column=name) from error
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return ColumnStats(keys=Counter({key: count for key, count in pairs if key is not None}))


# Entries to numbers or keys ---------------------------------------------------------------------------------


def matrix_of(entries: Array, name: str, width: int | None = None) -> np.ndarray:
    """Numeric entries as float64 [n, D]: primitives give D = 1, lists their common length; null gives NaN.

    Raises DataError when an entry does not hold `width` values (None: as many as the longest); its row is the
    entry's index.
    """
    if pa.types.is_null(entries.type):
        return np.full((len(entries), width or 1), np.nan)
    if not is_list(entries.type) and width in (None, 1):
        return numbers(entries, name)[:, None]
    if is_list(entries.type):
        values, offsets = unnest(entries, name)
    else:
        values, offsets = entries, np.arange(len(entries) + 1)
    lengths = np.diff(offsets)
    if width is None:
        width = entries.type.list_size if pa.types.is_fixed_size_list(entries.type) else int(lengths.max(initial=1))
    missing = (lengths == 0) & entries.is_null().to_numpy(zero_copy_only=False) if entries.null_count else None
    wrong = lengths != width if missing is None else (lengths != width) & ~missing
    if wrong.any():
        entry = int(np.argmax(wrong))
        raise DataError(
            f"every entry must hold {width} values, but this one holds {lengths[entry]}",
            row=entry,
            column=name,
        )
    flat = numbers(values, name)
    if missing is None:
        return flat.reshape(-1, width)
    matrix = np.full((len(entries), width), np.nan)
    matrix[~missing] = flat.reshape(-1, width)
    return matrix


def keys_of(entries: Array, name: str) -> tuple[Array, np.ndarray | None]:
    """Categorical entries as flat strings or int64 and, where entries are lists, their offsets."""
    offsets = None
    if is_list(entries.type):
        entries, offsets = unnest(entries, name)
    kind = entries.type
    if pa.types.is_string(kind) or pa.types.is_int64(kind):
        return entries, offsets
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return entries.cast(pa.string()), offsets
    if pa.types.is_uint64(kind):
        _refuse_beyond_int64(entries, offsets, name)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return (entries.cast(pa.int8()) if pa.types.is_boolean(kind) else entries).cast(pa.int64()), offsets
    raise DataError(f"must hold strings or integers, but its type is {kind}", column=name)


def _refuse_beyond_int64(values: Array, offsets: np.ndarray | None, name: str) -> None:
    beyond = pc.fill_null(pc.greater(values, pa.scalar(2**63 - 1, pa.uint64())), False)
    if pc.any(beyond).as_py():
        entry = pc.index(beyond, True).as_py()
        raise DataError(
            f"integers must be less than 2^63, but one is {values[entry]}; store them as strings",
            row=entry if offsets is None else owner(offsets, entry),
            column=name,
        )


def stats_of(source: Leaf, entries: Array) -> ColumnStats:
    """Statistics of one fragment's entries; values are counted only where keys are to be learned."""
    if isinstance(source, Numeric):
        return numeric_stats(_clean(matrix_of(entries, source.name), source.name))
    keys, offsets = keys_of(entries, source.name)  # checks the type, too
    stats = key_stats(keys, source.name) if isinstance(source, Vocabulary) and source.learned else ColumnStats()
    integers = pa.types.is_int64(keys.type) and keys.null_count < len(keys)
    return replace(stats, several=offsets is not None, integers=integers)


def _clean(matrix: np.ndarray, name: str) -> np.ndarray:
    bad = np.abs(matrix) > np.finfo(np.float32).max
    if bad.any():
        raise DataError(
            f"must be finite numbers within float32's range, but an entry is {matrix[bad][0]}",
            row=int(np.argmax(bad.any(1))),
            column=name,
        )
    return matrix
