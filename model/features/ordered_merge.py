"""Statistics of many fragments, merged in the fragments' order as they come. Knows no files, no torch, no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from model.errors import DataError
from model.features.stats import ColumnStats, refuse_too_many


@dataclass(frozen=True)
class DataStats:
    """What training rows tell: statistics of their columns by source key, and of their labels."""

    columns: dict[str, ColumnStats] = field(default_factory=dict)
    labels: ColumnStats = field(default_factory=ColumnStats)


class OrderedMerge:
    """Merges fragments' statistics by the fragments' numbers, whatever order they come in.

    Floats add up in one order alone, so the total has the same bits however many workers scanned. What is merged is let
    go of: there stay the total and the few fragments that came before their turn. `merged` fragments are in the total.
    """

    def __init__(self) -> None:
        self.merged = 0
        self._waiting: dict[int, DataStats] = {}
        self._columns: dict[str, ColumnStats] = {}
        self._labels = ColumnStats()

    def add(self, number: int, part: DataStats) -> None:
        """Statistics of fragment `number`, counted from 0. DataError where they do not go with those before."""
        self._waiting[number] = part
        while self.merged in self._waiting:
            self._take(self._waiting.pop(self.merged))
            self.merged += 1

    def _take(self, part: DataStats) -> None:
        if not self.merged:  # copies, for the counts of the total grow in place
            self._columns = {key: _own(stats) for key, stats in part.columns.items()}
            self._labels = _own(part.labels)
            return
        for key, stats in self._columns.items():
            self._columns[key] = _absorbed(stats, part.columns[key], key.partition(":")[2])
        self._labels = _absorbed(self._labels, part.labels, None)

    @property
    def total(self) -> DataStats:
        """Statistics of all fragments."""
        assert not self._waiting, "every fragment before one that came must have come"
        return DataStats(self._columns, self._labels)


def merged(parts: Iterable[DataStats]) -> DataStats:
    """The total of fragments in order."""
    order = OrderedMerge()
    for number, part in enumerate(parts):
        order.add(number, part)
    return order.total


def _own(stats: ColumnStats) -> ColumnStats:
    return replace(stats, keys=Counter(stats.keys))


def _absorbed(total: ColumnStats, part: ColumnStats, name: str | None) -> ColumnStats:
    """`total.merge(part)`, whose counts are the total's own: a merge costs what the part holds, not what all hold."""
    counts = total.keys
    try:
        both = replace(total, keys=Counter()).merge(replace(part, keys=Counter()))
        counts.update(part.keys)
        refuse_too_many(len(counts))
    except DataError as error:
        raise DataError(error.problem, column=name) from error
    both.keys = counts
    return both
