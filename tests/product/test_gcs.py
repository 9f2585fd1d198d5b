"""Google's object store, as a server on this machine speaks its protocol: finding, reading, writing, predicting."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.bundle.bundle import load_bundle, save_bundle
from model.bundle.run_directory import resolve_bundle
from model.errors import DataError
from model.storage import filesystems as storage
from model.storage.search import find_files
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import find, find_fragments, read_fragment
from pipelines.predict.run import predict

pytestmark = pytest.mark.slow


# The emulator's own loop answers one request after the other; ours keeps several files open at once.
SERVER = """
    from functools import partial
    from http.server import ThreadingHTTPServer
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    store = Storage(use_memory_fs=True)
    create_bucket("data-bucket", store)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(RequestHandler, store)) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty bucket's URI with the server as its options; `storage.join` puts names before them.

    In a process of its own: pyarrow's Google client holds Python's lock while it waits for an answer.
    """
    log = tmp_path_factory.mktemp("gcs") / "log"
    command = [sys.executable, "-c", textwrap.dedent(SERVER)]
    with log.open("w") as stream, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, log.read_text()
        yield f"gs://anonymous@data-bucket?scheme=http&endpoint_override=127.0.0.1:{port}&retry_limit_seconds=5"
        server.terminate()


def put(uri: str, table: pa.Table) -> None:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, row_group_size=8)
    storage.write_bytes(uri, stream.getvalue().to_pybytes())


def test_what_is_found_is_read_by_any_process(bucket: str) -> None:
    names = ["a.parquet", "b c.parquet", "größe.parquet", "year=2020/x.parquet", "_h.parquet", "n.txt"]
    for number, name in enumerate(names):
        put(storage.join(bucket, "list", name), pa.table({"x": [number]}))
    fragments = find_fragments(storage.join(bucket, "list"), ["x"])
    assert {storage.stem(each.file) for each in fragments} == {"a", "b c", "größe", "x"}
    read = [read_fragment(Fragment(**json.loads(json.dumps(asdict(each)))), ["x", "year"]) for each in fragments]
    assert sorted(table["x"].to_pylist()[0] for table in read) == [0, 1, 2, 3]
    assert len(find_files(storage.join(bucket, "list", "**", "*.parquet"))) == 4
    kept = find(storage.join(bucket, "list", "year=*"), ["x"], where=Filter("year > 2019"))
    assert [dict(each.partitions) for each in kept.fragments] == [{"year": 2020}]
    with pytest.raises(DataError, match="there is no such file or directory; check the path"):
        find_files(storage.join(bucket, "nothing"))


def test_what_is_written_is_read_replaced_listed_and_removed(bucket: str) -> None:
    directory = storage.join(bucket, "written", "größe und mehr")
    path = storage.join(directory, "file.bin")
    assert not storage.exists(path)
    for content in (b"first", b"second"):
        storage.write_bytes(path, content)
        assert storage.read_bytes(path) == content
    assert storage.is_directory(directory)
    assert storage.list_names(directory) == ["file.bin"]
    storage.remove_tree(directory)
    assert not storage.exists(path)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("key", [(), ("key",)], ids=["plain", "chained"])
def test_bundle_input_output_and_states_may_lie_there(
    bucket: str, make_bundle: Callable[..., Any], make_table: Callable[..., pa.Table], tmp_path: Path, key: Any
) -> None:
    root, data = storage.join(bucket, "predicted by key" if key else "predicted"), tmp_path / "data.parquet"
    table = make_table(rows=30)
    pq.write_table(table, data, row_group_size=8)
    put(storage.join(root, "data", "data.parquet"), table)
    save_bundle(tmp_path / "bundle", make_bundle())
    storage.copy_tree(tmp_path / "bundle", storage.join(root, "bundle"))
    assert load_bundle(resolve_bundle(storage.join(root, "bundle"))).fingerprint == make_bundle().fingerprint

    for _ in range(2):  # the second finds all of it done
        there = predict(storage.join(root, "bundle"), storage.join(root, "data"), storage.join(root, "out"), key=key)
    predict(str(tmp_path / "bundle"), str(data), str(tmp_path / "out"), key=key)
    assert (there.rows, there.files, there.skipped_files) == (30, 4, 4)

    def rows(directory: str) -> pa.Table:
        parts = find_fragments(directory, [])
        return pa.concat_tables(read_fragment(part, ["row", "classes", "rnn_cell_state_0"]) for part in parts)

    assert rows(storage.join(root, "out")).equals(rows(str(tmp_path / "out")))
    if key:
        states = [find_fragments(where, ["key"]) for where in (storage.join(root, "out", "_states"), there.states)]
        assert sum(part.rows for part in states[0]) == sum(part.rows for part in states[1]) == there.entities == 5
        again = storage.join(root, "next")
        predict(storage.join(root, "bundle"), storage.join(root, "data"), again, key=key, state_from=there.directory)
