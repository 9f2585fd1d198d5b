"""`dynamic-rnn prepare`: events a second and the peak memory of Ray's workers.

    python benchmarks/prepare.py [--quick] [--json FILE] [--events N] [--workers N] [--directory DIR]
    python benchmarks/prepare.py --persistence SEQUENCES [--label OT_change]

Fifty million events (two million with --quick) of 500,000 users, in the order of time as logs are: key, time, two
numbers, two categories of strings. They are written, prepared by a private Ray, and removed
again. Memory is the unique set size (USS) of all of Ray's workers together, the idle ones among them, and of the
largest, every 0.1 s. `--persistence` prints the mean squared error of predicting that a value stays as it is: what a
model of the next value has to beat.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else `import model` would find a file of this directory

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks._common import Measure, told  # noqa: E402
from pipelines.cluster.capacity import logical_cpus_for  # noqa: E402
from pipelines.cluster.session import ray_session  # noqa: E402
from pipelines.prepare.run import PrepareResult, prepare  # noqa: E402
from pipelines.prepare.settings import PrepareSettings  # noqa: E402

FILE_EVENTS, GROUP_EVENTS = 5_000_000, 500_000
MIB = 1 << 20


def main() -> None:
    options = parsed()
    if options.persistence is not None:
        persistence(options.persistence, options.label)
        return
    events = options.events or (2_000_000 if options.quick else 50_000_000)
    directory = Path(tempfile.mkdtemp(prefix="prepare-", dir=options.directory))
    try:
        told(measures(directory, events, options.workers), f"Prepare, {options.workers} workers", options.json)
    finally:
        shutil.rmtree(directory)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object a measure and line")
    parser.add_argument("--quick", action="store_true", help="at most a minute: two million events")
    parser.add_argument("--events", type=int, metavar="N", help="so many events")
    parser.add_argument("--workers", type=int, metavar="N", default=psutil.cpu_count() or 1, help="tasks at once")
    parser.add_argument("--directory", type=Path, help="where events and sequences are written (default: a temporary)")
    parser.add_argument("--persistence", type=Path, metavar="SEQUENCES", help="the error of what stays as it is")
    parser.add_argument("--label", default="OT_change", help="column with the changes to predict")
    return parser.parse_args()


# The measure ------------------------------------------------------------------------------------------------------


def measures(directory: Path, events: int, workers: int) -> list[Measure]:
    """Writes events, prepares them, and says how fast and in how much memory."""
    stored = write_events(directory / "events", events)
    settings = PrepareSettings(key="user", time="at", max_length=200, gap="12h", time_delta="since")
    with ray_session(logical_cpus=logical_cpus_for(workers)), Memory() as memory:
        began = time.perf_counter()
        phases: dict[str, float] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if done == total:
                phases[phase] = time.perf_counter() - began

        result = prepare(directory / "events", directory / "out", settings, workers=workers, progress=progress)
        seconds = time.perf_counter() - began
    check(result, events)
    ends = ", ".join(f"{phase} done after {end:.0f} s" for phase, end in phases.items())
    size = sum(path.stat().st_size for path in (directory / "out").rglob("*.parquet"))
    return [
        Measure("events a second", events / seconds, "1/s", detail=f"{events:,} events in {seconds:.0f} s: {ends}"),
        Measure("peak memory of all workers", memory.total / MIB, "MiB", detail=f"{memory.most} processes at most"),
        Measure("peak memory of the largest worker", memory.largest / MIB, "MiB", detail="64 MiB of events a task"),
        Measure(
            "sequences",
            sum(result.sequences.values()),
            "",
            detail=f"of {result.keys:,} keys; {stored / MIB:,.0f} MiB in, {size / MIB:,.0f} MiB out",
        ),
    ]


def check(result: PrepareResult, events: int) -> None:
    """A rate of something wrong is none."""
    assert result.events == events
    assert result.detected_context == ("home",)


def write_events(directory: Path, events: int) -> int:
    """Events of users over 90 days in files of five million; returns their bytes on storage."""
    directory.mkdir(parents=True)
    kinds, homes = pa.array([f"kind {number}" for number in range(20)]), pa.array(["at", "de", "fr", "it"])
    for number, first in enumerate(range(0, events, FILE_EVENTS)):
        count = min(FILE_EVENTS, events - first)
        random = np.random.default_rng(number)
        user = random.integers(0, 500_000, count)
        at = (np.arange(first, first + count) * (90 * 86_400_000 / events)).astype(np.int64)
        table = pa.table(
            {
                "user": user,
                "at": pa.array(at, pa.timestamp("ms")),
                "amount": random.gamma(2.0, 10.0, count).astype(np.float32),
                "score": random.normal(size=count).astype(np.float32),
                "kind": kinds.take(pa.array(random.integers(0, 20, count))),
                "home": homes.take(pa.array(user % 4)),
            }
        )
        pq.write_table(table, directory / f"{number:04d}.parquet", row_group_size=GROUP_EVENTS)
    return sum(path.stat().st_size for path in directory.iterdir())


class Memory:
    """The peak of what Ray's workers hold for themselves, in bytes; measured by a thread while the context lasts."""

    def __init__(self) -> None:
        self.total = self.largest = self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            sizes = []
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it has ended meanwhile
                    if process.name().startswith("ray::"):
                        sizes.append(process.memory_full_info().uss)
            self.total = max(self.total, sum(sizes))
            self.largest = max([self.largest, *sizes])
            self.most = max(self.most, len(sizes))


# Persistence ------------------------------------------------------------------------------------------------------


def persistence(directory: Path, label: str) -> None:
    """Prints the error of the prediction that nothing changes."""
    error, steps = persistence_error(directory, label)
    print(f"persistence on {directory}: mean squared error {error:.4f} (rmse {error**0.5:.4f}) over {steps:,} steps")


def persistence_error(directory: Path, label: str) -> tuple[float, int]:
    """The mean squared error of the prediction that nothing changes over all steps under `directory`, and the steps.

    `label` is a column of changes, as `--label-change` makes it.
    """
    table = pq.read_table(directory, columns=[label])
    changes = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[label].chunks])
    return float(np.mean(changes**2)), len(changes)


if __name__ == "__main__":
    main()
