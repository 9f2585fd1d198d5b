"""Parquet to what training needs: fragments checked, columns fitted, rows indexed and split. One distributed pass.

Each task scans one row group; the parts merge in (file, row group) order, so any number of
workers gives the same bits. The result is stored in the run's directory once, and read by workers and on resume.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from model.bundle.run_directory import QUARANTINE
from model.config import ModelConfig
from model.errors import ConfigError, DataError
from model.features.ordered_merge import OrderedMerge
from model.scan.declared_vocabularies import with_file_keys
from model.scan.fit import fit_merged, index_of, split_index
from model.scan.fit_report import report_of
from model.scan.fragment_scan import FragmentScan
from model.scan.needed_columns import optional_columns, read_columns
from model.scan.split import SplitBy
from model.scan.split_comparison import Comparison
from model.state import STATE_PREFIX, StateSpec
from model.storage import join, remove_tree
from model.tables.fragments import Fragment
from model.tables.parquet import Found, find
from model.tables.schema_agreement import SchemaAgreement
from pipelines.cluster.capacity import ray_is_running
from pipelines.config import RunConfig
from pipelines.ingest.choose_split import Choice, choose_split, future_inputs, refuse_mixed_parts, splits
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.initial_states import StatesFound
from pipelines.ingest.read_task import FEW_FRAGMENTS
from pipelines.ingest.row_counts import RowCounts
from pipelines.ingest.scan_task import ScanTask
from pipelines.tasks.map import fragments_a_task, over_numbers
from pipelines.tasks.task import NumberedTask

SMALL_BYTES = 16 * 2**20  # of decompressed columns that are scanned in less time than Ray Data takes to start
Progress = Callable[[int, int], None]
_log = logging.getLogger("dynamic_rnn")


def find_data(config: RunConfig, agreement: SchemaAgreement | None = None) -> list[Found]:
    """The row groups to train on and, where they have a path of their own, those to validate on; reads footers alone.

    DataError for files or columns that are not there, or that contradict each other.
    """
    names = read_columns(config.model)
    if splits(config):
        names += [*config.data.keys, *filter(None, [config.data.validation_by_time])]
    paths = [path for path in (config.data.train, config.data.validation) if path is not None]
    given: dict[str, Any] = {
        "optional": optional_columns(config.model),
        "where": config.data.where,
        "agreement": agreement or SchemaAgreement(),
        "partition_types": config.data.partition_types,
        "beside": STATE_PREFIX if config.data.initial_states == "read" else None,
    }
    found = [find(path, names, **given) for path in paths]
    refuse_mixed_parts(config, found[0])
    return found


def fit_data(config: RunConfig, progress: Progress | None = None) -> FittedData:
    """Scans the data of a run. DataError names file, row and column of what is wrong."""
    agreement = SchemaAgreement()
    found = find_data(config, agreement)
    states = StatesFound(config.model, found)
    model = with_file_keys(config.model, agreement.types)
    fragments, other = found[0].fragments, found[1].fragments if len(found) > 1 else []
    choice = choose_split(config, found[0]) if splits(config) else Choice(None)
    split = choice.split
    remove_tree(join(config.directory, QUARANTINE))  # what an earlier scan has left
    order = OrderedMerge()
    counts = config.data.unseen_labels == "count"
    compared = Comparison(model, order, len(fragments), config.data.validation, unseen_labels=counts)
    task = scan_task(fragments, other, config, model, split, states.early)
    nbytes, count = sum(each.nbytes for each in found), len(task.fragments)
    here = not ray_is_running() or (nbytes <= SMALL_BYTES and count <= FEW_FRAGMENTS)
    scans = collected(scanned_here(task) if here else scanned(task, nbytes), count, order, compared, progress)
    rows = _report_bad_rows(config, RowCounts.of(found, scans))
    columns, label = fit_merged(config.model, order.total)
    for line in compared.lines(label):
        _log.warning(line)
    index = index_of(fragments, scans[: len(fragments)])
    validation = index_of(other, scans[len(fragments) :]) if other else None
    if split is not None:
        index, validation = split_index(index, scans)
    report = report_of(columns, label, order.total)
    warnings = (*future_inputs(config.model, found[0]), *choice.warnings)
    told = (choice.told, warnings, states.fitted(columns))
    return _checked(config, FittedData(columns, label, index, validation, report, rows, *told))


def _report_bad_rows(config: RunConfig, rows: RowCounts) -> RowCounts:
    """Says which rows are bad; DataError where no row is left."""
    for line in rows.lines(join(config.directory, QUARANTINE)):
        _log.warning(line)
    if not rows.used:
        raise DataError(
            f"training needs rows, but of {rows.rows} the filter keeps out {rows.filtered} and {rows.bad} are bad",
            file=config.data.train,
        )
    return rows


def _checked(config: RunConfig, prepared: FittedData) -> FittedData:
    if not prepared.train.rows or not prepared.train.steps:
        raise DataError(
            f"training needs at least one row with a step, but {prepared.train.rows} rows with "
            f"{prepared.train.steps} steps are left for it; check the path and data.validation_fraction",
            file=config.data.train,
        )
    if prepared.validation is not None and not prepared.validation.rows and config.data.validation is not None:
        raise DataError("must hold at least one row to validate on, but none is left", file=config.data.validation)
    if prepared.validation is not None and not prepared.validation.rows:
        raise ConfigError(
            f"data.validation_fraction {config.data.validation_fraction} leaves no row to validate on; raise it, "
            f"name data.validation, or set it to 0 to train without validation"
        )
    return prepared


def scan_task(
    fragments: Sequence[Fragment],
    validation: Sequence[Fragment],
    config: RunConfig,
    model: ModelConfig,
    split: SplitBy | None,
    states: StateSpec | None = None,
) -> ScanTask:
    """What scans any of the fragments, first those that are trained on; statistics by `model`.

    Rows may bring `states`.
    """
    quarantine = join(config.directory, QUARANTINE) if config.data.on_bad_rows == "skip" else None
    strict = len(fragments) if config.data.unseen_labels == "count" else None
    every = (*fragments, *validation)
    return ScanTask(every, model, split, config.plugins, config.data.where, quarantine, strict, states)


def scanned(task: ScanTask, nbytes: int) -> Iterator[tuple[int, FragmentScan]]:
    """(number, scan) of all fragments, of `nbytes` in all, as they come from Ray Data's tasks."""
    count = len(task.fragments)
    for number, plain in over_numbers(NumberedTask(task), range(count), each=fragments_a_task(count, nbytes)):
        yield number, FragmentScan.from_plain(plain)


def scanned_here(task: ScanTask) -> Iterator[tuple[int, FragmentScan]]:
    """The same in this process: of small data it takes less than Ray Data's start."""
    for number in range(len(task.fragments)):
        yield number, task.scan(number)


def collected(
    scans: Iterator[tuple[int, FragmentScan]],
    count: int,
    order: OrderedMerge,
    compared: Comparison,
    progress: Progress | None = None,
) -> list[FragmentScan]:
    """Lengths and split of all fragments in order. Statistics go to `order` or, of those that are not trained on, to
    `compared`: they do not wait here for the last fragment, for they would not fit into memory.
    """
    found: list[FragmentScan | None] = [None] * count
    for done, (number, scan) in enumerate(scans, 1):
        found[number] = scan.without_stats()
        if number < compared.fitted:
            order.add(number, scan.stats)
        else:
            compared.add(scan.stats)
        if progress is not None:
            progress(done, count)
    complete = [part for part in found if part is not None]
    assert len(complete) == count, "each fragment gives one scan"
    return complete


# Stored in the run's directory ------------------------------------------------------------------------------------
