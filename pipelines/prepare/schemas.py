"""One schema for all files of an event table: types that mean the same agree, and those that do not name both files.

Knows no files' contents and no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import pyarrow as pa

from model.errors import ConfigError, DataError, first_line
from model.settings import did_you_mean
from model.tables.arrow_lists import stored_type
from pipelines.prepare.keys import key_type

_ZONED = re.compile(r"timestamp\[(s|ms|us|ns),\s*(?:tz=)?([^\]]+)\]")


def agreed_schema(
    schemas: Mapping[str, pa.Schema], keys: Collection[str] = (), types: Mapping[str, str] | None = None
) -> pa.Schema:
    """One schema that holds the columns of all files (by name), with the `types` given for some of them.

    DataError names the files whose types do not fit, ConfigError what is no column or type.
    """
    given = {name: arrow_type(text, name) for name, text in (types or {}).items()}
    agreed: dict[str, pa.DataType] = {}
    first: dict[str, str] = {}
    for file, schema in schemas.items():
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise DataError("stands more than once in the file; write it with a name for each", file=file, column=twice)
        for field in schema:
            kind = given.get(field.name, plain_type(field.type))
            if field.name in keys:
                kind = key_type(kind) or kind
            before = agreed.setdefault(field.name, kind)
            try:
                agreed[field.name] = _joined_keys(before, kind) if field.name in keys else _joined(before, kind)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise DataError(
                    f"the files of an event table must agree on each column's type, but {field.name!r} is {kind} here "
                    f"and {before} in {first[field.name]}; write one of them again with the other's type, or name the "
                    f"type of both with --types",
                    file=file,
                ) from error
            first.setdefault(field.name, file)
    for name in given:
        if name not in agreed:
            raise ConfigError(
                f"--types must name columns of the events, but {name!r} is none{did_you_mean(name, list(agreed))}; "
                f"they have {', '.join(agreed)}"
            )
    return pa.schema([pa.field(name, kind) for name, kind in agreed.items()])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is read: no dictionaries, extension types or views; uuids are text."""
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(stored_type(kind))
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    return pa.string() if pa.types.is_string_view(kind) else kind


def _joined(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    one, other = _of_one_zone(one, other), _of_one_zone(other, one)
    both = [pa.schema([("", _beside(one, other))]), pa.schema([("", _beside(other, one))])]
    return pa.unify_schemas(both, promote_options="permissive").field(0).type


def _joined_keys(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """True and 1 are one key."""
    kinds = [pa.int8() if pa.types.is_boolean(kind) and one != other else kind for kind in (one, other)]
    return _joined(*kinds)


def _of_one_zone(kind: pa.DataType, beside: pa.DataType) -> pa.DataType:
    """An instant is the same in every zone: UTC where two differ."""
    if not (pa.types.is_timestamp(kind) and pa.types.is_timestamp(beside)):
        return kind
    return kind if None in (kind.tz, beside.tz) or kind.tz == beside.tz else pa.timestamp(kind.unit, "UTC")


def _beside(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A date is the moment when it begins, beside moments that know no zone either."""
    moments = pa.types.is_timestamp(other) and other.tz is None
    return other if moments and pa.types.is_date(kind) else kind


def arrow_type(text: str, column: str) -> pa.DataType:
    """The Arrow type of a name such as int64, string, date32, timestamp[us] or timestamp[us, UTC]."""
    zoned = _ZONED.fullmatch(text.strip())
    try:
        return pa.timestamp(zoned[1], zoned[2].strip()) if zoned else pa.type_for_alias(text.strip())
    except ValueError as error:
        raise ConfigError(
            f"--types must be types of Arrow, such as int64, float64, string, bool, date32, timestamp[us] or "
            f"timestamp[us, UTC], but for {column!r} is {text!r} ({first_line(error)})"
        ) from error
