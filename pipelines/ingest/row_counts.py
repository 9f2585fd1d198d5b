"""What became of the rows of a data set: how many are used, kept out by the filter, or bad, and why.

Knows no Ray, no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.scan.bad_rows import Reason, merged_reasons
from model.scan.fragment_scan import FragmentScan
from model.tables.parquet import Found

MOST_TOLD = 10  # reasons; the others are in the report


@dataclass(frozen=True)
class RowCounts:
    """Counts of rows: `rows` = `used` + `filtered` + `bad`.

    `excluded_files` were left out unread, by their paths; nobody knows how many rows they hold.
    """

    rows: int = 0
    used: int = 0
    filtered: int = 0
    bad: int = 0
    excluded_files: int = 0
    reasons: tuple[Reason, ...] = ()

    @classmethod
    def of(cls, found: Sequence[Found], scans: Sequence[FragmentScan]) -> RowCounts:
        """The report of what was found and scanned."""
        scanned = sum(len(scan.lengths) for scan in scans)
        used = sum(len(scan.lengths) if scan.used is None else int(scan.used.sum()) for scan in scans)
        bad = sum(scan.bad_rows for scan in scans)
        excluded = sum(each.excluded_rows for each in found)
        return cls(
            rows=scanned + excluded,
            used=used,
            filtered=scanned - used - bad + excluded,
            bad=bad,
            excluded_files=sum(each.excluded_files for each in found),
            reasons=merged_reasons(reason for scan in scans for reason in scan.reasons),
        )

    def to_plain(self) -> dict[str, Any]:
        """Plain data that is written as JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RowCounts:
        """What `to_plain` described."""
        return cls(**{**plain, "reasons": tuple(Reason(**reason) for reason in plain["reasons"])})

    def lines(self, quarantine: str) -> Iterator[str]:
        """What people must know: which rows are bad, and where they lie; nothing where none are."""
        if not self.bad:
            return
        yield f"{self.bad} of {self.rows} rows are bad and left out; those that can be read lie in {quarantine}"
        for reason in self.reasons[:MOST_TOLD]:
            yield f"  {reason}"
        if len(self.reasons) > MOST_TOLD:
            yield f"  and {len(self.reasons) - MOST_TOLD} more reasons"
