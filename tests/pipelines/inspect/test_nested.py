"""Columns of structs, vectors and tensors in a report and in the run that is proposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import DataError
from pipelines.inspect.run import Inspection, inspect_data

HITS = [[{"item": "abc"[j % 3], "price": float(j)} for j in range(1 + i % 5)] for i in range(64)]
LABELS = [0, 1] * 32
DENSE = {"type": 1, "size": None, "indices": None, "values": [1.0, 2.0]}
SPARSE = {"type": 0, "size": 9, "indices": [3], "values": [1.0]}


def inspected(directory: Path, columns: dict[str, Any]) -> Inspection:
    pq.write_table(pa.table({**columns, "y": LABELS}), directory / "a.parquet")
    return inspect_data(str(directory), label="y")


def lists(field: str) -> list[list[Any]]:
    return [[hit[field] for hit in row] for row in HITS]


TENSORS = np.random.default_rng(0).normal(size=(64, 10, 3)).astype(np.float32)
KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "list of structs": ({"events": HITS}, {"events.item": "categorical", "events.price": "numeric"}),
    "struct of lists": (
        {"seq": [{"item": item, "price": price} for item, price in zip(lists("item"), lists("price"), strict=True)]},
        {"seq.item": "categorical", "seq.price": "numeric"},
    ),
    "BigQuery": ({"x": [{"list": [{"element": price} for price in row]} for row in lists("price")]}, {"x": "numeric"}),
    "Spark": ({"x": [{**DENSE, "values": [float(row), 2.0]} for row in range(64)]}, {"x": "numeric"}),
    "tensors": ({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(TENSORS)}, {"x": "numeric"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_nested_is_proposed_as_sequences(tmp_path: Path, kind: str) -> None:
    columns, reads = KINDS[kind]
    inspection = inspected(tmp_path, columns)
    roles = {name: (role.role, role.reads) for name, role in inspection.survey.roles.items() if name != "y"}
    assert roles == {name: ("sequence", read) for name, read in reads.items()}
    assert inspection.config is None
    assert inspection.proposal.config is not None
    assert set(inspection.proposal.config.model.columns.data_columns("sequence")) == set(reads)


def test_a_tensor_has_as_many_steps_as_its_first_dimension(tmp_path: Path) -> None:
    inspection = inspected(tmp_path, KINDS["tensors"][0])
    assert inspection.survey.lengths is not None
    assert inspection.survey.lengths.tolist() == [10] * 64
    assert inspection.survey.columns["x"].widths == (3, 3)


def test_sparse_vectors_hinder_no_report(tmp_path: Path) -> None:
    kind = pa.struct(
        {"type": pa.int8(), "size": pa.int32(), "indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
    )
    inspection = inspected(tmp_path, {"v": pa.array([DENSE, SPARSE] * 32, kind), "events": HITS})
    assert inspection.survey.roles["v"].role == "unused"
    assert inspection.survey.roles["events.item"].role == "sequence"


def test_a_codec_that_nobody_reads_ends_the_report_and_is_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"x": lists("price"), "y": LABELS}), path, compression={"y": "snappy"}, use_dictionary=False
    )
    place, content = b"\x18\x01y\x15", path.read_bytes()
    assert content.count(place + b"\x02") == 1
    path.write_bytes(content.replace(place + b"\x02", place + b"\x06"))
    with pytest.raises(DataError) as raised:
        inspect_data(str(path), label="y")
    assert str(raised.value) == (
        f"{path}, column 'y': row group 0 is compressed with LZO, which is not supported; write the file again with "
        "zstd or snappy"
    )
