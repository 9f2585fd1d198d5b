"""Files that are written piece by piece and appear whole or not at all, on local disks and object stores alike.

`model.storage.filesystems.write_bytes` does it for what fits into memory; this does it for what does not. Knows no Ray.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from model.storage.filesystems import PathLike, is_remote, list_names, resolve

PARTIAL = ".partial"  # the end of a name that somebody still writes to; it begins with a dot, so no reader takes it


@contextmanager
def appearing(path: PathLike) -> Iterator[str]:
    """A local path to write to; what was written there is at `path` when the block ends without an error."""
    filesystem, inner = resolve(path)
    if is_remote(path):  # object stores put whole objects, but a stream of theirs that breaks off leaves half of one
        with tempfile.TemporaryDirectory(prefix="dynamic-rnn-") as directory:
            local = os.path.join(directory, "part")
            yield local
            fs.copy_files(local, inner, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
        return
    target = Path(inner)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield str(partial)
        sync(partial)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(path: PathLike) -> None:
    """Brings a local file to the disk, so that what is renamed later is whole after a power cut, too."""
    if is_remote(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(directory: PathLike) -> None:
    """Deletes what killed processes left half-written in a local directory; nobody may be writing there."""
    if not is_remote(directory):
        _, inner = resolve(directory)
        for name in list_names(directory):
            if name.startswith(".") and name.endswith(PARTIAL):
                Path(inner, name).unlink(missing_ok=True)


class ParquetOutput:
    """A Parquet file that takes tables of one schema, each a row group; the file's metadata say whose states it has."""

    def __init__(self, local: str, metadata: Mapping[str, str]) -> None:
        self.local = local
        self.metadata = dict(metadata)
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Appends a row group (none for a table without rows, but its schema counts)."""
        table = table.replace_schema_metadata(self.metadata)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.local, table.schema, compression="zstd")
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)

    def close(self) -> None:
        """Writes the footer."""
        assert self._writer is not None, "whoever opens an output writes at least a table without rows"
        self._writer.close()


@contextmanager
def parquet_output(path: PathLike, metadata: Mapping[str, str]) -> Iterator[ParquetOutput]:
    """A Parquet file at `path` that appears when the block ends without an error."""
    with appearing(path) as local:
        output = ParquetOutput(local, metadata)
        yield output
        output.close()
