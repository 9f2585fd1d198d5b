"""A row group of a Parquet file as data: where it lies, how many rows it has, what its path says. Knows no Arrow."""

from __future__ import annotations

from dataclasses import dataclass

PartitionValue = str | int | float | None


@dataclass(frozen=True)
class Fragment:
    """One row group of one file: plain data that travels as JSON (`dataclasses.asdict`).

    `first_row` is the number in the file of its row 0 (None: unknown). `partitions` are the columns that stand in the
    file's path (`year=2024/`) and not in the file; `absent` are optional columns that are in neither: nulls.
    """

    file: str
    row_group: int
    rows: int
    first_row: int | None = None
    partitions: tuple[tuple[str, PartitionValue], ...] = ()
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:  # JSON brings lists
        object.__setattr__(self, "partitions", tuple((name, value) for name, value in self.partitions))
        object.__setattr__(self, "absent", tuple(self.absent))
