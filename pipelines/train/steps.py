"""The plan's batches as steps: one a batch, one a segment of it (`unroll_steps`), one a group (`accumulate_batches`).

A step group is the batches that are computed together, segment by segment. Its steps are a pure function of the plan,
so all workers make the same number of them, also those whose own rows have ended. No group crosses an epoch's end.
Knows no Ray, no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from model.batches.collate import SequenceBatch
from model.batches.plan import Plan
from model.training.config import TrainConfig
from model.training.truncation import TruncatedBatch, segment_count


@dataclass(frozen=True)
class Position:
    """Where a training stands: steps made, batches of the plan that are over, segments made of the next group."""

    step: int = 0
    batches: int = 0
    segment: int = 0


@dataclass(frozen=True)
class StepGroup:
    """This worker's parts of global batches `start` … `start + len(parts) − 1` of the plan."""

    start: int
    parts: tuple[TruncatedBatch, ...]
    segments: int
    ends_epoch: bool

    @property
    def stop(self) -> int:
        """Batches of the plan that are over with this group."""
        return self.start + len(self.parts)


@dataclass(frozen=True)
class Step:
    """One segment of a group. `number` counts the run's steps from 1, `batches` what of the plan is over after it."""

    number: int
    group: StepGroup
    segment: int
    last: bool

    @property
    def ends_group(self) -> bool:
        """Whether no state is carried beyond this step."""
        return self.segment + 1 == self.group.segments

    @property
    def ends_epoch(self) -> bool:
        """Whether all rows of an epoch have been computed."""
        return self.ends_group and self.group.ends_epoch

    @property
    def batches(self) -> float:
        """Batches of the plan that are over after this step, with the fraction of those that are not."""
        return self.group.start + len(self.group.parts) * (self.segment + 1) / self.group.segments

    @property
    def place(self) -> Position:
        """From where to go on after this step."""
        if self.ends_group:
            return Position(self.number, self.group.stop)
        return Position(self.number, self.group.start, self.segment + 1)

    def sizes(self) -> tuple[int, int]:
        """(real steps, padded steps) that this worker computes."""
        sizes = [part.sizes(self.segment) for part in self.group.parts]
        return sum(real for real, _ in sizes), sum(padded for _, padded in sizes)


def steps(
    plan: Plan, batches: Iterator[SequenceBatch | None], settings: TrainConfig, place: Position, stop: int
) -> Iterator[Step]:
    """The steps from `place` to the budget's end; `batches` are this worker's from `place.batches` to `stop`."""
    number, segment = place.step, place.segment
    for step_group in step_groups(plan, batches, settings, place.batches, stop):
        for each in range(segment, step_group.segments):
            number += 1
            ends = step_group.stop == stop and each + 1 == step_group.segments if settings.steps is None else False
            yield Step(number, step_group, each, last=ends or number == settings.steps)
            if number == settings.steps:
                return
        segment = 0


def step_groups(
    plan: Plan, batches: Iterator[SequenceBatch | None], settings: TrainConfig, start: int, stop: int
) -> Iterator[StepGroup]:
    """The batches in groups, each with the number of segments that the longest row of any worker needs."""
    unroll = settings.unroll_steps
    longest = repeat(0) if unroll is None else longest_rows(plan, start, stop)
    parts: list[TruncatedBatch] = []
    segments = 1
    for position, (batch, row_steps) in enumerate(zip(batches, longest, strict=False), start + 1):
        parts.append(TruncatedBatch(position, batch, unroll))
        segments = max(segments, segment_count(row_steps, unroll))
        ends_epoch = plan.place(position)[1] == 0
        if ends_epoch or position == stop or len(parts) == settings.accumulate_batches:
            yield StepGroup(position - len(parts), tuple(parts), segments, ends_epoch)
            parts, segments = [], 1


def longest_rows(plan: Plan, start: int, stop: int) -> Iterator[int]:
    """Steps of the longest row of each global batch, as every worker knows them."""
    waiting = np.zeros(0, np.int64)
    pieces = plan.pieces(0, 1, start, stop)
    for batch in range(start, stop):
        rows = plan.batch_rows(batch)
        while len(waiting) < rows:
            waiting = np.concatenate([waiting, plan.index.lengths[next(pieces).rows]])
        yield int(waiting[:rows].max(initial=0))
        waiting = waiting[rows:]


def stop_batch(plan: Plan, settings: TrainConfig, place: Position) -> int:
    """The batch of the plan at which the budget is used up: of epochs exactly, of steps at the latest."""
    if settings.steps is None:
        return plan.first_step(settings.epochs or 1)
    left, batch, group = settings.steps - place.step, place.batches, settings.accumulate_batches
    if group == 1:
        return batch + left
    while left > 0:
        epoch_stop = plan.first_step(plan.place(batch)[0] + 1)
        groups_left = min(left, -(-(epoch_stop - batch) // group))
        batch, left = min(batch + groups_left * group, epoch_stop), left - groups_left
    return batch


def total_steps(plan: Plan, settings: TrainConfig, step: Step | None = None) -> int:
    """Steps of the whole training. Unrolled epochs have as many more as those up to `step` have had: an estimate."""
    if settings.steps is not None or settings.unroll_steps is None or step is None:
        return settings.total_steps(plan.first_step)
    return max(step.number, round(step.number * plan.first_step(settings.epochs or 1) / step.batches))


def epoch_steps(plan: Plan, settings: TrainConfig, epoch: int = 0) -> int:
    """Steps of an epoch: of each group as many as its longest row has segments."""
    start, stop, group = plan.first_step(epoch), plan.first_step(epoch + 1), settings.accumulate_batches
    if settings.unroll_steps is None:
        return -(-(stop - start) // group)
    counts = [segment_count(longest, settings.unroll_steps) for longest in longest_rows(plan, start, stop)]
    return sum(max(counts[first : first + group]) for first in range(0, len(counts), group))


def epochs_at(plan: Plan, step: Step) -> float:
    """Epochs passed after a step, with the fraction of a group's batches that are not over."""
    begin, end = plan.epochs_at(step.group.start), plan.epochs_at(step.group.stop)
    return end if step.ends_group else begin + (end - begin) * (step.segment + 1) / step.group.segments
