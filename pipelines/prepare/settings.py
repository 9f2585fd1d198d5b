"""PrepareSettings: how an event table becomes sequences; and how people write durations and moments.

Knows no files, no Arrow and no Ray.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import Field

from model.settings import Settings

SPLITS = ("train", "validation", "test")
MIB = 1 << 20
SECONDS_OF = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class PrepareSettings(Settings):
    """What is grouped by what, how it is cut, and which columns come out of it."""

    key: str | tuple[str, ...] | None = Field(
        None,
        description="column that names the entity, or several (also with commas between them); null: a single series",
    )
    time: str | tuple[str, ...] = Field(
        description="column that orders an entity's events: timestamp, date, integer or float; further columns, behind "
        "it or behind commas, order those of equal time"
    )
    columns: tuple[str, ...] | None = Field(
        None, description="columns that become lists, one value an event; null takes all that have no other part"
    )
    context: tuple[str, ...] = Field((), description="columns with one value a key; another value is an error")
    detect_context: bool = Field(
        True, description="where `columns` is null: columns with one value in every key become context"
    )
    label: str | None = Field(
        None, description="column to predict: a sequence's last value, or with label_shift a list"
    )
    label_shift: int = Field(
        0, ge=0, description="label each event with the value so many events later; the last such events have none"
    )
    label_change: bool = Field(
        False, description="with label_shift: label each event with the change until then, not with the later value"
    )
    for_scoring: bool = Field(
        False, description="keep the events whose label is not known yet, with null for a label: data to predict on"
    )
    time_delta: str | None = Field(None, description="name of a new column: seconds since the key's event before")
    max_length: int | None = Field(None, ge=1, description="events of a sequence at most")
    gap: str | float | None = Field(
        None, description="a longer time without event begins a new sequence: 90s, 30m, 12h, 7d, or a number"
    )
    split_by_time: tuple[str | float, ...] = Field(
        (), max_length=2, description="where validation begins, and where test begins: moments like the time column's"
    )
    types: dict[str, str] = Field(
        {}, description="Arrow types of columns, where those of the files are not what they should be: {zip: string}"
    )
    on_bad_rows: Literal["error", "skip"] = Field(
        "error", description="events without key or time: an error, or left out, counted and kept in _quarantine"
    )
    row_group_rows: int = Field(1024, ge=1, description="sequences of a row group at most")
    row_group_mebibytes: int = Field(16, ge=1, description="MiB of a row group at most, uncompressed")
    file_mebibytes: int = Field(256, ge=1, description="MiB of a file at about most, uncompressed")
    task_mebibytes: int = Field(
        64, ge=1, description="MiB of events that a task sorts at once; its process takes several times as much"
    )

    def model_post_init(self, _context: object) -> None:
        if self.label_shift and self.label is None:
            raise ValueError("label_shift needs `label`, the column whose later value is the label")
        if self.label_change and not self.label_shift:
            raise ValueError("label_change needs `label_shift`, which says until when the change is counted")
        if self.gap is not None and gap_number(self.gap)[0] <= 0:
            raise ValueError(f"gap must be longer than nothing, but is {self.gap!r}")


def gap_number(gap: str | float) -> tuple[float, bool]:
    """(length, whether it is in seconds rather than in units of the time column) of "30m" or of a plain number."""
    text = str(gap).strip()
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhd])", text)
    if found is not None:
        return float(found[1]) * SECONDS_OF[found[2]], True
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"gap must be a duration such as 90s, 30m, 12h or 7d, or a number, but is {gap!r}")
    return number, False
