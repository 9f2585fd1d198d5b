"""What users of the estimator hand over (dicts of arrays, lists, Arrow, pandas) as tables of the data contract.

The tables then go through the one encoding (`model.features.fitted_columns`) and the one collate. Padding is cut off
here, by `sequence_length`, and not read; only which rows of embedding tables the original would have looked up is taken
from the whole input (`Rows.padded`). Knows no network, no training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from model.config import ModelConfig
from model.errors import DataError, listed
from model.estimator.arrays import Converted, context_array, cut, sequence_array, vector
from model.features.fitted_columns import GROUPS
from model.features.labels import PredictionType, ProblemType
from model.prediction_keys import RNNKeys
from model.scan.needed_columns import read_columns
from model.tables import compute as pc
from model.tables.arrow_lists import Array, is_list, plain, unnest
from model.tables.nested import with_fields


class Rows(NamedTuple):
    """A table of the data contract. `padded` is the input before cutting and `padded_steps` its T, for padded input."""

    table: pa.Table
    padded: pa.Table | None = None
    padded_steps: int | None = None

    def slice(self, start: int, count: int) -> Rows:
        """Rows start … start + count − 1."""
        padded = None if self.padded is None else self.padded.slice(start, count)
        return Rows(self.table.slice(start, count), padded, self.padded_steps)


def is_table(features: Any) -> bool:
    """Whether features are a pyarrow table or batch, or a pandas frame."""
    return isinstance(features, pa.Table | pa.RecordBatch) or hasattr(features, "iterrows")


def is_features(value: Any) -> bool:
    """Whether a value is one batch of features: a dict or a table."""
    return isinstance(value, Mapping) or is_table(value)


def rows_of(features: Any, labels: Any, config: ModelConfig) -> Rows:
    """Features (and labels) as a table with the columns that `config` reads. DataError says what does not fit."""
    if is_table(features):
        return _table_rows(features, labels, config)
    if not isinstance(features, Mapping):
        raise DataError(
            f"features must be a dict of arrays or lists, a pyarrow table or a pandas frame, but are "
            f"{type(features).__name__}"
        )
    sequences, columns = _features(features, config)
    lengths_B = _lengths(features)
    if labels is not None:
        converted = _label_array(labels, config)
        _check_label_steps(converted, sequences, config)
        if config.prediction_type is PredictionType.MULTIPLE_VALUE:
            sequences[config.label] = converted
        else:
            columns[config.label] = converted.array
    whole = {name: part.array for name, part in sequences.items()}
    held = whole if lengths_B is None else {name: cut(array, lengths_B, name) for name, array in whole.items()}
    table = _table(held | columns)
    if config.label in table.column_names:
        place = table.column_names.index(config.label)
        table = table.set_column(place, config.label, _as_classes(plain(table.column(place)), config))
    steps = _padded_steps(sequences)
    return Rows(table, None if steps is None else pa.table(whole | columns), steps)


def _table_rows(features: Any, labels: Any, config: ModelConfig) -> Rows:
    if isinstance(features, pa.RecordBatch):
        features = pa.Table.from_batches([features])
    table = features if isinstance(features, pa.Table) else pa.Table.from_pandas(features, preserve_index=False)
    table = with_fields(table, read_columns(config))
    if labels is None:
        return Rows(table)
    if config.label in table.column_names:
        raise DataError("is a column of the table and handed over as labels, too; leave one out", column=config.label)
    column = _label_array(labels, config).array
    if len(column) != table.num_rows:
        raise DataError(f"must have {table.num_rows} rows as the table has, but has {len(column)}", column=config.label)
    return Rows(table.append_column(config.label, _as_classes(column, config)))


def _table(columns: dict[str, Array]) -> pa.Table:
    first = next(iter(columns))
    for name, array in columns.items():
        if len(array) != len(columns[first]):
            raise DataError(
                f"all features must have as many rows, but this has {len(array)} and {first!r} has "
                f"{len(columns[first])}",
                column=name,
            )
    return pa.table(columns)


def _features(features: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, Converted], dict[str, Array]]:
    """(what has a list a row, what has an entry a row): declared columns, the weight, and states."""
    sequences, columns = {}, {}
    numbers = config.columns.number_columns()
    for group in GROUPS:
        for name in config.columns.data_columns(group):
            if name not in features:
                raise DataError(f"is not in the features; they are {listed(features)}", column=name)
            if group == "sequence":
                sequences[name] = sequence_array(features[name], name, numeric=name in numbers)
            else:
                columns[name] = context_array(features[name], name, numeric=name in numbers)
    if config.weight is not None and config.weight in features:
        weight = context_array(features[config.weight], config.weight, numeric=True)
        if is_list(weight.type):
            sequences[config.weight] = sequence_array(features[config.weight], config.weight, numeric=True)
        else:
            columns[config.weight] = weight
    for name, value in features.items():
        if str(name).startswith(f"{RNNKeys.STATE_PREFIX}_"):
            columns[name] = _state(value, name)
    return sequences, columns


def _state(value: Any, name: str) -> Array:
    """A state component [B, …] as one list a row."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.ndim < 2:
        raise DataError(f"a state must have shape [rows, units], but has {list(array.shape)}", column=name)
    width = int(np.prod(array.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(array.astype(np.float32).reshape(-1)), width)


def _lengths(features: Mapping[str, Any]) -> np.ndarray | None:
    """`sequence_length` [B] as int64; None where it is not given."""
    given = features.get(RNNKeys.SEQUENCE_LENGTH_KEY)
    if given is None:
        return None
    name = RNNKeys.SEQUENCE_LENGTH_KEY
    lengths_B = vector(given, name)
    if lengths_B.dtype.kind not in "iu":
        raise DataError(f"must be integers, but are {lengths_B.dtype}", column=name)
    if (lengths_B < 0).any():
        raise DataError("must not be negative, but is", row=int(np.argmax(lengths_B < 0)), column=name)
    return lengths_B.astype(np.int64)


def _check_label_steps(labels: Converted, sequences: dict[str, Converted], config: ModelConfig) -> None:
    """Padded labels have as many positions as padded features, or a DataError says so."""
    steps = _padded_steps(sequences)
    if labels.padded_steps is not None and steps not in (None, labels.padded_steps):
        raise DataError(
            f"labels must have {steps} steps as the features have, but have {labels.padded_steps}",
            column=config.label,
        )


def _padded_steps(sequences: dict[str, Converted]) -> int | None:
    return next((part.padded_steps for part in sequences.values() if part.padded_steps is not None), None)


def _label_array(labels: Any, config: ModelConfig) -> Converted:
    """Labels as a column: lists (from [B, T] or [B, T, 1]) for multiple_value, else one entry a row ([B] or [B, 1])."""
    name = config.label
    if isinstance(labels, Mapping):
        raise DataError("labels must be one array or list, but are a dict", column=name)
    if config.prediction_type is PredictionType.SINGLE_VALUE:
        array = context_array(labels, name, numeric=True)
        if is_list(array.type):
            raise DataError("single_value needs one label a row, but there are several", column=name)
        return Converted(array)
    converted = sequence_array(labels, name, numeric=True)
    if is_list(converted.array.type) and is_list(unnest(converted.array, name).values.type):
        raise DataError("multiple_value needs one label a step, but there are several", column=name)
    return converted


def _as_classes(array: Array, config: ModelConfig) -> Array:
    """Class labels that came as floats, as the integers they are; other labels as they are. Lists stay lists."""
    values, offsets = unnest(array, config.label) if is_list(array.type) else (array, None)
    if config.problem_type is not ProblemType.CLASSIFICATION or not pa.types.is_floating(values.type):
        return array
    whole = pc.equal(pc.floor(values), values)
    if not pc.all(whole, min_count=0).as_py():
        bad = values[int(np.argmin(whole.to_numpy(zero_copy_only=False)))]
        raise DataError(f"a class must be an integer or a string, but a label is {bad}", column=config.label)
    integers = values.cast(pa.int64())
    return integers if offsets is None else pa.LargeListArray.from_arrays(pa.array(offsets), integers)


def require_labels(table: pa.Table, config: ModelConfig) -> None:
    """Training and evaluation need labels: a DataError says where they are looked for."""
    if config.label not in table.column_names:
        raise DataError(
            f"labels are needed: hand them over as y or beside the features, or as a column {config.label!r} of the "
            f"table (the estimator's `label` names it)"
        )
