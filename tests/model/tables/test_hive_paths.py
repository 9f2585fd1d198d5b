"""Columns in paths: what their values are, by how they are written or as it is declared."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError, DataError
from model.tables.filters import Filter
from model.tables.hive_paths import PartitionTypes
from model.tables.parquet import find, read_fragment
from model.tables.schema_agreement import SchemaAgreement
from pipelines.cli.options import partition_types_of


def write(root: Path, *directories: str) -> Path:
    for directory in directories:
        (root / directory).mkdir(parents=True)
        pq.write_table(pa.table({"x": [[1.0]]}), root / directory / "a.parquet")
    return root


def values(root: Path, name: str, types: PartitionTypes | None = None) -> list[object]:
    fragments = find(root, ["x", name], partition_types=types).fragments
    return [value for fragment in fragments for value in read_fragment(fragment, [name])[name].to_pylist()]


def test_a_leading_zero_makes_a_code_of_a_column(tmp_path: Path) -> None:
    root = write(tmp_path, "zip=01067", "zip=1067", "zip=__HIVE_DEFAULT_PARTITION__")
    assert values(root, "zip") == ["01067", "1067", None]


@pytest.mark.parametrize("codes", [["0", "-1", "10"], ["-0", "1"], ["00", "7"], ["+1", "2"], ["7.0", "8"]])
def test_numbers_are_whole_where_they_are_written_as_such(tmp_path: Path, codes: list[str]) -> None:
    root = write(tmp_path, *(f"code={code}" for code in codes))
    whole = codes == ["0", "-1", "10"]
    assert sorted(values(root, "code"), key=str) == sorted(map(int, codes) if whole else codes, key=str)


def test_declared_types_decide(tmp_path: Path) -> None:
    root = write(tmp_path, "month=01", "month=12")
    assert values(root, "month") == ["01", "12"]
    assert values(root, "month", {"month": "int64"}) == [1, 12]
    assert values(root, "month", {"month": "float64"}) == [1.0, 12.0]
    found = find(root, ["x"], where=Filter("month > 6"), partition_types={"month": "int64"})
    assert [fragment.partitions for fragment in found.fragments] == [(("month", 12),)]
    assert values(root / "month=12", "month", {"month": "string"}) == ["12"]


def test_a_declared_type_that_does_not_fit_is_told(tmp_path: Path) -> None:
    root = write(tmp_path, "code=1", "code=A")
    with pytest.raises(DataError) as raised:
        values(root, "code", {"code": "int64"})
    assert str(raised.value) == (
        f"{root}/code=A/a.parquet, column 'code': its path must give a value of type int64, as the partition types "
        f"declare, but gives 'A'"
    )
    with pytest.raises(DataError) as raised:
        values(root, "code", {"coed": "int64"})
    assert str(raised.value) == (
        f"{root}/code=1/a.parquet, column 'coed': a type is declared for this column of the paths, but none gives it; "
        f"did you mean code?; they give code"
    )


def test_paths_that_are_written_otherwise_are_told_with_the_way_out(tmp_path: Path) -> None:
    root = write(tmp_path, "train/month=11", "validation/month=01")
    agreement = SchemaAgreement()
    find(root / "train", ["x", "month"], agreement=agreement)
    with pytest.raises(DataError) as raised:
        find(root / "validation", ["x", "month"], agreement=agreement)
    assert str(raised.value) == (
        f"{root}/validation/month=01/a.parquet, column 'month': the files of a data set must agree on each column's "
        f"type, but here it is string and in {root}/train/month=11/a.parquet it is int64; declare the type of this "
        f"column of the paths: data.partition_types, or --partition-types"
    )


def test_the_option_reads_pairs() -> None:
    assert partition_types_of(None) == {}
    assert partition_types_of(["month=string", "a=b=int64"]) == {"month": "string", "a=b": "int64"}
    for wrong in ("month", "month=text", "=int64"):
        with pytest.raises(ConfigError) as raised:
            partition_types_of([wrong])
        assert str(raised.value) == (
            f"--partition-types must be COLUMN=TYPE, of string, int64, float64, but is {wrong!r}"
        )
