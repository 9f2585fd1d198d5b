"""What a worker needs of memory: the estimate against what a process really grows by, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import Bundle, save_bundle
from model.errors import ResourceError
from model.network.network import build_network
from model.tables.fragments import Fragment
from model.training.optimizers import FlatParameters
from pipelines.config import RunConfig, run_config
from pipelines.train import memory_estimate
from pipelines.train.memory_estimate import MIB, Estimate

ROOT = Path(__file__).resolve().parents[3]
NEEDED = Estimate(100 * MIB, 300 * MIB, 400 * MIB, 200 * MIB, 0, 24 * MIB)


def run_of(bundle: Bundle, **train: Any) -> RunConfig:
    settings = {"data": {"train": "memory"}, "model": bundle.config.model_dump(mode="json"), "train": train}
    return run_config(settings, where="run")


@pytest.mark.parametrize("cell", ["basic_rnn", "lstm", "gru", "gru_reset_before"])
def test_weights_are_counted_without_being_made(make_bundle: Callable[..., Bundle], cell: str) -> None:
    bundle = make_bundle(cell=cell, num_units=[7, 5])
    count, width = memory_estimate.parameters(run_of(bundle), bundle.columns, bundle.label)
    network = build_network(bundle.config, bundle.columns, bundle.label, 0)
    assert count == sum(each.numel() for each in network.parameters())
    assert FlatParameters(network).size <= count
    assert width == network.inputs.width


def test_the_largest_batch_is_that_of_the_longest_row() -> None:
    index = DataIndex((Fragment("memory", 0, 10),), np.array([5] * 9 + [50]))
    for bound, world, unroll, expected in [
        ({"batch_sequences": 8}, 1, None, 400),
        ({"batch_sequences": 8}, 3, None, 150),
        ({"batch_sequences": 8}, 1, 20, 160),
        ({"batch_sequences": 64}, 1, None, 500),
        ({"batch_padded_steps": 120}, 1, None, 100),
        ({"batch_padded_steps": 10}, 2, None, 50),
    ]:
        plan = Plan(index, bound.get("batch_sequences"), batch_padded_steps=bound.get("batch_padded_steps"))
        assert memory_estimate.largest_batch(plan, world, unroll) == expected


def test_only_what_certainly_cannot_fit_is_refused() -> None:
    memory_estimate.require_memory(NEEDED, 800 * MIB, 2, "the memory of a")
    with pytest.raises(ResourceError) as raised:
        memory_estimate.require_memory(NEEDED, 799 * MIB, 2, "the memory of a")
    assert str(raised.value) == (
        "weights, gradients and optimizer of 2 workers must fit into the memory of a, but take 800 MiB of its 799 MiB: "
        "use larger nodes or fewer workers on one, smaller embeddings or num_units, or an optimizer with fewer slots"
    )
    assert memory_estimate.warning(NEEDED, 4096 * MIB, 2, "a node") is None
    assert memory_estimate.warning(NEEDED, 2048 * MIB, 2, "a node") == (
        "memory may not suffice: 2 workers of about 1,024 MiB (weights 100 MiB, optimizer 300 MiB, checkpoint 400 MiB, "
        "activations 200 MiB, kept rows 24 MiB) share the 2,048 MiB of a node; lower train.batch_sequences, or set "
        "train.unroll_steps or train.accumulate_batches"
    )


# Against a process --------------------------------------------------------------------------------------------------

GROWTH = """
import gc, json, sys, threading
from pathlib import Path
import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from model.batches.collate import collate
from model.bundle.bundle import load_bundle
from model.batches.plan import DataIndex, Plan
from model.tables.fragments import Fragment
from model.batches.encode import encode_rows
from pipelines.config import run_config
from pipelines.train import memory_estimate as memory
from pipelines.train.job import plans
from pipelines.train.job import Job

here, train = Path(sys.argv[1]), json.loads(sys.argv[2]) | {"learning_rate": 1e-6}
torch.set_num_threads(1)


def trained(bundle, rows, steps):
    index = DataIndex((Fragment("memory", 0, len(rows)),), rows.lengths_B)
    settings = {"data": {"train": "memory"}, "model": bundle.config.model_dump(mode="json")}
    run = run_config({**settings, "train": {**train, "steps": steps}}, where="run")
    plan, _ = plans(run, index, None)

    def batches(plan, start, stop):
        for step in range(start, stop):
            yield collate(rows.take(np.concatenate([piece.rows for piece in plan.pieces(0, 1, step, step + 1)])))

    loop.run(
        Job(run, bundle.columns, bundle.label, plan, None, batches, lambda _: None)
    )
    return memory_estimate.estimate(run, bundle.columns, bundle.label, plan, None, 1)


bundle = load_bundle(here / "bundle")
rows = encode_rows(pq.read_table(here / "rows.parquet"), bundle.columns, bundle.label)
small = encode_rows(pq.read_table(here / "rows.parquet").slice(0, 1), bundle.columns, bundle.label)
trained(load_bundle(here / "small"), small, 1)  # what libraries take once
gc.collect()
process, done = psutil.Process(), threading.Event()
before = peak = process.memory_info().rss


def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, process.memory_info().rss)


thread = threading.Thread(target=watch, daemon=True)
thread.start()
needed = trained(bundle, rows, 3)
done.set()
thread.join()
print(json.dumps([needed.total, peak - before]))
"""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("cell", "units", "length", "train"),
    [
        ("lstm", [256], 200, {"optimizer": "Adam"}),
        ("lstm", [256], 400, {"optimizer": "Adam", "unroll_steps": 50}),
        ("lstm", [1500], 20, {"optimizer": "Adam", "batch_sequences": 4}),
        ("gru", [256, 256], 150, {"optimizer": "Adam"}),
        ("gru_reset_before", [256], 100, {"optimizer": "SGD"}),
        ("basic_rnn", [512], 200, {"optimizer": "Momentum", "momentum": 0.9}),
    ],
)
def test_the_estimate_is_within_a_factor_of_two_of_what_a_process_grows_by(
    tmp_path: Path,
    make_bundle: Callable[..., Bundle],
    make_table: Callable[..., pa.Table],
    cell: str,
    units: list[int],
    length: int,
    train: dict[str, Any],
) -> None:
    save_bundle(tmp_path / "bundle", make_bundle(cell=cell, num_units=units))
    save_bundle(tmp_path / "small", make_bundle(cell=cell, num_units=[2] * len(units)))
    pq.write_table(make_table(lengths=[length] * 64), tmp_path / "rows.parquet")
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path), json.dumps(train)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimated, grown = json.loads(done.stdout)
    assert grown / 2 <= estimated <= grown * 2


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_model_that_cannot_fit_is_refused_before_it_trains(
    make_bundle: Callable[..., Bundle], make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    """Embeddings of 10¹³ numbers: not one of them is made."""
    bundle = make_bundle()
    huge = bundle.config.model_dump(mode="json")
    huge["columns"]["sequence"] = [
        {"type": "embedding", "dimension": 10_000, "source": {"type": "hash_bucket", "name": "kind", "buckets": 10**9}}
    ]
    from pipelines.train.run import train

    pq.write_table(make_table(rows=20), tmp_path / "data.parquet")
    told: list[str] = []
    config = run_config(
        {
            "output": str(tmp_path),
            "data": {"train": str(tmp_path / "data.parquet"), "validation_fraction": 0},
            "model": huge,
        },
        where="run",
    )
    with pytest.raises(ResourceError, match="weights, gradients and optimizer of 1 worker must fit into the memory of"):
        train(config, say=told.append)
    assert told[0] == "fitting the columns: none are stored"
    assert told[1].startswith("memory of a worker: about ")
    assert told[2].startswith("memory may not suffice: 1 worker of about ")
