"""One pass over a fragment: each row's length, split and faults, and the statistics that fit the columns.

The parts merge in fragment order; who calls `scan_fragment` (a loop here, tasks of a cluster there) does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from model.batches.plan import DataIndex, Fragment
from model.columns import Crossed, Weighted, data_columns
from model.columns.config import source_of
from model.config import ModelConfig
from model.errors import DataError
from model.features.fitted_columns import (
    GROUPS,
    FittedColumns,
    iterate_leaves,
    iterate_sources,
    sequence_lengths,
    with_null_steps,
)
from model.features.labels import (
    FittedLabel,
    ProblemType,
    fit_classes,
    label_scale,
    named_classes,
    require_column,
    weights_in_order,
)
from model.features.ordered_merge import DataStats, merged
from model.features.stats import ColumnStats
from model.scan.bad_rows import Reason, common_widths, find_bad_rows, reasons_of
from model.scan.row_checks import check_rows as check_rows
from model.scan.row_checks import checked_stats, declared_label
from model.scan.row_checks import unfitted_label as unfitted_label
from model.settings import Settings
from model.tables.arrow_lists import Array
from model.tables.filter_arrow import kept_rows
from model.tables.filters import Filter
from model.tables.parquet import is_stored, read_footer, read_fragment


class SplitBy(Settings):
    """A validation split by a stable hash of the key column; of the row's place below `root` where there is no key.

    So the same data are split alike wherever they lie.
    """

    fraction: float
    key: str | None = None
    root: str = ""


OnBad = Callable[[Fragment, Mapping[int, DataError]], object]  # errors by the row's place in the fragment


@dataclass(frozen=True)
class FragmentScan:
    """What one fragment tells: lengths of all its rows, which of them are training rows, statistics of those.

    `used` marks the rows that a filter keeps and that are not bad (None: all); the others have length 0 and are in no
    split. `reasons` say why rows are bad.
    """

    lengths: np.ndarray
    training: np.ndarray | None
    columns: dict[str, ColumnStats]
    labels: ColumnStats
    used: np.ndarray | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def stats(self) -> DataStats:
        """What the training rows tell."""
        return DataStats(self.columns, self.labels)

    def without_stats(self) -> FragmentScan:
        """The rows' lengths and split alone."""
        return replace(self, columns={}, labels=ColumnStats())

    @property
    def bad_rows(self) -> int:
        """Rows that were left out because they are bad."""
        return sum(reason.rows for reason in self.reasons)

    def to_plain(self) -> dict[str, Any]:
        """Plain data that travels as JSON."""
        return {
            "lengths": self.lengths.tolist(),
            "training": None if self.training is None else self.training.tolist(),
            "columns": {key: stats.to_plain() for key, stats in self.columns.items()},
            "labels": self.labels.to_plain(),
            "used": None if self.used is None else self.used.tolist(),
            "reasons": [asdict(reason) for reason in self.reasons],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> FragmentScan:
        """What `to_plain` described."""
        return cls(
            np.array(plain["lengths"], np.int32),
            None if plain["training"] is None else np.array(plain["training"], bool),
            {key: ColumnStats.from_plain(stats) for key, stats in plain["columns"].items()},
            ColumnStats.from_plain(plain["labels"]),
            None if plain["used"] is None else np.array(plain["used"], bool),
            tuple(Reason(**reason) for reason in plain["reasons"]),
        )


def read_columns(config: ModelConfig, *, labelled: bool = True) -> list[str]:
    """The data columns a model reads: its inputs and, to train or evaluate, label and weight."""
    names = [name for group in GROUPS for name in config.columns.data_columns(group)]
    if labelled:
        names += [name for name in (config.label, config.weight) if name is not None]
    return list(dict.fromkeys(names))


def optional_columns(config: ModelConfig) -> list[str]:
    """The columns that may be missing in some of the files, as nulls: those whose nulls the model declares to bear.

    These are numbers with `missing: mean` or a number, and categories, where a null is no value; not those that are
    weighted or crossed.
    """
    tolerant: dict[str, bool] = {}
    for _, _, column in iterate_sources(config.columns):
        source = source_of(column)
        bears = not isinstance(source, Weighted | Crossed) and getattr(source, "missing", None) != "error"
        for name in data_columns(source):
            tolerant[name] = tolerant.get(name, True) and bears
    return [name for name, bears in tolerant.items() if bears and name not in (config.label, config.weight)]


def needs_label_values(config: ModelConfig) -> bool:
    """Whether the classes must be learned from the training labels."""
    classification = config.problem_type is ProblemType.CLASSIFICATION
    return classification and config.classes is None and config.num_classes == "auto"


def scan_fragment(
    fragment: Fragment,
    config: ModelConfig,
    split: SplitBy | None,
    *,
    fit: bool,
    where: Filter | None = None,
    on_bad: OnBad | None = None,
) -> FragmentScan:
    """Reads the columns a model needs and scans the rows that `where` keeps; errors name the file and the row in it.

    With `on_bad`, bad rows are left out and handed to it; a row group whose pages are damaged is left out as a whole.
    """
    names = [*read_columns(config), *(where.columns if where is not None else ())]
    if split is not None and split.key is not None:
        names.append(split.key)
    try:
        table = read_fragment(fragment, names)
    except DataError as error:
        if on_bad is None or not is_stored(fragment):
            raise
        return _unreadable(fragment, config, split, error)
    try:
        return _scan_used(table, fragment, config, split, fit=fit, where=where, on_bad=on_bad)
    except DataError as error:
        raise error.located(file=fragment.file, first_row=first_row(fragment)) from error.__cause__


def _unreadable(fragment: Fragment, config: ModelConfig, split: SplitBy | None, error: DataError) -> FragmentScan:
    """A row group without usable rows."""
    nothing = np.zeros(fragment.rows, bool)
    return FragmentScan(
        np.zeros(fragment.rows, np.int32),
        None if split is None else nothing,
        {key: ColumnStats() for _, key, _ in iterate_leaves(config.columns)},
        ColumnStats(),
        nothing,
        (Reason(error.problem, None, fragment.rows, fragment.file, None),),
    )


def _scan_used(
    table: pa.Table,
    fragment: Fragment,
    config: ModelConfig,
    split: SplitBy | None,
    *,
    fit: bool,
    where: Filter | None,
    on_bad: OnBad | None,
) -> FragmentScan:
    """The scan of the rows that are kept and not bad, spread over all rows. A DataError's row is that of `table`."""
    rows = np.arange(table.num_rows) if where is None else np.flatnonzero(kept_rows(where, table))
    reasons: tuple[Reason, ...] = ()
    try:
        scan = _scan_rows(table, rows, fragment, config, split, fit=fit)
    except DataError:
        if on_bad is None:
            raise
        errors = _bad_rows(table, rows, config)
        on_bad(fragment, errors)
        reasons = reasons_of(errors, fragment.file, first_row(fragment))
        rows = rows[~np.isin(rows, list(errors))]
        scan = _scan_rows(table, rows, fragment, config, split, fit=fit)
    if len(rows) == table.num_rows:
        return scan
    return replace(
        scan,
        lengths=_spread(scan.lengths, rows, table.num_rows),
        training=None if scan.training is None else _spread(scan.training, rows, table.num_rows),
        used=_spread(np.ones(len(rows), bool), rows, table.num_rows),
        reasons=reasons,
    )


def _scan_rows(
    table: pa.Table, rows: np.ndarray, fragment: Fragment, config: ModelConfig, split: SplitBy | None, *, fit: bool
) -> FragmentScan:
    place = f"{fragment.file.removeprefix(split.root if split else '')}#{fragment.row_group}"
    try:
        return scan_table(_taken(table, rows), config, split, fit=fit, place=place, rows=rows)
    except DataError as error:
        raise _at(error, rows) from error.__cause__


def _bad_rows(table: pa.Table, rows: np.ndarray, config: ModelConfig) -> dict[int, DataError]:
    """The errors of those of the `rows` of a table that are bad, by their place in it."""
    used = with_null_steps(_taken(table, rows), config.columns)
    widths = common_widths(used, config)

    def check(part: pa.Table) -> None:
        checked_stats(part, config, sequence_lengths(part, config.columns), widths)

    return {int(rows[row]): error for row, error in find_bad_rows(used, check).items()}


def _taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    return table if len(rows) == table.num_rows else table.take(pa.array(rows))


def _at(error: DataError, rows: np.ndarray) -> DataError:
    """An error whose row counts from the table that `rows` were taken from."""
    row = None if error.row is None else int(rows[error.row])
    return type(error)(error.problem, file=error.file, row=row, column=error.column)


def _spread(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    whole = np.zeros(count, values.dtype)
    whole[rows] = values
    return whole


def scan_table(
    table: pa.Table,
    config: ModelConfig,
    split: SplitBy | None,
    *,
    fit: bool,
    place: str,
    rows: np.ndarray | None = None,
) -> FragmentScan:
    """`scan_fragment` on a table in memory; `rows` are the places of its rows in the fragment `place`.

    Every row is checked; training rows (all, without a split) give the statistics.
    """
    table = with_null_steps(table, config.columns)
    lengths = sequence_lengths(table, config.columns).astype(np.int32)
    if split is None:
        stats, training = checked_stats(table, config, lengths), None
    else:
        training = training_rows(table, split, place, rows)
        stats = _stats_at(np.flatnonzero(training), table, config, lengths)
        _stats_at(np.flatnonzero(~training), table, config, lengths)
    scan = FragmentScan(lengths, training, stats.columns, stats.labels)
    return scan if fit else scan.without_stats()


def _stats_at(rows: np.ndarray, table: pa.Table, config: ModelConfig, lengths: np.ndarray) -> DataStats:
    """Checked statistics of some rows of a table."""
    try:
        return checked_stats(_taken(table, rows), config, lengths[rows])
    except DataError as error:
        raise _at(error, rows) from error.__cause__


def training_rows(table: pa.Table, split: SplitBy, place: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Boolean [rows]: False for the `fraction` of keys (or rows, by their places) whose stable hash is smallest."""
    if split.key is None:
        places = range(table.num_rows) if rows is None else rows.tolist()
        keys = np.array([f"{place}#{row}" for row in places], object)
    else:
        keys = _key_texts(require_column(table, split.key), split.key)
    import pandas as pd  # takes as long to load as all the rest of this package; few need a split

    hashes = pd.util.hash_array(keys, categorize=True)
    return np.asarray(hashes.astype(np.float64) / 2**64 >= split.fraction)


def _key_texts(array: Array, name: str) -> np.ndarray:
    """Keys as Arrow writes them: int32 and int64 agree, and a null beside them changes nothing."""
    try:
        texts = array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"a split key must be a string, a number or a time, but its type is {array.type}", column=name
        ) from error
    found: np.ndarray = texts.fill_null("").to_numpy(zero_copy_only=False)
    return found


def first_row(fragment: Fragment) -> int:
    """Number in its file of a fragment's first row; errors count from the file's start."""
    if fragment.first_row is not None:
        return fragment.first_row
    metadata = read_footer(fragment.file)
    return sum(metadata.row_group(group).num_rows for group in range(fragment.row_group))


# Merging --------------------------------------------------------------------------------------------------------


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
