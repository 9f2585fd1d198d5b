"""One training step: N workers train what one worker trains, and what must not move does not move."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows
from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import Bundle
from model.errors import ConfigError, TrainingError
from model.network import heads
from model.settings import build
from model.tables.fragments import Fragment
from model.training.config import OptimizerConfig, TrainConfig
from model.training.trainer import StepResult, Trainer

RATES = {"SGD": 0.1, "Momentum": 0.05, "Adagrad": 0.1, "Adam": 0.01, "RMSProp": 0.01, "Ftrl": 0.1}
STEPS = 20


def optimizer_of(rule: str) -> OptimizerConfig:
    momentum = 0.9 if rule == "Momentum" else None
    return OptimizerConfig(optimizer=rule, learning_rate=RATES[rule], momentum=momentum, gradient_clipping_norm=1.0)


class Summing:
    """Adds buffers up over threads, in rank order, as the workers of a cluster do."""

    def __init__(self, world: int) -> None:
        self.barrier = Barrier(world, timeout=20)
        self.buffers: list[torch.Tensor] = [torch.empty(0)] * world

    def of_rank(self, rank: int) -> Any:
        def reduce(buffer: torch.Tensor) -> None:
            self.buffers[rank] = buffer.clone()
            self.barrier.wait()
            total = sum(self.buffers[1:], self.buffers[0].clone())
            self.barrier.wait()
            buffer.copy_(total)

        return reduce


def plan_of(rows: EncodedRows, batch_sequences: int) -> Plan:
    index = DataIndex((Fragment("a", 0, len(rows)),), rows.lengths_B)
    return Plan(index, batch_sequences, seed=3)


def trainer_of(bundle: Bundle, rule: str, reduce: Any = None) -> Trainer:
    return Trainer(bundle.network().train(), bundle.label, optimizer_of(rule), seed=9, reduce=reduce)


def train(bundle: Bundle, rule: str, rows: EncodedRows, world: int) -> tuple[dict[str, np.ndarray], list[StepResult]]:
    """Weights after STEPS steps on `world` workers that share each batch of 5 rows, and rank 0's results."""
    plan, summing = plan_of(rows, 5), Summing(world)

    def work(rank: int) -> tuple[dict[str, np.ndarray], list[StepResult]]:
        trainer = trainer_of(bundle, rule, summing.of_rank(rank))
        mine = np.concatenate([[], *(piece.rows for piece in plan.pieces(rank, world, 0, STEPS))]).astype(int)
        ends = np.cumsum([0, *(plan.rank_rows(step, rank, world) for step in range(STEPS))])
        results = []
        for start, stop in pairwise(ends):
            batch = collate(rows.take(mine[start:stop])).to(torch.device("cpu"), trainer.network.dtype)
            results.append(trainer.step(batch if stop > start else None))
        return {name: p.detach().numpy() for name, p in trainer.network.named_parameters()}, results

    with ThreadPoolExecutor(world) as pool:
        return next(iter(pool.map(work, range(world))))


def encoded(bundle: Bundle, table: Any) -> EncodedRows:
    return encode_rows(table, bundle.columns, bundle.label)


def assert_same_training(bundle: Bundle, rule: str, rows: EncodedRows, world: int) -> None:
    alone, results = train(bundle, rule, rows, 1)
    together, their_results = train(bundle, rule, rows, world)
    start = {name: tensor.numpy() for name, tensor in bundle.tensors.items()}
    for name, weight in alone.items():
        assert not np.array_equal(weight, start[name])
        assert np.abs(together[name] - weight).max() <= 1e-12 * np.abs(weight).max(), name
    for mine, theirs in zip(results, their_results, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-10)


DROPOUT = {"dtype": "float64", "dropout_keep_probabilities": [0.7, 0.8, 0.6], "weight": "w"}


@pytest.mark.parametrize("world", [2, 3, 7])  # 7 workers share 5 rows: two have none
@pytest.mark.parametrize("rule", RATES)
def test_workers_train_what_one_worker_trains(make_bundle: Any, make_table: Any, rule: str, world: int) -> None:
    bundle = make_bundle("classification", "multiple_value", "lstm", **DROPOUT)
    assert_same_training(bundle, rule, encoded(bundle, make_table(rows=23)), world)


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("problem", ["classification", "linear_regression"])
@pytest.mark.parametrize("cell", ["basic_rnn", "gru", "gru_reset_before"])
def test_every_cell_and_head_trains_alike_on_two_workers(
    make_bundle: Any, make_table: Any, cell: str, problem: str, prediction: str
) -> None:
    bundle = make_bundle(problem, prediction, cell, **DROPOUT)
    assert_same_training(bundle, "Adam", encoded(bundle, make_table(problem, prediction, rows=23)), 2)


def one_batch(bundle: Bundle, table: Any) -> SequenceBatch:
    return collate(encoded(bundle, table))


def test_the_loss_is_the_weighted_mean_before_the_update(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle(weight="w")
    batch, trainer = one_batch(bundle, make_table()), trainer_of(bundle, "SGD")
    with torch.no_grad():
        losses = heads.loss(bundle.label, trainer.network(batch).logits, batch.labels)
    expected = float((losses * batch.weights).sum() / batch.weights.sum())
    result = trainer.step(batch)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.weight == pytest.approx(float(batch.weights.sum()), rel=1e-6)
    assert trainer.step_count == 1


def test_training_learns(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle("classification", "single_value", "gru")
    batch, trainer = one_batch(bundle, make_table("classification", "single_value")), trainer_of(bundle, "Adam")
    losses = [trainer.step(batch).loss for _ in range(300)]
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize("rule", RATES)
def test_a_batch_of_weight_0_moves_nothing(make_bundle: Any, make_table: Any, rule: str) -> None:
    bundle = make_bundle("classification", "single_value", dropout_keep_probabilities=[0.5] * 3)
    trainer = trainer_of(bundle, rule)
    before = trainer.flat.weights.clone()
    for batch in (one_batch(bundle, make_table("classification", "single_value", lengths=[0, 0])), None):
        result = trainer.step(batch)
        assert result == pytest.approx((math.nan, 0.0, 0.0), nan_ok=True)
    assert torch.equal(trainer.flat.weights, before)
    assert trainer.step_count == 0


@pytest.mark.parametrize("rule", RATES)
def test_a_resumed_trainer_goes_on_bit_for_bit(make_bundle: Any, make_table: Any, rule: str) -> None:
    bundle = make_bundle(dropout_keep_probabilities=[0.5, 0.8, 0.7])
    batches = [one_batch(bundle, make_table(seed=seed)) for seed in range(6)]
    batches[1] = one_batch(bundle, make_table(lengths=[0]))  # makes no optimizer step, but takes a place in the plan
    whole, part, resumed = (trainer_of(bundle, rule) for _ in range(3))
    results = [whole.step(batch) for batch in batches]
    for batch in batches[:3]:
        part.step(batch)
    resumed.flat.weights.copy_(part.flat.weights)
    resumed.load_state(*part.state())
    assert [resumed.step(batch) for batch in batches[3:]] == results[3:]
    assert torch.equal(resumed.flat.weights, whole.flat.weights)
    assert (whole.position, whole.step_count) == (resumed.position, resumed.step_count) == (6, 5)


def test_masks_differ_from_batch_to_batch(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle(dropout_keep_probabilities=[0.5, 0.8, 0.7])
    batch, trainer = one_batch(bundle, make_table()), trainer_of(bundle, "SGD")
    first = trainer.step(batch).loss
    trainer.flat.weights.copy_(trainer_of(bundle, "SGD").flat.weights)
    assert trainer.step(batch).loss != first


def test_rows_of_weight_0_and_padding_leave_no_trace(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle(dtype="float64", weight="w")
    table = make_table(lengths=[3, 5, 2])
    table = table.set_column(table.column_names.index("w"), "w", [[1.0, 0.0, 2.0]])
    with_row = one_batch(bundle, table).to(torch.device("cpu"), torch.float64)
    without = collate(encoded(bundle, table).take(np.array([0, 2]))).to(torch.device("cpu"), torch.float64)
    first, second = trainer_of(bundle, "SGD"), trainer_of(bundle, "SGD")
    assert first.step(with_row) == pytest.approx(second.step(without), rel=1e-12)
    torch.testing.assert_close(first.flat.weights, second.flat.weights, rtol=1e-12, atol=1e-15)


def test_what_counts_as_looked_up_moves_under_ftrl(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle()
    batch = one_batch(bundle, make_table(lengths=[3]))
    key, name = "vocabulary:country", "inputs.context.0.weight"
    used = int(batch.context[key][0, 0])
    other = (used + 1) % 3
    for looked_up, moves in (({}, False), ({key: torch.tensor([[other, -1]])}, True)):
        trainer = trainer_of(bundle, "Ftrl")
        trainer.step(dataclasses.replace(batch, looked_up=looked_up))
        table = trainer.network.state_dict()[name]
        assert torch.equal(table[other], bundle.tensors[name][other]) == (not moves)
        assert not torch.equal(table[used], bundle.tensors[name][used])


def test_a_loss_that_is_no_number_is_told_and_moves_nothing(make_bundle: Any, make_table: Any) -> None:
    bundle = make_bundle()
    batch, trainer = one_batch(bundle, make_table(lengths=[3])), trainer_of(bundle, "Adam")
    before = trainer.flat.weights.clone()
    batch.sequence["numeric:x"][0, 1] = math.nan
    with pytest.raises(TrainingError) as raised:
        trainer.step(batch)
    assert str(raised.value) == (
        "the loss must be a finite number, but is nan at step 1; lower train.learning_rate, or look for extreme values "
        "in the data"
    )
    assert torch.equal(trainer.flat.weights, before)
    assert trainer.step_count == 0


@pytest.mark.parametrize(
    ("settings", "steps_per_epoch", "total"),
    [({}, 7, 7), ({"epochs": 3}, 7, 21), ({"steps": 5}, 7, 5), ({"steps": 50}, 7, 50)],
)
def test_training_is_as_long_as_its_steps_or_epochs(settings: dict[str, Any], steps_per_epoch: int, total: int) -> None:
    assert TrainConfig(**settings).total_steps(lambda epochs: epochs * steps_per_epoch) == total


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(ConfigError) as raised:
        build(TrainConfig, {"steps": 5, "epochs": 1}, where="run.yaml")
    assert str(raised.value) == "run.yaml: epochs and steps exclude each other; set one of them to null"
