"""Evaluation of a bundle: exact metrics over every row once, by any number of tasks.

May import: pipelines.ingest, pipelines.quarantine, pipelines.tasks, model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from model.batches.encode import encode_rows
from model.bundle.run_directory import data_choices, resolve_bundle
from model.errors import ConfigError, DataError, DecodeError
from model.features.labels import FittedLabel
from model.registry import import_plugins
from model.scan.bad_rows import Reason, find_bad_rows, merged_reasons, reasons_of
from model.scan.needed_columns import optional_columns, read_columns
from model.scoring.metrics import MetricState, merged, results
from model.scoring.unknown_labels import without_unknown
from model.state import STATE_PREFIX, STATES_CURE, check_own_states, state_schemas
from model.tables.filter_arrow import kept_rows
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.hive_paths import PartitionTypes
from model.tables.parquet import Found, find, first_row, is_stored, pieces, read_fragment
from model.tables.prepared import prepared_of
from pipelines.ingest.row_counts import RowCounts
from pipelines.quarantine import Quarantine, with_way_out
from pipelines.tasks.map import over_fragments

OnBadRows = Literal["error", "skip"]
BAD_ROWS, FILTERED_ROWS = "bad_rows", "filtered_rows"
NOTHING_FOUND = Found([])  # tasks get their row groups one by one
UNKNOWN = "unknown_labels"


@dataclass(frozen=True)
class Evaluation:
    """A checked evaluation: what is evaluated on what, and what is done with bad rows and initial states."""

    bundle: str
    label: FittedLabel
    found: Found
    plugins: tuple[str, ...]
    where: Filter | None
    skip: bool
    quarantine: str | None
    reads_states: bool
    unseen_labels: bool  # counted rather than bad


def evaluate(
    bundle: str,
    data: str,
    *,
    plugins: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
    filter: str | None = None,
    on_bad_rows: OnBadRows | None = None,
    unseen_labels: Literal["count", "error"] = "count",
    quarantine: str | None = None,
    on_report: Callable[[RowCounts], None] | None = None,
    partition_types: PartitionTypes | None = None,
    initial_states: Literal["read", "ignore"] | None = None,
    unbound_states: bool = False,
) -> dict[str, float]:
    """Metrics of a bundle (or a run's best) over all rows under `data`; see `model.scoring.metrics.results`.

    In data that are prepared for scoring, labels that are not known yet count nowhere but in `unknown_labels`.
    With `filter` they are those of the rows that it keeps, and `filtered_rows` counts the others. With
    `on_bad_rows="skip"` bad rows are left out, counted in `bad_rows` and written to the directory `quarantine`, if one
    is named; `on_report` is told why. A label that is none of the model's classes is wrong, has no loss and is counted
    in `unseen_labels`; with `unseen_labels="error"` it is bad. `partition_types` declare columns of paths. Rows begin
    with the states that the data hold, which must be the model's own by the files' metadata or, with `unbound_states`,
    by your word; `initial_states="ignore"` leaves them out. What is not given is as the run has it that the bundle lies
    in, else "error" and "read".

    DataError names file, row and column; CheckpointError when the bundle is damaged; ConfigError for states of another
    model.
    """
    planned = plan_evaluation(
        bundle,
        data,
        plugins=plugins,
        filter=filter,
        on_bad_rows=on_bad_rows,
        quarantine=quarantine,
        unseen_labels=unseen_labels,
        partition_types=partition_types,
        initial_states=initial_states,
        unbound_states=unbound_states,
    )
    return run_evaluation(planned, progress, on_report)


def plan_evaluation(
    bundle: str,
    data: str,
    *,
    plugins: tuple[str, ...] = (),
    filter: str | None = None,
    on_bad_rows: OnBadRows | None = None,
    quarantine: str | None = None,
    unseen_labels: Literal["count", "error"] = "count",
    partition_types: PartitionTypes | None = None,
    initial_states: Literal["read", "ignore"] | None = None,
    unbound_states: bool = False,
) -> Evaluation:
    """What `evaluate` is going to do; its errors, as far as bundle and footers tell."""
    from model.bundle.bundle import load_bundle, state_spec

    import_plugins(plugins)
    path = resolve_bundle(bundle)
    chosen = data_choices(path, on_bad_rows=on_bad_rows, initial_states=initial_states)
    if quarantine is not None and chosen.on_bad_rows == "error":
        raise ConfigError("a quarantine is for on_bad_rows='skip'; with 'error' a bad row ends the evaluation")
    loaded = load_bundle(path)
    where = None if filter is None else Filter(filter)
    names, optional = read_columns(loaded.config), optional_columns(loaded.config)
    beside = STATE_PREFIX if chosen.initial_states == "read" else None
    found = find(data, names, optional=optional, where=where, partition_types=partition_types, beside=beside)
    states = state_schemas(found.beside)
    check_own_states(
        states,
        state_spec(loaded),
        loaded.fingerprint,
        unbound=unbound_states,
        cure=STATES_CURE,
        shape_cure=f"; {STATES_CURE}",
    )
    return Evaluation(
        bundle=path,
        label=loaded.label,
        found=found,
        plugins=plugins,
        where=where,
        skip=chosen.on_bad_rows == "skip",
        quarantine=quarantine,
        reads_states=bool(states),
        unseen_labels=unseen_labels == "count",
    )


def run_evaluation(
    planned: Evaluation,
    progress: Callable[[int, int], None] | None = None,
    on_report: Callable[[RowCounts], None] | None = None,
) -> dict[str, float]:
    """Does what was planned, on the Ray that this process is connected to, else right here."""
    found = planned.found
    parts: list[dict[str, Any]] = []
    for part in over_fragments(FragmentEvaluator, (replace(planned, found=NOTHING_FOUND),), found.fragments):
        parts.append(part)
        if progress is not None:
            progress(len(parts), len(found.fragments))
    reasons = merged_reasons(Reason(**reason) for part in parts for reason in part["reasons"])
    filtered = found.excluded_rows + sum(part["filtered"] for part in parts)
    sums = merged(part["metrics"] for part in parts)
    metrics = results(planned.label, sums)
    if any(each.for_scoring for each in found.prepared):
        metrics[UNKNOWN] = int(sums.get(UNKNOWN, 0))
    bad = sum(reason.rows for reason in reasons)
    if on_report is not None:
        rows = found.excluded_rows + sum(fragment.rows for fragment in found.fragments)
        on_report(RowCounts(rows, rows - filtered - bad, filtered, bad, found.excluded_files, reasons))
    if planned.where is not None:
        metrics[FILTERED_ROWS] = filtered
    if planned.skip:
        metrics[BAD_ROWS] = bad
    return metrics


class FragmentEvaluator:
    """Holds the model; gives the metric sums of a fragment, and what became of its rows."""

    def __init__(self, planned: Evaluation, *, device: str) -> None:
        from model.bundle.bundle import load_bundle

        import_plugins(planned.plugins)
        self.bundle = load_bundle(planned.bundle)
        self.network = self.bundle.network().to(device)
        self.where = planned.where
        self.skip = planned.skip
        self.unseen_labels = planned.unseen_labels
        self.quarantine = None if planned.quarantine is None else Quarantine(planned.quarantine)
        self.states = self.network.state_spec() if planned.reads_states else None

    def __call__(self, fragment: Fragment) -> dict[str, Any]:
        try:
            return self._of(fragment)
        except DataError as error:
            way_out = error if self.skip else with_way_out(error, fragment, "--on-bad-rows skip")
            raise way_out from error.__cause__

    def _of(self, fragment: Fragment) -> dict[str, Any]:
        names = [*read_columns(self.bundle.config), *(self.where.columns if self.where is not None else ())]
        try:
            table = read_fragment(fragment, [*names, *(() if self.states is None else self.states.names)])
        except DecodeError as error:
            if not self.skip or not is_stored(fragment):
                raise
            reason = Reason(error.problem, None, fragment.rows, fragment.file, None)
            return {"metrics": {}, "filtered": 0, "reasons": [asdict(reason)]}
        bad: dict[int, DataError] = {}
        found = [self._piece(fragment, start, piece, bad) for start, piece in pieces(table)]
        if self.quarantine is not None and bad:
            self.quarantine(fragment, bad)
        return {
            "metrics": merged(metrics for metrics, _ in found),
            "filtered": sum(filtered for _, filtered in found),
            "reasons": [asdict(reason) for reason in reasons_of(bad, fragment.file, first_row(fragment))],
        }

    def _piece(
        self, fragment: Fragment, start: int, piece: pa.Table, bad: dict[int, DataError]
    ) -> tuple[MetricState, int]:
        """The sums of a piece of a row group, from row `start` on, and how many rows the filter kept out.

        Its bad rows are added to `bad`.
        """
        part = replace(fragment, rows=piece.num_rows, first_row=first_row(fragment) + start)
        errors: dict[int, DataError] = {}
        try:
            found = self._evaluated(piece, errors)
        except DataError as error:
            raise error.located(file=fragment.file, first_row=first_row(part)) from error.__cause__
        bad.update((start + row, error) for row, error in errors.items())
        return found

    def _evaluated(self, table: pa.Table, errors: dict[int, DataError]) -> tuple[MetricState, int]:
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
        return metrics, filtered

    def _encode(self, table: pa.Table) -> object:
        table, label, _ = self._with_known_labels(table)
        return encode_rows(table, self.bundle.columns, label, self.states, unseen_labels=self.unseen_labels)

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
        sums = table_metrics(
            self.network, self.bundle.columns, label, table, self.states, unseen_labels=self.unseen_labels
        )
        return {**sums, UNKNOWN: float(unknown)}
