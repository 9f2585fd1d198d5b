"""What `prepare` knew of its sequences travels in the files' metadata."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import DataError
from model.tables.parquet import find
from model.tables.prepared import METADATA_KEY, Prepared, PreparedLabel, with_prepared

LABEL = PreparedLabel(column="item_next", source="item", shift=1)
PREPARED = Prepared(
    key=("user", "shop"), index="sequence_index", time=("ts", "n"), label=LABEL, known_at_end=("ts_last",)
)


def write(path: Path, schema: pa.Schema) -> None:
    pq.write_table(pa.table({"x": [[1.0]]}, schema=schema), path)


def test_the_files_under_a_path_tell_each_answer_once(tmp_path: Path) -> None:
    plain = pa.schema({"x": pa.list_(pa.float64())}, metadata={"owner": "us"})
    other = PREPARED.model_copy(update={"split": "test"})
    for name, prepared in {"a": PREPARED, "b": PREPARED, "c": other}.items():
        write(tmp_path / f"{name}.parquet", with_prepared(plain, prepared))
    write(tmp_path / "d.parquet", plain)
    assert find(tmp_path, ["x"]).prepared == (PREPARED, other)
    assert pq.read_schema(tmp_path / "a.parquet").metadata[b"owner"] == b"us"


@pytest.mark.parametrize("text", [b"{", b'{"version": 2}', b'{"unknown": 1}'])
def test_metadata_of_another_version_say_what_to_do(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "a.parquet"
    write(file, pa.schema({"x": pa.list_(pa.float64())}, metadata={METADATA_KEY: text}))
    with pytest.raises(DataError, match="prepare it again with this version") as raised:
        find(file, ["x"])
    assert raised.value.file == str(file)
