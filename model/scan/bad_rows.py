"""Rows that break the contract, found one by one, and what was wrong with them in a few lines.

Knows no files, no torch, no Ray: a check raises a DataError, whatever it checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from model.columns import Numeric
from model.config import ModelConfig
from model.errors import DataError
from model.features.fitted_columns import iterate_leaves
from model.features.sequence_table import SequenceTable
from model.tables.arrow_lists import is_list, list_lengths
from model.tables.halving import errors_by_row

Check = Callable[[pa.Table], object]
VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\w.+-]*")


def find_bad_rows(table: pa.Table, check: Check) -> dict[int, DataError]:
    """The error of each bad row, by its place in `table`; the others together pass the check.

    An error that a table without rows has, too (a type, a missing column), is no matter of rows and is raised.
    """
    try:
        check(table)
    except DataError:
        check(table.slice(0, 0))
    else:
        return {}
    errors = errors_by_row(table, check)
    while True:  # rows may be good each by itself, and yet not go together
        good = np.delete(np.arange(table.num_rows), list(errors))
        try:
            check(table.take(pa.array(good)))
        except DataError as error:
            if error.row is None:
                raise
            errors[int(good[error.row])] = error
        else:
            return errors


def common_widths(rows: SequenceTable, config: ModelConfig) -> dict[str, int]:
    """Values that an entry of each numeric column should hold: as declared, else as most of the entries do.

    Without them a vector of another width would make bad rows of all that come after it.
    """
    widths = {}
    for group, _, source in iterate_leaves(config.columns):
        if not isinstance(source, Numeric):
            continue
        entries, _ = rows.entries(source.name, group)
        if source.dimension is not None:
            widths[source.name] = source.dimension
        elif is_list(entries.type):
            lengths = list_lengths(entries, source.name)[entries.is_valid().to_numpy(zero_copy_only=False)]
            if len(lengths):
                widths[source.name] = int(np.bincount(lengths).argmax())
    return widths


# What is told of them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """What was wrong with `rows` rows; `problem` is the message of the first of them: `row` of `file`.

    `row` is None for a row group that could not be read; `column` where the fault is that of no single column.
    """

    problem: str
    column: str | None
    rows: int
    file: str
    row: int | None

    def __str__(self) -> str:
        first = str(DataError(self.problem, file=self.file, row=self.row, column=self.column))
        return f"{self.rows} times: {first}" if self.rows > 1 else first


def wording(problem: str) -> str:
    """A message without the values in it: the same for rows with the same fault."""
    return VALUES.sub("…", problem)


def reasons_of(errors: Mapping[int, DataError], file: str, first_row: int) -> tuple[Reason, ...]:
    """The reasons behind the errors of a table's rows; `first_row` is the place of its row 0 in `file`."""
    return merged_reasons(
        Reason(errors[row].problem, errors[row].column, 1, file, first_row + row) for row in sorted(errors)
    )


def merged_reasons(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """One reason for each column and kind of problem: values in the messages differ, their words do not."""
    found: dict[tuple[str | None, str], Reason] = {}
    for reason in reasons:
        key = (reason.column, wording(reason.problem))
        first = found.get(key)
        found[key] = reason if first is None else replace(first, rows=first.rows + reason.rows)
    return tuple(found.values())
