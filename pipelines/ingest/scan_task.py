"""What runs in a task of the scan.

Apart from the pipeline, because a task's process imports the module of what it runs: this one loads neither torch nor
Ray Data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig
from model.registry import import_plugins
from model.scan.fragment_scan import FragmentScan, scan_fragment
from model.scan.split import SplitBy
from model.state import StateSpec
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from pipelines.quarantine import Quarantine


@dataclass(frozen=True)
class ScanTask:
    """Scans one fragment. `quarantine` is the directory for bad rows; None: a bad row is an error.

    `states` are those that rows may bring; None: they are not looked at.
    """

    fragments: tuple[Fragment, ...]
    model: ModelConfig
    split: SplitBy | None
    plugins: tuple[str, ...]
    where: Filter | None = None
    quarantine: str | None = None
    states: StateSpec | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """The scan as plain data, in a task."""
        import_plugins(self.plugins)
        return self.scan(number).to_plain()

    def scan(self, number: int) -> FragmentScan:
        """The scan of the fragment with this number. DataError where a row is bad and none may be."""
        on_bad = None if self.quarantine is None else Quarantine(self.quarantine)
        return scan_fragment(
            self.fragments[number],
            self.model,
            self.split,
            fit=True,
            where=self.where,
            on_bad=on_bad,
            states=self.states,
        )
