"""The plan: every row once an epoch, exact batches, ranks that share them, and a tail that resuming does not change."""

from __future__ import annotations

import dataclasses
import itertools
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.batches.plan import DataIndex, Plan
from model.tables.fragments import Fragment

LAYOUTS = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any) | st.sampled_from(
    [[30, 10], [1], [0, 1, 0], [200], [0, 0, 7], [1] * 40, [63, 1, 64, 1, 65]]
)


def index_of(sizes: list[int], seed: int = 0, select: float | None = None) -> DataIndex:
    random = np.random.default_rng(seed)
    fragments = tuple(Fragment(f"file {i // 3}", i % 3, rows) for i, rows in enumerate(sizes))
    selected = None if select is None else random.random(sum(sizes)) < select
    return DataIndex(fragments, random.integers(0, 20, sum(sizes)), selected)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    select = draw(st.sampled_from([None, None, 0.5, 0.05]))
    index = index_of(draw(LAYOUTS), draw(st.integers(0, 9)), select)
    rows, padded_steps = draw(st.integers(1, 12)), draw(st.integers(1, 120))
    by_rows = draw(st.booleans())
    return Plan(
        index,
        batch_sequences=rows if by_rows else None,
        batch_padded_steps=None if by_rows else padded_steps,
        seed=draw(st.integers(0, 99)),
        window_batches=draw(st.integers(1, 4)),
        shuffle=draw(st.booleans()),
    )


def rows_of(plan: Plan, start: int, stop: int, rank: int = 0, world: int = 1) -> list[int]:
    return [row for piece in plan.pieces(rank, world, start, stop) for row in piece.rows.tolist()]


def batches_of(plan: Plan, start: int, stop: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    rows = iter(rows_of(plan, start, stop, rank, world))
    batches = [list(islice(rows, plan.rank_rows(step, rank, world))) for step in range(start, stop)]
    assert list(rows) == []
    return batches


def steps_of(plan: Plan, epoch: int) -> tuple[int, int]:
    """First step of an epoch and of the next."""
    return (plan.first_step(epoch), plan.first_step(epoch + 1)) if plan.index.rows else (0, 0)


def every_row(index: DataIndex) -> list[int]:
    rows = np.arange(len(index.lengths))
    return rows.tolist() if index.selected is None else rows[index.selected].tolist()


@given(plans())
def test_an_epoch_holds_every_row_exactly_once(plan: Plan) -> None:
    for epoch in range(3):
        assert sorted(rows_of(plan, *steps_of(plan, epoch))) == every_row(plan.index)


@given(plans().filter(lambda plan: plan.batch_sequences is not None))
def test_every_batch_is_full_but_the_last_of_an_epoch(plan: Plan) -> None:
    assert plan.batch_sequences is not None
    steps = plan.steps_per_epoch
    sizes = [len(batch) for batch in batches_of(plan, 0, 2 * steps)]
    last = plan.index.rows - (steps - 1) * plan.batch_sequences if steps else 0
    assert sizes == ([plan.batch_sequences] * (steps - 1) + [last]) * (2 if steps else 0)
    assert sizes == [plan.batch_rows(step) for step in range(2 * steps)]


@given(plans(), st.integers(1, 15))
def test_ranks_share_each_batch_without_gap_or_overlap(plan: Plan, world: int) -> None:
    steps = steps_of(plan, 1)[1]
    shares = [batches_of(plan, 0, steps, rank, world) for rank in range(world)]
    for step, batch in enumerate(batches_of(plan, 0, steps)):
        assert [row for share in shares for row in share[step]] == batch
        sizes = [len(share[step]) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@given(plans(), st.integers(0, 60), st.integers(1, 3))
def test_resuming_at_any_step_gives_the_same_tail(plan: Plan, start: int, world: int) -> None:
    stop = steps_of(plan, 2)[1]
    start = min(start, stop)
    for rank in range(world):
        assert batches_of(plan, start, stop, rank, world) == batches_of(plan, 0, stop, rank, world)[start:]


@given(plans())
def test_a_piece_holds_rows_of_its_window_alone(plan: Plan) -> None:
    for piece in plan.pieces(0, 1, 0, steps_of(plan, 1)[1]):
        fragments = plan.windows(piece.epoch)[piece.window]
        allowed = set(np.concatenate([plan.index.fragment_rows(fragment) for fragment in fragments]).tolist())
        assert set(piece.rows.tolist()) == allowed


@given(plans())
def test_windows_hold_every_fragment_once_and_enough_rows(plan: Plan) -> None:
    windows = plan.windows(0)
    held = [fragment for window in windows for fragment in window]
    assert len(set(held)) == len(held)
    assert {i for i, count in enumerate(plan.index.counts) if count} <= set(held)
    if len(windows) > 1 and plan.batch_sequences is not None:
        least = plan.window_batches * plan.batch_sequences
        assert min(int(plan.index.counts[window].sum()) for window in windows) >= least
    if len(windows) > 1 and plan.batch_padded_steps is not None:
        least = plan.window_batches * plan.batch_padded_steps
        rows = [np.concatenate([plan.index.fragment_rows(fragment) for fragment in window]) for window in windows]
        assert min(int(np.maximum(plan.index.lengths[each], 1).sum()) for each in rows) >= least


# Batches of a bounded number of padded steps ----------------------------------------------------------------------


def by_steps(index: DataIndex, padded_steps: int, **settings: Any) -> Plan:
    return Plan(index, None, batch_padded_steps=padded_steps, **settings)


@given(plans().filter(lambda plan: plan.batch_padded_steps is not None and plan.index.rows > 0))
def test_no_batch_takes_more_padded_steps_than_its_bound_but_a_longer_row_alone(plan: Plan) -> None:
    assert plan.batch_padded_steps is not None
    for batch in batches_of(plan, 0, steps_of(plan, 1)[1]):
        longest = max(int(plan.index.lengths[batch].max()), 1)
        assert len(batch) == 1 or len(batch) * longest <= plan.batch_padded_steps


def test_batches_are_as_full_as_their_bound_allows() -> None:
    """Rows of one length: each batch but one of a window holds as many as fit."""
    plan = by_steps(dataclasses.replace(index_of([103]), lengths=np.full(103, 10)), 99, seed=1)
    assert sorted(len(batch) for batch in batches_of(plan, *steps_of(plan, 0))) == [4] + [9] * 11


def test_rows_without_steps_are_bounded_as_if_they_had_one() -> None:
    plan = by_steps(dataclasses.replace(index_of([10]), lengths=np.zeros(10, int)), 4, seed=1)
    assert sorted(len(batch) for batch in batches_of(plan, *steps_of(plan, 0))) == [2, 4, 4]


@given(plans().filter(lambda plan: plan.index.rows > 0), st.integers(0, 400))
def test_a_step_has_one_place_and_epochs_are_whole_where_one_begins(plan: Plan, step: int) -> None:
    epoch, batch = plan.place(step)
    assert plan.first_step(epoch) + batch == step
    assert 0 <= batch < plan.steps_of(epoch)
    assert plan.first_step(epoch + 1) == plan.first_step(epoch) + plan.steps_of(epoch)
    assert plan.epochs_at(step) == pytest.approx(epoch + batch / plan.steps_of(epoch), abs=1e-12)
    assert plan.epochs_at(plan.first_step(epoch)) == epoch


def test_epochs_cut_by_steps_may_differ_in_their_number_of_batches() -> None:
    plan = by_steps(lognormal(3000, 100), 2000, seed=2, window_batches=8)
    counts = [plan.steps_of(epoch) for epoch in range(8)]
    assert len(set(counts)) > 1
    assert [plan.first_step(epoch) for epoch in range(9)] == [sum(counts[:epoch]) for epoch in range(9)]
    fresh = dataclasses.replace(plan)  # knows no epoch yet: resumes in the middle of one
    assert batches_of(fresh, sum(counts[:5]) + 7, sum(counts[:6])) == batches_of(plan, *steps_of(plan, 5))[7:]


@pytest.mark.parametrize("seed", range(5))
def test_batches_cut_by_steps_pad_little_and_use_their_bound(seed: int) -> None:
    plan = by_steps(lognormal(20_000, 1000, seed), 64 * 84, seed=seed)
    for epoch in range(2):
        lengths = [plan.index.lengths[batch] for batch in batches_of(plan, *steps_of(plan, epoch))]
        padded = [len(batch) * int(batch.max()) for batch in lengths]
        assert sum(padded) <= 1.08 * plan.index.steps
        assert sum(padded) >= 0.95 * plan.steps_of(epoch) * 64 * 84


def test_the_same_seed_gives_the_same_plan_and_another_seed_or_epoch_another() -> None:
    plan = Plan(index_of([50, 50, 50]), 8, seed=1, window_batches=2)
    steps = plan.steps_per_epoch
    first = rows_of(plan, 0, steps)
    assert rows_of(dataclasses.replace(plan), 0, steps) == first
    assert rows_of(dataclasses.replace(plan, seed=2), 0, steps) != first
    assert rows_of(plan, steps, 2 * steps) != first
    # Nor the same batches in another order, though rows without others of their length often meet again.
    sets = [{frozenset(batch) for batch in batches_of(plan, e * steps, (e + 1) * steps)} for e in (0, 1)]
    assert len(sets[0] & sets[1]) < steps / 2


@pytest.mark.parametrize("lengths", ["apart", "near"])
@pytest.mark.parametrize("by_rows", [True, False])
def test_batches_of_one_window_differ_between_epochs_though_lengths_decide_the_order(
    lengths: str, by_rows: bool
) -> None:
    """Without some slack in the order, lengths that all differ would put the same rows together for ever."""
    held = {
        "apart": np.arange(1, 301) ** 2,
        "near": np.random.default_rng(1).permutation(np.arange(100, 400)),
    }[lengths]
    index = dataclasses.replace(index_of([300]), lengths=held)
    bound = int(held.mean() * 10)
    plan = Plan(index, 10, seed=3) if by_rows else by_steps(index, bound, seed=3)
    sets = [{frozenset(batch) for batch in batches_of(plan, *steps_of(plan, epoch))} for epoch in range(6)]
    for one, other in itertools.pairwise(sets):
        assert len(one & other) <= 0.75 * len(one)


def test_without_shuffling_every_epoch_is_the_same_and_fragments_keep_their_order() -> None:
    plan = Plan(index_of([5, 5, 5, 5]), 5, seed=1, window_batches=2, shuffle=False)
    first = rows_of(plan, 0, 4)
    assert rows_of(dataclasses.replace(plan, seed=7), 4, 8) == first
    assert set(first[:10]) == set(range(10))


def test_a_plan_is_what_it_was() -> None:
    """A resumed job may run another version: a change of the plan is a change of format."""
    plan = by_steps(index_of([7, 5, 4]), 30, seed=42, window_batches=2)
    assert batches_of(plan, 0, 7) == [[11], [2, 4, 12], [14], [0], [13, 15], [1, 10], [9]]
    plan = Plan(index_of([7, 5, 4]), 4, seed=42, window_batches=2)
    assert batches_of(plan, 0, 5) == [[5, 6, 7, 8], [1, 10, 13, 15], [2, 3, 4, 12], [0, 9, 11, 14], [2, 3, 4, 12]]


def test_no_selected_rows_give_no_pieces() -> None:
    index = dataclasses.replace(index_of([3, 4]), selected=np.zeros(7, bool))
    for plan in (Plan(index, 2), by_steps(index, 5)):
        assert (plan.steps_per_epoch, index.rows, index.steps) == (0, 0, 0)
        assert rows_of(plan, 0, 1) == []


def test_an_index_counts_rows_and_steps_of_its_selection() -> None:
    whole = index_of([3, 0, 4])
    half = dataclasses.replace(whole, selected=np.array([True, False, True, False, False, True, True]))
    assert (whole.rows, whole.steps, whole.counts.tolist()) == (7, int(whole.lengths.sum()), [3, 0, 4])
    assert (half.rows, half.steps) == (4, int(whole.lengths[[0, 2, 5, 6]].sum()))
    assert [half.fragment_rows(fragment).tolist() for fragment in range(3)] == [[0, 2], [], [5, 6]]
    assert half.counts.tolist() == [2, 0, 2]


# What the plan costs --------------------------------------------------------------------------------------------


def lognormal(rows: int, row_group: int, seed: int = 0) -> DataIndex:
    lengths = np.exp(np.random.default_rng(seed).normal(np.log(60), 0.8, rows)).clip(1, 512).astype(int)
    sizes = [min(row_group, rows - start) for start in range(0, rows, row_group)]
    return DataIndex(tuple(Fragment("f", i, size) for i, size in enumerate(sizes)), lengths)


@pytest.mark.parametrize("row_group", [100, 1000, 30_000])
@pytest.mark.parametrize("rows", [4096, 4500, 8200, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_batches_of_like_lengths_pad_little(rows: int, row_group: int, seed: int) -> None:
    plan = Plan(lognormal(rows, row_group, seed), batch_sequences=64, seed=seed)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        lengths = [plan.index.lengths[batch] for batch in batches_of(plan, steps.start, steps.stop)]
        padded = sum(len(batch) * batch.max() for batch in lengths)
        assert padded <= 1.08 * plan.index.steps


@pytest.mark.parametrize(("world", "most"), [(1, 1.0), (2, 1.5), (4, 2.1), (8, 3.2)])
def test_a_rank_reads_little_beyond_its_rows(world: int, most: float) -> None:
    """Rows of the row groups that all ranks open, per row of the data: `world` if each opened them all."""
    plan = Plan(lognormal(20_000, 100), batch_sequences=64, seed=1)
    opened = [
        {row // 100 for row in piece.rows.tolist()}
        for rank in range(world)
        for piece in plan.pieces(rank, world, 0, plan.steps_per_epoch)
    ]
    assert sum(len(groups) for groups in opened) * 100 / plan.index.rows <= most
