"""Paths, files that appear whole or not at all, and which files a path names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from pyarrow import fs

from model.bundle.run_directory import point_to, pointed, resolve_bundle
from model.errors import ConfigError, DataError
from model.storage import filesystems as storage
from model.storage import search
from model.storage.search import find_files

NAMES = [
    "plain.parquet",
    "with space.parquet",
    "größe-数据.parquet",
    "a[1].parquet",
    "what?.parquet",
    "50%20off.parquet",
]


def names(found: list[str], root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in found]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in [*NAMES, "deep/er/x.parquet", "_hidden.parquet", ".dot.parquet", "_tmp/y.parquet", "notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_directory_means_its_visible_parquet_files_in_order(data: Path) -> None:
    assert names(find_files(data), data) == sorted([*NAMES, "deep/er/x.parquet"])
    assert find_files(f"{data}/") == find_files(data)
    assert find_files(f"file://{data}") == find_files(data)


@pytest.mark.parametrize("name", [*NAMES, "_hidden.parquet", "notes.txt"])
def test_a_file_that_is_named_is_that_file(data: Path, name: str) -> None:
    assert find_files(data / name) == [str(data / name)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("p*.parquet", ["plain.parquet"]),
        ("*.parquet", sorted(NAMES)),
        ("**/*.parquet", sorted([*NAMES, "deep/er/x.parquet"])),
        ("d*", ["deep/er/x.parquet"]),
        ("?lain.parquet", ["plain.parquet"]),
        ("[pq]lain.*", ["plain.parquet"]),
    ],
)
def test_a_glob_means_visible_files_and_directories(data: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_files(data / pattern), data) == expected


def test_a_directory_whose_own_name_is_hidden_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "_staging").mkdir()
    (tmp_path / "_staging" / "a.parquet").write_bytes(b"")
    assert names(find_files(tmp_path / "_staging"), tmp_path) == ["_staging/a.parquet"]
    assert names(find_files(tmp_path / "_staging/*"), tmp_path) == ["_staging/a.parquet"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "there is no such file or directory; check the path"),
        ("nothing/*.parquet", "must hold at least one .parquet file, but holds none; check the path"),
        ("_tmp/../empty", "must hold at least one .parquet file, but holds none; check the path"),
    ],
)
def test_a_path_without_files_is_told(data: Path, path: str, message: str) -> None:
    (data / "empty").mkdir()
    (data / "empty" / "_SUCCESS").write_bytes(b"")
    with pytest.raises(DataError) as raised:
        find_files(data / path)
    assert str(raised.value) == f"{os.path.normpath(data / path)}: {message}"


def test_a_directory_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked:
        def get_file_info(self, _path: Any) -> Any:
            raise PermissionError(13, "Permission denied")

    for module in (storage, search):
        monkeypatch.setattr(module, "resolve", lambda path: (Locked(), str(path)))
    with pytest.raises(DataError) as raised:
        find_files(tmp_path)
    assert str(raised.value) == f"{tmp_path}: cannot be listed: [Errno 13] Permission denied; check its permissions"


def test_a_relative_path_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/a/") == str(tmp_path / "runs/a")
    assert storage.absolute("~/runs") == str(Path.home() / "runs")
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"
    assert storage.join("s3://bucket/runs/", "a", "b") == "s3://bucket/runs/a/b"


def test_an_unknown_scheme_is_told() -> None:
    with pytest.raises(ConfigError) as raised:
        storage.resolve("ftp://host/data")
    assert str(raised.value) == (
        "ftp://host/data: must be a local path or a URI such as s3://bucket/data, but: Unrecognized filesystem type in "
        "URI: ftp://host/data"
    )


# Writing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new dir" / "größe.bin"
    assert not storage.exists(path)
    for content in (b"first", b"", b"second"):
        storage.write_bytes(path, content)
        assert storage.read_bytes(path) == content
    assert (storage.exists(path), storage.is_directory(path), storage.is_directory(path.parent)) == (True, False, True)
    assert storage.list_names(path.parent) == ["größe.bin"]  # no temporary file stays behind
    assert storage.list_names(tmp_path / "none") == []


def test_a_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "ours", b"x")
    (tmp_path / "others").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "others").stat().st_mode


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    storage.write_bytes(tmp_path / "file", b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(tmp_path / "file", b"new")
    assert storage.list_names(tmp_path) == ["file"]
    assert storage.read_bytes(tmp_path / "file") == b"old"


def test_trees_are_copied_and_removed(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "a" / "deep" / "file", b"x")
    storage.copy_tree(tmp_path / "a", tmp_path / "b" / "c")
    assert storage.read_bytes(tmp_path / "b" / "c" / "deep" / "file") == b"x"
    for _ in range(2):  # the second time there is nothing left
        storage.remove_tree(tmp_path / "a")
        assert not storage.exists(tmp_path / "a")
    storage.make_directory(tmp_path / "d" / "e")
    storage.make_directory(tmp_path / "d" / "e")
    assert storage.is_directory(tmp_path / "d" / "e")


# Object stores, played by a filesystem in memory ------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """A `mock://` store, as pyarrow's own tests use it, that keeps its content between two look-ups."""
    filesystem = fs._MockFileSystem()
    for module in (storage, search):
        monkeypatch.setattr(module, "resolve", lambda path: (filesystem, unquote(str(path).removeprefix("mock://"))))
    return "mock://bucket"


def test_an_object_store_is_written_read_and_searched(bucket: str) -> None:
    storage.make_directory(storage.join(bucket, "data/deep"))
    for name in ("b.parquet", "a.parquet", "deep/c.parquet", "_hidden.parquet", "notes.txt"):
        storage.write_bytes(storage.join(bucket, "data", name), name.encode())
    assert storage.list_directories(storage.join(bucket, "data")) == ["deep"]
    found = find_files(storage.join(bucket, "data"))
    assert found == [f"{bucket}/data/{name}" for name in ("a.parquet", "b.parquet", "deep/c.parquet")]
    assert [storage.read_bytes(path) for path in found] == [b"a.parquet", b"b.parquet", b"deep/c.parquet"]
    storage.remove_tree(storage.join(bucket, "data"))
    storage.remove_tree(storage.join(bucket, "data"))
    assert not storage.exists(storage.join(bucket, "data"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet", "b c.parquet", "größe.parquet"]),
        ("data/*", ["data/deep/er/z.parquet", "data/x.parquet", "data/y.txt"]),
        ("*/[xz].*", ["data/x.parquet"]),
        ("*/[!xz].*", ["data/y.txt"]),
        ("d*", ["data/deep/er/z.parquet", "data/x.parquet"]),
        ("**/z.parquet", ["data/deep/er/z.parquet"]),
        ("data/**/*.parquet", ["data/deep/er/z.parquet", "data/x.parquet"]),
    ],
)
def test_globs_in_an_object_store_mean_what_they_mean_locally(
    bucket: str, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    files = ["a.parquet", "b c.parquet", "größe.parquet", "_h.parquet", "data/x.parquet", "data/y.txt"]
    for name in [*files, "data/deep/er/z.parquet", "data/.tmp/x.parquet"]:
        for root in (bucket, str(tmp_path)):
            path = storage.join(root, name)
            storage.make_directory(path.rpartition("/")[0])
            storage.write_bytes(path, b"x")
    found = find_files(storage.join(bucket, pattern))
    assert found == sorted(storage.join(bucket, quote(name)) for name in expected)
    with pytest.MonkeyPatch.context() as patch:
        for module in (storage, search):
            patch.setattr(module, "resolve", lambda path: (fs.LocalFileSystem(), str(path)))
        assert names(find_files(tmp_path / pattern), tmp_path) == sorted(expected)


def test_a_glob_in_an_object_store_that_finds_nothing_is_told(bucket: str) -> None:
    with pytest.raises(DataError) as raised:
        find_files(f"{bucket}/*.parquet")
    assert str(raised.value) == (
        f"{bucket}/*.parquet: must hold at least one .parquet file, but holds none; check the path"
    )


# Runs -------------------------------------------------------------------------------------------------------------


def test_a_run_means_its_best_bundle(tmp_path: Path) -> None:
    for bundle in ("step-1", "step-2"):
        storage.write_bytes(tmp_path / bundle / "MANIFEST.json", b"{}")
    assert pointed(tmp_path, "best") is None
    for bundle in ("step-1", "step-2"):
        point_to(tmp_path, "best", bundle)
        assert pointed(tmp_path, "best") == bundle
        assert resolve_bundle(tmp_path) == str(tmp_path / bundle)
    assert resolve_bundle(tmp_path / "step-1") == str(tmp_path / "step-1")
