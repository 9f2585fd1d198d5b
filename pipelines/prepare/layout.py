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

from model.errors import ConfigError, DataError, first_line
from model.settings import did_you_mean
from model.tables import compute as pc
from model.tables.arrow_lists import is_list
from pipelines.prepare.settings import PrepareSettings, gap_number

INDEX = "sequence_index"
SECONDS_PER_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Layout:
    """`schema` holds the columns that are read. Gap and boundaries are numbers as `time_numbers` gives them."""

    schema: pa.Schema
    key: str
    time: str
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
        fields = [pa.field(self.key, self.schema.field(self.key).type), pa.field(INDEX, pa.int64())]
        fields += [pa.field(f"{self.time}_first", time), pa.field(f"{self.time}_last", time)]
        fields += [pa.field(name, self.schema.field(name).type) for name in self.context]
        fields += [pa.field(name, pa.list_(self.schema.field(name).type)) for name in self.sequence]
        if self.time_delta is not None:
            fields.append(pa.field(self.time_delta, pa.list_(pa.float64())))
        if self.label is not None:
            kind = pa.float64() if self.label_change else self.schema.field(self.label).type
            fields.append(pa.field(self.label_name, pa.list_(kind) if self.label_shift else kind))
        return pa.schema(fields)

    def with_context(self, names: Sequence[str]) -> Layout:
        """The layout after detection: `names` are context, the other candidates are sequence columns."""
        sequence = tuple(name for name in self.sequence if name not in names)
        return replace(self, sequence=sequence, context=(*self.context, *names), candidates=())


def label_name(label: str, shift: int, *, change: bool) -> str:
    """`NAME`; `NAME_next`, `NAME_next_2` …; `NAME_change`, `NAME_change_2` …"""
    ahead = f"{label}_change" if change else f"{label}_next"
    return label if not shift else ahead if shift == 1 else f"{ahead}_{shift}"


def layout_of(schema: pa.Schema, settings: PrepareSettings) -> Layout:
    """The layout of events with `schema`. ConfigError for names that are wrong or stand twice, DataError for types."""
    _check_names(schema, settings)
    taken = {settings.key, settings.time, *settings.context}
    if not settings.label_shift:
        taken.add(settings.label or settings.key)  # as an input, what is predicted would give itself away
    chosen = settings.columns
    sequence = tuple(name for name in schema.names if name not in taken) if chosen is None else chosen
    if not sequence:
        raise ConfigError(
            "at least one column must be left for the sequences, but key, time, context and label are all"
        )
    read = [settings.key, settings.time, *settings.context, *sequence, *([settings.label] if settings.label else [])]
    used = pa.schema([schema.field(name) for name in dict.fromkeys(read)])
    _check_types(used, settings)
    detect = chosen is None and settings.detect_context
    label, time = settings.label, used.field(settings.time).type
    layout = Layout(
        schema=used,
        key=settings.key,
        time=settings.time,
        sequence=sequence,
        context=settings.context,
        candidates=tuple(name for name in sequence if name != label and not is_list(used.field(name).type) and detect),
        label=label,
        label_shift=settings.label_shift,
        label_change=settings.label_change,
        time_delta=settings.time_delta,
        max_length=settings.max_length,
        gap=gap_units(settings.gap, time, settings.time),
        boundaries=boundary_units(settings.split_by_time, time, settings.time),
    )
    _check_output(layout)
    return layout


def _check_names(schema: pa.Schema, settings: PrepareSettings) -> None:
    named = [("--key", settings.key), ("--time", settings.time)]
    named += [("--context", name) for name in settings.context]
    named += [("--columns", name) for name in settings.columns or ()]
    named += [("--label", settings.label)] if settings.label is not None else []
    for option, name in named:
        if name not in schema.names:
            raise ConfigError(
                f"{option} must name a column of the events, but {name!r} is none{did_you_mean(name, schema.names)}; "
                f"they have {', '.join(schema.names)}"
            )
    # With a shift the label is a later value, so its column may be an input as well.
    parts = [each for each in named if not (each[0] == "--label" and settings.label_shift)]
    for i, (option, name) in enumerate(parts):
        other = next((before for before, same in parts[:i] if same == name and not _may_share(before, option)), None)
        if other is not None:
            raise ConfigError(f"a column has one part, but {name!r} stands under {other} and {option}")


def _may_share(first: str, second: str) -> bool:
    """Time may be wanted as an input, too."""
    return first == "--time" and second == "--columns"


def _check_types(schema: pa.Schema, settings: PrepareSettings) -> None:
    key, time = schema.field(settings.key).type, schema.field(settings.time).type
    if not (pa.types.is_integer(key) or pa.types.is_string(key) or pa.types.is_large_string(key)):
        raise DataError(f"the key must hold strings or integers, but its type is {key}", column=settings.key)
    if not (is_moment(time) or pa.types.is_integer(time) or pa.types.is_floating(time)):
        raise DataError(
            f"the time must be a timestamp, date, integer or float, but its type is {time}; write it as one of these",
            column=settings.time,
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


# Types of several files -------------------------------------------------------------------------------------------


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema as `arrow_lists.plain` gives its columns: no dictionaries, extension types, views or metadata."""
    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    return pa.string() if pa.types.is_string_view(kind) else kind


def agreed_schema(schemas: dict[str, pa.Schema]) -> pa.Schema:
    """One schema that holds the columns of all files (by name). DataError names the file whose types do not fit."""
    agreed: pa.Schema | None = None
    for file, schema in schemas.items():
        try:
            both = [plain_schema(schema)] if agreed is None else [agreed, plain_schema(schema)]
            agreed = pa.unify_schemas(both, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"the files of an event table must agree on each column's type, but do not: {first_line(error)}",
                file=file,
            ) from error
    assert agreed is not None, "find_files gives at least one file"
    return agreed
