"""What one fragment tells of a column: moments and quantiles of its numbers or counts of its values, to be merged.

Entries are the steps of a sequence column or the rows of a context column. Statistics merge in fragment order, so
that any number of workers gives the same bits (design: one pass, float64). Knows no torch, no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from model.columns import Key, Leaf, Numeric, Vocabulary
from model.errors import ConfigError, DataError
from model.features.quantile_sketch import QuantileSketch
from model.registry import registered_normalizer
from model.tables import compute as pc
from model.tables.arrow_lists import Array, fixed_values, is_list, is_whole, numbers, owner, unnest
from model.tables.keys import key_values


@dataclass
class ColumnStats:
    """Mergeable statistics of one source: moments of its numbers, or counts of its values.

    `entries` counts the steps or rows, `filled` the values in them that are not null, which `count` does for each
    component of numbers. `sketches` hold each component's distribution where quantiles are to be learned.
    """

    count: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    keys: Counter[Key] = field(default_factory=Counter)
    several: bool = False  # categorical entries are lists of values
    integers: bool = False  # categorical values are integers
    entries: int = 0
    filled: int = 0
    sketches: tuple[QuantileSketch, ...] = ()

    def merge(self, other: ColumnStats) -> ColumnStats:
        """Statistics of both parts (Chan's update of mean and squared deviations); not in place.

        DataError when entries of one part hold more values than those of the other.
        """
        kind = (
            self.keys + other.keys,
            self.several or other.several,
            self.integers or other.integers,
            self.entries + other.entries,
            self.filled + other.filled,
        )
        if not self.count.any() or not other.count.any():
            part = max(self, other, key=lambda stats: (stats.count.any(), len(stats.count)))
            return ColumnStats(part.count, part.mean, part.squares, part.low, part.high, *kind, part.sketches)
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
            tuple(mine.merge(theirs) for mine, theirs in zip(self.sketches, other.sketches, strict=True)),
        )

    def to_plain(self) -> dict[str, Any]:
        """Plain data that travels as JSON; floats come back bit by bit."""
        moments = {name: getattr(self, name).tolist() for name in _MOMENTS}
        plain = {name: getattr(self, name) for name in _PLAIN}
        sketches = [sketch.to_plain() for sketch in self.sketches]
        return {**moments, **plain, "keys": list(self.keys.items()), "sketches": sketches}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ColumnStats:
        """What `to_plain` described."""
        moments: dict[str, Any] = {name: np.array(plain[name], np.float64) for name in _MOMENTS}
        return cls(
            **moments,
            **{name: plain[name] for name in _PLAIN},
            keys=Counter[Key](dict(plain["keys"])),
            sketches=tuple(map(QuantileSketch.from_plain, plain["sketches"])),
        )


MOST_KEYS = 5_000_000  # distinct values that are counted: a gigabyte or so, and an embedding nobody wants larger
_MOMENTS = ("count", "mean", "squares", "low", "high")
_PLAIN = ("several", "integers", "entries", "filled")


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


def key_stats(values: Array, name: str, among: tuple[Key, ...] | None = None) -> ColumnStats:
    """Counts of the distinct strings or integers (`among`: of these alone) of a flat array; nulls are not counted.

    DataError where they are more than MOST_KEYS.
    """
    counted = pc.value_counts(values)
    try:
        counted.validate(full=True)
    except pa.ArrowInvalid as error:  # Parquet files of some writers hold any bytes as strings
        raise DataError("must hold strings in UTF-8, but one is not", column=name) from error
    if among is not None:
        known = pa.array(among, pa.int64() if isinstance(among[0], int) else pa.string())
        if known.type != values.type:
            return ColumnStats()
        counted = counted.filter(pc.is_in(counted.field("values"), value_set=known))
    refuse_too_many(len(counted), name)
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return ColumnStats(keys=Counter({key: count for key, count in pairs if key is not None}))


def refuse_too_many(distinct: int, name: str | None = None) -> None:
    """DataError where more values would have to be counted than there is room for."""
    if distinct > MOST_KEYS:
        raise DataError(
            f"holds more than {MOST_KEYS:,} distinct values, too many to learn keys from; declare it as hash_bucket, "
            f"or give the keys that matter in a vocabulary's `file`",
            column=name,
        )


# Entries to numbers or keys ---------------------------------------------------------------------------------


def matrix_of(
    entries: Array, name: str, width: int | None = None, values_of: Callable[[Array, str], np.ndarray] = numbers
) -> np.ndarray:
    """Numeric entries as [n, D]: primitives give D = 1, lists their common length; null gives NaN.

    Float64, or what `values_of` makes of flat values.

    Raises DataError when an entry does not hold `width` values (None: as many as the longest); its row is the
    entry's index.
    """
    if pa.types.is_null(entries.type):
        return np.full((len(entries), width or 1), np.nan)
    if not is_list(entries.type) and width in (None, 1):
        return values_of(entries, name)[:, None]
    if is_whole(entries) and width in (None, entries.type.list_size):
        return values_of(fixed_values(entries), name).reshape(len(entries), entries.type.list_size)
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
    flat = values_of(values, name)
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
    try:
        return key_values(entries, name), offsets
    except DataError as error:
        if error.row is None or offsets is None:
            raise
        raise DataError(error.problem, row=owner(offsets, error.row), column=name) from error.__cause__


def stats_of(source: Leaf, entries: Array, *, quantiles: bool = False) -> ColumnStats:
    """Statistics of one fragment's entries; values are counted only where keys are to be learned or are declared.

    With `quantiles` a number's distribution is summarised, after its normalizer if that is a registered function.
    """
    if isinstance(source, Numeric):
        matrix = _clean(matrix_of(entries, source.name), source.name)
        stats = replace(numeric_stats(matrix), entries=len(matrix))
        if not quantiles:
            return stats
        named = matrix if source.function is None else applied(source.function, source.name, matrix)
        return replace(stats, sketches=tuple(QuantileSketch.of(component) for component in named.T))
    keys, offsets = keys_of(entries, source.name)  # checks the type, too
    stats = ColumnStats()
    if isinstance(source, Vocabulary) and source.file is None:
        stats = key_stats(keys, source.name, among=source.keys)
    filled = len(keys) - keys.null_count
    return replace(
        stats,
        several=offsets is not None,
        integers=pa.types.is_int64(keys.type) and filled > 0,
        entries=len(entries),
        filled=filled,
    )


def applied(function: str, column: str, matrix: np.ndarray) -> np.ndarray:
    """A registered normalizer's results for a float64 matrix [n, D]; ConfigError where they have another shape."""
    normalizer = registered_normalizer(function)
    assert normalizer is not None, "built-in normalizers are fields, not functions"
    found: np.ndarray = np.asarray(normalizer(matrix), np.float64)
    if found.shape != matrix.shape:
        raise ConfigError(
            f"column {column!r}: normalizer {function!r} must return an array of shape {matrix.shape}, as it was "
            f"given, but returned {found.shape}"
        )
    return np.where(np.isfinite(matrix), found, matrix)  # what is missing or bad stays so


def _clean(matrix: np.ndarray, name: str) -> np.ndarray:
    bad = np.abs(matrix) > np.finfo(np.float32).max
    if bad.any():
        raise DataError(
            f"must be finite numbers within float32's range, but an entry is {matrix[bad][0]}",
            row=int(np.argmax(bad.any(1))),
            column=name,
        )
    return matrix
