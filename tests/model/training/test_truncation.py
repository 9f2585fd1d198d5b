"""Truncated back-propagation: segments train what a hand-written loop with `detach` trains, on any number of ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model.batches.collate import SequenceBatch, collate
from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows
from model.bundle.bundle import Bundle
from model.network import heads
from model.network.dropout import DropoutKey
from model.training.config import OptimizerConfig
from model.training.trainer import Trainer
from model.training.truncation import TruncatedBatch, segment_count

CELLS = ("basic_rnn", "lstm", "gru", "gru_reset_before")
PREDICTIONS = ("single_value", "multiple_value")
DROPOUT = {"dtype": "float64", "dropout_keep_probabilities": [0.7, 0.8, 0.6], "weight": "w"}
LENGTHS = (7, 0, 3, 11, 4, 1, 9, 12, 5, 8, 2)


@pytest.fixture
def rows_of(make_table: Callable[..., Any]) -> Callable[..., EncodedRows]:
    """rows_of(bundle, lengths): encoded rows for a bundle."""

    def make(bundle: Bundle, lengths: Any = LENGTHS) -> EncodedRows:
        label = bundle.label
        table = make_table(label.problem_type.value, label.prediction_type.value, lengths=lengths)
        return encode_rows(table, bundle.columns, label)

    return make


def trainer_of(bundle: Bundle, optimizer: str = "SGD") -> Trainer:
    config = OptimizerConfig(optimizer=optimizer, learning_rate=0.05, gradient_clipping_norm=1.0)
    return Trainer(bundle.network().train(), bundle.label, config, seed=9)


def by_hand(trainer: Trainer, batch: SequenceBatch, unroll_steps: int, position: int) -> list[float]:
    """The loop this must equal, a step of the cells at a time: padded rows and all, states detached at each border."""
    network, steps = trainer.network, batch.padded_length
    states = network.initial_state(batch)
    losses = []
    for first in range(0, max(steps, 1), unroll_steps):
        trainer.flat.buffer.zero_()
        stop = min(first + unroll_steps, steps)
        part = dataclasses.replace(
            batch, sequence={name: tensor[:, first:stop] for name, tensor in batch.sequence.items()}
        )
        total, weight = torch.zeros((), dtype=network.dtype), 0.0
        x = network.inputs(part, network.dtype)
        after = []
        for layer, cell in enumerate(network.cells):
            x = drop_by_hand(trainer, x, layer, position, batch, first)
            state, outputs = states[layer], []
            for t in range(stop - first):
                y, state = cell.step(x[:, t], state)
                outputs.append(y)
            x = torch.stack(outputs, 1)
            after.append(state)
        states = tuple(detached(state) for state in after)
        logits = network.projection(drop_by_hand(trainer, x, len(network.cells), position, batch, first))
        assert batch.labels is not None
        assert batch.weights is not None
        for b, length in enumerate(batch.lengths_B.tolist()):
            for t in range(first, stop):
                if trainer.label.per_step and t < length:
                    label, w = batch.labels[b, t], batch.weights[b, t]
                elif not trainer.label.per_step and t == length - 1:
                    label, w = batch.labels[b], batch.weights[b]
                else:
                    continue
                total = total + w * heads.loss(trainer.label, logits[b, t - first][None], label[None])[0]
                weight += float(w)
        if weight:
            total.backward()
            losses.append(float(total.detach()) / weight)
            trainer.flat.gradient.div_(weight)
            trainer.optimizer.step(trainer.optimizer.config.rate(0))
    return losses


def drop_by_hand(trainer: Trainer, x: torch.Tensor, site: int, position: int, batch: SequenceBatch, first: int) -> Any:
    from model.network.dropout import drop

    keep = trainer.network.config.keep_probabilities[site]
    whole = x.new_zeros(x.shape[0], first + x.shape[1], x.shape[2])
    whole[:, first:] = x
    return drop(whole, keep, site, DropoutKey(trainer.seed, position, batch.rows_B))[:, first:]


def detached(state: Any) -> Any:
    return state.detach() if isinstance(state, torch.Tensor) else tuple(detached(part) for part in state)


@pytest.mark.parametrize("initial", ["zero", "in the data"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_segments_train_what_a_loop_with_detached_states_trains(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], cell: str, prediction: str, initial: str
) -> None:
    """States in the data are where a row begins, in its first segment alone."""
    bundle = make_bundle("classification", prediction, cell, **DROPOUT)
    rows = rows_of(bundle)
    if initial == "in the data":
        random, spec = np.random.default_rng(1), bundle.network().state_spec()
        states = tuple(random.normal(size=(len(rows), part.numel)).astype(np.float32) for part in spec.components)
        rows = dataclasses.replace(rows, state=states)
    batch = collate(rows).to(torch.device("cpu"), torch.float64)
    ours, theirs = trainer_of(bundle), trainer_of(bundle)
    part = TruncatedBatch(5, batch, 4)
    results = [ours.step_over([part], number) for number in range(part.segments)]
    expected = by_hand(theirs, batch, 4, 5)
    assert part.segments == 3
    assert [result.loss for result in results] == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(ours.flat.weights, theirs.flat.weights, rtol=0, atol=1e-13)
    assert ours.step_count == 3


def test_gradients_reach_back_no_further_than_a_segment(make_bundle: Any, rows_of: Callable[..., EncodedRows]) -> None:
    bundle = make_bundle("classification", "single_value", "gru", dtype="float64")
    whole, cut = (collate(rows_of(bundle, [6])).to(torch.device("cpu"), torch.float64) for _ in range(2))
    moved = []
    for batch, unroll in ((whole, None), (cut, 3)):
        batch.sequence["numeric:x"].requires_grad_(True)
        trainer, part = trainer_of(bundle), TruncatedBatch(1, batch, unroll)
        for number in range(part.segments):
            trainer.step_over([part], number)
        gradient = batch.sequence["numeric:x"].grad
        assert gradient is not None
        moved.append(gradient[0, :, 0] != 0)
    assert moved[0].tolist() == [True] * 6
    assert moved[1].tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("unroll", [12, 100])
def test_segments_as_long_as_the_sequences_change_no_bit(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], train_in_memory: Any, prediction: str, unroll: int
) -> None:
    bundle = make_bundle("classification", prediction, "lstm", dropout_keep_probabilities=[0.7, 0.8, 0.6])
    rows = rows_of(bundle)
    plain, cut = (train_in_memory(bundle, rows, epochs=2, unroll_steps=steps) for steps in (None, unroll))
    assert cut.last.bundle.fingerprint == plain.last.bundle.fingerprint
    assert cut.losses == plain.losses


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("world", [2, 4, 7])  # seven workers share four rows: some have none
def test_workers_train_the_segments_that_one_worker_trains(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], train_in_memory: Any, prediction: str, world: int
) -> None:
    bundle = make_bundle("classification", prediction, "lstm", **DROPOUT)
    rows = rows_of(bundle)
    settings = {"epochs": 3, "unroll_steps": 3, "evaluate_every_steps": 1}
    alone = train_in_memory(bundle, rows, **settings)
    together = train_in_memory(bundle, rows, world=world, **settings)
    assert len(alone.reports) > 3 * 3, "unrolling makes more steps than there are batches"
    assert together.losses == pytest.approx(alone.losses, rel=1e-10, nan_ok=True)
    for name, weight in alone.last.bundle.tensors.items():
        assert (together.last.bundle.tensors[name] - weight).abs().max() <= 1e-12 * weight.abs().max(), name


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_training_goes_on_from_within_a_batch_to_the_bit(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], train_in_memory: Any, cell: str, prediction: str
) -> None:
    bundle = make_bundle("classification", prediction, cell, dropout_keep_probabilities=[0.7, 0.8, 0.6])
    rows = rows_of(bundle)
    settings = {"epochs": 1, "unroll_steps": 3, "checkpoint_every_steps": 1}
    whole = train_in_memory(bundle, rows, **settings)
    assert len({checkpoint.training.numbers["place"]["segment"] for checkpoint in whole.checkpoints}) >= 3
    for checkpoint in whole.checkpoints:
        resumed = train_in_memory(bundle, rows, resume=checkpoint, **settings)
        assert resumed.last.bundle.fingerprint == whole.last.bundle.fingerprint
        assert resumed.losses == whole.losses


def test_another_number_of_workers_goes_on_from_within_a_batch(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], train_in_memory: Any
) -> None:
    bundle = make_bundle("classification", "multiple_value", "lstm", **DROPOUT)
    rows = rows_of(bundle)
    settings = {"epochs": 1, "unroll_steps": 3, "checkpoint_every_steps": 1}
    whole = train_in_memory(bundle, rows, world=3, **settings)
    within = [each for each in whole.checkpoints if each.training.numbers["place"]["segment"]]
    assert len(within) >= 3
    for checkpoint in within:
        resumed = train_in_memory(bundle, rows, resume=checkpoint, world=2, **settings)
        for name, weight in whole.last.bundle.tensors.items():
            assert (resumed.last.bundle.tensors[name] - weight).abs().max() <= 1e-12 * weight.abs().max(), name


def test_steps_count_segments_and_end_within_a_batch(
    make_bundle: Any, rows_of: Callable[..., EncodedRows], train_in_memory: Any
) -> None:
    bundle = make_bundle("classification", "multiple_value")
    rows = rows_of(bundle, [10] * 8)
    ended = train_in_memory(bundle, rows, steps=7, unroll_steps=3, evaluate_every_steps=2)
    assert [report.step for report in ended.reports] == [2, 4, 6, 7]
    assert [report.metrics["epoch"] for report in ended.reports] == [0.25, 0.5, 0.75, 0.875]
    assert ended.last.last
    assert ended.last.training.numbers["optimizer_steps"] == 7
    further = train_in_memory(bundle, rows, steps=9, unroll_steps=3, resume=ended.last)
    straight = train_in_memory(bundle, rows, steps=9, unroll_steps=3)
    assert further.last.bundle.fingerprint == straight.last.bundle.fingerprint


def test_a_segment_in_which_no_row_ends_makes_no_optimizer_step(make_bundle: Any, rows_of: Any) -> None:
    bundle = make_bundle("classification", "single_value", "lstm")
    trainer = trainer_of(bundle, "Adam")
    before = trainer.flat.weights.clone()
    part = TruncatedBatch(1, collate(rows_of(bundle, [9, 8, 7])), 3)
    first = [trainer.step_over([part], number).weight for number in range(2)]
    assert first == [0.0, 0.0]
    assert torch.equal(trainer.flat.weights, before)
    assert trainer.step_over([part], 2).weight == 3.0
    assert trainer.step_count == 1


def test_memory_is_bounded_by_the_segment_not_by_the_sequence(make_bundle: Any, rows_of: Any) -> None:
    bundle = make_bundle("classification", "multiple_value", "gru_reset_before")

    def kept_bytes(steps: int, unroll: int | None) -> int:
        held: list[int] = []
        part, trainer = TruncatedBatch(1, collate(rows_of(bundle, [steps] * 4)), unroll), trainer_of(bundle)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            held[-1] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for number in range(part.segments):
                held.append(0)
                trainer.step_over([part], number)
        return max(held)

    assert kept_bytes(80, 10) <= 1.05 * kept_bytes(10, 10)
    assert kept_bytes(80, None) > 6 * kept_bytes(10, None)


@pytest.mark.parametrize(
    ("longest", "unroll", "segments"), [(0, 4, 1), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, None, 1)]
)
def test_segments_cover_the_longest_row(longest: int, unroll: int | None, segments: int) -> None:
    assert segment_count(longest, unroll) == segments


def test_every_real_step_is_in_one_segment(make_bundle: Any, rows_of: Any) -> None:
    bundle = make_bundle("classification", "multiple_value")
    batch = collate(rows_of(bundle))
    part = TruncatedBatch(1, batch, 4)
    seen = np.zeros((len(LENGTHS), 12), int)
    for number in range(part.segments):
        segment = part.segment(number)
        assert segment is not None
        assert (segment.real_steps, segment.padded_length * len(segment)) == part.sizes(number)
        for row, length in zip(segment.rows_B.tolist(), segment.lengths_B.tolist(), strict=True):
            seen[row, 4 * number : 4 * number + length] += 1
        part.carry(number, [torch.zeros(len(segment), 2)])
    assert (seen == (np.arange(12) < np.array(LENGTHS)[:, None])).all()
