"""Progress from the workers to whoever started them: a tiny actor that keeps the latest word.

A worker's prints would appear twice and interleaved; a file could not be followed on an object store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.cluster import on_this_node

POLL_SECONDS = 0.3


class _Mailbox:
    """Holds the latest progress and the reports that nobody has read yet."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._reports: list[dict[str, Any]] = []

    def put_progress(self, progress: Any) -> None:
        self._progress = progress

    def put_report(self, metrics: dict[str, Any]) -> None:
        self._reports.append(metrics)

    def take(self) -> tuple[Any, list[dict[str, Any]]]:
        progress, reports = self._progress, self._reports
        self._progress, self._reports = None, []
        return progress, reports


@dataclass(frozen=True)
class Telemetry:
    """The worker's end: calls return at once. `mailbox` is None where nobody listens."""

    mailbox: Any = None

    def progress(self, progress: Any) -> None:
        """Replaces the latest progress."""
        if self.mailbox is not None:
            self.mailbox.put_progress.remote(progress)

    def report(self, metrics: dict[str, Any]) -> None:
        """Adds the metrics of a validation, or what else must not be lost."""
        if self.mailbox is not None:
            self.mailbox.put_report.remote(metrics)


@contextmanager
def telemetry_actor(
    on_progress: Callable[[Any], None] | None, on_report: Callable[[dict[str, Any]], None] | None
) -> Iterator[Telemetry]:
    """A Telemetry whose words are handed to the callbacks, in a thread, until the block ends."""
    if on_progress is None and on_report is None:
        yield Telemetry()
        return
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(_Mailbox).remote()
    done = threading.Event()

    def deliver() -> None:
        progress, reports = ray.get(mailbox.take.remote())
        if progress is not None and on_progress is not None:
            on_progress(progress)
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
        ray.kill(mailbox)
