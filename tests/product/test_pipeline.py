"""The pipeline on tiny data through real Ray: scan, train, resume, evaluate, predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.batches.encode import encoded_bytes
from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import load_bundle
from model.errors import ConfigError, DataError, TrainingError
from model.scoring.metrics import results, table_metrics
from model.scoring.scorer import Scorer
from pipelines.config import RunConfig, run_config
from pipelines.evaluate import evaluate
from pipelines.ingest import batches as batching
from pipelines.ingest import scan as ingest
from pipelines.ingest.batches import batches
from pipelines.ingest.fitted_data import load_fitted
from pipelines.ingest.read_task import RowReader
from pipelines.predict.run import predict
from pipelines.train import loop
from pipelines.train.job import Job, Report, plans
from pipelines.train.run import train
from tune.trial import direct_batches

pytestmark = pytest.mark.usefixtures("local_ray")

MODEL = {
    "problem_type": "classification",
    "prediction_type": "multiple_value",
    "label": "y",
    "weight": "w",
    "cell_type": "lstm",
    "num_units": [6],
    "dropout_keep_probabilities": [0.9, 0.8],
    "predict_probabilities": True,
    "columns": {
        "sequence": [
            {"type": "numeric", "name": "x", "normalizer": "zscore"},
            {"type": "embedding", "dimension": 3, "source": {"type": "vocabulary", "name": "tags"}},
        ],
        "context": [{"type": "one_hot", "source": {"type": "vocabulary", "name": "country"}}],
    },
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, make_table: Callable[..., pa.Table]) -> Path:
    """Three files of uneven row groups, one of them with a single row, in a path with a space."""
    directory = tmp_path_factory.mktemp("some data")
    for number, (rows, group) in enumerate([(40, 30), (1, 1), (60, 7)]):
        table = make_table(rows=rows, seed=number)
        keys = pa.array([f"entity {number}-{row // 2}" for row in range(rows)])
        table = table.set_column(table.column_names.index("key"), "key", keys)
        pq.write_table(table, directory / f"{number}.parquet", row_group_size=group)
    return directory


@pytest.fixture
def make_run(data: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """make_run(name, **train): a small run over `data` that splits validation rows off by `key`."""

    def make(name: str = "run", *, workers: int = 1, path: Path = data, **train: Any) -> RunConfig:
        settings = {"steps": 12, "batch_sequences": 8, "optimizer": "Adam", "learning_rate": 0.01, **train}
        return run_config(
            {
                "name": name,
                "output": str(tmp_path / "runs"),
                "data": {"train": str(path), "key": "key", "validation_fraction": 0.2},
                "model": MODEL,
                "train": settings,
                "resources": {"workers": workers},
            },
            where="run.yaml",
        )

    return make


def test_two_workers_train_what_one_worker_trains(make_run: Callable[..., RunConfig]) -> None:
    one, two = train(make_run("one")), train(make_run("two", workers=2))
    first, second = load_bundle(one.bundle).tensors, load_bundle(two.bundle).tensors
    for name, weights in first.items():
        assert (weights - second[name]).norm() <= 2e-5 * max(weights.norm(), 1), name
    assert one.metrics["validation_loss"] == pytest.approx(two.metrics["validation_loss"], rel=1e-5)


def test_a_resumed_run_ends_as_one_that_never_stopped(make_run: Callable[..., RunConfig]) -> None:
    whole = train(make_run("whole", steps=20, evaluate_every_steps=5))
    train(make_run("halves", steps=10, evaluate_every_steps=5))
    halves = train(make_run("halves", steps=20, evaluate_every_steps=5), resume=True)
    assert halves.fingerprint == whole.fingerprint
    lines = Path(halves.directory, "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20]


@pytest.mark.slow
def test_ray_datas_tasks_feed_a_worker_with_what_a_loop_of_our_own_reads(
    make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    """More than what is small, in a worker of Ray Train: a thousand numbers a step."""
    table = make_table(lengths=[200] * 24)
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(1).normal(size=24 * 200 * 1000)), 1000)
    table = table.append_column("wide", pa.ListArray.from_arrays(pa.array(range(0, 4801, 200), pa.int32()), wide))
    pq.write_table(table, tmp_path / "wide.parquet", row_group_size=7)
    columns = {"sequence": [{"type": "numeric", "name": "wide"}]}
    config = run_config(
        {
            "output": str(tmp_path / "runs"),
            "data": {"train": str(tmp_path / "wide.parquet"), "validation_fraction": 0},
            "model": {**MODEL, "columns": columns, "num_units": [3]},
            "train": {"steps": 7, "evaluate_every_steps": 7, "batch_sequences": 8, "learning_rate": 0.01},
        },
        where="run.yaml",
    )
    result = train(config)
    prepared = load_fitted(config.directory)
    assert encoded_bytes(prepared.train, prepared.columns) > batching.SMALL_BYTES
    reports: list[Report] = []
    plan, _ = plans(config, prepared.train, None)
    read = partial(direct_batches, RowReader(prepared.columns, prepared.label))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: with more, sums round otherwise
    try:
        loop.run(Job(config, prepared.columns, prepared.label, plan, None, read, reports.append))
    finally:
        torch.set_num_threads(threads)
    assert reports[-1].bundle.fingerprint == result.fingerprint


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(make_run: Callable[..., RunConfig]) -> None:
    config = make_run(steps=2)
    train(config)
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --resume, or choose another name="):
        train(config)
    with pytest.raises(
        ConfigError,
        match=r"may change only its budget, stopping rules, .*, but train\.learning_rate was 0\.01, but is 0\.5; set",
    ):
        train(make_run(steps=2, learning_rate=0.5), resume=True)
    with pytest.raises(ConfigError, match="there is no run to resume; start it without --resume"):
        train(make_run("other"), resume=True)


def test_progress_and_reports_reach_the_caller(make_run: Callable[..., RunConfig]) -> None:
    progress: list[Any] = []
    reports: list[dict[str, float]] = []
    scans: list[tuple[int, int]] = []
    train(
        make_run(steps=6, evaluate_every_steps=3),
        on_progress=progress.append,
        on_report=reports.append,
        on_scan=lambda done, total: scans.append((done, total)),
    )
    assert progress[-1].step == progress[-1].total_steps == 6
    assert [report["step"] for report in reports] == [3, 6]
    assert scans[-1] == (12, 12)


def test_a_loss_that_is_no_number_ends_training_with_one_line(make_run: Callable[..., RunConfig]) -> None:
    config = make_run(optimizer="SGD", learning_rate=1e38, gradient_clipping_norm=None)
    with pytest.raises(TrainingError, match=r"must be a finite number, but is (nan|inf) at step"):
        train(config)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_computed_once_an_epoch_on_any_number_of_workers(
    make_run: Callable[..., RunConfig], world: int
) -> None:
    prepared = ingest.fit_data(make_run())
    plan = Plan(prepared.train, batch_sequences=8, seed=3, window_batches=2)
    reader = RowReader(prepared.columns, prepared.label)
    steps = 2 * plan.steps_per_epoch
    ranks = [list(batches(plan, reader, rank, world, 0, steps)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {steps}
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            parts = [rank[step] for rank in ranks]
            rows = [int(row) for part in parts if part is not None for row in part.rows_B]
            assert len(rows) == plan.batch_rows(step)
            seen += rows
        selected = prepared.train.selected
        assert selected is not None
        assert sorted(seen) == np.flatnonzero(selected).tolist()


def test_kept_rows_give_the_batches_that_reading_again_gives(
    make_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = ingest.fit_data(make_run())
    plan = Plan(prepared.train, batch_sequences=8, seed=3, window_batches=2)
    reader = RowReader(prepared.columns, prepared.label)
    kept = list(batches(plan, reader, 1, 2, 3, 2 * plan.steps_per_epoch))
    monkeypatch.setattr(batching, "KEPT_BYTES", 0)
    check_same(kept, list(batches(plan, reader, 1, 2, 3, 2 * plan.steps_per_epoch)))
    monkeypatch.setattr(batching, "SMALL_BYTES", -1)  # through Ray Data
    check_same(kept, list(batches(plan, reader, 1, 2, 3, 2 * plan.steps_per_epoch)))


def test_only_what_is_small_as_a_whole_is_read_without_a_pipeline(make_run: Callable[..., RunConfig]) -> None:
    prepared = ingest.fit_data(make_run())
    reader, index = RowReader(prepared.columns, prepared.label), prepared.train
    first = index.fragments[0]

    def is_read_here(index: DataIndex) -> bool:
        return batching.reading(index, reader, ()).func is map

    assert is_read_here(index)
    many = tuple(replace(first, row_group=number, rows=1) for number in range(65))
    assert not is_read_here(DataIndex(many, np.full(65, 3)))
    large, few = np.full(1000, 1000), np.arange(1000) == 5  # a split of a single row
    assert not is_read_here(DataIndex((replace(first, rows=1000),), large, few))


def check_same(ours: list[Any], theirs: list[Any]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one.rows_B, other.rows_B)
            assert one.labels is not None
            assert other.labels is not None
            assert torch.equal(one.labels, other.labels)
            for key, values in one.sequence.items():
                assert torch.equal(values, other.sequence[key])


def test_an_entity_never_straddles_the_validation_split(make_run: Callable[..., RunConfig], data: Path) -> None:
    prepared = ingest.fit_data(make_run())
    keys = np.array(pa.concat_tables(pq.read_table(file) for file in sorted(data.iterdir()))["key"].to_pylist())
    assert prepared.validation is not None
    assert prepared.train.selected is not None
    training, validating = set(keys[prepared.train.selected]), set(keys[prepared.validation.selected])
    assert training
    assert validating
    assert not training & validating


def test_evaluation_over_processes_equals_one_pass_in_memory(
    make_bundle: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    from model.bundle.bundle import save_bundle

    bundle = make_bundle()
    save_bundle(tmp_path / "bundle", bundle)
    table = pa.concat_tables(pq.read_table(file) for file in sorted(data.iterdir()))
    expected = results(bundle.label, table_metrics(bundle.network(), bundle.columns, bundle.label, table))
    assert evaluate(str(tmp_path / "bundle"), str(data)) == pytest.approx(expected, rel=1e-6)


def test_prediction_keeps_rows_keys_and_states_and_goes_on_where_it_was(
    make_bundle: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    from model.bundle.bundle import save_bundle

    bundle = make_bundle(predict_probabilities=True)
    save_bundle(tmp_path / "bundle", bundle)
    output = tmp_path / "out"
    first = predict(str(tmp_path / "bundle"), str(data), str(output))
    assert (first.rows, first.files, first.skipped_files) == (101, 12, 0)
    files = sorted(output.glob("*.parquet"))
    written = pa.concat_tables(pq.read_table(file) for file in files)
    table = pa.concat_tables(pq.read_table(file) for file in sorted(data.iterdir()))
    assert written["key"].to_pylist() == table["key"].to_pylist()
    assert written["row"].to_pylist() == table["row"].to_pylist()
    scored = Scorer(bundle).score(table)
    assert written["classes"].to_pylist() == scored.predictions["classes"].to_pylist()
    state = np.stack(written["rnn_cell_state_1"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(state, scored.state[1], atol=1e-6)

    files[0].unlink()
    again = predict(str(tmp_path / "bundle"), str(data), str(output))
    assert again.skipped_files == 11
    assert pa.concat_tables(pq.read_table(file) for file in files).equals(written)
    with pytest.raises(ConfigError, match="holds predictions or states made with another choice of columns"):
        predict(str(tmp_path / "bundle"), str(data), str(output), keep=["key"])


@pytest.mark.usefixtures("large")
def test_bad_rows_are_named_by_file_and_row_from_training_and_prediction(
    make_run: Callable[..., RunConfig],
    make_table: Callable[..., pa.Table],
    make_bundle: Callable[..., Any],
    tmp_path: Path,
) -> None:
    from model.bundle.bundle import save_bundle

    table = make_table(lengths=[3] * 12)
    column = table["x"].to_pylist()
    column[9] = [1.0, float("nan"), 2.0]
    table = table.set_column(table.schema.get_field_index("x"), "x", pa.array(column))
    bad = tmp_path / "bad"
    bad.mkdir()
    pq.write_table(table, bad / "a.parquet", row_group_size=5)
    where = rf"{bad / 'a.parquet'}, row 9, column 'x': must be finite numbers, but an entry is NaN"
    save_bundle(tmp_path / "bundle", make_bundle())
    with pytest.raises(DataError, match=where):
        predict(str(tmp_path / "bundle"), str(bad), str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"a\.parquet, row 9, column 'x'"):
        train(make_run(path=bad, steps=4))
