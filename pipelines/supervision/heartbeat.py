"""How far a worker is, told by itself from a thread of its own, so that one that hangs can be named.

A meeting is what all workers come to, equally often: a sum over workers, or a report. Knows no data and no model.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipelines.cluster.private_ray import SOURCE_ROOT, ray_psutil
from pipelines.supervision.driver_channel import DriverChannel

BEATS = "beats"
BEATS_PER_TIMEOUT = 40  # how often a worker says where it is within the time that it may be waited for
MOST_SECONDS_BETWEEN_BEATS = 5.0
ROOMS = tuple(f"{room}{os.sep}" for room in ("model", "pipelines", "tune", "serve"))
COLLECTIVE_GRACE_SECONDS = 60  # what the watchdog has to name and kill a worker before torch gives up by itself


def beat_seconds(timeout_seconds: float) -> float:
    """Seconds between two words of a worker."""
    return min(MOST_SECONDS_BETWEEN_BEATS, timeout_seconds / BEATS_PER_TIMEOUT)


@dataclass(frozen=True)
class Process:
    """A process of a cluster. `started`, in seconds since 1970, tells it from a later one with the same number."""

    node_id: str
    address: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.address}"


@dataclass(frozen=True)
class Beat:
    """What a worker says of itself. `group` names one start of all workers.

    `sync_points` counts those it has come to; `waiting_seconds` is how long it has been in the latest one, None when it
    is in none. `doing` is such as "step 12", `place` the line of ours that it executes.
    """

    group: str
    rank: int
    world: int
    process: Process
    sync_points: int = 0
    waiting_seconds: float | None = None
    doing: str = "its start"
    place: str = ""


class Heartbeat:
    """Tells how far this worker is. Created in the thread that trains."""

    def __init__(self, beat: Beat, send: Callable[[Beat], None], every_seconds: float) -> None:
        self._beat, self._send, self._every_seconds = beat, send, every_seconds
        self._entered: float | None = None
        self._thread = threading.get_ident()
        self._done = threading.Event()
        threading.Thread(target=self._speak, name="heartbeat", daemon=True).start()

    def _speak(self) -> None:
        while True:
            entered = self._entered
            waiting = None if entered is None else time.monotonic() - entered
            self._send(replace(self._beat, waiting_seconds=waiting, place=place_of(self._thread)))
            if self._done.wait(self._every_seconds):
                return

    def close(self) -> None:
        """Says nothing more."""
        self._done.set()

    def begin(self, doing: str) -> None:
        """What the worker does from now on."""
        self._beat = replace(self._beat, doing=doing)

    @contextmanager
    def sync_point(self) -> Iterator[None]:
        """Around what every worker has to come to."""
        self._beat = replace(self._beat, sync_points=self._beat.sync_points + 1)
        self._entered = time.monotonic()
        try:
            yield
        finally:
            self._entered = None

    def at_sync_point(self, function: Callable[..., None]) -> Callable[..., None]:
        """The same function, as a meeting."""

        def met(*arguments: Any, **named: Any) -> None:
            with self.sync_point():
                function(*arguments, **named)

        return met

    def over(self, batches: Callable[..., Iterator[Any]], train: Any) -> Callable[..., Iterator[Any]]:
        """The same `Batches`; tells which batch is waited for or computed. `train` is the plan to train."""

        def told(plan: Any, start: int, stop: int) -> Iterator[Any]:
            what = "step" if plan is train else "validation batch"
            self.begin(f"{what} {start + 1}")
            for number, batch in enumerate(batches(plan, start, stop), start + 1):
                yield batch
                self.begin(f"{what} {number + 1}" if number < stop else f"what follows {what} {number}")

        return told


@dataclass(frozen=True)
class HeartbeatSpec:
    """What a worker needs to be heard; travels to it with its settings."""

    channel: DriverChannel
    timeout_seconds: float

    @property
    def collective_seconds(self) -> int:
        """When torch gives up a sum by itself: after the watchdog has had its time."""
        return math.ceil(self.timeout_seconds) + COLLECTIVE_GRACE_SECONDS

    @contextmanager
    def heartbeat(self) -> Iterator[Heartbeat]:
        """The heartbeat of this worker of Ray Train until the block ends."""
        import ray.train

        context = ray.train.get_context()
        # All workers of one start share the port at which they have met.
        group = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        beat = Beat(group, context.get_world_rank(), context.get_world_size(), this_process())

        def send(beat: Beat) -> None:
            self.channel.put(BEATS, beat, key=(beat.group, beat.rank))

        heartbeat = Heartbeat(beat, send, beat_seconds(self.timeout_seconds))
        try:
            yield heartbeat
        finally:
            heartbeat.close()


def this_process() -> Process:
    """This process, as another node can find it."""
    import ray

    pid = os.getpid()
    node_id = ray.get_runtime_context().get_node_id()
    return Process(node_id, ray.util.get_node_ip_address(), pid, ray_psutil().Process(pid).create_time())


def place_of(thread: int) -> str:
    """The innermost line of ours that a thread of this process executes, as file:line; "" where there is none."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        file = os.path.relpath(frame.f_code.co_filename, SOURCE_ROOT)
        if file.startswith(ROOMS):  # by name: of an installed package, the root is where torch lies, too
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
