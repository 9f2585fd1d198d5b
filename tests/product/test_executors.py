"""This process and Ray compute the same bits: every pass and training, over files that are anything but tidy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from model.bundle.bundle import load_bundle, save_bundle
from pipelines.config import RunConfig, run_config
from pipelines.evaluate import evaluate
from pipelines.ingest.fit_cache import fitted_data
from pipelines.inspect.report import report
from pipelines.inspect.run import inspect_data
from pipelines.predict.run import predict
from pipelines.prepare.run import prepare
from pipelines.prepare.settings import PrepareSettings
from pipelines.train.checkpoints import RAY_SNAPSHOT
from pipelines.train.run import train

pytestmark = pytest.mark.usefixtures("local_ray")
SPEEDS = {"steps_per_second", "real_steps_per_second"}
Both = Callable[[Callable[[str], Any]], None]


@contextmanager
def without_ray() -> Iterator[None]:
    """As in a process that is not connected to a Ray."""
    modules = ("pipelines.tasks.map", "pipelines.ingest.scan", "pipelines.ingest.batches", "pipelines.train.run")
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(f"{module}.ray_is_running", lambda: False)
        yield


@pytest.fixture
def both() -> Both:
    """both(compute): `compute(name)` gives the same by Ray and in this process."""

    def compare(compute: Callable[[str], Any]) -> None:
        by_ray = compute("ray")
        with without_ray():
            here = compute("here")
        assert here == by_ray

    return compare


@pytest.fixture
def untidy(make_table: Any, tmp_path: Path) -> str:
    """Uneven row groups in several files, one of them empty, and rows that break the contract in some."""
    directory = tmp_path / "data"
    directory.mkdir()
    random = np.random.default_rng(5)
    for number, (rows, group) in enumerate([(40, 7), (3, 1), (25, 25), (61, 13)]):
        table = make_table(lengths=random.integers(0, 9, rows).tolist(), seed=number)
        values = table["x"].to_pylist()
        for bad in (5, 20):
            if bad < rows and values[bad]:
                values[bad] = [math.inf, *values[bad][1:]]
        table = table.set_column(table.column_names.index("x"), "x", pa.array(values, pa.list_(pa.float64())))
        pq.write_table(table, directory / f"{number}.parquet", row_group_size=group)
    pq.write_table(table.slice(0, 0), directory / "empty.parquet")
    return str(directory)


def contents(directory: str | Path) -> dict[str, Any]:
    """Every file below a directory: Parquet by its bytes, other files by theirs; but those with times in them."""
    root = Path(directory)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in ("_PREPARE.json",))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("key", [(), ("key",)], ids=["each row by itself", "chained"])
def test_predictions_states_and_quarantine_are_the_same_bytes(
    both: Both, make_bundle: Any, untidy: str, tmp_path: Path, key: tuple[str, ...]
) -> None:
    save_bundle(tmp_path / "bundle", make_bundle())

    def compute(name: str) -> Any:
        out = tmp_path / name
        result = predict(str(tmp_path / "bundle"), untidy, str(out), key=key, on_bad_rows="skip", probabilities=True)
        assert result.bad_rows > 0
        found = contents(out)
        return result.rows, {file: data for file, data in found.items() if file.endswith(".parquet")}

    both(compute)


def test_metrics_are_the_same_bits(both: Both, make_bundle: Any, untidy: str, tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", make_bundle())

    def compute(name: str) -> Any:
        aside = tmp_path / f"quarantine-{name}"
        metrics = evaluate(str(tmp_path / "bundle"), untidy, on_bad_rows="skip", quarantine=str(aside))
        tables = [pq.read_table(file).to_pylist() for file in sorted(aside.iterdir())]
        assert tables
        return metrics, sorted(map(str, tables))

    both(compute)


def test_reports_on_data_are_the_same(both: Both, untidy: str) -> None:
    both(lambda _: json.dumps(report(inspect_data(untidy, label="y"))))


@pytest.fixture
def run_of(make_config: Any, untidy: str, tmp_path: Path) -> Callable[..., RunConfig]:
    """run_of(name, **train): a run over the untidy files."""

    def make(name: str, **settings: Any) -> RunConfig:
        run = {
            "name": name,
            "output": str(tmp_path / "runs"),
            "data": {"train": untidy, "key": "key", "validation_fraction": 0.3, "on_bad_rows": "skip"},
            "model": make_config().model_dump(mode="json"),
            "train": {"batch_sequences": 8, "optimizer": "Adam", "learning_rate": 0.01, **settings},
            "tracking": {"tensorboard": False, "report": False},
        }
        return run_config(yaml.safe_load(yaml.safe_dump(run)), where="run")

    return make


@pytest.mark.usefixtures("large")
def test_columns_and_indexes_are_the_same(both: Both, run_of: Any) -> None:
    def compute(name: str) -> Any:
        found = fitted_data(run_of(name))
        indexes = [
            (index.fragments, index.lengths.tolist(), index.selected.tolist())
            for index in (found.train, found.validation)
        ]
        return found.columns.model_dump_json(), found.label, indexes, found.report

    both(compute)


def trained(result: Any) -> tuple[str, list[dict[str, Any]]]:
    """The bundle's fingerprint, and all metrics but speeds."""
    lines = [json.loads(line) for line in Path(result.directory, "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]
    return load_bundle(result.bundle).fingerprint, kept


def test_a_training_is_the_same_and_each_goes_on_from_what_the_other_left(both: Both, run_of: Any) -> None:
    settings = {"steps": 6, "evaluate_every_steps": 3, "checkpoint_every_steps": 1}
    whole: dict[str, Any] = {}

    def compute(name: str) -> Any:
        whole[name] = trained(train(run_of(name, **settings)))
        return whole[name]

    both(compute)
    short = settings | {"steps": 4}
    train(run_of("begun-by-ray", **short))
    with without_ray():
        train(run_of("begun-here", **short))
        gone_on = train(run_of("begun-by-ray", **settings), resume=True)
    assert trained(gone_on)[0] == whole["here"][0]
    assert not Path(gone_on.directory, "train", RAY_SNAPSHOT).exists()
    gone_on = train(run_of("begun-here", **settings), resume=True)
    assert trained(gone_on)[0] == whole["ray"][0]
    assert Path(gone_on.directory, "train", RAY_SNAPSHOT).exists(), "Ray Train goes on"


def test_sequences_are_the_same_bytes(both: Both, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    (tmp_path / "events").mkdir()
    for number, rows in enumerate((1000, 1, 377)):
        table = pa.table(
            {
                "key": pa.array([None if random.random() < 0.02 else f"k{k}" for k in random.integers(0, 40, rows)]),
                "time": random.integers(0, 500, rows),
                "x": random.normal(size=rows),
                "kind": random.choice(["a", "b"], rows).tolist(),
            }
        )
        pq.write_table(table, tmp_path / "events" / f"{number}.parquet", row_group_size=151)
    settings = PrepareSettings(
        key="key", time="time", label="kind", label_shift=1, max_length=9, time_delta="dt", on_bad_rows="skip",
        row_group_rows=10,
    )  # fmt: skip

    def compute(name: str) -> Any:
        prepare(tmp_path / "events", tmp_path / name, settings)
        return {file: data for file, data in contents(tmp_path / name).items() if file.endswith((".parquet", ".pq"))}

    both(compute)
