"""What grows with rows, row groups, files, keys and workers: seconds and bytes of each, and their slopes; no Ray.

    python benchmarks/scale.py [--quick] [--json FILE] [--directory DIRECTORY]

Rows are simulated: lengths drawn log-normally, in row groups of 100,000, a tenth of them for validation, stored as a
scan stores them. Whatever is measured of a process is measured in one of its own: its own memory is the pages that it
has written; those of a mapped file are the node's. Seconds are those of computing, so that other work on the machine
does not count. `--quick` ends at 10^7 rows, else 10^8, which need 1 GB of storage.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else `import model` would find a file of this directory

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks._common import Measure, at_most, told  # noqa: E402
from model.batches.plan import Plan  # noqa: E402
from model.columns import ColumnsConfig, one_hot_column, sparse_column_with_hash_bucket  # noqa: E402
from model.features.fitted_columns import FittedColumns  # noqa: E402
from model.features.labels import FittedLabel  # noqa: E402
from model.features.stats import MOST_KEYS, ColumnStats  # noqa: E402
from model.scan.fit import index_of, split_index  # noqa: E402
from model.scan.fragment_scan import FragmentScan  # noqa: E402
from model.tables.fragments import Fragment  # noqa: E402
from model.tables.parquet import find  # noqa: E402
from pipelines.ingest.fitted_data import FittedData, load_fitted, save_fitted  # noqa: E402
from pipelines.tasks.task import from_message, to_message  # noqa: E402

GROUP_ROWS = 100_000
WORKERS = (1, 2, 4)


def main() -> None:
    options = parsed()
    most = 10**7 if options.quick else 10**8
    directory = Path(tempfile.mkdtemp(prefix="scale-", dir=options.directory))
    try:
        found = [
            *of_messages(),
            *of_rows(directory, [size for size in (10**6, 10**7, 10**8) if size <= most]),
            *of_workers(directory, 10**7),
            *of_groups(directory, 10**4 if options.quick else 10**5),
            *of_files(directory, 300 if options.quick else 3000),
            *of_keys(10**5 if options.quick else 10**6),
        ]
        told(found, "Scale", options.json)
    finally:
        shutil.rmtree(directory)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object a measure and line")
    parser.add_argument("--quick", action="store_true", help="at most a minute: up to 10^7 rows")
    parser.add_argument("--directory", type=Path, help="where indexes and files are written (default: a temporary)")
    return parser.parse_args()


def alone(function: Callable[..., Any], *arguments: Any, processes: int = 1) -> list[Any]:
    """What so many new processes return, each of one call, all at once."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return [each.get() for each in [pool.apply_async(function, arguments) for _ in range(processes)]]


def own_bytes() -> int:
    """What this process alone holds and nobody could read again from a file."""
    return _kibibytes("smaps_rollup", "Private_Dirty") * 1024


def peak_bytes() -> int:
    """The most that this process has held so far."""
    return _kibibytes("status", "VmHWM") * 1024


def _kibibytes(file: str, name: str) -> int:
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# Rows -------------------------------------------------------------------------------------------------------------


def scan_of(group: int, rows: int = GROUP_ROWS) -> FragmentScan:
    """What the scan of a row group might tell."""
    random = np.random.default_rng(group)
    lengths = np.minimum(random.lognormal(np.log(60), 0.8, rows), 512).astype(np.int32)
    return FragmentScan(lengths, random.random(rows) >= 0.1, {}, ColumnStats())


def of_messages() -> list[Measure]:
    """A row group's scan on its way from a task to the driver."""
    scan = scan_of(0, 10**6)
    began = time.process_time()
    message = to_message(scan.to_plain)
    FragmentScan.from_plain(from_message(message))
    seconds = time.process_time() - began
    assert scan.training is not None
    lists = {"lengths": scan.lengths.tolist(), "training": scan.training.tolist()}
    began = time.process_time()
    text = json.dumps(lists)
    json.loads(text)
    as_lists = time.process_time() - began
    lists_told = f"as JSON lists {len(text) / 1e6:.1f} B a row, {as_lists * 1e3:.0f} ms"
    detail = f"{seconds * 1e3:.0f} ms for 10^6 rows, there and back; {lists_told}"
    return [at_most("rows: a scan's message", len(message) / 1e6, "B a row", 6, detail)]


def of_rows(directory: Path, sizes: list[int]) -> list[Measure]:
    found = []
    for size in sizes:
        (peak,) = alone(driver, str(directory), size)
        (worker,) = alone(first_batches, str(directory / f"{size}"))
        stored = sum(path.stat().st_size for path in (directory / f"{size}" / "data").iterdir())
        rows = f"10^{len(str(size)) - 1} rows"
        found += [
            Measure(f"{rows}: driver's peak", peak / size, "B a row", detail="scans merged, split, stored"),
            Measure(f"{rows}: on storage", stored / size, "B a row"),
            Measure(f"{rows}: index loaded", worker["loaded"], "s", detail=f"{size // GROUP_ROWS:,} row groups"),
            at_most(f"{rows}: first batch of any step", worker["batch"], "s", 0.1, "slowest of five, with the first"),
            at_most(f"{rows}: a worker's own memory", worker["own"] / 2**20, "MiB", 64, "after these batches"),
        ]  # fmt: skip
    return found


def driver(directory: str, size: int) -> int:
    """Merges the scans of so many rows and stores the indexes; the peak of memory that it takes."""
    fragments = [Fragment(f"{directory}/{number:06d}.parquet", 0, GROUP_ROWS) for number in range(size // GROUP_ROWS)]
    before = peak_bytes()
    scans = [scan_of(number) for number in range(len(fragments))]
    train, validation = split_index(index_of(fragments, scans), scans)
    save_fitted(f"{directory}/{size}", fitted(train, validation))
    return peak_bytes() - before


def fitted(train: Any, validation: Any) -> FittedData:
    column = one_hot_column(sparse_column_with_hash_bucket("x", 4))
    columns = FittedColumns.fit(ColumnsConfig(sequence=(column,)), {"hash_bucket:x": ColumnStats()})
    label = FittedLabel(name="y", weight=None, problem_type="linear_regression", prediction_type="single_value")  # type: ignore[arg-type]
    return FittedData(columns, label, train, validation)


def first_batches(directory: str) -> dict[str, float]:
    """A worker's index and the first batch of five steps over three epochs."""
    first_batches_of_nothing()
    before, began = own_bytes(), time.process_time()
    plan = Plan(load_fitted(directory).train, 64)
    loaded = time.process_time() - began
    steps = np.linspace(3 * plan.steps_per_epoch - 1, 0, 5).astype(int)
    seconds = []
    for step in map(int, steps):
        began = time.process_time()
        assert len(next(plan.pieces(0, 2, step, step + 1)).rows) == plan.rank_rows(step, 0, 2)
        seconds.append(time.process_time() - began)
    return {"loaded": loaded, "batch": max(seconds), "own": own_bytes() - before}


def first_batches_of_nothing() -> None:
    """What numpy and the readers load at their first use is not the rows'."""
    with tempfile.TemporaryDirectory() as directory:
        scans = [scan_of(0)]
        train, validation = split_index(index_of([Fragment("a", 0, GROUP_ROWS)], scans), scans)
        save_fitted(directory, fitted(train, validation))
        next(Plan(load_fitted(directory).train, 64).pieces(0, 2, 5, 6))


# Workers, row groups, files, keys ---------------------------------------------------------------------------------


def of_workers(directory: Path, size: int) -> list[Measure]:
    """Workers of one node on the same index."""
    own = {count: alone(first_batches, str(directory / f"{size}"), processes=count) for count in WORKERS}
    each = ", ".join(f"{sum(one['own'] for one in told) / 2**20:.1f} MiB by {count}" for count, told in own.items())
    most = sum(one["own"] for one in own[WORKERS[-1]])
    detail = f"own memory beside the {5 * size / 2**20:.0f} MiB that all have mapped: {each}"
    return [at_most("workers: 10^7 rows on one node", most / WORKERS[-1] / 2**20, "MiB each", 10, detail)]


def of_groups(directory: Path, count: int) -> list[Measure]:
    """Row groups as the driver, every task of a pass and every worker hold them."""
    fragments = tuple(Fragment(f"/data/year=2026/month=01/part-{n:06d}.parquet", 0, 10) for n in range(count))
    began = time.process_time()
    sent = pickle.dumps(fragments)
    pickle.loads(sent)  # noqa: S301 - its own
    seconds = time.process_time() - began
    scans = [FragmentScan(np.full(10, 3, np.int32), None, {}, ColumnStats())] * count
    save_fitted(str(directory / "groups"), fitted(index_of(fragments, scans), None))
    (loaded,) = alone(load_groups, str(directory / "groups"))
    what, each = f"of {count:,} row groups", "row groups: "
    return [
        Measure(f"{each}a pass sends each process", len(sent) / count, "B each", detail=f"{seconds:.2f} s {what}"),
        Measure(f"{each}index loaded", loaded["seconds"] / count * 1e6, "µs each", detail=what),
        Measure(f"{each}a worker's own memory", loaded["own"] / count, "B each", detail=what),
        Measure(f"{each}first batch of a step", loaded["batch"] / count * 1e6, "µs each", detail=what),
    ]


def load_groups(directory: str) -> dict[str, float]:
    before, began = own_bytes(), time.process_time()
    plan = Plan(load_fitted(directory).train, 64)
    seconds = time.process_time() - began
    began = time.process_time()
    next(plan.pieces(0, 1, 5, 6))
    return {"seconds": seconds, "own": own_bytes() - before, "batch": time.process_time() - began}


def of_files(directory: Path, count: int) -> list[Measure]:
    """Footers read before a pass: local files of one row group and five columns."""
    (directory / "files").mkdir()
    table = pa.table({name: [[1.0, 2.0]] * 10 for name in "abcde"})
    for number in range(count):
        pq.write_table(table, directory / "files" / f"{number:06d}.parquet")
    find(directory / "files", ["a"])
    began = time.perf_counter()
    find(directory / "files", ["a"])
    each = (time.perf_counter() - began) / count
    return [Measure("files: footers read and compared", each * 1e3, "ms each", detail=f"{count:,} local files")]


def of_keys(count: int) -> list[Measure]:
    """Distinct values of a learned vocabulary, in the driver: counted, merged, and on their way."""
    (own, merge, message) = alone(merge_keys, count)[0]
    limit = f"{own / count * MOST_KEYS / 2**30:.1f} GiB at the limit of {MOST_KEYS:,}"
    return [
        Measure("keys of a vocabulary: driver's memory", own / count, "B each", detail=limit),
        Measure(
            "keys of a vocabulary: merged", merge / count * 1e6, "µs each", detail="a row group that holds them all"
        ),
        Measure("keys of a vocabulary: message", message / count, "B each", detail="JSON"),
    ]


def merge_keys(count: int) -> tuple[int, float, int]:
    before = own_bytes()
    total = ColumnStats(keys=Counter({f"item {n:09d}": n + 1 for n in range(count)}))
    own = own_bytes() - before
    part = ColumnStats(keys=Counter(total.keys))
    began = time.process_time()
    total = total.merge(part)
    return own, time.process_time() - began, len(to_message(partial(ColumnStats.to_plain, part)))


if __name__ == "__main__":
    main()
