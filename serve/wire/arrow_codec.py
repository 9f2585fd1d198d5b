"""Arrow in, Arrow out: an IPC stream as a table with errors per row, and scored rows as an IPC stream.

A request's columns are the Parquet columns; keys, labels and other columns that the model does not read may be
among them. Pure; knows no HTTP and no model but its description (`Inputs`).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from model.errors import DataError, StateError
from model.scoring.scorer import Scored
from model.tables.arrow_lists import Array, is_list, list_lengths, owner, plain, unnest
from model.tables.keys import is_bytes, key_type
from serve.config import LimitsConfig
from serve.wire.arrow_stream import read_stream
from serve.wire.errors import RequestError, row_error
from serve.wire.inputs import Inputs, RequestRows, check_count

ERROR = "error"


class ArrowDecoder:
    """Reads the Arrow requests of one model."""

    def __init__(self, inputs: Inputs, limits: LimitsConfig) -> None:
        self.inputs = inputs
        self.limits = limits
        self._state = {each.name: each for each in inputs.state.arrow_fields()}
        self._wanted = {*inputs.schema.names, *self._state}

    def decode(self, body: bytes) -> RequestRows:
        """The request's rows; RequestError where it is no table of this model's columns, or too large a one."""
        table = read_stream(body, self._wanted, self.limits.max_sequences_per_request)
        fields = self._fields(table.column_names)
        errors: dict[int, DataError] = {}
        columns = [self._column(plain(table.column(each.name)), each, errors) for each in fields]
        self._check_steps(table)
        good = [row for row in range(table.num_rows) if row not in errors]
        converted = pa.Table.from_arrays(columns, schema=pa.schema(fields))
        return RequestRows(table.num_rows, converted.take(good) if errors else converted, good, errors)

    def _fields(self, names: list[str]) -> list[pa.Field]:
        if missing := [name for name in self.inputs.schema.names if name not in names]:
            raise RequestError(422, f"the table must have the model's columns, but {', '.join(missing)} is missing")
        given = [name for name in self._state if name in names]
        if given and len(given) < len(self._state):
            raise RequestError(
                422, f"a state must have all of {', '.join(self._state)} or none, but only {', '.join(given)} is there"
            )
        return [*self.inputs.schema, *(self._state.values() if given else ())]

    def _check_steps(self, table: pa.Table) -> None:
        for name in self.inputs.sequence:
            if is_list(table.schema.field(name).type):
                steps = int(list_lengths(table.column(name), name).sum())
                check_count("steps", steps, self.limits.max_steps_per_request)

    def _column(self, array: Array, wanted: pa.Field, errors: dict[int, DataError]) -> Array:
        """The column in the wanted type; rows that have no such form are null and stand in `errors`."""
        bad = _long_strings(array, self.limits.max_string_length)
        kind = StateError if wanted.name in self._state else DataError
        for row in bad:
            problem = f"must hold strings of at most {self.limits.max_string_length} characters, but holds a longer one"
            errors.setdefault(row, kind(problem, column=wanted.name))
        try:
            cast = array.cast(wanted.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            cast = self._row_by_row(array, wanted, kind, errors)
        for row in _non_finite(cast, nan=wanted.name in self.inputs.nan_is_missing):
            errors.setdefault(
                row, kind("must hold finite numbers, but holds NaN or an infinite one", column=wanted.name)
            )
        return cast

    @staticmethod
    def _row_by_row(array: Array, wanted: pa.Field, kind: type[DataError], errors: dict[int, DataError]) -> Array:
        """Casting fails as a whole; here each row is cast alone."""
        rows = []
        for row in range(len(array)):
            try:
                # Taken, not sliced: casting a slice of nested lists converts its neighbours' values, too.
                rows.append(array.take(pa.array([row])).cast(wanted.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                problem = f"must be {wanted.type}, but is {array.type}: {' '.join(str(error).split())}"
                errors.setdefault(row, kind(problem, column=wanted.name))
                rows.append(pa.nulls(1, wanted.type))
        return pa.concat_arrays(rows) if rows else pa.nulls(0, wanted.type)


def _long_strings(array: Array, most: int) -> list[int]:
    values, owners = _leaves(array)
    if key_type(values.type) != pa.string():
        return []
    # Bytes are not yet known to be text, and have as many bytes as characters or more.
    count = pc.binary_length if is_bytes(values.type) else pc.utf8_length
    lengths = pc.fill_null(count(values), 0).to_numpy(zero_copy_only=False)
    return _rows_of(lengths > most, owners)


def _non_finite(array: Array, *, nan: bool) -> list[int]:
    """Rows that hold infinities or, where `nan` means nothing, NaN."""
    values, owners = _leaves(array)
    if not pa.types.is_floating(values.type):
        return []
    bad = pc.is_inf(values) if nan else pc.invert(pc.is_finite(values))
    return _rows_of(pc.fill_null(bad, False).to_numpy(zero_copy_only=False), owners)


def _leaves(array: Array) -> tuple[Array, list[np.ndarray]]:
    """The innermost values of nested lists, and the offsets of each level of lists."""
    offsets = []
    while is_list(array.type):
        array, level = unnest(array, "values")
        offsets.append(level)
    return array, offsets


def _rows_of(marked: np.ndarray, offsets: list[np.ndarray]) -> list[int]:
    """The rows that hold the marked innermost values, rising."""
    entries = set(np.flatnonzero(marked).tolist())
    for level in reversed(offsets):
        entries = {owner(level, entry) for entry in entries}
    return sorted(entries)


def encode_arrow(request: RequestRows, scored: Scored, state_fields: list[pa.Field], fingerprint: str) -> bytes:
    """The answer to a request whose table was scored: predictions, next states and `error`; bad rows are null."""
    state = [
        pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), each.type.list_size)
        for part, each in zip(scored.state, state_fields, strict=True)
    ]
    names = [*scored.predictions.column_names, *(each.name for each in state_fields)]
    table = pa.Table.from_arrays([*scored.predictions.columns, *state], names)
    errors = {**request.errors, **{request.good[row]: error for row, error in scored.errors.items()}}
    if errors:
        place = {number: row for row, number in enumerate(request.good) if row not in scored.errors}
        table = table.take(pa.array([place.get(number) for number in range(request.rows)], pa.int64()))
    told = [_error_text(errors.get(number)) for number in range(request.rows)]
    table = table.append_column(ERROR, pa.array(told, pa.string()))
    table = table.replace_schema_metadata({"model": fingerprint})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answer: bytes = sink.getvalue().to_pybytes()
    return answer


def _error_text(error: DataError | None) -> str | None:
    if error is None:
        return None
    told = row_error(error)
    return told["message"] if told["column"] is None else f"column {told['column']!r}: {told['message']}"
