"""Preparations in this process: without Ray, and with hardly any memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.settings import build
from pipelines.prepare import plan as prepare_plan
from pipelines.prepare import sorted_runs as prepare_spill
from pipelines.prepare import tasks as prepare_tasks
from pipelines.prepare.settings import PrepareSettings
from pipelines.tasks import map as passes


@contextlib.contextmanager
def in_process(*, mebibyte: int = 1 << 20, batch_bytes: int = prepare_spill.BATCH_BYTES) -> Iterator[None]:
    """Tasks run here; a small `mebibyte` makes many runs, buckets and rounds of merging of a small table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "ray_is_running", lambda: False)
        for module in (prepare_tasks, prepare_plan):
            patch.setattr(module, "MIB", mebibyte)
        for module in (prepare_tasks, prepare_spill):
            patch.setattr(module, "BATCH_BYTES", batch_bytes)
        yield


def settings_of(**given: Any) -> PrepareSettings:
    return build(PrepareSettings, {"key": "key", "time": "time", "detect_context": False, **given}, where="prepare")


def write(directory: Path, table: pa.Table, *, files: int = 1, group_rows: int = 1 << 20) -> Path:
    """The table as several files of small row groups; the order of rows is kept."""
    directory.mkdir(parents=True)
    size = -(-table.num_rows // files)
    for number in range(files):
        pq.write_table(table.slice(number * size, size), directory / f"{number}.parquet", row_group_size=group_rows)
    return directory


def sequences(output: Path) -> list[dict[str, Any]]:
    """All sequences in the order they stand in the files of one directory."""
    return [row for file in sorted(output.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
