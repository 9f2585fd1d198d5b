"""Events whose columns are structs: their fields become the sequences' columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from model.errors import DataError
from pipelines.prepare.run import prepare
from tests.preparing import in_process, sequences, settings_of, write

EVENTS: list[dict[str, Any]] = [
    {"user": {"id": "b"}, "payload": {"price": 1.0, "tags": ["x"]}, "lines": [{"sku": 7}, {"sku": 8}], "time": 2},
    {"user": {"id": "a"}, "payload": None, "lines": [], "time": 5},
    {"user": {"id": "b"}, "payload": {"price": None, "tags": []}, "lines": None, "time": 1},
]


def test_fields_of_events_become_columns_of_sequences(tmp_path: Path) -> None:
    write(tmp_path / "events", pa.Table.from_pylist(EVENTS))
    settings = settings_of(key="user.id", label="payload.price", columns=["payload.tags", "lines.sku"])
    with in_process():
        prepare(tmp_path / "events", tmp_path / "out", settings)
    found = {row.pop("user.id"): row for row in sequences(tmp_path / "out")}
    assert found == {
        "a": {
            "sequence_index": 0, "time_first": 5, "time_last": 5,
            "payload.tags": [None], "lines.sku": [[]], "payload.price": None,
        },
        "b": {
            "sequence_index": 0, "time_first": 1, "time_last": 2,
            "payload.tags": [[], ["x"]], "lines.sku": [None, [7, 8]], "payload.price": 1.0,
        },
    }  # fmt: skip


def test_a_sparse_vector_among_events_is_refused(tmp_path: Path) -> None:
    lists = {"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
    kind = pa.struct({"type": pa.int8(), "size": pa.int32(), **lists})
    vectors = pa.array([{"type": 0, "size": 3, "indices": [1], "values": [2.0]}], kind)
    write(tmp_path / "events", pa.table({"key": ["a"], "time": [1], "x": vectors}))
    with in_process(), pytest.raises(DataError) as raised:
        prepare(tmp_path / "events", tmp_path / "out", settings_of())
    assert "column 'x': must hold dense vectors, but here is a sparse one of Spark ML" in str(raised.value)
