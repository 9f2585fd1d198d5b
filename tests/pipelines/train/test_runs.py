"""Training options through real Ray: what ends a run, what it keeps, what it starts from, and how many train it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from model.bundle.bundle import load_bundle
from model.bundle.run_directory import checkpoint_names
from model.errors import DataError, TrainingError
from model.storage import list_names
from pipelines.config import RunConfig, run_config
from pipelines.train import run as training
from pipelines.train.run import train

MODEL = {
    "problem_type": "classification",
    "prediction_type": "multiple_value",
    "label": "y",
    "cell_type": "lstm",
    "num_units": [6],
    "dropout_keep_probabilities": [0.9, 0.8],
    "columns": {
        "sequence": [
            {"type": "numeric", "name": "x"},
            {"type": "embedding", "dimension": 3, "source": {"type": "vocabulary", "name": "kind"}},
        ]
    },
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, make_table: Callable[..., pa.Table]) -> Path:
    """Two files of 30 rows in row groups of seven."""
    directory = tmp_path_factory.mktemp("training runs")
    for number in range(2):
        pq.write_table(make_table(rows=30, seed=number), directory / f"{number}.parquet", row_group_size=7)
    return directory


def settings_of(data: Path, output: Path, name: str, resources: Any = None, **train: Any) -> dict[str, Any]:
    return {
        "name": name,
        "output": str(output),
        "data": {"train": str(data), "key": "key", "validation_fraction": 0.3},
        "model": MODEL,
        "train": {"steps": 12, "batch_sequences": 8, "optimizer": "Adam", "learning_rate": 0.01, **train},
        "resources": resources or {},
    }


@pytest.fixture
def make_run(data: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """make_run(name, resources=None, path=…, **train): a small run over `data`."""

    def make(name: str = "run", *, path: Path = data, **settings: Any) -> RunConfig:
        return run_config(settings_of(path, tmp_path / "runs", name, **settings), where="run.yaml")

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_unrolled_workers_stop_early_keep_the_best_and_say_why(make_run: Callable[..., RunConfig]) -> None:
    """`auto` finds room for two workers of two CPUs each in the six of the session's Ray."""
    settings = {
        "steps": 60,
        "learning_rate": 0.3,
        "unroll_steps": 3,
        "evaluate_every_steps": 4,
        "checkpoint_every_steps": 3,
        "early_stopping": {"patience": 2},
        "keep_best": 2,
    }
    result = train(make_run(resources={"workers": "auto", "cpus_per_worker": 2}, **settings))
    assert result.ended.startswith("early stopping: validation_loss has not got better in 2 evaluations; the best was ")
    lines = [json.loads(line) for line in Path(result.directory, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(4, int(lines[-1]["step"]) + 1, 4))
    best, second, *_ = sorted(lines, key=lambda line: line["validation_loss"])
    assert lines[-3]["step"] == best["step"] < 60
    assert result.metrics["validation_loss"] == best["validation_loss"]
    expected = {f"step_{int(step):08d}" for step in (best["step"], second["step"], lines[-1]["step"])}
    assert set(list_names(Path(result.directory, "bundles"))) == expected
    assert load_bundle(result.bundle).provenance["workers"] == 2
    assert len(checkpoint_names(f"{result.directory}/train")) == 2, "Ray Train keeps the two it was told of last"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_loss_that_is_no_number_is_told_in_status_and_report(
    make_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the bundles of a real training: no settings make a loss fail only after it was good."""
    config, why, lines = make_run(steps=4, evaluate_every_steps=2), "step 5: the loss is nan", list[str]()

    def then_fails(*given: Any) -> None:
        run_workers(*given)
        raise TrainingError(why)

    run_workers = training.run_workers
    monkeypatch.setattr(training, "run_workers", then_fails)
    with pytest.raises(TrainingError, match=why):
        train(config, say=lines.append)
    assert json.loads(Path(config.directory, "status.json").read_text())["reason"] == why
    report = Path(config.directory, "report.html")
    assert f"<dt>Why training ended</dt><dd>{why}</dd>" in report.read_text()
    assert lines[-1].startswith(f"the best bundle so far: {config.directory}/bundles/step_0000000")
    assert lines[-1].endswith(f"; report: {report}")


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_the_rows_of_a_loss_that_is_no_number_are_listed(make_run: Callable[..., RunConfig], data: Path) -> None:
    config = make_run(optimizer="SGD", learning_rate=1e38, gradient_clipping_norm=None, resources={"workers": 2})
    with pytest.raises(TrainingError) as raised:
        train(config)
    path = Path(config.directory, "nan_batch.json")
    assert str(raised.value).endswith(f"; the rows of its batch are listed in {path}")
    told = json.loads(path.read_text())
    assert told["problem"] == str(raised.value).removesuffix(f"; the rows of its batch are listed in {path}")
    assert len(told["rows"]) == 8
    tables = {str(file): pq.read_table(file) for file in data.iterdir()}
    for row in told["rows"]:
        table = tables[row["file"]]
        assert row["key"] == table["key"][row["row"]].as_py()
        assert row["length"] == len(table["x"][row["row"]])


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_a_run_starts_from_a_bundle_in_its_columns(
    make_run: Callable[..., RunConfig], make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    first = train(make_run("first", steps=2))
    other = tmp_path / "other"
    other.mkdir()
    table = make_table(rows=30, seed=5)
    kinds = pa.array([[f"new {kind}" for kind in row] for row in table["kind"].to_pylist()], pa.list_(pa.string()))
    table = table.set_column(table.schema.get_field_index("kind"), "kind", kinds)
    pq.write_table(table, other / "a.parquet")
    refused = make_run("refused", path=other, steps=2, warm_start=first.directory)
    with pytest.raises(
        DataError, match=r"column 'kind': must hold the keys that the bundle of train\.warm_start knows"
    ):
        train(refused)
    assert not Path(refused.directory, "start").exists()
    added = make_run("added", path=other, steps=1, learning_rate=1e-9, warm_start=first.directory, new_vocabulary="add")
    second = load_bundle(train(added).bundle)
    start = load_bundle(first.bundle)
    keys = start.columns.sources["vocabulary:kind"].keys
    assert second.columns.sources["vocabulary:kind"].keys[: len(keys)] == keys
    assert len(second.columns.sources["vocabulary:kind"].keys) == len(keys) + 4
    for name, weights in start.tensors.items():
        rows = len(keys) if name.startswith("inputs") else len(weights)
        torch.testing.assert_close(second.tensors[name][:rows], weights[:rows], rtol=0, atol=1e-7)
    assert second.provenance["warm_start"] == {"bundle": first.directory, "fingerprint": start.fingerprint}


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_elastic_workers_train_what_one_worker_trains(make_run: Callable[..., RunConfig]) -> None:
    one = load_bundle(train(make_run("one")).bundle)
    some = load_bundle(train(make_run("some", resources={"workers": {"min": 1, "max": 2}})).bundle)
    assert some.provenance["workers"] in (1, 2)
    for name, weights in one.tensors.items():
        assert (weights - some.tensors[name]).norm() <= 2e-5 * max(float(weights.norm()), 1.0), name


# A worker killed within a write -------------------------------------------------------------------------------------

KILLER = '''
"""Kills the process once, before the MANIFEST of a checkpoint of step 9 or later."""
import os
import signal
from pathlib import Path

import model.bundle.bundle

DONE = Path(__file__).with_name("killed")
write = model.bundle.bundle.write_bytes


def write_bytes(path, content):
    step = str(path).partition("/checkpoint_")[2][:8]
    if step.isdigit() and int(step) >= 9 and str(path).endswith("MANIFEST.json") and not DONE.exists():
        DONE.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)


model.bundle.bundle.write_bytes = write_bytes
'''


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ray", "local"])
def test_a_process_killed_while_it_writes_a_checkpoint_changes_nothing(
    data: Path, tmp_path: Path, executor: str
) -> None:
    """Ray Train starts its worker again, a command is resumed; unrolled, so that the checkpoint before lies within a
    batch. No step enters weights or metrics twice."""
    settings = {"steps": 14, "unroll_steps": 2, "checkpoint_every_steps": 1, "evaluate_every_steps": 7}
    whole = settings_of(data, tmp_path / "runs", "whole", **settings)
    killed = {
        **settings_of(data, tmp_path / "runs", "killed", {"executor": executor}, **settings),
        "plugins": ["killer"],
    }
    (tmp_path / "killer.py").write_text(KILLER)
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}

    def train_by_command(run: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / f"{run['name']}.yaml"
        path.write_text(yaml.safe_dump(run))
        command = [sys.executable, "-m", "pipelines", "train", str(path), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
        )

    ends = [train_by_command(whole), train_by_command(killed)]
    if executor == "local":
        assert ends[-1].returncode == -signal.SIGKILL
        ends[-1] = train_by_command(killed, "--resume")
    for end in ends:
        assert end.returncode == 0, end.stdout + end.stderr
    runs = [Path(each["output"], each["name"]) for each in (whole, killed)]
    assert (tmp_path / "killed").exists()
    one, other = (load_bundle(each / "bundles" / "step_00000014") for each in runs)
    assert other.fingerprint == one.fingerprint
    lines = [[json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in runs]
    assert [line["step"] for line in lines[1]] == [7, 14]
    assert [line["train_loss"] for line in lines[1]] == [line["train_loss"] for line in lines[0]]
    for each in runs:
        names = checkpoint_names(str(each / "train"))
        assert len(names) == 2
        assert all((each / "train" / name / "MANIFEST.json").exists() for name in names)


# The same run again ---------------------------------------------------------------------------------------------------

AGAIN = """
import json, sys
from pipelines.cluster import ray_session
from pipelines.config import run_config
from pipelines.train import train

with ray_session(logical_cpus=4):
    print(json.dumps([train(run_config(each, where="test")).fingerprint for each in json.loads(sys.argv[1])]))
"""


@pytest.mark.soak
def test_two_fresh_runs_have_the_same_bits_and_another_seed_others(data: Path, tmp_path: Path) -> None:
    """In processes of their own, with one worker and with two."""

    def fingerprints(output: str, *runs: tuple[int, int]) -> list[str]:
        settings = [
            settings_of(data, tmp_path / output, f"of-{workers}-by-{seed}", {"workers": workers}, seed=seed)
            for workers, seed in runs
        ]
        done = subprocess.run(
            [sys.executable, "-c", AGAIN, json.dumps(settings)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout.splitlines()[-1])
        return found

    first = fingerprints("first", (1, 1), (2, 1), (1, 2))
    assert fingerprints("again", (1, 1), (2, 1)) == first[:2]
    assert first[2] != first[0]
