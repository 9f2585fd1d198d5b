"""Shared fixtures: seeds, one thread, and builders of small tables and of bundles with random weights.

Builders are session fixtures that return functions, so that hypothesis tests may use them.
"""

from __future__ import annotations

import os

# Ray reads its environment when it is imported, so this stands before anything that could import it.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token is written into the home directory
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")  # else each shutdown waits 30 s

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import hypothesis
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from model import registry
from model.batches.collate import SequenceBatch, collate
from model.batches.encoded_rows import EncodedRows
from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import Bundle, bundle_of, load_bundle
from model.bundle.run_directory import pointed
from model.config import ModelConfig
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel, PredictionType, ProblemType
from model.network.network import build_network
from model.storage import join
from model.tables.fragments import Fragment
from pipelines.train.job import Job, plans
from tests.fitting import column_stats

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")
torch.set_num_threads(1)

KINDS = ("view", "cart", "buy", "leave")
TAGS = ("new", "sale", "gift")
COUNTRIES = ("at", "de", "fr")
MODEL = {
    "columns": {
        "sequence": [
            {"type": "numeric", "name": "x", "normalizer": "zscore"},
            {"type": "numeric", "name": "vector"},
            {"type": "one_hot", "source": {"type": "vocabulary", "name": "kind"}},
            {"type": "embedding", "source": {"type": "vocabulary", "name": "tags"}, "dimension": 3},
        ],
        "context": [
            {"type": "numeric", "name": "age", "missing": "mean"},
            {"type": "embedding", "source": {"type": "vocabulary", "name": "country"}, "dimension": 2},
        ],
    },
    "label": "y",
    "num_units": [4, 3],
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def register() -> Iterator[Callable[[str, type[Any]], None]]:
    """`register_cell` for a module's tests alone."""
    before = dict(registry._cells)
    yield registry.register_cell
    registry._cells.clear()
    registry._cells.update(before)


TableMaker = Callable[..., pa.Table]


@pytest.fixture(scope="session")
def make_table() -> TableMaker:
    """make_table(problem, prediction, *, rows or lengths, num_classes, seed): a seeded table of the contract.

    Columns: `x` list<float>, `vector` list<fixed_size_list<float>[3]>, `kind` list<string>, `tags`
    list<list<string>>, `age` double with nulls, `country` string, label `y`, weights `w` (a row), `key` and `row`.
    """
    return _table


def _table(
    problem: str = "classification",
    prediction: str = "multiple_value",
    *,
    rows: int = 12,
    lengths: Sequence[int] | None = None,
    num_classes: int = 3,
    seed: int = 0,
) -> pa.Table:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 9, rows).tolist() if lengths is None else list(lengths)
    rows, steps = len(lengths), sum(lengths)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=steps * 3).astype(np.float32)), 3)
    tags = [random.choice(TAGS, random.integers(0, 3)).tolist() for _ in range(steps)]
    ages = [None if random.random() < 0.2 else float(age) for age in random.integers(18, 80, rows)]
    labels = _labels(random, problem, num_classes, steps if prediction == "multiple_value" else rows)
    return pa.table(
        {
            "x": _lists(lengths, pa.array(random.normal(3, 2, steps))),
            "vector": _lists(lengths, vector),
            "kind": _lists(lengths, pa.array(random.choice(KINDS, steps).tolist(), pa.string())),
            "tags": _lists(lengths, pa.array(tags, pa.list_(pa.string()))),
            "age": pa.array(ages, pa.float64()),
            "country": pa.array(random.choice(COUNTRIES, rows).tolist(), pa.string()),
            "y": _lists(lengths, labels) if prediction == "multiple_value" else labels,
            "w": random.uniform(0.5, 2, rows),
            "key": [f"entity {i % 5}" for i in range(rows)],
            "row": range(rows),
        }
    )


def _labels(random: np.random.Generator, problem: str, num_classes: int, count: int) -> pa.Array:
    if problem == "classification":
        return pa.array(random.integers(0, num_classes, count))
    return pa.array(random.normal(size=count))


def _lists(lengths: Sequence[int], values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, *np.cumsum(lengths, dtype=int)], pa.int32()), values)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    """make_config(problem, prediction, cell, **changes): the config of a model over the columns of `make_table`."""
    return _config


def _config(
    problem: str = "classification", prediction: str = "multiple_value", cell: str = "lstm", **changes: Any
) -> ModelConfig:
    named = {"problem_type": problem, "prediction_type": prediction, "cell_type": cell}
    return ModelConfig.model_validate({**MODEL, **named, **changes})


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Bundle]:
    """make_bundle(problem, prediction, cell, *, num_classes, seed, **changes): random weights, without training."""
    return _bundle


def _bundle(
    problem: str = "classification",
    prediction: str = "multiple_value",
    cell: str = "lstm",
    *,
    num_classes: int = 3,
    seed: int = 0,
    **changes: Any,
) -> Bundle:
    config = _config(problem, prediction, cell, **changes)
    table = _table(problem, prediction, rows=40, num_classes=num_classes, seed=1)
    columns = FittedColumns.fit(config.columns, column_stats(table, config.columns))
    label = FittedLabel(
        name=config.label,
        weight=config.weight,
        problem_type=ProblemType(problem),
        prediction_type=PredictionType(prediction),
        num_classes=(len(config.classes) if config.classes else num_classes) if problem == "classification" else None,
        classes=config.classes,
    )
    network = build_network(config, columns, label, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():  # biases, too, so that none of them hides behind a zero
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter) * 0.3
    return bundle_of(network, columns, label)


# Ray: one local cluster a session -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One private Ray for the whole session, with CPUs for three workers and for Ray Data beside them."""
    from pipelines.cluster.session import ray_session

    with ray_session(logical_cpus=6):
        yield


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of any size are scanned and read by Ray Data's tasks, a window a task; in this process, not in the workers
    of a training."""
    from pipelines.ingest import batches as batching
    from pipelines.ingest import scan as ingest

    monkeypatch.setattr(batching, "SMALL_BYTES", -1)
    monkeypatch.setattr(batching, "TASK_BYTES", 0)
    monkeypatch.setattr(ingest, "SMALL_BYTES", -1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes run in this process, item after item, also while it is connected to a Ray."""
    from pipelines.tasks import map as tasks

    monkeypatch.setattr(tasks, "ray_is_running", lambda: False)


@pytest.fixture
def finely_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions in slices of a row or two, several partitions, chunks of a few rows: all that large data bring."""
    from model.tables import slices as blocks
    from pipelines.predict import plan as predict_plan

    monkeypatch.setattr(blocks, "SLICE_BYTES", 500)
    monkeypatch.setattr(predict_plan, "PARTITION_BYTES", 3000)


# Training without Ray: the workers' own loop on threads --------------------------------------------------------


@dataclass
class Trained:
    """What the threads of `train_in_memory` have reported: rank 0's validations and checkpoints, in order."""

    reports: list[Any]
    checkpoints: list[Any]

    @property
    def last(self) -> Any:
        """The last validation's report."""
        return self.reports[-1]

    @property
    def losses(self) -> list[float]:
        """The training loss of each report."""
        return [report.metrics["train_loss"] for report in self.reports]


class SumOverThreads:
    """Adds tensors up over threads, in rank order, as the workers of a cluster do."""

    def __init__(self, world: int) -> None:
        self.barrier = Barrier(world, timeout=60)
        self.tensors: list[torch.Tensor] = [torch.empty(0)] * world

    def of_rank(self, rank: int) -> Callable[[torch.Tensor], None]:
        """What rank hands its tensors to."""

        def reduce(tensor: torch.Tensor) -> None:
            self.tensors[rank] = tensor.clone()
            self.barrier.wait()
            total = sum(self.tensors[1:], self.tensors[0].clone())
            self.barrier.wait()
            tensor.copy_(total)

        return reduce


@pytest.fixture(scope="session")
def train_in_memory() -> Callable[..., Trained]:
    """train_in_memory(bundle, rows, *, validation, world, resume, job, **train): `pipelines.train.loop.run` on threads.

    Starts from the bundle's weights, or goes on from a report or checkpoint of an earlier call.
    """
    return _train_in_memory


def _train_in_memory(
    bundle: Bundle,
    rows: EncodedRows,
    *,
    validation: EncodedRows | None = None,
    world: int = 1,
    resume: Any = None,
    job: dict[str, Any] | None = None,
    **train: Any,
) -> Trained:
    from pipelines.config import run_config
    from pipelines.train import loop

    settings = {"batch_sequences": 4, "optimizer": "Adam", "learning_rate": 0.01, **train}
    run = run_config(
        {"data": {"train": "memory"}, "model": bundle.config.model_dump(mode="json"), "train": settings}, where="run"
    )
    ours = plans(run, _index_of(rows), None if validation is None else _index_of(validation))
    trained, sums = Trained([], []), SumOverThreads(world)

    def work(rank: int) -> None:
        def batches(plan: Plan, start: int, stop: int) -> Iterator[SequenceBatch | None]:
            source = rows if plan is ours[0] else validation
            assert source is not None
            for step in range(start, stop):
                mine = [piece.rows for piece in plan.pieces(rank, world, step, step + 1)]
                yield collate(source.take(np.concatenate(mine))) if mine else None

        loop.run(
            Job(
                **{
                    "config": run,
                    "columns": bundle.columns,
                    "label": bundle.label,
                    "train": ours[0],
                    "validation": ours[1],
                    "batches": batches,
                    "report": trained.reports.append if rank == 0 else lambda _: None,
                    "checkpoint": trained.checkpoints.append if rank == 0 else lambda _: None,
                    "reduce": sums.of_rank(rank) if world > 1 else None,
                    "rank": rank,
                    "world": world,
                    "start": bundle,
                    "resume": None if resume is None else (resume.bundle, resume.training),
                    **(job or {}),
                }
            )
        )

    with ThreadPoolExecutor(world) as pool:
        list(pool.map(work, range(world)))
    return trained


def _index_of(rows: EncodedRows) -> DataIndex:
    return DataIndex((Fragment("memory", 0, len(rows)),), rows.lengths_B)


# Commands in processes of their own, to be ended --------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
MARK = "DYNAMIC_RNN_MARK"


class Started:
    """`dynamic-rnn` in a process of its own; whatever process it starts, anywhere, inherits its mark."""

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] = os.environ,
        cwd: Path = ROOT,
        patience_seconds: float = 240,
    ) -> None:
        self.mark, self.log, self.patience_seconds = str(uuid.uuid4()), log, patience_seconds
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *words],
                env={**environment, MARK: self.mark},
                cwd=cwd,
                stdout=stream,
                stderr=stream,
            )

    @property
    def told(self) -> str:
        """What it has written so far."""
        return self.log.read_text()

    def living(self, name: str = "") -> list[psutil.Process]:
        """Those of its processes that live and have `name` in their command line."""
        listed = psutil.process_iter(["cmdline", "environ"])
        mine = [process for process in listed if (process.info["environ"] or {}).get(MARK) == self.mark]
        return [process for process in mine if name in " ".join(process.info["cmdline"] or [])]

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Until something has happened, which must be before it ends."""
        deadline = time.monotonic() + self.patience_seconds
        while not happened():
            assert self.process.poll() is None, self.told
            assert time.monotonic() < deadline, self.told
            time.sleep(0.01)

    def exit_code(self) -> int:
        """When it has ended."""
        return self.process.wait(self.patience_seconds)

    def kill(self) -> None:
        """Kills the process that was started, and waits until those that it had started have noticed."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.wait_until_gone()

    def wait_until_gone(self) -> None:
        """Until none of its processes lives."""
        deadline = time.monotonic() + self.patience_seconds
        while left := self.living():
            assert time.monotonic() < deadline, [process.info["cmdline"] for process in left]
            time.sleep(0.2)

    def end(self) -> None:
        """Leaves nothing behind, also of what a test has failed on."""
        for process in self.living():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class Training(Started):
    """A training of a `small_run` under a name."""

    def __init__(self, run_yaml: Path, name: str, *words: str, **options: Any) -> None:
        self.directory = run_yaml.parent / "runs" / name
        super().__init__(
            ["train", str(run_yaml), f"name={name}", *words], run_yaml.parent / f"{name}-{uuid.uuid4()}.log", **options
        )

    def steps(self) -> list[int]:
        """The steps that were validated, as often as they were."""
        path = self.directory / "metrics.jsonl"
        return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, step: int) -> None:
        """Until that step has been validated."""
        self.wait_until(lambda: max(self.steps(), default=0) >= step)

    def fingerprint(self) -> str:
        """Of the latest bundle."""
        latest = pointed(self.directory, "latest")
        assert latest is not None
        return load_bundle(join(self.directory, latest)).fingerprint


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """start(*words, **options): a command as `Started`; start(run_yaml, name, *words, **options): a `Training`."""
    started: list[Started] = []

    def begin(first: Any, *words: str, **options: Any) -> Started:
        if isinstance(first, Path):
            started.append(Training(first, *words, **options))
        else:
            started.append(Started([first, *words], tmp_path_factory.mktemp("started") / "log", **options))
        return started[-1]

    yield begin
    for each in started:
        each.end()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """small_run(lengths, columns, *, groups, model, train, resources): run.yaml of a run with dropout over its data."""

    def write(
        lengths: Sequence[int], columns: Sequence[str], *, groups: int, model: Any, train: Any, resources: Any
    ) -> Path:
        directory = tmp_path_factory.mktemp("small run")
        pq.write_table(_table(lengths=lengths), directory / "data.parquet", row_group_size=len(lengths) // groups)
        run = {
            "output": str(directory / "runs"),
            "data": {"train": str(directory / "data.parquet"), "validation_fraction": 0.2},
            "model": {
                "problem_type": "classification",
                "prediction_type": "multiple_value",
                "label": "y",
                "dropout_keep_probabilities": [1.0, 0.8, 0.9],
                "columns": {"sequence": [{"type": "numeric", "name": name} for name in columns]},
                **model,
            },
            "train": {"optimizer": "Adam", "learning_rate": 0.01, **train},
            "resources": resources,
        }
        (directory / "run.yaml").write_text(yaml.safe_dump(run))
        return directory / "run.yaml"

    return write
