"""What workers tell the process that started them: a tiny actor that keeps it until it is asked for.

A worker's prints would appear twice and interleaved; a file could not be followed on an object store. One actor serves
all who listen, for each is a process; what it is told should need no import, for it would import as much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.session import on_this_node

Held = dict[Hashable, tuple[Any, float]]


class _ChannelActor:
    """The actor: by box and key the latest value, and when it came by this process's clock."""

    def __init__(self) -> None:
        self._boxes: dict[str, Held] = {}
        self._count = 0

    def put(self, box: str, value: Any, key: Hashable) -> None:
        if key is None:
            self._count += 1
            key = self._count
        self._boxes.setdefault(box, {})[key] = (value, time.monotonic())

    def take(self, boxes: tuple[str, ...]) -> list[list[Any]]:
        return [[value for value, _ in self._boxes.pop(box, {}).values()] for box in boxes]

    def look(self, box: str) -> tuple[Held, float]:
        return self._boxes.get(box, {}), time.monotonic()


@dataclass(frozen=True)
class DriverChannel:
    """Either end. Travels to workers with their settings."""

    actor: Any

    def put(self, box: str, value: Any, key: Hashable = None) -> None:
        """Adds a value, or with a key replaces the one that had it. Returns at once."""
        self.actor.put.remote(box, value, key)

    def take(self, *boxes: str) -> list[list[Any]]:
        """All values of each box, in the order in which their keys came; the boxes are empty then."""
        import ray

        taken: list[list[Any]] = ray.get(self.actor.take.remote(boxes))
        return taken

    def look(self, box: str) -> tuple[Held, float]:
        """The values of a box by key, in the order in which keys came, each with its time; and the time now."""
        import ray

        seen: tuple[Held, float] = ray.get(self.actor.look.remote(box))
        return seen


@contextmanager
def driver_channel() -> Iterator[DriverChannel]:
    """A channel that lives until the block ends. Its process starts while the caller goes on."""
    import ray

    actor = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(_ChannelActor).remote()
    try:
        yield DriverChannel(actor)
    finally:
        ray.kill(actor)


POLL_SECONDS = 0.3


PROGRESS, REPORTS = "progress", "reports"


@dataclass(frozen=True)
class WorkerReports:
    """The worker's end: calls return at once."""

    channel: DriverChannel

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Replaces the latest progress."""
        self.channel.put(PROGRESS, progress, key=PROGRESS)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of a validation, or what else must not be lost."""
        self.channel.put(REPORTS, metrics)


@contextmanager
def delivering(
    channel: DriverChannel,
    on_progress: Callable[[Mapping[str, Any]], None] | None,
    on_report: Callable[[dict[str, Any]], None] | None,
) -> Iterator[WorkerReports]:
    """A Telemetry whose words are handed to the callbacks, in a thread, until the block ends."""
    done = threading.Event()

    def deliver() -> None:
        progress, reports = channel.take(PROGRESS, REPORTS)
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
        yield WorkerReports(channel)
    finally:
        done.set()
        thread.join()
        deliver()
