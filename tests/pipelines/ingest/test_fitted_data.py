"""What a scan keeps of a run's data: row groups and lengths come back, and workers share the node's one copy."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from model.batches.plan import DataIndex
from model.bundle.run_directory import LENGTHS, TRAIN_INDEX, VALIDATION_INDEX
from model.columns import ColumnsConfig, one_hot_column, sparse_column_with_hash_bucket
from model.errors import ConfigError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.features.stats import ColumnStats
from model.storage import node_copy
from model.tables.fragments import Fragment
from pipelines.ingest.fit_cache import same_index
from pipelines.ingest.fitted_data import FittedData, load_fitted, save_fitted

GROUPS = tuple(Fragment(f"{number}.parquet", 0, rows) for number, rows in enumerate((4, 0, 3)))
LENGTHS_B = np.array([3, 1, 4, 1, 5, 9, 2], np.int32)
TRAINED = np.array([True, False, True, True, False, True, True])
COLUMN = one_hot_column(sparse_column_with_hash_bucket("x", 4))
Fitted = Callable[[DataIndex, DataIndex | None], FittedData]


@pytest.fixture
def fitted() -> Fitted:
    def make(train: DataIndex, validation: DataIndex | None) -> FittedData:
        columns = FittedColumns.fit(ColumnsConfig(sequence=(COLUMN,)), {"hash_bucket:x": ColumnStats()})
        label = FittedLabel(name="y", weight=None, problem_type="linear_regression", prediction_type="single_value")
        return FittedData(columns, label, train, validation)

    return make


def split() -> tuple[DataIndex, DataIndex]:
    return DataIndex(GROUPS, LENGTHS_B, TRAINED), DataIndex(GROUPS, LENGTHS_B, ~TRAINED)


def test_a_split_path_keeps_its_lengths_once_and_each_part_its_rows(tmp_path: Path, fitted: Fitted) -> None:
    train, validation = split()
    save_fitted(str(tmp_path), fitted(train, validation))
    assert np.load(tmp_path / LENGTHS).tolist() == LENGTHS_B.tolist()
    found = load_fitted(str(tmp_path))
    assert found.validation is not None
    assert same_index(found.train, train)
    assert same_index(found.validation, validation)
    assert (found.train.rows, found.train.steps, found.validation.rows, found.validation.steps) == (5, 19, 2, 6)


@pytest.mark.parametrize("validates", [True, False])
def test_two_paths_lie_one_behind_the_other(tmp_path: Path, fitted: Fitted, validates: bool) -> None:
    other = (Fragment("v.parquet", 2, 2),)
    train = DataIndex(GROUPS, LENGTHS_B)
    validation = DataIndex(other, np.array([7, 8], np.int32), np.array([False, True])) if validates else None
    save_fitted(str(tmp_path), fitted(train, validation))
    found = load_fitted(str(tmp_path))
    assert same_index(found.train, train)
    assert (found.validation is None) == (validation is None)
    assert validation is None or found.validation is None or same_index(found.validation, validation)


def test_workers_map_the_nodes_one_file(tmp_path: Path, fitted: Fitted) -> None:
    save_fitted(str(tmp_path), fitted(*split()))
    found = load_fitted(str(tmp_path))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".npy" in line}
    assert {str(tmp_path / LENGTHS), str(tmp_path / "data/train_rows.npy")} <= mapped
    with pytest.raises(ValueError, match="read-only"):
        found.train.lengths[0] = 1


def test_what_0_1_0_stored_is_read(tmp_path: Path, fitted: Fitted) -> None:
    train, validation = split()
    save_fitted(str(tmp_path), fitted(train, validation))
    (tmp_path / LENGTHS).unlink()
    for name, index in ((TRAIN_INDEX, train), (VALIDATION_INDEX, DataIndex(GROUPS, LENGTHS_B))):
        stream, fragments = io.BytesIO(), json.dumps([asdict(fragment) for fragment in GROUPS]).encode()
        selected = np.zeros(0, bool) if index.selected is None else index.selected
        np.savez_compressed(
            stream, lengths=index.lengths, selected=selected, fragments=np.frombuffer(fragments, np.uint8)
        )
        (tmp_path / name).write_bytes(stream.getvalue())
    found = load_fitted(str(tmp_path))
    assert found.validation is not None
    assert same_index(found.train, train)
    assert found.validation.selected is None


# A node's copy of a remote file -----------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def source_of(directory: Path, size: int) -> tuple[Path, str]:
    path = directory / "source.npy"
    path.write_bytes(bytes(size))
    return path, node_copy.sha256_of(path)


def _copy(place: tuple[str, str, str]) -> str:
    import tempfile

    tempfile.tempdir = place[0]
    return node_copy.node_copy(*place[1:])


def test_processes_that_ask_at_once_get_one_copy_that_lasts(temporary: Path) -> None:
    path, content = source_of(temporary, 5_000_000)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        copies = pool.map(_copy, [(str(temporary), str(path), content)] * 4, chunksize=1)
    path.unlink()
    assert len(set(copies)) == 1
    assert node_copy.node_copy(path, content) == copies[0]
    assert Path(copies[0]).stat().st_size == 5_000_000
    assert {each.name for each in Path(copies[0]).parent.iterdir()} == {content, f"{content}.lock"}


def test_a_file_of_other_content_is_refused_and_not_kept(temporary: Path) -> None:
    path, content = source_of(temporary, 10)
    path.write_bytes(b"changed")
    other = node_copy.sha256_of(path)
    with pytest.raises(ConfigError) as refused:
        node_copy.node_copy(path, content)
    assert str(refused.value) == (
        f"{path}: must have the SHA-256 {content}, but has {other}; start the run anew, under another name"
    )
    assert [each.name for each in temporary.glob("dynamic-rnn-*/*")] == [f"{content}.lock"]


def test_a_copy_that_nobody_wants_any_more_makes_room(temporary: Path) -> None:
    import os

    path, content = source_of(temporary, 10)
    old = Path(node_copy.node_copy(path, content))
    os.utime(old, (0, 0))
    path.write_bytes(b"new")
    new = Path(node_copy.node_copy(path, node_copy.sha256_of(path)))
    assert (old.exists(), new.exists()) == (False, True)
