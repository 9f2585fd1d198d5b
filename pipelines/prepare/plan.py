"""The plan of a preparation, read off the files' footers: which task reads what, how many buckets, what each column is.

It depends on events and settings alone, so that the same runs are made on any machine. Knows no Ray; reads no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.errors import DataError
from model.storage import find_files
from model.storage.filesystems import PathLike
from model.tables.fragments import Fragment
from model.tables.parquet import read_footer
from model.tables.parquet_file import arrow_schema
from pipelines.prepare.layout import Layout, agreed_schema, layout_of
from pipelines.prepare.read import Share, memory_bytes
from pipelines.prepare.settings import MIB, PrepareSettings


@dataclass(frozen=True)
class PreparePlan:
    """Which task reads what, how many buckets there are, and the part each column plays."""

    files: tuple[str, ...]
    layout: Layout
    shares: tuple[Share, ...]
    buckets: int


def plan_of(events: PathLike, settings: PrepareSettings) -> PreparePlan:
    """The plan of a preparation; every footer is read, so that a damaged file or a wrong column is told at once."""
    footers = {file: read_footer(file) for file in find_files(events)}
    layout = layout_of(agreed_schema({file: arrow_schema(each) for file, each in footers.items()}), settings)
    for file in footers:
        read_footer(file, layout.schema.names)
    most_bytes = settings.task_mebibytes * MIB
    groups = list(_row_groups(footers, set(layout.schema.names)))
    if not groups:
        raise DataError("must hold at least one event, but all its files are empty", file=str(events))
    # Half of what a task may hold on average, so that few buckets are larger than that.
    buckets = -(-2 * sum(size for _, _, size in groups) // most_bytes)
    return PreparePlan(tuple(footers), layout, _shares(groups, most_bytes), buckets)


def _row_groups(footers: dict[str, Any], names: set[str]) -> Iterator[tuple[Fragment, int, int]]:
    """Each row group that has rows, the number of its first row in the file, and about its bytes in memory."""
    for file, footer in footers.items():
        first = 0
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            if group.num_rows:
                yield Fragment(file, number, group.num_rows), first, memory_bytes(group, names)
            first += group.num_rows


def _shares(groups: list[tuple[Fragment, int, int]], most_bytes: int) -> tuple[Share, ...]:
    """Row groups that follow each other, in tasks of about `most_bytes`, or of one row group that is larger."""
    shares: list[list[tuple[Fragment, int]]] = [[]]
    filled = 0
    for fragment, first, size in groups:
        if shares[-1] and filled + size > most_bytes:
            shares.append([])
            filled = 0
        shares[-1].append((fragment, first))
        filled += size
    return tuple(Share(tuple(each for each, _ in share), tuple(first for _, first in share)) for share in shares)
