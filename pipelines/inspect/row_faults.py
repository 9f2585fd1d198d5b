"""What of a row group training would refuse: rows, by column and reason, with examples; or all, where it is damaged.

Rows are checked by training's own scan (`model.scan.fragment_scan`) of the table that is profiled, not by a copy of its
rules. Runs in data tasks: knows no files, no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from model.config import ModelConfig
from model.errors import DataError
from model.features.sequence_table import SequenceTable
from model.scan.bad_rows import common_widths, find_bad_rows, wording
from model.scan.fragment_scan import scan_table
from model.scan.needed_columns import read_columns
from model.scan.row_checks import checked_stats

MOST_EXAMPLES = 3

Reason = tuple[str | None, str]  # column, and the message without the values in it


@dataclass(frozen=True)
class Example:
    """One bad row: where it stands, and what training says. `row` is None where no single row is to blame."""

    file: str
    row: int | None
    problem: str


@dataclass(frozen=True)
class Damage:
    """A row group that cannot be decoded: the number of its first row in the file, how many it has, and why."""

    file: str
    row_group: int
    first_row: int
    rows: int
    problem: str


@dataclass(frozen=True)
class RowFaults:
    """Bad rows by reason; a row counts once, by the first thing that is wrong with it."""

    counts: Mapping[Reason, int] = field(default_factory=dict)
    examples: Mapping[Reason, tuple[Example, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, column: str | None, rows: int, example: Example) -> RowFaults:
        """Of `rows` rows with one fault."""
        reason = (column, wording(example.problem))
        return cls({reason: rows}, {reason: (example,)})

    @property
    def rows(self) -> int:
        """Bad rows in all."""
        return sum(self.counts.values())

    def merge(self, other: RowFaults) -> RowFaults:
        """Of the rows of both, which stand in this order."""
        counts, examples = dict(self.counts), dict(self.examples)
        for reason, count in other.counts.items():
            counts[reason] = counts.get(reason, 0) + count
            examples[reason] = (*examples.get(reason, ()), *other.examples[reason])[:MOST_EXAMPLES]
        return RowFaults(counts, examples)

    def to_plain(self) -> list[Any]:
        """Plain data that travels as JSON."""
        return [
            [*reason, count, [[example.file, example.row, example.problem] for example in self.examples[reason]]]
            for reason, count in self.counts.items()
        ]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> RowFaults:
        """What `to_plain` described."""
        counts = {(column, wording): count for column, wording, count, _ in plain}
        examples = {(column, wording): tuple(Example(*told) for told in found) for column, wording, _, found in plain}
        return cls(counts, examples)


def row_faults(table: pa.Table, config: ModelConfig, file: str, rows: np.ndarray) -> RowFaults:
    """The rows of a table that training refuses; `rows` are their numbers in `file`."""
    used = table.select(read_columns(config))
    try:
        scan_table(used, config, None, fit=False, place=file)
    except DataError:
        return _refused(SequenceTable.of(used, config.columns), config, file, rows)
    return RowFaults()


def _refused(used: SequenceTable, config: ModelConfig, file: str, rows: np.ndarray) -> RowFaults:
    widths = common_widths(used, config)

    def check(part: pa.Table) -> None:
        checked_stats(SequenceTable(part, config.columns), config, widths)

    found = RowFaults()
    try:
        errors = find_bad_rows(used.table, check)
    except DataError as error:  # of a type, not of values: no row could be read
        return RowFaults.of(error.column, max(1, used.table.num_rows), Example(file, None, error.problem))
    for row in sorted(errors):
        example = Example(file, int(rows[row]), errors[row].problem)
        found = found.merge(RowFaults.of(errors[row].column, 1, example))
    return found
