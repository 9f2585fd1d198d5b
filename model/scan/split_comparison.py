"""What validation rows hold that training rows never had: a line for each column of which people should know.

A share of unknown values, or numbers far outside those of training, mean that the files are of different data, or
that the model will be measured on what it could not learn. Knows no files, no torch, no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from model.columns import Key, Leaf, Numeric, Vocabulary
from model.config import ModelConfig
from model.errors import DataError
from model.features.fitted_columns import iterate_leaves
from model.features.labels import FittedLabel
from model.features.ordered_merge import DataStats, OrderedMerge
from model.features.stats import ColumnStats

UNKNOWN_SHARE = 0.01  # of validation values beyond the share in training: fewer are the tail that any data have
FAR = 1.0  # times the width of what training holds
MOST_SHOWN = 3


class Comparison:
    """Takes what fragments of validation rows tell, and keeps what it takes to compare them with training.

    `training` merges the fragments that are trained on, `fitted` in number; parts that come before these wait. `path`
    is where validation rows lie, for errors. `unseen_labels`: whether labels of no class are counted, or an error.
    """

    def __init__(
        self,
        config: ModelConfig,
        training: OrderedMerge,
        fitted: int,
        path: str | None = None,
        *,
        unseen_labels: bool = False,
    ) -> None:
        self.leaves = {key: leaf for _, key, leaf in iterate_leaves(config.columns)}
        self.training = training
        self.fitted = fitted
        self.path = path
        self.unseen_labels = unseen_labels
        self.unknown: Counter[str] = Counter()
        self.filled: Counter[str] = Counter()
        self.low: dict[str, np.ndarray] = {}
        self.high: dict[str, np.ndarray] = {}
        self.labels: Counter[Key] = Counter()
        self._waiting: list[DataStats] = []

    def add(self, part: DataStats) -> None:
        """Takes one fragment's statistics, in any order. DataError where vectors are of another length."""
        self._waiting.append(part)
        self._settle()

    def _settle(self) -> None:
        while self._waiting and self.training.merged == self.fitted:
            self._take(self._waiting.pop())

    def _take(self, part: DataStats) -> None:
        training = self.training.total
        for key, stats in part.columns.items():
            if isinstance(self.leaves[key], Numeric):
                self._take_numbers(key, stats, training.columns[key], self.leaves[key].name)
            else:
                self.filled[key] += stats.filled
                self.unknown[key] += _unknown(self.leaves[key], stats, training.columns[key])
        self._take_numbers("", part.labels, training.labels, None)
        self.labels.update(part.labels.keys)

    def _take_numbers(self, key: str, stats: ColumnStats, training: ColumnStats, name: str | None) -> None:
        if not stats.count.any() or not training.count.any():
            return
        if len(stats.count) != len(training.count):
            raise DataError(
                f"every entry must hold as many values as in the training rows, {len(training.count)}, but some hold "
                f"{len(stats.count)}",
                file=self.path,
                column=name,
            )
        self.low[key] = np.minimum(self.low.get(key, stats.low), stats.low)
        self.high[key] = np.maximum(self.high.get(key, stats.high), stats.high)

    def lines(self, label: FittedLabel) -> Iterator[str]:
        """What to warn of. DataError where labels are of classes that the model does not have and none may be."""
        self._settle()
        assert not self._waiting, "training is merged when validation is told of"
        yield from self._unseen(label)
        total = self.training.total
        for key, leaf in self.leaves.items():
            training = total.columns[key]
            if isinstance(leaf, Numeric):
                yield from self._far(key, leaf.name, training)
            else:
                yield from self._strange(key, leaf, training)
        yield from self._far("", label.name, total.labels)

    def _unseen(self, label: FittedLabel) -> Iterator[str]:
        """A line where labels are of classes that the model does not have, or a DataError."""
        classes = set(label.class_values)
        new = [value for value in self.labels if value not in classes]
        if not new:
            return
        more = ", …" if len(new) > MOST_SHOWN else ""
        shown = ", ".join(repr(value) for value in new[:MOST_SHOWN]) + more
        if not self.unseen_labels:
            raise DataError(
                f"labels must be of the classes that the training rows have, but {len(new)} others stand here "
                f"({shown}); declare model.classes with all of them, count them as wrong with "
                "data.unseen_labels=count, or leave these rows out",
                file=self.path,
                column=label.name,
            )
        count = sum(self.labels[value] for value in new)
        yield (
            f"column {label.name!r}: {count} of {self.labels.total()} labels of the validation rows are of {len(new)} "
            f"classes that the training rows do not have ({shown}): they count as wrong and have no loss, see "
            "unseen_labels; declare model.classes with them to have them learned, or refuse them with "
            "data.unseen_labels=error"
        )

    def _far(self, key: str, name: str, training: ColumnStats) -> Iterator[str]:
        """A line where numbers lie far outside those of training."""
        if key not in self.low:
            return
        both = np.isfinite(training.low) & np.isfinite(self.low[key])
        low, high = training.low[both], training.high[both]
        found_low, found_high = self.low[key][both], self.high[key][both]
        far = (found_low < low - FAR * (high - low)) | (found_high > high + FAR * (high - low))
        if far.any():
            place = int(np.argmax(far))
            yield (
                f"column {name!r}: validation rows hold {found_low[place]:.6g} … {found_high[place]:.6g}, far outside "
                f"the {low[place]:.6g} … {high[place]:.6g} of the training rows"
            )

    def _strange(self, key: str, leaf: Leaf, training: ColumnStats) -> Iterator[str]:
        """A line where many values are unknown."""
        share = self.unknown[key] / self.filled[key] if self.filled[key] else 0.0
        usual = _unknown(leaf, training, training) / training.filled if training.filled else 0.0
        if share >= usual + UNKNOWN_SHARE:
            yield (
                f"column {leaf.name!r}: {share * 100:.3g} % of the values in validation rows are unknown, "
                f"{usual * 100:.3g} % in training rows"
            )


def _unknown(leaf: Leaf, stats: ColumnStats, training: ColumnStats) -> int:
    """How many of the values training has never had or, where keys are declared, are none of them; 0 if any are ids."""
    if not isinstance(leaf, Vocabulary):
        return 0
    if leaf.learned:
        return sum(count for key, count in stats.keys.items() if key not in training.keys)
    return stats.filled - stats.keys.total()
