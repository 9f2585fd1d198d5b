"""Columns inside structs: `events.item` is a field of a struct, or of the structs in a list: then a list of its values.

What writers put around a list is nobody's field: BigQuery's struct<list: list<struct<element>>> is the list itself,
and a dense vector of Spark ML is the list of its values. A column of that very name comes before any field. A null
struct is a null in each of its fields. Knows no files and no models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.tables import compute as pc
from model.tables.arrow_lists import Array, is_list, owner, shaped, shaped_type, unnest

Path = tuple[str, ...]
_WRAPPERS = {("list", "element"), ("list", "item"), ("bag", "array_element"), ("bag", "array")}
_VECTOR = ["type", "size", "indices", "values"]  # Spark ML's; `type` is 0 where it is sparse, 1 where it is dense


class _Place(NamedTuple):
    """Where a column is: the number of the top-level column, the fields from there on (None: it, untouched)."""

    number: int
    path: Path | None
    type: pa.DataType


class NestedSchema:
    """A schema's columns as people name them: those without structs by their names, fields of structs by their paths.

    A column of structs has its own name, too, under which it is what it is: to be carried along, not to be read.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._places: dict[str, _Place] = {}
        self._shapes = {number: shape for number, field in enumerate(schema) if (shape := _shape(field))}
        fields = [dict(_fields(field.type)) for field in schema]
        for number, shape in self._shapes.items():
            fields[number] = {(): shaped_type(_storage(schema.field(number).type).value_type, shape)}
        for number, (field, found) in enumerate(zip(schema, fields, strict=True)):
            whole = _Place(number, (), found[()]) if () in found else _Place(number, None, field.type)
            self._places.setdefault(field.name, whole)
        for number, (field, found) in enumerate(zip(schema, fields, strict=True)):
            for path, kind in found.items():
                self._places.setdefault(".".join((field.name, *path)), _Place(number, path, kind))
        readable = {place.number: name for name, place in self._places.items() if place.path == ()}
        nested = [(place.number, name) for name, place in self._places.items() if place.path]
        self.names: list[str] = [name for _, name in sorted([*readable.items(), *nested], key=lambda each: each[0])]

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def type(self, name: str) -> pa.DataType:
        """The type that a column has when it is read."""
        return self._places[name].type

    def flat(self) -> pa.Schema:
        """The columns, none of them a struct."""
        if not any(map(self.is_inside, self.names)):
            return self.schema
        return pa.schema([pa.field(name, self.type(name)) for name in self.names], self.schema.metadata)

    def leaves(self, name: str) -> list[int]:
        """The numbers of the Parquet columns that a column is read from."""
        place = self._places[name]
        return _leaves(self.schema.field(place.number).type, self._first_leaves[place.number], place.path)

    @cached_property
    def _first_leaves(self) -> list[int]:
        return [0, *accumulate(_leaf_count(field.type) for field in self.schema)]

    def column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        """A column of a table with this schema, or of one that holds no more than the `leaves` of some columns.

        DataError, with the row, for a sparse vector.
        """
        place = self._places[name]
        held = self.schema.field(place.number)
        column = table.column(held.name)
        if not self.is_inside(name):
            return column
        chunks, first = [], 0
        for chunk in column.chunks:
            try:
                shape = self._shapes.get(place.number)
                chunks.append(_tensors(chunk, shape) if shape else _values(chunk, held.type, place.path or ()))
            except DataError as error:
                row = None if error.row is None else first + error.row
                raise DataError(error.problem, row=row, column=name) from error
            first += len(chunk)
        return pa.chunked_array(chunks, place.type)

    def table(self, table: pa.Table, names: Sequence[str]) -> pa.Table:
        """Those of the columns that there are, each once."""
        wanted = [name for name in dict.fromkeys(names) if name in self]
        if not any(map(self.is_inside, wanted)):
            return table.select([name for name in table.column_names if name in wanted])
        return pa.table({name: self.column(table, name) for name in wanted})

    def all_of(self, table: pa.Table) -> pa.Table:
        """All columns that can be read; sparse vectors stay what they are."""
        if not any(map(self.is_inside, self.names)):
            return table
        columns = {}
        for name in self.names:
            try:
                columns[name] = self.column(table, name)
            except DataError:
                columns[name] = table.column(self.schema.field(self._places[name].number).name)
        return pa.table(columns)

    def is_inside(self, name: str) -> bool:
        """Whether a column stands in structs of another, in what is put around a list, or in a tensor of Ray."""
        place = self._places[name]
        nested = place.number in self._shapes or _has_structs(self.schema.field(place.number).type)
        return place.path is not None and nested


def with_fields(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """A table, and beside its columns those of the names that are fields of its structs."""
    columns = NestedSchema(table.schema)
    for name in dict.fromkeys(names):
        if name in columns and columns.is_inside(name):
            column = columns.column(table, name)
            held = name in table.column_names
            place = table.column_names.index(name) if held else table.num_columns
            table = table.set_column(place, name, column) if held else table.append_column(name, column)
    return table


# Ray's tensors, whose lists do not say that they have several dimensions -------------------------------------------


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _shape(field: pa.Field) -> list[int] | None:
    """The dimensions of a column of Ray's tensors of two dimensions or more; Ray's type is there where Ray is."""
    told = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode("utf-8", "replace")
    name = getattr(field.type, "extension_name", told)
    if not name.startswith("ray.data.arrow_tensor") or not is_list(_storage(field.type)):
        return None
    try:
        shape = list(getattr(field.type, "shape", None) or json.loads(field.metadata[b"ARROW:extension:metadata"]))
    except (ValueError, TypeError, KeyError):  # a pickle, as earlier versions of Ray wrote it: nobody opens that
        return None
    return shape if len(shape) > 1 and all(isinstance(size, int) and size > 0 for size in shape) else None


def _tensors(array: Array, shape: Sequence[int]) -> Array:
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    count = math.prod(shape)
    try:
        fixed = storage.cast(pa.list_(storage.type.value_type, count))
    except pa.ArrowInvalid as error:
        raise DataError(f"must hold tensors of {shape} as its metadata say, but some have other sizes") from error
    return shaped(fixed.values.slice(fixed.offset * count, len(fixed) * count), shape, fixed)


# Types ----------------------------------------------------------------------------------------------------------


def _has_structs(kind: pa.DataType) -> bool:
    while is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind))


def _wrapper(kind: pa.DataType) -> tuple[str, str] | None:
    """The two names that stand around a list's values without being a field of anybody's."""
    if not pa.types.is_struct(kind) or kind.num_fields != 1 or not is_list(kind.field(0).type):
        return None
    inner = kind.field(0).type.value_type
    if not pa.types.is_struct(inner) or inner.num_fields != 1:
        return None
    names = (kind.field(0).name, inner.field(0).name)
    return names if names in _WRAPPERS else None


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and [field.name for field in kind] == _VECTOR


def _fields(kind: pa.DataType) -> Iterator[tuple[Path, pa.DataType]]:
    """All that is no struct in a type: the fields on the way to it, and its type with the lists around it."""
    if is_list(kind):
        yield from ((path, _list_like(kind, value)) for path, value in _fields(kind.value_type))
    elif _wrapper(kind):
        outer = kind.field(0).type
        yield from ((path, _list_like(outer, value)) for path, value in _fields(outer.value_type.field(0).type))
    elif _is_vector(kind):
        yield (), kind.field("values").type
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from (((field.name, *path), value) for path, value in _fields(field.type))
    else:
        yield (), kind


def _list_like(kind: pa.DataType, value: pa.DataType) -> pa.DataType:
    if kind.value_type == value:
        return kind
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(value, kind.list_size)
    wide = pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind)
    return pa.large_list(value) if wide else pa.list_(value)


def _leaf_count(kind: pa.DataType) -> int:
    """Parquet columns of a type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _leaf_count(kind.storage_type)
    return sum(_leaf_count(kind.field(number).type) for number in range(kind.num_fields)) or 1


def _leaves(kind: pa.DataType, first: int, path: Path | None) -> list[int]:
    """The Parquet columns behind a path, in a type whose first one has the number `first`."""
    if path is None or not _has_structs(kind):
        return list(range(first, first + _leaf_count(kind)))
    if is_list(kind):
        return _leaves(kind.value_type, first, path)
    names = _wrapper(kind)
    if names is not None:
        return _leaves(kind.field(0).type, first, (names[1], *path))
    found = []
    for field in kind:
        if field.name in (("type", "values") if _is_vector(kind) else path[:1]):
            found += _leaves(field.type, first, path[1:])
        first += _leaf_count(field.type)
    return found


# Values ---------------------------------------------------------------------------------------------------------


def _values(array: Array, kind: pa.DataType, path: Path) -> Array:
    """What stands at a path. `kind` is the array's type in the file, of which some fields may not have been read."""
    if not _has_structs(kind):
        return array
    if is_list(kind):
        return _in_lists(array, kind, path)
    names = _wrapper(kind)
    if names is not None:
        return _values(pc.struct_field(array, names[0]), kind.field(0).type, (names[1], *path))
    if _is_vector(kind):
        return _dense(array)
    return _values(pc.struct_field(array, path[0]), kind.field(path[0]).type, path[1:])


def _in_lists(array: Array, kind: pa.DataType, path: Path) -> Array:
    """Lists of structs as lists of what stands at a path of these."""
    nulls = array.is_null() if array.null_count else None
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
        held = array.values.slice(array.offset * width, len(array) * width)
        offsets = np.arange(len(array) + 1) * width
        inner = _in_rows(held, offsets, kind.value_type, path)
        return pa.FixedSizeListArray.from_arrays(inner, width, mask=nulls)
    held, offsets = unnest(array, "")
    inner = _in_rows(held, offsets, kind.value_type, path)
    if pa.types.is_large_list(_list_like(kind, inner.type)):
        return pa.LargeListArray.from_arrays(pa.array(offsets), inner, mask=nulls)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner, mask=nulls)


def _in_rows(array: Array, offsets: np.ndarray, kind: pa.DataType, path: Path) -> Array:
    try:
        return _values(array, kind, path)
    except DataError as error:
        raise DataError(error.problem, row=owner(offsets, error.row or 0)) from error


def _dense(array: Array) -> Array:
    sparse = pc.fill_null(pc.not_equal(pc.struct_field(array, "type"), 1), False).to_numpy(zero_copy_only=False)
    if sparse.any():
        raise DataError(
            "must hold dense vectors, but here is a sparse one of Spark ML; write the column again with "
            "pyspark.ml.functions.vector_to_array",
            row=int(np.argmax(sparse)),
        )
    return pc.struct_field(array, "values")
