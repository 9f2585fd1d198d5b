"""Fitted columns, label and row indexes of a run, and how they are kept in its directory. Loads no Ray Data."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from model.batches.plan import DataIndex
from model.bundle.run_directory import COLUMNS, LENGTHS, ROW_COUNTS, TRAIN_INDEX, VALIDATION_INDEX
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.settings import build
from model.state import StateSpec
from model.storage import exists, is_remote, join, read_bytes, write_bytes
from model.storage.atomic import appearing
from model.storage.node_copy import node_copy, sha256_of
from model.tables.fragments import Fragment
from pipelines.ingest.initial_states import InitialStates
from pipelines.ingest.row_counts import RowCounts


@dataclass(frozen=True)
class FittedData:
    """Fitted columns and label, and the indexes of training and (possibly no) validation rows.

    `report` is `model.scan.fit_report`'s; empty where an earlier version has stored none. `rows` says what became of
    the rows of both; `split` tells by what rows were split, and `warnings` what is amiss with split and inputs.
    `states` are what rows begin with; None where an earlier version, which read none, has stored it.
    """

    columns: FittedColumns
    label: FittedLabel
    train: DataIndex
    validation: DataIndex | None
    report: dict[str, Any] = field(default_factory=dict, compare=False)
    rows: RowCounts = field(default_factory=RowCounts, compare=False)
    split: str = field(default="", compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
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
    _save_indexes(directory, prepared.train, prepared.validation)
    description = {
        "columns": prepared.columns.model_dump(mode="json"),
        "label": prepared.label.model_dump(mode="json"),
        "validation": prepared.validation is not None,
        "report": prepared.report,
        "rows": prepared.rows.to_plain(),
        "split": prepared.split,
        "warnings": prepared.warnings,
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
        _read_index(directory, TRAIN_INDEX),
        _read_index(directory, VALIDATION_INDEX) if description["validation"] else None,
        description.get("report", {}),
        RowCounts.from_plain(description["rows"]) if "rows" in description else RowCounts(),
        description.get("split", ""),
        tuple(description.get("warnings", ())),
        InitialStates.from_plain(description["states"]) if "states" in description else None,
    )


# Indexes: the row groups of each, and one flat file of what is told of every row, which a node's workers share. -----


def _save_indexes(directory: str, train: DataIndex, validation: DataIndex | None) -> None:
    """The lengths of rows that both are about (of one split path) are stored once, else one behind the other."""
    shared = validation is not None and validation.lengths is train.lengths
    parts = [train] if validation is None or shared else [train, validation]
    lengths = _saved_array(join(directory, LENGTHS), np.concatenate([part.lengths for part in parts]))
    for name, index, first in (
        (TRAIN_INDEX, train, 0),
        (VALIDATION_INDEX, validation, 0 if shared else len(train.lengths)),
    ):
        if index is not None:
            selected = "" if index.selected is None else _saved_array(join(directory, _selected(name)), index.selected)
            write_bytes(join(directory, name), _index_bytes(index, first, lengths, selected))


def _saved_array(path: str, array: np.ndarray) -> str:
    """Writes a .npy file; returns its SHA-256."""
    with appearing(path) as local:
        with open(local, "wb") as stream:
            np.save(stream, array)
        return sha256_of(local)


def _selected(index: str) -> str:
    return index.removesuffix(".npz") + "_rows.npy"


def _index_bytes(index: DataIndex, first: int, lengths: str, selected: str) -> bytes:
    stream = io.BytesIO()
    fragments = json.dumps([asdict(fragment) for fragment in index.fragments])
    rows = json.dumps({"first": first, "rows": len(index.lengths), "lengths": lengths, "selected": selected})
    np.savez_compressed(stream, fragments=_text(fragments), rows=_text(rows))
    return stream.getvalue()


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _read_index(directory: str, name: str) -> DataIndex:
    with np.load(io.BytesIO(read_bytes(join(directory, name))), allow_pickle=False) as arrays:
        fragments = tuple(Fragment(**fragment) for fragment in json.loads(arrays["fragments"].tobytes()))
        if "rows" not in arrays:  # 0.1.0 kept all in this file
            return DataIndex(fragments, arrays["lengths"], arrays["selected"] if len(arrays["selected"]) else None)
        rows = json.loads(arrays["rows"].tobytes())
    lengths = _mapped(join(directory, LENGTHS), rows["lengths"])[rows["first"] : rows["first"] + rows["rows"]]
    selected = _mapped(join(directory, _selected(name)), rows["selected"]) if rows["selected"] else None
    return DataIndex(fragments, lengths, selected)


def _mapped(path: str, sha256: str) -> np.ndarray:
    """The read-only array of a .npy file, whose pages all processes of the node share."""
    local = node_copy(path, sha256) if is_remote(path) else path
    return np.asarray(np.load(local, mmap_mode="r", allow_pickle=False))
