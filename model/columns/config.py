"""Feature columns, declared as plain data: what the model reads and how it is represented.

A *source* (`model.columns.sources`) turns columns of data into numbers (`Numeric`) or ids (`Vocabulary`, `Identity`,
`HashBucket`, `Weighted`, `Crossed`); ids become network input through a *representation* over their source (`OneHot`,
`Embedding`), numbers may (`Bucketized`). Every declaration is a pydantic model that round-trips through `model.json`;
what fitting adds is in `model.features.fit`. The factories with the original's names are in `model.columns.factories`.
Knows no files, no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from model.columns.representations import Column, Embedding
from model.columns.sources import (
    Bucketized,
    Crossed,
    Numeric,
    Quantiles,
    Source,
    Vocabulary,
    Weighted,
    data_columns,
    leaves,
    source_key,
)
from model.settings import Settings


def with_nan_missing(columns: ColumnsConfig) -> ColumnsConfig:
    """The columns with `nan_is_missing` for all numbers."""
    return ColumnsConfig.model_validate(_nan_missing(columns.model_dump()))


def _nan_missing(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [_nan_missing(each) for each in part]
    if not isinstance(part, dict):
        return part
    found = {name: _nan_missing(each) for name, each in part.items()}
    return found | {"nan_is_missing": True} if part.get("type") == "numeric" else found


SHARED_SETTINGS = ("dimension", "max_norm", "trainable", "pretrained", "pretrained_array")


class ColumnsConfig(Settings):
    """The model's inputs: one entry a column; the network reads them in the original's (sorted) order."""

    sequence: tuple[Column, ...] = Field(min_length=1, description="columns with a value a step")
    context: tuple[Column, ...] = Field((), description="columns with a value a row, repeated at each step")

    def model_post_init(self, _context: object) -> None:
        seen: set[tuple[str, ...]] = set()
        sources: dict[str, Source] = {}
        for column in (*self.sequence, *self.context):
            if column.sort_key in seen:
                raise ValueError(f"each column must be declared once, but {column_name(column)!r} stands twice")
            seen.add(column.sort_key)
            for source in _declared_sources(column):
                if sources.setdefault(source_key(source), source) != source:
                    raise ValueError(
                        f"the sources over one column must be equal, but those over {source.name!r} differ"
                    )
        both = {*self.data_columns("sequence")} & {*self.data_columns("context")}
        if both:
            raise ValueError(f"a column must stand under sequence or under context, but {min(both)!r} stands in both")
        for table, columns in self.shared_tables().items():
            _check_shared(table, columns)

    def ordered(self, group: Literal["sequence", "context"]) -> tuple[Column, ...]:
        """Columns in input order: sorted by representation, source and name, as the original sorts its keys."""
        columns: tuple[Column, ...] = getattr(self, group)
        return tuple(sorted(columns, key=lambda column: column.sort_key))

    def data_columns(self, group: Literal["sequence", "context"]) -> tuple[str, ...]:
        """The columns of the data that a group reads, in input order."""
        names = (name for column in self.ordered(group) for name in data_columns(source_of(column)))
        return tuple(dict.fromkeys(names))

    def number_columns(self) -> frozenset[str]:
        """The columns of the data that hold numbers rather than ids or keys; weights of ids are not among them."""
        sources = (leaf for column in (*self.sequence, *self.context) for leaf in leaves(source_of(column)))
        return frozenset(source.name for source in sources if isinstance(source, Numeric))

    def learned_boundaries(self) -> dict[str, set[int]]:
        """Where boundaries are quantiles of the training data: numbers of intervals, by data column."""
        found: dict[str, set[int]] = {}
        for column in (*self.sequence, *self.context):
            for bucketized in _bucketized(column):
                if isinstance(bucketized.boundaries, Quantiles):
                    found.setdefault(bucketized.source.name, set()).add(bucketized.boundaries.quantiles)
        return found

    def shared_tables(self) -> dict[str, list[Embedding]]:
        """The embeddings of each named table, in input order."""
        tables: dict[str, list[Embedding]] = {}
        for column in (*self.ordered("sequence"), *self.ordered("context")):
            if isinstance(column, Embedding) and column.table is not None:
                tables.setdefault(column.table, []).append(column)
        return tables


def _declared_sources(column: Column) -> Iterator[Source]:
    """The column's source and those within it whose fitted forms others over the same data may use."""
    source = source_of(column)
    yield source
    if isinstance(source, Weighted):
        yield source.source
    if isinstance(source, Crossed):
        yield from (part.source for part in _bucketized(column))


def _bucketized(column: Column) -> Iterator[Bucketized]:
    """The column itself if it is one of intervals, or those that it crosses."""
    if isinstance(column, Bucketized):
        yield column
    elif isinstance(source := source_of(column), Crossed):
        yield from (part for part in source.parts if isinstance(part, Bucketized))


def _check_shared(table: str, columns: list[Embedding]) -> None:
    for setting in SHARED_SETTINGS:
        first, *others = ((column_name(column), getattr(column, setting)) for column in columns)
        for name, value in others:
            if value != first[1]:
                raise ValueError(
                    f"columns that share the table {table!r} must agree in {setting}, but {first[0]!r} has "
                    f"{first[1]!r} and {name!r} has {value!r}"
                )


def source_of(column: Column) -> Source:
    """The declaration that reads the data: the column itself for numbers, what it represents for ids."""
    return column if isinstance(column, Numeric) else column.source


def column_name(column: Column) -> str:
    """Name of the data column that `column` reads; a joint one for several, such as `a_X_b` for a cross."""
    return source_of(column).name


def needs_training_data(columns: ColumnsConfig) -> list[str]:
    """What of the columns is learned from all training rows, for messages; empty where nothing is."""
    found, quantiles = [], columns.learned_boundaries()
    for column in (*columns.sequence, *columns.context):
        for source in leaves(source_of(column)):
            if isinstance(source, Vocabulary) and source.learned:
                found.append(f"the keys of {source.name!r}")
            if isinstance(source, Numeric) and (source.normalizer in ("zscore", "minmax") or source.missing == "mean"):
                found.append(f"the normalizer of {source.name!r}")
            if source.name in quantiles and isinstance(source, Numeric):
                found.append(f"the boundaries of {source.name!r}")
    return list(dict.fromkeys(found))
