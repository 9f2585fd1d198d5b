"""JSON in, JSON out: the bytes of a request as a table with errors per row, and scored rows as the bytes of an answer.

Pure and O(values); knows no HTTP and no model but its description (`Inputs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pydantic_core import from_json, to_json

from model.errors import DataError, StateError
from model.scoring.scorer import Scored
from model.settings import did_you_mean
from model.tables.arrow_lists import Array, is_list, plain, unnest
from serve.config import LimitsConfig
from serve.wire.errors import RequestError, row_error
from serve.wire.inputs import Inputs, RequestRows, check_count
from serve.wire.json_values import ListReader, ScalarReader, ValueRefused, quoted, reader_of

_SEQUENCE_KEYS = ("features", "state")


@dataclass(frozen=True)
class _Row:
    features: list[Any]
    state: list[Any] | None
    steps: int


class JsonDecoder:
    """Reads the JSON requests of one model."""

    def __init__(self, inputs: Inputs, limits: LimitsConfig) -> None:
        self.inputs = inputs
        self.limits = limits
        self._cells = {each.name: reader_of(each.type, limits.max_string_length) for each in inputs.schema}
        self._state = {each.name: reader_of(each.type, 0) for each in inputs.state.arrow_fields()}
        self._state_schema = pa.schema([*inputs.schema, *inputs.state.arrow_fields()])

    def decode(self, body: bytes) -> RequestRows:
        """The request's rows; RequestError where it is no request at all, or too large a one."""
        sequences = _sequences(body)
        check_count("sequences", len(sequences), self.limits.max_sequences_per_request)
        rows: list[_Row] = []
        good: list[int] = []
        errors: dict[int, DataError] = {}
        for number, sequence in enumerate(sequences):
            try:
                rows.append(self._row(sequence))
                good.append(number)
            except DataError as error:
                errors[number] = error
        check_count("steps", sum(row.steps for row in rows), self.limits.max_steps_per_request)
        return RequestRows(len(sequences), self._table(rows), good, errors)

    def _table(self, rows: list[_Row]) -> pa.Table:
        """Columns from rows; a row without a state is null in the state's columns, which is the zero state."""
        if all(row.state is None for row in rows):
            schema, whole = self.inputs.schema, [row.features for row in rows]
        else:
            nothing: list[Any] = [None] * len(self._state)
            schema, whole = self._state_schema, [[*row.features, *(row.state or nothing)] for row in rows]
        columns = zip(*whole, strict=True) if whole else [()] * len(schema)
        return pa.Table.from_arrays(
            [pa.array(values, each.type) for values, each in zip(columns, schema, strict=True)], schema=schema
        )

    def _row(self, sequence: object) -> _Row:
        if not isinstance(sequence, dict):
            raise DataError(f"a sequence must be an object with features, but is {quoted(sequence)}")
        if unknown := [key for key in sequence if key not in _SEQUENCE_KEYS]:
            meant = did_you_mean(unknown[0], _SEQUENCE_KEYS)
            raise DataError(f"a sequence has features and state, but this has {quoted(unknown[0])}{meant}")
        features = sequence.get("features")
        if not isinstance(features, dict):
            raise DataError(f"features must be an object with a value for each column, but is {quoted(features)}")
        values = self._features(features)
        steps = self._steps(values)
        return _Row(values, self._read_state(sequence.get("state")), steps)

    def _features(self, features: Mapping[str, Any]) -> list[Any]:
        values = []
        for name, cell in self._cells.items():
            if name not in features:
                raise self._missing(name, features)
            values.append(_read(cell, features[name], name))
        if len(features) > len(values):
            raise self.inputs.unknown(next(name for name in features if name not in self._cells))
        return values

    def _missing(self, name: str, features: Mapping[str, Any]) -> DataError:
        """A misspelt feature is missing and unknown at once; the misspelling is the one to tell."""
        for given in features:
            if given not in self._cells and did_you_mean(given, [name]):
                return self.inputs.unknown(given)
        return DataError(f"must be given, but is missing; this model reads {', '.join(self._cells)}", column=name)

    def _steps(self, values: list[Any]) -> int:
        """The length of the row's sequence columns, which must all have the same."""
        first, steps = "", 0
        for name, value in zip(self._cells, values, strict=True):
            if name not in self.inputs.sequence:
                continue
            length = 0 if value is None else len(value)  # as a null list of a file is an empty one
            if not first:
                first, steps = name, length
            elif length != steps:
                raise DataError(
                    f"the lists of a row must be equally long, but this one has {length} steps where {first!r} "
                    f"has {steps}",
                    column=name,
                )
        return steps

    def _read_state(self, state: object) -> list[Any] | None:
        if state is None:
            return None
        if not isinstance(state, dict):
            raise StateError(f"state must be an object with {', '.join(self._state)}, but is {quoted(state)}")
        if unknown := [name for name in state if name not in self._state]:
            raise StateError(
                f"is not a part of this model's state, which has {', '.join(self._state)}", column=unknown[0]
            )
        present = [name for name, value in state.items() if value is not None]
        if not present:
            return None
        self.inputs.state.require_complete(present)
        try:
            return [_read(cell, state[name], name) for name, cell in self._state.items()]
        except DataError as error:
            raise StateError(error.problem, column=error.column) from error


def _sequences(body: bytes) -> list[Any]:
    try:
        request = from_json(body)  # takes NaN and Infinity too, so that they spoil their row only
    except ValueError as error:
        raise RequestError(400, f"the body must be JSON, but: {error}") from error
    sequences = request.get("sequences") if isinstance(request, dict) else None
    if not isinstance(sequences, list):
        raise RequestError(422, 'the body must be an object {"sequences": [...]} with a list of sequences')
    if unknown := [key for key in request if key != "sequences"]:
        raise RequestError(422, f"the body must hold sequences and nothing else, but holds {quoted(unknown[0])}")
    return sequences


def _read(cell: ScalarReader | ListReader, value: object, name: str) -> Any:
    try:
        return cell.read(value)
    except ValueRefused as error:
        raise DataError(str(error), column=name) from error


# Answers --------------------------------------------------------------------------------------------------------


def encode_json(request: RequestRows, scored: Scored, state_names: tuple[str, ...], fingerprint: str) -> bytes:
    """The answer to a request whose table was scored: one entry a row, in the request's order."""
    columns = {name: to_lists(plain(scored.predictions.column(name))) for name in scored.predictions.column_names}
    states = [(name, part.tolist()) for name, part in zip(state_names, scored.state, strict=True)]
    predictions: list[dict[str, Any]] = [{}] * request.rows
    for row, number in enumerate(request.good):
        if row in scored.errors:
            predictions[number] = {"error": row_error(scored.errors[row])}
        else:
            predictions[number] = {name: values[row] for name, values in columns.items()}
            predictions[number]["state"] = {name: part[row] for name, part in states}
    for number, error in request.errors.items():
        predictions[number] = {"error": row_error(error)}
    return to_json({"model": fingerprint, "predictions": predictions})


def to_lists(array: Array) -> list[Any]:
    """An array as Python lists, through numpy: many times faster than `to_pylist` on nested numbers."""
    if array.null_count:
        flags = array.is_valid().to_numpy(zero_copy_only=False)
        present = iter(to_lists(array.drop_null()))
        return [next(present) if flag else None for flag in flags]
    if is_list(array.type):
        inner, offsets = unnest(array, "values")
        items, ends = to_lists(inner), offsets.tolist()
        return [items[start:end] for start, end in pairwise(ends)]
    if pa.types.is_floating(array.type) or pa.types.is_integer(array.type):
        numbers: list[Any] = array.to_numpy().tolist()
        return numbers
    values: list[Any] = array.to_pylist()
    return values
