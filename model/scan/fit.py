"""Fitted columns and label of what the scans of all row groups have found, and the indexes of their rows.

Knows no files, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.batches.plan import DataIndex
from model.config import ModelConfig
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel, ProblemType, fit_classes, label_scale, named_classes, weights_in_order
from model.features.ordered_merge import DataStats, merged
from model.features.stats import ColumnStats
from model.scan.fragment_scan import FragmentScan
from model.scan.row_checks import declared_label
from model.tables.fragments import Fragment


def fit_columns(config: ModelConfig, scans: Sequence[FragmentScan]) -> tuple[FittedColumns, FittedLabel]:
    """Columns and label from the scans in fragment order."""
    return fit_merged(config, merged(scan.stats for scan in scans))


def fit_merged(config: ModelConfig, stats: DataStats) -> tuple[FittedColumns, FittedLabel]:
    """Columns and label from the statistics of all training rows."""
    return FittedColumns.fit(config.columns, stats.columns), _label_of(config, stats.labels)


def fit_label(config: ModelConfig, scans: Sequence[FragmentScan]) -> FittedLabel:
    """The label with its classes and their weights, or its scale: declared, or learned from the training labels."""
    return _label_of(config, merged(scan.stats for scan in scans).labels)


def _label_of(config: ModelConfig, total: ColumnStats) -> FittedLabel:
    label = declared_label(config)
    if config.problem_type is not ProblemType.CLASSIFICATION:
        if not config.standardize_label:
            return label
        shift, scale = label_scale(total)
        return label.model_copy(update={"shift": shift, "scale": scale})
    if label.num_classes is None:
        count, classes = fit_classes(config.label, total)
        label = label.model_copy(update={"num_classes": count, "classes": classes})
    elif label.classes is None and any(isinstance(value, str) for value in total.keys):
        classes = named_classes(config.label, label.num_classes, total)
        label = label.model_copy(update={"classes": classes})
    weights = weights_in_order(config.class_weights, label.class_values)
    return label.model_copy(update={"class_weights": weights})


def index_of(fragments: Sequence[Fragment], scans: Sequence[FragmentScan]) -> DataIndex:
    """The index of all rows of the fragments; those that are not used are not selected."""
    lengths = np.concatenate([scan.lengths for scan in scans])
    return DataIndex(tuple(fragments), lengths, None if all(scan.used is None for scan in scans) else _used(scans))


def split_index(index: DataIndex, scans: Sequence[FragmentScan]) -> tuple[DataIndex, DataIndex]:
    """(training, validation) over the same fragments, by the scans' split."""
    training = np.concatenate([scan.training for scan in scans if scan.training is not None])
    used = _used(scans)
    return (
        DataIndex(index.fragments, index.lengths, training & used),
        DataIndex(index.fragments, index.lengths, ~training & used),
    )


def _used(scans: Sequence[FragmentScan]) -> np.ndarray:
    return np.concatenate([np.ones(len(scan.lengths), bool) if scan.used is None else scan.used for scan in scans])
