"""Sweeps on a real Ray Tune over tiny data: what is kept, what is stopped, what fails, and what goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import tune.trial
from model.batches.collate import SequenceBatch
from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import load_bundle
from model.bundle.run_directory import resolve_bundle
from model.errors import ConfigError, TrainingError
from model.scoring.metrics import results, table_metrics
from model.tables.fragments import Fragment
from pipelines.config import RunConfig, load_run, run_config
from pipelines.ingest import batches as batching
from pipelines.ingest.fitted_data import load_fitted
from pipelines.ingest.read_task import RowReader
from pipelines.tracking.run_list import list_runs
from pipelines.train import loop
from pipelines.train.job import Job, Report, plans
from tune.config import tune_config
from tune.points import trial_run
from tune.report import table
from tune.sweep import SweepResult, sweep
from tune.trial import direct_batches
from tune.tuner import asha

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_table: Callable[..., Any]) -> Path:
    """Training rows in two files of three row groups each, and validation rows; the label is a function of `kind`."""
    directory = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("train-0", "train-1", "valid")):
        table = make_table(rows=24, seed=number)
        steps = table.column("kind").combine_chunks()
        codes = pc.index_in(steps.flatten(), pa.array(["view", "cart", "buy", "leave"]))
        labels = pa.ListArray.from_arrays(steps.offsets, pc.min_element_wise(codes, 2))
        table = table.set_column(table.column_names.index("y"), "y", labels)
        pq.write_table(table, directory / f"{name}.parquet", row_group_size=8)
    return directory


SPACE = {"num_units": [2, [6]], "train.learning_rate": [0.5, 1e-6]}


@pytest.fixture(scope="module")
def make_run(data: Path, make_config: Callable[..., Any]) -> Callable[..., RunConfig]:
    """make_run(output, **tune): a sweep of four trials, one after the other; at 1e-6 nothing is learned."""

    def make(output: Path, *, name: str = "sweep", **changes: Any) -> RunConfig:
        tuning = {"space": SPACE, "search": "grid", "steps": 8, "evaluate_every_steps": 2, "max_concurrent_trials": 1}
        return run_config(
            {
                "name": name,
                "output": str(output),
                "data": {"train": str(data / "train-*.parquet"), "validation": str(data / "valid.parquet")},
                "model": make_config().model_dump(mode="json"),
                "train": {"batch_sequences": 6, "window_batches": 2, "optimizer": "Adagrad", "seed": 5},
                "tune": {**tuning, "asha": {"reduction_factor": 2}, **changes},
            },
            where="test",
        )

    return make


@pytest.fixture(scope="module")
def swept(
    local_ray: None, make_run: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, SweepResult]:
    """A sweep that has come to its end."""
    config = make_run(tmp_path_factory.mktemp("swept"))
    return config, sweep(config)


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_every_trial_is_told_with_its_settings_and_what_became_of_it(swept: tuple[RunConfig, SweepResult]) -> None:
    _, result = swept
    assert [(trial.name, trial.settings, trial.status, trial.steps) for trial in result.trials] == [
        ("000", {"model.num_units": 2, "train.learning_rate": 0.5}, "finished", 8),
        ("001", {"model.num_units": 2, "train.learning_rate": 1e-6}, "stopped early", 2),
        ("002", {"model.num_units": [6], "train.learning_rate": 0.5}, "finished", 8),
        ("003", {"model.num_units": [6], "train.learning_rate": 1e-6}, "stopped early", 2),
    ]


def test_the_best_bundle_is_the_best_report_of_the_best_trial(swept: tuple[RunConfig, SweepResult]) -> None:
    config, result = swept
    bundle = load_bundle(resolve_bundle(config.directory))
    reports = lines_of(Path(config.directory) / "metrics.jsonl")
    best = min(reports, key=lambda report: report["validation_loss"])
    assert (best["trial"], best["step"]) == (result.best.name, result.best.step) == ("002", 4)
    assert result.best.steps == 8, "the last report is not the best one, so that the two cannot be mixed up"
    assert bundle.metrics["validation_loss"] == result.metrics["validation_loss"] == best["validation_loss"]
    assert bundle.fingerprint == result.fingerprint
    assert bundle.config.num_units == (6,)
    assert bundle.provenance["trial"] == {"model.num_units": [6], "train.learning_rate": 0.5}


def test_the_best_bundle_scores_the_validation_rows_as_the_trial_said(
    swept: tuple[RunConfig, SweepResult], data: Path
) -> None:
    config, result = swept
    bundle = load_bundle(resolve_bundle(config.directory))
    state = table_metrics(bundle.network(), bundle.columns, bundle.label, pq.read_table(data / "valid.parquet"))
    loss = results(bundle.label, state)["loss"]
    assert loss == pytest.approx(result.metrics["validation_loss"], rel=1e-6)


def test_a_trial_is_what_the_training_loop_makes_of_its_settings(swept: tuple[RunConfig, SweepResult]) -> None:
    config, result = swept
    prepared = load_fitted(config.directory)
    run = trial_run(config, tune_config(config), result.best.settings)
    reports: list[Report] = []
    train, validation = plans(run, prepared.train, prepared.validation)
    batches = partial(direct_batches, RowReader(prepared.columns, prepared.label))
    loop.run(Job(run, prepared.columns, prepared.label, train, validation, batches, reports.append))
    assert {report.step: report.bundle.fingerprint for report in reports}[result.best.step] == result.fingerprint


def test_the_best_settings_are_written_as_a_run(swept: tuple[RunConfig, SweepResult]) -> None:
    config, _ = swept
    run = load_run(Path(config.directory) / "best.yaml")
    assert (run.name, run.tune, run.model.num_units, run.train.learning_rate) == ("sweep-best", None, (6,), 0.5)
    assert run.train.steps == config.train.steps, "the run's own budget, not the trials'"


def test_trials_and_reports_are_kept_as_lines(swept: tuple[RunConfig, SweepResult]) -> None:
    config, result = swept
    lines = lines_of(Path(config.directory) / "trials.jsonl")
    assert [(line["name"], line["status"], line["metrics"]["validation_loss"]) for line in lines] == [
        (trial.name, trial.status, trial.metrics["validation_loss"]) for trial in result.trials
    ]
    reported = [(line["trial"], line["step"]) for line in lines_of(Path(config.directory) / "metrics.jsonl")]
    steps = {"000": (2, 4, 6, 8), "001": (2,), "002": (2, 4, 6, 8), "003": (2,)}
    assert reported == [(name, step) for name, made in steps.items() for step in made]


def test_the_table_has_every_trial_the_best_first(swept: tuple[RunConfig, SweepResult]) -> None:
    _, result = swept
    text = table(result)
    rows = [line.split() for line in text.splitlines()[2:6]]
    assert [row[:3] for row in rows] == [
        ["*", "002", "[6]"],
        ["000", "2", "0.5"],
        ["001", "2", "1e-06"],
        ["003", "[6]", "1e-06"],
    ]
    assert "stopped early" in text
    assert "learning_rate" in text.splitlines()[-2]


def test_a_fresh_sweep_into_a_used_directory_is_refused(swept: tuple[RunConfig, SweepResult]) -> None:
    config, _ = swept
    with pytest.raises(ConfigError) as caught:
        sweep(config)
    assert str(caught.value) == (
        f"{config.directory} holds a run or a sweep already; go on with a sweep by --resume, or choose another name=…"
    )


def test_a_stopped_sweep_says_what_is_kept_and_goes_on_to_the_same_results(
    swept: tuple[RunConfig, SweepResult], make_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config, said = make_run(tmp_path), []

    def listed() -> tuple[str, str, bool]:
        (line,) = list_runs(str(tmp_path))
        return line.kind, line.status, line.resumable

    def stop(line: str) -> None:
        said.append(line)
        if line.startswith("trial 002: step 6"):
            assert listed() == ("sweep", "running", False)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep(config, on_report=stop)
    assert said[-1] == (
        f"stopped: 2 of 4 trials are done, the best bundle so far is {resolve_bundle(config.directory)}; go on with "
        f"the others from their latest reports with --resume ({config.directory})"
    )
    statuses = [line["status"] for line in lines_of(tmp_path / "sweep" / "trials.jsonl")]
    assert statuses == ["finished", "stopped early", "unfinished", "not started"]
    assert listed() == ("sweep", "interrupted", True)

    went_on: list[str] = []
    result = sweep(config, resume=True, on_report=went_on.append)
    _, whole = swept
    assert [line.split(":")[0] for line in went_on[:2]] == ["trial 002 goes on", "trial 002"]
    assert went_on[1].startswith("trial 002: step 6, "), "from its checkpoint, not from its start"
    assert result.fingerprint == whole.fingerprint
    assert listed() == ("sweep", "finished", False)
    # ASHA still knows the trials of the first session: it stops the last one, as it did in one go.
    assert [(t.name, t.status, t.metrics["validation_loss"]) for t in result.trials] == [
        (t.name, t.status, t.metrics["validation_loss"]) for t in whole.trials
    ]


def test_a_failed_trial_is_told_with_its_reason_and_spoils_nothing(
    make_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    space = {"train.learning_rate": [1e38, 0.5], "train.optimizer": ["SGD"], "train.gradient_clipping_norm": [None]}
    result = sweep(make_run(tmp_path, space=space, steps=4))
    assert [trial.status for trial in result.trials] == ["failed", "finished"]
    assert result.best.name == "001"
    assert result.trials[0].reason is not None
    assert result.trials[0].reason.startswith("the loss must be a finite number, but is ")
    assert result.trials[0].reason in table(result, width=300)


def test_when_all_trials_fail_the_first_mistake_is_raised_as_itself(
    make_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    space = {"train.learning_rate": [1e38], "train.optimizer": ["SGD"], "train.gradient_clipping_norm": [None]}
    config = make_run(tmp_path, space=space, steps=4)
    with pytest.raises(TrainingError, match="the loss must be a finite number"):
        sweep(config)
    assert [line["status"] for line in lines_of(tmp_path / "sweep" / "trials.jsonl")] == ["failed"]


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20], ids=["read each epoch", "kept"])
@pytest.mark.parametrize("shuffle", [True, False], ids=["train", "validate"])
def test_reading_in_the_trial_gives_the_batches_of_ray_data(
    swept: tuple[RunConfig, SweepResult], monkeypatch: pytest.MonkeyPatch, *, shuffle: bool, kept_bytes: int
) -> None:
    monkeypatch.setattr(tune.trial, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(batching, "KEPT_BYTES", 0)
    config, _ = swept
    prepared = load_fitted(config.directory)
    plan = Plan(prepared.train, 5, seed=3, window_batches=2, shuffle=shuffle)
    reader = RowReader(prepared.columns, prepared.label)
    stop = 2 * plan.steps_per_epoch
    ours, theirs = direct_batches(reader, plan, 3, stop), batching.batches(plan, reader, 0, 1, 3, stop)
    pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == stop - 3
    for one, other in pairs:
        assert one is not None
        assert other is not None
        assert_equal(one, other)


def assert_equal(one: SequenceBatch, other: SequenceBatch) -> None:
    assert set(vars(one)) == set(vars(other))
    for name, value in vars(one).items():
        assert same(value, getattr(other, name)), name


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("train", "tuning", "rungs"),
    [
        ({"steps": 90, "evaluate_every_steps": 10}, {}, ("step", [10, 30, 90])),
        ({"steps": 90, "evaluate_every_steps": 10}, {"asha": {"grace_steps": 20}}, ("step", [20, 60])),
        ({"epochs": 9}, {"asha": {"grace_reports": 2}}, ("epoch", [2, 6])),
        ({"epochs": 9, "evaluate_every_steps": 3}, {}, ("epoch", [0.5, 1.5, 4.5])),
        ({"epochs": 9}, {"asha": {"grace_steps": 7}}, ("step", [7, 21])),
        ({"epochs": 1}, {}, None),
        # Segments of 5 steps: three for the longest rows, two batches an epoch; one for those of the other four.
        ({"epochs": 9, "unroll_steps": 5, "evaluate_every_steps": 5}, {}, ("epoch", [0.5, 1.5, 4.5])),
        ({"epochs": 9, "unroll_steps": 5}, {"asha": {"grace_steps": 30}}, ("step", [30, 90])),
        ({"steps": 90, "unroll_steps": 5}, {"asha": {"grace_reports": 2}}, ("step", [20, 60])),
        ({"epochs": 9, "accumulate_batches": 2}, {"asha": {"grace_reports": 2}}, ("epoch", [2, 6])),
        ({"epochs": 9, "accumulate_batches": 2}, {"asha": {"grace_steps": 7}}, ("step", [7, 21])),
        ({"epochs": 9, "evaluate_every_steps": 3, "accumulate_batches": 2}, {}, ("epoch", [1, 3, 9])),
        ({"steps": 90, "evaluate_every_steps": 10}, {"asha": None}, None),
    ],
)
def test_asha_decides_by_the_clock_of_the_budget(
    make_run: Callable[..., RunConfig],
    tmp_path: Path,
    train: dict[str, Any],
    tuning: dict[str, Any],
    rungs: tuple[str, list[float]] | None,
) -> None:
    config = make_run(tmp_path, **({"steps": None, "evaluate_every_steps": None, "asha": {}} | tuning))
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    lengths = np.repeat([13, 5], [12, 24])  # six batches of six rows, each of rows of one length
    index = DataIndex((Fragment("rows", 0, 36),), lengths)
    scheduler = asha(config, tune_config(config), index)
    if rungs is None:
        assert scheduler is None
        return
    clock, milestones = rungs
    assert scheduler._time_attr == clock
    assert sorted(rung for rung, _ in scheduler._brackets[0]._rungs) == pytest.approx(milestones)
    # What is reported at a milestone must not miss it by its last bit.
    assert all(
        rung <= milestone for (rung, _), milestone in zip(scheduler._brackets[0]._rungs, milestones[::-1], strict=True)
    )


@pytest.mark.slow
def test_optuna_chooses_the_settings(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed: pip install dynamic-rnn[search]")
    space = {
        "num_units": [2, [6]],
        "train.learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.5},
        "train.batch_sequences": {"type": "randint", "low": 5, "high": 6},
    }
    config = make_run(tmp_path, space=space, search="optuna", trials=3, asha=None)
    result = sweep(config)
    assert [trial.status for trial in result.trials] == ["finished"] * 3
    assert {str(trial.settings["model.num_units"]) for trial in result.trials} <= {"2", "[6]"}
    assert {trial.settings["train.batch_sequences"] for trial in result.trials} <= {5, 6}
    assert load_bundle(result.bundle).fingerprint == result.fingerprint


@pytest.mark.slow
def test_trials_of_two_workers_train_what_one_worker_trains(
    swept: tuple[RunConfig, SweepResult], make_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    _, whole = swept
    result = sweep(make_run(tmp_path, workers_per_trial=2, space={"num_units": [[6]], "train.learning_rate": [0.5]}))
    assert result.best.step == whole.best.step
    assert result.metrics["validation_loss"] == pytest.approx(whole.metrics["validation_loss"], rel=1e-5)
    assert load_bundle(result.bundle).fingerprint == result.fingerprint
