"""Whether the files of a data set agree: types that mean the same are one, what contradicts is told with both files.

Widths of numbers, the kind of list, dictionaries and the unit of a time do not matter: encoding reads each as it is.
A number against a string, a value against a list or an instant against a wall clock does. Knows schemas only.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import pyarrow as pa

from model.errors import DataError
from model.tables.arrow_lists import is_list, stored_type
from model.tables.keys import key_type

Shape = tuple[int, str, int | None]


class SchemaAgreement:
    """The types of columns as files bring them, a file after the other."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Shape, pa.DataType, str]] = {}

    @property
    def names(self) -> list[str]:
        """The columns that at least one file holds."""
        return list(self._known)

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Their types in the first file that holds more than nulls."""
        return {name: arrow_type for name, (_, arrow_type, _) in self._known.items()}

    def add(self, types: Mapping[str, pa.DataType], file: str, in_path: Container[str] = ()) -> None:
        """Takes a file's types, some from its path; DataError where one contradicts that of an earlier file."""
        for name, arrow_type in types.items():
            shape = shape_of(arrow_type)
            known, before, first = self._known.setdefault(name, (shape, arrow_type, file))
            if known[1] == "null":
                self._known[name] = (shape, arrow_type, file)
            elif shape[1] != "null" and not _agree(known, shape):
                cure = "write one of them again with the other's type"
                if name in in_path:
                    cure = "declare the type of this column of the paths: data.partition_types, or --partition-types"
                raise DataError(
                    f"the files of a data set must agree on each column's type, but here it is {arrow_type} and in "
                    f"{first} it is {before}; {cure}",
                    file=file,
                    column=name,
                )


def shape_of(arrow_type: pa.DataType) -> Shape:
    """(lists around a value, what a value is, values of each list where that is fixed within another list)."""
    depth, width, value = _unwrapped(arrow_type)
    kind = _kind(value)
    return depth, kind, width if kind == "number" else None


def _unwrapped(arrow_type: pa.DataType) -> tuple[int, int | None, pa.DataType]:
    """(lists around a value, values of the innermost list where that is fixed within another, the value's type)."""
    depth, width = 0, None
    while True:
        if isinstance(arrow_type, pa.BaseExtensionType):
            arrow_type = stored_type(arrow_type)  # as which it is read
        elif pa.types.is_dictionary(arrow_type) or pa.types.is_run_end_encoded(arrow_type):
            arrow_type = arrow_type.value_type
        elif is_list(arrow_type):
            width = arrow_type.list_size if depth and pa.types.is_fixed_size_list(arrow_type) else None
            arrow_type, depth = arrow_type.value_type, depth + 1
        else:
            return depth, width, arrow_type


def value_type(arrow_type: pa.DataType) -> pa.DataType:
    """What the innermost lists hold, as it is stored; UUIDs are text."""
    return _unwrapped(arrow_type)[2]


def _agree(one: Shape, other: Shape) -> bool:
    return one[:2] == other[:2] and (None in (one[2], other[2]) or one[2] == other[2])


def _kind(value: pa.DataType) -> str:
    """What a value is, coarse enough that types which encode alike are one."""
    types = pa.types
    if types.is_integer(value) or types.is_floating(value) or types.is_decimal(value) or types.is_boolean(value):
        return "number"
    if key_type(value) == pa.string():
        return "string"
    if types.is_date(value) or (types.is_timestamp(value) and value.tz is None):
        return "time without a zone"
    if types.is_timestamp(value):
        return "time"
    if types.is_time(value):
        return "time of day"
    return "duration" if types.is_duration(value) else str(value)
