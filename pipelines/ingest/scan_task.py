"""What runs in a task of the scan.

Apart from the pipeline, because a task's process imports the module of what it runs: this one loads neither torch nor
Ray Data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig
from model.errors import DataError
from model.registry import import_plugins
from model.scan.fragment_scan import FragmentScan, scan_fragment
from model.scan.split import SplitBy
from model.state import StateSpec
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from pipelines.quarantine import Quarantine, with_way_out


@dataclass(frozen=True)
class ScanTask:
    """Scans one fragment. `quarantine` is the directory for bad rows; None: a bad row is an error.

    From fragment `strict` on labels need be none of the declared classes; None: all of them must. `states` are those
    that rows may bring; None: they are not looked at.
    """

    fragments: tuple[Fragment, ...]
    model: ModelConfig
    split: SplitBy | None
    plugins: tuple[str, ...]
    where: Filter | None = None
    quarantine: str | None = None
    strict: int | None = None
    states: StateSpec | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """The scan as plain data, in a task."""
        import_plugins(self.plugins)
        return self.scan(number).to_plain()

    def scan(self, number: int) -> FragmentScan:
        """The scan of the fragment with this number. DataError where a row is bad and none may be."""
        fragment = self.fragments[number]
        on_bad = None if self.quarantine is None else Quarantine(self.quarantine)
        unseen = self.strict is not None and number >= self.strict
        try:
            return scan_fragment(
                fragment,
                self.model,
                self.split,
                fit=True,
                where=self.where,
                on_bad=on_bad,
                unseen_labels=unseen,
                states=self.states,
            )
        except DataError as error:
            raise error if on_bad else with_way_out(error, fragment, "data.on_bad_rows=skip") from error.__cause__
