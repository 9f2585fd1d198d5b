"""What runs in a data task: rows of row groups, read with pyarrow and encoded, in the order they are computed.

Knows no torch, so that the tasks' processes never load it, and nothing of ranks or epochs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from model.batches.arrow_transport import to_arrow
from model.batches.encode import encode_rows
from model.batches.encoded_rows import EncodedRows
from model.batches.plan import DataIndex, Plan
from model.batches.reorder import take_across
from model.errors import DataError, to_plain
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.registry import import_plugins
from model.state import StateSpec
from model.tables.fragments import Fragment
from model.tables.parquet import first_row, pieces, read_fragment
from pipelines.cluster.malloc import OF_TASKS, keep_freed_memory

BLOCK_BYTES = 64 * 2**20  # of encoded rows: a window travels at once, or if it is larger in several blocks
FEW_FRAGMENTS = 64  # that one process may read by itself: each may be a round trip to an object store
ERROR = "error"


@dataclass(frozen=True)
class Request:
    """Rows to read: their numbers in the data set, in order, and the fragments that hold them."""

    fragments: tuple[Fragment, ...]
    starts: tuple[int, ...]
    rows: np.ndarray

    @classmethod
    def of(cls, index: DataIndex, rows: np.ndarray) -> Request:
        """A request for rows of an index, naming just the fragments it touches."""
        touched = np.unique(np.searchsorted(index.starts, rows, side="right") - 1)
        return cls(
            tuple(index.fragments[f] for f in touched),
            tuple(int(index.starts[f]) for f in touched),
            rows,
        )

    @classmethod
    def joined(cls, requests: Sequence[Request]) -> Request:
        """The rows of one request (of at least one) after those of the other, as one."""
        fragments = {
            start: fragment
            for request in requests
            for start, fragment in zip(request.starts, request.fragments, strict=True)
        }
        starts = tuple(sorted(fragments))
        rows = np.concatenate([request.rows for request in requests])
        return cls(tuple(fragments[start] for start in starts), starts, rows)

    def to_arrow(self) -> pa.Table:
        """One row that travels to a task."""
        fragments = json.dumps([asdict(fragment) for fragment in self.fragments])
        rows = pa.LargeListArray.from_arrays(pa.array([0, len(self.rows)]), pa.array(self.rows))
        return pa.table({"fragments": [fragments], "starts": [list(self.starts)], "rows": rows})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Request:
        """The request of `to_arrow`."""
        fragments = tuple(Fragment(**plain) for plain in json.loads(table["fragments"][0].as_py()))
        return cls(fragments, tuple(table["starts"][0].as_py()), table["rows"][0].values.to_numpy())


@dataclass(frozen=True)
class RowReader:
    """Reads and encodes requests. `label` is None where nothing is known to compare with (prediction).

    `states` are those that rows begin with, where their file has the columns; None: all begin at zero. Labels of no
    class are UNSEEN where `unseen_labels` may be, else a DataError.
    """

    columns: FittedColumns
    label: FittedLabel | None
    states: StateSpec | None = None
    unseen_labels: bool = False

    @property
    def names(self) -> list[str]:
        """The data columns that are read."""
        label = () if self.label is None else (self.label.name, self.label.weight)
        states = () if self.states is None else self.states.names
        return [*self.columns.input_names, *(name for name in label if name is not None), *states]

    def over(self, plan: Plan) -> RowReader:
        """The reader of a plan's rows: those that train have no unseen labels."""
        return replace(self, unseen_labels=self.unseen_labels and not plan.shuffle)

    def read(self, request: Request) -> EncodedRows:
        """The request's rows in its order. DataError names file, row in the file, and column."""
        rows = np.unique(request.rows)  # those of two epochs may be read at once
        starts = np.array(request.starts)
        firsts = np.searchsorted(rows, starts)
        ends = np.searchsorted(rows, starts + [fragment.rows for fragment in request.fragments])
        parts = [
            part
            for fragment, start, first, end in zip(request.fragments, request.starts, firsts, ends, strict=True)
            for part in self._parts(fragment, start, rows[first:end])
        ]
        # Encoded before they are joined: files may hold a column as different types.
        return take_across(parts, np.searchsorted(rows, request.rows))

    def _parts(self, fragment: Fragment, start: int, rows: np.ndarray) -> Iterator[EncodedRows]:
        """Rows of one fragment, whose row 0 has the number `start`: of each of its pieces."""
        for first, piece in pieces(read_fragment(fragment, self.names)):
            low, high = np.searchsorted(rows, [start + first, start + first + piece.num_rows])
            part = replace(fragment, first_row=first_row(fragment) + first)
            yield self._encoded(piece, part, start + first, rows[low:high])

    def _encoded(self, table: pa.Table, fragment: Fragment, start: int, rows: np.ndarray) -> EncodedRows:
        """Rows of a table, whose row 0 has the number `start`."""
        if len(rows) < table.num_rows:
            table = table.take(pa.array(rows - start))
        try:
            return encode_rows(table, self.columns, self.label, self.states, rows, unseen_labels=self.unseen_labels)
        except DataError as error:
            row = None if error.row is None else int(rows[error.row]) - start + first_row(fragment)
            raise DataError(error.problem, file=fragment.file, row=row, column=error.column) from error.__cause__


class ReadTask:
    """Reads one request a call, in a task; a DataError travels as a value, for the user to see it alone and at once.

    Stands here, not beside the pipeline: a task's process imports the module of what it runs, and this one is light.
    """

    def __init__(self, reader: RowReader, plugins: tuple[str, ...]) -> None:
        self.reader = reader
        self.plugins = plugins

    def __call__(self, batch: pa.Table) -> Any:
        keep_freed_memory(OF_TASKS)
        import_plugins(self.plugins)
        try:
            rows = self.reader.read(Request.from_arrow(batch))
        except DataError as error:
            yield pa.table({ERROR: [json.dumps(to_plain(error))]})
            return
        table = to_arrow(rows)
        rows_each = max(1, table.num_rows * BLOCK_BYTES // max(table.nbytes, 1))
        for start in range(0, max(table.num_rows, 1), rows_each):
            yield table.slice(start, rows_each)
