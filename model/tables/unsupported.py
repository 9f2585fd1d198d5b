"""Row groups that are whole, but of a kind that pyarrow does not read: which column, what it is, what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from model.errors import DataError, first_line
from model.storage import resolve
from model.tables.fragments import Fragment
from model.tables.nested import NestedSchema

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# What pyarrow says of LZO, of codecs that it does not know, and of those that it was built without.
_CODEC = re.compile(
    r"^While (\w+) compression is supported|compression codec value: (\d+)|codec '?(\w+)'? not (?:built|s)"
)
_ENCODING = re.compile(r"^(?:Unknown|Unsupported) encoding")
_READ_ENCODINGS = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BYTE_STREAM_SPLIT"} | {
    "DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"
}  # fmt: skip
_BUFFER_BYTES = 1 << 20


def unsupported(fragment: Fragment, error: BaseException) -> DataError | None:
    """The error of what nobody could decode here; None where the row group may be damaged."""
    text = first_line(error)
    codec = _CODEC.search(text)
    if codec is None and not _ENCODING.search(text) and not isinstance(error, pa.ArrowNotImplementedError):
        return None
    column, encodings = _first_like(fragment, text)
    if codec is not None:
        name = next(filter(None, codec.groups()))
        told = f"codec number {name}" if name.isdigit() else name
        problem, cure = f"is compressed with {told}, which is not supported", "with zstd or snappy"
    elif isinstance(error, pa.ArrowNotImplementedError):
        problem, cure = f"is not supported ({text})", "with other types"
    elif encodings:
        problem = f"is encoded with {', '.join(encodings)}, which is not supported"
        cure = "with plain or dictionary encoding, and zstd or snappy"
    else:
        return None  # the footer names encodings that are read: the page itself is not what it should be
    return DataError(
        f"row group {fragment.row_group} {problem}; write the file again {cure}", file=fragment.file, column=column
    )


def _first_like(fragment: Fragment, text: str) -> tuple[str | None, list[str]]:
    """The first column whose values give the same error, and its encodings that are not read."""
    import pyarrow.parquet as pq

    filesystem, inner = resolve(fragment.file)
    with pq.ParquetFile(inner, filesystem=filesystem, buffer_size=_BUFFER_BYTES) as reader:
        schema = NestedSchema(reader.schema_arrow)
        for number in range(reader.metadata.num_columns):
            if _error_of(reader, fragment, number) == text:
                name = next((name for name in schema.names if number in schema.leaves(name)), None)
                held = reader.metadata.row_group(fragment.row_group).column(number).encodings
                return name, [encoding for encoding in held if encoding not in _READ_ENCODINGS]
    return None, []


def _error_of(reader: pq.ParquetFile, fragment: Fragment, number: int) -> str | None:
    path = reader.metadata.schema.column(number).path
    try:
        next(reader.iter_batches(1, row_groups=[fragment.row_group], columns=[path], use_threads=False))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return first_line(error)
    return None
