"""An Arrow IPC stream from a stranger, opened safely. Knows no model, no HTTP.

pyarrow trusts a stream: it would run the code behind a registered extension type, unpack a few bytes into gigabytes
(compressed buffers, dictionaries, lists of nulls), and read outside a buffer where offsets lie. So before any value
is touched, each message's envelope is looked at, the columns wanted must be of plain types, and they are validated.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

import pyarrow as pa
import pyarrow.ipc

from model.tables.arrow_lists import is_list
from model.tables.keys import key_type
from serve.wire.errors import RequestError
from serve.wire.inputs import check_count

# What the flatbuffer of an Arrow message holds, by field number: Message.header, DictionaryBatch.data,
# RecordBatch.compression (Arrow's Message.fbs).
_HEADER, _DATA, _COMPRESSION = 2, 1, 3


def read_stream(body: bytes, wanted: Collection[str], max_rows: int) -> pa.Table:
    """The wanted columns that the stream has; RequestError where it is no stream, too large, or of other types.

    The columns are of numbers, booleans and strings, and of lists of these. They hold at most one value a byte of
    the body, so that no column grows by more than a constant factor when it is converted.
    """
    try:
        _check_envelopes(body)
        with pa.ipc.open_stream(body) as reader:
            _check_schema(reader.schema, wanted)
            names = [name for name in reader.schema.names if name in wanted]
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                check_count("sequences", rows, max_rows)
                batches.append(batch.select(names))
    except (pa.ArrowException, OSError, struct.error) as error:
        raise RequestError(400, f"the body must be an Arrow IPC stream, but: {_one_line(error)}") from error
    schema = pa.schema([reader.schema.field(name) for name in names])
    for batch in batches:
        _validate(batch, len(body))
    return pa.Table.from_batches(batches, schema)


def _check_envelopes(body: bytes) -> None:
    reader = pa.ipc.MessageReader.open_stream(body)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        metadata = message.metadata.to_pybytes()
        if message.type == "schema" and b"ARROW:extension:name" in metadata:
            raise RequestError(
                422, "the stream must have no extension types; cast their columns to the storage type (UUIDs: text)"
            )
        if message.type in ("record batch", "dictionary") and _is_compressed(metadata, message.type):
            raise RequestError(422, "the stream's buffers must not be compressed; write it without compression")


def _is_compressed(metadata: bytes, kind: str) -> bool:
    batch = _table_at(metadata, _root(metadata), _HEADER)
    if kind == "dictionary":
        batch = _table_at(metadata, batch, _DATA)
    return _field(metadata, batch, _COMPRESSION) is not None


def _root(buffer: bytes) -> int:
    return int(struct.unpack_from("<I", buffer, 0)[0])


def _field(buffer: bytes, table: int, number: int) -> int | None:
    """Position of a flatbuffer table's field; None where it is absent."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", buffer, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None


def _table_at(buffer: bytes, table: int, number: int) -> int:
    """Position of the table that a field refers to."""
    field = _field(buffer, table, number)
    if field is None:
        raise struct.error(f"field {number} of a message is missing")
    return field + int(struct.unpack_from("<I", buffer, field)[0])


def _check_schema(schema: pa.Schema, wanted: Collection[str]) -> None:
    for each in schema:
        if each.name not in wanted:
            continue
        if len(schema.get_all_field_indices(each.name)) > 1:
            raise RequestError(422, f"each column must be there once, but {each.name!r} stands twice")
        if not _is_plain(each.type):
            raise RequestError(
                422,
                f"column {each.name!r} must hold numbers, booleans, strings or bytes, or lists of them, but its type "
                f"is {each.type}; cast it",
            )


def _is_plain(arrow_type: pa.DataType) -> bool:
    if is_list(arrow_type):
        return _is_plain(arrow_type.value_type)
    return key_type(arrow_type) is not None


def _validate(batch: pa.RecordBatch, body_bytes: int) -> None:
    """Offsets that stay inside their buffers, and no more values than the body has bytes."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise RequestError(400, f"column {name!r} of the Arrow stream is damaged: {_one_line(error)}") from error
        values = _value_count(column)
        if values > body_bytes:
            raise RequestError(413, f"column {name!r} holds {values} values in a body of {body_bytes} bytes; cast it")


def _value_count(array: pa.Array) -> int:
    while is_list(array.type):
        array = array.values
    return len(array)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
