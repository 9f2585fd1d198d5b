"""Predictions that are killed, and predictions over much data: same bytes, same memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.bundle.bundle import save_bundle

ROWS, FILES = 24_000, 6
USER, EVENT = "user", "event"  # keys of one row or several, and of one row each


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Any]) -> Path:
    """A bundle, and events of 20,000 users in files; some users have several rows, which have a key of their own."""
    directory = tmp_path_factory.mktemp("job")
    columns = {"sequence": [{"type": "numeric", "name": "x"}], "context": []}
    save_bundle(directory / "bundle", make_bundle(cell="lstm", num_units=[16], columns=columns))
    (directory / "data").mkdir()
    for number in range(FILES):
        write(directory / "data" / f"{number}.parquet", ROWS // FILES, seed=number)
    return directory


def write(path: Path, rows: int, *, seed: int, row_group: int = 2000, keys: Sequence[str] = ("user", "event")) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, rows)
    values = pa.array(random.normal(size=lengths.sum()).astype(np.float32))
    offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
    of_rows = {"user": random.integers(0, 20_000, rows), "event": np.arange(seed * rows, (seed + 1) * rows)}
    columns = {name: of_rows[name] for name in keys} | {"x": pa.ListArray.from_arrays(offsets, values)}
    pq.write_table(pa.table(columns), path, row_group_size=row_group)


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.parquet")}


@pytest.fixture(scope="module")
def words(job: Path, start: Callable[..., Any]) -> dict[str, list[str]]:
    """The command by its key, but for its output. The one of events goes on from states of half of the keys."""
    (job / "before").mkdir()
    for number in range(0, FILES, 2):
        (job / "before" / f"{number}.parquet").symlink_to(job / "data" / f"{number}.parquet")
    predict = ["predict", str(job / "bundle")]
    before = start(*predict, str(job / "before"), str(job / "states"), "--key", "event", "--states-only")
    assert before.exit_code() == 0, before.told
    predict.append(str(job / "data"))
    return {
        USER: [*predict, "--key", "user"],
        EVENT: [*predict, "--key", "event", "--state-from", str(job / "states")],
    }


@pytest.fixture(scope="module")
def unharmed(words: dict[str, list[str]], job: Path, start: Callable[..., Any]) -> dict[str, dict[str, bytes]]:
    """What predictions that nobody kills write."""
    found = {}
    for key, command in words.items():
        output = job / f"unharmed {key}"
        done = start(*command, str(output))
        assert done.exit_code() == 0, done.told
        found[key] = contents(output)
        assert len(found[key]) > 12
    return found


@pytest.mark.soak
@pytest.mark.parametrize(
    ("key", "stage"),
    [
        (USER, "rows-000003.arrow"),
        (USER, "scored-00001.json"),
        (USER, "1-*.parquet"),
        (EVENT, "initial-000000.arrow"),
        (EVENT, "scored-00001.json"),
        (EVENT, "1-*.parquet"),
    ],
)
def test_a_killed_prediction_goes_on_to_the_same_bytes(
    start: Callable[..., Any], words: Any, unharmed: Any, tmp_path: Path, key: str, stage: str
) -> None:
    output = tmp_path / "out"
    killed = start(*words[key], str(output))
    killed.wait_until(lambda: list(output.glob(stage)) or list(output.glob(f"_work/{stage}")))
    killed.end()  # all its processes at once: a driver's tasks would first end what they are at
    killed.wait_until_gone()
    assert contents(output) != unharmed[key]
    assert (output / "_work").exists()
    done = start(*words[key], str(output))
    assert done.exit_code() == 0, done.told
    assert contents(output) == unharmed[key]
    assert sorted(path.name for path in output.iterdir() if not path.name.endswith(".parquet")) == [
        "_SOURCE",
        "_states",
    ]


SCORES = """
import json, sys, threading, time
import psutil
from model.tables import slices as blocks
from pipelines.predict import plan as predict_plan
from pipelines.predict.chain_score import ChainScorer
from pipelines.predict.chain_shuffle import AssembleTask, SplitTask
from pipelines.predict.plan import plan_prediction
from pipelines.predict.score_task import RowPredictor
from pipelines.predict.prediction import Choices

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
        row_group = rows if groups == "one" else 3_000
        write(tmp_path / f"{times}.parquet", rows, seed=0, row_group=row_group, keys=[key or "user"])
        words = [str(job / "bundle"), str(tmp_path / f"{times}.parquet"), str(tmp_path / f"out {times}"), key]
        done = subprocess.run([sys.executable, "-c", SCORES, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["rows"] == rows
        peaks.append(told["peak"])
    assert peaks[1] <= 1.15 * peaks[0], [f"{peak >> 20} MiB" for peak in peaks]  # allocators vary by some percent
