"""One pass over a fragment: each row's length, split and faults, and the statistics that fit the columns.

The parts merge in fragment order; who calls `scan_fragment` (a loop here, tasks of a cluster there) does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from model.config import ModelConfig
from model.errors import DataError, DecodeError
from model.features.fitted_columns import (
    iterate_leaves,
)
from model.features.ordered_merge import DataStats
from model.features.sequence_table import SequenceTable
from model.features.stats import ColumnStats
from model.scan.bad_rows import Reason, common_widths, find_bad_rows, merged_reasons, reasons_of
from model.scan.needed_columns import read_columns
from model.scan.row_checks import checked_stats
from model.scan.split import SplitBy, training_rows
from model.state import StateSpec
from model.tables.filter_arrow import kept_rows
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import first_row, is_stored, pieces, read_fragment

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
        """Plain data that travels as JSON, but for what is told of each row: arrays, which travel as they are."""
        return {
            "lengths": self.lengths,
            "training": self.training,
            "columns": {key: stats.to_plain() for key, stats in self.columns.items()},
            "labels": self.labels.to_plain(),
            "used": self.used,
            "reasons": [asdict(reason) for reason in self.reasons],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> FragmentScan:
        """What `to_plain` described."""
        return cls(
            plain["lengths"],
            plain["training"],
            {key: ColumnStats.from_plain(stats) for key, stats in plain["columns"].items()},
            ColumnStats.from_plain(plain["labels"]),
            plain["used"],
            tuple(Reason(**reason) for reason in plain["reasons"]),
        )


def scan_fragment(
    fragment: Fragment,
    config: ModelConfig,
    split: SplitBy | None,
    *,
    fit: bool,
    where: Filter | None = None,
    on_bad: OnBad | None = None,
    unseen_labels: bool = False,
    states: StateSpec | None = None,
) -> FragmentScan:
    """Reads the columns a model needs and scans the rows that `where` keeps; errors name the file and the row in it.

    Where the file has `states`, they are checked, too. With `on_bad`, bad rows are left out and handed to it; a row
    group whose pages are damaged is left out as a whole. With `unseen_labels`, as of rows that only validate, labels
    need be none of the declared classes.
    """
    names = [*read_columns(config), *(where.columns if where is not None else ()), *(states.names if states else ())]
    if split is not None:
        names += split.columns
    try:
        table = read_fragment(fragment, names)
    except DecodeError as error:
        if on_bad is None or not is_stored(fragment):
            raise
        return _unreadable(fragment, config, split, error)
    scan = partial(
        _scan_used, config=config, split=split, fit=fit, where=where, unseen_labels=unseen_labels, states=states
    )
    return _in_pieces(table, fragment, on_bad, scan)


def _in_pieces(
    table: pa.Table, fragment: Fragment, on_bad: OnBad | None, scan: Callable[..., FragmentScan]
) -> FragmentScan:
    """The scan of a row group: of its pieces one after the other, where there are several. Errors name file and row."""
    scans: list[FragmentScan] = []
    bad: dict[int, DataError] = {}
    for start, piece in pieces(table):
        part = replace(fragment, rows=piece.num_rows, first_row=first_row(fragment) + start)
        found: list[Mapping[int, DataError]] = []
        try:
            scans.append(scan(piece, part, on_bad=None if on_bad is None else lambda _, errors: found.append(errors)))  # noqa: B023
        except DataError as error:
            raise error.located(file=fragment.file, first_row=first_row(part)) from error.__cause__
        bad.update((start + row, error) for errors in found for row, error in errors.items())
    if on_bad is not None and bad:
        on_bad(fragment, bad)
    try:
        return scans[0] if len(scans) == 1 else _joined(scans)
    except DataError as error:
        raise error.located(file=fragment.file) from error


def _joined(scans: Sequence[FragmentScan]) -> FragmentScan:
    """The scans of a row group's pieces as that of the row group."""
    columns, labels = scans[0].columns, scans[0].labels
    for scan in scans[1:]:
        columns = {key: stats.merge(scan.columns[key]) for key, stats in columns.items()}
        labels = labels.merge(scan.labels)
    used = [np.ones(len(scan.lengths), bool) if scan.used is None else scan.used for scan in scans]
    training = [scan.training for scan in scans if scan.training is not None]
    return FragmentScan(
        np.concatenate([scan.lengths for scan in scans]),
        np.concatenate(training) if training else None,
        columns,
        labels,
        None if all(scan.used is None for scan in scans) else np.concatenate(used),
        merged_reasons(reason for scan in scans for reason in scan.reasons),
    )


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
    unseen_labels: bool,
    states: StateSpec | None,
) -> FragmentScan:
    """The scan of the rows that are kept and not bad, spread over all rows. A DataError's row is that of `table`."""
    rows = np.arange(table.num_rows) if where is None else np.flatnonzero(kept_rows(where, table))
    reasons: tuple[Reason, ...] = ()
    scan_rows = partial(
        _scan_rows,
        fragment=fragment,
        config=config,
        split=split,
        fit=fit,
        unseen_labels=unseen_labels,
        states=states,
    )
    try:
        scan = scan_rows(table, rows)
    except DataError:
        if on_bad is None:
            raise
        errors = _bad_rows(table, rows, config, states, unseen_labels=unseen_labels)
        on_bad(fragment, errors)
        reasons = reasons_of(errors, fragment.file, first_row(fragment))
        rows = rows[~np.isin(rows, list(errors))]
        scan = scan_rows(table, rows)
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
    table: pa.Table,
    rows: np.ndarray,
    *,
    fragment: Fragment,
    config: ModelConfig,
    split: SplitBy | None,
    fit: bool,
    unseen_labels: bool,
    states: StateSpec | None,
) -> FragmentScan:
    place = f"{fragment.file.removeprefix(split.root if split else '')}#{fragment.row_group}"
    used = _taken(table, rows)
    try:
        if states is not None:
            states.from_arrow(used)
        return scan_table(used, config, split, fit=fit, place=place, rows=rows, unseen_labels=unseen_labels)
    except DataError as error:
        raise _at(error, rows) from error.__cause__


def _bad_rows(
    table: pa.Table, rows: np.ndarray, config: ModelConfig, states: StateSpec | None, *, unseen_labels: bool
) -> dict[int, DataError]:
    """The errors of those of the `rows` of a table that are bad, by their place in it."""
    used = SequenceTable.of(_taken(table, rows), config.columns)
    widths = common_widths(used, config)

    def check(part: pa.Table) -> None:
        if states is not None:
            states.from_arrow(part)
        checked_stats(SequenceTable(part, config.columns), config, widths, unseen_labels=unseen_labels)

    return {int(rows[row]): error for row, error in find_bad_rows(used.table, check).items()}


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
    unseen_labels: bool = False,
) -> FragmentScan:
    """`scan_fragment` on a table in memory; `rows` are the places of its rows in the fragment `place`.

    Every row is checked; training rows (all, without a split) give the statistics. Of the labels of held-out rows just
    the values are told, as counted 0 times: a class that no training row has is one all the same.
    """
    whole = SequenceTable.of(table, config.columns)
    lengths = whole.lengths_B.astype(np.int32)
    if split is None:
        stats, training = checked_stats(whole, config, unseen_labels=unseen_labels), None
    else:
        training = training_rows(whole.table, split, place, rows)
        stats = _stats_at(np.flatnonzero(training), whole.table, config)
        held_out = _stats_at(np.flatnonzero(~training), whole.table, config)
        stats.labels.keys.update(dict.fromkeys(held_out.labels.keys, 0))
    scan = FragmentScan(lengths, training, stats.columns, stats.labels)
    return scan if fit else scan.without_stats()


def _stats_at(rows: np.ndarray, table: pa.Table, config: ModelConfig) -> DataStats:
    """Checked statistics of some rows of a table."""
    try:
        return checked_stats(SequenceTable(_taken(table, rows), config.columns), config)
    except DataError as error:
        raise _at(error, rows) from error.__cause__


# Merging --------------------------------------------------------------------------------------------------------
