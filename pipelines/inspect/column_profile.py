"""What one row group tells of a column: types, what is missing, numbers, distinct values; made to be merged.

A column holds *rows*; a list column's rows hold *steps*; a step may hold several *values*. A column without lists has
one step a row and one value a step. Profiles merge in (file, row group) order, so that any number of workers gives
the same bits. Runs in data tasks: knows no torch, no Ray, no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from model.features.quantile_sketch import QuantileSketch
from model.features.stats import ColumnStats, numeric_stats
from model.tables import compute as pc
from model.tables.arrow_lists import Array, is_list, numbers, owner, plain, unnest
from model.tables.keys import is_bytes
from pipelines.inspect.sketches import Coded, Distinct, TopValues

NARROWEST, WIDEST = "narrowest", "widest"  # places of a row with the fewest, the most values in a step
MOST_PLACES = 5  # rows that are named as examples of a fault
MOST_WIDTH = 1 << 12  # values a step whose means are kept one by one
FLOAT32_MAX = float(np.finfo(np.float32).max)

NUMBER, TIME, BOOLEAN, STRING, NOTHING, OTHER = "number", "time", "boolean", "string", "nothing", "other"
COUNTS = (
    "rows",
    "null_rows",
    "empty_rows",
    "steps",
    "null_steps",
    "empty_steps",
    "values",
    "null_values",
    "known_values",
    "nan",
    "infinite",
    "beyond_float32",
    "zeros",
    "negatives",
    "fractions",
    "not_utf8",
)


@dataclass(frozen=True)
class Places:
    """The first few rows (0-based in their file) that show a fault, as (file, row)."""

    found: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Places) -> Places:
        return Places((self.found + other.found)[:MOST_PLACES])


@dataclass(frozen=True, eq=False)
class ColumnProfile:
    """Mergeable facts of one column. `counts` has the names of COUNTS; without lists its steps are its rows.

    `depth` is how many lists are nested, `kinds` what the values are, `types` how many rows have each Arrow type.
    `widths` are the least and the most values a step; `characters` those of a string.
    """

    types: Mapping[str, int]
    depth: int
    kinds: frozenset[str]
    counts: Counter[str] = field(default_factory=Counter)
    fixed: bool = False  # the rows are fixed-size lists
    integers: bool = False  # all numbers are of integer types
    widths: tuple[int, int] | None = None
    characters: tuple[int, int] | None = None
    distinct: Distinct = field(default_factory=Distinct)
    top: TopValues = field(default_factory=TopValues)
    quantiles: QuantileSketch = field(default_factory=QuantileSketch)
    moments: ColumnStats = field(default_factory=ColumnStats)
    places: Mapping[str, Places] = field(default_factory=dict)

    def merge(self, other: ColumnProfile) -> ColumnProfile:
        """Of the rows of both, which stand in this order; not in place."""
        types = Counter(self.types)
        types.update(other.types)
        kinds = self.kinds | other.kinds
        return ColumnProfile(
            types=dict(types),
            depth=max(self.depth, other.depth),
            kinds=kinds - {NOTHING} or kinds,
            counts=self.counts + other.counts,
            fixed=all(part.fixed for part in (self, other) if part.told),
            integers=all(part.integers for part in (self, other) if part.told),
            widths=span(self.widths, other.widths),
            characters=span(self.characters, other.characters),
            distinct=self.distinct.merge(other.distinct),
            top=self.top.merge(other.top),
            quantiles=self.quantiles.merge(other.quantiles),
            moments=_merged_moments(self.moments, other.moments),
            places=self._merged_places(other),
        )

    def _merged_places(self, other: ColumnProfile) -> dict[str, Places]:
        names = dict.fromkeys([*self.places, *other.places])
        merged = {name: self.places.get(name, Places()) + other.places.get(name, Places()) for name in names}
        if self.widths is not None and other.widths is not None:
            merged[NARROWEST] = (self if self.widths[0] <= other.widths[0] else other).places[NARROWEST]
            merged[WIDEST] = (self if self.widths[1] >= other.widths[1] else other).places[WIDEST]
        return merged

    @property
    def kind(self) -> str:
        """What the values are; OTHER where parts of the data disagree."""
        if self.kinds <= {NUMBER, BOOLEAN}:
            return NUMBER if NUMBER in self.kinds else BOOLEAN
        return next(iter(self.kinds)) if len(self.kinds) == 1 else OTHER

    @property
    def distinct_values(self) -> int:
        """How many distinct values there are, exactly or about; an estimate never exceeds the number of values."""
        return min(self.distinct.count, self.counts["known_values"])

    @property
    def whole(self) -> bool:
        """Whether all numbers are whole ones, of whatever type: 7, 7.0 and decimal 7 are one value."""
        if self.kind != NUMBER or not self.counts["known_values"]:
            return False
        return self.integers or not any(self.counts[fault] for fault in ("fractions", "nan", "infinite"))

    @property
    def dates(self) -> bool:
        """Whether the values are points in time, which count as seconds since 1970."""
        return self.kind == TIME and all("timestamp" in kind or "date" in kind for kind in self.types)

    @property
    def told(self) -> bool:
        """Whether the part says anything of the type; one of nulls alone may have any."""
        return self.kinds != {NOTHING}

    @property
    def missing(self) -> int:
        """Rows, steps and values that are null."""
        return self.counts["null_rows"] + self.counts["null_steps"] + self.counts["null_values"]

    @property
    def missing_inside(self) -> int:
        """Nulls that stand for a missing value; a null list of steps is an empty one."""
        lists = self.depth > 0 and not (self.fixed and self.depth == 1)
        return self.missing - (self.counts["null_rows"] if lists else 0)

    def to_plain(self) -> dict[str, Any]:
        """Plain data that travels as JSON; floats come back bit by bit."""
        return {
            "types": dict(self.types),
            "depth": self.depth,
            "kinds": sorted(self.kinds),
            "counts": dict(self.counts),
            "fixed": self.fixed,
            "integers": self.integers,
            "widths": self.widths,
            "characters": self.characters,
            "distinct": self.distinct.to_plain(),
            "top": self.top.to_plain(),
            "quantiles": self.quantiles.to_plain(),
            "moments": self.moments.to_plain(),
            "places": {name: list(places.found) for name, places in self.places.items()},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ColumnProfile:
        """What `to_plain` described."""
        return cls(
            types=plain["types"],
            depth=plain["depth"],
            kinds=frozenset(plain["kinds"]),
            counts=Counter(plain["counts"]),
            fixed=plain["fixed"],
            integers=plain["integers"],
            widths=None if plain["widths"] is None else tuple(plain["widths"]),
            characters=None if plain["characters"] is None else tuple(plain["characters"]),
            distinct=Distinct.from_plain(plain["distinct"]),
            top=TopValues.from_plain(plain["top"]),
            quantiles=QuantileSketch.from_plain(plain["quantiles"]),
            moments=ColumnStats.from_plain(plain["moments"]),
            places={name: Places(tuple((file, row) for file, row in told)) for name, told in plain["places"].items()},
        )


def span(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    """The least and the most of both."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])


def _merged_moments(one: ColumnStats, other: ColumnStats) -> ColumnStats:
    """Empty where the parts hold different numbers of values a step: `widths` tells it."""
    if one.count.any() and other.count.any() and len(one.count) != len(other.count):
        return ColumnStats()
    return one.merge(other)


# One array ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Unnested:
    """A column's values without lists: `step_offsets` bound the values of a step, `row_offsets` the steps of a row.

    None where there is no list at that level.
    """

    depth: int
    values: Array
    row_offsets: np.ndarray | None
    step_offsets: np.ndarray | None

    def row_of(self, value: int) -> int:
        """The row that holds a value."""
        step = value if self.step_offsets is None else owner(self.step_offsets, value)
        return step if self.row_offsets is None else owner(self.row_offsets, step)


def unnested(array: Array, name: str) -> Unnested:
    """Takes up to two levels of lists off; a scalar list of fixed size is one step of several values."""
    if not is_list(array.type):
        return Unnested(0, array, None, None)
    fixed = pa.types.is_fixed_size_list(array.type)
    values, offsets = unnest(array, name)
    if fixed and not is_list(values.type):
        return Unnested(1, values, None, offsets)
    if not is_list(values.type):
        return Unnested(1, values, offsets, None)
    inner, step_offsets = unnest(values, name)
    return Unnested(2, inner, offsets, step_offsets)


def profile_column(array: Array, name: str, file: str, rows: np.ndarray) -> tuple[ColumnProfile, Coded | None]:
    """The profile of one column of a row group, and its values by code (None where they cannot be read).

    `rows` are the numbers of its rows in `file`.
    """
    declared = type_text(array.type)
    array = plain(array)
    parts = unnested(array, name)
    if is_bytes(parts.values.type):  # text, as every command reads it; what is no UTF-8 is told below
        parts = replace(parts, values=parts.values.cast(pa.binary()).view(pa.string()))
    counts = Counter(rows=len(array), null_rows=array.null_count) + _list_counts(array, parts, name)
    counts["values"], counts["null_values"] = len(parts.values), parts.values.null_count
    counts["known_values"] = counts["values"] - counts["null_values"]
    if not parts.depth:  # the rows are the values
        counts["null_values"] = 0
    counts = +counts  # as a merge leaves them: no zeros
    profile = ColumnProfile(
        types={declared: len(array)},
        depth=parts.depth,
        kinds=frozenset({_kind(parts.values.type)}),
        counts=counts,
        fixed=pa.types.is_fixed_size_list(array.type),
        integers=_integers(parts.values.type),
        places=_null_places(parts, file, rows),
    )
    widths, places = _widths(parts, array, file, rows)
    profile = replace(profile, widths=widths, places={**profile.places, **places})
    if profile.kind == OTHER:
        return profile, None
    try:
        parts.values.validate(full=True)
    except pa.ArrowInvalid:  # Parquet files of some writers hold any bytes as strings
        return replace(profile, kinds=frozenset({OTHER}), counts=counts + Counter(not_utf8=1)), None
    coded = Coded.of(parts.values)
    profile = replace(profile, distinct=Distinct.of(coded.hashes), top=TopValues.of(coded))
    if profile.kind == STRING:
        return replace(profile, characters=_characters(coded)), coded
    if profile.kind == NOTHING:
        return profile, coded
    return _with_numbers(profile, parts, name, file, rows), coded


def type_text(kind: pa.DataType) -> str:
    """An Arrow type as people write it, without the names of list items."""
    if pa.types.is_fixed_size_list(kind):
        return f"fixed_size_list<{type_text(kind.value_type)}>[{kind.list_size}]"
    if is_list(kind):
        return f"{'large_list' if pa.types.is_large_list(kind) else 'list'}<{type_text(kind.value_type)}>"
    return str(kind)


def _list_counts(array: Array, parts: Unnested, name: str) -> Counter[str]:
    """Steps, and how many rows and steps are empty or null."""
    if parts.row_offsets is None:
        return Counter(steps=len(array))
    lengths = np.diff(parts.row_offsets)
    counts = Counter(steps=int(lengths.sum()), empty_rows=int((lengths == 0).sum()) - array.null_count)
    if parts.step_offsets is not None:
        steps = unnest(array, name).values
        counts["null_steps"] = steps.null_count
        counts["empty_steps"] = int((np.diff(parts.step_offsets) == 0).sum()) - steps.null_count
    return counts


def _null_places(parts: Unnested, file: str, rows: np.ndarray) -> dict[str, Places]:
    if not parts.depth or not parts.values.null_count:
        return {}
    where = parts.values.is_null().to_numpy(zero_copy_only=False)
    return {"null": _places(parts, where, file, rows)}


def _widths(
    parts: Unnested, array: Array, file: str, rows: np.ndarray
) -> tuple[tuple[int, int] | None, dict[str, Places]]:
    """The least and the most values a step that is not null, and a row with each; None without lists a step."""
    if parts.step_offsets is None:
        return None, {}
    widths, steps = np.diff(parts.step_offsets), np.arange(len(parts.step_offsets) - 1)
    holders = array if parts.row_offsets is None else unnest(array, "").values
    if holders.null_count:
        steps = steps[holders.is_valid().to_numpy(zero_copy_only=False)]
    if not len(steps):
        return None, {}
    ends = [steps[find(widths[steps])] for find in (np.argmin, np.argmax)]
    starts = np.arange(len(array) + 1) if parts.row_offsets is None else parts.row_offsets
    at = [int(rows[np.searchsorted(starts, step, side="right") - 1]) for step in ends]
    places = {name: Places(((file, row),)) for name, row in zip((NARROWEST, WIDEST), at, strict=True)}
    return (int(widths[ends[0]]), int(widths[ends[1]])), places


def _integers(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0))


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_null(kind):
        return NOTHING
    if pa.types.is_boolean(kind):
        return BOOLEAN
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return NUMBER
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return TIME
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return STRING
    return OTHER


def _characters(coded: Coded) -> tuple[int, int] | None:
    lengths = pc.utf8_length(coded.values).to_numpy(zero_copy_only=False)
    return (int(lengths.min()), int(lengths.max())) if len(lengths) else None


# Numbers --------------------------------------------------------------------------------------------------------


def _with_numbers(profile: ColumnProfile, parts: Unnested, name: str, file: str, rows: np.ndarray) -> ColumnProfile:
    values = numbers(parts.values, name)
    null = parts.values.is_null().to_numpy(zero_copy_only=False)
    faults = {
        "nan": np.isnan(values) & ~null,
        "infinite": np.isinf(values),
        "beyond_float32": np.isfinite(values) & (np.abs(values) > FLOAT32_MAX),
    }
    finite = np.where(np.isfinite(values), values, np.nan)
    counts = Counter({kind: int(where.sum()) for kind, where in faults.items()})
    counts["zeros"] = int((finite == 0).sum())
    counts["negatives"] = int((finite < 0).sum())
    counts["fractions"] = int((np.floor(finite) != finite).sum() - np.isnan(finite).sum())
    places = {kind: _places(parts, where, file, rows) for kind, where in faults.items() if where.any()}
    return replace(
        profile,
        counts=profile.counts + counts,
        quantiles=QuantileSketch.of(finite),
        moments=_moments(np.where(faults["beyond_float32"], np.nan, finite), parts.step_offsets),
        places={**profile.places, **places},
    )


def _places(parts: Unnested, where: np.ndarray, file: str, rows: np.ndarray) -> Places:
    """The first few rows that hold a marked value."""
    found = dict.fromkeys(parts.row_of(int(value)) for value in np.flatnonzero(where)[: MOST_PLACES * 100])
    return Places(tuple((file, int(rows[row])) for row in list(found)[:MOST_PLACES]))


def _moments(finite: np.ndarray, step_offsets: np.ndarray | None) -> ColumnStats:
    """Mean and deviation of each value of a step; of all values together where the steps hold different numbers."""
    if step_offsets is None:
        return numeric_stats(finite[:, None])
    widths = np.unique(np.diff(step_offsets))
    widths = widths[widths > 0]
    if len(widths) != 1 or widths[0] > MOST_WIDTH:
        return ColumnStats()
    return numeric_stats(finite.reshape(-1, widths[0]))


def row_lengths(array: Array, name: str) -> np.ndarray | None:
    """Steps of each row, int64; None for a column whose rows are no lists of steps."""
    offsets = unnested(plain(array), name).row_offsets
    return None if offsets is None else np.diff(offsets)
