"""What the model predicts: problem and prediction type, the label column, its classes, and row weights.

Labels become int64 class ids or float32 targets; weights become float32. Knows no torch, no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import numpy as np
import pyarrow as pa

from model.columns import Key
from model.errors import ConfigError, DataError
from model.features.categorical import FittedVocabulary
from model.features.fit import entry_to_row, learned_keys, refuse_mixed
from model.features.stats import ColumnStats, key_stats, keys_of
from model.settings import Settings, did_you_mean
from model.tables import compute as pc
from model.tables.arrow_lists import (
    Array,
    as_float32,
    check_lengths,
    is_list,
    narrow_numbers,
    require_column,
    unnest,
)
from model.tables.keys import key_type

UNSEEN = -1  # the id of a label that is of no class, where such labels may be


class ProblemType(StrEnum):
    """What is predicted: a class, or a number (the original's LINEAR_REGRESSION)."""

    CLASSIFICATION = "classification"
    LINEAR_REGRESSION = "linear_regression"


class PredictionType(StrEnum):
    """How often: once a sequence, or at each step."""

    SINGLE_VALUE = "single_value"
    MULTIPLE_VALUE = "multiple_value"


class FittedLabel(Settings):
    """The label column as fitted. `classes` are the class values in id order; null means 0 … num_classes − 1.

    `class_weights` are in id order. The network predicts regression labels as (label − shift) / scale; batches hold
    them as they are.
    """

    name: str
    weight: str | None = None
    problem_type: ProblemType
    prediction_type: PredictionType
    num_classes: int | None = None
    classes: tuple[Key, ...] | None = None
    class_weights: tuple[float, ...] | None = None
    shift: float = 0.0
    scale: float = 1.0

    @property
    def per_step(self) -> bool:
        """Whether there is a label a step."""
        return self.prediction_type is PredictionType.MULTIPLE_VALUE

    @property
    def class_values(self) -> tuple[Key, ...]:
        """The class values in id order."""
        return self.classes if self.classes is not None else tuple(range(self.num_classes or 0))

    def encode(self, table: pa.Table, lengths_B: np.ndarray, *, unseen: bool = False) -> np.ndarray:
        """Labels flat over the steps (MULTIPLE_VALUE) or one a row: int64 class ids or float32.

        DataError for a missing column, a list of another length, a null, and a value outside the classes, which is
        UNSEEN instead where `unseen` labels may be.
        """
        return self.encode_entries(*self.entries(table, lengths_B), unseen=unseen)

    def encode_entries(self, entries: Array, offsets: np.ndarray | None, *, unseen: bool = False) -> np.ndarray:
        """`encode` of what `entries` gave."""
        try:
            if self.problem_type is ProblemType.CLASSIFICATION:
                return self._class_ids(entries, unseen=unseen)
            return self._targets(entries)
        except DataError as error:
            raise entry_to_row(error, offsets) from error.__cause__

    def entries(self, table: pa.Table, lengths_B: np.ndarray) -> tuple[Array, np.ndarray | None]:
        """The label values before encoding, and for MULTIPLE_VALUE the offsets of the rows in them."""
        array = require_column(table, self.name)
        if not self.per_step:
            if is_list(array.type):
                raise DataError(
                    "single_value needs one label a row, but this column holds lists; "
                    "declare prediction_type: multiple_value for one a step",
                    column=self.name,
                )
            return array, None
        if not is_list(array.type):
            raise DataError(
                "multiple_value needs a list of labels, one a step, but this column holds single values; "
                "declare prediction_type: single_value for one a row",
                column=self.name,
            )
        values, offsets = unnest(array, self.name)
        check_lengths(np.diff(offsets), self.name, lengths_B, "each sequence column")
        return values, offsets

    def _class_ids(self, entries: Array, *, unseen: bool) -> np.ndarray:
        keys = _label_keys(entries, self.name)
        refuse_null(keys, self.name)
        if self.classes is None and pa.types.is_int64(keys.type):
            ids: np.ndarray = keys.to_numpy(zero_copy_only=False).astype(np.int64)
            outside = (ids < 0) | (ids >= (self.num_classes or 0))
        else:
            vocabulary = FittedVocabulary(name=self.name, keys=self.class_values, oov_buckets=0)
            ids = vocabulary.encode(keys).values.astype(np.int64)
            outside = ids < 0
        if outside.any() and unseen:
            return np.where(outside, UNSEEN, ids)
        if outside.any():
            entry = int(np.argmax(outside))
            raise DataError(
                f"must be one of the {len(self.class_values)} classes ({_examples(self.class_values)}), "
                f"but is {keys[entry].as_py()!r}",
                row=entry,
                column=self.name,
            )
        return ids

    def _targets(self, entries: Array) -> np.ndarray:
        refuse_null(entries, self.name)
        targets = as_float32(narrow_numbers(entries, self.name))
        bad = ~np.isfinite(targets)
        if bad.any():
            entry = int(np.argmax(bad))
            raise DataError(
                f"must be a finite number within float32's range, but is {entries[entry]}", row=entry, column=self.name
            )
        return targets

    def encode_weights(
        self, table: pa.Table, lengths_B: np.ndarray, labels: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Weights flat over the steps or one a row, float32 and ≥ 0; None where none are declared.

        A weight a row is repeated over the row's steps for MULTIPLE_VALUE; the weights of the classes in `labels`,
        which `encode` gave, are multiplied in.
        """
        weights = self._column_weights(table, lengths_B)
        if self.class_weights is None or labels is None:
            return weights
        of_classes: np.ndarray = np.array([*self.class_weights, 1], np.float32)[labels]  # the last: UNSEEN
        return of_classes if weights is None else weights * of_classes

    def _column_weights(self, table: pa.Table, lengths_B: np.ndarray) -> np.ndarray | None:
        if self.weight is None:
            return None
        array, offsets = require_column(table, self.weight), None
        if is_list(array.type):
            if not self.per_step:
                raise DataError("single_value needs one weight a row, but this column holds lists", column=self.weight)
            array, offsets = unnest(array, self.weight)
            check_lengths(np.diff(offsets), self.weight, lengths_B, "each sequence column")
        weights = as_float32(narrow_numbers(array, self.weight))
        bad = ~(np.isfinite(weights) & (weights >= 0))
        if bad.any():
            entry = int(np.argmax(bad))
            error = DataError(
                f"a weight must be a number of at least 0, but is {array[entry].as_py()}",
                row=entry,
                column=self.weight,
            )
            raise entry_to_row(error, offsets)
        return np.repeat(weights, lengths_B) if self.per_step and offsets is None else weights


def label_stats(name: str, entries: Array) -> ColumnStats:
    """Counts of the label's values, for `num_classes: auto`."""
    return key_stats(_label_keys(entries, name), name)


def _label_keys(entries: Array, name: str) -> Array:
    keys, offsets = keys_of(entries, name)
    if offsets is not None:
        raise DataError("must hold one label a step, but its entries are lists", column=name)
    return keys


def fit_classes(name: str, stats: ColumnStats) -> tuple[int, tuple[Key, ...] | None]:
    """(num_classes, classes) from the labels: sorted by value; None where they are 0 … n − 1 already.

    Those that only held-out rows have are counted 0 times: they are classes, but no training can be on them alone.
    """
    refuse_mixed(stats, name)
    trained, values = len(learned_keys(stats.keys)), _all_values(stats)
    if trained < 2:
        raise DataError(
            f"classification needs at least two classes, but the training labels hold {trained}",
            column=name,
        )
    return len(values), None if values == tuple(range(len(values))) else values


def text_values(entries: Array) -> bool:
    """Whether label entries are text."""
    return bool(key_type(entries.type) == pa.string())


def named_classes(name: str, num_classes: int, stats: ColumnStats) -> tuple[Key, ...]:
    """The class values where `num_classes` is declared and the labels are strings: sorted, and all of them seen."""
    refuse_mixed(stats, name)
    values = _all_values(stats)
    if len(values) != num_classes:
        raise DataError(
            f"num_classes is {num_classes}, but the training labels hold {len(values)} values ({_examples(values)}); "
            f"declare `classes` with all of them, or num_classes: auto to take those there are",
            column=name,
        )
    return values


def _all_values(stats: ColumnStats) -> tuple[Key, ...]:
    return tuple(sorted(learned_keys(stats.keys, min_count=0)))


def weights_in_order(class_weights: Mapping[str, float], values: tuple[Key, ...]) -> tuple[float, ...] | None:
    """A weight a class, 1 where none is declared; ConfigError for a weight of what is no class."""
    known = [str(value) for value in values]
    for name in class_weights:
        if name not in known:
            raise ConfigError(
                f"class_weights must name classes ({_examples(values)}), but names {name!r}{did_you_mean(name, known)}"
            )
    return tuple(class_weights.get(name, 1.0) for name in known) if class_weights else None


def label_scale(stats: ColumnStats) -> tuple[float, float]:
    """(mean, deviation) of the training labels; (mean, 1) where they do not differ, (0, 1) where there are none."""
    if not stats.count.any():
        return 0.0, 1.0
    deviation = float(np.sqrt(stats.squares[0] / stats.count[0]))
    varies = stats.high[0] > stats.low[0] and deviation > np.finfo(np.float64).tiny
    return (float(stats.mean[0]), deviation) if varies else (float(stats.low[0]), 1.0)


def refuse_null(entries: Array, name: str) -> None:
    """A DataError whose row is the first null entry."""
    if entries.null_count:
        row = int(np.argmax(pc.is_null(entries).to_numpy(zero_copy_only=False)))
        raise DataError("a label must not be null, but one is", row=row, column=name)


def _examples(values: tuple[Key, ...]) -> str:
    shown = ", ".join(repr(value) for value in values[:5])
    return f"{shown}, …" if len(values) > 5 else shown
