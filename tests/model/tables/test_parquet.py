"""Parquet files as fragments: what is read, and how every kind of damage is told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import DataError
from model.tables.fragments import Fragment
from model.tables.parquet import find_fragments, read_footer, read_fragment

TABLE = pa.table({"x": [[1.0, 2.0], [], None, [3.0]], "word": [["a"], ["b"], [], None], "key": ["p", "q", "p", "r"]})


def write(path: Path, table: pa.Table = TABLE, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def error_of(path: Any, columns: tuple[str, ...] = ("x",)) -> str:
    with pytest.raises(DataError) as raised:
        read_all(path, columns)
    return str(raised.value)


def read_all(path: Any, columns: tuple[str, ...]) -> None:
    for fragment in find_fragments(path, columns):
        read_fragment(fragment, columns)


def test_fragments_stand_in_order_of_file_and_row_group(tmp_path: Path) -> None:
    second = write(tmp_path / "b größe.parquet", row_group_size=3)
    first = write(tmp_path / "a 1.parquet", row_group_size=2)
    empty = write(tmp_path / "c.parquet", TABLE.slice(0, 0))
    found = find_fragments(tmp_path, ["x"])
    assert found == [
        Fragment(first, 0, 2, 0), Fragment(first, 1, 2, 2), Fragment(second, 0, 3, 0), Fragment(second, 1, 1, 3)
    ]  # fmt: skip
    assert read_footer(empty).num_rows == 0
    tables = [read_fragment(fragment, ["key", "x", "key"]) for fragment in found]
    assert pa.concat_tables(tables).to_pylist() == TABLE.select(["key", "x"]).to_pylist() * 2


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    fragment = Fragment(write(tmp_path / "a.parquet"), 0, 4)
    assert read_fragment(fragment, ["word"]).column_names == ["word"]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "lz4"])
def test_every_compression_is_read(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "a.parquet", compression=compression)
    assert read_fragment(find_fragments(path, [])[0], TABLE.column_names).equals(TABLE)


def test_files_without_rows_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", TABLE.slice(0, 0))
    assert error_of(tmp_path) == f"{tmp_path}: must hold at least one row, but all its files are empty"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("wrod", "is not in the file; did you mean word?; its columns are x, word, key"),
        ("absent", "is not in the file; its columns are x, word, key"),
    ],
)
def test_a_missing_column_is_told_before_anything_is_read(tmp_path: Path, column: str, message: str) -> None:
    path = write(tmp_path / "a.parquet")
    with pytest.raises(DataError) as raised:
        find_fragments(tmp_path, ["x", column])
    assert str(raised.value) == f"{path}, column {column!r}: {message}"


def assert_footer_is_told(path: Path) -> None:
    """The reason in brackets is Arrow's, and changes with its version."""
    message = error_of(path)
    assert message.startswith(f"{path}: must be a whole Parquet file, but its footer cannot be read (Parquet ")
    assert message.endswith("); write it again or remove it")
    assert "\n" not in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"x,word\n1,a\n" * 10,
        lambda content: b"",
        lambda content: b"PAR1",
    ],
    ids=["truncated", "a byte short", "csv", "empty", "magic alone"],
)
def test_a_file_without_a_footer_is_told(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a b.parquet"
    path.write_bytes(damage(Path(write(path)).read_bytes()))
    assert_footer_is_told(path)


def test_a_footer_of_nonsense_is_told(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.parquet"))
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[-8 - length : -8] = b"\xff" * length
    path.write_bytes(content)
    message = error_of(tmp_path)
    assert message.startswith(f"{path}: cannot be read: Couldn't deserialize thrift")
    assert "\n" not in message


def test_a_damaged_page_is_told_with_its_row_group(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.parquet", pa.table({"x": [[float(i)] for i in range(1000)]}), row_group_size=500))
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    first, second = find_fragments(path, ["x"])
    assert read_fragment(first, ["x"]).num_rows == 500
    with pytest.raises(DataError) as raised:
        read_fragment(second, ["x"])
    message = str(raised.value)
    assert message.startswith(f"{path}: row group 1 cannot be decoded (")
    assert message.endswith("); write the file again")
    assert "\n" not in message


def test_a_directory_named_like_a_file_is_searched(tmp_path: Path) -> None:
    inner = write(tmp_path / "a.parquet" / "part-0.parquet")
    assert [fragment.file for fragment in find_fragments(tmp_path, ["x"])] == [inner]


def test_a_file_that_vanishes_is_told(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.parquet"))
    fragment = find_fragments(path, ["x"])[0]
    path.unlink()
    for read in (lambda: read_fragment(fragment, ["x"]), lambda: read_footer(str(path))):
        with pytest.raises(DataError) as raised:
            read()
        assert str(raised.value).startswith(f"{path}: ")
        assert "No such file or directory" in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_any_flipped_bytes_give_rows_or_an_error_of_ours(tmp_path: Path, compression: str) -> None:
    """Nothing that a damaged file does to the readers reaches people as a traceback."""
    random, buffer = np.random.default_rng(0), io.BytesIO()
    pq.write_table(pa.concat_tables([TABLE] * 5), buffer, row_group_size=7, compression=compression)
    path, files_told = tmp_path / "a.parquet", []
    for _ in range(300):
        content = bytearray(buffer.getvalue())
        for place in random.integers(len(content), size=3):
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            read_all(path, ("x", "word"))
        except DataError as error:
            files_told.append(error.file)
    assert len(files_told) > 100
    assert set(files_told) == {str(path)}
