"""The proof over adversarial layouts: two workers see the keys of the data once an epoch, in equally many steps."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.batches.collate import SequenceBatch
from model.batches.plan import Plan
from model.bundle.bundle import bundle_of
from model.errors import ConfigError
from model.network.network import build_network
from pipelines.config import RunConfig, run_config
from pipelines.ingest import batches as batching
from pipelines.ingest import scan as ingest
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.read_task import Request, RowReader
from pipelines.train import loop
from pipelines.train.job import Job, Report, plans

pytestmark = pytest.mark.usefixtures("local_ray", "large")

LAYOUTS = {
    "uneven blocks": [[30, 10]],
    "fewer rows than workers": [[1]],
    "an empty file": [[], [7]],
    "an empty row group": [[0, 5, 0, 6]],
    "one block with all rows": [[40]],
    "uneven files": [[1, 1], [20], [], [3, 17, 2]],
}


def write(directory: Path, layout: list[list[int]]) -> Path:
    """Files of the given row groups; every step of a row holds the row's key, which is its number in the data."""
    directory.mkdir()
    key = 0
    for number, groups in enumerate(layout):
        with pq.ParquetWriter(directory / f"{number}.parquet", table_of(0, 0).schema) as writer:
            for rows in groups:
                writer.write_table(table_of(key, rows), row_group_size=max(rows, 1))
                key += rows
    return directory


def table_of(first: int, rows: int) -> pa.Table:
    keys = range(first, first + rows)
    values = [[float(key)] * (1 + key % 7) for key in keys]
    return pa.table(
        {"x": pa.array(values, pa.list_(pa.float32())), "y": pa.array([key % 2 for key in keys], pa.int64())}
    )


def run_of(path: Path, **train: Any) -> RunConfig:
    mapping = {
        "name": "run",
        "output": str(path.parent / "runs"),
        "data": {"train": str(path), "validation_fraction": 0},
        "model": {
            "problem_type": "classification",
            "prediction_type": "single_value",
            "label": "y",
            "num_classes": 2,
            "num_units": [3],
            "dtype": "float64",
            "dropout_keep_probabilities": [0.9, 0.8],
            "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
        },
        "train": {"learning_rate": 0.01, **train},
    }
    return run_config(mapping, where="run.yaml")


def plan_of(prepared: FittedData, seed: int, bound: str = "rows") -> Plan:
    if bound == "rows":
        return Plan(prepared.train, 8, seed=seed, window_batches=2)
    return Plan(prepared.train, None, seed=seed, window_batches=2, batch_padded_steps=30)


def keys_of(batch: SequenceBatch | None) -> list[int]:
    """The keys that the values themselves hold, at each of a row's steps and nowhere else."""
    if batch is None:
        return []
    (values,) = batch.sequence.values()
    keys = values[:, :, 0]
    real = torch.arange(keys.shape[1]) < batch.lengths_B[:, None]
    assert torch.equal(keys, torch.where(real, keys[:, :1], 0))
    assert batch.lengths_B.tolist() == [1 + int(key) % 7 for key in keys[:, 0]]
    return [int(key) for key in keys[:, 0]]


def check_seen(plan: Plan, ranks: list[list[list[int]]]) -> None:
    """Equal step counts, exact batches, and every key once in each of two epochs."""
    stop = plan.first_step(2)
    assert [len(steps) for steps in ranks] == [stop] * len(ranks)
    for epoch in range(2):
        seen: list[int] = []
        for step in range(plan.first_step(epoch), plan.first_step(epoch + 1)):
            shares = [steps[step] for steps in ranks]
            assert sum(map(len, shares)) == plan.batch_rows(step)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            seen += [key for share in shares for key in share]
        assert sorted(seen) == list(range(plan.index.rows))


@pytest.mark.parametrize("task_bytes", [0, 500, 1 << 20], ids=["a window a task", "some windows", "both epochs"])
@pytest.mark.parametrize(("seed", "layout"), list(enumerate(LAYOUTS)))
def test_two_ranks_see_every_key_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, layout: str, task_bytes: int
) -> None:
    monkeypatch.setattr(batching, "KEPT_BYTES", 0)  # else the second epoch is not read
    monkeypatch.setattr(batching, "TASK_BYTES", task_bytes)
    prepared = ingest.fit_data(run_of(write(tmp_path / "data", LAYOUTS[layout])))
    reader = RowReader(prepared.columns, prepared.label)
    plan = plan_of(prepared, seed, "rows" if seed % 2 else "steps")
    batches = [batching.batches(plan, reader, rank, 2, 0, plan.first_step(2)) for rank in range(2)]
    check_seen(plan, [[keys_of(batch) for batch in mine] for mine in batches])


def see(settings: dict[str, Any]) -> None:
    """What each worker runs: two epochs of each plan, with a collective at each step, as training has."""
    import ray.train
    import torch.distributed

    batching.SMALL_BYTES = -1  # nothing is too small for a pipeline
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    for name, prepared, plan in settings["plans"]:
        steps = []
        reader = RowReader(prepared.columns, prepared.label)
        for batch in batching.batches(plan, reader, rank, world, 0, plan.first_step(2)):
            steps.append(keys_of(batch))
            torch.distributed.all_reduce(torch.zeros(1))
        Path(settings["directory"], f"{name} {rank}.json").write_text(json.dumps(steps))


@pytest.mark.slow
def test_two_workers_of_ray_train_see_every_key_once_an_epoch_for_five_seeds(tmp_path: Path) -> None:
    import ray.cloudpickle
    import ray.train.torch

    plans = []
    for layout, files in LAYOUTS.items():
        prepared = ingest.fit_data(run_of(write(tmp_path / layout, files)))
        for seed in range(5):
            plans.append((f"{layout} {seed}", prepared, plan_of(prepared, seed, "rows" if seed % 2 else "steps")))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker could import a test
    ray.train.torch.TorchTrainer(
        see,
        train_loop_config={"plans": plans, "directory": str(tmp_path)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, use_gpu=False),
        run_config=ray.train.RunConfig(name="seen", storage_path=str(tmp_path / "ray")),
        torch_config=ray.train.torch.TorchConfig(timeout_s=120),
    ).fit()
    for name, _, plan in plans:
        check_seen(plan, [json.loads((tmp_path / f"{name} {rank}.json").read_text()) for rank in range(2)])


# The loop over batches of padded steps ----------------------------------------------------------------------------


class Sum:
    """Adds buffers of several threads up, as a collective of workers does."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world)
        self.buffers: list[torch.Tensor | None] = [None] * world

    def of(self, rank: int) -> Callable[[torch.Tensor], None]:
        def reduce(buffer: torch.Tensor) -> None:
            self.buffers[rank] = buffer.clone()
            self.barrier.wait(60)
            total = torch.stack([each for each in self.buffers if each is not None]).sum(0)
            self.barrier.wait(60)
            buffer.copy_(total)

        return reduce


def direct(reader: RowReader, rank: int, world: int, plan: Plan, start: int, stop: int) -> Iterator[Any]:
    """`Batches` of one of several ranks, read in this process."""
    parts = (reader.read(Request.of(plan.index, piece.rows)) for piece in plan.pieces(rank, world, start, stop))
    return batching.cut(parts, (plan.rank_rows(step, rank, world) for step in range(start, stop)))


def trained(config: RunConfig, world: int = 1, resume: Any = None) -> list[list[Report]]:
    """The reports of each rank, all in threads of this process."""
    prepared = ingest.fit_data(config)
    reader = RowReader(prepared.columns, prepared.label)
    plan, _ = plans(config, prepared.train, None)
    reports: list[list[Report]] = [[] for _ in range(world)]
    total = Sum(world)
    # The same weights for all: threads that draw them at the same time share torch's generator.
    network = build_network(config.model, prepared.columns, prepared.label, config.train.seed)
    start = bundle_of(network, prepared.columns, prepared.label)

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        job = Job(
            config=config,
            columns=prepared.columns,
            label=prepared.label,
            train=plan,
            validation=None,
            batches=partial(direct, reader, rank, world),
            report=reports[rank].append,
            reduce=total.of(rank) if world > 1 else None,
            rank=rank,
            world=world,
            start=start,
            resume=resume,
        )
        loop.run(job)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return reports


def test_epochs_of_batches_cut_by_steps_report_at_their_ends(tmp_path: Path) -> None:
    config = run_of(write(tmp_path / "data", [[30, 10], [25]]), epochs=4, batch_padded_steps=30, window_batches=2)
    (reports,) = trained(config)
    plan, _ = plans(config, ingest.fit_data(config).train, None)
    counts = [plan.steps_of(epoch) for epoch in range(4)]
    assert [report.step for report in reports] == [sum(counts[: epoch + 1]) for epoch in range(4)]
    assert [report.metrics["epoch"] for report in reports] == [1, 2, 3, 4]
    assert [report.last for report in reports] == [False, False, False, True]


def test_rows_longer_than_a_batch_may_be_are_trained_alone_and_told(tmp_path: Path) -> None:
    path = write(tmp_path / "data", [[14]])  # two rows of each length from 1 to 7
    (reports,) = trained(run_of(path, batch_padded_steps=5))
    assert reports[-1].metrics["long_rows"] == 4
    assert "long_rows" not in trained(run_of(path, batch_padded_steps=7))[0][-1].metrics


def test_a_run_of_batches_cut_by_steps_resumes_to_the_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "data", [[30, 10], [25]])
    settings: dict[str, Any] = {"batch_padded_steps": 30, "window_batches": 2, "evaluate_every_steps": 7}
    (whole,) = trained(run_of(path, epochs=3, **settings))
    assert whole[1].step == 14, "in the middle of an epoch"
    (tail,) = trained(run_of(path, epochs=3, **settings), resume=(whole[1].bundle, whole[1].training))
    assert [report.step for report in tail] == [report.step for report in whole[2:]]
    assert tail[-1].bundle.fingerprint == whole[-1].bundle.fingerprint
    assert [report.metrics["padding"] for report in tail] == [report.metrics["padding"] for report in whole[2:]]


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_batches_cut_by_steps_and_train_what_one_worker_trains(tmp_path: Path, world: int) -> None:
    config = run_of(write(tmp_path / "data", LAYOUTS["uneven files"]), epochs=3, batch_padded_steps=20)
    (one,), several = trained(config), trained(config, world)
    for name, weights in one[-1].bundle.tensors.items():
        for reports in several:
            difference = (reports[-1].bundle.tensors[name] - weights).abs().max()
            assert difference <= 1e-12 * max(weights.abs().max(), 1), name


def test_the_padding_told_is_that_of_all_workers(tmp_path: Path) -> None:
    config = run_of(write(tmp_path / "data", LAYOUTS["uneven files"]), epochs=2, batch_sequences=6)
    plan, _ = plans(config, ingest.fit_data(config).train, None)
    padded = 0
    for rank in range(2):
        rows = iter(np.concatenate([piece.rows for piece in plan.pieces(rank, 2, 0, plan.first_step(2))]))
        for step in range(plan.first_step(2)):
            lengths = [plan.index.lengths[next(rows)] for _ in range(plan.rank_rows(step, rank, 2))]
            padded += len(lengths) * max(lengths, default=0)
    told = {reports[-1].metrics["padding"] for reports in trained(config, 2)}
    assert told == {padded / (2 * plan.index.steps)}
    assert told != {1.0}


# Settings ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_bounded_by_rows_or_by_padded_steps(tmp_path: Path) -> None:
    def bounds(**train: Any) -> tuple[int | None, int | None]:
        settings = run_of(tmp_path / "data", **train).train
        again = run_config(run_of(tmp_path / "data", **train).model_dump(mode="json"), where="run.yaml")
        assert again.train == settings
        return settings.batch_sequences, settings.batch_padded_steps

    assert bounds() == (32, None)
    assert bounds(batch_sequences=5) == (5, None)
    assert bounds(batch_padded_steps=4096) == (None, 4096)
    assert bounds(batch_sequences=None, batch_padded_steps=4096) == (None, 4096)
    with pytest.raises(ConfigError) as both:
        bounds(batch_sequences=8, batch_padded_steps=4096)
    assert str(both.value) == (
        "run.yaml: train: batch_sequences and batch_padded_steps exclude each other; set one of them to null"
    )
    with pytest.raises(ConfigError) as neither:
        bounds(batch_sequences=None)
    assert str(neither.value) == (
        "run.yaml: train: batch_sequences or batch_padded_steps must be given, but both are null"
    )
