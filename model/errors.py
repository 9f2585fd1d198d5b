"""The errors people can cause, and nothing else.

    ValueError
    └── DynamicRnnError          exit code 2, one line, no traceback (unless --debug)
        ├── ConfigError          a setting: unknown key, value out of range, parts that do not fit
        ├── DataError            the data: names file, row and column
        │   ├── DecodeError      a row group whose pages are damaged
        │   └── StateError       an RNN state that does not fit the model
        ├── CheckpointError      a bundle: missing, damaged, or built for another model
        ├── TrainingError        training cannot go on: the loss is not a number
        ├── ResourceError        the machine or cluster: too little of something, not reachable
        └── NotFittedError       a method that needs a trained model (also an AttributeError)

Every message says what must be, what is, where, and what to do. Mistakes of ours are `assert`s.

May import: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

MOST_CHARACTERS = 600  # of a line: more is not read
MOST_LISTED = 20


class DynamicRnnError(ValueError):
    """A mistake the user can mend. `exit_code` is what the command line returns for it; its text has short lines."""

    exit_code = 2

    def __str__(self) -> str:
        return shortened(super().__str__())


class ConfigError(DynamicRnnError):
    """A setting is unknown, out of range, or does not fit another one."""


class DataError(DynamicRnnError):
    """The data break the contract; `file`, `row` (0-based in the file) and `column` say where.

    A location is filled in by whoever knows it: the transform knows row and column, the reader knows
    the file and where its rows began. `located` returns the completed error.
    """

    def __init__(
        self, problem: str, *, file: str | None = None, row: int | None = None, column: str | None = None
    ) -> None:
        super().__init__(problem, file, row, column)
        self.problem = problem
        self.file = file
        self.row = row
        self.column = column

    def __str__(self) -> str:
        places = [
            self.file,
            None if self.row is None else f"row {self.row}",
            None if self.column is None else f"column {self.column!r}",
        ]
        where = ", ".join(place for place in places if place is not None)
        return shortened(f"{where}: {self.problem}" if where else self.problem)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle as cls(*args); ours take keywords, and workers send them to the driver.
        return (_rebuild_data_error, (type(self), self.problem, self.file, self.row, self.column))

    def located(self, *, file: str | None = None, first_row: int = 0) -> DataError:
        """The same error with the file named and `row` counted from `first_row` (default: the file's start)."""
        row = None if self.row is None else self.row + first_row
        return type(self)(self.problem, file=self.file or file, row=row, column=self.column)


def _rebuild_data_error(
    cls: type[DataError], problem: str, file: str | None, row: int | None, column: str | None
) -> DataError:
    return cls(problem, file=file, row=row, column=column)


class DecodeError(DataError):
    """A row group that cannot be decoded: its pages are damaged, or its bytes cannot be fetched."""


class StateError(DataError):
    """An RNN state whose components, width or values do not fit the model."""


class CheckpointError(DynamicRnnError):
    """A bundle is missing, damaged, of an unknown format, or was built for another model."""


class TrainingError(DynamicRnnError):
    """Training cannot go on, such as when the loss is NaN or infinite."""


class ResourceError(DynamicRnnError):
    """The machine or the cluster lacks what the job needs, or cannot be reached."""


class NotFittedError(DynamicRnnError, AttributeError):
    """The model has no weights yet. Also an AttributeError, as scikit-learn's and the original's are."""


def to_plain(error: DynamicRnnError) -> dict[str, object]:
    """An error as plain data, to travel as JSON between processes."""
    if isinstance(error, DataError):
        place = {"file": error.file, "row": error.row, "column": error.column}
        return {"kind": type(error).__name__, "problem": error.problem, **place}
    return {"kind": type(error).__name__, "problem": str(error)}


def from_plain(plain: dict[str, Any]) -> DynamicRnnError:
    """The error that `to_plain` described."""
    kinds = {kind.__name__: kind for kind in _kinds(DynamicRnnError)}
    kind, rest = kinds[plain["kind"]], {name: value for name, value in plain.items() if name not in ("kind", "problem")}
    return kind(plain["problem"], **rest)


def _kinds(kind: type[DynamicRnnError]) -> list[type[DynamicRnnError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in _kinds(below))]


def shortened(text: str) -> str:
    """The text, with the middle left out of lines that are too long: what is wrong comes first, what to do last."""
    if len(text) <= MOST_CHARACTERS:
        return text
    head = MOST_CHARACTERS * 2 // 3
    tail = MOST_CHARACTERS - head - len(" … ")
    lines = text.split("\n")
    return "\n".join(line if len(line) <= MOST_CHARACTERS else f"{line[:head]} … {line[-tail:]}" for line in lines)


def listed(names: Iterable[object], most: int = MOST_LISTED) -> str:
    """`a, b, c`, or the first of them `and n more`."""
    every = iter(names)
    shown, more = ", ".join(map(str, islice(every, most))), sum(1 for _ in every)
    return f"{shown} and {more} more" if more else shown


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for a one-line error of ours."""
    return str(error).strip().split("\n", 1)[0].rstrip(".")
