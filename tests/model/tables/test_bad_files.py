"""Files that are damaged, out of reach or made to do harm: one clear message, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from model.errors import DataError
from model.scan.fragment_scan import scan_fragment
from model.scan.split import SplitBy
from model.scoring.scorer import Scorer
from model.tables.fragments import Fragment
from model.tables.parquet import find_fragments, read_fragment

ROOT = Path(__file__).resolve().parents[3]
EXTENSIONS = [
    "arrow.py_extension_type",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
    "ray.data.arrow_pickled_object",
    "somebody.elses",
]


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def poisoned(table: pa.Table, column: str, extension: str, mark: Path) -> pa.Table:
    """The table, with a column that says it is of an extension type whose metadata are a pickle."""
    place = table.column_names.index(column)
    metadata = {"ARROW:extension:name": extension, "ARROW:extension:metadata": pickle.dumps(Payload(mark))}
    return table.cast(table.schema.set(place, table.schema.field(place).with_metadata(metadata)))


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_nothing_in_a_files_metadata_is_run(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any, make_bundle: Any, extension: str
) -> None:
    import ray.data  # noqa: F401 - registers its extension types, as the tasks of a pipeline do

    mark, path = tmp_path / "mark", tmp_path / "a.parquet"
    table = make_table()
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark))).close()  # noqa: S301 - proves that the payload works
    mark.unlink()
    for column in ("x", "country", "key"):
        pq.write_table(poisoned(table, column, extension, mark), path)
        fault = fault_of(path, make_config(), Scorer(make_bundle()))
        # Ray's own message would have people switch the danger on.
        assert fault is None or (str(fault).startswith(f"{path}: ") and "RAY_DATA" not in str(fault))
        assert extension.startswith("ray") or fault is None
    assert not mark.exists()


def fault_of(path: Path, config: Any, scorer: Scorer) -> DataError | None:
    """What scanning and scoring a file say of it; None where they go well."""
    try:
        (fragment,) = find_fragments(path, ["x", "country"])
        scan_fragment(fragment, config, SplitBy(fraction=0.5, key="key"), fit=True)
        scored = scorer.score(read_fragment(fragment, [*scorer.input_schema.names, "key"]))
    except DataError as error:
        return error
    return next(iter(scored.errors.values()), None)


def test_values_that_are_pickles_stay_bytes(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any
) -> None:
    import ray.data  # noqa: F401 - registers the type

    mark, path = tmp_path / "mark", tmp_path / "a.parquet"
    table = make_table(lengths=[1] * 4)
    metadata = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": b""}
    objects = pa.array([pickle.dumps(Payload(mark))] * 4, pa.large_binary())
    place = table.column_names.index("age")
    pq.write_table(table.set_column(place, pa.field("age", pa.large_binary(), metadata=metadata), objects), path)
    (fragment,) = find_fragments(path, ["age"])
    with pytest.raises(DataError) as raised:
        scan_fragment(fragment, make_config(), None, fit=True)
    assert str(raised.value) == f"{path}, column 'age': must hold numbers, but its type is large_binary"
    assert not mark.exists()


@pytest.mark.slow
def test_nothing_is_run_by_training_from_such_a_file(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any
) -> None:
    """Through the command, with Ray and its types in every process."""
    mark = tmp_path / "mark"
    pq.write_table(poisoned(make_table(rows=40), "x", "arrow.py_extension_type", mark), tmp_path / "a.parquet")
    run = {
        "output": str(tmp_path / "runs"),
        "data": {"train": str(tmp_path / "a.parquet")},
        "model": make_config().model_dump(mode="json"),
        "train": {"steps": 2, "batch_sequences": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "pipelines", "train", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert not mark.exists()
    assert done.returncode == 0, done.stderr


# Out of reach -----------------------------------------------------------------------------------------------------

UNPRIVILEGED = """
import os, sys
from model.errors import DynamicRnnError
from model.tables.parquet import find_fragments, read_fragment
from model.storage import exists, write_bytes
good, *others = sys.argv[1:]
read_fragment(find_fragments(good, ["x"])[0], ["x"])  # loads what is loaded late, which may lie out of reach then
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
for path in others:
    try:
        write_bytes(path + "/new", b"") if path.endswith("closed") else find_fragments(path, ["x"])
    except DynamicRnnError as error:
        print(error)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may read; pytest's own are for one alone."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_files_without_permission_are_told(open_directory: Path) -> None:
    """In a process that is not root, whom permissions do not hold."""
    table = pa.table({"x": [1, 2]})
    good, secret, closed = open_directory / "a.parquet", open_directory / "secret.parquet", open_directory / "closed"
    pq.write_table(table, good)
    pq.write_table(table, secret)
    closed.mkdir()
    pq.write_table(table, closed / "b.parquet")
    secret.chmod(0)
    closed.chmod(0)
    command = [
        sys.executable,
        "-c",
        UNPRIVILEGED,
        good,
        secret,
        closed / "b.parquet",
        closed,
        open_directory,
        f"{closed}/",
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True)
    closed.chmod(0o755)
    told = done.stdout.splitlines()
    assert told[0].startswith(f"{secret}: cannot be read: ")
    assert told[1].startswith(f"{closed}/b.parquet: cannot be listed: ")
    assert told[2].startswith(f"{closed}/new: cannot be written: ")
    assert told[2].endswith("; check its permissions")
    assert told[3].startswith(f"{open_directory}: cannot be listed: ")
    assert told[4].startswith(f"{closed}: cannot be listed: ")
    assert all("Permission denied" in line for line in told), told


@pytest.mark.parametrize("name", ["with space.parquet", "größe-数据.parquet", "a[1].parquet", "50%20off.parquet"])
def test_any_name_may_be_given(tmp_path: Path, name: str) -> None:
    path = tmp_path / "some data" / name
    path.parent.mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), path)
    (fragment,) = find_fragments(path, ["x"])
    assert read_fragment(Fragment(**json.loads(json.dumps(asdict(fragment)))), ["x"]).to_pydict() == {"x": [1, 2]}


# Through the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "a.parquet: must be a whole Parquet file"),
        (lambda path: path.unlink(), "must hold at least one .parquet file, but holds none; check the path"),
    ],
    ids=["truncated", "empty directory"],
)  # fmt: skip
@pytest.mark.slow
def test_the_command_ends_with_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, make_table: Callable[..., pa.Table], make_config: Any, damage: Any, told: str
) -> None:
    data = tmp_path / "my däta"
    data.mkdir()
    pq.write_table(make_table(rows=40), data / "a.parquet")
    damage(data / "a.parquet")
    run = {
        "output": str(tmp_path / "runs"),
        "data": {"train": str(data)},
        "model": make_config().model_dump(mode="json"),
        "train": {"steps": 2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "pipelines", "--quiet", "train", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    left = [name for _, _, names in os.walk(tmp_path / "runs") for name in names]
    assert set(left) <= {"run.yaml"}, left
