"""The layout of a preparation: which column plays which part, with what type, and what the sequences look like.

It is read off the footers before anything is computed, so that a mistake is told at once. Knows no Ray; reads no rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from model.errors import ConfigError, DataError
from model.settings import did_you_mean
from model.tables import compute as pc
from model.tables.arrow_lists import is_list
from model.tables.prepared import Prepared, PreparedLabel
from pipelines.prepare.keys import key_type
from pipelines.prepare.settings import SPLITS, PrepareSettings, gap_number

INDEX = "sequence_index"
# Of the rows that a preparation leaves to the next one: the next `sequence_index` of the key (null in events), and
# whether the row stands in a sequence already, and is here for its time alone.
NEXT_INDEX, IS_WRITTEN = "_prepare_next_index", "_prepare_is_written"
LEFT = "_open"  # the directory of these rows, below the output
CARRIED = pa.schema([pa.field(NEXT_INDEX, pa.int64()), pa.field(IS_WRITTEN, pa.bool_())])
SECONDS_PER_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Layout:
    """`schema` holds the columns that are read. Gap and boundaries are numbers as `time_numbers` gives them."""

    schema: pa.Schema
    keys: tuple[str, ...]  # the entity; none for a single series
    times: tuple[str, ...]  # the time, and what orders events of one time
    sequence: tuple[str, ...]
    context: tuple[str, ...]
    candidates: tuple[str, ...]  # of `sequence`: what may turn out to be context
    label: str | None
    label_shift: int
    label_change: bool
    time_delta: str | None
    max_length: int | None
    gap: int | float | None
    boundaries: tuple[int | float, ...]
    for_scoring: bool
    ends: tuple[str, ...] = ()  # of `context`: what is known only at the end of a key's events
    continues: bool = False  # rows that an earlier preparation has left are read as well

    @property
    def time(self) -> str:
        """The column that says when."""
        return self.times[0]

    @property
    def read_schema(self) -> pa.Schema:
        """The columns of the rows that are sorted: the events', and `CARRIED` where this continues a preparation."""
        return pa.schema([*self.schema, *CARRIED]) if self.continues else self.schema

    @property
    def seconds_per_unit(self) -> float:
        """Seconds of one unit of the time column; 1 where it is a plain number."""
        return seconds_per_unit(self.schema.field(self.time).type)

    @property
    def label_name(self) -> str | None:
        """The label's column in the sequences: `NAME_next` or `NAME_change` where it looks ahead, for `NAME` stays an
        input."""
        return None if self.label is None else label_name(self.label, self.label_shift, change=self.label_change)

    def output_schema(self) -> pa.Schema:
        """The columns of a sequence, in order."""
        time = self.schema.field(self.time).type
        fields = [pa.field(key, self.schema.field(key).type) for key in self.keys] + [pa.field(INDEX, pa.int64())]
        fields += [pa.field(f"{self.time}_first", time), pa.field(f"{self.time}_last", time)]
        fields += [pa.field(name, self.schema.field(name).type) for name in self.context]
        fields += [pa.field(name, pa.list_(self.schema.field(name).type)) for name in self.sequence]
        if self.time_delta is not None:
            fields.append(pa.field(self.time_delta, pa.list_(pa.float64())))
        if self.label is not None:
            kind = pa.float64() if self.label_change else self.schema.field(self.label).type
            fields.append(pa.field(self.label_name, pa.list_(kind) if self.label_shift else kind))
        return pa.schema(fields)

    def with_context(self, names: Sequence[str], ends: Sequence[str]) -> Layout:
        """The layout after detection: `names` are context, the other candidates are sequence columns."""
        sequence = tuple(name for name in self.sequence if name not in names)
        return replace(self, sequence=sequence, context=(*self.context, *names), candidates=(), ends=tuple(ends))

    def prepared(self, split: int | None = None) -> Prepared:
        """What readers of the sequences, or of those of one part of a split, should know."""
        label = None
        if self.label is not None:
            assert self.label_name is not None
            label = PreparedLabel(
                column=self.label_name, source=self.label, shift=self.label_shift, change=self.label_change
            )
        return Prepared(
            key=self.keys,
            index=INDEX,
            time=self.times,
            gap_seconds=None if self.gap is None else self.gap * self.seconds_per_unit,
            label=label,
            known_at_end=(f"{self.time}_last", *self.ends),
            split=None if split is None else SPLITS[split],
            for_scoring=self.for_scoring,
        )


def label_name(label: str, shift: int, *, change: bool) -> str:
    """`NAME`; `NAME_next`, `NAME_next_2` …; `NAME_change`, `NAME_change_2` …"""
    ahead = f"{label}_change" if change else f"{label}_next"
    return label if not shift else ahead if shift == 1 else f"{ahead}_{shift}"


def columns_named(given: str | tuple[str, ...] | None, names: Sequence[str]) -> tuple[str, ...]:
    """The columns that `a` or `a,b` names; one of `names` that holds commas itself is meant by its very name."""
    if given is None or isinstance(given, tuple):
        return given or ()
    return (given,) if given in names else tuple(name.strip() for name in given.split(","))


def layout_of(
    schema: pa.Schema, settings: PrepareSettings, found: tuple[tuple[str, ...], tuple[str, ...]] | None = None
) -> Layout:
    """The layout of events with `schema`. ConfigError for names that are wrong or stand twice, DataError for types.

    `found` are the sequence and context columns of the preparation that this one continues.
    """
    keys, times = columns_named(settings.key, schema.names), columns_named(settings.time, schema.names)
    _check_names(schema, settings, keys, times)
    taken = {*keys, times[0], *settings.context}
    if settings.label is not None and not settings.label_shift:
        taken.add(settings.label)  # as an input, what is predicted would give itself away
    chosen, context = found or (settings.columns, settings.context)
    sequence = tuple(name for name in schema.names if name not in taken) if chosen is None else chosen
    if not sequence:
        raise ConfigError(
            "at least one column must be left for the sequences, but key, time, context and label are all"
        )
    read = [*keys, *times, *context, *sequence, *([settings.label] if settings.label else [])]
    used = pa.schema([_field(schema, name) for name in dict.fromkeys(read)])
    _check_types(used, settings, keys, times)
    detect = chosen is None and settings.detect_context
    label, time = settings.label, used.field(times[0]).type
    free = [name for name in sequence if name not in (label, *times)]
    layout = Layout(
        schema=used,
        keys=keys,
        times=times,
        sequence=sequence,
        context=context,
        candidates=tuple(name for name in free if detect and not is_list(used.field(name).type)),
        label=label,
        label_shift=settings.label_shift,
        label_change=settings.label_change,
        time_delta=settings.time_delta,
        max_length=settings.max_length,
        gap=gap_units(settings.gap, time, times[0]),
        boundaries=boundary_units(settings.split_by_time, time, times[0]),
        for_scoring=settings.for_scoring,
        continues=found is not None,
    )
    _check_output(layout)
    return layout


def _field(schema: pa.Schema, name: str) -> pa.Field:
    if name not in schema.names:
        raise DataError(
            f"stands in the sequences that are to be continued, but not in the events, which have "
            f"{', '.join(schema.names)}; bring it back, or prepare everything anew",
            column=name,
        )
    return schema.field(name)


def _check_names(schema: pa.Schema, settings: PrepareSettings, keys: tuple[str, ...], times: tuple[str, ...]) -> None:
    named = [*(("--key", name) for name in keys), *(("--time", name) for name in times)]
    named += [("--context", name) for name in settings.context]
    named += [("--columns", name) for name in settings.columns or ()]
    named += [("--label", settings.label)] if settings.label is not None else []
    for option, name in named:
        if name not in schema.names:
            raise ConfigError(
                f"{option} must name a column of the events, but {name!r} is none{did_you_mean(name, schema.names)}; "
                f"they have {', '.join(schema.names)}"
            )
    # With a shift the label is a later value, so its column may be an input as well; so may what orders equal times.
    parts = [each for each in named if not (each[0] == "--label" and settings.label_shift)]
    parts = [each for each in parts if each[0] != "--time" or each[1] == times[0]]
    for i, (option, name) in enumerate(parts):
        other = next((before for before, same in parts[:i] if same == name and not _may_share(before, option)), None)
        if other is not None:
            raise ConfigError(f"a column has one part, but {name!r} stands under {other} and {option}")


def _may_share(first: str, second: str) -> bool:
    """Time may be wanted as an input, too."""
    return first == "--time" and second == "--columns"


def _check_types(schema: pa.Schema, settings: PrepareSettings, keys: tuple[str, ...], times: tuple[str, ...]) -> None:
    for name in keys:
        if key_type(schema.field(name).type) is None:
            raise DataError(
                f"a key must hold texts, whole numbers, booleans or uuids, but its type is {schema.field(name).type}",
                column=name,
            )
    for name in times:
        kind = schema.field(name).type
        if not (is_moment(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            what = "the time" if name == times[0] else "what orders events of one time"
            raise DataError(
                f"{what} must be a timestamp, date, integer or float, but its type is {kind}; write it as one of these",
                column=name,
            )
    label = schema.field(settings.label).type if settings.label_change else pa.float64()
    if not (pa.types.is_integer(label) or pa.types.is_floating(label) or pa.types.is_decimal(label)):
        raise DataError(
            f"a label that tells a change must hold numbers, but its type is {label}", column=settings.label
        )
    for field in schema:
        if _holds_structs(field.type):
            raise DataError(
                f"must hold values or lists of them, but its type is {field.type}; name the columns to take "
                f"with --columns",
                column=field.name,
            )


def _holds_structs(kind: pa.DataType) -> bool:
    while is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_nested(kind))


def _check_output(layout: Layout) -> None:
    names = layout.output_schema().names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"the sequences would have two columns {twice!r}; rename that of the events, or choose other columns "
            f"with --columns or another name with --time-delta"
        )


# Time -------------------------------------------------------------------------------------------------------------


def is_moment(kind: pa.DataType) -> bool:
    """Whether a time is a point of the calendar rather than a plain number."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def seconds_per_unit(kind: pa.DataType) -> float:
    """Seconds of one unit of `time_numbers`; 1 for plain numbers."""
    if pa.types.is_timestamp(kind):
        return SECONDS_PER_UNIT[kind.unit]
    return DAY_SECONDS if pa.types.is_date32(kind) else 1e-3 if pa.types.is_date64(kind) else 1.0


def time_numbers(array: Any) -> np.ndarray:
    """Times without nulls as int64 (timestamps and dates in their unit, integers) or float64."""
    kind = array.type
    if pa.types.is_floating(kind):
        return np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if pa.types.is_date32(kind):
        array = array.cast(pa.int32())
    return np.asarray(array.cast(pa.int64()).to_numpy(zero_copy_only=False))


def gap_units(gap: str | float | None, kind: pa.DataType, column: str) -> int | float | None:
    """The session gap in units of the time column. ConfigError where a duration meets numbers, or the reverse."""
    if gap is None:
        return None
    number, in_seconds = gap_number(gap)
    if in_seconds != is_moment(kind):
        must = "a duration such as 30m" if is_moment(kind) else "a plain number"
        raise ConfigError(f"--gap must be {must}, because {column!r} is {kind}, but is {gap!r}")
    units = number / seconds_per_unit(kind)
    # Whole units compare exactly; a gap is a lower bound, so rounding down 1.5 days of whole days changes nothing.
    return units if pa.types.is_floating(kind) else int(units + 1e-9)


def boundary_units(moments: Sequence[str | float], kind: pa.DataType, column: str) -> tuple[int | float, ...]:
    """The beginnings of validation and test in units of the time column, rising. ConfigError for what is none."""
    found = tuple(_moment(moment, kind, column) for moment in moments)
    if any(after <= before for before, after in pairwise(found)):
        raise ConfigError(f"--split-by-time must rise, but is {', '.join(map(str, moments))}")
    return found


def _moment(moment: str | float, kind: pa.DataType, column: str) -> int | float:
    text = str(moment).strip()
    try:
        if not is_moment(kind):
            number = float(text)
            if not np.isfinite(number):
                raise ValueError(text)
            return number if pa.types.is_floating(kind) or not number.is_integer() else int(number)
        if pa.types.is_timestamp(kind) and kind.tz is not None and not _has_zone(text):
            text = f"{_with_time(text)}Z"  # UTC, as Arrow keeps it
        value = pc.cast(pa.array([_with_time(text)]), kind if pa.types.is_timestamp(kind) else pa.timestamp("ms"))
        return int(time_numbers(value.cast(kind))[0])
    except (ValueError, pa.ArrowInvalid) as error:
        must = "a moment such as 2018-01-01 or 2018-01-01T12:00:00" if is_moment(kind) else "a number"
        raise ConfigError(f"--split-by-time must be {must}, because {column!r} is {kind}, but is {moment!r}") from error


def _has_zone(text: str) -> bool:
    clock = text.partition("T")[2] or text.partition(" ")[2]
    return clock.endswith("Z") or "+" in clock or "-" in clock


def _with_time(text: str) -> str:
    return text if "T" in text or " " in text else f"{text}T00:00:00"
