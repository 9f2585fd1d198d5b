"""A table's bad rows, found by halving it: a check raises a DataError, whatever it checks. Knows no columns."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from model.errors import DataError


def errors_by_row(
    table: pa.Table, check: Callable[[pa.Table], object], first: int = 0, *, rowless_is_all: bool = False
) -> dict[int, DataError]:
    """The error of each row that `check` refuses, by its place (that of row 0 is `first`): k of n rows cost k·log n
    checks, not n.

    An error without a row is looked for in the halves, or with `rowless_is_all` stands at every row.
    """
    try:
        check(table)
    except DataError as error:
        if table.num_rows == 1 or (rowless_is_all and error.row is None):
            return dict.fromkeys(range(first, first + table.num_rows), error.located(first_row=first))
        half = table.num_rows // 2
        return {
            **errors_by_row(table.slice(0, half), check, first, rowless_is_all=rowless_is_all),
            **errors_by_row(table.slice(half), check, first + half, rowless_is_all=rowless_is_all),
        }
    return {}
