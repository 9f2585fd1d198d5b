"""Progress and reports from the workers to whoever started them, through a mailbox."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.supervision.driver_channel import Mailbox

POLL_SECONDS = 0.3
PROGRESS, REPORTS = "progress", "reports"


@dataclass(frozen=True)
class Telemetry:
    """The worker's end: calls return at once."""

    mailbox: Mailbox

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Replaces the latest progress."""
        self.mailbox.put(PROGRESS, progress, key=PROGRESS)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of a validation, or what else must not be lost."""
        self.mailbox.put(REPORTS, metrics)


@contextmanager
def listening(
    mailbox: Mailbox,
    on_progress: Callable[[Mapping[str, Any]], None] | None,
    on_report: Callable[[dict[str, Any]], None] | None,
) -> Iterator[Telemetry]:
    """A Telemetry whose words are handed to the callbacks, in a thread, until the block ends."""
    done = threading.Event()

    def deliver() -> None:
        progress, reports = mailbox.take(PROGRESS, REPORTS)
        for each in progress:
            if on_progress is not None:
                on_progress(each)
        for metrics in reports:
            if on_report is not None:
                on_report(metrics)

    def follow() -> None:
        while not done.wait(POLL_SECONDS):
            deliver()

    thread = threading.Thread(target=follow, name="telemetry", daemon=True)
    thread.start()
    try:
        yield Telemetry(mailbox)
    finally:
        done.set()
        thread.join()
        deliver()
