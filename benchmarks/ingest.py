"""From Parquet to padded batches: our pipeline on one worker against reading alone, and against the obvious ways.

    python benchmarks/ingest.py [--quick] [--json FILE]

Rows have lengths drawn log-normally (median 60, sigma 0.8, at most 512), a vector of 8 floats and two numbers a step,
and a number to predict at each step; 64 rows a batch. Our side is what a worker of `dynamic-rnn train` iterates over:
rows shuffled over windows of 64 batches, bucketed by length, checked, normalised, padded. Against it, on the same
files and columns and by the time that has passed:

    reading     pyarrow.dataset.to_batches alone, on all cores: nothing is shuffled, decoded further, or padded
    by hand     to_pylist of each batch, torch.nn.utils.rnn.pad_sequence of each column
    Ray Data    read_parquet(...).iter_torch_batches() as it comes, with a collate_fn of pad_sequence: without one it
                raises on lists of different lengths

A run is an epoch from its first request to its last batch; runs take turns, ratios are medians of five windows. Files
are read from the page cache, several times under different names: the start of a pipeline, a third of a second once a
million rows, then weighs as little as in a training. Memory is that which no other process shares (USS), at its
peak in one epoch, of the worker and of the tasks that read for it, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else `import model` could find a file beside this one

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.dataset as pads  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402

from benchmarks._common import Measure, at_least, at_most, race, told  # noqa: E402

D, B = 8, 64
MEDIAN, SIGMA, CAP = 60, 0.8, 512
ROW_GROUP, GROUPS_A_FILE = 2500, 2
COLUMNS = ["v", "a", "b", "y"]
BY_HAND_ROWS = 2048
SAMPLE_SECONDS = 0.1


def main() -> None:
    options = arguments()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    torch.set_num_threads(1)
    if options.peak is not None:
        print(json.dumps(peak_bytes(options.peak)))
        return
    rows, copies, seconds = (30_000, 2, 8.0) if options.quick else (120_000, 5, 90.0)
    with tempfile.TemporaryDirectory() as directory:
        once = write_data(Path(directory) / "written", rows)
        data = linked(once, Path(directory) / "data", copies)
        measures = rates(data, seconds) + ([] if options.quick else memory(Path(directory)))
    told(measures, f"Ingest, {rows * copies:,} rows, {os.cpu_count()} cores", options.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object a measure and line")
    parser.add_argument("--quick", action="store_true", help="at most a minute: less exact, and without memory")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)  # the role of a process that is measured
    return parser.parse_args()


def write_data(directory: Path, rows: int) -> Path:
    """Parquet files of two row groups each."""
    random = np.random.default_rng(0)
    directory.mkdir()
    for number, start in enumerate(range(0, rows, ROW_GROUP * GROUPS_A_FILE)):
        count = min(ROW_GROUP * GROUPS_A_FILE, rows - start)
        lengths = np.exp(random.normal(np.log(MEDIAN), SIGMA, count)).clip(1, CAP).astype(int)
        steps, offsets = int(lengths.sum()), pa.array([0, *np.cumsum(lengths)], pa.int32())
        vectors = pa.FixedSizeListArray.from_arrays(floats(random, steps * D), D)
        columns = {name: pa.ListArray.from_arrays(offsets, floats(random, steps)) for name in ("a", "b", "y", "unused")}
        columns["v"] = pa.ListArray.from_arrays(offsets, vectors)
        pq.write_table(pa.table(columns), directory / f"{number:04d}.parquet", row_group_size=ROW_GROUP)
    return directory


def linked(data: Path, directory: Path, copies: int) -> Path:
    """The files, each so many times under another name."""
    directory.mkdir()
    for copy in range(copies):
        for file in data.iterdir():
            (directory / f"{copy}-{file.name}").hardlink_to(file)
    return directory


def floats(random: np.random.Generator, count: int) -> pa.Array:
    return pa.array(random.normal(3, 2, count).astype(np.float32))


# Our side ---------------------------------------------------------------------------------------------------------


def worker_epoch(data: Path) -> Callable[[], tuple[int, int, int]]:
    """A function that iterates over one epoch's batches as the only worker of a training does: rows, real, padded."""
    from model.batches.plan import DataIndex, Plan
    from model.config import ModelConfig
    from model.scan.fit import fit_columns
    from model.scan.fragment_scan import scan_fragment
    from model.tables.parquet import find_fragments, read_fragment
    from pipelines.ingest.batches import batches
    from pipelines.ingest.read_task import RowReader

    config = ModelConfig.model_validate(
        {
            "problem_type": "linear_regression",
            "prediction_type": "multiple_value",
            "label": "y",
            "num_units": [8],
            "columns": {"sequence": [{"type": "numeric", "name": n, "normalizer": "zscore"} for n in ("v", "a", "b")]},
        }
    )
    fragments = find_fragments(data, COLUMNS)
    # The columns are fitted to one fragment: a scan of all is no part of what is measured here.
    columns, label = fit_columns(config, [scan_fragment(fragments[0], config, None, fit=True)])
    lengths = [np.diff(read_fragment(each, ["y"])["y"].combine_chunks().offsets.to_numpy()) for each in fragments]
    plan = Plan(DataIndex(tuple(fragments), np.concatenate(lengths).astype(np.int32)), B, seed=1)
    reader = RowReader(columns, label)

    def epoch() -> tuple[int, int, int]:
        rows = real = padded = 0
        for batch in batches(plan, reader, 0, 1, 0, plan.steps_per_epoch):
            assert batch is not None, "the only worker has rows of each batch"
            rows, real, padded = rows + len(batch), real + batch.real_steps, padded + len(batch) * batch.padded_length
        assert rows == plan.index.rows, "an epoch has every row"
        return rows, real, padded

    return epoch


# The others -------------------------------------------------------------------------------------------------------


def read_alone(data: Path) -> int:
    """The files' columns as Arrow batches."""
    return sum(batch.num_rows for batch in pads.dataset(data).to_batches(columns=COLUMNS))


def by_hand(data: Path) -> int:
    """Python lists, a tensor a row, pad_sequence a column: what one writes first. Of the first rows alone."""
    rows = 0
    for batch in pads.dataset(data).to_batches(columns=COLUMNS, batch_size=B):
        for name in COLUMNS:
            torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch[name].to_pylist()], batch_first=True)
        rows += batch.num_rows
        if rows >= BY_HAND_ROWS:
            break
    return rows


def ray_default(data: Path) -> int:
    """Ray Data's own reader, batches and conversion, and the collate_fn that ragged lists need."""
    import ray.data
    from ray.data.collate_fn import NumpyBatchCollateFn

    class Padded(NumpyBatchCollateFn):  # type: ignore[misc]
        def __call__(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            return {name: padded_rows(column) for name, column in batch.items()}

    dataset = ray.data.read_parquet(str(data)).select_columns(COLUMNS)
    return sum(len(batch["y"]) for batch in dataset.iter_torch_batches(batch_size=B, collate_fn=Padded()))


def padded_rows(column: Any) -> torch.Tensor:
    """Rows that are arrays of numbers, or of arrays of numbers, padded."""
    rows = [torch.from_numpy(np.stack(row).astype(np.float32)) for row in column]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


# Rates ------------------------------------------------------------------------------------------------------------


def rates(data: Path, seconds: float) -> list[Measure]:
    """Rows and real steps a second, and the ratios."""
    from pipelines.cluster.capacity import logical_cpus_for
    from pipelines.cluster.session import ray_session

    with ray_session(logical_cpus=logical_cpus_for(1)):
        epoch = worker_epoch(data)
        rows, real, padded = epoch()
        hand_rows, small = by_hand(data), few_files(data)
        ray_rows = ray_default(small)
        runs = (epoch, lambda: read_alone(data), lambda: by_hand(data), lambda: ray_default(small))
        run = race(runs, seconds=seconds, threads=os.cpu_count() or 1)
    ours, reading, hand, ray = (
        count / each for count, each in zip((rows, rows, hand_rows, ray_rows), run.seconds, strict=True)
    )
    of_reading = 1 / run.ratios[0]
    of_hand, of_ray = (
        rows / others / ratio for others, ratio in zip((hand_rows, ray_rows), run.ratios[1:], strict=True)
    )
    return [
        Measure("padded batches", ours, "rows/s", detail=f"{ours * real / rows:,.0f} real steps/s"),
        at_most("padding", padded / real, "padded steps a real one", 1.08, f"{B} rows a batch"),
        at_least("against reading alone", of_reading, "of its rows/s", 0.3, f"pyarrow {reading:,.0f} rows/s"),
        at_least("against to_pylist and pad_sequence", of_hand, "times its rows/s", 5.0, f"{hand:,.0f} rows/s"),
        at_least("against iter_torch_batches", of_ray, "times its rows/s", 1.0, f"Ray Data {ray:,.0f} rows/s"),
    ]


def few_files(data: Path) -> Path:
    """The first two files, for what is slow."""
    few = data.parent / "few"
    few.mkdir()
    for file in sorted(data.iterdir())[:2]:
        (few / file.name).hardlink_to(file)
    return few


# Memory -----------------------------------------------------------------------------------------------------------


def memory(directory: Path) -> list[Measure]:
    """How much the peak of unshared memory grows with ten times the data.

    The smaller data are read by about ten tasks: enough to keep all busy that may run at a time.
    """
    rows = 120_000
    once = write_data(directory / "once", rows)
    tenfold = linked(once, directory / "tenfold", 10)
    small, large = (measured_peak(data) for data in (once, tenfold))
    measures = []
    for who in ("worker", "worker and tasks"):
        growth = (large[who] / small[who] - 1) * 100
        detail = f"{small[who] / 2**20:.0f} MiB with {rows:,} rows, {large[who] / 2**20:.0f} MiB with {rows * 10:,}"
        measures.append(at_most(f"memory, {who}, growth over 10 times the data", growth, "%", 10, detail))
    return measures


def measured_peak(data: Path) -> dict[str, int]:
    """`peak_bytes` of one epoch in a fresh process."""
    command = [sys.executable, __file__, "--peak", str(data)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def peak_bytes(data: Path) -> dict[str, int]:
    """Peaks of the unshared memory of this process, and of it and all Ray's tasks together, in one epoch."""
    from pipelines.cluster.capacity import logical_cpus_for
    from pipelines.cluster.session import ray_session

    with ray_session(logical_cpus=logical_cpus_for(1)):
        epoch = worker_epoch(data)
        with sampled() as peaks:
            epoch()
    return peaks


@contextmanager
def sampled() -> Iterator[dict[str, int]]:
    """Looks at the processes again and again, in a thread; gives the peaks so far."""
    peaks, done, me = {"worker": 0, "worker and tasks": 0}, threading.Event(), psutil.Process()

    def look() -> None:
        while not done.wait(SAMPLE_SECONDS):
            worker = unshared(me)
            tasks = [each for each in me.children(recursive=True) if is_task(each)]
            peaks["worker"] = max(peaks["worker"], worker)
            peaks["worker and tasks"] = max(peaks["worker and tasks"], worker + sum(map(unshared, tasks)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def is_task(process: psutil.Process) -> bool:
    """Whether a process is one that reads, or could: not an actor or an agent of Ray's own."""
    try:
        return "".join(process.cmdline()[:1]).startswith(("ray::IDLE", "ray::MapBatches"))
    except psutil.NoSuchProcess:
        return False


def unshared(process: psutil.Process) -> int:
    """Bytes that no other process shares; 0 of one that has ended."""
    try:
        return int(process.memory_full_info().uss)
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    main()
