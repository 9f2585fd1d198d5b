"""Training through Ray Train against hand-written PyTorch, and what its parts cost.

    python benchmarks/train.py [--quick] [--json FILE]

Rows have lengths drawn log-normally (median 60, sigma 0.8, at most 512), 32 floats a step and a number to predict at
each step; LSTM of 128 units, 64 rows a batch and worker, one thread a worker. Rates are real steps (padding does not
count) a second of steady training: what starts and what validates is left out on all sides. Every run is a process of
its own that joins one Ray; ours and theirs take turns. Hand-written loops start as anyone would start them; once more
with malloc told what our workers tell it: to keep freed memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else `import model` could find a file beside this one

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks._common import Measure, at_least, at_most, told  # noqa: E402
from pipelines.cluster import malloc  # noqa: E402

D, UNITS, B = 32, 128, 64
MEDIAN, SIGMA, CAP = 60, 0.8, 512
CHECKPOINTS = 10
STEPS_PER_SECOND = 20  # about what one core does of these shapes: says how many steps a run makes
WINDOW_SECONDS = 0.5
Environment = dict[str, str]


def main() -> None:
    options = arguments()
    if options.role is not None:
        ROLES[options.role](json.loads(options.spec))
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from pipelines.cluster.session import ray_session

    turns, rows = (1, 2048) if options.quick else (3, 8192)
    with tempfile.TemporaryDirectory() as directory:
        write_data(Path(directory), rows)
        measures = shown([fixed_cost(Path(directory), 1 if options.quick else 5)])
        with ray_session(logical_cpus=8) as session:
            bench = Bench(Path(directory), session.address, 6.0 if options.quick else 15.0)
            measures += shown(one_worker(bench, turns)) + shown(two_workers(bench, turns))
            measures += shown([checkpointing(bench, turns)])
    told(measures, "Training", options.json)


def shown(measures: list[Measure]) -> list[Measure]:
    """The measures, each told at once to those who wait."""
    for each in measures:
        print(f"{each.measure}: {each.value:.3g} {each.unit} ({each.detail})", file=sys.stderr, flush=True)
    return measures


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object a measure and line")
    parser.add_argument("--quick", action="store_true", help="one turn of short runs, less exact")
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_data(directory: Path, rows: int) -> None:
    """Ragged rows in files of a few row groups, and one tiny file."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(MEDIAN), SIGMA, rows)), 1, CAP).astype(np.int32)
    (directory / "data").mkdir()
    for number, part in enumerate(np.array_split(lengths, 4)):
        steps = int(part.sum())
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=steps * D).astype(np.float32)), D)
        offsets = pa.array(np.concatenate([[0], np.cumsum(part)]), pa.int32())
        labels = pa.array(random.normal(size=steps).astype(np.float32))
        columns = {name: pa.ListArray.from_arrays(offsets, values) for name, values in (("x", vectors), ("y", labels))}
        pq.write_table(pa.table(columns), directory / "data" / f"{number}.parquet", row_group_size=512)
    tiny = pa.table({"x": [[[0.5] * D]] * 8, "y": [[1.0]] * 8})
    pq.write_table(tiny, directory / "tiny.parquet")


# Runs, each a process -------------------------------------------------------------------------------------------------


class Bench:
    """Starts the processes of a role, side by side, and reads the rates they print."""

    def __init__(self, directory: Path, address: str, seconds: float) -> None:
        self.directory = directory
        self.address = address
        self.seconds = seconds
        self._names = iter(range(1 << 30))

    def rate(self, role: str, *, copies: int = 1, launcher: tuple[str, ...] = (), **spec: Any) -> float:
        """Real steps a second, summed over `copies` processes that run side by side."""
        return sum(told["rate"] for told in self.run(role, copies=copies, launcher=launcher, **spec))

    def run(self, role: str, *, copies: int = 1, launcher: tuple[str, ...] = (), **spec: Any) -> list[dict[str, float]]:
        """What the processes print last."""
        processes = [self._start(role, launcher, spec) for _ in range(copies)]
        return [told for process in processes for told in results_of(process)]

    def _start(self, role: str, launcher: tuple[str, ...], spec: dict[str, Any]) -> subprocess.Popen[str]:
        common = {"directory": str(self.directory), "address": self.address, "seconds": self.seconds}
        whole = json.dumps({**common, "name": f"run-{next(self._names)}", **spec})
        command = [sys.executable, *launcher, str(Path(__file__)), "--role", role, "--spec", whole]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (malloc.environment() if spec.get("keep") else {})
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def results_of(process: subprocess.Popen[str]) -> Iterator[dict[str, float]]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}; what it says stands above")
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def alternating(runs: Sequence[Callable[[], float]], turns: int) -> tuple[list[float], list[float]]:
    """Medians of all, and the median ratio of the first to each of the others over the turns."""
    results = [[run() for run in runs] for _ in range(turns)]
    medians = [statistics.median(column) for column in zip(*results, strict=True)]
    ratios = [statistics.median(turn[0] / turn[other] for turn in results) for other in range(1, len(runs))]
    return medians, ratios


# Measures -------------------------------------------------------------------------------------------------------------

Peer = tuple[str, float | None, Callable[[], float]]  # what it is, the goal against it, its rate


def against(what: str, ours: Callable[[], float], peers: Sequence[Peer], turns: int) -> list[Measure]:
    """Real steps a second of ours against those of each peer, all of them turn by turn."""
    (mine, *others), ratios = alternating([ours, *(rate for *_, rate in peers)], turns)
    measures = []
    for (name, goal, _), other, ratio in zip(peers, others, ratios, strict=True):
        told = (f"{what} against {name}", ratio, "of its real steps/s")
        detail = f"{mine:,.0f} against {other:,.0f} real steps/s"
        measures.append(Measure(*told, detail=detail) if goal is None else at_least(*told, goal, detail))
    return measures


def one_worker(bench: Bench, turns: int) -> list[Measure]:
    """Ours against the loop on ready tensors of the same batches, and against the loop that pads random batches."""
    peers: list[Peer] = [
        ("a loop on ready tensors", 0.95, lambda: bench.rate("ready")),
        ("that loop, keeping freed memory as ours does", None, lambda: bench.rate("ready", keep=True)),
        ("a loop on random batches, padded", 2.0, lambda: bench.rate("naive")),
    ]
    return against("1 worker", lambda: bench.rate("ours"), peers, turns)


def two_workers(bench: Bench, turns: int) -> list[Measure]:
    """Two workers against two runs of one worker side by side, and against DistributedDataParallel."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ddp = "DistributedDataParallel on ready tensors"
    peers: list[Peer] = [
        ("two runs side by side", 0.9, lambda: bench.rate("ours", copies=2)),
        (ddp, 0.95, lambda: bench.rate("ready", launcher=launcher)),
        (f"{ddp}, keeping freed memory as ours do", None, lambda: bench.rate("ready", launcher=launcher, keep=True)),
    ]
    return against("2 workers", lambda: bench.rate("ours", workers=2), peers, turns)


def checkpointing(bench: Bench, turns: int) -> Measure:
    """What a checkpoint costs, as a share of the 30 seconds between two."""

    def seconds(reports: int) -> float:
        return bench.run("ours", reports=reports)[0]["seconds"]

    (many, one), _ = alternating([lambda: seconds(CHECKPOINTS + 1), lambda: seconds(1)], turns)
    cost = (many - one) / CHECKPOINTS
    return at_most("a checkpoint every 30 s", max(cost, 0) / 30, "of the time", 0.02, f"{cost * 1e3:.0f} ms each")


def fixed_cost(directory: Path, turns: int) -> Measure:
    """Wall time of `dynamic-rnn train` on eight rows, beyond that of a TorchTrainer that does nothing."""
    counter = iter(range(1 << 30))

    def ours() -> float:
        spec = json.dumps(settings(directory, f"tiny-{next(counter)}", directory / "tiny.parquet", 1, 2, 2))
        where = directory / "tiny.json"
        where.write_text(spec)
        return wall([sys.executable, "-m", "pipelines", "--quiet", "train", str(where)])

    def trivial() -> float:
        return wall([sys.executable, str(Path(__file__)), "--role", "trivial", "--spec", "{}"])

    (mine, theirs), _ = alternating([ours, trivial], turns)
    detail = f"{mine:.1f} s against {theirs:.1f} s"
    return at_most("fixed cost of a training beyond Ray's", mine - theirs, "s", 3.0, detail)


def wall(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


# Roles ----------------------------------------------------------------------------------------------------------------


def settings(directory: Path, name: str, data: Path, workers: int, steps: int, every: int) -> dict[str, Any]:
    """A run's settings."""
    return {
        "name": name,
        "output": str(directory / "runs"),
        "data": {"train": str(data), "validation_fraction": 0},
        "model": {
            "problem_type": "linear_regression",
            "prediction_type": "multiple_value",
            "label": "y",
            "cell_type": "lstm",
            "num_units": [UNITS],
            "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
        },
        "train": {
            "steps": steps,
            "batch_sequences": B * workers,
            "evaluate_every_steps": every,
            "optimizer": "Adam",
            "learning_rate": 1e-3,
        },
        "resources": {"workers": workers, "gpu": False},
    }


def run_ours(spec: dict[str, Any]) -> None:
    """Trains through Ray Train; prints the median rate of its windows and the seconds from first step to end."""
    from pipelines.cluster.session import ray_session
    from pipelines.config import run_config
    from pipelines.train.run import train

    directory, workers = Path(spec["directory"]), spec.get("workers", 1)
    steps = round(spec["seconds"] * STEPS_PER_SECOND)
    reports = spec.get("reports", 1)
    plain = settings(directory, spec["name"], directory / "data", workers, steps, max(1, steps // reports))
    rates: list[float] = []
    times: list[float] = []

    def progress(told: Any) -> None:
        times.append(time.perf_counter())
        rates.append(told.real_steps_per_second)

    with ray_session(logical_cpus=workers + 1, address=spec["address"]):
        train(run_config(plain, where="benchmark"), on_progress=progress)
    steady = [rate for rate in rates[1:] if rate > 0]
    tell({"rate": statistics.median(steady), "seconds": times[-1] - times[0]})


def tell(result: dict[str, float]) -> None:
    """A line for whoever has started this role, in one write: ranks of torchrun share a pipe."""
    os.write(sys.stdout.fileno(), f"{json.dumps(result)}\n".encode())


def run_ready(spec: dict[str, Any]) -> None:
    """The hand-written loop over the plan's own batches, made before; under torchrun each rank takes its slice."""
    import torch

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    if spec.get("keep"):
        malloc.keep_freed_memory(malloc.OF_COMPUTING)
    hand_written(list(plan_batches(Path(spec["directory"]), rank, world)), spec["seconds"], distributed=world > 1)
    if world > 1:
        torch.distributed.destroy_process_group()


def run_naive(spec: dict[str, Any]) -> None:
    """The loop that takes rows at random and pads each batch to its longest; padding is done before, too."""
    import torch

    random = np.random.default_rng(1)
    rows = [row for batch in plan_batches(Path(spec["directory"]), 0, 1) for row in ragged(batch)]
    order = random.permutation(len(rows))
    batches = []
    for start in range(0, len(order) - B + 1, B):
        chosen = [rows[i] for i in order[start : start + B]]
        parts = zip(*chosen, strict=True)
        x, y, mask = (torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in parts)
        batches.append((x, y, mask))
    hand_written(batches, spec["seconds"], distributed=False)


def ragged(batch: tuple[Any, Any, Any]) -> Iterator[tuple[Any, Any, Any]]:
    x, y, mask = batch
    for row, length in enumerate(mask.sum(1).long().tolist()):
        yield x[row, :length], y[row, :length], mask[row, :length]


def plan_batches(directory: Path, rank: int, world: int) -> Iterator[tuple[Any, Any, Any]]:
    """This rank's batches of one epoch of the plan that ours follows: (features, labels, mask), padded with zeros."""
    import torch

    from model.batches.plan import DataIndex, Plan
    from model.tables.parquet import find_fragments

    fragments = find_fragments(directory / "data", ["x", "y"])
    table = pa.concat_tables(pq.read_table(path) for path in sorted((directory / "data").iterdir()))
    lists = table["y"].combine_chunks()
    offsets, labels = lists.offsets.to_numpy(), lists.flatten().to_numpy()
    vectors = table["x"].combine_chunks().flatten().flatten().to_numpy().reshape(-1, D)
    lengths = np.diff(offsets)
    plan = Plan(DataIndex(tuple(fragments), lengths), B * world)
    numbers = np.concatenate([piece.rows for piece in plan.pieces(rank, world, 0, plan.steps_per_epoch)])
    place = 0
    for step in range(plan.steps_per_epoch):
        rows = numbers[place : place + plan.rank_rows(step, rank, world)]
        place += len(rows)
        shape = (len(rows), int(lengths[rows].max()))
        x, y, mask = np.zeros((*shape, D), np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            steps = slice(offsets[row], offsets[row + 1])
            x[i, : lengths[row]], y[i, : lengths[row]], mask[i, : lengths[row]] = vectors[steps], labels[steps], 1
        yield torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(mask)


def hand_written(batches: list[tuple[Any, Any, Any]], seconds: float, *, distributed: bool) -> None:
    """LSTM, linear layer, masked squared error, Adam, clipping of the global norm; prints real steps a second."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network: Any = tagger()
    if distributed:
        network = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    rates, real, began = [], 0.0, time.perf_counter()
    for step in range(round(seconds * STEPS_PER_SECOND)):  # as many on each rank
        x, y, mask = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = ((network(x) - y) ** 2 * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        loss.item()
        real, now = real + float(mask.sum()), time.perf_counter()
        if now - began >= WINDOW_SECONDS:
            rates.append(real / (now - began))
            real, began = 0.0, now
    tell({"rate": statistics.median(rates[1:])})


def tagger() -> Any:
    """An LSTM with a number for each step."""
    import torch

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(D, UNITS, batch_first=True)
            self.linear = torch.nn.Linear(UNITS, 1)

        def forward(self, x: Any) -> Any:
            outputs, _ = self.rnn(x)
            return self.linear(outputs).squeeze(-1)

    return Tagger()


def run_trivial(_: dict[str, Any]) -> None:
    """Starts our Ray, runs a TorchTrainer whose worker does nothing, and ends."""
    import ray.train
    import ray.train.torch

    from pipelines.cluster.session import ray_session

    with tempfile.TemporaryDirectory() as storage, ray_session(logical_cpus=3):
        ray.train.torch.TorchTrainer(
            nothing,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(name="trivial", storage_path=storage),
        ).fit()


def nothing() -> None:
    """What the worker of a trivial trainer does."""


ROLES: dict[str, Callable[[dict[str, Any]], None]] = {
    "ours": run_ours,
    "ready": run_ready,
    "naive": run_naive,
    "trivial": run_trivial,
}


if __name__ == "__main__":
    main()
