"""The plan: which rows form global batch k of epoch e, as a pure function of (seed, epoch, data). Nothing dynamic.

An epoch puts the fragments (row groups) in a seeded order and groups them into windows of at least `window_batches`
batches. In a window, rows are shuffled, sorted by about their length and cut into batches, whose order is shuffled
again (`model.batches.bucketing`): batches hold rows of like length, so little is padded. Batches of a fixed number of
rows are cut from the concatenated windows, so each is exact but the epoch's last; a batch on the border of two windows
takes the longest rows of both. Batches of a bounded number of padded steps are cut window by window. Rank r computes a
fixed slice of each batch. Knows no files, no torch, no Ray: numpy only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from model.batches.bucketing import by_length, cut_by_rows, cut_by_steps
from model.tables.fragments import Fragment

_FRAGMENTS, _ROWS = 1, 2  # what a random stream is for


@dataclass(frozen=True)
class DataIndex:
    """The data set's fragments in (file, row group) order and the length of each row, numbered through them all.

    `selected` marks the rows of this split where train and validation share files; None means all.
    """

    fragments: tuple[Fragment, ...]
    lengths: np.ndarray = field(repr=False)
    selected: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first row of each fragment, and the total: int64 [fragments + 1]."""
        return np.concatenate([[0], np.cumsum([fragment.rows for fragment in self.fragments], dtype=np.int64)])

    def fragment_rows(self, fragment: int) -> np.ndarray:
        """Numbers of a fragment's (selected) rows."""
        rows = np.arange(self.starts[fragment], self.starts[fragment + 1])
        return rows if self.selected is None else rows[self.selected[rows]]

    @cached_property
    def counts(self) -> np.ndarray:
        """(Selected) rows of each fragment."""
        if self.selected is None:
            return np.diff(self.starts)
        parts = pairwise(self.starts)  # not one sum over all rows: that takes 8 bytes a row
        return np.array([np.count_nonzero(self.selected[first:after]) for first, after in parts], np.int64)

    @cached_property
    def step_counts(self) -> np.ndarray:
        """Real steps of each fragment's (selected) rows; a row of length 0 counts as one."""
        lengths = (self.lengths[self.fragment_rows(fragment)] for fragment in range(len(self.fragments)))
        return np.array([int(np.maximum(part, 1).sum(dtype=np.int64)) for part in lengths], np.int64)

    @property
    def rows(self) -> int:
        """(Selected) rows in all fragments."""
        return int(self.counts.sum())

    @cached_property
    def steps(self) -> int:
        """Real steps in the (selected) rows."""
        return int(self.lengths.sum(dtype=np.int64, where=True if self.selected is None else self.selected))


@dataclass(frozen=True)
class Piece:
    """One rank's share of one window: global row numbers in the order they are computed."""

    epoch: int
    window: int
    rows: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Batches over `index`: of `batch_sequences` rows, or (one of the two is None) of so many rows that rows × longest
    is at most `batch_padded_steps`. Without `shuffle` (evaluation) all epochs are alike and fragments keep their order.

    A step is a batch, counted over all epochs. With `batch_sequences` every epoch has as many; with
    `batch_padded_steps` their number differs a little, and an epoch's is known once its batches have been cut.
    """

    index: DataIndex
    batch_sequences: int | None
    seed: int = 0
    window_batches: int = 64
    shuffle: bool = True
    batch_padded_steps: int | None = None

    def __post_init__(self) -> None:
        assert (self.batch_sequences is None) != (self.batch_padded_steps is None), "one bounds a batch, not both"

    # Steps and epochs ---------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Batches of the first epoch, and about as many as in every other; see `steps_of`."""
        return self.steps_of(0)

    def steps_of(self, epoch: int) -> int:
        """Batches of an epoch."""
        return len(self.ends(epoch))

    def first_step(self, epoch: int) -> int:
        """The step that an epoch begins with: as many as all epochs before it have."""
        if self._alike:
            return epoch * self.steps_per_epoch
        return self._epoch_starts(epochs=epoch)[epoch]

    def place(self, step: int) -> tuple[int, int]:
        """The epoch that a step belongs to, and its number in that epoch."""
        if self._alike:
            return divmod(step, self.steps_per_epoch)
        starts = self._epoch_starts(step=step)
        epoch = bisect_right(starts, step) - 1
        return epoch, step - starts[epoch]

    def epochs_at(self, step: int) -> float:
        """Epochs passed before a step; whole where one begins."""
        if self._alike:
            return step / self.steps_per_epoch
        epoch, batch = self.place(step)
        return epoch + batch / self.steps_of(epoch)

    def batch_rows(self, step: int) -> int:
        """Rows of the global batch of a step."""
        epoch, batch = self.place(step)
        ends = self.ends(epoch)
        return int(ends[batch] - (ends[batch - 1] if batch else 0))

    def rank_rows(self, step: int, rank: int, world: int) -> int:
        """How many rows of a step's global batch rank computes (0 where the batch is smaller than the world)."""
        rows = self.batch_rows(step)
        return rows * (rank + 1) // world - rows * rank // world

    def ends(self, epoch: int) -> np.ndarray:
        """How many rows of the epoch have been computed after each of its batches."""
        epoch = 0 if self._alike else epoch
        if epoch not in self._ends:
            self._ends[epoch] = self._cut_ends(epoch)
        return self._ends[epoch]

    @cached_property
    def _ends(self) -> dict[int, np.ndarray]:
        return {}

    @cached_property
    def _alike(self) -> bool:
        """Whether all epochs have batches of the same sizes."""
        return self.batch_sequences is not None or not self.shuffle

    def _cut_ends(self, epoch: int) -> np.ndarray:
        if self.batch_sequences is not None:
            steps = -(-self.index.rows // self.batch_sequences)
            return np.minimum(np.arange(1, steps + 1) * self.batch_sequences, self.index.rows)
        sizes = [self._arranged(epoch, number, fragments, 0)[1] for number, fragments in enumerate(self.windows(epoch))]
        return np.cumsum(np.concatenate([np.zeros(0, np.int64), *sizes]))

    def _epoch_starts(self, *, epochs: int = 0, step: int = -1) -> tuple[int, ...]:
        """First steps of epochs 0 … n, at least up to epoch `epochs` and beyond `step`; what is known is kept.

        As a tuple that is replaced: the thread that computes batches ahead asks at the same time.
        """
        assert self.index.rows, "without rows there are no steps"
        starts: tuple[int, ...] = self.__dict__.get("_starts", (0,))
        while len(starts) <= epochs or starts[-1] <= step:
            starts = (*starts, starts[-1] + self.steps_of(len(starts) - 1))
        object.__setattr__(self, "_starts", starts)
        return starts

    # Rows ---------------------------------------------------------------------------------------------------------

    @cached_property
    def long_rows(self) -> int:
        """Rows longer than `batch_padded_steps`, each of which is a batch of its own; 0 where rows bound a batch."""
        if self.batch_padded_steps is None:
            return 0
        selected = True if self.index.selected is None else self.index.selected
        return int(np.count_nonzero((self.index.lengths > self.batch_padded_steps) & selected))

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The fragments' numbers, grouped into this epoch's windows."""
        order = np.arange(len(self.index.fragments))
        if self.shuffle:
            order = self._random(_FRAGMENTS, epoch).permutation(order)
        sizes = self.index.counts if self.batch_padded_steps is None else self.index.step_counts
        least = self.window_batches * (self.batch_sequences or self.batch_padded_steps or 0)
        windows, current, held = [], [], 0
        for fragment in order:
            current.append(fragment)
            held += int(sizes[fragment])
            if held >= least:
                windows.append(np.array(current))
                current, held = [], 0
        if held and windows:  # a short window would pad more
            windows[-1] = np.concatenate([windows[-1], current])
        elif held:
            windows.append(np.array(current))
        return windows

    def pieces(self, rank: int, world: int, start_step: int, stop_step: int) -> Iterator[Piece]:
        """Rank's rows of steps start_step … stop_step − 1, window by window, in the order they are computed."""
        step = start_step
        while step < stop_step and self.index.rows:
            epoch, batch = self.place(step)
            until = min(batch + stop_step - step, self.steps_of(epoch))
            yield from self._pieces_of(epoch, rank, world, batch, until)
            step += until - batch

    def _pieces_of(self, epoch: int, rank: int, world: int, start: int, stop: int) -> Iterator[Piece]:
        """Rank's rows of batches start … stop − 1 of an epoch: a fixed slice of each, cut at the windows' borders."""
        ends = self.ends(epoch)
        begins = np.concatenate([[0], ends[:-1]])
        first = 0
        for window, fragments in enumerate(self.windows(epoch)):
            after = first + int(self.index.counts[fragments].sum())
            batches = slice(
                max(start, int(np.searchsorted(ends, first, side="right"))),
                min(stop, int(np.searchsorted(begins, after, side="left"))),
            )
            begin, sizes = begins[batches], ends[batches] - begins[batches]
            slices = [begin + sizes * part // world for part in (rank, rank + 1)]
            mine = np.clip(np.stack(slices, axis=1), first, after) - first
            if (mine[:, 0] < mine[:, 1]).any():
                rows, _ = self._arranged(epoch, window, fragments, first)
                yield Piece(epoch, window, np.concatenate([rows[low:high] for low, high in mine]))
            first = after

    def _arranged(self, epoch: int, window: int, fragments: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, sizes): the window's rows in the order of its batches, and the batches' rows where it is cut by steps.

        `first` is the epoch position where the window begins.
        """
        rows = np.concatenate([self.index.fragment_rows(f) for f in fragments])
        lengths = self.index.lengths[rows]
        random = self._random(_ROWS, epoch, window) if self.shuffle else None
        if self.batch_padded_steps is not None:
            per_batch = self.batch_padded_steps / np.maximum(lengths, 1)
            order = by_length(lengths, per_batch, random)
            return cut_by_steps(rows[order], lengths[order], self.batch_padded_steps, random)
        assert self.batch_sequences is not None, "one of the two is given"
        order = by_length(lengths, np.full(len(rows), self.batch_sequences), random)
        return cut_by_rows(rows[order], self.batch_sequences, first, random), np.zeros(0, np.int64)

    def _random(self, purpose: int, epoch: int, part: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, purpose, epoch, part])))
