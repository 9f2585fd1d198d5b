"""Evaluation of a bundle: exact metrics over every row once, by any number of tasks.

May import: pipelines.ingest, pipelines.quarantine, pipelines.tasks, model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from model.batches.encode import encode_rows
from model.bundle.run_directory import resolve_bundle
from model.errors import ConfigError, DataError, DecodeError
from model.features.labels import FittedLabel
from model.registry import import_plugins
from model.scan.bad_rows import Reason, find_bad_rows, merged_reasons, reasons_of
from model.scan.needed_columns import optional_columns, read_columns
from model.scoring.metrics import MetricState, merged, results
from model.scoring.unknown_labels import without_unknown
from model.tables.filter_arrow import kept_rows
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import find, first_row, is_stored, pieces, read_fragment
from model.tables.prepared import prepared_of
from pipelines.ingest.row_counts import RowCounts
from pipelines.quarantine import Quarantine
from pipelines.tasks.map import over_fragments

BAD_ROWS, FILTERED_ROWS = "bad_rows", "filtered_rows"
UNKNOWN = "unknown_labels"


def evaluate(
    bundle: str,
    data: str,
    *,
    plugins: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
    filter: str | None = None,
    on_bad_rows: Literal["error", "skip"] = "error",
    quarantine: str | None = None,
    on_report: Callable[[RowCounts], None] | None = None,
) -> dict[str, float]:
    """Metrics of a bundle (or a run's best) over all rows under `data`; see `model.scoring.metrics.results`.

    In data that are prepared for scoring, labels that are not known yet count nowhere but in `unknown_labels`.
    With `filter` they are those of the rows that it keeps, and `filtered_rows` counts the others. With
    `on_bad_rows="skip"` bad rows are left out, counted in `bad_rows` and written to the directory `quarantine`, if one
    is named; `on_report` is told why. DataError names file, row and column; CheckpointError when the bundle is damaged.
    """
    from model.bundle.bundle import load_bundle

    if quarantine is not None and on_bad_rows == "error":
        raise ConfigError("a quarantine is for on_bad_rows='skip'; with 'error' a bad row ends the evaluation")
    import_plugins(plugins)
    path = resolve_bundle(bundle)
    loaded = load_bundle(path)
    where = None if filter is None else Filter(filter)
    found = find(data, read_columns(loaded.config), optional=optional_columns(loaded.config), where=where)
    arguments = (path, plugins, where, on_bad_rows == "skip", quarantine)
    parts: list[dict[str, Any]] = []
    for part in over_fragments(FragmentEvaluator, arguments, found.fragments):
        parts.append(part)
        if progress is not None:
            progress(len(parts), len(found.fragments))
    reasons = merged_reasons(Reason(**reason) for part in parts for reason in part["reasons"])
    filtered = found.excluded_rows + sum(part["filtered"] for part in parts)
    sums = merged(part["metrics"] for part in parts)
    metrics = results(loaded.label, sums)
    if any(each.for_scoring for each in found.prepared):
        metrics[UNKNOWN] = int(sums.get(UNKNOWN, 0))
    bad = sum(reason.rows for reason in reasons)
    if on_report is not None:
        rows = found.excluded_rows + sum(fragment.rows for fragment in found.fragments)
        on_report(RowCounts(rows, rows - filtered - bad, filtered, bad, found.excluded_files, reasons))
    if where is not None:
        metrics[FILTERED_ROWS] = filtered
    if on_bad_rows == "skip":
        metrics[BAD_ROWS] = bad
    return metrics


class FragmentEvaluator:
    """Holds the model; gives the metric sums of a fragment, and what became of its rows."""

    def __init__(
        self,
        bundle: str,
        plugins: tuple[str, ...],
        where: Filter | None,
        skip: bool,
        quarantine: str | None,
        *,
        device: str,
    ) -> None:
        from model.bundle.bundle import load_bundle

        import_plugins(plugins)
        self.bundle = load_bundle(bundle)
        self.network = self.bundle.network().to(device)
        self.where = where
        self.skip = skip
        self.quarantine = None if quarantine is None else Quarantine(quarantine)

    def __call__(self, fragment: Fragment) -> dict[str, Any]:
        names = [*read_columns(self.bundle.config), *(self.where.columns if self.where is not None else ())]
        try:
            table = read_fragment(fragment, names)
        except DecodeError as error:
            if not self.skip or not is_stored(fragment):
                raise
            reason = Reason(error.problem, None, fragment.rows, fragment.file, None)
            return {"metrics": {}, "filtered": 0, "reasons": [asdict(reason)]}
        bad: dict[int, DataError] = {}
        found = [self._piece(fragment, start, piece, bad) for start, piece in pieces(table)]
        if self.quarantine is not None and bad:
            self.quarantine(fragment, bad)
        metrics = merged(part["metrics"] for part in found)
        reasons = [reason for part in found for reason in part["reasons"]]
        return {"metrics": metrics, "filtered": sum(part["filtered"] for part in found), "reasons": reasons}

    def _piece(self, fragment: Fragment, start: int, piece: pa.Table, bad: dict[int, DataError]) -> dict[str, Any]:
        """What a piece of a row group from row `start` on gives; its bad rows are added to `bad`."""
        part = replace(fragment, rows=piece.num_rows, first_row=first_row(fragment) + start)
        errors: dict[int, DataError] = {}
        try:
            found = self._evaluated(piece, part, errors)
        except DataError as error:
            raise error.located(file=fragment.file, first_row=first_row(part)) from error.__cause__
        bad.update((start + row, error) for row, error in errors.items())
        return found

    def _evaluated(self, table: pa.Table, fragment: Fragment, errors: dict[int, DataError]) -> dict[str, Any]:
        rows = np.arange(table.num_rows) if self.where is None else np.flatnonzero(kept_rows(self.where, table))
        filtered = table.num_rows - len(rows)
        used = table.take(pa.array(rows)) if filtered else table
        try:
            metrics = self._metrics(used)
        except DataError as error:
            if not self.skip:
                row = None if error.row is None else int(rows[error.row])
                raise DataError(error.problem, row=row, column=error.column) from error.__cause__
            errors.update((int(rows[row]), each) for row, each in find_bad_rows(used, self._encode).items())
            metrics = self._metrics(table.take(pa.array(rows[~np.isin(rows, list(errors))])))
        reasons = reasons_of(errors, fragment.file, first_row(fragment))
        return {"metrics": metrics, "filtered": filtered, "reasons": [asdict(reason) for reason in reasons]}

    def _encode(self, table: pa.Table) -> object:
        table, label, _ = self._with_known_labels(table)
        return encode_rows(table, self.bundle.columns, label)

    def _with_known_labels(self, table: pa.Table) -> tuple[pa.Table, FittedLabel, int]:
        prepared = prepared_of(table.schema.metadata, "")
        if prepared is None or not prepared.for_scoring:
            return table, self.bundle.label, 0
        return without_unknown(table, self.bundle.label)

    def _metrics(self, table: pa.Table) -> MetricState:
        from model.scoring.metrics import table_metrics

        if not table.num_rows:
            return {}
        table, label, unknown = self._with_known_labels(table)
        return {**table_metrics(self.network, self.bundle.columns, label, table), UNKNOWN: float(unknown)}
