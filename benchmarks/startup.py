"""How long a whole command takes on little data, from the shell to its end: start-up, in other words.

    python benchmarks/startup.py [--quick] [--json FILE]

Each command is a process of its own; the figure is the median of five (one with `--quick`) by the clock of the wall.
The data are 100,000 events of 1,000 keys in one Parquet file (under 5 MB), the sequences made of them, the same
sequences in 50 files, and as many rows of 300 columns. Ray's own share is a bare `ray.init` and `ray.shutdown` in a
process of its own, and an evaluation by `--executor ray`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else `import model` would find a file of this directory

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks._common import Measure, arguments, at_most, told  # noqa: E402

EVENTS, KEYS = 100_000, 1_000
ITEMS = 200
RAY = "import ray; ray.init(address='local', num_cpus=4, log_to_driver=False, logging_level='ERROR'); ray.shutdown()"
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


def main() -> None:
    options = arguments("Whole commands on little data.")
    times = 1 if options.quick else 5
    with tempfile.TemporaryDirectory() as directory:
        told(measured(Path(directory), times), "Whole commands on little data", options.json)


def measured(directory: Path, times: int) -> list[Measure]:
    """All measures; what a command needs, those before it have made."""
    write_data(directory)
    found = [
        at_most(name, seconds_of(directory, words, times), "s", goal, " ".join(words))
        for name, goal, words in commands()
    ]
    found.append(Measure("a bare Ray, started and stopped", timed([sys.executable, "-c", RAY], directory, times), "s"))
    by_ray = ["evaluate", "runs/sequences", "sequences", "--executor", "ray"]
    found.append(Measure("evaluate on Ray", seconds_of(directory, by_ray, times), "s", detail=" ".join(by_ray)))
    return found


def commands() -> list[tuple[str, float, list[str]]]:
    """(what, its goal in seconds, the words of the command); OUT is a name that is new each time."""
    prepare = ["--key", "user", "--time", "ts", "--label", "item", "--label-shift", "1", "--executor", "local"]
    return [
        ("--help", 1, ["--help"]),
        ("a mistyped override", 1, ["train", "base.yaml", "train.epoch=3"]),
        ("prepare 100,000 events", 2, ["prepare", "events.parquet", "OUT", *prepare]),
        ("inspect", 3, ["inspect", "sequences", "--no-html", "--executor", "local"]),
        ("inspect 50 files", 3, ["inspect", "many", "--no-html", "--executor", "local"]),
        ("inspect 300 columns", 3, ["inspect", "wide", "--no-html", "--executor", "local"]),
        ("train, 1 step", 5, ["train", "base.yaml", "name=OUT", "train.steps=1", "tracking.report=false"]),
        ("train, 100 tiny steps with report", 8, ["train", "base.yaml", "name=OUT", "train.steps=100"]),
        ("evaluate", 4, ["evaluate", "runs/sequences", "sequences"]),
        ("evaluate 50 files", 4, ["evaluate", "runs/sequences", "many"]),
        ("predict", 4, ["predict", "runs/sequences", "sequences", "OUT"]),
        ("predict, chained by key", 4, ["predict", "runs/sequences", "sequences", "OUT", "--key", "user"]),
        ("runs", 1, ["runs", "runs"]),
    ]


def write_data(directory: Path) -> None:
    """Events, sequences of them in one file and in fifty, wide rows, and a trained run."""
    random = np.random.default_rng(0)
    events = {
        "user": random.integers(0, KEYS, EVENTS),
        "ts": np.arange(EVENTS),
        "item": [f"item {number}" for number in random.zipf(1.5, EVENTS) % ITEMS],
        "value": random.normal(size=EVENTS),
    }
    pq.write_table(pa.table(events), directory / "events.parquet")
    prepare = ["--key", "user", "--time", "ts", "--label", "item", "--label-shift", "1"]
    timed(command(["prepare", "events.parquet", "sequences", *prepare], directory), directory, 1)
    sequences = pq.read_table(directory / "sequences")
    for number in range(50):
        (directory / "many").mkdir(exist_ok=True)
        part = sequences.slice(number * KEYS // 50, KEYS // 50)
        pq.write_table(part, directory / "many" / f"{number:02d}.parquet")
    wide = {f"x{number}": random.normal(size=(KEYS, 10)).tolist() for number in range(300)}
    (directory / "wide").mkdir()
    pq.write_table(pa.table({**wide, "y": random.integers(0, 2, KEYS)}), directory / "wide" / "0.parquet")
    for words in (
        ["inspect", "sequences", "--no-html", "--write", "base.yaml"],
        ["train", "base.yaml", "train.steps=1"],
    ):
        timed(command(words, directory), directory, 1)


def command(words: Sequence[str], directory: Path) -> list[str]:
    """The command line; OUT becomes a name that nothing has."""
    fresh = f"out-{len(list(directory.iterdir()))}-{time.monotonic_ns()}"
    return [sys.executable, "-m", "pipelines", *(word.replace("OUT", fresh) for word in words)]


def seconds_of(directory: Path, words: Sequence[str], times: int) -> float:
    """The median time of a command."""
    return statistics.median(timed(command(words, directory), directory, 1) for _ in range(times))


def timed(line: Sequence[str], directory: Path, times: int) -> float:
    """The median time of a process; it may end with 0, or with 2 for a mistake that is measured."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        ended = subprocess.run(line, cwd=directory, env=ENVIRONMENT, check=False, capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        if ended.returncode not in (0, 2):
            raise RuntimeError(f"{' '.join(line)}: {ended.stdout}{ended.stderr}")
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
