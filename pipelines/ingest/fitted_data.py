"""Fitted columns, label and row indexes of a run, and how they are kept in its directory. Loads no Ray Data."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from model.batches.plan import DataIndex
from model.bundle.run_directory import COLUMNS, ROW_COUNTS, TRAIN_INDEX, VALIDATION_INDEX
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.settings import build
from model.state import StateSpec
from model.storage import exists, join, read_bytes, write_bytes
from model.tables.fragments import Fragment
from pipelines.ingest.initial_states import InitialStates
from pipelines.ingest.row_counts import RowCounts


@dataclass(frozen=True)
class FittedData:
    """Fitted columns and label, and the indexes of training and (possibly no) validation rows.

    `report` is `model.scan.fit_report`'s; empty where an earlier version has stored none. `rows` says what became of
    the rows of both. `states` are what rows begin with; None where an earlier version, which read none, has stored it.
    """

    columns: FittedColumns
    label: FittedLabel
    train: DataIndex
    validation: DataIndex | None
    report: dict[str, Any] = field(default_factory=dict, compare=False)
    rows: RowCounts = field(default_factory=RowCounts, compare=False)
    states: InitialStates | None = None

    @property
    def state_spec(self) -> StateSpec | None:
        """Of the states that rows bring; None where they bring none."""
        return None if self.states is None else self.states.spec

    @property
    def provenance(self) -> dict[str, Any]:
        """What a bundle says of the data."""
        return {} if self.states is None else self.states.provenance


def save_fitted(directory: str, prepared: FittedData) -> None:
    """Writes what `load_fitted` reads; columns.json last, as the sign that all of it is there.

    rows.json is for people: what became of the rows.
    """
    write_bytes(join(directory, TRAIN_INDEX), _index_bytes(prepared.train))
    if prepared.validation is not None:
        write_bytes(join(directory, VALIDATION_INDEX), _index_bytes(prepared.validation))
    description = {
        "columns": prepared.columns.model_dump(mode="json"),
        "label": prepared.label.model_dump(mode="json"),
        "validation": prepared.validation is not None,
        "report": prepared.report,
        "rows": prepared.rows.to_plain(),
    }
    if prepared.states is not None:
        description["states"] = prepared.states.to_plain()
    rows = json.dumps(description["rows"], ensure_ascii=False, indent=2)
    write_bytes(join(directory, ROW_COUNTS), rows.encode())
    write_bytes(join(directory, COLUMNS), json.dumps(description, ensure_ascii=False).encode())


def has_fitted(directory: str) -> bool:
    """Whether a run's data have been scanned to the end."""
    return exists(join(directory, COLUMNS))


def load_fitted(directory: str) -> FittedData:
    """What `save_fitted` stored."""
    where = join(directory, COLUMNS)
    description = json.loads(read_bytes(where))
    return FittedData(
        build(FittedColumns, description["columns"], where=where),
        build(FittedLabel, description["label"], where=where),
        _read_index(join(directory, TRAIN_INDEX)),
        _read_index(join(directory, VALIDATION_INDEX)) if description["validation"] else None,
        description.get("report", {}),
        RowCounts.from_plain(description["rows"]) if "rows" in description else RowCounts(),
        InitialStates.from_plain(description["states"]) if "states" in description else None,
    )


def _index_bytes(index: DataIndex) -> bytes:
    stream = io.BytesIO()
    fragments = json.dumps([asdict(fragment) for fragment in index.fragments])
    selected = np.zeros(0, bool) if index.selected is None else index.selected
    np.savez_compressed(
        stream, lengths=index.lengths, selected=selected, fragments=np.frombuffer(fragments.encode(), np.uint8)
    )
    return stream.getvalue()


def _read_index(path: str) -> DataIndex:
    with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as arrays:
        fragments = json.loads(arrays["fragments"].tobytes())
        selected = arrays["selected"] if len(arrays["selected"]) else None
        return DataIndex(tuple(Fragment(**fragment) for fragment in fragments), arrays["lengths"], selected)
