"""The plan of a preparation, read off the files' footers: which task reads what, how many buckets, what each column is.

It depends on events and settings alone, so that the same runs are made on any machine. Knows no Ray; reads no rows but
the first ones of CSV files, for their types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from model.errors import DataError
from model.settings import did_you_mean
from model.storage import absolute, find_files, is_directory
from model.storage.filesystems import PathLike
from model.tables.fragments import Fragment
from model.tables.nested import NestedSchema
from model.tables.parquet import read_footer
from model.tables.parquet_file import arrow_schema
from pipelines.prepare.continuation import Continuation, continuation_of
from pipelines.prepare.csv_events import SUFFIXES, csv_schema, file_bytes, is_csv
from pipelines.prepare.layout import Layout, columns_named, layout_of
from pipelines.prepare.read import Share, memory_bytes
from pipelines.prepare.schemas import agreed_schema
from pipelines.prepare.settings import MIB, PrepareSettings


@dataclass(frozen=True)
class PreparePlan:
    """Which task reads what, how many buckets there are, and the part each column plays."""

    files: tuple[str, ...]
    layout: Layout
    shares: tuple[Share, ...]
    buckets: int
    nbytes: int  # of the columns that are read, in memory
    read_as: dict[str, str]  # of CSV: the columns' types
    continuation: Continuation | None


def plan_of(events: PathLike, settings: PrepareSettings, continue_from: PathLike | None = None) -> PreparePlan:
    """The plan of a preparation; every footer is read, so that a damaged file or a wrong column is told at once."""
    continuation = None if continue_from is None else continuation_of(continue_from, settings)
    files = event_files(events)
    footers = {file: read_footer(file) for file in files if not is_csv(file)}
    schemas = {file: csv_schema(file) for file in files if is_csv(file)}
    schemas |= {file: NestedSchema(arrow_schema(footer)).flat() for file, footer in footers.items()}
    left = {} if continuation is None else {file: read_footer(file) for file in continuation.files}
    schema = _agreed(schemas, {file: arrow_schema(footer) for file, footer in left.items()}, settings)
    layout = layout_of(schema, settings, None if continuation is None else continuation.columns)
    if continuation is not None:
        layout = layout.with_context((), continuation.ends)
    for file in files:
        _check_columns(file, schemas[file].names, layout.schema.names)
    most_bytes = settings.task_mebibytes * MIB
    names = set(layout.schema.names)
    groups = list(_row_groups(footers, names))
    groups += [(Fragment(file, 0, 0), 0, file_bytes(file)) for file in files if is_csv(file)]
    if not groups:
        raise DataError("must hold at least one event, but all its files are empty", file=str(events))
    # First, for among events of one time they are the first; of equal rows, those of the first share are.
    before = list(_row_groups(left, set(layout.read_schema.names)))
    # Half of what a task may hold on average, so that few buckets are larger than that.
    nbytes = sum(size for _, _, size in [*before, *groups])
    buckets = -(-2 * nbytes // most_bytes)
    shares = [*_shares(before, most_bytes), *_shares(groups, most_bytes)]
    read_as = {field.name: str(field.type) for field in layout.schema} if len(footers) < len(files) else {}
    return PreparePlan(files, layout, tuple(shares), buckets, nbytes, read_as, continuation)


def event_files(events: PathLike) -> tuple[str, ...]:
    """The files of an event table: Parquet, or all of them CSV. DataError where there are both, or none."""
    if is_csv(absolute(events)):
        return tuple(find_files(events, SUFFIXES[0]))
    if not is_directory(events):
        return tuple(find_files(events))
    texts = sorted(file for suffix in SUFFIXES for file in _found(events, suffix))
    if not texts:
        return tuple(find_files(events))
    others = _found(events, ".parquet")
    if others:
        raise DataError(
            f"an event table must be Parquet or CSV, but here are both, such as {others[0]} and {texts[0]}; name one "
            f"of them by a glob",
            file=absolute(events),
        )
    return tuple(texts)


def _found(events: PathLike, suffix: str) -> list[str]:
    try:
        return find_files(events, suffix)
    except DataError:  # whoever finds nothing at all says so
        return []


def _agreed(schemas: Mapping[str, pa.Schema], left: Mapping[str, pa.Schema], settings: PrepareSettings) -> pa.Schema:
    """One schema for the events and for what an earlier preparation has left of them."""
    names = list(dict.fromkeys(name for schema in schemas.values() for name in schema.names))
    keys = columns_named(settings.key, names)
    columns = {file: pa.schema([field for field in schema if field.name in names]) for file, schema in left.items()}
    agreed = agreed_schema({**schemas, **columns}, keys, settings.types)
    if any(map(is_csv, schemas)):  # what is empty in the first block may be anything later
        known = {field.name: pa.string() if pa.types.is_null(field.type) else field.type for field in agreed}
        agreed = pa.schema(list(known.items()))
    return agreed


def _check_columns(file: str, there: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in there:
            raise DataError(
                f"is not in the file{did_you_mean(name, there)}; its columns are {', '.join(there)}",
                file=file,
                column=name,
            )


def _row_groups(footers: Mapping[str, Any], names: set[str]) -> Iterator[tuple[Fragment, int, int]]:
    """Each row group that has rows, the number of its first row in the file, and about its bytes in memory."""
    for file, footer in footers.items():
        first = 0
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            if group.num_rows:
                yield Fragment(file, number, group.num_rows), first, memory_bytes(group, names)
            first += group.num_rows


def _shares(groups: list[tuple[Fragment, int, int]], most_bytes: int) -> list[Share]:
    """Row groups that follow each other, in tasks of about `most_bytes`, or of one row group that is larger."""
    shares: list[list[tuple[Fragment, int]]] = []
    filled = 0
    for fragment, first, size in groups:
        if not shares or filled + size > most_bytes:
            shares.append([])
            filled = 0
        shares[-1].append((fragment, first))
        filled += size
    return [Share(tuple(each for each, _ in share), tuple(first for _, first in share)) for share in shares]
