"""What runs in a task of the scan.

Apart from the pipeline, because a task's process imports the module of what it runs: this one loads neither torch nor
Ray Data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig
from model.errors import DataError
from model.registry import import_plugins
from model.scan.fragment_scan import FragmentScan, scan_fragment
from model.scan.split import SplitBy
from model.storage import stem
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import first_row, read_whole_fragment
from pipelines.quarantine import quarantined, write_quarantine


@dataclass(frozen=True)
class ScanTask:
    """Scans one fragment. `quarantine` is the directory for bad rows; None: a bad row is an error."""

    fragments: tuple[Fragment, ...]
    model: ModelConfig
    split: SplitBy | None
    plugins: tuple[str, ...]
    where: Filter | None = None
    quarantine: str | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """The scan as plain data, in a task."""
        import_plugins(self.plugins)
        return self.scan(number).to_plain()

    def scan(self, number: int) -> FragmentScan:
        """The scan of the fragment with this number. DataError where a row is bad and none may be."""
        on_bad = None if self.quarantine is None else Quarantine(self.quarantine)
        return scan_fragment(self.fragments[number], self.model, self.split, fit=True, where=self.where, on_bad=on_bad)


@dataclass(frozen=True)
class Quarantine:
    """Writes bad rows of a fragment, with all their columns, into `directory`."""

    directory: str

    def __call__(self, fragment: Fragment, errors: Mapping[int, DataError]) -> None:
        digest = hashlib.sha256(fragment.file.encode()).hexdigest()[:8]
        name = f"{stem(fragment.file)}-{digest}-{fragment.row_group:05d}.parquet"
        rows = quarantined(read_whole_fragment(fragment), errors, file=fragment.file, first_row=first_row(fragment))
        write_quarantine(self.directory, name, rows)
