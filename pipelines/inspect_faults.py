"""The rows of a row group that training would refuse: counted by column and reason, with examples.

Rows are checked by training's own scan (`model.scan`), not by a copy of its rules. Runs in data tasks: knows no torch,
no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig
from model.errors import DataError
from model.filters import Filter
from model.plan import Fragment
from model.scan import first_row, scan_fragment

MOST_EXAMPLES = 3
VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\w.+-]*")

Reason = tuple[str | None, str]  # column, and the message without the values in it


@dataclass(frozen=True)
class Example:
    """One bad row: where it stands, and what training says. `row` is None where no single row is to blame."""

    file: str
    row: int | None
    problem: str


@dataclass(frozen=True)
class RowFaults:
    """Bad rows by reason; a row counts once, by the first thing that is wrong with it."""

    counts: Mapping[Reason, int] = field(default_factory=dict)
    examples: Mapping[Reason, tuple[Example, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, column: str | None, rows: int, example: Example) -> RowFaults:
        """Of `rows` rows with one fault."""
        reason = (column, VALUES.sub("…", example.problem))
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


def row_faults(fragment: Fragment, config: ModelConfig, where: Filter | None) -> RowFaults:
    """All rows of a fragment that training refuses, of those that the filter keeps."""
    found = RowFaults()
    first = first_row(fragment)

    def collect(_: Fragment, errors: Mapping[int, DataError]) -> None:
        nonlocal found
        for row in sorted(errors):
            example = Example(fragment.file, first + row, errors[row].problem)
            found = found.merge(RowFaults.of(errors[row].column, 1, example))

    try:
        scan_fragment(fragment, config, None, fit=False, where=where, on_bad=collect)
    except DataError as error:  # of a type, not of values: no row could be read
        return RowFaults.of(error.column, fragment.rows, Example(fragment.file, None, error.problem))
    return found
