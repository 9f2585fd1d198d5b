"""N workers train what one trains, in processes of their own that sum over gloo, in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from model.bundle.bundle import Bundle, save_bundle

ROOT = Path(__file__).resolve().parents[3]
WORLDS = (1, 2, 4)

# 23 rows in batches of 3: of four ranks one never has a row of a batch, and of the last batch two have none.
COMMON = {"steps": 20, "batch_sequences": 3, "evaluate_every_steps": 1, "gradient_clipping_norm": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "adam, accumulated": {"optimizer": "Adam", "learning_rate": 0.01, "accumulate_batches": 2},
    "momentum, by padded steps": {
        "optimizer": "Momentum",
        "momentum": 0.9,
        "learning_rate": 0.05,
        "batch_sequences": None,
        "batch_padded_steps": 24,
    },
    "adagrad, unrolled": {"optimizer": "Adagrad", "learning_rate": 0.1, "unroll_steps": 3},
}

RANK = """
import json, sys
from datetime import timedelta
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from model.batches.collate import collate
from model.bundle.bundle import load_bundle
from model.batches.plan import DataIndex
from model.tables.fragments import Fragment
from model.batches.encode import encode_rows
from pipelines.config import run_config
from pipelines.train import loop
from pipelines.train.job import Job, plans

here, rank, cases = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{here}/store", rank=rank, world_size=4, timeout=timedelta(seconds=300)
)
groups = {world: dist.new_group(list(range(world))) for world in (2, 4)}
bundle = load_bundle(here / "bundle")
rows = encode_rows(pq.read_table(here / "rows.parquet"), bundle.columns, bundle.label)
index = DataIndex((Fragment("memory", 0, len(rows)),), rows.lengths_B)


def trained(train, world):
    run = run_config(
        {"data": {"train": "memory"}, "model": bundle.config.model_dump(mode="json"), "train": train}, where="run"
    )
    plan, _ = plans(run, index, None)

    def batches(plan, start, stop):
        for step in range(start, stop):
            mine = [piece.rows for piece in plan.pieces(rank, world, step, step + 1)]
            yield collate(rows.take(np.concatenate(mine))) if mine else None

    reports = []
    loop.run(
        Job(
            config=run, columns=bundle.columns, label=bundle.label, train=plan, validation=None, batches=batches,
            report=reports.append, start=bundle, rank=rank, world=world,
            reduce=None if world == 1 else lambda buffer: dist.all_reduce(buffer, group=groups[world]),
        )
    )
    losses = torch.tensor([report.metrics["train_loss"] for report in reports], dtype=torch.float64)
    return {"losses": losses, **reports[-1].bundle.tensors}


for number, train in enumerate(cases):
    for world in (1, 2, 4):
        if rank < world:
            save_file(trained(train, world), here / f"{number}-{world}-{rank}.safetensors")
"""


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Bundle], make_table: Callable[..., pa.Table]
) -> Path:
    """Every case on one, two and four processes; each rank's losses and weights."""
    here = tmp_path_factory.mktemp("ranks")
    bundle = make_bundle(
        "classification", "multiple_value", "lstm",
        dtype="float64", weight="w", dropout_keep_probabilities=[0.7, 0.8, 0.6],
    )  # fmt: skip
    save_bundle(here / "bundle", bundle)
    pq.write_table(make_table("classification", "multiple_value", rows=23), here / "rows.parquet")
    cases = json.dumps([COMMON | case for case in CASES.values()])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(here), str(rank), cases],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    for rank in ranks:
        _, told = rank.communicate(timeout=500)
        assert rank.returncode == 0, told
    return here


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_processes_train_what_one_process_trains(trained: Path, case: str) -> None:
    """Losses and weights of twenty steps: ragged rows with weights, dropout, clipping, embeddings of rare rows."""
    number = list(CASES).index(case)
    before = load_file(trained / "bundle" / "model.safetensors")
    alone = load_file(trained / f"{number}-1-0.safetensors")
    assert len(alone["losses"]) == 20
    for world in WORLDS[1:]:
        for rank in range(world):
            together = load_file(trained / f"{number}-{world}-{rank}.safetensors")
            assert together.keys() == alone.keys()
            for name, expected in alone.items():
                # A batch of empty rows alone has no loss.
                atol = 1e-12 * float(expected.nan_to_num().abs().max())
                torch.testing.assert_close(together[name], expected, rtol=0, atol=atol, equal_nan=True)
    for name, weights in before.items():
        assert not alone[name].equal(weights), f"{name} was not trained"
