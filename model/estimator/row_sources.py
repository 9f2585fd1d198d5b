"""Where an estimator's rows come from: a data set with a plan, or a stream of batches.

A data set (x/y, a table, a Parquet path) is encoded once and read in the order of the one `Plan`, so that training
goes on where it stopped. A stream (what an `input_fn` yields) gives its batches as they come. Knows no training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows, padding_lookups
from model.batches.encoded_rows import EncodedRows, concat
from model.batches.plan import DataIndex, Plan
from model.config import ModelConfig
from model.errors import ConfigError, DataError
from model.estimator.inputs import Rows, is_features, is_table, require_labels, rows_of
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.scan.fragment_scan import FragmentScan, scan_table
from model.scan.needed_columns import fit_needs_a_dataset, optional_columns, read_columns
from model.state import StateSpec
from model.tables.fragments import Fragment
from model.tables.parquet import find_fragments, read_fragment

TABLE_BATCH = 32  # rows of a batch where a table or a path comes without batch_size
EVALUATION_BATCH = 256

Engineering = Callable[[Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Encoder:
    """What turns rows into batches: the fitted columns, the label (None: not needed) and the state's spec."""

    columns: FittedColumns
    label: FittedLabel | None
    spec: StateSpec

    def encode(self, rows: Rows, first_row: int = 0) -> EncodedRows:
        """Rows, encoded; numbered from `first_row`. For padded input with the table rows it looks up besides."""
        numbers = np.arange(first_row, first_row + rows.table.num_rows)
        encoded = encode_rows(rows.table, self.columns, self.label, self.spec, numbers)
        if rows.padded is not None:
            encoded.looked_up.update(padding_lookups(rows.padded, self.columns))
        return encoded


class Dataset:
    """Rows that are all there: tables in memory, in the order of their fragments."""

    def __init__(self, parts: list[Rows], fragments: list[Fragment], batch_sequences: int | None) -> None:
        self.parts = parts
        self.fragments = tuple(fragments)
        self.batch_sequences = batch_sequences

    def scan(self, config: ModelConfig, *, fit: bool) -> list[FragmentScan]:
        """Lengths of the rows and, to fit, statistics of the columns."""
        return [self._scan(part, f, config, fit) for part, f in zip(self.parts, self.fragments, strict=True)]

    def _scan(self, part: Rows, fragment: Fragment, config: ModelConfig, fit: bool) -> FragmentScan:
        require_labels(part.table, config)
        try:
            return scan_table(part.table, config, None, fit=fit, place=fragment.file)
        except DataError as error:
            raise error.located(file=fragment.file or None, first_row=fragment.first_row or 0) from error.__cause__

    def encode(self, encoder: Encoder) -> EncodedRows:
        """All rows."""
        first, encoded = 0, []
        for part in self.parts:
            encoded.append(encoder.encode(part, first))
            first += part.table.num_rows
        return concat(encoded)

    def plan(self, encoded: EncodedRows, *, batch_sequences: int, seed: int, window_batches: int) -> Plan:
        """The order of training batches."""
        return Plan(DataIndex(self.fragments, encoded.lengths_B), batch_sequences, seed, window_batches)


@dataclass(frozen=True)
class Stream:
    """Batches as they come. `repeats`: one batch, made anew for each step, without end."""

    batches: Callable[[], Iterator[Rows]]
    repeats: bool = False


Source = Dataset | Stream


def planned_batches(encoded: EncodedRows, plan: Plan, start: int) -> Iterator[SequenceBatch]:
    """The plan's batches from step `start` on, without end."""
    while True:
        epoch = start // plan.steps_per_epoch
        stop = (epoch + 1) * plan.steps_per_epoch
        rows = np.concatenate([piece.rows for piece in plan.pieces(0, 1, start, stop)])
        place = 0
        for step in range(start, stop):
            count = plan.batch_rows(step)
            yield collate(encoded.take(rows[place : place + count]))
            place += count
        start = stop


# From the user's arguments ---------------------------------------------------------------------------------------


class Reader:
    """Turns `x`, `y`, `input_fn` and `batch_size` into a source of rows; `labelled` where y is needed."""

    def __init__(self, config: ModelConfig, engineering: Engineering | None, *, labelled: bool) -> None:
        self.config = config
        self.engineering = engineering
        self.labelled = labelled

    def open(self, x: Any, y: Any, input_fn: Callable[[], Any] | None, batch_size: int | None) -> Source:
        """The source. ConfigError for arguments that exclude each other, DataError for data that do not fit."""
        check_exclusive(x, y, input_fn, batch_size)
        if input_fn is None:
            return self._dataset(x, y, batch_size)
        produced = input_fn()
        if isinstance(produced, str | os.PathLike) or is_table(produced):
            return self._dataset(produced, None, batch_size)
        if batch_size is not None:
            raise ConfigError("batch_size is for x, tables and paths; batches of an input_fn have their own size")
        if _is_batch(produced):
            return Stream(self._again(produced, input_fn), repeats=True)
        if not isinstance(produced, Iterable):
            raise ConfigError(
                f"input_fn must return one batch (features, labels), an iterable of batches, a table or a path, but "
                f"returned {type(produced).__name__}"
            )
        return Stream(lambda: (self.rows(*_pair(batch)) for batch in produced))

    def rows(self, features: Any, labels: Any) -> Rows:
        """One batch as rows, after the user's feature engineering."""
        if self.engineering is not None:
            features, labels = self.engineering(features, labels)
        rows = rows_of(features, labels, self.config)
        if self.labelled:
            require_labels(rows.table, self.config)
        return rows

    def _dataset(self, x: Any, y: Any, batch_size: int | None) -> Dataset:
        if isinstance(x, str | os.PathLike):
            if y is not None:
                raise ConfigError("y must be left out for a path; its files hold the label column")
            fragments, names = path_fragments(x, self.config, labelled=self.labelled)
            parts = [self.rows(read_fragment(each, names[each.file]), None) for each in fragments]
            return Dataset(parts, _recounted(fragments, parts), batch_size or TABLE_BATCH)
        rows = self.rows(x, y)
        if not rows.table.num_rows:
            raise DataError("must hold at least one row, but holds none")
        fragments = [Fragment("", 0, rows.table.num_rows)]
        return Dataset([rows], fragments, batch_size or (TABLE_BATCH if is_table(x) else None))

    def _again(self, first: Any, input_fn: Callable[[], Any]) -> Callable[[], Iterator[Rows]]:
        def batches() -> Iterator[Rows]:
            yield self.rows(*_pair(first))
            while True:
                yield self.rows(*_pair(input_fn()))

        return batches


def prediction_rows(
    reader: Reader, x: Any, input_fn: Callable[[], Any] | None, batch_size: int | None
) -> Iterator[Rows]:
    """The rows to predict, to the end of the input, in parts of `batch_size` rows where it is given."""
    check_exclusive(x, None, input_fn, None)
    produced = x if input_fn is None else input_fn()
    if isinstance(produced, str | os.PathLike):
        fragments, names = path_fragments(produced, reader.config, labelled=False)
        parts: Iterator[Rows] = (reader.rows(read_fragment(each, names[each.file]), None) for each in fragments)
    elif is_features(produced) or _is_batch(produced):
        parts = iter([reader.rows(*_pair(produced))])
    elif isinstance(produced, Iterable):
        parts = (reader.rows(*_pair(item)) for item in produced)
    else:
        raise ConfigError(
            f"features must be a dict, a table, a path or batches of them, but are {type(produced).__name__}"
        )
    return parts if batch_size is None else _sliced(parts, batch_size)


def _sliced(parts: Iterator[Rows], count: int) -> Iterator[Rows]:
    for rows in parts:
        for start in range(0, rows.table.num_rows, count):
            yield rows.slice(start, count)


def path_fragments(
    path: str | os.PathLike[str], config: ModelConfig, *, labelled: bool
) -> tuple[list[Fragment], dict[str, list[str]]]:
    """The row groups under a path, and the columns that are read of each file.

    These are the model's inputs, label and weight where needed, and the states that the file may hold.
    """
    from model.state import STATE_PREFIX
    from model.tables.parquet import read_footer

    names = read_columns(config, labelled=labelled)
    fragments = find_fragments(path, names, optional=optional_columns(config))
    columns = {}
    for file in dict.fromkeys(fragment.file for fragment in fragments):
        held = read_footer(file).schema.to_arrow_schema().names
        columns[file] = names + [name for name in held if name.startswith(f"{STATE_PREFIX}_") and name not in names]
    return fragments, columns


def check_exclusive(x: Any, y: Any, input_fn: Any, batch_size: int | None) -> None:
    """x (with y) or input_fn; ConfigError for both or neither."""
    if (x is None) == (input_fn is None):
        raise ConfigError("give either x (with y) or input_fn, " + ("not both" if x is not None else "but not neither"))
    if input_fn is not None and not callable(input_fn):
        raise ConfigError(f"input_fn must be a function without arguments, but is {type(input_fn).__name__}")
    if y is not None and input_fn is not None:
        raise ConfigError("y goes with x; an input_fn returns (features, labels)")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, but is {batch_size}")


def refuse_to_learn_from_batches(config: ModelConfig) -> None:
    """ConfigError where something must be learned from all rows before training."""
    needed = fit_needs_a_dataset(config)
    if needed:
        raise ConfigError(
            f"{needed[0]} must be learned from all rows, but input_fn gives single batches; declare it, or fit on "
            f"x, a table or a path first"
        )


def _recounted(fragments: list[Fragment], parts: list[Rows]) -> list[Fragment]:
    """Fragments with the rows that feature engineering left; where their number changed, their place is unknown."""
    counts = [part.table.num_rows for part in parts]
    return [
        f if f.rows == rows else Fragment(f.file, f.row_group, rows) for f, rows in zip(fragments, counts, strict=True)
    ]


def _is_batch(value: Any) -> bool:
    """(features, labels), as a tuple or as the list that a DataLoader makes of it; or features alone."""
    if is_features(value):
        return True
    return isinstance(value, tuple | list) and len(value) == 2 and is_features(value[0]) and not is_features(value[1])


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, pa.Table) or is_features(value):
        return value, None
    if not _is_batch(value):
        raise DataError(f"a batch must be (features, labels) or features, but is {type(value).__name__}")
    features, labels = value
    return features, labels


def limited(batches: Iterator[Any], steps: int | None) -> Iterator[Any]:
    """At most `steps` of them; the one after is not asked for."""
    return batches if steps is None else islice(batches, steps)
