"""What ends a training before its last step, and what a checkpoint between validations carries over a restart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows
from model.bundle.bundle import Bundle
from model.errors import ConfigError
from pipelines.config import EarlyStoppingConfig
from pipelines.train.stopping import Clock, EarlyStopping, Rules


@pytest.fixture
def bundle(make_bundle: Any) -> Bundle:
    made: Bundle = make_bundle("classification", "multiple_value", dropout_keep_probabilities=[0.9, 0.8, 0.7])
    return made


@pytest.fixture
def rows(bundle: Bundle, make_table: Callable[..., Any]) -> EncodedRows:
    return encode_rows(make_table(rows=20), bundle.columns, bundle.label)


@pytest.fixture
def validation(bundle: Bundle, make_table: Callable[..., Any]) -> EncodedRows:
    return encode_rows(make_table(rows=12, seed=7), bundle.columns, bundle.label)


def take(values: list[float], **settings: Any) -> list[str | None]:
    stopping = EarlyStopping(EarlyStoppingConfig(**settings))
    reasons = []
    for step, value in enumerate(values, 1):
        stopping.take(step, {"validation_loss": value, "validation_accuracy": value})
        reasons.append(stopping.reason)
    return reasons


def test_patience_counts_evaluations_in_a_row_without_an_improvement() -> None:
    reasons = take([3.0, 2.0, 2.5, 1.0, 1.5, 1.0], patience=2)
    assert reasons[:5] == [None] * 5
    assert reasons[5] == (
        "early stopping: validation_loss has not got better in 2 evaluations; the best was 1 at step 4"
    )


def test_an_improvement_must_exceed_min_delta() -> None:
    reasons = take([1.0, 0.95, 0.91], patience=2, min_delta=0.1)
    assert reasons[2] == (
        "early stopping: validation_loss has not got better by more than 0.1 in 2 evaluations; the best was 1 at step 1"
    )
    assert take([1.0, 0.95, 0.89], patience=2, min_delta=0.1) == [None] * 3


@pytest.mark.parametrize(("mode", "stops"), [("auto", False), ("max", False), ("min", True)])
def test_accuracy_is_to_be_raised_unless_the_mode_says_otherwise(mode: str, stops: bool) -> None:
    reasons = take([0.5, 0.6, 0.7], patience=2, metric="validation_accuracy", mode=mode)
    assert (reasons[2] is not None) == stops


def test_a_metric_that_is_no_number_is_no_improvement() -> None:
    assert take([math.nan, math.nan, 1.0], patience=3) == [None] * 3
    assert take([1.0, math.nan, math.inf], patience=2)[2] is not None


SETTINGS = {
    "steps": 60,
    "learning_rate": 0.3,
    "evaluate_every_steps": 2,
    "early_stopping": {"patience": 3, "min_delta": 0.01},
}


def test_training_ends_when_validation_stops_getting_better(
    bundle: Bundle, rows: EncodedRows, validation: EncodedRows, train_in_memory: Any
) -> None:
    trained = train_in_memory(bundle, rows, validation=validation, **SETTINGS)
    assert trained.last.step < 60
    assert trained.last.last
    assert trained.last.ended.startswith("early stopping: validation_loss has not got better by more than 0.01 in 3")
    losses = [report.metrics["validation_loss"] for report in trained.reports]
    assert min(losses[-3:]) > min(losses) - 0.01
    assert [report.last for report in trained.reports[:-1]] == [False] * (len(losses) - 1)


def test_the_speed_of_each_stretch_is_told_but_of_the_first_step(
    bundle: Bundle, rows: EncodedRows, train_in_memory: Any
) -> None:
    trained = train_in_memory(bundle, rows, steps=4, evaluate_every_steps=1)
    speeds = [report.metrics.get("steps_per_second") for report in trained.reports]
    assert speeds[0] is None
    assert len(speeds) == 4
    assert all(speed is not None and speed > 0 for speed in speeds[1:])


@pytest.mark.parametrize("world", [2, 3])
def test_workers_stop_where_one_worker_stops(
    bundle: Bundle, rows: EncodedRows, validation: EncodedRows, train_in_memory: Any, world: int
) -> None:
    alone = train_in_memory(bundle, rows, validation=validation, **SETTINGS)
    together = train_in_memory(bundle, rows, validation=validation, world=world, **SETTINGS)
    assert together.last.step == alone.last.step


def test_a_resumed_training_stops_where_the_whole_one_stops(
    bundle: Bundle, rows: EncodedRows, validation: EncodedRows, train_in_memory: Any
) -> None:
    settings = {**SETTINGS, "checkpoint_every_steps": 1}
    whole = train_in_memory(bundle, rows, validation=validation, **settings)
    for made in [*whole.checkpoints, *whole.reports[:-1]]:
        resumed = train_in_memory(bundle, rows, validation=validation, resume=made, **settings)
        assert (resumed.last.step, resumed.last.ended) == (whole.last.step, whole.last.ended)
        assert resumed.last.bundle.fingerprint == whole.last.bundle.fingerprint
        expected = [report.metrics for report in whole.reports if report.step > made.step]
        for metrics, told in zip(expected, (report.metrics for report in resumed.reports), strict=True):
            timeless = {name: value for name, value in metrics.items() if name != "steps_per_second"}
            assert {name: told[name] for name in timeless} == timeless
    again = train_in_memory(bundle, rows, validation=validation, resume=whole.last, **settings)
    assert again.reports == []


def test_a_stopped_training_goes_on_with_more_patience(
    bundle: Bundle, rows: EncodedRows, validation: EncodedRows, train_in_memory: Any
) -> None:
    stopped = train_in_memory(bundle, rows, validation=validation, **SETTINGS)
    further = {**SETTINGS, "early_stopping": {"patience": 5, "min_delta": 0.01}}
    resumed = train_in_memory(bundle, rows, validation=validation, resume=stopped.last, **further)
    straight = train_in_memory(bundle, rows, validation=validation, **further)
    assert resumed.last.step == straight.last.step > stopped.last.step
    assert resumed.last.bundle.fingerprint == straight.last.bundle.fingerprint


def test_a_metric_that_there_is_not_is_refused_before_training(
    bundle: Bundle, rows: EncodedRows, validation: EncodedRows, train_in_memory: Any
) -> None:
    with pytest.raises(ConfigError) as raised:
        train_in_memory(bundle, rows, validation=validation, early_stopping={"metric": "validation_acuracy"})
    assert str(raised.value).startswith("train.early_stopping.metric must be one of train_loss, validation_loss, ")
    assert str(raised.value).endswith(", but is validation_acuracy; did you mean validation_accuracy?")
    with pytest.raises(ConfigError) as raised:
        train_in_memory(bundle, rows, early_stopping={})
    assert str(raised.value) == (
        "train.early_stopping.metric must be one of train_loss, but is validation_loss (there are no validation rows)"
    )


# The clock ------------------------------------------------------------------------------------------------------


def test_training_ends_with_a_checkpoint_after_the_first_step_beyond_its_time(
    bundle: Bundle, rows: EncodedRows, train_in_memory: Any
) -> None:
    settings = {"steps": 10**6, "evaluate_every_steps": 10**6}
    ended = train_in_memory(bundle, rows, max_minutes=0.5 / 60, **settings)
    assert [report.step for report in ended.reports] == [ended.last.step]
    assert ended.last.ended == "time budget: train.max_minutes 0.00833333 are over"
    seconds = ended.last.training.numbers["rules"]["seconds"]
    assert 0.5 <= seconds < 20
    assert train_in_memory(bundle, rows, max_minutes=0.5 / 60, resume=ended.last, **settings).reports == []
    together = train_in_memory(bundle, rows, max_minutes=0.5 / 60, world=2, **settings)
    assert [report.step for report in together.reports] == [together.last.step]
    resumed = train_in_memory(bundle, rows, steps=ended.last.step + 3, max_minutes=5.0, resume=ended.last)
    straight = train_in_memory(bundle, rows, steps=ended.last.step + 3)
    assert resumed.last.bundle.fingerprint == straight.last.bundle.fingerprint


def test_checkpoints_come_by_steps_and_by_minutes_between_validations(
    bundle: Bundle, rows: EncodedRows, train_in_memory: Any
) -> None:
    by_steps = train_in_memory(bundle, rows, steps=12, evaluate_every_steps=6, checkpoint_every_steps=4)
    assert [each.step for each in by_steps.checkpoints] == [4, 8]
    assert [each.step for each in by_steps.reports] == [6, 12]
    assert [each.last for each in by_steps.checkpoints] == [False, False]
    by_time = train_in_memory(bundle, rows, steps=40, evaluate_every_steps=40, checkpoint_every_minutes=1e-6, world=2)
    assert [each.step for each in by_time.checkpoints] == list(range(1, 40))


def test_the_clock_counts_what_earlier_processes_have_trained() -> None:
    assert not Clock(1.0, None, 59.0).is_over
    assert Clock(1.0, None, 60.0).is_over
    assert Rules(None, (1.0, None), {"seconds": 61.0, "early_stopping": None}).reason() == (
        "time budget: train.max_minutes 1 are over"
    )


def test_only_rank_0_has_a_vote() -> None:
    rules = Rules(None, (1.0, 1e-9), {"seconds": 61.0, "early_stopping": None})
    assert rules.vote(0) == (1.0, 1.0)
    assert rules.vote(1) == (0.0, 0.0)
