"""What of a table's rows is refused, and what the accepted ones tell: the one place where rows are checked.

Knows no files, no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from model.columns import Numeric, Vocabulary, Weighted
from model.columns.config import source_of
from model.config import ModelConfig
from model.errors import DataError
from model.features.categorical import FittedHashBucket
from model.features.combined import FittedWeighted
from model.features.fit import entry_to_row, fit_source
from model.features.fitted_columns import iterate_leaves, iterate_sources
from model.features.labels import FittedLabel, ProblemType, label_stats, refuse_null, text_values
from model.features.ordered_merge import DataStats
from model.features.sequence_table import SequenceTable
from model.features.stats import ColumnStats, keys_of, matrix_of, numeric_stats, stats_of
from model.tables.arrow_lists import Array, is_list, numbers


def checked_stats(
    rows: SequenceTable, config: ModelConfig, widths: Mapping[str, int] | None = None, *, unseen_labels: bool = False
) -> DataStats:
    """Statistics of a table; refuses now, and for rows of every split, what would otherwise stop the training midway.

    Numbers are encoded by a provisional fit of this table; labels and weights as far as the classes are declared.
    `widths` say how many values an entry of a numeric column must hold. With `unseen_labels` labels need be none of
    the declared classes.
    """
    lengths_B = rows.lengths_B
    columns, quantiles = {}, config.columns.learned_boundaries()
    for group, key, source in iterate_leaves(config.columns):
        entries, offsets = rows.entries(source.name, group)
        try:
            if widths and source.name in widths and isinstance(source, Numeric):
                matrix_of(entries, source.name, widths[source.name])
            if isinstance(source, Vocabulary) and source.keys is not None:
                _check_keys(source, entries)
            columns[key] = stats_of(source, entries, quantiles=source.name in quantiles)
            if isinstance(source, Numeric):
                fit_source(source, columns[key]).encode(entries)
        except DataError as error:
            raise entry_to_row(error, offsets) from error.__cause__
    _check_weights(rows, config)
    label = declared_label(config)
    entries, offsets = label.entries(rows.table, lengths_B)
    if _learns_classes(entries, config):
        try:
            refuse_null(entries, config.label)
        except DataError as error:
            raise entry_to_row(error, offsets) from error.__cause__
    else:
        label.encode_entries(entries, offsets, unseen=unseen_labels)
    label.encode_weights(rows.table, lengths_B)
    return DataStats(columns, _label_stats(entries, config))


def _check_keys(source: Vocabulary, entries: Array) -> None:
    """Refuses a column whose values can be none of the declared keys: neither by their type nor by any of them."""
    found = entries.type.value_type if is_list(entries.type) else entries.type
    if pa.types.is_null(found):
        return
    values, _ = keys_of(entries.slice(0, 0), source.name)
    assert source.keys is not None, "only declared keys are checked"
    if isinstance(source.keys[0], int) == pa.types.is_integer(values.type):
        return
    keys, wanted = ("integers", "text in quotes") if isinstance(source.keys[0], int) else ("strings", "whole numbers")
    raise DataError(
        f"must hold {keys} as the keys of its vocabulary do, such as {source.keys[0]!r}, but its type is {found}; "
        f"declare the keys as {wanted}, or write the column as {keys}",
        column=source.name,
    )


def _check_weights(rows: SequenceTable, config: ModelConfig) -> None:
    """Weighted values have a number each, whatever the values mean."""
    for group, _, column in iterate_sources(config.columns):
        source = source_of(column)
        if isinstance(source, Weighted):
            parts, offsets = rows.source_entries(column, group)
            values = FittedHashBucket(name=source.source.name, buckets=1)
            try:
                FittedWeighted(source=values, weights=source.weights).encode(*parts)
            except DataError as error:
                raise entry_to_row(error, offsets) from error.__cause__


def _label_stats(entries: Array, config: ModelConfig) -> ColumnStats:
    """What the labels tell: the counts of their values, or the moments of numbers."""
    if config.problem_type is ProblemType.CLASSIFICATION:
        return label_stats(config.label, entries)
    return numeric_stats(numbers(entries, config.label)[:, None])


def _learns_classes(entries: Array, config: ModelConfig) -> bool:
    """Whether class values are learned: where they are not declared, and strings are no ids either."""
    classification = config.problem_type is ProblemType.CLASSIFICATION
    return classification and config.classes is None and (config.num_classes == "auto" or text_values(entries))


# The label before its classes are known -------------------------------------------------------------------------


def unfitted_label(config: ModelConfig) -> FittedLabel:
    """The label's declaration, enough to find its entries before the classes are known."""
    return FittedLabel(
        name=config.label,
        weight=config.weight,
        problem_type=config.problem_type,
        prediction_type=config.prediction_type,
    )


def declared_label(config: ModelConfig) -> FittedLabel:
    """The label as far as its classes are declared."""
    label = unfitted_label(config)
    if config.problem_type is not ProblemType.CLASSIFICATION:
        return label
    if config.classes is not None:
        return label.model_copy(update={"num_classes": len(config.classes), "classes": config.classes})
    return label.model_copy(update={"num_classes": None if config.num_classes == "auto" else config.num_classes})
