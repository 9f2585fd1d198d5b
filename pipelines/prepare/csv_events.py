"""Event tables in CSV, read block by block by pyarrow's reader. Header, separator and types are found.

A column's type is that of its values in the first block (4 MiB) of each file; a later value that does not fit ends the
preparation and says how to name the type. An empty field is null. Knows no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from model.errors import DataError, first_line
from model.storage import resolve
from model.tables import compute as pc

BLOCK_BYTES = 1 << 22
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".csv.bz2")
COMPRESSED_TIMES = 8  # so much larger is about what a compressed file holds
_SEPARATORS = ",\t;|"
_HEADER_BYTES = 1 << 16


def is_csv(file: str) -> bool:
    """Whether a file is CSV by its name; a URI's options do not count."""
    return file.partition("?")[0].lower().endswith(SUFFIXES)


def csv_schema(file: str) -> pa.Schema:
    """Columns and types of a file. A whole number that begins with a zero is text, and seconds may have fractions."""
    with _told(file):
        block = _first_block(file, {})
        numbers = [field.name for field in block.schema if pa.types.is_integer(field.type)]
        texts = _first_block(file, dict.fromkeys(numbers, pa.string()))
    return pa.schema([(name, _kind(block.column(name), texts.column(name))) for name in block.schema.names])


def _kind(values: Any, texts: Any) -> pa.DataType:
    """The type of a column by its first `values`; `texts` are the same as they stand, where they are whole numbers."""
    if pa.types.is_timestamp(values.type):
        nanoseconds = values.type.unit == "ns" and _is_finer(values)
        return pa.timestamp("ns" if nanoseconds else "us", values.type.tz)
    code = pa.types.is_integer(values.type) and pc.any(pc.match_substring_regex(texts, "^-?0[0-9]")).as_py()
    return pa.string() if code else values.type


def _is_finer(moments: Any) -> bool:
    """Whether moments in nanoseconds are lost in microseconds; pyarrow takes nanoseconds for all fractions."""
    return bool(pc.any(pc.not_equal(pc.nanosecond(moments), 0)).as_py())


def file_bytes(file: str) -> int:
    """About the bytes of the events in a file, once read."""
    filesystem, inner = resolve(file)
    size = filesystem.get_file_info(inner).size or 0
    return int(size * (1 if file.partition("?")[0].lower().endswith((".csv", ".tsv")) else COMPRESSED_TIMES))


def csv_batches(file: str, schema: pa.Schema) -> Iterator[Any]:
    """The columns of `schema`, in batches of about a block each."""
    with _told(file):
        for batch in _opened(file, {field.name: field.type for field in schema}, schema.names):
            yield _with_nulls(batch)


def _with_nulls(batch: Any) -> Any:
    columns = []
    for column in batch.columns:
        empty = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        columns.append(pc.if_else(pc.equal(column, ""), None, column) if empty else column)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _first_block(file: str, types: dict[str, pa.DataType]) -> Any:
    reader = _opened(file, types, None)
    return next(reader, pa.RecordBatch.from_pylist([], schema=reader.schema))


def _opened(file: str, types: dict[str, pa.DataType], names: list[str] | None) -> Any:
    from pyarrow import csv

    filesystem, inner = resolve(file)
    with filesystem.open_input_stream(inner) as stream:
        separator = _separator(stream.read(_HEADER_BYTES))
    return csv.open_csv(
        filesystem.open_input_stream(inner),
        read_options=csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types, include_columns=names),
    )


def _separator(beginning: bytes) -> str:
    """What separates the names in the first line; a comma where nothing does."""
    header = re.sub(r'"[^"]*"', "", beginning.decode("utf-8", "replace").partition("\n")[0])
    return max(_SEPARATORS, key=header.count)


@contextmanager
def _told(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read as CSV ({first_line(error)}); mend the file, or name a column's type with --types "
            "COLUMN=TYPE, such as float64 or string",
            file=file,
        ) from error
