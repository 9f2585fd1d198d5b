"""Gradient accumulation: the weighted mean over several batches, no mean of their means, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model.batches.collate import collate
from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows
from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import Bundle
from model.tables.fragments import Fragment
from model.training.config import OptimizerConfig, TrainConfig
from model.training.trainer import Trainer
from model.training.truncation import TruncatedBatch
from pipelines.train.steps import Position, step_groups, steps, stop_batch

EXACT = {"dtype": "float64", "weight": "w"}
DROPOUT = {**EXACT, "dropout_keep_probabilities": [0.7, 0.8, 0.6]}
RULES = ("SGD", "Momentum", "Adagrad", "Adam", "RMSProp", "Ftrl")


@pytest.fixture
def rows_of(make_table: Callable[..., Any]) -> Callable[..., EncodedRows]:
    def make(bundle: Bundle, rows: int = 23) -> EncodedRows:
        label = bundle.label
        table = make_table(label.problem_type.value, label.prediction_type.value, rows=rows)
        return encode_rows(table, bundle.columns, label)

    return make


def trainer_of(bundle: Bundle, rule: str) -> Trainer:
    momentum = 0.9 if rule == "Momentum" else None
    config = OptimizerConfig(optimizer=rule, learning_rate=0.05, momentum=momentum, gradient_clipping_norm=0.05)
    return Trainer(bundle.network().train(), bundle.label, config, seed=9)


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("rule", RULES)
def test_batches_of_uneven_weight_train_what_one_batch_of_all_rows_trains(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], rule: str, prediction: str
) -> None:
    bundle = make_bundle("classification", prediction, "lstm", **EXACT)
    rows = rows_of(bundle)
    together, parts = trainer_of(bundle, rule), trainer_of(bundle, rule)
    cuts = [np.arange(0, 2), np.arange(2, 3), np.arange(3, 23)]
    for _ in range(3):
        whole = together.step(collate(rows))
        summed = parts.step_over([TruncatedBatch(i, collate(rows.take(cut))) for i, cut in enumerate(cuts)], 0)
        assert summed == pytest.approx(whole, rel=1e-10)
    assert whole.gradient_norm > 0.05, "clipping must act for its order to matter"
    torch.testing.assert_close(parts.flat.weights, together.flat.weights, rtol=0, atol=1e-12)
    assert parts.step_count == 3


@pytest.mark.parametrize("unroll", [None, 3])
@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
def test_workers_accumulate_what_one_worker_accumulates(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], train_in_memory: Any, prediction: str, unroll: int | None
) -> None:
    bundle = make_bundle("classification", prediction, "lstm", **DROPOUT)
    rows = rows_of(bundle)
    settings = {"epochs": 2, "accumulate_batches": 2, "unroll_steps": unroll, "evaluate_every_steps": 1}
    alone, together = (train_in_memory(bundle, rows, world=world, **settings) for world in (1, 3))
    assert together.losses == pytest.approx(alone.losses, rel=1e-10, nan_ok=True)
    for name, weight in alone.last.bundle.tensors.items():
        assert (together.last.bundle.tensors[name] - weight).abs().max() <= 1e-12 * weight.abs().max(), name


@pytest.mark.parametrize("unroll", [None, 3])
def test_accumulated_training_goes_on_from_every_step_to_the_bit(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], train_in_memory: Any, unroll: int | None
) -> None:
    bundle = make_bundle("classification", "multiple_value", dropout_keep_probabilities=[0.7, 0.8, 0.6])
    rows = rows_of(bundle)
    settings = {"epochs": 2, "accumulate_batches": 4, "unroll_steps": unroll, "checkpoint_every_steps": 1}
    whole = train_in_memory(bundle, rows, **settings)
    assert len(whole.checkpoints) >= 2
    for checkpoint in [*whole.checkpoints, whole.reports[0]]:
        resumed = train_in_memory(bundle, rows, resume=checkpoint, **settings)
        assert resumed.last.bundle.fingerprint == whole.last.bundle.fingerprint
        assert resumed.last.metrics["train_loss"] == whole.last.metrics["train_loss"]


def plan_of(lengths: list[int], **settings: Any) -> Plan:
    index = DataIndex((Fragment("a", 0, len(lengths)),), np.array(lengths, np.int32))
    return Plan(index, **{"batch_sequences": 4, "seed": 1, **settings})


def test_a_group_never_crosses_the_end_of_an_epoch() -> None:
    plan, settings = plan_of([3] * 18), TrainConfig(epochs=2, batch_sequences=4, accumulate_batches=2)
    made = list(step_groups(plan, iter([None] * 10), settings, 0, 10))
    assert [(group.start, group.stop, group.ends_epoch) for group in made] == [
        (0, 2, False), (2, 4, False), (4, 5, True), (5, 7, False), (7, 9, False), (9, 10, True),
    ]  # fmt: skip
    assert settings.total_steps(plan.first_step) == 6


@pytest.mark.parametrize("batches", [{"batch_sequences": 4}, {"batch_sequences": None, "batch_padded_steps": 30}])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 100])
@pytest.mark.parametrize("unroll", [None, 4])
def test_a_budget_of_steps_is_met_from_any_place(batches: dict[str, Any], accumulate: int, unroll: int | None) -> None:
    random = np.random.default_rng(0)
    plan = plan_of(random.integers(0, 20, 50).tolist(), **batches)
    settings = TrainConfig(steps=25, accumulate_batches=accumulate, unroll_steps=unroll, **batches)
    place, numbers = Position(), []
    while place.step < 25:  # stopped and resumed after each seventh step
        stop = stop_batch(plan, settings, place)
        for count, step in enumerate(steps(plan, iter([None] * (stop - place.batches)), settings, place, stop), 1):
            numbers.append((step.number, step.group.start, step.segment))
            place, last = step.place, step.last
            if count == 7:
                break
    assert last
    stop = stop_batch(plan, settings, Position())
    straight = list(steps(plan, iter([None] * stop), settings, Position(), stop))
    assert numbers == [(step.number, step.group.start, step.segment) for step in straight]
    assert [step.number for step in straight] == list(range(1, 26))
    assert [step.last for step in straight] == [False] * 24 + [True]
