"""A filter as Arrow's expression for a file's types, the row groups it may keep, and the rows it does keep.

Expressions are made for each file by itself, since `at < '2024-01-31'` is another one for text than for a time.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.tables import compute as pc
from model.tables.arrow_lists import require_column
from model.tables.filters import ORDERS, Column, Comparison, Filter, IsNull, Joined, Literal, Membership, Node, Not

Types = Mapping[str, pa.DataType]
_ORDER_ONLY = ("<", "<=", ">", ">=")


def kept_rows(where: Filter, table: pa.Table) -> np.ndarray:
    """Boolean [rows]: where the filter is true. DataError for a column whose type cannot be compared so."""
    import pyarrow.dataset as ds

    plain = pa.table({name: require_column(table, name) for name in where.columns})
    kept = expression(where, dict(zip(plain.column_names, plain.schema.types, strict=True)))
    found = ds.dataset(plain).scanner(columns={"kept": kept}, use_threads=False).to_table()
    result: np.ndarray = pc.fill_null(found.column("kept"), False).to_numpy()
    return result


def kept_row_groups(where: Filter, filesystem: Any, inner: str, types: Types, given: Mapping[str, Any]) -> set[int]:
    """The row groups of a file that may hold rows to keep, by its footer's statistics and the columns its path gives.

    `types` are those of all the filter's columns.
    """
    import pyarrow.dataset as ds

    known = pc.scalar(True)
    for name in where.columns:
        if given.get(name) is not None:
            known = known & (pc.field(name) == given[name])
    fragment = ds.ParquetFileFormat().make_fragment(inner, filesystem=filesystem, partition_expression=known)
    parts = fragment.split_by_row_group(expression(where, types), schema=pa.schema(list(types.items())))
    return {group.id for part in parts for group in part.row_groups}


def expression(where: Filter, types: Types) -> Any:
    """The filter as a pyarrow expression over columns of these types."""
    return _expression(where.root, types)


def _expression(node: Node, types: Types) -> Any:
    match node:
        case Joined():
            parts = [_expression(part, types) for part in node.parts]
            found = parts[0]
            for part in parts[1:]:
                found = found & part if node.word == "and" else found | part
            return found
        case Not():
            return ~_expression(node.part, types)
        case IsNull():
            return pc.field(node.column.name).is_null()
        case Membership():
            return _membership(node, types)
        case Comparison():
            return _comparison(node, types)
        case Column():
            return _truth(node, types)


def _unknown() -> Any:
    """What is neither true nor false. Made when needed: Arrow's first scalar loads pandas."""
    return pc.scalar(pa.scalar(None, pa.bool_()))


def _membership(node: Membership, types: Types) -> Any:
    kind = _compared_type(node.column, types)
    if pa.types.is_null(kind):
        return _unknown()
    among = [_ordered("==", node.column, value, types) for value in node.values]
    found = among[0]
    for each in among[1:]:
        found = found | each
    return found


def _truth(column: Column, types: Types) -> Any:
    kind = _compared_type(column, types)
    if pa.types.is_null(kind):
        return _unknown()
    if not pa.types.is_boolean(kind):
        raise DataError(f"the filter takes it for a truth value, but its type is {kind}", column=column.name)
    return pc.field(column.name)


def _comparison(node: Comparison, types: Types) -> Any:
    columns = [side for side in (node.left, node.right) if isinstance(side, Column)]
    kinds = [_compared_type(column, types) for column in columns]
    if any(pa.types.is_null(kind) for kind in kinds):
        return _unknown()
    if len(columns) == 2 and _family(kinds[0]) != _family(kinds[1]):
        raise DataError(
            f"the filter compares it with {columns[1].name!r}, but their types are {kinds[0]} and {kinds[1]}",
            column=columns[0].name,
        )
    return _ordered(node.order, node.left, node.right, types)


def _ordered(order: str, left: Column | Literal, right: Column | Literal, types: Types) -> Any:
    """Both sides as one type, compared."""
    column = left if isinstance(left, Column) else right
    assert isinstance(column, Column), "one side of a comparison is a column"
    kind = _compared_type(column, types)
    values = [side if isinstance(side, Column) else _scalar(side, kind, column, order) for side in (left, right)]
    kinds = [_compared_type(value, types) if isinstance(value, Column) else value.type for value in values]
    whole = all(pa.types.is_integer(each) for each in kinds)
    sides = [_field(v, k, whole=whole) if isinstance(v, Column) else v for v, k in zip(values, kinds, strict=True)]
    return ORDERS[order](*sides)


def _field(column: Column, kind: pa.DataType, *, whole: bool) -> Any:
    """The column; any kind of text as plain text, and integers that meet other numbers as float64."""
    field = pc.field(column.name)
    if _family(kind) == "text" and not pa.types.is_string(kind):
        return field.cast(pa.string())
    return field if whole or not pa.types.is_integer(kind) else field.cast(pa.float64(), safe=False)


def _compared_type(column: Column, types: Types) -> pa.DataType:
    kind = types[column.name]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _family(kind) is None:
        raise DataError(
            f"a filter compares single numbers, texts, truth values, times and dates, but the type is {kind}",
            column=column.name,
        )
    return kind


def _family(kind: pa.DataType) -> str | None:
    """What compares with each other; None for what cannot be compared."""
    types = pa.types
    if types.is_null(kind) or types.is_boolean(kind):
        return "null" if types.is_null(kind) else "truth"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_date(kind):
        return "date"
    if types.is_timestamp(kind):
        return "time" if kind.tz is None else "instant"
    return "time of day" if types.is_time(kind) else None


_TAKES: dict[str, Any] = {"number": (int, float), "text": str, "truth": bool}


def _scalar(value: Literal, kind: pa.DataType, column: Column, order: str) -> Any:
    """A literal as the column's type has it."""
    family = _family(kind)
    problem = f"the filter compares it with {value!r}, but its type is {kind}"
    if family == "truth" and order in _ORDER_ONLY:
        raise DataError(problem, column=column.name)
    if family in _TAKES:
        if not isinstance(value, _TAKES[family]) or isinstance(value, bool) != (family == "truth"):
            raise DataError(problem, column=column.name)
        return _number(value, kind) if family == "number" else pa.scalar(value)
    try:
        if not isinstance(value, str):
            raise ValueError
        return pa.scalar(_time(value, kind), kind)
    except ValueError as error:
        raise DataError(f"{problem}: write a time as text, such as '2024-01-31'", column=column.name) from error


def _number(value: Any, kind: pa.DataType) -> Any:
    """Integers compare as such, float32 as such (0.1 is what the file holds for it), all else as float64."""
    if pa.types.is_integer(kind) and value == value // 1:
        least, beyond = (0, 2**64) if pa.types.is_uint64(kind) else (-(2**63), 2**63)
        if least <= value < beyond:
            return pa.scalar(int(value), kind if pa.types.is_uint64(kind) else pa.int64())
    return pa.scalar(float(value), kind if pa.types.is_float32(kind) else pa.float64())


def _time(text: str, kind: pa.DataType) -> Any:
    if pa.types.is_date(kind):
        return datetime.date.fromisoformat(text)
    if pa.types.is_time(kind):
        return datetime.time.fromisoformat(text)
    moment = datetime.datetime.fromisoformat(text)
    if kind.tz is None:
        if moment.tzinfo is not None:
            raise ValueError
        return moment
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
