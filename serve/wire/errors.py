"""A request that is refused as a whole: its HTTP status and the one JSON form of every error. Knows no framework."""

from __future__ import annotations

from typing import Any

from model.errors import DataError


class RequestError(Exception):
    """What is wrong with a request; `rows` says it for each of its rows where every one is bad."""

    def __init__(self, status: int, message: str, rows: dict[int, DataError] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.rows = rows

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        error: dict[str, Any] = {"message": self.message}
        if self.rows is not None:
            error["rows"] = [{"row": row, **row_error(fault)} for row, fault in sorted(self.rows.items())]
        return {"error": error}


def row_error(error: DataError) -> dict[str, str | None]:
    """What is wrong with one row, as the answer tells it."""
    return {"column": error.column, "message": error.problem}


def all_rows_bad(errors: dict[int, DataError]) -> RequestError:
    """The refusal of a request in which no row can be scored."""
    first = DataError(errors[0].problem, row=0, column=errors[0].column)
    count = "the row is bad" if len(errors) == 1 else f"all {len(errors)} rows are bad, the first because of this"
    return RequestError(422, f"{count}: {first}", errors)
