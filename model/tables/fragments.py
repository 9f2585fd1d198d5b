"""A row group of a Parquet file as data: where it lies, how many rows it has, what its path says. Knows no Arrow."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

PartitionValue = str | int | None


@dataclass(frozen=True)
class Fragment:
    """One row group of one file: plain data that travels as JSON (`to_json`).

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

    def to_json(self) -> str:
        """One string that travels."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Fragment:
        """The fragment of `to_json`."""
        return cls(**json.loads(text))
