"""An object store that is a real server on this machine: listing, globs, writing, and a run from end to end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import fs
from typer.testing import CliRunner, Result

from model.bundle.bundle import load_bundle, save_bundle
from model.bundle.run_directory import resolve_bundle
from model.errors import ConfigError, DataError, DecodeError
from model.storage import filesystems as storage
from model.storage import pinned
from model.storage.node_copy import node_copy
from model.storage.search import find_files
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import find, find_fragments, is_stored, read_fragment
from model.tables.slices import SlicedRowGroup, read_slices
from pipelines.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",  # else a request without credentials asks a cloud for them, and waits
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The options of a URI that names the server."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        moto.start()
        host, port = moto.get_host_and_port()
        yield f"?scheme=http&endpoint_override={host}:{port}"
        moto.stop()


@pytest.fixture(scope="module")
def bucket(server: str) -> str:
    """A new bucket's URI with its options; `storage.join` puts names before them."""
    endpoint = server.partition("endpoint_override=")[2]
    filesystem = fs.S3FileSystem(scheme="http", endpoint_override=endpoint, allow_bucket_creation=True)
    filesystem.create_dir("data-bucket")
    return f"s3://data-bucket{server}"


def put(uri: str, table: pa.Table) -> None:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, row_group_size=8)
    storage.write_bytes(uri, stream.getvalue().to_pybytes())


def test_what_is_found_can_be_opened_by_any_process(bucket: str) -> None:
    names = ["a.parquet", "b c.parquet", "größe.parquet", "50%25.parquet", "year=2020/x.parquet", "_h.parquet", "n.txt"]
    for number, name in enumerate(names):
        put(storage.join(bucket, "list", name), pa.table({"x": [number]}))
    fragments = find_fragments(storage.join(bucket, "list"), ["x"])
    assert all(each.file.endswith(bucket.partition("?")[2]) for each in fragments)
    assert {storage.stem(each.file) for each in fragments} == {"a", "b c", "größe", "50_", "x"}
    read = [read_fragment(Fragment(**json.loads(json.dumps(asdict(each)))), ["x", "year"]) for each in fragments]
    assert sorted(table["x"].to_pylist()[0] for table in read) == [0, 1, 2, 3, 4]
    assert [table["year"].to_pylist() for table in read if "year" in table.column_names] == [[2020]]


def test_row_groups_are_pruned_as_in_local_files(bucket: str) -> None:
    for year in (2020, 2021):
        path = storage.join(bucket, "pruned", f"year={year}", "a.parquet")
        put(path, pa.table({"x": range(24), "z": [1] * 24}))
    found = find(storage.join(bucket, "pruned"), ["z"], where=Filter("year == 2021 and x >= 10"))
    assert [(each.row_group, dict(each.partitions)) for each in found.fragments] == [
        (g, {"year": 2021}) for g in (1, 2)
    ]
    assert (found.excluded_files, found.excluded_rows) == (1, 8)


def test_a_delta_table_is_its_live_files_and_its_parts_are_refused(bucket: str, tmp_path: Path) -> None:
    from deltalake import write_deltalake

    for values in ([1, 2], [3, 4]):
        table = pa.table({"x": values, "code": ["01", "ü %/"]})
        write_deltalake(tmp_path, table, partition_by=["code"], mode="overwrite")
    where = storage.join(bucket, "lake", "größe")
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        key = quote(str(file.relative_to(tmp_path)))
        storage.write_bytes(storage.join(where, key), file.read_bytes())
    read = [read_fragment(each, ["x", "code"]).to_pylist()[0] for each in find_fragments(where, ["x"])]
    assert sorted(read, key=lambda row: row["x"]) == [{"x": 3, "code": "01"}, {"x": 4, "code": "ü %/"}]
    old = find_fragments(where.replace("?", "@v0?"), ["x"])
    assert sorted(read_fragment(each, ["x"])["x"][0].as_py() for each in old) == [1, 2]
    assert pinned(where) == where.replace("?", "@v1?")
    for path in (storage.join(bucket, "lake"), storage.join(where, "code=01"), storage.join(where, "*", "*.parquet")):
        with pytest.raises(DataError, match=r"is a Delta table; 2 of 4 files are live; name its own directory"):
            find_files(path)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("*.parquet", 2), ("*/*.parquet", 1), ("**/*.parquet", 3), ("[a]*", 1), ("year=*", 1), ("z*", 0)],
)
def test_globs(bucket: str, pattern: str, count: int) -> None:
    for name in ("a.parquet", "b c.parquet", "year=2020/x.parquet", "_tmp/y.parquet"):
        put(storage.join(bucket, "glob", name), pa.table({"x": [1]}))
    if count:
        assert len(find_files(storage.join(bucket, "glob", pattern))) == count
    else:
        with pytest.raises(DataError, match=r"must hold at least one \.parquet file, but holds none"):
            find_files(storage.join(bucket, "glob", pattern))


def test_what_is_written_is_read_replaced_listed_and_removed(bucket: str) -> None:
    directory = storage.join(bucket, "written", "größe und mehr")
    path = storage.join(directory, "file.bin")
    assert not storage.exists(path)
    for content in (b"first", b"", b"second"):
        storage.write_bytes(path, content)
        assert storage.read_bytes(path) == content
    assert storage.exists(path)
    assert storage.is_directory(directory)
    assert storage.list_names(directory) == ["file.bin"]
    storage.copy_tree(directory, storage.join(bucket, "copy"))
    assert storage.read_bytes(storage.join(bucket, "copy", "file.bin")) == b"second"
    storage.remove_tree(directory)
    assert not storage.exists(path)
    assert storage.list_names(directory) == []


def test_what_people_can_mend_is_told(server: str, bucket: str) -> None:
    missing = f"s3://no-such-bucket{server}"
    with pytest.raises(DataError) as raised:
        find_files(missing)
    assert str(raised.value) == f"{missing}: there is no such file or directory; check the path"
    with pytest.raises(ConfigError) as refused:
        storage.write_bytes(storage.join(missing, "a"), b"x")
    assert str(refused.value).startswith(f"s3://no-such-bucket/a{server}: cannot be written: ")
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("; check the bucket's name, the credentials, the region and the endpoint")
    nobody = "s3://data-bucket/x?scheme=http&endpoint_override=127.0.0.1:9"
    with pytest.raises((DataError, ConfigError), match="cannot be"):
        find_files(nobody)


@pytest.fixture
def refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From now on the server checks credentials, and those of this process are nobody's."""
    from moto.core.authorization import enable_iam_authentication

    put(storage.join(bucket, "secret", "a.parquet"), pa.table({"x": [[1.0]]}))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYSKEY000000")
    storage._bucket.cache_clear()
    with enable_iam_authentication():
        yield
    storage._bucket.cache_clear()


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("train", "secret"),
        ("train", "secret/a.parquet"),
        ("inspect", "secret"),
        ("inspect", "secret/*"),
        ("predict", "secret"),
        ("predict a bundle", "secret"),
    ],
)
def test_refused_credentials_are_told_at_once(
    bucket: str, tmp_path: Path, make_config: Any, make_bundle: Any, command: str, path: str
) -> None:
    data, bundle = storage.join(bucket, *path.split("/")), tmp_path / "bundle"
    save_bundle(bundle, make_bundle())
    run = {"output": str(tmp_path / "runs"), "data": {"train": data}, "model": make_config().model_dump(mode="json")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    arguments = {
        "train": ["train", str(tmp_path / "run.yaml")],
        "inspect": ["inspect", data],
        "predict": ["predict", str(bundle), data, str(tmp_path / "out")],
        "predict a bundle": ["predict", data, str(tmp_path), str(tmp_path / "out")],
    }
    began = time.monotonic()
    told = CliRunner().invoke(app, arguments[command], catch_exceptions=False)
    assert time.monotonic() - began < 20
    assert (told.exit_code, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    named = storage.join(data, "MANIFEST.json") if command == "predict a bundle" else data
    assert line.startswith(f"dynamic-rnn: {named}: cannot be ")
    assert "access was refused (" in line
    assert line.endswith("; check the credentials, and that they may read or write there")


@pytest.mark.usefixtures("refused")
def test_credentials_that_expire_while_reading_are_no_damage(bucket: str) -> None:
    fragment = Fragment(storage.join(bucket, "secret", "a.parquet"), 0, 1)
    block = SlicedRowGroup(fragment, "a.parquet", 0, 1, 0)
    for read in (lambda: read_fragment(fragment, ["x"]), lambda: list(read_slices(block, ["x"]))):
        with pytest.raises(DecodeError, match=r"row group 0 cannot be read: access was refused \(.*; check the cred"):
            read()
    assert not is_stored(fragment)


def test_uris_of_other_stores_are_read_without_a_request() -> None:
    _, inner = storage.resolve("gs://anonymous@bucket/some data/größe%2Fx")
    assert inner == "bucket/some data/größe/x"
    assert storage.join("gs://bucket/a?retry_limit_seconds=3", "b", "c") == "gs://bucket/a/b/c?retry_limit_seconds=3"
    assert storage.absolute("s3://bucket/runs/?region=eu-west-1") == "s3://bucket/runs?region=eu-west-1"


@pytest.mark.usefixtures("local_ray")
def test_inspect_writes_its_outputs_where_the_data_lie(
    bucket: str, tmp_path: Path, make_table: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.cli.app import app
    from pipelines.config import load_run

    monkeypatch.chdir(tmp_path)
    data, page, told, run = (storage.join(bucket, "inspected", name) for name in ("d", "a b.html", "t.json", "r.yaml"))
    put(storage.join(data, "a.parquet"), make_table(lengths=[3] * 30))

    def inspect(*words: str) -> Result:
        return CliRunner().invoke(app, ["--quiet", "inspect", data, "--label", "y", *words], catch_exceptions=False)

    done = inspect("--html", page, "--json", told, "--write", run)
    assert done.exit_code == 0, done.output
    assert f"page: {page}\nreport: {told}\nrun: {run}; train it with: dynamic-rnn train '{run}'" in done.stdout
    assert storage.read_bytes(page).startswith(b"<!doctype html>")
    assert json.loads(storage.read_bytes(told))["rows"] == 30
    assert load_run(run).data.train == data
    assert list(tmp_path.iterdir()) == []
    assert inspect("--html", page).exit_code == 0  # a page of inspect may be made anew
    for option, path in (("--json", told), ("--write", run), ("--html", told)):
        refused = inspect("--no-html" if option != "--html" else "--examples", option, path)
        assert (refused.exit_code, refused.stderr) == (
            2,
            f"dynamic-rnn: {option}: {path} is there already; add --force to overwrite it, or choose another name\n",
        )
    directory = storage.join(bucket, "inspected")
    assert inspect("--html", directory).stderr.endswith(f"--html must name a file, but {directory} is a directory\n")
    nowhere = bucket.replace("data-bucket", "no-such-bucket/page.html")
    assert inspect("--html", nowhere).stderr.startswith(f"dynamic-rnn: {nowhere}: cannot be written: ")


def test_a_node_fetches_a_remote_file_once(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = storage.join(bucket, "once", "lengths.npy")
    storage.write_bytes(path, b"lengths")
    content = hashlib.sha256(b"lengths").hexdigest()
    first = node_copy(path, content)
    storage.remove_file(path)
    assert node_copy(path, content) == first
    assert Path(first).read_bytes() == b"lengths"


@pytest.mark.slow
def test_a_run_reads_from_and_writes_to_an_object_store(
    bucket: str, tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any
) -> None:
    """train, evaluate and predict as commands, each a process with its own Ray."""
    for year in (2020, 2021):
        rows = make_table(rows=30, seed=year)
        put(storage.join(bucket, "train", f"year={year}", "part 0.parquet"), rows)
    run = {
        "output": storage.join(bucket, "runs"),
        "data": {"train": storage.join(bucket, "train"), "filter": "year >= 2021"},
        "model": make_config().model_dump(mode="json"),
        "train": {"steps": 3, "batch_sequences": 8},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command(tmp_path, "train", str(tmp_path / "run.yaml"))
    directory = storage.join(bucket, "runs", "run")
    bundle = load_bundle(resolve_bundle(directory))
    assert bundle.metrics["validation_loss"] > 0
    command(tmp_path, "evaluate", directory, storage.join(bucket, "train", "*", "*.parquet"))
    command(tmp_path, "predict", directory, storage.join(bucket, "train"), storage.join(bucket, "predicted"))
    written = find_fragments(storage.join(bucket, "predicted"), ["classes", "key"])
    assert sum(fragment.rows for fragment in written) == 60


def command(directory: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{words[0]}: {done.stdout[-3000:]}\n{done.stderr[-5000:]}"
