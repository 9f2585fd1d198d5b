"""Predictions that are killed, and predictions over much data: same bytes, same memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.checkpoint import save_bundle

ROWS, FILES = 24_000, 6


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Any]) -> Path:
    """A bundle, and events of 20,000 users in files; some users have several rows."""
    directory = tmp_path_factory.mktemp("job")
    columns = {"sequence": [{"type": "numeric", "name": "x"}], "context": []}
    save_bundle(directory / "bundle", make_bundle(cell="lstm", num_units=[16], columns=columns))
    (directory / "data").mkdir()
    for number in range(FILES):
        write(directory / "data" / f"{number}.parquet", ROWS // FILES, seed=number)
    return directory


def write(path: Path, rows: int, *, seed: int, row_group: int = 2000) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, rows)
    values = pa.array(random.normal(size=lengths.sum()).astype(np.float32))
    offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
    users = random.integers(0, 20_000, rows)
    table = pa.table({"user": users, "x": pa.ListArray.from_arrays(offsets, values)})
    pq.write_table(table, path, row_group_size=row_group)


def command(job: Path, output: Path) -> list[str]:
    words = ["predict", str(job / "bundle"), str(job / "data"), str(output), "--key", "user"]
    return [sys.executable, "-m", "pipelines", *words]


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.parquet")}


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["rows-000003.arrow", "scored-00001.json", "1-*.parquet"])
def test_a_killed_prediction_goes_on_to_the_same_bytes(
    job: Path, tmp_path: Path, unharmed: dict[str, bytes], stage: str
) -> None:
    mark, output, log = str(uuid.uuid4()), tmp_path / "out", tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command(job, output), env={**os.environ, "FAULT_TEST": mark}, stdout=stream, stderr=stream
        )
    deadline = time.monotonic() + 240
    while not list(output.glob(stage)) and not list(output.glob(f"_work/{stage}")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while marked(mark):
        assert time.monotonic() < deadline, marked(mark)
        time.sleep(0.2)
    assert contents(output) != unharmed
    assert (output / "_work").exists()
    done = subprocess.run(command(job, output), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(output) == unharmed
    assert sorted(path.name for path in output.iterdir() if not path.name.endswith(".parquet")) == [
        "_SOURCE",
        "_states",
    ]


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited FAULT_TEST=mark."""
    listed = psutil.process_iter(["cmdline", "environ"])
    return [process for process in listed if (process.info["environ"] or {}).get("FAULT_TEST") == mark]


@pytest.fixture(scope="module")
def unharmed(job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the prediction that nobody kills writes."""
    output = tmp_path_factory.mktemp("unharmed") / "out"
    done = subprocess.run(command(job, output), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = contents(output)
    assert len(found) > 12
    return found


SCORES = """
import json, sys, threading, time
import psutil
from pipelines import blocks, predict_plan
from pipelines.chain_scoring import ChainScorer
from pipelines.chain_tasks import AssembleTask, SplitTask
from pipelines.predict_plan import plan_prediction
from pipelines.predict_rows import RowPredictor
from pipelines.prediction import Choices

blocks.SLICE_BYTES, predict_plan.PARTITION_BYTES = 1 << 20, 2 << 20  # so that less data than usual are many slices
bundle, data, output, key = sys.argv[1:]
process, peak = psutil.Process(), 0


def watch():
    global peak
    while True:
        peak = max(peak, process.memory_full_info().uss)
        time.sleep(0.02)


prediction = plan_prediction(bundle, data, output, Choices(key=(key,) if key else ()))
threading.Thread(target=watch, daemon=True).start()
if key:
    split, held = SplitTask(prediction), ChainScorer(prediction, device="cpu")
    for block in prediction.blocks:
        split((False, block))
    for partition in range(prediction.chain.partitions):
        held(partition)
    assemble = AssembleTask(prediction)
    for block in prediction.blocks:
        assemble(block)
else:
    held = RowPredictor(prediction, device="cpu")
    for block in prediction.blocks:
        held(block)
print(json.dumps({"peak": peak, "rows": prediction.rows, "partitions": key and prediction.chain.partitions}))
"""


@pytest.mark.soak
@pytest.mark.parametrize(("key", "groups"), [("", "one"), ("user", "many")])
def test_ten_times_the_data_take_the_same_memory(job: Path, tmp_path: Path, key: str, groups: str) -> None:
    """One process does all tasks one after the other, over one large row group or many."""
    peaks = []
    for times in (1, 10):
        rows = 20_000 * times
        write(tmp_path / f"{times}.parquet", rows, seed=0, row_group=rows if groups == "one" else 3_000)
        words = [str(job / "bundle"), str(tmp_path / f"{times}.parquet"), str(tmp_path / f"out {times}"), key]
        done = subprocess.run([sys.executable, "-c", SCORES, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["rows"] == rows
        peaks.append(told["peak"])
    assert peaks[1] <= 1.1 * peaks[0], [f"{peak >> 20} MiB" for peak in peaks]
