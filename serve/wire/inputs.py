"""What a model reads, as the doors of the server see it: columns, their cells, the state. Knows no JSON, no HTTP.

Numbers travel as float64, although the network computes in float32: they are normalised first, and a timestamp
in float32 has lost its seconds by then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from model.columns import Numeric
from model.errors import DataError
from model.features.fitted_columns import FittedColumns, iterate_leaves
from model.settings import did_you_mean
from model.state import StateSpec
from model.tables.arrow_lists import is_list, widened
from serve.wire.errors import RequestError


@dataclass(frozen=True)
class RequestRows:
    """A request's rows: those that can be scored as a table, and what is wrong with the others.

    `good` holds the numbers of the table's rows in the request, rising. All tables of a model have the same columns,
    but for the state's, which are there where at least one row has a state.
    """

    rows: int
    table: pa.Table
    good: list[int]
    errors: dict[int, DataError] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """The columns that every row must have, in order, and the state that it may have."""

    schema: pa.Schema
    sequence: frozenset[str]
    state: StateSpec
    nan_is_missing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, columns: FittedColumns, state: StateSpec) -> Inputs:
        """From a fitted model's own description of its inputs."""
        fields = [pa.field(each.name, widened(each.type)) for each in columns.input_schema()]
        leaves = [leaf for _, _, leaf in iterate_leaves(columns.columns) if isinstance(leaf, Numeric)]
        nan_is_missing = frozenset(leaf.name for leaf in leaves if leaf.nan_is_missing)
        return cls(pa.schema(fields), frozenset(columns.columns.data_columns("sequence")), state, nan_is_missing)

    def unknown(self, name: str) -> DataError:
        """The error of a column that the model does not read."""
        known = self.schema.names
        return DataError(
            f"is not a feature of this model{did_you_mean(name, known) or '; it reads ' + ', '.join(known)}",
            column=name,
        )

    def example(self, steps: int) -> pa.Table:
        """One row with `steps` steps of zeros and empty strings: for the warm-up."""
        columns = [
            pa.array(
                [[_zero(each.type.value_type)] * steps if each.name in self.sequence else _zero(each.type)], each.type
            )
            for each in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)


def check_count(what: str, count: int, most: int) -> None:
    """Refuses a request that holds more of something than it may."""
    if count > most:
        raise RequestError(413, f"a request may hold {most} {what}, but this holds {count}; split it")


def _zero(arrow_type: pa.DataType) -> object:
    if pa.types.is_fixed_size_list(arrow_type):
        return [_zero(arrow_type.value_type)] * arrow_type.list_size
    if is_list(arrow_type):
        return []
    return "" if pa.types.is_string(arrow_type) else 0
